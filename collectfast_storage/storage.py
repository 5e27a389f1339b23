"""The storages: what each of Django's questions is answered with."""

import logging
import os
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from io import SEEK_END
from types import FrameType
from typing import Any
from weakref import WeakSet

from botocore.config import Config
from django.core.files import File
from django.core.files.base import ContentFile
from django.utils.deconstruct import deconstructible
from storages.backends.s3 import S3ManifestStaticStorage, S3StaticStorage, S3Storage
from storages.utils import clean_name, lookup_env

from collectfast_storage import collectstatic
from collectfast_storage.memory import Memory
from collectfast_storage.options import Options, misconfigured
from collectfast_storage.payload import CapturingBucket, Compressible, Payload, Take
from collectfast_storage.reporting import Batch
from collectfast_storage.run import Caller, Run, overridden, save_alone
from collectfast_storage.s3.bucket import Bucket
from collectfast_storage.s3.errors import naming
from collectfast_storage.uploads import BoundedExecutor, Uploads

# What it is put before; untyped, as all of django-storages.
_Base: Any = object

logger = logging.getLogger("collectfast_storage")
_IMPORTED_IN = os.getpid()


class _Thread(threading.local):
    """What a thread is in the middle of with a storage, and what all of them share."""

    def __init__(self, pid: int, lock: threading.Lock, all_runs: WeakSet[Run]) -> None:
        self.pid, self.lock, self.all_runs = pid, lock, all_runs
        self.session: Any = None  # boto3's
        self.take: Take | None = None  # who gets what `_save` would upload
        self.batch: Run | None = None
        self.runs: dict[FrameType, Run] = {}  # by the `collect` that each is of


class CollectfastMixin(_Base):
    """Makes a django-storages S3 storage upload only what its bucket does not hold.

    To be put before it: ``class Mine(CollectfastMixin, TheirS3Storage)``. The options
    are those of `collectfast_storage.options.Options`, each with the prefix
    ``collectfast_``. Raises `ImproperlyConfigured` for one that is not valid.
    """

    # Whether an upload outside of runs has shown that the bucket's ETags are opaque.
    _collectfast_opaque: bool | None = None
    # Which hashed names the bucket's manifest has, as far as a run found out.
    _collectfast_published: Mapping[str, str] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make sure of the barriers: no method need call its parent's."""
        super().__init_subclass__(**kwargs)
        for name in ("load_manifest", "post_process", "save_manifest"):
            method = getattr(cls, name, None)
            if method is not None and not hasattr(method, "has_barrier"):
                setattr(cls, name, collectstatic.with_barrier(method, name))

    def __init__(self, **settings: Any) -> None:
        """Take the options of django-storages' class and this one's."""
        self._collectfast_start()
        super().__init__(**settings)
        self._collectfast_options  # noqa: B018 (validates)

    def get_default_settings(self) -> dict[str, Any]:
        """Add this class's options to those of django-storages."""
        return super().get_default_settings() | Options.defaults()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process."""
        state: dict[str, Any] = super().__getstate__()
        return {k: v for k, v in state.items() if k != "_collectfast_thread"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with no run, in whatever process this is."""
        super().__setstate__(state)
        self._collectfast_start()

    # What Django asks.

    def exists(self, name: str) -> bool:
        """Answer as django-storages does; in a run, without asking the bucket."""
        run = self._collectfast_run()
        if run is not None:
            return run.exists(run.caller.name_of(name))
        return super().exists(name)

    def get_modified_time(self, name: str) -> datetime:
        """Answer as django-storages does; while collecting, with a verdict."""
        run = self._collectfast_run()
        if run is not None and run.caller.collects and not run.post_processing:
            return run.modified_time(run.caller.name_of(name))
        if run is not None:
            run.settle(run.caller.name_of(name))
        with naming(self.bucket_name if run else None):
            return super().get_modified_time(name)

    def delete(self, name: str) -> None:
        """Delete as django-storages does; in a run, not before it is safe."""
        run = self._collectfast_current_run()
        if run is not None and run.is_open:
            run.delete(run.caller.name_of(name))
            return
        if run is None:  # Or else it is that run which deletes.
            self._collectfast_forget(name)
        super().delete(name)

    def size(self, name: str) -> int:
        """Answer as django-storages does, when what is under way has arrived."""
        run = self._collectfast_run()
        file = run.read(run.caller.name_of(name)) if run is not None else None
        if file is None:
            with naming(self.bucket_name if run else None):
                return super().size(name)
        with file:
            return file.seek(0, SEEK_END)

    def listdir(self, name: str) -> tuple[list[str], list[str]]:
        """Answer as django-storages does, when what is under way has arrived."""
        run = self._collectfast_run()
        if run is not None:
            run.synchronise()
        with naming(self.bucket_name if run else None):
            return super().listdir(name)

    def _save(self, name: str, content: Any) -> str:
        """Save as django-storages does, but do not upload what the bucket holds."""
        if not self._collectfast_enabled:
            return super()._save(name, content)
        run = self._collectfast_run()
        taken = []

        def take(key: str, payload: Payload) -> None:
            taken.append(key.removeprefix(self._collectfast_prefix))
            if run is None:
                bucket = self._collectfast_bucket()
                bucket.has_opaque_etags = self._collectfast_opaque
                memory = self._collectfast_memory()
                save_alone(Caller(self), bucket, memory, taken[-1], payload)
                # It knows from now on: no other has to be sent twice.
                self._collectfast_opaque = bucket.has_opaque_etags
            else:
                # What exists in memory only, a later pass may supersede.
                run.save(taken[-1], payload, in_memory=isinstance(content, ContentFile))

        try:
            saved = self._collectfast_capture(name, content, take)
        except (KeyboardInterrupt, SystemExit):  # pragma: no cover (not traced)
            if run is not None:
                run.close()
            raise
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
        run = run if mode == "rb" else None
        file = run.read(run.caller.name_of(name)) if run else None
        if file is not None:
            return File(file, name)
        with naming(self.bucket_name if run else None):
            opened = super()._open(name, mode)
            try:
                if run is not None:
                    opened.open()  # Or else it would be asked for when it is read.
            except BaseException:
                opened.close()
                raise
        return opened

    @contextmanager
    def batch(self, *, preload: bool | None = None) -> Generator[Batch]:
        """Save and delete many files as a collectstatic does.

        Inside of the block, and in its thread, the bucket is listed once (if `preload`,
        which is the option ``collectfast_preload`` by default), uploads run in the
        background, and deletes wait for its end. There, `UploadError` or `DeleteError`
        names each file that failed; after an exception in the block nothing is deleted.
        A batch in a batch, or in a collectstatic, is part of it.
        """
        outer = self._collectfast_run()
        if self._collectfast_enabled and outer is None:
            with self._collectfast_batch(lists=preload) as batch:
                yield batch
        else:
            batch = Batch()
            yield batch
            batch.report = outer.report() if outer is not None else batch.report

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
                own = Config(max_pool_connections=threads)
                self.client_config: Any = config.merge(own)
        return super().connection

    def _create_session(self) -> Any:
        """One a thread: botocore's models are read once, also for unsigned URLs."""
        is_own = overridden(type(self), "_create_session")
        if is_own or not self._collectfast_options.enabled:
            return super()._create_session()
        here = self._collectfast_here
        here.session = here.session or super()._create_session()
        return here.session

    @property
    def bucket(self) -> Any:
        """The boto3 Bucket; inside of `_save`, a stand-in for it."""
        take = self._collectfast_thread.take
        if take is None:
            self._collectfast_require_name()
            return super().bucket
        return CapturingBucket(lambda: super(CollectfastMixin, self).bucket, take)

    def _compress_content(self, content: Any) -> Any:
        compress = super()._compress_content
        is_taken = self._collectfast_thread.take is not None
        return Compressible(content, compress) if is_taken else compress(content)

    def _collectfast_capture(self, name: str, content: Any, take: Take) -> str:
        """Save as django-storages does, but hand to `take` what it would upload."""
        thread = self._collectfast_here
        outer, thread.take = thread.take, take
        try:
            return super()._save(name, content)
        finally:
            thread.take = outer

    # Runs.

    def _collectfast_run(self) -> Run | None:
        """Return the run that answers the caller, opened by its first call."""
        run = self._collectfast_current_run()
        return run if run is not None and run.is_open else None

    def _collectfast_current_run(self) -> Run | None:
        """Return the run that the caller is part of, while it has not ended.

        A collectstatic goes before a batch around it. What an exception left ends.
        """
        if not self._collectfast_enabled:
            return None
        thread = self._collectfast_here
        # What was forked off a command copies in a way of its own.
        is_fork = self._collectfast_built_in != thread.pid
        frame = None if is_fork else collectstatic.collecting_frame(self)
        run = thread.batch if frame is None else thread.runs.get(frame)
        if thread.runs and run not in thread.runs.values():
            for left in thread.runs.keys() - {*collectstatic.callers()}:
                thread.runs.pop(left).close()
        if frame is not None and run is None:
            if thread.batch is not None:
                thread.batch.synchronise()
            run = self._collectfast_open(collectstatic.Collectstatic(self, frame))
            thread.runs[frame] = run
        return None if run is None or run.is_closed else run

    def _collectfast_open(self, caller: Caller) -> Run:
        bucket = self._collectfast_bucket(native=self._collectfast_native)
        threads = self._collectfast_options.threads
        uploads = Uploads(bucket, BoundedExecutor(threads, self.client_config))
        memory = self._collectfast_memory(whole=True)
        run = Run(caller, bucket, memory, uploads)
        thread = self._collectfast_here
        with thread.lock:
            thread.all_runs.add(run)
        return run

    @contextmanager
    def _collectfast_batch(
        self, lists: bool | None = None, trusts: bool | None = None
    ) -> Generator[Batch]:
        batch, thread = Batch(), self._collectfast_here
        run = self._collectfast_open(Caller(self, lists=lists, trusts=trusts))
        thread.batch = run
        try:
            yield batch
            batch.report = run.finish()
            logger.info("%s", batch.report)
        finally:
            thread.batch = None
            run.close()

    def _collectfast_tell(self, name: str, but: Run | None = None) -> None:
        """Tell all open runs `but` one that `name` was written by other means."""
        here = self._collectfast_here
        with here.lock:
            runs = [run for run in here.all_runs if run is not but and run.is_open]
        for run in runs:
            run.touched(self._collectfast_name(name))

    def _collectfast_forget(self, name: str) -> None:
        """Have nobody believe that what is remembered of `name` is still there."""
        if self._collectfast_enabled:
            self._collectfast_tell(name)
            memory = self._collectfast_memory()
            memory.remember(self._collectfast_name(name), None)
            memory.flush()

    def _collectfast_start(self) -> None:
        self._collectfast_thread = _Thread(os.getpid(), threading.Lock(), WeakSet())
        self._collectfast_built_in = os.getpid()

    @property
    def _collectfast_here(self) -> _Thread:
        """What is this thread's; a fork leaves its parent what is that's own."""
        if self._collectfast_thread.pid != os.getpid():
            built_in = self._collectfast_built_in
            self.__setstate__(self.__getstate__())
            self._collectfast_built_in = built_in
        return self._collectfast_thread

    @cached_property
    def _collectfast_options(self) -> Options:
        return Options.of(self)

    @cached_property
    def _collectfast_enabled(self) -> bool:
        """Whether this is in force: not with a `bucket` that is a site's own."""
        is_own = overridden(type(self), "bucket")
        return self._collectfast_options.enabled and not is_own

    @cached_property
    def _collectfast_prefix(self) -> str:
        return str(self._normalize_name(""))

    def _collectfast_name(self, name: str) -> str:
        """Return `name` as this package has it: normalized, below the location."""
        key = str(self._normalize_name(clean_name(name)))
        return key.removeprefix(self._collectfast_prefix)

    def _collectfast_bucket(self, native: Any = None) -> Bucket:
        self._collectfast_require_name()
        prefix, config = self._collectfast_prefix, self.transfer_config
        client, parameters = lambda: self.connection.meta.client, self.object_parameters
        return Bucket(self.bucket_name, prefix, client, config, native, parameters)

    def _collectfast_require_name(self) -> None:
        if self._collectfast_options.enabled and not self.bucket_name:
            option = "option bucket_name (setting AWS_STORAGE_BUCKET_NAME)"
            raise misconfigured(option, self.bucket_name, "the name of the bucket")

    def _collectfast_native(self, client: Any) -> Any:
        # Who makes connections of their own knows what these have to have.
        is_own = overridden(type(self), "connection")
        if is_own or not self._collectfast_options.threads:
            return None
        from collectfast_storage.s3.native import native_to

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
        named = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
        endpoint = self.endpoint_url or lookup_env(named)
        place = f"{endpoint} {self.session_profile} {self.bucket_name} "
        place += self._collectfast_prefix
        lock = self._collectfast_here.lock
        return Memory(options.cache, options.cache_timeout, place, lock, whole)


@deconstructible(path="collectfast_storage.CollectfastS3Storage")
class CollectfastS3Storage(CollectfastMixin, S3Storage):
    """`storages.backends.s3.S3Storage` that uploads only what changed."""


@deconstructible(path="collectfast_storage.CollectfastS3StaticStorage")
class CollectfastS3StaticStorage(CollectfastMixin, S3StaticStorage):
    """`storages.backends.s3.S3StaticStorage` that uploads only what changed."""


@deconstructible(path="collectfast_storage.CollectfastS3ManifestStaticStorage")
class CollectfastS3ManifestStaticStorage(CollectfastMixin, S3ManifestStaticStorage):
    """`storages.backends.s3.S3ManifestStaticStorage` that uploads only what changed."""
