"""Random commands and post-processing of a site, compared with django-storages.

Each command runs with a storage of this package and with its twin, which has the plain
class of django-storages and uses the same bucket. ``pytest
tests/properties/test_model_commands.py --sequences 500`` tries a fifteenth of that
number for each test, because each sequence takes longer.

These differences are by design, and allowed for:

- django-storages copies files that are newer than their objects, and this package
  copies files that differ. Here all sources are from the future, so that
  django-storages copies each of them. Headers are not compared, because a file that is
  not uploaded keeps its headers.
- This package deletes at the end of a collectstatic. Until then a deleted name counts
  as missing for the storage's methods, but its object is still there for boto3.
- With ``--clear``, this package keeps the files of the published manifest. Django finds
  nothing to clear on S3, where folders do not exist, so its twin is cleared beforehand.
"""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files.storage import storages
from django.core.management import call_command
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.support import twins
from tests.support.bucket import BucketView
from tests.support.machine import run, unhashed
from tests.support.site import Site
from tests.support.twins import (
    OURS,
    THEIRS,
    Object,
    Operation,
    Outcome,
    Place,
    contents,
    outcome_of,
    perform,
    plain,
)

pytestmark = [
    pytest.mark.slow,
    # django-storages does not close files that it decompresses (in
    # S3File._decompress_file).
    pytest.mark.filterwarnings(
        "ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning"
    ),
]

STATIC, OTHER = "static", "other"
MANIFEST = "staticfiles.json"
FUTURE = 4e9
PROCESSED = "<processed>"  # stands for the name that `post_process` yielded last

SOURCES = {
    "a.css": ["a{}", "a{background:url(i.png)}", '@import "d/b.css";'],
    "d/b.css": ["b{}", "b{background:url(../i.png)}"],
    "d/c.txt": ["", "c", "other c"],
    "i.png": ["image", "other image"],
}
EXTRAS = ["x.txt", "d/x.css", "d/e/ü +%41.txt"]

names = st.sampled_from([*SOURCES, *EXTRAS, PROCESSED, "none.txt"])
sources = st.fixed_dictionaries(
    {name: st.sampled_from(each) for name, each in SOURCES.items()}
)


@pytest.fixture(autouse=True)
def _no_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send no trailing checksums, because SeaweedFS stores "aws-chunked" with objects.

    django-storages would then not recognise the encoding "gzip" of an object.
    """
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")


# Operations of a site's own code.


@dataclass(frozen=True)
class Step:
    """An operation with the static storage or with the other one."""

    which: str
    operation: Operation

    @property
    def deletes(self) -> bool:
        return self.operation.kind == "delete"


saved = st.sampled_from([*SOURCES, *EXTRAS])
operations = st.one_of(
    st.builds(Operation, st.just("save"), saved, contents),
    st.builds(Operation, st.just("open"), saved, contents, st.just("w")),
    st.builds(
        Operation,
        st.just("open"),
        names,
        mode=st.sampled_from(["rb", "rb", "r"]),
        length=st.sampled_from([None, 3]),
    ),
    st.builds(
        Operation,
        st.sampled_from(["exists", "size", "modified", "url", "load", "head"]),
        names,
    ),
    st.builds(Operation, st.just("listdir"), st.sampled_from(["", "d", "d/e", "none"])),
    st.builds(Operation, st.just("delete"), names),
)
steps = st.lists(
    st.builds(Step, st.sampled_from([STATIC, STATIC, OTHER]), operations), max_size=2
)


@dataclass(frozen=True)
class Copying:
    """The behaviour of `copy_file` for one file."""

    before: list[Step]
    after: list[Step]
    # The storage that `copy_file` sets, if any, and whether it resets it afterwards.
    route: str | None = None
    resets: bool = True
    raises: str | None = None  # "before" or "after" Django's own `copy_file`


@dataclass(frozen=True)
class Plan:
    """The operations in one run of a command."""

    copying: dict[str, Copying]
    processing: list[list[Step]]  # between the results of `post_process`
    catches: str  # the method that catches the exceptions of `copy_file`
    arguments: list[str]

    @property
    def leaves_collect(self) -> bool:
        """Whether an exception may leave `collect`.

        Its end is not reached then. The package deletes at this end, so such a plan
        contains no deletes.
        """
        return self.raises and self.catches != "in copy_file"

    @property
    def raises(self) -> bool:
        """Whether the first attempt to copy a source raises an exception."""
        return any(each.raises for each in self.copying.values())


copyings = st.builds(
    Copying,
    steps,
    steps,
    st.sampled_from([None, None, None, OTHER, STATIC]),
    st.booleans(),
    st.sampled_from([None, None, None, None, "before", "after"]),
)
plans: st.SearchStrategy[Plan] = st.builds(
    Plan,
    st.dictionaries(st.sampled_from(sorted(SOURCES)), copyings, max_size=3),
    st.lists(steps, max_size=6),
    st.sampled_from(["in copy_file", "in collect", "in collect, and tries again"]),
    st.sampled_from([[], [], [], ["--no-post-process"], ["--clear"]]),
)


class TroubleError(Exception):
    """An exception that `copy_file` raises."""


class Records:
    """The outcomes of a plan, which is performed with one of the twins."""

    def __init__(self, pair: dict[str, Any], plan: Plan) -> None:
        self.pair, self.plan = pair, plan
        self.copying, self.processing = dict(plan.copying), list(plan.processing)
        self.outcomes: list[Any] = []
        self.processed = "none.txt"
        # Names that were deleted in this run, and names that were saved in it.
        self.deleted: set[tuple[str, str]] = set()
        self.saved: set[tuple[str, str]] = set()
        self.caught = False

    def perform(self, steps: list[Step]) -> None:
        for step in steps:
            if step.deletes and self.plan.leaves_collect:
                continue
            name = step.operation.name
            operation = replace(
                step.operation, name=self.processed if name == PROCESSED else name
            )
            outcome = perform(self.pair[step.which], operation)
            if self._is_comparable(step.which, operation):
                self.outcomes.append((step.which, operation, outcome))
            if outcome.exception is None:
                self._note(step.which, operation, outcome)

    def _note(self, which: str, operation: Operation, outcome: Outcome) -> None:
        if operation.kind == "delete":
            self.deleted.add((which, operation.name))
            self.saved.discard((which, operation.name))
        elif operation.kind == "save":
            self.save(which, outcome.value[0])
        elif operation.mode == "w":
            self.save(which, operation.name)

    def _is_comparable(self, which: str, operation: Operation) -> bool:
        place = which, operation.name
        if "--clear" in self.plan.arguments and which == STATIC:
            # For Django every name has been deleted, but this package deletes at the
            # end of the run.
            return operation.kind != "listdir" and place in self.saved
        return operation.kind not in ("load", "head") or place not in self.deleted

    def save(self, which: str, name: str) -> None:
        self.deleted.discard((which, name))
        self.saved.add((which, name))


class Planned(Command):
    """A command that copies files according to a plan."""

    records: Records

    def collect(self) -> dict[str, list[str]]:
        catches = self.records.plan.catches
        try:
            collected: dict[str, list[str]] = super().collect()
        except TroubleError:
            self.records.caught = True
            if "again" in catches:
                self.forget()
                return super().collect()
            return {"modified": [], "unmodified": [], "post_processed": []}
        return collected

    def forget(self) -> None:
        """Clear the lists of files, so that all of them are copied again.

        Otherwise Django would not copy the files that it has copied, and this package
        has not copied those that are unmodified.
        """
        for files in (self.copied_files, self.unmodified_files):
            files.clear()

    def copy_file(self, path: str, prefixed_path: str, source_storage: Any) -> None:
        try:
            self._copy(path, prefixed_path, source_storage)
        except TroubleError:
            if self.records.plan.catches != "in copy_file":
                raise

    def _copy(self, path: str, prefixed_path: str, source_storage: Any) -> None:
        copying = self.records.copying.pop(prefixed_path, Copying([], []))
        before = self.storage
        if copying.route is not None:
            self.storage = self.records.pair[copying.route]
        self.records.perform(copying.before)
        if copying.raises == "before":
            raise TroubleError
        super().copy_file(path, prefixed_path, source_storage)
        for which, storage in self.records.pair.items():
            if storage is getattr(self.storage, "_wrapped", self.storage):
                self.records.save(which, prefixed_path)
        self.records.perform(copying.after)
        if copying.resets:
            self.storage = before
        if copying.raises == "after":
            raise TroubleError


class Processing:
    """A storage with a `post_process` that performs operations between its results."""

    records: Records

    def post_process(
        self, paths: Any, dry_run: bool = False, **_: Any
    ) -> Iterator[Any]:
        post_process = getattr(super(), "post_process", None)
        for processed in post_process(paths, dry_run=dry_run) if post_process else ():
            self._perform()
            if isinstance(processed[1], str):
                self.records.processed = processed[1]
            yield processed
        for name in sorted(paths):
            self._perform()
            yield name, name, False
        self._perform()

    def _perform(self) -> None:
        if self.records.processing:
            self.records.perform(self.records.processing.pop(0))


class Static(Processing, twins.Static):
    pass


class TheirStatic(Processing, twins.TheirStatic):
    pass


class Manifest(Processing, twins.Manifest):
    pass


class TheirManifest(Processing, twins.TheirManifest):
    pass


CLASSES: dict[str, tuple[type, type]] = {
    "static": (Static, TheirStatic),
    "manifest": (Manifest, TheirManifest),
}


class CommandMachine(RuleBasedStateMachine):
    """A state machine with a site that has its own commands, and its twin."""

    def __init__(self, site: Site, *, storage: str, control: bool) -> None:
        super().__init__()
        self.site, self.storage, self.control = site, storage, control
        self.root = site.bucket.location
        view = BucketView(site.bucket.server, self.root)
        view.client = site.bucket.client
        self.place, self.settings = Place(view), ExitStack()
        self.commands: list[Planned] = []

    @initialize(
        files=sources,
        preload=st.booleans(),
        threads=st.sampled_from([0, 3]),
        gzip=st.booleans(),
    )
    def start(
        self, files: dict[str, str], preload: bool, threads: int, gzip: bool
    ) -> None:
        self._write(files)
        self.options = self.site.storage_options | {
            "gzip": gzip,
            "collectfast_preload": preload,
            "collectfast_threads": threads,
        }
        if self.control:
            self.options = plain(self.options)
        self._build()

    def _build(self) -> None:
        """Make new storages, as a new process does."""
        classes = {
            STATIC: CLASSES[self.storage],
            OTHER: (twins.Media, twins.TheirMedia),
        }
        settings, theirs = {}, {}
        for name, alias in ((STATIC, "staticfiles"), (OTHER, "default")):
            first, second = classes[name]
            first = second if self.control else first
            own = {"file_overwrite": name == STATIC}
            location = f"{self.root}/{OURS}/{name}"
            options = self.options | own | {"location": location}
            backend = f"{first.__module__}.{first.__qualname__}"
            settings[alias] = {"BACKEND": backend, "OPTIONS": options}
            location = f"{self.root}/{THEIRS}/{name}"
            theirs[name] = second(**plain(options) | {"location": location})
        self.settings.close()
        self.settings.enter_context(self.site.active(STORAGES=settings))
        ours = {STATIC: storages["staticfiles"], OTHER: storages["default"]}
        self.pairs = (ours, theirs)
        self.commands.clear()

    @rule(files=sources, restarts=st.booleans())
    def write(self, files: dict[str, str], restarts: bool) -> None:
        self._write(files)
        if restarts:
            self._build()

    def _write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            self.site.write(name, text, FUTURE)
        self.commands.clear()

    @rule(which=st.sampled_from([STATIC, OTHER]), operation=operations)
    def call(self, which: str, operation: Operation) -> None:
        """Call a storage outside of all runs."""
        if operation.name == PROCESSED:
            operation = replace(operation, name="none.txt")
        ours, theirs = (perform(pair[which], operation) for pair in self.pairs)
        assert ours == theirs
        self.commands.clear()

    @rule(plan=plans, reuses=st.sampled_from([False, False, True]))
    def collect(self, plan: Plan, reuses: bool) -> None:
        if plan.raises:
            # With --clear the results would differ, because nothing is cleared after
            # an exception, a second attempt clears again, and a source that is not
            # copied is not deleted.
            arguments = [each for each in plan.arguments if each != "--clear"]
            plan = replace(plan, arguments=arguments)
        if not (reuses and self.commands):
            self.commands = [Planned(), Planned()]
        before = self._objects()[OURS]
        records, outcomes = [], []
        for command, pair in zip(self.commands, self.pairs, strict=True):
            records.append(Records(pair, plan))
            # This package's storage is used through Django's own lazy object.
            is_ours = pair is self.pairs[0]
            command.storage = staticfiles_storage if is_ours else pair[STATIC]
            command.records = pair[STATIC].records = records[-1]
            command.forget()
            given = list(plan.arguments)
            if "--clear" in given and (self.control or not is_ours):
                given.remove("--clear")
                self.place.clear(f"{OURS if is_ours else THEIRS}/{STATIC}/")
            outcomes.append(
                outcome_of(lambda each=command, given=given: _call(each, given))
            )
        assert records[0].outcomes == records[1].outcomes
        assert outcomes[0] == outcomes[1]
        if records[0].caught or outcomes[0].exception is not None:
            # The next call waits for the uploads of a run that an exception has ended.
            for storage in self.pairs[0].values():
                storage.exists("none.txt")
        is_left = outcomes[0].exception is not None and not plan.leaves_collect
        if is_left:
            self._failed(records[0])
        elif "--clear" in plan.arguments:
            self._cleared(before)
        self._compare()

    def _failed(self, records: Records) -> None:
        """Allow for a run that did not reach its end, because post-processing failed.

        Deleted files still exist, and the hashed files have not been published.
        """
        objects = self._objects()
        missing = objects[THEIRS].keys() - objects[OURS].keys()
        assert {key for key in missing if key == unhashed(key)} == set()
        clears = "--clear" in records.plan.arguments
        deleted = {f"{which}/{name}" for which, name in records.deleted}
        extra = objects[OURS].keys() - objects[THEIRS].keys()
        extra = {key for key in extra if key == unhashed(key)}
        assert clears or extra <= deleted
        self._align()

    def _cleared(self, before: dict[str, Object]) -> None:
        """Allow for files of the published manifest and for sources.

        A source that is copied to another storage is not deleted from this one.
        """
        kept = {f"{STATIC}/{name}" for name in SOURCES}
        if manifest := before.get(f"{STATIC}/{MANIFEST}"):
            paths = manifest.content["paths"].values()
            kept |= {f"{STATIC}/{name}" for name in [*paths, MANIFEST]}
        objects = self._objects()
        assert objects[OURS].keys() - objects[THEIRS].keys() <= kept
        assert objects[THEIRS].keys() <= objects[OURS].keys()
        self._align()

    def _align(self) -> None:
        """Delete the objects that only one of the twins has."""
        objects = self._objects()
        for key in objects[OURS].keys() ^ objects[THEIRS].keys():
            which, _, name = key.partition("/")
            for pair in self.pairs:
                pair[which].delete(name)

    def _objects(self) -> dict[str, dict[str, Object]]:
        return self.place.objects()

    def _compare(self) -> None:
        ours, theirs = (
            {key: each.content for key, each in self._objects()[side].items()}
            for side in (OURS, THEIRS)
        )
        assert ours == theirs

    def teardown(self) -> None:
        self.settings.close()


def _call(command: Command, arguments: list[str]) -> None:
    output = io.StringIO()
    call_command(command, *arguments, interactive=False, stdout=output, stderr=output)


@pytest.mark.parametrize("control", [False, True], ids=["ours", "control"])
@pytest.mark.parametrize("storage", CLASSES)
def test_commands_have_the_results_of_django_storages(
    new_site: Callable[[], Site], sequences: int, storage: str, control: bool
) -> None:
    """Results, exceptions, keys and contents equal those of django-storages.

    The control uses the plain class instead of this package's, which shows that
    django-storages itself passes the comparison.
    """

    def machine() -> CommandMachine:
        return CommandMachine(new_site(), storage=storage, control=control)

    run(machine, max(1, sequences // (30 if control else 15)), is_long=True)
    # Collect garbage here, because this module ignores warnings about unclosed files.
    gc.collect()
