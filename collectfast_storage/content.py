"""What a save would send: the bytes as they go over the wire, and the headers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from io import SEEK_END, BytesIO
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from boto3.s3.transfer import TransferConfig
from s3transfer.utils import ChunksizeAdjuster
from storages.utils import ReadBytesWrapper, is_seekable

from collectfast_storage.etag import Fingerprint, PartHasher, digest_of, md5_of

_CHUNK_SIZE = 256 * 1024


class Content:
    """One file as one `save` would send it.

    What fits into one request is read once, so that what was hashed is what is sent;
    anything larger is streamed, as often as it is asked for, and never held whole.
    """

    def __init__(
        self,
        file: Any,
        parameters: dict[str, Any],
        config: TransferConfig,
        compress: Callable[[Any], Any] | None = None,
    ) -> None:
        """Describe the sending of `file`, text or binary, with S3's write `parameters`.

        `config` says from which size in bytes on an upload is a multipart one;
        `compress` turns a readable into a compressed readable.
        """
        self.parameters = parameters
        self._config = config
        self._compress = compress
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
        if self.body is not None:
            return len(self.body)
        if self.plain is not None:
            return len(self.plain)
        return int(self._file.seek(0, SEEK_END))

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What decides whether this must go up again."""
        return Fingerprint(self._md5, digest_of(self.parameters))

    @cached_property
    def etag(self) -> str:
        """The ETag that S3 gives this, if it is one that follows from the content."""
        if self.body is not None:
            return self.body_md5
        hasher = PartHasher(self._part_size)
        for chunk in _chunks(self.stream()):
            hasher.update(chunk)
        return hasher.etag()

    @cached_property
    def body_md5(self) -> str:
        """The MD5 of `body`, in hexadecimal."""
        return self._md5 if self._compress is None else md5_of([self.body or b""])

    @property
    def compresses(self) -> bool:
        """Whether the file is compressed before it is sent."""
        return self._compress is not None

    def is_as_hashed(self) -> bool:
        """Tell whether the file still has the content that the fingerprint tells of."""
        return self.plain is not None or md5_of(_chunks(self._rewound())) == self._md5

    def settle(self) -> None:
        """Work out fingerprint and ETag, and let go of the file and its content."""
        self.fingerprint  # noqa: B018
        self.etag  # noqa: B018
        self.__dict__.pop("plain", None)
        self.__dict__.pop("body", None)
        self._file = None

    def stream(self) -> Any:
        """Return a readable of all that is to be sent, from its beginning."""
        plain = self._rewound() if self.plain is None else BytesIO(self.plain)
        return self._compress(plain) if self._compress else plain

    @cached_property
    def _md5(self) -> str:
        return md5_of(_chunks(self._rewound()) if self.plain is None else [self.plain])

    @property
    def _part_size(self) -> int:
        """The bytes in a part, as s3transfer chooses them.

        It makes them larger for a file of more than 10,000 parts, if it can tell the
        size before it sends: that of a stream being compressed it cannot.
        """
        size = None if self._compress else self.size
        adjuster = ChunksizeAdjuster()
        return int(adjuster.adjust_chunksize(self._config.multipart_chunksize, size))

    def _rewound(self) -> ReadBytesWrapper:
        self._file.seek(0)
        return ReadBytesWrapper(self._file)

    def _less_than_threshold(self, readable: Any) -> bytes | None:
        whole = bytearray()
        for chunk in _chunks(readable):
            whole += chunk
            if len(whole) >= self._config.multipart_threshold:
                return None
        return bytes(whole)


def _copy_unless_rewindable(file: Any, memory: int) -> IO[bytes] | None:
    """Return a binary, seekable copy of `file`, unless it is both itself."""
    if is_seekable(file):
        file.seek(0)
        if not _is_text(file):
            return None
    # A text file's positions say nothing of its size in bytes.
    copy: IO[bytes] = SpooledTemporaryFile(max_size=memory)  # noqa: SIM115
    for chunk in _chunks(ReadBytesWrapper(file)):
        copy.write(chunk)
    return copy


def _is_text(file: Any) -> bool:
    if isinstance(file, ReadBytesWrapper):
        file = file.file
    return isinstance(file.read(0), str)


def _chunks(readable: Any) -> Iterator[bytes]:
    return iter(lambda: readable.read(_CHUNK_SIZE), b"")
