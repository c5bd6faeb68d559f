"""`examples/flask_app.py` and `examples/starlette_app.py`: an image layout as a registry, in both."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flask_app
import httpx
import pytest
import requests
from fastapi import FastAPI
from flask import Flask
from layout import Layout
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette_app import make_routes

from . import oci_layout
from .nasty import SHA256
from .servers import example, files_of, skopeo


def ask(app: Any, method: str, path: str, root_path: str = "", **more: Any) -> httpx.Response:
    """Send a request to `app` below `root_path`, of which a server is told."""
    if isinstance(app, Flask):
        wsgi = httpx.WSGITransport(app, script_name=root_path)
        with httpx.Client(transport=wsgi) as client:
            return client.request(method, f"http://h{path}", **more)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, root_path=root_path)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.request(method, f"http://h{root_path}{path}", **more)

    return asyncio.run(run())


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


@pytest.fixture(params=[flask_app.make_app, in_starlette], ids=["flask", "starlette"])
def make(request: pytest.FixtureRequest) -> Callable[[Layout], Any]:
    made: Callable[[Layout], Any] = request.param
    return made


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    root = tmp_path_factory.mktemp("layout") / "image"
    oci_layout.write(root, [10_000], ["amd64"])
    return Layout(root, "library/app")


@pytest.mark.parametrize(
    ("make_app", "prefix", "root_path"),
    [
        (flask_app.make_app, "", ""),
        (flask_app.make_app, "", "/behind/a/proxy"),
        (in_starlette, "", ""),
        (in_a_mount, "/registry", ""),
        (in_starlette, "", "/behind/a/proxy"),
        (in_a_mount, "/registry", "/behind"),
        (in_fastapi, "", "/behind"),
    ],
)
def test_answers_are_the_same_in_every_application(
    layout: Layout, make_app: Callable[[Layout], Any], prefix: str, root_path: str
) -> None:
    app = make_app(layout)
    for method, path, status, expected in (
        ("GET", "/v2/", 200, None),
        ("GET", "/v2/library/app/tags/list?n=1", 200, None),
        ("HEAD", "/v2/library/app/manifests/v1", 200, None),
        ("GET", "/v2?x=%2F&x=y", 308, "/v2/?x=%2F&x=y"),
        ("GET", "/v2/library/app/tags/list/", 308, "/v2/library/app/tags/list"),
        ("HEAD", "//v2//library/./app/tags/list", 308, "/v2/library/app/tags/list"),
        ("GET", "/v2/other/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/library/App/tags/list", 400, "NAME_INVALID"),
        ("PUT", "/v2/A/manifests/x", 400, "NAME_INVALID"),
        ("GET", "/v2/library/app/manifests/v2", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/library/app/manifests/.x", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/library/app/blobs/md5:x", 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/library/app/blobs/sha256:x", 400, "DIGEST_INVALID"),
        ("GET", "/v2/library/app/blobs/uploads/", 404, "UNSUPPORTED"),
        ("GET", "/v2/library%2Fapp/blobs/..%2F..%2Fetc", 404, "UNSUPPORTED"),
        ("GET", f"/v2/library/app/referrers/{SHA256}", 404, "UNSUPPORTED"),
        ("GET", "/v2/nothing", 404, "UNSUPPORTED"),
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


def test_other_routes_of_fastapi_still_work(layout: Layout) -> None:
    app = in_fastapi(layout)
    assert ask(app, "GET", "/mine/7").json() == 7
    assert ask(app, "GET", "/mine/x").status_code == 422
    assert ask(app, "GET", "/v2x").json() == {"detail": "Not Found"}
    assert ask(app, "GET", "/openapi.json").json()["paths"].keys() == {"/mine/{number}"}


@pytest.mark.parametrize(
    ("make_app", "prefix"), [(flask_app.make_app, ""), (in_a_mount, "/registry")]
)
def test_tags_come_in_pages(
    layout: Layout, tmp_path: Path, make_app: Callable[[Layout], Any], prefix: str
) -> None:
    image = json.loads((layout.root / "index.json").read_text())["manifests"][0]
    name = "org.opencontainers.image.ref.name"
    tagged = [{**image, "annotations": {name: tag}} for tag in ("v1", "v10", "v2", "not a tag")]
    untagged = {**image, "annotations": {"x": "y"}}
    (tmp_path / "index.json").write_text(json.dumps({"manifests": [*tagged, untagged]}))
    app = make_app(Layout(tmp_path, "a"))
    path, found = f"{prefix}/v2/a/tags/list?n=2", []
    while path:
        response = ask(app, "GET", path)
        found.append(response.json()["tags"])
        path = response.headers.get("Link", "<").partition("<")[2].partition(">")[0]
    assert found == [["v1", "v10"], ["v2"]]


def test_blob_and_a_part_of_it(layout: Layout, make: Callable[[Layout], Any]) -> None:
    app = make(layout)
    for name, content in files_of(layout.root).items():
        path = f"/v2/library/app/blobs/sha256:{name}"
        whole = ask(app, "GET", path)
        assert (whole.content, whole.headers["ETag"]) == (content, f'"sha256:{name}"')
        assert whole.headers["Docker-Content-Digest"] == f"sha256:{name}"
        assert whole.headers["Content-Length"] == str(len(content))
        part = ask(app, "GET", path, headers={"Range": "bytes=2-4"})
        assert (part.status_code, part.content) == (206, content[2:5])


def test_blob_is_no_manifest(
    layout: Layout, make: Callable[[Layout], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(layout.root.parent)
    app = make(Layout(Path(layout.root.name), "a"))  # a relative path
    monkeypatch.chdir("/")
    index = json.loads((layout.root / "index.json").read_text())
    manifest = index["manifests"][0]["digest"].removeprefix("sha256:")
    statuses = {
        name: ask(app, "GET", f"/v2/a/manifests/sha256:{name}").status_code
        for name in files_of(layout.root)
    }
    assert len(statuses) > 2
    assert statuses == {name: 200 if name == manifest else 404 for name in statuses}


@pytest.mark.slow
@pytest.mark.parametrize("program", ["flask_app", "starlette_app"])
def test_skopeo_pulls(tmp_path: Path, program: str) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [5_000_000, 100], ["amd64", "arm64"])
    options = "--layout", str(image), "--name", "library/app"
    with example(program, tmp_path / "log", *options) as host:
        remote = f"docker://{host}/library/app:v1"
        skopeo("copy --all --src-tls-verify=false", remote, f"oci:{back}:v1")
        assert "library/app" in requests.get(f"http://{host}/", timeout=10).text
        missing = skopeo("inspect --tls-verify=false", f"{remote}0", fails=True)
        assert "the repository has no such manifest" in missing
    assert files_of(back) == files_of(image)
