"""Corruptions: what each does to an image, and the table over a bundle."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.corruptions import CORRUPTIONS, Row, corrupted, farther, measure, nearer, parser, to_markdown
from model.engine import Scores
from model.preprocess import decode_image
from model.synthetic import BINARY_CLASSES, draw_image

NAMES = list(CORRUPTIONS)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.asarray(decode_image(draw_image(1).encoded))


def apply(name: str, image: np.ndarray, seed: int = 0) -> np.ndarray:
    return CORRUPTIONS[name](image, np.random.default_rng(seed))


def detail(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image.astype(float), axis=1)).mean())


@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_gives_an_image_is_repeatable_and_leaves_its_input(name, image):
    before = image.copy()
    result = apply(name, image)
    assert result.dtype == np.uint8
    assert result.shape[2] == 3
    np.testing.assert_array_equal(apply(name, image), result)
    np.testing.assert_array_equal(image, before)
    assert name in ("none", "scale 2") or result.shape != image.shape or (result != image).any()


@pytest.mark.parametrize("name", ["noise", "all", "all, full strength"])
def test_what_is_random_comes_from_the_generator(name, image):
    one, other = apply(name, image, 0), apply(name, image, 1)
    assert one.shape != other.shape or (one != other).any()


def test_light_detail_and_noise_change_as_named(image):
    assert apply("gamma 0.5", image).mean() > image.mean() + 10
    assert apply("gamma 2", image).mean() < image.mean() - 10
    assert detail(apply("blur", image)) < 0.7 * detail(image)
    grey = np.full((60, 60, 3), 128, np.uint8)
    assert apply("noise", grey).std() == pytest.approx(20, rel=0.05)


def test_blur_grows_with_the_image(image):
    large = np.asarray(Image.fromarray(image).resize((681, 681), Image.Resampling.BILINEAR))
    shrunk = np.asarray(Image.fromarray(apply("blur", large)).resize((227, 227), Image.Resampling.BILINEAR))
    assert detail(shrunk) == pytest.approx(detail(apply("blur", image)), rel=0.15)


def test_scales_change_the_number_of_pixels(image):
    assert apply("scale 0.5", image).shape == (114, 114, 3)
    assert apply("scale 2", image).shape == (454, 454, 3)


def test_farther_shows_the_image_amid_its_mirror_images(image):
    result = farther(image, np.random.default_rng(0))
    assert result.shape == (454, 454, 3)
    np.testing.assert_array_equal(result[113:340, 113:340], image)
    np.testing.assert_array_equal(result[112, 113:340], image[0])


def test_nearer_looks_where_the_crack_is():
    image = np.full((100, 100, 3), 180, np.uint8)
    image[80:84, 60:] = 20
    result = nearer(image, np.random.default_rng(0))
    assert result.shape == (50, 50, 3)
    assert (result == 20).any()


def test_a_corrupted_file_loses_nothing_more(image):
    encoded = draw_image(1).encoded
    result = np.asarray(Image.open(io.BytesIO(corrupted(encoded, CORRUPTIONS["none"], np.random.default_rng(0)))))
    np.testing.assert_array_equal(result, image)


class DarkIsPositive:
    """An engine that calls an image cracked where its mean is below 100."""

    batch_size = 4

    def predict(self, pixels: np.ndarray) -> Scores:
        positive = (pixels.mean(axis=(1, 2, 3)) < 100).astype(np.float32)
        return Scores(np.stack([1 - positive, positive], axis=1), np.zeros((len(pixels), 2), np.float32))


def test_the_table_counts_images_whose_predicted_class_is_wrong(bundle_of_greys):
    def flat(value: int) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(np.full((50, 50, 3), value, np.uint8)).save(stream, "PNG")
        return stream.getvalue()

    examples = [(flat(value), label) for value, label in [(200, 0), (150, 0), (50, 1), (120, 0), (150, 1)]]
    rows = [measure(name, examples, bundle_of_greys, DarkIsPositive(), 0, 2) for name in ("none", "gamma 2")]
    # Darker, 150 and 120 fall below 100 too: one mistake is mended, two are new.
    assert rows == [Row("none", 5, 1), Row("gamma 2", 5, 2)]
    assert list(to_markdown(rows))[2:] == ["| none | 0.8000 | 1 | 5 |", "| gamma 2 | 0.6000 | 2 | 5 |"]


@pytest.fixture
def bundle_of_greys():
    from model.bundle import Bundle
    from model.spec import ModelSpec

    spec = ModelSpec(BINARY_CLASSES, "Positive", 32, 0.5, "small_cnn", "small", 2, "")
    return Bundle("", spec, {})


def test_the_test_split_is_looked_at_by_default():
    assert parser().parse_args([]).split == "test"
