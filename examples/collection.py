"""Delete what the storage of a registry no longer needs, while the registry is running.

    python examples/registry.py collect --storage ./registry-data --older-than 24h --dry-run

It deletes these, if their last push or mount is longer ago than that:

- the link of a blob to a repository, if no manifest of the repository contains the blob's digest;
- the content of a blob, if no repository has the blob;
- an upload that was never finished, counted from its last chunk;
- in a directory, the files that a process was writing when it was killed, ten minutes ago or more.

No manifest that was acknowledged ever lacks a blob. A collection first lists what it may delete,
under ``condemned/``, and then looks again at what is needed. A push of a manifest writes the
manifest first, and then looks at the lists. So one of the two always sees the other: either the
push is told that the blob is unknown, or the blob stays. Neither waits for the other. A list counts
until its collection ends, or for `LEASE` if the collection is killed.
"""

import argparse
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from storage import (
    CONDEMNED,
    STAGING,
    ObjectStorage,
    digests_in,
    link_path,
    raising_oserrors,
    storage_at,
)
from tqdm import tqdm

from registry_routes.registry import MissingError

LEASE = 600  # seconds; clocks of machines that share a storage may differ by half of it
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
KINDS = ("blobs", "repositories", STAGING.rstrip("/"))
_HALF_WRITTEN = re.compile(".+#[0-9]+", re.DOTALL)
_IN_REPOSITORY = re.compile("repositories/(.+?)/_(blobs|manifests|uploads)/(.+)", re.DOTALL)

Tick = Callable[[], Any]


class Thing(NamedTuple):
    """When something was last written, in seconds since the epoch, and how many bytes it has."""

    time: float = 0
    size: int = 0

    def __or__(self, other: "Thing") -> "Thing":
        return Thing(max(self.time, other.time), self.size + other.size)


Things = dict[str, Thing]


class Survey:
    """Everything in a storage, by path. An upload and its chunks count as one thing."""

    def __init__(self, storage: ObjectStorage, tick: Tick) -> None:
        self.contents: Things = {}
        self.links: Things = {}
        self.uploads: Things = {}
        self.staged: Things = {}
        self.manifests: Things = {}
        for prefix in KINDS:
            with raising_oserrors():
                for objects in storage.store.list(prefix):
                    for one in objects:
                        tick()
                        thing = Thing(one["last_modified"].timestamp(), one["size"])
                        self._add(one["path"], thing)
        if storage.directory is not None:
            self._add_half_written(storage.directory)

    def _add(self, path: str, thing: Thing) -> None:
        in_repository = _IN_REPOSITORY.fullmatch(path)
        if path.startswith("blobs/"):
            self.contents[path] = thing
        elif path.startswith(STAGING):
            self.staged[path] = thing
        elif in_repository is None:
            return
        elif in_repository[2] == "blobs":
            self.links[path] = thing
        elif in_repository[2] == "manifests":
            self.manifests[path] = thing
        else:
            upload_id = in_repository[3].partition("/")[0]
            upload = f"{path[: in_repository.start(3)]}{upload_id}/"
            self.uploads[upload] = self.uploads.get(upload, Thing()) | thing

    def _add_half_written(self, directory: str) -> None:
        """Add obstore's temporary files, which obstore itself does not list."""
        for parent, _, names in (one for kind in KINDS for one in os.walk(f"{directory}{kind}")):
            for name in filter(_HALF_WRITTEN.fullmatch, names):
                with suppress(FileNotFoundError):
                    found = os.stat(f"{parent}/{name}")
                    path = os.path.relpath(f"{parent}/{name}", directory)
                    if path.startswith("repositories/"):  # an upload may be receiving a chunk
                        self._add(path, Thing(found.st_mtime))
                    self.staged[path] = Thing(found.st_mtime, found.st_size)


class Collection:
    """What can be deleted from a storage, at the time of the call.

    :param older_than: in seconds.
    :param with_manifests: whether to delete old manifests too, and what only they need. This is for
        a cache, which can fetch them again.
    """

    def __init__(
        self, storage: ObjectStorage, older_than: float, *, with_manifests: bool = False
    ) -> None:
        self.storage = storage
        self.until = time.time() - older_than
        # Files that may still be being written stay, even if `older_than` is short.
        self.staged_until = min(self.until, time.time() - LEASE)
        self.read: set[str] = set()
        """The manifests that have been read."""
        self.needed: set[str] = set()
        """The links that those manifests need."""
        with tqdm(desc="Listing", unit=" objects") as progress:
            self.survey = Survey(storage, progress.update)
        self.manifests = self._old(self.survey.manifests) if with_manifests else {}
        self._read_manifests(lambda: None)
        self.links = self._old(self.survey.links)
        self.contents = self._old(self.survey.contents)
        self._keep_what_is_needed(self.survey.links)
        self.uploads = self._old(self.survey.uploads)
        self.staged = self._old_staged(self.survey)

    def _old(self, things: Things) -> Things:
        return {path: thing for path, thing in things.items() if thing.time < self.until}

    def _old_staged(self, survey: Survey) -> Things:
        staged = survey.staged.items()
        return {path: thing for path, thing in staged if thing.time < self.staged_until}

    def _read_manifests(self, tick: Tick) -> None:
        unread = sorted(self.survey.manifests.keys() - self.read - self.manifests.keys())
        with ThreadPoolExecutor(16) as pool:
            files = pool.map(self.storage.read, unread)
            for path, file in zip(unread, tqdm(files, "Reading", len(unread)), strict=True):
                tick()
                name, _ = _name_and_digest(path)
                if file:  # else it was just deleted, and may be pushed again
                    self.read.add(path)
                    digests = digests_in(file.partition(b"\n")[2])
                    self.needed.update(link_path(name, digest) for digest in digests)

    def _keep_what_is_needed(self, links: Iterable[str]) -> None:
        for path in self.needed & self.links.keys():
            del self.links[path]
        for path in set(links) - self.links.keys():
            self.contents.pop(f"blobs/{path.rpartition('/_blobs/')[2]}", None)

    def delete(self) -> None:
        """Delete everything that has not been pushed, mounted or needed meanwhile."""
        self._delete_expired()
        with self._condemning() as tick:
            links = self.survey.links
            self.survey = Survey(self.storage, tick)
            self._keep_what_is_new(self.manifests, self._old(self.survey.manifests))
            self._read_manifests(tick)
            for mine, old in (
                (self.links, self._old(self.survey.links)),
                (self.contents, self._old(self.survey.contents)),
                (self.uploads, self._old(self.survey.uploads)),
                (self.staged, self._old_staged(self.survey)),
            ):
                self._keep_what_is_new(mine, old)
            self._keep_what_is_needed([*links, *self.survey.links])
            for path in tqdm(self.manifests, "Deleting manifests"):
                tick()
                with suppress(MissingError):
                    self.storage.delete_manifest(*_name_and_digest(path))
            for path in tqdm([*self.links, *self.contents], "Deleting"):
                tick()
                self.storage.delete(path)
        for path in tqdm(self.uploads, "Deleting uploads"):
            self.storage.delete_upload(path)
        for path in self.staged:
            if "#" in path:  # obstore does not accept such a path
                Path(f"{self.storage.directory}{path}").unlink(missing_ok=True)
            else:
                self.storage.delete(path)

    def _keep_what_is_new(self, mine: Things, old: Things) -> None:
        for path in mine.keys() - old.keys():
            del mine[path]

    @contextmanager
    def _condemning(self) -> Iterator[Tick]:
        """Condemn the links and the contents. The returned function must be called before each
        step."""
        path, expires = f"{CONDEMNED}{uuid.uuid4().hex}", 0.0

        def renew() -> None:
            nonlocal expires
            now = time.time()
            if expires and now > expires - LEASE / 4:
                raise OSError("the collection has been interrupted for too long: run it again")
            if now > expires - LEASE * 3 / 4:
                expires = now + LEASE
                lines = [str(expires), *self.links, *self.contents]
                self.storage.put(path, "\n".join(lines).encode())

        renew()
        yield renew
        # After an error it stays until it expires, as the store may still carry out a request.
        self.storage.delete(path)

    def _delete_expired(self) -> None:
        for name in list(self.storage.names(CONDEMNED)):
            if not self.storage.condemned(name):
                self.storage.delete(CONDEMNED + name)

    def summary(self) -> Iterator[str]:
        """A line for each kind of thing that it deletes: how many, and how many bytes."""
        for kind, things in (
            *([("manifests", self.manifests)] if self.manifests else []),
            ("unreferenced contents", self.contents),
            ("links of blobs to repositories", self.links),
            ("abandoned uploads", self.uploads),
            ("half-written files", self.staged),
        ):
            size = sum(thing.size for thing in things.values())
            yield f"{len(things):,} {kind}, {size:,} bytes"


def _name_and_digest(path: str) -> tuple[str, str]:
    """The repository's name and the digest of a manifest, from its path."""
    name, _, digest = path.removeprefix("repositories/").partition("/_manifests/")
    return name, digest.replace("/", ":")


def seconds(text: str) -> float:
    """The seconds of a time such as ``90m`` or ``24h``."""
    found = re.fullmatch("([0-9]{1,9})([smhd])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number with s, m, h or d: 24h")
    return int(found[1]) * UNITS[found[2]]


def storage_to_collect(place: str) -> ObjectStorage:
    """The storage at a place. Raises `OSError` if it is in memory, or not there."""
    storage = storage_at(place, create=False)
    if not isinstance(storage, ObjectStorage):
        raise OSError("a storage in memory cannot be collected")
    return storage


def parser_of(program: str, description: str, *, older_than: str) -> argparse.ArgumentParser:
    """The parser of a command that collects; `older_than` is the help for that option."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--storage", required=True, help="a directory, or s3://…, gs://…, az://…")
    parser.add_argument(
        "--older-than", required=True, type=seconds, metavar="TIME", help=older_than
    )
    parser.add_argument("--dry-run", action="store_true", help="delete nothing")
    return parser


def main(arguments: list[str]) -> int:
    parser = parser_of(
        "registry.py collect",
        "Delete what the storage of a registry no longer needs. The registry may be running. "
        "Incomplete multipart uploads in an object store cannot be listed: let a lifecycle rule of "
        "the bucket abort them.",
        older_than="delete what was last pushed or mounted longer ago than this, such as 24h or "
        "7d; choose more than any push takes",
    )
    options = parser.parse_args(arguments)
    try:
        storage = storage_to_collect(options.storage)
        collection = Collection(storage, options.older_than)
        if not options.dry_run:
            collection.delete()
    except OSError as error:
        print(f"registry.py: {options.storage!r}: {error}", file=sys.stderr)
        return 2
    print("It would delete:" if options.dry_run else "Deleted:")
    for line in collection.summary():
        print(f"  {line}")
    if storage.directory is None:
        print("Incomplete multipart uploads were not looked for: let a lifecycle rule abort them.")
    return 0
