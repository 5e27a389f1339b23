"""Checksums of uploads over TLS: headers, because some servers refuse trailers.

Ceph 16, for example, refuses bodies that botocore sends in chunks, and s3rver stores
the chunks as they are.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from botocore.config import Config
from django.core.management.base import CommandError

from collectfast_storage.exceptions import UploadError
from tests.support.faults import sign_again
from tests.support.proxy import Handler, Request
from tests.support.site import Site
from tests.support.transfers import IN_PARTS, MIB, STREAMED

pytestmark = pytest.mark.covering

OPTION = "request_checksum_calculation"  # Old releases of boto3 do not have it.
ADDS_CHECKSUMS = (
    OPTION in Config.OPTION_DEFAULTS
    and os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION") != "when_required"
)
ADVICE = (
    "(The server may not support trailing checksums: set the option client_config as "
    "in the README.)"
)
HASHES: dict[str, Callable[[bytes], bytes]] = {
    "crc32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    "sha1": lambda body: hashlib.sha1(body).digest(),
    "sha256": lambda body: hashlib.sha256(body).digest(),
}


@pytest.fixture
def bodies(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Request, bytes]]:
    """The PUT requests of the site by boto3, with their bodies."""
    monkeypatch.setenv("AWS_CHECKSUM_ALGORITHM", "none")  # obstore is not used with it.
    found: list[tuple[Request, bytes]] = []

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.method == "PUT":
            found.append((request, body))
        return False

    site.proxy.fault = fault
    return found


def _write_files(site: Site) -> dict[str, bytes]:
    """Write a small file, a large one, and one that is streamed if it is compressed."""
    noise = random.Random(1).randbytes
    files = {"small.txt": b"small", "large.bin": noise(6 * MIB)}
    files["compressed.css"] = noise(6 * MIB)
    site.write_all(files)
    return files


@pytest.mark.parametrize("algorithm", [None, "CRC32", "SHA1", "SHA256"])
@pytest.mark.parametrize("config", [IN_PARTS, STREAMED], ids=["parts", "streamed"])
def test_checksum_of_each_upload_is_a_header(
    site: Site, bodies: list[tuple[Request, bytes]], algorithm: str | None, config: Any
) -> None:
    """No body is sent in chunks, and each checksum is that of its body."""
    site.options |= {"transfer_config": config, "gzip": True}
    if algorithm is not None:
        site.options["object_parameters"] = {"ChecksumAlgorithm": algorithm}
    files = _write_files(site)
    site.collect()
    assert len(bodies) == (5 if config is IN_PARTS else 3)
    name = (algorithm or "CRC32").lower()
    for request, body in bodies:
        headers = request.headers
        assert "aws-chunked" not in headers.get("content-encoding", "")
        assert not headers["x-amz-content-sha256"].startswith("STREAMING")
        checksum = headers.get(f"x-amz-checksum-{name}")
        if algorithm or ADDS_CHECKSUMS:
            assert checksum == base64.b64encode(HASHES[name](body)).decode()
        else:
            assert checksum is None
    assert site.bucket.read("large.bin") == files["large.bin"]
    assert site.collect().put == []


@pytest.mark.skipif(not ADDS_CHECKSUMS, reason="boto3 adds no checksums")
def test_no_checksum_is_sent_if_the_client_is_not_to_add_any(
    site: Site, bodies: list[tuple[Request, bytes]]
) -> None:
    """The README's `client_config` applies to parts too."""
    site.options["transfer_config"] = IN_PARTS
    site.options["client_config"] = Config(**{OPTION: "when_required"})
    _write_files(site)
    site.collect()
    for request, _ in bodies:
        assert not any("checksum" in name for name in request.headers)
        assert "aws-chunked" not in request.headers.get("content-encoding", "")


def _refuse_trailers(handler: Handler, request: Request, body: bytes) -> bool:
    refused = "x-amz-trailer" in request.headers
    if refused:
        handler.error(400, "XAmzContentSHA256Mismatch")
    return refused


@pytest.mark.parametrize("gzip", [False, True])
def test_server_that_refuses_trailing_checksums_needs_no_setting(
    site: Site, gzip: bool
) -> None:
    """Files in parts are uploaded, as small files are."""
    site.options |= {"transfer_config": IN_PARTS, "gzip": gzip}
    files = _write_files(site)
    site.proxy.fault = _refuse_trailers
    site.collect()
    assert site.bucket.names() == sorted(files)
    assert site.collect().put == []


@pytest.mark.parametrize("gzip", [False, True])
def test_deploy_without_the_proxy(site: Site, gzip: bool, way: str) -> None:
    """The server itself accepts the uploads, over TLS if it has a certificate."""
    server = site.bucket.server
    site.options |= {"transfer_config": IN_PARTS, "gzip": gzip}
    site.options |= {"endpoint_url": server.endpoint, "verify": server.authority}
    files = _write_files(site)
    site.collect()
    assert site.bucket.names() == sorted(files)
    assert site.bucket.read("large.bin") == files["large.bin"]
    assert site.collect().summary == "0 static files copied, 3 unmodified."


@pytest.mark.parametrize("code", ["MissingContentLength", "XAmzContentSHA256Mismatch"])
def test_refusal_of_a_streamed_body_names_the_setting(site: Site, code: str) -> None:
    """The error of the file has the advice, because the server's text is empty."""

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if refused := request.kind == "PUT":
            handler.error(400, code, "None")
        return refused

    site.write("a.css", "a")
    site.proxy.fault = fault
    with pytest.raises(CommandError) as caught:
        site.collect()
    assert str(caught.value) == (
        "Could not upload 1 file:\n"
        f"  a.css: An error occurred ({code}) when calling the PutObject operation: "
        f"None {ADVICE}"
    )


class Framing:
    """Stores parts with the framing of their chunks, as s3rver does behind TLS.

    Without an `etag`, the response to a completed upload has none, as on Ceph 16.
    """

    def __init__(self, site: Site, *, etag: bool) -> None:
        self._server, self._etag = site.bucket.server, etag
        site.proxy.fault = self

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.method == "POST" and "uploadId" in request.query:
            status, content, headers = handler.ask(body)
            if not self._etag:
                content = re.sub(b"<ETag>.*?</ETag>", b"<ETag></ETag>", content)
            handler.answer(status, content, headers)
            return True
        if "partNumber" not in request.query:
            return False
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        for name in request.headers:
            if "checksum" in name or name in ("content-md5", "x-amz-content-sha256"):
                del handler.headers[name]
        handler.headers.replace_header("Content-Length", str(len(framed)))
        sign_again(handler, self._server, framed)
        handler.pass_on(framed)
        return True


@pytest.mark.needs("S3's ETags of parts")  # The object is recognised by its ETag.
@pytest.mark.parametrize("etag", [False, True])
@pytest.mark.parametrize("gzip", [False, True])
def test_object_that_is_not_as_long_as_its_upload_is_an_error(
    site: Site, gzip: bool, etag: bool
) -> None:
    """The error names the file, and the next deploy uploads this file again."""
    site.options |= {"transfer_config": IN_PARTS, "gzip": gzip}
    name = "large.css" if gzip else "large.bin"
    content = random.Random(1).randbytes(6 * MIB)
    site.write_all({name: content, "a.txt": b"a"})
    Framing(site, etag=etag)
    with pytest.raises(UploadError) as caught:
        site.collect()
    stored = site.bucket.get(name)["ContentLength"]
    sent = stored - 2 * len("\r\n\r\n0\r\n\r\n") - len("500000") - len("100000")
    if not gzip:
        assert sent == len(content)
        assert str(caught.value) == (
            f"Could not upload 1 file:\n  {name}: The server stored {stored} bytes "
            f"instead of {sent}, so the object is damaged. {ADVICE}"
        )
    assert [*caught.value.failures] == [name]
    assert site.bucket.read("a.txt") == b"a"
    site.proxy.fault = None
    assert {*site.collect().put} == {name}
    assert site.collect().put == []
