"""What a run asks of the bucket, which is looked at when the first question comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from concurrent.futures import Executor
from functools import cached_property
from typing import Any, TypeVar

from collectfast_storage.bucket import Bucket
from collectfast_storage.content import Content
from collectfast_storage.diagnosis import naming
from collectfast_storage.exceptions import DeniedError
from collectfast_storage.executor import BoundedExecutor
from collectfast_storage.ledger import Ledger, Verdict
from collectfast_storage.plan import Plan
from collectfast_storage.sources import Sources

_T = TypeVar("_T")


class Inquiry:
    """Asks a ledger, and sees to it that it knows the answers.

    Raises `DeniedError` where one object must not be asked for, and `BucketError` where
    the bucket cannot be used.
    """

    def __init__(
        self,
        plan: Plan,
        bucket: Bucket,
        ledger: Ledger,
        executor: Executor,
        sources: Sources,
        expected: Iterable[str],
        started: Callable[[int], object],
    ) -> None:
        """Look at `bucket` in `executor`, for the `sources` and the keys `expected`.

        `started` is called with the number of the sources before that.
        """
        self._plan = plan
        self._bucket = bucket
        self._ledger = ledger
        self._executor = executor
        self._sources = sources
        self._expected = expected
        self._started = started
        self._prepared = False
        ledger.read = sources.read
        if plan.collects and plan.as_is:
            ledger.before_heads = self._ask_ahead

    @cached_property
    def wanted(self) -> list[str]:
        """The keys that will be asked for, as far as they are known, sorted."""
        return sorted({*self._sources.by_key, *self._expected})

    def exists(self, key: str) -> bool:
        """Tell whether the bucket has `key`."""
        return self._ask(self._ledger.exists, key)

    def may_exist(self, key: str) -> bool:
        """Tell whether the bucket has `key`, or does not say so."""
        try:
            return self.exists(key)
        except DeniedError:
            return True

    def all_keys(self) -> Set[str]:
        """Return all keys that the bucket has."""
        return self._ask(self._ledger.keys)

    def verdict(self, key: str, content: Content) -> Verdict:
        """Tell whether the bucket has `content` as `key`."""
        return self._ask(self._ledger.verdict, key, content)

    def _ask(self, question: Callable[..., _T], *arguments: Any) -> _T:
        if not self._prepared:
            self._prepared = True
            with naming(self._bucket.name):
                self._prepare()
        with naming(self._bucket.name, one=True):
            return question(*arguments)

    def _prepare(self) -> None:
        """List the bucket, and read sources while it answers."""
        self._started(len(self._sources.by_key))
        if not self._ledger.lists:
            return
        self._bucket.connect()
        # Not in a thread of the executor, which has to run what this waits for.
        loader = BoundedExecutor(1)
        try:
            loading = loader.submit(
                self._ledger.load, self._executor, self.wanted, whole=self._plan.clear
            )
            if self._plan.as_is:
                self._sources.read_ahead(loading.done, self._ledger.remembers)
            loading.result()
        finally:
            loader.shutdown(wait=False)

    def _ask_ahead(self) -> None:
        """Ask at once for all that no ETag can decide, and not file by file."""
        self._sources.read_ahead(lambda: False, self._ledger.remembers)
        self._ledger.ask(self._executor, self._sources.read())
