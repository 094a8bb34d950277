"""The drawn concrete patches: reproducible, balanced, alike in everything but the defect."""

import concurrent.futures
import io
import multiprocessing

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.synthetic import BINARY_CLASSES, IMAGE_SIZE, THREE_CLASSES, draw_image


def grey(index: int, seed: int = 0, classes: tuple[str, ...] = BINARY_CLASSES) -> NDArray[np.float64]:
    """The patch as grey levels, float64 [227, 227]."""
    with Image.open(io.BytesIO(draw_image(index, seed, classes).encoded)) as image:
        levels: NDArray[np.float64] = np.asarray(image, dtype=np.float64).mean(axis=2)
    return levels


@pytest.fixture(scope="module")
def pairs() -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The same 30 patches without and with a crack."""
    return [(grey(index, 5, ("Negative",)), grey(index, 5, ("Positive",))) for index in range(30)]


@pytest.mark.parametrize("classes", [BINARY_CLASSES, THREE_CLASSES])
def test_same_arguments_give_the_same_bytes_in_any_order(classes: tuple[str, ...]) -> None:
    forwards = {index: draw_image(index, 3, classes) for index in range(9)}
    backwards = {index: draw_image(index, 3, classes) for index in reversed(range(9))}
    assert forwards == backwards


def test_another_process_draws_the_same_bytes() -> None:
    here = [draw_image(index) for index in range(4)]
    spawned = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawned) as pool:
        assert list(pool.map(draw_image, range(4))) == here


def test_every_seed_and_index_gives_another_image() -> None:
    images = [draw_image(index, seed).encoded for seed in range(3) for index in range(10)]
    assert len(set(images)) == 30


@pytest.mark.parametrize("classes", [BINARY_CLASSES, THREE_CLASSES])
def test_classes_take_turns_and_names_are_unique(classes: tuple[str, ...]) -> None:
    images = [draw_image(index, 0, classes) for index in range(12)]
    assert [image.class_name for image in images] == list(classes) * (12 // len(classes))
    assert len({image.filename for image in images}) == 12


def test_filename_holds_class_and_index() -> None:
    assert draw_image(43, 0, THREE_CLASSES).filename == "no_crack/00000043.jpg"


def test_a_huge_index_can_be_drawn() -> None:
    assert draw_image(10**12).filename == "Negative/1000000000000.jpg"


@pytest.mark.parametrize("index", range(6))
def test_images_are_colour_jpegs_of_the_right_size(index: int) -> None:
    with Image.open(io.BytesIO(draw_image(index, 0, THREE_CLASSES).encoded)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (IMAGE_SIZE, IMAGE_SIZE))
        image.load()


@pytest.mark.parametrize("classes", [(), ("Positive", "Positive"), ("Positive", "rust"), ("positive",)])
def test_unknown_repeated_or_missing_classes_are_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="classes"):
        draw_image(0, 0, classes)


@pytest.mark.parametrize(("index", "seed"), [(-1, 0), (0, -1)])
def test_a_negative_index_or_seed_is_refused(index: int, seed: int) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        draw_image(index, seed)


def test_positives_hold_dark_pixels_that_negatives_lack(
    pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> None:
    darkening = [np.percentile(bare, 1) - np.percentile(cracked, 1) for bare, cracked in pairs]
    assert np.mean(darkening) > 40.0
    assert np.mean(np.array(darkening) > 5.0) > 0.85


def test_every_crack_is_in_view(pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
    darkened = [int((bare - cracked > 15.0).sum()) for bare, cracked in pairs]
    assert min(darkened) > 60


def test_a_crack_leaves_most_of_the_patch_as_it_is(
    pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> None:
    """What the classes share is the very same surface, marks, light and grain."""
    changes = [float(np.median(np.abs(bare - cracked))) for bare, cracked in pairs]
    assert np.median(changes) < 1.0


def test_brightness_is_spread_alike_in_both_classes() -> None:
    """Measured on different patches, as a network sees them; the median of a patch hardly feels its crack."""
    negatives, positives = (np.array([np.median(grey(2 * i + k, 9)) for i in range(60)]) for k in (0, 1))
    assert abs(np.mean(negatives) - np.mean(positives)) < 15.0
    assert 0.7 < np.std(negatives) / np.std(positives) < 1.4


def test_spalling_changes_an_area_and_not_a_line() -> None:
    bare = ("no crack",)
    areas = {
        name: np.median([np.mean(np.abs(grey(i, 1, bare) - grey(i, 1, (name,))) > 8.0) for i in range(12)])
        for name in ("crack", "spalling")
    }
    assert areas["spalling"] > 0.08
    assert areas["spalling"] > 1.5 * areas["crack"]
