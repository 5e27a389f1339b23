"""Django's collectstatic: the calling command, its sources, barriers, and `--clear`.

Django does not pass the command to a storage. Therefore a collectstatic is recognised
by a frame of `Command.collect` on the stack. One activation of it is one run.
"""

from __future__ import annotations

import gzip
import inspect
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from itertools import chain, takewhile
from pathlib import PurePosixPath
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.contrib.staticfiles.storage import HashedFilesMixin, ManifestFilesMixin
from django.contrib.staticfiles.utils import matches_patterns
from django.core.files.base import ContentFile
from django.core.files.storage import Storage, storages
from django.utils.module_loading import import_string
from storages.backends.s3 import S3Storage

from collectfast_storage.context import Destination, Paths, RunContext, overridden
from collectfast_storage.exceptions import ClearError, printable
from collectfast_storage.options import Options
from collectfast_storage.reporting import Report, progress_of
from collectfast_storage.signals import collected

if TYPE_CHECKING:
    from django.contrib.staticfiles.management.commands.collectstatic import Command

logger = logging.getLogger("collectfast_storage")

MODULE = "django.contrib.staticfiles.management.commands.collectstatic"
# The arguments of the command's methods that copy a file.
_ARGUMENTS = ("source_storage", "path", "prefixed_path")
# The variables of Django's methods that open a source: its storage, path and file.
_OPENING = {
    "copy_file": ("source_storage", "path", "source_file"),
    "_post_process": ("storage", "path", "original_file"),
}
_STATICFILES = "django.contrib.staticfiles."
_COPYING = ("delete_file", "copy_file", "link_file")
# Functions that save a file under its hashed name, which is in a variable of this name.
_SAVING_HASHED = ("_post_process", "_with_existing_copies_saved")
_HASHED_NAME = "hashed_name"
# Django's alias: https://docs.djangoproject.com/en/stable/ref/settings/#storages
_ALIAS = "staticfiles"
# A hash of Django's own `file_hash`, before the suffixes of a name or at its end.
_HASH = r"\.[0-9a-f]{12}(\.[^/]*)?$"
_HASHING = ("file_hash", "hashed_name")
# The object that lists the names of the latest releases.
RELEASES = "staticfiles.releases.json"


def callers() -> Iterator[FrameType]:
    """Yield the frames of the callers, from the innermost one on."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_collect(frame: FrameType) -> bool:
    """Return whether `frame` is of Django's own `collect`, wrapped or not."""
    is_named = frame.f_code.co_name == "collect"
    return is_named and frame.f_globals.get("__name__") == MODULE


def collecting_frames() -> Iterator[FrameType]:
    """Yield the frames of each `collect` on the stack, from the innermost one on."""
    if MODULE in sys.modules:  # A server need not walk the stack.
        yield from filter(is_collect, callers())


def _is_of_staticfiles(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith(_STATICFILES)


def collects_into(frame: FrameType, storage: object) -> bool:
    """Return whether the `collect` in `frame` currently copies into `storage`."""
    target = frame.f_locals["self"].storage
    return getattr(target, "_wrapped", target) is storage  # It may be lazy.


class _IndexedList(list[str]):
    """A list that searches an index, because Django searches it for each name."""

    # `is_left` returns whether the command runs again before the run that installed
    # this list has ended. `end` ends that run.
    is_left: Callable[[], bool] = staticmethod(lambda: False)
    end: Callable[[], object]

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self._places = {name: place for place, name in enumerate(self)}

    def append(self, name: str) -> None:
        self._places[name] = len(self)
        super().append(name)

    def __contains__(self, name: Any) -> bool:
        if self.is_left():
            self.end()  # After this, the command has its own list again.
        place = self._places.get(name, len(self))
        if place < len(self) and self[place] == name:
            return True
        # The list may have been changed in other ways than by appending.
        return len(self) != len(self._places) and super().__contains__(name)


class _PostProcessOption(int):
    """The command's option `post_process`, which calls `act` when `collect` reads it.

    `collect` reads the option once, after it has copied all files.
    """

    frame: FrameType
    act: Callable[[bool], object]

    def __bool__(self) -> bool:
        if sys._getframe(1) is self.frame:
            self.act(self != 0)
        return self != 0


class Collectstatic(RunContext):
    """One activation of `collect`, for one storage that it copies files into."""

    collects = True

    def __init__(
        self, storage: Any, destination: Destination, options: Options, frame: FrameType
    ) -> None:
        """Describe the `collect` in `frame`; raise `ClearError` if it may not clear."""
        super().__init__(destination, options)
        command: Command = frame.f_locals["self"]
        self._storage, self._command, self._frame = storage, command, frame
        self.dry_run = command.dry_run
        # If files go to several storages, only the one that Django clears is cleared.
        functions = [each.f_code.co_name for each in self._inner_frames()]
        self.clears = command.clear and "clear_dir" in functions
        if self.clears:
            reason = next(reasons_not_to_clear(storage, self._prefix), None)
            if reason is not None:
                raise ClearError(destination.bucket_name, reason)
        self.progress = progress_of(command)
        self.sources = self._listed()
        self._hashed_files: Any = getattr(storage, "hashed_files", None)
        self._published = self._names_in_manifest()
        # Not `bool()`, because the option may be a `_PostProcessOption`.
        post_processes = getattr(command, "post_process", False) != 0
        self._originals: Sequence[str] | None = None  # patterns; None: all are uploaded
        is_hashed = post_processes and self._is_hashed_by_django(command)
        if options.only_hashed and is_hashed:
            self._originals = options.keep_originals
        self.hashed_parameters = options.hashed_parameters or {}
        if post_processes and not self.dry_run:
            same = (name for name, hashed in self._published.items() if name == hashed)
            self.overwritten_by_processing = frozenset(same)
        self._releases = Releases(storage, self, options.keep_releases)
        self.kept = frozenset(self._releases.objects)
        # The command's own lists, and those that replace them until `closed`.
        self._command_lists: dict[str, tuple[list[str], _IndexedList]] = {}
        for name in ("copied_files", "unmodified_files"):
            own = getattr(command, name)
            # Another run of this `collect` may have replaced it already.
            if not isinstance(own, _IndexedList):
                self._command_lists[name] = own, _IndexedList(own)
                setattr(command, name, self._command_lists[name][1])

    @property
    def _prefix(self) -> str:
        return self.destination.prefix

    def _is_hashed_by_django(self, command: Command) -> bool:
        """Return whether Django's own code saves each source under its hashed name.

        A method of a site may need the originals, or copy files to another storage.
        """
        cls = type(self._storage)
        is_django = not self.destination.has_own_save and post_processes_as_django(cls)
        is_own_command = overridden(type(command), *_COPYING) is not None
        return issubclass(cls, ManifestFilesMixin) and is_django and not is_own_command

    def _listed(self) -> dict[str, tuple[Storage, str]]:
        """Return the sources of Django's own finders.

        A site's own finder may build its files, and may list them only once, so only
        `collect` lists it.
        """
        found: dict[str, tuple[Storage, str]] = {}
        for finder in get_finders():
            if overridden(type(finder), "list") is None:
                for path, storage in finder.list(self._command.ignore_patterns):
                    prefix = getattr(storage, "prefix", None) or ""
                    name = self.name_of(os.path.join(prefix, path))  # noqa: PTH118 (as Django)
                    if name is not None:
                        found.setdefault(name, (storage, path))
        return found

    @property
    def wanted(self) -> list[str]:  # type: ignore[override]
        """The names of the sources, and of the files that post-processing looks up."""
        names = {each for each in self.sources if not self.is_left_out(each)}
        names.update(self._published.values())
        if self._releases.are_recorded:
            names.add(RELEASES)
        if isinstance(self._storage, ManifestFilesMixin):
            names.add(self.name_of(self._storage.manifest_name) or "")
        return sorted(names)

    def _names_in_manifest(self) -> dict[str, str]:
        """Return the names in the published manifest, as far as they can be names."""
        paths, names = self._hashed_files, {}
        for name, hashed in paths.items() if isinstance(paths, Mapping) else ():
            for each in self.names_among([hashed]):
                names[name] = each
        return names

    def source_being_compared(self, name: str) -> tuple[Storage, str] | None:
        """Return the source of `name`, if `delete_file` compares it with the bucket."""
        is_comparing = False
        for frame in self._inner_frames():
            function = frame.f_code.co_name
            is_comparing |= function == "delete_file"
            is_copying = is_comparing and function in _COPYING
            if is_copying and {*_ARGUMENTS} <= {*frame.f_locals}:
                storage, path, prefixed = (frame.f_locals[key] for key in _ARGUMENTS)
                return (storage, path) if self.name_of(prefixed) == name else None
        return None

    def is_hashing(self) -> bool:
        """Return whether Django's `hashed_name` is on the stack."""
        return any(
            frame.f_code.co_name == "hashed_name" and _is_of_staticfiles(frame)
            for frame in self._inner_frames()
        )

    def reopener(self, content: object) -> Callable[[], Any] | None:
        """Return a function that opens `content` again, if it is a source."""
        for frame in self._inner_frames():
            names = _OPENING.get(frame.f_code.co_name)
            if names and _is_of_staticfiles(frame):
                storage, path, file = map(frame.f_locals.get, names)
                if file is content and storage is not None:
                    return partial(storage.open, path)
        return None

    def _inner_frames(self) -> Iterator[FrameType]:
        """Yield the frames below that of `collect`, from the innermost one on."""
        return takewhile(lambda each: each is not self._frame, callers())

    def collect_sources(self) -> None:
        """Replace the sources by the files that `collect` has found."""
        found: Paths = self._frame.f_locals["found_files"]
        names = ((self.name_of(name), source) for name, source in found.items())
        self.sources = {name: source for name, source in names if name is not None}

    def is_target(self) -> bool:
        """Return whether the command currently copies files into this storage."""
        return collects_into(self._frame, self._storage)

    def is_left_out(self, name: str) -> bool:
        """Return whether the source `name` is uploaded under its hashed name only."""
        patterns = self._originals
        return patterns is not None and not _is_ignored(name, patterns)

    def is_in_live_release(self, name: str) -> bool:
        """Return whether the manifest that was published last contains `name`."""
        return name in self._published

    def is_hashed_name(self, name: str) -> bool:
        """Return whether the caller saves a source as `name` because of its hash."""
        saving = (f for f in self._inner_frames() if f.f_code.co_name in _SAVING_HASHED)
        names = self.names_among(frame.f_locals.get(_HASHED_NAME) for frame in saving)
        return name not in self.sources and name in names

    def before_manifest(self) -> None:
        """Read which release is live, and add the new one to the list of releases."""
        if self.clears or self._releases.are_recorded:
            self._releases.read()
        if self._releases.are_recorded:
            self._releases.record()

    def split_left_over(self, left_over: Set[str]) -> tuple[Set[str], Set[str]]:
        """Return the names that clearing deletes, and those that it keeps."""
        kept = self._releases.among(left_over)
        # The pages of a site that had no manifest before contain the plain names.
        kept |= (left_over & self.sources.keys()) - self._published.keys()
        return left_over - kept, kept

    def at_barrier(
        self, act: Callable[[bool], object], end: Callable[[], object]
    ) -> None:
        """Call `act` when all files have been copied, or `end` if that never happens.

        `end` is called when the command runs again, and this run has not ended.
        """
        option = getattr(self._command, "post_process", False)
        if (
            not isinstance(option, _PostProcessOption)
            or option.frame is not self._frame
        ):
            option = _PostProcessOption(bool(option))
            option.frame, option.act = self._frame, act
            self._command.post_process = option
        command, barrier = self._command, option
        for _, names in self._command_lists.values():
            names.is_left = lambda: command.post_process is not barrier
            names.end = end

    def finished(self, report: Report) -> None:
        """Log the report, count deleted files, and send the signal."""
        logger.info("%s", report)
        if self.clears:
            verb = "Pretending to delete" if self.dry_run else "Deleting"
            for name in report.deleted:
                level = 1 if self.dry_run else 2
                self._command.log(f"{verb} '{printable(name)}'", level=level)
            # Only Django 6.0 and later count deleted files in the summary.
            getattr(self._command, "deleted_files", []).extend(report.deleted)
        if not self.dry_run:
            collected.send(type(self._storage), storage=self._storage, report=report)

    def closed(self, lost: Set[str]) -> None:
        """Restore the command's option and lists.

        Files that are `lost` do not count as copied.
        """
        command = self._command
        if not self.is_complete and isinstance(self._storage, ManifestFilesMixin):
            # Post-processing has replaced the names, but has not published them.
            self._storage.hashed_files = self._hashed_files
        option = getattr(command, "post_process", False)
        if isinstance(option, _PostProcessOption) and option.frame is self._frame:
            command.post_process = option != 0
        if lost:
            copied = command.copied_files
            copied[:] = [each for each in copied if self.name_of(each) not in lost]
        for name, (own, indexed) in self._command_lists.items():
            if getattr(command, name) is indexed:
                own[:] = indexed
                setattr(command, name, own)


# The files that `--clear` may delete.


class LiveRelease(NamedTuple):
    """The hashed names of the release that visitors see."""

    names: frozenset[str] = frozenset()
    unknown: str = ""  # why they are not known; then any hashed name may be of it


class Releases:
    """The releases of a storage in its bucket: the live one, and others.

    If more than one earlier release is kept, an object lists the names of each, the
    latest first.
    """

    def __init__(self, storage: Any, context: RunContext, number: int) -> None:
        """Keep this `number` of earlier releases, and the one that is published."""
        self._storage, self._context, self._number = storage, context, number
        self.are_recorded = number > 1 and isinstance(storage, ManifestFilesMixin)
        self._live: LiveRelease | None = None
        self._earlier: list[list[str]] = []
        self._all: list[list[str]] = []  # with the one that is about to be published
        default = ManifestFilesMixin.manifest_name
        self._manifest_name = getattr(storage, "manifest_name", default)
        # Names of objects that describe releases.
        names = [self._manifest(), RELEASES if self.are_recorded else None]
        self.objects = [name for name in names if name is not None]

    def read(self) -> None:
        """Read which releases there are, once, before another one is published."""
        if self._live is not None:
            return
        self._live = live_release(self._storage)
        if not self.are_recorded:
            return
        releases = recorded_releases(self._context.read(RELEASES))
        if releases is None:
            unknown = "the list of releases is damaged"
            self._live, releases = LiveRelease(self._live.names, unknown), []
        if self._live.names:
            releases = _moved_to_front(self._release(self._live.names), releases)
        self._earlier = self._all = releases

    def record(self) -> None:
        """Save the list, with the release that is about to be published."""
        new = self._release(self._storage.hashed_files.values())
        self._all = _moved_to_front(new, self._earlier)[: self._number + 1]
        self._storage._save(RELEASES, ContentFile(json.dumps(self._all).encode()))

    def _release(self, hashed: Iterable[object]) -> list[str]:
        return sorted({*map(str, hashed), *self.objects} - {RELEASES})

    def among(self, left_over: Set[str]) -> Set[str]:
        """Return those of the names `left_over` that clearing keeps."""
        self.read()
        live, names_among = self._live or LiveRelease(), self._context.names_among
        # A dry run does not know the new release.
        number = self._number + (not self._context.dry_run)
        recorded = chain.from_iterable(self._all[:number])
        kept = left_over & {*self.objects, *names_among(chain(live.names, recorded))}
        unknown = live.unknown
        if not isinstance(self._storage, ManifestFilesMixin) and kept:
            unknown = "another storage has published a manifest there"
        # The list also contains deploys that failed after they had saved it, so an
        # earlier release in it may be the live one.
        if unknown and (len(self._all) < number or not self.are_recorded):
            kept |= self._possible_names(left_over, kept, unknown)
        return kept

    def _possible_names(
        self, left_over: Set[str], kept: Set[str], unknown: str
    ) -> Set[str]:
        """Return the names that may be of the live release; warn if there are more."""
        hashed = {name for name in left_over if may_be_hashed(self._storage, name)}
        if hashed - kept:
            text = (
                "Cannot determine the live release in bucket %r (%s), so --clear "
                "keeps all files with hashed names: %d files."
            )
            bucket_name = self._context.destination.bucket_name
            logger.warning(text, bucket_name, unknown, len(hashed))
        return hashed | {name for name in left_over if self._may_be_manifest(name)}

    def _manifest(self) -> str | None:
        """Return the manifest's name, if it is below the prefix in this bucket."""
        place: Any = getattr(self._storage, "manifest_storage", self._storage)
        bucket_name = self._context.destination.bucket_name
        if getattr(place, "bucket_name", None) != bucket_name:
            return None
        return self._context.name_of_key(
            str(place._normalize_name(self._manifest_name))
        )

    def _may_be_manifest(self, name: str) -> bool:
        """Return whether `name` may be the manifest of a release with its own name."""
        own, path = PurePosixPath(self._manifest_name), PurePosixPath(name)
        is_alike = (path.parent, path.suffix) == (own.parent, own.suffix)
        # Without the option, no deploy continues the list. It is deleted, so that no
        # later deploy trusts it.
        return is_alike and name != RELEASES


def reasons_not_to_clear(storage: Any, prefix: str) -> Iterator[str]:
    """Yield why objects below `prefix` may not all be static files of `storage`."""
    if not prefix:
        yield "the static files storage has no location"
    for alias in map(str, settings.STORAGES):
        if reason := _overlap(alias, storage, prefix):
            yield f"STORAGES[{alias!r}] {reason}"


def _overlap(alias: str, storage: Any, prefix: str) -> str:
    try:
        backend = import_string(settings.STORAGES[alias]["BACKEND"])
        is_storage = isinstance(backend, type) and issubclass(backend, Storage)
        if is_storage and not issubclass(backend, S3Storage):
            return ""
        other: Any = storages[alias]
        if other is storage or not isinstance(other, S3Storage):
            return ""
        key, bucket_name = str(other._normalize_name("")), other.bucket_name
    except Exception as error:  # What it stores, and where, is not known then.
        name = type(error).__name__
        return f"cannot be created ({name}) and may store files below its location"
    # The endpoint is not compared: one storage may name it where another finds it in
    # the environment.
    is_below = bucket_name == storage.bucket_name and key.startswith(prefix)
    is_same = alias == _ALIAS and key == prefix
    return "stores files below its location" if is_below and not is_same else ""


def live_release(storage: Any) -> LiveRelease:
    """Read the published manifest of `storage` again, because it may have changed."""
    if not isinstance(storage, ManifestFilesMixin):
        return LiveRelease()
    default = ManifestFilesMixin.manifest_name
    if storage.manifest_name != default:
        return LiveRelease(unknown=f"manifest_name is not {default!r}")
    # Other storages may be on this machine only, and know other releases.
    if not isinstance(storage.manifest_storage, S3Storage):
        return LiveRelease(unknown="the manifest is in another storage")
    methods = (type(storage).read_manifest, type(storage).load_manifest)
    if any(not _is_djangos(method) for method in methods):
        return LiveRelease(
            unknown="a subclass overrides read_manifest or load_manifest"
        )
    try:
        manifest: Any = storage.load_manifest()
        paths, is_there = manifest[0], any(manifest)  # An empty one has its own hash.
        names = frozenset(map(str, paths.values()))
    except (AttributeError, TypeError, ValueError):
        return LiveRelease(unknown="the manifest is damaged")
    return LiveRelease(names, "" if is_there else "there is no manifest")


def recorded_releases(content: bytes | None) -> list[list[str]] | None:
    """Return the releases in the `content` of the list; `None` if it is damaged."""
    if content is None:
        return []
    try:
        is_compressed = content.startswith(b"\x1f\x8b")
        releases = json.loads(gzip.decompress(content) if is_compressed else content)
    except (EOFError, OSError, ValueError, zlib.error):
        return None
    lists = [releases, *releases] if isinstance(releases, list) else [None]
    if not all(isinstance(each, list) for each in lists):
        return None
    is_names = all(isinstance(name, str) for names in releases for name in names)
    return releases if is_names else None


def _moved_to_front(release: list[str], releases: list[list[str]]) -> list[list[str]]:
    return [release, *(each for each in releases if each != release)]


def _is_ignored(name: str, patterns: Sequence[str]) -> bool:
    """Return whether ``collectstatic --ignore`` with these `patterns` ignores `name`.

    Its path, its file name, or the name of one of its folders matches a pattern.
    """
    names = (name, *PurePosixPath(name).parts)
    return bool(patterns) and any(matches_patterns(each, patterns) for each in names)


def may_be_hashed(storage: Any, name: str) -> bool:
    """Return whether `name` may be a hashed name of an earlier release."""
    methods = [getattr(type(storage), each, None) for each in _HASHING]
    if any(method and not _is_djangos(method) for method in methods):
        return True  # A subclass's hashed names may look like any other.
    return re.search(_HASH, name) is not None


def post_processes_as_django(cls: type) -> bool:
    """Return whether `post_process` is Django's own, so its elements are known."""
    own = [vars(each).get("post_process") for each in cls.__mro__]
    modules = {getattr(each, "__wrapped__", each).__module__ for each in own if each}
    return modules == {HashedFilesMixin.__module__, "collectfast_storage.storage"}


def _is_djangos(method: Any) -> bool:
    return str(inspect.unwrap(method).__module__).startswith("django.")
