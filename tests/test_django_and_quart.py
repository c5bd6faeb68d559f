"""The routes in Django and in Quart: the blocks of `examples/README.md`, run in both."""

import asyncio
import json
import re
from typing import Any

import django
import pytest
from django import conf
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.test.utils import override_settings
from django.urls import path, reverse
from quart import Quart, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from registry_routes import OCI_1_1, RegistryApp, error_response, errors
from registry_routes.registry import MemoryStorage, make_registry
from registry_routes.testing import serve

from .oracle import EXAMPLES
from .servers import EXAMPLES as EXAMPLES_DIRECTORY
from .servers import skopeo

# A request, and what any of these applications answers: the status, and the code or the location.
ANSWERS = [
    ("GET", "/v2/", 200, None),
    ("GET", "/v2?a=%2F", 308, "/v2/?a=%2F"),
    ("GET", "/v2/a%2F/b/tags/list/", 308, "/v2/a/b/tags/list"),
    ("GET", "/v2/a/b/tags/list", 200, None),
    ("GET", "/v2/A/tags/list", 400, "NAME_INVALID"),
    ("GET", "/v2/none/tags/list", 404, "NAME_UNKNOWN"),
    ("DELETE", "/v2/a/tags/list", 405, "UNSUPPORTED"),
    ("GET", "/v2/_catalog", 404, "UNSUPPORTED"),
]


def defined_by(page: str) -> dict[str, Any]:
    """Return what the Python blocks of a page define."""
    defined: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        exec(compile(block, "README.md", "exec"), defined)
    return defined


def check(response: Any, body: str | bytes, status: int, expected: str | None) -> None:
    assert response.status_code == status
    if status == 308:
        assert response.headers["Location"] == expected
    elif status >= 400:
        assert json.loads(body)["errors"][0]["code"] == expected
    assert response.headers.get("Allow") == ("GET, HEAD" if status == 405 else None)


@pytest.fixture(scope="module")
def definitions() -> dict[str, Any]:
    page = (EXAMPLES_DIRECTORY / "README.md").read_text()
    return defined_by(page.partition("## Django and Quart\n")[2])


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("the page")


@pytest.fixture(scope="module", autouse=True)
def django_settings() -> None:
    conf.settings.configure(
        ROOT_URLCONF=(path("", page),),
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=[
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
        ],
    )
    django.setup()


# Django.


def test_view_for_all_routes_among_those_of_django(definitions: dict[str, Any]) -> None:
    of_tags = definitions["django_views"]["tags"]

    def tags(request: HttpRequest, name: str) -> Any:
        if name == "none":
            raise errors.NameUnknown
        return of_tags(request, name)

    definitions["django_views"]["tags"] = tags
    with override_settings(ROOT_URLCONF=(*definitions["urlpatterns"], path("", page))):
        client = Client(get_wsgi_application())
        assert client.get("/").text == "the page"
        assert client.get("/v2x").status_code == 404
        for method, target, status, expected in ANSWERS:
            response = client.open(target, method=method)
            check(response, response.data, status, expected)
        redirect = client.get("/v2", base_url="http://h/mounted/here")
        assert redirect.location == "/mounted/here/v2/"


def test_pattern_for_each_route(definitions: dict[str, Any]) -> None:
    """Django's `reverse` builds them; what does not match is Django's 404."""

    def view(request: HttpRequest, **values: str) -> HttpResponse:
        return HttpResponse(repr(values))

    patterns = tuple(definitions["pattern_of"](route, view) for route in OCI_1_1.routes)
    with override_settings(ROOT_URLCONF=patterns):
        client = Client(get_wsgi_application())
        for target, (method, *_), endpoint, values in EXAMPLES:
            response = client.open(target, method=method)
            assert response.status_code == 200
            if method != "HEAD":
                assert response.text == repr(values)
            assert reverse(endpoint, kwargs=values) == target
        for target in "/v2/A/tags/list", "/v2/a/tags/list%0A", "/x/v2/":
            assert client.get(target).status_code == 404


def test_readmes_registry_next_to_django() -> None:
    page = (EXAMPLES_DIRECTORY.parent / "README.md").read_text()
    definitions = defined_by(page.partition("## Serving\n")[2].partition("\n## ")[0])
    definitions["app"] = make_registry(MemoryStorage())
    definitions["site"] = get_wsgi_application()
    client = Client(definitions["application"])
    assert client.get("/").text == "the page"
    assert client.get("/v2").location == "/v2/"
    assert client.put("/v2/a/manifests/v1", json={"schemaVersion": 2}).status_code == 201


def test_skopeo_asks_at_the_root_of_the_host() -> None:
    """And so do podman, which shares its library, docker and crane."""
    mounted = DispatcherMiddleware(RegistryApp(), {"/registry": RegistryApp().__call__})
    with serve(mounted) as host:
        skopeo("inspect --tls-verify=false", f"docker://{host.host}/registry/x:v1", fails=True)
        asked = [request.path for request in host.requests]
    assert asked == ["/v2/", "/v2/registry/x/manifests/v1"]


# Quart.


@pytest.fixture
def app(definitions: dict[str, Any]) -> Quart:
    app: Quart = definitions["QuartApp"](__name__)

    @app.errorhandler(HTTPException)
    async def as_a_client_reads_it(error: HTTPException) -> Any:
        sent = error_response(error)
        return sent.get_data(), sent.status_code, list(sent.headers)

    @app.endpoint("base")
    async def base() -> Any:
        return {}

    @app.endpoint("tags")
    async def tags(name: str) -> Any:
        if name == "none":
            raise errors.NameUnknown
        return {"next": url_for("tags", name=name, n=2)}

    return app


def test_map_of_quart_has_the_routes(app: Quart) -> None:
    async def run() -> None:
        client = app.test_client()
        tags = await client.get("/v2/a/b/tags/list")
        assert await tags.get_json() == {"next": "/v2/a/b/tags/list?n=2"}
        for method, target, status, expected in ANSWERS:
            response = await client.open(target, method=method)  # type: ignore[call-arg]
            check(response, await response.get_data(), status, expected)
        below = await client.get("/m/v2", root_path="/m")
        assert below.headers["Location"] == "/m/v2/"

    asyncio.run(run())
