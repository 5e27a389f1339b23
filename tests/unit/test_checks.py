"""The messages of `manage.py check`, with the exact id, text and hint of each."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import django
import pytest
from django.contrib.staticfiles.storage import ManifestFilesMixin
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.core.management import call_command, get_commands
from django.core.management.base import SystemCheckError
from django.test import override_settings
from storages.backends.s3 import S3ManifestStaticStorage, S3StaticStorage

from collectfast_storage import (
    CollectfastMixin,
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from collectfast_storage.checks import check_storages
from collectfast_storage.context import overridden

STATIC = "collectfast_storage.CollectfastS3StaticStorage"
MANIFEST = "collectfast_storage.CollectfastS3ManifestStaticStorage"


def _storages(backend: str = STATIC, **options: Any) -> dict[str, Any]:
    options = {"bucket_name": "b", "location": "static"} | options
    return {
        "default": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
        "staticfiles": {"BACKEND": backend, "OPTIONS": options},
    }


def _check(storages: Any, **settings: Any) -> list[CheckMessage]:
    with override_settings(STORAGES=storages, **settings):
        return check_storages(None)


def _ids(storages: Any, **settings: Any) -> list[str]:
    messages = _check(storages, **settings)
    return [str(each.id).removeprefix("collectfast_storage.") for each in messages]


@pytest.mark.parametrize("backend", [STATIC, MANIFEST])
def test_settings_of_the_readme_have_no_messages(backend: str) -> None:
    """A storage with a bucket name and a location has no messages."""
    assert _check(_storages(backend)) == []


def test_other_storages_are_not_checked() -> None:
    """A storage of django-storages has no messages, even with invalid options."""
    plain = "storages.backends.s3.S3StaticStorage"
    with override_settings(COLLECTFAST_THREADS=-1):
        assert _check(_storages(plain, file_overwrite=False)) == []
        assert _check(_storages(plain, bucket_name=None)) == []


def test_invalid_option() -> None:
    """An option outside of its range is an error that names the option's setting."""
    assert _check(_storages(collectfast_threads=1001)) == [
        Error(
            "STORAGES['staticfiles']: The option collectfast_threads (setting "
            "COLLECTFAST_THREADS) is 1001.",
            hint="Set it to an integer from 0 to 1000.",
            id="collectfast_storage.E001",
        )
    ]


def test_cache_that_does_not_exist() -> None:
    """An alias that is not in CACHES is an error that names the aliases in CACHES."""
    assert _check(_storages(), COLLECTFAST_CACHE="no-such") == [
        Error(
            "STORAGES['staticfiles']: The option collectfast_cache (setting "
            "COLLECTFAST_CACHE) is 'no-such'.",
            hint="Set it to an alias in CACHES: 'default'.",
            id="collectfast_storage.E001",
        )
    ]


class Behind(S3StaticStorage, CollectfastMixin):
    pass


def test_mixin_behind_its_base() -> None:
    """The mixin has to come first, because otherwise the S3 storage's methods run."""
    assert _check(_storages(f"{__name__}.Behind")) == [
        Error(
            "Behind lists CollectfastMixin after an S3 storage, so the mixin has no "
            "effect.",
            hint="Make CollectfastMixin the first base class.",
            id="collectfast_storage.E002",
        )
    ]


class Replaced(CollectfastS3StaticStorage):
    pass


Replaced.post_process = lambda self, *args, **options: iter(())  # type: ignore[method-assign]


def test_post_process_that_is_replaced() -> None:
    """A replaced post_process is an error, because it does not wait for uploads."""
    assert _check(_storages(f"{__name__}.Replaced")) == [
        Error(
            "Replaced.post_process was replaced after the class was created, so "
            "collectstatic would end before all uploads have arrived.",
            hint="Define post_process in the class body or in a subclass.",
            id="collectfast_storage.E003",
        )
    ]


@pytest.mark.parametrize("bucket", [None, ""])
def test_no_bucket(bucket: str | None) -> None:
    """A missing bucket name is a warning; it may be set in OPTIONS or as a setting."""
    storages = _storages(bucket_name=bucket)
    assert _check(storages) == [
        checks.Warning(
            "STORAGES['staticfiles']: The option bucket_name (setting "
            f"AWS_STORAGE_BUCKET_NAME) is {bucket!r}.",
            hint="Set it to the name of the bucket.",
            id="collectfast_storage.W007",
        )
    ]
    del storages["staticfiles"]["OPTIONS"]["bucket_name"]
    assert _ids(storages) == ["W007"]
    assert _check(storages, AWS_STORAGE_BUCKET_NAME="b") == []


def test_commands_run_without_a_bucket() -> None:
    """A missing bucket is no error, because images are built before there is one."""
    apps = ["django.contrib.staticfiles", "collectfast_storage"]
    storages = _storages(bucket_name=None)
    errors = io.StringIO()
    with override_settings(INSTALLED_APPS=apps, STORAGES=storages):
        call_command("check", stderr=errors)
    assert "collectfast_storage.W007" in errors.getvalue()


@pytest.fixture(params=["collectfast", "collectfasta"])
def predecessor(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Make an app of this name, with a collectstatic command and nothing else."""
    app: str = request.param
    commands = tmp_path / app / "management" / "commands"
    commands.mkdir(parents=True)
    (commands / "collectstatic.py").touch()
    monkeypatch.setitem(sys.modules, app, ModuleType(app))
    sys.modules[app].__path__ = [str(tmp_path / app)]
    get_commands.cache_clear()
    yield app
    get_commands.cache_clear()


def test_predecessor_in_installed_apps(predecessor: str) -> None:
    """The collectstatic of a predecessor in INSTALLED_APPS is a warning."""
    apps = [predecessor, "django.contrib.staticfiles"]
    assert _check(_storages(), INSTALLED_APPS=apps) == [
        checks.Warning(
            f"{predecessor!r} is in INSTALLED_APPS, so its collectstatic command "
            "replaces Django's. This storage needs Django's command.",
            hint=f"Remove {predecessor!r} from INSTALLED_APPS.",
            id="collectfast_storage.W001",
        )
    ]


def test_predecessor_after_staticfiles(predecessor: str) -> None:
    """A predecessor after django.contrib.staticfiles does not replace its command."""
    apps = ["django.contrib.staticfiles", predecessor]
    assert _check(_storages(), INSTALLED_APPS=apps) == []


@pytest.mark.parametrize("kind", ["locmem.LocMemCache", "dummy.DummyCache"])
def test_preload_false_with_a_cache_of_one_process(kind: str) -> None:
    """Without preload, a cache that does not outlast the process is a warning."""
    caches = {"default": {"BACKEND": f"django.core.cache.backends.{kind}"}}
    storages = _storages(collectfast_preload=False)
    assert _check(storages, CACHES=caches) == [
        checks.Warning(
            "STORAGES['staticfiles'] has collectfast_preload=False, but the cache "
            "'default' does not outlive the process, so each run sends a HEAD "
            "request per file.",
            hint="Set collectfast_preload to True, or collectfast_cache to the alias "
            "of a persistent cache.",
            id="collectfast_storage.W002",
        )
    ]
    lasting = "django.core.cache.backends.filebased.FileBasedCache"
    caches["default"] = {"BACKEND": lasting, "LOCATION": "/nowhere"}
    assert _check(storages, CACHES=caches) == []


def _shared(backend: str = STATIC, **options: Any) -> dict[str, Any]:
    """Return static files without a location, and media files in the same bucket."""
    storages = _storages(backend, location="", **options)
    storages["default"] = {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {"bucket_name": "b", "location": "media"},
    }
    return storages


def test_bucket_that_is_shared_without_a_location() -> None:
    """Media files below the location of the static files are a warning."""
    storages = _shared()
    assert _check(storages) == [
        checks.Warning(
            "STORAGES['staticfiles'] and STORAGES['default'] share bucket 'b', and "
            "the latter stores files below the location of the former. Each deploy "
            "lists these files, and --clear is refused.",
            hint="Give STORAGES['staticfiles'] a location of its own.",
            id="collectfast_storage.W003",
        )
    ]
    storages["staticfiles"]["OPTIONS"]["location"] = "static"
    assert _check(storages) == []


@pytest.mark.parametrize(
    ("static", "media", "is_below"),
    [
        ("aws", "aws", True),
        ("aws", "aws/", True),
        ("aws/", "aws/media", True),
        ("aws/static", "aws", False),
        ("aws", "aws-media", False),
        ("static", "media", False),
    ],
)
def test_location_that_is_shared(static: str, media: str, is_below: bool) -> None:
    """Locations are compared by folders, so "aws-media" is not below "aws"."""
    storages = _shared()
    storages["staticfiles"]["OPTIONS"]["location"] = static
    storages["default"]["OPTIONS"]["location"] = media
    assert _ids(storages) == (["W003"] if is_below else [])


def test_buckets_of_one_name_at_two_endpoints() -> None:
    """Two buckets with the same name at different endpoints are not shared."""
    assert _check(_shared(endpoint_url="https://s3.example.com")) == []


def test_media_without_a_location() -> None:
    """Media files above the static ones are fine, because a deploy does not list them.

    It lists only the location of the static files.
    """
    storages = _storages()
    options = {"bucket_name": "b"}
    media = "collectfast_storage.CollectfastS3Storage"
    storages["default"] = {"BACKEND": media, "OPTIONS": options}
    assert _check(storages) == []


class Signed(CollectfastMixin, S3ManifestStaticStorage):
    querystring_auth = True


def test_signed_urls_in_css() -> None:
    """A manifest storage with signed URLs is a warning, because these URLs expire."""
    assert issubclass(Signed, ManifestFilesMixin)
    assert _check(_storages(f"{__name__}.Signed")) == [
        checks.Warning(
            "STORAGES['staticfiles'] is a manifest storage with querystring_auth=True, "
            "so it writes signed URLs into CSS files. They expire and differ in each "
            "deploy.",
            hint="Set querystring_auth to False.",
            id="collectfast_storage.W004",
        )
    ]


def test_signed_urls_of_a_domain() -> None:
    """URLs of a custom domain are not a warning, because S3 does not sign them.

    A storage may sign them for CloudFront, which the check cannot see.
    """
    domain = {"custom_domain": "static.example.com", "querystring_auth": True}
    assert _check(_storages(MANIFEST, **domain)) == []


def test_no_overwriting() -> None:
    """A storage with file_overwrite=False is a warning that names the consequences."""
    assert _check(_storages(), AWS_S3_FILE_OVERWRITE=False) == [
        checks.Warning(
            "STORAGES['staticfiles'] has file_overwrite=False. If a program saves a "
            "file under an existing name, the file is uploaded under another name, "
            "even if it is unchanged. Without the permission s3:ListBucket, "
            "collectstatic fails at the first new file.",
            hint="Set file_overwrite to True.",
            id="collectfast_storage.W005",
        )
    ]


class Theirs(S3StaticStorage):
    @property
    def bucket(self) -> Any:
        return self.connection.Bucket("theirs")


class OwnBucket(CollectfastMixin, Theirs):
    pass


def test_class_that_defines_its_bucket() -> None:
    """The warning names the class that defines `bucket`, which may be a base class."""
    backend = f"{__name__}.OwnBucket"
    assert overridden(OwnBucket, "bucket")
    assert _check(_storages(backend)) == [
        checks.Warning(
            "Theirs defines bucket, so STORAGES['staticfiles'] behaves as a plain "
            "django-storages class and uploads unchanged files too.",
            hint="Remove bucket from Theirs and set the option bucket_name, or set "
            "collectfast_enabled to False.",
            id="collectfast_storage.W006",
        )
    ]
    assert _check(_storages(backend, collectfast_enabled=False)) == []


def test_class_that_defines_its_bucket_needs_no_bucket_name() -> None:
    """The option `bucket_name` is not checked if the class defines its own bucket."""
    backend = f"{__name__}.OwnBucket"
    assert _ids(_storages(backend, bucket_name=None)) == ["W006"]
    assert _ids(_shared(backend)) == ["W006"]


IMMUTABLE = {"CacheControl": "public, max-age=31536000, immutable"}


@pytest.mark.parametrize("backend", [STATIC, MANIFEST])
def test_immutable_files_under_plain_names(backend: str) -> None:
    """`immutable` for plain names is a warning, in OPTIONS or as a setting."""
    expected = [
        checks.Warning(
            "STORAGES['staticfiles'] has the CacheControl 'public, max-age=31536000, "
            "immutable' in object_parameters, also for files under plain names. "
            "Browsers do not load such a file again after it has changed.",
            hint="Use a manifest storage, and move CacheControl to "
            "collectfast_hashed_parameters.",
            id="collectfast_storage.W008",
        )
    ]
    assert _check(_storages(backend, object_parameters=IMMUTABLE)) == expected
    settings = {"AWS_S3_OBJECT_PARAMETERS": IMMUTABLE}
    assert _check(_storages(backend), **settings) == expected
    assert _check(_storages(backend, collectfast_enabled=False), **settings) == []


class ByName(CollectfastS3ManifestStaticStorage):
    def get_object_parameters(self, name: str) -> dict[str, Any]:
        return {}


def test_immutable_files_under_hashed_names() -> None:
    """`immutable` is no warning if it does not apply to plain names.

    It may be limited to hashed names, or to some names by a method of the class. A
    storage of other files may give them unique names.
    """
    hashed = {"collectfast_hashed_parameters": IMMUTABLE}
    assert _check(_storages(MANIFEST, object_parameters={}, **hashed)) == []
    only = {"object_parameters": IMMUTABLE, "collectfast_only_hashed": True}
    assert _check(_storages(MANIFEST, **only)) == []
    assert _ids(_storages(STATIC, **only)) == ["W008", "W009"]
    kept = only | {"collectfast_keep_originals": ["robots.txt"]}
    assert _ids(_storages(MANIFEST, **kept)) == ["W008"]
    own = _storages(f"{__name__}.ByName", object_parameters=IMMUTABLE)
    assert _check(own) == []
    media = _storages()
    media["default"] = {
        "BACKEND": "collectfast_storage.CollectfastS3Storage",
        "OPTIONS": {"bucket_name": "media", "object_parameters": IMMUTABLE},
    }
    assert _check(media) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("collectfast_only_hashed", True), ("collectfast_hashed_parameters", IMMUTABLE)],
)
def test_hashed_names_without_a_manifest(option: str, value: Any) -> None:
    """An option for hashed names is a warning for a storage without a manifest."""
    expected = [
        checks.Warning(
            f"STORAGES['staticfiles'] has {option}={value!r}, which has no effect, "
            "because it is not a manifest storage.",
            hint=f"Remove {option}, or use a manifest storage.",
            id="collectfast_storage.W009",
        )
    ]
    assert _check(_storages(**{option: value})) == expected
    assert _check(_storages(), **{option.upper(): value}) == expected
    off = {"collectfast_enabled": False}
    assert _check(_storages(**{option: value}, **off)) == []
    assert _check(_storages(MANIFEST, **{option: value})) == []


def test_setting_for_hashed_names_and_another_storage() -> None:
    """A setting is no warning for media files, but an option of theirs is one."""
    media: dict[str, Any] = {"bucket_name": "media"}
    storages = _storages(MANIFEST)
    backend = "collectfast_storage.CollectfastS3Storage"
    storages["default"] = {"BACKEND": backend, "OPTIONS": media}
    assert _check(storages, COLLECTFAST_ONLY_HASHED=True) == []
    media["collectfast_only_hashed"] = True
    assert _ids(storages) == ["W009"]


def test_disabled_storage_has_no_warnings() -> None:
    """With collectfast_enabled=False, warnings about the package's work are omitted."""
    off = {"collectfast_enabled": False}
    for storages in (
        _storages(f"{__name__}.Replaced", **off),
        _storages(collectfast_preload=False, file_overwrite=False, **off),
        _shared(**off),
    ):
        assert _check(storages) == []


# Options whose values are unknown until a storage is made.


class EnabledByProperty(CollectfastS3ManifestStaticStorage):
    collectfast_enabled = property(lambda self: self.tenant.enabled)


class SignedByProperty(CollectfastS3ManifestStaticStorage):
    querystring_auth = property(lambda self: self.tenant.is_secret)


class BucketByProperty(CollectfastS3ManifestStaticStorage):
    bucket_name = property(lambda self: self.tenant.bucket)


class PlaceByProperty(CollectfastS3ManifestStaticStorage):
    location = cached_property(lambda self: self.tenant.name)


class OverwritingByProperty(CollectfastS3ManifestStaticStorage):
    file_overwrite = property(lambda self: self.tenant.overwrites)


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("EnabledByProperty", "collectfast_enabled", "no", "E001"),
        ("SignedByProperty", "querystring_auth", True, "W004"),
        ("BucketByProperty", "bucket_name", None, "W007"),
        ("PlaceByProperty", "location", "", "W003"),
        ("OverwritingByProperty", "file_overwrite", False, "W005"),
    ],
)
def test_option_as_a_property(name: str, option: str, value: Any, message: str) -> None:
    """An option that is a property is not checked, because its value is unknown."""
    storages = _shared(MANIFEST)
    storages["staticfiles"]["OPTIONS"] = {
        "bucket_name": "b",
        "location": "static",
        option: value,
    }
    assert _ids(storages) == [message]
    del storages["staticfiles"]["OPTIONS"][option]
    storages["staticfiles"]["BACKEND"] = f"{__name__}.{name}"
    assert _check(storages) == []


class Settable(CollectfastS3StaticStorage):
    @property
    def location(self) -> str:
        return f"static/{self._location}"

    @location.setter
    def location(self, value: str) -> None:
        self._location = value


def test_option_with_a_property_setter() -> None:
    """An option is not checked if a property of the class may change its value."""
    assert _check(_shared(f"{__name__}.Settable")) == []


class ThreeThreads(CollectfastS3StaticStorage):
    collectfast_threads = "3"


def test_option_of_a_class() -> None:
    """A class attribute overrides the setting, and OPTIONS override the attribute."""
    backend = f"{__name__}.ThreeThreads"
    assert _ids(_storages(backend), COLLECTFAST_THREADS=3) == ["E001"]
    assert _check(_storages(backend, collectfast_threads=3)) == []


class NeedsItself(CollectfastS3StaticStorage):
    def get_default_settings(self) -> dict[str, Any]:
        return super().get_default_settings() | {"bucket_name": self.tenant}


class Tenants(NeedsItself):
    def __init__(self, **options: Any) -> None:
        self.tenant = "b"
        options["collectfast_threads"] = int(options.get("collectfast_threads", 3))
        super().__init__(**options)


class NotADictionary(CollectfastS3StaticStorage):
    def get_default_settings(self) -> Any:
        return 1


@pytest.mark.parametrize("name", ["NeedsItself", "Tenants", "NotADictionary"])
def test_defaults_that_need_a_storage(name: str) -> None:
    """No option is checked if the defaults cannot be read without a storage."""
    storages = _storages(f"{__name__}.{name}")
    del storages["staticfiles"]["OPTIONS"]["bucket_name"]
    with override_settings(COLLECTFAST_THREADS=-1, AWS_S3_FILE_OVERWRITE=False):
        assert _check(storages) == []
    storages["staticfiles"]["OPTIONS"]["collectfast_threads"] = "3"
    assert _check(storages) == []


class OwnPlace(CollectfastS3StaticStorage):
    def _normalize_name(self, name: str) -> str:
        return f"static/{super()._normalize_name(name)}"


class OwnConnection(CollectfastS3StaticStorage):
    @property
    def connection(self) -> Any:
        return self._create_session().resource("s3", endpoint_url="https://theirs")


class OwnNames(CollectfastS3StaticStorage):
    file_overwrite = False

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        return name


class OwnURLs(CollectfastS3ManifestStaticStorage):
    querystring_auth = True

    def url(self, name: str, *args: Any, **options: Any) -> str:
        return f"/{name}"


def test_overridden_methods_suppress_warnings() -> None:
    """A warning is omitted if the class overrides the methods that it is about."""
    assert _check(_shared(f"{__name__}.OwnPlace")) == []
    assert _check(_shared(f"{__name__}.OwnConnection")) == []
    assert _check(_storages(f"{__name__}.OwnNames")) == []
    assert _check(_storages(f"{__name__}.OwnURLs")) == []


# Settings that cannot be used. Django reports them when it uses them.


def factory(**options: Any) -> CollectfastS3StaticStorage:
    return CollectfastS3StaticStorage(**options)


not_a_path: Any = object()


@pytest.mark.parametrize(
    "entry",
    [
        {"BACKEND": f"{__name__}.factory", "OPTIONS": {"collectfast_threads": -1}},
        {"BACKEND": f"{__name__}.not_a_path"},
        {"BACKEND": "no.such.Storage"},
        {"BACKEND": "nothing"},
        {"BACKEND": CollectfastS3StaticStorage},
        {"BACKEND": None},
        {"OPTIONS": {"bucket_name": "b"}},
        {"BACKEND": STATIC, "OPTIONS": None},
        {"BACKEND": STATIC, "OPTIONS": ["bucket_name"]},
        {"BACKEND": STATIC},
        {},
        None,
        STATIC,
        1,
    ],
)
def test_entries_that_are_not_storages(entry: Any) -> None:
    """An invalid entry of STORAGES has no messages, and the other entries do."""
    storages = {"odd": entry} | _storages(collectfast_threads=-1)
    assert _ids(storages, AWS_STORAGE_BUCKET_NAME="b") == ["E001"]


@pytest.mark.skipif(
    django.VERSION < (5, 1), reason="Django reads STORAGES when it is overridden."
)
@pytest.mark.parametrize("storages", [None, [], "storages"])
def test_storages_that_are_not_a_dictionary(storages: Any) -> None:
    """The check raises no exception if STORAGES is not a dictionary."""
    assert _check(storages) == []


@pytest.mark.parametrize(
    "error",
    ["ImportError", "ValueError", "django.core.exceptions.ImproperlyConfigured"],
)
def test_backend_that_cannot_be_imported(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that raises an error on import has no messages.

    Its library may not be installed, or may refuse the settings.
    """
    module = f"storage_with_{error.rpartition('.')[2].lower()}"
    text = f"import builtins, django.core.exceptions\nraise {error}('not here')\n"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    storages = _storages()
    storages["default"]["BACKEND"] = f"{module}.Storage"
    assert _check(storages) == []
    assert _check(_storages(f"{module}.Storage")) == []


class Unspeakable:
    """An object that can neither be printed nor be used as a condition."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __bool__ = __repr__


@pytest.mark.parametrize("odd", [["default"], {}, {"default"}, Unspeakable()])
def test_options_of_unexpected_types(odd: Any) -> None:
    """An option of any type leads to a message or to none, never to an exception."""
    said = [] if isinstance(odd, Unspeakable) else ["E001"]
    for option in ("collectfast_threads", "collectfast_enabled"):
        assert _ids(_storages(**{option: odd})) == said
    # The value is not an alias of a cache, and some of the values are not hashable.
    options = {"collectfast_cache": odd, "collectfast_preload": False}
    assert _ids(_storages(**options)) == said
    for option in ("location", "endpoint_url", "custom_domain"):
        assert _check(_storages(MANIFEST, **{option: odd})) == []


@pytest.mark.parametrize("command", ["check", "collectstatic"])
def test_commands_run_the_checks(command: str) -> None:
    """`manage.py check` and collectstatic fail with the errors of the checks."""
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
