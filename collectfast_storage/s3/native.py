"""Uploads through obstore, where it is installed (``collectfast-storage[obstore]``).

It is Rust, and lets go of the interpreter while it works. What it would not store as
boto3 does, and whatever it fails at, goes by boto3.
"""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from collectfast_storage.fingerprint import normal_etag
from collectfast_storage.payload import Payload
from collectfast_storage.s3.errors import ThrottledError, is_throttling

logger = logging.getLogger("collectfast_storage")

# What both sign and store alike. Of the rest boto3 refuses some, and Rust panics at
# some; and it takes for a header whatever metadata are named like one: `cachecontrol`.
_SENT = (
    "(CacheControl|Content(Disposition|Encoding|Language|Type)"
    "|Metadata (?!cache|content|storage)[a-z0-9_-]+): [!-~]+( [!-~]+)*"
)
# These it refuses, or takes slashes from: S3 has empty folder names.
_NO_KEY = r"(^|/)\.{0,2}(/|$)|[\x00-\x1f\x7f]"
# These it obeys, which boto3 does not know.
_VARIABLES = "AWS_(CHECKSUM_A|REQUEST_P|S3_EXPRESS|SERVER_SIDE|SKIP_SIG|SSE|UNSIGNED)"
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_NO_BUCKET = ":|--[a-z]+-s3$"
_PROBE = "/collectfast-probe"
# Where obstore has threads: a fork has none, and who waits for them waits for ever.
_threads_in: int | None = None


class Native:
    """Uploads into one bucket, from any thread."""

    def __init__(self, store: Any) -> None:
        """Upload to obstore's `store`."""
        from obstore import put

        self._put = partial(put, store, use_multipart=False)
        self._failures: list[str] = []  # in a row
        self._throttled: set[str] = set()
        self._has_declined = self._is_off = False

    def prepared(self, key: str, payload: Payload) -> dict[str, Any] | None:
        """Return how to upload `payload` as `key`; `None` where boto3 has to."""
        is_off = self._is_off or key in self._throttled
        if is_off or payload.body is None or re.search(_NO_KEY, key):
            return None
        lacking = ", ".join(_lacking(payload.parameters))
        if lacking:
            if not self._has_declined:
                self._has_declined = True
                logger.info(
                    "boto3 uploads files with %s, because obstore cannot.", lacking
                )
            return None
        headers = {**payload.parameters}
        attributes = {**headers.pop("Metadata", {})}
        for name, value in headers.items():
            attributes[re.sub(r"\B(?=[A-Z])", "-", name)] = value
        return {"path": key, "file": payload.body, "attributes": attributes}

    def put(self, request: dict[str, Any]) -> tuple[str | None, str | None]:
        """Upload, in one attempt; return the ETag, or why there is none."""
        try:
            etag = normal_etag(self._put(**request)["e_tag"])
        except BaseException as error:  # Rust's panics are no Exceptions.
            if is_throttling(*_answer_in(error)):
                self._throttled.add(request["path"])  # Boto3 is next: it has words.
                raise ThrottledError(error=_told(error)) from None
            return None, _told(error)
        self._failures.clear()
        return etag, None

    def was_mended(self, error: str) -> None:
        """Note that boto3 brought up what failed here for the reason `error`."""
        self._failures.append(error)
        if len(self._failures) >= 3 and not self._is_off:
            self._is_off = True
            text = (
                "obstore is not used any more, because three uploads in a row failed "
                "with it and succeeded with boto3. The last error was: %s"
            )
            logger.warning(text, error)


def native_to(
    client: Any, bucket: str, credentials: Any, *, verify: object, is_forked: bool
) -> Native | None:
    """Return a way to where `client` would go, if obstore is here and can go there.

    `credentials` looks for those with which boto3 signs; `verify` is the client's; a
    process `is_forked` that has modules which its parent imported.
    """
    global _threads_in
    if find_spec("obstore") is None:
        return None
    try:
        trusted = _trusted(client, verify)
        reason = next(_reasons(client, bucket, trusted, is_forked), "")
        store = None if reason else _store(client, bucket, trusted, credentials())
        native = Native(store) if store else None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # It is there for speed, and may cost nothing else.
        reason, native = _told(error), None
    if native is None:
        logger.info("obstore is not used: %s.", reason)
    else:
        _threads_in = os.getpid()
    return native


def _trusted(client: Any, verify: Any) -> Any:
    """Return the file of the CAs that boto3 trusts; `True`: its own; `False`: all."""
    if not client.meta.endpoint_url.startswith("https:"):
        return True
    # In the order in which botocore looks for it.
    bundles = [os.environ.get(f"{name}_CA_BUNDLE") for name in ("AWS", "REQUESTS")]
    return next((each for each in (verify, *bundles) if each is not None), True)


def _reasons(client: Any, bucket: str, trusted: Any, forked: bool) -> Iterator[str]:
    """Yield what obstore cannot do as boto3 does."""
    config, signed = client.meta.config, client.meta.config.signature_version
    stayed = forked and "obstore" in sys.modules and _threads_in != os.getpid()
    release = [int(number) for number in version("obstore").split(".")[:2]]
    proxies = [n for n in os.environ if re.fullmatch("(?i)(http|https|all)_proxy", n)]
    reasons = {
        "this process was forked after obstore had started its threads": stayed,
        # Those before trust no CA of one's own.
        "its version is older than 0.11": release < [0, 11],
        "the bucket name is an ARN or has a reserved suffix": re.search(
            _NO_BUCKET, bucket
        ),
        # Those of the environment it obeys, but not as botocore does.
        "a proxy is configured": config.proxies or proxies,
        "a client certificate is configured": config.client_cert is not None,
        "certificate verification is disabled": not trusted,
        f"the signature version is {signed}": signed not in (None, "s3v4"),
    }
    yield from (reason for reason, holds in reasons.items() if holds)
    if _place(client, bucket).path not in (_PROBE, f"/{bucket}{_PROBE}"):
        yield "endpoint_url contains a path"
    yield from (
        f"the environment variable {name} is set"
        for name in os.environ
        if re.match(_VARIABLES, name)
    )


def _place(client: Any, bucket: str) -> SplitResult:
    """Return the URL of a key: how botocore addresses a bucket, it says itself."""
    parameters = {"Bucket": bucket, "Key": _PROBE[1:]}
    url: str = client.generate_presigned_url("put_object", Params=parameters)
    return urlsplit(url)


def _store(client: Any, bucket: str, trusted: Any, credentials: Any) -> Any:
    """Return obstore's way to where boto3 would send."""
    # Here, as it takes longer to import than all else together.
    from obstore.store import S3Store

    place = _place(client, bucket)
    region, config = client.meta.region_name, client.meta.config
    limits = {"timeout": config.read_timeout, "connect_timeout": config.connect_timeout}
    # Beside the system's: these it always trusts.
    own = {} if trusted is True else {"root_certificate": Path(trusted).read_bytes()}
    endpoint = f"{place.scheme}://{place.netloc}"
    # That of the environment would go before the one that it is given.
    override = "aws_endpoint_url_s3"
    # A redirection to another host would take the session token there. This proxy, at
    # a port that nothing can listen on, is for all hosts but the endpoint's.
    only = {"proxy_url": "http://127.0.0.1:0", "proxy_excludes": place.hostname}
    return S3Store(
        bucket,
        endpoint=endpoint,
        region="us-east-1" if region == "aws-global" else region,
        virtual_hosted_style_request=place.path == _PROBE,
        client_options={"allow_http": place.scheme == "http", **own, **only}
        | {name: timedelta(seconds=limit) for name, limit in limits.items() if limit},
        # One attempt; what comes of it but success is left to boto3.
        retry_config={"max_retries": 0},
        # Not a method: Python cannot see, nor collect, what Rust holds on to.
        credential_provider=partial(_credential, credentials.get_frozen_credentials),
        **({override: endpoint} if override.upper() in os.environ else {}),
    )


def _credential(credentials: Callable[[], Any]) -> dict[str, Any]:
    frozen = credentials()
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        # Asked again then, boto3 says whether they are still fresh.
        "expires_at": datetime.now(UTC) + timedelta(minutes=1),
    }


def _lacking(parameters: dict[str, Any]) -> list[str]:
    """Return the names of those `parameters` that obstore would not send as boto3."""
    metadata = parameters.get("Metadata", {})
    if not isinstance(metadata, dict):
        return ["Metadata"]
    values = parameters | {f"Metadata {name}": metadata[name] for name in metadata}
    values.pop("Metadata", None)
    texts = {k: f"{k}: {v}" if isinstance(v, str) else "" for k, v in values.items()}
    return sorted(name for name in texts if not re.fullmatch(_SENT, texts[name]))


def _told(error: BaseException) -> str:
    """Return what is to be told of `error`: its text may quote a whole answer."""
    status, _ = _answer_in(error)
    return f"{type(error).__name__}{f' ({status})' if status else ''}"


def _answer_in(error: BaseException) -> tuple[int, str]:
    status = re.search(r"status (?:code: )?(\d{3})\b", str(error))
    code = re.search("<Code>(.*?)</Code>", str(error))
    return int(status[1]) if status else 0, code[1] if code else ""
