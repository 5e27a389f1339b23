"""The runs of this process: how each one is opened, found again, and ended.

The end of a run is a barrier, which a collectstatic passes only if all files arrived.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from copy import copy
from functools import partial, wraps
from traceback import walk_tb
from types import FrameType
from typing import Any

from storages.backends.s3 import S3Storage

from collectfast_storage.collectstatic import (
    MODULE,
    callers,
    collecting_frames,
    collects_into,
    is_collect,
    post_processes_as_django,
)
from collectfast_storage.congestion import Congestion
from collectfast_storage.context import Paths
from collectfast_storage.exceptions import CollectfastError
from collectfast_storage.reporting import Progress
from collectfast_storage.retrying import RetryingSender
from collectfast_storage.run import Run
from collectfast_storage.s3.bucket import Bucket
from collectfast_storage.s3.errors import BOTO_ERRORS, as_bucket_error

Method = Callable[..., Any]
Processed = Iterator[tuple[str, str | None, Any]]


# The run of each `collect`, by its thread, its frame and the identity of the storage.
# After its end, a run is replaced by `None`.
_runs: dict[Any, Run | None] = {}
# The activations of `collect` in which this process was forked. They have no run here,
# because no barrier in this process would wait for the uploads.
_inherited: list[FrameType] = []
# The storage and the run of the batch that calls in this context.
_batch: ContextVar[tuple[object, Run | None] | None] = ContextVar("batch", default=None)


def current_run(storage: Any) -> Run | None:
    """Return the run that answers the caller of `storage`.

    If it is `None`, django-storages answers. The first call from a `collect` opens its
    run.
    """
    batch = _batch.get()
    if batch is not None and batch[0] is storage:
        run = batch[1]
        return run if run is not None and run.is_open else None
    key = _key_of_caller(storage)
    if key not in _runs:
        if _runs:
            _finish_abandoned_runs()
        if key is None or key[1] in _inherited:
            return None
        for each in _runs_of_this_thread():
            each.wait_pending()  # This collectstatic runs inside of another one.
        run = _runs[key] = storage._collectfast_open(key[1])
        run.context.at_barrier(partial(_finish, key[1]), _finish_abandoned_runs)
    run = _runs[key]
    return run if run is not None and run.is_open else None


def _key_of_caller(storage: object) -> tuple[threading.Thread, FrameType, int] | None:
    """Return the key of the calling `collect` into `storage`; `None`: there is none.

    A command may set its storage to another one for some files, and back.
    """
    thread = threading.current_thread()
    for frame in collecting_frames():
        key = thread, frame, id(storage)
        if key in _runs or collects_into(frame, storage):
            return key
    return None


@contextmanager
def answering(storage: object, run: Run | None) -> Iterator[None]:
    """Let the `run` of a batch, if any, answer the calls of `storage` here."""
    token = _batch.set((storage, run))
    try:
        yield
    finally:
        _batch.reset(token)


def _finish(frame: FrameType, processes: bool) -> None:
    """Finish the runs of `frame` that no post-processing finishes."""
    for key, run in list(_runs.items()):
        if key[1] is frame and run is not None:
            context: Any = run.context
            context.collect_sources()
            if not (processes and context.is_target()):
                run.finish()
                _forget(run)


# Barriers around methods that Django calls, for any order of a class's bases.


def add_barriers(cls: type) -> None:
    """Put barriers around the methods of `cls` that Django calls at certain points."""
    for name, barrier in _BARRIERS.items():
        method = getattr(cls, name, None)
        if method is not None and not hasattr(method, "has_barrier"):
            setattr(cls, name, _with_barrier(method, barrier))


def _with_barrier(method: Method, barrier: Method) -> Method:
    @wraps(method)
    def wrapper(self: Any, *args: Any, **options: Any) -> Any:
        return barrier(method, self, *args, **options)

    wrapper.has_barrier = True  # type: ignore[attr-defined]
    return wrapper


def _post_process(method: Method, storage: Any, *args: Any, **options: Any) -> Any:
    """Post-process; the outermost `post_process` of a run ends the run."""
    begun = _runs.get(_key_of_caller(storage))
    if begun is not None and not begun.is_open:
        begun.finish()  # An error has closed it, and is raised again.
    is_inner = begun is not None and begun.post_processing
    processed = method(storage, *args, **options)
    # A method that is not a generator has been executed here. An inner `post_process`
    # may have ended the run, or may have been left before its end.
    run = None if is_inner else storage._collectfast_run()
    if run is None or not run.context.collects:
        return processed
    paths = args[0] if args else options.get("paths", {})
    return _post_process_then_finish(run, storage, paths, processed)


def _post_process_then_finish(
    run: Run, storage: Any, paths: Paths, processed: Processed
) -> Processed:
    """Post-process, then finish the run, and so wait for all uploads.

    An element may hold an exception, which the caller logs before it continues.
    Therefore the run ends when this generator is exhausted, is closed, or raises.
    https://docs.djangoproject.com/en/stable/ref/contrib/staticfiles/#django.contrib.staticfiles.storage.StaticFilesStorage.post_process
    """
    run.post_processing = True
    try:
        if post_processes_as_django(type(storage)):
            processed = _with_existing_copies_saved(run, storage, paths, processed)
        for each in processed or ():
            if isinstance(each[2], Exception):
                run.checkpoint()  # The caller may raise it.
            yield each
        run.finish()
    except GeneratorExit:
        # The caller has closed it, or it is garbage after an exception. In the second
        # case `collect` is not on the stack any more.
        if _runs.get(_key_of_caller(storage)) is run:
            run.finish()
        raise
    except BOTO_ERRORS:
        with as_bucket_error(run.context.destination.bucket_name):
            raise
    except (KeyboardInterrupt, SystemExit):
        run.close(wait=False)
        raise
    finally:
        run.finish_abandoned()
        _forget(run)


def _forget(run: Run) -> None:
    """Free a run that has ended; its key shows that the `collect` had one."""
    for key, each in list(_runs.items()):
        if each is run:
            _runs[key] = None


def _with_existing_copies_saved(
    run: Run, storage: Any, paths: Paths, processed: Processed
) -> Processed:
    """Save files that Django did not save because objects have their hashed names.

    Saving compares their contents and headers.
    """
    name_of = run.context.name_of
    for name, hashed_name, outcome in processed:
        plain, hashed = name_of(name), name_of(hashed_name or "")
        is_there = outcome is False and hashed_name is not None
        if is_there and not (plain and hashed and run.has_copy(plain, hashed)):
            source, path = paths[name]
            with source.open(path) as file:
                storage._save(hashed_name, file)
        yield name, hashed_name, outcome


def _save_manifest(method: Method, storage: Any, *args: Any, **options: Any) -> Any:
    """Save the manifest after all other files; fail if one of them did not arrive."""
    run = storage._collectfast_run()
    if run is not None:
        run.wait_or_raise()
        run.context.before_manifest()
        run.wait_or_raise()
    other: Any = storage.manifest_storage
    if other is storage or not getattr(other, "_collectfast_enabled", False):
        return method(storage, *args, **options)
    # Django deletes the old manifest before it saves the new one; a batch does not. For
    # one file, a HEAD request takes less time than a listing.
    with other.batch(preload=False) as batch, batch.answering():
        return method(storage, *args, **options)


def _load_manifest(method: Method, storage: Any) -> Any:
    """Load the manifest; in the command, failures of the bucket are `BucketError`s."""
    place = storage.manifest_storage
    is_called = any(f.f_globals.get("__name__") == MODULE for f in callers())
    is_on_s3 = storage._collectfast_enabled and isinstance(place, S3Storage)
    if not (is_called and is_on_s3):
        return method(storage)
    timeout = storage._collectfast_options.retry_timeout

    sender = RetryingSender(
        str(place.bucket_name), Congestion(1, 60), timeout, Progress()
    )
    bucket = Bucket(place.bucket_name, "", sender, lambda: place.connection.meta.client)

    def load() -> Any:
        bucket.connect()
        try:
            return method(storage)
        except RuntimeError as error:  # A container may limit the threads.
            if "start new thread" not in str(error):
                raise
            place.transfer_config = copy(place.transfer_config)
            place.transfer_config.use_threads = False
            return method(storage)

    with as_bucket_error(place.bucket_name, OSError):
        return bucket.send(load)


_BARRIERS = {
    "load_manifest": _load_manifest,
    "post_process": _post_process,
    "save_manifest": _save_manifest,
}


def _runs_of_this_thread() -> Iterator[Run]:
    for key, run in list(_runs.items()):
        if key[0] is threading.current_thread() and run is not None:
            yield run


def _finish_abandoned_runs() -> None:
    """End runs whose `collect` has raised an exception, and forget those that ended."""
    here, executing = threading.current_thread(), {*callers()}
    for key in list(_runs):
        thread, frame, _ = key
        is_left = frame not in executing if thread is here else not thread.is_alive()
        run = _runs.pop(key, None) if is_left else None
        if run is not None:
            if not run.is_closed and _is_interrupted(frame):
                run.close(wait=False)
            run.finish_abandoned()


def _is_interrupted(frame: FrameType) -> bool:
    """Return whether a KeyboardInterrupt that still exists has left `frame`."""
    # Not `isinstance`, which fails with weak references to objects that are gone.
    found = (e for e in gc.get_objects() if issubclass(type(e), KeyboardInterrupt))
    return any(frame is each for e in found for each, _ in walk_tb(e.__traceback__))


@atexit.register
def _end_all_runs() -> None:
    is_interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    for run in list(_runs.values()):
        if run is not None and is_interrupted:  # pragma: no cover (not traced)
            run.close(wait=False)
        elif run is not None:
            run.finish_abandoned()
    _runs.clear()


def _before_fork() -> None:
    """Wait for uploads, because a child hangs if it inherits a lock held by OpenSSL."""
    for run in _runs_of_this_thread():
        with suppress(CollectfastError):  # The run raises it at its next call.
            run.wait_pending()


def _after_fork_in_child() -> None:
    _inherited[:] = [frame for frame in callers() if is_collect(frame)]
    _runs.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has no fork)
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
