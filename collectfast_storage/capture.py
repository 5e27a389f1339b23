"""Learning what django-storages' own `_save` would upload.

`S3Storage._save` settles name, headers and compression, and then calls
``self.bucket.Object(key).upload_fileobj(content, ExtraArgs=…, Config=…)``. Standing in
for that bucket keeps every rule, and every override in a site's subclass, in force
without a copy of any of them. Should a `_save` upload in another way, it just uploads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any

from boto3.s3.transfer import TransferConfig

if TYPE_CHECKING:
    from collectfast_storage.content import Content

Take = Callable[[str, "Content"], None]


class CapturingBucket:
    """Stands in for a boto3 Bucket, and gives away what is uploaded to it."""

    def __init__(self, connect: Callable[[], Any], take: Take) -> None:
        """Hand uploads to `take`, all else to the bucket that `connect` returns."""
        self._connect = connect
        self._take = take

    def Object(self, key: str) -> CapturingObject:  # noqa: N802 (boto3's name)
        """Return a stand-in for the object `key`."""
        return CapturingObject(lambda: self._connect().Object(key), key, self._take)

    def __getattr__(self, name: str) -> Any:
        """Ask the bucket itself."""
        return getattr(self._connect(), name)


class CapturingObject:
    """Stands in for a boto3 Object."""

    def __init__(self, connect: Callable[[], Any], key: str, take: Take) -> None:
        """Hand an upload as `key` to `take`, all else to what `connect` returns."""
        self._connect = connect
        self._key = key
        self._take = take

    def upload_fileobj(
        self,
        Fileobj: Any,  # noqa: N803 (boto3's names)
        ExtraArgs: dict[str, Any] | None = None,  # noqa: N803
        Callback: Callable[[int], None] | None = None,  # noqa: N803
        Config: TransferConfig | None = None,  # noqa: N803
    ) -> None:
        """Hand over what boto3 would upload."""
        from collectfast_storage.content import Content

        plain, compress = Fileobj, None
        if isinstance(Fileobj, Compressible):
            plain, compress = Fileobj.plain, Fileobj.compress
        config = Config or TransferConfig()
        with closing(Content(plain, ExtraArgs or {}, config, compress)) as content:
            self._take(self._key, content)
            if Callback is not None:
                Callback(content.size)

    def __getattr__(self, name: str) -> Any:
        """Ask the object itself."""
        return getattr(self._connect(), name)


class Compressible:
    """A content that would be compressed, if it had to be sent."""

    def __init__(self, plain: Any, compress: Callable[[Any], Any]) -> None:
        """Describe what ``compress(plain)`` would yield, for as long as it can wait."""
        self.plain = plain
        self.compress = compress

    @cached_property
    def _compressed(self) -> Any:
        return self.compress(self.plain)

    def read(self, *size: int) -> bytes:
        """Compress after all, for whoever wants to see what comes of it."""
        content: bytes = self._compressed.read(*size)
        return content

    def close(self) -> None:
        """Close the plain file."""
        self.plain.close()
