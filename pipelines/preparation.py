"""Prepare labelled images: check each, split them by content without leaks, and write TFRecord shards."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence

import apache_beam as beam

from model.dataset_info import DATASET_FILE, REJECTED_FILE, SPLITS, DatasetInfo, read_dataset
from model.errors import InputError
from pipelines import preparation_steps as steps
from pipelines import storage
from pipelines.data_folder import PLAN_FOLDER, check_ours, clear, clear_plan, locked, missing_shard, read_finished
from pipelines.preparation_progress import progress_bars
from pipelines.preparation_steps import PreparationConfig, parse_split
from pipelines.runner import is_in_process, run_pipeline
from pipelines.source import Listing, Location, listing_digest, locate_source, open_source

__all__ = ["PreparationConfig", "define_pipeline", "parse_split", "prepare", "write_plan"]

CHUNK_IMAGES = 256
"""Images per element: a few seconds of work, and a few thousand elements for a million images."""


def define_pipeline(root: beam.Pipeline, chunks: Sequence[str], config: PreparationConfig, summary: Listing) -> None:
    """Wire the preparation.

    Args:
        root: an empty pipeline.
        chunks: paths of the plan's chunks; see :func:`write_plan`.
        config: of the preparation; its ``out`` exists.
        summary: the source's listing; its images are not needed, the chunks name them.
    """
    keys = [(split, index) for split in SPLITS for index in range(config.shards)]
    outcomes = (
        root
        | "Chunks" >> beam.Create(list(chunks))
        | "Spread" >> beam.Reshuffle()
        | "Check" >> beam.FlatMap(steps.check_chunk)
    )
    judged = (
        outcomes
        | "Good" >> beam.Filter(steps.is_good)
        | "ByContent" >> beam.Map(steps.by_content)
        | "Copies" >> beam.GroupByKey()
        | "JudgeCopies" >> beam.FlatMap(steps.judge_copies)
    )
    images = judged | "Kept" >> beam.Filter(steps.is_good) | "ByShard" >> beam.Map(steps.by_shard, config)
    # Every shard is a key, also one without images, so that each becomes a file.
    shards = root | "Shards" >> beam.Create([(key, True) for key in keys])
    reports = (
        {"images": images, "shards": shards}
        | "Shard" >> beam.CoGroupByKey()
        | "Write" >> beam.Map(steps.write_shard, config, summary.classes)
    )
    rejections = (
        outcomes | "Bad" >> beam.Filter(steps.is_rejection),
        judged | "Conflicting" >> beam.Filter(steps.is_rejection),
    ) | "Rejections" >> beam.Flatten()
    _ = (
        root
        | "Once" >> beam.Create([None])
        | "Finish"
        >> beam.Map(steps.finish, beam.pvalue.AsList(reports), beam.pvalue.AsList(rejections), config, summary)
    )


def write_plan(listing: Listing, out: str) -> list[str]:
    """Write the references to a source's images as files of up to 256, and return their paths.

    A pipeline of a million names would be too large to submit, one of four thousand paths is not.
    """
    paths = []
    for number, start in enumerate(range(0, len(listing.images), CHUNK_IMAGES)):
        entries = [dataclasses.astuple(image) for image in listing.images[start : start + CHUNK_IMAGES]]
        paths.append(os.path.abspath(os.path.join(out, PLAN_FOLDER, f"chunk-{number:06d}.json")))
        storage.put(paths[-1], json.dumps(entries).encode())
    return paths


def prepare(config: PreparationConfig, make_pipeline: Callable[[], beam.Pipeline]) -> tuple[DatasetInfo, bool]:
    """Prepare data, unless the same lies finished in ``config.out``.

    Args:
        config: what and how.
        make_pipeline: makes the pipeline to run; called only where there is something to do.

    Returns:
        What was prepared, and whether it was done now (else it was there already).

    Raises:
        InputError: the source cannot be used or has no usable image, or the folder is not to be written to.
    """
    check_ours(config.out)
    location = locate_source(config.source, config.sha256)
    finished = _find_finished(config, location)
    if finished:
        return finished, False
    with open_source(location) as listing, locked(config.out):
        finished = _find_finished(config, location, listing.digest)
        if finished:
            return finished, False
        clear(config.out)
        chunks = write_plan(listing, config.out)
        pipeline = make_pipeline()
        settings = dataclasses.replace(config, out=os.path.abspath(config.out))
        define_pipeline(pipeline, chunks, settings, dataclasses.replace(listing, images=()))
        with progress_bars(len(listing.images), len(SPLITS) * config.shards, is_in_process(pipeline.options)):
            run_pipeline(pipeline)
        if not os.path.exists(os.path.join(config.out, DATASET_FILE)):
            count, rejected = len(listing.images), os.path.join(config.out, REJECTED_FILE)
            raise InputError(f"none of the {count} images of {config.source} can be used; {rejected} says why")
        clear_plan(config.out)
        return read_dataset(config.out), True


def _find_finished(config: PreparationConfig, location: Location, digest: str | None = None) -> DatasetInfo | None:
    if config.overwrite:
        return None
    info = read_finished(config.out)
    if info is None:
        return None
    digest = digest or listing_digest(location)
    advice = "give --overwrite to prepare it anew, or another --out"
    if (info.split, info.seed, info.shards) != (config.split, config.seed, config.shards):
        raise InputError(f"{config.out} holds data prepared with another split, seed or number of shards; {advice}")
    if digest is None:
        return None
    if info.listing_digest != digest:
        raise InputError(f"{config.out} holds data prepared from another source, or it changed since; {advice}")
    missing = missing_shard(info)
    if missing:
        raise InputError(f"{config.out} is damaged, {missing} is missing; {advice}")
    return info
