"""The storage of a test's registry: in memory, and as lenient as the test wants."""

from collections.abc import Iterable, Iterator
from copy import copy
from typing import Any

from ..registry import Manifest, MemoryStorage, MissingError

__all__ = ["ServedStorage"]


class ServedStorage(MemoryStorage):
    """A `MemoryStorage` that can list repositories as docker-registry does.

    (docker-registry 2.8: a repository stays in the catalog after its first blob, and its list of
    tags is unknown before its first tag.)
    """

    def __init__(self, *, like_docker_registry: bool = False) -> None:
        super().__init__()
        self.like_docker_registry = like_docker_registry
        self.verifies = True
        self._listed: set[str] = set()
        self._tagged: set[str] = set()

    def without_verifying(self) -> "ServedStorage":
        """Return a storage that shares this content, but takes any digest for a blob."""
        storage = copy(self)
        storage.verifies = False
        return storage

    def put_blob(self, name: str, digest: str, blocks: Iterable[bytes]) -> None:
        if self.verifies:
            super().put_blob(name, digest, blocks)
        else:
            content = b"".join(blocks)
            with self._lock:
                self._create(name).blobs[digest] = content
        self._listed.add(name)

    def mount_blob(self, name: str, digest: str, source: str) -> None:
        super().mount_blob(name, digest, source)
        self._listed.add(name)

    def finish_upload(
        self, name: str, upload_id: str, start: int, blocks: Iterable[bytes], digest: str
    ) -> None:
        super().finish_upload(name, upload_id, start, blocks, digest)
        self._listed.add(name)

    def put_manifest(self, name: str, digest: str, manifest: Manifest, **options: Any) -> None:
        super().put_manifest(name, digest, manifest, **options)
        self._listed.add(name)
        if options.get("tags"):
            self._tagged.add(name)

    def repositories(self, after: str = "") -> Iterator[str]:
        if not self.like_docker_registry:
            return super().repositories(after)
        return iter(sorted(name for name in list(self._listed) if name > after))

    def tags(self, name: str, after: str = "") -> Iterator[str]:
        if self.like_docker_registry and name not in self._tagged:
            raise MissingError(name)
        return super().tags(name, after)
