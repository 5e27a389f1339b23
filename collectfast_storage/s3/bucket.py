"""A bucket: its requests, and the objects in their responses."""

from __future__ import annotations

import hashlib
import re
import threading
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import cached_property, partial
from io import BytesIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.constants import ALLOWED_DOWNLOAD_ARGS
from s3transfer.futures import NonThreadedExecutor
from s3transfer.manager import TransferManager
from s3transfer.subscribers import BaseSubscriber

from collectfast_storage.decision import Remote
from collectfast_storage.fingerprint import (
    FINGERPRINT,
    etag_of_parts,
    looks_like_md5,
    normal_etag,
)
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

    from collectfast_storage.s3.obstore import ObstoreUploader

_T = TypeVar("_T")

# s3transfer calls these methods of the client for an upload.
_UPLOAD_METHODS = (
    "put_object",
    "create_multipart_upload",
    "upload_part",
    "complete_multipart_upload",
)
# Parameters for writing that all other requests need too.
_SHARED_PARAMETERS = ("ExpectedBucketOwner", "RequestPayer")
_MOST_DELETES = 1000  # per request
# XML cannot contain these characters, not even escaped: https://www.w3.org/TR/xml/#charsets
_NOT_XML = "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"


class Page(NamedTuple):
    """A page of a listing: names with their ETags, and where the next page starts."""

    etags: dict[str, str]
    following: dict[str, Any]  # empty after the last page


class Stored(NamedTuple):
    """An object that was uploaded."""

    etag: str  # empty if the response had none
    size: int  # in bytes, as sent


class Bucket:
    """The objects below a prefix, by their names relative to it.

    The methods raise botocore's errors.
    """

    def __init__(
        self,
        name: str,
        prefix: str,  # empty, or with a slash at its end
        sender: RetryingSender,
        connect: Callable[[], S3Client],  # returns a client that any thread may use
        connect_obstore: Callable[[S3Client], ObstoreUploader | None] | None = None,
        parameters: Mapping[str, Any] = MappingProxyType({}),  # for writing
    ) -> None:
        self.name = name
        self.prefix = prefix
        self.sender = sender
        self._connect = connect
        shared = {k: parameters[k] for k in _SHARED_PARAMETERS if k in parameters}
        self._shared_parameters: Any = {"Bucket": name, **shared}
        self._connect_obstore = connect_obstore
        self._obstore: ObstoreUploader | None = None
        self.log = RequestLog()
        self._before_others: Callable[[], object] | None = None
        # Whether the ETags of new objects are not MD5s, as with KMS. None: not known.
        self.has_opaque_etags: bool | None = None
        # Whether an unencrypted object has an ETag that is the MD5 of its content.
        self.has_md5_etags = False

    @cached_property
    def client(self) -> S3Client:
        """The client, created in the first thread that uses it."""
        client = self._connect()
        register(client)
        if self._before_others is not None:
            watch(client, self._before_others)
        return client

    def watch(self, before_others: Callable[[], object]) -> None:
        """Call `before_others` before the client's requests for other callers."""
        self._before_others = before_others

    def close(self) -> None:
        """Stop watching the client."""
        if self._before_others is not None and "client" in vars(self):
            unwatch(self.client, self._before_others)

    def connect(self) -> None:
        """Create the client in this thread, and the obstore uploader if possible.

        A mock such as moto answers boto3 without a network, and obstore would bypass
        it. Therefore obstore is used only after boto3 has reached the network.
        """
        client = self.client
        if self._connect_obstore and self.log.has_reached_network:
            self._obstore = self._connect_obstore(client)
            self._connect_obstore = None

    def list(self, start: Mapping[str, Any]) -> Page:
        """Return up to 1,000 names; `start` is `following` of the previous page."""
        # A server that supports only the first version returns no token.
        version = "list_objects" if "Marker" in start else "list_objects_v2"
        request = getattr(self.client, version)

        def read_page() -> tuple[Mapping[str, Any], Entries]:
            response: Mapping[str, Any] = {}
            with self.our_request() as read, suppress(*errors.PARSE_ERRORS):
                response = request(
                    Prefix=self.prefix, **self._shared_parameters, **start
                )
            return response, read

        try:
            response, read = self.sender.send(read_page)
        except ClientError as error:
            if start or not errors.is_unsupported_request(error):
                raise
            return self.list({"Marker": ""})
        return _page_of(response, read, self.prefix)

    def head(self, name: str, parameters: dict[str, Any]) -> Remote | None:
        """Send a HEAD request for `name`, which is written with `parameters`."""
        response = self.headers(name, parameters)
        if response is None:
            return None
        remote = remote_of(response)
        if remote.is_encrypted:
            self.note_etag(opaque=True)
        return remote

    def headers(self, name: str, parameters: dict[str, Any]) -> dict[str, Any] | None:
        """Return the response to a HEAD request; `None` if there is no object."""
        if not self.is_valid_name(name):
            return None
        response = self._get(self.client.head_object, name, parameters)
        if response is None:
            return None
        _reject_web_page(response)
        if not response.keys() & {"ETag", "LastModified"}:
            problem = "The response to HeadObject does not describe an object"
            raise errors.AnswerError(problem=problem)
        return {**response}

    def read(self, name: str, parameters: dict[str, Any]) -> bytes | None:
        """Return the content of `name`, which is written with `parameters`.

        It is `None` if there is no object.
        """

        def get(**arguments: Any) -> bytes:
            return self.client.get_object(**arguments)["Body"].read()

        return self._get(get, name, parameters)

    def _get(
        self, method: Callable[..., _T], name: str, parameters: dict[str, Any]
    ) -> _T | None:
        """Call `method` for the object `name`; return `None` if there is none."""
        get = partial(method, Bucket=self.name, Key=self.prefix + name)
        try:
            return self.send(get, size=0, **read_parameters(parameters))
        except ClientError as error:
            if errors.status_of(error) != 404:  # Others, such as 403, prove nothing.
                raise
            return None

    def note_etag(self, *, opaque: bool) -> None:
        """Note that an ETag was an MD5 or `opaque`; one of the latter is enough.

        Then each upload gets a fingerprint.
        """
        self.has_opaque_etags = opaque or bool(self.has_opaque_etags)
        self.has_md5_etags |= not opaque

    def put(self, name: str, payload: Payload) -> Stored:
        """Upload `payload` as `name`; if ETags are opaque, with its fingerprint."""
        try:
            name.encode()
        except UnicodeEncodeError:
            text = "the file name is not valid UTF-8, which S3 requires; rename it"
            raise OSError(text) from None
        tagged = payload.has_opaque_etag or bool(self.has_opaque_etags)
        if payload.body is None:
            return self._put_stream(name, payload, tagged)
        put = partial(self._put_body, self.prefix + name, payload, tagged)
        return self.sender.send(put, len(payload.body))

    def _put_body(self, key: str, payload: Payload, tagged: bool) -> Stored:
        """Upload a body that fits into one request, without retries."""
        etag, error = None, None
        obstore = None if tagged else self._obstore
        if obstore and (request := obstore.request_for(key, payload)):
            self.log.add("PUT")
            etag, error = obstore.put(request)
        if etag is None:
            etag = self._put_by_boto3(key, payload, tagged)
            if obstore and error:
                obstore.note_success_of_boto3(error)
        if etag != payload.body_md5 and not (tagged or error):
            # ETags are opaque, or the upload was damaged, because not all servers
            # compare the Content-MD5.
            etag = self._put_by_boto3(key, payload, tagged=True)
        if not payload.has_opaque_etag:
            self.note_etag(opaque=etag != payload.body_md5)
        return Stored(etag, len(payload.body or b""))

    def _put_by_boto3(self, key: str, payload: Payload, tagged: bool) -> str:
        parameters = write_parameters(payload, tagged)
        body = payload.body or b""
        md5 = b64encode(bytes.fromhex(payload.body_md5)).decode()
        parameters |= _checksum(self.client, parameters, BytesIO(body))
        put = partial(self.client.put_object, Bucket=self.name, Key=key)
        response = self.call(put, Body=body, ContentMD5=md5, **parameters)
        _reject_web_page(response)
        return normal_etag(response.get("ETag"))

    def _put_stream(self, name: str, payload: Payload, tagged: bool) -> Stored:
        key, extra = self.prefix + name, write_parameters(payload, tagged)
        lost: ClientError | None = None
        stream = payload.upload_stream(self.sender.check)
        etag = ""
        try:
            etag = self._transfer(stream, key, extra, payload.config)
        except ClientError as error:
            if errors.code_of(error) != "NoSuchUpload":
                raise
            lost = error  # Perhaps only the response to the completion was lost.
        head, tag = None, str(payload.fingerprint)
        with suppress(ClientError, BotoCoreError):
            head = self.head(name, payload.parameters)
        # Another program may have overwritten the object since.
        has_etag = head and head.etag == stream.etag
        is_ours = head and (has_etag or head.fingerprint == tag)
        # A server that knows no trailing checksums may store the chunks as they came.
        may_differ = head and not has_etag and (is_ours or head.etag == etag != "")
        if head and may_differ and head.size not in (None, stream.bytes_read):
            raise errors.LengthError(stored=head.size, sent=stream.bytes_read)
        if head and (is_ours or payload.has_etag(head.etag)):
            return Stored(head.etag, payload.size)
        if lost is not None:
            raise lost
        return Stored(stream.etag, payload.size)

    def _transfer(self, stream: Any, key: str, extra: Any, config: Any) -> str:
        """Upload `stream`; return the ETag that the response gives, if any."""
        # This is boto3's upload_fileobj, but the bucket's sender retries its requests.
        client: Any = _RetryingClient(self.client, self)
        executor = TransferExecutor if config.use_threads else NonThreadedExecutor
        with TransferManager(client, config, executor_cls=executor) as manager:
            sized = [_Size(stream.size)]
            uploaded = manager.upload(stream, self.name, key, extra, sized)
            try:
                uploaded.result()
            except (KeyboardInterrupt, SystemExit):
                self.sender.stop()  # The manager waits for its parts.
                raise
        return str(client.etag)

    def our_request(self) -> AbstractContextManager[Entries]:
        """Count the requests of this context, which botocore must not retry."""
        return our_request(self.log, once=self.sender.retries)

    def call(self, method: Callable[..., _T], **arguments: Any) -> _T:
        """Call `method`, which sends a request, without retries."""
        with self.our_request():
            return method(**arguments)

    def send(
        self, method: Callable[..., _T], *, size: int | None = None, **arguments: Any
    ) -> _T:
        """Call `method`, which sends a request of `size` bytes, with retries."""
        return self.sender.send(partial(self.call, method, **arguments), size)

    def delete(self, names: Sequence[str]) -> Iterator[tuple[str, object]]:
        """Delete `names`; yield each with its error, if any.

        Raises an error that would affect all deletes.
        """
        singly = [name for name in names if re.search(_NOT_XML, name)]
        many = sorted({*names}.difference(singly))
        while many and (batch := many[:_MOST_DELETES]):
            try:
                failed = self._delete_many(batch)
            except errors.REQUEST_ERRORS as error:
                if errors.is_unsupported_request(error):
                    break
                if errors.affects_whole_bucket(error):
                    raise
                failed = dict.fromkeys(batch, error.with_traceback(None))
            yield from ((name, failed.get(name)) for name in batch)
            many = many[_MOST_DELETES:]
        for name in (*many, *singly):
            try:
                delete, key = self.client.delete_object, self.prefix + name
                _reject_web_page(self.send(delete, Key=key, **self._shared_parameters))
            except errors.REQUEST_ERRORS as error:
                if errors.affects_whole_bucket(error):
                    raise
                yield name, error.with_traceback(None)
            else:
                yield name, None

    def _delete_many(self, names: Sequence[str]) -> dict[str, Any]:
        objects: Any = [{"Key": self.prefix + name} for name in names]
        response = self.send(
            self.client.delete_objects,
            Delete={"Objects": objects, "Quiet": True},
            **self._shared_parameters,
        )
        _reject_web_page(response)
        failed: dict[str, Any] = {}
        for each in response.get("Errors", ()):
            name = str(each.get("Key")).removeprefix(self.prefix)
            failed[name] = f"{each.get('Code')}: {each.get('Message')}"
        return failed

    def is_valid_name(self, name: str) -> bool:
        """Return whether an object can have the name of a file."""
        try:
            # https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
            return len((self.prefix + name).encode()) <= 1024
        except UnicodeEncodeError:  # A file name need not be UTF-8.
            return False


class _Size(BaseSubscriber):
    """The size of a stream, from which s3transfer computes the size of the parts."""

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self._size = size

    def on_queued(self, future: Any, **kwargs: Any) -> None:
        """Provide the size, if it is known."""
        if self._size is not None:
            future.meta.provide_transfer_size(self._size)


class TransferExecutor(ThreadPoolExecutor):
    """A thread pool that runs calls in the caller's thread if it cannot start one.

    A container may limit the number of threads, and a process that is ending cannot
    start threads.
    """

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run ``fn(*args, **kwargs)`` once, and return its future."""
        future: Future[Any] = Future()
        once = threading.Lock()

        def run_once() -> None:
            if once.acquire(blocking=False):
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
    """A boto3 client for s3transfer, with the retries of `bucket`."""

    def __init__(self, client: Any, bucket: Bucket) -> None:
        self._client, self._bucket = client, bucket
        self._has_failed = False
        self.etag = ""  # in the response to the last request

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name == "abort_multipart_upload":
            # It follows a failure, and another failure would not matter.
            return partial(self._bucket.call, method)
        return partial(self._send, method) if name in _UPLOAD_METHODS else method

    def _send(self, method: Callable[..., Any], **arguments: Any) -> Any:
        body = arguments.get("Body")
        begin = body.tell() if body is not None else 0
        if body is not None:
            arguments |= _checksum(self._client, arguments, body)

        def attempt() -> Any:
            if self._has_failed:  # Another part has failed, so the file has.
                raise CancelledError
            if body is not None:
                body.seek(begin)
            return method(**arguments)

        try:
            response = self._bucket.send(attempt)
        except BaseException:
            self._has_failed = True
            raise
        self.etag = normal_etag(response.get("ETag"))
        if not self.etag and "MultipartUpload" in arguments:  # as on Ceph 16
            self.etag = _etag_of_parts(arguments["MultipartUpload"]["Parts"])
        return response


def remote_of(response: Mapping[str, Any]) -> Remote:
    """Return the object that the `response` to a HEAD request describes."""
    metadata = metadata_of(response)
    encryption = str(response.get("ServerSideEncryption", ""))
    encrypted = encryption.startswith("aws:kms") or "SSECustomerAlgorithm" in response
    etag, fingerprint = normal_etag(response.get("ETag")), metadata.get(FINGERPRINT, "")
    return Remote(etag, fingerprint, response.get("ContentLength"), encrypted)


def metadata_of(response: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata in `response`. Some servers return its names in capitals."""
    return {k.lower(): v for k, v in (response.get("Metadata") or {}).items()}


def read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the `parameters` of an upload that reading the object needs."""
    return {k: v for k, v in parameters.items() if k in ALLOWED_DOWNLOAD_ARGS}


def _reject_web_page(response: Any) -> None:
    """Raise `AnswerError` if a gateway has answered with a web page.

    OpenStack Swift declares its own responses as HTML too, but they have a request id.
    """
    metadata = response["ResponseMetadata"]
    headers = metadata["HTTPHeaders"]
    is_page = "html" in headers.get("content-type", "")
    is_from_s3 = "ETag" in response or "x-amz-request-id" in headers
    if is_page and not is_from_s3 and metadata["HTTPStatusCode"] != 204:
        raise errors.AnswerError(problem="The response is a web page")


def _checksum(client: Any, parameters: Mapping[str, Any], body: Any) -> dict[str, str]:
    """Return the parameter with the checksum of `body`, from its position on.

    Over TLS, botocore would send the body in chunks, with a trailing checksum, which
    some servers refuse. The result is empty if no checksum is needed, if `parameters`
    contain it, or for the algorithms that only botocore computes.
    """
    config, names = client.meta.config, {"ChecksumAlgorithm", "ChecksumType"}
    if any(name.startswith("Checksum") for name in parameters.keys() - names):
        return {}
    adds = getattr(config, "request_checksum_calculation", "") == "when_supported"
    algorithm = parameters.get("ChecksumAlgorithm", "CRC32" if adds else "").upper()
    chunks = iter(partial(body.read, 1024 * 1024), b"")
    if algorithm == "CRC32":
        crc = 0
        for chunk in chunks:
            crc = zlib.crc32(chunk, crc)
        digest = crc.to_bytes(4, "big")
    elif algorithm in ("SHA1", "SHA256"):
        hashed = hashlib.new(algorithm, usedforsecurity=False)
        for chunk in chunks:
            hashed.update(chunk)
        digest = hashed.digest()
    else:
        return {}
    return {f"Checksum{algorithm}": b64encode(digest).decode()}


def _etag_of_parts(parts: list[dict[str, Any]]) -> str:
    """Return the ETag of a multipart upload whose `parts` have these ETags."""
    etags = [normal_etag(part.get("ETag")) for part in parts]
    if not all(map(looks_like_md5, etags)):
        return ""
    return etag_of_parts([bytes.fromhex(etag) for etag in etags])


def write_parameters(payload: Payload, tagged: bool) -> dict[str, Any]:
    """Return the parameters of an upload, `tagged` with the fingerprint or not."""
    parameters = {**payload.parameters}
    if tagged:
        tag = {FINGERPRINT: str(payload.fingerprint)}
        parameters["Metadata"] = {**parameters.get("Metadata", {}), **tag}
    return parameters


def _page_of(response: Mapping[str, Any], read: Entries, prefix: str) -> Page:
    """Return the page of `response`, whose entries may have been `read` before."""
    found = read + [(e.get("Key"), e.get("ETag")) for e in response.get("Contents", ())]
    token = response.get("NextContinuationToken")
    last = response.get("NextMarker") or max((k for k, _ in found if k), default="")
    following = {"ContinuationToken": token} if token else {"Marker": last}
    is_truncated = response.get("IsTruncated", bool(token))
    # boto3 parses another kind of response as an empty listing.
    is_listing = "KeyCount" in response or (bool(found) and "IsTruncated" in response)
    etags: dict[str, str] = {}
    for key, header in found:
        etag = normal_etag(header)
        if key and not key.startswith(prefix):
            problem = f"The listing of prefix {prefix!r} contains the key {key!r}"
            raise errors.AnswerError(problem=problem)
        if not key or etags.setdefault(key.removeprefix(prefix), etag) != etag:
            is_listing = False
    if not is_listing or (is_truncated and not any(following.values())):
        raise errors.AnswerError(problem="The response to ListObjects is not a listing")
    return Page(etags, following if is_truncated else {})
