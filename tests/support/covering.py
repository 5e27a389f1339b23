"""A selection of few combinations of parameters that contain all pairs of values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import combinations

Row = Sequence[Hashable]


def covering(rows: Sequence[Row]) -> list[int]:
    """Return the positions of a selection of `rows`.

    With three parameters or more, each pair of values in `rows` is in a selected row.
    With two parameters, each value is.
    """
    columns = {tuple(column) for column in zip(*rows, strict=True)}
    varying = [column for column in columns if len({*column}) > 1]
    varying.sort(key=str)  # The order of a set depends on hashes, which vary.
    strength = min(max(len(varying) - 1, 1), 2)
    places = list(combinations(range(len(varying)), strength))
    parts = [
        {(place, *(varying[each][number] for each in place)) for place in places}
        for number in range(len(rows))
    ]
    missing = set().union(*parts)
    used: Counter[Hashable] = Counter()  # how many chosen rows contain each value
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
