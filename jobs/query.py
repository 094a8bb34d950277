"""Run SQL over the tables of a run."""

from __future__ import annotations

import argparse

from jobs.command import DONE, run_command

DESCRIPTION = """\
Run SQL (DuckDB) over a run's tables: predictions, failures, and units. Without SQL, print their columns and queries to
start from. Only committed parts are read; nothing can be written.
"""

EXAMPLES = """\
examples:
  python -m jobs.query workspace/run
  python -m jobs.query workspace/run "SELECT predicted_class, count(*) FROM predictions GROUP BY ALL"
  python -m jobs.query workspace/run "SELECT * FROM predictions WHERE score < 0.9" --csv > unsure.csv
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        "python -m jobs.query",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("run", nargs="?", default="workspace/run", metavar="RUN", help="run directory (%(default)s)")
    options.add_argument("sql", nargs="?", metavar="SQL", help="a query; without it the tables are described")
    style = options.add_mutually_exclusive_group()
    style.add_argument("--csv", dest="style", action="store_const", const="csv", default="table", help="print CSV")
    style.add_argument("--json", dest="style", action="store_const", const="json", help="print JSON")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    from pipelines.query import describe, format_table, open_run_tables, run_sql

    with open_run_tables(options.run) as connection:
        if options.sql is None:
            print(describe(connection), end="")
        else:
            print(format_table(run_sql(connection, options.sql), options.style), end="")
    return DONE


if __name__ == "__main__":
    raise SystemExit(run_command(main))
