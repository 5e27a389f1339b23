"""`collectstatic --clear`: it works, and without downtime."""

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

MANIFEST_STORAGE = "collectfast_storage.CollectfastS3ManifestStaticStorage"


def _named(output: str, verb: str) -> list[str]:
    return sorted(re.findall(rf"^{verb} '(.*)'$", output, re.MULTILINE))


def test_survivors_stay_and_the_rest_goes_in_one_request(site: Site) -> None:
    """1,100 objects of which 1,000 stay: 0 DELETE of survivors, one DeleteObjects."""
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


def test_without_a_location_it_refuses(site: Site) -> None:
    """The bucket may hold other things; the option to set is named."""
    site.write("a.css", "a")
    site.options["location"] = ""
    for arguments in (["--clear"], ["--clear", "--dry-run"]):
        with pytest.raises(CommandError, match=r"option location.*AWS_LOCATION"):
            site.collect(*arguments)
    assert site.proxy.count() == {}


@pytest.mark.parametrize("below", ["", "/media"])
@pytest.mark.parametrize("arguments", [["--clear"], ["--clear", "--dry-run"]])
def test_where_another_storage_stores_it_refuses(
    site: Site, below: str, arguments: list[str]
) -> None:
    """One AWS_LOCATION for all: then what users uploaded is nothing to clear."""
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
    """Where it stores, only a storage that was built can tell."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.location += "/media"


def test_storage_of_a_sites_own_below_the_location(site: Site) -> None:
    options = {**site.storage_options, "endpoint_url": f"{site.proxy.endpoint}/"}
    media = {"BACKEND": f"{__name__}.MediaStorage", "OPTIONS": options}
    static = {"BACKEND": site.backend, "OPTIONS": site.storage_options}
    site.bucket.put("media/me.jpg", b"me")
    with pytest.raises(CommandError, match=r"STORAGES\['default'\] stores files below"):
        site.collect("--clear", STORAGES={"default": media, "staticfiles": static})
    assert site.bucket.names() == ["media/me.jpg"]


@pytest.mark.parametrize("arguments", [["--clear"], ["--clear", "--dry-run"]])
@pytest.mark.parametrize("other", ["same", "broken"])
def test_other_names_of_the_same_storage(
    site: Site, arguments: list[str], other: str
) -> None:
    """Another alias of the same place may be used for other files, so it is refused.

    An alias that cannot be loaded may store there too. A local folder does not.
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


def test_siblings_of_the_location_are_left_alone(site: Site) -> None:
    """`static-old/` does not lie below `static`."""
    key = f"{site.bucket.location}-old/a.css"
    site.bucket.client.put_object(Bucket=site.bucket.name, Key=key, Body=b"sibling")
    site.bucket.put("leftover.css", b"leftover")
    site.write("a.css", "a")
    site.collect("--clear")
    assert site.bucket.names() == ["a.css"]
    site.bucket.client.head_object(Bucket=site.bucket.name, Key=key)


@pytest.mark.parametrize("more", [[], ["--no-post-process"]])
@pytest.mark.parametrize("preload", [True, False])
def test_dry_run_names_what_a_real_run_deletes(
    site: Site, preload: bool, more: list[str]
) -> None:
    """And what it would copy; and does nothing."""
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


def test_dry_run_of_a_manifest_storage_names_what_would_go(site: Site) -> None:
    """Hashed names are as a real run would make them, and that makes none of them."""
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


def test_release_before_is_there_at_each_moment(site: Site) -> None:
    """Five of them, each cleared: its files stay as they are, and are counted."""
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


def test_manifest_storage_keeps_what_the_new_manifest_names(site: Site) -> None:
    """Hashed copies stay for one release more, and then go, after the manifest.

    Pages of the release before are still open in browsers.
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
    """The manifest beside the files, by another storage: browsers never cache it."""

    manifest_storage_class: type[S3Storage] = S3Storage

    def __init__(self, **settings: Any) -> None:
        plain = {k: v for k, v in settings.items() if not k.startswith("collectfast_")}
        plain["object_parameters"] = {"CacheControl": "no-cache"}
        manifest_storage = self.manifest_storage_class(**plain)
        super().__init__(manifest_storage=manifest_storage, **settings)


class UncachedFast(Uncached):
    manifest_storage_class = CollectfastS3Storage


@pytest.mark.parametrize("backend", [Uncached, UncachedFast])
def test_manifest_that_another_storage_keeps_in_the_same_place_stays(
    site: Site, backend: type
) -> None:
    """Whoever saved it, without it the site would be broken."""
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


def test_what_is_to_be_cleared_is_no_longer_there(site: Site) -> None:
    """CSS that names a removed image fails, as after Django's own clearing."""
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
def test_hashed_copies_stay_whoever_post_processes(
    site: Site, arguments: list[str]
) -> None:
    """What the manifest names is in use, also if this run had no need to save it."""
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
    """What was to go may still be needed."""
    site.write("a.css", "a")
    site.bucket.put("leftover.css", b"leftover")

    site.proxy.fault = refuse("PUT")
    for arguments in ([], ["--no-post-process"]):
        with pytest.raises(CommandError):
            site.collect("--clear", *arguments)
    assert site.bucket.names() == ["leftover.css"]


def test_without_post_processing_it_clears_after_the_last_file(site: Site) -> None:
    """Every call is carried out as it is made, and in the right order."""
    site.write("a.css", "a")
    site.write("b.css", "b")
    site.bucket.put("leftover.css", b"leftover")
    site.bucket.put("a.css", b"old")
    site.collect("--clear", "--no-post-process")
    kinds = [request.kind for request in site.proxy.requests]
    # With no other file to tell, a HEAD says that an ETag here is that of the content.
    assert kinds == ["LIST", "HEAD", "PUT", "PUT", "DELETE MANY"]
    assert site.bucket.files() == {"a.css": b"a", "b.css": b"b"}
    again = site.collect("--clear", "--no-post-process")
    assert again.requests == {"LIST": 1}


def test_without_post_processing_and_sources_it_clears_all(site: Site) -> None:
    """Where no file is the last one, it is time to clear at once."""
    site.bucket.put("leftover.css", b"leftover")
    site.collect("--clear", "--no-post-process")
    assert site.bucket.names() == []


def test_without_post_processing_the_released_manifest_survives(site: Site) -> None:
    """Nothing has replaced what visitors are being served."""
    site.backend = MANIFEST_STORAGE
    site.write("a.css", "a")
    site.collect()
    before = site.bucket.names()
    site.bucket.put("leftover.css", b"leftover")
    site.collect("--clear", "--no-post-process")
    assert site.bucket.names() == before


def test_objects_that_cannot_be_deleted_are_named(site: Site) -> None:
    """One line each, and an exit status; the files themselves are up."""
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
        (400, "InvalidArgument"),  # Google's XML API, once
        (400, "NotImplemented"),  # and later
        (400, "MissingContentMD5"),  # MinIO, before it took a checksum instead
        (405, "MethodNotAllowed"),
        (501, "NotImplemented"),
    ],
)
def test_server_that_cannot_delete_many_is_asked_one_by_one(
    site: Site, status: int, code: str
) -> None:
    """As django-storages asks; and what cannot be deleted is named all the same."""
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


def test_who_may_not_delete_is_not_asked_one_by_one(site: Site) -> None:
    """A refusal is an answer."""
    site.write("a.css", "a")
    site.bucket.put("left.css", b"x")
    site.proxy.fault = refuse("DELETE MANY")
    with pytest.raises(CommandError, match=r"left\.css: .*AccessDenied"):
        site.collect("--clear")
    assert site.proxy.count()["DELETE"] == 0


def test_connection_that_breaks_at_the_deletes_names_every_file(site: Site) -> None:
    """No more is known of them; the next run deletes them."""
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


def test_delete_of_a_sites_own_that_is_refused_names_the_file(site: Site) -> None:
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


def test_delete_of_a_program_without_post_processing_is_made_at_once(
    site: Site,
) -> None:
    """Nothing comes after the last save that could make it."""
    site.backend = f"{__name__}.Tidying"
    site.bucket.put("left.txt", b"x")
    site.write("a.css", "a")
    site.collect("--no-post-process")
    assert site.bucket.names() == ["a.css"]


@pytest.mark.needs("objects with a slash at the end")
def test_folders_of_those_who_believe_in_them_stay(site: Site) -> None:
    """The S3 console makes an empty object of a folder; it may be the location's."""
    site.write("a.css", "a")
    site.bucket.put("folder/", b"")
    assert site.bucket.names() == ["folder/"]
    site.collect("--clear")
    assert site.bucket.names() == ["a.css", "folder/"]


class Copying(CollectfastS3StaticStorage):
    def _save(self, name: str, content: Any) -> str:
        return super()._save(name, content)


def test_without_post_processing_a_sites_own_save_is_waited_for(site: Site) -> None:
    """Also where it turns out that the bucket holds the last file."""
    site.backend = f"{__name__}.Copying"
    site.write("a.css", "a")
    site.collect()
    site.bucket.put("leftover.css", b"leftover")
    site.collect("--clear", "--no-post-process")
    assert site.put() == []
    assert site.bucket.names() == ["a.css"]


class LocalManifest(CollectfastS3ManifestStaticStorage):
    """The manifest on the machine's own disk."""

    def __init__(self, **settings: Any) -> None:
        storage = FileSystemStorage(location=settings.pop("manifest_location"))
        super().__init__(manifest_storage=storage, **settings)


def test_manifest_that_is_kept_elsewhere(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A manifest on this machine does not say which release is live.

    Therefore every hashed name stays, other left over files are deleted, and a warning
    says so.
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
    """Saves something in post-processing, whatever it is told."""

    def post_process(self, *args: Any, **options: Any) -> Any:
        self.save("made.txt", ContentFile(b"made"))
        self.save("empty.txt", ContentFile(b""))  # Not a draft.
        yield from super().post_process(*args, **options)


def test_dry_run_of_a_post_processing_that_saves(site: Site) -> None:
    """Nothing is uploaded all the same."""
    site.backend = f"{__name__}.Eager"
    site.write("a.txt", "a")
    assert site.collect("--dry-run").requests == {"LIST": 1}
    assert site.collect().put == ["a.txt", "empty.txt", "made.txt"]


class OwnSave(CollectfastS3StaticStorage):
    """May look at its object at once."""

    def _save(self, name: str, content: Any) -> Any:
        return super()._save(name, content)


def test_own_save_that_is_refused(site: Site) -> None:
    """It hears of it there and then, with the file's name."""
    site.backend = f"{__name__}.OwnSave"
    site.write_many(3)
    site.proxy.fault = refuse("PUT", "file1")
    with pytest.raises(CommandError, match=r"dir1/file1\.js: .*AccessDenied"):
        site.collect()
