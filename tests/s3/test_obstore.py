"""Uploads through obstore, if it is installed."""

from __future__ import annotations

import gc
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.credentials import Credentials
from django.core.files.base import ContentFile
from django.core.management.base import CommandError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from collectfast_storage import CollectfastS3StaticStorage
from collectfast_storage.congestion import Congestion
from collectfast_storage.payload import Payload
from collectfast_storage.reporting import Progress
from collectfast_storage.retrying import RetryingSender
from collectfast_storage.s3.bucket import Bucket
from collectfast_storage.s3.obstore import ObstoreUploader, obstore_uploader
from tests.support import certificates
from tests.support.faults import Refusal
from tests.support.names import NAMES
from tests.support.proxy import Handler, Proxy, Request, proxy, refuse
from tests.support.servers import Server
from tests.support.site import Site

pytest.importorskip("obstore", reason="obstore is not installed")

# One attempt for each request, so that the counts do not depend on boto3's retries.
HASTY = Config(retries={"total_max_attempts": 1})


def _sender() -> RetryingSender:
    return RetryingSender("tests", Congestion(8, 60), 2, Progress())


@dataclass
class ObstoreFault:
    """A proxy fault that refuses PUTs of obstore, if `harms` picks their number.

    The numbers start from 0.
    """

    harms: Callable[[int], bool] = lambda number: True
    answer: tuple[int, str, str] = (400, "InvalidRequest", "injected")
    numbers: Iterator[int] = field(default_factory=count)

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "PUT" or _is_botos(request):
            return False
        harmed = self.harms(next(self.numbers))
        if harmed:
            handler.error(*self.answer)
        return harmed


def _is_botos(request: Request) -> bool:
    return "boto" in request.headers["user-agent"].lower()


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged messages about obstore."""
    return [message for message in caplog.messages if "obstore" in message]


@dataclass
class Place:
    """A location to which boto3 and obstore upload, through the proxy."""

    server: Server
    proxy: Proxy
    prefix: str

    def __post_init__(self) -> None:
        self.credentials = Credentials(self.server.access_key, self.server.secret_key)
        self.client = boto3.client(
            "s3",
            endpoint_url=self.proxy.endpoint,
            aws_access_key_id=self.server.access_key,
            aws_secret_access_key=self.server.secret_key,
            region_name=self.server.region,
            config=HASTY,
            **self.proxy.trust,
        )

    def native(self, client: Any = None) -> ObstoreUploader | None:
        return obstore_uploader(
            self.client,
            self.server.bucket,
            lambda: self.credentials,
            verify=self.proxy.trust["verify"],
            is_forked=False,
        )

    def bucket(self, native: Callable[[Any], ObstoreUploader | None] | None) -> Bucket:
        name = self.server.bucket
        bucket = Bucket(name, self.prefix, _sender(), lambda: self.client, native)
        bucket.head("nothing", {})  # A request must succeed first.
        bucket.connect()
        return bucket

    def head(self, name: str) -> dict[str, str]:
        """Return all stored headers, without those that vary between requests."""
        answer = self.client.head_object(
            Bucket=self.server.bucket, Key=self.prefix + name
        )
        headers: dict[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
        own = ("date", "last-modified", "x-amz-request-id")
        return {k: v for k, v in headers.items() if k not in own}

    def outcome(self, bucket: Bucket, name: str, parameters: dict[str, Any]) -> object:
        """Upload and return the stored content and headers, or the exception's type."""
        try:
            bucket.put(name, _payload(parameters))
        except Exception as error:
            return type(error)
        key = {"Bucket": self.server.bucket, "Key": self.prefix + name}
        content = self.client.get_object(**key)["Body"].read()
        headers = self.head(name)
        self.client.delete_object(**key)
        return content, headers


@pytest.fixture
def place(server: Server, counting: Proxy, bucket: Any) -> Place:
    return Place(server, counting, bucket.key(""))


def _payload(parameters: dict[str, Any]) -> Payload:
    return Payload(BytesIO(b"x"), parameters, TransferConfig())


# Uploads.


def test_obstore_uploads_contents_and_headers_like_boto3(site: Site) -> None:
    """obstore uploads files with the headers that are configured.

    The next run uploads nothing.
    """
    site.options["gzip"] = True
    site.options["object_parameters"] = {
        "CacheControl": "max-age=60",
        "ContentDisposition": "inline",
        "ContentLanguage": "en",
        "Metadata": {"a": "b"},
    }
    files = site.write_many(20)
    deploy = site.collect()
    assert site.put_by_obstore() == sorted(files)
    assert deploy.requests == {"LIST": 1, "PUT": len(files)}
    stored = site.bucket.get("dir0/file0.css")
    assert stored["ContentType"] == "text/css"
    assert stored["ContentEncoding"] == "gzip"
    assert stored["CacheControl"] == "max-age=60"
    assert stored["ContentDisposition"] == "inline"
    assert stored["ContentLanguage"] == "en"
    assert stored["Metadata"] == {"a": "b"}
    assert site.collect().requests == {"LIST": 1}


@pytest.mark.needs("newlines in keys")
@pytest.mark.needs("a listing with control characters")
def test_unusual_names_are_stored_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Unusual names are stored once; boto3 uploads those with control characters."""
    for name in NAMES:
        site.write(name, name)
    deploy = site.collect("--no-default-ignore")
    assert site.bucket.files() == {name: name.encode() for name in NAMES}
    assert deploy.put == sorted(NAMES)
    control = {chr(code) for code in (*range(32), 127)}
    assert site.put_by_obstore() == sorted(n for n in NAMES if not control & {*n})
    assert _said(caplog) == []


def test_client_does_not_outlast_a_run(site: Site) -> None:
    """The client of obstore is released after a run.

    A program that saves in batches would need more memory each time otherwise.
    """
    site.write_many(3)
    # Threads of failed runs in earlier tests may still have clients.
    before = [each for each in gc.get_objects() if type(each) is ObstoreUploader]
    site.collect()
    assert site.put_by_obstore() != []
    gc.collect()
    after = [each for each in gc.get_objects() if type(each) is ObstoreUploader]
    assert [each for each in after if not any(each is old for old in before)] == []


def test_obstore_uploads_to_the_endpoint_of_boto3(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The site's options take precedence over the environment, which obstore reads."""
    elsewhere = "http://127.0.0.1:1"
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, elsewhere)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "another")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_BUCKET", "AWS_BUCKET_NAME"):
        monkeypatch.setenv(name, "another")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    monkeypatch.setenv("NO_PROXY", "example.com")
    files = site.write_many(5)
    with caplog.at_level("INFO", "collectfast_storage"):
        site.collect()
    assert site.bucket.files() == files
    # Old releases support neither the first variable nor an option that overrides it.
    too_old = ["obstore is not used: UnknownConfigurationKeyError."]
    assert _said(caplog) in ([], too_old)
    assert site.put_by_obstore() == ([] if _said(caplog) else sorted(files))


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "aws-global"])
@pytest.mark.parametrize("style", ["path", "virtual"])
def test_obstore_addresses_the_bucket_like_boto3(
    counting: Proxy, style: Any, region: str
) -> None:
    """obstore uses the host, the path and the signing region that boto3 uses.

    The bucket is a part of the path or of the host name.
    """
    # A host below another that needs no name server: the bucket's is 127.0.0.1.
    name, host = ("127", "0.0.1") if style == "virtual" else ("tests", "127.0.0.1")
    client = boto3.client(
        "s3",
        endpoint_url=f"https://{host}:{counting.server_port}",
        region_name=region,
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=HASTY.merge(Config(s3={"addressing_style": style})),
        **counting.trust,
    )

    def native(client: Any) -> ObstoreUploader | None:
        credentials, verify = Credentials("a", "b"), counting.trust["verify"]
        return obstore_uploader(
            client, name, lambda: credentials, verify=verify, is_forked=False
        )

    counting.fault = _take
    for way in (native, None):
        bucket = Bucket(name, "static/", _sender(), lambda: client, way)
        bucket.put("first", _payload({}))  # boto3 uploads the first file.
        bucket.connect()
        bucket.put("é/a b.css", _payload({}))
    _, ours, _, theirs = counting.requests
    assert [_is_botos(request) for request in (ours, theirs)] == [False, True]
    assert ours.path == theirs.path
    assert ours.path.startswith("/static/" if style == "virtual" else "/tests/static/")
    assert ours.headers["host"] == theirs.headers["host"]
    scopes = [r.headers["authorization"].split(",")[0] for r in (ours, theirs)]
    assert scopes[0] == scopes[1]


def _take(handler: Handler, request: Request, body: bytes) -> bool:
    """Answer a PUT like a server, without storing anything."""
    handler.answer(200, b"", [("ETag", f'"{hashlib.md5(body).hexdigest()}"')])
    return True


# Uploads that boto3 makes instead.


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"StorageClass": "STANDARD"}, "StorageClass"),
        ({"ACL": "private", "Tagging": "a=b"}, "ACL, Tagging"),
        ({"Metadata": {"Content-Type": "x"}}, "Metadata Content-Type"),
        ({"Metadata": {"content_type": "x"}}, "Metadata content_type"),
        ({"Metadata": {"ContentType": "x"}}, "Metadata ContentType"),
        ({"Metadata": {"cache-control": "x"}}, "Metadata cache-control"),
        ({"Metadata": {"CACHE-CONTROL": "x"}}, "Metadata CACHE-CONTROL"),
        ({"Metadata": {"contentdisposition": "x"}}, "Metadata contentdisposition"),
        ({"Metadata": {"Content-Encoding": "x"}}, "Metadata Content-Encoding"),
        ({"Metadata": {"content-language": "x"}}, "Metadata content-language"),
        ({"Metadata": {"storage-class": "x"}}, "Metadata storage-class"),
        ({"Metadata": {"StorageClass": "x"}}, "Metadata StorageClass"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_with_unsupported_parameters_are_uploaded_by_boto3(
    site: Site,
    parameters: dict[str, Any],
    named: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """boto3 uploads files with parameters that obstore lacks.

    The log names these parameters once.
    """
    site.options["object_parameters"] = parameters
    files = site.write_many(3)
    with caplog.at_level("INFO", "collectfast_storage"):
        site.collect()
    line = f"boto3 uploads files with {named}, because obstore cannot."
    assert _said(caplog) == [line]
    assert site.put_by_obstore() == []
    assert site.bucket.files() == files
    metadata = {k.lower(): v for k, v in parameters.get("Metadata", {}).items()}
    assert site.bucket.get("dir0/file0.css")["Metadata"] == metadata


class OwnConnection(CollectfastS3StaticStorage):
    @property
    def connection(self) -> Any:
        return super().connection


# Changes of a site, with the reason that the log gives for each.
Change = Callable[[Site, pytest.MonkeyPatch], object]
VARIABLES = {
    "AWS_CHECKSUM_ALGORITHM": "SHA256",
    "AWS_REQUEST_PAYER": "requester",
    "AWS_S3_EXPRESS": "true",
    "AWS_SERVER_SIDE_ENCRYPTION": "AES256",
    "AWS_SKIP_SIGNATURE": "true",
    "AWS_SSE_KMS_KEY_ID": "key",
    "AWS_UNSIGNED_PAYLOAD": "true",
}


def _variable(name: str, value: str = "") -> Change:
    return lambda site, patch: patch.setenv(name, value or site.proxy.endpoint)


def _proxies(site: Site) -> dict[str, str]:
    return {"http": site.proxy.endpoint}


def _certificate(site: Site) -> str:
    return str(certificates.make(site.root, "client.example.com")[1])


PROXIED: dict[str, Change] = {
    "http_proxy": _variable("http_proxy"),
    "HTTP_PROXY": _variable("HTTP_PROXY"),
    "HTTPS_PROXY": _variable("HTTPS_PROXY"),
    "ALL_PROXY": _variable("ALL_PROXY"),
    "proxies": lambda site, _: site.options.update(proxies=_proxies(site)),
    "client_config": lambda site, _: site.options.update(
        client_config=Config(proxies=_proxies(site))
    ),
}
SPECIAL: dict[str, tuple[Change, str]] = {
    "client_cert": (
        lambda site, _: site.options.update(
            client_config=Config(client_cert=_certificate(site))
        ),
        "a client certificate is configured",
    ),
    "threads": (lambda site, _: site.options.update(collectfast_threads=0), ""),
    "connection": (
        lambda site, _: setattr(site, "backend", f"{__name__}.OwnConnection"),
        "",
    ),
    **{
        n: (_variable(n, value), f"the environment variable {n} is set")
        for n, value in VARIABLES.items()
    },
}


@pytest.mark.parametrize("name", SPECIAL)
def test_site_with_unsupported_settings_uses_boto3(
    site: Site,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If obstore lacks a setting, boto3 uploads all files, and the log says why."""
    make, reason = SPECIAL[name]
    make(site, monkeypatch)
    _assert_boto3_uploads(site, reason, monkeypatch, caplog)


@pytest.mark.parametrize("name", PROXIED)
def test_site_behind_a_proxy_uses_boto3(
    site: Site,
    server: Server,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """boto3 uploads all files if there is a proxy, and the log gives the reason.

    The endpoint has no TLS, because the test's proxy could not read requests with TLS.
    """
    trusted, sign = server.authority, server.signed
    with proxy(server.endpoint, sign=sign, tls=False, trusted=trusted) as plain:
        site.proxy = plain
        PROXIED[name](site, monkeypatch)
        _assert_boto3_uploads(site, "a proxy is configured", monkeypatch, caplog)


def _assert_boto3_uploads(
    site: Site,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files = site.write_many(5)
    with caplog.at_level("INFO", "collectfast_storage"):
        site.collect()
    assert _said(caplog) == ([f"obstore is not used: {reason}."] if reason else [])
    assert site.put_by_obstore() == []
    monkeypatch.undo()
    assert site.bucket.files() == files


PLACES: dict[str, tuple[str, str | None, dict[str, Any], str]] = {
    "directory bucket": ("site--use1-az4--x-s3", None, {}, "the bucket name is an ARN"),
    "outposts alias": ("site-o01--op-s3", None, {}, "the bucket name is an ARN"),
    "access point": (
        "arn:aws:s3:us-east-1:123456789012:accesspoint/mine",
        None,
        {},
        "the bucket name is an ARN or has a reserved suffix.",
    ),
    "below a path": (
        "site",
        "http://127.0.0.1:1/s3",
        {},
        "endpoint_url contains a path",
    ),
    "no verify": ("site", None, {"verify": False}, "certificate verification is d"),
    "no CAs": ("site", None, {"verify": "/none.pem"}, "FileNotFoundError."),
    "signature": ("site", None, {"signature_version": "s3"}, "the signature version"),
    "no TLS, verify": ("site", "http://127.0.0.1:1", {"verify": "/my.pem"}, ""),
    "no TLS, bundle": ("site", "http://127.0.0.1:1", {"AWS_CA_BUNDLE": "/my.pem"}, ""),
    "plain": ("site", None, {}, ""),
    "plain, like a directory bucket": ("site-s3", None, {}, ""),
    "dots": ("si.te", None, {}, ""),
}


@pytest.mark.parametrize("place", PLACES)
def test_buckets_that_obstore_cannot_reach_like_boto3(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For unsupported buckets, boto3 is used, and the log gives the reason.

    For the other buckets, there is a client of obstore.
    """
    bucket, endpoint, options, reason = PLACES[place]
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)  # The machine's own.
    for name in filter(str.isupper, options):
        monkeypatch.setenv(name, options[name])
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=Config(signature_version=options.get("signature_version")),
    )
    with caplog.at_level("INFO", "collectfast_storage"):
        native = obstore_uploader(
            client,
            bucket,
            lambda: Credentials("a", "b"),
            verify=options.get("verify"),
            is_forked=False,
        )
    assert (native is None) == bool(reason)
    assert len(_said(caplog)) == bool(reason)
    assert all(f"not used: {reason}" in message for message in _said(caplog))


def test_obstore_that_cannot_be_set_up_is_not_used(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """If obstore cannot be set up, boto3 is used, and the log has the exception's type.

    An example is credentials that cannot be found. KeyboardInterrupt is raised.
    """

    def fail(error: BaseException) -> Any:
        raise error

    client = server.client()

    def made(error: BaseException) -> ObstoreUploader | None:
        return obstore_uploader(
            client, "b", lambda: fail(error), verify=None, is_forked=False
        )

    with caplog.at_level("INFO", "collectfast_storage"):
        assert made(RuntimeError(f"with {server.secret_key}")) is None
    assert _said(caplog) == ["obstore is not used: RuntimeError."]
    with pytest.raises(KeyboardInterrupt):
        made(KeyboardInterrupt())


@pytest.mark.parametrize(
    ("release", "reason"),
    [
        ("0.7.3", "its version is older than 0.11"),
        ("0.10.1", "its version is older than 0.11"),
    ],
)
def test_obstore_that_is_too_old_is_not_used(
    site: Site,
    release: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An obstore that is too old is not used, and the log gives the reason.

    Another package may need an old release, which would store some names incorrectly,
    or supports only the CAs of the system.
    """
    metadata = tmp_path / "old" / f"obstore-{release}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: obstore\nVersion: {release}\n"
    metadata.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "old")
    files = site.write_many(3)
    with caplog.at_level("INFO", "collectfast_storage"):
        site.collect()
    assert _said(caplog) == [f"obstore is not used: {reason}."]
    assert site.put_by_obstore() == []
    assert site.bucket.files() == files


@pytest.mark.parametrize("name", ["a//b", "/a", "a/", "a/./b", "../b", "a\nb"])
def test_keys_that_obstore_would_change(place: Place, name: str) -> None:
    """obstore is not used for keys that it would change.

    S3 has such keys if a subclass's `_normalize_name` makes them. This test sends no
    request, because SeaweedFS changes or refuses some of these keys itself.
    """
    native = place.native()
    assert native is not None
    assert native.request_for(f"static/{name}", _payload({})) is None
    assert native.request_for("static/a/b", _payload({})) is not None


# Failures of obstore.


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (503, "SlowDown")])
def test_permanent_failure_has_the_error_of_boto3(
    site: Site, status: int, code: str
) -> None:
    """If both obstore and boto3 fail, the error is that of boto3, without secrets."""
    files = site.write_many(1)
    site.options["client_config"] = HASTY
    secret = site.bucket.server.secret_key
    site.proxy.fault = Refusal(status, code)
    with pytest.raises(CommandError, match=code) as error:
        site.collect()
    assert secret not in str(error.value)
    assert site.put_by_obstore() == sorted(files)
    # Throttling may end, so boto3 tries again for a while.
    assert Counter(site.put()) == dict.fromkeys(files, 2) or status == 503
    assert site.bucket.names() == []


@pytest.mark.parametrize("threads", [1, 16])
def test_obstore_is_not_used_after_three_failures_in_a_row(
    site: Site, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    """After three failures in a row, obstore is not used for the rest of the run.

    One warning gives the reason, without secrets.
    """
    secret = site.bucket.server.secret_key
    site.proxy.fault = ObstoreFault(answer=(403, "AccessDenied", secret))
    site.options["collectfast_threads"] = threads
    names = [f"file{number}.txt" for number in range(60)]
    with site.storage() as storage, storage.batch() as batch:
        for name in names:
            batch.save(name, ContentFile(name.encode()))
    assert site.bucket.files() == {name: name.encode() for name in names}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert _said(caplog) == [
        "obstore is not used any more, because three uploads in a row failed with it "
        "and succeeded with boto3. The last error was: PermissionDeniedError (403)"
    ]
    # Uploads under way in the other threads fail, too.
    assert 3 <= len(site.put_by_obstore()) < 3 + threads
    assert max(Counter(site.put()).values()) == 2
    assert len(site.put()) == len(names) + len(site.put_by_obstore())
    assert batch.report.requests == site.proxy.count()


def test_obstore_is_used_again_in_the_next_run(site: Site) -> None:
    """If obstore failed in one run, the next run uses it again.

    The reason for the failures may be gone.
    """
    site.options["collectfast_threads"] = 1
    site.proxy.fault = ObstoreFault()
    site.write_many(5)
    site.collect()
    assert len(site.put_by_obstore()) == 3
    site.proxy.fault = None
    site.write("new.txt")
    site.collect()
    assert site.put_by_obstore() == ["new.txt"]


def test_failures_with_a_success_between_are_not_in_a_row(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Failures between successful uploads do not end the use of obstore."""
    site.options["collectfast_threads"] = 1
    site.proxy.fault = ObstoreFault(lambda number: number % 3 < 2)
    files = site.write_many(20)
    site.collect()
    assert site.bucket.files() == files
    assert site.put_by_obstore() == sorted(files)
    assert _said(caplog) == []


def test_failures_that_boto3_shares_do_not_count(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Uploads that boto3 cannot make either do not end the use of obstore.

    A policy may deny some names to all clients.
    """
    site.options["collectfast_threads"] = 1
    site.options["client_config"] = HASTY
    files = site.write_many(20)
    site.proxy.fault = refuse("PUT", "dir3/")
    with pytest.raises(CommandError, match="AccessDenied"):
        site.collect()
    assert site.put_by_obstore() == sorted(files)
    assert site.bucket.names() == sorted(n for n in files if "dir3/" not in n)
    assert _said(caplog) == []


def test_bucket_with_object_lock_uses_boto3(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """boto3 uploads all files to a bucket that requires checksums.

    A bucket with a retention period requires them, and obstore does not send them.
    """

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        checked = "content-md5" in request.headers or any(
            name.startswith("x-amz-checksum-") for name in request.headers
        )
        if request.kind != "PUT" or checked:
            return False
        message = "Content-MD5 OR x-amz-checksum- HTTP header is required"
        handler.error(400, "InvalidRequest", message)
        return True

    site.options["collectfast_threads"] = 1
    site.proxy.fault = fault
    files = site.write_many(10)
    deploy = site.collect()
    assert site.bucket.files() == files
    assert len(site.put_by_obstore()) == 3
    assert deploy.requests == {"LIST": 1, "PUT": len(files) + 3}
    assert len(_said(caplog)) == 1


def test_upload_with_a_wrong_etag_is_repeated_by_boto3(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """An upload of obstore with a wrong ETag is repeated once, by boto3.

    obstore sends no MD5, so the ETag shows whether the server got the content.
    """
    site.write("a.css", "content")
    damaged = []

    def damage(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "PUT" or damaged:
            return False
        damaged.append(request.key)
        # The signature covers the body: answer as a server that did not notice would.
        etag = hashlib.md5(b"damaged").hexdigest()
        handler.answer(200, b"", [("ETag", f'"{etag}"')])
        return True

    site.proxy.fault = damage
    deploy = site.collect()
    assert [site.name(key) for key in damaged] == site.put_by_obstore() == ["a.css"]
    assert deploy.put == ["a.css", "a.css"]
    assert site.bucket.read("a.css") == b"content"
    assert _said(caplog) == []


@pytest.mark.parametrize("etag", ['"0123456789abcdef0123456789abcdef"', ""])
def test_no_file_is_uploaded_three_times(site: Site, etag: str) -> None:
    """No file is uploaded more than twice, whatever ETags the server returns."""

    def opaque(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "PUT":
            return False
        status, answer, headers = handler.ask(body)
        kept = [(k, v) for k, v in headers if k.lower() != "etag"]
        handler.answer(status, answer, [*kept, *([("ETag", etag)] if etag else [])])
        return True

    site.proxy.fault = opaque
    files = site.write_many(20)
    site.collect()
    assert site.bucket.files() == files
    assert max(Counter(site.put()).values()) == 2


def test_panic_of_obstore_is_a_failure(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """A panic in obstore is a failure, so boto3 uploads the file and no thread blocks.

    Panics of Rust are not instances of Exception.
    """
    place.credentials.token = "no\nheader"
    bucket = place.bucket(place.native)
    names = [f"{number}.txt" for number in range(5)]

    def put() -> None:
        for name in names:
            bucket.put(name, _payload({}))

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert [place.head(name)["content-length"] for name in names] == ["1"] * len(names)
    [message] = _said(caplog)
    assert message.endswith("The last error was: PanicException")


# Comparisons of obstore and boto3.


# Common parameters, which obstore must send.
COMMON: dict[str, list[Any]] = {
    "CacheControl": ["max-age=60", "public, max-age=31536000, immutable"],
    "ContentDisposition": ["inline", 'attachment; filename="a b.css"'],
    "ContentEncoding": ["gzip", "br", "aws-chunked", "gzip, aws-chunked"],
    "ContentLanguage": ["en", "de, fr-CA"],
    "ContentType": ["text/css", "text/html; charset=utf-8", "x", "a/b;c"],
    "Metadata": [{}, {"x-a": "1"}, {"x_b": "a b", "expires": "x", "tagging": "a=b"}],
}
# Texts that boto3 or a server may refuse or interpret in different ways.
TEXTS = ["", " ", " a", "a ", "a  b", "a\tb", "a\nb", "é", "文", "a" * 1500]
TEXTS += ["=?UTF-8?B?w6k=?=", "%C3%A9", "a;b, c", "\"a\"='b'", "\\"]
ODD: st.SearchStrategy[Any] = st.sampled_from([*TEXTS, 60, None, b"a", True])
VALUES = ODD | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
NAMES_OF_METADATA = ["x-a", "X-A", "1", "etag", "x-amz-acl", "content-hash", "Expires"]
NAMES_OF_METADATA += ["Content-Type", "cache-control", "storage_class", "StorageClass"]
NAMES_OF_METADATA += ["contenttype", "CONTENT-LANGUAGE", "", "a:b", "é"]
METADATA = st.dictionaries(
    st.sampled_from(NAMES_OF_METADATA), st.just("a") | VALUES, max_size=3
)
RARE: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(COMMON, VALUES),
    "Metadata": METADATA | ODD,
    "ACL": st.just("private"),
    "Expires": st.just(datetime(2030, 1, 1, tzinfo=UTC)),
    "StorageClass": st.sampled_from(["STANDARD", "GLACIER"]),
    "Tagging": st.sampled_from(["a=b", "a b"]),
    "WebsiteRedirectLocation": st.just("/a"),
    "Unknown": st.just("a"),
}


@st.composite
def parameter_sets(draw: st.DrawFn) -> tuple[dict[str, Any], bool]:
    """Return upload parameters, and whether all of them are common ones."""
    names = draw(st.sets(st.sampled_from([*COMMON])))
    parameters = {name: draw(st.sampled_from(COMMON[name])) for name in sorted(names)}
    rare = draw(st.sets(st.sampled_from([*RARE]), max_size=2))
    parameters |= {name: draw(RARE[name]) for name in sorted(rare)}
    return parameters, not rare


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(parameter_sets())
@example(({"CacheControl": 60}, False))
@example(({"ContentType": "a\nb"}, False))
@example(({"ContentDisposition": 'attachment; filename="é.css"'}, False))
@example(({"Metadata": {"a": "é"}}, False))
@example(({"Metadata": {"a": "1", "A": "2"}}, False))
@example(({"Metadata": {"Content-Type": "a/b"}, "ContentType": "text/css"}, False))
@example(({"Metadata": {"cache-control": "a", "storage-class": "GLACIER"}}, False))
def test_obstore_stores_the_objects_that_boto3_stores(
    place: Place, caplog: pytest.LogCaptureFixture, drawn: tuple[dict[str, Any], bool]
) -> None:
    """Objects and errors are those of boto3, with any parameters.

    obstore never fails with an upload that it accepts, and never panics.
    """
    parameters, is_common = drawn
    by_boto3, bucket = place.bucket(None), place.bucket(place.native)
    expected = place.outcome(by_boto3, "a.css", parameters)
    place.proxy.requests.clear()
    assert place.outcome(bucket, "a.css", parameters) == expected
    assert bucket.log.counts == by_boto3.log.counts
    puts = [request for request in place.proxy.requests if request.kind == "PUT"]
    by_obstore = [request for request in puts if not _is_botos(request)]
    if by_obstore or is_common:
        assert len(by_obstore) == len(puts) == 1
    assert _said(caplog) == []
