"""Promises of the Flask section of `examples/README.md` that its blocks, which are run, do not show."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask import Blueprint, Flask, request, url_for
from flask.typing import ResponseReturnValue
from flask_cors import CORS
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import EndpointPrefix, Map, RuleFactory, Subdomain, Submount

from registry_routes import OCI_1_1, Dialect, RegistryMap, RegistryRules, error_response, errors

from .nasty import SHA256

SERVED = OCI_1_1.subset("base", "tags", "manifest", "blob")


def app_of(dialect: Dialect = SERVED) -> Flask:
    """An app whose map has the routes of a dialect, and no view."""

    class Routes(RegistryMap):
        def __init__(self, **options: Any) -> None:  # Flask's
            super().__init__(dialect=dialect, **options)

    class App(Flask):
        url_map_class = Routes  # type: ignore[assignment]

    app = App(__name__)
    app.register_error_handler(HTTPException, error_response)
    return app


def app_with_named_dialect() -> Flask:
    routes = [replace(route, name=f"registry.{route.name}") for route in SERVED.routes]
    return app_of(replace(SERVED, routes=tuple(routes)))


def app_with_prefixed_rules() -> Flask:
    app = Flask(__name__)
    app.url_map.add(EndpointPrefix("registry.", [RegistryRules(SERVED)]))
    return app


@pytest.mark.parametrize("make", [app_with_named_dialect, app_with_prefixed_rules])
def test_blueprints_hooks_run_for_its_routes(make: Callable[[], Flask]) -> None:
    registry, seen = Blueprint("registry", __name__), []

    @registry.before_request
    def remember() -> None:
        seen.append((request.blueprint, request.endpoint))

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
    assert client.get("/v2/a/b/tags/list").get_json() == {"next": "/v2/a/b/tags/list?n=2"}
    missing = client.get("/v2/a/manifests/v1")
    assert missing.get_json()["errors"][0]["message"] == "of the blueprint"
    assert client.get("/tags").text == "a page about tags"  # a view of the registry's name
    assert seen == [("registry", "registry.tags"), ("registry", "registry.manifest")]


def test_hook_answers_preflight_requests() -> None:
    app = app_of()
    app.add_url_rule("/page", view_func=lambda: "a page", endpoint="page")
    CORS(app, origins=["https://ui.example"])

    @app.before_request
    def preflight() -> ResponseReturnValue | None:
        if request.method == "OPTIONS" and isinstance(request.routing_exception, MethodNotAllowed):
            return app.make_default_options_response()  # from `allowed_methods()`
        return None

    client = app.test_client()
    asks = {"Origin": "https://ui.example", "Access-Control-Request-Method": "GET"}
    page = client.options("/page", headers=asks)
    answer = client.options("/v2/a/manifests/v1", headers=asks)
    assert answer.status_code == 200
    assert set(answer.allow) == {"GET", "HEAD", "PUT", "DELETE"}
    for header in {name for name, _ in page.headers if name.startswith("Access-Control-")}:
        assert answer.headers[header] == page.headers[header]
    assert client.options("/v2/A/tags/list", headers=asks).status_code == 400
    assert client.delete("/v2/a/tags/list", headers=asks).status_code == 405


@pytest.mark.parametrize(
    ("factory", "host", "prefix", "map_class"),
    [
        (Subdomain("<tenant>", [RegistryRules()]), "acme.registry.example", "", RegistryMap),
        (Subdomain("<tenant>", [RegistryRules()]), "acme.registry.example", "", Map),
        (Submount("/of/<tenant>", [RegistryRules()]), "registry.example", "/of/acme", RegistryMap),
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
    app.endpoint("blob")(lambda **values: values)
    path = f"{prefix}/v2/a/b/blobs/{SHA256}"
    response = app.test_client().get(path, base_url=f"http://{host}")
    assert response.get_json() == {"tenant": "acme", "name": "a/b", "digest": SHA256}
    with app.test_request_context(base_url=f"http://{host}"):
        url = url_for("tags", name="a", tenant="other", _external=True)
    assert url == f"http://{host}{prefix}/v2/a/tags/list".replace("acme", "other")
