"""For whoever is not collectstatic: the django-storages class, at its cost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import django
import pytest
from django.core.files.base import ContentFile
from storages.backends.s3 import S3StaticStorage, S3Storage

import collectfast_storage
from collectfast_storage import CollectfastS3StaticStorage, CollectfastS3Storage
from tests.servers import Server
from tests.site import Site

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


def test_import_costs_no_more_than_ten_milliseconds(tmp_path: Path) -> None:
    """Beside django-storages' own import; the fastest of several processes each."""

    def fastest(module: str) -> float:
        code = (
            f"{CONFIGURED}import time, django; django.setup(); "
            "import storages.backends.s3; "
            f"t = time.perf_counter(); import {module}; "
            "print(time.perf_counter() - t)"
        )
        # With bytecode, as an installed package has it.
        environ = os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path)}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        times = []
        for _ in range(5):
            done = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
                env=environ,
            )
            times.append(float(done.stdout))
        return min(times)

    assert fastest("collectfast_storage") < 0.010


def test_matrix_tests_what_it_says() -> None:
    """An environment named after a Django has that one, whatever else it installs."""
    name = os.environ.get("TEST_ENVIRONMENT")
    if name is None:
        pytest.skip("not in the matrix")
    major, minor = django.VERSION[:2]
    python = "".join(map(str, sys.version_info[:2]))
    assert name == f"py{python}-django{major}{minor}"


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
