"""The networks of keras.applications by name, each with its own preprocessing inside the graph."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from keras import applications, layers, ops

from model.errors import InputError

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225])
IMAGENET_MEAN_BGR = np.array([103.939, 116.779, 123.68])


def application_names() -> tuple[str, ...]:
    """Names of the networks of keras.applications, sorted."""
    return tuple(sorted(name for name, value in vars(applications).items() if inspect.isfunction(value)))


def check_application(name: str, *others: str) -> None:
    """Check a network's name.

    Args:
        name: the name, in the case that Keras writes it.
        others: names that are known besides those of keras.applications; only shown.

    Raises:
        InputError: there is no such network.
    """
    names = application_names()
    if name in names:
        return
    by_lower_case = {each.lower(): each for each in (*others, *names)}
    near = [name.lower()] if name.lower() in by_lower_case else difflib.get_close_matches(name.lower(), by_lower_case)
    question = f"did you mean {' or '.join(by_lower_case[each] for each in near)}? " if near else ""
    known = " and ".join((*others, f"the {len(names)} networks of keras.applications, such as MobileNetV2"))
    raise InputError(f"there is no backbone {name!r}; {question}There are {known}")


def preprocess(name: str, pixels: Any) -> Any:
    """What a network of keras.applications wants to see, as built-in Keras layers.

    Args:
        name: one of :func:`application_names`.
        pixels: KerasTensor float32[batch, size, size, 3] in [0, 255], red first.

    Returns:
        KerasTensor float32[batch, size, size, 3]; the pixels themselves for networks that preprocess them inside.
    """
    mode = _preprocessing_mode(name)
    if mode == "tf":
        scale, offset = 1 / 127.5, -1.0
    elif mode == "torch":
        scale, offset = (1 / (255 * IMAGENET_DEVIATION)).tolist(), (-IMAGENET_MEAN / IMAGENET_DEVIATION).tolist()
    elif mode == "caffe":
        pixels = ops.flip(pixels, axis=-1)
        scale, offset = 1.0, (-IMAGENET_MEAN_BGR).tolist()
    elif _is_first_efficientnet(name):
        # The network's own Rescaling by 1/255 follows.
        scale, offset = (1 / IMAGENET_DEVIATION).tolist(), (-255 * IMAGENET_MEAN / IMAGENET_DEVIATION).tolist()
    else:
        return pixels
    # float32 also under mixed precision: bfloat16 has 8 bits, which pixels that were augmented need more of.
    return layers.Rescaling(scale, offset=offset, dtype="float32", name="rescaling")(pixels)


def load_application(name: str, image_size: int, weights: str | None) -> Any:
    """A network of keras.applications without its classifier, from what :func:`preprocess` gives to a feature map.

    Args:
        name: one of :func:`application_names`.
        image_size: side of the input in pixels.
        weights: ``imagenet`` (downloaded by Keras), the path of a no-top weights file, or None for random ones.

    Returns:
        A Keras model, float32[batch, size, size, 3] -> [batch, height, width, channels].

    Raises:
        InputError: the name is unknown, the images are too small for the network, or the weights cannot be loaded.
    """
    check_application(name)
    if weights not in (None, "imagenet") and not Path(str(weights)).is_file():
        raise InputError(f"there is no weights file {weights}; give a path, imagenet or none")
    # Its shape first, so that a mistake in the size is not taken for one in the weights.
    try:
        network = _call(name, image_size, None)
    except ValueError as error:
        raise InputError(_size_message(name, image_size, error)) from error
    if weights is None:
        return network
    try:
        if weights != "imagenet":
            network.load_weights(weights)
        elif _is_first_efficientnet(name):
            # With imagenet Keras gives these networks one layer more than without; it has no weights.
            network.set_weights(_call(name, image_size, weights).get_weights())
        else:
            network = _call(name, image_size, weights)
    except Exception as error:
        # Keras raises many kinds here: URLError and ReadError offline, ValueError on shapes, OSError on a damaged file.
        hint = "download them once and give --weights PATH" if weights == "imagenet" else "is it the no-top file?"
        raise InputError(f"cannot load the weights {weights}: {_one_line(error)}; {hint}") from error
    if _is_first_efficientnet(name):
        _reset_normalization(network)
    return network


def _preprocessing_mode(name: str) -> str:
    """``tf``, ``torch``, ``caffe`` or ``none``: found by trial, because Keras tells it nowhere else."""
    # float64, and a copy each: Keras changes arrays of floats in place.
    trial = np.array([[[[0.0, 100.0, 255.0]]]])
    # The module that defines a network: the public ones do not all name their networks.
    module = sys.modules[getattr(applications, name).__module__]
    wanted = module.preprocess_input(trial.copy())
    for mode in ("tf", "torch", "caffe"):
        if np.array_equal(wanted, applications.imagenet_utils.preprocess_input(trial.copy(), mode=mode)):
            return mode
    if np.array_equal(wanted, trial):
        return "none"
    raise InputError(f"the backbone {name} wants its pixels in a way that is not known here: choose another")


def _is_first_efficientnet(name: str) -> bool:
    return bool(getattr(applications, name) is getattr(applications.efficientnet, name, None))


def _reset_normalization(network: Any) -> None:
    """Make the Normalization of the first EfficientNets do nothing; :func:`preprocess` does its part.

    Its statistics are weights, but it computes with copies of them, which ``set_weights`` leaves as they were: a
    network that was given this one's weights would silently see other pixels.
    """
    (normalization,) = (layer for layer in network.layers if isinstance(layer, layers.Normalization))
    values = normalization.get_weights()
    normalization.set_weights([np.zeros_like(values[0]), np.ones_like(values[1]), *values[2:]])
    normalization.finalize_state()


def _call(name: str, image_size: int, weights: str | None) -> Any:
    with warnings.catch_warnings():
        # The weights of MobileNet are of the nearest size that there are weights of, as they should be.
        warnings.filterwarnings("ignore", "`input_shape` is undefined or non-square")
        # No name: EfficientNetV2 chooses its preprocessing by its name.
        return getattr(applications, name)(input_shape=(image_size, image_size, 3), include_top=False, weights=weights)


def _size_message(name: str, image_size: int, error: ValueError) -> str:
    least = re.search(r"must be at least (\d+)", str(error))
    if least:
        return f"{name} needs images of {least[1]} pixels or more, not {image_size}: give another --image-size"
    return f"{name} cannot be built for images of {image_size} pixels: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
