"""The bucket as boto3 sees it, directly at the server and without the proxy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.support.servers import Server


@dataclass
class BucketView:
    """The objects below `location` in the bucket of `server`.

    Names are keys without the location.
    """

    server: Server
    location: str

    @property
    def name(self) -> str:
        return self.server.bucket

    @cached_property
    def client(self) -> Any:
        return self.server.client(max_pool_connections=1)

    def key(self, name: str) -> str:
        return f"{self.location}/{name}" if self.location else name

    def names(self) -> list[str]:
        """Return the names of all objects, sorted."""
        return sorted(self.etags())

    def etags(self) -> dict[str, str]:
        """Return the ETag of every object, by name."""
        prefix = self.key("")
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix
        )
        entries = [e for page in pages for e in page.get("Contents", ())]
        return {e["Key"].removeprefix(prefix): e["ETag"].strip('"') for e in entries}

    def get(self, name: str) -> Any:
        """Return boto3's response to a GET request for `name`."""
        answer = self.client.get_object(Bucket=self.name, Key=self.key(name))
        # boto3 streams behind TLS with the encoding "aws-chunked", which SeaweedFS
        # stores with the object, but S3 does not.
        encodings = answer.pop("ContentEncoding", "").split(",")
        if kept := ",".join(each for each in encodings if each != "aws-chunked"):
            answer["ContentEncoding"] = kept
        return answer

    def read(self, name: str) -> bytes:
        content: bytes = self.get(name)["Body"].read()
        return content

    def files(self) -> dict[str, bytes]:
        """Return the contents of every object, by name."""
        return {name: self.read(name) for name in self.names()}

    def put(self, name: str, content: bytes, **parameters: Any) -> None:
        """Overwrite `name`, as another program would."""
        self.client.put_object(
            Bucket=self.name, Key=self.key(name), Body=content, **parameters
        )

    def put_in_parts(self, name: str, content: bytes, size: int) -> None:
        """Overwrite `name` in parts of `size` bytes, as another tool would."""
        place = {"Bucket": self.name, "Key": self.key(name)}
        upload = self.client.create_multipart_upload(**place)["UploadId"]
        parts = []
        for number, start in enumerate(range(0, len(content), size), start=1):
            body = content[start : start + size]
            answer = self.client.upload_part(
                **place, UploadId=upload, PartNumber=number, Body=body
            )
            parts.append({"ETag": answer["ETag"], "PartNumber": number})
        self.client.complete_multipart_upload(
            **place, UploadId=upload, MultipartUpload={"Parts": parts}
        )

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=self.key(name))

    def clear(self) -> None:
        """Delete all objects."""
        # XML cannot contain control characters, so these names are deleted singly.
        names = self.names()
        singly = [name for name in names if re.search(r"[\x00-\x1f]", name)]
        for name in singly:
            self.delete(name)
        keys = [{"Key": self.key(name)} for name in sorted({*names} - {*singly})]
        while keys:
            objects = {"Objects": keys[:1000], "Quiet": True}
            self.client.delete_objects(Bucket=self.name, Delete=objects)
            del keys[:1000]
