"""Exit codes, one-line errors and signals, of commands in processes of their own."""

import signal
import subprocess
import sys

import pytest
from helpers import environment, run_job

from jobs.infer import exit_code


def ended(body: str, *, send: signal.Signals | None = None) -> subprocess.CompletedProcess[str]:
    script = f"from jobs.command import run_command\nfrom model.errors import *\ndef main():\n{body}\n"
    script += "raise SystemExit(run_command(main))"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    if send:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(send)
    out, error = process.communicate(timeout=20)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def test_an_error_of_the_user_is_one_line_and_exit_code_2():
    result = ended("    raise InputError('no file\\nat all')")
    assert (result.returncode, result.stderr) == (2, "crackscan: no file at all\n")


def test_a_missing_package_is_one_line_that_says_what_to_install():
    result = ended("    import nosuchpackage")
    assert result.returncode == 2
    assert result.stderr == "crackscan: the package nosuchpackage is not installed: pip install -c constraints.txt .\n"


def test_a_fault_keeps_its_traceback_and_exits_with_1():
    result = ended("    raise ZeroDivisionError('ours')")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_is_one_line_and_its_exit_code(number, code, word):
    result = ended("    import time; print('ready', flush=True); time.sleep(20)", send=number)
    assert result.returncode == code
    assert result.stderr == f"crackscan: {word}\n"


def test_a_signal_is_obeyed_where_a_library_makes_another_exception_of_it():
    body = """    import duckdb
    print('ready', flush=True)
    duckdb.sql('SELECT count(*) FROM range(1000000) a, range(1000000) b').fetchall()"""
    result = ended(body, send=signal.SIGTERM)
    assert (result.returncode, result.stderr) == (143, "crackscan: terminated\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_fault(closed, tmp_path):
    line = f"{sys.executable} -m jobs.prepare --source synthetic:6 --shards 1 --out {tmp_path}/data {closed}"
    result = subprocess.run(["bash", "-c", line], env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "data" / "dataset.json").exists()


@pytest.mark.parametrize("wrong", ["--direct_num_workers=abc", "--runner"])
def test_a_wrong_value_of_beam_is_refused_in_one_line(wrong):
    result = run_job("infer", wrong, code=2)
    assert len(result.stderr.splitlines()) == 1


def test_a_reader_that_leaves_is_no_fault():
    body = "    import sys; [print('x' * 1000) for _ in range(10000)]; return 0"
    script = f"from jobs.command import run_command\ndef main():\n{body}\nraise SystemExit(run_command(main))"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(20) == 0


@pytest.mark.parametrize("wrong", ["--modle=x", "--lables"])
def test_a_misspelt_option_is_refused_with_the_right_one(wrong):
    result = run_job("infer", wrong, code=2)
    assert result.stderr.startswith(f"python -m jobs.infer: unknown argument {wrong.split('=')[0]}; did you mean --")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("job", "arguments", "said"),
    [
        ("train", ["--data", "nowhere"], "run python -m jobs.prepare first"),
        ("infer", ["--model", "nowhere"], "run python -m jobs.train first"),
        ("report", ["nowhere"], "run python -m jobs.infer first"),
        ("query", ["nowhere"], "run python -m jobs.infer first"),
        ("prepare", ["--source", "nowhere"], "nowhere"),
    ],
)
def test_each_job_says_in_one_line_what_to_run_first(job, arguments, said, tmp_path):
    result = run_job(job, *arguments, cwd=tmp_path, code=2)
    assert result.stdout == ""
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("images", "shards", "predictions", "limit", "code"),
    [
        *[(0, 0, 9, None, 0), (5, 0, 9, None, 0), (5, 0, 0, None, 3), (0, 1, 9, None, 3), (0, 0, 0, None, 0)],
        *[(5, 0, 9, 5, 0), (5, 1, 9, 5, 3), (0, 1, 9, 1, 0), (1, 0, 9, 0, 3)],
    ],
)
def test_the_exit_code_of_a_run_with_failures(images, shards, predictions, limit, code):
    report = {"failures": images, "unit_failures": [{}] * shards, "predictions": predictions}
    assert exit_code(report, limit) == code
