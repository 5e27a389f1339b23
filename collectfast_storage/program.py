"""The save of a program: an upload, unless a HEAD request shows the same object.

An object is the same if its content is, and if each header that a HEAD response reports
is as the upload would set it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any

from botocore.utils import parse_to_aware_datetime

from collectfast_storage.decision import Verdict, decide
from collectfast_storage.fingerprint import FINGERPRINT
from collectfast_storage.payload import Capture, has_opaque_etag
from collectfast_storage.s3.bucket import (
    metadata_of,
    read_parameters,
    remote_of,
    write_parameters,
)

# The headers that are compared. A HEAD response reports these if, and only if, the
# upload sent them. (Without a storage class, it is STANDARD.)
_REPORTED = ["CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage"]
_REPORTED += ["Expires", "StorageClass", "WebsiteRedirectLocation"]
# The bucket has defaults for these, so they are compared only if the upload sends them.
_WITH_DEFAULT = ["ContentType", "BucketKeyEnabled", "ServerSideEncryption"]
_WITH_DEFAULT += ["SSECustomerAlgorithm", "SSEKMSKeyId", "ObjectLockLegalHoldStatus"]
_WITH_DEFAULT += ["ObjectLockMode", "ObjectLockRetainUntilDate"]
_TIMES = ("Expires", "ObjectLockRetainUntilDate")

Changes = dict[str, tuple[Any, Any]]


def save_unless_unchanged(capture: Capture, bucket: Any) -> None:
    """Upload as boto3 does, with the arguments in `capture`, to a boto3 `bucket`.

    If the HEAD request fails, for whatever reason, the file is uploaded.
    """
    head, parameters = _head(capture, bucket), capture.parameters
    if not (head or has_opaque_etag(parameters) or capture.is_text()):
        _upload(capture, bucket, capture.content(), parameters)
        return
    remote = remote_of(head or {})
    with closing(capture.payload()) as payload:
        is_opaque = payload.has_opaque_etag
        if head:
            # If the ETags of uploads are MD5s, a fingerprint in the metadata does not
            # decide.
            verdict = decide(payload, remote, None, etags_are_md5=not is_opaque)
            is_same = verdict is Verdict.UNCHANGED
            if is_same and not changed_headers(head, parameters):
                capture.report(payload)
                return
        tagged = bool(remote.is_encrypted or remote.fingerprint or is_opaque)
        parameters = write_parameters(payload, tagged)  # This may read the file.
        _upload(capture, bucket, payload.readable(), parameters)


def _head(capture: Capture, bucket: Any) -> Mapping[str, Any] | None:
    parameters = {"Bucket": bucket.name, "Key": capture.key}
    parameters |= read_parameters(capture.parameters)
    try:
        answer = bucket.meta.client.head_object(**parameters)
    except Exception:  # The upload will raise it again, with a reason.
        return None
    return answer if isinstance(answer, Mapping) else None


def _upload(capture: Capture, bucket: Any, file: Any, parameters: Any) -> None:
    bucket.Object(capture.key).upload_fileobj(
        file, ExtraArgs=parameters, Callback=capture.callback, Config=capture.config
    )


def changed_headers(head: Mapping[str, Any], sent: Mapping[str, Any]) -> Changes:
    """Return the headers in which a `head` response differs from parameters `sent`.

    Each has the old and the new value. ACLs and tags are not in a HEAD response:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
    """
    before, after = _flat(head), _flat(sent)
    names = {*_REPORTED, *(after.keys() & {*_WITH_DEFAULT})}
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
    return bool(old == new)


def _flat(headers: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value or None for name, value in headers.items()}
    flat["StorageClass"] = flat.get("StorageClass") or "STANDARD"
    for name in _TIMES:  # A write may have a time in any form.
        with suppress(KeyError, ValueError):
            flat[name] = parse_to_aware_datetime(headers[name])
    # Some servers keep `aws-chunked`, which says how a body was sent.
    encodings = re.split("[, ]+", flat.get("ContentEncoding") or "")
    flat["ContentEncoding"] = [e for e in encodings if e not in ("", "aws-chunked")]
    metadata = metadata_of(headers)
    metadata.pop(FINGERPRINT, None)
    flat.pop("Metadata", None)
    return flat | {f"Metadata {k}": v for k, v in metadata.items()}
