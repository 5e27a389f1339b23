"""Comparison of sources with the bucket: reading ahead, HEAD requests, the verdict."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from functools import partial
from math import inf

from django.core.files.storage import Storage

from collectfast_storage.context import RunContext
from collectfast_storage.decision import (
    DOUBTFUL,
    UNASKED,
    UNKNOWN,
    Remembered,
    Remote,
    Verdict,
    decide,
)
from collectfast_storage.exceptions import BucketError, printable
from collectfast_storage.fingerprint import looks_like_md5
from collectfast_storage.payload import Payload
from collectfast_storage.program import changed_headers, description_of
from collectfast_storage.s3.bucket import Bucket
from collectfast_storage.s3.errors import as_bucket_error
from collectfast_storage.s3.listing import Listing
from collectfast_storage.upload_cache import UploadCache
from collectfast_storage.uploads import BoundedExecutor

logger = logging.getLogger("collectfast_storage")

# The number of objects that are sampled by HEAD requests, in case ETags are opaque. If
# the ETag of one of them is, HEAD requests are sent for all that an ETag cannot decide.
_SAMPLE = 8
_CONTRADICTORY = (
    "The ETags in bucket %r do not identify contents; uploading %d files again."
)
_SILENT = (
    "Objects in bucket %r have neither ETags nor the fingerprints of earlier uploads; "
    "uploading %d files again. If each deploy logs this warning, set "
    "collectfast_preload=False and a persistent cache, or start a JuiceFS gateway with "
    "--keep-etag."
)


class Comparison:
    """The verdicts of one run, from a listing, HEAD requests and the cache."""

    def __init__(
        self,
        context: RunContext,
        bucket: Bucket,
        cache: UploadCache,
        executor: BoundedExecutor,
        seen: Container[str],
    ) -> None:
        """Prepare for the run of `context`, which need not read the names `seen`.

        No request is sent yet.
        """
        self._context, self._bucket, self._cache = context, bucket, cache
        self._executor, self._seen = executor, seen
        parameters = context.destination.parameters_of
        self.listing = Listing(bucket, parameters, executor)
        self._is_prepared = False
        self._read_sources: dict[str, Payload] = {}  # sources that were read and hashed
        self._heads_left, self._has_sent_heads_ahead = float(_SAMPLE), False
        self._heads_are_useless = False  # They return neither ETags nor metadata.
        self._encrypted_are_md5 = False  # ETags of encrypted objects, as on Ceph.
        self._last: tuple[str, Payload] | None = None  # the large source just judged
        self._for_headers = 0  # files that are uploaded for their headers

    def verdict_of_source(self, name: str, source: tuple[Storage, str]) -> Verdict:
        """Return the verdict on the `source` of `name`, which may have been read."""
        ahead = self._read_sources.pop(name, None)
        # A command, or a finder of a site's own, may copy another file by this name.
        if ahead is not None and self._context.sources.get(name) == source:
            return self.verdict(name, ahead)
        verdict = self._context.capture_source(
            name, source, partial(self._verdict_and_hashes, name)
        )
        return Verdict.UNCERTAIN if verdict is None else verdict

    def _verdict_and_hashes(self, name: str, payload: Payload) -> Verdict:
        verdict = self.verdict(name, payload)
        self._last = (name, payload) if payload.plain is None else None
        return verdict

    def take_hashes(self, name: str, payload: Payload) -> None:
        """Let `payload` not be read to be hashed, if the source `name` just was."""
        if self._last is not None and self._last[0] == name:
            payload.take_hashes(self._last[1])
        self._last = None

    def verdict(self, name: str, payload: Payload) -> Verdict:
        """Return whether the bucket has `payload` as `name`, or why it is uploaded."""
        known, remote = self._cache.get(name), self.remote(name)
        verdict = self._decide(payload, remote, known)
        if verdict is Verdict.NEEDS_HEAD and self._is_worth_a_head(payload):
            self.listing.ask([name])
            remote = self.listing[name]
            verdict = self._decide(payload, remote, known)
            if verdict is Verdict.UNCHANGED:  # So HEAD requests help for others too.
                self._heads_left = inf
            if verdict in (Verdict.UNCHANGED, Verdict.HEADERS):
                self._bucket.note_etag(opaque=True)  # The fingerprint was right.
        if (
            verdict is Verdict.UNCHANGED
            and remote is not UNASKED
            and remote is not None
        ):
            self._cache.remember(name, Remembered(payload.fingerprint, remote.etag))
        if known and known.etag == known.fingerprint.md5 != "":
            self._bucket.note_etag(opaque=False)
        return Verdict.CONTENT if verdict is Verdict.NEEDS_HEAD else verdict

    def remote(self, name: str) -> Remote | None:
        """Return the object `name`; `UNASKED` if a trusted cache entry is enough."""
        self.prepare()
        known = self._cache.get(name) if self._context.trusts else None
        if known is not None and known is not DOUBTFUL:
            return UNASKED
        return self.listing[name]

    def prepare(self) -> None:
        """List the bucket, once, and read sources until it answers."""
        if self._is_prepared:
            return
        self._is_prepared = True
        context = self._context
        context.progress.start(len(context.sources))
        if not context.lists:
            return
        with as_bucket_error(self._bucket.name, OSError):  # of a credentials file, say
            self._bucket.connect()  # in this thread
        # Not in a thread of the executor, which has to run HEAD requests for this.
        loader = BoundedExecutor(1)
        listing = loader.submit(self.listing.load, context.wanted, context.clears)
        try:
            if context.destination.saves_as_is:
                self._read_sources_until(listing.done)
            listing.result()
        finally:
            loader.shutdown(wait=False)

    def reason(self, name: str, payload: Payload, verdict: Verdict) -> str:
        """Return the reason for an upload.

        If most files are uploaded for their headers, one warning names an example.
        """
        if verdict is not Verdict.HEADERS:
            return str(verdict.value)
        files, self._for_headers = len(self._context.sources), self._for_headers + 1
        if self._for_headers != files // 2 + 1 or not files:
            return str(verdict.value)
        changed, sent = "a parameter that HEAD does not report", payload.parameters
        with suppress(BucketError), as_bucket_error(self._bucket.name):
            head = self._executor.submit(self._bucket.headers, name, sent).result()
            changed = description_of(changed_headers(head or {}, sent)) or changed
        text = (
            "Most files are uploaded to bucket %r only because their headers changed. "
            "Example: %r, %s."
        )
        logger.warning(text, self._bucket.name, name, printable(changed))
        return f"{verdict.value}: {changed}"

    def _decide(
        self, payload: Payload, remote: Remote | None, known: Remembered | None
    ) -> Verdict:
        bucket, forced = self._bucket, self._context.ignores_etag
        # Opaque ETags of unencrypted objects outweigh those that are MD5s: a server
        # may give both.
        md5s = bucket.has_md5_etags and not bucket.has_opaque_etags
        return decide(
            payload,
            remote,
            known,
            forced=forced,
            etags_are_md5=md5s,
            encrypted_are_md5=self._encrypted_are_md5,
        )

    def _is_worth_a_head(self, payload: Payload) -> bool:
        """Return whether metadata may decide where an ETag cannot."""
        context = self._context
        if context.collects and context.lists and not self._has_sent_heads_ahead:
            self._has_sent_heads_ahead = True
            self._send_heads_ahead(everything=payload.has_opaque_etag)
        if self._heads_are_useless:
            return False
        self._heads_left -= 1
        is_opaque = payload.has_opaque_etag or self._bucket.has_opaque_etags
        return bool(is_opaque) or self._heads_left >= 0

    def _send_heads_ahead(self, *, everything: bool) -> None:
        """Send HEAD requests, in parallel, for a sample of what no ETag can decide.

        If they show opaque ETags, or for `everything`, send them for all the rest.
        """
        self._read_sources_until(lambda: False)
        self._bucket.has_md5_etags |= any(map(self._has_md5_etag, self._read_sources))
        undecided = self._with_verdict(self._read_sources, Verdict.NEEDS_HEAD)
        sample = undecided[:: -(-len(undecided) // _SAMPLE) or 1]
        self._heads_left -= len(sample)
        listed = [self.listing[name] for name in sample]
        self.listing.ask(sample)
        found = self._with_verdict(sample, Verdict.UNCHANGED)
        if found:
            self._bucket.note_etag(opaque=True)  # The fingerprint was right.
            self._encrypted_are_md5 = self._have_encrypted_md5s(sample, found)
        elif sample:
            self._judge_etags(sample, listed, len(undecided))
        heads_help = everything or found or self._bucket.has_opaque_etags
        if heads_help and not self._heads_are_useless:
            self._heads_left = inf
            undecided = self._with_verdict(undecided, Verdict.NEEDS_HEAD)
            hashed = {*(self._context.wanted or ())} - self._context.sources.keys()
            unknown = sorted(name for name in hashed if not self._cache.get(name))
            self.listing.ask([*undecided, *unknown * (not self._encrypted_are_md5)])

    def _judge_etags(
        self, sample: list[str], listed: list[Remote | None], files: int
    ) -> None:
        """Log a warning if neither ETags nor HEAD requests identify contents."""
        text = ""
        if all(map(self._is_silent, sample, listed)):
            self._heads_are_useless, text = True, _SILENT
        elif files >= _SAMPLE and all(map(self._contradicts, sample, listed)):
            text = _CONTRADICTORY
        if text:
            self._bucket.note_etag(opaque=True)
            logger.warning(text, self._bucket.name, files)

    def _with_verdict(self, names: Iterable[str], verdict: Verdict) -> list[str]:
        """Return those of `names`, sources that were read, which get this `verdict`."""
        sent, there, known = self._read_sources, self.listing, self._cache.get
        return [
            n for n in names if self._decide(sent[n], there[n], known(n)) is verdict
        ]

    def _has_md5_etag(self, name: str) -> bool:
        """Return whether the ETag of the object `name` is the MD5 of the source."""
        sent, remote = self._read_sources[name], self.listing[name]
        etag = remote.etag if remote and not sent.has_opaque_etag else ""
        return looks_like_md5(etag) and sent.has_etag(etag)

    def _have_encrypted_md5s(self, sample: list[str], unchanged: list[str]) -> bool:
        """Return whether the objects of a `sample` are all encrypted, with MD5 ETags.

        The ETags are compared with the contents that are `unchanged`.
        """
        remotes = [remote for name in sample if (remote := self.listing[name])]
        etags = [(self._read_sources[n], self.listing[n]) for n in unchanged]
        return all(remote.is_encrypted for remote in remotes) and all(
            remote and sent.has_etag(remote.etag) for sent, remote in etags
        )

    def _is_silent(self, name: str, listed: Remote | None) -> bool:
        """Return whether LIST and HEAD returned neither ETag nor fingerprint."""
        remote = self.listing[name]
        if remote is None or remote is UNKNOWN or listed is None:
            return False
        return not (listed.etag or remote.etag or remote.fingerprint)

    def _contradicts(self, name: str, listed: Remote | None) -> bool:
        """Return whether HEAD differs from LIST, or both from the upload's answer."""
        sent, known = self._read_sources[name].fingerprint, self._cache.get(name)
        is_known = known is not None and known.fingerprint == sent
        asked = self.listing[name]
        return is_known or (asked and asked.etag) != (listed and listed.etag)

    def _read_sources_until(self, stop: Callable[[], bool]) -> None:
        """Read and hash sources; of their contents nothing is kept."""
        for name, source in self._context.sources.items():
            if stop():
                return
            if name not in self._read_sources and name not in self._seen:
                with suppress(OSError):  # The command will meet the error, and show it.
                    keep = partial(self._keep_hashes, name)
                    self._context.capture_source(name, source, keep)

    def _keep_hashes(self, name: str, payload: Payload) -> None:
        # What is in the cache need not be compressed to be compared.
        known = payload.compresses and self._cache.get(name)
        if payload.plain is not None and not known and payload.release_content():
            self._read_sources[name] = payload
