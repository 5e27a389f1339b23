"""Every request that this package makes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from collectfast_storage.content import Content
from collectfast_storage.native import Native
from collectfast_storage.wire import Wire

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


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing: keys with their ETags, and the token of what comes next."""

    etags: dict[str, str]
    token: str  # empty after the last page


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
        *,
        fast: bool,
    ) -> None:
        """Describe what is below `prefix` in the bucket `name`.

        `prefix` is empty or ends with a slash; `connect` is called at the first
        request, for a client that any thread may use. The `fast` ways are for many
        requests; one is sooner made by boto3 than prepared.
        """
        self.name = name
        self.prefix = prefix
        self._connect = connect
        self._config = config
        self._fast = fast

    def name_of(self, key: str) -> str:
        """Return the name that the storage's users know `key` by."""
        return key.removeprefix(self.prefix)

    @cached_property
    def _client(self) -> S3Client:
        return self._connect()

    @cached_property
    def _wire(self) -> Wire | None:
        return Wire(self._client, self.name) if self._fast else None

    @cached_property
    def _native(self) -> Native | None:
        wire = self._wire
        return None if wire is None else Native.at(wire.place, wire.credentials)

    def connect(self) -> None:
        """Make ready for requests from many threads; a client is made in one."""
        self._native  # noqa: B018

    def list(self, after: str = "", token: str = "") -> Page:
        """Return up to 1,000 keys below the prefix.

        From the first one on, or the first one `after` a key, or where the page before
        ended, as its `token` tells.
        """
        query = {"encoding-type": "url", "prefix": self.prefix}
        query |= {"start-after": after} if after else {}
        query |= {"continuation-token": token} if token else {}
        response = None if self._wire is None else self._wire.list(query)
        page = None if response is None else _parse_page(response.data)
        return page or self._list_by_boto3(after, token)

    def _list_by_boto3(self, after: str, token: str) -> Page:
        start = {"ContinuationToken": token} if token else {}
        response = self._client.list_objects_v2(
            Bucket=self.name,
            Prefix=self.prefix,
            StartAfter=after,
            **start,  # type: ignore[arg-type]
        )
        entries = response.get("Contents", ())
        etags = {entry["Key"]: _bare(entry["ETag"]) for entry in entries}
        more = response["IsTruncated"]
        return Page(etags, response["NextContinuationToken"] if more else "")

    def head(self, key: str, parameters: dict[str, Any]) -> str | None:
        """Return the ETag of `key`; `None` if there is no such object."""
        response = None if self._wire is None else self._wire.head(key, parameters)
        if response is not None:
            absent = response.status == 404
            return None if absent else _bare(response.headers["ETag"])
        try:
            answer = self._client.head_object(Bucket=self.name, Key=key, **parameters)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        return _bare(answer["ETag"])

    def put(self, key: str, content: Content) -> str:
        """Upload `content` as `key`, and return the ETag it got."""
        if content.body is None:
            return self._put_stream(key, content)
        md5, headers = content.body_md5, content.fingerprint.headers
        if self._native is not None:
            etag = self._native.put(key, content.body, md5, content.parameters)
            if etag is not None:
                return etag
        if self._wire is not None:
            sent = self._wire.put(key, content.body, md5, headers, content.parameters)
            if sent is not None:
                return _bare(sent.headers["ETag"])
        answer = self._client.put_object(
            Bucket=self.name,
            Key=key,
            Body=content.body,
            ContentMD5=b64encode(bytes.fromhex(md5)).decode(),
            **content.parameters,
        )
        return _bare(answer["ETag"])

    def _put_stream(self, key: str, content: Content) -> str:
        stream = content.stream()
        # https://github.com/boto/s3transfer/issues/80: it closes what it did not open.
        stream.close = lambda: None
        self._client.upload_fileobj(
            stream, self.name, key, ExtraArgs=content.parameters, Config=self._config
        )
        # boto3 does not say which ETag it got.
        try:
            answer = self._client.head_object(
                Bucket=self.name, Key=key, **_of_a_head(content.parameters)
            )
        except ClientError:
            return content.etag
        if not content.is_as_hashed():
            raise OSError("the file changed while it was uploaded")
        return _bare(answer["ETag"])

    def delete(self, keys: Sequence[str]) -> Iterator[tuple[str, str | None]]:
        """Delete `keys`, 1,000 a request; yield each with its error, if any."""
        for start in range(0, len(keys), 1000):
            batch = keys[start : start + 1000]
            try:
                errors = self._delete(batch)
            except (BotoCoreError, ClientError) as error:
                errors = dict.fromkeys(batch, str(error))
            yield from ((key, errors.get(key)) for key in batch)

    def _delete(self, keys: Sequence[str]) -> dict[str, str]:
        response = self._client.delete_objects(
            Bucket=self.name,
            Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True},
        )
        return {error["Key"]: _reason(error) for error in response.get("Errors", ())}


def _of_a_head(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return those write parameters that reading needs: a customer's own key."""
    return {name: v for name, v in parameters.items() if name.startswith("SSECustomer")}


def _parse_page(content: bytes) -> Page | None:
    """Read the answer to ListObjectsV2; `None` if it is not one."""
    try:
        root = ElementTree.fromstring(content)  # noqa: S314 (as botocore does)
    except ElementTree.ParseError:
        return None
    namespace = root.tag.removesuffix("ListBucketResult")
    token = root.findtext(f"{namespace}NextContinuationToken") or ""
    if root.findtext(f"{namespace}IsTruncated") != ("true" if token else "false"):
        return None
    decode = root.findtext(f"{namespace}EncodingType") == "url"
    etags = {}
    for entry in root.iterfind(f"{namespace}Contents"):
        key = entry.findtext(f"{namespace}Key") or ""
        etag = entry.findtext(f"{namespace}ETag") or ""
        etags[unquote_plus(key) if decode else key] = _bare(etag)
    return Page(etags, token)


def concerns_bucket(error: BaseException) -> bool:
    """Tell whether `error` would meet every other file too."""
    if isinstance(error, ClientError):
        return error.response["Error"]["Code"] in _BUCKET_WIDE
    return isinstance(error, (NoCredentialsError, PartialCredentialsError))


def _bare(etag: str) -> str:
    return etag.strip('"')


def _reason(error: Any) -> str:
    return f"{error.get('Code')}: {error.get('Message')}"
