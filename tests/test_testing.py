"""`registry_routes.testing`: a registry for test suites, over HTTP and without."""

import gzip
import json
import os
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import oras.client
import pytest
from dxf import DXF
from flask import Flask
from werkzeug.exceptions import Gone
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes import (
    DOCKER_1_5,
    OCI_1_1,
    RegistryApp,
    RegistryMap,
    RegistryRequest,
    RouteName,
    errors,
    resolve_location,
    responses,
)
from registry_routes.challenges import parse_challenges, parse_token
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_MANIFEST
from registry_routes.paging import parse_next_link
from registry_routes.testing import Fault, ServedRegistry, serve

from . import oci_layout
from .servers import files_of, podman_or_buildah, skopeo

ABSENT = f"sha256:{64 * '0'}"


class Login(httpx.Auth):
    """Does what the registry's challenge asks for, with one token for each set of scopes."""

    requires_response_body = True

    def __init__(self, user: str = "", password: str = "", oauth: bool = False) -> None:
        self.user, self.password, self.oauth = user, password, oauth

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        response = yield request
        if response.status_code != 401:
            return
        [challenge] = parse_challenges(response.headers)
        basic = httpx.BasicAuth(self.user, self.password)
        if challenge.scheme == "basic":
            yield from basic.auth_flow(request)
            return
        if self.oauth:
            url, fields = challenge.token_form(
                username=self.user, password=self.password, registry=request.url
            )
            asked = httpx.Request("POST", url, data=fields)
        else:
            asked = httpx.Request("GET", challenge.token_url(registry=request.url))
            if self.user:
                [asked] = basic.auth_flow(asked)
        answer = yield asked
        if answer.status_code == 200:
            token = parse_token(answer.content).token
            request.headers["Authorization"] = f"Bearer {token}"
            yield request


def client_of(registry: ServedRegistry, over: str = "http", **options: Any) -> httpx.Client:
    """A client over HTTP, or one that calls the application without a socket."""
    transport = httpx.WSGITransport(registry.app) if over == "wsgi" else None
    options = {"follow_redirects": True, "verify": False, **options}  # TLS takes time to set up
    return httpx.Client(base_url=registry.url, transport=transport, **options)


def push_blob(client: httpx.Client, name: str, content: bytes, chunk: int | None = None) -> str:
    """Push a blob as in the specification: in chunks, or by a POST, which may begin an upload."""
    digest = digest_of(content)
    query = {} if chunk else {"digest": digest}
    response = client.post(
        f"/v2/{name}/blobs/uploads/", params=query, content=b"" if chunk else content
    )
    if response.status_code == 202:
        for start in range(0, len(content), chunk) if chunk else ():
            location = resolve_location(str(response.url), response.headers["Location"])
            response = client.patch(location, content=content[start : start + (chunk or 0)])
            assert response.status_code == 202, response.text
        location = resolve_location(str(response.url), response.headers["Location"], digest=digest)
        response = client.put(location, content=b"" if chunk else content)
    assert response.status_code == 201, response.text
    return digest


def push_image(client: httpx.Client, name: str, tag: str, content: bytes) -> str:
    layer = {"mediaType": "x/y", "digest": push_blob(client, name, content), "size": len(content)}
    manifest = json.dumps({"schemaVersion": 2, "layers": [layer]}).encode()
    response = client.put(
        f"/v2/{name}/manifests/{tag}", content=manifest, headers={"Content-Type": IMAGE_MANIFEST}
    )
    assert response.status_code == 201, response.text
    return digest_of(manifest)


# The server.


def test_ten_registries_are_started_and_stopped_in_two_seconds() -> None:
    began = time.perf_counter()
    for _ in range(10):
        with serve() as registry, urlopen(f"{registry.url}/v2/") as response:
            assert response.read() == b"{}"
    assert time.perf_counter() - began < 2


def test_two_registries_at_once_share_nothing() -> None:
    with serve() as one, serve() as other:
        assert one.url != other.url
        one.fail("base", "GET", 503)
        one.add_image("a:v1")
        assert httpx.get(f"{other.url}/v2/").status_code == 200
        assert httpx.get(f"{other.url}/v2/a/manifests/v1").status_code == 404
        assert httpx.get(f"{one.url}/v2/").status_code == 503
        assert [len(registry.requests) for registry in (one, other)] == [1, 2]
    with serve() as later:
        assert list(later.storage.repositories()) == []


def test_the_registry_and_its_threads_are_gone_afterwards() -> None:
    before = set(threading.enumerate())
    with serve() as registry:
        assert httpx.get(f"{registry.url}/v2/").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{registry.url}/v2/")
    wait_until(lambda: set(threading.enumerate()) <= before)
    with pytest.raises(ZeroDivisionError), serve() as registry:
        1 / 0  # noqa: B018
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{registry.url}/v2/")


def wait_until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about within five seconds")


def test_no_client_keeps_the_registry_from_stopping() -> None:
    """Neither one that sends nothing, nor one that sends half a request, nor one that waits."""
    before = set(threading.enumerate())
    with ExitStack() as clients:
        with serve() as registry:
            registry.fail("base", "GET", timedelta(minutes=10))
            host, _, port = registry.host.partition(":")
            upload = httpx.post(f"{registry.url}/v2/a/blobs/uploads/").headers["Location"]
            for said in (
                b"",
                b"GET /v2/ HT",
                b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
                f"PATCH {upload} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab".encode(),
            ):
                one = clients.enter_context(socket.create_connection((host, int(port)), 10))
                one.sendall(said)
            wait_until(lambda: len(registry.requests) == 3)
            began = time.perf_counter()
        assert time.perf_counter() - began < 1
        wait_until(lambda: set(threading.enumerate()) <= before)


def test_a_port_that_is_taken_is_an_error() -> None:
    with serve() as registry:
        port = int(registry.host.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), serve(port=port):
            pass
    with serve(port=port) as again:
        assert again.host == registry.host


# Bodies.


def raw(registry: ServedRegistry, request: bytes) -> bytes:
    """The response to the bytes of a request, after which the client sends nothing more."""
    host, _, port = registry.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while block := connection.recv(65536):
            answer += block
    return answer


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_000])
def test_a_chunked_body_is_read(size: int) -> None:
    content = os.urandom(size)

    def blocks() -> Iterator[bytes]:
        for start in range(0, size, 100_000):
            yield content[start : start + 100_000]

    with serve() as registry:
        response = httpx.post(
            f"{registry.url}/v2/a/blobs/uploads/?digest={digest_of(content)}", content=blocks()
        )
        assert response.status_code == 201
        assert "Content-Length" not in registry.requests[0].headers
        assert registry.blob("a", digest_of(content)) == content


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 100\r\n\r\nabc",
        b"Content-Length: -5\r\n\r\nabc",
        CHUNKED,
        CHUNKED + b"3",
        CHUNKED + b"3\r\nab",
        CHUNKED + b"3\r\nabc",
        CHUNKED + b"3\r\nabc\r\n",
        CHUNKED + b"3\r\nabc\r\n5\r\nde",
        CHUNKED + b"fffffff\r\nabc",
        CHUNKED + b"ffffffffffffffff\r\nabc",
        CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    ],
)
def test_a_body_cut_short_leaves_no_trace(rest: bytes) -> None:
    content = b"01234"
    with serve() as registry:
        location = httpx.post(f"{registry.url}/v2/a/blobs/uploads/").headers["Location"]
        httpx.patch(registry.url + location, content=content)
        for method, target in (
            ("PATCH", location),
            ("PUT", f"{location}?digest={digest_of(content)}"),
            ("POST", f"/v2/b/blobs/uploads/?digest={digest_of(b'abc')}"),
            ("PUT", "/v2/c/manifests/v1"),
        ):
            began = time.perf_counter()
            answer = raw(registry, f"{method} {target} HTTP/1.1\r\nHost: x\r\n".encode() + rest)
            assert answer.startswith(b"HTTP/1.1 400") or not answer
            assert time.perf_counter() - began < 5
        assert registry.storage.upload_size("a", location.rpartition("/")[2]) == len(content)
        assert list(registry.storage.repositories()) == []
        with pytest.raises(LookupError):
            registry.blob("b", digest_of(b"abc"))


def test_an_early_answer_to_a_large_body_arrives() -> None:
    body = bytes(30_000_000)
    with serve() as registry, client_of(registry, timeout=30) as client:
        location = client.post("/v2/a/blobs/uploads/").headers["Location"]
        registry.fail("blob-upload", "POST", errors.TooManyRequests(), times=None)
        for method, path, status in (
            ("PATCH", location, 416),
            ("PATCH", "/v2/a/blobs/uploads/none", 404),
            ("PUT", "/v2/a/manifests/v1", 413),
            ("PUT", "/v2/_catalog", 405),
            ("POST", f"/v2/a/blobs/uploads/?digest={digest_of(body)}", 429),
        ):
            headers = {"Content-Range": f"5-{len(body) + 4}"}
            assert client.request(method, path, content=body, headers=headers).status_code == status


def test_the_registry_survives_requests_that_are_not_http() -> None:
    with serve() as registry:
        for request in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\r\n" * 9:
            raw(registry, request)
        assert httpx.get(f"{registry.url}/v2/").status_code == 200


# Recording.


def test_requests_are_recorded() -> None:
    with serve() as registry, client_of(registry, headers={"User-Agent": "mine"}) as client:
        digest = registry.add_image("library/nginx:v1", layers=[b"x"])
        assert registry.requests == []  # seeding is not a request
        client.get("/v2/library/nginx/manifests/v1")
        client.head(f"/v2/library/nginx/manifests/{digest}")
        client.get("/v2/library/nginx/tags/list?n=1&last=a%26b")
        client.get("/v2/no/such/tags/list/")
        client.put("/v2/a/tags/list")
        client.get("/v2/A/tags/list")
        client.get("/elsewhere%20")
        found = [(one.method, one.endpoint, one.values, one.status) for one in registry.requests]
        assert found == [
            ("GET", "manifest", {"name": "library/nginx", "tag": "v1"}, 200),
            ("HEAD", "manifest", {"name": "library/nginx", "digest": digest}, 200),
            ("GET", "tags", {"name": "library/nginx"}, 200),
            ("GET", None, {}, 308),
            ("GET", "tags", {"name": "no/such"}, 404),
            ("PUT", "tags", {"name": "a"}, 405),
            ("GET", None, {}, 400),
            ("GET", None, {}, 404),
        ]
        assert [type(one.endpoint) for one in registry.requests[:2]] == [str, str]
        assert registry.requests[2].args.to_dict() == {"n": "1", "last": "a&b"}
        assert registry.requests[3].path == "/v2/no/such/tags/list/"
        assert registry.requests[-1].path == "/elsewhere "
        assert registry.requests[0].headers["user-agent"] == "mine"
        registry.requests.clear()
        client.get("/v2/")
        assert [one.endpoint for one in registry.requests] == ["base"]


def test_a_request_is_recorded_before_it_is_answered() -> None:
    with serve() as registry:
        registry.fail("base", "GET", timedelta(minutes=10))
        waiting = threading.Thread(target=Client(registry.app).get, args=["/v2/"])
        waiting.start()
        wait_until(lambda: registry.requests)
        assert registry.requests[0].status is None
    waiting.join(timeout=10)
    assert registry.requests[0].status == 200


def test_requests_for_what_the_registry_does_not_have_are_recorded_too() -> None:
    dialect = OCI_1_1.subset("base", "manifest", "blob", "tags", methods=["GET"])
    with serve(dialect=dialect) as registry, client_of(registry) as client:
        digest = registry.add_image("a:v1")
        registry.fail("catalog", "GET", 503)
        assert client.get("/v2/a/manifests/v1").status_code == 200
        assert client.get("/v2/_catalog").status_code == 503
        assert client.get("/v2/_catalog").status_code == 404
        assert client.get(f"/v2/a/referrers/{digest}").status_code == 404
        assert client.put("/v2/a/manifests/v2").status_code == 405
        assert client.post("/v2/a/blobs/uploads/").status_code == 404
        endpoints = [one.endpoint for one in registry.requests]
        assert endpoints == [
            *("manifest", "catalog", "catalog", "referrers", "manifest", "blob-upload"),
        ]


# Seeding and looking.


def test_an_image_is_added_and_looked_at() -> None:
    layers = [b"some files", gzip.compress(b"others", mtime=0)]
    with serve() as registry, client_of(registry) as client:
        digest = registry.add_image("library/nginx:v1", layers)
        assert registry.add_image("library/nginx:v1", layers) == digest
        response = client.get("/v2/library/nginx/manifests/v1")
        assert response.headers["Docker-Content-Digest"] == digest == digest_of(response.content)
        assert response.headers["Content-Type"] == IMAGE_MANIFEST
        manifest = registry.manifest("library/nginx:v1")
        assert manifest == response.json() == registry.manifest(f"library/nginx@{digest}")
        for layer, descriptor in zip(layers, manifest["layers"], strict=True):
            content = client.get(f"/v2/library/nginx/blobs/{descriptor['digest']}").content
            assert content == layer == registry.blob("library/nginx", descriptor["digest"])
        types = [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]]
        assert types == ["tar", "tar+gzip"]
        config = json.loads(registry.blob("library/nginx", manifest["config"]["digest"]))
        assert config["rootfs"]["diff_ids"] == [digest_of(b"some files"), digest_of(b"others")]
        assert list(registry.storage.repositories()) == ["library/nginx"]


@pytest.mark.parametrize(
    ("reference", "name", "tag"),
    [
        ("nginx", "nginx", "latest"),
        ("nginx:v1", "nginx", "v1"),
        ("library/nginx", "library/nginx", "latest"),
        ("localhost/a.b/c:5000", "localhost/a.b/c", "5000"),
        ("{host}/a/b:v1", "a/b", "v1"),
    ],
)
def test_a_reference_is_read_as_one_of_this_registry(reference: str, name: str, tag: str) -> None:
    with serve() as registry:
        reference = reference.format(host=registry.host)
        digest = registry.add_image(reference)
        assert registry.storage.tag(name, tag) == digest
        assert registry.manifest(reference)["layers"] == []


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "repository name '' must not be empty"),
        ("A", "repository name 'A' must be lowercase"),
        ("a:", "tag '' must not be empty"),
        ("a:b:c", "tag 'b:c' must contain only"),
        ("a//b", "repository name 'a//b' must"),
        (f"a@{ABSENT}", f"image 'a@{ABSENT}' must have a tag, not a digest"),
        (f"a:v1@{ABSENT}", f"image 'a:v1@{ABSENT}' must have a tag, not a digest"),
    ],
)
def test_a_malformed_reference_is_an_error(reference: str, message: str) -> None:
    with serve() as registry:
        with pytest.raises(ValueError, match=message):
            registry.add_image(reference)
        assert list(registry.storage.repositories()) == []


def test_a_missing_manifest_or_blob_is_a_lookup_error() -> None:
    with serve() as registry:
        registry.add_image("a:v1")
        for look in (
            lambda: registry.manifest("a:v2"),
            lambda: registry.manifest("b:v1"),
            lambda: registry.manifest(f"a@{ABSENT}"),
            lambda: registry.blob("a", ABSENT),
        ):
            with pytest.raises(LookupError):
                look()


# Your own applications.


def an_app(prefix: str = "") -> RegistryApp:
    app = RegistryApp(RegistryMap(prefix=prefix))

    @app.view("tags", "GET")
    def tags(request: RegistryRequest, name: str) -> Response:
        return Response(json.dumps({"name": name, "tags": []}), mimetype="application/json")

    return app


def test_your_own_application_is_served() -> None:
    with serve(an_app()) as registry, client_of(registry) as client:
        assert client.get("/v2/a/tags/list").json() == {"name": "a", "tags": []}
        registry.fail("tags", "GET", errors.Denied())
        assert client.get("/v2/a/tags/list").status_code == 403
        assert client.get("/v2/_catalog").status_code == 404
        found = [(one.endpoint, one.status) for one in registry.requests]
        assert found == [("tags", 200), ("tags", 403), ("catalog", 404)]
        for look in (
            lambda: registry.storage,
            lambda: registry.add_image("a:v1"),
            lambda: registry.blob("a", ABSENT),
        ):
            with pytest.raises(ValueError, match="must be the one in memory"):
                look()


class FlaskOnTheRoutes(Flask):
    url_map_class = RegistryMap  # type: ignore[assignment]


class PrefixedFlask(Flask):
    url_map_class = staticmethod(lambda **options: RegistryMap(prefix="/r", **options))  # type: ignore[assignment]


def flask_app(kind: type[Flask]) -> Flask:
    app = kind("app")
    app.endpoint("tags")(lambda name: {"name": name, "tags": []})
    return app


@pytest.mark.parametrize(
    ("app", "prefix"),
    [
        (an_app("/registry"), "/registry"),
        (flask_app(FlaskOnTheRoutes), ""),
        (flask_app(PrefixedFlask), "/r"),
        (an_app().__call__, ""),
    ],
    ids=["prefix", "flask", "flask-prefix", "callable"],
)
def test_the_routes_of_an_application_are_those_of_its_map(app: Any, prefix: str) -> None:
    with serve(app, auth="bearer") as registry, client_of(registry, auth=Login()) as client:
        assert client.get(f"{prefix}/v2/a/tags/list").json()["name"] == "a"
        assert [one.endpoint for one in registry.requests] == ["tags", "token", "tags"]


def test_another_dialect_has_its_own_routes() -> None:
    app = RegistryApp(RegistryMap(dialect=DOCKER_1_5))
    with serve(app) as registry, client_of(registry) as client:
        client.get("/v2/a/b/tags/list")
        client.get("/v2/a/tags/list")
        assert [one.endpoint for one in registry.requests] == ["tags", None]
    with serve(app.__call__, dialect=DOCKER_1_5) as registry, client_of(registry) as client:
        client.get("/v2/a/tags/list")
        assert registry.requests[0].endpoint is None


def test_an_application_that_raises_is_a_500_and_the_next_request_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/v2/":
            raise RuntimeError("mine")
        return Response("{}")(environ, start_response)

    with serve(app) as registry, client_of(registry) as client:
        assert client.get("/v2/").status_code == 500
        assert client.get("/v2/_catalog").status_code == 200
        assert [one.status for one in registry.requests] == [None, 200]
        wait_until(lambda: "RuntimeError: mine" in caplog.text)


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": {"a": "b"}}, "users must have a way to log in"),
        ({"auth": "basic"}, "auth 'basic' must have users"),
        ({"auth": "digest", "users": {"a": "b"}}, "auth 'digest' must be"),
        ({"auth": "bearer", "token_field": "jwt"}, "token_field 'jwt' must be"),
        ({"location": "elsewhere"}, "location 'elsewhere' must be"),
        ({"app": an_app(), "page_size": 3}, "must be for the registry in memory"),
        ({"app": an_app(), "min_chunk": 3}, "must be for the registry in memory"),
        ({"app": an_app(), "max_chunk": 3}, "must be for the registry in memory"),
        ({"port": 65536}, "port 65536 must be 0 to 65535"),
        ({"page_size": 0}, "page_size 0 must be 1 or more"),
        ({"max_chunk": 0}, "max_chunk 0 must be 1 or more"),
        ({"dialect": DOCKER_1_5}, "must be OCI_1_1 or a subset"),
    ],
)
def test_an_invalid_option_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), serve(**options):
        pass


# Faults.


@pytest.fixture(params=["http", "wsgi"])
def over(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.mark.parametrize(
    ("what", "status", "header"),
    [
        (errors.TooManyRequests(retry_after=7), 429, ("Retry-After", "7")),
        (
            errors.Unauthorized(realm="http://x/", scope="a"),
            401,
            ("WWW-Authenticate", 'Bearer realm="http://x/",scope="a"'),
        ),
        (Gone("deleted"), 410, ("Content-Type", "application/json")),
        (502, 502, ("Content-Type", "text/html; charset=utf-8")),
        (599, 599, ("Content-Type", "text/html; charset=utf-8")),
    ],
)
def test_an_error_or_a_status_becomes_the_response(
    over: str, what: Fault, status: int, header: tuple[str, str]
) -> None:
    with serve() as registry, client_of(registry, over) as client:
        registry.fail("tags", "GET", what, times=2)
        for wanted in status, status, 404:
            response = client.get("/v2/a/tags/list")
            assert response.status_code == wanted
            [error] = responses.parse_errors(wanted, response.content, response.headers)
            assert error.code == wanted
            assert (response.headers.get(header[0]) == header[1]) or wanted == 404
        assert [one.status for one in registry.requests] == [status, status, 404]


def test_the_body_of_a_response_is_cut_short() -> None:
    content = os.urandom(300_001)
    with serve() as registry, client_of(registry) as client:
        registry.add_image("a:v1", layers=[content])
        registry.fail("blob", "GET", "body cut short")
        received = b""
        with client.stream("GET", f"/v2/a/blobs/{digest_of(content)}") as response:
            assert response.headers["Content-Length"] == str(len(content))
            blocks = response.iter_bytes()
            with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012
                while True:
                    received += next(blocks)
        assert content.startswith(received)
        assert 0 < len(received) < len(content)
        rest = {"Range": f"bytes={len(received)}-"}
        response = client.get(f"/v2/a/blobs/{digest_of(content)}", headers=rest)
        assert received + response.content == content
        found = [(one.endpoint, one.status) for one in registry.requests]
        assert found == [("blob", 200), ("blob", 206)]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_a_response_without_a_body_to_cut_short_closes_the_connection(method: str) -> None:
    with serve() as registry, client_of(registry) as client:
        digest = registry.add_image("a:v1", layers=[b""])
        path = f"/v2/a/blobs/{digest_of(b'')}" if method == "GET" else f"/v2/a/manifests/{digest}"
        registry.fail("blob" if method == "GET" else "manifest", method, "body cut short")
        with pytest.raises(httpx.RemoteProtocolError):
            client.request(method, path)


def test_the_body_of_a_response_is_cut_short_without_a_socket() -> None:
    with serve() as registry:
        registry.add_image("a:v1", layers=[b"0123456789"])
        registry.fail("blob", "GET", "body cut short")
        response = Client(registry.app).get(f"/v2/a/blobs/{digest_of(b'0123456789')}")
        assert (response.data, response.content_length) == (b"01234", 10)


def test_a_body_that_is_cut_short_had_a_length_even_if_it_was_streamed() -> None:
    with serve(Response(iter([b"01234", b"56789"]))) as registry:
        registry.fail("base", "GET", "body cut short")
        response = Client(registry.app).get("/v2/")
        assert (response.data, response.content_length) == (b"01234", 10)


@pytest.mark.parametrize("size", [0, 10_000_000])
def test_a_closed_connection_has_no_effect(size: int) -> None:
    content = bytes(size)
    with serve() as registry, client_of(registry) as client:
        registry.fail("blob-upload", "POST", "connection closed", times=2)
        url = f"/v2/a/blobs/uploads/?digest={digest_of(content)}"
        for _ in range(2):
            with pytest.raises(httpx.TransportError):
                client.post(url, content=content)
        with pytest.raises(LookupError):
            registry.blob("a", digest_of(content))
        assert client.post(url, content=content).status_code == 201
        assert [one.status for one in registry.requests] == [None, None, 201]


def test_a_closed_connection_without_a_socket_is_raised() -> None:
    with serve() as registry:
        registry.fail("base", "GET", "connection closed")
        with pytest.raises(ConnectionAbortedError):
            Client(registry.app).get("/v2/")
        assert Client(registry.app).get("/v2/").status_code == 200


def test_a_response_is_delayed(over: str) -> None:
    with serve() as registry, client_of(registry, over) as client:
        registry.fail("base", "GET", timedelta(seconds=0.3))
        for least in 0.3, 0:
            began = time.perf_counter()
            assert client.get("/v2/").status_code == 200
            assert least <= time.perf_counter() - began < least + 0.25


def test_faults_follow_one_another_and_do_not_affect_other_requests() -> None:
    with serve() as registry:
        client = Client(registry.app)
        registry.fail("tags", "get", 500)
        registry.fail("tags", "GET", 502, times=2)
        registry.fail("tags", "GET", 503, times=None)
        assert client.head("/v2/a/tags/list").status_code == 404
        assert client.get("/v2/_catalog").status_code == 200
        statuses = [client.get("/v2/a/tags/list").status_code for _ in range(6)]
        assert statuses == [500, 502, 502, 503, 503, 503]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blobs", "GET", 500), "endpoint 'blobs' must be one of base, blob"),
        (("blob", "GET", 500, 0), "times 0 must be 1 or more"),
        (("blob", "GET", 200), "status 200 must be that of an error"),
        (("blob", "GET", "cut"), "fault 'cut' must be"),
        (("blob", "GET", 1.5), "fault 1.5 must be"),
        (("blob", "GET", errors.Denied), "must be an error, a status"),
    ],
)
def test_an_invalid_fault_is_an_error(arguments: Any, message: str) -> None:
    with serve() as registry, pytest.raises((ValueError, TypeError), match=message):
        registry.fail(*arguments)


@pytest.mark.parametrize("endpoint", [*RouteName, "token", "storage"])
def test_every_endpoint_may_fail(endpoint: str) -> None:
    with serve() as registry:
        registry.fail(endpoint, "GET", 500)


# Login.

USERS = {"alice": "secret", "bob": "p:w é"}


def test_a_basic_login(over: str) -> None:
    with serve(users=USERS, auth="basic") as registry:
        with client_of(registry, over) as client:
            response = client.get("/v2/")
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == 'Basic realm="registry"'
            assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"
            for who in ("alice", "p:w é"), ("alice", ""), ("", ""), ("carol", "secret"):
                assert client.get("/v2/a/tags/list", auth=who).status_code == 401
            bearer = {"Authorization": "Bearer x"}
            assert client.get("/v2/", headers=bearer).status_code == 401
        for user, password in USERS.items():
            with client_of(registry, over, auth=(user, password)) as client:
                assert client.get("/v2/").status_code == 200
                push_image(client, user, "v1", b"x")


@pytest.mark.parametrize("oauth", [False, True])
@pytest.mark.parametrize("token_field", ["token", "access_token"])
def test_a_bearer_login(over: str, oauth: bool, token_field: Any) -> None:
    with serve(users=USERS, auth="bearer", token_field=token_field) as registry:
        with client_of(registry, over, auth=Login("alice", "secret", oauth)) as client:
            push_image(client, "a", "v1", b"x")
            assert client.get("/v2/a/manifests/v1").status_code == 200
            assert client.get("/v2/_catalog").json() == {"repositories": ["a"]}
            assert client.delete("/v2/a/manifests/v1").status_code == 202
        asked = {(one.endpoint, one.method) for one in registry.requests if one.endpoint == "token"}
        assert asked == {("token", "POST" if oauth else "GET")}
        assert {one.status for one in registry.requests} == {401, 200, 201, 202}


@pytest.mark.parametrize("oauth", [False, True])
@pytest.mark.parametrize("who", [("alice", "wrong"), ("carol", "secret"), ("", "")])
def test_a_wrong_password_gets_no_token(who: tuple[str, str], oauth: bool) -> None:
    with (
        serve(users=USERS, auth="bearer") as registry,
        client_of(registry, auth=Login(*who, oauth)) as client,
    ):
        assert client.get("/v2/").status_code == 401
        assert [one.status for one in registry.requests] == [401, 401]


def token_of(client: httpx.Client, response: httpx.Response, **options: Any) -> dict[str, str]:
    """The header with the token that the challenge of a response asks for."""
    [challenge] = parse_challenges(response.headers)
    answer = client.get(
        challenge.token_url(registry=client.base_url, **options), auth=("alice", "secret")
    )
    return {"Authorization": f"Bearer {parse_token(answer.content).token}"}


def test_the_challenge_names_the_scopes_and_a_token_allows_no_more() -> None:
    with serve(users=USERS, auth="bearer") as registry, client_of(registry) as client:
        registry.add_image("library/nginx:v1", layers=[b"x"])
        refused = client.get("/v2/library/nginx/manifests/v1")
        [challenge] = parse_challenges(refused.headers)
        assert challenge.realm == f"{registry.url}/token"
        assert challenge.scope == "repository:library/nginx:pull"
        assert challenge.error == ""
        pull = token_of(client, refused)
        assert client.get("/v2/library/nginx/manifests/v1", headers=pull).status_code == 200
        assert client.get("/v2/", headers=pull).status_code == 200
        for method, path, scope in (
            ("DELETE", "/v2/library/nginx/manifests/v1", "repository:library/nginx:delete"),
            ("GET", "/v2/other/tags/list", "repository:other:pull"),
            ("GET", "/v2/_catalog", "registry:catalog:*"),
            (
                "POST",
                f"/v2/mine/blobs/uploads/?mount={digest_of(b'x')}&from=library/nginx",
                "repository:mine:pull,push repository:library/nginx:pull",
            ),
        ):
            response = client.request(method, path, headers=pull)
            [challenge] = parse_challenges(response.headers)
            assert (response.status_code, challenge.error) == (401, "insufficient_scope")
            assert challenge.scope == scope
            token = token_of(client, response)
            assert client.request(method, path, headers=token).status_code < 500
            assert registry.requests[-1].status != 401
        response = client.get("/v2/", headers={"Authorization": "Bearer made-up"})
        assert parse_challenges(response.headers)[0].error == "invalid_token"
        response = client.get("/v2/", auth=("alice", "secret"))  # only the token server takes it
        assert response.status_code == 401


def test_without_users_anyone_may_pull() -> None:
    with serve(auth="bearer") as registry, client_of(registry, auth=Login()) as client:
        registry.add_image("a:v1")
        assert client.get("/v2/").status_code == 200
        assert client.get("/v2/a/manifests/v1").status_code == 200
        response = client.put("/v2/a/manifests/v2", content=b"{}")
        assert response.status_code == 401
        assert parse_challenges(response.headers)[0].error == "insufficient_scope"
        assert client.get("/v2/_catalog").status_code == 401
    with serve(auth="bearer") as registry, client_of(registry, auth=Login("a", "b")) as client:
        assert client.get("/v2/").status_code == 401


@pytest.mark.parametrize("asked", ["GET", "POST"])
def test_a_refresh_token_gets_another_token(asked: str) -> None:
    login = {"service": "registry", "scope": "repository:a:pull,push", "client_id": "test"}
    with serve(users=USERS, auth="bearer") as registry, client_of(registry) as client:
        if asked == "GET":
            query = {**login, "offline_token": "true"}
            answer = client.get("/token", params=query, auth=("alice", "secret"))
        else:
            form = {"grant_type": "password", "username": "alice", "password": "secret"}
            answer = client.post("/token", data={**login, **form, "access_type": "offline"})
        token = parse_token(answer.content)
        assert token.refresh_token
        form = {**login, "grant_type": "refresh_token", "refresh_token": token.refresh_token}
        again = parse_token(client.post("/token", data=form).content)
        assert again.token != token.token
        assert again.refresh_token is None
        bearer = {"Authorization": f"Bearer {again.token}"}
        assert client.post("/v2/a/blobs/uploads/", headers=bearer).status_code == 202
        form["refresh_token"] = "made-up"
        assert client.post("/token", data=form).status_code == 401


@pytest.mark.parametrize(
    ("method", "sent", "status"),
    [
        ("GET", {}, 400),
        ("GET", {"service": "another"}, 400),
        ("GET", {"service": "registry", "scope": "pull"}, 400),
        ("POST", {"service": "registry", "grant_type": "magic"}, 400),
        ("POST", {"service": "registry"}, 400),
        ("PUT", {"service": "registry"}, 405),
    ],
)
def test_the_token_server_refuses_malformed_requests(method: str, sent: Any, status: int) -> None:
    with serve(users=USERS, auth="bearer") as registry, client_of(registry) as client:
        place = {"data" if method == "POST" else "params": sent}
        response = client.request(method, "/token", auth=("alice", "secret"), **place)
        assert response.status_code == status
        assert responses.parse_errors(status, response.content)[0].description


def test_the_token_server_may_fail_too() -> None:
    with (
        serve(users=USERS, auth="bearer") as registry,
        client_of(registry, auth=Login("alice", "secret")) as client,
    ):
        registry.fail("token", "GET", 503)
        assert client.get("/v2/").status_code == 503
        assert client.get("/v2/").status_code == 200


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_no_path_gets_past_the_login(auth: Any) -> None:
    app = RegistryApp(RegistryMap(strict_slashes=False))
    app.view("tags", "GET")(lambda request, name: Response("secret"))
    with serve(app, users=USERS, auth=auth) as registry:
        client = Client(registry.app)
        for path in "/v2/a/tags/list", "/v2/a/tags/list/", "//v2/a/tags/list", "/v2/A/x", "/":
            assert client.get(path).status_code == 401, path


# How other registries behave.


@pytest.mark.parametrize("chunk", [None, 4])
def test_an_absolute_location_is_a_whole_url(over: str, chunk: int | None) -> None:
    with serve(location="absolute") as registry, client_of(registry, over) as client:
        location = client.post("/v2/a/blobs/uploads/").headers["Location"]
        assert location.startswith(f"{registry.url}/v2/a/blobs/uploads/")
        digest = push_blob(client, "a", b"0123456789", chunk)
        response = client.put("/v2/a/manifests/v1", content=b"{}")
        assert response.headers["Location"].startswith(f"{registry.url}/v2/a/manifests/sha256:")
        assert registry.blob("a", digest) == b"0123456789"


@pytest.mark.parametrize("form", ["relative", None])
def test_a_relative_location_is_a_path(over: str, form: Any) -> None:
    with serve(location=form) as registry, client_of(registry, over) as client:
        location = client.post("/v2/a/blobs/uploads/").headers["Location"]
        assert location.startswith("/v2/a/blobs/uploads/")


def test_the_absolute_locations_of_an_application_are_made_relative() -> None:
    elsewhere = "https://elsewhere.example/v2/a/blobs/uploads/1"
    with serve(location="absolute") as inner:
        cases: list[tuple[Any, Any, str]] = [
            (inner.app, None, "{url}/v2/a/blobs/uploads/"),
            (inner.app, "relative", "/v2/a/blobs/uploads/"),
            (inner.app, "opaque", "/uploads/a/"),
            (Response(status=202, headers={"Location": elsewhere}), "relative", elsewhere),
            (Response(status=202, headers={"Location": "/up/1"}), "opaque", "/up/1"),
        ]
        for app, location, wanted in cases:
            with serve(app, location=location) as registry, client_of(registry) as client:
                found = client.post("/v2/a/blobs/uploads/").headers["Location"]
                assert found.startswith(wanted.format(url=registry.url))


@pytest.mark.parametrize("auth", [None, "bearer"])
def test_an_opaque_location_must_be_kept(over: str, auth: Any) -> None:
    users = USERS if auth else None
    login = Login("alice", "secret") if auth else None
    with (
        serve(location="opaque", users=users, auth=auth) as registry,
        client_of(registry, over, auth=login) as client,
    ):
        response = client.post("/v2/a/b/blobs/uploads/")
        path, _, query = response.headers["Location"].partition("?")
        assert path.startswith("/uploads/a/b/")
        assert query
        location = f"{path}?{query}"
        upload_id = path.rpartition("/")[2]
        for wrong in (
            path,
            f"{path}?",
            f"{path}?{query}x",
            location.replace("%", "%25"),
            location.replace("%2B", "+"),
            f"/v2/a/b/blobs/uploads/{upload_id}",
            f"/v2/a/b/blobs/uploads/{upload_id}?{query}".replace("a/b", "a/c"),
        ):
            assert client.patch(wrong, content=b"x").status_code == 404
        response = client.patch(location, content=b"0123")
        assert response.status_code == 202
        assert response.headers["Range"] == "0-3"
        assert client.get(location).status_code == 204
        end = resolve_location(
            f"{registry.url}/v2/a/b/blobs/uploads/",
            response.headers["Location"],
            digest=digest_of(b"0123"),
        )
        response = client.put(end)
        assert response.status_code == 201
        assert response.headers["Location"] == f"/v2/a/b/blobs/{digest_of(b'0123')}"
        last = registry.requests[-1]
        assert (last.endpoint, last.path) == ("blob-upload-chunk", path)
        assert last.values == {"name": "a/b", "uuid": upload_id}
        if auth:
            with client_of(registry, over) as nobody:
                assert nobody.patch(location).status_code == 401


def test_blobs_are_redirected_to_another_origin(over: str) -> None:
    content = os.urandom(1000)
    with (
        serve(redirect_blobs=True, users=USERS, auth="bearer") as registry,
        client_of(registry, over, auth=Login("alice", "secret")) as client,
    ):
        registry.add_image("a/b:v1", layers=[content])
        path = f"/v2/a/b/blobs/{digest_of(content)}"
        for method in "GET", "HEAD":
            response = client.request(method, path)
            assert response.status_code == 200
            assert response.headers["Content-Length"] == "1000"
            assert response.content == (content if method == "GET" else b"")
            [redirect] = response.history[-1:]
            assert redirect.status_code == 307
            assert response.url.host != redirect.url.host
            assert response.url.port == redirect.url.port
        ranged = client.get(path, headers={"Range": "bytes=1-5"})
        assert (ranged.status_code, ranged.content) == (206, content[1:6])
        assert registry.requests[-1].endpoint == "storage"
        assert registry.requests[-1].values == {"name": "a/b", "digest": digest_of(content)}
        assert "Authorization" not in registry.requests[-1].headers
        assert client.get(f"/v2/a/b/blobs/{ABSENT}").status_code == 404
        assert client.delete(path).status_code == 202
        assert client.get(path).status_code == 404
        assert client.get(response.url).status_code == 404


def test_the_other_origin_refuses_the_credentials_for_the_registry() -> None:
    with serve(redirect_blobs=True) as registry, client_of(registry) as client:
        registry.add_image("a:v1", layers=[b"x"])
        path = f"/v2/a/blobs/{digest_of(b'x')}"
        location = client.get(path, follow_redirects=False).headers["Location"]
        assert client.get(location).content == b"x"
        assert client.get(location, headers={"Authorization": "Bearer x"}).status_code == 400
        registry.fail("storage", "GET", "body cut short")
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(path)
        assert client.get(path).content == b"x"


def test_without_options_there_are_no_paths_beside_the_api() -> None:
    with serve() as registry, client_of(registry) as client:
        registry.add_image("a:v1", layers=[b"x"])
        upload = client.post("/v2/a/blobs/uploads/").headers["Location"].rpartition("/")[2]
        for path in "/token", f"/storage/a/{digest_of(b'x')}", f"/uploads/a/{upload}":
            assert client.get(path).status_code == 404


def test_without_single_post_a_post_only_begins_an_upload(over: str) -> None:
    content = b"0123456789"
    with serve(single_post=False) as registry, client_of(registry, over) as client:
        response = client.post(f"/v2/a/blobs/uploads/?digest={digest_of(content)}", content=content)
        assert response.status_code == 202
        with pytest.raises(LookupError):
            registry.blob("a", digest_of(content))
        assert push_blob(client, "a", content) == digest_of(content)
        found = [(one.endpoint, one.status) for one in registry.requests[1:]]
        assert found == [("blob-upload", 202), ("blob-upload-chunk", 201)]
        assert registry.requests[0].args["digest"] == digest_of(content)
        mounted = client.post(f"/v2/b/blobs/uploads/?mount={digest_of(content)}&from=a")
        assert mounted.status_code == 201
        assert push_blob(client, "c", bytes(5_000_000))  # an early answer to a large body


def test_pages_and_chunks_have_the_given_limits(over: str) -> None:
    with (
        serve(page_size=2, min_chunk=4, max_chunk=6) as registry,
        client_of(registry, over) as client,
    ):
        for tag in "abcde":
            registry.add_image(f"x:{tag}")
        tags, pages, url = [], 0, f"{registry.url}/v2/x/tags/list?n=100"
        while url:
            response = client.get(url)
            tags += response.json()["tags"]
            pages += 1
            url = parse_next_link(url, response.headers.get("Link")) or ""
        assert (tags, pages) == (list("abcde"), 3)
        assert client.post("/v2/x/blobs/uploads/").headers["OCI-Chunk-Min-Length"] == "4"
        push_blob(client, "x", b"0123456789", chunk=5)
        location = client.post("/v2/x/blobs/uploads/").headers["Location"]
        assert client.patch(location, content=b"0123456").status_code == 413


@pytest.mark.parametrize("auth", [None, "basic", "bearer"])
@pytest.mark.parametrize("location", [None, "absolute", "relative", "opaque"])
@pytest.mark.parametrize("redirect_blobs", [False, True])
@pytest.mark.parametrize("single_post", [False, True])
def test_all_options_work_together(
    over: str, auth: Any, location: Any, redirect_blobs: bool, single_post: bool
) -> None:
    content = os.urandom(50)
    options: dict[str, Any] = {
        "location": location,
        "redirect_blobs": redirect_blobs,
        "single_post": single_post,
        "auth": auth,
        "users": USERS if auth else None,
    }
    login = Login("bob", USERS["bob"]) if auth else None
    with serve(**options) as registry, client_of(registry, over, auth=login) as client:
        digest = push_image(client, "a/b", "v1", content)
        assert push_blob(client, "a/b", content[:20], chunk=7) == digest_of(content[:20])
        assert client.get(f"/v2/a/b/blobs/{digest_of(content)}").content == content
        assert registry.blob("a/b", digest_of(content[:20])) == content[:20]
        assert registry.storage.tag("a/b", "v1") == digest
        assert client.get(f"/v2/a/b/manifests/{digest}").status_code == 200
        assert client.delete(f"/v2/a/b/manifests/{digest}").status_code == 202
        assert client.get("/v2/_catalog").json() == {"repositories": []}


# Threads.


def test_many_threads_use_the_registry_at_once() -> None:
    problems: list[BaseException] = []
    with serve(users=USERS, auth="bearer", location="opaque") as registry:
        registry.fail("tags", "GET", 503, times=10)

        def work(number: int) -> None:
            try:
                with client_of(registry, auth=Login("alice", "secret"), timeout=60) as client:
                    for round_number in range(4):
                        content = os.urandom(1000)
                        push_image(client, f"of/{number}", f"v{round_number}", content)
                        push_image(client, "shared", "latest", content)
                        path = f"/v2/shared/blobs/{digest_of(content)}"
                        assert client.get(path).content == content
                        client.get("/v2/shared/tags/list", auth=None)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems, problems[0]
        listed = [one.status for one in registry.requests if one.endpoint == "tags"]
        assert sorted(listed, key=str) == [401] * 22 + [503] * 10
        assert len(list(registry.storage.repositories())) == 9
        assert all(one.status is not None for one in registry.requests)


# Real clients.

WAYS: list[dict[str, Any]] = [
    {},
    {"location": "absolute", "page_size": 1},
    {"location": "opaque", "single_post": False},
    {"redirect_blobs": True},
    {"auth": "basic", "users": USERS},
    {"auth": "bearer", "users": USERS},
    {
        "auth": "bearer",
        "users": USERS,
        "token_field": "access_token",
        "redirect_blobs": True,
        "location": "opaque",
        "single_post": False,
    },
]


def way_id(way: dict[str, Any]) -> str:
    return "-".join(str(value) for name, value in way.items() if name != "users").lower() or "plain"


@pytest.fixture(params=WAYS, ids=way_id)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


@pytest.fixture
def served(way: dict[str, Any]) -> Iterator[ServedRegistry]:
    with serve(**way) as registry:
        yield registry
        assert not [one for one in registry.requests if one.status and one.status >= 500]


@pytest.mark.slow
def test_skopeo_pushes_and_pulls(served: ServedRegistry, tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [5_000_000, 100_000, 1, 0], ["amd64", "arm64"])
    remote = f"docker://{served.host}/a/b__c"
    skopeo(
        "copy --all --dest-tls-verify=false --dest-creds alice:secret",
        f"oci:{image}:v1",
        f"{remote}:v1",
    )
    skopeo(
        "copy --all --src-tls-verify=false --src-creds alice:secret",
        f"{remote}:v1",
        f"oci:{back}:v1",
    )
    assert files_of(back) == files_of(image)
    options = "--tls-verify=false --creds alice:secret"
    assert json.loads(skopeo(f"list-tags {options}", remote))["Tags"] == ["v1"]
    skopeo(f"delete {options}", f"{remote}:v1")
    assert list(served.storage.tags("a/b__c")) == []


@pytest.mark.slow
def test_skopeo_pulls_an_image_that_was_added(served: ServedRegistry, tmp_path: Path) -> None:
    digest = served.add_image("a:v1", layers=[b"x", gzip.compress(b"y")])
    skopeo(
        "copy --src-tls-verify=false --src-creds alice:secret",
        f"docker://{served.host}/a:v1",
        f"dir:{tmp_path}",  # unchanged: for other formats, skopeo compresses the layers
    )
    assert digest_of((tmp_path / "manifest.json").read_bytes()) == digest


@pytest.mark.slow
@pytest.mark.parametrize("program", ["buildah", "podman"])
def test_buildah_and_podman_push_and_pull(
    served: ServedRegistry, tmp_path: Path, program: str
) -> None:
    image = tmp_path / "image"
    oci_layout.write(image, [50_000, 10], ["amd64"], seed=2)
    remote = f"docker://{served.host}/{program}/a:v1"
    with podman_or_buildah(program) as run:
        pulled = run("pull", f"oci:{image}:v1")
        run("push", "--tls-verify=false", "--creds", "alice:secret", pulled, remote)
        run("pull", "--tls-verify=false", "--creds", "alice:secret", remote)
    layers = served.manifest(f"{program}/a:v1")["layers"]
    assert len(layers) == 2
    assert any("Transfer-Encoding" in one.headers for one in served.requests)


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if way.get("auth") != "bearer"], ids=way_id)
def test_oras_pushes_and_pulls(
    served: ServedRegistry,
    way: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("artifact.txt").write_text("hello\n")
    backend = way.get("auth", "token")
    client = oras.client.OrasClient(hostname=served.host, insecure=True, auth_backend=backend)
    if "auth" in way:
        client.auth.set_basic_auth("alice", "secret")
    target = f"{served.host}/oras/artifact:v1"
    client.push(target=target, files=["artifact.txt"], disable_path_validation=True)
    assert client.get_tags(target) == ["v1"]
    (pulled,) = client.pull(target=target, outdir=str(tmp_path / "out"))
    assert Path(pulled).read_text() == "hello\n"


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if way.get("auth") == "bearer"], ids=way_id)
def test_oras_pulls_with_a_token(served: ServedRegistry) -> None:
    """It only pulls, because oras keeps its first token, which does not allow a push."""
    digest = served.add_image("a:v1", layers=[b"x"])
    client = oras.client.OrasClient(hostname=served.host, insecure=True)
    client.auth.set_basic_auth("alice", "secret")
    assert client.get_tags(f"{served.host}/a:v1") == ["v1"]
    assert client.get_manifest(f"{served.host}/a@{digest}") == served.manifest("a:v1")
    blob = client.get_blob(f"{served.host}/a", digest_of(b"x"))
    assert blob.content == b"x"


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if "auth" not in way], ids=way_id)
def test_python_dxf_pushes_and_pulls(served: ServedRegistry, tmp_path: Path) -> None:
    """There is no login, because python-dxf only logs in over TLS."""
    content = os.urandom(3_000_000)
    blob = tmp_path / "blob"
    blob.write_bytes(content)
    with DXF(served.host, "dxf/blobs", insecure=True) as dxf:
        digest = dxf.push_blob(str(blob))
        dxf.set_alias("v1", digest)
        assert dxf.list_aliases() == ["v1"]
        blocks = dxf.pull_blob(digest)
        assert not isinstance(blocks, tuple)
        assert b"".join(blocks) == content
    assert served.blob("dxf/blobs", digest) == content
