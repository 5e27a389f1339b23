"""Faults between the deploy and S3.

Either all files are uploaded, or the command fails and names those that are missing.
Each fault occurs in the deploy of a site's second release. The first release is
Each fault occurs in the deploy of a site's second release. The first release remains
missing files.
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

pytestmark = [pytest.mark.slow, pytest.mark.covering]

MANIFEST = "staticfiles.json"
# One attempt of boto3, because tests need not wait for its retries.
ONE_ATTEMPT = Config(retries={"total_max_attempts": 1})


def _is(*parts: str) -> faults.Victim:
    return lambda key: any(part in key for part in parts)


@dataclass
class Trial:
    """A site with a first release, and the deploy of a second one with a fault."""

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
        site.options.setdefault("client_config", ONE_ATTEMPT)
        self.secrets.append(site.bucket.server.secret_key)
        if not self.by_obstore:  # obstore does not support storage classes.
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
        """Return the files that must be in the bucket in the end."""
        storages = {"staticfiles": {"BACKEND": LOCAL[self.site.backend]}}
        self.site.collect(STORAGES=storages)
        root = self.site.root / "collected"
        files = [path for path in root.rglob("*") if path.is_file()]
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    def deploy(
        self, fault: faults.Fault, *arguments: str, backend: str | None = None
    ) -> None:
        """Deploy with `fault`, and check all that must hold with every fault.

        No output contains a secret, and the cache contains no wrong entry.
        """
        self.error = ""
        site = replace(self.site, backend=backend or self.site.backend)
        with self.caplog.at_level("INFO"), fault.in_force(site.proxy):
            output = self._collect(site, *arguments)
        assert fault.harmed
        self.requests = list(self.site.proxy.requests)
        self.put = self.site.put()
        self.after = self.site.bucket.files()
        text = output + self.caplog.text + "".join(self.capsys.readouterr())
        assert [secret for secret in self.secrets if secret in text] == []
        self.check_cache()

    def _collect(self, site: Site, *arguments: str) -> str:
        try:
            deploy = site.collect(*arguments)
        except CommandError as error:
            self.error = str(error)
            self.failed = {*getattr(error, "failures", ())}
            output = "".join(traceback.format_exception(error)) + repr(error)
        else:
            return deploy.output
        gc.collect()  # Release the command, and with it the run.
        return output

    def check_cache(self) -> None:
        """Assert that the upload cache contains only objects that are in the bucket."""
        with self.site.storage() as storage:
            cache = storage._collectfast_cache("default")
        etags = self.site.bucket.etags()
        for name in {*self.after, *self.before, *self.expected}:
            cached = cache.get(name)
            if cached is not None and cached is not DOUBTFUL:
                md5 = hashlib.md5(self.after[name]).hexdigest()
                assert cached.fingerprint.md5 == md5, name
                assert cached.etag == etags[name], name

    def check_success(self) -> None:
        """Assert that the deploy succeeded with all files of the second release."""
        assert self.error == ""
        self.check_new_release()
        self.check_next_deploys(set())

    def check_failure(self, *, uncertain: bool = False) -> None:
        """Assert that the error names the missing files, and the old release is kept.

        Up to five files are named one by one. With `uncertain` the responses to some
        uploads were lost, so these files are in the bucket although the error names
        them.
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
        self.check_old_release()
        self.check_next_deploys(missing | failed)

    def check_bucket_error(self, reason: str) -> None:
        """Assert that the error names the bucket and `reason`, and not single files."""
        assert re.search(rf"Cannot use bucket 'tests': .*{reason}", self.error)
        self.check_old_release()
        self.check_next_deploys()

    def missing(self) -> set[str]:
        return {n for n, c in self.expected.items() if self.after.get(n) != c}

    def check_new_release(self) -> None:
        """Assert that the new release is complete.

        The only other objects are those that the old manifest names, if there is one.
        """
        assert {n: c for n, c in self.after.items() if n in self.expected} == (
            self.expected
        )
        named = set()
        if self.has_manifest:
            named = {*json.loads(self.before[MANIFEST])["paths"].values()}
        assert self.after.keys() - self.expected.keys() <= named

    def check_old_release(self) -> None:
        """Assert that no file was deleted, and that the old release is unchanged."""
        assert [r.kind for r in self.requests if r.kind.startswith("DELETE")] == []
        assert self.after.keys() >= self.before.keys()
        own = {*self.before} - {*self.expected}
        if self.has_manifest:
            assert self.after[MANIFEST] == self.before[MANIFEST]
            own |= {*json.loads(self.before[MANIFEST])["paths"].values()}
        assert {n: self.after[n] for n in own} == {n: self.before[n] for n in own}

    def check_next_deploys(self, missing: set[str] | None = None) -> None:
        """Assert that the next deploy uploads the missing files, and later ones none.

        These deploys meet no fault, and all sources have new modification times.
        """
        missing = self.missing() if missing is None else missing
        for expected in (missing, set[str](), set[str]()):
            self.site.touch()
            deploy = self.site.collect("--clear")
            assert {*deploy.put} == expected
            assert len(deploy.put) == len(expected)
            self.after = self.site.bucket.files()
            self.check_new_release()
            self.check_cache()
        assert self.after == self.expected
        assert deploy.requests["DELETE MANY"] == 0
        other = self.site.bucket.key("")[:-1] + "-other/a.css"
        bucket = self.site.bucket
        bucket.client.head_object(Bucket=bucket.name, Key=other)

    def check_obstore(self, fault: faults.Fault) -> None:
        """Assert that obstore uploaded the files that the fault did not affect."""
        harmed = {self.site.name(key) for key in fault.harmed} | {MANIFEST}
        by_obstore = {
            self.site.name(request.key)
            for request in self.requests
            if request.kind == "PUT"
            and "boto" not in request.headers["user-agent"].lower()
        }
        others = {*self.put} - harmed if self.by_obstore else set()
        assert by_obstore - harmed <= others
        if len(harmed) < 3:  # After three failures in a row, obstore is not used.
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
    """Return a trial with the first release deployed and the second one's sources."""
    by_obstore = request.param == "obstore"
    if by_obstore and importlib.util.find_spec("obstore") is None:
        pytest.skip("obstore is not installed")
    site.backend = backend
    trial = Trial(site, by_obstore, caplog, capsys, backend != STATIC)
    trial.release_one()
    trial.release_two()
    return trial


FaultFactory = Callable[..., faults.Fault]
FAULTS: dict[str, tuple[FaultFactory, faults.Victim, str]] = {
    "slow down": (
        partial(faults.Refusal, 503, "SlowDown"),
        _is("/file0.", "/file5."),  # A fifth of the files.
        "SlowDown",
    ),
    "reset": (
        faults.ResetInBody,
        _is("/file1.", "/pixel."),
        # OpenSSL reports an EOF if the reset occurs while it writes.
        "Connection (was closed|reset|aborted)|Could not connect|EOF occurred",
    ),
    "damage": (
        faults.Damage,
        _is("/file2."),
        "BadDigest|SHA256|SignatureDoesNotMatch",
    ),
    "refusal": (
        # The ETag must not be taken for a proof that the object was stored.
        partial(faults.Refusal, 403, "AccessDenied", ETag='"of another"'),
        _is("/file3."),
        "AccessDenied.*injected",
    ),
}


def test_transient_faults_are_corrected_within_the_run(trial: Trial) -> None:
    """The deploy succeeds with all files if each fault occurs once for a file."""
    trial.site.options["client_config"] = Config(retries={"total_max_attempts": 2})
    # Without the refusal, because boto3 does not retry it. test_obstore.py contains a
    # refusal of obstore's requests.
    names = [name for name in FAULTS if name != "refusal"]
    each = [FAULTS[name][0](victim=FAULTS[name][1], times=1) for name in names]
    fault = faults.Several(*each, faults.LostAnswer(_is("/new."), 1))
    trial.deploy(fault, "--clear")
    assert all(each.harmed for each in fault.faults)
    assert {*fault.harmed.values()} == {1}
    trial.check_obstore(fault)
    trial.check_success()


@pytest.mark.parametrize("name", FAULTS)
def test_permanent_faults_are_named(trial: Trial, name: str) -> None:
    """The error names each file with a permanent fault, and its reason.

    All other files are uploaded.
    """
    make, victim, reason = FAULTS[name]
    fault = make(victim=victim)
    trial.deploy(fault, "--clear")
    failed = {trial.site.name(key) for key in fault.harmed}
    assert trial.missing() - {MANIFEST} == failed
    lines = trial.error.splitlines()[1:]
    assert [line for line in lines if not re.search(reason, line)] == []
    trial.check_obstore(fault)
    trial.check_failure()


def test_lost_response(trial: Trial) -> None:
    """A file without a response to its upload is an error, and is uploaded again.

    The file may or may not have been stored, because the response was lost.
    """
    fault = faults.LostAnswer(_is("/file1.", "/pixel."))
    trial.deploy(fault, "--clear")
    trial.check_obstore(fault)
    trial.check_failure(uncertain=True)


def test_response_that_never_comes(trial: Trial) -> None:
    """Uploads wait for a response only as long as `read_timeout` of `client_config`.

    This applies to uploads by boto3 and by obstore.
    """
    limits = Config(read_timeout=1.5, connect_timeout=5)
    trial.site.options["client_config"] = ONE_ATTEMPT.merge(limits)
    fault = faults.Silence(_is("/file4."))
    trial.deploy(fault, "--clear")
    assert "/file4.txt: Read timeout on endpoint" in trial.error
    trial.check_failure()


@pytest.mark.parametrize("backend", [MANIFEST_STORAGE])
def test_refused_manifest_leaves_the_old_one(trial: Trial) -> None:
    """A refused upload of the manifest is an error, and the old manifest is kept."""
    fault = faults.Refusal(403, "AccessDenied", _is(MANIFEST))
    trial.deploy(fault, "--clear")
    assert f"  {MANIFEST}: " in trial.error
    assert trial.missing() == {MANIFEST}
    trial.check_old_release()
    trial.check_next_deploys({MANIFEST})


class WithTokens(CollectfastS3StaticStorage):
    """A storage with a session that gets its credentials from a custom service."""

    fault: faults.ExpiringToken

    def _create_session(self) -> Any:
        session = boto3.Session()
        session._session._credentials = self.fault.credentials()
        return session


class ManifestWithTokens(WithTokens, CollectfastS3ManifestStaticStorage):
    pass


def _deploy_with_tokens(trial: Trial, **options: Any) -> faults.ExpiringToken:
    """Deploy the second release with a token that expires during the deploy."""
    fault = faults.ExpiringToken(trial.site.bucket.server, **options)
    trial.secrets += [fault.first, fault.second]
    WithTokens.fault = fault
    name = "ManifestWithTokens" if trial.has_manifest else "WithTokens"
    trial.deploy(fault, "--clear", backend=f"{__name__}.{name}")
    return fault


def test_token_that_is_refreshed_during_the_run(trial: Trial) -> None:
    """Uploads that fail with an expired token are sent again with the new token."""
    fault = _deploy_with_tokens(trial, life=5)
    assert fault.expired
    trial.check_success()


def test_token_that_cannot_be_refreshed(trial: Trial) -> None:
    """An expired token that cannot be refreshed fails the deploy.

    The error is about the bucket, or names the files that were not uploaded.
    """
    _deploy_with_tokens(trial, life=5, refreshable=False)
    if trial.error.startswith("Cannot use bucket"):
        trial.check_bucket_error("ExpiredToken")
    else:
        trial.check_failure()


def test_token_that_expires_during_a_large_file(trial: Trial) -> None:
    """A large file is uploaded again with the new token if its token expires.

    Only boto3 uploads large files.
    """
    trial.site.options["transfer_config"] = TransferConfig(multipart_threshold=60_000)
    fault = _deploy_with_tokens(trial, at="/pixel.")
    assert any("/pixel." in key for key in fault.harmed)
    trial.check_success()


@pytest.mark.parametrize(
    ("backend", "status", "kinds"),
    [(STATIC, 301, {"PUT"}), (MANIFEST_STORAGE, 307, {"LIST", "HEAD", "PUT"})],
)
def test_bucket_in_another_region(trial: Trial, status: int, kinds: set[str]) -> None:
    """All files are uploaded if the bucket is in another region.

    boto3 follows the redirect of S3, and signs requests for the other region.
    """
    trial.deploy(faults.OtherRegion(status, kinds), "--clear")
    trial.check_success()


@pytest.mark.parametrize("backend", [MANIFEST_STORAGE])
def test_bucket_in_another_region_that_is_not_named(trial: Trial) -> None:
    """Each line of the error has S3's reason if no response names the region."""
    trial.deploy(faults.OtherRegion(301, {"PUT"}, tells=False), "--clear")
    assert trial.error.count("PermanentRedirect") == len(trial.error.splitlines()) - 1
    trial.check_failure()


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


def _answer(handler: Handler, body: bytes, *, content: bytes) -> None:
    handler.answer(200, content)


LISTINGS: dict[str, Callable[[Handler, bytes], None]] = {
    "busy": lambda handler, body: handler.error(503, "SlowDown"),
    "refused": lambda handler, body: handler.error(403, "AccessDenied"),
    "reset": lambda handler, body: handler.reset(),
    "reset in its middle": partial(_half, announced=False),
    "half": partial(_half, announced=True),
    "empty": partial(_answer, content=b""),
    "text": partial(_answer, content=b"Welcome to nginx!"),
    "page": partial(_answer, content=b"<html><body>Welcome</body></html>"),
    "nothing": partial(_answer, content=b"<ListBucketResult></ListBucketResult>"),
    "error": partial(_answer, content=b"<Error><Code>InternalError</Code></Error>"),
    "the same": faults.first_page,
}


@pytest.mark.parametrize(
    ("backend", "page"), [(STATIC, 1), (STATIC, 2), (MANIFEST_STORAGE, 2)]
)
def test_broken_listing_is_an_error(
    site: Site,
    backend: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    page: int,
) -> None:
    """A broken listing ends the deploy with an error that names the bucket.

    It is not treated as the end of the listing, so nothing is uploaded or deleted.
    """
    site.backend = backend
    trial = Trial(site, False, caplog, capsys, backend != STATIC)
    trial.release_one()
    trial.release_two()
    for name, harm in LISTINGS.items():
        trial.deploy(faults.BrokenListing(harm, broken=page), "--clear")
        assert trial.error.startswith("Cannot use bucket 'tests': "), name
        assert {r.kind for r in trial.requests} <= {"LIST", "HEAD", "GET"}, name
        assert trial.after == trial.before
    trial.check_bucket_error("")


@pytest.mark.parametrize("name", ["access_key", "security_token"])
def test_line_break_in_credentials(
    site: Site, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A line break in the credentials is an error that does not contain them.

    Such a line break may come from a file. No request is sent.
    """
    site.write("a.css", "a")
    site.options |= {name: "not-for-the-log\n", "client_config": ONE_ATTEMPT}
    with caplog.at_level("INFO"), pytest.raises(CommandError) as caught:
        site.collect()
    text = f"{caught.value} {caught.value!r} {caplog.text}"
    assert "Cannot use bucket 'tests': " in text
    assert "Check the credentials for a line break." in text
    assert "not-for-the-log" not in text
    assert "Signature=" not in text
    assert site.proxy.count() == {}
