"""Uploads through obstore, where it is installed (``collectfast-storage[obstore]``).

It is Rust, and lets go of the interpreter while it works. It can send content type,
encoding, language, disposition, cache control and metadata; all else, and whatever it
fails at, goes by boto3.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

from botocore.exceptions import BotoCoreError, ClientError

from collectfast_storage.fingerprint import normal_etag
from collectfast_storage.payload import Payload

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from obstore.store import S3Credential

logger = logging.getLogger("collectfast_storage")

# S3's write parameters, by the names that obstore has for them.
_ATTRIBUTES = {
    "CacheControl": "Cache-Control",
    "ContentDisposition": "Content-Disposition",
    "ContentEncoding": "Content-Encoding",
    "ContentLanguage": "Content-Language",
    "ContentType": "Content-Type",
}
# Metadata of such a name it takes for the header, in upper and lower case, with dashes
# and without.
_HEADERS = {name.lower() for name in _ATTRIBUTES} | {"storageclass"}
# Those before store some names as others: `%20`, `?`, `#`.
_OLDEST = (0, 8)
# Asked again after that long, boto3 says whether its credentials are still fresh.
_FRESH_FOR = timedelta(minutes=1)
_MOST_FAILURES = 3  # in a row, each of which boto3 had to mend
_PROBE = "collectfast-probe"
# The process in which obstore has threads: a fork has none of them, and whoever waits
# for them waits for ever.
_threads_in: int | None = None


class Request(NamedTuple):
    """An upload, as obstore is asked for it."""

    key: str
    body: bytes
    attributes: dict[str, str]


class Native:
    """Uploads into one bucket, from any thread."""

    def __init__(self, store: Any) -> None:
        """Upload to obstore's `store`."""
        import obstore

        self._obstore = obstore
        self._store = store
        self._declined = count()
        self._failures = 0
        self._is_off = False

    def prepared(self, key: str, payload: Payload) -> Request | None:
        """Return how to upload `payload` as `key`; `None` where boto3 has to."""
        # It has no empty folder names, which S3 has.
        if self._is_off or payload.body is None or "//" in f"/{key}":
            return None
        lacking = sorted(_lacking(payload.parameters))
        if lacking:
            if next(self._declined) == 0:  # Atomic: many threads come here.
                logger.info(
                    "obstore is not used for files with these parameters, which it "
                    "cannot send: %s.",
                    ", ".join(lacking),
                )
            return None
        metadata = payload.parameters.get("Metadata", {})
        sent = {
            header: str(payload.parameters[name])
            for name, header in _ATTRIBUTES.items()
            if name in payload.parameters
        }
        return Request(key, payload.body, sent | metadata)

    def put(self, request: Request) -> tuple[str | None, str | None]:
        """Upload, in one attempt; return the ETag, or why there is none."""
        try:
            result = self._obstore.put(
                self._store,
                request.key,
                request.body,
                attributes=request.attributes,
                use_multipart=False,
            )
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # Rust's panics are no Exceptions.
            return None, _reason(error)
        self._failures = 0
        return normal_etag(result["e_tag"]), None

    def was_mended(self, error: str) -> None:
        """Note that boto3 brought up what failed here for the reason `error`."""
        self._failures += 1
        if self._failures >= _MOST_FAILURES and not self._is_off:
            self._is_off = True
            logger.warning(
                "obstore is not used any more: it failed %d times in a row where boto3 "
                "did not, last with %s.",
                _MOST_FAILURES,
                error,
            )


def native_to(
    client: S3Client,
    bucket_name: str,
    credentials: Callable[[], Any],
    *,
    verify: object,
    is_forked: bool,
) -> Native | None:
    """Return a way to where `client` would go, if obstore is here and can go there.

    `credentials` looks for those with which boto3 signs; `verify` is the client's; a
    process `is_forked` that has modules which its parent imported.
    """
    global _threads_in
    if find_spec("obstore") is None:
        return None
    lost = is_forked and "obstore" in sys.modules and _threads_in != os.getpid()
    reasons = (
        "its threads stayed in the parent process" if lost else "",
        _too_old(),
        *_special(client, bucket_name, verify),
    )
    store = None
    reason = next(filter(None, reasons), "")
    if not reason:
        with suppress(BotoCoreError, ClientError, ValueError):
            found = credentials()
            if found is not None:
                store = _store(client, bucket_name, found.get_frozen_credentials)
        reason = "" if store else "this bucket is not reached directly"
    if reason:
        logger.info("obstore is not used: %s.", reason)
        return None
    _threads_in = os.getpid()
    return Native(store)


def _too_old() -> str:
    found = tuple(map(int, version("obstore").split(".")[:2]))
    return "it is older than {}.{}".format(*_OLDEST) if found < _OLDEST else ""


def _special(client: S3Client, bucket_name: str, verify: object) -> Iterator[str]:
    """Yield what obstore does not know how to do as boto3 does."""
    config: Any = client.meta.config
    if ":" in bucket_name or bucket_name.endswith("-s3"):
        yield "the bucket's name is not one of a plain bucket"
    if config.proxies or getproxies():
        yield "there is a proxy"
    if config.client_cert is not None:
        yield "there is a client certificate"
    bundles = [os.environ.get(f"{name}_CA_BUNDLE") for name in ("AWS", "REQUESTS")]
    if client.meta.endpoint_url.startswith("https:") and (
        verify not in (None, True) or any(bundles)
    ):
        yield "there are certificates of one's own"
    if config.signature_version not in (None, "s3v4"):
        yield f"requests are signed by {config.signature_version}"


def _store(
    client: S3Client, bucket_name: str, credentials: Callable[[], Any]
) -> Any | None:
    """Return obstore's way to where boto3 would send; `None` if that is elsewhere."""
    # How botocore addresses a bucket, it says itself.
    url = client.generate_presigned_url(
        "put_object", Params={"Bucket": bucket_name, "Key": _PROBE}
    )
    place = urlsplit(url)
    is_virtual = place.path == f"/{_PROBE}"
    if not is_virtual and place.path != f"/{bucket_name}/{_PROBE}":
        return None
    # Here, as it takes longer to import than all else together.
    from obstore.store import S3Store

    config: Any = client.meta.config
    limits = {"connect_timeout": config.connect_timeout, "timeout": config.read_timeout}
    region = client.meta.region_name
    return S3Store(
        bucket_name,
        endpoint=f"{place.scheme}://{place.netloc}",
        region="us-east-1" if region == "aws-global" else region,
        virtual_hosted_style_request=is_virtual,
        client_options={"allow_http": place.scheme == "http"}
        | {name: timedelta(seconds=limit) for name, limit in limits.items() if limit},
        # One attempt; what comes of it but success is left to boto3.
        retry_config={"max_retries": 0},
        # Not a method: Python cannot see, nor collect, what Rust holds on to.
        credential_provider=partial(_credential, credentials),
    )


def _credential(credentials: Callable[[], Any]) -> S3Credential:
    frozen = credentials()
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + _FRESH_FOR,
    }


def _lacking(parameters: dict[str, Any]) -> Iterator[str]:
    """Yield the names of those `parameters` that obstore would not send as boto3."""
    yield from parameters.keys() - _ATTRIBUTES.keys() - {"Metadata"}
    for name in parameters.get("Metadata", {}):
        if re.sub("[^a-z]", "", name.lower()) in _HEADERS:
            yield f"Metadata {name}"


def _reason(error: BaseException) -> str:
    """Return what is to be told of `error`: its text may quote a whole answer."""
    status = re.search(r"\b[345]\d\d\b", str(error))
    return f"{type(error).__name__}{f' ({status[0]})' if status else ''}"
