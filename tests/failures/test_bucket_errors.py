"""Errors of the bucket: one sentence during a deploy, and never a traceback.

Outside of a deploy, the exceptions are those of django-storages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from django.core.files.base import ContentFile
from django.core.management.base import CommandError
from storages.backends.s3 import S3ManifestStaticStorage

from collectfast_storage import CollectfastS3StaticStorage
from collectfast_storage.exceptions import BucketError, DeleteError, FilesError
from tests.support.proxy import Fault, Handler, Request
from tests.support.site import STATIC, Site
from tests.support.transfers import IN_PARTS, MIB

pytestmark = pytest.mark.covering

MANIFEST_STORAGE = "collectfast_storage.CollectfastS3ManifestStaticStorage"
BACKENDS = [STATIC, MANIFEST_STORAGE]
HTML = [("Content-Type", "text/html")]
ONE_ATTEMPT = Config(retries={"total_max_attempts": 1})

Harm = Callable[[Handler, bytes], Any]


def _half(handler: Handler, body: bytes) -> None:
    """End the connection in the middle of the response or of its headers."""
    status, content, _ = handler.ask(body)
    handler.send_response_only(status)
    if handler.command != "HEAD":
        handler.send_header("Content-Length", str(len(content) + 10))
        handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.reset()


def _not_http(handler: Handler, body: bytes) -> None:
    """Answer with a line that is not HTTP, and end the connection."""
    handler.wfile.write(b"Hi\r\n\r\n")
    handler.reset()


def _invalid_date(handler: Handler, body: bytes) -> None:
    """Answer with a `Last-Modified` header that is not a date."""
    dated = {"last-modified": "yesterday", "x-amz-missing-meta": "some"}
    status, content, headers = handler.ask(body)
    kept = [(k, v) for k, v in headers if k.lower() not in dated]
    handler.answer(status, content, [*kept, *dated.items()])


# Responses that refuse a request without a reason, as all responses to HEAD do. The
# error then mentions the credentials as a possible cause.
WITHOUT_REASON: dict[str, Harm] = {
    "403": lambda handler, _: handler.answer(403, b""),
    "400": lambda handler, _: handler.answer(400, b""),
    "301": lambda handler, _: handler.answer(301, b""),
    "403 page": lambda handler, _: handler.answer(403, b"<html><p>No</html>", HTML),
    "407": lambda handler, _: handler.answer(407, b"Who are you?"),
}
ANSWERS: dict[str, Harm] = {
    **WITHOUT_REASON,
    "refused": lambda handler, _: handler.error(403, "AccessDenied"),
    "no bucket": lambda handler, _: handler.error(404, "NoSuchBucket"),
    "500": lambda handler, _: handler.answer(500, b""),
    "500 page": lambda handler, _: handler.answer(500, b"<html><p>No</html>", HTML),
    "502": lambda handler, _: handler.answer(502, b"Bad gateway"),
    "broken error": lambda handler, _: handler.answer(400, b"<Error><Code>X</Co"),
    "nothing": lambda handler, _: handler.answer(200, b""),
    "page": lambda handler, _: handler.answer(200, b"<html><p/></html>", HTML),
    "broken": lambda handler, _: handler.answer(200, b"<a><b></a"),
    "other": lambda handler, _: handler.answer(
        200, b"<A><KeyCount>x</KeyCount><Contents>1</Contents><Error>2</Error></A>"
    ),
    "reset": lambda handler, _: handler.reset(),
    "half": _half,
    "not HTTP": _not_http,
    "invalid date": _invalid_date,
}
# Requests that get these responses are retried for some seconds with each storage.
RETRIED = {"500", "500 page", "reset", "half", "not HTTP"}
# Responses to HEAD have no body, so these look like an existing or a missing object.
FINE = {"HEAD": {"no bucket", "nothing", "page", "broken", "other"}}


def harming(kind: str, harm: Harm, part: str = "") -> Fault:
    """Return a fault that does `harm` to requests of `kind` with keys of that part."""

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        harms = request.kind == kind and part in request.key
        if harms:
            harm(handler, body)
        return harms

    return fault


def _either(first: Fault, second: Fault) -> Fault:
    """Return a fault that tries `first`, and then `second`."""

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        return first(handler, request, body) or second(handler, request, body)

    return fault


@pytest.fixture
def two_files(site: Site) -> Site:
    """Return a site with two files, and without retries of boto3."""
    site.options["client_config"] = ONE_ATTEMPT
    site.write("a.css", "a")
    site.write("b.css", "b")
    return site


@pytest.mark.parametrize("kind", ["HEAD", "GET"])
def test_unreadable_manifest_is_a_bucket_error(two_files: Site, kind: str) -> None:
    """A manifest that cannot be read ends collectstatic with a BucketError.

    Django reads the manifest when the storage is created, so no file is uploaded. The
    next deploy without the fault succeeds.
    """
    site = two_files
    site.backend = MANIFEST_STORAGE
    site.collect()
    before = site.bucket.files()
    site.write("a.css", "changed")
    for name, harm in ANSWERS.items():
        if name in FINE.get(kind, {"invalid date"}):
            continue
        site.proxy.fault = harming(kind, harm, "staticfiles.json")
        with pytest.raises(BucketError, match="Cannot use bucket 'tests': ") as caught:
            site.collect()
        if name in WITHOUT_REASON:
            assert "credentials" in str(caught.value), name
        assert site.bucket.files() == before
    site.proxy.fault = None
    site.collect()
    assert site.bucket.read("a.css") == b"changed"


def test_unreadable_manifest_outside_of_a_deploy(two_files: Site) -> None:
    """A manifest that cannot be read raises the exception of django-storages.

    This applies to programs, and to collectstatic if the package is disabled.
    """
    site = two_files
    site.backend = MANIFEST_STORAGE
    site.collect()
    site.proxy.fault = harming("HEAD", ANSWERS["403"])
    with pytest.raises(ClientError) as caught, site.storage():
        pass
    with pytest.raises(ClientError) as expected:
        S3ManifestStaticStorage(**site.storage_options)
    assert str(caught.value) == str(expected.value)
    site.options["collectfast_enabled"] = False
    with pytest.raises(ClientError):
        site.collect()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["LIST", "HEAD", "PUT", "DELETE", "DELETE MANY"])
def test_no_response_ends_in_a_traceback(
    two_files: Site, backend: str, kind: str
) -> None:
    """A deploy succeeds, or ends with one of the package's errors, for each response.

    If a response contains no reason, the error mentions the credentials.
    """
    site = two_files
    site.collect()
    site.backend = backend
    site.options["collectfast_preload"] = kind != "HEAD"
    arguments = [] if kind == "HEAD" else ["--clear"]
    no_cache = {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}
    site.settings["CACHES"] = {"default": no_cache}

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if kind == "DELETE" and request.kind == "DELETE MANY":
            handler.error(501, "NotImplemented")
            return True
        is_manifest = "staticfiles.json" in request.key
        return not is_manifest and harming(kind, harm)(handler, request, body)

    for name, harm in ANSWERS.items():  # noqa: B007
        if backend != STATIC and name in RETRIED:
            continue
        site.write("a.css", f"a{name}")
        for left_over in ("left.css", "over.css"):
            site.bucket.put(left_over, b"x")
        site.proxy.fault = fault
        try:
            site.collect(*arguments)
        except CommandError as error:
            assert isinstance(error, BucketError | FilesError), name
            if name in WITHOUT_REASON:
                assert "credentials" in str(error), (name, error)
        else:
            # Files are uploaded if HEAD requests are forbidden. If DeleteObjects is
            # rejected, each object is deleted with a request of its own.
            assert name not in WITHOUT_REASON or (kind, name[:3]) in {
                ("HEAD", "403"),
                ("DELETE MANY", "400"),
            }
        site.proxy.fault = None


@pytest.mark.parametrize("kind", ["DELETE", "DELETE MANY"])
def test_deletion_error_that_concerns_all_files_is_a_bucket_error(
    two_files: Site, kind: str
) -> None:
    """A deletion that fails for a reason that concerns all files is one BucketError.

    The error does not repeat the reason for each file.
    """
    for name in ("left.css", "over.css"):
        two_files.bucket.put(name, b"x")
    no_bucket = harming(kind, ANSWERS["no bucket"])
    no_many = harming("DELETE MANY", lambda handler, _: handler.error(501, "Not"))
    two_files.proxy.fault = _either(no_bucket, no_many)
    with pytest.raises(BucketError, match=r"Cannot use bucket 'tests': .*NoSuchBucket"):
        two_files.collect("--clear")
    assert {"left.css", "over.css"} < {*two_files.bucket.names()}


@pytest.mark.parametrize("kind", ["DELETE", "DELETE MANY"])
def test_web_page_is_not_a_successful_deletion(two_files: Site, kind: str) -> None:
    """A web page in response to a deletion is a DeleteError that names the file."""
    two_files.bucket.put("left.css", b"x")
    page = harming(kind, ANSWERS["page"])
    no_many = harming("DELETE MANY", lambda handler, _: handler.error(501, "Not"))
    two_files.proxy.fault = _either(page, no_many)
    with pytest.raises(DeleteError, match=r"left\.css: The response is a web page"):
        two_files.collect("--clear")


@pytest.mark.parametrize("many", [True, False])
def test_response_with_a_request_id_is_not_a_web_page(
    two_files: Site, many: bool
) -> None:
    """OpenStack Swift declares its responses to uploads and deletes like this."""

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "DELETE MANY" and not many:
            handler.error(501, "NotImplemented")
        elif request.method in ("PUT", "POST", "DELETE"):
            status, content, headers = handler.ask(body)
            status = 200 if request.method == "DELETE" else status
            kept = [(k, v) for k, v in headers if k.lower() != "content-type"]
            named = [(k, v) for k, v in kept if k.lower() != "x-amz-request-id"]
            named += [*HTML, ("x-amz-request-id", "tx1")]
            handler.answer(status, content, named)
        else:
            return False
        return True

    two_files.bucket.put("left.css", b"x")
    two_files.write("b.css", "b")
    two_files.options["transfer_config"] = IN_PARTS
    two_files.write("large.bin", b"x" * 6 * MIB)
    two_files.proxy.fault = fault
    two_files.collect("--clear")
    assert "left.css" not in two_files.bucket.names()
    assert two_files.bucket.read("b.css") == b"b"
    assert two_files.collect("--clear").put == []


@pytest.mark.parametrize("kind", ["HEAD", "GET"])
def test_object_that_post_processing_cannot_read(two_files: Site, kind: str) -> None:
    """An object that post-processing cannot read is a BucketError.

    The object is named in a CSS file, and exists only in the bucket. The next deploy
    without the fault succeeds.
    """
    site = two_files
    site.backend = MANIFEST_STORAGE
    site.bucket.put("only-there.png", b"png")
    site.write("c.css", "c { background: url(only-there.png) }")
    for name, harm in ANSWERS.items():
        if name in FINE.get(kind, ANSWERS.keys() - {*WITHOUT_REASON, "half"}):
            continue
        site.proxy.fault = harming(kind, harm, "only-there.png")
        with pytest.raises(BucketError, match="Cannot use bucket 'tests': "):
            site.collect()
    site.proxy.fault = None
    site.collect()
    assert b"only-there." in site.bucket.read(site.manifest()["c.css"])


METHODS = pytest.mark.parametrize(
    "method", ["open", "size", "listdir", "get_modified_time"]
)


def _fault_for(method: str) -> Fault:
    return harming("LIST" if method == "listdir" else "HEAD", ANSWERS["400"])


@METHODS
def test_error_of_a_storage_method_in_a_program(two_files: Site, method: str) -> None:
    """The storage's methods raise the exceptions of django-storages in a program.

    This includes calls in the block of a batch. Only the batch's own failures are
    BucketErrors.
    """
    two_files.bucket.put("a.css", b"a")
    with two_files.storage() as storage:
        call = getattr(storage, method)
        two_files.proxy.fault = _fault_for(method)
        with pytest.raises(ClientError):
            call("a.css")
        with storage.batch(preload=False), pytest.raises(ClientError):
            call("a.css")
        two_files.proxy.fault = harming("HEAD", ANSWERS["400"])
        fails = pytest.raises(BucketError, match="credentials")
        with fails, storage.batch(preload=False) as batch:
            batch.save("a.css", ContentFile(b"b"))


class Calling(CollectfastS3StaticStorage):
    """A storage that calls one of its methods in `post_process`."""

    calls: ClassVar[Callable[[Any], Any]] = staticmethod(bool)
    catches: ClassVar[bool] = True
    caught: ClassVar[list[Exception]] = []

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        try:
            type(self).calls(self)
        except Exception as error:
            self.caught.append(error)
            if not self.catches:
                raise
        yield from super().post_process(*args, **options)


@METHODS
@pytest.mark.parametrize("catches", [True, False])
def test_error_of_a_storage_method_in_post_processing(
    two_files: Site, monkeypatch: pytest.MonkeyPatch, method: str, catches: bool
) -> None:
    """The storage's methods raise the exceptions of django-storages to custom code.

    Custom code may catch them. An exception that leaves `post_process` becomes a
    BucketError.
    """
    two_files.backend = f"{__name__}.Calling"
    two_files.bucket.put("other.css", b"a")

    def call(storage: Any) -> None:
        two_files.proxy.fault = _fault_for(method)
        try:
            getattr(storage, method)("" if method == "listdir" else "other.css")
        finally:
            two_files.proxy.fault = None

    monkeypatch.setattr(Calling, "calls", staticmethod(call))
    monkeypatch.setattr(Calling, "catches", catches)
    monkeypatch.setattr(Calling, "caught", [])
    fails = pytest.raises(BucketError, match="credentials")
    with nullcontext() if catches else fails:
        two_files.collect()
    assert [type(error) for error in Calling.caught] == [ClientError]


@pytest.mark.parametrize("backend", BACKENDS)
def test_endpoint_that_is_not_a_url(two_files: Site, backend: str) -> None:
    """An endpoint that is not a URL ends collectstatic with a BucketError."""
    two_files.backend = backend
    two_files.options["endpoint_url"] = "s3.example.com"
    with pytest.raises(BucketError, match=r"Cannot use bucket .*: Invalid endpoint"):
        two_files.collect()
