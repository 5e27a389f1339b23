"""Outages in simulated time: how requests are sent, sent again, and given up."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from math import inf

import pytest

from collectfast_storage.congestion import (
    Attempts,
    Congestion,
    RetryDecision,
    RetryPolicy,
)

pytestmark = pytest.mark.slow

TIMEOUT = 60.0  # of retries, and of an answer
SIZE = 9000

# The answer of a server at a time: "", or what is wrong.
State = Callable[[float], str]
# How long it takes until a request fails, in seconds; else one round trip.
TIME_TO_FAIL = {"hangs": TIMEOUT, "no connection": 10.0}


@dataclass
class Request:
    alone: Attempts = field(default_factory=Attempts)
    pause: float = 0.1


@dataclass
class Result:
    arrived: int = 0
    set_aside: int = 0
    has_ended: bool = False
    seconds: float = 0.0
    starts: list[float] = field(default_factory=list)
    successes: list[float] = field(default_factory=list)


def outage(kind: str, begin: float, length: float) -> State:
    """Be out of order once."""
    return lambda now: kind if begin <= now < begin + length else ""


def deploy(  # noqa: C901 (one loop of events)
    state: State,
    files: int = 300,
    *,
    round_trip: float = 0.02,
    after: float = 0.0,
    most: int = 64,
) -> Result:
    """Send `files` as `RetryingSender` does, `most` of them at once."""
    pace, patience = Congestion(most, 60), RetryPolicy(TIMEOUT)
    result, numbers, now = Result(), count(), 0.0
    waiting = deque(Request() for _ in range(files))
    events: list[tuple[float, int, str, float, Request | None]] = []
    under_way = 0

    def at(time: float, what: str, began: float, request: Request | None) -> None:
        heapq.heappush(events, (time, next(numbers), what, began, request))

    while (waiting or events) and not result.has_ended:
        while waiting:
            delay = pace.delay(now, SIZE, under_way, under_way * SIZE)
            if delay > 0:
                if delay < inf:
                    at(now + delay, "turn", now, None)
                break
            pace.started(now)
            result.starts.append(now)
            under_way += 1
            wrong = state(now + round_trip / 2)
            took = TIME_TO_FAIL.get(wrong, round_trip)
            at(now + took, wrong or "success", now, waiting.popleft())
            now += 0.0005  # of processor time
        now, _, what, began, request = heapq.heappop(events)
        if request is None:
            continue
        if what == "again":
            waiting.append(request)
            continue
        under_way -= 1
        if what == "success":
            was_probing = pace.is_probing
            pace.answered(now, began, SIZE)
            ends_outage = was_probing and not pace.is_probing
            patience.succeeded(now, ends_outage=ends_outage)
            result.arrived += 1
            result.successes.append(now)
            continue
        if what == "503":
            pace.throttled(now, began, after)
        else:
            pace.failed(now, began, timed_out=what in TIME_TO_FAIL, after=after)
        is_alone = not pace.is_probing
        if is_alone:
            request.alone.add(now)
        else:
            request.alone.forget()
        following = patience.failed(now, began, request.alone, after)
        result.has_ended = following is RetryDecision.STOP
        result.set_aside += following is RetryDecision.RAISE
        if following is RetryDecision.RETRY and is_alone:
            at(now + request.pause, "again", now, request)
            request.pause = min(request.pause * 2, 5.0)
        elif following is RetryDecision.RETRY:
            waiting.append(request)
    result.seconds = now
    return result


KINDS = ["refused", "503", *TIME_TO_FAIL]
LENGTHS = [0.2, 1, 3, 5, 10, 20, 35, 50]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("begin", "files"), [(0.05, 300), (0.13, 300), (0.3, 900)])
def test_outage_delays_a_deploy_and_does_not_end_it(
    kind: str, length: float, begin: float, files: int
) -> None:
    """All files arrive at most eight seconds after the outage."""
    undisturbed = deploy(lambda _: "", files=files).seconds
    assert begin < undisturbed
    result = deploy(outage(kind, begin, length), files=files)
    assert (result.arrived, result.set_aside, result.has_ended) == (files, 0, False)
    late = TIME_TO_FAIL.get(kind, 0.0)
    assert result.seconds <= begin + length + undisturbed + 8 + late


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [0.2, 3, 10])
def test_short_outage_at_the_start(kind: str, length: float) -> None:
    result = deploy(outage(kind, 0.0, length))
    assert (result.arrived, result.has_ended) == (300, False)


@pytest.mark.parametrize("kind", ["refused", "503"])
def test_few_requests_are_sent_in_an_outage(kind: str) -> None:
    """At most sixty in a minute."""
    result = deploy(outage(kind, 0.3, 50), files=900)
    # Those that were under way when it began were sent before.
    assert sum(0.32 <= each < 50.3 for each in result.starts) <= 50


@pytest.mark.parametrize("kind", ["refused", "503"])
@pytest.mark.parametrize("length", [3, 20, 50])
def test_as_many_requests_as_before_two_seconds_after_the_first_success(
    kind: str, length: float
) -> None:
    """The window is as large as before the outage."""
    result = deploy(outage(kind, 1.0, length), files=20_000)
    before = sum(0.8 <= each < 1.0 for each in result.successes)
    first = min(each for each in result.successes if each >= 1.0 + length)
    later = sum(first + 1.8 <= each < first + 2.0 for each in result.successes)
    assert before > 100
    assert later >= 0.8 * before


@pytest.mark.parametrize("kind", KINDS)
def test_outage_that_is_too_long_ends_the_deploy(kind: str) -> None:
    """After the time-out, a few files are set aside; then another one fails as well."""
    result = deploy(outage(kind, 0.3, inf), files=900)
    assert result.has_ended
    assert 1 <= result.set_aside <= 4
    assert result.seconds >= 0.3 + TIMEOUT
    # The first that failed and the last one took so long.
    lost = 2 * TIME_TO_FAIL.get(kind, 0.0)
    longest = TIMEOUT + 31 if kind in ("refused", "503") else 2 * TIMEOUT + 5
    assert result.seconds <= 0.3 + longest + lost


@pytest.mark.parametrize(
    ("kind", "longest"), [("refused", 25), ("503", 25), ("no connection", 45)]
)
def test_hopeless_start_is_given_up_soon(kind: str, longest: float) -> None:
    result = deploy(outage(kind, 0.0, inf))
    assert result.has_ended
    assert result.arrived == 0
    assert 15 <= result.seconds <= longest


def test_retry_after_counts_once() -> None:
    """A server that always asks to come back later is given up."""
    result = deploy(outage("503", 0.3, inf), files=900, after=5.0)
    assert result.has_ended
    assert 65 <= result.seconds <= 100


@pytest.mark.parametrize("after", [1.0, 30.0, 60.0])
def test_nobody_comes_back_before_the_server_says(after: float) -> None:
    result = deploy(outage("503", 0.3, 20), files=900, after=after)
    assert (result.arrived, result.has_ended) == (900, False)
    begin = 0.33
    assert not [each for each in result.starts if begin < each < 0.29 + after]


def _periods(source: random.Random) -> Iterator[tuple[float, float, str]]:
    """Yield times of trouble, with more than the time of two probes between them."""
    now = source.uniform(0.6, 5)
    for _ in range(source.randrange(1, 5)):
        end = now + source.choice([0.2, 1, 5, source.uniform(0.1, 45)])
        yield now, end, source.choice(["refused", "503", "no connection"])
        now = end + source.uniform(20, 30)


def test_random_outages() -> None:
    """However outages follow each other, all files arrive."""
    source = random.Random(1)
    for _ in range(10_000):
        periods = list(_periods(source))

        def state(now: float, periods: list[tuple[float, float, str]] = periods) -> str:
            return next((kind for a, b, kind in periods if a <= now < b), "")

        after = source.choice([0.0, 0.0, 2.0])
        result = deploy(state, files=80, round_trip=0.5, after=after, most=2)
        lost = result.set_aside, result.has_ended
        assert (result.arrived, *lost) == (80, 0, False), periods
