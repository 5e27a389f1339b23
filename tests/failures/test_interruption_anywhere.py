"""Ctrl-C at each moment in turn of sending or deleting, and what comes after it."""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import collectfast_storage
from tests.support.processes import settled
from tests.support.site import Site

pytestmark = pytest.mark.slow


class Interrupt:
    """Raises KeyboardInterrupt ahead of one of the lines of `room` that are run.

    Or ahead of the return from a function: as Python does on SIGINT, between two
    instructions of the main thread. Each counts when it is come to for the first time.
    """

    def __init__(self, room: str, number: int) -> None:
        self._file = str(Path(collectfast_storage.__file__).with_name(f"{room}.py"))
        self._left = number
        self._seen: set[object] = set()
        self.where = ""

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != self._file:
            return None
        moment = frame.f_code, frame.f_lineno, event
        if event in ("line", "return") and moment not in self._seen:
            self._seen.add(moment)
            self._left -= 1
            if self._left == 0:
                time.sleep(0.01)  # Other threads get on meanwhile.
                self.where = f"{frame.f_code.co_name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self

    @contextmanager
    def tracing(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


def _call(site: Site) -> None:
    with site.storage() as storage:
        storage.exists("a")


def _interrupted(
    site: Site, room: str, *arguments: str, first: int = 1
) -> Iterator[str]:
    """Deploy, interrupted at every other moment of `room`; yield where that was."""
    for number in itertools.count(first, 2):
        interrupt = Interrupt(room, number)
        with settled(site.proxy), site.active():
            with suppress(KeyboardInterrupt), interrupt.tracing():
                site.collect(*arguments)
            _call(
                site
            )  # The next call of a storage forgets a run whose caller left it.
            gc.collect()  # Its connections end with it.
        if not interrupt.where:
            assert number > 10
            return
        yield interrupt.where


def _headers(site: Site) -> set[str]:
    return {
        site.bucket.get(name).get("CacheControl", "") for name in site.bucket.names()
    }


@pytest.mark.parametrize(
    ("preload", "threads", "first"),
    [(True, 2, 1), (False, 2, 2), (False, 0, 1), (False, 0, 2)],
)
def test_back_to_the_headers_before(
    site: Site, preload: bool, threads: int, first: int
) -> None:
    """Nobody believes that the headers are there which the interrupted one replaced."""
    site.options = {"collectfast_preload": preload, "collectfast_threads": threads}
    for name in ("a", "b", "c"):
        site.write(name, name)

    def cached_for(age: str) -> None:
        site.options["object_parameters"] = {"CacheControl": age}

    cached_for("max-age=60")
    site.collect()
    cached_for("max-age=99")
    wrong = []
    for where in _interrupted(site, "uploads", first=first):
        cached_for("max-age=60")
        site.collect()
        if _headers(site) != {"max-age=60"}:
            wrong.append(where)
            site.collect(COLLECTFAST_IGNORE_ETAG=True)
        cached_for("max-age=99")
    assert wrong == []


# A file that is interrupted between its opening and its `with` is Python's to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("first", [1, 2])
def test_back_to_what_was_cleared(site: Site, first: int) -> None:
    """Nobody believes that what may have been deleted is there."""
    site.options = {"collectfast_preload": False}
    for name in ("a", "b", "c"):
        site.write(name, name)
    site.collect()
    wrong = []

    def leave(*names: str) -> None:
        for name in "abc":
            (site.static / name).unlink(missing_ok=True)
        for name in names:
            site.write(name, name)

    leave("a")
    for where in _interrupted(site, "run", "--clear", first=first):
        leave("a", "b", "c")
        site.collect()
        if site.bucket.names() != ["a", "b", "c"]:
            wrong.append(where)
            site.collect(COLLECTFAST_IGNORE_ETAG=True)
        leave("a")
    assert wrong == []
