"""Migrations from other storages and commands, without uploading files again."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import MANAGE
from tests.support.site import Deploy, Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

MIGRATING = Path(__file__).resolve().parents[2] / "docs" / "migrating.md"
YEAR_1980 = 315532800.0

STOCK = "storages.backends.s3.S3StaticStorage"
STOCK_MANIFEST = "storages.backends.s3.S3ManifestStaticStorage"
OURS = {
    STOCK: "collectfast_storage.CollectfastS3StaticStorage",
    STOCK_MANIFEST: "collectfast_storage.CollectfastS3ManifestStaticStorage",
}
PREDECESSORS = ("collectfast", "collectfasta")


@pytest.fixture
def old(site: Site) -> Site:
    """Return a site with files that post-processing changes, and others."""
    site.write("img/logo.svg", "<svg>" + " " * 2000 + "</svg>")
    site.write("css/base.css", "a { background: url('../img/logo.svg') }" * 50)
    site.write("css/site.css", "@import url('base.css'); b { color: red }")
    site.write("ünï code.txt", "a name that has to be quoted")
    return site


def _replaced_command(site: Site, app: str, strategy: str) -> None:
    """Deploy with the collectstatic of `app`, which needs a process of its own."""
    settings = {f"{app.upper()}_STRATEGY": f"{app}.strategies.boto3.{strategy}"}
    environment = {
        "SITE_STATIC": str(site.static),
        "SITE_BACKEND": site.backend,
        "SITE_OPTIONS": json.dumps(site.storage_options),
        "SITE_APPS": json.dumps([app]),
        "SITE_SETTINGS": json.dumps(settings),
    }
    subprocess.run(
        [sys.executable, str(MANAGE), "collectstatic", "--noinput"],
        env=os.environ | environment,
        cwd=site.root,
        check=True,
        capture_output=True,
    )


def _move(site: Site) -> Deploy:
    """Switch to the storage class of this package, and deploy a fresh checkout."""
    site.backend = OURS[site.backend]
    site.touch()
    return site.collect()


def _assert_nothing_is_written(site: Site) -> None:
    before = site.bucket.files()
    assert set(before) >= {"css/base.css", "css/site.css", "img/logo.svg"}
    deploy = _move(site)
    assert deploy.output.strip().startswith("0 static files copied, 4 unmodified")
    assert {*deploy.requests} <= {"LIST", "HEAD", "GET"}
    assert site.bucket.files() == before


@pytest.mark.parametrize("gzip", [False, True])
@pytest.mark.parametrize("backend", [STOCK, STOCK_MANIFEST])
def test_from_django_storages(old: Site, backend: str, gzip: bool) -> None:
    """After django-storages, the first deploy uploads nothing.

    This includes hashed files with a manifest, and compressed files.
    """
    old.backend = backend
    old.options["gzip"] = gzip
    old.collect()
    _assert_nothing_is_written(old)


@pytest.mark.parametrize("app", PREDECESSORS)
@pytest.mark.parametrize("gzip", [False, True])
def test_from_collectfast_and_collectfasta(old: Site, app: str, gzip: bool) -> None:
    """After Collectfast or Collectfasta, the first deploy uploads nothing."""
    pytest.importorskip(app)
    old.backend = STOCK
    old.options["gzip"] = gzip
    _replaced_command(old, app, "Boto3Strategy")
    _assert_nothing_is_written(old)


def test_from_collectfasta_with_a_manifest(old: Site) -> None:
    """After Collectfasta's recommended manifest strategy, nothing is uploaded.

    Collectfasta has two strategies for manifests.
    """
    old.backend = STOCK_MANIFEST
    _replaced_command(old, "collectfasta", "Boto3ManifestMemoryStrategy")
    assert "staticfiles.json" in old.bucket.names()
    _assert_nothing_is_written(old)


def _deployed_by(
    site: Site, backend: str, options: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Deploy with another package's storage, in a process of its own."""
    server = site.bucket.server
    environment = {
        "SITE_STATIC": str(site.static),
        "SITE_BACKEND": backend,
        "SITE_OPTIONS": json.dumps(options),
        "SITE_SETTINGS": json.dumps(settings),
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_CA_BUNDLE": site.proxy.trust["verify"],
        # SeaweedFS would store the encoding of uploads that are sent in chunks.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }
    done = subprocess.run(
        [sys.executable, str(MANAGE), "collectstatic", "--noinput"],
        env=os.environ | environment,
        cwd=site.root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["S3StaticStorage", "S3ManifestStaticStorage"])
def test_from_django_capo_s3(old: Site, name: str) -> None:
    """After django-capo-s3, the first deploy uploads nothing.

    The options of django-capo-s3 have other names.
    """
    pytest.importorskip("django_capo_s3")
    options = {
        "bucket": old.bucket.name,
        "location": old.bucket.location,
        "endpoint": old.proxy.endpoint,
        "region": old.bucket.server.region,
        "force_path_style": True,
        "verify": old.proxy.trust["verify"],
    }
    _deployed_by(old, f"django_capo_s3.{name}", options, {})
    old.backend = f"storages.backends.s3.{name}"
    _assert_nothing_is_written(old)


# django-storages does not close the file that it decompresses a manifest from.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.needs("ACLs")
@pytest.mark.parametrize("name", ["StaticS3Storage", "ManifestStaticS3Storage"])
def test_from_django_s3_storage(old: Site, name: str) -> None:
    """After django-s3-storage, only compressed files are uploaded, once.

    django-s3-storage writes the time into compressed files, so their ETags differ.
    """
    pytest.importorskip("django_s3_storage")
    settings = {
        "AWS_REGION": old.bucket.server.region,
        "AWS_S3_BUCKET_NAME_STATIC": old.bucket.name,
        "AWS_S3_KEY_PREFIX_STATIC": old.bucket.location,
        "AWS_S3_ENDPOINT_URL_STATIC": old.proxy.endpoint,
        "AWS_S3_ADDRESSING_STYLE_STATIC": "path",
    }
    _deployed_by(old, f"django_s3_storage.storage.{name}", {}, settings)
    names = old.bucket.names()
    plain = [name for name in names if name.endswith(".txt")]
    assert old.bucket.get("css/base.css")["ContentEncoding"] == "gzip"
    old.backend = STOCK_MANIFEST if "Manifest" in name else STOCK
    old.options["gzip"] = True  # Needed to read the compressed manifest.
    assert _move(old).put == [name for name in names if name not in plain]
    assert old.bucket.names() == names
    old.touch()
    assert old.collect().put == []


def test_file_that_django_storages_did_not_update_is_uploaded(old: Site) -> None:
    """A file that changed to an older one, which django-storages missed, is uploaded.

    django-storages compares modification times.
    """
    old.backend = STOCK
    old.collect()
    old.write("css/base.css", "older, and different", mtime=YEAR_1980)
    assert old.collect().put == []
    assert _move(old).put == ["css/base.css"]
    assert old.bucket.read("css/base.css") == b"older, and different"


def _source(app: str) -> str:
    spec = importlib.util.find_spec(app)
    assert spec is not None and spec.submodule_search_locations
    [directory] = spec.submodule_search_locations
    files = ["settings.py", "management/commands/collectstatic.py"]
    return "".join((Path(directory) / file).read_text() for file in files)


@pytest.mark.parametrize("app", PREDECESSORS)
def test_every_setting_and_flag_of_the_predecessors_is_in_the_table(app: str) -> None:
    """The page on migrating names every setting and flag of Collectfast(a).

    Each has its counterpart, or a reason why there is none.
    """
    _, _, section = MIGRATING.read_text().partition(
        "\n## Collectfast and Collectfasta\n"
    )
    section, _, _ = section.partition("\n## ")
    source = _source(app)
    settings = r"\"((?:COLLECTFASTA?|AWS|GZIP)_[A-Z_]+)\""
    names = {*re.findall(settings, source), *re.findall(r"\"(--[a-z-]+)\"", source)}
    names.add(f"{app.upper()}_STRATEGY")
    assert len(names) >= 9
    assert {name for name in names if f"`{name}`" not in section} == set()
