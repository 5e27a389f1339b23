"""A program's own `storage.save()`, outside of collectstatic."""

from __future__ import annotations

import gzip
import io
import pickle
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from django.core.exceptions import SuspiciousOperation
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.management import call_command
from storages.backends.s3 import S3StaticStorage

from collectfast_storage import CollectfastMixin, CollectfastS3Storage
from tests.support.proxy import Handler, Request, refuse
from tests.support.site import Site

pytestmark = pytest.mark.needs("trailing checksums")


@pytest.mark.parametrize("preload", [True, False])
def test_save_uploads_only_changed_content(site: Site, preload: bool) -> None:
    """Each save sends one HEAD request, and a PUT only if the content differs.

    This is so although collectstatic trusts the cache with `preload=False`.
    """
    site.options["collectfast_preload"] = preload
    contents = (b"one", b"one", b"two", b"two")
    counts = []
    with site.storage() as storage:
        for content in contents:
            site.proxy.requests.clear()
            storage.save("a.txt", ContentFile(content))
            counts.append(dict(site.proxy.count()))
    unchanged, changed = {"HEAD": 1}, {"HEAD": 1, "PUT": 1}
    assert counts == [changed, unchanged, changed, unchanged]
    assert site.bucket.read("a.txt") == b"two"


@pytest.mark.parametrize("preload", [True, False])
def test_save_notices_the_writes_of_other_programs(site: Site, preload: bool) -> None:
    """A save uploads a file that another program has overwritten or deleted."""
    site.options["collectfast_preload"] = preload
    with site.storage() as storage:
        storage.save("a.txt", ContentFile(b"one"))
        site.bucket.put("a.txt", b"two")
        storage.save("a.txt", ContentFile(b"one"))
        assert site.bucket.read("a.txt") == b"one"
        site.bucket.delete("a.txt")
        storage.save("a.txt", ContentFile(b"one"))
    assert site.bucket.read("a.txt") == b"one"


def test_save_of_content_that_another_program_uploaded(site: Site) -> None:
    """A save of content that another program has uploaded costs one HEAD request."""
    site.bucket.put("a.txt", b"one", ContentType="text/plain")
    with site.storage() as storage:
        storage.save("a.txt", ContentFile(b"one"))
        storage.save("a.txt", ContentFile(b"one"))
    assert site.proxy.count() == {"HEAD": 2}


class Unseekable(io.RawIOBase):
    """A stream that yields its content once, like a pipe."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: Any) -> int:
        return self._content.readinto(buffer)


def _contents(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "content.txt"
    path.write_text("grüße\n" * 1000, encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    return {
        "ContentFile of bytes": lambda: ContentFile(text.encode()),
        "ContentFile of text": lambda: ContentFile(text),
        "open binary file": lambda: path.open("rb"),
        "open text file": lambda: path.open(encoding="utf-8"),
        "Django File": lambda: File(path.open("rb")),
        "not seekable": lambda: Unseekable(text.encode()),
        "read to its end": lambda: _read_to_its_end(path),
    }


def _read_to_its_end(path: Path) -> Any:
    file = path.open("rb")
    file.read()
    return file


@pytest.mark.parametrize(
    "kind",
    [
        "ContentFile of bytes",
        "ContentFile of text",
        "open binary file",
        "open text file",
        "Django File",
        "not seekable",
        "read to its end",
    ],
)
def test_any_kind_of_content(site: Site, tmp_path: Path, kind: str) -> None:
    """Each kind of content that django-storages can save is compared and saved."""
    make = _contents(tmp_path)[kind]
    expected = ("grüße\n" * 1000).encode()
    with site.storage() as storage:
        for _ in range(2):
            with make() as content:
                assert storage.save("dir/a.txt", content) == "dir/a.txt"
    assert site.proxy.count() == {"HEAD": 2, "PUT": 1}
    stored = site.bucket.get("dir/a.txt")
    assert stored["Body"].read() == expected
    assert stored["ContentType"] == "text/plain"


def test_content_is_not_closed(site: Site) -> None:
    """A save does not close the content, like Django's own storages."""
    content = io.BytesIO(b"x")
    with site.storage() as storage:
        storage.save("a.txt", content)
        storage.save("a.txt", content)
    assert not content.closed


@pytest.mark.needs("S3's ETags of parts")
def test_large_file_is_uploaded_in_parts_and_only_once(
    site: Site, tmp_path: Path
) -> None:
    """A file that was uploaded in parts is recognized by its ETag."""
    path = tmp_path / "large.bin"
    path.write_bytes(b"0123456789abcdef" * (1024 * 1024))
    with site.storage() as storage:
        with path.open("rb") as content:
            storage.save("large.bin", content)
        first = site.proxy.count()
        assert first["PUT"] == 2
        with path.open("rb") as content:
            storage.save("large.bin", content)
        assert site.proxy.count() == first + Counter(HEAD=1)
    assert site.bucket.read("large.bin") == path.read_bytes()
    site.proxy.reset()
    with site.storage() as storage, path.open("rb") as content:
        storage.save("large.bin", content)
    assert site.proxy.count() == {"HEAD": 1}


def test_errors_are_those_of_django_storages(site: Site) -> None:
    """A program's save raises the exceptions of django-storages, without conversion."""
    site.options["bucket_name"] = "no-such"
    with site.storage() as storage:
        with pytest.raises(ClientError, match="NoSuchBucket"):
            storage.save("a.txt", ContentFile(b"x"))
        with pytest.raises(SuspiciousOperation):
            storage.exists("../../out.txt")
        with pytest.raises(SuspiciousOperation):
            storage.save("../../out.txt", ContentFile(b"x"))


def test_failed_upload_is_repeated_by_the_next_save(site: Site) -> None:
    """After a save that failed, the next save uploads the file."""
    site.proxy.fault = refuse("PUT")
    with site.storage() as storage:
        with pytest.raises(ClientError, match="AccessDenied"):
            storage.save("a.txt", ContentFile(b"x"))
        site.proxy.fault = None
        storage.save("a.txt", ContentFile(b"x"))
    assert site.bucket.read("a.txt") == b"x"


def test_program_without_permission_to_read_can_save(site: Site) -> None:
    """If the HEAD request is denied, a save uploads the file, like django-storages."""
    site.proxy.fault = refuse("HEAD")
    with site.storage() as storage:
        storage.save("a.txt", ContentFile(b"x"))
    assert site.proxy.count() == {"HEAD": 1, "PUT": 1}
    assert site.bucket.read("a.txt") == b"x"


def test_save_delete_save(site: Site) -> None:
    """A save uploads a file that the same storage has deleted or overwritten since."""
    with site.storage() as storage:
        storage.save("a.txt", ContentFile(b"one"))
        storage.delete("a.txt")
        storage.save("a.txt", ContentFile(b"one"))
        assert site.bucket.read("a.txt") == b"one"
        with storage.open("a.txt", "wb") as file:
            file.write(b"two")
        storage.save("a.txt", ContentFile(b"one"))
    assert site.bucket.read("a.txt") == b"one"


def test_save_after_an_upload_with_a_lost_response(site: Site) -> None:
    """A save compares after a failed upload, too, because the file may have arrived."""
    with site.storage() as storage:
        storage.save("a.txt", ContentFile(b"one"))

        def lose(handler: Handler, request: Request, body: bytes) -> bool:
            if request.kind == "PUT":
                handler.pass_on_silently(body)
                handler.error(403, "AccessDenied")
            return request.kind == "PUT"

        site.proxy.fault = lose
        with pytest.raises(ClientError):
            storage.save("a.txt", ContentFile(b"two"))
        site.proxy.fault = None
        assert site.bucket.read("a.txt") == b"two"
        storage.save("a.txt", ContentFile(b"one"))
    assert site.bucket.read("a.txt") == b"one"


def test_pickled_storage_works(site: Site) -> None:
    """A copy of the storage that was pickled for another process can save."""
    with site.storage() as storage:
        copy = pickle.loads(pickle.dumps(storage))
        # boto3's TransferConfig cannot be pickled, because of its UNSET_DEFAULT.
        copy.transfer_config = storage.transfer_config
        copy.save("a.txt", ContentFile(b"x"))
    assert site.bucket.read("a.txt") == b"x"


@pytest.mark.parametrize("preload", [True, False])
def test_sixteen_threads_save_through_one_storage(site: Site, preload: bool) -> None:
    """Files that 16 threads save arrive, and to save them again costs one HEAD each."""
    site.options["collectfast_preload"] = preload
    with site.storage() as storage:
        threads = [
            threading.Thread(
                target=storage.save, args=(f"{n}.txt", ContentFile(b"%d" % n))
            )
            for n in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert site.bucket.files() == {f"{n}.txt": b"%d" % n for n in range(16)}
    site.proxy.reset()
    with site.storage() as storage:
        for n in range(16):
            storage.save(f"{n}.txt", ContentFile(b"%d" % n))
        assert site.proxy.count() == {"HEAD": 16}


def test_deconstructs_to_its_public_name() -> None:
    """A migration imports the storage from the module that the README names."""
    storage = CollectfastS3Storage(bucket_name="b")
    path, _, options = storage.deconstruct()
    assert path == "collectfast_storage.CollectfastS3Storage"
    assert options == {"bucket_name": "b"}


def test_save_during_a_collectstatic_into_another_storage(site: Site) -> None:
    """During collectstatic, a save of another storage is carried out immediately.

    Only the storage that collectstatic uses has a run.
    """
    with site.storage() as storage:
        other = CollectfastS3Storage(**site.storage_options)
    site.write("a.css", "a")
    saved: list[str] = []

    class Watching(type(storage)):  # type: ignore[misc]
        def save(self, name: str, content: Any, max_length: int | None = None) -> str:
            saved.append(other.save(f"copy/{name}", content))
            result: str = super().save(name, content, max_length)
            return result

    globals()["Watching"] = Watching
    site.backend = f"{__name__}.Watching"
    with site.active():
        call_command("collectstatic", "--noinput", stdout=io.StringIO())
    assert saved == ["copy/a.css"]
    assert site.bucket.files() == {"a.css": b"a", "copy/a.css": b"a"}

    # The other storage has no run, so a failure is raised immediately.
    site.write("b.css", "b")
    site.proxy.fault = refuse("PUT", "copy/")
    with site.active(), pytest.raises(ClientError, match="AccessDenied"):
        call_command("collectstatic", "--noinput", stdout=io.StringIO())


def test_failed_head_is_followed_by_the_upload(site: Site) -> None:
    """If the HEAD request fails, the file is uploaded, or the upload's error is raised.

    Responses to HEAD requests contain no message, and the upload may succeed.
    """
    site.options["client_config"] = Config(retries={"total_max_attempts": 1})

    def fail(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind in kinds:
            handler.error(500, "InternalError", "We are sorry")
        return request.kind in kinds

    site.proxy.fault = fail
    with site.storage() as storage:
        kinds = {"HEAD"}
        storage.save("a.txt", ContentFile(b"one"))
        kinds = {"HEAD", "PUT"}
        with pytest.raises(ClientError, match="We are sorry"):
            storage.save("a.txt", ContentFile(b"two"))
    assert site.bucket.files() == {"a.txt": b"one"}


class Watching(S3StaticStorage):
    """A storage class of a site with a `_save` that uses much of boto3's API."""

    def _save(self, name: str, content: Any) -> str:
        key = self._normalize_name(name)
        self.beginning = self._compress_content(content).read(2)
        content.seek(0)
        thing = self.bucket.Object(key)
        self.sent: list[int] = []
        thing.upload_fileobj(
            self._compress_content(content),
            ExtraArgs={"ContentEncoding": "gzip"},
            Callback=self.sent.append,
        )
        self.place = (self.bucket.name, thing.bucket_name, thing.key)
        return name


class Watched(CollectfastMixin, Watching):
    pass


def test_own_save_can_use_bucket_and_object(site: Site) -> None:
    """A subclass's `_save` can use bucket, object and callbacks as in django-storages.

    Its uploads are still compared with the bucket.
    """
    site.backend = f"{__name__}.Watched"
    with site.storage() as storage:
        for _ in range(2):
            file = ContentFile(b"content" * 100)
            storage.save("a.txt", file)
            assert storage.beginning == b"\x1f\x8b"
            assert storage.sent == [len(site.bucket.read("a.txt"))]
            place = (site.bucket.name, site.bucket.name, site.bucket.key("a.txt"))
            assert storage.place == place
        compressed = storage._compress_content(ContentFile(b"outside of a save"))
        assert gzip.decompress(compressed.read()) == b"outside of a save"
    assert site.proxy.count()["PUT"] == 1
    assert gzip.decompress(site.bucket.read("a.txt")) == b"content" * 100


class Closing(S3StaticStorage):
    def _save(self, name: str, content: Any) -> str:
        saved = super()._save(name, content)
        self._compress_content(content).close()
        return saved


class Closed(CollectfastMixin, Closing):
    pass


def test_own_save_may_close_the_compressed_content(site: Site) -> None:
    """A subclass's `_save` may close the content that it has compressed."""
    site.backend = f"{__name__}.Closed"
    with site.storage() as storage:
        file = io.BytesIO(b"content")
        storage.save("a.txt", File(file))
    assert file.closed
    assert site.bucket.read("a.txt") == b"content"
