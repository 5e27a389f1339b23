"""Whether what the cache remembers can be believed without a look at the bucket."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from functools import cached_property
from typing import Any

from django.core.cache import caches

from collectfast_storage.locks import ForkSafeLock

_LOCK = ForkSafeLock()
_UNKNOWN = ["?"]


class Journal:
    """The notes of runs that have begun to overwrite what the cache remembers.

    A process that is killed between an upload and the memory of it leaves the cache
    saying what is no longer so; then its note is left as well. Only who trusts the
    cache without asking the bucket has to look for it. A cache that fails is reported
    by `EtagCache`; here it goes for a run that did not end.
    """

    def __init__(self, alias: str, place: str) -> None:
        """Keep the notes on `place`, a bucket and a location, in the cache `alias`."""
        self._alias = alias
        digest = hashlib.sha256(place.encode()).hexdigest()[:32]
        self._name = f"collectfast_storage:journal:{digest}"
        self._own = uuid.uuid4().hex
        self._has_begun = False

    @property
    def is_open(self) -> bool:
        """Whether other runs had begun to overwrite, and not ended."""
        return bool(self._found)

    @property
    def is_known_open(self) -> bool:
        """Whether it `is_open`, as far as that was looked up."""
        return bool(self.__dict__.get("_found"))

    def begin(self) -> None:
        """Note that this run overwrites what is remembered; before it does so."""
        if not self._has_begun:
            self._has_begun = True
            self._found  # noqa: B018 (what was open before)
            self._attempt(self._add)

    def end(self, *, settles: bool) -> None:
        """Note that all is remembered; if it `settles`, also what others left open."""
        ended = {self._own, *self._found} if settles else {self._own}
        if self._has_begun or settles:
            self._attempt(lambda cache: self._remove(cache, ended))

    @cached_property
    def _found(self) -> list[str]:
        return self._attempt(self._notes)

    def _notes(self, cache: Any) -> list[str]:
        notes = cache.get(self._name, [])
        return notes if isinstance(notes, list) else _UNKNOWN

    def _add(self, cache: Any) -> list[str]:
        notes = [*self._notes(cache), self._own]
        cache.set(self._name, notes, None)
        return notes

    def _remove(self, cache: Any, ended: set[str]) -> list[str]:
        # What another run has written meanwhile is that run's to remove.
        left = [note for note in self._notes(cache) if note not in ended]
        if left:
            cache.set(self._name, left, None)
        else:
            cache.delete(self._name)
        return left

    def _attempt(self, ask: Callable[[Any], list[str]]) -> list[str]:
        try:
            with _LOCK:
                return ask(caches[self._alias])
        except Exception:  # Whatever a cache's client library raises.
            return _UNKNOWN
