"""Earlier releases, which `--clear` keeps if the site wants more than one."""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.core.files.storage import FileSystemStorage, InMemoryStorage
from django.core.management.base import CommandError

from collectfast_storage import CollectfastS3ManifestStaticStorage
from collectfast_storage.exceptions import BucketError
from tests.support.caches import cold
from tests.support.proxy import refuse
from tests.support.site import MANIFEST, STATIC, Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

JSON = "staticfiles.json"
RELEASES = "staticfiles.releases.json"
HASHED = re.compile(r"\.[0-9a-f]{12}(\.|$)")


class Current:
    """The release that is deployed, and a folder on this machine."""

    release = ""
    folder: ClassVar[Path]


@pytest.fixture(autouse=True)
def _current(tmp_path: Path) -> Iterator[None]:
    Current.folder = tmp_path
    yield
    Current.release = ""


class Varying(CollectfastS3ManifestStaticStorage):
    @property
    def manifest_name(self) -> str:
        return f"staticfiles-{Current.release}.json"


class VaryingFolder(CollectfastS3ManifestStaticStorage):
    @property
    def manifest_name(self) -> str:
        return f"manifests/{Current.release}.json"


class OnDisk(CollectfastS3ManifestStaticStorage):
    def __init__(self, **settings: Any) -> None:
        place = FileSystemStorage(location=Current.folder / Current.release)
        super().__init__(manifest_storage=place, **settings)


class InMemory(CollectfastS3ManifestStaticStorage):
    def __init__(self, **settings: Any) -> None:
        super().__init__(manifest_storage=InMemoryStorage(), **settings)


def _here(cls: type) -> str:
    return f"{__name__}.{cls.__name__}"


UNKNOWN = pytest.mark.parametrize("cls", [Varying, VaryingFolder, OnDisk, InMemory])


@pytest.fixture
def site(site: Site) -> Site:
    """Return a site that keeps two earlier releases."""
    site.backend = MANIFEST
    site.options["collectfast_keep_releases"] = 2
    site.write("same.txt", "the same in all releases")
    return site


def _write(site: Site, release: str) -> None:
    Current.release = release
    site.write("a.css", f"a {{ background: url(i.png) }} /* {release} */")
    site.write("i.png", f"image {release}")


def _deploy(site: Site, release: str, *arguments: str) -> set[str]:
    """Deploy a release; return the hashed names of its files."""
    _write(site, release)
    site.collect(*arguments)
    return _hashed(site, release)


def _hashed(site: Site, release: str) -> set[str]:
    """Return the names of the files of a release, computed as Django does."""
    view = replace(site.bucket, location=f"{site.bucket.location}-{release}-alone")
    other = Site(Current.folder / f"alone-{release}", view, site.proxy, MANIFEST)
    if not view.names():
        other.write("same.txt", "the same in all releases")
        _write(other, release)
        other.collect()
    return {*other.manifest().values()}


def _kept(site: Site) -> set[str]:
    return {name for name in site.bucket.names() if HASHED.search(name)}


def _list(site: Site) -> list[set[str]]:
    releases = json.loads(site.bucket.read(RELEASES))
    return [{name for name in each if HASHED.search(name)} for each in releases]


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("number", [2, 3])
def test_clear_keeps_earlier_releases(
    site: Site, caplog: pytest.LogCaptureFixture, number: int, preload: bool
) -> None:
    """`--clear` keeps this number of earlier releases, and the one it publishes."""
    site.options |= {
        "collectfast_keep_releases": number,
        "collectfast_preload": preload,
    }
    releases: list[set[str]] = []
    for release in "12345":
        releases.insert(0, _deploy(site, release, "--clear"))
        assert _kept(site) == set().union(*releases[: number + 1])
        assert _list(site) == releases[: number + 1]
    assert _warnings(caplog) == []


def test_unchanged_deploy_uploads_nothing(site: Site) -> None:
    """An unchanged deploy uploads nothing, with or without a cache or `--clear`."""
    for release in "123":
        _deploy(site, release)
    files = site.bucket.files()
    site.touch()
    for settings in ({}, cold(site)):
        for arguments in ([], ["--clear"]):
            assert site.collect(*arguments, **settings).put == []
            assert site.bucket.files() == files


def test_one_request_reads_the_list(site: Site) -> None:
    """A deploy reads the list by one request, and uploads it before the manifest."""
    _deploy(site, "1")
    _deploy(site, "2")
    _write(site, "3")
    site.collect()
    lists = [r.method for r in site.proxy.requests if r.key.endswith(RELEASES)]
    assert lists == ["GET", "PUT"]
    puts = [site.name(r.key) for r in site.proxy.requests if r.kind == "PUT"]
    assert puts[-2:] == [RELEASES, JSON]


@pytest.mark.parametrize("only_hashed", [True, False])
def test_rollback_to_a_kept_release(site: Site, only_hashed: bool) -> None:
    """A rollback uploads no hashed files: only originals, the list and the manifest.

    With `collectfast_only_hashed`, it uploads the list and the manifest.
    """
    site.options["collectfast_only_hashed"] = only_hashed
    first, second, third = (_deploy(site, r, "--clear") for r in "123")
    _write(site, "1")
    originals = [] if only_hashed else ["a.css", "i.png"]
    assert site.collect("--clear").put == sorted([*originals, JSON, RELEASES])
    assert _list(site) == [first, third, second]
    assert _kept(site) == first | second | third
    fourth = _deploy(site, "4", "--clear")
    assert _kept(site) == first | third | fourth


def test_option_is_switched_on_later(site: Site) -> None:
    """The release that was live before the option was set counts as an earlier one."""
    site.options["collectfast_keep_releases"] = 1
    first, second = _deploy(site, "1", "--clear"), _deploy(site, "2", "--clear")
    assert RELEASES not in site.bucket.names()
    site.options["collectfast_keep_releases"] = 2
    third = _deploy(site, "3", "--clear")
    assert _kept(site) == second | third
    fourth = _deploy(site, "4", "--clear")
    assert _kept(site) == second | third | fourth
    assert not first & _kept(site) - second


def test_option_is_switched_off_and_on(site: Site) -> None:
    """A deploy without the option in between is kept as the live release.

    `--clear` without the option deletes the list, which would not be right later.
    """
    first, second = _deploy(site, "1"), _deploy(site, "2")
    site.options["collectfast_keep_releases"] = 1
    third = _deploy(site, "3")
    site.options["collectfast_keep_releases"] = 2
    fourth = _deploy(site, "4", "--clear")
    assert _kept(site) == second | third | fourth
    assert _list(site) == [fourth, third, second]
    site.options["collectfast_keep_releases"] = 1
    fifth = _deploy(site, "5", "--clear")
    assert RELEASES not in site.bucket.names()
    assert _kept(site) == fourth | fifth
    assert first


# The manifest's name varies, or the manifest is kept elsewhere.


@UNKNOWN
def test_releases_are_known_without_the_live_manifest(
    site: Site, caplog: pytest.LogCaptureFixture, cls: type
) -> None:
    """`--clear` keeps the releases in the list once it is long enough, with their
    manifests. Until then it keeps all files with hashed names, and warns.
    """
    site.backend = _here(cls)
    site.options["collectfast_keep_releases"] = 1
    releases = [_deploy(site, "0")]
    site.options["collectfast_keep_releases"] = 2
    for number in range(1, 6):
        caplog.clear()
        releases.insert(0, _deploy(site, str(number), "--clear"))
        is_long_enough = number > 2
        expected = releases[:3] if is_long_enough else releases
        assert _kept(site) == set().union(*expected)
        assert bool(_warnings(caplog)) is not is_long_enough
    names = site.bucket.names()
    if cls in (Varying, VaryingFolder):
        prefix = "manifests/" if cls is VaryingFolder else "staticfiles-"
        assert [n for n in names if n.startswith(prefix)] == [
            f"{prefix}{number}.json" for number in (3, 4, 5)
        ]


def test_live_release_before_a_failed_one(site: Site) -> None:
    """The release before one whose manifest could not be saved is kept.

    Its manifest has another name, so the live release is not known.
    """
    site.backend = _here(Varying)
    site.options["collectfast_keep_releases"] = 1
    live = _deploy(site, "live")
    site.options["collectfast_keep_releases"] = 2
    site.proxy.fault = refuse("PUT", "staticfiles-failed.json")
    with pytest.raises(CommandError):
        _deploy(site, "failed", "--clear")
    site.proxy.fault = None
    _deploy(site, "failed", "--clear")
    assert live <= _kept(site)
    _deploy(site, "next", "--clear")
    assert live <= _kept(site)


def test_list_of_a_deploy_without_the_option_is_not_trusted(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """`--clear` of a deploy without the option deletes a list that it outdates."""
    site.backend = _here(Varying)
    for release in "123":
        _deploy(site, release, "--clear")
    site.options["collectfast_keep_releases"] = 1
    live = _deploy(site, "4", "--clear")
    assert RELEASES not in site.bucket.names()
    site.options["collectfast_keep_releases"] = 2
    caplog.clear()
    _deploy(site, "5", "--clear")
    assert live <= _kept(site)
    assert _warnings(caplog) != []


# The list is damaged, denied, or not there.

DAMAGED = [
    b"",
    b"[",
    b"\xff\xfe",
    b"null",
    b"17",
    b'{"version": 2, "releases": []}',
    b'["a", "b"]',
    b'[["a", 1]]',
    b"\x1f\x8bdamaged",
    gzip.compress(b"[[]]", mtime=0)[:-3],
]


@pytest.mark.parametrize("content", DAMAGED, ids=repr)
def test_damaged_list(
    site: Site, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """If the list is damaged, or of another version, no file with a hash is deleted.

    A warning says so. The list is right again after the deploy.
    """
    first, second = _deploy(site, "1"), _deploy(site, "2")
    site.bucket.put(RELEASES, content)
    third = _deploy(site, "3", "--clear")
    assert _kept(site) == first | second | third
    assert [w for w in _warnings(caplog) if "the list of releases is damaged" in w]
    assert _list(site) == [third, second]


@pytest.mark.parametrize(
    "content",
    [b"[]", b"[[]]", b'[["/etc", "../x", ""]]', b"[[], []]"],
    ids=repr,
)
def test_list_with_other_elements(site: Site, content: bytes) -> None:
    """Elements of the list that are not names of files are ignored."""
    _deploy(site, "1")
    second = _deploy(site, "2")
    site.bucket.put(RELEASES, content)
    third = _deploy(site, "3", "--clear")
    assert second | third <= _kept(site)
    assert _list(site)[:2] == [third, second]


# django-storages does not close the file of a compressed manifest.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_compressed_list(site: Site) -> None:
    """The list can be compressed, if the site compresses JSON."""
    site.options |= {"gzip": True, "gzip_content_types": ("application/json",)}
    for release in "1234":
        _deploy(site, release, "--clear")
    assert site.bucket.read(RELEASES)[:2] == b"\x1f\x8b"
    assert _kept(site) == set().union(*(_hashed(site, r) for r in "234"))
    _write(site, "4")
    assert site.collect().put == []


def test_list_that_is_denied(site: Site) -> None:
    """A list that cannot be read is an error, because it would be overwritten."""
    _deploy(site, "1")
    before = site.bucket.files()
    site.proxy.fault = refuse("GET", RELEASES)
    with pytest.raises(BucketError, match="AccessDenied"):
        _deploy(site, "2", "--clear")
    after = site.bucket.files()
    assert {name: after[name] for name in (JSON, RELEASES)} == {
        name: before[name] for name in (JSON, RELEASES)
    }
    assert after.keys() >= before.keys()


def test_list_that_cannot_be_uploaded(site: Site) -> None:
    """If the list cannot be uploaded, the manifest is not published."""
    first = _deploy(site, "1")
    manifest = site.bucket.read(JSON)
    site.proxy.fault = refuse("PUT", RELEASES)
    with pytest.raises(CommandError, match=RELEASES):
        _deploy(site, "2", "--clear")
    assert site.bucket.read(JSON) == manifest
    assert first <= _kept(site)
    site.proxy.fault = None
    second = _deploy(site, "2", "--clear")
    assert _list(site) == [second, first]


def test_short_outage_while_the_list_is_read(site: Site) -> None:
    """A request for the list is repeated like every request of a deploy."""
    first = _deploy(site, "1")
    failures = iter(range(3))

    def fault(handler: Any, request: Any, body: bytes) -> bool:
        is_list = request.kind == "GET" and request.key.endswith(RELEASES)
        if not is_list or next(failures, None) is None:
            return False
        handler.error(503, "ServiceUnavailable", "later")
        return True

    site.proxy.fault = fault
    second = _deploy(site, "2")
    assert next(failures, None) is None
    assert _list(site) == [second, first]


# Other runs.


@UNKNOWN
def test_dry_run_writes_no_list(site: Site, cls: type) -> None:
    """A dry run writes no list, and names no file that `--clear` would keep."""
    site.backend = _here(cls)
    _write(site, "1")
    site.collect("--dry-run", "--clear")
    assert site.bucket.names() == []
    releases = [_deploy(site, release) for release in "1234"]
    before = site.bucket.files()
    _write(site, "5")
    output = site.collect("--dry-run", "--clear").output
    named = {*re.findall(r"^Pretending to delete '(.*)'$", output, re.MULTILINE)}
    assert site.bucket.files() == before
    gone = set().union(*releases[:2]) - set().union(*releases[2:])
    assert {name for name in named if HASHED.search(name)} == gone
    assert RELEASES not in named
    _deploy(site, "5", "--clear")
    assert not gone & _kept(site)


@pytest.mark.parametrize("cls", [CollectfastS3ManifestStaticStorage, Varying])
def test_no_post_process_keeps_all_releases_in_the_list(site: Site, cls: type) -> None:
    """Without post-processing, `--clear` keeps the releases, and writes no list."""
    site.backend = _here(cls) if cls is Varying else MANIFEST
    releases = [_deploy(site, release) for release in "1234"]
    before = site.bucket.read(RELEASES)
    site.collect("--clear", "--no-post-process")
    assert site.bucket.read(RELEASES) == before
    assert _kept(site) == set().union(*releases[1:])


def test_storage_without_manifest_has_no_list(site: Site) -> None:
    """A storage without a manifest writes no list, and makes no request for it."""
    site.backend = STATIC
    site.collect("--clear")
    assert site.bucket.names() == ["same.txt"]
    assert not [r for r in site.proxy.requests if r.key.endswith(RELEASES)]


def test_deploys_without_the_option_make_no_other_requests(site: Site) -> None:
    """Without the option, no request is about the list."""
    del site.options["collectfast_keep_releases"]
    for release in "12":
        _deploy(site, release, "--clear")
    site.proxy.requests.clear()
    _write(site, "3")
    site.collect("--clear")
    assert not [r for r in site.proxy.requests if r.key.endswith(RELEASES)]
    assert RELEASES not in site.bucket.names()


def test_replicas_and_a_shared_cache(site: Site) -> None:
    """Replicas that deploy the same release leave a right list, and upload once."""
    first = _deploy(site, "1")
    _write(site, "2")
    replica = Site(site.root, site.bucket, site.proxy, site.backend, site.options)
    site.collect("--clear")
    assert replica.collect("--clear").put == []
    second = _hashed(site, "2")
    assert _list(site) == [second, first]
    assert _kept(site) == first | second
