"""Every quirk of a server: deploys work, and one without changes uploads nothing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from botocore.config import Config
from django.core.management.base import CommandError

from tests import quirks
from tests.quirks import Quirks
from tests.site import STATIC, Site

pytestmark = pytest.mark.slow

MANIFEST = "collectfast_storage.CollectfastS3ManifestStaticStorage"
LOCAL = {
    STATIC: "django.contrib.staticfiles.storage.StaticFilesStorage",
    MANIFEST: "django.contrib.staticfiles.storage.ManifestStaticFilesStorage",
}
# What a site has to set, as with django-storages.
OPTIONS: dict[str, dict[str, Any]] = {
    "wants encryption": {
        "object_parameters": {
            "CacheControl": "max-age=60",
            "ServerSideEncryption": "AES256",
        }
    },
    "wants signed payloads": {
        "client_config": Config(s3={"payload_signing_enabled": True})
    },
    "wants no checksums": {
        "client_config": Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
    },
}
# What nobody can tell in a deploy that follows at once: all goes up again.
UNKNOWABLE = {"written keys are listed late"}
COMBINATIONS = [
    ("LIST: ETag another", "HEAD: ETag weak", "PUT: ETag none", "HTTP/1.0"),
    ("LIST: ETag none", "HEAD: ETag another", "PUT: ETag another each time"),
    ("LIST: ETag another each time", "PUT: ETag another", "ListObjects only"),
    ("ListObjects only", "keys are not encoded", "chunked"),
    ("pages repeat keys", "no KeyCount", "keys out of order", "no DeleteObjects"),
]
_numbers = itertools.count()


@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.parametrize("backend", [STATIC, MANIFEST], ids=["plain", "manifest"])
@pytest.mark.parametrize(
    "switches", [*((each,) for each in quirks.ALL), *COMBINATIONS], ids=", ".join
)
def test_quirk(
    site: Site, switches: tuple[str, ...], backend: str, cache: str, way: str
) -> None:
    site.backend = backend
    site.options["object_parameters"] = {"CacheControl": "max-age=60"}
    for switch in switches:
        site.options |= OPTIONS.get(switch, {})
    files = {f"dir{i}/f {i}+ü.txt": f"{i}".encode() for i in range(9)}
    files |= {"a.css": b"a { background: url('i.png') }", "i.png": b"image"}
    site.write_all(files)

    def collect(*arguments: str) -> Any:
        if cache == "cold":
            location = f"{site.root}-{next(_numbers)}"
            memory = "django.core.cache.backends.locmem.LocMemCache"
            site.settings["CACHES"] = {
                "default": {"BACKEND": memory, "LOCATION": location}
            }
        return site.collect(*arguments)

    def assert_all_there() -> None:
        storages = {"staticfiles": {"BACKEND": LOCAL[backend]}}
        site.collect("--clear", STORAGES=storages)
        root = site.root / "collected"
        there = {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }
        files = site.bucket.files()
        assert files.items() >= there.items()
        assert files.keys() == there.keys() or backend == MANIFEST
        caching = {site.bucket.get(name).get("CacheControl") for name in there}
        assert caching == {"max-age=60"}

    Quirks(site.proxy, site.bucket.server, *switches)
    collect()
    assert_all_there()

    unchanged = collect()
    if UNKNOWABLE.isdisjoint(switches):
        assert unchanged.put == []
    assert_all_there()

    site.write("i.png", "another image")
    changed = collect()
    if UNKNOWABLE.isdisjoint(switches):
        twice = {*changed.put}
        assert len(twice) == (1 if backend == STATIC else 4), changed.put
        assert len(changed.put) <= 2 * len(twice)
    assert_all_there()

    site.bucket.put("left.css", b"left over")
    if set(switches) & {"no ListObjectsV2", "deletes nothing"}:
        with pytest.raises(CommandError, match=r"'tests'|left\.css"):
            collect("--clear")
        site.bucket.delete("left.css")
    else:
        collect("--clear")
        collect("--clear")
    assert_all_there()
