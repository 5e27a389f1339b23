"""Where uploads run: in the background within bounds, or one after another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")

BYTES_IN_FLIGHT = 64 * 1024 * 1024


class SerialExecutor(Executor):
    """Runs what is submitted at once, in the caller's thread."""

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Return a future that is done."""
        future: Future[_T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def submit_sized(
        self, size: int, fn: Callable[..., _T], /, *args: Any
    ) -> Future[_T]:
        """Do what `submit` does: nothing waits here."""
        return self.submit(fn, *args)


def executor(threads: int) -> SerialExecutor | BoundedExecutor:
    """Return what runs up to `threads` uploads at once; 0: one after another."""
    return BoundedExecutor(threads) if threads else SerialExecutor()


class BoundedExecutor(ThreadPoolExecutor):
    """Runs what is submitted in threads, with a bound on the bytes that wait.

    `submit_sized` blocks while there is no room for what it is given, so that memory
    stays bounded however fast files are read.
    """

    def __init__(self, threads: int, most_bytes: int = BYTES_IN_FLIGHT) -> None:
        """Run up to `threads` at once, on up to `most_bytes` of content."""
        super().__init__(threads, thread_name_prefix="collectfast")
        self._room = most_bytes
        self._most_bytes = most_bytes
        self._changed = threading.Condition()

    def submit_sized(
        self, size: int, fn: Callable[..., _T], /, *args: Any
    ) -> Future[_T]:
        """Submit ``fn(*args)``, which holds `size` bytes until it is done."""
        # What is larger than the bound goes alone.
        size = min(size, self._most_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._room >= size)
            self._room -= size
        future = self.submit(fn, *args)
        future.add_done_callback(lambda _: self._release(size))
        return future

    def _release(self, size: int) -> None:
        with self._changed:
            self._room += size
            self._changed.notify_all()
