"""One collectstatic, from the first question to the report."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from collectfast_storage.bucket import Bucket, concerns_bucket
from collectfast_storage.capture import Take
from collectfast_storage.command import Source
from collectfast_storage.content import Content
from collectfast_storage.etag import Fingerprint
from collectfast_storage.exceptions import (
    BucketError,
    DeleteError,
    FilesError,
    UploadError,
)
from collectfast_storage.ledger import Ledger

Processed = tuple[str, str | None, bool | Exception]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command was asked to do."""

    dry_run: bool = False
    post_process: bool = True


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload under way, or done."""

    fingerprint: Fingerprint
    etag: Future[str]


class Run:
    """One collectstatic.

    Where the command will post-process, there is a barrier (`finish`): until then
    failures are gathered and deletes are only noted. Where it will not, every call is
    carried out as it is made. Names are the bucket's keys.
    """

    def __init__(
        self,
        plan: Plan,
        bucket: Bucket,
        ledger: Ledger,
        executor: Executor,
        find_sources: Callable[[], Mapping[str, Source]],
    ) -> None:
        """Open the run that carries out `plan`; nothing is asked of anyone yet."""
        self._plan = plan
        self._bucket = bucket
        self._ledger = ledger
        self._executor = executor
        self._find_sources = find_sources
        self._uploads: dict[str, Upload] = {}
        self._deleted: set[str] = set()
        self.post_processing = False
        self.ended = False

    @cached_property
    def _sources(self) -> Mapping[str, Source]:
        return self._find_sources()

    def exists(self, key: str) -> bool:
        """Tell whether the bucket will have `key`, after what was done so far."""
        if key in self._uploads or key in self._deleted:
            return key not in self._deleted
        with self._bucket_errors():
            return self._ledger.exists(key)

    def modified_time(
        self, key: str, captured_save: Callable[[Any, Take], object]
    ) -> datetime:
        """Return a time that is the verdict on `key`.

        As new as its source if the bucket holds what ``captured_save(file, take)``
        hands over for it, older if not. `NotImplementedError`, where there is no such
        source, makes the command copy without asking further.
        """
        source = self._sources.get(key)
        if source is None:
            raise NotImplementedError("Only a comparison of contents can tell.")
        newest = source.modified_time()
        held: list[bool] = []
        with source.open() as file:
            captured_save(file, lambda *sent: held.append(self.holds(*sent)))
        return newest if held and all(held) else newest - timedelta(days=1)

    def holds(self, key: str, content: Content) -> bool:
        """Tell whether the bucket has `content` as `key`, or will have."""
        if upload := self._uploads.get(key):
            return upload.fingerprint == content.fingerprint
        with self._bucket_errors():
            return self._ledger.holds(key, content)

    def save(self, key: str, content: Content) -> None:
        """Upload `content` as `key`, unless the bucket holds it."""
        self._deleted.discard(key)
        if self.holds(key, content):
            return
        etag = self._executor.submit(self._bucket.put, key, content)
        self._uploads[key] = Upload(content.fingerprint, etag)
        if not self._plan.post_process:
            if failures := self._settle():
                raise UploadError(failures)
        elif etag.done() and (error := etag.exception()) and concerns_bucket(error):
            raise BucketError(self._bucket.name, error) from error

    def delete(self, key: str) -> None:
        """Delete `key`: at the barrier, unless it is saved again by then."""
        if self._plan.post_process:
            self._deleted.add(key)
        elif key not in self._sources:
            # What is about to be saved is overwritten in place, without a hole.
            self._carry_out_deletes([key])

    def finish(self, processed: Iterable[Processed]) -> Iterator[Processed]:
        """Post-process, and then be the barrier: wait, delete, report.

        Yields what `collectstatic` expects of a storage's `post_process`:
        https://docs.djangoproject.com/en/stable/ref/contrib/staticfiles/#django.contrib.staticfiles.storage.StaticFilesStorage.post_process
        """
        self.post_processing = True
        try:
            yield from processed
            if failures := self._settle():
                raise UploadError(failures)
            self._carry_out_deletes(self._deleted)
        except FilesError as error:
            yield ", ".join(error.failures), None, error
        finally:
            self.close()

    def close(self) -> None:
        """End the run, whether or not it got to its barrier; remember what arrived."""
        if self.ended:
            return
        self.ended = True
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._settle()
        if not self._plan.dry_run:
            self._ledger.flush()

    def _settle(self) -> dict[str, Exception]:
        """Wait for the uploads; return what failed, and why."""
        failures = {}
        while self._uploads:
            key = next(iter(self._uploads))
            upload = self._uploads.pop(key)
            try:
                self._ledger.arrived(key, upload.fingerprint, upload.etag.result())
            except Exception as error:
                failures[self._bucket.name_of(key)] = error
        return failures

    def _carry_out_deletes(self, keys: Iterable[str]) -> None:
        failures = {}
        for key, error in self._bucket.delete(sorted(keys)):
            if error is None:
                self._ledger.deleted(key)
            else:
                failures[self._bucket.name_of(key)] = error
        if failures:
            raise DeleteError(failures)

    @contextmanager
    def _bucket_errors(self) -> Generator[None]:
        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise BucketError(self._bucket.name, error) from error
