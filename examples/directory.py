"""A storage in a directory. What a push is answered for survives a power cut."""

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

from objects import (
    STAGING,
    Blocks,
    Entry,
    ObjectStorage,
    content_path,
    path_of,
    tag_path,
    upload_path,
)

from registry_routes.digests import Verifier
from registry_routes.registry import BLOCK, BlobFile, ConflictError, MissingError

TRIES = 20  # of a write that makes directories, while deletes remove them
LOCKS = 64  # files that requests lock, each for some repositories

#: The directories that this program has checked. A worker that it starts later, perhaps after an
#: unmount, uses no other directory of the same name.
checked: dict[str, tuple[int, int]] = {}


EARLY = 16 * BLOCK  # bytes of a large file that the kernel is told to write before the sync

_helping = ThreadPoolExecutor(8, "helping")


class DirectoryStorage(ObjectStorage):
    """Repositories in a directory, which processes on one machine may share.

    Everything that a blob, a manifest or a tag needs is synced before the call returns, and before
    anything that points at it appears. A file is written in ``staging/``, synced and renamed. Hard
    links are not used, because some file systems have none.

    An upload has these files:

    - ``state``: how many bytes it has, their SHA-256 if they came in one chunk, and the digest of
      the blob that it is becoming; or, when it has ended, of the blob that it has become;
    - ``data``: these bytes, which were synced before ``state`` was written, and perhaps some more;
    - ``<random>``, the body of a request; ``lock``.

    What becomes a blob was hashed before it was synced, or is read from the file to be hashed.

    Conditional writes are atomic among processes on one machine. A directory may vanish. So it is
    checked before something is reported missing, and writing never creates it again.
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
        """Raise `OSError` if the directory is gone, or was replaced by a mount or an unmount."""
        if identity(self.directory) != self._root:
            raise FileNotFoundError(f"{self.directory} is not the directory that it was")

    def try_writing(self) -> None:
        """Raise `OSError` if requests cannot write here."""
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise PermissionError(f"{self.directory} cannot be written to")

    def _full(self, path: str) -> str:
        return f"{self.directory}{path}"

    def read(self, path: str) -> bytes:
        try:
            return Path(self._full(path)).read_bytes()
        except FileNotFoundError:
            self._check_root()
            return b""

    def entry(self, path: str) -> Entry | None:
        try:
            found = os.stat(self._full(path))
        except FileNotFoundError:
            self._check_root()
            return None
        return Entry(path, found.st_mtime, found.st_size)

    def stream(self, path: str, start: int, end: int) -> Blocks:
        try:
            file = open(self._full(path), "rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            self._check_root()
            raise MissingError(path) from None
        file.seek(start)
        if end == os.fstat(file.fileno()).st_size:
            return BlobFile(file)
        return _part(file, end - start)

    def names(self, prefix: str, after: str = "") -> Iterator[str]:
        try:
            names = os.listdir(self._full(prefix))
        except FileNotFoundError:
            self._check_root()
            return iter(())
        # A list takes two thirds of the time of generators, and is most of the time of a page.
        found = [plain for name in names if (plain := name.replace("@", "/")) > after]
        return iter(sorted(found))

    def flat(self, name: str) -> str:
        return name.replace("/", "@")

    def entries(self, prefix: str) -> Iterator[Entry]:
        for parent, _, names in os.walk(self._full(prefix)):
            for name in names:
                path = os.path.relpath(f"{parent}/{name}", self.directory)
                with suppress(FileNotFoundError):
                    found = os.stat(f"{parent}/{name}")
                    yield Entry(path, found.st_mtime, found.st_size)

    def now(self) -> float:
        os.utime(self.directory)  # which takes no space, and on a server's disk the server's time
        return os.stat(self.directory).st_mtime

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        with self._locked(f"locks/{zlib.crc32(name.encode()) % LOCKS:02}"):
            yield

    @contextmanager
    def _locked(self, path: str) -> Iterator[None]:
        with self._making_directories(path, lambda: open(self._full(path), "ab")) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # Writing.

    def write(self, *objects: tuple[str, bytes]) -> None:
        with self._staging(objects) as staged:
            self._put_in_place(staged)

    @contextmanager
    def _staging(self, objects: Iterable[tuple[str, bytes]]) -> Iterator[dict[str, str]]:
        """Write objects to staged files, and yield the path of each by that of its file."""
        staged: dict[str, str] = {}
        try:
            for path, content in objects:
                file = self._staged()
                staged[file] = path
                self._receive(file, [content])
            yield staged
        finally:
            for file in staged:
                with suppress(OSError):
                    os.unlink(self._full(file))

    def point_tags(self, name: str, digest: str, tags: Sequence[str], expected: str | None) -> bool:
        objects = [(tag_path(name, tag), digest.encode()) for tag in tags]
        with self._staging(objects) as staged:
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
            os.close(os.open(self._full(path), os.O_CREAT | os.O_EXCL))

        self._check_root()
        try:
            self._making_directories(path, create_file)
        except FileExistsError:
            return False
        return True

    def move(self, source: str, target: str) -> bool:
        try:
            os.utime(self._full(source))
        except FileNotFoundError:
            self._check_root()
            return False
        try:
            self._put_in_place({source: target})
        except FileNotFoundError:  # another request has moved it
            self._check_root()
            return False
        self._remove_empty(source)
        return True

    def delete(self, *paths: str) -> None:
        for path in paths:
            with suppress(FileNotFoundError):
                os.unlink(self._full(path))
            self._remove_empty(path)

    def delete_old(self, paths: list[str], until: float) -> None:
        for path in paths:
            with self.lock(path):
                found = self.entry(path)
                if found is not None and found.time < until:
                    self.delete(path)

    def _staged(self) -> str:
        return f"{STAGING}{uuid.uuid4().hex}"

    @contextmanager
    def _removing(self, path: str) -> Iterator[None]:
        """Remove a file if an error leaves it behind."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                os.unlink(self._full(path))
            raise

    def _receive(self, path: str, blocks: Blocks, *hashes: Any, is_synced: bool = True) -> int:
        """Write and sync a new file, hash it at the same time, and return its size.

        While a large block is hashed and written, in two threads, the next one arrives.
        """
        size = 0
        with (
            self._making_directories(path, lambda: open(self._full(path), "xb", 0)) as file,
            _Together() as together,
        ):
            for block in blocks:
                self._check_root()
                together.wait()
                if len(block) < BLOCK:
                    _update(hashes, block)
                    _write(file, block)
                else:
                    together.start(_update, hashes, block)
                    together.start(_write_early, file, block, size)
                size += len(block)
            together.wait()
            if is_synced:
                os.fsync(file.fileno())
        return size

    def _making_directories(self, path: str, act: Callable[[], Any]) -> Any:
        """Do what needs a directory, after making it, although a delete may remove it again."""
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
            rename = partial(os.replace, self._full(source), self._full(target))
            self._making_directories(target, rename)

    def _sync_above(self, *paths: str) -> None:
        """Sync the directories above paths, each of which may be new."""
        above: set[str] = set()
        for path in paths:
            while path:
                path = path.rpartition("/")[0]
                above.add(path)
        for directory in sorted(above, reverse=True):
            sync_directory(self._full(directory))
        self._check_root()

    def _remove_empty(self, path: str) -> None:
        """Remove the directories above a path that are empty."""
        while path := path.rpartition("/")[0]:
            try:
                os.rmdir(self._full(path))
            except OSError:
                return

    # Blobs.

    def blob_size(self, name: str, digest: str) -> int | None:
        is_linked = self.size(path_of(name, "_blobs", digest)) is not None
        return self.size(content_path(digest)) if is_linked else None

    def link_blob(self, name: str, digest: str, size: int) -> None:
        self.write((path_of(name, "_blobs", digest), b""))

    def put_blob(self, name: str, digest: str, blocks: Blocks) -> None:
        staged, verifier = self._staged(), Verifier(digest)
        with self._removing(staged):
            size = self._receive(staged, blocks, verifier)
            verifier.verify()
            self._keep(name, digest, staged, size)

    def _keep(self, name: str, digest: str, staged: str, size: int) -> None:
        """Make a file, which has been verified and synced, a blob.

        The link comes first. If it fails, the file is still where it was. Until the content is
        there, nobody finds the blob.
        """
        self.link_blob(name, digest, size)
        if staged == content_path(digest):  # an error came after this had been done
            self._sync_above(staged)
        else:
            with self.lock(content_path(digest)):
                self._put_in_place({staged: content_path(digest)})
        try:
            self.await_collection(digest)
        except MissingError:
            raise OSError(f"{digest} was collected while it was pushed again") from None

    # Uploads.

    def begin_upload(self, name: str) -> str:
        upload_id = uuid.uuid4().hex
        self._write_state(upload_path(name, upload_id), _State(size=0))
        return upload_id

    def _write_state(self, upload: str, state: "_State") -> None:
        # After a power cut, it may be an older one.
        temporary = f"{upload}{uuid.uuid4().hex}"
        content = json.dumps(state._asdict()).encode()

        def write() -> None:
            with open(self._full(temporary), "xb", 0) as file:
                _write(file, content)

        with self._removing(temporary):
            self._check_root()
            self._making_directories(temporary, write)
            os.replace(self._full(temporary), self._full(f"{upload}state"))

    def _state(self, upload: str) -> "_State":
        """Return the state of an upload that goes on. Raise `MissingError`."""
        try:
            state = _State(**json.loads(self.read(f"{upload}state")))
        except (ValueError, TypeError):  # there is none, or not all of it survived a power cut
            raise MissingError(upload) from None
        if state.digest:
            raise MissingError(upload)
        if state.size:
            self._data(upload, state)
        return state

    def _data(self, upload: str, state: "_State") -> str:
        """Return the path of the bytes that a state counts, or raise `MissingError`."""
        paths = [f"{upload}data"]
        if state.becoming:
            paths.append(content_path(state.becoming))
        for path in paths:
            if (self.size(path) or 0) >= state.size:
                return path
        raise MissingError(upload)

    def upload_size(self, name: str, upload_id: str) -> int:
        return self._state(upload_path(name, upload_id)).size

    def ended_at(self, upload: str) -> bool:
        with suppress(ValueError):
            return bool(json.loads(self.read(f"{upload}state")).get("digest"))
        return False

    @contextmanager
    def _upload(self, upload: str, start: int) -> Iterator["_State"]:
        """Lock an upload, whose size must be `start`."""
        try:
            with self._locked_upload(upload):
                state = self._state(upload)
                if state.size != start:
                    raise ConflictError(upload)
                yield state
        except FileNotFoundError:
            self._check_root()
            raise MissingError(upload) from None

    @contextmanager
    def _locked_upload(self, upload: str) -> Iterator[None]:
        with open(self._full(f"{upload}lock"), "ab") as file:  # not in a directory made again
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def append_to_upload(self, name: str, upload_id: str, start: int, blocks: Blocks) -> int:
        upload = upload_path(name, upload_id)
        if self._state(upload).size != start:
            raise ConflictError(upload)
        body, hashed = f"{upload}{uuid.uuid4().hex}", hashlib.sha256()
        try:
            with self._removing(body):
                # A first chunk becomes the data; another one is added to it, and synced there.
                size = self._receive(body, blocks, hashed, is_synced=not start)
                with self._upload(upload, start):
                    if size and not start:
                        os.replace(self._full(body), self._full(f"{upload}data"))
                        sync_directory(self._full(upload))
                    elif size:
                        self._append(upload, start, body)
                    if size:
                        sha256 = hashed.hexdigest() if not start else ""
                        self._write_state(upload, _State(size=start + size, sha256=sha256))
        finally:
            self._clean_up(upload, body)
        return start + size

    def _append(self, upload: str, start: int, body: str) -> None:
        """Add the body of a request to the data of an upload, and sync it."""
        with (
            open(self._full(f"{upload}data"), "r+b", 0) as data,
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
        state = self._state(upload)
        if state.size != start:
            raise ConflictError(upload)
        body, verifier = f"{upload}{uuid.uuid4().hex}", Verifier(digest)
        try:
            with self._removing(body):
                added = self._receive_last(state, upload, body, blocks, verifier)
                with self._upload(upload, start) as state:
                    data = self._data(upload, state) if start else body
                    if data == f"{upload}data":
                        self._append(upload, start, body if added else os.devnull)
                        # Should an error come after the rename, the client may repeat its request.
                        self._write_state(upload, state._replace(becoming=digest))
                    self._keep(name, digest, data, start + added)
                    with suppress(OSError):  # the blob is there, whatever happens now
                        self._write_state(upload, _State(digest=digest))
        finally:
            self._clean_up(upload, body)
        with suppress(OSError):
            self.delete(f"{upload}data", f"{upload}lock")

    def _receive_last(
        self, state: "_State", upload: str, body: str, blocks: Blocks, verifier: Verifier
    ) -> int:
        """Receive the last chunk, verify the whole upload, and return how many bytes were added."""
        blocks = iter(blocks)
        first = next(blocks, b"")
        if not first and f"sha256:{state.sha256}" == verifier.digest:
            return 0
        if state.size:
            for block in self.stream(self._data(upload, state), 0, state.size):
                verifier.update(block)
        is_synced = not state.size
        added = self._receive(body, chain([first], blocks), verifier, is_synced=is_synced)
        verifier.verify()
        return added

    def upload_result(self, name: str, upload_id: str) -> str:
        try:
            return _State(**json.loads(self.read(f"{upload_path(name, upload_id)}state"))).ended()
        except (ValueError, TypeError):
            raise MissingError(upload_id) from None

    def cancel_upload(self, name: str, upload_id: str) -> None:
        upload = upload_path(name, upload_id)
        self._state(upload)
        self.delete_upload(upload)

    def delete_upload(self, upload: str) -> None:
        self.delete(f"{upload}state")
        shutil.rmtree(self._full(upload), ignore_errors=True)
        self._remove_empty(upload.rstrip("/"))

    def _clean_up(self, upload: str, body: str) -> None:
        """Delete the body of a request; all of the upload, if another request has deleted it."""
        with suppress(OSError):
            os.unlink(self._full(body))
        if not os.path.exists(self._full(f"{upload}state")):
            shutil.rmtree(self._full(upload), ignore_errors=True)
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

    def ended(self) -> str:
        if not self.digest:
            raise ValueError
        return self.digest


class _Together:
    """Calls of functions in other threads, which have ended when the block with this ends."""

    def __init__(self) -> None:
        self.running: list[Future[None]] = []

    def __enter__(self) -> "_Together":
        return self

    def __exit__(self, *error: object) -> None:
        wait(self.running)  # one may be using a file that is closed next

    def start(self, act: Callable[..., None], *arguments: Any) -> None:
        self.running.append(_helping.submit(act, *arguments))

    def wait(self) -> None:
        """Wait for all calls, and raise the error of one that has failed."""
        wait(self.running)
        while self.running:
            self.running.pop().result()


def _update(hashes: Iterable[Any], block: bytes) -> None:
    for one in hashes:
        one.update(block)


def _write(file: Any, block: bytes) -> None:
    """Write a block to a file without a buffer, which may take only a part of it at once."""
    with memoryview(block) as left:
        written = 0
        while written < len(left):
            written += file.write(left[written:])


def _write_early(file: Any, block: bytes, start: int) -> None:
    """Write a block that begins at `start`, and have the disk begin with what is before its end.

    The sync that follows is short then. Linux begins to write what it is told will not be needed
    again, and keeps it in memory all the same until it is written.
    """
    _write(file, block)
    first = start // EARLY * EARLY
    if start + len(block) >= first + EARLY and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), first, EARLY, os.POSIX_FADV_DONTNEED)


def _part(file: BinaryIO, left: int) -> Iterator[bytes]:
    with file:
        while left > 0 and (block := file.read(min(left, BLOCK))):
            left -= len(block)
            yield block


def identity(directory: str) -> tuple[int, int]:
    found = os.stat(directory)
    return found.st_dev, found.st_ino


def sync_directory(path: str) -> None:
    """Have the kernel write the entries of a directory to the disk, unless it was deleted."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some servers' disks cannot
            raise
    finally:
        os.close(descriptor)


def create_directory(place: str) -> None:
    """Create a directory and its parents if they do not exist, durably."""
    directory = Path(place).absolute()
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_directory(str(path.parent))
