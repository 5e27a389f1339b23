"""Uploads in the background: under way, arrived, or failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from functools import cached_property, partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from collectfast_storage.fingerprint import Fingerprint
from collectfast_storage.payload import Payload
from collectfast_storage.s3.bucket import Bucket, Stored

_T = TypeVar("_T")

BYTES_IN_FLIGHT = 64 * 1024 * 1024
# Enough that no thread is ever without work; more would only take memory.
_WAITING_PER_THREAD = 8


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


def executor_of(threads: int) -> SerialExecutor | BoundedExecutor:
    """Return what runs up to `threads` requests at once; 0: one after another."""
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


class Outcome(NamedTuple):
    """What became of an upload; with neither object nor error it was not begun."""

    name: str
    fingerprint: Fingerprint
    stored: Stored | None
    error: Exception | None


class Uploads:
    """Sends payloads to a bucket, and tells what became of them.

    What it tells, it tells in the caller's thread, when that asks.
    """

    def __init__(
        self, bucket: Bucket, executor: SerialExecutor | BoundedExecutor
    ) -> None:
        """Send to `bucket` in the threads of `executor`, which `close` ends."""
        self.executor = executor
        self._bucket = bucket
        self._under_way: dict[str, tuple[Fingerprint, Future[Stored]]] = {}

    def coming(self, name: str) -> Fingerprint | None:
        """Return the fingerprint of what is under way as `name`."""
        fingerprint, _ = self._under_way.get(name, (None, None))
        return fingerprint

    def submit(self, name: str, payload: Payload) -> None:
        """Send `payload` as `name`.

        It blocks while as much as fits is under way already. What is streamed has to be
        waited for while its file is open.
        """
        self._bucket.prepare_uploads()
        executor = self.executor if payload.plain is not None else self._streams
        size = len(payload.plain or b"")
        fingerprint = payload.fingerprint  # Before another thread reads the file.
        future = executor.submit_sized(size, _put, self._bucket, name, payload)
        self._under_way[name] = fingerprint, future

    def done(self) -> Iterator[Outcome]:
        """Yield the outcomes that are there, the oldest uploads first.

        As they go, so that a hundred thousand of them are never held at once.
        """
        while self._under_way:
            name, (_, future) = next(iter(self._under_way.items()))
            if not future.done():
                return
            yield self._outcome(name)

    def wait(self, *names: str) -> Iterator[Outcome]:
        """Yield the outcomes of the uploads of `names`, or of all, waiting for each."""
        for name in names or list(self._under_way):
            if name in self._under_way:
                # The wait may be interrupted: it still has no outcome then.
                wait([self._under_way[name][1]])
                yield self._outcome(name)

    def close(self, *, patiently: bool) -> Iterator[Outcome]:
        """Begin no more, and yield the outcomes of what has begun.

        If not `patiently`, what is under way gets an error: it may arrive or not.
        """
        self.executor.shutdown(wait=patiently, cancel_futures=True)
        self._streams.shutdown(wait=False)
        for name in list(self._under_way):
            yield self._outcome(name)

    @cached_property
    def _streams(self) -> SerialExecutor | BoundedExecutor:
        # Not in the caller's thread: that is who may be interrupted.
        serial = isinstance(self.executor, SerialExecutor)
        return self.executor if serial else BoundedExecutor(1)

    def _outcome(self, name: str) -> Outcome:
        fingerprint, future = self._under_way.pop(name)
        if future.cancelled():
            return Outcome(name, fingerprint, None, None)
        if not future.done():
            error: BaseException | None = InterruptedError("it was interrupted")
        else:
            error = future.exception()
        if error is None:
            return Outcome(name, fingerprint, future.result(), None)
        if not isinstance(error, Exception):  # A panic of Rust's, say.
            error = RuntimeError(f"{type(error).__name__}: {error}")
        # Without what it holds on to: the payload.
        error.__context__ = error.__cause__ = None
        return Outcome(name, fingerprint, None, error.with_traceback(None))


def _put(bucket: Bucket, name: str, payload: Payload) -> Stored:
    try:
        name.encode()
    except UnicodeEncodeError:
        message = "its name is not UTF-8, as S3's keys are; rename the file"
        raise ValueError(message) from None
    return bucket.put(name, payload)


def _run(future: Future[_T], call: Callable[[], _T]) -> None:
    """Call, in a thread of its own; whatever comes of it, nobody waits for ever."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
