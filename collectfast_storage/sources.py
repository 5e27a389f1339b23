"""The files that a run collects, and what saving each of them would send."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

from collectfast_storage.capture import Take
from collectfast_storage.command import Source
from collectfast_storage.content import Content

CapturedSave = Callable[[str, Any, Take], object]
Judge = Callable[[Content], object]


class Sources:
    """The sources by key, each read once, some of them before they are asked about."""

    def __init__(
        self,
        find: Callable[[], Mapping[str, Source]],
        captured_save: CapturedSave,
        name_of: Callable[[str], str],
    ) -> None:
        """Take the sources that `find` returns, when they are first needed.

        ``captured_save(name, file, take)`` hands to `take` what a save would send;
        `name_of` turns a key into a name.
        """
        self._find = find
        self._captured_save = captured_save
        self._name_of = name_of
        self._read_ahead: dict[str, Content] = {}

    @cached_property
    def by_key(self) -> Mapping[str, Source]:
        """All of them."""
        return self._find()

    def judge(self, key: str, judge: Judge) -> bool:
        """Tell whether `judge` is true of what saving the source `key` would send."""
        content = self._read_ahead.pop(key, None)
        if content is not None:
            return bool(judge(content))
        return self._judge(key, judge)

    def hand_over(self, key: str, take: Judge) -> None:
        """Call `take` with what saving the source `key` sends, to be sent by it.

        It is read anew: of what was read ahead only the hashes are left.
        """
        self._read_ahead.pop(key, None)
        self._judge(key, take)

    def read_ahead(
        self, enough: Callable[[], bool], remembers: Callable[[str], bool]
    ) -> None:
        """Read and hash until it is `enough`.

        What the cache `remembers` need not be compressed to be compared.
        """
        for key in self.by_key:
            if enough():
                return
            if key in self._read_ahead:
                continue
            with suppress(OSError):  # The command will meet it, and name it.
                self._judge(key, partial(self._keep, key, remembers))

    def read(self) -> Iterable[tuple[str, Content]]:
        """Return what was read ahead and not been asked about, with its key."""
        return self._read_ahead.items()

    def _keep(
        self, key: str, remembers: Callable[[str], bool], content: Content
    ) -> None:
        if content.plain is None or (content.compresses and remembers(key)):
            return
        if content.can_settle:
            content.settle()
            self._read_ahead[key] = content

    def _judge(self, key: str, judge: Judge) -> bool:
        verdicts: list[object] = []
        with self.by_key[key].open() as file:
            self._captured_save(
                self._name_of(key),
                file,
                lambda _, content: verdicts.append(judge(content)),
            )
        return bool(verdicts) and all(verdicts)
