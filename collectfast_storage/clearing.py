"""What `--clear` clears: all that is neither a source nor saved, and last of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

from collectfast_storage.deletion import Deletion
from collectfast_storage.inquiry import Inquiry
from collectfast_storage.plan import Plan
from collectfast_storage.sources import Sources


class Clearing:
    """What is to stay in the bucket; in a run that clears, all else is left over."""

    def __init__(
        self,
        plan: Plan,
        inquiry: Inquiry,
        sources: Sources,
        deletion: Deletion,
        keep: Iterable[str],
        name_of: Callable[[str], str],
        tell_cleared: Callable[[Iterable[str]], object],
    ) -> None:
        """Leave the `sources` and the keys to `keep` alone.

        Without a barrier it clears when the last source has arrived, and calls
        `tell_cleared` with the names of what it cleared.
        """
        self._plan = plan
        self._inquiry = inquiry
        self._sources = sources
        self._deletion = deletion
        self._name_of = name_of
        self._tell_cleared = tell_cleared
        self._is_done = plan.barrier or not plan.clear
        self.kept = set(keep)

    def left_over(self) -> set[str]:
        """Return the keys of all that is there and left over."""
        if not self._plan.clear:
            return set()
        # A key with a slash at its end is a folder, to those who believe in them.
        files = {key for key in self._inquiry.all_keys() if not key.endswith("/")}
        return {key for key in files if self.is_left_over(key)}

    def is_left_over(self, key: str) -> bool:
        """Tell whether `key` is, in a run that clears, neither a source nor kept."""
        if not self._plan.clear or key in self.kept:
            return False
        return key not in self._sources.by_key

    def arrived(self, key: str) -> None:
        """Without a barrier, clear if no source is awaited after `key`."""
        if self._is_done:
            return
        self._awaited.discard(key)
        if not self._awaited:
            self._is_done = True
            left_over = self.left_over()
            self._deletion.carry_out(left_over)
            self._tell_cleared(sorted(map(self._name_of, left_over)))

    @cached_property
    def _awaited(self) -> set[str]:
        # In a dry run none will arrive.
        return set() if self._plan.dry_run else set(self._sources.by_key)
