"""`RegistryApp`: views, errors as JSON, and wherever it is mounted."""

import json
import logging
from typing import Any

import pytest
from flask import Flask, abort
from hypothesis import given
from hypothesis import strategies as st
from werkzeug import exceptions
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import Map, Rule
from werkzeug.test import Client, TestResponse
from werkzeug.wrappers import Response

from registry_routes import (
    DOCKER_1_5,
    RegistryApp,
    RegistryMap,
    RegistryRequest,
    error_response,
    errors,
    url_map,
)

from .nasty import SHA256

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


def code_of(response: TestResponse) -> str:
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
def test_a_method_without_a_view_is_a_405_and_a_route_without_any_a_404(
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
    405: "UNSUPPORTED",
    413: "SIZE_INVALID",
    416: "RANGE_INVALID",
    429: "TOOMANYREQUESTS",
    503: "UNAVAILABLE",
}


@pytest.mark.parametrize(
    "error", [*exceptions.default_exceptions.values(), exceptions.ClientDisconnected]
)
def test_whatever_http_exception_a_view_raises(error: type[exceptions.HTTPException]) -> None:
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
def test_a_body_of_no_length_is_not_taken_for_an_empty_one(client: Client, length: str) -> None:
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
def test_whatever_goes_wrong_leaves_as_a_500(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = RegistryApp()
    app.view("catalog", "GET")(lambda request: wrong())
    response = Client(app).get("/v2/_catalog")
    assert (response.status_code, code_of(response)) == (500, "UNKNOWN")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError


def fail(error: Exception) -> Response:
    raise error


def test_a_path_of_two_endpoints_and_one_that_redirects() -> None:
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
def test_what_is_not_a_registry_map_is_refused_when_the_app_is_made(url_map: Any) -> None:
    with pytest.raises(TypeError, match=r"^url_map .* must be a RegistryMap"):
        RegistryApp(url_map)


def test_a_refusal_has_the_methods_that_have_a_view_wherever_they_are_from() -> None:
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
def test_a_rule_that_does_not_answer_for_a_path_does_not_allow_a_method(
    rule: Rule, path: str
) -> None:
    rules = [rule.empty(), Rule("/v2/token", endpoint="token")]
    response = Client(small_registry(RegistryMap(rules=rules))).post(path)
    assert response.status_code == 404
    assert "Allow" not in response.headers


def test_what_takes_any_method_allows_get_if_it_has_a_view_for_it() -> None:
    app = small_registry(RegistryMap(DOCKER_1_5))
    app.view("tags", "PUT")(lambda request, name: Response())
    for path, allowed in ("/v2/", "GET, HEAD"), ("/v2/a/b/tags/list", "GET, HEAD, PUT"):
        assert Client(app).post(path).headers["Allow"] == allowed
    app = RegistryApp(RegistryMap(DOCKER_1_5))
    app.view("tags", "PUT")(lambda request, name: Response())
    assert Client(app).post("/v2/a/b/tags/list").headers["Allow"] == "PUT"


def test_a_view_for_head_alone_leaves_the_one_for_get() -> None:
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


@pytest.mark.parametrize(
    ("endpoint", "methods", "message"),
    [
        ("nothing", ["GET"], "endpoint 'nothing' must be one of the map's"),
        ("catalog", ["GET", "POST"], "endpoint 'catalog' must take the method 'POST'"),
        ("tags", [], "a view of 'tags' must have a method"),
        ("tags", ["get"], "endpoint 'tags' must have one view for 'GET'"),
        ("tags", ["HEAD", "GET"], "endpoint 'tags' must have one view for 'GET'"),
    ],
)
def test_a_view_that_could_never_be_called_is_refused(
    endpoint: str, methods: list[str], message: str
) -> None:
    app = small_registry()
    with pytest.raises(ValueError, match=f"^{message}$"):
        app.view(endpoint, *methods)(lambda request: Response())
    assert Client(app).get("/v2/_catalog").status_code == 404


def test_a_decorator_registers_one_view() -> None:
    register = RegistryApp().view("catalog", "GET")
    register(lambda request: Response())
    with pytest.raises(ValueError, match="must have one view for 'GET'"):
        register(lambda request: Response())


def test_other_maps() -> None:
    routes = RegistryMap(
        DOCKER_1_5, prefix="/p", rules=[Rule("/healthz", endpoint="health", methods=["GET"])]
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
def test_no_request_line_is_a_500(path: str, method: str, host: str) -> None:
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
    read = errors.parse_errors(403, json.dumps({"errors": sent}), {"RateLimit-Limit": "100"})
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


def test_several_errors_may_be_anyones() -> None:
    response = error_response([exceptions.Forbidden("not you"), errors.NameUnknown()])
    assert response.status_code == 403
    first, second = response.get_json()["errors"]
    assert first == {"code": "DENIED", "message": "not you"}
    assert second["code"] == "NAME_UNKNOWN"
    one = error_response([errors.NameUnknown()])
    assert one.get_data() == error_response(errors.NameUnknown()).get_data()
    with pytest.raises(ValueError, match="must have an error"):
        error_response([])
