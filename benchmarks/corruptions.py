"""How a bundle holds under blur, other light, compression, noise and other scales: accuracy on worsened photos."""

from __future__ import annotations

import argparse
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from jobs.command import DONE, run_command
from model.bundle import Bundle, open_bundle
from model.dataset_info import SPLITS, read_dataset
from model.engine import Engine, decide, open_engine
from model.errors import InputError
from model.lookahead import chunked, map_ahead
from model.native_log import quiet_native_log
from model.preprocess import decode_image, preprocess

Pixels = npt.NDArray[np.uint8]
Corruption = Callable[[Pixels, np.random.Generator], Pixels]
"""From an image uint8[height, width, 3] to a worse one, perhaps of other sides; the generator makes what is random."""

REFERENCE_SIDE = 227
"""Blurs are given in pixels of METU's images, and grow with larger ones."""

DESCRIPTION = """\
Print a Markdown table of how many images of a split a bundle gets right as they are, and under each corruption. The
images are decoded at full size, corrupted, and then resized for the network as any photo is.
"""


def unchanged(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """The image as it is."""
    return pixels


def blurred(deviation: float) -> Corruption:
    """Gaussian blur of a deviation in pixels at a side of 227."""

    def corrupt(pixels: Pixels, random: np.random.Generator) -> Pixels:
        radius = deviation * max(pixels.shape[:2]) / REFERENCE_SIDE
        return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))

    return corrupt


def gamma(exponent: float) -> Corruption:
    """Every value v in [0, 1] becomes v to the power of the exponent: 0.5 is brighter, 2 darker."""
    curve = np.rint(255.0 * (np.arange(256) / 255.0) ** exponent).astype(np.uint8)

    def corrupt(pixels: Pixels, random: np.random.Generator) -> Pixels:
        return curve[pixels]

    return corrupt


def compressed(quality: int) -> Corruption:
    """Saved as JPEG of a quality from 1 to 95, with Pillow's usual halved colour resolution, and read again."""

    def corrupt(pixels: Pixels, random: np.random.Generator) -> Pixels:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
        return np.asarray(decode_image(stream.getvalue()))

    return corrupt


def noisy(deviation: float) -> Corruption:
    """Independent normal noise of a deviation, of 255, in every pixel and channel."""

    def corrupt(pixels: Pixels, random: np.random.Generator) -> Pixels:
        noise = random.standard_normal(pixels.shape, dtype=np.float32) * np.float32(deviation)
        return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)

    return corrupt


def resampled(scale: float) -> Corruption:
    """The same picture with ``scale`` times as many pixels along each side, bilinear as in :mod:`model.preprocess`."""

    def corrupt(pixels: Pixels, random: np.random.Generator) -> Pixels:
        height, width = pixels.shape[:2]
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))

    return corrupt


def farther(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """As seen from twice the distance: the image amid its mirror images, which shows every crack at half its width."""
    height, width = pixels.shape[:2]
    edges = ((height // 2, height - height // 2), (width // 2, width - width // 2), (0, 0))
    return np.pad(pixels, edges, mode="symmetric")


def nearer(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """As seen from half the distance: of nine windows of half the side, the one whose brightness varies the most.

    The centre alone would often miss the crack and so have another label than the image; a crack is what varies most.
    """
    height, width = (side // 2 for side in pixels.shape[:2])
    corners = [(top, left) for top in (0, height // 2, height) for left in (0, width // 2, width)]
    windows = [pixels[top : top + height, left : left + width] for top, left in corners]
    return max(windows, key=lambda window: float(window.mean(axis=2).std()))


def in_turn(*corruptions: Corruption) -> Corruption:
    """One corruption after another."""

    def corrupt(pixels: Pixels, random: np.random.Generator) -> Pixels:
        for one in corruptions:
            pixels = one(pixels, random)
        return pixels

    return corrupt


def either(*corruptions: Corruption) -> Corruption:
    """One of the corruptions, chosen at random with equal chances."""

    def corrupt(pixels: Pixels, random: np.random.Generator) -> Pixels:
        return corruptions[int(random.integers(len(corruptions)))](pixels, random)

    return corrupt


CORRUPTIONS: dict[str, Corruption] = {
    "none": unchanged,
    "blur": blurred(2.0),
    "gamma 0.5": gamma(0.5),
    "gamma 2": gamma(2.0),
    "JPEG quality 20": compressed(20),
    "noise": noisy(20.0),
    "scale 0.5": resampled(0.5),
    "scale 2": resampled(2.0),
    "twice as far": farther,
    "twice as near": nearer,
    "all": in_turn(
        either(resampled(0.7), resampled(1.4)),
        blurred(1.0),
        either(gamma(1 / 1.5), gamma(1.5)),
        noisy(10.0),
        compressed(40),
    ),
    "all, full strength": in_turn(
        either(resampled(0.5), resampled(2.0)),
        blurred(2.0),
        either(gamma(0.5), gamma(2.0)),
        noisy(20.0),
        compressed(20),
    ),
}
"""Each corruption by its name. Blur: deviation 2 pixels at a side of 227. Noise: deviation 20 of 255. Scale 0.5 and 2:
plain resampling of the whole image, which leaves the label as it is. ``all`` is moderate: scale 0.7 or 1.4, blur 1
pixel, gamma 2/3 or 1.5, noise 10, JPEG quality 40. At full strength each of them is as strong as it is alone."""


def corrupted(encoded: bytes, corruption: Corruption, random: np.random.Generator) -> bytes:
    """A BMP file, which loses nothing more, of an image file after a corruption.

    Raises:
        DecodeError: the bytes are no readable image.
    """
    stream = io.BytesIO()
    Image.fromarray(corruption(np.asarray(decode_image(encoded)), random)).save(stream, "BMP")
    return stream.getvalue()


class Row(NamedTuple):
    """How a bundle did under one corruption: images in all, and those whose predicted class was wrong."""

    name: str
    images: int
    errors: int


def measure(
    name: str, examples: Iterable[tuple[bytes, int]], bundle: Bundle, engine: Engine, seed: int, threads: int
) -> Row:
    """Corrupt and classify encoded images with their class indices, in threads.

    What is random depends on the seed and on the image's place among the examples only.
    """
    corruption, size = CORRUPTIONS[name], bundle.spec.image_size

    def errors(chunk: list[tuple[int, tuple[bytes, int]]]) -> tuple[int, int]:
        pixels = []
        for place, (encoded, _) in chunk:
            random = np.random.default_rng([seed, place])
            pixels.append(preprocess(corrupted(encoded, corruption, random), size).pixels)
        predicted = decide(engine.predict(np.stack(pixels)).probabilities, bundle.spec)
        labels = np.array([label for _, (_, label) in chunk])
        return len(chunk), int((predicted != labels).sum())

    counts = list(map_ahead(errors, chunked(enumerate(examples), engine.batch_size), threads))
    return Row(name, sum(images for images, _ in counts), sum(wrong for _, wrong in counts))


def to_markdown(rows: Iterable[Row]) -> Iterator[str]:
    """The lines of the table."""
    yield "| corruption | accuracy | errors | images |"
    yield "| --- | ---: | ---: | ---: |"
    for row in rows:
        yield f"| {row.name} | {1 - row.errors / max(row.images, 1):.4f} | {row.errors:,} | {row.images:,} |"


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser("python -m benchmarks.corruptions", description=DESCRIPTION, allow_abbrev=False)
    options.add_argument("--data", default="workspace/data", help="data of jobs.prepare (%(default)s)")
    options.add_argument("--bundle", default="workspace/bundle", help="a bundle of jobs.train (%(default)s)")
    options.add_argument("--split", default="test", choices=SPLITS, help="(%(default)s)")
    options.add_argument("--limit", type=int, metavar="N", help="the split's first N images only (all)")
    options.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    if options.limit is not None and options.limit < 1:
        raise InputError("--limit must be 1 or more")
    info, bundle = read_dataset(options.data), open_bundle(options.bundle)
    if info.classes != bundle.spec.classes:
        raise InputError(f"the data's classes are {list(info.classes)}, the bundle's {list(bundle.spec.classes)}")
    threads = os.cpu_count() or 1
    engine = open_engine("litert", bundle, threads)
    examples = _read(info.shard_paths(options.split), options.limit)
    rows = (measure(name, examples, bundle, engine, options.seed, threads) for name in CORRUPTIONS)
    for line in to_markdown(rows):
        print(line, flush=True)
    return DONE


def _read(paths: Sequence[str], limit: int | None) -> list[tuple[bytes, int]]:
    with quiet_native_log():
        from model.dataset import read_examples

        return list(itertools.islice(read_examples(paths), limit))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
