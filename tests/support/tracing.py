"""A site that traces its requests: all of them are boto3's own then."""

from __future__ import annotations

from typing import Any

import pytest

from collectfast_storage import CollectfastS3StaticStorage


def _see(**_: Any) -> None:
    """Let a request pass."""


class TracedStorage(CollectfastS3StaticStorage):
    @property
    def connection(self) -> Any:
        connection = super().connection
        connection.meta.client.meta.events.register("before-send.s3", _see)
        return connection


# Each with its own way to the bucket.
BACKENDS = [
    pytest.param("collectfast_storage.CollectfastS3StaticStorage", id="fast"),
    pytest.param(f"{__name__}.TracedStorage", id="traced"),
]
