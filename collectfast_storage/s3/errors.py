"""What an error of botocore's means."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import mktime_tz, parsedate_tz
from typing import Any, NamedTuple

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    HTTPClientError,
    ReadTimeoutError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError

from collectfast_storage.exceptions import BucketError, DeniedError

# What boto3's methods raise at an answer that is none: a date or a number, for one.
UNREADABLE = (ResponseParserError, LookupError, ValueError)
# And at an error: what no code but boto3's, botocore's and s3transfer's raises.
OF_BOTO = (BotoCoreError, ClientError, ResponseParserError, RetriesExceededError)
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
_THROTTLING = "(?i)slow.?down|throttl|too.?many|(request|bandwidth)limit|busy"
# S3's and MinIO's codes for a name that cannot be a key.
_BAD_NAME = "KeyTooLong|InvalidObjectName"
# The answer to a HEAD request has no code, and some servers do not know a request.
_DENIED = "403|405|501|AccessDenied|Forbidden|MethodNotAllowed|NotImplemented"


class AnswerError(BotoCoreError):
    """An answer that is none of S3's, of which nothing may be concluded."""

    fmt = "{what}. Is its endpoint the right one, and does nothing answer in its place?"


class ThrottledError(BotoCoreError):
    """What obstore was told; how, is for boto3 to find out."""

    fmt = "{what}"


class Setback(NamedTuple):
    """Why a request is worth sending again, later."""

    throttled: bool = False  # It was one too many.
    timed_out: bool = False
    after: float = 0.0  # seconds that the server asks to wait


def setback_of(error: BaseException) -> Setback | None:
    """Return what passes in `error`; `None` if it would come again."""
    if isinstance(error, ClientError):
        status = status_of(error)
        if is_throttling(status, _code(error)):
            return Setback(throttled=True, after=_seconds_to_wait(error))
        timed_out = _code(error) == "RequestTimeout" or status in (408, 504)
        passes = timed_out or (status >= 500 and status != 501)
        return Setback(timed_out=timed_out) if passes else None
    if isinstance(error, (ReadTimeoutError, ConnectTimeoutError)):
        return Setback(timed_out=True)
    if isinstance(error, ThrottledError):
        return Setback(throttled=True)
    is_lost = isinstance(error, HTTPClientError) and not is_distrust(error)
    return Setback() if is_lost else None


def is_throttling(status: int, code: str) -> bool:
    """Tell whether an answer says that a request was one too many."""
    return status in (429, 503) or bool(re.search(_THROTTLING, code))


def is_distrust(error: object) -> bool:
    """Tell whether a certificate was not accepted; it will not be the next time."""
    return isinstance(error, SSLError) and bool(re.search(_DISTRUST, str(error)))


def _seconds_to_wait(error: ClientError) -> float:
    # https://www.rfc-editor.org/rfc/rfc9110#name-retry-after
    headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
    text = headers.get("retry-after", "")
    date = parsedate_tz(text)
    at = mktime_tz(date) - time.time() if date else 0.0
    return min(max(at, float(text) if text.isdecimal() else 0.0), 60.0)


def concerns_one_file(error: BaseException) -> bool:
    """Return whether `error` is about one file: reading it, or its name."""
    if isinstance(error, ClientError):
        return bool(re.search(_BAD_NAME, _code(error)))
    return isinstance(error, OSError)


def concerns_bucket(error: BaseException) -> bool:
    """Tell whether `error` would meet every other file too."""
    if isinstance(error, ClientError):
        return bool(re.fullmatch(_BUCKET_WIDE, _code(error)))
    is_own = isinstance(error, BotoCoreError)
    is_wide = is_own and re.search(_BUCKET_WIDE_KINDS, type(error).__name__)
    return bool(is_wide) or is_distrust(error)


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
    misses = is_listing and _code(error) == "NoSuchKey"
    return misses or re.fullmatch(_DENIED, _code(error)) is not None


def status_of(error: ClientError) -> int:
    """Return the HTTP status of the answer."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _code(error: ClientError) -> str:
    return error.response["Error"]["Code"]
