"""What a run did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did: names, sorted; bytes uploaded; seconds from first to last.

    `unchanged` are the names that were saved and that the bucket held already.
    """

    uploaded: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float = 0.0


class Batch:
    """What ``with storage.batch() as batch:`` gives; `report` is there after it."""

    report = Report()
