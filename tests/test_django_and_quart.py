"""The routes in Django and in Quart, as `examples/README.md` shows them."""

import asyncio
from typing import Any

import django
import pytest
from django import conf
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.test.utils import override_settings
from django.urls import path, re_path, reverse
from django.views.decorators.csrf import csrf_exempt
from quart import Quart, url_for
from quart.routing import QuartMap
from werkzeug.exceptions import HTTPException
from werkzeug.test import Client

from registry_routes import OCI_1_1, RegistryMap, error_response, errors
from registry_routes.registry import MemoryStorage, make_registry

from .nasty import SHA256
from .reference import EXAMPLES

SERVED = OCI_1_1.subset("base", "tags", "manifest", "blob-upload", methods=["GET", "PUT", "POST"])

# A request, and what any of these applications answers: the status, and the code or the location.
ANSWERS = [
    ("GET", "/v2/", 200, None),
    ("GET", "/v2?a=%2F", 308, "/v2/?a=%2F"),
    ("GET", "/v2/a%2Fb/tags/list/", 308, "/v2/a/b/tags/list"),
    ("PUT", "/v2/a/manifests//v1", 308, "/v2/a/manifests/v1"),
    ("GET", "/v2/A/tags/list", 400, "NAME_INVALID"),
    ("GET", "/v2/a/manifests/v1", 404, "MANIFEST_UNKNOWN"),
    ("DELETE", "/v2/a/manifests/v1", 405, "UNSUPPORTED"),
    ("GET", "/v2/_catalog", 404, "UNSUPPORTED"),
    ("GET", f"/v2/a/referrers/{SHA256}", 404, "UNSUPPORTED"),
    ("POST", "/v2/a/blobs/uploads/", 200, None),
]


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("the page")


@pytest.fixture(scope="module", autouse=True)
def configured() -> None:
    conf.settings.configure(
        ROOT_URLCONF=(path("", page),),
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=[
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
        ],
    )
    django.setup()


def answer(request: HttpRequest, **values: str) -> HttpResponse:
    if "tag" in values:
        raise errors.ManifestUnknown
    return HttpResponse(repr(values))


VIEWS = {route.endpoint: answer for route in SERVED.routes}
routes = RegistryMap(SERVED)


@csrf_exempt  # type: ignore[untyped-decorator]
def registry(request: HttpRequest) -> HttpResponse:
    """The view that the page shows."""
    try:
        endpoint, values = routes.bind_to_environ(request.environ).match()
        return VIEWS[endpoint](request, **values)
    except HTTPException as error:
        sent = error_response(error)
        return HttpResponse(sent.get_data(), status=sent.status_code, headers=dict(sent.headers))


class TestDjango:
    def test_a_view_for_all_routes_among_djangos(self) -> None:
        patterns = (re_path("^v2(?:/|$)", registry), path("", page))
        with override_settings(ROOT_URLCONF=patterns):
            client = Client(get_wsgi_application())
            assert client.get("/").text == "the page"
            assert client.get("/v2x").status_code == 404
            for method, target, status, expected in ANSWERS:
                response = client.open(target, method=method)
                assert response.status_code == status
                if status == 308:
                    assert response.location == expected
                elif status >= 400:
                    assert response.get_json()["errors"][0]["code"] == expected
                assert response.headers.get("Allow") == (
                    "GET, HEAD, PUT" if status == 405 else None
                )

    def test_under_a_script_name(self) -> None:
        with override_settings(ROOT_URLCONF=(re_path("^v2(?:/|$)", registry),)):
            client = Client(get_wsgi_application())
            response = client.get("/v2", base_url="http://h/mounted/here")
        assert response.location == "/mounted/here/v2/"

    def test_patterns_of_its_own_for_the_routes(self) -> None:
        """Django's `reverse` builds them; what does not match is Django's 404."""
        patterns = tuple(
            re_path(
                "^" + OCI_1_1.regex(route).pattern.removeprefix("/") + r"\Z",
                csrf_exempt(lambda request, **values: HttpResponse(repr(values))),
                name=route.endpoint,
            )
            for route in OCI_1_1.routes
        )
        with override_settings(ROOT_URLCONF=patterns):
            client = Client(get_wsgi_application())
            for target, (method, *_), endpoint, values in EXAMPLES:
                response = client.open(target, method=method)
                assert response.status_code == 200
                if method != "HEAD":
                    assert response.text == repr(values)
                assert reverse(endpoint, kwargs=values) == target
            for target in "/v2/A/tags/list", "/v2/a/tags/list%0A", "/v2/a//tags/list", "/x/v2/":
                assert client.get(target).status_code == 404

    def test_beside_an_application_of_the_registrys(self) -> None:
        of_django, of_registry = get_wsgi_application(), make_registry(MemoryStorage())

        def application(environ: Any, start_response: Any) -> Any:
            is_registry = f"{environ['PATH_INFO']}/".startswith("/v2/")
            return (of_registry if is_registry else of_django)(environ, start_response)

        client = Client(application)
        assert client.get("/").text == "the page"
        assert client.get("/v2/A/tags/list").get_json()["errors"][0]["code"] == "NAME_INVALID"
        assert client.put("/v2/a/manifests/v1", json={"schemaVersion": 2}).status_code == 201


class Routes(QuartMap, RegistryMap):
    def __init__(self, **options: Any) -> None:  # Quart's
        super().__init__(SERVED, **options)


class App(Quart):
    url_map_class = Routes  # type: ignore[assignment]


class TestQuart:
    @pytest.fixture
    def app(self) -> Quart:
        app = App(__name__)

        @app.errorhandler(HTTPException)
        async def as_a_client_reads_it(error: HTTPException) -> Any:
            sent = error_response(error)
            return sent.get_data(), sent.status_code, list(sent.headers)

        async def answer(**values: str) -> Any:
            if "tag" in values:
                raise errors.ManifestUnknown
            return values

        for endpoint in VIEWS:
            app.endpoint(endpoint)(answer)

        @app.get("/")
        async def page() -> str:
            return url_for("tags", name="a/b", n=2)

        return app

    def test_its_map_has_the_routes(self, app: Quart) -> None:
        async def run() -> None:
            client = app.test_client()
            assert await (await client.get("/")).get_data(as_text=True) == "/v2/a/b/tags/list?n=2"
            for method, target, status, expected in ANSWERS:
                response = await client.open(target, method=method)  # type: ignore[call-arg]
                assert response.status_code == status
                if status == 308:
                    assert response.headers["Location"] == expected
                elif status >= 400:
                    body = await response.get_json()
                    assert body["errors"][0]["code"] == expected
                assert response.headers.get("Allow") == (
                    "GET, HEAD, PUT" if status == 405 else None
                )

        asyncio.run(run())

    def test_below_a_root_path(self, app: Quart) -> None:
        async def run() -> str:
            response = await app.test_client().get("/m/v2", root_path="/m")
            return str(response.headers["Location"])

        assert asyncio.run(run()) == "/m/v2/"
