"""Combinations of parameters: as few as cover all pairs of values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import combinations

Row = Sequence[Hashable]


def covering(rows: Sequence[Row]) -> list[int]:
    """Return the positions of `rows` that together have all that two values may do.

    With three parameters or more, these rows have each pair of values that is in
    `rows`; with two parameters, each value.
    """
    columns = {tuple(column) for column in zip(*rows, strict=True)}
    varying = [column for column in columns if len({*column}) > 1]
    varying.sort(key=str)  # in an order that does not depend on hashes
    strength = min(max(len(varying) - 1, 1), 2)
    places = list(combinations(range(len(varying)), strength))
    parts = [
        {(place, *(varying[each][number] for each in place)) for place in places}
        for number in range(len(rows))
    ]
    missing = set().union(*parts)
    used: Counter[Hashable] = Counter()  # how often each value is in a chosen row
    chosen = []
    while missing:
        values = [[*enumerate(c[n] for c in varying)] for n in range(len(rows))]
        best = max(
            range(len(rows)),
            key=lambda n: (len(parts[n] & missing), -sum(used[v] for v in values[n])),
        )
        chosen.append(best)
        missing -= parts[best]
        used.update(values[best])
    return sorted(chosen) or list(range(len(rows)))
