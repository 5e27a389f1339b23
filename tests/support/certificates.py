"""A private certificate authority for tests and benchmark."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


def make(directory: Path, host: str = "127.0.0.1") -> tuple[Path, Path]:
    """Make a CA and a certificate for `host`; return the paths of their files.

    The second file contains the certificate and key of the server.
    """
    authority, own = directory / "ca.pem", directory / "server.pem"
    ca = trustme.CA()
    ca.cert_pem.write_to_path(authority)
    ca.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(own)
    return authority, own


def server_context(own: Path) -> ssl.SSLContext:
    """Return the TLS context of a server with the certificate and key in `own`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    return context
