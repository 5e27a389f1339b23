"""`with storage.batch()`: a program's own saves and deletes, as in a collectstatic."""

from __future__ import annotations

import threading
import time

import pytest
from django.core.files.base import ContentFile

from collectfast_storage.exceptions import BucketError, UploadError
from tests.proxy import Handler, Request, meanwhile, refuse
from tests.site import Site


def test_batch_lists_once_and_reports(site: Site) -> None:
    """One listing, one barrier, and a report of what was done."""
    for name in ("same.txt", "old.txt", "gone.txt"):
        site.bucket.put(name, b"content")
    with site.storage() as storage:
        with storage.batch() as batch:
            for name in ("same.txt", "new.txt"):
                storage.save(name, ContentFile(b"content"))
            storage.save("old.txt", ContentFile(b"other"))
            storage.delete("gone.txt")
            assert not storage.exists("gone.txt")
            assert storage.exists("new.txt")
            storage.delete("never there.txt")
        # The HEAD: of what differs, an encrypted object might be the same.
        requests = {"LIST": 1, "HEAD": 1, "PUT": 2, "DELETE MANY": 1}
        assert site.proxy.count() == requests == batch.report.requests
        assert batch.report.uploaded == ("new.txt", "old.txt")
        assert batch.report.unchanged == ("same.txt",)
        assert batch.report.deleted == ("gone.txt",)
        assert batch.report.bytes == len(b"content") + len(b"other")
        assert 0 < batch.report.seconds < 60
        # After it, the storage is the plain one again.
        assert storage.exists("new.txt")
        assert site.proxy.count()["HEAD"] == 2
    assert site.bucket.files() == {
        "same.txt": b"content",
        "new.txt": b"content",
        "old.txt": b"other",
    }


def test_own_writes_can_be_read(site: Site) -> None:
    """What was saved in a batch is read back in it; what was deleted is not there."""
    site.bucket.put("gone.txt", b"x")
    with site.storage() as storage, storage.batch():
        storage.save("a.txt", ContentFile(b"one"))
        with storage.open("a.txt") as file:
            assert file.read() == b"one"
        storage.save("a.txt", ContentFile(b"two"))
        with storage.open("a.txt") as file:
            assert file.read() == b"two"
        storage.delete("gone.txt")
        with pytest.raises(FileNotFoundError):
            storage.open("gone.txt")
    assert site.bucket.files() == {"a.txt": b"two"}


def test_delete_and_save_again_is_no_delete(site: Site) -> None:
    """What is needed after all stays, without a request."""
    site.bucket.put("a.txt", b"one")
    with site.storage() as storage, storage.batch() as batch:
        storage.delete("a.txt")
        storage.save("a.txt", ContentFile(b"one"))
    assert site.proxy.count() == {"LIST": 1}
    assert batch.report.unchanged == ("a.txt",)


def test_failures_are_raised_at_the_end_naming_every_file(site: Site) -> None:
    """And nothing is deleted."""
    site.bucket.put("gone.txt", b"x")
    site.proxy.fault = refuse("PUT", "bad")
    with (
        site.storage() as storage,
        pytest.raises(UploadError) as caught,
        storage.batch(),
    ):
        for name in ("bad1.txt", "good.txt", "bad2.txt"):
            storage.save(name, ContentFile(name.encode()))
        storage.delete("gone.txt")
    assert list(caught.value.failures) == ["bad1.txt", "bad2.txt"]
    assert site.bucket.names() == ["gone.txt", "good.txt"]


def test_exception_in_the_block_deletes_nothing(site: Site) -> None:
    """The exception is passed on; what has arrived is remembered."""
    site.bucket.put("gone.txt", b"x")
    with site.storage() as storage:
        with pytest.raises(ZeroDivisionError), storage.batch():
            storage.save("a.txt", ContentFile(b"a"))
            storage.delete("gone.txt")
            1 / 0  # noqa: B018
        assert site.bucket.names() == ["a.txt", "gone.txt"]
        site.proxy.reset()
        storage.save("a.txt", ContentFile(b"a"))
        assert site.proxy.count() == {"HEAD": 1}


def test_without_preload_a_batch_asks_for_what_it_does_not_know(site: Site) -> None:
    """For a few files in a large bucket, a HEAD each is less than a listing."""
    site.bucket.put("a.txt", b"a")
    with site.storage() as storage, storage.batch(preload=False):
        storage.save("a.txt", ContentFile(b"a"))
        storage.save("b.txt", ContentFile(b"b"))
    assert site.proxy.count() == {"HEAD": 2, "PUT": 1}


def test_disabled_batch_is_none(site: Site) -> None:
    """The same program works with the plain class."""
    site.options["collectfast_enabled"] = False
    with site.storage() as storage, storage.batch() as batch:
        storage.save("a.txt", ContentFile(b"a"))
    assert site.proxy.count() == {"PUT": 1}
    assert batch.report.uploaded == ()


def test_batch_in_a_batch_is_part_of_it(site: Site) -> None:
    """What the inner one saves, the end of the outer one does not delete."""
    site.bucket.put("a.txt", b"old")
    with site.storage() as storage, storage.batch() as outer:
        storage.delete("a.txt")
        with storage.batch():
            storage.save("a.txt", ContentFile(b"new"))
        storage.save("a.txt", ContentFile(b"new"))
    assert site.bucket.files() == {"a.txt": b"new"}
    assert outer.report.deleted == ()


def test_what_is_written_beside_the_batch_is_kept(site: Site) -> None:
    """By a file opened for writing, or by another thread."""
    site.bucket.put("a.txt", b"old")
    site.bucket.put("b.txt", b"old")
    with site.storage() as storage, storage.batch():
        storage.delete("a.txt")
        with storage.open("a.txt", "wb") as file:
            file.write(b"new")
        storage.delete("b.txt")
        content = ContentFile(b"new")
        thread = threading.Thread(target=storage.save, args=("b.txt", content))
        thread.start()
        thread.join()
    assert site.bucket.files() == {"a.txt": b"new", "b.txt": b"new"}


def test_size_and_listing_wait_for_what_is_under_way(site: Site) -> None:
    """They are about the bucket, and so they see it as the batch leaves it."""
    with site.storage() as storage, storage.batch():
        storage.save("dir/a.txt", ContentFile(b"1234"))
        assert storage.size("dir/a.txt") == 4
        storage.save("dir/b.txt", ContentFile(b"12"))
        assert storage.listdir("dir") == ([], ["a.txt", "b.txt"])
        assert storage.get_modified_time("dir/b.txt") is not None


def test_batch_of_nothing_asks_nothing(site: Site) -> None:
    """And one of deletes asks what is there, so as to report the truth."""
    site.bucket.put("a.txt", b"a")
    with site.storage() as storage:
        with storage.batch():
            pass
        assert site.proxy.count() == {}
        with storage.batch() as batch:
            storage.delete("a.txt")
            storage.delete("b.txt")
    assert site.proxy.count() == {"LIST": 1, "DELETE MANY": 1}
    assert batch.report.deleted == ("a.txt",)


def test_bucket_that_cannot_be_listed_is_named_at_the_end_too(site: Site) -> None:
    """A batch of deletes asks its first question there."""
    site.proxy.fault = refuse("LIST", code="AllAccessDisabled")
    with (
        site.storage() as storage,
        pytest.raises(BucketError, match=r"'tests' cannot be used.*AllAccessDisabled"),
        storage.batch(),
    ):
        storage.delete("a.txt")


def test_second_save_of_a_name_waits_for_the_first(site: Site) -> None:
    """Of two uploads under way at once, the older might be the last to arrive."""
    events: list[str] = []

    def hold(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "PUT" or not request.key.endswith("a.txt"):
            return False
        events.append("begun")
        time.sleep(0.2)
        answer = handler.ask(body)
        events.append("ended")
        handler.answer(*answer)
        return True

    with site.storage() as storage, storage.batch():
        storage.save("first.txt", ContentFile(b"tells what ETags are like"))
        site.proxy.fault = hold
        storage.save("a.txt", ContentFile(b"one"))
        storage.save("a.txt", ContentFile(b"two"))
    assert events == ["begun", "ended", "begun", "ended"]
    assert site.bucket.read("a.txt") == b"two"


def test_what_is_under_way_is_compared_with_and_not_what_was_there(site: Site) -> None:
    """Another content than the one on its way goes up, and the same one does not."""
    site.bucket.put("back.txt", b"old")
    with site.storage() as storage, storage.batch():
        storage.save("first.txt", ContentFile(b"tells what ETags are like"))
        site.proxy.fault = meanwhile("PUT", lambda: time.sleep(0.2))
        storage.save("twice.txt", ContentFile(b"new"))
        storage.save("twice.txt", ContentFile(b"new"))
        storage.save("back.txt", ContentFile(b"new"))
        storage.save("back.txt", ContentFile(b"old"))
    assert sorted(site.put()) == ["back.txt", "back.txt", "first.txt", "twice.txt"]
    assert site.bucket.read("back.txt") == b"old"


def test_exception_in_the_block_sends_no_more(site: Site) -> None:
    """What waits is not sent; what was on its way is known to have arrived."""
    site.options["collectfast_threads"] = 1
    begun, ended = threading.Event(), threading.Event()

    def hold(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            begun.set()
            ended.wait(10)
        return False

    with site.storage() as storage:
        with pytest.raises(ZeroDivisionError), storage.batch():
            storage.save("first.txt", ContentFile(b"tells what ETags are like"))
            site.proxy.fault = hold
            for number in range(5):
                storage.save(f"{number}.txt", ContentFile(b"x"))
            begun.wait(10)
            threading.Timer(1, ended.set).start()
            raise ZeroDivisionError
        assert site.bucket.names() == ["0.txt", "first.txt"]
        site.proxy.reset()
        with storage.batch() as batch:
            for number in range(5):
                storage.save(f"{number}.txt", ContentFile(b"x"))
    assert batch.report.unchanged == ("0.txt",)
    assert len(batch.report.uploaded) == 4


def test_batch_in_a_place_of_many_objects_lists_them(site: Site) -> None:
    """It does not know which ones it will be asked about."""
    for number in range(1001):
        site.write(f"{number}.txt", "x")
    site.collect()
    with site.storage() as storage:
        site.proxy.requests.clear()
        with storage.batch():
            storage.save("0.txt", ContentFile(b"x"))
            storage.save("999.txt", ContentFile(b"x"))
    assert site.proxy.count() == {"LIST": 2}


def test_interrupt_in_the_block_waits_for_nothing(site: Site) -> None:
    """What has arrived is remembered; what was on its way may have, or not."""
    release = threading.Event()

    def hold(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT" and request.key.endswith("held.txt"):
            release.wait(10)
        return False

    names = ("first.txt", "held.txt", "quick.txt")
    with site.storage() as storage:
        with pytest.raises(KeyboardInterrupt), storage.batch():
            storage.save("first.txt", ContentFile(b"tells what ETags are like"))
            site.proxy.fault = hold
            storage.save("held.txt", ContentFile(b"held"))
            storage.save("quick.txt", ContentFile(b"quick"))
            while "quick.txt" not in site.bucket.names():
                time.sleep(0.01)
            time.sleep(0.5)  # Its answer is on the way.
            raise KeyboardInterrupt
        assert not release.is_set()
        assert site.bucket.names() == ["first.txt", "quick.txt"]
        release.set()
        with storage.batch() as batch:
            for name in names:
                content = name.partition(".")[0].encode()
                storage.save(name, ContentFile(content))
    assert batch.report.unchanged == ("quick.txt",)
    assert site.bucket.names() == sorted(names)
