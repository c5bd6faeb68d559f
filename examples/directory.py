"""A storage in a directory. Acknowledged pushes survive a power cut."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from object_storage import (
    STAGING,
    Blocks,
    Entry,
    ObjectStorage,
    content_path,
    path_of,
    tag_path,
    upload_path,
    write_whole,
)

from registry_routes.digests import Verifier
from registry_routes.registry import BLOCK, BlobFile, ConflictError, MissingError

TRIES = 20  # to make directories and write into them, while deletes remove them
LOCKS = 64  # lock files, each for some of the repositories

#: The identities of the directories that this program has checked, by path. Workers that it starts
#: later, perhaps after an unmount, refuse another directory at the same path.
checked: dict[str, tuple[int, int]] = {}


EARLY = 16 * BLOCK  # bytes of a large file that the kernel is told to write before the sync

_threads = ThreadPoolExecutor(8, "helping")


class DirectoryStorage(ObjectStorage):
    """Repositories in a directory, which processes on one machine may share.

    A blob, a manifest or a tag is synced before the call returns, and before anything that points
    at it appears. A file is written in ``staging/``, synced and renamed. There are no hard links,
    because some file systems lack them.

    An upload has these files:

    - ``state``: how many bytes the upload has, their SHA-256 if they came in one chunk, and the
      digest of the blob that it is becoming; or, when it has ended, of the blob that it has become;
    - ``data``: these bytes, synced before ``state`` was written, and perhaps more bytes;
    - ``<random>``, the body of a request; ``lock``.

    The content of a blob is hashed while it arrives and before it is synced, or else from the file.

    Conditional writes are atomic among processes on one machine. The directory may vanish, for
    example in an unmount. So each method checks the directory before it reports that something is
    missing, and none creates the directory again.
    """

    is_locked = True

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = f"{Path(directory).absolute()}/"
        self._root = checked.get(self.directory) or identity(self.directory)

    def check(self) -> None:
        self._check_root()
        with os.scandir(self.directory) as entries:
            next(entries, None)

    def _check_root(self) -> None:
        """Raise `OSError` if the directory was deleted, mounted over or unmounted."""
        if identity(self.directory) != self._root:
            raise FileNotFoundError(f"{self.directory} was replaced by another directory")

    def try_writing(self) -> None:
        """Raise `OSError` if requests cannot write here."""
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise PermissionError(f"{self.directory} is not writable")

    def _full_path(self, path: str) -> str:
        return f"{self.directory}{path}"

    def read(self, path: str) -> bytes:
        try:
            return Path(self._full_path(path)).read_bytes()
        except FileNotFoundError:
            self._check_root()
            return b""

    def entry(self, path: str) -> Entry | None:
        try:
            found = os.stat(self._full_path(path))
        except FileNotFoundError:
            self._check_root()
            return None
        return Entry(path, found.st_mtime, found.st_size)

    def stream(self, path: str, start: int, end: int) -> Blocks:
        try:
            file = open(self._full_path(path), "rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            self._check_root()
            raise MissingError(path) from None
        file.seek(start)
        if end == os.fstat(file.fileno()).st_size:
            return BlobFile(file)
        return _read_part(file, end - start)

    def names(self, prefix: str, after: str = "") -> Iterator[str]:
        try:
            names = os.listdir(self._full_path(prefix))
        except FileNotFoundError:
            self._check_root()
            return iter(())
        # For a page, most of the time is spent here; generators would take half as long again.
        found = [plain for name in names if (plain := name.replace("@", "/")) > after]
        return iter(sorted(found))

    def flatten(self, name: str) -> str:
        return name.replace("/", "@")

    def entries(self, prefix: str) -> Iterator[Entry]:
        # An unread directory must not count as empty: a collection would delete its blobs.
        for parent, _, names in os.walk(self._full_path(prefix), onerror=_raise, followlinks=True):
            for name in names:
                path = os.path.relpath(f"{parent}/{name}", self.directory)
                with suppress(FileNotFoundError):
                    found = os.stat(f"{parent}/{name}")
                    yield Entry(path, found.st_mtime, found.st_size)
        self._check_root()

    def now(self) -> float:
        os.utime(self.directory)  # takes no space, and on a network disk the server's time
        return os.stat(self.directory).st_mtime

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        with self._lock_file(f"locks/{zlib.crc32(name.encode()) % LOCKS:02}"):
            yield

    @contextmanager
    def _lock_file(self, path: str) -> Iterator[None]:
        with self._do_in_directory(path, lambda: open(self._full_path(path), "ab")) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # Writing.

    def write(self, *objects: tuple[str, bytes]) -> None:
        with self._stage(objects) as staged:
            self._put_in_place(staged)

    @contextmanager
    def _stage(self, objects: Iterable[tuple[str, bytes]]) -> Iterator[dict[str, str]]:
        """Write objects to staged files. Yield the path of each object by the path of its file."""
        staged: dict[str, str] = {}
        try:
            for path, content in objects:
                file = self._new_path()
                staged[file] = path
                self._receive(file, [content])
            yield staged
        finally:
            for file in staged:
                with suppress(OSError):
                    os.unlink(self._full_path(file))

    def point_tags(self, name: str, digest: str, tags: Sequence[str], expected: str | None) -> bool:
        objects = [(tag_path(name, tag), digest.encode()) for tag in tags]
        with self._stage(objects) as staged:
            with self.lock(name):
                if expected is not None and self.read(objects[0][0]) != expected.encode():
                    raise ConflictError(tags[0])
                is_listed = self.size(self.catalog_path(name)) is not None
                if not (is_listed and self.has_pointers(name, digest, tags)):
                    return False
                self._rename(staged)
            self._sync_above(*staged.values())
        return True

    def create(self, path: str) -> bool:
        def create_file() -> None:
            os.close(os.open(self._full_path(path), os.O_CREAT | os.O_EXCL))

        self._check_root()
        try:
            self._do_in_directory(path, create_file)
        except FileExistsError:
            return False
        return True

    def move(self, source: str, target: str) -> bool:
        try:
            os.utime(self._full_path(source))
        except FileNotFoundError:
            self._check_root()
            return False
        try:
            self._put_in_place({source: target})
        except FileNotFoundError:  # another request has moved the file
            self._check_root()
            return False
        self._remove_empty(source)
        return True

    def delete(self, *paths: str) -> None:
        for path in paths:
            with suppress(FileNotFoundError):
                os.unlink(self._full_path(path))
            self._remove_empty(path)

    def delete_old(self, paths: list[str], until: float) -> None:
        for path in paths:
            with self.lock(path):
                found = self.entry(path)
                if found is not None and found.time < until:
                    self.delete(path)

    def _new_path(self) -> str:
        return f"{STAGING}{uuid.uuid4().hex}"

    @contextmanager
    def _remove_on_error(self, path: str) -> Iterator[None]:
        """Remove a file after an error."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                os.unlink(self._full_path(path))
            raise

    def _receive(self, path: str, blocks: Blocks, *hashes: Any, is_synced: bool = True) -> int:
        """Write and sync a new file, hash its content at the same time, and return its size.

        While two threads hash and write a large block, the next block arrives.
        """
        size = 0
        with (
            self._do_in_directory(path, lambda: open(self._full_path(path), "xb", 0)) as file,
            _Together() as together,
        ):
            for block in blocks:
                self._check_root()
                together.wait()
                if len(block) < BLOCK:
                    _update(hashes, block)
                    write_whole(file, block)
                else:
                    together.start(_update, hashes, block)
                    together.start(_write_early, file, block, size)
                size += len(block)
            together.wait()
            if is_synced:
                os.fsync(file.fileno())
        return size

    def _do_in_directory(self, path: str, act: Callable[[], Any]) -> Any:
        """Call `act`. If the directory of a path is missing, make it and try again.

        A concurrent delete may remove the directory again, so this may take several tries.
        """
        for left in reversed(range(TRIES)):
            try:
                return act()
            except FileNotFoundError:
                self._check_root()
                if not left:
                    raise
            parent = self.directory.rstrip("/")
            for component in path.split("/")[:-1]:
                parent += f"/{component}"
                with suppress(FileExistsError, FileNotFoundError):
                    os.mkdir(parent)
        raise AssertionError

    def _put_in_place(self, staged: dict[str, str]) -> None:
        """Move synced files to their places, in this order, and sync every directory above."""
        self._rename(staged)
        self._sync_above(*staged.values())

    def _rename(self, staged: dict[str, str]) -> None:
        self._check_root()
        for source, target in staged.items():
            rename = partial(os.replace, self._full_path(source), self._full_path(target))
            self._do_in_directory(target, rename)

    def _sync_above(self, *paths: str) -> None:
        """Sync the directories above paths, each of which may be new."""
        above: set[str] = set()
        for path in paths:
            while path:
                path = path.rpartition("/")[0]
                above.add(path)
        for directory in sorted(above, reverse=True):
            sync_directory(self._full_path(directory))
        self._check_root()

    def _remove_empty(self, path: str) -> None:
        """Remove the directories above a path, as long as they are empty."""
        while path := path.rpartition("/")[0]:
            try:
                os.rmdir(self._full_path(path))
            except OSError:
                return

    # Blobs.

    def blob_size(self, name: str, digest: str) -> int | None:
        is_linked = self.size(path_of(name, "_blobs", digest)) is not None
        return self.size(content_path(digest)) if is_linked else None

    def link_blob(self, name: str, digest: str, size: int) -> None:
        self.write((path_of(name, "_blobs", digest), b""))

    def put_blob(self, name: str, digest: str, blocks: Blocks) -> None:
        staged, verifier = self._new_path(), Verifier(digest)
        with self._remove_on_error(staged):
            size = self._receive(staged, blocks, verifier)
            verifier.verify()
            self._keep(name, digest, staged, size)

    def _keep(self, name: str, digest: str, staged: str, size: int) -> None:
        """Make a blob of a file that is verified and synced.

        Write the link first: if that fails, the file is still in its place, and nobody finds the
        blob before its content exists.
        """
        self.link_blob(name, digest, size)
        if staged == content_path(digest):  # an earlier request failed after the move
            self._sync_above(staged)
        else:
            with self.lock(content_path(digest)):
                self._put_in_place({staged: content_path(digest)})
        try:
            self.await_collection(name, digest)
        except MissingError:
            raise OSError(f"{digest} was collected while it was pushed again") from None

    # Uploads.

    def begin_upload(self, name: str) -> str:
        upload_id = uuid.uuid4().hex
        self._write_state(upload_path(name, upload_id), _State(size=0))
        return upload_id

    def _write_state(self, upload: str, state: "_State") -> None:
        # Not synced: after a power cut, the state may be an older one.
        temporary = f"{upload}{uuid.uuid4().hex}"
        content = json.dumps(state._asdict()).encode()

        def write() -> None:
            with open(self._full_path(temporary), "xb", 0) as file:
                write_whole(file, content)

        with self._remove_on_error(temporary):
            self._check_root()
            self._do_in_directory(temporary, write)
            os.replace(self._full_path(temporary), self._full_path(f"{upload}state"))

    def _read_state(self, upload: str) -> "_State":
        """Return the state of an upload. Raise `MissingError` if it has ended, or is unknown."""
        try:
            state = _State(**json.loads(self.read(f"{upload}state")))
        except (ValueError, TypeError):  # missing, or only a part of it survived a power cut
            raise MissingError(upload) from None
        if state.digest:
            raise MissingError(upload)
        if state.size:
            self._find_data(upload, state)
        return state

    def _find_data(self, upload: str, state: "_State") -> str:
        """Return the path of the file that has the bytes of an upload. Raise `MissingError`."""
        paths = [f"{upload}data"]
        if state.becoming:
            paths.append(content_path(state.becoming))
        for path in paths:
            if (self.size(path) or 0) >= state.size:
                return path
        raise MissingError(upload)

    def upload_size(self, name: str, upload_id: str) -> int:
        return self._read_state(upload_path(name, upload_id)).size

    def has_ended(self, upload: str) -> bool:
        with suppress(ValueError):
            return bool(json.loads(self.read(f"{upload}state")).get("digest"))
        return False

    @contextmanager
    def _lock_upload(self, upload: str, start: int) -> Iterator["_State"]:
        """Lock an upload that has `start` bytes. Raise `ConflictError` or `MissingError`."""
        try:
            with self._hold_lock(upload):
                state = self._read_state(upload)
                if state.size != start:
                    raise ConflictError(upload)
                yield state
        except FileNotFoundError:
            self._check_root()
            raise MissingError(upload) from None

    @contextmanager
    def _hold_lock(self, upload: str) -> Iterator[None]:
        # This does not make the directory again, if the upload was deleted.
        with open(self._full_path(f"{upload}lock"), "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def append_to_upload(self, name: str, upload_id: str, start: int, blocks: Blocks) -> int:
        upload = upload_path(name, upload_id)
        if self._read_state(upload).size != start:
            raise ConflictError(upload)
        body, hashed = f"{upload}{uuid.uuid4().hex}", hashlib.sha256()
        try:
            with self._remove_on_error(body):
                # The first chunk becomes the data. Later chunks are appended, and synced there.
                size = self._receive(body, blocks, hashed, is_synced=not start)
                with self._lock_upload(upload, start):
                    if size and not start:
                        os.replace(self._full_path(body), self._full_path(f"{upload}data"))
                        sync_directory(self._full_path(upload))
                    elif size:
                        self._append(upload, start, body)
                    if size:
                        sha256 = hashed.hexdigest() if not start else ""
                        self._write_state(upload, _State(size=start + size, sha256=sha256))
        finally:
            self._clean_up(upload, body)
        return start + size

    def _append(self, upload: str, start: int, body: str) -> None:
        """Append the body of a request to the data of an upload, and sync the data."""
        with (
            open(self._full_path(f"{upload}data"), "r+b", 0) as data,
            open(os.path.join(self.directory, body), "rb", 0) as added,
        ):
            data.truncate(start)
            data.seek(start)
            shutil.copyfileobj(added, data, BLOCK)
            os.fsync(data.fileno())

    def finish_upload(
        self, name: str, upload_id: str, start: int, blocks: Blocks, digest: str
    ) -> None:
        upload = upload_path(name, upload_id)
        state = self._read_state(upload)
        if state.size != start:
            raise ConflictError(upload)
        body, verifier = f"{upload}{uuid.uuid4().hex}", Verifier(digest)
        try:
            with self._remove_on_error(body):
                added = self._receive_last(state, upload, body, blocks, verifier)
                with self._lock_upload(upload, start) as state:
                    data = self._find_data(upload, state) if start else body
                    if data == f"{upload}data":
                        self._append(upload, start, body if added else os.devnull)
                        # So a client can repeat its request after an error that follows the move.
                        self._write_state(upload, state._replace(becoming=digest))
                    self._keep(name, digest, data, start + added)
                    with suppress(OSError):  # the blob is there, so this may fail
                        self._write_state(upload, _State(digest=digest))
        finally:
            self._clean_up(upload, body)
        with suppress(OSError):
            self.delete(f"{upload}data", f"{upload}lock")

    def _receive_last(
        self, state: "_State", upload: str, body: str, blocks: Blocks, verifier: Verifier
    ) -> int:
        """Receive the last chunk, verify the whole upload, and return the size of the chunk."""
        blocks = iter(blocks)
        first = next(blocks, b"")
        if not first and f"sha256:{state.sha256}" == verifier.digest:
            return 0
        if state.size:
            for block in self.stream(self._find_data(upload, state), 0, state.size):
                verifier.update(block)
        is_synced = not state.size
        added = self._receive(body, chain([first], blocks), verifier, is_synced=is_synced)
        verifier.verify()
        return added

    def upload_result(self, name: str, upload_id: str) -> str:
        try:
            return _State(**json.loads(self.read(f"{upload_path(name, upload_id)}state"))).result()
        except (ValueError, TypeError):
            raise MissingError(upload_id) from None

    def cancel_upload(self, name: str, upload_id: str) -> None:
        upload = upload_path(name, upload_id)
        self._read_state(upload)
        self.delete_upload(upload)

    def delete_upload(self, upload: str) -> None:
        self.delete(f"{upload}state")
        shutil.rmtree(self._full_path(upload), ignore_errors=True)
        self._remove_empty(upload.rstrip("/"))

    def _clean_up(self, upload: str, body: str) -> None:
        """Delete the body of a request; the whole upload, if another request deleted its state."""
        with suppress(OSError):
            os.unlink(self._full_path(body))
        if not os.path.exists(self._full_path(f"{upload}state")):
            shutil.rmtree(self._full_path(upload), ignore_errors=True)
            self._remove_empty(upload.rstrip("/"))

    def sections(self) -> list[str]:
        with os.scandir(self.directory) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())


class _State(NamedTuple):
    """The state of an upload."""

    size: int = 0
    sha256: str = ""
    becoming: str = ""
    digest: str = ""

    def result(self) -> str:
        if not self.digest:
            raise ValueError
        return self.digest


class _Together:
    """Calls in other threads, all of which have ended when the ``with`` block ends."""

    def __init__(self) -> None:
        self.running: list[Future[None]] = []

    def __enter__(self) -> "_Together":
        return self

    def __exit__(self, *error: object) -> None:
        wait(self.running)  # a call may use a file that is closed next

    def start(self, act: Callable[..., None], *arguments: Any) -> None:
        self.running.append(_threads.submit(act, *arguments))

    def wait(self) -> None:
        """Wait for all calls, and raise the error of a failed call."""
        wait(self.running)
        while self.running:
            self.running.pop().result()


def _update(hashes: Iterable[Any], block: bytes) -> None:
    for hashed in hashes:
        hashed.update(block)


def _write_early(file: Any, block: bytes, start: int) -> None:
    """Write a block that begins at `start`, and make the kernel begin to write it to the disk.

    That shortens the sync at the end. If a program says that it will not need some pages again,
    Linux begins to write them, and keeps them in memory until they are written.
    """
    write_whole(file, block)
    first = start // EARLY * EARLY
    if start + len(block) >= first + EARLY and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), first, EARLY, os.POSIX_FADV_DONTNEED)


def _raise(error: OSError) -> None:
    # A delete may have removed the directory. Below a file, as in a bucket, there is nothing.
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _read_part(file: BinaryIO, left: int) -> Iterator[bytes]:
    with file:
        while left > 0 and (block := file.read(min(left, BLOCK))):
            left -= len(block)
            yield block


def identity(directory: str) -> tuple[int, int]:
    found = os.stat(directory)
    return found.st_dev, found.st_ino


def sync_directory(path: str) -> None:
    """Sync the entries of a directory to the disk, unless it was deleted."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some network disks cannot
            raise
    finally:
        os.close(descriptor)


def create_directory(place: str) -> None:
    """Create a directory and its missing parents, and sync them."""
    directory = Path(place).absolute()
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_directory(str(path.parent))
