"""What `manage.py check` says: id, message and remedy, word by word."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import pytest
from django.contrib.staticfiles.storage import ManifestFilesMixin
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings
from storages.backends.s3 import S3ManifestStaticStorage, S3StaticStorage

from collectfast_storage import CollectfastMixin, CollectfastS3StaticStorage
from collectfast_storage.checks import check_storages

STATIC = "collectfast_storage.CollectfastS3StaticStorage"
MANIFEST = "collectfast_storage.CollectfastS3ManifestStaticStorage"


def _storages(backend: str = STATIC, **options: Any) -> dict[str, Any]:
    options = {"bucket_name": "b", "location": "static"} | options
    return {
        "default": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
        "staticfiles": {"BACKEND": backend, "OPTIONS": options},
    }


def _check(storages: dict[str, Any], **settings: Any) -> list[CheckMessage]:
    with override_settings(STORAGES=storages, **settings):
        return check_storages(None)


@pytest.mark.parametrize("backend", [STATIC, MANIFEST])
def test_nothing_to_say(backend: str) -> None:
    """Of the two lines that the README asks for."""
    assert _check(_storages(backend)) == []


def test_other_storages_are_none_of_its_business() -> None:
    plain = "storages.backends.s3.S3StaticStorage"
    with override_settings(COLLECTFAST_THREADS=-1):
        assert _check(_storages(plain, file_overwrite=False)) == []
        assert _check({"staticfiles": {"BACKEND": "no.such.Storage"}}) == []


def test_invalid_option() -> None:
    assert _check(_storages(collectfast_threads=1001)) == [
        Error(
            "STORAGES['staticfiles']: The option collectfast_threads (setting "
            "COLLECTFAST_THREADS) is 1001.",
            hint="Set it to a whole number of requests, 0 to 1000.",
            id="collectfast_storage.E001",
        )
    ]


def test_cache_that_does_not_exist() -> None:
    assert _check(_storages(), COLLECTFAST_CACHE="no-such") == [
        Error(
            "STORAGES['staticfiles']: The option collectfast_cache (setting "
            "COLLECTFAST_CACHE) is 'no-such'.",
            hint="Set it to an alias that CACHES has: 'default'.",
            id="collectfast_storage.E001",
        )
    ]


class Behind(S3StaticStorage, CollectfastMixin):
    pass


def test_mixin_behind_its_base() -> None:
    assert _check(_storages(f"{__name__}.Behind")) == [
        Error(
            "Behind names CollectfastMixin behind an S3 storage, whose methods hide "
            "those of the mixin.",
            hint="Put CollectfastMixin first among its bases.",
            id="collectfast_storage.E002",
        )
    ]


class Replaced(CollectfastS3StaticStorage):
    pass


Replaced.post_process = lambda self, *args, **options: iter(())  # type: ignore[method-assign]


def test_post_process_that_never_reaches_the_barrier() -> None:
    assert _check(_storages(f"{__name__}.Replaced")) == [
        Error(
            "Replaced.post_process was replaced after the class was made: "
            "collectstatic would end before all uploads have arrived.",
            hint="Define post_process in the class, or in a subclass of it.",
            id="collectfast_storage.E003",
        )
    ]


@pytest.mark.parametrize("app", ["collectfast", "collectfasta"])
def test_predecessor_in_installed_apps(
    app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command would go before Django's."""
    monkeypatch.setitem(sys.modules, app, ModuleType(app, "An app with nothing in it."))
    sys.modules[app].__path__ = []
    sys.modules[app].__file__ = __file__
    apps = ["django.contrib.staticfiles", app]
    assert _check(_storages(), INSTALLED_APPS=apps) == [
        checks.Warning(
            f"{app!r} is in INSTALLED_APPS: its collectstatic replaces Django's, which "
            "this storage is made for.",
            hint=f"Remove {app!r} from INSTALLED_APPS.",
            id="collectfast_storage.W001",
        )
    ]


@pytest.mark.parametrize("kind", ["locmem.LocMemCache", "dummy.DummyCache"])
def test_trust_in_a_cache_of_one_process(kind: str) -> None:
    caches = {"default": {"BACKEND": f"django.core.cache.backends.{kind}"}}
    storages = _storages(collectfast_preload=False)
    assert _check(storages, CACHES=caches) == [
        checks.Warning(
            "STORAGES['staticfiles'] has collectfast_preload=False, and the cache "
            "'default' forgets at the end of each process: each deploy asks the bucket "
            "for every file, one by one.",
            hint="Set collectfast_preload to True, or collectfast_cache to the alias "
            "of a cache that lasts.",
            id="collectfast_storage.W002",
        )
    ]
    lasting = "django.core.cache.backends.filebased.FileBasedCache"
    caches["default"] = {"BACKEND": lasting, "LOCATION": "/nowhere"}
    assert _check(storages, CACHES=caches) == []


def test_bucket_that_is_shared_without_a_location() -> None:
    storages = _storages(location="")
    storages["default"] = {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {"bucket_name": "b", "location": "media"},
    }
    assert _check(storages) == [
        checks.Warning(
            "STORAGES['staticfiles'] and STORAGES['default'] share the bucket 'b', and "
            "the former has no location: a deploy lists what the latter stores, and "
            "--clear is refused.",
            hint="Set location in the OPTIONS of STORAGES['staticfiles'].",
            id="collectfast_storage.W003",
        )
    ]
    storages["staticfiles"]["OPTIONS"]["location"] = "static"
    assert _check(storages) == []


class Signed(CollectfastMixin, S3ManifestStaticStorage):
    querystring_auth = True


def test_signed_urls_in_css() -> None:
    assert issubclass(Signed, ManifestFilesMixin)
    assert _check(_storages(f"{__name__}.Signed")) == [
        checks.Warning(
            "STORAGES['staticfiles'] is a manifest storage with querystring_auth=True: "
            "the signed URLs that it writes into CSS files expire, and differ in each "
            "deploy.",
            hint="Set querystring_auth to False.",
            id="collectfast_storage.W004",
        )
    ]


def test_names_that_change() -> None:
    assert _check(_storages(), AWS_S3_FILE_OVERWRITE=False) == [
        checks.Warning(
            "STORAGES['staticfiles'] has file_overwrite=False: a changed file gets "
            "another name, which no page knows.",
            hint="Set file_overwrite to True.",
            id="collectfast_storage.W005",
        )
    ]


@pytest.mark.parametrize("command", ["check", "collectstatic"])
def test_commands_that_run_them(command: str) -> None:
    """`manage.py check`, and collectstatic before it does anything."""
    apps = ["django.contrib.staticfiles", "collectfast_storage"]
    arguments = ["--noinput"] if command == "collectstatic" else []
    options = {"skip_checks": False} if command == "collectstatic" else {}
    with (
        override_settings(
            INSTALLED_APPS=apps, COLLECTFAST_THREADS=-1, STORAGES=_storages()
        ),
        pytest.raises(SystemCheckError, match=r"collectfast_storage\.E001"),
    ):
        call_command(command, *arguments, stdout=io.StringIO(), **options)
