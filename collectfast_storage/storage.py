"""The storages: what each of Django's questions is answered with."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from io import SEEK_END
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from botocore.config import Config
from django.core.exceptions import ImproperlyConfigured
from django.core.files import File
from django.core.files.base import ContentFile
from django.utils.deconstruct import deconstructible
from storages.backends.s3 import (
    S3ManifestStaticStorage,
    S3StaticStorage,
    S3Storage,
)
from storages.utils import clean_name, lookup_env

from collectfast_storage.collectstatic import (
    Collectstatic,
    after_uploads,
    collecting_frame,
    frames,
    with_barrier,
)
from collectfast_storage.memory import Memory
from collectfast_storage.options import Options
from collectfast_storage.payload import CapturingBucket, Compressible, Payload, Take
from collectfast_storage.reporting import Batch
from collectfast_storage.run import Caller, Run, overridden, save_alone
from collectfast_storage.s3.bucket import Bucket
from collectfast_storage.s3.native import native_to
from collectfast_storage.uploads import Uploads, executor_of

if TYPE_CHECKING:
    from storages.backends.s3 import S3Storage as _Base
else:
    _Base = object

logger = logging.getLogger("collectfast_storage")

_BARRIERS: dict[str, Callable[[Any], Any]] = {
    "post_process": with_barrier,
    "save_manifest": after_uploads,
}
_IMPORTED_IN = os.getpid()


class _Local(threading.local):
    """What a thread is in the middle of."""

    take: Take | None = None  # who gets what `_save` would upload
    batch: Run | None = None

    def __init__(self) -> None:
        self.runs: dict[FrameType, Run] = {}  # by the `collect` that each is of


class _Process:
    """What a storage has in one process: its runs, and what its threads share."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.local = _Local()
        self.runs: WeakSet[Run] = WeakSet()  # of all threads


class CollectfastMixin(_Base):
    """Makes a django-storages S3 storage upload only what its bucket does not hold.

    To be put before it: ``class Mine(CollectfastMixin, TheirS3Storage)``. The options
    are those of `collectfast_storage.options.Options`, each with the prefix
    ``collectfast_``. Raises `ImproperlyConfigured` for one that is not valid.
    """

    # Whether an upload outside of runs has shown that the bucket's ETags are opaque.
    _collectfast_opaque: bool | None = None

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
        self._collectfast_process = _Process()
        self._collectfast_built_in = os.getpid()
        super().__init__(**settings)
        self._collectfast_options  # noqa: B018 (validates)

    def get_default_settings(self) -> dict[str, Any]:
        """Add this class's options to those of django-storages."""
        return super().get_default_settings() | Options.defaults()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process."""
        state: dict[str, Any] = super().__getstate__()
        return {k: v for k, v in state.items() if k != "_collectfast_process"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with no run, in whatever process this is."""
        super().__setstate__(state)
        self._collectfast_process = _Process()
        self._collectfast_built_in = os.getpid()

    # What Django asks.

    def exists(self, name: str) -> bool:
        """Answer as django-storages does; in a run, without asking the bucket."""
        run = self._collectfast_run()
        if run is not None:
            return run.exists(self._collectfast_name(name))
        return super().exists(name)

    def get_modified_time(self, name: str) -> datetime:
        """Answer as django-storages does; while collecting, with a verdict."""
        run = self._collectfast_run()
        if run is not None and run.caller.collects and not run.post_processing:
            return run.modified_time(self._collectfast_name(name))
        if run is not None:
            run.settle(self._collectfast_name(name))
        return super().get_modified_time(name)

    def delete(self, name: str) -> None:
        """Delete as django-storages does; in a run, not before it is safe."""
        run = self._collectfast_current_run()
        if run is not None and run.is_open:
            run.delete(self._collectfast_name(name))
            return
        if run is None:  # Or else it is that run which deletes.
            self._collectfast_forget(name)
        super().delete(name)

    def size(self, name: str) -> int:
        """Answer as django-storages does, when what is under way has arrived."""
        run = self._collectfast_run()
        if run is not None and (file := run.read(self._collectfast_name(name))):
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
        # What exists in memory only, a later pass may supersede.
        is_draft = bool(run and run.post_processing) and isinstance(
            content, ContentFile
        )
        taken = []

        def take(key: str, payload: Payload) -> None:
            taken.append(key.removeprefix(self._collectfast_prefix))
            if run is not None:
                run.save(taken[-1], payload, is_draft=is_draft)
            else:
                self._collectfast_save_alone(taken[-1], payload)

        saved = self._collectfast_capture(name, content, take)
        if self._collectfast_name(saved) not in taken:  # It was uploaded otherwise.
            self._collectfast_forget(saved)
        elif run is None:
            self._collectfast_tell(saved)
        return saved

    def _open(self, name: str, mode: str = "rb") -> Any:
        """Open as django-storages does; in a run, rather what is to be had locally."""
        run = self._collectfast_run()
        if "w" in mode:
            self._collectfast_forget(name)
        if run is not None and mode == "rb":
            file = run.read(self._collectfast_name(name))
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
            with self._collectfast_batch(lists=preload) as batch:
                yield batch

    @with_barrier
    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Post-process as the base does, if it does; a collectstatic ends here."""
        if hasattr(super(), "post_process"):
            yield from super().post_process(*args, **options)

    # What django-storages asks in `_save`; see `payload`.

    @property
    def connection(self) -> Any:
        """The boto3 resource, with as many connections as there are threads."""
        if self._collectfast_options.enabled:
            self._collectfast_here  # noqa: B018 (connections are no fork's)
            config: Any = self.client_config
            threads = self._collectfast_options.threads
            if config.max_pool_connections < threads:
                config = config.merge(Config(max_pool_connections=threads))
                self.client_config: Any = config
        return super().connection

    @property
    def bucket(self) -> Any:
        """The boto3 Bucket; inside of `_save`, a stand-in for it."""
        take = self._collectfast_process.local.take
        if take is None:
            return super().bucket
        return CapturingBucket(lambda: super(CollectfastMixin, self).bucket, take)

    def _compress_content(self, content: Any) -> Any:
        compress = super()._compress_content
        if self._collectfast_process.local.take is None:
            return compress(content)
        return Compressible(content, compress)

    def _collectfast_capture(self, name: str, content: Any, take: Take) -> str:
        """Save as django-storages does, but hand to `take` what it would upload."""
        local = self._collectfast_here.local
        outer, local.take = local.take, take
        try:
            return super()._save(name, content)
        finally:
            local.take = outer

    # Runs.

    def _collectfast_run(self) -> Run | None:
        """Return the run that answers the caller, opened by its first call."""
        run = self._collectfast_current_run()
        return run if run is not None and run.is_open else None

    def _collectfast_current_run(self) -> Run | None:
        """Return the run that the caller is part of, while it has not ended.

        A collectstatic takes precedence over a batch around it. Runs that were left
        behind by an exception are given up.
        """
        if not self._collectfast_enabled:
            return None
        local = self._collectfast_here.local
        # What was forked off a command copies in a way of its own.
        is_fork = self._collectfast_built_in != os.getpid()
        frame = None if is_fork else collecting_frame(self)
        run = local.batch if frame is None else local.runs.get(frame)
        if local.runs and run not in local.runs.values():
            stack = frames()
            for left in [frame for frame in local.runs if frame not in stack]:
                local.runs.pop(left).close(patiently=False)
        if frame is not None and run is None:
            if local.batch is not None:
                local.batch.synchronise()
            run = self._collectfast_open(Collectstatic(self, frame))
            local.runs[frame] = run
        return None if run is None or run.is_closed else run

    def _collectfast_open(self, caller: Caller) -> Run:
        bucket = self._collectfast_bucket(native=self._collectfast_native)
        uploads = Uploads(bucket, executor_of(self._collectfast_options.threads))
        memory = self._collectfast_memory(whole=True)
        run = Run(caller, bucket, memory, uploads)
        with self._collectfast_here.lock:
            self._collectfast_here.runs.add(run)
        return run

    @contextmanager
    def _collectfast_batch(
        self, lists: bool | None = None, trusts: bool | None = None
    ) -> Generator[Batch]:
        batch = Batch()
        run = self._collectfast_open(Caller(self, lists=lists, trusts=trusts))
        local = self._collectfast_here.local
        local.batch = run
        try:
            yield batch
            batch.report = run.finish()
            logger.info("%s", batch.report)
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            run.close(patiently=False)
            raise
        finally:
            local.batch = None
            run.close()

    def _collectfast_save_alone(self, name: str, payload: Payload) -> None:
        bucket = self._collectfast_bucket()
        bucket.has_opaque_etags = self._collectfast_opaque
        save_alone(Caller(self), bucket, self._collectfast_memory(), name, payload)
        # It knows from now on: no other has to be sent twice.
        self._collectfast_opaque = bucket.has_opaque_etags

    def _collectfast_tell(self, name: str, but: Run | None = None) -> None:
        """Tell all open runs `but` one that `name` was written by other means."""
        here = self._collectfast_here
        with here.lock:
            runs = [run for run in here.runs if run is not but and run.is_open]
        for run in runs:
            run.touched(self._collectfast_name(name))

    def _collectfast_forget(self, name: str) -> None:
        """Have nobody believe that what is remembered of `name` is still there."""
        if self._collectfast_enabled:
            self._collectfast_tell(name)
            memory = self._collectfast_memory()
            memory.remember(self._collectfast_name(name), None)
            memory.flush()

    # What they are made of.

    @property
    def _collectfast_here(self) -> _Process:
        """What belongs to this process; a fork leaves its parent what is that's own."""
        if self._collectfast_process.pid != os.getpid():
            built_in = self._collectfast_built_in
            self.__setstate__(self.__getstate__())
            self._collectfast_built_in = built_in
        return self._collectfast_process

    @cached_property
    def _collectfast_options(self) -> Options:
        return Options.of(self)

    @cached_property
    def _collectfast_enabled(self) -> bool:
        """Whether this is in force: not with a `bucket` that is a site's own."""
        return self._collectfast_options.enabled and not overridden(
            type(self), "bucket"
        )

    @cached_property
    def _collectfast_prefix(self) -> str:
        prefix: str = self._normalize_name("")
        return prefix

    def _collectfast_name(self, name: str) -> str:
        """Return `name` as this package has it: normalized, below the location."""
        key: str = self._normalize_name(clean_name(name))
        return key.removeprefix(self._collectfast_prefix)

    def _collectfast_bucket(self, native: Any = None) -> Bucket:
        if not self.bucket_name:
            raise ImproperlyConfigured(
                f"The option bucket_name (setting AWS_STORAGE_BUCKET_NAME) is "
                f"{self.bucket_name!r}. Set it to the name of the bucket."
            )
        return Bucket(
            self.bucket_name,
            self._collectfast_prefix,
            lambda: self.connection.meta.client,
            self.transfer_config,
            native,
        )

    def _collectfast_native(self, client: Any) -> Any:
        # Who makes connections of their own knows what these have to have.
        if not self._collectfast_options.threads or overridden(
            type(self), "connection"
        ):
            return None
        return native_to(
            client,
            self.bucket_name,
            lambda: self._create_session().get_credentials(),
            verify=self.verify,
            is_forked=os.getpid() != _IMPORTED_IN,
        )

    def _collectfast_memory(self, *, whole: bool = False) -> Memory:
        options = self._collectfast_options
        # What tells this place from all others that share its cache.
        endpoint = self.endpoint_url or lookup_env(
            ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
        )
        place = f"{endpoint} {self.session_profile} {self.bucket_name} "
        return Memory(
            options.cache,
            options.cache_timeout,
            place + self._collectfast_prefix,
            self._collectfast_here.lock,
            whole=whole,
        )


@deconstructible(path="collectfast_storage.CollectfastS3Storage")
class CollectfastS3Storage(CollectfastMixin, S3Storage):
    """`storages.backends.s3.S3Storage` that uploads only what changed."""


@deconstructible(path="collectfast_storage.CollectfastS3StaticStorage")
class CollectfastS3StaticStorage(CollectfastMixin, S3StaticStorage):
    """`storages.backends.s3.S3StaticStorage` that uploads only what changed."""


@deconstructible(path="collectfast_storage.CollectfastS3ManifestStaticStorage")
class CollectfastS3ManifestStaticStorage(CollectfastMixin, S3ManifestStaticStorage):
    """`storages.backends.s3.S3ManifestStaticStorage` that uploads only what changed."""
