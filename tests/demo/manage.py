"""A small Django site; what differs between deploys comes from the environment."""

from __future__ import annotations

import os
import sys

import django
from django.conf import settings
from django.core.management import execute_from_command_line

settings.configure(
    SECRET_KEY="demo",
    INSTALLED_APPS=["django.contrib.staticfiles"],
    STATIC_URL="/static/",
    STATICFILES_DIRS=[os.environ["DEMO_STATIC"]],
    CACHES={
        "default": {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": os.environ["DEMO_CACHE"],
        }
    },
    STORAGES={
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {
            "BACKEND": os.environ["DEMO_BACKEND"],
            "OPTIONS": {
                "endpoint_url": os.environ["DEMO_ENDPOINT"],
                "bucket_name": os.environ["DEMO_BUCKET"],
                "location": os.environ["DEMO_LOCATION"],
                "region_name": "us-east-1",
            },
        },
    },
)
django.setup()
execute_from_command_line(sys.argv)
