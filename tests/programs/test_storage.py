"""Storages outside of collectstatic, which behave like those of django-storages."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import django
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.files.base import ContentFile
from storages.backends.s3 import S3StaticStorage, S3Storage

import collectfast_storage
from collectfast_storage import CollectfastS3StaticStorage, CollectfastS3Storage
from collectfast_storage.exceptions import BucketError
from tests.support.servers import Server
from tests.support.site import MANIFEST, STATIC, Site

pytestmark = pytest.mark.needs("trailing checksums")

CONFIGURED = "from django.conf import settings; settings.configure(); "


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (CollectfastS3Storage, S3Storage),
        (CollectfastS3StaticStorage, S3StaticStorage),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"location": "static"},
        {"custom_domain": "cdn.example.com"},
        {"endpoint_url": "http://127.0.0.1:1"},
    ],
)
@pytest.mark.parametrize("name", ["a.css", "dir/with space+plus.css", "ü#?.css"])
def test_url_is_that_of_django_storages(
    ours: type, theirs: type, options: dict[str, Any], name: str
) -> None:
    """Signed and unsigned URLs are those of django-storages, except for the date."""
    common = {
        "bucket_name": "bucket",
        "access_key": "key",
        "secret_key": "secret",
        "region_name": "eu-central-1",
        **options,
    }
    urls = [
        cls(**common).url(name).partition("X-Amz-Date")[0] for cls in (ours, theirs)
    ]
    assert urls[0] == urls[1]


def test_import_loads_no_additional_library() -> None:
    """Importing the package imports only libraries that django-storages imports, too.

    Other libraries take time to import, so they are imported by a run.
    """
    code = (
        f"{CONFIGURED}import sys, django; django.setup(); "
        "import storages.backends.s3; before = {*sys.modules}; "
        "import collectfast_storage; "
        "new = {name.partition('.')[0] for name in {*sys.modules} - before}; "
        "print(sorted(new - sys.stdlib_module_names)); "
        "print('collectfast_storage.s3.obstore' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    libraries, native = done.stdout.splitlines()
    assert set(ast.literal_eval(libraries)) <= {"collectfast_storage", "django"}
    assert native == "False"


def test_environment_has_the_versions_in_its_name() -> None:
    """An environment of tox has the versions of Python and Django in its name.

    Other packages in the environment might replace them.
    """
    name = os.environ.get("TEST_ENVIRONMENT")
    if name is None:
        pytest.skip("not in the matrix")
    major, minor = django.VERSION[:2]
    python = "".join(map(str, sys.version_info[:2]))
    named = name.removesuffix("-obstore").removesuffix("-lowest")
    assert named == f"py{python}-django{major}{minor}"
    assert (find_spec("obstore") is not None) == name.endswith("-obstore")


@pytest.mark.skipif(django.VERSION >= (5, 1), reason="removed in Django 5.1")
def test_staticfiles_storage_setting_of_django_4_2(
    server: Server, tmp_path: Path
) -> None:
    """The old setting STATICFILES_STORAGE works with the global AWS settings."""
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "a.css").write_text("a")
    code = f"""
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.staticfiles"],
    STATIC_URL="/static/",
    STATICFILES_DIRS=[{str(tmp_path / "static")!r}],
    STATICFILES_STORAGE="collectfast_storage.CollectfastS3StaticStorage",
    AWS_S3_ENDPOINT_URL={server.endpoint!r},
    AWS_STORAGE_BUCKET_NAME={server.bucket!r},
    AWS_LOCATION={tmp_path.name!r},
    AWS_S3_ACCESS_KEY_ID={server.access_key!r},
    AWS_S3_SECRET_ACCESS_KEY={server.secret_key!r},
)
import django
from django.core.management import call_command
django.setup()
call_command("collectstatic", "--noinput")
call_command("collectstatic", "--noinput")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=server.environment,
    )
    assert [line for line in done.stdout.splitlines() if line] == [
        "1 static file copied.",
        "0 static files copied, 1 unmodified.",
    ]


def test_results_and_requests_are_those_of_django_storages(site: Site) -> None:
    """Outside of a run, methods have the results and requests of django-storages."""
    site.bucket.put("dir/a.txt", b"content", ContentType="text/plain")
    plain = S3StaticStorage(**site.storage_options)
    ours = CollectfastS3StaticStorage(**site.storage_options)
    for call in (
        lambda storage: storage.exists("dir/a.txt"),
        lambda storage: storage.exists("dir/none.txt"),
        lambda storage: storage.get_modified_time("dir/a.txt"),
        lambda storage: storage.size("dir/a.txt"),
        lambda storage: storage.listdir("dir"),
        lambda storage: storage.delete("dir/none.txt"),
        lambda storage: storage.bucket.name,
    ):
        site.proxy.reset()
        expected = call(plain)
        counts = site.proxy.count()
        site.proxy.reset()
        assert call(ours) == expected
        assert site.proxy.count() == counts


@pytest.mark.needs("metadata in lower case")
def test_mixin_keeps_the_overridden_methods_of_an_own_storage(site: Site) -> None:
    """`CollectfastMixin` keeps the methods that a site's own S3 storage overrides."""
    site.backend = f"{__name__}.Mine"
    site.write("a.css", "a")
    assert site.collect().put == ["a.css"]
    assert site.bucket.get("a.css")["CacheControl"] == "max-age=60"
    assert site.bucket.get("a.css")["Metadata"] == {"saved-by": "them"}
    assert site.collect().requests == {"LIST": 1}


class Theirs(S3StaticStorage):
    def get_object_parameters(self, name: str) -> dict[str, Any]:
        return {"CacheControl": "max-age=60"}

    def _save(self, name: str, content: Any) -> Any:
        self.object_parameters = {}
        return super()._save(name, content)

    def _get_write_parameters(self, name: str, content: Any = None) -> Any:
        parameters = super()._get_write_parameters(name, content)
        return parameters | {"Metadata": {"saved-by": "them"}}


class Mine(collectfast_storage.CollectfastMixin, Theirs):
    pass


def test_file_overwrite_false_finds_another_name(site: Site) -> None:
    """With `file_overwrite=False`, a program's second save gets another name."""
    site.options["file_overwrite"] = False
    with site.storage() as storage:
        first = storage.save("a.txt", ContentFile(b"one"))
        second = storage.save("a.txt", ContentFile(b"two"))
    assert first == "a.txt"
    assert second != first
    assert site.bucket.files() == {first: b"one", second: b"two"}


class OwnPut(S3StaticStorage):
    def _save(self, name: str, content: Any) -> Any:
        self.bucket.Object(self._normalize_name(name)).put(Body=content.read())
        return name


class OwnPutMine(collectfast_storage.CollectfastMixin, OwnPut):
    pass


class ThreadedSave(CollectfastS3StaticStorage):
    def save(self, name: str, content: Any, max_length: int | None = None) -> str:
        copy = ContentFile(content.read())
        thread = threading.Thread(target=super().save, args=(name, copy))
        thread.start()
        thread.join()
        return name


class Companion(S3StaticStorage):
    def _save(self, name: str, content: Any) -> Any:
        if not name.endswith(".txt"):
            self.save(f"{name}.txt", ContentFile(b"beside " + content.read()))
        return super()._save(name, content)


class CompanionMine(collectfast_storage.CollectfastMixin, Companion):
    pass


class OwnBucket(CollectfastS3StaticStorage):
    @property
    def bucket(self) -> Any:
        return self.connection.Bucket(self.bucket_name)


@pytest.mark.parametrize("backend", ["OwnPutMine", "ThreadedSave", "OwnBucket"])
def test_subclass_with_its_own_uploads_loses_no_file(site: Site, backend: str) -> None:
    """A file that a subclass uploads by other means exists after each deploy.

    The command deletes the old object before the subclass uploads the new one.
    """
    site.backend = f"{__name__}.{backend}"
    for content in (b"one", b"two"):
        site.write("a.css", content)
        site.touch()
        site.collect()
        site.collect()
        assert site.bucket.files() == {"a.css": content}


def test_companion_that_an_own_save_creates_is_kept(site: Site) -> None:
    """If a subclass's `_save` saves a second file, `--clear` keeps both."""
    site.backend = f"{__name__}.CompanionMine"
    site.write("a.css", "a")
    for _ in range(2):
        site.collect("--clear")
        assert site.bucket.files() == {"a.css": b"a", "a.css.txt": b"beside a"}


def test_dry_run_of_a_storage_with_its_own_bucket(site: Site) -> None:
    """A dry run writes nothing, even if a subclass overrides `bucket`."""
    site.backend = f"{__name__}.OwnBucket"
    site.write("a.css", "a")
    site.collect("--dry-run")
    assert site.bucket.names() == []


class NoDelete(S3StaticStorage):
    def delete(self, name: str) -> None:
        pass


class NoDeleteMine(collectfast_storage.CollectfastMixin, NoDelete):
    pass


def test_own_delete_is_called(site: Site) -> None:
    """`--clear` calls a subclass's `delete`, which may keep all files."""
    site.backend = f"{__name__}.NoDeleteMine"
    site.write("a.css", "a")
    site.bucket.put("leftover.css", b"leftover")
    site.collect("--clear")
    assert site.bucket.names() == ["a.css", "leftover.css"]


def test_saving_in_a_server_does_not_import_the_command(server: Server) -> None:
    """A program's save does not import the collectstatic command.

    If the command were imported, every later call would search the stack for it.
    """
    code = (
        f"{CONFIGURED}import django; django.setup(); import sys; "
        "from django.core.files.base import ContentFile; "
        "import collectfast_storage; "
        f"storage = collectfast_storage.CollectfastS3Storage("
        f"endpoint_url={server.endpoint!r}, bucket_name={server.bucket!r}, "
        f"access_key={server.access_key!r}, secret_key={server.secret_key!r}); "
        "storage.save('server.txt', ContentFile(b'x')); "
        "print([name for name in sys.modules if 'commands.collectst' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=server.environment,
    )
    assert done.stdout.strip() == "[]"


class CountingSessions(CollectfastS3StaticStorage):
    sessions = 0

    def _create_session(self) -> Any:
        type(self).sessions += 1
        return super()._create_session()


@pytest.mark.parametrize("preload", [True, False])
def test_one_session_serves_all_threads(site: Site, preload: bool) -> None:
    """A deploy creates one session, even if 16 threads start to upload together."""
    site.backend = f"{__name__}.CountingSessions"
    site.options |= {"collectfast_preload": preload, "collectfast_threads": 16}
    site.write_many(40)
    site.collect()
    for name in site.bucket.names():
        site.write(name, f"other {name}")
    CountingSessions.sessions = 0
    assert site.collect().requests["PUT"] == 40
    assert CountingSessions.sessions == 1


class RecordingCompression(S3StaticStorage):
    threads: set[int] = set()  # noqa: RUF012

    def _compress_content(self, content: Any) -> Any:
        self.threads.add(threading.get_ident())
        return super()._compress_content(content)


class RecordingMine(collectfast_storage.CollectfastMixin, RecordingCompression):
    pass


def test_files_are_compressed_in_upload_threads(site: Site) -> None:
    """A batch compresses files in its upload threads, not in the thread that saves."""
    site.backend = f"{__name__}.RecordingMine"
    site.options["gzip"] = True
    RecordingCompression.threads.clear()
    with site.storage() as storage, storage.batch() as batch:
        batch.save("a.css", ContentFile(b"a" * 1000))
    assert site.bucket.get("a.css")["ContentEncoding"] == "gzip"
    assert len(RecordingCompression.threads) == 1
    assert threading.get_ident() not in RecordingCompression.threads


@pytest.mark.parametrize("backend", [STATIC, MANIFEST])
def test_missing_bucket_name_is_an_error_that_names_the_option(
    site: Site, backend: str
) -> None:
    """If no bucket is configured, the error names AWS_STORAGE_BUCKET_NAME.

    This is so for manifest storages, too, which read the manifest first.
    """
    site.backend = backend
    site.write("a.css", "a")
    site.options["bucket_name"] = None
    with pytest.raises(ImproperlyConfigured, match="AWS_STORAGE_BUCKET_NAME"):
        site.collect()


def test_impossible_bucket_name_is_reported_without_a_wrong_hint(site: Site) -> None:
    """The error about an impossible bucket name does not suggest object_parameters."""
    site.write("a.css", "a")
    site.options["bucket_name"] = "my bukket"
    with pytest.raises(BucketError, match="Invalid bucket name") as caught:
        site.collect()
    assert "object_parameters" not in str(caught.value)
