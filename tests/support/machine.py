"""Helpers for the hypothesis state machines, which run random sequences."""

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
    """A storage that shares its boto3 session with others.

    Deploys share nothing else. The session is shared because boto3 needs much time to
    make one.
    """

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
    """Run `sequences` random sequences; print how to reproduce one that fails.

    If sequences are long, hypothesis does not shorten one that fails, because this
    would take minutes, and it runs the same sequences each time.
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
    """Return a strategy for one of the names in the present state of the machine."""
    return st.runner().flatmap(
        lambda machine: st.sampled_from(sorted(attribute(machine)))
    )


def arguments(clear: bool, post_process: bool = True) -> list[str]:
    """Return the arguments of collectstatic."""
    given = []
    if clear:
        given.append("--clear")
    if not post_process:
        given.append("--no-post-process")
    return given


def named(output: str, pattern: str) -> set[str]:
    """Return the matches of `pattern` in the lines of `output`."""
    return set(re.findall(pattern, output, re.MULTILINE))


REASON = r"^  (.*?): "  # the name of a failed file in the error message of a run


def unhashed(name: str) -> str:
    """Return `name` without the hash that a manifest storage adds."""
    return re.sub(r"\.[0-9a-f]{12}(?=\.|$)", "", name)


# Faults of uploads: whether they are permanent, whether the object is stored
# nevertheless, and the function that sends the response.


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
class UploadFault:
    """A fault of the uploads of `names`, with or without hashes.

    It is permanent, or applies to the first upload of each name only.
    """

    kind: str
    names: frozenset[str]

    @property
    def permanent(self) -> bool:
        return _KINDS[self.kind][0]

    @property
    def arrives(self) -> bool:
        """Whether the object is stored although the upload is not confirmed."""
        return _KINDS[self.kind][1]

    def fault(self, location: str) -> Fault:
        permanent, arrives, spoil = _KINDS[self.kind]
        met: set[str] = set()

        def fault(handler: Handler, request: Request, body: bytes) -> bool:
            name = request.key.removeprefix(f"{location}/")
            if request.kind != "PUT" or unhashed(name) not in self.names:
                return False
            # A transient fault of a part is not injected, because boto3 would wait for
            # some time before it sends the part again.
            if not permanent and (name in met or "partNumber" in request.query):
                return False
            met.add(name)
            if arrives:
                handler.pass_on_silently(body)
            spoil(handler)
            return True

        return fault


def upload_faults(names: list[str]) -> st.SearchStrategy[UploadFault]:
    some = st.frozensets(st.sampled_from(names), min_size=1)
    return st.builds(
        UploadFault, st.sampled_from(list(_KINDS)), st.just(frozenset(names)) | some
    )
