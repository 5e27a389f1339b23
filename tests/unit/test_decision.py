"""The verdict on one file, as a table."""

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


# What a server may answer, and whether it proves the content of a file that is not
# encrypted with KMS.
ETAGS = {
    "the MD5": (f'"{MD5}"', True),
    "the MD5 without quotes": (MD5, True),
    "the MD5, weak": (f'W/"{MD5}"', True),
    "the MD5 in upper case": (f'"{MD5.upper()}"', True),
    "that of parts": (f'"{_in_parts()}"', True),
    "that of parts, weak and in upper case": (f'W/"{_in_parts().upper()}"', True),
    "the MD5 of another content": (f'"{OTHER_MD5}"', False),
    "that of other parts": (f'"{OTHER_MD5}-2"', False),
    "opaque": ('"opaque"', False),
    "empty": ("", False),
    "empty quotes": ('""', False),
    "absent": (None, False),
}
METADATA = ["not asked for", "none", "same", "other headers", "other content"]
MEMORY = [
    "nothing",
    "same",
    "other headers",
    "other content",
    "same, other ETag",
    "other content, other ETag",
    "under way",
]


class Case(NamedTuple):
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
        if self.metadata == "not asked for":
            return Remote(etag)
        if self.metadata == "none":
            return Remote(etag, "")
        return Remote(etag, str(self._fingerprint(self.metadata)))

    @property
    def remembered(self) -> Remembered | None:
        if self.memory in ("nothing", "under way"):
            return None if self.memory == "nothing" else DOUBTFUL
        what, _, other = self.memory.partition(", ")
        etag = "earlier" if other else self.remote.etag
        return Remembered(self._fingerprint(what), etag)

    def _fingerprint(self, what: str) -> Fingerprint:
        same = self.sent.fingerprint
        return {
            "same": same,
            "other headers": same._replace(headers="other"),
            "other content": same._replace(md5=OTHER_MD5),
        }[what]

    @property
    def expected(self) -> Verdict:
        """The rules, in words."""
        by_fingerprint = {
            "same": Verdict.UNCHANGED,
            "other headers": Verdict.HEADERS,
            "other content": Verdict.CONTENT,
            "none": Verdict.CONTENT,
            "not asked for": Verdict.NEEDS_HEAD,
        }
        if self.memory == "under way":
            return Verdict.UNCERTAIN
        if self.memory in by_fingerprint and self.remote.etag:
            return by_fingerprint[self.memory]
        if ETAGS[self.etag][1] and not self.is_encrypted:
            return Verdict.UNCHANGED
        return by_fingerprint[self.metadata]


CASES = [Case(*each) for each in product(ETAGS, METADATA, MEMORY, [False, True])]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " / ".join(map(str, case)))
def test_of_what_is_listed(case: Case) -> None:
    """With `collectfast_preload`: what the bucket holds, and what is remembered."""
    assert decide(case.sent, case.remote, case.remembered) is case.expected


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("is_encrypted", [False, True])
def test_of_what_is_absent_goes_up_whatever_is_remembered(
    memory: str, is_encrypted: bool
) -> None:
    case = Case("the MD5", "none", memory, is_encrypted)
    assert decide(case.sent, None, case.remembered) is Verdict.ABSENT


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ("nothing", Verdict.NEEDS_HEAD),
        ("same", Verdict.UNCHANGED),
        ("same, other ETag", Verdict.UNCHANGED),
        ("other headers", Verdict.HEADERS),
        ("other content", Verdict.CONTENT),
        ("under way", Verdict.UNCERTAIN),
    ],
)
@pytest.mark.parametrize("is_encrypted", [False, True])
def test_without_preload_memory_decides_alone(
    memory: str, expected: Verdict, is_encrypted: bool
) -> None:
    """And what it does not know is asked for."""
    case = Case("the MD5", "none", memory, is_encrypted)
    assert decide(case.sent, UNCHECKED, case.remembered) is expected


@pytest.mark.parametrize("remote", [None, UNCHECKED, Remote(MD5), Remote(MD5, "")])
@pytest.mark.parametrize("memory", MEMORY)
def test_everything_goes_up_that_is_forced(remote: Remote | None, memory: str) -> None:
    """With `collectfast_ignore_etag`, whatever is known."""
    case = Case("the MD5", "none", memory, False)
    verdict = decide(case.sent, remote, case.remembered, ignore_etag=True)
    assert verdict is Verdict.FORCED


def test_every_verdict_but_the_question_is_a_reason_to_read() -> None:
    """`--verbosity 2` prints it."""
    assert len({verdict.value for verdict in Verdict}) == len(Verdict)
