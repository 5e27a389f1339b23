"""Every request that this package makes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from s3transfer.constants import ALLOWED_DOWNLOAD_ARGS

from collectfast_storage.answers import FINGERPRINT, Head, Page, bare_etag
from collectfast_storage.content import Content
from collectfast_storage.diagnosis import is_absent, is_not_understood, once_more
from collectfast_storage.etag import content_md5
from collectfast_storage.exceptions import AnswerError
from collectfast_storage.keys import fits_xml, is_possible
from collectfast_storage.native import Native
from collectfast_storage.transfer import transfer
from collectfast_storage.wire import Wire

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of an upload."""

    etag: str
    size: int  # in bytes, as sent
    is_opaque: bool | None  # whether ETags here are; `None` if this one does not tell


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
        native: bool,
    ) -> None:
        """Describe what is below `prefix` in the bucket `name`.

        `prefix` is empty or ends with a slash; `connect` is called at the first
        request, for a client that any thread may use. The `fast` ways are for many
        requests; one is sooner made by boto3 than prepared. Only in other threads than
        the main one may uploads be `native`: Python cannot interrupt Rust.
        """
        self.name = name
        self.prefix = prefix
        self._connect = connect
        self._config = config
        self._fast = fast
        self._may_be_native = native
        self._lock = threading.Lock()
        self.requests: Counter[str] = Counter()  # by kind

    def name_of(self, key: str) -> str:
        """Return the name that the storage's users know `key` by."""
        return key.removeprefix(self.prefix)

    def _count(self, kind: str) -> None:
        with self._lock:
            self.requests[kind] += 1

    @cached_property
    def _client(self) -> S3Client:
        client = self._connect()
        events: Any = client.meta.events
        events.register("needs-retry.s3", once_more, unique_id="collectfast-once-more")
        return client

    @cached_property
    def _wire(self) -> Wire | None:
        return Wire(self._client, self.name) if self._fast else None

    @cached_property
    def _native(self) -> Native | None:
        wire = self._wire
        if wire is None or not self._may_be_native:
            return None
        return Native.at(wire.place, wire.credentials)

    def connect(self, *, to_upload: bool = False) -> None:
        """Make here, in one thread, what requests in many threads will share."""
        self._wire  # noqa: B018
        if to_upload:
            self._native  # noqa: B018

    def list(self, after: str = "", token: str = "") -> Page:
        """Return up to 1,000 keys below the prefix.

        From the first one on, or the first one `after` a key, or where the page before
        ended, as its `token` tells.
        """
        self._count("LIST")
        query = {"encoding-type": "url", "prefix": self.prefix}
        query |= {"start-after": after} if after else {}
        query |= {"continuation-token": token} if token else {}
        answer = None if self._wire is None else self._wire.list(query)
        page = None if answer is None else Page.of_xml(answer)
        page = page or self._list_by_boto3(after, token)
        for key in page.etags:
            if not key.startswith(self.prefix):
                raise AnswerError(what=f"It lists {key!r} below {self.prefix!r}")
        return page

    def _list_by_boto3(self, after: str, token: str) -> Page:
        start = {"ContinuationToken": token} if token else {}
        try:
            response = self._client.list_objects_v2(
                Bucket=self.name,
                Prefix=self.prefix,
                StartAfter=after,
                **start,  # type: ignore[arg-type]
            )
        except (ResponseParserError, LookupError):
            response = {}  # type: ignore[typeddict-item]
        page = Page.of_response(response)
        if page is None:
            raise AnswerError(what="What it answers to ListObjectsV2 is no listing")
        return page

    def head(self, key: str, parameters: dict[str, Any]) -> Head | None:
        """Return what is known of `key`; `None` if there is no such object.

        `parameters` are those of a write, of which reading may need some, such as a
        customer's own encryption key.
        """
        if not is_possible(key):
            return None
        self._count("HEAD")
        parameters = {k: v for k, v in parameters.items() if k in ALLOWED_DOWNLOAD_ARGS}
        quick = None if self._wire is None else self._wire.head(key, parameters)
        if quick is not None:
            return None if quick.status == 404 else Head.of(quick.headers)
        try:
            answer = self._client.head_object(Bucket=self.name, Key=key, **parameters)
        except ClientError as error:
            if is_absent(error):
                return None
            raise
        return Head.of(answer["ResponseMetadata"]["HTTPHeaders"])

    def put(self, key: str, content: Content, *, tagged: bool = False) -> Stored:
        """Upload `content` as `key`.

        If it is `tagged`, its metadata keep the fingerprint: where ETags are opaque.
        So if it gets an opaque one, it is sent again, tagged.
        """
        etag = self._put(key, content, tagged)
        if content.body is None or content.has_opaque_etag:
            return Stored(etag, content.size, None)
        if etag != content.body_md5 and not tagged:
            # Or it was damaged, if the server compares no Content-MD5.
            etag = self._put(key, content, tagged=True)
        return Stored(etag, content.size, etag != content.body_md5)

    def _put(self, key: str, content: Content, tagged: bool) -> str:
        self._count("PUT")
        tag = {FINGERPRINT: str(content.fingerprint)} if tagged else {}
        if content.body is None:
            return self._put_stream(key, content, tag)
        _check_unchanged(content)
        etag = self._put_fast(key, content, content.body, tag)
        if etag is not None:
            return bare_etag(etag)
        answer = self._client.put_object(
            Bucket=self.name,
            Key=key,
            Body=content.body,
            ContentMD5=content_md5(content.body_md5),
            **_tagged(content.parameters, tag),
        )
        return bare_etag(answer.get("ETag"))

    def _put_fast(
        self, key: str, content: Content, body: bytes, tag: dict[str, str]
    ) -> str | None:
        md5, parameters = content.body_md5, content.parameters
        # It takes an ETag that is no MD5 for a sign of damage.
        if self._native is not None and not tag:
            etag = self._native.put(key, body, md5, parameters)
            if etag is not None:
                return etag
        if self._wire is None:
            return None
        headers = content.fingerprint.headers
        return self._wire.put(key, body, md5, headers, parameters, tag)

    def _put_stream(self, key: str, content: Content, tag: dict[str, str]) -> str:
        parameters = _tagged(content.parameters, tag)
        etag = transfer(
            self._client, self._config, content.stream(), self.name, key, parameters
        )
        _check_unchanged(content)
        if etag:
            return bare_etag(etag)
        # Who may not ask has to work it out.
        try:
            head = self.head(key, content.parameters)
        except ClientError:
            head = None
        return content.multipart_etag if head is None else head.etag

    def delete(self, keys: Sequence[str]) -> Iterator[tuple[str, str | None]]:
        """Delete `keys`, 1,000 a request; yield each with its error, if any.

        One a request, where the server or XML knows no other way.
        """
        by_xml = [key for key in keys if fits_xml(key)]
        for start in range(0, len(by_xml), 1000):
            batch = by_xml[start : start + 1000]
            try:
                errors = self._delete(batch)
            except (BotoCoreError, ClientError, ResponseParserError) as error:
                if is_not_understood(error):
                    rest = by_xml[start:]
                    yield from ((key, self._delete_one(key)) for key in rest)
                    break
                errors = dict.fromkeys(batch, str(error))
            yield from ((key, errors.get(key)) for key in batch)
        for key in keys:
            if not fits_xml(key):
                yield key, self._delete_one(key)

    def _delete(self, keys: Sequence[str]) -> dict[str, str]:
        self._count("DELETE MANY")
        response = self._client.delete_objects(
            Bucket=self.name,
            Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True},
        )
        return {error["Key"]: _reason(error) for error in response.get("Errors", ())}

    def _delete_one(self, key: str) -> str | None:
        self._count("DELETE")
        try:
            self._client.delete_object(Bucket=self.name, Key=key)
        except (BotoCoreError, ClientError) as error:
            return str(error)
        return None


def _tagged(parameters: dict[str, Any], tag: dict[str, str]) -> dict[str, Any]:
    if not tag:
        return parameters
    return {**parameters, "Metadata": {**parameters.get("Metadata", {}), **tag}}


def _check_unchanged(content: Content) -> None:
    if not content.is_as_hashed():
        raise OSError("the file changed while it was read")


def _reason(error: Any) -> str:
    return f"{error.get('Code')}: {error.get('Message')}"
