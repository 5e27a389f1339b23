"""Files that change while they are read."""

from __future__ import annotations

import gzip
import random
from collections.abc import Mapping
from itertools import cycle

import pytest

from collectfast_storage.exceptions import UploadError
from tests.support.changing import Changing
from tests.support.site import Site
from tests.support.sources import Source, finder_of
from tests.support.transfers import IN_PARTS, MIB, STREAMED

pytestmark = [pytest.mark.slow, pytest.mark.covering]


def _patterns(one: bytes, other: bytes, *, each_read: bool) -> dict[str, Source]:
    """Return a source for each sequence of four states that are `one` or `other`."""

    def changing(number: int) -> Source:
        states = cycle(other if number >> bit & 1 else one for bit in range(4))
        return lambda: Changing(lambda: next(states), each_read=each_read)

    return {f"{number:04b}.css": changing(number) for number in range(16)}


def _noise(seed: int, size: int) -> bytes:
    """Return random bytes, which gzip cannot compress."""
    return random.Random(seed).randbytes(size)


def _stored(site: Site, name: str) -> bytes:
    stored = site.bucket.get(name)
    content: bytes = stored["Body"].read()
    compressed = stored.get("ContentEncoding") == "gzip"
    return gzip.decompress(content) if compressed else content


def _collect(
    site: Site, sources: Mapping[str, Source], *, cache: int
) -> dict[str, str]:
    """Collect with the cache of that number, and return the failures by name."""
    backend = "django.core.cache.backends.locmem.LocMemCache"
    caches = {"default": {"BACKEND": backend, "LOCATION": f"{site.root}-{cache}"}}
    finders = [finder_of(sources)]
    try:
        site.collect(STATICFILES_FINDERS=finders, CACHES=caches)
    except UploadError as error:
        return {name: str(reason) for name, reason in error.failures.items()}
    return {}


STATES = {
    "text": (b"one " * 3000, b"two " * 3000),
    "grows": (_noise(1, 9_000), _noise(1, 13_000)),
    "shrinks": (_noise(1, 12_000), b""),
}


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("each_read", [False, True], ids=["replaced", "overwritten"])
def test_file_that_changes_while_it_is_read_is_correct_after_the_next_run(
    site: Site, each_read: bool, streamed: bool, compress: bool
) -> None:
    """A file that changed while it was read is correct after the next run.

    The first run uploads one complete state of the file, or an error names it. The
    upload cache must not contain a wrong hash of it, because the next run would then
    skip the file.
    """
    site.options["gzip"] = compress
    if streamed:
        site.options["transfer_config"] = STREAMED
    sources, states = {}, {}
    for kind, pair in STATES.items():
        for name, source in _patterns(*pair, each_read=each_read).items():
            sources[f"{kind}-{name}"] = source
            states[f"{kind}-{name}"] = pair
    for turn in (0, 1):
        errors = _collect(site, sources, cache=turn)
        # A read of a file that is overwritten in place may return a mixture of both.
        if not each_read:
            arrived = [name for name in sources if name not in errors]
            assert all(_stored(site, name) in states[name] for name in arrived)
        settled = {name: pair[turn] for name, pair in states.items()}
        assert _collect(site, settled, cache=turn) == {}
        assert {name: _stored(site, name) for name in settled} == settled


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_large_file_that_is_replaced_while_it_is_read(
    site: Site, compress: bool
) -> None:
    """A multipart upload contains one complete state of the file, or it fails.

    The next run uploads the final state.
    """
    site.options |= {"transfer_config": IN_PARTS, "gzip": compress}
    states = _noise(1, 6 * MIB), _noise(2, 6 * MIB)
    sources = _patterns(*states, each_read=False)
    sources = {name: sources[name] for name in ("0010.css", "0110.css")}
    errors = _collect(site, sources, cache=0)
    arrived = [name for name in sources if name not in errors]
    assert all(_stored(site, name) in states for name in arrived)
    assert _collect(site, dict.fromkeys(sources, states[0]), cache=0) == {}
    assert {_stored(site, name) for name in sources} == {states[0]}


def test_file_that_changed_while_it_was_read_is_named(site: Site) -> None:
    """A file that changed while it was read is named in the error, with this reason.

    Files that did not change are uploaded.
    """
    site.options["transfer_config"] = STREAMED
    states = STATES["text"]
    errors = _collect(site, _patterns(*states, each_read=False), cache=0)
    assert len(errors) > 1
    assert {*errors.values()} == {"the file changed while it was being read"}
    assert {_stored(site, name) for name in ("0000.css", "1111.css")} == {*states}
