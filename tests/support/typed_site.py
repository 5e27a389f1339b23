"""Uses of the package in a site's own code, which `make types` checks and nothing runs.

mypy --strict checks the arguments of each use, and `assert_type` checks the type of its
result. Therefore a public name that becomes `Any`, or an argument that changes, is an
error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

from django.contrib.staticfiles.storage import ManifestFilesMixin
from django.core.files.base import ContentFile
from django.dispatch import Signal, receiver
from mypy_boto3_s3 import S3Client
from storages.backends.s3 import S3StaticStorage, S3Storage

from collectfast_storage import (
    CollectfastError,
    CollectfastMixin,
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
    CollectfastS3Storage,
)
from collectfast_storage.batch import Batch
from collectfast_storage.exceptions import (
    BucketError,
    ClearError,
    DeleteError,
    DeniedError,
    FilesError,
    UploadError,
)
from collectfast_storage.reporting import Report
from collectfast_storage.signals import collected


class Media(CollectfastS3Storage):
    location = "media"


class Assets(CollectfastS3StaticStorage):
    def get_object_parameters(self, name: str) -> dict[str, Any]:
        parameters: dict[str, Any] = super().get_object_parameters(name)
        return parameters | {"CacheControl": "max-age=60"}

    def exists(self, name: str) -> bool:
        found = super().exists(name)
        assert_type(found, bool)
        return found


class Hashed(CollectfastS3ManifestStaticStorage):
    max_post_process_passes = 10


# The classes of django-storages are `Any`, because it has no type annotations. The
# mixin's types are known nevertheless.
class Theirs(S3Storage):  # type: ignore[misc]
    pass


class Mine(CollectfastMixin, Theirs):
    pass


class Mixed(CollectfastMixin, ManifestFilesMixin, S3StaticStorage):  # type: ignore[misc]
    pass


def synchronise(storage: CollectfastS3Storage) -> Report:
    with storage.batch() as batch:
        assert_type(batch, Batch)
        assert_type(batch.save("a.css", ContentFile(b"a")), str)
        batch.save("c.css", ContentFile(b"c"), max_length=100)
        batch.delete("b.css")
    with storage.batch(preload=False):
        pass
    assert_type(batch.report, Report)
    return batch.report


def describe(report: Report) -> str:
    assert_type(report.uploaded, tuple[str, ...])
    assert_type(report.unchanged, tuple[str, ...])
    assert_type(report.deleted, tuple[str, ...])
    assert_type(report.bytes, int)
    assert_type(report.seconds, float)
    assert_type(report.requests, Mapping[str, int])
    return f"{report}"


def failures(storage: Mine) -> Mapping[str, object]:
    try:
        with storage.batch() as batch:
            assert_type(batch.report.uploaded, tuple[str, ...])
    except (UploadError, DeleteError) as error:
        files: FilesError = error
        assert_type(error.failures, dict[str, object])
        return files.failures
    except (BucketError, DeniedError, ClearError) as error:
        whole: CollectfastError = error
        return {"": whole.returncode}
    return {}


@receiver(collected)
def purge(
    sender: type[CollectfastMixin],
    storage: CollectfastMixin,
    report: Report,
    **kwargs: object,
) -> None:
    for name in report.uploaded:
        print(sender.__qualname__, storage.exists(name))


def connect(client: S3Client) -> None:
    assert_type(collected, Signal)
    collected.connect(purge, dispatch_uid=client.meta.region_name)


def wrong(storage: CollectfastS3Storage, report: Report) -> None:
    """Misuse the package; each line has to be an error.

    If mypy found no error, it would report the line's `type: ignore` as unused.
    """
    storage.batch(preload="no")  # type: ignore[arg-type]
    storage.batch(False)  # type: ignore[call-arg]
    storage.exists(1)  # type: ignore[arg-type]
    with storage.batch() as batch:
        batch.save(1, ContentFile(b"a"))  # type: ignore[arg-type]
        batch.delete(1)  # type: ignore[arg-type]
    report.bytes = 1  # type: ignore[misc]
    report.uploded  # type: ignore[attr-defined]  # noqa: B018
