"""One collectstatic, from the first question to the report."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from io import BytesIO
from typing import IO, Any

from botocore.exceptions import BotoCoreError, ClientError
from django.core.files import File

from collectfast_storage.bucket import Bucket, concerns_bucket
from collectfast_storage.capture import Take
from collectfast_storage.command import Source
from collectfast_storage.content import Content
from collectfast_storage.etag import Fingerprint
from collectfast_storage.exceptions import BucketError, DeleteError, UploadError
from collectfast_storage.ledger import Ledger
from collectfast_storage.report import Report
from collectfast_storage.upload import BoundedExecutor, SerialExecutor


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done: by a command that collects, or by a program's batch."""

    collects: bool = True
    dry_run: bool = False
    clear: bool = False
    barrier: bool = True  # whether something comes after the last save
    as_is: bool = True  # whether what is saved is what the source has


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload under way, or done."""

    fingerprint: Fingerprint
    size: int
    outcome: Future[str | Exception]  # the ETag it got, or what went wrong


class Run:
    """One collectstatic, or one batch of a program's own.

    Until its barrier, failures are gathered and deletes are only noted; without one,
    every call is carried out as it is made. Names are the bucket's keys.
    """

    def __init__(
        self,
        plan: Plan,
        bucket: Bucket,
        ledger: Ledger,
        executor: SerialExecutor | BoundedExecutor,
        captured_save: Callable[[str, Any, Take], object],
        find_sources: Callable[[], Mapping[str, Source]] = dict,
        expected: Iterable[str] = (),
        keep: Iterable[str] = (),
        delete_one: Callable[[str], object] | None = None,
    ) -> None:
        """Open the run that carries out `plan`; nothing is asked of anyone yet.

        ``captured_save(name, file, take)`` hands to `take` what a save would send. The
        keys `expected` will be asked for beside those of the sources; a run that
        clears leaves those to `keep` alone. With `delete_one`, it is called with the
        name of each object that is to go.
        """
        self.plan = plan
        self._bucket = bucket
        self._ledger = ledger
        self._executor = executor
        self._captured_save = captured_save
        self._find_sources = find_sources
        self._expected = expected
        self._delete_one = delete_one
        self._prepared = False
        self._read_ahead: dict[str, Content] = {}
        self._start = time.monotonic()
        self._held_back: dict[str, Content] = {}
        self._uploads: dict[str, Upload] = {}
        self._latest: deque[Future[str | Exception]] = deque()
        self._reworked: set[str] = set()
        self._kept = set(keep)
        self._unchanged: set[str] = set()
        self._uploaded: dict[str, int] = {}
        self._to_delete: set[str] = set()
        self._deleted: list[str] = []
        self.post_processing = False
        self.stands_aside = False
        self.ended = False

    @cached_property
    def sources(self) -> Mapping[str, Source]:
        """The files that are collected, by key."""
        return self._find_sources()

    # What the storage is asked.

    def exists(self, key: str) -> bool:
        """Tell whether the bucket will have `key`, after what was done so far."""
        # Asked for the location as a whole, `--clear` has nothing to do: `finish` does.
        if key == self._bucket.prefix or key in self._to_delete:
            return False
        if key in self._held_back or key in self._uploads:
            return True
        self._prepare()
        with self._bucket_errors():
            return self._ledger.exists(key)

    def modified_time(self, key: str) -> datetime:
        """Return a time that is the verdict on `key`.

        As new as its source if the bucket holds what saving that would send, older if
        not. `NotImplementedError`, where there is no such source, makes the command
        copy without asking further.
        """
        source = self.sources.get(key)
        if source is None or not self.plan.as_is:
            raise NotImplementedError("Only a comparison of contents can tell.")
        self._prepare()
        newest = source.modified_time()
        content = self._read_ahead.pop(key, None)
        if content is not None:
            held = self.holds(key, content)
        else:
            held = self._handed_over(key, source, lambda sent: self.holds(key, sent))
        if not held:
            return newest - timedelta(days=1)
        self._unchanged.add(key)
        self._arrived(key)
        return newest

    def holds(self, key: str, content: Content) -> bool:
        """Tell whether the bucket has `content` as `key`, or will have."""
        coming = self._held_back.get(key) or self._uploads.get(key)
        if coming is not None:
            return coming.fingerprint == content.fingerprint
        self._prepare()
        with self._bucket_errors():
            return self._ledger.holds(key, content)

    def read(self, key: str) -> IO[bytes] | File[bytes] | None:
        """Return what is or will be in the bucket as `key`, if it is to be had here.

        Raises `FileNotFoundError` for what this run has deleted.
        """
        if key in self._to_delete:
            raise FileNotFoundError(f"File does not exist: {key}")
        if key in self._held_back:
            return BytesIO(self._held_back[key].plain or b"")
        own = self.post_processing and self.plan.as_is and key not in self._reworked
        if own and key in self.sources:
            return self.sources[key].open()
        self.settle(key)
        return None

    def settle(self, key: str) -> None:
        """Wait until what was saved as `key` is there; `UploadError` if it is not."""
        upload = self._uploads.get(key)
        if upload is not None and isinstance(
            error := upload.outcome.result(), Exception
        ):
            raise UploadError({self._bucket.name_of(key): error}) from error

    def save(self, key: str, content: Content, *, final: bool = True) -> None:
        """Upload `content` as `key`, unless the bucket holds it.

        What is not `final` waits for the barrier, and is forgotten if it is deleted or
        saved again by then.
        """
        self._to_delete.discard(key)
        self._kept.add(key)
        if self.post_processing:
            self._reworked.add(key)
        if self.holds(key, content):
            self._unchanged.add(key)
        elif self.plan.dry_run or not (final or content.plain is None):
            self._held_back[key] = content
        else:
            self._held_back.pop(key, None)
            self._submit(key, content)
        self._arrived(key)

    def keep(self, key: str) -> None:
        """Leave `key` alone when clearing."""
        self._kept.add(key)

    def written(self, key: str) -> None:
        """Note that `key` was written by other means than `save`: it is to stay."""
        self._to_delete.discard(key)
        self._held_back.pop(key, None)
        self._read_ahead.pop(key, None)
        self._reworked.add(key)
        self._kept.add(key)
        self._ledger.written(key)

    def delete(self, key: str) -> None:
        """Delete `key`: at the barrier, unless it is saved again by then."""
        self._held_back.pop(key, None)
        self._kept.discard(key)
        if self.plan.barrier:
            self._to_delete.add(key)
        elif key not in self.sources:
            # What is about to be saved is overwritten in place, without a hole.
            self._carry_out_deletes([key])

    # How it ends.

    def wait(self) -> None:
        """Wait for all that was saved; `UploadError` says what did not arrive."""
        for key in list(self._held_back):
            self._submit(key, self._held_back.pop(key))
        if failures := self._settle():
            raise UploadError(failures)

    def finish(self) -> Report:
        """Be the barrier: wait, then delete what is left to delete, then report.

        In a run that clears, that is all but the sources and what was saved.
        """
        if not self.plan.dry_run:
            self.wait()
        # What was only held back was never there.
        leaving = {key for key in self._to_delete if self._ledger.exists(key)}
        self._carry_out_deletes(leaving | self._left_over())
        return self.report()

    def synchronise(self) -> None:
        """Wait for what is under way, for whoever looks at the bucket as a whole."""
        for key in list(self._uploads):
            self.settle(key)

    def report(self) -> Report:
        """Say what was done so far."""
        name_of = self._bucket.name_of
        return Report(
            uploaded=tuple(sorted(map(name_of, self._uploaded))),
            unchanged=tuple(
                sorted(map(name_of, self._unchanged - self._uploaded.keys()))
            ),
            deleted=tuple(sorted(map(name_of, self._deleted))),
            bytes=sum(self._uploaded.values()),
            seconds=time.monotonic() - self._start,
        )

    def close(self) -> None:
        """End the run, whether or not it got to its barrier; remember what arrived."""
        if self.ended:
            return
        self.ended = True
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._settle()
        if not self.plan.dry_run:
            self._ledger.flush()

    def _prepare(self) -> None:
        """At the first question, list the bucket, and read sources while it answers."""
        if self._prepared:
            return
        self._prepared = True
        wanted = sorted({*self.sources, *self._expected})
        with self._bucket_errors(), ThreadPoolExecutor(1) as loader:
            if self._ledger.lists:
                self._bucket.connect()
            # Not in a thread of the executor, which has to run what this waits for.
            loading = loader.submit(self._ledger.load, self._executor, wanted)
            for key, source in self.sources.items() if self.plan.as_is else ():
                if loading.done():
                    break
                with suppress(OSError):  # The command will meet it, and name it.
                    self._handed_over(key, source, partial(self._remember_ahead, key))
            loading.result()

    def _remember_ahead(self, key: str, content: Content) -> None:
        # What is remembered need not be compressed to be compared.
        if content.plain is not None and not (
            content.compresses and self._ledger.remembers(key)
        ):
            content.settle()
            self._read_ahead[key] = content

    def _handed_over(
        self, key: str, source: Source, judge: Callable[[Content], object]
    ) -> bool:
        """Tell whether `judge` is true of what saving `source` would send as `key`."""
        verdicts: list[object] = []
        with source.open() as file:
            self._captured_save(
                self._bucket.name_of(key),
                file,
                lambda _, content: verdicts.append(judge(content)),
            )
        return bool(verdicts) and all(verdicts)

    def _submit(self, key: str, content: Content) -> None:
        if key in self._uploads:  # Two at once might arrive in any order.
            self._uploads[key].outcome.result()
        self._end_early()
        # A file that does not fit into memory is sent while it is still open.
        executor = self._executor if content.plain is not None else SerialExecutor()
        size, fingerprint = content.size, content.fingerprint
        outcome = executor.submit_sized(size, _attempt, self._bucket, key, content)
        self._uploads[key] = Upload(fingerprint, size, outcome)
        self._latest.append(outcome)
        if not self.plan.barrier:
            self.wait()

    def _end_early(self) -> None:
        """End the run at the first sign that nothing would arrive."""
        while self._latest and self._latest[0].done():
            outcome = self._latest.popleft().result()
            if isinstance(outcome, Exception) and concerns_bucket(outcome):
                raise BucketError(self._bucket.name, outcome) from outcome

    def _settle(self) -> dict[str, Exception]:
        """Wait for the uploads; return what failed, and why."""
        failures = {}
        while self._uploads:
            key = next(iter(self._uploads))
            upload = self._uploads.pop(key)
            if upload.outcome.cancelled():
                continue
            outcome = upload.outcome.result()
            if isinstance(outcome, Exception):
                self._ledger.failed(key)
                failures[self._bucket.name_of(key)] = outcome
            else:
                self._ledger.arrived(key, upload.fingerprint, outcome)
                self._uploaded[key] = upload.size
        return failures

    def _arrived(self, key: str) -> None:
        """Without a barrier, clear once the last of the sources has arrived."""
        if self.plan.clear and not self.plan.barrier:
            self._awaited.discard(key)
            if not self._awaited:
                self._carry_out_deletes(self._left_over())

    @cached_property
    def _awaited(self) -> set[str]:
        return set(self.sources)

    def _left_over(self) -> set[str]:
        if not self.plan.clear:
            return set()
        with self._bucket_errors():
            present = self._ledger.keys()
        # A key with a slash at its end is a folder, to those who believe in them.
        files = {key for key in present if not key.endswith("/")}
        return files - self.sources.keys() - self._kept

    def _carry_out_deletes(self, keys: Iterable[str]) -> None:
        if self.plan.dry_run:
            self._deleted += keys
            return
        failures = {}
        for key, error in self._delete_all(sorted(keys)):
            if error is None:
                self._ledger.deleted(key)
                self._deleted.append(key)
            else:
                failures[self._bucket.name_of(key)] = error
        if failures:
            raise DeleteError(failures)

    def _delete_all(self, keys: Sequence[str]) -> Iterator[tuple[str, object]]:
        if self._delete_one is None:
            yield from self._bucket.delete(keys)
            return
        for key in keys:
            self.stands_aside = True
            try:
                self._delete_one(self._bucket.name_of(key))
            except (BotoCoreError, ClientError) as error:
                yield key, error
            else:
                yield key, None
            finally:
                self.stands_aside = False

    @contextmanager
    def _bucket_errors(self) -> Generator[None]:
        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise BucketError(self._bucket.name, error) from error


def _attempt(bucket: Bucket, key: str, content: Content) -> str | Exception:
    """Upload, and return what went wrong without what it holds on to: the content."""
    if not threading.main_thread().is_alive():
        return CancelledError()  # The interpreter ends, and waits for its threads.
    try:
        return bucket.put(key, content)
    except Exception as error:
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)
