"""`RegistryApp`: which view answers, errors as JSON, and mounts."""

import json
import logging
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug import exceptions
from werkzeug.middleware.dispatcher import DispatcherMiddleware
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
    RouteName,
    URLBuilder,
    error_response,
    errors,
    match_url,
    responses,
    url_map,
)

from .applications import VERSION, app_with_view, code_of, fail, requests_of, small_registry
from .nasty import SHA256
from .wsgi import environ_for


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
    for response in put, client.get("/v2/"):
        assert response.headers[VERSION] == "registry/2.0"
    assert response.get_json() == {}  # the base has a view of its own


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
    app = RegistryApp(RegistryMap(dialect=dialect))
    proxy = Proxy()
    for route in dialect.routes:
        methods = {"methods": route.methods or (), "endpoint": (), "None": (None,)}[by]
        app.view(route.name, *methods)(proxy.forward)  # a bound method is another object each time
    for route in dialect.routes:
        path = re.sub("<repository:name>", "a/b", route.path)
        path = re.sub("<digest:[^>]*>", SHA256, path)
        path = re.sub("<[^>]*>", "x", path)
        taken = dialect.methods(route)
        for method in {"GET", "PUT", "PROPFIND", "OPTIONS"} if taken is None else taken:
            response = Client(app).open(path, method=method)
            name = "a/b" if "name" in route.path else None
            answer = "" if method == "HEAD" else f"{method} {route.endpoint} {name}"
            assert (response.status_code, response.text) == (200, answer)


def test_view_for_a_method_precedes_view_for_any_method() -> None:
    app = RegistryApp(RegistryMap(dialect=DOCKER_1_5))
    app.view("tags")(lambda request, name: Response("any"))
    app.view("tags", "PUT")(forward)
    app.view("tags", "PUT", "PATCH")(forward)  # again, for more methods
    for method, text in {"GET": "any", "PATCH": "PATCH tags a/b", "POST": "any"}.items():
        assert Client(app).open("/v2/a/b/tags/list", method=method).text == text
    with pytest.raises(ValueError, match=r"^endpoint 'tags' already has a view for any method$"):
        app.view("tags")(forward)


@pytest.mark.parametrize(
    ("endpoint", "methods", "message"),
    [
        ("tag", ["GET"], "endpoint 'tag' is not in the map: choose 'tags' "),
        ("catalog", ["GET", "POST"], "endpoint 'catalog' takes GET, HEAD, not POST$"),
        ("tags", [], "endpoint 'tags' already has a view for 'GET'"),
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


def test_application_has_a_registry_map_of_its_own() -> None:
    for other in DOCKER_1_5, RegistryMap, Map():
        with pytest.raises(
            TypeError, match=r"^url_map .* is not a RegistryMap, such as RegistryMap\(\)$"
        ):
            RegistryApp(other)  # type: ignore[arg-type]
    assert RegistryApp().url_map is not RegistryApp().url_map
    assert RegistryApp(url_map).url_map is url_map


def test_repr_names_the_dialect_and_the_endpoints_with_views() -> None:
    app = RegistryApp(RegistryMap(dialect=DOCKER_1_5))
    assert repr(app) == "<RegistryApp of 'docker-1.5', with views: none>"
    for endpoint in RouteName.TAGS, "blob":
        app.view(endpoint)(forward)
    assert repr(app) == "<RegistryApp of 'docker-1.5', with views: 'blob', 'tags'>"


# Paths and methods without a view.


def test_method_without_view_is_405_and_route_without_views_404(client: Client) -> None:
    for path, method, allowed in (
        ("/v2/a/manifests/v1", "DELETE", "GET, HEAD, PUT"),
        ("/v2/a/manifests/v1/", "PATCH", "GET, HEAD, PUT"),
        (f"/v2/a/blobs/{SHA256}", "POST", "DELETE, GET, HEAD"),
        ("/v2", "POST", "GET, HEAD"),
        ("/v2/a/blobs/uploads/", "PROPFIND", "POST"),
    ):
        response = client.open(path, method=method)
        assert (response.status_code, code_of(response)) == (405, "UNSUPPORTED")
        assert response.headers["Allow"] == allowed
    for path in f"/v2/a/referrers/{SHA256}", "/v2/_catalog/", "/v2/x", "/x":
        for method in "GET", "POST", "HEAD", "PROPFIND", "OPTIONS":
            response = client.open(path, method=method, follow_redirects=True)
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
        (Rule("/<path:page>", endpoint="mine", methods=["PUT"]), "/v2/_catalog"),
    ],
)
def test_rule_that_does_not_serve_a_path_allows_no_method_there(rule: Rule, path: str) -> None:
    response = Client(small_registry(RegistryMap(rules=[rule]))).post(path)
    assert (response.status_code, "Allow" in response.headers) == (404, False)


def test_options_lists_the_methods_with_views(client: Client) -> None:
    for path, allowed in {
        "/v2": "GET, HEAD, OPTIONS",
        "/v2/a/manifests/v1": "GET, HEAD, OPTIONS, PUT",
        "/v2/a/blobs/uploads/": "OPTIONS, POST",
    }.items():
        response = client.options(path)
        assert (response.status_code, response.data) == (200, b"")
        assert response.headers["Allow"] == allowed
    malformed = client.options("/v2/A/tags/list")
    assert (malformed.status_code, "Allow" in malformed.headers) == (400, False)


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
        lambda: fail(exceptions.HTTPException("x")),
        lambda: fail(errors.BlobUnknown(detail=Unprintable())),
    ],
)
def test_any_other_failure_is_500(view: Any) -> None:
    response = Client(app_with_view(view)).get("/v2/_catalog")
    assert (response.status_code, code_of(response)) == (500, "UNKNOWN")


def start(app: RegistryApp, environ: dict[str, Any]) -> tuple[int, bytes]:
    """The status and the body of a response to an environ that no client would send."""
    started: list[Any] = []
    body = b"".join(app(environ, lambda *args: started.append(args)))  # type: ignore[arg-type]
    return int(started[0][0][:3]), body


@given(
    st.text(max_size=20)
    | st.lists(st.sampled_from(["v2", "a", "..", "", "tags", "list", "\n"])).map("/".join),
    st.sampled_from(["GET", "HEAD", "POST", "get", "é", "TRACE", ""]),
    st.sampled_from(["h", "", "a..b", "é", "x" * 300, "[", "h:x"]) | st.text(max_size=5),
    st.binary(max_size=9).map(lambda query: query.decode("latin-1")),
)
def test_no_request_line_or_host_causes_a_500(
    path: str, method: str, host: str, query: str
) -> None:
    environ = environ_for("", method, HTTP_HOST=host, QUERY_STRING=query)
    environ["PATH_INFO"] = f"/{path}".encode(errors="replace").decode("latin-1")
    app = RegistryApp(url_map)
    app.view("tags", "GET")(
        lambda request, name: Response(
            f"{request.args} {request.scopes} {request.url} {request.full_path}"
        )
    )
    status, body = start(app, environ)
    assert status < 500
    if status >= 400 and method.upper() != "HEAD":
        assert json.loads(body)["errors"]


# Hosts and queries.

MALFORMED_HOSTS = [
    *("", "h:abc", "h/", "u@h", "h h", "h,i", "[::1", "h\0", "h\r\nX: y", "é", "h:99999", "h?x"),
    *(" h", "h:-1", "h\\", "h#", "h%41", "[::g]", ":80", "h\n", "h:", "[", "[]", "::1", "[:::]x"),
    f"h:{'9' * 5000}",
]


@pytest.mark.parametrize("host", MALFORMED_HOSTS)
def test_malformed_host_is_400(host: str) -> None:
    app = app_with_view(Response)
    called: list[Any] = []
    app.before_request(called.append)
    answered = requests_of(app)
    status, body = start(app, environ_for("/v2/_catalog", HTTP_HOST=host))
    assert (status, len(called), len(answered)) == (400, 0, 1)
    assert json.loads(body)["errors"]
    environ = environ_for("/", HTTP_HOST=host, SERVER_NAME="")
    with pytest.raises(exceptions.SecurityError):
        URLBuilder.from_environ(environ)
    assert URLBuilder.from_environ(environ, relative=True).base() == "/v2/"


@pytest.mark.parametrize(
    ("trusted", "host", "status"),
    [
        (["r.example"], "R.Example:5000", 200),
        (["R.example:443"], "r.example", 200),
        (["r.example"], "s.r.example", 400),
        ([".r.example"], "s.r.example", 200),
        ([".r.example"], "r.example", 200),
        ([".r.example"], "evilr.example", 400),
        (["my_registry"], "my_registry:5000", 200),
        (["[::1]"], "[::2]", 400),
        (["bücher.example"], "xn--bcher-kva.example", 200),
        ("r.example", "r.example", 200),
        ([], "any.example", 200),
    ],
)
def test_trusted_hosts(
    trusted: Any, host: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RegistryRequest, "trusted_hosts", trusted)
    app = app_with_view(Response)
    for _ in range(2):
        assert start(app, environ_for("/v2/_catalog", HTTP_HOST=host))[0] == status
    if "_" not in host:  # Werkzeug knows no such names of servers
        environ = environ_for("/v2/_catalog", SERVER_NAME=host.removesuffix(":5000"))
        del environ["HTTP_HOST"]
        assert start(app, environ)[0] == status


@given(st.lists(st.sampled_from([*{*range(0x21, 0x100)} - {*b"#\\\x7f"}])).map(bytes))
@example(b"a=\xff&\xe9")
@example(b"a=%ff&b=\xc3\xa9&from=b")
def test_query_is_read_as_in_match_url(query: bytes) -> None:
    environ = environ_for("/v2/a/blobs/uploads/", "POST", QUERY_STRING=query.decode("latin-1"))
    request = RegistryRequest(environ)
    text = query.decode(errors="replace")
    assert request.full_path == f"/v2/a/blobs/uploads/?{text}"
    matched = match_url(request.full_path, "POST").query
    assert list(request.args.items(multi=True)) == list(matched.items(multi=True))


def test_mount_at_the_root_of_the_api_is_explained() -> None:
    for routes, mount, better in (
        (RegistryMap(), "/v2", "/"),
        (RegistryMap(), "/registry/v2", "/registry"),
        (RegistryMap(prefix="/r"), "/r/v2", "/"),
    ):
        client = Client(
            DispatcherMiddleware(exceptions.NotFound(), {mount: small_registry(routes)})
        )
        response = client.get(f"{mount}/a/tags/list")
        assert (response.status_code, code_of(response)) == (404, "UNSUPPORTED")
        message = response.get_json()["errors"][0]["message"]
        assert f"mount the registry at {better!r} instead of {mount!r}" in message
    for mount, path in ("/xv2", "/a/tags/list"), ("/v2", "/v2/x"), ("", "/a/tags/list"):
        app = DispatcherMiddleware(exceptions.NotFound(), {mount: small_registry()})
        assert "mount" not in Client(app).get(mount + path).text


def test_response_for_several_errors() -> None:
    sent = [{"code": "DENIED", "message": "no", "detail": [1]}, {"code": "X", "message": "what"}]
    read = responses.parse_errors(403, json.dumps({"errors": sent}), {"RateLimit-Limit": "100"})
    response = error_response(read)
    assert response.status_code == 403
    assert response.get_json() == {"errors": sent}
    assert response.headers.getlist("Content-Type") == ["application/json"]
    assert response.headers["RateLimit-Limit"] == "100"
    assert int(response.headers["Content-Length"]) == len(response.get_data())
    several = error_response([exceptions.Forbidden("not you"), errors.NameUnknown()])
    first, second = several.get_json()["errors"]
    assert first == {"code": "DENIED", "message": "not you"}
    assert second["code"] == "NAME_UNKNOWN"
    with pytest.raises(ValueError, match="the sequence of errors is empty"):
        error_response([])


# Attributes of a request.


def test_request_knows_its_rule() -> None:
    app = small_registry(RegistryMap(prefix="/p", strict_slashes=False))
    requests = requests_of(app)
    assert Client(app).get("/p/v2/a/b/manifests/v1/").text == "a/b v1"
    (request,) = requests
    assert request.environ["werkzeug.request"] is request
    assert (request.endpoint, request.routing_exception) == ("manifest", None)
    assert request.view_args == {"name": "a/b", "tag": "v1"}
    assert request.url_rule is not None
    assert request.url_rule.rule == "/p/v2/<repository:name>/manifests/<tag:tag>"


def test_request_without_a_rule_knows_why() -> None:
    app = small_registry()
    requests = requests_of(app)
    for method, path, error in (
        ("GET", "/x", exceptions.NotFound),
        ("OPTIONS", "/v2/", errors.Unsupported),
        ("GET", "/v2", RequestRedirect),
    ):
        Client(app).open(path, method=method)
        request = requests[-1]
        assert (request.endpoint, request.view_args, request.url_rule) == (None, None, None)
        assert request.scopes == []
        assert type(request.routing_exception) is error


def test_request_knows_the_scopes_that_it_needs() -> None:
    app = small_registry()
    requests = requests_of(app)
    for method, path, scopes in (
        ("post", "/v2/a/blobs/uploads/?from=b&mount=x", "repository:a:pull,push repository:b:pull"),
        ("DELETE", "/v2/a/manifests/v1", "repository:a:delete"),  # which has no view
    ):
        Client(app).open(path, environ_overrides={"REQUEST_METHOD": method})
        assert " ".join(map(str, requests[-1].scopes)) == scopes


# Where it is mounted.


def test_locations_and_redirects_begin_with_the_mount_and_the_prefix() -> None:
    app = small_registry(RegistryMap(prefix="/p"))
    client = Client(DispatcherMiddleware(exceptions.NotFound(), {"/m": app}))
    assert client.get("/m/p/v2/a/b/manifests/v1").text == "a/b v1"
    put = client.put("/m/p/v2/a/manifests/v1")
    assert put.headers["Location"] == f"/m/p/v2/a/manifests/{SHA256}"
    slashed = client.get("/m/p/v2/a/manifests/v1/")
    assert slashed.headers["Location"] == "/m/p/v2/a/manifests/v1"
    assert code_of(client.get("/m/p/v2/A/tags/list")) == "NAME_INVALID"


def test_scopes_of_a_malformed_name_are_name_invalid() -> None:
    """A rule of a user's own may match it; it must not add a scope to the challenge."""
    rule = Rule("/v2/any/<path:name>", endpoint="mine", methods=["GET"])
    app = RegistryApp(RegistryMap(rules=[rule]))

    @app.view("mine", "GET")
    def mine(request: RegistryRequest, name: str) -> Response:
        raise errors.Unauthorized(scope=request.scopes)

    response = Client(app).get("/v2/any/a:pull repository:secret/x")
    assert (response.status_code, code_of(response)) == (400, "NAME_INVALID")
