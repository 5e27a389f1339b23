"""Objects that were uploaded in parts, by this package and by other tools."""

from __future__ import annotations

import io
import math
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from collectfast_storage.payload import Payload
from tests.support.killing import file_cache
from tests.support.proxy import Handler, Request, refuse
from tests.support.site import Site

pytestmark = pytest.mark.covering

MIB = 1024 * 1024
SIZE = 17 * MIB + 123


@pytest.mark.parametrize("size", [5, 8, 10, 15, 16, 32])
def test_part_sizes_of_other_tools_are_recognized(site: Site, size: int) -> None:
    """A file that another tool uploaded in parts is uploaded only if it has changed."""
    content = os.urandom(SIZE)
    site.write("big.bin", content)
    site.bucket.put_in_parts("big.bin", content, size * MIB)
    deploy = site.collect()
    assert deploy.requests == {"LIST": 1}
    assert deploy.summary == "0 static files copied, 1 unmodified."
    site.write("big.bin", content[:-1] + b"!")
    site.collect()
    assert site.bucket.read("big.bin") == content[:-1] + b"!"


def test_upload_in_one_request_or_in_one_part_is_recognized(site: Site) -> None:
    """A file is recognized if it was uploaded in one request, or in a single part.

    Tools have different thresholds for uploads in parts.
    """
    content = os.urandom(9 * MIB)
    site.write("one-piece.bin", content)
    site.bucket.put("one-piece.bin", content)
    site.write("one-part.txt", b"small")
    site.bucket.put_in_parts("one-part.txt", b"small", 5 * MIB)
    site.write("one-big-part.bin", content)
    site.bucket.put_in_parts("one-big-part.bin", content, 16 * MIB)
    assert site.collect().requests == {"LIST": 1}


def test_unusual_part_size_costs_one_upload(site: Site) -> None:
    """An object in parts of unusual size is uploaded once, and is then recognized."""
    content = os.urandom(13 * MIB)
    site.write("big.bin", content)
    site.bucket.put_in_parts("big.bin", content, 7 * MIB)
    site.collect()
    assert site.bucket.read("big.bin") == content
    assert site.collect().requests == {"LIST": 1}


@pytest.mark.needs("S3's ETags of parts")
@pytest.mark.parametrize("chunk", [5, 6, 8])
def test_own_transfer_config_is_recognized(site: Site, chunk: int) -> None:
    """With a cold cache, a file is recognized if its parts have a configured size.

    The ETag is computed from the parts that boto3 sends.
    """
    site.options["transfer_config"] = TransferConfig(
        multipart_threshold=5 * MIB, multipart_chunksize=chunk * MIB
    )
    site.write("big.bin", os.urandom(13 * MIB))
    site.collect()
    etag = site.bucket.get("big.bin")["ETag"].strip('"')
    assert etag.endswith(f"-{math.ceil(13 / chunk)}")
    backend = "django.core.cache.backends.dummy.DummyCache"
    cold: dict[str, Any] = {"CACHES": {"default": {"BACKEND": backend}}}
    assert site.collect(**cold).requests == {"LIST": 1}


def test_hashes_for_all_part_sizes_need_little_memory(site: Site) -> None:
    """The ETags for all possible part sizes are computed without the file in memory."""
    site.write("big.bin", b"x" * (64 * MIB))
    with (site.static / "big.bin").open("rb") as file:
        tracemalloc.start()
        content = Payload(file, {}, TransferConfig())
        assert content.has_etag("0" * 32 + "-8") is False
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # Up to the threshold is read, to decide if the file is too large for one request.
    assert peak < 24 * MIB


def test_parts_of_a_file_below_the_threshold(site: Site) -> None:
    """A file below the threshold is recognized if another tool uploaded it in parts.

    The file is larger than the smallest possible part.
    """
    content = os.urandom(6 * MIB)
    site.write("big.bin", content)
    site.bucket.put_in_parts("big.bin", content, 5 * MIB)
    assert site.collect().requests == {"LIST": 1}


def test_file_smaller_than_a_part_has_no_etag_of_several() -> None:
    """A file that is smaller than a part cannot have an ETag of several parts."""
    content = Payload(io.BytesIO(b"content"), {}, TransferConfig())
    assert content.release_content()
    assert content.has_etag(content.body_md5)
    assert not content.has_etag(f"{content.body_md5}-2")


def _without_etag(handler: Handler, request: Request, body: bytes) -> bool:
    """Answer like a server that returns no ETag of an object uploaded in parts."""
    if request.method != "POST" or "uploadId" not in request.query:
        return False
    status, answer, headers = handler.ask(body)
    handler.answer(status, re.sub(rb"<ETag>.*</ETag>", b"", answer), headers)
    return True


@pytest.mark.needs("S3's ETags of parts")
def test_object_that_replaced_a_large_upload_is_not_taken_for_it(
    site: Site, tmp_path: Path
) -> None:
    """An object of another program that replaced a large upload is noticed.

    The other program overwrites the object before the upload is answered. The next
    deploy uploads the file again.
    """
    site.settings = file_cache(tmp_path / "cache")
    content = os.urandom(SIZE)
    site.write("big.bin", content)

    def overwrite(handler: Handler, request: Request, body: bytes) -> bool:
        if request.method == "POST" and "uploadId" in request.query and not done:
            answer = handler.ask(body)
            site.bucket.put("big.bin", b"of another program")
            done.append(True)
            handler.answer(*answer)
            return True
        return False

    done: list[bool] = []
    site.proxy.fault = overwrite
    deploy = site.collect()
    assert done
    assert deploy.requests["HEAD"] == 1
    assert site.bucket.read("big.bin") == b"of another program"
    site.collect()
    assert site.bucket.read("big.bin") == content


@pytest.mark.parametrize("may_ask", [True, False])
def test_server_that_does_not_return_the_etag_of_a_file_in_parts(
    site: Site, may_ask: bool
) -> None:
    """The ETag of an object in parts is read by HEAD, or computed if HEAD is denied.

    The server does not return the ETag in its response to the upload.
    """
    site.write("big.bin", os.urandom(SIZE))
    no_head = refuse("HEAD")

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        refused = not may_ask and no_head(handler, request, body)
        return refused or _without_etag(handler, request, body)

    # No program would guess the first of these part sizes.
    for extra in (12345, 2 * MIB):
        site.options["transfer_config"] = TransferConfig(
            multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB + extra
        )
        site.proxy.fault = fault
        deploy = site.collect()
    assert deploy.put == []
    assert deploy.summary == "0 static files copied, 1 unmodified."


def test_transfer_without_threads(site: Site) -> None:
    """With `use_threads=False`, a large file is uploaded once."""
    site.options["transfer_config"] = TransferConfig(
        multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, use_threads=False
    )
    content = os.urandom(SIZE)
    site.write("big.bin", content)
    assert set(site.collect().put) == {"big.bin"}
    assert site.bucket.read("big.bin") == content
    assert site.collect().put == []
