"""The decision whether to upload one file, for all combinations of knowledge."""

from __future__ import annotations

import io
from itertools import product
from typing import NamedTuple

import pytest
from boto3.s3.transfer import TransferConfig

from collectfast_storage.decision import (
    DOUBTFUL,
    UNCHECKED,
    Remembered,
    Remote,
    Verdict,
    decide,
)
from collectfast_storage.fingerprint import Fingerprint, etags_in_parts, normal_etag
from collectfast_storage.payload import Payload

MIB = 1024 * 1024
CONTENT = b"content" * MIB
CONFIG = TransferConfig()
KMS = {"ServerSideEncryption": "aws:kms"}


def _payload(parameters: dict[str, object]) -> Payload:
    return Payload(io.BytesIO(CONTENT), parameters, CONFIG)


PLAIN = _payload({"CacheControl": "max-age=60"})
ENCRYPTED = _payload({"CacheControl": "max-age=60", **KMS})
MD5 = PLAIN.body_md5
OTHER_MD5 = "0" * 32


def _in_parts() -> str:
    [etag] = etags_in_parts([CONTENT], [5 * MIB])
    return etag


# ETags in responses of servers, and whether the ETag proves the contents of a file that
# is not encrypted with KMS.
ETAGS = {
    "the MD5": (f'"{MD5}"', True),
    "the MD5 without quotes": (MD5, True),
    "the MD5, weak": (f'W/"{MD5}"', True),
    "the MD5 in upper case": (f'"{MD5.upper()}"', True),
    "multipart": (f'"{_in_parts()}"', True),
    "multipart, weak and in upper case": (f'W/"{_in_parts().upper()}"', True),
    "the MD5 of other contents": (f'"{OTHER_MD5}"', False),
    "multipart of other contents": (f'"{OTHER_MD5}-2"', False),
    "opaque": ('"opaque"', False),
    "empty": ("", False),
    "empty quotes": ('""', False),
    "absent": (None, False),
}
# The fingerprint in the object's metadata, which only a HEAD request reveals.
METADATA = ["no HEAD request", "none", "same", "other headers", "other content"]
# The entry of the upload cache.
MEMORY = [
    "no entry",
    "same",
    "other headers",
    "other content",
    "same, other ETag",
    "other content, other ETag",
    "doubtful",
]


class Case(NamedTuple):
    """A combination of a server's response and an entry of the upload cache."""

    etag: str
    metadata: str
    memory: str
    is_encrypted: bool

    @property
    def sent(self) -> Payload:
        return ENCRYPTED if self.is_encrypted else PLAIN

    @property
    def remote(self) -> Remote:
        etag = normal_etag(ETAGS[self.etag][0])
        if self.metadata == "no HEAD request":
            return Remote(etag)
        if self.metadata == "none":
            return Remote(etag, "")
        return Remote(etag, str(self._fingerprint(self.metadata)))

    @property
    def remembered(self) -> Remembered | None:
        if self.memory == "no entry":
            return None
        if self.memory == "doubtful":
            return DOUBTFUL
        state, _, other = self.memory.partition(", ")
        etag = "earlier" if other else self.remote.etag
        return Remembered(self._fingerprint(state), etag)

    def _fingerprint(self, state: str) -> Fingerprint:
        same = self.sent.fingerprint
        return {
            "same": same,
            "other headers": same._replace(headers="other"),
            "other content": same._replace(md5=OTHER_MD5),
        }[state]

    @property
    def expected(self) -> Verdict:
        """The verdict according to the documented rules."""
        by_fingerprint = {
            "same": Verdict.UNCHANGED,
            "other headers": Verdict.HEADERS,
            "other content": Verdict.CONTENT,
            "none": Verdict.CONTENT,
            "no HEAD request": Verdict.NEEDS_HEAD,
        }
        if self.memory == "doubtful":
            return Verdict.UNCERTAIN
        if self.memory in by_fingerprint and self.remote.etag:
            return by_fingerprint[self.memory]
        if ETAGS[self.etag][1] and not self.is_encrypted:
            return Verdict.UNCHANGED
        return by_fingerprint[self.metadata]


@pytest.mark.parametrize("memory", MEMORY)
def test_object_in_the_listing(memory: str) -> None:
    """With `collectfast_preload`, the response and the cache entry decide together."""
    wrong = {}
    for etag, metadata, is_encrypted in product(ETAGS, METADATA, [False, True]):
        case = Case(etag, metadata, memory, is_encrypted)
        verdict = decide(case.sent, case.remote, case.remembered)
        if verdict is not case.expected:
            wrong[case] = f"{verdict.name}, and not {case.expected.name}"
    assert wrong == {}


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("is_encrypted", [False, True])
def test_file_without_an_object_is_uploaded(memory: str, is_encrypted: bool) -> None:
    """A file is uploaded if the bucket has no such object, whatever the cache entry."""
    case = Case("the MD5", "none", memory, is_encrypted)
    assert decide(case.sent, None, case.remembered) is Verdict.ABSENT


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ("no entry", Verdict.NEEDS_HEAD),
        ("same", Verdict.UNCHANGED),
        ("same, other ETag", Verdict.UNCHANGED),
        ("other headers", Verdict.HEADERS),
        ("other content", Verdict.CONTENT),
        ("doubtful", Verdict.UNCERTAIN),
    ],
)
@pytest.mark.parametrize("is_encrypted", [False, True])
def test_without_preload_the_cache_entry_decides_alone(
    memory: str, expected: Verdict, is_encrypted: bool
) -> None:
    """Without a listing the cache entry decides; without an entry, a HEAD request."""
    case = Case("the MD5", "none", memory, is_encrypted)
    assert decide(case.sent, UNCHECKED, case.remembered) is expected


@pytest.mark.parametrize("remote", [None, UNCHECKED, Remote(MD5), Remote(MD5, "")])
@pytest.mark.parametrize("memory", MEMORY)
def test_ignore_etag_uploads_every_file(remote: Remote | None, memory: str) -> None:
    """With `collectfast_ignore_etag`, every file is uploaded without a comparison."""
    case = Case("the MD5", "none", memory, False)
    verdict = decide(case.sent, remote, case.remembered, ignore_etag=True)
    assert verdict is Verdict.FORCED


def test_verdicts_have_distinct_reasons() -> None:
    """Each verdict has its own reason, because `--verbosity 2` prints the reasons."""
    # Two members with one value would be aliases of one member.
    assert len(Verdict) == len(Verdict.__members__)
