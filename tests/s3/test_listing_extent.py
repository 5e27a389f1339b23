"""What the bucket holds: listed as far as that is worth it, and never guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from collectfast_storage.decision import Remote
from collectfast_storage.s3.bucket import Page
from collectfast_storage.s3.listing import Listing
from collectfast_storage.uploads import BoundedExecutor


class FakeBucket:
    """Lists as S3 does, and counts."""

    name = "bucket"
    prefix = ""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = sorted(names)
        self.listed = 0
        self.heads: list[str] = []

    def list(self, start: Mapping[str, str]) -> Page:
        self.listed += 1
        after = start.get("ContinuationToken", "")
        rest = [name for name in self.names if name > after]
        page = rest[:1000]
        following = {"ContinuationToken": page[-1]} if rest[1000:] else {}
        return Page({n: f"etag-{n}" for n in page}, following)

    def head(self, name: str, parameters: dict[str, Any]) -> Remote | None:
        self.heads.append(name)
        return Remote(f"etag-{name}", "") if name in self.names else None

    def is_valid_name(self, name: str) -> bool:
        return not name.endswith("impossible")


def _listing(bucket: Any) -> Listing:
    return Listing(bucket, lambda name: {}, BoundedExecutor(8))


def _names(count: int, stem: str = "file") -> list[str]:
    return sorted(f"{stem}{number:06}" for number in range(count))


def _etag(listing: Listing, name: str) -> str | None:
    remote = listing[name]
    return None if remote is None else remote.etag


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500, 7000])
def test_everything_is_listed_in_as_many_pages_as_it_has(count: int) -> None:
    """And no name is missed."""
    bucket = FakeBucket(_names(count))
    listing = _listing(bucket)
    listing.load(_names(count))
    assert all(_etag(listing, name) == f"etag-{name}" for name in bucket.names)
    assert listing["file9"] is None
    assert bucket.heads == []
    assert bucket.listed == max(-(-count // 1000), 1)


@pytest.mark.parametrize("between", [1, 3, 10])
def test_other_objects_between_ours_are_listed_too(between: int) -> None:
    """Hashed copies, say: they are known as well, by listing alone."""
    ours = _names(2000)
    others = [f"{name}.{n}" for name in ours for n in range(between)]
    bucket = FakeBucket([*ours, *others])
    listing = _listing(bucket)
    listing.load(ours)
    assert all(_etag(listing, name) == f"etag-{name}" for name in bucket.names)
    assert bucket.heads == []


def test_bucket_full_of_other_things_is_not_listed_to_its_end() -> None:
    """Twenty times more objects than the site has files: those are asked for."""
    ours = _names(500)
    others = [f"{name}.{n}" for name in ours for n in range(40)]
    bucket = FakeBucket([*ours[:400], *others])
    listing = _listing(bucket)
    listing.load(ours)
    assert [listing[n] is not None for n in ours] == [True] * 400 + [False] * 100
    assert bucket.listed < 6
    assert len(bucket.heads) < 500
    # What was not wanted is asked for when it is, once; not taken for absent.
    assert listing[others[-1]] is not None
    assert listing[others[-1]] is not None
    assert bucket.heads.count(others[-1]) == 1


def test_whole_is_all_of_it_however_much_there_is() -> None:
    """`--clear` has to know everything, and a batch does not know what will come."""
    ours = _names(100)
    names = [*ours, *_names(5000, "a")]
    for wanted, whole in ((ours, True), (None, False)):
        listing = _listing(FakeBucket(names))
        listing.load(wanted, whole=whole)
        assert listing.names() == {*names}


def test_what_the_run_did_goes_before_what_was_listed() -> None:
    """Also where the listing comes later."""
    listing = _listing(FakeBucket(["a", "b"]))
    listing.note("a", Remote("new", ""))
    listing.note("b", None)
    assert listing.names() == {"a"}
    assert _etag(listing, "a") == "new"


def test_what_somebody_else_wrote_is_asked_for_again() -> None:
    """A listing of before says nothing of it."""
    bucket = FakeBucket(["a"])
    listing = _listing(bucket)
    listing.load(None)
    bucket.names.append("b")
    listing.invalidate("b")
    assert _etag(listing, "b") == "etag-b"


def test_impossible_names_are_asked_for_nowhere() -> None:
    """Those that are not UTF-8, or too long, cannot be there."""
    ours = _names(3000)
    impossible = [f"{name}impossible" for name in ours]
    bucket = FakeBucket(ours)
    listing = _listing(bucket)
    listing.load(sorted([*ours, *impossible]))
    assert all(listing[name] is not None for name in ours)
    assert not any(listing[name] for name in impossible)
    assert bucket.heads == []


def test_directory_buckets_list_in_no_order() -> None:
    """Then only the token tells where to go on."""
    bucket = FakeBucket(_names(2500))
    plain = bucket.list

    def shuffled(token: str = "") -> Page:
        page = plain(token)
        return Page(dict(reversed(page.etags.items())), page.following)

    bucket.list = shuffled  # type: ignore[method-assign]
    listing = _listing(bucket)
    listing.load(_names(2500))
    assert all(listing[name] is not None for name in bucket.names)
    assert bucket.listed == 3


def test_metadata_are_asked_for_once() -> None:
    """A listing does not tell them."""
    bucket = FakeBucket(["a", "b"])
    listing = _listing(bucket)
    listing.load(["a", "b"])
    listing.request_heads(["a"])
    for name in ("a", "a", "b", "b"):
        listing.request_heads([name])
        remote = listing[name]
        assert remote is not None
        assert remote.fingerprint == ""
    assert bucket.heads == ["a", "b"]
