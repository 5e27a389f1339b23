"""Rate limits, slow connections, resets and outages of the benchmark's endpoint."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from math import inf


@dataclass
class Limits:
    """The limits of one endpoint, for all of its connections together."""

    puts: int = 0  # PUT requests that are accepted per second; 0 for all
    status: int = 503  # the response to other PUT requests
    bandwidth: float = 0.0  # bytes per second that are received; 0 for no limit
    reset_every: int = 0  # Each nth connection is reset at its first PUT; 0 for none.
    outage: str = ""  # "refused", "reset", or a status
    outage_after: int = 60  # the number of PUTs before the outage
    outage_seconds: float = 20.0
    began: float = inf  # the time at which the outage began
    received: int = 0  # bytes
    _puts: int = 0
    _taken: deque[float] = field(default_factory=deque)
    _connections: int = 0
    _free_at: float = 0.0

    def takes_put(self) -> bool:
        """Return whether one more PUT is within the limit."""
        now = time.monotonic()
        while self._taken and self._taken[0] < now - 1:
            self._taken.popleft()
        if self.puts and len(self._taken) >= self.puts:
            return False
        self._taken.append(now)
        return True

    @property
    def is_out(self) -> bool:
        """Whether there is an outage now."""
        return 0 <= time.monotonic() - self.began < self.outage_seconds

    def count_put(self) -> None:
        """Count a PUT, and begin the outage after `outage_after` of them."""
        self._puts += 1
        if self.outage and self._puts == self.outage_after:
            self.began = time.monotonic()

    def resets(self) -> bool:
        """Return whether a new connection has to be reset."""
        self._connections += 1
        return bool(self.reset_every) and self._connections % self.reset_every == 0

    def receive(self, transport: asyncio.Transport, size: int) -> None:
        """Count bytes, and stop reading for the time that the bandwidth requires."""
        self.received += size
        if self.bandwidth:
            loop = asyncio.get_running_loop()
            self._free_at = max(self._free_at, loop.time()) + size / self.bandwidth
            transport.pause_reading()
            loop.call_at(self._free_at, _read_on, transport)


def _read_on(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.resume_reading()
