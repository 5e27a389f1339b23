"""What S3's answers say of objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from collectfast_storage.exceptions import AnswerError

# What an object's metadata call the fingerprint of what was sent.
FINGERPRINT = "collectfast-fingerprint"


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of an object without reading it."""

    etag: str
    fingerprint: str = ""  # as it was kept in the metadata, if it was
    encryption: str = ""

    @property
    def has_opaque_etag(self) -> bool:
        """Whether the ETag says nothing of the content, or was found to say nothing."""
        return bool(self.fingerprint) or self.encryption.startswith(
            ("aws:kms", "SSE-C")
        )

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Head:
        """Read the headers of an answer, whose names are in lower case."""
        customer = "x-amz-server-side-encryption-customer-algorithm" in headers
        return cls(
            bare_etag(headers.get("etag")),
            headers.get(f"x-amz-meta-{FINGERPRINT}", ""),
            "SSE-C" if customer else headers.get("x-amz-server-side-encryption", ""),
        )


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing: keys with their ETags, and the token of what comes next."""

    etags: dict[str, str]
    token: str  # empty after the last page

    @classmethod
    def of_xml(cls, content: bytes) -> Page | None:
        """Read the answer to ListObjectsV2; `None` if it is not one.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
        """
        try:
            root = ElementTree.fromstring(content)  # noqa: S314 (as botocore does)
        except ElementTree.ParseError:
            return None
        namespace = root.tag.removesuffix("ListBucketResult")
        token = root.findtext(f"{namespace}NextContinuationToken") or ""
        if root.findtext(f"{namespace}IsTruncated") != ("true" if token else "false"):
            return None
        decode = root.findtext(f"{namespace}EncodingType") == "url"
        entries = [
            (entry.findtext(f"{namespace}Key"), entry.findtext(f"{namespace}ETag"))
            for entry in root.iterfind(f"{namespace}Contents")
        ]
        if decode:
            entries = [(key and unquote_plus(key), etag) for key, etag in entries]
        return cls._of(entries, token)

    @classmethod
    def of_response(cls, response: Mapping[str, Any]) -> Page | None:
        """Read what boto3 made of such an answer; `None` if it was of another kind."""
        more = response.get("IsTruncated")
        token = response.get("NextContinuationToken", "") if more else ""
        entries = [(e.get("Key"), e.get("ETag")) for e in response.get("Contents", [])]
        # Of an answer of another kind boto3 makes a listing of nothing.
        is_listing = entries or "KeyCount" in response
        return cls._of(entries, token) if is_listing and more == bool(token) else None

    @classmethod
    def _of(
        cls, entries: Iterable[tuple[str | None, str | None]], token: str
    ) -> Page | None:
        """Return `entries` as a page; `None` if a key is missing or has two ETags."""
        etags: dict[str, str] = {}
        for key, etag in entries:
            etag = bare_etag(etag or "")
            if not key or etags.setdefault(key, etag) != etag:
                return None
        return cls(etags, token)


def bare_etag(header: str | None) -> str:
    """Return the ETag in `header`, without its quotation marks."""
    # An empty one is a look-alike's; none at all is what others than S3 answer.
    if header is None:
        raise AnswerError(what="It answered without an ETag")
    return header.strip('"')
