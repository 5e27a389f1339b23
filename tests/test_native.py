"""Uploads through obstore, where it is installed."""

from __future__ import annotations

import gc
import hashlib
from pathlib import Path
from typing import Any

import pytest
from collectfast_storage.native import Native
from collectfast_storage.wire import Wire

from tests.proxy import refuse
from tests.site import Site
from tests.test_hostile import NAMES

pytest.importorskip("obstore", reason="obstore is not installed")


def test_it_is_used_and_sends_the_same(site: Site) -> None:
    """Content and headers are those of the other way; the next run sends nothing."""
    site.options["gzip"] = True
    site.options["object_parameters"] = {
        "CacheControl": "max-age=60",
        "ContentDisposition": "inline",
        "ContentLanguage": "en",
        "Metadata": {"a": "b"},
    }
    files = site.write_many(20)
    site.collect()
    assert site.put_by_obstore() == sorted(files)
    stored = site.bucket.get("dir0/file0.css")
    assert stored["ContentType"] == "text/css"
    assert stored["ContentEncoding"] == "gzip"
    assert stored["CacheControl"] == "max-age=60"
    assert stored["ContentDisposition"] == "inline"
    assert stored["ContentLanguage"] == "en"
    assert stored["Metadata"] == {"a": "b"}
    assert site.collect().requests == {"LIST": 1}


def test_names_of_all_kinds(site: Site) -> None:
    for name in NAMES:
        site.write(name, name)
    site.collect("--no-default-ignore")
    assert site.bucket.names() == sorted(NAMES)


@pytest.mark.parametrize(
    "parameters", [{"StorageClass": "STANDARD"}, {"ACL": "private"}, {"Tagging": "a=b"}]
)
def test_what_it_cannot_send_goes_the_other_way(
    site: Site, parameters: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Decided upload by upload, and said once."""
    site.options["object_parameters"] = parameters
    files = site.write_many(3)
    with caplog.at_level("INFO", "collectfast_storage"):
        site.collect()
    [name] = parameters
    assert [each for each in caplog.messages if "obstore" in each] == [
        "obstore is not used for files with these parameters, which it cannot send: "
        f"{name}."
    ]
    assert site.put_by_obstore() == []
    assert site.bucket.files() == files


def test_one_that_is_too_old_is_left_alone(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It may be installed for another's sake, and would store some names as others."""
    metadata = tmp_path / "old" / "obstore-0.7.3.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: obstore\nVersion: 0.7.3\n")
    monkeypatch.syspath_prepend(tmp_path / "old")
    files = site.write_many(3)
    with caplog.at_level("INFO", "collectfast_storage"):
        site.collect()
    assert "obstore is not used: it is older than 0.8." in caplog.messages
    assert site.put_by_obstore() == []
    assert site.bucket.files() == files


def test_its_failure_is_boto3s_to_mend(site: Site) -> None:
    """And what fails for good has boto3's error, with no secret in it."""
    site.write_many(5)
    site.proxy.fault = refuse("PUT")
    with pytest.raises(Exception, match="AccessDenied") as error:
        site.collect()
    assert site.bucket.server.secret_key not in str(error.value)
    assert site.bucket.names() == []


def test_etag_that_is_not_the_contents_is_not_believed(site: Site) -> None:
    """It sends no MD5, so what the server got is compared afterwards."""
    site.write("a.css", "content")
    damaged = []

    def damage(handler: Any, request: Any, body: bytes) -> bool:
        if request.kind != "PUT" or damaged:
            return False
        damaged.append(request.key)
        # The signature covers the body: answer as a server that did not notice would.
        etag = hashlib.md5(b"damaged").hexdigest()
        handler.answer(200, b"", [("ETag", f'"{etag}"')])
        return True

    site.proxy.fault = damage
    site.collect()
    assert damaged
    assert site.bucket.read("a.css") == b"content"


def test_nothing_of_it_outlasts_a_run(site: Site) -> None:
    """A program that saves in batches does not grow by a client each time."""
    site.write_many(3)
    site.collect()
    assert site.put_by_obstore() != []
    # Twice: a run is let go when its command is collected, which a failed one of an
    # earlier test may have been only just now.
    gc.collect()
    gc.collect()
    assert [each for each in gc.get_objects() if type(each) is Native] == []


def test_place_that_needs_more_is_left_alone(site: Site) -> None:
    """Own certificates, say, which obstore is not told of."""
    client = site.bucket.server.client()
    place = Wire(client, site.bucket.name).place
    assert place is not None
    assert place.plain
    assert Native.at(None, lambda: None) is None


def test_key_with_an_empty_folder_name_goes_the_other_way(site: Site) -> None:
    """S3 has such keys, if a site's own `_normalize_name` makes them."""
    wire = Wire(site.bucket.server.client(), site.bucket.name)
    native = Native.at(wire.place, wire.credentials)
    assert native is not None
    md5 = hashlib.md5(b"a").hexdigest()
    assert native.put(site.bucket.key("a//b"), b"a", md5, {}) is None
    assert native.put(site.bucket.key("a/b"), b"a", md5, {}) == md5
    assert site.bucket.names() == ["a/b"]
