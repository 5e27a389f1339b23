"""What an unchanged deploy costs besides requests: counted, as time cannot be."""

from __future__ import annotations

import gzip
import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest
from botocore.handlers import BUILTIN_HANDLERS
from django.contrib.staticfiles.finders import FileSystemFinder
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files import File
from django.core.management import call_command

from collectfast_storage import CollectfastS3ManifestStaticStorage
from tests.support.site import MANIFEST, STATIC, Site
from tests.support.sources import Sources, SourcesFinder

COUNT = 60


class Name(str):
    """A name that counts how often it is compared."""

    compared: ClassVar[int] = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)


class NamesFinder(SourcesFinder):
    sources: ClassVar[dict[str, Any]] = {
        Name(f"file{i:02}.txt"): f"content of {i}".encode() for i in range(COUNT)
    }


@pytest.mark.parametrize("is_there", [True, False])
def test_djangos_lists_are_not_searched_for_each_file(
    site: Site, is_there: bool
) -> None:
    """Of 20,000 files, that would be a third of the time of an unchanged deploy."""
    finders = [f"{__name__}.NamesFinder"]
    if is_there:
        site.collect(STATICFILES_FINDERS=finders)
    Name.compared = 0
    deploy = site.collect(STATICFILES_FINDERS=finders)
    assert len(deploy.put) == (0 if is_there else COUNT)
    # A list compares with half of its names; and there are two lists, and two finders.
    assert Name.compared < COUNT * COUNT / 4


class Forgetting(Command):
    """Keeps its own list at hand, takes each name out of it, and puts it back."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = self.copied_files

    def copy_file(self, path: str, prefixed_path: str, source_storage: Any) -> None:
        super().copy_file(path, prefixed_path, source_storage)
        assert prefixed_path in self.copied_files
        self.copied_files.remove(prefixed_path)
        assert prefixed_path not in self.copied_files
        self.copied_files.append("another")
        assert prefixed_path not in self.copied_files
        self.copied_files[-1] = prefixed_path
        assert "another" not in self.copied_files
        assert prefixed_path in self.copied_files


def test_lists_that_a_command_of_a_sites_own_changes(site: Site) -> None:
    """They are lists, whatever is done to them."""
    files = site.write_many(5)
    output = io.StringIO()
    command = Forgetting()
    with site.active():
        call_command(command, "--noinput", stdout=output)
    assert command.copied_files is command.kept
    assert sorted(command.kept) == sorted(files)
    assert output.getvalue().strip() == "5 static files copied."
    assert site.bucket.files() == files


class CountingSources(Sources):
    """Counts how often each file is read from its beginning to its end."""

    read: ClassVar[Counter[str]] = Counter()

    def _open(self, name: str, mode: str = "rb") -> File[bytes]:
        content, read = self.sources[name], self.read
        assert isinstance(content, bytes)

        class Counting(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                chunk = super().read(size)
                if chunk and self.tell() == len(content):
                    read[name] += 1
                return chunk

        return File(Counting(content), name)


class CountingFinder(SourcesFinder):
    sources: ClassVar[dict[str, Any]] = {
        "img/pixel.svg": b"<svg/>",
        "js/app.txt": b"no references here",
        "css/site.css": b"a { background: url(../img/pixel.svg) }",
    }

    def list(self, ignore_patterns: Any) -> Iterator[tuple[str, Any]]:
        storage = CountingSources(self.sources)
        for name in self.sources:
            yield name, storage


@pytest.mark.parametrize(("backend", "times"), [(STATIC, 1), (MANIFEST, 2)])
def test_unchanged_source_is_read_once_and_once_by_django(
    site: Site, backend: str, times: int
) -> None:
    """Its hashed copy is told by what collecting has hashed."""
    site.backend = backend
    finders = [f"{__name__}.CountingFinder"]
    site.collect(STATICFILES_FINDERS=finders)
    CountingSources.read.clear()
    assert site.collect(STATICFILES_FINDERS=finders).put == []
    read = {n: k for n, k in CountingSources.read.items() if not n.endswith(".css")}
    assert read == {"img/pixel.svg": times, "js/app.txt": times}


def test_source_that_changes_after_it_was_collected(site: Site) -> None:
    """Its hashed copy is of what Django reads then."""
    site.backend = MANIFEST
    site.write("a.txt", "new")
    site.collect()
    hashed = site.manifest()["a.txt"]
    site.write("a.txt", "old")
    site.collect()
    site.bucket.put(hashed, b"old")
    ChangingFinder.source = site.static / "a.txt"
    site.collect(STATICFILES_FINDERS=[f"{__name__}.ChangingFinder"])
    assert site.manifest()["a.txt"] == hashed
    assert site.bucket.read(hashed) == b"new"


def test_hashed_copy_that_lost_its_content(site: Site) -> None:
    """Also where it is compressed: what is not read is no empty file."""
    site.backend = MANIFEST
    site.options["gzip"] = True
    site.write("a.svg", "<svg/>")
    site.collect()
    with site.storage() as storage:
        hashed = storage.hashed_files["a.svg"]
    emptied = gzip.compress(b"", mtime=0)
    site.bucket.put(hashed, emptied, ContentEncoding="gzip")
    assert site.collect().put == [hashed]
    assert gzip.decompress(site.bucket.get(hashed)["Body"].read()) == b"<svg/>"


class OfContent(CollectfastS3ManifestStaticStorage):
    """Looks at a content for what is sent with it."""

    def _get_write_parameters(self, name: str, content: Any = None) -> Any:
        parameters = super()._get_write_parameters(name, content)
        content.seek(0)
        return parameters | {"Metadata": {"first": chr(content.read(1)[0])}}


def test_parameters_that_follow_from_the_content(site: Site) -> None:
    """They are those of the source, for its hashed copy too."""
    site.backend = f"{__name__}.OfContent"
    site.write("a.txt", "content")
    site.collect()
    deploy = site.collect()
    assert deploy.put == []
    metadata = site.bucket.get(site.manifest()["a.txt"])["Metadata"]
    assert {name.lower(): first for name, first in metadata.items()} == {"first": "c"}


class ChangingFinder(FileSystemFinder):
    """Changes a source when all of them are collected, to what it had been once."""

    source: ClassVar[Path]

    def list(self, ignore_patterns: Any) -> Iterator[Any]:
        yield from super().list(ignore_patterns)
        if sys._getframe(1).f_code is Command.collect.__code__:
            self.source.write_text("new")


class OwnSession(CollectfastS3ManifestStaticStorage):
    """Does something to each session that is made."""

    made: ClassVar[list[Any]] = []

    def _create_session(self) -> Any:
        session = super()._create_session()
        assert session not in self.made
        self.made.append(session)
        return session


@pytest.mark.parametrize("backend", [MANIFEST, f"{__name__}.OwnSession"])
def test_unsigned_urls_need_no_other_session(
    site: Site, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Django asks for URLs while it post-processes, which are signed by nobody."""
    sessions = []
    session_of = boto3.Session
    monkeypatch.setattr(
        boto3, "Session", lambda **which: sessions.append(which) or session_of(**which)
    )
    site.backend = backend
    site.write("img/pixel.svg", "<svg/>")
    site.write("css/site.css", "a { background: url(../img/pixel.svg) }")
    OwnSession.made.clear()
    site.collect()
    # Who does something to a session gets a new one each time; with obstore a third.
    assert len(sessions) == (1 if backend == MANIFEST else len(OwnSession.made))
    assert len(OwnSession.made) in (0, 2, 3)
    with site.storage() as storage:
        url = storage.url("css/site.css")
        assert "X-Amz" not in url
        assert storage.unsigned_connection is not storage.connection


@pytest.mark.skipif(
    not any(event.startswith("before-parse.s3") for event, *_ in BUILTIN_HANDLERS),
    reason="this botocore has no handler that parses a response",
)
def test_no_handler_of_botocores_parses_what_is_listed(site: Site) -> None:
    """Its own looks for errors in all that is there, and is called after this one."""
    bodies: list[bytes] = []
    site.write_many(3)
    site.collect()
    with site.active():
        events = staticfiles_storage.connection.meta.client.meta.events
        events.register_first(
            "before-parse.s3.*",
            lambda response_dict, **_: bodies.append(response_dict["body"]),
        )
        call_command("collectstatic", "--noinput", verbosity=0)
    assert len(bodies) == 1
    assert b"IsTruncated" in bodies[0]
    assert b"file1" not in bodies[0]
