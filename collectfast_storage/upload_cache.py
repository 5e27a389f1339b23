"""Earlier uploads of collectstatic, in a Django cache.

A cache entry has the fingerprint of an upload, and the ETag that the bucket gave it.
Before an upload may make an entry wrong, the entry is replaced by a mark, which has the
fingerprint that is being uploaded. So a deploy that is killed leaves a mark, and runs
that overlap see from the marks whether they upload the same.
"""

import hashlib
import logging
import pickle
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.core.cache import caches

from collectfast_storage.decision import DOUBTFUL, Remembered
from collectfast_storage.fingerprint import Fingerprint

logger = logging.getLogger("collectfast_storage")

# Few and large: Django's local-memory, file and database caches keep 300 entries
# (https://docs.djangoproject.com/en/stable/topics/cache/#cache-arguments), and
# Memcached takes 1 MB an entry. So the latest 130,000 files are remembered.
_SHARDS = 32
_MOST_BYTES = 500_000
# A cache raises these for entries that it cannot decode. Such entries are overwritten.
# After any other error the cache is not used any more, because it may fail slowly.
_GARBAGE: tuple[type[Exception], ...] = (pickle.PickleError, zlib.error, EOFError)
_GARBAGE += (AttributeError, ImportError, LookupError, TypeError, ValueError)
_UNKNOWN = "?"  # the mark of an upload whose outcome is not known

_Shard = dict[str, str]
_Changes = dict[int, dict[str, str]]
_IsConflict = Callable[[str, str], bool]


class UploadCache:
    """Cache entries of one place in a bucket, read at the first use.

    Until `flush`, new entries are held here. The first failure of the cache is logged
    as a warning; after it, the cache is not used any more.
    """

    def __init__(
        self, alias: str | None, timeout: int | None, place: str, *, trusted: bool
    ) -> None:
        """Use the cache `alias` of ``CACHES`` for `place`; `None`: hold entries only.

        Entries last `timeout` seconds, or for ever if it is `None`. If the cache is
        `trusted`, programs `invalidate` entries, and `flush` looks for that.
        """
        self._alias, self._timeout, self._trusted = alias, timeout, trusted
        digest = hashlib.sha256(place.encode(errors="surrogatepass")).hexdigest()[:32]
        self._name = f"collectfast_storage:2:{digest}:{{}}"
        self._shards: dict[int, _Shard] | None = None  # as last read or written
        self._pending: dict[str, str] = {}  # entries to write at `flush`
        self._contested: set[str] = (
            set()
        )  # entries that another run uploads differently
        self._tokens: dict[Any, object] = {}  # of programs' writes, as first read
        # A note says that entries were lost: then missing entries are in doubt.
        self._note = self._name.format("lost")
        self._has_note = self._is_complete = False
        self._has_failed = self._has_warned = False

    def get(self, name: str) -> Remembered | None:
        """Return the last upload of `name`; `DOUBTFUL` if its outcome is not known."""
        entry = _entry_of(name)
        if entry in self._pending:
            return _parse(self._pending[entry])
        line = self._read().get(_number_of(entry), {}).get(entry)
        return _parse(line or (_UNKNOWN if self._has_note else None))

    def mark(self, fingerprints: Mapping[str, Fingerprint | None]) -> None:
        """Write at once that these names are being uploaded, or (`None`) deleted."""
        changes: _Changes = {}
        for name, fingerprint in fingerprints.items():
            entry = _entry_of(name)
            mark = " ".join([_UNKNOWN, *fingerprint]) if fingerprint else _UNKNOWN
            changes.setdefault(_number_of(entry), {})[entry] = mark
            self._pending[entry] = mark
        # If this fails, `flush` may still succeed.
        self._attempt(lambda c: self._write(c, changes, _has_other_mark), is_last=False)

    def remember(self, name: str, remembered: Remembered) -> None:
        """Have `flush` write the last upload of `name`."""
        if self.get(name) != remembered:
            self._pending[_entry_of(name)] = _line_of(remembered)

    def flush(self) -> None:
        """Write all new entries."""
        changes: _Changes = {}
        for entry, line in self._pending.items():
            changes.setdefault(_number_of(entry), {})[entry] = line
        if changes and self._attempt(lambda c: self._write(c, changes, _is_other)):
            self._pending.clear()

    def complete(self) -> None:
        """Have `flush` remove the note of lost entries: all files have arrived."""
        self._is_complete = True

    def invalidate(self, name: str) -> None:
        """Remove the entries that `name` is among, before and after a program's write.

        A run that reads them meanwhile sees from the new token not to write them back.
        """
        number = _number_of(_entry_of(name))
        token, shard = self._name.format(f"token-{number}"), self._name.format(number)
        self._attempt(lambda cache: cache.set(token, uuid.uuid4().hex, None))
        self._attempt(lambda cache: cache.delete(shard))

    def _read(self) -> dict[int, _Shard]:
        if self._shards is None:
            self._shards = {}
            read = self._attempt(lambda cache: self._fetch(cache, range(_SHARDS)))
            if read is not None:
                self._shards, self._tokens, self._has_note = read
        return self._shards

    def _write(self, cache: Any, changes: _Changes, is_conflict: _IsConflict) -> bool:
        # Shards are read again, because other runs may have written to them.
        known = self._read()
        fresh, _, _ = self._fetch(cache, changes)
        held = {number for number, shard in fresh.items() if shard}
        for number, change in changes.items():
            lines = known.get(number, {})
            self._contested |= _conflicts(fresh[number], lines, change, is_conflict)
            fresh[number] = self._changed(fresh[number], change)
        if self._store(cache, fresh, held) and self._is_complete and self._has_note:
            cache.delete(self._note)
        known.update(fresh)
        return True

    def _changed(self, shard: _Shard, change: _Shard) -> _Shard:
        """Return `shard` with a `change`, as far as there is room for it."""
        for entry, line in change.items():
            shard.pop(entry, None)  # The latest entries come last.
            # It is not known which of two uploads arrived last.
            shard[entry] = _UNKNOWN if entry in self._contested else line
        return _newest(shard)

    def _store(self, cache: Any, shards: dict[int, _Shard], held: set[int]) -> bool:
        """Store `shards`, of which some `held` entries; return whether all were taken.

        Those that are not taken are removed, because they are out of date.
        """
        data = {self._name.format(number): shard for number, shard in shards.items()}
        try:
            refused = {*(cache.set_many(data, self._timeout) or ())}
        except Exception:
            if self._trusted:  # It may have written a part of them.
                cache.delete_many(list(data))
            raise
        if refused:
            if any(self._name.format(number) in refused for number in held):
                cache.set(self._note, True, None)
            cache.delete_many(list(refused))
            self._warn(f"it did not store {len(refused)} of {len(data)} entries")
        if self._trusted:
            # A cache may ignore writes without an error, as a database does.
            stored, tokens, _ = self._fetch(cache, shards)
            for number, shard in shards.items():
                is_ours = tokens[number] == self._tokens.get(number)
                if not is_ours or stored[number] != shard:
                    cache.delete(self._name.format(number))
        return not refused

    def _fetch(
        self, cache: Any, numbers: Iterable[int]
    ) -> tuple[dict[int, _Shard], dict[Any, object], bool]:
        """Return shards, the tokens of programs that wrote, and if there is a note."""
        names = {number: self._name.format(number) for number in numbers}
        tokens = {n: self._name.format(f"token-{n}") for n in names if self._trusted}
        found: dict[str, object] = {}
        try:
            keys = [*names.values(), *tokens.values(), self._note]
            found = cache.get_many(keys) or {}
        except _GARBAGE as error:
            self._warn(f"{type(error).__name__}: {error}")
        shards = {number: _valid(found.get(name)) for number, name in names.items()}
        written = {number: found.get(name) for number, name in tokens.items()}
        return shards, written, self._note in found

    def _attempt(self, use: Callable[[Any], Any], *, is_last: bool = True) -> Any:
        if self._has_failed or self._alias is None:
            return None
        try:
            return use(caches[self._alias])
        # Django does not wrap the exceptions of a cache's client library.
        except Exception as error:
            self._warn(f"{type(error).__name__}: {error}")
            self._has_failed = is_last
            return None

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            text = (
                "Cache %r (COLLECTFAST_CACHE) failed; comparing files with the bucket "
                "instead: %s"
            )
            logger.warning(text, self._alias, reason)


def _conflicts(
    shard: _Shard, known: _Shard, change: _Shard, is_conflict: _IsConflict
) -> set[str]:
    """Return the entries of `change` that another run has written differently."""
    others = {e: shard[e] for e in change if e in shard and shard[e] != known.get(e)}
    return {entry for entry, line in others.items() if is_conflict(line, change[entry])}


def _valid(shard: object) -> _Shard:
    lines = shard.items() if isinstance(shard, dict) else ()
    return {k: v for k, v in lines if {type(k), type(v)} == {str}}


def _entry_of(name: str) -> str:
    # Entries have one length, however long a name is.
    encoded = name.encode(errors="surrogatepass")
    return hashlib.blake2b(encoded, digest_size=8).hexdigest()


def _number_of(entry: str) -> int:
    return zlib.crc32(entry.encode()) % _SHARDS


def _newest(shard: _Shard) -> _Shard:
    """Return as many of the latest entries as are allowed."""
    size, entries = 0, list(shard.items())
    for place in range(len(entries) - 1, -1, -1):
        size += sum(map(len, entries[place]))
        if size > _MOST_BYTES:
            return dict(entries[place + 1 :])
    return shard


def _line_of(remembered: Remembered) -> str:
    if remembered is DOUBTFUL:
        return _UNKNOWN
    return " ".join([*remembered.fingerprint, remembered.etag])


def _parse(line: str | None) -> Remembered | None:
    fields = (line or "").split(" ")
    if fields[0] == _UNKNOWN:
        return DOUBTFUL
    if len(fields) != 3 or not fields[0]:
        return None
    md5, headers, etag = fields
    return Remembered(Fingerprint(md5, headers), etag)


def _uploaded(line: str | None) -> list[str]:
    """Return the fingerprint in a mark or an entry; empty if it is unknown."""
    fields = (line or "").split(" ")
    return fields[1:3] if fields[0] == _UNKNOWN else fields[:2]


def _is_other(there: str, line: str) -> bool:
    """Return whether an entry `there`, written by another run, contradicts `line`."""
    return not _uploaded(line) or _uploaded(there) != _uploaded(line)


def _has_other_mark(there: str, line: str) -> bool:
    """Return whether another run is just uploading something else than `line` says."""
    return there.startswith(_UNKNOWN) and _is_other(there, line)
