"""Comparison of files with the bucket: reading ahead, HEAD requests, the verdict."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from functools import partial
from math import ceil, inf

from django.core.files.storage import Storage

from collectfast_storage.context import RunContext
from collectfast_storage.decision import (
    DOUBTFUL,
    UNCHECKED,
    UNKNOWN,
    Remembered,
    Remote,
    Verdict,
    compare,
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
from collectfast_storage.uploads import BoundedExecutor, Uploads

logger = logging.getLogger("collectfast_storage")

# If the ETags of some objects do not match, they may be opaque. Therefore HEAD requests
# are sent for this number of these objects. If one shows an opaque ETag, HEAD requests
# are sent for all objects whose ETags do not match.
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
        listing: Listing,
        uploads: Uploads,
        seen: Container[str],
    ) -> None:
        """Compare for the run of `context`. No request is sent yet.

        Uploads that have not arrived are compared too. `seen`, which the run fills, are
        the names that it has saved or found.
        """
        self._context, self._bucket, self._cache = context, bucket, cache
        self.listing, self._uploads, self._seen = listing, uploads, seen
        self._is_prepared = False
        self._read_sources: dict[str, Payload] = {}  # sources that were read and hashed
        self._heads_left = float(_SAMPLE)
        self._heads_are_useless = False  # They return neither ETags nor metadata.
        self._encrypted_are_md5 = False  # ETags of encrypted objects, as on Ceph.
        self._last_large: dict[str, Payload] = {}  # the last source, if it is large
        self._for_headers = 0  # files that are uploaded because of their headers

    def verdict_of_source(self, name: str, source: tuple[Storage, str]) -> Verdict:
        """Return the verdict on the `source` of `name`, which may be hashed already."""
        ahead = self._read_sources.pop(name, None)
        # A site's own command or finder may copy another file as this name.
        if ahead is not None and self._context.sources.get(name) == source:
            return self.verdict(name, ahead)
        verdict = self._context.capture_source(
            name, source, partial(self._verdict_and_hashes, name)
        )
        return Verdict.UNCERTAIN if verdict is None else verdict

    def _verdict_and_hashes(self, name: str, payload: Payload) -> Verdict:
        verdict = self.verdict(name, payload)
        self._last_large = {name: payload} if payload.plain is None else {}
        return verdict

    def reuse_hashes(self, name: str, payload: Payload) -> None:
        """Copy hashes to `payload` if its source `name` has just been hashed."""
        source = self._last_large.pop(name, None)
        if source is not None:
            payload.take_hashes(source)

    def verdict(self, name: str, payload: Payload) -> Verdict:
        """Return whether the bucket has `payload` as `name`, or why it is uploaded."""
        pending = self._uploads.fingerprint(name)
        if pending is not None:
            return compare(pending, payload.fingerprint)
        cached, remote = self._cache.get(name), self.remote(name)
        verdict = self._decide(payload, remote, cached)
        if verdict is Verdict.NEEDS_HEAD and self._is_worth_a_head(payload):
            self.listing.request_heads([name])
            remote = self.listing[name]
            verdict = self._decide(payload, remote, cached)
            if verdict is Verdict.UNCHANGED and self._heads_left < inf:
                self._heads_left = inf  # HEAD requests help for others too.
                self.listing.request_heads(self._uncached_hashed_names())
            if verdict in (Verdict.UNCHANGED, Verdict.HEADERS):
                self._bucket.note_etag(opaque=True)  # The fingerprint was right.
        if verdict is Verdict.UNCHANGED and remote and remote is not UNCHECKED:
            self._cache.remember(name, Remembered(payload.fingerprint, remote.etag))
        if cached and cached.etag == cached.fingerprint.md5 != "":
            # An earlier upload got the MD5 as its ETag.
            self._bucket.note_etag(opaque=False)
        return Verdict.CONTENT if verdict is Verdict.NEEDS_HEAD else verdict

    def remote(self, name: str) -> Remote | None:
        """Return the object `name`; `UNCHECKED` if a trusted cache entry is enough."""
        self.prepare()
        cached = self._cache.get(name) if self._context.trusts_cache else None
        if cached is not None and cached is not DOUBTFUL:
            return UNCHECKED
        return self.listing[name]

    def prepare(self) -> None:
        """List the bucket once, and read sources until the listing is complete."""
        if self._is_prepared:
            return
        self._is_prepared = True
        context = self._context
        context.progress.start(len(context.sources))
        if not context.lists_bucket:
            return
        with as_bucket_error(self._bucket.name, OSError):
            self._bucket.connect()  # in this thread
        # `load` waits for HEAD requests of the run's executor, so it must not occupy
        # one of its threads.
        loader = BoundedExecutor(1)
        loading = loader.submit(self.listing.load, context.wanted, context.clears)
        try:
            if not context.destination.has_own_save:
                self._read_sources_until(loading.done)
            loading.result()
        finally:
            loader.shutdown(wait=False)

    def reason(self, name: str, payload: Payload, verdict: Verdict) -> str:
        """Return the reason for an upload.

        If most files are uploaded because of their headers, log a warning once, with
        an example.
        """
        if verdict is not Verdict.HEADERS:
            return str(verdict.value)
        files, self._for_headers = len(self._context.sources), self._for_headers + 1
        if self._for_headers != files // 2 + 1 or not files:
            return str(verdict.value)
        changed, sent = "a parameter that HEAD does not report", payload.parameters
        with suppress(BucketError), as_bucket_error(self._bucket.name):
            head = self._bucket.headers(name, sent)
            changed = description_of(changed_headers(head or {}, sent)) or changed
        text = (
            "Most files are uploaded to bucket %r only because their headers changed. "
            "Example: %r, %s."
        )
        logger.warning(text, self._bucket.name, name, printable(changed))
        return f"{verdict.value}: {changed}"

    def _decide(
        self, payload: Payload, remote: Remote | None, cached: Remembered | None
    ) -> Verdict:
        bucket, ignore = self._bucket, self._context.ignores_etag
        # A server may give both kinds of ETags. Then an MD5 proves nothing.
        md5s = bucket.has_md5_etags and not bucket.has_opaque_etags
        return decide(
            payload,
            remote,
            cached,
            ignore_etag=ignore,
            etags_are_md5=md5s,
            encrypted_are_md5=self._encrypted_are_md5,
        )

    def _is_worth_a_head(self, payload: Payload) -> bool:
        """Return whether a HEAD request is likely to find a fingerprint."""
        context = self._context
        is_first = self._heads_left == _SAMPLE
        self._heads_left -= 1
        if is_first and context.collects and context.lists_bucket:
            self._send_heads_ahead(everything=payload.has_opaque_etag)
        if self._heads_are_useless:
            return False
        is_opaque = payload.has_opaque_etag or self._bucket.has_opaque_etags
        return bool(is_opaque) or self._heads_left >= 0

    def _send_heads_ahead(self, *, everything: bool) -> None:
        """Send HEAD requests, in parallel, for some objects whose ETags do not match.

        If they show opaque ETags, or for `everything`, send them for the others too.
        """
        self._read_sources_until(lambda: False)
        self._bucket.has_md5_etags |= any(map(self._has_md5_etag, self._read_sources))
        undecided = self._with_verdict(self._read_sources, Verdict.NEEDS_HEAD)
        step = max(ceil(len(undecided) / _SAMPLE), 1)
        sample = undecided[::step]
        self._heads_left -= len(sample)
        listed = [self.listing[name] for name in sample]
        self.listing.request_heads(sample)
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
            hashed = [] if self._encrypted_are_md5 else self._uncached_hashed_names()
            self.listing.request_heads([*undecided, *hashed])

    def _uncached_hashed_names(self) -> list[str]:
        """Return the published names that have no cache entry."""
        hashed = {*(self._context.wanted or ())} - self._context.sources.keys()
        return [name for name in hashed if not self._cache.get(name)]

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
        sent, remote, cached = self._read_sources, self.listing, self._cache.get
        return [
            n for n in names if self._decide(sent[n], remote[n], cached(n)) is verdict
        ]

    def _has_md5_etag(self, name: str) -> bool:
        """Return whether the ETag of the object `name` is the MD5 of the source."""
        sent, remote = self._read_sources[name], self.listing[name]
        etag = remote.etag if remote and not sent.has_opaque_etag else ""
        return looks_like_md5(etag) and sent.has_etag(etag)

    def _have_encrypted_md5s(self, sample: list[str], unchanged: list[str]) -> bool:
        """Return whether the ETags of encrypted objects are MD5s.

        All objects of the `sample` must be encrypted, and the ETags of those that are
        `unchanged` must be the MD5s of their contents.
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
        """Return whether ETags differ between HEAD and LIST, or from the cache."""
        sent, cached = self._read_sources[name].fingerprint, self._cache.get(name)
        is_cached = cached is not None and cached.fingerprint == sent
        remote = self.listing[name]
        return is_cached or (remote and remote.etag) != (listed and listed.etag)

    def _read_sources_until(self, stop: Callable[[], bool]) -> None:
        """Read and hash sources until `stop` returns True; keep no contents."""
        for name, source in self._context.sources.items():
            if stop():
                return
            is_read = name in self._read_sources or name in self._seen
            if not (is_read or self._context.is_left_out(name)):
                with suppress(OSError):  # The command reads it again, and reports it.
                    keep = partial(self._keep_hashes, name)
                    self._context.capture_source(name, source, keep)

    def _keep_hashes(self, name: str, payload: Payload) -> None:
        # To hash it, the file would be compressed, but its cache entry is enough.
        is_cached = payload.compresses and self._cache.get(name)
        if payload.plain is not None and not is_cached and payload.release_content():
            self._read_sources[name] = payload
