"""A small Django site for demo and benchmark; the environment says what differs."""

from __future__ import annotations

import json
import os
import sys

import django
from django.conf import settings
from django.core.management import execute_from_command_line

environ = os.environ
settings.configure(
    SECRET_KEY="demo",
    INSTALLED_APPS=[
        *json.loads(environ.get("SITE_APPS", "[]")),
        "django.contrib.staticfiles",
    ],
    STATIC_URL="/static/",
    STATIC_ROOT=environ.get("SITE_ROOT"),
    STATICFILES_DIRS=[environ["SITE_STATIC"]],
    CACHES=json.loads(environ.get("SITE_CACHES", "null"))
    or {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    STORAGES={
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {
            "BACKEND": environ["SITE_BACKEND"],
            "OPTIONS": json.loads(environ.get("SITE_OPTIONS", "{}")),
        },
    },
    **json.loads(environ.get("SITE_SETTINGS", "{}")),
)
django.setup()
if django.VERSION < (5, 1):
    # There configure(STORAGES=…) sets STATICFILES_STORAGE as well, which goes before it
    # and has no OPTIONS; a settings module does not.
    from django.core.files.storage import storages

    storages.backends.update(settings.STORAGES)
execute_from_command_line(sys.argv)
