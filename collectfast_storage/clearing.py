"""Decisions for ``--clear``: whether it may run, and which objects it keeps."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.staticfiles.storage import ManifestFilesMixin
from django.core.files.storage import Storage, storages
from django.utils.module_loading import import_string
from storages.backends.s3 import S3Storage

# Django's alias: https://docs.djangoproject.com/en/stable/ref/settings/#storages
_STATICFILES = "staticfiles"
# A hash of Django's own `file_hash`, before the suffixes of a name or at its end.
_HASH = r"\.[0-9a-f]{12}(\.[^/]*)?$"


class LiveRelease(NamedTuple):
    """The hashed names of the release that visitors see."""

    names: frozenset[str] = frozenset()
    unknown: str = ""  # why they are not known; then any hashed name may be of it


def reasons_not_to_clear(storage: Any, prefix: str) -> Iterator[str]:
    """Yield why objects below `prefix` may not all be static files of `storage`."""
    if not prefix:
        yield "these have no location"
    for alias in map(str, settings.STORAGES):
        if reason := _overlap(alias, storage, prefix):
            yield f"STORAGES[{alias!r}] {reason}"


def _overlap(alias: str, storage: Any, prefix: str) -> str:
    try:
        backend = import_string(settings.STORAGES[alias]["BACKEND"])
        is_storage = isinstance(backend, type) and issubclass(backend, Storage)
        if is_storage and not issubclass(backend, S3Storage):
            return ""
        other: Any = storages[alias]
        if other is storage or not isinstance(other, S3Storage):
            return ""
        key, bucket_name = str(other._normalize_name("")), other.bucket_name
    except Exception as error:  # What it stores, and where, is not known then.
        name = type(error).__name__
        return f"cannot be built ({name}), and may store below their location"
    # The endpoint is not compared: one storage may name it where another finds it in
    # the environment.
    is_below = bucket_name == storage.bucket_name and key.startswith(prefix)
    is_same = alias == _STATICFILES and key == prefix
    return "stores below their location" if is_below and not is_same else ""


def live_release(storage: Any) -> LiveRelease:
    """Read the published manifest of `storage` again, because it may have changed."""
    if not isinstance(storage, ManifestFilesMixin):
        return LiveRelease()
    default = ManifestFilesMixin.manifest_name
    if storage.manifest_name != default:
        return LiveRelease(unknown=f"manifest_name is not {default!r}")
    # Other storages may be on this machine only, and know other releases.
    if not isinstance(storage.manifest_storage, S3Storage):
        return LiveRelease(unknown="the manifest is kept in another storage")
    methods = (type(storage).read_manifest, type(storage).load_manifest)
    if any(not _is_djangos(method) for method in methods):
        return LiveRelease(unknown="a subclass reads the manifest in its own way")
    try:
        manifest: Any = storage.load_manifest()
        paths = manifest[0]
        names = frozenset(map(str, paths.values()))
    except (AttributeError, TypeError, ValueError):
        return LiveRelease(unknown="its manifest is damaged")
    return LiveRelease(names, "" if names else "there is no manifest")


def may_be_hashed(storage: Any, name: str) -> bool:
    """Return whether `name` may be a hashed name of an earlier release."""
    methods = [getattr(type(storage), each, None) for each in _HASHING]
    if any(method and not _is_djangos(method) for method in methods):
        return True  # A subclass's hashed names may look like any other.
    return re.search(_HASH, name) is not None


_HASHING = ("file_hash", "hashed_name")


def _is_djangos(method: Any) -> bool:
    return str(inspect.unwrap(method).__module__).startswith("django.")
