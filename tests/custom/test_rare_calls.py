"""Rare calls of commands, storages and programs, each with its own small promise."""

from __future__ import annotations

import io
import time
from contextlib import suppress
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.management import call_command
from django.core.management.base import CommandError

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from collectfast_storage.exceptions import UploadError
from collectfast_storage.payload import Payload
from collectfast_storage.program import changed_headers
from tests.support.proxy import Handler, Request, refuse
from tests.support.site import MANIFEST, Site


def _collect(site: Site, command: Command, *arguments: str) -> None:
    with site.active():
        call_command(command, "--noinput", *arguments, stdout=io.StringIO())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("enabled", [True, False])
def test_batch_passes_on_an_error(
    site: Site, error: type[BaseException], enabled: bool
) -> None:
    """An exception in the block leaves it as it is, whether or not it is batched."""
    site.options["collectfast_enabled"] = enabled
    with site.storage() as storage, pytest.raises(error), storage.batch():
        raise error


class Hashing(CollectfastS3ManifestStaticStorage):
    """Has a manifest for each release, and its own kind of hash."""

    manifest_name = "staticfiles-2.json"

    def file_hash(self, name: str | None, content: Any = None) -> str:
        return "v1"


def test_clear_keeps_all_if_any_name_may_be_a_hashed_one(site: Site) -> None:
    """With a subclass's hash, no file can be told from one of the live release."""
    site.backend = f"{__name__}.Hashing"
    site.write("a.css", "a")
    site.bucket.put("b.v0.css", b"b")
    site.collect("--clear")
    assert "b.v0.css" in site.bucket.names()


def test_clear_without_manifest_keeps_the_release_of_one(site: Site) -> None:
    """A plain storage finds a manifest there, and keeps all hashed names."""
    site.write("a.css", "a")
    site.backend, plain = MANIFEST, site.backend
    site.collect()
    before = site.bucket.names()
    site.backend = plain
    site.bucket.put("left over.txt", b"x")
    site.collect("--clear")
    assert site.bucket.names() == before


class Reading(Command):
    """Reads its own option, saves before it copies, and writes what it has deleted."""

    def copy_file(self, path: str, prefixed_path: str, source_storage: Any) -> None:
        self.storage.save(prefixed_path, ContentFile(b"saved before"))
        super().copy_file(path, prefixed_path, source_storage)
        self.seen = bool(self.post_process)
        self.storage.delete("old.txt")
        with self.storage.open("old.txt", "wb") as file:
            file.write(b"new")


@pytest.mark.parametrize("arguments", [[], ["--no-post-process"]])
def test_command_that_saves_before_it_copies(site: Site, arguments: list[str]) -> None:
    """The last write of each name wins, and the option keeps its value."""
    site.write("a.css", "a")
    site.bucket.put("old.txt", b"old")
    command = Reading()
    _collect(site, command, *arguments)
    assert site.bucket.files() == {"a.css": b"a", "old.txt": b"new"}
    assert command.seen == (arguments == [])


class Tolerant(Command):
    """Goes on after any error of one file."""

    def copy_file(self, *source: Any) -> None:
        with suppress(CommandError):
            super().copy_file(*source)


@pytest.mark.parametrize("arguments", [[], ["--no-post-process"]])
def test_command_that_ignores_the_error_that_ends_a_run(
    site: Site, arguments: list[str]
) -> None:
    """The error is raised again at the end, because files have not arrived."""
    site.write_many(5)
    site.proxy.fault = refuse("PUT", code="InvalidAccessKeyId")
    with pytest.raises(Exception, match="InvalidAccessKeyId"):
        _collect(site, Tolerant(), *arguments)


class Scattering(CollectfastS3StaticStorage):
    """Keeps scripts in a place beside the location."""

    def _normalize_name(self, name: str) -> str:
        key: str = super()._normalize_name(name)
        return key.replace("/static/", "/scripts/") if key.endswith(".js") else key


def test_sources_beside_the_location_arrive(site: Site) -> None:
    """A run leaves files whose key is not below its prefix to django-storages."""
    site.backend = f"{__name__}.Scattering"
    site.write("a.css", "a")
    site.write("a.js", "script")
    site.collect()
    assert site.bucket.files() == {"a.css": b"a"}
    key = site.bucket.key("a.js").replace("/static/", "/scripts/")
    answer = site.bucket.client.get_object(Bucket=site.bucket.name, Key=key)
    assert answer["Body"].read() == b"script"


class Unreadable(CollectfastS3ManifestStaticStorage):
    def read_manifest(self) -> str | None:
        raise RuntimeError("a subclass's own")


def test_error_of_a_manifest_of_a_subclass_is_raised(site: Site) -> None:
    """Only a lack of threads is a reason to read the manifest again."""
    site.backend = f"{__name__}.Unreadable"
    with pytest.raises(RuntimeError, match="a subclass's own"):
        site.collect()


def test_bucket_has_the_name_of_the_moment(site: Site) -> None:
    """django-storages keeps the first bucket, although the name may be computed."""
    with site.storage() as storage:
        first = storage.bucket.name
        storage.bucket_name = "another"
        assert (first, storage.bucket.name) == (site.bucket.name, "another")


def test_etag_of_parts_that_the_content_cannot_have() -> None:
    """No usual part size divides ten bytes into seven parts."""
    payload = Payload(io.BytesIO(b"0123456789"), {}, TransferConfig())
    assert not payload.has_etag(f"{'a' * 32}-7")


@pytest.mark.parametrize(
    ("sent", "is_same"),
    [
        ("1234", True),
        ("alias/mine", True),
        ("arn:aws:kms:key/1234", True),
        ("5", False),
    ],
)
def test_name_of_a_key_is_not_compared_literally(sent: str, is_same: bool) -> None:
    """S3 reports a key's ARN, and a write may name the key in another way."""
    head = {"SSEKMSKeyId": "arn:aws:kms:key/1234"}
    assert (changed_headers(head, {"SSEKMSKeyId": sent}) == {}) == is_same


class Breaking(io.BytesIO):
    """Can be read once, to be hashed, and fails the second time."""

    has_read = 0

    def read(self, *size: int | None) -> bytes:
        chunk = super().read(*size)
        self.has_read += len(chunk)
        if self.has_read > len(self.getbuffer()):
            raise RuntimeError("the source is broken")
        return chunk


def test_large_file_whose_source_fails_is_named(site: Site) -> None:
    """Any error of reading a large file is one of that file."""
    with (
        site.storage() as storage,
        pytest.raises(UploadError, match=r"big\.bin: the source is broken"),
        storage.batch() as batch,
    ):
        batch.save("big.bin", File(Breaking(bytes(9 << 20)), "big.bin"))
        batch.save("small.bin", ContentFile(b"x"))
    assert site.bucket.names() == ["small.bin"]


class Twice(Command):
    """Copies each file twice."""

    def copy_file(self, *source: Any) -> None:
        super().copy_file(*source)
        self.copied_files.clear()  # Django skips what is among these.
        super().copy_file(*source)


def test_file_that_is_copied_twice_is_uploaded_once(site: Site) -> None:
    """The second copy is compared with the upload that is under way."""
    site.write_many(3)

    def slow(handler: Handler, request: Request, body: bytes) -> bool:
        time.sleep(0.2)
        return False

    site.proxy.fault = slow
    _collect(site, Twice())
    assert site.proxy.count()["PUT"] == 3


class GivingUp(Command):
    """Ends after the second file, with the caller's knowledge."""

    def copy_file(self, *source: Any) -> None:
        super().copy_file(*source)
        if len(self.copied_files) == 2:
            raise ZeroDivisionError


def test_run_is_left_while_an_interrupt_of_another_place_is_held(site: Site) -> None:
    """Only an interrupt that has left the run itself cancels its uploads."""
    held = KeyboardInterrupt()
    site.write_many(3)
    with site.active():
        with suppress(ZeroDivisionError):
            call_command(GivingUp(), "--noinput", stdout=io.StringIO())
        staticfiles_storage.exists("next call")
    assert not held.args
    assert len(site.bucket.names()) == 2
