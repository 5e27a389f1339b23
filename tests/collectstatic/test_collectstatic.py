"""Django's own collectstatic, end to end, against a real S3 server."""

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

YEAR_1980 = 315532800.0


def test_second_deploy_from_fresh_checkout_uploads_nothing(site: Site) -> None:
    """300 unchanged files with new mtimes cost one LIST, and the command says so."""
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
    """Content decides, not clocks: a file from 1980 goes up, in place."""
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


def test_bucket_emptied_behind_a_warm_cache(site: Site) -> None:
    """The cache is not believed where the bucket says otherwise."""
    files = site.write_many(60)
    site.collect()
    site.bucket.clear()
    deploy = site.collect()
    assert deploy.requests == {"LIST": 1, "PUT": 60}
    assert site.bucket.files() == files


def test_dry_run_writes_nothing_and_names_what_a_real_run_uploads(site: Site) -> None:
    """`--dry-run` is the truth about the next real run."""
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
    """An empty listing is an answer like any other."""
    site.write_many(3)
    assert site.collect("--dry-run").requests == {"LIST": 1}


def test_listing_goes_on_after_the_first_thousand(site: Site) -> None:
    """One LIST a 1,000 objects, below the location only."""
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
    """Where sources come from, and which wins, is Django's business."""
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
    # The local storage copies what has a new mtime; here only content counts.
    assert "1 static file copied" in local_again.summary
    assert remote_again.summary.startswith("0 static files copied, 5 unmodified")
    assert remote_again.requests == {"LIST": 1}


def test_no_post_process_uploads_all_the_same(site: Site) -> None:
    """Without a barrier every call is carried out as it is made."""
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


def test_another_thread_sees_the_plain_storage(site: Site) -> None:
    """A run belongs to its thread; others ask the bucket and get its answers."""
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
        """Lets another thread at the storage in the middle of the run."""

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
def test_two_storages_with_one_cache_do_not_believe_each_other(
    site: Site, tmp_path: Path, different: str
) -> None:
    """A cache entry is about one object of one bucket of one endpoint."""
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
    """`collectfast_preload=False`: the cache is trusted, what it lacks is asked for."""
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
    """Where nothing is asked, nothing has to be signed."""
    site.options["collectfast_preload"] = False
    site.write_many(3)
    site.collect()
    site.options |= {"access_key": None, "secret_key": None}
    assert site.collect().summary == "0 static files copied, 3 unmodified."


@pytest.mark.parametrize("preload", [True, False])
def test_lost_answer_is_no_failed_upload(site: Site, preload: bool) -> None:
    """It may have arrived: a rollback goes up, whatever was remembered before."""
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
def test_server_without_etags_is_never_believed(site: Site, blank: bool) -> None:
    """The fingerprint in the metadata decides, or the cache if it is to be trusted."""

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


def test_cold_cache_without_preload_asks_for_each_file_once(site: Site) -> None:
    """What the bucket holds is recognised by its ETag, one HEAD a file."""
    site.write_many(10)
    site.collect()
    site.options["collectfast_preload"] = False
    deploy = site.collect(CACHES=_cache(site, "cold"))
    assert deploy.requests == {"HEAD": 10}
    assert site.collect(CACHES=_cache(site, "cold")).requests == {}


@pytest.mark.slow
def test_default_cache_holds_more_files_than_it_holds_entries(site: Site) -> None:
    """Django's default caches keep 300 entries; 400 files are remembered in them."""
    site.options["collectfast_preload"] = False
    for number in range(400):
        site.write(f"{number}.txt", str(number))
    site.collect()
    assert site.collect().requests == {}


@pytest.mark.parametrize("arguments", [[], ["--no-post-process"], ["--dry-run"]])
def test_disabled_is_django_storages_request_for_request(
    site: Site, arguments: list[str]
) -> None:
    """`COLLECTFAST_ENABLED = False` switches everything off."""
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


def test_vanished_source_is_named_and_the_rest_goes_up_next_time(site: Site) -> None:
    """A file that goes between listing and upload ends the run, and names itself."""
    for name in ("a.css", "b.css", "c.css"):
        site.write(name, name)
    site.options["collectfast_preload"] = False

    class Finder(FileSystemFinder):
        """Removes b.css just before the command gets to it."""

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
    # What arrived is in the cache, and trusted.
    assert again.requests == {"HEAD": 2, "PUT": 2}


@pytest.mark.parametrize("preload", [True, False])
def test_missing_bucket_is_one_error_that_names_it(site: Site, preload: bool) -> None:
    """Not one a file: what would fail for all is not tried for all."""
    site.write_many(300)
    site.options |= {"bucket_name": "no-such", "collectfast_preload": preload}
    with pytest.raises(CommandError, match=r"'no-such'.*NoSuchBucket"):
        site.collect()
    if preload:
        assert site.proxy.count() == {"LIST": 1}
    else:
        # The HEAD of an absent object does not tell; the first PUT to be answered does.
        assert site.proxy.count()["PUT"] < 300


def test_missing_credentials_are_one_error_that_names_the_bucket(site: Site) -> None:
    """The same where boto3 finds nothing to sign with."""
    site.write_many(5)
    site.options |= {"access_key": None, "secret_key": None}
    with pytest.raises(CommandError, match=r"Cannot use bucket '.*': Unable to locate"):
        site.collect()
    assert site.proxy.count() == {}


def test_failed_upload_is_named_with_its_reason_and_the_rest_arrives(
    site: Site,
) -> None:
    """Exit status, name and reason; and the next run sends only what is missing."""
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
    """Where nothing comes after, the failure is raised as it happens."""
    site.write("a.css", "a")

    site.proxy.fault = refuse("PUT")
    with pytest.raises(CommandError, match=r"a\.css: .*AccessDenied"):
        site.collect("--no-post-process")


def test_subclass_that_saves_in_its_own_way_is_asked_to(site: Site) -> None:
    """A site's own `_save` decides what goes up; equal results go up once."""
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
def test_same_content_of_another_program_is_left_as_it_is(site: Site) -> None:
    """Its ETag is another, as of an upload in parts; the content is what counts."""
    site.write_many(5)
    site.collect()
    site.write("dir0/file0.css", "changed")
    name, content = "dir1/file1.js", b"content of 1\n"
    site.proxy.fault = meanwhile(
        "PUT", lambda: site.bucket.put_in_parts(name, content, len(content))
    )
    assert site.collect().put == ["dir0/file0.css"]
    assert site.bucket.get(name)["ETag"].endswith('-1"')


class Peeking(CollectfastS3StaticStorage):
    """Looks at what is there before it is asked how old that is."""

    seen: ClassVar[dict[str, bytes]] = {}

    def get_modified_time(self, name: str) -> datetime:
        with self.open(name) as file:
            self.seen[name] = file.read()
        return super().get_modified_time(name)


def test_open_of_a_source_while_collecting_reads_what_is_there(site: Site) -> None:
    """Not what will be."""
    site.backend = f"{__name__}.Peeking"
    site.write("a.css", "old")
    site.collect()
    site.write("a.css", "new")
    site.collect()
    assert Peeking.seen == {"a.css": b"old"}
    assert site.bucket.read("a.css") == b"new"


class Bundling(CollectfastS3StaticStorage):
    """Makes one file of all, under a name that tells nothing of its content."""

    def post_process(
        self, paths: Any, dry_run: bool = False, **_: Any
    ) -> Iterator[tuple[str, str, bool]]:
        parts = []
        for name in sorted(paths):
            storage, path = paths[name]
            with storage.open(path) as file:
                parts.append(file.read())
        self._save("bundle.js", ContentFile(b"".join(parts)))
        yield "bundle.js", "bundle.js", True


class Asking(collectstatic.Command):
    """Asks the storage before it has read its options."""

    def handle(self, **options: Any) -> str | None:
        self.storage.exists("release.txt")
        summary: str | None = super().handle(**options)
        return summary


@pytest.mark.parametrize("arguments", [[], ["--no-post-process"], ["--clear"]])
def test_command_of_a_sites_own_that_asks_before_it_has_options(
    site: Site, arguments: list[str]
) -> None:
    """It gets an answer, and what it does later is done as its options say."""
    site.bucket.put("left over.txt", b"left over")
    files = site.write_many(50)
    with site.active():
        call_command(Asking(), "--noinput", *arguments, stdout=io.StringIO())
    left = {} if "--clear" in arguments else {"left over.txt": b"left over"}
    assert site.bucket.files() == files | left
