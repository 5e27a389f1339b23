"""The report of a run, and its output while it is running."""

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

    `uploaded`, `unchanged` (not uploaded), `deleted` and `kept` (by ``--clear``) are
    names. `bytes` is the size of the uploads, and `seconds` the time from the first
    call to the end. `requests` maps kinds such as ``LIST`` to the number of requests,
    retries included.
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
    """The results of a run that is not complete."""

    def __init__(self) -> None:
        # Dicts need a third of the memory of sets, and are ordered.
        self.uploaded: dict[str, None] = {}
        self.unchanged: dict[str, None] = {}
        self.deleted: list[str] = []
        self.kept: set[str] = set()
        self.bytes = 0
        self._start = monotonic()

    def report(self, requests: Mapping[str, int]) -> Report:
        """Return a report of the results and of the `requests`."""
        unchanged = self.unchanged.keys() - self.uploaded.keys()
        return Report(
            uploaded=tuple(sorted(self.uploaded)),
            unchanged=tuple(sorted(unchanged)),
            deleted=tuple(sorted(self.deleted)),
            kept=tuple(sorted(self.kept)),
            bytes=self.bytes,
            seconds=monotonic() - self._start,
            requests=dict(requests),
        )


class Progress:
    """The output for uploads: lines of `command`, a progress bar of `tqdm`, or none."""

    def __init__(self, command: Command | None = None, tqdm: Any = None) -> None:
        self._command, self._tqdm = command, tqdm
        self._bar: Any = None

    def start(self, files: int) -> None:
        """Show a progress bar for this number of `files`."""
        if self._tqdm is not None:
            self._bar = self._tqdm(total=files, unit=" files", dynamic_ncols=True)

    def decided(self, name: str, reason: str) -> None:
        """Show why the file `name` is uploaded, or would be without ``--dry-run``."""
        if self._command is not None:
            verb = "Pretending to upload" if self._command.dry_run else "Uploading"
            text = f"{verb} '{printable(name)}' ({printable(reason)})"
            self._command.log(text, level=2)

    def advanced(self, files: int, uploaded: int) -> None:
        """Show that this number of `files` is done, and all bytes `uploaded`."""
        if self._bar is not None:
            text = f"{uploaded / 1e6:,.1f} MB uploaded"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(files)

    def waiting(self, reason: str) -> None:
        """Show the `reason` why no request succeeds; empty: requests succeed again."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"waiting: {reason}" if reason else "")

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.close()


def progress_of(command: Command) -> Progress:
    """Return the output for the ``--verbosity`` and the terminal of `command`."""
    verbosity: int = getattr(command, "verbosity", 1)
    if verbosity > 1:
        return Progress(command)
    if verbosity == 1 and sys.stderr.isatty() and find_spec("tqdm") is not None:
        from tqdm import tqdm

        return Progress(tqdm=tqdm)
    return Progress()
