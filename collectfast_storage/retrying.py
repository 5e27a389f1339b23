"""The sender of a run's requests, which retries them after transient errors."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from math import inf
from time import monotonic
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from collectfast_storage.congestion import (
    Attempts,
    Congestion,
    RetryDecision,
    RetryPolicy,
)
from collectfast_storage.reporting import Progress
from collectfast_storage.s3.errors import (
    OutageError,
    Transient,
    short_reason,
    transient_of,
)

logger = logging.getLogger("collectfast_storage")

_T = TypeVar("_T")

# Shorter outages are not logged, in seconds.
_SHORT_OUTAGE = 1.0
# The pause before a single request is sent again while others succeed, in seconds.
_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class RetryingSender:
    """A sender of requests to one bucket, at a pace that responses determine.

    A request that fails with a transient error is sent again, until no request has
    succeeded for the time that `RetryPolicy` allows.
    """

    def __init__(
        self,
        bucket_name: str,
        congestion: Congestion,
        timeout: float,
        progress: Progress,
    ) -> None:
        """Retry for `timeout` seconds; with 0, only botocore retries."""
        self.retries = timeout > 0
        self._bucket_name, self._progress = bucket_name, progress
        self._congestion, self._policy = congestion, RetryPolicy(timeout)
        self._changed = threading.Condition()  # the pace, or whether this is stopped
        self._first_in_line = threading.Lock()  # Only its owner waits for `_changed`.
        self._requests = self._bytes = 0  # in flight, in the congestion window
        self._has_warned = False  # since the last success
        self._stopped = threading.Event()
        self._stop_error: Exception | None = None

    def send(self, call: Callable[[], _T], size: int | None = None) -> _T:
        """Return the result of `call`, which sends one request of `size` bytes.

        If `size` is `None`, the request is not a part of the congestion window.
        """
        attempts, pause = Attempts(), _PAUSE
        while True:
            began = self._begin(size)
            try:
                result = call()
            except BaseException as error:
                transient = self._failure(error, began, size)
                if transient is None:
                    raise
                # In an outage other requests fail as well, so failures do not count.
                is_outage = self._congestion.is_probing
                if is_outage:
                    attempts.forget()
                else:
                    attempts.add(monotonic())
                self._retry_or_raise(error, began, attempts, transient)
            else:
                with self._changed:
                    self._end(began, size)
                    self._success(began, size)
                return result
            if not is_outage:
                self._stopped.wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    def check(self) -> None:
        """Raise an error if `stop` was called."""
        if self._stopped.is_set():
            raise self._stop_error or CancelledError

    def stop(self, error: Exception | None = None) -> None:
        """Send no more requests; calls that wait to send raise `error`, if given."""
        self._stop_error = self._stop_error or error
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def _begin(self, size: int | None) -> float:
        """Wait until a request of `size` bytes may start, and return the time."""
        with self._first_in_line, self._changed:
            while True:
                self.check()
                now = monotonic()
                delay = self._congestion.delay(now, size, self._requests, self._bytes)
                if delay <= 0:
                    self._congestion.started(now)
                    if size is not None:
                        self._requests += 1
                        self._bytes += size
                    return now
                self._changed.wait(None if delay == inf else delay)

    def _end(self, began: float, size: int | None) -> None:
        self._congestion.ended(began)
        if size is not None:
            self._requests -= 1
            self._bytes -= size
        self._changed.notify_all()

    def _success(self, began: float, size: int | None) -> None:
        now = monotonic()
        waited, was_probing = self._policy.waited(now), self._congestion.is_probing
        self._congestion.answered(now, began, size)
        ends_outage = was_probing and not self._congestion.is_probing
        self._policy.succeeded(now, ends_outage=ends_outage)
        if self._has_warned:
            self._has_warned = False
            text = "Requests to bucket %r succeed again after %d s."
            logger.info(text, self._bucket_name, round(waited))
            self._progress.waiting("")

    def _failure(
        self, error: BaseException, began: float, size: int | None
    ) -> Transient | None:
        """Note an `error`; return the reason to send its request again, if any."""
        with self._changed:
            self._end(began, size)
            transient, now = transient_of(error), monotonic()
            if transient is None and isinstance(error, ClientError):
                self._success(began, size)  # The server has responded.
            elif transient is not None and transient.throttled:
                self._congestion.throttled(now, began, transient.retry_after)
            elif transient is not None:
                timed_out, after = transient.timed_out, transient.retry_after
                self._congestion.failed(now, began, timed_out=timed_out, after=after)
        return transient if self.retries else None

    def _retry_or_raise(
        self, error: Any, began: float, attempts: Attempts, transient: Transient
    ) -> None:
        """Raise an error, or return if the request is to be sent again."""
        now = monotonic()
        with self._changed:
            decision = self._policy.failed(now, began, attempts, transient.retry_after)
            waited, timeout = self._policy.waited(now), self._policy.timeout
            is_long = waited >= _SHORT_OUTAGE or transient.timed_out
            warns = self._congestion.is_probing and is_long and not self._has_warned
            self._has_warned |= warns
        if warns:
            reason = short_reason(error)
            text = "No request to bucket %r succeeds (%s); retrying for up to %d s."
            logger.warning(text, self._bucket_name, reason, round(timeout))
            self._progress.waiting(reason)
        if decision is RetryDecision.RAISE:
            raise error
        if decision is RetryDecision.STOP:
            ended = OutageError(error=error, seconds=round(waited))
            ended.__cause__ = error
            self.stop(ended)
            raise ended
