"""The storages: what each of Django's questions is answered with."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property, partial
from io import SEEK_END
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from botocore.config import Config
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.files.storage import Storage
from django.utils.deconstruct import deconstructible
from storages.backends.s3 import (
    S3ManifestStaticStorage,
    S3StaticStorage,
    S3Storage,
)
from storages.utils import clean_name

from collectfast_storage.barrier import Processed, after_uploads, with_barrier
from collectfast_storage.capture import CapturingBucket, Compressible, Take
from collectfast_storage.command import calling_command
from collectfast_storage.locks import ForkSafeLock
from collectfast_storage.options import Options
from collectfast_storage.report import Batch

if TYPE_CHECKING:
    from django.contrib.staticfiles.management.commands.collectstatic import Command
    from storages.backends.s3 import S3Storage as _Base

    from collectfast_storage.content import Content
    from collectfast_storage.run import Run
else:
    _Base = object

logger = logging.getLogger("collectfast_storage")

_BARRIERS: dict[str, Callable[[Any], Any]] = {
    "post_process": with_barrier,
    "save_manifest": after_uploads,
}


# By identity, as a site's storage need not be hashable.
_STORAGES: WeakValueDictionary[int, CollectfastMixin] = WeakValueDictionary()


# Held while the open runs of a storage are looked at: threads open and end them.
_LOCK = ForkSafeLock()


class _Local(threading.local):
    """What a thread is in the middle of."""

    take: Take | None = None  # who gets what `_save` would upload
    batch: Run | None = None


class CollectfastMixin(_Base):
    """Makes a django-storages S3 storage upload only what its bucket does not hold.

    To be put before it: ``class Mine(CollectfastMixin, TheirS3Storage)``. The options
    are those of `collectfast_storage.options.Options`, each with the prefix
    ``collectfast_``. Raises `ImproperlyConfigured` for one that is not valid.
    """

    # Whether an upload has shown that the bucket's ETags are opaque; see `ledger`.
    _collectfast_opaque = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make sure of the barrier, whatever the order of the bases.

        Django's `HashedFilesMixin.post_process` does not call its parent's, nor need a
        site's own.
        """
        super().__init_subclass__(**kwargs)
        for name, wrap in _BARRIERS.items():
            method = getattr(cls, name, None)
            if method is not None and not hasattr(method, "has_barrier"):
                setattr(cls, name, wrap(method))

    def __init__(self, **settings: Any) -> None:
        """Take the options of django-storages' class and this one's."""
        self._collectfast_reset()
        _STORAGES[id(self)] = self
        super().__init__(**settings)
        self._collectfast_options  # noqa: B018 (validates)

    def get_default_settings(self) -> dict[str, Any]:
        """Add this class's options to those of django-storages."""
        return super().get_default_settings() | Options.defaults()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process."""
        state: dict[str, Any] = super().__getstate__()
        for name in (
            "_collectfast_runs",
            "_collectfast_open_runs",
            "_collectfast_local",
        ):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with no run, in whatever process this is."""
        super().__setstate__(state)
        self._collectfast_reset()
        _STORAGES[id(self)] = self

    # What Django asks.

    def exists(self, name: str) -> bool:
        """Answer as django-storages does; in a run, without asking the bucket."""
        run = self._collectfast_run()
        if run is not None:
            return run.exists(self._collectfast_key(name))
        return super().exists(name)

    def get_modified_time(self, name: str) -> datetime:
        """Answer as django-storages does; while collecting, with a verdict."""
        run = self._collectfast_run()
        if run is not None and run.collecting:
            return run.modified_time(self._collectfast_key(name))
        if run is not None:
            run.settle(self._collectfast_key(name))
        return super().get_modified_time(name)

    def delete(self, name: str) -> None:
        """Delete as django-storages does; in a run, not before it is safe."""
        run = self._collectfast_run()
        if run is not None:
            run.delete(self._collectfast_key(name))
            return
        self._collectfast_written(name)
        super().delete(name)

    def size(self, name: str) -> int:
        """Answer as django-storages does, when what is under way has arrived."""
        run = self._collectfast_run()
        if run is not None and (file := run.read(self._collectfast_key(name))):
            with file:
                return file.seek(0, SEEK_END)
        return super().size(name)

    def listdir(self, name: str) -> tuple[list[str], list[str]]:
        """Answer as django-storages does, when what is under way has arrived."""
        run = self._collectfast_run()
        if run is not None:
            run.synchronise()
        return super().listdir(name)

    def _save(self, name: str, content: Any) -> str:
        """Save as django-storages does, but do not upload what the bucket holds."""
        if not self._collectfast_enabled:
            return super()._save(name, content)
        run = self._collectfast_run()
        take: Take = self._collectfast_save
        if run is not None:
            # What exists in memory only, a later pass may supersede.
            draft = run.post_processing and isinstance(content, ContentFile)
            take = partial(run.save, final=not draft)
        taken: list[str] = []

        def take_note(key: str, sent: Content) -> None:
            taken.append(key)
            take(key, sent)

        saved = self._collectfast_captured_save(name, content, take_note)
        if run is None or self._collectfast_key(saved) not in taken:
            self._collectfast_written(saved, forget=not taken)
        return saved

    def _open(self, name: str, mode: str = "rb") -> Any:
        """Open as django-storages does; in a run, rather what is to be had locally."""
        run = self._collectfast_run()
        if "w" in mode:
            self._collectfast_written(name)
        if run is not None and mode == "rb":
            file = run.read(self._collectfast_key(name))
            if file is not None:
                return File(file, name)
        return super()._open(name, mode)

    @contextmanager
    def batch(self, *, preload: bool | None = None) -> Generator[Batch]:
        """Save and delete many files as a collectstatic does.

        Inside of the block, and in its thread, the bucket is listed once, uploads run
        in the background, and deletes wait for its end. There, `UploadError` or
        `DeleteError` names each file that failed; after an exception in the block
        nothing is deleted. A batch in a batch is part of it. With `preload` false, each
        file is asked for instead of a listing, if the cache does not remember it; the
        default is the option ``collectfast_preload``.
        """
        if not self._collectfast_enabled:
            yield Batch()
        elif (outer := self._collectfast_run()) is not None:
            batch = Batch()
            yield batch
            batch.report = outer.report()
        else:
            with self._collectfast_own_batch(preload) as batch:
                yield batch

    @contextmanager
    def _collectfast_own_batch(
        self, preload: bool | None = None, trust: bool | None = None
    ) -> Generator[Batch]:
        from collectfast_storage.wiring import open_batch

        batch = Batch()
        run = open_batch(self, preload=preload, trust=trust)
        self._collectfast_local.batch = run
        self._collectfast_add(run)
        try:
            yield batch
            batch.report = run.finish()
            logger.info("%s", batch.report)
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            run.abandon()
            raise
        finally:
            if self._collectfast_batch is run:
                self._collectfast_local.batch = None
            run.close()

    @with_barrier
    def post_process(
        self,
        paths: Mapping[str, tuple[Storage, str]],
        dry_run: bool = False,
        **options: Any,
    ) -> Iterator[Processed]:
        """Post-process as the base does, if it does; a run ends here."""
        if hasattr(super(), "post_process"):
            yield from super().post_process(paths, dry_run=dry_run, **options)

    # What django-storages asks in `_save`; see `capture`.

    @property
    def connection(self) -> Any:
        """The boto3 resource, with as many connections as there are threads."""
        config: Any = self.client_config
        threads = self._collectfast_options.threads
        if config.max_pool_connections < threads:
            config = config.merge(Config(max_pool_connections=threads))
            self.client_config: Any = config
        return super().connection

    @property
    def bucket(self) -> Any:
        """The boto3 Bucket; inside of `_save`, a stand-in for it."""
        take = self._collectfast_local.take
        if take is None:
            return super().bucket
        return CapturingBucket(lambda: super(CollectfastMixin, self).bucket, take)

    def _compress_content(self, content: Any) -> Any:
        compress = super()._compress_content
        if self._collectfast_local.take is None:
            return compress(content)
        return Compressible(content, compress)

    def _collectfast_captured_save(self, name: str, content: Any, take: Take) -> str:
        """Save as django-storages does, but hand to `take` what it would upload."""
        outer, self._collectfast_local.take = self._collectfast_local.take, take
        try:
            return super()._save(name, content)
        finally:
            self._collectfast_local.take = outer

    # Where the parts are put together.

    def _collectfast_reset(self) -> None:
        self._collectfast_runs: WeakKeyDictionary[Command, Run] = WeakKeyDictionary()
        self._collectfast_open_runs: WeakSet[Run] = WeakSet()
        self._collectfast_local = _Local()

    @cached_property
    def _collectfast_options(self) -> Options:
        return Options.of(self)

    @cached_property
    def _collectfast_enabled(self) -> bool:
        """Whether this is in force: not with a `bucket` that is a site's own."""
        own = [parent for parent in type(self).__mro__ if "bucket" in vars(parent)]
        return self._collectfast_options.enabled and all(
            parent in (CollectfastMixin, S3Storage) for parent in own
        )

    @property
    def _collectfast_batch(self) -> Run | None:
        run = self._collectfast_local.batch
        return None if run is None or run.ended else run

    def _collectfast_run(self) -> Run | None:
        """Return the run that the caller is part of, opened by its first call."""
        if not self._collectfast_enabled:
            return None
        run = self._collectfast_batch or self._collectfast_command_run()
        return None if run is None or run.ended or run.stands_aside else run

    def _collectfast_command_run(self) -> Run | None:
        command = calling_command(self)
        # One of a site's own may ask before it has its options: then it is not at work.
        if command is None or not hasattr(command, "post_process"):
            return None
        run = self._collectfast_runs.get(command)
        if run is None:
            from collectfast_storage.wiring import open_run

            run = self._collectfast_runs[command] = open_run(self, command)
            self._collectfast_add(run)
            weakref.finalize(command, run.abandon)
        return run

    def _collectfast_add(self, run: Run) -> None:
        with _LOCK:
            self._collectfast_open_runs.add(run)

    def _collectfast_written(self, name: str, *, forget: bool = True) -> None:
        """Tell whoever may think otherwise that `name` is written by other means."""
        if not self._collectfast_enabled:
            return
        key = self._collectfast_key(name)
        with _LOCK:
            runs = [run for run in self._collectfast_open_runs if not run.ended]
        for run in runs:
            run.written(key)
        if forget:
            from collectfast_storage import wiring

            # A run asks the same cache: it warns once, not for each file.
            wiring.forget(self, key, quiet=bool(runs))

    def _collectfast_key(self, name: str) -> str:
        key: str = self._normalize_name(clean_name(name))
        return key

    def _collectfast_save(self, key: str, content: Content) -> None:
        from collectfast_storage.wiring import save_alone

        save_alone(self, key, content)


def _leave_parent() -> None:
    """Leave to the parent of this process what is its own: runs and connections."""
    for storage in list(_STORAGES.values()):
        for run in list(storage._collectfast_open_runs):
            run.ended = True
        storage.__setstate__(storage.__getstate__())


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has none)
    os.register_at_fork(after_in_child=_leave_parent)


@deconstructible(path="collectfast_storage.CollectfastS3Storage")
class CollectfastS3Storage(CollectfastMixin, S3Storage):
    """`storages.backends.s3.S3Storage` that uploads only what changed."""


@deconstructible(path="collectfast_storage.CollectfastS3StaticStorage")
class CollectfastS3StaticStorage(CollectfastMixin, S3StaticStorage):
    """`storages.backends.s3.S3StaticStorage` that uploads only what changed."""


@deconstructible(path="collectfast_storage.CollectfastS3ManifestStaticStorage")
class CollectfastS3ManifestStaticStorage(CollectfastMixin, S3ManifestStaticStorage):
    """`storages.backends.s3.S3ManifestStaticStorage` that uploads only what changed."""
