"""Measure crackscan's inference against its limits and its peers, in one run on the same images."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import PEERS, contenders
from benchmarks.images import REPOSITORY, image_set, read_once
from benchmarks.rounds import Result, open_results, run_rounds
from benchmarks.table import of_the_limit, summarise, to_markdown
from jobs.command import DONE, run_command
from model.bundle import open_bundle
from model.engine import ENGINES
from model.errors import InputError
from model.provenance import package_versions

PACKAGES = ("apache-beam", "ai-edge-litert", "numpy", "pillow", "tensorflow", "keras")

DESCRIPTION = """\
Classify the same images with crackscan, with its engines alone, and with its peers, each in a process of its own, in
turn, several rounds; write medians and ratios. Peers get virtual environments and the images are prepared as shards,
both once, in $XDG_CACHE_HOME/crackscan-benchmarks (~/.cache by default). A peer that cannot be installed or fails is a
row that says so. Given again, the command continues: what was measured is not measured again.
"""

EXAMPLES = """\
examples:
  python -m benchmarks.inference --images photos/ --bundle workspace/bundle
  python -m benchmarks.inference --images photos/ --peers none --limit 2000 --rounds 1    a quick look
  python -m benchmarks.inference --images photos/ --peers keras,ray
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        "python -m benchmarks.inference",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("--images", required=True, metavar="DIR", help="folder with a subfolder of images per class")
    options.add_argument("--bundle", default="workspace/bundle", help="a bundle of jobs.train (%(default)s)")
    options.add_argument("--out", default="workspace/benchmark", metavar="DIR", help="for the results (%(default)s)")
    options.add_argument("--limit", type=int, metavar="N", help="so many images, spread evenly over all (all)")
    options.add_argument("--rounds", type=int, default=3, metavar="N", help="(%(default)s)")
    options.add_argument(
        "--engines",
        default=",".join(engine for engine in ENGINES if engine != "auto"),
        metavar="NAMES",
        help="ours; the first is what all are compared with (%(default)s)",
    )
    options.add_argument(
        "--peers", default="all", metavar="NAMES", help=f"none, all, or of {','.join(peer.name for peer in PEERS)}"
    )
    options.add_argument(
        "--timeout", type=float, default=3600.0, metavar="S", help="a contender's time in a round (%(default)s s)"
    )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    if options.rounds < 1 or (options.limit is not None and options.limit < 2):
        raise InputError("--rounds must be 1 or more, --limit 2 or more")
    engines = [engine.strip() for engine in options.engines.split(",")]
    rows = contenders(engines, options.peers)
    bundle = open_bundle(os.path.abspath(options.bundle))
    images = image_set(Path(options.images).absolute(), options.limit)
    out = Path(options.out).absolute()
    settings = {
        "images": images.digest,
        "bundle": bundle.spec.fingerprint,
        "reference": rows[0].name,
        "code": code_digest(),
    }
    open_results(out, settings)
    read_once([images.images, images.shards])
    results = run_rounds(out, rows, options.rounds, images, bundle.path, bundle.spec, options.timeout)
    summaries = summarise(rows, results)
    shares = of_the_limit(rows, results)
    machine = describe_machine()
    rounds = f"{options.rounds} round{'s' if options.rounds > 1 else ''}"
    work = f"{images.count:,} images, {bundle.spec.backbone} at {bundle.spec.image_size} x {bundle.spec.image_size}"
    values = {
        "settings": settings,
        "machine": machine,
        "images": images.count,
        "contenders": summaries,
        "shares": shares,
        "rounds": [dataclasses.asdict(result) for result in results],
    }
    (out / "inference.json").write_text(json.dumps(values, indent=1) + "\n")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    facts = [
        f"{work}, {rounds} in turn, all files in the page cache",
        f"{machine['cores']} cores: {machine['processor']}; load before the runs {_loads(results)}",
        f"Python {machine['python']}, {versions}",
    ]
    page = to_markdown(summaries, shares, facts)
    (out / "inference.md").write_text(page)
    from benchmarks.plot import draw

    draw(summaries, results, f"{work}, {machine['cores']} cores", [out / "inference.svg", out / "inference.png"])
    print(page)
    print(f"written: {out}/inference.json, inference.md, inference.svg, inference.png", file=sys.stderr)
    return DONE


def code_digest() -> str:
    """SHA-256 over the project's own sources: rounds of different code must not be mixed."""
    digest = hashlib.sha256()
    for folder in ("model", "pipelines", "jobs", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            digest.update(path.relative_to(REPOSITORY).as_posix().encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()


def describe_machine() -> dict[str, Any]:
    """What the numbers depend on."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        processor = names[0] if names else processor
    return {
        "cores": os.cpu_count(),
        "processor": processor,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": package_versions(PACKAGES),
    }


def _loads(results: Sequence[Result]) -> str:
    loads = [result.load for result in results if not result.error]
    return f"{min(loads):.1f} to {max(loads):.1f}" if loads else "unknown"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
