"""A file that changes while it is read."""

from __future__ import annotations

from collections.abc import Callable
from io import SEEK_END, SEEK_SET, RawIOBase


class Changing(RawIOBase):
    """A file that replaces its contents by those that `next_state` returns."""

    def __init__(self, next_state: Callable[[], bytes], *, each_read: bool) -> None:
        """Call `next_state` on each read, or only on a read from the beginning."""
        self._next_state = next_state
        self._each_read = each_read
        self._position = 0
        self._state = next_state()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        start = {SEEK_SET: 0, SEEK_END: len(self._state)}
        self._position = start.get(whence, self._position) + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        if size and (self._each_read or self._position == 0):
            self._state = self._next_state()
        # The file is returned in small pieces so that it can change between them.
        piece = max(5000, len(self._state) // 8)
        end = self._position + (min(size, piece) if size >= 0 else piece)
        chunk = self._state[self._position : end]
        self._position += len(chunk)
        return chunk
