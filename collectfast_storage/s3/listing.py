"""The objects in the bucket, from LIST and HEAD requests."""

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Executor
from math import inf
from typing import Any

from collectfast_storage.decision import UNCHECKED, UNKNOWN, Remote
from collectfast_storage.exceptions import BucketError, DeniedError, reason_of
from collectfast_storage.s3.bucket import Bucket, Page
from collectfast_storage.s3.errors import AnswerError, as_bucket_error, transient_of

logger = logging.getLogger("collectfast_storage")

# A page of a listing takes as long as this number of HEAD requests, on two cores.
_HEADS_PER_PAGE = 50
# Some servers return pages without objects, or do not sort keys exactly. A listing is
# endless if more pages than this do not follow the previous keys.
_MOST_IDLE_PAGES = 60
_Parameters = Callable[[str], dict[str, Any]]  # for writing a key


class Listing:
    """The objects below the prefix; its methods raise `BucketError`."""

    denial: BucketError | None = None  # the reason why an object is `UNKNOWN`

    def __init__(
        self, bucket: Bucket, parameters: _Parameters, executor: Executor
    ) -> None:
        self._bucket, self._executor = bucket, executor
        self._parameters = parameters
        self._remotes: dict[str, Remote | None] = {}
        self._is_complete = False
        # Names of objects that may have changed since they were listed.
        self._outdated: set[str] = set()
        # The listing of a directory bucket is not sorted.
        is_sorted = not bucket.name.endswith("--x-s3")
        self._most_idle_pages = _MOST_IDLE_PAGES if is_sorted else inf
        self._has_warned = False

    def load(self, wanted: Sequence[str] | None, whole: bool = False) -> None:
        """List the pages that are likely to contain `wanted`, sorted; `None`: all.

        HEAD requests are sent for the other names, and for all if the bucket cannot be
        listed. If the `whole` listing is needed, that is an error.
        """
        may_stop = wanted is not None and not whole
        wanted = [name for name in wanted or () if self._bucket.is_valid_name(name)]
        listed, failure = 0, None
        try:
            for page in self._pages():
                listed += len(page.etags)
                found = bisect_right(wanted, max(page.etags, default=""))
                # Do more pages take longer than the HEAD requests that they save?
                pages = listed / 1000
                is_slow = pages * _HEADS_PER_PAGE > found + _HEADS_PER_PAGE
                if page.following and may_stop and is_slow:
                    break
        except BucketError as error:
            is_useless = isinstance(error.cause, AnswerError)
            if whole or not (is_useless or isinstance(error, DeniedError)):
                raise
            failure = error.cause
        if not self._is_complete:
            self.request_heads(name for name in wanted if name not in self._remotes)
        if failure:
            text = (
                "Cannot list bucket %r; sending one HEAD request per file instead: %s"
            )
            self._warn(text, reason_of(failure))

    def __getitem__(self, name: str) -> Remote | None:
        """Return the object `name`; `None` if there is none."""
        is_listed = self._is_complete or name in self._remotes
        if not is_listed or name in self._outdated:
            self._head([name])
        return self._remotes.get(name)

    def request_heads(self, names: Iterable[str]) -> None:
        """Send a HEAD request for each of `names` that may exist and had none."""
        unlisted = None if self._is_complete else UNCHECKED

        def is_needed(name: str) -> bool:
            remote = self._remotes.get(name, unlisted)
            return name in self._outdated or _lacks_metadata(remote)

        self._head([*filter(is_needed, names)])

    def names(self) -> Set[str]:
        """Return the names of all objects; list the rest of the bucket if needed."""
        if not self._is_complete:
            for _ in self._pages():
                pass
        return {name for name, remote in self._remotes.items() if remote is not None}

    def note(self, name: str, remote: Remote | None) -> None:
        """Note that `name` is `remote` now."""
        self._outdated.discard(name)
        self._remotes[name] = remote
        if remote is UNKNOWN:
            self._warn(
                "Cannot find out whether some files exist in bucket %r, so they are "
                "uploaded. Grant s3:GetObject and s3:ListBucket."
            )

    def invalidate(self, name: str) -> None:
        """Send a HEAD request when `name` is needed, because it may have changed."""
        self._outdated.add(name)

    def _pages(self) -> Iterator[Page]:
        seen: set[str] = set()
        following: dict[str, Any] = {}
        last, idle = "", 0  # the greatest key, and pages that did not follow it
        while True:
            # A credentials file may be unreadable, which is an OSError.
            with as_bucket_error(self._bucket.name, OSError):
                page = self._bucket.list(following)
                following = page.following
                idle += min(page.etags, default="") <= last
                last = max([last, *page.etags])
                is_repeated = page.etags and page.etags.keys() <= seen
                if following and (is_repeated or idle > self._most_idle_pages):
                    raise AnswerError(problem="The listing does not end")
            seen |= page.etags.keys()
            for name, etag in page.etags.items():
                # A change that this run has made is newer than the listing.
                known = self._remotes.setdefault(name, Remote(etag))
                if _lacks_metadata(known) and known != Remote(etag):
                    self._outdated.add(name)  # Two pages have different ETags.
            yield page
            if not following:
                self._is_complete = True
                return

    def _head(self, names: Sequence[str]) -> None:
        responses = []
        for name in names:
            parameters = self._parameters(self._bucket.prefix + name)
            head = self._executor.submit(self._bucket.head, name, parameters)
            responses.append(head)
        for name, response in zip(names, responses, strict=True):
            try:
                with as_bucket_error(self._bucket.name, OSError):
                    self.note(name, response.result())
            except DeniedError as error:
                self.denial = error
                self.note(name, UNKNOWN)
            except BucketError as error:
                if transient_of(error.cause) is None:
                    raise
                # Only this request was given up, so the run goes on without a warning.
                self.denial, self._remotes[name] = error, UNKNOWN

    def _warn(self, message: str, *arguments: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(message, self._bucket.name, *arguments)


def _lacks_metadata(remote: Remote | None) -> bool:
    return remote is not None and remote.fingerprint is None
