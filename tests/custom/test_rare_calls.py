"""Rare ways to use commands, storages and batches."""

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
    """An exception in a batch's block is raised unchanged.

    This holds even if `collectfast_enabled` is off, so that saves are not batched.
    """
    site.options["collectfast_enabled"] = enabled
    with site.storage() as storage, pytest.raises(error), storage.batch():
        raise error


class Hashing(CollectfastS3ManifestStaticStorage):
    """A storage with the release's version in its manifest name and hashes."""

    manifest_name = "staticfiles-2.json"

    def file_hash(self, name: str | None, content: Any = None) -> str:
        return "v1"


def test_clear_keeps_all_if_hashed_names_cannot_be_recognised(site: Site) -> None:
    """`--clear` deletes no file if a subclass computes hashes in its own way.

    Any file may then belong to the live release, because hashed names cannot be
    distinguished from other names.
    """
    site.backend = f"{__name__}.Hashing"
    site.write("a.css", "a")
    site.bucket.put("b.v0.css", b"b")
    site.collect("--clear")
    assert "b.v0.css" in site.bucket.names()


def test_clear_without_hashing_keeps_a_release_with_a_manifest(site: Site) -> None:
    """`--clear` of a storage without hashing keeps the manifest and all hashed files.

    It deletes the other left-over files.
    """
    site.write("a.css", "a")
    plain = site.backend
    site.backend = MANIFEST
    site.collect()
    before = site.bucket.names()
    site.backend = plain
    site.bucket.put("left over.txt", b"x")
    site.collect("--clear")
    assert site.bucket.names() == before


class Reading(Command):
    """A command that saves a file before it copies it, and rewrites a deleted file.

    It also reads its own option `post_process`.
    """

    def copy_file(self, path: str, prefixed_path: str, source_storage: Any) -> None:
        self.storage.save(prefixed_path, ContentFile(b"saved before"))
        super().copy_file(path, prefixed_path, source_storage)
        self.seen = bool(self.post_process)
        self.storage.delete("old.txt")
        with self.storage.open("old.txt", "wb") as file:
            file.write(b"new")


@pytest.mark.needs("trailing checksums")
@pytest.mark.parametrize("arguments", [[], ["--no-post-process"]])
def test_command_that_saves_before_it_copies(site: Site, arguments: list[str]) -> None:
    """The last write of each name determines the content of the object.

    The command's own option `post_process` keeps its value during the run.
    """
    site.write("a.css", "a")
    site.bucket.put("old.txt", b"old")
    command = Reading()
    _collect(site, command, *arguments)
    assert site.bucket.files() == {"a.css": b"a", "old.txt": b"new"}
    assert command.seen == (arguments == [])


class Tolerant(Command):
    """A command that ignores every CommandError of a file."""

    def copy_file(self, *source: Any) -> None:
        with suppress(CommandError):
            super().copy_file(*source)


@pytest.mark.parametrize("arguments", [[], ["--no-post-process"]])
def test_command_that_ignores_the_error_that_ends_a_run(
    site: Site, arguments: list[str]
) -> None:
    """An error that ends a run is raised again if the command ignored it.

    The command would otherwise succeed without the files that were not uploaded.
    """
    site.write_many(5)
    site.proxy.fault = refuse("PUT", code="InvalidAccessKeyId")
    with pytest.raises(Exception, match="InvalidAccessKeyId"):
        _collect(site, Tolerant(), *arguments)


class Scattering(CollectfastS3StaticStorage):
    """A storage that writes scripts to a folder outside of its location."""

    def _normalize_name(self, name: str) -> str:
        key: str = super()._normalize_name(name)
        return key.replace("/static/", "/scripts/") if key.endswith(".js") else key


@pytest.mark.needs("trailing checksums")
def test_files_outside_of_the_location_are_uploaded(site: Site) -> None:
    """Files with keys outside of the storage's location are uploaded.

    A run lists only the location, so it leaves these files to django-storages.
    """
    site.backend = f"{__name__}.Scattering"
    site.write("a.css", "a")
    site.write("a.js", "script")
    site.collect()
    assert site.bucket.files() == {"a.css": b"a"}
    key = site.bucket.key("a.js").replace("/static/", "/scripts/")
    answer = site.bucket.client.get_object(Bucket=site.bucket.name, Key=key)
    assert answer["Body"].read() == b"script"


class Unreadable(CollectfastS3ManifestStaticStorage):
    """A storage that raises an error in `read_manifest`."""

    def read_manifest(self) -> str | None:
        raise RuntimeError("a subclass's own")


def test_error_of_overridden_read_manifest_is_raised(site: Site) -> None:
    """An error of a subclass's `read_manifest` ends collectstatic.

    The manifest is read a second time only if no thread could be started.
    """
    site.backend = f"{__name__}.Unreadable"
    with pytest.raises(RuntimeError, match="a subclass's own"):
        site.collect()


def test_bucket_follows_a_changed_bucket_name(site: Site) -> None:
    """The attribute `bucket` is always the bucket with the current `bucket_name`.

    django-storages keeps the first bucket, although a subclass may compute the name.
    """
    with site.storage() as storage:
        first = storage.bucket.name
        storage.bucket_name = "another"
        assert (first, storage.bucket.name) == (site.bucket.name, "another")


def test_multipart_etag_with_an_impossible_number_of_parts() -> None:
    """A multipart ETag does not match if no usual part size gives its number of parts.

    Here seven parts of ten bytes.
    """
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
def test_kms_keys_are_not_compared_literally(sent: str, is_same: bool) -> None:
    """A KMS key is unchanged if an upload names it by ID, alias or ARN.

    The response to HeadObject always contains the ARN of the key.
    """
    head = {"SSEKMSKeyId": "arn:aws:kms:key/1234"}
    assert (changed_headers(head, {"SSEKMSKeyId": sent}) == {}) == is_same


class Breaking(io.BytesIO):
    """A file that can be read once, for its hash, and fails when it is read again."""

    has_read = 0

    def read(self, *size: int | None) -> bytes:
        chunk = super().read(*size)
        self.has_read += len(chunk)
        if self.has_read > len(self.getbuffer()):
            raise RuntimeError("the source is broken")
        return chunk


def test_large_file_whose_source_fails_is_named(site: Site) -> None:
    """An error while a large file is read is an UploadError that names the file.

    Other files of the batch are uploaded.
    """
    with (
        site.storage() as storage,
        pytest.raises(UploadError, match=r"big\.bin: the source is broken"),
        storage.batch() as batch,
    ):
        batch.save("big.bin", File(Breaking(bytes(9 << 20)), "big.bin"))
        batch.save("small.bin", ContentFile(b"x"))
    assert site.bucket.names() == ["small.bin"]


class Twice(Command):
    """A command that copies each file twice."""

    def copy_file(self, *source: Any) -> None:
        super().copy_file(*source)
        self.copied_files.clear()  # Django would skip the files in this list.
        super().copy_file(*source)


def test_file_that_is_copied_twice_is_uploaded_once(site: Site) -> None:
    """A file that a command copies twice is uploaded once.

    The second copy is compared with the upload that is still running.
    """
    site.write_many(3)

    def slow(handler: Handler, request: Request, body: bytes) -> bool:
        time.sleep(0.2)
        return False

    site.proxy.fault = slow
    _collect(site, Twice())
    assert site.proxy.count()["PUT"] == 3


class GivingUp(Command):
    """A command that raises an error after the second file."""

    def copy_file(self, *source: Any) -> None:
        super().copy_file(*source)
        if len(self.copied_files) == 2:
            raise ZeroDivisionError


def test_unrelated_interrupt_does_not_cancel_uploads(site: Site) -> None:
    """Uploads of a failed run end normally if a KeyboardInterrupt exists elsewhere.

    Only a KeyboardInterrupt that has left the run itself cancels its uploads.
    """
    unrelated = KeyboardInterrupt()
    site.write_many(3)
    with site.active():
        with suppress(ZeroDivisionError):
            call_command(GivingUp(), "--noinput", stdout=io.StringIO())
        staticfiles_storage.exists("next call")
    assert not unrelated.args
    assert len(site.bucket.names()) == 2
