"""The objects in the bucket, from LIST and HEAD requests."""

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Executor
from math import inf
from typing import Any

from collectfast_storage.decision import UNCHECKED, UNKNOWN, Remote
from collectfast_storage.exceptions import BucketError, DeniedError, reason_of
from collectfast_storage.s3.bucket import Bucket, Page
from collectfast_storage.s3.errors import AnswerError, as_bucket_error, transient_of

logger = logging.getLogger("collectfast_storage")

# A page of a listing costs about as much as so many HEADs, in time on two cores.
_HEADS_PER_PAGE = 50
# A listing may have pages without objects, and some servers do not sort keys exactly.
# In an endless listing the keys of a page do not come after those before.
_IDLE_PAGES = 60
_Parameters = Callable[[str], dict[str, Any]]  # of a write, by key


class Listing:
    """The objects below the prefix, listed or asked for; or raises `BucketError`."""

    denial: BucketError | None = None  # why what an object is, is `UNKNOWN`

    def __init__(
        self, bucket: Bucket, parameters: _Parameters, executor: Executor
    ) -> None:
        self._bucket, self._executor = bucket, executor
        self._parameters = parameters  # that a name is written with
        self._remotes: dict[str, Remote | None] = {}
        self._is_complete = False
        self._unlisted: set[str] = set()  # perhaps changed since the listing
        # Directory buckets are not listed in the order of keys.
        is_sorted = not bucket.name.endswith("--x-s3")
        self._idle_pages = _IDLE_PAGES if is_sorted else inf
        self._has_warned = False

    def load(self, wanted: Sequence[str] | None, whole: bool = False) -> None:
        """List what is likely to hold the names `wanted`, sorted; `None`: everything.

        The rest is asked for: all, if no listing is to be had nor the `whole` needed.
        """
        skips = wanted is not None and not whole
        wanted = [name for name in wanted or () if self._bucket.is_valid_name(name)]
        listed, failure = 0, None
        try:
            for page in self._pages():
                listed += len(page.etags)
                found = bisect_right(wanted, max(page.etags, default=""))
                # Are more pages likely to save more HEADs than they cost?
                if page.following and skips and listed / 20 > found + _HEADS_PER_PAGE:
                    break
        except BucketError as error:
            is_none = isinstance(error.cause, AnswerError)
            if whole or not (is_none or isinstance(error, DeniedError)):
                raise
            failure = reason_of(error.cause)
        if not self._is_complete:
            self.ask(name for name in wanted if name not in self._remotes)
        if failure:
            text = (
                "Cannot list bucket %r; sending one HEAD request per file instead: %s"
            )
            self._warn(text, failure)

    def __getitem__(self, name: str) -> Remote | None:
        """Return what the bucket holds as `name`, `None` if there is nothing."""
        is_listed = self._is_complete or name in self._remotes
        if not is_listed or name in self._unlisted:
            self._ask(name)
        return self._remotes.get(name)

    def ask(self, names: Iterable[str]) -> None:
        """Send a HEAD request for each of `names` that may exist, but only once."""
        missing = None if self._is_complete else UNCHECKED
        self._ask(
            *(
                name
                for name in names
                if name in self._unlisted
                or _lacks_metadata(self._remotes.get(name, missing))
            )
        )

    def names(self) -> Set[str]:
        """Return the names of all objects; there is no way but to list them."""
        if not self._is_complete:
            deque(self._pages(), maxlen=0)
        return {name for name, remote in self._remotes.items() if remote is not None}

    def note(self, name: str, remote: Remote | None) -> None:
        """Note what the bucket holds as `name` by now."""
        self._unlisted.discard(name)
        self._remotes[name] = remote
        if remote is UNKNOWN:
            self._warn(
                "Cannot find out whether some files exist in bucket %r, so they are "
                "uploaded. Grant s3:GetObject and s3:ListBucket."
            )

    def forget(self, name: str) -> None:
        """Note that somebody else may have changed `name`: ask when it matters."""
        self._unlisted.add(name)

    def _pages(self) -> Iterator[Page]:
        seen: set[str] = set()
        following: dict[str, Any] = {}
        last, idle = "", 0  # the greatest key; pages that did not come after it
        while True:
            with as_bucket_error(
                self._bucket.name, OSError
            ):  # of a credentials file, say
                page = self._bucket.list(following)
                following = page.following
                idle += min(page.etags, default="") <= last
                last = max([last, *page.etags])
                is_repeated = page.etags and page.etags.keys() <= seen
                if following and (is_repeated or idle > self._idle_pages):
                    raise AnswerError(problem="The listing does not end")
            seen |= page.etags.keys()
            for name, etag in page.etags.items():
                # What was done to it since is newer than a listing.
                known = self._remotes.setdefault(name, Remote(etag))
                if _lacks_metadata(known) and known != Remote(etag):
                    self._unlisted.add(name)  # Two pages do not agree.
            yield page
            if not following:
                self._is_complete = True
                return

    def _ask(self, *names: str) -> None:
        head = self._bucket.head
        key = self._bucket.prefix
        parameters = self._parameters
        answers = [self._executor.submit(head, n, parameters(key + n)) for n in names]
        for name, answer in zip(names, answers, strict=True):
            try:
                with as_bucket_error(
                    self._bucket.name, OSError
                ):  # of a credentials file, say
                    self.note(name, answer.result())
            except DeniedError as error:
                self.denial = error
                self.note(name, UNKNOWN)
            except BucketError as error:
                if transient_of(error.cause) is None:
                    raise
                # Only this one was set aside.
                self.denial, self._remotes[name] = error, UNKNOWN

    def _warn(self, message: str, *arguments: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(message, self._bucket.name, *arguments)


def _lacks_metadata(remote: Remote | None) -> bool:
    return remote is not None and remote.fingerprint is None
