"""Fingerprints and ETags, against hashlib and S3's documented rule."""

from __future__ import annotations

import hashlib

import pytest

from collectfast_storage.etag import PartHasher, digest_of, md5_of

PART = 10


def _reference(content: bytes) -> str:
    parts = [content[i : i + PART] for i in range(0, len(content), PART)] or [b""]
    digests = [hashlib.md5(part).digest() for part in parts]
    return f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"


@pytest.mark.parametrize("size", [1, 9, 10, 11, 20, 25, 100])
@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_multipart_etag_is_md5_of_the_parts_md5s(size: int, chunk: int) -> None:
    """However the content is read, the parts are S3's."""
    content = bytes(range(size))
    hasher = PartHasher(PART)
    for start in range(0, size, chunk):
        hasher.update(content[start : start + chunk])
    assert hasher.etag() == _reference(content)


def test_md5_of_chunks_is_md5_of_the_whole() -> None:
    assert md5_of([b"a", b"", b"bc"]) == hashlib.md5(b"abc").hexdigest()


def test_digest_tells_parameters_apart_and_hides_them() -> None:
    """Order does not matter, values do, and none can be read."""
    one = digest_of({"CacheControl": "a", "SSECustomerKey": "secret"})
    assert one == digest_of({"SSECustomerKey": "secret", "CacheControl": "a"})
    assert one != digest_of({"SSECustomerKey": "other", "CacheControl": "a"})
    assert "secret" not in one


def test_digest_takes_what_boto3_takes() -> None:
    """Not every parameter is a string: `Expires` is a date."""
    from datetime import datetime

    one, two = datetime(2026, 1, 1), datetime(2026, 1, 2)
    assert digest_of({"Expires": one}) != digest_of({"Expires": two})
