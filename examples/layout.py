"""`Layout`: an OCI image layout, which `flask_app.py` and `starlette_app.py` serve."""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from registry_routes import errors, grammar
from registry_routes.registry import BLOCK, Blob, Manifest

REF_NAME = "org.opencontainers.image.ref.name"


class Layout:
    """An OCI image layout (image-spec 1.1, image-layout.md), served as the repository `name`.

    It is read anew for each request, so another program may write to it meanwhile.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root = root.resolve()  # a framework may take a relative path from elsewhere
        self.name = name

    def check_name(self, name: str) -> None:
        """Raise `errors.NameUnknown` if that is not the name of the repository."""
        if name != self.name:
            raise errors.NameUnknown(detail={"name": name})

    def tags_after(self, last: str | None) -> list[str]:
        """Return the tags greater than `last`, or all for `None`, in ASCII order."""
        return sorted(tag for tag in self.tags() if tag > (last or ""))

    def tags(self) -> dict[str, str]:
        """The digests of the images by tag. Images whose name cannot be a tag are left out."""
        named = (
            ((one.get("annotations") or {}).get(REF_NAME, ""), one) for one in self._descriptors()
        )
        return {tag: one["digest"] for tag, one in named if grammar.TAG.fits(tag)}

    def manifest(self, tag: str = "", digest: str = "") -> tuple[str, Manifest]:
        """Return a manifest and its digest. Raises `errors.ManifestUnknown` if there is none."""
        digest = digest or self.tags().get(tag, "")
        descriptor, path = self._manifests().get(digest), self._file(digest)
        if descriptor is None or path is None:
            raise errors.ManifestUnknown(detail={"reference": tag or digest})
        return digest, Manifest(descriptor["mediaType"], path.read_bytes())

    def open_blob(self, digest: str) -> Blob:
        """Return a blob. Raises `errors.BlobUnknown` if there is none, or if it is a manifest.

        A client that got a manifest here would take its media type for that of a blob.
        """
        path = self._file(digest)
        if path is None or digest in self._manifests():
            raise errors.BlobUnknown(detail={"digest": digest})
        return Blob(path.stat().st_size, partial(_read, path))

    def _descriptors(self) -> list[dict[str, Any]]:
        index = json.loads((self.root / "index.json").read_bytes())
        return list(index["manifests"])

    def _manifests(self) -> dict[str, dict[str, Any]]:
        """Every manifest of the layout by digest, including those in nested indexes."""
        found, left = {}, self._descriptors()
        while left:
            one = left.pop()
            path = self._file(one["digest"])
            if one["digest"] not in found and path is not None:
                found[one["digest"]] = one
                left += json.loads(path.read_bytes()).get("manifests") or []
        return found

    def _file(self, digest: str) -> Path | None:
        algorithm, _, encoded = digest.partition(":")
        if algorithm not in grammar.REGISTERED_ALGORITHMS:
            return None
        path = self.root / "blobs" / algorithm / encoded
        return path if path.is_file() else None


def _read(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(min(BLOCK, end - file.tell())):
            yield block


def parse_arguments(port: int) -> tuple[Layout, str, int]:
    """The layout, the host and the port that a command line names; `port` is the default."""
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
        parser.error(f"{str(options.layout)!r} must be an OCI image layout, with an index.json")
    if complaint := grammar.NAME.complaint(options.name):
        parser.error(complaint)
    return Layout(options.layout, options.name), options.host, options.port
