"""Procedural concrete patches: images to train and test with where no data set is at hand.

They resemble the METU set (227 x 227 RGB JPEG photographs of concrete walls and floors). Every class has the
same surfaces, marks, light and JPEG quality: only the defect tells one class from another.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

BINARY_CLASSES = ("Negative", "Positive")
THREE_CLASSES = ("crack", "no crack", "spalling")
IMAGE_SIZE = 227
JPEG_QUALITY = 75  # what the METU files were saved with

_DEFECTS = {"Negative": "", "no crack": "", "Positive": "crack", "crack": "crack", "spalling": "spalling"}
_MARGIN = 12  # masks reach beyond the patch, so that shifting one for its lit rim uncovers no empty border
_OVERSAMPLING = 3

Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class SyntheticImage:
    """One patch: its JPEG bytes (227 x 227, RGB), its class, and a name that is unique per index."""

    filename: str
    class_name: str
    encoded: bytes


def draw_image(index: int, seed: int = 0, classes: tuple[str, ...] = BINARY_CLASSES) -> SyntheticImage:
    """Draw patch `index` of an endless set; (seed, index, classes) alone decide its bytes.

    Any index can be drawn in any process and order; only other versions of NumPy or Pillow may change a few
    pixel values. Classes take turns by index, so consecutive indices are balanced. Images of one seed and
    index differ between classes in the defect alone. `classes` are one or more distinct names out of
    "Negative", "Positive", "crack", "no crack", "spalling".

    Raises:
        ValueError: index or seed is negative, or classes are unknown, repeated or none.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must be 0 or more, not {index} and {seed}")
    if not classes or len(set(classes)) != len(classes) or not set(classes) <= _DEFECTS.keys():
        raise ValueError(f"classes must be distinct names out of {sorted(_DEFECTS)}, not {classes!r}")
    class_name = classes[index % len(classes)]
    # The defect has random numbers of its own, so that drawing one changes nothing else in the patch.
    common, own = (np.random.default_rng([seed, index, part]) for part in (1, 2))
    painter = _Painter(common)
    painter.wear()
    painter.rng = own
    if _DEFECTS[class_name] == "crack":
        painter.crack()
    elif _DEFECTS[class_name] == "spalling":
        painter.spalling()
    painter.rng = common
    return SyntheticImage(f"{class_name.replace(' ', '_')}/{index:08d}.jpg", class_name, painter.photograph())


def _noise(rng: np.random.Generator, cell: float, stretch: float = 1.0, turn: float = 0.0) -> Floats:
    """Smooth noise, float32 [227, 227], mean 0, deviation about 1; one knot per `cell` pixels."""
    side = round(IMAGE_SIZE * 1.42) if turn else IMAGE_SIZE
    grid = rng.standard_normal((int(side / cell) + 4, int(side / (cell * stretch)) + 4), dtype=np.float32)
    left, top = rng.uniform(1.0, 2.0, 2)
    box = (left, top, left + side / (cell * stretch), top + side / cell)
    image = Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC, box=box)
    if turn:
        edge = (side - IMAGE_SIZE) // 2
        image = image.rotate(turn).crop((edge, edge, edge + IMAGE_SIZE, edge + IMAGE_SIZE))
    return np.asarray(image, dtype=np.float32) * np.float32(1.35)


def _heading(angle: float) -> Floats:
    return np.array([math.cos(angle), math.sin(angle)])


def _jagged(rng: np.random.Generator, start: Floats, end: Floats, bend: float, roughness: float) -> Floats:
    """A walk from start to end by midpoint displacement: float64 [n, 2], a point about every 3 pixels."""
    path = np.stack([start, end])
    length = float(np.hypot(*(end - start)))
    normal = np.array([start[1] - end[1], end[0] - start[0]]) / length
    shift = bend * length
    for _ in range(round(math.log2(length / 3.0))):
        middles = (path[1:] + path[:-1]) / 2
        middles += rng.normal(0.0, shift, (len(middles), 1)) * normal
        middles += rng.normal(0.0, shift / 3, middles.shape)
        path = np.insert(path, np.arange(1, len(path)), middles, axis=0)
        shift *= roughness
    return path


def _wander(rng: np.random.Generator, count: int, step: int) -> Floats:
    """Noise along a line, float64 [count], deviation about 1, straight between knots `step` points apart."""
    knots = rng.standard_normal(count // step + 2)
    return np.interp(np.arange(count) / step, np.arange(len(knots)), knots)


def _outline(rng: np.random.Generator, radius: float, waves: int) -> Floats:
    """An irregular closed line around (0, 0), float64 [4 * waves, 2]."""
    turns = np.linspace(0.0, 2 * math.pi, 4 * waves, endpoint=False)
    orders = np.arange(1, waves + 1)[:, None]
    heights = rng.normal(0.0, 0.3, (waves, 1)) / orders
    ripple = (heights * np.sin(orders * turns + rng.uniform(0.0, 2 * math.pi, (waves, 1)))).sum(axis=0)
    distance: Floats = radius * np.clip(1.0 + ripple, 0.4, 1.8)
    return np.stack([np.cos(turns) * distance, np.sin(turns) * distance], axis=1)


def _mask(outlines: list[Floats]) -> Image.Image:
    """Smooth-edged mask of filled polygons (patch coordinates), with a margin all round."""
    side = (IMAGE_SIZE + 2 * _MARGIN) * _OVERSAMPLING
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    for outline in outlines:
        draw.polygon(((outline + _MARGIN) * _OVERSAMPLING).ravel().tolist(), fill=255)
    return image.reduce(_OVERSAMPLING)


def _crop(mask: Image.Image, shift: Floats | None = None) -> Image.Image:
    left, top = (_MARGIN, _MARGIN) if shift is None else (_MARGIN - np.rint(shift).astype(int)).tolist()
    return mask.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))


def _blur(mask: Image.Image, radius: float) -> Image.Image:
    return mask.filter(ImageFilter.GaussianBlur(radius))


class _Painter:
    """One patch while it is being drawn: a bare surface first, photographed last."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        # Light falls in from one side for the whole patch; rims, grit and shadows must agree about it.
        self.light = _heading(rng.uniform(0.0, 2 * math.pi))
        self.brightness = float(np.clip(rng.normal(178.0, 27.0), 85.0, 228.0))
        warmth, green = rng.choice([0.4, 1.0]) * rng.uniform(-0.1, 1.1), rng.normal(0.0, 0.25)
        self.tint = 1.0 + np.array([0.055 * warmth, 0.025 * green, -0.085 * warmth - 0.01])
        self.image = self._surface()

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _relief(self, height: Floats, reach: float) -> Floats:
        """How much each pixel of a height map faces the light."""
        down, right = np.rint(reach * self.light[::-1]).astype(int).tolist()
        return height - np.roll(height, (down, right), (0, 1))

    def _surface(self) -> Image.Image:
        rng = self.rng
        streaks = rng.uniform(2.0, 6.0) if self._chance(0.25) else rng.uniform(1.0, 1.6)
        mottle = _noise(rng, rng.uniform(40.0, 130.0))
        patches = _noise(rng, rng.uniform(9.0, 28.0), streaks, rng.uniform(1.0, 180.0))
        flecks = _noise(rng, rng.uniform(3.0, 7.0), rng.uniform(1.0, 1.5))
        grit = _noise(rng, rng.uniform(1.3, 2.6))
        # Squashed noise has plateaus with edges, as paste between grains has; plain noise looks like cloud.
        tone = np.tanh(1.8 * flecks + 0.5 * grit) * rng.uniform(0.5, 4.5) + grit * rng.uniform(0.3, 2.5)
        tone += np.tanh(1.5 * patches + 0.5 * flecks) * rng.uniform(0.5, 4.0) + mottle * rng.uniform(0.5, 4.0)
        tone += self._relief(grit + flecks * rng.uniform(0.0, 2.0), 1.4) * rng.uniform(0.3, 3.5)
        tone *= rng.lognormal(0.0, 0.4)
        grains = flecks + 0.3 * grit
        pits = np.clip((grains - rng.uniform(1.7, 3.8)) * 2.0, 0.0, 1.0)
        tone -= pits * (self.brightness * rng.uniform(0.1, 0.5))
        tone += np.clip(-grains - rng.uniform(2.0, 3.5), 0.0, 1.0) * rng.uniform(5.0, 40.0)
        if self._chance(0.3):
            edge = mottle + 0.5 * np.tanh(patches) + 0.3 * flecks + 0.15 * grit
            stain = np.clip((edge - rng.uniform(0.4, 1.8)) * rng.uniform(0.7, 3.0), 0.0, 1.0)
            tone += stain * rng.normal(-4.0, 14.0)
        spread = (rng.normal(0.0, 0.0025, 3) * self.tint).astype(np.float32)
        colour = (patches + mottle)[..., None] * spread + self.tint.astype(np.float32)
        return Image.fromarray(np.clip((tone + self.brightness)[..., None] * colour, 0, 255).astype(np.uint8))

    def _paste(self, mask: Image.Image, opacity: float, factor: float, warmth: float = 0.0) -> None:
        """Cover with the surface's own colour made `factor` as bright, and browner by `warmth`."""
        colour = self.brightness * factor * self.tint * (1.0 + warmth * np.array([0.2, 0.0, -0.3]))
        ink = tuple(np.clip(colour, 0, 255).astype(int).tolist())
        box = mask.getbbox()
        if box and opacity > 0:
            self.image.paste(ink, box, mask.crop(box).point([int(value * opacity) for value in range(256)]))

    def _rims(self, mask: Image.Image, reach: float, lit: float, shaded: float) -> None:
        """Edges of a hole: the one facing the light shines, the one turned away lies in shadow."""
        self._paste(ImageChops.subtract(_crop(mask, self.light * reach), _crop(mask)), lit, 1.3)
        self._paste(ImageChops.subtract(_crop(mask, -self.light * reach), _crop(mask)), shaded, 0.4)

    def _ribbon(self, path: Floats, width: float, taper: float) -> Floats:
        """Outline of a crack along `path`, of uneven width, whose two edges fray each in its own way."""
        rng, count = self.rng, len(path)
        tangent = np.gradient(path, axis=0)
        normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) / np.hypot(*tangent.T)[:, None].clip(1e-6)
        uneven = np.exp(0.4 * _wander(rng, count, 18) + 0.2 * _wander(rng, count, 6))
        half = 0.5 * width * uneven * np.linspace(1.0, taper, count)
        fray = min(0.1 * width, 0.9)
        frays = (fray * (_wander(rng, count, 4) + 0.5 * rng.standard_normal(count)) for _ in range(2))
        left, right = (half * rng.uniform(0.8, 1.2) + rough for rough in frays)
        return np.concatenate([path + normal * left[:, None], (path - normal * right[:, None])[::-1]])

    def crack(self) -> None:
        """One crack, mostly from border to border, sometimes with branches or a companion."""
        rng = self.rng
        width = float(np.clip(rng.lognormal(math.log(7.5), 0.75), 1.2, 28.0))
        ribbons, angle = [], rng.uniform(0.0, 2 * math.pi)
        for size in [width, width * rng.uniform(0.25, 0.8)][: 1 + self._chance(0.12)]:
            angle += rng.normal(0.0, 0.5)
            centre = IMAGE_SIZE / 2 + _heading(angle + math.pi / 2) * rng.uniform(-65.0, 65.0)
            ends_inside, roughness = self._chance(0.15), rng.uniform(0.42, 0.62)
            end = centre + _heading(angle) * (rng.uniform(-10.0, 90.0) if ends_inside else 190.0)
            path = _jagged(rng, centre - _heading(angle) * 190.0, end, rng.uniform(0.02, 0.09), roughness)
            ribbons.append(self._ribbon(path, size, 0.25 if ends_inside else rng.uniform(0.5, 1.0)))
            for _ in range(rng.choice(4, p=[0.62, 0.22, 0.1, 0.06])):
                fork = path[rng.integers(len(path) // 4, 3 * len(path) // 4)]
                length, away = rng.uniform(35.0, 200.0), angle + rng.choice([-1, 1]) * rng.uniform(0.3, 1.4)
                branch = _jagged(rng, fork, fork + length * _heading(away), rng.uniform(0.04, 0.1), roughness)
                ribbons.append(self._ribbon(branch, min(size * rng.uniform(0.2, 0.7), length / 10), 0.3))
        mask = _mask(ribbons)
        darkness = rng.uniform(0.35, 0.65) if self._chance(0.12) else rng.uniform(0.8, 1.0)
        # Dirt and damp along the crack, then the broken wall that shows beside it, then the dark gap itself.
        if self._chance(0.5):
            halo = _crop(_blur(mask, rng.uniform(2.0, 9.0)))
            self._paste(halo, rng.uniform(0.2, 0.9), rng.uniform(0.4, 0.8), rng.uniform(0.0, 0.7))
        if self._chance(0.6) and width > 3:
            wall = _crop(mask, self.light * np.clip(width * rng.uniform(0.15, 0.5), 1.0, _MARGIN - 1.0))
            self._paste(wall, rng.uniform(0.4, 1.0), rng.uniform(0.4, 1.25), rng.uniform(0.0, 0.4))
        self._rims(mask, rng.uniform(1.0, 2.6), rng.choice([0.0, 0.25, 0.6]) * darkness, rng.uniform(0, 0.4))
        debris = (_noise(rng, rng.uniform(3.0, 9.0)) - rng.uniform(0.3, 2.0)) * rng.uniform(0.1, 0.5)
        gap = Image.fromarray((np.asarray(_crop(mask)) * (1.0 - np.clip(debris, 0.0, 0.7))).astype(np.uint8))
        shallow = rng.uniform(0.18, 0.5)
        self._paste(gap, darkness, shallow, rng.uniform(0.0, 0.5))
        if width > 4:
            # A wide gap is darkest deep inside and on the side turned away from the light.
            deep = _crop(_blur(mask, width * 0.18), -self.light * min(width * 0.15, 3.0))
            self._paste(ImageChops.multiply(gap, deep), darkness, shallow * rng.uniform(0.3, 0.8))

    def spalling(self) -> None:
        """An area where the surface layer broke off: rough aggregate inside, a shaded rim around."""
        rng = self.rng
        outline = _outline(rng, rng.uniform(40.0, 95.0), 16) * rng.uniform(0.7, 1.2, 2)
        coarse, fine = _noise(rng, rng.uniform(8.0, 18.0)), _noise(rng, rng.uniform(2.0, 4.0))
        # A drawn outline is too clean for broken concrete: noise moves it by some pixels either way.
        area = _crop(_blur(_mask([outline + rng.uniform(45.0, IMAGE_SIZE - 45.0, 2)]), 5.0))
        broken = np.asarray(area, dtype=np.float32) / 255.0 + 0.09 * coarse + 0.04 * fine
        filled = (np.clip((broken - 0.5) * 6.0 + 0.5, 0.0, 1.0) * 255.0).astype(np.uint8)
        mask = Image.fromarray(np.pad(filled, _MARGIN, mode="edge"))
        self._rims(mask, rng.uniform(1.2, 2.5), rng.uniform(0.1, 0.6), rng.uniform(0.0, 0.3))
        self._paste(_crop(mask), 1.0, rng.uniform(0.6, 1.05), rng.uniform(0.0, 0.35))
        height = np.tanh(1.5 * coarse) * rng.uniform(1.0, 4.0) + coarse + fine * rng.uniform(0.3, 0.9)
        rubble = self._relief(height, 2.0) * rng.uniform(6.0, 16.0) + fine * rng.uniform(3.0, 9.0)
        rubble += np.clip((coarse - rng.uniform(0.4, 1.2)) * 4.0, 0.0, 1.0) * rng.normal(0.0, 22.0)
        rough = np.asarray(self.image, dtype=np.float32) + (rubble * (filled / 255.0))[..., None]
        self.image = Image.fromarray(np.clip(rough, 0, 255).astype(np.uint8))
        # The rim throws its shadow into the hole on the side that the light comes over.
        sunk = ImageChops.subtract(_crop(mask), _crop(mask, -self.light * rng.uniform(3.0, 9.0)))
        self._paste(_blur(sunk, 1.0), rng.uniform(0.3, 0.8), 0.25)

    def wear(self) -> None:
        """Marks that any concrete carries and that are no defect: pores, spots, scratches, joints, straws."""
        rng = self.rng
        pores = _mask(self._blobs(int(rng.poisson(rng.choice([0.5, 3.0, 9.0]))), 1.0, 5.0))
        self._rims(pores, 1.0, rng.uniform(0.0, 0.5), 0.0)
        self._paste(_crop(pores), rng.uniform(0.5, 1.0), rng.uniform(0.3, 0.75))
        for chance, least, most, factor in ((0.08, 4, 16, 1.25), (0.08, 3, 9, 0.3), (0.1, 8, 30, 0.85)):
            if self._chance(chance):
                spots = _blur(_mask(self._blobs(int(rng.integers(1, 4)), least, most)), rng.uniform(0.3, 2.0))
                self._paste(_crop(spots), rng.uniform(0.3, 0.8), factor, rng.uniform(0.0, 0.4))
        for _ in range(rng.choice([0, 1, 2, 4], p=[0.7, 0.16, 0.09, 0.05])):
            scratch = self._stroke(rng.uniform(25.0, 160.0), rng.uniform(0.6, 2.2), rng.normal(0.0, 0.08))
            self._paste(_crop(scratch), rng.uniform(0.15, 0.55), rng.choice([0.8, 1.25]))
        if self._chance(0.07):
            joint = self._stroke(2.0 * IMAGE_SIZE, rng.uniform(2.0, 9.0), 0.0)
            self._paste(_crop(joint), rng.uniform(0.2, 0.6), rng.choice([0.82, 1.15]))
        if self._chance(0.04):
            straw = self._stroke(rng.uniform(50.0, 250.0), rng.uniform(2.0, 6.0), rng.normal(0.0, 0.08))
            self._paste(_crop(straw, -2.0 * self.light), 0.6, 0.45)
            self._paste(_crop(straw), 0.9, rng.uniform(0.7, 1.1), 0.7)

    def _blobs(self, count: int, least: float, most: float) -> list[Floats]:
        radii = least * (most / least) ** self.rng.random(count)
        return [_outline(self.rng, size, 7) + self.rng.uniform(0.0, IMAGE_SIZE, 2) for size in radii]

    def _stroke(self, length: float, width: float, bow: float) -> Image.Image:
        """Mask of a straight or evenly bowed line of one width: what a crack, rough and winding, is not."""
        angle, along = self.rng.uniform(0.0, 2 * math.pi), np.linspace(-0.5, 0.5, 24)
        across = _heading(angle + math.pi / 2)
        path = np.outer(along * length, _heading(angle)) + np.outer(4 * along**2 * bow * length, across)
        path += self.rng.uniform(20.0, IMAGE_SIZE - 20.0, 2)
        return _mask([np.concatenate([path + across * width / 2, (path - across * width / 2)[::-1]])])

    def photograph(self) -> bytes:
        """Light, shadow, sensor and lens, then JPEG."""
        rng = self.rng
        ramp = np.linspace(-1.0, 1.0, IMAGE_SIZE, dtype=np.float32)
        light = 1.0 + rng.normal(0.0, 0.035) * ramp[None, :] + rng.normal(0.0, 0.035) * ramp[:, None]
        if self._chance(0.12):
            across, down = _heading(rng.uniform(0.0, 2 * math.pi))
            distance = across * ramp[None, :] + down * ramp[:, None] + rng.uniform(-0.6, 0.6)
            edge = 1.0 + np.exp((distance + 0.1 * _noise(rng, 60.0)) * rng.uniform(3.0, 14.0))
            light *= 1.0 - rng.uniform(0.1, 0.4) / edge
        grain = rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.float32) * rng.uniform(0.5, 4.0)
        rgb = np.asarray(self.image, dtype=np.float32) * light.astype(np.float32)[..., None] + grain
        image = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.1, 1.0)))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=JPEG_QUALITY)
        return stream.getvalue()
