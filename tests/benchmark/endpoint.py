"""An in-memory S3 endpoint with a fixed round trip time, which counts requests.

``python -m tests.benchmark.endpoint server.pem --round-trip 0.02`` prints its address.
``server.pem`` contains a certificate and its key, because clients connect by TLS. TLS
handshakes are not delayed. The endpoint supports the operations that the compared tools
use, checks Content-MD5, and accepts any signature. It answers ``/-/counts``,
``/-/reset``, which sets the counts to zero, and ``/-/drop``, which deletes all objects,
without a delay.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import bisect
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.benchmark.limits import Limits
from tests.support.certificates import server_context

XML = '<?xml version="1.0" encoding="UTF-8"?>'
NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'

Answer = tuple[int, dict[str, str], bytes]


class Object:
    """An object with its headers."""

    __slots__ = ("content", "etag", "headers", "modified")

    def __init__(self, content: bytes, etag: str, headers: dict[str, str]) -> None:
        self.content = content
        self.etag = etag
        self.headers = headers
        self.modified = datetime.now(UTC)


class Store:
    """The buckets of the endpoint, which are created when a request names them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.buckets: dict[str, dict[str, Object]] = {}
        self.sorted: dict[str, list[str] | None] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.counts: Counter[str] = Counter()
        self.connections: set[Connection] = set()

    def answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        """Return the response to one request."""
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        if bucket == "-":
            return self._about(key)
        kind = _kind(method, key, query)
        self.counts[kind] += 1
        if kind == "PUT":
            self.limits.count_put()
        if self.limits.is_out and self.limits.outage.isdecimal():
            return _error(int(self.limits.outage), "SlowDown")
        if kind == "PUT" and not self.limits.takes_put():
            return _error(self.limits.status, "SlowDown")
        if "content-md5" in headers:
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            if base64.b64encode(digest).decode() != headers["content-md5"]:
                return _error(400, "BadDigest")
        if not key:
            return self._bucket(method, bucket, query, body)
        return self._object(method, bucket, key, query, headers, body)

    def _about(self, command: str) -> Answer:
        objects = sum(map(len, self.buckets.values()))
        counts = self.counts | {"bytes": self.limits.received, "objects": objects}
        text = json.dumps(counts).encode()
        if command == "reset":
            self.counts.clear()
            self.limits.received = 0
        if command == "drop":
            self.buckets.clear()
            self.sorted.clear()
        return 200, {}, text

    def _bucket(
        self, method: str, bucket: str, query: dict[str, list[str]], body: bytes
    ) -> Answer:
        if method == "POST" and "delete" in query:
            for element in ElementTree.fromstring(body).iter():
                if element.tag.endswith("Key"):
                    self._delete(bucket, element.text or "")
            return 200, {}, f"{XML}<DeleteResult {NAMESPACE}/>".encode()
        if method == "GET" and "location" in query:
            return 200, {}, f"{XML}<LocationConstraint {NAMESPACE}/>".encode()
        if method == "GET" and ("versioning" in query or "object-lock" in query):
            return 200, {}, f"{XML}<VersioningConfiguration {NAMESPACE}/>".encode()
        if method == "GET" and not bucket:
            return 200, {}, f"{XML}<ListAllMyBucketsResult {NAMESPACE}/>".encode()
        if method == "GET":
            return self._list(
                bucket, {name: values[0] for name, values in query.items()}
            )
        return 200, {}, b""

    def _object(
        self,
        method: str,
        bucket: str,
        key: str,
        query: dict[str, list[str]],
        headers: dict[str, str],
        body: bytes,
    ) -> Answer:
        objects = self.buckets.setdefault(bucket, {})
        if method == "PUT" and "uploadId" in query:
            part = int(query["partNumber"][0])
            self.uploads[query["uploadId"][0]][part] = body
            return 200, {"ETag": f'"{_md5(body)}"'}, b""
        if method == "PUT":
            kept = {
                name: value
                for name, value in headers.items()
                if name.startswith(
                    ("content-type", "content-enc", "cache", "x-amz-meta")
                )
            }
            return self._put(bucket, key, Object(body, _md5(body), kept))
        if method == "POST" and "uploads" in query:
            number = str(len(self.uploads) + 1)
            self.uploads[number] = {}
            text = f"<UploadId>{number}</UploadId><Key>{escape(key)}</Key>"
            root = "InitiateMultipartUploadResult"
            return 200, {}, f"{XML}<{root} {NAMESPACE}>{text}</{root}>".encode()
        if method == "POST":
            return self._complete(bucket, key, query["uploadId"][0])
        if method == "DELETE":
            self._delete(bucket, key)
            return 204, {}, b""
        if key not in objects:
            return _error(404, "NoSuchKey")
        found = objects[key]
        head = {
            "ETag": f'"{found.etag}"',
            "Last-Modified": format_datetime(found.modified, usegmt=True),
            **found.headers,
        }
        return 200, head, found.content

    def _put(self, bucket: str, key: str, new: Object) -> Answer:
        objects = self.buckets.setdefault(bucket, {})
        if key not in objects:
            self.sorted[bucket] = None
        objects[key] = new
        return 200, {"ETag": f'"{new.etag}"'}, b""

    def _complete(self, bucket: str, key: str, upload: str) -> Answer:
        parts = [part for _, part in sorted(self.uploads.pop(upload).items())]
        digests = b"".join(
            hashlib.md5(p, usedforsecurity=False).digest() for p in parts
        )
        etag = f"{_md5(digests)}-{len(parts)}"
        self._put(bucket, key, Object(b"".join(parts), etag, {}))
        root = "CompleteMultipartUploadResult"
        text = f"<ETag>&quot;{etag}&quot;</ETag>"
        return 200, {}, f"{XML}<{root} {NAMESPACE}>{text}</{root}>".encode()

    def _delete(self, bucket: str, key: str) -> None:
        if self.buckets.setdefault(bucket, {}).pop(key, None) is not None:
            self.sorted[bucket] = None

    def _keys(self, bucket: str) -> list[str]:
        keys = self.sorted.get(bucket)
        if keys is None:
            keys = self.sorted[bucket] = sorted(self.buckets.get(bucket, {}))
        return keys

    def _list(self, bucket: str, query: dict[str, str]) -> Answer:
        prefix = query.get("prefix", "")
        after = query.get("continuation-token") or query.get("start-after")
        after = after or query.get("marker") or ""
        limit = min(int(query.get("max-keys", 1000)), 1000)
        found: list[str] = []
        last, more = "", False
        for text, last_of_it in self._entries(bucket, prefix, after, query):
            if len(found) == limit:
                more = True
                break
            found.append(text)
            last = last_of_it
        name = quote if query.get("encoding-type") == "url" else str
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>"
        token += f"<NextMarker>{escape(name(last))}</NextMarker>"
        encoding = "<EncodingType>url</EncodingType>" if name is quote else ""
        head = (
            f"<Name>{bucket}</Name><Prefix>{escape(name(prefix))}</Prefix>{encoding}"
            f"<KeyCount>{len(found)}</KeyCount><MaxKeys>{limit}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token if more else ''}"
        )
        root = f"ListBucketResult {NAMESPACE}"
        text = f"{XML}<{root}>{head}{''.join(found)}</ListBucketResult>"
        return 200, {"Content-Type": "application/xml"}, text.encode()

    def _entries(
        self, bucket: str, prefix: str, after: str, query: dict[str, str]
    ) -> Iterator[tuple[str, str]]:
        keys, objects = self._keys(bucket), self.buckets.get(bucket, {})
        name = quote if query.get("encoding-type") == "url" else str
        delimiter = query.get("delimiter", "")
        folder = None
        start = max(bisect.bisect_right(keys, after), bisect.bisect_left(keys, prefix))
        for key in keys[start:]:
            if not key.startswith(prefix):
                break
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                this = prefix + rest.split(delimiter)[0] + delimiter
                if this == folder:
                    continue
                folder = this
                inner = f"<Prefix>{escape(name(this))}</Prefix>"
                yield f"<CommonPrefixes>{inner}</CommonPrefixes>", this + "\U0010ffff"
                continue
            found = objects[key]
            yield (
                f"<Contents><Key>{escape(name(key))}</Key>"
                f"<LastModified>{found.modified:%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
                f"<ETag>&quot;{found.etag}&quot;</ETag><Size>{len(found.content)}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>",
                key,
            )


def _kind(method: str, key: str, query: dict[str, list[str]]) -> str:
    if method == "GET" and not key:
        return "LIST" if not {"location", "versioning"} & query.keys() else "other"
    if method == "POST":
        return "DELETE MANY" if "delete" in query else "other"
    if method in ("HEAD", "PUT") and not key:
        return "other"
    return method


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _error(status: int, code: str) -> Answer:
    text = f"{XML}<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return status, {"Content-Type": "application/xml"}, text.encode()


class Connection(asyncio.Protocol):
    """A connection, on which each response is sent a round trip after its request."""

    def __init__(self, store: Store, round_trip: float) -> None:
        self._store = store
        self._round_trip = round_trip
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[str, str]] | None = None
        self._continued = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._is_reset = self._store.limits.resets()
        self._store.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._store.connections.discard(self)

    def abort(self) -> None:
        """Reset the connection."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        # During an outage, connections are aborted here if they are new, or if their
        # handshake was not finished when the outage began.
        if self._store.limits.is_out and not self._store.limits.outage.isdecimal():
            self.abort()
            return
        self._buffer += data
        self._store.limits.receive(self._transport, len(data))
        while self._take_one():
            pass

    def _take_one(self) -> bool:
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return False
            self._head = _parse_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            self._continued = "expect" not in self._head[2]
        method, target, headers = self._head
        if not self._continued:
            self._continued = True
            self._later(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self._body(headers)
        if body is None:
            return False
        self._head = None
        if self._is_reset and method == "PUT":
            self._transport.abort()
            return False
        status, fields, content = self._store.answer(method, target, headers, body)
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        answer = head if method == "HEAD" else head + content
        if target.startswith("/-/"):
            self._transport.write(answer)
        else:
            self._later(answer)
        return bool(self._buffer)

    def _body(self, headers: dict[str, str]) -> bytes | None:
        if headers.get("transfer-encoding") == "chunked":
            body = self._chunked()
        else:
            body = self._of_length(int(headers.get("content-length", 0)))
        # aws-chunked has its own chunks, which may be inside of HTTP's chunks.
        if body is not None and "x-amz-decoded-content-length" in headers:
            return _dechunked(body)[0]
        return body

    def _of_length(self, length: int) -> bytes | None:
        if len(self._buffer) < length:
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body

    def _chunked(self) -> bytes | None:
        body, used = _dechunked(bytes(self._buffer))
        if not used:
            return None
        del self._buffer[:used]
        return body

    def _later(self, answer: bytes) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self._round_trip, self._write, answer)

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines)
    return method, target, {name.lower(): value.strip() for name, _, value in pairs}


def _dechunked(data: bytes) -> tuple[bytes, int]:
    """Return the body in `data` and its size with chunks, or 0 if it is incomplete."""
    body, position = bytearray(), 0
    while True:
        end = data.find(b"\r\n", position)
        if end < 0:
            return b"", 0
        size = int(data[position:end].split(b";")[0], 16)
        position = end + 2
        if len(data) < position + size:
            return b"", 0
        if size == 0:
            end = data.find(b"\r\n\r\n", end)
            return bytes(body), end + 4 if end >= 0 else 0
        body += data[position : position + size]
        position += size + 2


async def _serve(own: Path, round_trip: float, limits: Limits) -> None:
    store = Store(limits)
    loop = asyncio.get_running_loop()

    async def listen(port: int) -> asyncio.Server:
        return await loop.create_server(
            lambda: Connection(store, round_trip),
            "127.0.0.1",
            port,
            backlog=1024,
            ssl=server_context(own),
        )

    server = await listen(0)
    port = server.sockets[0].getsockname()[1]
    print(f"https://127.0.0.1:{port}", flush=True)
    while True:
        await asyncio.sleep(0.005)
        if limits.is_out and limits.outage == "refused":
            server.close()
            for connection in list(store.connections):
                connection.abort()
            await asyncio.sleep(limits.outage_seconds)
            server = await listen(port)
        elif limits.is_out and limits.outage == "reset":
            for connection in list(store.connections):
                connection.abort()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("own", type=Path, help="certificate and key")
    parser.add_argument("--round-trip", type=float, default=0.02, help="seconds")
    parser.add_argument("--puts", type=int, default=0, help="PUTs per second")
    parser.add_argument("--status", type=int, default=503, help="of other PUTs")
    parser.add_argument("--bandwidth", type=float, default=0, help="bytes per second")
    parser.add_argument("--reset-every", type=int, default=0, help="nth connection")
    parser.add_argument("--outage", default="", help="refused, reset or a status")
    given = parser.parse_args()
    limits = Limits(
        given.puts, given.status, given.bandwidth, given.reset_every, given.outage
    )
    asyncio.run(_serve(given.own, given.round_trip, limits))


if __name__ == "__main__":
    main()
