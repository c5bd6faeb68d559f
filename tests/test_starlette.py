"""`examples/starlette_app.py`: the routes of the map in Starlette and in FastAPI."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from fastapi import FastAPI
from layout import Layout
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, NoMatchFound, Route
from starlette_app import RegistryRoute, make_routes
from werkzeug.exceptions import Conflict, HTTPException

from registry_routes import OCI_1_1, RegistryMap, errors, url_map

from . import nasty, oci_layout
from .nasty import SHA256
from .servers import example, files_of, skopeo
from .test_asgi import body_of, exchange, scope_of
from .wsgi import environ_for


def ask(app: Any, method: str, path: str, root_path: str = "", **more: Any) -> httpx.Response:
    """What `app` answers, below `root_path`, which a server is told of."""

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, root_path=root_path)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.request(method, f"http://h{root_path}{path}", **more)

    return asyncio.run(run())


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    root = tmp_path_factory.mktemp("layout") / "image"
    oci_layout.write(root, [10_000], ["amd64"])
    return Layout(root, "library/app")


def in_starlette(layout: Layout) -> Any:
    return Starlette(routes=make_routes(layout))


def in_a_mount(layout: Layout) -> Any:
    return Starlette(routes=[Mount("/registry", routes=make_routes(layout))])


def in_fastapi(layout: Layout) -> Any:
    app = FastAPI(routes=make_routes(layout))

    @app.get("/mine/{number}")
    def mine(number: int) -> int:
        return number

    return app


@pytest.mark.parametrize(
    ("make", "prefix", "root_path"),
    [
        (in_starlette, "", ""),
        (in_a_mount, "/registry", ""),
        (in_starlette, "", "/behind/a/proxy"),
        (in_a_mount, "/registry", "/behind"),
        (in_fastapi, "", ""),
        (in_fastapi, "", "/behind"),
    ],
)
def test_the_same_in_every_application(
    layout: Layout, make: Callable[[Layout], Any], prefix: str, root_path: str
) -> None:
    app = make(layout)
    for method, path, status, expected in (
        ("GET", "/v2/", 200, None),
        ("GET", "/v2/library/app/tags/list?n=1", 200, None),
        ("HEAD", "/v2/library/app/manifests/v1", 200, None),
        ("GET", "/v2?x=%2F&x=y", 308, "/v2/?x=%2F&x=y"),
        ("GET", "/v2/library/app/tags/list/", 308, "/v2/library/app/tags/list"),
        ("HEAD", "//v2//library/./app/tags/list", 308, "/v2/library/app/tags/list"),
        ("GET", "/v2/other/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/library/App/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/library/app/manifests/v2", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/library/app/manifests/.x", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/library/app/blobs/md5:x", 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/library/app/blobs/sha256:x", 400, "DIGEST_INVALID"),
        ("GET", "/v2/library/app/blobs/uploads/", 404, "UNSUPPORTED"),
        ("GET", "/v2/library%2Fapp/blobs/..%2F..%2Fetc", 404, "UNSUPPORTED"),
        ("GET", f"/v2/library/app/referrers/{SHA256}", 404, "UNSUPPORTED"),
        ("PUT", "/v2/library/app/manifests/v1", 405, "UNSUPPORTED"),
        ("OPTIONS", "/v2/library/app/tags/list", 405, "UNSUPPORTED"),
        ("GET", "/v2/library/app/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
    ):
        response = ask(app, method, prefix + path, root_path)
        assert response.status_code == status, path
        assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"
        if status == 308:
            assert response.headers["Location"] == root_path + prefix + str(expected)
        elif status >= 400:
            assert response.json()["errors"][0]["code"] == expected
        assert response.headers.get("Allow") == ("GET, HEAD" if status == 405 else None)
    page = ask(app, "GET", f"{prefix}/", root_path)
    assert f'<a href="{root_path}{prefix}/v2/library/app/manifests/v1">v1</a>' in page.text


def test_the_applications_own_routes_still_work(layout: Layout) -> None:
    app = in_fastapi(layout)
    assert ask(app, "GET", "/mine/7").json() == 7
    assert ask(app, "GET", "/mine/x").status_code == 422
    assert ask(app, "GET", "/v2x").json() == {"detail": "Not Found"}
    assert ask(app, "GET", "/openapi.json").json()["paths"].keys() == {"/mine/{number}"}


def test_pages_of_tags_follow_one_another(layout: Layout, tmp_path: Path) -> None:
    index = json.loads((layout.root / "index.json").read_text())
    one = index["manifests"][0]
    name = "org.opencontainers.image.ref.name"
    tagged = [{**one, "annotations": {name: tag}} for tag in ("v1", "v10", "v2", "not a tag")]
    (tmp_path / "index.json").write_text(json.dumps({"manifests": tagged}))
    app = in_a_mount(Layout(tmp_path, "a"))
    path, found = "/registry/v2/a/tags/list?n=2", []
    while path:
        response = ask(app, "GET", path)
        found.append(response.json()["tags"])
        path = response.headers.get("Link", "<").partition("<")[2].partition(">")[0]
    assert found == [["v1", "v10"], ["v2"]]


def test_a_blob_and_a_part_of_it(layout: Layout) -> None:
    app = in_starlette(layout)
    for name, content in files_of(layout.root).items():
        path = f"/v2/library/app/blobs/sha256:{name}"
        whole = ask(app, "GET", path)
        assert (whole.content, whole.headers["ETag"]) == (content, f'"sha256:{name}"')
        assert whole.headers["Docker-Content-Digest"] == f"sha256:{name}"
        assert whole.headers["Content-Length"] == str(len(content))
        part = ask(app, "GET", path, headers={"Range": "bytes=2-4"})
        assert (part.status_code, part.content) == (206, content[2:5])


async def echo(request: Request, **values: str) -> Response:
    return JSONResponse([values, request.path_params])


@pytest.mark.parametrize("count", [150, pytest.param(4000, marks=pytest.mark.slow)])
def test_it_answers_as_the_map_does(count: int) -> None:
    """On targets that are hard to route; the path is decoded as uvicorn does it."""
    route = RegistryRoute(url_map, dict.fromkeys([one.endpoint for one in OCI_1_1.routes], echo))

    async def answer(scope: dict[str, Any]) -> list[Any]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await route.handle(scope, receive, send)

        return await exchange(app, scope=scope)

    async def run() -> None:
        outcomes = set()
        for target, method in nasty.requests(1, count):
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
        (StarletteError(499), 500, "UNKNOWN"),
        (KeyError("secret"), 500, "UNKNOWN"),
    ],
)
def test_what_a_view_raises_is_the_registrys_json(
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


def test_every_endpoint_has_a_view_and_every_view_an_endpoint() -> None:
    served = RegistryMap(dialect=OCI_1_1.subset("base", "tags"))
    with pytest.raises(ValueError, match=r"^endpoint 'tags' must be"):
        RegistryRoute(served, {"base": echo})
    with pytest.raises(ValueError, match=r"^endpoint 'blobs' must be"):
        RegistryRoute(served, {"base": echo, "tags": echo, "blobs": echo})


def test_a_custom_route_under_the_root_comes_first() -> None:
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


def test_the_route_ignores_websockets() -> None:
    app = Starlette(
        routes=[RegistryRoute(RegistryMap(dialect=OCI_1_1.subset("base")), {"base": echo})]
    )
    connect = {"type": "websocket.connect"}
    scope = scope_of("/v2/", type="websocket", subprotocols=[])
    [closed] = asyncio.run(exchange(app, connect, scope=scope))
    assert closed["type"] == "websocket.close"


@pytest.mark.slow
def test_skopeo_pulls_from_it(tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [5_000_000, 100], ["amd64", "arm64"])
    options = "--layout", str(image), "--name", "library/app"
    with example("starlette_app", tmp_path / "log", *options) as host:
        remote = f"docker://{host}/library/app:v1"
        skopeo("copy --all --src-tls-verify=false", remote, f"oci:{back}:v1")
        assert "library/app" in requests.get(f"http://{host}/", timeout=10).text
        missing = skopeo("inspect --tls-verify=false", f"{remote}0", fails=True)
        assert "the repository has no such manifest" in missing
    assert files_of(back) == files_of(image)
