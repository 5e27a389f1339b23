"""What the machines that draw random sequences have in common."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import boto3
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.support.proxy import Fault, Handler, Request


class SharedSession:
    """A deploy is a process of its own, but for what boto3 takes longest to make."""

    access_key: str
    secret_key: str

    def _create_session(self) -> Any:
        return _session(self.access_key, self.secret_key)


@cache
def _session(access_key: str, secret_key: str) -> Any:
    return boto3.Session(access_key, secret_key)


def run(
    machine: Callable[[], RuleBasedStateMachine],
    sequences: int,
    *,
    is_long: bool = False,
) -> None:
    """Draw so many sequences; one that fails comes with what reproduces it.

    If a sequence `is_long`, a failing one is not made shorter, which would take
    minutes, and each run draws the same sequences.
    """
    phases = [each for each in Phase if not (is_long and each is Phase.shrink)]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=20,
            deadline=None,
            print_blob=True,
            phases=phases,
            derandomize=is_long,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def one_of(attribute: Callable[[Any], Any]) -> st.SearchStrategy[str]:
    """One of the names that the machine has at the moment."""
    return st.runner().flatmap(
        lambda machine: st.sampled_from(sorted(attribute(machine)))
    )


def arguments(clear: bool, post_process: bool = True) -> list[str]:
    """What collectstatic is called with."""
    return ["--clear"] * clear + ["--no-post-process"] * (not post_process)


def named(output: str, pattern: str) -> set[str]:
    """What `pattern` finds in the lines of `output`."""
    return set(re.findall(pattern, output, re.MULTILINE))


REASON = r"^  (.*?): "  # of a failure, in the error that ends a run


def unhashed(name: str) -> str:
    """Return `name` without the hash that a manifest storage puts in it."""
    return re.sub(r"\.[0-9a-f]{12}(?=\.|$)", "", name)


# What can happen to an upload: (for good, carried out all the same, what is answered).


def _deny(handler: Handler) -> None:
    handler.error(403, "AccessDenied")


def _slow_down(handler: Handler) -> None:
    handler.error(503, "SlowDown")


def _hang_up(handler: Handler) -> None:
    handler.close_connection = True


_KINDS: dict[str, tuple[bool, bool, Callable[[Handler], None]]] = {
    "refused": (True, False, _deny),
    "arrived, but refused": (True, True, _deny),
    "throttled": (False, False, _slow_down),
    "connection lost": (False, False, _hang_up),
    "answer lost": (False, True, _hang_up),
}


@dataclass(frozen=True)
class Upset:
    """What happens to uploads of `names`, hashed or not: for good, or once for each."""

    kind: str
    names: frozenset[str]

    @property
    def for_good(self) -> bool:
        return _KINDS[self.kind][0]

    @property
    def arrives(self) -> bool:
        """Whether the server carries out what it does not confirm."""
        return _KINDS[self.kind][1]

    def fault(self, location: str) -> Fault:
        for_good, arrives, spoil = _KINDS[self.kind]
        met: set[str] = set()

        def fault(handler: Handler, request: Request, body: bytes) -> bool:
            name = request.key.removeprefix(f"{location}/")
            if request.kind != "PUT" or unhashed(name) not in self.names:
                return False
            # Parts are sent again by boto3, which takes its time.
            if not for_good and (name in met or "partNumber" in request.query):
                return False
            met.add(name)
            if arrives:
                handler.pass_on_silently(body)
            spoil(handler)
            return True

        return fault


def upsets(names: list[str]) -> st.SearchStrategy[Upset]:
    some = st.frozensets(st.sampled_from(names), min_size=1)
    return st.builds(
        Upset, st.sampled_from(list(_KINDS)), st.just(frozenset(names)) | some
    )
