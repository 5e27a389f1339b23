"""Caches of sites, with their settings and servers.

A test is skipped if the server of its cache, or the client, is not installed.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import Daemons
from tests.support.servers import free_ports
from tests.support.site import Site

BACKENDS = "django.core.cache.backends"

_numbers = itertools.count()


@dataclass
class Cache:
    """A cache, with the settings of the site that uses it."""

    settings: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    outlives_process: bool = True
    arguments: list[str] = field(default_factory=list)
    daemons: Daemons = field(default_factory=Daemons)

    @property
    def port(self) -> int:
        return int(self.settings["CACHES"]["default"]["LOCATION"].rpartition(":")[2])

    def kill(self) -> None:
        """Kill the server, to simulate a crash."""
        assert self.process is not None
        self.daemons.kill(self.process)

    def restart(self) -> None:
        """Start the server again, with an empty cache."""
        self.process = _started(self.arguments, self.port, self.daemons)


def _settings(backend: str, location: str, **settings: Any) -> dict[str, Any]:
    cache = {"BACKEND": f"{BACKENDS}.{backend}", "LOCATION": location}
    return {"CACHES": {"default": cache}, **settings}


def local_memory(directory: Path) -> Cache:
    """Return a cache in the memory of the process."""
    settings = _settings("locmem.LocMemCache", str(directory))
    return Cache(settings, outlives_process=False)


def files(directory: Path) -> Cache:
    """Return a cache in files below `directory`."""
    return Cache(_settings("filebased.FileBasedCache", str(directory / "cache")))


def database(directory: Path) -> Cache:
    """Return a cache in SQLite; run `createcachetable` to make its table."""
    engine = "django.db.backends.sqlite3"
    databases = {"default": {"ENGINE": engine, "NAME": str(directory / "db.sqlite3")}}
    return Cache(_settings("db.DatabaseCache", "cache_table", DATABASES=databases))


@contextmanager
def redis(directory: Path) -> Iterator[Cache]:
    """Run a Redis server that stores nothing on the disk."""
    pytest.importorskip("redis", reason="no redis here: pip install redis")
    arguments = [_binary("redis-server"), "--bind", "127.0.0.1", "--save", ""]
    arguments += ["--dir", str(directory)]
    with _running("redis.RedisCache", "redis://127.0.0.1:{}", arguments, "--port") as c:
        yield c


@contextmanager
def memcached(largest: int = 1024 * 1024) -> Iterator[Cache]:
    """Run a Memcached server that refuses entries larger than `largest` bytes."""
    pytest.importorskip("pymemcache", reason="no pymemcache here: pip install it")
    arguments = [_binary("memcached"), "-l", "127.0.0.1", "-U", "0", "-m", "128"]
    arguments += ["-I", str(largest), "-o", f"slab_chunk_max={largest // 2}"]
    # Memcached requires this option if it is started by root, and ignores it otherwise.
    arguments += ["-u", "root"]
    backend = "memcached.PyMemcacheCache"
    with _running(backend, "127.0.0.1:{}", arguments, "-p") as cache:
        yield cache


def _binary(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} here: apt-get install {name}")
    return path


@contextmanager
def _running(
    backend: str, location: str, arguments: list[str], port_option: str
) -> Iterator[Cache]:
    [port] = free_ports(1)
    arguments = [*arguments, port_option, str(port)]
    cache = Cache(_settings(backend, location.format(port)), arguments=arguments)
    with cache.daemons:
        cache.restart()
        yield cache


def _started(
    arguments: list[str], port: int, daemons: Daemons
) -> subprocess.Popen[bytes]:
    process = daemons.start(arguments, Path(os.devnull), {**os.environ})
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return process
    raise RuntimeError(f"{Path(arguments[0]).name} did not start.")


def cold(site: Site) -> dict[str, Any]:
    """Return settings with an empty cache."""
    location = f"{site.root}-cold-{next(_numbers)}"
    backend = f"{BACKENDS}.locmem.LocMemCache"
    return {"CACHES": {"default": {"BACKEND": backend, "LOCATION": location}}}
