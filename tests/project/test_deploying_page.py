"""The page about deploys: replicas and jobs are processes of a new project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.support import caches
from tests.support.bucket import BucketView
from tests.support.processes import LONG
from tests.support.project import Project
from tests.support.proxy import Proxy
from tests.support.readme import ROOT, snippet, snippets
from tests.support.servers import free_ports

pytestmark = pytest.mark.slow

PAGE = "deploying.md"
COMPOSE = snippet("yaml", "services:", PAGE)
ENTRYPOINT = snippet("shell", "#!/bin/sh", PAGE)
CACHES = snippet("python", "CACHES = {", PAGE)
SCHEMAS = snippet("shell", "python manage.py collectstatic_schemas", PAGE)
TENANTS_COMMAND = snippet("python", "class Command(", PAGE)
TENANT_STORAGE = snippets("python", "class TenantStorage(")[0]
PLAIN, MANIFEST = snippets("python", "STORAGES = {")

REPLICAS = 3
SMALL_SITE = """
ALLOWED_HOSTS = ["*"]
DEBUG = False
INSTALLED_APPS = ["django.contrib.staticfiles"]
MIDDLEWARE = []
"""
URLS = """
from django.http import HttpResponse
from django.templatetags.static import static
from django.urls import path

urlpatterns = [path("", lambda request: HttpResponse(static("shop.css")))]
"""
HASHED = re.compile(r"shop\.[0-9a-f]{12}\.css")

# django-tenants needs PostgreSQL. These modules do as its modules do: the command
# has one instance of Django's command, which it runs for one tenant or for all.
TENANTS = ("acme", "globex")
DJANGO_TENANTS_UTILS = f"""
from contextlib import contextmanager
from types import SimpleNamespace

from django.db import connection

tenants = [SimpleNamespace(schema_name=name) for name in {TENANTS}]


def get_tenant_model():
    return SimpleNamespace(objects=SimpleNamespace(all=lambda: tenants))


@contextmanager
def schema_context(schema_name):
    connection.schema_name = schema_name
    yield
"""
DJANGO_TENANTS_COMMAND = """
from django.contrib.staticfiles.management.commands import collectstatic
from django.core.management.base import BaseCommand
from django_tenants.utils import schema_context, tenants


class Command(BaseCommand):
    def add_arguments(self, parser):
        self.command_instance = collectstatic.Command()
        self.command_instance.add_arguments(parser)
        parser.add_argument("--schema")
        parser.add_argument("--all-schemas", action="store_true")

    def handle(self, schema, all_schemas, **options):
        names = [tenant.schema_name for tenant in tenants]
        for name in names if all_schemas else [schema]:
            with schema_context(name):
                self.command_instance.execute(**options)
"""


@pytest.fixture
def project(tmp_path: Path, bucket: BucketView, counting: Proxy) -> Project:
    """A small site with a page that contains the URL of a static file."""
    project = Project(tmp_path / "project", bucket, counting)
    (project.root / "shop" / "urls.py").write_text(URLS)
    (project.root / "entrypoint.sh").write_text(ENTRYPOINT)
    for number in range(20):
        project.write(f"file{number}.js", f"let number = {number}")
    project.configure(SMALL_SITE, MANIFEST)
    return project


@contextmanager
def _starting(project: Project, *command: str, port: int = 0) -> Iterator[None]:
    """Run a program of the project until the end of the block."""
    with subprocess.Popen(
        command,
        cwd=project.root,
        env=project.environment_with({"PORT": str(port)}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield
        finally:
            process.terminate()


def _page(port: int) -> str:
    """Return the page of the server at `port`, when the server has started."""
    deadline = time.monotonic() + LONG
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}") as response:
                return str(response.read().decode())
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "the replica does not start"
            time.sleep(0.1)


def _pages(project: Project, replicas: int) -> list[str]:
    """Start replicas by the entrypoint; return their pages when all have started."""
    project.proxy.requests.clear()
    ports = free_ports(replicas)
    with ExitStack() as stack:
        for port in ports:
            command = project.shell("exec sh entrypoint.sh")
            stack.enter_context(_starting(project, *command, port=port))
        return [_page(port) for port in ports]


def test_each_snippet_is_tested() -> None:
    """The page has no other examples than those of the tests below."""
    assert {*snippets("python", page=PAGE)} == {CACHES, TENANTS_COMMAND}
    assert {*snippets("shell", page=PAGE)} == {ENTRYPOINT, SCHEMAS}
    assert snippets("yaml", page=PAGE) == [COMPOSE]
    assert (ROOT / "docs" / PAGE).read_text().count("```") == 2 * 5


def test_job(project: Project) -> None:
    """The command of the job uploads each file, and the server has its manifest."""
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load(COMPOSE)["services"]
    conditions = services["web"]["depends_on"]
    assert conditions == {
        "collectstatic": {"condition": "service_completed_successfully"}
    }
    project.run_program(*project.shell(services["collectstatic"]["command"]))
    assert project.proxy.count()["PUT"] == len(project.bucket.names())
    project.proxy.requests.clear()
    [port] = free_ports(1)
    serve = services["web"]["command"].replace("0.0.0.0:8000", f"127.0.0.1:{port}")
    with _starting(project, *project.shell(f"exec {serve}")):
        assert HASHED.search(_page(port))
    assert project.proxy.count()["PUT"] == 0


@pytest.mark.parametrize("cache", ["none", "redis"])
def test_replicas_that_start_together(
    project: Project, tmp_path: Path, cache: str
) -> None:
    """All serve the hashed URL, and a replica that starts later uploads nothing."""
    with caches.redis(tmp_path) if cache == "redis" else nullcontext() as server:
        if server is not None:
            location = server.settings["CACHES"]["default"]["LOCATION"]
            project.environment["REDIS_URL"] = location
            project.configure(SMALL_SITE, MANIFEST, CACHES)
        pages = _pages(project, REPLICAS)
        names = project.bucket.names()
        [hashed] = {found[0] for page in pages if (found := HASHED.search(page))}
        assert hashed in names
        puts = project.proxy.count()["PUT"]
        assert len(names) <= puts <= REPLICAS * len(names)

        assert _pages(project, 1) == pages[:1]
        assert project.proxy.count()["PUT"] == 0

        if cache == "redis":  # The cache contains the headers.
            header = '"object_parameters": {"CacheControl": "max-age=60"}, "location":'
            changed = MANIFEST.replace('"location":', header)
            project.configure(SMALL_SITE, changed, CACHES)
            _pages(project, 1)
            assert project.bucket.get(hashed)["CacheControl"] == "max-age=60"
            assert project.bucket.names() == names


def test_replica_whose_collectstatic_fails(project: Project) -> None:
    """The entrypoint ends with an error, and starts no server."""
    project.environment["AWS_ENDPOINT_URL_S3"] = "https://127.0.0.1:9"
    project.configure(SMALL_SITE, MANIFEST, "COLLECTFAST_RETRY_TIMEOUT = 1")
    command = project.shell("exec sh entrypoint.sh")
    output = project.run_program(*command, status=1)
    assert "Cannot use bucket" in output
    assert "gunicorn" not in output


@pytest.mark.parametrize("storages", [PLAIN, MANIFEST], ids=["plain", "manifest"])
def test_two_releases_at_the_same_time(project: Project, storages: str) -> None:
    """The next deploy of the new release completes it, and another uploads nothing."""
    project.configure(SMALL_SITE, storages.replace(', "gzip": True', ""))
    old = project.root.with_name("old")
    shutil.copytree(project.root, old)
    contents = {f"file{number}.js": f"let changed = {number}" for number in range(20)}
    for name, content in contents.items():
        project.write(name, content)
    deploying = [
        subprocess.Popen(
            project.shell("exec python manage.py collectstatic --noinput"),
            cwd=root,
            env=project.environment,
            stdout=subprocess.DEVNULL,
        )
        for root in (old, project.root)
    ]
    assert [process.wait(LONG) for process in deploying] == [0, 0]
    hashed = [name for name in project.bucket.names() if name.startswith("file7.")]
    assert len(hashed) == (3 if storages == MANIFEST else 1)

    project.collectstatic()
    found = project.bucket.files()
    assert {name: found[name].decode() for name in contents} == contents
    if storages == MANIFEST:
        paths = project.manifest()
        assert found[paths["file7.js"]].decode() == contents["file7.js"]
    project.collectstatic()
    assert project.proxy.count()["PUT"] == 0


def _make_tenants(project: Project) -> dict[str, BucketView]:
    """Make the site one with tenants; return the place of each tenant."""
    base = project.bucket.location
    storage = TENANT_STORAGE.replace('f"tenants/', f'f"{base}/tenants/')
    assert storage != TENANT_STORAGE
    for path, text in (
        ("shop/storage.py", storage),
        ("shop/management/commands/collectstatic_tenants.py", TENANTS_COMMAND),
        ("django_tenants/utils.py", DJANGO_TENANTS_UTILS),
        (
            "django_tenants/management/commands/collectstatic_schemas.py",
            DJANGO_TENANTS_COMMAND,
        ),
    ):
        module = project.root / path
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(text)
    for path in project.root.rglob("commands"):
        (path / "__init__.py").touch()
    for name in ("", "management"):
        (project.root / "django_tenants" / name / "__init__.py").touch()
        (project.root / "shop" / name / "__init__.py").touch()
    backend = PLAIN.replace(
        "collectfast_storage.CollectfastS3StaticStorage", "shop.storage.TenantStorage"
    )
    project.configure(
        SMALL_SITE, backend, 'INSTALLED_APPS += ["shop", "django_tenants"]'
    )
    server = project.bucket.server
    return {
        tenant: BucketView(server, f"{base}/tenants/{tenant}/static")
        for tenant in TENANTS
    }


@pytest.mark.parametrize("way", ["schemas", "command"])
def test_tenants(project: Project, way: str) -> None:
    """Each tenant has all files, and a second run uploads nothing."""
    places = _make_tenants(project)
    command = project.shell("python manage.py collectstatic_tenants")
    if way == "schemas":
        command = project.shell(SCHEMAS)
    project.run_program(*command)
    assets = project.root / "assets"
    expected = {path.name: path.read_bytes() for path in assets.iterdir()}
    assert [place.files() for place in places.values()] == [expected, expected]
    for path in assets.iterdir():
        os.utime(path, (4e9, 4e9))
    project.proxy.requests.clear()
    project.run_program(*command)
    assert dict(project.proxy.count()) == {"LIST": 2}


def test_all_schemas(project: Project) -> None:
    """With one instance of the command, only the first tenant gets files."""
    first, second = _make_tenants(project).values()
    project.run("manage.py", "collectstatic_schemas", "--noinput", "--all-schemas")
    assert "shop.css" in first.names()
    assert second.names() == []
