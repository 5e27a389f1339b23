"""The first hour of a new user, who makes a project and follows the README."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bucket import BucketView
from tests.support.processes import ROOT
from tests.support.proxy import Proxy
from tests.support.readme import settings_with, snippets

pytestmark = pytest.mark.slow


class Project:
    """A project that `django-admin startproject` makes, with two static files."""

    def __init__(self, root: Path, bucket: BucketView, proxy: Proxy) -> None:
        self.root, self.bucket, self.proxy = root, bucket, proxy
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "AWS_ACCESS_KEY_ID": bucket.server.access_key,
            "AWS_SECRET_ACCESS_KEY": bucket.server.secret_key,
            "AWS_ENDPOINT_URL_S3": proxy.endpoint,
            "AWS_CA_BUNDLE": proxy.trust["verify"],
        }
        self.run("-m", "django", "startproject", "shop", ".", settings=None)
        self.settings = root / "shop" / "settings.py"
        self.made = self.settings.read_text()
        static = root / "assets"
        static.mkdir()
        (static / "shop.css").write_text("body { background: url(bag.svg) }")
        (static / "bag.svg").write_text("<svg/>")

    def run(self, *arguments: str, settings: str | None = "shop.settings") -> str:
        """Run Python with `arguments`, and return the output and the errors."""
        environment = {**self.environment}
        if settings is None:
            del environment["DJANGO_SETTINGS_MODULE"]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def configure(self, *snippets: str) -> None:
        """Append `snippets` of the README to the settings that Django made."""
        ours = [settings_with(snippet, self.bucket) for snippet in snippets]
        lines = [self.made, 'STATICFILES_DIRS = [BASE_DIR / "assets"]', *ours]
        self.settings.write_text("\n".join(lines))

    def collectstatic(self, *arguments: str) -> str:
        """Run collectstatic, and return the output and the errors."""
        self.proxy.requests.clear()
        return self.run("manage.py", "collectstatic", "--noinput", *arguments)


@pytest.fixture
def project(tmp_path: Path, bucket: BucketView, counting: Proxy) -> Project:
    return Project(tmp_path, bucket, counting)


def test_steps_of_the_readme(project: Project) -> None:
    """A new project can be deployed with the snippets of the README.

    It is deployed twice with the static storage, twice with a manifest storage and
    gzip, and once with `--clear`. Unchanged files are not uploaded again.
    """
    static, manifest = snippets("python", "STORAGES = {")
    [logging] = snippets("python", "LOGGING = {")
    bucket, proxy = project.bucket, project.proxy

    project.configure(static, logging)
    output = project.collectstatic()
    names = bucket.names()
    assert f"{len(names)} static files copied." in output
    assert f"{len(names)} uploaded" in output
    assert {"shop.css", "bag.svg", "admin/css/base.css"} < {*names}
    assert proxy.count()["PUT"] == len(names)

    output = project.collectstatic()
    assert f"0 static files copied, {len(names)} unmodified." in output
    assert {*proxy.count()} == {"LIST"}

    project.configure(manifest, logging, 'INSTALLED_APPS += ["collectfast_storage"]')
    assert "no issues" in project.run("manage.py", "check")
    output = project.collectstatic()
    hashed = [name for name in bucket.names() if name.startswith("shop.")]
    assert len(hashed) == 2
    assert bucket.get("admin/css/base.css")["ContentEncoding"] == "gzip"
    assert "staticfiles.json" in bucket.names()

    output = project.collectstatic()
    assert "0 static files copied" in output
    assert proxy.count()["PUT"] == 0

    bucket.put("left-over.css", b"left over")
    before = bucket.names()
    output = project.collectstatic("--clear")
    assert "1 deleted" in output
    assert bucket.names() == [name for name in before if name != "left-over.css"]
    assert proxy.count()["PUT"] == 0
    url = "from django.templatetags.static import static; print(static('shop.css'))"
    script = f"import django; django.setup(); {url}"
    assert "/static/shop." in project.run("-c", script)
