"""What keeps threads of one process from each other's data."""

from __future__ import annotations

import os
import threading
import weakref

_ALL: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


class ForkSafeLock:
    """A reentrant lock that a child of a fork finds open.

    There the thread that held it is no more. It is reentrant as garbage may be
    collected at any moment, and a collectstatic that failed then writes what it knows.
    """

    def __init__(self) -> None:
        self.reset()
        _ALL.add(self)

    def reset(self) -> None:
        """Forget who holds it."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


def _reset_all() -> None:
    for lock in _ALL:
        lock.reset()


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has none)
    os.register_at_fork(after_in_child=_reset_all)
