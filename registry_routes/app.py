"""`RegistryApp`: a registry as a WSGI application, a view for each endpoint and method."""

import logging
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

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
)
from .map import RegistryMap, RegistryMapAdapter, url_map
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

    def __init__(self, environ: "WSGIEnvironment", url_map: RegistryMap = url_map) -> None:
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

    What every registry has to do is done: HEAD follows GET. A route that has views, but none for
    the method, is a 405 with the methods that there are; a route without any is a 404, so that
    clients do without it (the referrers, say). Every error leaves as the registry's JSON; one that
    is no HTTP exception is logged, and leaves as UNKNOWN. Every response has the
    ``Docker-Distribution-API-Version``. The view of `base` is there, and may be replaced.

    :param url_map: the routes; rules of your own in it may have views too.
    """

    def __init__(self, url_map: RegistryMap = url_map) -> None:
        self.url_map = url_map
        self._views: dict[Any, dict[str, Callable[..., Response]]] = {}

    def view(self, endpoint: str, *methods: str) -> Callable[[View], View]:
        """Register the decorated function as the view of `endpoint` for `methods`.

        Raises `ValueError` where the map has no such endpoint, where the endpoint does not take
        the method, or where it has a view for it.
        """
        if not methods:
            raise ValueError(f"a view of {endpoint!r} must have a method")
        taken: set[str] = set()
        for rule in self.url_map.iter_rules():
            if rule.endpoint == endpoint:
                taken.update(methods if rule.methods is None else rule.methods)
        views = self._views.get(endpoint, {})
        for method in methods:
            if method not in taken:
                raise ValueError(f"endpoint {endpoint!r} must take the method {method!r}")
            if method in views:
                raise ValueError(f"endpoint {endpoint!r} must have one view for {method!r}")

        def register(view: View) -> View:
            self._views.setdefault(endpoint, {}).update(dict.fromkeys(methods, view))
            return view

        return register

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        try:
            response = self._respond(environ)
        except HTTPException as error:
            response = error_response(error, environ)
        except Exception:
            log.exception("%s %r", environ["REQUEST_METHOD"], environ.get("PATH_INFO"))
            response = error_response(Unknown(), environ)
        response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
        return response(environ, start_response)

    def _respond(self, environ: "WSGIEnvironment") -> Response:
        adapter = self.url_map.bind_to_environ(environ)
        try:
            endpoint, values = adapter.match()
        except MethodNotAllowed as error:
            raise self._refusal(self._refused_endpoint(adapter, error)) from None
        method = environ["REQUEST_METHOD"].upper()
        views = self._views_of(endpoint)
        view = views.get(method)
        if view is None and method == "HEAD":
            view = views.get("GET")
        if view is None:
            raise self._refusal(endpoint)
        length = environ.get("CONTENT_LENGTH", "")
        if length and not (length.isascii() and length.isdecimal()):
            # Werkzeug would take the body for an empty one.
            raise SizeInvalid(f"Content-Length {length!r} must be a whole number")
        return view(RegistryRequest(environ, self.url_map), **values)

    def _views_of(self, endpoint: Any) -> dict[str, Callable[..., Response]]:
        views = self._views.get(endpoint)
        if views is None:
            return {"GET": _base} if endpoint == RouteName.BASE else {}
        return views

    def _refused_endpoint(self, adapter: RegistryMapAdapter, error: MethodNotAllowed) -> Any:
        """The endpoint that takes other methods on the path."""
        method = next(iter(error.valid_methods or ["GET"]))
        try:
            return adapter.match(method=method)[0]
        except RequestRedirect as redirect:  # the path has a slash too many or too few
            path = unquote(urlsplit(redirect.new_url).path)
            return adapter.match(path.removeprefix(adapter.script_name.rstrip("/")), method)[0]

    def _refusal(self, endpoint: Any) -> RegistryError:
        """The error for a method that an endpoint has no view for."""
        methods = set(self._views_of(endpoint))
        if "GET" in methods:
            methods.add("HEAD")
        return Unsupported(valid_methods=sorted(methods)) if methods else RouteUnknown()


def _base(request: RegistryRequest) -> Response:
    return Response("{}", mimetype="application/json")


#: The error codes of what is no `RegistryError`, by status.
_CODES = {
    **{status: error.error_code for status, error in BY_STATUS.items()},
    404: RouteUnknown.error_code,
    413: SizeInvalid.error_code,
    416: RangeInvalid.error_code,
}


def error_response(error: HTTPException, environ: "WSGIEnvironment | None" = None) -> Response:
    """The response for `error`: the registry's JSON, whatever has raised it.

    A redirect stays one, and an error that carries a response is that response. For Flask, say:
    ``app.register_error_handler(HTTPException, error_response)``.

    >>> from werkzeug.exceptions import Forbidden
    >>> error_response(Forbidden("not you")).get_json()
    {'errors': [{'code': 'DENIED', 'message': 'not you'}]}
    """
    response = error.get_response(environ)
    if isinstance(error, RequestRedirect):
        response.data = b""
        del response.headers["Content-Type"]
    elif not isinstance(error, RegistryError) and error.response is None:
        code = _CODES.get(error.code or 500, Unknown.error_code)
        response.data = error_body(code, error.description or error.name)
        response.content_type = "application/json"
    return response
