"""Real servers, started once per session; what they need is fetched by its package client and kept for next time."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "crackscan"
STORAGE_SERVER = "github.com/fsouza/fake-gcs-server@v1.56.1"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def go_program(package: str) -> Path:
    """The program of a Go package, built by ``go install`` once per version.

    Skips the test where it is not there and Go is missing.
    """
    path, _, version = package.partition("@")
    folder = CACHE / f"{Path(path).name}-{version}"
    program = folder / Path(path).name
    if not program.exists():
        if not shutil.which("go"):
            pytest.skip(f"needs Go to build {package}")
        built = subprocess.run(
            ["go", "install", package], env={**os.environ, "GOBIN": str(folder)}, capture_output=True, text=True
        )
        if built.returncode:
            pytest.skip(f"go install {package} failed: {built.stderr.strip().splitlines()[-1]}")
    return program


def wait_for(address: str, process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """Wait until an address answers HTTP in any way."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert process.poll() is None, f"the server of {address} ended with {process.returncode}"
            assert time.monotonic() < end, f"{address} does not answer"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def storage_server() -> Iterator[str]:
    """Address of a local Cloud Storage server."""
    program = go_program(STORAGE_SERVER)
    port = free_port()
    arguments = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([program, *arguments, "-log-level", "error"])
    try:
        wait_for(f"{address}/storage/v1/b", process)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def bucket(storage_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a new bucket; this process and those it starts find the server."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_server)
    name = f"test-{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(
        f"{storage_server}/storage/v1/b?project=test",
        data=f'{{"name": "{name}"}}'.encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request).close()
    return f"gs://{name}"
