"""Finding the collectstatic command that is calling, and what it collects.

Django tells a storage nothing about who calls it, so the one thing that sets a
collectstatic apart from a view or a script is the frame of its command on the stack.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib.staticfiles.finders import get_finders

if TYPE_CHECKING:
    from datetime import datetime

    from django.contrib.staticfiles.management.commands.collectstatic import Command
    from django.core.files import File
    from django.core.files.storage import Storage

_MODULE = "django.contrib.staticfiles.management.commands.collectstatic"


def calling_command(storage: object) -> Command | None:
    """Return the command that is collecting into `storage` in this thread, if any."""
    module = sys.modules.get(_MODULE)
    if module is None:  # In a server no command can be on the stack: nothing to walk.
        return None
    frame = sys._getframe(1)
    while frame is not None:
        owner: Any = frame.f_locals.get("self")
        # isinstance() would ask a lazy object for its __class__, and so build the
        # very storage that may be calling from its own constructor.
        if issubclass(type(owner), module.Command):
            return owner if _target(owner) is storage else None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _target(command: Command) -> object:
    """Return the storage of `command`, which is a `LazyObject` unless replaced."""
    return getattr(command.storage, "_wrapped", command.storage)


def tell_cleared(storage: object, names: Iterable[str], *, dry_run: bool) -> None:
    """Let the command count and log what was cleared, as if it had done so itself."""
    command = calling_command(storage)
    if command is None:  # pragma: no cover (a run that clears is a command's)
        return
    verb, level = ("Pretending to delete", 1) if dry_run else ("Deleting", 2)
    for name in names:
        command.log(f"{verb} '{name}'", level=level)
    # Django 6.0 counts them in its summary; older ones do not.
    getattr(command, "deleted_files", []).extend(names)


@dataclass(frozen=True, slots=True)
class Source:
    """A file that collectstatic copies, in the storage where its finder found it."""

    storage: Storage
    path: str

    def open(self) -> File[bytes]:
        """Open the file as collectstatic does."""
        return self.storage.open(self.path)

    def modified_time(self) -> datetime:
        """Return what collectstatic compares the bucket's answer with."""
        return self.storage.get_modified_time(self.path)


def sources_of(ignore_patterns: list[str]) -> Iterator[tuple[str, Source]]:
    """Yield name and source of each file that collectstatic copies.

    Django's rule: the first finder to name a file wins, and the prefix of a source
    storage goes before the path (``collectstatic.Command.collect``).
    """
    seen = set()
    for finder in get_finders():
        for path, storage in finder.list(ignore_patterns):
            prefix = getattr(storage, "prefix", None)
            name = os.path.join(prefix, path) if prefix else path  # noqa: PTH118 (as Django)
            if name not in seen:
                seen.add(name)
                yield name, Source(storage, path)
