"""The content and parameters of an upload, captured from django-storages.

`S3Storage._save` ends in ``self.bucket.Object(key).upload_fileobj(…)``. A stand-in for
that bucket captures the arguments, so the rules of django-storages and of subclasses
apply and need not be copied. A `_save` that uploads in another way is not captured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from io import SEEK_END, SEEK_SET, BufferedReader, BytesIO, RawIOBase
from tempfile import SpooledTemporaryFile
from typing import IO, Any, NamedTuple

from boto3.s3.transfer import TransferConfig
from s3transfer.utils import ChunksizeAdjuster
from storages.utils import ReadBytesWrapper, is_seekable

from collectfast_storage.fingerprint import (
    SMALLEST_PART,
    Fingerprint,
    PartHashes,
    digest_of,
    etag_of_parts,
    etags_in_parts,
    md5_and_etag_of,
    md5_of,
    new_md5,
    number_of_parts,
    part_sizes,
)

_CHUNK_SIZE = 256 * 1024


class Payload:
    """The content and the parameters of one upload.

    Content that fits into one request is read once, so exactly the bytes that were
    hashed are sent. Larger content is read twice: to hash it, and to upload it.
    """

    def __init__(
        self,
        file: Any,  # text or binary
        parameters: dict[str, Any],  # of the request
        config: TransferConfig,
        compress: Callable[[Any], Any] | None = None,  # returns a compressed file
    ) -> None:
        self.parameters = parameters
        self.config = config
        self._compress = compress
        self.compresses = compress is not None
        self._is_released = self.is_reopened = False
        self.reopen: Callable[[], Any] | None = None  # opens the file again
        self._known_etag: str | None = None
        self._last_reader: _HashingReader | None = None
        self._own = _copy_unless_rewindable(file, config.multipart_threshold)
        self._file = file if self._own is None else self._own

    def close(self, *, uploaded: bool = False) -> None:
        """Close the files that this object has opened, but not the given file.

        A file that `reopen` has opened is closed only if it was `uploaded`.
        """
        if self._own is not None and (uploaded or not self.is_reopened):
            self._own.close()

    @cached_property
    def plain(self) -> bytes | None:
        """The content before compression; `None` if it must be streamed."""
        if self._length >= self.config.multipart_threshold:
            return None
        plain = self._less_than_threshold(self._rewound())
        if plain is not None:
            self._file = None  # An in-memory file is a second copy of the content.
        return plain

    @cached_property
    def body(self) -> bytes | None:
        """The bytes to send; `None` if they must be streamed."""
        if self._compress is None or self.plain is None:
            return self.plain
        return self._less_than_threshold(self._stream(None))

    @cached_property
    def size(self) -> int:
        """The number of bytes to send; for a compressed stream, before compression."""
        content = self.plain if self.body is None else self.body
        return self._length if content is None else len(content)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of content and parameters."""
        return Fingerprint(self._md5, digest_of(self.parameters))

    def adopt(self, md5: str, etag: str) -> None:
        """Use the `md5` and `etag` of an earlier upload, so that no file is read."""
        self._md5, self._known_etag = md5, etag

    def has_etag(self, etag: str) -> bool:
        """Return whether this content has the `etag`, in any usual part size."""
        if self._known_etag is not None:
            return etag == self._known_etag
        parts = number_of_parts(etag)
        if parts == 0:
            return etag == self.body_md5 and self._is_as_hashed()
        if parts == 1:
            return etag == etag_of_parts([bytes.fromhex(self.body_md5)])
        if self._is_released:
            return False
        if self.plain is None and not self.compresses and etag == self._hashes[1]:
            return True
        size = None if self.body is None and self.compresses else self.size
        usual = self._part_size
        sizes = [usual] if size is None else part_sizes(size, parts, usual)
        if not sizes:
            return False
        etags = etags_in_parts(_chunks(self._stream(None)), sizes)
        return etag in etags and self._is_as_hashed()

    @cached_property
    def body_md5(self) -> str:
        """The MD5 of the bytes to send, in hexadecimal."""
        if self._compress is None:
            return self._md5
        if self.body is not None:
            return md5_of([self.body])
        md5 = md5_of(_chunks(self._stream(None)))
        if self._last_reader is not None:  # It has read the whole plain content.
            self._md5 = self._last_reader.md5.hexdigest()
        return md5

    @property
    def has_opaque_etag(self) -> bool:
        """Whether the parameters demand an encryption that makes the ETag opaque."""
        return has_opaque_etag(self.parameters)

    def _is_as_hashed(self) -> bool:
        """Return whether the last stream had the same content as the hashed one."""
        return (
            self._last_reader is None or self._last_reader.md5.hexdigest() == self._md5
        )

    def release_content(self) -> bool:
        """Free the content unless ETags need it; return whether it was freed."""
        if self.body is None or len(self.body) >= SMALLEST_PART:
            return False
        # Compute and cache these first, because they need the content.
        _ = self.fingerprint, self.body_md5, self.size
        del self.plain, self.body
        self._file = None
        self._is_released = True
        return True

    def readable(self) -> Any:
        """Return a file of the bytes to send, at its beginning."""
        if self.plain is not None:
            readable: Any = BytesIO(self.plain)
        else:
            readable = self._rewound()
            # s3transfer would close it: https://github.com/boto/s3transfer/issues/80
            readable.close = lambda: None
        return self._compress(readable) if self._compress else readable

    def read_again(self) -> bool:
        """Open the file again; return whether the caller may close its own file."""
        if self.reopen is None or self._own is not None:
            return False
        self._own = self._file = self.reopen()
        self.is_reopened = True
        return True

    def take_hashes(self, other: Payload) -> None:
        """Copy the hashes that `other`, a payload of the same file, has computed."""
        for name in vars(other).keys() & {"_md5", "_hashes", "body_md5"}:
            setattr(self, name, getattr(other, name))

    def upload_stream(self, check: Callable[[], object]) -> _UploadStream:
        """Return a stream for an upload, which raises an error if the file has changed.

        It calls `check` before each read; an exception there ends the upload.
        """
        stream: Any = self._stream(self._md5, check)
        size = None if self.compresses else self._length
        threshold = self.config.multipart_threshold
        return _UploadStream(stream, size, self._part_size, threshold)

    @cached_property
    def _md5(self) -> str:
        if self.plain is not None:
            return md5_of([self.plain])
        return md5_of(_chunks(self._rewound())) if self.compresses else self._hashes[0]

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        # The MD5 of an uncompressed stream, and its ETag in parts of the usual size.
        return md5_and_etag_of(_chunks(self._rewound()), self._part_size)

    @cached_property
    def _length(self) -> int:
        self._file.seek(0, SEEK_END)  # Not all classes return the position.
        return int(self._file.tell())

    @property
    def _part_size(self) -> int:
        # This is s3transfer's rule: larger for more than 10,000 parts, if it knows the
        # size. The size of a compressed stream is known only at its end.
        size = None if self.body is None and self.compresses else self.size
        adjust = ChunksizeAdjuster().adjust_chunksize
        return int(adjust(self.config.multipart_chunksize, size))

    def _stream(self, expected: str | None, check: Any = None) -> Any:
        """Return a file of the bytes to send, at its beginning.

        It raises an error if the MD5 of the plain content is not the `expected` one.
        """
        plain: Any
        if self.plain is None:
            reader = _HashingReader(self._rewound(), self._length, expected, check)
            self._last_reader = reader
            plain = BufferedReader(reader, _CHUNK_SIZE)
        else:
            plain = BytesIO(self.plain)
        return self._compress(plain) if self._compress else plain

    def _rewound(self) -> ReadBytesWrapper:
        self._file.seek(0)
        return ReadBytesWrapper(self._file)

    def _less_than_threshold(self, readable: Any) -> bytes | None:
        chunks, size = [], 0
        for chunk in _chunks(readable):
            chunks.append(chunk)
            size += len(chunk)
            if size >= self.config.multipart_threshold:
                return None
        return b"".join(chunks)


def has_opaque_etag(parameters: Mapping[str, Any]) -> bool:
    """Return whether a write with `parameters` gives an ETag that is not an MD5."""
    encryption = str(parameters.get("ServerSideEncryption", ""))
    return encryption.startswith("aws:kms") or "SSECustomerKey" in parameters


class Capture(NamedTuple):
    """The arguments of a captured call of `upload_fileobj`."""

    key: str
    file: Any
    parameters: dict[str, Any]
    callback: Callable[[int], None] | None
    config: TransferConfig | None

    @property
    def plain(self) -> Any:
        """The file before compression."""
        return self.file.plain if isinstance(self.file, Compressible) else self.file

    def payload(self) -> Payload:
        """Return the payload, which the caller has to close."""
        config = self.config or TransferConfig()
        compress = self.file.compress if isinstance(self.file, Compressible) else None
        return Payload(self.plain, self.parameters, config, compress)

    def is_text(self) -> bool:
        """Return whether the file is a text file, which s3transfer may truncate.

        It uses the number of characters as the number of bytes:
        https://github.com/boto/s3transfer/blob/develop/s3transfer/utils.py
        """
        return isinstance(getattr(self.plain, "file", self.plain).read(0), str)

    def is_of(self, content: object) -> bool:
        """Return whether the file is `content` itself, and not derived from it."""
        return isinstance(self.plain, ReadBytesWrapper) and self.plain.file is content

    def content(self) -> Any:
        """Return the file that django-storages would pass to boto3."""
        if isinstance(self.file, Compressible):
            return self.file.compress(self.file.plain)
        return self.file

    def report(self, payload: Payload) -> None:
        """Report to the caller's callback that all bytes were sent."""
        if self.callback is not None:
            self.callback(payload.size)


Take = Callable[[Capture], object]


class StandIn:
    """A stand-in for a boto3 object, which is created at each access."""

    def __init__(self, connect: Callable[[], Any], take: Take, key: str = "") -> None:
        """Represent the object that `connect` returns; pass its uploads to `take`."""
        self._connect, self._take, self._key = connect, take, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connect(), name)


class CapturingBucket(StandIn):
    """A boto3 Bucket whose uploads are passed to a function."""

    def Object(self, key: str) -> _CapturingObject:  # noqa: N802 (boto3's name)
        """Return a stand-in for the object `key`."""
        return _CapturingObject(lambda: self._connect().Object(key), self._take, key)


class _CapturingObject(StandIn):
    def upload_fileobj(
        self,
        Fileobj: Any,  # noqa: N803 (boto3's names)
        ExtraArgs: dict[str, Any] | None = None,  # noqa: N803
        Callback: Callable[[int], None] | None = None,  # noqa: N803
        Config: TransferConfig | None = None,  # noqa: N803
    ) -> None:
        self._take(Capture(self._key, Fileobj, ExtraArgs or {}, Callback, Config))


class Compressible:
    """A file that is compressed only when it is sent."""

    def __init__(self, plain: Any, compress: Callable[[Any], Any]) -> None:
        self.plain = plain
        self.compress = compress

    @cached_property
    def _compressed(self) -> Any:
        return self.compress(self.plain)

    def read(self, *size: int) -> Any:
        """Read the compressed content, as some subclasses do."""
        return self._compressed.read(*size)

    def close(self) -> None:
        """Close the plain file."""
        self.plain.close()


class _HashingReader(RawIOBase):
    """A reader that hashes a file, from its beginning after each rewinding."""

    def __init__(
        self, file: Any, length: int, expected: str | None, check: Any
    ) -> None:
        super().__init__()
        self._file, self._length = file, length
        self._expected, self._check = expected, check
        self._ended = False
        self._read = 0
        self.md5 = new_md5()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        if whence == SEEK_SET:
            self._ended = False
        if (offset, whence) == (0, SEEK_SET):
            self.md5, self._read = new_md5(), 0
        self._file.seek(offset, whence)
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        if self._check is not None:
            self._check()
        # The end is final, because django-storages' compression cannot read a file that
        # grows.
        chunk = b"" if self._ended else self._file.read(len(buffer))
        self._ended = not chunk
        self.md5.update(chunk)
        self._read += len(chunk)
        # A complete upload cannot be undone. Therefore the error is raised before the
        # last part is sent, so that the multipart upload is aborted.
        is_all = self._ended or self._read >= self._length
        if is_all and self._expected not in (None, self.md5.hexdigest()):
            raise OSError("the file changed while it was being read")
        buffer[: len(chunk)] = chunk
        return len(chunk)


class _UploadStream:
    """A stream for s3transfer; it has its `etag` when it has been read to its end."""

    def __init__(
        self, readable: Any, size: int | None, part_size: int, threshold: int
    ) -> None:
        self.size = size  # in bytes, if it is known
        self._readable, self._threshold = readable, threshold
        self._hashes = PartHashes(part_size)

    def seekable(self) -> bool:
        """Return False, so that s3transfer reads the stream once, to its end."""
        return False

    def read(self, *size: int) -> bytes:
        chunk: bytes = self._readable.read(*size)
        self._hashes.update(chunk)
        return chunk

    def close(self) -> None:
        """Do nothing: s3transfer closes its caller's files.

        https://github.com/boto/s3transfer/issues/80
        """

    @property
    def bytes_read(self) -> int:
        """The bytes that have been read."""
        return self._hashes.size

    @property
    def etag(self) -> str:
        """The ETag of the content in one request, or in parts of the usual size."""
        if self._hashes.size < self._threshold:
            return self._hashes.first_md5()
        return self._hashes.etag()


def _copy_unless_rewindable(file: Any, memory: int) -> IO[bytes] | None:
    """Return a binary, seekable copy of `file`, unless it is binary and seekable."""
    if is_seekable(file) and hasattr(file, "tell"):
        file.seek(0)
        inner = file.file if isinstance(file, ReadBytesWrapper) else file
        # Positions in a text file are not bytes.
        if not isinstance(inner.read(0), str):
            return None
    copy: IO[bytes] = SpooledTemporaryFile(max_size=memory)  # noqa: SIM115
    for chunk in _chunks(ReadBytesWrapper(file)):
        copy.write(chunk)
    return copy


def _chunks(readable: Any) -> Iterator[bytes]:
    return iter(lambda: readable.read(_CHUNK_SIZE), b"")
