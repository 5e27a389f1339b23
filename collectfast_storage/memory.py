"""What was uploaded before, in a Django cache."""

from __future__ import annotations

import hashlib
import logging
import pickle
import uuid
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from django.core.cache import caches

from collectfast_storage.decision import DOUBTFUL, Remembered
from collectfast_storage.fingerprint import Fingerprint

logger = logging.getLogger("collectfast_storage")

# Few and large: Django's local-memory, file and database caches keep 300 entries
# (https://docs.djangoproject.com/en/stable/topics/cache/#cache-arguments), and
# Memcached takes 1 MB an entry. So 130,000 files are remembered, the latest of them.
_SHARDS = 32
_MOST_BYTES = 500_000
_VERSION = 1
# What a cache raises for entries that it cannot decode: those are written over. After
# anything else it is asked no more, as it may take its time to fail.
_GARBAGE = (
    pickle.PickleError,
    zlib.error,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
)

_T = TypeVar("_T")
_Shard = dict[str, str]


class Memory:
    """What was sent as each name of one place, and the ETag that it got there.

    Read shard by shard, or `whole` at the first question; written by `flush`. A process
    that is killed leaves a note that it was under way, if `begin` was called: then
    everything is `DOUBTFUL` to the next. After its first failure a cache is asked no
    more; that is one warning, and a deploy does without it.
    """

    def __init__(
        self,
        alias: str,
        timeout: int | None,
        place: str,
        lock: AbstractContextManager[Any],
        *,
        whole: bool = False,
    ) -> None:
        """Remember in the cache `alias`, for `timeout` seconds, what is at `place`.

        `place` tells endpoint, bucket and location; a `timeout` of `None` is for ever.
        Threads that share `lock` keep each other's entries.
        """
        self._alias = alias
        self._timeout = timeout
        digest = hashlib.sha256(place.encode()).hexdigest()[:32]
        self._name = f"collectfast_storage:{_VERSION}:{digest}:{{}}"
        self._lock = lock
        self._whole = whole
        self._note = self._name.format("under-way")
        self._own_note = uuid.uuid4().hex
        self._has_begun = False
        self._found_note: bool | None = None  # not looked for yet
        self._shards: dict[int, _Shard] = {}
        self._pending: dict[str, Remembered | None] = {}
        self._failed = False
        self._has_warned = False

    def get(self, name: str) -> Remembered | None:
        """Return what is remembered of `name`; `DOUBTFUL` where nobody can know."""
        entry = _entry_of(name)
        if entry in self._pending:
            return self._pending[entry]
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
            self._pending[_entry_of(name)] = remembered

    def flush(self) -> None:
        """Write what is new, and take back the note of what was under way."""
        if not (self._pending or self._has_begun or self._found_note):
            return
        with self._lock:
            changes: dict[int, dict[str, Remembered | None]] = defaultdict(dict)
            for entry, remembered in self._pending.items():
                changes[_number_of(entry)][entry] = remembered
            if self._found_note:  # What this run has not seen stays doubtful.
                changes = {number: changes[number] for number in range(_SHARDS)}
            self._attempt(lambda cache: self._write(cache, changes))
        self._pending.clear()

    def _write(
        self, cache: Any, changes: dict[int, dict[str, Remembered | None]]
    ) -> None:
        """Write `changes` into shards read afresh: others may have written too."""
        known = {number: self._shards.get(number, {}) for number in changes}
        self._shards, found_note = {}, self._found_note
        note = self._read(cache, changes)
        overtaken = self._has_begun and note != self._own_note
        for number, change in changes.items():
            shard, before = self._shards[number], dict(self._shards[number])
            if found_note:
                shard |= dict.fromkeys(shard, _line_of(DOUBTFUL))
            for entry, remembered in change.items():
                shard.pop(entry, None)  # The latest come last.
                if remembered is None:
                    continue
                # Two that uploaded it: neither knows whose was the last to arrive.
                there = _parse(before.get(entry))
                same = there is None or there.fingerprint == remembered.fingerprint
                mine = same or before[entry] == known[number].get(entry)
                line = _line_of(DOUBTFUL if overtaken or not mine else remembered)
                shard[entry] = line
            _bound(shard)
        data = {self._name.format(number): self._shards[number] for number in changes}
        # What is refused, as too large say, must not leave there what it was to
        # replace: that is wrong by now. Not every cache says what it refused.
        if data:
            cache.delete_many(data)
            refused = [*(cache.set_many(data, self._timeout) or ())]
            if refused:
                self._warn(f"it refused {len(refused)} of {len(data)} entries")
        if self._own_note == note or found_note:
            cache.delete(self._note)
        self._has_begun, self._found_note = False, False

    def _shard(self, number: int) -> _Shard:
        if number not in self._shards:
            numbers = range(_SHARDS) if self._whole else [number]
            self._shards |= {each: {} for each in numbers}
            note = self._attempt(lambda cache: self._read(cache, numbers))
            found = note not in (None, self._own_note)
            self._found_note = self._found_note or found
        return self._shards[number]

    def _read(self, cache: Any, numbers: Iterable[int]) -> object:
        """Read the shards `numbers`, and return the note that is there."""
        names = {number: self._name.format(number) for number in numbers}
        found: dict[str, object] = {}
        try:
            found = cache.get_many([*names.values(), self._note]) or {}
        except _GARBAGE as error:
            self._warn(f"{type(error).__name__}: {error}")
        self._shards |= {n: _valid(found.get(name)) for n, name in names.items()}
        return found.get(self._note)

    def _attempt(self, ask: Callable[[Any], _T]) -> _T | None:
        if self._failed:
            return None
        try:
            return ask(caches[self._alias])
        # Whatever a cache's client library raises: Django does not wrap it.
        except Exception as error:
            self._warn(f"{type(error).__name__}: {error}")
            self._failed = True
            return None

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "The cache %r (COLLECTFAST_CACHE) failed; more has to be compared with "
                "the bucket: %s",
                self._alias,
                reason,
            )


def _entry_of(name: str) -> str:
    # Of one length, however long a name is.
    encoded = name.encode(errors="surrogatepass")
    return hashlib.blake2b(encoded, digest_size=8).hexdigest()


def _number_of(entry: str) -> int:
    return zlib.crc32(entry.encode()) % _SHARDS


def _bound(shard: _Shard) -> None:
    """Forget the oldest where there are too many."""
    size = sum(len(entry) + len(line) for entry, line in shard.items())
    while size > _MOST_BYTES:
        entry = next(iter(shard))
        size -= len(entry) + len(shard.pop(entry))


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
    return Remembered(Fingerprint(md5, headers), etag) if md5 else DOUBTFUL
