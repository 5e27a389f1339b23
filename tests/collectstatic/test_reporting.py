"""Reports of a deploy: a log line, reasons, a progress bar, and a signal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from functools import partial
from io import StringIO
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.management.base import CommandError

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from collectfast_storage.reporting import Progress, Report
from collectfast_storage.signals import collected
from tests.support.processes import MANAGE
from tests.support.proxy import refuse
from tests.support.site import MANIFEST, STATIC, Site


@pytest.fixture
def received() -> Iterator[list[dict[str, Any]]]:
    """Yield a list of the arguments that a receiver of the signal gets."""
    calls: list[dict[str, Any]] = []

    def receive(**arguments: Any) -> None:
        calls.append(arguments)

    collected.connect(receive)
    yield calls
    collected.disconnect(receive)


def test_one_line_at_the_end(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A deploy logs one line with its files, bytes, requests and seconds."""
    site.write_many(10)
    site.collect()
    site.write("dir0/file0.css", "x" * 3000)
    site.bucket.put("leftover.css", b"x")
    caplog.clear()
    with caplog.at_level("INFO", "collectfast_storage"):
        site.collect("--clear")
    [message] = caplog.messages
    line, _, seconds = message.rpartition("; ")
    assert line == (
        "10 files: 9 unchanged, 1 uploaded (3 kB), 1 deleted; 1 DELETE MANY, 1 LIST, "
        "1 PUT"
    )
    assert seconds.endswith(" s")


def test_line_of_a_run_that_did_nothing() -> None:
    """The line of a run without files has zeros, and no requests."""
    assert str(Report(seconds=1.44)) == (
        "0 files: 0 unchanged, 0 uploaded (0 kB), 0 deleted; no requests; 1.4 s"
    )


def test_verbosity_2_names_each_upload_and_its_reason(site: Site) -> None:
    """`--verbosity 2` prints each upload with its reason; less prints none."""
    site.write("same.css", "same")
    site.write("headers.pdf", "headers")
    site.write("content.css", "old")
    site.collect()
    site.backend = f"{__name__}.CachedPdf"
    site.write("content.css", "new")
    site.write("absent.css", "absent")
    output = site.collect("-v2").output
    lines = sorted(line for line in output.splitlines() if line.startswith("Upl"))
    assert lines == [
        "Uploading 'absent.css' (new)",
        "Uploading 'content.css' (content changed)",
        "Uploading 'headers.pdf' (headers changed)",
    ]
    site.options["collectfast_ignore_etag"] = True
    assert "Uploading 'same.css' (ignore_etag)" in site.collect("-v2").output
    assert "Uploading" not in site.collect().output


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("backend", [STATIC, MANIFEST])
def test_dry_run_gives_reasons(site: Site, backend: str, preload: bool) -> None:
    """`--dry-run --verbosity 2` prints each file that a deploy would upload, and why.

    Nothing is uploaded, and less verbosity prints no reasons.
    """
    site.backend = backend
    site.options["collectfast_preload"] = preload
    site.write("same.css", "same")
    site.write("content.css", "old")
    site.collect()
    before = site.bucket.files()
    site.touch()
    site.write("content.css", "new")
    site.write("absent.css", "absent")
    assert _pretended(site.collect("--dry-run", "-v2").output) == [
        "'absent.css' (new)",
        "'content.css' (content changed)",
    ]
    assert _pretended(site.collect("--dry-run", "-v2", "--clear").output) == [
        "'absent.css' (new)",
        "'content.css' (content changed)",
    ]
    assert _pretended(site.collect("--dry-run").output) == []
    site.options["collectfast_ignore_etag"] = True
    assert _pretended(site.collect("--dry-run", "-v2").output) == [
        "'absent.css' (new)",
        "'content.css' (ignore_etag)",
        "'same.css' (ignore_etag)",
    ]
    assert site.bucket.files() == before


def test_dry_run_gives_reasons_for_headers_and_unknown_objects(site: Site) -> None:
    """A dry run tells changed headers from objects that it cannot compare."""
    site.write("headers.pdf", "headers")
    site.write("other.css", "other")
    site.collect()
    site.backend = f"{__name__}.CachedPdf"
    output = site.collect("--dry-run", "-v2").output
    assert _pretended(output) == ["'headers.pdf' (headers changed)"]
    site.proxy.fault = refuse_all
    assert _pretended(site.collect("--dry-run", "-v2").output) == [
        "'headers.pdf' (unknown)",
        "'other.css' (unknown)",
    ]


def refuse_all(handler: Any, request: Any, body: bytes) -> bool:
    handler.error(403, "AccessDenied", "injected")
    return True


def test_dry_run_with_only_hashed_names(site: Site) -> None:
    """A dry run gives no reasons for originals that a deploy would not upload."""
    site.backend = MANIFEST
    site.options["collectfast_only_hashed"] = True
    site.options["collectfast_keep_originals"] = ["robots.txt"]
    site.write("a.css", "a")
    site.write("robots.txt", "robots")
    output = site.collect("--dry-run", "-v2").output
    assert _pretended(output) == ["'robots.txt' (new)"]
    assert site.bucket.names() == []


def _pretended(output: str) -> list[str]:
    return sorted(re.findall(r"^Pretending to upload (.*)$", output, re.MULTILINE))


def test_signal_has_the_report(site: Site, received: list[dict[str, Any]]) -> None:
    """The signal is sent once after each deploy, with the report.

    A receiver can use it to invalidate changed files in a CDN.
    """
    site.write_many(4)
    site.bucket.put("leftover.css", b"x")
    site.collect("--clear")
    [arguments] = received
    report = arguments["report"]
    assert report.uploaded == tuple(sorted(site.bucket.names()))
    assert report.deleted == ("leftover.css",)
    assert report.bytes == sum(map(len, site.bucket.files().values()))
    assert report.requests["PUT"] == 4
    assert arguments["sender"] is type(arguments["storage"])
    site.collect()
    assert received[-1]["report"].uploaded == ()
    assert len(received[-1]["report"].unchanged) == 4
    assert len(received) == 2


def test_no_signal_unless_a_deploy_succeeds(
    site: Site, received: list[dict[str, Any]]
) -> None:
    """A failed deploy, a dry run and a program's batch send no signal."""
    site.write("a.css", "a")
    site.collect("--dry-run")
    with site.storage() as storage, storage.batch() as batch:
        batch.save("b.txt", ContentFile(b"b"))
    site.proxy.fault = refuse("PUT")
    with pytest.raises(CommandError):
        site.collect()
    assert received == []


class Returning(CollectfastS3ManifestStaticStorage):
    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        return super().post_process(*args, **options)


class Yielding(CollectfastS3ManifestStaticStorage):
    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        yield from super().post_process(*args, **options)


@pytest.mark.parametrize("backend", ["Returning", "Yielding"])
def test_one_report_if_a_subclass_wraps_post_process(
    site: Site,
    backend: str,
    received: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If a subclass wraps `post_process`, the log has one line, and one signal is sent.

    Both come after the manifest is uploaded.
    """
    caplog.set_level("INFO", "collectfast_storage")
    site.backend = f"{__name__}.{backend}"
    site.write("a.css", "a")
    site.collect()
    [arguments] = received
    assert {"a.css", "staticfiles.json"} <= {*arguments["report"].uploaded}
    [line] = [r for r in caplog.records if r.name == "collectfast_storage"]
    assert line.getMessage() == str(arguments["report"])


def test_receiver_that_fails_fails_the_deploy(site: Site) -> None:
    """An exception in a receiver fails the deploy, after all files have arrived.

    The work of the receiver is a part of the deploy.
    """

    def receive(**_: Any) -> None:
        raise RuntimeError("the CDN does not answer")

    site.write("a.css", "a")
    collected.connect(receive)
    try:
        with pytest.raises(RuntimeError, match="the CDN does not answer"):
            site.collect()
    finally:
        collected.disconnect(receive)
    assert site.bucket.names() == ["a.css"]
    assert site.collect().requests == {"LIST": 1}


@pytest.mark.parametrize(
    ("terminal", "arguments", "shown"),
    [
        (True, [], True),
        (True, ["--verbosity", "0"], False),
        (True, ["--verbosity", "2"], False),
        (False, [], False),
    ],
)
def test_bar_is_shown_on_a_terminal_only(
    site: Site, terminal: bool, arguments: list[str], shown: bool
) -> None:
    """The bar is shown only on a terminal, and only at the default verbosity."""
    pytest.importorskip("tqdm")
    site.write_many(20)
    environment = os.environ | {
        "SITE_STATIC": str(site.static),
        "SITE_BACKEND": site.backend,
        "SITE_OPTIONS": json.dumps(site.storage_options),
    }
    command = [sys.executable, str(MANAGE), "collectstatic", "--noinput", *arguments]
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(theirs, (24, 80))
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=theirs
    ) as run:
        os.close(theirs)
        text = _read(ours)
    assert run.returncode == 0
    assert ("20/20" in text) is shown
    assert ("MB uploaded" in text) is shown


def _read(descriptor: int) -> str:
    chunks = []
    with open(descriptor, "rb", buffering=0) as file:
        while True:
            try:
                chunk = file.read(4096)
            except OSError:  # A terminal ends with this error.
                break
            if not chunk:
                break
            chunks.append(chunk)
    return b"".join(chunks).decode()


class CachedPdf(CollectfastS3StaticStorage):
    def get_object_parameters(self, name: str) -> dict[str, Any]:
        cached = {"CacheControl": "max-age=60"} if name.endswith(".pdf") else {}
        return super().get_object_parameters(name) | cached


def test_bar_that_was_never_started() -> None:
    """A bar that was never drawn can be advanced and closed."""
    tqdm = pytest.importorskip("tqdm", reason="tqdm is not installed")
    bar = Progress(tqdm=tqdm.tqdm)
    bar.advanced(1, 1)
    bar.close()


def test_bar_shows_why_the_deploy_waits() -> None:
    """The bar shows why the deploy waits, until a request succeeds again."""
    tqdm = pytest.importorskip("tqdm", reason="tqdm is not installed")
    output = StringIO()
    bar = Progress(tqdm=partial(tqdm.tqdm, file=output))
    bar.waiting("time-out")  # It is not drawn yet.
    bar.start(3)
    bar.waiting("connection refused")
    assert "waiting: connection refused" in output.getvalue()
    output.truncate(0)
    bar.waiting("")
    assert "waiting" not in output.getvalue()
    bar.close()


def test_verbosity_2_does_not_name_superseded_files(site: Site) -> None:
    """With a manifest, `--verbosity 2` prints each uploaded name exactly once.

    Files that a later pass supersedes are not uploaded, so they are not printed.
    """
    site.backend = MANIFEST
    site.write("a.css", "a { background: url(b.css) }")
    site.write("b.css", "b { background: url(i.png) }")
    site.write("i.png", "image")
    for image in ("image", "another"):
        site.write("i.png", image)
        deploy = site.collect("--verbosity", "2")
        named = re.findall(r"^Uploading '(.*)' ", deploy.output, re.MULTILINE)
        assert sorted(named) == deploy.put
    assert "Uploading" not in site.collect("--verbosity", "2").output
