"""The upload cache after deploys that were killed or not alone, or if it fails.

A deploy marks cache entries as doubtful before it changes their objects. A later deploy
therefore does not trust an entry of a killed deploy.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.core.cache.backends.filebased import FileBasedCache
from django.core.files.base import ContentFile

from tests.support.killing import Hanging, Last, file_cache, kill_at_the_last
from tests.support.processes import deploy
from tests.support.proxy import meanwhile
from tests.support.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

MANIFEST = "collectfast_storage.CollectfastS3ManifestStaticStorage"


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_previous_release_is_restored_after_a_killed_deploy(
    site: Site, tmp_path: Path, preload: bool, answers: bool, signum: int
) -> None:
    """A deploy of the previous release restores it after a killed deploy.

    The cache contains the previous release, although the bucket no longer does.
    """
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": preload}
    count = 20 if answers else 5  # Only a few requests run without responses.
    release = {f"{n}.txt": b"A %d" % n for n in range(count)}
    site.write_all(release)
    site.collect()
    for name in release:
        site.write(name, "B")
    kill_at_the_last(site, Last(answers, count), signum)
    assert set(site.bucket.files().values()) == {b"B"}

    site.write_all(release)
    site.collect()
    assert site.bucket.files() == release


def test_cache_is_trusted_after_the_next_complete_run(
    site: Site, tmp_path: Path
) -> None:
    """Only the first deploy after a killed one uploads its files again.

    The second one trusts the cache, and sends no request.
    """
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": False}
    site.write_many(5)
    site.collect()
    for path in site.static.rglob("*.*"):
        path.write_text("B")
    kill_at_the_last(site, Last(False, 5), signal.SIGKILL)
    assert site.collect().requests["PUT"] == 5
    assert site.collect().requests == {}


def test_cache_is_trusted_after_the_previous_release_is_restored(
    site: Site, tmp_path: Path
) -> None:
    """Only the first deploy after a killed one uploads a file that is unchanged again.

    The killed deploy had marked the cache entry, but not yet replaced the object. The
    second deploy trusts the cache, and sends no request.
    """
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": False}
    site.write("a.txt", "A")
    site.collect()
    site.write("a.txt", "B")
    kill_at_the_last(site, Hanging("PUT"), signal.SIGKILL)
    site.write("a.txt", "A")
    assert site.collect().requests["PUT"] == 1
    assert site.collect().requests == {}


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_previous_headers_are_restored_after_a_killed_deploy(
    site: Site, tmp_path: Path, preload: bool, signum: int
) -> None:
    """A deploy with the previous headers restores them after a killed deploy.

    ETags do not show that the headers of an object changed.
    """
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": preload}
    names = sorted(site.write_many(10))
    _cached_for(site, 60).collect()
    kill_at_the_last(_cached_for(site, 99), Last(True, 10), signum)
    assert _ages(site) == dict.fromkeys(names, "max-age=99")
    _cached_for(site, 60).collect()
    assert _ages(site) == dict.fromkeys(names, "max-age=60")


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_deleted_file_is_uploaded_after_a_killed_clear(
    site: Site, tmp_path: Path, preload: bool, signum: int
) -> None:
    """A file that a killed `--clear` deleted is uploaded by the next deploy.

    The killed deploy could not note in the cache that the deletion succeeded.
    """
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": preload}
    site.write("kept.txt", "kept")
    site.write("deleted.txt", "deleted")
    site.collect()
    (site.static / "deleted.txt").unlink()
    kill_at_the_last(site, Last(False, 1, "DELETE MANY"), signum, "--clear")
    assert site.bucket.names() == ["kept.txt"]

    site.write("deleted.txt", "deleted")
    site.collect()
    assert site.bucket.files() == {"kept.txt": b"kept", "deleted.txt": b"deleted"}


# Without SIGINT, because an upload by boto3 waits for the server after Ctrl-C, as with
# django-storages.
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_previous_file_is_restored_after_a_killed_save(
    site: Site, tmp_path: Path, signum: int
) -> None:
    """A save of the previous content uploads it after a save that was killed."""
    site.settings = file_cache(tmp_path / "cache")
    site.write("a.txt", "A")
    with site.storage() as storage, (site.static / "a.txt").open("rb") as file:
        storage.save("a.txt", file)
    site.write("a.txt", "B")
    kill_at_the_last(site, Last(False, 1), signum, worker="save_all")
    assert site.bucket.files() == {"a.txt": b"B"}

    site.write("a.txt", "A")
    with site.storage() as storage, (site.static / "a.txt").open("rb") as file:
        storage.save("a.txt", file)
    assert site.bucket.files() == {"a.txt": b"A"}


# Headers, of which ETags show nothing.


def _cached_for(site: Site, age: int) -> Site:
    site.options["object_parameters"] = {"CacheControl": f"max-age={age}"}
    return site


def _ages(site: Site) -> dict[str, str]:
    return {name: site.bucket.get(name)["CacheControl"] for name in site.bucket.names()}


@pytest.mark.parametrize(
    ("preload", "ignores_etag"), [(True, True), (False, True), (True, False)]
)
def test_previous_headers_are_restored_after_a_killed_deploy_of_all_files(
    site: Site, tmp_path: Path, preload: bool, ignores_etag: bool
) -> None:
    """Cache entries become doubtful for any upload, and not only for changed contents.

    The killed deploy uploads all files because it ignores ETags, or because the bucket
    is empty.
    """
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": preload}
    files = site.write_many(5)
    _cached_for(site, 60).collect()
    site.options["collectfast_ignore_etag"] = ignores_etag
    if not ignores_etag:
        site.bucket.clear()
    kill_at_the_last(_cached_for(site, 99), Last(True, 5), signal.SIGTERM)
    assert _ages(site) == dict.fromkeys(sorted(files), "max-age=99")
    del site.options["collectfast_ignore_etag"]
    _cached_for(site, 60).collect()
    assert _ages(site) == dict.fromkeys(sorted(files), "max-age=60")


def test_headers_of_hashed_files_of_an_older_release_are_restored(
    site: Site, tmp_path: Path
) -> None:
    """A deploy restores the headers of hashed files that the manifest does not name.

    The current manifest is that of a second release. A deploy of the first release with
    other headers was killed.
    """
    site.settings = file_cache(tmp_path / "cache")
    site.backend = MANIFEST

    def release(number: int, age: int) -> Site:
        for n in range(3):
            site.write(f"{n}.txt", f"{n} of {number}")
        return _cached_for(site, age)

    release(1, 60).collect()
    names = site.bucket.names()
    release(2, 60).collect()
    kill_at_the_last(release(1, 99), Last(True, 7), signal.SIGTERM)
    release(1, 60).collect()
    ages = _ages(site)
    assert {name: ages[name] for name in names} == dict.fromkeys(names, "max-age=60")


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("worker", ["save_all", "save_all_in_a_batch"])
def test_previous_release_is_restored_after_a_killed_program(
    site: Site, tmp_path: Path, preload: bool, worker: str
) -> None:
    """A deploy restores contents and headers after a program that was killed.

    With `collectfast_preload=False` the program has removed the cache entries of its
    files. Otherwise ETags show that the entries are wrong.
    """
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": preload}
    release = site.write_many(5)
    _cached_for(site, 60).collect()
    for name in release:
        site.write(name, "B")
    fault = Last(True, 5)
    kill_at_the_last(_cached_for(site, 99), fault, signal.SIGKILL, worker=worker)
    assert {*site.bucket.files().values()} == {b"B"}
    site.write_all(release)
    _cached_for(site, 60).collect()
    assert site.bucket.files() == release
    assert _ages(site) == dict.fromkeys(sorted(release), "max-age=60")


def test_next_deploy_corrects_headers_after_simultaneous_deploys(
    site: Site, tmp_path: Path
) -> None:
    """A deploy sets its headers after two simultaneous deploys with different headers.

    Neither of the two deploys can know which of their uploads was the last one.
    """
    site.settings = file_cache(tmp_path / "cache")
    names = sorted(site.write_many(3))
    _cached_for(site, 0).collect()
    other = replace(site, options={})
    done = []

    def deploy_other() -> None:
        if not done:
            done.append(True)
            assert deploy(_cached_for(other, 2))[0] == 0

    site.proxy.fault = meanwhile("PUT", deploy_other, names[1], after=True)
    assert deploy(_cached_for(site, 1))[0] == 0
    site.proxy.fault = None
    assert _ages(site)[names[1]] == "max-age=2"
    site.collect()
    assert _ages(site) == dict.fromkeys(names, "max-age=1")


@pytest.mark.parametrize("preload", [True, False])
def test_headers_of_a_killed_deploy_of_the_same_contents(
    site: Site, tmp_path: Path, preload: bool
) -> None:
    """A deploy with the contents of a killed one and the previous headers sets these.

    The killed deploy had changed both contents and headers.
    """
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": preload}
    names = sorted(site.write_many(5))
    _cached_for(site, 60).collect()
    for name in names:
        site.write(name, "new")
    kill_at_the_last(_cached_for(site, 99), Last(True, 5), signal.SIGTERM)
    _cached_for(site, 60).collect()
    assert _ages(site) == dict.fromkeys(names, "max-age=60")


# Deploys that trust the cache without a listing of the bucket.


def _trusting(site: Site, cache: Path) -> Site:
    site.settings = file_cache(cache)
    site.options = {"collectfast_preload": False, "collectfast_threads": 0}
    return site


@pytest.mark.parametrize("clear", [True, False])
def test_smaller_release_after_a_killed_deploy(
    site: Site, tmp_path: Path, clear: bool
) -> None:
    """A smaller release after a killed deploy does not make other entries trusted.

    It compares only its own files. The full release is restored afterwards.
    """
    _trusting(site, tmp_path / "cache")
    release = {"a.txt": b"a", "b.txt": b"b"}

    def write(*names: str) -> None:
        for name in release:
            (site.static / name).unlink(missing_ok=True)
        for name in names:
            site.write(name, release[name])

    write("a.txt", "b.txt")
    site.collect()
    if clear:
        write("a.txt")
        fault = Last(False, 1, "DELETE MANY")
        kill_at_the_last(site, fault, signal.SIGTERM, "--clear")
    else:
        for name in release:
            site.write(name, "killed")
        kill_at_the_last(site, Last(True, 2), signal.SIGTERM)
    write("a.txt")
    site.collect()
    write("a.txt", "b.txt")
    site.collect()
    assert site.bucket.files() == release


def test_smaller_release_after_a_killed_deploy_with_other_headers(
    site: Site, tmp_path: Path
) -> None:
    """A cache entry remains doubtful until its file is uploaded.

    A smaller release after the killed deploy does not upload the file. The next full
    release does, and restores the previous headers.
    """
    _trusting(site, tmp_path / "cache")
    for name in ("a.txt", "b.txt"):
        site.write(name, name)
    _cached_for(site, 60).collect()
    kill_at_the_last(_cached_for(site, 99), Last(True, 2), signal.SIGTERM)
    (site.static / "b.txt").unlink()
    _cached_for(site, 60).collect()
    site.write("b.txt", "b.txt")
    site.collect()
    assert _ages(site) == {"a.txt": "max-age=60", "b.txt": "max-age=60"}


def test_marks_of_a_killed_deploy_are_removed_by_the_next_upload(
    site: Site, tmp_path: Path
) -> None:
    """The entries of uploaded files are trusted again after a killed deploy.

    A deploy with a listing uploads the files. The next one without a listing sends no
    request.
    """
    site.settings = file_cache(tmp_path / "cache")
    names = sorted(site.write_many(4))
    site.collect()
    for text in ("killed", "new"):
        for name in names:
            site.write(name, text)
        if text == "killed":
            kill_at_the_last(site, Last(True, 4), signal.SIGTERM)
    site.collect()
    site.options["collectfast_preload"] = False
    assert site.collect().requests == {}


@pytest.mark.parametrize("how", ["a batch", "an interrupted deploy"])
def test_previous_release_after_a_killed_deploy_and_partial_uploads(
    site: Site, tmp_path: Path, how: str
) -> None:
    """A deploy restores the previous release after a killed deploy and partial uploads.

    A batch or an interrupted deploy does not make the entries of all files trusted.
    """
    _trusting(site, tmp_path / "cache")
    release = site.write_many(4)
    site.collect()
    for name in release:
        site.write(name, "killed")
    kill_at_the_last(site, Last(True, 4), signal.SIGTERM)
    if how == "a batch":
        with site.storage() as storage, storage.batch() as batch:
            batch.save(min(release), ContentFile(b"saved"))
    else:
        for name in release:
            site.write(name, "interrupted")
        kill_at_the_last(site, Last(True, 2), signal.SIGINT)
    site.write_all(release)
    site.collect()
    assert site.bucket.files() == release


class Faulty(FileBasedCache):
    """A cache that fails once, at the call of `method` that sets `left` to 0.

    A cache fails in this way when its server is restarted.
    """

    method = ""
    error: type[BaseException] = ConnectionError
    left = 1

    def _do(self, method: str, *arguments: Any) -> Any:
        if method == self.method:
            Faulty.left -= 1
            if self.left == 0:
                raise self.error
        return getattr(super(), method)(*arguments)

    def get_many(self, *arguments: Any) -> Any:
        return self._do("get_many", *arguments)

    def delete_many(self, *arguments: Any) -> Any:
        return self._do("delete_many", *arguments)

    def set_many(self, *arguments: Any) -> Any:
        return self._do("set_many", *arguments)


def _with_cache(site: Site, directory: Path, cache: type[FileBasedCache]) -> None:
    _trusting(site, directory)
    site.settings["CACHES"]["default"]["BACKEND"] = f"{__name__}.{cache.__name__}"


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def fail(method: str, error: type[BaseException], at_call: int) -> None:
        monkeypatch.setattr(Faulty, "method", method)
        monkeypatch.setattr(Faulty, "error", error)
        monkeypatch.setattr(Faulty, "left", at_call)

    return fail


@pytest.mark.parametrize(
    ("method", "at_call"),
    [("set_many", 1), ("set_many", 2), ("get_many", 2), ("get_many", 3)],
)
def test_previous_release_after_a_deploy_with_a_failing_cache(
    site: Site,
    tmp_path: Path,
    faulty: Callable[..., None],
    method: str,
    at_call: int,
) -> None:
    """A deploy restores the previous release if the cache failed once in between.

    The failure must not leave entries of the previous release that are out of date.
    """
    _with_cache(site, tmp_path / "cache", Faulty)
    release = site.write_many(5)
    site.collect()
    for name in release:
        site.write(name, "new")
    faulty(method, ConnectionError, at_call)
    site.collect()
    assert Faulty.left < 1  # The cache failed.
    site.write_all(release)
    site.collect()
    assert site.bucket.files() == release


def test_previous_release_after_ctrl_c_while_entries_are_marked(
    site: Site, tmp_path: Path, faulty: Callable[..., None]
) -> None:
    """A deploy restores the previous release after Ctrl-C while entries were marked.

    The files that were already uploaded are in the cache, or have doubtful entries.
    """
    _with_cache(site, tmp_path / "cache", Faulty)
    release = {f"{n}.txt": b"%d" % n for n in range(5)}
    site.write_all(release)
    _cached_for(site, 60).collect()
    # Only the headers of the file that is collected last are new.
    for name in [entry.name for entry in os.scandir(site.static)][:-1]:
        site.write(name, "new")
    faulty("get_many", KeyboardInterrupt, 2)
    with site.active():
        with suppress(KeyboardInterrupt):
            _cached_for(site, 99).collect()
        gc.collect()  # End the run, as the end of the process would.
    assert Faulty.left < 1  # The cache failed.
    site.write_all(release)
    _cached_for(site, 60).collect()
    assert site.bucket.files() == release
    ages = {site.bucket.get(name)["CacheControl"] for name in release}
    assert ages == {"max-age=60"}


def test_headers_after_ctrl_c_while_entries_are_marked(
    site: Site, tmp_path: Path, faulty: Callable[..., None]
) -> None:
    """A deploy sets its headers after Ctrl-C ended an equal one that marked entries.

    The interrupted deploy must not leave entries with the new headers for objects that
    still have the previous ones.
    """
    _with_cache(site, tmp_path / "cache", Faulty)
    names = sorted(site.write_many(4))
    _cached_for(site, 60).collect()
    faulty("set_many", KeyboardInterrupt, 1)
    with site.active():
        with suppress(KeyboardInterrupt):
            _cached_for(site, 99).collect()
        gc.collect()
    assert Faulty.left < 1
    _cached_for(site, 99).collect()
    assert _ages(site) == dict.fromkeys(names, "max-age=99")


def test_smaller_release_that_could_not_read_the_cache(
    site: Site, tmp_path: Path, faulty: Callable[..., None]
) -> None:
    """A deploy that could not read the cache does not make entries trusted.

    The killed deploy before it had marked them as doubtful, so the next deploy of the
    full release restores it.
    """
    _with_cache(site, tmp_path / "cache", Faulty)
    release = site.write_many(4)
    site.collect()
    for name in release:
        site.write(name, "killed")
    kill_at_the_last(site, Last(True, 4), signal.SIGTERM)
    for name in release:
        (site.static / name).unlink()
    first = min(release)
    site.write(first, release[first])
    faulty("get_many", ConnectionError, 1)
    site.collect()
    assert Faulty.left < 1
    site.write_all(release)
    site.collect()
    assert site.bucket.files() == release


def test_marks_that_could_not_be_written(
    site: Site, tmp_path: Path, faulty: Callable[..., None]
) -> None:
    """The entries after a complete deploy are right even if marking them failed.

    The next deploy sends no request, and one with the previous headers restores them.
    """
    _with_cache(site, tmp_path / "cache", Faulty)
    names = sorted(site.write_many(4))
    _cached_for(site, 60).collect()
    faulty("set_many", ConnectionError, 1)
    _cached_for(site, 99).collect()
    assert Faulty.left < 1
    assert site.collect().requests == {}
    _cached_for(site, 60).collect()
    assert _ages(site) == dict.fromkeys(names, "max-age=60")
