from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import django
import pytest

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()

from tests.bucket import BucketView  # noqa: E402
from tests.proxy import Proxy, proxy  # noqa: E402
from tests.servers import Server, local_server  # noqa: E402
from tests.site import Site  # noqa: E402

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A real S3 server, for the whole session."""
    with local_server() as running:
        yield running


@pytest.fixture(scope="session")
def _proxy(server: Server) -> Iterator[Proxy]:
    with proxy(server.endpoint) as running:
        yield running


@pytest.fixture
def counting(_proxy: Proxy) -> Iterator[Proxy]:
    """What stands between client and server, with no memory of other tests."""
    _proxy.reset()
    yield _proxy
    _proxy.reset()


@pytest.fixture
def bucket(server: Server) -> BucketView:
    """A place in the bucket that no other test has."""
    return BucketView(server, f"{next(_numbers)}-{uuid4().hex[:8]}/static")


@pytest.fixture
def site(tmp_path: Path, bucket: BucketView, counting: Proxy) -> Site:
    """A site with no files yet."""
    return Site(tmp_path / "site", bucket, counting)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's own credentials and options out of the tests."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "COLLECTFAST_")) and "TEST" not in name:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
