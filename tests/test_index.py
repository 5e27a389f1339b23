"""What the bucket holds: listed as far as that is worth it, and never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from collectfast_storage.answers import Head, Page
from collectfast_storage.executor import SerialExecutor
from collectfast_storage.index import RemoteIndex


class FakeBucket:
    """Lists as S3 does, and counts."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = sorted(keys)
        self.listed = 0
        self.heads: list[str] = []

    def list(self, after: str = "", token: str = "") -> Page:
        self.listed += 1
        rest = [key for key in self.keys if key > (token or after)]
        page = rest[:1000]
        return Page({k: f"etag-{k}" for k in page}, page[-1] if rest[1000:] else "")

    def head(self, key: str, parameters: dict[str, Any]) -> Head | None:
        self.heads.append(key)
        return Head(f"etag-{key}") if key in self.keys else None


def _index(bucket: Any, *, preload: bool = True) -> RemoteIndex:
    return RemoteIndex(bucket, lambda key: {}, preload=preload)


def _keys(count: int, stem: str = "file") -> list[str]:
    return sorted(f"{stem}{number:06}" for number in range(count))


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500, 7000])
@pytest.mark.parametrize("threads", [0, 1, 8])
def test_everything_is_listed_in_as_many_pages_as_it_has(
    count: int, threads: int
) -> None:
    """Side by side or not, and no key is missed."""
    bucket = FakeBucket(_keys(count))
    index = _index(bucket)
    with ThreadPoolExecutor(threads) if threads else SerialExecutor() as executor:
        index.load(executor, _keys(count))
    assert all(index.etag(key) == f"etag-{key}" for key in bucket.keys)
    assert index.etag("file9") is None
    assert bucket.heads == []
    assert bucket.listed <= max(-(-count // 1000), 1) + count // 5000


@pytest.mark.parametrize("between", [1, 3, 10])
def test_other_objects_between_ours_are_listed_too(between: int) -> None:
    """Hashed copies, say: they are known as well, by listing alone."""
    ours = _keys(2000)
    others = [f"{key}.{n}" for key in ours for n in range(between)]
    bucket = FakeBucket([*ours, *others])
    index = _index(bucket)
    with ThreadPoolExecutor(8) as executor:
        index.load(executor, ours)
    assert all(index.etag(key) == f"etag-{key}" for key in bucket.keys)
    assert bucket.heads == []


def test_bucket_full_of_other_things_is_not_listed_to_its_end() -> None:
    """Twenty times more objects than the site has files: those are asked for."""
    ours = _keys(500)
    others = [f"{key}.{n}" for key in ours for n in range(40)]
    bucket = FakeBucket([*ours[:400], *others])
    index = _index(bucket)
    with ThreadPoolExecutor(8) as executor:
        index.load(executor, ours)
    assert [index.etag(key) is not None for key in ours] == [True] * 400 + [False] * 100
    assert bucket.listed == 1
    assert len(bucket.heads) < 500
    # What was not wanted is asked for when it is, once; not taken for absent.
    assert index.etag(others[-1]) is not None
    assert index.etag(others[-1]) is not None
    assert bucket.heads.count(others[-1]) == 1


def test_keys_are_all_of_them_however_many_there_are() -> None:
    """`--clear` has to know everything."""
    ours = _keys(100)
    bucket = FakeBucket([*ours, *_keys(5000, "a")])
    index = _index(bucket)
    index.load(SerialExecutor(), ours)
    assert index.keys() == {*bucket.keys}


def test_what_the_run_did_goes_before_what_was_listed() -> None:
    """Also where the listing comes later."""
    bucket = FakeBucket(["a", "b"])
    index = _index(bucket, preload=False)
    index.put("a", "new")
    index.remove("b")
    assert index.keys() == {"a"}
    assert index.etag("a") == "new"


def test_what_somebody_else_wrote_is_asked_for_again() -> None:
    bucket = FakeBucket(["a"])
    index = _index(bucket)
    index.load(SerialExecutor())
    bucket.keys.append("b")
    index.forget("b")
    assert index.etag("b") == "etag-b"


def test_impossible_keys_are_asked_for_nowhere() -> None:
    """No listing begins at a name that is not UTF-8, or too long."""
    ours = _keys(3000)
    impossible = [f"{key}\udce9" for key in ours] + [f"{k}{'x' * 1024}" for k in ours]
    bucket = FakeBucket(ours)
    plain = bucket.list

    def possible(after: str = "", token: str = "") -> Page:
        assert len(after.encode()) <= 1024
        return plain(after, token)

    bucket.list = possible  # type: ignore[method-assign]
    index = _index(bucket)
    with ThreadPoolExecutor(8) as executor:
        index.load(executor, sorted([*ours, *impossible]))
    assert all(index.etag(key) == f"etag-{key}" for key in ours)
    assert not any(index.etag(key) for key in impossible)
    assert bucket.heads == []


def test_directory_buckets_list_in_no_order() -> None:
    """Then only the token tells where to go on."""
    bucket = FakeBucket(_keys(2500))
    plain = bucket.list

    def shuffled(after: str = "", token: str = "") -> Page:
        assert not after
        page = plain(token=token)
        return Page(dict(reversed(page.etags.items())), page.token)

    bucket.list = shuffled  # type: ignore[method-assign]
    index = _index(bucket)
    index.load(SerialExecutor(), _keys(2500))
    assert all(index.etag(key) is not None for key in bucket.keys)
    assert bucket.listed == 3
