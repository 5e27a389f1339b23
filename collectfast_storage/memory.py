"""What was uploaded before, in a Django cache."""

import hashlib
import logging
import pickle
import uuid
import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from django.core.cache import caches

from collectfast_storage.decision import DOUBTFUL, Remembered
from collectfast_storage.fingerprint import Fingerprint

logger = logging.getLogger("collectfast_storage")

# Few and large: Django's local-memory, file and database caches keep 300 entries
# (https://docs.djangoproject.com/en/stable/topics/cache/#cache-arguments), and
# Memcached takes 1 MB an entry. So 130,000 files are remembered, the latest of them.
_SHARDS = 32
_MOST_BYTES = 500_000
# What a cache raises for entries that it cannot decode: those are written over. After
# anything else it is asked no more, as it may take its time to fail.
_GARBAGE: tuple[type[Exception], ...] = (pickle.PickleError, zlib.error, EOFError)
_GARBAGE += (AttributeError, ImportError, LookupError, TypeError, ValueError)

_Lock = AbstractContextManager[Any]
_Shard = dict[str, str]
_Changes = dict[int, dict[str, str | None]]


class Memory:
    """What was sent as each name of one place, and the ETag that it got there.

    A killed process leaves a note, if it called `begin`: then all is `DOUBTFUL` to the
    next. After its first failure, which is one warning, a cache is asked no more.
    """

    def __init__(
        self, alias: str, timeout: int | None, place: str, lock: _Lock, whole: bool
    ) -> None:
        """Remember in the cache `alias`, for `timeout` seconds, what is at `place`.

        `None` is for ever. Threads that share `lock` keep each other's entries. All is
        read at once if `whole`, else shard by shard.
        """
        self._alias, self._timeout = alias, timeout
        self._lock, self._whole = lock, whole
        digest = hashlib.sha256(place.encode()).hexdigest()[:32]
        self._name = f"collectfast_storage:1:{digest}:{{}}"
        self._note = self._name.format("under-way")
        self._own_note = uuid.uuid4().hex
        self._has_begun = self._found_note = False
        self._shards: dict[int, _Shard] = {}
        self._pending: dict[str, str | None] = {}
        self._has_failed = self._has_warned = False

    def get(self, name: str) -> Remembered | None:
        """Return what is remembered of `name`; `DOUBTFUL` where nobody can know."""
        entry = _entry_of(name)
        if entry in self._pending:
            return _parse(self._pending[entry])
        remembered = _parse(self._shard(_number_of(entry)).get(entry))
        return DOUBTFUL if self._found_note else remembered

    def begin(self) -> None:
        """Note that from now on the bucket may differ from what is remembered."""
        if not self._has_begun:
            self._has_begun = True
            self._shard(0)  # Whether there is a note of another run.
            self._attempt(lambda cache: cache.set(self._note, self._own_note, None))

    def remember(self, name: str, remembered: Remembered | None) -> None:
        """Have `flush` write what is now known of `name`; `None`: nothing."""
        if self.get(name) != remembered:
            line = _line_of(remembered) if remembered else None
            self._pending[_entry_of(name)] = line

    def flush(self) -> None:
        """Write what is new, and take back the note of what was under way."""
        if not (self._pending or self._has_begun or self._found_note):
            return
        with self._lock:
            # With a note, what this run has not seen stays doubtful.
            numbers = range(_SHARDS) if self._found_note else ()
            changes: _Changes = {number: {} for number in numbers}
            for entry, line in self._pending.items():
                changes.setdefault(_number_of(entry), {})[entry] = line
            self._attempt(lambda cache: self._write(cache, changes))
        self._pending.clear()

    def _write(self, cache: Any, changes: _Changes) -> None:
        # Into shards that are read afresh: others may have written too.
        known, self._shards = self._shards, {}
        note = self._read(cache, changes)
        overtaken = self._has_begun and note != self._own_note
        data = {}
        for number, change in changes.items():
            shard, before = self._shards[number], dict(self._shards[number])
            if self._found_note:
                shard |= dict.fromkeys(shard, _line_of(DOUBTFUL))
            for entry, line in change.items():
                shard.pop(entry, None)  # The latest come last.
                ours, there = _parse(line), _parse(before.get(entry))
                if line is None or ours is None:
                    continue
                # Two that uploaded it: neither knows whose was the last to arrive.
                same = there is None or there.fingerprint == ours.fingerprint
                mine = same or before[entry] == known.get(number, {}).get(entry)
                shard[entry] = line if mine and not overtaken else _line_of(DOUBTFUL)
            _forget_oldest(shard)
            data[self._name.format(number)] = shard
        # What is refused, as too large, must leave nothing old; not every cache tells.
        if data:
            cache.delete_many(data)
            if refused := [*(cache.set_many(data, self._timeout) or ())]:
                self._warn(f"it refused {len(refused)} of {len(data)} entries")
        if note == self._own_note or self._found_note:
            cache.delete(self._note)
        self._has_begun, self._found_note = False, False

    def _shard(self, number: int) -> _Shard:
        if number not in self._shards:
            numbers = range(_SHARDS) if self._whole else [number]
            note = self._attempt(lambda cache: self._read(cache, numbers))
            self._found_note |= note not in (None, self._own_note)
        return self._shards.get(number, {})

    def _read(self, cache: Any, numbers: Iterable[int]) -> object:
        # Into `self._shards`; returns the note that is there.
        names = {number: self._name.format(number) for number in numbers}
        found: dict[str, object] = {}
        try:
            found = cache.get_many([*names.values(), self._note]) or {}
        except _GARBAGE as error:
            self._warn(f"{type(error).__name__}: {error}")
        for number, name in names.items():
            shard = found.get(name)
            lines = shard.items() if isinstance(shard, dict) else ()
            valid = ((k, v) for k, v in lines if {type(k), type(v)} == {str})
            self._shards[number] = dict(valid)
        return found.get(self._note)

    def _attempt(self, ask: Callable[[Any], object]) -> object:
        try:
            return None if self._has_failed else ask(caches[self._alias])
        # Whatever a cache's client library raises: Django does not wrap it.
        except Exception as error:
            self._warn(f"{type(error).__name__}: {error}")
            self._has_failed = True
            return None

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            text = "The cache %r (COLLECTFAST_CACHE) failed, so the bucket is asked: %s"
            logger.warning(text, self._alias, reason)


def _entry_of(name: str) -> str:
    # Of one length, however long a name is.
    encoded = name.encode(errors="surrogatepass")
    return hashlib.blake2b(encoded, digest_size=8).hexdigest()


def _number_of(entry: str) -> int:
    return zlib.crc32(entry.encode()) % _SHARDS


def _forget_oldest(shard: _Shard) -> None:
    size = sum(len(entry) + len(line) for entry, line in shard.items())
    while size > _MOST_BYTES:
        entry = next(iter(shard))
        size -= len(entry) + len(shard.pop(entry))


def _line_of(remembered: Remembered) -> str:
    return " ".join([*remembered.fingerprint, remembered.etag])


def _parse(line: str | None) -> Remembered | None:
    fields = (line or "").split(" ")
    if len(fields) != 3:
        return None
    md5, headers, etag = fields
    return Remembered(Fingerprint(md5, headers), etag) if md5 else DOUBTFUL
