"""Earlier uploads of collectstatic, in a Django cache.

A cache entry has the fingerprint of an upload, and the ETag that the bucket gave it.
Before an upload may make an entry wrong, the entry is replaced by a mark, which has the
fingerprint that is being uploaded. So a deploy that is killed leaves a mark, and runs
that overlap see from the marks whether they upload the same.
"""

import hashlib
import logging
import pickle
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from django.core.cache import caches

from collectfast_storage.decision import DOUBTFUL, Remembered
from collectfast_storage.fingerprint import Fingerprint

logger = logging.getLogger("collectfast_storage")

# Few and large: Django's local-memory, file and database caches keep 300 entries
# (https://docs.djangoproject.com/en/stable/topics/cache/#cache-arguments). A full shard
# has about 500 kB, because Memcached allows 1 MB. The latest 130,000 files are kept.
_SHARDS = 32
_MOST_ENTRIES = 4300  # of a shard
# A cache raises these for entries that it cannot decode. Such entries are overwritten.
# After any other error the cache is not used any more, because it may fail slowly.
_GARBAGE: tuple[type[Exception], ...] = (pickle.PickleError, zlib.error, EOFError)
_GARBAGE += (AttributeError, ImportError, LookupError, TypeError, ValueError)

# Seconds after which the lock of a killed run expires, for which another run waits, and
# between two attempts to get it.
_LOCK_EXPIRES, _PAUSE = 5, 0.01
# A cache that refuses a lock this number of times in a row has no locks.
_MOST_REFUSALS = 5

# By the hash of a name, a line: a fingerprint and an ETag. A mark has `_MARK` for the
# ETag. The line of `DOUBTFUL` has an empty fingerprint.
_Shard = dict[str, str]
_MARK = "?"


class UploadCache:
    """Cache entries of one place in a bucket, read at the first use.

    Until `flush`, new entries are kept in memory. The first failure of the cache is
    logged as a warning. After an exception, the cache is not used any more, unless the
    entries could not be decoded or only a mark could not be written.
    """

    def __init__(
        self, alias: str | None, timeout: int | None, place: str, *, trusted: bool
    ) -> None:
        """Use the cache `alias` of ``CACHES`` for `place`; `None`: use no cache.

        Entries last `timeout` seconds, or for ever if it is `None`. If the cache is
        `trusted`, programs `invalidate` entries, and `flush` checks whether they did.
        """
        self._alias, self._timeout, self._trusted = alias, timeout, trusted
        digest = hashlib.sha256(place.encode(errors="surrogatepass")).hexdigest()[:32]
        self._prefix = f"collectfast_storage:2:{digest}"
        # The note says that entries were lost, so missing entries are in doubt.
        self._note = f"{self._prefix}:lost"
        self._lock = f"{self._prefix}:lock"
        # By cache key: shards as last read or written, tokens and note as first read.
        self._cached: dict[str, Any] | None = None
        self._pending: _Shard = {}  # entries to write at `flush`
        self._contested: set[str] = set()  # entries that another run wrote differently
        self._is_complete = self._has_failed = self._has_warned = False
        self._has_locks = True

    def get(self, name: str) -> Remembered | None:
        """Return the last upload of `name`; `DOUBTFUL` if its outcome is not known."""
        entry = _entry_of(name)
        line = self._pending.get(entry)
        if line is None:
            cached = self._read()
            missing = _line_of(DOUBTFUL) if self._note in cached else ""
            line = cached.get(self._key_of(entry), {}).get(entry, missing)
        return _parsed(line)

    def mark(self, fingerprints: Mapping[str, Fingerprint | None]) -> None:
        """Write immediately that names are being uploaded, or (`None`) deleted."""
        lines = {
            _entry_of(name): _line_of(Remembered(each, _MARK) if each else DOUBTFUL)
            for name, each in fingerprints.items()
        }
        self._pending |= lines
        # If this fails, `flush` may still succeed.
        self._attempt(
            lambda cache: self._write(cache, lines, are_marks=True),
            disables_cache=False,
        )

    def remember(self, name: str, remembered: Remembered) -> None:
        """Let `flush` write the last upload of `name`."""
        if self.get(name) != remembered:
            self._pending[_entry_of(name)] = _line_of(remembered)

    def flush(self) -> None:
        """Write all new entries."""
        lines = self._pending
        if lines and self._attempt(lambda cache: self._write(cache, lines)):
            lines.clear()

    def complete(self) -> None:
        """Let `flush` remove the note of lost entries, because all files arrived."""
        self._is_complete = True

    def invalidate(self, name: str) -> None:
        """Remove the shard that has the entry of `name`.

        Programs call this before and after a write. A run that has read the shard finds
        the new token after it has written, and then removes the shard too.
        """
        key = self._key_of(_entry_of(name))
        token = uuid.uuid4().hex
        self._attempt(lambda cache: cache.set(_token_key_of(key), token, None))
        self._attempt(lambda cache: cache.delete(key))

    def _key_of(self, entry: str) -> str:
        """Return the cache key of the shard that has this `entry`."""
        return f"{self._prefix}:{zlib.crc32(entry.encode()) % _SHARDS}"

    def _read(self) -> dict[str, Any]:
        if self._cached is None:
            keys = [f"{self._prefix}:{number}" for number in range(_SHARDS)]
            self._cached = self._attempt(lambda cache: self._fetch(cache, keys)) or {}
        return self._cached

    def _write(self, cache: Any, lines: _Shard, *, are_marks: bool = False) -> bool:
        """Write the shards that `lines` belong to; return True if there is no error."""
        with self._locked(cache):
            self._merge(cache, lines, are_marks=are_marks)
        return True

    def _merge(self, cache: Any, lines: _Shard, *, are_marks: bool) -> None:
        """Read the shards of `lines` again, because other runs may have written them.

        Then write them with `lines`.
        """
        cached = self._read()
        keys = dict.fromkeys(map(self._key_of, lines))
        fresh = self._fetch(cache, keys)
        shards: dict[str, _Shard] = {key: dict(fresh[key]) for key in keys}
        for entry, line in lines.items():
            key = self._key_of(entry)
            other = shards[key].pop(entry, "")  # The latest entries come last.
            is_changed = other and other != cached.get(key, {}).get(entry)
            if is_changed and _contradicts(other, line, are_marks):
                self._contested.add(entry)
            # It is not known which of two uploads arrived last.
            is_contested = entry in self._contested
            shards[key][entry] = _line_of(DOUBTFUL) if is_contested else line
        for key, shard in shards.items():
            shards[key] = dict(list(shard.items())[-_MOST_ENTRIES:])
        is_stored = self._store(cache, shards, fresh)
        if is_stored and self._is_complete and self._note in cached:
            cache.delete(self._note)
        cached.update(shards)

    @contextmanager
    def _locked(self, cache: Any) -> Iterator[None]:
        """Let no other run write at the same time, because one would lose its lines.

        `add` is not atomic in Django's file-based cache, nor in its database cache
        after a lock has expired. Then lines may be lost, as without a lock.
        """
        token, end, refused = uuid.uuid4().hex, time.monotonic() + _LOCK_EXPIRES, 0
        try:
            while self._has_locks and time.monotonic() < end:
                is_added = cache.add(self._lock, token, _LOCK_EXPIRES)
                # A cache that stores nothing returns the default.
                holder = cache.get(self._lock, token if is_added else None)
                if holder == token:
                    break
                # Without a holder, either it has just released the lock, or the cache
                # has refused it.
                refused = 0 if holder else refused + 1
                self._has_locks = refused < _MOST_REFUSALS
                time.sleep(_PAUSE)
            yield
        finally:
            with suppress(Exception):  # An earlier error, or an interrupt, is raised.
                if cache.get(self._lock) == token:
                    cache.delete(self._lock)

    def _store(
        self, cache: Any, shards: dict[str, _Shard], before: dict[str, Any]
    ) -> bool:
        """Store `shards`, which were as `before`; return whether all were accepted.

        Shards that the cache refuses are removed, because they are out of date.
        """
        try:
            refused = [*(cache.set_many(shards, self._timeout) or ())]
        except Exception:
            if self._trusted:  # It may have written a part of them.
                cache.delete_many(list(shards))
            raise
        if refused:
            if any(map(before.get, refused)):
                cache.set(self._note, True, None)
            cache.delete_many(refused)
            self._warn(f"it did not store {len(refused)} of {len(shards)} entries")
        if self._trusted:
            # A cache may ignore writes without an error, as a database does.
            stored, cached = self._fetch(cache, shards), self._read()
            for key, shard in shards.items():
                token = _token_key_of(key)
                is_ours = stored.get(token) == cached.get(token)
                if not is_ours or stored[key] != shard:
                    cache.delete(key)
        return not refused

    def _fetch(self, cache: Any, keys: Collection[str]) -> dict[str, Any]:
        """Return, by cache key, the shards at `keys`, their tokens, and the note."""
        tokens = map(_token_key_of, keys) if self._trusted else ()
        found: dict[str, Any] = {}
        try:
            found = cache.get_many([*keys, *tokens, self._note]) or {}
        except _GARBAGE as error:
            self._warn(f"{type(error).__name__}: {error}")
        return {**found, **{key: _valid(found.get(key)) for key in keys}}

    def _attempt(
        self, use: Callable[[Any], Any], *, disables_cache: bool = True
    ) -> Any:
        if self._has_failed or self._alias is None:
            return None
        try:
            return use(caches[self._alias])
        # Django does not wrap the exceptions of a cache's client library.
        except Exception as error:
            self._warn(f"{type(error).__name__}: {error}")
            self._has_failed = disables_cache
            return None

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            text = (
                "Cache %r (COLLECTFAST_CACHE) failed; comparing files with the bucket "
                "instead: %s"
            )
            logger.warning(text, self._alias, reason)


def _contradicts(other: str, line: str, is_mark: bool) -> bool:
    """Return whether `other`, of another run, makes the result of `line` uncertain.

    Two runs that upload the same fingerprint get the same object. A mark is written
    before its upload, so a finished upload of another run does not overlap with it.
    """
    if is_mark and _parsed(other) is not DOUBTFUL:
        return False
    fingerprint, _, _ = line.rpartition(" ")
    return not fingerprint.strip() or other.rpartition(" ")[0] != fingerprint


def _valid(shard: object) -> _Shard:
    lines = shard.items() if isinstance(shard, dict) else ()
    return {k: v for k, v in lines if {type(k), type(v)} == {str}}


def _entry_of(name: str) -> str:
    # Entries have one length, however long a name is.
    encoded = name.encode(errors="surrogatepass")
    return hashlib.blake2b(encoded, digest_size=8).hexdigest()


def _token_key_of(key: str) -> str:
    """Return the cache key of the token that programs' writes to a shard renew."""
    return f"{key}:token"


def _line_of(remembered: Remembered) -> str:
    return " ".join([*remembered.fingerprint, remembered.etag])


def _parsed(line: str) -> Remembered | None:
    fields = line.split(" ")
    if len(fields) != 3:
        return None
    md5, headers, etag = fields
    is_doubtful = not md5 or etag == _MARK
    return DOUBTFUL if is_doubtful else Remembered(Fingerprint(md5, headers), etag)
