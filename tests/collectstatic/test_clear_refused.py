"""Refusals of `--clear` while another storage has, or may have, files there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.utils.functional import LazyObject
from storages.backends.s3 import S3Storage

from collectfast_storage import CollectfastS3StaticStorage, CollectfastS3Storage
from collectfast_storage.exceptions import ClearError
from tests.support.site import MANIFEST, STATIC, Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

BACKENDS = pytest.mark.parametrize("backend", [STATIC, MANIFEST])
CLEARS = pytest.mark.parametrize(
    "arguments",
    [["--clear"], ["--clear", "--dry-run"], ["--clear", "--no-post-process"]],
    ids=" ".join,
)
S3 = "storages.backends.s3.S3Storage"
BASE = "collectfast_storage.CollectfastS3Storage"


def _here(cls: type) -> str:
    return f"{__name__}.{cls.__name__}"


def _static(site: Site) -> dict[str, Any]:
    return {"BACKEND": site.backend, "OPTIONS": site.storage_options}


def _media(site: Site, backend: str, **options: Any) -> dict[str, Any]:
    return {"BACKEND": backend, "OPTIONS": {**site.storage_options, **options}}


def _refused(site: Site, *arguments: str, **storages: Any) -> None:
    """Assert that `--clear` is refused because of each of `storages`."""
    site.write("a.css", "a")
    site.bucket.put("media/me.jpg", b"me")
    site.bucket.put("me.jpg", b"me")
    for alias, other in storages.items():
        aliases = {alias: other, "staticfiles": _static(site)}
        with pytest.raises(ClearError, match=rf"'{alias}'"):
            site.collect(*arguments, STORAGES=aliases)
        counted = site.proxy.count()
        assert counted["PUT"] == counted["DELETE"] == counted["DELETE MANY"] == 0
    assert site.bucket.names() == ["me.jpg", "media/me.jpg"]


# The same class at the same location.


@BACKENDS
@CLEARS
def test_same_class_at_the_same_location(
    site: Site, backend: str, arguments: list[str]
) -> None:
    """`--clear` is refused if the same class stores media files at the location."""
    site.backend = backend
    _refused(site, *arguments, default=_static(site), uploads=_static(site))


@pytest.mark.parametrize("backend", [S3, BASE, STATIC, MANIFEST])
@pytest.mark.parametrize("below", ["", "/media/"])
def test_any_s3_class_at_or_below_the_location(
    site: Site, backend: str, below: str
) -> None:
    """`--clear` is refused for any S3 class at the location, or in a folder in it."""
    location = site.bucket.location + below
    _refused(site, "--clear", default=_media(site, backend, location=location))


class Location(CollectfastS3StaticStorage):
    """A storage that computes its location."""

    base = ""

    @property
    def location(self) -> str:
        return f"{self.base}/media" if self.base else ""

    @location.setter
    def location(self, base: str) -> None:
        self.base = base


class Moved(CollectfastS3StaticStorage):
    """A storage that changes its location after it was built."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.location += "/media"


class Normalizing(S3Storage):
    """A storage that adds a folder of its own to each key."""

    def _normalize_name(self, name: str) -> str:
        return str(super()._normalize_name("media/" + name))


class Lazy(LazyObject):
    """A storage that is built when it is first used."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.__dict__["options"] = options

    def _setup(self) -> None:
        self._wrapped = S3Storage(**self.__dict__["options"])


@pytest.mark.parametrize("cls", [Location, Moved, Normalizing, Lazy])
def test_class_that_computes_its_location(site: Site, cls: type) -> None:
    """`--clear` is refused for storages that compute a location below this one."""
    _refused(site, "--clear", default=_media(site, _here(cls)))


# Several ways to write one endpoint.

VARIABLES = pytest.mark.parametrize(
    "variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
)


@VARIABLES
@pytest.mark.parametrize("without", ["default", "staticfiles"])
@BACKENDS
def test_endpoint_that_one_storage_gets_from_the_environment(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    without: str,
    backend: str,
) -> None:
    """`--clear` is refused if the variable is equal to the other's `endpoint_url`."""
    site.backend = backend
    monkeypatch.setenv(variable, site.proxy.endpoint)
    media = _media(site, BASE)
    if without == "default":
        del media["OPTIONS"]["endpoint_url"]
    else:
        site.options["endpoint_url"] = None
    _refused(site, "--clear", default=media)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda url: f"{url}/",
        lambda url: url.replace("127.0.0.1", "localhost"),
        lambda url: url.replace("http", "HTTP"),
        lambda url: "https://other.example.com",
        lambda url: None,
    ],
    ids=["slash", "name", "case", "other", "none"],
)
def test_endpoint_that_is_written_in_another_way(
    site: Site, rewrite: Callable[[str], str | None]
) -> None:
    """`--clear` is refused for the same bucket name at any endpoint.

    Different endpoints may lead to the same bucket.
    """
    endpoint = rewrite(site.proxy.endpoint)
    _refused(site, "--clear", default=_media(site, S3, endpoint_url=endpoint))


# Storages that cannot be built.


class Unbuildable(CollectfastS3Storage):
    def __init__(self, **options: Any) -> None:
        raise ImproperlyConfigured("The secrets are not there yet.")


class Unknown(S3Storage):
    """A storage that can compute its location only during a web request."""

    @property
    def location(self) -> str:
        if getattr(self, "is_built", False):
            raise RuntimeError("There is no request.")
        return "media"

    @location.setter
    def location(self, location: str) -> None:
        self.is_built = True

    def __init__(self, **options: Any) -> None:
        options.pop("location")
        super().__init__(**options)
        self.is_built = True


class UnbuildableLazy(LazyObject):
    def __init__(self, **options: Any) -> None:
        super().__init__()

    def _setup(self) -> None:
        raise ImproperlyConfigured("The secrets are not there yet.")


UNBUILDABLE = [
    "no.such.module.Storage",
    "collectfast_storage.NoSuchStorage",
    *map(_here, (Unbuildable, Unknown, UnbuildableLazy)),
]


@pytest.mark.parametrize("other", UNBUILDABLE)
@BACKENDS
def test_storage_that_cannot_be_built(site: Site, other: str, backend: str) -> None:
    """`--clear` is refused, because that storage's files may be anywhere."""
    site.backend = backend
    _refused(site, "--clear", default=_media(site, other))


def test_storage_with_an_option_that_is_not_valid(site: Site) -> None:
    """`--clear` is refused if another alias has an option that is not valid."""
    wrong = _media(site, S3, no_such_option=1)
    slash = _media(site, S3, location=f"/{site.bucket.location}")
    _refused(site, "--clear", default=wrong, uploads=slash)


@pytest.mark.parametrize("other", [UNBUILDABLE[0], _here(Unbuildable)])
def test_collectstatic_works_without_the_other_storage(site: Site, other: str) -> None:
    """Without `--clear`, it does not matter that another storage cannot be built."""
    site.write("a.css", "a")
    site.bucket.put("me.jpg", b"me")
    aliases = {"default": _media(site, other), "staticfiles": _static(site)}
    site.collect(STORAGES=aliases)
    assert site.bucket.names() == ["a.css", "me.jpg"]


# Storages that keep their files elsewhere: `--clear` works.


def _elsewhere(site: Site, where: str) -> dict[str, Any]:
    location = site.bucket.location
    if where == "beside":
        return _media(site, BASE, location=f"{location}-media")
    if where == "above":
        return _media(site, BASE, location=location.rpartition("/")[0])
    if where == "bucket":
        return _media(site, STATIC, bucket_name=f"other-{uuid4().hex[:8]}")
    backend = {"disk": "FileSystemStorage", "memory": "InMemoryStorage"}[where]
    return {"BACKEND": f"django.core.files.storage.{backend}"}


@pytest.mark.parametrize("where", ["beside", "above", "bucket", "disk", "memory"])
def test_storage_that_keeps_its_files_elsewhere(site: Site, where: str) -> None:
    """`--clear` works if the files of the other storages are not below the location."""
    site.write("a.css", "a")
    site.bucket.put("left over.css", b"left over")
    aliases = {"default": _elsewhere(site, where), "staticfiles": _static(site)}
    site.collect("--clear", STORAGES=aliases)
    assert site.bucket.names() == ["a.css"]


def test_refusal_is_a_message_without_a_traceback(site: Site) -> None:
    """The refusal is a `CommandError` that names the alias and the bucket."""
    site.write("a.css", "a")
    aliases = {"media": _static(site), "staticfiles": _static(site)}
    with pytest.raises(CommandError) as caught:
        site.collect("--clear", STORAGES=aliases)
    assert "'media'" in str(caught.value)
    assert repr(site.bucket.name) in str(caught.value)


def test_refusal_depends_on_the_settings_of_the_moment(site: Site) -> None:
    """`--clear` works as soon as the other storage is given another location."""
    site.bucket.put("me.jpg", b"me")
    aliases = {"default": _static(site), "staticfiles": _static(site)}
    with pytest.raises(ClearError):
        site.collect("--clear", STORAGES=aliases)
    other = replace(site.bucket, location=f"{site.bucket.location}-media")
    other.put("me.jpg", b"me")
    moved = {"default": _media(site, BASE, location=other.location)}
    site.collect("--clear", STORAGES=moved | {"staticfiles": _static(site)})
    assert (site.bucket.names(), other.names()) == ([], ["me.jpg"])
