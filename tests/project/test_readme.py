"""The README and the other pages: their snippets, tables, commands and links."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import boto3
import pytest
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.core.management import call_command
from django.test import override_settings

from collectfast_storage import checks
from collectfast_storage.exceptions import BucketError
from collectfast_storage.options import Options
from collectfast_storage.signals import collected
from tests.support import readme
from tests.support.bucket import BucketView
from tests.support.processes import MANAGE
from tests.support.readme import rows, section, snippets
from tests.support.site import MANIFEST, STATIC, Site

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "collectfast_storage"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# The beginning of a line in each kind of snippet. Each kind has a test below.
STORAGES, LOGGING, BATCH = "STORAGES = {", "LOGGING = {", "with storage.batch()"
SIGNAL, ENTRIES = "@receiver(collected)", '"'
TENANTS = "class TenantStorage("


def _run(snippet: str, **names: Any) -> dict[str, Any]:
    exec(compile(snippet, "README.md", "exec"), names)
    return names


def _options_of(backend: dict[str, Any], site: Site) -> dict[str, Any]:
    """Return the snippet's options with endpoint and credentials of the tests."""
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


def test_each_snippet_is_tested() -> None:
    """The pages contain only snippets of the kinds that the tests below run."""
    kinds = (STORAGES, LOGGING, BATCH, SIGNAL, ENTRIES, TENANTS)
    used = {"python", "json", "shell", "text", "diff"}
    for language in used:
        assert snippets(language)
    for snippet in snippets("python"):
        assert sum(f"\n{kind}" in f"\n{snippet}" for kind in kinds) == 1, snippet
    languages = re.findall(r"^```(.+)$", readme.REST, re.MULTILINE)
    assert {*languages} == used


@pytest.mark.parametrize("snippet", snippets("python", STORAGES))
def test_storages(site: Site, snippet: str) -> None:
    """With each STORAGES snippet, collectstatic uploads each file exactly once."""
    site.write_many(3)
    assert _collect_with(snippet, site).summary.startswith("3 static files copied")
    assert {*site.write_many(3)} <= {*site.bucket.names()}
    assert _collect_with(snippet, site).requests["PUT"] == 0


def test_entries_of_options(site: Site) -> None:
    """Each snippet with entries of OPTIONS, and imports for them, works in a deploy."""
    site.write("a.css", "a")
    for snippet in snippets("python", ENTRIES):
        imports, quote, entries = f"\n{snippet}".partition('\n"')
        names = _run(f"{imports}\nOPTIONS = {{{quote}{entries}}}")
        site.options = names["OPTIONS"]
        site.bucket.clear()
        assert site.collect().put == ["a.css"]


def test_entries_for_hashed_names(site: Site) -> None:
    """The entries for hashed names upload only these, kept originals and releases.

    Only hashed names have the parameters.
    """
    [snippet] = [each for each in snippets("python", ENTRIES) if "only_hashed" in each]
    site.options = _run(f"OPTIONS = {{{snippet}}}")["OPTIONS"]
    site.backend = MANIFEST
    kept = ["robots.txt", "service-worker.js", "tinymce/plugins/link/plugin.js"]
    for name in [*kept, "a.css"]:
        site.write(name, name)
    site.collect()
    hashed = {*site.manifest().values()}
    assert len(hashed) == 4
    assert {*site.bucket.names()} == {
        *(*kept, *hashed, "staticfiles.json", "staticfiles.releases.json")
    }
    value = site.options["collectfast_hashed_parameters"]["CacheControl"]
    for name in site.bucket.names():
        expected = value if name in hashed else None
        assert site.bucket.get(name).get("CacheControl") == expected
    assert site.collect().put == []


def test_batch(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """The batch of the snippet uploads 100 files once, and deletes one."""
    [snippet] = snippets("python", BATCH)
    site.bucket.put("reports/old.txt", b"old")
    entry = {"BACKEND": site.backend, "OPTIONS": site.storage_options}
    with site.active(), override_settings(STORAGES={"reports": entry}):
        _run(snippet)
        assert capsys.readouterr().out == "100 uploaded, 0 unchanged\n"
        _run(snippet)
    assert capsys.readouterr().out == "0 uploaded, 100 unchanged\n"
    names = site.bucket.names()
    assert len(names) == 100
    assert "reports/old.txt" not in names


@pytest.mark.parametrize("reuse", [False, True], ids=["new", "reused"])
def test_tenants(site: Site, monkeypatch: pytest.MonkeyPatch, reuse: bool) -> None:
    """Files are collected for each tenant, unless one command object is reused.

    `collectstatic_schemas --all-schemas` reuses it. The object has a list of the files
    that it has copied, and does not copy them again for the next tenant.
    """
    from django.db import connection

    [snippet] = snippets("python", TENANTS)
    namespace = _run(snippet)["TenantStorage"]
    monkeypatch.setattr(sys.modules[__name__], "TenantStorage", namespace, False)
    site.backend = f"{__name__}.TenantStorage"
    site.write("a.css", "a")
    tenants = [f"{site.bucket.location}-{letter}" for letter in "ab"]
    with site.active():
        command = Command()
        for tenant in tenants:
            connection.schema_name = tenant
            command = command if reuse else Command()
            call_command(command, "--noinput", stdout=io.StringIO())
    places = [f"tenants/{tenant}/static" for tenant in tenants]
    found = [BucketView(site.bucket.server, place).files() for place in places]
    assert found == [{"a.css": b"a"}, {} if reuse else {"a.css": b"a"}]


def _manage(
    site: Site, *arguments: str, apps: tuple[str, ...] = (), **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command in another process, which can import modules of `site`."""
    environment = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(site.root)]),
        "SITE_ROOT": str(site.root / "collected"),
        "SITE_STATIC": str(site.static),
        "SITE_BACKEND": site.backend,
        "SITE_OPTIONS": json.dumps(site.storage_options),
        "SITE_APPS": json.dumps(apps),
        "SITE_SETTINGS": json.dumps(settings),
    }
    site.proxy.requests.clear()
    done = subprocess.run(
        [sys.executable, str(MANAGE), *arguments],
        env=os.environ | environment,
        cwd=site.root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def _collectstatic(
    site: Site, apps: tuple[str, ...] = (), **settings: Any
) -> subprocess.CompletedProcess[str]:
    return _manage(site, "collectstatic", "--noinput", apps=apps, **settings)


def test_logging(site: Site) -> None:
    """With the logging snippet, collectstatic logs a line like that in the README."""
    [snippet] = snippets("python", LOGGING)
    site.write_many(3)
    done = _collectstatic(site, LOGGING=_run(snippet)["LOGGING"])
    [line] = done.stderr.splitlines()
    [example] = snippets("text")
    figures = re.compile(r"\d[\d,.]*")
    assert figures.sub("0", line) == figures.sub("0", example.strip())


@contextmanager
def _cloudfront(site: Site) -> Iterator[str]:
    """Mock CloudFront, but not S3, and yield the id of a distribution."""
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
    """The receiver of the snippet invalidates exactly the changed paths of the CDN."""
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


def _policy(*, for_visitors: bool) -> dict[str, Any]:
    """Return the policy of the README with, or without, a principal."""
    policies: list[dict[str, Any]] = [json.loads(each) for each in snippets("json")]
    assert len(policies) == 2
    [policy] = [
        each
        for each in policies
        if all(("Principal" in one) == for_visitors for one in each["Statement"])
    ]
    return policy


def test_least_policy(site: Site) -> None:
    """The deployer's policy allows exactly the requests that deploys make.

    The actions in the policy are compared with those of the recorded requests.
    """
    policy = _policy(for_visitors=False)
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


def _status(url: str) -> int:
    """Return the status that an anonymous visitor gets."""
    try:
        with urllib.request.urlopen(url) as response:  # without TLS
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.needs("leave for a second bucket", "bucket policies")
def test_public_policy(site: Site) -> None:
    """With the public policy visitors can read static files, and no other files."""
    policy = _policy(for_visitors=True)
    deployer = _policy(for_visitors=False)["Statement"]
    assert [each["Resource"] for each in policy["Statement"]] == [
        deployer[1]["Resource"]
    ]
    server, client = site.bucket.server, site.bucket.client
    name = f"public-{site.bucket.location.partition('/')[0]}"
    client.create_bucket(Bucket=name)
    site.options |= {"bucket_name": name, "location": "static"}
    site.write("a.css", "a")
    site.collect()
    client.put_object(Bucket=name, Key="media/a.css", Body=b"a")
    urls = [
        f"{server.endpoint}/{name}/{folder}/a.css" for folder in ("static", "media")
    ]
    assert [_status(url) for url in urls] == [403, 403]
    text = json.dumps(policy).replace("my-bucket", name)
    client.put_bucket_policy(Bucket=name, Policy=text)
    assert [_status(url) for url in urls] == [200, 403]
    assert site.collect().put == []


def test_commands_of_the_aws_cli() -> None:
    """Operations and parameters in commands of the AWS CLI exist in the S3 API."""
    commands = [each for each in snippets("shell") if each.startswith("aws ")]
    text = "".join(commands).replace("\\\n", "")
    lines = [line.split() for line in text.splitlines()]
    assert ["aws", "s3", "mb", "s3://my-bucket"] in lines
    model = boto3.client("s3", region_name="us-east-1").meta.service_model
    checked = []
    for _, _, name, *arguments in (line for line in lines if line[1] == "s3api"):
        operation = model.operation_model("".join(map(str.title, name.split("-"))))
        members = operation.input_shape.members
        pairs = zip(arguments[::2], arguments[1::2], strict=True)
        for argument, value in pairs:
            member = "".join(map(str.title, argument.strip("-").split("-")))
            shape = members[member]
            for field in value.split(",") if "=" in value else ():
                assert field.partition("=")[0] in shape.members
        checked.append(name)
    assert checked == ["put-public-access-block", "put-bucket-policy"]


@pytest.mark.needs("leave for a second bucket")
def test_bucket_is_not_created(site: Site) -> None:
    """A bucket that does not exist is an error, which contains the bucket's name."""
    name = f"missing-{site.bucket.location.partition('/')[0]}"
    site.options["bucket_name"] = name
    site.write("a.css", "a")
    with pytest.raises(BucketError, match=rf"{name}.*NoSuchBucket"):
        site.collect()
    listed = site.bucket.client.list_buckets()["Buckets"]
    assert name not in [each["Name"] for each in listed]


def test_urls_have_no_hashes_with_debug(site: Site) -> None:
    """With DEBUG, a manifest storage returns URLs without hashes."""
    site.backend = MANIFEST
    site.write("a.css", "a")
    site.collect()
    urls = []
    for debug in (False, True):
        with site.storage() as storage, override_settings(DEBUG=debug):
            urls.append(storage.url("a.css").rpartition("/")[2])
    assert re.fullmatch(r"a\.[0-9a-f]{12}\.css", urls[0])
    assert urls[1] == "a.css"


@pytest.mark.parametrize(
    ("backend", "options", "is_signed"),
    [
        (f"{PACKAGE}.CollectfastS3Storage", {}, True),
        (f"{PACKAGE}.CollectfastS3Storage", {"querystring_auth": False}, False),
        (STATIC, {}, False),
        (MANIFEST, {}, False),
    ],
)
def test_signed_urls(
    site: Site, backend: str, options: dict[str, Any], is_signed: bool
) -> None:
    """Only `CollectfastS3Storage` signs URLs, unless `querystring_auth` is False."""
    site.backend = backend
    site.options |= options
    site.write("a.css", "a")
    site.collect()
    with site.storage() as storage:
        assert ("Signature=" in storage.url("a.css")) is is_signed


COMPRESSOR = """
from compressor.storage import CompressorFileStorage
from collectfast_storage import CollectfastS3StaticStorage

# https://django-compressor.readthedocs.io/en/stable/remote-storages.html
class Cached(CollectfastS3StaticStorage):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.local_storage = CompressorFileStorage()

    def save(self, name, content):
        self.local_storage.save(name, content)
        super().save(name, self.local_storage._open(name))
        return name
"""


def test_django_compressor(site: Site) -> None:
    """With the storage of django-compressor's documentation, files are uploaded once.

    Its output says that all files were copied, although the second deploy uploads none.
    """
    pytest.importorskip("compressor")
    (site.root / "compressing.py").write_text(COMPRESSOR)
    site.backend = "compressing.Cached"
    site.write_many(11)
    for uploads in (11, 0):
        done = _collectstatic(site, ("compressor",))
        assert "11 static files copied" in done.stdout
        assert site.proxy.count()["PUT"] == uploads


PIPELINE = """
from pipeline.storage import GZIPMixin, PipelineMixin
from collectfast_storage import CollectfastS3StaticStorage

class Piped(GZIPMixin, PipelineMixin, CollectfastS3StaticStorage):
    pass
"""


def test_django_pipeline(site: Site) -> None:
    """With django-pipeline, only the `.gz` files of `GZIPMixin` are uploaded again."""
    pytest.importorskip("pipeline")
    (site.root / "piping.py").write_text(PIPELINE)
    site.backend = "piping.Piped"
    site.write("a.css", "a")
    site.write("b.txt", "b")
    for uploads in (["a.css", "a.css.gz", "b.txt"], ["a.css.gz"]):
        _collectstatic(site, ("pipeline",), PIPELINE={})
        assert sorted(site.put()) == uploads
        time.sleep(1.1)  # The time in a gzip file has whole seconds.


def test_whitenoise(site: Site) -> None:
    """WhiteNoise's middleware changes no URL, and warns if STATIC_ROOT is missing."""
    pytest.importorskip("whitenoise")
    code = """
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.handlers.wsgi import WSGIHandler
WSGIHandler()
print(staticfiles_storage.url("a.css"))
"""
    middleware = ["whitenoise.middleware.WhiteNoiseMiddleware"]
    done = _manage(site, "shell", "-c", code, MIDDLEWARE=middleware)
    assert done.stdout.strip().endswith(f"{site.bucket.key('a.css')}")
    assert site.bucket.name in done.stdout
    assert "No directory at" in done.stderr


@pytest.mark.needs("ACLs")
def test_cookiecutter_django(site: Site) -> None:
    """After the edits of the diff, files that Collectfasta uploaded are unchanged."""
    pytest.importorskip("collectfasta")
    [diff] = snippets("diff")
    settings = []
    for sign in ("-", "+"):
        lines = [line[1:] for line in diff.splitlines() if line[0] in (" ", sign)]
        names = _run("\n".join(lines), INSTALLED_APPS=[])
        settings.append({name: names[name] for name in names if name.isupper()})
    template = {
        # https://github.com/cookiecutter/cookiecutter-django
        "AWS_QUERYSTRING_AUTH": False,
        "AWS_S3_OBJECT_PARAMETERS": {
            "CacheControl": "max-age=604800, s-maxage=604800, must-revalidate"
        },
    }
    site.write_many(5)
    site.options["default_acl"] = "public-read"
    for before_or_after in settings:
        storages = before_or_after.pop("STORAGES")
        assert storages.keys() - {"default"} == {"staticfiles"}
        backend = storages["staticfiles"]
        site.backend = backend["BACKEND"]
        assert backend["OPTIONS"] == {
            "location": "static",
            "default_acl": "public-read",
        }
        apps = tuple(before_or_after.pop("INSTALLED_APPS"))
        assert bool(apps) is bool(before_or_after)
        site.touch()
        _collectstatic(site, apps, **before_or_after, **template)
    assert len(site.bucket.names()) == 5
    assert site.put() == []


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
    """The table of checks has exactly the ids in the code."""
    source = Path(checks.__file__).read_text()
    ids = re.findall(r'id="(collectfast_storage\.[EW]\d+)"', source)
    assert [row[0] for row in rows("Checks")] == [f"`{each}`" for each in sorted(ids)]


def test_classes() -> None:
    """Each dotted path of a class in the pages can be imported."""
    from django.utils.module_loading import import_string

    paths = re.findall(r"`(collectfast_storage\.\w+|storages\.[\w.]+)`", readme.TEXT)
    paths = [path for path in paths if not re.search(r"\.[EW]\d+$", path)]
    assert len({*paths}) == 8
    for path in {*paths}:
        import_string(path)


def test_requirements() -> None:
    """The section names the versions that the package declares."""
    text = section("Requirements and extras")
    classifiers = "\n".join(PROJECT["classifiers"])
    django = re.findall(r"Framework :: Django :: (\d\.\d)", classifiers)
    python = re.findall(r"Python :: (3\.\d+)", classifiers)
    assert f"CPython {python[0]} to {python[-1]}" in text
    assert f"Django {', '.join(django[:-1])} or {django[-1]}," in text
    assert "django-storages[s3]>=1.14.6" in PROJECT["dependencies"]
    assert "django-storages 1.14.6 or newer" in text


def test_extras() -> None:
    """The pip command of the section names all extras, and no others."""
    named = re.findall(r"pip install \"collectfast-storage\[(.+)\]\"", readme.TEXT)
    assert [{*each.split(",")} for each in named] == [
        {*PROJECT["optional-dependencies"]}
    ]
    assert f"pip install {PROJECT['name']}\n" in snippets("shell")


def _dry_make(*targets: str) -> str:
    """Return the commands that make would run, without options such as --quiet."""
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
    """Return the indented block after the words "equivalent to"."""
    found = re.search(r"equivalent to:\n\n((?:    .+\n)+)", text + "\n")
    return found[1] if found else ""


def test_make_targets() -> None:
    """Each target in the pages exists, and runs the commands that a page lists."""
    parts = re.split(r"^```shell\nmake (.+)\n```$", readme.TEXT, flags=re.MULTILINE)
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert {*said} >= {"demo", "test", "lint", "types", "matrix", "bench"}
    listed = {target for target, text in said.items() if _stands_for(text)}
    assert listed >= {"demo", "test", "lint", "types", "matrix", "bench"}
    for target, text in said.items():
        done = _dry_make(target)
        for line in re.findall(r"^    (.+)$", _stands_for(text), re.MULTILINE):
            command = line.partition(" || ")[0].replace("python -m ", "")
            assert command in done, f"make {target}: {line}"
    for target in re.findall(r"`make ([a-z]+)`", readme.TEXT):
        assert _dry_make(target)
    for target, arguments in re.findall(r'`make ([a-z]+) ARGS="(.+?)"`', readme.TEXT):
        assert f" {arguments}\n" in _dry_make(target, f"ARGS={arguments}")


def test_shell(site: Site, tmp_path: Path) -> None:
    """The commands with manage.py work; the second one uploads all files again.

    The commands of pip, make and aws have their own tests above.
    """
    site.write("a.css", "a")
    site.collect()
    (tmp_path / "manage.py").write_text(MANAGE.read_text())
    ours = [each for each in snippets("shell") if "manage.py" in each]
    put = []
    for snippet in ours:
        site.proxy.requests.clear()
        _shell(snippet, tmp_path, site)
        put.append(site.put())
    assert put == [[], ["a.css"]]
    for snippet in snippets("shell"):
        others = ("make ", "pip install ", "aws ")
        assert snippet in ours or snippet.startswith(others)


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
    """Install command, settings and result are in the README's first 35 lines."""
    screen = "\n".join(readme.README.splitlines()[:35])
    for text in ("pip install", "STORAGES = {", "static files copied, 300 unmodified"):
        assert text in screen


def test_readme_links_all_pages() -> None:
    """The README has a link to each page in docs and .github."""
    links = {
        *re.findall(r"\]\(((?:\.github|docs)/[\w-]+\.md)(?:#[\w-]+)?\)", readme.README)
    }
    assert links == {str(page.relative_to(ROOT)) for page in readme.PAGES}


def test_pictures() -> None:
    """Each picture of a page exists, and is an SVG."""
    pictures = [
        page.parent / picture
        for page in (ROOT / "README.md", *readme.PAGES)
        for picture in re.findall(r"^!\[.+\]\((.+)\)$", page.read_text(), re.MULTILINE)
    ]
    assert len(pictures) == 2
    for picture in pictures:
        assert picture.read_text().startswith("<svg ")


def _anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of `page`, as GitHub derives them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in found}
    return slugs | {*re.findall(r'<a (?:id|name)="(.+?)">', text)}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *readme.PAGES], ids=lambda p: p.name
)
def test_links_to_pages(page: Path) -> None:
    """Each relative link of a page leads to a file, and to a heading in it."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text())
    for path, anchor in links:
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), path
        if anchor:
            assert anchor in _anchors(target), f"{path}#{anchor}"
