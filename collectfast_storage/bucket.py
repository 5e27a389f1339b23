"""Every request that this package makes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from botocore.exceptions import (
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from collectfast_storage.content import Content

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from mypy_boto3_s3 import S3Client

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


class Bucket:
    """A bucket, through the boto3 client of a storage.

    Errors are botocore's: https://docs.aws.amazon.com/boto3/latest/guide/error-handling.html
    """

    def __init__(
        self,
        name: str,
        prefix: str,
        connect: Callable[[], S3Client],
        config: TransferConfig,
    ) -> None:
        """Describe what is below `prefix` in the bucket `name`.

        `prefix` is empty or ends with a slash; `connect` is called at the first
        request, for a client that any thread may use.
        """
        self.name = name
        self.prefix = prefix
        self._connect = connect
        self._config = config

    def name_of(self, key: str) -> str:
        """Return the name that the storage's users know `key` by."""
        return key.removeprefix(self.prefix)

    @cached_property
    def _client(self) -> S3Client:
        return self._connect()

    def list(self) -> Iterator[tuple[str, str]]:
        """Yield key and ETag of each object below the prefix, 1,000 a request."""
        paginator = self._client.get_paginator("list_objects_v2")
        for page in paginator.paginate(Bucket=self.name, Prefix=self.prefix):
            for entry in page.get("Contents", ()):
                yield entry["Key"], _bare(entry["ETag"])

    def head(self, key: str, parameters: dict[str, Any]) -> str | None:
        """Return the ETag of `key`; `None` if there is no such object."""
        try:
            response = self._client.head_object(Bucket=self.name, Key=key, **parameters)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        return _bare(response["ETag"])

    def put(self, key: str, content: Content) -> str:
        """Upload `content` as `key`, and return the ETag it got."""
        if content.body is None:
            return self._put_stream(key, content)
        response = self._client.put_object(
            Bucket=self.name,
            Key=key,
            Body=content.body,
            ContentMD5=b64encode(bytes.fromhex(content.etag)).decode(),
            **content.parameters,
        )
        return _bare(response["ETag"])

    def _put_stream(self, key: str, content: Content) -> str:
        stream = content.stream()
        # https://github.com/boto/s3transfer/issues/80: it closes what it did not open.
        stream.close = lambda: None
        self._client.upload_fileobj(
            stream, self.name, key, ExtraArgs=content.parameters, Config=self._config
        )
        # boto3 does not say which ETag it got. Should this not be it, then it equals
        # no ETag in the bucket, and is not believed.
        return content.etag

    def delete(self, keys: Sequence[str]) -> Iterator[tuple[str, str | None]]:
        """Delete `keys`, 1,000 a request; yield each with its error, if any."""
        for start in range(0, len(keys), 1000):
            batch = keys[start : start + 1000]
            response = self._client.delete_objects(
                Bucket=self.name,
                Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True},
            )
            errors = {e["Key"]: _reason(e) for e in response.get("Errors", ())}
            yield from ((key, errors.get(key)) for key in batch)


def concerns_bucket(error: BaseException) -> bool:
    """Tell whether `error` would meet every other file too."""
    if isinstance(error, ClientError):
        return error.response["Error"]["Code"] in _BUCKET_WIDE
    return isinstance(error, (NoCredentialsError, PartialCredentialsError))


def _bare(etag: str) -> str:
    return etag.strip('"')


def _reason(error: Any) -> str:
    return f"{error.get('Code')}: {error.get('Message')}"
