"""The verdict on one file: whether the bucket holds its content and headers."""

from __future__ import annotations

from collections.abc import Sequence, Set
from concurrent.futures import Executor

from collectfast_storage.cache import EtagCache
from collectfast_storage.content import Content
from collectfast_storage.etag import UNCERTAIN, Fingerprint, Remembered
from collectfast_storage.index import RemoteIndex


class Ledger:
    """What is known of each key: what the bucket holds, and what was sent to it."""

    def __init__(
        self, index: RemoteIndex, cache: EtagCache, *, trust: bool, ignore_etag: bool
    ) -> None:
        """Judge by `index` and `cache`.

        With `trust` a key that the cache remembers is taken to be as it was left;
        with `ignore_etag` nothing is ever held.
        """
        self._index = index
        self._cache = cache
        self._trust = trust
        self._ignore_etag = ignore_etag

    @property
    def lists(self) -> bool:
        """Whether `load` has anything to do."""
        return self._index.lists

    def load(self, executor: Executor, wanted: Sequence[str]) -> None:
        """Let the index list what is likely to hold the keys `wanted`, sorted."""
        self._index.load(executor, wanted)

    def remembers(self, key: str) -> bool:
        """Tell whether the cache knows `key`."""
        return self._cache.get(key) is not None

    def exists(self, key: str) -> bool:
        """Tell whether the bucket has an object `key`."""
        return self._remote(key, self._cache.get(key)) is not None

    def keys(self) -> Set[str]:
        """Return the keys that the bucket has."""
        return self._index.keys()

    def holds(self, key: str, content: Content) -> bool:
        """Tell whether the bucket has `content` as `key`, headers included."""
        remembered = self._cache.get(key)
        if self._ignore_etag or remembered == UNCERTAIN:
            return False
        remote = self._remote(key, remembered)
        if remote is None:
            return False
        if remembered is not None and remembered.etag == remote:
            return remembered.fingerprint == content.fingerprint
        if content.etag == remote:
            self._cache.remember(key, Remembered(content.fingerprint, remote))
            return True
        return False

    def arrived(self, key: str, fingerprint: Fingerprint, etag: str) -> None:
        """Note that `key` was uploaded, and got `etag`."""
        self._index.put(key, etag)
        self._cache.remember(key, Remembered(fingerprint, etag))

    def failed(self, key: str) -> None:
        """Note that an upload of `key` failed, and may have arrived all the same."""
        self._index.forget(key)
        self._cache.remember(key, UNCERTAIN)

    def written(self, key: str) -> None:
        """Note that `key` was written by other means."""
        self._index.forget(key)
        self._cache.forget(key)

    def deleted(self, key: str) -> None:
        """Note that `key` was deleted."""
        self._index.remove(key)
        self._cache.forget(key)

    def flush(self) -> None:
        """Write to the cache what is new."""
        self._cache.flush()

    def _remote(self, key: str, remembered: Remembered | None) -> str | None:
        if self._trust and remembered is not None and remembered != UNCERTAIN:
            return remembered.etag
        return self._index.etag(key)
