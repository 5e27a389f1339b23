"""Random sequences with a manifest, compared with Django's local storage.

``pytest tests/properties/test_model_manifest.py --sequences 500`` tries a sixth of that
number, because each sequence takes longer.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable

import pytest
from django.core.cache import caches
from django.core.management.base import CommandError
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from collectfast_storage import CollectfastS3ManifestStaticStorage
from tests.support.machine import (
    REASON,
    SharedSession,
    UploadFault,
    arguments,
    named,
    one_of,
    run,
    unhashed,
    upload_faults,
)
from tests.support.site import Site

pytestmark = [
    pytest.mark.slow,
    # django-storages does not close files that it decompresses (in
    # S3File._decompress_file).
    pytest.mark.filterwarnings(
        "ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning"
    ),
]

MANIFEST = "staticfiles.json"
LOCAL = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
# Some contents refer to files that may be missing.
CONTENTS = {
    "i.png": ["", "image", "other image"],
    "d/j.png": ["image"],
    "a.css": ["", "a{}", '@import "d/b.css";', "a{background:url(i.png)}"],
    "d/b.css": ["b{}", "b{background:url(../i.png)}", "b{background:url(j.png)}"],
}


class Manifest(SharedSession, CollectfastS3ManifestStaticStorage):
    pass


contents = {name: st.sampled_from(each) for name, each in CONTENTS.items()}
files = st.fixed_dictionaries({}, optional=contents)
all_files = st.fixed_dictionaries(contents)
objects = one_of(lambda machine: machine.there)
sources = one_of(lambda machine: machine.sources)
has_objects = precondition(lambda machine: machine.there)
has_sources = precondition(lambda machine: machine.sources)


class ManifestMachine(RuleBasedStateMachine):
    """A state machine with a site, its bucket, and the same site stored locally."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        # On a busy machine, retries may take longer than the time in other tests.
        self.site.settings["COLLECTFAST_RETRY_TIMEOUT"] = 60
        self.site.backend = f"{__name__}.Manifest"
        self.sources: set[str] = set()
        # The objects that other programs may change. The manifest is not one of them,
        # because Django refuses to start if it is damaged.
        self.there: set[str] = set()

    @initialize(files=all_files)
    def start(self, files: dict[str, str]) -> None:
        self.write(files)

    @rule(files=files)
    def write(self, files: dict[str, str]) -> None:
        for name, content in files.items():
            self.site.write(name, content)
        self.sources |= files.keys()

    @has_sources
    @rule(name=sources)
    def remove(self, name: str) -> None:
        (self.site.static / name).unlink()
        self.sources.remove(name)

    @rule()
    def touch(self) -> None:
        self.site.touch()

    @rule(gzip=st.booleans(), threads=st.sampled_from([0, 3]))
    def configure(self, gzip: bool, threads: int) -> None:
        self.site.options |= {"gzip": gzip, "collectfast_threads": threads}

    @rule()
    def flush_cache(self) -> None:
        with self.site.active():
            caches["default"].clear()

    @has_objects
    @rule(name=objects)
    def others_write(self, name: str) -> None:
        self.site.bucket.put(name, b"damaged")

    @has_objects
    @rule(name=objects)
    def others_delete(self, name: str) -> None:
        self.site.bucket.delete(name)
        self.there.remove(name)

    @rule(
        files=files,
        clear=st.booleans(),
        upload_fault=upload_faults([*CONTENTS, MANIFEST]),
    )
    def collect_with_upload_fault(
        self, files: dict[str, str], clear: bool, upload_fault: UploadFault
    ) -> None:
        self.write(files)
        self._collect(clear, upload_fault)

    @rule(clear=st.booleans())
    def collect(self, clear: bool) -> None:
        self._collect(clear, None)

    def _collect(self, clear: bool, upload_fault: UploadFault | None) -> None:
        before = self.objects()
        # Without `gzip`, django-storages does not decompress compressed objects.
        read = before if self.site.options.get("gzip") else self.site.bucket.files()
        expected = self._locally({} if clear else read)
        if upload_fault is not None:
            self.site.proxy.fault = upload_fault.fault(self.site.bucket.location)
        try:
            self.site.collect(*arguments(clear))
        except (CommandError, ValueError) as error:
            self.site.proxy.fault = None
            self._failed(before, upload_fault, None if expected is None else str(error))
        else:
            self.site.proxy.fault = None
            assert expected is not None, "Django's own refuses"
            self._succeeded(clear, upload_fault, expected, _named(before))
        self.there = set(self.site.bucket.names()) - {MANIFEST}

    def _succeeded(
        self,
        clear: bool,
        upload_fault: UploadFault | None,
        expected: dict[str, bytes],
        kept: set[str],
    ) -> None:
        if upload_fault is not None and upload_fault.permanent:
            assert not {unhashed(name) for name in self.site.put()} & upload_fault.names
        actual = self.objects()
        assert {name: actual.get(name) for name in expected} == expected
        extra = actual.keys() - expected.keys()
        assert not clear or extra <= kept
        again = self.site.collect(*arguments(clear))
        assert again.put == []
        cleared = {"DELETE MANY"} if extra else set()
        assert again.requests.keys() <= {"LIST", "HEAD", "GET"} | cleared
        assert not clear or self.objects().keys() == expected.keys()

    def _failed(
        self,
        before: dict[str, bytes],
        upload_fault: UploadFault | None,
        error: str | None,
    ) -> None:
        """Assert that the old release is complete, and that the error names a failure.

        The error is None if Django's local storage refuses the sources too.
        """
        after = self.objects()
        assert after.keys() >= before.keys()
        if (
            upload_fault is None
            or not upload_fault.arrives
            or MANIFEST not in upload_fault.names
        ):
            assert after.get(MANIFEST) == before.get(MANIFEST)
        if error is not None:
            assert upload_fault is not None
            assert upload_fault.permanent
            failed = {unhashed(name) for name in named(error, REASON)}
            assert failed
            assert failed <= upload_fault.names

    def _locally(self, there: dict[str, bytes]) -> dict[str, bytes] | None:
        """Return the files that Django's own storage makes of the sources.

        It starts with the unhashed files `there`, which would be left from its earlier
        runs. The result is None if it refuses the sources.
        """
        root = self.site.root / "collected"
        shutil.rmtree(root, ignore_errors=True)
        for name, content in there.items():
            if name not in self.sources and name == unhashed(name) != MANIFEST:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
        try:
            self.site.collect(STORAGES={"staticfiles": {"BACKEND": LOCAL}})
        except (CommandError, ValueError):
            return None
        return {
            path.relative_to(root).as_posix(): _plain(path.read_bytes())
            for path in root.rglob("*")
            if path.is_file()
        }

    def objects(self) -> dict[str, bytes]:
        """Return the decompressed contents of all objects, by name."""
        files = self.site.bucket.files()
        return {name: _plain(content) for name, content in files.items()}


def _plain(content: bytes) -> bytes:
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _named(objects: dict[str, bytes]) -> set[str]:
    """Return the hashed names in the manifest, or all of them without a manifest."""
    try:
        return {*json.loads(objects[MANIFEST])["paths"].values()}
    except (KeyError, ValueError):
        return {name for name in objects if name != unhashed(name)}


def test_bucket_equals_djangos_local_storage(
    new_site: Callable[[], Site], sequences: int
) -> None:
    """After each deploy, names and contents are those of Django's local storage.

    The next run uploads nothing.
    """
    run(lambda: ManifestMachine(new_site()), sequences // 6)
