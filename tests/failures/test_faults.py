"""What goes wrong on the way to S3: all arrives, or the exit status says what did not.

Each fault befalls the second release of a site. Whatever it is, the first release stays
whole until the second one is, and the next run sends what is missing and nothing else.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from django.core.management.base import CommandError

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from collectfast_storage.decision import DOUBTFUL
from tests.support import faults
from tests.support.proxy import Handler
from tests.support.site import LOCAL, STATIC, Site
from tests.support.site import MANIFEST as MANIFEST_STORAGE

pytestmark = pytest.mark.slow

MANIFEST = "staticfiles.json"
# One attempt of boto3's own, so that no test waits for its patience to end.
HASTY = Config(retries={"total_max_attempts": 1})


def _is(*parts: str) -> faults.Victim:
    return lambda key: any(part in key for part in parts)


@dataclass
class Trial:
    """A site whose second release meets a fault."""

    site: Site
    by_obstore: bool
    caplog: pytest.LogCaptureFixture
    capsys: pytest.CaptureFixture[str]
    has_manifest: bool
    secrets: list[str] = field(default_factory=lambda: ["Signature="])
    error: str = ""
    failed: set[str] = field(default_factory=set)

    def release_one(self) -> None:
        site = self.site
        site.options.setdefault("client_config", HASTY)
        self.secrets.append(site.bucket.server.secret_key)
        if not self.by_obstore:  # Which does not know of storage classes.
            site.options["object_parameters"] = {"StorageClass": "STANDARD"}
        for number in range(7):
            site.write(f"dir{number % 3}/file{number}.txt", f"one {number}")
        site.write("css/main.css", "a { background: url(../img/pixel.png) }")
        site.write("img/pixel.png", b"one" * 50_000)
        deploy = site.collect()
        expected = sorted({*deploy.put} - {MANIFEST}) if self.by_obstore else []
        assert [n for n in site.put_by_obstore() if n != MANIFEST] == expected
        other = site.bucket.key("")[:-1] + "-other/a.css"
        site.bucket.client.put_object(Bucket=site.bucket.name, Key=other, Body=b"x")

    def release_two(self) -> None:
        site = self.site
        for number in range(5):
            site.write(f"dir{number % 3}/file{number}.txt", f"two {number}")
        site.write("img/pixel.png", b"two" * 50_000)
        site.write("new.txt", "new")
        (site.static / "dir0/file6.txt").unlink()
        self.before = site.bucket.files()
        self.expected = self._locally()

    def _locally(self) -> dict[str, bytes]:
        """What the bucket must hold in the end."""
        storages = {"staticfiles": {"BACKEND": LOCAL[self.site.backend]}}
        self.site.collect(STORAGES=storages)
        root = self.site.root / "collected"
        files = [path for path in root.rglob("*") if path.is_file()]
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    def deploy(
        self, fault: faults.Fault, *arguments: str, backend: str | None = None
    ) -> None:
        """Run into `fault`, and look at what no fault excuses."""
        self.error = ""
        site = replace(self.site, backend=backend or self.site.backend)
        with self.caplog.at_level("INFO"), fault.in_force(site.proxy):
            said = self._collect(site, *arguments)
        assert fault.harmed
        self.requests = list(self.site.proxy.requests)
        self.put = self.site.put()
        self.after = self.site.bucket.files()
        text = said + self.caplog.text + "".join(self.capsys.readouterr())
        assert [secret for secret in self.secrets if secret in text] == []
        self.check_cache()

    def _collect(self, site: Site, *arguments: str) -> str:
        try:
            deploy = site.collect(*arguments)
        except CommandError as error:
            self.error = str(error)
            self.failed = {*getattr(error, "failures", ())}
            said = "".join(traceback.format_exception(error)) + repr(error)
        else:
            return deploy.output
        gc.collect()  # The run ends with its command, which the error held.
        return said

    def check_cache(self) -> None:
        """Nothing is remembered but what the bucket really holds."""
        with self.site.storage() as storage:
            memory = storage._collectfast_cache("default")
        etags = self.site.bucket.etags()
        for name in {*self.after, *self.before, *self.expected}:
            remembered = memory.get(name)
            if remembered is not None and remembered is not DOUBTFUL:
                md5 = hashlib.md5(self.after[name]).hexdigest()
                assert remembered.fingerprint.md5 == md5, name
                assert remembered.etag == etags[name], name

    def arrives(self) -> None:
        assert self.error == ""
        self.new_release_is_whole()
        self.converges(set())

    def fails(self, *, uncertain: bool = False) -> None:
        """Missing files are named, each once if few; the old release is whole.

        Files of which the answer was lost are there, and named as well: `uncertain`.
        """
        assert self.error
        failed = self.failed
        assert f"Could not upload {len(failed)} file" in self.error
        named = re.findall(r"^  (\S+): .+$", self.error, re.MULTILINE)
        assert sorted(named) == sorted(failed) or len(failed) > 5
        missing = self.missing()
        if uncertain:
            assert missing - {MANIFEST} == set()
        else:
            assert missing - {MANIFEST} == failed
        self.old_release_is_whole()
        self.converges(missing | failed)

    def fails_as_a_whole(self, reason: str) -> None:
        """The bucket is named, as it is not for a file that all this fails."""
        assert re.search(rf"Cannot use bucket 'tests': .*{reason}", self.error)
        self.old_release_is_whole()
        self.converges()

    def missing(self) -> set[str]:
        return {n for n, c in self.expected.items() if self.after.get(n) != c}

    def new_release_is_whole(self) -> None:
        """Beside it there is nothing but what the old manifest names, if anything."""
        assert {n: c for n, c in self.after.items() if n in self.expected} == (
            self.expected
        )
        named = set()
        if self.has_manifest:
            named = {*json.loads(self.before[MANIFEST])["paths"].values()}
        assert self.after.keys() - self.expected.keys() <= named

    def old_release_is_whole(self) -> None:
        """Nothing was deleted, and what the old manifest names is as it was."""
        assert [r.kind for r in self.requests if r.kind.startswith("DELETE")] == []
        assert self.after.keys() >= self.before.keys()
        own = {*self.before} - {*self.expected}
        if self.has_manifest:
            assert self.after[MANIFEST] == self.before[MANIFEST]
            own |= {*json.loads(self.before[MANIFEST])["paths"].values()}
        assert {n: self.after[n] for n in own} == {n: self.before[n] for n in own}

    def converges(self, missing: set[str] | None = None) -> None:
        """From a fresh checkout, with no fault: what is missing, and then nothing."""
        missing = self.missing() if missing is None else missing
        for expected in (missing, set[str](), set[str]()):
            self.site.touch()
            deploy = self.site.collect("--clear")
            assert {*deploy.put} == expected
            assert len(deploy.put) == len(expected)
            self.after = self.site.bucket.files()
            self.new_release_is_whole()
            self.check_cache()
        assert self.after == self.expected
        assert deploy.requests["DELETE MANY"] == 0
        other = self.site.bucket.key("")[:-1] + "-other/a.css"
        bucket = self.site.bucket
        bucket.client.head_object(Bucket=bucket.name, Key=other)

    def obstore_sent_what_was_not_harmed(self, fault: faults.Fault) -> None:
        harmed = {self.site.name(key) for key in fault.harmed} | {MANIFEST}
        by_obstore = {
            self.site.name(request.key)
            for request in self.requests
            if request.kind == "PUT"
            and "boto" not in request.headers["user-agent"].lower()
        }
        others = {*self.put} - harmed if self.by_obstore else set()
        assert by_obstore - harmed <= others
        if len(harmed) < 3:  # In a row, they are reason enough to stop using it.
            assert by_obstore - harmed == others


@pytest.fixture(params=[STATIC, MANIFEST_STORAGE], ids=["static", "manifest"])
def backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture(params=["plain", "obstore"])
def trial(
    request: pytest.FixtureRequest,
    site: Site,
    backend: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> Trial:
    """A first release is up, and the sources are those of the second."""
    by_obstore = request.param == "obstore"
    if by_obstore and importlib.util.find_spec("obstore") is None:
        pytest.skip("obstore is not installed")
    site.backend = backend
    trial = Trial(site, by_obstore, caplog, capsys, backend != STATIC)
    trial.release_one()
    trial.release_two()
    return trial


MadeFor = Callable[..., faults.Fault]
FAULTS: dict[str, tuple[MadeFor, faults.Victim, str]] = {
    "slow down": (
        partial(faults.Refusal, 503, "SlowDown"),
        _is("/file0.", "/file5."),  # A fifth of them.
        "SlowDown",
    ),
    "reset": (
        faults.ResetInBody,
        _is("/file1.", "/pixel."),
        # OpenSSL calls it an EOF, if it comes while it writes.
        "Connection (was closed|reset|aborted)|Could not connect|EOF occurred",
    ),
    "damage": (
        faults.Damage,
        _is("/file2."),
        "BadDigest|SHA256|SignatureDoesNotMatch",
    ),
    "refusal": (
        # An ETag is no proof that anything was stored.
        partial(faults.Refusal, 403, "AccessDenied", ETag='"of another"'),
        _is("/file3."),
        "AccessDenied.*injected",
    ),
}


def test_what_passes_is_mended_in_the_run(trial: Trial) -> None:
    """Where boto3 gets through, all arrives, and the exit status is 0."""
    trial.site.options["client_config"] = Config(retries={"total_max_attempts": 2})
    # A refusal boto3 takes for an answer (and obstore's is mended in test_obstore.py).
    names = [name for name in FAULTS if name != "refusal"]
    each = [FAULTS[name][0](victim=FAULTS[name][1], times=1) for name in names]
    fault = faults.Several(*each, faults.LostAnswer(_is("/new."), 1))
    trial.deploy(fault, "--clear")
    assert all(each.harmed for each in fault.faults)
    assert {*fault.harmed.values()} == {1}
    trial.obstore_sent_what_was_not_harmed(fault)
    trial.arrives()


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_pass_is_named(trial: Trial, name: str) -> None:
    """And everything else arrives."""
    make, victim, reason = FAULTS[name]
    fault = make(victim=victim)
    trial.deploy(fault, "--clear")
    failed = {trial.site.name(key) for key in fault.harmed}
    assert trial.missing() - {MANIFEST} == failed
    lines = trial.error.splitlines()[1:]
    assert [line for line in lines if not re.search(reason, line)] == []
    trial.obstore_sent_what_was_not_harmed(fault)
    trial.fails()


def test_lost_answer(trial: Trial) -> None:
    """Stored or not, nobody knows: it is sent again until an answer says so."""
    fault = faults.LostAnswer(_is("/file1.", "/pixel."))
    trial.deploy(fault, "--clear")
    trial.obstore_sent_what_was_not_harmed(fault)
    trial.fails(uncertain=True)


def test_answer_that_never_comes(trial: Trial) -> None:
    """No way waits longer than the site's own `read_timeout`."""
    limits = Config(read_timeout=1.5, connect_timeout=5)
    trial.site.options["client_config"] = HASTY.merge(limits)
    fault = faults.Silence(_is("/file4."))
    trial.deploy(fault, "--clear")
    assert "/file4.txt: Read timeout on endpoint" in trial.error
    trial.fails()


@pytest.mark.parametrize("backend", [MANIFEST_STORAGE])
def test_refused_manifest_leaves_the_old_one(trial: Trial) -> None:
    """The last of all requests is no less a failure."""
    fault = faults.Refusal(403, "AccessDenied", _is(MANIFEST))
    trial.deploy(fault, "--clear")
    assert f"  {MANIFEST}: " in trial.error
    assert trial.missing() == {MANIFEST}
    trial.old_release_is_whole()
    trial.converges({MANIFEST})


class WithTokens(CollectfastS3StaticStorage):
    """As a site does it whose credentials come from a service of its own."""

    fault: faults.ExpiringToken

    def _create_session(self) -> Any:
        session = boto3.Session()
        session._session._credentials = self.fault.credentials()
        return session


class ManifestWithTokens(WithTokens, CollectfastS3ManifestStaticStorage):
    pass


def _deploy_with_tokens(trial: Trial, **options: Any) -> faults.ExpiringToken:
    """Deploy the second release with a token that expires meanwhile."""
    fault = faults.ExpiringToken(trial.site.bucket.server, **options)
    trial.secrets += [fault.first, fault.second]
    WithTokens.fault = fault
    name = "ManifestWithTokens" if trial.has_manifest else "WithTokens"
    trial.deploy(fault, "--clear", backend=f"{__name__}.{name}")
    return fault


def test_token_that_is_refreshed_in_mid_run(trial: Trial) -> None:
    """What was signed with the old one goes up with the new one."""
    fault = _deploy_with_tokens(trial, life=5)
    assert fault.expired
    trial.arrives()


def test_token_that_nobody_refreshes(trial: Trial) -> None:
    """Then nothing would go up any more: one error, which is about the bucket."""
    _deploy_with_tokens(trial, life=5, refreshable=False)
    if trial.error.startswith("Cannot use bucket"):
        trial.fails_as_a_whole("ExpiredToken")
    else:
        trial.fails()


def test_token_that_expires_under_a_large_file(trial: Trial) -> None:
    """Which only boto3 sends: it is asked to do so again, with the new one."""
    trial.site.options["transfer_config"] = TransferConfig(multipart_threshold=60_000)
    fault = _deploy_with_tokens(trial, at="/pixel.")
    assert any("/pixel." in key for key in fault.harmed)
    trial.arrives()


@pytest.mark.parametrize(
    ("backend", "status", "kinds"),
    [(STATIC, 301, {"PUT"}), (MANIFEST_STORAGE, 307, {"LIST", "HEAD", "PUT"})],
)
def test_bucket_in_another_region(trial: Trial, status: int, kinds: set[str]) -> None:
    """boto3 follows S3 there, with a signature for the other region."""
    trial.deploy(faults.OtherRegion(status, kinds), "--clear")
    trial.arrives()


@pytest.mark.parametrize("backend", [MANIFEST_STORAGE])
def test_bucket_in_another_region_that_nobody_tells(trial: Trial) -> None:
    """What S3 said is passed on, for each file."""
    trial.deploy(faults.OtherRegion(301, {"PUT"}, tells=False), "--clear")
    assert trial.error.count("PermanentRedirect") == len(trial.error.splitlines()) - 1
    trial.fails()


def _half(handler: Handler, body: bytes, *, announced: bool) -> None:
    status, content, headers = handler.ask(body)
    half = content[: len(content) // 2]
    if announced:
        return handler.answer(status, half, headers)
    handler.send_response_only(status)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(half)
    return handler.reset()


def _say(handler: Handler, body: bytes, *, content: bytes) -> None:
    handler.answer(200, content)


LISTINGS: dict[str, Callable[[Handler, bytes], None]] = {
    "busy": lambda handler, body: handler.error(503, "SlowDown"),
    "refused": lambda handler, body: handler.error(403, "AccessDenied"),
    "reset": lambda handler, body: handler.reset(),
    "reset in its middle": partial(_half, announced=False),
    "half": partial(_half, announced=True),
    "empty": partial(_say, content=b""),
    "text": partial(_say, content=b"Welcome to nginx!"),
    "page": partial(_say, content=b"<html><body>Welcome</body></html>"),
    "nothing": partial(_say, content=b"<ListBucketResult></ListBucketResult>"),
    "error": partial(_say, content=b"<Error><Code>InternalError</Code></Error>"),
    "the same": faults.first_page,
}


@pytest.mark.parametrize(
    ("backend", "page"), [(STATIC, 1), (STATIC, 2), (MANIFEST_STORAGE, 2)]
)
def test_listing_that_breaks(
    site: Site,
    backend: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    page: int,
) -> None:
    """It is never taken for the end of the bucket: one error, which names that."""
    site.backend = backend
    trial = Trial(site, False, caplog, capsys, backend != STATIC)
    trial.release_one()
    trial.release_two()
    for name, harm in LISTINGS.items():
        trial.deploy(faults.BrokenListing(harm, broken=page), "--clear")
        assert trial.error.startswith("Cannot use bucket 'tests': "), name
        assert {r.kind for r in trial.requests} <= {"LIST", "HEAD", "GET"}, name
        assert trial.after == trial.before
    trial.fails_as_a_whole("")


@pytest.mark.parametrize("name", ["access_key", "security_token"])
def test_line_break_in_credentials(
    site: Site, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """It came with them from a file; what they are is not for the log."""
    site.write("a.css", "a")
    site.options |= {name: "not-for-the-log\n", "client_config": HASTY}
    with caplog.at_level("INFO"), pytest.raises(CommandError) as caught:
        site.collect()
    text = f"{caught.value} {caught.value!r} {caplog.text}"
    assert "Cannot use bucket 'tests': " in text
    assert "Check the credentials for a line break." in text
    assert "not-for-the-log" not in text
    assert "Signature=" not in text
    assert site.proxy.count() == {}
