"""The hashed files of the live release, which `--clear` keeps."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files.storage import FileSystemStorage, InMemoryStorage
from django.core.management import call_command
from storages.backends.s3 import S3Storage

from collectfast_storage import CollectfastS3ManifestStaticStorage
from tests.support.bucket import BucketView
from tests.support.site import MANIFEST, Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

HASHED = re.compile(r"\.[0-9a-f]{12}(\.|$)")
CLEARS = pytest.mark.parametrize(
    "arguments", [["--clear"], ["--clear", "--no-post-process"]], ids=" ".join
)


class Current:
    """The number of the release that is deployed, and a folder on this machine."""

    release = 0
    folder: ClassVar[Path]


@pytest.fixture(autouse=True)
def _current(tmp_path: Path) -> Iterator[None]:
    Current.folder = tmp_path
    yield
    Current.release = 0


def _here(cls: type) -> str:
    return f"{__name__}.{cls.__name__}"


def _write(site: Site, text: str) -> None:
    site.write("a.css", f"a {{ background: url(i.png) }} /* {text} */")
    site.write("i.png", f"image {text}")
    site.write(f"only-{text}.txt", text)
    (site.static / "plain").write_text(text)  # A name without a suffix.


def _forget(site: Site, text: str) -> None:
    (site.static / f"only-{text}.txt").unlink()


def _hashed(site: Site) -> set[str]:
    return {name for name in site.bucket.names() if HASHED.search(name)}


def _pretended(output: str) -> set[str]:
    return set(re.findall(r"^Pretending to delete '(.*)'$", output, re.MULTILINE))


def _deploy_next(site: Site, *arguments: str) -> str:
    """Deploy the release after the current one; return the command's output."""
    if Current.release:
        _forget(site, str(Current.release))
    Current.release += 1
    _write(site, str(Current.release))
    return site.collect(*arguments).output


def _warned(caplog: pytest.LogCaptureFixture) -> bool:
    return any(
        record.levelno == logging.WARNING and "hashed name" in record.getMessage()
        for record in caplog.records
        if record.name.startswith("collectfast_storage")
    )


# The files of the live release are unknown, so all hashed files are kept.


class VaryingProperty(CollectfastS3ManifestStaticStorage):
    @property
    def manifest_name(self) -> str:
        return f"staticfiles-{Current.release}.json"


class VaryingAttribute(CollectfastS3ManifestStaticStorage):
    def __init__(self, **settings: Any) -> None:
        self.manifest_name = f"staticfiles-{Current.release}.json"
        super().__init__(**settings)


class VaryingFolder(CollectfastS3ManifestStaticStorage):
    @property
    def manifest_name(self) -> str:
        return f"{Current.release}/staticfiles.json"


class Elsewhere(CollectfastS3ManifestStaticStorage):
    """A storage with a manifest in another storage, which each deploy builds anew."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(manifest_storage=self.place(settings), **settings)

    def place(self, settings: dict[str, Any]) -> Any:
        raise NotImplementedError


class OnDisk(Elsewhere):
    """A storage with a manifest in the container that is deployed."""

    def place(self, settings: dict[str, Any]) -> Any:
        return FileSystemStorage(location=Current.folder / str(Current.release))


class InMemory(Elsewhere):
    def place(self, settings: dict[str, Any]) -> Any:
        return InMemoryStorage()


class InAnotherFolder(Elsewhere):
    """A storage with a manifest in a folder of the bucket for each release."""

    def place(self, settings: dict[str, Any]) -> Any:
        location = f"{settings['location']}-manifests/{Current.release}"
        plain = {k: v for k, v in settings.items() if not k.startswith("collectfast_")}
        return S3Storage(**plain | {"location": location})


class OnlyReading(CollectfastS3ManifestStaticStorage):
    """A storage with a `read_manifest` that finds no manifest."""

    def read_manifest(self) -> str | None:
        return None


class ReadingAnother(CollectfastS3ManifestStaticStorage):
    """A storage with a `read_manifest` that returns another release's manifest."""

    def read_manifest(self) -> str | None:
        return json.dumps({"version": "1.1", "paths": {"x.css": "x.0123456789ab.css"}})


class Loading(CollectfastS3ManifestStaticStorage):
    """A storage that loads no manifest, as a subclass may during a build."""

    def load_manifest(self) -> Any:
        return {}, ""


UNKNOWN = pytest.mark.parametrize(
    "cls",
    [
        VaryingProperty,
        VaryingAttribute,
        VaryingFolder,
        OnDisk,
        InMemory,
        InAnotherFolder,
        OnlyReading,
        ReadingAnother,
        Loading,
    ],
)


@UNKNOWN
@CLEARS
def test_all_hashed_files_are_kept_if_the_live_release_is_unknown(
    site: Site, caplog: pytest.LogCaptureFixture, cls: type, arguments: list[str]
) -> None:
    """If the live release is unknown, `--clear` keeps all hashed files and warns.

    Other left over files are deleted.
    """
    site.backend = _here(cls)
    _deploy_next(site)
    site.bucket.put("left over.txt", b"left over")
    releases = [_hashed(site)]
    assert len(releases[0]) == 4
    for _ in range(2):
        caplog.clear()
        _deploy_next(site, *arguments)
        assert set().union(*releases) <= _hashed(site)
        assert _warned(caplog)
        releases.append(_hashed(site))
    names = set(site.bucket.names())
    assert not names & {"left over.txt", "only-1.txt", "only-2.txt"}
    assert {"a.css", "i.png", "plain", "only-3.txt"} <= names


@UNKNOWN
def test_dry_run_does_not_name_files_that_are_kept(site: Site, cls: type) -> None:
    """If the live release is unknown, `--clear --dry-run` names no hashed files."""
    site.backend = _here(cls)
    _deploy_next(site)
    site.bucket.put("left over.txt", b"left over")
    before = site.bucket.names()
    pretended = _pretended(_deploy_next(site, "--clear", "--dry-run"))
    assert site.bucket.names() == before
    assert {name for name in pretended if HASHED.search(name)} == set()
    assert pretended >= {"left over.txt", "only-1.txt"}


@CLEARS
def test_hashed_files_are_kept_if_there_is_no_manifest(
    site: Site, caplog: pytest.LogCaptureFixture, arguments: list[str]
) -> None:
    """If the manifest is missing, `--clear` keeps the hashed files and warns."""
    site.backend = MANIFEST
    _deploy_next(site)
    first = _hashed(site)
    site.bucket.delete("staticfiles.json")
    _deploy_next(site, *arguments)
    assert first <= _hashed(site)
    assert _warned(caplog)


def test_first_deploy_with_clear_does_not_warn(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A first deploy with `--clear` does not warn, since there are no hashed files."""
    site.backend = MANIFEST
    site.bucket.put("left over.txt", b"left over")
    _deploy_next(site, "--clear")
    assert not _warned(caplog)
    assert "left over.txt" not in site.bucket.names()


# Another deploy published since this storage was built.


def _other_release(site: Site) -> dict[str, bytes]:
    """Return the files of a release that another checkout deploys."""
    view = replace(site.bucket, location=f"{site.bucket.location}-other")
    other = Site(Current.folder / "other", view, site.proxy, MANIFEST)
    _write(other, "other")
    other.collect()
    files = other.bucket.files()
    site.proxy.requests.clear()
    return files


def _build_storage() -> None:
    """Build the storage, which loads the manifest."""
    assert staticfiles_storage.manifest_storage is not None


def _publish(bucket: BucketView, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        bucket.put(name, content)


@CLEARS
@pytest.mark.parametrize("first", [True, False], ids=["empty", "deployed"])
def test_release_that_was_published_after_the_storage_was_built(
    site: Site, arguments: list[str], first: bool
) -> None:
    """`--clear` keeps the hashed files in the manifest that the bucket has now."""
    site.backend = MANIFEST
    files = _other_release(site)
    live = {name for name in files if HASHED.search(name)}
    if not first:
        _deploy_next(site)
    _write(site, "mine")
    with site.active():
        _build_storage()
        _publish(site.bucket, files)
        call_command("collectstatic", "--noinput", *arguments, stdout=io.StringIO())
    after = site.bucket.files()
    assert {name: after.get(name) for name in live} == {n: files[n] for n in live}


@pytest.mark.parametrize("same_command", [True, False])
def test_release_that_was_published_between_two_runs_of_a_process(
    site: Site, same_command: bool
) -> None:
    """The second `--clear` of a process keeps a release published since the first."""
    site.backend = MANIFEST
    files = _other_release(site)
    live = {name for name in files if HASHED.search(name)}
    command = Command()
    _write(site, "1")
    with site.active():
        call_command(command, "--noinput", "--clear", stdout=io.StringIO())
        _publish(site.bucket, files)
        _forget(site, "1")
        _write(site, "2")
        second = command if same_command else Command()
        call_command(second, "--noinput", "--clear", stdout=io.StringIO())
    assert live <= _hashed(site)


def test_dry_run_reads_the_live_manifest_too(site: Site) -> None:
    """`--clear --dry-run` does not name the files of the live release.

    It reads the manifest that the bucket has now, not the one loaded earlier.
    """
    site.backend = MANIFEST
    files = _other_release(site)
    output = io.StringIO()
    _write(site, "mine")
    with site.active():
        _build_storage()
        _publish(site.bucket, files)
        arguments = ("--noinput", "--clear", "--dry-run")
        call_command("collectstatic", *arguments, stdout=output)
    assert _pretended(output.getvalue()) == {"only-other.txt"}
    assert site.bucket.files() == files


# The live release is known: the one before it is deleted.


def test_release_replaced_by_the_live_one_is_deleted(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """With Django's own manifest, `--clear` keeps two releases, without a warning."""
    site.backend = MANIFEST
    releases: list[set[str]] = []
    for _ in range(3):
        _deploy_next(site, "--clear")
        releases.append(set(site.manifest().values()))
        assert _hashed(site) == set().union(*releases[-2:])
    assert not _warned(caplog)


def test_release_replaced_by_another_deploy_is_deleted(
    site: Site,
) -> None:
    """Files that only this storage's outdated manifest names are deleted.

    The release of another deploy has replaced them.
    """
    site.backend = MANIFEST
    files = _other_release(site)
    _deploy_next(site)
    old = _hashed(site)
    _write(site, "mine")
    _forget(site, "1")
    with site.active():
        _build_storage()
        _publish(site.bucket, files)
        call_command("collectstatic", "--noinput", "--clear", stdout=io.StringIO())
    live = {name for name in files if HASHED.search(name)}
    assert _hashed(site) == live | set(site.manifest().values())
    assert not old & _hashed(site)


def test_empty_release_is_a_known_release(site: Site) -> None:
    """If the live manifest is empty, `--clear` deletes all older hashed files."""
    site.backend = MANIFEST
    site.write("a.css", "a")
    site.collect()
    (site.static / "a.css").unlink()
    site.collect("--clear")
    site.collect("--clear")
    assert site.bucket.names() == ["staticfiles.json"]
