"""The uploads of one run: under way, arrived, or failed."""

from __future__ import annotations

from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import cached_property

from collectfast_storage.bucket import Bucket, Stored
from collectfast_storage.content import Content
from collectfast_storage.diagnosis import concerns_bucket, naming
from collectfast_storage.etag import Fingerprint
from collectfast_storage.exceptions import BucketError, UploadError
from collectfast_storage.executor import BoundedExecutor, SerialExecutor
from collectfast_storage.keys import is_utf8
from collectfast_storage.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload under way."""

    fingerprint: Fingerprint
    outcome: Future[Stored | Exception]


@dataclass(frozen=True, slots=True)
class Failure:
    """An upload that failed."""

    fingerprint: Fingerprint
    error: Exception


class Uploads:
    """Sends contents in the background; the ledger learns what became of them.

    All but the sending happens in the caller's thread: neither the ledger nor the
    Django cache behind it is ever touched by another.
    """

    def __init__(
        self,
        bucket: Bucket,
        ledger: Ledger,
        executor: SerialExecutor | BoundedExecutor,
    ) -> None:
        """Send to `bucket` in the threads of `executor`, which `close` ends."""
        self._bucket = bucket
        self._ledger = ledger
        self._executor = executor
        self._under_way: dict[str, Upload] = {}  # the oldest first
        self._failed: dict[str, Failure] = {}
        self.arrived: set[str] = set()
        self.bytes = 0

    def coming(self, key: str) -> Fingerprint | None:
        """Return the fingerprint of what is not known to have arrived as `key`."""
        upload = self._under_way.get(key) or self._failed.get(key)
        return None if upload is None else upload.fingerprint

    def submit(self, key: str, content: Content) -> None:
        """Send `content` as `key`.

        Raises `BucketError` at the first sign that nothing would arrive.
        """
        if key in self._under_way:  # Two at once might arrive in any order.
            self._settle(key)
        self._settle_what_is_done()
        self._failed.pop(key, None)
        with naming(self._bucket.name):
            self._bucket.connect(to_upload=True)
        self._ledger.changing(key, content.fingerprint)
        self._send(key, content)

    def settle(self, key: str) -> None:
        """Wait until `key` is there; `UploadError` if it is not."""
        if key in self._under_way:
            self._settle(key)
        if failure := self._failed.get(key):
            error = failure.error
            raise UploadError({self._bucket.name_of(key): error}) from error

    def wait(self) -> None:
        """Wait for all of them; `UploadError` says what did not arrive."""
        for key in list(self._under_way):
            self._settle(key)
        if self._failed:
            name_of = self._bucket.name_of
            raise UploadError({name_of(k): f.error for k, f in self._failed.items()})

    def close(self) -> None:
        """Send no more, and note what became of what is under way."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._streams.shutdown(wait=False)
        for key in list(self._under_way):
            self._settle(key)

    def abandon(self) -> None:
        """Send no more, and wait for nothing: what is under way may arrive or not."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._streams.shutdown(wait=False)
        for key, upload in list(self._under_way.items()):
            if upload.outcome.done():
                self._settle(key)
            else:
                self._ledger.failed(key)
        self._under_way.clear()

    def _send(self, key: str, content: Content) -> None:
        executor = self._executor if content.plain is not None else self._streams
        size = len(content.plain or b"")
        opaque = self._ledger.has_opaque_etag(content)
        fingerprint = content.fingerprint  # Before another thread reads the file.
        outcome = executor.submit_sized(
            size, _attempt, self._bucket, key, content, bool(opaque)
        )
        self._under_way[key] = Upload(fingerprint, outcome)
        # What is streamed is closed soon. And what ETags are like here, the first one
        # tells, so that at most this one has to be sent twice.
        if content.plain is None or opaque is None:
            wait([outcome])

    @cached_property
    def _streams(self) -> SerialExecutor | BoundedExecutor:
        # Not in the caller's thread: that is who may be interrupted.
        serial = isinstance(self._executor, SerialExecutor)
        return self._executor if serial else BoundedExecutor(1)

    def _settle_what_is_done(self) -> None:
        # As they go, so that a hundred thousand of them are never held at once.
        while self._under_way:
            key, upload = next(iter(self._under_way.items()))
            if not upload.outcome.done():
                return
            self._settle(key)
            failure = self._failed.get(key)
            if failure is not None and concerns_bucket(failure.error):
                raise BucketError(self._bucket.name, failure.error) from failure.error

    def _settle(self, key: str) -> None:
        upload = self._under_way[key]
        # Only after it has an outcome: the wait may be interrupted.
        outcome = None if upload.outcome.cancelled() else upload.outcome.result()
        del self._under_way[key]
        if isinstance(outcome, Stored):
            if outcome.is_opaque is not None:
                self._ledger.learn(opaque=outcome.is_opaque)
            self._ledger.arrived(key, upload.fingerprint, outcome.etag)
            self.arrived.add(key)
            self.bytes += outcome.size
        elif outcome is not None:
            self._ledger.failed(key)
            self._failed[key] = Failure(upload.fingerprint, outcome)


def _attempt(
    bucket: Bucket, key: str, content: Content, tagged: bool
) -> Stored | Exception:
    """Upload, and return what went wrong without what it holds on to: the content."""
    if not is_utf8(key):
        return ValueError("its name is not UTF-8, as S3's keys are; rename the file")
    try:
        return bucket.put(key, content, tagged=tagged)
    except Exception as error:
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)
