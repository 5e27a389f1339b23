"""Whatever a bucket fails at in a deploy is told in a sentence, and never a traceback.

Outside of one, the exceptions are those of django-storages.
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

MANIFEST_STORAGE = "collectfast_storage.CollectfastS3ManifestStaticStorage"
BACKENDS = [STATIC, MANIFEST_STORAGE]
HTML = [("Content-Type", "text/html")]
HASTY = Config(retries={"total_max_attempts": 1})

Harm = Callable[[Handler, bytes], Any]


def _half(handler: Handler, body: bytes) -> None:
    """End the connection in the middle of the answer, or of its headers."""
    status, content, _ = handler.ask(body)
    handler.send_response_only(status)
    if handler.command != "HEAD":
        handler.send_header("Content-Length", str(len(content) + 10))
        handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.reset()


def _badly_dated(handler: Handler, body: bytes) -> None:
    dated = {"last-modified": "yesterday", "x-amz-missing-meta": "some"}
    status, content, headers = handler.ask(body)
    kept = [(k, v) for k, v in headers if k.lower() not in dated]
    handler.answer(status, content, [*kept, *dated.items()])


# What is not the server's fault, and what the answer to a HEAD does not tell.
MUTE: dict[str, Harm] = {
    "403": lambda handler, _: handler.answer(403, b""),
    "400": lambda handler, _: handler.answer(400, b""),
    "301": lambda handler, _: handler.answer(301, b""),
    "403 page": lambda handler, _: handler.answer(403, b"<html><p>No</html>", HTML),
    "407": lambda handler, _: handler.answer(407, b"Who are you?"),
}
ANSWERS: dict[str, Harm] = {
    **MUTE,
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
    "no HTTP": lambda handler, _: (
        handler.wfile.write(b"Hi\r\n\r\n") and handler.reset()
    ),
    "badly dated": _badly_dated,
}
# These are sent again for some seconds, whatever the storage.
PATIENCE = {"500", "500 page", "reset", "half", "no HTTP"}
# Answers to a HEAD have no content: these tell of an object, or that there is none.
FINE = {"HEAD": {"no bucket", "nothing", "page", "broken", "other"}}


def harming(kind: str, harm: Harm, part: str = "") -> Fault:
    """Do `harm` to requests of `kind` whose key has `part` in it."""

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        harms = request.kind == kind and part in request.key
        if harms:
            harm(handler, body)
        return harms

    return fault


@pytest.fixture
def deployed(site: Site) -> Site:
    """A site with a release in the bucket, and boto3's patience out of the way."""
    site.options["client_config"] = HASTY
    site.write("a.css", "a")
    site.write("b.css", "b")
    return site


@pytest.mark.parametrize("kind", ["HEAD", "GET"])
def test_manifest_that_cannot_be_read_is_an_error_in_words(
    deployed: Site, kind: str
) -> None:
    """Django reads it when the storage is built, before anything is collected."""
    site = deployed
    site.backend = MANIFEST_STORAGE
    site.collect()
    before = site.bucket.files()
    site.write("a.css", "changed")
    for name, harm in ANSWERS.items():
        if name in FINE.get(kind, {"badly dated"}):
            continue
        site.proxy.fault = harming(kind, harm, "staticfiles.json")
        with pytest.raises(BucketError, match="Cannot use bucket 'tests': ") as caught:
            site.collect()
        assert name not in MUTE or "credentials" in str(caught.value), name
        assert site.bucket.files() == before
    site.proxy.fault = None
    site.collect()
    assert site.bucket.read("a.css") == b"changed"


def test_manifest_that_cannot_be_read_by_other_programs(deployed: Site) -> None:
    """As with django-storages: same exception."""
    site = deployed
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
def test_no_answer_ends_in_a_traceback(deployed: Site, backend: str, kind: str) -> None:
    """A deploy that fails does so with a sentence, and what it may be is in it."""
    site = deployed
    site.collect()
    site.backend = backend
    site.options["collectfast_preload"] = kind != "HEAD"
    no_cache = {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}
    site.settings["CACHES"] = {"default": no_cache}

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if kind == "DELETE" and request.kind == "DELETE MANY":
            handler.error(501, "NotImplemented")
            return True
        is_manifest = "staticfiles.json" in request.key
        return not is_manifest and harming(kind, harm)(handler, request, body)

    for name, harm in ANSWERS.items():  # noqa: B007
        if backend != STATIC and name in PATIENCE:
            continue
        site.write("a.css", f"a{name}")
        for left_over in ("left.css", "over.css"):
            site.bucket.put(left_over, b"x")
        site.proxy.fault = fault
        try:
            site.collect(*["--clear"] * (kind != "HEAD"))
        except CommandError as error:
            assert isinstance(error, BucketError | FilesError), name
            assert name not in MUTE or "credentials" in str(error), (name, error)
        else:
            # What may not be asked for is uploaded; DeleteObjects is no must.
            assert name not in MUTE or (kind, name[:3]) in {
                ("HEAD", "403"),
                ("DELETE MANY", "400"),
            }
        site.proxy.fault = None


@pytest.mark.parametrize("kind", ["DELETE", "DELETE MANY"])
def test_delete_that_fails_as_all_others_would_is_one_of_the_bucket(
    deployed: Site, kind: str
) -> None:
    """One sentence, and not one a file."""
    for name in ("left.css", "over.css"):
        deployed.bucket.put(name, b"x")
    no_bucket = harming(kind, ANSWERS["no bucket"])
    no_many = harming("DELETE MANY", lambda handler, _: handler.error(501, "Not"))
    deployed.proxy.fault = lambda *what: no_bucket(*what) or no_many(*what)
    with pytest.raises(BucketError, match=r"Cannot use bucket 'tests': .*NoSuchBucket"):
        deployed.collect("--clear")
    assert {"left.css", "over.css"} < {*deployed.bucket.names()}


@pytest.mark.parametrize("kind", ["DELETE", "DELETE MANY"])
def test_page_in_the_place_of_an_answer_is_no_delete(deployed: Site, kind: str) -> None:
    deployed.bucket.put("left.css", b"x")
    page = harming(kind, ANSWERS["page"])
    no_many = harming("DELETE MANY", lambda handler, _: handler.error(501, "Not"))
    deployed.proxy.fault = lambda *what: page(*what) or no_many(*what)
    with pytest.raises(DeleteError, match=r"left\.css: The response is a web page"):
        deployed.collect("--clear")


@pytest.mark.parametrize("many", [True, False])
def test_answer_that_is_declared_as_html_is_no_page_if_it_has_a_request_id(
    deployed: Site, many: bool
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

    deployed.bucket.put("left.css", b"x")
    deployed.write("b.css", "b")
    deployed.options["transfer_config"] = IN_PARTS
    deployed.write("large.bin", b"x" * 6 * MIB)
    deployed.proxy.fault = fault
    deployed.collect("--clear")
    assert "left.css" not in deployed.bucket.names()
    assert deployed.bucket.read("b.css") == b"b"
    assert deployed.collect("--clear").put == []


@pytest.mark.parametrize("kind", ["HEAD", "GET"])
def test_object_that_post_processing_cannot_read(deployed: Site, kind: str) -> None:
    """What a CSS file names, and only the bucket has."""
    site = deployed
    site.backend = MANIFEST_STORAGE
    site.bucket.put("only-there.png", b"png")
    site.write("c.css", "c { background: url(only-there.png) }")
    for name, harm in ANSWERS.items():
        if name in FINE.get(kind, ANSWERS.keys() - {*MUTE, "half"}):
            continue
        site.proxy.fault = harming(kind, harm, "only-there.png")
        with pytest.raises(BucketError, match="Cannot use bucket 'tests': "):
            site.collect()
    site.proxy.fault = None
    site.collect()
    assert b"only-there." in site.bucket.read(site.manifest()["c.css"])


ASKED = pytest.mark.parametrize(
    "asked", ["open", "size", "listdir", "get_modified_time"]
)


def _fault_for(asked: str) -> Fault:
    return harming("LIST" if asked == "listdir" else "HEAD", ANSWERS["400"])


@ASKED
def test_what_a_program_asks(deployed: Site, asked: str) -> None:
    """A program gets the exceptions of django-storages, also in the block of a batch.

    Only a batch's own failures are `BucketError`s.
    """
    deployed.bucket.put("a.css", b"a")
    with deployed.storage() as storage:
        ask = getattr(storage, asked)
        deployed.proxy.fault = _fault_for(asked)
        with pytest.raises(ClientError):
            ask("a.css")
        with storage.batch(preload=False), pytest.raises(ClientError):
            ask("a.css")
        deployed.proxy.fault = harming("HEAD", ANSWERS["400"])
        in_words = pytest.raises(BucketError, match="credentials")
        with in_words, storage.batch(preload=False) as batch:
            batch.save("a.css", ContentFile(b"b"))


class Asking(CollectfastS3StaticStorage):
    """A site's own storage that uses the bucket while it post-processes."""

    asks: ClassVar[Callable[[Any], Any]] = staticmethod(bool)
    catches: ClassVar[bool] = True
    caught: ClassVar[list[Exception]] = []

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        try:
            type(self).asks(self)
        except Exception as error:
            self.caught.append(error)
            if not self.catches:
                raise
        yield from super().post_process(*args, **options)


@ASKED
@pytest.mark.parametrize("catches", [True, False])
def test_what_a_sites_own_code_asks_in_a_collectstatic(
    deployed: Site, monkeypatch: pytest.MonkeyPatch, asked: str, catches: bool
) -> None:
    """A site's own code gets the exceptions of django-storages, and may catch them.

    An exception that leaves `post_process` is a `BucketError`.
    """
    deployed.backend = f"{__name__}.Asking"
    deployed.bucket.put("other.css", b"a")

    def ask(storage: Any) -> None:
        deployed.proxy.fault = _fault_for(asked)
        try:
            getattr(storage, asked)("" if asked == "listdir" else "other.css")
        finally:
            deployed.proxy.fault = None

    monkeypatch.setattr(Asking, "asks", staticmethod(ask))
    monkeypatch.setattr(Asking, "catches", catches)
    monkeypatch.setattr(Asking, "caught", [])
    fails = pytest.raises(BucketError, match="credentials")
    with nullcontext() if catches else fails:
        deployed.collect()
    assert [type(error) for error in Asking.caught] == [ClientError]


@pytest.mark.parametrize("backend", BACKENDS)
def test_endpoint_that_is_no_url(deployed: Site, backend: str) -> None:
    deployed.backend = backend
    deployed.options["endpoint_url"] = "s3.example.com"
    with pytest.raises(BucketError, match=r"Cannot use bucket .*: Invalid endpoint"):
        deployed.collect()
