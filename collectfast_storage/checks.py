"""What ``manage.py check`` says of a site's settings.

https://docs.djangoproject.com/en/stable/topics/checks/
No storage is built for them: that of a manifest would be read from its bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from django.conf import settings
from django.contrib.staticfiles.storage import ManifestFilesMixin
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string
from storages.backends.s3 import S3Storage

from collectfast_storage.options import Options
from collectfast_storage.storage import CollectfastMixin

# Seen by no other process, or keeping nothing.
_LOCAL_CACHES = (
    "django.core.cache.backends.dummy.DummyCache",
    "django.core.cache.backends.locmem.LocMemCache",
)
_PREDECESSORS = ("collectfast", "collectfasta")


@dataclass(frozen=True, slots=True)
class Configured:
    """An entry of ``STORAGES``: its alias, its class, and the options it will have."""

    alias: str
    backend: type[Any]
    options: SimpleNamespace

    @property
    def place(self) -> tuple[str, str]:
        """The bucket and the location in it."""
        return self.options.bucket_name, str(self.options.location).strip("/")


def check_storages(app_configs: object, **kwargs: Any) -> list[CheckMessage]:
    """Check each storage of this project that ``STORAGES`` names."""
    configured = list(_configured())
    messages = list(_predecessors()) if _ours(configured) else []
    for storage in _ours(configured):
        for check in _CHECKS:
            messages += check(storage, configured)
    return messages


def _configured() -> Iterator[Configured]:
    for alias, entry in settings.STORAGES.items():
        try:
            backend = import_string(entry["BACKEND"])
        except ImportError:
            continue  # Django says so, where it is used.
        if issubclass(backend, S3Storage):
            yield Configured(alias, backend, _options(backend, entry))


def _options(backend: type[Any], entry: dict[str, Any]) -> SimpleNamespace:
    # As django-storages' `BaseStorage.__init__` puts them together.
    defaults = Options.defaults()
    defaults |= object.__new__(backend).get_default_settings()
    own = {name: getattr(backend, name) for name in defaults if hasattr(backend, name)}
    return SimpleNamespace(**{**defaults, **own, **entry.get("OPTIONS", {})})


def _ours(configured: Sequence[Configured]) -> list[Configured]:
    return [each for each in configured if issubclass(each.backend, CollectfastMixin)]


def _predecessors() -> Iterator[CheckMessage]:
    for app in _PREDECESSORS:
        if app in settings.INSTALLED_APPS:
            yield checks.Warning(
                f"{app!r} is in INSTALLED_APPS: its collectstatic replaces Django's, "
                "which this storage is made for.",
                hint=f"Remove {app!r} from INSTALLED_APPS.",
                id="collectfast_storage.W001",
            )


def _invalid_option(
    storage: Configured, configured: Sequence[Configured]
) -> Iterator[CheckMessage]:
    try:
        Options.of(storage.options)
    except ImproperlyConfigured as error:
        message, _, hint = str(error).partition(". ")
        yield Error(
            f"STORAGES[{storage.alias!r}]: {message}.",
            hint=hint,
            id="collectfast_storage.E001",
        )


def _behind_the_base(
    storage: Configured, configured: Sequence[Configured]
) -> Iterator[CheckMessage]:
    order = storage.backend.__mro__
    if order.index(CollectfastMixin) > order.index(S3Storage):
        yield Error(
            f"{storage.backend.__qualname__} names CollectfastMixin behind an S3 "
            "storage, whose methods hide those of the mixin.",
            hint="Put CollectfastMixin first among its bases.",
            id="collectfast_storage.E002",
        )


def _no_barrier(
    storage: Configured, configured: Sequence[Configured]
) -> Iterator[CheckMessage]:
    if not hasattr(storage.backend.post_process, "has_barrier"):
        yield Error(
            f"{storage.backend.__qualname__}.post_process was replaced after the class "
            "was made: collectstatic would end before all uploads have arrived.",
            hint="Define post_process in the class, or in a subclass of it.",
            id="collectfast_storage.E003",
        )


def _cache_of_one_process(
    storage: Configured, configured: Sequence[Configured]
) -> Iterator[CheckMessage]:
    alias = storage.options.collectfast_cache
    backend = settings.CACHES.get(alias, {}).get("BACKEND")
    if storage.options.collectfast_preload is False and backend in _LOCAL_CACHES:
        yield checks.Warning(
            f"STORAGES[{storage.alias!r}] has collectfast_preload=False, and the "
            f"cache {alias!r} forgets at the end of each process: each deploy asks the "
            "bucket for every file, one by one.",
            hint="Set collectfast_preload to True, or collectfast_cache to the alias "
            "of a cache that lasts.",
            id="collectfast_storage.W002",
        )


def _no_location(
    storage: Configured, configured: Sequence[Configured]
) -> Iterator[CheckMessage]:
    bucket, location = storage.place
    for other in configured:
        if other is not storage and not location and other.place[0] == bucket:
            yield checks.Warning(
                f"STORAGES[{storage.alias!r}] and STORAGES[{other.alias!r}] share the "
                f"bucket {bucket!r}, and the former has no location: a deploy lists "
                "what the latter stores, and --clear is refused.",
                hint=f"Set location in the OPTIONS of STORAGES[{storage.alias!r}].",
                id="collectfast_storage.W003",
            )


def _signed_urls(
    storage: Configured, configured: Sequence[Configured]
) -> Iterator[CheckMessage]:
    if storage.options.querystring_auth and issubclass(
        storage.backend, ManifestFilesMixin
    ):
        yield checks.Warning(
            f"STORAGES[{storage.alias!r}] is a manifest storage with "
            "querystring_auth=True: the signed URLs that it writes into CSS files "
            "expire, and differ in each deploy.",
            hint="Set querystring_auth to False.",
            id="collectfast_storage.W004",
        )


def _no_overwriting(
    storage: Configured, configured: Sequence[Configured]
) -> Iterator[CheckMessage]:
    if storage.alias == "staticfiles" and not storage.options.file_overwrite:
        yield checks.Warning(
            f"STORAGES[{storage.alias!r}] has file_overwrite=False: a changed file "
            "gets another name, which no page knows.",
            hint="Set file_overwrite to True.",
            id="collectfast_storage.W005",
        )


_CHECKS: list[Callable[[Configured, Sequence[Configured]], Iterator[CheckMessage]]] = [
    _invalid_option,
    _behind_the_base,
    _no_barrier,
    _cache_of_one_process,
    _no_location,
    _signed_urls,
    _no_overwriting,
]
