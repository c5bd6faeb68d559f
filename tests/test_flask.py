"""The routes in Flask: its example, and the ways in which Flask users build their apps."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Blueprint, Flask, request, url_for
from flask.typing import ResponseReturnValue
from flask.views import MethodView
from flask_app import make_app as make_flask_app
from flask_cors import CORS
from layout import Layout
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.routing import EndpointPrefix, Map, RuleFactory, Subdomain, Submount
from werkzeug.test import Client

from registry_routes import (
    CONVERTERS,
    OCI_1_1,
    Dialect,
    RegistryMap,
    RegistryRules,
    error_response,
    errors,
)

from . import oci_layout
from .nasty import SHA256
from .oracle import EXAMPLES
from .servers import example, files_of, skopeo

METHODS = "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"


def app_of(dialect: Dialect = OCI_1_1, **options: Any) -> Flask:
    """An app whose map has the routes of a dialect, and no view."""

    class Routes(RegistryMap):
        def __init__(self, **more: Any) -> None:  # Flask's
            super().__init__(dialect=dialect, **options, **more)

    class App(Flask):
        url_map_class = Routes  # type: ignore[assignment]

    app = App(__name__)
    app.register_error_handler(HTTPException, error_response)
    return app


def echo(**values: Any) -> ResponseReturnValue:
    return {"endpoint": request.endpoint, "values": values}


def with_views(app: Flask) -> Flask:
    """`app`, with a view added for each endpoint that lacks one."""
    for rule in app.url_map.iter_rules():
        if rule.endpoint not in app.view_functions:
            app.endpoint(rule.endpoint)(echo)
    return app


def taken(app: Flask, path: str) -> list[str]:
    """The methods that are answered with a 200. Any other is a 405 that names these, or a 404."""
    answers = {method: app.test_client().open(path, method=method) for method in METHODS}
    found = [method for method, response in answers.items() if response.status_code == 200]
    for method, response in answers.items():
        if method not in found:
            assert response.status_code == (405 if found else 404)
            assert sorted(response.allow) == sorted(found)
            if method != "HEAD":
                assert response.get_json()["errors"][0]["code"] == "UNSUPPORTED"
    return found


# The map is what the app serves.


@pytest.mark.parametrize(
    ("endpoints", "methods"),
    [
        (["base", "tags", "manifest"], None),
        (["base", "manifest", "blob"], ["GET"]),
        (["base", "manifest", "blob-upload", "blob-upload-chunk"], ["GET", "PUT", "POST"]),
        ([], ["GET"]),
    ],
)
def test_a_subset_is_what_the_app_serves(endpoints: list[str], methods: list[str] | None) -> None:
    app = with_views(app_of(OCI_1_1.subset(*endpoints, methods=methods)))
    for path, of_route, endpoint, _ in EXAMPLES:
        served = set(of_route) if not endpoints or endpoint in endpoints else set()
        if methods is not None:
            served &= {*methods, "HEAD"}
        assert set(taken(app, path)) == served


def test_a_method_view_for_each_endpoint() -> None:
    """The map has the methods that the classes have, so `MethodView` is never asked for others."""

    class Base(MethodView):
        def get(self) -> ResponseReturnValue:
            return {}

    class Manifest(MethodView):
        def get(self, name: str, tag: str = "", digest: str = "") -> ResponseReturnValue:
            return f"got {tag or digest}"

        def put(self, name: str, tag: str = "", digest: str = "") -> ResponseReturnValue:
            return f"put {tag or digest}"

    class Blob(MethodView):
        def delete(self, name: str, digest: str) -> ResponseReturnValue:
            return f"deleted {digest}"

    views: dict[str, type[MethodView]] = {"base": Base, "manifest": Manifest, "blob": Blob}
    served = OCI_1_1.subset(*views)
    routes = [replace(one, methods=tuple(views[one.name].methods or ())) for one in served.routes]
    app = app_of(replace(served, routes=tuple(routes)))
    for endpoint, view in views.items():
        app.endpoint(endpoint)(view.as_view(endpoint))
    assert taken(app, "/v2/") == ["GET", "HEAD"]
    assert taken(app, "/v2/a/manifests/v1") == ["GET", "HEAD", "PUT"]
    assert taken(app, f"/v2/a/manifests/{SHA256}") == ["GET", "HEAD", "PUT"]
    assert taken(app, f"/v2/a/blobs/{SHA256}") == ["DELETE"]
    assert taken(app, "/v2/a/tags/list") == []
    assert app.test_client().put("/v2/a/manifests/v1").text == "put v1"


@pytest.mark.parametrize("strict", [True, False])
def test_slashes_may_be_strict_or_not(strict: bool) -> None:
    app = with_views(app_of())
    app.url_map.strict_slashes = strict
    client = app.test_client()
    for path, answered in {
        "/v2": "base",
        "/v2/a/tags/list/": "tags",
        "/v2/a/blobs/uploads": "blob-upload",
    }.items():
        response = client.open(path, method="POST" if answered == "blob-upload" else "GET")
        assert response.status_code == (308 if strict else 200)
        if not strict:
            assert response.get_json()["endpoint"] == answered


# Blueprints, and names that collide.


def named(dialect: Dialect, prefix: str) -> Dialect:
    routes = [replace(route, name=f"{prefix}{route.name}") for route in dialect.routes]
    return replace(dialect, routes=tuple(routes))


def app_with_named_dialect() -> Flask:
    return app_of(named(OCI_1_1.subset("base", "tags", "manifest"), "registry."))


def app_with_prefixed_rules() -> Flask:
    app = Flask(__name__)
    app.register_error_handler(HTTPException, error_response)
    served = OCI_1_1.subset("base", "tags", "manifest")
    app.url_map.add(EndpointPrefix("registry.", [RegistryRules(served)]))
    return app


@pytest.mark.parametrize("make", [app_with_named_dialect, app_with_prefixed_rules])
def test_views_of_a_blueprint_with_its_hooks(make: Callable[[], Flask]) -> None:
    registry, seen = Blueprint("registry", __name__), []

    @registry.before_request
    def remember() -> None:
        seen.append((request.blueprint, request.endpoint))

    @registry.after_request
    def with_version(response: Any) -> Any:
        response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
        return response

    @registry.errorhandler(errors.ManifestUnknown)
    def unknown(error: Any) -> Any:
        return error_response(errors.Denied("of the blueprint"))

    @registry.endpoint("registry.tags")
    def list_tags(name: str) -> ResponseReturnValue:
        return {"next": url_for(".tags", name=name, n=2)}

    @registry.endpoint("registry.manifest")
    def manifest(name: str, tag: str = "", digest: str = "") -> ResponseReturnValue:
        raise errors.ManifestUnknown

    app = make()
    app.register_blueprint(registry)
    app.add_url_rule("/", view_func=lambda: "the page", endpoint="page")
    client = app.test_client()
    tags = client.get("/v2/a/b/tags/list")
    assert tags.get_json() == {"next": "/v2/a/b/tags/list?n=2"}
    assert tags.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    missing = client.get("/v2/a/manifests/v1")
    assert missing.get_json()["errors"][0]["message"] == "of the blueprint"
    assert client.get("/").text == "the page"
    assert seen == [("registry", "registry.tags"), ("registry", "registry.manifest")]
    assert client.post("/v2/a/tags/list").headers["Allow"] in ("GET, HEAD", "HEAD, GET")
    if isinstance(app.url_map, RegistryMap):
        assert client.get("/v2/a/tags/list/").location == "/v2/a/tags/list"
        invalid = client.get("/v2/A/tags/list").get_json()
        assert invalid["errors"][0]["code"] == "NAME_INVALID"


@pytest.mark.parametrize(
    ("prefix", "has_view", "of_page", "of_registry"),
    [
        # The page answers for the registry, whose values it does not take;
        ("", False, "a page about tags", 500),
        # and once the registry has a view of its own, that answers for the page. Nothing warns.
        ("", True, 500, "of the registry"),
        ("registry.", True, "a page about tags", "of the registry"),
    ],
)
def test_a_view_of_the_same_name_replaces_the_registrys(
    prefix: str, has_view: bool, of_page: object, of_registry: object
) -> None:
    app = app_of(named(OCI_1_1.subset("base", "tags"), prefix))

    @app.get("/tags")
    def tags() -> str:
        return "a page about tags"

    if has_view:
        app.endpoint(f"{prefix}tags")(lambda name: "of the registry")
    client = app.test_client()
    for path, expected in ("/tags", of_page), ("/v2/a/tags/list", of_registry):
        response = client.get(path)
        assert expected in (response.status_code, response.text)


# Browsers.


ASKS = {"Origin": "https://ui.example", "Access-Control-Request-Method": "GET"}


def app_for_browsers(prefix: str = "") -> Flask:
    app = with_views(app_of(named(OCI_1_1, prefix)))
    app.add_url_rule("/page", view_func=echo, endpoint="page", methods=["GET", "PUT"])
    CORS(app, origins=["https://ui.example"])
    return app


def test_a_preflight_request_is_refused_by_the_routes_alone() -> None:
    client = app_for_browsers().test_client()
    assert client.options("/page", headers=ASKS).status_code == 200
    assert client.options("/v2/a/tags/list", headers=ASKS).status_code == 405


@pytest.mark.parametrize("prefix", ["", "registry."])
def test_a_hook_answers_a_preflight_request(prefix: str) -> None:
    app = app_for_browsers(prefix)

    @app.before_request
    def preflight() -> ResponseReturnValue | None:
        if request.method == "OPTIONS" and isinstance(request.routing_exception, MethodNotAllowed):
            return app.make_default_options_response()  # from `allowed_methods()`
        return None

    client = app.test_client()
    page = client.options("/page", headers=ASKS)
    assert page.headers["Access-Control-Allow-Origin"] == "https://ui.example"
    assert {"GET", "PUT"} <= set(page.allow)
    for path, methods, *_ in EXAMPLES:
        answer = client.options(path, headers=ASKS)
        assert answer.status_code == 200
        assert set(answer.allow) == set(methods)
        for header in {one for one, _ in page.headers if one.startswith("Access-Control-")}:
            assert answer.headers[header] == page.headers[header]
    assert client.options("/v2/none", headers=ASKS).status_code == 404
    assert client.options("/v2/A/tags/list", headers=ASKS).status_code == 400
    assert client.delete("/v2/a/tags/list", headers=ASKS).status_code == 405
    tags = client.get("/v2/a/tags/list", headers=ASKS)
    assert tags.headers["Access-Control-Allow-Origin"] == "https://ui.example"


# An app whose map is Werkzeug's, and tenants.


def test_an_app_whose_map_cannot_be_replaced() -> None:
    app = Flask(__name__)
    app.url_map.converters.update(CONVERTERS)
    app.url_map.add(RegistryRules())
    app.register_error_handler(HTTPException, error_response)

    @app.get("/about/<repository:name>/<tag:tag>")
    def about(name: str, tag: str) -> str:
        return f"{name} {tag} {url_for('manifest', name=name, tag=tag)}"

    client = with_views(app).test_client()
    assert type(app.url_map) is Map
    for path, methods, endpoint, values in EXAMPLES:
        for method in methods:
            response = client.open(path, method=method)
            assert response.status_code == 200
            if method != "HEAD":
                assert response.get_json() == {"endpoint": endpoint, "values": values}
    assert client.get("/about/a/b/v1").text == "a/b v1 /v2/a/b/manifests/v1"
    assert client.get("/about/A/b/v1").status_code == 404
    assert client.get("/v2").status_code == 308  # Werkzeug's slashes
    assert client.get("/v2/A/tags/list").get_json()["errors"][0]["code"] == "UNSUPPORTED"
    assert client.delete("/v2/a/tags/list").get_json()["errors"][0]["code"] == "UNSUPPORTED"


@pytest.mark.parametrize(
    ("factory", "host", "prefix"),
    [
        (Subdomain("<tenant>", [RegistryRules()]), "acme.registry.example", ""),
        (Submount("/of/<tenant>", [RegistryRules()]), "registry.example", "/of/acme"),
        (
            Subdomain("<tenant>", [Submount("/r", [RegistryRules()])]),
            "acme.registry.example",
            "/r",
        ),
    ],
    ids=["subdomain", "prefix", "both"],
)
@pytest.mark.parametrize("map_class", [Map, RegistryMap])
def test_a_subdomain_or_a_prefix_for_each_tenant(
    factory: RuleFactory, host: str, prefix: str, map_class: type[Map]
) -> None:
    class App(Flask):
        url_map_class = map_class

    app = App(__name__, subdomain_matching=True)
    app.config["SERVER_NAME"] = "registry.example"
    app.url_map.add(factory)
    app.register_error_handler(HTTPException, error_response)
    client = with_views(app).test_client()
    for path, methods, endpoint, values in EXAMPLES:
        response = client.open(prefix + path, method=methods[0], base_url=f"http://{host}")
        assert response.get_json() == {
            "endpoint": endpoint,
            "values": {**values, "tenant": "acme"},
        }
    with app.test_request_context(base_url=f"http://{host}"):
        url = url_for("tags", name="a", tenant="other", _external=True)
    assert url == f"http://{host}{prefix}/v2/a/tags/list".replace("acme", "other")
    invalid = client.get(f"{prefix}/v2/A/tags/list", base_url=f"http://{host}")
    assert invalid.status_code == 404


def test_a_script_name_for_each_tenant() -> None:
    """So each has the whole behaviour of a `RegistryMap`, and `url_for` keeps the prefix."""
    app = app_of()

    @app.endpoint("tags")
    def list_tags(name: str) -> ResponseReturnValue:
        return {"of": request.script_root, "next": url_for("tags", name=name, n=1)}

    none = Flask(__name__)
    client = Client(DispatcherMiddleware(none, {"/acme": app, "/other": app}))
    for tenant in "/acme", "/other":
        answer = client.get(f"{tenant}/v2/a/tags/list").get_json()
        assert answer == {"of": tenant, "next": f"{tenant}/v2/a/tags/list?n=1"}
        assert (
            client.get(f"{tenant}/v2/a/tags/list/?n=1").location == f"{tenant}/v2/a/tags/list?n=1"
        )
        assert client.get(f"{tenant}/v2/A/tags/list").status_code == 400
    assert client.get("/v2/a/tags/list").status_code == 404


# The example.


class TestFlaskApp:
    @pytest.fixture
    def layout(self, tmp_path: Path) -> Path:
        oci_layout.write(tmp_path / "image", [10_000], ["amd64"])
        return tmp_path / "image"

    @pytest.mark.slow
    def test_skopeo_pulls_from_it(self, layout: Path, tmp_path: Path) -> None:
        options = "--layout", str(layout), "--name", "library/app"
        with example("flask_app", tmp_path / "log", *options) as host:
            back = tmp_path / "back"
            remote = f"docker://{host}/library/app:v1"
            skopeo("copy --src-tls-verify=false", remote, f"oci:{back}:v1")
            assert files_of(back) == files_of(layout)
            assert "library/app" in requests.get(f"http://{host}/", timeout=10).text

    def test_a_layout_by_a_relative_path_and_a_blob_that_is_not_a_manifest(
        self, layout: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = json.loads((layout / "index.json").read_text())
        index["manifests"].append({**index["manifests"][0], "annotations": {"x": "y"}})
        (layout / "index.json").write_text(json.dumps(index))
        monkeypatch.chdir(layout.parent)
        client = make_flask_app(Layout(Path(layout.name), "a")).test_client()
        monkeypatch.chdir("/")
        assert client.get("/v2/a/manifests/v1", buffered=True).status_code == 200
        assert client.get("/v2/a/tags/list").get_json()["tags"] == ["v1"]
        listed = {
            name: client.get(f"/v2/a/manifests/sha256:{name}", buffered=True)
            for name in files_of(layout)
        }
        found = {name for name, response in listed.items() if response.status_code == 200}
        assert found == {index["manifests"][0]["digest"].partition(":")[2]}
        assert {response.status_code for response in listed.values()} == {200, 404}
        for name in listed:
            assert client.get(f"/v2/a/blobs/sha256:{name}", buffered=True).status_code == 200

    def test_its_page_and_its_errors(self, layout: Path) -> None:
        client = make_flask_app(Layout(layout, "library/app")).test_client()
        assert '<a href="/v2/library/app/manifests/v1">v1</a>' in client.get("/").text
        tags = client.get("/v2/library/app/tags/list?n=1")
        assert tags.get_json() == {"name": "library/app", "tags": ["v1"]}
        for method, path, status, code in (
            ("GET", "/v2/other/tags/list", 404, "NAME_UNKNOWN"),
            ("GET", "/v2/library/App/tags/list", 400, "NAME_INVALID"),
            ("GET", "/v2/library/app/manifests/v2", 404, "MANIFEST_UNKNOWN"),
            ("GET", "/v2/library/app/blobs/md5:x", 404, "BLOB_UNKNOWN"),
            ("GET", f"/v2/library/app/referrers/{SHA256}", 404, "UNSUPPORTED"),
            ("GET", "/nothing", 404, "UNSUPPORTED"),
            ("POST", "/nothing", 404, "UNSUPPORTED"),
            ("PUT", "/v2/A/manifests/x", 400, "NAME_INVALID"),
            ("PUT", "/v2/library/app/manifests/v1", 405, "UNSUPPORTED"),
            ("POST", "/v2/library/app/tags/list", 405, "UNSUPPORTED"),
            ("GET", "/v2/library/app/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        ):
            response = client.open(path, method=method)
            assert (response.status_code, response.get_json()["errors"][0]["code"]) == (
                status,
                code,
            )
            assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"
        assert client.get("/v2/").status_code == 200
        assert client.get("/v2").location == "/v2/"
