"""HTTP proxies, which each request uses or bypasses as boto3's requests do."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from botocore.config import Config

from collectfast_storage.exceptions import BucketError
from tests.support.proxy import Handler, Proxy, Request, proxy
from tests.support.site import Site

pytestmark = pytest.mark.covering


class ForwardHandler(Handler):
    """A handler of a forward proxy, which gets whole URLs and refuses tunnels."""

    def forward(self) -> None:
        parts = urlsplit(self.path)
        assert f"{parts.scheme}://{parts.netloc}" == self.server.upstream
        self.path = self.path.removeprefix(self.server.upstream)
        self.handle_any()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

    def do_CONNECT(self) -> None:
        self.server.seen(Request(self.command, self.path, {}, {}))
        self.answer(407, b"Who are you?")
        self.close_connection = True


@pytest.fixture
def forward(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Yield a forward proxy that no environment variable names yet."""
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    assert site.bucket.client  # The owner's client is made before, without the proxy.
    # There is no TLS, because a proxy could not read requests in a tunnel.
    target = site.bucket.server
    with (
        proxy(
            target.endpoint, target.signed, tls=False, trusted=target.authority
        ) as s3,
        proxy(s3.endpoint, tls=False) as server,
    ):
        site.proxy = s3
        server.RequestHandlerClass = ForwardHandler
        yield server


HOST = "127.0.0.1"
THROUGH: dict[str, dict[str, str]] = {
    "HTTP_PROXY": {"HTTP_PROXY": "PROXY"},
    "http_proxy": {"http_proxy": "PROXY"},
    "both": {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "PROXY"},
    "another host's NO_PROXY": {"HTTP_PROXY": "PROXY", "NO_PROXY": "example.com"},
    "a network's NO_PROXY": {"HTTP_PROXY": "PROXY", "NO_PROXY": "127.0.0.0/8"},
}
PAST: dict[str, dict[str, str]] = {
    "NO_PROXY": {"HTTP_PROXY": "PROXY", "NO_PROXY": HOST},
    "no_proxy": {"http_proxy": "PROXY", "no_proxy": f"example.com,{HOST}"},
    "no_proxy, in other case": {"HTTP_PROXY": "PROXY", "no_proxy": HOST},
    "NO_PROXY for all": {"HTTP_PROXY": "PROXY", "NO_PROXY": "*"},
    "empty": {"HTTP_PROXY": "PROXY", "http_proxy": ""},
    "HTTPS_PROXY": {"HTTPS_PROXY": "PROXY"},
    "ALL_PROXY": {"ALL_PROXY": "PROXY"},
    "ALL_PROXY, empty": {"ALL_PROXY": "PROXY", "all_proxy": ""},
}


def _deploy(site: Site) -> int:
    """Deploy with requests of each kind, and return their number."""
    files = site.write_many(5)
    site.bucket.put("left-over.txt", b"x")
    site.collect("--clear")
    assert site.bucket.files() == files
    assert site.proxy.count().keys() == {"LIST", "PUT", "DELETE MANY"}
    return site.proxy.count().total()


def _set(
    monkeypatch: pytest.MonkeyPatch, forward: Proxy, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("PROXY", forward.endpoint))


@pytest.mark.parametrize("name", THROUGH)
def test_all_requests_use_the_proxy_of_the_environment(
    site: Site, forward: Proxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """If the environment has a proxy, all requests use it, and obstore is not used."""
    _set(monkeypatch, forward, THROUGH[name])
    assert _deploy(site) == forward.count().total()
    assert site.put_by_obstore() == []


@pytest.mark.parametrize("name", PAST)
def test_all_requests_bypass_a_proxy_that_does_not_apply(
    site: Site, forward: Proxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """If a proxy does not apply to the endpoint, all requests bypass it.

    obstore is not used in this case, because it has other rules for proxies.
    """
    _set(monkeypatch, forward, PAST[name])
    _deploy(site)
    assert forward.requests == []
    if importlib.util.find_spec("obstore"):
        assert site.put_by_obstore() == []


@pytest.mark.parametrize("by", ["proxies", "client_config"])
def test_all_requests_use_the_proxy_of_the_site(
    site: Site, forward: Proxy, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """All requests use the proxy in the site's options, also in spite of NO_PROXY."""
    monkeypatch.setenv("NO_PROXY", "*")
    proxies = {"http": forward.endpoint}
    of_a_site = {"proxies": proxies, "client_config": Config(proxies=proxies)}
    site.options[by] = of_a_site[by]
    assert _deploy(site) == forward.count().total()
    assert site.put_by_obstore() == []


def test_all_requests_bypass_a_proxy_that_the_site_disables(
    site: Site, forward: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the option `proxies` is empty, all requests bypass the environment's proxy."""
    monkeypatch.setenv("HTTP_PROXY", forward.endpoint)
    site.options["proxies"] = {}
    _deploy(site)
    assert forward.requests == []


def test_https_requests_use_a_tunnel(
    site: Site, forward: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests with TLS use a tunnel of the proxy.

    The error about a refused tunnel does not contain the proxy's password.
    """
    monkeypatch.setenv("HTTPS_PROXY", forward.endpoint.replace("//", "//me:secret@"))
    site.write("a.css", "a")
    site.options["endpoint_url"] = "https://s3.example.com"
    site.options["client_config"] = Config(
        retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}
    )
    with pytest.raises(BucketError, match=r"bucket 'tests': .*proxy") as caught:
        site.collect()
    assert "secret" not in str(caught.value)
    assert {r.path for r in forward.requests} == {"s3.example.com:443"}
    assert forward.count().keys() == {"CONNECT"}
