"""The batch of a program: many saves and deletes, carried out as in a collectstatic."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from collectfast_storage import runs
from collectfast_storage.reporting import Report
from collectfast_storage.run import Run

logger = logging.getLogger("collectfast_storage")


class Batch:
    """Saves and deletes that are carried out together.

    Uploads run in the background, and deletes wait for the end of the block. Calls of
    the storage's own methods do not affect the batch, and the batch does not affect
    their results. Any thread may use it. After the block, `report` has the results.
    """

    report = Report()

    def __init__(self, storage: Any, run: Run | None) -> None:
        """Batch calls of `storage` in `run`; without a run, they are not batched."""
        self._storage, self._run = storage, run
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._names: set[str] = set()  # their cache entries are invalidated at the end
        self._is_over = False

    def save(self, name: str, content: Any, max_length: int | None = None) -> str:
        """Save `content`, as the storage's `save` does, and return the name.

        Failures are raised at the end of the block, by an `UploadError` that names each
        file. Raises RuntimeError after the block, and in a forked process.
        """
        with self._calling(name):
            saved: str = self._storage.save(name, content, max_length)
        self._names.add(saved)
        return saved

    def delete(self, name: str) -> None:
        """Delete `name` at the end of the block, if all saves have arrived.

        If `name` is saved again, it is not deleted. Raises RuntimeError after the
        block, and in a forked process.
        """
        with self._calling(name):
            self._storage.delete(name)

    def answering(self) -> AbstractContextManager[None]:
        """Let the batch answer all calls of the storage in this context."""
        return runs.answering(self._storage, self._run)

    @contextmanager
    def _calling(self, name: str) -> Iterator[None]:
        if self._is_over or self._pid != os.getpid():
            reason = "has ended" if self._is_over else "belongs to another process"
            raise RuntimeError(f"{name!r} cannot be changed in a batch that {reason}.")
        with self._lock, self.answering():
            self._storage._collectfast_invalidate(name)
            self._names.add(name)
            yield

    @contextmanager
    def carried_out(self) -> Iterator[None]:
        """Carry out the batch at the end of this context."""
        run = self._run
        try:
            yield
            if run is not None and self._pid == os.getpid():
                with self._lock:
                    self.report = run.finish()
                logger.info("%s", self.report)
        except (KeyboardInterrupt, SystemExit):
            if run is not None:
                run.close(wait=False)
            raise
        finally:
            self._is_over = True
            if run is not None:
                run.close()
            for name in [*self._names]:
                self._storage._collectfast_invalidate(name)
