"""Quirks of servers, with each of which deploys and unchanged deploys work."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from botocore.config import Config
from django.core.management.base import CommandError

from tests.support import quirks
from tests.support.caches import cold
from tests.support.faults import OtherRegion, sign_again
from tests.support.opaque_etags import Opaque
from tests.support.proxy import Handler, Request
from tests.support.quirks import Quirks
from tests.support.site import LOCAL, MANIFEST, STATIC, Deploy, Site

# Old versions of boto3 have no such options, because they add no checksums.
CHECKSUM_OPTIONS = [
    name
    for name in ("request_checksum_calculation", "response_checksum_validation")
    if name in Config.OPTION_DEFAULTS
]

pytestmark = [pytest.mark.slow, pytest.mark.covering]

# Options that a site needs with django-storages, too.
OPTIONS: dict[str, dict[str, Any]] = {
    "wants encryption": {
        "object_parameters": {
            "CacheControl": "max-age=60",
            "ServerSideEncryption": "AES256",
        }
    },
    "wants signed payloads": {
        "client_config": Config(s3={"payload_signing_enabled": True})
    },
    "wants no checksums": {
        "client_config": Config(**dict.fromkeys(CHECKSUM_OPTIONS, "when_required"))
    },
}
# Changes that the next deploy cannot detect yet, so it uploads all files again.
UNKNOWABLE = {"written keys are listed late"}
COMBINATIONS = [
    ("LIST: ETag another", "HEAD: ETag weak", "PUT: ETag none", "HTTP/1.0"),
    ("LIST: ETag none", "HEAD: ETag another", "PUT: ETag another each time"),
    ("LIST: ETag another each time", "PUT: ETag another", "ListObjects only"),
    ("ListObjects only", "keys are not encoded", "chunked"),
    ("ListObjects only", "no IsTruncated"),
    ("pages repeat keys", "no KeyCount", "keys out of order", "no DeleteObjects"),
]


def _collect(site: Site, cache: str, *arguments: str) -> Deploy:
    return site.collect(*arguments, **(cold(site) if cache == "cold" else {}))


@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.parametrize("backend", [STATIC, MANIFEST], ids=["plain", "manifest"])
@pytest.mark.parametrize(
    "switches", [*((each,) for each in quirks.ALL), *COMBINATIONS], ids=", ".join
)
def test_quirk(
    site: Site, switches: tuple[str, ...], backend: str, cache: str, way: str
) -> None:
    """With a quirk, files and headers are right, and unchanged deploys upload nothing.

    `--clear` deletes left over files, or fails if the quirk does not allow it.
    """
    site.backend = backend
    site.options["object_parameters"] = {"CacheControl": "max-age=60"}
    for switch in switches:
        site.options |= OPTIONS.get(switch, {})
    files = {f"dir{i}/f {i}+ü.txt": f"{i}".encode() for i in range(9)}
    files |= {"a.css": b"a { background: url('i.png') }", "i.png": b"image"}
    site.write_all(files)

    def collect(*arguments: str) -> Any:
        return _collect(site, cache, *arguments)

    def assert_complete(headers: bool = True) -> None:
        storages = {"staticfiles": {"BACKEND": LOCAL[backend]}}
        site.collect("--clear", STORAGES=storages)
        root = site.root / "collected"
        there = {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }
        # The server's own ETags are MD5s; only the proxy changes them.
        etags = site.bucket.etags()
        assert etags.keys() == there.keys() or backend == MANIFEST
        for name, content in there.items():
            assert etags[name] == hashlib.md5(content).hexdigest()
        for name in there if headers else ():
            assert site.bucket.get(name)["CacheControl"] == "max-age=60"

    Quirks(site.proxy, site.bucket.server, *switches)
    collect()
    assert_complete()

    unchanged = collect()
    if UNKNOWABLE.isdisjoint(switches):
        assert unchanged.put == []

    site.write("i.png", "another image")
    changed = collect()
    if UNKNOWABLE.isdisjoint(switches):
        changed_names = {*changed.put}
        assert len(changed_names) == (1 if backend == STATIC else 4), changed.put
        assert len(changed.put) <= 2 * len(changed_names)
    assert_complete(headers=False)
    assert site.bucket.get("i.png")["CacheControl"] == "max-age=60"

    site.bucket.put("left.css", b"left over")
    unlisted = {("no listing",), ("ListObjects only", "no IsTruncated")}
    if switches in unlisted or "deletes nothing" in switches:
        with pytest.raises(CommandError, match=r"'tests'|left\.css"):
            collect("--clear")
        site.bucket.delete("left.css")
    else:
        collect("--clear")
        collect("--clear")
    assert_complete()


@pytest.mark.parametrize(
    ("switches", "cache"),
    [
        (("LIST: ETag another each time", "HEAD: ETag another"), "cold"),
        (("LIST: ETag another each time", "HEAD: ETag another"), "warm"),
        (("LIST: ETag another", "HEAD: ETag another"), "warm"),
    ],
)
def test_only_responses_to_uploads_have_reliable_etags(
    site: Site, switches: tuple[str, ...], cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If only responses to uploads have reliable ETags, files are uploaded once more.

    One warning says so. The deploy after that uploads nothing.
    """
    files = site.write_many(12)
    Quirks(site.proxy, site.bucket.server, *switches)
    _collect(site, cache)
    caplog.clear()
    assert _collect(site, cache).put == sorted(files)
    [message] = caplog.messages
    assert message == (
        "The ETags in bucket 'tests' do not identify contents; uploading 12 files "
        "again."
    )
    assert _collect(site, cache).put == []
    assert site.bucket.files() == files


SILENT = ("LIST: ETag none", "HEAD: ETag none")


@pytest.mark.parametrize("backend", [STATIC, MANIFEST], ids=["plain", "manifest"])
@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_gateway_without_etags_and_metadata(
    site: Site, backend: str, cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Eight HEAD requests show that HEAD requests are useless; a warning names options.

    JuiceFS's gateway is such a server by default.
    """
    site.backend = backend
    files = site.write_many(40)
    Quirks(site.proxy, site.bucket.server, *SILENT, "no metadata")
    site.collect()
    for _ in range(2):
        caplog.clear()
        deploy = _collect(site, cache)
        assert {*deploy.put} >= files.keys()
        manifest = [key for key in site.proxy.keys("HEAD") if "staticfiles" in key]
        assert deploy.requests["HEAD"] - len(manifest) == 8
        assert caplog.messages == [
            "Objects in bucket 'tests' have neither ETags nor the fingerprints of "
            "earlier uploads; uploading 40 files again. If each deploy logs this "
            "warning, set collectfast_preload=False and a persistent cache, or start a "
            "JuiceFS gateway with --keep-etag."
        ]
    site.options["collectfast_preload"] = False
    site.collect()
    caplog.clear()
    deploy = site.collect()
    assert deploy.put == []
    assert deploy.requests["LIST"] == 0
    assert caplog.messages == []


@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_server_without_etags_that_keeps_metadata(site: Site, cache: str) -> None:
    """The second deploy uploads all files with a fingerprint, and then no deploy does.

    The first one got MD5s in the responses to its uploads.
    """
    files = site.write_many(40)
    Quirks(site.proxy, site.bucket.server, *SILENT)
    site.collect()
    deploy = _collect(site, cache)
    assert deploy.put == sorted(files)
    assert deploy.requests["HEAD"] == 8
    deploy = _collect(site, cache)
    assert deploy.put == []
    assert deploy.requests["HEAD"] == 40


def test_file_that_comes_back_while_its_deleted_key_is_listed(site: Site) -> None:
    """A file is uploaded again although its deleted object is still listed."""
    files = site.write_many(3)
    Quirks(site.proxy, site.bucket.server, "deleted keys stay listed")
    site.collect()
    (site.static / "dir1/file1.js").unlink()
    site.collect("--clear")
    assert "dir1/file1.js" not in site.bucket.names()
    site.write_all(files)
    assert site.collect().put == ["dir1/file1.js"]
    assert site.collect().put == []
    assert site.bucket.files() == files


class Encrypting:
    """A bucket that encrypts objects that are uploaded while encryption is on."""

    def __init__(self, site: Site) -> None:
        self.is_on = False
        self._fault = Opaque(site.proxy)
        site.proxy.fault = self

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.method == "PUT" and not self.is_on:
            self._fault._made.pop(request.key, None)
            return False
        is_known = request.key in self._fault._made
        is_seen = request.method == "PUT" or request.kind == "LIST" or is_known
        return is_seen and self._fault(handler, request, body)


@pytest.mark.parametrize("backend", [STATIC, MANIFEST], ids=["plain", "manifest"])
def test_bucket_with_encryption_that_is_switched_on_and_off(
    site: Site, backend: str
) -> None:
    """With a cold cache, an unchanged deploy uploads nothing, encrypted or not."""
    site.backend = backend
    site.write_many(16)
    bucket = Encrypting(site)
    for number, is_on in enumerate([False, True, False, True]):
        bucket.is_on = is_on
        _collect(site, "cold")
        assert _collect(site, "cold").put == []
        for changed in range(number, 16, 4):
            site.write(f"dir{changed % 7}/new{changed}.txt", f"{number}")
            path = next(site.static.rglob(f"file{changed}.*"))
            path.write_text(f"{number} of {changed}")
        _collect(site, "cold")
        unchanged = _collect(site, "cold")
        assert unchanged.put == []
        assert unchanged.requests["HEAD"] <= len(site.bucket.names())


def test_objects_of_several_tools(site: Site) -> None:
    """Objects that other tools uploaded are recognized, in parts or in one request."""
    content = b"0123456789abcdef" * 400_000  # 6.4 MB
    for name in ("rclone.bin", "aws.bin", "s5cmd.bin", "console.bin"):
        site.write(name, content)
    mebibyte = 1024 * 1024
    site.bucket.put_in_parts("rclone.bin", content, 5 * mebibyte)
    site.bucket.put("aws.bin", content)
    site.bucket.put_in_parts("s5cmd.bin", content, 50 * mebibyte)
    site.bucket.put("console.bin", content)
    assert _collect(site, "cold").put == []


def test_redirect_is_followed_once(site: Site, way: str) -> None:
    """A redirect to another region is followed once, not for each file.

    obstore does not follow it, so it is not used after a few failures.
    """
    files = site.write_many(100)
    fault = OtherRegion(301, {"PUT"})
    site.proxy.fault = fault
    site.collect()
    assert site.bucket.files() == files
    # With obstore, uploads may be under way when it has failed three times.
    followed = sum(fault.harmed.values())
    assert followed <= (1 if way == "plain" else 20)
    assert len(site.put()) == len(files) + followed


@pytest.mark.parametrize("path", ["/", "/gateway", "/gateway/"])
def test_endpoint_with_a_path(site: Site, way: str, path: str) -> None:
    """An endpoint URL may have a path, with or without a slash at its end."""
    files = site.write_many(12)
    site.options["endpoint_url"] = site.proxy.endpoint + path

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        handler.path = handler.path.removeprefix("/gateway")
        sign_again(handler, site.bucket.server, body)
        handler.pass_on(body)
        return True

    site.proxy.fault = fault
    site.collect()
    assert site.bucket.files() == files
    assert site.collect().put == []
    site.bucket.put("left.css", b"left over")
    site.collect("--clear")
    assert site.bucket.files() == files


def test_many_changed_files_do_not_make_etags_opaque(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """If many files change, there are few HEAD requests, no fingerprints, no warning.

    Changed files do not show that ETags are opaque.
    """
    for release in "abc":
        site.write_all({name: release.encode() for name in site.write_many(40)})
        deploy = _collect(site, "cold")
        assert len(deploy.put) == 40
        assert deploy.requests["HEAD"] <= 8
    assert caplog.messages == []
    assert not site.bucket.get("dir0/file0.css")["Metadata"]


@pytest.mark.parametrize("content", [b"", b"<ok/>"])
def test_endpoint_that_answers_200_to_everything(site: Site, content: bytes) -> None:
    """An endpoint that answers 200 to every request is reported as an error."""
    site.write_many(3)

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        handler.answer(200, content, [("Content-Type", "text/plain")])
        return True

    site.proxy.fault = fault
    with pytest.raises(CommandError, match="'tests'"):
        site.collect()


def test_foreign_object_does_not_cost_head_requests_for_cached_files(
    site: Site,
) -> None:
    """If another program replaces one object, cached files need no HEAD requests.

    The bucket has opaque ETags, and the cache is warm.
    """
    site.backend = MANIFEST
    files = site.write_many(30)
    opaque = Opaque(site.proxy)
    site.collect()
    key = site.bucket.key(next(iter(files)))
    site.bucket.put(next(iter(files)), b"another")
    opaque._made[key] = "0" * 32
    assert site.collect().requests["HEAD"] <= 4


@pytest.mark.parametrize(
    ("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument")]
)
def test_server_that_refuses_listobjectsv2(site: Site, status: int, code: str) -> None:
    """If a server refuses ListObjectsV2, ListObjects is used."""
    files = site.write_many(12)

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if is_refused := "list-type" in request.query:
            handler.error(status, code)
        return is_refused

    site.proxy.fault = fault
    site.collect()
    assert site.collect().requests == {"LIST": 2}
    site.bucket.put("left.css", b"left over")
    site.collect("--clear")
    assert site.bucket.files() == files


def test_listobjects_without_an_order(site: Site) -> None:
    """With ListObjects and keys out of order, no page is requested changed_names."""
    site.write_many(40)
    Quirks(site.proxy, site.bucket.server, "ListObjects only", "keys out of order")
    site.collect()
    assert site.collect().requests == {"LIST": 8}
