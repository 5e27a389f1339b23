"""Responses to ListObjectsV2 that are not listings, or that are inconsistent."""

from __future__ import annotations

import re
from hashlib import md5
from xml.sax.saxutils import escape

import pytest
from botocore.config import Config
from django.core.management.base import CommandError

from tests.support.listings import NAMESPACE, XML, entry, result
from tests.support.proxy import Fault, Handler, Request
from tests.support.site import Site
from tests.support.tracing import BACKENDS

pytestmark = [pytest.mark.slow, pytest.mark.covering]

HTML = "<!DOCTYPE html><html><head><title>Welcome<br></title></head><body>Log in"
VERSIONS = (
    f"<ListVersionsResult {NAMESPACE}><Name>tests</Name><Prefix></Prefix>"
    "<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListVersionsResult>"
)
BUCKETS = f"<ListAllMyBucketsResult {NAMESPACE}><Buckets/></ListAllMyBucketsResult>"
PORTAL = "<html><body><p>Log in</p></body></html>"

A = md5(b"a").hexdigest()

ANSWERS = {
    "empty body": "",
    "a blank": " \n",
    "HTML": HTML,
    "XML of a captive portal": PORTAL,
    "cut off": result(entry("a.css"))[:-25],
    "cut off after the declaration": XML,
    "text": "OK",
    "JSON": '{"Contents": []}',
    "versions": VERSIONS,
    "buckets": BUCKETS,
    "error": f"{XML}<Error><Code>InternalError</Code><Message>No</Message></Error>",
    "truncated without a token": result(entry("a.css"), truncated=True),
    "key outside of the location": result(entry("other/a.css")),
    "entry without a key": result("<Contents><ETag>&quot;x&quot;</ETag></Contents>"),
    "same token for ever": result(truncated=True, token="again"),
    "same page for ever": result(entry("LOCATION/a.css"), truncated=True, token="t"),
    "two ETags of one key": result(
        entry("LOCATION/a.css"), entry("LOCATION/a.css", "0" * 32)
    ),
}


def listing(site: Site, body: str) -> Fault:
    """Return a fault that answers LIST with `body`."""
    content = body.replace("LOCATION", site.bucket.location).encode()

    def fault(handler: Handler, request: Request, _: bytes) -> bool:
        if request.kind == "LIST":
            handler.answer(200, content, [("Content-Type", "application/xml")])
        return request.kind == "LIST"

    return fault


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_response_that_is_not_a_listing(
    site: Site, backend: str, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A response that is not a listing is not taken for an empty bucket.

    `--clear` fails and deletes nothing. Without `--clear`, one HEAD request per file
    replaces the listing.
    """
    site.backend = backend
    site.options["client_config"] = Config(retries={"total_max_attempts": 1})
    for name in ("a.css", "held.css"):
        site.write(name, "new")
    for name in ("a.css", "left-over.css"):
        site.bucket.put(name, b"old")
    site.bucket.put("held.css", b"new")
    before = site.bucket.files()
    site.proxy.fault = listing(site, answer)
    with pytest.raises(CommandError, match="Cannot use bucket 'tests': ") as e:
        site.collect("--clear")
    assert "log in" not in str(e.value).lower()
    assert site.proxy.count().keys() == {"LIST"}
    assert site.bucket.files() == before
    if re.search(r"\(500\)|InternalError", str(e.value)):
        return  # boto3 itself reports some responses as errors, and they end the run.
    caplog.clear()
    assert site.collect().put == ["a.css"]
    assert site.bucket.files() == before | {"a.css": b"new"}
    [message] = caplog.messages
    assert "Cannot list bucket 'tests'; sending one HEAD request per file" in message


def test_listing_that_is_wrong_from_its_second_page_on(site: Site) -> None:
    """If the second page of a listing is wrong, `--clear` fails and deletes nothing.

    The first page must not be taken for the whole listing.
    """
    site.options["client_config"] = Config(retries={"total_max_attempts": 1})
    site.write("a.css", "a")
    site.bucket.put("b.css", b"b")
    first = listing(site, result(entry("LOCATION/a.css"), truncated=True, token="t"))
    for answer in ANSWERS.values():
        rest = listing(site, answer)

        def fault(handler: Handler, request: Request, body: bytes) -> bool:
            again = "continuation-token" in request.query
            return (rest if again else first)(handler, request, body)  # noqa: B023

        site.proxy.fault = fault
        with pytest.raises(CommandError, match="Cannot use bucket 'tests': "):
            site.collect("--clear")
        assert site.proxy.count().keys() == {"LIST"}


def test_listing_that_fails_is_completed_by_head_requests(site: Site) -> None:
    """If a listing fails after its first page, only other files need HEAD requests."""
    for name in ("a.css", "b.css"):
        site.write(name, "a")
        site.bucket.put(name, b"a")
    entries = entry("LOCATION/a.css", A)
    first = listing(site, result(entries, truncated=True, token="t"))
    rest = listing(site, BUCKETS)

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        again = "continuation-token" in request.query
        return (rest if again else first)(handler, request, body)

    site.proxy.fault = fault
    assert site.collect().requests == {"LIST": 2, "HEAD": 1}
    assert site.proxy.keys("HEAD") == [site.bucket.key("b.css")]


def test_pages_without_objects_do_not_end_the_listing(site: Site) -> None:
    """A page without objects does not end a listing.

    S3 may send such pages before others.
    """
    site.write("a.css", "a")
    site.bucket.put("a.css", b"a")
    empty = listing(site, result(truncated=True, token="next"))

    def at_first(handler: Handler, request: Request, body: bytes) -> bool:
        if site.proxy.count()["LIST"] <= 5:
            return empty(handler, request, body)
        last = listing(site, result(entry("LOCATION/a.css", A)))
        return last(handler, request, body)

    site.proxy.fault = at_first
    assert site.collect().requests == {"LIST": 6}


def test_key_with_two_etags_is_not_trusted(site: Site) -> None:
    """A key that two pages list with different ETags is uploaded.

    Another program has overwritten it during the listing, and the order of the pages
    does not show which of the ETags is the newer one.
    """
    site.write("a.css", "a")
    site.bucket.put("a.css", b"overwritten")
    pages = [
        listing(site, result(entry("LOCATION/a.css", A), truncated=True, token="t")),
        listing(site, result(entry("LOCATION/a.css", "0" * 32))),
    ]

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        page = pages["continuation-token" in request.query]
        return page(handler, request, body)

    site.proxy.fault = fault
    assert site.collect().requests["PUT"] == 1
    assert site.bucket.read("a.css") == b"a"


def test_server_that_does_not_encode_keys(site: Site) -> None:
    """Keys are read as they are if a server ignores the requested encoding.

    Such a server does not return an EncodingType.
    """
    names = ["per%20cent.css", "plus+.css", "amp&.css", "with space.css"]
    for name in names:
        site.write(name, "a")
    entries = [entry(escape(f"LOCATION/{name}"), A) for name in names]
    body = result(*entries).replace("<EncodingType>url</EncodingType>", "")
    site.proxy.fault = listing(site, body)
    assert site.collect("--dry-run").summary.startswith("0 static files copied, 4")


def test_server_that_lists_objects_without_etags(site: Site) -> None:
    """If a listing has no ETags, files are uploaded again, not skipped wrongly."""
    site.write("a.css", "a")
    site.write("empty.css")
    bare = re.compile("<ETag>.*</ETag>")
    entries = [entry("LOCATION/a.css"), entry("LOCATION/empty.css")]
    site.proxy.fault = listing(site, bare.sub("", result(*entries)))
    assert site.collect("--no-post-process").put == ["a.css", "empty.css"]
    assert "empty.css" in site.collect("--no-post-process").put
    site.bucket.put("a.css", b"of somebody else")
    assert site.collect("--no-post-process").put == ["a.css", "empty.css"]
    assert site.bucket.files() == {"a.css": b"a", "empty.css": b""}


def test_uploads_and_head_requests_answered_by_a_web_page(site: Site) -> None:
    """A web page in response to an upload or a HEAD request is reported as an error."""
    site.options["client_config"] = Config(retries={"total_max_attempts": 1})

    def portal(handler: Handler, request: Request, body: bytes) -> bool:
        handler.answer(200, PORTAL.encode(), [("Content-Type", "text/html")])
        return True

    def put(handler: Handler, request: Request, body: bytes) -> bool:
        return request.kind == "PUT" and portal(handler, request, body)

    site.write("a.css", "a")
    site.proxy.fault = put
    with pytest.raises(CommandError, match=r"a\.css: The response is a web page"):
        site.collect()
    site.options["collectfast_preload"] = False
    site.proxy.fault = portal
    with pytest.raises(
        CommandError, match=r"Cannot use bucket 'tests': The response is a web page"
    ):
        site.collect()
    site.proxy.fault = None
    site.collect()
    assert site.bucket.files() == {"a.css": b"a"}
