"""Ctrl-C before each line of a module in turn, and the deploys that follow.

No interrupt may leave a wrong entry in the upload cache.
"""

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
    """A trace function that raises KeyboardInterrupt at one line of a module.

    The interrupt comes before the line, or before the return from a function, as
    Python raises it on SIGINT between two instructions of the main thread. Lines and
    returns are numbered in the order in which they are first reached.
    """

    def __init__(self, module: str, number: int) -> None:
        self._file = str(Path(collectfast_storage.__file__).with_name(f"{module}.py"))
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
                time.sleep(0.01)  # Let other threads continue.
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
    site: Site, module: str, *arguments: str, first: int = 1
) -> Iterator[str]:
    """Deploy with an interrupt at every second place of `module`; yield the place."""
    for number in itertools.count(first, 2):
        interrupt = Interrupt(module, number)
        with settled(site.proxy), site.active():
            with suppress(KeyboardInterrupt), interrupt.tracing():
                site.collect(*arguments)
            _call(site)  # The next call of a storage ends an unfinished run.
            gc.collect()  # Close the connections of that run.
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
    [(True, 2, 1), (False, 0, 1), (False, 0, 2)],
)
def test_previous_headers_are_restored_after_an_interrupt(
    site: Site, preload: bool, threads: int, first: int
) -> None:
    """A deploy with the previous headers restores them after an interrupted deploy.

    The interrupted deploy may have changed the headers of some objects, so the upload
    cache must not list these objects with their previous headers.
    """
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


# If the interrupt comes between `open` and its `with` block, only Python's garbage
# collector can close the file, which causes a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("first", [1, 2])
def test_deleted_files_are_uploaded_after_an_interrupted_clear(
    site: Site, first: int
) -> None:
    """A file is uploaded again if an interrupted `--clear` may have deleted it.

    The upload cache must therefore not list files that are about to be deleted.
    """
    site.options = {"collectfast_preload": False}
    for name in ("a", "b", "c"):
        site.write(name, name)
    site.collect()
    wrong = []

    def keep_only(*names: str) -> None:
        for name in "abc":
            (site.static / name).unlink(missing_ok=True)
        for name in names:
            site.write(name, name)

    keep_only("a")
    for where in _interrupted(site, "run", "--clear", first=first):
        keep_only("a", "b", "c")
        site.collect()
        if site.bucket.names() != ["a", "b", "c"]:
            wrong.append(where)
            site.collect(COLLECTFAST_IGNORE_ETAG=True)
        keep_only("a")
    assert wrong == []
