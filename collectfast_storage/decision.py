"""The verdict on one file: whether the bucket holds its content and headers.

Pure: a function of what would be sent, what is there, and what is remembered.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from collectfast_storage.fingerprint import Fingerprint

if TYPE_CHECKING:
    from collectfast_storage.payload import Payload


class Verdict(Enum):
    """Why a file is not uploaded, or is."""

    HELD = "the bucket holds it"
    ABSENT = "absent"
    CONTENT = "content"
    HEADERS = "headers"
    FORCED = "forced"
    UNCERTAIN = "nobody knows what is there"
    ASK = "a HEAD can tell"


class Remote(NamedTuple):
    """What the bucket holds: an object's ETag, and what its metadata say of it."""

    etag: str  # in the form of `normal_etag`, empty if the server gives none
    # The fingerprint in its metadata, empty if there is none; None: not asked for.
    fingerprint: str | None = None


class Remembered(NamedTuple):
    """An upload of the past: what was sent, and the ETag that the bucket gave it."""

    fingerprint: Fingerprint
    etag: str


# Of a file of which nobody knows what was uploaded last: a run was killed, say.
DOUBTFUL = Remembered(Fingerprint("", ""), "")
# Instead of what the bucket holds, where memory is to do without asking it.
UNASKED = Remote("")
# And where it may not be asked for; never taken for absent.
UNKNOWN = Remote("", "")


def decide(
    sent: Payload, remote: Remote | None, known: Remembered | None, forced: bool = False
) -> Verdict:
    """Return the verdict on what would be `sent` where the bucket holds `remote`.

    `remote` is `None` if it holds nothing, and may be `UNASKED` or `UNKNOWN`; what is
    `known` from memory is `None` if that is nothing, and may be `DOUBTFUL`. If `forced`
    everything goes up. `Verdict.ASK`: a HEAD, which tells ETag and metadata, can tell.
    """
    if forced:
        return Verdict.FORCED
    if remote is None:
        return Verdict.ABSENT
    # Of what is doubtful, an ETag would tell the content, and not the headers.
    if known is DOUBTFUL or remote is UNKNOWN:
        return Verdict.UNCERTAIN
    if known and (remote is UNASKED or remote.etag == known.etag != ""):
        return between(known.fingerprint, sent.fingerprint)
    # An empty ETag proves nothing.
    if remote.etag and not sent.has_opaque_etag and sent.has_etag(remote.etag):
        return Verdict.HELD
    if remote.fingerprint is None:
        return Verdict.ASK
    md5, _, headers = remote.fingerprint.partition("-")
    return between(Fingerprint(md5, headers), sent.fingerprint)


def between(there: Fingerprint, here: Fingerprint) -> Verdict:
    """Return what is different between what is `there` and what is `here`."""
    if there.md5 != here.md5:
        return Verdict.CONTENT
    return Verdict.HELD if there == here else Verdict.HEADERS
