"""Unusual file names, and files that cannot be read."""

from __future__ import annotations

import os
from io import BytesIO
from typing import Any

import pytest
from django.core.management.base import CommandError

from tests.support.names import NAMES
from tests.support.proxy import Handler, Request
from tests.support.site import Site
from tests.support.sources import finder_of
from tests.support.tracing import BACKENDS

pytestmark = pytest.mark.covering


@pytest.mark.needs("newlines in keys")
@pytest.mark.needs("a listing with control characters")
@pytest.mark.parametrize("backend", BACKENDS)
def test_names_survive_the_round_trip(site: Site, backend: str) -> None:
    """All names that a file system allows are uploaded, and found in the listing."""
    site.backend = backend
    for name in NAMES:
        site.write(name, name)
    site.collect("--no-default-ignore")
    assert site.bucket.files() == {name: name.encode() for name in NAMES}
    site.touch()
    again = site.collect("--no-default-ignore")
    assert again.requests == {"LIST": 1}
    assert again.summary == f"0 static files copied, {len(NAMES)} unmodified."


@pytest.mark.needs("newlines in keys")
def test_names_survive_without_a_listing(site: Site) -> None:
    """All names that a file system allows are recognized by HEAD requests."""
    for name in NAMES:
        site.write(name, name)
    site.collect("--no-default-ignore")
    site.options["collectfast_preload"] = False
    again = site.collect("--no-default-ignore", CACHES=_cold(site))
    assert again.requests == {"HEAD": len(NAMES)}


@pytest.mark.needs("newlines in keys")
def test_clear_deletes_left_over_names_of_all_kinds_and_no_others(site: Site) -> None:
    """`--clear` deletes left over names of all kinds, and no similar names.

    The XML of a DeleteObjects request cannot represent some of these names.
    """
    for name in NAMES:
        site.bucket.put(name, b"left over")
    # An XML parser would change two of the names to these.
    for name in ("carriage\nreturn.css", "both\n.css"):
        site.write(name, name)
    site.collect("--clear", "--no-default-ignore")
    assert site.bucket.names() == ["both\n.css", "carriage\nreturn.css"]


def test_left_over_name_that_cannot_be_deleted_is_the_only_one_named(
    site: Site,
) -> None:
    """A name that XML cannot represent is deleted by a request of its own.

    The error prints its control characters escaped.
    """
    for name in ("control\x01.css", "plain.css"):
        site.bucket.put(name, b"left over")
    site.write("a.css", "a")

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "DELETE":
            handler.error(403, "AccessDenied")
        return request.kind == "DELETE"

    site.proxy.fault = fault
    denied = r"delete 1 file.*\n  control\\x01\.css: .*Denied"
    with pytest.raises(CommandError, match=denied) as caught:
        site.collect("--clear")
    assert str(caught.value).replace("\n", "").isprintable()
    assert site.bucket.names() == ["a.css", "control\x01.css"]


def test_backslash_becomes_a_slash_as_with_django_storages(site: Site) -> None:
    """A file with a backslash in its name gets a slash there, and is uploaded once."""
    site.write("back\\slash.css", "x")
    site.collect()
    assert site.bucket.files() == {"back/slash.css": b"x"}
    assert site.collect().requests == {"LIST": 1}


def _name_of_length(site: Site, length: int) -> str:
    """Return a name with a key of `length` bytes, including the location."""
    room = length - len(site.bucket.key(""))
    folders = room // 200
    return "d" * 199 + "/" + ("é" * 99 + "x/") * (folders - 1) + "f" * (room % 200)


def test_longest_possible_key(site: Site) -> None:
    """A key of 1,024 bytes of UTF-8, including the location, is uploaded once."""
    name = _name_of_length(site, 1024)
    assert len(site.bucket.key(name).encode()) == 1024
    site.write(name, "x")
    site.collect()
    assert site.bucket.files() == {name: b"x"}
    assert site.collect().requests == {"LIST": 1}


@pytest.mark.parametrize("preload", [True, False])
def test_key_that_is_too_long_is_named_and_the_rest_arrives(
    site: Site, preload: bool
) -> None:
    """A key that is too long is named in the error, and all other files arrive.

    S3 answers all requests for such a key with 400, but the bucket is usable.
    """
    site.options["collectfast_preload"] = preload
    name = _name_of_length(site, 1025)
    for each in (name, "a.css", "z.css"):
        site.write(each, each)

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        too_long = len(request.key.encode()) > 1024
        if too_long:
            handler.error(400, "KeyTooLongError", "Your key is too long")
        return too_long

    site.proxy.fault = fault
    for sent in ({"a.css", "z.css", name}, {name}):
        with pytest.raises(CommandError) as caught:
            site.collect()
        assert "Could not upload 1 file" in str(caught.value)
        assert f"{name}: " in str(caught.value)
        assert "KeyTooLongError" in str(caught.value)
        assert site.bucket.names() == ["a.css", "z.css"]
        assert set(site.put()) == sent


@pytest.mark.skipif(os.name != "posix", reason="file names are text on this system")
@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("threads", [0, 8])
def test_name_that_is_not_utf8_is_named_and_the_rest_arrives(
    site: Site, preload: bool, threads: int
) -> None:
    """S3's keys are UTF-8, so the error names the file; all others are uploaded once.

    Its other bytes are printed escaped, so that any terminal can show them.
    """
    site.options |= {"collectfast_preload": preload, "collectfast_threads": threads}
    name = os.fsdecode(b"caf\xe9.css")
    try:
        site.write(name, "latin-1")
    except OSError:
        pytest.skip("this file system has no such names")
    for each in ("a.css", "z.css"):
        site.write(each, each)
    for put in (["a.css", "z.css"], []):
        with pytest.raises(CommandError) as caught:
            site.collect()
        assert "Could not upload 1 file" in str(caught.value)
        assert r"caf\udce9.css: the file name is not valid UTF-8" in str(caught.value)
        assert str(caught.value).encode().decode() == str(caught.value)
        assert site.put() == put
    assert site.bucket.names() == ["a.css", "z.css"]


def test_empty_file_is_uploaded_once(site: Site) -> None:
    """An empty file is uploaded once, with and without compression."""
    for gzip in (False, True):
        site.options["gzip"] = gzip
        site.write("empty.css")
        site.write("empty.bin")
        first = site.collect()
        assert first.requests["PUT"] == (1 if gzip else 2)
        assert site.bucket.read("empty.bin") == b""
        site.touch()
        assert site.collect().requests == {"LIST": 1}
        # With a cold cache, the ETag is enough.
        cold = site.collect(CACHES=_cold(site))
        assert cold.requests == {"LIST": 1}


# Files.


@pytest.mark.parametrize("preload", [True, False])
def test_loop_of_directories_ends_as_with_local_storage(
    site: Site, preload: bool
) -> None:
    """A loop of symbolic links ends the command with Django's error.

    Django follows links to directories until the system refuses. No file is deleted.
    """
    site.options["collectfast_preload"] = preload
    site.bucket.put("left-over.css", b"x")
    site.write("dir/a.css", "a")
    (site.static / "dir" / "loop").symlink_to(site.static / "dir")
    for collect in (site.collect_locally, site.collect):
        with pytest.raises(OSError, match=r"symbolic links.*/dir/loop/loop"):
            collect("--clear")
    assert "left-over.css" in site.bucket.names()


@pytest.mark.parametrize("preload", [True, False])
def test_file_that_cannot_be_found_ends_the_command_as_with_local_storage(
    site: Site, preload: bool
) -> None:
    """A dangling link ends the command, and the error names it.

    The next run uploads the files that this one did not.
    """
    site.options["collectfast_preload"] = preload
    files = site.write_many(20)
    site.bucket.put("left-over.css", b"x")
    (site.static / "dangling.css").symlink_to(site.static / "nowhere.css")
    for collect in (site.collect_locally, site.collect):
        with pytest.raises(FileNotFoundError, match=r"dangling\.css"):
            collect("--clear")
    assert "left-over.css" in site.bucket.names()
    (site.static / "nowhere.css").write_text("here")
    site.collect()
    assert site.bucket.files() == {
        **files,
        "left-over.css": b"x",
        "dangling.css": b"here",
        "nowhere.css": b"here",
    }
    site.touch()
    assert site.collect().requests.keys() <= {"LIST"}


@pytest.mark.parametrize("preload", [True, False])
def test_file_that_cannot_be_read_is_named(site: Site, preload: bool) -> None:
    """A file that cannot be read is named; files before it are not uploaded again."""
    site.options["collectfast_preload"] = preload
    refused = True

    def refuse() -> BytesIO:
        if refused:
            raise PermissionError(13, "Permission denied", "secret.css")
        return BytesIO(b"readable now")

    finder = finder_of({"a.css": b"a", "secret.css": refuse, "z.css": b"z"})
    with pytest.raises(PermissionError, match=r"secret\.css"):
        site.collect(STATICFILES_FINDERS=[finder])
    assert site.bucket.files() == {"a.css": b"a"}
    refused = False
    again = site.collect(STATICFILES_FINDERS=[finder])
    assert again.put == ["secret.css", "z.css"]
    assert site.bucket.read("secret.css") == b"readable now"


def _cold(site: Site) -> dict[str, Any]:
    backend = "django.core.cache.backends.locmem.LocMemCache"
    return {"default": {"BACKEND": backend, "LOCATION": f"{site.root}-cold"}}
