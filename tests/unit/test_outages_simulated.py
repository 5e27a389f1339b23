"""Retries during outages, in simulated time without a server or a clock."""

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

TIMEOUT = 60.0  # seconds, both for all retries and for one response
SIZE = 9000  # bytes of each file

# A function that returns the server's state at a time: "" or the kind of its failure.
State = Callable[[float], str]
# Seconds until a request fails. Other kinds of failures take one round trip.
TIME_TO_FAIL = {"hangs": TIMEOUT, "no connection": 10.0}


@dataclass
class Request:
    """A request that is repeated until it succeeds or is given up."""

    alone: Attempts = field(default_factory=Attempts)
    pause: float = 0.1


@dataclass
class Result:
    """The result of a simulated deploy, with the times of requests and successes."""

    arrived: int = 0
    set_aside: int = 0
    has_ended: bool = False
    seconds: float = 0.0
    starts: list[float] = field(default_factory=list)
    successes: list[float] = field(default_factory=list)


def outage(kind: str, begin: float, length: float) -> State:
    """Return the state of a server that fails once, for `length` seconds."""
    return lambda now: kind if begin <= now < begin + length else ""


def deploy(  # noqa: C901 (one loop of events)
    state: State,
    files: int = 300,
    *,
    round_trip: float = 0.02,
    after: float = 0.0,
    most: int = 64,
) -> Result:
    """Send `files` as `RetryingSender` does, at most `most` of them in parallel."""
    pace = Congestion(most, 60)
    patience = RetryPolicy(TIMEOUT)
    result = Result()
    numbers = count()
    now = 0.0
    waiting = deque(Request() for _ in range(files))
    events: list[tuple[float, int, str, float, Request | None]] = []
    under_way = 0

    def at(time: float, event: str, began: float, request: Request | None) -> None:
        heapq.heappush(events, (time, next(numbers), event, began, request))

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
        now, _, event, began, request = heapq.heappop(events)
        if request is None:
            continue
        if event == "again":
            waiting.append(request)
            continue
        under_way -= 1
        if event == "success":
            was_probing = pace.is_probing
            pace.answered(now, began, SIZE)
            ends_outage = was_probing and not pace.is_probing
            patience.succeeded(now, ends_outage=ends_outage)
            result.arrived += 1
            result.successes.append(now)
            continue
        if event == "503":
            pace.throttled(now, began, after)
        else:
            pace.failed(now, began, timed_out=event in TIME_TO_FAIL, after=after)
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
    """All files arrive at most eight seconds later than without the outage.

    The length of the outage is not counted, and neither is the time until a request
    fails.
    """
    undisturbed = deploy(lambda _: "", files=files).seconds
    assert begin < undisturbed
    result = deploy(outage(kind, begin, length), files=files)
    assert (result.arrived, result.set_aside, result.has_ended) == (files, 0, False)
    late = TIME_TO_FAIL.get(kind, 0.0)
    assert result.seconds <= begin + length + undisturbed + 8 + late


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [0.2, 3, 10])
def test_short_outage_at_the_start(kind: str, length: float) -> None:
    """All files arrive if the server fails for up to ten seconds at first."""
    result = deploy(outage(kind, 0.0, length))
    assert (result.arrived, result.has_ended) == (300, False)


@pytest.mark.parametrize("kind", ["refused", "503"])
def test_few_requests_are_sent_in_an_outage(kind: str) -> None:
    """During an outage, at most one request per second is sent on average."""
    result = deploy(outage(kind, 0.3, 50), files=900)
    # Requests that were sent shortly before the outage are not counted.
    assert sum(0.32 <= each < 50.3 for each in result.starts) <= 50


@pytest.mark.parametrize("kind", ["refused", "503"])
@pytest.mark.parametrize("length", [3, 20, 50])
def test_request_rate_recovers_in_two_seconds(kind: str, length: float) -> None:
    """Two seconds after the first success, 80 % of the earlier rate is reached."""
    result = deploy(outage(kind, 1.0, length), files=20_000)
    before = sum(0.8 <= each < 1.0 for each in result.successes)
    first = min(each for each in result.successes if each >= 1.0 + length)
    later = sum(first + 1.8 <= each < first + 2.0 for each in result.successes)
    assert before > 100
    assert later >= 0.8 * before


@pytest.mark.parametrize("kind", KINDS)
def test_outage_that_is_too_long_ends_the_deploy(kind: str) -> None:
    """After the time-out one to four files are given up, and then the whole deploy."""
    result = deploy(outage(kind, 0.3, inf), files=900)
    assert result.has_ended
    assert 1 <= result.set_aside <= 4
    assert result.seconds >= 0.3 + TIMEOUT
    # The first and the last request that fail also need this time.
    lost = 2 * TIME_TO_FAIL.get(kind, 0.0)
    longest = TIMEOUT + 31 if kind in ("refused", "503") else 2 * TIMEOUT + 5
    assert result.seconds <= 0.3 + longest + lost


@pytest.mark.parametrize(
    ("kind", "longest"), [("refused", 25), ("503", 25), ("no connection", 45)]
)
def test_outage_from_the_start_ends_the_deploy_early(kind: str, longest: float) -> None:
    """If no request ever succeeds, the deploy ends before the time-out of retries."""
    result = deploy(outage(kind, 0.0, inf))
    assert result.has_ended
    assert result.arrived == 0
    assert 15 <= result.seconds <= longest


def test_retry_after_counts_once() -> None:
    """A server that sends Retry-After in each response is given up nevertheless."""
    result = deploy(outage("503", 0.3, inf), files=900, after=5.0)
    assert result.has_ended
    assert 65 <= result.seconds <= 100


@pytest.mark.parametrize("after", [1.0, 30.0, 60.0])
def test_no_request_is_sent_before_the_time_in_retry_after(after: float) -> None:
    """After a response with Retry-After, no request is sent before that time."""
    result = deploy(outage("503", 0.3, 20), files=900, after=after)
    assert (result.arrived, result.has_ended) == (900, False)
    begin = 0.33
    assert not [each for each in result.starts if begin < each < 0.29 + after]


def _periods(source: random.Random) -> Iterator[tuple[float, float, str]]:
    """Yield periods of outages, with time for more than two probes between them."""
    now = source.uniform(0.6, 5)
    for _ in range(source.randrange(1, 5)):
        end = now + source.choice([0.2, 1, 5, source.uniform(0.1, 45)])
        yield now, end, source.choice(["refused", "503", "no connection"])
        now = end + source.uniform(20, 30)


def test_random_outages() -> None:
    """All files arrive after any sequence of one to four outages."""
    source = random.Random(1)
    for _ in range(10_000):
        periods = list(_periods(source))

        def state(now: float, periods: list[tuple[float, float, str]] = periods) -> str:
            return next((kind for a, b, kind in periods if a <= now < b), "")

        after = source.choice([0.0, 0.0, 2.0])
        result = deploy(state, files=80, round_trip=0.5, after=after, most=2)
        lost = result.set_aside, result.has_ended
        assert (result.arrived, *lost) == (80, 0, False), periods
