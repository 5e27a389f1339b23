"""Large files: boto3's own transfer, in parts and side by side, of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3transfer.futures import NonThreadedExecutor
from s3transfer.manager import TransferManager

from collectfast_storage.executor import BoundedExecutor

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from mypy_boto3_s3 import S3Client


class _Daemons(BoundedExecutor):
    """What s3transfer runs in, so that nobody who interrupts a deploy waits for it."""

    def __init__(self, max_workers: int) -> None:
        super().__init__(max_workers)


class _Listening:
    """A client that keeps the ETag of what was uploaded with it last."""

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self.etag: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_object(self, **parameters: Any) -> Any:
        return self._heard(self._client.put_object(**parameters))

    def complete_multipart_upload(self, **parameters: Any) -> Any:
        return self._heard(self._client.complete_multipart_upload(**parameters))

    def _heard(self, answer: Any) -> Any:
        self.etag = answer.get("ETag")
        return answer


def transfer(
    client: S3Client,
    config: TransferConfig,
    stream: Any,
    bucket_name: str,
    key: str,
    parameters: dict[str, Any],
) -> str | None:
    """Upload `stream`, which stays open, with the write `parameters`.

    Returns the ETag that it got, if that is to be had: s3transfer does not tell.
    """
    # https://github.com/boto/s3transfer/issues/80: it closes what it did not open.
    stream.close = lambda: None
    listening = _Listening(client)
    as_client: Any = listening
    threads: Any = _Daemons if config.use_threads else NonThreadedExecutor
    with TransferManager(as_client, config, executor_cls=threads) as manager:
        manager.upload(stream, bucket_name, key, parameters).result()
    return listening.etag
