"""Runs of Django's own collectstatic, end to end, against a real S3 server."""

from __future__ import annotations

import gc
import io
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from django.contrib.staticfiles.finders import FileSystemFinder
from django.contrib.staticfiles.management.commands import collectstatic
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files.base import ContentFile
from django.core.management import call_command
from django.core.management.base import CommandError
from storages.backends.s3 import S3StaticStorage

from collectfast_storage import CollectfastMixin, CollectfastS3StaticStorage
from tests.support.proxy import Handler, Request, meanwhile, refuse
from tests.support.site import Site

pytestmark = pytest.mark.covering

YEAR_1980 = 315532800.0


def test_second_deploy_from_fresh_checkout_uploads_nothing(site: Site) -> None:
    """300 unchanged files with new mtimes cost one LIST request.

    The command reports that all of them are unmodified.
    """
    files = site.write_many(300)
    first = site.collect()
    assert first.summary == "300 static files copied."
    assert first.requests == {"LIST": 1, "PUT": 300}
    assert site.bucket.files() == files

    site.touch()
    second = site.collect()
    assert second.summary == "0 static files copied, 300 unmodified."
    assert second.requests == {"LIST": 1}


def test_changed_file_with_old_mtime_is_uploaded(site: Site) -> None:
    """A changed file is uploaded although its mtime is older than the object."""
    site.write_many(300)
    site.collect()
    site.write("dir0/file0.css", "older, and different", mtime=YEAR_1980)
    deploy = site.collect()
    assert deploy.requests == {"LIST": 1, "PUT": 1}
    assert deploy.put == ["dir0/file0.css"]
    assert deploy.summary == "1 static file copied, 299 unmodified."
    stored = site.bucket.get("dir0/file0.css")
    assert stored["Body"].read() == b"older, and different"
    assert stored["ContentType"] == "text/css"


def test_objects_that_were_deleted_are_uploaded_despite_a_warm_cache(
    site: Site,
) -> None:
    """Files that another program deleted are uploaded in spite of the cache."""
    files = site.write_many(60)
    site.collect()
    site.bucket.clear()
    deploy = site.collect()
    assert deploy.requests == {"LIST": 1, "PUT": 60}
    assert site.bucket.files() == files


def test_dry_run_names_the_files_that_a_real_run_uploads(site: Site) -> None:
    """`--dry-run` uploads nothing, and names the files that a real run uploads."""
    site.write_many(20)
    site.collect()
    site.touch()
    site.write("dir0/file0.css", "changed")
    site.write("new.css", "new")
    before = site.bucket.files()

    dry = site.collect("--dry-run")
    pretended = {
        line.removeprefix("Pretending to copy '").rstrip("'")
        for line in dry.output.splitlines()
        if line.startswith("Pretending to copy")
    }
    assert dry.requests == {"LIST": 1}
    assert dry.summary == "2 static files copied, 19 unmodified."
    assert site.bucket.files() == before

    real = site.collect()
    assert pretended == {str(site.static / name) for name in real.put}
    assert real.put == ["dir0/file0.css", "new.css"]


def test_empty_bucket_is_listed_once(site: Site) -> None:
    """An empty listing is accepted, and the bucket is listed only once."""
    site.write_many(3)
    assert site.collect("--dry-run").requests == {"LIST": 1}


def test_listing_needs_one_request_for_a_thousand_objects(site: Site) -> None:
    """A listing takes one LIST request per 1,000 objects below the location.

    Objects beside the location are not listed.
    """
    for number in range(1001):
        site.write(f"{number}.txt", str(number))
    site.bucket.client.put_object(
        Bucket=site.bucket.name, Key=f"{site.bucket.location}-sibling/a.txt", Body=b""
    )
    site.collect()
    site.touch()
    again = site.collect()
    assert again.requests == {"LIST": 2}
    assert again.summary == "0 static files copied, 1001 unmodified."


def test_finders_prefix_ignore_and_shadowed_names_as_with_local_storage(
    site: Site, tmp_path: Path
) -> None:
    """Finders, prefixes, `--ignore` and shadowed names work as with local storage."""
    for app in ("app_one", "app_two"):
        static = tmp_path / app / "static"
        static.mkdir(parents=True)
        (tmp_path / app / "__init__.py").touch()
        (static / "shared.css").write_text(f"from {app}")
        (static / f"{app}.css").write_text(app)
        (static / "skipped.map").write_text(app)
    prefixed = tmp_path / "prefixed"
    (prefixed / "deep").mkdir(parents=True)
    (prefixed / "deep" / "inner.css").write_text("inner")
    site.write("own.css", "own")
    settings = {
        "INSTALLED_APPS": ["django.contrib.staticfiles", "app_one", "app_two"],
        "STATICFILES_DIRS": [str(site.static), ("vendor", str(prefixed))],
    }
    sys.path.insert(0, str(tmp_path))
    try:
        local = site.collect_locally("--ignore=*.map", **settings)
        remote = site.collect("--ignore=*.map", **settings)
        site.touch()
        local_again = site.collect_locally("--ignore=*.map", **settings)
        remote_again = site.collect("--ignore=*.map", **settings)
    finally:
        sys.path.remove(str(tmp_path))
    root = site.root / "collected"
    collected = {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    assert site.bucket.files() == collected
    assert collected["shared.css"] == b"from app_one"
    assert "vendor/deep/inner.css" in collected
    assert remote.summary == local.summary.replace(f" to '{root}'", "")
    # The local storage copies files with new mtimes; here, contents are compared.
    assert "1 static file copied" in local_again.summary
    assert remote_again.summary.startswith("0 static files copied, 5 unmodified")
    assert remote_again.requests == {"LIST": 1}


def test_no_post_process_uploads_new_and_changed_files(site: Site) -> None:
    """With `--no-post-process`, new and changed files are uploaded, and no others.

    Each call is carried out immediately, because there is no later step to wait for.
    """
    files = site.write_many(10)
    first = site.collect("--no-post-process")
    assert first.requests == {"LIST": 1, "PUT": 10}
    assert site.bucket.files() == files
    site.touch()
    site.write("dir0/file0.css", "changed")
    again = site.collect("--no-post-process")
    assert again.requests == {"LIST": 1, "PUT": 1}
    assert again.summary == "1 static file copied, 9 unmodified."
    assert site.bucket.read("dir0/file0.css") == b"changed"


@pytest.mark.needs("trailing checksums")
def test_another_thread_uses_the_plain_storage(site: Site) -> None:
    """During a run, calls from another thread go to the bucket.

    A run belongs to the thread that started it.
    """
    site.write("a.css", "new")
    site.bucket.put("a.css", b"old")
    answers: dict[str, Any] = {}

    def other_thread() -> None:
        storage = staticfiles_storage
        answers["exists"] = storage.exists("a.css"), storage.exists("b.css")
        answers["modified"] = storage.get_modified_time("a.css")
        storage.save("b.css", ContentFile(b"from another thread"))
        answers["b"] = site.bucket.read("b.css")
        storage.delete("b.css")
        answers["gone"] = "b.css" not in site.bucket.names()

    class Finder(FileSystemFinder):
        """A finder that runs another thread in the middle of the run."""

        def list(self, ignore_patterns: Any) -> Iterator[Any]:
            yield from super().list(ignore_patterns)
            if sys._getframe(1).f_code.co_name == "collect":
                thread = threading.Thread(target=other_thread)
                thread.start()
                thread.join()

    sys.modules[__name__].Finder = Finder  # type: ignore[attr-defined]
    site.collect(STATICFILES_FINDERS=[f"{__name__}.Finder"])
    written = site.bucket.get("a.css")["LastModified"]
    assert answers.pop("modified") <= written
    assert answers == {
        "exists": (True, False),
        "b": b"from another thread",
        "gone": True,
    }
    assert site.bucket.files() == {"a.css": b"new"}


@pytest.mark.parametrize(
    "different",
    [
        "location",
        pytest.param("bucket", marks=pytest.mark.needs("leave for a second bucket")),
    ],
)
def test_two_storages_with_one_cache_do_not_share_entries(
    site: Site, tmp_path: Path, different: str
) -> None:
    """A cache entry is valid for one object of one bucket at one endpoint only."""
    files = site.write_many(5)
    site.collect()
    view = replace(site.bucket)
    if different == "location":
        view.location += "-other"
    else:
        view.server = replace(view.server, bucket=f"other-{uuid4().hex[:8]}")
        view.client.create_bucket(Bucket=view.name)
    options = {"collectfast_preload": False}
    other = replace(site, bucket=view, options=options)
    deploy = other.collect()
    assert deploy.requests == {"HEAD": 5, "PUT": 5}
    assert view.files() == files


def test_warm_cache_without_preload_makes_no_request(site: Site) -> None:
    """With `collectfast_preload=False`, entries of a warm cache are trusted.

    An unchanged deploy sends no request. Files without an entry need a HEAD request.
    """
    site.options["collectfast_preload"] = False
    site.write_many(10)
    first = site.collect()
    assert first.requests == {"HEAD": 10, "PUT": 10}
    site.touch()
    again = site.collect()
    assert again.requests == {}
    assert again.summary == "0 static files copied, 10 unmodified."
    site.write("dir0/file0.css", "changed")
    assert site.collect().requests == {"PUT": 1}


def test_warm_cache_without_preload_needs_no_credentials(site: Site) -> None:
    """With a warm cache and no preload, an unchanged deploy needs no credentials.

    The deploy sends no request, so there is nothing to sign.
    """
    site.options["collectfast_preload"] = False
    site.write_many(3)
    site.collect()
    site.options |= {"access_key": None, "secret_key": None}
    assert site.collect().summary == "0 static files copied, 3 unmodified."


@pytest.mark.parametrize("preload", [True, False])
def test_rollback_after_a_lost_response_is_uploaded(site: Site, preload: bool) -> None:
    """A rollback is uploaded after an upload that arrived but was reported as failed.

    The object may have arrived, so older cache entries are not trusted.
    """
    site.options["collectfast_preload"] = preload

    def lose(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            handler.pass_on_silently(body)
            handler.error(403, "AccessDenied")
        return request.kind == "PUT"

    def deploy(age: int) -> None:
        site.options["object_parameters"] = {"CacheControl": f"max-age={age}"}
        site.collect()

    site.write("a.css", "a")
    deploy(1)
    site.proxy.fault = lose
    with pytest.raises(CommandError, match="AccessDenied"):
        deploy(2)
    site.proxy.fault = None
    deploy(1)
    assert site.bucket.get("a.css")["CacheControl"] == "max-age=1"


@pytest.mark.parametrize("blank", [True, False])
def test_server_without_etags(site: Site, blank: bool) -> None:
    """Without ETags, the fingerprint in the metadata decides what is uploaded.

    With `collectfast_preload=False`, the cache is trusted.
    """

    def without_etags(handler: Handler, request: Request, body: bytes) -> bool:
        status, content, headers = handler.ask(body)
        rest = [(k, v) for k, v in headers if k.lower() != "etag"]
        in_listing = b"<ETag></ETag>" if blank else b""
        content = re.sub(rb"<ETag>.*?</ETag>", in_listing, content)
        handler.answer(status, content, [*rest, ("ETag", '""')])
        return True

    site.write("a.css", "ours")
    site.proxy.fault = without_etags
    site.collect()
    site.bucket.put("a.css", b"overwritten by somebody")
    assert {*site.collect().put} == {"a.css"}
    assert site.bucket.read("a.css") == b"ours"
    site.options["collectfast_preload"] = False
    assert site.collect().requests == {}
    cold = site.collect(CACHES=_cache(site, "without-etags"))
    assert cold.put == []


def test_cold_cache_without_preload_sends_one_head_per_file(site: Site) -> None:
    """With a cold cache and no preload, each file costs one HEAD request.

    The ETag in the response shows that the object is unchanged.
    """
    site.write_many(10)
    site.collect()
    site.options["collectfast_preload"] = False
    deploy = site.collect(CACHES=_cache(site, "cold"))
    assert deploy.requests == {"HEAD": 10}
    assert site.collect(CACHES=_cache(site, "cold")).requests == {}


@pytest.mark.slow
def test_default_cache_holds_more_files_than_it_holds_entries(site: Site) -> None:
    """Django's default cache holds 300 entries, which is enough for 400 files."""
    site.options["collectfast_preload"] = False
    for number in range(400):
        site.write(f"{number}.txt", str(number))
    site.collect()
    assert site.collect().requests == {}


@pytest.mark.needs("trailing checksums")
@pytest.mark.parametrize("arguments", [[], ["--no-post-process"], ["--dry-run"]])
def test_disabled_storage_sends_the_requests_of_django_storages(
    site: Site, arguments: list[str]
) -> None:
    """With `COLLECTFAST_ENABLED = False`, the requests are those of django-storages."""
    site.write_many(6)
    plain = replace(
        site,
        backend="storages.backends.s3.S3StaticStorage",
        bucket=replace(site.bucket, location=site.bucket.location + "-plain"),
    )
    stories = []
    for each in (plain, site):
        each.touch()
        story = []
        for _ in range(2):
            deploy = each.collect(*arguments, COLLECTFAST_ENABLED=False)
            prefix = each.bucket.location
            keys = [(r.kind, r.key.removeprefix(prefix)) for r in each.proxy.requests]
            story.append((deploy.summary, keys))
        stories.append(story)
    assert stories[0] == stories[1]


def test_vanished_source_is_named_and_the_next_run_uploads_the_rest(site: Site) -> None:
    """A source that vanishes during the run ends it, and the error names the file."""
    for name in ("a.css", "b.css", "c.css"):
        site.write(name, name)
    site.options["collectfast_preload"] = False

    class Finder(FileSystemFinder):
        """A finder that removes b.css just before the command copies it."""

        def list(self, ignore_patterns: Any) -> Iterator[Any]:
            for path, storage in sorted(super().list(ignore_patterns)):
                if path == "b.css" and sys._getframe(1).f_code.co_name == "collect":
                    (site.static / path).unlink()
                yield path, storage

    sys.modules[__name__].Finder = Finder  # type: ignore[attr-defined]
    with site.active(STATICFILES_FINDERS=[f"{__name__}.Finder"]):
        with pytest.raises(FileNotFoundError, match=r"b\.css"):
            call_command("collectstatic", "--noinput", stdout=io.StringIO())
        gc.collect()
    assert site.bucket.files() == {"a.css": b"a.css"}
    site.write("b.css", "b.css")
    again = site.collect()
    assert again.put == ["b.css", "c.css"]
    # The cache has an entry for a.css, so a.css needs no request.
    assert again.requests == {"HEAD": 2, "PUT": 2}


@pytest.mark.parametrize("preload", [True, False])
def test_missing_bucket_causes_one_error_that_names_it(
    site: Site, preload: bool
) -> None:
    """A missing bucket causes one error for all files, after few requests.

    All uploads would fail for the same reason.
    """
    site.write_many(300)
    site.options |= {"bucket_name": "no-such", "collectfast_preload": preload}
    with pytest.raises(CommandError, match=r"'no-such'.*NoSuchBucket"):
        site.collect()
    if preload:
        assert site.proxy.count() == {"LIST": 1}
    else:
        # HEAD responses look as if only the object were missing; PUT responses do not.
        assert site.proxy.count()["PUT"] < 300


def test_missing_credentials_cause_one_error_that_names_the_bucket(site: Site) -> None:
    """If boto3 finds no credentials, one error names the bucket."""
    site.write_many(5)
    site.options |= {"access_key": None, "secret_key": None}
    with pytest.raises(CommandError, match=r"Cannot use bucket '.*': Unable to locate"):
        site.collect()
    assert site.proxy.count() == {}


def test_failed_upload_is_named_with_its_reason_and_the_rest_arrives(
    site: Site,
) -> None:
    """The error has the name and the reason of the upload that failed.

    All other files are uploaded, and the next run uploads only the missing one.
    """
    files = site.write_many(10)

    site.proxy.fault = refuse("PUT", "/file3.txt", "not this one")
    with pytest.raises(
        CommandError, match=r"dir3/file3\.txt: .*not this one"
    ) as caught:
        site.collect()
    assert "Could not upload 1 file" in str(caught.value)
    assert site.bucket.names() == sorted(files.keys() - {"dir3/file3.txt"})
    site.proxy.fault = None
    assert site.collect().put == ["dir3/file3.txt"]


def test_failed_upload_without_post_process_ends_the_command(site: Site) -> None:
    """With `--no-post-process`, a failed upload ends the command with its reason.

    There is no later step that could raise the error.
    """
    site.write("a.css", "a")

    site.proxy.fault = refuse("PUT")
    with pytest.raises(CommandError, match=r"a\.css: .*AccessDenied"):
        site.collect("--no-post-process")


def test_own_save_decides_which_content_is_uploaded(site: Site) -> None:
    """A subclass's `_save` decides which content is uploaded.

    If the content that it saves is in the bucket already, nothing is uploaded.
    """
    site.backend = f"{__name__}.Shouting"
    site.write("a.css", "quiet")
    site.bucket.put("a.css", b"quiet")
    assert site.collect().put == ["a.css"]
    assert site.bucket.read("a.css") == b"QUIET"
    again = site.collect()
    assert again.requests == {"LIST": 1}
    assert site.bucket.read("a.css") == b"QUIET"


class Uploading(S3StaticStorage):
    """A base class that uploads files without `upload_fileobj`."""

    def _save(self, name: str, content: Any) -> str:
        client, key = self.connection.meta.client, self._normalize_name(name)
        client.put_object(Bucket=self.bucket_name, Key=key, Body=content.read())
        return name


class UploadingOnce(CollectfastMixin, Uploading):
    pass


@pytest.mark.needs("trailing checksums")
def test_files_that_a_base_class_uploads_count_as_copied(site: Site) -> None:
    """The summary counts files that the base class uploads without the run."""
    site.backend = f"{__name__}.UploadingOnce"
    files = site.write_many(3)
    assert site.collect().summary == "3 static files copied."
    assert site.bucket.files() == files


class Shouting(CollectfastS3StaticStorage):
    def _save(self, name: str, content: Any) -> str:
        saved: str = super()._save(name, ContentFile(content.read().upper()))
        return saved


def _cache(site: Site, name: str) -> dict[str, Any]:
    backend = "django.core.cache.backends.locmem.LocMemCache"
    return {"default": {"BACKEND": backend, "LOCATION": f"{site.root}-{name}"}}


@pytest.mark.needs("S3's ETags of parts")
def test_same_content_of_another_program_is_not_overwritten(site: Site) -> None:
    """A file that another program uploads in parts during the run is not overwritten.

    Its ETag differs, but its content is the same.
    """
    site.write_many(5)
    site.collect()
    site.write("dir0/file0.css", "changed")
    name, content = "dir1/file1.js", b"content of 1\n"
    site.proxy.fault = meanwhile(
        "PUT", lambda: site.bucket.put_in_parts(name, content, len(content))
    )
    assert site.collect().put == ["dir0/file0.css"]
    assert site.bucket.get(name)["ETag"].endswith('-1"')
    site.proxy.fault = None
    assert site.collect().put == []


class Peeking(CollectfastS3StaticStorage):
    """A storage that reads its object before it returns the modification time."""

    seen: ClassVar[dict[str, bytes]] = {}

    def get_modified_time(self, name: str) -> datetime:
        with self.open(name) as file:
            self.seen[name] = file.read()
        return super().get_modified_time(name)


def test_open_while_collecting_reads_the_stored_object(site: Site) -> None:
    """While collecting, `open` reads the object in the bucket, not the new source."""
    site.backend = f"{__name__}.Peeking"
    site.write("a.css", "old")
    site.collect()
    site.write("a.css", "new")
    site.collect()
    assert Peeking.seen == {"a.css": b"old"}
    assert site.bucket.read("a.css") == b"new"


class EarlyExists(collectstatic.Command):
    """A command that calls `exists` before it has read its options."""

    def handle(self, **options: Any) -> str | None:
        self.storage.exists("release.txt")
        summary: str | None = super().handle(**options)
        return summary


@pytest.mark.parametrize("arguments", [[], ["--no-post-process"], ["--clear"]])
def test_own_command_that_calls_exists_before_it_has_options(
    site: Site, arguments: list[str]
) -> None:
    """A subclass of the command may call `exists` before it has read its options.

    The options then apply to everything that the command does later.
    """
    site.bucket.put("left over.txt", b"left over")
    files = site.write_many(50)
    with site.active():
        call_command(EarlyExists(), "--noinput", *arguments, stdout=io.StringIO())
    left = {} if "--clear" in arguments else {"left over.txt": b"left over"}
    assert site.bucket.files() == files | left
