"""`RegistryApp`: a registry as a WSGI application, a view for each endpoint and method."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import RequestRedirect
from werkzeug.wrappers import Request, Response

from .errors import (
    BY_STATUS,
    RangeInvalid,
    RegistryError,
    RouteUnknown,
    SizeInvalid,
    Unknown,
    Unsupported,
    error_body,
    error_entry,
)
from .map import RegistryMap, RegistryMapAdapter
from .map import url_map as ready_made_map
from .routes import RouteName
from .urls import URLBuilder

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)


class RegistryRequest(Request):
    """The `werkzeug.wrappers.Request` that a view gets.

    >>> from werkzeug.test import create_environ
    >>> request = RegistryRequest(create_environ("/v2/", "https://registry.example.com/mirror"))
    >>> request.urls.tags("library/nginx")
    '/mirror/v2/library/nginx/tags/list'
    """

    def __init__(self, environ: "WSGIEnvironment", url_map: RegistryMap | None = None) -> None:
        super().__init__(environ)
        self._url_map = url_map

    @cached_property
    def urls(self) -> URLBuilder:
        """Builds URLs of this registry, as paths: what a ``Location`` or a ``Link`` should have,
        as no path can lead to another host, or from https to http behind a proxy."""
        return URLBuilder.from_environ(self.environ, relative=True, url_map=self._url_map)


View = TypeVar("View", bound=Callable[..., Response])


class RegistryApp:
    """A registry as a WSGI application.

    A view gets the request, and the values of the URL as keywords, and returns a
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

    HEAD follows GET. A route that has views, but none for
    the method, is a 405 with the methods that there are; a route without any is a 404, so that
    clients do without it (the referrers, say). Every error leaves as the registry's JSON; one that
    is no HTTP exception is logged, and leaves as UNKNOWN. Every response has the
    ``Docker-Distribution-API-Version``. The view of `base` is there, and may be replaced.

    :param url_map: the routes, where they are not those of `registry_routes.url_map`; rules of
        your own in it may have views too.
    """

    def __init__(self, url_map: RegistryMap | None = None) -> None:
        if not isinstance(url_map, RegistryMap | None):
            raise TypeError(
                f"url_map {url_map!r} must be a RegistryMap, such as RegistryMap(OCI_1_1)"
            )
        self.url_map = url_map or ready_made_map
        self._views: dict[Any, dict[str, Callable[..., Response]]] = {}

    def view(self, endpoint: str, *methods: str) -> Callable[[View], View]:
        """Register the decorated function as the view of `endpoint` for `methods`.

        A view for GET is called for HEAD too, and what it returns loses its body.

        Raises `ValueError` where the map has no such endpoint, where the endpoint does not take
        the method, or where it has a view for it.
        """
        if not methods:
            raise ValueError(f"a view of {endpoint!r} must have a method")
        methods = tuple(method.upper() for method in methods)
        rules = [rule for rule in self.url_map.iter_rules() if rule.endpoint == endpoint]
        if not rules:
            raise ValueError(f"endpoint {endpoint!r} must be one of the map's")
        taken: set[str] = set()
        for rule in rules:
            taken.update(methods if rule.methods is None else rule.methods)
        for method in methods:
            if method not in taken:
                raise ValueError(f"endpoint {endpoint!r} must take the method {method!r}")

        def register(view: View) -> View:
            views = self._views.setdefault(endpoint, {})
            for method in methods:
                if method in views:
                    raise ValueError(f"endpoint {endpoint!r} must have one view for {method!r}")
            views.update(dict.fromkeys(methods, view))
            return view

        return register

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        try:
            try:
                response = self._respond(environ)
            except HTTPException as error:
                response = error_response(error, environ)
        except Exception:
            log.exception("%s %r", environ["REQUEST_METHOD"], environ.get("PATH_INFO"))
            response = error_response(Unknown(), environ)
        response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response(environ, start_response)

    def _respond(self, environ: "WSGIEnvironment") -> Response:
        adapter = self.url_map.bind_to_environ(environ)
        try:
            endpoint, values = adapter.match()
        except MethodNotAllowed as error:
            raise self._refusal(adapter, error) from None
        method = environ["REQUEST_METHOD"].upper()
        view = self._view_of(endpoint, method)
        if view is None:
            # A rule that takes any method has no list of them.
            others = adapter.allowed_methods() or {*self._views.get(endpoint, ()), "GET", "HEAD"}
            raise self._refusal(adapter, MethodNotAllowed(others))
        length = environ.get("CONTENT_LENGTH", "")
        if length and not (length.isascii() and length.isdecimal() and len(length) < 19):
            # Werkzeug would take the body for an empty one.
            raise SizeInvalid(f"Content-Length {length[:64]!r} must be a whole number of bytes")
        response = view(RegistryRequest(environ, self.url_map), **values)
        if not isinstance(response, Response):
            raise TypeError(f"view of {endpoint!r} must return a Response, not {response!r}")
        return response

    def _view_of(self, endpoint: Any, method: str) -> Callable[..., Response] | None:
        views = self._views.get(endpoint, {})
        if method == "HEAD" and "HEAD" not in views:
            method = "GET"
        if endpoint == RouteName.BASE and method == "GET":
            return views.get("GET", _base)
        return views.get(method)

    def _refusal(self, adapter: RegistryMapAdapter, error: MethodNotAllowed) -> RegistryError:
        """The error for a path that takes other methods, of which some may have a view."""
        viewed = []
        for method in error.valid_methods or ():
            try:
                endpoint, _ = adapter.match(method=method)
            except RequestRedirect:  # to the route, by its canonical path; or somewhere else
                endpoint = getattr(error, "endpoint", None)
            except HTTPException:  # the rule that takes the method does not answer for this path
                continue
            if endpoint is None or self._view_of(endpoint, method) is not None:
                viewed.append(method)
        return Unsupported(valid_methods=sorted(viewed)) if viewed else RouteUnknown()


def _base(request: RegistryRequest) -> Response:
    return Response("{}", mimetype="application/json")


#: The error codes of what is no `RegistryError`, by status.
_CODES = {
    **{status: error.error_code for status, error in BY_STATUS.items()},
    404: RouteUnknown.error_code,
    413: SizeInvalid.error_code,
    416: RangeInvalid.error_code,
}


def error_response(
    error: HTTPException | Sequence[HTTPException], environ: "WSGIEnvironment | None" = None
) -> Response:
    """The response for `error`: the registry's JSON, whatever has raised it.

    Of several errors, as `errors.parse_errors` reads them, the body lists all; the status and the
    headers are those of the first.

    A redirect stays one, and an error that carries a response is that response. For Flask:
    ``app.register_error_handler(HTTPException, error_response)``.

    >>> from werkzeug.exceptions import Forbidden
    >>> error_response(Forbidden("not you")).get_json()
    {'errors': [{'code': 'DENIED', 'message': 'not you'}]}

    Raises `ValueError` if there is no error.
    """
    errors = [error] if isinstance(error, HTTPException) else error
    if not errors:
        raise ValueError("a response must have an error, and there are none")
    first = errors[0]
    response = first.get_response(environ)
    if first.response is not None:
        return response
    if isinstance(first, RequestRedirect):
        response.data = b""
        del response.headers["Content-Type"]
        return response
    response.status_code = first.code or 500
    if len(errors) > 1 or not isinstance(first, RegistryError):
        response.data = error_body(map(_entry_of, errors))
        response.content_type = "application/json"
    return response


def _entry_of(error: HTTPException) -> dict[str, Any]:
    if isinstance(error, RegistryError):
        return error.entry
    code = _CODES.get(error.code or 500, Unknown.error_code)
    return error_entry(code, error.description or error.name)
