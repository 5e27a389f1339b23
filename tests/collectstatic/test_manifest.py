"""Manifest storages: what Django writes locally, in S3, and no visitor notices."""

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
    """A tree in which CSS imports CSS that references images, fonts and maps."""
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
def test_bucket_equals_what_django_writes_locally(
    site: Site, ours: str, locally: str, preload: bool
) -> None:
    """Every object, the manifest included; and again, without a write."""
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
def test_either_order_of_the_bases_reaches_the_barrier(
    site: Site, backend: str
) -> None:
    """The manifest goes last, after all else has arrived."""
    site.backend = f"{__name__}.{backend}"
    deploy = site.collect()
    puts = [request for request in site.proxy.requests if request.kind == "PUT"]
    assert puts[-1].key.endswith(MANIFEST)
    assert deploy.requests["DELETE"] == 0
    site.touch()
    assert _writes(site.collect()) == {}


def test_unchanged_redeploy_reads_the_manifest_and_nothing_else(site: Site) -> None:
    """0 PUT, 0 DELETE, one LIST; what is asked beyond is about staticfiles.json."""
    site.collect()
    site.touch()
    again = site.collect()
    assert _writes(again) == {}
    assert again.requests["LIST"] == 1
    others = [r for r in site.proxy.requests if r.kind != "LIST"]
    assert {r.key.rpartition("/")[2] for r in others} == {MANIFEST}
    assert again.requests["GET"] == 1


def test_first_deploy_reads_nothing_but_the_manifest(site: Site) -> None:
    """Post-processing has all it needs on this machine."""
    site.collect()
    read = [r.key for r in site.proxy.requests if r.kind in ("GET", "HEAD")]
    assert all(key.endswith(MANIFEST) for key in read)


def test_one_image_changed(site: Site) -> None:
    """What reaches it gets a new name; nothing else goes up."""
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


def test_superseded_names_do_not_go_up(site: Site) -> None:
    """Only what the manifest names, the originals, and the manifest."""
    deploy = site.collect()
    manifest = json.loads(site.bucket.read(MANIFEST))["paths"]
    assert set(deploy.put) == {*manifest, *manifest.values(), MANIFEST}
    assert len(deploy.put) == len(set(deploy.put))
    assert deploy.requests["DELETE MANY"] == 0


def test_visitors_of_the_old_release_notice_nothing(site: Site) -> None:
    """Half the files change; whoever reads the old release's files gets them whole."""
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
    """Reads what the old manifest names, and what the one of the moment names."""

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
    """Old manifest in place, nothing deleted; the next run sends what is missing."""
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


def test_damaged_hashed_copy_is_mended(site: Site) -> None:
    """A name with a hash in it is no proof of what is below it."""
    site.collect()
    name = json.loads(site.bucket.read(MANIFEST))["paths"]["img/pixel.png"]
    site.bucket.put(name, b"damaged")
    assert site.collect().put == [name]
    assert site.bucket.read(name) == PIXEL


def test_manifest_in_a_local_directory(site: Site, tmp_path: Path) -> None:
    """It is written when all has arrived, and not if something has not."""
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
    """Also where the manifest's storage is one of these."""
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
    """Django's own error, and the old manifest stays."""
    site.collect()
    before = site.bucket.read(MANIFEST)
    site.write("css/broken.css", "a { background: url(none.png) }")
    with pytest.raises((CommandError, ValueError), match=r"none\.png"):
        site.collect()
    assert site.bucket.read(MANIFEST) == before


def test_deploy_that_failed_leaves_no_doubt_behind_the_next_one(site: Site) -> None:
    """Its frames may live as long as its exception, and end only after the next."""
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
    """The next process resolves names as the templates need them."""
    site.collect()
    paths = json.loads(site.bucket.read(MANIFEST))["paths"]
    with site.storage() as storage:
        assert storage.stored_name("css/base.css") == paths["css/base.css"]
        with storage.open("css/plain.css") as file:
            assert file.read() == b"d { color: red }\n"


def test_post_process_outside_of_a_command_is_djangos(site: Site) -> None:
    """A program that calls it gets what Django does, at once."""
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
def test_own_post_process_means_what_it_yields(
    site: Site, arguments: list[str]
) -> None:
    """A file that it kept is not taken for a copy of the source, nor cleared."""
    site.backend = f"{__name__}.OwnPostProcess"
    for _ in range(2):
        site.collect(*arguments)
        assert site.bucket.read("plain.min.css") == b"minified"


def test_manifest_that_vanished_elsewhere_is_written_again(site: Site) -> None:
    """It is too dear to trust the cache about it."""
    site.backend = f"{__name__}.RemoteManifest"
    site.collect()
    key = f"{site.bucket.location}-manifest/{MANIFEST}"
    site.bucket.client.delete_object(Bucket=site.bucket.name, Key=key)
    site.collect()
    site.bucket.client.head_object(Bucket=site.bucket.name, Key=key)


class EagerPostProcess(CollectfastS3ManifestStaticStorage):
    def post_process(self, paths: Any, dry_run: bool = False, **options: Any) -> Any:
        return list(super().post_process(paths, dry_run=dry_run, **options))


def test_post_process_that_is_no_generator(site: Site) -> None:
    """It comes to the barrier once, with a list in its hands."""
    site.backend = f"{__name__}.EagerPostProcess"
    site.collect()
    site.bucket.put("leftover.css", b"x")
    deploy = site.collect("--clear")
    assert deploy.requests["DELETE MANY"] == 1
    assert "leftover.css" not in site.bucket.names()
    if django.VERSION >= (6, 0):
        assert deploy.summary.startswith("1 static file deleted, ")


def _delete_hashed_pixel(site: Site) -> None:
    names = [name for name in site.bucket.names() if name.startswith("img/pixel.")]
    [hashed] = {*names} - {"img/pixel.png"}
    site.bucket.delete(hashed)


class Reading(CollectfastS3ManifestStaticStorage):
    """Looks at what post-processing made, while it goes on."""

    def post_process(self, *args: Any, **options: Any) -> Any:
        self.seen: dict[str, tuple[int, bytes]] = {}
        for name, hashed_name, processed in super().post_process(*args, **options):
            if isinstance(hashed_name, str):
                with self.open(hashed_name) as file:
                    self.seen[hashed_name] = self.size(hashed_name), file.read()
            yield name, hashed_name, processed
        Reading.last_seen = self.seen

    last_seen: dict[str, tuple[int, bytes]]


def test_what_post_processing_made_can_be_read_at_once(site: Site) -> None:
    """Whether it is on its way, or held back as a later pass may supersede it."""
    site.backend = f"{__name__}.Reading"
    site.collect()
    files = site.bucket.files()
    assert Reading.last_seen == {
        name: (len(files[name]), files[name]) for name in Reading.last_seen
    }
    assert {n.partition(".")[0] for n in Reading.last_seen} >= {"css/base", "img/pixel"}


class Rewriting(CollectfastS3ManifestStaticStorage):
    """Replaces what is there, in every way that there is, and reads it again."""

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


@pytest.mark.parametrize("arguments", [[], ["--clear"]])
def test_what_post_processing_replaced_is_read_and_stays_as_it_is_now(
    site: Site, arguments: list[str]
) -> None:
    """Not as it is in the local folder, nor as a draft was."""
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
