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

    `uploaded`, `unchanged` (the bucket held it already) and `deleted` are sorted names.
    `bytes` were uploaded, in `seconds` from the first save to the end; `requests` says
    how many of each kind (``LIST``, …) were sent, those that were sent again included.
    """

    uploaded: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float = 0.0
    requests: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        files = len(self.uploaded) + len(self.unchanged)
        requests = [f"{n:,} {kind}" for kind, n in sorted(self.requests.items())]
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
    """Shows each upload in `command`'s output, a bar of `tqdm`, or nothing."""

    def __init__(self, command: Command | None = None, tqdm: Any = None) -> None:
        self._command, self._tqdm = command, tqdm
        self._bar: Any = None

    def start(self, files: int) -> None:
        """Show that so many `files` are to be done."""
        if self._tqdm is not None:
            self._bar = self._tqdm(total=files, unit=" files", dynamic_ncols=True)

    def decided(self, name: str, verdict: Verdict) -> None:
        """Show why the file `name` is uploaded."""
        if self._command is not None:
            self._command.log(f"Uploading '{name}' ({verdict.value})", level=2)

    def advanced(self, files: int, uploaded: int) -> None:
        """Show that so many `files` more are done, and bytes `uploaded` in all."""
        if self._bar is not None:
            text = f"{uploaded / 1e6:,.1f} MB uploaded"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(files)

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
