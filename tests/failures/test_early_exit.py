"""What concerns every file is said once, and ends the run soon."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.core.management.base import CommandError

from collectfast_storage.exceptions import BucketError, UploadError
from tests.support.proxy import Handler, Request, refuse
from tests.support.site import STATIC, Site

MANIFEST_STORAGE = "collectfast_storage.CollectfastS3ManifestStaticStorage"


def _fails(site: Site, capsys: pytest.CaptureFixture[str]) -> str:
    """Deploy; return the error, which is short, as is all that Django says before."""
    with pytest.raises(CommandError) as caught:
        site.collect()
    error = str(caught.value)
    assert len(error.splitlines()) <= 5
    assert "Traceback" not in error
    assert "try again" not in error
    told = capsys.readouterr().err
    assert len(told) < 1000
    assert "failed!" not in told
    return error


@pytest.mark.parametrize("backend", [STATIC, MANIFEST_STORAGE])
@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (403, "AccessDenied", "s3:PutObject"),
        (400, "AccessControlListNotSupported", "default_acl"),
    ],
)
def test_every_upload_is_refused(
    site: Site,
    backend: str,
    status: int,
    code: str,
    advice: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Twenty are enough to see it; they are one line, with what to look at."""
    site.backend = backend
    site.write_many(300)

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            handler.error(status, code)
        return request.kind == "PUT"

    site.proxy.fault = fault
    error = _fails(site, capsys)
    first_line = "Could not upload 20 files; the other files were not tried:"
    assert error.startswith(first_line)
    assert re.search(rf"  20 files, for example \S+: .*{code}.*{advice}", error)
    # One by one, until the first success tells what ETags are like.
    assert 20 <= len(site.put()) <= 60


def test_parameter_that_there_is_not(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found before anything is sent."""
    site.write_many(300)
    site.options["object_parameters"] = {"CacheContrl": "max-age=60"}
    error = _fails(site, capsys)
    assert "CacheContrl" in error
    assert "object_parameters" in error
    assert site.put() == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "ExpiredToken"),
        (403, "RequestTimeTooSkewed"),
        (403, "AllAccessDisabled"),
        (403, "InvalidAccessKeyId"),
        (404, "NoSuchBucket"),
    ],
)
def test_in_the_middle(
    site: Site, status: int, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence about the bucket; what arrived before is remembered."""
    files = site.write_many(300)

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        is_over = request.kind == "PUT" and len(site.put()) > 50
        if is_over:
            handler.error(status, code)
        return is_over

    site.proxy.fault = fault
    error = _fails(site, capsys)
    assert error.startswith(f"Cannot use bucket {site.bucket.name!r}: ")
    assert code in error
    assert len(site.put()) <= 250
    arrived = set(site.bucket.names())
    assert 30 <= len(arrived) < 300
    site.proxy.fault = None
    # But those that were under way, of which nobody knows.
    assert len(set(site.collect().put) & arrived) <= 20
    assert site.bucket.files() == files


def test_credentials_that_cannot_be_refreshed(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A program that is to bring them fails: no file is to blame."""
    config = tmp_path / "config"
    config.write_text("[default]\ncredential_process = false\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    site.options |= {"access_key": None, "secret_key": None}
    site.write_many(300)
    error = _fails(site, capsys)
    assert error.startswith(f"Cannot use bucket {site.bucket.name!r}: ")
    assert site.proxy.count() == {}


def test_some_that_fail_of_their_own_stop_nobody(site: Site) -> None:
    """All others arrive; with a success between them, no number is too many."""
    files = site.write_many(150)
    refused = {name for name in files if re.search(r"file\d*[05]\.", name)}

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        is_refused = request.kind == "PUT" and site.name(request.key) in refused
        if is_refused:
            handler.error(403, "AccessDenied")
        return is_refused

    site.proxy.fault = fault
    with pytest.raises(UploadError) as caught:
        site.collect()
    assert caught.value.failures.keys() == refused
    assert len(refused) == 30
    assert site.bucket.files().keys() == files.keys() - refused
    assert str(caught.value).startswith("Could not upload 30 files:\n  30 files, for")


def test_few_of_one_reason_are_each_named(site: Site) -> None:
    """And each reason has its line."""
    site.write_all({f"{n}.css": b"x" for n in range(8)})
    site.proxy.fault = refuse("PUT", "/3", "three")
    with pytest.raises(
        UploadError, match=r"^Could not upload 1 file:\n  3\.css: .*three"
    ):
        site.collect()


def test_urls_are_cut_to_their_host(site: Site) -> None:
    """They may be signed, and differ for each file."""
    cause = ValueError('at "https://s3.example.com/b/a.css?X-Amz-Signature=1" it ended')
    text = str(BucketError("b", cause))
    assert text == ("Cannot use bucket 'b': at \"https://s3.example.com/…\" it ended")
