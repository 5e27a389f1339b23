"""Where a run is put together: the one place that knows all the parts.

Imported when the first run is opened or the first file saved; a web server that only
asks for URLs never pays for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

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
    from django.contrib.staticfiles.management.commands.collectstatic import Command


def open_run(storage: Any, command: Command) -> Run:
    """Open the run of a collectstatic; `ClearError` if it must not be."""
    plan = Plan(
        dry_run=command.dry_run,
        clear=command.clear,
        barrier=command.post_process,
        as_is=_saves_as_is(type(storage).__mro__),
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
        *_parts(storage, preload=storage._collectfast_options.preload),
        find_sources,
        expected=map(storage._collectfast_key, _expected(storage)),
        keep=map(storage._collectfast_key, _irreplaceable(storage, plan)),
    )


def open_batch(storage: Any, *, preload: bool | None) -> Run:
    """Open the run of a program's batch."""
    if preload is None:
        preload = storage._collectfast_options.preload
    return Run(Plan(collects=False), *_parts(storage, preload=preload))


def save_alone(storage: Any, key: str, content: Content) -> None:
    """Save outside of any run: one file, at once, with boto3's errors as they are."""
    bucket = _bucket(storage, fast=False)
    ledger = _ledger(storage, bucket, preload=False, bulk=False)
    if not ledger.holds(key, content):
        ledger.arrived(key, content.fingerprint, bucket.put(key, content))
    ledger.flush()


def _parts(storage: Any, *, preload: bool) -> tuple[Bucket, Ledger, Any, Any]:
    bucket = _bucket(storage, fast=True)
    return (
        bucket,
        _ledger(storage, bucket, preload=preload, bulk=True),
        executor(storage._collectfast_options.threads),
        storage._collectfast_captured_save,
    )


def _bucket(storage: Any, *, fast: bool) -> Bucket:
    return Bucket(
        storage.bucket_name,
        storage._collectfast_key(""),
        lambda: storage.connection.meta.client,
        storage.transfer_config,
        fast=fast,
    )


def _ledger(storage: Any, bucket: Bucket, *, preload: bool, bulk: bool) -> Ledger:
    def head_parameters(key: str) -> dict[str, Any]:
        """Return what a HEAD of `key` needs, such as a customer's encryption key."""
        parameters = storage.get_object_parameters(key)
        return {k: v for k, v in parameters.items() if k in ALLOWED_DOWNLOAD_ARGS}

    options = storage._collectfast_options
    identity = _identity(storage)
    cache = EtagCache(options.cache, options.cache_timeout, identity, bulk=bulk)
    index = RemoteIndex(bucket, head_parameters, preload=preload)
    return Ledger(index, cache, trust=not preload, ignore_etag=options.ignore_etag)


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


@cache
def _saves_as_is(classes: tuple[type, ...]) -> bool:
    """Tell whether nobody but Django, django-storages and this project saves."""
    ours = {Storage, S3Storage}
    return all(
        parent in ours
        or parent.__module__ == "collectfast_storage.storage"
        or not {"save", "_save"} & vars(parent).keys()
        for parent in classes
    )
