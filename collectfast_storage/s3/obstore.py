"""Uploads by obstore, if it is installed (``collectfast-storage[obstore]``).

It is written in Rust, and releases the global interpreter lock while it works. boto3
uploads the files that obstore would store differently, or fails to upload.
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

# obstore sends these headers and values as boto3 does. boto3 uploads files with other
# headers. Of other values, boto3 refuses some, and Rust panics at some.
_HEADERS = {
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
    "ContentType",
}
_VALUE = "[!-~]+( [!-~]+)*"
# obstore interprets metadata with the name of a header, such as `cachecontrol`, as this
# header.
_METADATA_NAME = "(?!cache|content|storage)[a-z0-9_-]+"
# obstore refuses these keys, or removes slashes from them.
_UNSUPPORTED_KEY = r"(^|/)\.{0,2}(/|$)|[\x00-\x1f\x7f]"
# obstore uses these variables, and boto3 does not.
_VARIABLES = (
    "AWS_CHECKSUM_ALGORITHM",
    "AWS_REQUEST_PAYER",
    "AWS_S3_EXPRESS",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SKIP_SIGNATURE",
    "AWS_SSE_BUCKET_KEY_ENABLED",
    "AWS_SSE_CUSTOMER_KEY_BASE64",
    "AWS_SSE_KMS_KEY_ID",
    "AWS_UNSIGNED_PAYLOAD",
)
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_UNSUPPORTED_BUCKET = ":|--[a-z]+-s3$"
_PROBE = "/collectfast-probe"
# After this number of failures in a row, boto3 uploads everything.
_MOST_FAILURES = 3
# The process in which obstore has started its threads. A forked process does not have
# them, so an upload there would never end.
_threads_in: int | None = None


class ObstoreUploader:
    """Uploads into one bucket, from any thread."""

    def __init__(self, store: Any) -> None:
        """Upload to the obstore `store`."""
        from obstore import put

        self._put = partial(put, store, use_multipart=False)
        self._failures = 0  # in a row
        self._throttled: set[str] = set()
        self._has_logged = self._is_disabled = False

    def request_for(self, key: str, payload: Payload) -> dict[str, Any] | None:
        """Return the arguments for `put`; `None` if boto3 has to upload `payload`."""
        is_disabled = self._is_disabled or key in self._throttled
        if is_disabled or payload.body is None or re.search(_UNSUPPORTED_KEY, key):
            return None
        unsupported = ", ".join(_unsupported(payload.parameters))
        if unsupported:
            if not self._has_logged:
                self._has_logged = True
                text = "boto3 uploads files with %s, because obstore cannot."
                logger.info(text, unsupported)
            return None
        headers = {**payload.parameters}
        attributes = {**headers.pop("Metadata", {})}
        for name, value in headers.items():
            attributes[re.sub(r"\B(?=[A-Z])", "-", name)] = value
        return {"path": key, "file": payload.body, "attributes": attributes}

    def put(self, request: dict[str, Any]) -> tuple[str | None, str | None]:
        """Upload once; return the ETag, or a description of the error."""
        try:
            etag = normal_etag(self._put(**request)["e_tag"])
        except BaseException as error:  # A panic of Rust is not an Exception.
            if is_throttling(*_status_and_code(error)):
                # boto3 sends it the next time, because its errors have a Retry-After.
                self._throttled.add(request["path"])
                raise ThrottledError(error=_describe(error)) from None
            return None, _describe(error)
        self._failures = 0
        return etag, None

    def note_success_of_boto3(self, error: str) -> None:
        """Note that boto3 uploaded a file for which `put` returned the `error`."""
        self._failures += 1
        if self._failures >= _MOST_FAILURES and not self._is_disabled:
            self._is_disabled = True
            text = (
                "obstore is not used any more, because three uploads in a row failed "
                "with it and succeeded with boto3. The last error was: %s"
            )
            logger.warning(text, error)


def obstore_uploader(
    client: Any, bucket: str, credentials: Any, *, verify: object, is_forked: bool
) -> ObstoreUploader | None:
    """Return an uploader to the endpoint of `client`, if obstore can be used for it.

    `credentials` returns those that boto3 signs with, and `verify` is an argument of
    `client`. `is_forked`: a parent process has imported this package.
    """
    global _threads_in
    if find_spec("obstore") is None:
        return None
    try:
        trusted = _trusted_certificates(client, verify)
        reason = next(_reasons_against(client, bucket, trusted, is_forked), "")
        if not reason:
            uploader = ObstoreUploader(
                _make_store(client, bucket, trusted, credentials())
            )
            _threads_in = os.getpid()
            return uploader
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # boto3 can do without obstore.
        reason = _describe(error)
    logger.info("obstore is not used: %s.", reason)
    return None


def _trusted_certificates(client: Any, verify: Any) -> Any:
    """Return the CA file that boto3 uses; `True`: its own; `False`: no verification."""
    if not client.meta.endpoint_url.startswith("https:"):
        return True
    # In botocore's order.
    bundles = [os.environ.get(f"{name}_CA_BUNDLE") for name in ("AWS", "REQUESTS")]
    return next((each for each in (verify, *bundles) if each is not None), True)


def _reasons_against(
    client: Any, bucket: str, trusted: Any, is_forked: bool
) -> Iterator[str]:
    """Yield why obstore would not send or store the same as boto3."""
    config, signature = client.meta.config, client.meta.config.signature_version
    was_forked = is_forked and "obstore" in sys.modules and _threads_in != os.getpid()
    release = [int(number) for number in version("obstore").split(".")[:2]]
    proxies = [n for n in os.environ if re.fullmatch("(?i)(http|https|all)_proxy", n)]
    is_special = re.search(_UNSUPPORTED_BUCKET, bucket)
    reasons = {
        "this process was forked after obstore had started its threads": was_forked,
        # Older versions do not support a CA file.
        "its version is older than 0.11": release < [0, 11],
        "the bucket name is an ARN or has a reserved suffix": is_special,
        # obstore's rules for the hosts without a proxy are not those of botocore.
        "a proxy is configured": config.proxies or proxies,
        "a client certificate is configured": config.client_cert is not None,
        "certificate verification is disabled": not trusted,
        f"the signature version is {signature}": signature not in (None, "s3v4"),
    }
    yield from (reason for reason, applies in reasons.items() if applies)
    if _object_url(client, bucket).path not in (_PROBE, f"/{bucket}{_PROBE}"):
        yield "endpoint_url contains a path"
    for name in filter(os.environ.__contains__, _VARIABLES):
        yield f"the environment variable {name} is set"


def _object_url(client: Any, bucket: str) -> SplitResult:
    """Return the URL of an object, as botocore addresses it."""
    parameters = {"Bucket": bucket, "Key": _PROBE[1:]}
    url: str = client.generate_presigned_url("put_object", Params=parameters)
    return urlsplit(url)


def _make_store(client: Any, bucket: str, trusted: Any, credentials: Any) -> Any:
    """Return an obstore store with the endpoint of `client`."""
    # Imported here, because it takes longer than all other imports together.
    from obstore.store import S3Store

    url, config = _object_url(client, bucket), client.meta.config
    region, endpoint = client.meta.region_name, f"{url.scheme}://{url.netloc}"
    limits = {"timeout": config.read_timeout, "connect_timeout": config.connect_timeout}
    options: dict[str, Any] = {
        "allow_http": url.scheme == "http",
        # A redirection to another host would send the session token there. This proxy
        # is for all other hosts. Its port cannot be listened on, so they are refused.
        "proxy_url": "http://127.0.0.1:0",
        "proxy_excludes": url.hostname,
    }
    options |= {name: timedelta(seconds=s) for name, s in limits.items() if s}
    if trusted is not True:  # The certificates of the system are trusted, too.
        options["root_certificate"] = Path(trusted).read_bytes()
    # The endpoint of this variable would precede the argument.
    override = "aws_endpoint_url_s3"
    return S3Store(
        bucket,
        endpoint=endpoint,
        region="us-east-1" if region == "aws-global" else region,
        virtual_hosted_style_request=url.path == _PROBE,
        client_options=options,
        # boto3 repeats a request that fails.
        retry_config={"max_retries": 0},
        # Not a bound method: the garbage collector does not see references in Rust.
        credential_provider=partial(_credential, credentials.get_frozen_credentials),
        **({override: endpoint} if override.upper() in os.environ else {}),
    )


def _credential(credentials: Callable[[], Any]) -> dict[str, Any]:
    frozen = credentials()
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        # boto3 refreshes its credentials if necessary when this is called again.
        "expires_at": datetime.now(UTC) + timedelta(minutes=1),
    }


def _unsupported(parameters: dict[str, Any]) -> list[str]:
    """Return the names of those `parameters` that obstore would not send as boto3."""
    headers = {**parameters}
    metadata = headers.pop("Metadata", {})
    if not isinstance(metadata, dict):
        return ["Metadata"]
    names = [n for n, v in headers.items() if n not in _HEADERS or not _is_plain(v)]
    for name, value in metadata.items():
        if not (re.fullmatch(_METADATA_NAME, name) and _is_plain(value)):
            names.append(f"Metadata {name}")
    return sorted(names)


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(_VALUE, value) is not None


def _describe(error: BaseException) -> str:
    """Return the kind of `error`; its text may quote secrets and a whole response."""
    status, _ = _status_and_code(error)
    return f"{type(error).__name__}{f' ({status})' if status else ''}"


def _status_and_code(error: BaseException) -> tuple[int, str]:
    status = re.search(r"status (?:code: )?(\d{3})\b", str(error))
    code = re.search("<Code>(.*?)</Code>", str(error))
    return int(status[1]) if status else 0, code[1] if code else ""
