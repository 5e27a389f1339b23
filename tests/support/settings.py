"""The settings of the tests; what a test is about, it sets itself."""

SECRET_KEY = "tests"
INSTALLED_APPS = ["django.contrib.staticfiles"]
STATIC_URL = "/static/"
USE_TZ = True
DATABASES: dict[str, object] = {}
