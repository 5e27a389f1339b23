"""Manifest deploys that upload hashed files only, not the originals."""

from __future__ import annotations

import gzip
import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from django.contrib.staticfiles.finders import BaseFinder, FileSystemFinder
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.contrib.staticfiles.storage import (
    HashedFilesMixin,
    ManifestStaticFilesStorage,
)
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, Storage, storages
from django.core.management import call_command
from django.core.management.base import CommandError

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from tests.support.caches import cold
from tests.support.opaque_etags import Opaque
from tests.support.proxy import Handler, Request, refuse
from tests.support.site import LOCAL, MANIFEST, STATIC, Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

JSON = "staticfiles.json"


class WithModules(CollectfastS3ManifestStaticStorage):
    support_js_module_import_aggregation = True


class LocalWithModules(ManifestStaticFilesStorage):
    support_js_module_import_aggregation = True


class OwnHashMixin:
    """A mixin with hashes in capitals, and without a hash for some names."""

    def file_hash(self, name: str | None, content: Any = None) -> Any:
        if str(name).startswith("robots"):
            return ""
        digest = super().file_hash(name, content)  # type: ignore[misc]
        return digest and digest.upper()


class OwnHash(OwnHashMixin, CollectfastS3ManifestStaticStorage):
    pass


class LocalOwnHash(OwnHashMixin, ManifestStaticFilesStorage):
    pass


class BuiltNamesMixin:
    """A mixin that keeps the names in the folder of a bundler, which have hashes."""

    def hashed_name(self, name: str, content: Any = None, filename: Any = None) -> str:
        if name.startswith("built/"):
            return name
        hashed: str = super().hashed_name(name, content, filename)  # type: ignore[misc]
        return hashed


class BuiltNames(BuiltNamesMixin, CollectfastS3ManifestStaticStorage):
    pass


class LocalBuiltNames(BuiltNamesMixin, ManifestStaticFilesStorage):
    pass


PAIRS = {
    WithModules: LocalWithModules,
    OwnHash: LocalOwnHash,
    BuiltNames: LocalBuiltNames,
}


def _here(cls: type) -> str:
    return f"{__name__}.{cls.__name__}"


@pytest.fixture
def site(site: Site) -> Site:
    """Return a site that does not upload originals."""
    site.backend = MANIFEST
    site.options["collectfast_only_hashed"] = True
    site.write("img/pixel.png", b"pixel")
    site.write(
        "css/base.css",
        '@import "deep/more.css";\na { background: url(../img/pixel.png) }\n'
        "/*# sourceMappingURL=base.css.map */\n",
    )
    site.write("css/base.css.map", "{}")
    site.write("css/deep/more.css", '@import url("../late.css");\nb { color: red }\n')
    site.write("css/late.css", "c { background: url(/static/img/pixel.png#x) }\n")
    site.write("js/main.js", 'import { a } from "./lib/a.js";\nimport("./lib/b.js");\n')
    site.write("js/lib/a.js", 'export { b } from "./b.js";\n')
    site.write("js/lib/b.js", "export const b = 1;\n")
    site.write("robots.txt", "User-agent: *")
    site.write("built/index.0a1b2c3d.js", "built();")
    site.write("built/index.0a1b2c3d.css", "d { background: url(../img/pixel.png) }")
    return site


def _sources(site: Site) -> set[str]:
    files = (path for path in site.static.rglob("*") if path.is_file())
    return {str(path.relative_to(site.static)) for path in files}


def _locally(site: Site, backend: str) -> dict[str, bytes]:
    """Return the files that Django's own storage writes to a folder."""
    site.collect("--clear", STORAGES={"staticfiles": {"BACKEND": backend}})
    root = site.root / "collected"
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def _expected(site: Site, backend: str, kept: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Return the local files except the originals."""
    files = _locally(site, backend)
    hashed = {*json.loads(files[JSON])["paths"].values()}
    return {n: files[n] for n in files if n in hashed or n in kept or n == JSON}


# The bucket has the files that Django writes locally, except the originals.


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("cls", PAIRS)
def test_bucket_has_the_hashed_files_that_django_writes_locally(
    site: Site, cls: type, preload: bool
) -> None:
    """The bucket has the hashed files and the manifest that Django writes locally.

    A file whose hashed name is its own name is among them. An unchanged deploy
    uploads nothing, with or without a cache, and reports all files as unmodified.
    """
    site.backend = _here(cls)
    site.options["collectfast_preload"] = preload
    expected = _expected(site, _here(PAIRS[cls]))
    first = site.collect()
    assert site.bucket.files() == expected
    assert sorted(first.put) == sorted(expected)
    assert first.summary.startswith("11 static files copied, ")
    site.touch()
    for settings in ({}, cold(site)):
        again = site.collect(**settings)
        assert again.put == []
        assert again.summary.startswith("0 static files copied, 11 unmodified, ")
        assert site.bucket.files() == expected


def test_gzip(site: Site) -> None:
    """Compressed hashed files have the contents of local ones, and are sent once."""
    site.options["gzip"] = True
    expected = _expected(site, LOCAL[MANIFEST])
    site.collect()
    found = site.bucket.files()
    for name in expected:
        is_compressed = site.bucket.get(name).get("ContentEncoding") == "gzip"
        content = gzip.decompress(found[name]) if is_compressed else found[name]
        assert content == expected[name]
    assert found.keys() == expected.keys()
    site.touch()
    for settings in ({}, cold(site)):
        assert site.collect(**settings).put == []


def test_changed_file_is_uploaded_under_its_new_name_only(site: Site) -> None:
    """A changed image and the CSS that references it are uploaded once, hashed."""
    site.collect()
    before = {*site.manifest().values()}
    site.write("img/pixel.png", b"changed")
    deploy = site.collect()
    after = {*site.manifest().values()}
    assert deploy.put == sorted([JSON, *(after - before)])
    assert len(after - before) == 5  # three CSS files import or reference it
    assert site.bucket.names() == sorted(before | after | {JSON})


def test_damaged_hashed_file_is_uploaded_again(site: Site) -> None:
    """A hashed file with the wrong content is uploaded again."""
    site.collect()
    damaged = [site.manifest()[name] for name in ("img/pixel.png", "css/base.css")]
    for name in damaged:
        site.bucket.put(name, b"damaged")
    assert site.collect().put == sorted(damaged)


def test_ignore_etag_uploads_all_hashed_files(site: Site) -> None:
    """`collectfast_ignore_etag` uploads all files that the bucket should have."""
    site.collect()
    names = site.bucket.names()
    assert site.collect(COLLECTFAST_IGNORE_ETAG=True).put == names


def test_large_file(site: Site) -> None:
    """A large file is uploaded in parts under its hashed name only."""
    site.write("large.bin", bytes(9 * 1024 * 1024))
    site.collect()
    assert "large.bin" not in site.bucket.names()
    assert len(site.bucket.read(site.manifest()["large.bin"])) == 9 * 1024 * 1024
    assert site.collect().put == []


@pytest.mark.needs("listings as SeaweedFS writes them")
@pytest.mark.parametrize("encryption", ["aws:kms", None])
def test_etags_that_are_not_md5s(site: Site, encryption: str | None) -> None:
    """If ETags are not MD5s, a cold cache costs one HEAD request per hashed file.

    After the first one, which shows the fingerprint, these requests run in parallel.
    """
    Opaque(site.proxy, encryption)
    site.collect()
    names = {*site.bucket.names()} - {JSON}
    asked: list[str] = []
    together = threading.Barrier(4, timeout=20)

    def wait(handler: Handler, request: Request) -> bool:
        if request.kind == "HEAD" and not request.key.endswith(JSON):
            asked.append(site.name(request.key))
            if 2 <= len(asked) <= 5:
                together.wait()
        return False

    site.proxy.early_fault = wait
    assert site.collect(**cold(site)).put == []
    assert sorted(asked) == sorted(names)
    site.proxy.early_fault = None
    site.write("img/pixel.png", b"changed")
    assert len(site.collect(**cold(site)).put) == 6


# Originals that are kept.


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (["robots.txt"], ["robots.txt"]),
        (["*.txt", "*/lib/*"], ["js/lib/a.js", "js/lib/b.js", "robots.txt"]),
        (("lib",), ["js/lib/a.js", "js/lib/b.js"]),
        (["js/lib/*"], ["js/lib/a.js", "js/lib/b.js"]),
        (["js/lib"], []),
        (["a.js"], ["js/lib/a.js"]),
        (["A.js"], []),
        ([], []),
    ],
    ids=repr,
)
def test_originals_that_match_a_pattern_are_uploaded(
    site: Site, patterns: Any, kept: list[str]
) -> None:
    """The patterns match the files that `collectstatic --ignore` would ignore."""
    site.options["collectfast_keep_originals"] = patterns
    site.collect()
    assert sorted(_sources(site) & {*site.bucket.names()}) == kept
    assert site.collect().put == []
    site.collect_locally("--clear", *(f"--ignore={each}" for each in patterns))
    root = site.root / "collected"
    collected = {str(path.relative_to(root)) for path in root.rglob("*.*")}
    assert sorted(_sources(site) - collected) == kept


def test_changed_original_that_is_kept(site: Site) -> None:
    """A kept original is uploaded when it changes, and counts as copied."""
    site.options["collectfast_keep_originals"] = ["robots.txt"]
    site.collect()
    site.write("robots.txt", "changed")
    deploy = site.collect()
    assert "robots.txt" in deploy.put
    assert site.bucket.read("robots.txt") == b"changed"
    assert deploy.summary.startswith("1 static file copied, 10 unmodified")
    site.collect("--clear")
    assert "robots.txt" in site.bucket.names()


# Errors and failures.


@pytest.mark.parametrize(
    "css", ["a { background: url(none.png) }", '@import "none.css";']
)
def test_missing_reference_is_the_same_error_as_locally(site: Site, css: str) -> None:
    """A reference to a missing file raises the exception that Django raises locally."""
    site.collect()
    before = site.bucket.read(JSON)
    site.write("css/broken.css", css)
    errors: list[BaseException] = []
    for storage in (LOCAL[MANIFEST], MANIFEST):
        backend = {"BACKEND": storage, "OPTIONS": site.storage_options}
        if storage != MANIFEST:
            del backend["OPTIONS"]
        with pytest.raises((CommandError, ValueError)) as caught:
            site.collect(STORAGES={"staticfiles": backend})
        errors.append(caught.value)
    local, ours = errors
    assert type(local) is type(ours)
    assert str(local).partition(" with <")[0] == str(ours).partition(" with <")[0]
    assert site.bucket.read(JSON) == before


@pytest.mark.parametrize("refused", ["/img/pixel.", "/css/late.", JSON])
@pytest.mark.parametrize("arguments", [[], ["--clear"]])
def test_failed_deploy_is_completed_by_the_next_one(
    site: Site, refused: str, arguments: list[str]
) -> None:
    """If an upload fails, the old release is kept, and the next deploy completes it."""
    site.collect()
    before = site.bucket.files()
    site.write("img/pixel.png", b"changed")
    site.proxy.fault = refuse("PUT", refused)
    with pytest.raises(CommandError):
        site.collect(*arguments)
    assert site.bucket.files().items() >= before.items()
    site.proxy.fault = None
    site.collect(*arguments)
    assert site.bucket.files().items() >= _expected(site, LOCAL[MANIFEST]).items()
    assert site.collect().put == []


def test_failed_first_deploy_copies_all_files_again(site: Site) -> None:
    """After a first deploy that failed, the next deploy uploads missing files only."""
    site.proxy.fault = refuse("PUT", "/img/pixel.")
    with pytest.raises(CommandError):
        site.collect()
    missing = _expected(site, LOCAL[MANIFEST]).keys() - {*site.bucket.names()}
    site.proxy.fault = None
    deploy = site.collect()
    assert deploy.summary.startswith("11 static files copied, ")
    assert deploy.put == sorted(missing)


# Switching the option on and off.


@pytest.mark.parametrize("arguments", [[], ["--clear"]], ids=["keep", "clear"])
@pytest.mark.parametrize("preload", [True, False])
def test_switching_the_option_on_and_off(
    site: Site, arguments: list[str], preload: bool
) -> None:
    """The bucket is right after each switch, also if files change meanwhile.

    Without the option, all originals are in the bucket. With it, `--clear` deletes
    the originals of before.
    """
    site.options["collectfast_preload"] = preload
    for number, is_on in enumerate([False, True, False, True, True, False]):
        site.options["collectfast_only_hashed"] = is_on
        site.write("img/pixel.png", f"pixel {number}")
        site.collect(*arguments)
        files = site.bucket.files()
        expected = _locally(site, LOCAL[MANIFEST])
        originals = _sources(site)
        for name in expected.keys() - (originals if is_on else set()):
            assert files[name] == expected[name]
        if is_on and arguments:
            assert not originals & files.keys()
        assert site.collect(*arguments).put == []


def test_clear_keeps_the_originals_that_live_pages_contain(site: Site) -> None:
    """The first manifest deploy keeps the plain names, and the next one deletes them.

    While the first one runs, the pages of the live site contain plain names.
    """
    site.backend = STATIC
    site.collect()
    plain = site.bucket.files()
    site.backend = MANIFEST
    site.write("img/pixel.png", b"changed")
    site.collect("--clear")
    assert site.bucket.files().items() >= plain.items()
    assert f"Pretending to delete '{min(plain)}'" in (
        site.collect("--clear", "--dry-run").output
    )
    assert {*site.bucket.names()} >= plain.keys()
    site.collect("--clear")
    assert not plain.keys() & {*site.bucket.names()}
    assert site.bucket.files() == _expected(site, LOCAL[MANIFEST])


def test_clear_keeps_files_whose_hashed_names_are_their_own(site: Site) -> None:
    """`--clear` keeps a file whose hashed name is its own name."""
    site.backend = _here(BuiltNames)
    expected = _expected(site, _here(LocalBuiltNames))
    for _ in range(3):
        site.collect("--clear")
        assert site.bucket.files() == expected


# Cases in which originals are uploaded all the same.


def test_no_post_process_uploads_originals(site: Site) -> None:
    """Without post-processing, the originals are uploaded, because nothing else is."""
    site.collect("--no-post-process")
    assert {*site.bucket.names()} == _sources(site)
    site.collect("--no-post-process", "--clear")
    assert {*site.bucket.names()} == _sources(site)


class OwnPostProcess(CollectfastS3ManifestStaticStorage):
    """A storage that reads originals in post-processing."""

    seen: ClassVar[dict[str, bytes]] = {}

    def post_process(self, paths: Any, **options: Any) -> Iterator[Any]:
        self.seen.clear()
        for name in paths:
            assert self.exists(name)
            with self.open(name) as file:
                self.seen[name] = file.read()
        yield from super().post_process(paths, **options)


class OwnSave(CollectfastS3ManifestStaticStorage):
    def _save(self, name: str, content: Any) -> str:
        return str(super()._save(name, content))


class WithoutManifest(HashedFilesMixin, CollectfastS3StaticStorage):
    """A storage that computes hashed names from the originals in the bucket."""


@pytest.mark.parametrize("cls", [OwnPostProcess, OwnSave, WithoutManifest])
def test_classes_that_may_need_originals(site: Site, cls: type) -> None:
    """The originals are uploaded for a class whose own code may need them."""
    site.backend = _here(cls)
    site.collect()
    assert {*site.bucket.names()} >= _sources(site)
    if cls is OwnPostProcess:
        assert OwnPostProcess.seen.keys() == _sources(site)
    with site.storage() as storage:
        assert storage.url("img/pixel.png").rpartition("/")[2].startswith("pixel.")
    originals = _sources(site)
    assert not originals & {*site.collect("--clear").put}
    assert {*site.bucket.names()} >= originals


@pytest.mark.parametrize("backend", [STATIC, "tests.support.site.none"])
def test_storage_without_manifest(site: Site, backend: str) -> None:
    """A storage without a manifest uploads its files under their names."""
    if backend != STATIC:
        site.options["collectfast_enabled"] = False
        backend = MANIFEST
    site.backend = backend
    site.collect()
    assert {*site.bucket.names()} >= _sources(site)


class Minifying(Command):
    """A command that saves other contents than those of the sources."""

    def copy_file(self, path: str, prefixed_path: str, source: Storage) -> None:
        if not prefixed_path.endswith(".css"):
            super().copy_file(path, prefixed_path, source)
        elif self.delete_file(path, prefixed_path, source):
            with source.open(path) as file:
                content = file.read().replace(b" ", b"")
            self.storage.save(prefixed_path, ContentFile(content))


class Routing(Command):
    """A command that copies images to another storage."""

    def copy_file(self, path: str, prefixed_path: str, source: Storage) -> None:
        main = self.storage
        if prefixed_path.startswith("img/"):
            self.storage = storages["other"]
        try:
            super().copy_file(path, prefixed_path, source)
        finally:
            self.storage = main


@pytest.mark.parametrize("command", [Minifying, Routing])
def test_commands_that_copy_files_in_their_own_way(
    site: Site, command: type[Command]
) -> None:
    """The originals are uploaded if a command copies files in its own way.

    It may save other contents, or save them in another storage.
    """
    with site.active():
        from django.conf import settings

        other = settings.STORAGES["staticfiles"]
        place = f"{site.bucket.location}-other"
        options = other["OPTIONS"] | {"location": place}
        both = settings.STORAGES | {"other": other | {"OPTIONS": options}}
    with site.active(STORAGES=both):
        if command is Routing:
            assert storages["other"].location == place
        call_command(command(), "--noinput", stdout=io.StringIO())
        if command is Routing:
            assert storages["other"].exists("img/pixel.png")
        else:
            assert site.bucket.read("css/late.css").count(b" ") == 0
    images = {"img/pixel.png"} if command is Routing else set()
    assert {*site.bucket.names()} >= _sources(site) - images


# Code of the site that reads originals, or finds them in its own way.


class Reading(CollectfastS3ManifestStaticStorage):
    """A storage whose hashes contain the content of another original."""

    def file_hash(self, name: str | None, content: Any = None) -> Any:
        assert self.exists("robots.txt")
        with self.open("robots.txt") as file:
            other = file.read()
        own = b"".join(content.chunks()) if content is not None else b""
        return super().file_hash(name, ContentFile(own + other))


def test_originals_can_be_read_during_post_processing(site: Site) -> None:
    """A method that Django calls in post-processing can read each original."""
    site.backend = _here(Reading)
    site.collect()
    first = site.manifest()
    assert not _sources(site) & {*site.bucket.names()}
    assert site.collect().put == []
    site.write("robots.txt", "changed")
    site.collect()
    assert not {*first.values()} & {*site.manifest().values()}


class Generating(BaseFinder):
    """A finder that lists its files once, as if it built them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._files = FileSystemFinder()

    def check(self, **kwargs: Any) -> list[Any]:
        return []

    def find(self, path: str, **options: Any) -> Any:
        return self._files.find(path, **options)

    def list(self, ignore_patterns: Any) -> Iterator[Any]:
        files, self._files = self._files, None  # type: ignore[assignment]
        yield from files.list(ignore_patterns)


def test_finder_of_the_site(site: Site) -> None:
    """Files of a finder of the site are uploaded under their hashed names only."""
    site.settings["STATICFILES_FINDERS"] = [_here(Generating)]
    expected = _expected(site, LOCAL[MANIFEST])
    for uploads in (len(expected), 0):
        deploy = site.collect("--clear")
        assert len(deploy.put) == uploads
        assert site.bucket.files() == expected


def test_program_saves_under_plain_names(site: Site) -> None:
    """A program's `save()` is not affected by the option."""
    site.collect()
    with site.storage() as storage:
        storage.save("robots.txt", ContentFile(b"saved"))
    assert site.bucket.read("robots.txt") == b"saved"


class OnDisk(CollectfastS3ManifestStaticStorage):
    def __init__(self, **settings: Any) -> None:
        place = FileSystemStorage(location=settings.pop("directory"))
        super().__init__(manifest_storage=place, **settings)


def test_manifest_on_the_disk_of_a_new_image(site: Site) -> None:
    """If each deploy begins without a manifest, only hashed files are uploaded too."""
    site.backend = _here(OnDisk)
    for number in range(2):
        site.options["directory"] = str(site.root / f"image{number}")
        deploy = site.collect()
        assert deploy.summary.startswith("11 static files copied, ")
        assert not _sources(site) & {*site.bucket.names()}
    assert deploy.put == []


# Dry runs.


def test_dry_run_writes_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A dry run of a first deploy, and of the next one, writes nothing."""
    deploy = site.collect("--dry-run", "--verbosity=2")
    assert site.bucket.names() == []
    assert deploy.requests.keys() <= {"LIST", "GET", "HEAD"}
    assert "Pretending to upload" not in deploy.output
    site.collect()
    before = site.bucket.files()
    site.write("img/pixel.png", b"changed")
    with caplog.at_level(logging.WARNING):
        site.collect("--dry-run", "--clear")
    assert site.bucket.files() == before
    assert caplog.records == []
