"""What ``manage.py check`` says of a site's settings.

No storage is built, as that reads manifests: what only it could tell, no check says.
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

# Django's that are seen by no other process, or keep nothing.
_LOCAL_CACHES = ("dummy.DummyCache", "locmem.LocMemCache")
# What an option comes to is not known where a site's own class has one of these.
_METHODS = {
    "bucket_name": ("bucket",),
    "endpoint_url": ("connection",),
    "file_overwrite": ("exists", "get_available_name", "save"),
    "location": ("_normalize_name",),
    "querystring_auth": ("url",),
}


class Configured(NamedTuple):
    """An entry of ``STORAGES``, with those of its options that are known."""

    alias: str
    backend: type[Any]
    known: dict[str, Any]
    is_in_force: bool  # It is known that it is not left to django-storages.


def check_storages(app_configs: object, **kwargs: Any) -> list[checks.CheckMessage]:
    """Check each storage of this project that ``STORAGES`` names."""
    messages: list[checks.CheckMessage] = []
    # Looking at what is a site's own may raise anything, and must not block a command.
    # Where it is used, Django says what is wrong.
    with suppress(Exception):
        ours = [*_configured(CollectfastMixin)]
        messages += _predecessor() if ours else ()
        for storage in ours:
            for check in (_class, _options, _ways, _shared):
                with suppress(Exception):
                    messages += check(storage)
    return messages


def _configured(base: type[Any]) -> Iterator[Configured]:
    for alias, entry in settings.STORAGES.items():
        with suppress(Exception):
            backend = import_string(entry["BACKEND"])
            # Of what a function returns, nothing is known.
            if isinstance(backend, type) and issubclass(backend, base):
                known = _known(backend, entry.get("OPTIONS", {}))
                is_enabled = known.get("collectfast_enabled") is True
                is_in_force = is_enabled and not overridden(backend, "bucket")
                yield Configured(alias, backend, known, is_in_force)


def _known(backend: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    # With one of these, a class may give its storages any value.
    setters = ("__init__", "__getattr__", "__getattribute__", "__setattr__")
    if overridden(backend, *setters):
        return {}
    known = {}
    # An option goes before a class's own value, and that before a default. What a
    # property makes of either is not known.
    for name, default in object.__new__(backend).get_default_settings().items():
        own = getattr_static(backend, name, default)
        is_property = hasattr(type(own), "__get__")
        if not is_property and not overridden(backend, *_METHODS.get(name, ())):
            known[name] = options.get(name, own)
    return known


def _predecessor() -> Iterator[checks.CheckMessage]:
    app = get_commands().get("collectstatic")
    if app in ("collectfast", "collectfasta"):
        yield checks.Warning(
            f"{app!r} is in INSTALLED_APPS, so its collectstatic command replaces "
            "Django's. This storage needs Django's command.",
            hint=f"Remove {app!r} from INSTALLED_APPS.",
            id="collectfast_storage.W001",
        )


def _class(storage: Configured) -> Iterator[checks.CheckMessage]:
    name, order = storage.backend.__qualname__, storage.backend.__mro__
    if order.index(CollectfastMixin) > order.index(S3Storage):
        yield checks.Error(
            f"{name} lists CollectfastMixin after an S3 storage, so the mixin has no "
            "effect.",
            hint="Make CollectfastMixin the first base class.",
            id="collectfast_storage.E002",
        )
    if storage.is_in_force and not hasattr(storage.backend.post_process, "has_barrier"):
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
            f"{name} defines bucket, so STORAGES[{storage.alias!r}] behaves as a plain "
            "django-storages class and uploads unchanged files too.",
            hint=f"Remove bucket from {name} and set the option bucket_name, or set "
            "collectfast_enabled to False.",
            id="collectfast_storage.W006",
        )


def _options(storage: Configured) -> Iterator[checks.CheckMessage]:
    entry, known = f"STORAGES[{storage.alias!r}]", storage.known
    options = {f"collectfast_{field.name}": field.default for field in fields(Options)}
    try:
        Options.of(SimpleNamespace(**options | known))
    except ImproperlyConfigured as error:
        message, _, remedy = str(error).rpartition(". Set it to ")
        hint = f"Set it to {remedy}"
        text = f"{entry}: {message}."
        yield checks.Error(text, hint=hint, id="collectfast_storage.E001")
    bucket, setting = known.get("bucket_name", "?"), "AWS_STORAGE_BUCKET_NAME"
    if not bucket:
        yield checks.Warning(
            f"{entry}: The option bucket_name (setting {setting}) is {bucket!r}.",
            hint="Set it to the name of the bucket.",
            id="collectfast_storage.W007",
        )
    auth, is_plain = known.get("querystring_auth"), not known.get("custom_domain", "?")
    if auth and is_plain and issubclass(storage.backend, ManifestFilesMixin):
        yield checks.Warning(
            f"{entry} is a manifest storage with querystring_auth={auth!r}, so it "
            "writes signed URLs into CSS files. They expire and differ in each deploy.",
            hint="Set querystring_auth to False.",
            id="collectfast_storage.W004",
        )


def _ways(storage: Configured) -> Iterator[checks.CheckMessage]:
    entry, known = f"STORAGES[{storage.alias!r}]", storage.known
    overwrites = known.get("file_overwrite", True)
    if storage.alias == "staticfiles" and storage.is_in_force and not overwrites:
        yield checks.Warning(
            f"{entry} has file_overwrite={overwrites!r}. If a program saves a file "
            "under an existing name, the file is uploaded under another name, even if "
            "it is unchanged. Without the permission s3:ListBucket, collectstatic "
            "fails at the first new file.",
            hint="Set file_overwrite to True.",
            id="collectfast_storage.W005",
        )
    cache = known.get("collectfast_cache")
    trusts = storage.is_in_force and known.get("collectfast_preload") is False
    backend = settings.CACHES.get(cache, {}).get("BACKEND", "")
    if trusts and backend.removeprefix("django.core.cache.backends.") in _LOCAL_CACHES:
        yield checks.Warning(
            f"{entry} has collectfast_preload=False, but the cache {cache!r} does not "
            "outlive the process, so each run sends one HEAD request per file.",
            hint="Set collectfast_preload to True, or collectfast_cache to the alias "
            "of a persistent cache.",
            id="collectfast_storage.W002",
        )


def _shared(storage: Configured) -> Iterator[checks.CheckMessage]:
    names = ("bucket_name", "endpoint_url", "location")
    place = [storage.known[name] for name in names if name in storage.known]
    lists = storage.is_in_force and storage.known.get("collectfast_preload") is True
    is_known = storage.alias == "staticfiles" and len(place) == len(names) and place[0]
    for alias, _, known, _ in _configured(S3Storage) if is_known and lists else ():
        folder = f"{place[2].rstrip('/')}/".lstrip("/")  # empty for the whole bucket
        is_below = f"{known.get('location', '')}/".startswith(folder)
        there = [known.get("bucket_name"), known.get("endpoint_url", "unknown")]
        if alias != storage.alias and there == place[:2] and is_below:
            yield checks.Warning(
                f"STORAGES['staticfiles'] and STORAGES[{alias!r}] share bucket "
                f"{place[0]!r}, and the latter stores files below the location of the "
                "former. Each deploy lists these files, and --clear is refused.",
                hint="Give STORAGES['staticfiles'] a location of its own.",
                id="collectfast_storage.W003",
            )
