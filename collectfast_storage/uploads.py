"""Uploads in background threads: under way, arrived, or failed."""

import atexit
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, wait
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

from collectfast_storage.congestion import MOST_BYTES
from collectfast_storage.fingerprint import Fingerprint
from collectfast_storage.payload import Payload
from collectfast_storage.s3.bucket import Bucket, Stored

_T = TypeVar("_T")
_Work = tuple[Future[Any], Callable[[], Any]]

# Enough that no thread is ever without work; more would only take memory.
_WAITING_PER_THREAD = 8
INTERRUPTED = "the upload was interrupted"
# Seconds after which an idle thread ends. A later call starts a new one.
_LONGEST_IDLE = 1.0
# Of the bytes that may be under way, each stream takes a third: s3transfer reads up to
# ten parts of a stream ahead.
_STREAM_SIZE = MOST_BYTES // 3


class BoundedExecutor(Executor):
    """A thread pool whose waiting work is bounded, in calls and in bytes.

    Its threads are daemons, because an interrupted deploy need not wait for a server's
    answer. They end when they have been idle for a second.
    """

    def __init__(self, threads: int, most_bytes: int = MOST_BYTES) -> None:
        """Run up to `threads` calls at a time, on up to `most_bytes` of contents.

        With 0 threads, calls run in the caller's thread.
        """
        self._most_threads = threads
        self._threads: set[threading.Thread] = set()
        self._work: deque[_Work] = deque()
        self._idle = 0
        self._is_shut_down = False
        self._pid = os.getpid()
        self._places = max(threads, 1) * _WAITING_PER_THREAD
        self._room = self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._has_work = threading.Condition(self._lock)
        self._has_room = threading.Condition(self._lock)  # or a thread has ended
        _executors.add(self)

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Run ``fn(*args, **kwargs)``, and return its future."""
        return self.submit_sized(0, partial(fn, *args, **kwargs))

    def submit_sized(self, size: int, fn: Callable[..., _T], *args: Any) -> Future[_T]:
        """Submit ``fn(*args)`` when there is room for its `size` bytes."""
        size = min(size, self._most_bytes)  # A larger content is the only one.
        with self._lock:
            self._has_room.wait_for(lambda: self._places and self._room >= size)
            self._places -= 1
            self._room -= size
        future: Future[_T] = Future()
        future.add_done_callback(lambda _: self._release(size))
        call = partial(fn, *args)
        if not self._enqueue((future, call)):
            _run(future, call)
            with suppress(Exception):  # An interrupt is raised, as in any call.
                future.result()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Run only submitted calls, or with `cancel_futures` those that have begun."""
        with self._lock:
            self._is_shut_down = True
            left = [*self._work] if cancel_futures else []
            if cancel_futures:
                self._work.clear()
            self._has_work.notify_all()
            threads = [*self._threads]
        for future, _ in left:
            future.cancel()
        for thread in threads if wait else ():
            thread.join()

    def drain(self) -> None:
        """Wait until all submitted calls have ended."""
        if self._pid != os.getpid():  # A fork has none of the threads.
            return
        with self._lock:
            threads, work = self._threads, self._work
            self._has_room.wait_for(lambda: not work and self._idle == len(threads))

    def _enqueue(self, work: _Work) -> bool:
        """Hand `work` to a thread; return whether there is one."""
        with self._lock:
            if self._most_threads:
                self._work.append(work)
                self._has_work.notify()
                if self._idle < len(self._work):
                    self._start_thread()
                if self._threads:
                    return True
                self._work.clear()
            return False

    def _start_thread(self) -> None:
        if len(self._threads) < self._most_threads:
            thread = threading.Thread(target=self._serve, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # A container may limit the number of threads.
                self._most_threads = len(self._threads)
            else:
                self._threads.add(thread)

    def _serve(self) -> None:
        while work := self._next():
            _run(*work)
            del work  # It holds a content, and the next work may be long in coming.

    def _next(self) -> _Work | None:
        """Wait for work; return `None` if this thread is to end."""
        with self._lock:
            if not self._work and not self._is_shut_down:
                self._idle += 1
                self._has_room.notify_all()
                self._has_work.wait(_LONGEST_IDLE)
                self._idle -= 1
            if self._work:
                return self._work.popleft()
            self._threads.discard(threading.current_thread())
            self._has_room.notify_all()
            return None

    def _release(self, size: int) -> None:
        with self._lock:
            self._places += 1
            self._room += size
            self._has_room.notify_all()


_executors: WeakSet[BoundedExecutor] = WeakSet()


@atexit.register
def _drain() -> None:
    """Wait for uploads that are still to be sent, unless the process is interrupted."""
    is_interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    if not is_interrupted:  # pragma: no branch (not traced)
        for executor in list(_executors):
            executor.drain()


class Outcome(NamedTuple):
    """What became of an upload; with neither object nor error it was not begun."""

    name: str
    fingerprint: Fingerprint
    stored: Stored | None
    error: Exception | None


class Uploads:
    """Uploads to a bucket that are under way, by name."""

    def __init__(self, bucket: Bucket, executor: BoundedExecutor) -> None:
        """Send to `bucket` in the threads of `executor`, which `close` ends."""
        self.executor = executor
        self._bucket = bucket
        self._under_way: dict[str, tuple[Fingerprint, Future[Stored]]] = {}

    @property
    def is_first(self) -> bool:
        """Whether no upload has shown yet if ETags are MD5s."""
        return self._bucket.has_opaque_etags is None

    def connect(self) -> None:
        """Make the bucket's client in this thread."""
        self._bucket.connect()

    def pending_fingerprint(self, name: str) -> Fingerprint | None:
        """Return the fingerprint that is being uploaded as `name`."""
        return self._under_way[name][0] if name in self._under_way else None

    def submit(self, name: str, payload: Payload) -> None:
        """Send `payload` as `name`, when there is room; its file must stay open."""
        self.connect()
        fingerprint = payload.fingerprint  # Another thread will read the file.
        is_stream = payload.plain is None
        size = _STREAM_SIZE if is_stream else len(payload.plain or b"")
        put = self._bucket.put
        try:
            future = self.executor.submit_sized(size, put, name, payload)
        except BaseException:  # An interrupt, without threads.
            payload.close(uploaded=True)
            raise
        if payload.is_reopened:
            future.add_done_callback(lambda _: payload.close(uploaded=True))
        self._under_way[name] = fingerprint, future

    def stop(self, error: Exception | None = None) -> None:
        """Send no more requests; those that were not sent fail of the `error`."""
        self._bucket.sender.stop(error)

    def done(self) -> Iterator[Outcome]:
        """Yield the outcomes that are there, the oldest uploads first."""
        # As they go: a hundred thousand of them are never held at once.
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
        """Begin no more, and yield the outcomes; wait for them only if `patiently`."""
        self.stop()
        self.executor.shutdown(wait=patiently, cancel_futures=True)
        for name in list(self._under_way):
            yield self._outcome(name)

    def _outcome(self, name: str) -> Outcome:
        fingerprint, future = self._under_way.pop(name)
        error: BaseException | None = InterruptedError(INTERRUPTED)
        if future.done():
            error = CancelledError() if future.cancelled() else future.exception()
        if isinstance(error, CancelledError):
            return Outcome(name, fingerprint, None, None)
        if error is None:
            return Outcome(name, fingerprint, future.result(), None)
        if not isinstance(error, Exception):  # A panic of Rust's, say.
            error = RuntimeError(f"{type(error).__name__}: {error}")
        # Without what it holds on to: the payload.
        error.__context__ = error.__cause__ = None
        return Outcome(name, fingerprint, None, error.with_traceback(None))


def _run(future: Future[_T], call: Callable[[], _T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            result = call()
        except BaseException as error:  # Whatever it is: nobody waits for ever.
            future.set_exception(error)
        else:
            future.set_result(result)
