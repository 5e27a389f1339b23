"""Compressed files: the options `gzip` and `gzip_content_types`."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from django.core.files.base import ContentFile
from django.core.management.base import CommandError
from storages.backends.s3 import S3ManifestStaticStorage, S3StaticStorage

from collectfast_storage import CollectfastMixin
from tests.support.proxy import refuse
from tests.support.site import Site

pytestmark = pytest.mark.covering

MIB = 1024 * 1024
CSS = b"body { color: red }\n" * 100
# Contents that gzip cannot make smaller.
NOISE = random.Random(1).randbytes(6 * MIB)


class CountingCompression(S3StaticStorage):
    """A storage class of a site that counts compressed files."""

    compressed = 0

    def _compress_content(self, content: Any) -> Any:
        CountingCompression.compressed += 1
        return super()._compress_content(content)


class Counting(CollectfastMixin, CountingCompression):
    pass


class CountingManifest(CollectfastMixin, CountingCompression, S3ManifestStaticStorage):
    pass


@pytest.fixture
def site(site: Site) -> Site:
    """Return a site that compresses, with files to compress and others."""
    site.options["gzip"] = True
    site.backend = f"{__name__}.Counting"
    site.write("a.css", CSS)
    site.write("a.js", b"let x = 1;\n" * 100)
    site.write("a.png", b"\x89PNG" * 100)
    site.write("already.css.gz", gzip.compress(CSS))
    CountingCompression.compressed = 0
    return site


def _cold(site: Site, number: int = 0) -> dict[str, Any]:
    backend = "django.core.cache.backends.locmem.LocMemCache"
    return {"default": {"BACKEND": backend, "LOCATION": f"{site.root}-cold{number}"}}


def _stored(site: Site, name: str) -> tuple[bytes, str | None]:
    """Return the content of an object, as a browser sees it, and its encoding."""
    stored = site.bucket.get(name)
    body: bytes = stored["Body"].read()
    encoding = stored.get("ContentEncoding") or None
    return gzip.decompress(body) if encoding == "gzip" else body, encoding


def _compressed(site: Site) -> set[str]:
    """Return the names of the compressed objects, after checking all contents."""
    contents = {name: _stored(site, name) for name in site.bucket.names()}
    for name, (content, _) in contents.items():
        source = (site.static / name).read_bytes()
        assert content in (source, gzip.decompress(source) if "gz" in name else source)
    return {name for name, (_, encoding) in contents.items() if encoding == "gzip"}


@pytest.mark.needs("trailing checksums")
def test_objects_are_those_of_django_storages(site: Site) -> None:
    """Contents and headers are those of django-storages, compressed or not."""
    plain = replace(
        site,
        backend="storages.backends.s3.S3StaticStorage",
        bucket=replace(site.bucket, location=f"{site.bucket.location}-plain"),
    )
    for each in (plain, site):
        each.collect()
    assert site.bucket.names() == plain.bucket.names()
    for name in site.bucket.names():
        theirs, ours = plain.bucket.get(name), site.bucket.get(name)
        for header in ("ContentEncoding", "ContentType", "CacheControl"):
            assert ours.get(header) == theirs.get(header), name
        assert ours["Body"].read() == theirs["Body"].read(), name
    # A name that ends with .css.gz has the content type of CSS, which is compressed.
    assert _compressed(site) == {"a.css", "a.js", "already.css.gz"}


def test_unchanged_deploy_uploads_nothing_and_compresses_nothing(
    site: Site,
) -> None:
    """With a warm cache, an unchanged deploy neither compresses nor uploads files."""
    site.collect()
    site.touch()
    CountingCompression.compressed = 0
    again = site.collect()
    assert again.requests == {"LIST": 1}
    assert again.summary == "0 static files copied, 4 unmodified."
    assert CountingCompression.compressed == 0


def test_cold_cache_compresses_files_to_compare_them(site: Site) -> None:
    """With a cold cache, files are compressed once, in order to compare them."""
    site.collect()
    CountingCompression.compressed = 0
    again = site.collect(CACHES=_cold(site))
    assert again.requests == {"LIST": 1}
    assert CountingCompression.compressed == 2
    assert site.collect(CACHES=_cold(site)).requests == {"LIST": 1}
    assert CountingCompression.compressed == 2


def test_changed_file_is_compressed_and_uploaded_alone(site: Site) -> None:
    """A changed file is compressed and uploaded, and no other file is uploaded."""
    site.collect()
    site.write("a.css", CSS + b"/* changed */")
    changed = site.collect()
    assert changed.put == ["a.css"]
    assert _stored(site, "a.css") == (CSS + b"/* changed */", "gzip")


def test_overwritten_object_is_replaced(site: Site) -> None:
    """An object that was overwritten with the plain file is uploaded compressed.

    This is so although the cache is warm.
    """
    site.collect()
    site.bucket.put("a.css", CSS, ContentType="text/css")
    assert site.collect().put == ["a.css"]
    assert _stored(site, "a.css") == (CSS, "gzip")


@pytest.mark.parametrize("warm", [True, False])
def test_gzip_switched_off_and_on_again(site: Site, warm: bool) -> None:
    """Switching gzip on or off uploads exactly the files that get another encoding."""
    for number, on in enumerate([True, False, True, True, False]):
        site.options["gzip"] = on
        caches = {} if warm else {"CACHES": _cold(site, number)}
        before = _compressed(site) - {"already.css.gz"}
        after = {"a.css", "a.js"} if on else set()
        deploy = site.collect(**caches)
        if number:
            assert set(deploy.put) == before ^ after
        assert _compressed(site) - {"already.css.gz"} == after
    site.touch()
    assert site.collect().requests == {"LIST": 1}


@pytest.mark.parametrize("warm", [True, False])
def test_changed_gzip_content_types(site: Site, warm: bool) -> None:
    """Files with a type that the option gains or loses are uploaded again."""
    site.options["gzip_content_types"] = ("text/css", "image/png")
    site.collect()
    assert _compressed(site) == {"a.css", "a.png", "already.css.gz"}
    javascript = ("text/javascript", "application/javascript")
    site.options["gzip_content_types"] = ("text/css", *javascript)
    deploy = site.collect(**({} if warm else {"CACHES": _cold(site)}))
    assert deploy.put == ["a.js", "a.png"]
    assert _compressed(site) == {"a.css", "a.js", "already.css.gz"}


def test_own_content_encoding_is_kept(site: Site) -> None:
    """Files are not compressed if the parameters contain a `ContentEncoding`.

    Such files are already compressed.
    """
    site.options["object_parameters"] = {"ContentEncoding": "br"}
    site.collect()
    assert CountingCompression.compressed == 0
    assert _stored(site, "a.css") == (CSS, "br")
    assert site.collect().requests == {"LIST": 1}


@pytest.mark.needs("S3's ETags of parts")
@pytest.mark.parametrize("streamed", ["both", "plain only"])
def test_file_too_large_for_one_request(site: Site, streamed: str) -> None:
    """A file above the multipart threshold is compressed, and uploaded once.

    It may be above the threshold after compression, too, or only before it.
    """
    content = NOISE if streamed == "both" else CSS * 3000
    site.options["transfer_config"] = TransferConfig(
        multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB
    )
    assert len(content) > 5 * MIB
    site.write("large.css", content)
    site.collect()
    assert _stored(site, "large.css") == (content, "gzip")
    assert ("-" in site.bucket.get("large.css")["ETag"]) == (streamed == "both")

    CountingCompression.compressed = 0
    site.touch()
    assert site.collect().requests == {"LIST": 1}
    assert CountingCompression.compressed == 0
    assert site.collect(CACHES=_cold(site)).requests == {"LIST": 1}

    site.options["gzip"] = False
    assert "large.css" in site.collect().put
    assert _stored(site, "large.css") == (content, None)
    site.options["gzip"] = True
    assert "large.css" in site.collect().put
    assert _stored(site, "large.css") == (content, "gzip")


def test_manifest_storage_compresses_its_hashed_files(site: Site) -> None:
    """Unchanged hashed files are neither compressed nor uploaded a second time."""
    site.backend = f"{__name__}.CountingManifest"
    site.write("url.css", b"a { background: url(a.png) }\n" * 50)
    site.collect()
    paths = json.loads(site.bucket.read("staticfiles.json"))["paths"]
    for name in ("a.css", "a.js", "url.css"):
        content, encoding = _stored(site, paths[name])
        assert encoding == "gzip"
        assert name == "url.css" or content == (site.static / name).read_bytes()
    assert paths["a.png"].encode() in content
    before = {name: site.bucket.get(name)["ETag"] for name in site.bucket.names()}

    CountingCompression.compressed = 0
    site.touch()
    again = site.collect()
    assert again.put == []
    assert CountingCompression.compressed == 0
    assert site.collect(CACHES=_cold(site)).put == []
    after = {name: site.bucket.get(name)["ETag"] for name in site.bucket.names()}
    assert after == before

    site.options["gzip"] = False
    compressed = {"a.css", "a.js", "url.css"}
    expected_names = compressed | {paths[name] for name in compressed}
    assert set(site.collect().put) == expected_names
    assert _stored(site, paths["a.css"]) == (CSS, None)


@pytest.mark.needs("trailing checksums")
def test_save_of_an_unchanged_file_compresses_it_once_and_does_not_upload(
    site: Site,
) -> None:
    """A program's save of an unchanged file compresses it once, and uploads nothing.

    A program's save uses no cache, so it compresses the file to compare the ETag.
    """
    with site.storage() as storage:
        storage.save("a.css", ContentFile(CSS))
        assert _stored(site, "a.css") == (CSS, "gzip")
        before = site.proxy.count()
        CountingCompression.compressed = 0
        storage.save("a.css", ContentFile(CSS))
        assert site.proxy.count() == before + Counter(HEAD=1)
        assert CountingCompression.compressed == 1


def test_failed_upload_is_repeated_compressed(site: Site) -> None:
    """After a failed upload, the next run compresses and uploads the file."""
    site.proxy.fault = refuse("PUT", "/a.css")
    with pytest.raises(CommandError, match=r"a\.css"):
        site.collect()
    site.proxy.fault = None
    assert site.collect().put == ["a.css"]
    assert _stored(site, "a.css") == (CSS, "gzip")


@pytest.mark.needs("trailing checksums")
def test_disabled_storage_compresses_as_django_storages_does(site: Site) -> None:
    """With `collectfast_enabled=False`, the usual files are compressed."""
    site.options["collectfast_enabled"] = False
    site.collect()
    assert _compressed(site) == {"a.css", "a.js", "already.css.gz"}


def test_file_that_compression_makes_too_large_for_one_request(site: Site) -> None:
    """A file that only compression makes larger than the threshold is uploaded once.

    The report counts its size before the compression.
    """
    noise = random.Random(2).randbytes(999)
    site.options["transfer_config"] = TransferConfig(multipart_threshold=1000)
    site.write("b.js", noise)
    with site.storage() as storage:
        with storage.batch() as batch:
            batch.save("b.js", ContentFile(noise))
        assert batch.report.bytes == len(noise)
        with storage.batch() as batch:
            batch.save("b.js", ContentFile(noise))
        assert batch.report.unchanged == ("b.js",)
    assert _stored(site, "b.js") == (noise, "gzip")
