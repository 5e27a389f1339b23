"""The first hour of a new user, who makes a project and follows the README."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bucket import BucketView
from tests.support.project import Project
from tests.support.proxy import Proxy
from tests.support.readme import snippets

pytestmark = pytest.mark.slow


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
