"""Child processes that run ``manage.py``, to be interrupted or to run in parallel."""

from __future__ import annotations

import gc
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path

from tests.support.proxy import Proxy
from tests.support.site import Site

ROOT = Path(__file__).parents[2]
MANAGE = Path(__file__).with_name("manage.py")
LONG = 60  # seconds after which a process is considered to hang


def seeded() -> tuple[int, random.Random]:
    """Return a random seed and its generator.

    Set the environment variable TEST_SEED to repeat a test with the same seed.
    """
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().getrandbits(32))
    return seed, random.Random(seed)


def environment(site: Site) -> dict[str, str]:
    """Return the environment variables with which `manage.py` is that of `site`."""
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "SITE_STATIC": str(site.static),
        "SITE_ROOT": str(site.root / "collected"),
        "SITE_BACKEND": site.backend,
        "SITE_OPTIONS": json.dumps(site.storage_options),
        "SITE_CACHES": json.dumps(site.settings.get("CACHES")),
    }


@contextmanager
def managing(
    site: Site, *arguments: str, traced: bool = True
) -> Iterator[subprocess.Popen[str]]:
    """Run ``manage.py`` with `arguments`, and kill it at the end of the block.

    A process that a test interrupts must not be `traced` by coverage, because coverage
    waits forever for its own lock if it is interrupted while it holds it.
    """
    measured = environment(site)
    untraced = {k: v for k, v in measured.items() if "COVERAGE_PROCESS" not in k}
    # If a shell runs the tests in the background, they ignore SIGINT, and their child
    # processes would inherit this.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, str(MANAGE), *arguments],
        env=measured if traced else untraced,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def deploying(
    site: Site, *arguments: str, traced: bool = True
) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run collectstatic; see `managing`."""
    return managing(site, "collectstatic", "--noinput", *arguments, traced=traced)


def deploy(site: Site, *arguments: str) -> tuple[int, str]:
    """Run collectstatic to its end; return its exit status and its error output."""
    with deploying(site, *arguments) as process:
        _, errors = process.communicate(timeout=LONG)
        return process.returncode, errors


@contextmanager
def settled(proxy: Proxy) -> Iterator[None]:
    """Wait at the end of the block until the server has done all of its requests.

    The requests of a process that was killed are not finished immediately.
    """
    before = set(proxy.connections)
    yield
    deadline, rounds = time.monotonic() + LONG, count(1)
    while proxy.connections - before or select.select([proxy], [], [], 0)[0]:
        assert time.monotonic() < deadline, "requests of a dead process never end"
        time.sleep(0.005)
        if next(rounds) % 50 == 0:
            # Connections of threads that have ended may be in reference cycles.
            gc.collect()
