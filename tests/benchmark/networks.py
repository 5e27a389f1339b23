"""The benchmark with rate limits, slow connections, resets and outages.

Run it with ``make bench NETWORKS=1``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmark.__main__ import (
    about,
    endpoint,
    environment_of,
    make_certificates,
)
from tests.benchmark.contestants import CONTESTANTS, Contestant, Course, Sync, tool


@dataclass(frozen=True)
class Situation:
    """An endpoint with limits, and the files that are uploaded to it."""

    files: int
    size: int  # of each file in bytes
    limits: tuple[str, ...] = ()
    round_trip: float = 0.02
    least: float = 0.0  # the shortest time in seconds that the limits allow


SITUATIONS = {
    "300 PUT/s, then 503": Situation(2500, 9000, ("--puts=300",), least=2500 / 300),
    "300 PUT/s, then 429": Situation(
        2500, 9000, ("--puts=300", "--status=429"), least=2500 / 300
    ),
    "50 PUT/s, then 503": Situation(600, 9000, ("--puts=50",), least=600 / 50),
    "600 kB/s, 80 files of 1 MB": Situation(
        80, 1_000_000, ("--bandwidth=600000",), least=80 / 0.6
    ),
    "round trip 100 ms": Situation(2500, 9000, (), 0.1, 2500 / 64 * 0.1),
    "every tenth connection reset": Situation(2500, 9000, ("--reset-every=10",)),
    # An outage begins after 60 files. Failures of DNS are not simulated, because the
    # endpoint's address is a number.
    **{
        f"outage of 20 s: {state}": Situation(300, 9000, (f"--outage={state}",))
        for state in ("refused", "reset", "503", "500")
    },
}
OTHERS = {
    # It has its default options, because those of `make bench` suit servers without
    # limits.
    "rclone sync": Sync(
        (
            *(tool("rclone"), "sync", "--s3-no-check-bucket", "--quiet"),
            *("{source}", "s3:{bucket}/static"),
        )
    ),
    "s5cmd sync": CONTESTANTS["s5cmd sync"],
    "django-storages": CONTESTANTS["django-storages"],
}
OURS = ("collectfast-storage", "collectfast-storage[obstore]")
COMPARED = {name: CONTESTANTS[name] for name in OURS} | OTHERS


def main() -> None:
    arguments = _arguments()
    print("| situation | tool | exit | arrived | wall | ÷ least | PUTs | bytes |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for situation in arguments.situations or SITUATIONS:
        for tool_name in arguments.only or COMPARED:
            cells = " | ".join(_measured(SITUATIONS[situation], tool_name))
            print(f"| {situation} | {tool_name} | {cells} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--situations", nargs="*", choices=SITUATIONS)
    parser.add_argument("--only", nargs="*", choices=COMPARED, help="contestants")
    return parser.parse_args()


def _measured(situation: Situation, tool_name: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="collectfast-networks-") as directory:
        folder = Path(directory)
        static = folder / "static"
        static.mkdir()
        for number in range(situation.files):
            (static / f"{number}.bin").write_bytes(os.urandom(situation.size))
        authorities, own = make_certificates(folder)
        with endpoint(own, situation.round_trip, *situation.limits) as url:
            course = Course(static, folder, url, "bench", authorities)
            yield from _cells(situation, COMPARED[tool_name], course)


def _cells(
    situation: Situation, contestant: Contestant, course: Course
) -> Iterator[str]:
    environment = environment_of(contestant, course)
    about(course, "reset")
    start = time.perf_counter()
    for command in contestant.commands(course):
        done = subprocess.run(
            command, env=environment, capture_output=True, check=False
        )
    wall = time.perf_counter() - start
    counts = json.loads(_counts(course))
    yield str(done.returncode)
    yield f"{counts['objects']:,}"
    yield f"{wall:.1f} s"
    yield f"{wall / situation.least:.2f}" if situation.least else ""
    yield f"{sum(n for kind, n in counts.items() if kind == 'PUT'):,}"
    total = situation.files * situation.size
    yield f"{100 * (counts['bytes'] / total - 1):+.0f} %"
    if done.returncode:
        print(done.stderr.decode()[-2000:], file=sys.stderr)


def _counts(course: Course) -> bytes:
    """Return the counts; repeat the request in an outage."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return about(course, "counts")
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    main()
