"""`collectstatic --clear`: it works, and without downtime."""

from __future__ import annotations

import re

import django
import pytest
from django.core.management.base import CommandError

from tests.proxy import Handler, Request
from tests.site import Site

MANIFEST_STORAGE = "collectfast_storage.CollectfastS3ManifestStaticStorage"


def _named(output: str, verb: str) -> list[str]:
    return sorted(re.findall(rf"^{verb} '(.*)'$", output, re.MULTILINE))


def test_survivors_stay_and_the_rest_goes_in_one_request(site: Site) -> None:
    """2,500 objects of which 2,400 stay: 0 DELETE of survivors, one DeleteObjects."""
    for number in range(2500):
        site.write(f"{number}.txt", str(number))
    site.collect()
    for number in range(100):
        (site.static / f"{number}.txt").unlink()
    deploy = site.collect("--clear")
    assert deploy.requests == {"LIST": 3, "DELETE MANY": 1}
    assert site.bucket.names() == sorted(f"{n}.txt" for n in range(100, 2500))
    deleted = "100 static files deleted, " if django.VERSION >= (6, 0) else ""
    assert deploy.summary == f"{deleted}0 static files copied, 2400 unmodified."


def test_without_a_location_it_refuses(site: Site) -> None:
    """The bucket may hold other things; the option to set is named."""
    site.write("a.css", "a")
    site.options["location"] = ""
    for arguments in (["--clear"], ["--clear", "--dry-run"]):
        with pytest.raises(CommandError, match=r"option location.*AWS_LOCATION"):
            site.collect(*arguments)
    assert site.proxy.count() == {}


def test_siblings_of_the_location_are_left_alone(site: Site) -> None:
    """`static-old/` does not lie below `static`."""
    key = f"{site.bucket.location}-old/a.css"
    site.bucket.client.put_object(Bucket=site.bucket.name, Key=key, Body=b"sibling")
    site.bucket.put("leftover.css", b"leftover")
    site.write("a.css", "a")
    site.collect("--clear")
    assert site.bucket.names() == ["a.css"]
    site.bucket.client.head_object(Bucket=site.bucket.name, Key=key)


@pytest.mark.parametrize("preload", [True, False])
def test_dry_run_names_what_a_real_run_deletes(site: Site, preload: bool) -> None:
    """And what it would copy; and does nothing."""
    site.options["collectfast_preload"] = preload
    site.write_many(10)
    site.collect()
    site.bucket.put("dir with/left over.css", b"x")
    (site.static / "dir0/file0.css").unlink()
    before = site.bucket.files()
    dry = site.collect("--clear", "--dry-run")
    assert site.bucket.files() == before
    names = ["dir with/left over.css", "dir0/file0.css"]
    assert _named(dry.output, "Pretending to delete") == names
    real = site.collect("--clear", "-v2")
    assert _named(real.output, "Deleting") == names
    assert site.bucket.names() == sorted(before.keys() - names)


def test_dry_run_of_a_manifest_storage_names_what_would_go(site: Site) -> None:
    """Hashed names are as a real run would make them, and that makes none of them."""
    site.backend = MANIFEST_STORAGE
    site.write("a.css", "a { background: url(i.png) }")
    site.write("i.png", b"image")
    site.write("gone.css", "x")
    site.collect()
    (site.static / "gone.css").unlink()
    site.write("i.png", b"other image")
    before = site.bucket.files()
    dry = site.collect("--clear", "--dry-run")
    assert site.bucket.files() == before
    assert dry.requests["PUT"] == dry.requests["DELETE MANY"] == 0
    site.collect("--clear")
    gone = sorted(before.keys() - set(site.bucket.names()))
    assert _named(dry.output, "Pretending to delete") == gone
    assert "gone.css" in gone
    assert len(gone) == 4


def test_manifest_storage_keeps_what_the_new_manifest_names(site: Site) -> None:
    """Old hashed copies go, after the manifest; nothing that is in use does."""
    site.backend = MANIFEST_STORAGE
    site.write("a.css", "a { background: url(i.png) }")
    site.write("i.png", b"image")
    site.collect()
    first = site.bucket.files()
    site.write("i.png", b"other image")
    site.collect("--clear")
    kinds = [r.kind for r in site.proxy.requests if r.kind in ("PUT", "DELETE MANY")]
    assert kinds[-1] == "DELETE MANY"
    assert kinds.count("DELETE MANY") == 1
    names = site.bucket.names()
    assert len(names) == len(first)
    site.touch()
    again = site.collect("--clear")
    assert again.requests["PUT"] == again.requests["DELETE MANY"] == 0
    assert site.bucket.names() == names


def test_failed_run_deletes_nothing(site: Site) -> None:
    """What was to go may still be needed."""
    site.write("a.css", "a")
    site.bucket.put("leftover.css", b"leftover")

    def refuse(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            handler.error(403, "AccessDenied")
        return request.kind == "PUT"

    site.proxy.fault = refuse
    for arguments in ([], ["--no-post-process"]):
        with pytest.raises(CommandError):
            site.collect("--clear", *arguments)
    assert site.bucket.names() == ["leftover.css"]


def test_without_post_processing_it_clears_after_the_last_file(site: Site) -> None:
    """Every call is carried out as it is made, and in the right order."""
    site.write("a.css", "a")
    site.write("b.css", "b")
    site.bucket.put("leftover.css", b"leftover")
    site.bucket.put("a.css", b"old")
    site.collect("--clear", "--no-post-process")
    kinds = [request.kind for request in site.proxy.requests]
    assert kinds == ["LIST", "PUT", "PUT", "DELETE MANY"]
    assert site.bucket.files() == {"a.css": b"a", "b.css": b"b"}
    again = site.collect("--clear", "--no-post-process")
    assert again.requests == {"LIST": 1}


def test_without_post_processing_the_released_manifest_survives(site: Site) -> None:
    """Nothing has replaced what visitors are being served."""
    site.backend = MANIFEST_STORAGE
    site.write("a.css", "a")
    site.collect()
    before = site.bucket.names()
    site.bucket.put("leftover.css", b"leftover")
    site.collect("--clear", "--no-post-process")
    assert site.bucket.names() == before


def test_objects_that_cannot_be_deleted_are_named(site: Site) -> None:
    """One line each, and an exit status; the files themselves are up."""
    site.write("a.css", "a")
    site.bucket.put("left.css", b"x")

    def refuse(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "DELETE MANY":
            return False
        key = f"{site.bucket.location}/left.css"
        handler.answer(
            200,
            f"<DeleteResult><Error><Key>{key}</Key><Code>AccessDenied</Code>"
            "<Message>no</Message></Error></DeleteResult>".encode(),
            [("Content-Type", "application/xml")],
        )
        return True

    site.proxy.fault = refuse
    with pytest.raises(
        CommandError, match=r"Could not delete 1 file(.|\n)*left\.css: Acc"
    ):
        site.collect("--clear")
    assert site.bucket.names() == ["a.css", "left.css"]
