"""What this package does on botocore's events, in its own calls alone.

The client is the site's own, and its other calls pass through the same hooks.
https://botocore.amazonaws.com/v1/documentation/api/latest/topics/events.html
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from botocore.exceptions import ClientError

from collectfast_storage.s3.errors import is_distrust, setback_of

_KINDS = {
    "ListObjects": "LIST",
    "HeadObject": "HEAD",
    "PutObject": "PUT",
    "UploadPart": "PUT",
    "DeleteObject": "DELETE",
    "DeleteObjects": "DELETE MANY",
}
Entries = list[tuple[str | None, str | None]]  # keys and ETags


class _Call(NamedTuple):
    add: Callable[[str], None]  # told each request by its kind
    entries: Entries  # what `_read_page` read
    is_sent_once: bool


_our_call: ContextVar[_Call | None] = ContextVar("our_call", default=None)


@contextmanager
def calling(add: Callable[[str], None], *, once: bool = False) -> Iterator[Entries]:
    """Tell `add` the kind of each request in this context; gather what is listed.

    If it is sent `once`, botocore leaves it to the caller to try again what may pass.
    """
    call = _Call(add, [], once)
    token = _our_call.set(call)
    try:
        yield call.entries
    finally:
        _our_call.reset(token)


def register(client: Any) -> None:
    """Act on the events of `client`, however often this is called."""
    for event, handler in {
        "request-created.s3": _request_created,
        "needs-retry.s3": _needs_retry,
        # With a star it comes before botocore's own, which parse all that is there.
        "before-parse.*.ListObjects": _read_page,
        "before-parse.*.ListObjectsV2": _read_page,
    }.items():
        client.meta.events.register(event, handler, unique_id=f"collectfast-{event}")


def _request_created(request: Any, operation_name: str, **_: Any) -> None:
    """Count a request, each attempt; and have it wait for no ``100 Continue``."""
    call = _our_call.get()
    if call is not None:
        call.add(_KINDS.get(operation_name.removesuffix("V2"), operation_name))
        if operation_name == "PutObject":
            del request.headers["Expect"]


def _needs_retry(
    response: Any, operation: Any, attempts: int, caught_exception: Any, **_: Any
) -> int | None:
    """Have botocore send once more, in 0 seconds, what it gives up otherwise.

    By now credentials may be fresh, and a body arrive undamaged. What it would send
    again, and the caller will, is raised; and what will never be trusted.
    """
    call, error = _our_call.get(), caught_exception
    if call is None:
        return None
    if response is not None and response[0].status_code >= 300:
        error = ClientError(response[1], operation.name)
    passes = error is not None and setback_of(error)
    if (passes and call.is_sent_once) or is_distrust(error):
        raise error
    if response is None or attempts > 1:
        return None
    code = response[1].get("Error", {}).get("Code")
    return 0 if code in ("BadDigest", "ExpiredToken") else None


def _read_page(response_dict: dict[str, Any], **_: Any) -> None:
    """Take the objects out of an answer, ten times as fast as botocore parses them.

    All else it parses itself; and everything, where it is too old for such an event.
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
    is_there = {child.tag.removeprefix(namespace) for child in root}
    if "IsTruncated" in is_there and "KeyCount" not in is_there:  # It is known by it.
        ElementTree.SubElement(root, f"{namespace}KeyCount").text = "0"
    response_dict["body"] = ElementTree.tostring(root)
