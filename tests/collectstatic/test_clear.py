"""Deletions by `collectstatic --clear`, which do not cause downtime."""

from __future__ import annotations

import re
from typing import Any

import django
import pytest
from botocore.config import Config
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage
from django.core.management.base import CommandError
from storages.backends.s3 import S3Storage

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
    CollectfastS3Storage,
)
from collectfast_storage.reporting import Report
from collectfast_storage.signals import collected
from tests.support.proxy import Handler, Request, refuse
from tests.support.site import Site

pytestmark = pytest.mark.covering

MANIFEST_STORAGE = "collectfast_storage.CollectfastS3ManifestStaticStorage"


def _named(output: str, verb: str) -> list[str]:
    return sorted(re.findall(rf"^{verb} '(.*)'$", output, re.MULTILINE))


def test_left_over_objects_are_deleted_in_one_request(site: Site) -> None:
    """Of 1,100 objects, one DeleteObjects request deletes the 100 without a source.

    The 1,000 others are neither deleted nor uploaded again.
    """
    for number in range(1100):
        site.write(f"{number}.txt", str(number))
    site.collect()
    for number in range(100):
        (site.static / f"{number}.txt").unlink()
    deploy = site.collect("--clear")
    assert deploy.requests == {"LIST": 2, "DELETE MANY": 1}
    assert site.bucket.names() == sorted(f"{n}.txt" for n in range(100, 1100))
    deleted = "100 static files deleted, " if django.VERSION >= (6, 0) else ""
    assert deploy.summary == f"{deleted}0 static files copied, 1000 unmodified."


def test_clear_without_a_location_is_refused(site: Site) -> None:
    """`--clear` without a location is refused, and the error names the option to set.

    Without a location, `--clear` could delete other files of the bucket.
    """
    site.write("a.css", "a")
    site.options["location"] = ""
    for arguments in (["--clear"], ["--clear", "--dry-run"]):
        with pytest.raises(CommandError, match=r"option location.*AWS_LOCATION"):
            site.collect(*arguments)
    assert site.proxy.count() == {}


@pytest.mark.parametrize("below", ["", "/media"])
@pytest.mark.parametrize("arguments", [["--clear"], ["--clear", "--dry-run"]])
def test_clear_is_refused_if_another_storage_stores_below_the_location(
    site: Site, below: str, arguments: list[str]
) -> None:
    """`--clear` is refused while another storage stores at or below the location.

    If all storages share one AWS_LOCATION, `--clear` would delete the users' uploads.
    """
    site.write("a.css", "a")
    site.bucket.put("media/me.jpg", b"me")
    static = {"BACKEND": site.backend, "OPTIONS": site.storage_options}
    options = {**site.storage_options, "location": site.bucket.location + below}
    media = {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": options}
    storages = {"default": media, "staticfiles": static}
    with pytest.raises(CommandError, match=r"STORAGES\['default'\] stores files below"):
        site.collect(*arguments, STORAGES=storages)
    assert site.bucket.names() == ["media/me.jpg"]
    site.collect(STORAGES=storages)
    options["location"] = f"{site.bucket.location}-media"
    site.collect(*arguments, STORAGES=storages)
    left = {"media/me.jpg"} if "--dry-run" in arguments else set()
    assert {*site.bucket.names()} == {"a.css", *left}


class MediaStorage(S3Storage):
    """A storage that sets its location when it is built."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.location += "/media"


def test_storage_class_that_moves_itself_below_the_location(site: Site) -> None:
    """`--clear` is refused if a storage class moves itself below the location.

    The endpoint of that storage is spelled differently, which makes no difference.
    """
    options = {**site.storage_options, "endpoint_url": f"{site.proxy.endpoint}/"}
    media = {"BACKEND": f"{__name__}.MediaStorage", "OPTIONS": options}
    static = {"BACKEND": site.backend, "OPTIONS": site.storage_options}
    site.bucket.put("media/me.jpg", b"me")
    with pytest.raises(CommandError, match=r"STORAGES\['default'\] stores files below"):
        site.collect("--clear", STORAGES={"default": media, "staticfiles": static})
    assert site.bucket.names() == ["media/me.jpg"]


@pytest.mark.parametrize("arguments", [["--clear"], ["--clear", "--dry-run"]])
@pytest.mark.parametrize("other", ["same", "broken"])
def test_other_aliases_of_the_same_storage(
    site: Site, arguments: list[str], other: str
) -> None:
    """`--clear` is refused if another alias has the location, or cannot be loaded.

    Another alias of the location may be used for other files, and an alias that cannot
    be loaded may store there, too. A local folder is no reason to refuse.
    """
    static = {"BACKEND": site.backend, "OPTIONS": site.storage_options}
    local = {"BACKEND": "django.core.files.storage.FileSystemStorage"}
    broken = {"BACKEND": "no.such.Storage"}
    site.bucket.put("left over.css", b"left over")
    site.write("a.css", "a")
    storages = {"default": local, "staticfiles": static}
    refused = {**storages, "other": static if other == "same" else broken}
    broken_reason = r"cannot be created \(ModuleNotFound"
    reason = "stores files below" if other == "same" else broken_reason
    with pytest.raises(CommandError, match=rf"STORAGES\['other'\] {reason}"):
        site.collect(*arguments, STORAGES=refused)
    assert site.bucket.names() == ["left over.css"]
    site.collect("--clear", STORAGES=storages)
    assert site.bucket.names() == ["a.css"]


def test_objects_beside_the_location_are_kept(site: Site) -> None:
    """`--clear` keeps `static-old/`, because it is not below the location `static/`."""
    key = f"{site.bucket.location}-old/a.css"
    site.bucket.client.put_object(Bucket=site.bucket.name, Key=key, Body=b"sibling")
    site.bucket.put("leftover.css", b"leftover")
    site.write("a.css", "a")
    site.collect("--clear")
    assert site.bucket.names() == ["a.css"]
    site.bucket.client.head_object(Bucket=site.bucket.name, Key=key)


@pytest.mark.parametrize("more", [[], ["--no-post-process"]])
@pytest.mark.parametrize("preload", [True, False])
def test_dry_run_names_the_files_that_a_real_run_deletes(
    site: Site, preload: bool, more: list[str]
) -> None:
    """`--clear --dry-run` deletes nothing, and names the files a real run deletes."""
    site.options["collectfast_preload"] = preload
    site.write_many(10)
    site.collect()
    site.bucket.put("dir with/left over.css", b"x")
    (site.static / "dir0/file0.css").unlink()
    before = site.bucket.files()
    site.write("new.css", "new")
    dry = site.collect("--clear", "--dry-run", *more)
    assert site.bucket.files() == before
    names = ["dir with/left over.css", "dir0/file0.css"]
    assert _named(dry.output, "Pretending to delete") == names
    real = site.collect("--clear", "-v2", *more)
    assert _named(real.output, "Deleting") == names
    assert site.bucket.names() == sorted({"new.css"} | before.keys() - names)


def test_dry_run_of_a_manifest_storage_names_hashed_files(site: Site) -> None:
    """A dry run names the hashed files that a real run deletes, and creates none."""
    site.backend = MANIFEST_STORAGE
    site.write("a.css", "a { background: url(i.png) }")
    site.write("i.png", b"image")
    site.write("gone.css", "x")
    site.collect()
    (site.static / "gone.css").unlink()
    site.write("i.png", b"other image")
    before = site.bucket.files()
    hashed = sorted(n for n in before if re.search(r"\.[0-9a-f]{12}\.", n))
    for gone in (["gone.css"], hashed):
        before = site.bucket.files()
        dry = site.collect("--clear", "--dry-run")
        assert site.bucket.files() == before
        assert dry.requests["PUT"] == dry.requests["DELETE MANY"] == 0
        assert _named(dry.output, "Pretending to delete") == gone
        site.collect("--clear")
        assert sorted(before.keys() - set(site.bucket.names())) == gone


def test_previous_release_is_complete_at_each_moment(site: Site) -> None:
    """During five deploys with `--clear`, the previous release is always complete.

    Its hashed files do not change, and the report counts those that are kept.
    """
    site.backend = MANIFEST_STORAGE
    before: dict[str, str] = {}
    reports: list[Report] = []
    lost: list[tuple[str, str]] = []

    def watch(handler: Handler, request: Request, body: bytes) -> bool:
        lost.extend(before.items() - site.bucket.etags().items())
        return False

    def hear(report: Report, **kwargs: Any) -> None:
        reports.append(report)

    collected.connect(hear)
    for number in range(5):
        for name in ("a.css", "b.css"):
            site.write(name, f"a {{ background: url(i.png) }} /* {name} */")
        site.write("i.png", b"image %d" % number)
        site.proxy.fault = watch
        site.collect("--clear")
        etags = site.bucket.etags()
        assert lost == [*(before.items() - etags.items())] == []
        release = {name: etags[name] for name in site.manifest().values()}
        assert reports[-1].kept == tuple(sorted(before))
        assert ("3 kept" in str(reports[-1])) == (number > 0)
        assert len(reports[-1].deleted) == (3 if number > 1 else 0)
        before = release
    assert site.collect("--clear").requests["DELETE MANY"] == 1
    assert reports[-1].kept == ()


def test_hashed_files_are_kept_for_one_more_release(site: Site) -> None:
    """`--clear` keeps the hashed files of the new and of the previous release.

    Pages of the previous release are still open in browsers. Older hashed files are
    deleted, after the new manifest is uploaded.
    """
    site.backend = MANIFEST_STORAGE
    site.write("a.css", "a { background: url(i.png) }")
    releases = []
    for number in range(4):
        site.write("i.png", b"image %d" % number)
        deploy = site.collect("--clear")
        releases.append(set(site.manifest().values()))
        names = set(site.bucket.names())
        assert {name for release in releases[-2:] for name in release} <= names
        assert not {name for release in releases[:-2] for name in release} & names
        assert deploy.requests["DELETE MANY"] == (number > 1)
    kinds = [r.kind for r in site.proxy.requests if r.kind in ("PUT", "DELETE MANY")]
    assert kinds[-1] == "DELETE MANY"
    site.touch()
    again = site.collect("--clear")
    assert again.requests["PUT"] == 0
    assert releases[-1] <= set(site.bucket.names())
    names = site.bucket.names()
    again = site.collect("--clear")
    assert again.requests["PUT"] == again.requests["DELETE MANY"] == 0
    assert site.bucket.names() == names


class Uncached(CollectfastS3ManifestStaticStorage):
    """A storage that has its manifest saved by another storage, with `no-cache`."""

    manifest_storage_class: type[S3Storage] = S3Storage

    def __init__(self, **settings: Any) -> None:
        plain = {k: v for k, v in settings.items() if not k.startswith("collectfast_")}
        plain["object_parameters"] = {"CacheControl": "no-cache"}
        manifest_storage = self.manifest_storage_class(**plain)
        super().__init__(manifest_storage=manifest_storage, **settings)


class UncachedFast(Uncached):
    manifest_storage_class = CollectfastS3Storage


@pytest.mark.needs("trailing checksums")
@pytest.mark.parametrize("backend", [Uncached, UncachedFast])
def test_manifest_that_another_storage_saves_at_the_location_is_kept(
    site: Site, backend: type
) -> None:
    """`--clear` keeps the manifest, whichever storage saved it.

    Without the manifest the site would be broken.
    """
    site.backend = f"{__name__}.{backend.__name__}"
    site.write("a.txt", "a")
    site.collect()
    (site.static / "a.txt").unlink()
    site.write("b.txt", "b")
    site.collect("--clear")
    site.collect("--clear")
    names = site.bucket.names()
    assert [name for name in names if name.startswith("a.")] == []
    assert site.bucket.get("staticfiles.json")["CacheControl"] == "no-cache"


def test_file_that_will_be_deleted_cannot_be_referenced(site: Site) -> None:
    """With `--clear`, CSS that references a removed image fails.

    It fails in the same way after Django's own clearing. The bucket is not changed.
    """
    site.backend = MANIFEST_STORAGE
    site.write("a.css", "a { background: url(i.png) }")
    site.write("i.png", b"image")
    site.collect()
    before = site.bucket.files()
    (site.static / "i.png").unlink()
    with pytest.raises(
        (CommandError, ValueError), match=r"'i\.png' could not be found"
    ):
        site.collect("--clear")
    assert site.bucket.files() == before


class OwnPostProcess(CollectfastS3ManifestStaticStorage):
    def post_process(self, paths: Any, dry_run: bool = False, **options: Any) -> Any:
        for name, _, _ in super().post_process(paths, dry_run=dry_run, **options):
            yield name, None, False


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_hashed_files_are_kept_with_an_own_post_process(
    site: Site, arguments: list[str]
) -> None:
    """`--clear` keeps the files in the manifest if `post_process` does not name them.

    The files are in use, although this run did not have to save them.
    """
    site.backend = f"{__name__}.OwnPostProcess"
    site.write("a.css", "a { background: url(i.png) }")
    site.write("i.png", b"image")
    site.collect()
    before = site.bucket.names()
    assert len(before) == 5
    deploy = site.collect("--clear", *arguments)
    assert deploy.requests["DELETE MANY"] == 0
    assert "Pretending to delete" not in deploy.output
    assert site.bucket.names() == before


def test_failed_run_deletes_nothing(site: Site) -> None:
    """If an upload fails, `--clear` deletes no file, because it may still be needed."""
    site.write("a.css", "a")
    site.bucket.put("leftover.css", b"leftover")

    site.proxy.fault = refuse("PUT")
    for arguments in ([], ["--no-post-process"]):
        with pytest.raises(CommandError):
            site.collect("--clear", *arguments)
    assert site.bucket.names() == ["leftover.css"]


def test_clear_without_post_processing_deletes_after_the_last_file(site: Site) -> None:
    """With `--no-post-process`, files are deleted after the last upload."""
    site.write("a.css", "a")
    site.write("b.css", "b")
    site.bucket.put("leftover.css", b"leftover")
    site.bucket.put("a.css", b"old")
    site.collect("--clear", "--no-post-process")
    kinds = [request.kind for request in site.proxy.requests]
    # No other file has shown that ETags are MD5s here, so a HEAD request finds out.
    assert kinds == ["LIST", "HEAD", "PUT", "PUT", "DELETE MANY"]
    assert site.bucket.files() == {"a.css": b"a", "b.css": b"b"}
    again = site.collect("--clear", "--no-post-process")
    assert again.requests == {"LIST": 1}


def test_clear_without_post_processing_and_sources_deletes_all(site: Site) -> None:
    """If there are no sources, `--clear --no-post-process` deletes all objects."""
    site.bucket.put("leftover.css", b"leftover")
    site.collect("--clear", "--no-post-process")
    assert site.bucket.names() == []


def test_clear_without_post_processing_keeps_the_live_release(site: Site) -> None:
    """`--clear --no-post-process` keeps the manifest and the files that it names.

    Visitors still get these files, because no new manifest has replaced the old one.
    """
    site.backend = MANIFEST_STORAGE
    site.write("a.css", "a")
    site.collect()
    before = site.bucket.names()
    site.bucket.put("leftover.css", b"leftover")
    site.collect("--clear", "--no-post-process")
    assert site.bucket.names() == before


def test_objects_that_cannot_be_deleted_are_named(site: Site) -> None:
    """The error names each object that cannot be deleted; all files are uploaded."""
    site.write("a.css", "a")
    site.bucket.put("left.css", b"x")

    def keep_one(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "DELETE MANY":
            return False
        key = f"{site.bucket.location}/left.css"
        handler.answer(
            200,
            f"<DeleteResult><Error><Key>{key}</Key><Code>AccessDenied</Code>"
            "<Message>no</Message></Error></DeleteResult>".encode(),
            [("Content-Type", "application/xml")],
        )
        return True

    site.proxy.fault = keep_one
    with pytest.raises(
        CommandError, match=r"Could not delete 1 file(.|\n)*left\.css: Acc"
    ):
        site.collect("--clear")
    assert site.bucket.names() == ["a.css", "left.css"]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "InvalidArgument"),  # Google's XML API, in the past
        (400, "NotImplemented"),  # Google's XML API, later
        (400, "MissingContentMD5"),  # MinIO, before it took a checksum instead
        (405, "MethodNotAllowed"),
        (501, "NotImplemented"),
    ],
)
def test_server_without_deleteobjects_gets_one_delete_per_file(
    site: Site, status: int, code: str
) -> None:
    """If a server lacks DeleteObjects, each file is deleted by its own request.

    django-storages sends such requests, too. The error names the file that cannot be
    deleted.
    """
    site.write("a.css", "a")
    for name in ("kept.css", "left.css", "over.css"):
        site.bucket.put(name, b"x")

    def one_by_one(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "DELETE MANY":
            handler.error(status, code)
            return True
        return refuse("DELETE", "kept.css", "not this one")(handler, request, body)

    site.proxy.fault = one_by_one
    with pytest.raises(CommandError) as caught:
        site.collect("--clear")
    assert re.search(r"kept\.css: .*not this one", str(caught.value))
    assert "left.css" not in str(caught.value)
    counted = site.proxy.count()
    assert (counted["DELETE MANY"], counted["DELETE"]) == (1, 3)
    assert site.bucket.names() == ["a.css", "kept.css"]


def test_denied_deleteobjects_is_not_followed_by_single_deletes(site: Site) -> None:
    """If DeleteObjects is denied, no further request tries to delete the files."""
    site.write("a.css", "a")
    site.bucket.put("left.css", b"x")
    site.proxy.fault = refuse("DELETE MANY")
    with pytest.raises(CommandError, match=r"left\.css: .*AccessDenied"):
        site.collect("--clear")
    assert site.proxy.count()["DELETE"] == 0


def test_connection_that_breaks_during_deletes_names_every_file(site: Site) -> None:
    """If the connection breaks during DeleteObjects, the error names every file.

    It is unknown which files were deleted. The next run deletes them.
    """
    site.options["client_config"] = Config(retries={"total_max_attempts": 1})
    site.write("a.css", "a")
    for name in ("old.css", "older.css"):
        site.bucket.put(name, b"x")

    def reset(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "DELETE MANY":
            handler.reset()
        return request.kind == "DELETE MANY"

    site.proxy.fault = reset
    with pytest.raises(CommandError, match="Could not delete 2 files") as caught:
        site.collect("--clear")
    assert str(caught.value).count("Connection") == 2
    assert site.proxy.count()["DELETE"] == 0
    site.proxy.fault = None
    site.collect("--clear")
    assert site.bucket.names() == ["a.css"]


class OwnDelete(CollectfastS3StaticStorage):
    def delete(self, name: str) -> None:
        super().delete(name)


def test_own_delete_that_is_refused_names_the_file(site: Site) -> None:
    """If a request of a subclass's `delete` is refused, the error names the file."""
    site.backend = f"{__name__}.OwnDelete"
    site.write("a.css", "a")
    for name in ("kept.css", "old.css"):
        site.bucket.put(name, b"x")
    site.proxy.fault = refuse("DELETE", "kept")
    with pytest.raises(CommandError, match=r"1 file from the bucket:\n  kept\.css: "):
        site.collect("--clear")
    assert site.bucket.names() == ["a.css", "kept.css"]


class Tidying(CollectfastS3StaticStorage):
    def _save(self, name: str, content: Any) -> str:
        self.delete("left.txt")
        return super()._save(name, content)


def test_delete_in_an_own_save_without_post_processing_is_carried_out(
    site: Site,
) -> None:
    """With `--no-post-process`, a file that a subclass's `_save` deletes is gone.

    No step of the command after the last save could delete it.
    """
    site.backend = f"{__name__}.Tidying"
    site.bucket.put("left.txt", b"x")
    site.write("a.css", "a")
    site.collect("--no-post-process")
    assert site.bucket.names() == ["a.css"]


@pytest.mark.needs("objects with a slash at the end")
def test_objects_that_represent_folders_are_kept(site: Site) -> None:
    """`--clear` keeps objects with a slash at the end of their keys.

    The S3 console creates such an empty object for a folder, and this folder may be the
    location.
    """
    site.write("a.css", "a")
    site.bucket.put("folder/", b"")
    assert site.bucket.names() == ["folder/"]
    site.collect("--clear")
    assert site.bucket.names() == ["a.css", "folder/"]


class Copying(CollectfastS3StaticStorage):
    def _save(self, name: str, content: Any) -> str:
        return super()._save(name, content)


def test_clear_without_post_processing_waits_for_an_own_save(site: Site) -> None:
    """`--clear --no-post-process` deletes files although the last source is unchanged.

    With a subclass's `_save`, it is known only after its call that no upload is needed.
    """
    site.backend = f"{__name__}.Copying"
    site.write("a.css", "a")
    site.collect()
    site.bucket.put("leftover.css", b"leftover")
    site.collect("--clear", "--no-post-process")
    assert site.put() == []
    assert site.bucket.names() == ["a.css"]


class LocalManifest(CollectfastS3ManifestStaticStorage):
    """A storage with a manifest on the local disk."""

    def __init__(self, **settings: Any) -> None:
        storage = FileSystemStorage(location=settings.pop("manifest_location"))
        super().__init__(manifest_storage=storage, **settings)


def test_manifest_on_the_local_disk(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """With a manifest on the local disk, `--clear` keeps all hashed files and warns.

    Such a manifest does not show which release is live. Other left over files are
    deleted.
    """
    site.backend = f"{__name__}.LocalManifest"
    site.options["manifest_location"] = str(site.root / "manifest")
    site.write("a.txt", "a")
    site.collect()
    before = site.bucket.names()
    (site.static / "a.txt").unlink()
    site.write("b.txt", "b")
    site.collect("--clear")
    [hashed] = [name for name in before if name != "a.txt"]
    for _ in range(2):
        caplog.clear()
        site.collect("--clear")
        left = site.bucket.names()
        assert hashed in left
        assert "a.txt" not in left
        assert len(left) == 3
        [warning] = caplog.messages
        assert "hashed name" in warning
    assert (site.root / "manifest" / "staticfiles.json").exists()


class Eager(CollectfastS3StaticStorage):
    """A storage that saves files in post-processing, even in a dry run."""

    def post_process(self, *args: Any, **options: Any) -> Any:
        self.save("made.txt", ContentFile(b"made"))
        self.save("empty.txt", ContentFile(b""))  # Empty files are not held as drafts.
        yield from super().post_process(*args, **options)


def test_dry_run_of_a_post_processing_that_saves(site: Site) -> None:
    """A dry run uploads no file, even if `post_process` saves files."""
    site.backend = f"{__name__}.Eager"
    site.write("a.txt", "a")
    assert site.collect("--dry-run").requests == {"LIST": 1}
    assert site.collect().put == ["a.txt", "empty.txt", "made.txt"]


class OwnSave(CollectfastS3StaticStorage):
    """A storage with a `_save` that may read its object as soon as it is saved."""

    def _save(self, name: str, content: Any) -> Any:
        return super()._save(name, content)


def test_own_save_that_is_refused(site: Site) -> None:
    """If an upload of a subclass's `_save` is refused, the error names the file."""
    site.backend = f"{__name__}.OwnSave"
    site.write_many(3)
    site.proxy.fault = refuse("PUT", "file1")
    with pytest.raises(CommandError, match=r"dir1/file1\.js: .*AccessDenied"):
        site.collect()
