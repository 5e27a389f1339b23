"""Buckets whose ETags say nothing of contents: SSE-KMS, SSE-C, and some look-alikes."""

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

# What makes its ETags opaque, in the proxy, knows one way to write a listing.
pytestmark = pytest.mark.needs("listings as SeaweedFS writes them")


@pytest.fixture(params=["aws:kms", "aws:kms:dsse", None])
def opaque(site: Site, request: pytest.FixtureRequest) -> Iterator[Opaque]:
    """A bucket that encrypts by default, or a look-alike that just counts."""
    yield Opaque(site.proxy, request.param)


def test_unchanged_files_stay_with_a_warm_cache_and_no_request_more(
    site: Site, opaque: Opaque
) -> None:
    """The ETag that the bucket gave is remembered, whatever it is."""
    files = site.write_many(12)
    site.collect()
    assert {*site.collect().requests} == {"LIST"}
    assert site.bucket.files() == files


def test_unchanged_files_stay_with_a_cold_cache_for_a_head_each(
    site: Site, opaque: Opaque
) -> None:
    """The fingerprint travels with the object; an upload after it is remembered."""
    site.write_many(12)
    site.collect()
    deploy = site.collect(**cold(site))
    assert deploy.requests == {"LIST": 1, "HEAD": 12}
    assert deploy.summary == "0 static files copied, 12 unmodified."
    site.write("dir0/file0.css", "changed")
    assert site.collect(**cold(site)).put == ["dir0/file0.css"]
    assert site.collect(**cold(site)).put == []
    assert site.bucket.read("dir0/file0.css") == b"changed"


def test_changed_headers_are_seen_with_a_cold_cache_too(
    site: Site, opaque: Opaque
) -> None:
    """They are part of the fingerprint."""
    site.write("a.css", "a")
    site.collect()
    site.options["object_parameters"] = {"CacheControl": "max-age=60"}
    assert site.collect(**cold(site)).put == ["a.css"]
    assert site.bucket.get("a.css")["CacheControl"] == "max-age=60"
    assert site.collect(**cold(site)).put == []


def test_objects_of_other_programs_converge_after_one_upload(
    site: Site, opaque: Opaque
) -> None:
    """They have no fingerprint; ours then have one."""
    files = site.write_many(5)
    client = site.bucket.server.client()
    for name, content in files.items():
        key = site.bucket.key(name)
        client.put_object(Bucket=site.bucket.name, Key=key, Body=content)
        opaque._made[key] = hashlib.md5(b"theirs").hexdigest()
    assert sorted({*site.collect(**cold(site)).put}) == sorted(files)
    deploy = site.collect(**cold(site))
    assert deploy.requests == {"LIST": 1, "HEAD": 5}


@pytest.mark.parametrize(("backend", "heads"), [(STATIC, 100), (MANIFEST, 203)])
def test_heads_run_side_by_side(
    site: Site, opaque: Opaque, backend: str, heads: int
) -> None:
    """Else a cold cache would cost a round trip a file.

    To the last, however few files were read by the time that the listing was there;
    and for the hashed names of a manifest too, which is itself asked for thrice.
    """
    site.backend = backend
    site.write_many(100)
    site.collect()
    changed, under_way, alone = threading.Condition(), set(), []
    numbers, newest = itertools.count(), 0

    def meet(handler: Handler, request: Request, body: bytes) -> bool:
        """Let a HEAD wait until another one has come, or is there already."""
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
    assert deploy.requests["HEAD"] == heads
    assert alone == []


def test_ordinary_bucket_sees_no_fingerprint(site: Site) -> None:
    """And a HEAD only of what no ETag can decide: encrypted, it might be the same."""
    site.write_many(12)
    site.collect()
    site.write("dir0/file0.css", "changed")
    deploy = site.collect(**cold(site))
    assert deploy.requests["HEAD"] == 1
    assert deploy.put == ["dir0/file0.css"]
    sent = [r for r in site.proxy.requests if METADATA in r.headers]
    assert sent == []


@pytest.mark.parametrize("gzip", [False, True])
def test_customers_own_key(site: Site, gzip: bool) -> None:
    """SSE-C: the ETag is no MD5, and a HEAD needs the key. From the first upload on."""
    key = b"k" * 32
    site.options["gzip"] = gzip
    site.options["object_parameters"] = {
        "SSECustomerAlgorithm": "AES256",
        "SSECustomerKey": key.decode(),
    }
    opaque = Opaque(site.proxy, None)
    site.write_many(6)
    site.collect()
    puts = [r for r in site.proxy.requests if r.kind == "PUT"]
    assert all(METADATA in request.headers for request in puts)
    deploy = site.collect(**cold(site))
    assert deploy.requests == {"LIST": 1, "HEAD": 6}
    heads = [r for r in site.proxy.requests if r.kind == "HEAD"]
    sent = {r.headers["x-amz-server-side-encryption-customer-key"] for r in heads}
    assert sent == {base64.b64encode(key).decode()}
    assert opaque is not None


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


def test_save_outside_of_a_run(site: Site, opaque: Opaque) -> None:
    """A program's first save of a name cannot know that the bucket encrypts.

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


def test_save_of_a_file_that_was_collected(site: Site, opaque: Opaque) -> None:
    """A collected file has a fingerprint, so a program's save sends a HEAD only.

    A look-alike's objects look like ordinary ones, whose ETags decide.
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
