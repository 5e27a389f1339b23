"""The page about testing without S3: each example is used by a new project."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.bucket import BucketView
from tests.support.project import Project
from tests.support.proxy import Proxy
from tests.support.readme import ROOT, snippet, snippets
from tests.support.servers import free_ports

pytestmark = pytest.mark.slow

PAGE = "testing.md"
IN_MEMORY = snippets("python", "STORAGES = {", PAGE)[0]
MOTO = snippet("python", "from moto import", PAGE)
ENABLED = snippet("python", "COLLECTFAST_ENABLED", PAGE)
BUILD = snippet("python", "STATIC_ROOT", PAGE)
MANIFEST = """
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
    "staticfiles": {"BACKEND": %r, "OPTIONS": %s},
}
STATIC_ROOT = BASE_DIR / "collected"
"""
ON_S3 = "collectfast_storage.CollectfastS3ManifestStaticStorage"
ON_DISK = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
STATIC_IN_TEMPLATE = """
import django
from django.conf import settings
django.setup()
settings.DEBUG = DEBUG
from django.template import engines
source = "{% load static %}{% static 'shop.css' %}"
print(engines["django"].from_string(source).render())
"""
TESTS_OF_PAGES = """
from django.test import SimpleTestCase
from django.template import engines


class PageTests(SimpleTestCase):
    def test_url(self):
        source = "{% load static %}{% static 'shop.css' %}"
        page = engines["django"].from_string(source).render()
        self.assertEqual(page, "/static/shop.css")
"""


@pytest.fixture
def project(tmp_path: Path, bucket: BucketView, counting: Proxy) -> Project:
    return Project(tmp_path, bucket, counting)


@pytest.fixture
def without_s3(project: Project) -> Project:
    """A project in whose environment there are no credentials, and no endpoint."""
    for name in [name for name in project.environment if name.startswith("AWS_")]:
        project.environment[name] = ""
    # A request that is sent nevertheless is refused.
    [port] = free_ports(1)
    project.environment["HTTPS_PROXY"] = f"http://127.0.0.1:{port}"
    return project


def _url(project: Project, *, debug: bool = False, status: int = 0) -> str:
    """Return the last line that a template with a static file renders."""
    code = STATIC_IN_TEMPLATE.replace("DEBUG\n", f"{debug}\n")
    output = project.run_program(sys.executable, "-c", code, status=status)
    return output.strip().splitlines()[-1]


def test_each_snippet_is_tested() -> None:
    """The page has no other examples than those of the tests below."""
    assert {*snippets("python", page=PAGE)} == {IN_MEMORY, MOTO, ENABLED, BUILD}
    assert len(snippets("shell", page=PAGE)) == 1
    assert len(snippets("dockerfile", page=PAGE)) == 1
    assert (ROOT / "docs" / PAGE).read_text().count("```") == 2 * 6


def test_storage_in_memory(without_s3: Project) -> None:
    """Pages have URLs below /static/, and collectstatic runs, without credentials."""
    without_s3.configure(IN_MEMORY)
    (without_s3.root / "shop" / "tests.py").write_text(TESTS_OF_PAGES)
    assert "\nOK\n" in without_s3.run("manage.py", "test")
    assert "static files copied" in without_s3.collectstatic()
    without_s3.configure(IN_MEMORY.replace('"OPTIONS": {"base_url": "/static/"},', ""))
    assert _url(without_s3) == "/shop.css"  # MEDIA_URL is empty.


def test_default_storage_of_django(without_s3: Project) -> None:
    """Django's StaticFilesStorage is as good for the tests of pages."""
    without_s3.configure()
    (without_s3.root / "shop" / "tests.py").write_text(TESTS_OF_PAGES)
    assert "\nOK\n" in without_s3.run("manage.py", "test")


def test_manifest_storages_without_a_manifest(project: Project) -> None:
    """The errors and URLs are those of the page's table."""
    options = f'{{"bucket_name": {project.bucket.name!r}, "location": "unused"}}'
    missing = "ValueError: Missing staticfiles manifest entry for 'shop.css'"
    for backend, their_options in ((ON_S3, options), (ON_DISK, "{}")):
        project.configure(MANIFEST % (backend, their_options))
        assert _url(project, status=1) == missing
        project.proxy.requests.clear()
        assert _url(project, debug=True).endswith("/shop.css")
        is_read = any(r.key.endswith(".json") for r in project.proxy.requests)
        assert is_read is (backend == ON_S3)
    for backend in (ON_S3, ON_DISK):
        module, _, name = backend.rpartition(".")
        (project.root / "lenient.py").write_text(
            f"from {module} import {name}\n\n\n"
            f"class Lenient({name}):\n    manifest_strict = False\n"
        )
        their_options = options if backend == ON_S3 else "{}"
        project.configure(MANIFEST % ("lenient.Lenient", their_options))
        assert "ValueError: The file 'shop.css' could not be found" in _url(
            project, status=1
        )


def test_manifest_storage_on_s3_without_credentials(without_s3: Project) -> None:
    """The first URL is an error about credentials, and not about the manifest."""
    options = '{"bucket_name": "my-bucket", "location": "static"}'
    without_s3.configure(MANIFEST % (ON_S3, options))
    assert "credentials" in _url(without_s3, status=1)


@pytest.mark.parametrize("is_custom", [False, True], ids=["AWS", "custom endpoint"])
def test_moto(project: Project, is_custom: bool) -> None:
    """The tests of the page pass, and send nothing to the endpoint of the settings."""
    pytest.importorskip("moto")
    project.configure()
    (project.root / "shop" / "tests.py").write_text(MOTO)
    endpoint = project.proxy.endpoint
    environment = {
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_ENDPOINT_URL_S3": endpoint if is_custom else "",
        "MOTO_S3_CUSTOM_ENDPOINTS": endpoint if is_custom else "",
    }
    output = project.run("manage.py", "test", **environment)
    assert "Ran 2 tests" in output
    assert "\nOK\n" in output
    assert project.proxy.requests == []
    assert project.bucket.names() == []


def test_enabled(project: Project) -> None:
    """The variable switches to the uploads of django-storages, and back."""
    storages = snippets("python", "STORAGES = {")[0]
    project.configure(ENABLED, storages, "INSTALLED_APPS = INSTALLED_APPS[-1:]")
    project.collectstatic()
    names = project.bucket.names()
    for path in (project.root / "assets").iterdir():
        os.utime(path, (4e9, 4e9))
    [command] = snippets("shell", page=PAGE)
    project.proxy.requests.clear()
    output = project.run_program(*project.shell(command))
    assert f"{len(names)} static files copied" in output
    assert project.proxy.count()["PUT"] == len(names)
    assert "0 static files copied" in project.collectstatic()
    assert project.bucket.names() == names


def test_build_without_credentials(
    without_s3: Project, counting: Proxy, bucket: BucketView
) -> None:
    """The Dockerfile's command collects locally, and with a bucket it uploads."""
    server = bucket.server
    apps = 'INSTALLED_APPS += ["collectfast_storage"]'
    without_s3.configure(BUILD, apps)
    for command in ("check", "collectstatic --noinput"):
        without_s3.run("manage.py", *command.split())
    assert (without_s3.root / "collected" / "shop.css").is_file()
    [dockerfile] = snippets("dockerfile", page=PAGE)
    assert "\nRUN python manage.py collectstatic --noinput\n" in dockerfile
    # Other commands need no credentials in an image that has the name of the bucket.
    without_s3.run("manage.py", "check", STATIC_BUCKET=bucket.name)
    output = without_s3.collectstatic(
        STATIC_BUCKET=bucket.name,
        AWS_ACCESS_KEY_ID=server.access_key,
        AWS_SECRET_ACCESS_KEY=server.secret_key,
        AWS_ENDPOINT_URL_S3=counting.endpoint,
        AWS_CA_BUNDLE=counting.trust["verify"],
        HTTPS_PROXY="",
    )
    names = bucket.names()
    assert "static files copied" in output
    assert {"shop.css", "staticfiles.json"} < {*names}
