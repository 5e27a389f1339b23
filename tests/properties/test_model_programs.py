"""Random sequences of a program's calls, compared with django-storages.

Each call is made with a storage of this package and with its twin, which has the plain
class of django-storages and uses the same bucket. ``pytest
tests/properties/test_model_programs.py --sequences 500`` tries a sixth of that number
for each test, because each sequence takes longer.
"""

from __future__ import annotations

import gc
import io
import posixpath
import re
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.core.files.storage import storages
from django.core.management import call_command
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.support.bucket import BucketView
from tests.support.machine import one_of, run
from tests.support.proxy import Handler, Request
from tests.support.site import Site
from tests.support.twins import (
    OURS,
    THEIRS,
    Content,
    Media,
    Operation,
    Outcome,
    Place,
    Static,
    TheirMedia,
    TheirStatic,
    contents,
    outcome_of,
    perform,
    plain,
    write,
)

pytestmark = [
    pytest.mark.slow,
    # django-storages does not close files that it decompresses (in
    # S3File._decompress_file), and neither the buffer of a file if its last write was
    # refused (in S3File.close).
    pytest.mark.filterwarnings(
        "ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning"
    ),
]

STATIC, MEDIA = "static", "media"
PATIENCE = 30  # seconds after which a thread is considered to hang
# The modification time of sources. It is in the future so that django-storages copies
# all of them each time.
FUTURE = 4e9


@pytest.fixture(autouse=True)
def _no_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send no trailing checksums, because SeaweedFS stores "aws-chunked" with objects.

    django-storages would then not recognise the encoding "gzip" of an object.
    """
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")


# Three ways in which sites write a storage with a location that changes.


@dataclass
class Tenancy:
    """The current tenant, which a middleware or a management command sets."""

    current: str = "a"


TENANCY = Tenancy()


class LocationProperty:
    """A storage with a `location` that depends on the tenant, as in django-tenants."""

    _root = ""

    @property
    def location(self) -> str:
        return f"{self._root}/{TENANCY.current}" if self._root else ""

    @location.setter
    def location(self, value: str) -> None:
        self._root = value


class NameOfTenant:
    """A storage that adds the current tenant to each key in `_normalize_name`."""

    def _normalize_name(self, name: str) -> str:
        key: str = super()._normalize_name(f"{TENANCY.current}/{name}")  # type: ignore[misc]
        return key


class PropertyStatic(LocationProperty, Static):
    pass


class TheirPropertyStatic(LocationProperty, TheirStatic):
    pass


class NamedStatic(NameOfTenant, Static):
    pass


class TheirNamedStatic(NameOfTenant, TheirStatic):
    pass


CLASSES: dict[str, tuple[type, type]] = {
    "property": (PropertyStatic, TheirPropertyStatic),
    "assigned": (Static, TheirStatic),  # `change_tenant` sets `location`.
    "normalized": (NamedStatic, TheirNamedStatic),
}


# Names that a save creates, other spellings of them, and names that are refused.

NAMES = [
    "a.css",
    "a_1.css",  # the first alternative name of "a.css"
    "b.js",
    "d/c.css",
    "d/e/ü +%41.txt",
    "d/q?x=1&y#z 'quoted'.txt",
    "f",
]
SPELLINGS = ["./a.css", "d//c.css", "d\\c.css", "d/../b.js", "d/./e/../c.css"]
REFUSED = ["../x", "d/../../x", "/a.css"]
DENIED = "denied/put.txt"  # The proxy refuses PUT requests for this name.
UNSEEN = "denied/head.txt"  # The proxy refuses HEAD requests for this name.
FOLDERS = ["", "d", "d/", "d/e", "none"]
TENANTS = ["a", "b", "a/sub"]
SOURCES = ["a.css", "b.js", "d/c.css", "s/t.txt"]


def normal(name: str) -> str:
    """Return `name` in the form that it has in a key."""
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def group(name: str) -> str:
    """Return the common part of `name` and its alternative names."""
    return re.sub(r"_\d+", "", normal(name))


GROUPS = sorted({group(name) for name in [*NAMES, *SPELLINGS]})


def deny(handler: Handler, request: Request, body: bytes) -> bool:
    """Refuse PUT requests for one key, and HEAD requests for another key."""
    denied = {"PUT": DENIED, "HEAD": UNSEEN}.get(request.kind)
    if denied is None or not request.key.endswith(f"/{denied}"):
        return False
    handler.error(403, "AccessDenied")
    return True


def free(names: list[str]) -> st.SearchStrategy[str]:
    """Return a strategy for one of `names` that no open batch of the machine uses."""
    return one_of(
        lambda machine: [name for name in names if group(name) not in machine.batched]
    )


which = st.sampled_from([STATIC, MEDIA])
in_worker = st.booleans()
written = free([*NAMES, *SPELLINGS, *REFUSED, DENIED, UNSEEN])
looked_at = free([*NAMES, *SPELLINGS, *REFUSED, UNSEEN, "none.txt"])
lengths = st.sampled_from([None, None, None, 5, 100])
parameters = st.sampled_from(
    [
        {},
        {"CacheControl": "max-age=1"},
        {"CacheControl": "max-age=2", "ContentLanguage": "de"},
        {"ContentType": "text/x-other", "Metadata": {"release": "1"}},
        {"ContentDisposition": "attachment", "Metadata": {"release": "2"}},
    ]
)
UNKNOWN_PARAMETER = {"Nonsense": "1"}
operations = st.one_of(
    st.builds(Operation, st.just("save"), written, contents, length=lengths),
    st.builds(
        Operation, st.just("open"), written, contents, st.sampled_from(["w", "wb"])
    ),
    st.builds(
        Operation,
        st.just("open"),
        looked_at,
        mode=st.sampled_from(["r", "rb", "rb", "rw"]),
        length=st.sampled_from([None, 3]),
    ),
    st.builds(Operation, st.just("delete"), looked_at),
    st.builds(
        Operation, st.sampled_from(["exists", "size", "modified", "url"]), looked_at
    ),
    st.builds(Operation, st.just("listdir"), st.sampled_from(FOLDERS)),
)
# Calls at the same time as a collectstatic. They use other names than the sources, and
# list nothing, because a listing may or may not include files that are being uploaded.
concurrent_calls = st.lists(
    st.tuples(
        which,
        operations.filter(
            lambda operation: (
                operation.kind != "listdir"
                and group(operation.name) not in map(group, SOURCES)
            )
        ),
    ),
    max_size=4,
)


@dataclass
class ImmediateBatch:
    """A substitute for a batch, for the plain class; it acts immediately."""

    storage: Any

    def save(self, name: str, content: Any) -> str:
        saved: str = self.storage.save(name, content)
        return saved

    def delete(self, name: str) -> None:
        self.storage.delete(name)


@contextmanager
def batch_of(storage: Any, preload: bool | None) -> Generator[Any]:
    """Return a batch of `storage`, or a substitute if it is the plain class."""
    if hasattr(storage, "batch"):
        with storage.batch(preload=preload) as batch:
            yield batch
    else:
        yield ImmediateBatch(storage)


class InterruptedCommand(Command):
    """A command that calls `act` after it has copied the first file."""

    act: Callable[[], object] = staticmethod(lambda: None)

    def copy_file(self, *source: Any) -> None:
        super().copy_file(*source)
        act = self.act
        self.act = lambda: None
        act()


@dataclass
class OpenBatch:
    """A batch that has not ended, and the groups of names that it may use."""

    stack: ExitStack
    batch: Any
    groups: frozenset[str]


class ProgramMachine(RuleBasedStateMachine):
    """A state machine with two storages of a site, and their twins."""

    def __init__(self, site: Site, *, moves: bool, control: bool) -> None:
        super().__init__()
        self.site, self.moves, self.control = site, moves, control
        root = site.bucket.location
        view = BucketView(site.bucket.server, root)
        view.client = site.bucket.client
        self.root, self.place = root, Place(view)
        self.stack, self.settings = ExitStack(), ExitStack()
        self.style = "property"
        self.parameters: dict[str, Any] = {}
        self.batches: dict[str, OpenBatch] = {}
        self.writers: dict[tuple[str, str], tuple[Any, Any]] = {}
        # Keys of the static storage that programs wrote, and keys with headers that may
        # differ since a collectstatic (see `_collected`).
        self.by_programs: set[str] = set()
        self.differing: set[str] = set()
        TENANCY.current = "a"

    @cached_property
    def worker(self) -> ThreadPoolExecutor:
        """The second thread."""
        return self.stack.enter_context(ThreadPoolExecutor(1))

    @property
    def batched(self) -> frozenset[str]:
        """The groups of names that open batches may use."""
        none: frozenset[str] = frozenset()
        return none.union(*(each.groups for each in self.batches.values()))

    # The storages, which are made again by each new process.

    @initialize(
        style=st.sampled_from(sorted(CLASSES)),
        enabled=st.sampled_from([True, True, True, False]),
        preload=st.booleans(),
        threads=st.sampled_from([0, 3]),
        gzip=st.booleans(),
        threshold=st.sampled_from([100, 2**23]),
        sources=st.frozensets(st.sampled_from(SOURCES), min_size=1),
    )
    def start(
        self,
        style: str,
        enabled: bool,
        preload: bool,
        threads: int,
        gzip: bool,
        threshold: int,
        sources: frozenset[str],
    ) -> None:
        self.style = style
        for name in sources:
            self.site.write(name, f"source {name}", FUTURE)
        self.site.proxy.fault = deny
        options = self.site.storage_options | {
            "gzip": gzip,
            "transfer_config": TransferConfig(multipart_threshold=threshold),
            "collectfast_enabled": enabled,
            "collectfast_preload": preload,
            "collectfast_threads": threads,
        }
        self.options = plain(options) if self.control else options
        self._build()

    @precondition(lambda self: not self.batches and not self.writers)
    @rule()
    def restart(self) -> None:
        self._build()

    def _build(self) -> None:
        ours, theirs = CLASSES[self.style]
        classes = {STATIC: (ours, theirs), MEDIA: (Media, TheirMedia)}
        settings, twins = {}, {}
        for name, alias in ((STATIC, "staticfiles"), (MEDIA, "default")):
            first, second = classes[name]
            first = second if self.control else first
            # The media storage, which has a fixed location, does not overwrite files.
            own = {"file_overwrite": name == STATIC}
            location = f"{self.root}/{OURS}/{name}"
            options = self.options | own | {"location": location}
            backend = f"{first.__module__}.{first.__qualname__}"
            settings[alias] = {"BACKEND": backend, "OPTIONS": options}
            location = f"{self.root}/{THEIRS}/{name}"
            twins[name] = second(**plain(options) | {"location": location})
        self.settings.close()
        self.settings.enter_context(self.site.active(STORAGES=settings))
        self.storages = {
            STATIC: (storages["staticfiles"], twins[STATIC]),
            MEDIA: (storages["default"], twins[MEDIA]),
        }
        self._set_parameters()
        self._set_location()

    @rule(parameters=parameters)
    def configure(self, parameters: dict[str, Any]) -> None:
        self.parameters = parameters
        self._set_parameters()

    def _set_parameters(self) -> None:
        for pair in self.storages.values():
            for storage in pair:
                storage.object_parameters = dict(self.parameters)

    # The tenant does not change during a batch, because a batch has one location.
    @precondition(lambda self: self.moves and STATIC not in self.batches)
    @rule(tenant=st.sampled_from(TENANTS))
    def change_tenant(self, tenant: str) -> None:
        TENANCY.current = tenant
        self._set_location()

    def _set_location(self) -> None:
        if self.style == "assigned":
            for side, storage in zip(
                (OURS, THEIRS), self.storages[STATIC], strict=True
            ):
                location = f"{self.root}/{side}/{STATIC}/{TENANCY.current}"
                storage.location = location

    # Calls of a program.

    @rule(which=which, operation=operations, in_worker=in_worker)
    def call(self, which: str, operation: Operation, in_worker: bool) -> None:
        ours, theirs = (
            self._in(in_worker, lambda each=each: self._perform(each, operation))
            for each in self.storages[which]
        )
        assert ours == theirs
        self._compare(self._wrote(which, operation, ours))

    @rule(
        which=which,
        operation=st.builds(Operation, st.just("save"), written, contents),
        in_worker=in_worker,
        parameters=parameters,
    )
    def save_twice(
        self,
        which: str,
        operation: Operation,
        in_worker: bool,
        parameters: dict[str, Any],
    ) -> None:
        """Save a file twice, the second time perhaps with other headers."""
        self.call(which, operation, in_worker)
        self.configure(parameters)
        self.call(which, operation, not in_worker)

    @rule(
        which=which,
        operation=st.builds(Operation, st.just("save"), written, contents)
        | st.builds(Operation, st.just("open"), written, contents, st.just("w")),
    )
    def use_unknown_parameter(self, which: str, operation: Operation) -> None:
        before = self.parameters
        self.configure(UNKNOWN_PARAMETER)
        self.call(which, operation, False)
        self.configure(before)

    @rule(which=which, name=written, content=contents, in_worker=in_worker)
    def open_writer(
        self, which: str, name: str, content: Content, in_worker: bool
    ) -> None:
        """Open a file for writing, to close it some steps later."""
        if (which, name) in self.writers:
            return

        def opened(storage: Any) -> Any:
            file = storage.open(name, "w")
            try:
                write(file, content)
            except BaseException:
                file.close()
                raise
            return file

        ours, theirs = (
            self._in(in_worker, lambda each=each: outcome_of(lambda: opened(each)))
            for each in self.storages[which]
        )
        assert replace(ours, value=None) == replace(theirs, value=None)
        if ours.exception is None:
            self.writers[which, name] = ours.value, theirs.value

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), in_worker=in_worker)
    def close_writer(self, data: st.DataObject, in_worker: bool) -> None:
        which, name = data.draw(st.sampled_from(sorted(self.writers)))
        ours, theirs = (
            self._in(in_worker, lambda file=file: outcome_of(file.close))
            for file in self.writers.pop((which, name))
        )
        assert ours == theirs
        # The tenant may have changed since the file was opened.
        touched = {self._key(which, name, tenant) for tenant in TENANTS}
        self.by_programs |= touched
        self._compare(touched)

    def _perform(self, storage: Any, operation: Operation) -> Outcome:
        if not self.batches:
            return perform(storage, operation)
        # A shortened name could be one that a batch uses.
        outcome = perform(storage, replace(operation, length=None))
        if operation.kind != "listdir":
            return outcome
        # Folders are not compared, because they may contain only files of the batch.
        batched = {posixpath.basename(each) for each in self.batched}
        files = [file for file in outcome.value[1] if group(file) not in batched]
        return Outcome(files)

    def _wrote(self, which: str, operation: Operation, outcome: Outcome) -> set[str]:
        """Record the keys that a program may have written, and return them."""
        touched = {self._key(which, operation.name)}
        if operation.kind == "save" and outcome.exception is None:
            touched.add(self._key(which, outcome.value[0]))
            self.differing -= touched
        if operation.kind == "save" or "w" in operation.mode:
            self.by_programs |= touched
        return touched

    def _in(self, in_worker: bool, act: Callable[[], Any]) -> Any:
        """Return the result of `act`, in this thread or in the second one."""
        return self.worker.submit(act).result(PATIENCE) if in_worker else act()

    # A batch, which is open while other steps run.

    @rule(
        which=which,
        groups=st.frozensets(st.sampled_from(GROUPS), min_size=1, max_size=3),
        preload=st.sampled_from([None, True, False]),
    )
    def begin_batch(
        self, which: str, groups: frozenset[str], preload: bool | None
    ) -> None:
        groups -= self.batched | {group(name) for _, name in self.writers}
        if which not in self.batches and groups:
            stack = ExitStack()
            batch = stack.enter_context(batch_of(self.storages[which][0], preload))
            self.batches[which] = OpenBatch(stack, batch, groups)

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), content=contents | st.none(), in_worker=in_worker)
    def use_batch(
        self, data: st.DataObject, content: Content | None, in_worker: bool
    ) -> None:
        """Save or delete in the batch; the twin does so immediately."""
        which = data.draw(st.sampled_from(sorted(self.batches)))
        opened = self.batches[which]
        names = [name for name in NAMES if group(name) in opened.groups]
        name = data.draw(st.sampled_from(names))

        def act(target: Any) -> Any:
            if content is None:
                return target.delete(name)
            return target.save(name, content.file(name))

        outcomes = []
        targets = (opened.batch, self.storages[which][1])
        for storage, target in zip(self.storages[which], targets, strict=True):
            storage.alternatives = count(1)
            outcomes.append(
                self._in(in_worker, lambda each=target: outcome_of(lambda: act(each)))
            )
        ours, theirs = outcomes
        assert ours == theirs

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def end_batch(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from(sorted(self.batches)))
        opened = self.batches.pop(which)
        opened.stack.close()
        keys = {self._key(which, f"{each}") for each in opened.groups}
        objects = self.place.objects()
        touched = {
            key for side in objects.values() for key in side if _unnumbered(key) in keys
        }
        self.by_programs |= touched
        self.differing -= touched
        self._compare(touched)

    # A collectstatic.

    @rule(name=st.sampled_from(SOURCES), text=st.sampled_from(["", "one", "two"]))
    def write_source(self, name: str, text: str) -> None:
        self.site.write(name, text, FUTURE)

    # A collectstatic and an open batch never use the same names.
    @precondition(lambda self: not self.batched & {group(name) for name in SOURCES})
    @rule(
        options=st.sets(
            st.sampled_from(["--clear", "--no-post-process", "--dry-run"]), max_size=1
        ),
        in_worker=in_worker,
        concurrent=concurrent_calls,
    )
    def collect(
        self,
        options: set[str],
        in_worker: bool,
        concurrent: list[tuple[str, Operation]],
    ) -> None:
        """Collect to the static storage, while the other thread makes some calls."""
        clears = "--clear" in options
        if clears and STATIC in self.batches:
            return
        # A run with --clear deletes leftovers at its end, even if another thread has
        # overwritten one of them, because it lists the bucket at its beginning.
        calls = [] if clears or in_worker else concurrent
        if clears:
            self._clear_theirs()
        results: list[Any] = []
        for side, storage in enumerate(self.storages[STATIC]):
            command = InterruptedCommand()
            outcomes: list[Outcome] = []
            command.storage = storage
            is_ours = side == 0 and not self.control
            given = options if is_ours else options - {"--clear"}

            def act(side: int = side, outcomes: list[Outcome] = outcomes) -> None:
                for which, operation in calls:
                    pair = self.storages[which]
                    outcomes.append(self._perform(pair[side], operation))

            if calls:
                command.act = lambda act=act: self._in(True, act)
            collected = self._in(
                in_worker,
                lambda command=command, given=given: outcome_of(
                    lambda: _collect(command, given)
                ),
            )
            results.append((collected, outcomes))
        assert results[0] == results[1]
        touched = set[str]()
        for (which, operation), outcome in zip(calls, results[0][1], strict=True):
            touched |= self._wrote(which, operation, outcome)
        self._collected(touched, dry_run="--dry-run" in options)

    def _clear_theirs(self) -> None:
        """Clear as this package does.

        Django's own `--clear` looks for folders, which do not exist on S3.
        """
        for side in [OURS, THEIRS] if self.control else [THEIRS]:
            self.place.clear(f"{side}/{STATIC}/{TENANCY.current}/")

    def _collected(self, touched: set[str], dry_run: bool) -> None:
        """Compare, and allow for different headers of files that were not uploaded.

        A collectstatic does not upload unchanged contents. It compares headers only of
        its own earlier uploads, which are in the cache, and of large or encrypted
        files, because a listing does not include headers.
        """
        files = {path for path in self.site.static.rglob("*") if path.is_file()}
        names = [path.relative_to(self.site.static).as_posix() for path in files]
        keys = set() if dry_run else {self._key(STATIC, name) for name in names}
        objects = self.place.objects(keys | touched)
        for key in keys & (self.by_programs | self.differing):
            ours, theirs = objects[OURS][key], objects[THEIRS][key]
            if ours.headers == theirs.headers:
                self.by_programs.discard(key)
                self.differing.discard(key)
            else:
                self.differing.add(key)
        self._compare(keys | touched)

    # The bucket.

    def _key(self, which: str, name: str, tenant: str | None = None) -> str:
        folder = f"{which}/{tenant or TENANCY.current}" if which == STATIC else which
        return f"{folder}/{normal(name)}"

    def _compare(self, touched: set[str]) -> None:
        """Compare all objects except those that an open batch may use."""
        objects = self.place.objects(touched)
        ends = tuple(f"/{each}" for each in self.batched)
        ours, theirs = (
            {
                key: (each.content, None if key in self.differing else each.headers)
                for key, each in objects[side].items()
                if not _unnumbered(key).endswith(ends or ("/",))
            }
            for side in (OURS, THEIRS)
        )
        assert ours == theirs

    def teardown(self) -> None:
        try:
            # Batches and files belong to the storages, so they are closed first.
            for _, batch in sorted(self.batches.items()):
                batch.stack.close()
            self.batches.clear()
            for writer in (file for pair in self.writers.values() for file in pair):
                outcome_of(writer.close)
            self.settings.close()
        finally:
            self.stack.close()


def _unnumbered(key: str) -> str:
    return re.sub(r"_\d+", "", key)


def _collect(command: Command, options: set[str]) -> None:
    output = io.StringIO()
    call_command(command, *options, interactive=False, stdout=output, stderr=output)


@pytest.mark.parametrize("control", [False, True], ids=["ours", "control"])
@pytest.mark.parametrize("moves", [False, True], ids=["one place", "tenants"])
def test_programs_have_the_results_of_django_storages(
    new_site: Callable[[], Site], sequences: int, moves: bool, control: bool
) -> None:
    """Results, exceptions, keys, contents and headers equal those of django-storages.

    The control uses the plain class instead of this package's, which shows that
    django-storages itself passes the comparison.
    """

    def machine() -> ProgramMachine:
        return ProgramMachine(new_site(), moves=moves, control=control)

    run(machine, max(1, sequences // (30 if control else 6)), is_long=True)
    # Collect garbage here, because this module ignores warnings about unclosed files.
    gc.collect()
