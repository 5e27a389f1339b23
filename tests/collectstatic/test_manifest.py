"""Manifest storages, which write the same files as Django does locally."""

from __future__ import annotations

import base64
import gc
import io
import json
import threading
from pathlib import Path
from typing import Any, ClassVar

import django
import pytest
from django.contrib.staticfiles.storage import (
    ManifestFilesMixin,
    ManifestStaticFilesStorage,
)
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage
from django.core.management.base import CommandError
from storages.backends.s3 import S3ManifestStaticStorage

from collectfast_storage import (
    CollectfastMixin,
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
    CollectfastS3Storage,
)
from tests.support.proxy import refuse
from tests.support.site import Deploy, Site

pytestmark = pytest.mark.covering

MANIFEST = "staticfiles.json"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)


class MixinFirst(ManifestFilesMixin, CollectfastS3StaticStorage):
    pass


class MixinLast(CollectfastMixin, S3ManifestStaticStorage):
    pass


class WithModules(CollectfastS3ManifestStaticStorage):
    support_js_module_import_aggregation = True


class LocalWithModules(ManifestStaticFilesStorage):
    support_js_module_import_aggregation = True


class OwnNamesMixin:
    manifest_name = "own.json"
    manifest_strict = False
    keep_intermediate_files = True
    max_post_process_passes = 7

    def file_hash(self, name: str | None, content: Any = None) -> Any:
        digest = super().file_hash(name, content)  # type: ignore[misc]
        return digest and digest.upper()


class OwnNames(OwnNamesMixin, CollectfastS3ManifestStaticStorage):
    pass


class LocalOwnNames(OwnNamesMixin, ManifestStaticFilesStorage):
    pass


class LocalManifest(CollectfastS3ManifestStaticStorage):
    def __init__(self, **settings: Any) -> None:
        directory = settings.pop("directory")
        super().__init__(manifest_storage=FileSystemStorage(directory), **settings)


class RemoteManifest(CollectfastS3ManifestStaticStorage):
    def __init__(self, **settings: Any) -> None:
        location = settings["location"] + "-manifest"
        elsewhere = CollectfastS3Storage(**settings | {"location": location})
        super().__init__(manifest_storage=elsewhere, **settings)


@pytest.fixture
def site(site: Site) -> Site:
    """Return a site with CSS that imports CSS, and references images and fonts."""
    site.backend = f"{__name__}.WithModules"
    site.write("img/pixel.png", PIXEL)
    site.write("img/other.png", PIXEL + b"other")
    site.write("fonts/a.woff2", b"font")
    site.write("fonts/a.eot", b"eot")
    site.write(
        "css/base.css",
        '@import "deep/more.css";\n@import url("late.css");\n'
        "a { background: url(../img/pixel.png) }\n"
        "/*# sourceMappingURL=base.css.map */\n",
    )
    site.write("css/base.css.map", "{}")
    site.write(
        "css/deep/more.css",
        "@font-face { src: url('../../fonts/a.eot?#iefix') }\n"
        "@font-face { src: url(../../fonts/a.woff2#x) }\n"
        "b { background: url(/static/img/other.png) }\n",
    )
    site.write("css/late.css", "c { background: url(../img/pixel.png) }\n")
    site.write("css/plain.css", "d { color: red }\n")
    site.write("js/main.js", 'import { a } from "./lib/a.js";\nimport("./lib/b.js");\n')
    site.write(
        "js/lib/a.js", 'export { b } from "./b.js";\n//# sourceMappingURL=a.js.map'
    )
    site.write("js/lib/a.js.map", "{}")
    site.write("js/lib/b.js", "export const b = 1;\n")
    return site


def _locally(site: Site, backend: str) -> dict[str, bytes]:
    storages = {"staticfiles": {"BACKEND": f"{__name__}.{backend}"}}
    site.collect(STORAGES=storages)
    root = site.root / "collected"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def _writes(deploy: Deploy) -> dict[str, int]:
    return {
        k: n for k, n in deploy.requests.items() if k not in ("LIST", "HEAD", "GET")
    }


@pytest.mark.parametrize(
    ("ours", "locally"),
    [("WithModules", "LocalWithModules"), ("OwnNames", "LocalOwnNames")],
)
@pytest.mark.parametrize("preload", [True, False])
def test_bucket_has_the_files_that_django_writes_locally(
    site: Site, ours: str, locally: str, preload: bool
) -> None:
    """The bucket has the files that Django writes locally, including the manifest.

    An unchanged deploy writes nothing.
    """
    site.backend = f"{__name__}.{ours}"
    site.options["collectfast_preload"] = preload
    expected = _locally(site, locally)
    site.collect()
    assert site.bucket.files() == expected
    site.touch()
    again = site.collect()
    assert site.bucket.files() == expected
    assert _writes(again) == {}


@pytest.mark.parametrize("backend", ["MixinFirst", "MixinLast"])
def test_manifest_is_last_with_either_order_of_the_bases(
    site: Site, backend: str
) -> None:
    """The manifest is uploaded last, whichever base class comes first."""
    site.backend = f"{__name__}.{backend}"
    deploy = site.collect()
    puts = [request for request in site.proxy.requests if request.kind == "PUT"]
    assert puts[-1].key.endswith(MANIFEST)
    assert deploy.requests["DELETE"] == 0
    site.touch()
    assert _writes(site.collect()) == {}


def test_unchanged_deploy_reads_only_the_manifest(site: Site) -> None:
    """An unchanged deploy reads the manifest once, lists once, and writes nothing."""
    site.collect()
    site.touch()
    again = site.collect()
    assert _writes(again) == {}
    assert again.requests["LIST"] == 1
    others = [r for r in site.proxy.requests if r.kind != "LIST"]
    assert {r.key.rpartition("/")[2] for r in others} == {MANIFEST}
    assert again.requests["GET"] == 1


def test_first_deploy_reads_only_the_manifest(site: Site) -> None:
    """A first deploy reads only the manifest, because all other files are local."""
    site.collect()
    read = [r.key for r in site.proxy.requests if r.kind in ("GET", "HEAD")]
    assert all(key.endswith(MANIFEST) for key in read)


def test_changed_image_renames_the_files_that_reference_it(site: Site) -> None:
    """If an image changes, only it and the CSS that references it get new names.

    No other file but the manifest is uploaded.
    """
    site.collect()
    before = json.loads(site.bucket.read(MANIFEST))["paths"]
    site.write("img/pixel.png", PIXEL + b"changed", mtime=1.0)
    deploy = site.collect()
    after = json.loads(site.bucket.read(MANIFEST))["paths"]
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"img/pixel.png", "css/base.css", "css/late.css"}
    assert deploy.put == sorted(
        ["img/pixel.png", MANIFEST, *(after[name] for name in changed)]
    )
    assert deploy.requests["DELETE"] == 0
    assert deploy.requests["DELETE MANY"] == 0


def test_superseded_names_are_not_uploaded(site: Site) -> None:
    """Only the originals, the manifest, and the files that it names are uploaded."""
    deploy = site.collect()
    manifest = json.loads(site.bucket.read(MANIFEST))["paths"]
    assert set(deploy.put) == {*manifest, *manifest.values(), MANIFEST}
    assert len(deploy.put) == len(set(deploy.put))
    assert deploy.requests["DELETE MANY"] == 0


def test_old_release_is_readable_during_a_deploy(site: Site) -> None:
    """While half of the files change, those of the old release can be read whole."""
    for number in range(40):
        site.write(f"many/{number}.txt", f"one {number}")
    site.collect()
    for number in range(0, 40, 2):
        site.write(f"many/{number}.txt", f"two {number}")
    site.write("img/pixel.png", PIXEL + b"changed")

    with Visitor(site) as visitor:
        visitor.wait_for_a_round()
        site.collect()
        visitor.wait_for_a_round()
    assert visitor.troubles == []


class Visitor(threading.Thread):
    """A thread that reads the files of the old manifest and of the current one."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._bucket = site.bucket
        self._old = {name: site.bucket.read(name) for name in self._named()}
        self._rounds = 0
        self._done = threading.Event()
        self.troubles: list[str] = []

    def _named(self) -> list[str]:
        return list(json.loads(self._bucket.read(MANIFEST))["paths"].values())

    def run(self) -> None:
        while not self._done.is_set():
            try:
                for name in {*self._old, *self._named()}:
                    content = self._bucket.read(name)
                    if self._old.get(name, content) != content:
                        self.troubles.append(f"{name}: short or other")
            except Exception as error:
                self.troubles.append(str(error))
            self._rounds += 1

    def wait_for_a_round(self) -> None:
        target = self._rounds + 2
        while self._rounds < target:
            self._done.wait(0.01)

    def __enter__(self) -> Visitor:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self.join()


@pytest.mark.parametrize("refused", ["/img/pixel.", "/css/plain."])
def test_failed_upload_leaves_the_old_release_whole(site: Site, refused: str) -> None:
    """If an upload fails, the old manifest is kept, and nothing is deleted.

    The next run uploads the missing files.
    """
    site.collect()
    before = site.bucket.files()
    site.write("img/pixel.png", PIXEL + b"changed")
    site.write("css/plain.css", "d { color: blue }\n")

    site.proxy.fault = refuse("PUT", refused)
    with pytest.raises(CommandError, match=f"Could not upload(.|\n)*{refused[1:]}"):
        site.collect("--clear")
    after = site.bucket.files()
    assert after.keys() >= before.keys()
    assert after[MANIFEST] == before[MANIFEST]
    named = json.loads(before[MANIFEST])["paths"].values()
    assert all(after[name] == before[name] for name in named)

    site.proxy.fault = None
    expected = _locally(site, "LocalWithModules")
    missing = {name for name in expected if after.get(name) != expected[name]}
    assert set(site.collect().put) == missing
    assert site.bucket.files().items() >= expected.items()


def test_damaged_hashed_copy_is_uploaded_again(site: Site) -> None:
    """A hashed copy with the wrong content is uploaded again.

    Its name alone does not prove that its content is right.
    """
    site.collect()
    name = json.loads(site.bucket.read(MANIFEST))["paths"]["img/pixel.png"]
    site.bucket.put(name, b"damaged")
    assert site.collect().put == [name]
    assert site.bucket.read(name) == PIXEL


def test_manifest_in_a_local_directory(site: Site, tmp_path: Path) -> None:
    """A local manifest is written only after all files have arrived."""
    site.backend = f"{__name__}.LocalManifest"
    site.options["directory"] = str(tmp_path)
    site.collect()
    old = (tmp_path / MANIFEST).read_bytes()
    assert MANIFEST not in site.bucket.names()
    site.write("css/plain.css", "changed")
    site.proxy.fault = refuse("PUT")
    with pytest.raises(CommandError):
        site.collect()
    assert (tmp_path / MANIFEST).read_bytes() == old
    site.proxy.fault = None
    site.collect()
    assert (tmp_path / MANIFEST).read_bytes() != old


def test_manifest_in_another_place_is_overwritten_not_deleted(site: Site) -> None:
    """A manifest that another of these storages saves is overwritten, not deleted."""
    site.backend = f"{__name__}.RemoteManifest"
    site.collect()
    site.touch()
    assert _writes(site.collect()) == {}
    site.write("css/plain.css", "changed")
    deploy = site.collect()
    assert deploy.requests["DELETE"] == deploy.requests["DELETE MANY"] == 0
    last = [request for request in site.proxy.requests if request.kind == "PUT"][-1]
    assert last.key == f"{site.bucket.location}-manifest/{MANIFEST}"


def test_broken_reference_fails_and_publishes_nothing(site: Site) -> None:
    """A broken reference raises Django's error, and the old manifest is kept."""
    site.collect()
    before = site.bucket.read(MANIFEST)
    site.write("css/broken.css", "a { background: url(none.png) }")
    with pytest.raises((CommandError, ValueError), match=r"none\.png"):
        site.collect()
    assert site.bucket.read(MANIFEST) == before


def test_failed_deploy_does_not_invalidate_entries_of_the_next_one(site: Site) -> None:
    """A failed deploy does not invalidate cache entries after the next deploy.

    Its frames live as long as its exception, which may end after the next deploy.
    """
    site.write("a.css", "a{}")
    site.collect()
    site.write("a.css", "a{background:url(gone.png)}")
    site.options["gzip"] = True
    with pytest.raises((CommandError, ValueError), match=r"gone\.png") as caught:
        site.collect()
    site.write("a.css", "a{}")
    site.collect()
    with site.active():
        del caught
        gc.collect()
    assert site.collect().put == []


def test_storage_reads_the_manifest_it_wrote(site: Site) -> None:
    """The next process reads the manifest, and resolves names for templates."""
    site.collect()
    paths = json.loads(site.bucket.read(MANIFEST))["paths"]
    with site.storage() as storage:
        assert storage.stored_name("css/base.css") == paths["css/base.css"]
        with storage.open("css/plain.css") as file:
            assert file.read() == b"d { color: red }\n"


@pytest.mark.needs("trailing checksums")
def test_post_process_of_a_program_is_that_of_django(site: Site) -> None:
    """If a program calls `post_process`, it has Django's results."""
    site.collect()
    with site.storage() as storage:
        source = FileSystemStorage(site.static)
        storage.save("new.txt", ContentFile(b"new"))
        (site.static / "new.txt").write_bytes(b"new")
        processed = list(storage.post_process({"new.txt": (source, "new.txt")}))
    assert [(name, done) for name, _, done in processed] == [("new.txt", True)]
    assert list(json.loads(site.bucket.read(MANIFEST))["paths"]) == ["new.txt"]


class OwnPostProcess(CollectfastS3ManifestStaticStorage):
    def post_process(self, paths: Any, dry_run: bool = False, **options: Any) -> Any:
        yield from super().post_process(paths, dry_run=dry_run, **options)
        if self.exists("plain.min.css"):
            yield "css/plain.css", "plain.min.css", False
        else:
            self._save("plain.min.css", ContentFile(b"minified"))
            yield "css/plain.css", "plain.min.css", True


@pytest.mark.parametrize("arguments", [[], ["--clear"]])
def test_file_that_an_own_post_process_keeps_is_not_deleted(
    site: Site, arguments: list[str]
) -> None:
    """A file that a subclass's `post_process` saved once is kept, even by `--clear`.

    It is not taken for a copy of the source that is yielded with it.
    """
    site.backend = f"{__name__}.OwnPostProcess"
    for _ in range(2):
        site.collect(*arguments)
        assert site.bucket.read("plain.min.css") == b"minified"


def test_manifest_that_was_deleted_is_uploaded_again(site: Site) -> None:
    """A manifest that was deleted is uploaded again, although the cache has an entry.

    A missing manifest breaks the site, so the cache is not trusted about it.
    """
    site.backend = f"{__name__}.RemoteManifest"
    site.collect()
    key = f"{site.bucket.location}-manifest/{MANIFEST}"
    site.bucket.client.delete_object(Bucket=site.bucket.name, Key=key)
    site.collect()
    site.bucket.client.head_object(Bucket=site.bucket.name, Key=key)


class EagerPostProcess(CollectfastS3ManifestStaticStorage):
    def post_process(self, paths: Any, dry_run: bool = False, **options: Any) -> Any:
        return list(super().post_process(paths, dry_run=dry_run, **options))


def test_post_process_that_is_not_a_generator(site: Site) -> None:
    """A subclass's `post_process` may return a list; `--clear` deletes files once."""
    site.backend = f"{__name__}.EagerPostProcess"
    site.collect()
    site.bucket.put("leftover.css", b"x")
    deploy = site.collect("--clear")
    assert deploy.requests["DELETE MANY"] == 1
    assert "leftover.css" not in site.bucket.names()
    if django.VERSION >= (6, 0):
        assert deploy.summary.startswith("1 static file deleted, ")


class Reading(CollectfastS3ManifestStaticStorage):
    """A storage that reads each hashed file when post-processing yields it."""

    def post_process(self, *args: Any, **options: Any) -> Any:
        self.seen: dict[str, tuple[int, bytes]] = {}
        for name, hashed_name, processed in super().post_process(*args, **options):
            if isinstance(hashed_name, str):
                with self.open(hashed_name) as file:
                    self.seen[hashed_name] = self.size(hashed_name), file.read()
            yield name, hashed_name, processed
        Reading.last_seen = self.seen

    last_seen: dict[str, tuple[int, bytes]]


def test_hashed_files_can_be_read_during_post_processing(site: Site) -> None:
    """A hashed file can be read as soon as post-processing yields its name.

    Its upload may be under way, or may wait because a later pass may supersede it.
    """
    site.backend = f"{__name__}.Reading"
    site.collect()
    files = site.bucket.files()
    assert Reading.last_seen == {
        name: (len(files[name]), files[name]) for name in Reading.last_seen
    }
    assert {n.partition(".")[0] for n in Reading.last_seen} >= {"css/base", "img/pixel"}


class Rewriting(CollectfastS3ManifestStaticStorage):
    """A storage that overwrites files in post-processing, and reads them again."""

    read: ClassVar[dict[str, bytes]] = {}

    def post_process(self, *args: Any, **options: Any) -> Any:
        yield from super().post_process(*args, **options)
        self._save("css/plain.css", File(io.BytesIO(b"minified")))
        self._write("css/late.css", b"written")
        for name in ("saved.txt", "written.txt"):
            self._save(name, ContentFile(b"a draft"))
        self._save("saved.txt", File(io.BytesIO(b"saved")))
        self._write("written.txt", b"written")
        for name in ("css/plain.css", "css/late.css", "saved.txt", "written.txt"):
            with self.open(name) as file:
                self.read[name] = file.read()

    def _write(self, name: str, content: bytes) -> None:
        with self.open(name, "wb") as file:
            file.write(content)


@pytest.mark.needs("trailing checksums")
@pytest.mark.parametrize("arguments", [[], ["--clear"]])
def test_files_that_post_processing_overwrites_have_the_last_content(
    site: Site, arguments: list[str]
) -> None:
    """Files that post-processing overwrites are read and uploaded as saved last.

    The contents are neither those of the local folder nor those of an earlier save.
    """
    site.backend = f"{__name__}.Rewriting"
    site.collect(*arguments)
    assert Rewriting.read == {
        "css/plain.css": b"minified",
        "css/late.css": b"written",
        "saved.txt": b"saved",
        "written.txt": b"written",
    }
    files = site.bucket.files()
    assert {name: files[name] for name in Rewriting.read} == Rewriting.read
