"""Print the report of a run and write it again."""

from __future__ import annotations

import argparse

from jobs.command import DONE, run_command

DESCRIPTION = """\
Print the evaluation of a run from its committed units: precision, recall, F1 and support per class, accuracy, averages
and the confusion matrix; of unlabelled images, what was predicted and how surely. Writes RUN/report/report.json and
report.html. Works on a run that is still going on, too.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        "python -m jobs.report", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("run", nargs="?", default="workspace/run", metavar="RUN", help="run directory (%(default)s)")
    options.add_argument("--json", action="store_true", help="print report.json instead of text")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    import json
    import sys

    from pipelines.finish import make_report, write_report
    from pipelines.report import render_text
    from pipelines.run import is_finished

    report = make_report(options.run)
    try:
        write_report(options.run, report)
        written = f"report: {options.run}/report/report.html"
    except OSError as error:
        written = f"the report files could not be written: {error}"
    if not is_finished(options.run):
        print(f"{options.run} is not finished: this is of the {report['units']:,} units done so far", file=sys.stderr)
    print(json.dumps(report, indent=1) if options.json else render_text(report), end="")
    if not options.json:
        print(f"\n{written}")
    return DONE


if __name__ == "__main__":
    raise SystemExit(run_command(main))
