"""The storage classes: the methods that Django, and programs, call."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from functools import cache, cached_property
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

from botocore.config import Config
from django.conf import settings
from django.core.files import File
from django.core.files.base import ContentFile
from django.utils.deconstruct import deconstructible
from storages.backends.s3 import S3ManifestStaticStorage, S3StaticStorage, S3Storage
from storages.utils import clean_name, lookup_env

from collectfast_storage import runs
from collectfast_storage.batch import Batch
from collectfast_storage.collectstatic import Collectstatic
from collectfast_storage.congestion import Congestion
from collectfast_storage.context import Destination, RunContext, overridden
from collectfast_storage.options import Options, misconfigured
from collectfast_storage.payload import Capture, CapturingBucket, Compressible
from collectfast_storage.program import save_unless_unchanged
from collectfast_storage.retrying import RetryingSender
from collectfast_storage.run import Run
from collectfast_storage.s3.bucket import Bucket
from collectfast_storage.s3.errors import as_bucket_error, not_found
from collectfast_storage.upload_cache import UploadCache
from collectfast_storage.uploads import BoundedExecutor

# The class that the mixin is put before. django-storages has no types.
_Base: Any = object

logger = logging.getLogger("collectfast_storage")
_IMPORTED_IN = os.getpid()
# It applies unless the option `client_config` has another time-out. botocore's default
# is 60 seconds.
_CONFIG = Config(connect_timeout=10)
_PREDECESSORS = {"collectfast", "collectfasta"}


class _Thread(threading.local):
    """State of the calls that this thread is executing, and its sessions."""

    def __init__(self) -> None:
        # A storage that saves, and the function that receives its upload.
        self.capturing: tuple[object, Any] = (None, None)
        # The storage that creates its connection for unsigned URLs.
        self.unsigned: object = None
        # The last boto3 session of each storage.
        self.sessions: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


_thread = _Thread()


@contextmanager
def _in_this_thread(attribute: str, value: object) -> Iterator[None]:
    """Set an `attribute` of `_thread` to `value` in this context."""
    outer = getattr(_thread, attribute)
    setattr(_thread, attribute, value)
    try:
        yield
    finally:
        setattr(_thread, attribute, outer)


class _ConnectionMixin(_Base):
    """Creates the connections of a process, and of its threads."""

    _collectfast_pid = 0  # of the process that the connections belong to

    @property
    def connection(self) -> Any:
        """The boto3 resource, with as many connections as there are threads."""
        if self._collectfast_options.enabled:
            self._collectfast_reset_after_fork()
            config: Any = _CONFIG.merge(self.client_config)
            threads = self._collectfast_options.threads
            if config.max_pool_connections < threads:
                config = config.merge(Config(max_pool_connections=threads))
            # A subclass's property may be read-only.
            with suppress(AttributeError, TypeError):
                self.client_config: Any = config
        return super().connection

    @property
    def unsigned_connection(self) -> Any:
        """The boto3 resource for URLs, which shares the session of `connection`.

        A new session would read the models of all services again. Nothing is signed
        here, so the credentials of the session do not matter.
        """
        own = overridden(type(self), "_create_session")
        if own or not self._collectfast_options.enabled:
            return super().unsigned_connection
        with _in_this_thread("unsigned", self):
            return super().unsigned_connection

    def _create_session(self) -> Any:
        if _thread.unsigned is not self or self not in _thread.sessions:
            _thread.sessions[self] = super()._create_session()
        return _thread.sessions[self]

    def _collectfast_reset_after_fork(self) -> None:
        """Drop the connections if this process is a fork that has inherited them."""
        if self._collectfast_pid != os.getpid():
            state: Any = self.__getstate__()
            self.__setstate__(state)
            self._collectfast_pid = os.getpid()

    @cached_property
    def _collectfast_options(self) -> Options:
        return Options.of(self)


class CollectfastMixin(_ConnectionMixin):
    """Makes a django-storages S3 storage upload only files that the bucket lacks.

    Put it before the storage: ``class Mine(CollectfastMixin, TheirS3Storage)``. The
    options are the fields of `collectfast_storage.options.Options`, with the prefix
    ``collectfast_``. Raises `ImproperlyConfigured` for an option that is not valid.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Add the barriers, whether or not a method calls that of its parent class."""
        super().__init_subclass__(**kwargs)
        runs.add_barriers(cls)

    def __init__(self, **options: Any) -> None:
        """Accept the options of the django-storages class, and those of this one."""
        self._collectfast_pid = os.getpid()
        super().__init__(**options)
        if self._collectfast_options.enabled:
            apps = {app.partition(".")[0] for app in settings.INSTALLED_APPS}
            for app in apps & _PREDECESSORS:
                _warn_of_predecessor(app)

    def get_default_settings(self) -> dict[str, Any]:
        """Add this class's options to those of django-storages."""
        return super().get_default_settings() | Options.defaults()

    # The methods that Django calls.

    def exists(self, name: str) -> bool:
        """Return whether `name` exists; in a run, without a request."""
        run, name_in_run = self._collectfast_find_run(name)
        return super().exists(name) if run is None else run.exists(name_in_run)

    def get_modified_time(self, name: str) -> datetime:
        """Return the time of the object.

        While collectstatic compares `name`, return one that makes it skip or copy it.
        """
        run, name_in_run = self._collectfast_find_run(name)
        if run is not None:
            source = run.context.source_being_compared(name_in_run)
            if source is not None:
                return run.modified_time(name_in_run, source)
            if run.deletes.include(name_in_run):
                raise not_found("HeadObject")
            run.wait_for(name_in_run)
        return super().get_modified_time(name)

    def delete(self, name: str) -> None:
        """Delete `name`; in a run, at its end."""
        run, name_in_run = self._collectfast_find_run(name)
        if run is not None:
            run.delete(name_in_run)
            return
        with self._collectfast_invalidated(name):
            super().delete(name)

    def size(self, name: str) -> int:
        """Return the size in bytes, after uploads that are under way."""
        run, name_in_run = self._collectfast_find_run(name)
        if run is not None:
            run.check_exists(name_in_run)
            run.wait_for(name_in_run)
        return super().size(name)

    def listdir(self, name: str) -> tuple[list[str], list[str]]:
        """Return the folders and files in a folder, after uploads under way."""
        directories, files = super().listdir(name)
        run, folder = self._collectfast_find_run(name)
        if run is None:
            return directories, files
        prefix = f"{folder.rstrip('/')}/" if folder.strip("/") else ""
        left = [each for each in files if not run.deletes.include(f"{prefix}{each}")]
        return run.listed(prefix, directories), left

    def _save(self, name: str, content: Any) -> str:
        """Save as django-storages does, but upload only files that the bucket lacks."""
        if not self._collectfast_enabled:
            return super()._save(name, content)
        run = self._collectfast_run()
        if run is None and not self.file_overwrite:
            with self._collectfast_invalidated(name):
                return super()._save(name, content)  # Django has chosen a free name.
        captured: list[Capture] = []

        def upload(capture: Capture) -> None:
            captured.append(capture)
            name_in_run = run.context.name_of_key(capture.key) if run else None
            if run is None or name_in_run is None:
                with self._collectfast_invalidated(name):
                    save_unless_unchanged(capture, self.bucket)
                return
            reopen = run.context.reopener(content) if capture.is_of(content) else None
            in_memory = isinstance(content, ContentFile)
            with closing(capture.payload()) as payload:
                run.save(name_in_run, payload, in_memory=in_memory, reopen=reopen)
                capture.report(payload)

        try:
            saved = self._collectfast_capture(name, content, upload)
        except (KeyboardInterrupt, SystemExit):  # pragma: no cover (not traced)
            if run is not None:
                run.close(wait=False)
            raise
        if not captured:  # A subclass has uploaded the file in its own way.
            found, name_in_run = self._collectfast_find_run(saved)
            if found is not None:
                found.written(name_in_run)
        return saved

    def _open(self, name: str, mode: str = "rb") -> Any:
        """Open as django-storages does; in a run, sources are read from the disk."""
        run, name_in_run = self._collectfast_find_run(name)
        if run is not None and "w" in mode:
            run.before_write(name_in_run)
        elif run is not None:
            file = run.read(name_in_run)
            if file is not None:
                return File(file, name)
            with as_bucket_error(run.bucket_name_if_hashing()):
                return super()._open(name, mode)
        opened = super()._open(name, mode)
        if "w" in mode and not self._collectfast_options.preload:
            invalidated = self._collectfast_invalidated(name)
            self._collectfast_invalidate(name)
            opened.close = invalidated(opened.close)
        return opened

    @contextmanager
    def batch(self, *, preload: bool | None = None) -> Iterator[Batch]:
        """Save and delete many files, as a collectstatic does: ``batch.save(…)``.

        The bucket is listed once if `preload`, which is the option
        ``collectfast_preload`` by default. Uploads run in the background, and deletes
        wait for the end of the block. There, `UploadError` or `DeleteError` names each
        file that failed. After an exception in the block nothing is deleted.
        """
        run = None
        if self._collectfast_enabled:
            destination = self._collectfast_destination()
            context = RunContext(destination, self._collectfast_options, preload)
            run = self._collectfast_open_run(context)
        batch = Batch(self, run)
        with batch.carried_out():
            yield batch

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Post-process if a parent class does. The barrier in `runs` ends the run."""
        if hasattr(super(), "post_process"):
            yield from super().post_process(*args, **options)

    # The parts of django-storages that `_save` uses; see `payload`.

    @property
    def bucket(self) -> Any:
        """The boto3 Bucket; inside of `_save`, a stand-in that captures the upload."""
        storage, upload = _thread.capturing
        if storage is self:
            return CapturingBucket(self._collectfast_real_bucket, upload)
        return self._collectfast_real_bucket()

    def _compress_content(self, content: Any) -> Any:
        if _thread.capturing[0] is self:
            return Compressible(content, super()._compress_content)
        return super()._compress_content(content)

    def _collectfast_capture(
        self, name: str, content: Any, upload: Callable[[Capture], object]
    ) -> str:
        """Save as django-storages does, but pass the upload to `upload`."""

        def upload_for_real(capture: Capture) -> None:
            # Other saves by `upload`, or by methods that it calls, are not captured.
            with _in_this_thread("capturing", (None, None)):
                upload(capture)

        with _in_this_thread("capturing", (self, upload_for_real)):
            return super()._save(name, content)

    def _collectfast_real_bucket(self) -> Any:
        self._collectfast_require_bucket_name()
        self._collectfast_reset_after_fork()
        bucket = super().bucket
        # A subclass may compute the name, and django-storages keeps the first bucket.
        is_current = bucket.name == self.bucket_name
        return bucket if is_current else self.connection.Bucket(self.bucket_name)

    # Runs.

    def _collectfast_run(self) -> Run | None:
        """Return the run that answers the caller; `None`: django-storages answers."""
        return runs.current_run(self) if self._collectfast_enabled else None

    def _collectfast_find_run(self, name: str) -> tuple[Run | None, str]:
        """Return the run that answers the caller, if any, and `name` as in the run."""
        run = self._collectfast_run()
        name_in_run = run.context.name_of(name) if run is not None else None
        return (None, name) if name_in_run is None else (run, name_in_run)

    def _collectfast_open(self, frame: FrameType) -> Run:
        """Open the run of the collectstatic in `frame`."""
        options = self._collectfast_options
        destination = self._collectfast_destination()
        context = Collectstatic(self, destination, options, frame)
        return self._collectfast_open_run(context)

    def _collectfast_open_run(self, context: RunContext) -> Run:
        options, name = self._collectfast_options, context.destination.bucket_name
        congestion = Congestion(options.threads, self.client_config.read_timeout or 60)
        bucket = Bucket(
            name,
            context.destination.prefix,
            RetryingSender(name, congestion, options.retry_timeout, context.progress),
            lambda: self.connection.meta.client,
            self._collectfast_obstore,
            self.object_parameters,
        )
        cache = self._collectfast_cache(options.cache if context.collects else None)
        return Run(context, bucket, cache, BoundedExecutor(options.threads))

    def _collectfast_destination(self) -> Destination:
        """Read the values that a run keeps, and that may change between runs."""
        self._collectfast_require_bucket_name()
        return Destination(
            bucket_name=self.bucket_name,
            prefix=self._collectfast_prefix,
            overwrites=self.file_overwrite,
            has_own_save=overridden(type(self), "save", "_save") is not None,
            has_own_delete=overridden(type(self), "delete") is not None,
            key_of=self._collectfast_key,
            parameters_of=self.get_object_parameters,
            capture=self._collectfast_capture,
            delete=self.delete,
        )

    def _collectfast_obstore(self, client: Any) -> Any:
        # A subclass that makes its own connections may need them as they are.
        is_own = overridden(type(self), "connection")
        if is_own or not self._collectfast_options.threads:
            return None
        from collectfast_storage.s3.obstore import obstore_uploader

        return obstore_uploader(
            client,
            self.bucket_name,
            self._collectfast_credentials,
            verify=self.verify,
            is_forked=os.getpid() != _IMPORTED_IN,
        )

    def _collectfast_credentials(self) -> Any:
        """Return the credentials of the client that this thread created last."""
        session = _thread.sessions.get(self) or self._create_session()
        return session.get_credentials()

    # Names, and the cache.

    @cached_property
    def _collectfast_enabled(self) -> bool:
        """Whether this class has any effect. It has none if a subclass has `bucket`."""
        is_own = overridden(type(self), "bucket")
        return self._collectfast_options.enabled and not is_own

    @property
    def _collectfast_prefix(self) -> str:
        return str(self._normalize_name(""))

    def _collectfast_key(self, name: str) -> str:
        return str(self._normalize_name(clean_name(name)))

    def _collectfast_require_bucket_name(self) -> None:
        if self._collectfast_options.enabled and not self.bucket_name:
            option = "option bucket_name (setting AWS_STORAGE_BUCKET_NAME)"
            raise misconfigured(option, self.bucket_name, "the name of the bucket")

    def _collectfast_cache(self, alias: str | None) -> UploadCache:
        options = self._collectfast_options
        # These distinguish this place from all others that share the cache.
        variables = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
        endpoint = self.endpoint_url or lookup_env(variables)
        prefix = self._collectfast_prefix
        place = f"{endpoint} {self.session_profile} {self.bucket_name} {prefix}"
        trusted = not options.preload
        return UploadCache(alias, options.cache_timeout, place, trusted=trusted)

    def _collectfast_invalidate(self, name: str) -> None:
        """Invalidate the cache entry of `name`, if collectstatic trusts the cache."""
        options = self._collectfast_options
        if self._collectfast_enabled and not options.preload:
            name = self._collectfast_key(name).removeprefix(self._collectfast_prefix)
            self._collectfast_cache(options.cache).invalidate(name)

    @contextmanager
    def _collectfast_invalidated(self, name: str) -> Iterator[None]:
        """Invalidate the cache entry of `name` before and after this context."""
        self._collectfast_invalidate(name)
        try:
            yield
        finally:
            self._collectfast_invalidate(name)


@cache
def _warn_of_predecessor(app: str) -> None:
    """Warn, once, of an app whose own collectstatic command replaces Django's."""
    text = (
        "%r is in INSTALLED_APPS, so its collectstatic command replaces "
        "Django's. Remove it, because this storage needs Django's command."
    )
    logger.warning(text, app)


@deconstructible(path="collectfast_storage.CollectfastS3Storage")
class CollectfastS3Storage(CollectfastMixin, S3Storage):
    """`storages.backends.s3.S3Storage` that uploads changed files only."""


@deconstructible(path="collectfast_storage.CollectfastS3StaticStorage")
class CollectfastS3StaticStorage(CollectfastMixin, S3StaticStorage):
    """`storages.backends.s3.S3StaticStorage` that uploads changed files only."""


@deconstructible(path="collectfast_storage.CollectfastS3ManifestStaticStorage")
class CollectfastS3ManifestStaticStorage(CollectfastMixin, S3ManifestStaticStorage):
    """`storages.backends.s3.S3ManifestStaticStorage` that uploads changes only."""
