"""The settings that all tests share. Each test overrides those that it is about."""

SECRET_KEY = "tests"
INSTALLED_APPS = ["django.contrib.staticfiles"]
STATIC_URL = "/static/"
USE_TZ = True
DATABASES: dict[str, object] = {}
