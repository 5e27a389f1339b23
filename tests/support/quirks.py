"""Deviations of S3-compatible servers from S3, one switch for each.

Each deviation was seen in a real server or proxy. They are simulated in the proxy, in
front of a real server, and can be combined freely.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from urllib.parse import parse_qsl, quote, unquote_plus, urlencode
from xml.etree import ElementTree

from tests.support.faults import sign_again
from tests.support.proxy import Handler, Proxy, Request
from tests.support.servers import Server

Element = ElementTree.Element
Headers = list[tuple[str, str]]

# Forms of an ETag. Each function is passed the server's own ETag, with its quotes.
ETAGS: dict[str, Callable[[str], str | None]] = {
    "none": lambda etag: None,
    "empty": lambda etag: "",
    "without quotes": lambda etag: etag.strip('"'),
    "weak": lambda etag: f"W/{etag}",
    "in upper case": lambda etag: etag.upper(),
    "another": lambda etag: f'"{hashlib.md5(etag.encode()).hexdigest()}"',
    "another each time": lambda etag: f'"{uuid.uuid4().hex}"',
}
# Requests that are refused, with kind, status and code.
REFUSED = {
    "HEAD is not allowed": ("HEAD", 405, "MethodNotAllowed"),
    "HEAD is not implemented": ("HEAD", 501, "NotImplemented"),
    "HEAD is forbidden": ("HEAD", 403, "AccessDenied"),
    "no listing": ("LIST", 501, "NotImplemented"),
    "no DeleteObjects": ("DELETE MANY", 501, "NotImplemented"),
    "DeleteObjects is refused": ("DELETE MANY", 400, "InvalidArgument"),
}
# Forms in which a response is sent.
TRANSPORTS = {"HTTP/1.0", "chunked", "no length", "Connection: close"}
LISTINGS = {
    "no KeyCount",
    "no IsTruncated",
    "an empty listing is bare",
    "keys are not encoded",
    "keys out of order",
    "small pages",
    "pages repeat keys",
    "ListObjects only",
    "deleted keys stay listed",
    "written keys are listed late",
}
POLICIES = {
    "wants encryption",
    "wants signed payloads",
    "wants no checksums",
    "wants Content-MD5 to delete many",
    "deletes nothing",
    "no metadata",
}
ALL = (
    *REFUSED,
    *sorted(LISTINGS | TRANSPORTS | POLICIES),
    *(f"{kind}: ETag {how}" for kind in ("LIST", "HEAD", "PUT") for how in ETAGS),
)
_PAGE = 5


class Quirks:
    """A fault of `proxy` that changes requests and responses as the switches say.

    Requests for the manifest are never refused, because django-storages itself fails
    without them.
    """

    def __init__(self, proxy: Proxy, server: Server, *switches: str) -> None:
        assert set(switches) <= set(ALL), switches
        self.switches = set(switches)
        self._server = server
        self._listed: dict[str, str] = {}  # entries of the last listing, by key
        self._fresh: set[str] = set()  # keys written since the last listing
        self._hidden: set[str] = set()
        proxy.fault = self

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if refusal := self._refusal(request):
            status, code = refusal
            error = f"<Error><Code>{code}</Code></Error>"
            self._answer(handler, status, error.encode(), [])
            return True
        if request.kind == "LIST":
            self._rewrite_query(handler)
        if request.method == "PUT" and request.key not in self._listed:
            self._fresh.add(request.key)
        status, content, headers = handler.ask(body)
        if request.kind == "LIST" and status == 200:
            content = self._rewritten(request, content)
        elif how := self._etag(request.kind):
            headers = [
                (name, value if name.lower() != "etag" else ETAGS[how](value))
                for name, value in headers
            ]
        kept = [(name, value) for name, value in headers if value is not None]
        if "no metadata" in self.switches:
            kept = [e for e in kept if not e[0].lower().startswith("x-amz-meta-")]
        self._answer(handler, status, content, kept)
        return True

    def _etag(self, kind: str) -> str | None:
        return next((h for h in ETAGS if f"{kind}: ETag {h}" in self.switches), None)

    def _refusal(self, request: Request) -> tuple[int, str] | None:
        for switch in self.switches & REFUSED.keys():
            kind, status, code = REFUSED[switch]
            is_manifest = request.key.endswith("staticfiles.json")
            if request.kind == kind and not is_manifest:
                return status, code
        headers, kind = request.headers, request.kind
        payload = headers.get("x-amz-content-sha256", "")
        refusals = {
            "wants encryption": request.method == "PUT"
            and "x-amz-server-side-encryption" not in headers,
            "wants signed payloads": request.method == "PUT" and "UNSIGNED" in payload,
            "wants no checksums": any("checksum" in name for name in headers),
            "wants Content-MD5 to delete many": kind == "DELETE MANY"
            and "content-md5" not in headers,
            "deletes nothing": kind.startswith("DELETE"),
        }
        if any(refusals[switch] for switch in self.switches & refusals.keys()):
            is_missing = (
                kind == "DELETE MANY" and "deletes nothing" not in self.switches
            )
            return (400, "InvalidRequest") if is_missing else (403, "AccessDenied")
        return None

    def _rewrite_query(self, handler: Handler) -> None:
        path, _, query = handler.path.partition("?")
        pairs = dict(parse_qsl(query, keep_blank_values=True))
        before = dict(pairs)
        if "ListObjects only" in self.switches:
            for name in ("list-type", "continuation-token", "start-after"):
                pairs.pop(name, None)
        if "keys are not encoded" in self.switches:
            pairs.pop("encoding-type", None)
        if self.switches & {"small pages", "ListObjects only", "pages repeat keys"}:
            pairs["max-keys"] = str(_PAGE)
        if pairs != before:
            handler.path = f"{path}?{urlencode(pairs, quote_via=quote)}"
            sign_again(handler, self._server, b"")

    def _rewritten(self, request: Request, content: bytes) -> bytes:
        root = ElementTree.fromstring(content)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        entries = root.findall("Contents")
        for entry in entries:
            root.remove(entry)
        entries = self._entries(request, root, entries)
        if "keys out of order" in self.switches:
            entries.reverse()
        if "pages repeat keys" in self.switches and entries:
            entries.append(entries[0])
        how = self._etag("LIST")
        for entry in entries:
            etag = entry.find("ETag")
            if how and etag is not None:
                etag.text = ETAGS[how](etag.text or "")
                if etag.text is None:
                    entry.remove(etag)
        root.extend(entries)
        self._leave_out(root, is_empty=not entries)
        return ElementTree.tostring(root)

    def _leave_out(self, root: Element, *, is_empty: bool) -> None:
        without = {
            "no KeyCount": ["KeyCount"],
            "no IsTruncated": ["IsTruncated"],
            "ListObjects only": ["KeyCount", "NextContinuationToken", "NextMarker"],
            "an empty listing is bare": [each.tag for each in root if is_empty],
        }
        for switch in self.switches & without.keys():
            for name in without[switch]:
                for element in root.findall(name):
                    root.remove(element)

    def _entries(
        self, request: Request, root: Element, entries: list[Element]
    ) -> list[Element]:
        encoded = root.findtext("EncodingType") == "url"

        def key(entry: Element) -> str:
            text = entry.findtext("Key") or ""
            return unquote_plus(text) if encoded else text

        if "written keys are listed late" in self.switches:
            self._hidden, self._fresh = self._fresh, set()
            entries = [each for each in entries if key(each) not in self._hidden]
        if "deleted keys stay listed" in self.switches:
            there = {key(each): ElementTree.tostring(each).decode() for each in entries}
            [prefix] = request.query["prefix"]
            old = {k: v for k, v in self._listed.items() if k.startswith(prefix)}
            every = old | there
            entries = [ElementTree.fromstring(every[each]) for each in sorted(every)]
            self._listed |= there
        return entries

    def _answer(
        self, handler: Handler, status: int, content: bytes, headers: Headers
    ) -> None:
        version = "HTTP/1.0" if "HTTP/1.0" in self.switches else "HTTP/1.1"
        is_bare = handler.command == "HEAD" or status in (204, 304)
        names = {"connection", "transfer-encoding", "content-length"}
        if handler.command == "HEAD":
            names.discard("content-length")
        written = [(n, v) for n, v in headers if n.lower() not in names]
        if "chunked" in self.switches and not is_bare:
            written.append(("Transfer-Encoding", "chunked"))
            chunk = b"%x\r\n%b\r\n" % (len(content), content) if content else b""
            content = chunk + b"0\r\n\r\n"
        elif "no length" not in self.switches and not is_bare:
            written.append(("Content-Length", str(len(content))))
        if self.switches & TRANSPORTS - {"chunked"}:
            handler.close_connection = True
        if "Connection: close" in self.switches:
            written.append(("Connection", "close"))
        lines = [f"{version} {status} Reason", *(f"{n}: {v}" for n, v in written)]
        head = "".join(f"{line}\r\n" for line in lines).encode("latin-1")
        handler.wfile.write(head + b"\r\n" + (b"" if is_bare else content))
