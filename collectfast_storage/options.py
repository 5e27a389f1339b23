"""The options: names, defaults and valid values."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

_MOST_THREADS = 1000
_LONGEST_RETRY = 86_400  # seconds
_MOST_RELEASES = 1000
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Options:
    """The values of the options of one storage.

    `cache` is the option ``collectfast_cache``, or the setting ``COLLECTFAST_CACHE``.
    """

    enabled: bool = True
    cache: str = "default"
    cache_timeout: int | None = None
    preload: bool = True
    threads: int = 64
    ignore_etag: bool = False
    retry_timeout: float = 60
    only_hashed: bool = False
    keep_originals: Sequence[str] = ()  # patterns of names, for `only_hashed`
    hashed_parameters: Mapping[str, Any] | None = None
    keep_releases: int = 1

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the value of each option's setting, or else its default."""
        names = {f"collectfast_{field.name}": field.default for field in fields(cls)}
        return {n: getattr(settings, n.upper(), value) for n, value in names.items()}

    @classmethod
    def of(cls, storage: object) -> Options:
        """Read the options of `storage`; raise ImproperlyConfigured if one is bad."""
        values = {
            f.name: getattr(storage, f"collectfast_{f.name}") for f in fields(cls)
        }
        for name, is_valid, remedy in _validated(values):
            if not is_valid:
                option = (
                    f"option collectfast_{name} (setting COLLECTFAST_{name.upper()})"
                )
                raise misconfigured(option, values[name], remedy)
        variable = os.environ.get("COLLECTFAST_IGNORE_ETAG", "").strip().lower()
        if variable not in _TRUE | _FALSE:
            name = "environment variable COLLECTFAST_IGNORE_ETAG"
            raise misconfigured(name, variable, "1 or 0")
        values["ignore_etag"] |= variable in _TRUE
        return cls(**values)


def _validated(values: dict[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """Yield each option's name, whether its value is valid, and which values are."""
    for name in ("enabled", "preload", "ignore_etag", "only_hashed"):
        yield name, isinstance(values[name], bool), "True or False"
    cache, timeout = values["cache"], values["cache_timeout"]
    is_alias = isinstance(cache, str) and cache in settings.CACHES
    yield (
        "cache",
        is_alias,
        f"an alias in CACHES: {', '.join(map(repr, settings.CACHES))}",
    )
    is_timeout = timeout is None or _is_number(timeout, int)
    yield "cache_timeout", is_timeout, "None or an integer of at least 0 (seconds)"
    is_valid = _is_number(values["threads"], int, most=_MOST_THREADS)
    yield "threads", is_valid, f"an integer from 0 to {_MOST_THREADS}"
    is_valid = _is_number(values["retry_timeout"], int, float, most=_LONGEST_RETRY)
    yield "retry_timeout", is_valid, f"a number from 0 to {_LONGEST_RETRY} (seconds)"
    patterns = values["keep_originals"]
    is_valid = isinstance(patterns, (list, tuple)) and all(
        isinstance(each, str) for each in patterns
    )
    yield "keep_originals", is_valid, "a list of patterns of file names"
    parameters = values["hashed_parameters"]
    is_valid = parameters is None or isinstance(parameters, Mapping)
    yield "hashed_parameters", is_valid, "a dict of the form of object_parameters"
    is_valid = _is_number(values["keep_releases"], int, least=1, most=_MOST_RELEASES)
    yield "keep_releases", is_valid, f"an integer from 1 to {_MOST_RELEASES}"


def _is_number(value: Any, *types: type, least: int = 0, most: float = inf) -> bool:
    is_number = isinstance(value, types) and not isinstance(value, bool)
    return is_number and least <= value <= most


def misconfigured(option: str, value: object, remedy: str) -> ImproperlyConfigured:
    """Return the error for an `option` with an invalid `value`."""
    return ImproperlyConfigured(f"The {option} is {value!r}. Set it to {remedy}.")
