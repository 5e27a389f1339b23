"""What was uploaded before, in a Django cache."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from django.core.cache import caches

from collectfast_storage.etag import Fingerprint, Remembered

logger = logging.getLogger("collectfast_storage")

# Few and large: Django's local-memory, file and database caches keep 300 entries
# (https://docs.djangoproject.com/en/stable/topics/cache/#cache-arguments), and
# Memcached takes 1 MB an entry, which here is 200,000 files.
_SHARDS = 32
_VERSION = 1

_T = TypeVar("_T")
_Shard = dict[str, str]


class EtagCache:
    """What is remembered of each key of a bucket: what was sent, and the ETag it got.

    Read shard by shard, or in `bulk` at the first question; written by `flush`. Two
    processes that write one shard at one moment may lose an entry, which costs a
    comparison. A cache that fails is a warning: a deploy does without it.
    """

    def __init__(
        self, alias: str, timeout: int | None, bucket: str, *, bulk: bool = False
    ) -> None:
        """Describe what the cache `alias` knows of `bucket`, for `timeout` seconds.

        `bucket` tells endpoint and name; a `timeout` of `None` is for ever.
        """
        self._alias = alias
        self._timeout = timeout
        self._namespace = hashlib.sha256(bucket.encode()).hexdigest()[:32]
        self._bulk = bulk
        self._shards: dict[int, _Shard] = {}
        self._pending: dict[str, str | None] = {}

    def get(self, key: str) -> Remembered | None:
        """Return what is remembered of `key`."""
        if key in self._pending:
            line = self._pending[key]
        else:
            number = _shard_of(key)
            if number not in self._shards:
                self._shards |= self._read(range(_SHARDS) if self._bulk else [number])
            line = self._shards[number].get(key)
        return _parse(line)

    def remember(self, key: str, remembered: Remembered) -> None:
        """Note what is now known of `key`, to be written by `flush`."""
        if self.get(key) != remembered:
            fingerprint = remembered.fingerprint
            self._pending[key] = (
                f"{fingerprint.md5} {fingerprint.headers} {remembered.etag}"
            )

    def forget(self, key: str) -> None:
        """Note that nothing is known of `key` any more, to be written by `flush`."""
        if self.get(key) is not None:
            self._pending[key] = None

    def flush(self) -> None:
        """Write what is new, into shards read afresh: others may have written too."""
        changes: dict[int, dict[str, str | None]] = defaultdict(dict)
        for key, line in self._pending.items():
            changes[_shard_of(key)][key] = line
        self._pending = {}
        if not changes:
            return
        shards = self._read(changes)
        for number, change in changes.items():
            merged = shards[number] | change
            shards[number] = {k: line for k, line in merged.items() if line is not None}
        self._shards |= shards
        self._write(shards)

    def _read(self, numbers: Iterable[int]) -> dict[int, _Shard]:
        names = {number: self._name(number) for number in numbers}
        found: dict[str, object] = self._attempt(
            lambda cache: cache.get_many(names.values()), {}
        )
        return {number: _valid(found.get(name)) for number, name in names.items()}

    def _write(self, shards: dict[int, _Shard]) -> None:
        data = {self._name(number): shard for number, shard in shards.items()}
        refused: list[str] = self._attempt(
            lambda cache: cache.set_many(data, self._timeout), []
        )
        if refused:
            self._warn(f"it refused {len(refused)} of {len(data)} entries")

    def _attempt(self, ask: Callable[[Any], _T], default: _T) -> _T:
        try:
            return ask(caches[self._alias]) or default
        # Whatever a cache's client library raises: Django does not wrap it.
        except Exception as error:
            self._warn(f"{type(error).__name__}: {error}")
            return default

    def _warn(self, reason: str) -> None:
        logger.warning(
            "The cache %r (COLLECTFAST_CACHE) failed; more has to be compared with the "
            "bucket: %s",
            self._alias,
            reason,
        )

    def _name(self, number: int) -> str:
        return f"collectfast_storage:{_VERSION}:{self._namespace}:{number}"


def _shard_of(key: str) -> int:
    return zlib.crc32(key.encode()) % _SHARDS


def _valid(shard: object) -> _Shard:
    return dict(shard) if isinstance(shard, dict) else {}


def _parse(line: object) -> Remembered | None:
    fields = line.split(" ") if isinstance(line, str) else []
    if len(fields) != 3:
        return None
    md5, headers, etag = fields
    return Remembered(Fingerprint(md5, headers), etag)
