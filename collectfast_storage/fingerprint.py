"""Fingerprints of contents and headers, and the ETags that S3 derives from contents.

The ETag of an object that was uploaded in one request, and is not encrypted with KMS or
a customer's key, is the MD5 of its content:
https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
The ETag of a multipart upload is the MD5 of the MD5s of its parts, a dash, and the
number of parts:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from math import ceil
from typing import Any, NamedTuple

# The name of the fingerprint in the metadata of an object.
FINGERPRINT = "collectfast-fingerprint"
_canonical = json.JSONEncoder(sort_keys=True, default=repr).encode


class Fingerprint(NamedTuple):
    """Hashes of an upload's content and headers.

    An object with the fingerprint of a file need not be uploaded again.
    """

    md5: str  # of the content before compression
    headers: str  # digest of the parameters of the upload

    def __str__(self) -> str:
        return f"{self.md5}-{self.headers}"


def new_md5() -> Any:
    """Return an MD5 that FIPS machines allow, because it is not used for security."""
    return hashlib.md5(usedforsecurity=False)


def md5_of(chunks: Iterable[bytes]) -> str:
    """Return the MD5 of all `chunks` together, in hexadecimal."""
    md5 = new_md5()
    for chunk in chunks:
        md5.update(chunk)
    return str(md5.hexdigest())


def md5_and_etag_of(chunks: Iterable[bytes], part_size: int) -> tuple[str, str]:
    """Return the MD5 of all `chunks`, and their ETag in parts of `part_size` bytes."""
    md5, parts = new_md5(), PartHashes(part_size)
    for chunk in chunks:
        md5.update(chunk)
        parts.update(chunk)
    return str(md5.hexdigest()), parts.etag()


def digest_of(parameters: Mapping[str, object]) -> str:
    """Return a digest that does not reveal the `parameters` of an upload."""
    return _digest_of(_canonical(parameters))


@lru_cache(1000)  # Most files have the same parameters.
def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def normal_etag(header: str | None) -> str:
    """Return the ETag in `header`, if any, without quotes and ``W/``, in lower case."""
    return (header or "").strip().removeprefix("W/").strip('"').lower()


def looks_like_md5(etag: str) -> bool:
    """Return whether `etag` has the form of an MD5, and not of a multipart upload."""
    return re.fullmatch("[0-9a-f]{32}", etag) is not None


# Part sizes of boto3 and the AWS CLI (8), rclone (5), s5cmd (50), and common settings.
_PART_SIZES = [each * 1024 * 1024 for each in (5, 8, 10, 15, 16, 25, 32, 50, 64, 100)]
_PART_SIZES += [each * 1024 * 1024 for each in (128, 200, 256, 500, 512, 1024)]
SMALLEST_PART = _PART_SIZES[0]


def number_of_parts(etag: str) -> int:
    """Return the number of parts in `etag`, or 0 if it is not of a multipart upload."""
    _, _, number = etag.rpartition("-")
    return int(number) if "-" in etag and number.isdecimal() else 0


def part_sizes(size: int, parts: int, usual: int) -> list[int]:
    """Return the part sizes, `usual` first, that divide `size` bytes into `parts`."""
    sizes = dict.fromkeys([usual, *_PART_SIZES])
    return [each for each in sizes if ceil(size / each) == parts]


def etag_of_parts(digests: Sequence[bytes]) -> str:
    """Return the ETag of a multipart upload from the MD5 `digests` of its parts."""
    return f"{md5_of(digests)}-{len(digests)}"


class PartHashes:
    """The MD5s of content that is divided into parts of `part_size` bytes."""

    def __init__(self, part_size: int) -> None:
        self.size = 0  # of the content
        self._part_size = part_size
        self._parts: list[Any] = []

    def update(self, chunk: bytes) -> None:
        """Add a chunk of any size."""
        view = memoryview(chunk)
        while view:
            free = self._part_size - self.size % self._part_size
            if free == self._part_size:
                self._parts.append(new_md5())
            self._parts[-1].update(view[:free])
            self.size += len(view[:free])
            view = view[free:]

    def first_md5(self) -> str:
        """Return the MD5 of the first part, in hexadecimal."""
        return str(self._parts[0].hexdigest()) if self._parts else md5_of([])

    def etag(self) -> str:
        """Return the ETag of the content."""
        return etag_of_parts([part.digest() for part in self._parts])


def etags_in_parts(chunks: Iterable[bytes], sizes: Iterable[int]) -> list[str]:
    """Return the ETags of all `chunks`, uploaded in parts of each of the `sizes`."""
    hashes = [PartHashes(size) for size in sizes]
    for chunk in chunks:
        for each in hashes:
            each.update(chunk)
    return [each.etag() for each in hashes]
