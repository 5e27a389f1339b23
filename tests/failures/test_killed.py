"""Cache entries after deploys that were killed, or that were not alone."""

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

pytestmark = pytest.mark.slow

MANIFEST = "collectfast_storage.CollectfastS3ManifestStaticStorage"


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_back_to_the_release_before_the_killed_one(
    site: Site, tmp_path: Path, preload: bool, answers: bool, signum: int
) -> None:
    """A and remembered, B but killed, A again: nobody believes that A is there."""
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": preload}
    count = 20 if answers else 5  # Unanswered, no more than a few are under way.
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


def test_what_is_remembered_is_trusted_again_after_the_next_whole_run(
    site: Site, tmp_path: Path
) -> None:
    """One deploy uploads once more what may be there, and not all that follow."""
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": False}
    site.write_many(5)
    site.collect()
    for path in site.static.rglob("*.*"):
        path.write_text("B")
    kill_at_the_last(site, Last(False, 5), signal.SIGKILL)
    assert site.collect().requests["PUT"] == 5
    assert site.collect().requests == {}


def test_what_a_killed_deploy_did_not_touch_is_trusted_again_too(
    site: Site, tmp_path: Path
) -> None:
    """The whole run after it has seen to it."""
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
def test_back_to_the_headers_before_the_killed_deploy(
    site: Site, tmp_path: Path, preload: bool, signum: int
) -> None:
    """Headers are part of the promise, and no ETag tells of them."""
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
def test_back_to_what_a_killed_deploy_has_cleared(
    site: Site, tmp_path: Path, preload: bool, signum: int
) -> None:
    """What was deleted is not taken to be there, though nobody could note its end."""
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": preload}
    site.write("stays.txt", "stays")
    site.write("goes.txt", "goes")
    site.collect()
    (site.static / "goes.txt").unlink()
    kill_at_the_last(site, Last(False, 1, "DELETE MANY"), signum, "--clear")
    assert site.bucket.names() == ["stays.txt"]

    site.write("goes.txt", "goes")
    site.collect()
    assert site.bucket.files() == {"stays.txt": b"stays", "goes.txt": b"goes"}


# After Ctrl-C, boto3's own upload waits for the server, also with django-storages.
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_back_to_the_file_before_a_killed_save(
    site: Site, tmp_path: Path, signum: int
) -> None:
    """A save that was killed leaves nothing that makes a later save skip the upload."""
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


# Headers: no ETag tells of them.


def _cached_for(site: Site, age: int) -> Site:
    site.options["object_parameters"] = {"CacheControl": f"max-age={age}"}
    return site


def _ages(site: Site) -> dict[str, str]:
    return {name: site.bucket.get(name)["CacheControl"] for name in site.bucket.names()}


@pytest.mark.parametrize(
    ("preload", "forced"), [(True, True), (False, True), (True, False)]
)
def test_back_to_the_headers_before_a_killed_deploy_that_compared_nothing(
    site: Site, tmp_path: Path, preload: bool, forced: bool
) -> None:
    """What is remembered becomes doubtful whyever it is overwritten."""
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": preload}
    files = site.write_many(5)
    _cached_for(site, 60).collect()
    site.options["collectfast_ignore_etag"] = forced
    if not forced:
        site.bucket.clear()
    kill_at_the_last(_cached_for(site, 99), Last(True, 5), signal.SIGTERM)
    assert _ages(site) == dict.fromkeys(sorted(files), "max-age=99")
    del site.options["collectfast_ignore_etag"]
    _cached_for(site, 60).collect()
    assert _ages(site) == dict.fromkeys(sorted(files), "max-age=60")


def test_back_to_the_headers_of_hashed_names_that_no_manifest_has_any_more(
    site: Site, tmp_path: Path
) -> None:
    """Back to v1, of which the manifest of v2 knows nothing; killed; with others."""
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
def test_back_to_the_release_before_a_killed_program(
    site: Site, tmp_path: Path, preload: bool, worker: str
) -> None:
    """A deploy after a program that was killed sets contents and headers right.

    Without a preload the program has removed the entries that it makes wrong. With one,
    ETags show that they are wrong.
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


def test_two_deploys_at_once_with_other_headers(site: Site, tmp_path: Path) -> None:
    """Neither can know whose were the last to arrive; the next deploy sets them."""
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
    """It changed contents and headers; the next has those contents, and old headers."""
    site.settings = file_cache(tmp_path / "cache")
    site.options = {"collectfast_preload": preload}
    names = sorted(site.write_many(5))
    _cached_for(site, 60).collect()
    for name in names:
        site.write(name, "new")
    kill_at_the_last(_cached_for(site, 99), Last(True, 5), signal.SIGTERM)
    _cached_for(site, 60).collect()
    assert _ages(site) == dict.fromkeys(names, "max-age=60")


# Where the cache is trusted without a look at the bucket.


def _trusting(site: Site, cache: Path) -> Site:
    site.settings = file_cache(cache)
    site.options = {"collectfast_preload": False, "collectfast_threads": 0}
    return site


@pytest.mark.parametrize("clear", [True, False])
def test_smaller_release_after_a_killed_one(
    site: Site, tmp_path: Path, clear: bool
) -> None:
    """It has compared its own files, and knows nothing of the others."""
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


def test_smaller_release_after_a_killed_one_of_other_headers(
    site: Site, tmp_path: Path
) -> None:
    """What is doubtful stays so until it is uploaded."""
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


def test_marks_of_a_killed_deploy_go_with_the_next_that_uploads(
    site: Site, tmp_path: Path
) -> None:
    """After a deploy with a listing, its entries are trusted without one again."""
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
def test_back_after_a_killed_deploy_and_one_that_compares_not_all(
    site: Site, tmp_path: Path, how: str
) -> None:
    """What the killed one left is still to be asked for."""
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
    """Fails once, as one does whose server is restarted: when `left` comes to 0."""

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
def test_back_after_a_deploy_whose_cache_failed(
    site: Site,
    tmp_path: Path,
    faulty: Callable[..., None],
    method: str,
    at_call: int,
) -> None:
    """A cache that fails once, after the marks, does not bring older entries back."""
    _with_cache(site, tmp_path / "cache", Faulty)
    release = site.write_many(5)
    site.collect()
    for name in release:
        site.write(name, "new")
    faulty(method, ConnectionError, at_call)
    site.collect()
    assert Faulty.left < 1  # It failed.
    site.write_all(release)
    site.collect()
    assert site.bucket.files() == release


def test_back_after_ctrl_c_as_the_doubt_is_written(
    site: Site, tmp_path: Path, faulty: Callable[..., None]
) -> None:
    """What had arrived by then is remembered, or doubtful, and not forgotten."""
    _with_cache(site, tmp_path / "cache", Faulty)
    release = {f"{n}.txt": b"%d" % n for n in range(5)}
    site.write_all(release)
    _cached_for(site, 60).collect()
    # The last to be collected is the one of which the headers alone are new.
    for name in [entry.name for entry in os.scandir(site.static)][:-1]:
        site.write(name, "new")
    faulty("get_many", KeyboardInterrupt, 2)
    with site.active():
        with suppress(KeyboardInterrupt):
            _cached_for(site, 99).collect()
        gc.collect()  # The run ends with the process.
    assert Faulty.left < 1  # It failed.
    site.write_all(release)
    _cached_for(site, 60).collect()
    assert site.bucket.files() == release


def test_headers_after_ctrl_c_as_the_doubt_is_written(
    site: Site, tmp_path: Path, faulty: Callable[..., None]
) -> None:
    """When what was there is deleted already: what is known is not lost."""
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


def test_smaller_release_that_could_not_read_what_is_remembered(
    site: Site, tmp_path: Path, faulty: Callable[..., None]
) -> None:
    """It does not know what it has not seen: the note of the killed one stays."""
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


def test_doubt_that_could_not_be_written(
    site: Site, tmp_path: Path, faulty: Callable[..., None]
) -> None:
    """If the marks cannot be written, the entries at the end are right all the same."""
    _with_cache(site, tmp_path / "cache", Faulty)
    names = sorted(site.write_many(4))
    _cached_for(site, 60).collect()
    faulty("set_many", ConnectionError, 1)
    _cached_for(site, 99).collect()
    assert Faulty.left < 1
    assert site.collect().requests == {}
    _cached_for(site, 60).collect()
    assert _ages(site) == dict.fromkeys(names, "max-age=60")
