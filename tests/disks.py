"""File systems that tests mount. Where that is not allowed, the test is skipped."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    run(program, "-q", path)
    return path
