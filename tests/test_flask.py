"""The routes in Flask, in the ways in which Flask users build their apps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask import Blueprint, Flask, request, url_for
from flask.typing import ResponseReturnValue
from flask.views import MethodView
from flask_cors import CORS
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import EndpointPrefix, Map, RuleFactory, Subdomain, Submount

from registry_routes import OCI_1_1, Dialect, RegistryMap, RegistryRules, error_response, errors

from .nasty import SHA256

METHODS = "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"


def app_of(dialect: Dialect = OCI_1_1) -> Flask:
    """An app whose map has the routes of a dialect, and no view."""

    class Routes(RegistryMap):
        def __init__(self, **options: Any) -> None:  # Flask's
            super().__init__(dialect=dialect, **options)

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


def methods_of(app: Flask, path: str) -> list[str]:
    """Return the methods that are answered with a 200. The others must be a 405, or a 404."""
    answers = {method: app.test_client().open(path, method=method) for method in METHODS}
    found = [method for method, response in answers.items() if response.status_code == 200]
    for method, response in answers.items():
        if method not in found:
            assert response.status_code == (405 if found else 404)
            assert sorted(response.allow) == sorted(found)
            if method != "HEAD":
                assert response.get_json()["errors"][0]["code"] == "UNSUPPORTED"
    return found


def test_method_views_decide_which_methods_are_routes() -> None:
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
    routes = [
        replace(route, methods=tuple(views[route.name].methods or ())) for route in served.routes
    ]
    app = app_of(replace(served, routes=tuple(routes)))
    for endpoint, view in views.items():
        app.endpoint(endpoint)(view.as_view(endpoint))
    assert methods_of(app, "/v2/") == ["GET", "HEAD"]
    assert methods_of(app, "/v2/a/manifests/v1") == ["GET", "HEAD", "PUT"]
    assert methods_of(app, f"/v2/a/manifests/{SHA256}") == ["GET", "HEAD", "PUT"]
    assert methods_of(app, f"/v2/a/blobs/{SHA256}") == ["DELETE"]
    assert methods_of(app, "/v2/a/tags/list") == []
    assert app.test_client().put("/v2/a/manifests/v1").text == "put v1"


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
def test_blueprints_hooks_run_for_its_routes(make: Callable[[], Flask]) -> None:
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
    app.add_url_rule("/tags", view_func=lambda: "a page about tags", endpoint="tags")
    client = app.test_client()
    tags = client.get("/v2/a/b/tags/list")
    assert tags.get_json() == {"next": "/v2/a/b/tags/list?n=2"}
    assert tags.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    missing = client.get("/v2/a/manifests/v1")
    assert missing.get_json()["errors"][0]["message"] == "of the blueprint"
    assert client.get("/tags").text == "a page about tags"  # a view of the registry's name
    assert seen == [("registry", "registry.tags"), ("registry", "registry.manifest")]
    assert client.post("/v2/a/tags/list").headers["Allow"] in ("GET, HEAD", "HEAD, GET")
    if isinstance(app.url_map, RegistryMap):
        assert client.get("/v2/a/tags/list/").location == "/v2/a/tags/list"
        invalid = client.get("/v2/A/tags/list").get_json()
        assert invalid["errors"][0]["code"] == "NAME_INVALID"


# Browsers.


ASKS = {"Origin": "https://ui.example", "Access-Control-Request-Method": "GET"}


@pytest.mark.parametrize("prefix", ["", "registry."])
def test_hook_answers_preflight_requests(prefix: str) -> None:
    app = with_views(app_of(named(OCI_1_1, prefix)))
    app.add_url_rule("/page", view_func=echo, endpoint="page", methods=["GET", "PUT"])
    CORS(app, origins=["https://ui.example"])

    @app.before_request
    def preflight() -> ResponseReturnValue | None:
        if request.method == "OPTIONS" and isinstance(request.routing_exception, MethodNotAllowed):
            return app.make_default_options_response()  # from `allowed_methods()`
        return None

    client = app.test_client()
    page = client.options("/page", headers=ASKS)
    for path, methods in {
        "/v2/a/tags/list": {"GET", "HEAD"},
        "/v2/a/manifests/v1": {"GET", "HEAD", "PUT", "DELETE"},
        "/v2/a/blobs/uploads/": {"POST"},
    }.items():
        answer = client.options(path, headers=ASKS)
        assert answer.status_code == 200
        assert set(answer.allow) == methods
        for header in {name for name, _ in page.headers if name.startswith("Access-Control-")}:
            assert answer.headers[header] == page.headers[header]
    assert client.options("/v2/none", headers=ASKS).status_code == 404
    assert client.options("/v2/A/tags/list", headers=ASKS).status_code == 400
    assert client.delete("/v2/a/tags/list", headers=ASKS).status_code == 405
    tags = client.get("/v2/a/tags/list", headers=ASKS)
    assert tags.headers["Access-Control-Allow-Origin"] == "https://ui.example"


# Tenants.


@pytest.mark.parametrize(
    ("factory", "host", "prefix", "map_class"),
    [
        (Subdomain("<tenant>", [RegistryRules()]), "acme.registry.example", "", RegistryMap),
        (Submount("/of/<tenant>", [RegistryRules()]), "registry.example", "/of/acme", RegistryMap),
        (Submount("/of/<tenant>", [RegistryRules()]), "registry.example", "/of/acme", Map),
        (
            Subdomain("<tenant>", [Submount("/r", [RegistryRules()])]),
            "acme.registry.example",
            "/r",
            Map,
        ),
    ],
)
def test_tenant_has_a_subdomain_or_a_prefix(
    factory: RuleFactory, host: str, prefix: str, map_class: type[Map]
) -> None:
    class App(Flask):
        url_map_class = map_class

    app = App(__name__, subdomain_matching=True)
    app.config["SERVER_NAME"] = "registry.example"
    app.url_map.add(factory)
    app.register_error_handler(HTTPException, error_response)
    client = with_views(app).test_client()
    for path, endpoint, values in (
        ("/v2/", "base", {}),
        (f"/v2/a/b/blobs/{SHA256}", "blob", {"name": "a/b", "digest": SHA256}),
        ("/v2/a/manifests/v1", "manifest", {"name": "a", "tag": "v1"}),
    ):
        response = client.get(prefix + path, base_url=f"http://{host}")
        expected = {"endpoint": endpoint, "values": {**values, "tenant": "acme"}}
        assert response.get_json() == expected
    with app.test_request_context(base_url=f"http://{host}"):
        url = url_for("tags", name="a", tenant="other", _external=True)
    assert url == f"http://{host}{prefix}/v2/a/tags/list".replace("acme", "other")
    invalid = client.get(f"{prefix}/v2/A/tags/list", base_url=f"http://{host}")
    assert invalid.status_code == 404
