"""What the contenders said of each image, and where they differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model.engine import decide
from model.spec import ModelSpec

Answers = dict[str, list[float]]
"""Probabilities by the image's folder and name, which every contender's paths and ids end with."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One contender's answers beside another's.

    Attributes:
        images: images that both have.
        other_class: how many of them got another predicted class.
        largest_difference: of any probability.
    """

    images: int
    other_class: int
    largest_difference: float


def read_answers(folder: Path) -> Answers:
    """Read the JSON lines and Parquet files below a folder."""
    return {"/".join(path.split("/")[-2:]): [float(p) for p in values] for path, values in _rows(folder)}


def _rows(folder: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as pq

    for file in sorted(folder.rglob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            yield row["path"], row["probabilities"]
    for file in sorted(folder.rglob("*.parquet")):
        table = pq.ParquetFile(file).read()
        paths = table.column("path" if "path" in table.column_names else "image_id")
        yield from zip(paths.to_pylist(), table.column("probabilities").to_pylist(), strict=True)


def compare(ours: Mapping[str, list[float]], theirs: Mapping[str, list[float]], spec: ModelSpec) -> Comparison:
    """Compare answers on the images that both have."""
    names = [name for name in ours if name in theirs]
    if not names:
        return Comparison(0, 0, 0.0)
    left = np.array([ours[name] for name in names], np.float32)
    right = np.array([theirs[name] for name in names], np.float32)
    differing = int((decide(left, spec) != decide(right, spec)).sum())
    return Comparison(len(names), differing, float(np.abs(left - right).max()))
