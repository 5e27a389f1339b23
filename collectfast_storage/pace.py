"""How many requests may be under way, and how soon the next may start.

Pure: whoever uses this tells it the time. Two things are found while running, each by a
scheme of TCP's. The window, in requests and in bytes, begins small, grows with what
arrives quickly, and is halved when something takes too long or is not answered:
https://www.rfc-editor.org/rfc/rfc5681. The rate is unlimited until a server throttles;
then it is cut, comes back to where that was as CUBIC does, and tries for more:
https://www.rfc-editor.org/rfc/rfc9438, as in botocore's adaptive mode:
https://docs.aws.amazon.com/boto3/latest/guide/retries.html#adaptive-retry-mode
"""

from collections import deque
from math import inf

MOST_BYTES = 64 * 1024 * 1024
_FIRST_WINDOW, _FIRST_BYTES = 6, 1024 * 1024
# Of less than that, the time tells how crowded the way is, and not how large it was.
_SMALL = 64 * 1024
# What is left of a rate after a cut; and after so many seconds it is the old one again.
_CUT, _RETURN = 0.8, 1.5
# Seconds without requests after a cut; doubled up to the latter while it goes on.
_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class Pace:
    """Says when a request may start, from what became of those before."""

    def __init__(self, most: int, timeout: float, most_bytes: int = MOST_BYTES) -> None:
        """Allow up to `most` requests at once, each answered in `timeout` seconds."""
        self._most, self._most_bytes = max(most, 1), most_bytes
        self._slow = timeout / 8
        self._window = float(min(self._most, _FIRST_WINDOW))
        self._room = float(min(most_bytes, _FIRST_BYTES))
        self._quickest = inf  # seconds that a small request took
        self._shrunk_at = -inf
        self._peak, self._cut_at = inf, -inf  # requests a second at the last cut
        self._pause, self._is_probing = _PAUSE, False
        self._first = inf  # when the first request started
        self._next = -inf  # when the next may
        self._answers: deque[float] = deque()  # of the last second

    def delay(self, now: float, size: int, requests: int, size_of_all: int) -> float:
        """Return in how many seconds to send; `inf`: when one under way has ended."""
        crowded = requests >= int(self._window) or size_of_all + size > self._room
        if requests and (crowded or self._is_probing):
            return inf
        return max(self._next - now, 0.0)

    def started(self, now: float) -> None:
        """Note that a request starts."""
        self._first = min(self._first, now)
        self._next = max(self._next, now) + 1 / self._rate(now)

    def answered(self, now: float, began: float, size: int) -> None:
        """Note that the request of `size` bytes that `began` then was answered."""
        self._answers.append(now)
        self._forget(now)
        if began >= self._cut_at:
            self._pause, self._is_probing = _PAUSE, False
        took = now - began
        if size <= _SMALL:
            self._quickest = min(self._quickest, took)
        if took > self._slow:
            self.shrink(now, began)
        elif took < self._slow / 2:
            self._room = min(self._room + size, self._most_bytes)
            if size > _SMALL or took < 2 * self._quickest:
                self._window = min(self._window + 0.5, self._most)

    def throttled(self, now: float, began: float, after: float = 0.0) -> None:
        """Note that one was refused as too many, or until `after` so many seconds."""
        if began >= self._cut_at:  # What started before tells nothing new.
            self._forget(now)
            seconds = min(max(now - self._first, 0.25), 1.0)
            # Where nothing got through, nothing is known of the rate.
            self._peak = min(self._rate(now), len(self._answers) / seconds or inf)
            if self._is_probing:
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            self._cut_at, self._is_probing = now, True
            self._next = now + self._pause
        self._next = max(self._next, now + after)

    def shrink(self, now: float, began: float) -> None:
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
