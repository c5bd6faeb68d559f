"""`RegistryApp`: a registry as a WSGI application, a view for each endpoint and method."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from werkzeug.exceptions import HTTPException, LengthRequired, MethodNotAllowed
from werkzeug.routing import RequestRedirect, Rule
from werkzeug.wrappers import Request, Response
from werkzeug.wsgi import ClosingIterator

from .errors import NameInvalid, RouteUnknown, SizeInvalid, Unknown, Unsupported, error_response
from .map import RegistryMap, RegistryMapAdapter
from .map import url_map as ready_made_map
from .routes import RouteName
from .scopes import Scope, required_scopes
from .urls import URLBuilder

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_log = logging.getLogger(__name__)


class RegistryRequest(Request):
    """The `werkzeug.wrappers.Request` that views and hooks get.

    >>> from werkzeug.test import create_environ
    >>> request = RegistryRequest(create_environ("/v2/", "https://registry.example.com/mirror"))
    >>> request.urls.tags("library/nginx")
    '/mirror/v2/library/nginx/tags/list'

    `url_rule`, `view_args`, `endpoint` and `routing_exception` are named as in Flask.
    """

    url_rule: Rule | None = None
    """The rule of the map that the request matches; `None` if it matches none. ``url_rule.rule`` is
    its template, such as ``/v2/<repository:name>/tags/list``: a label for metrics."""

    view_args: Mapping[str, Any] | None = None
    """The values of the URL that the view gets as keywords; `None` if no rule matches."""

    routing_exception: HTTPException | None = None
    """The redirect or the error that the request gets because it matches no rule."""

    def __init__(self, environ: "WSGIEnvironment", url_map: RegistryMap | None = None) -> None:
        super().__init__(environ)
        self._url_map = url_map

    @property
    def endpoint(self) -> str | None:
        """The endpoint that the request matches, such as ``tags``; `None` if it matches none."""
        return None if self.url_rule is None else self.url_rule.endpoint

    @property
    def scopes(self) -> list[Scope]:
        """What a token must allow for this request; see `scopes.required_scopes`.

        The list is empty for `base`, and if no rule matches. Any token will do then. Raises
        `errors.NameInvalid` for a malformed repository name, which a rule of your own may match.
        """
        if self.url_rule is None:
            return []
        try:
            return required_scopes(str(self.endpoint), self.method, self.view_args or {}, self.args)
        except ValueError as error:
            raise NameInvalid(str(error)) from None

    @cached_property
    def urls(self) -> URLBuilder:
        """Builds URLs of this registry as paths. A ``Location`` or a ``Link`` should be a path,
        which cannot lead to another host, or from https to http behind a proxy."""
        return URLBuilder.from_environ(self.environ, relative=True, url_map=self._url_map)


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

    There is a view for ``base`` already. You may register another.

    **Methods.** A view for GET is called for HEAD too, and its body is left out. If a route has
    views, but none for the request's method, the response is a 405 with ``Allow``. If it has no
    views at all, the response is a 404, as if there were no such route. OPTIONS gets an empty 200
    with ``Allow``, unless there is a view for it.

    **Hooks.** `before_request` registers a function that is called before the view, and
    `after_request` one that sees every response. This one counts responses by route and status:

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

    After the call, WSGI middleware around the application finds the same request as
    ``environ["werkzeug.request"]``.

    **Errors.** A `werkzeug.exceptions.HTTPException` becomes the registry's JSON, whether a view, a
    hook or the map raised it; a redirect stays a redirect. Any other exception is logged, and
    becomes a 500 with the code ``UNKNOWN``. So does a response that no server can send, because its
    status or a header is malformed, or because a header is for the server to set, such as
    ``Connection``. If a body raises an exception while it is being sent, it is too late for an
    error: the exception reaches the server, which closes the connection.

    A chunked request body (``Transfer-Encoding: chunked``) is a 411 if the server does not set
    ``wsgi.input_terminated``: the views would get an empty body instead.

    **Testing.** If ``app.testing`` is set, the exceptions that would be logged are raised.

    Every response has the headers ``Docker-Distribution-API-Version`` and
    ``X-Content-Type-Options``.

    :param url_map: the routes; by default, those of `registry_routes.url_map`. Its own rules may
        have views too.
    """

    testing: bool = False
    """Whether an exception that would be logged and become a 500 is raised instead."""

    def __init__(self, url_map: RegistryMap | None = None) -> None:
        if not isinstance(url_map, RegistryMap | None):
            raise TypeError(
                f"url_map {url_map!r} must be a RegistryMap, such as RegistryMap(OCI_1_1)"
            )
        self.url_map: RegistryMap = url_map or ready_made_map
        # By endpoint and method; `None` stands for any other method.
        self._views: dict[Any, dict[str | None, Callable[..., Response]]] = {}
        self._before: list[Callable[[RegistryRequest], Response | None]] = []
        self._after: list[Callable[[RegistryRequest, Response], Response]] = []

    def view(self, endpoint: str, *methods: str | None) -> Callable[[View], View]:
        """Register the decorated function as the view of `endpoint` for `methods`.

        Without methods, or with `None`, it is the view for every method that the endpoint takes.
        A view for GET also answers HEAD, unless HEAD has its own view.

        A proxy can forward everything with one function:

        >>> from registry_routes import OCI_1_1
        >>> def forward(request: RegistryRequest, **values: str) -> Response: ...
        >>> app = RegistryApp()
        >>> for route in OCI_1_1.routes:
        ...     _ = app.view(route.name, *route.methods)(forward)

        Raises `ValueError` if the map has no such endpoint, if the endpoint does not take the
        method, or if it already has another view for it.
        """
        taken: set[str | None] = set()
        for rule in self.url_map.iter_rules():
            if rule.endpoint == endpoint:
                taken.update((None,) if rule.methods is None else rule.methods)
        if not taken:
            near = closest(endpoint, {str(rule.endpoint) for rule in self.url_map.iter_rules()})
            raise ValueError(f"endpoint {endpoint!r} must be one of the map's, such as {near}")
        wanted = [method and method.upper() for method in methods]
        if not wanted or None in wanted:
            wanted = [method for method in taken if method != "HEAD" or "GET" not in taken]
        for method in wanted:
            if taken.isdisjoint((method, None)):
                raise ValueError(f"endpoint {endpoint!r} must take the method {method!r}")

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
        """Register a function that is called with each request, before its view.

        Hooks are called in the order in which they were registered. If one returns a response or
        raises an error, that is the answer: neither the hooks after it nor the view are called.

        The request has already been matched, but a redirect, a 404 or a 405 is sent only after the
        hooks. So a gateway can ask for a token before a client learns which routes exist:

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
        """Register a function that is called with each request and its response.

        It returns the response to send: the same one, changed or not, or another. It is called for
        every response, including errors, redirects and those of other hooks.

        Hooks are called in reverse order: the one that was registered first is called last, and
        sees what is sent. If a hook raises an exception, the next one gets the error's response.
        """
        self._after.insert(0, hook)
        return hook

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        request = RegistryRequest(environ, self.url_map)
        response, sent = self._answer(request, self._respond, request)
        replaced: list[Response] = []
        for hook in self._after:
            before = response
            response, sent = self._answer(request, hook, request, before)
            if response is not before:
                replaced.append(before)
        body, status, headers = sent
        if replaced:  # only now, as the new response may read what the old one holds
            body = ClosingIterator(body, [one.close for one in replaced])
        start_response(status, headers)
        return body

    def _answer(
        self, request: RegistryRequest, respond: Callable[..., Response], *arguments: Any
    ) -> "tuple[Response, _Sent]":
        """What `respond` returns or raises, as a response, and as what the server gets."""
        failure: HTTPException
        try:
            response = respond(*arguments)
            if not isinstance(response, Response):
                raise _misreturned(respond, response)
            try:
                return response, _sent(response, request.environ)
            except Exception:
                if response not in arguments:  # else it is replaced, and closed for that
                    response.close()
                raise
        except HTTPException as error:
            failure = error
        except Exception:
            if self.testing:
                raise
            environ = request.environ
            _log.exception("%s %r", environ["REQUEST_METHOD"], environ.get("PATH_INFO"))
            failure = Unknown()
        return self._answer(request, error_response, failure, request.environ)

    def _respond(self, request: RegistryRequest) -> Response:
        adapter = self.url_map.bind_to_environ(request.environ)
        try:
            request.url_rule, request.view_args = adapter.match(return_rule=True)
        except HTTPException as error:
            request.routing_exception = error
        _check_length(request)
        for hook in self._before:
            response = hook(request)
            if isinstance(response, Response):
                return response
            if response is not None:
                raise _misreturned(hook, response)
        if request.routing_exception is not None:
            return self._refuse(request, adapter, request.routing_exception)
        view = self._view_of(request.endpoint, request.method)
        if view is None:
            methods = adapter.allowed_methods()
            if not methods:  # a rule that takes any method does not list them
                views = self._views.get(request.endpoint, {})
                methods = ["GET", "HEAD", *filter(None, views)]
            return self._refuse(request, adapter, MethodNotAllowed(methods))
        response = view(request, **request.view_args or {})
        if not isinstance(response, Response):
            raise _misreturned(view, response)
        return response

    def _view_of(self, endpoint: Any, method: str) -> Callable[..., Response] | None:
        views = self._views.get(endpoint, {})
        if method == "HEAD" and "HEAD" not in views:
            method = "GET"
        view = views.get(method) or views.get(None)
        return _base if view is None and (endpoint, method) == (RouteName.BASE, "GET") else view

    def _refuse(
        self, request: RegistryRequest, adapter: RegistryMapAdapter, error: HTTPException
    ) -> Response:
        """Raise the error. If it is a 405, list only the methods that have a view."""
        if not isinstance(error, MethodNotAllowed):
            raise error
        viewed = set()
        for method in error.valid_methods or ():
            try:
                endpoint, _ = adapter.match(method=method)
            except RequestRedirect:  # to the canonical path of the route, or somewhere else
                endpoint = getattr(error, "endpoint", None)
            except HTTPException:  # the rule that takes the method does not serve this path
                continue
            if endpoint is None or self._view_of(endpoint, method) is not None:
                viewed.add(method)
        if not viewed:
            raise RouteUnknown
        if request.method == "OPTIONS":
            return Response(headers={"Allow": ", ".join(sorted({*viewed, "OPTIONS"}))})
        raise Unsupported(valid_methods=sorted(viewed))


def _misreturned(function: Callable[..., Any], returned: object) -> TypeError:
    name = getattr(function, "__name__", function)
    return TypeError(f"{name!r} must return a Response, not {returned!r}")


def _check_length(request: RegistryRequest) -> None:
    """Raise an error for a body that Werkzeug would read as empty."""
    environ = request.environ
    length = environ.get("CONTENT_LENGTH")
    if length and not (length.isascii() and length.isdecimal() and len(length) < 19):
        raise SizeInvalid(f"Content-Length {length[:64]!r} must be a whole number of bytes")
    has_no_length = "HTTP_TRANSFER_ENCODING" in environ
    if not length and request.method in ("POST", "PUT", "PATCH"):
        # From HTTP/2 on, a body needs neither header.
        has_no_length |= environ.get("SERVER_PROTOCOL", "").startswith(("HTTP/2", "HTTP/3"))
    if has_no_length and not environ.get("wsgi.input_terminated"):
        raise LengthRequired("the body must have a Content-Length")


#: What a WSGI server gets: the body, the status and the headers.
_Sent: TypeAlias = tuple[Iterable[bytes], str, list[tuple[str, str]]]

_OWN_HEADERS = {
    "docker-distribution-api-version": ("Docker-Distribution-API-Version", "registry/2.0"),
    "x-content-type-options": ("X-Content-Type-Options", "nosniff"),
}

#: Headers that only a server may send (PEP 3333; RFC 9110, 7.6.1), and the empty name.
_NEVER_SENT = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
_NEVER_SENT |= {"proxy-authenticate", "proxy-authorization", "proxy-connection", ""}

_is_status = re.compile(r"[2-9][0-9]{2} [ -~\x80-\xff]*").fullmatch  # 1xx is not final
_is_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110, 5.1
_is_text = re.compile(r"[ -~\x80-\xff]*").fullmatch  # PEP 3333: Latin-1, without control characters


def _sent(response: Response, environ: "WSGIEnvironment") -> _Sent:
    """A response as a server gets it. Raises `ValueError` if no server can send it."""
    body, status, headers = response.get_wsgi_response(environ)
    if not _is_status(status):
        raise ValueError(f"status {status!r} must be a number from 200 to 999 and a reason")
    names = {name.lower() for name, _ in headers}
    letters = "".join([name for name, _ in headers]).replace("-", "")
    text = "".join([value for _, value in headers])
    is_plain = letters.isascii() and letters.isalnum() and text.isascii()
    if not (is_plain and text.isprintable()):  # it may still be valid
        for name, value in headers:
            if not (_is_token(name) and _is_text(value)):
                raise ValueError(
                    f"header {name!r}: {value!r} must be a token and one line of Latin-1"
                )
    if not names.isdisjoint(_NEVER_SENT):
        raise ValueError(f"header {min(names & _NEVER_SENT)!r} must be left to the server")
    headers += [header for name, header in _OWN_HEADERS.items() if name not in names]
    return body, status, headers


def _base(request: RegistryRequest) -> Response:
    return Response("{}", mimetype="application/json")


def closest(word: str, known: Iterable[str]) -> str:
    """Return the known words closest to `word`, or all of them if none is close, for a message.

    >>> closest("tag", ["base", "tags"]), closest("x", ["base", "tags"])
    ("'tags'", "'base' or 'tags'")
    """
    words = sorted(known)
    return " or ".join(map(repr, get_close_matches(str(word), words, cutoff=0.5) or words))
