"""What a run tells: what it did, and what it shows while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.contrib.staticfiles.management.commands.collectstatic import Command

    from collectfast_storage.decision import Verdict


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did.

    `uploaded`, `unchanged` and `deleted` are names, sorted; `unchanged` those that were
    saved and that the bucket held already. `bytes` were uploaded, in `seconds` from the
    first to the last; `requests` is how many of each kind (``LIST``, ``PUT``, …) were
    sent for that, those that were sent again among them.
    """

    uploaded: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float = 0.0
    requests: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return it as one line of a log."""
        files = len(self.uploaded) + len(self.unchanged)
        requests = [
            f"{count:,} {kind}" for kind, count in sorted(self.requests.items())
        ]
        return (
            f"{files:,} files: {len(self.unchanged):,} unchanged, "
            f"{len(self.uploaded):,} uploaded ({self.bytes / 1000:,.0f} kB), "
            f"{len(self.deleted):,} deleted; {', '.join(requests) or 'no requests'}; "
            f"{self.seconds:.1f} s"
        )


class Batch:
    """What ``with storage.batch() as batch:`` gives; `report` is there after it."""

    report = Report()


class Progress:
    """Shows nothing; the others say what they show."""

    def start(self, files: int) -> None:
        """Show that so many `files` are to be done."""

    def decided(self, name: str, verdict: Verdict) -> None:
        """Show why the file `name` is uploaded."""

    def advanced(self, files: int, uploaded: int) -> None:
        """Show that so many `files` more are done, and bytes `uploaded` in all."""

    def close(self) -> None:
        """Show no more."""


class Lines(Progress):
    """A line a file that is uploaded, with the reason, in the command's own output."""

    def __init__(self, command: Command) -> None:
        self._command = command

    def decided(self, name: str, verdict: Verdict) -> None:
        """Log it as collectstatic logs what it copies."""
        self._command.log(f"Uploading '{name}' ({verdict.value})", level=2)


class Bar(Progress):
    """A bar on the terminal, with files and bytes."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._make: Any = tqdm
        self._bar: Any = None

    def start(self, files: int) -> None:
        """Draw it."""
        self._bar = self._make(total=files, unit=" files", dynamic_ncols=True)

    def advanced(self, files: int, uploaded: int) -> None:
        """Move it; tqdm sees to it that this is cheap."""
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"{uploaded / 1e6:,.1f} MB uploaded", refresh=False
            )
            self._bar.update(files)

    def close(self) -> None:
        """Leave it as it is."""
        if self._bar is not None:
            self._bar.close()


def progress_of(command: Command) -> Progress:
    """Return what suits `command`: its ``--verbosity``, and a terminal or none."""
    verbosity: int = getattr(command, "verbosity", 1)
    if verbosity > 1:
        return Lines(command)
    if verbosity == 1 and sys.stderr.isatty() and find_spec("tqdm") is not None:
        return Bar()
    return Progress()
