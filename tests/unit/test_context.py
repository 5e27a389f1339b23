"""The context of a run that a program's batch starts."""

from __future__ import annotations

from typing import Any

import pytest

from collectfast_storage.context import Destination, RunContext
from collectfast_storage.options import Options


def _destination(prefix: str = "static/", **methods: Any) -> Destination:
    def unused(*_: Any) -> Any:
        raise AssertionError("A context does not call the storage by itself.")

    defaults: dict[str, Any] = {
        "key_of": lambda name: prefix + name,
        "parameters_of": unused,
        "capture": unused,
        "delete": unused,
    }
    return Destination("bucket", prefix, True, True, False, **defaults | methods)


def _context(destination: Destination) -> RunContext:
    return RunContext(destination, Options())


def test_batch_clears_nothing_and_has_no_sources() -> None:
    """A batch deletes only the names that it is given, and compares no sources."""
    context = _context(_destination())
    context.before_manifest()
    assert not context.is_left_out("a.css")
    assert not context.is_in_live_release("a.css")
    assert not context.is_hashed_name("a.css")
    assert context.split_left_over({"a.css"}) == (set(), set())
    assert context.source_being_compared("a.css") is None
    assert context.reopener(object()) is None
    assert not context.is_hashing()


def test_name_outside_of_the_prefix_is_not_part_of_the_run() -> None:
    """A run leaves a name to django-storages if its key is not below the prefix."""
    context = _context(_destination(key_of=lambda name: f"media/{name}"))
    assert context.name_of("a.css") is None
    assert context.name_of_key("static/a.css") == "a.css"


@pytest.mark.parametrize("name", ["/a.css", "./a.css", "x/../a.css", "a//b.css"])
def test_name_that_the_storage_cannot_address_is_not_normal(name: str) -> None:
    """A name is not normal if the storage's methods would change it.

    They would then act on another object than the one in the listing.
    """
    context = _context(_destination(key_of=lambda _: "static/a.css"))
    assert context.is_normal("a.css")
    assert not context.is_normal(name)
