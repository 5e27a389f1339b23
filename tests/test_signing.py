"""Signature Version 4, against botocore's own."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

import botocore.auth
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from collectfast_storage.signing import UNSIGNED, encode_query, sign

BODY = b"content"


@pytest.mark.parametrize("token", [None, "session-token"])
@pytest.mark.parametrize(
    "key", ["a.css", "dir/with space+plus.css", "ü~'()*!/%2e&=;,:@$.css"]
)
@pytest.mark.parametrize("query", [{}, {"list-type": "2", "prefix": "a b/ü", "x": ""}])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_signature_is_that_of_botocore(
    token: str | None, key: str, query: dict[str, str], scheme: str
) -> None:
    """To the letter, for keys, queries and headers of all kinds."""
    path = "/bucket/" + quote(key, safe="/~")
    headers = {
        "content-md5": "mBTLLYzUvw7S3F0fmTTJQw==",
        "content-type": "text/css",
        "x-amz-meta-a": "two  spaces ",
    }
    url = f"{scheme}://host.example:9000{path}"
    url += f"?{urlencode(query, quote_via=quote, safe='~')}" if query else ""
    request = AWSRequest("PUT", url, headers=dict(headers), data=BODY)
    request.context["has_streaming_input"] = True
    credentials: Any = Credentials("access", "secret", token)
    S3SigV4Auth(credentials, "s3", "eu-central-1").add_auth(request)

    ours = sign(
        "PUT",
        "host.example:9000",
        path,
        query,
        headers,
        UNSIGNED if scheme == "https" else hashlib.sha256(BODY).hexdigest(),
        access_key="access",
        secret_key="secret",
        token=token,
        region="eu-central-1",
        now=datetime.strptime(request.context["timestamp"], "%Y%m%dT%H%M%SZ").replace(
            tzinfo=UTC
        ),
    )
    theirs = {name.lower(): value for name, value in request.headers.items()}
    assert ours == theirs
    assert request.url.endswith(f"?{encode_query(query)}" if query else path)


def test_botocore_still_signs_what_we_think_it_does() -> None:
    """Should that change, what is signed above would still be the same."""
    assert {"user-agent", "expect"} <= {*botocore.auth.SIGNED_HEADERS_BLACKLIST}
