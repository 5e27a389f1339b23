"""The rate and number of parallel requests, in simulated time without a server."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from itertools import count
from math import inf

import pytest

from collectfast_storage.congestion import Congestion

# The simulation does not depend on the versions of Python, Django and boto3, so runs
# that compare these can leave it out as slow.
pytestmark = pytest.mark.slow

KB, MB = 1000, 1_000_000
# A function that returns whether the server accepts a request that arrives at a time.
Server = Callable[[float], bool]


def bucket_of_tokens(rate: float, burst: float) -> Server:
    """Return a server that accepts a request for each token of a token bucket.

    The bucket gets `rate` tokens per second, and holds at most `burst` of them.
    """
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
    """Return a server that accepts at most `rate` requests per second of its clock."""
    second = -1
    taken: float = 0

    def takes(now: float) -> bool:
        nonlocal second, taken
        # The clock of the server is 0.37 seconds fast.
        if int(now + 0.37) != second:
            second = int(now + 0.37)
            taken = 0
        taken += taken < rate
        return taken < rate

    return takes


def last_second(rate: float) -> Server:
    """Return a server that accepts at most `rate` requests in any second."""
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
    """A simulation of a client, a network connection and a server."""

    def __init__(
        self, takes: Server, round_trip: float = 0.02, bandwidth: float = inf
    ) -> None:
        self.takes, self.round_trip, self.bandwidth = takes, round_trip, bandwidth
        self.requests = self.most = 0
        self.longest = 0.0

    def send(self, files: int, size: int = 9 * KB, cpu: float = 0.001) -> float:
        """Upload files of `size` bytes, and return the time that all of them need.

        Each one needs `cpu` seconds of processor time in the client.
        """
        pace = Congestion(64, 60)
        now = 0.0
        left = files
        arrived = under_way = 0
        numbers = count()
        jitter = random.Random(1)
        # The times from which the processor and the connection are free.
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
                left -= 1
                under_way += 1
                self.requests += 1
                self.most = max(self.most, under_way)
                cpu_free = max(cpu_free, now) + cpu
                line_free = max(line_free, cpu_free) + size / self.bandwidth
                there = line_free + self.round_trip / 2 * jitter.uniform(0.9, 1.3)
                heapq.heappush(events, (there, next(numbers), "there", now))
            now, _, event, began = heapq.heappop(events)
            if event == "there":
                answer = "taken" if self.takes(now) else "refused"
                back = now + self.round_trip / 2
                heapq.heappush(events, (back, next(numbers), answer, began))
            elif event:
                under_way -= 1
                self.longest = max(self.longest, now - began)
                if event == "taken":
                    arrived += 1
                    pace.answered(now, began, size)
                else:
                    left += 1
                    pace.throttled(now, began)
        return now


@pytest.mark.parametrize(
    ("kind", "round_trip", "rate", "files"),
    [
        ("tokens", 0.02, 300, 2500),
        ("tokens", 0.02, 50, 600),
        ("window", 0.02, 50, 600),
        ("clock", 0.02, 300, 2500),
        *(("clock", each, 50, 600) for each in (0.004, 0.02, 0.1)),
    ],
)
def test_rate_limit_of_a_server_is_used(
    kind: str, rate: int, files: int, round_trip: float
) -> None:
    """Uploads need at most 1.3 times the shortest time that a rate limit allows.

    They need at most a tenth more requests than there are files.
    """
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
def test_few_requests_are_refused_if_bursts_are(rate: int, burst: float) -> None:
    """If a server refuses bursts, at most one request in twenty is refused.

    Uploads need at most four times the shortest time then.
    """
    line = Line(bucket_of_tokens(rate, burst))
    assert line.send(1000) <= 4 * 1000 / rate
    assert line.requests <= 1050


@pytest.mark.parametrize("size", [20 * KB, 1 * MB, 8 * MB])
def test_slow_connection_is_used_and_no_request_takes_long(size: int) -> None:
    """Over 600 kB/s, all bandwidth is used, and requests take less than 20 seconds.

    A time-out of a minute is therefore no problem.
    """
    line = Line(lambda now: True, bandwidth=600 * KB)
    files = 80 * MB // size
    assert line.send(files, size) <= 1.02 * 80 * MB / (600 * KB)
    assert line.longest < 20
    assert line.requests == files


def test_distant_server_receives_64_parallel_requests() -> None:
    """With a round trip of 100 ms, 64 requests run in parallel.

    Uploads need at most a fifth more time than the shortest one.
    """
    line = Line(lambda now: True, round_trip=0.1)
    assert line.send(2500, cpu=0.0003) <= 1.2 * 2500 / 64 * 0.1
    assert line.most == 64


def test_busy_client_sends_few_parallel_requests() -> None:
    """If the client's processor is the limit, at most 20 requests run in parallel.

    More of them would only wait in the client.
    """
    line = Line(lambda now: True, round_trip=0.01)
    assert line.send(2500, cpu=0.0025) <= 1.05 * 2500 * 0.0025
    assert line.most <= 20


def test_retry_after_delays_the_next_request() -> None:
    """After a response with Retry-After, the next request waits until that time."""
    pace = Congestion(64, 60)
    pace.started(0.0)
    pace.throttled(0.1, 0.0, after=7.0)
    assert pace.delay(0.2, 1, 0, 0) == pytest.approx(6.9)
    assert pace.delay(7.1, 1, 0, 0) == 0.0


def test_single_request_follows_a_refusal_after_growing_pauses() -> None:
    """After a refusal one request is sent at a time, until one succeeds.

    The pauses grow up to five seconds.
    """
    pace = Congestion(64, 60)
    now = 0.0
    waits = []
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


def test_timeouts_halve_the_parallel_requests_once() -> None:
    """Time-outs of requests that were sent together halve the limit only once.

    A later time-out halves it again.
    """
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
