"""What is between a client and the endpoint: limits, a slow line, resets, outages."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from math import inf


@dataclass
class Limits:
    """Those of one endpoint, for all its connections together."""

    puts: int = 0  # that it takes in any second; 0: all
    status: int = 503  # what it answers to the others
    bandwidth: float = 0.0  # bytes a second that reach it; 0: no bound
    reset_every: int = 0  # which of the connections are reset at their first PUT
    outage: str = ""  # "refused", "reset", or a status
    outage_after: int = 60  # PUTs
    outage_seconds: float = 20.0
    began: float = inf  # when the outage began
    received: int = 0  # bytes
    _puts: int = 0
    _taken: deque[float] = field(default_factory=deque)
    _connections: int = 0
    _free_at: float = 0.0

    def takes_put(self) -> bool:
        """Tell whether one more PUT is within the limit."""
        now = time.monotonic()
        while self._taken and self._taken[0] < now - 1:
            self._taken.popleft()
        if self.puts and len(self._taken) >= self.puts:
            return False
        self._taken.append(now)
        return True

    @property
    def is_out(self) -> bool:
        """Whether the outage is on."""
        return 0 <= time.monotonic() - self.began < self.outage_seconds

    def count_put(self) -> None:
        """Count a PUT; one of them begins the outage."""
        self._puts += 1
        if self.outage and self._puts == self.outage_after:
            self.began = time.monotonic()

    def resets(self) -> bool:
        """Tell whether a new connection is one of those to be reset."""
        self._connections += 1
        return bool(self.reset_every) and self._connections % self.reset_every == 0

    def receive(self, transport: asyncio.Transport, size: int) -> None:
        """Count bytes, and read on when the line has carried them."""
        self.received += size
        if self.bandwidth:
            loop = asyncio.get_running_loop()
            self._free_at = max(self._free_at, loop.time()) + size / self.bandwidth
            transport.pause_reading()
            loop.call_at(self._free_at, _read_on, transport)


def _read_on(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.resume_reading()
