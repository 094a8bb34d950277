"""Keep the chatter of native libraries off stderr: build notes and missing GPUs are no news to a person."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

CHATTER = re.compile(
    rb"^(WARNING: All log messages before absl::InitializeLog"
    rb"|INFO: |fully_quantize: |To enable the following instructions"
    rb"|[IW]\d{4} |E\d{4} .*(cuInit|cuda_|computation_placer))"
)


@contextmanager
def quiet_native_log() -> Iterator[None]:
    """Hold back what is written to the file descriptor of stderr meanwhile, and pass on what is no chatter after it.

    Native code writes there directly, below ``sys.stderr``. Where the process is killed inside, what it wrote is lost:
    hold it around imports and start-up only.
    """
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            for line in held:
                if not CHATTER.match(line):
                    os.write(2, line)
