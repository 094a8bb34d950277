"""A run whose images, model and tables lie in a bucket, against a real Cloud Storage server."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import REPOSITORY, command, environment, run_job, table_digests, write_tfrecord_shards

from model.bundle import PRETRAINED
from pipelines import lock, storage


@pytest.fixture
def shards(bucket, tmp_path):
    """Folder of four local shards that lie at ``bucket/shards`` too; the model lies at ``bucket/model``."""
    folder = tmp_path / "shards"
    write_tfrecord_shards(folder, 4, 60)
    for source, target in ((folder, "shards"), (Path(PRETRAINED), "model")):
        for file in source.rglob("*"):
            if file.is_file():
                storage.copy(str(file), f"{bucket}/{target}/{file.relative_to(source).as_posix()}")
    return folder


def fetch(url, folder):
    for file in storage.list_files(url):
        storage.copy(file.path, str(folder / file.path[len(url) + 1 :]))
    return folder


def arguments(bucket):
    return ("--input", f"{bucket}/shards", "--model", f"{bucket}/model", "--out", f"{bucket}/run", "--threads", "2")


def test_a_run_in_a_bucket_equals_a_local_one_to_the_byte(bucket, shards, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    run_job("infer", *arguments(bucket), cwd=here)
    run_job("infer", "--input", shards, "--model", PRETRAINED, "--out", tmp_path / "local")
    assert storage.exists(f"{bucket}/run/_SUCCESS")
    assert not storage.exists(f"{bucket}/run/_lock.json")
    digests = table_digests(fetch(f"{bucket}/run", tmp_path / "fetched"))
    assert digests
    assert digests == table_digests(tmp_path / "local")
    assert "accuracy" in run_job("report", f"{bucket}/run", cwd=here).stdout
    asked = run_job("query", f"{bucket}/run", "SELECT count(*) AS n FROM predictions", "--json", cwd=here)
    assert json.loads(asked.stdout) == [{"n": 240}]
    assert "finished already" in run_job("infer", *arguments(bucket), cwd=here).stderr
    assert os.listdir(here) == []


def test_a_killed_run_continues_and_a_second_one_at_once_is_refused(bucket, shards, tmp_path):
    process = subprocess.Popen(
        command("infer", *arguments(bucket)), cwd=REPOSITORY, env=environment(), stderr=subprocess.DEVNULL
    )
    try:
        while not storage.exists(f"{bucket}/run/_lock.json"):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        refused = run_job("infer", *arguments(bucket), code=2)
        assert f"being written by process {process.pid} on" in refused.stderr
    finally:
        process.kill()
        process.wait()
    run_job("infer", *arguments(bucket))
    run_job("infer", "--input", shards, "--model", PRETRAINED, "--out", tmp_path / "local")
    assert table_digests(fetch(f"{bucket}/run", tmp_path / "fetched")) == table_digests(tmp_path / "local")


def test_a_run_that_another_machine_writes_is_refused_in_a_line(bucket, shards):
    storage.put(f"{bucket}/run/_lock.json", json.dumps({**lock.identity(), "host": "elsewhere"}).encode())
    refused = run_job("infer", *arguments(bucket), code=2)
    assert len(refused.stderr.splitlines()) == 1
    assert f"remove {bucket}/run/_lock.json" in refused.stderr


def test_a_bundle_that_is_not_there_is_told_in_a_line(bucket, shards):
    refused = run_job(
        "infer", "--input", f"{bucket}/shards", "--model", f"{bucket}/none", "--out", f"{bucket}/r", code=2
    )
    assert f"no model bundle at {bucket}/none" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
