"""Uploads through obstore, where it is installed (``collectfast-storage[obstore]``).

It is Rust, and lets go of the interpreter while it works: 0.3 ms of processor time a
file with Django's part, where the fast way in `wire` takes 0.4. It can send what a
`Template` holds, if that is content type, encoding, language, disposition, cache
control and metadata; all else goes the other way, decided upload by upload.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from typing import TYPE_CHECKING, Any

from collectfast_storage.wire import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Set

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
# Those before store some names as others: `%20`, `?`, `#`.
_OLDEST = (0, 8)
# Asked again after that long, boto3 says whether its credentials are still fresh.
_FRESH_FOR = timedelta(minutes=1)


# Whether this is the child of a process that had obstore's threads: a fork has none of
# them, and whoever waits for them waits for ever.
_is_lost = False


def _lose() -> None:
    global _is_lost
    _is_lost = _is_lost or "obstore" in sys.modules


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has none)
    os.register_at_fork(after_in_child=_lose)


class Native:
    """Uploads into one bucket, from any thread; `None` where another way is to try."""

    def __init__(self, place: Place, credentials: Callable[[], Any]) -> None:
        """Upload to `place`, signed with what `credentials` returns from botocore."""
        # Here, as it takes longer to import than all else together.
        import obstore
        from obstore.store import S3Store

        self._obstore = obstore
        self._declined = count()
        self._store = S3Store(
            place.bucket_name,
            endpoint=place.endpoint,
            region=place.region,
            virtual_hosted_style_request=place.virtual_hosted,
            client_options=_client_options(place),
            # One attempt; what comes of it but success is left to boto3.
            retry_config={"max_retries": 0},
            # Not a method: Python cannot see, nor collect, what Rust holds on to.
            credential_provider=partial(_credential, credentials),
        )

    @classmethod
    def at(cls, place: Place | None, credentials: Callable[[], Any]) -> Native | None:
        """Return a way to `place`, if obstore is here and can go there."""
        if find_spec("obstore") is None:
            return None
        if _is_lost:
            logger.info(
                "obstore is not used: its threads stayed in the parent process."
            )
            return None
        if tuple(map(int, version("obstore").split(".")[:2])) < _OLDEST:
            logger.info("obstore is not used: it is older than %d.%d.", *_OLDEST)
            return None
        if place is None or not place.plain:
            logger.info("obstore is not used: this bucket is not reached directly.")
            return None
        return cls(place, credentials)

    def put(
        self, key: str, body: bytes, md5: str, parameters: dict[str, Any]
    ) -> str | None:
        """Upload `body` as `key`, and return its ETag, without quotes."""
        attributes = _attributes(parameters)
        if attributes is None:
            self._decline(parameters.keys() - _ATTRIBUTES.keys() - {"Metadata"})
            return None
        # It has no empty folder names, which S3 has.
        if "//" in key or key.startswith("/"):
            return None
        try:
            result = self._obstore.put(
                self._store, key, body, attributes=attributes, use_multipart=False
            )
        except (self._obstore.exceptions.BaseError, ValueError, OSError):
            return None
        etag = (result["e_tag"] or "").strip('"')
        # It sends no MD5 that the server could check; where the ETag is one, it tells.
        if len(etag) == len(md5) and etag != md5 and "-" not in etag:
            return None
        return etag or None

    def _decline(self, names: Set[str]) -> None:
        if next(self._declined) == 0:  # Atomic: many threads come here.
            logger.info(
                "obstore is not used for files with these parameters, which it cannot "
                "send: %s.",
                ", ".join(sorted(names)),
            )


def _credential(credentials: Callable[[], Any]) -> S3Credential:
    frozen = credentials()
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + _FRESH_FOR,
    }


def _client_options(place: Place) -> dict[str, Any]:
    """Return how to reach `place`, no more patiently than botocore would."""
    limits = {"connect_timeout": place.connect_timeout, "timeout": place.read_timeout}
    return {"allow_http": place.endpoint.startswith("http:")} | {
        name: timedelta(seconds=limit) for name, limit in limits.items() if limit
    }


def _attributes(parameters: dict[str, Any]) -> dict[str, str] | None:
    """Return `parameters` in obstore's words, `None` if it lacks some."""
    metadata: dict[str, str] = parameters.get("Metadata", {})
    rest = {name: v for name, v in parameters.items() if name != "Metadata"}
    if not rest.keys() <= _ATTRIBUTES.keys():
        return None
    return {_ATTRIBUTES[name]: str(value) for name, value in rest.items()} | metadata
