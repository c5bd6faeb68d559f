"""Where a registry keeps its repositories: a directory, an object store or memory."""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from bucket import BucketStorage, translate_errors
from directory import DirectoryStorage, checked, create_directory, identity
from object_storage import ObjectStorage
from obstore.store import from_url

from registry_routes.registry import MemoryStorage, Storage

__all__ = [
    "BucketStorage",
    "CheckedMemory",
    "CheckedStorage",
    "DirectoryStorage",
    "ObjectStorage",
    "check_place",
    "is_bucket",
    "storage_at",
]

# With these, an object store that is down or hangs is an error within ten seconds. They are set in
# the environment, because obstore does not combine arguments with an operator's settings there.
TIMEOUTS = {"CONNECT_TIMEOUT": "3s", "READ_TIMEOUT": "5s", "TIMEOUT": "1h"}
RETRY: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=4)}


class CheckedStorage(Storage, Protocol):
    """A storage with a health check."""

    def check(self) -> None:
        """Raise `OSError` if the storage does not answer. Write nothing."""
        ...


class CheckedMemory(MemoryStorage):
    """A storage in memory, which is always healthy."""

    def check(self) -> None:
        pass


def storage_at(
    place: str | os.PathLike[str], *, create: bool = True
) -> ObjectStorage | CheckedMemory:
    """Return the storage in a directory, in memory, or at a URL that obstore supports.

    Raise `OSError`, with a message in one line, if there is none.

    :param create: create the directory if it does not exist.
    """
    place = os.fspath(place)
    if place.startswith("memory:"):
        return CheckedMemory()
    if not place:
        raise OSError("a storage must be a directory or a URL")
    directory = directory_of(place)
    if directory is not None:
        if place.startswith("file:") and not place.startswith("file:///"):
            raise OSError("a file URL must begin with file:///")
        if create:
            create_directory(directory)
        elif not os.path.isdir(directory):
            raise FileNotFoundError("there is no such directory")
        return DirectoryStorage(directory)
    for cloud in "AWS", "AZURE", "GOOGLE":
        for name, value in TIMEOUTS.items():
            os.environ.setdefault(f"{cloud}_{name}", value)
    options: Any = {"retry_config": RETRY}
    with translate_errors():
        try:
            return BucketStorage(from_url(place, **options))
        except ValueError as error:  # not a URL, or a malformed environment variable
            raise OSError(str(error)) from error


def directory_of(place: str) -> str | None:
    """Return the directory that a place names; `None` for a URL of another scheme."""
    if "://" not in place:
        return place
    try:
        url = urlsplit(place)
    except ValueError:
        return None
    return url2pathname(url.path) if url.scheme == "file" else None


def is_bucket(place: str) -> bool:
    """Return whether a place is in an object store."""
    return not place.startswith("memory:") and directory_of(place) is None


def check_place(parser: argparse.ArgumentParser, place: str, *, read_only: bool = False) -> None:
    """End the program, with status 2 and a message in one line, if it cannot use a storage.

    :param read_only: do not create a directory, and accept one that is not writable.
    """
    try:
        if place.startswith("memory:"):
            return
        if not is_bucket(place):
            _check(place, read_only)
        else:
            # In another process: this one will fork, and a store must not be open then.
            with ProcessPoolExecutor(1) as other:
                other.submit(_check, place, read_only).result()
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: --storage {place!r}: {error}\n")


def _check(place: str, read_only: bool) -> None:
    storage = storage_at(place, create=not read_only)
    storage.check()
    if not isinstance(storage, DirectoryStorage):
        return
    if not read_only:
        storage.try_writing()
    checked[storage.directory] = identity(storage.directory)
