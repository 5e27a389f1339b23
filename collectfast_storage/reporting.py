"""What a run tells: what it did, and what it shows while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from botocore.utils import parse_to_aware_datetime

from collectfast_storage.fingerprint import FINGERPRINT

if TYPE_CHECKING:
    from django.contrib.staticfiles.management.commands.collectstatic import Command

# What a HEAD tells of an object as it was sent, or tells not as it is not there.
_HEADERS = {"CacheControl", "ContentType", "Expires", "WebsiteRedirectLocation"}
_HEADERS |= {f"Content{kind}" for kind in ("Disposition", "Encoding", "Language")}


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did.

    `uploaded`, `unchanged` (they were there), `deleted`, `spared` by clearing: names.
    `bytes` were uploaded, in `seconds` from the first save to the end; `requests` says
    how many of each kind (``LIST``, …) were sent, those that were sent again included.
    """

    uploaded: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    spared: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float = 0.0
    requests: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        files = len(self.uploaded) + len(self.unchanged)
        requests = [f"{n:,} {kind}" for kind, n in sorted(self.requests.items())]
        spared = f", {len(self.spared):,} spared" if self.spared else ""
        return (
            f"{files:,} files: {len(self.unchanged):,} unchanged, "
            f"{len(self.uploaded):,} uploaded ({self.bytes / 1000:,.0f} kB), "
            f"{len(self.deleted):,} deleted{spared}; "
            f"{', '.join(requests) or 'no requests'}; {self.seconds:.1f} s"
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

    def decided(self, name: str, reason: str) -> None:
        """Show why the file `name` is uploaded."""
        if self._command is not None:
            self._command.log(f"Uploading '{name}' ({reason})", level=2)

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


def difference(there: Mapping[str, Any], sent: Mapping[str, Any]) -> str:
    """Say which headers of an object are not those `sent`; empty if no HEAD tells."""
    before, after = _flat(there), _flat(sent)
    metadata = {n for n in before.keys() | after.keys() if n.startswith("Metadata ")}
    names = sorted(_HEADERS | metadata | (before.keys() & after.keys()))
    pairs = [(name, before.get(name), after.get(name)) for name in names]
    return ", ".join(f"{n} was {b}, and is {a}" for n, b, a in pairs if a != b)


def _flat(headers: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value or None for name, value in headers.items()}
    with suppress(KeyError, ValueError):  # A time in any form.
        flat["Expires"] = parse_to_aware_datetime(headers["Expires"])
    metadata = {k.lower(): v for k, v in (flat.pop("Metadata", None) or {}).items()}
    metadata.pop(FINGERPRINT, None)
    return flat | {f"Metadata {k}": v for k, v in metadata.items()}
