"""A registry for test suites: in memory, on a free port, and deleted afterwards.

>>> from urllib.request import urlopen
>>> with serve() as registry:
...     digest = registry.add_image("library/nginx:latest", layers=[b"some files"])
...     urlopen(f"{registry.url}/v2/library/nginx/tags/list").read()
b'{"name": "library/nginx", "tags": ["latest"]}'
>>> [(request.endpoint, request.status) for request in registry.requests]
[('tags', 200)]

It can also ask clients to log in, behave like other registries, and fail on demand: see `serve` and
`ServedRegistry.fail`. `LENIENT` is a dialect for made-up digests. For pytest, there is the fixture
``oci_registry``.
"""

import gzip
import json
import ssl
import sys
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from werkzeug.routing import Map

from ..digests import digest_of
from ..headers import IMAGE_MANIFEST
from ..map import RegistryMap
from ..reference import Reference
from ..registry import Manifest, MemoryStorage, make_registry
from .layers import (
    SERVICE,
    STORAGE,
    TOKEN,
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
    ScopeStatus,
    TokenField,
    TokenMethod,
    TokenServer,
    UnfiredFault,
    make_api_map,
    make_layers_map,
)
from .lenient import LENIENT, LENIENT_DIGEST, MadeUpDigests, takes_any_digest
from .server import Server
from .storage import ServedStorage

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

__all__ = ["LENIENT", "Fault", "RecordedRequest", "ServedRegistry", "UnfiredFault", "serve"]

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"

Auth: TypeAlias = Literal["basic", "bearer"]


class ServedRegistry:
    """The registry that `serve` starts, for a test to talk to.

    - `app`: the registry as a WSGI application, to call without a socket, with
      `werkzeug.test.Client` or ``httpx.WSGITransport``. It behaves the same, but raises
      `ConnectionAbortedError` instead of closing a connection.
    - `requests`: the requests so far, a list of `RecordedRequest` in the order in which they came.
      ``requests.clear()`` forgets them.
    """

    app: "WSGIApplication"
    requests: list[RecordedRequest]

    def __init__(
        self, server: Server, recorder: Recorder, faults: Faults, storage: ServedStorage | None
    ) -> None:
        self.app = recorder
        self.requests = recorder.requests
        self._server = server
        self._faults = faults
        self._storage = storage

    @property
    def host(self) -> str:
        """The host and the port, as in an image reference: ``127.0.0.1:54321``.

        If `serve` chooses the port, the registry opens its socket when `host` or `url` is first
        read.
        """
        return self._server.host

    @property
    def url(self) -> str:
        """The URL of the registry, without ``/v2/``: ``http://127.0.0.1:54321``."""
        scheme = "http" if self._server.ssl_context is None else "https"
        return f"{scheme}://{self.host}"

    @property
    def storage(self) -> MemoryStorage:
        """The storage of the registry, to inspect or change without HTTP.

        >>> with serve() as registry:
        ...     digest = registry.add_image("a:v1")
        >>> list(registry.storage.repositories()), registry.storage.tag("a", "v1") == digest
        (['a'], True)

        Raises `ValueError` if `serve` got an application, which has its own storage.
        """
        if self._storage is None:
            raise ValueError("serve was given an application, which has its own storage")
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

        :param endpoint: the endpoint's name in the route table, such as ``blob``, or in your
            application's map; or ``token`` for the token server, or ``storage`` for the origin to
            which `serve` redirects blobs.
        :param method: the method that fails. GET includes HEAD, except for ``"body cut short"``.
        :param what: the fault, which is

            - an error of `registry_routes.errors`, or any `werkzeug.exceptions.HTTPException`, as
              the response;
            - a status, 400 to 599, for a response with an HTML page, as from a proxy;
            - a `datetime.timedelta`, by which the response is delayed;
            - ``"body cut short"``, for a response that announces its whole length, but ends in the
              middle of its body. If there is no body, the connection closes without a response;
            - ``"connection closed"``, which closes the connection without a response. The request
              has no effect.
        :param times: how many requests fail; `None` for all of them.

        Faults for the same endpoint and method are used up in the order of the calls. A HEAD meets
        the faults for HEAD before those for GET.

        Raises `ValueError` or `TypeError` for any other argument, and for an endpoint or a method
        that no request can have.
        """
        self._faults.plan(endpoint, method, what, times)

    @property
    def unfired(self) -> list[UnfiredFault]:
        """The faults that still wait for requests, so that a test can check that none is left.

        >>> from werkzeug.test import Client
        >>> with serve() as registry:
        ...     registry.fail("tags", "GET", 503, times=2)
        ...     status = Client(registry.app).get("/v2/a/tags/list").status_code
        ...     [(fault.endpoint, fault.times) for fault in registry.unfired]
        [('tags', 1)]

        The fixture ``oci_registry`` fails a test that passes and leaves any.
        """
        return self._faults.unfired

    def add_image(
        self, reference: str, layers: Sequence[bytes] = (), *, digest: str | None = None
    ) -> str:
        """Put an image into the registry, and return the digest of its manifest.

        >>> with serve() as registry:
        ...     registry.add_image("library/nginx:latest", layers=[b"some files"])
        'sha256:22630a7cced9a90ed496f9cc9b78e6d62c7dab4cce60567e1d537708fee7d078'

        :param reference: the repository's name and a tag, as in
            ``library/nginx:latest``. The tag is ``latest`` if there is none.
        :param layers: the content of each layer, any bytes. If they begin like gzip or zstd, the
            layer has that media type. The image's configuration lists the digest of each layer
            without its compression. If the bytes are corrupt, or are zstd and this Python cannot
            read it (before 3.14), that is the digest of the bytes as they are.
        :param digest: a made-up digest for the manifest, in a registry of the dialect `LENIENT`.

        Raises `ValueError` for a malformed reference, and for a reference with a digest.
        """
        if digest is not None and self._storage is not None:
            LENIENT_DIGEST.check(digest)
            if self._storage.verifies:
                raise ValueError("digest is for serve(url_map=RegistryMap(dialect=LENIENT))")
        parsed = self._parse_reference(reference)
        if parsed.digest is not None:
            raise ValueError(f"image {reference!r} has a digest, but needs a tag")
        name, tag = parsed.name, parsed.reference()
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_diff_id_of(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": self._add_blob(name, _CONFIG, json.dumps(config).encode()),
            "layers": [self._add_blob(name, _layer_type_of(layer), layer) for layer in layers],
        }
        content = json.dumps(manifest).encode()
        digest = digest or digest_of(content)
        self.storage.put_manifest(name, digest, Manifest(IMAGE_MANIFEST, content), tags=[tag])
        return digest

    def _parse_reference(self, reference: str) -> Reference:
        # Put the domain first, so that no part of the name is mistaken for a domain. Before the
        # registry has a port, no reference can contain its host.
        host = self.host if self._server.is_listening else "localhost:0"
        return Reference.parse(f"{host}/{reference.removeprefix(f'{host}/')}")

    def _add_blob(self, name: str, media_type: str, content: bytes) -> dict[str, Any]:
        digest = digest_of(content)
        self.storage.put_blob(name, digest, [content])
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def manifest(self, reference: str) -> dict[str, Any]:
        """Return the manifest of an image, decoded from JSON.

        `reference` has a tag or a digest: ``library/nginx:latest``. Raises `LookupError` if the
        registry does not have it, and `ValueError` for a malformed reference.
        """
        parsed = self._parse_reference(reference)
        digest = parsed.digest or self.storage.tag(parsed.name, parsed.reference())
        manifest: dict[str, Any] = json.loads(self.storage.manifest(parsed.name, digest).content)
        return manifest

    def blob(self, name: str, digest: str) -> bytes:
        """Return the content of a blob of the repository `name`.

        Raises `LookupError` if the repository does not have it.
        """
        blob = self.storage.open_blob(name, digest)
        return b"".join(blob.read(0, blob.size))


_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def _layer_type_of(layer: bytes) -> str:
    if layer.startswith(_GZIP):
        return f"{_LAYER}+gzip"
    return f"{_LAYER}+zstd" if layer.startswith(_ZSTD) else _LAYER


def _diff_id_of(layer: bytes) -> str:
    """Return the digest of the decompressed layer (image-spec, "Layer DiffID").

    If it cannot be decompressed, return the digest of the bytes as they are.
    """
    if layer.startswith(_GZIP):
        with suppress(EOFError, OSError, zlib.error):
            return digest_of(gzip.decompress(layer))
    if layer.startswith(_ZSTD) and sys.version_info >= (3, 14):
        with suppress(ImportError):  # this Python was built without zstd
            from compression import zstd

            with suppress(zstd.ZstdError):
                return digest_of(zstd.decompress(layer))
    return digest_of(layer)


@contextmanager
def serve(
    app: "WSGIApplication | None" = None,
    *,
    port: int = 0,
    users: Mapping[str, str] | None = None,
    auth: Auth | None = None,
    anonymous_pull: bool = False,
    service: str = SERVICE,
    token_field: TokenField = "token",  # noqa: S107 - it is not a password
    token_method: TokenMethod | None = None,
    granted_actions: Collection[str] | None = None,
    scope_status: ScopeStatus = 401,
    location: LocationForm | None = None,
    redirect_blobs: bool = False,
    single_post: bool = True,
    page_size: int | None = None,
    min_chunk: int = 0,
    max_chunk: int | None = None,
    like_docker_registry: bool = False,
    url_map: RegistryMap | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> Iterator[ServedRegistry]:
    """Serve a registry on 127.0.0.1, in threads of this process, until the ``with`` block ends.

    >>> with serve(users={"alice": "secret"}, auth="bearer", page_size=2) as registry:
    ...     registry.host.partition(":")[0]
    '127.0.0.1'

    :param app: the WSGI application to serve; by default, a registry in memory.
    :param port: the port, or 0 for a free one, which is chosen when `ServedRegistry.host` or
        `ServedRegistry.url` is first read.
    :param users: the passwords of the users, by their names.
    :param auth: how clients log in, ``"basic"`` with a password, or ``"bearer"`` with a token. With
        ``"bearer"``, the registry is also the token server. The users may do anything. Without
        users, anyone gets a token to pull.
    :param anonymous_pull: whether anyone may pull, although there are users. A GET of ``/v2/``
        still asks for a login, because many clients learn there how to log in.
    :param service: the token server's name for the registry, in its challenges and in the requests
        for a token.
    :param token_field: the field of the token in the answer to a GET, ``"token"`` or
        ``"access_token"``. (In the answer to the POST of OAuth2, it is ``"access_token"``.)
    :param token_method: the only method that the token server takes, ``"GET"`` or ``"POST"``; by
        default, it takes both. Anonymous clients get a token only by GET.
    :param granted_actions: the actions that a token can allow at most, such as ``["pull"]``; by
        default, users get all actions that they ask for.
    :param scope_status: the status, 401 or 403, for a token whose scopes are too small.
    :param location: the form of each ``Location``. ``"absolute"`` is a whole URL, and
        ``"relative"`` a path. ``"opaque"`` is also a path, but that of an upload is outside the
        API, and has a query that its next request must repeat. `None` keeps the application's form;
        the registry in memory sends paths.
    :param redirect_blobs: whether a 307 redirects each GET or HEAD of a blob to another origin,
        which refuses the credentials for the registry.
    :param single_post: whether a single POST may push a blob. If not, it only begins an upload.
    :param page_size: the maximum number of results in a page of a list.
    :param min_chunk: the minimum size of a chunk in bytes; the last chunk may be smaller.
    :param max_chunk: the maximum size of a chunk in bytes.
    :param like_docker_registry: whether to list repositories as docker-registry 2.8 does. Its
        catalog includes those with only blobs, and a list of tags is a 404 until there has been a
        tag.
    :param url_map: the routes. The default is ``app.url_map``, if that is a `RegistryMap`, and
        otherwise a new one. ``RegistryMap(dialect=OCI_1_1.subset(…))`` makes a registry that is
        read-only, or has no referrers. ``RegistryMap(dialect=LENIENT)`` takes made-up digests, such
        as ``sha256:0cd1ee2a9e``: `ServedRegistry.add_image` and the storage then take any digest
        for any content, but pushes by HTTP are still verified.
    :param ssl_context: an `ssl.SSLContext` to serve TLS with. For `redirect_blobs`, its certificate
        must be valid for ``localhost`` as well as for 127.0.0.1.

    Raises `ValueError` for an option that is out of range or conflicts with another, `TypeError`
    for an `ssl_context` of another type, and `OSError` if the port is taken.
    """
    _check_server(port, ssl_context)
    if min_chunk < 0:
        raise ValueError(f"min_chunk {min_chunk!r} must be 0 or more")
    if max_chunk is not None and max_chunk < min_chunk:
        raise ValueError(f"max_chunk {max_chunk!r} is smaller than min_chunk, {min_chunk}")
    if location not in (None, "absolute", "relative", "opaque"):
        raise ValueError(f"location {location!r} must be 'absolute', 'relative' or 'opaque'")
    token_server = TokenServer(service, token_field, token_method, granted_actions, scope_status)
    _check_login(users, auth, anonymous_pull, token_server)
    storage = None
    if app is None:
        storage = ServedStorage(like_docker_registry=like_docker_registry)
        app = make_registry(storage, url_map=url_map, page_size=page_size, max_chunk=max_chunk)
    elif (page_size, max_chunk, like_docker_registry) != (None, None, False):
        raise ValueError(
            "page_size, max_chunk and like_docker_registry are for the registry in memory, "
            "not for an app"
        )
    own_map = getattr(app, "url_map", None) if url_map is None else url_map
    known = own_map if isinstance(own_map, RegistryMap) else RegistryMap()
    api = make_api_map(known.dialect, known.table.prefix)
    added = make_layers_map(
        token_server.methods if auth == "bearer" else (),
        storage=redirect_blobs,
        uploads=location == "opaque",
        converters=known.dialect.converters,
    )
    maps = [added, own_map, api] if isinstance(own_map, Map) else [added, api]
    _check_endpoints(added, maps[1])
    if storage is not None and takes_any_digest(known.dialect):
        storage = storage.without_verifying()
        app = MadeUpDigests(app, storage, known)
    app = _add_quirks(app, api, min_chunk, single_post, redirect_blobs, location)
    if auth == "basic":
        app = BasicLogin(app, users or {}, anonymous_pull)
    if auth == "bearer":
        app = BearerLogin(app, users or {}, anonymous_pull or not users, token_server)
    faults = Faults(app, maps)
    recorder = Recorder(faults, maps)
    server = Server(recorder, port, ssl_context)
    try:
        yield ServedRegistry(server, recorder, faults, storage)
    finally:
        faults.stop()
        server.stop()


def _add_quirks(
    app: "WSGIApplication",
    api: RegistryMap,
    min_chunk: int,
    single_post: bool,
    redirect_blobs: bool,
    location: LocationForm | None,
) -> "WSGIApplication":
    """Return the application with the layers of other registries' behaviour that are wanted."""
    if min_chunk:
        app = MinimumChunks(app, min_chunk)
    if not single_post:
        app = NoSinglePost(app)
    if redirect_blobs:
        app = RedirectedBlobs(app, api)
    if location is not None:
        app = Locations(app, location, api)
    return app


def _check_server(port: int, ssl_context: ssl.SSLContext | None) -> None:
    """Raise `TypeError` or `ValueError` for options that no server can have."""
    if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
        raise TypeError(f"ssl_context {ssl_context!r:.100} is not an ssl.SSLContext")
    if ssl_context is not None and ssl_context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError("ssl_context is for clients: it needs ssl.PROTOCOL_TLS_SERVER")
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port!r} must be 0 to 65535")


def _check_login(
    users: Mapping[str, str] | None,
    auth: Auth | None,
    anonymous_pull: bool,
    token_server: TokenServer,
) -> None:
    """Raise `ValueError` for options of a login that conflict."""
    if auth not in (None, "basic", "bearer"):
        raise ValueError(f"auth {auth!r} must be 'basic' or 'bearer'")
    if users and auth is None:
        raise ValueError("users need a way to log in: auth='basic' or auth='bearer'")
    if auth == "basic" and not users:
        raise ValueError("auth 'basic' needs users")
    if anonymous_pull and auth is None:
        raise ValueError("anonymous_pull needs a login for others: auth='basic' or 'bearer'")
    for option, default in vars(TokenServer()).items():
        if auth != "bearer" and getattr(token_server, option) != default:
            raise ValueError(f"{option} is for a token server: auth='bearer'")
    if token_server.methods == ["POST"] and (anonymous_pull or not users):
        raise ValueError("token_method 'POST' gives no tokens without a password: only GET does")


def _check_endpoints(added: Map, own: Map) -> None:
    """Raise `ValueError` if the application already has an endpoint that the layers add."""
    of_app = {rule.endpoint for rule in own.iter_rules()}
    for rule in added.iter_rules():
        if rule.endpoint in (TOKEN, STORAGE) and rule.endpoint in of_app:
            raise ValueError(f"the app already has the endpoint {rule.endpoint!r} of an option")
