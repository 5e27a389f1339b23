"""One run, of a collectstatic or of a program's batch, from its first call to its end.

The methods of `Run` are in the order in which a file meets them: the command asks for
it, saves it, and it is uploaded. At the end objects are deleted, and there is a report.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import IO, Any

from django.core.files import File
from django.core.files.storage import Storage

from collectfast_storage.comparison import Comparison
from collectfast_storage.context import RunContext
from collectfast_storage.decision import (
    DOUBTFUL,
    UNKNOWN,
    Remembered,
    Remote,
    Verdict,
    between,
)
from collectfast_storage.exceptions import (
    BucketError,
    CollectfastError,
    DeleteError,
    UploadError,
    reason_of,
)
from collectfast_storage.fingerprint import Fingerprint
from collectfast_storage.payload import Payload
from collectfast_storage.reporting import Report, Tally
from collectfast_storage.s3.bucket import Bucket
from collectfast_storage.s3.errors import (
    affects_one_file,
    affects_whole_bucket,
    as_bucket_error,
)
from collectfast_storage.upload_cache import UploadCache
from collectfast_storage.uploads import INTERRUPTED, Outcome, Uploads

logger = logging.getLogger("collectfast_storage")

# After this number of failures with one reason, and nothing else, all other uploads
# would fail too.
_ENOUGH_ALIKE = 20
# Drafts wait in memory up to this size. Others are uploaded, and perhaps replaced.
_MOST_BYTES_OF_DRAFTS = 32 * 1024 * 1024
# Uploads wait for a mark in the cache in groups, which grow from this size.
_FIRST_MARKS = 8


class HeldPayloads:
    """Payloads that wait in memory for their upload, by name."""

    def __init__(self) -> None:
        self._payloads: dict[str, Payload] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._payloads)

    def get(self, name: str) -> Payload | None:
        """Return the payload that waits as `name`."""
        return self._payloads.get(name)

    def add(self, name: str, payload: Payload) -> bool:
        """Let `payload` wait as `name`, if there is room for its content."""
        size = len(payload.plain or b"")
        if not 0 < size <= _MOST_BYTES_OF_DRAFTS - self._bytes:
            return False
        self._payloads[name] = payload
        self._bytes += size
        return True

    def pop(self, name: str) -> Payload | None:
        """Remove and return the payload that waits as `name`."""
        payload = self._payloads.pop(name, None)
        self._bytes -= len(payload.plain or b"") if payload else 0
        return payload

    def pop_all(self) -> dict[str, Payload]:
        """Remove and return all payloads."""
        payloads, self._payloads, self._bytes = self._payloads, {}, 0
        return payloads


class Failures:
    """Uploads of a run that failed, by name."""

    def __init__(self, bucket_name: str) -> None:
        self._bucket_name = bucket_name
        self._errors: dict[str, tuple[Fingerprint, Exception]] = {}
        self._last_reason, self._alike = "", 0  # since the last upload that succeeded
        self.end: CollectfastError | None = None  # the error that ended the run

    def add(self, name: str, fingerprint: Fingerprint, error: Exception) -> bool:
        """Note the `error` of `name`; return whether it would meet all other files."""
        self._errors[name] = fingerprint, error
        reason = reason_of(error)
        self._alike = self._alike + 1 if reason == self._last_reason else 1
        self._last_reason = reason
        if affects_whole_bucket(error):
            self.end = BucketError(self._bucket_name, error)
        elif self._alike >= _ENOUGH_ALIKE and not affects_one_file(error):
            self.end = UploadError(self.errors, tried_all=False)
        return self.end is not None

    def succeeded(self) -> None:
        """Note that an upload succeeded."""
        self._alike = 0

    def forget(self, name: str) -> None:
        """Forget the failure of `name`, which is uploaded again."""
        self._errors.pop(name, None)

    def fingerprint(self, name: str) -> Fingerprint | None:
        """Return the fingerprint that could not be uploaded as `name`."""
        return self._errors[name][0] if name in self._errors else None

    @property
    def errors(self) -> dict[str, Exception]:
        """The errors, by name."""
        return {name: error for name, (_, error) in self._errors.items()}

    def raise_for(self, name: str) -> None:
        """Raise `UploadError` if `name` could not be uploaded."""
        if name in self._errors:
            error = self._errors[name][1]
            raise UploadError({name: error}) from error

    def raise_end(self) -> None:
        """Raise the error that ended the run, if there is one."""
        if self.end is not None:
            raise self.end

    def raise_any(self) -> None:
        """Raise an error that names all failures, if there are any."""
        self.raise_end()
        if self._errors:
            raise UploadError(self.errors)


class PendingUploads:
    """The uploads of a run that have not arrived: drafts, under way, and failed."""

    def __init__(
        self,
        context: RunContext,
        cache: UploadCache,
        uploads: Uploads,
        comparison: Comparison,
        tally: Tally,
    ) -> None:
        """Upload by `uploads`, and note results in the others."""
        self._context, self._cache, self._uploads = context, cache, uploads
        self._comparison, self._tally = comparison, tally
        self.failures = Failures(context.destination.bucket_name)
        self.drafts = HeldPayloads()
        self._unmarked = HeldPayloads()  # uploads that may make a cache entry wrong

    def fingerprint(self, name: str) -> Fingerprint | None:
        """Return the fingerprint of an upload of `name` that has not arrived."""
        waiting = self.drafts.get(name) or self._unmarked.get(name)
        if waiting is not None:
            return waiting.fingerprint
        failed = self.failures.fingerprint(name)
        return failed or self._uploads.pending_fingerprint(name)

    def verdict(self, name: str, payload: Payload) -> Verdict:
        """Return whether the bucket has `payload` as `name`, or will have it."""
        pending = self.fingerprint(name)
        if pending is not None:
            return between(pending, payload.fingerprint)
        return self._comparison.verdict(name, payload)

    def upload(self, name: str, payload: Payload, verdict: Verdict) -> None:
        """Upload `payload` in the background."""
        context = self._context
        reason = self._comparison.reason(name, payload, verdict)
        context.progress.decided(name, reason)
        if context.dry_run:
            return
        self.note(self._uploads.done())
        self.wait(name)  # Two uploads of one name might arrive in any order.
        self.failures.forget(name)
        known, headers = self._cache.get(name), payload.fingerprint.headers
        # An object's ETag shows that an entry is out of date, but not if only headers
        # have changed.
        is_risky = known is not None and (
            context.trusts or known.fingerprint.headers != headers
        )
        if is_risky and self.hold(self._unmarked, name, payload):
            if len(self._unmarked) >= max(_FIRST_MARKS, len(self._tally.uploaded)):
                self._send_unmarked()
        else:
            if is_risky:
                self._cache.mark({name: payload.fingerprint})
            self._send(name, payload)
        if not context.destination.saves_as_is:
            self.wait_for(name)

    def hold(self, waiting: HeldPayloads, name: str, payload: Payload) -> bool:
        """Let `payload` wait, if there is room, until another request is to be sent."""
        with as_bucket_error(self._context.destination.bucket_name):
            self._uploads.connect()
        return waiting.add(name, payload)

    def wait(self, *names: str) -> None:
        """Wait for the uploads of `names`, or of all, and note their outcomes."""
        if not names or any(map(self._unmarked.get, names)):
            self._send_unmarked()
        self.note(self._uploads.wait(*names))

    def wait_for(self, name: str) -> None:
        """Wait until `name` has arrived; raise `UploadError` if it could not."""
        draft = self.drafts.pop(name)
        if draft is not None:
            self.upload(name, draft, self.verdict(name, draft))
        self.wait(name)
        self.failures.raise_for(name)

    def wait_all(self) -> None:
        """Send all that waits, and wait for all uploads; failures are noted only."""
        for name, payload in self.drafts.pop_all().items():
            self.upload(name, payload, self.verdict(name, payload))
        self.wait()

    def close(self, *, patiently: bool) -> None:
        """Cancel uploads that wait, and `patiently` wait for the others."""
        self.note(self._uploads.close(patiently=patiently), is_last=True)
        left = self.drafts.pop_all() | self._unmarked.pop_all()
        for name, payload in left.items():
            self.failures.add(name, payload.fingerprint, InterruptedError(INTERRUPTED))

    def note(self, outcomes: Iterable[Outcome], *, is_last: bool = False) -> None:
        """Note outcomes; raise the error that would meet all other files too."""
        listing = self._comparison.listing
        for name, fingerprint, stored, error in outcomes:
            if stored is not None:
                listing.note(name, Remote(stored.etag, ""))
                self._cache.remember(name, Remembered(fingerprint, stored.etag))
                self._tally.uploaded[name] = None
                self._tally.bytes += stored.size
                self.failures.succeeded()
            else:
                # It may have arrived all the same.
                listing.invalidate(name)
                self._cache.remember(name, DOUBTFUL)
                error = error or InterruptedError(INTERRUPTED)  # It was not begun.
                if self.failures.add(name, fingerprint, error) and not is_last:
                    self._uploads.stop(error)
                    self.failures.raise_end()

    def _send(self, name: str, payload: Payload) -> None:
        # An error of the file, which is read now, is not one of the bucket.
        _ = payload.fingerprint
        waits = payload.plain is None and not payload.read_again()
        with as_bucket_error(self._context.destination.bucket_name):
            self._uploads.submit(name, payload)
        # The caller closes the file of a stream. And the first upload shows whether
        # ETags are MD5s: others would have to be repeated with a fingerprint.
        if waits or (payload.plain is not None and self._uploads.is_first):
            self.wait(name)

    def _send_unmarked(self) -> None:
        """Mark the uploads that may make cache entries wrong, and send them."""
        waiting = self._unmarked.pop_all()
        if waiting:
            self._cache.mark({name: each.fingerprint for name, each in waiting.items()})
        for name, payload in waiting.items():
            self._send(name, payload)


class Run:
    """Calls of one thread, whose uploads run in the background until `finish`.

    Names are relative to the location. Methods raise `BucketError` if the bucket cannot
    be used, and `DeniedError` if it refuses to say whether a name is free.
    """

    def __init__(
        self, context: RunContext, bucket: Bucket, cache: UploadCache, uploads: Uploads
    ) -> None:
        """Open the run of `context`; no request is sent yet."""
        self.context = context
        self.post_processing = self.is_closed = False
        self._is_deleting = False  # by a subclass's own method
        self._owner = os.getpid(), threading.get_ident()
        self._bucket, self._cache = bucket, cache
        self._seen: dict[str, None] = {}  # saved or found by this run
        self._comparison = Comparison(
            context, bucket, cache, uploads.executor, self._seen
        )
        self._tally = Tally()
        self._pending = PendingUploads(
            context, cache, uploads, self._comparison, self._tally
        )
        # Names to be deleted at the end; or not, if collectstatic only overwrites them.
        self._deletes: dict[str, bool] = {}
        self._replaced: set[str] = set()  # names whose content may not be the source's
        if context.collects:
            bucket.watch(self._before_other_request)

    @property
    def is_open(self) -> bool:
        """Whether the run answers; otherwise the storage does as django-storages."""
        has_ended = self.is_closed or self._pending.failures.end is not None
        return not (has_ended or self._is_deleting)

    # The command asks for a file.

    def exists(self, name: str) -> bool:
        """Return whether the bucket will have `name`, after all calls so far."""
        if self.will_be_deleted(name):
            return False
        if self._pending.fingerprint(name):
            return True
        remote, denial = self._comparison.remote(name), self._comparison.listing.denial
        # Saving overwrites an object that may be there, or chooses a name that is free.
        if remote is UNKNOWN and denial and not self.context.destination.overwrites:
            raise denial
        return remote is not None and remote is not UNKNOWN

    def modified_time(self, name: str, source: tuple[Storage, str]) -> datetime:
        """Return a time that makes collectstatic skip or copy the `source` of `name`.

        Raises NotImplementedError to force a copy.
        """
        if not self.context.destination.saves_as_is:
            raise NotImplementedError("A subclass overrides save.")
        newest = source[0].get_modified_time(source[1])
        pending = self._pending.fingerprint(name)
        verdict: Verdict | None
        if pending is None:
            verdict = self._comparison.verdict_of_source(name, source)
        else:
            verdict = self.context.capture_source(
                name, source, lambda payload: between(pending, payload.fingerprint)
            )
        if verdict is Verdict.UNCHANGED:
            self._note_saved(name, verdict)
            return newest
        try:
            return newest - timedelta(days=1)
        except OverflowError as error:
            raise NotImplementedError("No earlier time exists.") from error

    def read(self, name: str) -> IO[bytes] | File[bytes] | None:
        """Return the content of `name` if Django hashes it and it is on this machine.

        Otherwise make sure that the bucket has it, and return `None`.
        """
        self.check_exists(name)
        source = self.context.sources.get(name)
        is_as_saved = (
            self.context.destination.saves_as_is and name not in self._replaced
        )
        if is_as_saved and source is not None and self.bucket_name_if_hashing():
            storage, path = source
            return storage.open(path)
        self.wait_for(name)
        return None

    def check_exists(self, name: str) -> None:
        """Raise FileNotFoundError if `name` was deleted."""
        if self.will_be_deleted(name):
            key = f"{self.context.destination.prefix}{name}"
            raise FileNotFoundError(f"File does not exist: {key}")

    def bucket_name_if_hashing(self) -> str | None:
        """Return the bucket's name if Django's own post-processing calls."""
        is_hashing = self.post_processing and self.context.is_hashing()
        return self.context.destination.bucket_name if is_hashing else None

    def listed(self, folder: str, directories: list[str]) -> list[str]:
        """Return those of the `directories` of `folder` that have a file."""
        if not self._deletes and not self.context.clears:
            return directories
        names = self._comparison.listing.names() | self._seen.keys()
        left = [name for name in names if not self.will_be_deleted(name)]
        prefixes = {each: f"{folder}{each}/" for each in directories}
        return [d for d, p in prefixes.items() if any(n.startswith(p) for n in left)]

    def will_be_deleted(self, name: str) -> bool:
        """Return whether `name` was deleted, or is left over in a run that clears."""
        if name in self._deletes:
            return True
        context = self.context
        names = (self._seen, context.sources, context.kept)
        if not context.clears or any(name in each for each in names):
            return False
        return context.source_being_compared(name) is None

    # A file is saved, or deleted.

    def save(
        self,
        name: str,
        payload: Payload,
        *,
        in_memory: bool = False,
        reopen: Callable[[], Any] | None = None,
    ) -> None:
        """Upload `payload` as `name`, unless the bucket has it.

        If it is large, `reopen` opens its file again, for an upload in the background.
        """
        self._deletes.pop(name, None)
        self._pending.drafts.pop(name)
        if payload.plain is None and reopen is not None:
            self._comparison.take_hashes(name, payload)
        verdict = self._pending.verdict(name, payload)
        if verdict is not Verdict.UNCHANGED:
            # A later pass of post-processing may delete or replace a file that exists
            # in memory only. And it saves a processed file over some of the sources.
            is_first = not self.post_processing
            is_draft = name in self.context.processed if is_first else in_memory
            as_is, drafts = self.context.destination.saves_as_is, self._pending.drafts
            if not (is_draft and as_is and self._pending.hold(drafts, name, payload)):
                payload.reopen = reopen if as_is else None
                self._pending.upload(name, payload, verdict)
        is_source = reopen is not None and not self.post_processing
        (self._replaced.discard if is_source else self._replaced.add)(name)
        self._note_saved(name, verdict)

    def has_copy(self, name: str, copy: str) -> bool:
        """Return whether the bucket has the unchanged source `name` as `copy`, too."""
        known, context = self._cache.get(name), self.context
        is_known = name in self._tally.unchanged and copy not in context.sources
        if known is None or known is DOUBTFUL or not is_known:
            return False
        # The hash in the copy's name is of the content that Django has read.
        is_hash = known.fingerprint.md5[:12] in copy
        if not (is_hash and context.destination.saves_as_is):
            return False

        def judge(payload: Payload) -> Verdict:
            payload.adopt(known.fingerprint.md5, known.etag)
            return self._pending.verdict(copy, payload)

        verdict = context.capture_source(copy, context.sources[name], judge)
        if verdict is Verdict.UNCHANGED:
            self._deletes.pop(copy, None)
            self._note_saved(copy, verdict)
        return verdict is Verdict.UNCHANGED

    def delete(self, name: str) -> None:
        """Delete `name` at the end, unless it is saved again."""
        self._pending.drafts.pop(name)
        self._seen.pop(name, None)
        self._deletes[name] = self.context.source_being_compared(name) is None

    def before_write(self, name: str) -> None:
        """Prepare for a write of `name` by other means."""
        self.wait_for(name)
        if name in self._deletes:
            self._delete([name])
        self.written(name)

    def written(self, name: str) -> None:
        """Note that this thread writes `name` by other means."""
        self._pending.drafts.pop(name)
        self._deletes.pop(name, None)
        self._pending.failures.forget(name)
        self._seen[name] = None
        self._replaced.add(name)
        self._comparison.listing.invalidate(name)
        self._cache.remember(name, DOUBTFUL)

    def wait_for(self, name: str) -> None:
        """Wait until `name` has arrived; raise `UploadError` if it could not."""
        self._pending.wait_for(name)

    def wait_pending(self) -> None:
        """Send all that waits, and wait for all uploads; failures are noted only."""
        self._pending.wait_all()

    def wait_or_raise(self) -> None:
        """Wait for all uploads; raise an error that names all that failed."""
        self._pending.wait_all()
        self._pending.failures.raise_any()

    def checkpoint(self) -> None:
        """Wait, and write to the cache: the caller may go on in any way."""
        self._pending.wait()
        self._cache.flush()

    def _before_other_request(self) -> None:
        """Let a request of the site's own, in this thread, find all that was saved."""
        if self.is_open and self._is_here() and not self.context.dry_run:
            self.wait_pending()

    def _is_here(self) -> bool:
        return self._owner == (os.getpid(), threading.get_ident())

    # The end.

    def finish(self) -> Report:
        """Wait for all uploads, then delete, and report."""
        # A fork has no part in its parent's run. And another barrier, or an error that
        # was caught, may have closed the run.
        if self._owner[0] != os.getpid() or self.is_closed:
            self._pending.failures.raise_any()
            return self.report()
        with self._closing():
            self._pending.failures.raise_end()
            if not self.context.dry_run:
                self.wait_or_raise()
            self._delete(self._deletes_at_end())
            self._cache.complete()
            self.context.is_complete = True
        report = self.report()
        self.context.finished(report)
        return report

    def _deletes_at_end(self) -> set[str]:
        remote = self._comparison.remote
        names = (name for name, is_final in self._deletes.items() if is_final)
        deletes = {name for name in names if remote(name) is not None}
        if self.context.clears:
            self._comparison.prepare()
            # A name with a slash at its end stands for a folder in some tools.
            listed = self._comparison.listing.names()
            files = {name for name in listed if name and not name.endswith("/")}
            left_over = files - self._seen.keys() - self.context.sources.keys()
            if self.context.destination.has_own_delete:
                # It would delete another object, whose name is a normal form of this.
                left_over = set(filter(self.context.is_normal, left_over))
            deleted, self._tally.kept = map(
                set, self.context.split_left_over(left_over)
            )
            deletes |= deleted
        return deletes

    def _delete(self, names: Iterable[str]) -> None:
        """Delete `names`; `DeleteError` names those that could not be deleted."""
        names = sorted(names)
        if self.context.dry_run:
            self._tally.deleted += names
            return
        known = [name for name in names if self._cache.get(name)]
        if known and self.context.trusts:
            self._cache.mark(dict.fromkeys(known))
        for name in known:  # in case the outcome is never known
            self._cache.remember(name, DOUBTFUL)
        failures = {}
        for name, error in self._deletions(names):
            if error is not None:
                failures[name] = error
                continue
            self._comparison.listing.note(name, None)
            self._tally.deleted.append(name)
        if failures:
            raise DeleteError(failures)

    def _deletions(self, names: list[str]) -> Iterator[tuple[str, object]]:
        """Delete, and yield each name with its error, if any."""
        destination = self.context.destination
        if not destination.has_own_delete:
            with as_bucket_error(self._bucket.name):
                yield from self._bucket.delete(names)
            return
        self._is_deleting = True
        try:
            yield from destination.delete_each(names)
        finally:
            self._is_deleting = False

    def report(self) -> Report:
        """Return the results so far."""
        return self._tally.report(self._bucket.log.counts)

    def finish_abandoned(self) -> None:
        """End a run whose caller has left it: all that was saved is still uploaded.

        Failures are logged, because there is no caller that could be told.
        """
        if self.is_closed or self._owner[0] != os.getpid():
            return
        # Post-processing would have put other contents in the place of these.
        for name in self.context.processed - self._replaced:
            self._pending.drafts.pop(name)
        with self._closing():
            try:
                self.wait_or_raise()
            except CollectfastError as error:
                logger.error("%s", error)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Close the run after this context; after an interrupt, do not wait."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self.close(patiently=False)
            raise
        finally:
            self.close()

    def close(self, *, patiently: bool = True) -> None:
        """Cancel uploads that wait, and `patiently` wait for the others."""
        if self.is_closed or self._owner[0] != os.getpid():
            return
        self.is_closed = True
        self._bucket.close()
        self._pending.close(patiently=patiently)
        self.context.progress.close()
        if self.context.dry_run:
            self.context.closed(frozenset())
        else:
            arrived = self._tally.uploaded.keys() | self._tally.unchanged.keys()
            self.context.closed(self._seen.keys() - arrived)
            self._cache.flush()

    def _note_saved(self, name: str, verdict: Verdict) -> None:
        self._seen[name] = None
        if verdict is Verdict.UNCHANGED:
            self._tally.unchanged[name] = None
        progress = self.context.progress
        progress.advanced(int(not self.post_processing), self._tally.bytes)
