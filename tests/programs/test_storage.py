"""For whoever is not collectstatic: the django-storages class, at its cost."""

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
    """Signed or not, to the letter (a signature's date apart)."""
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


def test_import_brings_no_library_along() -> None:
    """Beside those of django-storages' own import: what takes time waits for a run."""
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


def test_matrix_tests_what_it_says() -> None:
    """An environment named after a Django has that one, whatever else it installs."""
    name = os.environ.get("TEST_ENVIRONMENT")
    if name is None:
        pytest.skip("not in the matrix")
    major, minor = django.VERSION[:2]
    python = "".join(map(str, sys.version_info[:2]))
    named = name.removesuffix("-obstore").removesuffix("-lowest")
    assert named == f"py{python}-django{major}{minor}"
    assert (find_spec("obstore") is not None) == name.endswith("-obstore")


@pytest.mark.skipif(django.VERSION >= (5, 1), reason="STATICFILES_STORAGE ended in 5.1")
def test_staticfiles_storage_setting_of_django_4_2(
    server: Server, tmp_path: Path
) -> None:
    """The old spelling: one line, and the global AWS settings."""
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
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert [line for line in done.stdout.splitlines() if line] == [
        "1 static file copied.",
        "0 static files copied, 1 unmodified.",
    ]


def test_every_answer_is_that_of_django_storages(site: Site) -> None:
    """Outside of a run: the same results for the same questions."""
    site.bucket.put("dir/a.txt", b"content", ContentType="text/plain")
    plain = S3StaticStorage(**site.storage_options)
    ours = CollectfastS3StaticStorage(**site.storage_options)
    for ask in (
        lambda storage: storage.exists("dir/a.txt"),
        lambda storage: storage.exists("dir/none.txt"),
        lambda storage: storage.get_modified_time("dir/a.txt"),
        lambda storage: storage.size("dir/a.txt"),
        lambda storage: storage.listdir("dir"),
        lambda storage: storage.delete("dir/none.txt"),
        lambda storage: storage.bucket.name,
    ):
        site.proxy.reset()
        expected, asked = ask(plain), site.proxy.count()
        site.proxy.reset()
        assert ask(ours) == expected
        assert site.proxy.count() == asked


@pytest.mark.needs("metadata in lower case")
def test_own_subclass_of_their_own_storage(site: Site) -> None:
    """`class Mine(CollectfastMixin, TheirS3Storage)`: what it overrides stays so."""
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
    """As in django-storages: a program's second save gets a name of its own."""
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
def test_who_uploads_by_other_means_loses_nothing(site: Site, backend: str) -> None:
    """What the command deletes first, and a subclass then writes, is there."""
    site.backend = f"{__name__}.{backend}"
    for content in (b"one", b"two"):
        site.write("a.css", content)
        site.touch()
        site.collect()
        site.collect()
        assert site.bucket.files() == {"a.css": content}


def test_companion_saved_on_the_way_is_kept(site: Site) -> None:
    """A `_save` that saves something else first does both."""
    site.backend = f"{__name__}.CompanionMine"
    site.write("a.css", "a")
    for _ in range(2):
        site.collect("--clear")
        assert site.bucket.files() == {"a.css": b"a", "a.css.txt": b"beside a"}


def test_dry_run_of_a_storage_with_a_bucket_of_its_own(site: Site) -> None:
    """It writes nothing, whatever is not known of it."""
    site.backend = f"{__name__}.OwnBucket"
    site.write("a.css", "a")
    site.collect("--dry-run")
    assert site.bucket.names() == []


class NoDelete(S3StaticStorage):
    def delete(self, name: str) -> None:
        pass


class NoDeleteMine(collectfast_storage.CollectfastMixin, NoDelete):
    pass


def test_own_delete_is_asked(site: Site) -> None:
    """A site that deletes nothing does so in a run as well."""
    site.backend = f"{__name__}.NoDeleteMine"
    site.write("a.css", "a")
    site.bucket.put("leftover.css", b"leftover")
    site.collect("--clear")
    assert site.bucket.names() == ["a.css", "leftover.css"]


def test_saving_in_a_server_does_not_import_the_command(server: Server) -> None:
    """It would make every later call walk the stack for a command that is not there."""
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
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


class CountingSessions(CollectfastS3StaticStorage):
    sessions = 0

    def _create_session(self) -> Any:
        type(self).sessions += 1
        return super()._create_session()


@pytest.mark.parametrize("preload", [True, False])
def test_one_session_serves_all_threads(site: Site, preload: bool) -> None:
    """Also where the first request is one of many uploads at once."""
    site.backend = f"{__name__}.CountingSessions"
    site.options |= {"collectfast_preload": preload, "collectfast_threads": 16}
    site.write_many(40)
    site.collect()
    for name in site.bucket.names():
        site.write(name, f"other {name}")
    CountingSessions.sessions = 0
    assert site.collect().requests["PUT"] == 40
    assert CountingSessions.sessions == 1


class NotingCompression(S3StaticStorage):
    threads: set[int] = set()  # noqa: RUF012

    def _compress_content(self, content: Any) -> Any:
        self.threads.add(threading.get_ident())
        return super()._compress_content(content)


class NotingMine(collectfast_storage.CollectfastMixin, NotingCompression):
    pass


def test_what_goes_up_is_compressed_in_the_background(site: Site) -> None:
    """A batch compresses files in its upload threads, not in the thread that saves."""
    site.backend = f"{__name__}.NotingMine"
    site.options["gzip"] = True
    NotingCompression.threads.clear()
    with site.storage() as storage, storage.batch() as batch:
        batch.save("a.css", ContentFile(b"a" * 1000))
    assert site.bucket.get("a.css")["ContentEncoding"] == "gzip"
    assert len(NotingCompression.threads) == 1
    assert threading.get_ident() not in NotingCompression.threads


@pytest.mark.parametrize("backend", [STATIC, MANIFEST])
def test_bucket_without_a_name_is_an_error_that_names_the_option(
    site: Site, backend: str
) -> None:
    """Also where a manifest is read before anything else."""
    site.backend = backend
    site.write("a.css", "a")
    site.options["bucket_name"] = None
    with pytest.raises(ImproperlyConfigured, match="AWS_STORAGE_BUCKET_NAME"):
        site.collect()


def test_name_that_no_bucket_can_have_is_told_without_a_wrong_hint(site: Site) -> None:
    """It is no matter of the object's parameters."""
    site.write("a.css", "a")
    site.options["bucket_name"] = "my bukket"
    with pytest.raises(BucketError, match="Invalid bucket name") as caught:
        site.collect()
    assert "object_parameters" not in str(caught.value)
