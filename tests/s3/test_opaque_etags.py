"""Buckets with ETags that do not identify contents: SSE-KMS, SSE-C and others."""

from __future__ import annotations

import base64
import hashlib
import itertools
import threading
from collections.abc import Iterator

import pytest
from django.core.files.base import ContentFile

from tests.support.caches import cold
from tests.support.faults import sign_again
from tests.support.opaque_etags import METADATA, Opaque
from tests.support.proxy import Handler, Request
from tests.support.site import MANIFEST, STATIC, Site

# The fault that makes ETags opaque supports one way to write a listing.
pytestmark = pytest.mark.needs("listings as SeaweedFS writes them")


@pytest.fixture(params=["aws:kms", "aws:kms:dsse", None])
def opaque(site: Site, request: pytest.FixtureRequest) -> Iterator[Opaque]:
    """Yield a bucket that encrypts by default, or a look-alike with counted ETags."""
    yield Opaque(site.proxy, request.param)


def test_warm_cache_makes_head_requests_unnecessary(site: Site, opaque: Opaque) -> None:
    """With a warm cache, an unchanged deploy costs only a listing.

    The cache has the ETag that the bucket returned, whatever it means.
    """
    files = site.write_many(12)
    site.collect()
    assert {*site.collect().requests} == {"LIST"}
    assert site.bucket.files() == files


def test_cold_cache_costs_one_head_request_per_file(site: Site, opaque: Opaque) -> None:
    """With a cold cache, an unchanged deploy costs one HEAD request per file.

    The metadata of each object contain a fingerprint. Later changes are uploaded once.
    """
    site.write_many(12)
    site.collect()
    deploy = site.collect(**cold(site))
    assert deploy.requests == {"LIST": 1, "HEAD": 12}
    assert deploy.summary == "0 static files copied, 12 unmodified."
    site.write("dir0/file0.css", "changed")
    assert site.collect(**cold(site)).put == ["dir0/file0.css"]
    assert site.collect(**cold(site)).put == []
    assert site.bucket.read("dir0/file0.css") == b"changed"


def test_changed_headers_are_uploaded_with_a_cold_cache(
    site: Site, opaque: Opaque
) -> None:
    """With a cold cache, changed headers are uploaded once.

    The fingerprint in the metadata covers the headers, too.
    """
    site.write("a.css", "a")
    site.collect()
    site.options["object_parameters"] = {"CacheControl": "max-age=60"}
    assert site.collect(**cold(site)).put == ["a.css"]
    assert site.bucket.get("a.css")["CacheControl"] == "max-age=60"
    assert site.collect(**cold(site)).put == []


def test_objects_of_other_programs_are_uploaded_once(
    site: Site, opaque: Opaque
) -> None:
    """Objects that another program uploaded are uploaded once, with a fingerprint."""
    files = site.write_many(5)
    client = site.bucket.server.client()
    for name, content in files.items():
        key = site.bucket.key(name)
        client.put_object(Bucket=site.bucket.name, Key=key, Body=content)
        opaque._made[key] = hashlib.md5(b"theirs").hexdigest()
    assert sorted({*site.collect(**cold(site)).put}) == sorted(files)
    deploy = site.collect(**cold(site))
    assert deploy.requests == {"LIST": 1, "HEAD": 5}


@pytest.mark.covering
@pytest.mark.parametrize(("backend", "heads"), [(STATIC, 100), (MANIFEST, 200)])
def test_head_requests_are_concurrent(
    site: Site, opaque: Opaque, backend: str, heads: int
) -> None:
    """HEAD requests of a deploy with a cold cache are sent concurrently.

    Otherwise each file would cost a round trip. This is so until the last file, even if
    few files had been read when the listing arrived, and for the hashed names of a
    manifest. The requests for the manifest itself, which depend on boto3's checksum
    options, are not counted.
    """
    site.backend = backend
    site.write_many(100)
    site.collect()
    changed = threading.Condition()
    under_way: set[int] = set()
    alone: list[int] = []
    numbers = itertools.count()
    newest = 0

    def meet(handler: Handler, request: Request, body: bytes) -> bool:
        """Delay a HEAD request until another one is under way."""
        nonlocal newest
        if request.kind != "HEAD":
            return opaque(handler, request, body)
        with changed:
            newest = number = next(numbers)
            under_way.add(number)
            changed.notify_all()
            in_the_middle = 30 <= number < heads - 20 and not alone
            if in_the_middle and not changed.wait_for(
                lambda: newest > number or len(under_way) > 1, 5
            ):
                alone.append(number)
        try:
            return opaque(handler, request, body)
        finally:
            with changed:
                under_way.remove(number)

    site.proxy.fault = meet
    deploy = site.collect(**cold(site))
    assert deploy.put == []
    files = [key for key in site.proxy.keys("HEAD") if "staticfiles.json" not in key]
    assert len(files) == heads
    assert alone == []


def test_ordinary_bucket_gets_no_fingerprint(site: Site) -> None:
    """Uploads to an ordinary bucket have no fingerprint.

    Only the changed file costs a HEAD request, because an encrypted object with the
    same content would have another ETag, too.
    """
    site.write_many(12)
    site.collect()
    site.write("dir0/file0.css", "changed")
    deploy = site.collect(**cold(site))
    assert deploy.requests["HEAD"] == 1
    assert deploy.put == ["dir0/file0.css"]
    sent = [r for r in site.proxy.requests if METADATA in r.headers]
    assert sent == []


@pytest.mark.parametrize("gzip", [False, True])
def test_encryption_with_a_customers_key(site: Site, gzip: bool) -> None:
    """With SSE-C, all uploads have a fingerprint, and all HEAD requests have the key.

    The ETag is not an MD5 in this case.
    """
    key = b"k" * 32
    site.options["gzip"] = gzip
    site.options["object_parameters"] = {
        "SSECustomerAlgorithm": "AES256",
        "SSECustomerKey": key.decode(),
    }
    Opaque(site.proxy, None)
    site.write_many(6)
    site.collect()
    puts = [r for r in site.proxy.requests if r.kind == "PUT"]
    assert all(METADATA in request.headers for request in puts)
    deploy = site.collect(**cold(site))
    assert deploy.requests == {"LIST": 1, "HEAD": 6}
    heads = [r for r in site.proxy.requests if r.kind == "HEAD"]
    sent = {r.headers["x-amz-server-side-encryption-customer-key"] for r in heads}
    assert sent == {base64.b64encode(key).decode()}


class Encrypting:
    """Reports that objects are encrypted by KMS, although their ETags are MD5s.

    Ceph does so.
    """

    def __init__(self, site: Site, *plain: str) -> None:
        self._server, self._plain = site.bucket.server, plain
        site.proxy.fault = self

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        is_encrypted = not request.key.endswith(self._plain)
        if request.method == "PUT":
            del handler.headers["x-amz-server-side-encryption"]
            sign_again(handler, self._server, body)
        elif request.kind != "HEAD" or not is_encrypted:
            return False
        status, content, headers = handler.ask(body)
        encryption = ("x-amz-server-side-encryption", "aws:kms")
        handler.answer(status, content, [*headers, encryption])
        return True


def test_encrypted_objects_with_md5s_need_no_head_each(site: Site) -> None:
    """A sample of encrypted objects shows that their ETags are MD5s of contents."""
    site.options["object_parameters"] = {"ServerSideEncryption": "aws:kms"}
    Encrypting(site)
    files = site.write_many(80)
    site.collect()
    deploy = site.collect(**cold(site))
    assert deploy.requests["HEAD"] <= 9  # Eight, and perhaps the first file.
    assert deploy.summary == "0 static files copied, 80 unmodified."
    site.write("dir0/file0.css", "changed")
    site.write("dir1/file1.js", "changed too")
    deploy = site.collect(**cold(site))
    assert deploy.put == ["dir0/file0.css", "dir1/file1.js"]
    assert deploy.requests["HEAD"] <= 11  # Also the two that changed.
    files |= {"dir0/file0.css": b"changed", "dir1/file1.js": b"changed too"}
    assert site.bucket.files() == files


def test_manifest_of_encrypted_objects_with_md5s(site: Site) -> None:
    """Hashed names need no HEAD request either."""
    site.backend = MANIFEST
    site.options["object_parameters"] = {"ServerSideEncryption": "aws:kms"}
    Encrypting(site)
    site.write_many(40)
    site.collect()
    deploy = site.collect(**cold(site))
    assert deploy.put == []
    manifest = [key for key in site.proxy.keys("HEAD") if "staticfiles" in key]
    assert deploy.requests["HEAD"] - len(manifest) <= 9


def test_md5_of_an_object_that_is_not_encrypted_proves_nothing_of_others(
    site: Site,
) -> None:
    """Files are uploaded again if encryption is switched on, although ETags agree."""
    files = site.write_many(40)
    site.collect()
    site.options["object_parameters"] = {"ServerSideEncryption": "aws:kms"}
    Encrypting(site, *files)
    assert site.collect(**cold(site)).put == sorted(files)


@pytest.mark.needs("trailing checksums")
def test_save_outside_of_a_run(site: Site, opaque: Opaque) -> None:
    """A program's first save of a name cannot detect that the bucket encrypts.

    The second save uploads the fingerprint, and after it a HEAD request is enough. A
    look-alike does not report why its ETags are opaque, so each save uploads.
    """
    upload, head = {"HEAD": 1, "PUT": 1}, {"HEAD": 1}
    contents = (b"x", b"x", b"x", b"x", b"other", b"other", b"other")
    expected = [upload, upload, head, head, upload, head, head]
    if opaque._encryption is None:
        expected = [upload] * len(contents)
    for name in ("a.txt", "b.txt"):
        counts = []
        for content in contents:
            site.settings |= cold(site)
            site.proxy.requests.clear()
            with site.storage() as storage:
                storage.save(name, ContentFile(content))
            counts.append(dict(site.proxy.count()))
            assert site.bucket.read(name) == content
        assert counts == expected


@pytest.mark.needs("trailing checksums")
def test_save_of_a_file_that_was_collected(site: Site, opaque: Opaque) -> None:
    """A collected file has a fingerprint, so a program's save sends a HEAD only.

    The objects of a look-alike seem ordinary, and their ETags decide.
    """
    site.write("first.txt", b"first")
    site.write("a.txt", b"x")
    site.collect()
    site.proxy.requests.clear()
    with site.storage() as storage:
        storage.save("a.txt", ContentFile(b"x"))
    is_reported = opaque._encryption is not None
    assert site.proxy.count()["PUT"] == (0 if is_reported else 1)
    assert site.bucket.read("a.txt") == b"x"
