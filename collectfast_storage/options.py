"""The options: their names, their defaults, and what they may be."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

MAX_THREADS = 1000

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one storage, as `OPTIONS` in ``STORAGES`` and as settings.

    The option ``collectfast_cache`` is the setting ``COLLECTFAST_CACHE``, and so on.
    """

    enabled: bool = True
    cache: str = "default"
    cache_timeout: int | None = None
    preload: bool = True
    threads: int = 64
    ignore_etag: bool = False

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return each option's name with its setting's value, else its default."""
        return {
            f"collectfast_{field.name}": getattr(
                settings, f"COLLECTFAST_{field.name.upper()}", field.default
            )
            for field in fields(cls)
        }

    @classmethod
    def of(cls, storage: object) -> Options:
        """Read and validate the options that `storage` carries as attributes.

        Raises `ImproperlyConfigured`, naming option, value and remedy.
        """
        values = {
            field.name: getattr(storage, f"collectfast_{field.name}")
            for field in fields(cls)
        }
        for name in ("enabled", "preload", "ignore_etag"):
            _require(
                name, values[name], isinstance(values[name], bool), "True or False"
            )
        _require_cache(values["cache"])
        _require_count("cache_timeout", values["cache_timeout"], "seconds", none=True)
        _require_count("threads", values["threads"], "requests", most=MAX_THREADS)
        values["ignore_etag"] |= _environment("COLLECTFAST_IGNORE_ETAG")
        return cls(**values)


def _require(name: str, value: object, valid: bool, remedy: str) -> None:
    if not valid:
        raise ImproperlyConfigured(
            f"The option collectfast_{name} (setting COLLECTFAST_{name.upper()}) "
            f"is {value!r}. Set it to {remedy}."
        )


def _require_cache(alias: object) -> None:
    known = ", ".join(repr(known) for known in settings.CACHES)
    valid = isinstance(alias, str) and alias in settings.CACHES
    _require("cache", alias, valid, f"an alias that CACHES has: {known}")


def _require_count(
    name: str, value: object, unit: str, *, most: int | None = None, none: bool = False
) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    valid = whole and value >= 0 and (most is None or value <= most)  # type: ignore[operator]
    remedy = f"a whole number of {unit}, 0 " + (f"to {most}" if most else "or more")
    if none:
        valid, remedy = valid or value is None, f"None or {remedy}"
    _require(name, value, valid, remedy)


def _environment(name: str) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value in _TRUE | _FALSE:
        return value in _TRUE
    raise ImproperlyConfigured(
        f"The environment variable {name} is {value!r}. Set it to 1 or 0."
    )
