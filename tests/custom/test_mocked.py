"""Tests of a project that mock S3 with moto or botocore's Stubber.

Under a mock no request may reach the network, even if obstore is installed.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.client import BaseClient
from botocore.stub import ANY, Stubber
from django.core.files.base import ContentFile
from django.core.management import call_command

from tests.support.processes import LONG, environment
from tests.support.site import MANIFEST, STATIC, Site

pytest.importorskip("obstore", reason="obstore is not installed")
pytest.importorskip("moto", reason="moto is not installed")

pytestmark = pytest.mark.slow

BACKENDS = pytest.mark.parametrize("backend", [STATIC, MANIFEST])

# Each test runs in its own process, because moto reads the list of additional endpoints
# that it mocks when it is imported.
MOCKED = """
import io
import json
import sys

import moto
from django.conf import settings

static, backend, options, before = json.loads(sys.argv[1])
settings.configure(
    INSTALLED_APPS=["django.contrib.staticfiles"],
    STATIC_URL="/static/",
    STATIC_ROOT="unused",
    STATICFILES_DIRS=[static],
    STORAGES={"staticfiles": {"BACKEND": backend, "OPTIONS": options}},
)
import django
django.setup()
if django.VERSION < (5, 1):
    from django.core.files.storage import storages
    storages.backends.update(settings.STORAGES)
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files.base import ContentFile
from django.core.management import call_command


def collect():
    call_command("collectstatic", "--noinput", stdout=io.StringIO())

def save():
    for number in range(3):
        staticfiles_storage.save(f"saved/{number}.txt", ContentFile(b"saved"))

def batch():
    with staticfiles_storage.batch() as batch:
        for number in range(20):
            batch.save(f"saved/{number}.txt", ContentFile(b"saved"))

def use():
    {use}()

if before:  # The storage has reached the network when the mock starts.
    staticfiles_storage.exists("a.txt")
    print("REACHED", flush=True)
    sys.stdin.readline()
with moto.mock_aws():
    import boto3
    client = boto3.client("s3", endpoint_url=options["endpoint_url"],
                          region_name="us-east-1", verify=options.get("verify"))
    client.create_bucket(Bucket=options["bucket_name"])
    for _ in range(2):
        use()
    found = client.list_objects_v2(Bucket=options["bucket_name"]).get("Contents", [])
    print("FOUND", json.dumps(sorted(each["Key"] for each in found)))
"""


def _run(site: Site, use: str, *, before: bool = False, **options: Any) -> list[str]:
    """Run `use` twice under `mock_aws`, and return the names in moto's bucket."""
    arguments = [
        str(site.static),
        site.backend,
        {**site.storage_options, **options},
        before,
    ]
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            MOCKED.replace("{use}", use),
            json.dumps(arguments),
        ],
        cwd=site.root,
        env=environment(site) | {"MOTO_S3_CUSTOM_ENDPOINTS": site.proxy.endpoint},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        if before:
            assert process.stdout.readline() == "REACHED\n"
            site.proxy.requests.clear()
            site.proxy.accepted = 0
            process.stdin.write("\n")
            process.stdin.flush()
        try:
            output, errors = process.communicate(timeout=LONG)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    [line] = [each for each in output.splitlines() if each.startswith("FOUND ")]
    return [site.name(key) for key in json.loads(line.removeprefix("FOUND "))]


@BACKENDS
@pytest.mark.parametrize("preload", [True, False])
def test_collectstatic_under_mock_aws(site: Site, backend: str, preload: bool) -> None:
    """Under `mock_aws` collectstatic uploads all files to moto's bucket only.

    No request reaches the endpoint.
    """
    site.backend = backend
    files = site.write_many(20)
    found = _run(site, "collect", collectfast_preload=preload)
    assert {*found} >= files.keys()
    assert ("staticfiles.json" in found) == (backend == MANIFEST)
    assert site.proxy.requests == []
    assert site.proxy.accepted == 0
    assert site.bucket.names() == []


@pytest.mark.parametrize("use", ["save", "batch"])
def test_program_under_mock_aws(site: Site, use: str) -> None:
    """Under `mock_aws` a program's saves are uploaded to moto's bucket only."""
    found = _run(site, use)
    assert len(found) == (3 if use == "save" else 20)
    assert site.proxy.requests == []
    assert site.proxy.accepted == 0


@BACKENDS
def test_mock_that_starts_after_the_first_request(site: Site, backend: str) -> None:
    """No request reaches the endpoint under a mock that starts after the first request.

    The client was created before the mock, and has already sent a request.
    """
    site.backend = backend
    files = site.write_many(20)
    found = _run(site, "collect", before=True)
    assert {*found} >= files.keys()
    assert site.proxy.requests == []
    assert site.proxy.accepted == 0
    assert site.bucket.names() == []


# Endpoints from the environment.


@pytest.mark.parametrize("place", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_endpoint_of_the_environment_under_mock_aws(
    site: Site, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `mock_aws` no request reaches an endpoint that the environment sets."""
    files = site.write_many(20)
    monkeypatch.setenv(place, site.proxy.endpoint)
    found = _run(site, "collect", endpoint_url=None)
    assert {*found} >= files.keys()
    assert site.proxy.accepted == 0


# botocore's Stubber.


# botocore adds this to each response that it parses.
METADATA: dict[str, Any] = {
    "ResponseMetadata": {"HTTPStatusCode": 200, "HTTPHeaders": {}, "RetryAttempts": 0}
}


def _listing(site: Site, objects: dict[str, bytes]) -> dict[str, Any]:
    return METADATA | {
        "IsTruncated": False,
        "Name": site.bucket.name,
        "KeyCount": len(objects),
        "Contents": [
            {
                "Key": site.bucket.key(name),
                "ETag": f'"{hashlib.md5(content).hexdigest()}"',
                "Size": len(content),
                "LastModified": datetime(2020, 1, 1, tzinfo=UTC),
            }
            for name, content in sorted(objects.items())
        ],
    }


def _expect(
    stubber: Stubber,
    site: Site,
    objects: dict[str, bytes],
    uploads: dict[str, bytes],
) -> None:
    stubber.add_response("list_objects_v2", _listing(site, objects))
    for name, content in uploads.items():
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        place = {"Bucket": site.bucket.name, "Key": site.bucket.key(name)}
        stubber.add_response(
            "put_object",
            METADATA | {"ETag": etag},
            {
                **place,
                **dict.fromkeys(
                    ("Body", "ContentType", "ContentMD5", "ChecksumCRC32"), ANY
                ),
            },
        )


@pytest.mark.parametrize("reached", [False, True])
def test_collectstatic_under_a_stubber(site: Site, reached: bool) -> None:
    """The Stubber answers every request of a deploy, and none reaches the endpoint.

    This holds for the first deploy and for a second one with a changed file.
    """
    site.options["collectfast_threads"] = 1
    files = {"a.txt": b"a", "b.txt": b"bb", "c.txt": b"ccc"}
    site.write_all(files)
    with site.storage() as storage:
        client: BaseClient = storage.connection.meta.client
        if reached:
            storage.exists("a.txt")
        site.proxy.requests.clear()
        with Stubber(client) as stubber:
            # In the order in which the command finds them.
            ordered = {name: files[name] for name in _order(site)}
            _expect(stubber, site, {}, ordered)
            call_command("collectstatic", "--noinput", stdout=io.StringIO())
            stubber.assert_no_pending_responses()
            site.write("b.txt", "changed")
            _expect(stubber, site, files, {"b.txt": b"changed"})
            call_command("collectstatic", "--noinput", stdout=io.StringIO())
            stubber.assert_no_pending_responses()
    assert site.proxy.requests == []
    assert site.bucket.names() == []


def _order(site: Site) -> list[str]:
    """Return the names of the sources, as Django's finder yields them."""
    from django.contrib.staticfiles.finders import FileSystemFinder

    return [name for name, _ in FileSystemFinder().list([])]


@pytest.mark.parametrize(
    "metadata", [METADATA, {}], ids=["with metadata", "without metadata"]
)
def test_save_under_a_stubber(site: Site, metadata: dict[str, Any]) -> None:
    """The Stubber answers the HEAD and PUT requests of a program's save.

    Its responses may lack the metadata that botocore adds to real ones.
    """
    with site.storage() as storage:
        client = storage.connection.meta.client
        etag = f'"{hashlib.md5(b"a").hexdigest()}"'
        with Stubber(client) as stubber:
            stubber.add_client_error(
                "head_object", "404", "Not Found", http_status_code=404
            )
            stubber.add_response("put_object", metadata | {"ETag": etag})
            storage.save("a.txt", ContentFile(b"a"))
            stubber.assert_no_pending_responses()
    assert site.proxy.requests == []


# Deploys without a mock.


def test_obstore_is_used_without_a_mock(site: Site) -> None:
    """Without a mock obstore uploads all files of a deploy, except at most one."""
    files = site.write_many(20)
    site.collect()
    assert len(site.put_by_obstore()) >= len(files) - 1
    assert site.bucket.files() == files


def test_obstore_is_used_again_after_the_mock(site: Site) -> None:
    """obstore uploads the files of deploys after a Stubber was removed."""
    files = {"a.txt": b"a"}
    site.write_all(files)
    with site.storage() as storage:
        with Stubber(storage.connection.meta.client) as stubber:
            _expect(stubber, site, {}, files)
            call_command("collectstatic", "--noinput", stdout=io.StringIO())
        assert site.proxy.requests == []
        many = site.write_many(20)
        call_command("collectstatic", "--noinput", stdout=io.StringIO())
    assert len(site.put_by_obstore()) >= len(many) - 1
    assert site.bucket.files() == {**files, **many}
