"""Headers of uploads, which are compared like contents."""

from __future__ import annotations

import json
import mimetypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.management.base import CommandError

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from tests.support.proxy import refuse
from tests.support.site import MANIFEST, STATIC, Site

pytestmark = pytest.mark.covering

NAMES = ["a.css", "a.js", "img/a.svg"]


@pytest.fixture
def site(site: Site) -> Site:
    """Return a site with a few files."""
    for name in NAMES:
        site.write(name, f"content of {name}")
    return site


@pytest.fixture
def manifest_site(site: Site) -> Site:
    """Return a site with a few files and hashed names."""
    site.backend = "collectfast_storage.CollectfastS3ManifestStaticStorage"
    return site


def _cold(site: Site) -> dict[str, Any]:
    backend = "django.core.cache.backends.locmem.LocMemCache"
    return {"default": {"BACKEND": backend, "LOCATION": f"{site.root}-cold"}}


def _headers(site: Site, header: str) -> dict[str, Any]:
    return {name: site.bucket.get(name).get(header) for name in site.bucket.names()}


PARAMETERS = {
    "CacheControl": ("max-age=60", "max-age=31536000, immutable"),
    "ContentDisposition": ("inline", "attachment"),
    "ContentLanguage": ("en", "de"),
    "Metadata": ({"build": "1"}, {"build": "2"}),
    "ContentType": ("text/plain", "text/x-other"),
}


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize(
    "header",
    [
        pytest.param(each, marks=pytest.mark.needs("metadata in lower case"))
        if each == "Metadata"
        else each
        for each in PARAMETERS
    ],
)
def test_changed_object_parameters_are_uploaded_once(
    site: Site, header: str, preload: bool
) -> None:
    """A changed object parameter uploads all files once.

    The next deploy uploads none.
    """
    site.options["collectfast_preload"] = preload
    for value in PARAMETERS[header]:
        site.options["object_parameters"] = {header: value}
        changed = site.collect()
        assert changed.put == NAMES
        assert changed.summary == "3 static files copied."
        assert _headers(site, header) == dict.fromkeys(NAMES, value)
        site.touch()
        again = site.collect()
        assert again.requests.keys() <= {"LIST"}
        assert again.summary == "0 static files copied, 3 unmodified."


@pytest.mark.parametrize("header", ["CacheControl", "ContentDisposition"])
def test_removed_object_parameter_is_removed_from_the_objects(
    site: Site, header: str
) -> None:
    """All files are uploaded if an object parameter is removed, or added again."""
    value = PARAMETERS[header][0]
    for parameters in ({header: value}, {}, {header: value}):
        site.options["object_parameters"] = parameters
        assert site.collect().put == NAMES
        stored = {name: each or None for name, each in _headers(site, header).items()}
        assert stored == dict.fromkeys(NAMES, parameters.get(header))


def test_setting_has_the_effect_of_the_option(site: Site) -> None:
    """The setting `AWS_S3_OBJECT_PARAMETERS` uploads all files once when it changes."""
    site.collect()
    site.settings["AWS_S3_OBJECT_PARAMETERS"] = {"CacheControl": "max-age=1"}
    assert site.collect().put == NAMES
    assert site.collect().put == []


@pytest.mark.needs("ACLs")
def test_changed_default_acl_is_uploaded_once(site: Site) -> None:
    """A changed `default_acl` is sent once for each file, in the upload itself."""
    sent = []
    for acl in ("public-read", "private", None):
        site.options["default_acl"] = acl
        assert site.collect().put == NAMES
        puts = [each for each in site.proxy.requests if each.kind == "PUT"]
        sent.append({each.headers.get("x-amz-acl") for each in puts})
        assert site.collect().requests == {"LIST": 1}
    assert sent == [{"public-read"}, {"private"}, {None}]


class ByName:
    """A mixin with headers that depend on the name."""

    age = 60

    def get_object_parameters(self, name: str) -> dict[str, Any]:
        parameters: dict[str, Any] = super().get_object_parameters(name)  # type: ignore[misc]
        if name.endswith(".css"):
            parameters["CacheControl"] = f"max-age={self.age}"
        return parameters


class Mine(ByName, CollectfastS3StaticStorage):
    pass


class MineWithManifest(ByName, CollectfastS3ManifestStaticStorage):
    pass


@pytest.fixture
def _age() -> Iterator[None]:
    yield
    ByName.age = 60


@pytest.mark.usefixtures("_age")
def test_headers_by_name_apply_to_those_names_only(site: Site) -> None:
    """If `get_object_parameters(name)` changes for some names, only these are sent."""
    site.backend = f"{__name__}.Mine"
    site.collect()
    ByName.age = 3600
    changed = site.collect()
    assert changed.put == ["a.css"]
    assert changed.summary == "1 static file copied, 2 unmodified."
    assert _headers(site, "CacheControl")["a.css"] == "max-age=3600"
    assert site.collect().requests == {"LIST": 1}


@pytest.mark.usefixtures("_age")
def test_headers_by_name_apply_to_hashed_names_too(site: Site) -> None:
    """A change in `get_object_parameters(name)` uploads hashed files, too.

    Headers matter most for hashed files, because browsers cache them for ever.
    """
    site.backend = f"{__name__}.MineWithManifest"
    site.collect()
    hashed = json.loads(site.bucket.read("staticfiles.json"))["paths"]["a.css"]
    ByName.age = 3600
    assert site.collect().put == sorted(["a.css", hashed])
    assert _headers(site, "CacheControl")[hashed] == "max-age=3600"
    assert site.collect().put == []


def test_changed_headers_reach_the_hashed_files(manifest_site: Site) -> None:
    """Changed headers are uploaded once for hashed files and the manifest, too."""
    site = manifest_site
    site.collect()
    names = site.bucket.names()
    site.options["object_parameters"] = {"CacheControl": "max-age=31536000"}
    assert site.collect().put == names
    assert _headers(site, "CacheControl") == dict.fromkeys(names, "max-age=31536000")
    site.touch()
    assert site.collect().put == []


@contextmanager
def _type_of_js(content_type: str) -> Iterator[None]:
    old = mimetypes.guess_type("a.js")[0]
    mimetypes.add_type(content_type, ".js")
    try:
        yield
    finally:
        assert old
        mimetypes.add_type(old, ".js")


def test_file_with_another_guessed_content_type_is_uploaded(site: Site) -> None:
    """A file is uploaded if Python guesses another content type for it.

    Another version of Python or another `mime.types` may guess another type.
    """
    with _type_of_js("application/x-one"):
        site.collect()
    with _type_of_js("application/x-two"):
        changed = site.collect()
        assert changed.put == ["a.js"]
        assert _headers(site, "ContentType")["a.js"] == "application/x-two"
        assert site.collect().requests == {"LIST": 1}


def test_hashed_file_with_another_guessed_content_type_is_uploaded(
    manifest_site: Site,
) -> None:
    """The hashed copy is uploaded, too, if Python guesses another content type."""
    site = manifest_site
    with _type_of_js("application/x-one"):
        site.collect()
    hashed = json.loads(site.bucket.read("staticfiles.json"))["paths"]["a.js"]
    with _type_of_js("application/x-two"):
        assert site.collect().put == sorted(["a.js", hashed])
        assert _headers(site, "ContentType")[hashed] == "application/x-two"


def test_failed_change_is_made_by_the_next_run(site: Site) -> None:
    """If an upload of new headers fails, the next run uploads that file again."""
    site.collect()
    site.options["object_parameters"] = {"CacheControl": "max-age=1"}
    site.proxy.fault = refuse("PUT", "/a.css")
    with pytest.raises(CommandError, match=r"a\.css"):
        site.collect()
    site.proxy.fault = None
    assert site.collect().put == ["a.css"]
    assert _headers(site, "CacheControl") == dict.fromkeys(NAMES, "max-age=1")


@pytest.mark.needs("trailing checksums")
def test_saves_of_a_program_compare_headers_too(site: Site) -> None:
    """A program's save of the same content with another Cache-Control is uploaded."""
    for age in (60, 60, 3600):
        site.options["object_parameters"] = {"CacheControl": f"max-age={age}"}
        with site.storage() as storage:
            storage.save("a.txt", ContentFile(b"x"))
    assert site.proxy.count() == {"HEAD": 3, "PUT": 2}
    assert site.bucket.get("a.txt")["CacheControl"] == "max-age=3600"


# Changes of headers that a cold cache does not show.


def test_cold_cache_compares_contents_only(site: Site) -> None:
    """With a cold cache, changed headers are not noticed, as the README says.

    The cache then has entries with the new headers, so later deploys do not notice the
    change either.
    """
    site.collect()
    site.options["object_parameters"] = {"CacheControl": "max-age=1"}
    assert site.collect(CACHES=_cold(site)).requests == {"LIST": 1}
    assert site.collect(CACHES=_cold(site)).requests == {"LIST": 1}
    assert _headers(site, "CacheControl")["a.css"] is None


WAYS = ["option", "setting", "environment"]


@pytest.mark.parametrize("way", WAYS)
def test_ignore_etag_uploads_headers_that_a_cold_cache_missed(
    site: Site, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """`ignore_etag` uploads all files in place, as option, setting or variable."""
    site.collect()
    site.options["object_parameters"] = {"CacheControl": "max-age=1"}
    # This deploy writes the new headers to the cache, but not to the objects.
    site.collect(CACHES=_cold(site))
    with monkeypatch.context() as patch:
        if way == "environment":
            patch.setenv("COLLECTFAST_IGNORE_ETAG", "1")
        if way == "option":
            patch.setitem(site.options, "collectfast_ignore_etag", True)
        settings = {"COLLECTFAST_IGNORE_ETAG": True} if way == "setting" else {}
        deploy = site.collect(CACHES=_cold(site), **settings)
    assert deploy.put == NAMES
    assert deploy.requests["DELETE"] == deploy.requests["DELETE MANY"] == 0
    assert deploy.summary == "3 static files copied."
    assert _headers(site, "CacheControl") == dict.fromkeys(NAMES, "max-age=1")
    assert site.collect(CACHES=_cold(site)).requests == {"LIST": 1}


def test_ignore_etag_reaches_the_hashed_files(manifest_site: Site) -> None:
    """`ignore_etag` uploads hashed files, too."""
    site = manifest_site
    site.collect()
    names = site.bucket.names()
    site.options["object_parameters"] = {"CacheControl": "max-age=1"}
    site.collect(CACHES=_cold(site), COLLECTFAST_IGNORE_ETAG=True)
    assert _headers(site, "CacheControl") == dict.fromkeys(names, "max-age=1")
    assert site.collect(CACHES=_cold(site)).put == []


def test_ignore_etag_refreshes_the_cache(site: Site) -> None:
    """Uploads with `ignore_etag` are cached, so the next deploy sends no request."""
    site.options["collectfast_preload"] = False
    site.collect()
    site.bucket.put("a.css", b"overwritten by somebody")
    site.collect(COLLECTFAST_IGNORE_ETAG=True)
    assert site.bucket.read("a.css") == b"content of a.css"
    assert site.collect().requests == {}


def test_dry_run_changes_nothing_in_the_cache(manifest_site: Site) -> None:
    """A dry run invalidates no cache entry, because it overwrites no object."""
    site = manifest_site
    site.collect()
    site.options["object_parameters"] = {"CacheControl": "max-age=60"}
    assert site.collect("--clear", "--dry-run").put == []
    del site.options["object_parameters"]
    assert site.collect().put == []


# A warning names the headers if most files are uploaded only because of them.


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


MOST = (
    "Most files are uploaded to bucket {!r} only because their headers changed. "
    "Example: {!r}, {}."
)
OLD = {"CacheControl": "max-age=60", "Expires": "Thu, 31 Dec 2037 23:55:55 GMT"}
SAME_TIME = datetime(2037, 12, 31, 23, 55, 55, tzinfo=UTC)


@pytest.mark.parametrize("backend", [STATIC, MANIFEST])
@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        pytest.param(
            OLD,
            {"CacheControl": "max-age=61", "Expires": SAME_TIME},
            "CacheControl was max-age=60, is now max-age=61",
            id="one of two",
            marks=pytest.mark.needs("Expires"),
        ),
        pytest.param(
            OLD,
            {"Expires": OLD["Expires"]},
            "CacheControl was max-age=60, is now None",
            id="no longer",
            marks=pytest.mark.needs("Expires"),
        ),
        pytest.param(
            OLD,
            OLD | {"Expires": datetime(2038, 1, 1, tzinfo=UTC)},
            "Expires was 2037-12-31 23:55:55+00:00, is now 2038-01-01 00:00:00+00:00",
            id="a time",
            marks=pytest.mark.needs("Expires"),
        ),
        pytest.param(
            {"Metadata": {"Build": "1", "other": "a"}},
            {"Metadata": {"Build": "2", "other": "a"}, "ContentLanguage": "en"},
            "ContentLanguage was None, is now en, Metadata build was 1, is now 2",
            id="metadata",
            marks=pytest.mark.needs("metadata in lower case"),
        ),
        pytest.param(
            {},
            {"Tagging": "a=1"},
            "a parameter that HEAD does not report",
            id="not in HEAD responses",
            marks=pytest.mark.needs("tags"),
        ),
    ],
)
def test_headers_that_differ_in_most_files_are_named(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    backend: str,
    before: dict[str, Any],
    after: dict[str, Any],
    told: str,
) -> None:
    """If most files are uploaded because of headers, one warning has both values.

    `--verbosity 2` prints them once, too.
    """
    site.backend = backend
    site.options["object_parameters"] = before
    site.collect()
    site.options["object_parameters"] = after
    changed = site.collect("--verbosity=2")
    (warning,) = _warnings(caplog)
    name = next(each for each in NAMES if repr(each) in warning)
    assert warning == MOST.format(site.bucket.name, name, told)
    assert f"Uploading '{name}' (headers changed: {told})" in changed.output
    assert changed.output.count("(headers changed: ") == 1
    assert site.collect().put == []
    assert len(_warnings(caplog)) == 1


def test_headers_of_half_of_the_files_are_not_named(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no warning if the headers of only half of the files changed."""
    site.backend = f"{__name__}.Mine"
    site.write("b.css", "four files, two of them CSS")
    site.collect()
    site.write("a.js", "another content")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ByName, "age", 61)
        changed = site.collect()
    assert changed.put == ["a.css", "a.js", "b.css"]
    assert "HEAD" not in changed.requests
    assert _warnings(caplog) == []


def test_headers_that_cannot_be_read_are_not_named(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """If HEAD requests are denied, the deploy works, and the warning has no headers."""
    site.collect()
    site.options["object_parameters"] = {"CacheControl": "max-age=1"}
    site.proxy.fault = refuse("HEAD", "")
    assert site.collect().put == NAMES
    (warning,) = _warnings(caplog)
    assert "a parameter that HEAD does not report" in warning


@pytest.mark.needs("customers' keys")
def test_customers_key_is_not_logged(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A customer's encryption key is in no log line and no output.

    An object with one key cannot be read with another.
    """
    keys = ["1" * 32, "2" * 32]
    for key in keys:
        encryption = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}
        site.options["object_parameters"] = encryption
        changed = site.collect("--verbosity=2")
        assert changed.put == NAMES
    # moto returns the headers without the key, except SSECustomerAlgorithm.
    changes = (
        "(a parameter that HEAD does not report"
        "|SSECustomerAlgorithm was None, is now AES256)"
    )
    assert re.search(rf"\(headers changed: {changes}\)", changed.output)
    assert not any(key in caplog.text + changed.output for key in keys)
