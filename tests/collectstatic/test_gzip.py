"""Compressed files: django-storages' `gzip` and `gzip_content_types`."""

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

MIB = 1024 * 1024
CSS = b"body { color: red }\n" * 100
# Text that gzip makes no smaller.
NOISE = random.Random(1).randbytes(6 * MIB)


class CountingCompression(S3StaticStorage):
    """Of a site that wants to know what is compressed."""

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
    """A site that compresses, with files to compress and others."""
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
    """The content of an object, as a browser sees it, and its encoding."""
    stored = site.bucket.get(name)
    body: bytes = stored["Body"].read()
    encoding = stored.get("ContentEncoding") or None
    return gzip.decompress(body) if encoding == "gzip" else body, encoding


def _compressed(site: Site) -> set[str]:
    """The names of what is compressed in the bucket; all contents are checked."""
    contents = {name: _stored(site, name) for name in site.bucket.names()}
    for name, (content, _) in contents.items():
        source = (site.static / name).read_bytes()
        assert content in (source, gzip.decompress(source) if "gz" in name else source)
    return {name for name, (_, encoding) in contents.items() if encoding == "gzip"}


def test_objects_are_those_of_django_storages(site: Site) -> None:
    """Byte for byte and header for header, whatever is compressed or already is."""
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
    # The content type of a name that ends with .gz is that of what is in it.
    assert _compressed(site) == {"a.css", "a.js", "already.css.gz"}


def test_unchanged_redeploy_uploads_nothing_and_compresses_nothing(
    site: Site,
) -> None:
    """A warm cache knows what was compressed, and into what."""
    site.collect()
    site.touch()
    CountingCompression.compressed = 0
    again = site.collect()
    assert again.requests == {"LIST": 1}
    assert again.summary == "0 static files copied, 4 unmodified."
    assert CountingCompression.compressed == 0


def test_cold_cache_compares_what_would_be_sent(site: Site) -> None:
    """By compressing it as django-storages does; from then on it is warm."""
    site.collect()
    CountingCompression.compressed = 0
    again = site.collect(CACHES=_cold(site))
    assert again.requests == {"LIST": 1}
    assert CountingCompression.compressed == 2
    assert site.collect(CACHES=_cold(site)).requests == {"LIST": 1}
    assert CountingCompression.compressed == 2


def test_changed_file_is_compressed_and_uploaded_alone(site: Site) -> None:
    """One PUT, of what is new, in the place of the old."""
    site.collect()
    site.write("a.css", CSS + b"/* changed */")
    changed = site.collect()
    assert changed.put == ["a.css"]
    assert _stored(site, "a.css") == (CSS + b"/* changed */", "gzip")


def test_overwritten_object_is_replaced(site: Site) -> None:
    """With a warm cache, too: also where it was overwritten with the plain file."""
    site.collect()
    site.bucket.put("a.css", CSS, ContentType="text/css")
    assert site.collect().put == ["a.css"]
    assert _stored(site, "a.css") == (CSS, "gzip")


@pytest.mark.parametrize("warm", [True, False])
def test_gzip_switched_off_and_on_again(site: Site, warm: bool) -> None:
    """Each time exactly the files concerned go up, cold cache or not."""
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
    """What is no longer listed goes up plain, what is newly listed compressed."""
    site.options["gzip_content_types"] = ("text/css", "image/png")
    site.collect()
    assert _compressed(site) == {"a.css", "a.png", "already.css.gz"}
    javascript = ("text/javascript", "application/javascript")
    site.options["gzip_content_types"] = ("text/css", *javascript)
    deploy = site.collect(**({} if warm else {"CACHES": _cold(site)}))
    assert deploy.put == ["a.js", "a.png"]
    assert _compressed(site) == {"a.css", "a.js", "already.css.gz"}


def test_encoding_of_a_sites_own_is_left_alone(site: Site) -> None:
    """`ContentEncoding` among the parameters: the files are compressed already."""
    site.options["object_parameters"] = {"ContentEncoding": "br"}
    site.collect()
    assert CountingCompression.compressed == 0
    assert _stored(site, "a.css") == (CSS, "br")
    assert site.collect().requests == {"LIST": 1}


@pytest.mark.needs("S3's ETags of parts")
@pytest.mark.parametrize("streamed", ["both", "plain only"])
def test_file_too_large_for_one_request(site: Site, streamed: str) -> None:
    """
    Compressed or before, it may be as large as to be sent in parts; it is recognised.

    Also where it is so only before it is compressed.
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
    """Unchanged, they are neither compressed nor uploaded a second time."""
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


def test_save_of_an_unchanged_file_compresses_it_once_and_does_not_upload(
    site: Site,
) -> None:
    """A program's save stores what django-storages would, and uploads it once only.

    A program's save uses no cache, so it compresses to compare the ETag.
    """
    with site.storage() as storage:
        storage.save("a.css", ContentFile(CSS))
        assert _stored(site, "a.css") == (CSS, "gzip")
        before = site.proxy.count()
        CountingCompression.compressed = 0
        storage.save("a.css", ContentFile(CSS))
        assert site.proxy.count() == before + Counter(HEAD=1)
        assert CountingCompression.compressed == 1


def test_upload_that_failed_is_compressed_again(site: Site) -> None:
    """Nothing is remembered of what did not arrive."""
    site.proxy.fault = refuse("PUT", "/a.css")
    with pytest.raises(CommandError, match=r"a\.css"):
        site.collect()
    site.proxy.fault = None
    assert site.collect().put == ["a.css"]
    assert _stored(site, "a.css") == (CSS, "gzip")


def test_switched_off_it_compresses_as_django_storages_does(site: Site) -> None:
    site.options["collectfast_enabled"] = False
    site.collect()
    assert _compressed(site) == {"a.css", "a.js", "already.css.gz"}


def test_file_that_compression_makes_too_large_for_one_request(site: Site) -> None:
    """Read whole, and sent in parts; its size is what it was before."""
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
