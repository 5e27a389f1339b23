"""Where uploads run: in the background within bounds, or one after another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")

BYTES_IN_FLIGHT = 64 * 1024 * 1024
# Enough that no thread is ever without work; more would only take memory.
_WAITING_PER_THREAD = 8


class SerialExecutor(Executor):
    """Runs what is submitted at once, in the caller's thread."""

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Return a future that is done."""
        future: Future[_T] = Future()
        _run(future, partial(fn, *args, **kwargs))
        return future

    def submit_sized(
        self, size: int, fn: Callable[..., _T], /, *args: Any
    ) -> Future[_T]:
        """Do what `submit` does: nothing waits here."""
        return self.submit(fn, *args)


def executor(threads: int) -> SerialExecutor | BoundedExecutor:
    """Return what runs up to `threads` uploads at once; 0: one after another."""
    return BoundedExecutor(threads) if threads else SerialExecutor()


class BoundedExecutor(Executor):
    """Runs what is submitted in threads, with bounds on what waits.

    `submit_sized` blocks while there is no room for what it is given, so that memory
    stays bounded however fast, many or large the files are that are read.

    Other than those of a `ThreadPoolExecutor`, its threads are daemons: somebody who
    interrupts a deploy does not wait for a server that no longer answers.
    """

    def __init__(self, threads: int, most_bytes: int = BYTES_IN_FLIGHT) -> None:
        """Run up to `threads` at once, on up to `most_bytes` of content."""
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._work = SimpleQueue()
        self._most_threads = threads
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._places = threads * _WAITING_PER_THREAD
        self._room = most_bytes
        self._most_bytes = most_bytes
        self._changed = threading.Condition()

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Run ``fn(*args, **kwargs)`` in one of the threads."""
        future: Future[_T] = Future()
        self._work.put((future, partial(fn, *args, **kwargs)))
        if len(self._threads) < self._most_threads and not self._idle.acquire(False):
            thread = threading.Thread(target=self._serve, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def submit_sized(
        self, size: int, fn: Callable[..., _T], /, *args: Any
    ) -> Future[_T]:
        """Submit ``fn(*args)``, which holds `size` bytes until it is done."""
        # What is larger than the bound goes alone.
        size = min(size, self._most_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._places and self._room >= size)
            self._places -= 1
            self._room -= size
        future = self.submit(fn, *args)
        future.add_done_callback(lambda _: self._release(size))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Run no more than what was submitted, or with `cancel_futures` has begun."""
        with suppress(Empty):
            while cancel_futures:
                work = self._work.get_nowait()
                if work is not None:
                    work[0].cancel()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _serve(self) -> None:
        while True:
            try:
                work = self._work.get_nowait()
            except Empty:
                self._idle.release()
                work = self._work.get()
            if work is None:
                return
            _run(*work)
            del work  # It holds a content, and the next one may be long in coming.

    def _release(self, size: int) -> None:
        with self._changed:
            self._places += 1
            self._room += size
            self._changed.notify()


def _run(future: Future[_T], call: Callable[[], _T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
