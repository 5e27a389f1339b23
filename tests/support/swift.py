"""OpenStack Swift on this machine, with its S3 API.

It consists of one proxy server, one account, container and object server each, and
memcached. https://docs.openstack.org/swift/latest/development_saio.html
"""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemons import Daemons

KINDS = ("account", "container", "object")
COMMANDS = ("memcached", "swift-ring-builder", "swift-proxy-server")
COMMANDS += tuple(f"swift-{kind}-server" for kind in KINDS)
PORTS = 5  # free ports that it needs
ACCESS_KEY = "test:tester"  # of the account and the user

_COMMON = """\
[swift-hash]
swift_hash_path_prefix = a
swift_hash_path_suffix = b
[storage-policy:0]
name = one
default = yes
"""
# Without workers, each server is one process.
_SERVER = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
log_level = WARNING
"""
_STORAGE = """\
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
_FILTERS = {
    "catch_errors": "",
    "gatekeeper": "",
    "cache": "memcache_servers = 127.0.0.1:{memcached}",
    "listing_formats": "",
    "bulk": "",
    "s3api": "dns_compliant_bucket_names = true",
    "tempauth": "user_test_tester = {secret} .admin",
    "slo": "",
    "dlo": "",
    "versioned_writes": "allow_versioned_writes = true",
    "symlink": "",
}
_ENTRY_POINTS = {"cache": "memcache"}


@contextmanager
def swift(
    folder: Path,
    ports: list[int],  # of the proxy server, memcached, and those of `KINDS`
    secret_key: str,
    script: Callable[[str], str | None],  # returns the path of a command
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Swift with its files in `folder`; yield the process of the proxy server.

    All processes are ended after the block.
    """
    proxy, memcached, *others = ports
    (folder / "devices" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(_COMMON)
    environment = os.environ | {"SWIFT_CONF_DIR": str(folder)}
    with Daemons() as daemons:

        def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
            command = [str(script(name)), *arguments]
            return daemons.start(command, folder / "log", environment)

        user = getpass.getuser()
        start("memcached", "-l", "127.0.0.1", "-p", str(memcached), "-u", user)
        for kind, port in zip(KINDS, others, strict=True):
            _make_ring(folder, kind, port, str(script("swift-ring-builder")))
            text = _SERVER.format(port=port, user=user, folder=folder)
            file = folder / f"{kind}.conf"
            file.write_text(text + _STORAGE.format(kind=kind))
            start(f"swift-{kind}-server", str(file), "-v")
        text = _SERVER.format(port=proxy, user=user, folder=folder)
        file = folder / "proxy.conf"
        file.write_text(text + _pipeline(secret=secret_key, memcached=memcached))
        yield start("swift-proxy-server", str(file), "-v")


def _make_ring(folder: Path, kind: str, port: int, builder: str) -> None:
    """Write the ring of one device, which says where objects of that kind are."""
    steps = (["create", "6", "1", "1"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"])
    for step in (*steps, ["rebalance"]):
        subprocess.run(
            [builder, f"{kind}.builder", *step],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )


def _pipeline(**values: object) -> str:
    lines = ["[pipeline:main]", f"pipeline = {' '.join(_FILTERS)} proxy-server"]
    lines += ["[app:proxy-server]", "use = egg:swift#proxy"]
    lines.append("account_autocreate = true")
    for name, options in _FILTERS.items():
        entry_point = _ENTRY_POINTS.get(name, name)
        lines += [f"[filter:{name}]", f"use = egg:swift#{entry_point}"]
        lines.append(options.format(**values))
    return "\n".join(lines) + "\n"
