"""One run, of a collectstatic or of a program's batch, from its first call to its end.

The methods of `Run` are in the order of their calls: the command compares a file, then
saves it, and the run uploads it. At the end the run deletes objects, and reports.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import IO, Any

from django.core.files import File
from django.core.files.storage import Storage

from collectfast_storage.comparison import Comparison
from collectfast_storage.context import RunContext
from collectfast_storage.decision import DOUBTFUL, UNKNOWN, Remote, Verdict
from collectfast_storage.exceptions import CollectfastError, DeleteError, UploadError
from collectfast_storage.payload import Payload
from collectfast_storage.reporting import Report, Tally
from collectfast_storage.s3.bucket import Bucket
from collectfast_storage.s3.errors import as_bucket_error
from collectfast_storage.s3.listing import Listing
from collectfast_storage.upload_cache import UploadCache
from collectfast_storage.uploads import BoundedExecutor, Uploads

logger = logging.getLogger("collectfast_storage")


class Deletes:
    """Names that a run deletes at its end, unless they are saved again."""

    def __init__(
        self,
        context: RunContext,
        bucket: Bucket,
        cache: UploadCache,
        listing: Listing,
        seen: Mapping[str, None],
        tally: Tally,
    ) -> None:
        """Delete from `bucket`; with ``--clear`` also names that were not `seen`."""
        self._context, self._bucket, self._cache = context, bucket, cache
        self._listing, self._seen, self._tally = listing, seen, tally
        # Whether a name is deleted at the end, or is only overwritten by collectstatic.
        self._names: dict[str, bool] = {}
        self.is_deleting = False  # by a subclass's own method

    def __bool__(self) -> bool:
        """Return whether files that were listed may be deleted at the end."""
        return bool(self._names or self._context.clears)

    def add(self, name: str) -> None:
        """Delete `name` at the end, unless the command is about to overwrite it."""
        self._names[name] = self._context.source_being_compared(name) is None

    def discard(self, name: str) -> bool:
        """Do not delete `name`; return whether it would have been deleted."""
        return self._names.pop(name, None) is not None

    def include(self, name: str) -> bool:
        """Return whether `name` was deleted, or is deleted by ``--clear``."""
        if name in self._names:
            return True
        context = self._context
        kept = (self._seen, context.sources, context.kept)
        if not context.clears or any(name in names for names in kept):
            return False
        return context.source_being_compared(name) is None

    def at_end(self, remote: Callable[[str], Remote | None]) -> set[str]:
        """Return the names to delete, if all other calls of the run have succeeded."""
        names = (name for name, is_final in self._names.items() if is_final)
        deletes = {name for name in names if remote(name) is not None}
        context = self._context
        if not context.clears:
            return deletes
        # A name that ends with a slash stands for a folder in some tools.
        listed = self._listing.names()
        files = {name for name in listed if name and not name.endswith("/")}
        collected = {name for name in context.sources if not context.is_left_out(name)}
        left_over = files - self._seen.keys() - collected
        if context.destination.has_own_delete:
            # It would delete another object, which has the normal form of this name.
            left_over = set(filter(context.is_normal, left_over))
        deleted, self._tally.kept = map(set, context.split_left_over(left_over))
        return deletes | deleted

    def carry_out(self, names: Iterable[str]) -> None:
        """Delete `names`; `DeleteError` names those that could not be deleted."""
        names = sorted(names)
        if self._context.dry_run:
            self._tally.deleted += names
            return
        cached = [name for name in names if self._cache.get(name)]
        if cached and self._context.trusts_cache:
            self._cache.mark(dict.fromkeys(cached))
        for name in cached:  # until the outcome is known
            self._cache.remember(name, DOUBTFUL)
        failures = {}
        for name, error in self._outcomes(names):
            if error is not None:
                failures[name] = error
                continue
            self._listing.note(name, None)
            self._tally.deleted.append(name)
        if failures:
            raise DeleteError(failures)

    def _outcomes(self, names: list[str]) -> Iterator[tuple[str, object]]:
        """Delete, and yield each name with its error, if any."""
        destination = self._context.destination
        if not destination.has_own_delete:
            with as_bucket_error(self._bucket.name):
                yield from self._bucket.delete(names)
            return
        self.is_deleting = True
        try:
            yield from destination.delete_each(names)
        finally:
            self.is_deleting = False


class Run:
    """The calls of one collectstatic or batch, one after another.

    Uploads run in the background until `finish`.

    Names are relative to the location. Methods raise `BucketError` if the bucket cannot
    be used, and `DeniedError` if it refuses to say whether a name is free.
    """

    def __init__(
        self,
        context: RunContext,
        bucket: Bucket,
        cache: UploadCache,
        executor: BoundedExecutor,
    ) -> None:
        """Open the run of `context`; its end shuts down `executor`.

        No request is sent yet.
        """
        self.context = context
        self.post_processing = False
        self._is_closed = False
        self._pid, self._thread = os.getpid(), threading.get_ident()
        self._has_own_save = context.destination.has_own_save
        self._bucket, self._cache, self._tally = bucket, cache, Tally()
        self._seen: dict[str, None] = {}  # saved or found by this run
        listing = Listing(bucket, context.destination.parameters_of, executor)
        self._uploads = Uploads(context, bucket, cache, executor, listing, self._tally)
        self._comparison = Comparison(
            context, bucket, cache, listing, self._uploads, self._seen
        )
        self.deletes = Deletes(context, bucket, cache, listing, self._seen, self._tally)
        self._replaced: set[str] = set()  # names whose content may not be the source's
        context.read = self._read_object
        if context.collects:
            bucket.watch(self._before_other_request)

    @property
    def is_closed(self) -> bool:
        """Whether the run has ended, or belongs to a parent process."""
        return self._is_closed or self._pid != os.getpid()

    @property
    def is_open(self) -> bool:
        """Whether the run answers. Otherwise django-storages answers."""
        return not (
            self.is_closed or self.deletes.is_deleting or self._uploads.failures.end
        )

    # The command compares or reads a file.

    def exists(self, name: str) -> bool:
        """Return whether the bucket will contain `name`, after all calls so far."""
        is_left_out = self.context.is_left_out(name)
        if is_left_out and self.context.source_being_compared(name) is not None:
            return self.context.is_in_live_release(name)
        if self.deletes.include(name):
            return False
        # Post-processing finds each original, because `read` opens the source.
        if is_left_out and self.post_processing and name in self.context.sources:
            return True
        if self._uploads.fingerprint(name):
            return True
        remote, denial = self._comparison.remote(name), self._comparison.listing.denial
        # If saving does not overwrite, the name must be free.
        if remote is UNKNOWN and denial and not self.context.destination.overwrites:
            raise denial
        exists = remote is not None and remote is not UNKNOWN
        if not exists:
            is_new = remote is None
            self._show_dry_run(name, Verdict.ABSENT if is_new else Verdict.UNCERTAIN)
        return exists

    def _show_dry_run(self, name: str, verdict: Verdict) -> None:
        """Show the reason for an upload, which a dry run does not save."""
        if self.context.dry_run and self.context.source_being_compared(name):
            self.context.progress.decided(name, str(verdict.value))

    def modified_time(self, name: str, source: tuple[Storage, str]) -> datetime:
        """Return a time that makes collectstatic skip or copy the `source` of `name`.

        Raises NotImplementedError to force a copy.
        """
        if self._has_own_save:
            raise NotImplementedError("A subclass overrides save.")
        newest = source[0].get_modified_time(source[1])
        if self.context.is_left_out(name):
            self._advance()
            return newest
        verdict = self._comparison.verdict_of_source(name, source)
        if verdict is Verdict.UNCHANGED:
            self._note_saved(name, verdict)
            return newest
        self._show_dry_run(name, verdict)
        try:
            return newest - timedelta(days=1)
        except OverflowError as error:
            raise NotImplementedError("No earlier time exists.") from error

    def read(self, name: str) -> IO[bytes] | File[bytes] | None:
        """Open the source of `name` if the object would have the same content.

        This is done only while Django hashes the file, or if only its hashed name is
        uploaded. Otherwise make sure that the bucket has it, and return `None`.
        """
        self.check_exists(name)
        source = self.context.sources.get(name)
        is_same = name not in self._replaced and not self._has_own_save
        is_read = self.context.is_left_out(name) or self.bucket_name_if_hashing()
        if source is not None and is_same and is_read:
            return source[0].open(source[1])
        self.wait_for(name)
        return None

    def _read_object(self, name: str) -> bytes | None:
        """Return the content of the object `name`; `None` if there is none."""
        destination = self.context.destination
        parameters = destination.parameters_of(destination.key_of(name))
        with as_bucket_error(self._bucket.name):
            return self._bucket.read(name, parameters)

    def check_exists(self, name: str) -> None:
        """Raise FileNotFoundError if `name` was deleted."""
        if self.deletes.include(name):
            key = f"{self.context.destination.prefix}{name}"
            raise FileNotFoundError(f"File does not exist: {key}")

    def bucket_name_if_hashing(self) -> str | None:
        """Return the bucket's name if Django's post-processing hashes a file."""
        is_hashing = self.post_processing and self.context.is_hashing()
        return self.context.destination.bucket_name if is_hashing else None

    def listed(self, folder: str, directories: list[str]) -> list[str]:
        """Return those of the `directories` of `folder` that contain a file."""
        if not self.deletes:
            return directories
        names = self._comparison.listing.names() | self._seen.keys()
        left = [name for name in names if not self.deletes.include(name)]
        prefixes = {each: f"{folder}{each}/" for each in directories}
        return [d for d, p in prefixes.items() if any(n.startswith(p) for n in left)]

    # The command saves or deletes a file.

    def save(
        self,
        name: str,
        payload: Payload,
        *,
        in_memory: bool = False,
        reopen: Callable[[], Any] | None = None,
    ) -> None:
        """Upload `payload` as `name`, unless it is unchanged.

        If it is large, `reopen` opens its file again, for an upload in the background.
        """
        is_original = reopen is not None and not self.post_processing
        if is_original and self.context.is_left_out(name):
            self._advance()
            return
        self.deletes.discard(name)
        self._uploads.drafts.take(name)
        payload.parameters = self._parameters(name, payload)
        if payload.plain is None and reopen is not None:
            self._comparison.reuse_hashes(name, payload)
        verdict = self._comparison.verdict(name, payload)
        # Post-processing may delete or replace a file that exists in memory only, and
        # replaces some of the sources. Such files are held back, because their upload
        # may be unnecessary.
        replaced = self.context.overwritten_by_processing
        is_draft = in_memory if self.post_processing else name in replaced
        is_draft = is_draft and not self._has_own_save
        is_changed = verdict is not Verdict.UNCHANGED
        if is_changed and not (is_draft and self._uploads.hold(name, payload)):
            payload.reopen = None if self._has_own_save else reopen
            self._upload(name, payload, verdict)
        if is_original:
            self._replaced.discard(name)
        else:
            self._replaced.add(name)
        self._note_saved(name, verdict)

    def _upload(self, name: str, payload: Payload, verdict: Verdict) -> None:
        """Upload `payload` in the background, unless this is a dry run."""
        reason = self._comparison.reason(name, payload, verdict)
        self.context.progress.decided(name, reason)
        if self.context.dry_run:
            return
        self._uploads.add(name, payload)
        if self._has_own_save:
            self.wait_for(name)

    def has_copy(self, name: str, copy: str) -> bool:
        """Return whether the unchanged source `name` is in the bucket as `copy` too."""
        context, cached = self.context, self._cache.get(name)
        if cached is None or cached is DOUBTFUL or name not in self._tally.unchanged:
            return False
        # The copy's name contains a hash of the content that Django has read.
        is_copy = cached.fingerprint.md5[:12] in copy and copy not in context.sources
        if self._has_own_save or not is_copy:
            return False

        def judge(payload: Payload) -> Verdict:
            payload.parameters = self._parameters(copy, payload)
            payload.adopt(cached.fingerprint.md5, cached.etag)
            return self._comparison.verdict(copy, payload)

        verdict = context.capture_source(copy, context.sources[name], judge)
        if verdict is Verdict.UNCHANGED:
            self.deletes.discard(copy)
            self._note_saved(copy, verdict)
        return verdict is Verdict.UNCHANGED

    def _parameters(self, name: str, payload: Payload) -> dict[str, Any]:
        """Return the parameters of an upload of `payload` as `name`."""
        hashed_parameters = self.context.hashed_parameters
        is_hashed = self.post_processing and self.context.is_hashed_name(name)
        if not (hashed_parameters and is_hashed):
            return payload.parameters
        return {**payload.parameters, **hashed_parameters}

    def delete(self, name: str) -> None:
        """Delete `name` at the end, unless it is saved again."""
        self._uploads.drafts.take(name)
        self._seen.pop(name, None)
        self.deletes.add(name)

    def before_write(self, name: str) -> None:
        """Prepare for a write of `name` that this run does not upload."""
        self.wait_for(name)
        if self.deletes.discard(name):
            self.deletes.carry_out([name])
        self.written(name)

    def written(self, name: str) -> None:
        """Note that this thread writes `name` without this run."""
        self._uploads.drafts.take(name)
        self.deletes.discard(name)
        self._uploads.forget(name)
        self._seen[name] = None
        self._replaced.add(name)
        self._comparison.listing.invalidate(name)
        self._cache.remember(name, DOUBTFUL)

    def wait_for(self, name: str) -> None:
        """Wait until `name` has arrived; raise `UploadError` if it could not."""
        draft = self._uploads.drafts.take(name)
        if draft is not None:
            self._upload(name, draft, self._comparison.verdict(name, draft))
        self._uploads.wait(name)
        error = self._uploads.failures.errors.get(name)
        if error is not None:
            raise UploadError({name: error}) from error

    def wait_pending(self) -> None:
        """Upload all drafts, and wait for all uploads; failures are only noted."""
        for name, draft in self._uploads.drafts.take_all().items():
            self._upload(name, draft, self._comparison.verdict(name, draft))
        self._uploads.wait_all()

    def wait_or_raise(self) -> None:
        """Wait for all uploads; raise an error that names all that failed."""
        if self._uploads.failures.end is None:
            self.wait_pending()
        self._uploads.failures.raise_any()

    def checkpoint(self) -> None:
        """Wait, and write to the cache, because the caller may not finish the run."""
        self._uploads.wait_all()
        self._cache.flush()

    def _before_other_request(self) -> None:
        """Wait, so that a site's own request in this thread finds all saved files."""
        is_here = self._thread == threading.get_ident()
        if self.is_open and is_here and not self.context.dry_run:
            self.wait_pending()

    # The end.

    def finish(self) -> Report:
        """Wait for all uploads, then delete, and report."""
        # Another barrier, or an error that was caught, may have closed the run.
        if self.is_closed:
            self._uploads.failures.raise_any()
            return self._tally.report(self._bucket.log.counts)
        with self._closing():
            if not self.context.dry_run:
                self.wait_or_raise()
            self.deletes.carry_out(self.deletes.at_end(self._comparison.remote))
            self._cache.complete()
            self.context.is_complete = True
        report = self._tally.report(self._bucket.log.counts)
        self.context.finished(report)
        return report

    def finish_abandoned(self) -> None:
        """End a run that its caller has abandoned, and upload all files saved so far.

        Failures are logged, because an exception would reach another caller.
        """
        if self.is_closed:
            return
        # Post-processing would have replaced these contents.
        for name in self.context.overwritten_by_processing - self._replaced:
            self._uploads.drafts.take(name)
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
            self.close(wait=False)
            raise
        finally:
            self.close()

    def close(self, *, wait: bool = True) -> None:
        """Cancel uploads that have not begun, and `wait` for the others."""
        if self.is_closed:
            return
        self._is_closed = True
        self._bucket.close()
        self._uploads.close(wait=wait)
        self.context.progress.close()
        self.context.closed(self._uploads.failures.errors.keys())
        if not self.context.dry_run:
            self._cache.flush()

    def _note_saved(self, name: str, verdict: Verdict) -> None:
        self._seen[name] = None
        if verdict is Verdict.UNCHANGED:
            self._tally.unchanged[name] = None
        self._advance()

    def _advance(self) -> None:
        self.context.progress.advanced(not self.post_processing, self._tally.bytes)
