"""`RegistryApp`: which view answers, errors as JSON, and mounts."""

import json
import logging
import re
from typing import Any

import pytest
from flask import abort
from hypothesis import given
from hypothesis import strategies as st
from werkzeug import exceptions
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import Map, RequestRedirect, Rule
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes import (
    DOCKER_1_5,
    OCI_1_1,
    Dialect,
    RegistryApp,
    RegistryMap,
    RegistryRequest,
    error_response,
    errors,
    responses,
)

from .applications import VERSION, app_with_view, code_of, fail, requests_of, small_registry
from .nasty import SHA256


@pytest.fixture
def client() -> Client:
    return Client(small_registry())


def forward(request: RegistryRequest, **values: str) -> Response:
    return Response(f"{request.method} {request.endpoint} {values.get('name')}")


# Which view is called.


def test_views_by_endpoint_and_method(client: Client) -> None:
    assert client.get("/v2/a/b/manifests/v1").text == "a/b v1"
    assert client.get(f"/v2/a/manifests/{SHA256}").text == f"a {SHA256}"
    for method in "PUT", "put":
        put = client.open("/v2/a/manifests/v1", environ_overrides={"REQUEST_METHOD": method})
        assert put.status_code == 201
        assert put.headers["Location"] == f"/v2/a/manifests/{SHA256}"
    for response in put, client.get("/v2/a/b/manifests/v1"), client.get("/v2/"):
        assert response.headers[VERSION] == "registry/2.0"


def test_head_is_get_without_its_body(client: Client) -> None:
    head, get = (client.open("/v2/a/b/manifests/v1", method=m) for m in ("HEAD", "GET"))
    assert (head.status_code, head.data) == (200, b"")
    assert dict(head.headers) == dict(get.headers)
    missing = client.head(f"/v2/a/blobs/{SHA256}")
    assert (missing.status_code, missing.data) == (404, b"")
    app = RegistryApp()
    app.view("base", "HEAD")(lambda request: Response(status=204))
    assert Client(app).get("/v2/").status_code == 200
    assert Client(app).head("/v2/").status_code == 204


def test_base_has_a_view_that_can_be_replaced(client: Client) -> None:
    assert client.get("/v2/").get_json() == {}
    app = small_registry()
    app.view("base", "GET")(lambda request: fail(errors.Unauthorized(realm="https://a.example/")))
    response = Client(app).get("/v2/")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="https://a.example/"'
    assert code_of(response) == "UNAUTHORIZED"
    app = RegistryApp(RegistryMap(DOCKER_1_5))
    app.view("base")(lambda request: Response(request.method))
    for method in "GET", "POST":
        assert Client(app).open("/v2/", method=method).text == method


class Proxy:
    def forward(self, request: RegistryRequest, **values: str) -> Response:
        return forward(request, **values)


@pytest.mark.parametrize(
    ("dialect", "by"),
    [
        (OCI_1_1, "methods"),
        (DOCKER_1_5, "endpoint"),
        (OCI_1_1.subset(methods=["HEAD", "PUT"]), "None"),
    ],
)
def test_one_function_as_the_view_of_every_route(dialect: Dialect, by: str) -> None:
    app = RegistryApp(RegistryMap(dialect))
    proxy = Proxy()
    for route in dialect.routes:
        methods = {"methods": route.methods or (), "endpoint": (), "None": (None,)}[by]
        app.view(route.name, *methods)(proxy.forward)  # a bound method is another object each time
    for route in dialect.routes:
        path = re.sub("<repository:name>", "a/b", route.path)
        path = re.sub("<digest:[^>]*>", SHA256, path)
        path = re.sub("<[^>]*>", "x", path)
        for method in route.taken_methods or {"GET", "PUT", "PROPFIND", "OPTIONS"}:
            response = Client(app).open(path, method=method)
            name = "a/b" if "name" in route.path else None
            answer = "" if method == "HEAD" else f"{method} {route.endpoint} {name}"
            assert (response.status_code, response.text) == (200, answer)


def test_view_for_a_method_precedes_view_for_any_method() -> None:
    app = RegistryApp(RegistryMap(DOCKER_1_5))
    app.view("tags")(lambda request, name: Response("any"))
    app.view("tags", "PUT")(lambda request, name: Response("put"))
    for method, text in {"GET": "any", "PUT": "put", "POST": "any"}.items():
        assert Client(app).open("/v2/a/b/tags/list", method=method).text == text
    with pytest.raises(ValueError, match=r"^endpoint 'tags' already has a view for any method$"):
        app.view("tags")(forward)


@pytest.mark.parametrize(
    ("endpoint", "methods", "message"),
    [
        ("tag", ["GET"], "endpoint 'tag' must be one of the map's, such as 'tags'"),
        ("nothing", [], "endpoint 'nothing' must be one of the map's, such as 'base' or 'blob' or"),
        ("catalog", ["GET", "POST"], "endpoint 'catalog' must take the method 'POST'"),
        ("tags", [], "endpoint 'tags' already has a view for 'GET'"),
        ("tags", [None], "endpoint 'tags' already has a view for 'GET'"),
        ("tags", ["HEAD", "get"], "endpoint 'tags' already has a view for 'GET'"),
    ],
)
def test_view_that_could_never_be_called_is_refused(
    endpoint: str, methods: list[str | None], message: str
) -> None:
    app = small_registry()
    with pytest.raises(ValueError, match=f"^{message}"):
        app.view(endpoint, *methods)(forward)
    assert Client(app).get("/v2/_catalog").status_code == 404
    assert Client(app).head("/v2/a/tags/list").status_code == 500  # the view of GET


def test_view_may_be_registered_again_for_more_methods() -> None:
    app = RegistryApp()
    app.view("manifest", "GET", "PUT")(forward)
    app.view("manifest", "PUT", "DELETE")(forward)
    register = app.view("catalog", "GET")
    register(forward)
    with pytest.raises(ValueError, match="already has a view for 'GET'"):
        register(lambda request: Response())


@pytest.mark.parametrize("url_map", [DOCKER_1_5, "docker-1.5", RegistryMap, Map()])
def test_map_that_is_no_registry_map_is_refused(url_map: Any) -> None:
    with pytest.raises(TypeError, match=r"^url_map .* must be a RegistryMap"):
        RegistryApp(url_map)


# Paths and methods without a view.


@pytest.mark.parametrize(("mount", "ending"), [("", ""), ("/m", "/")])
def test_method_without_view_is_405_and_route_without_views_404(mount: str, ending: str) -> None:
    client = Client(DispatcherMiddleware(exceptions.NotFound(), {mount: small_registry()}))
    for path, method, allowed in (
        ("/v2/a/manifests/v1", "DELETE", "GET, HEAD, PUT"),
        ("/v2/a/manifests/v1", "PATCH", "GET, HEAD, PUT"),
        (f"/v2/a/blobs/{SHA256}", "POST", "DELETE, GET, HEAD"),
        ("/v2", "POST", "GET, HEAD"),
        ("/v2/a/blobs/uploads/", "PROPFIND", "POST"),
    ):
        response = client.open(f"{mount}{path}{ending}", method=method, follow_redirects=True)
        assert (response.status_code, code_of(response)) == (405, "UNSUPPORTED")
        assert response.headers["Allow"] == allowed
    for path in f"/v2/a/referrers/{SHA256}", "/v2/_catalog", "/v2/x", "/x":
        for method in "GET", "POST", "HEAD", "PROPFIND", "OPTIONS":
            response = client.open(f"{mount}{path}{ending}", method=method, follow_redirects=True)
            assert response.status_code == 404
            assert "Allow" not in response.headers
            assert method == "HEAD" or code_of(response) == "UNSUPPORTED"


def test_allow_lists_the_methods_with_views_of_every_rule_for_a_path() -> None:
    rules = [
        Rule("/v2/_catalog", endpoint="refresh", methods=["POST"]),
        Rule("/v2/_catalog", endpoint="mine", methods=["OPTIONS"]),
        Rule("/v2/_catalog", endpoint="unviewed", methods=["DELETE"]),
        Rule("/x", endpoint="a", methods=["GET", "OPTIONS"]),
        Rule("/x", endpoint="b", methods=["PUT"]),
        Rule("/x", endpoint="unviewed", methods=["DELETE"]),
        Rule("/old", endpoint="old", methods=["GET"], redirect_to="/new"),
        Rule("/any", endpoint="any"),
    ]
    app = RegistryApp(RegistryMap(rules=rules))
    for endpoint in "catalog", "refresh", "b", "mine":
        app.view(endpoint)(forward)
    for endpoint in "a", "any":
        app.view(endpoint, "GET")(forward)
    for method, path, allowed in (
        ("PUT", "/v2/_catalog", "GET, HEAD, OPTIONS, POST"),
        ("PUT", "/v2/_catalog/", "GET, HEAD"),
        ("POST", "/x", "GET, HEAD, PUT"),
        ("DELETE", "/x", "GET, HEAD, PUT"),
        ("POST", "/old", "GET, HEAD"),
        ("POST", "/any", "GET, HEAD"),
        ("OPTIONS", "/x", "GET, HEAD, OPTIONS, PUT"),
        ("OPTIONS", "/any", "GET, HEAD, OPTIONS"),
    ):
        response = Client(app).open(path, method=method)
        assert response.status_code == (200 if method == "OPTIONS" else 405)
        assert response.headers["Allow"] == allowed
    assert Client(app).options("/v2/_catalog").text == "OPTIONS mine None"


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        (Rule("/v2/ws", endpoint="mine", websocket=True, methods=["GET"]), "/v2/ws"),
        (Rule("/<path:page>", endpoint="mine", methods=["PUT"]), "/v2/nope"),
        (Rule("/<path:page>", endpoint="mine", methods=["PUT"]), "/v2/_catalog"),
        (Rule("/v2/<x>", endpoint="mine", websocket=True, methods=["OPTIONS"]), "/v2/_catalog"),
    ],
)
def test_rule_that_does_not_serve_a_path_allows_no_method_there(rule: Rule, path: str) -> None:
    rules = [rule.empty(), Rule("/v2/token", endpoint="token")]
    response = Client(small_registry(RegistryMap(rules=rules))).post(path)
    assert response.status_code == 404
    assert "Allow" not in response.headers


def test_allow_of_a_rule_for_any_method() -> None:
    app = small_registry(RegistryMap(DOCKER_1_5))
    app.view("tags", "PUT")(forward)
    for path, allowed in ("/v2/", "GET, HEAD"), ("/v2/a/b/tags/list", "GET, HEAD, PUT"):
        assert Client(app).post(path).headers["Allow"] == allowed
    app = RegistryApp(RegistryMap(DOCKER_1_5))
    app.view("tags", "PUT")(forward)
    assert Client(app).post("/v2/a/b/tags/list").headers["Allow"] == "PUT"


def test_options_lists_the_methods_with_views(client: Client) -> None:
    for path, allowed in {
        "/v2/": "GET, HEAD, OPTIONS",
        "/v2": "GET, HEAD, OPTIONS",
        "/v2/a/manifests/v1": "GET, HEAD, OPTIONS, PUT",
        "/v2/a/tags/list/": "GET, HEAD, OPTIONS",
        "/v2/a/blobs/uploads/": "OPTIONS, POST",
    }.items():
        response = client.options(path)
        assert (response.status_code, response.data) == (200, b"")
        assert response.headers["Allow"] == allowed
    for path, status in {"/v2/x": 404, "/x": 404, "/v2/A/tags/list": 400}.items():
        response = client.options(path)
        assert response.status_code == status
        assert "Allow" not in response.headers


def test_redirect_keeps_method_and_query(client: Client) -> None:
    response = client.post("/v2/a/blobs/uploads?x=1", data=b"body")
    assert response.status_code == 308
    assert response.headers["Location"] == "/v2/a/blobs/uploads/?x=1"
    assert response.headers[VERSION] == "registry/2.0"
    assert response.data == b""
    assert "Content-Type" not in response.headers
    followed = client.post("/v2/a/blobs/uploads?x=1", data=b"body", follow_redirects=True)
    assert followed.text == "bodyhttp://localhost/v2/a/blobs/uploads/?x=1"


# Errors.


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
def test_http_exception_of_a_view_becomes_json(error: type[exceptions.HTTPException]) -> None:
    response = Client(app_with_view(lambda: fail(error))).get("/v2/_catalog")
    assert response.status_code == error.code
    assert code_of(response) == CODES.get(response.status_code, "UNKNOWN")
    assert response.headers.getlist("Content-Type") == ["application/json"]


def test_exception_that_carries_a_response_is_that_response() -> None:
    app = app_with_view(lambda: abort(Response("mine", status=418)))
    response = Client(app).get("/v2/_catalog")
    assert (response.status_code, response.text) == (418, "mine")


def test_unexpected_exception_reaches_the_log_and_not_the_client(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        response = client.get("/v2/a/tags/list")
    assert (response.status_code, code_of(response)) == (500, "UNKNOWN")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    (record,) = caplog.records
    assert record.exc_info
    assert "a secret" in str(record.exc_info[1])
    assert record.getMessage() == "GET '/v2/a/tags/list'"


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "view",
    [
        lambda: None,
        lambda: "a string",
        lambda: fail(errors.RegistryError("x")),
        lambda: fail(exceptions.HTTPException("x")),
        lambda: fail(errors.BlobUnknown(detail=Unprintable())),
    ],
)
def test_any_other_failure_is_500(view: Any, caplog: pytest.LogCaptureFixture) -> None:
    response = Client(app_with_view(view)).get("/v2/_catalog")
    assert (response.status_code, code_of(response)) == (500, "UNKNOWN")


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


def test_response_for_several_errors() -> None:
    sent = [
        {"code": "DENIED", "message": "no", "detail": {"a": [1]}},
        {"code": "X", "message": "what"},
    ]
    read = responses.parse_errors(403, json.dumps({"errors": sent}), {"RateLimit-Limit": "100"})
    app = RegistryApp()
    app.view("catalog")(lambda request: error_response(read, request.environ))
    response = Client(app).get("/v2/_catalog")
    assert response.status_code == 403
    assert response.get_json() == {"errors": sent}
    assert response.headers.getlist("Content-Type") == ["application/json"]
    assert response.headers["RateLimit-Limit"] == "100"
    assert int(response.headers["Content-Length"]) == len(response.get_data())
    several = error_response([exceptions.Forbidden("not you"), errors.NameUnknown()])
    first, second = several.get_json()["errors"]
    assert first == {"code": "DENIED", "message": "not you"}
    assert second["code"] == "NAME_UNKNOWN"
    with pytest.raises(ValueError, match="must have at least one error"):
        error_response([])


# What a request knows.


def test_request_knows_its_rule() -> None:
    app = small_registry(RegistryMap(prefix="/p", strict_slashes=False))
    requests = requests_of(app)
    assert Client(app).get("/p/v2/a/b/manifests/v1/").text == "a/b v1"
    (request,) = requests
    assert (request.endpoint, request.routing_exception) == ("manifest", None)
    assert request.view_args == {"name": "a/b", "tag": "v1"}
    assert request.url_rule is not None
    assert request.url_rule.rule == "/p/v2/<repository:name>/manifests/<tag:tag>"


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        ("GET", "/v2/x", errors.RouteUnknown),
        ("GET", "/x", exceptions.NotFound),
        ("GET", "/v2/A/tags/list", errors.NameInvalid),
        ("OPTIONS", "/v2/", errors.Unsupported),
        ("GET", "/v2", RequestRedirect),
    ],
)
def test_request_without_a_rule_knows_why(method: str, path: str, error: type[Exception]) -> None:
    app = small_registry()
    requests = requests_of(app)
    Client(app).open(path, method=method)
    (request,) = requests
    assert (request.endpoint, request.view_args, request.url_rule) == (None, None, None)
    assert request.scopes == []
    assert type(request.routing_exception) is error


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("GET", "/v2/", ""),
        ("HEAD", "/v2/a/manifests/v1", "repository:a:pull"),
        ("post", "/v2/a/blobs/uploads/?from=b", "repository:a:pull,push repository:b:pull"),
        ("DELETE", "/v2/a/manifests/v1", "repository:a:delete"),  # which has no view
    ],
)
def test_request_knows_the_scopes_that_it_needs(method: str, path: str, scopes: str) -> None:
    app = small_registry()
    requests = requests_of(app)
    Client(app).open(path, method=method, environ_overrides={"REQUEST_METHOD": method})
    assert " ".join(map(str, requests[0].scopes)) == scopes


def test_middleware_finds_the_request_in_the_environ() -> None:
    app = small_registry()
    endpoints = []

    def middleware(environ: Any, start_response: Any) -> Any:
        answer = app(environ, start_response)
        endpoints.append(environ["werkzeug.request"].endpoint)
        return answer

    for path in "/v2/a/manifests/v1", "/v2/a/tags/list", "/v2/x":
        Client(middleware).get(path)
    assert endpoints == ["manifest", "tags", None]


# Where it is mounted.


@pytest.mark.parametrize(
    ("app", "mount", "path", "headers"),
    [
        (small_registry(), "", "", {}),
        (small_registry(RegistryMap(prefix="/p")), "/p", "/p", {}),
        (
            DispatcherMiddleware(exceptions.NotFound(), {"/registry": small_registry()}),
            *("/registry", "/registry", {}),
        ),
        (
            ProxyFix(small_registry(), x_prefix=1),
            *("/public", "", {"X-Forwarded-Prefix": "/public"}),
        ),
    ],
    ids=["root", "prefix", "dispatcher", "proxy"],
)
def test_mounts(app: Any, mount: str, path: str, headers: dict[str, str]) -> None:
    client = Client(app)
    assert client.get(f"{path}/v2/a/b/manifests/v1", headers=headers).text == "a/b v1"
    put = client.put(f"{path}/v2/a/manifests/v1", headers=headers)
    assert put.headers["Location"] == f"{mount}/v2/a/manifests/{SHA256}"
    slashed = client.get(f"{path}/v2/a/manifests/v1/", headers=headers)
    assert slashed.headers["Location"] == f"{mount}/v2/a/manifests/v1"
    assert code_of(client.get(f"{path}/v2/A/tags/list", headers=headers)) == "NAME_INVALID"


def test_scopes_of_a_malformed_name_are_name_invalid() -> None:
    """A rule of a user's own may match it; it must not add a scope to the challenge."""
    rule = Rule("/v2/any/<path:name>", endpoint="mine", methods=["GET"])
    app = RegistryApp(RegistryMap(rules=[rule]))

    @app.view("mine", "GET")
    def mine(request: RegistryRequest, name: str) -> Response:
        raise errors.Unauthorized(scope=request.scopes)

    response = Client(app).get("/v2/any/a:pull repository:secret/x")
    assert (response.status_code, code_of(response)) == (400, "NAME_INVALID")
