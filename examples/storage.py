"""Where a registry keeps its repositories: a directory or an object store, through obstore."""

import argparse
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from heapq import heapify, heappop
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from obstore import open_writer
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from registry_routes.digests import DigestMismatchError
from registry_routes.grammar import NAME, REGISTERED_ALGORITHMS
from registry_routes.registry import (
    BLOCK,
    Blob,
    BlobFile,
    ConflictError,
    Manifest,
    MemoryStorage,
    MissingError,
    Storage,
    checked_blocks,
)

PART = 5 * 1024 * 1024  # bytes of a part of an upload, the least for S3; two are held in memory
STAGING = "staging/"
CONDEMNED = "condemned/"  # lists of what each running collection may delete
TRIES = 20  # of a write that makes directories, beside deletes that remove them
MAX_COPY = 4 * 1024 * 1024 * 1024  # bytes; S3 copies up to 5 GiB in one request

# If an object store is down or hangs, that is an error within ten seconds. These are set in the
# environment, as obstore would not combine arguments with what is set there.
TIMEOUTS = {"CONNECT_TIMEOUT": "3s", "READ_TIMEOUT": "5s", "TIMEOUT": "1h"}
RETRY: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=4)}

Blocks = Iterable[bytes]


class CheckedStorage(Storage, Protocol):
    """A storage with a health check."""

    def check(self) -> None:
        """Raise `OSError` if the storage does not answer. It writes nothing."""
        ...


class CheckedMemory(MemoryStorage):
    """A storage in memory, which is always healthy."""

    def check(self) -> None:
        pass


def storage_at(
    place: str | os.PathLike[str], *, create: bool = True
) -> "ObjectStorage | CheckedMemory":
    """The storage in a directory, in memory, or at a URL that obstore supports: S3, GCS, Azure.

    Raises `OSError`, with a message in one line, if that is impossible.

    :param create: create the directory if it does not exist.
    """
    place = os.fspath(place)
    if place.startswith("memory:"):
        return CheckedMemory()
    if not place:
        raise OSError("a storage must be a directory or a URL")
    if "://" not in place:
        if create:
            _create(place)
        elif not os.path.isdir(place):
            raise FileNotFoundError("there is no such directory")
        return ObjectStorage(LocalStore(Path(place).absolute(), automatic_cleanup=True))
    for cloud in "AWS", "AZURE", "GOOGLE":
        for name, value in TIMEOUTS.items():
            os.environ.setdefault(f"{cloud}_{name}", value)
    is_file = place.startswith("file:")
    options: Any = {"automatic_cleanup": True} if is_file else {"retry_config": RETRY}
    with raising_oserrors():
        try:
            return ObjectStorage(from_url(place, **options))
        except ValueError as error:  # not a URL, or a malformed environment variable
            raise OSError(str(error)) from error


def check_place(parser: argparse.ArgumentParser, place: str, *, read_only: bool = False) -> None:
    """End the program, with status 2 and a message in one line, if a storage cannot be used.

    :param read_only: do not create a directory, and accept one that is not writable.
    """
    try:
        if "://" not in place:
            _check(place, read_only)
        elif not place.startswith("memory:"):
            with ProcessPoolExecutor(1) as other:  # a store must not outlive a fork of this process
                other.submit(_check, place, read_only).result()
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: --storage {place!r}: {error}\n")


#: The directories that this program has checked. A worker that it starts later, perhaps after an
#: unmount, uses no other directory of the same name.
_checked: dict[str, tuple[int, int]] = {}


def _check(place: str, read_only: bool) -> None:
    storage = storage_at(place, create=not read_only)
    storage.check()
    directory = storage.directory if isinstance(storage, ObjectStorage) else None
    if directory and not read_only and not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"{directory} cannot be written to")
    if directory:
        _checked[directory] = _identity(directory)


def _create(place: str) -> None:
    """Create a directory and its parents if they do not exist, durably."""
    directory = Path(place).absolute()
    new = [one for one in (directory, *directory.parents) if not one.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for one in new:
        _sync(str(one.parent))


class Chunk(NamedTuple):
    """A chunk of an upload."""

    start: int
    size: int
    data: str
    """The path of the content."""
    sha256: str


class ObjectStorage(Storage):
    """Repositories in an object store.

    The contents of blobs are at ``blobs/<algorithm>/<hash>``. Under ``repositories/<name>/`` are:

    - ``_blobs/<algorithm>/<hash>``, empty: the repository has this blob;
    - ``_manifests/<algorithm>/<hash>``: a line with the manifest's media type and, if it has one,
      its subject; then the manifest;
    - ``_tags/<tag>``: the digest that the tag points at;
    - ``_tagged/<algorithm>/<hash>/<tag>``, empty: the tag points at this manifest, or once did;
    - ``_referrers/<subject's algorithm>/<hash>/<algorithm>/<hash>``: a descriptor;
    - ``_uploads/<id>/``: ``begun``, empty; ``data/<random>``, the body of a request;
      ``chunks/<number>``, a `Chunk`; and ``ended``, the digest of the blob that the upload has
      become. A chunk that starts later has a lower number, so the last chunk comes first in a list.

    No component of a name starts with "_", and no value that the routes let through can name
    another path. An object appears only when it is complete. If two requests create the same chunk,
    one succeeds. A process may be killed at any moment, so blobs, manifests and chunks are written
    before what points at them.

    In a directory, everything that a blob, a manifest or a tag needs is synced before the call
    returns, and before anything that points at it appears. A file is written in ``staging/`` first,
    so that it replaces the old one only when it has been synced.

    Conditional writes are not atomic: a tag that another request sets in the same moment may be
    replaced.

    A bucket or a directory may vanish. So the storage itself is checked before something is
    reported missing, and writing never creates the directory again.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        self.directory = f"{store.prefix}/" if isinstance(store, LocalStore) else None
        self._root = None
        if self.directory is not None:
            self._root = _checked.get(self.directory) or _identity(self.directory)

    def check(self) -> None:
        """Raise `OSError` if the storage does not answer, or its directory was replaced."""
        if self.directory is None:
            with raising_oserrors():
                next(iter(self.store.list("blobs/", chunk_size=1)), None)
        else:
            self._check_directory()
            with os.scandir(self.directory) as entries:
                next(entries, None)

    def _check_directory(self) -> None:
        """Raise `OSError` if the directory is gone, or was replaced by a mount or an unmount."""
        if self.directory is not None and _identity(self.directory) != self._root:
            raise FileNotFoundError(f"{self.directory} is not the directory that it was")

    # Objects.

    def read(self, path: str) -> bytes:
        """The content of an object; empty if the object does not exist."""
        with raising_oserrors():
            try:
                return bytes(self.store.get(path).bytes())
            except FileNotFoundError:
                self.check()
                return b""

    def _stream(self, path: str, **options: Any) -> Iterator[bytes]:
        with raising_oserrors():
            found = self.store.get(path, options=options)
            yield from map(bytes, found.stream(min_chunk_size=BLOCK))

    def _size(self, path: str) -> int | None:
        """How many bytes an object has; `None` if the object does not exist."""
        with raising_oserrors():
            try:
                if self.directory is not None:  # obstore takes twenty times as long
                    return os.stat(f"{self.directory}{path}").st_size
                return int(self.store.head(path)["size"])
            except FileNotFoundError:
                self.check()
                return None

    def _exists(self, path: str) -> bool:
        return self._size(path) is not None

    def put(self, path: str, content: bytes, **options: Any) -> None:
        self._check_directory()
        with raising_oserrors():
            self._beside_deletes(lambda: self.store.put(path, content, **options))

    def _beside_deletes(self, act: Callable[[], Any]) -> None:
        """Do what may make directories, again if a delete has removed them, empty, meanwhile."""
        for left in reversed(range(TRIES)):
            try:
                act()
                return
            except BaseError as error:
                if self.directory is None or not left or "Unable to create dir" not in str(error):
                    raise
            self._check_directory()

    def _write(self, path: str, blocks: Blocks) -> None:
        """Write a stream. If that raises, nothing appears, and S3 discards its parts."""
        with (
            raising_oserrors(),
            open_writer(self.store, path, buffer_size=PART, max_concurrency=1) as writer,
        ):
            for block in blocks:
                self._check_directory()
                writer.write(block)
            self._check_directory()

    def _save(self, path: str, blocks: Blocks) -> None:
        """Write an object that survives a power cut. If that raises, the old object stays."""
        if self.directory is None:
            self._write(path, blocks)
            return
        staged = f"{STAGING}{uuid.uuid4().hex}"
        self._write(staged, blocks)
        self._put_in_place(staged, path)

    def _put_in_place(self, staged: str, path: str) -> None:
        """Move a file to its place. Sync it, and every directory above it, which may be new."""
        try:
            _sync(f"{self.directory}{staged}")
            with raising_oserrors():
                self._beside_deletes(lambda: self.store.rename(staged, path))
        finally:
            self.delete(staged)  # left by an error, or because both names were one file already
        while path:
            path = path.rpartition("/")[0]
            with suppress(FileNotFoundError):  # it was deleted meanwhile, with its files
                _sync(f"{self.directory}{path}")
        self._check_directory()

    def delete(self, path: str) -> None:
        with raising_oserrors(), suppress(FileNotFoundError):
            self.store.delete(path)

    def names(self, prefix: str, after: str = "") -> Iterator[str]:
        """The names, greater than `after`, of the objects directly under a prefix, in order.

        A directory lists its names in no order, but without opening anything.
        """
        if self.directory is not None:
            yield from sorted(name for name in self._listed(prefix) if name > after)
            return
        # An object store lists in order, from any path; but not every `after` can be in a path.
        offset = prefix + after if re.fullmatch("[a-zA-Z0-9_][a-zA-Z0-9._-]*", after) else None
        with raising_oserrors():
            for objects in self.store.list(prefix, offset=offset):
                for one in objects:
                    name = one["path"].removeprefix(prefix)
                    if name > after:
                        yield name

    def _listed(self, prefix: str) -> list[str]:
        """The names in a directory, in no order."""
        try:
            names = os.listdir(f"{self.directory}{prefix}")
        except FileNotFoundError:
            self.check()
            return []
        return [name for name in names if "#" not in name]  # obstore's temporary files

    # Blobs.

    def open_blob(self, name: str, digest: str) -> Blob:
        is_linked = self._exists(link_path(name, digest))
        size = self._size(content_path(digest)) if is_linked else None
        if size is None:
            raise MissingError(digest)
        return Blob(size, partial(self._read_blob, digest, size))

    def _read_blob(self, digest: str, size: int, start: int, end: int) -> Blocks:
        if start == end:  # object stores have no empty ranges
            return iter(())
        if self.directory is None or end != size:
            return self._stream(content_path(digest), range=(start, end))
        try:
            file = open(f"{self.directory}{content_path(digest)}", "rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            self.check()
            raise MissingError(digest) from None
        file.seek(start)
        return BlobFile(file)

    def put_blob(self, name: str, digest: str, blocks: Blocks) -> None:
        self._save(content_path(digest), checked_blocks(digest, blocks))
        self._link_blob(name, digest)

    def _link_blob(self, name: str, digest: str) -> None:
        self._save(link_path(name, digest), [])

    def mount_blob(self, name: str, digest: str, source: str) -> None:
        self.open_blob(source, digest)
        self._link_blob(name, digest)

    def delete_blob(self, name: str, digest: str) -> None:
        # Its content stays: other repositories may have it, or may be getting it now.
        self.open_blob(name, digest)
        self.delete(link_path(name, digest))

    # Uploads.

    def begin_upload(self, name: str) -> str:
        upload_id = uuid.uuid4().hex
        self.put(f"{self._upload(name, upload_id)}begun", b"")
        return upload_id

    def _upload(self, name: str, upload_id: str) -> str:
        if not re.fullmatch("[0-9a-f]{32}", upload_id):  # the form of the ids above
            raise MissingError(upload_id)
        return f"{_path(name, '_uploads')}{upload_id}/"

    def upload_size(self, name: str, upload_id: str) -> int:
        upload = self._upload(name, upload_id)
        if not self._exists(f"{upload}begun"):
            raise MissingError(upload_id)
        last = next(self._chunks(upload), None)
        return last.start + last.size if last else 0

    def _chunks(self, upload: str) -> Iterator[Chunk]:
        """The chunks of an upload, the last one first."""
        for number in self.names(f"{upload}chunks/"):
            if content := self.read(f"{upload}chunks/{number}"):  # unless it was just deleted
                yield Chunk(**json.loads(content))

    def append_to_upload(self, name: str, upload_id: str, start: int, blocks: Blocks) -> int:
        chunk = self._append(self._upload(name, upload_id), start, blocks)
        return start + chunk.size if chunk else start

    def _append(self, upload: str, start: int, blocks: Blocks) -> Chunk | None:
        """Add a chunk, and return it; `None` if it is empty. A failure leaves nothing behind."""
        data = f"{upload}data/{uuid.uuid4().hex}"
        hashed, size = hashlib.sha256(), 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for block in blocks:
                hashed.update(block)
                size += len(block)
                yield block

        try:
            with self._missing_if_ended(upload):
                self._write(data, counted())
                if not size:  # it would take the place of the next chunk
                    self.delete(data)
                    return None
                chunk = Chunk(start, size, data, hashed.hexdigest())
                content = json.dumps(chunk._asdict()).encode()
                self.put(_chunk_path(upload, start), content, mode="create")
                if not self._exists(f"{upload}begun"):  # cancelled meanwhile
                    raise FileNotFoundError(upload)
        except BaseException as error:
            self.delete(data)
            if isinstance(error, AlreadyExistsError):
                raise ConflictError from None
            raise
        return chunk

    @contextmanager
    def _missing_if_ended(self, upload: str) -> Iterator[None]:
        """Raise `MissingError` in place of `OSError` if another request has ended the upload."""
        try:
            yield
        except OSError:
            if self._exists(f"{upload}begun"):
                raise
            self._clear_upload(upload)
            raise MissingError(upload) from None

    def finish_upload(
        self, name: str, upload_id: str, start: int, blocks: Blocks, digest: str
    ) -> None:
        upload = self._upload(name, upload_id)
        last = self._append(upload, start, blocks)
        end = start + last.size if last else start
        try:
            with self._missing_if_ended(upload):
                chunks = [one for one in self._chunks(upload) if one.start < end]
                if sum(one.size for one in chunks) != end:
                    raise FileNotFoundError(f"{upload} has lost a chunk")
                self._keep(name, digest, chunks[::-1])
        except DigestMismatchError:
            if last:
                self.delete(_chunk_path(upload, start))
                self.delete(last.data)
            raise
        self.put(f"{upload}ended", digest.encode())
        self._clear_upload(upload)

    def upload_result(self, name: str, upload_id: str) -> str:
        digest = self.read(f"{self._upload(name, upload_id)}ended")
        if not digest:
            raise MissingError(upload_id)
        return digest.decode()

    def _keep(self, name: str, digest: str, chunks: list[Chunk]) -> None:
        """Keep the chunks of an upload as a blob."""
        is_one = len(chunks) == 1 and chunks[0].size <= MAX_COPY
        if is_one and digest == f"sha256:{chunks[0].sha256}":
            self._save_copy(chunks[0].data, content_path(digest))
            self._link_blob(name, digest)
        else:
            blocks = (block for one in chunks for block in self._stream(one.data))
            self.put_blob(name, digest, blocks)

    def _save_copy(self, data: str, path: str) -> None:
        staged = path if self.directory is None else f"{STAGING}{uuid.uuid4().hex}"
        with raising_oserrors():
            self.store.copy(data, staged)
        if self.directory is not None:
            os.utime(f"{self.directory}{staged}")  # a hard link has the time of the chunk
            self._put_in_place(staged, path)

    def cancel_upload(self, name: str, upload_id: str) -> None:
        upload = self._upload(name, upload_id)
        if not self._exists(f"{upload}begun"):
            raise MissingError(upload_id)
        self.delete_upload(upload)

    def delete_upload(self, upload: str) -> None:
        """Delete an upload and its result."""
        self._clear_upload(upload)
        self.delete(f"{upload}ended")
        if self.directory is not None:
            shutil.rmtree(f"{self.directory}{upload}", ignore_errors=True)

    def _clear_upload(self, upload: str) -> None:
        """Delete all of an upload but its result."""
        self.delete(f"{upload}begun")
        for kind in "chunks", "data":
            for name in list(self.names(f"{upload}{kind}/")):
                self.delete(f"{upload}{kind}/{name}")
            if self.directory is not None:  # obstore does not list its temporary files
                shutil.rmtree(f"{self.directory}{upload}{kind}", ignore_errors=True)

    # Manifests and tags.

    def manifest(self, name: str, digest: str) -> Manifest:
        found, _, content = self.read(_path(name, "_manifests", digest)).partition(b"\n")
        if not found:
            raise MissingError(digest)
        return Manifest(found.decode().partition(" ")[0], content)

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
        for blob in blobs:
            self.open_blob(name, blob)
        if expected is not None:
            found = self.read(f"{_path(name, '_tags')}{tags[0]}").decode()
            if found != expected:
                raise ConflictError(tags[0])
        path = _path(name, "_manifests", digest)
        line = f"{manifest.media_type} {subject or ''}".rstrip().encode()
        tagged = [f"{_path(name, '_tagged', digest)}/{tag}" for tag in tags]
        while True:
            self._save(path, [b"%b\n%b" % (line, manifest.content)])
            self._check_collections(name, manifest.content, blobs)
            if subject:
                self._save(_referrer_path(name, subject, digest), [descriptor])
            for tag, in_index in zip(tags, tagged, strict=True):
                self._save(in_index, [])
                self._save(f"{_path(name, '_tags')}{tag}", [digest.encode()])
            if all(map(self._exists, [*tagged, path])):
                return  # else it was deleted meanwhile: write it and what points at it again

    def _check_collections(self, name: str, content: bytes, blobs: Sequence[str]) -> None:
        """Raise `MissingError` if a collection has deleted a blob of a manifest, or may do so.

        The manifest is already written, so a collection that begins later keeps its blobs.
        """
        condemned = {path for one in self.names(CONDEMNED) for path in self.condemned(one)}
        if condemned:
            for digest in digests_in(content):
                if not condemned.isdisjoint((link_path(name, digest), content_path(digest))):
                    raise MissingError(digest)
        for blob in blobs:
            self.open_blob(name, blob)

    def condemned(self, collection: str) -> list[str]:
        """The paths that a collection may delete; empty if it has ended."""
        expires, *paths = self.read(CONDEMNED + collection).decode().split("\n")
        return paths if expires and float(expires) > time.time() else []

    def delete_manifest(self, name: str, digest: str) -> None:
        """Delete a manifest and what points at it, both before and after the manifest itself.

        The index of its tags may list too many tags, but never too few: after a tag is removed from
        the index, the tag is checked; after a tag is set, the index is checked.
        """
        path = _path(name, "_manifests", digest)
        line = self.read(path).partition(b"\n")[0]
        if not line:
            raise MissingError(digest)
        subject = line.decode().partition(" ")[2]
        self._delete_pointers(name, digest, subject)
        self.delete(path)
        for tag in self._delete_pointers(name, digest, subject):
            in_index = f"{_path(name, '_tagged', digest)}/{tag}"
            self.delete(in_index)
            if self._points_at(name, tag, digest):  # it was pushed again meanwhile
                self._save(in_index, [])

    def _delete_pointers(self, name: str, digest: str, subject: str) -> list[str]:
        """Delete what points at a manifest. Return all the tags in its index."""
        if subject:
            self.delete(_referrer_path(name, subject, digest))
        tags = list(self.names(f"{_path(name, '_tagged', digest)}/"))
        for tag in tags:
            if self._points_at(name, tag, digest):
                self.delete(f"{_path(name, '_tags')}{tag}")
        return tags

    def _points_at(self, name: str, tag: str, digest: str) -> bool:
        return self.read(f"{_path(name, '_tags')}{tag}") == digest.encode()

    def tag(self, name: str, tag: str) -> str:
        digest = self.read(f"{_path(name, '_tags')}{tag}")
        if not digest:
            raise MissingError(tag)
        return digest.decode()

    def delete_tag(self, name: str, tag: str, expected: str | None = None) -> None:
        if self.tag(name, tag) != expected and expected is not None:
            raise ConflictError(tag)
        self.delete(f"{_path(name, '_tags')}{tag}")

    # Lists.

    def repositories(self, after: str = "") -> Iterator[str]:
        return self._repositories_under("", after)

    def _repositories_under(self, parent: str, after: str) -> Iterator[str]:
        names = [parent + component for component in self._components(parent)]
        # In order, "a-b" is between "a" and "a/b". A heap, because a page needs only the first few.
        ordered = [name for name in names if name > after]
        ordered += [
            f"{name}/" for name in names if f"{name}/" > after or after.startswith(f"{name}/")
        ]
        heapify(ordered)
        while ordered:
            name = heappop(ordered)
            if not NAME.fits(name.removesuffix("/")):
                continue
            if name.endswith("/"):
                yield from self._repositories_under(name, after)
            elif self._has_any(name, "_manifests"):
                yield name

    def _components(self, parent: str) -> list[str]:
        """The next components of names that start with `parent`, and entries such as ``_tags``."""
        prefix = f"repositories/{parent}"
        if self.directory is not None:
            return self._listed(prefix)
        with raising_oserrors():
            prefixes = self.store.list_with_delimiter(prefix)["common_prefixes"]
        return [one.removeprefix(prefix) for one in prefixes]

    def _has_any(self, name: str, kind: str) -> bool:
        """Whether a repository has any objects of a kind, ``_blobs`` or ``_manifests``."""
        path = _path(name, kind)
        if self.directory is None:  # an object store lists all levels at once
            return any(self.names(path))
        return any(self._listed(f"{path}{one}/") for one in REGISTERED_ALGORITHMS)

    def tags(self, name: str, after: str = "") -> Iterator[str]:
        tag = ""
        for tag in self.names(_path(name, "_tags"), after):
            yield tag
        # A repository that has only blobs left still exists, with no tags.
        if not tag and not (self._has_any(name, "_manifests") or self._has_any(name, "_blobs")):
            raise MissingError(name)

    def referrers(self, name: str, subject: str, after: str = "") -> Iterator[tuple[str, bytes]]:
        for algorithm in sorted(REGISTERED_ALGORITHMS):
            prefix = f"{algorithm}:"
            is_within = after.startswith(prefix)
            if after > prefix and not is_within:  # they all come before it
                continue
            path = _referrer_path(name, subject, prefix)
            for encoded in self.names(path, after.removeprefix(prefix) if is_within else ""):
                if descriptor := self.read(path + encoded):
                    yield prefix + encoded, descriptor


@contextmanager
def raising_oserrors() -> Iterator[None]:
    """Turn obstore's errors into `OSError`, which a `Storage` raises when it fails, in one line."""
    try:
        yield
    except AlreadyExistsError:
        raise
    except BaseError as error:
        raise OSError(one_line(error)) from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).partition("\n\nDebug source")[0].split())


_DIGEST = re.compile("sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


def digests_in(content: bytes) -> set[str]:
    """Every digest in a manifest, including those in fields that no specification defines."""
    try:
        text = json.dumps(json.loads(content))  # without escapes
    except (ValueError, RecursionError):
        text = content.decode("latin-1")
    return set(_DIGEST.findall(text))


def _identity(directory: str) -> tuple[int, int]:
    found = os.stat(directory)
    return found.st_dev, found.st_ino


def _sync(path: str) -> None:
    """Have the kernel write a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest_path(digest: str) -> str:
    return digest.replace(":", "/")


def content_path(digest: str) -> str:
    return f"blobs/{_digest_path(digest)}"


def link_path(name: str, digest: str) -> str:
    return _path(name, "_blobs", digest)


def _path(name: str, kind: str, digest: str = "") -> str:
    return f"repositories/{name}/{kind}/{_digest_path(digest)}"


def _referrer_path(name: str, subject: str, digest: str) -> str:
    return f"{_path(name, '_referrers', subject)}/{_digest_path(digest)}"


def _chunk_path(upload: str, start: int) -> str:
    return f"{upload}chunks/{10**20 - 1 - start:020}"
