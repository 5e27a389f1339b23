"""Django's collectstatic: the command that calls, what it collects, where it ends.

Django tells a storage nothing about who calls it. What sets a collectstatic apart is a
frame of `Command.collect` on the stack; one activation of it is one run. What stands
around Django's own methods does so in whatever order a site's class has its bases.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from functools import cached_property, wraps
from types import FrameType
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.contrib.staticfiles.storage import HashedFilesMixin, ManifestFilesMixin
from django.core.files.storage import Storage, storages

from collectfast_storage.exceptions import ClearError
from collectfast_storage.reporting import Report, progress_of
from collectfast_storage.run import Caller, Paths, Run
from collectfast_storage.s3.errors import naming
from collectfast_storage.signals import collected

if TYPE_CHECKING:
    from django.contrib.staticfiles.management.commands.collectstatic import Command

logger = logging.getLogger("collectfast_storage")

_MODULE = "django.contrib.staticfiles.management.commands.collectstatic"

Method = Callable[..., Any]
Processed = Iterator[tuple[str, str | None, Any]]


def callers() -> Iterator[FrameType]:
    """Yield the frames of the callers, from the innermost one on."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def collecting_frame(storage: object) -> FrameType | None:
    """Return the frame of the `collect` that calls, if it collects into `storage`."""
    module = sys.modules.get(_MODULE)
    if module is None:  # In a server no command can be on the stack: nothing to walk.
        return None
    code = getattr(module.Command.collect, "__code__", None)
    for frame in callers():
        if frame.f_code is code:
            target = frame.f_locals["self"].storage
            if getattr(target, "_wrapped", target) is storage:  # It may be lazy.
                return frame
    return None


class _Names(list[str]):
    """A list that finds a name at once: of 20,000, that saves a third of the time."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self._places = {name: place for place, name in enumerate(self)}

    def append(self, name: str) -> None:
        self._places[name] = len(self)
        super().append(name)

    def __contains__(self, name: Any) -> bool:
        place = self._places.get(name, len(self))
        if place < len(self) and self[place] == name:
            return True
        # It may have been changed in other ways than by appending.
        return len(self) != len(self._places) and super().__contains__(name)


class Collectstatic(Caller):
    """A collectstatic: the command, as its options are, and its storage."""

    collects = True

    def __init__(self, storage: Any, frame: FrameType) -> None:
        """Stand for the `collect` in `frame`; or raise `ClearError`, lest all goes."""
        super().__init__(storage)
        self._command: Command = frame.f_locals["self"]
        for reason in self._reasons_not_to_clear() if self._command.clear else ():
            raise ClearError(storage.bucket_name, reason)
        self.dry_run, self.clears = self._command.dry_run, self._command.clear
        self.progress = progress_of(self._command)
        self.post_processes = self._command.post_process
        # So it asks for that after its last file, whichever that is; until `close`.
        self._command.post_process = True
        # The manifest's, until another one takes its place: post-processing that fails
        # leaves the storage with half of a new one.
        if storage._collectfast_published is None:
            storage._collectfast_published = getattr(storage, "hashed_files", {})
        self._published: Mapping[str, str] = storage._collectfast_published
        self.spared = frozenset(self._spared())
        # The command's own lists, until `close`.
        names = ("copied_files", "unmodified_files")
        self._lists = {name: getattr(self._command, name) for name in names}
        for name, own in self._lists.items():
            setattr(self._command, name, _Names(own))

    @cached_property
    def sources(self) -> Paths:  # type: ignore[override]
        """The files that are collected; of two of a name the first, as in `collect`."""
        found: dict[str, tuple[Storage, str]] = {}
        for finder in get_finders():
            for path, storage in finder.list(self._command.ignore_patterns):
                prefix = getattr(storage, "prefix", None) or ""
                name = os.path.join(prefix, path)  # noqa: PTH118 (as Django)
                found.setdefault(self.name_of(name), (storage, path))
        return found

    @property
    def wanted(self) -> list[str]:  # type: ignore[override]
        """The names of the sources, and those that post-processing will ask for."""
        names = {*self.sources, *map(self.name_of, self._published.values())}
        if issubclass(type(self.storage), ManifestFilesMixin):
            names.add(self.name_of(self.storage.manifest_name))
        return sorted(names)

    @cached_property
    def processed(self) -> Collection[str]:  # type: ignore[override]
        """The sources whose hashed names are their own."""
        same = {name for name, hashed in self._published.items() if name == hashed}
        return same if self.post_processes and not self.dry_run else ()

    @property
    def copied_before(self) -> Collection[str]:  # type: ignore[override]
        """What the command will not copy again, as an earlier pass has."""
        return {self.name_of(name) for name in self._command.copied_files}

    def tell(self, report: Report) -> None:
        """Log, count and signal what was done."""
        logger.info("%s", report)
        if self.clears:
            verb = "Pretending to delete" if self.dry_run else "Deleting"
            for name in report.deleted:
                self._command.log(f"{verb} '{name}'", level=1 if self.dry_run else 2)
            # Django 6.0 counts them in its summary; older ones do not.
            getattr(self._command, "deleted_files", []).extend(report.deleted)
        if not self.dry_run:
            self.storage._collectfast_published = None
            collected.send(type(self.storage), storage=self.storage, report=report)

    def close(self, arrived: Collection[str] | None) -> None:
        """Leave the command as it was; after a failure, nothing else is copied."""
        self._command.post_process = self.post_processes
        if arrived is not None:
            copied = self._command.copied_files
            copied[:] = [each for each in copied if self.name_of(each) in arrived]
        for name, own in self._lists.items():
            own[:] = getattr(self._command, name)
            setattr(self._command, name, own)

    def _reasons_not_to_clear(self) -> Iterator[str]:
        storage, folder = self.storage, self.storage._collectfast_prefix
        if not folder:
            yield "these have no location"
        for alias in settings.STORAGES:
            with suppress(Exception):  # What cannot be built has stored nothing.
                if _stores_below(storages[alias], storage):
                    yield f"STORAGES[{alias!r}] stores below their location"

    def _spared(self) -> Iterator[str]:
        """Yield what clearing leaves alone: a manifest, and the release it names."""
        storage = self.storage
        if self.clears and issubclass(type(storage), ManifestFilesMixin):
            yield from map(self.name_of, self._published.values())
            place: Any = storage.manifest_storage
            if getattr(place, "bucket_name", None) == storage.bucket_name:
                key: str = place._normalize_name(storage.manifest_name)
                yield key.removeprefix(storage._collectfast_prefix)


def _stores_below(other: Any, storage: Any) -> bool:
    """Tell whether `other` puts files below the location of `storage`."""
    key, prefix = str(other._normalize_name("")), storage._collectfast_prefix
    endpoints = {str(each.endpoint_url or "").rstrip("/") for each in (other, storage)}
    is_there = other.bucket_name == storage.bucket_name and len(endpoints) == 1
    is_another = type(other) is not type(storage) or key != prefix
    return is_there and is_another and key.startswith(prefix)


def with_barrier(method: Method, name: str) -> Method:
    """Return the `method` that Django calls by this `name`, with what stands around."""
    barrier = _BARRIERS[name]

    @wraps(method)
    def wrapper(self: Any, *args: Any, **options: Any) -> Any:
        return barrier(method, self, *args, **options)

    wrapper.has_barrier = True  # type: ignore[attr-defined]
    return wrapper


def _post_process(method: Method, storage: Any, *args: Any, **options: Any) -> Any:
    """Post-process; the outermost of a run is the run's barrier."""
    run = storage._collectfast_run()
    if run is not None and not run.caller.post_processes:
        run.post_processing = True  # With --no-post-process that is all.
        run.finish()
        return iter(())
    processed = method(storage, *args, **options)
    # Only now: one that is no generator has come to an inner barrier by here.
    run = storage._collectfast_run()
    if run is None or run.post_processing or not run.caller.collects:
        return processed
    paths = args[0] if args else options.get("paths", {})
    return _to_the_barrier(run, paths, processed)


def _save_manifest(method: Method, storage: Any, *args: Any, **options: Any) -> Any:
    """Save the manifest, after all else; fail if something did not arrive."""
    run = storage._collectfast_run()
    if run is not None:
        run.wait()
    with _batch_of(storage.manifest_storage, storage):
        return method(storage, *args, **options)


def _load_manifest(method: Method, storage: Any) -> Any:
    """Load the manifest; in a command, before its `collect`, with a `BucketError`."""
    bucket = getattr(storage.manifest_storage, "bucket_name", None)
    is_called = any(f.f_globals.get("__name__") == _MODULE for f in callers())
    with naming(bucket if is_called and storage._collectfast_enabled else None):
        return method(storage)


_BARRIERS: Mapping[str, Method] = {
    "load_manifest": _load_manifest,
    "post_process": _post_process,
    "save_manifest": _save_manifest,
}


def _to_the_barrier(run: Run, paths: Paths, processed: Processed) -> Processed:
    """Post-process, then finish the run: who gets past this has everything uploaded.

    What is yielded may hold an exception that its caller logs, and goes on; only when
    this is exhausted, closed or raises is it at its end.
    https://docs.djangoproject.com/en/stable/ref/contrib/staticfiles/#django.contrib.staticfiles.storage.StaticFilesStorage.post_process
    """
    run.post_processing, storage = True, run.caller.storage
    try:
        hashes = issubclass(type(storage), HashedFilesMixin)
        if hashes and _post_processes_as_django(type(storage).__mro__):
            processed = _with_copies_checked(run, paths, processed)
        for each in processed or ():
            if isinstance(each[2], Exception):
                run.pause()  # Its caller may raise it.
            yield each
        run.finish()
    except GeneratorExit:
        # By a caller who has enough of it; or else it is garbage, after an exception.
        if collecting_frame(storage) is not None:  # pragma: no branch
            run.finish()
        raise
    finally:
        run.close()


def _post_processes_as_django(classes: tuple[type, ...]) -> bool:
    """Tell whether what is yielded means what Django means by it."""
    own = [vars(each).get("post_process") for each in classes]
    modules = {getattr(each, "__wrapped__", each).__module__ for each in own if each}
    return modules <= {HashedFilesMixin.__module__, "collectfast_storage.storage"}


def _with_copies_checked(run: Run, paths: Paths, processed: Processed) -> Processed:
    """Save again, and so compare, what Django did not, as its hashed name exists."""
    name_of = run.caller.name_of
    for name, hashed_name, outcome in processed:
        hashed = name_of(hashed_name or "")
        is_there = outcome is False and hashed_name is not None
        if is_there and not run.has_copy(name_of(name), hashed):
            source, path = paths[name]
            with source.open(path) as file:
                run.caller.storage._save(hashed_name, file)
        yield name, hashed_name, outcome


def _batch_of(manifest_storage: Any, storage: Any) -> Any:
    """Keep a manifest in another bucket from being deleted before it is replaced."""
    is_ours = getattr(manifest_storage, "_collectfast_enabled", False)
    if manifest_storage is storage or not is_ours:
        return nullcontext()
    # One file is sooner asked for than listed; and it is too dear to trust the cache.
    return manifest_storage._collectfast_batch(lists=False, trusts=False)
