"""Django's cache backends, shared by processes, and their failures."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.files.base import ContentFile
from django.test import override_settings

from collectfast_storage import CollectfastS3StaticStorage
from collectfast_storage.decision import Remembered
from collectfast_storage.fingerprint import Fingerprint
from collectfast_storage.upload_cache import UploadCache
from tests.support.caches import Cache, database, files, local_memory, memcached, redis
from tests.support.processes import MANAGE, ROOT
from tests.support.proxy import Handler, Request
from tests.support.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

WARNING = "(COLLECTFAST_CACHE) failed"


@dataclass
class Outcome:
    """The output, log and requests of a collectstatic in its own process."""

    output: str
    log: str
    requests: Counter[str]
    put: list[str]


def manage(site: Site, cache: Cache, *arguments: str) -> Outcome:
    """Run `manage.py` in its own process, and assert that it succeeds."""
    site.proxy.requests.clear()
    others = {k: v for k, v in cache.settings.items() if k != "CACHES"}
    environment = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "SITE_STATIC": str(site.static),
        "SITE_BACKEND": site.backend,
        "SITE_OPTIONS": json.dumps(site.storage_options),
        "SITE_CACHES": json.dumps(cache.settings["CACHES"]),
        "SITE_SETTINGS": json.dumps(others),
    }
    done = subprocess.run(
        [sys.executable, str(MANAGE), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return Outcome(done.stdout, done.stderr, site.proxy.count(), site.put())


def collect(site: Site, cache: Cache) -> Outcome:
    return manage(site, cache, "collectstatic", "--noinput")


@contextmanager
def running(name: str, site: Site) -> Iterator[Cache]:
    """Start the cache `name` if it needs a server, and yield it."""
    if name == "database":
        cache = database(site.root)
        manage(site, cache, "createcachetable")
        yield cache
    elif name in ("Redis", "Memcached"):
        with redis(site.root) if name == "Redis" else memcached() as cache:
            yield cache
    else:
        yield {"local memory": local_memory, "files": files}[name](site.root)


@pytest.mark.parametrize(
    "name", ["local memory", "files", "database", "Redis", "Memcached"]
)
def test_cache_is_shared_by_processes(site: Site, name: str) -> None:
    """A deploy uses the cache entries that a deploy in another process wrote.

    A listing contains ETags, so unchanged files need no cache. Changed headers are
    noticed only if the cache outlives the process, as all caches but local memory do.
    With `collectfast_preload=False`, such a cache makes HEAD requests unnecessary.
    """
    contents = site.write_many(12)
    site.options["gzip"] = True
    with running(name, site) as cache:
        first = collect(site, cache)
        assert first.requests["PUT"] == 12
        assert site.bucket.names() == sorted(contents)

        site.touch()
        again = collect(site, cache)
        assert again.requests == {"LIST": again.requests["LIST"]}
        assert "0 static files copied, 12 unmodified." in again.output

        # A listing has no headers, so only the cache shows that they changed.
        site.options["object_parameters"] = {"CacheControl": "max-age=60"}
        changed = collect(site, cache)
        kept = cache.outlives_process
        assert changed.put == (sorted(contents) if kept else [])

        site.options["collectfast_preload"] = False
        trusting = collect(site, cache)
        assert trusting.requests == ({} if kept else {"HEAD": 12})
        assert first.log + again.log + trusting.log == ""
        assert ("only because their headers changed" in changed.log) == kept
        assert len(changed.log.splitlines()) == int(kept)


def test_redis_that_stops_during_a_deploy_causes_one_warning(site: Site) -> None:
    """If Redis crashes during a deploy, there is one warning, and all files arrive.

    Later deploys are correct, too, while Redis is down and after it has restarted.
    """
    site.write_many(12)
    with redis(site.root) as cache:
        collect(site, cache)
        contents = {name: b"new " + c for name, c in site.write_many(12).items()}
        for name, content in contents.items():
            site.write(name, content)

        def crash(handler: Handler, request: Request, body: bytes) -> bool:
            if request.kind == "PUT":
                cache.kill()
            return False

        site.proxy.fault = crash
        stopped = collect(site, cache)
        assert stopped.log.count(WARNING) == 1
        assert len(stopped.log.splitlines()) == 1
        assert site.bucket.files() == contents

        site.proxy.fault = None
        without = collect(site, cache)
        assert set(without.requests) == {"LIST"}
        assert without.log.count(WARNING) == 1

        cache.restart()
        old = site.write_many(12)
        site.options["collectfast_preload"] = False
        assert collect(site, cache).log == ""
        assert site.bucket.files() == old
        assert collect(site, cache).requests == {}


def spoil(name: str, cache: Cache) -> None:
    """Overwrite every entry with garbage, without using Django."""
    if name == "files":
        directory = Path(cache.settings["CACHES"]["default"]["LOCATION"])
        for path in directory.iterdir():
            path.write_bytes(b"garbage")
    elif name == "database":
        path = cache.settings["DATABASES"]["default"]["NAME"]
        with sqlite3.connect(path) as connection:
            changed = connection.execute("UPDATE cache_table SET value = 'garbage'")
            assert changed.rowcount > 0
        connection.close()
    else:
        import redis as client

        with client.Redis(port=cache.port) as server:
            for key in server.scan_iter():
                server.set(key, b"garbage")


@pytest.mark.parametrize("name", ["files", "database", "Redis"])
@pytest.mark.parametrize("preload", [True, False])
def test_garbage_in_the_cache_is_ignored(site: Site, name: str, preload: bool) -> None:
    """Unreadable cache entries are ignored, and replaced by the same deploy."""
    contents = site.write_many(12)
    site.options["collectfast_preload"] = preload
    with running(name, site) as cache:
        collect(site, cache)
        spoil(name, cache)
        site.write("dir0/file0.css", "changed")
        deploy = collect(site, cache)
        assert deploy.put == ["dir0/file0.css"]
        assert deploy.log.count(WARNING) == len(deploy.log.splitlines()) <= 1
        assert site.bucket.files() == contents | {"dir0/file0.css": b"changed"}
        site.options["collectfast_preload"] = False
        again = collect(site, cache)
        assert (again.requests, again.log) == ({}, "")


def entries(location: str) -> dict[str, Any]:
    """Return the entries of the local-memory cache at `location`, by name."""
    names = [name.split(":", 2)[2] for name in LocMemCache(location, {})._cache]
    return caches["default"].get_many(names)


@pytest.mark.parametrize(
    "value", [7, None, ["a b c"], {"a": 1}, "a b", "a b c", "- - -"]
)
@pytest.mark.parametrize("preload", [True, False])
def test_entries_of_other_types_are_ignored(
    site: Site, value: object, preload: bool
) -> None:
    """Changed files are uploaded although their cache entries have other types."""
    site.write_many(12)
    site.options["collectfast_preload"] = preload
    site.collect()
    with site.active():
        for name, shard in entries(str(site.root)).items():
            caches["default"].set(name, dict.fromkeys([*shard, 1, None], value))
    contents = {
        name: b"new " + content for name, content in site.write_many(12).items()
    }
    for name, content in contents.items():
        site.write(name, content)
    assert site.collect().put == sorted(contents)
    assert site.bucket.files() == contents
    site.options["collectfast_preload"] = False
    assert site.collect().requests == {}


@pytest.mark.parametrize("version", [1, 3])
def test_entries_of_another_version_of_this_package_are_not_read(
    site: Site, version: int
) -> None:
    """Entries of another version may have another meaning, so they are ignored."""
    contents = site.write_many(12)
    site.options["collectfast_preload"] = False
    site.collect()
    with site.active():
        found = entries(str(site.root))
        assert all(name.startswith("collectfast_storage:2:") for name in found)
        caches["default"].clear()
        caches["default"].set_many(
            {name.replace(":2:", f":{version}:", 1): s for name, s in found.items()}
        )
    site.bucket.clear()
    assert site.collect().requests == {"HEAD": 12, "PUT": 12}
    assert site.bucket.files() == contents


def remembered(number: int) -> Remembered:
    text = f"{number:032}"
    return Remembered(Fingerprint(text, text), text)


def test_shards_are_never_too_large_for_memcached(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Memcached keeps the entries of 60,000 files with long names."""
    keys = [f"{number}/{'long' * 150}.css" for number in range(60_000)]

    def fresh() -> UploadCache:
        return UploadCache("default", None, "endpoint bucket", trusted=False)

    with memcached() as server, override_settings(**server.settings):
        cache = fresh()
        for key in keys[:3000]:
            cache.remember(key, remembered(1))
        cache.flush()
        cache = fresh()
        assert {cache.get(key) for key in keys[:3000]} == {remembered(1)}
        assert caplog.text == ""
        for key in keys:
            cache.remember(key, remembered(2))
        cache.flush()
        cache = fresh()
        assert {cache.get(key) for key in keys} == {remembered(2)}
        caches["default"].close()
    assert caplog.text == ""


def test_rollback_after_shards_got_too_large_for_memcached(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A rollback uploads all files if the last entries were too large to store.

    The cache must not return the older entries, because these match the files of the
    rollback.
    """
    site.options["collectfast_preload"] = False
    with memcached(largest=2048) as server:
        old = site.write_many(40)
        site.collect(**server.settings)
        for name, content in old.items():
            site.write(name, b"new " + content)
        for number in range(600):
            site.write(f"more/{number}.txt", str(number))
        site.collect(**server.settings)
        [record] = caplog.records
        assert "too large" in record.getMessage()
        site.write_many(40)
        site.collect(**server.settings)
        assert site.bucket.files().items() >= old.items()


class Down(LocMemCache):
    """A cache whose server is down."""

    def away(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("nobody there")

    get = get_many = set = set_many = delete = delete_many = away


class HalfWay(LocMemCache):
    """A cache that loses its server when half of the entries are written."""

    def set_many(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        half = list(data)[len(data) // 2 :]
        super().set_many({name: data[name] for name in half}, *args, **kwargs)
        raise ConnectionError("nobody there any more")


class Refusing(LocMemCache):
    """A cache that stores no entry and reports this."""

    def set_many(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        return list(data)


class Silent(LocMemCache):
    """A cache that stores nothing and does not report it, like a database cache."""

    def set_many(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        return []


def spoilt(site: Site, cache: type) -> dict[str, Any]:
    """Return settings for the site's own cache with the faults of `cache`."""
    backend = f"{__name__}.{cache.__name__}"
    return {"CACHES": {"default": {"BACKEND": backend, "LOCATION": str(site.root)}}}


@pytest.mark.parametrize("cache", [HalfWay, Refusing, Silent])
def test_rollback_after_the_cache_could_not_be_written(
    site: Site, cache: type, caplog: pytest.LogCaptureFixture
) -> None:
    """Entries from before a deploy that could not write the cache are not trusted."""
    site.options["collectfast_preload"] = False
    old = site.write_many(40)
    site.collect()
    for name, content in old.items():
        site.write(name, b"new " + content)
    site.collect(**spoilt(site, cache))
    assert len(caplog.records) == (0 if cache is Silent else 1)
    site.write_many(40)
    site.collect()
    assert site.bucket.files() == old
    assert site.collect().requests == {}


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("arguments", [[], ["--clear"], ["--no-post-process"]])
@pytest.mark.parametrize("kind", ["Static", "ManifestStatic"])
def test_cache_that_is_down_causes_one_warning(
    site: Site,
    preload: bool,
    arguments: list[str],
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A deploy logs one warning about its cache, however many files there are."""
    site.backend = f"collectfast_storage.CollectfastS3{kind}Storage"
    site.options["collectfast_preload"] = preload
    contents = site.write_many(12)
    with caplog.at_level(logging.WARNING):
        site.collect(*arguments, **spoilt(site, Down))
    assert [WARNING in record.getMessage() for record in caplog.records] == [True]
    assert site.bucket.files().items() >= contents.items()


class OwnDelete(CollectfastS3StaticStorage):
    """A subclass with its own `delete`, which is called once for each file."""

    def delete(self, name: str) -> None:
        super().delete(name)


def test_own_delete_with_a_cache_that_is_down_causes_one_warning(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """If a subclass deletes file by file, there is one warning for all files."""
    site.backend = f"{__name__}.{OwnDelete.__name__}"
    contents = site.write_many(3)
    for number in range(3):
        site.bucket.put(f"{number}.css", b"left over")
    site.collect("--clear", **spoilt(site, Down))
    assert site.bucket.files() == contents
    assert len(caplog.records) == 1


@pytest.mark.parametrize("preload", [True, False])
def test_program_saves_while_the_cache_is_down(
    site: Site, preload: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A program's saves and deletes succeed, and nothing is logged with a preload.

    With `preload=False` they invalidate cache entries. Each failure is a warning.
    """
    site.options["collectfast_preload"] = preload
    site.bucket.put("c.css", b"content")
    with site.storage() as storage, override_settings(**spoilt(site, Down)):
        for name in ("a.css", "b.css"):
            storage.save(name, ContentFile(b"content"))
        storage.delete("c.css")
    assert site.bucket.names() == ["a.css", "b.css"]
    assert all(WARNING in record.getMessage() for record in caplog.records)
    assert len(caplog.records) == (0 if preload else 6)
