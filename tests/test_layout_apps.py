"""`examples/flask_app.py` and `examples/starlette_app.py`: an image layout as a registry, in both."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flask_app
import httpx
import pytest
from fastapi import FastAPI
from flask import Flask
from layout import Layout
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette_app import make_routes
from werkzeug.test import Client

from registry_routes.digests import digest_of
from registry_routes.registry import MemoryStorage, make_registry

from . import oci_layout
from .nasty import SHA256
from .proxies import pages_of
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
def factory(request: pytest.FixtureRequest) -> Callable[[Layout], Any]:
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
        (flask_app.make_app, "", "/behind/a/proxy"),
        (in_starlette, "", ""),
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
        ("HEAD", "/v2/library/app/manifests/v1", 200, None),
        ("GET", "/v2?x=%2F&x=y", 308, "/v2/?x=%2F&x=y"),
        ("HEAD", "//v2//library/./app/tags/list", 308, "/v2/library/app/tags/list"),
        ("GET", "/v2/other/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/other/manifests/v1", 404, "NAME_UNKNOWN"),
        ("GET", f"/v2/other/blobs/{SHA256}", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/library/App/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/library/app/manifests/v2", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/library/app/blobs/md5:x", 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/library/app/blobs/uploads/", 404, "UNSUPPORTED"),
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
    tagged = [{**image, "annotations": {name: tag}} for tag in ("v1", "v10", "v2", "not a tag", 3)]
    untagged = {**image, "annotations": {"x": "y"}}
    (tmp_path / "index.json").write_text(json.dumps({"manifests": [*tagged, untagged]}))
    app = make_app(Layout(tmp_path, "a"))
    pages = pages_of(lambda path: ask(app, "GET", path), f"{prefix}/v2/a/tags/list?n=2")
    assert pages == [["v1", "v10"], ["v2"]]


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("HEAD", {}),
        ("GET", {"Range": "bytes=2-4"}),
        ("HEAD", {"Range": "bytes=2-4"}),
        ("GET", {"Range": "bytes=-3"}),
        ("GET", {"Range": "bytes=0-1,5-6"}),
        ("GET", {"Range": "lines=2-4"}),
        ("GET", {"Range": "bytes=99999-"}),
        ("GET", {"If-None-Match": "*"}),
    ],
)
def test_ranges_and_conditions_are_those_of_a_registry(
    layout: Layout, factory: Callable[[Layout], Any], method: str, headers: dict[str, str]
) -> None:
    storage, manifest = MemoryStorage(), layout.manifest("v1")
    layer = max(files_of(layout.root).values(), key=len)
    storage.put_manifest(layout.name, *manifest)
    storage.put_blob(layout.name, digest_of(layer), [layer])
    app, registry = factory(layout), Client(make_registry(storage))
    for last in f"manifests/{manifest[0]}", f"blobs/{digest_of(layer)}":
        path = f"/v2/{layout.name}/{last}"
        answer = ask(app, method, path, headers=headers)
        expected = registry.open(path, method=method, headers=headers)
        assert (answer.status_code, answer.content) == (expected.status_code, expected.data)
        names = "Content-Length", "Content-Range", "Content-Type", "ETag", "Docker-Content-Digest"
        for name in (*names, "Accept-Ranges"):
            assert answer.headers.get(name) == expected.headers.get(name), name


def test_blob_is_no_manifest_nor_a_manifest_a_blob(
    tmp_path: Path, factory: Callable[[Layout], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """containerd would keep a manifest that it gets as a blob, with the type of a blob."""
    oci_layout.write(tmp_path / "image", [10_000], ["amd64", "arm64"])
    monkeypatch.chdir(tmp_path)
    app = factory(Layout(Path("image"), "a"))
    monkeypatch.chdir("/")
    [index] = json.loads((tmp_path / "image/index.json").read_text())["manifests"]
    images = ask(app, "GET", f"/v2/a/manifests/{index['digest']}").json()["manifests"]
    manifests = {index["digest"], *(image["digest"] for image in images)}
    assert len(manifests) == 3
    for name in files_of(tmp_path / "image"):
        is_manifest = f"sha256:{name}" in manifests
        blob = ask(app, "GET", f"/v2/a/blobs/sha256:{name}")
        manifest = ask(app, "GET", f"/v2/a/manifests/sha256:{name}")
        assert blob.status_code == (404 if is_manifest else 200)
        assert manifest.status_code == (200 if is_manifest else 404)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["flask_app", "starlette_app"])
def test_skopeo_pulls(tmp_path: Path, program: str) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [5_000_000, 100], ["amd64", "arm64"])
    options = "--layout", str(image), "--name", "library/app"
    with example(program, tmp_path / "log", *options) as host:
        remote = f"docker://{host}/library/app:v1"
        skopeo("copy --all --src-tls-verify=false", remote, f"oci:{back}:v1")
    assert files_of(back) == files_of(image)
