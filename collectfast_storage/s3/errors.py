"""What an error of botocore's means."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
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


class CertificateError(BotoCoreError):
    """A server that does not prove to be the one that was meant."""

    fmt = (
        "The certificate of {server} was not accepted ({reason}). If a CA of your own "
        "issued it, set the option verify (setting AWS_S3_VERIFY), or AWS_CA_BUNDLE in "
        "the environment, to the file of that CA; else endpoint_url may be wrong."
    )


def refused_certificate(error: BaseException | None) -> CertificateError | None:
    """Return what to tell of `error` if it is about a certificate, as no other try is.

    A handshake that broke off is another matter: the next one may succeed.
    """
    if not isinstance(error, SSLError):
        return None
    reasons = error.kwargs["error"].args
    # OpenSSL's and urllib3's verdicts have this much in common; or there is no CA file.
    if not any(isinstance(each, (ValueError, FileNotFoundError)) for each in reasons):
        return None
    url = urlsplit(error.kwargs["endpoint_url"])
    server, reason = f"{url.scheme}://{url.netloc}", error.kwargs["error"]
    return CertificateError(server=server, reason=reason)


def is_absent(error: ClientError) -> bool:
    """Tell whether there is no such object; 403 is no such answer."""
    return _status(error) == 404


def concerns_bucket(error: BaseException) -> bool:
    """Tell whether `error` would meet every other file too."""
    if isinstance(error, ClientError):
        return _code(error) in _BUCKET_WIDE
    return isinstance(
        error, (CertificateError, NoCredentialsError, PartialCredentialsError)
    )


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
