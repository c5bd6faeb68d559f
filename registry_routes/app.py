"""`RegistryApp`: a registry as a WSGI application, with a view for each endpoint and method."""

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from io import RawIOBase
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import parse_qsl

from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import (
    ClientDisconnected,
    HTTPException,
    LengthRequired,
    NotFound,
    SecurityError,
)
from werkzeug.routing import Rule
from werkzeug.utils import cached_property
from werkzeug.wrappers import Request, Response
from werkzeug.wsgi import ClosingIterator, get_host, get_input_stream

from .errors import NameInvalid, RouteUnknown, SizeInvalid, Unknown, Unsupported, error_response
from .map import RegistryMap, RegistryMapAdapter
from .routes import RouteName
from .scopes import Scope, required_scopes
from .urls import URLBuilder, host_of

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

__all__ = ["RegistryApp", "RegistryRequest"]

_log = logging.getLogger(__name__)


class RegistryRequest(Request):
    """The request that views and hooks get: a `werkzeug.wrappers.Request`.

    >>> from werkzeug.test import create_environ
    >>> request = RegistryRequest(create_environ("/v2/", "https://registry.example.com/mirror"))
    >>> request.urls.tags("library/nginx")
    '/mirror/v2/library/nginx/tags/list'

    `url_rule`, `view_args`, `endpoint` and `routing_exception` are named as in Flask.

    - `url_rule`: the rule of the map that the request matches; `None` if it matches none.
      ``url_rule.rule`` is its template, such as ``/v2/<repository:name>/tags/list``: a label for
      metrics.
    - `view_args`: the values of the URL, which the view gets as keywords; `None` if no rule
      matches.
    - `routing_exception`: the redirect or the error that the request gets if it matches no rule.

    `RegistryApp` refuses a request whose host is malformed, or not one of `trusted_hosts`. Reading
    a body that ends before its ``Content-Length`` raises `werkzeug.exceptions.ClientDisconnected`,
    a 400, under every server.
    """

    url_rule: Rule | None = None
    view_args: Mapping[str, Any] | None = None
    routing_exception: HTTPException | None = None

    def __init__(self, environ: "WSGIEnvironment", url_map: RegistryMap | None = None) -> None:
        super().__init__(environ)
        self._url_map = url_map

    @property
    def host(self) -> str:
        """The host and port, without the default port of the scheme.

        Raises `werkzeug.exceptions.SecurityError`, a 400, if the ``Host`` is malformed, or not one
        of `trusted_hosts`. A host may have a ``_``, like the service names of Docker Compose.
        """
        environ = self.environ
        host = host_of(environ) if "HTTP_HOST" in environ else get_host(environ)
        if self.trusted_hosts and not _is_trusted(host, self.trusted_hosts):
            raise SecurityError("the request's Host is not trusted")
        return host

    @cached_property
    def args(self) -> MultiDict[str, str]:
        """The query parameters. Bytes that are not UTF-8 become U+FFFD, as in `match_url`."""
        query = self.query_string.decode(errors="replace")
        return self.parameter_storage_class(parse_qsl(query, keep_blank_values=True))

    @property
    def full_path(self) -> str:
        """The path and the query. Bytes that are not UTF-8 become U+FFFD."""
        return f"{self.path}?{self.query_string.decode(errors='replace')}"

    @cached_property
    def stream(self) -> IO[bytes]:
        """The body.

        Reading it raises `werkzeug.exceptions.ClientDisconnected` if the body ends before its
        ``Content-Length``, even under a server that ignores this, and if the server fails.
        """
        environ = self.environ
        if environ.get("CONTENT_LENGTH") and "HTTP_TRANSFER_ENCODING" not in environ:
            environ = {**environ}
            # With this key, Werkzeug would not compare the body with its length.
            environ.pop("wsgi.input_terminated", None)
        stream = get_input_stream(environ, max_content_length=self.max_content_length)
        return cast(IO[bytes], _Body(stream))

    @property
    def endpoint(self) -> str | None:
        """The endpoint that the request matches, such as ``tags``; `None` if it matches none."""
        return None if self.url_rule is None else self.url_rule.endpoint

    @property
    def scopes(self) -> list[Scope]:
        """The scopes that a token needs for this request; see `scopes.required_scopes`.

        The list is empty for `base`, and if no rule matches: any token will do then. Raises
        `errors.NameInvalid` for a malformed repository name, which one of your rules may match.
        """
        if self.url_rule is None:
            return []
        try:
            return required_scopes(str(self.endpoint), self.method, self.view_args or {}, self.args)
        except ValueError as error:
            raise NameInvalid(str(error)) from None

    @cached_property
    def urls(self) -> URLBuilder:
        """A builder of this registry's URLs, as paths.

        A ``Location`` or a ``Link`` should be a path, which cannot lead to another host, or from
        https to http behind a proxy.
        """
        return URLBuilder.from_environ(self.environ, relative=True, url_map=self._url_map)


class _Body(RawIOBase):
    """The body of a request. An exception while the server reads it becomes a 400."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def readall(self) -> bytes:
        return self._read()  # without a size: not every server takes -1 for "all"

    def _read(self, *size: int) -> bytes:
        try:
            return self._stream.read(*size)
        except HTTPException:
            raise
        # A timeout, a reset, or whatever a server raises for a malformed chunk.
        except Exception as error:
            raise ClientDisconnected from error


View = TypeVar("View", bound=Callable[..., Response])
BeforeRequest = TypeVar("BeforeRequest", bound=Callable[[RegistryRequest], Response | None])
AfterRequest = TypeVar("AfterRequest", bound=Callable[[RegistryRequest, Response], Response])


class RegistryApp:
    """A registry as a WSGI application.

    **Views.** A view gets the request, and the values of the URL as keywords. It returns a
    `werkzeug.wrappers.Response`, or raises an error of `registry_routes.errors`:

    >>> from registry_routes import errors
    >>> app = RegistryApp()
    >>> @app.view("tags", "GET")
    ... def list_tags(request: RegistryRequest, name: str) -> Response:
    ...     if name != "library/nginx":
    ...         raise errors.NameUnknown(detail={"name": name})
    ...     return Response(f'{{"name": "{name}", "tags": ["latest"]}}')

    >>> from werkzeug.test import Client
    >>> client = Client(app)
    >>> client.get("/v2/library/nginx/tags/list").get_json(force=True)
    {'name': 'library/nginx', 'tags': ['latest']}
    >>> client.get("/v2/library/Nginx/tags/list").get_json()["errors"][0]["message"]
    "repository name 'library/Nginx' must be lowercase"

    ``base`` already has a view, which you may replace.

    **Methods.** A view for GET also answers HEAD, without the body. If a route has views, but none
    for the request's method, the response is a 405 with ``Allow``. If it has no views at all, the
    response is a 404, as if there were no such route. OPTIONS gets an empty 200 with ``Allow``,
    unless it has a view.

    **Hooks.** `before_request` registers a function to call before the view, and `after_request` a
    function to call with every response. This hook counts responses by route and status:

    >>> from collections import Counter
    >>> responses = Counter()
    >>> @app.after_request
    ... def count(request: RegistryRequest, response: Response) -> Response:
    ...     route = request.url_rule.rule if request.url_rule else "none"
    ...     responses[route, response.status_code] += 1
    ...     return response

    >>> for path in "/v2/library/nginx/tags/list", "/v2/a/tags/list", "/v2/A/tags/list":
    ...     response = client.get(path)
    >>> for labels in responses:
    ...     print(*labels)
    /v2/<repository:name>/tags/list 200
    /v2/<repository:name>/tags/list 404
    none 400

    After the call, WSGI middleware around the application finds the same request in
    ``environ["werkzeug.request"]``.

    **Errors.** A `werkzeug.exceptions.HTTPException` becomes the registry's JSON, whether a view, a
    hook or the map raised it; a redirect stays a redirect. The application logs any other
    exception, and answers 500 with the code ``UNKNOWN``. It does the same for a response that no
    server can send, because its status or a header is malformed, or because a header is for the
    server to set, such as ``Connection``. If a body raises an exception while the server sends it,
    it is too late for an error: the exception reaches the server, which closes the connection.

    **Requests.** A request with a malformed ``Host`` is a 400 before any hook, and so is a request
    for another host if ``RegistryRequest.trusted_hosts`` is set. A body that ends before its
    ``Content-Length`` is a 400 as soon as a view reads it, under every server. A chunked body
    (``Transfer-Encoding: chunked``) is a 411 if the server does not set ``wsgi.input_terminated``,
    because the views would see an empty body.

    Every response has the headers ``Docker-Distribution-API-Version`` and
    ``X-Content-Type-Options``.

    :param url_map: the routes; by default, a new `RegistryMap()`. Its own rules may have views too.

    - `url_map`: the routes.
    - `testing`: whether to raise the exceptions that would otherwise be logged; `False` by default.
    """

    testing: bool = False

    def __init__(self, url_map: RegistryMap | None = None) -> None:
        if not isinstance(url_map, RegistryMap | None):
            raise TypeError(f"url_map {url_map!r} is not a RegistryMap, such as RegistryMap()")
        self.url_map: RegistryMap = RegistryMap() if url_map is None else url_map
        # Keyed by endpoint and method; `None` stands for any other method.
        self._views: dict[Any, dict[str | None, Callable[..., Response]]] = {}
        self._before: list[Callable[[RegistryRequest], Response | None]] = []
        self._after: list[Callable[[RegistryRequest, Response], Response]] = []

    def __repr__(self) -> str:
        views = ", ".join(map(repr, sorted(map(str, self._views)))) or "none"
        return f"<RegistryApp of {self.url_map.dialect.name!r}, with views: {views}>"

    def view(self, endpoint: str, *methods: str | None) -> Callable[[View], View]:
        """Register the decorated function as the view of `endpoint` for `methods`.

        Without methods, or with `None`, the function is the view for every method that the endpoint
        takes. A view for GET also answers HEAD, unless HEAD has its own view.

        A proxy can forward everything with one function:

        >>> from registry_routes import OCI_1_1
        >>> def forward(request: RegistryRequest, **values: str) -> Response: ...
        >>> app = RegistryApp()
        >>> for route in OCI_1_1.routes:
        ...     _ = app.view(route.name, *route.methods)(forward)

        Raises `ValueError` if the map has no such endpoint, or if the endpoint does not take a
        method or already has another view for it.
        """
        taken: set[str | None] = set()
        for rule in self.url_map.iter_rules():
            if rule.endpoint == endpoint:
                taken.update((None,) if rule.methods is None else rule.methods)
        known = {rule.endpoint for rule in self.url_map.iter_rules()}
        if endpoint not in known:
            near = find_closest(endpoint, map(str, known))
            raise ValueError(f"endpoint {endpoint!r} is not in the map: choose {near}")
        wanted = [method and method.upper() for method in methods]
        if not wanted or None in wanted:
            wanted = [method for method in taken if method != "HEAD" or "GET" not in taken]
        for method in wanted:
            if taken.isdisjoint((method, None)):
                takes = ", ".join(sorted(map(str, taken)))
                raise ValueError(f"endpoint {endpoint!r} takes {takes}, not {method}")

        def register(view: View) -> View:
            views = self._views.setdefault(endpoint, {})
            for method in wanted:
                if views.get(method, view) != view:
                    named = "any method" if method is None else repr(method)
                    raise ValueError(f"endpoint {endpoint!r} already has a view for {named}")
            views.update(dict.fromkeys(wanted, view))
            return view

        return register

    def before_request(self, hook: BeforeRequest) -> BeforeRequest:
        """Register a function to call with each request, before its view.

        The application calls hooks in the order of their registration. If a hook returns a response
        or raises an error, that is the answer, and neither the later hooks nor the view are called.

        The map has already matched the request, but a redirect, a 404 or a 405 is sent only after
        the hooks. So a gateway can ask for a token before a client learns which routes exist:

        >>> from registry_routes import errors, scopes
        >>> app = RegistryApp()
        >>> granted = scopes.parse_scopes("repository:library/nginx:pull")
        >>> @app.before_request
        ... def check(request: RegistryRequest) -> None:
        ...     if not all(scope.is_granted_by(granted) for scope in request.scopes):
        ...         raise errors.Unauthorized(scope=request.scopes, error="insufficient_scope")

        Browsers send preflight requests without credentials. If they use the registry, let OPTIONS
        through.
        """
        self._before.append(hook)
        return hook

    def after_request(self, hook: AfterRequest) -> AfterRequest:
        """Register a function to call with each request and its response.

        The function returns the response to send, which may be the same. It gets every response,
        including errors, redirects and those of other hooks.

        The application calls these hooks in reverse order: the first registered is called last, and
        sees the final response. If a hook raises an exception, the next hook gets the error's
        response.
        """
        self._after.insert(0, hook)
        return hook

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        request = RegistryRequest(environ, self.url_map)
        answer = _Answer(environ, self.testing)
        try:
            response = answer.ask(self._respond, request)
            for hook in self._after:
                response = answer.ask(hook, request, response)
            return answer.send(response, start_response)
        except BaseException:
            answer.close()
            raise

    def _respond(self, request: RegistryRequest) -> Response:
        request.host  # noqa: B018  Reading it raises an error if it is malformed or not trusted.
        adapter = self.url_map.bind_to_environ(request.environ)
        try:
            request.url_rule, request.view_args = adapter.match(return_rule=True)
        except HTTPException as error:
            request.routing_exception = error
        _check_length(request)
        for hook in self._before:
            response = hook(request)
            if response is not None:
                return _check_response(response, hook)
        if request.routing_exception is None:
            view = self._find_view(request.endpoint, request.method)
            if view is not None:
                return _check_response(view(request, **request.view_args or {}), view)
        elif not getattr(request.routing_exception, "valid_methods", None):
            # Either no 405, or a 405 of a path without any method, as in a read-only registry.
            raise _explain(request.routing_exception, request.environ, self.url_map)
        methods = self._list_methods(adapter)
        if not methods:
            raise RouteUnknown
        if request.method == "OPTIONS":
            return Response(headers={"Allow": ", ".join(sorted({*methods, "OPTIONS"}))})
        raise Unsupported(valid_methods=methods)

    def _list_methods(self, adapter: RegistryMapAdapter) -> list[str]:
        endpoints = dict(adapter.endpoints())
        if None in endpoints:  # a rule that takes any method
            endpoint = endpoints.pop(None)
            for method in "GET", "HEAD", *filter(None, self._views.get(endpoint, ())):
                endpoints.setdefault(method, endpoint)
        return sorted(
            method
            for method, endpoint in endpoints.items()
            if method and (endpoint is None or self._find_view(endpoint, method) is not None)
        )

    def _find_view(self, endpoint: Any, method: str) -> Callable[..., Response] | None:
        views = self._views.get(endpoint, {})
        if method == "HEAD" and "HEAD" not in views:
            method = "GET"
        view = views.get(method) or views.get(None)
        if view is None and (endpoint, method) == (RouteName.BASE, "GET"):
            return _answer_base
        return view


class _Answer:
    """The successive responses to a request: the last is sent, and all are closed.

    `close` closes those that are not sent; the body closes the one that is.
    """

    def __init__(self, environ: "WSGIEnvironment", testing: bool) -> None:
        self.environ = environ
        self.testing = testing
        self.responses: dict[int, Response] = {}  # keyed by `id`, because responses may be equal

    def ask(self, respond: Callable[..., Response], *arguments: Any) -> Response:
        """Return the response that `respond` returns; if it fails, the response for the error."""
        environ = self.environ
        try:
            try:
                return self.take(_check_response(respond(*arguments), respond))
            except HTTPException as error:
                return self.take(error_response(error, environ))
        except Exception:
            if self.testing:
                raise
            _log.exception("%s %r", environ["REQUEST_METHOD"], environ.get("PATH_INFO"))
            return self.take(error_response(Unknown()))

    def take(self, response: Response) -> Response:
        """Return the response. Raise `ValueError` if no server can send it."""
        self.responses[id(response)] = response
        self.status, self.headers = _render_head(response, self.environ)
        return response

    def send(self, response: Response, start_response: "StartResponse") -> Iterable[bytes]:
        """Start the last response, and return its body, which closes all responses."""
        body = response.get_app_iter(self.environ)
        start_response(self.status, self.headers)
        del self.responses[id(response)]
        # The earlier responses are closed last, because the sent response may read from them.
        return ClosingIterator(body, self.close) if self.responses else body

    def close(self) -> None:
        for response in self.responses.values():
            response.close()


def _check_response(response: Any, function: Callable[..., Any]) -> Response:
    """Return the result of `function`. Raise `TypeError` if it is not a response."""
    if isinstance(response, Response):
        return response
    name = getattr(function, "__name__", function)
    raise TypeError(f"{name!r} returned {response!r} instead of a Response")


def _explain(
    error: HTTPException, environ: "WSGIEnvironment", url_map: RegistryMap
) -> HTTPException:
    """Return the error, or a 404 that names the cause if the mount contains the API's root."""
    mount, root = environ.get("SCRIPT_NAME", "").rstrip("/"), url_map.table.root
    if type(error) is not NotFound or not mount.endswith(root):
        return error
    return RouteUnknown(
        f"the registry expects {root!r} at the start of the path, but the server has taken it "
        f"away: mount the registry at {mount.removesuffix(root) or '/'!r} instead of {mount!r}"
    )


def _is_trusted(host: str, trusted: Collection[str]) -> bool:
    """Return whether a host is in `trusted`, or under one of its entries that start with a dot."""
    name = _strip_port(host)
    for given in [trusted] if isinstance(trusted, str) else trusted:
        suffix = _strip_port(given.removeprefix("."))
        if name == suffix or (given.startswith(".") and name.endswith(f".{suffix}")):
            return True
    return False


def _strip_port(host: str) -> str:
    """Return a host without its port, in lowercase ASCII."""
    name = re.sub(":[0-9]*$", "", host).lower()
    return name if name.isascii() else name.encode("idna").decode()


def _check_length(request: RegistryRequest) -> None:
    """Raise an error for a body that Werkzeug would take for empty."""
    environ = request.environ
    length = environ.get("CONTENT_LENGTH")
    if length and not (length.isascii() and length.isdecimal() and len(length) < 19):
        raise SizeInvalid(f"Content-Length {length[:64]!r} must be a whole number of bytes")
    has_no_length = "HTTP_TRANSFER_ENCODING" in environ
    if not length and request.method in ("POST", "PUT", "PATCH"):
        # From HTTP/2 on, a body needs neither header.
        has_no_length |= environ.get("SERVER_PROTOCOL", "").startswith(("HTTP/2", "HTTP/3"))
    if has_no_length and not environ.get("wsgi.input_terminated"):
        raise LengthRequired("the body has no Content-Length")


# Headers that only a server may send (PEP 3333; RFC 9110, 7.6.1), and the empty name.
_NEVER_SENT = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
_NEVER_SENT |= {"proxy-authenticate", "proxy-authorization", "proxy-connection", ""}

_is_status = re.compile(r"[2-9][0-9]{2} [ -~\x80-\xff]*").fullmatch  # 1xx is not final
_is_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110, 5.1
_is_text = re.compile(r"[ -~\x80-\xff]*").fullmatch  # PEP 3333: Latin-1, without control characters


_is_length = re.compile("[0-9]{1,18}").fullmatch


def _render_head(
    response: Response, environ: "WSGIEnvironment"
) -> tuple[str, list[tuple[str, str]]]:
    """Return the status and the headers of a response for the server, or raise `ValueError`."""
    status, headers = response.status, response.get_wsgi_headers(environ).to_wsgi_list()
    lowered = [name.lower() for name, _ in headers]
    _check_head(status, headers, lowered)
    if "docker-distribution-api-version" not in lowered:
        headers.append(("Docker-Distribution-API-Version", "registry/2.0"))
    if "x-content-type-options" not in lowered:
        headers.append(("X-Content-Type-Options", "nosniff"))
    return status, headers


def _check_head(status: str, headers: list[tuple[str, str]], lowered: list[str]) -> None:
    """Raise `ValueError` if no server can send these. `lowered` has the names in lower case."""
    if not _is_status(status):
        raise ValueError(f"status {status!r} must be a number from 200 to 999 and a reason")
    names, values = zip(*headers, strict=True) if headers else ((), ())
    letters, text = "".join(names).replace("-", ""), "".join(values)
    is_plain = letters.isascii() and letters.isalnum() and text.isascii()
    if not (is_plain and text.isprintable()):  # the quick check failed; the headers may be valid
        for name, value in headers:
            if not (_is_token(name) and _is_text(value)):
                raise ValueError(
                    f"header {name!r}: {value!r} must be a token and one line of Latin-1"
                )
    if not _NEVER_SENT.isdisjoint(lowered):
        name = min(_NEVER_SENT.intersection(lowered))
        raise ValueError(f"header {name!r} is for the server to set")
    if "content-length" in lowered:
        length = values[lowered.index("content-length")]
        if not _is_length(length):
            raise ValueError(f"Content-Length {length!r} must be a whole number of bytes")
        if lowered.count("content-length") > 1:
            raise ValueError("header 'Content-Length' is set more than once")


def _answer_base(request: RegistryRequest) -> Response:
    return Response("{}", mimetype="application/json")


def find_closest(word: str, known: Iterable[str]) -> str:
    """Return the known words closest to `word`, or all of them if none is close, for a message.

    >>> find_closest("tag", ["base", "tags"]), find_closest("x", ["base", "tags"])
    ("'tags'", "'base' or 'tags'")
    """
    words = sorted(known)
    return " or ".join(map(repr, get_close_matches(str(word), words, cutoff=0.5) or words))
