"""Transfer configurations with low thresholds, so that small files count as large."""

from __future__ import annotations

from boto3.s3.transfer import TransferConfig

MIB = 1024 * 1024
# Files of a kilobyte or more are streamed.
STREAMED = TransferConfig(multipart_threshold=1024)
IN_PARTS = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
