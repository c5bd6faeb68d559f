"""A registry for test suites: in memory, on a free port, and gone afterwards.

>>> from urllib.request import urlopen
>>> with serve() as registry:
...     digest = registry.add_image("library/nginx:latest", layers=[b"some files"])
...     urlopen(f"{registry.url}/v2/library/nginx/tags/list").read()
b'{"name": "library/nginx", "tags": ["latest"]}'
>>> [(request.endpoint, request.status) for request in registry.requests]
[('tags', 200)]

It also asks clients to log in, has the ways of other registries, and fails when it is told to: see
`serve` and `ServedRegistry.fail`. For pytest there is the fixture ``oci_registry``.
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

from .digests import digest_of
from .headers import IMAGE_MANIFEST
from .map import RegistryMap
from .reference import Reference
from .registry import Manifest, MemoryStorage, make_registry
from .routes import OCI_1_1, Dialect
from .testing_layers import (
    BasicLogin,
    BearerLogin,
    Fault,
    Faults,
    LocationForm,
    Locations,
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
    """A registry that a test talks to, as `serve` gives it."""

    host: str
    """Where it is, as image references have it: ``127.0.0.1:54321``."""

    app: "WSGIApplication"
    """The registry as a WSGI application, to be called without a socket, by `werkzeug.test.Client`
    or ``httpx.WSGITransport``. It does the same; but where it would close a connection, it raises
    `ConnectionAbortedError`."""

    requests: list[RecordedRequest]
    """The requests, in the order in which they came. ``requests.clear()`` forgets them."""

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
        """The URL without the ``/v2/``: ``http://127.0.0.1:54321``."""
        return f"http://{self.host}"

    @property
    def storage(self) -> MemoryStorage:
        """What the registry keeps: to look at and to change without HTTP.

        >>> with serve() as registry:
        ...     digest = registry.add_image("a:v1")
        >>> list(registry.storage.repositories()), registry.storage.tag("a", "v1") == digest
        (['a'], True)

        Raises `ValueError` if `serve` was given an application: what that keeps is its own.
        """
        if self._storage is None:
            raise ValueError("the registry must be the one in memory, not an application of yours")
        return self._storage

    def fail(self, endpoint: str, method: str, what: Fault, times: int | None = 1) -> None:
        """Have the next requests to an endpoint fail.

        >>> from werkzeug.test import Client
        >>> from registry_routes import errors
        >>> with serve() as registry:
        ...     registry.fail("tags", "GET", errors.TooManyRequests(retry_after=1), times=2)
        ...     client = Client(registry.app)
        ...     [client.get("/v2/a/tags/list").status_code for _ in range(3)]
        [429, 429, 404]

        :param endpoint: as the route table calls it, ``blob``; or ``token``, the token server; or
            ``storage``, where `serve` redirects blobs.
        :param method: the method that fails. HEAD is a method of its own.
        :param what: what goes wrong:

            - an error of `registry_routes.errors`, or any `werkzeug.exceptions.HTTPException`: it
              is the response;
            - a status, 400 to 599: the response has it, and a page of HTML, as proxies send it;
            - a `datetime.timedelta`: the response comes so much later;
            - ``"body cut short"``: the response announces its body's length, and ends in the middle
              of it. If it has no body, the connection is closed without a response;
            - ``"connection closed"``: the connection is closed without a response, and the request
              has no effect.
        :param times: how many requests fail; `None` for all that come.

        Faults for the same endpoint and method follow one another in the order of the calls.

        Raises `ValueError` or `TypeError` for an argument that is none of these.
        """
        self._faults.plan(endpoint, method, what, times)

    def add_image(self, reference: str, layers: Sequence[bytes] = ()) -> str:
        """Put an image into the registry, and return the digest of its manifest.

        >>> with serve() as registry:
        ...     registry.add_image("library/nginx:latest", layers=[b"some files"])
        'sha256:22630a7cced9a90ed496f9cc9b78e6d62c7dab4cce60567e1d537708fee7d078'

        :param reference: the repository's name and a tag: ``library/nginx:latest``. The tag is
            ``latest`` if there is none.
        :param layers: the content of each layer: an archive, gzipped or not. Clients that do not
            unpack it take any bytes.

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
        # With a domain, so that no part of the name is taken for one.
        return Reference.parse(f"{self.host}/{reference.removeprefix(f'{self.host}/')}")

    def _add_blob(self, name: str, media_type: str, content: bytes) -> dict[str, Any]:
        digest = digest_of(content)
        self.storage.put_blob(name, digest, [content])
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def manifest(self, reference: str) -> dict[str, Any]:
        """The manifest of an image, as JSON has it, by a tag or a digest: ``library/nginx:latest``.

        Raises `LookupError` if it is not there, and `ValueError` for a malformed reference.
        """
        parsed = self._parsed(reference)
        digest = parsed.digest or self.storage.tag(parsed.name, parsed.reference)
        manifest: dict[str, Any] = json.loads(self.storage.manifest(parsed.name, digest).content)
        return manifest

    def blob(self, name: str, digest: str) -> bytes:
        """The content of a blob of the repository `name`.

        Raises `LookupError` if it is not there.
        """
        size = self.storage.blob_size(name, digest)
        return b"".join(self.storage.read_blob(name, digest, 0, size))


def _is_gzipped(layer: bytes) -> bool:
    return layer.startswith(b"\x1f\x8b")


def _layer_type(layer: bytes) -> str:
    return f"{_LAYER}+gzip" if _is_gzipped(layer) else _LAYER


def _diff_id(layer: bytes) -> str:
    """The digest of the layer as it is without compression (image-spec, "Layer DiffID")."""
    return digest_of(gzip.decompress(layer) if _is_gzipped(layer) else layer)


@contextmanager
def serve(
    app: "WSGIApplication | None" = None,
    *,
    port: int = 0,
    users: Mapping[str, str] | None = None,
    auth: Auth | None = None,
    token_field: TokenField = "token",  # noqa: S107 - it is no password
    location: LocationForm | None = None,
    redirect_blobs: bool = False,
    single_post: bool = True,
    page_size: int | None = None,
    min_chunk: int = 0,
    max_chunk: int | None = None,
    dialect: Dialect | None = None,
) -> Iterator[ServedRegistry]:
    """A registry on a port of 127.0.0.1, served by threads of this process, within a ``with``.

    >>> with serve(users={"alice": "secret"}, auth="bearer", page_size=2) as registry:
    ...     registry.host.partition(":")[0]
    '127.0.0.1'

    :param app: the WSGI application to serve; a registry in memory if there is none.
    :param port: the port; 0 for a free one.
    :param users: the passwords of the users, by their names.
    :param auth: how clients log in: ``"basic"``, or by a token, ``"bearer"``, for which the
        registry is the token server too. The users may do anything. Without users, anyone gets a
        token to pull.
    :param token_field: where the token server puts the token in its answer to a GET: ``"token"``
        or ``"access_token"``. (To the POST of OAuth2 it is always ``"access_token"``.)
    :param location: the form of each ``Location``: ``"absolute"``, a whole URL; ``"relative"``, a
        path; ``"opaque"``, a path which, for an upload, is outside the API, and has a query without
        which the upload does not go on. If it is `None`, each is as the application has it: the
        registry in memory sends paths.
    :param redirect_blobs: whether the content of a blob is at another origin, to which a GET is
        redirected by a 307, and which refuses the credentials for the registry.
    :param single_post: whether a blob may be pushed by one POST; if not, that only begins an
        upload.
    :param page_size: the most results in a page of a list.
    :param min_chunk: the least bytes of a chunk but the last.
    :param max_chunk: the most bytes of a chunk.
    :param dialect: the routes, if they are not those of `OCI_1_1`, or not the map's that `app` has
        as its ``url_map``. ``OCI_1_1.subset(…)`` makes a registry that is read-only, or has no
        referrers.

    Raises `ValueError` for options that do not go together, and `OSError` if the port is taken.
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
    if location not in (None, "absolute", "relative", "opaque"):
        raise ValueError(f"location {location!r} must be 'absolute', 'relative' or 'opaque'")
    storage = None
    own_map = getattr(app, "url_map", None)
    prefix = own_map.table.prefix if isinstance(own_map, RegistryMap) else ""
    if dialect is None:
        dialect = own_map.dialect if isinstance(own_map, RegistryMap) else OCI_1_1
    if app is None:
        storage = MemoryStorage()
        app = make_registry(
            storage,
            dialect=dialect,
            page_size=page_size,
            min_chunk=min_chunk,
            max_chunk=max_chunk,
        )
    elif (page_size, min_chunk, max_chunk) != (None, 0, None):
        raise ValueError(
            "page_size, min_chunk and max_chunk must be for the registry in memory, not for an app"
        )
    url_map = recorded_map(dialect, prefix)
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
    """Host and port of `app`, which threads of this process serve."""
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
            server.handle_request()  # in a thread of its own

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
            socket.create_connection((_HOST, server.port)).close()  # so that it looks
            thread.join()
            for connection in list(connections):  # of clients that are silent, or kept waiting
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
        self.close_connection = True  # it would wait for the next request

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.log("info", "%r %s", self.requestline, code)

    def log(self, type: str, message: str, *args: Any) -> None:
        _log.info(message, *args)


class _Whole:
    """A file that raises an error if it ends too early.

    Werkzeug would make up the rest of a chunk that is cut short.
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
