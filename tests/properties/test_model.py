"""Random sequences of changes and deploys, compared with a model of plain dicts.

The sequences change the site and its bucket, and deploy with the real collectstatic to
a real S3 server. ``pytest tests/properties/test_model.py --sequences 500`` tries more
of them.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from django.core.cache import caches
from django.core.management.base import CommandError
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from collectfast_storage import CollectfastS3StaticStorage
from tests.support.machine import (
    REASON,
    SharedSession,
    UploadFault,
    arguments,
    named,
    one_of,
    run,
    upload_faults,
)
from tests.support.model import (
    MULTIPART_THRESHOLD,
    Body,
    Headers,
    Model,
    Object,
    Options,
)
from tests.support.proxy import refuse
from tests.support.site import Deploy, Site

pytestmark = pytest.mark.slow

NAMES = ["a.css", "b.js", "d/a.css", "d/i.png", "d/e/ü +%41.txt", "f"]
FOREIGN = ["other.css", "d/e/other"]
CONTENTS = [
    b"",
    b"one",
    b"two\r\n",
    b"long, and it compresses well" * 9,
    bytes(range(1, 200)),
]
HEADERS = [
    Headers(content_type, None, cache_control)
    for content_type in ("text/css", "application/x-other")
    for cache_control in (None, "max-age=1")
]
TIMES = [0.0, 1e9, 1.5e9, 4e9]


class Static(SharedSession, CollectfastS3StaticStorage):
    pass


names = st.sampled_from(NAMES)
all_names = st.sampled_from(NAMES + FOREIGN)
contents = st.sampled_from(CONTENTS)
headers = st.sampled_from(HEADERS)
changes = st.dictionaries(names, contents, min_size=1, max_size=3)
site_options = st.builds(
    Options,
    gzip=st.booleans(),
    multipart=st.booleans(),
    preload=st.booleans(),
    cache_control=st.sampled_from(["max-age=1", "max-age=2"]),
)
sources = one_of(lambda machine: machine.model.sources)
objects = one_of(lambda machine: machine.model.objects)
has_sources = precondition(lambda machine: machine.model.sources)
has_objects = precondition(lambda machine: machine.model.objects)


class StaticMachine(RuleBasedStateMachine):
    """A state machine with a site, its bucket, and the model of both."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        # On a busy machine, retries may take longer than the time in other tests.
        self.site.settings["COLLECTFAST_RETRY_TIMEOUT"] = 60
        self.site.backend = f"{__name__}.Static"
        self.model = Model()
        self.releases: list[tuple[dict[str, bytes], Options]] = []
        self.known: dict[str, tuple[str, Object]] = {}
        self.to_look_at: set[str] = set()

    # Changes of the site.

    @initialize(
        files=st.dictionaries(names, contents, min_size=3),
        options=site_options,
        threads=st.sampled_from([0, 3]),
    )
    def start(self, files: dict[str, bytes], options: Options, threads: int) -> None:
        self.site.options["collectfast_threads"] = threads
        self.configure(options)
        self.write(files)

    @rule(files=changes)
    def write(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            self.site.write(name, content)
        self.model.sources |= files

    @has_sources
    @rule(name=sources, time=st.sampled_from(TIMES))
    def touch(self, name: str, time: float) -> None:
        os.utime(self.site.static / name, (time, time))

    @has_sources
    @rule(name=sources)
    def remove(self, name: str) -> None:
        (self.site.static / name).unlink()
        del self.model.sources[name]

    @has_sources
    @rule(old=sources, new=names)
    def rename(self, old: str, new: str) -> None:
        path = self.site.static / new
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.site.static / old).rename(path)
        self.model.sources[new] = self.model.sources.pop(old)

    @rule(options=site_options)
    def configure(self, options: Options) -> None:
        self.model.options = options
        threshold = MULTIPART_THRESHOLD if options.multipart else 2**23
        self.site.options |= {
            "gzip": options.gzip,
            "transfer_config": TransferConfig(multipart_threshold=threshold),
            "collectfast_preload": options.preload,
            "object_parameters": {"CacheControl": options.cache_control},
        }

    @precondition(lambda self: self.releases)
    @rule(back=st.integers(1, 2))
    def roll_back(self, back: int) -> None:
        """Restore the sources and options of the last release or the one before.

        After a failed deploy the sources differ from the last release.
        """
        files, options = self.releases[-back:][0]
        for name in self.model.sources.keys() - files.keys():
            self.remove(name)
        self.write(files)
        self.configure(options)

    @rule()
    def flush_cache(self) -> None:
        with self.site.active():
            caches["default"].clear()
        self.model.forgotten()

    # Changes of the bucket by other programs.

    @rule(name=all_names, content=contents | st.none(), headers=headers)
    def others_write(self, name: str, content: bytes | None, headers: Headers) -> None:
        """Write other contents, or the present contents with other headers."""
        there = self.model.objects.get(name)
        body = Body(content or b"")
        if content is None and there is not None:
            body = replace(there.body, in_parts=False)
            encoding = "gzip" if body.gzipped else None
            headers = replace(headers, content_encoding=encoding)
        sent = self.site.bucket.read(name) if body.gzipped else body.content
        self._put(name, sent, headers)
        self.model.changed_by_others(name, Object(body, headers))

    @has_objects
    @rule(name=objects)
    def others_delete(self, name: str) -> None:
        self.site.bucket.delete(name)
        self.model.changed_by_others(name, None)

    # Deploys.

    @rule(post_process=st.booleans())
    def collect(self, post_process: bool) -> None:
        self._collect(*arguments(False, post_process))
        self._succeeded(clear=False)

    @rule(post_process=st.booleans())
    def clear(self, post_process: bool) -> None:
        self._collect(*arguments(True, post_process))
        self._succeeded(clear=True)

    @rule(files=changes, clear=st.booleans(), upload_fault=upload_faults(NAMES))
    def collect_with_upload_fault(
        self, files: dict[str, bytes], clear: bool, upload_fault: UploadFault
    ) -> None:
        self.write(files)
        self.site.proxy.fault = upload_fault.fault(self.site.bucket.location)
        failing = (
            self.model.uploads() & upload_fault.names
            if upload_fault.permanent
            else set()
        )
        if failing:
            with pytest.raises(CommandError, match="Could not upload") as caught:
                self._collect(*arguments(clear))
            assert named(str(caught.value), REASON) == failing
            sent = {name: self.model.sent(name) for name in failing}
            # An upload in parts makes no object if only one part has arrived.
            arrived = {
                n: upload_fault.arrives and not s.body.in_parts for n, s in sent.items()
            }
            self._ended(clear=clear, failed=arrived)
        else:
            self._collect(*arguments(clear))
            self._succeeded(clear=clear)

    @rule()
    def collect_without_permission(self) -> None:
        """Deploy without the permission to list, or to delete if nothing is listed."""
        lists = self.model.options.preload
        leftovers = self.model.leftovers()
        self.site.proxy.fault = refuse("LIST" if lists else "DELETE MANY")
        if lists:
            with pytest.raises(CommandError, match="Cannot use bucket 'tests'"):
                self._collect("--clear")
            self._compare()
        elif leftovers:
            with pytest.raises(CommandError, match="Could not delete") as caught:
                self._collect("--clear")
            assert named(str(caught.value), REASON) == leftovers
            self._ended(clear=False, failed={})
            self.model.deleted(leftovers)
        else:
            self._collect("--clear")
            self._succeeded(clear=True)

    @rule(clear=st.booleans(), post_process=st.booleans())
    def pretend(self, clear: bool, post_process: bool) -> None:
        output = self._collect(*arguments(clear, post_process), "--dry-run").output
        copied = named(output, r"^Pretending to copy '(.*)'$")
        assert copied == {str(self.site.static / n) for n in self.model.uploads()}
        deleted = named(output, r"^Pretending to delete '(.*)'$")
        assert deleted == (self.model.leftovers() if clear else set())
        self._compare()

    def _collect(self, *arguments: str) -> Deploy:
        try:
            return self.site.collect(*arguments)
        finally:
            self.site.proxy.fault = None

    def _succeeded(self, *, clear: bool) -> None:
        assert set(self.site.put()) == self.model.uploads()
        self._ended(clear=clear, failed={})
        self.releases.append((dict(self.model.sources), self.model.options))
        for name, content in self.model.sources.items():
            content_promised, headers_promised = self.model.promised(name)
            if content_promised:
                assert self.model.objects[name].body.content == content
            if headers_promised:
                assert self.model.objects[name].headers == self.model.sent(name).headers

    def _ended(self, *, clear: bool, failed: dict[str, bool]) -> None:
        self.model.collected(clear=clear, failed=failed)
        self.to_look_at |= set(self.site.put())
        self._compare()

    def _compare(self) -> None:
        """Compare all objects, headers included."""
        assert self._objects() == self.model.objects

    # The bucket, with few requests.

    def _put(self, name: str, content: bytes, headers: Headers) -> None:
        given = {
            "ContentType": headers.content_type,
            "ContentEncoding": headers.content_encoding,
            "CacheControl": headers.cache_control,
        }
        given = {name: value for name, value in given.items() if value is not None}
        self.site.bucket.put(name, content, **given)
        self.to_look_at.add(name)

    def _objects(self) -> dict[str, Object]:
        etags = self.site.bucket.etags()
        for name, etag in etags.items():
            if name in self.to_look_at or self.known.get(name, ("",))[0] != etag:
                self.known[name] = etag, _object(self.site.bucket.get(name))
        self.to_look_at.clear()
        return {name: self.known[name][1] for name in etags}


def _object(answer: dict[str, Any]) -> Object:
    content = answer["Body"].read()
    gzipped = content.startswith(b"\x1f\x8b")
    body = gzip.decompress(content) if gzipped else content
    headers = Headers(
        answer["ContentType"], answer.get("ContentEncoding"), answer.get("CacheControl")
    )
    return Object(Body(body, gzipped, "-" in answer["ETag"]), headers)


def test_bucket_equals_the_model(new_site: Callable[[], Site], sequences: int) -> None:
    """After each deploy, names, contents and headers of all objects are as modelled."""
    run(lambda: StaticMachine(new_site()), sequences)
