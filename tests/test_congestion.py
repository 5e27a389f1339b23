"""The pace of requests, in made-up time: no server and no clock has a part in it."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from itertools import count
from math import inf

import pytest

from collectfast_storage.congestion import Congestion

# It is the same with every version of what it is used with.
pytestmark = pytest.mark.slow

KB, MB = 1000, 1_000_000
Server = Callable[[float], bool]  # whether it takes a request that arrives then


def bucket_of_tokens(rate: float, burst: float) -> Server:
    """Let through what there are tokens for; `rate` of them come each second."""
    tokens, last = burst, 0.0

    def takes(now: float) -> bool:
        nonlocal tokens, last
        tokens = min(tokens + (now - last) * rate, burst) - 1
        last = now
        if tokens < 0:
            tokens += 1
            return False
        return True

    return takes


def seconds_of_a_clock(rate: float) -> Server:
    """Let through so many in each second of the clock."""
    second, taken = -1, 0

    def takes(now: float) -> bool:
        nonlocal second, taken
        if int(now + 0.37) != second:
            second, taken = int(now + 0.37), 0
        taken += taken < rate
        return taken < rate

    return takes


def last_second(rate: float) -> Server:
    """Let through so many in any second."""
    taken: deque[float] = deque()

    def takes(now: float) -> bool:
        while taken and taken[0] < now - 1:
            taken.popleft()
        if len(taken) >= rate:
            return False
        taken.append(now)
        return True

    return takes


class Line:
    """A client, what it sends over, and a server, for as long as it takes."""

    def __init__(
        self, takes: Server, round_trip: float = 0.02, bandwidth: float = inf
    ) -> None:
        self.takes, self.round_trip, self.bandwidth = takes, round_trip, bandwidth
        self.requests = self.most = 0
        self.longest = 0.0

    def send(self, files: int, size: int = 9 * KB, cpu: float = 0.001) -> float:
        """Send `files` of a `size`, each of which takes `cpu`; return the seconds."""
        pace, now, left, arrived, under_way = Congestion(64, 60), 0.0, files, 0, 0
        numbers, jitter = count(), random.Random(1)
        cpu_free = line_free = 0.0
        events: list[tuple[float, int, str, float]] = []
        while arrived < files:
            while left:
                delay = pace.delay(now, size, under_way, under_way * size)
                if delay:
                    if delay < inf:
                        heapq.heappush(events, (now + delay, next(numbers), "", 0.0))
                    break
                pace.started(now)
                left, under_way = left - 1, under_way + 1
                self.requests += 1
                self.most = max(self.most, under_way)
                cpu_free = max(cpu_free, now) + cpu
                line_free = max(line_free, cpu_free) + size / self.bandwidth
                there = line_free + self.round_trip / 2 * jitter.uniform(0.9, 1.3)
                heapq.heappush(events, (there, next(numbers), "there", now))
            now, _, what, began = heapq.heappop(events)
            if what == "there":
                answer = "taken" if self.takes(now) else "refused"
                back = now + self.round_trip / 2
                heapq.heappush(events, (back, next(numbers), answer, began))
            elif what:
                under_way -= 1
                self.longest = max(self.longest, now - began)
                if what == "taken":
                    arrived += 1
                    pace.answered(now, began, size)
                else:
                    left += 1
                    pace.throttled(now, began)
        return now


@pytest.mark.parametrize(
    ("kind", "round_trip"),
    [
        ("tokens", 0.02),
        ("window", 0.02),
        *(("clock", each) for each in (0.004, 0.02, 0.1)),
    ],
)
@pytest.mark.parametrize(("rate", "files"), [(300, 2500), (50, 600)])
def test_limit_of_a_server_is_kept_and_used(
    kind: str, rate: int, files: int, round_trip: float
) -> None:
    """In 1.3 times the time that the limit asks for, with a tenth more requests."""
    servers = {
        "tokens": bucket_of_tokens(rate, rate),
        "clock": seconds_of_a_clock(rate),
        "window": last_second(rate),
    }
    line = Line(servers[kind], round_trip)
    assert line.send(files) <= 1.3 * files / rate
    assert line.requests <= 1.1 * files


@pytest.mark.parametrize("burst", [1.5, 10])
@pytest.mark.parametrize("rate", [50, 300])
def test_limit_that_takes_no_burst_is_not_stormed(rate: int, burst: float) -> None:
    """It is slower then, but not one request in twenty is too many."""
    line = Line(bucket_of_tokens(rate, burst))
    assert line.send(1000) <= 4 * 1000 / rate
    assert line.requests <= 1050


@pytest.mark.parametrize("size", [20 * KB, 1 * MB, 8 * MB])
def test_slow_line_is_filled_and_nothing_waits_long_on_it(size: int) -> None:
    """600 kB/s: each request is over long before a minute."""
    line = Line(lambda now: True, bandwidth=600 * KB)
    files = 80 * MB // size
    assert line.send(files, size) <= 1.02 * 80 * MB / (600 * KB)
    assert line.longest < 20
    assert line.requests == files


def test_far_server_gets_as_many_at_once_as_it_may() -> None:
    """100 ms away, and nothing else in the way: 64 at once, in a fifth more time."""
    line = Line(lambda now: True, round_trip=0.1)
    assert line.send(2500, cpu=0.0003) <= 1.2 * 2500 / 64 * 0.1
    assert line.most == 64


def test_client_that_is_busy_sends_no_more_at_once_than_helps() -> None:
    """Then the others would only wait in its own queue."""
    line = Line(lambda now: True, round_trip=0.01)
    assert line.send(2500, cpu=0.0025) <= 1.05 * 2500 * 0.0025
    assert line.most <= 20


def test_server_says_when_to_come_back() -> None:
    """Nothing starts before, whatever else was measured."""
    pace = Congestion(64, 60)
    pace.started(0.0)
    pace.throttled(0.1, 0.0, after=7.0)
    assert pace.delay(0.2, 1, 0, 0) == pytest.approx(6.9)
    assert pace.delay(7.1, 1, 0, 0) == 0.0


def test_first_after_a_refusal_is_alone_and_waits_longer_each_time() -> None:
    """Until it gets through."""
    pace, now, waits = Congestion(64, 60), 0.0, []
    for _ in range(8):
        pace.started(now)
        pace.throttled(now, now)
        waits.append(round(pace.delay(now, 1, 0, 0), 2))
        now += waits[-1]
    pace.started(now)
    assert pace.delay(now, 1, 1, 1) == inf
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    pace.answered(now, now, 1)
    assert pace.delay(now + 1, 1, 1, 1) == 0.0


def test_what_is_not_answered_halves_what_is_under_way_once() -> None:
    """Those that were sent before tell nothing new."""
    pace = Congestion(4, 60)
    assert pace.delay(0.0, 1, 3, 3) == 0.0
    for _ in range(3):
        pace.failed(60.0, 0.0, timed_out=True)
    assert pace.delay(60.0, 1, 1, 1) == 0.0
    assert pace.delay(60.0, 1, 2, 2) == inf
    pace.answered(60.2, 60.1, None)
    pace.failed(120.0, 60.0, timed_out=True)
    assert pace.delay(120.0, 1, 1, 1) == inf
    assert pace.delay(120.0, 1, 0, 0) == 0.0
