"""Where a run of collectstatic ends: after `post_process`, and before the manifest.

Django's own `post_process` and `save_manifest` do all the work; these stand around
them, in whatever order a site's class has its bases.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any

from django.contrib.staticfiles.storage import HashedFilesMixin
from django.core.files.storage import Storage

from collectfast_storage.command import tell_cleared
from collectfast_storage.exceptions import FilesError
from collectfast_storage.signals import collected

if TYPE_CHECKING:
    from collectfast_storage.run import Run
    from collectfast_storage.verification import Republish

logger = logging.getLogger("collectfast_storage")

Paths = Mapping[str, tuple[Storage, str]]
Processed = tuple[str, str | None, Any]
PostProcess = Callable[..., Iterator[Processed]]


def with_barrier(post_process: PostProcess) -> PostProcess:
    """Make the outermost `post_process` of a run the run's barrier."""

    @wraps(post_process)
    def wrapper(
        self: Any, paths: Paths, dry_run: bool = False, **options: Any
    ) -> Iterator[Processed]:
        processed = post_process(self, paths, dry_run=dry_run, **options)
        # Only now: one that is no generator has come to an inner barrier by here.
        run = self._collectfast_run()
        if run is None or run.post_processing:
            return processed
        return _to_the_barrier(self, run, paths, processed)

    wrapper.has_barrier = True  # type: ignore[attr-defined]
    return wrapper


def after_uploads(save_manifest: Callable[..., None]) -> Callable[..., None]:
    """Make `save_manifest` wait for all else, and fail if something did not arrive."""

    @wraps(save_manifest)
    def wrapper(self: Any) -> None:
        run = self._collectfast_run()
        if run is not None:
            run.wait()
        with _batch_of(self.manifest_storage, self):
            save_manifest(self)

    wrapper.has_barrier = True  # type: ignore[attr-defined]
    return wrapper


def _to_the_barrier(
    storage: Any, run: Run, paths: Paths, processed: Iterator[Processed]
) -> Iterator[Processed]:
    """Post-process, then finish the run; a failure is reported as Django wants it.

    https://docs.djangoproject.com/en/stable/ref/contrib/staticfiles/#django.contrib.staticfiles.storage.StaticFilesStorage.post_process
    """
    run.post_processing = True
    try:
        if isinstance(storage, HashedFilesMixin):
            if run.plan.dry_run and run.plan.clear:
                yield from _pretended(storage, run, paths)
            if _post_processes_as_django(type(storage).__mro__):
                processed = _with_copies_checked(storage, paths, processed)
        for each in processed:
            if isinstance(each[2], Exception):
                run.close()
            yield each
        _keep_hashed_files(storage, run)
        hashed = _post_processes_as_django(type(storage).__mro__)
        report = run.finish(_republish(storage, paths), hashed=hashed)
        logger.info("%s", report)
        if run.plan.clear:
            tell_cleared(storage, report.deleted, dry_run=run.plan.dry_run)
        if not run.plan.dry_run:
            collected.send(type(storage), storage=storage, report=report)
    except FilesError as error:
        # Before the command raises it, and keeps this generator from its end.
        run.close()
        yield ", ".join(error.failures), None, error
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        run.abandon()
        raise
    finally:
        run.close()


def _post_processes_as_django(classes: tuple[type, ...]) -> bool:
    """Tell whether what is yielded means what Django means by it."""
    own = [vars(each).get("post_process") for each in classes]
    modules = {getattr(each, "__wrapped__", each).__module__ for each in own if each}
    return modules <= {HashedFilesMixin.__module__, "collectfast_storage.storage"}


def _with_copies_checked(
    storage: Any, paths: Paths, processed: Iterator[Processed]
) -> Iterator[Processed]:
    """Save again what Django did not, as an object of its hashed name exists.

    A name is no proof of content and headers; the save compares them.
    """
    for name, hashed_name, outcome in processed:
        if outcome is False and hashed_name is not None:
            source, path = paths[name]
            with source.open(path) as file:
                storage._save(hashed_name, file)
        yield name, hashed_name, outcome


def _pretended(storage: Any, run: Run, paths: Paths) -> Iterator[Processed]:
    """Let Django's own post-processing tell this run which hashed names there would be.

    In a dry run nothing is uploaded; only what goes wrong is passed on.
    """
    hashed_files, storage.hashed_files = storage.hashed_files, {}
    try:
        for processed in HashedFilesMixin.post_process(storage, paths):  # type: ignore[arg-type]
            if isinstance(processed[2], Exception):
                yield processed
        _keep_hashed_files(storage, run)
    finally:
        storage.hashed_files = hashed_files


def _republish(storage: Any, paths: Paths) -> Republish:
    """Return how to make again what is made of the sources, by the manifest's key."""
    manifest_storage: Any = getattr(storage, "manifest_storage", None)
    # There may be none, or one that looks after itself.
    if manifest_storage is not storage or not _post_processes_as_django(
        type(storage).__mro__
    ):
        return {}

    def publish_again() -> None:
        processed = storage.post_process(paths)
        for _, _, outcome in _with_copies_checked(storage, paths, processed):
            if isinstance(outcome, Exception):
                raise outcome

    return {storage._collectfast_key(storage.manifest_name): publish_again}


def _keep_hashed_files(storage: Any, run: Run) -> None:
    """Keep from being cleared what the manifest names, whoever saved it, or did not."""
    for hashed_name in getattr(storage, "hashed_files", {}).values():
        run.keep(storage._collectfast_key(hashed_name))


def _batch_of(manifest_storage: Any, storage: Any) -> AbstractContextManager[Any]:
    """Keep a manifest in another bucket from being deleted before it is replaced."""
    if manifest_storage is storage or not getattr(
        manifest_storage, "_collectfast_enabled", False
    ):
        return nullcontext()
    # One file is sooner asked for than listed; and it is too dear to trust the cache.
    batch: AbstractContextManager[Any] = manifest_storage._collectfast_own_batch(
        preload=False, trust=False
    )
    return batch
