"""Augmentations by name: random changes of pixels while training, inside the graph; the identity at inference.

An augmentation may change everything about a photo but what its label says. ``strong`` goes far: it turns and scales
the image, carries its marks over to another surface, draws straight joints, and changes light, colour and sharpness,
so that what is left to learn from is the shape of a crack and not the look of one set's concrete.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import Sequential, layers, ops

from model.errors import InputError

BRIGHTEST = 255.0


def build_augmentation(name: str, seed: int) -> Any:
    """A Keras model that changes pixels float32[batch, size, size, 3] in [0, 255] at random, and only while training.

    Args:
        name: one of :data:`AUGMENTATIONS`.
        seed: of the first random layer; each further one has the next number.

    Raises:
        InputError: there is no augmentation of that name.
    """
    if name not in AUGMENTATIONS:
        raise InputError(f"there is no augmentation {name!r}; the augmentations are {', '.join(AUGMENTATIONS)}")
    return Sequential(AUGMENTATIONS[name](seed), name="augmentation")


def _light(seed: int) -> list[Any]:
    return [
        layers.RandomFlip("horizontal_and_vertical", seed=seed),
        layers.RandomRotation(0.1, fill_mode="reflect", seed=seed + 1),
        layers.RandomBrightness(0.15, value_range=(0, BRIGHTEST), seed=seed + 2),
        layers.RandomContrast(0.2, value_range=(0, BRIGHTEST), seed=seed + 3),
    ]


def _flips_rotation(seed: int) -> list[Any]:
    return [
        layers.RandomFlip("horizontal_and_vertical", seed=seed),
        layers.RandomRotation(0.2, fill_mode="reflect", seed=seed + 1),
    ]


def _horizontal_flip_rotation(seed: int) -> list[Any]:
    return [
        layers.RandomFlip("horizontal", seed=seed),
        layers.RandomRotation(0.2, fill_mode="reflect", seed=seed + 1),
    ]


def _strong(seed: int) -> list[Any]:
    return [
        RandomPlacement(1.0, seed=seed),
        # In the order of the world: the surface, what is built of it, the light on it, then the camera.
        RandomSurface(0.3, seed=seed + 1),
        RandomJoints(0.15, seed=seed + 2),
        RandomShade(0.4, seed=seed + 3),
        layers.RandomContrast(0.4, value_range=(0, BRIGHTEST), seed=seed + 4),
        RandomTone(0.6, seed=seed + 5),
        layers.RandomGrayscale(0.2, seed=seed + 6),
        RandomBlur(0.3, seed=seed + 7),
        RandomNoise(0.35, seed=seed + 8),
        RandomCompression(0.25, seed=seed + 9),
    ]


AUGMENTATIONS: dict[str, Callable[[int], list[Any]]] = {
    "light": _light,
    "flips-rotation": _flips_rotation,
    "horizontal-flip-rotation": _horizontal_flip_rotation,
    "strong": _strong,
}
"""The layers of each augmentation, made anew for a seed."""


class _RandomChange(layers.Layer):
    """Changes each image of a batch with a probability, while training; works on pixels in [0, 255] and keeps to it.

    Args:
        probability: share of the images that are changed, in [0, 1].
        seed: of the random numbers.
    """

    def __init__(self, probability: float, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.probability = probability
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        # As Keras' own random layers: XLA would be slower here, and lacks some of the operations.
        self.supports_jit = False

    def call(self, pixels: Any, training: bool = False) -> Any:
        """Changed pixels, float32[batch, height, width, 3] in [0, 255], as those given."""
        if not training:
            return pixels
        # Only the chosen images are worked on, which makes a change as much cheaper as it is rarer.
        chosen = ops.nonzero(self._uniform(pixels, (), 0.0, 1.0) < self.probability)[0]
        changed = ops.clip(self._change(ops.take(pixels, chosen, axis=0)), 0.0, BRIGHTEST)
        return ops.scatter_update(pixels, chosen[:, None], changed)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Shapes stay as they are."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """What the layer is made of."""
        return {**super().get_config(), "probability": self.probability, "seed": self.seed}

    def _change(self, pixels: Any) -> Any:
        raise NotImplementedError

    def _uniform(self, pixels: Any, shape: tuple[int, ...], least: float, most: float) -> Any:
        """Random numbers in [least, most), float32[batch, *shape]."""
        return keras.random.uniform((ops.shape(pixels)[0], *shape), least, most, seed=self.seed_generator)

    def _normal(self, pixels: Any, shape: tuple[int, ...]) -> Any:
        """Normal random numbers of mean 0 and deviation 1, float32[batch, *shape]."""
        return keras.random.normal((ops.shape(pixels)[0], *shape), seed=self.seed_generator)

    def _cloud(self, pixels: Any, knots: int) -> Any:
        """Smooth noise from ``knots`` by ``knots`` random values: float32[batch, height, width, 1]."""
        height, width = pixels.shape[1], pixels.shape[2]
        return ops.image.resize(self._normal(pixels, (knots, knots, 1)), (height, width), "bilinear")


@keras.saving.register_keras_serializable("crackscan")
class RandomPlacement(_RandomChange):
    """Mirrors, turns by any angle, scales, stretches and shifts an image in one step; the border is mirrored.

    As seen from a third nearer, where nearly all cracks still cross the frame, to twice as far away; one side up to
    20 % longer than the other; shifted by up to 5 %. Keras' own layers would each resample the image anew.
    """

    def _change(self, pixels: Any) -> Any:
        height, width = float(pixels.shape[1]), float(pixels.shape[2])
        turn = self._uniform(pixels, (), 0.0, 2 * math.pi)
        # Output to input: a scale above 1 shows more of the (mirrored) surroundings.
        scale = ops.exp(self._uniform(pixels, (), math.log(0.75), math.log(2.0)))
        stretch = ops.exp(self._uniform(pixels, (), -0.09, 0.09))
        mirror = ops.sign(self._uniform(pixels, (), -1.0, 1.0))
        a, b = scale * stretch * ops.cos(turn) * mirror, -scale / stretch * ops.sin(turn)
        c, d = scale * stretch * ops.sin(turn) * mirror, scale / stretch * ops.cos(turn)
        x, y = (width - 1.0) / 2, (height - 1.0) / 2
        right = self._uniform(pixels, (), -0.05, 0.05) * width
        down = self._uniform(pixels, (), -0.05, 0.05) * height
        none = ops.zeros_like(turn)
        matrix = ops.stack([a, b, x - a * x - b * y + right, c, d, y - c * x - d * y + down, none, none], axis=1)
        return ops.image.affine_transform(pixels, matrix, "bilinear", "reflect")


@keras.saving.register_keras_serializable("crackscan")
class RandomSurface(_RandomChange):
    """Carries an image's marks over to another surface: another colour and another texture.

    The marks are the pixels over the mean of their wide neighbourhood, which a crack darkens and the surface's colour
    does not change. The texture is noise of several sizes.
    """

    def _change(self, pixels: Any) -> Any:
        side = pixels.shape[1]
        # Two small windows, one after the other, are cheaper than one of two fifths of the side.
        tile = max(side // 20, 1)
        around = ops.average_pool(ops.average_pool(pixels, tile, padding="same"), 8, strides=2, padding="same")
        around = ops.image.resize(around, (side, pixels.shape[2]), "bilinear")
        marks = ops.clip((pixels + 4.0) / (around + 4.0), 0.02, 1.6)
        marks = _power(marks, self._uniform(pixels, (1, 1, 1), 0.8, 1.4))
        texture = 1.0
        for cell in (1.5, 4.0, 12.0, 40.0):
            strength = self._uniform(pixels, (1, 1, 1), 0.0, 0.14)
            texture = texture + strength * self._cloud(pixels, max(round(side / cell), 2))
        bright = self._uniform(pixels, (1, 1, 1), 60.0, 225.0)
        colour = bright * self._uniform(pixels, (1, 1, 3), 0.8, 1.2)
        return colour * marks * ops.clip(texture, 0.4, 1.6)


@keras.saving.register_keras_serializable("crackscan")
class RandomJoints(_RandomChange):
    """Draws a grid of straight joints, as of bricks, tiles or formwork, whose fields differ a little in brightness.

    Joints run straight and evenly wide, as cracks do not: an image keeps its label.
    """

    def _change(self, pixels: Any) -> Any:
        height, width = pixels.shape[1], pixels.shape[2]
        rows = np.linspace(0.0, height / width, height, dtype=np.float32)[None, :, None]
        columns = np.linspace(0.0, 1.0, width, dtype=np.float32)[None, None, :]
        turn = self._uniform(pixels, (1, 1), 0.0, 2 * math.pi)
        cosine, sine = ops.cos(turn), ops.sin(turn)
        across = columns * cosine + rows * sine + self._uniform(pixels, (1, 1), 10.0, 11.0)
        down = rows * cosine - columns * sine + self._uniform(pixels, (1, 1), 10.0, 11.0)
        course = self._uniform(pixels, (1, 1), 0.2, 0.9)
        length = course * self._uniform(pixels, (1, 1), 1.0, 3.0)
        row = ops.floor(down / course)
        # Half of the walls have their courses shifted by half a brick against each other.
        shift = 0.5 * (row % 2.0) * ops.round(self._uniform(pixels, (1, 1), 0.0, 1.0))
        column = across / length + shift
        field = ops.floor(column)
        beside = ops.minimum((column - field) * length, (1.0 - column + field) * length)
        below = ops.minimum(down - row * course, (row + 1.0) * course - down)
        half = self._uniform(pixels, (1, 1), 0.008, 0.045)
        soft = self._uniform(pixels, (1, 1), 150.0, 500.0)
        joint = ops.sigmoid((half - ops.minimum(beside, below)) * soft)
        # A cheap number in [-1, 1] that differs from field to field.
        own = ops.sin(12.9898 * row + 78.233 * field)
        fields = 1.0 + own * self._uniform(pixels, (1, 1), 0.0, 0.2)
        factor = (1.0 - joint) * fields + joint * self._uniform(pixels, (1, 1), 0.55, 1.4)
        return pixels * factor[..., None]


@keras.saving.register_keras_serializable("crackscan")
class RandomShade(_RandomChange):
    """Lays uneven light over an image: wide clouds, and a shadow with one straight edge, sharp or soft."""

    def _change(self, pixels: Any) -> Any:
        height, width = pixels.shape[1], pixels.shape[2]
        clouds = self._cloud(pixels, 3) * self._uniform(pixels, (1, 1, 1), 0.0, 0.2)
        rows = np.linspace(-1.0, 1.0, height, dtype=np.float32)[None, :, None, None]
        columns = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, None, :, None]
        turn = self._uniform(pixels, (1, 1, 1), 0.0, 2 * math.pi)
        distance = columns * ops.cos(turn) + rows * ops.sin(turn) + self._uniform(pixels, (1, 1, 1), -1.0, 1.0)
        shadow = ops.sigmoid(distance * self._uniform(pixels, (1, 1, 1), 1.0, 25.0))
        depth = ops.maximum(self._uniform(pixels, (1, 1, 1), -0.5, 0.6), 0.0)
        return pixels * ops.clip(1.0 + clouds, 0.4, 1.6) * (1.0 - depth * shadow)


@keras.saving.register_keras_serializable("crackscan")
class RandomTone(_RandomChange):
    """Exposed for 0.6 to 1.4 times as long, a gamma from 0.4 to 2.5, and each channel a little brighter or darker."""

    def _change(self, pixels: Any) -> Any:
        gamma = ops.exp(self._uniform(pixels, (1, 1, 1), math.log(0.4), math.log(2.5)))
        tint = self._uniform(pixels, (1, 1, 3), 0.85, 1.15)
        exposure = self._uniform(pixels, (1, 1, 1), 0.6, 1.4)
        return BRIGHTEST * exposure * tint * _power(ops.clip(pixels / BRIGHTEST, 1e-4, 1.0), gamma)


@keras.saving.register_keras_serializable("crackscan")
class RandomBlur(_RandomChange):
    """Gaussian blur; its deviation is 0.3 to 1.8 % of the image's side, one for all blurred images of a batch."""

    def _change(self, pixels: Any) -> Any:
        side = pixels.shape[1]
        reach = max(round(0.04 * side), 1)
        deviation = side * keras.random.uniform((), 0.003, 0.018, seed=self.seed_generator)
        steps = np.arange(-reach, reach + 1, dtype=np.float32)
        weights = ops.exp(-0.5 * (steps / deviation) ** 2)
        kernel = ops.tile((weights / ops.sum(weights))[:, None, None, None], (1, 1, 3, 1))
        edges = ((0, 0), (reach, reach), (reach, reach), (0, 0))
        padded = ops.pad(pixels, edges, mode="symmetric")
        # Not padding="valid": without any chosen image TensorFlow's own gives a wrong shape on CPUs.
        blurred = ops.depthwise_conv(padded, kernel, padding="same")
        blurred = ops.depthwise_conv(blurred, ops.transpose(kernel, (1, 0, 2, 3)), padding="same")
        return blurred[:, reach:-reach, reach:-reach]


@keras.saving.register_keras_serializable("crackscan")
class RandomNoise(_RandomChange):
    """Normal noise of a deviation up to 24 of 255, partly the same in all channels."""

    def _change(self, pixels: Any) -> Any:
        height, width = pixels.shape[1], pixels.shape[2]
        strength = self._uniform(pixels, (1, 1, 1), 0.0, 24.0)
        # Random numbers are what costs here: three channels mix two planes of them.
        turn = self._uniform(pixels, (1, 1, 3), 0.0, 0.5 * math.pi)
        planes = self._normal(pixels, (height, width, 2))
        return pixels + strength * (planes[..., :1] * ops.cos(turn) + planes[..., 1:] * ops.sin(turn))


def _power(base: Any, exponent: Any) -> Any:
    # TensorFlow's own power is not vectorised on CPUs: this takes a fraction of its time.
    return ops.exp(exponent * ops.log(base))


_STEPS = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
"""JPEG's usual quantisation steps at quality 50 (ITU-T T.81, table K.1)."""

_WAVES = np.array(
    [
        [
            math.sqrt((1.0 if order == 0 else 2.0) / 8) * math.cos(math.pi * order * (2 * place + 1) / 16)
            for place in range(8)
        ]
        for order in range(8)
    ],
    np.float32,
)
"""The discrete cosine transform of eight numbers, orthonormal."""


@keras.saving.register_keras_serializable("crackscan")
class RandomCompression(_RandomChange):
    """The blocks and ringing of JPEG at qualities of about 10 to 60: its transform and rounding of the brightness.

    Not JPEG itself, which cannot be run on a batch inside the graph: the colours stay as they are.
    """

    def _change(self, pixels: Any) -> Any:
        height, width = pixels.shape[1], pixels.shape[2]
        rows, columns = -(-height // 8), -(-width // 8)
        grey = ops.mean(pixels, axis=3) - 128.0
        edges = ((0, 0), (0, 8 * rows - height), (0, 8 * columns - width))
        padded = ops.pad(grey, edges, mode="symmetric") if any(map(any, edges)) else grey
        blocks = ops.reshape(padded, (-1, rows, 8, columns, 8))
        waves = ops.einsum("ui,bricj,vj->brucv", _WAVES, blocks, _WAVES)
        coarseness = ops.exp(self._uniform(pixels, (1, 1, 1, 1), math.log(0.8), math.log(5.0)))
        steps = _STEPS[None, None, :, None, :] * coarseness
        rounded = ops.einsum("ui,brucv,vj->bricj", _WAVES, ops.round(waves / steps) * steps, _WAVES)
        whole = ops.reshape(rounded, (-1, 8 * rows, 8 * columns))[:, :height, :width]
        return pixels + (whole - grey)[..., None]
