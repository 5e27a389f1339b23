"""A bucket with ETags that do not depend on the contents of its objects."""

from __future__ import annotations

import hashlib
import itertools
import re
from urllib.parse import unquote_plus

from tests.support.proxy import Handler, Proxy, Request

# The header of the fingerprint that an upload stores with its object.
METADATA = "x-amz-meta-collectfast-fingerprint"


class Opaque:
    """A fault of the proxy that replaces all ETags, as server-side encryption does.

    S3 with SSE-KMS makes a new data key and thereby a new ETag for each upload, and
    names the encryption in its responses. It is simulated because SeaweedFS supports
    SSE-KMS only if it is configured.
    """

    def __init__(self, proxy: Proxy, encryption: str | None = "aws:kms") -> None:
        self._encryption = encryption
        self._made: dict[str, str] = {}
        self._numbers = itertools.count()
        proxy.fault = self

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        status, content, headers = handler.ask(body)
        if request.method == "PUT":
            self._made[request.key] = hashlib.md5(
                b"%d" % next(self._numbers)
            ).hexdigest()
        if request.kind == "LIST":
            content = self._rewritten(content.decode()).encode()
        etag = self._made.get(request.key)
        if etag is not None and status == 200:
            headers = [(k, v) for k, v in headers if k.lower() != "etag"]
            headers.append(("ETag", f'"{etag}"'))
            if self._encryption:
                headers.append(("x-amz-server-side-encryption", self._encryption))
        handler.answer(status, content, headers)
        return True

    def _rewritten(self, listing: str) -> str:
        def entry(match: re.Match[str]) -> str:
            key = re.search("<Key>(.*?)</Key>", match[0])
            assert key is not None
            etag = self._made.get(unquote_plus(key[1]))
            quoted = f"<ETag>&quot;{etag}&quot;</ETag>"
            return re.sub("<ETag>.*?</ETag>", quoted, match[0])

        return re.sub("<Contents>.*?</Contents>", entry, listing, flags=re.DOTALL)
