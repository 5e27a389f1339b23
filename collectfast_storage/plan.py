"""What a run is to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done: by a command that collects, or by a program's batch."""

    collects: bool = True
    dry_run: bool = False
    clear: bool = False
    barrier: bool = True  # whether something comes after the last save
    as_is: bool = True  # whether what is saved is what the source has
    overwrites: bool = True  # whether a save replaces what has its name
