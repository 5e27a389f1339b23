"""What an error of botocore's means."""

import http.client
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import mktime_tz, parsedate_tz
from typing import Any, NamedTuple

import botocore.exceptions
import urllib3.exceptions
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError
from urllib3.exceptions import ProtocolError

from collectfast_storage.exceptions import (
    TOO_MANY_FILES,
    BucketError,
    DeniedError,
    inner_error,
    printable,
)

# What boto3's methods raise at an answer that is none: a date or a number, for one.
UNREADABLE = (ResponseParserError, LookupError, ValueError)
# And at an error: what no code but boto3's, botocore's and s3transfer's raises.
OF_BOTO: tuple[type[Exception], ...] = (BotoCoreError, ClientError)
OF_BOTO += (ResponseParserError, RetriesExceededError, urllib3.exceptions.HTTPError)
# Where all is redirected, botocore follows as deep as it can.
FAILURES: tuple[type[Exception], ...] = (*OF_BOTO, RecursionError, *UNREADABLE)
# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_BUCKET_WIDE = (
    "AllAccessDisabled|ExpiredToken|Invalid(AccessKeyId|BucketName|Token)|NoSuchBucket"
    "|RequestTimeTooSkewed|SignatureDoesNotMatch"
)
# Those of `botocore.exceptions` that are about no file.
_BUCKET_WIDE_KINDS = "Credential|Param|SSO|Token"
# Of OpenSSL's and urllib3's words: the next handshake would fail too. A handshake that
# breaks off has others.
_DISTRUST = "(?i)certificate|hostname|no such file|wrong.version|unknown.protocol"
# Of the words of the operating system and OpenSSL, those that a user knows.
_SHORT = (
    "(?i)connection refused|connection reset|network is unreachable|no route to host"
    "|name or service not known|failed to resolve|name resolution|connection aborted"
    "|connection was closed|proxy|ssl"
)
_THROTTLING = "(?i)slow.?down|throttl|too.?many|(request|bandwidth)limit|busy"
# S3's and MinIO's codes for a name that cannot be a key.
_BAD_NAME = "KeyTooLong|InvalidObjectName"
# The answer to a HEAD request has no code, and some servers do not know a request.
_DENIED = "403|405|501|AccessDenied|Forbidden|MethodNotAllowed|NotImplemented"


class AnswerError(BotoCoreError):
    """An answer that is none of S3's, of which nothing may be concluded."""

    fmt = (
        "{problem}. Check endpoint_url: a proxy, gateway or login page may be "
        "answering instead of S3."
    )


class ThrottledError(BotoCoreError):
    """What obstore was told; how, is for boto3 to find out."""

    fmt = "{error}"


class OutageError(BotoCoreError):
    """The end of a run in which no request succeeded for too long."""

    fmt = "{error} (No request succeeded for {seconds} s.)"


class Transient(NamedTuple):
    """Why a request is worth sending again, later."""

    throttled: bool = False  # It was one too many.
    timed_out: bool = False
    after: float = 0.0  # seconds that the server asks to wait


# Connections that were not made, or that broke.
_BROKEN = (
    botocore.exceptions.ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ProtocolError,
    urllib3.exceptions.ReadTimeoutError,
)
_OF_CONNECTIONS = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError)
_TIMED_OUT = (
    ConnectTimeoutError,
    ReadTimeoutError,
    urllib3.exceptions.ReadTimeoutError,
)


def transient_of(error: BaseException) -> Transient | None:
    """Return what is transient in `error`; `None` if it would come again."""
    if isinstance(error, RetriesExceededError):
        return transient_of(error.last_exception)
    if isinstance(error, ClientError):
        status, after = status_of(error), _seconds_to_wait(error)
        if is_throttling(status, code_of(error)):
            return Transient(throttled=True, after=after)
        timed_out = code_of(error) == "RequestTimeout" or status in (408, 504)
        passes = timed_out or (status >= 500 and status != 501)
        return Transient(timed_out=timed_out, after=after) if passes else None
    if isinstance(error, ThrottledError):
        return Transient(throttled=True)
    if not isinstance(error, _BROKEN) or is_distrust(error):
        return None
    inner = inner_error(error)
    if re.search(TOO_MANY_FILES, str(inner)):
        return None
    # Botocore wraps each error that it does not know: of a header that cannot be sent,
    # or of a transfer that has failed, which s3transfer raises in its other parts.
    is_unknown = type(error) is HTTPClientError
    if is_unknown and not isinstance(inner, _OF_CONNECTIONS):
        return None
    return Transient(timed_out=isinstance(error, _TIMED_OUT))


def short_reason(error: BaseException) -> str:
    """Return a few words on a transient `error`, without its URL."""
    if isinstance(error, ClientError):
        return printable(f"{status_of(error)} {code_of(error)}")
    if isinstance(error, _TIMED_OUT):
        return "time-out"
    without_urls = re.sub(r"https?://\S*", "", str(error))
    texts = (str(inner_error(error)), without_urls)
    known = next(filter(None, (re.search(_SHORT, text) for text in texts)), None)
    return known[0].lower() if known else type(error).__name__


def is_throttling(status: int, code: str) -> bool:
    """Tell whether an answer says that a request was one too many."""
    return status in (429, 503) or bool(re.search(_THROTTLING, code))


def is_distrust(error: object) -> bool:
    """Tell whether a certificate was not accepted; it will not be the next time."""
    return isinstance(error, SSLError) and bool(re.search(_DISTRUST, str(error)))


def _seconds_to_wait(error: ClientError) -> float:
    # https://www.rfc-editor.org/rfc/rfc9110#name-retry-after
    about: Any = error.response.get("ResponseMetadata", {})
    text = about.get("HTTPHeaders", {}).get("retry-after", "")
    seconds = float(text) if text.isdecimal() else 0.0
    with suppress(ValueError, OverflowError):
        date = parsedate_tz(text)
        seconds = max(seconds, mktime_tz(date) - time.time() if date else 0.0)
    return min(seconds, 60.0)


def concerns_one_file(error: BaseException) -> bool:
    """Return whether `error` is about one file: reading it, or its name."""
    if isinstance(error, ClientError):
        return bool(re.search(_BAD_NAME, code_of(error)))
    return isinstance(error, OSError)


def concerns_bucket(error: BaseException) -> bool:
    """Tell whether `error` would meet every other file too."""
    if isinstance(error, ClientError):
        return bool(re.fullmatch(_BUCKET_WIDE, code_of(error)))
    is_own = isinstance(error, BotoCoreError)
    is_wide = is_own and re.search(_BUCKET_WIDE_KINDS, type(error).__name__)
    return isinstance(error, OutageError) or bool(is_wide) or is_distrust(error)


def is_not_understood(error: Exception) -> bool:
    """Tell whether `error` says that there is no such request, rather than no leave.

    Google's XML API had no DeleteObjects for long; others want a Content-MD5 of it.
    """
    if not isinstance(error, ClientError) or concerns_bucket(error):
        return False
    return status_of(error) in (400, 405, 501)


@contextmanager
def naming(bucket_name: str | None, *more: type[Exception]) -> Iterator[None]:
    """Turn a failure, or one of `more`, into a `BucketError` or a `DeniedError`."""
    try:
        yield
    except (*FAILURES, *more) as error:
        if not bucket_name:
            raise
        kind = DeniedError if _is_denial(error) else BucketError
        raise kind(bucket_name, error) from error


def not_found(operation: str) -> ClientError:
    """Return the error that boto3 raises for an object that does not exist."""
    answer: Any = {
        "Error": {"Code": "404", "Message": "Not Found"},
        "ResponseMetadata": {"HTTPStatusCode": 404, "HTTPHeaders": {}},
    }
    return ClientError(answer, operation)


def _is_denial(error: Exception) -> bool:
    if not isinstance(error, ClientError):
        return False
    # Where the bucket's name is also in the endpoint's host, the path of a listing is
    # the key of an object.
    is_listing = error.operation_name.startswith("ListObjects")
    misses = is_listing and code_of(error) == "NoSuchKey"
    return misses or re.fullmatch(_DENIED, code_of(error)) is not None


def status_of(error: ClientError) -> int:
    """Return the HTTP status of the answer; 0 if a mock has told none."""
    about: Any = error.response.get("ResponseMetadata", {})
    return int(about.get("HTTPStatusCode", 0))


def code_of(error: ClientError) -> str:
    """Return S3's code of the error."""
    return str(error.response.get("Error", {}).get("Code", ""))
