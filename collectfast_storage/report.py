"""What a run did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did.

    `uploaded`, `unchanged` and `deleted` are names, sorted; `unchanged` those that were
    saved and that the bucket held already. `bytes` were uploaded, in `seconds` from the
    first to the last; `requests` is how many of each kind (``LIST``, ``PUT``, …) that
    took, without what boto3 itself repeats.
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
