"""What the bucket holds."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

from collectfast_storage.bucket import Bucket


class RemoteIndex:
    """The ETag of each object below the bucket's prefix.

    Listed at the first question and once only, also where nothing is found; with
    `preload` false, asked for key by key with HEAD, each once.
    """

    def __init__(
        self,
        bucket: Bucket,
        head_parameters: Callable[[str], dict[str, Any]],
        *,
        preload: bool,
    ) -> None:
        """Ask `bucket`; `head_parameters` gives those that the HEAD of a key needs."""
        self._bucket = bucket
        self._head_parameters = head_parameters
        self._preload = preload
        self._etags: dict[str, str | None] = {}
        self._listed = False

    def etag(self, key: str) -> str | None:
        """Return the ETag of `key`, `None` if there is no such object."""
        if self._preload:
            self._list()
        if key not in self._etags and not self._listed:
            self._etags[key] = self._bucket.head(key, self._head_parameters(key))
        return self._etags.get(key)

    def keys(self) -> Set[str]:
        """Return the keys of all objects; there is no way but to list them."""
        self._list()
        return {key for key, etag in self._etags.items() if etag is not None}

    def put(self, key: str, etag: str) -> None:
        """Note that `key` has been uploaded."""
        self._etags[key] = etag

    def remove(self, key: str) -> None:
        """Note that `key` has been deleted."""
        self._etags[key] = None

    def _list(self) -> None:
        if self._listed:
            return
        page = self._bucket.list()
        found = page.etags
        while page.token:
            page = self._bucket.list(token=page.token)
            found |= page.etags
        self._etags = {**found, **self._etags}
        self._listed = True
