"""File systems that tests mount. Where that is not allowed, the test is skipped."""

import errno
import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


@contextmanager
def mounted(source: object, place: Path, *options: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    if os.name != "posix":
        pytest.skip("file systems cannot be mounted here")
    try:
        run("mount", *options, source, place)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"file systems cannot be mounted here: {error}")
    try:
        yield place
    finally:
        run("umount", place)


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    with mounted("tmpfs", place, "-t", "tmpfs", "-o", "size=3m") as disk:
        yield disk


def disk_image(path: Path, kind: str, mebibytes: int) -> Path:
    """Create an empty file system in a file."""
    program = f"mkfs.{kind}"
    if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
        pytest.skip(f"{program} is not installed")
    with path.open("wb") as file:
        file.truncate(mebibytes * 1024 * 1024)
    run(program, *([] if kind == "exfat" else ["-q"]), path)
    return path


class SmallFile(io.FileIO):
    """A temporary file that takes `room` bytes, as if the disk were full then."""

    room = 0

    def write(self, block: Any, /) -> int:
        taken = bytes(block)[: self.room - self.tell()]
        if block and not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(taken)


def fill_temporary_directory(
    patch: pytest.MonkeyPatch, directory: Path, room: int | None
) -> list[SmallFile]:
    """Have each temporary file take only `room` bytes; have none at all for `None`.

    Return a list that all these files will be in.
    """
    opened: list[SmallFile] = []

    def open_file(mode: str = "w+b", buffering: int = -1, **_: Any) -> Any:
        if room is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
        file = SmallFile(directory / f"{len(opened)}", "w+b")
        file.room = room
        opened.append(file)
        return file if buffering == 0 else io.BufferedRandom(file)

    patch.setattr(tempfile, "TemporaryFile", open_file)
    return opened
