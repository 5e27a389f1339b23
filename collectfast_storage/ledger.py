"""The verdict on one file: whether the bucket holds its content and headers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import Executor
from enum import Enum

from botocore.exceptions import ClientError

from collectfast_storage.cache import EtagCache
from collectfast_storage.content import Content
from collectfast_storage.diagnosis import is_denied
from collectfast_storage.etag import UNCERTAIN, Fingerprint, Remembered
from collectfast_storage.index import RemoteIndex
from collectfast_storage.journal import Journal


class Verdict(Enum):
    """Why a file is not uploaded, or is."""

    HELD = "the bucket holds it"
    ABSENT = "absent"
    CONTENT = "content"
    HEADERS = "headers"
    FORCED = "forced"
    UNCERTAIN = "nobody knows what is there"

    @classmethod
    def between(cls, there: Fingerprint, here: Fingerprint) -> Verdict:
        """Tell what is different between what is `there` and what is `here`."""
        if there.md5 != here.md5:
            return cls.CONTENT
        return cls.HELD if there == here else cls.HEADERS


class Ledger:
    """What is known of each key: what the bucket holds, and what was sent to it.

    It learns on the way whether this bucket's ETags are opaque: whether, encrypted or
    made in another way, they say nothing of contents. Then the fingerprint that is kept
    in an object's metadata decides, for a HEAD each; `before_heads` is called ahead of
    the first of them. `read` returns contents that may tell without one.
    """

    def __init__(
        self,
        index: RemoteIndex,
        cache: EtagCache,
        journal: Journal,
        *,
        trust: bool,
        ignore_etag: bool,
        prefix: str,
    ) -> None:
        """Judge what is below `prefix` by `index` and `cache`.

        With `trust` a key that the cache remembers is taken to be as it was left,
        unless the `journal` has an open entry; with `ignore_etag` nothing is ever held.
        """
        self._index = index
        self._cache = cache
        self._journal = journal
        self._trust = trust
        self._ignore_etag = ignore_etag
        self._prefix = prefix
        self._has_doubted = False
        self._opaque: bool | None = None  # not known yet
        self._has_asked = False
        self.before_heads: Callable[[], object] | None = None
        self.read: Callable[[], Iterable[tuple[str, Content]]] = tuple

    @property
    def lists(self) -> bool:
        """Whether `load` has anything to do."""
        return self._index.lists

    def load(self, executor: Executor, wanted: Sequence[str], *, whole: bool) -> None:
        """Let the index load; see `RemoteIndex.load`."""
        self._index.load(executor, wanted, whole=whole)

    def remembers(self, key: str) -> bool:
        """Tell whether the cache knows `key`."""
        return self._cache.get(key) is not None

    def exists(self, key: str) -> bool:
        """Tell whether the bucket has an object `key`."""
        return self._remote(key, self._cache.get(key)) is not None

    def keys(self) -> Set[str]:
        """Return the keys that the bucket has."""
        return self._index.keys()

    def verdict(self, key: str, content: Content) -> Verdict:
        """Tell whether the bucket has `content` as `key`, headers included."""
        remembered = self._cache.get(key)
        if self._ignore_etag:
            return Verdict.FORCED
        if remembered == UNCERTAIN:
            return Verdict.UNCERTAIN
        try:
            return self._compare(key, content, remembered)
        except ClientError as error:
            # What must not be asked for is uploaded; that goes without asking.
            if not is_denied(error):
                raise
            return Verdict.UNCERTAIN

    def has_opaque_etag(self, content: Content) -> bool | None:
        """Tell whether the ETag of `content` will be opaque; `None` if nobody knows."""
        return True if content.has_opaque_etag else self._opaque

    def learn(self, *, opaque: bool) -> None:
        """Note what the ETag of an upload tells of the others: one opaque is enough."""
        self._opaque = opaque or bool(self._opaque)

    def ask(self, executor: Executor, contents: Iterable[tuple[str, Content]]) -> None:
        """Ask side by side for those of `contents` that no ETag can decide."""
        undecided = [key for key, each in contents if self._is_undecided(key, each)]
        self._index.ask_heads(executor, undecided)

    def look_again(self, executor: Executor, keys: Sequence[str]) -> Set[str]:
        """List anew, and return those of the sorted `keys` that were changed since.

        They are forgotten: what the bucket has now decides. Empty where not all was
        listed before.
        """
        if not self._index.is_complete:
            return set()
        before, self._index = self._index, self._index.anew()
        self._index.load(executor, keys)
        changed = self._index.unlike(before, keys)
        # A listing may be of a moment ago, for some look-alikes.
        self._index.ask_heads(executor, changed)
        changed = self._index.unlike(before, changed)
        for key in changed:
            self._cache.forget(key)
        return {*changed}

    def changing(self, key: str, to: Fingerprint | None = None) -> None:
        """Note that `key` is about to be deleted, or overwritten with what is `to` be.

        Until its end is noted, which a kill or Ctrl-C may forestall at any moment,
        nothing is certain of it.
        """
        remembered = self._cache.get(key)
        if remembered is not None or self._cache.failed:
            self._journal.begin()
        if remembered is not None and to is not None:
            self._doubt_headers(remembered.fingerprint, to)
        self._cache.remember(key, UNCERTAIN)

    def _doubt_headers(self, before: Fingerprint, to: Fingerprint) -> None:
        """Note, if the headers change, that they do: those of one, those of many.

        An ETag does not tell headers: only what is remembered does, and must not be
        wrong if this process is killed.
        """
        known = before != UNCERTAIN.fingerprint
        if known and before.headers != to.headers and not self._has_doubted:
            self._has_doubted = True
            self._cache.doubt(self._prefix)

    def arrived(self, key: str, fingerprint: Fingerprint, etag: str) -> None:
        """Note that `key` was uploaded, and got `etag`."""
        self._index.put(key, etag)
        self._cache.remember(key, Remembered(fingerprint, etag))

    def failed(self, key: str) -> None:
        """Note that a change of `key` failed, and may have been made all the same."""
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

    def flush(self, *, complete: bool = False) -> None:
        """Write to the cache what is new.

        A run is `complete` that has compared all its files with the bucket. If it met
        the note of one that did not end, nothing is known of what it has not seen.
        """
        met = self._journal.is_known_open and not self._cache.failed
        if settles := complete and met:
            self._forget_unseen()
        if self._cache.flush():
            self._journal.end(settles=settles)

    def _forget_unseen(self) -> None:
        for key in self._cache.keys(self._prefix):
            remembered = self._cache.get(key)
            unseen = remembered and remembered.etag != self._index.listed(key)
            if unseen and remembered != UNCERTAIN:
                self._cache.forget(key)

    def _compare(
        self, key: str, content: Content, remembered: Remembered | None
    ) -> Verdict:
        remote = self._remote(key, remembered)
        if remote is None:
            return Verdict.ABSENT
        # An empty ETag, of a server that has no others, is no evidence.
        if (
            remembered is not None
            and remembered.etag == remote
            and (remote or self._trust)
        ):
            if self._opaque is None and remembered.etag == remembered.fingerprint.md5:
                self._opaque = False
            return Verdict.between(remembered.fingerprint, content.fingerprint)
        if not self._is(key, content, remote):
            return Verdict.CONTENT
        etag = self._index.etag(key) or remote
        self._cache.remember(key, Remembered(content.fingerprint, etag))
        return Verdict.HELD

    def _is(self, key: str, content: Content, remote: str) -> bool:
        if not content.has_opaque_etag and content.has_etag(remote):
            self._opaque = self._opaque or False
            return True
        if self.has_opaque_etag(content) is None and not self._has_asked:
            self._has_asked = True
            self._opaque = self._looks_opaque(key)
        return bool(self.has_opaque_etag(content)) and self._is_tagged(key, content)

    def _looks_opaque(self, key: str) -> bool | None:
        """Tell whether ETags are opaque here, when that of `key` is not the expected.

        One that is what it should be is proof that they are not. Else a HEAD may tell;
        if not, the first upload will.
        """
        for other, content in self.read():
            etag = self._index.listed(other)
            if etag is not None and content.has_etag(etag):
                return False
        head = self._index.head(key)
        return True if head is not None and head.has_opaque_etag else None

    def _is_tagged(self, key: str, content: Content) -> bool:
        if self.before_heads is not None:
            before_heads, self.before_heads = self.before_heads, None
            before_heads()
        head = self._index.head(key)
        return head is not None and head.fingerprint == str(content.fingerprint)

    def _is_undecided(self, key: str, content: Content) -> bool:
        remote, remembered = self._index.listed(key), self._cache.get(key)
        if remote is None or (remembered is not None and remembered.etag == remote):
            return False
        return content.has_opaque_etag or not content.has_etag(remote)

    def _remote(self, key: str, remembered: Remembered | None) -> str | None:
        if remembered is None or remembered == UNCERTAIN or not self._trust:
            return self._index.etag(key)
        return self._index.etag(key) if self._journal.is_open else remembered.etag
