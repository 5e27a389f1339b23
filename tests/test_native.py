"""Uploads through obstore, where it is installed."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from collectfast_storage.native import Native
from collectfast_storage.wire import Wire
from tests.site import Site
from tests.test_collectstatic import NAMES

pytest.importorskip("obstore", reason="obstore is not installed")


def _sent_by_obstore(site: Site) -> list[str]:
    return [
        request.key.removeprefix(f"{site.bucket.location}/")
        for request in site.proxy.requests
        if request.kind == "PUT" and "boto" not in request.headers["user-agent"].lower()
    ]


def test_it_is_used_and_sends_the_same(site: Site) -> None:
    """Content and headers are those of the other way; the next run sends nothing."""
    site.options["gzip"] = True
    site.options["object_parameters"] = {
        "CacheControl": "max-age=60",
        "ContentDisposition": "inline",
        "ContentLanguage": "en",
        "Metadata": {"a": "b"},
    }
    files = site.write_many(20)
    site.collect()
    assert sorted(_sent_by_obstore(site)) == sorted(files)
    stored = site.bucket.get("dir0/file0.css")
    assert stored["ContentType"] == "text/css"
    assert stored["ContentEncoding"] == "gzip"
    assert stored["CacheControl"] == "max-age=60"
    assert stored["ContentDisposition"] == "inline"
    assert stored["ContentLanguage"] == "en"
    assert stored["Metadata"] == {"a": "b"}
    assert site.collect().requests == {"LIST": 1}


def test_names_of_all_kinds(site: Site) -> None:
    for name in NAMES:
        site.write(name, name)
    site.collect("--no-default-ignore")
    assert site.bucket.names() == sorted(NAMES)


@pytest.mark.parametrize(
    "parameters", [{"StorageClass": "STANDARD"}, {"ACL": "private"}, {"Tagging": "a=b"}]
)
def test_what_it_cannot_send_goes_the_other_way(
    site: Site, parameters: dict[str, Any]
) -> None:
    """Decided upload by upload."""
    site.options["object_parameters"] = parameters
    files = site.write_many(3)
    site.collect()
    assert _sent_by_obstore(site) == []
    assert site.bucket.files() == files


def test_its_failure_is_boto3s_to_mend(site: Site) -> None:
    """And what fails for good has boto3's error, with no secret in it."""
    site.write_many(5)
    site.proxy.fault = lambda handler, request, body: (
        request.kind == "PUT" and not handler.error(403, "AccessDenied")
    )
    with pytest.raises(Exception, match="AccessDenied") as error:
        site.collect()
    assert site.bucket.server.secret_key not in str(error.value)
    assert site.bucket.names() == []


def test_etag_that_is_not_the_contents_is_not_believed(site: Site) -> None:
    """It sends no MD5, so what the server got is compared afterwards."""
    site.write("a.css", "content")
    damaged = []

    def damage(handler: Any, request: Any, body: bytes) -> bool:
        if request.kind != "PUT" or damaged:
            return False
        damaged.append(request.key)
        # The signature covers the body: answer as a server that did not notice would.
        etag = hashlib.md5(b"damaged").hexdigest()
        handler.answer(200, b"", [("ETag", f'"{etag}"')])
        return True

    site.proxy.fault = damage
    site.collect()
    assert damaged
    assert site.bucket.read("a.css") == b"content"


def test_place_that_needs_more_is_left_alone(site: Site) -> None:
    """Own certificates, say, which obstore is not told of."""
    client = site.bucket.server.client()
    place = Wire(client, site.bucket.name).place
    assert place is not None
    assert place.plain
    assert Native.at(None, lambda: None) is None
