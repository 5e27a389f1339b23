"""A model of sources, bucket and cache, which predicts the result of collectstatic.

It uses plain dicts instead of the package's code.
"""

from __future__ import annotations

import gzip
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

GZIPPED = {"text/css", "text/javascript", "application/javascript"}
# In bytes; it is low so that small files are uploaded both in one piece and in parts.
MULTIPART_THRESHOLD = 100


@dataclass(frozen=True)
class Headers:
    """The headers of an object."""

    content_type: str
    content_encoding: str | None = None
    cache_control: str | None = None


@dataclass(frozen=True)
class Body:
    """The properties of an object on which its ETag depends."""

    content: bytes  # decompressed
    gzipped: bool = False
    in_parts: bool = False


@dataclass(frozen=True)
class Object:
    """An object in the bucket."""

    body: Body
    headers: Headers


@dataclass(frozen=True)
class Options:
    """The options of the site that influence the result."""

    gzip: bool = False
    multipart: bool = False
    preload: bool = True
    cache_control: str = "max-age=1"


@dataclass
class Model:
    """The sources, the bucket, and the cache entries of earlier runs."""

    options: Options = field(default_factory=Options)
    sources: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, Object] = field(default_factory=dict)
    # An entry is None if the last upload may or may not have arrived.
    cache: dict[str, Object | None] = field(default_factory=dict)
    # Two documented limits. The headers of an object are unknown if another program
    # wrote it, or the cache lost its entry. An object is unseen if another program
    # changed it and the runs since then have trusted the cache instead of a listing.
    unknown_headers: set[str] = field(default_factory=set)
    unseen: set[str] = field(default_factory=set)

    def sent(self, name: str) -> Object:
        """Return the object that an upload of the source `name` makes."""
        content, options = self.sources[name], self.options
        content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        gzipped = options.gzip and content_type in GZIPPED
        size = len(gzip.compress(content)) if gzipped else len(content)
        in_parts = options.multipart and size >= MULTIPART_THRESHOLD
        encoding = "gzip" if gzipped else None
        headers = Headers(content_type, encoding, options.cache_control)
        return Object(Body(content, gzipped, in_parts), headers)

    def uploads(self) -> set[str]:
        """Return the names that a run has to upload."""
        return {name for name in self.sources if self._assumed(name) is None}

    def leftovers(self) -> set[str]:
        """Return the names that a run with `--clear` has to delete."""
        return self.objects.keys() - self.sources.keys()

    def _assumed(self, name: str) -> Object | None:
        """Return the object that the package assumes to exist for the source `name`.

        Return None if the source has to be uploaded.
        """
        sent, cached = self.sent(name), self.cache.get(name)
        if name in self.cache and cached is None:
            return None
        there = self.objects.get(name)
        if cached is not None and not self.options.preload:
            there = cached
        if there is None:
            return None
        if cached is None or cached.body != there.body:
            # The package recognises ETags of uploads in one piece and in parts, so that
            # this difference alone does not lead to an upload.
            same = replace(there.body, in_parts=sent.body.in_parts) == sent.body
            return replace(sent, body=there.body) if same else None
        same_content = cached.body.content == sent.body.content
        return cached if same_content and cached.headers == sent.headers else None

    def promised(self, name: str) -> tuple[bool, bool]:
        """Return whether contents and headers of `name` must equal the source's."""
        seen = name not in self.unseen
        return seen, seen and name not in self.unknown_headers

    # Events. Each method updates the model after one.

    def collected(self, *, clear: bool, failed: Mapping[str, bool]) -> None:
        """Update the model after a run.

        `failed` contains the names of failed uploads, and for each name whether the
        object was stored nevertheless.
        """
        known = {name: self._assumed(name) or self.sent(name) for name in self.sources}
        for name in self.sources:
            if self.options.preload or self.cache.get(name) is None:
                self.unseen.discard(name)
        for name in self.uploads():
            if failed.get(name, True):
                self.objects[name] = self.sent(name)
                self.unknown_headers.discard(name)
                self.unseen.discard(name)
        self.cache |= known | dict.fromkeys(failed)
        if clear and not failed:
            leftovers = self.leftovers()
            for name in leftovers:
                del self.objects[name]
            self.deleted(leftovers)

    def deleted(self, names: set[str]) -> None:
        """Update the model after a run has deleted `names`, or has tried to.

        Their cache entries become invalid, because the response to a delete may be
        wrong or lost, as that to an upload, and because listings may be out of date.
        """
        self.cache |= dict.fromkeys(names & self.cache.keys())

    def changed_by_others(self, name: str, changed: Object | None) -> None:
        """Update the model after another program has written or deleted `name`."""
        if changed is None:
            del self.objects[name]
        else:
            self.objects[name] = changed
            self.unknown_headers.add(name)
        self.unseen.add(name)

    def forgotten(self) -> None:
        """Update the model after the cache was cleared."""
        self.cache.clear()
        self.unknown_headers |= self.objects.keys()
