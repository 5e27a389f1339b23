"""What botocore would send, learnt from a request that is caught before it leaves.

The key, the body's length and MD5, and the signature differ from file to file; all else
that botocore works out, endpoint, addressing, headers, is the same for all files that
are written with the same parameters. It is asked for once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore.awsrequest import AWSResponse

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_PROBE = "collectfast-probe"
# Of no use for the next request, or made anew for it.
_OWN = {
    "amz-sdk-invocation-id",
    "amz-sdk-request",
    "authorization",
    "content-length",
    "content-md5",
    "expect",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-security-token",
    # CRCs of the body, by default since boto3 1.36; the MD5 does their work.
    "transfer-encoding",
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc64nvme",
    "x-amz-decoded-content-length",
    "x-amz-sdk-checksum-algorithm",
    "x-amz-trailer",
}


@dataclass(frozen=True, slots=True)
class Template:
    """What botocore sends with one set of parameters, whatever key and body."""

    scheme: str
    host: str
    path: str  # up to the key
    headers: dict[str, str]
    region: str


class Templates:
    """The templates of one boto3 client's requests to one bucket, for any thread."""

    def __init__(self, client: S3Client, bucket_name: str) -> None:
        """Learn from `client` how to speak to `bucket_name`."""
        self._client: Any = client
        self._bucket_name = bucket_name
        self._known: dict[str, Template | None] = {}
        self._lock = threading.Lock()
        # Registered for good: botocore's emitter caches what is registered, so that
        # what comes and goes may be seen, or not be seen, by other threads.
        self._client.meta.events.register_first(
            "before-send.s3", _catch, unique_id="collectfast-catch"
        )

    def of(
        self, operation: str, headers_id: str, parameters: dict[str, Any]
    ) -> Template | None:
        """Return the template of `operation`; `None` where only boto3 can send it.

        `headers_id` tells one set of `parameters` from another.
        """
        name = f"{operation} {headers_id}"
        if name not in self._known:
            with self._lock:
                if name not in self._known:
                    self._known[name] = self._learn(operation, parameters)
        return self._known[name]

    def _learn(self, operation: str, parameters: dict[str, Any]) -> Template | None:
        """Make botocore prepare a request, and keep it from being sent."""
        # A directory bucket needs a session that only boto3 keeps.
        if self._bucket_name.endswith("--x-s3"):
            return None
        caught: list[Any] = []
        _catching.caught = caught
        try:
            getattr(self._client, operation)(
                Bucket=self._bucket_name, Key=_PROBE, **parameters
            )
        finally:
            _catching.caught = None
        if not caught or (operation == "head_object" and self._is_watched(caught[0])):
            return None
        return _template_of(caught[0])

    def _is_watched(self, request: Any) -> bool:
        """Tell whether somebody else answers, asked with what changes nothing."""
        event = "before-send.s3.HeadObject"
        answers = self._client.meta.events.emit(event, request=request)
        return any(handler is not _catch for handler, _ in answers)


_catching = threading.local()


def _catch(request: Any, **_: Any) -> Any:
    """Answer in the server's place, in a thread that makes a template."""
    caught = getattr(_catching, "caught", None)
    if caught is None:
        return None
    caught.append(request)
    headers: Any = {"ETag": '"-"'}
    return AWSResponse(request.url, 200, headers, _Nothing())


class _Nothing:
    """The body of an answer that has none."""

    def stream(self) -> list[bytes]:
        return []


def _template_of(request: Any) -> Template | None:
    """Read `request`; `None` if it is not signed in the one way that is known here."""
    headers = {name.lower(): _text(value) for name, value in request.headers.items()}
    algorithm, _, rest = headers.get("authorization", "").partition(" ")
    url, _, extra = request.url.partition(_PROBE)
    if algorithm != "AWS4-HMAC-SHA256" or extra:
        return None
    credential = rest.partition("Credential=")[2].partition(",")[0]
    region = credential.split("/")[-3]
    kept = {name: value for name, value in headers.items() if name not in _OWN}
    # The framing of those CRCs is none that a reader should know of.
    encodings = kept.pop("content-encoding", "").split(",")
    real = [each for each in encodings if each not in ("", "aws-chunked")]
    kept |= {"content-encoding": ",".join(real)} if real else {}
    parts = urlsplit(url)
    default_port = {"http": 80, "https": 443}.get(parts.scheme)
    plain_host = parts.port is None or parts.port == default_port
    host = parts.hostname if plain_host else parts.netloc
    return Template(parts.scheme, host or "", parts.path, kept, region)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
