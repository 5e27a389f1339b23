"""Servers of tests, which end with the process that started them.

They end even if that process is killed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# It reads ids of processes, and with a minus sign those of ended ones, until the pipe
# is closed, which happens when the other process has ended.
_WATCHDOG = """
import os, signal, sys
pids = set()
for number in map(int, sys.stdin):
    pids.add(number) if number > 0 else pids.discard(-number)
for pid in pids:
    try:
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    except OSError:
        pass  # It has ended already.
"""
# Some servers need longer to store their data, but the data is deleted anyway.
_LONGEST_END = 1.0  # seconds


class Daemons:
    """A context that ends all processes that were started in it.

    If this process is killed, another process, the watchdog, kills them.
    """

    def __enter__(self) -> Daemons:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHDOG],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C does not end it.
        )
        return self

    def start(
        self, command: list[str], log: Path, environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start `command`, whose output is appended to the file `log`."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )
        self._processes.append(process)
        self._send(process.pid)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill `process`, to simulate a crash."""
        process.kill()
        process.wait()
        self._send(-process.pid)

    def _send(self, number: int) -> None:
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.write(b"%d\n" % number)
        self._watchdog.stdin.flush()

    def __exit__(self, *_: Any) -> None:
        end(*self._processes)
        self._watchdog.kill()
        self._watchdog.communicate()


def end(*processes: subprocess.Popen[Any]) -> None:
    """Terminate `processes`, and kill those that are still running after a second."""
    for process in processes:
        process.terminate()
    latest = time.monotonic() + _LONGEST_END
    for process in processes:
        try:
            process.wait(max(latest - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
