from __future__ import annotations

import gc
import inspect
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import botocore.hooks
import botocore.loaders
import botocore.session
import django
import pytest
from botocore.compat import accepts_kwargs
from botocore.hooks import EventAliaser
from botocore.loaders import Loader

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.support.settings"
django.setup()

from tests.support.bucket import BucketView  # noqa: E402
from tests.support.covering import covering  # noqa: E402
from tests.support.proxy import Proxy, proxy  # noqa: E402
from tests.support.servers import SHARED, Server, server_for_tests  # noqa: E402
from tests.support.site import Site  # noqa: E402

# The word for servers on which django-storages' own uploads need the README's
# `client_config`, because boto3 sends checksums behind their contents.
TRAILING_CHECKSUMS = "trailing checksums"
_numbers = itertools.count()


class SharingLoader(Loader):
    """A botocore loader that shares its models with all other loaders.

    Each storage has its own boto3 session. Without this class each session would load
    and decode botocore's models again, which takes more than half of the time of most
    tests.
    """

    shared: dict[Any, Any] = {}  # noqa: RUF012

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cache = self.shared


class SharingAliaser(EventAliaser):
    """A botocore emitter that shares the aliases of events with all other emitters.

    They depend on constants only. To compute them takes half of the time that a new
    session needs.
    """

    shared: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._alias_name_cache = self.shared


def _accepts_kwargs(function: Any) -> bool:
    """Return whether `function` has a parameter of the form ``**kwargs``.

    botocore finds this out with `inspect`, for each of its handlers in each session.
    """
    code = getattr(function, "__code__", None)
    if code is None:
        return bool(accepts_kwargs(function))
    return bool(code.co_flags & inspect.CO_VARKEYWORDS)


botocore.loaders.Loader = SharingLoader
botocore.session.EventAliaser = SharingAliaser
botocore.hooks.accepts_kwargs = _accepts_kwargs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sequences",
        type=int,
        default=30,
        help="how many random sequences tests/properties tries (30)",
    )
    parser.addoption(
        "--all-combinations",
        action="store_true",
        help="run tests marked `covering` with all combinations of their parameters",
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Select the parameters of tests marked `covering` so that they cover all pairs.

    All other combinations of parameters are deselected.
    """
    if config.getoption("--all-combinations"):
        return
    groups: dict[object, list[pytest.Item]] = {}
    for item in items:
        parameters = {**getattr(getattr(item, "callspec", None), "params", {})}
        # The values of `way` are grouped separately, because all tests with "obstore"
        # are skipped if obstore is not installed. The tests with "plain" have to cover
        # all pairs of the other parameters then.
        group = item.parent, item.originalname, parameters.pop("way", None)
        mark = item.get_closest_marker("covering")
        if parameters and mark and not mark.kwargs.get("every"):
            groups.setdefault(group, []).append(item)
    left_out: set[pytest.Item] = set()
    for group in groups.values():
        rows = [[*map(repr, item.callspec.params.values())] for item in group]
        left_out |= {*group} - {group[number] for number in covering(rows)}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def sequences(request: pytest.FixtureRequest) -> int:
    """Return the number of random sequences to try."""
    number: int = request.config.getoption("--sequences")
    return number


_shared = ExitStack()
_server = pytest.StashKey[Server]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one more than the number of processors, because tests wait at times."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Start one server for all workers of pytest-xdist; it ends with the session.

    If COLLECTFAST_TEST_SERVER names another server than those in SHARED, each worker
    starts its own, because some of these servers, such as moto, cannot serve that many
    clients in parallel.
    """
    if os.environ.get("COLLECTFAST_TEST_SERVER", "seaweedfs") not in SHARED:
        return
    if _server not in node.config.stash:
        node.config.stash[_server] = _shared.enter_context(server_for_tests())
    node.workerinput["server"] = asdict(node.config.stash[_server])


def pytest_unconfigure() -> None:
    """Stop the server that the workers shared."""
    _shared.close()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Provide a real S3 server for the whole session."""
    given = getattr(request.config, "workerinput", {})
    if "server" in given:
        yield Server(**given["server"])
    else:
        with server_for_tests() as running:
            yield running


@pytest.fixture(scope="session")
def _proxy(server: Server) -> Iterator[Proxy]:
    trusted = server.authority
    with proxy(server.endpoint, sign=server.signed, trusted=trusted) as running:
        yield running


@pytest.fixture(scope="session")
def _proxy_without_tls(server: Server) -> Iterator[Proxy]:
    trusted = server.authority
    sign = server.signed
    with proxy(server.endpoint, sign=sign, tls=False, trusted=trusted) as running:
        yield running


@pytest.fixture
def counting(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """Provide the proxy between client and server, without requests of other tests."""
    forks = request.node.get_closest_marker("forks")
    name = "_proxy_without_tls" if forks else "_proxy"
    running: Proxy = request.getfixturevalue(name)
    running.reset()
    yield running
    running.reset()


@pytest.fixture(scope="session", autouse=True)
def _frozen() -> None:
    """Exclude permanent objects, above all botocore's models, from garbage collection.

    Each collection is faster as it does not traverse them.
    """
    with pytest.MonkeyPatch.context() as patch:
        _forget_environment(patch)
        boto3.client("s3", region_name="us-east-1")
    gc.collect()
    gc.freeze()


@pytest.fixture
def bucket(server: Server) -> Iterator[BucketView]:
    """Provide a location in the bucket that no other test uses."""
    # The location consists of digits because some faults look for "bad" in keys, which
    # a hexadecimal number could contain.
    place = f"{next(_numbers)}-{uuid4().int % 10**10}"
    view = BucketView(server, f"{place}/static")
    yield view
    if not server.is_ours:
        view.clear()


@pytest.fixture
def site(tmp_path: Path, bucket: BucketView, counting: Proxy) -> Site:
    """Provide a site without files."""
    return Site(tmp_path / "site", bucket, counting)


@pytest.fixture
def new_site(tmp_path: Path, bucket: BucketView, counting: Proxy) -> Callable[[], Site]:
    """Provide a function that makes sites, each with its own folder and location."""
    numbers = itertools.count()

    def new() -> Site:
        number = next(numbers)
        view = BucketView(bucket.server, f"{bucket.location}/{number}/static")
        view.client = bucket.client
        counting.reset()
        return Site(tmp_path / str(number), view, counting)

    return new


@pytest.fixture(params=["plain", "obstore"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the library that uploads: "plain" is boto3 alone, the other is obstore."""
    name: str = request.param
    if name == "obstore" and find_spec("obstore") is None:
        pytest.skip("obstore is not installed")
    if name == "plain":
        # The package does not use obstore if this variable is set, because obstore
        # reads it and boto3 does not.
        monkeypatch.setenv("AWS_CHECKSUM_ALGORITHM", "none")
    return name


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip tests marked ``needs("…")`` if the server lacks one of the features.

    If it lacks trailing checksums, a test that needs them runs without checksums.
    """
    needed = {word for mark in request.node.iter_markers("needs") for word in mark.args}
    if needed:
        server: Server = request.getfixturevalue("server")
        missing = needed & server.lacks
        if TRAILING_CHECKSUMS in missing:
            missing.discard(TRAILING_CHECKSUMS)
            monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        if missing:
            pytest.skip(f"{server.name} lacks {', '.join(sorted(missing))}")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the machine's own credentials and options from the environment."""
    _forget_environment(monkeypatch)


def _forget_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # The variables about checksums are kept so that the suite can be run with a server
    # that does not support them.
    for name in list(os.environ):
        ours = "TEST" in name or "_CHECKSUM_" in name
        if name.startswith(("AWS_", "COLLECTFAST_")) and not ours:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
