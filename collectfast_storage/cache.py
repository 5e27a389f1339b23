"""What was uploaded before, in a Django cache."""

from __future__ import annotations

import hashlib
import logging
import uuid
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from django.core.cache import caches

from collectfast_storage.etag import UNCERTAIN, Fingerprint, Remembered
from collectfast_storage.locks import ForkSafeLock

logger = logging.getLogger("collectfast_storage")

# Few and large: Django's local-memory, file and database caches keep 300 entries
# (https://docs.djangoproject.com/en/stable/topics/cache/#cache-arguments), and
# Memcached takes 1 MB an entry, which here is 200,000 files.
_SHARDS = 32
_VERSION = 1

# Held from reading shards to writing them, lest threads lose each other's entries.
_LOCK = ForkSafeLock()

_T = TypeVar("_T")
_Shard = dict[str, str]


class EtagCache:
    """What is remembered of each key of a bucket: what was sent, and the ETag it got.

    Read shard by shard, or in `bulk` at the first question; written by `flush`. What
    another process has noted of a key meanwhile is not overwritten: who was the last
    to upload it, neither knows. Two processes that write one shard at one moment may
    lose an entry, which costs a comparison. A cache that fails is one warning: a deploy
    does without it.
    """

    def __init__(
        self,
        alias: str,
        timeout: int | None,
        bucket: str,
        *,
        bulk: bool = False,
        quiet: bool = False,
    ) -> None:
        """Describe what the cache `alias` knows of `bucket`, for `timeout` seconds.

        `bucket` tells endpoint and name; a `timeout` of `None` is for ever. With
        `quiet` somebody else says it if the cache fails.
        """
        self._alias = alias
        self._timeout = timeout
        self._namespace = hashlib.sha256(bucket.encode()).hexdigest()[:32]
        self._bulk = bulk
        self._shards: dict[int, _Shard] = {}
        self._pending: dict[str, str | None] = {}
        self._quiet = quiet
        self.failed = False

    def get(self, key: str) -> Remembered | None:
        """Return what is remembered of `key`."""
        return _parse(self._line(key))

    def remember(self, key: str, remembered: Remembered) -> None:
        """Note what is now known of `key`, to be written by `flush`."""
        if self.get(key) != remembered:
            self._pending[key] = _line_of(remembered)

    def forget(self, key: str) -> None:
        """Note that nothing is known of `key` any more, to be written by `flush`."""
        # What could not be read may be there all the same.
        if self.get(key) is not None or self.failed:
            self._pending[key] = None

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below `prefix` of which something is remembered."""
        for number in range(_SHARDS):
            self._load(number)
        known = {key for shard in self._shards.values() for key in shard}
        below = {key for key in known | self._pending.keys() if key.startswith(prefix)}
        return [key for key in below if self._line(key) is not None]

    def doubt(self, prefix: str) -> None:
        """Write that nothing below `prefix` is certain, until `flush` says what is."""
        known: dict[str, str | None]
        doubts: dict[str, str | None]
        known = {key: self._line(key) for key in self.keys(prefix)}
        doubts = dict.fromkeys(known, _line_of(UNCERTAIN))
        pending, self._pending = self._pending, {**self._pending, **doubts}
        if self._store(doubts):
            # What another process has noted meanwhile stays doubtful.
            found = {k: self._load(_shard_of(k)).get(k) for k in known}
            known = {k: line for k, line in known.items() if found[k] == doubts[k]}
        self._pending = {**known, **pending}

    def flush(self) -> bool:
        """Write what is new; tell whether it is there now, and nothing older."""
        stored = self._store(dict(self._pending))
        # Only now: who is interrupted before that flushes once more.
        self._pending = {} if stored else self._pending
        return stored

    def _store(self, lines: dict[str, str | None]) -> bool:
        """Write `lines` into shards read afresh: others may have written too."""
        changes: dict[int, dict[str, str | None]] = defaultdict(dict)
        for key, line in lines.items():
            changes[_shard_of(key)][key] = line
        with _LOCK:
            return self._store_shards(changes) if changes else True

    def _store_shards(self, changes: dict[int, dict[str, str | None]]) -> bool:
        shards = self._read(changes)
        for number, change in changes.items():
            found = shards[number]
            merged = found | _reconciled(change, found, self._shards[number])
            shards[number] = {k: line for k, line in merged.items() if line is not None}
        stored = self._write(shards)
        self._shards |= shards if stored else {}
        return stored

    def _line(self, key: str) -> str | None:
        if key in self._pending:
            return self._pending[key]
        return self._load(_shard_of(key)).get(key)

    def _load(self, number: int) -> _Shard:
        if number not in self._shards:
            self._shards |= self._read(range(_SHARDS) if self._bulk else [number])
        return self._shards[number]

    def _read(self, numbers: Iterable[int]) -> dict[int, _Shard]:
        names = {number: self._name(number) for number in numbers}
        found: dict[str, object] = self._attempt(
            lambda cache: cache.get_many(names.values()) or {}, {}
        )
        return {number: _valid(found.get(name)) for number, name in names.items()}

    def _write(self, shards: dict[int, _Shard]) -> bool:
        data = {self._name(number): shard for number, shard in shards.items()}

        def replace(cache: Any) -> list[str]:
            # What is refused, as too large say, must not leave there what it was to
            # replace: that is wrong by now. Not every cache says what it refused.
            cache.delete_many(data)
            return [*(cache.set_many(data, self._timeout) or ())]

        refused: list[str] | None = self._attempt(replace, None)
        if refused:
            self._warn(f"it refused {len(refused)} of {len(data)} entries")
        return refused is not None

    def _attempt(self, ask: Callable[[Any], _T], default: _T) -> _T:
        try:
            return ask(caches[self._alias])
        # Whatever a cache's client library raises: Django does not wrap it.
        except Exception as error:
            self._warn(f"{type(error).__name__}: {error}")
            return default

    def _warn(self, reason: str) -> None:
        if not (self.failed or self._quiet):
            logger.warning(
                "The cache %r (COLLECTFAST_CACHE) failed; more has to be compared with "
                "the bucket: %s",
                self._alias,
                reason,
            )
        self.failed = True

    def _name(self, number: int) -> str:
        return f"collectfast_storage:{_VERSION}:{self._namespace}:{number}"


def _shard_of(key: str) -> int:
    return zlib.crc32(key.encode(errors="surrogatepass")) % _SHARDS


def _reconciled(
    change: dict[str, str | None], found: _Shard, known: _Shard
) -> dict[str, str | None]:
    """Return `change`, with a doubt where another process has changed what was `known`.

    What it has put there is `found`.
    """
    # Unlike any other, lest that process take it for a doubt of its own.
    mark = f"{_line_of(UNCERTAIN)}{uuid.uuid4().hex}"
    return {
        key: line if _goes(line, found.get(key), known.get(key)) else mark
        for key, line in change.items()
    }


def _goes(line: str | None, found: str | None, known: str | None) -> bool:
    """Tell whether `line` may replace what is `found` where `known` was expected.

    Or at least tells of the same: a wrong ETag costs a comparison, and no upload.
    """
    if line is None or found == known:
        return True
    if found is None or _parse(found) == UNCERTAIN:
        return False
    return found.split(" ")[:2] == line.split(" ")[:2]


def _valid(shard: object) -> _Shard:
    entries = shard.items() if isinstance(shard, dict) else ()
    return {key: line for key, line in entries if {type(key), type(line)} == {str}}


def _line_of(remembered: Remembered) -> str:
    fingerprint = remembered.fingerprint
    return f"{fingerprint.md5} {fingerprint.headers} {remembered.etag}"


def _parse(line: object) -> Remembered | None:
    fields = line.split(" ") if isinstance(line, str) else []
    if len(fields) != 3:
        return None
    md5, headers, etag = fields
    if md5 == UNCERTAIN.fingerprint.md5:
        return UNCERTAIN
    return Remembered(Fingerprint(md5, headers), etag)
