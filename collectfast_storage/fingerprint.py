"""What is known of a content: fingerprints and ETags.

The ETag of an object that was uploaded in one request and not encrypted with KMS or a
customer's key is the MD5 of its content:
https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
That of a multipart upload is the MD5 of its parts' MD5s, a dash, and their number:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# What an object's metadata call the fingerprint of what was sent.
FINGERPRINT = "collectfast-fingerprint"
_canonical = json.JSONEncoder(sort_keys=True, default=repr).encode


class Fingerprint(NamedTuple):
    """What decides whether a file must go up again: its content and its headers."""

    md5: str  # of the content before compression
    headers: str  # digest of the parameters of the write

    def __str__(self) -> str:
        return f"{self.md5}-{self.headers}"


def new_md5() -> Any:
    """Return an MD5 that FIPS machines allow, as it protects nothing."""
    return hashlib.md5(usedforsecurity=False)


def md5_of(chunks: Iterable[bytes]) -> str:
    """Return the MD5 of all `chunks` together, in hexadecimal."""
    md5 = new_md5()
    for chunk in chunks:
        md5.update(chunk)
    return str(md5.hexdigest())


def digest_of(parameters: Mapping[str, object]) -> str:
    """Return a digest of the parameters of a write that does not reveal them."""
    return hashlib.sha256(_canonical(parameters).encode()).hexdigest()[:32]


def normal_etag(header: str | None) -> str:
    """Return the ETag in `header`, if any, without quotes and ``W/``, in lower case."""
    return (header or "").strip().removeprefix("W/").strip('"').lower()


# Of boto3 and the AWS CLI (8), rclone (5), s5cmd (50), and what people set them to.
_PART_SIZES = [each * 1024 * 1024 for each in (5, 8, 10, 15, 16, 25, 32, 50, 64, 100)]
_PART_SIZES += [each * 1024 * 1024 for each in (128, 200, 256, 500, 512, 1024)]
SMALLEST_PART = _PART_SIZES[0]


def number_of_parts(etag: str) -> int:
    """Return how many parts an object with this `etag` came in; 0: in one piece."""
    _, _, number = etag.rpartition("-")
    return int(number) if "-" in etag and number.isdecimal() else 0


def part_sizes(size: int, parts: int, usual: int) -> list[int]:
    """Return of which sizes, the `usual` one first, `parts` can be that make `size`."""
    sizes = dict.fromkeys([usual, *_PART_SIZES])
    return [each for each in sizes if -(-size // each) == parts]


class PartHasher:
    """Hashes a content part by part, as a multipart upload of it would."""

    def __init__(self, part_size: int) -> None:
        """Prepare for parts of `part_size` bytes, the last one being what is left."""
        self._part_size = part_size
        self._parts: list[Any] = []
        self._room = 0

    def update(self, chunk: bytes) -> None:
        """Take the next `chunk`, of any size."""
        view = memoryview(chunk)
        while view:
            if not self._room:
                self._parts.append(new_md5())
                self._room = self._part_size
            taken, view = view[: self._room], view[self._room :]
            self._parts[-1].update(taken)
            self._room -= len(taken)

    def etag(self) -> str:
        """Return the ETag of all that was taken."""
        digests = [part.digest() for part in self._parts]
        return f"{md5_of(digests)}-{len(digests)}"
