"""A container registry in one file, on the routes of registry_routes.

    python examples/registry.py --host 127.0.0.1 --port 5000 --storage ./registry-data

It pushes and pulls blobs and manifests, lists tags, repositories and referrers, deletes, mounts
blobs across repositories, and takes uploads whole or in chunks. It has no authentication and no
TLS: put it behind something that has, or keep it on your own machine.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.utils import send_file
from werkzeug.wrappers import Response

from registry_routes import (
    RegistryApp,
    RegistryRequest,
    errors,
    grammar,
    next_link,
    page,
    read_page,
)

IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
# RFC 6838, section 4.2; without parameters, as it is for manifests.
_RESTRICTED_NAME = "[a-zA-Z0-9][a-zA-Z0-9!#$&^_.+-]{0,126}"
MEDIA_TYPE = re.compile(f"{_RESTRICTED_NAME}/{_RESTRICTED_NAME}")
MAX_MANIFEST = 4 * 1024 * 1024
MAX_NAME = 255  # what most clients hold to; it also keeps every path within a filesystem's limits
BLOCK = 1024 * 1024
LOOKS = range(10)  # an upload may change its name, to and fro, between two looks at it

log = logging.getLogger("registry")


class Storage:
    """Repositories in a directory.

    ``<name>/_blobs/<algorithm>/<hash>``, ``<name>/_manifests/<algorithm>/<hash>`` (its media type
    on a first line), ``<name>/_tags/<tag>`` (a digest), ``<name>/_uploads/<id>``. No component of a
    name starts with "_", and no value that the routes let through can leave its directory.
    A file appears under its name only when it is whole: it is written elsewhere, then renamed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.temporary = root / "_temporary"
        self.temporary.mkdir(parents=True, exist_ok=True)
        # What a process that was stopped at it has left behind.
        for unfinished in self.temporary.iterdir():
            unfinished.unlink()
        for claimed in root.glob("**/_uploads/.*"):
            claimed.rename(claimed.with_name(claimed.name[1:]))
        #: Held where a tag and its manifest come or go together.
        self.tagging = threading.Lock()

    def repository(self, name: str) -> Path:
        if len(name) > MAX_NAME:
            raise errors.NameInvalid(f"repository name must have at most {MAX_NAME} characters")
        return self.root / name

    def repositories(self) -> list[str]:
        found = []
        for directory, subdirectories, _ in os.walk(self.root):
            if "_manifests" in subdirectories:
                found.append(Path(directory).relative_to(self.root).as_posix())
            subdirectories[:] = [name for name in subdirectories if not name.startswith("_")]
        return found

    def blob(self, name: str, digest: str) -> Path:
        return self.repository(name) / "_blobs" / _digest_path(digest)

    def mount(self, digest: str, source: str, target: str) -> bool:
        """Give `target` the blob of `source`; whether `source` has it."""
        blob = self.blob(target, digest)
        blob.parent.mkdir(parents=True, exist_ok=True)
        try:
            with suppress(FileExistsError):
                os.link(self.blob(source, digest), blob)
        except FileNotFoundError:
            return False
        return True

    # Uploads. Whoever writes to one claims it by renaming it, so that nobody else can: upload ids
    # never start with a dot, so a request cannot name a file that does.

    def start_upload(self, name: str) -> str:
        upload_id = uuid.uuid4().hex
        path = self.upload(name, upload_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
        return upload_id

    def upload(self, name: str, upload_id: str) -> Path:
        if not re.fullmatch("[0-9a-f]{32}", upload_id):  # the form of the ids above
            raise errors.BlobUploadUnknown
        return self.repository(name) / "_uploads" / upload_id

    @contextmanager
    def writing(self, name: str, upload_id: str) -> Iterator[Path]:
        path = self.upload(name, upload_id)
        claimed = path.with_name(f".{upload_id}")
        for _ in LOOKS:
            try:
                path.rename(claimed)
                break
            except FileNotFoundError:
                if claimed.exists():
                    raise errors.RangeInvalid("another request writes to this upload") from None
        else:
            raise errors.BlobUploadUnknown
        try:
            yield claimed
        finally:
            if claimed.exists():
                claimed.rename(path)

    def upload_size(self, name: str, upload_id: str) -> int:
        path = self.upload(name, upload_id)
        for _ in LOOKS:
            for form in path, path.with_name(f".{upload_id}"):
                with suppress(FileNotFoundError):
                    return form.stat().st_size
        raise errors.BlobUploadUnknown

    def append(self, name: str, upload_id: str, body: IO[bytes], content_range: str | None) -> int:
        """Add a chunk to an upload; its size then. A chunk that fails leaves no trace."""
        with self.writing(name, upload_id) as path, path.open("ab") as file:
            with _undone_on_error(file):
                _copy_chunk(body, file, content_range)
            return file.tell()

    def finish_upload(
        self, name: str, upload_id: str, body: IO[bytes], content_range: str | None, digest: str
    ) -> None:
        """Add the last chunk, which may be empty, and keep the whole as the blob `digest`."""
        blob = self.blob(name, digest)
        with self.writing(name, upload_id) as path:
            hashed = hashlib.new(digest.partition(":")[0])
            with path.open("rb+") as file, _undone_on_error(file):
                for block in _blocks(file):
                    hashed.update(block)
                _copy_chunk(body, file, content_range, hashed.update)
                if hashed.hexdigest() != digest.partition(":")[2]:
                    raise errors.DigestInvalid(detail={"digest": digest})
                file.flush()
                os.fsync(file.fileno())
            blob.parent.mkdir(parents=True, exist_ok=True)
            path.replace(blob)

    # Manifests and tags.

    def manifests(self, name: str) -> Iterator[tuple[str, str, bytes]]:
        """Digest, media type and content of each manifest of a repository."""
        for path in (self.repository(name) / "_manifests").glob("*/*"):
            digest = f"{path.parent.name}:{path.name}"
            try:
                yield digest, *self.manifest(name, digest)
            except errors.ManifestUnknown:
                continue  # deleted meanwhile

    def manifest(self, name: str, digest: str) -> tuple[str, bytes]:
        """Media type and content."""
        path = self.repository(name) / "_manifests" / _digest_path(digest)
        try:
            media_type, _, content = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            raise errors.ManifestUnknown(detail={"digest": digest}) from None
        return media_type.decode("latin-1"), content

    def write_manifest(self, name: str, digest: str, media_type: str, content: bytes) -> None:
        path = self.repository(name) / "_manifests" / _digest_path(digest)
        self._write(path, media_type.encode("latin-1") + b"\n" + content)

    def delete_manifest(self, name: str, digest: str) -> None:
        """Delete a manifest, and the tags that point at it before it; hold `tagging` meanwhile."""
        self.manifest(name, digest)
        for tag in self.tags(name):
            try:
                if self.tag(name, tag) == digest:
                    self.delete_tag(name, tag)
            except errors.ManifestUnknown:
                continue  # deleted meanwhile
        path = self.repository(name) / "_manifests" / _digest_path(digest)
        path.unlink(missing_ok=True)

    def tags(self, name: str) -> list[str]:
        repository = self.repository(name)
        if not (repository / "_manifests").exists():
            raise errors.NameUnknown(detail={"name": name})
        tags = repository / "_tags"
        return os.listdir(tags) if tags.exists() else []

    def tag(self, name: str, tag: str) -> str:
        """The digest that a tag points at."""
        try:
            return (self.repository(name) / "_tags" / tag).read_text()
        except FileNotFoundError:
            raise errors.ManifestUnknown(detail={"tag": tag}) from None

    def write_tag(self, name: str, tag: str, digest: str) -> None:
        self._write(self.repository(name) / "_tags" / tag, digest.encode())

    def delete_tag(self, name: str, tag: str) -> None:
        try:
            (self.repository(name) / "_tags" / tag).unlink()
        except FileNotFoundError:
            raise errors.ManifestUnknown(detail={"tag": tag}) from None

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.temporary / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _is_supported(digest: str) -> bool:
    return digest.partition(":")[0] in grammar.REGISTERED_ALGORITHMS


def _digest_path(digest: str) -> str:
    """A digest as a path; only of algorithms whose digests we can check."""
    algorithm, _, encoded = digest.partition(":")
    if not _is_supported(digest):
        raise errors.DigestInvalid(f"digest algorithm {algorithm[:64]!r} is not supported")
    return f"{algorithm}/{encoded}"


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: stream.read(BLOCK), b"")


@contextmanager
def _undone_on_error(file: IO[bytes]) -> Iterator[None]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        yield
    except BaseException:
        file.truncate(size)
        raise


def _copy_chunk(
    body: IO[bytes],
    file: IO[bytes],
    content_range: str | None,
    also: Callable[[bytes], object] = lambda block: None,
) -> None:
    """Append `body` to `file`, and hand each block to `also`."""
    start = file.seek(0, os.SEEK_END)
    if content_range is not None:
        found = re.fullmatch(r"(?:bytes[ =])?([0-9]{1,18})-([0-9]{1,18})(?:/.*)?", content_range)
        if not found or int(found[1]) != start:
            raise errors.RangeInvalid(detail={"expected start": start})
    for block in _blocks(body):
        file.write(block)
        also(block)
    if content_range is not None and found and file.tell() != int(found[2]) + 1:
        raise errors.SizeInvalid


def make_app(storage: Storage) -> RegistryApp:
    """The registry as a WSGI application: a view for each endpoint and method."""
    app = RegistryApp()

    # Manifests.

    @app.view("manifest", "GET")
    def get_manifest(
        request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        if digest and not _is_supported(digest):
            raise errors.ManifestUnknown(detail={"digest": digest})
        digest = digest or storage.tag(name, tag)
        media_type, content = storage.manifest(name, digest)
        response = Response(content, content_type=media_type)
        response.headers["Docker-Content-Digest"] = digest
        response.set_etag(digest)
        response.make_conditional(request)
        return response

    @app.view("manifest", "PUT")
    def put_manifest(
        request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        request.max_content_length = MAX_MANIFEST + 1  # a longer body is cut off there
        content = request.get_data(cache=False)
        if len(content) > MAX_MANIFEST:
            raise RequestEntityTooLarge
        manifest = _parsed_manifest(content)
        subject = _subject_of(manifest)
        for blob in _blobs_of(manifest):
            if not storage.blob(name, blob).exists():
                raise errors.ManifestBlobUnknown(detail={"digest": blob})
        algorithm = digest.partition(":")[0] or "sha256"
        _digest_path(f"{algorithm}:")
        actual = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
        if digest not in ("", actual):
            raise errors.DigestInvalid(detail={"digest": digest, "actual": actual})
        media_type = request.content_type or manifest.get("mediaType") or IMAGE_MANIFEST
        if not isinstance(media_type, str) or not MEDIA_TYPE.fullmatch(media_type):
            raise errors.ManifestInvalid("the manifest's media type is malformed")
        with storage.tagging:
            storage.write_manifest(name, actual, media_type, content)
            if tag:
                storage.write_tag(name, tag, actual)
        response = Response(status=201)
        response.location = request.urls.manifest(name, actual)
        response.headers["Docker-Content-Digest"] = actual
        if subject:
            response.headers["OCI-Subject"] = subject
        return response

    @app.view("manifest", "DELETE")
    def delete_manifest(
        request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        if digest and not _is_supported(digest):
            raise errors.ManifestUnknown(detail={"digest": digest})
        with storage.tagging:
            if tag:
                storage.delete_tag(name, tag)
            else:
                storage.delete_manifest(name, digest)
        return Response(status=202)

    # Blobs.

    @app.view("blob", "GET")
    def get_blob(request: RegistryRequest, name: str, digest: str) -> Response:
        if not _is_supported(digest):
            raise errors.BlobUnknown(detail={"digest": digest})
        path = storage.blob(name, digest)
        try:
            response = send_file(path, request.environ, "application/octet-stream", etag=digest)
        except FileNotFoundError:
            raise errors.BlobUnknown(detail={"digest": digest}) from None
        response.headers["Docker-Content-Digest"] = digest
        return response

    @app.view("blob", "DELETE")
    def delete_blob(request: RegistryRequest, name: str, digest: str) -> Response:
        if not _is_supported(digest):
            raise errors.BlobUnknown(detail={"digest": digest})
        try:
            storage.blob(name, digest).unlink()
        except FileNotFoundError:
            raise errors.BlobUnknown(detail={"digest": digest}) from None
        return Response(status=202)

    # Uploads.

    @app.view("blob-upload", "POST")
    def post_blob_upload(request: RegistryRequest, name: str) -> Response:
        mount, source = request.args.get("mount", ""), request.args.get("from", "")
        if (
            grammar.DIGEST.fits(mount)
            and _is_supported(mount)
            and grammar.NAME.fits(source)
            and len(source) <= MAX_NAME
            and storage.mount(mount, source, name)
        ):
            return _created(request, name, mount)
        digest = request.args.get("digest")
        if digest is not None:
            digest = _checked_digest(digest)
        upload_id = storage.start_upload(name)
        if digest is None:
            return _upload_status(request, name, upload_id, 202, 0)
        try:
            storage.finish_upload(name, upload_id, request.stream, None, digest)
        except BaseException:
            storage.upload(name, upload_id).unlink()  # nobody was told its id
            raise
        return _created(request, name, digest)

    @app.view("blob-upload-chunk", "GET")
    def get_blob_upload_chunk(request: RegistryRequest, name: str, uuid: str) -> Response:
        return _upload_status(request, name, uuid, 204, storage.upload_size(name, uuid))

    @app.view("blob-upload-chunk", "PATCH")
    def patch_blob_upload_chunk(request: RegistryRequest, name: str, uuid: str) -> Response:
        size = storage.append(name, uuid, request.stream, request.headers.get("Content-Range"))
        return _upload_status(request, name, uuid, 202, size)

    @app.view("blob-upload-chunk", "PUT")
    def put_blob_upload_chunk(request: RegistryRequest, name: str, uuid: str) -> Response:
        digest = _checked_digest(request.args.get("digest", ""))
        content_range = request.headers.get("Content-Range")
        storage.finish_upload(name, uuid, request.stream, content_range, digest)
        return _created(request, name, digest)

    @app.view("blob-upload-chunk", "DELETE")
    def delete_blob_upload_chunk(request: RegistryRequest, name: str, uuid: str) -> Response:
        with storage.writing(name, uuid) as path:
            path.unlink()
        return Response(status=204)

    # Lists.

    @app.view("tags", "GET")
    def get_tags(request: RegistryRequest, name: str) -> Response:
        n, last = read_page(request.args)
        tags, more = page(storage.tags(name), n, last)
        response = _json({"name": name, "tags": tags})
        if more:
            response.headers["Link"] = next_link(request.urls.tags(name, n=n, last=tags[-1]))
        return response

    @app.view("catalog", "GET")
    def get_catalog(request: RegistryRequest) -> Response:
        n, last = read_page(request.args)
        names, more = page(storage.repositories(), n, last)
        response = _json({"repositories": names})
        if more:
            response.headers["Link"] = next_link(request.urls.catalog(n=n, last=names[-1]))
        return response

    @app.view("referrers", "GET")
    def get_referrers(request: RegistryRequest, name: str, digest: str) -> Response:
        wanted = request.args.get("artifactType")
        found = []
        for referrer, media_type, content in storage.manifests(name):
            manifest = _parsed_manifest(content)
            if _subject_of(manifest) != digest:
                continue
            config = manifest.get("config")
            config_type = config.get("mediaType") if isinstance(config, dict) else None
            artifact_type = manifest.get("artifactType") or config_type
            annotations = manifest.get("annotations")
            if wanted and wanted != artifact_type:
                continue
            descriptor = {"mediaType": media_type, "digest": referrer, "size": len(content)}
            if isinstance(artifact_type, str):
                descriptor["artifactType"] = artifact_type
            if annotations and _is_map_of_strings(annotations):
                descriptor["annotations"] = annotations
            found.append(descriptor)
        index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": found}
        response = Response(json.dumps(index), content_type=IMAGE_INDEX)
        if wanted:
            response.headers["OCI-Filters-Applied"] = "artifactType"
        return response

    return app


def _json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content), mimetype="application/json")


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
    response.headers["Range"] = f"0-{max(size - 1, 0)}"
    response.headers["Docker-Upload-UUID"] = upload_id
    return response


def _checked_digest(digest: str) -> str:
    """A digest from a query."""
    try:
        grammar.DIGEST.check(digest)
    except ValueError as error:
        raise errors.DigestInvalid(str(error)) from None
    _digest_path(digest)
    return digest


def _parsed_manifest(content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError):
        raise errors.ManifestInvalid("the manifest is not JSON") from None
    if not isinstance(manifest, dict):
        raise errors.ManifestInvalid("the manifest is not a JSON object")
    return manifest


def _digest_of(descriptor: Any) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or not grammar.DIGEST.fits(digest):
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


def _is_map_of_strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


def _subject_of(manifest: dict[str, Any]) -> str | None:
    return _digest_of(manifest["subject"]) if manifest.get("subject") else None


class ChunkedBody(io.RawIOBase):
    """A body in chunks (RFC 9112, section 7.1). One that breaks off is an error, not an end."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self.stream = stream
        self.left: int | None = None  # in the current chunk; None before the first
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            if not self.left and not self.ended:
                self._begin_chunk()
            data = self.stream.read(min(len(buffer), self.left or 0))
        except OSError:  # a time-out, or a connection that was reset
            raise ClientDisconnected from None
        if self.left and not data:
            raise ClientDisconnected
        self.left = (self.left or 0) - len(data)
        buffer[: len(data)] = data
        return len(data)

    def _begin_chunk(self) -> None:
        if self.left is not None and self.stream.readline(3) not in (b"\r\n", b"\n"):
            raise ClientDisconnected
        size = re.fullmatch(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?\r?\n", self.stream.readline(4096))
        if not size:
            raise ClientDisconnected
        self.left = int(size[1], 16)
        if self.left == 0:
            while (line := self.stream.readline(4096)) not in (b"\r\n", b"\n"):  # trailers
                if not line:
                    raise ClientDisconnected
            self.ended = True


class RequestHandler(WSGIRequestHandler):
    timeout = 60  # seconds that a client may be silent

    def make_environ(self) -> Any:
        environ = super().make_environ()
        if "wsgi.input_terminated" in environ:  # Werkzeug's own reads on where a chunk breaks off
            environ["wsgi.input"] = ChunkedBody(self.rfile)
        return environ


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A container registry on the routes of registry_routes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", default=5000, type=int, help="the port; 0 takes a free one")
    parser.add_argument("--storage", default="./registry-data", type=Path, help="a directory")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    registry = make_app(Storage(options.storage))
    server = make_server(
        options.host, options.port, registry, threaded=True, request_handler=RequestHandler
    )
    host = f"{options.host}:{server.port}"
    print(
        f"A registry at http://{host}/v2/, its data in {options.storage}. Try:\n"
        f"  skopeo copy --dest-tls-verify=false docker://busybox docker://{host}/library/busybox\n"
        f"  skopeo inspect --tls-verify=false docker://{host}/library/busybox\n"
        f"  curl http://{host}/v2/_catalog",
        flush=True,
    )
    with suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
