"""A container registry that keeps what it has in a directory or in an object store.

    python examples/registry.py --host 127.0.0.1 --port 5000 --storage ./registry-data

The views are those of `registry_routes.registry`: the whole of the distribution-spec 1.1. The
storage is here, on obstore, and so is the server, gunicorn. As nothing is kept in the process,
``--workers N`` serve one directory together; several machines may serve one object store
(``--storage s3://bucket/prefix``). It has no authentication and no TLS: put it behind something
that has, or keep it on your own machine.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from obstore import open_writer
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url
from serving import OneLineParser, Server, server_options, with_health
from werkzeug.serving import make_server

from registry_routes import OCI_1_1
from registry_routes.digests import DigestMismatch
from registry_routes.grammar import NAME, REGISTERED_ALGORITHMS
from registry_routes.registry import (
    BLOCK,
    BlobFile,
    Conflict,
    Manifest,
    MemoryStorage,
    Missing,
    Storage,
    checked_blocks,
    make_registry,
)

PART = 5 * 1024 * 1024  # of an object that is written, the least of S3; two are held in memory
MAX_COPY = 4 * 1024 * 1024 * 1024  # what S3 copies in one request is a little more

Blocks = Iterable[bytes]


def storage_at(place: str | os.PathLike[str]) -> Storage:
    """In a directory, or at a URL that obstore knows: S3, GCS, Azure; or in memory."""
    place = os.fspath(place)
    if place.startswith("memory:"):
        return MemoryStorage()
    return ObjectStorage(from_url(place) if "://" in place else LocalStore(place, mkdir=True))


class Chunk(NamedTuple):
    """What is known of a chunk of an upload."""

    start: int
    size: int
    data: str
    """The path of its content."""
    sha256: str


class ObjectStorage(Storage):
    """Repositories in an object store.

    ``blobs/<algorithm>/<hash>`` are the contents, and under ``repositories/<name>/``:

    - ``_blobs/<algorithm>/<hash>``, empty: the repository has this blob;
    - ``_manifests/<algorithm>/<hash>``: a manifest; on a line before it, its media type and, if it
      has one, its subject;
    - ``_tags/<tag>``: the digest that it points at;
    - ``_referrers/<subject's algorithm>/<hash>/<algorithm>/<hash>``: a descriptor;
    - ``_uploads/<id>/``: ``begun``, empty; ``data/<random>``, what a request has brought; and
      ``chunks/<number>``, a `Chunk`. The number falls as its start rises: the last comes first in a
      list.

    No component of a name starts with "_", and no value that the routes let through can leave its
    place. An object appears when it is whole, and of two requests that create the same chunk one
    succeeds. A blob, a tag and an upload's chunk are there before what points at them: a process
    may be killed at any moment.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        self.directory = f"{store.prefix}/" if isinstance(store, LocalStore) else None

    # Objects.

    def _read(self, path: str) -> bytes:
        """The content of an object, empty if there is none."""
        with _raising_oserrors():
            try:
                return bytes(self.store.get(path).bytes())
            except FileNotFoundError:
                return b""

    def _stream(self, path: str, **options: Any) -> Iterator[bytes]:
        with _raising_oserrors():
            found = self.store.get(path, options=options)
            yield from map(bytes, found.stream(min_chunk_size=BLOCK))

    def _size(self, path: str) -> int | None:
        """How many bytes an object has; `None` if there is none."""
        with _raising_oserrors():
            try:
                return int(self.store.head(path)["size"])
            except FileNotFoundError:
                return None

    def _exists(self, path: str) -> bool:
        return self._size(path) is not None

    def _put(self, path: str, content: bytes, **options: Any) -> None:
        with _raising_oserrors():
            self.store.put(path, content, **options)

    def _write(self, path: str, blocks: Blocks) -> None:
        """Write a stream. If that raises, nothing appears."""
        with _raising_oserrors():
            writer = open_writer(self.store, path, buffer_size=PART, max_concurrency=1)
            for block in blocks:
                writer.write(block)
            writer.close()

    def _delete(self, path: str) -> None:
        with _raising_oserrors(), suppress(FileNotFoundError):
            self.store.delete(path)

    def _names(self, prefix: str, after: str = "") -> Iterator[str]:
        """The names of the objects directly under a prefix that are greater than `after`, in order.

        A directory lists its names in no order, but without opening anything.
        """
        if self.directory is not None:
            yield from sorted(name for name in self._listed(prefix) if name > after)
            return
        # An object store lists in order, from where it is asked; but not every text is a path.
        offset = prefix + after if re.fullmatch("[a-zA-Z0-9_][a-zA-Z0-9._-]*", after) else None
        with _raising_oserrors():
            for objects in self.store.list(prefix, offset=offset):
                for one in objects:
                    name = one["path"].removeprefix(prefix)
                    if name > after:
                        yield name

    def _listed(self, prefix: str) -> Iterator[str]:
        """The names in a directory, in no order."""
        with suppress(FileNotFoundError), os.scandir(f"{self.directory}{prefix}") as entries:
            for entry in entries:
                if "#" not in entry.name:  # where obstore writes
                    yield entry.name

    # Blobs.

    def blob_size(self, name: str, digest: str) -> int:
        is_linked = self._exists(_path(name, "_blobs", digest))
        size = self._size(_blob_path(digest)) if is_linked else None
        if size is None:
            raise Missing(digest)
        return size

    def read_blob(self, name: str, digest: str, start: int, end: int) -> Blocks:
        size = self.blob_size(name, digest)
        if start == end:  # which is no range that an object store knows
            return iter(())
        if self.directory is None or end != size:
            return self._stream(_blob_path(digest), range=(start, end))
        try:
            file = open(f"{self.directory}{_blob_path(digest)}", "rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            raise Missing(digest) from None
        file.seek(start)
        return BlobFile(file)

    def put_blob(self, name: str, digest: str, blocks: Blocks) -> None:
        self._write(_blob_path(digest), checked_blocks(digest, blocks))
        self._link_blob(name, digest)

    def _link_blob(self, name: str, digest: str) -> None:
        self._put(_path(name, "_blobs", digest), b"")

    def mount_blob(self, name: str, digest: str, source: str) -> None:
        self.blob_size(source, digest)
        self._link_blob(name, digest)

    def delete_blob(self, name: str, digest: str) -> None:
        # Its content stays: others may have it, or get it now.
        self.blob_size(name, digest)
        self._delete(_path(name, "_blobs", digest))

    # Uploads.

    def begin_upload(self, name: str) -> str:
        upload_id = uuid.uuid4().hex
        self._put(f"{self._upload(name, upload_id)}begun", b"")
        return upload_id

    def _upload(self, name: str, upload_id: str) -> str:
        if not re.fullmatch("[0-9a-f]{32}", upload_id):  # the form of the ids above
            raise Missing(upload_id)
        return f"{_path(name, '_uploads')}{upload_id}/"

    def upload_size(self, name: str, upload_id: str) -> int:
        upload = self._upload(name, upload_id)
        if not self._exists(f"{upload}begun"):
            raise Missing(upload_id)
        last = next(self._chunks(upload), None)
        return last.start + last.size if last else 0

    def _chunks(self, upload: str) -> Iterator[Chunk]:
        """The chunks of an upload, the last one first."""
        for number in self._names(f"{upload}chunks/"):
            if content := self._read(f"{upload}chunks/{number}"):  # it is not being deleted
                yield Chunk(**json.loads(content))

    def append_to_upload(self, name: str, upload_id: str, start: int, blocks: Blocks) -> int:
        chunk = self._append(self._upload(name, upload_id), start, blocks)
        return start + chunk.size if chunk else start

    def _append(self, upload: str, start: int, blocks: Blocks) -> Chunk | None:
        """The chunk that is added; `None` if it is empty. One that fails leaves no trace."""
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
                if not size:  # it would be where the next one belongs
                    self._delete(data)
                    return None
                chunk = Chunk(start, size, data, hashed.hexdigest())
                content = json.dumps(chunk._asdict()).encode()
                self._put(_chunk_path(upload, start), content, mode="create")
                if not self._exists(f"{upload}begun"):  # cancelled meanwhile
                    raise FileNotFoundError(upload)
        except BaseException as error:
            self._delete(data)
            if isinstance(error, AlreadyExistsError):
                raise Conflict from None
            raise
        return chunk

    @contextmanager
    def _missing_if_ended(self, upload: str) -> Iterator[None]:
        """Another request may end an upload while this one is at it."""
        try:
            yield
        except OSError:
            if self._exists(f"{upload}begun"):
                raise
            self._delete_upload(upload)
            raise Missing(upload) from None

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
        except DigestMismatch:
            if last:
                self._delete(_chunk_path(upload, start))
                self._delete(last.data)
            raise
        self._delete_upload(upload)

    def _keep(self, name: str, digest: str, chunks: list[Chunk]) -> None:
        """Keep the chunks of an upload as a blob."""
        is_one = len(chunks) == 1 and chunks[0].size <= MAX_COPY
        if is_one and digest == f"sha256:{chunks[0].sha256}":
            with _raising_oserrors():
                self.store.copy(chunks[0].data, _blob_path(digest))
            self._link_blob(name, digest)
        else:
            blocks = (block for one in chunks for block in self._stream(one.data))
            self.put_blob(name, digest, blocks)

    def cancel_upload(self, name: str, upload_id: str) -> None:
        upload = self._upload(name, upload_id)
        if not self._exists(f"{upload}begun"):
            raise Missing(upload_id)
        self._delete_upload(upload)

    def _delete_upload(self, upload: str) -> None:
        self._delete(f"{upload}begun")
        for kind in "chunks", "data":
            for name in list(self._names(f"{upload}{kind}/")):
                self._delete(f"{upload}{kind}/{name}")
        if self.directory is not None:  # it has directories, which would pile up
            shutil.rmtree(f"{self.directory}{upload}", ignore_errors=True)

    # Manifests and tags.

    def manifest(self, name: str, digest: str) -> Manifest:
        found, _, content = self._read(_path(name, "_manifests", digest)).partition(b"\n")
        if not found:
            raise Missing(digest)
        return Manifest(found.decode().partition(" ")[0], content)

    def put_manifest(
        self,
        name: str,
        digest: str,
        manifest: Manifest,
        *,
        tags: Sequence[str] = (),
        subject: str | None = None,
        descriptor: bytes = b"",
    ) -> None:
        path = _path(name, "_manifests", digest)
        line = f"{manifest.media_type} {subject or ''}".rstrip().encode()
        while True:
            self._put(path, b"%b\n%b" % (line, manifest.content))
            if subject:
                self._put(_referrer_path(name, subject, digest), descriptor)
            for tag in tags:
                self._put(f"{_path(name, '_tags')}{tag}", digest.encode())
            if self._exists(path):
                return  # else it has been deleted meanwhile, and what points at it may not have

    def delete_manifest(self, name: str, digest: str) -> None:
        """Delete a manifest, and what points at it: before it, and what was made meanwhile."""
        path = _path(name, "_manifests", digest)
        line = self._read(path).partition(b"\n")[0]
        if not line:
            raise Missing(digest)
        subject = line.decode().partition(" ")[2]
        self._delete_pointers(name, digest, subject)
        self._delete(path)
        self._delete_pointers(name, digest, subject)

    def _delete_pointers(self, name: str, digest: str, subject: str) -> None:
        if subject:
            self._delete(_referrer_path(name, subject, digest))
        tags = _path(name, "_tags")
        for tag in list(self._names(tags)):
            if self._read(tags + tag) == digest.encode():
                self._delete(tags + tag)

    def tag(self, name: str, tag: str) -> str:
        digest = self._read(f"{_path(name, '_tags')}{tag}")
        if not digest:
            raise Missing(tag)
        return digest.decode()

    def delete_tag(self, name: str, tag: str) -> None:
        self.tag(name, tag)
        self._delete(f"{_path(name, '_tags')}{tag}")

    # Lists.

    def repositories(self, after: str = "") -> Iterator[str]:
        return self._repositories_under("", after)

    def _repositories_under(self, parent: str, after: str) -> Iterator[str]:
        components = self._components(parent)
        # "a" comes first, then "a-b", and then what is under "a/".
        for component in sorted([*components, *(f"{one}/" for one in components)]):
            name = parent + component
            if component.endswith("/"):
                if name > after or after.startswith(name):
                    yield from self._repositories_under(name, after)
            elif name > after and self._has_any(name, "_manifests"):
                yield name

    def _components(self, parent: str) -> list[str]:
        """What comes next in the names that start with `parent`."""
        prefix = f"repositories/{parent}"
        if self.directory is not None:
            names = list(self._listed(prefix))
        else:
            with _raising_oserrors():
                prefixes = self.store.list_with_delimiter(prefix)["common_prefixes"]
            names = [one.removeprefix(prefix) for one in prefixes]
        return [name for name in names if NAME.fits(name)]

    def _has_any(self, name: str, kind: str) -> bool:
        """Whether a repository has any of its blobs or its manifests."""
        path = _path(name, kind)
        if self.directory is None:  # where a list has what is further down as well
            return any(self._names(path))
        return any(any(self._listed(f"{path}{one}/")) for one in REGISTERED_ALGORITHMS)

    def tags(self, name: str, after: str = "") -> Iterator[str]:
        tag = ""
        for tag in self._names(_path(name, "_tags"), after):
            yield tag
        # When all is deleted but a blob, there still is a repository, with no tags.
        if not tag and not (self._has_any(name, "_manifests") or self._has_any(name, "_blobs")):
            raise Missing(name)

    def referrers(self, name: str, subject: str, after: str = "") -> Iterator[tuple[str, bytes]]:
        for algorithm in sorted(REGISTERED_ALGORITHMS):
            prefix = f"{algorithm}:"
            is_within = after.startswith(prefix)
            if after > prefix and not is_within:  # all of these come before it
                continue
            path = _referrer_path(name, subject, prefix)
            for encoded in self._names(path, after.removeprefix(prefix) if is_within else ""):
                if descriptor := self._read(path + encoded):
                    yield prefix + encoded, descriptor


@contextmanager
def _raising_oserrors() -> Iterator[None]:
    """obstore's errors, in one line, as those that a `Storage` raises when it has failed."""
    try:
        yield
    except AlreadyExistsError:
        raise
    except BaseError as error:
        raise OSError(" ".join(str(error).partition("\n\nDebug source")[0].split())) from error


def _digest_path(digest: str) -> str:
    return digest.replace(":", "/")


def _blob_path(digest: str) -> str:
    return f"blobs/{_digest_path(digest)}"


def _path(name: str, kind: str, digest: str = "") -> str:
    return f"repositories/{name}/{kind}/{_digest_path(digest)}"


def _referrer_path(name: str, subject: str, digest: str) -> str:
    return f"{_path(name, '_referrers', subject)}/{_digest_path(digest)}"


def _chunk_path(upload: str, start: int) -> str:
    return f"{upload}chunks/{10**20 - 1 - start:020}"


@contextmanager
def running(storage: str | os.PathLike[str] = "memory://") -> Iterator[str]:
    """The URL of a registry on a free port, served by a thread of this process: for test suites."""
    app = make_registry(storage_at(storage))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_app(storage: Storage, *, read_only: bool = False) -> Any:
    """The registry, with its health check beside it."""
    dialect = OCI_1_1.subset(methods=["GET"]) if read_only else OCI_1_1
    return with_health(make_registry(storage, dialect=dialect), storage)


def main() -> None:
    parser = OneLineParser(
        description="A container registry on the routes of registry_routes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    server_options(parser, port=5000)
    parser.add_argument("--read-only", action="store_true", help="let nobody push or delete")
    options = parser.parse_args()
    greeting = (
        f"A registry at http://{{host}}, its data in {options.storage}. Try:\n"
        "  skopeo copy --dest-tls-verify=false docker://busybox docker://{host}/library/busybox\n"
        "  skopeo inspect --tls-verify=false docker://{host}/library/busybox\n"
        "  curl http://{host}/v2/_catalog"
    )
    Server(
        lambda: make_app(storage_at(options.storage), read_only=options.read_only),
        options,
        greeting,
    ).run()


if __name__ == "__main__":
    main()
