"""What was acknowledged survives a power cut.

The storage is on its own file system, whose image is copied: the copy has what a disk would have if
the power were cut at that moment.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from storage import storage_at

from registry_routes.digests import digest_of

from .disks import disk_image, mounted, run
from .registry_client import RegistryClient, descriptor, manifest_of

pytestmark = pytest.mark.slow


@contextmanager
def disk_at(image: Path, place: Path) -> Iterator[Path]:
    # So the kernel writes nothing by itself during the test, and a rename writes no content.
    with mounted(image, place, "-o", "loop,commit=300,noauto_da_alloc") as disk:
        yield disk


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return disk_image(tmp_path / "image", "ext4", 32)


class Pushes:
    """Pushes of each kind, and what has been acknowledged so far, as paths and their content."""

    def __init__(self, storage: Any) -> None:
        self.client = RegistryClient(storage)
        self.acknowledged: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        """Uploads that go on, by location, and what they are to become."""

    def blob(self, name: str, content: bytes, chunks: int) -> None:
        """Push a blob in so many chunks and a request that finishes it, or, with 0, in one POST."""
        digest = digest_of(content)
        if not chunks:
            self.client.push_blob(name, content)
        else:
            size = -(-len(content) // chunks)
            parts = [content[i : i + size] for i in range(0, len(content), size)]
            location = self.client.begin_upload(name, *parts)
            assert self.client.put(location, query_string={"digest": digest}).status_code == 201
        self.acknowledged[f"/v2/{name}/blobs/{digest}"] = content

    def chunk(self, content: bytes, start: int, end: int) -> None:
        """Add a chunk to an upload, which goes on."""
        if not start:
            self.uploads[self.client.begin_upload("goes/on")] = content
        location = list(self.uploads)[-1]
        assert self.client.patch(location, data=content[start:end]).status_code == 202

    def mount(self, name: str, content: bytes, source: str) -> None:
        self.client.mount(name, content, source)
        self.acknowledged[f"/v2/{name}/blobs/{digest_of(content)}"] = content

    def manifest(self, name: str, tag: str, layer: bytes, note: str) -> None:
        content = manifest_of(layer, subject=descriptor(b"subject"), note=note)
        path = f"/v2/{name}/manifests/"
        # Until this is acknowledged, the tag may point at either manifest.
        self.acknowledged.pop(path + tag, None)
        assert self.client.push_manifest(name, tag, content).status_code == 201
        self.acknowledged[path + tag] = self.acknowledged[path + digest_of(content)] = content

    def all(self) -> Iterator[Callable[[], None]]:
        """One push after another, as functions to call."""
        small, large = os.urandom(1000), os.urandom(1_500_000)
        for _ in range(2):  # the second time, everything is there already
            for chunks in range(3):
                for content in small[chunks:], large[chunks:]:
                    yield partial(self.blob, f"library/r{chunks}", content, chunks)
            yield partial(self.blob, "empty", b"", 0)
            for start, end in (0, 1_200_000), (1_200_000, 1_400_000):
                yield partial(self.chunk, large, start, end)
            yield partial(self.mount, "other/place", large, "library/r0")
            for note in "one", "two":
                yield partial(self.manifest, "library/r0", "latest", small, note)
            yield partial(self.manifest, "other/place", "latest", large, "one")


def lost(pushes: Pushes, image: Path, tmp_path: Path) -> list[str]:
    """Return the paths of acknowledged content that is missing after a power cut."""
    copy = tmp_path / "copy"
    run("cp", "--sparse=always", image, copy)
    with disk_at(copy, tmp_path / "after") as disk:
        return missing_at(disk, pushes.acknowledged, pushes.uploads)


def missing_at(disk: Path, acknowledged: dict[str, bytes], uploads: dict[str, bytes]) -> list[str]:
    """Return the paths of acknowledged content that is missing on a disk."""
    client = RegistryClient(storage_at(disk / "new" / "data"))
    missing = []
    for path, content in acknowledged.items():
        response = client.get(path)
        if response.status_code != 200 or response.data != content:
            missing.append(path)
    return missing + [path for path in uploads if not goes_on(client, path, uploads)]


def goes_on(client: RegistryClient, location: str, uploads: dict[str, bytes]) -> bool:
    """Whether an upload goes on from where it says that it is, or is unknown."""
    status, content = client.get(location), uploads[location]
    if status.status_code == 404:
        return True
    start = int(status.headers["Range"].removeprefix("0-")) + 1
    patch = client.patch(location, data=content[start if start > 1 else 0 :])
    put = client.put(location, query_string={"digest": digest_of(content)})
    return (patch.status_code, put.status_code) == (202, 201) and client.has_blob(
        "goes/on", content
    )


def test_power_cut_after_a_push_loses_nothing(image: Path, tmp_path: Path) -> None:
    with disk_at(image, tmp_path / "disk") as disk:
        pushes = Pushes(storage_at(disk / "new" / "data"))
        for push in pushes.all():
            push()
            assert not lost(pushes, image, tmp_path)
        assert len(pushes.acknowledged) == 13


def test_power_cut_during_a_push_loses_nothing_acknowledged(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power is cut before a sync, when all that was written before may be on the disk."""
    fsync, steps = os.fsync, 0

    def cut_and_sync(descriptor: int) -> None:
        nonlocal steps
        steps += 1
        if steps > 150 and steps % 5 == 0:
            # A disk may have the names of files that were not synced, but not their content.
            directory = os.open(disk, os.O_RDONLY)
            fsync(directory)
            os.close(directory)
            assert not lost(pushes, image, tmp_path)
        fsync(descriptor)

    with disk_at(image, tmp_path / "disk") as disk:
        pushes = Pushes(storage_at(disk / "new" / "data"))
        monkeypatch.setattr(os, "fsync", cut_and_sync)
        for push in pushes.all():
            push()
    assert steps > 200


@pytest.mark.parametrize("what", ["files", "directories"])
def test_power_cut_without_syncing_is_noticed(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Either the files or the directories are not synced. (On ext4, syncing a new file also writes
    the directories, but the rename comes later.)"""
    fsync = os.fsync

    def other_sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (what == "files"):
            fsync(descriptor)

    with disk_at(image, tmp_path / "disk") as disk:
        monkeypatch.setattr(os, "fsync", other_sync)
        pushes = Pushes(storage_at(disk / "new" / "data"))
        next(pushes.all())()
        monkeypatch.undo()
        assert lost(pushes, image, tmp_path)
