"""A container registry in one file, on the routes of registry_routes.

    python examples/registry.py --host 127.0.0.1 --port 5000 --storage ./registry-data

It is the whole of the distribution-spec 1.1: blobs, whole or in chunks, mounted across
repositories; manifests, tags, referrers; listing and deletion. What it keeps is in a directory or
in an object store (``--storage s3://bucket/prefix``), not in the process: ``--workers N``
serve it together, on one machine or on several. It has no authentication and no TLS: put it behind
something that has, or keep it on your own machine.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from gunicorn.app.base import BaseApplication
from gunicorn.http.errors import ParseException
from obstore import open_writer
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, from_url
from werkzeug.exceptions import ClientDisconnected, PreconditionFailed, RequestEntityTooLarge
from werkzeug.serving import make_server
from werkzeug.wrappers import Response
from werkzeug.wsgi import wrap_file

from registry_routes import RegistryApp, RegistryRequest, errors
from registry_routes.digests import DigestMismatch, Verifier, digest_of
from registry_routes.grammar import DIGEST, NAME, REGISTERED_ALGORITHMS, TAG
from registry_routes.headers import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    parse_content_range,
    upload_range,
)
from registry_routes.paging import next_link, paginate, parse_page

# RFC 6838, section 4.2; without parameters, as it is for manifests.
_RESTRICTED_NAME = "[a-zA-Z0-9][a-zA-Z0-9!#$&^_.+-]{0,126}"
MEDIA_TYPE = re.compile(f"{_RESTRICTED_NAME}/{_RESTRICTED_NAME}")
MAX_MANIFEST = 4 * 1024 * 1024
MAX_NAME = 255  # what most clients hold to; it also keeps every path within a filesystem's limits
MAX_TAGS = 50  # that one manifest may be given at once: each is a header of the response
BLOCK = 1024 * 1024
PART = 5 * 1024 * 1024  # of an object that is written, the least of S3; two are held in memory
MAX_COPY = 4 * 1024 * 1024 * 1024  # what S3 copies in one request is a little more
MAX_UNREAD = 256 * 1024 * 1024  # of a body that nobody wanted

Blocks = Iterable[bytes]


class Storage:
    """Repositories in an object store.

    ``blobs/<algorithm>/<hash>`` are the contents, and under ``repositories/<name>/``:

    - ``_blobs/<algorithm>/<hash>``, empty: the repository has this blob;
    - ``_manifests/<algorithm>/<hash>``: a manifest, its media type on a first line;
    - ``_tags/<tag>``: the digest that it points at;
    - ``_referrers/<subject's algorithm>/<hash>/<algorithm>/<hash>``, empty;
    - ``_uploads/<id>/``: ``begun``, empty; ``data/<random>``, what a request has brought; and
      ``chunks/<start>``, which says which of these goes there.

    No component of a name starts with "_", and no value that the routes let through can leave its
    place. An object appears when it is whole, and of two requests that create ``chunks/<start>``
    one succeeds. What is pointed at is there before what points at it: a process may be killed at
    any moment.
    """

    def __init__(self, store: Any) -> None:
        self.store = store

    @classmethod
    def at(cls, place: str | os.PathLike[str]) -> "Storage":
        """In a directory, or at a URL that obstore knows: memory, S3, GCS, Azure."""
        place = os.fspath(place)
        if "://" in place:
            return cls(MemoryStore() if place.startswith("memory:") else from_url(place))
        return cls(LocalStore(place, mkdir=True))

    def _read(self, path: str) -> bytes | None:
        try:
            return bytes(self.store.get(path).bytes())
        except FileNotFoundError:
            return None

    def _exists(self, path: str) -> bool:
        try:
            self.store.head(path)
        except FileNotFoundError:
            return False
        return True

    def _list(self, prefix: str) -> Iterator[str]:
        """The rest of each path under a prefix that ends in a slash."""
        for objects in self.store.list(prefix):
            for one in objects:
                yield one["path"].removeprefix(prefix)

    def _delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.store.delete(path)

    def _write_blocks(self, path: str, blocks: Blocks) -> None:
        """Write a stream; where it raises, nothing appears."""
        writer = open_writer(self.store, path, buffer_size=PART, max_concurrency=1)
        for block in blocks:
            writer.write(block)
        writer.close()

    # Blobs.

    def has_blob(self, name: str, digest: str) -> bool:
        return is_supported(digest) and self._exists(_path(name, "_blobs", digest))

    def blob_size(self, name: str, digest: str) -> int:
        if not self.has_blob(name, digest):
            raise errors.BlobUnknown(detail={"digest": digest})
        return int(self.store.head(f"blobs/{_digest_path(digest)}")["size"])

    def blob(self, digest: str, start: int, end: int) -> Iterator[bytes]:
        if start == end:  # which is no range that an object store knows
            return iter(())
        options: Any = {"range": (start, end)}
        found = self.store.get(f"blobs/{_digest_path(digest)}", options=options)
        return map(bytes, found.stream(min_chunk_size=BLOCK))

    def file(self, digest: str, start: int) -> IO[bytes] | None:
        """The content from `start` on as a file, where it is one."""
        if not isinstance(self.store, LocalStore):
            return None
        path = f"{self.store.prefix}/blobs/{_digest_path(digest)}"
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - the response closes it
        file.seek(start)
        return file

    def has_content(self, digest: str) -> bool:
        return self._exists(f"blobs/{_digest_path(digest)}")

    def add_blob(self, name: str, digest: str) -> None:
        """Say that a repository has a blob whose content is there."""
        self.store.put(_path(name, "_blobs", digest), b"")

    def delete_blob(self, name: str, digest: str) -> None:
        """Take a blob from a repository. (Its content stays: others may have it, or get it now.)"""
        if not self.has_blob(name, digest):
            raise errors.BlobUnknown(detail={"digest": digest})
        self._delete(_path(name, "_blobs", digest))

    def write_blob(self, name: str, digest: str, blocks: Blocks) -> None:
        """Keep a blob; raises `errors.DigestInvalid` if it is not the content of `digest`."""
        self._write_blocks(f"blobs/{_digest_path(digest)}", _checked(digest, blocks))
        self.add_blob(name, digest)

    # Uploads.

    def begin_upload(self, name: str) -> str:
        upload_id = uuid.uuid4().hex
        self.store.put(f"{self._upload(name, upload_id)}begun", b"")
        return upload_id

    def _upload(self, name: str, upload_id: str) -> str:
        if not re.fullmatch("[0-9a-f]{32}", upload_id):  # the form of the ids above
            raise errors.BlobUploadUnknown
        return f"{_path(name, '_uploads')}{upload_id}/"

    def chunks(self, name: str, upload_id: str) -> list[dict[str, Any]]:
        """What an upload consists of so far, in order."""
        upload = self._upload(name, upload_id)
        if not self._exists(f"{upload}begun"):
            raise errors.BlobUploadUnknown
        chunks = []
        for start in sorted(self._list(f"{upload}chunks/")):
            content = self._read(f"{upload}chunks/{start}")
            if content is not None:  # it is not being deleted
                chunks.append(json.loads(content))
        return chunks

    def append(
        self, name: str, upload_id: str, blocks: Blocks, content_range: str | None
    ) -> list[dict[str, Any]]:
        """Add a chunk to an upload; what it consists of then. One that fails leaves no trace."""
        chunks = self.chunks(name, upload_id)
        return self._append(name, upload_id, chunks, blocks, content_range)

    def _append(
        self,
        name: str,
        upload_id: str,
        chunks: list[dict[str, Any]],
        blocks: Blocks,
        content_range: str | None,
    ) -> list[dict[str, Any]]:
        start = upload_size(chunks)
        size = _size_of(content_range, start)
        upload = self._upload(name, upload_id)
        data = f"{upload}data/{uuid.uuid4().hex}"
        hashed, counted = hashlib.sha256(), 0

        def counting() -> Iterator[bytes]:
            nonlocal counted
            for block in blocks:
                hashed.update(block)
                counted += len(block)
                yield block

        try:
            self._write_blocks(data, counting())
            if size not in (None, counted):
                raise errors.SizeInvalid
            if not counted:  # it would stand where the next one belongs
                self._delete(data)
                return chunks
            chunk = {
                "start": start,
                "size": counted,
                "data": data,
                "sha256": hashed.hexdigest(),
            }
            path = f"{upload}chunks/{start:020}"
            self.store.put(path, json.dumps(chunk).encode(), mode="create")
            if not self._exists(f"{upload}begun"):  # cancelled meanwhile
                self._delete_upload(name, upload_id)
                raise errors.BlobUploadUnknown
        except BaseException as error:
            self._delete(data)
            if isinstance(error, AlreadyExistsError):
                raise errors.RangeInvalid("another request has written this chunk") from None
            if isinstance(error, OSError | BaseError) and not self._exists(f"{upload}begun"):
                raise errors.BlobUploadUnknown from None  # it was cancelled under our hands
            raise
        return [*chunks, chunk]

    def finish_upload(
        self, name: str, upload_id: str, blocks: Blocks, content_range: str | None, digest: str
    ) -> None:
        """Add the last chunk, which may be empty, and keep the whole as the blob `digest`."""
        try:
            self._finish_upload(name, upload_id, blocks, content_range, digest)
        except (FileNotFoundError, errors.BlobUploadUnknown):
            # Another request has ended the upload. If it was the same one, both have succeeded.
            self._delete_upload(name, upload_id)
            if not self.has_blob(name, digest):
                raise errors.BlobUploadUnknown from None

    def _finish_upload(
        self, name: str, upload_id: str, blocks: Blocks, content_range: str | None, digest: str
    ) -> None:
        before = self.chunks(name, upload_id)
        chunks = self._append(name, upload_id, before, blocks, content_range)
        try:
            is_one = len(chunks) == 1 and chunks[0]["size"] <= MAX_COPY
            if is_one and digest == f"sha256:{chunks[0]['sha256']}":
                if not self.has_content(digest):
                    self.store.copy(chunks[0]["data"], f"blobs/{_digest_path(digest)}")
                self.add_blob(name, digest)
            else:
                self.write_blob(name, digest, self._content(chunks))
        except errors.DigestInvalid:
            for chunk in chunks[len(before) :]:
                self._delete(f"{self._upload(name, upload_id)}chunks/{chunk['start']:020}")
                self._delete(chunk["data"])
            raise
        self._delete_upload(name, upload_id)

    def _content(self, chunks: list[dict[str, Any]]) -> Iterator[bytes]:
        for chunk in chunks:
            yield from map(bytes, self.store.get(chunk["data"]).stream(min_chunk_size=BLOCK))

    def cancel_upload(self, name: str, upload_id: str) -> None:
        self.chunks(name, upload_id)
        self._delete_upload(name, upload_id)

    def _delete_upload(self, name: str, upload_id: str) -> None:
        upload = self._upload(name, upload_id)
        self._delete(f"{upload}begun")
        for path in list(self._list(upload)):
            self._delete(upload + path)
        if isinstance(self.store, LocalStore):  # it has directories, which would pile up
            shutil.rmtree(f"{self.store.prefix}/{upload}", ignore_errors=True)

    # Manifests and tags.

    def manifest(self, name: str, digest: str) -> tuple[str, bytes]:
        """Media type and content."""
        found = self._read(_path(name, "_manifests", digest)) if is_supported(digest) else None
        if found is None:
            raise errors.ManifestUnknown(detail={"digest": digest})
        media_type, _, content = found.partition(b"\n")
        return media_type.decode("latin-1"), content

    def write_manifest(
        self, name: str, digest: str, media_type: str, content: bytes, subject: str | None
    ) -> None:
        if subject:  # before the manifest: without it, it is not shown
            self.store.put(_path(name, "_referrers", subject) + f"/{_digest_path(digest)}", b"")
        path = _path(name, "_manifests", digest)
        self.store.put(path, media_type.encode("latin-1") + b"\n" + content)

    def write_tag(self, name: str, tag: str, digest: str) -> None:
        self.store.put(f"{_path(name, '_tags')}{tag}", digest.encode())

    def delete_manifest(self, name: str, digest: str) -> None:
        """Delete a manifest, and the tags that point at it: before it, and those made meanwhile."""
        self.manifest(name, digest)
        self._delete_tags_of(name, digest)
        self._delete(_path(name, "_manifests", digest))
        self._delete_tags_of(name, digest)

    def _delete_tags_of(self, name: str, digest: str) -> None:
        tags = _path(name, "_tags")
        for tag in list(self._list(tags)):
            if self._read(tags + tag) == digest.encode():
                self._delete(tags + tag)

    def has_manifest(self, name: str, digest: str) -> bool:
        return self._exists(_path(name, "_manifests", digest))

    def tags(self, name: str) -> list[str]:
        tags = list(self._list(_path(name, "_tags")))
        # When all is deleted but a blob, there still is a repository, with no tags.
        if not tags and not any(
            any(self._list(_path(name, one))) for one in ("_manifests", "_blobs")
        ):
            raise errors.NameUnknown(detail={"name": name})
        return tags

    def tag(self, name: str, tag: str) -> str:
        """The digest that a tag points at."""
        digest = self._read(f"{_path(name, '_tags')}{tag}")
        if digest is None:
            raise errors.ManifestUnknown(detail={"tag": tag})
        return digest.decode()

    def delete_tag(self, name: str, tag: str) -> None:
        self.tag(name, tag)
        self._delete(f"{_path(name, '_tags')}{tag}")

    def referrers(self, name: str, subject: str) -> Iterator[tuple[str, str, bytes]]:
        """Digest, media type and content of each manifest whose subject is this one."""
        if not is_supported(subject):
            return
        for path in self._list(f"{_path(name, '_referrers', subject)}/"):
            digest = path.replace("/", ":")
            with suppress(errors.ManifestUnknown):  # deleted, or not there yet
                yield digest, *self.manifest(name, digest)

    def repositories(self, under: str = "repositories/") -> Iterator[str]:
        for prefix in self.store.list_with_delimiter(under)["common_prefixes"]:
            if prefix.endswith("/_manifests"):
                if any(self._list(f"{prefix}/")):
                    yield under.removeprefix("repositories/").removesuffix("/")
            elif not prefix.removeprefix(under).startswith("_"):
                yield from self.repositories(f"{prefix}/")


SUPPORTED_ALGORITHMS = REGISTERED_ALGORITHMS.keys() & hashlib.algorithms_available


def is_supported(digest: str) -> bool:
    return digest.partition(":")[0] in SUPPORTED_ALGORITHMS


def _digest_path(digest: str) -> str:
    """A digest as a path; only of algorithms whose digests we can check."""
    algorithm, _, encoded = digest.partition(":")
    if not is_supported(digest):
        raise errors.DigestInvalid(f"digest algorithm {algorithm[:64]!r} is not supported")
    return f"{algorithm}/{encoded}"


def _path(name: str, kind: str, digest: str | None = None) -> str:
    if len(name) > MAX_NAME:
        raise errors.NameInvalid(f"repository name must have at most {MAX_NAME} characters")
    return f"repositories/{name}/{kind}/{'' if digest is None else _digest_path(digest)}"


def _checked(digest: str, blocks: Blocks) -> Iterator[bytes]:
    """The blocks, with an error at their end if they are not the content of `digest`."""
    verifier = Verifier(digest)
    for block in blocks:
        verifier.update(block)
        yield block
    try:
        verifier.verify()
    except DigestMismatch as error:
        raise errors.DigestInvalid(str(error), detail={"digest": digest}) from None


def _size_of(content_range: str | None, start: int) -> int | None:
    """The size that a chunk's ``Content-Range`` announces, which must begin at `start`."""
    if content_range is None:
        return None
    try:
        found, size = parse_content_range(content_range)
    except ValueError as error:
        raise errors.RangeInvalid(str(error)) from None
    if found != start:
        raise errors.RangeInvalid(detail={"expected start": start})
    return size


def upload_size(chunks: list[dict[str, Any]]) -> int:
    return chunks[-1]["start"] + chunks[-1]["size"] if chunks else 0


def _body_of(request: RegistryRequest) -> Iterator[bytes]:
    """The body in blocks; one that breaks off is an error, not an end."""
    received = 0
    try:
        while block := request.stream.read(BLOCK):
            received += len(block)
            yield block
    except (OSError, ParseException) as error:  # a time-out, a reset, a chunk that is none
        raise ClientDisconnected from error
    announced = request.environ.get("CONTENT_LENGTH")
    if announced and int(announced) != received:
        raise ClientDisconnected


def make_app(storage: Storage) -> RegistryApp:
    """The registry as a WSGI application: a view for each endpoint and method."""
    app = RegistryApp()

    # Manifests.

    @app.view("manifest", "GET")
    def get_manifest(
        request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        digest = digest or storage.tag(name, tag)
        media_type, content = storage.manifest(name, digest)
        response = Response(content, content_type=media_type)
        response.headers["Docker-Content-Digest"] = digest
        return _conditional(request, response, digest)

    @app.view("manifest", "PUT")
    def put_manifest(
        request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        content = b""
        for block in _body_of(request):
            content += block
            if len(content) > MAX_MANIFEST:
                raise RequestEntityTooLarge
        manifest = _parsed_manifest(content)
        subject = _subject_of(manifest)
        for blob in _blobs_of(manifest):
            if not storage.has_blob(name, blob):
                raise errors.ManifestBlobUnknown(detail={"digest": blob})
        algorithm = digest.partition(":")[0] or "sha256"
        _supported_algorithm(algorithm)
        actual = digest_of(content, algorithm)
        if digest not in ("", actual):
            raise errors.DigestInvalid(detail={"digest": digest, "actual": actual})
        tags = [tag] if tag else _tags_to_give(request)
        sent_type = (request.content_type or "").partition(";")[0].strip()
        media_type = sent_type or manifest.get("mediaType") or IMAGE_MANIFEST
        if not isinstance(media_type, str) or not MEDIA_TYPE.fullmatch(media_type):
            raise errors.ManifestInvalid("the manifest's media type is malformed")
        storage.write_manifest(name, actual, media_type, content, subject)
        for one in tags:
            storage.write_tag(name, one, actual)
        if tags and not storage.has_manifest(name, actual):  # deleted meanwhile: the tags were not
            storage.write_manifest(name, actual, media_type, content, subject)
        response = Response(status=201)
        response.location = request.urls.manifest(name, actual)
        response.headers["Docker-Content-Digest"] = actual
        for one in tags if digest else []:
            response.headers.add("OCI-Tag", one)
        if subject:
            response.headers["OCI-Subject"] = subject
        return response

    @app.view("manifest", "DELETE")
    def delete_manifest(
        request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        if tag:
            storage.delete_tag(name, tag)
        else:
            storage.delete_manifest(name, digest)
        return Response(status=202)

    # Blobs.

    @app.view("blob", "GET")
    def get_blob(request: RegistryRequest, name: str, digest: str) -> Response:
        size = storage.blob_size(name, digest)
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
            file = storage.file(digest, start) if end == size else None
            if file is None:
                response.response = storage.blob(digest, start, end)
            else:  # the server may hand it to the kernel
                response.response = wrap_file(request.environ, file, BLOCK)
                response.direct_passthrough = True
        return response

    @app.view("blob", "DELETE")
    def delete_blob(request: RegistryRequest, name: str, digest: str) -> Response:
        storage.delete_blob(name, digest)
        return Response(status=202)

    # Uploads.

    @app.view("blob-upload", "POST")
    def begin_upload(request: RegistryRequest, name: str) -> Response:
        mount, source = request.args.get("mount", ""), request.args.get("from")
        if DIGEST.fits(mount) and is_supported(mount) and _is_there(mount, source):
            storage.add_blob(name, mount)
            return _created(request, name, mount)
        digest = request.args.get("digest")
        if digest is not None:
            storage.write_blob(name, _checked_digest(digest), _body_of(request))
            return _created(request, name, digest)
        _supported_algorithm(request.args.get("digest-algorithm", "sha256"))
        return _upload_status(request, name, storage.begin_upload(name), 202, 0)

    def _is_there(digest: str, source: str | None) -> bool:
        """Whether a repository has a blob; without one, whether any had it."""
        if source is None:
            return storage.has_content(digest)
        return NAME.fits(source) and len(source) <= MAX_NAME and storage.has_blob(source, digest)

    @app.view("blob-upload-chunk", "GET")
    def get_upload(request: RegistryRequest, name: str, uuid: str) -> Response:
        size = upload_size(storage.chunks(name, uuid))
        return _upload_status(request, name, uuid, 204, size)

    @app.view("blob-upload-chunk", "PATCH")
    def append_to_upload(request: RegistryRequest, name: str, uuid: str) -> Response:
        content_range = request.headers.get("Content-Range")
        chunks = storage.append(name, uuid, _body_of(request), content_range)
        return _upload_status(request, name, uuid, 202, upload_size(chunks))

    @app.view("blob-upload-chunk", "PUT")
    def finish_upload(request: RegistryRequest, name: str, uuid: str) -> Response:
        digest = _checked_digest(request.args.get("digest", ""))
        content_range = request.headers.get("Content-Range")
        storage.finish_upload(name, uuid, _body_of(request), content_range, digest)
        return _created(request, name, digest)

    @app.view("blob-upload-chunk", "DELETE")
    def cancel_upload(request: RegistryRequest, name: str, uuid: str) -> Response:
        storage.cancel_upload(name, uuid)
        return Response(status=204)

    # Lists.

    @app.view("tags", "GET")
    def list_tags(request: RegistryRequest, name: str) -> Response:
        n, last = parse_page(request.args)
        tags, more = paginate(storage.tags(name), n, last)
        response = _json({"name": name, "tags": tags})
        if more:
            response.headers["Link"] = next_link(request.urls.tags(name, n=n, last=tags[-1]))
        return response

    @app.view("catalog", "GET")
    def list_repositories(request: RegistryRequest) -> Response:
        n, last = parse_page(request.args)
        names, more = paginate(storage.repositories(), n, last)
        response = _json({"repositories": names})
        if more:
            response.headers["Link"] = next_link(request.urls.catalog(n=n, last=names[-1]))
        return response

    @app.view("referrers", "GET")
    def list_referrers(request: RegistryRequest, name: str, digest: str) -> Response:
        wanted = [one for one in request.args.getlist("artifactType") if one]
        found = [
            _descriptor(referrer, media_type, content)
            for referrer, media_type, content in storage.referrers(name, digest)
        ]
        if wanted:
            found = [one for one in found if one.get("artifactType") in wanted]
        index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": found}
        response = _json(index, IMAGE_INDEX)
        if wanted:
            response.headers["OCI-Filters-Applied"] = "artifactType"
        return response

    return app


def _json(content: dict[str, Any], content_type: str = "application/json") -> Response:
    return Response(json.dumps(content), content_type=content_type)


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


def _wanted_range(request: RegistryRequest, digest: str, size: int) -> tuple[int, int] | None:
    """The one range that a request wants; `None` for all of it. (RFC 9110, section 14.2: what is
    no range of bytes, or more than one, may be ignored.)"""
    found = re.fullmatch("bytes=([0-9]{0,18})-([0-9]{0,18})", request.headers.get("Range", ""))
    if_range = request.headers.get("If-Range")
    if not found or found[0] == "bytes=-" or if_range not in (None, f'"{digest}"'):
        return None
    if not found[1]:  # the last so many
        start, end = max(size - int(found[2]), 0), size
    else:
        start, end = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
    if start >= end:
        raise errors.RangeInvalid("the range is not within the blob", length=size)
    return start, end


def _checked_digest(digest: str) -> str:
    """A digest from a query, of an algorithm that is supported."""
    message = DIGEST.complaint(digest)
    if message is not None:
        raise errors.DigestInvalid(message)
    _digest_path(digest)
    return digest


def _supported_algorithm(algorithm: str) -> None:
    _digest_path(f"{algorithm}:")


def _tags_to_give(request: RegistryRequest) -> list[str]:
    """The tags of the query of a manifest that is pushed by its digest."""
    tags = list(dict.fromkeys(request.args.getlist("tag")))
    if len(tags) > MAX_TAGS:
        raise TooManyTags(f"a manifest is given at most {MAX_TAGS} tags at once")
    for tag in tags:
        message = TAG.complaint(tag)
        if message is not None:
            raise errors.TagInvalid(message)
    return tags


class TooManyTags(errors.TagInvalid):
    code = 414


def _parsed_manifest(content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content.decode())
    except (ValueError, RecursionError):
        raise errors.ManifestInvalid("the manifest is not JSON") from None
    if not isinstance(manifest, dict):
        raise errors.ManifestInvalid("the manifest is not a JSON object")
    return manifest


def _digest_of(descriptor: Any) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or not DIGEST.fits(digest):
        raise errors.ManifestInvalid("the manifest has a descriptor without a valid digest")
    return digest


def _blobs_of(manifest: dict[str, Any]) -> Iterator[str]:
    """The digests of the blobs that must be there before the manifest comes."""
    layers = manifest.get("layers") or []
    if not isinstance(layers, list):
        raise errors.ManifestInvalid("the manifest's layers are not a list")
    for descriptor in [manifest["config"], *layers] if manifest.get("config") else layers:
        digest = _digest_of(descriptor)
        media_type = str(descriptor.get("mediaType"))
        if "nondistributable" not in media_type and ".foreign." not in media_type:
            yield digest


def _conditional(request: RegistryRequest, response: Response, digest: str) -> Response:
    response.set_etag(digest)
    response.make_conditional(request)
    if response.status_code == 412:
        raise PreconditionFailed
    return response


def _subject_of(manifest: dict[str, Any]) -> str | None:
    """The digest of its subject, if that is one whose referrers are kept."""
    subject = _digest_of(manifest["subject"]) if manifest.get("subject") else ""
    return subject if is_supported(subject) else None


def _descriptor(digest: str, media_type: str, content: bytes) -> dict[str, Any]:
    """What a list of referrers says of a manifest (distribution-spec 1.1, Listing Referrers)."""
    manifest = _parsed_manifest(content)
    descriptor = {"mediaType": media_type, "digest": digest, "size": len(content)}
    config = manifest.get("config")
    config_type = config.get("mediaType") if isinstance(config, dict) else None
    artifact_type = manifest.get("artifactType") or config_type
    if isinstance(artifact_type, str):
        descriptor["artifactType"] = artifact_type
    annotations = manifest.get("annotations")
    if annotations and _is_map_of_strings(annotations):
        descriptor["annotations"] = annotations
    return descriptor


def _is_map_of_strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


@contextmanager
def running(storage: str | os.PathLike[str] = "memory://") -> Iterator[str]:
    """The URL of a registry on a free port, served by a thread of this process: for test suites."""
    app = make_app(Storage.at(storage))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, set up by the options of a command line.

    :param make: makes the application, in each worker: a store must not outlive a fork.
    :param options: those of `server_options`.
    :param greeting: what is printed when it listens, with "{host}" for where.
    """

    def __init__(self, make: Callable[[], Any], options: argparse.Namespace, greeting: str) -> None:
        if options.workers > 1 and options.storage.startswith("memory:"):
            raise SystemExit("memory:// cannot be shared by several workers")
        self.make = make
        self.options = options
        self.greeting = greeting
        super().__init__()

    def load_config(self) -> None:
        settings = {
            "bind": f"{self.options.host}:{self.options.port}",
            "workers": self.options.workers,
            "worker_class": "gthread",
            "threads": self.options.threads,
            "accesslog": "-",
            # As by default, but for the length: gunicorn does not count what the kernel sends.
            "access_log_format": '%(h)s - - %(t)s "%(r)s" %(s)s %({content-length}o)s "%(a)s"',
            "graceful_timeout": 10,
            "limit_request_line": 8190,
            "when_ready": self.greet,
        }
        if "control_socket_disable" in self.cfg.settings:  # one for all, in the home directory
            settings["control_socket_disable"] = True
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        app = self.make()

        def patient(environ: Any, start_response: Any) -> Any:
            environ["gunicorn.socket"].settimeout(self.options.patience)
            response = app(environ, start_response)
            # A client that is still sending would not see an answer that comes before it is done.
            with suppress(OSError, ParseException):
                for _ in range(MAX_UNREAD // BLOCK):
                    if not environ["wsgi.input"].read(BLOCK):
                        break
            return response

        return patient

    def greet(self, server: Any) -> None:
        # Connections take this over: gunicorn waits for a request's headers without end.
        seconds, fraction = divmod(self.options.patience, 1)
        timeout = struct.pack("ll", int(seconds), int(fraction * 1e6))
        for listener in server.LISTENERS:
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        host = "{}:{}".format(*server.LISTENERS[0].getsockname()[:2])
        print(self.greeting.format(host=host), flush=True)


def server_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Add what a `Server` needs to a command line."""
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", default=port, type=int, help="the port; 0 takes a free one")
    parser.add_argument(
        "--storage",
        default="./registry-data",
        help="a directory, or memory://, s3://bucket/prefix, gs://…, az://…",
    )
    parser.add_argument("--workers", default=1, type=int, help="processes that serve")
    parser.add_argument("--threads", default=16, type=int, help="requests at once in each of them")
    parser.add_argument(
        "--patience", default=60, type=float, help="seconds that a client may be silent"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A container registry on the routes of registry_routes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    server_options(parser, port=5000)
    options = parser.parse_args()
    greeting = (
        f"A registry at http://{{host}}, its data in {options.storage}. Try:\n"
        "  skopeo copy --dest-tls-verify=false docker://busybox docker://{host}/library/busybox\n"
        "  skopeo inspect --tls-verify=false docker://{host}/library/busybox\n"
        "  curl http://{host}/v2/_catalog"
    )
    Server(lambda: make_app(Storage.at(options.storage)), options, greeting).run()


if __name__ == "__main__":
    main()
