"""Prepare a labelled image folder: check it, split it without leaks, write TFRecord shards."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from jobs.command import DONE, run_command, split_beam_arguments

if TYPE_CHECKING:
    from model.dataset_info import DatasetInfo

DESCRIPTION = """\
Check labelled images, split them into train, val and test, and write TFRecord shards.

SRC is one of
  a folder               with one subfolder of images per class: SRC/Negative/1.jpg, SRC/Positive/1.jpg, ...
  an archive             of such a folder: zip, tar (any compression), rar or 7z
  an http(s) address     of such an archive; downloaded once into the cache (set CRACKSCAN_CACHE to move it)
  metu                   the METU concrete crack data set, 40,000 images (needs unar, unrar, bsdtar or 7z)
  synthetic:N            N drawn concrete patches, half of them cracked; synthetic:N:3 has a third class, spalling

The content of an image decides its split, so byte-identical copies never lie on two sides, and images that are added
later move none of the old ones. Files that are no readable image, and copies under different labels, are left out and
named in DATA/rejected.jsonl. DATA/dataset.json is written last: without it the data is not finished.
"""

EXAMPLES = """\
examples:
  python -m jobs.prepare --source synthetic:2000
  python -m jobs.prepare --source photos/ --out workspace/data --split 70/20/10
  python -m jobs.prepare --source https://example.org/cracks.zip --sha256 9f86d081...
  python -m jobs.prepare --source metu --overwrite

then:
  python -m jobs.train --data workspace/data

Beam's own options (--runner, --direct_num_workers, ...) may follow; by default all runs in this process.
Exit code 0: done, or done before; 2: the source or the folder cannot be used, in one line.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    options, beam_arguments = split_beam_arguments(build_parser(), argv)

    from pipelines.preparation import PreparationConfig, parse_split, prepare
    from pipelines.runner import make_pipeline

    config = PreparationConfig(
        source=options.source,
        out=options.out,
        split=parse_split(options.split),
        seed=options.seed,
        shards=options.shards,
        sha256=options.sha256,
        overwrite=options.overwrite,
    )
    info, done_now = prepare(config, lambda: make_pipeline(beam_arguments))
    if not done_now:
        print(f"{info.data} is prepared already from the same source; nothing to do", file=sys.stderr)
    print_summary(info)
    return DONE


def build_parser() -> argparse.ArgumentParser:
    """The command's own options."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.prepare",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--source", metavar="SRC", required=True, help="where the labelled images come from")
    parser.add_argument(
        "--out", metavar="DATA", default="workspace/data", help="folder for the prepared data (default: %(default)s)"
    )
    parser.add_argument(
        "--split", default="60/20/20", metavar="T/V/T", help="parts of train/val/test (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed splits in another way (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=16, help="TFRecord files per split (default: %(default)s)")
    parser.add_argument("--sha256", metavar="HEX", help="expected SHA-256 of the source archive")
    parser.add_argument("--overwrite", action="store_true", help="replace other finished data in DATA")
    return parser


def print_summary(info: DatasetInfo) -> None:
    """Print what was prepared to stdout, and the next command in the last line."""
    from rich.console import Console
    from rich.table import Table

    from model.dataset_info import REJECTED_FILE, SPLITS

    table = Table(
        "class",
        *SPLITS,
        "all",
    )
    print(f"{info.data}: images per class and split")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = {name: [info.counts[split][name] for split in SPLITS] for name in info.classes}
    for name, counts in rows.items():
        table.add_row(name, *(f"{count:,}" for count in (*counts, sum(counts))))
    totals = [info.count(split) for split in SPLITS]
    table.add_row("all", *(f"{count:,}" for count in (*totals, sum(totals))), style="bold")
    Console(file=sys.stdout, highlight=False).print(table)

    duplicates, conflicts = info.duplicates, info.conflicts
    print(f"duplicates: {duplicates['surplus_files']:,} surplus files in {duplicates['groups']:,} groups, all kept")
    print(
        f"rejected: {info.rejected:,} (of these {conflicts['files']:,} copies under different labels)"
        + (f"; see {info.data}/{REJECTED_FILE}" if info.rejected else "")
    )
    if info.skipped:
        print("skipped: " + ", ".join(f"{count:,} {kind}" for kind, count in info.skipped.items()))
    for split, name in ((split, name) for split in SPLITS for name in info.classes if not info.counts[split][name]):
        print(f"warning: no image of class {name} in {split}", file=sys.stderr)
    print(f"next: python -m jobs.train --data {info.data}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
