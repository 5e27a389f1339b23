"""The second look of a run that wrote something, before it says that all is well."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

from collectfast_storage.clearing import Clearing
from collectfast_storage.content import Content
from collectfast_storage.deletion import Deletion
from collectfast_storage.exceptions import UploadError, counted
from collectfast_storage.inquiry import Inquiry
from collectfast_storage.ledger import Ledger, Verdict
from collectfast_storage.plan import Plan
from collectfast_storage.sources import Sources

logger = logging.getLogger("collectfast_storage")

# How to make again what was made of the sources, by the keys that tell no content.
Republish = Mapping[str, Callable[[], object]]

# Another run at the same time has to be met twice in a row; this is many times that.
_LOOKS = 10


class Verification:
    """Looks at the bucket again, and puts right what another program wrote meanwhile.

    A run that ends well has looked and found all as it should be, and written nothing
    since. So of several at once, the bucket ends as the last to look.
    """

    def __init__(
        self,
        plan: Plan,
        inquiry: Inquiry,
        ledger: Ledger,
        executor: Executor,
        sources: Sources,
        clearing: Clearing,
        deletion: Deletion,
        replaced: Mapping[str, bool],
        name_of: Callable[[str], str],
    ) -> None:
        """List in `executor` what is to be there: the `sources` and what is kept.

        In the place of some of them something else was `replaced`; if it is true of a
        key, the ledger knows what with.
        """
        self._plan = plan
        self._inquiry = inquiry
        self._ledger = ledger
        self._executor = executor
        self._sources = sources
        self._clearing = clearing
        self._deletion = deletion
        self._replaced = replaced
        self._name_of = name_of

    def carry_out(
        self,
        upload: Callable[[str, Content], object],
        wait: Callable[[], object],
        republish: Republish,
        *,
        hashed: bool,
    ) -> None:
        """Look, and `upload` what was lost, `wait` for it and look again.

        Names that are not those of sources tell the content if they are `hashed`.
        Raises `UploadError` for what cannot be put right.
        """
        for number in range(_LOOKS):
            # Not in step with another run that puts its own right.
            time.sleep(random.uniform(0, number / 2))  # noqa: S311
            lost, left_over = self._lost(republish, hashed), self._clearing.left_over()
            if not lost and not left_over:
                return
            self._restore(lost, upload, republish)
            wait()
            self._deletion.carry_out(left_over)
        raise self._failure(lost, "it is being overwritten")

    def _lost(self, republish: Republish, hashed: bool) -> list[str]:
        keys = sorted({*self._sources.by_key, *self._clearing.kept})
        changed = self._ledger.look_again(self._executor, keys)
        return sorted(
            key for key in changed if key in republish or self._is_lost(key, hashed)
        )

    def _is_lost(self, key: str, hashed: bool) -> bool:
        if self._is_source(key):
            return not self._sources.judge(key, partial(self._is_held, key))
        is_named_so = key in self._sources.by_key
        tells_content = hashed and not is_named_so
        known = not tells_content and self._replaced.get(key, is_named_so)
        return known or not self._inquiry.may_exist(key)

    def _is_held(self, key: str, content: Content) -> bool:
        return self._inquiry.verdict(key, content) is Verdict.HELD

    def _is_source(self, key: str) -> bool:
        as_is = self._plan.as_is and key not in self._replaced
        return as_is and key in self._sources.by_key

    def _restore(
        self,
        lost: Sequence[str],
        upload: Callable[[str, Content], object],
        republish: Republish,
    ) -> None:
        made = [key for key in lost if not self._is_source(key)]
        if made and not republish:
            reason = "another program overwrote or deleted it during this run"
            raise self._failure(made, reason)
        if lost:
            logger.warning(
                "Overwritten or deleted by another program during this run, and "
                "uploaded again: %s.",
                counted(len(lost)),
            )
        for key in lost:
            if self._is_source(key):
                self._sources.hand_over(key, partial(upload, key))
        for publish_again in republish.values() if made else ():
            publish_again()

    def _failure(self, keys: Iterable[str], reason: str) -> UploadError:
        return UploadError(dict.fromkeys(map(self._name_of, keys), reason))
