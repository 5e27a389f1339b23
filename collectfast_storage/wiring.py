"""Where a run is put together: the one place that knows all the parts.

Imported when the first run is opened or the first file saved; a web server that only
asks for URLs never pays for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from django.contrib.staticfiles.storage import ManifestFilesMixin
from django.core.files.storage import Storage
from storages.backends.s3 import S3Storage
from storages.utils import clean_name, lookup_env

from collectfast_storage.bucket import Bucket
from collectfast_storage.cache import EtagCache
from collectfast_storage.command import Source, sources_of, tell_cleared
from collectfast_storage.content import Content
from collectfast_storage.exceptions import ClearError
from collectfast_storage.executor import executor
from collectfast_storage.index import RemoteIndex
from collectfast_storage.journal import Journal
from collectfast_storage.ledger import Ledger, Verdict
from collectfast_storage.plan import Plan
from collectfast_storage.progress import progress_of
from collectfast_storage.run import Run

if TYPE_CHECKING:
    from django.contrib.staticfiles.management.commands.collectstatic import Command


def open_run(storage: Any, command: Command) -> Run:
    """Open the run of a collectstatic; `ClearError` if it must not be."""
    plan = Plan(
        dry_run=command.dry_run,
        clear=command.clear,
        barrier=command.post_process,
        as_is=_saves_as_is(type(storage).__mro__),
        overwrites=storage.file_overwrite,
    )
    if plan.clear and not storage._collectfast_key(""):
        raise ClearError(storage.bucket_name)

    def find_sources() -> dict[str, Source]:
        found = sources_of(command_patterns)
        return {storage._collectfast_key(name): source for name, source in found}

    # Not the command itself: the run must not keep it alive.
    command_patterns = command.ignore_patterns
    return Run(
        plan,
        *_parts(storage, storage._collectfast_options.preload),
        find_sources,
        expected=map(storage._collectfast_key, _expected(storage)),
        keep=_irreplaceable(storage, plan),
        delete_one=_delete_one(storage),
        progress=progress_of(command),
        tell_cleared=partial(tell_cleared, storage, dry_run=plan.dry_run),
    )


def open_batch(storage: Any, *, preload: bool | None, trust: bool | None) -> Run:
    """Open the run of a program's batch."""
    if preload is None:
        preload = storage._collectfast_options.preload
    parts = _parts(storage, preload, trust)
    plan = Plan(collects=False, overwrites=storage.file_overwrite)
    return Run(plan, *parts, delete_one=_delete_one(storage))


def save_alone(storage: Any, key: str, content: Content) -> None:
    """Save outside of any run: one file, at once, with boto3's errors as they are."""
    bucket = _bucket(storage, fast=False)
    trust = not storage._collectfast_options.preload
    ledger = _ledger(storage, bucket, preload=False, trust=trust, bulk=False)
    try:
        if _holds(ledger, key, content):
            return
        if ledger.remembers(key):  # Lest this process be killed before it knows.
            ledger.failed(key)
            ledger.flush()
        tagged = storage._collectfast_opaque or bool(ledger.has_opaque_etag(content))
        stored = bucket.put(key, content, tagged=tagged)
        if stored.is_opaque:  # It knows from now on: no other has to be sent twice.
            storage._collectfast_opaque = True
        ledger.arrived(key, content.fingerprint, stored.etag)
    except BaseException:
        ledger.failed(key)
        raise
    finally:
        ledger.flush()


def forget(storage: Any, key: str, *, quiet: bool) -> None:
    """Let the cache forget `key`, which is deleted or written by other means."""
    cache = _cache(storage, bulk=False, quiet=quiet)
    cache.forget(key)
    cache.flush()


def _holds(ledger: Ledger, key: str, content: Content) -> bool:
    try:
        return ledger.verdict(key, content) is Verdict.HELD
    except ClientError:
        # The answer to a HEAD has no words; that to the upload will have them.
        return False


def _parts(
    storage: Any, preload: bool, trust: bool | None = None
) -> tuple[Bucket, Ledger, Any, Any]:
    bucket = _bucket(storage, fast=True)
    trust = not preload if trust is None else trust
    return (
        bucket,
        _ledger(storage, bucket, preload=preload, trust=trust, bulk=True),
        executor(storage._collectfast_options.threads),
        storage._collectfast_captured_save,
    )


def _delete_one(storage: Any) -> Any:
    """Return the storage's `delete` if it is a site's own; it takes one by one."""
    return storage.delete if _overridden(type(storage).__mro__, "delete") else None


def _bucket(storage: Any, *, fast: bool) -> Bucket:
    return Bucket(
        storage.bucket_name,
        storage._collectfast_key(""),
        lambda: storage.connection.meta.client,
        storage.transfer_config,
        fast=fast,
        native=storage._collectfast_options.threads > 0,
    )


def _ledger(
    storage: Any, bucket: Bucket, *, preload: bool, trust: bool, bulk: bool
) -> Ledger:
    index = RemoteIndex(bucket, storage.get_object_parameters, preload=preload)
    ignore_etag = storage._collectfast_options.ignore_etag
    cache = _cache(storage, bulk=bulk)
    journal = Journal(
        storage._collectfast_options.cache, f"{_identity(storage)} {bucket.prefix}"
    )
    return Ledger(
        index,
        cache,
        journal,
        trust=trust,
        ignore_etag=ignore_etag,
        prefix=bucket.prefix,
    )


def _cache(storage: Any, *, bulk: bool, quiet: bool = False) -> EtagCache:
    options = storage._collectfast_options
    timeout, identity = options.cache_timeout, _identity(storage)
    return EtagCache(options.cache, timeout, identity, bulk=bulk, quiet=quiet)


def _identity(storage: Any) -> str:
    """Return what tells this bucket from all others that share its cache."""
    names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
    endpoint = storage.endpoint_url or lookup_env(names)
    return f"{endpoint} {storage.session_profile} {storage.bucket_name}"


def _expected(storage: Any) -> Iterator[str]:
    """Yield the names that post-processing will ask for."""
    if isinstance(storage, ManifestFilesMixin):
        yield storage.manifest_name
        yield from storage.hashed_files.values()


def _irreplaceable(storage: Any, plan: Plan) -> Iterator[str]:
    """Yield the keys that a clearing run must keep, as it saves none of them."""
    if plan.clear and issubclass(type(storage), ManifestFilesMixin):
        place = storage.manifest_storage
        is_there = getattr(place, "bucket_name", None) == storage.bucket_name
        if is_there and (place is not storage or plan.dry_run or not plan.barrier):
            yield place._normalize_name(clean_name(storage.manifest_name))
        if not plan.barrier:
            yield from map(storage._collectfast_key, storage.hashed_files.values())


def _saves_as_is(classes: tuple[type, ...]) -> bool:
    """Tell whether nobody but Django, django-storages and this project saves."""
    return not _overridden(classes, "save", "_save")


@cache
def _overridden(classes: tuple[type, ...], *names: str) -> bool:
    """Tell whether one of `classes` that is a site's own has a method of its own."""
    return any(
        {*names} & vars(parent).keys()
        for parent in classes
        if parent not in (Storage, S3Storage)
        and parent.__module__ != "collectfast_storage.storage"
    )
