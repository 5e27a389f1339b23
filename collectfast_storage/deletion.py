"""Deleting what a run has no more use for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from botocore.exceptions import BotoCoreError, ClientError

from collectfast_storage.bucket import Bucket
from collectfast_storage.exceptions import DeleteError
from collectfast_storage.ledger import Ledger


class Deletion:
    """Deletes objects, 1,000 a request, or as a site's own `delete` does it."""

    def __init__(
        self,
        bucket: Bucket,
        ledger: Ledger,
        *,
        dry_run: bool,
        delete_one: Callable[[str], object] | None,
    ) -> None:
        """Delete from `bucket`; in a dry run only say so.

        With `delete_one`, it is called with the name of each object that is to go,
        and `stands_aside` is true meanwhile.
        """
        self._bucket = bucket
        self._ledger = ledger
        self._dry_run = dry_run
        self._delete_one = delete_one
        self.stands_aside = False
        self.deleted: list[str] = []

    def carry_out(self, keys: Iterable[str]) -> None:
        """Delete `keys`; `DeleteError` names those that could not be."""
        if self._dry_run:
            self.deleted += keys
            return
        failures, keys = {}, sorted(keys)
        for key in keys:
            self._ledger.changing(key)
        for key, error in self._delete(keys):
            if error is None:
                self._ledger.deleted(key)
                self.deleted.append(key)
            else:
                self._ledger.failed(key)
                failures[self._bucket.name_of(key)] = error
        if failures:
            raise DeleteError(failures)

    def _delete(self, keys: Sequence[str]) -> Iterator[tuple[str, object]]:
        if self._delete_one is None:
            yield from self._bucket.delete(keys)
            return
        for key in keys:
            self.stands_aside = True
            try:
                self._delete_one(self._bucket.name_of(key))
            except (BotoCoreError, ClientError) as error:
                yield key, error
            else:
                yield key, None
            finally:
                self.stands_aside = False
