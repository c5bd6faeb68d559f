"""`RegistryApp`: views, errors as JSON, and mounts."""

import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import pytest
import requests
from flask import Flask, abort
from hypothesis import given
from hypothesis import strategies as st
from werkzeug import exceptions
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import Map, RequestRedirect, Rule, Subdomain
from werkzeug.test import Client, create_environ
from werkzeug.wrappers import Response

from registry_routes import (
    DOCKER_1_5,
    OCI_1_1,
    Dialect,
    RegistryApp,
    RegistryMap,
    RegistryRequest,
    RegistryRules,
    error_response,
    errors,
    responses,
    url_map,
)

from .nasty import SHA256
from .servers import free_port, serving

VERSION = "Docker-Distribution-API-Version"


def small_registry(routes: RegistryMap = url_map) -> RegistryApp:
    app = RegistryApp(routes)

    @app.view("manifest", "GET")
    def get_manifest(
        request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        return Response(f"{name} {tag or digest}")

    @app.view("manifest", "PUT")
    def put_manifest(request: RegistryRequest, name: str, **reference: str) -> Response:
        response = Response(status=201)
        response.location = request.urls.manifest(name, SHA256)
        return response

    @app.view("blob", "GET", "DELETE")
    def blob(request: RegistryRequest, name: str, digest: str) -> Response:
        raise errors.BlobUnknown(detail={"digest": digest})

    @app.view("tags", "GET")
    def tags(request: RegistryRequest, name: str) -> Response:
        raise RuntimeError("a secret")

    @app.view("blob-upload", "POST")
    def upload(request: RegistryRequest, name: str) -> Response:
        return Response(request.get_data() + request.url.encode())

    return app


@pytest.fixture
def client() -> Client:
    return Client(small_registry())


def code_of(response: Response) -> str:
    assert response.mimetype == "application/json"
    assert response.headers[VERSION] == "registry/2.0"
    (entry,) = response.get_json()["errors"]
    assert isinstance(entry["code"], str)
    return entry["code"]


def test_views_by_endpoint_and_method(client: Client) -> None:
    assert client.get("/v2/a/b/manifests/v1").text == "a/b v1"
    assert client.get(f"/v2/a/manifests/{SHA256}").text == f"a {SHA256}"
    put = client.put("/v2/a/manifests/v1")
    assert put.status_code == 201
    assert put.headers["Location"] == f"/v2/a/manifests/{SHA256}"
    for response in put, client.get("/v2/a/b/manifests/v1"), client.get("/v2/"):
        assert response.headers[VERSION] == "registry/2.0"


def test_methods_are_read_in_any_case(client: Client) -> None:
    response = client.open(environ_overrides={"REQUEST_METHOD": "put"}, path="/v2/a/manifests/v1")
    assert response.status_code == 201


def test_head_follows_get(client: Client) -> None:
    head, get = (client.open("/v2/a/b/manifests/v1", method=m) for m in ("HEAD", "GET"))
    assert head.status_code == 200
    assert head.data == b""
    assert dict(head.headers) == dict(get.headers)
    missing = client.head(f"/v2/a/blobs/{SHA256}")
    assert (missing.status_code, missing.data) == (404, b"")


def test_base_has_a_view_and_may_get_another(client: Client) -> None:
    assert client.get("/v2/").get_json() == {}
    app = small_registry()

    @app.view("base", "GET")
    def base(request: RegistryRequest) -> Response:
        raise errors.Unauthorized(realm="https://auth.example/token")

    response = Client(app).get("/v2/")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="https://auth.example/token"'
    assert code_of(response) == "UNAUTHORIZED"


@pytest.mark.parametrize("ending", ["", "/"])
@pytest.mark.parametrize("mount", ["", "/m"])
def test_a_method_without_a_view_is_a_405_and_a_route_without_views_a_404(
    ending: str, mount: str
) -> None:
    client = Client(DispatcherMiddleware(exceptions.NotFound(), {mount: small_registry()}))
    for path, method, allowed in (
        ("/v2/a/manifests/v1", "DELETE", "GET, HEAD, PUT"),
        ("/v2/a/manifests/v1", "PATCH", "GET, HEAD, PUT"),
        ("/v2/a/tags/list", "PUT", "GET, HEAD"),
        (f"/v2/a/blobs/{SHA256}", "POST", "DELETE, GET, HEAD"),
        ("/v2", "POST", "GET, HEAD"),
    ):
        response = client.open(f"{mount}{path}{ending}", method=method)
        if response.status_code == 308:  # a method that the route takes, but no view
            response = client.open(response.headers["Location"], method=method)
        assert response.status_code == 405, path
        assert response.headers["Allow"] == allowed
        assert code_of(response) == "UNSUPPORTED"
    for path in f"/v2/a/referrers/{SHA256}", "/v2/a/blobs/uploads/x", "/v2/_catalog":
        for method in "GET", "POST", "HEAD", "PROPFIND":
            response = client.open(f"{mount}{path}{ending}", method=method)
            if response.status_code == 308:
                response = client.open(response.headers["Location"], method=method)
            assert response.status_code == 404
            if method != "HEAD":
                assert code_of(response) == "UNSUPPORTED"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/A/tags/list", 400, "NAME_INVALID"),
        ("/v2/a/blobs/x", 400, "DIGEST_INVALID"),
        (f"/v2/a/blobs/{SHA256}", 404, "BLOB_UNKNOWN"),
        ("/v2/a/manifests/.x", 404, "MANIFEST_UNKNOWN"),
        ("/v2/x", 404, "UNSUPPORTED"),
        ("/elsewhere", 404, "UNSUPPORTED"),
    ],
)
def test_every_error_is_the_registrys_json(
    client: Client, path: str, status: int, code: str
) -> None:
    response = client.get(path)
    assert (response.status_code, code_of(response)) == (status, code)


CODES = {
    401: "UNAUTHORIZED",
    403: "DENIED",
    404: "UNSUPPORTED",
    411: "SIZE_INVALID",
    405: "UNSUPPORTED",
    413: "SIZE_INVALID",
    416: "RANGE_INVALID",
    429: "TOOMANYREQUESTS",
    503: "UNAVAILABLE",
}


@pytest.mark.parametrize(
    "error", [*exceptions.default_exceptions.values(), exceptions.ClientDisconnected]
)
def test_any_http_exception_of_a_view_becomes_json(error: type[exceptions.HTTPException]) -> None:
    app = RegistryApp()

    @app.view("catalog", "GET")
    def catalog(request: RegistryRequest) -> Response:
        raise error

    response = Client(app).get("/v2/_catalog")
    assert response.status_code == error.code
    code = code_of(response)
    assert code in errors.ERRORS
    assert code == CODES.get(response.status_code, "UNKNOWN")
    assert response.headers.getlist("Content-Type") == ["application/json"]


def test_an_exception_that_carries_a_response_is_that_response() -> None:
    app = RegistryApp()

    @app.view("catalog", "GET")
    def catalog(request: RegistryRequest) -> Response:
        abort(Response("mine", status=418))

    response = Client(app).get("/v2/_catalog")
    assert (response.status_code, response.text) == (418, "mine")


def test_an_unexpected_exception_is_logged_and_kept_from_the_client(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        response = client.get("/v2/a/tags/list")
    assert response.status_code == 500
    assert code_of(response) == "UNKNOWN"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    (record,) = caplog.records
    assert record.exc_info
    assert "a secret" in str(record.exc_info[1])
    assert record.getMessage() == "GET '/v2/a/tags/list'"


@pytest.mark.parametrize("length", ["x", "-1", "1.0", "٣", "1 ", "0x1", "9" * 5000])
def test_a_malformed_content_length_is_not_read_as_an_empty_body(
    client: Client, length: str
) -> None:
    environ = {"CONTENT_LENGTH": length}
    response = client.post("/v2/a/blobs/uploads/", data=b"body", environ_overrides=environ)
    assert (response.status_code, code_of(response)) == (400, "SIZE_INVALID")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: None,
        lambda: "a string",
        lambda: fail(errors.RegistryError("x")),
        lambda: fail(exceptions.HTTPException("x")),
        lambda: fail(errors.BlobUnknown(detail=Unprintable())),
    ],
)
def test_any_other_failure_is_a_500(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = RegistryApp()
    app.view("catalog", "GET")(lambda request: wrong())
    response = Client(app).get("/v2/_catalog")
    assert (response.status_code, code_of(response)) == (500, "UNKNOWN")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError


def fail(error: Exception) -> Response:
    raise error


def test_allow_of_a_path_with_several_endpoints_and_of_a_redirect() -> None:
    routes = RegistryMap(
        rules=[
            Rule("/x", endpoint="a", methods=["GET"]),
            Rule("/x", endpoint="b", methods=["PUT"]),
            Rule("/x", endpoint="c", methods=["DELETE"]),
            Rule("/old", endpoint="old", methods=["GET"], redirect_to="/new"),
        ]
    )
    app = RegistryApp(routes)
    app.view("a", "GET")(lambda request: Response())
    app.view("b", "PUT")(lambda request: Response())
    response = Client(app).post("/x")
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD, PUT")
    assert Client(app).delete("/x").headers["Allow"] == "GET, HEAD, PUT"
    assert Client(app).post("/old").headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("url_map", [DOCKER_1_5, "docker-1.5", RegistryMap, Map()])
def test_the_app_refuses_a_map_that_is_not_a_registry_map(url_map: Any) -> None:
    with pytest.raises(TypeError, match=r"^url_map .* must be a RegistryMap"):
        RegistryApp(url_map)


def test_a_405_lists_the_methods_with_a_view_of_every_rule_for_the_path() -> None:
    routes = RegistryMap(
        rules=[
            Rule("/v2/_catalog", endpoint="refresh", methods=["POST"]),
            Rule("/v2/_catalog", endpoint="forget", methods=["DELETE"]),
        ]
    )
    app = RegistryApp(routes)
    app.view("catalog", "GET")(lambda request: Response())
    app.view("refresh", "POST")(lambda request: Response())
    for path, methods in {"/v2/_catalog": "GET, HEAD, POST", "/v2/_catalog/": "GET, HEAD"}.items():
        response = Client(app).put(path)
        assert (response.status_code, response.headers["Allow"]) == (405, methods)


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        (Rule("/v2/ws", endpoint="mine", websocket=True, methods=["GET"]), "/v2/ws"),
        (Rule("/<path:page>", endpoint="mine", methods=["PUT"]), "/v2/nope"),
        (Rule("/<path:page>", endpoint="mine", methods=["PUT"]), "/v2/a/referrers/sha256:x"),
        (Rule("/<path:page>", endpoint="mine", methods=["PUT"]), "/v2/_catalog"),
        (Rule("/v2/<x>", endpoint="mine", websocket=True, methods=["OPTIONS"]), "/v2/_catalog"),
    ],
)
def test_a_rule_that_does_not_serve_a_path_allows_no_method_there(rule: Rule, path: str) -> None:
    rules = [rule.empty(), Rule("/v2/token", endpoint="token")]
    response = Client(small_registry(RegistryMap(rules=rules))).post(path)
    assert response.status_code == 404
    assert "Allow" not in response.headers


def test_a_rule_for_any_method_allows_get_if_it_has_a_view_for_get() -> None:
    app = small_registry(RegistryMap(dialect=DOCKER_1_5))
    app.view("tags", "PUT")(lambda request, name: Response())
    for path, allowed in ("/v2/", "GET, HEAD"), ("/v2/a/b/tags/list", "GET, HEAD, PUT"):
        assert Client(app).post(path).headers["Allow"] == allowed
    app = RegistryApp(RegistryMap(dialect=DOCKER_1_5))
    app.view("tags", "PUT")(lambda request, name: Response())
    assert Client(app).post("/v2/a/b/tags/list").headers["Allow"] == "PUT"


def test_a_view_for_head_leaves_the_view_for_get() -> None:
    app = RegistryApp()
    app.view("base", "HEAD")(lambda request: Response(status=204))
    assert Client(app).get("/v2/").status_code == 200
    assert Client(app).head("/v2/").status_code == 204


def test_redirects_keep_method_and_query(client: Client) -> None:
    response = client.post("/v2/a/blobs/uploads?x=1", data=b"body")
    assert response.status_code == 308
    assert response.headers["Location"] == "/v2/a/blobs/uploads/?x=1"
    assert response.headers[VERSION] == "registry/2.0"
    assert response.data == b""
    assert "Content-Type" not in response.headers
    followed = client.post("/v2/a/blobs/uploads?x=1", data=b"body", follow_redirects=True)
    assert followed.text == "bodyhttp://localhost/v2/a/blobs/uploads/?x=1"


# Which view is called.


@pytest.mark.parametrize(
    ("endpoint", "methods", "message"),
    [
        ("tag", ["GET"], "endpoint 'tag' must be one of the map's, such as 'tags'"),
        ("nothing", [], "endpoint 'nothing' must be one of the map's, such as 'base' or 'blob' or"),
        ("catalog", ["GET", "POST"], "endpoint 'catalog' must take the method 'POST'"),
        ("tags", [], "endpoint 'tags' already has a view for 'GET'"),
        ("tags", [None], "endpoint 'tags' already has a view for 'GET'"),
        ("tags", ["get"], "endpoint 'tags' already has a view for 'GET'"),
        ("tags", ["HEAD", "GET"], "endpoint 'tags' already has a view for 'GET'"),
    ],
)
def test_a_view_that_could_never_be_called_is_refused(
    endpoint: str, methods: list[str | None], message: str
) -> None:
    app = small_registry()
    with pytest.raises(ValueError, match=f"^{message}"):
        app.view(endpoint, *methods)(lambda request: Response())
    assert Client(app).get("/v2/_catalog").status_code == 404
    assert Client(app).head("/v2/a/tags/list").status_code == 500  # the view of GET


def test_a_decorator_registers_one_view() -> None:
    register = RegistryApp().view("catalog", "GET")
    register(lambda request: Response())
    with pytest.raises(ValueError, match="already has a view for 'GET'"):
        register(lambda request: Response())


def forward(request: RegistryRequest, **values: str) -> Response:
    return Response(f"{request.method} {request.endpoint} {values.get('name')}")


class Proxy:
    def forward(self, request: RegistryRequest, **values: str) -> Response:
        return forward(request, **values)


@pytest.mark.parametrize("dialect", [OCI_1_1, DOCKER_1_5, OCI_1_1.subset(methods=["HEAD", "PUT"])])
@pytest.mark.parametrize("by", ["methods", "endpoint", "None"])
def test_one_function_is_the_view_of_every_route_and_method(dialect: Dialect, by: str) -> None:
    app = RegistryApp(RegistryMap(dialect=dialect))
    proxy = Proxy()
    for route in dialect.routes:
        methods = {"methods": route.methods or (), "endpoint": (), "None": (None,)}[by]
        app.view(route.name, *methods)(proxy.forward)  # a bound method is another object each time
    client = Client(app)
    for route in dialect.routes:
        path = re.sub("<repository:name>", "a/b", route.path)
        path = re.sub("<digest:[^>]*>", SHA256, path)
        path = re.sub("<[^>]*>", "x", path)
        for method in dialect.methods(route) or {"GET", "PUT", "PROPFIND", "OPTIONS"}:
            response = client.open(path, method=method)
            name = "a/b" if "name" in route.path else None
            answer = "" if method == "HEAD" else f"{method} {route.endpoint} {name}"
            assert (response.status_code, response.text) == (200, answer)


def test_a_second_view_for_a_method_is_refused() -> None:
    app = RegistryApp()
    app.view("manifest", "GET", "PUT")(forward)
    app.view("manifest", "PUT", "DELETE")(forward)
    with pytest.raises(ValueError, match=r"^endpoint 'manifest' already has a view for 'DELETE'$"):
        app.view("manifest", "HEAD", "DELETE")(lambda request, **values: Response())
    assert Client(app).head("/v2/a/manifests/v1").status_code == 200


def test_a_view_for_a_method_comes_before_the_view_for_any_method() -> None:
    app = RegistryApp(RegistryMap(dialect=DOCKER_1_5))
    app.view("tags")(lambda request, name: Response("any"))
    app.view("tags", "PUT")(lambda request, name: Response("put"))
    client = Client(app)
    methods = {"GET": "any", "PUT": "put", "POST": "any"}
    for method, text in methods.items():
        assert client.open("/v2/a/b/tags/list", method=method).text == text
    with pytest.raises(ValueError, match=r"^endpoint 'tags' already has a view for any method$"):
        app.view("tags")(lambda request, name: Response())


def test_the_view_of_base_for_any_method_replaces_the_ready_made_one() -> None:
    app = RegistryApp(RegistryMap(dialect=DOCKER_1_5))
    app.view("base")(lambda request: Response(request.method))
    for method in "GET", "POST":
        assert Client(app).open("/v2/", method=method).text == method


# OPTIONS.


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v2/", "GET, HEAD, OPTIONS"),
        ("/v2", "GET, HEAD, OPTIONS"),
        ("/v2/a/manifests/v1", "GET, HEAD, OPTIONS, PUT"),
        ("/v2/a/tags/list/", "GET, HEAD, OPTIONS"),
        (f"/v2/a/blobs/{SHA256}", "DELETE, GET, HEAD, OPTIONS"),
        ("/v2/a/blobs/uploads/", "OPTIONS, POST"),
    ],
)
def test_options_lists_the_methods_that_have_a_view(
    client: Client, path: str, allowed: str
) -> None:
    response = client.options(path)
    assert (response.status_code, response.data) == (200, b"")
    assert response.headers["Allow"] == allowed
    refused = client.open(path, method="PROPFIND")
    assert (refused.status_code, refused.headers["Allow"]) == (
        405,
        allowed.replace("OPTIONS, ", "").replace(", OPTIONS", ""),
    )


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v2/_catalog", 404), ("/v2/x", 404), ("/x", 404), ("/v2/A/tags/list", 400)],
)
def test_options_without_a_route_is_the_same_error_as_any_method(
    client: Client, path: str, status: int
) -> None:
    response = client.options(path)
    assert response.status_code == status
    assert "Allow" not in response.headers


def test_a_rule_that_takes_options_keeps_its_view() -> None:
    rules = [
        Rule("/v2/_catalog", endpoint="mine", methods=["OPTIONS"]),
        Rule("/any", endpoint="any"),
        Rule("/get", endpoint="get", methods=["GET", "OPTIONS"]),
    ]
    app = RegistryApp(RegistryMap(rules=rules))
    app.view("catalog")(lambda request: Response("catalog"))
    app.view("mine")(lambda request: Response("mine"))
    app.view("any", "GET")(lambda request: Response("get"))
    app.view("get", "GET")(lambda request: Response("get"))
    client = Client(app)
    assert client.get("/v2/_catalog").text == "catalog"
    assert client.options("/v2/_catalog").text == "mine"
    for path in "/any", "/get":
        response = client.options(path)
        assert (response.status_code, response.text) == (200, "")
        assert response.headers["Allow"] == "GET, HEAD, OPTIONS"


# What a request knows.


def seen(app: RegistryApp) -> list[RegistryRequest]:
    """The requests that an application has seen."""
    requests: list[RegistryRequest] = []

    @app.after_request
    def see(request: RegistryRequest, response: Response) -> Response:
        requests.append(request)
        return response

    return requests


def statuses_sent(app: RegistryApp) -> list[int]:
    """The status of each response that an application has sent."""
    statuses: list[int] = []

    @app.after_request
    def see(request: RegistryRequest, response: Response) -> Response:
        statuses.append(response.status_code)
        return response

    return statuses


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_request_knows_its_rule(ending: str) -> None:
    app = small_registry(RegistryMap(prefix="/p", strict_slashes=False))
    requests = seen(app)
    assert Client(app).get(f"/p/v2/a/b/manifests/v1{ending}").text == "a/b v1"
    (request,) = requests
    assert request.endpoint == "manifest"
    assert request.view_args == {"name": "a/b", "tag": "v1"}
    assert request.url_rule is not None
    assert request.url_rule.rule == "/p/v2/<repository:name>/manifests/<tag:tag>"
    assert request.routing_exception is None
    assert [str(scope) for scope in request.scopes] == ["repository:a/b:pull"]


def test_the_template_is_the_same_for_every_way_of_matching() -> None:
    templates = set()
    subdomain = RegistryMap(rules=[Subdomain("s", [RegistryRules()])])  # Werkzeug matches it
    for routes in url_map, subdomain:
        app = small_registry(routes)
        requests = seen(app)
        if routes is subdomain:
            bind = routes.bind_to_environ
            routes.bind_to_environ = lambda environ: bind(environ, subdomain="s")  # type: ignore
        assert Client(app).get("/v2/a/manifests/v1").text == "a v1"
        assert requests[0].url_rule
        templates.add(requests[0].url_rule.rule)
    assert templates == {"/v2/<repository:name>/manifests/<tag:tag>"}


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        ("GET", "/v2/x", errors.RouteUnknown),
        ("GET", "/x", exceptions.NotFound),
        ("GET", "/v2/A/tags/list", errors.NameInvalid),
        ("POST", "/v2/", errors.Unsupported),
        ("OPTIONS", "/v2/", errors.Unsupported),
        ("GET", "/v2", RequestRedirect),
    ],
)
def test_a_request_that_matches_no_rule_knows_why(
    method: str, path: str, error: type[Exception]
) -> None:
    app = small_registry()
    requests = seen(app)
    Client(app).open(path, method=method)
    (request,) = requests
    assert (request.endpoint, request.view_args, request.url_rule) == (None, None, None)
    assert request.scopes == []
    assert type(request.routing_exception) is error


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("GET", "/v2/", ""),
        ("GET", "/v2/_catalog", "registry:catalog:*"),
        ("HEAD", f"/v2/a/blobs/{SHA256}", "repository:a:pull"),
        ("POST", "/v2/a/blobs/uploads/?from=b", "repository:a:pull,push repository:b:pull"),
        ("post", "/v2/a/blobs/uploads/?from=b", "repository:a:pull,push repository:b:pull"),
        ("DELETE", "/v2/a/manifests/v1", "repository:a:delete"),  # which has no view
    ],
)
def test_a_request_knows_the_scopes_that_it_needs(method: str, path: str, scopes: str) -> None:
    app = small_registry()
    requests = seen(app)
    Client(app).open(path, method=method, environ_overrides={"REQUEST_METHOD": method})
    assert " ".join(map(str, requests[0].scopes)) == scopes


def test_middleware_around_the_application_finds_the_request() -> None:
    app = small_registry()
    endpoints = []

    def around(environ: Any, start_response: Any) -> Any:
        answer = app(environ, start_response)
        endpoints.append(environ["werkzeug.request"].endpoint)
        return answer

    client = Client(around)
    for path in "/v2/a/manifests/v1", "/v2/a/tags/list", "/v2/x":
        client.get(path)
    assert endpoints == ["manifest", "tags", None]


# Hooks.


def test_a_hook_before_the_view_may_answer_raise_or_let_the_request_through() -> None:
    app = small_registry()

    @app.before_request
    def limit(request: RegistryRequest) -> Response | None:
        if "limited" in request.args:
            raise errors.TooManyRequests(retry_after=1)
        return Response("from the cache") if "cached" in request.args else None

    client = Client(app)
    assert client.get("/v2/a/manifests/v1").text == "a v1"
    assert client.get("/v2/a/manifests/v1?cached").text == "from the cache"
    limited = client.get("/v2/a/manifests/v1?limited")
    assert (limited.status_code, limited.headers["Retry-After"]) == (429, "1")
    assert code_of(limited) == "TOOMANYREQUESTS"


@pytest.mark.parametrize("path", ["/v2", "/v2/x", "/x", "/v2/A/tags/list", "/v2/_catalog"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_hook_may_challenge_before_a_client_learns_anything(path: str, method: str) -> None:
    app = small_registry()

    @app.before_request
    def challenge(request: RegistryRequest) -> None:
        if request.method != "OPTIONS":
            raise errors.Unauthorized(realm="https://auth.example/")

    assert Client(app).open(path, method=method).status_code == 401
    assert Client(app).options("/v2/").headers["Allow"] == "GET, HEAD, OPTIONS"


def test_hooks_are_called_in_order_and_those_after_the_view_in_reverse() -> None:
    app = RegistryApp()
    called = []
    for number in 1, 2, 3:

        @app.before_request
        def before(request: RegistryRequest, number: int = number) -> None:
            called.append(f"before {number}")

        @app.after_request
        def after(request: RegistryRequest, response: Response, number: int = number) -> Response:
            called.append(f"after {number}")
            return response

    Client(app).get("/v2/")
    assert called == [f"before {n}" for n in (1, 2, 3)] + [f"after {n}" for n in (3, 2, 1)]


#: What a view or a hook may do, and the status that follows (`None`: no change).
DEEDS: dict[str, int | None] = {
    "nothing": None,
    "answer": 202,
    "deny": 403,
    "abort": 418,
    "break": 500,
    "return a string": 500,
    "send a newline": 500,
    "send another alphabet": 500,
    "send a bad status": 500,
}


def do(deed: str, otherwise: Response | None) -> Any:
    if deed == "answer":
        return Response(status=202)
    if deed == "deny":
        raise errors.Denied
    if deed == "abort":
        abort(Response(status=418))
    if deed == "break":
        raise ZeroDivisionError
    if deed == "return a string":
        return "a string"
    if deed == "send a newline":
        return Response(headers={"X\n": "a"})
    if deed == "send another alphabet":
        return Response(headers={"X": "ж"})
    if deed == "send a bad status":
        return Response(status="over the moon")
    return otherwise


@given(
    st.lists(st.sampled_from(list(DEEDS)), max_size=3),
    st.sampled_from(list(DEEDS)),
    st.lists(st.sampled_from(list(DEEDS)), max_size=3),
)
def test_each_hook_sees_the_response_that_the_last_hook_returned(
    before: list[str], view: str, after: list[str]
) -> None:
    app = RegistryApp()
    app.view("catalog")(lambda request: do(view, Response()))
    for deed in before:
        app.before_request(lambda request, deed=deed: do(deed, None))
    statuses = []

    def see(request: RegistryRequest, response: Response, deed: str) -> Any:
        statuses.append(response.status_code)
        return do(deed, response)

    for deed in after:
        app.after_request(lambda request, response, deed=deed: see(request, response, deed))
    logging.disable(logging.CRITICAL)
    try:
        response = Client(validator(app)).get("/v2/_catalog", buffered=True)
    finally:
        logging.disable(logging.NOTSET)
    answers = [DEEDS[deed] for deed in before if DEEDS[deed]]
    expected = [answers[0] if answers else DEEDS[view] or 200]
    for deed in reversed(after):
        expected.append(DEEDS[deed] or expected[-1])
    assert [*statuses, response.status_code] == expected
    if response.status_code >= 500:
        assert code_of(response) == "UNKNOWN"


def test_hooks_see_a_500_too(caplog: pytest.LogCaptureFixture) -> None:
    app = small_registry()
    statuses = statuses_sent(app)
    for path in "/v2/a/tags/list", "/v2", "/v2/x", f"/v2/a/blobs/{SHA256}":
        Client(app).get(path)
    assert statuses == [500, 308, 404, 404]


@pytest.mark.parametrize("kind", ["before_request", "after_request"])
def test_a_hook_that_returns_another_type_is_named_in_the_error(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = small_registry()

    def forgetful(*arguments: Any) -> Any:
        return "a string"

    getattr(app, kind)(forgetful)
    assert Client(app).get("/v2/").status_code == 500
    assert "'forgetful' must return a Response, not 'a string'" in caplog.text


# What is sent.

FIELD_TEXT = st.text(st.characters(max_codepoint=0x250) | st.sampled_from("\r\n\0\x7f\u2028Kſ:"))


class Headers(list[tuple[Any, Any]]):
    """Headers that nobody has checked, unlike Werkzeug's."""

    def to_wsgi_list(self) -> list[tuple[Any, Any]]:
        return list(self)


class Unchecked(Response):
    def get_wsgi_headers(self, environ: Any) -> Any:
        return Headers(self.unchecked)

    unchecked: list[tuple[Any, Any]] = []


@given(
    st.lists(st.tuples(FIELD_TEXT | st.just("X-Y"), FIELD_TEXT | st.integers() | st.none())),
    st.text(max_size=6) | st.from_regex("[1-9][0-9]{2}( .*)?", fullmatch=True),
)
def test_every_response_can_be_sent(fields: list[tuple[Any, Any]], status: str) -> None:
    app = RegistryApp()

    @app.view("catalog")
    def catalog(request: RegistryRequest) -> Response:
        response = Unchecked()
        response.unchecked = [("Content-Type", "text/plain"), *fields]
        if status.strip():
            response.status = status
        return response

    started: list[Any] = []
    logging.disable(logging.CRITICAL)
    try:
        environ = create_environ("/v2/_catalog")
        body = b"".join(app(environ, lambda *start: started.append(start)))  # type: ignore
    finally:
        logging.disable(logging.NOTSET)
    ((sent_status, sent_fields),) = started
    assert re.fullmatch("[2-9][0-9][0-9] [ -~\x80-\xff]*", sent_status)
    for name, value in sent_fields:
        assert re.fullmatch("[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
        assert not set(map(chr, [*range(32), 127])) & set(value)
        value.encode("latin-1")
    good = all(
        isinstance(value, str)
        and re.fullmatch("[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
        and re.fullmatch("[ -~\x80-\xff]*", value)
        for name, value in fields
    )
    assert good or json.loads(body)["errors"][0]["code"] == "UNKNOWN"


def bad_responses() -> dict[str, Callable[[], Response]]:
    """Responses that a server cannot send, each at the path of an extension."""
    return {
        "newline-in-name": lambda: Response(headers={"X-A\r\nX-B": "a"}),
        "newline-in-value": lambda: Response(headers={"X": "a\r\nX-B: b"}),
        "another-alphabet": lambda: Response(headers={"X": "ж"}),
        "control-character": lambda: Response(headers={"X": "a\0"}),
        "empty-name": lambda: Response(headers={"": "a"}),
        "kelvin": lambda: Response(headers={"\N{KELVIN SIGN}": "a"}),
        "connection": lambda: Response(headers={"Connection": "close"}),
        "chunked": lambda: Response(headers={"transfer-encoding": "chunked"}),
        "location": lambda: Response(status=307, headers={"Location": "http://["}),
        "status": lambda: Response(status="over the moon"),
        "interim-status": lambda: Response(status=100),
        "newline-in-status": lambda: Response(status="200 OK\r\nX-B: b"),
        "error": lambda: fail(errors.Denied(headers=[("X\n", "a")])),
        "carried": lambda: fail(exceptions.NotFound(response=Response(headers={"X": "ж"}))),
    }


def badly_responding_app() -> RegistryApp:
    app = RegistryApp()
    made = bad_responses()

    @app.view("extension")
    def extension(request: RegistryRequest, module: str, **values: str) -> Response:
        return made[module]()

    @app.view("blob-upload")
    def upload(request: RegistryRequest, name: str) -> Response:
        return Response(f"{len(request.get_data())} bytes")

    return app


class WsgirefHandler(WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(
    scope="module", params=["wsgiref", pytest.param("gunicorn", marks=pytest.mark.slow)]
)
def real_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A server of `badly_responding_app`, and where it is."""
    if request.param == "gunicorn":
        port = free_port()
        log = tmp_path_factory.mktemp("gunicorn") / "log"
        command = [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{port}"]
        command += ["--no-control-socket", "tests.test_app:badly_responding_app()"]
        with serving(command, port, log, clean=False, cwd=Path(__file__).parent.parent) as host:
            yield request.param, host
        return
    with make_server(
        "127.0.0.1", 0, badly_responding_app(), handler_class=WsgirefHandler
    ) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield request.param, f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("bad", bad_responses())
def test_a_response_that_cannot_be_sent_is_a_500_on_real_servers(
    real_server: tuple[str, str], bad: str
) -> None:
    _, host = real_server
    response = requests.get(f"http://{host}/v2/_a/b/{bad}", timeout=10, allow_redirects=False)
    assert response.status_code == 500
    assert response.json()["errors"][0]["code"] == "UNKNOWN"
    assert not {"X", "X-A", "X-B"} & set(response.headers)


def test_a_response_that_cannot_be_sent_is_logged_and_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = RegistryApp()
    closed = []

    @app.view("catalog")
    def catalog(request: RegistryRequest) -> Response:
        response = Response(iter([b"a"]), headers={"X-Y": "ж"})
        response.call_on_close(lambda: closed.append(True))
        return response

    assert Client(app).get("/v2/_catalog").status_code == 500
    assert closed == [True]
    assert "header 'X-Y': 'ж' must be a token and one line of Latin-1" in caplog.text


def raising(response: Response) -> Response:
    raise errors.Denied


def spoilt(response: Response) -> Response:
    response.headers["X-Y"] = "ж"
    return response


@pytest.mark.parametrize(
    "hook",
    [
        lambda response: response,
        lambda response: Response("another"),
        lambda response: Response(response.iter_encoded()),
        lambda response: Response(headers={"X-Y": "ж"}),
        lambda response: None,
        raising,
        spoilt,
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_each_response_is_closed_once_whatever_a_hook_makes_of_it(
    hook: Callable[[Response], Any], method: str
) -> None:
    app = RegistryApp()
    closed: list[bool] = []

    def body() -> Iterator[bytes]:
        yield b"a"
        assert not closed
        yield b"b"

    @app.view("catalog")
    def catalog(request: RegistryRequest) -> Response:
        response = Response(body())
        response.call_on_close(lambda: closed.append(True))
        return response

    app.after_request(lambda request, response: response)
    app.after_request(lambda request, response: hook(response))
    response = Client(app).open("/v2/_catalog", method=method)
    assert response.data is not None
    response.close()
    assert closed == [True]


def test_headers_that_servers_can_send_are_sent_as_they_are() -> None:
    sent = {"X_y.z~": "a, \xe9\xff", "Location": "/é ж", "DOCKER-distribution-api-version": "x"}
    app = RegistryApp()
    app.view("catalog")(lambda request: Response(headers=sent))
    response = Client(app).get("/v2/_catalog")
    assert response.headers["X_y.z~"] == sent["X_y.z~"]
    assert response.headers["Location"] == "/%C3%A9%20%D0%B6"
    assert response.headers.getlist(VERSION) == ["x"]


def test_an_exception_while_a_body_is_sent_reaches_the_server() -> None:
    app = RegistryApp()

    def body() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    app.view("catalog")(lambda request: Response(body()))
    with pytest.raises(ZeroDivisionError):
        Client(app).get("/v2/_catalog", buffered=True)


# Bodies of unknown length.


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
@pytest.mark.parametrize("encoding", ["chunked", "gzip, Chunked"])
@pytest.mark.parametrize("length", [None, "4"])
def test_a_chunked_body_that_the_server_does_not_end_is_refused_first(
    method: str, encoding: str, length: str | None
) -> None:
    app = RegistryApp(RegistryMap(dialect=DOCKER_1_5))
    calls: list[Any] = []
    app.view("tags")(lambda request, name: Response())
    app.before_request(lambda request: calls.append(request))
    statuses = statuses_sent(app)
    environ = create_environ("/v2/a/b/tags/list", method=method, input_stream=BytesIO(b"body"))
    environ["HTTP_TRANSFER_ENCODING"] = encoding
    environ.pop("wsgi.input_terminated", None)
    environ.pop("CONTENT_LENGTH", None)
    if length:
        environ["CONTENT_LENGTH"] = length
    response = Response.from_app(app, environ)
    assert (response.status_code, code_of(response)) == (411, "SIZE_INVALID")
    assert calls == []
    assert statuses == [411]
    environ = {**environ, "wsgi.input_terminated": True}
    assert Response.from_app(app, environ).status_code == 200


@pytest.mark.parametrize(
    ("protocol", "method", "more", "status"),
    [
        ("HTTP/2", "PATCH", {}, 411),
        ("HTTP/3", "PUT", {}, 411),
        ("HTTP/2", "PATCH", {"CONTENT_LENGTH": "0"}, 200),
        ("HTTP/2", "PATCH", {"wsgi.input_terminated": True}, 200),
        ("HTTP/2", "GET", {}, 200),
        ("HTTP/1.1", "PATCH", {}, 200),
        ("HTTP/1.0", "POST", {}, 200),
    ],
)
def test_since_http_2_a_body_may_lack_both_headers(
    protocol: str, method: str, more: dict[str, Any], status: int
) -> None:
    app = RegistryApp(RegistryMap(dialect=DOCKER_1_5))
    app.view("tags")(lambda request, name: Response())
    environ = create_environ("/v2/a/b/tags/list", method=method)
    environ.pop("CONTENT_LENGTH", None)
    environ |= {"SERVER_PROTOCOL": protocol, **more}
    assert Response.from_app(app, environ).status_code == status


def test_a_chunked_body_on_real_servers_is_whole_or_refused(real_server: tuple[str, str]) -> None:
    server, host = real_server
    url = f"http://{host}/v2/a/blobs/uploads/"
    response = requests.post(url, data=iter([b"some ", b"bytes"]), timeout=10)
    if server == "gunicorn":
        assert response.text == "10 bytes"
    else:
        assert response.status_code == 411
        assert response.json()["errors"][0]["code"] == "SIZE_INVALID"


# Testing.


@pytest.mark.parametrize("place", ["view", "before", "after", "header"])
def test_exceptions_reach_the_test_if_testing_is_set(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = RegistryApp()
    app.testing = True
    app.view("catalog")(lambda request: do("break" if place == "view" else place, Response()))
    app.view("tags")(lambda request, name: do("deny", None))
    if place == "before":
        app.before_request(lambda request: do("break", None))
    if place == "after":
        app.after_request(lambda request, response: do("break", None))
    if place == "header":
        app.after_request(lambda request, response: do("send a newline", None))
    client = Client(app)
    with pytest.raises(ValueError if place == "header" else ZeroDivisionError):
        client.get("/v2/_catalog")
    assert not caplog.records
    if place == "view":
        assert client.get("/v2/a/tags/list").status_code == 403  # it is the answer
        assert client.get("/v2/x").status_code == 404


def test_other_maps() -> None:
    routes = RegistryMap(
        dialect=DOCKER_1_5,
        prefix="/p",
        rules=[Rule("/healthz", endpoint="health", methods=["GET"])],
    )
    app = small_registry(routes)

    @app.view("health", "GET")
    def health(request: RegistryRequest) -> Response:
        return Response(request.urls.base())

    client = Client(app)
    assert client.get("/healthz").text == "/p/v2/"
    assert client.post("/healthz").status_code == 405
    assert client.get("/p/v2/a/b/manifests/v1").text == "a/b v1"
    assert (
        client.open("/p/v2/a/b/manifests/v1", method="PROPFIND").headers["Allow"]
        == "GET, HEAD, PUT"
    )
    assert code_of(client.get("/p/v2/a/manifests/v1")) == "UNSUPPORTED"


@given(
    st.text(max_size=20)
    | st.lists(st.sampled_from(["v2", "a", "..", "", "tags", "list", "\n"])).map("/".join),
    st.sampled_from(["GET", "HEAD", "POST", "get", "é", "TRACE", ""]),
    st.sampled_from(["h", "", "a..b", "é", "x" * 300, "[", "h:x"]),
)
def test_no_target_or_method_causes_a_500(path: str, method: str, host: str) -> None:
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": f"/{path}".encode(errors="replace").decode("latin-1"),
        "HTTP_HOST": host,
        "SERVER_NAME": "h",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
    }
    started: list[Any] = []
    app = RegistryApp()
    app.view("tags", "GET")(lambda request, name: Response(request.urls.tags(name)))
    body = b"".join(app(environ, lambda *args: started.append(args)))  # type: ignore[arg-type]
    status = int(started[0][0][:3])
    assert status < 500
    if status >= 400 and method.upper() != "HEAD":
        assert json.loads(body)["errors"]


# Where it is mounted.


def assert_it_is_there(client: Client, mount: str = "") -> None:
    assert client.get(f"{mount}/v2/a/b/manifests/v1").text == "a/b v1"
    put = client.put(f"{mount}/v2/a/manifests/v1")
    assert put.headers["Location"] == f"{mount}/v2/a/manifests/{SHA256}"
    slashed = client.get(f"{mount}/v2/a/manifests/v1/")
    assert slashed.headers["Location"] == f"{mount}/v2/a/manifests/v1"
    assert code_of(client.get(f"{mount}/v2/A/tags/list")) == "NAME_INVALID"


def test_under_dispatcher_middleware() -> None:
    app = DispatcherMiddleware(exceptions.NotFound(), {"/registry": small_registry()})
    assert_it_is_there(Client(app), "/registry")


def test_behind_a_proxy() -> None:
    app = ProxyFix(small_registry(), x_prefix=1)
    client = Client(app)
    headers = {"X-Forwarded-Prefix": "/public"}
    put = client.put("/v2/a/manifests/v1", headers=headers)
    assert put.headers["Location"] == f"/public/v2/a/manifests/{SHA256}"
    slashed = client.get("/v2/a/manifests/v1/", headers=headers)
    assert slashed.headers["Location"] == "/public/v2/a/manifests/v1"


def test_in_flask() -> None:
    flask_app = Flask(__name__)
    flask_app.add_url_rule("/", view_func=lambda: "the page")
    flask_app.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
        flask_app.wsgi_app, {"/registry": small_registry()}
    )
    client = Client(flask_app)
    assert client.get("/").text == "the page"
    assert_it_is_there(client, "/registry")


def test_errors_in_a_flask_app_that_has_the_map() -> None:
    class App(Flask):
        url_map_class = RegistryMap  # type: ignore[assignment]

    app = App(__name__)
    app.register_error_handler(exceptions.HTTPException, error_response)
    client = app.test_client()
    for path, code in {"/v2/A/tags/list": "NAME_INVALID", "/x": "UNSUPPORTED"}.items():
        response = client.get(path)
        assert response.get_json()["errors"][0]["code"] == code


def test_a_proxy_answers_with_all_the_errors_that_it_has_read() -> None:
    sent = [
        {"code": "DENIED", "message": "no", "detail": {"a": [1]}},
        {"code": "NAME_UNKNOWN", "message": "none"},
        {"code": "X", "message": "what"},
    ]
    read = responses.parse_errors(403, json.dumps({"errors": sent}), {"RateLimit-Limit": "100"})
    app = RegistryApp()

    @app.view("tags", "GET")
    def tags(request: RegistryRequest, name: str) -> Response:
        return error_response(read, request.environ)

    response = Client(app).get("/v2/a/tags/list")
    assert response.status_code == 403
    assert response.get_json() == {"errors": sent}
    assert response.headers.getlist("Content-Type") == ["application/json"]
    assert response.headers["RateLimit-Limit"] == "100"
    assert int(response.headers["Content-Length"]) == len(response.get_data())


def test_several_errors_may_be_of_any_http_exception() -> None:
    response = error_response([exceptions.Forbidden("not you"), errors.NameUnknown()])
    assert response.status_code == 403
    first, second = response.get_json()["errors"]
    assert first == {"code": "DENIED", "message": "not you"}
    assert second["code"] == "NAME_UNKNOWN"
    one = error_response([errors.NameUnknown()])
    assert one.get_data() == error_response(errors.NameUnknown()).get_data()
    with pytest.raises(ValueError, match="must have at least one error"):
        error_response([])
