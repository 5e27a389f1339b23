"""A program's saves and deletes, outside of collectstatic and of batches.

The storage sends one HEAD request and boto3's own upload. It does not use the cache.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError
from django.core.files.base import ContentFile
from django.db import DatabaseError, connection, connections, transaction
from storages.backends.s3 import S3StaticStorage

from collectfast_storage import CollectfastMixin
from tests.support.proxy import Handler, Proxy, Request
from tests.support.site import MANIFEST, STATIC, Site
from tests.support.watched_cache import FailingCache, SlowCache, WatchedCache, caches_of

pytestmark = [pytest.mark.slow, pytest.mark.covering]

BACKENDS = pytest.mark.parametrize("backend", [STATIC, MANIFEST])
PLAIN = "storages.backends.s3.S3StaticStorage"
MIB = 1024 * 1024
LIMIT = 10  # seconds, after which a thread of a test is considered to hang
# One attempt for each request, so that the counts do not depend on boto3's retries.
ONE_ATTEMPT = Config(retries={"total_max_attempts": 1}, read_timeout=1)

# Programs and the cache.


def _write(storage: Any, name: str, content: bytes) -> None:
    with storage.open(name, "wb") as file:
        file.write(content)


def _read(storage: Any, name: str) -> None:
    with storage.open(name) as file:
        file.read()


# When a call is made, "there.txt" is the only object, and contains b"one".
CALLS: dict[str, Callable[[Any], object]] = {
    "save a new file": lambda s: s.save("new.txt", ContentFile(b"one")),
    "save other contents": lambda s: s.save("there.txt", ContentFile(b"two")),
    "save the same contents": lambda s: s.save("there.txt", ContentFile(b"one")),
    "save twice": lambda s: [s.save("new.txt", ContentFile(b"x")) for _ in range(2)],
    "delete": lambda s: s.delete("there.txt"),
    "delete a missing file": lambda s: s.delete("missing.txt"),
    "write": lambda s: _write(s, "there.txt", b"two"),
    "read": lambda s: _read(s, "there.txt"),
    "metadata": lambda s: (s.exists("there.txt"), s.size("there.txt"), s.listdir("")),
}


@BACKENDS
@pytest.mark.parametrize("cache", [WatchedCache, FailingCache, SlowCache])
@pytest.mark.parametrize("call", CALLS)
def test_calls_of_a_program_do_not_use_the_cache(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    backend: str,
    cache: type[WatchedCache],
    call: str,
) -> None:
    """A program's calls neither read nor write the cache, which may fail or be slow."""
    site.backend = backend
    site.settings["CACHES"] = caches_of(cache)
    site.bucket.put("there.txt", b"one", ContentType="text/plain")
    with site.storage() as storage:
        cache.operations.clear()
        CALLS[call](storage)
    assert cache.operations == []
    assert caplog.messages == []


def test_threads_that_save_together_do_not_wait_for_a_slow_cache(site: Site) -> None:
    """Eight threads of a program save files without one operation of the cache."""
    site.settings["CACHES"] = caches_of(SlowCache)
    with site.storage() as storage:
        SlowCache.operations.clear()
        threads = [
            threading.Thread(target=storage.save, args=(f"{n}.txt", ContentFile(b"x")))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in threads)
    assert len(site.bucket.names()) == 8
    assert SlowCache.operations == []


@contextmanager
def _database() -> Iterator[None]:
    """Give the site a database without tables, in which an error aborts a transaction.

    SQLite continues after an error. PostgreSQL refuses every later query of the
    transaction, which `set_rollback` simulates.
    """
    settings = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    previous = connections.settings
    connections.settings = connections.configure_settings(settings)
    old = connections["default"]
    del connections["default"]

    def execute(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        try:
            return run(sql, params, many, context)
        except DatabaseError:
            transaction.set_rollback(True)
            raise

    try:
        with connection.execute_wrapper(execute):
            yield
    finally:
        connection.close()
        connections.settings = previous
        connections["default"] = old


@BACKENDS
@pytest.mark.parametrize("has_table", [False, True], ids=["no table", "table"])
def test_save_in_a_transaction_sends_no_query(
    site: Site, backend: str, has_table: bool
) -> None:
    """With Django's database cache, a program's save and delete send no query.

    A query could wait for another transaction's lock, and with a missing cache table it
    would abort the transaction of the site.
    """
    site.backend = backend
    cache = "django.core.cache.backends.db.DatabaseCache"
    site.settings["CACHES"] = {"default": {"BACKEND": cache, "LOCATION": "cached"}}
    queries: list[str] = []

    def watch(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        queries.append(sql)
        return run(sql, params, many, context)

    with _database(), site.storage() as storage, connection.cursor() as cursor:
        if has_table:
            cursor.execute(
                "CREATE TABLE cached (cache_key text PRIMARY KEY, value text, "
                "expires datetime)"
            )
        cursor.execute("CREATE TABLE own (number integer)")
        with transaction.atomic():
            with connection.execute_wrapper(watch):
                storage.save("a.txt", ContentFile(b"one"))
                storage.save("a.txt", ContentFile(b"two"))
                _write(storage, "b.txt", b"three")
                storage.delete("b.txt")
            cursor.execute("INSERT INTO own VALUES (1)")
        cursor.execute("SELECT COUNT(*) FROM own")
        assert cursor.fetchone() == (1,)
    assert queries == []
    assert site.bucket.files() == {"a.txt": b"two"}


# The comparison of headers.

YEAR_2070 = datetime(2070, 1, 1, tzinfo=UTC)
# The parameters of the site, and those of an object with the same contents.
DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "content type": ({}, {"ContentType": "application/octet-stream"}),
    "own content type": ({"ContentType": "text/x-own"}, {}),
    "cache control": ({"CacheControl": "max-age=1"}, {"CacheControl": "max-age=2"}),
    "cache control is new": ({"CacheControl": "max-age=1"}, {}),
    "cache control is removed": ({}, {"CacheControl": "max-age=2"}),
    "case of cache control": ({"CacheControl": "Private"}, {"CacheControl": "private"}),
    "disposition": (
        {"ContentDisposition": "inline"},
        {"ContentDisposition": "attachment"},
    ),
    "disposition is removed": ({}, {"ContentDisposition": "attachment"}),
    "language": ({"ContentLanguage": "de"}, {"ContentLanguage": "en"}),
    "language is removed": ({}, {"ContentLanguage": "en"}),
    "encoding is new": ({"ContentEncoding": "identity"}, {}),
    "encoding is removed": ({}, {"ContentEncoding": "identity"}),
    "metadata": ({"Metadata": {"a": "1"}}, {"Metadata": {"a": "2"}}),
    "metadata are new": ({"Metadata": {"a": "1", "b": "2"}}, {"Metadata": {"a": "1"}}),
    "metadata are removed": ({}, {"Metadata": {"a": "1"}}),
    "one of metadata is removed": (
        {"Metadata": {"a": "1"}},
        {"Metadata": {"a": "1", "b": "2"}},
    ),
    "case of a metadata value": ({"Metadata": {"a": "X"}}, {"Metadata": {"a": "x"}}),
    "expires": (
        {"Expires": YEAR_2070},
        {"Expires": datetime(2071, 1, 1, tzinfo=UTC)},
    ),
    "expires as a string": (
        {"Expires": "Wed, 01 Jan 2070 00:00:00 GMT"},
        {"Expires": datetime(2071, 1, 1, tzinfo=UTC)},
    ),
    "expires is new": ({"Expires": YEAR_2070}, {}),
    "expires is removed": ({}, {"Expires": YEAR_2070}),
}
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "cache control": ({"CacheControl": "max-age=1"}, {"CacheControl": "max-age=1"}),
    "disposition": (
        {"ContentDisposition": "inline"},
        {"ContentDisposition": "inline"},
    ),
    "language": ({"ContentLanguage": "de"}, {"ContentLanguage": "de"}),
    "encoding": ({"ContentEncoding": "identity"}, {"ContentEncoding": "identity"}),
    "metadata": ({"Metadata": {"a": "1"}}, {"Metadata": {"a": "1"}}),
    "case of metadata names": ({"Metadata": {"Own-Name": "1"}},) * 2,
    "other case of metadata names": (
        {"Metadata": {"Own-Name": "1"}},
        {"Metadata": {"own-name": "1"}},
    ),
    "no metadata": ({"Metadata": {}}, {}),
    "expires": ({"Expires": YEAR_2070}, {"Expires": YEAR_2070}),
    "expires as a string": (
        {"Expires": "Wed, 01 Jan 2070 00:00:00 GMT"},
        {"Expires": YEAR_2070},
    ),
    "expires as another string": (
        {"Expires": "2070-01-01T00:00:00Z"},
        {"Expires": YEAR_2070},
    ),
}


def _headers(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the headers of a GET response that an upload can set."""
    names = {name for case in DIFFERENT.values() for each in case for name in each}
    return {name: stored[name] for name in names & stored.keys() if stored[name]}


@BACKENDS
@pytest.mark.parametrize("case", DIFFERENT)
def test_equal_contents_with_other_headers_are_uploaded(
    site: Site, backend: str, case: str
) -> None:
    """A save uploads a file if a header in the HEAD response differs."""
    wanted, there = DIFFERENT[case]
    site.backend, site.options["object_parameters"] = backend, wanted
    site.bucket.put("a.txt", b"one", **{"ContentType": "text/plain"} | there)
    with site.storage() as storage:
        site.proxy.requests.clear()
        storage.save("a.txt", ContentFile(b"one"))
        assert site.proxy.count() == {"HEAD": 1, "PUT": 1}
        found = _headers(site.bucket.get("a.txt"))
        # django-storages must write the same headers.
        site.bucket.delete("a.txt")
    site.backend = PLAIN
    with site.storage() as storage:
        storage.save("a.txt", ContentFile(b"one"))
    assert found == _headers(site.bucket.get("a.txt"))


@BACKENDS
@pytest.mark.parametrize("case", SAME)
def test_equal_contents_with_equal_headers_are_not_uploaded(
    site: Site, backend: str, case: str
) -> None:
    """A save of a file with equal contents and headers costs one HEAD request."""
    wanted, there = SAME[case]
    site.backend, site.options["object_parameters"] = backend, wanted
    site.bucket.put("a.txt", b"one", **{"ContentType": "text/plain"} | there)
    with site.storage() as storage:
        site.proxy.requests.clear()  # The manifest storage has loaded its manifest.
        storage.save("a.txt", ContentFile(b"one"))
    assert site.proxy.count() == {"HEAD": 1}


@pytest.mark.parametrize("case", {**DIFFERENT, **SAME})
@pytest.mark.parametrize("gzip", [False, True])
def test_second_save_of_the_same_file_costs_one_head(
    site: Site, case: str, gzip: bool
) -> None:
    """The storage recognizes every header that it has uploaded itself."""
    site.options["object_parameters"] = {**DIFFERENT, **SAME}[case][0]
    site.options["gzip"] = gzip
    for _ in range(2):
        site.proxy.requests.clear()
        with site.storage() as storage:
            storage.save("a.css", ContentFile(b"one" * 100))
    assert site.proxy.count() == {"HEAD": 1}


@pytest.mark.parametrize("change", ["changed", "new", "removed"])
def test_own_object_is_uploaded_again_if_the_parameters_change(
    site: Site, change: str
) -> None:
    """A save with changed parameters replaces the headers of an unchanged file."""
    before, after = {"changed": ("1", "2"), "new": ("", "2"), "removed": ("1", "")}[
        change
    ]
    for number in (before, after):
        header = {"CacheControl": f"max-age={number}"} if number else {}
        site.options["object_parameters"] = header
        site.proxy.requests.clear()
        with site.storage() as storage:
            storage.save("a.txt", ContentFile(b"one"))
        assert site.proxy.count() == {"HEAD": 1, "PUT": 1}
        assert site.bucket.get("a.txt").get("CacheControl") == header.get(
            "CacheControl"
        )


@pytest.mark.parametrize(
    ("content_type", "puts"), [("text/plain", 0), ("image/x-own", 1)]
)
def test_content_type_of_the_content_is_compared(
    site: Site, content_type: str, puts: int
) -> None:
    """The `content_type` of the content itself is used, as in django-storages."""
    site.bucket.put("a.txt", b"one", ContentType="text/plain")
    content = ContentFile(b"one")
    content.content_type = content_type  # type: ignore[attr-defined]
    with site.storage() as storage:
        storage.save("a.txt", content)
    assert site.proxy.count()["PUT"] == puts
    assert site.bucket.get("a.txt")["ContentType"] == content_type


def _reports(**headers: str) -> Callable[[Handler, Request, bytes], bool]:
    """Return a fault that adds `headers` to the responses to HEAD requests."""
    added = [(name.replace("_", "-"), value) for name, value in headers.items()]

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":  # The server supports neither class nor encryption.
            handler.answer(200, b"", [("ETag", f'"{hashlib.md5(body).hexdigest()}"')])
        elif request.kind == "HEAD":
            status, content, there = handler.ask(body)
            handler.answer(status, content, [*there, *added])
        return request.kind in ("HEAD", "PUT")

    return fault


KMS = "arn:aws:kms:us-east-1:1:key/1"


@pytest.mark.parametrize(
    ("wanted", "reported", "puts"),
    [
        ({"StorageClass": "STANDARD_IA"}, {}, 1),
        ({"StorageClass": "STANDARD_IA"}, {"x_amz_storage_class": "GLACIER_IR"}, 1),
        ({"StorageClass": "STANDARD_IA"}, {"x_amz_storage_class": "STANDARD_IA"}, 0),
        ({"StorageClass": "STANDARD"}, {}, 0),  # S3 does not report the default.
        ({"ServerSideEncryption": "AES256"}, {}, 1),
        (
            {"ServerSideEncryption": "AES256"},
            {"x_amz_server_side_encryption": "AES256"},
            0,
        ),
        # S3 encrypts each object in this way by default.
        ({}, {"x_amz_server_side_encryption": "AES256"}, 0),
        (
            {"ServerSideEncryption": "aws:kms"},
            {"x_amz_server_side_encryption": "AES256"},
            1,
        ),
        (
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": KMS},
            {
                "x_amz_server_side_encryption": "aws:kms",
                "x_amz_server_side_encryption_aws_kms_key_id": KMS[:-1] + "2",
            },
            1,
        ),
    ],
)
def test_storage_class_and_encryption_are_compared(
    site: Site, wanted: dict[str, str], reported: dict[str, str], puts: int
) -> None:
    """Storage class and encryption are compared; the defaults of S3 count as equal."""
    site.options["object_parameters"] = wanted
    site.bucket.put("a.txt", b"one", ContentType="text/plain")
    site.proxy.fault = _reports(**reported)
    with site.storage() as storage:
        storage.save("a.txt", ContentFile(b"one"))
    assert site.proxy.count() == Counter(HEAD=1, PUT=puts)


# Requests: at most one HEAD, and those of django-storages.


@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
@pytest.mark.parametrize("content", [b"one", b"two"], ids=["equal", "other"])
def test_storage_that_does_not_overwrite_sends_no_additional_head(
    site: Site, taken: bool, content: bytes
) -> None:
    """With `file_overwrite=False`, the requests are those of django-storages."""
    site.options["file_overwrite"] = False
    counts, names = [], []
    for backend in (PLAIN, STATIC):
        site.backend = backend
        site.bucket.clear()
        if taken:
            site.bucket.put("a.txt", b"one", ContentType="text/plain")
        site.proxy.requests.clear()
        with site.storage() as storage:
            saved = storage.save("a.txt", ContentFile(content))
        counts.append(site.proxy.count())
        names.append(saved)
        assert site.bucket.read(saved) == content
        assert len(site.bucket.names()) == 1 + taken
    assert counts[1] == counts[0]
    assert counts[1]["PUT"] == 1
    assert (names[1] == "a.txt") == (names[0] == "a.txt") == (not taken)


def _close(handler: Handler, body: bytes) -> None:
    handler.reset()


def _fail(handler: Handler, body: bytes) -> None:
    handler.error(500, "InternalError")


def _redirect(handler: Handler, body: bytes) -> None:
    handler.answer(301, b"", [("Location", "https://127.0.0.1:1/elsewhere")])


def _not_understand(handler: Handler, body: bytes) -> None:
    handler.answer(400, b"")


def _bad_date(handler: Handler, body: bytes) -> None:
    status, content, headers = handler.ask(body)
    kept = [(k, v) for k, v in headers if k.lower() != "last-modified"]
    handler.answer(status, content, [*kept, ("Last-Modified", "the other day")])


def _bad_length(handler: Handler, body: bytes) -> None:
    handler.wfile.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: three\r\nETag: none\r\n\r\n"
    )
    handler.close_connection = True


def _not_http(handler: Handler, body: bytes) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    handler.close_connection = True


def _login_page(handler: Handler, body: bytes) -> None:
    handler.answer(200, b"", [("Content-Type", "text/html")])


def _no_answer(handler: Handler, body: bytes) -> None:
    handler.connection.settimeout(LIMIT)
    handler.connection.recv(1)  # Until the client closes the connection.
    handler.close_connection = True


HARMS = [_close, _fail, _redirect, _not_understand, _bad_date, _bad_length]
HARMS += [_not_http, _login_page, _no_answer]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__.strip("_"))
@pytest.mark.parametrize("content", [b"one", b"two"], ids=["equal", "other"])
def test_file_is_uploaded_if_its_head_fails(
    site: Site, harm: Callable[[Handler, bytes], None], content: bytes
) -> None:
    """If the HEAD request fails in any way, the file is uploaded."""
    site.options["client_config"] = ONE_ATTEMPT
    site.bucket.put("a.txt", b"one", ContentType="text/plain")

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "HEAD":
            harm(handler, body)
        return request.kind == "HEAD"

    site.proxy.fault = fault
    with site.storage() as storage:
        assert storage.save("a.txt", ContentFile(content)) == "a.txt"
    assert site.proxy.count()["PUT"] == 1
    assert site.bucket.read("a.txt") == content


@pytest.mark.parametrize("kinds", [{"PUT"}, {"HEAD", "PUT"}], ids=["PUT", "both"])
@pytest.mark.parametrize("code", ["AccessDenied", "InternalError", "closed"])
def test_failed_upload_raises_the_exception_of_django_storages(
    site: Site, code: str, kinds: set[str]
) -> None:
    """A failed upload raises an exception of django-storages' type and text."""
    site.options["client_config"] = ONE_ATTEMPT

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind not in kinds:
            return False
        if code == "closed":
            handler.reset()
        else:
            handler.error(403 if code == "AccessDenied" else 500, code)
        return True

    site.proxy.fault = fault
    raised = []
    for backend in (PLAIN, STATIC):
        site.backend = backend
        with site.storage() as storage, pytest.raises(Exception) as caught:
            storage.save("a.txt", ContentFile(b"x"))
        raised.append((type(caught.value).__name__, str(caught.value)))
    assert raised[1] == raised[0]


IN_PARTS = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
ONE_BY_ONE = TransferConfig(
    multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, use_threads=False
)
CONFIGS = {"small": None, "parts": IN_PARTS, "parts without threads": ONE_BY_ONE}


def _sent(proxy: Proxy) -> list[tuple[Any, ...]]:
    """Return all requests except HEADs, without the headers that vary."""
    varying = ("authorization", "amz-sdk-", "x-amz-date", "user-agent", "host")
    varying += ("x-amz-meta-collectfast-fingerprint",)

    def described(request: Request) -> tuple[Any, ...]:
        query = {k: v for k, v in request.query.items() if k != "uploadId"}
        headers = request.headers.items()
        kept = sorted((k, v) for k, v in headers if not k.startswith(varying))
        return request.method, request.key, str(query), tuple(kept)

    return sorted(described(each) for each in proxy.requests if each.method != "HEAD")


class WithCallback(S3StaticStorage):
    """A storage class of a site that passes a callback to boto3."""

    def _save(self, name: str, content: Any) -> str:
        self.progress: list[int] = []
        self.bucket.Object(self._normalize_name(name)).upload_fileobj(
            content,
            ExtraArgs={"ContentType": "text/x-own", "Metadata": {"own": "value"}},
            Callback=self.progress.append,
            Config=self.transfer_config,
        )
        return name


class CollectfastWithCallback(CollectfastMixin, WithCallback):
    pass


def _collectfast(backend: str) -> str:
    return STATIC if backend == PLAIN else f"{__name__}.CollectfastWithCallback"


@pytest.mark.parametrize("backend", [PLAIN, f"{__name__}.WithCallback"])
@pytest.mark.parametrize(
    ("config", "gzip"),
    [
        ("small", False),
        ("small", True),
        ("parts", False),
        ("parts", True),
        ("parts without threads", False),
    ],
)
def test_upload_is_that_of_django_storages(
    site: Site, tmp_path: Path, backend: str, gzip: bool, config: str
) -> None:
    """Requests, headers, parts and callbacks are those of django-storages.

    The only additional request is one HEAD before the upload.
    """
    size = 11 * MIB if CONFIGS[config] else 1000
    path = tmp_path / "content.css"
    path.write_bytes(bytes(range(250)) * (size // 250))
    site.options |= {"transfer_config": CONFIGS[config], "gzip": gzip}
    site.options["object_parameters"] = {"CacheControl": "max-age=60"}
    sent, progress = [], []
    for each in (backend, _collectfast(backend)):
        site.backend = each
        site.bucket.clear()
        site.proxy.requests.clear()
        with site.storage() as storage, path.open("rb") as file:
            storage.save("content.css", file)
            progress.append(sorted(getattr(storage, "progress", [])))
        sent.append(_sent(site.proxy))
    assert sent[1] == sent[0]
    assert progress[1] == progress[0]
    assert site.proxy.count()["HEAD"] == 1
    site.proxy.requests.clear()
    with site.storage() as storage, path.open("rb") as file:
        storage.save("content.css", file)
    assert site.proxy.count() == {"HEAD": 1}


class PutsItself(S3StaticStorage):
    """Uploads without the bucket of django-storages."""

    def _save(self, name: str, content: Any) -> str:
        client, key = self.connection.meta.client, self._normalize_name(name)
        client.put_object(Bucket=self.bucket_name, Key=key, Body=content.read())
        return name


class CollectfastPutsItself(CollectfastMixin, PutsItself):
    pass


def test_save_of_a_class_that_uploads_by_itself_sends_nothing_else(site: Site) -> None:
    """A save whose upload cannot be captured is left to the class."""
    site.backend = f"{__name__}.CollectfastPutsItself"
    with site.storage() as storage:
        assert storage.save("a.txt", ContentFile(b"one")) == "a.txt"
    assert site.proxy.count() == {"PUT": 1}
    assert site.bucket.read("a.txt") == b"one"


def test_large_file_with_fingerprint_arrives_whole(site: Site, tmp_path: Path) -> None:
    """Hashing a streamed file for its fingerprint does not shorten the upload."""
    path = tmp_path / "large.css"
    path.write_bytes(bytes(range(250)) * (11 * MIB // 250))
    site.options["transfer_config"] = IN_PARTS
    site.options["object_parameters"] = {
        "SSECustomerAlgorithm": "AES256",
        "SSECustomerKey": "k" * 32,
    }
    with site.storage() as storage:
        with path.open("rb") as file:
            storage.save("large.css", file)
        with storage.open("large.css") as saved:
            assert saved.read() == path.read_bytes()
    name = "x-amz-meta-collectfast-fingerprint"
    assert any(name in request.headers for request in site.proxy.requests)


@pytest.mark.parametrize("use_threads", [True, False])
def test_transfer_config_is_respected(
    site: Site, tmp_path: Path, use_threads: bool
) -> None:
    """Parts of a program's large file are sent by several threads if configured so."""
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(11 * MIB))  # in three parts
    site.options["transfer_config"] = IN_PARTS if use_threads else ONE_BY_ONE
    lock, changed = threading.Lock(), threading.Event()
    under_way, most = 0, 0

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        nonlocal under_way, most
        if request.method != "PUT":
            return False
        with lock:
            under_way += 1
            most = max(most, under_way)
            if under_way > 1:
                changed.set()
        changed.wait(0.2)
        answer = handler.ask(body)
        with lock:
            under_way -= 1
        handler.answer(*answer)
        return True

    site.proxy.fault = fault
    with site.storage() as storage, path.open("rb") as file:
        storage.save("large.bin", file)
    assert (most > 1) == use_threads
    assert site.bucket.read("large.bin") == path.read_bytes()


# Without preload: calls that overlap.


class Gate:
    """A proxy fault that blocks the first request of one kind until the test opens it.

    The request is blocked before the server gets it, or, with `answered`, after the
    server has carried it out, so that the client does not have the response yet.
    """

    def __init__(self, proxy: Proxy, kind: str, *, answered: bool) -> None:
        self._kind = kind
        self._answered = answered
        self._lock = threading.Lock()
        self._is_used = False
        self.reached = threading.Event()
        self.go_on = threading.Event()
        proxy.fault = self

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        with self._lock:
            if request.kind != self._kind or self._is_used:
                return False
            self._is_used = True
        answer = handler.ask(body) if self._answered else None
        self.reached.set()
        self.go_on.wait(LIMIT)
        if answer is not None:
            handler.answer(*answer)
        return answer is not None


WANTED = b"wanted"
OTHER = b"other"
OVERLAPPING: dict[str, Callable[[Any], object]] = {
    "save": lambda storage: storage.save("a.css", ContentFile(WANTED)),
    "save other": lambda storage: storage.save("a.css", ContentFile(OTHER)),
    "delete": lambda storage: storage.delete("a.css"),
    "write": lambda storage: _write(storage, "a.css", OTHER),
}


@pytest.mark.parametrize("before", ["nothing", "wanted", "other"])
@pytest.mark.parametrize("instances", ["one", "two"])
@pytest.mark.parametrize("answered", [False, True], ids=["request", "answer"])
@pytest.mark.parametrize(
    ("held", "kind", "other"),
    [
        ("save", "HEAD", "delete"),
        ("save", "PUT", "delete"),
        ("delete", "DELETE", "save"),
        ("save", "PUT", "save other"),
        ("save", "HEAD", "save other"),
        ("save other", "PUT", "save"),
        ("save", "PUT", "write"),
    ],
)
def test_deploy_after_overlapping_calls_is_correct(
    site: Site,
    held: str,
    kind: str,
    other: str,
    answered: bool,
    instances: str,
    before: str,
) -> None:
    """With `collectfast_preload=False`, a deploy after overlapping calls is correct.

    The cache must not contain an entry of an object that was deleted or overwritten
    meanwhile, in whatever order the two calls and their requests and responses arrive.
    """
    site.options["collectfast_preload"] = False
    if before != "nothing":
        site.write("a.css", before)
        site.collect()
    with site.storage() as first, site.storage() as second:
        gate = Gate(site.proxy, kind, answered=answered)
        thread = threading.Thread(target=OVERLAPPING[held], args=(first,))
        thread.start()
        while not gate.reached.wait(0.01):
            if not thread.is_alive():  # With equal contents there is no PUT to block.
                gate.go_on.set()
                break
        OVERLAPPING[other](first if instances == "one" else second)
        gate.go_on.set()
        thread.join(LIMIT)
        assert not thread.is_alive()
    site.proxy.fault = None
    site.write("a.css", WANTED)
    site.collect()
    assert site.bucket.files() == {"a.css": WANTED}


def test_failed_save_is_not_trusted_without_preload(site: Site) -> None:
    """An upload with a lost response invalidates the entry of the cache, too.

    Without preload, the next deploy trusts the cache.
    """
    site.options["collectfast_preload"] = False
    site.write("a.css", WANTED)
    site.collect()

    def lose(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            handler.pass_on_silently(body)
            handler.error(403, "AccessDenied")
        return request.kind == "PUT"

    site.proxy.fault = lose
    with site.storage() as storage, pytest.raises(ClientError):
        storage.save("a.css", ContentFile(OTHER))
    site.proxy.fault = None
    site.collect()
    assert site.bucket.files() == {"a.css": WANTED}
