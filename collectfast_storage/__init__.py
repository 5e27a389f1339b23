"""S3 storages that make Django's own ``collectstatic`` upload only what changed."""

from collectfast_storage.exceptions import CollectfastError
from collectfast_storage.storage import (
    CollectfastMixin,
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
    CollectfastS3Storage,
)

__all__ = [
    "CollectfastError",
    "CollectfastMixin",
    "CollectfastS3ManifestStaticStorage",
    "CollectfastS3StaticStorage",
    "CollectfastS3Storage",
]
