"""Deploys that are interrupted at any moment, and the deploys that follow."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import random
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.bucket import BucketView
from tests.support.killing import PROMPT, Hanging, file_cache
from tests.support.processes import LONG, deploy, deploying, seeded, settled
from tests.support.proxy import Handler, Request
from tests.support.site import STATIC, Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

MANIFEST = "collectfast_storage.CollectfastS3ManifestStaticStorage"
LOCAL_MANIFEST = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
FILES = 36


@dataclass(frozen=True)
class Scenario:
    """A kind of deploy: the first or a later one, with options and arguments."""

    name: str
    redeploys: bool = True
    manifest: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


GZIP = {"gzip": True}
TRUSTING = {"collectfast_preload": False}
SCENARIOS = [
    Scenario("first", redeploys=False),
    Scenario("first, manifest", redeploys=False, manifest=True),
    Scenario("first, trusting", redeploys=False, options=TRUSTING),
    Scenario("again"),
    Scenario("again, manifest", manifest=True),
    Scenario("again, gzip", options=GZIP),
    Scenario("again, clear", arguments=("--clear",)),
    Scenario("again, clear, manifest", manifest=True, arguments=("--clear",)),
    Scenario("again, trusting", options=TRUSTING),
    Scenario("again, trusting, manifest", manifest=True, options=TRUSTING),
]


def _write_release(site: Site, number: int) -> dict[str, bytes]:
    """Write a release, in which every second file is the same in all releases."""
    shutil.rmtree(site.static)
    files = {}
    for n in range(FILES):
        only = f"only{number}/" if n % 9 == 0 else ""
        text = f"{n} of {number if n % 2 else 'all'}\n"
        files[f"{only}dir{n % 3}/{n}.txt"] = text * 20
        if n % 6 == 0:
            files[f"dir{n % 3}/{n}.css"] = f"a {{ background: url({n + 1}.svg) }}\n"
            files[f"dir{n % 3}/{n + 1}.svg"] = f"<svg>{text}</svg>\n"
    for name, text in files.items():
        site.write(name, text)
    return {name: text.encode() for name, text in files.items()}


def _expected(site: Site, scenario: Scenario, number: int) -> dict[str, bytes]:
    """Write a release, and return the files that its deploy adds to the bucket."""
    files = _write_release(site, number)
    if not scenario.manifest:
        return files
    root = site.root / f"collected{number}"
    storages = {"staticfiles": {"BACKEND": LOCAL_MANIFEST}}
    site.collect(STORAGES=storages, STATIC_ROOT=str(root))
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def _contents(bucket: BucketView) -> dict[str, bytes]:
    """Return the content of each object as a browser sees it."""
    return {name: _content(bucket.get(name)) for name in bucket.names()}


def _content(answer: Any) -> bytes:
    content: bytes = answer["Body"].read()
    zipped = answer.get("ContentEncoding") == "gzip"
    return gzip.decompress(content) if zipped else content


def _wrong_names(contents: dict[str, bytes]) -> list[str]:
    """Return hashed names in the manifest, if any, that do not match the content."""
    manifest = json.loads(contents.get("staticfiles.json", b'{"paths": {}}'))
    return [
        name
        for name in manifest["paths"].values()
        if hashlib.md5(contents.get(name, b"")).hexdigest()[:12] not in name
    ]


class Strike:
    """A fault that delays requests, and at one of them sends a signal to the deploy."""

    def __init__(self, signum: int, moment: int, how: str) -> None:
        self._signum = signum
        self._moment = moment
        self._how = how
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[str] | None = None
        self._started = threading.Event()
        self.struck = threading.Event()

    def at(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._started.set()

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        time.sleep(0.02)
        if int(request.headers.get("content-length", 0)) != len(body):
            handler.close_connection = True  # A killed process sent only a part.
        elif next(self._numbers) == self._moment:
            self._strike(handler, body)
        else:
            handler.pass_on(body)
        return True

    def _strike(self, handler: Handler, body: bytes) -> None:
        if self._how == "stored":
            handler.pass_on_silently(body)
        elif self._how == "answered":
            handler.pass_on(body)
        self._started.wait()
        assert self._process is not None
        self._process.send_signal(self._signum)
        self.struck.set()
        handler.close_connection = True


def _chance(chance: random.Random, changed: int) -> tuple[int, str]:
    """Choose the request at which to send the signal, and the outcome of that request.

    One of the last requests is chosen often, because their order matters most.
    """
    last = chance.randint(changed - 3, changed + 3)
    moment = chance.choice([chance.randint(1, changed), last])
    return moment, chance.choice(["lost", "stored", "answered"])


@pytest.mark.parametrize(
    ("scenario", "signum"),
    [
        *((each, signal.SIGKILL) for each in SCENARIOS),
        *((each, signal.SIGTERM) for each in SCENARIOS if each.manifest),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_interrupted_at_a_random_moment_the_next_run_completes(
    site: Site, tmp_path: Path, scenario: Scenario, signum: int
) -> None:
    """A deploy that is killed leaves no wrong manifest, and the next one completes it.

    All names in the manifest exist with the right content after the kill, so visitors
    see no missing files. No unknown objects are left.
    """
    seed, chance = seeded()
    site.settings = file_cache(tmp_path / "cache")
    site.backend = MANIFEST if scenario.manifest else STATIC
    site.options = dict(scenario.options)
    before = _expected(site, scenario, 1) if scenario.redeploys else {}
    if before:
        site.collect()
    expected = _expected(site, scenario, 2)
    changed = sum(before.get(name) != content for name, content in expected.items())
    moment, how = _chance(chance, changed)
    context = f"TEST_SEED={seed}: at request {moment}, which is {how}"

    strike = Strike(signum, moment, how)
    site.proxy.fault = strike
    deploying_now = deploying(site, *scenario.arguments, traced=False)
    with settled(site.proxy), deploying_now as process:
        strike.at(process)
        _, errors = process.communicate(timeout=LONG)
    if strike.struck.is_set() and how != "answered":
        assert process.returncode == -signum, f"{context}\n{errors}"
    site.proxy.fault = None
    contents = _contents(site.bucket)
    assert _wrong_names(contents) == [], context
    assert contents.keys() <= before.keys() | expected.keys(), context

    status, errors = deploy(site, *scenario.arguments)
    assert status == 0, f"{context}\n{errors}"
    contents = _contents(site.bucket)
    wrong = [name for name in expected if contents.get(name) != expected[name]]
    assert wrong == [], context
    left = before.keys()
    if scenario.arguments:
        # --clear deletes all other files but those that the previous manifest names.
        manifest = json.loads(before.get("staticfiles.json", b'{"paths": {}}'))
        left = {*manifest["paths"].values()}
    assert contents.keys() <= expected.keys() | left, context


# Ctrl-C.


def _interrupt(site: Site, hanging: Hanging, *arguments: str) -> str:
    """Send SIGINT when the server hangs, and return the process's standard error."""
    site.proxy.fault = hanging
    with settled(site.proxy), deploying(site, *arguments, traced=False) as process:
        hanging.wait()
        time.sleep(0.1)  # Give the process time until it only waits.
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=PROMPT)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the process still runs {PROMPT} s after SIGINT")
    assert process.returncode != 0
    assert site.bucket.server.secret_key not in errors
    assert "Signature=" not in errors
    site.proxy.fault = None
    return errors


@pytest.mark.parametrize("threads", [0, 1, 64])
@pytest.mark.parametrize("backend", [STATIC, MANIFEST])
def test_ctrl_c_while_uploads_hang(site: Site, backend: str, threads: int) -> None:
    """Ctrl-C ends a deploy within two seconds, even if the server does not respond.

    The next deploy uploads all files.
    """
    site.backend = backend
    site.options["collectfast_threads"] = threads
    files = site.write_many(100)
    _interrupt(site, Hanging("PUT"))
    assert deploy(site)[0] == 0
    assert site.bucket.files().items() >= files.items()


@pytest.mark.parametrize(
    ("kind", "options", "arguments"),
    [
        ("LIST", {}, ()),
        ("HEAD", {"collectfast_preload": False}, ()),
        ("DELETE MANY", {}, ("--clear",)),
        ("PUT", {}, ("--no-post-process",)),
    ],
)
def test_ctrl_c_while_another_request_hangs(
    site: Site, kind: str, options: dict[str, Any], arguments: tuple[str, ...]
) -> None:
    """Ctrl-C ends a deploy within two seconds during each kind of request.

    The next deploy uploads all files.
    """
    site.bucket.put("left over.txt", b"left over")
    site.options = options
    files = site.write_many(20)
    _interrupt(site, Hanging(kind), *arguments)
    assert deploy(site, *arguments)[0] == 0
    assert site.bucket.files().items() >= files.items()


def _slow(handler: Handler, request: Request, body: bytes) -> bool:
    time.sleep(0.02)
    return False


def test_ctrl_c_twice_during_a_deploy(site: Site) -> None:
    """Ctrl-C twice in a row ends a deploy within two seconds.

    The next deploy uploads only the files that are not in the bucket.
    """
    files = site.write_many(400)
    site.proxy.fault = _slow
    with settled(site.proxy), deploying(site, traced=False) as process:
        while site.proxy.count()["PUT"] < 50 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PROMPT)
    assert process.returncode != 0
    there = site.bucket.names()
    site.proxy.fault = None
    assert site.collect().put == sorted(files.keys() - {*there})


class Throttling(Hanging):
    """A fault that accepts 40 uploads, and throttles all later ones."""

    def __init__(self, site: Site, *headers: tuple[str, str]) -> None:
        super().__init__("PUT")
        self.site = site
        self.headers = headers

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != self.kind or len(self.site.put()) <= 40:
            return False
        self.seen.set()
        handler.error(503, "SlowDown", headers=self.headers)
        return True


@pytest.mark.parametrize("threads", [0, 64])
@pytest.mark.parametrize("headers", [(), (("Retry-After", "60"),)])
def test_ctrl_c_while_throttled(
    site: Site, threads: int, headers: tuple[tuple[str, str], ...]
) -> None:
    """Ctrl-C ends a deploy within two seconds while the server throttles it.

    This includes waiting for the time of a Retry-After header. The next deploy uploads
    only the files that are not in the bucket.
    """
    site.options["collectfast_threads"] = threads
    files = site.write_many(200)
    errors = _interrupt(site, Throttling(site, *headers))
    assert "Exception in thread" not in errors
    there = site.bucket.names()
    assert len(there) >= 30
    assert site.collect().put == sorted(files.keys() - {*there})
    assert site.bucket.files() == files
