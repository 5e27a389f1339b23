"""The congestion of one bucket, and the policy of retries.

No clock is read: the caller passes the time, in seconds of any clock. `Congestion`
finds two values while requests are sent, each as TCP does. The window, in requests and
in bytes, begins small, grows with quick answers, and is halved when a request takes too
long or is lost:
https://www.rfc-editor.org/rfc/rfc5681. The rate is unlimited until a server throttles.
Then it is cut, returns to its value before the cut as in CUBIC, and grows beyond it:
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
# Below this size, the time of a request depends on congestion, and not on the size.
_SMALL = 64 * 1024
# The part of the rate that is left after a cut, and the seconds until it is restored.
_CUT, _RETURN = 0.8, 1.5
# Seconds without requests before a probe, doubled up to the last while probes fail.
_PAUSE, _LONG_PAUSE, _LONGEST_PAUSE = 0.1, 1.6, 5.0
# The number of failures in a row that are an outage.
_OUTAGE = 4
# After the time-out, requests that fail are given up one by one, up to this number and
# for this number of seconds. Then all are given up.
_MOST_GIVEN_UP, _LONGEST_GIVING_UP = 4, 60.0
# The least number of times that a request is sent while others succeed.
_LEAST_ATTEMPTS = 5
# No request waits longer for its turn in an outage, in seconds.
_LONGEST_TURN = 60.0
# Before the first success, the endpoint may be a wrong one, which is reported sooner.
_FIRST_TIMEOUT = 15.0


class Congestion:
    """The time at which a request may start, from the outcomes of earlier requests.

    The `size` of a request is in bytes. It is `None` for a request that does not count
    in the window, because its time depends on other data: a part of a large file.
    """

    def __init__(self, most: int, timeout: float) -> None:
        """Allow `most` requests in parallel, each answered within `timeout` seconds."""
        self._most = max(most, 1)
        self._slow = timeout / 8
        self._window = float(min(self._most, _FIRST_WINDOW))
        self._window_bytes = float(_FIRST_BYTES)
        self._quickest = inf  # seconds that a small request took
        self._shrunk_at = -inf
        self._rate_at_cut, self._cut_at = inf, -inf  # requests per second
        self._pause, self.is_probing = _PAUSE, False
        self._probe = -inf  # when the probe under way began
        self._first = inf  # when the first request started
        self._next = -inf  # when the next request may start
        self._answers: deque[float] = deque()  # times, in the last second
        self._failures = 0  # in a row, since the last success

    def delay(
        self, now: float, size: int | None, requests: int, size_of_all: int
    ) -> float:
        """Return the seconds until a request may start.

        `requests` are under way, with `size_of_all` bytes. The delay is `inf` if one of
        them must end first.
        """
        if self.is_probing:
            is_full = self._probe > -inf
        else:
            total = size_of_all + (size or 0)
            fits = requests < int(self._window) and total <= self._window_bytes
            is_full = requests > 0 and size is not None and not fits
        return inf if is_full else max(self._next - now, 0.0)

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
        self._failures = 0
        self._answers.append(now)
        while self._answers[0] < now - 1:
            self._answers.popleft()
        if began >= self._cut_at:
            if self._pause >= _LONG_PAUSE:  # It was an outage, and not a limit.
                self._rate_at_cut = inf
            self._pause, self.is_probing, self._probe = _PAUSE, False, -inf
        if size is None:
            return
        took = now - began
        if size <= _SMALL:
            self._quickest = min(self._quickest, took)
        if took > self._slow:
            self._shrink(now, began)
        elif took < self._slow / 2:
            self._window_bytes = min(self._window_bytes + size, MOST_BYTES)
            if size > _SMALL or took < 2 * self._quickest:
                self._window = min(self._window + 0.5, self._most)

    def throttled(self, now: float, began: float, after: float = 0.0) -> None:
        """Note that the server refused a request because there are too many.

        `after` is the pause in seconds that it has asked for, or 0.
        """
        self.ended(began)
        if began >= self._cut_at:
            answers = sum(each >= now - 1 for each in self._answers)
            seconds = min(max(now - self._first, 0.25), 1.0)
            # Without any answer, nothing is known about the rate.
            self._rate_at_cut = min(self._rate(now), answers / seconds or inf)
        self._probe_later(now, began, after)

    def failed(
        self, now: float, began: float, *, timed_out: bool = False, after: float = 0.0
    ) -> None:
        """Note that the request that `began` then failed, perhaps after a time-out.

        It is an outage when several have failed since the last success.
        """
        self.ended(began)
        self._failures += 1
        if self._failures >= _OUTAGE or after:
            self._probe_later(now, began, after)
        elif timed_out:
            self._shrink(now, began)

    def _probe_later(self, now: float, began: float, after: float) -> None:
        # Requests that began before the last cut do not show whether it was enough.
        if began >= self._cut_at:
            if self.is_probing:
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            self._cut_at, self.is_probing = now, True
            self._next = now + self._pause
        self._next = max(self._next, now + after)

    def _shrink(self, now: float, began: float) -> None:
        """Halve the window, because a request took too long or was not answered."""
        if began >= self._shrunk_at:
            self._shrunk_at = now
            self._window = max(self._window / 2, 1.0)
            self._window_bytes = max(self._window_bytes / 2, 1.0)

    def _rate(self, now: float) -> float:
        """Return the requests per second, which are `inf` until a server throttles."""
        # -1 at the cut, and 0 when the old rate is reached.
        away = (now - self._cut_at - _RETURN) / _RETURN
        return self._rate_at_cut * (1 + (1 - _CUT) * away**3)


class RetryDecision(Enum):
    """The consequence of a request that failed, and may succeed later."""

    RETRY = auto()
    RAISE = auto()  # Give up this request, and go on with others.
    STOP = auto()  # Give up all requests.


class Attempts:
    """The attempts at one request that failed while others succeeded."""

    def __init__(self) -> None:
        self.since, self.number = inf, 0

    def add(self, now: float) -> None:
        """Add an attempt that failed."""
        self.since, self.number = min(self.since, now), self.number + 1

    def forget(self) -> None:
        """Count from the beginning, because in an outage all requests fail."""
        self.since, self.number = inf, 0


class RetryPolicy:
    """Decides when to give up, by the time since the last success."""

    def __init__(self, timeout: float) -> None:
        """Give up after `timeout` seconds without success, or sooner at the start."""
        self._timeout = timeout
        self._has_succeeded = False
        self._given_up = 0  # requests since the last success
        self._since = inf  # when the first failure after the last success was
        self._failed_at = -inf  # when the last failure was
        self._extra = 0.0  # seconds that a server has asked to wait
        self._resumed_at = -inf  # when the last outage ended

    @property
    def timeout(self) -> float:
        """The seconds to wait for the next success."""
        first = min(self._timeout, _FIRST_TIMEOUT)
        return (self._timeout if self._has_succeeded else first) + self._extra

    def waited(self, now: float) -> float:
        """Return the seconds since the first failure after the last success."""
        return max(now - self._since, 0.0)

    def succeeded(self, now: float, *, ends_outage: bool) -> None:
        """Note that a request was answered."""
        if ends_outage:
            self._resumed_at = now
        self._has_succeeded, self._given_up = True, 0
        self._since, self._extra = inf, 0.0

    def failed(
        self, now: float, began: float, attempts: Attempts, after: float = 0.0
    ) -> RetryDecision:
        """Return the consequence of the failure of a request that `began` then.

        `attempts` are those that failed while other requests succeeded. If the server
        asks to wait for `after` seconds, this extends the time-out once.
        """
        if began - self._failed_at > self._timeout + _LONGEST_TURN:
            self._since = now  # No request was sent for a long time.
        self._since, self._failed_at = min(self._since, now), now
        self._extra = self._extra or after
        waited = self.waited(now)
        if waited >= self.timeout:
            # Perhaps only this request fails, or a few.
            self._given_up += 1
            is_end = not self._has_succeeded or self._given_up > _MOST_GIVEN_UP
            is_long = waited >= self.timeout + _LONGEST_GIVING_UP
            return RetryDecision.STOP if is_end or is_long else RetryDecision.RAISE
        since = max(attempts.since, self._resumed_at)
        is_overdue = now - since >= self._timeout + self._extra
        is_tried = attempts.number >= _LEAST_ATTEMPTS
        return RetryDecision.RAISE if is_overdue and is_tried else RetryDecision.RETRY
