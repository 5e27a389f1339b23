"""Large files of a collectstatic: parts and files that are uploaded concurrently."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from django.core.management.base import CommandError
from storages.backends.s3 import S3StaticStorage

from collectfast_storage import CollectfastMixin, CollectfastS3StaticStorage
from collectfast_storage.exceptions import UploadError
from tests.support.changing import Changing
from tests.support.opaque_etags import Opaque
from tests.support.proxy import Handler, Proxy, Request
from tests.support.site import MANIFEST, STATIC, Deploy, Site
from tests.support.sources import Source, finder_of
from tests.support.transfers import IN_PARTS, MIB, STREAMED
from tests.support.twins import Unseekable

pytestmark = [pytest.mark.slow, pytest.mark.covering]

LIMIT = 3  # seconds that a request waits for another one
LARGE = 12 * MIB  # Two parts with boto3's default threshold and part size of 8 MiB.


def _noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Overlaps:
    """A proxy fault that delays PUTs and records which of them overlap.

    A request is under way from its header until its response.
    """

    def __init__(self, proxy: Proxy, delay: float = 0.1) -> None:
        self._delay = delay
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()  # requests, by key
        self._pause = threading.Event()
        self.parts: Counter[str] = Counter()  # the most parts of a key together
        self.files = 0  # the most keys together
        proxy.early_fault, proxy.fault = self._begin, self._end

    def _begin(self, handler: Handler, request: Request) -> bool:
        if request.method == "PUT":
            with self._lock:
                self._under_way[request.key] += 1
                most = max(self.parts[request.key], self._under_way[request.key])
                self.parts[request.key] = most
                self.files = max(self.files, len(+self._under_way))
        return False

    def _end(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.method != "PUT":
            return False
        self._pause.wait(self._delay)
        answer = handler.ask(body)
        with self._lock:
            self._under_way[request.key] -= 1
        handler.answer(*answer)
        return True


def _collect(site: Site, sources: dict[str, Source], **settings: Any) -> Deploy:
    return site.collect(STATICFILES_FINDERS=[finder_of(sources)], **settings)


@pytest.mark.parametrize(
    ("backend", "config", "size"),
    [(STATIC, None, LARGE), (STATIC, IN_PARTS, 6 * MIB), (MANIFEST, IN_PARTS, 6 * MIB)],
    ids=["defaults", "static", "manifest"],
)
def test_parts_and_files_are_uploaded_side_by_side(
    site: Site, backend: str, config: TransferConfig | None, size: int
) -> None:
    """Three large files of two parts: parts of one file overlap, and files overlap."""
    site.backend, site.options["transfer_config"] = backend, config
    sources: dict[str, Source] = {f"{n}.bin": _noise(n, size) for n in range(3)}
    overlaps = Overlaps(site.proxy)
    _collect(site, sources)
    assert [overlaps.parts[site.bucket.key(name)] for name in sources] == [2, 2, 2]
    assert overlaps.files > 1
    site.proxy.reset()
    assert {name: site.bucket.read(name) for name in sources} == sources
    again = _collect(site, sources)
    assert again.put == []
    assert again.summary.startswith("0 static files copied")


def test_transfer_config_bounds_the_parts_of_a_file(site: Site) -> None:
    """At most `max_concurrency` parts of a file are under way together."""
    site.options["transfer_config"] = TransferConfig(
        multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=2
    )
    sources: dict[str, Source] = {"a.bin": _noise(1, 18 * MIB)}
    overlaps = Overlaps(site.proxy)
    _collect(site, sources)
    assert overlaps.parts == {site.bucket.key("a.bin"): 2}
    assert site.bucket.files() == sources


@pytest.mark.parametrize(
    "options",
    [
        {
            "transfer_config": TransferConfig(
                multipart_threshold=5 * MIB,
                multipart_chunksize=5 * MIB,
                use_threads=False,
            )
        },
        {
            "transfer_config": TransferConfig(
                multipart_threshold=5 * MIB,
                multipart_chunksize=5 * MIB,
                max_concurrency=1,
            )
        },
    ],
    ids=["use_threads", "max_concurrency"],
)
def test_parts_are_sent_one_after_another_if_configured(
    site: Site, options: dict[str, Any]
) -> None:
    """Without threads, or with one, no two parts of a file are under way together."""
    site.options |= options
    sources: dict[str, Source] = {f"{n}.bin": _noise(n, LARGE) for n in range(2)}
    overlaps = Overlaps(site.proxy, 0.05)
    _collect(site, sources)
    assert {*overlaps.parts.values()} == {1}
    assert site.bucket.files() == sources


@pytest.mark.parametrize("gzip", [False, True])
def test_small_files_are_uploaded_while_a_large_one_is_under_way(
    site: Site, gzip: bool
) -> None:
    """Later files arrive before any part of a large file has been answered."""
    site.options |= {"transfer_config": IN_PARTS, "gzip": gzip}
    late = [f"late{n}.txt" for n in range(3)]
    sources: dict[str, Source] = {"early.txt": b"x", "large.css": _noise(1, 6 * MIB)}
    sources |= {name: name.encode() for name in late}
    arrived, waited = threading.Semaphore(0), []
    have_arrived = threading.Event()

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.method != "PUT":
            return False
        if request.key.endswith("large.css"):
            waited.append(have_arrived.wait(LIMIT))
            return False
        handler.pass_on(body)
        if "late" in request.key:
            arrived.release()
            if len({*site.put()} & {*late}) == len(late):
                have_arrived.set()
        return True

    site.proxy.fault = fault
    _collect(site, sources)
    assert waited
    assert all(waited)
    assert site.bucket.names() == sorted(sources)


class Counted(BytesIO):
    """A source that counts the bytes that are read from it."""

    def __init__(self, content: bytes, count: Callable[[int], None]) -> None:
        super().__init__(content)
        self._count = count

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self._count(len(chunk))
        return chunk

    def read1(self, size: int | None = -1, /) -> bytes:
        return self.read(size)

    def readinto(self, buffer: Any, /) -> int:
        size = super().readinto(buffer)
        self._count(size)
        return size

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self._count(len(line))
        return line


@pytest.mark.parametrize(
    ("config", "gzip"),
    [(None, False), (IN_PARTS, False), (STREAMED, False), (IN_PARTS, True)],
    ids=["default", "parts", "streamed", "compressed"],
)
@pytest.mark.parametrize("there", ["absent", "changed", "unchanged"])
def test_large_source_is_read_at_most_twice(
    site: Site, config: TransferConfig | None, gzip: bool, there: str
) -> None:
    """A large file is read once to compare it, and once to upload it."""
    site.options |= {"transfer_config": config, "gzip": gzip}
    size = LARGE if config is None else 6 * MIB
    content = _noise(1, size)
    if there != "absent":
        old = content if there == "unchanged" else _noise(2, size)
        _collect(site, {"a.css": old})
    reads: list[int] = []
    deploy = _collect(site, {"a.css": lambda: Counted(content, reads.append)})
    assert ("a.css" in deploy.put) == (there != "unchanged")
    assert sum(reads) <= 2 * size + MIB  # A last MiB may be read for a file's end.


@pytest.mark.parametrize("opens", [1, 2, 3])
def test_large_source_that_cannot_be_opened_again_is_not_missed(
    site: Site, opens: int
) -> None:
    """A source that cannot be opened again arrives, or an error names it."""
    site.options["transfer_config"] = IN_PARTS
    content = _noise(1, 6 * MIB)
    numbers = itertools.count()

    def source() -> BytesIO:
        if next(numbers) >= opens:
            raise OSError("cannot open large.bin any more")
        return BytesIO(content)

    sources: dict[str, Source] = {"a.txt": b"a", "large.bin": source, "z.txt": b"z"}
    try:
        _collect(site, sources)
    except (CommandError, OSError) as error:
        assert "large.bin" in str(error)
    else:
        assert site.bucket.read("large.bin") == content
        assert site.bucket.names() == sorted(sources)


@pytest.mark.parametrize("backend", [STATIC, MANIFEST])
def test_large_file_with_a_part_that_fails_is_named(site: Site, backend: str) -> None:
    """If a part fails, the error names the file, and all other files arrive.

    Neither the object nor a manifest is in the bucket.
    """
    site.backend, site.options["transfer_config"] = backend, IN_PARTS
    sources: dict[str, Source] = {"a.txt": b"a", "large.bin": _noise(1, 6 * MIB)}
    sources["z.txt"] = b"z"

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        refused = request.query.get("partNumber") == ["2"]
        if refused:
            handler.error(403, "AccessDenied")
        return refused

    site.proxy.fault = fault
    with pytest.raises(UploadError) as caught:
        _collect(site, sources)
    assert "large.bin" in caught.value.failures
    names = site.bucket.names()
    assert "large.bin" not in names
    assert "staticfiles.json" not in names
    assert {"a.txt", "z.txt"} <= {*names}


class OwnCompression:
    """A mixin that compresses in memory, before the upload begins."""

    def _compress_content(self, content: Any) -> Any:
        content.read(MIB)
        content.seek(0)
        return BytesIO(gzip.compress(content.read(), compresslevel=1, mtime=0))


class Compressing(OwnCompression, CollectfastS3StaticStorage):
    pass


class CompressingStorage(OwnCompression, S3StaticStorage):
    pass


class CompressingBelow(CollectfastMixin, CompressingStorage):
    pass


@pytest.mark.parametrize("backend", [Compressing, CompressingBelow])
def test_large_file_that_a_subclass_compresses_is_uploaded_compressed(
    site: Site, backend: type
) -> None:
    """The bytes that `_compress_content` returns are uploaded, not the source's."""
    site.backend = f"{__name__}.{backend.__name__}"
    site.options |= {"transfer_config": IN_PARTS, "gzip": True}
    content = _noise(1, 6 * MIB)
    _collect(site, {"a.css": content})
    stored = site.bucket.get("a.css")
    assert stored["ContentEncoding"] == "gzip"
    assert gzip.decompress(stored["Body"].read()) == content


def test_large_file_that_changed_and_is_small_when_compressed(site: Site) -> None:
    """The error names a source that changed after it was hashed."""
    site.options |= {"transfer_config": IN_PARTS, "gzip": True}
    states = itertools.cycle([bytes(6 * MIB), b"1" * 6 * MIB])
    changing = Changing(lambda: next(states), each_read=True)
    with pytest.raises(UploadError, match=r"a\.css: the file changed"):
        _collect(site, {"a.css": lambda: changing})


def test_large_source_that_is_not_seekable_arrives(site: Site) -> None:
    """A source that can be read only from start to end is uploaded completely."""
    site.options["transfer_config"] = IN_PARTS
    content = _noise(1, 6 * MIB)
    sources: dict[str, Source] = {"a.bin": lambda: Unseekable(content), "b.txt": b"b"}
    _collect(site, sources)
    assert site.bucket.files() == {"a.bin": content, "b.txt": b"b"}


# Large files that change while they are uploaded, in a bucket with opaque ETags.


def _patterns(
    one: bytes, other: bytes, numbers: Iterable[int], *, each_read: bool
) -> dict[str, Source]:
    """Return a changing source for each of `numbers`.

    The lowest four bits of a number are the order of the states `one` and `other`.
    """

    def changing(number: int) -> Source:
        states = itertools.cycle(
            other if number >> bit & 1 else one for bit in range(4)
        )
        return lambda: Changing(lambda: next(states), each_read=each_read)

    return {f"{number:04b}.bin": changing(number) for number in numbers}


def _cold(site: Site, number: int) -> dict[str, Any]:
    backend = "django.core.cache.backends.locmem.LocMemCache"
    return {"default": {"BACKEND": backend, "LOCATION": f"{site.root}-{number}"}}


class OpaqueInParts(Opaque):
    """A proxy fault that makes the ETags of objects opaque, but not those of parts.

    A client sends the ETags of the parts back to the server.
    """

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if "partNumber" in request.query or "uploads" in request.query:
            return False
        if request.method == "POST" and "uploadId" in request.query:
            number = next(self._numbers)
            self._made[request.key] = hashlib.md5(b"%d" % number).hexdigest()
        return super().__call__(handler, request, body)


def _make_opaque(site: Site, kind: str) -> None:
    OpaqueInParts(site.proxy, "aws:kms" if kind == "KMS" else None)


OPAQUE = pytest.mark.parametrize("opaque", ["KMS", "look-alike"])
STATES = {
    "streamed": (STREAMED, _noise(1, 12_000), _noise(2, 12_000), range(16)),
    "in parts": (IN_PARTS, _noise(1, 6 * MIB), _noise(2, 6 * MIB), (2, 4, 6, 12)),
}


@OPAQUE
@pytest.mark.needs("listings as SeaweedFS writes them")
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("each_read", [False, True], ids=["replaced", "overwritten"])
@pytest.mark.parametrize("size", STATES)
def test_file_that_changed_while_it_was_uploaded_is_not_taken_for_unchanged(
    site: Site, size: str, each_read: bool, warm: bool, opaque: str
) -> None:
    """A file that changes during its upload is right after the next deploy.

    An error names the file that changed. The fingerprint in the object's metadata must
    not be that of contents which the object does not have.
    """
    config, first, other, numbers = STATES[size]
    site.options["transfer_config"] = config
    _make_opaque(site, opaque)
    sources = _patterns(first, other, numbers, each_read=each_read)
    caches = [_cold(site, 0)] if warm else [_cold(site, n) for n in range(3)]
    # The upload of this file shows that ETags are opaque, before a large one is sent.
    before: dict[str, Source] = {"0.txt": b"small"}
    failures: dict[str, object] = {}
    try:
        _collect(site, {**before, **sources}, CACHES=caches[0])
    except UploadError as error:
        failures = error.failures
    if not each_read:
        assert len(failures) > 0
        arrived = [name for name in sources if name not in failures]
        assert all(site.bucket.read(name) in (first, other) for name in arrived)
    for turn, settled in enumerate((first, other), start=1):
        _collect(
            site,
            {**before, **dict.fromkeys(sources, settled)},
            CACHES=caches[turn % len(caches)],
        )
        wrong = [name for name in sources if site.bucket.read(name) != settled]
        assert wrong == []


@OPAQUE
@pytest.mark.needs("listings as SeaweedFS writes them")
@pytest.mark.parametrize("each_read", [False, True], ids=["replaced", "overwritten"])
@pytest.mark.parametrize("by", ["program", "batch"])
def test_program_that_saves_a_changing_file_can_save_the_first_contents_again(
    site: Site, by: str, each_read: bool, opaque: str
) -> None:
    """After a save of a file that changed meanwhile, each further save is right."""
    config, first, other, numbers = STATES["streamed"]
    site.options["transfer_config"] = config
    _make_opaque(site, opaque)

    def save(storage: Any, name: str, content: Any) -> None:
        try:
            if by == "program":
                storage.save(name, content)
                return
            with storage.batch() as batch:
                batch.save(name, content)
        except (OSError, UploadError):
            pass  # The error may report that the file changed.

    sources: dict[str, Any] = _patterns(first, other, numbers, each_read=each_read)
    with site.storage() as storage:
        save(storage, "0.bin", BytesIO(first))
        for name, source in sources.items():
            save(storage, name, source())
        for settled in (first, other):
            for name in sources:
                save(storage, name, BytesIO(settled))
            wrong = [name for name in sources if site.bucket.read(name) != settled]
            assert wrong == []
