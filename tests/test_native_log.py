"""What native libraries write to stderr: chatter is dropped, everything else arrives."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from model.native_log import quiet_native_log

CHATTER = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    "I0000 00:00:1795227869.171415    1705 port.cc:153] oneDNN custom operations are on.\n"
    "W0000 00:00:1795227869.171415    1705 gpu_device.cc:2344] Cannot dlopen some GPU libraries.\n"
    "E0000 00:00:1795227869.171415    1705 cuda_dnn.cc:8579] Unable to register cuDNN factory: cuda_dnn\n"
    "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"
)
NEWS = (
    "E0000 00:00:1795227869.171415    1705 file_system.cc:12] No space left on device\n"
    "F0000 00:00:1795227869.171415    1705 tensor.cc:12] Check failed\n"
    "Traceback (most recent call last):\n"
    "  INFO: of a line that only holds the word\n"
    "without an end"
)


def test_chatter_is_dropped_and_other_lines_are_kept_in_order(capfd):
    with quiet_native_log():
        os.write(2, (CHATTER + NEWS).encode())
    assert capfd.readouterr().err == NEWS


def test_what_a_subprocess_writes_is_held_back_until_the_end(capfd):
    script = "import os, sys; os.write(2, sys.argv[1].encode())"
    with quiet_native_log():
        subprocess.run([sys.executable, "-c", script, CHATTER + NEWS], check=True)
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == NEWS


def test_what_python_wrote_before_and_meanwhile_arrives(capfd):
    script = (
        "import sys\n"
        "from model.native_log import quiet_native_log\n"
        "sys.stderr = open(2, 'w', buffering=1000, closefd=False)\n"
        "sys.stderr.write('before\\n')\n"
        "with quiet_native_log():\n"
        "    sys.stderr.write('INFO: chatter\\nmeanwhile\\n')\n"
        "sys.stderr.write('after\\n')\n"
        "sys.stderr.flush()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert capfd.readouterr().err == "before\nmeanwhile\nafter\n"


def test_stderr_is_whole_again_after_an_exception_and_nothing_is_lost(capfd):
    def fail():
        with quiet_native_log():
            os.write(2, b"I0000 chatter\nthe reason\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    os.write(2, b"INFO: behind it nothing is dropped\n")
    assert capfd.readouterr().err == "the reason\nINFO: behind it nothing is dropped\n"


def test_file_descriptors_are_given_back():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with quiet_native_log():
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_without_stderr_is_left_alone():
    script = (
        "import os\n"
        "from model.native_log import quiet_native_log\n"
        "os.close(2)\n"
        "with quiet_native_log():\n"
        "    print('inside')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "inside\n"
