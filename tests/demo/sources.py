"""The static files of the demo, which come from packages on PyPI."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.packages import folder_of

# The folder with static files in each package, and patterns for some of them. They are
# about 1,600 files.
PACKAGES = {
    "django": ("contrib/admin/static", ("*",)),
    "rest_framework": ("static", ("*",)),
    "fontawesomefree": ("static/fontawesomefree", ("css", "webfonts", "svgs/solid")),
}
YEAR_1980 = 315532800


def check_out(directory: Path, most: int | None = None) -> int:
    """Copy at most `most` files to `directory`, and return their number."""
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
    """Return the contents of all files below `directory`, by name."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def check_out_again(directory: Path, most: int | None) -> None:
    """Copy the same files with new modification times, as a build server does."""
    check_out(directory, most)
    # The times are a second later, because they have to differ from the last deploy's.
    for path in directory.rglob("*"):
        os.utime(path, (time.time() + 1, time.time() + 1))
    time.sleep(1)


def change_one(directory: Path, most: int | None) -> None:
    """Replace a file by an older one with other contents, as a wheel may do."""
    path = directory / "admin" / "css" / "base.css"
    path.write_text("body { color: black }\n")
    os.utime(path, (YEAR_1980, YEAR_1980))


STEPS: dict[str, Callable[[Path, int | None], object]] = {
    "first deploy": check_out_again,
    "redeploy, fresh checkout": check_out_again,
    "redeploy, one file older, changed": change_one,
}
