"""`MemoryStorage`: a storage in memory, for tests, and the shortest example of a storage."""

import threading
import time
import uuid as uuids
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from .storage import BLOCK, Blob, ConflictError, Manifest, MissingError, Storage, checked_blocks

__all__ = ["MemoryStorage"]

REMEMBERED = 3600.0  # seconds for which to keep the result of an upload


@dataclass
class _Upload:
    size: int = 0
    chunks: list[bytes] = field(default_factory=list)


class _StoredManifest(NamedTuple):
    manifest: Manifest
    subject: str | None
    descriptor: bytes


@dataclass
class _Repository:
    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, _Upload] = field(default_factory=dict)
    manifests: dict[str, _StoredManifest] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    results: dict[str, tuple[float, str]] = field(default_factory=dict)
    """The time when each upload was finished, by `time.monotonic`, and the digest of its blob."""


class MemoryStorage(Storage):
    """A `Storage` in memory, for tests. It is thread-safe, and its content is lost with it.

    >>> from registry_routes.digests import digest_of
    >>> storage = MemoryStorage()
    >>> digest = digest_of(b"{}")
    >>> storage.put_blob("library/nginx", digest, [b"{", b"}"])
    >>> storage.open_blob("library/nginx", digest).size
    2
    """

    def __init__(self) -> None:
        self._repositories: dict[str, _Repository] = {}
        # Held during look-ups and changes, but not while a client sends content.
        self._lock = threading.Lock()

    def _find_repository(self, name: str) -> _Repository:
        """Return a repository to read from, which is empty if it does not exist."""
        return self._repositories.get(name, _Repository())

    def _create(self, name: str) -> _Repository:
        """Return a repository to write to, creating it if necessary."""
        return self._repositories.setdefault(name, _Repository())

    def _find_blob(self, name: str, digest: str) -> bytes:
        with self._lock:
            return _find(self._find_repository(name).blobs, digest)

    def open_blob(self, name: str, digest: str) -> Blob:
        content = self._find_blob(name, digest)

        def read(start: int, end: int) -> Iterable[bytes]:
            part = memoryview(content)[start:end]
            return (bytes(part[i : i + BLOCK]) for i in range(0, len(part), BLOCK))

        return Blob(len(content), read)

    def put_blob(self, name: str, digest: str, blocks: Iterable[bytes]) -> None:
        content = b"".join(checked_blocks(digest, blocks))
        with self._lock:
            self._create(name).blobs[digest] = content

    def mount_blob(self, name: str, digest: str, source: str) -> None:
        with self._lock:
            content = _find(self._find_repository(source).blobs, digest)
            self._create(name).blobs[digest] = content

    def delete_blob(self, name: str, digest: str) -> None:
        with self._lock:
            blobs = self._find_repository(name).blobs
            _find(blobs, digest)
            del blobs[digest]

    def begin_upload(self, name: str) -> str:
        upload_id = uuids.uuid4().hex
        with self._lock:
            self._create(name).uploads[upload_id] = _Upload()
        return upload_id

    def upload_size(self, name: str, upload_id: str) -> int:
        with self._lock:
            return _find(self._find_repository(name).uploads, upload_id).size

    def _upload_of(self, name: str, upload_id: str, start: int) -> _Upload:
        upload = _find(self._find_repository(name).uploads, upload_id)
        if upload.size != start:
            raise ConflictError
        return upload

    def append_to_upload(
        self, name: str, upload_id: str, start: int, blocks: Iterable[bytes]
    ) -> int:
        chunk = b"".join(blocks)
        with self._lock:
            upload = self._upload_of(name, upload_id, start)
            upload.chunks.append(chunk)
            upload.size += len(chunk)
            return upload.size

    def finish_upload(
        self, name: str, upload_id: str, start: int, blocks: Iterable[bytes], digest: str
    ) -> None:
        last = b"".join(blocks)
        with self._lock:
            chunks = [*self._upload_of(name, upload_id, start).chunks, last]
        content = b"".join(checked_blocks(digest, chunks))
        with self._lock:
            self._upload_of(name, upload_id, start)
            repository = self._find_repository(name)
            repository.blobs[digest] = content
            del repository.uploads[upload_id]
            now, results = time.monotonic(), repository.results
            while results and now - results[next(iter(results))][0] > REMEMBERED:
                del results[next(iter(results))]  # the oldest comes first
            results[upload_id] = now, digest

    def upload_result(self, name: str, upload_id: str) -> str:
        with self._lock:
            return _find(self._find_repository(name).results, upload_id)[1]

    def cancel_upload(self, name: str, upload_id: str) -> None:
        with self._lock:
            uploads = self._find_repository(name).uploads
            _find(uploads, upload_id)
            del uploads[upload_id]

    def manifest(self, name: str, digest: str) -> Manifest:
        with self._lock:
            return _find(self._find_repository(name).manifests, digest).manifest

    def put_manifest(
        self,
        name: str,
        digest: str,
        manifest: Manifest,
        *,
        blobs: Sequence[str] = (),
        tags: Sequence[str] = (),
        expected: str | None = None,
        subject: str | None = None,
        descriptor: bytes = b"",
    ) -> None:
        with self._lock:
            for blob in blobs:
                _find(self._find_repository(name).blobs, blob)
            if (
                expected is not None
                and self._find_repository(name).tags.get(tags[0], "") != expected
            ):
                raise ConflictError(tags[0])
            repository = self._create(name)
            repository.manifests[digest] = _StoredManifest(manifest, subject, descriptor)
            repository.tags.update(dict.fromkeys(tags, digest))

    def delete_manifest(self, name: str, digest: str) -> None:
        with self._lock:
            repository = self._find_repository(name)
            _find(repository.manifests, digest)
            del repository.manifests[digest]
            repository.tags = {
                tag: target for tag, target in repository.tags.items() if target != digest
            }

    def tag(self, name: str, tag: str) -> str:
        with self._lock:
            return _find(self._find_repository(name).tags, tag)

    def delete_tag(self, name: str, tag: str, expected: str | None = None) -> None:
        with self._lock:
            tags = self._find_repository(name).tags
            if _find(tags, tag) != expected and expected is not None:
                raise ConflictError(tag)
            del tags[tag]

    def repositories(self, after: str = "") -> Iterator[str]:
        with self._lock:
            names = [name for name, found in self._repositories.items() if found.manifests]
        return iter(sorted(name for name in names if name > after))

    def tags(self, name: str, after: str = "") -> Iterator[str]:
        with self._lock:
            repository = self._find_repository(name)
            if not repository.blobs and not repository.manifests:
                raise MissingError(name)
            tags = list(repository.tags)
        return iter(sorted(tag for tag in tags if tag > after))

    def referrers(self, name: str, subject: str, after: str = "") -> Iterator[tuple[str, bytes]]:
        with self._lock:
            manifests = list(self._find_repository(name).manifests.items())
        descriptors = {
            digest: stored.descriptor
            for digest, stored in manifests
            if stored.subject == subject and digest > after
        }
        return iter(sorted(descriptors.items()))


Thing = TypeVar("Thing")


def _find(things: dict[str, Thing], key: str) -> Thing:
    if key not in things:
        raise MissingError(key)
    return things[key]
