"""Signature Version 4, for requests to S3 that all look alike.

Pure functions; no Django, no boto3. The rule is Amazon's:
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
Tests hold it against botocore's `S3SigV4Auth`, which takes three times as long for it,
as it knows nothing of the request beforehand.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from urllib.parse import quote

UNSIGNED = "UNSIGNED-PAYLOAD"


def sign(
    method: str,
    host: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    payload: str,
    *,
    access_key: str,
    secret_key: str,
    token: str | None,
    region: str,
    now: datetime,
) -> dict[str, str]:
    """Return `headers` with what makes them a signed request.

    `path` is percent-encoded, `query` is not; header names are in lower case; `payload`
    is the SHA-256 of the body in hexadecimal, or `UNSIGNED`; `now` is in UTC.
    """
    date = now.strftime("%Y%m%dT%H%M%SZ")
    signed = {**headers, "x-amz-content-sha256": payload, "x-amz-date": date}
    if token:
        signed["x-amz-security-token"] = token
    lines = sorted({**signed, "host": host}.items())
    canonical_headers = "".join(f"{k}:{' '.join(v.split())}\n" for k, v in lines)
    names = ";".join(name for name, _ in lines)
    parts = (method, path, encode_query(query), canonical_headers, names, payload)
    canonical = "\n".join(parts)
    scope = f"{date[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}"
    key = _signing_key(secret_key, date[:8], region)
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    signed["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return signed


def encode_query(query: Mapping[str, str]) -> str:
    """Return `query` sorted and percent-encoded, as it is signed and sent."""
    pairs = sorted((quote(k, safe="~"), quote(v, safe="~")) for k, v in query.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


@lru_cache(maxsize=8)
def _signing_key(secret_key: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
