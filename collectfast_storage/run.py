"""One collectstatic, from the first question to the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from io import BytesIO
from typing import IO

from django.core.files import File

from collectfast_storage.bucket import Bucket
from collectfast_storage.clearing import Clearing
from collectfast_storage.command import Source
from collectfast_storage.content import Content
from collectfast_storage.deletion import Deletion
from collectfast_storage.etag import Fingerprint
from collectfast_storage.exceptions import DeniedError
from collectfast_storage.executor import BoundedExecutor, SerialExecutor
from collectfast_storage.inquiry import Inquiry
from collectfast_storage.ledger import Ledger, Verdict
from collectfast_storage.plan import Plan
from collectfast_storage.progress import Progress
from collectfast_storage.report import Report
from collectfast_storage.sources import CapturedSave, Sources
from collectfast_storage.upload import Uploads
from collectfast_storage.verification import Republish, Verification

_NOTHING: Republish = {}


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
        captured_save: CapturedSave,
        find_sources: Callable[[], Mapping[str, Source]] = dict,
        expected: Iterable[str] = (),
        keep: Iterable[str] = (),
        delete_one: Callable[[str], object] | None = None,
        progress: Progress | None = None,
        tell_cleared: Callable[[Iterable[str]], object] = tuple,
    ) -> None:
        """Open the run that carries out `plan`; nothing is asked of anyone yet.

        The keys `expected` will be asked for beside those of the sources; a run that
        clears leaves those to `keep` alone, and without a barrier calls `tell_cleared`
        with the names of what it cleared. See `Sources` and `Deletion` for the rest.
        """
        self.plan = plan
        self._bucket = bucket
        self._ledger = ledger
        self._progress = progress or Progress()
        self._start = time.monotonic()
        self._sources = Sources(find_sources, captured_save, bucket.name_of)
        self._uploads = Uploads(bucket, ledger, executor)
        self._deletion = Deletion(
            bucket, ledger, dry_run=plan.dry_run, delete_one=delete_one
        )
        self._inquiry = Inquiry(
            plan,
            bucket,
            ledger,
            executor,
            self._sources,
            expected,
            self._progress.start,
        )
        self._clearing = Clearing(
            plan,
            self._inquiry,
            self._sources,
            self._deletion,
            keep,
            bucket.name_of,
            tell_cleared,
        )
        # What post-processing put in the place of something, and whether by `save`.
        self._replaced: dict[str, bool] = {}
        self._verification = Verification(
            plan,
            self._inquiry,
            ledger,
            executor,
            self._sources,
            self._clearing,
            self._deletion,
            self._replaced,
            bucket.name_of,
        )
        self._held_back: dict[str, Content] = {}
        self._unchanged: set[str] = set()
        self._to_delete: set[str] = set()
        self._is_complete = False
        self.post_processing = False
        self.ended = False

    @property
    def collecting(self) -> bool:
        """Whether a command is still asking about its sources."""
        return self.plan.collects and not self.post_processing

    @property
    def stands_aside(self) -> bool:
        """Whether what is asked now is asked by a site's own `delete`."""
        return self._deletion.stands_aside

    # What the storage is asked.

    def exists(self, key: str) -> bool:
        """Tell whether the bucket will have `key`, after what was done so far."""
        if key == self._bucket.prefix:
            # Asked for the location as a whole, `--clear` has nothing to do: `finish`
            # does; without a barrier, only if there is nothing to wait for.
            self._clearing.arrived(key)
            return False
        if key in self._to_delete or self._clearing.is_left_over(key):
            return False
        if self._coming(key) is not None:
            return True
        try:
            return self._inquiry.exists(key)
        except DeniedError:
            # Saving overwrites what may be there; no name is chosen for being free.
            if self.plan.overwrites:
                return False
            raise

    def modified_time(self, key: str) -> datetime:
        """Return a time that is the verdict on `key`.

        As new as its source if the bucket holds what saving that would send, older if
        not. `NotImplementedError`, where there is no such source, makes the command
        copy without asking further.
        """
        source = self._sources.by_key.get(key)
        if source is None or not self.plan.as_is:
            raise NotImplementedError("Only a comparison of contents can tell.")
        newest = source.modified_time()
        if not self._sources.judge(key, partial(self.holds, key)):
            return newest - timedelta(days=1)
        self._unchanged.add(key)
        self._arrived(key)
        return newest

    def holds(self, key: str, content: Content) -> bool:
        """Tell whether the bucket has `content` as `key`, or will have."""
        return self._verdict(key, content) is Verdict.HELD

    def read(self, key: str) -> IO[bytes] | File[bytes] | None:
        """Return what is or will be in the bucket as `key`, if it is to be had here.

        Raises `FileNotFoundError` for what this run has deleted.
        """
        if key in self._to_delete or self._clearing.is_left_over(key):
            raise FileNotFoundError(f"File does not exist: {key}")
        if key in self._held_back:
            return BytesIO(self._held_back[key].plain or b"")
        own = self.post_processing and self.plan.as_is and key not in self._replaced
        if own and key in self._sources.by_key:
            return self._sources.by_key[key].open()
        self.settle(key)
        return None

    def settle(self, key: str) -> None:
        """Wait until what was saved as `key` is there; `UploadError` if it is not."""
        self._uploads.settle(key)

    def synchronise(self) -> None:
        """Wait for what is under way, for whoever looks at the bucket as a whole."""
        self._uploads.wait()

    def save(self, key: str, content: Content, *, final: bool) -> None:
        """Upload `content` as `key`, unless the bucket holds it.

        What is not `final` waits for the barrier, and is forgotten if it is deleted or
        saved again by then.
        """
        self._to_delete.discard(key)
        self._clearing.kept.add(key)
        if self.post_processing:
            self._replaced[key] = True
        verdict = self._verdict(key, content)
        if verdict is Verdict.HELD:
            self._unchanged.add(key)
            self._arrived(key)
            return
        self._progress.decided(self._bucket.name_of(key), verdict)
        if self.plan.dry_run or not (final or content.plain is None):
            self._held_back[key] = content
        else:
            self._held_back.pop(key, None)
            self._submit(key, content)
        self._arrived(key)

    def keep(self, key: str) -> None:
        """Leave `key` alone when clearing."""
        self._clearing.kept.add(key)

    def written(self, key: str) -> None:
        """Note that `key` was written by other means than `save`: it is to stay."""
        self._to_delete.discard(key)
        self._held_back.pop(key, None)
        if self.post_processing:
            self._replaced[key] = False
        self._clearing.kept.add(key)
        self._ledger.written(key)

    def delete(self, key: str) -> None:
        """Delete `key`: at the barrier, unless it is saved again by then."""
        self._held_back.pop(key, None)
        self._clearing.kept.discard(key)
        if self.plan.barrier:
            self._to_delete.add(key)
        elif key not in self._sources.by_key:
            # What is about to be saved is overwritten in place, without a hole.
            self._deletion.carry_out([key])

    # How it ends.

    def wait(self) -> None:
        """Wait for all that was saved; `UploadError` says what did not arrive."""
        for key in list(self._held_back):
            self._submit(key, self._held_back.pop(key))
        self._uploads.wait()

    def finish(self, republish: Republish = _NOTHING, *, hashed: bool = True) -> Report:
        """Be the barrier: wait, then delete what is left to delete, then report.

        In a run that clears, that is all but the sources and what was saved. What
        another program wrote meanwhile is put right: what was made of the sources, by
        calling what the keys of `republish` stand for, which are not told by content.
        Those of all else that was made are, if they are `hashed`.
        """
        if self.ended:  # In a child of the process that this run belongs to.
            return self.report()
        if not self.plan.dry_run:
            self.wait()
        # What was only held back was never there.
        leaving = {key for key in self._to_delete if self._inquiry.may_exist(key)}
        self._deletion.carry_out(leaving | self._clearing.left_over())
        wrote = self._uploads.arrived or self._deletion.deleted
        if wrote and self.plan.collects and not self.plan.dry_run:
            self._verification.carry_out(
                self._submit, self.wait, republish, hashed=hashed
            )
        self._is_complete = self.plan.collects
        return self.report()

    def report(self) -> Report:
        """Say what was done so far."""
        uploaded = self._uploads.arrived
        return Report(
            uploaded=self._names(uploaded),
            unchanged=self._names(self._unchanged - uploaded),
            deleted=self._names(self._deletion.deleted),
            bytes=self._uploads.bytes,
            seconds=time.monotonic() - self._start,
            requests=dict(self._bucket.requests),
        )

    def close(self) -> None:
        """End the run, whether or not it got to its barrier; remember what arrived."""
        self._end(self._uploads.close)

    def abandon(self) -> None:
        """End the run where nobody is left to wait for it, as after an interrupt."""
        self._end(self._uploads.abandon)

    def _end(self, end_uploads: Callable[[], object]) -> None:
        if self.ended:
            return
        self.ended = True
        self._progress.close()
        end_uploads()
        if not self.plan.dry_run:
            self._ledger.flush(complete=self._is_complete)

    def _verdict(self, key: str, content: Content) -> Verdict:
        coming = self._coming(key)
        if coming is not None:
            return Verdict.between(coming, content.fingerprint)
        return self._inquiry.verdict(key, content)

    def _coming(self, key: str) -> Fingerprint | None:
        held_back = self._held_back.get(key)
        return held_back.fingerprint if held_back else self._uploads.coming(key)

    def _submit(self, key: str, content: Content) -> None:
        self._uploads.submit(key, content)
        if not self.plan.barrier:
            self.settle(key)

    def _arrived(self, key: str) -> None:
        """Count `key`; without a barrier, clear once the last source is there."""
        self._progress.advanced(int(not self.post_processing), self._uploads.bytes)
        self._clearing.arrived(key)

    def _names(self, keys: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(map(self._bucket.name_of, keys)))
