"""What the bucket holds."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Executor
from itertools import chain, zip_longest
from typing import Any

from botocore.exceptions import ClientError

from collectfast_storage.answers import Head, Page
from collectfast_storage.bucket import Bucket
from collectfast_storage.diagnosis import is_denied
from collectfast_storage.exceptions import AnswerError
from collectfast_storage.keys import is_possible

logger = logging.getLogger("collectfast_storage")

# A page of a listing costs about as much as so many HEADs, in time on two cores.
_HEADS_PER_PAGE = 50
# A listing may have pages without objects; one without an end has nothing else.
_FRUITLESS_PAGES = 100


class RemoteIndex:
    """The ETag of each object below the bucket's prefix.

    With `preload`, they are listed: the first page at once, and if there are more, the
    rest in ranges side by side, as far as they are likely to hold what is wanted. What
    was not listed is asked for key by key with HEAD, each once.

    Where it is not permitted to ask for a key, that is a `ClientError` (see
    `is_denied`), and never taken for an object that is not there.
    """

    def __init__(
        self,
        bucket: Bucket,
        parameters: Callable[[str], dict[str, Any]],
        *,
        preload: bool,
    ) -> None:
        """Ask `bucket`; `parameters` gives those that a key is written with."""
        self._bucket = bucket
        self._parameters = parameters
        self._etags: dict[str, str | None] = {}
        self._heads: dict[str, Head | ClientError | None] = {}
        self._loaded = not preload
        self._complete = False
        self._doubtful: set[str] = set()
        self._has_warned = False

    @property
    def lists(self) -> bool:
        """Whether `load` has anything to do."""
        return not self._loaded

    @property
    def is_complete(self) -> bool:
        """Whether all was listed."""
        return self._complete

    def load(
        self, executor: Executor, wanted: Sequence[str] = (), *, whole: bool = False
    ) -> None:
        """List what is likely to hold the keys `wanted`, which are sorted; or `whole`.

        Without permission to list, the keys `wanted` are asked for; unless `whole`.
        To be called once, where it `lists`.
        """
        self._loaded = True
        wanted = [key for key in wanted if is_possible(key)]
        try:
            page = self._bucket.list()
        except ClientError as error:
            if whole or not is_denied(error):
                raise
            self._do_without_listing(executor, wanted)
            return
        self._take(page)
        if not page.token:
            self._complete = True
        elif whole or self._is_worth_listing(page, wanted):
            self._list_the_rest(executor, page, wanted)
        else:
            self.ask(executor, wanted)

    def anew(self) -> RemoteIndex:
        """Return an index of the same bucket that knows nothing yet."""
        return RemoteIndex(self._bucket, self._parameters, preload=True)

    def unlike(self, other: RemoteIndex, keys: Iterable[str]) -> list[str]:
        """Return those of `keys` that the `other` index knows with another ETag."""
        return [key for key in keys if self.listed(key) != other.listed(key)]

    def etag(self, key: str) -> str | None:
        """Return the ETag of `key`, `None` if there is no such object."""
        if key not in self._etags and (not self._complete or key in self._doubtful):
            self.head(key)
        return self._etags.get(key)

    def listed(self, key: str) -> str | None:
        """Return the ETag of `key` if it is known, without asking."""
        return self._etags.get(key)

    def head(self, key: str) -> Head | None:
        """Return what a HEAD of `key` tells, asked for once."""
        if key not in self._heads:
            self._note(key, self._head(key))
        head = self._heads[key]
        if isinstance(head, ClientError):
            raise head
        return head

    def ask(self, executor: Executor, keys: Iterable[str]) -> None:
        """Ask for those of `keys` that nothing is known of, side by side."""
        unknown = [key for key in keys if key not in self._etags]
        self.ask_heads(executor, unknown)

    def ask_heads(self, executor: Executor, keys: Iterable[str]) -> None:
        """Ask for the heads of `keys`, side by side."""
        unknown = [key for key in keys if key not in self._heads]
        answers = [executor.submit(self._head, key) for key in unknown]
        for key, answer in zip(unknown, answers, strict=True):
            self._note(key, answer.result())

    def keys(self) -> Set[str]:
        """Return the keys of all objects; there is no way but to list them."""
        if not self._complete:
            for page in self._list_range("", "", None):
                self._take(page)
            self._complete = True
        return {key for key, etag in self._etags.items() if etag is not None}

    def put(self, key: str, etag: str) -> None:
        """Note that `key` has been uploaded."""
        self._heads.pop(key, None)
        self._etags[key] = etag

    def remove(self, key: str) -> None:
        """Note that `key` has been deleted."""
        self._heads.pop(key, None)
        self._etags[key] = None

    def forget(self, key: str) -> None:
        """Note that somebody else may have changed `key`: ask when it matters."""
        self._heads.pop(key, None)
        self._etags.pop(key, None)
        self._doubtful.add(key)

    def _take(self, page: Page) -> None:
        # What this run has put or deleted is newer than a listing.
        for key, etag in page.etags.items():
            self._etags.setdefault(key, etag)

    def _head(self, key: str) -> Head | ClientError | None:
        try:
            return self._bucket.head(key, self._parameters(key))
        except ClientError as error:
            if not is_denied(error):
                raise
            return error

    def _note(self, key: str, head: Head | ClientError | None) -> None:
        self._heads[key] = head
        if isinstance(head, ClientError):
            self._warn(
                "The bucket %r does not tell whether some of the files are there, so "
                "they are uploaded. Either the permission s3:GetObject is missing, or "
                "they are not there, and s3:ListBucket is missing."
            )
        else:
            self._etags[key] = None if head is None else head.etag

    def _warn(self, message: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(message, self._bucket.name)

    def _do_without_listing(self, executor: Executor, wanted: Sequence[str]) -> None:
        self.ask(executor, wanted)
        self._warn(
            "The bucket %r may not be listed, so each file is asked for. With the "
            "permission s3:ListBucket that takes a request for 1,000 files."
        )

    def _is_worth_listing(self, page: Page, wanted: Sequence[str]) -> bool:
        """Tell whether pages like `page` save more HEADs than they cost."""
        found = bisect_right(wanted, max(page.etags, default=""))
        return found >= len(page.etags) / 20 or len(wanted) - found <= _HEADS_PER_PAGE

    def _list_the_rest(
        self, executor: Executor, page: Page, wanted: Sequence[str]
    ) -> None:
        """List what comes after `page`, in as many ranges as it will have pages."""
        ranges = [
            executor.submit(self._list_range, token, start, end)
            for token, start, end in self._ranges(page, wanted)
        ]
        overwritten = set()
        for each in chain.from_iterable(pages.result() for pages in ranges):
            overwritten |= {k for k, e in each.etags.items() if self._differs(k, e)}
            self._take(each)
        for key in overwritten:
            self.forget(key)
        self._complete = True

    def _differs(self, key: str, etag: str) -> bool:
        return self._etags.get(key, etag) != etag

    def _ranges(
        self, page: Page, wanted: Sequence[str]
    ) -> Iterator[tuple[str, str, str | None]]:
        """Yield a token or a key to start after, and a key to end with, for each."""
        keys = list(page.etags)
        in_order = keys and keys == sorted(keys)
        found = bisect_right(wanted, keys[-1]) if in_order else 0
        # A little less than a page each, lest a few objects more cost a page more.
        step = found * 19 // 20
        ends = wanted[found + step - 1 : -1 : step] if step else ()
        starts = [("", end) for end in ends]
        for (token, start), end in zip_longest([(page.token, ""), *starts], ends):
            yield token, start, end

    def _list_range(self, token: str, start: str, end: str | None) -> list[Page]:
        """List from `token` or after `start` to the key `end`, or to the end of all."""
        pages = [self._bucket.list(after=start, token=token)]
        known, fruitless = set(pages[0].etags), 0
        while pages[-1].token and (
            end is None or max(pages[-1].etags, default="") < end
        ):
            pages.append(self._bucket.list(token=pages[-1].token))
            fruitless = fruitless + 1 if pages[-1].etags.keys() <= known else 0
            if fruitless > _FRUITLESS_PAGES:
                raise AnswerError(what="Its listing does not end")
            known |= pages[-1].etags.keys()
        return pages
