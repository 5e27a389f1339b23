"""Parameters that each request needs: RequestPayer and ExpectedBucketOwner."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from tests.support.proxy import Handler, Request
from tests.support.site import STATIC, Site

pytestmark = pytest.mark.covering

PARAMETERS = {"RequestPayer": "requester", "ExpectedBucketOwner": "123456789012"}
HEADERS = {
    "x-amz-request-payer": "requester",
    "x-amz-expected-bucket-owner": "123456789012",
}


class Requester:
    """A proxy fault that refuses requests without these parameters."""

    def __init__(self, site: Site, *refused: str) -> None:
        self.site = site
        self.refused = refused
        self.kinds: set[str] = set()
        site.proxy.fault = self

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        self.kinds.add(request.kind)
        if not HEADERS.items() <= request.headers.items():
            handler.error(403, "AccessDenied")
            return True
        if request.kind in self.refused:
            handler.error(501, "NotImplemented")
            return True
        return False


@pytest.mark.parametrize(
    "backend", [STATIC, "collectfast_storage.CollectfastS3ManifestStaticStorage"]
)
def test_each_request_has_the_parameters(site: Site, backend: str) -> None:
    """Listings, HEADs, uploads and deletes have the parameters, the manifest's, too."""
    site.backend = backend
    site.options["object_parameters"] = PARAMETERS
    site.options["transfer_config"] = TransferConfig(multipart_threshold=5 * 2**20)
    site.bucket.put("left-over.css", b"x")
    site.write("large.bin", b"x" * (6 * 2**20))
    site.write("a.css", "a")
    payer = Requester(site)
    site.collect("--clear")
    assert payer.kinds >= {"LIST", "HEAD", "PUT", "POST", "DELETE MANY"}
    assert "left-over.css" not in site.bucket.names()
    assert site.collect().put == []
    site.options["collectfast_preload"] = False
    assert site.collect(CACHES=NO_CACHE).put == []


NO_CACHE = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}


def test_each_single_delete_has_the_parameters(site: Site) -> None:
    """Single deletes have the parameters if a server lacks DeleteObjects."""
    site.options["object_parameters"] = PARAMETERS
    site.bucket.put("left-over.css", b"x")
    site.write("a.css", "a")
    payer = Requester(site, "DELETE MANY")
    site.collect("--clear")
    assert "DELETE" in payer.kinds
    assert site.bucket.names() == ["a.css"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_other_upload_parameters_are_sent_with_uploads_only(
    site: Site, name: str
) -> None:
    """Parameters such as StorageClass are sent with uploads only."""
    site.options["object_parameters"] = {
        name: PARAMETERS[name],
        "CacheControl": "max-age=60",
        "StorageClass": "STANDARD",
    }
    seen: list[Request] = []

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        seen.append(request)
        return False

    site.bucket.put("left-over.css", b"x")
    site.write("a.css", "a")
    site.proxy.fault = fault
    site.collect("--clear")
    assert {request.kind for request in seen} == {"LIST", "PUT", "DELETE MANY"}
    for request in seen:
        sent = {h for h in HEADERS if h in request.headers}
        assert [HEADERS[header] for header in sent] == [PARAMETERS[name]]
        assert ("x-amz-storage-class" in request.headers) == (request.kind == "PUT")


@pytest.mark.skipif(
    importlib.util.find_spec("obstore") is None, reason="obstore is not installed"
)
@pytest.mark.parametrize("name", PARAMETERS)
def test_obstore_is_not_used_with_these_parameters(
    site: Site, name: str, caplog: Any
) -> None:
    """boto3 uploads files with these parameters, because obstore lacks them."""
    site.options["object_parameters"] = {name: PARAMETERS[name]}
    files = site.write_many(3)
    with caplog.at_level("INFO", "collectfast_storage"):
        site.collect()
    line = f"boto3 uploads files with {name}, because obstore cannot."
    assert line in caplog.messages
    assert site.put_by_obstore() == []
    assert site.bucket.files() == files
