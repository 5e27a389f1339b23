"""Commands that copy some of the files to another storage."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from django.contrib.staticfiles.finders import FileSystemFinder
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.core.files.storage import InMemoryStorage, Storage, storages
from django.core.management import call_command
from django.core.management.base import CommandError

from tests.support.proxy import Fault, Handler, Request, refuse
from tests.support.site import LOCAL, MANIFEST, STATIC, Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

THEIRS = "storages.backends.s3.S3StaticStorage"
DISK = "django.core.files.storage.FileSystemStorage"
BACKENDS = (STATIC, MANIFEST)
ARGUMENTS = ("", "--no-post-process")
OTHERS = ("ours", "ours hashed", "theirs", "memory", "disk")
IN_S3 = OTHERS[:3]
REFUSAL = (ClientError, CommandError)


KEPT: dict[str, Storage] = {}


def memory(key: str) -> Storage:
    """Return a storage in memory that is kept between deploys, as a bucket is."""
    return KEPT.setdefault(key, InMemoryStorage())


# Commands that route their files: images belong to the other storage.


def _is_routed(name: str) -> bool:
    return name.startswith("img/")


class Routing(Command):
    """The base class of the commands that route files."""

    def collect(self) -> dict[str, list[str]]:
        # Django caches this property, so it has to be read for the main storage.
        self.local  # noqa: B018
        collected: dict[str, list[str]] = super().collect()
        return collected


class Restoring(Routing):
    """A command that sets `self.storage` for each image, and restores it afterwards."""

    def copy_file(self, path: str, prefixed_path: str, source: Storage) -> None:
        main = self.storage
        if _is_routed(prefixed_path):
            self.storage = storages["other"]
        try:
            super().copy_file(path, prefixed_path, source)
        finally:
            self.storage = main


class Switching(Routing):
    """A command that sets `self.storage` for each file, and restores it at the end."""

    def collect(self) -> dict[str, list[str]]:
        self.main = self.storage
        self.other = storages["other"]
        self.left = self.count()
        collected: dict[str, list[str]] = super().collect()
        return collected

    def count(self) -> int:
        return len([*FileSystemFinder().list(self.ignore_patterns)])

    def copy_file(self, path: str, prefixed_path: str, source: Storage) -> None:
        self.storage = self.other if _is_routed(prefixed_path) else self.main
        super().copy_file(path, prefixed_path, source)
        self.left -= 1
        if not self.left:
            self.storage = self.main


class Copying(Routing):
    """A command that copies all files to the main storage, and images to both."""

    def copy_file(self, path: str, prefixed_path: str, source: Storage) -> None:
        super().copy_file(path, prefixed_path, source)
        if _is_routed(prefixed_path):
            main = self.storage
            copied = self.copied_files
            self.storage = storages["other"]
            self.copied_files = []
            try:
                super().copy_file(path, prefixed_path, source)
            finally:
                self.storage = main
                self.copied_files = copied


COMMANDS = (Restoring, Switching)


def _each(names: str, *values: Any) -> pytest.MarkDecorator:
    """Parametrize with all combinations of `values`, each with one of the commands."""
    cases = enumerate(product(*values))
    # With several parameters, each command is combined with each value of each one.
    turns = [(COMMANDS[(n + n // 2 + n // 4) % 2], *case) for n, case in cases]
    return pytest.mark.parametrize(f"command, {names}", turns)


# Sites with two storages.


class Routed:
    """A site with a main storage and another one."""

    def __init__(self, site: Site, backend: str, other: str) -> None:
        self.site = site
        self.other = other
        site.backend = backend
        self.view = replace(site.bucket, location=f"{site.bucket.location}-other")
        self.view.client = site.bucket.client
        self.folder = site.root / "other"

    @contextmanager
    def active(self) -> Iterator[None]:
        static = {
            "BACKEND": self.site.backend,
            "OPTIONS": self.site.storage_options,
        }
        aliases = {"staticfiles": static, "other": self.configuration()}
        with self.site.active(STORAGES=aliases):
            yield

    def configuration(self) -> dict[str, Any]:
        if self.other == "memory":
            options: dict[str, Any] = {"key": self.view.location}
            return {"BACKEND": f"{__name__}.memory", "OPTIONS": options}
        if self.other == "disk":
            return {"BACKEND": DISK, "OPTIONS": {"location": str(self.folder)}}
        options = self.site.storage_options | {"location": self.view.location}
        if self.other == "theirs":
            ours = [name for name in options if name.startswith("collectfast_")]
            for name in ours:
                del options[name]
        backends = {"ours": STATIC, "ours hashed": MANIFEST, "theirs": THEIRS}
        return {"BACKEND": backends[self.other], "OPTIONS": options}

    def collect(self, command: Command, argument: str = "") -> str:
        self.site.proxy.requests.clear()
        output = io.StringIO()
        with self.active():
            arguments = ["--noinput", *filter(None, [argument])]
            call_command(command, *arguments, stdout=output)
        return output.getvalue()

    def others(self) -> dict[str, bytes]:
        """Return the contents of all files in the other storage."""
        if self.other == "disk":
            return _folder(self.folder)
        if self.other != "memory":
            return self.view.files()
        with self.active():
            storage = storages["other"]
            names = [f"img/{name}" for name in storage.listdir("img")[1]]
            assert storage.listdir("") == (["img"], [])
            return {name: storage.open(name).read() for name in names}

    def expected(self, argument: str = "") -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Return the files that a deploy writes to the main and the other storage."""
        hashes = self.site.backend == MANIFEST and not argument
        root = self.site.root / "collected"
        shutil.rmtree(root, ignore_errors=True)
        local = LOCAL[MANIFEST if hashes else STATIC]
        self.site.collect(STORAGES={"staticfiles": {"BACKEND": local}})
        files, sources = _folder(root), _folder(self.site.static)
        routed = {name: sources[name] for name in sources if _is_routed(name)}
        return {n: c for n, c in files.items() if n not in routed}, routed


def _folder(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def _write(site: Site, text: str) -> None:
    for number in range(3):
        site.write(f"img/{number}.png", f"image {number} {text}")
        site.write(f"css/{number}.css", f"a {{ background: url(../img/{number}.png) }}")
        site.write(f"txt/{number}.txt", f"text {number} {text}")


def _assert_holds(there: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert {name: there.get(name) for name in expected} == expected


@_each("other, backend, argument", OTHERS, BACKENDS, ARGUMENTS)
def test_each_file_is_in_its_storage(
    site: Site, command: type[Command], other: str, backend: str, argument: str
) -> None:
    """Routed files are only in the other storage, and all others in the main one."""
    routed = Routed(site, backend, other)
    names: set[str] = set()
    for text in ("one", "two"):
        _write(site, text)
        site.touch()
        main, beside = routed.expected(argument)
        site.proxy.fault = _slowly
        routed.collect(command(), argument)
        names |= main.keys()
        _assert_holds(site.bucket.files(), main)
        assert routed.others() == beside
        assert {*site.bucket.names()} == names


def _slowly(handler: Handler, request: Request, body: bytes) -> bool:
    """Delay each PUT, so that an upload does not end by chance before its command."""
    if request.kind == "PUT":
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("other", "backend", "argument"),
    [
        ("ours", STATIC, "--no-post-process"),
        ("ours", MANIFEST, ""),
        ("theirs", STATIC, ""),
    ],
)
def test_file_that_is_copied_to_both_storages(
    site: Site, other: str, backend: str, argument: str
) -> None:
    """A file that a command copies to both storages is uploaded to both."""
    routed = Routed(site, backend, other)
    for text in ("one", "two"):
        _write(site, text)
        site.touch()
        main, beside = routed.expected(argument)
        routed.collect(Copying(), argument)
        _assert_holds(site.bucket.files(), main | beside)
        assert routed.others() == beside


@_each("backend, argument", BACKENDS, ARGUMENTS)
def test_both_storages_compare_contents(
    site: Site, command: type[Command], backend: str, argument: str
) -> None:
    """Both storages compare contents, and not modification times.

    Files with a newer time and the same contents are not uploaded. Files with an older
    time and other contents are.
    """
    routed = Routed(site, backend, "ours")
    _write(site, "one")
    routed.collect(command(), argument)
    site.touch()
    routed.collect(command(), argument)
    assert site.proxy.keys("PUT") == []
    assert site.proxy.count()["DELETE"] == 0
    site.write("img/1.png", "image 1 of before", mtime=1)
    site.write("txt/1.txt", "text 1 of before", mtime=1)
    routed.collect(command(), argument)
    assert routed.others()["img/1.png"] == b"image 1 of before"
    assert site.bucket.read("txt/1.txt") == b"text 1 of before"
    assert "img/1.png" not in site.bucket.names()


@_each("other, backend, argument", IN_S3, BACKENDS, ARGUMENTS)
def test_refusal_by_the_other_storage_is_an_error(
    site: Site, command: type[Command], other: str, backend: str, argument: str
) -> None:
    """A refused upload to the other storage ends the command with an error.

    No manifest is published, and the next deploy uploads the missing files.
    """
    routed = Routed(site, backend, other)
    _write(site, "one")
    main, beside = routed.expected(argument)
    site.proxy.fault = refuse("PUT", "-other/img/1.png")
    with pytest.raises(REFUSAL, match="AccessDenied"):
        routed.collect(command(), argument)
    assert "img/1.png" not in {*routed.others(), *site.bucket.names()}
    assert "staticfiles.json" not in site.bucket.names()
    site.proxy.fault = None
    routed.collect(command(), argument)
    _assert_holds(site.bucket.files(), main)
    assert routed.others() == beside


@_each("other, backend, argument", ("ours",), BACKENDS, ARGUMENTS)
def test_refusal_by_the_main_storage_is_an_error(
    site: Site, command: type[Command], other: str, backend: str, argument: str
) -> None:
    """A refused upload to the main storage is an error that names the file.

    No manifest is published, and the next deploy uploads the missing files.
    """
    routed = Routed(site, backend, other)
    _write(site, "one")
    main, beside = routed.expected(argument)
    site.proxy.fault = refuse("PUT", "/static/txt/1.txt")
    with pytest.raises(CommandError, match=r"txt/1\.txt: .*AccessDenied"):
        routed.collect(command(), argument)
    assert not {"txt/1.txt", "staticfiles.json"} & {*site.bucket.names()}
    site.proxy.fault = None
    routed.collect(command(), argument)
    _assert_holds(site.bucket.files(), main)
    assert routed.others() == beside


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("other", "number"), [*product(["ours"], range(3)), (IN_S3[1], 1)]
)
def test_refused_file_is_named_at_any_position(
    site: Site, command: type[Command], other: str, number: int
) -> None:
    """The error names a refused file, whether it is the storage's first or last."""
    routed = Routed(site, STATIC, other)
    _write(site, "one")
    site.proxy.fault = refuse("PUT", f"-other/img/{number}.png")
    with pytest.raises(CommandError, match=rf"img/{number}\.png"):
        routed.collect(command(), "--no-post-process")


@_each("other, backend", ("ours", "theirs", "disk"), BACKENDS)
def test_clear_affects_the_main_storage_only(
    site: Site, command: type[Command], other: str, backend: str
) -> None:
    """`--clear` deletes left-over files in the main storage only."""
    routed = Routed(site, backend, other)
    _write(site, "one")
    main, beside = routed.expected()
    routed.collect(command())
    site.bucket.put("left over.txt", b"left over")
    if other == "disk":
        (routed.folder / "kept.txt").write_bytes(b"kept")
    else:
        routed.view.put("kept.txt", b"kept")
    routed.collect(command(), "--clear")
    assert routed.others() == beside | {"kept.txt": b"kept"}
    assert site.bucket.files() == main


@_each("other", OTHERS)
def test_dry_run_writes_to_neither_storage(
    site: Site, command: type[Command], other: str
) -> None:
    """`--dry-run` uploads nothing to either storage, and names every file."""
    routed = Routed(site, STATIC, other)
    _write(site, "one")
    output = routed.collect(command(), "--dry-run")
    assert output.count("Pretending to copy") == 9
    assert site.proxy.count()["PUT"] == 0
    assert site.bucket.names() == []
    if other != "memory":
        assert routed.others() == {}


# Sites with another package's main storage, and one of this package beside it.


@_each(
    "main, refused, argument",
    ("django.core.files.storage.InMemoryStorage", DISK, THEIRS),
    (None, "-other/img/1.png"),
    ARGUMENTS,
)
def test_only_the_other_storage_is_a_collectfast_storage(
    site: Site,
    command: type[Command],
    main: str,
    argument: str,
    refused: str | None,
) -> None:
    """All routed files are uploaded if only the other storage is this package's.

    A refused upload of a routed file ends the command with an error.
    """
    routed = Routed(site, main, "ours")
    _write(site, "one")
    beside = routed.expected(argument)[1]
    options: dict[str, Any] = {"location": str(site.root / "main")}
    static: dict[str, Any] = {"BACKEND": main, "OPTIONS": options}
    if main == THEIRS:
        static["OPTIONS"] = site.storage_options
    elif main != DISK:
        static["OPTIONS"] = {}
    fault: Fault = refuse("PUT", refused) if refused else _slowly
    site.proxy.fault = fault
    aliases = {"staticfiles": static, "other": routed.configuration()}
    with site.active(STORAGES=aliases):
        arguments = ["--noinput", *filter(None, [argument])]
        if refused:
            with pytest.raises(REFUSAL, match="AccessDenied"):
                call_command(command(), *arguments, stdout=io.StringIO())
            assert "img/1.png" not in routed.view.names()
        else:
            call_command(command(), *arguments, stdout=io.StringIO())
            assert routed.others() == beside
    assert not any(map(_is_routed, site.bucket.names()))
