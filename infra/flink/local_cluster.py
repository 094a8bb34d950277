"""A real standalone Flink on this machine, without containers: a JobManager, TaskManagers and a worker pool.

    python infra/flink/local_cluster.py start                 two TaskManagers of one slot
    python -m jobs.infer ... $(python infra/flink/local_cluster.py options)
    python infra/flink/local_cluster.py stop

Start it with the Python that has crackscan: the workers are of the same one. Java 11 or 17 is needed. The first start
fetches Flink and Beam's job server into ~/.cache/crackscan (400 MB; with Maven, mvn, where Maven Central lacks the
server). Logs lie in the work folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from downloads import CACHE, DownloadError, flink_jars, job_server_jar

HOST = "localhost"
STATE = "cluster.json"
START_SECONDS = 120.0
STOP_SECONDS = 10.0
JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
RESOURCES = "org.apache.flink.runtime.util.bash.BashJavaUtils"
RESULT = "BASH_JAVA_UTILS_EXEC_RESULT:"
# What Flink's own configuration opens to itself on Java 17.
OPENED = [
    "java.base/java.lang",
    "java.base/java.net",
    "java.base/java.io",
    "java.base/java.nio",
    "java.base/sun.nio.ch",
    "java.base/java.lang.reflect",
    "java.base/java.text",
    "java.base/java.time",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/java.util.concurrent.locks",
]


class ClusterError(Exception):
    """The cluster cannot be started or is not there; the message says what to do."""


class Cluster:
    """The cluster of one work folder; its processes are kept in a file there.

    Args:
        work: the work folder.
        cache: where downloads are kept.
    """

    def __init__(self, work: Path, cache: Path = CACHE) -> None:
        self.work = work.resolve()
        self.cache = cache
        self.state: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            self.state = json.loads((self.work / STATE).read_bytes())

    def start(self, task_managers: int, slots: int, port: int, pool_port: int) -> None:
        """Start all processes and wait until they answer; port 0 is a free one.

        Raises:
            ClusterError: it runs already, Java is missing, or something does not come up.
            DownloadError: Flink cannot be fetched.
        """
        if any(map(_is_alive, self.state.get("processes", []))):
            raise ClusterError(f"the cluster in {self.work} is running: stop it first")
        if not shutil.which("java"):
            raise ClusterError("java is missing: install Java 11 or 17")
        shutil.rmtree(self.work / "logs", ignore_errors=True)
        (self.work / "logs").mkdir(parents=True)
        self.state = {
            "flink": port or _free_port(),
            "pool": pool_port or _free_port(),
            "rpc": _free_port(),
            "jar": str(job_server_jar(self.cache)),
            "slots": slots,
            "parallelism": task_managers * slots,
            "processes": [],
        }
        self._write_configuration()
        self.start_job_manager()
        self.start_worker_pool()
        for _ in range(task_managers):
            self.add_task_manager()
        self._wait("the JobManager", lambda: self._slots() >= task_managers * slots)
        self._wait("the worker pool", lambda: _answers(self.state["pool"]))

    def start_job_manager(self) -> None:
        """Start the JobManager."""
        memory = ["-Xmx512m", "-XX:MaxMetaspaceSize=512m"]
        self._start_java("jobmanager", [*memory, JOB_MANAGER, "--executionMode", "cluster"])

    def start_worker_pool(self) -> None:
        """Start the supervisor of the Python workers."""
        command = [sys.executable, str(Path(__file__).with_name("worker_pool.py")), "--port", str(self.state["pool"])]
        self._start("worker-pool", command)

    def add_task_manager(self) -> None:
        """Start one more TaskManager."""
        if not self.state:
            raise ClusterError(f"no cluster in {self.work}: start it first")
        if "resources" not in self.state:
            self.state["resources"] = self._resources()
        flags, settings = self.state["resources"]
        number = sum(process["name"].startswith("taskmanager") for process in self.state["processes"])
        self._start_java(f"taskmanager-{number}", [*flags.split(), TASK_MANAGER, *settings.split()])

    def stop(self) -> None:
        """End all processes, their children among them."""
        processes = [process for process in self.state.get("processes", []) if _is_alive(process)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process["pid"], number)
            end = time.monotonic() + STOP_SECONDS
            while any(_group_is_alive(process["pid"]) for process in processes) and time.monotonic() < end:
                time.sleep(0.1)
        (self.work / STATE).unlink(missing_ok=True)
        self.state = {}

    def options(self) -> str:
        """The options with which a job runs on this cluster."""
        if not self.state:
            raise ClusterError(f"no cluster in {self.work}: start it first")
        return (
            f"--runner FlinkRunner --flink_master {HOST}:{self.state['flink']} "
            f"--flink_job_server_jar {self.state['jar']} --parallelism {self.state['parallelism']} "
            f"--environment_type EXTERNAL --environment_config {HOST}:{self.state['pool']} "
            "--shared-filesystem"
        )

    def _write_configuration(self) -> None:
        settings = {
            "jobmanager.rpc.address": HOST,
            "jobmanager.bind-host": HOST,
            "jobmanager.rpc.port": self.state["rpc"],
            "taskmanager.host": HOST,
            "taskmanager.bind-host": HOST,
            "taskmanager.numberOfTaskSlots": self.state["slots"],
            "rest.address": HOST,
            "rest.bind-address": HOST,
            "rest.port": self.state["flink"],
            "io.tmp.dirs": self.work / "tmp",
        }
        (self.work / "tmp").mkdir(exist_ok=True)
        (self.work / "conf").mkdir(exist_ok=True)
        lines = [f"{name}: {value}\n" for name, value in settings.items()]
        common = Path(__file__).with_name("config.yaml").read_text()
        (self.work / "conf" / "config.yaml").write_text(common + "".join(lines))
        shutil.copy(Path(__file__).with_name("log4j.properties"), self.work / "conf")

    def _resources(self) -> list[str]:
        """Flags of the JVM, and settings, of a TaskManager, as Flink derives them from its configuration."""
        command = ["java", "-cp", self._class_path(), RESOURCES, "GET_TM_RESOURCE_PARAMS", *self._configuration()]
        done = subprocess.run(command, capture_output=True, text=True)
        found = [line.removeprefix(RESULT) for line in done.stdout.splitlines() if line.startswith(RESULT)]
        if len(found) != 2:
            raise ClusterError(f"Flink's memory settings do not fit: {done.stdout[-500:]}{done.stderr[-500:]}")
        return found

    def _class_path(self) -> str:
        return os.pathsep.join(map(str, flink_jars(self.cache)))

    def _configuration(self) -> list[str]:
        return ["--configDir", str(self.work / "conf")]

    def _start_java(self, name: str, arguments: list[str]) -> None:
        opened = [f"--add-opens={package}=ALL-UNNAMED" for package in OPENED]
        log = [f"-Dlog4j.configurationFile=file:{self.work / 'conf' / 'log4j.properties'}"]
        command = ["java", *opened, *log, "-cp", self._class_path(), *arguments, *self._configuration()]
        self._start(name, command)

    def _start(self, name: str, command: list[str]) -> None:
        with open(self.work / "logs" / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.state["processes"].append({"name": name, "pid": process.pid, "started": _started(process.pid)})
        unfinished = self.work / f"{STATE}.tmp"
        unfinished.write_text(json.dumps(self.state, indent=1))
        unfinished.replace(self.work / STATE)

    def _slots(self) -> int:
        with urllib.request.urlopen(f"http://{HOST}:{self.state['flink']}/overview", timeout=5) as answer:
            return int(json.load(answer)["slots-total"])

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if ready():
                    return
            dead = [process["name"] for process in self.state["processes"] if not _is_alive(process)]
            if dead:
                raise ClusterError(f"{dead[0]} ended at once: see {self.work}/logs/{dead[0]}.log")
            time.sleep(0.2)
        raise ClusterError(f"{what} did not answer in {START_SECONDS:.0f} seconds: see {self.work}/logs")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.create_connection((HOST, port), timeout=2):
        return True


def _started(pid: int) -> str:
    """When a process was started: tells it from a later one of the same number."""
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True).stdout
    state, _, started = shown.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()


def _is_alive(process: dict[str, Any]) -> bool:
    started = _started(process["pid"])
    return bool(started) and started == process["started"]


def _group_is_alive(group: int) -> bool:
    shown = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True).stdout
    return any(
        number == str(group) and not state.startswith("Z") for number, state in map(str.split, shown.splitlines())
    )


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = options.add_subparsers(dest="command", required=True)
    for name, text in (
        ("start", "start a cluster and print the options that a job needs to run on it"),
        ("stop", "end all its processes"),
        ("options", "print the options that a job needs to run on it"),
        ("add-task-manager", "start one more TaskManager"),
    ):
        command = commands.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.add_argument("--work", type=Path, default=Path("workspace/flink"), help="folder of its files")
        command.add_argument("--cache", type=Path, default=CACHE, help="folder of the downloads")
        if name == "start":
            command.add_argument("--task-managers", type=int, default=2, metavar="N", help="processes that hold slots")
            command.add_argument("--slots", type=int, default=1, metavar="N", help="per TaskManager")
            command.add_argument("--port", type=int, default=0, help="of Flink's page and interface; 0: a free one")
            command.add_argument("--pool-port", type=int, default=0, help="of the worker pool; 0: a free one")
    return options


def main() -> int:
    """Run the command."""
    options = parser().parse_args()
    cluster = Cluster(options.work, options.cache)
    try:
        if options.command == "stop":
            cluster.stop()
        elif options.command == "options":
            print(cluster.options())
        elif options.command == "add-task-manager":
            cluster.add_task_manager()
        else:
            try:
                cluster.start(options.task_managers, options.slots, options.port, options.pool_port)
            except BaseException:
                cluster.stop()
                raise
            print(f"Flink's page: http://{HOST}:{cluster.state['flink']}; logs: {cluster.work}/logs", file=sys.stderr)
            print(cluster.options())
    except (ClusterError, DownloadError) as error:
        print(f"local_cluster: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
