"""`make_registry`: a whole registry, as a WSGI application on a `Storage` such as `MemoryStorage`.

The views know HTTP and the specification, but keep no content. A storage keeps all the content, but
knows neither HTTP nor JSON: its arguments have been checked.
"""

import json
import logging
import re
import threading
import uuid as uuids
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

from werkzeug.exceptions import (
    ClientDisconnected,
    HTTPException,
    PreconditionFailed,
    RequestEntityTooLarge,
)
from werkzeug.wrappers import Response
from werkzeug.wsgi import wrap_file

from . import errors
from .app import RegistryApp, RegistryRequest
from .digests import DigestMismatch, Verifier, digest_of
from .grammar import DIGEST, NAME, REGISTERED_ALGORITHMS, TAG
from .headers import IMAGE_INDEX, IMAGE_MANIFEST, parse_content_range, upload_range
from .map import RegistryMap, url_map
from .paging import next_link, parse_page
from .routes import OCI_1_1, Dialect, RouteName

_log = logging.getLogger(__name__)

MAX_NAME = 255
"""The maximum length of a repository name, in characters. Most clients have this limit too
(distribution-spec 1.1, "Pulling manifests"), and it keeps paths short enough for file systems."""

MAX_MANIFEST = 4 * 1024 * 1024
"""The maximum size of a manifest (distribution-spec 1.1, "Pushing Manifests"), and of a page of
referrers, which is an image index, in bytes."""

MAX_TAGS = 50  # in one push of a manifest: each of them becomes a header of the response
BLOCK = 1024 * 1024
_MAX_DESCRIPTORS = MAX_MANIFEST - 256  # their bytes in a page of referrers; the rest is the frame

# RFC 6838, section 4.2. A manifest's type has no parameters.
_MEDIA_TYPE = re.compile("(?i:application)/[a-zA-Z0-9][a-zA-Z0-9!#$&^_.+-]{0,126}", re.ASCII)
_JSON_TYPES = ("/json", "+json", "+prettyjws")  # a browser may show another type as a page


class Missing(LookupError):
    """A `Storage` does not have what it was asked for."""


class Conflict(Exception):
    """A chunk does not begin where the upload ends: another request has written to the upload."""


class Manifest(NamedTuple):
    """A manifest, as a `Storage` keeps it."""

    media_type: str
    """Its ``Content-Type`` without parameters. It is ASCII and has no blanks."""

    content: bytes
    """The JSON, byte for byte as it was pushed."""


class BlobFile:
    """An open file as an iterable of blocks, from its current position to its end.

    `Storage.read_blob` may return one. The server can then let the kernel send the file.

    >>> from io import BytesIO
    >>> list(BlobFile(BytesIO(b"some content")))
    [b'some content']
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def __iter__(self) -> Iterator[bytes]:
        with self.file:
            while block := self.file.read(BLOCK):
                yield block

    def close(self) -> None:
        """Close the file. Reading it to its end closes it too."""
        self.file.close()


class Storage(Protocol):
    """Where a registry keeps its repositories: the methods that `make_registry` needs.

    Every argument has been checked, and is safe as part of a path: a repository name and a tag fit
    `grammar.NAME` and `grammar.TAG`, and the name has at most `MAX_NAME` characters; a digest fits
    `grammar.DIGEST`, and its algorithm is one of `grammar.REGISTERED_ALGORITHMS`. An upload id fits
    `grammar.UPLOAD_ID`, but the storage may never have issued it. An `after` may be any text.

    A repository is not created explicitly. It exists while it has a blob or a manifest.

    Several threads call a storage at once. What a method writes appears as a whole or not at all.
    It replaces what was there, and it is kept once the method has returned.

    Every method may raise, in addition to the errors that it names:

    - `OSError`, with a message for the operator, if the storage itself has failed, because of a
      full disk or an unreachable object store. The registry answers 503 ``UNAVAILABLE``, and logs
      the message. If a storage's library has its own errors, the storage raises an `OSError` from
      them.
    - whatever an iterable argument raises. The storage lets this error through unchanged, and keeps
      nothing that came from the iterable.

    `MemoryStorage` is the shortest implementation.
    """

    # Blobs. Each belongs to a repository, and several repositories may share its content.

    def blob_size(self, name: str, digest: str) -> int:
        """How many bytes a blob of a repository has.

        Raises `Missing` if the repository does not have it, or if its content is lost.
        """
        ...

    def read_blob(self, name: str, digest: str, start: int, end: int) -> Iterable[bytes]:
        """The bytes of a blob from `start` up to, but without, `end`, in blocks that fit in memory.

        Both are within the blob. If `end` is the end of the blob, and the blob is a file, the
        result may be a `BlobFile`. If the result has a `close` method, it is called.

        The call itself raises `Missing`, not the first step of the iteration.
        """
        ...

    def put_blob(self, name: str, digest: str, blocks: Iterable[bytes]) -> None:
        """Keep a blob, whose content comes in blocks, in place of any content that is there.

        Raises `digests.DigestMismatch`, and keeps nothing, if the content has another digest.
        """
        ...

    def mount_blob(self, name: str, digest: str, source: str) -> None:
        """Give a repository a blob of the repository `source`. It may already have the blob.

        Raises `Missing` if `source` does not have it, even if another repository does.
        """
        ...

    def delete_blob(self, name: str, digest: str) -> None:
        """Remove a blob from a repository, but not from others. Raises `Missing`."""
        ...

    # Uploads: blobs that come in chunks. Each belongs to a repository.

    def begin_upload(self, name: str) -> str:
        """Begin an upload, and return an id that cannot be guessed. It fits `grammar.UPLOAD_ID`."""
        ...

    def upload_size(self, name: str, upload_id: str) -> int:
        """How many bytes an upload has so far. Raises `Missing`.

        This is called before each chunk, so it should not take longer as the upload grows.
        """
        ...

    def append_to_upload(
        self, name: str, upload_id: str, start: int, blocks: Iterable[bytes]
    ) -> int:
        """Add a chunk to an upload, and return how many bytes the upload has then.

        `start` is what `upload_size` has returned. An empty chunk changes nothing. Raises
        `Missing`, and `Conflict` if another request has added a chunk there.
        """
        ...

    def finish_upload(
        self, name: str, upload_id: str, start: int, blocks: Iterable[bytes], digest: str
    ) -> None:
        """Add a last chunk, which may be empty, to an upload, and keep the whole as a blob.

        The upload no longer exists then. After an error it is as before, without the last chunk.
        Raises `Missing`, `Conflict` and `digests.DigestMismatch`.
        """
        ...

    def cancel_upload(self, name: str, upload_id: str) -> None:
        """Forget an upload. Raises `Missing`."""
        ...

    # Manifests and tags.

    def manifest(self, name: str, digest: str) -> Manifest:
        """A manifest of a repository. Raises `Missing`."""
        ...

    def put_manifest(
        self,
        name: str,
        digest: str,
        manifest: Manifest,
        *,
        blobs: Sequence[str] = (),
        tags: Sequence[str] = (),
        subject: str | None = None,
        descriptor: bytes = b"",
    ) -> None:
        """Keep a manifest, and make the `tags` point at it.

        :param digest: the digest of the manifest's content, which has been checked.
        :param blobs: the digests of the blobs that the repository must have.
        :param subject: the digest of the manifest that it refers to, which need not exist.
        :param descriptor: what `referrers` is to return for it.

        When this returns, the manifest and everything that points at it are there, even if another
        request has deleted the manifest meanwhile.

        Raises `Missing`, with the digest, if the repository does not have one of the blobs. Nothing
        points at the manifest then. If a storage deletes blobs that no manifest needs, and this
        happens during the call, it must either keep the blob or raise `Missing`.
        """
        ...

    def delete_manifest(self, name: str, digest: str) -> None:
        """Delete a manifest, the tags that point at it, and its entry among the referrers.

        The manifests that refer to it stay. Raises `Missing`.
        """
        ...

    def tag(self, name: str, tag: str) -> str:
        """The digest that a tag points at. Raises `Missing`."""
        ...

    def delete_tag(self, name: str, tag: str) -> None:
        """Delete a tag, but not the manifest. Raises `Missing`."""
        ...

    # Lists. The registry takes only one item more than it needs for a page.

    def repositories(self, after: str = "") -> Iterator[str]:
        """The names, if greater than `after`, of the repositories that have a manifest.

        They are in ASCII order of the whole name: ``a``, ``a-b``, ``a/b``.
        """
        ...

    def tags(self, name: str, after: str = "") -> Iterator[str]:
        """The tags of a repository that are greater than `after`, in ASCII order.

        Raises `Missing`, at the call or at the first step, if there is no such repository.
        """
        ...

    def referrers(self, name: str, subject: str, after: str = "") -> Iterator[tuple[str, bytes]]:
        """The digest and the descriptor of each manifest that refers to a subject.

        The digests are greater than `after`, and in ASCII order. There are none if the repository
        does not know the subject.
        """
        ...


@dataclass
class _Upload:
    size: int = 0
    chunks: list[bytes] = field(default_factory=list)


class _Kept(NamedTuple):
    manifest: Manifest
    subject: str | None
    descriptor: bytes


@dataclass
class _Repository:
    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, _Upload] = field(default_factory=dict)
    manifests: dict[str, _Kept] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class MemoryStorage(Storage):
    """A `Storage` in memory, for tests. It is thread-safe, and its content is lost with it.

    >>> storage = MemoryStorage()
    >>> digest = digest_of(b"{}")
    >>> storage.put_blob("library/nginx", digest, [b"{", b"}"])
    >>> storage.blob_size("library/nginx", digest)
    2
    """

    def __init__(self) -> None:
        self._repositories: dict[str, _Repository] = {}
        # Held while something is looked up or changed, but not while a client sends content.
        self._lock = threading.Lock()

    def _repository(self, name: str) -> _Repository:
        """A repository to read from. It is empty if nothing has been written to it."""
        return self._repositories.get(name, _Repository())

    def _written(self, name: str) -> _Repository:
        """A repository to write to. It is added if it is new."""
        return self._repositories.setdefault(name, _Repository())

    def _blob(self, name: str, digest: str) -> bytes:
        with self._lock:
            return _found(self._repository(name).blobs, digest)

    def blob_size(self, name: str, digest: str) -> int:
        return len(self._blob(name, digest))

    def read_blob(self, name: str, digest: str, start: int, end: int) -> Iterable[bytes]:
        content = memoryview(self._blob(name, digest))[start:end]
        return (bytes(content[i : i + BLOCK]) for i in range(0, len(content), BLOCK))

    def put_blob(self, name: str, digest: str, blocks: Iterable[bytes]) -> None:
        content = b"".join(checked_blocks(digest, blocks))
        with self._lock:
            self._written(name).blobs[digest] = content

    def mount_blob(self, name: str, digest: str, source: str) -> None:
        with self._lock:
            content = _found(self._repository(source).blobs, digest)
            self._written(name).blobs[digest] = content

    def delete_blob(self, name: str, digest: str) -> None:
        with self._lock:
            blobs = self._repository(name).blobs
            _found(blobs, digest)
            del blobs[digest]

    def begin_upload(self, name: str) -> str:
        upload_id = uuids.uuid4().hex
        with self._lock:
            self._written(name).uploads[upload_id] = _Upload()
        return upload_id

    def upload_size(self, name: str, upload_id: str) -> int:
        with self._lock:
            return _found(self._repository(name).uploads, upload_id).size

    def _upload_of(self, name: str, upload_id: str, start: int) -> _Upload:
        upload = _found(self._repository(name).uploads, upload_id)
        if upload.size != start:
            raise Conflict
        return upload

    def append_to_upload(
        self, name: str, upload_id: str, start: int, blocks: Iterable[bytes]
    ) -> int:
        chunk = b"".join(blocks)
        with self._lock:
            upload = self._upload_of(name, upload_id, start)
            upload.chunks.append(chunk)
            upload.size += len(chunk)
            return upload.size

    def finish_upload(
        self, name: str, upload_id: str, start: int, blocks: Iterable[bytes], digest: str
    ) -> None:
        last = b"".join(blocks)
        with self._lock:
            chunks = [*self._upload_of(name, upload_id, start).chunks, last]
        content = b"".join(checked_blocks(digest, chunks))
        with self._lock:
            self._upload_of(name, upload_id, start)
            repository = self._repository(name)
            repository.blobs[digest] = content
            del repository.uploads[upload_id]

    def cancel_upload(self, name: str, upload_id: str) -> None:
        with self._lock:
            uploads = self._repository(name).uploads
            _found(uploads, upload_id)
            del uploads[upload_id]

    def manifest(self, name: str, digest: str) -> Manifest:
        with self._lock:
            return _found(self._repository(name).manifests, digest).manifest

    def put_manifest(
        self,
        name: str,
        digest: str,
        manifest: Manifest,
        *,
        blobs: Sequence[str] = (),
        tags: Sequence[str] = (),
        subject: str | None = None,
        descriptor: bytes = b"",
    ) -> None:
        with self._lock:
            for blob in blobs:
                _found(self._repository(name).blobs, blob)
            repository = self._written(name)
            repository.manifests[digest] = _Kept(manifest, subject, descriptor)
            repository.tags.update(dict.fromkeys(tags, digest))

    def delete_manifest(self, name: str, digest: str) -> None:
        with self._lock:
            repository = self._repository(name)
            _found(repository.manifests, digest)
            del repository.manifests[digest]
            repository.tags = {
                tag: target for tag, target in repository.tags.items() if target != digest
            }

    def tag(self, name: str, tag: str) -> str:
        with self._lock:
            return _found(self._repository(name).tags, tag)

    def delete_tag(self, name: str, tag: str) -> None:
        with self._lock:
            tags = self._repository(name).tags
            _found(tags, tag)
            del tags[tag]

    def repositories(self, after: str = "") -> Iterator[str]:
        with self._lock:
            names = [name for name, one in self._repositories.items() if one.manifests]
        return iter(sorted(name for name in names if name > after))

    def tags(self, name: str, after: str = "") -> Iterator[str]:
        with self._lock:
            repository = self._repository(name)
            if not repository.blobs and not repository.manifests:
                raise Missing(name)
            tags = list(repository.tags)
        return iter(sorted(tag for tag in tags if tag > after))

    def referrers(self, name: str, subject: str, after: str = "") -> Iterator[tuple[str, bytes]]:
        with self._lock:
            manifests = list(self._repository(name).manifests.items())
        found = [(digest, one.descriptor) for digest, one in manifests if one.subject == subject]
        return iter(sorted(one for one in found if one[0] > after))


Thing = TypeVar("Thing")


def _found(things: dict[str, Thing], key: str) -> Thing:
    if key not in things:
        raise Missing(key)
    return things[key]


def checked_blocks(digest: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks, and then raise `digests.DigestMismatch` if they do not have the digest.

    It is for storages that write a stream, and keep nothing of it if it raises an error.

    >>> list(checked_blocks(digest_of(b"{}"), [b"{", b"}"]))
    [b'{', b'}']
    """
    verifier = Verifier(digest)
    for block in blocks:
        verifier.update(block)
        yield block
    verifier.verify()


def make_registry(
    storage: Storage,
    *,
    dialect: Dialect = OCI_1_1,
    page_size: int | None = None,
    min_chunk: int = 0,
    max_chunk: int | None = None,
) -> RegistryApp:
    """A registry as a WSGI application, with every view of the specification, on a storage.

    (distribution-spec 1.1; from its main branch, tags for a manifest that is pushed by its digest,
    ``digest-algorithm``, and cancelling an upload; Docker's catalog.)

    >>> from werkzeug.test import Client
    >>> client = Client(make_registry(MemoryStorage()))
    >>> client.put("/v2/library/nginx/manifests/latest", json={"schemaVersion": 2}).status
    '201 CREATED'
    >>> client.get("/v2/library/nginx/tags/list").get_json()
    {'name': 'library/nginx', 'tags': ['latest']}

    It does not authenticate clients: put it behind something that does. A blob is mounted only from
    a repository that the request names in ``from``, as `scopes.required_scopes` expects. The views
    never hold a whole blob in memory.

    :param dialect: `OCI_1_1`, or a subset of it for a registry that is read-only, or that has no
        catalog or no referrers.
    :param page_size: the maximum number of results in a page of tags, repositories or referrers. If
        it is `None`, a page has all that the client asks for. A page of referrers also ends at
        `MAX_MANIFEST` bytes.
    :param min_chunk: the minimum size of a chunk in bytes, announced by ``OCI-Chunk-Min-Length``.
        Only the last chunk may be shorter: one after that is refused with 400 ``SIZE_INVALID``.
    :param max_chunk: the maximum size of a PATCH in bytes; more is refused with 413
        ``SIZE_INVALID``.

    Raises `ValueError` for an option that is out of range, and for another dialect.
    """
    if dialect.converters != OCI_1_1.converters:
        raise ValueError(f"dialect {dialect.name!r} must be OCI_1_1 or a subset of it")
    for option, value, least in (
        ("page_size", page_size, 1),
        ("min_chunk", min_chunk, 0),
        ("max_chunk", max_chunk, max(min_chunk, 1)),
    ):
        if value is not None and value < least:
            raise ValueError(f"{option} {value!r} must be {least} or more")
    app = RegistryApp(url_map if dialect == OCI_1_1 else RegistryMap(dialect))
    views = _Views(storage, page_size, min_chunk, max_chunk)
    taken = {(route.endpoint, method) for route in dialect.routes for method in route.methods or ()}
    for endpoint, method, view in (
        (RouteName.MANIFEST, "GET", views.get_manifest),
        (RouteName.MANIFEST, "PUT", views.put_manifest),
        (RouteName.MANIFEST, "DELETE", views.delete_manifest),
        (RouteName.BLOB, "GET", views.get_blob),
        (RouteName.BLOB, "DELETE", views.delete_blob),
        (RouteName.BLOB_UPLOAD, "POST", views.begin_upload),
        (RouteName.BLOB_UPLOAD_CHUNK, "GET", views.get_upload),
        (RouteName.BLOB_UPLOAD_CHUNK, "PATCH", views.append_to_upload),
        (RouteName.BLOB_UPLOAD_CHUNK, "PUT", views.finish_upload),
        (RouteName.BLOB_UPLOAD_CHUNK, "DELETE", views.cancel_upload),
        (RouteName.TAGS, "GET", views.list_tags),
        (RouteName.CATALOG, "GET", views.list_repositories),
        (RouteName.REFERRERS, "GET", views.list_referrers),
    ):
        if (endpoint, method) in taken:
            app.view(endpoint, method)(_answering(endpoint, view))
    return app


View = Callable[..., Response]


def _answering(endpoint: str, view: View) -> View:
    """The view, with the errors of the storage turned into those of the registry."""

    @wraps(view)
    def answer(request: RegistryRequest, **values: str) -> Response:
        if len(values.get("name", "")) > MAX_NAME:
            raise errors.NameInvalid(f"repository name must have at most {MAX_NAME} characters")
        try:
            return view(request, **values)
        except Missing:
            raise errors.MISSING[endpoint](detail=values) from None
        except Conflict:
            raise errors.RangeInvalid("another request has written this chunk") from None
        except DigestMismatch as error:
            raise errors.DigestInvalid(str(error)) from None
        except OSError as error:
            one_line = " ".join(str(error).split())
            _log.error("%s %r: the storage has failed: %s", request.method, request.path, one_line)
            raise errors.Unavailable from error

    return answer


class _Views:
    def __init__(
        self, storage: Storage, page_size: int | None, min_chunk: int, max_chunk: int | None
    ) -> None:
        self.storage = storage
        self.page_size = page_size
        self.min_chunk = min_chunk
        self.max_chunk = max_chunk
        self.with_short_chunk: set[str] = set()
        """The uploads whose latest chunk has fewer than `min_chunk` bytes."""

    # Manifests.

    def get_manifest(
        self, request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        digest = registered(digest) if digest else self.storage.tag(name, tag)
        return manifest_response(request, digest, self.storage.manifest(name, digest))

    def put_manifest(
        self, request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        content = b"".join(_body_of(request, MAX_MANIFEST))
        parsed = parse_manifest(content)
        media_type = _media_type_of(request, parsed)
        subject = _subject_of(parsed)
        blobs = list(dict.fromkeys(_blobs_of(parsed)))
        actual = digest_of(content, _registered_algorithm(digest) if digest else "sha256")
        if digest not in ("", actual):
            raise errors.DigestInvalid(detail={"digest": digest, "actual": actual})
        tags = [tag] if tag else _tags_to_give(request)
        descriptor = _descriptor(parsed, media_type, actual, len(content)) if subject else b""
        try:
            self.storage.put_manifest(
                name,
                actual,
                Manifest(media_type, content),
                blobs=list(map(registered, blobs)),
                tags=tags,
                subject=subject,
                descriptor=descriptor,
            )
        except Missing as missing:
            raise errors.ManifestBlobUnknown(detail={"digest": str(missing)}) from None
        response = Response(status=201)
        response.location = request.urls.manifest(name, actual)
        response.headers["Docker-Content-Digest"] = actual
        for one in tags if digest else []:
            response.headers.add("OCI-Tag", one)
        if subject:
            response.headers["OCI-Subject"] = subject
        return response

    def delete_manifest(
        self, request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        if tag:
            self.storage.delete_tag(name, tag)
        else:
            self.storage.delete_manifest(name, registered(digest))
        return Response(status=202)

    # Blobs.

    def get_blob(self, request: RegistryRequest, name: str, digest: str) -> Response:
        size = self.storage.blob_size(name, registered(digest))
        read = partial(self.storage.read_blob, name, digest)
        return blob_response(request, digest, size, read)

    def delete_blob(self, request: RegistryRequest, name: str, digest: str) -> Response:
        self.storage.delete_blob(name, registered(digest))
        return Response(status=202)

    # Uploads.

    def begin_upload(self, request: RegistryRequest, name: str) -> Response:
        mount, source = request.args.get("mount", ""), request.args.get("from", "")
        if self._mounted(name, mount, source):
            return _created(request, name, mount)
        digest = request.args.get("digest")
        if digest is not None:
            self.storage.put_blob(name, _digest_of_query(digest), _body_of(request))
            return _created(request, name, digest)
        _registered_algorithm(request.args.get("digest-algorithm", "sha256"))
        response = _upload_status(request, name, self.storage.begin_upload(name), 202, 0)
        if self.min_chunk:
            response.headers["OCI-Chunk-Min-Length"] = str(self.min_chunk)
        return response

    def _mounted(self, name: str, digest: str, source: str) -> bool:
        """Mount the blob if possible; whether it was. Without a source, access was not checked."""
        if not (DIGEST.fits(digest) and NAME.fits(source) and len(source) <= MAX_NAME):
            return False
        try:
            self.storage.mount_blob(name, registered(digest), source)
        except Missing:
            return False
        return True

    def get_upload(self, request: RegistryRequest, name: str, uuid: str) -> Response:
        return _upload_status(request, name, uuid, 204, self.storage.upload_size(name, uuid))

    def append_to_upload(self, request: RegistryRequest, name: str, uuid: str) -> Response:
        start = self.storage.upload_size(name, uuid)
        blocks = self._chunk(request, uuid, start, self.max_chunk)
        size = self.storage.append_to_upload(name, uuid, start, blocks)
        if 0 < size - start < self.min_chunk:
            self.with_short_chunk.add(uuid)
        return _upload_status(request, name, uuid, 202, size)

    def finish_upload(self, request: RegistryRequest, name: str, uuid: str) -> Response:
        digest = _digest_of_query(request.args.get("digest", ""))
        try:
            start = self.storage.upload_size(name, uuid)
            blocks = self._chunk(request, uuid, start)
            self.storage.finish_upload(name, uuid, start, blocks, digest)
        except Missing:
            # Another request has ended the upload. If it has made the same blob, both succeed.
            self.storage.blob_size(name, digest)
        self.with_short_chunk.discard(uuid)
        return _created(request, name, digest)

    def cancel_upload(self, request: RegistryRequest, name: str, uuid: str) -> Response:
        self.storage.cancel_upload(name, uuid)
        self.with_short_chunk.discard(uuid)
        return Response(status=204)

    def _chunk(
        self, request: RegistryRequest, uuid: str, start: int, most: int | None = None
    ) -> Iterator[bytes]:
        """The blocks of a request's body, which must begin at `start` of an upload."""
        blocks = _of_size(_body_of(request, most), _announced_size(request, start))
        return _refused(blocks, self.min_chunk) if uuid in self.with_short_chunk else blocks

    # Lists.

    def list_tags(self, request: RegistryRequest, name: str) -> Response:
        n, last = parse_page(request.args)
        tags, more = self._page(self.storage.tags(name, last or ""), n)
        response = _json({"name": name, "tags": tags})
        if more:
            response.headers["Link"] = next_link(request.urls.tags(name, n=n, last=tags[-1]))
        return response

    def list_repositories(self, request: RegistryRequest) -> Response:
        n, last = parse_page(request.args)
        names, more = self._page(self.storage.repositories(last or ""), n)
        response = _json({"repositories": names})
        if more:
            response.headers["Link"] = next_link(request.urls.catalog(n=n, last=names[-1]))
        return response

    def _most(self, n: int | None) -> int | None:
        """The maximum number of results in a page if the client wants `n`."""
        return min((one for one in (n, self.page_size) if one is not None), default=None)

    def _page(self, names: Iterator[str], n: int | None) -> tuple[list[str], bool]:
        """The names of a page, and whether there are more."""
        page = list(islice(names, self._most(n)))
        more = next(names, None) is not None
        return page, more and bool(page)

    def list_referrers(self, request: RegistryRequest, name: str, digest: str) -> Response:
        n, last = parse_page(request.args)
        most = self._most(n)
        wanted = [one for one in request.args.getlist("artifactType") if one]
        descriptors = (
            self.storage.referrers(name, digest, last or "") if _is_registered(digest) else iter(())
        )
        page: list[bytes] = []
        read, more = 0, False  # the bytes read, even if not shown: this limits what a request costs
        for position, (referrer, descriptor) in enumerate(descriptors):
            read += len(descriptor) + 1
            if len(page) == most or (position and read > _MAX_DESCRIPTORS):
                more = most != 0
                break
            last = referrer
            if not wanted or json.loads(descriptor).get("artifactType") in wanted:
                page.append(descriptor)
        body = b'{"schemaVersion":2,"mediaType":"%b","manifests":[%b]}' % (
            IMAGE_INDEX.encode(),
            b",".join(page),
        )
        response = Response(body, content_type=IMAGE_INDEX)
        if wanted:
            response.headers["OCI-Filters-Applied"] = "artifactType"
        if more:
            url = request.urls.referrers(name, digest, artifact_type=wanted, n=n, last=last)
            response.headers["Link"] = next_link(url)
        return response


def manifest_response(request: RegistryRequest, digest: str, manifest: Manifest) -> Response:
    """The answer to a GET or a HEAD of a manifest, with what its conditions make of it.

    A proxy answers by it too, with a manifest that it has kept.

    >>> from werkzeug.test import create_environ
    >>> request = RegistryRequest(create_environ("/v2/a/manifests/v1"))
    >>> content = b'{"schemaVersion": 2}'
    >>> response = manifest_response(request, digest_of(content), Manifest(IMAGE_MANIFEST, content))
    >>> response.status, response.content_type
    ('200 OK', 'application/vnd.oci.image.manifest.v1+json')
    """
    response = Response(manifest.content, content_type=manifest.media_type)
    response.headers["Docker-Content-Digest"] = digest
    return _conditional(request, response, digest)


def blob_response(
    request: RegistryRequest,
    digest: str,
    size: int,
    read: Callable[[int, int], Iterable[bytes]],
) -> Response:
    """The answer to a GET or a HEAD of a blob, with what its conditions and its range make of it.

    :param size: how many bytes the blob has.
    :param read: gives its bytes from a start to before an end, as `Storage.read_blob` does. It is
        called at most once, and for a HEAD not at all.

    >>> from werkzeug.test import create_environ
    >>> content = b"some content"
    >>> request = RegistryRequest(create_environ("/", headers={"Range": "bytes=5-"}))
    >>> response = blob_response(request, digest_of(content), 12, lambda *part: [content[slice(*part)]])
    >>> response.status, response.headers["Content-Range"], response.data
    ('206 PARTIAL CONTENT', 'bytes 5-11/12', b'content')

    Raises `errors.RangeInvalid` if the range is not within the blob.
    """  # noqa: E501
    wanted = None if request.method == "HEAD" else _wanted_range(request, digest, size)
    start, end = wanted or (0, size)
    response = Response(status=206 if wanted else 200, content_type="application/octet-stream")
    response.content_length = end - start
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["Docker-Content-Digest"] = digest
    response = _conditional(request, response, digest)
    if response.status_code == 206:
        response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if request.method == "GET" and response.status_code != 304:
        content = read(start, end)
        if isinstance(content, BlobFile):
            response.response = wrap_file(request.environ, content.file, BLOCK)
            response.direct_passthrough = True
        else:
            response.response = content
    return response


def _json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content), content_type="application/json")


def _created(request: RegistryRequest, name: str, digest: str) -> Response:
    response = Response(status=201)
    response.location = request.urls.blob(name, digest)
    response.headers["Docker-Content-Digest"] = digest
    return response


def _upload_status(
    request: RegistryRequest, name: str, upload_id: str, status: int, size: int
) -> Response:
    response = Response(status=status)
    response.location = request.urls.blob_upload_chunk(name, upload_id)
    response.headers["Range"] = upload_range(size)
    response.headers["Docker-Upload-UUID"] = upload_id
    return response


def _conditional(request: RegistryRequest, response: Response, digest: str) -> Response:
    response.set_etag(digest)
    response.make_conditional(request)
    if response.status_code == 412:
        raise PreconditionFailed
    return response


def _body_of(request: RegistryRequest, most: int | None = None) -> Iterator[bytes]:
    """The body in blocks, and an error if it breaks off or has more than `most` bytes."""
    announced = request.environ.get("CONTENT_LENGTH")
    received = 0
    while block := _read(request):
        received += len(block)
        if most is not None and received > most:
            raise RequestEntityTooLarge(f"the content must have at most {most} bytes")
        yield block
    if announced and int(announced) != received:
        raise ClientDisconnected


def _read(request: RegistryRequest) -> bytes:
    try:
        return request.stream.read(BLOCK)
    except HTTPException:
        raise
    except Exception as error:  # a timeout, a reset, or what a server raises for a malformed chunk
        raise ClientDisconnected from error


def _of_size(blocks: Iterable[bytes], size: int | None) -> Iterator[bytes]:
    """Yield the blocks, and then raise an error if they do not have the announced size."""
    received = 0
    for block in blocks:
        received += len(block)
        yield block
    if size not in (None, received):
        raise errors.SizeInvalid


def _refused(blocks: Iterable[bytes], min_chunk: int) -> Iterator[bytes]:
    """Raise an error if there are any blocks."""
    for _ in blocks:
        raise errors.SizeInvalid(f"a chunk before the last must have {min_chunk} bytes or more")
    yield from ()


def _announced_size(request: RegistryRequest, start: int) -> int | None:
    """The size that the ``Content-Range`` of a chunk announces, which must begin at `start`."""
    header = request.headers.get("Content-Range")
    if header is None:
        return None
    try:
        found, size = parse_content_range(header)
    except ValueError as error:
        raise errors.RangeInvalid(str(error)) from None
    if found != start:
        raise errors.RangeInvalid(detail={"expected start": start})
    return size


def _wanted_range(request: RegistryRequest, digest: str, size: int) -> tuple[int, int] | None:
    """The range that a request wants; `None` for the whole blob.

    (RFC 9110, section 14.2: several ranges, and a range in other units, may be ignored.)
    """
    found = re.fullmatch("bytes=([0-9]{0,18})-([0-9]{0,18})", request.headers.get("Range", ""))
    if_range = request.headers.get("If-Range")
    if not found or found[0] == "bytes=-" or if_range not in (None, f'"{digest}"'):
        return None
    if not found[1]:  # so many bytes at the end
        start, end = max(size - int(found[2]), 0), size
    else:
        start, end = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
    if start >= end:
        raise errors.RangeInvalid("the range is not within the blob", length=size)
    return start, end


# Digests. The routes accept any algorithm. A storage only gets digests that can be verified.


def _is_registered(digest: str) -> bool:
    return digest.partition(":")[0] in REGISTERED_ALGORITHMS


def registered(digest: str) -> str:
    """The digest, if its algorithm is registered, so that a registry can have its content.

    >>> registered(digest_of(b""))[:14]
    'sha256:e3b0c44'

    Raises `Missing` for any other algorithm.
    """
    if not _is_registered(digest):
        raise Missing(digest)
    return digest


def _registered_algorithm(digest: str) -> str:
    """The algorithm of a digest, if the registry can use it."""
    algorithm = digest.partition(":")[0]
    if algorithm not in REGISTERED_ALGORITHMS:
        raise errors.DigestInvalid(f"digest algorithm {algorithm[:64]!r} is not supported")
    return algorithm


def _digest_of_query(digest: str) -> str:
    message = DIGEST.complaint(digest)
    if message is not None:
        raise errors.DigestInvalid(message)
    _registered_algorithm(digest)
    return digest


# Manifests.


class TooManyTags(errors.TagInvalid):
    code: int = 414  # pyright: ignore[reportIncompatibleVariableOverride]


def _tags_to_give(request: RegistryRequest) -> list[str]:
    """The tags in the query of a request that pushes a manifest by its digest."""
    tags = list(dict.fromkeys(request.args.getlist("tag")))
    if len(tags) > MAX_TAGS:
        raise TooManyTags(f"a manifest is given at most {MAX_TAGS} tags at once")
    for tag in tags:
        message = TAG.complaint(tag)
        if message is not None:
            raise errors.TagInvalid(message)
    return tags


def parse_manifest(content: bytes) -> dict[str, Any]:
    """What a manifest says. Raises `errors.ManifestInvalid` if it is not a JSON object.

    >>> parse_manifest(b'{"schemaVersion": 2}')
    {'schemaVersion': 2}
    """
    try:
        manifest = json.loads(content.decode(), parse_constant=_no_json)
    except (ValueError, RecursionError):
        raise errors.ManifestInvalid("the manifest is not JSON") from None
    if not isinstance(manifest, dict):
        raise errors.ManifestInvalid("the manifest is not a JSON object")
    return manifest


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")  # though Python reads NaN and Infinity


def manifest_type(content_type: str | None) -> str:
    """The media type of a manifest, from its ``Content-Type``; the OCI image manifest's if none.

    >>> manifest_type("application/vnd.oci.image.index.v1+json; charset=utf-8")
    'application/vnd.oci.image.index.v1+json'

    Raises `errors.ManifestInvalid` for one that is not of JSON: a browser might show it as a page.
    """
    media_type = (content_type or "").partition(";")[0].strip() or IMAGE_MANIFEST
    if not _MEDIA_TYPE.fullmatch(media_type) or not media_type.lower().endswith(_JSON_TYPES):
        raise errors.ManifestInvalid(
            f"media type {media_type!r:.100} must be application/json or application/…+json"
        )
    return media_type


def _media_type_of(request: RegistryRequest, manifest: dict[str, Any]) -> str:
    """The type of a manifest: what the request says, which the manifest must not contradict."""
    own = manifest.get("mediaType") or ""
    sent = (request.content_type or "").partition(";")[0].strip()
    media_type = manifest_type(sent or (own if isinstance(own, str) else ""))
    if own and (not isinstance(own, str) or own.lower() != media_type.lower()):
        raise errors.ManifestInvalid(
            f"mediaType {own!r:.100} must be the Content-Type, {media_type!r:.100}"
        )
    return media_type


def _digest_of_descriptor(descriptor: Any) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or not DIGEST.fits(digest):
        raise errors.ManifestInvalid("the manifest has a descriptor without a valid digest")
    return digest


def _blobs_of(manifest: dict[str, Any]) -> Iterator[str]:
    """The digests of the blobs that must be there before the manifest is pushed."""
    layers = manifest.get("layers") or []
    if not isinstance(layers, list):
        raise errors.ManifestInvalid("the manifest's layers are not a list")
    for descriptor in [manifest["config"], *layers] if manifest.get("config") else layers:
        digest = _digest_of_descriptor(descriptor)
        media_type = str(descriptor.get("mediaType"))
        if "nondistributable" not in media_type and ".foreign." not in media_type:
            yield digest


def _subject_of(manifest: dict[str, Any]) -> str | None:
    """The digest of the subject, if the registry keeps referrers for such a digest."""
    subject = _digest_of_descriptor(manifest["subject"]) if manifest.get("subject") else ""
    return subject if _is_registered(subject) else None


def _descriptor(manifest: dict[str, Any], media_type: str, digest: str, size: int) -> bytes:
    """The entry of a manifest in a list of referrers (distribution-spec 1.1, Listing Referrers)."""
    descriptor: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": size}
    config = manifest.get("config")
    config_type = config.get("mediaType") if isinstance(config, dict) else None
    artifact_type = manifest.get("artifactType") or config_type
    if isinstance(artifact_type, str):
        descriptor["artifactType"] = artifact_type
    annotations = manifest.get("annotations")
    if annotations and _is_map_of_strings(annotations):
        descriptor["annotations"] = annotations
    text = json.dumps(descriptor, ensure_ascii=False, separators=(",", ":"))
    encoded = text.encode(errors="backslashreplace")  # a lone surrogate becomes a JSON escape
    if len(encoded) >= _MAX_DESCRIPTORS:
        raise RequestEntityTooLarge("the manifest's descriptor does not fit a list of referrers")
    return encoded


def _is_map_of_strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
