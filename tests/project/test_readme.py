"""The README keeps its word: each snippet is run, each table compared."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import boto3
import pytest
from django.core.management import call_command
from django.test import override_settings

from collectfast_storage import checks
from collectfast_storage.options import Options
from collectfast_storage.signals import collected
from tests.support import readme
from tests.support.bucket import BucketView
from tests.support.processes import MANAGE
from tests.support.readme import rows, section, snippets
from tests.support.site import Site

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# How to tell what a snippet is, by a line of it; each kind has a test below.
STORAGES, LOGGING, BATCH = "STORAGES = {", "LOGGING = {", "with storage.batch()"
SIGNAL, ENTRIES = "@receiver(collected)", '"'
TENANTS = "class TenantStorage("


def _run(snippet: str, **names: Any) -> dict[str, Any]:
    exec(compile(snippet, "README.md", "exec"), names)
    return names


def _options_of(backend: dict[str, Any], site: Site) -> dict[str, Any]:
    """The snippet's options, with endpoint and credentials added."""
    server = site.bucket.server
    return backend["OPTIONS"] | {
        "endpoint_url": site.proxy.endpoint,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        **site.proxy.trust,
    }


def _collect_with(snippet: str, site: Site) -> Any:
    storages = _run(readme.settings_with(snippet, site.bucket))["STORAGES"]
    backend = storages["staticfiles"]
    backend["OPTIONS"] = _options_of(backend, site)
    return site.collect(STORAGES=storages)


def test_no_snippet_is_left_out() -> None:
    """What none of the tests below would run must not be there."""
    kinds = (STORAGES, LOGGING, BATCH, SIGNAL, ENTRIES, TENANTS)
    for language in ("python", "json", "shell", "text"):
        assert snippets(language)
    for snippet in snippets("python"):
        assert sum(f"\n{kind}" in f"\n{snippet}" for kind in kinds) == 1, snippet
    languages = re.findall(r"^```(.+)$", readme.TEXT, re.MULTILINE)
    assert {*languages} == {"python", "json", "shell", "text"}


@pytest.mark.parametrize("snippet", snippets("python", STORAGES))
def test_storages(site: Site, snippet: str) -> None:
    """A real collectstatic with them: each file once, then none."""
    site.write_many(3)
    assert _collect_with(snippet, site).summary.startswith("3 static files copied")
    assert {*site.write_many(3)} <= {*site.bucket.names()}
    assert _collect_with(snippet, site).requests["PUT"] == 0


def test_entries_of_options(site: Site) -> None:
    """Snippets that are no more than entries of OPTIONS, after what they import."""
    site.write("a.css", "a")
    for snippet in snippets("python", ENTRIES):
        imports, quote, entries = f"\n{snippet}".partition('\n"')
        names = _run(f"{imports}\nOPTIONS = {{{quote}{entries}}}")
        site.options = names["OPTIONS"]
        site.bucket.clear()
        assert site.collect().put == ["a.css"]


def test_batch(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    [snippet] = snippets("python", BATCH)
    site.bucket.put("reports/old.txt", b"old")
    with site.active():
        _run(snippet)
        assert capsys.readouterr().out == "100 uploaded, 0 unchanged\n"
        _run(snippet)
    assert capsys.readouterr().out == "0 uploaded, 100 unchanged\n"
    names = site.bucket.names()
    assert len(names) == 100
    assert "reports/old.txt" not in names


def test_tenants(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tenant's files are in the tenant's folder, also those of one process."""
    from django.db import connection

    [snippet] = snippets("python", TENANTS)
    namespace = _run(snippet)["TenantStorage"]
    monkeypatch.setattr(sys.modules[__name__], "TenantStorage", namespace, False)
    site.backend = f"{__name__}.TenantStorage"
    site.write("a.css", "a")
    tenants = [f"{site.bucket.location}-{letter}" for letter in "ab"]
    with site.active():
        for tenant in tenants:
            connection.schema_name = tenant
            call_command("collectstatic", "--noinput", stdout=io.StringIO())
    for tenant in tenants:
        view = BucketView(site.bucket.server, f"tenants/{tenant}/static")
        assert view.files() == {"a.css": b"a"}


def test_logging(site: Site) -> None:
    """The snippet shows a line, which reads as the one in the README."""
    [snippet] = snippets("python", LOGGING)
    site.write_many(3)
    environment = {
        "SITE_STATIC": str(site.static),
        "SITE_BACKEND": site.backend,
        "SITE_OPTIONS": json.dumps(site.storage_options),
        "SITE_SETTINGS": json.dumps({"LOGGING": _run(snippet)["LOGGING"]}),
    }
    run = subprocess.run(
        [sys.executable, str(MANAGE), "collectstatic", "--noinput"],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    [line] = run.stderr.splitlines()
    [example] = snippets("text")
    figures = re.compile(r"\d[\d,.]*")
    assert figures.sub("0", line) == figures.sub("0", example.strip())


@contextmanager
def _cloudfront(site: Site) -> Iterator[str]:
    """A CloudFront, the requests to S3 still going to its server; its one's id."""
    moto = pytest.importorskip("moto")
    with moto.mock_aws():
        client = boto3.client("cloudfront")
        created = client.create_distribution(
            DistributionConfig={
                "CallerReference": "tests",
                "Comment": "",
                "Enabled": True,
                "Origins": {
                    "Quantity": 1,
                    "Items": [
                        {
                            "Id": "bucket",
                            "DomainName": "b.s3.us-east-1.amazonaws.com",
                            "S3OriginConfig": {"OriginAccessIdentity": ""},
                        }
                    ],
                },
                "DefaultCacheBehavior": {
                    "TargetOriginId": "bucket",
                    "ViewerProtocolPolicy": "allow-all",
                },
            }
        )
        yield created["Distribution"]["Id"]


def _invalidated(distribution: str) -> list[list[str]]:
    client = boto3.client("cloudfront")
    listed = client.list_invalidations(DistributionId=distribution)
    found = [
        client.get_invalidation(DistributionId=distribution, Id=each["Id"])
        for each in listed["InvalidationList"].get("Items", ())
    ]
    batches = [each["Invalidation"]["InvalidationBatch"] for each in found]
    return [sorted(batch["Paths"]["Items"]) for batch in batches]


def test_signal(site: Site) -> None:
    """A CDN is told what changed, and nothing where nothing did."""
    [snippet] = snippets("python", SIGNAL)
    site.write("a b.css", "a")
    site.write("c.css", "c")
    place = f"/{site.bucket.location}"
    with _cloudfront(site) as distribution:
        names = _run(snippet)
        try:
            with override_settings(CLOUDFRONT_DISTRIBUTION_ID=distribution):
                site.collect()
                assert _invalidated(distribution) == [
                    [f"{place}/a%20b.css", f"{place}/c.css"]
                ]
                site.collect()
                assert len(_invalidated(distribution)) == 1
        finally:
            assert collected.disconnect(names["invalidate"])
    assert site.bucket.names() == ["a b.css", "c.css"]


ACTIONS = {
    "LIST": "s3:ListBucket",
    "HEAD": "s3:GetObject",
    "GET": "s3:GetObject",
    "PUT": "s3:PutObject",
    "POST": "s3:PutObject",  # an upload in parts
    "DELETE MANY": "s3:DeleteObject",
}


def test_least_policy(site: Site) -> None:
    """It allows what the requests of all kinds of deploys need, and no more."""
    [snippet] = snippets("json")
    policy = json.loads(snippet)
    allowed = [each["Action"] for each in policy["Statement"]]
    assert {each["Effect"] for each in policy["Statement"]} == {"Allow"}

    site.backend = "collectfast_storage.CollectfastS3ManifestStaticStorage"
    site.write("a.css", "a")
    site.write("large.bin", bytes(9 * 1024 * 1024))
    requests = site.collect().requests
    site.bucket.put("left-over.css", b"left over")
    requests += site.collect("--clear").requests
    assert {*requests} >= {"LIST", "HEAD", "GET", "PUT", "POST", "DELETE MANY"}
    assert {ACTIONS[kind] for kind in requests} == {allowed[0], *allowed[1]}
    bucket, objects = (each["Resource"] for each in policy["Statement"])
    assert bucket.endswith(":my-bucket")
    assert objects == f"{bucket}/static/*"


def test_options() -> None:
    """The table has each option with its setting and its default, in their order."""
    assert [row[:3] for row in rows("Options")] == [
        [
            f"`collectfast_{field.name}`",
            f"`COLLECTFAST_{field.name.upper()}`",
            f"`{field.default!r}`".replace("'", '"'),
        ]
        for field in fields(Options)
    ]


def test_checks() -> None:
    """The table has each id that there is."""
    source = Path(checks.__file__).read_text()
    ids = re.findall(r'id="(collectfast_storage\.[EW]\d+)"', source)
    assert [row[0] for row in rows("Checks")] == [f"`{each}`" for each in sorted(ids)]


def test_classes() -> None:
    """Of the table of what to name, whatever has a dotted path can be imported."""
    from django.utils.module_loading import import_string

    paths = re.findall(r"`(collectfast_storage\.\w+|storages\.[\w.]+)`", readme.TEXT)
    paths = [path for path in paths if not re.search(r"\.[EW]\d+$", path)]
    assert len({*paths}) == 8
    for path in {*paths}:
        import_string(path)


def test_requirements() -> None:
    """What it asks for is what the package declares."""
    text = section("Requirements")
    classifiers = "\n".join(PROJECT["classifiers"])
    django = re.findall(r"Framework :: Django :: (\d\.\d)", classifiers)
    python = re.findall(r"Python :: (3\.\d+)", classifiers)
    assert f"CPython {python[0]} to {python[-1]}" in text
    assert f"Django {', '.join(django[:-1])} or {django[-1]}," in text
    assert "django-storages[s3]>=1.14.6" in PROJECT["dependencies"]
    assert "django-storages 1.14.6 or newer" in text


def test_extras() -> None:
    """Each that a pip command names exists, and each that exists is named."""
    named = re.findall(r"pip install \"collectfast-storage\[(.+)\]\"", readme.TEXT)
    assert [{*each.split(",")} for each in named] == [
        {*PROJECT["optional-dependencies"]}
    ]
    assert f"pip install {PROJECT['name']}\n" in snippets("shell")


def _dry_make(*targets: str) -> str:
    """What make would run; what only says less, or names the module, is left out."""
    environment = {name: os.environ[name] for name in os.environ if name != "MAKEFLAGS"}
    arguments = ["--dry-run", "--always-make", "PYTHON=python3", "VENV=.venv"]
    run = subprocess.run(
        ["make", *arguments, *targets],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    for left_out in (" --quiet", "python -m ", " --only-binary :all:"):
        run.stdout = run.stdout.replace(left_out, "")
    return run.stdout


def _stands_for(text: str) -> str:
    """The indented block after these words."""
    found = re.search(r"stands? for.*?\n\n((?:    .+\n)+)", text + "\n", re.DOTALL)
    return found[1] if found else ""


def test_make_targets() -> None:
    """Each that is named exists, and does what it is said to stand for."""
    parts = re.split(r"^```shell\nmake (.+)\n```$", readme.TEXT, flags=re.MULTILINE)
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert {*said} >= {"demo", "test", "lint", "types", "matrix", "bench"}
    for target, text in said.items():
        done = _dry_make(target)
        for line in re.findall(r"^    (.+)$", _stands_for(text), re.MULTILINE):
            command = line.partition(" || ")[0].replace("python -m ", "")
            assert command in done, f"make {target}: {line}"
    for target in re.findall(r"`make ([a-z]+)`", readme.TEXT):
        assert _dry_make(target)


def test_shell(site: Site, tmp_path: Path) -> None:
    """Commands of a site's own are run; those of pip and make are looked at above."""
    site.write("a.css", "a")
    site.collect()
    (tmp_path / "manage.py").write_text(MANAGE.read_text())
    ours = [each for each in snippets("shell") if "manage.py" in each]
    put = []
    for snippet in ours:
        site.proxy.requests.clear()
        _shell(snippet, tmp_path, site)
        put.append(site.put())
    assert put == [[], ["a.css"]]  # The second is to upload everything.
    for snippet in snippets("shell"):
        assert snippet in ours or snippet.startswith(("make ", "pip install "))


def _shell(snippet: str, directory: Path, site: Site) -> None:
    binaries = directory / "bin"
    binaries.mkdir(exist_ok=True)
    if not (binaries / "python").exists():
        (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (binaries / "python").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SITE_STATIC": str(site.static),
        "SITE_BACKEND": site.backend,
        "SITE_OPTIONS": json.dumps(site.storage_options),
    }
    subprocess.run(
        ["sh", "-ec", snippet],
        cwd=directory,
        env=environment,
        check=True,
        capture_output=True,
    )


def test_first_screen_has_install_settings_and_result() -> None:
    """A reader in a hurry finds all three in the first 35 lines."""
    screen = "\n".join(readme.README.splitlines()[:35])
    for text in ("pip install", "STORAGES = {", "static files copied, 300 unmodified"):
        assert text in screen


def test_readme_leads_to_all_pages() -> None:
    """Each page is linked from the README."""
    links = {
        *re.findall(r"\]\(((?:\.github|docs)/[\w-]+\.md)(?:#[\w-]+)?\)", readme.README)
    }
    assert links == {str(page.relative_to(ROOT)) for page in readme.PAGES}


def test_pictures() -> None:
    """They are where the README looks for them, and are pictures."""
    pictures = re.findall(r"^!\[.+\]\((.+)\)$", readme.TEXT, re.MULTILINE)
    assert len(pictures) == 2
    for picture in pictures:
        assert (ROOT / picture).read_text().startswith("<svg ")
