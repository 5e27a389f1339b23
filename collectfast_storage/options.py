"""The options: their names, their defaults, and what they may be."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

_MOST = 1000  # threads
_LONGEST = 86_400  # seconds
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Options:
    """The options: ``collectfast_cache``, or the setting ``COLLECTFAST_CACHE``."""

    enabled: bool = True
    cache: str = "default"
    cache_timeout: int | None = None
    preload: bool = True
    threads: int = 64
    ignore_etag: bool = False
    retry_timeout: float = 60

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return each option's name with its setting's value, else its default."""
        names = {f"collectfast_{field.name}": field.default for field in fields(cls)}
        return {n: getattr(settings, n.upper(), value) for n, value in names.items()}

    @classmethod
    def of(cls, storage: object) -> Options:
        """Read the options of `storage`; `ImproperlyConfigured` says what to set."""
        names = [field.name for field in fields(cls)]
        values = {name: getattr(storage, f"collectfast_{name}") for name in names}
        for name in ("enabled", "preload", "ignore_etag"):
            _require(name, values, isinstance(values[name], bool), "True or False")
        known = ", ".join(map(repr, settings.CACHES))
        valid = isinstance(values["cache"], str) and values["cache"] in settings.CACHES
        _require("cache", values, valid, f"an alias in CACHES: {known}")
        valid = values["cache_timeout"] is None or _is_count(values["cache_timeout"])
        remedy = "None or an integer of at least 0 (seconds)"
        _require("cache_timeout", values, valid, remedy)
        valid = _is_count(values["threads"]) and values["threads"] <= _MOST
        _require("threads", values, valid, f"an integer from 0 to {_MOST}")
        seconds = values["retry_timeout"]
        is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        valid = is_number and 0 <= seconds <= _LONGEST
        remedy = f"a number from 0 to {_LONGEST} (seconds)"
        _require("retry_timeout", values, valid, remedy)
        variable = os.environ.get("COLLECTFAST_IGNORE_ETAG", "").strip().lower()
        if variable not in _TRUE | _FALSE:
            name = "environment variable COLLECTFAST_IGNORE_ETAG"
            raise misconfigured(name, variable, "1 or 0")
        values["ignore_etag"] |= variable in _TRUE
        return cls(**values)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require(name: str, values: dict[str, Any], valid: bool, remedy: str) -> None:
    if not valid:
        option = f"option collectfast_{name} (setting COLLECTFAST_{name.upper()})"
        raise misconfigured(option, values[name], remedy)


def misconfigured(option: str, value: object, remedy: str) -> ImproperlyConfigured:
    """Return the error of an `option` whose `value` cannot be used."""
    return ImproperlyConfigured(f"The {option} is {value!r}. Set it to {remedy}.")
