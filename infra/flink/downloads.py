"""What a standalone Flink needs, fetched once by the ordinary package clients into a folder outside the checkout."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apache_beam.runners.portability.job_server import JavaJarJobServer

FLINK_VERSION = "1.19.3"
FLINK_MINOR = "1.19"

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crackscan"
_POM = Path(__file__).parent / "job_server" / "pom.xml"
_NEEDED = ("flink-dist-", "log4j-", "bash-java-utils")


class DownloadError(Exception):
    """Something that is needed cannot be had; the message says what."""


def flink_jars(cache: Path = CACHE) -> list[Path]:
    """The jars of a standalone Flink, from the source distribution of ``apache-flink-libraries`` (230 MB).

    Raises:
        DownloadError: pip cannot fetch it.
    """
    folder = cache / f"flink-{FLINK_VERSION}"
    with _once(folder) as unfinished:
        if unfinished:
            requirement = f"apache-flink-libraries=={FLINK_VERSION}"
            options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", str(unfinished)]
            _run([sys.executable, "-m", "pip", "download", "--quiet", *options, requirement], unfinished)
            (archive,) = unfinished.glob("*.tar.gz")
            with tarfile.open(archive) as members:
                for member in members:
                    name = Path(member.name).name
                    if member.isfile() and name.endswith(".jar") and name.startswith(_NEEDED):
                        member.name = name
                        members.extract(member, unfinished, filter="data")
            archive.unlink()
    return sorted(folder.glob("*.jar"))


def job_server_jar(cache: Path = CACHE) -> Path:
    """Beam's job server for Flink in one jar, to be given as ``--flink_job_server_jar``.

    Beam's own, as ``--flink_version`` looks it up, where Maven Central has it; else the same program shaded by Maven
    from ``org.apache.beam:beam-runners-flink``.

    Raises:
        DownloadError: neither can be had.
    """
    own = JavaJarJobServer.path_to_beam_jar(f":runners:flink:{FLINK_MINOR}:job-server:shadowJar")
    folder = cache / f"flink-job-server-{FLINK_MINOR}"
    with _once(folder) as unfinished:
        if unfinished:
            try:
                jar = Path(JavaJarJobServer.local_jar(own, str(unfinished)))
            except (OSError, RuntimeError):
                if not shutil.which("mvn"):
                    raise DownloadError(f"{own} cannot be fetched, and Maven (mvn), which could, is missing") from None
                shutil.copy(_POM, unfinished)
                _run(["mvn", "-q", "-B", f"-Dflink.minor={FLINK_MINOR}", "package"], unfinished)
                jar = next((unfinished / "target").glob("flink-job-server-*.jar"))
            jar.rename(unfinished / "job-server.jar")
            shutil.rmtree(unfinished / "target", ignore_errors=True)
    return folder / "job-server.jar"


def prism(cache: Path = CACHE) -> Path:
    """Beam's portable runner Prism, of this Beam's version, to be given as ``--prism_location``.

    Raises:
        DownloadError: Go is missing or cannot build it.
    """
    from apache_beam.version import __version__ as version

    folder = cache / f"prism-{version}"
    with _once(folder) as unfinished:
        if unfinished:
            if not shutil.which("go"):
                raise DownloadError("Prism is built by Go, which is missing")
            package = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{version}"
            _run(["go", "install", package], unfinished, {"GOBIN": str(unfinished)})
    return folder / "prism"


@contextmanager
def _once(folder: Path) -> Iterator[Path | None]:
    """Give a folder to fill, which becomes ``folder`` when the body is done; None where that is there already."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            yield None
            return
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        print(f"fetching {folder.name} into {folder.parent}", file=sys.stderr)
        yield unfinished
        unfinished.rename(folder)


def _run(command: list[str], folder: Path, variables: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise DownloadError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
