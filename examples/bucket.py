"""A storage in an object store, through obstore: S3, GCS or Azure. S3 is tested, with moto."""

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import obstore
from object_storage import (
    STAGING,
    Blocks,
    Entry,
    Item,
    ObjectStorage,
    Result,
    content_path,
    one_line,
    path_of,
    tag_path,
    upload_path,
)
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from registry_routes.registry import BLOCK, ConflictError, MissingError, checked_blocks

PART = 5 * 1024 * 1024  # bytes of a part of an upload, the least for S3; two are held in memory
MAX_COPY = 4 * 1024 * 1024 * 1024  # bytes; S3 copies up to 5 GiB in one request
AT_ONCE = 16  # requests
TRIES = 3  # to write a content that collections delete
MAX_STATES = 1000  # of uploads, remembered between two calls of the same request

_Write = Callable[[], tuple[int, bool]]
"""A function that writes a content, and returns its size and whether it is certainly new."""

# The error codes of S3 and GCS, and of Azure.
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound")
_OFFSET = re.compile("[a-zA-Z0-9_](?!.*/[/.])[a-zA-Z0-9/._~-]*")


class BucketStorage(ObjectStorage):
    """Repositories in an object store, which several machines may share.

    A link holds the size of its blob. An upload has these objects:

    - ``state``: its chunks, in order, and the SHA-256 of the first; or, when it has ended, the
      digest of the blob that it has become. A request replaces only the version that it has read;
    - ``<random>``: a chunk. It belongs to the upload only if ``state`` names it.

    Setting a tag with `expected` is atomic. Deleting a tag is not: another request may set the tag
    between the check and the delete.

    A missing bucket is an error, and not a storage without objects.
    """

    max_path = 900  # bytes; S3 has 1,024, with the prefix of the store

    def __init__(self, store: Any) -> None:
        self.store = store
        self._pool = ThreadPoolExecutor(AT_ONCE, "bucket")
        self._states: dict[str, _Versioned] = {}

    def check(self) -> None:
        self.read("health")  # an object that does not exist, which is cheap to ask for

    def read(self, path: str) -> bytes:
        return self._read(path)[0]

    def _read(self, path: str) -> tuple[bytes, Any]:
        """Return the content and the version of an object; empty and `None` if there is none."""
        with translate_errors():
            try:
                found = self.store.get(path)
                return bytes(found.bytes()), _version(found.meta)
            except FileNotFoundError as error:
                _check_bucket(error)
                return b"", None

    def entry(self, path: str) -> Entry | None:
        with translate_errors():
            try:
                return self._entry(self.store.head(path))
            except FileNotFoundError:
                return None

    def stream(self, path: str, start: int, end: int) -> Blocks:
        with translate_errors():
            try:
                found = self.store.get(path, options={"range": (start, end)})
            except FileNotFoundError as error:
                _check_bucket(error)
                raise MissingError(path) from None
        return _read_blocks(found)

    def write(self, *objects: tuple[str, bytes]) -> None:
        def put(entry: tuple[str, bytes]) -> None:
            with translate_errors():
                self.store.put(*entry, use_multipart=False)

        if len(objects) == 1:
            put(*objects)  # in this thread, which may be one of the pool
        else:
            self.call_each(put, objects)

    def point_tags(self, name: str, digest: str, tags: Sequence[str], expected: str | None) -> bool:
        if expected is None:
            self.write(*((tag_path(name, tag), digest.encode()) for tag in tags))
            return self.has_pointers(name, digest, tags)
        found, version = self._read(tag_path(name, tags[0]))
        if found.decode() != expected:
            raise ConflictError(tags[0])
        self._swap(tag_path(name, tags[0]), digest.encode(), version)
        if not self.has_pointers(name, digest, tags):
            raise ConflictError(tags[0])  # the caller begins again, with the tag's new digest
        return True

    def _swap(self, path: str, content: bytes, version: Any) -> None:
        """Replace this version of an object; `None` creates it. Raise `ConflictError`."""
        try:
            with translate_errors():
                self.store.put(path, content, mode=version or "create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            raise ConflictError(path) from None

    def create(self, path: str) -> bool:
        try:
            self._swap(path, b"", None)
        except ConflictError:
            return False
        return True

    def move(self, source: str, target: str) -> bool:
        content, version = self._read(source)
        if version is None:
            return False
        self.write((target, content))
        self.delete(source)
        return True

    def delete(self, *paths: str) -> None:
        if paths:
            with translate_errors(), suppress(FileNotFoundError):
                self.store.delete(list(paths))

    def names(self, prefix: str, after: str = "") -> Iterator[str]:
        # obstore takes no `after` that cannot be in a path.
        offset = prefix + after if _OFFSET.fullmatch(after) else None
        for entry in self._list(prefix, offset):
            name = entry["path"].removeprefix(prefix)
            if name > after:
                yield name

    def entries(self, prefix: str) -> Iterator[Entry]:
        return map(self._entry, self._list(prefix))

    def _list(self, prefix: str, offset: str | None = None) -> Iterator[Any]:
        with translate_errors():
            for entries in self.store.list(prefix, offset=offset):
                yield from entries

    def _entry(self, meta: Any) -> Entry:
        return Entry(meta["path"], meta["last_modified"].timestamp(), meta["size"])

    def now(self) -> float:
        path = f"{STAGING}{uuid.uuid4().hex}"
        self.write((path, b""))
        with translate_errors():
            time = self._entry(self.store.head(path)).time
        self.delete(path)
        return time

    def lock(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def call_each(self, act: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        return list(self._pool.map(act, items))

    # Blobs.

    def blob_size(self, name: str, digest: str) -> int | None:
        size = self.read(path_of(name, "_blobs", digest))
        return int(size) if size else None

    def link_blob(self, name: str, digest: str, size: int) -> None:
        self.write((path_of(name, "_blobs", digest), str(size).encode()))

    def blob_url(self, name: str, digest: str, lifetime: timedelta) -> str:
        self._find_blob(name, digest)
        with translate_errors():
            return obstore.sign(self.store, "GET", content_path(digest), lifetime)

    def put_blob(self, name: str, digest: str, blocks: Blocks) -> None:
        path, blocks = content_path(digest), checked_blocks(digest, blocks)
        begin, size = _take_part(blocks)
        if size > PART:  # too large to hold in memory for a second try
            rest = chain(begin, blocks)
            self._keep(name, digest, lambda: (self._put_parts(path, rest), False), tries=1)
        else:
            self._keep(name, digest, partial(self._put_content, path, b"".join(begin)))

    def _keep(self, name: str, digest: str, write: _Write, tries: int = TRIES) -> None:
        """Write a content and link it. If a collection deletes it just then, write it again."""
        for _ in range(tries):
            size, is_new = write()
            self.link_blob(name, digest, size)
            if is_new:  # a collection deletes only old contents
                return
            with suppress(MissingError):
                self.await_collection(name, digest)
                return
        raise OSError(f"{digest} was collected while it was pushed again")

    def _put_content(self, path: str, content: bytes) -> tuple[int, bool]:
        """Write a content. Return its size, and whether it is certainly new."""
        try:
            self._swap(path, content, None)
        except ConflictError:
            self.write((path, content))  # the content that is there may be damaged
            return len(content), False
        return len(content), True

    def _put_parts(self, path: str, blocks: Blocks) -> int:
        """Write a large object. After an error, no object appears, and S3 discards the parts."""
        size = 0
        with (
            translate_errors(),
            obstore.open_writer(self.store, path, buffer_size=PART, max_concurrency=1) as writer,
        ):
            for block in blocks:
                size += len(block)
                writer.write(block)
        return size

    # Uploads.

    def begin_upload(self, name: str) -> str:
        upload_id = uuid.uuid4().hex
        self._swap(f"{upload_path(name, upload_id)}state", _State().to_json(), None)
        return upload_id

    def _read_state(self, upload: str) -> "_Versioned":
        content, version = self._read(f"{upload}state")
        if not content:
            raise MissingError(upload)
        return _Versioned(_State.from_json(content), version)

    def _take_state(self, upload: str, start: int) -> "_Versioned":
        """Return the state of an upload that has `start` bytes, or raise an error.

        The same request has just read it for `upload_size`. If another request has replaced it
        since, `_swap` fails.
        """
        found = self._states.pop(upload, None) or self._read_state(upload)
        if found.state.digest:
            raise MissingError(upload)
        if found.state.size != start:
            raise ConflictError(upload)
        return found

    def upload_size(self, name: str, upload_id: str) -> int:
        upload = upload_path(name, upload_id)
        found = self._read_state(upload)
        if found.state.digest:
            raise MissingError(upload_id)
        while len(self._states) >= MAX_STATES:
            with suppress(KeyError, StopIteration, RuntimeError):
                del self._states[next(iter(self._states))]
        self._states[upload] = found
        return found.state.size

    def has_ended(self, upload: str) -> bool:
        with suppress(MissingError):
            return bool(self._read_state(upload).state.digest)
        return False

    def append_to_upload(self, name: str, upload_id: str, start: int, blocks: Blocks) -> int:
        upload = upload_path(name, upload_id)
        state, version = self._take_state(upload, start)
        chunk, hashed = uuid.uuid4().hex[:16], hashlib.sha256()
        size = self._put_chunk(upload + chunk, _hash_blocks(blocks, hashed))
        if size:
            new = _State([*state.chunks, (size, chunk)], state.sha256 or hashed.hexdigest())
            self._set_state(upload, new, version, chunk)
        return start + size

    def _put_chunk(self, path: str, blocks: Blocks) -> int:
        blocks = iter(blocks)
        begin, size = _take_part(blocks)
        if size > PART:
            return self._put_parts(path, chain(begin, blocks))
        if size:
            self.write((path, b"".join(begin)))
        return size

    def _set_state(self, upload: str, new: "_State", version: Any, chunk: str) -> None:
        """Replace the state of an upload by a new state, which has another chunk.

        After a failure, the store may have the new state, or get it later. Delete the chunk only if
        that is impossible.
        """
        try:
            self._swap(f"{upload}state", new.to_json(), version)
        except (ConflictError, OSError):
            content, found = self._read(f"{upload}state")
            state = _State.from_json(content) if content else None
            if state and any(name == chunk for _, name in state.chunks):
                return  # only the answer was lost
            if found != version:  # so the store can never replace `version` any more
                with suppress(OSError):
                    self.delete(upload + chunk)
            if state is None or state.digest:
                raise MissingError(upload) from None
            raise

    def finish_upload(
        self, name: str, upload_id: str, start: int, blocks: Blocks, digest: str
    ) -> None:
        upload = upload_path(name, upload_id)
        state, version = self._take_state(upload, start)
        blocks = iter(blocks)
        first = next(blocks, b"")
        is_one = len(state.chunks) == 1 and not first and start <= MAX_COPY
        if is_one and digest == f"sha256:{state.sha256}":
            source = upload + state.chunks[0][1]
            self._keep(name, digest, lambda: self._copy(source, content_path(digest), start))
        else:
            chunks = chain.from_iterable(
                self._read_chunk(upload, size, chunk) for size, chunk in state.chunks
            )
            self.put_blob(name, digest, chain(chunks, [first], blocks))
        # The blob is there, so no failure matters any more. A collection deletes what stays.
        with suppress(OSError):
            try:
                self._swap(f"{upload}state", _State(digest=digest).to_json(), version)
            except ConflictError:  # perhaps this request itself, if its first answer was lost
                if self._read_state(upload).state.digest != digest:
                    raise
            self.delete(*(upload + chunk for _, chunk in state.chunks))

    def _read_chunk(self, upload: str, size: int, chunk: str) -> Iterator[bytes]:
        try:
            yield from self.stream(upload + chunk, 0, size)
        except MissingError:  # another request has ended the upload
            raise MissingError(upload) from None

    def _copy(self, source: str, target: str, size: int) -> tuple[int, bool]:
        """Copy a chunk to a content. Return its size, and `False`, as it may not be new."""
        with translate_errors():
            try:
                self.store.copy(source, target)
            except FileNotFoundError as error:
                _check_bucket(error)
                raise MissingError(source) from None
        return size, False

    def upload_result(self, name: str, upload_id: str) -> str:
        digest = self._read_state(upload_path(name, upload_id)).state.digest
        if not digest:
            raise MissingError(upload_id)
        return digest

    def cancel_upload(self, name: str, upload_id: str) -> None:
        upload = upload_path(name, upload_id)
        state = self._read_state(upload).state
        if state.digest:
            raise MissingError(upload_id)
        self.delete(f"{upload}state")
        with suppress(OSError):
            self.delete(*(upload + chunk for _, chunk in state.chunks))

    def delete_upload(self, upload: str) -> None:
        self.delete(f"{upload}state")
        self.delete(*(entry.path for entry in self.entries(upload)))

    def sections(self) -> list[str]:
        with translate_errors():
            return sorted(self.store.list_with_delimiter("")["common_prefixes"])


class _State(NamedTuple):
    """The state of an upload."""

    chunks: list[tuple[int, str]] = []  # noqa: RUF012 - it is never changed
    """The size and the name of each chunk."""
    sha256: str = ""
    """The hash of the first chunk."""
    digest: str = ""

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.chunks)

    def to_json(self) -> bytes:
        return json.dumps(self._asdict(), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "_State":
        return cls(**json.loads(content))


class _Versioned(NamedTuple):
    """A state, and the version of the object that it was read from."""

    state: _State
    version: Any


def _version(meta: Any) -> Any:
    """Return the condition under which a store replaces this version of an object and no other."""
    return {key: meta[key] for key in ("e_tag", "version") if meta[key]}


def _take_part(blocks: Blocks) -> tuple[list[bytes], int]:
    """Take blocks until they exceed `PART`, or end; return them and their size."""
    begin, size = [], 0
    for block in blocks:
        begin.append(block)
        size += len(block)
        if size > PART:
            break
    return begin, size


def _hash_blocks(blocks: Blocks, hashed: Any) -> Iterator[bytes]:
    for block in blocks:
        hashed.update(block)
        yield block


def _read_blocks(found: Any) -> Iterator[bytes]:
    with translate_errors():
        yield from map(bytes, found.stream(min_chunk_size=BLOCK))


def _check_bucket(error: Exception) -> None:
    """Raise `OSError` if an object is missing because the bucket is missing."""
    if _NO_BUCKET.search(str(error)):
        raise OSError(one_line(error)) from error


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn obstore's errors into `OSError`, with a message in one line, as `Storage` demands."""
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except BaseError as error:
        raise OSError(one_line(error)) from error
