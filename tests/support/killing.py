"""Deploys that are killed while a request has no answer."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import LONG, managing, settled
from tests.support.proxy import Handler, Request
from tests.support.site import Site

# The documented time in seconds within which a process ends after Ctrl-C.
PROMPT = 2


def file_cache(path: Path) -> dict[str, Any]:
    """Return settings with a cache in the folder `path`."""
    backend = "django.core.cache.backends.filebased.FileBasedCache"
    return {"CACHES": {"default": {"BACKEND": backend, "LOCATION": str(path)}}}


@dataclass
class Last:
    """A fault that passes all requests on, but leaves some of `kind` without an answer.

    If it `answers`, this is the last of `count` requests of this kind, otherwise it is
    all of them. The process is to be killed while it waits.
    """

    answers: bool
    count: int
    kind: str = "PUT"

    def __post_init__(self) -> None:
        self.done = threading.Semaphore(0)

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != self.kind:
            return False
        if self.answers and self._is_not_last():
            handler.pass_on(body)
        else:
            handler.pass_on_silently(body)
            self.done.release()
            hang(handler)
        return True

    def _is_not_last(self) -> bool:
        self.count -= 1
        return self.count > 0

    def wait(self) -> None:
        """Wait until the server has done all requests of this kind."""
        for _ in range(1 if self.answers else self.count):
            assert self.done.acquire(timeout=LONG)


@dataclass
class Hanging:
    """A fault that neither passes on nor answers requests of one kind."""

    kind: str

    def __post_init__(self) -> None:
        self.seen = threading.Event()

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != self.kind:
            return False
        self.seen.set()
        hang(handler)
        return True

    def wait(self) -> None:
        """Wait until there was such a request."""
        assert self.seen.wait(LONG)


def hang(handler: Handler) -> None:
    """Wait without an answer until the client hangs up."""
    handler.connection.settimeout(LONG)
    handler.connection.recv(1)
    handler.close_connection = True


def kill_at_the_last(
    site: Site,
    fault: Last | Hanging,
    signum: int,
    *arguments: str,
    worker: str = "",
) -> None:
    """Kill a deploy by a signal when the requests of `fault` have been made.

    Instead of collectstatic the process runs `worker`, if it is given. It is the name
    of a function in `workers`.
    """
    site.proxy.fault = fault
    command = ("collectstatic", "--noinput", *arguments)
    if worker:
        code = f"from tests.support import workers; workers.{worker}()"
        command = ("shell", "-c", code)
    with settled(site.proxy), managing(site, *command, traced=False) as process:
        fault.wait()
        process.send_signal(signum)
        process.communicate(timeout=PROMPT)
    assert process.returncode != 0
    site.proxy.fault = None
