"""`RegistryRoute` of `examples/starlette_app.py`: the routes of a map in Starlette."""

import asyncio
import json
import logging
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import NoMatchFound, Route
from starlette_app import RegistryRoute
from werkzeug.exceptions import Conflict, HTTPException

from registry_routes import OCI_1_1, RegistryMap, errors, url_map

from . import nasty
from .nasty import SHA256
from .test_asgi import body_of, exchange, scope_of
from .test_layout_apps import ask
from .wsgi import environ_for


async def echo(request: Request, **values: str) -> Response:
    return JSONResponse([values, request.path_params])


def test_route_answers_as_the_map_does() -> None:
    """On targets that are hard to route; the path is decoded as uvicorn does it."""
    route = RegistryRoute(
        url_map, dict.fromkeys([known.endpoint for known in OCI_1_1.routes], echo)
    )

    async def answer(scope: dict[str, Any]) -> list[Any]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await route.handle(scope, receive, send)

        return await exchange(app, scope=scope)

    async def run() -> None:
        outcomes = set()
        for target, method in nasty.requests(1, 300):
            scope = scope_of(target, method)
            if not target.isascii() or not route.matches(scope)[0].value:
                continue
            start, *rest = await answer(scope)
            headers = {name.decode(): value.decode() for name, value in start["headers"]}
            try:
                _, values = url_map.bind_to_environ(environ_for(target, method)).match()
            except HTTPException as error:
                expected = error.get_response()
                assert start["status"] == expected.status_code, (target, method)
                assert headers.get("location") == expected.headers.get("Location")
                assert headers.get("allow") == expected.headers.get("Allow")
            else:
                assert start["status"] == 200
                assert json.loads(body_of(rest)) == [values, values]
            outcomes.add(start["status"])
        assert outcomes == {200, 308, 400, 404, 405}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (errors.TooManyRequests(retry_after=3), 429, "TOOMANYREQUESTS"),
        (errors.Unauthorized(realm="https://auth.example/token"), 401, "UNAUTHORIZED"),
        (Conflict("busy"), 409, "UNKNOWN"),
        (StarletteError(403, "not you", {"Retry-After": "3"}), 403, "DENIED"),
        (StarletteError(402, "pay"), 402, "UNKNOWN"),
        (StarletteError(499), 499, "UNKNOWN"),
        (KeyError("secret"), 500, "UNKNOWN"),
    ],
)
def test_views_error_is_answered_in_the_registrys_json(
    raised: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def base(request: Request) -> Response:
        raise raised

    app = Starlette(
        routes=[RegistryRoute(RegistryMap(dialect=OCI_1_1.subset("base")), {"base": base})]
    )
    with caplog.at_level(logging.ERROR):
        response = ask(app, "GET", "/v2/")
    [entry] = response.json()["errors"]
    assert (response.status_code, entry["code"]) == (status, code)
    assert "secret" not in response.text
    assert ("secret" in caplog.text) == isinstance(raised, KeyError)
    if status in (403, 429):
        assert response.headers["Retry-After"] == "3"
    assert response.headers.get("WWW-Authenticate", "").startswith(
        "Bearer" if status == 401 else ""
    )
    assert int(response.headers["Content-Length"]) == len(response.content)


def test_endpoint_without_a_view_is_refused() -> None:
    served = RegistryMap(dialect=OCI_1_1.subset("base", "tags"))
    with pytest.raises(ValueError, match=r"^endpoint 'tags' lacks a view"):
        RegistryRoute(served, {"base": echo})
    with pytest.raises(ValueError, match=r"^endpoint 'blobs' lacks a view, or the map lacks"):
        RegistryRoute(served, {"base": echo, "tags": echo, "blobs": echo})


def test_custom_route_under_the_root_comes_first() -> None:
    routes = RegistryRoute(
        RegistryMap(dialect=OCI_1_1.subset("base", "tags")), {"base": echo, "tags": echo}
    )
    own = [Route("/v2/token", lambda request: JSONResponse("a token")), routes]
    app = Starlette(routes=[*own, Route("/{path:path}", lambda request: JSONResponse("a page"))])
    assert ask(app, "GET", "/v2/token").json() == "a token"
    assert ask(app, "GET", "/v2/tokens").json()["errors"][0]["code"] == "UNSUPPORTED"
    assert ask(app, "GET", "/v2tokens").json() == "a page"
    assert app.url_path_for("tags", name="a/b") == "/v2/a/b/tags/list"
    with pytest.raises(NoMatchFound):
        app.url_path_for("blob", name="a", digest=SHA256)
    with pytest.raises(ValueError, match="must be lowercase"):
        app.url_path_for("tags", name="A")


def test_websocket_is_closed() -> None:
    app = Starlette(
        routes=[RegistryRoute(RegistryMap(dialect=OCI_1_1.subset("base")), {"base": echo})]
    )
    connect = {"type": "websocket.connect"}
    scope = scope_of("/v2/", type="websocket", subprotocols=[])
    [closed] = asyncio.run(exchange(app, connect, scope=scope))
    assert closed["type"] == "websocket.close"
