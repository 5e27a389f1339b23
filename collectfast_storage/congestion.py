"""How many requests may be under way, when the next may start, and when to give up.

Pure: the caller tells the time, in seconds of any clock. `Pace` finds two values while
requests are sent, each as TCP does. The window, in requests and in bytes, begins small,
grows with quick answers, and is halved when a request takes too long or is lost:
https://www.rfc-editor.org/rfc/rfc5681. The rate is unlimited until a server throttles;
then it is cut, comes back to where that was as CUBIC does, and tries for more:
https://www.rfc-editor.org/rfc/rfc9438, as in botocore's adaptive mode:
https://docs.aws.amazon.com/boto3/latest/guide/retries.html#adaptive-retry-mode

In an outage, when several requests have failed in a row, one request after the other is
sent as a probe, with growing pauses. The window keeps its size, so that after the first
success as many requests are sent as before.
"""

from collections import deque
from enum import Enum, auto
from math import inf

MOST_BYTES = 64 * 1024 * 1024
_FIRST_WINDOW, _FIRST_BYTES = 10, 1024 * 1024
# Of less than that, the time tells how crowded the way is, and not how large it was.
_SMALL = 64 * 1024
# What is left of a rate after a cut; and after so many seconds it is the old one again.
_CUT, _RETURN = 0.8, 1.5
# Seconds without requests before a probe; doubled up to the last while probes fail.
_PAUSE, _LONG_PAUSE, _LONGEST_PAUSE = 0.1, 1.6, 5.0
# The number of failures in a row that are an outage.
_OUTAGE = 4
# After the time-out, requests that fail are given up one by one, up to this number and
# for this number of seconds. Then all are given up.
_MOST_SET_ASIDE, _LONGEST_SETTING_ASIDE = 4, 60.0
# The least number of times that a request is sent while others succeed.
_LEAST_ATTEMPTS = 5
# No request waits longer for its turn in an outage, in seconds.
_LONGEST_TURN = 60.0
# Before the first success, the endpoint may be a wrong one, which is reported sooner.
_FIRST_TIMEOUT = 15.0


class Pace:
    """Says when a request may start, from the outcomes of those before.

    The `size` of a request is in bytes. It is `None` for a request that has no part in
    the congestion window, as its time says nothing of others: a part of a large file.
    """

    def __init__(self, most: int, timeout: float, most_bytes: int = MOST_BYTES) -> None:
        """Allow up to `most` requests at once, each answered in `timeout` seconds."""
        self._most, self._most_bytes = max(most, 1), most_bytes
        self._slow = timeout / 8
        self._window = float(min(self._most, _FIRST_WINDOW))
        self._room = float(min(most_bytes, _FIRST_BYTES))
        self._quickest = inf  # seconds that a small request took
        self._shrunk_at = -inf
        self._peak, self._cut_at = inf, -inf  # requests a second at the last cut
        self._pause, self.is_probing = _PAUSE, False
        self._probe = -inf  # when the probe under way began
        self._first = inf  # when the first request started
        self._next = -inf  # when the next may
        self._answers: deque[float] = deque()  # of the last second
        self._in_a_row = 0  # failures since the last success

    def delay(
        self, now: float, size: int | None, requests: int, size_of_all: int
    ) -> float:
        """Return in how many seconds to send; `inf`: when one under way has ended."""
        if self.is_probing and self._probe > -inf:
            return inf
        crowded = requests and size is not None and not self.is_probing
        if crowded and requests >= int(self._window):
            return inf
        if crowded and size_of_all + (size or 0) > self._room:
            return inf
        return max(self._next - now, 0.0)

    def started(self, now: float) -> None:
        """Note that a request starts."""
        self._first = min(self._first, now)
        self._next = max(self._next, now) + 1 / self._rate(now)
        if self.is_probing:
            self._probe = now

    def ended(self, began: float) -> None:
        """Note that the request that `began` then has ended, whatever its outcome."""
        if began == self._probe:
            self._probe = -inf

    def answered(self, now: float, began: float, size: int | None) -> None:
        """Note that the request of `size` bytes that `began` then was answered."""
        self.ended(began)
        self._in_a_row = 0
        self._answers.append(now)
        self._forget(now)
        if began >= self._cut_at:
            if self._pause >= _LONG_PAUSE:  # Not a limit, but an outage.
                self._peak = inf
            self._pause, self.is_probing, self._probe = _PAUSE, False, -inf
        if size is None:
            return
        took = now - began
        if size <= _SMALL:
            self._quickest = min(self._quickest, took)
        if took > self._slow:
            self._shrink(now, began)
        elif took < self._slow / 2:
            self._room = min(self._room + size, self._most_bytes)
            if size > _SMALL or took < 2 * self._quickest:
                self._window = min(self._window + 0.5, self._most)

    def throttled(self, now: float, began: float, after: float = 0.0) -> None:
        """Note that one was refused as too many, or until `after` so many seconds."""
        self.ended(began)
        if began >= self._cut_at:
            self._forget(now)
            seconds = min(max(now - self._first, 0.25), 1.0)
            # Where nothing got through, nothing is known of the rate.
            self._peak = min(self._rate(now), len(self._answers) / seconds or inf)
        self._probe_later(now, began, after)

    def failed(
        self, now: float, began: float, *, timed_out: bool = False, after: float = 0.0
    ) -> None:
        """Note that the request that `began` then failed, perhaps after a time-out.

        It is an outage when several have failed, and none has succeeded meanwhile.
        """
        self.ended(began)
        self._in_a_row += 1
        if self._in_a_row >= _OUTAGE or after:
            self._probe_later(now, began, after)
        elif timed_out:
            self._shrink(now, began)

    def _probe_later(self, now: float, began: float, after: float) -> None:
        if began >= self._cut_at:  # A request that began before tells nothing new.
            if self.is_probing:
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            self._cut_at, self.is_probing = now, True
            self._next = now + self._pause
        self._next = max(self._next, now + after)

    def _shrink(self, now: float, began: float) -> None:
        """Have less under way, as the request took too long, or was not answered."""
        if began >= self._shrunk_at:
            self._shrunk_at = now
            self._window = max(self._window / 2, 1.0)
            self._room = max(self._room / 2, 1.0)

    def _rate(self, now: float) -> float:
        if self._peak == inf:
            return inf
        away = (now - self._cut_at - _RETURN) / _RETURN
        return self._peak * (1 + (1 - _CUT) * away**3)

    def _forget(self, now: float) -> None:
        while self._answers and self._answers[0] < now - 1:
            self._answers.popleft()


class Next(Enum):
    """What follows a request that failed, and may succeed later."""

    RETRY = auto()
    SET_ASIDE = auto()  # Give up this request, and go on with others.
    END = auto()  # Give up all requests.


class Attempts:
    """The attempts at one request that failed while others succeeded."""

    def __init__(self) -> None:
        self.since, self.number = inf, 0

    def add(self, now: float) -> None:
        """Add one that failed."""
        self.since, self.number = min(self.since, now), self.number + 1

    def forget(self) -> None:
        """Count from the beginning: in an outage, others fail as well."""
        self.since, self.number = inf, 0


class Patience:
    """Says when to give up: when no request has succeeded for some time."""

    def __init__(self, timeout: float) -> None:
        """Give up after `timeout` seconds without success; before the first, sooner."""
        self._timeout = timeout
        self._has_succeeded = False
        self._set_aside = 0  # requests since the last success
        self._since = inf  # the first failure after the last success
        self._failed_at = -inf  # the last failure
        self._extra = 0.0  # seconds more, because a server has asked for that time
        self._resumed_at = -inf  # when the last outage ended

    @property
    def timeout(self) -> float:
        """The seconds to wait for the next success."""
        first = min(self._timeout, _FIRST_TIMEOUT)
        return (self._timeout if self._has_succeeded else first) + self._extra

    def waited(self, now: float) -> float:
        """Return for how many seconds requests have failed, and none has succeeded."""
        return max(now - self._since, 0.0)

    def succeeded(self, now: float, *, ends_outage: bool) -> None:
        """Note that a request was answered."""
        if ends_outage:
            self._resumed_at = now
        self._has_succeeded, self._set_aside = True, 0
        self._since, self._extra = inf, 0.0

    def failed(
        self, now: float, began: float, alone: Attempts, after: float = 0.0
    ) -> Next:
        """Return what follows a request that `began` then, and failed.

        Its attempts that failed `alone`, while others succeeded, are counted. The
        server asks to wait for `after` seconds, which extends the time-out once.
        """
        if began - self._failed_at > self._timeout + _LONGEST_TURN:
            self._since = now  # Nothing was sent meanwhile.
        self._since, self._failed_at = min(self._since, now), now
        self._extra = self._extra or after
        waited = self.waited(now)
        if waited >= self.timeout:
            # It may be the only one that fails, or one of a few.
            self._set_aside += 1
            is_end = not self._has_succeeded or self._set_aside > _MOST_SET_ASIDE
            is_long = waited >= self.timeout + _LONGEST_SETTING_ASIDE
            return Next.END if is_end or is_long else Next.SET_ASIDE
        since = max(alone.since, self._resumed_at)
        is_alone = now - since >= self._timeout + self._extra
        is_tried = alone.number >= _LEAST_ATTEMPTS
        return Next.SET_ASIDE if is_alone and is_tried else Next.RETRY
