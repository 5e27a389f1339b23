"""Errors that concern every file: reported once, and the run ends early."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.core.management.base import CommandError

from collectfast_storage.exceptions import BucketError, UploadError
from tests.support.proxy import Handler, Request, refuse
from tests.support.site import STATIC, Site

pytestmark = pytest.mark.covering

MANIFEST_STORAGE = "collectfast_storage.CollectfastS3ManifestStaticStorage"


def _fails(site: Site, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a deploy that fails, and return its error.

    The error is short, and so is the rest of standard error.
    """
    with pytest.raises(CommandError) as caught:
        site.collect()
    error = str(caught.value)
    assert len(error.splitlines()) <= 5
    assert "Traceback" not in error
    assert "try again" not in error
    printed = capsys.readouterr().err
    assert len(printed) < 1000
    assert "failed!" not in printed
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
    """A run ends after twenty uploads failed for the same reason.

    The error has one line for all of them, which says what to check.
    """
    site.backend = backend
    site.write_many(300)

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            handler.error(status, code)
        return request.kind == "PUT"

    site.proxy.fault = fault
    error = _fails(site, capsys)
    assert error.startswith(
        "Could not upload 20 files; the other files were not tried:"
    )
    assert re.search(rf"  20 files, for example \S+: .*{code}.*{advice}", error)
    # Files are uploaded one by one before the first success, because its ETag shows
    # whether ETags are MD5s.
    assert 20 <= len(site.put()) <= 60


def test_unknown_object_parameter(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown object parameter is an error before any file is uploaded."""
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
def test_bucket_error_in_the_middle_of_a_deploy(
    site: Site, status: int, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error that concerns the whole bucket ends the run with one sentence.

    The next deploy uploads the remaining files, and few of the others again.
    """
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
    # Uploads that were running when the run ended may be repeated, because the result
    # of those requests is not known.
    assert len(set(site.collect().put) & arrived) <= 20
    assert site.bucket.files() == files


def test_credentials_that_cannot_be_refreshed(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A failing `credential_process` is an error of the bucket, and not of a file.

    No request is sent.
    """
    config = tmp_path / "config"
    config.write_text("[default]\ncredential_process = false\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    site.options |= {"access_key": None, "secret_key": None}
    site.write_many(300)
    error = _fails(site, capsys)
    assert error.startswith(f"Cannot use bucket {site.bucket.name!r}: ")
    assert site.proxy.count() == {}


def test_single_failures_do_not_end_the_run(site: Site) -> None:
    """All other files are uploaded if thirty single uploads fail.

    A run ends early only if uploads fail without a successful one between them.
    """
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


def test_single_failed_file_is_named_with_its_reason(site: Site) -> None:
    """The error for a single failed file has a line with its name and the reason."""
    site.write_all({f"{n}.css": b"x" for n in range(8)})
    site.proxy.fault = refuse("PUT", "/3", "three")
    with pytest.raises(
        UploadError, match=r"^Could not upload 1 file:\n  3\.css: .*three"
    ):
        site.collect()


def test_urls_in_errors_are_shortened_to_their_host(site: Site) -> None:
    """URLs in errors contain only the host.

    A complete URL may contain a signature, and differs for each file.
    """
    cause = ValueError('at "https://s3.example.com/b/a.css?X-Amz-Signature=1" it ended')
    text = str(BucketError("b", cause))
    assert text == ("Cannot use bucket 'b': at \"https://s3.example.com/…\" it ended")
