"""The views of a registry, which implement HTTP and the specification on a storage."""

import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial, wraps
from typing import Any

from werkzeug.exceptions import PreconditionFailed, RequestEntityTooLarge
from werkzeug.wrappers import Response
from werkzeug.wsgi import ClosingIterator, wrap_file

from .. import errors
from ..app import RegistryRequest
from ..converters import CONVERTERS
from ..digests import DigestMismatchError, check_algorithm, digest_of, is_registered
from ..grammar import DIGEST, NAME, TAG
from ..headers import IMAGE_INDEX, parse_content_range, upload_range
from ..paging import next_link, paginate, parse_page
from ..routes import RouteName
from .manifests import (
    MAX_DESCRIPTORS,
    MAX_MANIFEST,
    blobs_of,
    check_kind,
    descriptor_of,
    media_type_of,
    parse_manifest,
    subject_of,
)
from .storage import (
    BLOCK,
    MAX_NAME,
    Blob,
    BlobFile,
    ConflictError,
    Manifest,
    MissingError,
    SigningStorage,
    Storage,
)

__all__ = [
    "MAX_TAGS",
    "TooManyTags",
    "Views",
    "blob_response",
    "guard",
    "manifest_response",
    "require_registered",
]

_log = logging.getLogger("registry_routes.registry")

_TRIES = 100  # of a conditional write, while other requests change the same tag

MAX_TAGS = 50
"""The maximum number of tags in a push of a manifest, as each adds a header to the response."""

View = Callable[..., Response]

# The converter that checks each value before the storage gets it, because rules of your own may
# let through other values.
_CONVERTERS = {
    "name": CONVERTERS["repository"],
    "tag": CONVERTERS["tag"],
    "digest": CONVERTERS["digest"],
    "uuid": CONVERTERS["upload_id"],
}


def guard(endpoint: str, view: View) -> View:
    """Make a view check its values, and turn a storage's errors into the registry's."""

    @wraps(view)
    def answer(request: RegistryRequest, **values: str) -> Response:
        for name, value in values.items():
            converter = _CONVERTERS.get(name)
            if converter and (complaint := converter.grammar.complaint(value)):
                raise converter.malformed(request.method)(complaint, detail={name: value})
        if len(values.get("name", "")) > MAX_NAME:
            raise errors.NameInvalid(f"repository name must have at most {MAX_NAME} characters")
        try:
            return view(request, **values)
        except MissingError:
            raise errors.MISSING[endpoint](detail=values) from None
        except DigestMismatchError as error:
            raise errors.DigestInvalid(str(error)) from None
        except OSError as error:
            one_line = " ".join(str(error).split())
            _log.error("%s %r: the storage has failed: %s", request.method, request.path, one_line)
            raise errors.Unavailable from error

    return answer


class Views:
    """The views of a registry on a storage; `make_registry` describes the options.

    `storage` may be a `ReadStorage` for views that only read.
    """

    def __init__(
        self,
        storage: Storage,
        page_size: int | None,
        max_chunk: int | None,
        blob_urls: timedelta | None,
        serves_referrers: bool,
    ) -> None:
        self.storage = storage
        self.page_size = page_size
        self.max_chunk = max_chunk
        self.blob_urls = blob_urls
        self.serves_referrers = serves_referrers

    def by_endpoint(self) -> dict[tuple[str, str], View]:
        """Return the view of each endpoint and method."""
        return {
            (RouteName.MANIFEST, "GET"): self.get_manifest,
            (RouteName.MANIFEST, "PUT"): self.put_manifest,
            (RouteName.MANIFEST, "DELETE"): self.delete_manifest,
            (RouteName.BLOB, "GET"): self.get_blob,
            (RouteName.BLOB, "DELETE"): self.delete_blob,
            (RouteName.BLOB_UPLOAD, "POST"): self.begin_upload,
            (RouteName.BLOB_UPLOAD_CHUNK, "GET"): self.get_upload,
            (RouteName.BLOB_UPLOAD_CHUNK, "PATCH"): self.append_to_upload,
            (RouteName.BLOB_UPLOAD_CHUNK, "PUT"): self.finish_upload,
            (RouteName.BLOB_UPLOAD_CHUNK, "DELETE"): self.cancel_upload,
            (RouteName.TAGS, "GET"): self.list_tags,
            (RouteName.CATALOG, "GET"): self.list_repositories,
            (RouteName.REFERRERS, "GET"): self.list_referrers,
        }

    # Manifests.

    def get_manifest(
        self, request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        digest = require_registered(digest) if digest else self.storage.tag(name, tag)
        return manifest_response(request, digest, self.storage.manifest(name, digest))

    def put_manifest(
        self, request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        content = b"".join(_read_body(request, MAX_MANIFEST))
        parsed = parse_manifest(content)
        media_type = media_type_of(request, parsed)
        check_kind(parsed, media_type)
        subject = subject_of(parsed)
        blobs = list(dict.fromkeys(blobs_of(parsed)))
        actual = digest_of(content, _check_registered(digest) if digest else "sha256")
        if digest not in ("", actual):
            raise errors.DigestInvalid(detail={"digest": digest, "actual": actual})
        tags = [tag] if tag else _parse_tags(request)
        descriptor = descriptor_of(parsed, media_type, actual, len(content)) if subject else b""
        put = partial(
            self.storage.put_manifest,
            name,
            actual,
            Manifest(media_type, content),
            blobs=list(map(require_registered, blobs)),
            tags=tags,
            subject=subject,
            descriptor=descriptor,
        )
        try:
            if tag and _is_conditional(request):
                _write_if(request, lambda: self._find_tag(name, tag), put)
            else:
                if _is_conditional(request):
                    _check_conditions(request, digest if self._has_manifest(name, digest) else "")
                put()
        except MissingError as missing:
            raise errors.ManifestBlobUnknown(detail={"digest": str(missing)}) from None
        response = Response(status=201)
        response.location = request.urls.manifest(name, actual)
        response.headers["Docker-Content-Digest"] = actual
        for given in tags if digest else []:
            response.headers.add("OCI-Tag", given)
        if subject and self.serves_referrers:  # without the header, clients maintain a list
            response.headers["OCI-Subject"] = subject
        return response

    def delete_manifest(
        self, request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        if tag and _is_conditional(request):
            delete = partial(self.storage.delete_tag, name, tag)
            _write_if(request, lambda: self.storage.tag(name, tag), delete)
        elif tag:
            self.storage.delete_tag(name, tag)
        else:
            if _is_conditional(request):
                self.storage.manifest(name, require_registered(digest))
                _check_conditions(request, digest)
            self.storage.delete_manifest(name, require_registered(digest))
        return Response(status=202)

    def _find_tag(self, name: str, tag: str) -> str:
        try:
            return self.storage.tag(name, tag)
        except MissingError:
            return ""

    def _has_manifest(self, name: str, digest: str) -> bool:
        try:
            self.storage.manifest(name, digest)
        except MissingError:
            return False
        return True

    # Blobs.

    def get_blob(self, request: RegistryRequest, name: str, digest: str) -> Response:
        if self.blob_urls is not None and request.method == "GET":
            assert isinstance(self.storage, SigningStorage)  # noqa: S101 - make_registry checks it
            url = self.storage.blob_url(name, require_registered(digest), self.blob_urls)
            response = Response(status=307, headers={"Docker-Content-Digest": digest})
            response.location = url
            return response
        return blob_response(
            request, digest, self.storage.open_blob(name, require_registered(digest))
        )

    def delete_blob(self, request: RegistryRequest, name: str, digest: str) -> Response:
        if _is_conditional(request):
            self.storage.open_blob(name, require_registered(digest))
            _check_conditions(request, digest)
        self.storage.delete_blob(name, require_registered(digest))
        return Response(status=202)

    # Uploads.

    def begin_upload(self, request: RegistryRequest, name: str) -> Response:
        mount, source = request.args.get("mount", ""), request.args.get("from", "")
        if self._try_mount(name, mount, source):
            return _respond_created(request, name, mount)
        digest = request.args.get("digest")
        if digest is not None:
            self.storage.put_blob(name, _check_digest(digest), _read_body(request))
            return _respond_created(request, name, digest)
        _check_registered(request.args.get("digest-algorithm", "sha256"))
        return _respond_with_status(request, name, self.storage.begin_upload(name), 202, 0)

    def _try_mount(self, name: str, digest: str, source: str) -> bool:
        """Mount a blob if possible, and return whether it was mounted.

        Without a source, no scope would prove that the client may read the blob.
        """
        if not (DIGEST.fits(digest) and NAME.fits(source) and len(source) <= MAX_NAME):
            return False
        try:
            self.storage.mount_blob(name, require_registered(digest), source)
        except MissingError:
            return False
        return True

    def get_upload(self, request: RegistryRequest, name: str, uuid: str) -> Response:
        return _respond_with_status(request, name, uuid, 204, self.storage.upload_size(name, uuid))

    def append_to_upload(self, request: RegistryRequest, name: str, uuid: str) -> Response:
        start = self.storage.upload_size(name, uuid)
        with self._report_size(request, name, uuid):
            blocks = _read_chunk(request, start, self.max_chunk)
            size = self.storage.append_to_upload(name, uuid, start, blocks)
        return _respond_with_status(request, name, uuid, 202, size)

    @contextmanager
    def _report_size(self, request: RegistryRequest, name: str, uuid: str) -> Iterator[None]:
        """Add the size of the upload to the error for a chunk that does not fit."""
        try:
            yield
        except (ConflictError, errors.RangeInvalid) as error:
            if isinstance(error, ConflictError):
                error = errors.RangeInvalid("another request has written this chunk")
            size = self.storage.upload_size(name, uuid)
            status = _respond_with_status(request, name, uuid, 416, size)
            error.headers += [(key, status.headers[key]) for key in ("Location", "Range")]
            raise error from None

    def finish_upload(self, request: RegistryRequest, name: str, uuid: str) -> Response:
        digest = _check_digest(request.args.get("digest", ""))
        try:
            start = self.storage.upload_size(name, uuid)
            with self._report_size(request, name, uuid):
                self.storage.finish_upload(name, uuid, start, _read_chunk(request, start), digest)
        except MissingError:
            # The client may repeat a request whose response it lost.
            if self.storage.upload_result(name, uuid) != digest:
                raise
        return _respond_created(request, name, digest)

    def cancel_upload(self, request: RegistryRequest, name: str, uuid: str) -> Response:
        self.storage.cancel_upload(name, uuid)
        return Response(status=204)

    # Lists.

    def list_tags(self, request: RegistryRequest, name: str) -> Response:
        n, last = parse_page(request.args)
        tags, more = paginate(self.storage.tags(name, last or ""), self._limit_page(n))
        response = _make_json_response({"name": name, "tags": tags})
        if more:
            response.headers["Link"] = next_link(request.urls.tags(name, n=n, last=tags[-1]))
        return response

    def list_repositories(self, request: RegistryRequest) -> Response:
        n, last = parse_page(request.args)
        names, more = paginate(self.storage.repositories(last or ""), self._limit_page(n))
        response = _make_json_response({"repositories": names})
        if more:
            response.headers["Link"] = next_link(request.urls.catalog(n=n, last=names[-1]))
        return response

    def _limit_page(self, n: int | None) -> int | None:
        """Return the maximum number of results in a page for a client that asks for `n`."""
        return min((limit for limit in (n, self.page_size) if limit is not None), default=None)

    def list_referrers(self, request: RegistryRequest, name: str, digest: str) -> Response:
        n, last = parse_page(request.args)
        wanted = list(filter(None, request.args.getlist("artifactType")))
        descriptors = (
            self.storage.referrers(name, digest, last or "") if is_registered(digest) else iter(())
        )
        page, end = _take_referrers(descriptors, self._limit_page(n), wanted)
        body = b'{"schemaVersion":2,"mediaType":"%b","manifests":[%b]}' % (
            IMAGE_INDEX.encode(),
            b",".join(page),
        )
        response = Response(body, content_type=IMAGE_INDEX)
        if wanted:
            response.headers["OCI-Filters-Applied"] = "artifactType"
        if end is not None:
            url = request.urls.referrers(name, digest, artifact_type=wanted, n=n, last=end)
            response.headers["Link"] = next_link(url)
        return response


def _take_referrers(
    descriptors: Iterable[tuple[str, bytes]], most: int | None, wanted: Collection[str]
) -> tuple[list[bytes], str | None]:
    """Return a page of descriptors, and the referrer at its end; `None` if no page follows.

    A page that can have no descriptor has no next page.
    """
    page: list[bytes] = []
    end = None
    read = 0  # bytes read, even if filtered out: this limits a request's cost
    for referrer, descriptor in descriptors:
        read += len(descriptor) + 1
        if len(page) == most or (end is not None and read > MAX_DESCRIPTORS):
            return page, end
        end = referrer
        if not wanted or json.loads(descriptor).get("artifactType") in wanted:
            page.append(descriptor)
    return page, None


def manifest_response(request: RegistryRequest, digest: str, manifest: Manifest) -> Response:
    """Answer a GET or a HEAD of a manifest, honouring conditional headers.

    A proxy can use this for its cached manifests.

    >>> from werkzeug.test import create_environ
    >>> from registry_routes.headers import IMAGE_MANIFEST
    >>> request = RegistryRequest(create_environ("/v2/a/manifests/v1"))
    >>> content = b'{"schemaVersion": 2}'
    >>> response = manifest_response(request, digest_of(content), Manifest(IMAGE_MANIFEST, content))
    >>> response.status, response.content_type
    ('200 OK', 'application/vnd.oci.image.manifest.v1+json')
    """
    response = Response(manifest.content, content_type=manifest.media_type)
    response.headers["Docker-Content-Digest"] = digest
    return _apply_conditions(request, response, digest)


def blob_response(request: RegistryRequest, digest: str, blob: Blob) -> Response:
    """Answer a GET or a HEAD of a blob, honouring its range and conditional headers.

    For a HEAD, it reads no bytes of the blob. If the client has the blob, it does not call `read`.

    >>> from werkzeug.test import create_environ
    >>> content = b"some content"
    >>> blob = Blob(len(content), lambda start, end: [content[start:end]])
    >>> request = RegistryRequest(create_environ("/", headers={"Range": "bytes=5-"}))
    >>> response = blob_response(request, digest_of(content), blob)
    >>> response.status, response.headers["Content-Range"], response.data
    ('206 PARTIAL CONTENT', 'bytes 5-11/12', b'content')

    Raises `errors.RangeInvalid` if the range is not within the blob.
    """
    size = blob.size
    response = Response(content_type="application/octet-stream")
    response.content_length = size
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["Docker-Content-Digest"] = digest
    response = _apply_conditions(request, response, digest)  # conditions come before ranges
    if response.status_code == 304:
        return response
    if request.method == "HEAD":
        ClosingIterator(blob.read(0, 0)).close()  # raises an error if the content is lost
        return response
    start, end = 0, size
    wanted = _parse_range(request, digest, size)
    if wanted is not None:
        start, end = wanted
        response.status_code = 206
        response.content_length = end - start
        response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    content = blob.read(start, end)
    # uWSGI always sends a file from its first byte, even if its position is another.
    if isinstance(content, BlobFile) and start == 0:
        response.response = wrap_file(request.environ, content.file, BLOCK)
        response.direct_passthrough = True
    else:
        response.response = content
    return response


def _make_json_response(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content), content_type="application/json")


def _respond_created(request: RegistryRequest, name: str, digest: str) -> Response:
    response = Response(status=201)
    response.location = request.urls.blob(name, digest)
    response.headers["Docker-Content-Digest"] = digest
    return response


def _respond_with_status(
    request: RegistryRequest, name: str, upload_id: str, status: int, size: int
) -> Response:
    response = Response(status=status)
    response.location = request.urls.blob_upload_chunk(name, upload_id)
    response.headers["Range"] = upload_range(size)
    response.headers["Docker-Upload-UUID"] = upload_id
    return response


def _apply_conditions(request: RegistryRequest, response: Response, digest: str) -> Response:
    """Turn a response into a 304 or raise a 412, by the request's conditions."""
    response.set_etag(digest)
    if request.if_match and not request.if_match.contains(digest):
        raise PreconditionFailed
    if request.if_none_match.contains_weak(digest):
        response.status_code = 304
    return response


def _is_conditional(request: RegistryRequest) -> bool:
    return bool(request.if_match or request.if_none_match)


def _check_conditions(request: RegistryRequest, found: str) -> None:
    """Raise a 412 if a write's conditions are false. `found` is the current digest, or "".

    (RFC 9110, sections 13.1.1 and 13.1.2.) Entity tags are digests.
    """
    if request.if_match and not (found and request.if_match.contains(found)):
        raise PreconditionFailed
    if found and request.if_none_match.contains_weak(found):
        raise PreconditionFailed


def _write_if(
    request: RegistryRequest, find: Callable[[], str], write: Callable[..., None]
) -> None:
    """Call `write` if the request's conditions are true of the digest that `find` returns.

    Raise a 503 if the storage reports a conflict each time, as a storage with stale reads would.
    """
    for _ in range(_TRIES):
        found = find()
        _check_conditions(request, found)
        try:
            return write(expected=found)
        except ConflictError:  # the tag has changed, but may still meet the conditions
            continue
    raise errors.Unavailable("other requests keep changing the tag", retry_after=1)


def _read_body(request: RegistryRequest, most: int | None = None) -> Iterator[bytes]:
    """Yield the body in blocks. Raise an error if it ends early or has more than `most` bytes."""
    received = 0
    while block := request.stream.read(BLOCK):
        received += len(block)
        if most is not None and received > most:
            raise RequestEntityTooLarge(f"the content has more than {most} bytes")
        yield block


def _read_chunk(request: RegistryRequest, start: int, most: int | None = None) -> Iterator[bytes]:
    """Return the blocks of a chunk, or raise an error if it does not begin at `start`."""
    return _check_size(_read_body(request, most), _parse_announced_size(request, start))


def _check_size(blocks: Iterable[bytes], size: int | None) -> Iterator[bytes]:
    """Yield the blocks, and then raise an error if their size is not the announced one."""
    received = 0
    for block in blocks:
        received += len(block)
        yield block
    if size not in (None, received):
        raise errors.SizeInvalid


def _parse_announced_size(request: RegistryRequest, start: int) -> int | None:
    """Return the size in a chunk's ``Content-Range``. Raise an error if it does not fit `start`."""
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


def _parse_range(request: RegistryRequest, digest: str, size: int) -> tuple[int, int] | None:
    """Return the start and the end of the requested range; `None` for the whole blob.

    (RFC 9110, section 14.2: several ranges, other units and invalid ranges are ignored. A suffix of
    an empty blob is the whole blob.)
    """
    found = re.fullmatch("bytes=([0-9]{0,18})-([0-9]{0,18})", request.headers.get("Range", ""))
    if_range = request.headers.get("If-Range")
    if not found or found[0] == "bytes=-" or if_range not in (None, f'"{digest}"'):
        return None
    first, last = found[1], found[2]
    if first and last and int(last) < int(first):
        return None
    if not first and int(last) and not size:
        return None
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        raise errors.RangeInvalid("the range is not within the blob", length=size)
    return start, end


# Digests. The routes accept any algorithm, but a storage only gets digests that can be verified.


def require_registered(digest: str) -> str:
    """Return the digest. Raise `MissingError` if its algorithm is not registered.

    >>> require_registered(digest_of(b""))[:14]
    'sha256:e3b0c44'

    No registry can have content that it cannot verify.
    """
    if not is_registered(digest):
        raise MissingError(digest)
    return digest


def _check_registered(digest: str) -> str:
    """Return the algorithm of a digest. Raise `errors.DigestInvalid` if it is not registered."""
    try:
        return check_algorithm(digest.partition(":")[0])
    except ValueError as error:
        raise errors.DigestInvalid(str(error)) from None


def _check_digest(digest: str) -> str:
    message = DIGEST.complaint(digest)
    if message is not None:
        raise errors.DigestInvalid(message)
    _check_registered(digest)
    return digest


class TooManyTags(errors.TagInvalid):
    code: int = 414  # pyright: ignore[reportIncompatibleVariableOverride]


def _parse_tags(request: RegistryRequest) -> list[str]:
    """Return the tags in the query of a push of a manifest by its digest."""
    tags = list(dict.fromkeys(request.args.getlist("tag")))
    if len(tags) > MAX_TAGS:
        raise TooManyTags(f"the push has more than {MAX_TAGS} tags")
    for tag in tags:
        message = TAG.complaint(tag)
        if message is not None:
            raise errors.TagInvalid(message)
    return tags
