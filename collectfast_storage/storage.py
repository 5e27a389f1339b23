"""The storage classes: the methods that Django, and programs, call."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
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
from collectfast_storage.payload import Capture, CapturingBucket, Compressible, Take
from collectfast_storage.program import save_unless_unchanged
from collectfast_storage.retrying import RetryingSender
from collectfast_storage.run import Run
from collectfast_storage.s3.bucket import Bucket
from collectfast_storage.s3.errors import naming, not_found
from collectfast_storage.upload_cache import UploadCache
from collectfast_storage.uploads import BoundedExecutor, Uploads

# The class that the mixin is put before; untyped, as all of django-storages.
_Base: Any = object

logger = logging.getLogger("collectfast_storage")
_IMPORTED_IN = os.getpid()
# Unless the site's own configuration says another time. Botocore's is 60 s.
_CONFIG = Config(connect_timeout=10)
_PREDECESSORS = ("collectfast", "collectfasta")


class _Thread(threading.local):
    """The state of a call that this thread is in the middle of, and its sessions."""

    def __init__(self) -> None:
        self.taking: tuple[object, Take] | None = None  # a storage, and its `Take`
        self.unsigned: object = None  # the storage that connects for unsigned URLs
        # The last boto3 session of each storage.
        self.sessions: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


_thread = _Thread()


class _ConnectionMixin(_Base):
    """Makes the connections of a process, and of its threads."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the storage, in whatever process this is."""
        super().__setstate__(state)
        self._collectfast_pid = os.getpid()

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

        A session reads the models of all services again. Nothing is signed here, so the
        credentials of the session do not matter.
        """
        own = overridden(type(self), "_create_session")
        if own or not self._collectfast_options.enabled:
            return super().unsigned_connection
        outer, _thread.unsigned = _thread.unsigned, self
        try:
            return super().unsigned_connection
        finally:
            _thread.unsigned = outer

    def _create_session(self) -> Any:
        if _thread.unsigned is self and self in _thread.sessions:
            return _thread.sessions[self]
        _thread.sessions[self] = session = super()._create_session()
        return session

    def _collectfast_reset_after_fork(self) -> None:
        """In a fork, leave the connections to the parent process."""
        if self._collectfast_pid != os.getpid():
            state: Any = self.__getstate__()
            self.__setstate__(state)

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
        """Add the barriers, whether or not a method calls its parent's."""
        super().__init_subclass__(**kwargs)
        for name in ("load_manifest", "post_process", "save_manifest"):
            method = getattr(cls, name, None)
            if method is not None and not hasattr(method, "has_barrier"):
                setattr(cls, name, runs.wrap_method(method, name))

    def __init__(self, **settings: Any) -> None:
        """Take the options of the django-storages class, and those of this one."""
        self._collectfast_pid = os.getpid()
        super().__init__(**settings)
        if self._collectfast_options.enabled:
            _warn_of_predecessors()

    def get_default_settings(self) -> dict[str, Any]:
        """Add this class's options to those of django-storages."""
        return super().get_default_settings() | Options.defaults()

    # The methods that Django calls.

    def exists(self, name: str) -> bool:
        """Return whether `name` exists; in a run, without a request."""
        found = self._collectfast_find_run(name)
        if found is None:
            return super().exists(name)
        run, name_in_run = found
        return run.exists(name_in_run)

    def get_modified_time(self, name: str) -> datetime:
        """Return the object's time; for collectstatic, one that carries the verdict."""
        found = self._collectfast_find_run(name)
        if found is not None:
            run, name_in_run = found
            source = run.context.source_being_compared(name_in_run)
            if source is not None:
                return run.modified_time(name_in_run, source)
            if run.will_be_deleted(name_in_run):
                raise not_found("HeadObject")
            run.wait_for(name_in_run)
        return super().get_modified_time(name)

    def delete(self, name: str) -> None:
        """Delete `name`; in a run, at its end."""
        found = self._collectfast_find_run(name)
        if found is not None:
            run, name_in_run = found
            run.delete(name_in_run)
            return
        with self._collectfast_invalidated(name):
            super().delete(name)

    def size(self, name: str) -> int:
        """Return the size in bytes, after uploads that are under way."""
        found = self._collectfast_find_run(name)
        if found is not None:
            run, name_in_run = found
            run.check_exists(name_in_run)
            run.wait_for(name_in_run)
        return super().size(name)

    def listdir(self, name: str) -> tuple[list[str], list[str]]:
        """Return the folders and files in a folder, after uploads under way."""
        directories, files = super().listdir(name)
        found = self._collectfast_find_run(name)
        if found is not None:
            run, folder = found
            prefix = f"{folder.rstrip('/')}/" if folder.strip("/") else ""
            directories = run.listed(prefix, directories)
            files = [
                each for each in files if not run.will_be_deleted(f"{prefix}{each}")
            ]
        return directories, files

    def _save(self, name: str, content: Any) -> str:
        """Save as django-storages does, but do not upload what the bucket has."""
        if not self._collectfast_enabled:
            return super()._save(name, content)
        run = self._collectfast_run()
        if run is None and not self.file_overwrite:
            with self._collectfast_invalidated(name):
                return super()._save(name, content)  # The name is free.
        in_memory, has_taken = isinstance(content, ContentFile), []

        def take(capture: Capture) -> None:
            has_taken.append(True)
            name_in_run = run.context.name_of_key(capture.key) if run else None
            if run is None or name_in_run is None:
                with self._collectfast_invalidated(name):
                    save_unless_unchanged(capture, self.bucket)
                return
            payload = capture.payload()
            try:
                is_as_is = capture.is_of(content)
                reopen = run.context.reopener(content) if is_as_is else None
                run.save(name_in_run, payload, in_memory=in_memory, reopen=reopen)
                capture.report(payload)
            finally:
                payload.close()

        try:
            saved = self._collectfast_capture(name, content, take)
        except (KeyboardInterrupt, SystemExit):  # pragma: no cover (not traced)
            if run is not None:
                run.close(patiently=False)
            raise
        # A subclass may have uploaded it in its own way.
        found = None if has_taken else self._collectfast_find_run(saved)
        if found is not None:
            found[0].written(found[1])
        return saved

    def _open(self, name: str, mode: str = "rb") -> Any:
        """Open as django-storages does; in a run, sources are read from the disk."""
        found = self._collectfast_find_run(name)
        if found is not None:
            run, name_in_run = found
            if "w" in mode:
                run.before_write(name_in_run)
            else:
                bucket_name = run.bucket_name_if_hashing()
                file = run.read(name_in_run) if bucket_name else None
                if file is not None:
                    return File(file, name)
                run.check_exists(name_in_run)
                run.wait_for(name_in_run)
                with naming(bucket_name):
                    return super()._open(name, mode)
        opened = super()._open(name, mode)
        if "w" in mode and not self._collectfast_options.preload:
            self._collectfast_invalidate(name)
            opened.close = self._collectfast_closing(name, opened.close)
        return opened

    def _collectfast_closing(self, name: str, close: Callable[[], None]) -> Any:
        def close_and_invalidate() -> None:
            with self._collectfast_invalidated(name):
                close()

        return close_and_invalidate

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
            options, destination = (
                self._collectfast_options,
                self._collectfast_destination(),
            )
            lists = options.preload if preload is None else preload
            context = RunContext(destination, options, lists=lists, trusts=False)
            run = self._collectfast_open_run(context, alias=None)
        batch = Batch(self, run, self._collectfast_invalidate)
        with batch.carried_out():
            yield batch

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Post-process as the parent class does, if it does; a run ends here."""
        if hasattr(super(), "post_process"):
            yield from super().post_process(*args, **options)

    # The parts of django-storages that `_save` uses; see `payload`.

    @property
    def bucket(self) -> Any:
        """The boto3 Bucket; inside of `_save`, a stand-in that captures the upload."""
        taking = _thread.taking
        if taking is not None and taking[0] is self:
            return CapturingBucket(self._collectfast_real_bucket, taking[1])
        return self._collectfast_real_bucket()

    def _compress_content(self, content: Any) -> Any:
        compress = super()._compress_content
        is_taken = _thread.taking is not None and _thread.taking[0] is self
        return Compressible(content, compress) if is_taken else compress(content)

    def _collectfast_capture(self, name: str, content: Any, take: Take) -> str:
        """Save as django-storages does, but hand the upload to `take`."""

        def take_outside(capture: Capture) -> None:
            # Other uploads of `take`, or of the methods that it calls, are real.
            outer, _thread.taking = _thread.taking, None
            try:
                take(capture)
            finally:
                _thread.taking = outer

        outer, _thread.taking = _thread.taking, (self, take_outside)
        try:
            return super()._save(name, content)
        finally:
            _thread.taking = outer

    def _collectfast_real_bucket(self) -> Any:
        self._collectfast_require_name()
        self._collectfast_reset_after_fork()
        bucket = super().bucket
        # A subclass may compute the name, and django-storages keeps the first bucket.
        if bucket.name != self.bucket_name:
            return self.connection.Bucket(self.bucket_name)
        return bucket

    # Runs.

    def _collectfast_run(self) -> Run | None:
        """Return the run that answers the caller; `None`: django-storages answers."""
        if not self._collectfast_enabled:
            return None
        return runs.current_run(self, self._collectfast_open)

    def _collectfast_find_run(self, name: str) -> tuple[Run, str] | None:
        """Return the run that answers the caller, and `name` as the run has it."""
        run = self._collectfast_run()
        name_in_run = run.context.name_of(name) if run is not None else None
        return None if run is None or name_in_run is None else (run, name_in_run)

    def _collectfast_open(self, frame: FrameType) -> tuple[Run, Collectstatic]:
        """Open the run of the collectstatic in `frame`."""
        options, destination = (
            self._collectfast_options,
            self._collectfast_destination(),
        )
        context = Collectstatic(self, destination, options, frame)
        return self._collectfast_open_run(context, options.cache), context

    def _collectfast_open_run(self, context: RunContext, alias: str | None) -> Run:
        options, name = self._collectfast_options, context.destination.bucket_name
        congestion = Congestion(options.threads, self.client_config.read_timeout or 60)
        bucket = Bucket(
            name,
            context.destination.prefix,
            RetryingSender(name, congestion, options.retry_timeout, context.progress),
            lambda: self.connection.meta.client,
            self._collectfast_native,
            self.object_parameters,
        )
        cache = self._collectfast_cache(alias, trusted=context.trusts)
        uploads = Uploads(bucket, BoundedExecutor(options.threads))
        return Run(context, bucket, cache, uploads)

    def _collectfast_destination(self) -> Destination:
        """Read the values that a run keeps, and that may change between runs."""
        self._collectfast_require_name()
        cls = type(self)
        return Destination(
            bucket_name=self.bucket_name,
            prefix=str(self._normalize_name("")),
            overwrites=self.file_overwrite,
            saves_as_is=not overridden(cls, "save", "_save"),
            has_own_delete=overridden(cls, "delete") is not None,
            key_of=self._collectfast_key,
            parameters_of=self.get_object_parameters,
            capture=self._collectfast_capture,
            delete=self.delete,
        )

    def _collectfast_native(self, client: Any) -> Any:
        # A subclass that makes its own connections may need them as they are.
        is_own = overridden(type(self), "connection")
        if is_own or not self._collectfast_options.threads:
            return None
        from collectfast_storage.s3.native import native_to

        return native_to(
            client,
            self.bucket_name,
            self._collectfast_credentials,
            verify=self.verify,
            is_forked=os.getpid() != _IMPORTED_IN,
        )

    def _collectfast_credentials(self) -> Any:
        """Return the credentials of the client that this thread has just made."""
        session = _thread.sessions.get(self) or self._create_session()
        return session.get_credentials()

    # Names, and the cache.

    @cached_property
    def _collectfast_enabled(self) -> bool:
        """Whether this class has an effect: not if a subclass has its own `bucket`."""
        is_own = overridden(type(self), "bucket")
        return self._collectfast_options.enabled and not is_own

    def _collectfast_key(self, name: str) -> str:
        return str(self._normalize_name(clean_name(name)))

    def _collectfast_require_name(self) -> None:
        if self._collectfast_options.enabled and not self.bucket_name:
            option = "option bucket_name (setting AWS_STORAGE_BUCKET_NAME)"
            raise misconfigured(option, self.bucket_name, "the name of the bucket")

    def _collectfast_cache(self, alias: str | None, *, trusted: bool) -> UploadCache:
        options = self._collectfast_options
        # These distinguish this place from all others that share the cache.
        named = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
        endpoint = self.endpoint_url or lookup_env(named)
        place = f"{endpoint} {self.session_profile} {self.bucket_name} "
        place += str(self._normalize_name(""))
        return UploadCache(alias, options.cache_timeout, place, trusted=trusted)

    def _collectfast_invalidate(self, name: str) -> None:
        """Invalidate the cache entry of `name`, if collectstatic trusts the cache."""
        options = self._collectfast_options
        if self._collectfast_enabled and not options.preload:
            key, prefix = self._collectfast_key(name), str(self._normalize_name(""))
            cache = self._collectfast_cache(options.cache, trusted=True)
            cache.invalidate(key.removeprefix(prefix))

    @contextmanager
    def _collectfast_invalidated(self, name: str) -> Iterator[None]:
        """Invalidate the cache entry of `name` before and after this context."""
        self._collectfast_invalidate(name)
        try:
            yield
        finally:
            self._collectfast_invalidate(name)


def _warn_of_predecessors() -> None:
    """Warn once of an app whose own collectstatic command replaces Django's."""
    apps = [app.partition(".")[0] for app in settings.INSTALLED_APPS]
    for app in _PREDECESSORS:
        if app in apps and app not in _warned_of:
            _warned_of.add(app)
            text = (
                "%r is in INSTALLED_APPS, and its collectstatic command replaces "
                "Django's. Remove it: this storage is made for Django's own command."
            )
            logger.warning(text, app)


_warned_of: set[str] = set()


@deconstructible(path="collectfast_storage.CollectfastS3Storage")
class CollectfastS3Storage(CollectfastMixin, S3Storage):
    """`storages.backends.s3.S3Storage` that uploads only what changed."""


@deconstructible(path="collectfast_storage.CollectfastS3StaticStorage")
class CollectfastS3StaticStorage(CollectfastMixin, S3StaticStorage):
    """`storages.backends.s3.S3StaticStorage` that uploads only what changed."""


@deconstructible(path="collectfast_storage.CollectfastS3ManifestStaticStorage")
class CollectfastS3ManifestStaticStorage(CollectfastMixin, S3ManifestStaticStorage):
    """`storages.backends.s3.S3ManifestStaticStorage` that uploads only what changed."""
