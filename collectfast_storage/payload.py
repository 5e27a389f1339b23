"""What one save would send: caught from django-storages, read once, hashed.

`S3Storage._save` ends in ``self.bucket.Object(key).upload_fileobj(…)``: standing in for
that bucket keeps its rules, and a subclass's, in force without a copy of any. Should a
`_save` upload in another way, it just uploads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property, partial
from io import SEEK_END, SEEK_SET, BufferedReader, BytesIO, RawIOBase
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from boto3.s3.transfer import TransferConfig
from s3transfer.utils import ChunksizeAdjuster
from storages.utils import ReadBytesWrapper, is_seekable

from collectfast_storage.fingerprint import (
    SMALLEST_PART,
    Fingerprint,
    digest_of,
    etags_in_parts,
    md5_of,
    new_md5,
    number_of_parts,
    part_sizes,
)

_CHUNK_SIZE = 256 * 1024


class Payload:
    """One file as one `save` would send it.

    What fits into one request is read once, to send what was hashed; more is streamed.
    """

    def __init__(
        self,
        file: Any,  # text or binary
        parameters: dict[str, Any],  # of S3's write
        config: TransferConfig,
        compress: Callable[[Any], Any] | None = None,  # makes a readable of one
    ) -> None:
        self.parameters = parameters
        self._config = config
        self._compress = compress
        self.compresses = compress is not None
        self._is_settled = False
        self._known_etag: str | None = None
        self._streamed: _Hashed | None = None  # last
        self._copy = _copy_unless_rewindable(file, config.multipart_threshold)
        self._file = file if self._copy is None else self._copy

    def close(self) -> None:
        """Throw away what this made of the file; the file itself stays open."""
        if self._copy is not None:
            self._copy.close()

    @cached_property
    def plain(self) -> bytes | None:
        """The file before compression; `None` where it must be streamed."""
        plain = self._less_than_threshold(self._rewound())
        if plain is not None:
            self._file = None  # Held for long, it would hold its content twice.
        return plain

    @cached_property
    def body(self) -> bytes | None:
        """All that is to be sent; `None` where it must be streamed."""
        if self._compress is None:
            return self.plain
        return self._less_than_threshold(self.stream())

    @cached_property
    def size(self) -> int:
        """The bytes to be sent; of a compressed stream, those before compression."""
        for held in (self.body, self.plain):
            if held is not None:
                return len(held)
        return int(self._file.seek(0, SEEK_END))

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What decides whether this must go up again."""
        return Fingerprint(self._md5, digest_of(self.parameters))

    def adopt(self, md5: str, etag: str) -> None:
        """Take as known, and not read for it, the content's `md5` and its `etag`."""
        self._md5, self._known_etag = md5, etag

    def has_etag(self, etag: str) -> bool:
        """Tell whether `etag` is one of this content, in whatever parts it was sent."""
        if self._known_etag is not None:
            return etag == self._known_etag
        parts = number_of_parts(etag)
        if parts == 0:
            etags = [self.body_md5]
        elif parts == 1:
            etags = [f"{md5_of([bytes.fromhex(self.body_md5)])}-1"]
        elif self._is_settled:
            return False
        else:
            usual, size = self._part_size, self._size_as_sent
            sizes = [usual] if size is None else part_sizes(size, parts, usual)
            etags = etags_in_parts(_chunks(self.stream()), sizes) if sizes else []
        return etag in etags and self.is_as_hashed()

    @property
    def multipart_etag(self) -> str:
        """The ETag that S3 gives this in parts, if it follows from the content."""
        sizes = [self._part_size]  # Before it is read: this looks for the file's end.
        return etags_in_parts(_chunks(self.stream()), sizes)[0]

    @cached_property
    def body_md5(self) -> str:
        """The MD5 of all that is to be sent, in hexadecimal."""
        if self._compress is None:
            return self._md5
        return md5_of([self.body] if self.body is not None else _chunks(self.stream()))

    @property
    def has_opaque_etag(self) -> bool:
        """Whether the parameters make for an ETag that says nothing of the content."""
        encryption = str(self.parameters.get("ServerSideEncryption", ""))
        return encryption.startswith("aws:kms") or "SSECustomerKey" in self.parameters

    def is_as_hashed(self) -> bool:
        """Tell whether what was last streamed is what the fingerprint tells of."""
        return self._streamed is None or self._streamed.md5.hexdigest() == self._md5

    def settle(self) -> bool:
        """Let go of the content if its MD5s tell all ETags it may have; say so."""
        if self.body is None or len(self.body) >= SMALLEST_PART:
            return False
        self.fingerprint, self.body_md5  # noqa: B018 (worked out by now)
        self.__dict__.pop("plain", None)
        self.__dict__.pop("body", None)
        self._file = None
        self._is_settled = True
        return True

    def stream(self) -> Any:
        """Return a readable of all that is to be sent, from its beginning."""
        plain: Any
        if self.plain is None:
            self._streamed = _Hashed(self._rewound())
            plain = BufferedReader(self._streamed, _CHUNK_SIZE)
        else:
            plain = BytesIO(self.plain)
        return self._compress(plain) if self._compress else plain

    @cached_property
    def _md5(self) -> str:
        return md5_of(_chunks(self._rewound()) if self.plain is None else [self.plain])

    @property
    def _part_size(self) -> int:
        # As s3transfer chooses it: larger for more than 10,000 parts, if it can tell.
        adjust = ChunksizeAdjuster().adjust_chunksize
        return int(adjust(self._config.multipart_chunksize, self._size_as_sent))

    @property
    def _size_as_sent(self) -> int | None:
        # That of a stream being compressed shows at its end.
        return None if self.body is None and self._compress else self.size

    def _rewound(self) -> ReadBytesWrapper:
        self._file.seek(0)
        return ReadBytesWrapper(self._file)

    def _less_than_threshold(self, readable: Any) -> bytes | None:
        chunks, size = [], 0
        for chunk in _chunks(readable):
            chunks.append(chunk)
            size += len(chunk)
            if size >= self._config.multipart_threshold:
                return None
        return b"".join(chunks)


Take = Callable[[str, Payload], object]


class _StandIn:
    def __init__(self, connect: Callable[[], Any], take: Callable[..., object]) -> None:
        self._connect = connect
        self._take = take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connect(), name)


class CapturingBucket(_StandIn):
    """Hands uploads to a `Take`, all else to the boto3 Bucket it stands in for."""

    def Object(self, key: str) -> _CapturingObject:  # noqa: N802 (boto3's name)
        """Return a stand-in for the object `key`."""
        connect, take = self._connect, partial(self._take, key)
        return _CapturingObject(lambda: connect().Object(key), take)


class _CapturingObject(_StandIn):
    def upload_fileobj(
        self,
        Fileobj: Any,  # noqa: N803 (boto3's names)
        ExtraArgs: dict[str, Any] | None = None,  # noqa: N803
        Callback: Callable[[int], None] | None = None,  # noqa: N803
        Config: TransferConfig | None = None,  # noqa: N803
    ) -> None:
        plain, compress = Fileobj, None
        if isinstance(Fileobj, Compressible):
            plain, compress = Fileobj.plain, Fileobj.compress
        config = Config or TransferConfig()
        with closing(Payload(plain, ExtraArgs or {}, config, compress)) as payload:
            self._take(payload)
            if Callback is not None:
                Callback(payload.size)


class Compressible:
    """A content that would be compressed, if it had to be sent."""

    def __init__(self, plain: Any, compress: Callable[[Any], Any]) -> None:
        self.plain = plain
        self.compress = compress

    @cached_property
    def _compressed(self) -> Any:
        return self.compress(self.plain)

    def read(self, *size: int) -> Any:
        """Compress after all, for whoever wants to see what comes of it."""
        return self._compressed.read(*size)

    def close(self) -> None:
        """Close the plain file."""
        self.plain.close()


class _Hashed(RawIOBase):
    """Hashes what is read of a file, from its last rewinding on."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file
        self._ended = False
        self.md5 = new_md5()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        if whence == SEEK_SET:
            self._ended = False
        if (offset, whence) == (0, SEEK_SET):
            self.md5 = new_md5()
        self._file.seek(offset, whence)
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        # An end is final: django-storages' compression expects no file that grows.
        chunk = b"" if self._ended else self._file.read(len(buffer))
        self._ended = not chunk
        self.md5.update(chunk)
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _copy_unless_rewindable(file: Any, memory: int) -> IO[bytes] | None:
    """Return a binary, seekable copy of `file`, unless it is both itself."""
    if is_seekable(file):
        file.seek(0)
        inner = file.file if isinstance(file, ReadBytesWrapper) else file
        # A text file's positions say nothing of its size in bytes.
        if not isinstance(inner.read(0), str):
            return None
    copy: IO[bytes] = SpooledTemporaryFile(max_size=memory)  # noqa: SIM115
    for chunk in _chunks(ReadBytesWrapper(file)):
        copy.write(chunk)
    return copy


def _chunks(readable: Any) -> Iterator[bytes]:
    return iter(lambda: readable.read(_CHUNK_SIZE), b"")
