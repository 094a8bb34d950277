"""A virtual environment for each peer, made once from its pinned requirements, outside the checkout."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("peers")
INSTALLED = ".installed"
INSTALL = ("-m", "pip", "install", "--disable-pip-version-check", "-r")


class InstallError(Exception):
    """A peer could not be installed; the message is the last line of what pip said."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/crackscan-benchmarks``: environments and prepared images, good for all later runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root).absolute() / "crackscan-benchmarks"


def peer_python(name: str) -> str:
    """The Python of a peer's environment, which is made if it is not there yet.

    Args:
        name: of a file of pinned requirements in ``benchmarks/peers``, without its ending.

    Raises:
        InstallError: pip failed; all it said lies beside the environment.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    version = ".".join(map(str, sys.version_info[:2]))
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]
    folder = cache_folder() / f"{name}-py{version}-{digest}"
    python = folder / "bin" / "python"
    if (folder / INSTALLED).exists():
        return str(python)
    print(f"installing {name} into {folder}: minutes, only once", file=sys.stderr, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    with open(log, "w") as output:
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), *INSTALL, str(requirements)],
        ):
            if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode:
                raise InstallError(last_line(log.read_text(errors="replace")))
    (folder / INSTALLED).touch()
    return str(python)


def last_line(text: str) -> str:
    """The last line that says something, cut to what fits a table."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "no output")[:200]
