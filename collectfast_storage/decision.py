"""The decision whether one file is uploaded.

Pure functions of the upload that a save would make, the object in the bucket, and the
cache entry.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from collectfast_storage.fingerprint import Fingerprint, looks_like_md5

if TYPE_CHECKING:
    from collectfast_storage.payload import Payload


class Verdict(Enum):
    """The reason why a file is uploaded, or is not."""

    UNCHANGED = "unchanged"
    ABSENT = "new"
    CONTENT = "content changed"
    HEADERS = "headers changed"
    FORCED = "ignore_etag"
    UNCERTAIN = "unknown"
    NEEDS_HEAD = "a HEAD request is needed"


class Remote(NamedTuple):
    """An object in the bucket, as far as a listing or a HEAD request reported it."""

    etag: str  # in the form of `normal_etag`; empty if the server does not give any
    # The fingerprint in the metadata, or empty. None: there was no HEAD request.
    fingerprint: str | None = None
    size: int | None = None  # in bytes; None: not reported
    is_encrypted: bool = False  # so that its ETag is not an MD5 (KMS, SSE-C)


class Remembered(NamedTuple):
    """An earlier upload: its fingerprint, and the ETag that the bucket gave it."""

    fingerprint: Fingerprint
    etag: str


# Instead of an earlier upload, if the last one may have been interrupted.
DOUBTFUL = Remembered(Fingerprint("", ""), "")
# Instead of an object, if the cache is trusted and there was no request.
UNASKED = Remote("")
# Instead of an object, if the bucket refuses to answer. It is never taken for absent.
UNKNOWN = Remote("", "")


def decide(
    sent: Payload,
    remote: Remote | None,
    known: Remembered | None,
    *,
    forced: bool = False,
    etags_are_md5: bool = False,
    encrypted_are_md5: bool = False,
) -> Verdict:
    """Return the verdict on the upload `sent`.

    `remote` is the object in the bucket, or `None`, `UNASKED` or `UNKNOWN`. `known` is
    the cache entry, or `None` or `DOUBTFUL`. With `forced` each file is uploaded.
    `etags_are_md5` says that ETags of unencrypted objects were seen to be MD5s, and
    `encrypted_are_md5` that those of encrypted objects were, as on Ceph.
    `Verdict.NEEDS_HEAD` asks for a `remote` from a HEAD request.
    """
    if forced:
        return Verdict.FORCED
    if remote is None:
        return Verdict.ABSENT
    # With a doubtful entry, the ETag would show the content, but not the headers.
    if known is DOUBTFUL or remote is UNKNOWN:
        return Verdict.UNCERTAIN
    if known and (remote is UNASKED or remote.etag == known.etag != ""):
        return between(known.fingerprint, sent.fingerprint)
    # A missing ETag proves nothing.
    may_be_md5 = encrypted_are_md5 or not sent.has_opaque_etag
    if remote.etag and may_be_md5 and sent.has_etag(remote.etag):
        return Verdict.UNCHANGED
    if remote.fingerprint is None:
        return Verdict.NEEDS_HEAD
    if not is_evidence(sent, remote, etags_are_md5=etags_are_md5):
        return Verdict.CONTENT
    md5, _, headers = remote.fingerprint.partition("-")
    return between(Fingerprint(md5, headers), sent.fingerprint)


def is_evidence(sent: Payload, remote: Remote, *, etags_are_md5: bool) -> bool:
    """Return whether the fingerprint in an object's metadata describes its content.

    A tool that rewrites objects may keep their metadata. Therefore the length must be
    right, and where an ETag is an MD5, the ETag decides.
    """
    is_compared = not sent.compresses and remote.size is not None
    if is_compared and remote.size != sent.size:
        return False
    has_md5 = looks_like_md5(remote.etag) and not remote.is_encrypted
    return not (has_md5 and etags_are_md5)


def between(there: Fingerprint, here: Fingerprint) -> Verdict:
    """Return the difference between two fingerprints."""
    if there.md5 != here.md5:
        return Verdict.CONTENT
    return Verdict.UNCHANGED if there == here else Verdict.HEADERS
