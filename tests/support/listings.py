"""Responses to ListObjectsV2, written by hand."""

from __future__ import annotations

XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def entry(key: str, etag: str = "d41d8cd98f00b204e9800998ecf8427e") -> str:
    """Return the entry of an object, which is an empty file unless `etag` differs."""
    return (
        f"<Contents><Key>{key}</Key><ETag>&quot;{etag}&quot;</ETag>"
        "<LastModified>2020-01-01T00:00:00.000Z</LastModified>"
        "<Size>0</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def result(*entries: str, truncated: bool = False, token: str = "") -> str:
    """Return a page of a listing, as S3 writes it."""
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return (
        f"{XML}<ListBucketResult {NAMESPACE}><Name>tests</Name>"
        f"<KeyCount>{len(entries)}</KeyCount><MaxKeys>1000</MaxKeys>"
        "<EncodingType>url</EncodingType>"
        f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{more}{''.join(entries)}"
        "</ListBucketResult>"
    )
