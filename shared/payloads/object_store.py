"""A payload store in an object store that speaks S3, by the package obstore; or in a folder through the same package.

An object is there as a whole or not at all. Keys, region and endpoint are in the environment, as AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL: secrets are no settings.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore as Backend

from shared.payloads.store import Stored, source_of


class ObjectStore:
    """Objects of one bucket and prefix, or of any other store of obstore."""

    def __init__(self, backend: Backend, name: str) -> None:
        """Args: name: its URL, for messages."""
        self._backend = backend
        self._name = name

    @classmethod
    def at(cls, url: str) -> "ObjectStore":
        """The store of a URL; nothing is asked of it yet. Raises OSError where obstore cannot make one of it."""
        options: dict[str, Any] = {"mkdir": True} if url.startswith("file://") else {}
        try:
            return cls(obstore.store.from_url(url, **options), url)
        except BaseError as error:
            raise OSError(_first_line(error)) from None

    def __str__(self) -> str:
        return f"payloads.url {self._name}"

    def put(self, key: str, parts: Sequence[bytes]) -> None:
        try:
            obstore.put(self._backend, key, io.BytesIO(b"".join(parts)))
        except BaseError as error:
            raise OSError(_first_line(error)) from None

    def get(self, key: str, offset: int = 0, size: int | None = None) -> bytes:
        try:
            if size is None:
                return bytes(obstore.get(self._backend, key).bytes())[offset:]
            return bytes(obstore.get_range(self._backend, key, start=offset, length=size))
        except BaseError as error:
            raise OSError(_first_line(error)) from None

    def delete(self, key: str) -> None:
        try:
            obstore.delete(self._backend, key)
        except FileNotFoundError:
            return
        except BaseError as error:
            raise OSError(_first_line(error)) from None

    def list(self) -> Iterator[Stored]:
        try:
            for page in obstore.list(self._backend):
                for found in page:
                    if source_of(found["path"]) is not None:
                        yield Stored(found["path"], found["size"], found["last_modified"].timestamp())
        except BaseError as error:
            raise OSError(_first_line(error)) from None

    def free_bytes(self) -> int | None:
        return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
