"""A storage with an event handler, for which all requests are sent by boto3."""

from __future__ import annotations

from typing import Any

import pytest

from collectfast_storage import CollectfastS3StaticStorage


def _see(**_: Any) -> None:
    """Do nothing with a request."""


class TracedStorage(CollectfastS3StaticStorage):
    """A storage with an event handler for its requests.

    The package has to send such a storage's requests by boto3, because others would not
    reach the handler.
    """

    @property
    def connection(self) -> Any:
        connection = super().connection
        connection.meta.client.meta.events.register("before-send.s3", _see)
        return connection


# Storages that send their requests in different ways.
BACKENDS = [
    pytest.param("collectfast_storage.CollectfastS3StaticStorage", id="fast"),
    pytest.param(f"{__name__}.TracedStorage", id="traced"),
]
