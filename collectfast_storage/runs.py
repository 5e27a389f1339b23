"""The runs of this process: opened by the first call, found by later ones, and ended.

The end of a run is the barrier that a collectstatic passes only if all was uploaded.
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
from typing import Any, NamedTuple

from django.contrib.staticfiles.storage import HashedFilesMixin

from collectfast_storage.collectstatic import (
    MODULE,
    Collectstatic,
    callers,
    collecting_frames,
    collects_into,
    is_collect,
)
from collectfast_storage.congestion import Congestion
from collectfast_storage.context import Paths
from collectfast_storage.exceptions import CollectfastError
from collectfast_storage.reporting import Progress
from collectfast_storage.retrying import RetryingSender
from collectfast_storage.run import Run
from collectfast_storage.s3.errors import OF_BOTO, naming
from collectfast_storage.s3.events import RequestLog, our_request, register

Method = Callable[..., Any]
Processed = Iterator[tuple[str, str | None, Any]]


class _Entry(NamedTuple):
    run: Run | None  # `None` after its end
    thread: threading.Thread


# By the frame of `collect`, and the identity of the storage.
_runs: dict[tuple[FrameType, int], _Entry] = {}
# The activations of `collect` in which this process was forked: a fork copies files in
# its own way, and no barrier waits for its uploads.
_inherited: list[FrameType] = []
# The storage and the run of the batch that is just calling, in this context.
_batch: ContextVar[tuple[object, Run] | None] = ContextVar("batch", default=None)

OpenRun = Callable[[FrameType], tuple[Run, Collectstatic]]


def current_run(storage: object, open_run: OpenRun) -> Run | None:
    """Return the run that answers the caller of `storage`; `None`: django-storages.

    The first call from a `collect` opens its run by `open_run`.
    """
    batch = _batch.get()
    if batch is not None and batch[0] is storage:
        return batch[1] if batch[1].is_open else None
    frame, entry = _found(storage)
    if entry is None:
        if _runs:
            _finish_abandoned_runs()
        if frame is None or frame in _inherited:
            return None
        for each in _runs_of_this_thread():
            each.wait_pending()  # Files that a calling collectstatic has saved.
        run, context = open_run(frame)
        entry = _runs[frame, id(storage)] = _Entry(run, threading.current_thread())
        context.at_barrier(partial(_finish, frame), _finish_abandoned_runs)
    return entry.run if entry.run is not None and entry.run.is_open else None


def _found(storage: object) -> tuple[FrameType | None, _Entry | None]:
    """Return the frame of the `collect` into `storage` that calls, and its entry.

    A command may set its storage to another one for some files, and back.
    """
    for frame in collecting_frames():
        entry = _runs.get((frame, id(storage)))
        if entry is not None or collects_into(frame, storage):
            return frame, entry
    return None, None


@contextmanager
def answering(storage: object, run: Run) -> Iterator[None]:
    """Let `run`, of a batch, answer the calls of `storage` in this context."""
    token = _batch.set((storage, run))
    try:
        yield
    finally:
        _batch.reset(token)


def _finish(frame: FrameType, processes: bool) -> None:
    """Finish the runs of `frame` that no post-processing finishes."""
    for key, entry in list(_runs.items()):
        if key[0] is frame and entry.run is not None:
            context: Any = entry.run.context
            context.collect_sources()
            if not (processes and context.is_target()):
                entry.run.post_processing = True
                entry.run.finish()
                _forget(entry.run)


# What stands around methods of Django's, in whatever order a class has its bases.


def wrap_method(method: Method, name: str) -> Method:
    """Return `method`, which Django calls by this `name`, with the run's barrier."""
    barrier = _BARRIERS[name]

    @wraps(method)
    def wrapper(self: Any, *args: Any, **options: Any) -> Any:
        return barrier(method, self, *args, **options)

    wrapper.has_barrier = True  # type: ignore[attr-defined]
    return wrapper


def _post_process(method: Method, storage: Any, *args: Any, **options: Any) -> Any:
    """Post-process; the outermost `post_process` of a run ends the run."""
    _, entry = _found(storage)
    begun = entry.run if entry is not None else None
    if begun is not None and not begun.is_open:
        begun.finish()  # An error has closed it, and is raised again.
    is_inner = begun is not None and begun.post_processing
    processed = method(storage, *args, **options)
    # A method that is not a generator may have come to an inner barrier by now, or
    # have left it half way.
    run = None if is_inner else storage._collectfast_run()
    if run is None or not run.context.collects:
        return processed
    paths = args[0] if args else options.get("paths", {})
    return _post_process_then_finish(run, storage, paths, processed)


def _post_process_then_finish(
    run: Run, storage: Any, paths: Paths, processed: Processed
) -> Processed:
    """Post-process, then finish the run, and so wait for all uploads.

    An element may hold an exception that the caller logs before it goes on. Therefore
    the end is where this is exhausted, closed or raises.
    https://docs.djangoproject.com/en/stable/ref/contrib/staticfiles/#django.contrib.staticfiles.storage.StaticFilesStorage.post_process
    """
    run.post_processing = True
    try:
        hashes = isinstance(storage, HashedFilesMixin)
        if hashes and _post_processes_as_django(type(storage).__mro__):
            processed = _with_existing_copies_saved(run, storage, paths, processed)
        for each in processed or ():
            if isinstance(each[2], Exception):
                run.checkpoint()  # The caller may raise it.
            yield each
        run.finish()
    except GeneratorExit:
        # Closed by a caller that needs no more, or garbage after an exception.
        _, entry = _found(storage)
        if entry is not None and entry.run is run:
            run.finish()
        raise
    except OF_BOTO:
        with naming(run.context.destination.bucket_name):
            raise
    except (KeyboardInterrupt, SystemExit):
        run.close(patiently=False)
        raise
    finally:
        run.finish_abandoned()
        _forget(run)


def _forget(run: Run) -> None:
    """Hold nothing of a run that has ended, but that its `collect` had one."""
    for key, entry in list(_runs.items()):
        if entry.run is run:
            _runs[key] = _Entry(None, entry.thread)


def _post_processes_as_django(classes: tuple[type, ...]) -> bool:
    """Return whether the elements of `post_process` mean the same as in Django."""
    own = [vars(each).get("post_process") for each in classes]
    modules = {getattr(each, "__wrapped__", each).__module__ for each in own if each}
    return modules <= {HashedFilesMixin.__module__, "collectfast_storage.storage"}


def _with_existing_copies_saved(
    run: Run, storage: Any, paths: Paths, processed: Processed
) -> Processed:
    """Save, and so compare, the files that Django did not save: their names exist."""
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
        run.context.read_live_release()
    with _manifest_batch(storage.manifest_storage, storage):
        return method(storage, *args, **options)


@contextmanager
def _manifest_batch(manifest_storage: Any, storage: Any) -> Iterator[None]:
    """Keep a manifest in another bucket from being deleted before it is replaced."""
    is_ours = getattr(manifest_storage, "_collectfast_enabled", False)
    if manifest_storage is storage or not is_ours:
        yield
        return
    # For one file, a HEAD request takes less time than a listing.
    with manifest_storage.batch(preload=False) as batch, batch.answering():
        yield


def _load_manifest(method: Method, storage: Any) -> Any:
    """Load the manifest; in the command, failures of the bucket are `BucketError`s."""
    bucket_name = getattr(storage.manifest_storage, "bucket_name", None)
    is_called = any(f.f_globals.get("__name__") == MODULE for f in callers())
    if not (is_called and storage._collectfast_enabled):
        return method(storage)

    timeout = storage._collectfast_options.retry_timeout

    def load() -> Any:
        try:
            with our_request(RequestLog(), once=timeout > 0):
                connection = getattr(storage.manifest_storage, "connection", None)
                if connection is not None:
                    register(connection.meta.client)
                return method(storage)
        except RuntimeError as error:  # A container may limit the threads.
            if "start new thread" not in str(error):
                raise
            config = copy(storage.manifest_storage.transfer_config)
            config.use_threads = False
            storage.manifest_storage.transfer_config = config
            return method(storage)

    sender = RetryingSender(str(bucket_name), Congestion(1, 60), timeout, Progress())
    with naming(bucket_name, OSError):
        return sender.send(load)


_BARRIERS = {
    "load_manifest": _load_manifest,
    "post_process": _post_process,
    "save_manifest": _save_manifest,
}


def _runs_of_this_thread() -> Iterator[Run]:
    for entry in list(_runs.values()):
        if entry.thread is threading.current_thread() and entry.run is not None:
            yield entry.run


def _finish_abandoned_runs() -> None:
    """End runs whose `collect` has raised an exception, and forget those that ended."""
    here, executing = threading.current_thread(), {*callers()}
    for key, (run, thread) in list(_runs.items()):
        is_left = key[0] not in executing if thread is here else not thread.is_alive()
        if is_left and _runs.pop(key, None) is not None and run is not None:
            if not run.is_closed and _is_interrupted(key[0]):
                run.close(patiently=False)
            run.finish_abandoned()


def _is_interrupted(frame: FrameType) -> bool:
    """Return whether an interrupt, which the caller still holds, has left `frame`."""
    for each in gc.get_objects():
        # Not `isinstance`, which fails with weak references to objects that are gone.
        if issubclass(type(each), KeyboardInterrupt):
            frames = [place for place, _ in walk_tb(each.__traceback__)]
            if frame in frames:
                return True
    return False


@atexit.register
def _end_all_runs() -> None:
    is_interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    for run, _ in list(_runs.values()):
        if run is not None and is_interrupted:  # pragma: no cover (not traced)
            run.close(patiently=False)
        elif run is not None:
            run.finish_abandoned()
    _runs.clear()


def _before_fork() -> None:
    """Wait for uploads: a child hangs if it inherits a lock that OpenSSL has taken."""
    for run in _runs_of_this_thread():
        with suppress(CollectfastError):  # The run raises it at its next call.
            run.wait_pending()


def _after_fork_in_child() -> None:
    _inherited[:] = [frame for frame in callers() if is_collect(frame)]
    _runs.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has no fork)
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
