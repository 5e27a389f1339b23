"""A finder of a site's own, with sources that are on no disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from django.contrib.staticfiles.finders import BaseFinder
from django.core.files import File
from django.core.files.storage import Storage

# A content, or what opens the file.
Source = bytes | Callable[[], Any]


class Sources(Storage):
    """What the files of a finder are opened in."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = sources

    def _open(self, name: str, mode: str = "rb") -> File[bytes]:
        source = self.sources[name]
        return File(BytesIO(source) if isinstance(source, bytes) else source(), name)

    def path(self, name: str) -> str:
        return name  # For the log.

    def get_modified_time(self, name: str) -> datetime:
        return datetime(2020, 1, 1, tzinfo=UTC)


class SourcesFinder(BaseFinder):
    """Finds `sources`, in their order."""

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
    """Return what to have in STATICFILES_FINDERS to collect `sources`."""
    name = f"Finder{id(sources)}"
    globals()[name] = type(name, (SourcesFinder,), {"sources": sources})
    return f"{__name__}.{name}"
