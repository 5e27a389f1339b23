"""Batches, `with storage.batch() as batch`, of a program's saves and deletes.

Only `batch.save` and `batch.delete` are part of the batch. The storage's own methods do
not change inside of the block.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files.base import ContentFile

from collectfast_storage.exceptions import BucketError, DeleteError, UploadError
from tests.support.processes import LONG, managing
from tests.support.proxy import Fault, Handler, Request, meanwhile, refuse
from tests.support.site import MANIFEST, STATIC, Site
from tests.support.watched_cache import FailingCache, SlowCache, WatchedCache, caches_of

pytestmark = pytest.mark.needs("trailing checksums")

BACKENDS = pytest.mark.parametrize("backend", [STATIC, MANIFEST])
PRELOAD = pytest.mark.parametrize("preload", [True, False])
MIB = 1024 * 1024
LIMIT = 10  # seconds, after which a thread of a test is considered to hang


def _content(text: str) -> ContentFile[bytes]:
    return ContentFile(text.encode())


def _refuse_content(content: bytes) -> Fault:
    """Refuse PUTs with `content` in their body."""

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        refused = request.kind == "PUT" and content in body
        if refused:
            handler.error(403, "AccessDenied")
        return refused

    return fault


# Saves and deletes.


@BACKENDS
def test_batch_lists_once_and_uploads_each_new_file(site: Site, backend: str) -> None:
    """A batch of new files costs one LIST and one PUT for each file."""
    site.backend = backend
    with site.storage() as storage:
        site.proxy.requests.clear()
        with storage.batch() as batch:
            names = [batch.save(f"{n}.txt", _content(f"{n}")) for n in range(12)]
        assert names == [f"{n}.txt" for n in range(12)]
        assert site.proxy.count() == {"LIST": 1, "PUT": 12}
        assert batch.report.requests == {"LIST": 1, "PUT": 12}
        assert batch.report.uploaded == tuple(sorted(names))
        site.proxy.requests.clear()
        with storage.batch() as batch:
            for number in range(12):
                batch.save(f"{number}.txt", _content(f"{number}"))
        assert site.proxy.count()["LIST"] == 1
        assert site.proxy.count()["PUT"] == 0
        assert batch.report.unchanged == tuple(sorted(names))
    assert site.bucket.files() == {f"{n}.txt": b"%d" % n for n in range(12)}


def test_report_lists_saves_and_deletes(site: Site) -> None:
    """The report lists uploads, unchanged files and deletes, after the block."""
    for name in ("same.txt", "old.txt", "gone.txt"):
        site.bucket.put(name, b"content", ContentType="text/plain")
    with site.storage() as storage, storage.batch() as batch:
        for name in ("same.txt", "new.txt"):
            batch.save(name, _content("content"))
        batch.save("old.txt", _content("other"))
        batch.delete("gone.txt")
        batch.delete("never there.txt")
    assert batch.report.uploaded == ("new.txt", "old.txt")
    assert batch.report.unchanged == ("same.txt",)
    assert batch.report.deleted == ("gone.txt",)
    assert batch.report.bytes == len(b"content") + len(b"other")
    assert 0 < batch.report.seconds < 60
    counts = site.proxy.count()
    assert (counts["LIST"], counts["PUT"], counts["DELETE MANY"]) == (1, 2, 1)
    assert batch.report.requests == counts


@pytest.mark.parametrize("option", [True, False])
def test_batch_without_preload_sends_head_requests(site: Site, option: bool) -> None:
    """A batch with `preload=False` sends one HEAD request per file, and no LIST.

    The option collectfast_preload is the default of the argument.
    """
    site.options["collectfast_preload"] = option
    site.bucket.put("a.txt", b"a", ContentType="text/plain")
    with site.storage() as storage:
        with storage.batch(preload=False) as batch:
            batch.save("a.txt", _content("a"))
            batch.save("b.txt", _content("b"))
        assert site.proxy.count() == {"HEAD": 2, "PUT": 1}
        site.proxy.requests.clear()
        with storage.batch() as batch:
            batch.save("c.txt", _content("c"))
        kind = "LIST" if option else "HEAD"
        assert site.proxy.count() == {kind: 1, "PUT": 1}


@PRELOAD
def test_empty_batch_sends_no_request(site: Site, preload: bool) -> None:
    """A batch without a call sends no request."""
    with site.storage() as storage, storage.batch(preload=preload) as batch:
        pass
    assert site.proxy.count() == {}
    assert batch.report.uploaded == batch.report.deleted == ()


@PRELOAD
@pytest.mark.parametrize("there", [False, True], ids=["absent", "there"])
def test_last_call_for_a_name_wins(site: Site, preload: bool, there: bool) -> None:
    """Saves and deletes of one name have the result of the last one, in any order."""
    calls = ("one", "two", "delete")
    sequences = [*itertools.product(calls, repeat=3), *itertools.product(calls)]
    names = {"-".join(each): each for each in sequences}
    if there:
        for name in names:
            site.bucket.put(name, b"one")
    with site.storage() as storage, storage.batch(preload=preload) as batch:
        for name, sequence in names.items():
            for call in sequence:
                if call == "delete":
                    batch.delete(name)
                else:
                    batch.save(name, _content(call))
    left = {name: each[-1] for name, each in names.items() if each[-1] != "delete"}
    assert site.bucket.files() == {name: last.encode() for name, last in left.items()}


def test_second_save_of_a_name_waits_for_the_first(site: Site) -> None:
    """Two uploads of one name do not overlap, because the older could arrive last."""
    events: list[str] = []

    def hold(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "PUT":
            return False
        events.append("begun")
        time.sleep(0.1)
        answer = handler.ask(body)
        events.append("ended")
        handler.answer(*answer)
        return True

    with site.storage() as storage, storage.batch() as batch:
        site.proxy.fault = hold
        batch.save("a.txt", _content("one"))
        batch.save("a.txt", _content("two"))
    assert events in (["begun", "ended"], ["begun", "ended"] * 2)
    assert site.bucket.read("a.txt") == b"two"


def test_other_spellings_of_a_name_are_one_name(site: Site) -> None:
    """A batch normalizes names as the storage does."""
    site.bucket.put("dir/a.txt", b"old")
    site.bucket.put("dir/b.txt", b"old")
    with site.storage() as storage, storage.batch() as batch:
        batch.delete("dir/./a.txt")
        batch.save("dir/a.txt", _content("new"))
        batch.save("dir/b.txt", _content("new"))
        batch.delete("dir//b.txt")
    assert site.bucket.files() == {"dir/a.txt": b"new"}


def test_batch_chooses_free_names_like_the_storage(site: Site) -> None:
    """With `file_overwrite=False`, two saves of one name create two files."""
    site.options["file_overwrite"] = False
    site.bucket.put("a.txt", b"there")
    with site.storage() as storage, storage.batch() as batch:
        first = batch.save("a.txt", _content("first"))
        second = batch.save("a.txt", _content("second"), max_length=20)
    assert len({"a.txt", first, second}) == 3
    assert len(second) <= 20
    assert site.bucket.files() == {
        "a.txt": b"there",
        first: b"first",
        second: b"second",
    }


@pytest.mark.parametrize("size", [1000, 6 * MIB], ids=["small", "large"])
def test_content_may_be_closed_and_changed_after_save(
    site: Site, tmp_path: Path, size: int
) -> None:
    """A batch uploads the contents that the file had when `save` was called."""
    threshold = TransferConfig(multipart_threshold=5 * MIB)
    site.options["transfer_config"] = threshold
    path = tmp_path / "a.bin"
    with site.storage() as storage, storage.batch() as batch:
        for number in range(3):
            path.write_bytes(b"%d" % number * size)
            with path.open("rb") as file:
                batch.save(f"{number}.bin", file)
            path.write_bytes(b"changed")
    files = {f"{number}.bin": b"%d" % number * size for number in range(3)}
    assert site.bucket.files() == files


def test_saves_from_several_threads_are_part_of_the_batch(site: Site) -> None:
    """Threads may share a batch, and each of their saves and deletes is carried out."""
    for number in range(8):
        site.bucket.put(f"old{number}.txt", b"x")

    def work(batch: Any, number: int) -> None:
        for each in range(5):
            batch.save(f"{number}-{each}.txt", _content(f"{number}"))
        batch.delete(f"old{number}.txt")

    with site.storage() as storage, storage.batch() as batch:
        threads = [threading.Thread(target=work, args=(batch, n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert not any(thread.is_alive() for thread in threads)
    expected = {f"{n}-{each}.txt": b"%d" % n for n in range(8) for each in range(5)}
    assert site.bucket.files() == expected
    assert site.proxy.count()["PUT"] == 40
    assert site.proxy.count()["LIST"] == 1
    assert len(batch.report.uploaded) == 40
    assert len(batch.report.deleted) == 8


# Failures.


@PRELOAD
def test_failures_are_raised_at_the_end_naming_every_file(
    site: Site, preload: bool
) -> None:
    """`UploadError` names each file that failed, and the other files arrive."""
    site.proxy.fault = refuse("PUT", "bad")
    with (
        site.storage() as storage,
        pytest.raises(UploadError) as caught,
        storage.batch(preload=preload) as batch,
    ):
        for name in ("bad1.txt", "good.txt", "bad2.txt", "better.txt"):
            assert batch.save(name, _content(name)) == name
    assert sorted(caught.value.failures) == ["bad1.txt", "bad2.txt"]
    assert "bad1.txt" in str(caught.value)
    assert "bad2.txt" in str(caught.value)
    assert site.bucket.names() == ["better.txt", "good.txt"]


def test_deletes_are_sent_after_all_files_arrived(site: Site) -> None:
    """A batch sends its deletes after the last response to an upload."""
    site.bucket.put("gone.txt", b"x")
    events: list[str] = []

    def watch(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            time.sleep(0.1)
            answer = handler.ask(body)
            events.append("arrived")
            handler.answer(*answer)
        elif request.kind.startswith("DELETE"):
            events.append("deleted")
        return request.kind == "PUT"

    with site.storage() as storage, storage.batch() as batch:
        site.proxy.fault = watch
        batch.delete("gone.txt")
        for number in range(5):
            batch.save(f"{number}.txt", _content("x"))
        assert "gone.txt" in site.bucket.names()
    assert events == ["arrived"] * 5 + ["deleted"]
    assert "gone.txt" not in site.bucket.names()


@PRELOAD
def test_failed_upload_prevents_the_deletes(site: Site, preload: bool) -> None:
    """A batch with a failed upload sends no delete."""
    site.bucket.put("gone.txt", b"x")
    site.proxy.fault = refuse("PUT", "bad")
    with (
        site.storage() as storage,
        pytest.raises(UploadError),
        storage.batch(preload=preload) as batch,
    ):
        batch.delete("gone.txt")
        batch.save("bad.txt", _content("x"))
        batch.save("good.txt", _content("x"))
    assert site.bucket.names() == ["gone.txt", "good.txt"]
    assert not any(kind.startswith("DELETE") for kind in site.proxy.count())


@PRELOAD
def test_failed_deletes_are_named(site: Site, preload: bool) -> None:
    """`DeleteError` names the object that could not be deleted."""
    site.bucket.put("gone.txt", b"x")

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        refused = request.kind.startswith("DELETE")
        if refused:
            handler.error(403, "AccessDenied")
        return refused

    site.proxy.fault = fault
    with (
        site.storage() as storage,
        pytest.raises((BucketError, DeleteError), match="AccessDenied"),
        storage.batch(preload=preload) as batch,
    ):
        batch.delete("gone.txt")
    assert site.bucket.names() == ["gone.txt"]


def test_bucket_that_cannot_be_listed_is_named(site: Site) -> None:
    """`BucketError` names the bucket that cannot be listed, when the block ends."""
    site.proxy.fault = refuse("LIST", code="AllAccessDisabled")
    with (
        site.storage() as storage,
        pytest.raises(BucketError, match=r"'tests'(?s:.*)AllAccessDisabled"),
        storage.batch() as batch,
    ):
        batch.delete("a.txt")


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_exception_in_the_block_deletes_nothing(
    site: Site, error: type[BaseException]
) -> None:
    """An exception in the block is raised unchanged, and no delete is sent."""
    site.bucket.put("gone.txt", b"x")
    with site.storage() as storage, pytest.raises(error), storage.batch() as batch:
        batch.delete("gone.txt")
        batch.save("a.txt", _content("a"))
        raise error
    assert "gone.txt" in site.bucket.names()
    assert not any(kind.startswith("DELETE") for kind in site.proxy.count())


def test_exception_in_the_block_is_raised_instead_of_an_upload_error(
    site: Site,
) -> None:
    """An exception in the block is raised even if an upload of the batch failed."""
    site.proxy.fault = refuse("PUT")
    with (
        site.storage() as storage,
        pytest.raises(ZeroDivisionError),
        storage.batch() as batch,
    ):
        batch.save("a.txt", _content("a"))
        raise ZeroDivisionError


@pytest.mark.parametrize("error", [None, ZeroDivisionError, UploadError])
def test_batch_that_has_ended_refuses_calls(
    site: Site, error: type[Exception] | None
) -> None:
    """After the block, `save` and `delete` raise RuntimeError, and send no request."""
    if error is UploadError:
        site.proxy.fault = refuse("PUT")
    kept = []
    with site.storage() as storage:
        try:
            with storage.batch() as batch:
                kept.append(batch)
                batch.save("a.txt", _content("a"))
                if error is ZeroDivisionError:
                    raise error
        except (ZeroDivisionError, UploadError):
            pass
        site.proxy.reset()
        for call in (
            lambda: kept[0].save("late.txt", _content("x")),
            lambda: kept[0].delete("a.txt"),
        ):
            with pytest.raises(RuntimeError):
                call()
        assert site.proxy.count() == {}


# Calls of the storage while a batch is open.


def _write(storage: Any, name: str, text: str) -> None:
    with storage.open(name, "wb") as file:
        file.write(text.encode())


def _read(storage: Any, name: str) -> bytes:
    with storage.open(name) as file:
        content: bytes = file.read()
        return content


def _outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except Exception as error:
        return type(error).__name__, str(error)


def _sequence(storage: Any) -> list[object]:
    """Make calls with results that show whether each reaches the bucket immediately."""
    return [
        _outcome(call)
        for call in (
            lambda: storage.save("own/new.txt", _content("one")),
            lambda: storage.save("own/new.txt", _content("one")),
            lambda: _read(storage, "own/new.txt"),
            lambda: storage.exists("own/new.txt"),
            lambda: storage.size("own/new.txt"),
            lambda: storage.listdir("own"),
            lambda: storage.delete("own/new.txt"),
            lambda: storage.exists("own/new.txt"),
            lambda: _read(storage, "own/new.txt"),
            lambda: storage.size("own/new.txt"),
            lambda: storage.save("own/refused.txt", _content("x")),
            lambda: _write(storage, "own/written.txt", "one"),
            lambda: _read(storage, "own/written.txt"),
            lambda: storage.delete("own/written.txt"),
        )
    ]


def _in_this_thread(work: Callable[[], list[object]]) -> list[object]:
    return work()


def _in_another_thread(work: Callable[[], list[object]]) -> list[object]:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.extend(work()))
    thread.start()
    thread.join(LIMIT)
    return results


def _in_a_generator(work: Callable[[], list[object]]) -> list[object]:
    def generator() -> Iterator[list[object]]:
        yield work()

    return next(generator())


def _in_a_task(work: Callable[[], list[object]]) -> list[object]:
    async def task() -> list[object]:
        return work()

    return asyncio.run(task())


@BACKENDS
@PRELOAD
@pytest.mark.parametrize(
    "where",
    [_in_this_thread, _in_another_thread, _in_a_generator, _in_a_task],
    ids=lambda where: where.__name__.strip("_"),
)
def test_storage_behaves_the_same_in_the_block_and_outside(
    site: Site,
    backend: str,
    preload: bool,
    where: Callable[[Callable[[], list[object]]], list[object]],
) -> None:
    """A block does not change results, exceptions or requests of storage methods."""
    site.backend = backend
    site.proxy.fault = refuse("PUT", "refused")
    with site.storage() as storage:
        site.proxy.requests.clear()
        outside = where(lambda: _sequence(storage))
        counts = site.proxy.count()
        with storage.batch(preload=preload):
            site.proxy.requests.clear()
            assert where(lambda: _sequence(storage)) == outside
            assert site.proxy.count() == counts
        assert site.proxy.count() == counts
    assert len(outside) == 14
    assert site.bucket.names() == []


def test_objects_that_a_batch_deletes_exist_until_its_end(site: Site) -> None:
    """In the block, the storage finds an object that the batch will delete."""
    site.bucket.put("gone.txt", b"x")
    with site.storage() as storage:
        with storage.batch() as batch:
            batch.delete("gone.txt")
            assert storage.exists("gone.txt")
            assert _read(storage, "gone.txt") == b"x"
            assert storage.listdir("") == ([], ["gone.txt"])
        assert not storage.exists("gone.txt")


def test_failed_save_of_the_storage_is_raised_immediately(
    site: Site,
) -> None:
    """A failure of `storage.save` is raised by that call, not by the batch."""
    site.proxy.fault = refuse("PUT", "bad")
    with site.storage() as storage, storage.batch() as batch:
        with pytest.raises(ClientError, match="AccessDenied"):
            storage.save("bad.txt", _content("x"))
        batch.save("good.txt", _content("x"))
    assert batch.report.uploaded == ("good.txt",)


# Several batches.


def _unfinished(storage: Any, *names: str) -> Iterator[Any]:
    """Save `names` in a batch, and yield the batch in the middle of its block."""
    with storage.batch() as batch:
        for name in names:
            batch.save(name, _content(name))
        yield batch


def test_unfinished_generator_does_not_take_calls_into_its_batch(
    site: Site,
) -> None:
    """A generator that stops in its batch does not change its caller's calls."""
    site.bucket.put("gone.txt", b"x")

    def generator(storage: Any) -> Iterator[None]:
        with storage.batch():
            yield

    site.proxy.fault = refuse("PUT", "bad")
    with site.storage() as storage:
        running = generator(storage)
        next(running)
        storage.save("a.txt", _content("a"))
        storage.delete("gone.txt")
        assert site.bucket.names() == ["a.txt"]
        with pytest.raises(ClientError):
            storage.save("bad.txt", _content("b"))
        with storage.batch() as batch:
            batch.save("b.txt", _content("b"))
        assert batch.report.uploaded == ("b.txt",)
        running.close()
    assert site.bucket.names() == ["a.txt", "b.txt"]


def test_generators_have_separate_batches(site: Site) -> None:
    """Two generators that take turns in one thread save into two batches."""
    site.proxy.fault = refuse("PUT", "bad")
    with site.storage() as storage:
        one = _unfinished(storage, "1.txt", "bad.txt")
        other = _unfinished(storage, "2.txt", "3.txt")
        next(one)
        batch = next(other)
        assert next(other, None) is None
        assert batch.report.uploaded == ("2.txt", "3.txt")
        with pytest.raises(UploadError) as caught:
            next(one)
        assert list(caught.value.failures) == ["bad.txt"]
    assert site.bucket.names() == ["1.txt", "2.txt", "3.txt"]


def test_abandoned_generator_deletes_nothing(site: Site) -> None:
    """A generator that is closed in the block of a batch sends no delete."""
    site.bucket.put("gone.txt", b"x")

    def generator(storage: Any) -> Iterator[None]:
        with storage.batch() as batch:
            batch.delete("gone.txt")
            yield

    with site.storage() as storage:
        running = generator(storage)
        next(running)
        running.close()  # type: ignore[attr-defined]
    assert site.bucket.names() == ["gone.txt"]


def test_asyncio_tasks_have_separate_batches(site: Site) -> None:
    """A task that awaits in the block of a batch does not change other tasks' calls."""
    site.bucket.put("gone.txt", b"x")
    site.proxy.fault = refuse("PUT", "bad")

    async def in_a_batch(storage: Any, opened: asyncio.Event, go: asyncio.Event) -> Any:
        with storage.batch() as batch:
            opened.set()
            await go.wait()
            batch.save("in batch.txt", _content("x"))
        return batch.report

    async def beside(storage: Any) -> Any:
        storage.save("beside.txt", _content("x"))
        storage.delete("gone.txt")
        names = site.bucket.names()
        with pytest.raises(ClientError):
            storage.save("bad.txt", _content("x"))
        with storage.batch() as batch:
            batch.save("other.txt", _content("x"))
        return names, batch.report

    async def both(storage: Any) -> Any:
        opened, go = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(in_a_batch(storage, opened, go))
        await asyncio.wait_for(opened.wait(), LIMIT)
        result = await asyncio.create_task(beside(storage))
        go.set()
        return await task, *result

    with site.storage() as storage:
        report, names, other = asyncio.run(both(storage))
    assert names == ["beside.txt"]
    assert report.uploaded == ("in batch.txt",)
    assert other.uploaded == ("other.txt",)
    assert site.bucket.names() == ["beside.txt", "in batch.txt", "other.txt"]


def test_threads_have_separate_batches(site: Site) -> None:
    """Eight threads that share a storage report the uploads of their own batches."""
    together = threading.Barrier(8, timeout=LIMIT)
    reports: dict[int, Any] = {}

    def work(storage: Any, number: int) -> None:
        with storage.batch() as batch:
            together.wait()
            for each in range(3):
                batch.save(f"{number}-{each}.txt", _content(f"{number}"))
            together.wait()
        reports[number] = batch.report

    with site.storage() as storage:
        threads = [threading.Thread(target=work, args=(storage, n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
    for number in range(8):
        names = tuple(f"{number}-{each}.txt" for each in range(3))
        assert reports[number].uploaded == names
    assert site.proxy.count() == Counter(LIST=8, PUT=24)


def _by_the_storage(storage: Any) -> None:
    storage.save("a.txt", _content("accepted"))


def _by_another_batch(storage: Any) -> None:
    with storage.batch() as other:
        other.save("a.txt", _content("accepted"))


def _by_another_thread(storage: Any) -> None:
    thread = threading.Thread(target=_by_another_batch, args=(storage,))
    thread.start()
    thread.join(LIMIT)


def _by_writing(storage: Any) -> None:
    _write(storage, "a.txt", "accepted")


@pytest.mark.parametrize(
    "save_otherwise",
    [_by_the_storage, _by_another_batch, _by_another_thread, _by_writing],
    ids=lambda save_otherwise: save_otherwise.__name__.strip("_"),
)
def test_other_save_does_not_hide_the_failure_of_a_batch(
    site: Site, save_otherwise: Callable[[Any], None]
) -> None:
    """A batch reports its failed file even if another caller saved that name."""
    site.bucket.put("gone.txt", b"x")
    failed = threading.Event()

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        refused = request.kind == "PUT" and b"refused" in body
        if refused:
            handler.error(403, "AccessDenied")
            failed.set()
        return refused

    site.proxy.fault = fault
    with (
        site.storage() as storage,
        pytest.raises(UploadError) as caught,
        storage.batch() as batch,
    ):
        batch.delete("gone.txt")
        batch.save("a.txt", _content("refused"))
        assert failed.wait(LIMIT)
        save_otherwise(storage)
    assert list(caught.value.failures) == ["a.txt"]
    assert site.bucket.files() == {"a.txt": b"accepted", "gone.txt": b"x"}


def test_batch_in_a_batch_is_separate(site: Site) -> None:
    """A batch in the block of another has its own report, failures and deletes."""
    site.bucket.put("gone.txt", b"x")
    site.proxy.fault = _refuse_content(b"refused")
    with site.storage() as storage, storage.batch() as outer:
        outer.save("a.txt", _content("a"))
        with pytest.raises(UploadError), storage.batch() as failing:
            failing.save("b.txt", _content("refused"))
        with storage.batch() as inner:
            inner.save("c.txt", _content("c"))
            inner.delete("gone.txt")
        assert inner.report.uploaded == ("c.txt",)
        assert inner.report.deleted == ("gone.txt",)
        assert "gone.txt" not in site.bucket.names()
    assert outer.report.uploaded == ("a.txt",)
    assert outer.report.deleted == ()
    assert site.bucket.names() == ["a.txt", "c.txt"]


def test_batches_of_two_storages_are_separate(site: Site) -> None:
    """A failure in the batch of one storage is not raised by that of the other."""
    site.proxy.fault = refuse("PUT", "bad")
    with site.storage() as one, site.storage() as other:
        with pytest.raises(UploadError) as caught, one.batch() as first:
            with other.batch() as second:
                first.save("bad.txt", _content("x"))
                second.save("good.txt", _content("x"))
            assert second.report.uploaded == ("good.txt",)
        assert list(caught.value.failures) == ["bad.txt"]


# Processes.


def fork_in_a_batch(how: str) -> None:
    """Fork in the block; the child uses the batch, and leaves the block as `how`.

    This runs in its own process. It prints the outcomes of the child's calls, and
    whether old.txt exists after the child and before the end of the block.
    """
    storage = staticfiles_storage
    storage.save("old.txt", _content("old"))
    is_child = False
    read, write = os.pipe()
    try:
        with storage.batch() as batch:
            batch.save("parent.txt", _content("parent"))
            batch.delete("old.txt")
            is_child = os.fork() == 0
            if is_child:
                calls = (
                    lambda: batch.save("child.txt", _content("child")),
                    lambda: batch.delete("parent.txt"),
                    lambda: storage.save("own.txt", _content("own")),
                    lambda: storage.exists("old.txt"),
                )
                outcomes = [_kind(call) for call in calls]
                os.write(write, json.dumps(outcomes).encode())
                if how == "exits":
                    os._exit(0)
                if how == "raises":
                    raise ZeroDivisionError
            else:
                os.wait()
                outcomes = json.loads(os.read(read, 10_000))
                print(json.dumps([outcomes, storage.exists("old.txt")]))
    except ZeroDivisionError:
        pass
    finally:
        if is_child:
            os._exit(0)
    print(json.dumps(batch.report.uploaded))


def _kind(call: Callable[[], object]) -> object:
    try:
        return call()
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize("how", ["exits", "raises", "ends"])
def test_batch_in_a_forked_process_refuses_calls(site: Site, how: str) -> None:
    """In a forked process, `batch.save` and `batch.delete` raise RuntimeError.

    The child's end of the block neither uploads nor deletes. The storage's own methods
    work in the child, and the parent's batch is complete.
    """
    command = f"import {__name__} as t; t.fork_in_a_batch({how!r})"
    with managing(site, "shell", "-c", command) as process:
        output, errors = process.communicate(timeout=LONG)
    assert process.returncode == 0, errors
    lines = [json.loads(line) for line in output.splitlines() if line[:1] == "["]
    outcomes = ["RuntimeError", "RuntimeError", "own.txt", True]
    assert lines == [[outcomes, True], ["parent.txt"]]
    assert site.bucket.files() == {"own.txt": b"own", "parent.txt": b"parent"}


# Options and the cache.


def test_disabled_batch_carries_out_each_call(site: Site) -> None:
    """With `collectfast_enabled=False`, a batch carries out each call immediately."""
    site.options["collectfast_enabled"] = False
    site.bucket.put("gone.txt", b"x")
    site.proxy.fault = refuse("PUT", "bad")
    with site.storage() as storage, storage.batch() as batch:
        assert batch.save("a.txt", _content("a")) == "a.txt"
        assert site.bucket.names() == ["a.txt", "gone.txt"]
        batch.delete("gone.txt")
        assert site.bucket.names() == ["a.txt"]
        batch.save("a.txt", _content("a"))
        with pytest.raises(ClientError, match="AccessDenied"):
            batch.save("bad.txt", _content("b"))
        counts = site.proxy.count()
    assert site.proxy.count() == counts == {"PUT": 3, "DELETE": 1}


@BACKENDS
@pytest.mark.parametrize("preload", [True, None])
@pytest.mark.parametrize("cache", [WatchedCache, FailingCache, SlowCache])
def test_batch_does_not_use_the_cache(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    backend: str,
    preload: bool | None,
    cache: type[WatchedCache],
) -> None:
    """A batch neither reads nor writes the cache, and logs no warning about it."""
    site.backend = backend
    site.settings["CACHES"] = caches_of(cache)
    site.bucket.put("same.txt", b"x", ContentType="text/plain")
    site.bucket.put("other.txt", b"y", ContentType="text/plain")
    site.bucket.put("gone.txt", b"x")
    with site.storage() as storage:
        cache.operations.clear()
        with storage.batch(preload=preload) as batch:
            for name in ("same.txt", "other.txt", "new.txt"):
                batch.save(name, _content("x"))
            batch.delete("gone.txt")
    assert cache.operations == []
    assert caplog.messages == []
    assert site.bucket.names() == ["new.txt", "other.txt", "same.txt"]


@PRELOAD
@pytest.mark.parametrize("call", ["save", "delete", "save that fails"])
def test_batch_invalidates_the_cache_entries_of_its_names(
    site: Site, preload: bool, call: str
) -> None:
    """After a batch, a deploy with `collectfast_preload=False` uploads its names again.

    The batch invalidates the cache entries of these names, because such a deploy trusts
    the cache.
    """
    site.options["collectfast_preload"] = False
    files = {"a.css": b"a", "b.css": b"b"}
    site.write_all(files)
    site.collect()

    def lose(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            handler.pass_on_silently(body)
            handler.error(403, "AccessDenied")
        return request.kind == "PUT"

    with site.storage() as storage:
        if call == "save that fails":
            site.proxy.fault = lose
        try:
            with storage.batch(preload=preload) as batch:
                if call == "delete":
                    batch.delete("a.css")
                else:
                    batch.save("a.css", _content("another"))
        except UploadError:
            assert call == "save that fails"
    assert site.bucket.files() != files
    site.proxy.fault = None
    assert site.collect().put == ["a.css"]
    assert site.bucket.files() == files


def test_object_that_was_deleted_during_a_batch_is_uploaded_without_preload(
    site: Site,
) -> None:
    """An object that was deleted before its upload was answered is uploaded again.

    The deploy does so although it trusts the cache.
    """
    site.options["collectfast_preload"] = False
    site.write("a.css", "a")
    with site.storage() as storage:
        site.proxy.fault = meanwhile("PUT", lambda: storage.delete("a.css"), after=True)
        with storage.batch() as batch:
            batch.save("a.css", _content("a"))
    site.proxy.fault = None
    assert site.bucket.names() == []
    site.collect()
    assert site.bucket.files() == {"a.css": b"a"}


def test_failed_file_can_be_saved_again(site: Site) -> None:
    """A file whose upload failed is uploaded by another save in the same batch."""
    site.proxy.fault = refuse("PUT", "a.txt")
    with site.storage() as storage:
        with storage.batch() as batch:
            batch.save("a.txt", ContentFile(b"first"))
            site.proxy.fault = None
            batch.save("a.txt", ContentFile(b"second"))
        assert batch.report.uploaded == ("a.txt",)
    assert site.bucket.read("a.txt") == b"second"
