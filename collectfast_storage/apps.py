"""The configuration for ``INSTALLED_APPS``, which is necessary only for the checks."""

from django.apps import AppConfig
from django.core import checks


class CollectfastStorageConfig(AppConfig):
    """Registers the checks, which collectstatic runs as well."""

    name = "collectfast_storage"

    def ready(self) -> None:
        """Register the checks; their imports are delayed until they are needed."""
        from collectfast_storage.checks import check_storages

        checks.register(check_storages, checks.Tags.staticfiles)
