"""The files that the benchmark deploys, which come from packages on PyPI."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.packages import folder_of

PACKAGES = ("django", "rest_framework", "wagtail", "fontawesomefree")
STATIC = "static"


def build(directory: Path, size: int) -> int:
    """Copy `size` files to `directory`, some of them several times if needed."""
    count = 0
    for copy in itertools.count():
        for source, name in _files():
            target = directory / (f"copy{copy}" if copy else "") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            count += 1
            if count == size:
                return count
    raise AssertionError("unreachable")


def _files() -> Iterator[tuple[Path, str]]:
    """Yield the path and name of each file.

    In each folder CSS and JavaScript come last, because they refer to other files.
    """
    for package in PACKAGES:
        for folder in sorted(folder_of(package).rglob(STATIC)):
            paths = sorted(folder.rglob("*"))
            for path in sorted(paths, key=lambda each: each.suffix in (".css", ".js")):
                name = path.relative_to(folder).as_posix()
                if path.is_file() and "js-packages" not in name:
                    yield path, name


def touch(directory: Path) -> None:
    """Give every file a newer modification time, as a fresh checkout does."""
    now = time.time() + 2
    for path in directory.rglob("*"):
        if path.is_file():
            os.utime(path, (now, now))


def change_one(directory: Path) -> None:
    """Change the contents of one file."""
    path = directory / "admin" / "img" / "LICENSE"
    path.write_text(f"changed at {time.time_ns()}\n")
