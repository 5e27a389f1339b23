"""Object parameters for files that a manifest storage saves under hashed names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.management.base import CommandError

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
    CollectfastS3Storage,
)
from tests.support.caches import cold
from tests.support.proxy import refuse
from tests.support.site import MANIFEST, STATIC, Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

JSON = "staticfiles.json"
RELEASES = "staticfiles.releases.json"
PLAIN, FOR_EVER = "max-age=60", "public, max-age=31536000, immutable"


def _here(cls: type) -> str:
    return f"{__name__}.{cls.__name__}"


@pytest.fixture
def site(site: Site) -> Site:
    """Return a site with one lifetime for plain names, and another for hashed ones."""
    site.backend = MANIFEST
    site.options["object_parameters"] = {"CacheControl": PLAIN}
    site.options["collectfast_hashed_parameters"] = {"CacheControl": FOR_EVER}
    site.write("a.css", '@import "b.css";\na { background: url(i.png) }')
    site.write("b.css", '@import "c.css";\nb { color: red }')
    site.write("c.css", "c { background: url(i.png) }")
    site.write("i.png", b"image")
    site.write("large.bin", bytes(9 * 1024 * 1024))
    # A file that a bundler has written looks like a hashed file.
    site.write("built.0123456789ab.js", "built();")
    return site


def _lifetimes(site: Site) -> dict[str, str | None]:
    names = site.bucket.names()
    return {name: site.bucket.get(name).get("CacheControl") for name in names}


def _expected(
    site: Site, plain: str | None = PLAIN, hashed: str | None = FOR_EVER
) -> dict[str, str | None]:
    names = {*site.manifest().values()}
    return {n: hashed if n in names else plain for n in site.bucket.names()}


@pytest.mark.parametrize("gzip", [False, True])
@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("only_hashed", [True, False])
def test_hashed_names_have_their_own_parameters(
    site: Site, only_hashed: bool, preload: bool, gzip: bool
) -> None:
    """Hashed files have these parameters; originals, manifest and list do not.

    An unchanged deploy uploads nothing, with or without a cache.
    """
    site.options |= {
        "collectfast_only_hashed": only_hashed,
        "collectfast_preload": preload,
        "collectfast_keep_releases": 2,
        "gzip": gzip,
    }
    site.collect()
    lifetimes = _lifetimes(site)
    assert lifetimes == _expected(site)
    assert len(site.manifest()) == 6
    assert {JSON: PLAIN, RELEASES: PLAIN}.items() <= lifetimes.items()
    assert ("a.css" not in lifetimes) is only_hashed
    site.touch()
    for settings in ({}, cold(site)):
        assert site.collect(**settings).put == []


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("other", [{"CacheControl": "max-age=1"}, {}, None])
def test_changed_parameters_are_uploaded_once(
    site: Site, other: dict[str, str] | None, preload: bool
) -> None:
    """A change of these parameters uploads the hashed files once, and no others."""
    site.options["collectfast_preload"] = preload
    site.collect()
    site.options["collectfast_hashed_parameters"] = other
    hashed = {*site.manifest().values()}
    assert {*site.collect().put} == hashed
    now = (other or {}).get("CacheControl", PLAIN)
    assert _lifetimes(site) == _expected(site, hashed=now)
    assert site.collect().put == []


def test_changed_object_parameters_do_not_reach_hashed_files(site: Site) -> None:
    """If only `object_parameters` change, hashed files are not uploaded again."""
    site.collect()
    site.options["object_parameters"] = {"CacheControl": "max-age=1"}
    deploy = site.collect()
    assert not {*site.manifest().values()} & {*deploy.put}
    assert _lifetimes(site) == _expected(site, plain="max-age=1")


def test_other_object_parameters_apply_too(site: Site) -> None:
    """Parameters in `object_parameters` alone apply to hashed files too."""
    site.options["object_parameters"] |= {"ContentLanguage": "en"}
    site.collect()
    for name in site.bucket.names():
        assert site.bucket.get(name)["ContentLanguage"] == "en"
    assert _lifetimes(site) == _expected(site)


def test_setting_has_the_effect_of_the_option(site: Site) -> None:
    """The setting has the effect of the option."""
    value = site.options.pop("collectfast_hashed_parameters")
    site.settings["COLLECTFAST_HASHED_PARAMETERS"] = value
    site.collect()
    assert _lifetimes(site) == _expected(site)


class ByName(CollectfastS3ManifestStaticStorage):
    def get_object_parameters(self, name: str) -> dict[str, Any]:
        parameters: dict[str, Any] = super().get_object_parameters(name)
        return parameters | {"CacheControl": "by name", "ContentDisposition": "inline"}


def test_parameters_by_name_are_overridden(site: Site) -> None:
    """They override the result of `get_object_parameters`, too."""
    site.backend = _here(ByName)
    site.collect()
    assert _lifetimes(site) == _expected(site, plain="by name")
    hashed = site.bucket.get(site.manifest()["a.css"])
    assert hashed["ContentDisposition"] == "inline"


class OwnHash(CollectfastS3ManifestStaticStorage):
    """A storage with short hashes, which keeps some names, and saves another file."""

    def file_hash(self, name: str | None, content: Any = None) -> Any:
        if str(name).startswith("i."):
            return ""
        digest = super().file_hash(name, content)
        return digest and digest[:4]

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        yield from super().post_process(*args, **options)
        self._save("index.html", ContentFile(b"<html>"))
        self._save("report.0123456789ab.html", ContentFile(b"<html>"))


def test_names_that_are_not_hashed_do_not_get_them(site: Site) -> None:
    """Only names that Django computes from a hash count, whatever they look like.

    A visitor's browser would not load a file with a plain name again for a year.
    """
    site.backend = _here(OwnHash)
    for _ in range(2):
        site.collect()
        lifetimes = _lifetimes(site)
        manifest = site.manifest()
        assert manifest.pop("i.png") == "i.png"
        hashed = {*manifest.values()}
        assert lifetimes == {n: FOR_EVER if n in hashed else PLAIN for n in lifetimes}
        assert {"i.png", "index.html", "report.0123456789ab.html"} <= lifetimes.keys()


class OwnNames(CollectfastS3ManifestStaticStorage):
    """A storage that keeps the names of some files."""

    def hashed_name(self, name: str, content: Any = None, filename: Any = None) -> str:
        if name in ("i.png", "c.css", "large.bin"):
            return name
        return str(super().hashed_name(name, content, filename))


@pytest.mark.parametrize("only_hashed", [True, False])
def test_files_with_their_own_names_do_not_get_them(
    site: Site, only_hashed: bool
) -> None:
    """A file whose hashed name is its own name does not get them.

    Its content may change without a change of the name.
    """
    site.backend = _here(OwnNames)
    site.options["collectfast_only_hashed"] = only_hashed
    for _ in range(2):
        site.collect()
        own = {name for name, hashed in site.manifest().items() if name == hashed}
        assert own == {"i.png", "c.css", "large.bin"}
        assert _lifetimes(site) == _expected(site) | dict.fromkeys(own, PLAIN)
    assert site.collect().put == []


class OwnSave(CollectfastS3ManifestStaticStorage):
    def _save(self, name: str, content: Any) -> str:
        return str(super()._save(name, content))


class Intermediate(CollectfastS3ManifestStaticStorage):
    keep_intermediate_files = True


@pytest.mark.parametrize("cls", [OwnSave, Intermediate])
def test_unusual_classes(site: Site, cls: type) -> None:
    """A class with its own `_save` or with intermediate files has them too."""
    site.backend = _here(cls)
    site.collect()
    lifetimes, expected = _lifetimes(site), _expected(site)
    final = expected if cls is OwnSave else site.manifest().values()
    assert {n: lifetimes[n] for n in final} == {n: expected[n] for n in final}
    assert {n: lifetimes[n] for n in site.manifest()} == dict.fromkeys(
        site.manifest(), PLAIN
    )


@pytest.mark.parametrize("manifest", ["another location", "the disk"])
def test_manifest_that_is_kept_elsewhere(
    site: Site, tmp_path: Path, manifest: str
) -> None:
    """A manifest that is kept elsewhere never has them."""
    site.backend = _here(Elsewhere)
    site.options["directory"] = str(tmp_path) if manifest == "the disk" else ""
    site.collect()
    assert _lifetimes_of(site, tmp_path, manifest) == (
        PLAIN if manifest == "another location" else None
    )
    assert site.collect().put == []


class Elsewhere(CollectfastS3ManifestStaticStorage):
    def __init__(self, **settings: Any) -> None:
        from django.core.files.storage import FileSystemStorage

        directory = settings.pop("directory")
        location = f"{settings['location']}/manifest"
        elsewhere = CollectfastS3Storage(**settings | {"location": location})
        place = FileSystemStorage(directory) if directory else elsewhere
        super().__init__(manifest_storage=place, **settings)


def _lifetimes_of(site: Site, directory: Path, manifest: str) -> str | None:
    if manifest == "the disk":
        assert (directory / JSON).exists()
        return None
    lifetime: str = site.bucket.get(f"manifest/{JSON}")["CacheControl"]
    return lifetime


def test_storage_without_hashed_names(site: Site) -> None:
    """A storage without hashed names never uses them, not even for such a name."""
    site.backend = STATIC
    site.write("a.0123456789ab.css", "a")
    site.collect()
    assert {*_lifetimes(site).values()} == {PLAIN}


class Saving(CollectfastS3StaticStorage):
    def post_process(self, paths: Any, **options: Any) -> Iterator[Any]:
        self._save("x.0123456789ab.css", ContentFile(b"x"))
        yield "x", "x.0123456789ab.css", True


def test_post_process_of_a_storage_without_hashed_names(site: Site) -> None:
    """A file that a storage without hashed names saves in `post_process` has none."""
    site.backend = _here(Saving)
    site.collect()
    assert _lifetimes(site)["x.0123456789ab.css"] == PLAIN


def test_programs_and_batches_do_not_use_them(site: Site) -> None:
    """Files that a program saves have `object_parameters`, whatever their names are."""
    with site.storage() as storage:
        storage.save("p.0123456789ab.css", ContentFile(b"p"))
        with storage.batch() as batch:
            batch.save("b.0123456789ab.css", ContentFile(b"b"))
    assert {*_lifetimes(site).values()} == {PLAIN}


def test_failed_change_is_completed_by_the_next_deploy(site: Site) -> None:
    """If an upload with changed parameters fails, the next deploy repeats it alone."""
    site.collect()
    site.options["collectfast_hashed_parameters"] = {"CacheControl": "max-age=1"}
    site.proxy.fault = refuse("PUT", "/i.")
    with pytest.raises(CommandError):
        site.collect()
    site.proxy.fault = None
    assert site.collect().put == [site.manifest()["i.png"]]
    assert _lifetimes(site) == _expected(site, hashed="max-age=1")


def test_dry_run_writes_nothing(site: Site) -> None:
    """A dry run with changed parameters writes nothing."""
    site.collect()
    before = _lifetimes(site)
    site.options["collectfast_hashed_parameters"] = {"CacheControl": "max-age=1"}
    assert site.collect("--dry-run").put == []
    assert _lifetimes(site) == before


def test_invalid_parameter_is_an_error_that_names_the_option(site: Site) -> None:
    """A parameter that boto3 does not know is an error that names both options."""
    site.options["collectfast_hashed_parameters"] = {"Cache-Control": "x"}
    with pytest.raises(Exception, match="collectfast_hashed_parameters"):
        site.collect()
    assert JSON not in site.bucket.names()
