"""Handlers of botocore's events, which act only on this package's requests.

Other code may use the same client, so its requests pass through the same handlers.
https://botocore.amazonaws.com/v1/documentation/api/latest/topics/events.html
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from botocore.exceptions import ClientError
from urllib3.response import HTTPResponse

from collectfast_storage.s3.errors import is_untrusted_certificate, transient_of

_KINDS = {
    "ListObjects": "LIST",
    "HeadObject": "HEAD",
    "PutObject": "PUT",
    "UploadPart": "PUT",
    "DeleteObject": "DELETE",
    "DeleteObjects": "DELETE MANY",
}
_BEFORE_CALL = "before-call.s3"
Entries = list[tuple[str | None, str | None]]  # keys and ETags


class RequestLog:
    """The number of requests of each kind, and whether the network was reached."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        # A mock, such as moto, answers instead of the network.
        self.has_reached_network = False
        self._lock = threading.Lock()

    def add(self, kind: str) -> None:
        """Count a request of this `kind`."""
        with self._lock:
            self.counts[kind] += 1


class _Call(NamedTuple):
    log: RequestLog
    entries: Entries  # from `_read_page`
    is_sent_once: bool


_our_call: ContextVar[_Call | None] = ContextVar("our_call", default=None)


@contextmanager
def our_request(log: RequestLog, *, once: bool = False) -> Iterator[Entries]:
    """Count the requests of this context in `log`, and yield the entries of a listing.

    If `once` is true, botocore does not retry transient errors: the caller does.
    """
    call = _Call(log, [], once)
    token = _our_call.set(call)
    try:
        yield call.entries
    finally:
        _our_call.reset(token)


def register(client: Any) -> None:
    """Register the handlers with `client`; a second call has no effect."""
    events = client.meta.events
    # It precedes botocore's handler, which limits the retries of all threads together.
    events.register_first(
        "needs-retry.s3", _needs_retry, unique_id="collectfast-needs-retry"
    )
    for event, handler in {
        "request-created.s3": _request_created,
        # With a star it precedes botocore's handler, which parses the whole response.
        "before-parse.*.ListObjects": _read_page,
        "before-parse.*.ListObjectsV2": _read_page,
    }.items():
        events.register(event, handler, unique_id=f"collectfast-{event}")


def watch(client: Any, act: Callable[[], object]) -> None:
    """Call `act` before each request of `client` that this package does not send."""

    def before_call(**_: Any) -> None:
        if _our_call.get() is None:
            act()

    client.meta.events.register(_BEFORE_CALL, before_call, unique_id=_id_of(act))


def unwatch(client: Any, act: Callable[[], object]) -> None:
    """Stop calling `act` before requests of `client`."""
    client.meta.events.unregister(_BEFORE_CALL, unique_id=_id_of(act))


def _id_of(act: Callable[[], object]) -> str:
    return f"collectfast-{id(act)}"


def _request_created(request: Any, operation_name: str, **_: Any) -> None:
    """Count a request, and do not let it wait for ``100 Continue``."""
    call = _our_call.get()
    if call is not None:
        call.log.add(_KINDS.get(operation_name.removesuffix("V2"), operation_name))
        if operation_name == "PutObject":
            del request.headers["Expect"]


def _needs_retry(
    response: Any, operation: Any, attempts: int, caught_exception: Any, **_: Any
) -> int | None:
    """Return a delay of 0 s if botocore, which would not retry, is to retry once.

    The next attempt may have new credentials, or an undamaged body. An error that the
    caller retries is raised, and so is a permanent error.
    """
    call, error = _our_call.get(), caught_exception
    if call is None:
        return None
    if response is not None:
        http, parsed = response
        if isinstance(http.raw, HTTPResponse):
            call.log.has_reached_network = True
        if http.status_code >= 300:
            error = _error_of(http.status_code, parsed, operation.name)
    is_transient = error is not None and transient_of(error) is not None
    if (is_transient and call.is_sent_once) or is_untrusted_certificate(error):
        raise error
    if response is None or attempts > 1:
        return None
    code = parsed.get("Error", {}).get("Code")
    return 0 if code in ("BadDigest", "ExpiredToken") else None


def _error_of(status: int, parsed: dict[str, Any], operation: str) -> ClientError:
    # Not all versions of botocore parse the code of each error response.
    error: Any = {"Error": {"Code": str(status), "Message": ""}, **parsed}
    metadata = parsed.get("ResponseMetadata", {})
    error["ResponseMetadata"] = {**metadata, "HTTPStatusCode": status}
    return ClientError(error, operation)


def _read_page(response_dict: dict[str, Any], **_: Any) -> None:
    """Take the objects out of a response, ten times as fast as botocore parses them.

    botocore parses the rest, or the whole response if it is too old for this event.
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
    """
    call = _our_call.get()
    if call is None or response_dict.get("status_code") != 200:
        return
    try:
        root = ElementTree.fromstring(response_dict["body"])  # noqa: S314 (as botocore)
    except ElementTree.ParseError:
        return
    if not root.tag.endswith("ListBucketResult"):
        return
    namespace = root.tag.removesuffix("ListBucketResult")
    decode = root.findtext(f"{namespace}EncodingType") == "url"
    for entry in root.findall(f"{namespace}Contents"):
        key = entry.findtext(f"{namespace}Key")
        etag = entry.findtext(f"{namespace}ETag")
        call.entries.append((unquote_plus(key) if key and decode else key, etag))
        root.remove(entry)
    tags = {child.tag.removeprefix(namespace) for child in root}
    if "IsTruncated" in tags and "KeyCount" not in tags:  # It identifies a listing.
        ElementTree.SubElement(root, f"{namespace}KeyCount").text = "0"
    response_dict["body"] = ElementTree.tostring(root)
