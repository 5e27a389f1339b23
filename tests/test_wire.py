"""The fast way: what botocore would send, and botocore where that does not do."""

from __future__ import annotations

import hashlib
from typing import Any

import boto3
import pytest
from botocore.config import Config

from collectfast_storage.template import Templates
from collectfast_storage.wire import Wire
from tests.proxy import Handler, Request, refuse
from tests.site import Site

PARAMETERS = {
    "ContentType": "text/css",
    "ContentEncoding": "gzip",
    "CacheControl": "max-age=60",
    "ACL": "public-read",
    "Metadata": {"a": "b"},
}
HEADERS = {
    "content-type": "text/css",
    "content-encoding": "gzip",
    "cache-control": "max-age=60",
    "x-amz-acl": "public-read",
    "x-amz-meta-a": "b",
}
# As boto3 1.36 and later can be told; those before add no checksums of their own.
WHEN_REQUIRED: dict[str, Any] = {
    name: "when_required"
    for name in ("request_checksum_calculation",)
    if name in Config.OPTION_DEFAULTS
}


def _client(**options: Any) -> Any:
    defaults = {
        "region_name": "us-east-1",
        "aws_access_key_id": "access",
        "aws_secret_access_key": "secret",
    }
    return boto3.client("s3", **(defaults | options))


@pytest.mark.parametrize(
    ("options", "host", "path", "region"),
    [
        ({}, "bucket.s3.amazonaws.com", "/", "us-east-1"),
        (
            {"region_name": "eu-central-1"},
            "bucket.s3.eu-central-1.amazonaws.com",
            "/",
            "eu-central-1",
        ),
        (
            {"config": Config(s3={"addressing_style": "path"})},
            "s3.amazonaws.com",
            "/bucket/",
            "us-east-1",
        ),
        (
            {"endpoint_url": "https://s3.example.com:443", "region_name": "auto"},
            "s3.example.com",
            "/bucket/",
            "auto",
        ),
        (
            {"endpoint_url": "http://localhost:9000", "aws_session_token": "token"},
            "localhost:9000",
            "/bucket/",
            "us-east-1",
        ),
        (
            {"config": Config(**WHEN_REQUIRED)},
            "bucket.s3.amazonaws.com",
            "/",
            "us-east-1",
        ),
    ],
)
def test_template_has_what_botocore_sends_and_nothing_of_one_file(
    options: dict[str, Any], host: str, path: str, region: str
) -> None:
    """Under TLS too, where botocore frames bodies that carry a checksum behind them."""
    template = Templates(_client(**options), "bucket").of("put_object", "x", PARAMETERS)
    assert template is not None
    assert (template.host, template.path, template.region) == (host, path, region)
    user_agent = {"user-agent": template.headers["user-agent"]}
    assert template.headers == {**HEADERS, **user_agent}


@pytest.mark.parametrize(
    ("bucket", "options"),
    [
        ("bucket", {"config": Config(signature_version="s3")}),
        ("bucket--use1-az4--x-s3", {}),
        ("bucket", {"config": Config(proxies={"https": "http://127.0.0.1:1"})}),
    ],
)
def test_where_only_boto3_knows_the_way_it_stands_aside(
    bucket: str, options: dict[str, Any]
) -> None:
    """Another signature, a directory bucket, a proxy: nothing is sent from here."""
    wire = Wire(_client(**options), bucket)
    assert wire.put("key", b"x", hashlib.md5(b"x").hexdigest(), "x", {}, {}) is None


def test_whoever_watches_botocore_is_not_bypassed() -> None:
    """moto, and others that answer in S3's place, see every request."""
    client = _client()
    seen: list[str] = []
    client.meta.events.register(
        "before-send.s3", lambda request, **_: seen.append(request.method)
    )
    wire = Wire(client, "bucket")
    assert wire.put("key", b"x", hashlib.md5(b"x").hexdigest(), "x", {}, {}) is None
    assert wire.list({}) is None
    # What they were shown to find out changes nothing.
    assert {*seen} == {"HEAD"}


def test_checksum_that_was_asked_for_is_left_to_boto3(site: Site) -> None:
    """What the site wants computed is computed."""
    site.options["object_parameters"] = {"ChecksumAlgorithm": "SHA256"}
    site.write("a.css", "a")
    site.collect()
    [put] = [r for r in site.proxy.requests if r.kind == "PUT"]
    assert "x-amz-checksum-sha256" in put.headers


@pytest.mark.needs("a check of Content-MD5")
def test_damaged_body_is_refused_and_sent_again(site: Site) -> None:
    """The MD5 travels with each upload, and the server checks it."""
    site.write("a.css", "content")
    damaged = []

    def damage(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "PUT":
            return False
        assert request.headers["content-md5"]
        if not damaged:
            damaged.append(request.key)
            handler.pass_on(body[:-1] + b"X")
            return True
        return False

    site.proxy.fault = damage
    site.collect()
    assert damaged
    assert site.bucket.read("a.css") == b"content"


def test_secrets_are_in_no_error(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Neither keys nor signatures, whatever goes wrong."""
    site.write("a.css", "a")
    site.proxy.fault = refuse("PUT")
    with (
        caplog.at_level("INFO"),
        pytest.raises(Exception, match="AccessDenied") as error,
    ):
        site.collect()
    text = str(error.value) + repr(error.value) + caplog.text
    assert site.bucket.server.secret_key not in text
    assert "Signature" not in text


@pytest.mark.parametrize("signed", [True, False])
def test_body_is_signed_as_the_client_is_told(site: Site, signed: bool) -> None:
    """https://botocore.amazonaws.com/v1/documentation/api/latest/reference/config.html"""
    site.options["client_config"] = Config(s3={"payload_signing_enabled": signed})
    # Which obstore cannot send: it signs every body.
    site.options["object_parameters"] = {"StorageClass": "STANDARD"}
    site.write("a.css", "a")
    site.collect()
    [put] = [each for each in site.proxy.requests if each.kind == "PUT"]
    digest = hashlib.sha256(b"a").hexdigest()
    assert put.headers["x-amz-content-sha256"] == (
        digest if signed else "UNSIGNED-PAYLOAD"
    )
    assert site.bucket.read("a.css") == b"a"
