"""Run a command and measure it from outside: wall time, and the memory of all its processes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SAMPLE_SECONDS = 0.5
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a command did.

    Attributes:
        code: its exit code, negative for a signal.
        seconds: from its start to its end.
        cpu_seconds: processor time of the command and of the children that it waited for.
        peak_process_mb: the most resident memory of its largest process in MiB, from the kernel's own record.
        peak_total_mb: the most memory of all its processes together in MiB (proportional set size, so that shared
            pages count once), looked at twice a second; of a single process the kernel's record.
        timed_out: it was stopped because it took too long.
    """

    code: int
    seconds: float
    cpu_seconds: float
    peak_process_mb: float
    peak_total_mb: float
    timed_out: bool


def run_measured(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, output: Path, log: Path, timeout: float
) -> Measured:
    """Run a command in a folder; its stdout goes to ``output``, its stderr to ``log``.

    What it leaves running behind it is ended.
    """
    with open(output, "wb") as stdout, open(log, "wb") as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
        watcher = _Watcher(process.pid, timeout)
        watcher.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            watcher.kill_all()
            raise
        finally:
            watcher.stop()
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.kill_all()
    # The kernel's own sum knows no process that was not waited for, such as Ray's, and counts the memory that this
    # process had when it forked: it serves only for a process that ended before the watcher's first look.
    largest = (watcher.largest or usage.ru_maxrss * 1024) / MIB
    total = largest if watcher.processes == 1 else watcher.peak / MIB
    return Measured(process.returncode, seconds, usage.ru_utime + usage.ru_stime, largest, total, watcher.timed_out)


class _Watcher(threading.Thread):
    """Looks at a process and all its descendants now and then."""

    def __init__(self, pid: int, timeout: float) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._deadline = time.monotonic() + timeout
        self._stopped = threading.Event()
        # The time of its start tells a process from a later one of the same number.
        self._family: dict[int, str] = {}
        self.peak = 0
        self.largest = 0
        self.timed_out = False

    def run(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            self._look()
            if time.monotonic() > self._deadline:
                self.timed_out = True
                self.kill_all()
                return

    @property
    def processes(self) -> int:
        """How many processes were seen; at least the one that was started."""
        return max(1, len(self._family))

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def kill_all(self) -> None:
        """End the processes that were seen and still run."""
        table = _process_table()
        for pid, born in self._family.items():
            if pid in table and table[pid][1] == born:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _look(self) -> None:
        table = _process_table()
        children: dict[int, list[int]] = {}
        for pid, (parent, _) in table.items():
            children.setdefault(parent, []).append(pid)
        found, total = [self._pid], 0
        for pid in found:
            found.extend(children.get(pid, ()))
            if pid in table:
                self._family[pid] = table[pid][1]
                total += _bytes(pid, "smaps_rollup", "Pss:")
                self.largest = max(self.largest, _bytes(pid, "status", "VmHWM:"))
        self.peak = max(self.peak, total)


def _process_table() -> dict[int, tuple[int, str]]:
    """Parent and time of start of every process."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                # The command's name, in brackets, may hold anything.
                fields = Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()
                table[int(name)] = (int(fields[1]), fields[19])
    return table


def _bytes(pid: int, file: str, field: str) -> int:
    """A size that a file of a process in ``/proc`` tells; 0 where the process has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0
