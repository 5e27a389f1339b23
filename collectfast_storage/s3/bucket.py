"""Every request that this package makes."""

from __future__ import annotations

import re
import threading
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.constants import ALLOWED_DOWNLOAD_ARGS
from s3transfer.futures import NonThreadedExecutor
from s3transfer.manager import TransferManager
from s3transfer.subscribers import BaseSubscriber

from collectfast_storage.decision import Remote
from collectfast_storage.fingerprint import FINGERPRINT, normal_etag
from collectfast_storage.payload import Payload
from collectfast_storage.retrying import RetryingSender
from collectfast_storage.s3 import errors
from collectfast_storage.s3.events import (
    Entries,
    RequestLog,
    our_request,
    register,
    unwatch,
    watch,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from collectfast_storage.s3.native import Native

_T = TypeVar("_T")

# The requests that s3transfer makes for an upload; it aborts one that has failed.
_OF_UPLOADS = (
    "put_object",
    "create_multipart_upload",
    "upload_part",
    "complete_multipart_upload",
)
# Those of a write's parameters that go with every request.
_WITH_EACH = ("ExpectedBucketOwner", "RequestPayer")
# What XML cannot carry in any way: https://www.w3.org/TR/xml/#charsets
_NOT_XML = "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"


class Page(NamedTuple):
    """A part of a listing: names with their ETags, and how to ask for the next."""

    etags: dict[str, str]
    following: dict[str, Any]  # empty after the last page


class Stored(NamedTuple):
    """An object that was uploaded."""

    etag: str  # empty if the server did not tell
    size: int  # in bytes, as sent


class Bucket:
    """The objects below a prefix in a bucket, by names below it.

    Its methods raise the errors of botocore.
    """

    def __init__(
        self,
        name: str,
        prefix: str,  # empty, or with a slash at its end
        sender: RetryingSender,
        connect: Callable[[], S3Client],  # returns a client that any thread may use
        native: Callable[[S3Client], Native | None] | None = None,
        parameters: Mapping[str, Any] = MappingProxyType({}),  # of each write
    ) -> None:
        self.name = name
        self.prefix = prefix
        self.sender = sender
        self._connect = connect
        shared = {k: parameters[k] for k in _WITH_EACH if k in parameters}
        self._place: Any = {"Bucket": name, **shared}
        # A faster way, not for the main thread: Python cannot interrupt Rust.
        self._make_native = native
        self._native: Native | None = None
        self.log = RequestLog()
        self._before_others: Callable[[], object] | None = None
        # Whether the ETags of new objects are no MD5s, as with KMS. None: not known.
        self.has_opaque_etags: bool | None = None
        # Whether an unencrypted object was seen whose ETag is the MD5 of its content.
        self.has_md5_etags = False

    @cached_property
    def client(self) -> S3Client:
        """The client, made in the thread that asks first."""
        client = self._connect()
        register(client)
        if self._before_others is not None:
            watch(client, self._before_others)
        return client

    def watch(self, before_others: Callable[[], object]) -> None:
        """Call `before_others` before requests of the client that are not our own."""
        self._before_others = before_others

    def close(self) -> None:
        """Stop watching the client."""
        if self._before_others is not None and "client" in vars(self):
            unwatch(self.client, self._before_others)

    def connect(self) -> None:
        """Make the client in this thread, and the faster way if there is one.

        A mock that answers in the place of the network, as moto does, is not bypassed:
        boto3 must have reached the network first.
        """
        client = self.client
        if self._make_native and self.log.has_reached_network:
            make, self._make_native = self._make_native, None
            self._native = make(client)

    def list(self, start: Mapping[str, Any]) -> Page:
        """Return up to 1,000 names, from the `start` that the page before has told."""
        # Where only the first version is known, nobody tells a token.
        version = "list_objects" if "Marker" in start else "list_objects_v2"
        request = getattr(self.client, version)

        def read_page() -> tuple[Mapping[str, Any], Entries]:
            response: Mapping[str, Any] = {}
            with self.our_request() as read, suppress(*errors.UNREADABLE):
                response = request(Prefix=self.prefix, **self._place, **start)
            return response, read

        try:
            response, read = self.sender.send(read_page)
        except ClientError as error:
            if start or not errors.is_not_understood(error):
                raise
            return self.list({"Marker": ""})
        return _page_of(response, read, self.prefix)

    def head(self, name: str, parameters: dict[str, Any]) -> Remote | None:
        """Send a HEAD request for `name`, which is written with `parameters`."""
        answer = self.headers(name, parameters)
        if answer is None:
            return None
        remote = remote_of(answer)
        if remote.is_encrypted:
            self.learn(opaque=True)
        return remote

    def headers(self, name: str, parameters: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer to a HEAD request for `name`; `None` if there is none."""
        if not self.is_possible(name):
            return None
        needed = {k: v for k, v in parameters.items() if k in ALLOWED_DOWNLOAD_ARGS}
        key = self.prefix + name
        try:
            head = partial(self.client.head_object, Bucket=self.name, Key=key)
            answer = self.send(head, size=0, **needed)
        except ClientError as error:
            if errors.status_of(error) != 404:  # As 403, say, which is no answer.
                raise
            return None
        _check_is_answer(answer)
        if not answer.keys() & {"ETag", "LastModified"}:
            raise errors.AnswerError(what="What it answers to HeadObject is no object")
        return {**answer}

    def learn(self, *, opaque: bool) -> None:
        """Note whether an ETag was opaque: one that was is enough for the others."""
        self.has_opaque_etags = opaque or bool(self.has_opaque_etags)
        self.has_md5_etags |= not opaque

    def put(self, name: str, payload: Payload) -> Stored:
        """Upload `payload` as `name`; where ETags are opaque, with its fingerprint."""
        try:
            name.encode()
        except UnicodeEncodeError:
            text = "its name is not UTF-8, as S3's keys are; rename the file"
            raise OSError(text) from None
        tagged = payload.has_opaque_etag or bool(self.has_opaque_etags)
        if payload.body is None:
            return self._put_stream(name, payload, tagged)
        put = partial(self._put_body, self.prefix + name, payload, tagged)
        return self.sender.send(put, len(payload.body))

    def _put_body(self, key: str, payload: Payload, tagged: bool) -> Stored:
        """Upload a body that fits into one request, in one attempt."""
        etag, error = None, None
        native = None if tagged else self._native
        if native and (request := native.prepared(key, payload)):
            self.log.add("PUT")
            etag, error = native.put(request)
        if etag is None:
            etag = self._put_small(key, payload, tagged)
            if native and error:
                native.was_mended(error)
        if etag != payload.body_md5 and not (tagged or error):
            # Unforeseen; or it was damaged, if the server compared no Content-MD5.
            etag = self._put_small(key, payload, tagged=True)
        if not payload.has_opaque_etag:
            self.learn(opaque=etag != payload.body_md5)
        return Stored(etag, len(payload.body or b""))

    def _put_small(self, key: str, payload: Payload, tagged: bool) -> str:
        parameters = write_parameters(payload, tagged)
        body = payload.body or b""
        md5 = b64encode(bytes.fromhex(payload.body_md5)).decode()
        config: Any = self.client.meta.config
        # The checksum that botocore would add is one that comes in chunks, behind TLS.
        adds = getattr(config, "request_checksum_calculation", "") == "when_supported"
        if adds and not any(name.startswith("Checksum") for name in parameters):
            crc = zlib.crc32(body).to_bytes(4, "big")
            parameters["ChecksumCRC32"] = b64encode(crc).decode()
        with self.our_request():
            answer = self.client.put_object(
                Bucket=self.name, Key=key, Body=body, ContentMD5=md5, **parameters
            )
        _check_is_answer(answer)
        return normal_etag(answer.get("ETag"))

    def _put_stream(self, name: str, payload: Payload, tagged: bool) -> Stored:
        key, extra = self.prefix + name, write_parameters(payload, tagged)
        lost: ClientError | None = None
        stream = payload.upload_stream(self.sender.check)
        try:
            self._transfer(stream, key, extra, payload.config)
        except ClientError as error:
            if errors.code_of(error) != "NoSuchUpload":
                raise
            lost = error  # Perhaps it was completed, and only the answer was lost.
        head, tag = None, str(payload.fingerprint)
        with suppress(ClientError, BotoCoreError):
            head = self.head(name, payload.parameters)
        # Another program may have overwritten the object by now.
        is_ours = head and head.etag == stream.etag
        if head and (is_ours or head.fingerprint == tag or payload.has_etag(head.etag)):
            return Stored(head.etag, payload.size)
        if lost is not None:
            raise lost
        return Stored(stream.etag, payload.size)

    def _transfer(self, stream: Any, key: str, extra: Any, config: Any) -> None:
        # As boto3's upload_fileobj does, but each request is retried as all others are.
        client: Any = _RetryingClient(self.client, self)
        executor = TransferExecutor if config.use_threads else NonThreadedExecutor
        with TransferManager(client, config, executor_cls=executor) as manager:
            sized = [_Sized(stream.size)]
            uploaded = manager.upload(stream, self.name, key, extra, sized)
            try:
                uploaded.result()
            except (KeyboardInterrupt, SystemExit):
                self.sender.stop()  # The manager waits for its parts.
                raise

    def our_request(self) -> AbstractContextManager[Entries]:
        """Count the requests of this context; botocore retries none if we do."""
        return our_request(self.log, once=self.sender.retries)

    def send(
        self, method: Callable[..., _T], *, size: int | None = None, **arguments: Any
    ) -> _T:
        """Call `method`, which sends one request of `size` bytes, and retry it."""

        def attempt() -> _T:
            with self.our_request():
                return method(**arguments)

        return self.sender.send(attempt, size)

    def delete(self, names: Sequence[str]) -> Iterator[tuple[str, object]]:
        """Delete `names`; yield each with its error, if any; raise what meets all."""
        singly = [name for name in names if re.search(_NOT_XML, name)]
        many = sorted({*names}.difference(singly))
        while many and (batch := many[:1000]):
            try:
                failed = self._delete_many(batch)
            except errors.FAILURES as error:
                if errors.is_not_understood(error):
                    break
                if errors.concerns_bucket(error):
                    raise
                failed = dict.fromkeys(batch, error.with_traceback(None))
            yield from ((name, failed.get(name)) for name in batch)
            many = many[1000:]
        for name in (*many, *singly):
            try:
                delete, key = self.client.delete_object, self.prefix + name
                answer = self.send(delete, Key=key, **self._place)
                _check_is_answer(answer)
            except errors.FAILURES as error:
                if errors.concerns_bucket(error):
                    raise
                yield name, error.with_traceback(None)
            else:
                yield name, None

    def _delete_many(self, names: Sequence[str]) -> dict[str, Any]:
        objects: Any = [{"Key": self.prefix + name} for name in names]
        response = self.send(
            self.client.delete_objects,
            Delete={"Objects": objects, "Quiet": True},
            **self._place,
        )
        _check_is_answer(response)
        failed: dict[str, Any] = {}
        for each in response.get("Errors", ()):
            name = str(each.get("Key")).removeprefix(self.prefix)
            failed[name] = f"{each.get('Code')}: {each.get('Message')}"
        return failed

    def is_possible(self, name: str) -> bool:
        """Tell whether an object can have this name; that of a file may be no UTF-8."""
        try:
            # https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
            return len((self.prefix + name).encode()) <= 1024
        except UnicodeEncodeError:
            return False


class _Sized(BaseSubscriber):
    """Tells s3transfer the size of a stream, for the size of its parts."""

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self._size = size

    def on_queued(self, future: Any, **kwargs: Any) -> None:
        """Provide the size, if it is known."""
        if self._size is not None:
            future.meta.provide_transfer_size(self._size)


class TransferExecutor(ThreadPoolExecutor):
    """Runs a call in the caller's thread if no thread can be started.

    A container may limit the threads, and a process that ends starts none.
    """

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run ``fn(*args, **kwargs)`` once, and return its future."""
        future: Future[Any] = Future()
        turn = threading.Lock()

        def run_once() -> None:
            if turn.acquire(blocking=False):
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        try:
            super().submit(run_once)
        except RuntimeError:
            run_once()
        return future


class _RetryingClient:
    """A boto3 client whose requests for an upload are sent as those of `bucket`."""

    def __init__(self, client: Any, bucket: Bucket) -> None:
        self._client, self._bucket = client, bucket
        self._has_failed = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name == "abort_multipart_upload":
            return self._once(method)
        return self._retried(method) if name in _OF_UPLOADS else method

    def _once(self, method: Callable[..., Any]) -> Callable[..., Any]:
        # An upload that has failed need not be retried to be aborted.
        def request(**arguments: Any) -> Any:
            with self._bucket.our_request():
                return method(**arguments)

        return request

    def _retried(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def request(**arguments: Any) -> Any:
            body = arguments.get("Body")
            begin = body.tell() if body is not None else 0

            def attempt() -> Any:
                if self._has_failed:  # One part was given up, and so is the file.
                    raise CancelledError
                if body is not None:
                    body.seek(begin)
                return method(**arguments)

            try:
                return self._bucket.send(attempt)
            except BaseException:
                self._has_failed = True
                raise

        return request


def remote_of(answer: Mapping[str, Any]) -> Remote:
    """Return the object that the `answer` to a HEAD request describes."""
    # Some servers report the names of metadata in capitals.
    metadata = {k.lower(): v for k, v in answer.get("Metadata", {}).items()}
    encryption = str(answer.get("ServerSideEncryption", ""))
    encrypted = encryption.startswith("aws:kms") or "SSECustomerAlgorithm" in answer
    etag, fingerprint = normal_etag(answer.get("ETag")), metadata.get(FINGERPRINT, "")
    return Remote(etag, fingerprint, answer.get("ContentLength"), encrypted)


def _check_is_answer(answer: Any) -> None:
    """Raise `AnswerError` where a gateway's page stands in the place of an answer."""
    about = answer["ResponseMetadata"]
    is_page = "html" in about["HTTPHeaders"].get("content-type", "")
    if is_page and "ETag" not in answer and about["HTTPStatusCode"] != 204:
        raise errors.AnswerError(what="It answered with a web page")


def write_parameters(payload: Payload, tagged: bool) -> dict[str, Any]:
    """Return the parameters of an upload, `tagged` with the fingerprint or not."""
    parameters = {**payload.parameters}
    if tagged:
        tag = {FINGERPRINT: str(payload.fingerprint)}
        parameters["Metadata"] = {**parameters.get("Metadata", {}), **tag}
    return parameters


def _page_of(response: Mapping[str, Any], read: Entries, prefix: str) -> Page:
    """Return the page in `response` and what was `read` of it; or raise AnswerError."""
    found = read + [(e.get("Key"), e.get("ETag")) for e in response.get("Contents", ())]
    token = response.get("NextContinuationToken")
    last = response.get("NextMarker") or max((k for k, _ in found if k), default="")
    following = {"ContinuationToken": token} if token else {"Marker": last}
    more = response.get("IsTruncated", bool(token))
    # Of an answer of another kind boto3 makes a listing of nothing.
    is_listing = "KeyCount" in response or (bool(found) and "IsTruncated" in response)
    etags: dict[str, str] = {}
    for key, header in found:
        etag = normal_etag(header)
        if key and not key.startswith(prefix):
            raise errors.AnswerError(what=f"It lists {key!r} below {prefix!r}")
        if not key or etags.setdefault(key.removeprefix(prefix), etag) != etag:
            is_listing = False
    if not is_listing or (more and not any(following.values())):
        raise errors.AnswerError(what="Its listing is none")
    return Page(etags, following if more else {})
