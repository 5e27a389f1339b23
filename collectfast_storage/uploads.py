"""Uploads in the background: under way, arrived, or failed."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, wait
from contextlib import suppress
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from botocore.config import Config

from collectfast_storage.fingerprint import Fingerprint
from collectfast_storage.pace import MOST_BYTES, Pace
from collectfast_storage.payload import Payload
from collectfast_storage.s3.bucket import Bucket, Stored
from collectfast_storage.s3.errors import Setback, ThrottledError, setback_of

_T = TypeVar("_T")
_Work = tuple[Future[Any], Callable[[], Any]]

# Enough that no thread is ever without work; more would only take memory.
_WAITING_PER_THREAD = 8
# The longest that botocore waits before an attempt, in seconds:
# https://docs.aws.amazon.com/boto3/latest/guide/retries.html
_LONGEST_BACKOFF = 20


class Governor:
    """Sends requests when their pace allows it, and again what may pass.

    What was throttled, or not answered, is sent again as long as anything gets through.
    When nothing has for as long as botocore would try one file, all is given up.
    """

    def __init__(self, pace: Pace, attempts: int) -> None:
        """Go at `pace`; botocore would make so many `attempts` at each request."""
        self._pace, self._attempts = pace, attempts
        tries = range(1, max(attempts, 2))  # One failure says nothing of the others.
        self._patience = sum(min(2**number, _LONGEST_BACKOFF) for number in tries)
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # One waits to start, and all others for it.
        self._requests = self._bytes = 0  # under way
        self._hopeless_at = inf  # if requests fail at once, and nothing gets through
        self._over = threading.Event()
        self._given_up: Exception | None = None

    def send(self, size: int, call: Callable[[], _T]) -> _T:
        """Return what comes of `call`, which sends so many bytes, or raise it."""
        failures = 0
        while True:
            began, setback = self._begin(size), None
            try:
                return call()
            except Exception as error:
                setback = setback_of(error)
                if setback is None:
                    raise
                failures += 1
                # As many attempts, each as long as this one, and the waits between.
                ends = self._hopeless_at + self._attempts * (monotonic() - began)
                if monotonic() >= ends and not isinstance(error, ThrottledError):
                    self.stop(error)
                    raise
            finally:
                self._end(size, began, setback)
            if not (setback.throttled or setback.timed_out):  # Others may go on.
                self._over.wait(min(2**failures, _LONGEST_BACKOFF) / 20)

    def stop(self, error: Exception | None = None) -> None:
        """Send no more; what was not sent fails of the `error`, if there is one."""
        self._given_up = self._given_up or error
        self._over.set()
        with self._changed:
            self._changed.notify()

    def _begin(self, size: int) -> float:
        """Return the time when a request of `size` bytes may start, after that."""
        with self._turn, self._changed:
            while not self._over.is_set():
                now = monotonic()
                delay = self._pace.delay(now, size, self._requests, self._bytes)
                if delay <= 0:
                    self._pace.started(now)
                    self._requests += 1
                    self._bytes += size
                    self._hopeless_at = min(self._hopeless_at, now + self._patience)
                    return now
                self._changed.wait(None if delay == inf else delay)
        raise self._given_up or CancelledError

    def _end(self, size: int, began: float, setback: Setback | None) -> None:
        with self._changed:
            now = monotonic()
            self._requests -= 1
            self._bytes -= size
            if setback is None:
                self._hopeless_at = now + self._patience
                self._pace.answered(now, began, size)
            elif setback.throttled:
                self._pace.throttled(now, began, setback.after)
                # Who says when to come back will be there then.
                self._hopeless_at = max(self._hopeless_at, now + setback.after)
            elif setback.timed_out:
                self._pace.shrink(now, began)
            self._changed.notify()


class BoundedExecutor(Executor):
    """Runs what is submitted in threads, at a pace, and with bounds on what waits."""

    def __init__(
        self, threads: int, config: Any = None, most_bytes: int = MOST_BYTES
    ) -> None:
        """Run up to `threads` at once, on up to `most_bytes`; 0: in the caller's.

        The `config` is botocore's: how long it waits for an answer, and how often.
        """
        config = config or Config()
        attempts = (config.retries or {}).get("total_max_attempts", 3)
        pace = Pace(threads, config.read_timeout or 60, most_bytes)
        self.governor = Governor(pace, attempts)
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self.threads = threads
        self._started: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._places = max(threads, 1) * _WAITING_PER_THREAD
        self._room = self._most_bytes = most_bytes
        self._changed = threading.Condition()

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Run ``fn(*args, **kwargs)``, and return what becomes of it."""
        return self.submit_sized(0, partial(fn, *args, **kwargs))

    def submit_sized(self, size: int, fn: Callable[..., _T], *args: Any) -> Future[_T]:
        """Submit ``fn(*args)`` once there is room for its `size` bytes."""
        size = min(size, self._most_bytes)  # What is larger goes alone.
        with self._changed:
            self._changed.wait_for(lambda: self._places and self._room >= size)
            self._places -= 1
            self._room -= size
        future: Future[_T] = Future()
        future.add_done_callback(lambda _: self._release(size))
        call = partial(self.governor.send, size, partial(fn, *args))
        if not self.threads:
            _run(future, call)
            with suppress(Exception):  # But not an interrupt: it is the caller's.
                future.result()
            return future
        self._work.put((future, call))
        if len(self._started) < self.threads and not self._idle.acquire(False):
            # A daemon: who interrupts a deploy need not wait for a server's answer.
            thread = threading.Thread(target=self._serve, daemon=True)
            self._started.append(thread)
            thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Run no more than what was submitted, or with `cancel_futures` has begun."""
        with suppress(Empty):
            while cancel_futures:
                work = self._work.get_nowait()
                if work is not None:
                    work[0].cancel()
        if cancel_futures:
            self.governor.stop()
        for _ in self._started:
            self._work.put(None)
        for thread in self._started if wait else ():
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
    """Sends payloads to a bucket, and tells what became of them when it is asked."""

    def __init__(self, bucket: Bucket, executor: BoundedExecutor) -> None:
        """Send to `bucket` in the threads of `executor`, which `close` ends."""
        self.executor = executor
        self._bucket = bucket
        bucket.sends_once = True
        self._under_way: dict[str, tuple[Fingerprint, Future[Stored]]] = {}

    def coming(self, name: str) -> Fingerprint | None:
        """Return the fingerprint of what is under way as `name`."""
        return self._under_way[name][0] if name in self._under_way else None

    def submit(self, name: str, payload: Payload) -> None:
        """Send `payload` as `name`, once there is room; its file must stay open."""
        self._bucket.native  # noqa: B018 (made in this thread)
        fingerprint = payload.fingerprint  # Before another thread reads the file.
        size = len(payload.plain or b"")
        future = self.executor.submit_sized(size, self._bucket.put, name, payload)
        self._under_way[name] = fingerprint, future

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
        self.executor.shutdown(wait=patiently, cancel_futures=True)
        for name in list(self._under_way):
            yield self._outcome(name)

    def _outcome(self, name: str) -> Outcome:
        fingerprint, future = self._under_way.pop(name)
        error: BaseException | None = InterruptedError("it was interrupted")
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
