"""What was acknowledged survives a power cut.

The storage is on its own file system, whose image is copied: the copy has what a disk would have if
the power were cut at that moment.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import storage as storage_module
from storage import storage_at
from werkzeug.test import Client

from registry_routes.digests import digest_of
from registry_routes.registry import make_registry

pytestmark = pytest.mark.slow


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    # So the kernel writes nothing by itself during the test, and a rename writes no content.
    run("mount", "-o", "loop,commit=300,noauto_da_alloc", image, place)
    try:
        yield place
    finally:
        run("umount", place)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An empty file system in a file."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("mkfs.ext4 is not installed (Debian: apt install e2fsprogs)")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 * 1024 * 1024)
    run("mkfs.ext4", "-q", image)
    try:
        with mounted(image, tmp_path / "try"):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system cannot be mounted here: {error}")
    return image


class Pushes:
    """Pushes of each kind, and what has been acknowledged so far, as paths and their content."""

    def __init__(self, storage: Any) -> None:
        self.client = Client(make_registry(storage))
        self.acknowledged: dict[str, bytes] = {}

    def blob(self, name: str, content: bytes, chunks: int) -> None:
        """Push a blob in so many chunks and a request that finishes it, or, with 0, in one POST."""
        digest = digest_of(content)
        uploads = f"/v2/{name}/blobs/uploads/"
        if not chunks:
            put = self.client.post(uploads, query_string={"digest": digest}, data=content)
        else:
            location = self.client.post(uploads).location or ""
            size = -(-len(content) // chunks)
            for start in range(0, len(content), size):
                self.client.patch(location, data=content[start : start + size])
            put = self.client.put(location, query_string={"digest": digest})
        assert put.status_code == 201
        self.acknowledged[f"/v2/{name}/blobs/{digest}"] = content

    def mount(self, name: str, content: bytes, source: str) -> None:
        query = {"mount": digest_of(content), "from": source}
        response = self.client.post(f"/v2/{name}/blobs/uploads/", query_string=query)
        assert response.status_code == 201
        self.acknowledged[f"/v2/{name}/blobs/{digest_of(content)}"] = content

    def manifest(self, name: str, tag: str, layer: bytes, note: str) -> None:
        descriptor = {"mediaType": "x/y", "digest": digest_of(layer), "size": len(layer)}
        subject = {"mediaType": "x/y", "digest": digest_of(b"subject"), "size": 7}
        manifest = {"layers": [descriptor], "subject": subject, "annotations": {"note": note}}
        content = json.dumps(manifest).encode()
        path = f"/v2/{name}/manifests/"
        # Until this is acknowledged, the tag may point at either manifest.
        self.acknowledged.pop(path + tag, None)
        assert self.client.put(path + tag, data=content).status_code == 201
        self.acknowledged[path + tag] = self.acknowledged[path + digest_of(content)] = content

    def all(self) -> Iterator[Callable[[], None]]:
        """One push after another, as functions to call."""
        small, large = os.urandom(1000), os.urandom(1_500_000)
        for _ in range(2):  # the second time, everything is there already
            for chunks in range(3):
                for content in small[chunks:], large[chunks:]:
                    yield partial(self.blob, f"library/r{chunks}", content, chunks)
            yield partial(self.blob, "empty", b"", 0)
            yield partial(self.mount, "other/place", large, "library/r0")
            for note in "one", "two":
                yield partial(self.manifest, "library/r0", "latest", small, note)
            yield partial(self.manifest, "other/place", "latest", large, "one")


def lost(pushes: Pushes, image: Path, tmp_path: Path) -> list[str]:
    """The paths of what has been acknowledged and is missing after a power cut."""
    copy = tmp_path / "copy"
    run("cp", "--sparse=always", image, copy)
    missing = []
    with mounted(copy, tmp_path / "after"):
        client = Client(make_registry(storage_at(tmp_path / "after" / "new" / "data")))
        for path, content in pushes.acknowledged.items():
            response = client.get(path, buffered=True)
            if response.status_code != 200 or response.data != content:
                missing.append(path)
    return missing


def test_a_power_cut_after_a_push_loses_nothing(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "disk") as disk:
        pushes = Pushes(storage_at(disk / "new" / "data"))
        for push in pushes.all():
            push()
            assert not lost(pushes, image, tmp_path)
        assert len(pushes.acknowledged) == 13


def test_a_power_cut_at_any_step_of_a_push_loses_nothing_that_was_acknowledged(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power is cut before a sync, when all that was written before may be on the disk."""
    sync, steps = storage_module._sync, 0

    def cut_and_sync(path: str) -> None:
        nonlocal steps
        steps += 1
        if steps > 150 and steps % 3 == 0:
            # A disk may have the names of files that were not synced, but not their content.
            descriptor = os.open(disk, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            assert not lost(pushes, image, tmp_path)
        sync(path)

    with mounted(image, tmp_path / "disk") as disk:
        pushes = Pushes(storage_at(disk / "new" / "data"))
        monkeypatch.setattr(storage_module, "_sync", cut_and_sync)
        for push in pushes.all():
            push()
    assert steps > 200


@pytest.mark.parametrize("what", ["files", "directories"])
def test_a_power_cut_without_syncing_is_noticed(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Either the files or the directories are not synced. (On ext4, syncing a new file also writes
    the directories, but the rename comes later.)"""
    sync: Callable[[str], None] = storage_module._sync

    def other_sync(path: str) -> None:
        if Path(path).is_dir() == (what == "files"):
            sync(path)

    with mounted(image, tmp_path / "disk") as disk:
        monkeypatch.setattr(storage_module, "_sync", other_sync)
        pushes = Pushes(storage_at(disk / "new" / "data"))
        next(pushes.all())()
        monkeypatch.undo()
        assert lost(pushes, image, tmp_path)
