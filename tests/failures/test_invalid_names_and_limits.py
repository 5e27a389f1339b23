"""Invalid names, limits of the machine, and configurations that cannot work."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.management.base import CommandError

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from collectfast_storage.exceptions import CollectfastError, UploadError
from tests.support.processes import LONG, MANAGE, environment
from tests.support.proxy import Handler, Request, proxy
from tests.support.servers import Server
from tests.support.site import MANIFEST, STATIC, Site
from tests.support.sources import finder_of

pytestmark = [pytest.mark.slow, pytest.mark.covering]

BACKENDS = pytest.mark.parametrize("backend", [STATIC, MANIFEST])
PLAIN = "storages.backends.s3.S3StaticStorage"
ENOUGH = 25  # More than the number of equal failures that ends a run.

# Names that cannot be keys.


def _not_utf8(number: int) -> str:
    return os.fsdecode(b"a/bad-\xff-%d.txt" % number)


def _too_long(number: int) -> str:
    return f"a/{'long/' * 220}{number}.txt"


def _surrogate(number: int) -> str:
    return f"a/\ud800{number}.txt"


NAMES: dict[str, Callable[[int], str]] = {
    "not UTF-8": _not_utf8,
    "too long": _too_long,
    "a surrogate": _surrogate,
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("threads", [0, 8])
def test_many_names_that_cannot_be_keys(
    site: Site, kind: str, order: str, threads: int
) -> None:
    """Invalid names are failures of single files, and all other files are uploaded.

    This holds for any order of the files, and for more invalid names than the number
    of failures that would otherwise end a run.
    """
    site.options["collectfast_threads"] = threads
    bad = {NAMES[kind](number): b"bad %d" % number for number in range(ENOUGH)}
    good = {f"good/{number}.txt": b"good %d" % number for number in range(ENOUGH)}
    sources = {**bad, **good} if order == "first" else {**good, **bad}
    site.settings["STATICFILES_FINDERS"] = [finder_of(sources)]
    with pytest.raises(UploadError) as caught:
        site.collect()
    assert caught.value.failures.keys() == bad.keys()
    assert str(caught.value).startswith(f"Could not upload {ENOUGH} files:\n")
    assert site.bucket.files() == good
    # The next deploy does not upload the other files again.
    with pytest.raises(UploadError):
        site.collect()
    assert not {*site.put()} & good.keys()


@pytest.mark.skipif(os.name != "posix", reason="names are text on other systems")
@pytest.mark.parametrize("arguments", [[], ["--no-post-process"]], ids=" ".join)
@pytest.mark.parametrize("preload", [True, False])
def test_many_files_on_disk_whose_names_are_not_utf8(
    site: Site, arguments: list[str], preload: bool
) -> None:
    """Files with names that are not UTF-8 are failures, and all others are uploaded.

    The text of the error contains "UTF-8".
    """
    site.options["collectfast_preload"] = preload
    for number in range(ENOUGH):
        path = os.fsencode(site.static) + b"/%d-\xff.txt" % number
        with open(path, "wb") as file:  # noqa: PTH123 (the path is bytes)
            file.write(b"bad %d" % number)
    good = site.write_many(10)
    with pytest.raises(UploadError, match="UTF-8") as caught:
        site.collect(*arguments)
    assert len(caught.value.failures) == ENOUGH
    assert "the other files were not tried" not in str(caught.value)
    assert site.bucket.files() == good


@pytest.mark.parametrize("code", ["KeyTooLongError", "XMinioInvalidObjectName"])
def test_many_names_that_the_server_refuses(site: Site, code: str) -> None:
    """A run does not end early if the server refuses many names.

    Such a response concerns one key only, so all other files are uploaded.
    """

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        is_refused = request.kind == "PUT" and "refused" in request.key
        if is_refused:
            handler.error(400, code)
        return is_refused

    site.proxy.fault = fault
    bad = {f"a/refused-{number}.txt": b"%d" % number for number in range(ENOUGH)}
    good = {f"b/{number}.txt": b"%d" % number for number in range(ENOUGH)}
    site.settings["STATICFILES_FINDERS"] = [finder_of({**bad, **good})]
    with pytest.raises(UploadError, match=code) as caught:
        site.collect()
    assert caught.value.failures.keys() == bad.keys()
    assert site.bucket.files() == good


# Processes with few threads or file descriptors.

FEW_THREADS = """
import threading

original, left = threading.Thread.start, {limit}

def start(thread):
    global left
    if left <= 0:
        raise RuntimeError("can't start new thread")
    left -= 1
    original(thread)

threading.Thread.start = start
"""
RUN = """
import runpy
import sys

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _deploy(
    site: Site, before: str = "", *arguments: str, **variables: str
) -> tuple[int, str, str]:
    """Run collectstatic in a process that first runs the code `before`."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            before + RUN,
            str(MANAGE),
            "collectstatic",
            "--noinput",
            *arguments,
        ],
        env=environment(site) | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@BACKENDS
@pytest.mark.parametrize("limit", [0, 1, 5])
def test_threads_that_cannot_be_started(site: Site, backend: str, limit: int) -> None:
    """A deploy succeeds if only a few threads can be started, or none at all."""
    site.backend = backend
    files = site.write_many(29) | {"large.bin": bytes(9 << 20)}  # uploaded in parts
    site.write("large.bin", files["large.bin"])
    status, output, errors = _deploy(site, FEW_THREADS.format(limit=limit))
    assert (status, "Traceback" in errors) == (0, False), errors
    assert "30 static files copied" in output
    assert site.bucket.files().items() >= files.items()
    # The same holds with HEAD requests instead of a listing, and without changes.
    site.options["collectfast_preload"] = False
    site.proxy.requests.clear()
    status, output, errors = _deploy(site, FEW_THREADS.format(limit=limit))
    assert status == 0, errors
    assert "0 static files copied, 30 unmodified" in output
    assert site.put() == []


class FewDescriptors:
    """A storage that leaves few file descriptors to its process after the listing."""

    def exists(self, name: str) -> bool:
        found: bool = super().exists(name)  # type: ignore[misc]
        limit = os.environ.pop("LEAVE_DESCRIPTORS", None)
        if limit:
            import resource

            taken = len([*Path("/proc/self/fd").iterdir()]) - 1
            most = taken + int(limit)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        return found


class StaticFewDescriptors(FewDescriptors, CollectfastS3StaticStorage):
    pass


class ManifestFewDescriptors(FewDescriptors, CollectfastS3ManifestStaticStorage):
    pass


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
@pytest.mark.parametrize("backend", ["StaticFewDescriptors", "ManifestFewDescriptors"])
@pytest.mark.parametrize("limit", [1, 3, 4])
def test_too_few_file_descriptors(site: Site, backend: str, limit: int) -> None:
    """A deploy with too few file descriptors succeeds, or its error names open files.

    The error does not blame the network or the certificates.
    """
    site.backend = f"{__name__}.{backend}"
    files = site.write_many(60)
    status, _, errors = _deploy(site, LEAVE_DESCRIPTORS=str(limit))
    if status == 0:
        assert site.bucket.files().items() >= files.items()
        return
    assert re.search("(?i)open files", errors), errors
    assert "Could not connect" not in errors
    assert "AWS_CA_BUNDLE" not in errors
    assert "staticfiles.json" not in site.bucket.names()


# Missing credential files.


def _web_identity(tmp_path: Path, patch: pytest.MonkeyPatch) -> str:
    token = str(tmp_path / "no-such-token")
    patch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", token)
    patch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/deploy")
    return token


def _web_identity_is_a_folder(tmp_path: Path, patch: pytest.MonkeyPatch) -> str:
    _web_identity(tmp_path, patch)
    patch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path))
    return str(tmp_path)


def _web_identity_of_a_profile(tmp_path: Path, patch: pytest.MonkeyPatch) -> str:
    token = str(tmp_path / "no-such-token")
    _configure(
        tmp_path,
        patch,
        f"web_identity_token_file = {token}\n"
        "role_arn = arn:aws:iam::123456789012:role/deploy",
    )
    return token


def _process(tmp_path: Path, patch: pytest.MonkeyPatch) -> str:
    program = str(tmp_path / "no-such-program")
    _configure(tmp_path, patch, f"credential_process = {program}")
    return program


def _configure(tmp_path: Path, patch: pytest.MonkeyPatch, lines: str) -> None:
    config = tmp_path / "config"
    config.write_text(f"[default]\nregion = us-east-1\n{lines}\n")
    patch.setenv("AWS_CONFIG_FILE", str(config))


PROVIDERS = [
    _web_identity,
    _web_identity_is_a_folder,
    _web_identity_of_a_profile,
    _process,
]


@BACKENDS
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("preload", [True, False])
def test_missing_credential_file(
    site: Site,
    backend: str,
    provider: Callable[[Path, pytest.MonkeyPatch], str],
    preload: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A missing credential file ends collectstatic with one line.

    The error names the file and the bucket, and no request is sent.
    """
    missing = provider(tmp_path, monkeypatch)
    site.backend = backend
    site.options |= {
        "access_key": None,
        "secret_key": None,
        "collectfast_preload": preload,
    }
    site.write_many(30)
    with pytest.raises(CollectfastError) as caught:
        site.collect()
    assert missing in str(caught.value)
    assert repr(site.bucket.name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert site.proxy.count() == {}


def test_missing_token_file_causes_no_traceback(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """manage.py exits with status 1 and without a traceback if a token file is missing.

    Its standard error names the file.
    """
    missing = _web_identity(tmp_path, monkeypatch)
    site.options |= {"access_key": None, "secret_key": None}
    site.write("a.txt", "a")
    status, _, errors = _deploy(site)
    assert status == 1
    assert "Traceback" not in errors
    assert missing in errors


@pytest.mark.parametrize("backend", [STATIC, PLAIN])
def test_missing_token_file_in_a_program(
    site: Site, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing token file makes a program's `save` raise FileNotFoundError.

    django-storages raises the same exception.
    """
    _web_identity(tmp_path, monkeypatch)
    site.backend = backend
    site.options |= {"access_key": None, "secret_key": None}
    with site.storage() as storage, pytest.raises(FileNotFoundError):
        storage.save("a.txt", ContentFile(b"a"))


# An https URL for an endpoint that uses plain HTTP.


@BACKENDS
@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("verify", ["a CA", True])
def test_https_url_of_an_http_endpoint(
    site: Site, server: Server, backend: str, preload: bool, verify: Any
) -> None:
    """The error about an https URL of an HTTP endpoint mentions HTTP.

    It does not advise to set a CA file, because that would not help.
    """
    site.backend = backend
    site.options["collectfast_preload"] = preload
    site.options["verify"] = str(site.proxy.authority) if verify == "a CA" else verify
    site.write_many(5)
    with proxy(server.endpoint, tls=False) as plain:
        address = plain.endpoint.removeprefix("http://")
        site.options["endpoint_url"] = f"https://{address}"
        with pytest.raises(CommandError) as caught:
            site.collect()
    error = str(caught.value)
    assert address in error
    assert re.search(r"\bHTTP\b", error)
    assert "AWS_CA_BUNDLE" not in error
    assert "option verify" not in error
    assert len(error.splitlines()) == 1


# Endpoints with a host that already contains the name of the bucket.


def _no_such_key(handler: Handler, request: Request, body: bytes) -> bool:
    """Answer a LIST as if it were a GET of a missing key."""
    if request.kind == "LIST":
        handler.error(404, "NoSuchKey", "The specified key does not exist.")
    return request.kind == "LIST"


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "collectfast_storage" and record.levelno >= logging.WARNING
    ]


@BACKENDS
@pytest.mark.parametrize("arguments", [[], ["--no-post-process"]], ids=" ".join)
def test_no_such_key_in_response_to_a_listing(
    site: Site, backend: str, arguments: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A deploy sends HEAD requests if the server responds NoSuchKey to the LIST.

    One warning names the bucket and mentions the endpoint.
    """
    site.backend = backend
    files = site.write_many(20)
    site.proxy.fault = _no_such_key
    first = site.collect(*arguments)
    assert site.bucket.files().items() >= files.items()
    assert first.requests["LIST"] == 1
    assert first.requests["HEAD"] >= len(files)
    [warning] = _warnings(caplog)
    assert repr(site.bucket.name) in warning
    assert "endpoint" in warning.lower()
    site.touch()
    again = site.collect(*arguments)
    assert again.put == []
    assert "20 unmodified" in again.summary
    site.write("dir0/file0.css", "changed")
    assert "dir0/file0.css" in site.collect(*arguments).put
    assert site.bucket.read("dir0/file0.css") == b"changed"


def test_clear_with_no_such_key_in_response_to_a_listing(site: Site) -> None:
    """`--clear` is an error if the server responds NoSuchKey to the LIST.

    It deletes nothing, because it needs the listing.
    """
    files = site.write_many(5)
    site.collect()
    site.bucket.put("left-over.txt", b"left over")
    site.proxy.fault = _no_such_key
    with pytest.raises(CollectfastError, match=r"(?i)endpoint"):
        site.collect("--clear")
    assert site.bucket.names() == sorted([*files, "left-over.txt"])


def test_missing_bucket_is_an_error(site: Site) -> None:
    """The response NoSuchBucket ends the deploy, unlike NoSuchKey."""

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        handler.error(404, "NoSuchBucket")
        return True

    site.write_many(5)
    site.proxy.fault = fault
    with pytest.raises(CollectfastError, match="NoSuchBucket"):
        site.collect()
    assert site.put() == []


# Other packages with a collectstatic command.

COMMAND = """
from django.contrib.staticfiles.management.commands.collectstatic import Command
"""


@pytest.fixture
def packages(tmp_path: Path) -> str:
    """Return a folder with packages named collectfast, collectfasta and other."""
    for name in ("collectfast", "collectfasta", "other"):
        commands = tmp_path / "packages" / name / "management" / "commands"
        commands.mkdir(parents=True)
        for folder in (commands, commands.parent, commands.parent.parent):
            (folder / "__init__.py").touch()
        if name != "other":
            (commands / "collectstatic.py").write_text(COMMAND)
    return str(tmp_path / "packages")


LOGS = """
import logging

logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
"""


def _warned(
    site: Site, packages: str, apps: list[str], *arguments: str
) -> tuple[str, list[str]]:
    """Deploy with `apps`, and return the output and the logged warnings."""
    variables = environment(site)
    path = os.pathsep.join([packages, variables["PYTHONPATH"]])
    listed = ", ".join(f'"{app}"' for app in apps)
    status, output, errors = _deploy(
        site,
        LOGS,
        *arguments,
        PYTHONPATH=path,
        SITE_APPS=f"[{listed}]",
    )
    assert status == 0, errors
    return output, [line for line in errors.splitlines() if "WARNING" in line]


@BACKENDS
@pytest.mark.parametrize("predecessor", ["collectfast", "collectfasta"])
def test_warning_about_a_predecessor_without_this_app(
    site: Site, packages: str, backend: str, predecessor: str
) -> None:
    """The storage logs one warning if a predecessor is in INSTALLED_APPS.

    The warning names that app and the setting.
    """
    site.backend = backend
    files = site.write_many(10)
    _, lines = _warned(site, packages, ["other", predecessor])
    assert len(lines) == 1
    [line] = lines
    assert line.startswith("WARNING collectfast_storage ")
    assert repr(predecessor) in line
    assert "INSTALLED_APPS" in line
    assert site.bucket.files().items() >= files.items()


def test_no_warning_about_other_apps(site: Site, packages: str) -> None:
    """The storage logs no warning about apps that are not predecessors."""
    site.write_many(10)
    _, lines = _warned(site, packages, ["other"])
    assert lines == []
