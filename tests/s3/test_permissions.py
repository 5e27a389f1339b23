"""Roles without some permissions, which errors and warnings name."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from django.core.files.base import ContentFile
from django.core.management.base import CommandError

from tests.support.proxy import Handler, Request
from tests.support.site import Site

pytestmark = pytest.mark.covering

NO_LISTING = "Cannot list bucket"
NO_ANSWER = "Cannot find out whether"


class Denied:
    """A proxy fault that refuses requests of some kinds, like S3."""

    def __init__(self, site: Site, *kinds: str) -> None:
        self.kinds = kinds
        site.proxy.fault = self

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind in self.kinds:
            handler.error(403, "AccessDenied")
            return True
        if "LIST" in self.kinds and request.kind == "HEAD":
            return self._head(handler, body)
        return False

    def _head(self, handler: Handler, body: bytes) -> bool:
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
        # Without s3:ListBucket, S3 answers 403 instead of 404 if an object is missing.
        status, content, headers = handler.ask(body)
        if status == 404:
            handler.error(403, "AccessDenied")
        else:
            handler.answer(status, content, headers)
        return True


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged messages."""
    return _Messages(caplog)


class _Messages(list[str]):
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog = caplog

    def take(self) -> list[str]:
        messages = list(self.caplog.messages)
        self.caplog.clear()
        return messages


def test_without_permission_to_list_each_file_costs_a_head_request(
    site: Site, warnings: Any
) -> None:
    """Without permission to list, each file costs a HEAD request.

    One warning names the permission.
    """
    files = site.write_many(10)
    site.collect()
    Denied(site, "LIST")
    deploy = site.collect()
    assert deploy.requests["HEAD"] == 10
    assert deploy.put == []
    [message] = warnings.take()
    assert NO_LISTING in message
    assert "s3:ListBucket" in message

    site.write("dir0/file0.css", "changed")
    site.write("new.css", "new")
    assert sorted(site.collect().put) == ["dir0/file0.css", "new.css"]
    assert site.bucket.names() == sorted([*files, "new.css"])


def test_first_deploy_without_permission_to_list(site: Site, warnings: Any) -> None:
    """Without permission to list, a first deploy uploads all files and warns once.

    A missing object and a forbidden one have the same response.
    """
    files = site.write_many(10)
    Denied(site, "LIST")
    site.collect()
    assert site.bucket.files() == files
    [message] = warnings.take()
    assert NO_ANSWER in message


def test_without_permission_to_read_all_files_are_uploaded(
    site: Site, warnings: Any
) -> None:
    """Without permission to list and read, a deploy uploads all files.

    One warning names the permission to read.
    """
    files = site.write_many(10)
    site.collect()
    Denied(site, "LIST", "HEAD")
    assert sorted(site.collect().put) == sorted(files)
    [message] = warnings.take()
    assert NO_ANSWER in message
    assert "s3:GetObject" in message


def test_manifest_storage_without_permission_to_list(site: Site) -> None:
    """Without permission to list, hashed files are compared, too.

    A manifest must exist, because django-storages itself fails without one.
    """
    site.backend = "collectfast_storage.CollectfastS3ManifestStaticStorage"
    site.write("a.css", "a { background: url(i.png) }")
    site.write("i.png", b"image")
    site.collect()
    names = site.bucket.names()
    Denied(site, "LIST")
    assert site.collect().put == []
    site.write("i.png", b"other image")
    site.collect()
    assert site.bucket.read("i.png") == b"other image"
    assert len(site.bucket.names()) == len(names) + 2


def test_clear_needs_the_listing(site: Site) -> None:
    """Without permission to list, `--clear` fails, and writes and deletes nothing.

    Left over files cannot be found without a listing.
    """
    site.write("a.css", "a")
    site.bucket.put("leftover.css", b"x")
    Denied(site, "LIST")
    with pytest.raises(CommandError, match=r"bucket 'tests'.*ListObjectsV2"):
        site.collect("--clear")
    assert site.bucket.names() == ["leftover.css"]
    assert site.proxy.count()["DELETE MANY"] == 0


def test_permission_to_delete_is_needed_only_to_delete(site: Site) -> None:
    """Without permission to delete, `--clear` fails only if it has files to delete."""
    site.write("a.css", "a")
    site.collect()
    Denied(site, "DELETE", "DELETE MANY")
    site.write("a.css", "changed")
    site.collect("--clear")
    assert site.bucket.read("a.css") == b"changed"
    site.bucket.put("leftover.css", b"x")
    with pytest.raises(CommandError, match=r"leftover\.css: .*AccessDenied"):
        site.collect("--clear")
    assert site.bucket.names() == ["a.css", "leftover.css"]


@pytest.mark.parametrize("kinds", [("HEAD",), ("LIST", "HEAD")])
def test_batch_deletes_objects_that_it_cannot_read(
    site: Site, kinds: tuple[str, ...]
) -> None:
    """A batch sends its deletes even if HEAD requests are denied.

    A denied request does not show that the object is missing.
    """
    site.bucket.put("gone.txt", b"x")
    Denied(site, *kinds)
    with site.storage() as storage, storage.batch(preload=False) as batch:
        batch.delete("gone.txt")
    assert site.bucket.names() == []


def test_denied_head_does_not_make_a_name_available(site: Site) -> None:
    """With `file_overwrite=False`, a save fails if HEAD requests are denied.

    An object that the program cannot read must not be overwritten.
    """
    site.backend = "collectfast_storage.CollectfastS3Storage"
    site.options["file_overwrite"] = False
    site.bucket.put("a.txt", b"precious")
    Denied(site, "LIST", "HEAD")
    with site.storage() as storage:
        denied = pytest.raises(CommandError, match="HeadObject")
        with denied, storage.batch() as batch:
            batch.save("a.txt", ContentFile(b"other"))
        with pytest.raises(ClientError):
            storage.save("a.txt", ContentFile(b"other"))
    assert site.bucket.files() == {"a.txt": b"precious"}


@pytest.mark.parametrize("kind", ["LIST", "HEAD"])
def test_throttling_is_not_taken_for_absence(site: Site, kind: str) -> None:
    """Permanent throttling ends the run, and no file is uploaded."""
    site.write("a.css", "a")
    site.collect()
    site.options["client_config"] = Config(retries={"total_max_attempts": 1})
    site.options["collectfast_preload"] = kind == "LIST"
    site.settings["CACHES"] = {
        "default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}
    }

    def slow_down(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == kind:
            handler.error(503, "SlowDown")
        return request.kind == kind

    site.proxy.fault = slow_down
    with pytest.raises(CommandError, match="Cannot use bucket 'tests'"):
        site.collect()
    assert site.proxy.count()["PUT"] == 0
