"""Deploys that are killed when all that they sent is there, or almost."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import LONG, managing, settled
from tests.support.proxy import Handler, Request
from tests.support.site import Site

PROMPT = 2  # seconds from Ctrl-C to the end of the process: a promise


def file_cache(path: Path) -> dict[str, Any]:
    backend = "django.core.cache.backends.filebased.FileBasedCache"
    return {"CACHES": {"default": {"BACKEND": backend, "LOCATION": str(path)}}}


@dataclass
class Last:
    """Lets all be done that is asked; the last of `count` PUTs or a DELETE is fatal."""

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
        for _ in range(1 if self.answers else self.count):
            assert self.done.acquire(timeout=LONG)


@dataclass
class Hanging:
    """Never answers requests of one kind, and does nothing for them."""

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
        assert self.seen.wait(LONG)


def hang(handler: Handler) -> None:
    """Answer never; the client hangs up."""
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
    """Send a deploy the signal; or what `worker`, a function of `workers`, does."""
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
