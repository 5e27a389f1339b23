"""The tools that the benchmark compares, with their command lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MANAGE = Path(__file__).parents[1] / "support" / "manage.py"
KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
LOCAL = "django.contrib.staticfiles.storage.StaticFilesStorage"
LOCAL_MANIFEST = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"


@dataclass(frozen=True)
class Course:
    """The environment of a contestant: sources, a working folder and the endpoint."""

    static: Path
    folder: Path
    endpoint: str
    bucket: str
    authorities: Path  # a file of CAs that includes the endpoint's

    @property
    def trust(self) -> dict[str, str]:
        """The environment variables that make a contestant trust the endpoint."""
        variables = ("AWS_CA_BUNDLE", "RCLONE_CA_CERT")
        return dict.fromkeys(variables, str(self.authorities))


@dataclass(frozen=True)
class Django:
    """Collectstatic with the storage `backend`, which is local if it has no options."""

    backend: str
    options: Mapping[str, object] | None = None
    apps: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    python: str = sys.executable

    def commands(self, course: Course) -> list[list[str]]:
        return [[self.python, str(MANAGE), "collectstatic", "--noinput"]]

    def environment(self, course: Course) -> dict[str, str]:
        remote = {
            "endpoint_url": course.endpoint,
            "bucket_name": course.bucket,
            "location": "static",
            "region_name": "us-east-1",
        }
        options = {} if self.options is None else {**remote, **self.options}
        return {
            "SITE_STATIC": str(course.static),
            "SITE_ROOT": str(course.folder / "collected"),
            "SITE_BACKEND": self.backend,
            "SITE_OPTIONS": json.dumps(options),
            "SITE_APPS": json.dumps(self.apps),
            "SITE_SETTINGS": json.dumps(dict(self.settings)),
        }


@dataclass(frozen=True)
class Capo(Django):
    """Collectstatic with django-capo-s3, which has other names for its options."""

    def environment(self, course: Course) -> dict[str, str]:
        options = {
            "endpoint": course.endpoint,
            "bucket": course.bucket,
            "location": "static",
            "region": "us-east-1",
            "force_path_style": True,
            "verify": str(course.authorities),
        }
        return super().environment(course) | {"SITE_OPTIONS": json.dumps(options)}


@dataclass(frozen=True)
class Sync:
    """A tool that uploads a local folder."""

    arguments: tuple[str, ...]
    source: str = ""  # a folder in the contestant's; empty for the sources themselves

    def commands(self, course: Course) -> list[list[str]]:
        source = course.folder / self.source if self.source else course.static
        places = {
            "source": str(source),
            "endpoint": course.endpoint,
            "bucket": course.bucket,
        }
        return [[argument.format(**places) for argument in self.arguments]]

    def environment(self, course: Course) -> dict[str, str]:
        prefix = "RCLONE_CONFIG_S3_"
        return {
            f"{prefix}TYPE": "s3",
            f"{prefix}PROVIDER": "Other",
            f"{prefix}ENDPOINT": course.endpoint,
            f"{prefix}ACCESS_KEY_ID": KEYS["AWS_ACCESS_KEY_ID"],
            f"{prefix}SECRET_ACCESS_KEY": KEYS["AWS_SECRET_ACCESS_KEY"],
            "RCLONE_CONFIG": os.devnull,
        }


@dataclass(frozen=True)
class Then:
    """A local collectstatic and an upload of its result, a common workaround."""

    first: Django
    second: Sync

    def commands(self, course: Course) -> list[list[str]]:
        return self.first.commands(course) + self.second.commands(course)

    def environment(self, course: Course) -> dict[str, str]:
        return self.first.environment(course) | self.second.environment(course)


Contestant = Django | Sync | Then


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


RCLONE = (
    *(tool("rclone"), "sync", "--checksum", "--transfers", "64", "--checkers", "64"),
    *(
        "--fast-list",
        "--s3-no-check-bucket",
        "--quiet",
        "{source}",
        "s3:{bucket}/static",
    ),
)
S5CMD = (
    *(tool("s5cmd"), "--endpoint-url", "{endpoint}", "--log", "error"),
    *("sync", "{source}/", "s3://{bucket}/static/"),
)
AWS = (
    *(os.environ.get("BENCH_AWS", "aws"), "--endpoint-url", "{endpoint}"),
    *("s3", "sync", "--only-show-errors", "{source}", "s3://{bucket}/static"),
)
OBSTORE_PYTHON = os.environ.get("BENCH_OBSTORE_PYTHON", sys.executable)
OURS = "collectfast_storage.CollectfastS3StaticStorage"
OUR_MANIFEST = "collectfast_storage.CollectfastS3ManifestStaticStorage"
STOCK = "storages.backends.s3.S3StaticStorage"
COLLECTFASTA = {
    "COLLECTFASTA_STRATEGY": "collectfasta.strategies.boto3.Boto3Strategy",
    "COLLECTFASTA_THREADS": 20,
}

CONTESTANTS: dict[str, Contestant] = {
    "collectfast-storage": Django(OURS, {}),
    "collectfast-storage[obstore]": Django(OURS, {}, python=OBSTORE_PYTHON),
    "local, then rclone": Then(Django(LOCAL), Sync(RCLONE, "collected")),
    "rclone sync": Sync(RCLONE),
    "s5cmd sync": Sync(S5CMD),
    "aws s3 sync": Sync(AWS),
    "django-capo-s3": Capo("django_capo_s3.S3StaticStorage"),
    "Collectfasta": Django(STOCK, {}, ("collectfasta",), COLLECTFASTA),
    "django-storages": Django(STOCK, {}),
    "Django, local": Django(LOCAL),
    "manifest: collectfast-storage": Django(OUR_MANIFEST, {}),
    "manifest: collectfast-storage[obstore]": Django(
        OUR_MANIFEST, {}, python=OBSTORE_PYTHON
    ),
    "manifest: local, then rclone": Then(
        Django(LOCAL_MANIFEST), Sync(RCLONE, "collected")
    ),
    "manifest: django-capo-s3": Capo("django_capo_s3.S3ManifestStaticStorage"),
    "manifest: Django, local": Django(LOCAL_MANIFEST),
}
# Contestants that are too slow for all files. They are measured with this number of
# files, and the results are multiplied.
SUBSETS = {
    "django-storages": 200,
    "django-capo-s3": 200,
    "manifest: django-capo-s3": 200,
}
