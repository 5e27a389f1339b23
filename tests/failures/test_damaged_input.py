"""Objects, manifests, listings and responses that are damaged or malicious."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest
from botocore.config import Config
from django.core.management.base import CommandError
from storages.utils import clean_name

from collectfast_storage import CollectfastS3StaticStorage
from collectfast_storage.exceptions import UploadError
from tests.support.caches import cold
from tests.support.faults import sign_again
from tests.support.listings import entry, result
from tests.support.opaque_etags import METADATA, Opaque
from tests.support.proxy import Handler, Request, proxy
from tests.support.servers import Server
from tests.support.site import MANIFEST, Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

FINGERPRINT = "collectfast-fingerprint"
PLAIN_MANIFEST = "storages.backends.s3.S3ManifestStaticStorage"
ONE_ATTEMPT = Config(retries={"total_max_attempts": 1}, connect_timeout=2)


# Fingerprints in the metadata of objects.


def _fingerprint(site: Site, name: str) -> dict[str, str]:
    """Return the metadata that the package writes if ETags are opaque."""
    Opaque(site.proxy)
    site.write("0.txt", "This file shows that ETags are opaque.")
    site.collect()
    site.collect("--clear")
    site.write(name, site.static.joinpath(name).read_bytes() + b" ")
    site.collect()
    site.write(name, site.static.joinpath(name).read_bytes()[:-1])
    site.collect()
    metadata: dict[str, str] = site.bucket.get(name)["Metadata"]
    site.proxy.reset()
    assert FINGERPRINT in metadata
    return metadata


@pytest.mark.needs("listings as SeaweedFS writes them")
@pytest.mark.parametrize(
    ("encryption", "content", "preload"),
    [
        ("no", b"wante!", True),  # Another file shows that these ETags are MD5s.
        ("no", b"short", True),
        ("no", b"a longer one", False),
        ("aws:kms", b"short", True),
        ("aws:kms", b"a longer one", False),
        ("aws:kms", b"", True),
    ],
)
def test_object_that_was_rewritten_with_its_old_metadata_is_uploaded(
    site: Site, preload: bool, encryption: str, content: bytes
) -> None:
    """An object is uploaded again if its ETag or length contradicts its fingerprint.

    Tools that rewrite objects, for example to minify or to scan them, keep the old
    metadata.
    """
    site.write("a.css", b"wanted")
    metadata = _fingerprint(site, "a.css")
    site.bucket.put("a.css", content, ContentType="text/css", Metadata=metadata)
    if encryption != "no":
        opaque = Opaque(site.proxy, encryption)
        for name in ("a.css", "0.txt"):
            opaque._made[site.bucket.key(name)] = hashlib.md5(name.encode()).hexdigest()
    site.options["collectfast_preload"] = preload
    assert "a.css" in site.collect(**cold(site)).put
    assert site.bucket.read("a.css") == b"wanted"
    assert "a.css" not in site.collect(**cold(site)).put


@pytest.mark.parametrize("invalid", ["0-0", "-", "", "x" * 100, "0-0-0"])
def test_invalid_fingerprints_cost_few_requests(site: Site, invalid: str) -> None:
    """A bucket with invalid fingerprints is still treated as one with MD5 ETags.

    The run sends HEAD requests for a sample of the files only, and adds a fingerprint
    to none of them.
    """
    for number in range(48):
        metadata = {FINGERPRINT: invalid} if number % 2 == 0 else {}
        name = f"{number:02}.css"
        site.bucket.put(name, b"old", ContentType="text/css", Metadata=metadata)
        site.write(name, "new")
    deploy = site.collect(**cold(site))
    assert deploy.requests["PUT"] == 48
    assert deploy.requests["HEAD"] <= 10
    assert [r.key for r in site.proxy.requests if METADATA in r.headers] == []
    assert {*site.bucket.files().values()} == {b"new"}


# Damaged manifests.

PATHS = {
    "outside": {"a.css": "../x"},
    "far outside": {"a.css": "../../../../../x"},
    "absolute": {"a.css": "/x"},
    "empty": {"a.css": ""},
    "folder": {"a.css": "."},
    "number": {"a.css": 7},
    "null": {"a.css": None},
    "list": {"a.css": ["a.0123456789ab.css"]},
    "object": {"a.css": {"a.css": "a.css"}},
    "boolean": {"a.css": True},
    "long": {"a.css": "x" * 5000},
    "control characters": {"a.css": "a\x00\x1b\n.css"},
    "surrogate": {"a.css": "a\ud800.css"},
    "source outside": {"../a.css": "a.0123456789ab.css", "": "x"},
    "no paths": None,
    "list of paths": ["a.css", "a.0123456789ab.css"],
    "text": "a.css",
    "number of paths": 7,
}


@pytest.mark.covering(every=True)
@pytest.mark.parametrize(
    ("backend", "arguments", "paths"),
    [
        *((MANIFEST, [], each) for each in PATHS),
        *((MANIFEST, ["--clear"], each) for each in PATHS),
        # Two control cases. (django-storages implements --clear differently.)
        (PLAIN_MANIFEST, [], "text"),
        (PLAIN_MANIFEST, [], "no paths"),
    ],
)
def test_damaged_manifest_is_replaced(
    site: Site, backend: str, arguments: list[str], paths: str
) -> None:
    """A deploy ignores paths in the manifest that are not names, and replaces it.

    django-storages alone, as a control case, does the same.
    """
    site.backend = backend
    site.write("a.css", "a { background: url(b.png) }")
    site.write("b.png", "b")
    site.collect()
    expected = site.bucket.files()
    damaged = {"version": "1.1", "paths": PATHS[paths], "hash": "0123"}
    site.bucket.put("staticfiles.json", json.dumps(damaged).encode())
    outside = f"{site.bucket.location.rpartition('/')[0]}/x"
    site.bucket.client.put_object(Bucket=site.bucket.name, Key=outside, Body=b"x")
    site.collect(*arguments)
    assert site.bucket.files() == expected
    site.bucket.client.head_object(Bucket=site.bucket.name, Key=outside)
    assert site.collect("--no-post-process").summary.startswith("0 static files")


@pytest.mark.needs("listings as SeaweedFS writes them")
def test_names_of_the_manifest_that_a_complete_listing_lacks_cost_nothing(
    site: Site,
) -> None:
    """A manifest with a thousand missing names does not cause a HEAD for each name.

    The listing is complete, so it shows that these objects do not exist.
    """
    site.backend = MANIFEST
    site.write_many(3)
    Opaque(site.proxy)
    site.collect()
    manifest = json.loads(site.bucket.read("staticfiles.json"))
    missing = {f"{n}.css": f"{n}.0123456789ab.css" for n in range(1000)}
    manifest["paths"] |= missing
    site.bucket.put("staticfiles.json", json.dumps(manifest).encode())
    deploy = site.collect(**cold(site))
    assert deploy.requests["LIST"] == 1
    assert deploy.requests["HEAD"] < 30
    assert not {*missing} & {*site.manifest()}


# Unusual and malicious keys.


class OwnDelete(CollectfastS3StaticStorage):
    """A storage with a `delete` that only calls the inherited one."""

    def delete(self, name: str) -> None:
        super().delete(name)


class DirectDelete(CollectfastS3StaticStorage):
    """A storage with a `delete` that repeats the code of django-storages."""

    def delete(self, name: str) -> None:
        self.bucket.Object(self._normalize_name(clean_name(name))).delete()


@pytest.mark.covering(every=True)
@pytest.mark.parametrize(
    "storage", [OwnDelete, DirectDelete, CollectfastS3StaticStorage]
)
@pytest.mark.parametrize(
    "odd",
    [
        "./app.css",
        "x/../app.css",
        "/app.css",
        "x//app.css",
        "../static/app.css",
        "../../app.css",
    ],
)
def test_clear_does_not_delete_a_collected_file_by_another_spelling(
    site: Site, odd: str, storage: type
) -> None:
    """`--clear` deletes an object with an unusual key by exactly that key, or not.

    A file with the normalized key is not deleted. Other left-over objects are.
    """
    module = __name__ if storage.__module__ == __name__ else "collectfast_storage"
    site.backend = f"{module}.{storage.__name__}"
    site.write("app.css", "app")
    site.write("x/app.css", "app")
    site.collect()
    site.bucket.put("old.css", b"old")
    etag = hashlib.md5(b"app").hexdigest()
    keys = {"app.css": etag, "x/app.css": etag, "old.css": "0" * 32, odd: "1" * 32}
    entries = sorted((site.bucket.key(name), etag) for name, etag in keys.items())
    listing = result(*itertools.starmap(entry, entries))
    deleted: list[str] = []

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        kind = request.kind
        if kind == "LIST":
            handler.answer(200, listing.encode(), [("Content-Type", "text/xml")])
        elif kind == "DELETE":
            deleted.append(request.key)
            handler.answer(204, b"")
        elif kind == "DELETE MANY":
            deleted.extend(re.findall("<Key>(.*?)</Key>", body.decode()))
            handler.answer(200, b"<DeleteResult></DeleteResult>")
        return kind == "LIST" or kind.startswith("DELETE")

    site.proxy.fault = fault
    site.collect("--clear")
    assert site.bucket.key("old.css") in deleted
    assert not {site.bucket.key(name) for name in ("app.css", "x/app.css")} & {*deleted}
    assert {*deleted} <= {site.bucket.key("old.css"), site.bucket.key(odd)}


EVIL = "left\x1b[31m\rover\n'fake.css"
ESCAPED = r"left\x1b[31m\rover\n'fake.css"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.mark.needs("newlines in keys")
@pytest.mark.needs("a listing with control characters")
@pytest.mark.parametrize(
    "arguments", [["-v2"], ["-v3"], ["--dry-run"]], ids=lambda arguments: arguments[0]
)
def test_control_characters_in_keys_are_printed_escaped(
    site: Site, caplog: pytest.LogCaptureFixture, arguments: list[str]
) -> None:
    """`--clear` prints the key of a deleted object in one line, with escapes."""
    site.write("a.css", "a")
    site.bucket.put(EVIL, b"x")
    with caplog.at_level("DEBUG", "collectfast_storage"):
        output = site.collect("--clear", *arguments).output
    assert ESCAPED in output
    assert not CONTROL.search(output)
    assert not any(CONTROL.search(m) or EVIL in m for m in _messages(caplog))


def _messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages that the package has logged."""
    return [r.getMessage() for r in caplog.records if r.name == "collectfast_storage"]


@pytest.mark.needs("newlines in keys")
@pytest.mark.needs("a listing with control characters")
@pytest.mark.parametrize("kind", ["PUT", "DELETE"])
def test_control_characters_in_names_that_failed_are_escaped(
    site: Site, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """The text of an error has escapes in names, and `failures` has the exact names."""
    site.write("a.css", "a")
    if kind == "PUT":
        site.write(EVIL, "x")
    for name in (EVIL, "control\x01.css"):
        site.bucket.put(name, b"left over")

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        is_victim = kind == "DELETE" or "\x1b" in request.key
        refused = request.kind.startswith(kind) and is_victim
        if refused:
            handler.error(403, "AccessDenied")
        return refused

    site.proxy.fault = fault
    with (
        caplog.at_level("DEBUG", "collectfast_storage"),
        pytest.raises(CommandError) as caught,
    ):
        site.collect("--clear", "-v2")
    text = str(caught.value)
    assert not CONTROL.search(text)
    assert ESCAPED in text
    if kind == "PUT":
        assert isinstance(caught.value, UploadError)
        assert list(caught.value.failures) == [EVIL]
    assert not any(CONTROL.search(message) for message in _messages(caplog))


@pytest.mark.parametrize("value", ["max-age=1\x1b[2J", "x\x9b31m", "tab\tand\x08bell"])
def test_control_characters_in_header_values_are_escaped(
    site: Site, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    """The warning about changed headers prints the old value with escapes."""
    site.options["object_parameters"] = {"CacheControl": "max-age=1"}
    site.write_many(8)
    site.collect()
    site.options["object_parameters"] = {"CacheControl": "max-age=2"}

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "HEAD":
            status, content, headers = handler.ask(body)
            kept = [(k, v) for k, v in headers if k.lower() != "cache-control"]
            handler.answer(status, content, [*kept, ("Cache-Control", value)])
        return request.kind == "HEAD"

    site.proxy.fault = fault
    with caplog.at_level("DEBUG", "collectfast_storage"):
        output = site.collect("-v2").output
    messages = _messages(caplog)
    text = value.encode("unicode_escape").decode()
    assert any(text in message for message in messages)
    assert not any(CONTROL.search(message) for message in [output, *messages])


# Secrets in the URL of the endpoint.

SECRET = "secret-word"


def _without_secrets(
    site: Site, caplog: pytest.LogCaptureFixture, *arguments: str
) -> str:
    """Run a deploy that fails, and return its error, which must not contain secrets."""
    with (
        caplog.at_level("DEBUG", "collectfast_storage"),
        pytest.raises(CommandError) as caught,
    ):
        site.collect(*arguments, "-v2")
    text = str(caught.value)
    for each in (text, *_messages(caplog)):
        assert SECRET not in each
        assert "some-user" not in each
    return text


@pytest.mark.parametrize(
    ("scheme", "host", "arguments", "preload"),
    [
        ("http", "127.0.0.1:1", [], True),
        ("http", "127.0.0.1:1", [], False),
        ("https", "does-not-exist.invalid", ["--clear"], True),
    ],
)
def test_password_of_an_endpoint_that_cannot_be_reached_is_not_printed(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    scheme: str,
    host: str,
    arguments: list[str],
    preload: bool,
) -> None:
    """Errors and log lines about an unreachable endpoint contain no user or password.

    They contain its host.
    """
    site.options |= {
        "endpoint_url": f"{scheme}://some-user:{SECRET}@{host}",
        "client_config": ONE_ATTEMPT,
        "collectfast_preload": preload,
    }
    site.write("a.css", "a")
    assert host in _without_secrets(site, caplog, *arguments)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("LIST", "closed"),
        ("HEAD", "closed"),
        ("PUT", "closed"),
        ("DELETE MANY", "closed"),
        ("LIST", "silent"),
        ("PUT", "refused"),
    ],
)
def test_password_of_an_endpoint_that_fails_is_not_printed(
    site: Site, caplog: pytest.LogCaptureFixture, kind: str, how: str
) -> None:
    """Errors and log lines about any failed request contain no user or password."""
    location = site.proxy.endpoint.replace("://", f"://some-user:{SECRET}@")
    config = Config(retries={"total_max_attempts": 1}, read_timeout=0.3)
    site.options |= {"endpoint_url": location, "client_config": config}
    site.options["collectfast_preload"] = kind != "HEAD"
    site.bucket.put("left over.css", b"x")
    site.write("a.css", "a")

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if how == "refused" and request.kind in (kind, kind.split()[0]):
            handler.error(403, "AllAccessDisabled")
        elif request.kind in (kind, kind.split()[0]):
            if how == "silent":
                handler.connection.settimeout(2)
                handler.connection.recv(1)  # Wait until the client disconnects.
            handler.reset()
        elif request.kind == "LIST":
            key = site.bucket.key("left over.css").replace(" ", "+")
            handler.answer(200, result(entry(key)).encode())
        else:
            handler.answer(200, b"", [("ETag", f'"{hashlib.md5(body).hexdigest()}"')])
        return True

    site.proxy.fault = fault
    _without_secrets(site, caplog, *(["--clear"] if kind == "DELETE MANY" else []))


# Endless listings.


def _descending(number: int) -> str:
    return f"{10**6 - number}.css"


def _zigzag(number: int) -> str:
    return f"{hashlib.md5(b'%d' % number).hexdigest()}.css"


def _two_sequences(number: int) -> str:
    return f"{'ab'[number % 2]}{number:06}.css"


@pytest.mark.parametrize("arguments", [[], ["--clear"]], ids=["", "clear"])
@pytest.mark.parametrize("key", [_descending, _zigzag, _two_sequences])
@pytest.mark.parametrize("first", [0, 3], ids=["first page", "later"])
def test_listing_whose_keys_do_not_advance_ends(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    arguments: list[str],
    key: Callable[[int], str],
    first: int,
) -> None:
    """A listing with keys that are not sorted is rejected, and nothing is deleted.

    Such a listing might never end. With `--clear` the deploy fails. Otherwise it may
    send one HEAD per file instead, as for any bucket that cannot be listed, and logs a
    warning.
    """
    limit = 200  # pages after which this listing ends
    pages = itertools.count()
    number = 0
    site.write("a.css", "a")
    site.bucket.put("left over.css", b"x")

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        nonlocal number
        if request.kind != "LIST":
            return False
        number = next(pages)
        name = f"0{number}.css" if number < first else key(number)
        each = entry(site.bucket.key(name))
        answer = result(each, truncated=number < limit, token=f"token{number}")
        handler.answer(200, answer.encode(), [("Content-Type", "application/xml")])
        return True

    site.proxy.fault = fault
    with caplog.at_level("WARNING", "collectfast_storage"):
        try:
            site.collect(*arguments)
        except CommandError as error:
            message = str(error)
        else:
            assert not arguments
            assert site.bucket.read("a.css") == b"a"
            message = " ".join(_messages(caplog))
    assert number < limit
    assert "listing" in message.lower()
    assert "left over.css" in site.bucket.names()
    assert not any(kind.startswith("DELETE") for kind in site.proxy.count())


# Redirects of obstore's requests.


@contextmanager
def _other_host(address: str) -> Iterator[tuple[int, list[str]]]:
    """Run a server at `address`; yield its port and the list of its requests."""
    requests: list[str] = []

    class Recording(BaseHTTPRequestHandler):
        def answer(self) -> None:
            requests.append(f"{self.command} {self.path} {self.headers}")
            self.send_response(200)
            self.send_header("ETag", '"0"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT = do_HEAD = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer((address, 0), Recording) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield listening.server_port, requests
        finally:
            listening.shutdown()
            thread.join()


@pytest.mark.skipif(find_spec("obstore") is None, reason="obstore is not installed")
@pytest.mark.parametrize("host", ["127.0.0.2", "localhost"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_of_an_upload_by_obstore_is_not_followed(
    site: Site, server: Server, status: int, host: str
) -> None:
    """obstore does not follow a redirect to another host, and boto3 uploads the file.

    A followed redirect would send credentials to the other host.
    """
    files = site.write_many(4)
    by_obstore: list[str] = []
    address = "127.0.0.1" if host == "localhost" else host
    with (
        _other_host(address) as (port, requests),
        proxy(
            server.endpoint, sign=server.signed, tls=False, trusted=server.authority
        ) as plain,
    ):
        site.proxy = plain
        site.options["security_token"] = "session-token"

        def fault(handler: Handler, request: Request, body: bytes) -> bool:
            is_botos = "boto" in request.headers["user-agent"].lower()
            if request.kind == "PUT" and not is_botos:
                by_obstore.append(request.key)
                location = f"http://{host}:{port}{handler.path}"
                handler.answer(status, b"", [("Location", location)])
            else:  # The server does not support session tokens.
                sign_again(handler, server, body)
                handler.pass_on(body)
            return True

        plain.fault = fault
        site.collect()
    assert requests == []
    assert by_obstore != []
    assert site.bucket.files() == files
