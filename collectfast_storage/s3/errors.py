"""What an error of botocore's means."""

from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from collectfast_storage.exceptions import BucketError, DeniedError

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_BUCKET_WIDE = {
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidBucketName",
    "InvalidToken",
    "NoSuchBucket",
    "SignatureDoesNotMatch",
}
_DENIED = {"AccessDenied", "403", "Forbidden"}  # the answer to a HEAD has no words


class AnswerError(BotoCoreError):
    """An answer that is none of S3's, of which nothing may be concluded."""

    fmt = (
        "{what}. Is its endpoint the right one, and does nothing between here and "
        "there answer in its place?"
    )


def is_absent(error: ClientError) -> bool:
    """Tell whether there is no such object; 403 is no such answer."""
    return _status(error) == 404


def concerns_bucket(error: BaseException) -> bool:
    """Tell whether `error` would meet every other file too."""
    if isinstance(error, ClientError):
        return _code(error) in _BUCKET_WIDE
    return isinstance(error, (NoCredentialsError, PartialCredentialsError))


def is_not_understood(error: Exception) -> bool:
    """Tell whether `error` says that there is no such request, rather than no leave.

    Google's XML API, for one, had no DeleteObjects for long (`InvalidArgument`, then
    `NotImplemented`), and others want of it a Content-MD5 that boto3 no longer sends.
    """
    if not isinstance(error, ClientError) or concerns_bucket(error):
        return False
    return _status(error) in (400, 405, 501)


@contextmanager
def naming(bucket_name: str) -> Iterator[None]:
    """Make a failure in this context a `BucketError` that names the bucket.

    Where a permission is missing, it is a `DeniedError`.
    """
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        denied = isinstance(error, ClientError) and _code(error) in _DENIED
        kind = DeniedError if denied else BucketError
        raise kind(bucket_name, error) from error


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _code(error: ClientError) -> str:
    return error.response["Error"]["Code"]
