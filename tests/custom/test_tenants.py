"""Storages with a location or bucket that depends on the tenant.

The files of one tenant are never saved in the location of another one.
"""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import pytest
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files.base import ContentFile
from django.core.management import call_command
from storages.backends.s3 import S3ManifestStaticStorage, S3StaticStorage

from collectfast_storage import (
    CollectfastMixin,
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from tests.support.bucket import BucketView
from tests.support.site import LOCAL, MANIFEST, STATIC, Site

pytestmark = [pytest.mark.covering, pytest.mark.needs("trailing checksums")]

LIMIT = 30  # seconds after which a thread is considered to hang


class Current(threading.local):
    """The tenant of the calling thread."""

    schema = "a"


current = Current()


class ByProperty:
    """A storage that computes its location, as those of django-tenants do."""

    base = ""

    @property
    def location(self) -> str:
        return f"{self.base}/{current.schema}" if self.base else ""

    @location.setter
    def location(self, base: str) -> None:
        self.base = base


class ByNormalizing:
    """A storage with a constant location that inserts the tenant into each key."""

    location: str

    def _normalize_name(self, name: str) -> str:
        prefix = f"{current.schema}/"
        return str(super()._normalize_name(prefix + name))  # type: ignore[misc]


class ByBucket:
    """A storage with one bucket for each tenant, and the same location in each."""

    base = ""
    connection: Any

    @property
    def bucket_name(self) -> str:
        return self.base if current.schema == "a" else f"{self.base}-{current.schema}"

    @bucket_name.setter
    def bucket_name(self, base: str) -> None:
        self.base = base

    @property
    def bucket(self) -> Any:
        return self.connection.Bucket(self.bucket_name)


class Static(ByProperty, CollectfastS3StaticStorage):
    pass


class Manifest(ByProperty, CollectfastS3ManifestStaticStorage):
    pass


class NormalizingStatic(ByNormalizing, CollectfastS3StaticStorage):
    pass


class NormalizingManifest(ByNormalizing, CollectfastS3ManifestStaticStorage):
    pass


class TheirBucket(ByBucket, S3StaticStorage):
    pass


class TheirBucketManifest(ByBucket, S3ManifestStaticStorage):
    pass


class BucketStatic(CollectfastMixin, TheirBucket):
    pass


class BucketManifest(CollectfastMixin, TheirBucketManifest):
    pass


class AssignedInSave(CollectfastS3StaticStorage):
    """A storage that sets its location in `_save`, and does not restore it."""

    base = ""

    def _save(self, name: str, content: Any) -> str:
        self.base = self.base or self.location
        self.location = f"{self.base}/{current.schema}"
        return str(super()._save(name, content))


def _here(name: str) -> str:
    return f"{__name__}.{name}"


# The two classes of each kind: without and with a manifest.
KINDS: dict[str, tuple[str, str]] = {
    "property": (_here("Static"), _here("Manifest")),
    "assigned": (STATIC, MANIFEST),
    "normalized": (_here("NormalizingStatic"), _here("NormalizingManifest")),
    "bucket": (_here("BucketStatic"), _here("BucketManifest")),
}
NEEDS_BUCKET = pytest.mark.needs("leave for a second bucket")
BUCKET = pytest.param("bucket", marks=NEEDS_BUCKET)
LOCATIONS = ("property", "assigned", "normalized")
ALL_KINDS = pytest.mark.parametrize("kind", [*LOCATIONS, BUCKET])
BY_LOCATION = pytest.mark.parametrize("kind", LOCATIONS)
BOTH = pytest.mark.parametrize("manifest", [False, True], ids=["static", "manifest"])


class Tenants:
    """The tenants of a site, each with its place: a bucket and a location."""

    def __init__(self, site: Site, kind: str, manifest: bool = False) -> None:
        self.site = site
        self.kind = kind
        self.base = site.bucket.location
        site.backend = KINDS[kind][manifest] if kind in KINDS else kind
        self.places = {schema: self._place(schema) for schema in ("a", "b")}

    def _place(self, schema: str) -> BucketView:
        view = self.site.bucket
        if self.kind != "bucket":
            place = BucketView(view.server, f"{self.base}/{schema}")
            place.client = view.client
            return place
        name = view.name if schema == "a" else f"{view.name}-{schema}"
        place = BucketView(replace(view.server, bucket=name), self.base)
        place.client = view.client
        known = place.client.exceptions  # Servers differ in the error they return.
        with suppress(known.BucketAlreadyOwnedByYou, known.BucketAlreadyExists):
            place.client.create_bucket(Bucket=name)
        return place

    def switch(self, storage: Any, schema: str) -> BucketView:
        """Make `schema` the current tenant, and return its place."""
        current.schema = schema
        if self.kind == "assigned":
            storage.location = self.places[schema].location
        return self.places[schema]

    def contents(self) -> dict[str, dict[str, bytes]]:
        """Return the content of every object, by tenant and by name."""
        return {schema: place.files() for schema, place in self.places.items()}

    def keys(self) -> list[str]:
        """Return the keys of all objects below the site's location, in all buckets."""
        names = {place.name for place in self.places.values()}
        keys: list[str] = []
        for name in names:
            pages = self.site.bucket.client.get_paginator("list_objects_v2").paginate(
                Bucket=name, Prefix=self.base
            )
            keys += [each["Key"] for page in pages for each in page.get("Contents", ())]
        return sorted(keys)

    def expected_keys(self, names: dict[str, list[str]]) -> list[str]:
        """Return the keys of all objects if each tenant has only its `names`."""
        return sorted(
            self.places[schema].key(name) for schema in names for name in names[schema]
        )


@pytest.fixture(autouse=True)
def _first_tenant() -> Iterator[None]:
    current.schema = "a"
    yield
    current.schema = "a"


@contextmanager
def _storage(tenants: Tenants) -> Iterator[Any]:
    """Yield the storage with `a` as the current tenant."""
    with tenants.site.storage() as storage:
        tenants.switch(storage, "a")
        yield storage


def _content(schema: str, name: str) -> bytes:
    return f"{name} of {schema}".encode() * (1 + ord(schema) % 5)


@pytest.mark.parametrize(
    ("kind", "overwrite"),
    [
        *((kind, True) for kind in LOCATIONS),
        *((kind, False) for kind in LOCATIONS),
        pytest.param("bucket", True, marks=NEEDS_BUCKET),
        # Not without overwriting: this class then looks for names in the location of
        # the previous save.
        (_here("AssignedInSave"), True),
    ],
)
def test_programs_use_the_place_of_the_tenant(
    site: Site, kind: str, overwrite: bool
) -> None:
    """Each method of the storage uses the place of the current tenant.

    This holds after each change of the tenant.
    """
    tenants = Tenants(site, kind)
    site.options["file_overwrite"] = overwrite
    names = ["x.txt", "folder/y.css"]
    with _storage(tenants) as storage:
        for schema in ("a", "b"):
            place = tenants.switch(storage, schema)
            for name in names:
                content = _content(schema, name)
                assert storage.save(name, ContentFile(content)) == name
                assert storage.exists(name)
                assert storage.size(name) == len(content)
                with storage.open(name) as file:
                    assert file.read() == content
                path = unquote(urlsplit(storage.url(name)).path)
                assert path.endswith(f"/{place.name}/{place.key(name)}")
                assert storage.get_modified_time(name)
            assert storage.listdir("") == (["folder"], ["x.txt"])
            assert storage.listdir("folder") == ([], ["y.css"])
        contents = {s: {n: _content(s, n) for n in names} for s in ("a", "b")}
        assert tenants.contents() == contents
        assert tenants.keys() == tenants.expected_keys({"a": names, "b": names})


@ALL_KINDS
def test_deletes_and_opened_files_use_the_place_of_the_tenant(
    site: Site, kind: str
) -> None:
    """Deletions and opened files affect the current tenant's files only."""
    tenants = Tenants(site, kind)
    with _storage(tenants) as storage:
        for schema in ("a", "b"):
            tenants.switch(storage, schema)
            storage.save("x.txt", ContentFile(b"first"))
            storage.save("x.txt", ContentFile(_content(schema, "x.txt")))
            with storage.open("written.txt", "wb") as file:
                file.write(schema.encode())
        tenants.switch(storage, "a")
        storage.delete("x.txt")
        assert not storage.exists("x.txt")
        with pytest.raises(FileNotFoundError):
            storage.open("x.txt").read()
        tenants.switch(storage, "b")
        assert storage.exists("x.txt")
        storage.save("written.txt", ContentFile(b"overwritten"))
        expected = {"x.txt": _content("b", "x.txt"), "written.txt": b"overwritten"}
        assert tenants.contents() == {"a": {"written.txt": b"a"}, "b": expected}


@ALL_KINDS
@pytest.mark.parametrize("preload", [True, False])
def test_equal_contents_are_saved_for_each_tenant(
    site: Site, kind: str, preload: bool
) -> None:
    """A file is uploaded for each tenant even if another tenant has the same file."""
    tenants = Tenants(site, kind)
    site.options["collectfast_preload"] = preload
    with _storage(tenants) as storage:
        for schema in ("a", "b", "a", "b"):
            tenants.switch(storage, schema)
            storage.save("x.txt", ContentFile(b"equal"))
    assert tenants.contents() == {s: {"x.txt": b"equal"} for s in ("a", "b")}


@pytest.mark.parametrize("kind", ["property", "normalized", BUCKET])
def test_threads_work_for_different_tenants(site: Site, kind: str) -> None:
    """One storage can save files for two tenants in two threads simultaneously."""
    tenants = Tenants(site, kind)
    names = [f"{number}.txt" for number in range(4)]
    barrier = threading.Barrier(2, timeout=LIMIT)
    failures: list[BaseException] = []

    def work(storage: Any, schema: str) -> None:
        try:
            current.schema = schema
            for name in names:
                barrier.wait()
                content = _content(schema, name)
                assert storage.save(name, ContentFile(content)) == name
                with storage.open(name) as file:
                    assert file.read() == content
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    with _storage(tenants) as storage:
        threads = [
            threading.Thread(target=work, args=(storage, schema)) for schema in "ab"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
    assert failures == []
    assert tenants.contents() == {s: {n: _content(s, n) for n in names} for s in "ab"}


# Processes that run collectstatic for each tenant.


def _write(site: Site, text: str) -> None:
    site.write("a.css", f"a {{ background: url(img/i.png) }} /* {text} */")
    site.write("img/i.png", f"image {text}")
    site.write("b.txt", text)


def _expected(site: Site, manifest: bool) -> dict[str, bytes]:
    """Return the files that Django's own storage writes for the current sources."""
    root = site.root / "collected"
    shutil.rmtree(root, ignore_errors=True)
    local = LOCAL[MANIFEST if manifest else STATIC]
    site.collect(STORAGES={"staticfiles": {"BACKEND": local}})
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def _collect_for_each(tenants: Tenants, *arguments: str) -> list[dict[str, int]]:
    """Run collectstatic for each tenant, and return the requests of each run."""
    return [_collect_for(tenants, schema, *arguments) for schema in tenants.places]


def _collect_for(tenants: Tenants, schema: str, *arguments: str) -> dict[str, int]:
    staticfiles_storage.exists  # noqa: B018 (builds it)
    tenants.switch(staticfiles_storage, schema)
    tenants.site.proxy.requests.clear()
    call_command("collectstatic", "--noinput", *arguments, stdout=io.StringIO())
    return dict(tenants.site.proxy.count())


@ALL_KINDS
@BOTH
@pytest.mark.parametrize("preload", [True, False], ids=["preload", "cached"])
def test_one_process_collects_for_each_tenant(
    site: Site, kind: str, manifest: bool, preload: bool
) -> None:
    """One process that collects for each tenant uploads all files to each place."""
    tenants = Tenants(site, kind, manifest)
    site.options["collectfast_preload"] = preload
    releases = []
    for text in ("one", "two"):
        _write(site, text)
        releases.append(_expected(site, manifest))
    both = {**releases[0], **releases[1]}
    with site.active():
        for text, expected in zip(("one", "two"), (releases[0], both), strict=True):
            _write(site, text)
            site.touch()
            _collect_for_each(tenants)
            assert tenants.contents() == {"a": expected, "b": expected}
    names = sorted(both)
    assert tenants.keys() == tenants.expected_keys({"a": names, "b": names})


@BY_LOCATION
@BOTH
def test_unchanged_files_cost_one_listing_for_each_tenant(
    site: Site, kind: str, manifest: bool
) -> None:
    """A second deploy of unchanged files sends one LIST for each tenant, and no PUT.

    Both deploys run in the same process.
    """
    tenants = Tenants(site, kind, manifest)
    _write(site, "one")
    with site.active():
        _collect_for_each(tenants)
        site.touch()
        requests = _collect_for_each(tenants)
    puts = {count.get("PUT", 0) for count in requests}
    assert puts == {0}
    assert [count.get("LIST") for count in requests] == [1, 1]


@BY_LOCATION
@BOTH
def test_damage_in_one_tenants_place_is_repaired(
    site: Site, kind: str, manifest: bool
) -> None:
    """A missing or changed object of one tenant is uploaded again for that tenant.

    This holds although the other tenant's object is as it should be.
    """
    tenants = Tenants(site, kind, manifest)
    _write(site, "one")
    expected = _expected(site, manifest)
    with site.active():
        _collect_for_each(tenants)
        tenants.places["b"].delete("b.txt")
        tenants.places["a"].put("img/i.png", b"other")
        _collect_for_each(tenants)
    assert tenants.contents() == {"a": expected, "b": expected}


@BY_LOCATION
@BOTH
@pytest.mark.parametrize("arguments", [[], ["--no-post-process"]], ids=["", "no-post"])
def test_clear_for_one_tenant_keeps_the_files_of_the_other(
    site: Site, kind: str, manifest: bool, arguments: list[str]
) -> None:
    """`--clear` for one tenant deletes only left-over files of that tenant."""
    tenants = Tenants(site, kind, manifest)
    _write(site, "one")
    with site.active():
        _collect_for_each(tenants)
        for place in tenants.places.values():
            place.put("left/over.txt", b"left over")
        before = tenants.contents()
        _collect_for(tenants, "b", "--clear", *arguments)
        after = tenants.contents()
        assert after["a"] == before["a"]
        assert before["b"].pop("left/over.txt")
        assert after["b"] == before["b"]
        # A later --clear for the other tenant deletes the files left over there.
        _collect_for(tenants, "a", "--clear", *arguments)
    assert "left/over.txt" not in tenants.contents()["a"]
    assert tenants.contents()["b"] == after["b"]


@BY_LOCATION
def test_dry_run_of_clear_names_the_tenants_own_files(site: Site, kind: str) -> None:
    """`--clear --dry-run` for one tenant names only left-over files of that tenant."""
    tenants = Tenants(site, kind)
    output = io.StringIO()
    with site.active():
        staticfiles_storage.exists  # noqa: B018 (builds it)
        for schema in tenants.places:
            tenants.switch(staticfiles_storage, schema)
            tenants.places[schema].put(f"{schema}.txt", b"left over")
            staticfiles_storage.save(f"{schema}.txt", ContentFile(b"left over"))
        call_command(
            "collectstatic", "--noinput", "--clear", "--dry-run", stdout=output
        )
    named = [each for each in output.getvalue().splitlines() if "Pretending" in each]
    assert named == ["Pretending to delete 'b.txt'"]


# Locations that change during one collectstatic.


class Routed:
    """A storage that saves scripts in a folder outside of its location."""

    location: str
    routes: ClassVar[dict[str, str]] = {".js": "-scripts"}

    def _save(self, name: str, content: Any) -> str:
        location = self.location
        self.location += self.routes.get(Path(name).suffix, "")
        try:
            return str(super()._save(name, content))  # type: ignore[misc]
        finally:
            self.location = location


class RoutedStatic(Routed, CollectfastS3StaticStorage):
    pass


class RoutedManifest(Routed, CollectfastS3ManifestStaticStorage):
    pass


@pytest.mark.parametrize("preload", [True, False])
@BOTH
def test_save_that_changes_the_location_in_a_collectstatic(
    site: Site, manifest: bool, preload: bool
) -> None:
    """Each file is saved in the location that the subclass's `_save` sets for it."""
    site.backend = _here("RoutedManifest" if manifest else "RoutedStatic")
    site.options["collectfast_preload"] = preload
    scripts = BucketView(site.bucket.server, f"{site.bucket.location}-scripts")
    for text in ("one", "two"):
        site.write("a.css", f"a {{}} /* {text} */")
        site.write("a.js", f"let a = '{text}'")
        site.write("folder/b.js", f"let b = '{text}'")
        site.touch()
        expected = _expected(site, manifest)
        site.collect()
        there, beside = site.bucket.files(), scripts.files()
        assert {*there, *beside} >= {*expected}
        for name, content in expected.items():
            assert (beside if name.endswith(".js") else there)[name] == content
        assert [name for name in there if name.endswith(".js")] == []
        assert [name for name in beside if not name.endswith(".js")] == []


def test_program_after_a_collectstatic_for_another_tenant(site: Site) -> None:
    """A save for one tenant after collectstatic for another uses the right place."""
    tenants = Tenants(site, "property")
    _write(site, "one")
    with site.active():
        _collect_for(tenants, "a")
        tenants.switch(staticfiles_storage, "b")
        assert not staticfiles_storage.exists("b.txt")
        staticfiles_storage.save("b.txt", ContentFile(b"one"))
        with staticfiles_storage.open("b.txt") as file:
            assert file.read() == b"one"
    assert tenants.contents()["b"] == {"b.txt": b"one"}
