"""Transfer configurations with small thresholds, so that small files are large ones."""

from __future__ import annotations

from boto3.s3.transfer import TransferConfig

MIB = 1024 * 1024
# Everything of a kilobyte and more is streamed.
STREAMED = TransferConfig(multipart_threshold=1024)
IN_PARTS = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
