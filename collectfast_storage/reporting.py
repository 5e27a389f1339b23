"""The report of a run, and the output while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING, Any

from collectfast_storage.exceptions import printable

if TYPE_CHECKING:
    from django.contrib.staticfiles.management.commands.collectstatic import Command


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a run.

    `uploaded`, `unchanged` (not uploaded again), `deleted`, and `kept` by ``--clear``
    are names. `bytes` were uploaded, in `seconds` from the first save to the end.
    `requests` has the number of requests of each kind (``LIST``, …), with retries.
    """

    uploaded: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float = 0.0
    requests: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        files = len(self.uploaded) + len(self.unchanged)
        requests = [f"{n:,} {kind}" for kind, n in sorted(self.requests.items())]
        kept = f", {len(self.kept):,} kept" if self.kept else ""
        return (
            f"{files:,} files: {len(self.unchanged):,} unchanged, "
            f"{len(self.uploaded):,} uploaded ({self.bytes / 1000:,.0f} kB), "
            f"{len(self.deleted):,} deleted{kept}; "
            f"{', '.join(requests) or 'no requests'}; {self.seconds:.1f} s"
        )


class Tally:
    """Counts the results of a run, from its beginning."""

    def __init__(self) -> None:
        # Dicts take a third of the memory of sets, and keep the order.
        self.uploaded: dict[str, None] = {}
        self.unchanged: dict[str, None] = {}
        self.deleted: list[str] = []
        self.kept: set[str] = set()
        self.bytes = 0
        self._start = monotonic()

    def report(self, requests: Mapping[str, int]) -> Report:
        """Return the results so far, and the `requests` that they took."""
        unchanged = self.unchanged.keys() - self.uploaded.keys()
        groups = (self.uploaded, unchanged, self.deleted, self.kept)
        uploaded, there, deleted, kept = (tuple(sorted(names)) for names in groups)
        seconds = monotonic() - self._start
        counts = dict(requests)
        return Report(uploaded, there, deleted, kept, self.bytes, seconds, counts)


class Progress:
    """Shows each upload in `command`'s output, a bar of `tqdm`, or nothing."""

    def __init__(self, command: Command | None = None, tqdm: Any = None) -> None:
        self._command, self._tqdm = command, tqdm
        self._bar: Any = None

    def start(self, files: int) -> None:
        """Show that so many `files` are to be done."""
        if self._tqdm is not None:
            self._bar = self._tqdm(total=files, unit=" files", dynamic_ncols=True)

    def decided(self, name: str, reason: str) -> None:
        """Show why the file `name` is uploaded."""
        if self._command is not None:
            text = f"Uploading '{printable(name)}' ({printable(reason)})"
            self._command.log(text, level=2)

    def advanced(self, files: int, uploaded: int) -> None:
        """Show that so many `files` more are done, and bytes `uploaded` in all."""
        if self._bar is not None:
            text = f"{uploaded / 1e6:,.1f} MB uploaded"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(files)

    def waiting(self, reason: str) -> None:
        """Show for which `reason` no request succeeds; empty: they do again."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"waiting: {reason}" if reason else "")

    def close(self) -> None:
        """Show no more."""
        if self._bar is not None:
            self._bar.close()


def progress_of(command: Command) -> Progress:
    """Return what suits `command`: its ``--verbosity``, and a terminal or none."""
    verbosity: int = getattr(command, "verbosity", 1)
    if verbosity > 1:
        return Progress(command)
    if verbosity == 1 and sys.stderr.isatty() and find_spec("tqdm") is not None:
        from tqdm import tqdm

        return Progress(tqdm=tqdm)
    return Progress()
