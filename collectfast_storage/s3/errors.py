"""The meaning of botocore's errors: transient, about the whole bucket, or a denial."""

import http.client
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import mktime_tz, parsedate_tz
from typing import Any, NamedTuple

import urllib3.exceptions
from botocore import exceptions as botocore_exceptions
from botocore.exceptions import BotoCoreError, ClientError, SSLError
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError

from collectfast_storage.exceptions import (
    TOO_MANY_FILES,
    BucketError,
    DeniedError,
    inner_error,
    printable,
)

# boto3 raises these if it cannot parse a response: for example a date or a number.
PARSE_ERRORS = (ResponseParserError, LookupError, ValueError)
# Only boto3, botocore and s3transfer raise these.
BOTO_ERRORS: tuple[type[Exception], ...] = (
    BotoCoreError,
    ClientError,
    ResponseParserError,
    RetriesExceededError,
    urllib3.exceptions.HTTPError,
)
# botocore follows redirects without a limit, so endless ones end in a RecursionError.
REQUEST_ERRORS: tuple[type[Exception], ...]
REQUEST_ERRORS = (*BOTO_ERRORS, RecursionError, *PARSE_ERRORS)
# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_BUCKET_WIDE_CODES = {
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidBucketName",
    "InvalidToken",
    "NoSuchBucket",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
# Errors of credentials and parameters, which are the same in every request.
_BUCKET_WIDE_ERRORS = (
    botocore_exceptions.CredentialRetrievalError,
    botocore_exceptions.MissingParametersError,
    botocore_exceptions.NoAuthTokenError,
    botocore_exceptions.NoCredentialsError,
    botocore_exceptions.ParamValidationError,
    botocore_exceptions.PartialCredentialsError,
    botocore_exceptions.SSOError,
    botocore_exceptions.TokenRetrievalError,
    botocore_exceptions.UnknownCredentialError,
    botocore_exceptions.ValidationError,
    # Older versions do not have these.
    getattr(botocore_exceptions, "LoginError", botocore_exceptions.SSOError),
    getattr(
        botocore_exceptions, "UnknownTokenProviderError", botocore_exceptions.SSOError
    ),
)
# Texts of OpenSSL and urllib3 for errors that every handshake with this server would
# have. A handshake that breaks off has another text.
_UNTRUSTED = "(?i)certificate|hostname|no such file|wrong.version|unknown.protocol"
# Texts of the operating system and OpenSSL that a user understands.
_KNOWN_REASONS = (
    "(?i)connection refused|connection reset|network is unreachable|no route to host"
    "|name or service not known|failed to resolve|name resolution|connection aborted"
    "|connection was closed|proxy|ssl"
)
_THROTTLING = "(?i)slow.?down|throttl|too.?many|(request|bandwidth)limit|busy"
# S3's and MinIO's codes for a name that cannot be a key.
_INVALID_NAME = "KeyTooLong|InvalidObjectName"
# A response to a HEAD request has its status as its code. Some servers do not implement
# all requests.
_DENIED_CODES = {"403", "405", "501", "AccessDenied", "Forbidden"}
_DENIED_CODES |= {"MethodNotAllowed", "NotImplemented"}
# Connections that could not be made, or that broke.
_CONNECTION_ERRORS = (
    botocore_exceptions.ConnectionError,
    botocore_exceptions.HTTPClientError,
    botocore_exceptions.IncompleteReadError,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.ReadTimeoutError,
)
_TIMEOUTS = (
    botocore_exceptions.ConnectTimeoutError,
    botocore_exceptions.ReadTimeoutError,
    urllib3.exceptions.ReadTimeoutError,
)
_INNER_ERRORS = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError)


class AnswerError(BotoCoreError):
    """A response that does not come from S3, so nothing can be concluded from it."""

    fmt = (
        "{problem}. Check endpoint_url: a proxy, gateway or login page may be "
        "answering instead of S3."
    )


class ThrottledError(BotoCoreError):
    """An upload by obstore that was throttled; its error has no ``Retry-After``."""

    fmt = "{error}"


class OutageError(BotoCoreError):
    """The end of a run in which no request succeeded for too long."""

    fmt = "{error} (No request succeeded for {seconds} s.)"


class LengthError(BotoCoreError):
    """An object that is not as long as its upload."""

    fmt = (
        "The server stored {stored} bytes instead of {sent}, so the object is damaged."
    )


class Transient(NamedTuple):
    """The reason to send a request again."""

    throttled: bool = False
    timed_out: bool = False
    retry_after: float = 0.0  # seconds that the server asks to wait


def transient_of(error: BaseException) -> Transient | None:
    """Return why a request may succeed after `error`; `None` if it would fail again."""
    if isinstance(error, RetriesExceededError):
        return transient_of(error.last_exception)
    if isinstance(error, ClientError):
        status, retry_after = status_of(error), _retry_after(error)
        if is_throttling(status, code_of(error)):
            return Transient(throttled=True, retry_after=retry_after)
        timed_out = code_of(error) == "RequestTimeout" or status in (408, 504)
        if timed_out or (status >= 500 and status != 501):
            return Transient(timed_out=timed_out, retry_after=retry_after)
        return None
    if isinstance(error, ThrottledError):
        return Transient(throttled=True)
    if not isinstance(error, _CONNECTION_ERRORS) or is_untrusted_certificate(error):
        return None
    inner = inner_error(error)
    if re.search(TOO_MANY_FILES, str(inner)):
        return None
    # botocore wraps every error that it does not know in HTTPClientError, for example
    # the error of an invalid header, or that of a failed transfer, which s3transfer
    # raises in the other parts of the file.
    is_wrapper = type(error) is botocore_exceptions.HTTPClientError
    if is_wrapper and not isinstance(inner, _INNER_ERRORS):
        return None
    return Transient(timed_out=isinstance(error, _TIMEOUTS))


def short_reason(error: BaseException) -> str:
    """Return a short text for a transient `error`, without its URL."""
    if isinstance(error, ClientError):
        return printable(f"{status_of(error)} {code_of(error)}")
    if isinstance(error, _TIMEOUTS):
        return "time-out"
    without_urls = re.sub(r"https?://\S*", "", str(error))
    known = re.search(_KNOWN_REASONS, f"{inner_error(error)} {without_urls}")
    return known[0].lower() if known else type(error).__name__


def is_throttling(status: int, code: str) -> bool:
    """Return whether a response says that the server gets too many requests."""
    return status in (429, 503) or bool(re.search(_THROTTLING, code))


def is_untrusted_certificate(error: object) -> bool:
    """Return whether `error` is about the server's certificate or protocol."""
    return isinstance(error, SSLError) and bool(re.search(_UNTRUSTED, str(error)))


def _retry_after(error: ClientError) -> float:
    # https://www.rfc-editor.org/rfc/rfc9110#name-retry-after
    metadata: Any = error.response.get("ResponseMetadata", {})
    text = metadata.get("HTTPHeaders", {}).get("retry-after", "")
    seconds = float(text) if text.isdecimal() else 0.0
    with suppress(ValueError, OverflowError):
        date = parsedate_tz(text)
        seconds = max(seconds, mktime_tz(date) - time.time() if date else 0.0)
    return min(seconds, 60.0)


def affects_one_file(error: BaseException) -> bool:
    """Return whether `error` is about one file: its name, or reading it."""
    if isinstance(error, ClientError):
        return bool(re.search(_INVALID_NAME, code_of(error)))
    return isinstance(error, OSError)


def affects_whole_bucket(error: BaseException) -> bool:
    """Return whether every other request would fail for the same reason."""
    if isinstance(error, ClientError):
        return code_of(error) in _BUCKET_WIDE_CODES
    is_wide = isinstance(error, (OutageError, *_BUCKET_WIDE_ERRORS))
    return is_wide or is_untrusted_certificate(error)


def is_unsupported_request(error: Exception) -> bool:
    """Return whether `error` says that the server does not support the request.

    Google's XML API did not support DeleteObjects at first. Other servers require a
    Content-MD5 header in it, which boto3 does not send.
    """
    if not isinstance(error, ClientError) or affects_whole_bucket(error):
        return False
    return status_of(error) in (400, 405, 501)


@contextmanager
def as_bucket_error(bucket_name: str | None, *more: type[Exception]) -> Iterator[None]:
    """Turn a request's error, or one of `more`, into `BucketError` or `DeniedError`."""
    try:
        yield
    except (*REQUEST_ERRORS, *more) as error:
        if not bucket_name:
            raise
        kind = DeniedError if _is_denial(error) else BucketError
        raise kind(bucket_name, error) from error


def not_found(operation: str) -> ClientError:
    """Return the error that boto3 raises for an object that does not exist."""
    response: Any = {
        "Error": {"Code": "404", "Message": "Not Found"},
        "ResponseMetadata": {"HTTPStatusCode": 404, "HTTPHeaders": {}},
    }
    return ClientError(response, operation)


def _is_denial(error: Exception) -> bool:
    if not isinstance(error, ClientError):
        return False
    # If the host in the endpoint contains the bucket's name, the server interprets the
    # path of a list request as a key.
    is_listing = error.operation_name.startswith("ListObjects")
    is_misdirected = is_listing and code_of(error) == "NoSuchKey"
    return is_misdirected or code_of(error) in _DENIED_CODES


def status_of(error: ClientError) -> int:
    """Return the HTTP status of an error response; 0 if it has none, as with mocks."""
    metadata: Any = error.response.get("ResponseMetadata", {})
    return int(metadata.get("HTTPStatusCode", 0))


def code_of(error: ClientError) -> str:
    """Return the code of an error response."""
    return str(error.response.get("Error", {}).get("Code", ""))
