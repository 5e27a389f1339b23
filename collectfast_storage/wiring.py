"""Where a run is put together: the one place that knows all the parts.

Imported when the first run is opened or the first file saved; a web server that only
asks for URLs never pays for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from django.contrib.staticfiles.storage import ManifestFilesMixin
from django.core.files.storage import Storage
from s3transfer.constants import ALLOWED_DOWNLOAD_ARGS
from storages.backends.s3 import S3Storage
from storages.utils import lookup_env

from collectfast_storage.bucket import Bucket
from collectfast_storage.cache import EtagCache
from collectfast_storage.command import Source, sources_of
from collectfast_storage.content import Content
from collectfast_storage.exceptions import ClearError
from collectfast_storage.index import RemoteIndex
from collectfast_storage.ledger import Ledger
from collectfast_storage.run import Plan, Run
from collectfast_storage.upload import executor

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
from django.contrib.staticfiles.management.commands.collectstatic import Command


def open_run(storage: Any, command: Command) -> Run:
    """Open the run of a collectstatic; `ClearError` if it must not be."""
    plan = Plan(
        # A command of a site's own may ask before these are set.
        dry_run=getattr(command, "dry_run", False),
        clear=getattr(command, "clear", False),
        barrier=getattr(command, "post_process", True),
        as_is=_saves_as_is(type(storage).__mro__),
    )
    if plan.clear and not storage._collectfast_key(""):
        raise ClearError(storage.bucket_name)

    def find_sources() -> dict[str, Source]:
        found = sources_of(command_patterns)
        return {storage._collectfast_key(name): source for name, source in found}

    # Not the command itself: the run must not keep it alive.
    command_patterns = getattr(command, "ignore_patterns", [])
    return Run(
        plan,
        *_parts(storage, storage._collectfast_options.preload),
        find_sources,
        expected=map(storage._collectfast_key, _expected(storage)),
        keep=map(storage._collectfast_key, _irreplaceable(storage, plan)),
        delete_one=_delete_one(storage),
    )


def open_batch(storage: Any, *, preload: bool | None, trust: bool | None) -> Run:
    """Open the run of a program's batch."""
    if preload is None:
        preload = storage._collectfast_options.preload
    parts = _parts(storage, preload, trust)
    return Run(Plan(collects=False), *parts, delete_one=_delete_one(storage))


def save_alone(storage: Any, key: str, content: Content) -> None:
    """Save outside of any run: one file, at once, with boto3's errors as they are."""
    bucket = _bucket(storage, fast=False)
    ledger = _ledger(storage, bucket, preload=False, trust=True, bulk=False)
    try:
        if _holds(ledger, key, content):
            return
        ledger.arrived(key, content.fingerprint, bucket.put(key, content))
    except BaseException:
        ledger.failed(key)
        raise
    finally:
        ledger.flush()


def forget(storage: Any, key: str) -> None:
    """Let the cache forget `key`, which is deleted or written by other means."""
    bucket = _bucket(storage, fast=False)
    ledger = _ledger(storage, bucket, preload=False, trust=True, bulk=False)
    ledger.written(key)
    ledger.flush()


def _holds(ledger: Ledger, key: str, content: Content) -> bool:
    try:
        return ledger.holds(key, content)
    except ClientError:
        # Who may write and not read has to write; what is wrong beside, that tells.
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
    )


def _ledger(
    storage: Any, bucket: Bucket, *, preload: bool, trust: bool, bulk: bool
) -> Ledger:
    def head_parameters(key: str) -> dict[str, Any]:
        """Return what a HEAD of `key` needs, such as a customer's encryption key."""
        parameters = storage.get_object_parameters(key)
        return {k: v for k, v in parameters.items() if k in ALLOWED_DOWNLOAD_ARGS}

    options = storage._collectfast_options
    identity = _identity(storage)
    cache = EtagCache(options.cache, options.cache_timeout, identity, bulk=bulk)
    index = RemoteIndex(bucket, head_parameters, preload=preload)
    return Ledger(index, cache, trust=trust, ignore_etag=options.ignore_etag)


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
    """Yield the names that a clearing run must keep, as it saves none of them."""
    if plan.clear and isinstance(storage, ManifestFilesMixin):
        if plan.dry_run or not plan.barrier:
            yield storage.manifest_name
        if not plan.barrier:
            yield from storage.hashed_files.values()


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
