"""Images of every format, mode and orientation; damaged ones; and thin cracks that must survive the resize."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from model.preprocess import DecodeError, Preprocessed, brightness, decode_image, encode_thumbnail, preprocess

LOSSLESS = {
    "PNG": {},
    "BMP": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
}
CORNERS = {
    # Where the first row and the first column of the stored pixels belong (EXIF 2.32, tag 274).
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def quadrants(height: int, width: int) -> np.ndarray:
    """Four even quarters of different colours: no turn or flip of it looks like another."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (230, 30, 30)
    pixels[: height // 2, width // 2 :] = (30, 230, 30)
    pixels[height // 2 :, : width // 2] = (30, 30, 230)
    pixels[height // 2 :, width // 2 :] = (220, 220, 220)
    return pixels


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels as a camera stores them that says `orientation` of them."""
    row, column = CORNERS[orientation]
    pixels = upright if row in ("top", "bottom") else upright.swapaxes(0, 1)
    if row in ("bottom", "right"):
        pixels = pixels[::-1]
    if column in ("bottom", "right"):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def with_orientation(upright: np.ndarray, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 95} if kind == "JPEG" else LOSSLESS[kind]
    return encoded(Image.fromarray(stored(upright, orientation)), kind, exif=exif, **options)


def assert_close(pixels: np.ndarray, expected: np.ndarray, within: float) -> None:
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected.astype(int)).mean() <= within


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_keep_every_pixel(kind):
    pixels = noise(20, 20)
    file = encoded(Image.fromarray(pixels), kind, **LOSSLESS[kind])
    np.testing.assert_array_equal(np.asarray(decode_image(file)), pixels)
    result = preprocess(file, 20)
    np.testing.assert_array_equal(result.pixels, pixels)
    assert (result.pixels.dtype, result.width, result.height) == (np.uint8, 20, 20)


def test_jpeg_keeps_colours_and_the_files_own_width_and_height():
    pixels = quadrants(40, 60)
    file = encoded(Image.fromarray(pixels), "JPEG", quality=95)
    assert_close(np.asarray(decode_image(file)), pixels, within=4)
    result = preprocess(file, 20)
    assert_close(result.pixels, quadrants(20, 20), within=15)
    assert (result.width, result.height) == (60, 40)


def test_gif_gives_its_first_frame():
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    file = encoded(first, "GIF", save_all=True, append_images=[second])
    assert (preprocess(file, 8).pixels == (250, 0, 0)).all()
    assert np.asarray(decode_image(file))[3, 3].tolist() == [250, 0, 0]


def test_the_several_jpegs_in_one_file_of_some_phones_give_the_first():
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    file = encoded(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(file)).format == "MPO"
    assert_close(preprocess(file, 16).pixels, np.broadcast_to(np.array([250, 0, 0], np.uint8), (16, 16, 3)), within=4)


@pytest.mark.parametrize("kind", ["EPS", "PPM", "TGA", "PDF"])
def test_formats_that_photos_do_not_come_in_are_not_opened(kind):
    # Pillow would start Ghostscript for the first.
    with pytest.raises(DecodeError) as caught:
        preprocess(encoded(Image.fromarray(quadrants(8, 8)), kind), 8)
    assert caught.value.code == "not_an_image"


def grey_ramp() -> np.ndarray:
    return np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_greys_are_the_same_in_three_channels():
    ramp = np.repeat(grey_ramp()[..., None], 3, axis=2)
    np.testing.assert_array_equal(preprocess(encoded(Image.fromarray(grey_ramp()), "PNG"), 16).pixels, ramp)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_left_out(mode):
    image = Image.fromarray(grey_ramp()).convert(mode)
    image.putalpha(Image.fromarray(grey_ramp().T))
    pixels = preprocess(encoded(image, "PNG"), 16).pixels
    np.testing.assert_array_equal(pixels, np.repeat(grey_ramp()[..., None], 3, axis=2))


def test_palette_indices_become_their_colours():
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 255, 0])
    expected = [[[10, 20, 30], [200, 100, 50]], [[0, 255, 0], [10, 20, 30]]]
    assert preprocess(encoded(image, "PNG"), 2).pixels.tolist() == expected


@pytest.mark.parametrize(("kind", "within"), [("TIFF", 0), ("JPEG", 4)])
def test_cmyk_becomes_rgb(kind, within):
    ink = Image.new("CMYK", (16, 16), (0, 255, 0, 51))
    options = {"quality": 95} if kind == "JPEG" else {}
    expected = np.broadcast_to(np.array([204, 0, 204], np.uint8), (16, 16, 3))
    assert_close(preprocess(encoded(ink, kind, **options), 16).pixels, expected, within)


@pytest.mark.parametrize(("kind", "order"), [("PNG", "<"), ("TIFF", "<"), ("TIFF", ">")])
def test_sixteen_bit_greys_are_scaled_and_not_clipped(kind, order):
    values = np.array([[0, 255, 256], [32768, 40000, 65535], [512, 1, 65280]], np.uint16)
    image = Image.fromarray(values)
    if order == ">":
        image = Image.frombytes("I;16B", (3, 3), values.astype(">u2").tobytes())
    expected = np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(preprocess(encoded(image, kind), 3).pixels, expected)


def test_black_and_white_images_are_0_and_255():
    image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert preprocess(encoded(image, "PNG"), 2).pixels[..., 1].tolist() == [[0, 255], [255, 0]]


@pytest.mark.parametrize("orientation", CORNERS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_comes_out_upright(kind, orientation):
    upright = quadrants(32, 48)
    file = with_orientation(upright, orientation, kind)
    decoded = decode_image(file)
    assert decoded.size == (48, 32)
    assert_close(np.asarray(decoded), upright, within=5)
    result = preprocess(file, 16)
    assert (result.width, result.height) == (48, 32)
    assert_close(result.pixels, quadrants(16, 16), within=15)


def test_a_turned_sixteen_bit_grey_image_comes_out_upright():
    values = np.array([[0, 8192], [32768, 65535]], np.uint16)
    exif = Image.Exif()
    exif[274] = 6
    file = encoded(Image.fromarray(np.ascontiguousarray(stored(values, 6))), "PNG", exif=exif)
    assert preprocess(file, 2).pixels[..., 0].tolist() == [[0, 32], [128, 255]]


@pytest.mark.parametrize(("width", "height"), [(799, 800), (800, 799)])
def test_width_and_height_of_a_turned_photo_hold_when_it_is_decoded_smaller(width, height):
    # At a quarter of its size the JPEG is square, and tells no more which side was the longer one.
    result = preprocess(with_orientation(quadrants(height, width), 6, "JPEG"), 50)
    assert (result.width, result.height) == (width, height)


def test_damaged_exif_does_not_cost_the_image():
    file = encoded(Image.fromarray(quadrants(32, 32)), "JPEG", quality=95, exif=b"Exif\0\0no TIFF header here")
    assert_close(preprocess(file, 32).pixels, quadrants(32, 32), within=5)


def valid(kind: str) -> bytes:
    smooth = np.asarray(Image.fromarray(noise(12, 12)).resize((60, 60), Image.Resampling.BICUBIC))
    return encoded(Image.fromarray(smooth), kind)


def png_with_a_broken_chunk() -> bytes:
    """Pillow raises a SyntaxError: behind half of the pixels comes a chunk without a name."""
    file = valid("PNG")
    data = file.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", file[data - 8 : data - 4])
    half = file[data - 4 : data + length // 2]
    chunk = struct.pack(">I", len(half) - 4) + half + struct.pack(">I", zlib.crc32(half))
    return file[: data - 8] + chunk + b"\0\0\0\4}\x84\x1c\x01" + bytes(64)


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (b"", "empty"),
        (b"image_id,label\n1,crack\n", "not_an_image"),
        (b"\0" * 4096, "not_an_image"),
        (b"\xff\xd8\xff", "not_an_image"),
        (valid("JPEG")[:-200], "truncated"),
        (valid("PNG")[:-200], "truncated"),
        (valid("BMP")[:-200], "truncated"),
        (valid("PNG").replace(b"IDAT", b"IDAT\0\0\0\0"), "corrupt"),
        (png_with_a_broken_chunk(), "corrupt"),
    ],
)
def test_what_is_no_whole_image_is_refused_with_its_kind(file, code):
    for decode in (decode_image, lambda file: preprocess(file, 16)):
        with pytest.raises(DecodeError) as caught:
            decode(file)
        assert caught.value.code == code
        assert str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_header_that_promises_too_many_pixels_is_refused_before_anything_is_decoded():
    file = bytearray(encoded(Image.new("L", (8, 8)), "BMP"))
    file[18:26] = (20_000).to_bytes(4, "little") * 2
    for decode in (decode_image, lambda file: preprocess(file, 16)):
        with pytest.raises(DecodeError) as caught:
            decode(bytes(file))
        assert caught.value.code == "too_large"


@pytest.mark.parametrize("pillows", [None, 1000])
def test_the_limit_of_pixels_holds_whatever_pillows_own_is(monkeypatch, pillows):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
    file = bytearray(encoded(Image.new("L", (8, 8)), "BMP"))
    file[18:26] = (20_000).to_bytes(4, "little") * 2
    with pytest.raises(DecodeError, match=r"20000 x 20000|exceeds limit of") as caught:
        preprocess(bytes(file), 16)
    assert caught.value.code == "too_large"


def test_a_photo_of_100_megapixels_is_read_without_a_warning():
    file = encoded(Image.new("L", (10_000, 10_000), 90), "JPEG")
    result = preprocess(file, 16)
    assert (result.width, result.height) == (10_000, 10_000)
    assert (result.pixels == 90).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_damaged_bytes_raise_nothing_but_decode_errors(kind):
    rng = np.random.default_rng(3)
    original = np.frombuffer(valid(kind), np.uint8)
    outcomes = []
    with warnings.catch_warnings():
        # Outside of tests Pillow's warnings on damage are no errors, and decoding goes on behind them.
        warnings.simplefilter("ignore")
        for _ in range(300):
            mutated = original.copy()
            # Headers are short: half of the changes go there.
            reach = len(mutated) if rng.random() < 0.5 else min(len(mutated), 80)
            places = rng.integers(0, reach, rng.integers(1, 9))
            mutated[places] = rng.integers(0, 256, len(places))
            file = mutated.tobytes()[: len(mutated) if rng.random() < 0.8 else rng.integers(1, len(mutated))]
            try:
                outcomes.append(preprocess(file, 24))
            except DecodeError as error:
                outcomes.append(error.code)
    codes = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert 30 < len(codes) < 300
    assert set(codes) <= {"not_an_image", "truncated", "too_large", "corrupt"}
    for outcome in outcomes:
        if isinstance(outcome, Preprocessed):
            assert (outcome.pixels.shape, outcome.pixels.dtype) == ((24, 24, 3), np.uint8)


def plain_bilinear(pixels: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of greys that looks at the four nearest pixels only, as many libraries do by default."""
    height, width = pixels.shape
    y, x = ((np.arange(size) + 0.5) * length / size - 0.5 for length in (height, width))
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = (y - top)[:, None], (x - left)[None]
    rows = pixels[top] * (1 - down) + pixels[top + 1] * down
    return rows[:, left] * (1 - right) + rows[:, left + 1] * right


def test_a_hairline_crack_in_a_12_megapixel_photo_stays_visible_in_every_row():
    grey = np.random.default_rng(0).integers(195, 206, (3000, 4000)).astype(np.uint8)
    # Slanted over two output pixels, so that it meets the sampling grid in every way.
    middle = np.linspace(2000, 2050, 3000)[:, None]
    grey[np.abs(np.arange(4000) - middle) < 1.5] = 30
    result = preprocess(encoded(Image.fromarray(grey).convert("RGB"), "JPEG", quality=90), 160)
    assert (result.width, result.height) == (4000, 3000)

    def contrast(pixels: np.ndarray) -> np.ndarray:
        return np.median(pixels, axis=1) - pixels.min(axis=1)

    # 3 of 25 pixels, 170 levels darker: 20 levels where they fall on one pixel, half of it where they fall on two.
    assert contrast(result.pixels[..., 0].astype(float)).min() > 8
    lost = contrast(plain_bilinear(grey.astype(float), 160)) < 8
    assert lost.mean() > 0.7


def test_brightness_is_the_mean_of_all_values():
    assert brightness(np.full((500, 500, 3), 255, np.uint8)) == 255.0
    assert brightness(np.array([[[0, 30, 90]]], np.uint8)) == 40.0


def test_a_thumbnail_is_a_jpeg_of_the_pixels():
    pixels = quadrants(64, 64)
    thumbnail = encode_thumbnail(pixels)
    assert Image.open(io.BytesIO(thumbnail)).format == "JPEG"
    assert_close(np.asarray(decode_image(thumbnail)), pixels, within=5)
