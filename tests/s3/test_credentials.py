"""Credentials: of own connections, replaced ones, and URLs without a signature."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, ClassVar

import pytest
from django.core.files.base import ContentFile
from django.core.management import call_command
from storages.backends.s3 import S3ManifestStaticStorage, S3StaticStorage

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from tests.support.processes import LONG
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.site import Site


@pytest.fixture
def any_credentials(
    server: Server, counting: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accept all credentials: the proxy signs each request anew for the server."""

    def sign(
        method: str, url: str, headers: dict[str, str], body: bytes
    ) -> dict[str, str]:
        headers.pop("x-amz-security-token", None)
        return server.signed(method, url, headers, body)

    monkeypatch.setattr(counting, "sign", sign)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.covering,
    pytest.mark.usefixtures("any_credentials"),
]


def _signed_with(site: Site, kind: str = "") -> list[str]:
    """Return the access key of each request, in their order."""
    headers = [
        request.headers.get("authorization", "")
        for request in site.proxy.requests
        if kind in ("", request.kind)
    ]
    found = [re.search(r"Credential=([^/]+)/", each) for each in headers]
    return [each[1] if each else "unsigned" for each in found]


class SetsKeys:
    """A mixin that makes a connection with new credentials at each access."""

    keys: ClassVar[Iterator[str]]
    current: ClassVar[str]

    @classmethod
    def start(cls) -> None:
        numbers = count(1)
        SetsKeys.keys = (f"key-{number:03}" for number in numbers)
        SetsKeys.current = "none"

    @property
    def connection(self) -> Any:
        storage: Any = self
        SetsKeys.current = next(SetsKeys.keys)
        storage.access_key = SetsKeys.current
        storage.secret_key = f"secret of {SetsKeys.current}"
        return self.made(storage)

    @staticmethod
    def made(storage: Any) -> Any:
        return storage._create_session().resource(
            "s3",
            region_name=storage.region_name,
            endpoint_url=storage.endpoint_url,
            config=storage.client_config,
            verify=storage.verify,
        )


class SetsToken(SetsKeys):
    """A mixin that sets a session token, too, like an assumed role."""

    @property
    def connection(self) -> Any:
        storage: Any = self
        storage.security_token = "token"
        return super().connection


class OneForAThread(SetsKeys):
    """A mixin that makes one connection for each thread, with a new key."""

    connections: ClassVar[threading.local]

    @classmethod
    def start(cls) -> None:
        super().start()
        OneForAThread.connections = threading.local()

    @property
    def connection(self) -> Any:
        here = self.connections
        if not hasattr(here, "connection"):
            here.connection = super().connection
        return here.connection


class Static(SetsKeys, CollectfastS3StaticStorage):
    pass


class PlainStatic(SetsKeys, S3StaticStorage):
    pass


class Manifest(SetsKeys, CollectfastS3ManifestStaticStorage):
    pass


class PlainManifest(SetsKeys, S3ManifestStaticStorage):
    pass


class WithToken(SetsToken, CollectfastS3StaticStorage):
    pass


class PlainWithToken(SetsToken, S3StaticStorage):
    pass


class Kept(OneForAThread, CollectfastS3StaticStorage):
    pass


class PlainKept(OneForAThread, S3StaticStorage):
    pass


ALL = [
    "Static",
    "Manifest",
    "WithToken",
    "Kept",
    "PlainStatic",
    "PlainManifest",
    "PlainWithToken",
    "PlainKept",
]


def _use(site: Site, backend: str) -> None:
    site.backend = f"{__name__}.{backend}"
    # The storage is built with credentials that are out of date when it is used.
    site.options |= {"access_key": "outdated", "secret_key": "outdated"}
    globals()[backend].start()


def _nothing(storage: Any) -> None:
    pass


def _plain_url(storage: Any, name: str) -> str:
    """Return the URL of `name` without adding a hash to it."""
    url: str = S3StaticStorage.url(storage, name)
    return url


def _url(storage: Any) -> None:
    _plain_url(storage, "a.txt")


def _session(storage: Any) -> None:
    storage._create_session().client("s3", region_name="us-east-1")


# Earlier calls of a program, which used earlier credentials.
BEFORE = {"nothing": _nothing, "url": _url, "a session": _session}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("backend", ALL)
def test_own_connection_signs_with_the_credentials_that_it_sets(
    site: Site, backend: str, before: str
) -> None:
    """Requests are signed only with the credentials that an own connection sets."""
    _use(site, backend)
    with site.storage() as storage:
        BEFORE[before](storage)
        storage.save("a.txt", ContentFile(b"one"))
        storage.save("a.txt", ContentFile(b"two"))
        assert storage.exists("a.txt")
        with storage.open("a.txt") as file:
            assert file.read() == b"two"
    signed = _signed_with(site)
    assert signed
    assert {key[:4] for key in signed} == {"key-"}
    assert site.bucket.read("a.txt") == b"two"


@pytest.mark.parametrize("backend", ["Static", "Manifest", "PlainStatic"])
def test_each_call_is_signed_with_the_newest_credentials(
    site: Site, backend: str
) -> None:
    """If each call makes a new connection, each request has the newest credentials."""
    _use(site, backend)
    with site.storage() as storage:
        for _ in range(3):
            before = SetsKeys.current
            site.proxy.requests.clear()
            storage.exists("a.txt")
            [used] = _signed_with(site)
            assert used not in (before, "outdated", "unsigned")


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize(
    "backend", ["Static", "Manifest", "WithToken", "Kept", "PlainManifest"]
)
def test_collectstatic_with_an_own_connection(
    site: Site, backend: str, before: str
) -> None:
    """A deploy signs requests only with the credentials that the connection sets."""
    _use(site, backend)
    files = site.write_many(5)
    with site.active():
        from django.contrib.staticfiles.storage import staticfiles_storage

        BEFORE[before](staticfiles_storage)
        call_command("collectstatic", "--noinput", stdout=io.StringIO())
    signed = _signed_with(site)
    assert {key[:4] for key in signed} == {"key-"}
    assert site.bucket.files().items() >= files.items()


# Credentials that are replaced.


def _in_a_thread(call: Callable[[], object]) -> None:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive()
    assert raised == []


class Rotates:
    """A mixin that drops its connections when it assumes another role."""

    def assume(self, key: str) -> None:
        storage: Any = self
        state = storage.__getstate__()
        storage.__setstate__({**state, "access_key": key, "secret_key": "secret"})


class StaticRotates(Rotates, CollectfastS3StaticStorage):
    pass


class PlainRotates(Rotates, S3StaticStorage):
    pass


@pytest.mark.parametrize("backend", ["StaticRotates", "PlainRotates"])
def test_credentials_that_are_replaced(site: Site, backend: str) -> None:
    """Requests are signed with the role that was assumed last, in each thread."""
    site.backend = f"{__name__}.{backend}"
    with site.storage() as storage:
        for key in ("first", "second"):
            storage.assume(key)
            for use in (lambda call: call(), _in_a_thread):
                site.proxy.requests.clear()
                name = f"{key}.txt"
                use(lambda name=name: storage.save(name, ContentFile(b"a")))
                assert {*_signed_with(site)} == {key}


class SignsByProperty:
    """A mixin that reads its access key from a vault."""

    vault: ClassVar[str]
    access_key = property(lambda self: SignsByProperty.vault, lambda self, value: None)


class StaticByProperty(SignsByProperty, CollectfastS3StaticStorage):
    pass


class PlainByProperty(SignsByProperty, S3StaticStorage):
    pass


@pytest.mark.parametrize("backend", ["StaticByProperty", "PlainByProperty"])
@pytest.mark.parametrize("before", ["nothing", "a session"])
def test_access_key_that_changes_before_the_connection(
    site: Site, backend: str, before: str
) -> None:
    """The first signed request has the access key that is current at that moment.

    A session that was created earlier does not keep the outdated key.
    """
    site.backend = f"{__name__}.{backend}"
    SignsByProperty.vault = "outdated"
    files = site.write_many(20)
    with site.storage() as storage:
        BEFORE[before](storage)
        SignsByProperty.vault = "current"
        storage.save("a.txt", ContentFile(b"a"))
        call_command("collectstatic", "--noinput", stdout=io.StringIO())
    assert {*_signed_with(site)} == {"current"}
    assert site.bucket.files() == {**files, "a.txt": b"a"}


# URLs.


@pytest.mark.parametrize(
    ("backend", "plain"),
    [("Static", "PlainStatic"), ("Manifest", "PlainManifest"), ("Kept", "PlainKept")],
)
def test_unsigned_urls_are_those_of_django_storages(
    site: Site, backend: str, plain: str
) -> None:
    """Without querystring_auth, `url()` sends no request, before and after signed ones.

    The URLs are those of django-storages.
    """
    urls = []
    for name in (plain, backend):
        _use(site, name)
        with site.storage() as storage:
            site.proxy.requests.clear()
            urls.append(_plain_url(storage, "a b.txt"))
            storage.save("c.txt", ContentFile(b"c"))
            site.proxy.requests.clear()
            urls.append(_plain_url(storage, "a b.txt"))
            assert site.proxy.requests == []
    assert {*urls} == {urls[0]}
    assert "?" not in urls[0]
    assert urls[0].endswith("/a%20b.txt")


@pytest.mark.parametrize("backend", ["Static", "PlainStatic"])
def test_signed_urls_have_the_newest_credentials(site: Site, backend: str) -> None:
    """With querystring_auth, each URL is signed with the newest key."""
    _use(site, backend)
    site.options["querystring_auth"] = True
    with site.storage() as storage:
        keys = []
        for _ in range(3):
            found = re.search(r"(?:AWSAccessKeyId=|Credential=)(key-\d+)", _of(storage))
            keys.append(found[1] if found else "")
    assert keys == sorted({*keys})
    assert all(keys)


def _of(storage: Any) -> str:
    url: str = storage.url("a.txt")
    return url
