"""Objects that came in parts: ours, and those of other tools."""

from __future__ import annotations

import io
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

MIB = 1024 * 1024
SIZE = 17 * MIB + 123


@pytest.mark.parametrize("size", [5, 8, 10, 15, 16, 32])
def test_part_sizes_of_other_tools_are_recognised(site: Site, size: int) -> None:
    """What they uploaded is not uploaded again; and is, if it was changed."""
    content = os.urandom(SIZE)
    site.write("big.bin", content)
    site.bucket.put_in_parts("big.bin", content, size * MIB)
    deploy = site.collect()
    assert deploy.requests == {"LIST": 1}
    assert deploy.summary == "0 static files copied, 1 unmodified."
    site.write("big.bin", content[:-1] + b"!")
    site.collect()
    assert site.bucket.read("big.bin") == content[:-1] + b"!"


def test_upload_in_one_piece_or_in_one_part_is_recognised(site: Site) -> None:
    """Tools differ in when they begin to use parts."""
    content = os.urandom(9 * MIB)
    site.write("one-piece.bin", content)
    site.bucket.put("one-piece.bin", content)
    site.write("one-part.txt", b"small")
    site.bucket.put_in_parts("one-part.txt", b"small", 5 * MIB)
    site.write("one-big-part.bin", content)
    site.bucket.put_in_parts("one-big-part.bin", content, 16 * MIB)
    assert site.collect().requests == {"LIST": 1}


def test_part_size_that_nobody_has_costs_an_upload_and_converges(site: Site) -> None:
    content = os.urandom(13 * MIB)
    site.write("big.bin", content)
    site.bucket.put_in_parts("big.bin", content, 7 * MIB)
    site.collect()
    assert site.bucket.read("big.bin") == content
    assert site.collect().requests == {"LIST": 1}


@pytest.mark.needs("S3's ETags of parts")
@pytest.mark.parametrize("chunk", [5, 6, 8])
def test_own_transfer_config_is_recognised(site: Site, chunk: int) -> None:
    """With a cold cache too: the composite ETag is computed as boto3 sends it."""
    site.options["transfer_config"] = TransferConfig(
        multipart_threshold=5 * MIB, multipart_chunksize=chunk * MIB
    )
    site.write("big.bin", os.urandom(13 * MIB))
    site.collect()
    etag = site.bucket.get("big.bin")["ETag"].strip('"')
    assert etag.endswith(f"-{-(-13 // chunk)}")
    backend = "django.core.cache.backends.dummy.DummyCache"
    cold: dict[str, Any] = {"CACHES": {"default": {"BACKEND": backend}}}
    assert site.collect(**cold).requests == {"LIST": 1}


def test_parts_of_all_sizes_are_hashed_by_streaming(site: Site) -> None:
    """One pass for all sizes that are possible, and no file whole in memory."""
    site.write("big.bin", b"x" * (64 * MIB))
    with (site.static / "big.bin").open("rb") as file:
        tracemalloc.start()
        content = Payload(file, {}, TransferConfig())
        assert content.has_etag("0" * 32 + "-8") is False
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # What decides that it is too large for one request reads as much as the threshold.
    assert peak < 24 * MIB


def test_parts_of_a_file_that_we_would_send_whole(site: Site) -> None:
    """Read ahead or not: below our threshold, and above the smallest part."""
    content = os.urandom(6 * MIB)
    site.write("big.bin", content)
    site.bucket.put_in_parts("big.bin", content, 5 * MIB)
    assert site.collect().requests == {"LIST": 1}


def test_file_smaller_than_a_part_has_no_etag_of_several() -> None:
    content = Payload(io.BytesIO(b"content"), {}, TransferConfig())
    assert content.release_content()
    assert content.has_etag(content.body_md5)
    assert not content.has_etag(f"{content.body_md5}-2")


def _without_etag(handler: Handler, request: Request, body: bytes) -> bool:
    """Answer as a server that does not say which ETag a file in parts got."""
    if request.method != "POST" or "uploadId" not in request.query:
        return False
    status, answer, headers = handler.ask(body)
    handler.answer(status, re.sub(rb"<ETag>.*</ETag>", b"", answer), headers)
    return True


@pytest.mark.needs("S3's ETags of parts")
def test_etag_is_the_one_of_the_upload_and_not_of_what_is_there_by_now(
    site: Site, tmp_path: Path
) -> None:
    """Another program's large file is never taken for ours."""
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
def test_server_that_does_not_say_which_etag_a_file_in_parts_got(
    site: Site, may_ask: bool
) -> None:
    """A HEAD request asks for the ETag; if that is refused, it is computed."""
    site.write("big.bin", os.urandom(SIZE))
    no_head = refuse("HEAD")

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        refused = not may_ask and no_head(handler, request, body)
        return refused or _without_etag(handler, request, body)

    # The first part size is one that no program would guess.
    for extra in (12345, 2 * MIB):
        site.options["transfer_config"] = TransferConfig(
            multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB + extra
        )
        site.proxy.fault = fault
        deploy = site.collect()
    assert deploy.put == []
    assert deploy.summary == "0 static files copied, 1 unmodified."


def test_transfer_without_threads(site: Site) -> None:
    """`use_threads=False` is for sites that must not have any."""
    site.options["transfer_config"] = TransferConfig(
        multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, use_threads=False
    )
    content = os.urandom(SIZE)
    site.write("big.bin", content)
    assert set(site.collect().put) == {"big.bin"}
    assert site.bucket.read("big.bin") == content
    assert site.collect().put == []
