"""The decision whether one file is uploaded.

Functions of the upload that a save would make, the object in the bucket, and the cache
entry. They send no requests, but may read the file to hash it.
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
    # With KMS or SSE-C. The ETag is not an MD5 then, except on Ceph.
    is_encrypted: bool = False


class Remembered(NamedTuple):
    """An earlier upload: its fingerprint, and the ETag that the bucket gave it."""

    fingerprint: Fingerprint
    etag: str


# Stands for an earlier upload that may have been interrupted.
DOUBTFUL = Remembered(Fingerprint("", ""), "")
# Stands for an object for which no request was sent, because the cache is trusted.
UNCHECKED = Remote("")
# Stands for an object that may exist, because the bucket denied access to it.
UNKNOWN = Remote("", "")


def decide(
    sent: Payload,
    remote: Remote | None,
    cached: Remembered | None,
    *,
    ignore_etag: bool = False,
    etags_are_md5: bool = False,
    encrypted_are_md5: bool = False,
) -> Verdict:
    """Return the verdict on the upload `sent`.

    `remote` is the object in the bucket, or `None`, `UNCHECKED` or `UNKNOWN`. `cached`
    is the cache entry, or `None` or `DOUBTFUL`. With `ignore_etag` each file is
    uploaded. `etags_are_md5`: the ETag of an unencrypted object was an MD5.
    `encrypted_are_md5`: the ETags of encrypted objects were MD5s too, as on Ceph.
    After `Verdict.NEEDS_HEAD`, call this with a `remote` from a HEAD request.
    """
    if ignore_etag:
        return Verdict.FORCED
    if remote is None:
        return Verdict.ABSENT
    # With a doubtful entry, the ETag would show the content, but not the headers.
    if cached is DOUBTFUL or remote is UNKNOWN:
        return Verdict.UNCERTAIN
    if cached and (remote is UNCHECKED or remote.etag == cached.etag != ""):
        return compare(cached.fingerprint, sent.fingerprint)
    # A missing ETag proves nothing.
    may_be_md5 = encrypted_are_md5 or not sent.has_opaque_etag
    if remote.etag and may_be_md5 and sent.has_etag(remote.etag):
        return Verdict.UNCHANGED
    if remote.fingerprint is None:
        return Verdict.NEEDS_HEAD
    if not is_evidence(sent, remote, etags_are_md5=etags_are_md5):
        return Verdict.CONTENT
    md5, _, headers = remote.fingerprint.partition("-")
    return compare(Fingerprint(md5, headers), sent.fingerprint)


def is_evidence(sent: Payload, remote: Remote, *, etags_are_md5: bool) -> bool:
    """Return whether the fingerprint in an object's metadata describes its content.

    A tool that rewrites objects may keep their metadata. Therefore the length must be
    right, and if the ETag is an MD5, the ETag decides.
    """
    is_compared = not sent.compresses and remote.size is not None
    if is_compared and remote.size != sent.size:
        return False
    has_md5 = looks_like_md5(remote.etag) and not remote.is_encrypted
    return not (has_md5 and etags_are_md5)


def compare(old: Fingerprint, new: Fingerprint) -> Verdict:
    """Return the difference between two fingerprints."""
    if old.md5 != new.md5:
        return Verdict.CONTENT
    return Verdict.UNCHANGED if old == new else Verdict.HEADERS
