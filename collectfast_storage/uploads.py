"""Uploads in background threads: waiting, under way, or failed."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, wait
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from collectfast_storage.congestion import MOST_BYTES
from collectfast_storage.context import RunContext
from collectfast_storage.decision import DOUBTFUL, Remembered, Remote
from collectfast_storage.exceptions import (
    BucketError,
    CollectfastError,
    UploadError,
    reason_of,
)
from collectfast_storage.fingerprint import Fingerprint
from collectfast_storage.payload import Payload
from collectfast_storage.reporting import Tally
from collectfast_storage.s3.bucket import Bucket, Stored
from collectfast_storage.s3.errors import (
    affects_one_file,
    affects_whole_bucket,
    as_bucket_error,
)
from collectfast_storage.s3.listing import Listing
from collectfast_storage.upload_cache import UploadCache

_T = TypeVar("_T")
_Work = tuple[Future[Any], Callable[[], Any]]

# Calls that wait for a thread. Fewer could leave a thread without work, and more would
# only take memory.
_WAITING_PER_THREAD = 8
INTERRUPTED = "the upload was interrupted"
# Seconds after which an idle thread ends. A later call starts a new one.
_LONGEST_IDLE = 1.0
# Each stream takes a third of the bytes that may be under way, because s3transfer reads
# up to ten parts of a stream ahead.
_STREAM_SIZE = MOST_BYTES // 3
# After this number of failures in a row for the same reason, all other uploads are
# expected to fail too.
_ENOUGH_ALIKE = 20
# The most bytes of contents that are held in memory. Larger contents are uploaded.
_MOST_BYTES_HELD = 32 * 1024 * 1024
# Marks in the cache are written for groups of uploads. The first group has this size.
_FIRST_MARKS = 8


class BoundedExecutor(Executor):
    """A thread pool that bounds its waiting work, in calls and in bytes.

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
        self._places = max(threads, 1) * _WAITING_PER_THREAD
        self._room = self._most_bytes = most_bytes
        self._lock = threading.RLock()
        self._has_work = threading.Condition(self._lock)
        self._has_room = threading.Condition(self._lock)

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Run ``fn(*args, **kwargs)``, and return its future."""
        return self.submit_sized(0, partial(fn, *args, **kwargs))

    def submit_sized(self, size: int, fn: Callable[..., _T], *args: Any) -> Future[_T]:
        """Submit ``fn(*args)`` when there is room for its `size` bytes."""
        size = min(size, self._most_bytes)  # A larger content is sent alone.
        future: Future[_T] = Future()
        work = future, partial(fn, *args)
        with self._lock:
            self._has_room.wait_for(lambda: self._places and self._room >= size)
            self._places -= 1
            self._room -= size
            future.add_done_callback(lambda _: self._release(size))
            if self._idle <= len(self._work):
                self._start_thread()
            if self._threads:
                self._work.append(work)
                self._has_work.notify()
                return future
        _run(*work)
        with suppress(Exception):  # An interrupt is raised, as in any call.
            future.result()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads after all submitted calls, as `Executor.shutdown` does.

        With `cancel_futures`, calls that have not begun are dropped.
        """
        with self._lock:
            self._is_shut_down = True
            while cancel_futures and self._work:
                future, _ = self._work.popleft()
                future.cancel()
            self._has_work.notify_all()
            threads = list(self._threads)
        for thread in threads if wait else ():
            thread.join()

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
            del work  # It refers to a content, and the next work may take long to come.

    def _next(self) -> _Work | None:
        """Wait for work; return `None` if this thread is to end."""
        with self._lock:
            if not self._work and not self._is_shut_down:
                self._idle += 1
                self._has_work.wait(_LONGEST_IDLE)
                self._idle -= 1
            if self._work:
                return self._work.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def _release(self, size: int) -> None:
        with self._lock:
            self._places += 1
            self._room += size
            self._has_room.notify_all()


def _run(future: Future[_T], call: Callable[[], _T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            result = call()
        except BaseException as error:  # Any error, because callers wait for it.
            future.set_exception(error)
        else:
            future.set_result(result)


class HeldPayloads(dict[str, Payload]):
    """Payloads that are held in memory before their upload, by name."""

    _bytes = 0

    def add(self, name: str, payload: Payload) -> bool:
        """Hold `payload` as `name`; return whether there is room for its content."""
        size = len(payload.plain or b"")
        if not 0 < size <= _MOST_BYTES_HELD - self._bytes:
            return False
        self[name] = payload
        self._bytes += size
        return True

    def take(self, name: str) -> Payload | None:
        """Remove and return the payload that is held as `name`, if any."""
        payload = self.pop(name, None)
        if payload is not None:
            self._bytes -= len(payload.plain or b"")
        return payload

    def take_all(self) -> dict[str, Payload]:
        """Remove and return all payloads."""
        payloads = dict(self)
        self.clear()
        self._bytes = 0
        return payloads


class Failures:
    """The errors of a run's uploads, by name, and the error that ended the run."""

    def __init__(self, bucket_name: str) -> None:
        self._bucket_name = bucket_name
        self.errors: dict[str, Exception] = {}
        self.end: CollectfastError | None = None
        self._last_reason = ""
        self._alike = 0  # failures for this reason since the last success

    def add(self, name: str, error: Exception) -> None:
        """Note the `error` of `name`; it ends the run if others would fail too."""
        self.errors[name] = error
        reason = reason_of(error)
        self._alike = self._alike + 1 if reason == self._last_reason else 1
        self._last_reason = reason
        if affects_whole_bucket(error):
            self.end = BucketError(self._bucket_name, error)
        elif self._alike >= _ENOUGH_ALIKE and not affects_one_file(error):
            self.end = UploadError(self.errors, tried_all=False)

    def succeeded(self) -> None:
        """Note that an upload succeeded."""
        self._alike = 0

    def raise_any(self) -> None:
        """Raise the error that ended the run, or else one that names all failures."""
        if self.end is not None:
            raise self.end
        if self.errors:
            raise UploadError(self.errors)


class Uploads:
    """The uploads of one run that have not arrived: waiting, under way, or failed.

    Its methods raise the error that ends the run when an upload has met it.
    """

    def __init__(
        self,
        context: RunContext,
        bucket: Bucket,
        cache: UploadCache,
        executor: BoundedExecutor,
        listing: Listing,
        tally: Tally,
    ) -> None:
        """Upload to `bucket`; note results in `cache`, `listing` and `tally`."""
        self._context, self._bucket, self._cache = context, bucket, cache
        self._executor, self._listing, self._tally = executor, listing, tally
        self.failures = Failures(bucket.name)
        self._fingerprints: dict[str, Fingerprint] = {}  # that have not arrived
        self._under_way: dict[str, Future[Stored]] = {}
        self._unmarked = HeldPayloads()  # uploads that may make a cache entry wrong
        # Files that post-processing may delete or replace before they are uploaded.
        self.drafts = HeldPayloads()

    def fingerprint(self, name: str) -> Fingerprint | None:
        """Return the fingerprint of a draft or an upload that has not arrived."""
        draft = self.drafts.get(name)
        return draft.fingerprint if draft else self._fingerprints.get(name)

    def hold(self, name: str, draft: Payload) -> bool:
        """Hold `draft` as `name`; return whether there is room for its content."""
        self.connect()  # From then on, a site's own request sends drafts first.
        return self.drafts.add(name, draft)

    def connect(self) -> None:
        """Make the bucket's client in this thread, and watch it from then on."""
        with as_bucket_error(self._bucket.name):
            self._bucket.connect()

    def add(self, name: str, payload: Payload) -> None:
        """Upload `payload` as `name` in the background."""
        self._note_done()
        self.wait(name)  # Two uploads of one name might arrive in any order.
        self.forget(name)
        cached, fingerprint = self._cache.get(name), payload.fingerprint
        # The object's ETag shows later that an entry is wrong, unless only headers have
        # changed, or the cache is trusted.
        is_risky = cached is not None and (
            self._context.trusts_cache
            or cached.fingerprint.headers != fingerprint.headers
        )
        if is_risky:
            self.connect()  # From then on, a site's own request sends these first.
            if self._unmarked.add(name, payload):
                self._fingerprints[name] = fingerprint
                if len(self._unmarked) >= max(_FIRST_MARKS, len(self._tally.uploaded)):
                    self._send_unmarked()
                return
            self._cache.mark({name: fingerprint})
        self._send(name, payload)

    def forget(self, name: str) -> None:
        """Forget the failure of `name`, which is written again."""
        if name in self.failures.errors:
            del self.failures.errors[name], self._fingerprints[name]

    def wait(self, name: str) -> None:
        """Wait for the upload of `name`, and note its outcome."""
        if name in self._unmarked:
            self._send_unmarked()
        if name in self._under_way:
            # If this is interrupted, the upload has no outcome yet.
            wait([self._under_way[name]])
            self._note(name)

    def wait_all(self) -> None:
        """Wait for all uploads, and note their outcomes."""
        self._send_unmarked()
        for name in list(self._under_way):
            self.wait(name)

    def close(self, *, wait: bool) -> None:
        """Cancel uploads that have not begun, and `wait` for the others."""
        self._bucket.sender.stop()
        self._executor.shutdown(wait=wait, cancel_futures=True)
        for name in list(self._under_way):
            with suppress(CollectfastError):
                self._note(name)
        left = self._fingerprints.keys() | self.drafts.take_all().keys()
        for name in sorted(left - self.failures.errors.keys()):
            self.failures.add(name, InterruptedError(INTERRUPTED))

    def _send(self, name: str, payload: Payload) -> None:
        # This reads the file. An error of the file is not one of the bucket.
        fingerprint, plain = payload.fingerprint, payload.plain
        caller_closes_file = plain is None and not payload.read_again()
        self.connect()
        size = _STREAM_SIZE if plain is None else len(plain)
        try:
            future = self._executor.submit_sized(size, self._bucket.put, name, payload)
        except BaseException:  # An interrupt, without threads.
            payload.close(uploaded=True)
            raise
        if payload.is_reopened:
            future.add_done_callback(lambda _: payload.close(uploaded=True))
        self._fingerprints[name] = fingerprint
        self._under_way[name] = future
        # Wait for a stream whose file the caller closes. And wait for the first upload,
        # because its ETag shows whether ETags are MD5s: if they are not, uploads need
        # a fingerprint in their metadata.
        if caller_closes_file or (
            plain is not None and self._bucket.has_opaque_etags is None
        ):
            self.wait(name)

    def _send_unmarked(self) -> None:
        """Mark the uploads that may make cache entries wrong, and send them."""
        payloads = self._unmarked.take_all()
        if payloads:
            self._cache.mark({name: p.fingerprint for name, p in payloads.items()})
        for name, payload in payloads.items():
            self._send(name, payload)

    def _note_done(self) -> None:
        """Note the outcomes of uploads that have ended, the oldest uploads first."""
        while self._under_way:
            name, future = next(iter(self._under_way.items()))
            if not future.done():
                return
            self._note(name)

    def _note(self, name: str) -> None:
        """Note the outcome of the upload of `name`; raise if it ends the run."""
        future = self._under_way.pop(name)
        error = _error_of(future)
        if error is not None:
            self._listing.invalidate(name)  # It may have arrived all the same.
            self._cache.remember(name, DOUBTFUL)
            self.failures.add(name, error)
            if self.failures.end is not None:
                self._bucket.sender.stop(error)
                raise self.failures.end
            return
        stored, fingerprint = future.result(), self._fingerprints.pop(name)
        self._listing.note(name, Remote(stored.etag, ""))
        self._cache.remember(name, Remembered(fingerprint, stored.etag))
        self._tally.uploaded[name] = None
        self._tally.bytes += stored.size
        self.failures.succeeded()


def _error_of(future: Future[Any]) -> Exception | None:
    """Return the error of an upload that has ended, or is interrupted."""
    if not future.done() or future.cancelled():
        return InterruptedError(INTERRUPTED)
    error = future.exception()
    if error is None:
        return None
    if isinstance(error, CancelledError):  # No request was sent.
        return InterruptedError(INTERRUPTED)
    if not isinstance(error, Exception):  # For example a panic of Rust's.
        return RuntimeError(f"{type(error).__name__}: {error}")
    # The traceback and the context refer to the payload.
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)
