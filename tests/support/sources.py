"""A custom staticfiles finder with sources in memory instead of on a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from django.contrib.staticfiles.finders import BaseFinder
from django.core.files import File
from django.core.files.storage import Storage

# The contents of a file, or a function that opens it.
Source = bytes | Callable[[], Any]


class Sources(Storage):
    """A storage in which the finder's files are opened."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = sources

    def _open(self, name: str, mode: str = "rb") -> File[bytes]:
        source = self.sources[name]
        return File(BytesIO(source) if isinstance(source, bytes) else source(), name)

    def path(self, name: str) -> str:
        return name  # collectstatic prints it.

    def get_modified_time(self, name: str) -> datetime:
        return datetime(2020, 1, 1, tzinfo=UTC)


class SourcesFinder(BaseFinder):
    """A finder of the files in `sources`, in their order."""

    sources: Mapping[str, Source]

    def check(self, **_: Any) -> list[Any]:
        return []

    def find(self, path: str, *_: Any, **__: Any) -> list[str]:
        return []

    def list(self, ignore_patterns: Any) -> Iterator[tuple[str, Storage]]:
        storage = Sources(self.sources)
        for name in self.sources:
            yield name, storage


def finder_of(sources: Mapping[str, Source]) -> str:
    """Make a finder of `sources`; return its name for STATICFILES_FINDERS."""
    name = f"Finder{id(sources)}"
    globals()[name] = type(name, (SourcesFinder,), {"sources": sources})
    return f"{__name__}.{name}"
