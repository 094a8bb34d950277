"""What every command shares: exit codes, one-line errors, and Beam's own options."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from model.errors import CrackscanError

DONE = 0
FAULT = 1
REFUSED = 2
TOO_MANY_FAILURES = 3

STOPPED = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}

NO_NEWS = (
    # Beam's own cloud client is not installed: runs that touch a cloud say so themselves.
    "apitools not found",
    # RunInference's memory metric needs optional packages; the job does not use it.
    "Resource module is not available",
)


def run_command(main: Callable[[], int], continues: bool = False) -> int:
    """Run a command and turn its end into an exit code.

    Args:
        main: the command.
        continues: the same command goes on where an interrupted one stopped.

    Returns:
        The command's own code; 2 with one line on stderr for each thing that the user can mend; 130 or 143 on SIGINT
        and SIGTERM. Any other exception is a fault of this program: it passes with its traceback, and Python exits
        with 1.
    """
    _open_standard_streams()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    for number in STOPPED:
        signal.signal(number, _interrupt)
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of stdout (head, less) has gone; the interpreter must not fail again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except BaseException as error:
        if _received:
            # Also where a library has turned the interruption into an exception of its own, as DuckDB does.
            return _stop(_received[0], continues)
        if isinstance(error, CrackscanError):
            return _refuse(*map(str, error.args))
        if isinstance(error, ModuleNotFoundError) and error.name:
            return _refuse(f"the package {error.name} is not installed: pip install -c constraints.txt .")
        raise


def _open_standard_streams() -> None:
    """A daemon may start us with standard streams closed; a file of ours must not get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _is_news(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in NO_NEWS)


_received: list[int] = []


def _interrupt(number: int, _frame: FrameType | None) -> None:
    # Beam logs the interruption as an error with a long traceback; nothing after it is news.
    logging.disable(logging.CRITICAL)
    _received.append(number)
    raise KeyboardInterrupt


def _refuse(*messages: str) -> int:
    for message in messages:
        print(f"crackscan: {' '.join(message.split())}", file=sys.stderr)
    return REFUSED


def _stop(number: int, continues: bool) -> int:
    code, word = STOPPED[signal.Signals(number)]
    print(f"crackscan: {word}{'; the same command continues' if continues else ''}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Worker threads of the runner may be in the middle of a work unit; waiting for them would swallow the signal.
    os._exit(code)


def split_beam_arguments(
    parser: argparse.ArgumentParser, arguments: list[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """Parse a command's own options and leave Beam's to Beam.

    Returns:
        The parsed namespace, and the arguments that belong to Beam's pipeline options.

    Raises:
        SystemExit: with code 2 and one line, on an option that is neither the command's nor Beam's.
    """
    options, rest = parser.parse_known_args(arguments)
    if rest:
        unknown = [argument.split("=")[0] for argument in _not_of_beam(rest)]
        if unknown:
            own = [name for action in parser._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0], own, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; see --help"
            parser.exit(REFUSED, f"{parser.prog}: unknown argument {unknown[0]}{hint}\n")
    return options, rest


class _BeamParser(argparse.ArgumentParser):
    """One line where argparse would print all of Beam's usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"crackscan: {message}\n")


def _not_of_beam(arguments: list[str]) -> list[str]:
    from apache_beam.options.pipeline_options import PipelineOptions

    beam = _BeamParser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        try:
            options._add_argparse_args(beam)
        except argparse.ArgumentError:
            continue
    return beam.parse_known_args(arguments)[1]
