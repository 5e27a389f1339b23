"""The servers that tests start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A process that starts another one, and waits.
STARTS_ANOTHER = """
import os, pathlib, sys, time
from tests.support.daemons import Daemons
with Daemons() as daemons:
    log = pathlib.Path(sys.argv[1])
    daemons.start(["sleep", "30"], log, {**os.environ})
    print("started", flush=True)
    time.sleep(0 if sys.argv[2] == "ends" else 30)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("end", ["ends", "is killed"])
def test_servers_end_with_the_process_that_started_them(
    tmp_path: Path, end: str
) -> None:
    """A test session that is killed leaves no server behind."""
    log = tmp_path / "log"
    os.mkfifo(log)
    command = [sys.executable, "-c", STARTS_ANOTHER, str(log), end]
    # It does not wait for a process that writes.
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    with (
        os.fdopen(reader, "rb") as output,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        os.set_blocking(reader, True)
        began = time.monotonic()
        if end == "is killed":
            process.kill()
        # The pipe ends when the last process that could write into it has ended.
        assert output.read() == b""
    assert time.monotonic() - began < 20
