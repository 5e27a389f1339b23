"""TLS certificates: of a site's own CA, and some that must be refused."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management.base import CommandError

from collectfast_storage.exceptions import BucketError
from tests.support import certificates
from tests.support.processes import deploy
from tests.support.proxy import Handler, Request, proxy
from tests.support.servers import Server
from tests.support.site import Site

pytestmark = pytest.mark.covering


@pytest.fixture
def other(tmp_path: Path) -> str:
    """Return the file of a CA that did not sign the server's certificate."""
    (tmp_path / "other").mkdir()
    return str(certificates.make(tmp_path / "other")[0])


@pytest.fixture
def elsewhere(site: Site, server: Server) -> Iterator[None]:
    """Give the server a certificate of the right CA for another host."""
    trusted, host = server.authority, "s3.example.com"
    with proxy(
        server.endpoint, sign=server.signed, host=host, trusted=trusted
    ) as running:
        site.proxy = running
        yield


def _trust(site: Site, patch: pytest.MonkeyPatch, place: str, file: str | None) -> None:
    """Make the site trust the CAs in `file`, by its option or a variable."""
    patch.delenv("REQUESTS_CA_BUNDLE", raising=False)  # The machine's own.
    site.options["verify"] = None
    if place == "verify":
        site.options["verify"] = file
    elif file is not None:
        patch.setenv(place, file)


PLACES = ("verify", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


def _by_obstore(site: Site, way: str, files: dict[str, bytes]) -> bool:
    """Return whether obstore has uploaded all `files`, or none if it is not used."""
    return site.put_by_obstore() == (sorted(files) if way == "obstore" else [])


@pytest.mark.parametrize("place", PLACES)
def test_own_ca(
    site: Site, way: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA is found in all places where boto3 finds it, by obstore, too."""
    _trust(site, monkeypatch, place, str(site.proxy.authority))
    files = site.write_many(20)
    assert site.collect().requests == {"LIST": 1, "PUT": len(files)}
    assert _by_obstore(site, way, files)
    assert site.bucket.files() == files


@pytest.mark.parametrize("first", range(2))
def test_places_of_cas_have_the_precedence_of_botocore(
    site: Site, way: str, first: int, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first place in botocore's order decides, whatever the later ones name."""
    for place in PLACES[first + 1 :]:
        monkeypatch.setenv(place, other)
    right = str(site.proxy.authority)
    site.options["verify"] = right if first == 0 else None
    if first == 1:
        monkeypatch.setenv(PLACES[1], right)
    files = site.write_many(5)
    site.collect()
    assert _by_obstore(site, way, files)
    assert site.bucket.files() == files


def _assert_error(site: Site, error: BaseException, reason: str) -> None:
    """Assert that the error is one line about the certificate and the remedy."""
    assert isinstance(error, BucketError)
    [line] = str(error).splitlines()
    assert line.startswith(f"Cannot use bucket {site.bucket.name!r}: ")
    assert f"SSL validation failed for {site.proxy.endpoint}/" in line
    assert reason in line
    assert "option verify" in line
    assert site.proxy.count() == {}


def _assert_refused(site: Site, reason: str) -> None:
    """Assert that the command fails after one connection, without a request."""
    site.write_many(50)
    with pytest.raises(CommandError) as error:
        site.collect()
    _assert_error(site, error.value, reason)
    assert site.proxy.accepted == 1
    assert site.bucket.names() == []


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("place", [*PLACES, "nowhere"])
def test_wrong_ca(
    site: Site,
    way: str,
    place: str,
    preload: bool,
    other: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A certificate of another CA ends the command, wherever the CAs are configured."""
    _trust(site, monkeypatch, place, other if place in PLACES else None)
    site.options["collectfast_preload"] = preload
    _assert_refused(site, "certificate verify failed")


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.usefixtures("elsewhere")
def test_wrong_host(site: Site, way: str, preload: bool) -> None:
    """A certificate for another host ends the command, although its CA is right."""
    site.options["collectfast_preload"] = preload
    _assert_refused(site, "s3.example.com")


def test_missing_file_of_cas(site: Site, way: str) -> None:
    """A missing file of CAs ends the command with one error."""
    site.options["verify"] = str(site.root / "missing.pem")
    site.write_many(50)
    with pytest.raises(CommandError) as error:
        site.collect()
    _assert_error(site, error.value, "No such file")


@pytest.mark.usefixtures("elsewhere")
def test_command_line_shows_no_traceback(site: Site, way: str) -> None:
    """On the command line, the error is one line, and the exit status is 1."""
    site.write_many(50)
    status, errors = deploy(site)
    assert status == 1
    [line] = errors.splitlines()
    assert line.startswith("BucketError: Cannot use bucket")
    assert "SSL validation failed" in line
    assert site.proxy.accepted == 1


def test_wrong_certificate_after_the_listing(site: Site, way: str, other: str) -> None:
    """If the certificate is wrong only after the listing, there is one error, too.

    There is not one error for each file.
    """
    own = Path(other).with_name("server.pem")
    right = site.proxy.context

    def take_over(handler: Handler, request: Request) -> bool:
        site.proxy.context = certificates.server_context(own)
        handler.close_connection = True
        return False

    site.write_many(300)
    site.proxy.early_fault = take_over
    try:
        with pytest.raises(CommandError) as error:
            site.collect()
    finally:
        site.proxy.context, site.proxy.early_fault = right, None
    assert site.proxy.count() == {"LIST": 1}
    # The run waits for the first upload; if obstore makes it, boto3 tries, too.
    assert site.proxy.accepted == (3 if way == "obstore" else 2)
    site.proxy.requests.clear()
    _assert_error(site, error.value, "certificate verify failed")
    assert site.bucket.names() == []
    assert site.collect().summary.startswith("300 static files copied")


def test_broken_handshake_is_tried_again(site: Site, way: str) -> None:
    """A broken handshake is retried, because it does not show a wrong certificate.

    The network or the server may be the reason.
    """
    broken = iter([ssl.ALERT_DESCRIPTION_INTERNAL_ERROR])
    assert site.proxy.context is not None
    site.proxy.context.sni_callback = lambda *_: next(broken, None)
    files = site.write_many(5)
    try:
        requests = site.collect().requests
    finally:
        site.proxy.context.sni_callback = None
    assert next(broken, None) is None
    assert requests == {"LIST": 1, "PUT": len(files)}
    assert site.bucket.files() == files
