"""Cache backends that record whether anything uses them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from django.core.cache.backends.base import BaseCache


class WatchedCache(BaseCache):
    """A cache backend that records the name of every operation."""

    operations: ClassVar[list[str]] = []

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)

    def react(self) -> None:
        """React to an operation; subclasses fail or wait here."""


class FailingCache(WatchedCache):
    """A cache that cannot reach its server."""

    def react(self) -> None:
        raise ConnectionError("the cache server does not answer")


class SlowCache(WatchedCache):
    """A cache with operations that take so long that a test notices them."""

    def react(self) -> None:
        time.sleep(0.3)


def _operation(name: str, result: object) -> Callable[..., object]:
    def operation(self: WatchedCache, *args: object, **kwargs: object) -> object:
        self.operations.append(name)
        self.react()
        return result() if callable(result) else result

    return operation


for _name, _result in {
    "add": True,
    "get": None,
    "set": None,
    "touch": False,
    "delete": False,
    "clear": None,
    "has_key": False,
    "incr": 1,
    "get_or_set": None,
    "get_many": dict,
    "set_many": list,
    "delete_many": None,
}.items():
    setattr(WatchedCache, _name, _operation(_name, _result))


def caches_of(backend: type[BaseCache]) -> dict[str, Any]:
    """Return the setting CACHES that has `backend` as its default."""
    return {"default": {"BACKEND": f"{__name__}.{backend.__name__}", "LOCATION": "x"}}
