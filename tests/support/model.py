"""What a bucket must hold after each collectstatic, worked out with plain dicts."""

from __future__ import annotations

import gzip
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

GZIPPED = {"text/css", "text/javascript", "application/javascript"}
MULTIPART_THRESHOLD = 100  # bytes, so that small files are sent in every way there is


@dataclass(frozen=True)
class Headers:
    content_type: str
    content_encoding: str | None = None
    cache_control: str | None = None


@dataclass(frozen=True)
class Body:
    """What an ETag can tell from another: the bytes, and whether they came in parts."""

    content: bytes  # decompressed
    gzipped: bool = False
    in_parts: bool = False


@dataclass(frozen=True)
class Object:
    body: Body
    headers: Headers


@dataclass(frozen=True)
class Options:
    """Those of the site that matter to the result."""

    gzip: bool = False
    multipart: bool = False
    preload: bool = True
    cache_control: str = "max-age=1"


@dataclass
class Model:
    """The sources, the bucket, and what earlier runs have left in the cache."""

    options: Options = field(default_factory=Options)
    sources: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, Object] = field(default_factory=dict)
    # None of what may have arrived or not.
    cache: dict[str, Object | None] = field(default_factory=dict)
    # The documented limits: which objects' headers nobody can know of, and which
    # objects are not looked at as the cache is trusted about them.
    unknown_headers: set[str] = field(default_factory=set)
    unseen: set[str] = field(default_factory=set)

    def sent(self, name: str) -> Object:
        """What saving the source `name` sends."""
        content, options = self.sources[name], self.options
        content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        gzipped = options.gzip and content_type in GZIPPED
        size = len(gzip.compress(content)) if gzipped else len(content)
        in_parts = options.multipart and size >= MULTIPART_THRESHOLD
        encoding = "gzip" if gzipped else None
        headers = Headers(content_type, encoding, options.cache_control)
        return Object(Body(content, gzipped, in_parts), headers)

    def uploads(self) -> set[str]:
        """The names that a run has to upload."""
        return {name for name in self.sources if self._held(name) is None}

    def leftovers(self) -> set[str]:
        """The names that a run that clears has to delete."""
        return self.objects.keys() - self.sources.keys()

    def _held(self, name: str) -> Object | None:
        """What the bucket is known to hold of the source `name`; None: upload it."""
        sent, cached = self.sent(name), self.cache.get(name)
        if name in self.cache and cached is None:
            return None
        there = self.objects.get(name)
        if cached is not None and not self.options.preload:
            there = cached
        if there is None:
            return None
        if cached is None or cached.body != there.body:
            # In one piece or in parts: an ETag of either kind is recognised.
            same = replace(there.body, in_parts=sent.body.in_parts) == sent.body
            return replace(sent, body=there.body) if same else None
        same_content = cached.body.content == sent.body.content
        return cached if same_content and cached.headers == sent.headers else None

    def promised(self, name: str) -> tuple[bool, bool]:
        """Tell whether content and headers of the source `name` must be right."""
        seen = name not in self.unseen
        return seen, seen and name not in self.unknown_headers

    # What happens.

    def collected(self, *, clear: bool, failed: Mapping[str, bool]) -> None:
        """A run has ended; `failed`, for each name, whether it arrived all the same."""
        known = {name: self._held(name) or self.sent(name) for name in self.sources}
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
        """A run has deleted `names`, or tried to: what was known of them is doubtful.

        The answer may be wrong or lost, as that to an upload, and listings may lag.
        """
        self.cache |= dict.fromkeys(names & self.cache.keys())

    def changed_by_others(self, name: str, changed: Object | None) -> None:
        """Another program has written or deleted `name`."""
        if changed is None:
            del self.objects[name]
        else:
            self.objects[name] = changed
            self.unknown_headers.add(name)
        self.unseen.add(name)

    def forgotten(self) -> None:
        """The cache was emptied."""
        self.cache.clear()
        self.unknown_headers |= self.objects.keys()
