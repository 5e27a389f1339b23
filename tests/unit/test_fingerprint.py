"""Fingerprints and ETags, compared with hashlib and S3's documented rule."""

from __future__ import annotations

import hashlib

import pytest

from collectfast_storage.fingerprint import (
    Fingerprint,
    digest_of,
    etags_in_parts,
    md5_of,
    number_of_parts,
    part_sizes,
)

PART = 10
MIB = 1024 * 1024


def _reference(content: bytes, size: int) -> str:
    parts = [content[i : i + size] for i in range(0, len(content), size)] or [b""]
    digests = [hashlib.md5(part).digest() for part in parts]
    return f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"


@pytest.mark.parametrize("size", [1, 9, 10, 11, 20, 25, 100])
@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_multipart_etag_is_md5_of_the_parts_md5s(size: int, chunk: int) -> None:
    """The ETag of parts is that of S3, whatever the size of the chunks read."""
    content = bytes(range(size))
    chunks = [content[start : start + chunk] for start in range(0, size, chunk)]
    expected = [_reference(content, part) for part in (PART, 7)]
    assert etags_in_parts(chunks, [PART, 7]) == expected


def test_md5_of_chunks_is_md5_of_the_whole() -> None:
    """The MD5 of chunks, some of them empty, is that of the whole contents."""
    assert md5_of([b"a", b"", b"bc"]) == hashlib.md5(b"abc").hexdigest()


def test_digest_identifies_parameters_and_hides_them() -> None:
    """The digest depends on values but not on their order, and contains none."""
    one = digest_of({"CacheControl": "a", "SSECustomerKey": "secret"})
    assert one == digest_of({"SSECustomerKey": "secret", "CacheControl": "a"})
    assert one != digest_of({"SSECustomerKey": "other", "CacheControl": "a"})
    assert "secret" not in one


def test_digest_of_parameters_that_are_not_strings() -> None:
    """The digest depends on dates too, because boto3 takes a date for `Expires`."""
    from datetime import datetime

    one, two = datetime(2026, 1, 1), datetime(2026, 1, 2)
    assert digest_of({"Expires": one}) != digest_of({"Expires": two})


@pytest.mark.parametrize(
    ("etag", "parts"),
    [
        ("0" * 32, 0),
        ("0" * 32 + "-1", 1),
        ("0" * 32 + "-12", 12),
        ("a-b-3", 3),
        ("12", 0),
        ("", 0),
        ("-", 0),
        ("of-another-kind", 0),
    ],
)
def test_number_of_parts_is_after_the_last_dash(etag: str, parts: int) -> None:
    """The number of parts is 0 for an object in one piece, and for a foreign ETag."""
    assert number_of_parts(etag) == parts


def test_fingerprint_as_metadata() -> None:
    """A fingerprint is stored as the MD5 and the digest of the headers."""
    assert str(Fingerprint("md5", "headers")) == "md5-headers"


@pytest.mark.parametrize(
    ("size", "parts", "expected"),
    [
        (20 * MIB, 4, [5]),
        (20 * MIB, 3, [8]),
        (20 * MIB + 1, 3, [8, 10]),
        (20 * MIB, 2, [16, 10, 15]),
        (20 * MIB, 7, []),
    ],
)
def test_part_sizes_for_a_number_of_parts(
    size: int, parts: int, expected: list[int]
) -> None:
    """The sizes of parts are tried that result in the number of parts of an ETag."""
    sizes = part_sizes(size, parts, usual=16 * MIB)
    assert sizes == [each * MIB for each in expected]
