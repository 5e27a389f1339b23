"""One run, a collectstatic's or a program's batch, from the first question to the end.

What happens to a file reads from top to bottom: it is asked about, judged, saved,
uploaded, and remembered; at the end come deletes, and the report.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from io import BytesIO
from math import inf
from queue import SimpleQueue
from time import monotonic
from types import MappingProxyType
from typing import IO, Any

from botocore.exceptions import BotoCoreError, ClientError
from django.core.files import File
from django.core.files.storage import Storage

from collectfast_storage.decision import (
    DOUBTFUL,
    UNASKED,
    UNKNOWN,
    Remembered,
    Remote,
    Verdict,
    between,
    decide,
)
from collectfast_storage.exceptions import (
    BucketError,
    DeleteError,
    UploadError,
    reason_of,
)
from collectfast_storage.fingerprint import Fingerprint
from collectfast_storage.memory import Memory
from collectfast_storage.payload import Payload
from collectfast_storage.reporting import Progress, Report, difference
from collectfast_storage.s3.bucket import Bucket
from collectfast_storage.s3.errors import concerns_bucket, naming
from collectfast_storage.s3.listing import Listing
from collectfast_storage.uploads import BoundedExecutor, Outcome, Uploads

logger = logging.getLogger("collectfast_storage")

# So many objects are asked for their metadata, in case their ETags are opaque; where
# one of them is, so are all that an ETag cannot decide.
_SAMPLE = 8
# After so many failures of one reason, and nothing else, all others would fail too.
_ENOUGH_ALIKE = 20
# Drafts wait in memory up to this; beyond, they go up, which costs an upload.
_MOST_BYTES_OF_DRAFTS = 32 * 1024 * 1024

# The files that collectstatic copies, by name: their storage, and the path in it.
Paths = Mapping[str, tuple[Storage, str]]


class Caller:
    """Who a run is for, and what it is to do; here, a program's batch."""

    collects = False
    dry_run = False
    clears = False
    post_processes = True
    sources: Paths = MappingProxyType({})
    wanted: list[str] | None = None  # what will be asked for, sorted; None: not known
    spared: Collection[str] = ()  # names that clearing leaves alone
    processed: Collection[str] = ()  # sources whose names post-processing will save
    copied_before: Collection[str] = ()  # names that count as copied before this run
    progress = Progress()

    def __init__(
        self, storage: Any, *, lists: bool | None = None, trusts: bool | None = None
    ) -> None:
        """Stand for a program, which `lists` the bucket ahead, or `trusts` memory."""
        preload = storage._collectfast_options.preload
        self.ignores_etag: bool = storage._collectfast_options.ignore_etag
        self.storage = storage
        self._names: dict[str, str] = {}
        self.lists = preload if lists is None else lists
        self.trusts = not self.lists if trusts is None else trusts
        # A site's own may look at its object at once.
        self.saves_as_is = not overridden(type(storage), "save", "_save")

    def name_of(self, name: str) -> str:
        """Return `name` as a run has it; it is asked for again and again."""
        if name not in self._names:
            normal = self.storage._collectfast_name(name)
            self._names[name] = name if name == normal else normal
        return self._names[name]

    def tell(self, report: Report) -> None:
        """Hear of the end."""

    def close(self, arrived: Collection[str] | None) -> None:
        """Hear that the run is over; if it failed at its end, what had `arrived`."""


def overridden(cls: type, *names: str) -> type | None:
    """Return which class of a site's own, from `cls` up, has one of the `names`."""
    libraries = ("builtins", "django.", "storages.", "collectfast_storage.")
    having = (each for each in cls.__mro__ if {*names} & vars(each).keys())
    own = (each for each in having if not each.__module__.startswith(libraries))
    return next(own, None)


class Run:
    """What is asked and done in one thread; failures and deletes wait for `finish`.

    Names are those below the location. Raises `BucketError` where the bucket cannot be
    used, and as such a `DeniedError` where a free name must not be asked for.
    """

    def __init__(
        self, caller: Caller, bucket: Bucket, memory: Memory, uploads: Uploads
    ) -> None:
        """Open the run for `caller`; nothing is asked of anyone yet."""
        self.caller = caller
        self.post_processing = False
        self.is_open = True  # It answers; or else django-storages does.
        self.is_closed = self._is_complete = False
        self._pid = os.getpid()
        self._bucket = bucket
        self._memory = memory
        self._uploads = uploads
        parameters = caller.storage.get_object_parameters
        self._listing = Listing(bucket, parameters, uploads.executor)
        self._start = monotonic()
        self._is_prepared = False
        self._ahead: dict[str, Payload] = {}  # sources that were read and hashed
        self._heads_left, self._has_asked_ahead = float(_SAMPLE), False
        self._drafts: dict[str, Payload] = {}
        self._room_for_drafts = _MOST_BYTES_OF_DRAFTS
        self._failed: dict[str, tuple[Fingerprint, Exception]] = {}
        self._last_reason, self._in_a_row = "", 0  # of failures, with no success since
        self._unchanged: dict[str, None] = {}  # Dicts take a third of what sets do.
        self._uploaded: dict[str, None] = {}
        self._bytes, self._for_headers = 0, 0  # uploaded; and files that go up for them
        self._leaving: set[str] = set()  # to be deleted at the end
        self._deleted: list[str] = []
        self._spared: set[str] = set()
        self._seen: dict[str, None] = {}  # saved or found there, and not to be cleared
        self._replaced: set[str] = set()  # saved in post-processing
        # What other threads and runs wrote, until this run's own thread takes note.
        self._touched: SimpleQueue[str] = SimpleQueue()

    # A file is asked about.

    def exists(self, name: str) -> bool:
        """Tell whether the bucket will have `name`, after what was done so far."""
        self._catch_up()
        # Of the location as a whole: `--clear` has nothing to do before the end.
        if not name or self._is_leaving(name):
            return False
        if self._coming(name):
            return True
        remote, denial = self._remote(name), self._listing.denial
        # Saving overwrites what may be there, or else a name is chosen for being free.
        if remote is UNKNOWN and denial and not self.caller.storage.file_overwrite:
            raise denial
        return remote is not None and remote is not UNKNOWN

    def modified_time(self, name: str) -> datetime:
        """Return a time that is the verdict; or raise what has the command copy."""
        self._catch_up()
        source = self.caller.sources.get(name)
        if source is None or not self.caller.saves_as_is:
            raise NotImplementedError("Only a comparison of contents can tell.")
        newest = source[0].get_modified_time(source[1])
        if self._judge_source(name) is Verdict.HELD:
            self._has_arrived(name, Verdict.HELD)
            return newest
        try:
            return newest - timedelta(days=1)
        except OverflowError as error:
            raise NotImplementedError("No time is older than that.") from error

    def read(self, name: str) -> IO[bytes] | File[bytes] | None:
        """Return what is or will be in the bucket, if it is to be had here."""
        self._catch_up()
        if name in self._drafts:
            return BytesIO(self._drafts[name].plain or b"")
        if self._is_leaving(name):
            raise FileNotFoundError(f"File does not exist: {name}")
        is_source = self.caller.saves_as_is and name not in self._replaced
        if self.post_processing and is_source and name in self.caller.sources:
            return self._open_source(name)
        self.settle(name)
        return None

    # It is judged.

    def _judge_source(self, name: str) -> Verdict:
        ahead = self._ahead.pop(name, None)
        if ahead is not None:
            return self._verdict(name, ahead)
        verdicts: list[Verdict] = []
        self._capture(name, lambda *what: verdicts.append(self._verdict(*what)))
        return verdicts[0] if len(verdicts) == 1 else Verdict.UNCERTAIN

    def _verdict(self, name: str, payload: Payload) -> Verdict:
        """Return whether the bucket has `payload` as `name`, or will have it."""
        coming = self._coming(name)
        if coming is not None:
            return between(coming, payload.fingerprint)
        remembered, forced = self._memory.get(name), self.caller.ignores_etag
        remote = self._remote(name)
        verdict = decide(payload, remote, remembered, forced)
        if verdict is Verdict.ASK and self._is_worth_a_head(payload):
            self._listing.ask([name])
            remote = self._listing[name]
            verdict = decide(payload, remote, remembered)
            if verdict is Verdict.HELD:  # It was worth it, and may be for others.
                self._heads_left = inf
        if verdict is Verdict.HELD and remote is not None and remote is not UNASKED:
            remembered = Remembered(payload.fingerprint, remote.etag)
            self._memory.remember(name, remembered)
        if remembered and remembered.etag == remembered.fingerprint.md5:
            self._bucket.learn(opaque=False)
        return Verdict.CONTENT if verdict is Verdict.ASK else verdict

    def _remote(self, name: str) -> Remote | None:
        """Return what the bucket holds as `name`; `UNASKED` where memory will do."""
        self._prepare()
        remembered = self._memory.get(name) if self.caller.trusts else None
        if remembered is not None and remembered is not DOUBTFUL:
            return UNASKED
        return self._listing[name]

    def _is_worth_a_head(self, payload: Payload) -> bool:
        """Tell whether metadata may decide where an ETag cannot."""
        if self.caller.collects and self.caller.lists and not self._has_asked_ahead:
            self._has_asked_ahead = True
            self._ask_ahead(everything=payload.has_opaque_etag)
        self._heads_left -= 1
        is_opaque = payload.has_opaque_etag or self._bucket.has_opaque_etags
        return bool(is_opaque) or self._heads_left >= 0

    def _ask_ahead(self, *, everything: bool) -> None:
        """Ask, side by side, for a few that no ETag can decide; or for all of them."""
        self._read_ahead(lambda: False)
        undecided = self._judged(self._ahead, Verdict.ASK)
        sample = undecided[:: -(-len(undecided) // _SAMPLE) or 1]
        self._heads_left -= len(sample)
        listed = [self._listing[name] for name in sample]
        self._listing.ask(sample)
        held = self._judged(sample, Verdict.HELD)
        is_much = len(undecided) >= _SAMPLE and not held
        if is_much and all(map(self._is_told_otherwise, sample, listed)):
            self._bucket.learn(opaque=True)
            text = "The ETags of the bucket %r tell nothing: %d files go up again."
            logger.warning(text, self._bucket.name, len(undecided))
        if everything or held or self._bucket.has_opaque_etags:
            self._heads_left = inf
            hashed = {*(self.caller.wanted or ())} - self.caller.sources.keys()
            unknown = sorted(name for name in hashed if not self._memory.get(name))
            self._listing.ask([*undecided, *unknown])

    def _judged(self, names: Iterable[str], verdict: Verdict) -> list[str]:
        """Return which of `names`, of sources read ahead, get this `verdict`."""
        sent, there, known = self._ahead, self._listing, self._memory.get
        return [n for n in names if decide(sent[n], there[n], known(n)) is verdict]

    def _is_told_otherwise(self, name: str, listed: Remote | None) -> bool:
        """Tell whether HEAD differs from LIST, or both from the upload's answer."""
        sent, remembered = self._ahead[name].fingerprint, self._memory.get(name)
        is_known = remembered is not None and remembered.fingerprint == sent
        asked = self._listing[name]
        return is_known or (asked and asked.etag) != (listed and listed.etag)

    def _prepare(self) -> None:
        """List the bucket, and read sources while it answers."""
        if self._is_prepared:
            return
        self._is_prepared = True
        caller = self.caller
        caller.progress.start(len(caller.sources))
        if not caller.lists:
            return
        with naming(self._bucket.name):
            self._bucket.client  # noqa: B018 (made in this thread)
        # Not in a thread of the executor, which has to run what this waits for.
        loader = BoundedExecutor(1)
        listing = loader.submit(self._listing.load, caller.wanted, caller.clears)
        try:
            if caller.saves_as_is:
                self._read_ahead(listing.done)
            listing.result()
        finally:
            loader.shutdown(wait=False)

    def _read_ahead(self, is_enough: Callable[[], bool]) -> None:
        """Read and hash sources; of what was read only the hashes are kept."""
        for name in self.caller.sources:
            if is_enough():
                return
            if name not in self._ahead and name not in self._seen:
                with suppress(OSError):  # The command will meet it, and name it.
                    self._capture(name, self._keep)

    def _keep(self, name: str, payload: Payload) -> None:
        # What is remembered need not be compressed to be compared.
        remembered = payload.compresses and self._memory.get(name)
        if payload.plain is not None and not remembered and payload.settle():
            self._ahead[name] = payload

    def _capture(self, name: str, take: Callable[[str, Payload], object]) -> None:
        """Call `take` with the source `name`, and what saving it would send."""
        capture = self.caller.storage._collectfast_capture
        with self._open_source(name) as file:
            capture(name, file, lambda _, payload: take(name, payload))

    def _open_source(self, name: str) -> File[bytes]:
        storage, path = self.caller.sources[name]
        return storage.open(path)

    # It is saved, or deleted.

    def save(self, name: str, payload: Payload, *, in_memory: bool = False) -> None:
        """Upload `payload` as `name`, unless the bucket holds it."""
        self._catch_up()
        self._leaving.discard(name)
        if self.post_processing:
            self._replaced.add(name)
        elif name in self.caller.processed:
            return  # That puts another content in its place.
        verdict = self._verdict(name, payload)
        if verdict is not Verdict.HELD:
            is_for_headers = verdict is Verdict.HEADERS
            why = self._changed(name, payload) if is_for_headers else verdict.value
            self._withdraw(name)
            size = len(payload.plain or b"")
            # A later pass may delete or replace what is in memory only: it waits.
            is_draft = in_memory and self.post_processing and self.caller.saves_as_is
            if is_draft and 0 < size <= self._room_for_drafts:
                self._drafts[name] = payload
                self._room_for_drafts -= size
            else:
                self._upload(name, payload, why)
        self._has_arrived(name, verdict)

    def has_copy(self, name: str, copy: str) -> bool:
        """Save what was hashed of the source `name` as `copy`, if it is known there."""
        known, sent = self._memory.get(name), list[Payload]()
        is_known = name in self._unchanged and copy not in self.caller.sources
        if known is None or known is DOUBTFUL or not is_known:
            return False
        # The hash in a name is of what Django has read by now.
        if self.caller.saves_as_is and known.fingerprint.md5[:12] in copy:
            capture = self.caller.storage._collectfast_capture
            with self._open_source(name) as file:
                capture(copy, file, lambda _, payload: sent.append(payload))
        for payload in sent:
            payload.adopt(known.fingerprint.md5, known.etag)
            if self._verdict(copy, payload) is Verdict.HELD:
                self._leaving.discard(copy)
                self._has_arrived(copy, Verdict.HELD)
                return True
        return False

    def _changed(self, name: str, payload: Payload) -> str:
        """Say why `name` goes up; once most do for headers alone, for which."""
        files, self._for_headers = len(self.caller.sources), self._for_headers + 1
        if self._for_headers != files // 2 + 1 or not files:
            return Verdict.HEADERS.value
        changed, sent = "which, a HEAD does not tell", payload.parameters
        with suppress(BucketError), naming(self._bucket.name):
            headers = self._uploads.executor.submit(self._bucket.headers, name, sent)
            changed = difference(headers.result() or {}, sent) or changed
        text = "Most files go up to the bucket %r for headers alone; of %r, %s."
        logger.warning(text, self._bucket.name, name, changed)
        return f"{Verdict.HEADERS.value}: {changed}"

    def _withdraw(self, name: str) -> None:
        """Forget the draft of `name`, if there is one."""
        if draft := self._drafts.pop(name, None):
            self._room_for_drafts += len(draft.plain or b"")

    def delete(self, name: str) -> None:
        """Delete `name` at the end, unless it is saved again by then."""
        self._catch_up()
        self._withdraw(name)
        self._seen.pop(name, None)
        self._leaving.add(name)

    def touched(self, name: str) -> None:
        """Take note, from any thread, that `name` was written by other means."""
        self._touched.put(name)

    def _catch_up(self) -> None:
        """Let what was written by other means stay, and ask for it when it matters."""
        while not self._touched.empty():
            name = self._touched.get()
            self._withdraw(name)
            self._failed.pop(name, None)
            self._leaving.discard(name)
            self._seen[name] = None
            if self.post_processing:
                self._replaced.add(name)
            self._listing.forget(name)
            self._memory.remember(name, None)

    # It is uploaded, and remembered.

    def _upload(self, name: str, payload: Payload, why: str) -> None:
        self.caller.progress.decided(name, why)
        if self.caller.dry_run:
            return
        self._note(self._uploads.done())
        self._note(self._uploads.wait(name))  # Two might arrive in any order.
        self._failed.pop(name, None)
        before, headers = self._memory.get(name), payload.fingerprint.headers
        # An ETag that changes tells that memory is old; headers change none.
        if before and (self.caller.trusts or before.fingerprint.headers != headers):
            self._memory.begin()
        if before:  # Until it is known what became of it.
            self._memory.remember(name, DOUBTFUL)
        # The first tells what ETags are like, lest more go twice; a stream closes soon.
        waits = payload.plain is None or self._bucket.has_opaque_etags is None
        with naming(self._bucket.name):
            self._uploads.submit(name, payload)
        if not self.caller.saves_as_is:
            self.settle(name)
        elif waits:
            self._note(self._uploads.wait(name))

    def _note(self, outcomes: Iterable[Outcome]) -> None:
        for name, fingerprint, stored, error in outcomes:
            if stored is not None:
                self._listing.note(name, Remote(stored.etag, ""))
                self._memory.remember(name, Remembered(fingerprint, stored.etag))
                self._uploaded[name] = None
                self._bytes += stored.size
                self._in_a_row = 0
            elif error is not None:
                # It may have arrived all the same.
                self._listing.forget(name)
                self._memory.remember(name, DOUBTFUL)
                self._failed[name] = fingerprint, error
                if not self.is_closed:
                    self._stop_if_hopeless(error)

    def _stop_if_hopeless(self, error: Exception) -> None:
        """Try no more, and raise, where all else would fail of the same `error`."""
        reason = reason_of(error)
        self._in_a_row = self._in_a_row + 1 if reason == self._last_reason else 1
        self._last_reason = reason
        if concerns_bucket(error):
            hopeless: Exception = BucketError(self._bucket.name, error)
        elif self._in_a_row >= _ENOUGH_ALIKE:
            failed = {name: error for name, (_, error) in self._failed.items()}
            hopeless = UploadError(failed, tried_all=False)
        else:
            return
        self._uploads.executor.governor.stop(error)
        self._memory.flush()
        raise hopeless from error

    def _coming(self, name: str) -> Fingerprint | None:
        """Return the fingerprint of what is not known to have arrived as `name`."""
        if name in self._drafts:
            return self._drafts[name].fingerprint
        failed = self._failed.get(name)
        return failed[0] if failed else self._uploads.coming(name)

    def settle(self, name: str) -> None:
        """Wait until what was saved as `name` is there; `UploadError` if it is not."""
        self._note(self._uploads.wait(name))
        if name in self._failed:
            _, error = self._failed[name]
            raise UploadError({name: error}) from error

    def synchronise(self) -> None:
        """Wait for all that is under way; what failed is for the end to say."""
        self._note(self._uploads.wait())

    def pause(self) -> None:
        """Wait, and remember: this run may be left here, and end as garbage."""
        self.synchronise()
        self._memory.flush()

    def wait(self) -> None:
        """Wait for all that was saved; `UploadError` says what did not arrive."""
        for name, payload in list(self._drafts.items()):
            self._withdraw(name)
            self._upload(name, payload, self._verdict(name, payload).value)
        self.synchronise()
        if self._failed:
            raise UploadError({name: e for name, (_, e) in self._failed.items()})

    # The end.

    def finish(self) -> Report:
        """Wait for all that was saved, then delete what is left to delete; report."""
        if self._pid != os.getpid():  # In a fork: this is its parent's.
            return self.report()
        try:
            self._catch_up()
            if not self.caller.dry_run:
                # An earlier pass of the same command copied, and may have lost, those.
                for name in self.caller.copied_before:
                    if name in self.caller.sources and name not in self._seen:
                        self._capture(name, self.save)
                self.wait()
                self._catch_up()
            leaving = {n for n in self._leaving if self._remote(n) is not None}
            self._delete(leaving | self._left_over())
            self._is_complete = True
        finally:
            self.close()
        report = self.report()
        self.caller.tell(report)
        return report

    def _has_arrived(self, name: str, verdict: Verdict) -> None:
        self._seen[name] = None
        if verdict is Verdict.HELD:
            self._unchanged[name] = None
        self.caller.storage._collectfast_tell(name, but=self)
        self.caller.progress.advanced(int(not self.post_processing), self._bytes)

    def _is_leaving(self, name: str) -> bool:
        """Tell whether `name` was deleted, or is left over in a run that clears."""
        stays = (self._seen, self.caller.sources, self.caller.spared)
        left_over = self.caller.clears and not any(name in names for names in stays)
        return left_over or name in self._leaving

    def _left_over(self) -> set[str]:
        """Return the names of all that is there and left over."""
        if not self.caller.clears:
            return set()
        self._prepare()
        # A name with a slash at its end is a folder, to those who believe in them.
        files = {n for n in self._listing.names() if n and not n.endswith("/")}
        self._spared = files.intersection(self.caller.spared) - self._seen.keys()
        return {name for name in files if self._is_leaving(name)}

    def _delete(self, names: Iterable[str]) -> None:
        """Delete `names`; `DeleteError` names those that could not be."""
        names = sorted(names)
        if self.caller.dry_run:
            self._deleted += names
            return
        for name in names:
            if self._memory.get(name):  # Until it is known what became of it.
                self._memory.remember(name, DOUBTFUL)
                if self.caller.trusts:
                    self._memory.begin()
        failures = {}
        for name, error in self._deletions(names):
            if error is not None:
                failures[name] = error
                continue
            self._listing.note(name, None)
            self._deleted.append(name)
        if failures:
            raise DeleteError(failures)

    def _deletions(self, names: list[str]) -> Iterator[tuple[str, object]]:
        """Delete, and yield each name with its error, if any."""
        storage = self.caller.storage
        if not overridden(type(storage), "delete"):
            with naming(self._bucket.name):
                yield from self._bucket.delete(names)
            return
        # A site's own takes one by one, and asks the bucket what it likes meanwhile.
        self.is_open = False
        for name in names:
            try:
                storage.delete(name)
            except (BotoCoreError, ClientError) as error:
                yield name, error
            else:
                yield name, None

    def report(self) -> Report:
        """Say what was done so far."""
        unchanged = self._unchanged.keys() - self._uploaded.keys()
        groups = (self._uploaded, unchanged, self._deleted, self._spared)
        uploaded, there, deleted, spared = (tuple(sorted(names)) for names in groups)
        seconds, requests = monotonic() - self._start, dict(self._bucket.requests)
        return Report(uploaded, there, deleted, spared, self._bytes, seconds, requests)

    def close(self) -> None:
        """End the run: remember what arrived; wait for the rest, if not interrupted."""
        if self.is_closed or self._pid != os.getpid():
            return
        self.is_open, self.is_closed = False, True
        self.caller.progress.close()
        patiently = isinstance(sys.exception(), Exception | None)
        self._note(self._uploads.close(patiently=patiently))
        failed = self.post_processing and not self._is_complete
        self.caller.close(self._uploaded | self._unchanged if failed else None)
        if not self.caller.dry_run:
            self._memory.flush()


def save_alone(
    caller: Caller, bucket: Bucket, memory: Memory, name: str, payload: Payload
) -> None:
    """Save outside of any run: one file, at once, with boto3's errors as they are."""
    storage, remembered = caller.storage, memory.get(name)
    trusts = caller.trusts and remembered is not None and remembered is not DOUBTFUL
    remote: Remote | None = UNASKED
    verdict = Verdict.UNCERTAIN
    # The answer to a HEAD has no words; that to the upload will have them.
    with suppress(ClientError):
        if not trusts:
            remote = bucket.head(name, storage.get_object_parameters(name))
        verdict = decide(payload, remote, remembered, caller.ignores_etag)
    try:
        if verdict is not Verdict.HELD:
            if remembered is not None:  # Lest this process be killed before it knows.
                memory.remember(name, DOUBTFUL)
                memory.flush()
            remote = Remote(bucket.put(name, payload).etag)
        if remote is not None and remote is not UNASKED:
            memory.remember(name, Remembered(payload.fingerprint, remote.etag))
    except BaseException:
        memory.remember(name, DOUBTFUL)
        raise
    finally:
        memory.flush()
