"""The manage.py of a small Django site, which is configured by environment variables.

It is used by the demo, the benchmark and the tests that need other processes.
"""

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
    # In these versions configure(STORAGES=…) also sets STATICFILES_STORAGE, which takes
    # precedence and has no OPTIONS. A settings module does not have this problem.
    from django.core.files.storage import storages

    storages.backends.update(settings.STORAGES)
execute_from_command_line(sys.argv)
