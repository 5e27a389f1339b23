"""A project that a command such as `django-admin startproject` makes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.bucket import BucketView
from tests.support.processes import ROOT
from tests.support.proxy import Proxy
from tests.support.readme import settings_with

GZIP = b"\x1f\x8b"  # the beginning of a compressed file
# Django's own command; wagtail has one that takes the same arguments.
STARTPROJECT = ("django", "startproject")


class Project:
    """A new project, which is deployed by `manage.py` as its user would do it."""

    def __init__(
        self,
        root: Path,
        bucket: BucketView,
        proxy: Proxy,
        *,
        start: tuple[str, ...] = STARTPROJECT,
        settings: str = "shop.settings",
        edited: str = "shop/settings.py",
    ) -> None:
        """Make it by the command `start`; `edited` is the file that `configure` writes.

        `settings` is the module of the settings, if `edited` is only a part of them.
        """
        self.root, self.bucket, self.proxy = root, bucket, proxy
        root.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "DJANGO_SETTINGS_MODULE": settings,
            "AWS_ACCESS_KEY_ID": bucket.server.access_key,
            "AWS_SECRET_ACCESS_KEY": bucket.server.secret_key,
            "AWS_ENDPOINT_URL_S3": proxy.endpoint,
            "AWS_CA_BUNDLE": proxy.trust["verify"],
        }
        self.run("-m", *start, "shop", ".", DJANGO_SETTINGS_MODULE="")
        self.settings = root / edited
        self.made = self.settings.read_text() if self.settings.exists() else ""
        self.write("shop.css", "body { background: url(bag.svg) }")
        self.write("bag.svg", "<svg/>")

    def write(self, name: str, content: str) -> None:
        """Write a static file of the project."""
        path = self.root / "assets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def environment_with(self, changes: dict[str, str]) -> dict[str, str]:
        """Return the environment with `changes`; an empty value removes a variable."""
        changed = self.environment | changes
        return {name: value for name, value in changed.items() if value}

    def run(self, *arguments: str, **environment: str) -> str:
        """Run a command of Python's, and return its output, with its errors."""
        return self.run_program(sys.executable, *arguments, **environment)

    def run_program(self, *command: str, status: int = 0, **environment: str) -> str:
        """Run a program that ends with `status`, and return its output."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment_with(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def manifest(self, bucket: BucketView | None = None) -> dict[str, str]:
        """Return the hashed names in the manifest of the bucket."""
        content = (bucket or self.bucket).read("staticfiles.json")
        if content.startswith(GZIP):
            content = gzip.decompress(content)
        paths: dict[str, str] = json.loads(content)["paths"]
        return paths

    def shell(self, script: str) -> list[str]:
        """Return the command that runs `script` of a page, with this Python."""
        return ["sh", "-ec", f'PATH="{Path(sys.executable).parent}:$PATH"\n{script}']

    def configure(self, *snippets: str) -> None:
        """Put `snippets` of a page at the end of the settings."""
        ours = [settings_with(snippet, self.bucket) for snippet in snippets]
        lines = [self.made, 'STATICFILES_DIRS = [BASE_DIR / "assets"]', *ours]
        self.settings.write_text("\n".join(lines))

    def collectstatic(self, *arguments: str, **environment: str) -> str:
        """Deploy, and return the output of the command."""
        self.proxy.requests.clear()
        command = ("manage.py", "collectstatic", "--noinput", *arguments)
        return self.run(*command, **environment)
