"""The layers of `registry_routes.testing`: faults, and how other registries behave."""

import os
from datetime import timedelta
from itertools import product
from typing import Any

import httpx
import pytest
from werkzeug.exceptions import Gone, HTTPException
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes import OCI_1_1, errors, resolve_location, responses
from registry_routes.digests import digest_of
from registry_routes.headers import chunk_min_length
from registry_routes.testing import Fault

from .served import ABSENT, USERS, Login, client_of, push_blob, push_image, serve, served

# Faults.


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
        (599, 599, ("Content-Type", "text/html; charset=utf-8")),
    ],
)
def test_error_or_status_becomes_the_response(
    transport: str, what: Fault, status: int, header: tuple[str, str]
) -> None:
    with served(transport=transport) as (registry, client):
        registry.fail("tags", "GET", what, times=2)
        for wanted in status, status, 404:
            response = client.get("/v2/a/tags/list")
            assert response.status_code == wanted
            [error] = responses.parse_errors(wanted, response.content, response.headers)
            assert error.code == wanted
            assert (response.headers.get(header[0]) == header[1]) or wanted == 404
        assert [sent.status for sent in registry.requests] == [status, status, 404]


def test_body_is_cut_short() -> None:
    content = os.urandom(300_001)
    with served() as (registry, client):
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
        assert [sent.status for sent in registry.requests] == [200, 206]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_no_body_to_cut_short_closes_the_connection(method: str) -> None:
    with served() as (registry, client):
        digest = registry.add_image("a:v1", layers=[b""])
        endpoint = "blob" if method == "GET" else "manifest"
        path = f"/v2/a/{endpoint}s/{digest_of(b'') if method == 'GET' else digest}"
        registry.fail(endpoint, method, "body cut short")
        with pytest.raises(httpx.RemoteProtocolError):
            client.request(method, path)


def test_body_of_a_challenge_is_cut_short() -> None:
    with serve(users=USERS, auth="basic") as registry:
        whole = Client(registry.app).get("/v2/")
        registry.fail("base", "GET", "body cut short")
        part = Client(registry.app).get("/v2/")
        assert part.status_code == 401
        assert part.headers["WWW-Authenticate"] == whole.headers["WWW-Authenticate"]
        assert part.data == whole.data[: len(whole.data) // 2]


def test_streamed_body_that_is_cut_short_has_its_length() -> None:
    with serve(Response(iter([b"01234", b"56789"]))) as registry:
        registry.fail("base", "GET", "body cut short")
        response = Client(registry.app).get("/v2/")
        assert (response.data, response.content_length) == (b"01234", 10)


@pytest.mark.parametrize("size", [0, 10_000_000])
def test_closed_connection_has_no_effect(size: int) -> None:
    content = bytes(size)
    with served() as (registry, client):
        registry.fail("blob-upload", "POST", "connection closed", times=2)
        url = f"/v2/a/blobs/uploads/?digest={digest_of(content)}"
        for _ in range(2):
            with pytest.raises(httpx.TransportError):
                client.post(url, content=content)
        with pytest.raises(LookupError):
            registry.blob("a", digest_of(content))
        assert client.post(url, content=content).status_code == 201
        assert [sent.status for sent in registry.requests] == [None, None, 201]


def test_closed_connection_without_a_socket_is_raised() -> None:
    with serve() as registry:
        registry.fail("base", "GET", "connection closed")
        with pytest.raises(ConnectionAbortedError):
            Client(registry.app).get("/v2/")
        assert Client(registry.app).get("/v2/").status_code == 200


def test_response_is_delayed() -> None:
    with served() as (registry, client):
        registry.fail("base", "GET", timedelta(minutes=10))
        registry.fail("base", "GET", timedelta(seconds=0.01))
        with pytest.raises(httpx.ReadTimeout):
            client.get("/v2/", timeout=0.3)
        assert client.get("/v2/").status_code == 200


def test_faults_follow_one_another_and_spare_other_requests() -> None:
    with serve() as registry:
        client = Client(registry.app)
        registry.fail("tags", "get", 500)
        registry.fail("tags", "GET", 502, times=2)
        registry.fail("tags", "GET", 503, times=None)
        assert client.get("/v2/_catalog").status_code == 200
        statuses = [client.get("/v2/a/tags/list").status_code for _ in range(6)]
        assert statuses == [500, 502, 502, 503, 503, 503]


def test_get_includes_head_whose_own_faults_come_first() -> None:
    with serve() as registry:
        client = Client(registry.app)
        for what, status in (503, 503), (timedelta(microseconds=1), 200):
            registry.fail("base", "GET", what)
            assert client.head("/v2/").status_code == status
            assert registry.unfired == []
        registry.fail("base", "HEAD", 502)
        assert client.get("/v2/").status_code == 200
        registry.fail("base", "GET", 503, times=2)
        statuses = [
            client.open("/v2/", method=method).status_code for method in ("HEAD", "GET", "HEAD")
        ]
        assert statuses == [502, 503, 503]
        assert registry.unfired == []


def test_fault_of_a_body_spares_head() -> None:
    with served() as (registry, client):
        registry.fail("base", "GET", "body cut short")
        assert client.head("/v2/").status_code == 200
        registry.fail("base", "GET", "connection closed")
        with pytest.raises(httpx.RemoteProtocolError):
            client.head("/v2/")
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/v2/")
        assert registry.unfired == []


def test_unfired_faults_are_listed() -> None:
    with serve() as registry:
        client = Client(registry.app)
        registry.fail("base", "GET", 503, times=None)
        registry.fail("tags", "get", 503, times=3)
        registry.fail("blob", "DELETE", "connection closed")
        registry.fail("catalog", "GET", 500)
        assert registry.unfired[0] == ("base", "GET", 503, None)
        for path in "/v2/", "/v2/a/tags/list", "/v2/_catalog":
            client.get(path)
        tags, blob = registry.unfired
        assert (tags.endpoint, tags.method, tags.what, tags.times) == ("tags", "GET", 503, 2)
        assert blob == ("blob", "DELETE", "connection closed", 1)
        assert client.get("/v2/").status_code == 503


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blobs", "GET", 500), "the registry has no endpoint 'blobs', only base, blob, "),
        (("token", "GET", 500), "the registry has no endpoint 'token'"),
        (("storage", "GET", 500), "the registry has no endpoint 'storage'"),
        (("tags", "POST", 500), "endpoint 'tags' does not take 'POST', only GET, HEAD"),
        (("blob-upload", "GET", 500), "endpoint 'blob-upload' does not take 'GET', only POST"),
        (("tags", None, 500), "method None is not a string"),
        (("blob", "GET", 500, 0), "times 0 must be 1 or more"),
        (("blob", "GET", 500, 1.5), "times 1.5 is neither an int nor None"),
        (("blob", "GET", 200), "status 200 is not that of an error"),
        (("blob", "GET", "cut"), "fault 'cut' must be"),
        (("blob", "GET", 1.5), "fault 1.5 is not"),
        (("blob", "GET", errors.Denied), "is not an error, a status"),
        (("blob", "GET", HTTPException("no status")), "has no status"),
        (("blob", "GET", timedelta(0)), "is not longer than zero"),
    ],
)
def test_fault_that_cannot_fire_is_an_error(arguments: Any, message: str) -> None:
    with serve() as registry:
        with pytest.raises((ValueError, TypeError), match=message):
            registry.fail(*arguments)
        assert registry.unfired == []


def test_every_route_may_fail() -> None:
    options: dict[str, Any] = {"users": USERS, "auth": "bearer", "redirect_blobs": True}
    with serve(**options) as registry:
        for route in OCI_1_1.routes:
            for method in route.methods or ():
                registry.fail(route.endpoint, method, 500)
        for endpoint, method in ("token", "GET"), ("token", "POST"), ("storage", "HEAD"):
            registry.fail(endpoint, method, 500)
    with (
        serve(users=USERS, auth="bearer", token_method="GET") as registry,
        pytest.raises(ValueError, match="does not take 'POST'"),
    ):
        registry.fail("token", "POST", 500)


# How other registries behave.


def test_locations_of_an_application_are_rewritten() -> None:
    elsewhere = "https://elsewhere.example/v2/a/blobs/uploads/1"
    with serve() as relative, serve(location="absolute") as absolute:
        cases: list[tuple[Any, Any, str]] = [
            (relative.app, None, "/v2/a/blobs/uploads/"),
            (relative.app, "relative", "/v2/a/blobs/uploads/"),
            (absolute.app, None, "{url}/v2/a/blobs/uploads/"),
            (absolute.app, "relative", "/v2/a/blobs/uploads/"),
            (absolute.app, "opaque", "/uploads/a/"),
            (Response(status=202, headers={"Location": elsewhere}), "relative", elsewhere),
            (Response(status=202, headers={"Location": "/up/1"}), "opaque", "/up/1"),
        ]
        for app, location, wanted in cases:
            with served(app, location=location) as (registry, client):
                found = client.post("/v2/a/blobs/uploads/").headers["Location"]
                assert found.startswith(wanted.format(url=registry.url))
    with served(location="absolute") as (registry, client):
        response = client.put("/v2/a/manifests/v1", content=b"{}")
        assert response.headers["Location"].startswith(f"{registry.url}/v2/a/manifests/sha256:")


@pytest.mark.parametrize(("auth", "transport"), [(None, "http"), ("bearer", "wsgi")])
def test_opaque_location_must_be_kept(auth: str | None, transport: str) -> None:
    options: dict[str, Any] = {"location": "opaque", "transport": transport}
    if auth:
        options |= {"users": USERS, "auth": auth, "login": Login("alice", "secret")}
    with served(**options) as (registry, client):
        response = client.post("/v2/a/b/blobs/uploads/")
        path, _, query = response.headers["Location"].partition("?")
        assert path.startswith("/uploads/a/b/")
        assert query
        location = f"{path}?{query}"
        upload_id = path.rpartition("/")[2]
        api = f"/v2/a/b/blobs/uploads/{upload_id}"
        for wrong in (
            *(path, f"{path}?", f"{path}?{query}x", api, f"{api}?{query}".replace("a/b", "a/c")),
            *(location.replace("%", "%25"), location.replace("%2B", "+")),
        ):
            assert client.patch(wrong, content=b"x").status_code == 404
        response = client.patch(location, content=b"0123")
        assert response.status_code == 202
        assert response.headers["Range"] == "0-3"
        assert client.get(location).status_code == 204
        begun = f"{registry.url}/v2/a/b/blobs/uploads/"
        digest = digest_of(b"0123")
        response = client.put(resolve_location(begun, response.headers["Location"], digest=digest))
        assert response.status_code == 201
        assert response.headers["Location"] == f"/v2/a/b/blobs/{digest}"
        last = registry.requests[-1]
        assert (last.endpoint, last.path) == ("blob-upload-chunk", path)
        assert last.values == {"name": "a/b", "uuid": upload_id}
        if auth:
            with client_of(registry, transport) as nobody:
                assert nobody.patch(location).status_code == 401


def test_blobs_are_redirected_to_another_origin(transport: str) -> None:
    content = os.urandom(1000)
    options: dict[str, Any] = {"users": USERS, "auth": "bearer", "redirect_blobs": True}
    login = Login("alice", "secret")
    with served(login=login, transport=transport, **options) as (registry, client):
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
        for header in "Bearer x", "Basic eDp5":
            refused = httpx.Request("GET", response.url, headers={"Authorization": header})
            assert client.send(refused).status_code == 400
        registry.fail("storage", "GET", 503)
        assert client.get(path).status_code == 503
        assert client.get(f"/v2/a/b/blobs/{ABSENT}").status_code == 404
        assert client.delete(path).status_code == 202
        assert client.get(path).status_code == 404
        assert client.get(response.url).status_code == 404


def test_registry_without_options_has_no_paths_outside_the_api() -> None:
    with served() as (registry, client):
        registry.add_image("a:v1", layers=[b"x"])
        upload = client.post("/v2/a/blobs/uploads/").headers["Location"].rpartition("/")[2]
        for path in "/token", f"/storage/a/{digest_of(b'x')}", f"/uploads/a/{upload}":
            assert client.get(path).status_code == 404


def test_post_without_single_post_only_begins_an_upload(transport: str) -> None:
    content = b"0123456789"
    with served(single_post=False, transport=transport) as (registry, client):
        response = client.post(f"/v2/a/blobs/uploads/?digest={digest_of(content)}", content=content)
        assert response.status_code == 202
        with pytest.raises(LookupError):
            registry.blob("a", digest_of(content))
        assert push_blob(client, "a", content) == digest_of(content)
        found = [(sent.endpoint, sent.status) for sent in registry.requests[1:]]
        assert found == [("blob-upload", 202), ("blob-upload-chunk", 201)]
        assert registry.requests[0].args["digest"] == digest_of(content)
        mounted = client.post(f"/v2/b/blobs/uploads/?mount={digest_of(content)}&from=a")
        assert mounted.status_code == 201
        assert push_blob(client, "c", bytes(5_000_000))  # an early answer to a large body


def test_pages_and_chunks_have_maximum_sizes() -> None:
    with served(page_size=2, max_chunk=6) as (registry, client):
        for tag in "abc":
            registry.add_image(f"x:{tag}")
        assert client.get("/v2/x/tags/list?n=100").json()["tags"] == ["a", "b"]
        push_blob(client, "x", b"0123456789", chunk=6)
        location = client.post("/v2/x/blobs/uploads/").headers["Location"]
        assert client.patch(location, content=b"0123456").status_code == 413


def test_minimum_chunk_size_is_announced_and_enforced() -> None:
    with serve(min_chunk=5) as registry:
        client = Client(registry.app)
        for chunks, last, status in (
            ([b"01234", b"56789"], b"", 201),
            ([b"01234", b"567"], b"", 201),  # the last chunk may be shorter
            ([b"01234"], b"567", 201),
            ([b"012"], b"", 201),
            ([], b"012", 201),
            ([], b"", 201),
            ([b"012", b""], b"", 201),
            ([b"012"], b"34567", 400),
            ([b"012", b"34567"], b"", 400),
            ([b"01234", b"567", b"8"], b"", 400),
        ):
            post = client.post("/v2/a/blobs/uploads/")
            assert chunk_min_length(post.headers["OCI-Chunk-Min-Length"]) == 5
            url = post.location or ""
            answers = [client.patch(url, data=chunk) for chunk in chunks]
            digest = digest_of(b"".join([*chunks, last]))
            answers.append(client.put(url, data=last, query_string={"digest": digest}))
            statuses = [answer.status_code for answer in answers]
            if status == 201:
                assert statuses == [202] * len(chunks) + [201]
                assert registry.blob("a", digest) == b"".join([*chunks, last])
            else:
                assert 400 in statuses
                [entry] = answers[statuses.index(400)].get_json()["errors"]
                assert entry["code"] == "SIZE_INVALID"
        assert client.get("/v2/_catalog").status_code == 200
        posted = client.post(f"/v2/a/blobs/uploads/?digest={digest_of(b'x')}", data=b"x")
        assert (posted.status_code, "OCI-Chunk-Min-Length" in posted.headers) == (201, False)
        assert client.get(client.post("/v2/a/blobs/uploads/").location or "").status_code == 204
    with served() as (registry, over_http):
        response = over_http.post("/v2/a/blobs/uploads/")
        assert "OCI-Chunk-Min-Length" not in response.headers


PAIRS = [
    # Each value of an option meets each value of another, and each login each location.
    (auth, location, (i + j) % 2 == 1, (i + j // 2) % 2 == 1, ("http", "wsgi")[(j + i // 2) % 2])
    for (i, auth), (j, location) in product(
        enumerate([None, "basic", "bearer"]), enumerate([None, "absolute", "relative", "opaque"])
    )
]


@pytest.mark.parametrize(("auth", "location", "redirect_blobs", "single_post", "over"), PAIRS)
def test_options_work_together(
    auth: Any, location: Any, redirect_blobs: bool, single_post: bool, over: str
) -> None:
    content = os.urandom(50)
    options = {"redirect_blobs": redirect_blobs, "single_post": single_post, "location": location}
    if auth:
        options |= {"users": USERS, "auth": auth, "login": Login("bob", USERS["bob"])}
    with served(transport=over, **options) as (registry, client):
        digest = push_image(client, "a/b", "v1", content)
        assert push_blob(client, "a/b", content[:20], chunk=7) == digest_of(content[:20])
        assert client.get(f"/v2/a/b/blobs/{digest_of(content)}").content == content
        assert registry.blob("a/b", digest_of(content[:20])) == content[:20]
        assert registry.storage.tag("a/b", "v1") == digest
        assert client.get(f"/v2/a/b/manifests/{digest}").status_code == 200
        assert client.delete(f"/v2/a/b/manifests/{digest}").status_code == 202
        assert client.get("/v2/_catalog").json() == {"repositories": []}
