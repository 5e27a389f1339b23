"""A file whose contents change while it is read."""

from __future__ import annotations

from collections.abc import Callable
from io import SEEK_END, SEEK_SET, RawIOBase


class Changing(RawIOBase):
    """A file that is in another of its states whenever `next_state` is asked."""

    def __init__(self, next_state: Callable[[], bytes], *, each_read: bool) -> None:
        """Ask each time that it is read, or only if it is read from its beginning."""
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
        # Little by little, that there be something to happen in between.
        piece = max(5000, len(self._state) // 8)
        end = self._position + (min(size, piece) if size >= 0 else piece)
        chunk = self._state[self._position : end]
        self._position += len(chunk)
        return chunk
