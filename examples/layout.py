"""An OCI image layout, which `client.py` fills and `flask_app.py` and `starlette_app.py` serve."""

import argparse
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from registry_routes import errors, grammar
from registry_routes.digests import DigestMismatchError, Verifier
from registry_routes.registry import BLOCK, Blob, Manifest

REF_NAME = "org.opencontainers.image.ref.name"
MAX_LAYOUT_MANIFEST = 16 * 1024 * 1024

Json = dict[str, Any]


class Layout:
    """An OCI image layout (image-spec 1.1, image-layout.md).

    Each call reads the files again, so another program may write to them at the same time.

    :param name: the repository name under which the applications serve it.
    """

    def __init__(self, root: Path, name: str = "") -> None:
        self.root = root.resolve()  # a framework may change the current directory
        self.name = name

    # Reading.

    def path(self, digest: str) -> Path:
        """Return the path of the content with this digest, whether or not it exists."""
        algorithm, _, encoded = Verifier(digest).digest.partition(":")
        return self.root / "blobs" / algorithm / encoded

    def descriptors(self) -> list[Json]:
        """Return the descriptors of the index."""
        return _descriptors(self._index().get("manifests"))

    def _index(self) -> Json:
        try:
            content = (self.root / "index.json").read_bytes()
        except FileNotFoundError:
            return {"schemaVersion": 2, "manifests": []}
        return json_object(content, f"{str(self.root)!r}: index.json")

    # For the applications.

    def check_name(self, name: str) -> None:
        """Raise `errors.NameUnknown` if this is not the name of the repository."""
        if name != self.name:
            raise errors.NameUnknown(detail={"name": name})

    def tags_after(self, last: str | None) -> list[str]:
        """Return the tags greater than `last`, or all for `None`, in ASCII order."""
        return sorted(tag for tag in self.tags() if tag > (last or ""))

    def tags(self) -> dict[str, str]:
        """Return the digest of each tag. Images whose name cannot be a tag are left out."""
        named = ((name_of(found) or "", found) for found in self.descriptors())
        return {tag: found["digest"] for tag, found in named if grammar.TAG.fits(tag)}

    def manifest(self, tag: str = "", digest: str = "") -> tuple[str, Manifest]:
        """Return a manifest and its digest. Raise `errors.ManifestUnknown` if there is none."""
        digest = digest or self.tags().get(tag, "")
        descriptor, path = self._find_manifests().get(digest), self._find_file(digest)
        if descriptor is None or path is None:
            raise errors.ManifestUnknown(detail={"reference": tag or digest})
        return digest, Manifest(descriptor["mediaType"], path.read_bytes())

    def open_blob(self, digest: str) -> Blob:
        """Return a blob. Raise `errors.BlobUnknown` for a manifest or a missing blob.

        The response for a blob would not state the media type of a manifest.
        """
        path = self._find_file(digest)
        if path is None or digest in self._find_manifests():
            raise errors.BlobUnknown(detail={"digest": digest})
        return Blob(path.stat().st_size, partial(_read, path))

    def _find_manifests(self) -> dict[str, Json]:
        """Return the descriptor of every manifest by digest, including those in nested indexes."""
        found, left = {}, self.descriptors()
        while left:
            descriptor = left.pop()
            path = self._find_file(descriptor["digest"])
            if descriptor["digest"] not in found and path is not None:
                found[descriptor["digest"]] = descriptor
                left += references_in(json_object(path.read_bytes(), "manifest"))[0]
        return found

    def _find_file(self, digest: str) -> Path | None:
        try:
            path = self.path(digest)
        except ValueError:  # the digest cannot be verified
            return None
        return path if path.is_file() else None

    # For clients.

    def has(self, digest: str) -> bool:
        """Return whether the layout has this content, undamaged."""
        try:
            verify_file(self.path(digest), digest)
        except (FileNotFoundError, DigestMismatchError):
            return False
        return True

    def read(self, digest: str) -> bytes:
        """Return the content of a manifest. Raise `DigestMismatchError` if it is damaged."""
        with self.path(digest).open("rb") as file:
            content = file.read(MAX_LAYOUT_MANIFEST + 1)
        verify_manifest(content, digest)
        return content

    def write(self, digest: str, content: bytes) -> None:
        path = self.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)

    def descriptor(self, wanted: str) -> Json:
        """Return the descriptor of the image with this digest or name."""
        for found in self.descriptors():
            if wanted in (found["digest"], name_of(found)):
                return found
        raise ValueError(f"no image {wanted!r} in the layout {str(self.root)!r}")

    def add(self, descriptor: Json, tag: str | None) -> None:
        """Add an image to the index. With a tag, replace the image that had the tag before."""
        index, digest = self._index(), descriptor["digest"]
        others = _descriptors(index.get("manifests"))
        if tag is None:
            if any(other["digest"] == digest for other in others):
                return
        else:
            # An entry for the same image without a name is replaced, too.
            others = [
                other
                for other in others
                if name_of(other) != tag
                if name_of(other) is not None or other["digest"] != digest
            ]
            descriptor = {**descriptor, "annotations": {REF_NAME: tag}}
        index["manifests"] = [*others, descriptor]
        _replace(self.root / "index.json", json.dumps(index, indent=2).encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the layout, which only one process can hold at a time."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "oci-layout").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_size == 0:
                file.write('{"imageLayoutVersion": "1.0.0"}')
                file.flush()
            yield


def _read(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(min(BLOCK, end - file.tell())):
            yield block


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


def verify_file(path: Path, digest: str) -> None:
    verifier = Verifier(digest)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            verifier.update(block)
    verifier.verify()


def verify_manifest(content: bytes, digest: str) -> None:
    if len(content) > MAX_LAYOUT_MANIFEST:
        raise ValueError(f"manifest {digest} is larger than {MAX_LAYOUT_MANIFEST} bytes")
    verifier = Verifier(digest)
    verifier.update(content)
    verifier.verify()


# Manifests and indexes.


def json_object(content: bytes, kind: str) -> Json:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{kind} must be a JSON object, not {content[:40]!r}")
    return found


def references_in(manifest: Json) -> tuple[list[Json], list[Json]]:
    """Return the descriptors of the manifests and of the blobs that a manifest references.

    Each blob appears once. Nondistributable layers are left out. A cache's index, as BuildKit
    writes it, lists layers in place of manifests.
    """
    config = [manifest["config"]] if manifest.get("config") else []
    children = _descriptors(manifest.get("manifests"))
    others = _descriptors(config) + _descriptors(manifest.get("layers"))
    others += [child for child in children if not _is_manifest(child)]
    blobs = {
        blob["digest"]: blob
        for blob in others
        if "nondistributable" not in blob["mediaType"] and ".foreign." not in blob["mediaType"]
    }
    return [child for child in children if _is_manifest(child)], list(blobs.values())


def name_of(descriptor: Json) -> str | None:
    """Return the name that a layout gives an image, if any."""
    name = (descriptor.get("annotations") or {}).get(REF_NAME)
    return name if isinstance(name, str) else None


def _is_manifest(descriptor: Json) -> bool:
    return ".manifest." in descriptor["mediaType"] or ".index." in descriptor["mediaType"]


def _descriptors(value: Any) -> list[Json]:
    """Return the descriptors in a list. Raise `ValueError` for anything else."""
    if not isinstance(value, list | None):
        raise ValueError(f"manifest must have a list, not {value!r:.40}")
    for found in value or []:
        if not isinstance(found, dict) or not isinstance(found.get("mediaType"), str):
            raise ValueError(f"descriptor {found!r:.200} must have a media type")
        grammar.DIGEST.check(found.get("digest"))
        if type(found.get("size")) is not int or not 0 <= found["size"] < 2**63:
            raise ValueError(f"descriptor {found!r:.200} must have a size")
        if not isinstance(found.get("annotations"), dict | None):
            raise ValueError(f"descriptor {found!r:.200} must have an object of annotations")
    return value or []


def parse_arguments(port: int) -> tuple[Layout, str, int]:
    """Parse the command line, and return the layout, the host and the port.

    :param port: the default.
    """
    parser = argparse.ArgumentParser(
        description="An OCI image layout as a read-only registry.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--layout", required=True, type=Path, help="the layout's directory")
    parser.add_argument(
        "--name", required=True, help="the name of the repository, such as library/busybox"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", default=port, type=int, help="the port")
    options = parser.parse_args()
    if not (options.layout / "index.json").is_file():
        parser.error(f"{str(options.layout)!r} is not an OCI image layout: it has no index.json")
    if complaint := grammar.NAME.complaint(options.name):
        parser.error(complaint)
    return Layout(options.layout, options.name), options.host, options.port
