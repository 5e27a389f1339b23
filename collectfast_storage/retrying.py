"""Requests of one run: when each is sent, and sent again after a transient error."""

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

# The seconds of waiting before a warning is logged.
_SILENCE = 1.0
# The pause before a single request is sent again while others succeed, in seconds.
_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class RetryingSender:
    """Sends requests to one bucket when the congestion allows it.

    A request that meets a transient error is sent again, until no request has succeeded
    for the time that `RetryPolicy` allows.
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
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # One waits to start, and all others for it.
        self._requests = self._bytes = 0  # under way, of those that have a size
        self._has_warned = False  # since the last success
        self._over = threading.Event()
        self._given_up: Exception | None = None

    def send(self, call: Callable[[], _T], size: int | None = None) -> _T:
        """Return the result of `call`, which sends one request of `size` bytes.

        The `size` is `None` for requests that have no part in the congestion window.
        """
        alone, pause = Attempts(), _PAUSE
        while True:
            began = self._begin(size)
            try:
                result = call()
            except BaseException as error:
                transient = self._failure(error, began, size)
                if transient is None:
                    raise
                is_alone = not self._congestion.is_probing
                if is_alone:
                    alone.add(monotonic())
                else:
                    alone.forget()
                self._retry_or_raise(error, began, alone, transient)
            else:
                with self._changed:
                    self._end(began, size)
                    self._success(began, size)
                return result
            if is_alone:
                self._over.wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    def check(self) -> None:
        """Raise if `stop` was called."""
        if self._over.is_set():
            raise self._given_up or CancelledError

    def stop(self, error: Exception | None = None) -> None:
        """Send no more; what was not sent fails of the `error`, if there is one."""
        self._given_up = self._given_up or error
        self._over.set()
        with self._changed:
            self._changed.notify_all()

    def _begin(self, size: int | None) -> float:
        """Return the time when a request of `size` bytes may start, after that."""
        with self._turn, self._changed:
            while not self._over.is_set():
                now = monotonic()
                delay = self._congestion.delay(now, size, self._requests, self._bytes)
                if delay <= 0:
                    self._congestion.started(now)
                    if size is not None:
                        self._requests += 1
                        self._bytes += size
                    return now
                self._changed.wait(None if delay == inf else delay)
        raise self._given_up or CancelledError

    def _end(self, began: float, size: int | None) -> None:
        self._congestion.ended(began)
        if size is not None:
            self._requests -= 1
            self._bytes -= size
        self._changed.notify_all()

    def _success(self, began: float, size: int | None) -> None:
        with self._changed:
            now = monotonic()
            waited, was_probing = self._policy.waited(now), self._congestion.is_probing
            self._congestion.answered(now, began, size)
            ends_outage = was_probing and not self._congestion.is_probing
            self._policy.succeeded(now, ends_outage=ends_outage)
            had_warned, self._has_warned = self._has_warned, False
        if had_warned:
            text = "The bucket %r answers again, after %d s."
            logger.info(text, self._bucket_name, round(waited))
            self._progress.waiting("")

    def _failure(
        self, error: BaseException, began: float, size: int | None
    ) -> Transient | None:
        """Note an `error`; return why its request is to be sent again, if it is."""
        with self._changed:
            self._end(began, size)  # Whatever the error is, others may go on.
            transient, now = transient_of(error), monotonic()
            if transient is None and isinstance(error, ClientError):
                self._success(began, size)  # It is an answer.
            elif transient is not None and transient.throttled:
                self._congestion.throttled(now, began, transient.after)
            elif transient is not None:
                timed_out, after = transient.timed_out, transient.after
                self._congestion.failed(now, began, timed_out=timed_out, after=after)
        return transient if self.retries else None

    def _retry_or_raise(
        self, error: Any, began: float, alone: Attempts, transient: Transient
    ) -> None:
        """Raise `error` if its request, which `began` then, is not to be sent again."""
        now = monotonic()
        with self._changed:
            following = self._policy.failed(now, began, alone, transient.after)
            waited, timeout = self._policy.waited(now), self._policy.timeout
            is_long = waited >= _SILENCE or transient.timed_out
            warns = self._congestion.is_probing and is_long and not self._has_warned
            self._has_warned |= warns
        if warns:
            reason = short_reason(error)
            text = "The bucket %r does not answer (%s); retrying for up to %d s."
            logger.warning(text, self._bucket_name, reason, round(timeout))
            self._progress.waiting(reason)
        if following is RetryDecision.RAISE:
            raise error
        if following is RetryDecision.STOP:
            ended = OutageError(what=error, seconds=round(waited))
            ended.__cause__ = error
            self.stop(ended)
            raise ended
