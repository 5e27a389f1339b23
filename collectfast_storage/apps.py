"""For ``INSTALLED_APPS``, where a site wants the checks; nothing else needs it."""

from django.apps import AppConfig
from django.core import checks


class CollectfastStorageConfig(AppConfig):
    """Registers the checks, also among those that collectstatic itself runs."""

    name = "collectfast_storage"

    def ready(self) -> None:
        """Register them, and import what they need only when they run."""
        from collectfast_storage.checks import check_storages

        checks.register(check_storages, checks.Tags.staticfiles)
