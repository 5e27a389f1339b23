"""Custom finders that build files, or that can be consumed only once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.contrib.staticfiles.finders import BaseFinder, FileSystemFinder
from django.core.files.storage import FileSystemStorage, Storage

from tests.support.proxy import meanwhile
from tests.support.site import LOCAL, MANIFEST, STATIC, Site
from tests.support.sources import Sources, finder_of

pytestmark = [pytest.mark.slow, pytest.mark.covering]

BACKENDS = pytest.mark.parametrize("backend", [STATIC, MANIFEST])
PLAIN = {
    STATIC: "storages.backends.s3.S3StaticStorage",
    MANIFEST: "storages.backends.s3.S3ManifestStaticStorage",
}
FILES = {
    "built/0.css": b"a { background: url(../img/0.png) }",
    "img/0.png": b"image 0",
    "built/1.js": b"let one = 1",
    "built/2.txt": b"two",
}

Found = Iterator[tuple[str, Storage]]


class BuildingFinder(BaseFinder):
    """A finder that records the calls of `list`, and finds nothing by `find`."""

    files: ClassVar[dict[str, bytes]] = {}
    root: ClassVar[Path]
    calls: ClassVar[list[str]] = []
    numbers: ClassVar[Iterator[int]] = count()

    def check(self, **_: Any) -> list[Any]:
        return []

    def find(self, path: str, *_: Any, **__: Any) -> list[str]:
        return []

    def list(self, ignore_patterns: Any) -> Found:
        self.calls.append(type(self).__name__)
        return self.found()

    def found(self) -> Found:
        raise NotImplementedError

    def build(self, names: list[str]) -> Storage:
        """Write the files `names` to a new folder, and return its storage."""
        folder = self.root / str(next(self.numbers))
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.files[name])
        return FileSystemStorage(location=str(folder))


class OneIterator(BuildingFinder):
    """A finder that returns the same iterator from each call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        storage = Sources(self.files)
        self._found: Found = iter([(name, storage) for name in self.files])

    def found(self) -> Found:
        return self._found


class TakenFromQueue(BuildingFinder):
    """A finder that yields each file only once, in its first call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._queue = list(self.files)

    def found(self) -> Found:
        storage = Sources(self.files)
        while self._queue:
            yield self._queue.pop(0), storage


class BuiltAgain(BuildingFinder):
    """A finder that builds all files in a new folder, and removes the previous one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._built: list[Storage] = []

    def found(self) -> Found:
        for storage in self._built:
            shutil.rmtree(storage.path(""))
        storage = self.build(list(self.files))
        self._built = [storage]
        return iter([(name, storage) for name in self.files])


class BuiltOnce(BuildingFinder):
    """A finder that builds and yields only files that changed since the last call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._built: dict[str, bytes] = {}

    def found(self) -> Found:
        for name in self.files:
            if self._built.get(name) != self.files[name]:
                self._built[name] = self.files[name]
                yield name, self.build([name])


class OneAtATime(BuildingFinder):
    """A finder that removes each built file when the caller requests the next one."""

    def found(self) -> Found:
        for name in self.files:
            storage = self.build([name])
            yield name, storage
            shutil.rmtree(storage.path(""))


class Prefixed(BuildingFinder):
    """A finder that returns the same iterator each time, with a prefixed storage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        storage: Any = Sources(self.files)
        storage.prefix = "prefix"
        self._found: Found = iter([(name, storage) for name in self.files])

    def found(self) -> Found:
        return self._found


class CountedFileSystemFinder(FileSystemFinder):
    """Django's finder that records the calls of its `list`."""

    def list(self, ignore_patterns: Any) -> Any:
        BuildingFinder.calls.append("FileSystemFinder")
        return super().list(ignore_patterns)


FINDERS = [OneIterator, TakenFromQueue, BuiltAgain, BuiltOnce, Prefixed]
# OneAtATime does not work with a manifest, because post-processing opens the sources
# after the finder has yielded the last one.
CASES = [(backend, finder) for backend in (STATIC, MANIFEST) for finder in FINDERS]
CASES.append((STATIC, OneAtATime))
ALL = pytest.mark.parametrize(
    ("backend", "finder"),
    CASES,
    ids=[f"{b.removeprefix('collectfast_storage.')}-{f.__name__}" for b, f in CASES],
)


def _use(site: Site, backend: str, finder: type[BuildingFinder]) -> None:
    site.backend = backend
    site.write("plain.txt", "found by Django's finder")
    site.settings["STATICFILES_FINDERS"] = [
        f"{__name__}.CountedFileSystemFinder",
        f"{__name__}.{finder.__name__}",
    ]
    BuildingFinder.files = dict(FILES)
    BuildingFinder.root = site.root / "built"
    BuildingFinder.calls.clear()


def _locally(site: Site, *arguments: str) -> dict[str, bytes]:
    """Return the files that Django's own storage writes in a first deploy."""
    root = site.root / "collected"
    shutil.rmtree(root, ignore_errors=True)
    site.collect(*arguments, STORAGES={"staticfiles": {"BACKEND": LOCAL[site.backend]}})
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@ALL
@pytest.mark.parametrize("arguments", [[], ["--no-post-process"]], ids=" ".join)
@pytest.mark.parametrize("preload", [True, False])
def test_files_of_a_finder_that_can_be_consumed_once_are_uploaded(
    site: Site,
    backend: str,
    finder: type[BuildingFinder],
    arguments: list[str],
    preload: bool,
) -> None:
    """All files of a finder that can be consumed once are uploaded.

    This holds for the first deploy, and for the next one after a change.
    """
    _use(site, backend, finder)
    site.options["collectfast_preload"] = preload
    expected = _locally(site, *arguments)
    first = site.collect(*arguments)
    assert site.bucket.files() == expected
    assert first.summary.startswith(f"{len(FILES) + 1} static files copied")
    BuildingFinder.files = {**FILES, "built/1.js": b"let one = 2", "new.txt": b"new"}
    expected |= _locally(site, *arguments)
    site.collect(*arguments)
    assert site.bucket.files() == expected


@ALL
@pytest.mark.parametrize("preload", [True, False])
def test_unchanged_files_of_a_finder_that_can_be_consumed_once(
    site: Site, backend: str, finder: type[BuildingFinder], preload: bool
) -> None:
    """A second deploy uploads no unchanged file of a finder that can be consumed once.

    Its summary counts all files as unmodified.
    """
    _use(site, backend, finder)
    site.options["collectfast_preload"] = preload
    site.collect()
    again = site.collect()
    assert again.put == []
    assert again.requests["DELETE"] == again.requests["DELETE MANY"] == 0
    assert again.summary.startswith(
        f"0 static files copied, {len(FILES) + 1} unmodified"
    )


@ALL
@pytest.mark.parametrize("changed", [True, False])
def test_clear_keeps_the_files_of_a_finder_that_can_be_consumed_once(
    site: Site, backend: str, finder: type[BuildingFinder], changed: bool
) -> None:
    """`--clear` deletes only files that none of the finders yields.

    A finder that can be consumed once is not listed first for `--clear` and then again
    for the copies, so its files are never treated as left over.
    """
    _use(site, backend, finder)
    site.collect()
    site.bucket.put("left-over.txt", b"left over")
    before = site.bucket.names()
    if changed:
        BuildingFinder.files = {**FILES, "built/1.js": b"let one = 2"}
    expected = _locally(site)
    cleared = site.collect("--clear")
    after = site.bucket.files()
    assert after.items() >= expected.items()
    assert after.keys() >= {*before} - {"left-over.txt"}
    assert "left-over.txt" not in after
    assert cleared.requests["DELETE"] == 0
    assert cleared.requests["DELETE MANY"] == 1


@BACKENDS
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--no-post-process"],
        ["--dry-run"],
        ["--clear"],
        ["--clear", "--dry-run"],
        ["--clear", "--no-post-process"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("preload", [True, False])
def test_list_is_called_as_often_as_with_django_storages(
    site: Site, backend: str, arguments: list[str], preload: bool
) -> None:
    """A deploy calls each finder's `list` as often as one with django-storages does.

    The order of the calls is the same, too.
    """
    _use(site, PLAIN[backend], BuiltAgain)
    expected = []
    for _ in range(2):
        BuildingFinder.calls.clear()
        site.collect(*arguments)
        expected.append([*BuildingFinder.calls])
    assert expected == [["FileSystemFinder", "BuiltAgain"]] * 2
    site.bucket.clear()
    site.backend = backend
    site.options["collectfast_preload"] = preload
    calls = []
    for _ in range(2):
        BuildingFinder.calls.clear()
        site.collect(*arguments)
        calls.append([*BuildingFinder.calls])
    assert calls == expected


@ALL
def test_dry_run_reports_the_files_of_a_finder_that_can_be_consumed_once(
    site: Site, backend: str, finder: type[BuildingFinder]
) -> None:
    """A dry run counts each file of a finder that can be consumed once.

    It uploads nothing.
    """
    _use(site, backend, finder)
    dry = site.collect("--dry-run")
    assert dry.put == []
    assert dry.summary.startswith(f"{len(FILES) + 1} static files copied")
    site.collect()
    again = site.collect("--dry-run")
    assert again.summary.startswith(
        f"0 static files copied, {len(FILES) + 1} unmodified"
    )


@BACKENDS
def test_custom_finder_replaces_a_file_of_a_finder_of_django(
    site: Site, backend: str
) -> None:
    """If two finders yield the same name, the file of the first finder is uploaded.

    The bucket contains the second finder's file from an earlier deploy, and that file
    may be read while the bucket is listed.
    """
    site.backend = backend
    site.write("a.txt", "found by Django's finder")
    site.collect()
    site.settings["STATICFILES_FINDERS"] = [
        finder_of({"a.txt": b"found by a finder of the site"}),
        "django.contrib.staticfiles.finders.FileSystemFinder",
    ]
    # A slow listing gives the package time to read the sources ahead.
    site.proxy.fault = meanwhile("LIST", lambda: time.sleep(0.3))
    site.collect()
    assert site.bucket.read("a.txt") == b"found by a finder of the site"
