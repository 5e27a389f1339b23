"""The benchmark of this package and other tools, in one run on this machine.

Run it with ``make bench``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import botocore

from tests.benchmark import tree
from tests.benchmark.contestants import CONTESTANTS, KEYS, SUBSETS, Contestant, Course
from tests.support import certificates
from tests.support.daemons import end

# The modules that Python would otherwise compile when they are first imported.
COMPILE = (
    "import compileall, sys; [compileall.compile_dir(p, quiet=2) for p in sys.path]"
)
STEPS: dict[str, Callable[[Path], object]] = {
    "first deploy": lambda static: None,
    "unchanged": lambda static: None,
    "unchanged, new mtimes": tree.touch,
    "one file changed": tree.change_one,
}
WRITES = ("PUT", "LIST", "HEAD", "GET", "DELETE", "DELETE MANY")


@dataclass(frozen=True)
class Sample:
    """The measurements of one deploy: seconds, MiB, and requests by kind."""

    wall: float
    cpu: float
    memory: float
    requests: dict[str, int]

    def times(self, factor: float) -> Sample:
        requests = {kind: round(n * factor) for kind, n in self.requests.items()}
        return Sample(self.wall * factor, self.cpu * factor, self.memory, requests)


Samples = dict[tuple[str, str], list[Sample]]


def main() -> None:
    arguments = _arguments()
    samples: Samples = {}
    with tempfile.TemporaryDirectory(prefix="collectfast-bench-") as directory:
        static = Path(directory) / "static"
        count = tree.build(static, arguments.size)
        size = sum(p.stat().st_size for p in static.rglob("*") if p.is_file()) / 2**20
        authorities, own = make_certificates(Path(directory))
        names = arguments.only or list(CONTESTANTS)
        compile_for(names)
        with endpoint(own, arguments.round_trip) as url:
            for number in range(arguments.repeat):
                for name in names:
                    folder = Path(directory) / "run"
                    course = Course(
                        folder / "static", folder, url, "bench", authorities
                    )
                    for step, sample in deploys(name, course, static, arguments.steps):
                        samples.setdefault((name, step), []).append(sample)
                        print(f"{number + 1}. {name}, {step}: {sample.wall:.2f} s")
    title = (
        f"{count:,} files, {size:.0f} MiB, "
        f"TLS, round trip {arguments.round_trip * 1000:.0f} ms, "
        f"{os.cpu_count()} cores ({platform.machine()}), "
        f"CPython {platform.python_version()}; medians of {arguments.repeat}"
    )
    print(f"\n{title}\n\n{table(samples)}\n\n{ratios(samples)}")
    if arguments.chart:
        from tests.benchmark.chart import draw

        draw(arguments.chart, title, _medians(samples))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2500, help="files")
    parser.add_argument("--round-trip", type=float, default=0.02, help="seconds")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each")
    parser.add_argument("--only", nargs="*", choices=CONTESTANTS, help="contestants")
    parser.add_argument("--steps", nargs="*", choices=STEPS, help="besides the first")
    parser.add_argument("--chart", type=Path, help="an SVG to write")
    return parser.parse_args()


def make_certificates(directory: Path) -> tuple[Path, Path]:
    """Return a file of CAs and a file with a server's certificate and key.

    The first file includes boto3's own CAs so that it is as long as usual, because
    boto3 reads it for each connection.
    """
    authorities, own = certificates.make(directory)
    with authorities.open("ab") as file:
        file.write(Path(botocore.__file__).with_name("cacert.pem").read_bytes())
    return authorities, own


def environment_of(contestant: Contestant, course: Course) -> dict[str, str]:
    """Return the environment variables for the commands of `contestant`.

    They include keys and CAs, and do not prevent that Python writes bytecode.
    """
    environment = os.environ | KEYS | course.trust | contestant.environment(course)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


@contextmanager
def endpoint(own: Path, round_trip: float, *limits: str) -> Iterator[str]:
    """Run the endpoint in another process until the block ends."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.benchmark.endpoint",
            str(own),
            f"--round-trip={round_trip}",
            *limits,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        end(process)
        process.stdout.close()


def compile_for(names: Sequence[str]) -> None:
    """Compile all modules that the Pythons of these contestants may import."""
    environment = {**os.environ}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    pythons = {getattr(CONTESTANTS[n], "python", sys.executable) for n in names}
    for python in pythons | {sys.executable}:
        subprocess.run([python, "-c", COMPILE], env=environment, check=True)


def deploys(
    name: str, course: Course, static: Path, steps: Sequence[str] | None = None
) -> Iterator[tuple[str, Sample]]:
    """Run the `steps` of one contestant with a copy of `static` and an empty bucket.

    All steps are run by default, and the first deploy is always run.
    """
    course.folder.mkdir()
    factor = 1.0
    shutil.copytree(static, course.static)
    if name in SUBSETS:
        factor = _reduce(course.static, SUBSETS[name])
    try:
        for step, prepare in STEPS.items():
            if steps and step not in ("first deploy", *steps):
                continue
            prepare(course.static)
            about(course, "reset")
            yield step, measure(CONTESTANTS[name], course).times(factor)
    finally:
        about(course, "drop")
        shutil.rmtree(course.folder)


def _reduce(static: Path, size: int) -> float:
    files = sorted(path for path in static.rglob("*") if path.is_file())
    for path in files[size:]:
        path.unlink()
    return max(len(files) / size, 1)


def measure(contestant: Contestant, course: Course) -> Sample:
    """Run the commands of one deploy, each in its own process."""
    environment = environment_of(contestant, course)
    wall = cpu = memory = 0.0
    for command in contestant.commands(course):
        start = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        errors = process.stderr.read()
        process.stderr.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall += time.perf_counter() - start
        cpu += usage.ru_utime + usage.ru_stime
        memory = max(memory, _mebibytes(usage))
        if process.returncode:
            sys.exit(f"{command} failed:\n{errors.decode()}")
    counts = json.loads(about(course, "counts"))
    return Sample(wall, cpu, memory, counts)


def _mebibytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def about(course: Course, command: str) -> bytes:
    """Send "counts", "reset" or "drop" to the endpoint, and return its response."""
    context = ssl.create_default_context(cafile=course.authorities)
    url = f"{course.endpoint}/-/{command}"
    with urllib.request.urlopen(url, context=context) as response:
        answer: bytes = response.read()
    return answer


def _medians(samples: Samples) -> dict[tuple[str, str], float]:
    return {
        key: statistics.median(sample.wall for sample in each)
        for key, each in samples.items()
    }


def table(samples: Samples) -> str:
    """Return a Markdown table with a row for each contestant and step."""
    lines = [
        "| | | wall | CPU | peak RSS | requests |",
        "|---|---|---:|---:|---:|---|",
    ]
    for (name, step), each in samples.items():
        median = [
            statistics.median(getattr(sample, figure) for sample in each)
            for figure in ("wall", "cpu", "memory")
        ]
        counts = each[-1].requests
        kinds = [f"{counts[kind]:,} {kind}" for kind in WRITES if counts.get(kind)]
        about = "~" if name in SUBSETS else ""
        lines.append(
            f"| {name} | {step} | {about}{median[0]:.2f} s | {about}{median[1]:.2f} s "
            f"| {median[2]:.0f} MiB | {about}{', '.join(kinds)} |"
        )
    return "\n".join(lines)


def ratios(samples: Samples) -> str:
    """Return a table of the ratios of this package's times to those of others.

    Each is the median of the ratios of all runs.
    """
    names = list(dict.fromkeys(name for name, _ in samples))
    steps = list(dict.fromkeys(step for _, step in samples))
    lines = [f"| ratios of wall time, processor time | {' | '.join(steps)} |"]
    lines.append("|---|" + "---:|" * len(steps))
    for ours in names:
        for other in names:
            are_alike = ours.startswith("manifest") == other.startswith("manifest")
            if are_alike and "collectfast-" in ours and "collectfast-" not in other:
                cells = [_ratio(samples[ours, s], samples[other, s]) for s in steps]
                lines.append(f"| {ours} / {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(ours: list[Sample], others: list[Sample]) -> str:
    pairs = list(zip(ours, others, strict=True))
    wall = statistics.median(a.wall / b.wall for a, b in pairs)
    cpu = statistics.median(a.cpu / b.cpu for a, b in pairs)
    return f"{wall:.2f}, {cpu:.2f}"


if __name__ == "__main__":
    main()
