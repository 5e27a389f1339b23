"""The checks of ``manage.py check``.

They do not create a storage, because that reads manifests. Therefore they check only
options whose values are known from the settings and the class.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from inspect import getattr_static
from types import SimpleNamespace
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.staticfiles.storage import ManifestFilesMixin
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import get_commands
from django.utils.module_loading import import_string
from storages.backends.s3 import S3Storage

from collectfast_storage.context import overridden
from collectfast_storage.options import Options
from collectfast_storage.storage import CollectfastMixin

# Django's caches that other processes do not see, or that store nothing.
_LOCAL_CACHES = ("dummy.DummyCache", "locmem.LocMemCache")
# The value of an option is not known if a class of the project overrides one of these.
_OVERRIDING_METHODS = {
    "bucket_name": ("bucket",),
    "endpoint_url": ("connection",),
    "file_overwrite": ("exists", "get_available_name", "save"),
    "location": ("_normalize_name",),
    "object_parameters": ("get_object_parameters",),
    "querystring_auth": ("url",),
}
# A class that overrides one of these may give its options any value.
_SETTERS = ("__init__", "__getattr__", "__getattribute__", "__setattr__")


class Configured(NamedTuple):
    """An entry of ``STORAGES``, with those of its options that are known."""

    alias: str
    backend: type[Any]
    known: dict[str, Any]
    is_active: bool  # It is certain that the class does not upload unchanged files.

    @property
    def entry(self) -> str:
        """The entry, as messages name it."""
        return f"STORAGES[{self.alias!r}]"


def check_storages(app_configs: object, **kwargs: Any) -> list[checks.CheckMessage]:
    """Check each entry of ``STORAGES`` that uses this package."""
    messages: list[checks.CheckMessage] = []
    # A class of the project may raise any exception. It must not block a command here:
    # Django reports it when the class is used.
    with suppress(Exception):
        ours = [*_configured_storages(CollectfastMixin)]
        messages += _check_predecessor() if ours else ()
        for storage in ours:
            for check in (
                _check_class,
                _check_options,
                _check_file_overwrite,
                _check_cache,
                _check_location,
                _check_immutable,
                _check_hashed_names,
            ):
                with suppress(Exception):
                    messages += check(storage)
    return messages


def _configured_storages(base: type[Any]) -> Iterator[Configured]:
    for alias, entry in settings.STORAGES.items():
        with suppress(Exception):
            backend = import_string(entry["BACKEND"])
            # If it is a function, the class that it returns is not known.
            if isinstance(backend, type) and issubclass(backend, base):
                known = _known_options(backend, entry.get("OPTIONS", {}))
                is_enabled = known.get("collectfast_enabled") is True
                is_active = is_enabled and not overridden(backend, "bucket")
                yield Configured(alias, backend, known, is_active)


def _known_options(backend: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    if overridden(backend, *_SETTERS):
        return {}
    known = {}
    # As in django-storages, OPTIONS precede class attributes, and these precede
    # settings. The value of a property is not known.
    for name, default in object.__new__(backend).get_default_settings().items():
        own = getattr_static(backend, name, default)
        methods = _OVERRIDING_METHODS.get(name, ())
        if not hasattr(type(own), "__get__") and not overridden(backend, *methods):
            known[name] = options.get(name, own)
    return known


def _check_predecessor() -> Iterator[checks.CheckMessage]:
    app = get_commands().get("collectstatic")
    if app in ("collectfast", "collectfasta"):
        yield checks.Warning(
            f"{app!r} is in INSTALLED_APPS, so its collectstatic command replaces "
            "Django's. This storage needs Django's command.",
            hint=f"Remove {app!r} from INSTALLED_APPS.",
            id="collectfast_storage.W001",
        )


def _check_class(storage: Configured) -> Iterator[checks.CheckMessage]:
    name, order = storage.backend.__qualname__, storage.backend.__mro__
    if order.index(CollectfastMixin) > order.index(S3Storage):
        yield checks.Error(
            f"{name} lists CollectfastMixin after an S3 storage, so the mixin has no "
            "effect.",
            hint="Make CollectfastMixin the first base class.",
            id="collectfast_storage.E002",
        )
    if storage.is_active and not hasattr(storage.backend.post_process, "has_barrier"):
        yield checks.Error(
            f"{name}.post_process was replaced after the class was created, so "
            "collectstatic would end before all uploads have arrived.",
            hint="Define post_process in the class body or in a subclass.",
            id="collectfast_storage.E003",
        )
    own = overridden(storage.backend, "bucket")
    if own and storage.known.get("collectfast_enabled") is not False:
        name = own.__qualname__
        yield checks.Warning(
            f"{name} defines bucket, so {storage.entry} behaves as a plain "
            "django-storages class and uploads unchanged files too.",
            hint=f"Remove bucket from {name} and set the option bucket_name, or set "
            "collectfast_enabled to False.",
            id="collectfast_storage.W006",
        )


def _check_options(storage: Configured) -> Iterator[checks.CheckMessage]:
    known = storage.known
    options = {f"collectfast_{field.name}": field.default for field in fields(Options)}
    try:
        Options.of(SimpleNamespace(**options | known))
    except ImproperlyConfigured as error:
        message, _, remedy = str(error).rpartition(" Set it to ")
        yield checks.Error(
            f"{storage.entry}: {message}",
            hint=f"Set it to {remedy}",
            id="collectfast_storage.E001",
        )
    bucket_name = known.get("bucket_name", "unknown")
    if not bucket_name:
        yield checks.Warning(
            f"{storage.entry}: The option bucket_name (setting "
            f"AWS_STORAGE_BUCKET_NAME) is {bucket_name!r}.",
            hint="Set it to the name of the bucket.",
            id="collectfast_storage.W007",
        )
    signs = known.get("querystring_auth") and not known.get("custom_domain", "unknown")
    if signs and issubclass(storage.backend, ManifestFilesMixin):
        yield checks.Warning(
            f"{storage.entry} is a manifest storage with querystring_auth="
            f"{known['querystring_auth']!r}, so it writes signed URLs into CSS files. "
            "They expire and differ in each deploy.",
            hint="Set querystring_auth to False.",
            id="collectfast_storage.W004",
        )


def _check_file_overwrite(storage: Configured) -> Iterator[checks.CheckMessage]:
    overwrites = storage.known.get("file_overwrite", True)
    if storage.alias == "staticfiles" and storage.is_active and not overwrites:
        yield checks.Warning(
            f"{storage.entry} has file_overwrite={overwrites!r}. If a program saves a "
            "file under an existing name, the file is uploaded under another name, "
            "even if it is unchanged. Without the permission s3:ListBucket, "
            "collectstatic fails at the first new file.",
            hint="Set file_overwrite to True.",
            id="collectfast_storage.W005",
        )


def _check_cache(storage: Configured) -> Iterator[checks.CheckMessage]:
    cache = storage.known.get("collectfast_cache")
    trusts = storage.is_active and storage.known.get("collectfast_preload") is False
    backend = settings.CACHES.get(cache, {}).get("BACKEND", "")
    if trusts and backend.removeprefix("django.core.cache.backends.") in _LOCAL_CACHES:
        yield checks.Warning(
            f"{storage.entry} has collectfast_preload=False, but the cache {cache!r} "
            "does not outlive the process, so each run sends a HEAD request per file.",
            hint="Set collectfast_preload to True, or collectfast_cache to the alias "
            "of a persistent cache.",
            id="collectfast_storage.W002",
        )


def _check_location(storage: Configured) -> Iterator[checks.CheckMessage]:
    known, bucket_name = storage.known, storage.known.get("bucket_name")
    lists = storage.is_active and known.get("collectfast_preload") is True
    is_known = bucket_name and {"endpoint_url", "location"} <= known.keys()
    if storage.alias != "staticfiles" or not (lists and is_known):
        return
    folder = f"{known['location'].rstrip('/')}/".lstrip("/")  # empty: the whole bucket
    for alias, _, other, _ in _configured_storages(S3Storage):
        bucket = other.get("bucket_name"), other.get("endpoint_url", "unknown")
        is_same_bucket = bucket == (bucket_name, known["endpoint_url"])
        is_below = f"{other.get('location', '')}/".startswith(folder)
        if alias != storage.alias and is_same_bucket and is_below:
            yield checks.Warning(
                f"STORAGES['staticfiles'] and STORAGES[{alias!r}] share bucket "
                f"{bucket_name!r}, and the latter stores files below the location of "
                "the former. Each deploy lists these files, and --clear is refused.",
                hint="Give STORAGES['staticfiles'] a location of its own.",
                id="collectfast_storage.W003",
            )


def _check_immutable(storage: Configured) -> Iterator[checks.CheckMessage]:
    """Check the static files only, because other files may have unique names."""
    known = storage.known
    value = known.get("object_parameters", {}).get("CacheControl", "")
    is_hashed = issubclass(storage.backend, ManifestFilesMixin) and (
        known.get("collectfast_only_hashed", "unknown")
        and not known.get("collectfast_keep_originals")
    )
    is_static = storage.alias == "staticfiles" and storage.is_active
    if is_static and not is_hashed and "immutable" in value.lower():
        yield checks.Warning(
            f"{storage.entry} has the CacheControl {value!r} in object_parameters, "
            "also for files under plain names. Browsers do not load such a file again "
            "after it has changed.",
            hint="Use a manifest storage, and move CacheControl to "
            "collectfast_hashed_parameters.",
            id="collectfast_storage.W008",
        )


def _check_hashed_names(storage: Configured) -> Iterator[checks.CheckMessage]:
    is_without = storage.is_active and not issubclass(
        storage.backend, ManifestFilesMixin
    )
    for field in ("only_hashed", "hashed_parameters"):
        name = f"collectfast_{field}"
        value = storage.known.get(name)
        # A setting applies to other storages than that of static files too.
        is_own = storage.alias == "staticfiles" or value != Options.defaults()[name]
        if is_without and value and is_own:
            yield checks.Warning(
                f"{storage.entry} has {name}={value!r}, which has no effect, because "
                "it is not a manifest storage.",
                hint=f"Remove {name}, or use a manifest storage.",
                id="collectfast_storage.W009",
            )
