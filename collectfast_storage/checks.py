"""What ``manage.py check`` says of a site's settings.

https://docs.djangoproject.com/en/stable/topics/checks/
No storage is built for them: that of a manifest would be read from its bucket. Where
only a storage that was built could tell a value, a check says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from django.apps import apps
from django.conf import STATICFILES_STORAGE_ALIAS as STATIC
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
_DJANGO = "django.contrib.staticfiles"
_PREDECESSORS = ("collectfast", "collectfasta")
# With one of these, a class may give its storages any value.
_HOOKS = ("__init__", "__getattr__", "__getattribute__", "__setattr__")


@dataclass(frozen=True, slots=True)
class Configured:
    """An entry of ``STORAGES``: its alias, its class, and those options that are known.

    What is not `known`, only a storage that was built could tell.
    """

    alias: str
    backend: type[Any]
    known: dict[str, Any]

    @property
    def is_behind(self) -> bool:
        """Whether the methods of an S3 storage hide those of the mixin."""
        order = self.backend.__mro__
        return order.index(CollectfastMixin) > order.index(S3Storage)

    @property
    def is_in_force(self) -> bool:
        """Whether it is known that this is not left to django-storages."""
        is_left = self.is_behind or _own(self.backend, "bucket")
        return self.known.get("collectfast_enabled") is True and not is_left

    @property
    def place(self) -> list[Any] | None:
        """What tells its bucket from all others, if that is known."""
        names = ("bucket_name", "endpoint_url", "session_profile")
        is_known = self.known.get("bucket_name") and self.known.keys() >= {*names}
        is_own = not is_known or _own(self.backend, "bucket")
        return None if is_own else [self.known[name] for name in names]


def check_storages(app_configs: object, **kwargs: Any) -> list[CheckMessage]:
    """Check each storage of this project that ``STORAGES`` names."""
    configured = _without_exception(_configured())
    ours = [each for each in configured if issubclass(each.backend, CollectfastMixin)]
    messages = _without_exception(_predecessors()) if ours else []
    for storage in ours:
        for check in _CHECKS:
            messages += _without_exception(check(storage))
    return messages


def _without_exception(found: Iterator[Any]) -> list[Any]:
    # Looking at what is a site's own may raise anything, and must not block a command.
    # Where it is used, Django says what is wrong.
    try:
        return list(found)
    except Exception:
        return []


def _configured() -> Iterator[Configured]:
    for alias, entry in settings.STORAGES.items():
        yield from _without_exception(_entry(alias, entry))


def _entry(alias: str, entry: dict[str, Any]) -> Iterator[Configured]:
    backend = import_string(entry["BACKEND"])
    # Of what a function returns, nothing is known.
    if isinstance(backend, type) and issubclass(backend, S3Storage):
        yield Configured(alias, backend, _known(backend, entry.get("OPTIONS", {})))


def _known(backend: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    if _own(backend, *_HOOKS):
        return {}
    attributes: dict[str, Any] = {}
    for each in reversed(backend.__mro__):
        attributes |= vars(each)

    def has(name: str, method: str) -> bool:
        return hasattr(type(attributes.get(name)), method)

    try:
        defaults = dict(object.__new__(backend).get_default_settings())
    except Exception:  # It may need what only a storage that was built has.
        defaults = {}
    # As django-storages' `BaseStorage.__init__` has it, a class's own value goes before
    # a default, and an option before either. What a property returns is not known.
    values = (defaults | attributes).items()
    return {name: value for name, value in values if not has(name, "__get__")} | {
        name: value for name, value in options.items() if not has(name, "__set__")
    }


def _own(backend: type[Any], *names: str) -> list[type[Any]]:
    # The classes of a site's own that have one of `names`, as `run.overridden` looks
    # for them in a storage; `object` has a few of them as well.
    libraries = ("django.", "storages.", "collectfast_storage.")
    order = [each for each in backend.__mro__ if each is not object]
    own = [each for each in order if not each.__module__.startswith(libraries)]
    return [each for each in own if {*names} & vars(each).keys()]


def _predecessors() -> Iterator[CheckMessage]:
    # Of commands that have one name, the first app's is the one that runs.
    names = [*(each.name for each in apps.get_app_configs()), _DJANGO]
    for app in _PREDECESSORS:
        if app in names[: names.index(_DJANGO)]:
            yield checks.Warning(
                f"{app!r} is in INSTALLED_APPS: its collectstatic replaces Django's, "
                "which this storage is made for.",
                hint=f"Remove {app!r} from INSTALLED_APPS.",
                id="collectfast_storage.W001",
            )


def _invalid_option(storage: Configured) -> Iterator[CheckMessage]:
    options = {f"collectfast_{field.name}": field.default for field in fields(Options)}
    known = {name: storage.known.get(name, options[name]) for name in options}
    try:
        Options.of(SimpleNamespace(**known))
    except ImproperlyConfigured as error:
        message, _, remedy = str(error).rpartition(". Set it to ")
        yield Error(
            f"STORAGES[{storage.alias!r}]: {message}.",
            hint=f"Set it to {remedy}",
            id="collectfast_storage.E001",
        )


def _behind_the_base(storage: Configured) -> Iterator[CheckMessage]:
    if storage.is_behind:
        yield Error(
            f"{storage.backend.__qualname__} names CollectfastMixin behind an S3 "
            "storage, whose methods hide those of the mixin.",
            hint="Put CollectfastMixin first among its bases.",
            id="collectfast_storage.E002",
        )


def _no_barrier(storage: Configured) -> Iterator[CheckMessage]:
    replaced = not hasattr(storage.backend.post_process, "has_barrier")
    if replaced and storage.is_in_force:
        yield Error(
            f"{storage.backend.__qualname__}.post_process was replaced after the class "
            "was made: collectstatic would end before all uploads have arrived.",
            hint="Define post_process in the class, or in a subclass of it.",
            id="collectfast_storage.E003",
        )


def _no_bucket(storage: Configured) -> Iterator[CheckMessage]:
    bucket = storage.known.get("bucket_name", "unknown")
    if not bucket and not _own(storage.backend, "bucket"):
        yield Error(
            f"STORAGES[{storage.alias!r}]: The option bucket_name (setting "
            f"AWS_STORAGE_BUCKET_NAME) is {bucket!r}.",
            hint="Set it to the name of the bucket.",
            id="collectfast_storage.E004",
        )


def _cache_of_one_process(storage: Configured) -> Iterator[CheckMessage]:
    trusts = storage.known.get("collectfast_preload") is False
    alias = storage.known.get("collectfast_cache")
    backend = settings.CACHES.get(alias, {}).get("BACKEND")
    if storage.is_in_force and trusts and backend in _LOCAL_CACHES:
        yield checks.Warning(
            f"STORAGES[{storage.alias!r}] has collectfast_preload=False, and the "
            f"cache {alias!r} forgets at the end of each process: each run asks the "
            "bucket for every file, one by one.",
            hint="Set collectfast_preload to True, or collectfast_cache to the alias "
            "of a cache that lasts.",
            id="collectfast_storage.W002",
        )


def _no_location(storage: Configured) -> Iterator[CheckMessage]:
    lists = storage.is_in_force and storage.known.get("collectfast_preload") is True
    # A class may put its files somewhere without a location, too.
    is_free = _own(storage.backend, "_normalize_name")
    if storage.alias != STATIC or not lists or is_free or not storage.place:
        return
    for other in _configured() if storage.known.get("location") == "" else ():
        if other.alias != STATIC and other.place == storage.place:
            yield checks.Warning(
                f"STORAGES[{storage.alias!r}] and STORAGES[{other.alias!r}] share the "
                f"bucket {storage.place[0]!r}, and the former has no location: a "
                "deploy lists what the latter stores, and --clear is refused.",
                hint=f"Set location in the OPTIONS of STORAGES[{storage.alias!r}].",
                id="collectfast_storage.W003",
            )


def _signed_urls(storage: Configured) -> Iterator[CheckMessage]:
    known, auth = storage.known, storage.known.get("querystring_auth")
    # Of a domain of a site's own, only CloudFront signs URLs.
    signs = not known.get("custom_domain", "unknown") or known.get("cloudfront_key")
    is_manifest = issubclass(storage.backend, ManifestFilesMixin)
    if auth and signs and is_manifest and not _own(storage.backend, "url"):
        yield checks.Warning(
            f"STORAGES[{storage.alias!r}] is a manifest storage with querystring_auth="
            f"{auth!r}: the signed URLs that it writes into CSS files expire, and "
            "differ in each deploy.",
            hint="Set querystring_auth to False.",
            id="collectfast_storage.W004",
        )


def _no_overwriting(storage: Configured) -> Iterator[CheckMessage]:
    overwrites = storage.known.get("file_overwrite", True)
    is_static = storage.alias == STATIC and storage.is_in_force
    # A class may choose names in a way of its own.
    is_free = _own(storage.backend, "exists", "get_available_name", "save")
    if is_static and not overwrites and not is_free:
        yield checks.Warning(
            f"STORAGES[{storage.alias!r}] has file_overwrite={overwrites!r}: a "
            "program's save() of a name that is taken uploads the file under another "
            "name, changed or not, and without the permission s3:ListBucket "
            "collectstatic fails at a new file.",
            hint="Set file_overwrite to True.",
            id="collectfast_storage.W005",
        )


def _bucket_of_its_own(storage: Configured) -> Iterator[CheckMessage]:
    is_off = storage.known.get("collectfast_enabled") is False
    for own in () if is_off else _own(storage.backend, "bucket")[:1]:
        yield checks.Warning(
            f"{own.__qualname__} defines bucket: STORAGES[{storage.alias!r}] is left "
            "to django-storages altogether, and nothing is skipped.",
            hint=f"Remove bucket from {own.__qualname__} and set the option "
            "bucket_name, or set collectfast_enabled to False.",
            id="collectfast_storage.W006",
        )


_CHECKS: list[Callable[[Configured], Iterator[CheckMessage]]] = [
    _invalid_option,
    _behind_the_base,
    _no_barrier,
    _no_bucket,
    _cache_of_one_process,
    _no_location,
    _signed_urls,
    _no_overwriting,
    _bucket_of_its_own,
]
