"""An OCI image layout as a read-only registry, with a page that lists its images, in Starlette.

    python examples/starlette_app.py --layout ./busybox --name library/busybox --port 5004

`RegistryRoute` is a single route for Starlette or FastAPI that has all the routes of a
`RegistryMap`. It matches and redirects as the map does, and answers every error with the registry's
JSON.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from html import escape
from typing import Any

import uvicorn
from asgi import environ_of
from layout import Layout, parse_arguments
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.datastructures import URLPath
from starlette.exceptions import HTTPException as StarletteError
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Match, NoMatchFound, Route
from starlette.types import Receive, Scope, Send
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WSGIResponse

from registry_routes import (
    OCI_1_1,
    RegistryMap,
    RegistryMapAdapter,
    RegistryRequest,
    error_response,
    errors,
)
from registry_routes.paging import next_link, paginate, parse_page
from registry_routes.registry import blob_response, manifest_response
from registry_routes.table import clean_path

log = logging.getLogger(__name__)

View = Callable[..., Awaitable[Response]]


class RegistryRoute(BaseRoute):
    """All routes of a `RegistryMap` as a single route of a Starlette application or `Mount`.

    It answers every path under ``/v2``. Put your own routes there, such as ``/v2/token``, before
    it.

    :param url_map: the routes, usually a subset. It answers all other paths with errors.
    :param views: a view for each endpoint, ``async def view(request, **values)``, which returns a
        response or raises an error of `registry_routes.errors`, of Werkzeug or of Starlette.

    Raise `ValueError` for an endpoint without a view, and for a view without an endpoint.
    """

    def __init__(self, url_map: RegistryMap, views: Mapping[str, View]) -> None:
        if odd := {route.endpoint for route in url_map.dialect.routes} ^ set(views):
            raise ValueError(f"endpoint {min(odd)!r} lacks a view, or the map lacks this endpoint")
        self.url_map = url_map
        self.views = views

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        is_here = scope["type"] == "http" and self.url_map.table.is_under_root(
            clean_path(_split_path(scope)[1])
        )
        return (Match.FULL if is_here else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._respond(Request(scope, receive))
        except HTTPException as error:
            response = to_starlette(error_response(error), scope)
        except StarletteError as error:
            known = HTTPException(error.detail)
            known.code = error.status_code
            response = to_starlette(error_response(known), scope)
            response.headers.update(error.headers or {})
        except Exception:
            log.exception("%s %r", scope["method"], scope["path"])
            response = to_starlette(error_response(errors.Unknown()), scope)
        response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        adapter = self._bind(request.scope)
        endpoint, values = adapter.match()
        request.scope["path_params"] = dict(values)
        return await self.views[endpoint](request, **values)

    def _bind(self, scope: Scope) -> RegistryMapAdapter:
        root, path = _split_path(scope)
        return self.url_map.bind(
            "localhost",  # the registry's redirects are paths, without a host
            script_name=root,
            path_info=path,
            default_method=scope["method"],
            query_args=scope["query_string"].decode("latin-1"),
        )

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        """Return the path of an endpoint, for ``request.url_for``."""
        if name not in self.views:
            raise NoMatchFound(name, path_params)
        return URLPath(self.url_map.bind("localhost").build(name, path_params), "http")


def _split_path(scope: Scope) -> tuple[str, str]:
    """Return the path of the mount, and the rest of the request's path."""
    root, path = scope.get("root_path", "").rstrip("/"), scope["path"]
    return root, path.removeprefix(root) if f"{path}/".startswith(f"{root}/") else path


def to_starlette(answer: WSGIResponse, scope: Scope) -> Response:
    """Convert a Werkzeug response to a Starlette response that reads it in a thread."""
    blocks, _, headers = answer.get_wsgi_response(environ_of(scope))

    async def content() -> AsyncIterator[bytes]:
        try:
            async for block in iterate_in_threadpool(blocks):
                yield block
        finally:
            answer.close()

    response = StreamingResponse(content(), answer.status_code)
    response.raw_headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
    ]
    return response


def make_routes(layout: Layout) -> list[BaseRoute]:
    """Return routes that serve the images of `layout`, for ``Starlette(routes=…)`` or FastAPI."""

    async def base(request: Request) -> Response:
        return JSONResponse({})

    async def tags(request: Request, name: str) -> Response:
        layout.check_name(name)
        n, last = parse_page(MultiDict(request.query_params.multi_items()))
        names, more = paginate(await run_in_threadpool(layout.tags_after, last), n)
        response = JSONResponse({"name": name, "tags": names})
        if more:
            url = request.url.include_query_params(n=n, last=names[-1])
            response.headers["Link"] = next_link(f"{url.path}?{url.query}")
        return response

    async def manifest(request: Request, name: str, tag: str = "", digest: str = "") -> Response:
        layout.check_name(name)
        found = await run_in_threadpool(layout.manifest, tag, digest)
        answer = manifest_response(registry_request(request), *found)
        return to_starlette(answer, request.scope)

    async def blob(request: Request, name: str, digest: str) -> Response:
        layout.check_name(name)
        found = await run_in_threadpool(layout.open_blob, digest)
        # Not Starlette's `FileResponse`, which answers ranges differently.
        answer = blob_response(registry_request(request), digest, found)
        return to_starlette(answer, request.scope)

    async def front_page(request: Request) -> Response:
        items = ""
        for tag in sorted(await run_in_threadpool(layout.tags)):
            url = request.url_for("manifest", name=layout.name, tag=tag)
            items += f'<li><a href="{escape(url.path)}">{escape(tag)}</a></li>'
        return HTMLResponse(f"<!doctype html><h1>{escape(layout.name)}</h1><ul>{items}</ul>")

    views: dict[str, View] = {"base": base, "tags": tags, "manifest": manifest, "blob": blob}
    url_map = RegistryMap(dialect=OCI_1_1.subset(*views, methods=["GET"]))
    return [Route("/", front_page), RegistryRoute(url_map, views)]


def registry_request(request: Request) -> RegistryRequest:
    """Convert a request, without its body, to the class that `registry_routes` takes."""
    return RegistryRequest(environ_of(request.scope))


def main() -> None:
    layout, host, port = parse_arguments(port=5004)
    uvicorn.run(Starlette(routes=make_routes(layout)), host=host, port=port)


if __name__ == "__main__":
    main()
