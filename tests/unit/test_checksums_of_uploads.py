"""Checksums and ETags that the package computes for boto3's uploads."""

from __future__ import annotations

from io import BytesIO
from types import SimpleNamespace

import pytest

from collectfast_storage.fingerprint import md5_of
from collectfast_storage.s3.bucket import _checksum, _etag_of_parts


def test_checksum_of_the_site_is_not_replaced() -> None:
    """A checksum among the site's own parameters is sent as it is."""
    config = SimpleNamespace(request_checksum_calculation="when_supported")
    client = SimpleNamespace(meta=SimpleNamespace(config=config))
    assert _checksum(client, {}, BytesIO(b"x")).keys() == {"ChecksumCRC32"}
    assert _checksum(client, {"ChecksumCRC32": "own"}, BytesIO(b"x")) == {}


@pytest.mark.parametrize("etag", ["opaque", "", None])
def test_etag_of_parts_is_unknown_if_one_is_not_an_md5(etag: str | None) -> None:
    """The ETag of an upload follows from those of its parts if all are MD5s."""
    parts = [{"ETag": f'"{md5_of([b"a"])}"'}]
    assert _etag_of_parts(parts).endswith("-1")
    assert _etag_of_parts([*parts, {"ETag": etag}]) == ""
