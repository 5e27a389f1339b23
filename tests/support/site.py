"""A Django site with static files, deployed with the real collectstatic."""

from __future__ import annotations

import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import django
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files.storage import storages
from django.core.management import call_command
from django.test import override_settings

from tests.support.bucket import BucketView
from tests.support.proxy import Proxy

STATIC = "collectfast_storage.CollectfastS3StaticStorage"
MANIFEST = "collectfast_storage.CollectfastS3ManifestStaticStorage"
# Django's own storages that write the same files to a folder.
LOCAL = {
    STATIC: "django.contrib.staticfiles.storage.StaticFilesStorage",
    MANIFEST: "django.contrib.staticfiles.storage.ManifestStaticFilesStorage",
}


@dataclass
class Deploy:
    """The output and the requests of one collectstatic run."""

    output: str
    requests: Counter[str]
    put: list[str]

    @property
    def summary(self) -> str:
        return self.output.strip().splitlines()[-1]


@dataclass
class Site:
    """A site with sources below `root` that is deployed to the location of `bucket`.

    Each deploy has its own storages, finders and cache clients, as if it were another
    process. The contents of the cache are kept between deploys.
    """

    root: Path
    bucket: BucketView
    proxy: Proxy
    backend: str = STATIC
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.static = self.root / "static"
        self.static.mkdir(parents=True, exist_ok=True)

    @property
    def storage_options(self) -> dict[str, Any]:
        return {
            "endpoint_url": self.proxy.endpoint,
            "bucket_name": self.bucket.name,
            "location": self.bucket.location,
            "access_key": self.bucket.server.access_key,
            "secret_key": self.bucket.server.secret_key,
            "region_name": self.bucket.server.region,
            **self.proxy.trust,
            **self.options,
        }

    def write(
        self, name: str, content: str | bytes = "", mtime: float | None = None
    ) -> None:
        path = self.static / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        if mtime is not None:
            os.utime(path, (mtime, mtime))

    def write_many(self, count: int) -> dict[str, bytes]:
        """Write `count` small files of several kinds, and return them."""
        suffixes = ("css", "js", "svg", "txt")
        files = {
            f"dir{i % 7}/file{i}.{suffixes[i % 4]}": f"content of {i}\n".encode()
            for i in range(count)
        }
        self.write_all(files)
        return files

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write `files`, which maps names to contents."""
        for name, content in files.items():
            self.write(name, content)

    def touch(self) -> None:
        """Give every file a new mtime, as a fresh checkout does."""
        future = time.time() + 1000
        for path in self.static.rglob("*"):
            os.utime(path, (future, future))

    @contextmanager
    def active(self, **settings: Any) -> Iterator[None]:
        """Apply the settings of this site until the block ends."""
        backend = {"BACKEND": self.backend, "OPTIONS": self.storage_options}
        defaults: dict[str, Any] = {
            "STATICFILES_DIRS": [str(self.static)],
            "STATIC_ROOT": str(self.root / "collected"),
            # The default is too long for tests of an outage that does not end.
            "COLLECTFAST_RETRY_TIMEOUT": 2,
            "STORAGES": {
                "default": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
                "staticfiles": backend,
            },
            "CACHES": {
                "default": {
                    "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
                    "LOCATION": str(self.root),
                }
            },
        }
        active = defaults | self.settings | settings
        with override_settings(**active):
            if django.VERSION < (5, 1):
                # In these versions override_settings(STORAGES=…) also sets
                # STATICFILES_STORAGE, which takes precedence and has no OPTIONS.
                # A settings module does not have this problem.
                storages.backends.update(active["STORAGES"])
            yield

    def collect(self, *arguments: str, **settings: Any) -> Deploy:
        """Run collectstatic as `manage.py` does."""
        self.proxy.requests.clear()
        output = io.StringIO()
        with self.active(**settings):
            call_command("collectstatic", "--noinput", *arguments, stdout=output)
        return Deploy(output.getvalue(), self.proxy.count(), self.put())

    def collect_locally(self, *arguments: str, **settings: Any) -> Deploy:
        """Run collectstatic with Django's own local storage."""
        backend = "django.contrib.staticfiles.storage.StaticFilesStorage"
        storages = {"staticfiles": {"BACKEND": backend}}
        return self.collect(*arguments, STORAGES=storages, **settings)

    def put(self) -> list[str]:
        """Return the names that were uploaded."""
        return [self.name(key) for key in self.proxy.keys("PUT")]

    def put_by_obstore(self) -> list[str]:
        """Return the names that were uploaded by obstore.

        Its requests have another user agent than those of boto3 and botocore.
        """
        return sorted(
            self.name(request.key)
            for request in self.proxy.requests
            if request.kind == "PUT"
            and "boto" not in request.headers["user-agent"].lower()
        )

    def manifest(self) -> dict[str, str]:
        """Return the paths of the manifest in the bucket: hashed names by name."""
        manifest = json.loads(self.bucket.read("staticfiles.json"))
        return dict(manifest["paths"])

    def name(self, key: str) -> str:
        """Return the name of the file with this `key` in the bucket."""
        return key.removeprefix(self.bucket.key(""))

    @contextmanager
    def storage(self) -> Iterator[Any]:
        """Return the storage as a program would use it, with the settings applied."""
        with self.active():
            # Django makes the storage when an attribute of the lazy object is read.
            assert staticfiles_storage.exists
            yield staticfiles_storage._wrapped
