"""The context of a run: the calling program, and the storage as the run uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from django.core.exceptions import SuspiciousOperation
from django.core.files.storage import Storage

from collectfast_storage.options import Options
from collectfast_storage.payload import Capture, Payload
from collectfast_storage.reporting import Progress, Report

_T = TypeVar("_T")

# The files that collectstatic copies, by name: each one's storage, and its path there.
Paths = Mapping[str, tuple[Storage, str]]


@dataclass(frozen=True, slots=True)
class Destination:
    """A storage as a run uses it: values read when the run opens, and methods."""

    bucket_name: str
    prefix: str  # of the keys; empty, or with a slash at its end
    overwrites: bool  # the option file_overwrite
    # Whether a subclass has its own `save` or `_save`, which may read an object as soon
    # as it is saved.
    has_own_save: bool
    has_own_delete: bool  # whether a subclass has its own `delete`
    key_of: Callable[[str], str]
    parameters_of: Callable[[str], dict[str, Any]]  # of a write, by key
    # Saves a file by name, but passes the upload to a function.
    capture: Callable[[str, Any, Callable[[Capture], object]], str]
    delete: Callable[[str], object]

    def delete_each(self, names: Iterable[str]) -> Iterator[tuple[str, object]]:
        """Delete one name after the other; yield each with its error, if any."""
        for name in names:
            try:
                self.delete(name)
            except (BotoCoreError, ClientError) as error:
                yield name, error
            else:
                yield name, None


class RunContext:
    """The caller of a run: here, a program's batch."""

    collects = False
    dry_run = False
    clears = False
    is_complete = False  # The run has ended without a failure.
    # The names that the caller will compare or save, sorted; None: not known.
    wanted: Sequence[str] | None = None
    # Sources whose hashed names are equal to their names, so that post-processing saves
    # other contents as these names.
    overwritten_by_processing: Set[str] = frozenset()
    kept: Set[str] = frozenset()  # names that clearing does not delete in any case
    # Parameters of uploads under hashed names, beside those of all uploads.
    hashed_parameters: Mapping[str, Any] = MappingProxyType({})
    progress = Progress()

    def __init__(
        self, destination: Destination, options: Options, preload: bool | None = None
    ) -> None:
        """Describe a caller; a `preload` overrides the one in `options`."""
        self.destination = destination
        self.ignores_etag = options.ignore_etag
        self.lists_bucket = options.preload if preload is None else preload
        # A batch does not use the cache.
        self.trusts_cache = self.collects and not self.lists_bucket
        self.sources: Paths = MappingProxyType({})
        # Returns the content of the object with a name, or `None`; set by the run.
        self.read: Callable[[str], bytes | None] = lambda name: None
        self._names: dict[str, str | None] = {}

    def name_of(self, name: str) -> str | None:
        """Return `name` relative to the prefix; `None` if its key is not below it."""
        if name not in self._names:
            relative = self.name_of_key(self.destination.key_of(name))
            # Only one of two equal strings is kept in memory.
            self._names[name] = name if name == relative else relative
        return self._names[name]

    def name_of_key(self, key: str) -> str | None:
        """Return the name of `key`; `None` if it is not below the prefix."""
        prefix = self.destination.prefix
        return key.removeprefix(prefix) if key.startswith(prefix) else None

    def names_among(self, names: Iterable[object]) -> Iterator[str]:
        """Yield those of `names` that can be names here, relative to the prefix."""
        for name in names:
            with suppress(SuspiciousOperation):
                relative = self.name_of(name) if isinstance(name, str) else None
                if relative is not None:
                    yield relative

    def is_normal(self, name: str) -> bool:
        """Return whether the storage's methods can name the object `name`."""
        with suppress(SuspiciousOperation):
            return not name.startswith("/") and self.name_of(name) == name
        return False

    def capture_source(
        self, name: str, source: tuple[Storage, str], judge: Callable[[Payload], _T]
    ) -> _T | None:
        """Return the result of `judge` for the upload of `source` as `name`.

        It is `None` if the storage uploads in another way.
        """
        storage, path = source
        results: list[_T] = []

        def judge_capture(capture: Capture) -> None:
            with closing(capture.payload()) as payload:
                results.append(judge(payload))

        with storage.open(path) as file:
            self.destination.capture(name, file, judge_capture)
        return results[-1] if results else None

    def source_being_compared(self, name: str) -> tuple[Storage, str] | None:
        """Return the source of `name`, if the caller compares it with the bucket."""
        return None

    def is_hashing(self) -> bool:
        """Return whether Django's `hashed_name` is among the callers."""
        return False

    def reopener(self, content: object) -> Callable[[], Any] | None:
        """Return a function that opens `content` again, if it is a source."""
        return None

    def is_left_out(self, name: str) -> bool:
        """Return whether the source `name` is uploaded under its hashed name only."""
        return False

    def is_in_live_release(self, name: str) -> bool:
        """Return whether the manifest that was published last contains `name`."""
        return False

    def is_hashed_name(self, name: str) -> bool:
        """Return whether post-processing saves a file as `name` because of its hash."""
        return False

    def before_manifest(self) -> None:
        """Prepare for the publication of a release: all its files have arrived."""

    def split_left_over(self, left_over: Set[str]) -> tuple[Set[str], Set[str]]:
        """Return the names that clearing deletes, and those that it keeps."""
        return frozenset(), frozenset()

    def finished(self, report: Report) -> None:
        """Handle the `report` of a run that has ended without a failure."""

    def closed(self, lost: Set[str]) -> None:
        """Handle the end of a run, in which the uploads of `lost` names failed."""


def overridden(cls: type, *names: str) -> type | None:
    """Return the site's first class, from `cls` up, that defines one of `names`."""
    libraries = ("builtins", "django.", "storages.", "collectfast_storage.")
    having = (each for each in cls.__mro__ if {*names} & vars(each).keys())
    own = (each for each in having if not each.__module__.startswith(libraries))
    return next(own, None)
