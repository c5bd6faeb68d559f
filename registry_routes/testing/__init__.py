"""A registry for test suites: in memory, on a free port, and gone afterwards.

>>> from urllib.request import urlopen
>>> with serve() as registry:
...     digest = registry.add_image("library/nginx:latest", layers=[b"some files"])
...     urlopen(f"{registry.url}/v2/library/nginx/tags/list").read()
b'{"name": "library/nginx", "tags": ["latest"]}'
>>> [(request.endpoint, request.status) for request in registry.requests]
[('tags', 200)]

It can also ask clients to log in, behave as other registries do, and fail on demand: see `serve`
and `ServedRegistry.fail`. For pytest there is the fixture ``oci_registry``.
"""

import gzip
import json
import logging
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

from werkzeug.serving import DechunkedInput, WSGIRequestHandler, make_server

from ..digests import digest_of
from ..headers import IMAGE_MANIFEST
from ..map import RegistryMap
from ..reference import Reference
from ..registry import Manifest, MemoryStorage, make_registry
from .layers import (
    BasicLogin,
    BearerLogin,
    Fault,
    Faults,
    LocationForm,
    Locations,
    MinimumChunks,
    NoSinglePost,
    RecordedRequest,
    Recorder,
    RedirectedBlobs,
    TokenField,
    recorded_map,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

__all__ = ["Fault", "RecordedRequest", "ServedRegistry", "serve"]

_log = logging.getLogger(__name__)

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_HOST = "127.0.0.1"

Auth: TypeAlias = Literal["basic", "bearer"]


class ServedRegistry:
    """The registry that `serve` starts, for a test to talk to."""

    host: str
    """The host and the port, as in an image reference: ``127.0.0.1:54321``."""

    app: "WSGIApplication"
    """The registry as a WSGI application, to call without a socket, with `werkzeug.test.Client` or
    ``httpx.WSGITransport``. It behaves the same, but raises `ConnectionAbortedError` instead of
    closing a connection."""

    requests: list[RecordedRequest]
    """The requests so far, in the order in which they came. ``requests.clear()`` forgets them."""

    def __init__(
        self, host: str, recorder: Recorder, faults: Faults, storage: MemoryStorage | None
    ) -> None:
        self.host = host
        self.app = recorder
        self.requests = recorder.requests
        self._faults = faults
        self._storage = storage

    @property
    def url(self) -> str:
        """The URL of the registry, without ``/v2/``: ``http://127.0.0.1:54321``."""
        return f"http://{self.host}"

    @property
    def storage(self) -> MemoryStorage:
        """The storage of the registry, to look at or to change without HTTP.

        >>> with serve() as registry:
        ...     digest = registry.add_image("a:v1")
        >>> list(registry.storage.repositories()), registry.storage.tag("a", "v1") == digest
        (['a'], True)

        Raises `ValueError` if `serve` was given an application, which has its own storage.
        """
        if self._storage is None:
            raise ValueError("the registry must be the one in memory, not an application of yours")
        return self._storage

    def fail(self, endpoint: str, method: str, what: Fault, times: int | None = 1) -> None:
        """Make the next requests to an endpoint fail.

        >>> from werkzeug.test import Client
        >>> from registry_routes import errors
        >>> with serve() as registry:
        ...     registry.fail("tags", "GET", errors.TooManyRequests(retry_after=1), times=2)
        ...     client = Client(registry.app)
        ...     [client.get("/v2/a/tags/list").status_code for _ in range(3)]
        [429, 429, 404]

        :param endpoint: its name in the route table, such as ``blob``; or ``token``, the token
            server; or ``storage``, to which `serve` redirects blobs.
        :param method: the method that fails. GET does not include HEAD.
        :param what: what goes wrong:

            - an error of `registry_routes.errors`, or any `werkzeug.exceptions.HTTPException`: it
              is the response;
            - a status, 400 to 599: the response has this status and an HTML page, as from a proxy;
            - a `datetime.timedelta`: the response comes that much later;
            - ``"body cut short"``: the response announces the length of its body, but ends in the
              middle of it. If it has no body, the connection is closed without a response;
            - ``"connection closed"``: the connection is closed without a response, and the request
              has no effect.
        :param times: how many requests fail; `None` for all of them.

        Faults for the same endpoint and method follow one another in the order of the calls.

        Raises `ValueError` or `TypeError` for any other argument.
        """
        self._faults.plan(endpoint, method, what, times)

    def add_image(self, reference: str, layers: Sequence[bytes] = ()) -> str:
        """Put an image into the registry, and return the digest of its manifest.

        >>> with serve() as registry:
        ...     registry.add_image("library/nginx:latest", layers=[b"some files"])
        'sha256:22630a7cced9a90ed496f9cc9b78e6d62c7dab4cce60567e1d537708fee7d078'

        :param reference: the repository's name and a tag: ``library/nginx:latest``. The tag is
            ``latest`` if there is none.
        :param layers: the content of each layer: an archive, gzipped or not. For clients that do
            not unpack it, it can be any bytes.

        Raises `ValueError` for a malformed reference, and for one with a digest.
        """
        parsed = self._parsed(reference)
        if parsed.digest is not None:
            raise ValueError(f"image {reference!r} must have a tag, not a digest")
        name, tag = parsed.name, parsed.reference
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_diff_id(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": self._add_blob(name, _CONFIG, json.dumps(config).encode()),
            "layers": [self._add_blob(name, _layer_type(layer), layer) for layer in layers],
        }
        content = json.dumps(manifest).encode()
        digest = digest_of(content)
        self.storage.put_manifest(name, digest, Manifest(IMAGE_MANIFEST, content), tags=[tag])
        return digest

    def _parsed(self, reference: str) -> Reference:
        # The domain comes first, so that no part of the name is taken for one.
        return Reference.parse(f"{self.host}/{reference.removeprefix(f'{self.host}/')}")

    def _add_blob(self, name: str, media_type: str, content: bytes) -> dict[str, Any]:
        digest = digest_of(content)
        self.storage.put_blob(name, digest, [content])
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def manifest(self, reference: str) -> dict[str, Any]:
        """The manifest of an image, decoded from JSON.

        `reference` has a tag or a digest: ``library/nginx:latest``. Raises `LookupError` if the
        registry does not have it, and `ValueError` for a malformed reference.
        """
        parsed = self._parsed(reference)
        digest = parsed.digest or self.storage.tag(parsed.name, parsed.reference)
        manifest: dict[str, Any] = json.loads(self.storage.manifest(parsed.name, digest).content)
        return manifest

    def blob(self, name: str, digest: str) -> bytes:
        """The content of a blob of the repository `name`.

        Raises `LookupError` if the repository does not have it.
        """
        blob = self.storage.open_blob(name, digest)
        return b"".join(blob.read(0, blob.size))


def _is_gzipped(layer: bytes) -> bool:
    return layer.startswith(b"\x1f\x8b")


def _layer_type(layer: bytes) -> str:
    return f"{_LAYER}+gzip" if _is_gzipped(layer) else _LAYER


def _diff_id(layer: bytes) -> str:
    """The digest of the layer without its compression (image-spec, "Layer DiffID")."""
    return digest_of(gzip.decompress(layer) if _is_gzipped(layer) else layer)


@contextmanager
def serve(
    app: "WSGIApplication | None" = None,
    *,
    port: int = 0,
    users: Mapping[str, str] | None = None,
    auth: Auth | None = None,
    token_field: TokenField = "token",  # noqa: S107 - it is not a password
    location: LocationForm | None = None,
    redirect_blobs: bool = False,
    single_post: bool = True,
    page_size: int | None = None,
    min_chunk: int = 0,
    max_chunk: int | None = None,
    url_map: RegistryMap | None = None,
) -> Iterator[ServedRegistry]:
    """Serve a registry on 127.0.0.1, in threads of this process, until the ``with`` block ends.

    >>> with serve(users={"alice": "secret"}, auth="bearer", page_size=2) as registry:
    ...     registry.host.partition(":")[0]
    '127.0.0.1'

    :param app: the WSGI application to serve; a registry in memory if there is none.
    :param port: the port; 0 for a free one.
    :param users: the passwords of the users, by their names.
    :param auth: how clients log in: with ``"basic"``, or with a token, ``"bearer"``, for which the
        registry is also the token server. The users may do anything. If there are no users, anyone
        gets a token to pull.
    :param token_field: where the token server puts the token in its answer to a GET: ``"token"``
        or ``"access_token"``. (To the POST of OAuth2 it is always ``"access_token"``.)
    :param location: the form of each ``Location``. ``"absolute"`` is a whole URL, and
        ``"relative"`` is a path. ``"opaque"`` is a path too, but for an upload it is outside the
        API, and it has a query without which the upload does not go on. `None` leaves what the
        application sends; the registry in memory sends paths.
    :param redirect_blobs: whether a 307 redirects each GET or HEAD of a blob to another origin,
        which refuses the credentials for the registry.
    :param single_post: whether a single POST may push a blob; if not, it only begins an upload.
    :param page_size: the maximum number of results in a page of a list.
    :param min_chunk: the minimum size of a chunk in bytes; the last one may be smaller.
    :param max_chunk: the maximum size of a chunk in bytes.
    :param url_map: the routes. The default is ``app.url_map``, if that is a `RegistryMap`, and
        otherwise a new one. ``RegistryMap(dialect=OCI_1_1.subset(…))`` makes a registry that is
        read-only, or has no referrers.

    Raises `ValueError` for an option that is out of range, or that does not go together with
    another, and `OSError` if the port is taken.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port!r} must be 0 to 65535")
    if auth not in (None, "basic", "bearer"):
        raise ValueError(f"auth {auth!r} must be 'basic' or 'bearer'")
    if users and auth is None:
        raise ValueError("users must have a way to log in: auth='basic' or auth='bearer'")
    if auth == "basic" and not users:
        raise ValueError("auth 'basic' must have users")
    if token_field not in ("token", "access_token"):
        raise ValueError(f"token_field {token_field!r} must be 'token' or 'access_token'")
    if min_chunk < 0:
        raise ValueError(f"min_chunk {min_chunk!r} must be 0 or more")
    if max_chunk is not None and max_chunk < min_chunk:
        raise ValueError(f"max_chunk {max_chunk!r} must be {min_chunk} or more, as min_chunk is")
    if location not in (None, "absolute", "relative", "opaque"):
        raise ValueError(f"location {location!r} must be 'absolute', 'relative' or 'opaque'")
    storage = None
    if url_map is None:
        of_app = getattr(app, "url_map", None)
        url_map = of_app if isinstance(of_app, RegistryMap) else RegistryMap()
    if app is None:
        storage = MemoryStorage()
        app = make_registry(
            storage,
            url_map=url_map,
            page_size=page_size,
            max_chunk=max_chunk,
        )
    elif (page_size, max_chunk) != (None, None):
        raise ValueError("page_size and max_chunk are for the registry in memory, not for an app")
    url_map = recorded_map(url_map.dialect, url_map.table.prefix)
    if min_chunk:
        app = MinimumChunks(app, min_chunk)
    if not single_post:
        app = NoSinglePost(app)
    if redirect_blobs:
        app = RedirectedBlobs(app, url_map)
    if location is not None:
        app = Locations(app, location, url_map)
    if auth == "basic":
        app = BasicLogin(app, users or {})
    if auth == "bearer":
        app = BearerLogin(app, users or {}, token_field)
    faults = Faults(app, url_map)
    recorder = Recorder(faults, url_map)
    with _listening(recorder, port) as host:
        try:
            yield ServedRegistry(host, recorder, faults, storage)
        finally:
            faults.stop()


@contextmanager
def _listening(app: "WSGIApplication", port: int) -> Iterator[str]:
    """Serve `app` in threads of this process, and yield the host and the port."""
    connections: set[socket.socket] = set()

    class Handler(_Handler):
        def setup(self) -> None:
            super().setup()
            connections.add(self.connection)

        def finish(self) -> None:
            connections.discard(self.connection)
            super().finish()

    stopping = threading.Event()

    def accept() -> None:
        while not stopping.is_set():
            server.handle_request()  # it starts a thread for each connection

    with (
        # If the port is taken, Werkzeug would end the process.
        socket.create_server((_HOST, port), backlog=128) as listener,
        make_server(
            _HOST, port, app, threaded=True, request_handler=Handler, fd=listener.fileno()
        ) as server,
    ):
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"{_HOST}:{server.port}"
        finally:
            stopping.set()
            socket.create_connection((_HOST, server.port)).close()  # ends the wait in accept()
            thread.join()
            for connection in list(connections):  # of clients that send nothing, or wait
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def make_environ(self) -> "WSGIEnvironment":
        environ = super().make_environ()
        if environ.get("wsgi.input_terminated"):  # a chunked body
            environ["wsgi.input"] = DechunkedInput(_Whole(self.rfile))  # type: ignore[arg-type]
        return environ

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        self.close_connection = True  # otherwise it would wait for the next request

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.log("info", "%r %s", self.requestline, code)

    def log(self, type: str, message: str, *args: Any) -> None:
        _log.info(message, *args)


class _Whole:
    """A file that raises an error if it ends too early.

    Without it, Werkzeug would fill up a chunk that is cut short.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        if len(content) < size:
            raise ConnectionResetError("the client has closed the connection amid a chunk")
        return content

    def readline(self, limit: int = -1) -> bytes:
        return self.file.readline(limit)
