"""A program's save: an upload, unless a HEAD request shows the same object.

An object is the same if its content is, and if each header that a HEAD response reports
is as the upload would set it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from botocore.utils import parse_to_aware_datetime
from s3transfer.constants import ALLOWED_DOWNLOAD_ARGS

from collectfast_storage.decision import is_evidence
from collectfast_storage.fingerprint import FINGERPRINT, looks_like_md5, number_of_parts
from collectfast_storage.payload import Capture, Payload, has_opaque_etag
from collectfast_storage.s3.bucket import remote_of

# A HEAD response reports these headers if, and only if, the upload sent them.
_REPORTED: tuple[str, ...] = (
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
)
_REPORTED += ("Expires", "WebsiteRedirectLocation")
# These have a default of the bucket, so they are compared only if they are sent.
_WITH_DEFAULT: tuple[str, ...] = (
    "ContentType",
    "BucketKeyEnabled",
    "ObjectLockLegalHoldStatus",
    "ObjectLockMode",
)
_WITH_DEFAULT += ("ObjectLockRetainUntilDate", "ServerSideEncryption")
_WITH_DEFAULT += ("SSECustomerAlgorithm", "SSEKMSKeyId")
_TIMES: tuple[str, ...] = ("Expires", "ObjectLockRetainUntilDate")

Changes = dict[str, tuple[Any, Any]]


def save_unless_unchanged(capture: Capture, bucket: Any) -> None:
    """Upload as boto3 does, from the arguments in `capture`, to a boto3 `bucket`.

    If the HEAD request fails, for whatever reason, the file is uploaded.
    """
    head = _head(capture, bucket)
    parameters = capture.parameters
    needs_payload = head or has_opaque_etag(parameters) or capture.is_text()
    payload = capture.payload() if needs_payload else None
    if payload is None:
        _upload(capture, bucket, capture.content(), parameters)
        return
    try:
        if head and _is_unchanged(payload, head):
            capture.report(payload)
            return
        remote = remote_of(head or {})
        if remote.is_encrypted or remote.fingerprint or payload.has_opaque_etag:
            tag = {FINGERPRINT: str(payload.fingerprint)}
            metadata = {**parameters.get("Metadata", {}), **tag}
            parameters = {**parameters, "Metadata": metadata}
        _upload(capture, bucket, payload.readable(), parameters)
    finally:
        payload.close()


def _head(capture: Capture, bucket: Any) -> Mapping[str, Any] | None:
    parameters = capture.parameters
    needed = {k: v for k, v in parameters.items() if k in ALLOWED_DOWNLOAD_ARGS}
    client = bucket.meta.client
    try:
        answer = client.head_object(Bucket=bucket.name, Key=capture.key, **needed)
    except Exception:  # A HEAD response has no reason: the upload will have one.
        return None
    return answer if isinstance(answer, Mapping) else None


def _upload(capture: Capture, bucket: Any, file: Any, parameters: Any) -> None:
    bucket.Object(capture.key).upload_fileobj(
        file,
        ExtraArgs=parameters,
        Callback=capture.callback,
        Config=capture.config,
    )


def _is_unchanged(payload: Payload, head: Mapping[str, Any]) -> bool:
    remote = remote_of(head)
    has_etag = looks_like_md5(remote.etag) or number_of_parts(remote.etag) > 0
    if has_etag and not (remote.is_encrypted or payload.has_opaque_etag):
        is_same = payload.has_etag(remote.etag)
    else:
        is_same = remote.fingerprint == str(payload.fingerprint)
        is_same &= is_evidence(payload, remote, etags_are_md5=False)
    return is_same and not changed_headers(head, payload.parameters)


def changed_headers(head: Mapping[str, Any], sent: Mapping[str, Any]) -> Changes:
    """Return the headers in which a `head` response differs from parameters `sent`.

    Each has the old and the new value. ACLs and tags are not in a HEAD response:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
    """
    before, after = _flat(head), _flat(sent)
    names = {*_REPORTED, "StorageClass", *(after.keys() & {*_WITH_DEFAULT})}
    names |= {n for n in before.keys() | after.keys() if n.startswith("Metadata ")}
    pairs = {name: (before.get(name), after.get(name)) for name in sorted(names)}
    return {n: (old, new) for n, (old, new) in pairs.items() if not _same(n, old, new)}


def description_of(changes: Changes) -> str:
    """Return the `changes` as text; empty if there are none."""
    return ", ".join(
        f"{n} was {old}, is now {new}" for n, (old, new) in changes.items()
    )


def _same(name: str, old: Any, new: Any) -> bool:
    # S3 reports a key's ARN, and a write may name the key by its id or an alias.
    if name == "SSEKMSKeyId":
        return "alias/" in str(new) or str(old).endswith(str(new))
    if name == "StorageClass":
        return (old or "STANDARD") == (new or "STANDARD")
    return bool(old == new)


def _flat(headers: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value or None for name, value in headers.items()}
    for name in _TIMES:  # A write may have a time in any form.
        with suppress(KeyError, ValueError):
            flat[name] = parse_to_aware_datetime(headers[name])
    # Some servers keep this, which says how a body was sent, among the encodings.
    encodings = re.split("[, ]+", flat.get("ContentEncoding") or "")
    flat["ContentEncoding"] = [e for e in encodings if e not in ("", "aws-chunked")]
    # Some servers report the names of metadata in capitals.
    metadata = {k.lower(): v for k, v in (flat.pop("Metadata", None) or {}).items()}
    metadata.pop(FINGERPRINT, None)
    return flat | {f"Metadata {k}": v for k, v in metadata.items()}
