"""What the bucket holds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import Executor
from itertools import zip_longest
from typing import Any

from collectfast_storage.bucket import Bucket, Page

# A page of a listing costs about as much as so many HEADs, in time on two cores.
_HEADS_PER_PAGE = 50


class RemoteIndex:
    """The ETag of each object below the bucket's prefix.

    With `preload`, they are listed: the first page at once, and if there are more, the
    rest in ranges side by side, as far as they are likely to hold what is wanted. What
    was not listed is asked for key by key with HEAD, each once.
    """

    def __init__(
        self,
        bucket: Bucket,
        head_parameters: Callable[[str], dict[str, Any]],
        *,
        preload: bool,
    ) -> None:
        """Ask `bucket`; `head_parameters` gives those that the HEAD of a key needs."""
        self._bucket = bucket
        self._head_parameters = head_parameters
        self._preload = preload
        self._etags: dict[str, str | None] = {}
        self._loaded = not preload
        self._complete = False
        self._doubtful: set[str] = set()

    @property
    def lists(self) -> bool:
        """Whether `load` has anything to do."""
        return not self._loaded

    def load(self, executor: Executor, wanted: Sequence[str] = ()) -> None:
        """List what is likely to hold the keys `wanted`, which are sorted."""
        if self._loaded:
            return
        self._loaded = True
        page = self._bucket.list()
        self._take(page)
        if not page.token:
            self._complete = True
        elif self._is_worth_listing(page, wanted):
            self._list_the_rest(executor, page, wanted)
        else:
            self._ask_for(executor, wanted)

    def etag(self, key: str) -> str | None:
        """Return the ETag of `key`, `None` if there is no such object."""
        if not self._loaded:
            self._list_to_the_end()
        if key not in self._etags and (not self._complete or key in self._doubtful):
            self._etags[key] = self._head(key)
        return self._etags.get(key)

    def keys(self) -> Set[str]:
        """Return the keys of all objects; there is no way but to list them."""
        if not self._complete:
            self._list_to_the_end()
        return {key for key, etag in self._etags.items() if etag is not None}

    def put(self, key: str, etag: str) -> None:
        """Note that `key` has been uploaded."""
        self._etags[key] = etag

    def remove(self, key: str) -> None:
        """Note that `key` has been deleted."""
        self._etags[key] = None

    def forget(self, key: str) -> None:
        """Note that somebody else may have changed `key`: ask when it matters."""
        self._etags.pop(key, None)
        self._doubtful.add(key)

    def _take(self, page: Page) -> None:
        # What this run has put or deleted is newer than a listing.
        self._etags = {**page.etags, **self._etags}

    def _head(self, key: str) -> str | None:
        return self._bucket.head(key, self._head_parameters(key))

    def _is_worth_listing(self, page: Page, wanted: Sequence[str]) -> bool:
        """Tell whether pages like `page` save more HEADs than they cost."""
        if not wanted:
            return True
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
        for pages in ranges:
            for each in pages.result():
                self._take(each)
        self._complete = True

    def _ranges(
        self, page: Page, wanted: Sequence[str]
    ) -> Iterator[tuple[str, str, str | None]]:
        """Yield a token or a key to start after, and a key to end with, for each."""
        keys = list(page.etags)
        found = bisect_right(wanted, keys[-1]) if keys == sorted(keys) else 0
        # A little less than a page each, lest a few objects more cost a page more.
        step = found * 19 // 20
        ends = wanted[found + step - 1 : -1 : step] if step else ()
        starts = [("", end) for end in ends]
        for (token, start), end in zip_longest([(page.token, ""), *starts], ends):
            yield token, start, end

    def _list_range(self, token: str, start: str, end: str | None) -> list[Page]:
        """List from `token` or after `start` to the key `end`, or to the end of all."""
        pages = [self._bucket.list(after=start, token=token)]
        while pages[-1].token and (
            end is None or max(pages[-1].etags, default="") < end
        ):
            pages.append(self._bucket.list(token=pages[-1].token))
        return pages

    def _list_to_the_end(self) -> None:
        for page in self._list_range("", "", None):
            self._take(page)
        self._loaded = self._complete = True

    def _ask_for(self, executor: Executor, wanted: Sequence[str]) -> None:
        missing = [key for key in wanted if key not in self._etags]
        answers = [executor.submit(self._head, key) for key in missing]
        for key, answer in zip(missing, answers, strict=True):
            self._etags[key] = answer.result()
