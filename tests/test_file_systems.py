"""The example registry on other file systems, and on disks that the kernel writes when it wants to.

A disk of these tests is a file on an XFS, which makes a copy of it in one step: the copy has what the
kernel had written at one moment, as after a power cut. (A copy that takes time would mix moments.)
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from storage import storage_at

from .disks import disk_image, mounted, run
from .registry_client import RegistryClient, manifest_of
from .test_durability import Pushes, missing_at

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
OPTIONS = {"ext4": "loop,commit=1", "xfs": "loop,nouuid"}


class Cut(NamedTuple):
    """A copy of a disk, and what had been acknowledged before it was made."""

    disk: Path
    acknowledged: dict[str, bytes]
    uploads: dict[str, bytes]


class Cuts:
    """A thread that copies a disk again and again."""

    def __init__(self, disk: Path, pushes: Pushes) -> None:
        self.disk, self.pushes = disk, pushes
        self.made: list[Cut] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.ended.wait(0.1):
            before = dict(self.pushes.acknowledged), dict(self.pushes.uploads)
            copy = self.disk.with_name(f"copy{len(self.made)}")
            run("cp", "--reflink=always", self.disk, copy)
            self.made.append(Cut(copy, *before))

    def __enter__(self) -> "Cuts":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


@contextmanager
def pushed(kind: str, tmp_path: Path) -> Iterator[list[Cut]]:
    """Push to a disk of a kind, while it is copied, and yield the copies."""
    host_image = disk_image(tmp_path / "host", "xfs", 3000)
    with mounted(host_image, tmp_path / "on-xfs", "-o", "loop") as host:
        disk = disk_image(host / "disk", kind, 400)
        with mounted(disk, tmp_path / "disk", "-o", OPTIONS[kind]) as place:
            run("sync", "-f", place)
            pushes = Pushes(storage_at(place / "new" / "data"))
            large, small = os.urandom(80 * MIB), os.urandom(5 * MIB)
            with Cuts(disk, pushes) as cuts:
                pushes.chunk(large, 0, 60 * MIB)
                time.sleep(1.5)  # the kernel writes to the disk by itself
                for start in range(60, 72, 4):
                    pushes.chunk(large, start * MIB, (start + 4) * MIB)
                pushes.blob("a", large[: 20 * MIB], 0)
                time.sleep(1.5)
                for chunks in range(3):
                    pushes.blob("b", small[chunks:], chunks)
                time.sleep(1.5)
        yield cuts.made


def faults_of(cuts: list[Cut], tmp_path: Path, kind: str, count: int) -> list[str]:
    """Return what is missing after `count` of the cuts, spread from the first to the last."""
    faults = []
    for number in range(count):
        cut = cuts[number * (len(cuts) - 1) // (count - 1)]
        with mounted(cut.disk, tmp_path / "after", "-o", OPTIONS[kind]) as place:
            if (place / "new" / "data").exists():
                faults += missing_at(place, cut.acknowledged, cut.uploads)
            else:
                faults += [*cut.acknowledged]
    return faults


@pytest.mark.parametrize("kind", OPTIONS)
def test_power_cut_while_the_kernel_writes_loses_nothing(kind: str, tmp_path: Path) -> None:
    with pushed(kind, tmp_path) as cuts:
        assert len(cuts) > 20
        assert len({len(cut.acknowledged) for cut in cuts}) > 2
        assert not faults_of(cuts, tmp_path, kind, 10)


@pytest.mark.parametrize("kind", OPTIONS)
def test_power_cut_without_syncing_is_noticed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with pushed(kind, tmp_path) as cuts:
        assert faults_of(cuts, tmp_path, kind, 10)


def test_file_system_without_hard_links_takes_every_push(tmp_path: Path) -> None:
    image = disk_image(tmp_path / "image", "exfat", 64)
    with mounted(image, tmp_path / "disk", "-t", "exfat-fuse", "-o", "loop") as disk:
        (disk / "file").touch()
        with pytest.raises(OSError, match="not permitted"):
            os.link(disk / "file", disk / "link")
        pushes = Pushes(storage_at(disk / "new" / "data"))
        for push in pushes.all():
            push()
        assert not missing_at(disk, pushes.acknowledged, pushes.uploads)
        client = RegistryClient(storage_at(disk / "new" / "data"))
        path = next(path for path in pushes.acknowledged if "/manifests/sha" in path)
        assert client.delete(path).status_code == 202
        assert client.get(path).status_code == 404


def test_tags_that_differ_in_case_are_one_tag_where_case_is_ignored(tmp_path: Path) -> None:
    image = disk_image(tmp_path / "image", "exfat", 64)
    with mounted(image, tmp_path / "disk", "-t", "exfat-fuse", "-o", "loop") as disk:
        client = RegistryClient(storage_at(disk / "data"))
        for tag in "latest", "LATEST":
            client.push_manifest("a", tag, manifest_of(note=tag))
        found = [client.get(f"/v2/a/manifests/{tag}").get_json() for tag in ("latest", "LATEST")]
        assert [entry["note"] for entry in found] == ["LATEST"] * 2
        assert len(client.get("/v2/a/tags/list").get_json()["tags"]) == 1
