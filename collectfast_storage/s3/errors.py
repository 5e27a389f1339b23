"""What an error of botocore's means."""

from __future__ import annotations

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


class naming:  # noqa: N801 (as those of contextlib)
    """In this context a failure to use a bucket is a `BucketError`, with its name.

    Where a permission is missing, it is a `DeniedError`. A class, as the generator of a
    context manager costs more than most questions.
    """

    def __init__(self, bucket_name: str) -> None:
        self._bucket_name = bucket_name

    def __enter__(self) -> None:
        """Nothing is to be done yet."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Name the bucket."""
        if isinstance(error, (BotoCoreError, ClientError)):
            denied = isinstance(error, ClientError) and _code(error) in _DENIED
            kind = DeniedError if denied else BucketError
            raise kind(self._bucket_name, error) from error


def _code(error: ClientError) -> str:
    return error.response["Error"]["Code"]


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]
