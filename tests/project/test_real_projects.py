"""Projects that templates make: their objects are those of django-storages."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.bucket import BucketView
from tests.support.project import Project
from tests.support.proxy import Proxy
from tests.support.readme import snippets

pytestmark = pytest.mark.slow

THEIR_MANIFEST = "storages.backends.s3.S3ManifestStaticStorage"
OUR_MANIFEST = "collectfast_storage.CollectfastS3ManifestStaticStorage"
WAGTAIL = """
SECRET_KEY = "tests"
STORAGES = {{
    "default": {{"BACKEND": "django.core.files.storage.FileSystemStorage"}},
    "staticfiles": {{
        "BACKEND": "{backend}",
        "OPTIONS": {{
            "bucket_name": "{bucket}",
            "location": "{location}",
            "gzip": True,
            "object_parameters": {{
                "CacheControl": "max-age=60",
                "Metadata": {{"release": "one"}},
            }},
        }},
    }},
}}
"""
THEIRS = "storages.backends.s3.S3Storage"
# The settings of https://github.com/cookiecutter/cookiecutter-django for AWS without
# WhiteNoise, in its words, beside those of the diff in docs/migrating.md.
COOKIECUTTER = """
INSTALLED_APPS += ["storages"]
AWS_STORAGE_BUCKET_NAME = "{bucket}"
AWS_QUERYSTRING_AUTH = False
_AWS_EXPIRY = 60 * 60 * 24 * 7
AWS_S3_OBJECT_PARAMETERS = {{
    "CacheControl":
        f"max-age={{_AWS_EXPIRY}}, s-maxage={{_AWS_EXPIRY}}, must-revalidate",
}}
AWS_S3_MAX_MEMORY_SIZE = 100_000_000
AWS_S3_REGION_NAME = "us-east-1"
AWS_S3_CUSTOM_DOMAIN = "cdn.example.com"
STATIC_URL = f"https://{{AWS_S3_CUSTOM_DOMAIN}}/static/"
"""
[DIFF] = snippets("diff")
BEFORE, AFTER = (
    "\n".join(line[1:] for line in DIFF.splitlines() if line[0] in (" ", sign))
    for sign in "-+"
)
URL = """
import django
django.setup()
from django.templatetags.static import static
print(static("shop.css"))
"""


@dataclass(frozen=True)
class StoredObject:
    """All of an object that a visitor or an owner of the bucket can see."""

    content: bytes
    headers: dict[str, Any]
    grants: list[Any]


def _objects(bucket: BucketView, acls: bool = False) -> dict[str, StoredObject]:
    """Return all objects by their names."""
    found = {}
    for name in bucket.names():
        response = bucket.get(name)
        headers = {
            header: response.get(header)
            for header in (
                "CacheControl",
                "ContentDisposition",
                "ContentEncoding",
                "ContentLanguage",
                "ContentType",
                "Expires",
                "Metadata",
                "StorageClass",
                "WebsiteRedirectLocation",
            )
        }
        grants: list[Any] = []
        if acls:
            acl = bucket.client.get_object_acl(Bucket=bucket.name, Key=bucket.key(name))
            grants = acl["Grants"]
        found[name] = StoredObject(response["Body"].read(), headers, grants)
    return found


def _view(bucket: BucketView, folder: str) -> BucketView:
    view = BucketView(bucket.server, f"{bucket.location}/{folder}")
    view.client = bucket.client
    return view


def test_wagtail(tmp_path: Path, bucket: BucketView, counting: Proxy) -> None:
    """A new Wagtail site has the same objects, and a second deploy uploads nothing."""
    if importlib.util.find_spec("wagtail") is None:
        pytest.skip("wagtail is not installed")
    project = Project(
        tmp_path,
        bucket,
        counting,
        start=("wagtail.bin.wagtail", "start"),
        settings="shop.settings.production",
        edited="shop/settings/local.py",
    )

    def deploy(backend: str, view: BucketView) -> dict[str, int]:
        project.settings.write_text(
            WAGTAIL.format(backend=backend, bucket=view.name, location=view.location)
        )
        project.collectstatic()
        return dict(counting.count())

    theirs, ours = _view(bucket, "theirs"), _view(bucket, "ours")
    deploy(THEIR_MANIFEST, theirs)
    deploy(OUR_MANIFEST, ours)
    found = _objects(ours)
    assert found == _objects(theirs)
    hashed = project.manifest(ours)
    assert {*hashed, *hashed.values(), "staticfiles.json"} == {*found}
    assert "wagtailadmin/css/core.css" in found
    assert "PUT" not in deploy(OUR_MANIFEST, ours)
    # The objects of django-storages are not uploaded again either.
    assert "PUT" not in deploy(OUR_MANIFEST, theirs)


@pytest.mark.needs("ACLs")
def test_cookiecutter_django(
    tmp_path: Path, bucket: BucketView, counting: Proxy
) -> None:
    """Its settings have the same effect, with Collectfasta left in and taken out."""
    pytest.importorskip("collectfasta")
    project = Project(tmp_path, bucket, counting)

    def configure(settings: str, view: BucketView) -> None:
        place = settings.replace(
            '"location": "static"', f'"location": "{view.location}"'
        )
        assert place != settings
        project.configure(COOKIECUTTER.format(bucket=view.name), place)

    def deploy(settings: str, view: BucketView) -> dict[str, int]:
        configure(settings, view)
        project.collectstatic()
        acls = {
            request.headers.get("x-amz-acl")
            for request in counting.requests
            if request.kind == "PUT"
        }
        assert acls <= {"public-read"}  # SeaweedFS does not return it as a grant.
        return dict(counting.count())

    theirs, ours = _view(bucket, "theirs"), _view(bucket, "ours")
    without_app = AFTER.replace("collectfast_storage.CollectfastS3Storage", THEIRS)
    assert without_app != AFTER
    left_in = BEFORE.replace(
        f'"{THEIRS}",\n        "OPTIONS": {{\n            "location": "static"',
        '"collectfast_storage.CollectfastS3Storage",\n        "OPTIONS": {\n'
        '            "location": "static"',
    )
    assert left_in != BEFORE

    deploy(without_app, theirs)  # django-storages alone
    expected = _objects(theirs, acls=True)
    assert len(expected) > 100
    deploy(AFTER, ours)
    assert _objects(ours, acls=True) == expected
    assert "PUT" not in deploy(AFTER, ours)

    # The objects of django-storages, with Collectfasta left in and then taken out.
    project.write("shop.css", "changed")
    puts = {}
    for step, settings in (("left in", left_in), ("taken out", AFTER)):
        puts[step] = deploy(settings, theirs).get("PUT", 0)
    assert puts == {"left in": 1, "taken out": 0}
    assert theirs.names() == sorted(expected)
    assert theirs.read("shop.css") == b"changed"
    url = project.run("-c", URL).strip()
    assert url == f"https://cdn.example.com/{theirs.location}/shop.css"
