"""The static files of the demo: real ones, from packages of PyPI."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.packages import folder_of

# Package, where in it the static files are, and which of them: some 1,600 in all.
PACKAGES = {
    "django": ("contrib/admin/static", ("*",)),
    "rest_framework": ("static", ("*",)),
    "fontawesomefree": ("static/fontawesomefree", ("css", "webfonts", "svgs/solid")),
}
YEAR_1980 = 315532800


def check_out(directory: Path, most: int | None = None) -> int:
    """Put at most so many files into `directory`, as of now; return how many."""
    shutil.rmtree(directory, ignore_errors=True)
    for package, (below, patterns) in PACKAGES.items():
        root = folder_of(package) / below
        for source in (found for each in patterns for found in root.glob(each)):
            shutil.copytree(
                source,
                directory / source.relative_to(root),
                copy_function=shutil.copyfile,
            )
    names = sorted(files(directory))
    for name in names[most:] if most else ():
        (directory / name).unlink()
    return min(len(names), most or len(names))


def files(directory: Path) -> dict[str, bytes]:
    """Every file below `directory`, as the bucket should have it."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def check_out_again(directory: Path, most: int | None) -> None:
    """Do what a build server does: the same files, with new mtimes."""
    check_out(directory, most)
    # A second from now on, lest it be the second of the first deploy.
    for path in directory.rglob("*"):
        os.utime(path, (time.time() + 1, time.time() + 1))
    time.sleep(1)


def change_one(directory: Path, most: int | None) -> None:
    """Put an older file in the place of one, as `git checkout` or a wheel may."""
    path = directory / "admin" / "css" / "base.css"
    path.write_text("body { color: black }\n")
    os.utime(path, (YEAR_1980, YEAR_1980))


STEPS: dict[str, Callable[[Path, int | None], object]] = {
    "first deploy": check_out_again,
    "redeploy, fresh checkout": check_out_again,
    "redeploy, one file older, changed": change_one,
}
