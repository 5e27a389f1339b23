"""A Ceph cluster on this machine, whose S3 gateway speaks TLS.

It consists of one monitor, one manager, one OSD that keeps its data in memory, and
one gateway. Debian's packages are radosgw, ceph-mon, ceph-mgr, ceph-osd and
ceph-common. https://docs.ceph.com/en/latest/install/manual-deployment/
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemons import Daemons

COMMANDS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-mgr", "ceph-osd")
COMMANDS += ("ceph-authtool", "monmaptool")

# The options that are not about one node are for speed: one copy of an object, few
# placement groups, no journal on a disk.
_CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = {monitor}
public_network = 127.0.0.0/8
cluster_network = 127.0.0.0/8
keyring = {folder}/$name.keyring
run_dir = {folder}
admin_socket = {folder}/$name.asok
pid_file = {folder}/$name.pid
log_file = {folder}/$name.log
crash_dir = {folder}/crash
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
auth_allow_insecure_global_id_reclaim = false
mon_data_avail_warn = 2
mon_data_avail_crit = 1
[mon.a]
mon_data = {folder}/mon
host = localhost
[mgr.x]
mgr_data = {folder}/mgr
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = {bytes}
osd_class_load_list = *
osd_class_default_list = *
[client.rgw]
rgw_frontends = {frontend}
rgw_dns_name = localhost
rgw_crypt_require_ssl = false
rgw_enable_usage_log = false
"""
_MEMORY = 2 * 1024**3


@contextmanager
def cluster(
    folder: Path,
    ports: list[int],  # of the gateway, and two of the monitor
    certificate: Path,  # with its private key
    access_key: str,
    secret_key: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a cluster with its files in `folder`; yield the gateway's process.

    All processes are ended after the block.
    """
    with Daemons() as daemons:
        node = _Node(folder, daemons)
        node.configure(ports, certificate)
        node.start_monitor(f"127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[2]}")
        node.start_osd()
        user = ["--uid=tests", "--display-name=tests"]
        user += [f"--access-key={access_key}", f"--secret-key={secret_key}"]
        node.run("radosgw-admin", "user", "create", *user, name="client.admin")
        yield node.start("radosgw", "--name=client.rgw")


class _Node:
    def __init__(self, folder: Path, daemons: Daemons) -> None:
        self._folder, self._daemons = folder, daemons
        self._fsid = str(uuid.uuid4())
        self._environment = os.environ | {"CEPH_CONF": str(folder / "ceph.conf")}

    def configure(self, ports: list[int], certificate: Path) -> None:
        """Write the configuration and the folders of the daemons."""
        for name in ("mon", "mgr", "osd", "crash"):
            (self._folder / name).mkdir()
        gateway, *monitor = (f"127.0.0.1:{port}" for port in ports)
        frontend = (
            f"beast ssl_endpoint={gateway} ssl_certificate={certificate} "
            f"ssl_private_key={certificate}"
        )
        text = _CONFIGURATION.format(
            fsid=self._fsid,
            monitor=_addresses(*monitor),
            folder=self._folder,
            frontend=frontend,
            bytes=_MEMORY,
        )
        (self._folder / "ceph.conf").write_text(text)

    def start_monitor(self, *addresses: str) -> None:
        """Start the monitor, which creates all other keys, and the manager."""
        own, admin = self._keyring("mon.a"), self._keyring("client.admin")
        monitors = str(self._folder / "monmap")
        new = ["--create-keyring", "--gen-key"]
        self.run("ceph-authtool", own, *new, "-n", "mon.", "--cap", "mon", "allow *")
        rights = [a for r in ("mon", "osd", "mgr") for a in ("--cap", r, "allow *")]
        self.run("ceph-authtool", admin, *new, "-n", "client.admin", *rights)
        self.run("ceph-authtool", own, "--import-keyring", admin)
        node = ["--addv", "a", _addresses(*addresses)]
        self.run("monmaptool", "--create", "--fsid", self._fsid, *node, monitors)
        first = ["--monmap", monitors, "--keyring", own]
        self.run("ceph-mon", "--id=a", "--mkfs", *first)
        self.start("ceph-mon", "--id=a")
        rights = ["mon", "allow profile mgr", "osd", "allow *"]
        self._create_key("mgr.x", *rights)
        self.start("ceph-mgr", "--id=x")
        self._create_key("client.rgw", "mon", "allow rwx", "osd", "allow rwx")

    def start_osd(self) -> None:
        """Start the OSD."""
        own = str(uuid.uuid4())
        key = self.run("ceph-authtool", "--gen-print-key").strip()
        secret = f'{{"cephx_secret": "{key}"}}'
        self.run("ceph", "osd", "new", own, "0", "-i", "-", given=secret)
        new = ["--create-keyring", "--name=osd.0", "--add-key", key]
        self.run("ceph-authtool", self._keyring("osd.0"), *new)
        self.run("ceph-osd", "--id=0", "--mkfs", "--osd-uuid", own)
        self.start("ceph-osd", "--id=0")

    def run(self, *command: str, given: str = "", name: str = "") -> str:
        """Run a command to its end, and return its output."""
        named = [f"--name={name}"] if name else []
        done = subprocess.run(
            [*command, *named],
            env=self._environment,
            input=given,
            text=True,
            capture_output=True,
            timeout=60,
        )
        if done.returncode:
            line = " ".join(command)
            raise RuntimeError(f"`{line}` failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a daemon."""
        log = self._folder / "log"
        return self._daemons.start([*command, "-f"], log, self._environment)

    def _create_key(self, name: str, *rights: str) -> None:
        file = self._keyring(name)
        self.run("ceph", "auth", "get-or-create", name, *rights, "-o", file)

    def _keyring(self, name: str) -> str:
        return str(self._folder / f"{name}.keyring")


def _addresses(second_version: str, first_version: str) -> str:
    return f"[v2:{second_version},v1:{first_version}]"
