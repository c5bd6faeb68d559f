"""The server of `registry_routes.testing`: its port, its threads, and bodies on the wire."""

import atexit
import gc
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes import errors
from registry_routes.challenges import parse_challenges
from registry_routes.digests import digest_of
from registry_routes.testing import ServedRegistry, server

from . import servers
from .served import Login, push_image, serve, served, wait_until
from .servers import address_of, free_port


def connection_to(registry: ServedRegistry) -> socket.socket:
    return socket.create_connection(address_of(registry.host), timeout=10)


def answer_to(registry: ServedRegistry, request: bytes) -> bytes:
    """Return the response to a request after which the client sends nothing more."""
    return servers.answer_to(registry.host, request, breaks_off=True)


def test_two_registries_share_nothing() -> None:
    with served() as (first, client), served() as (second, other):
        assert first.url != second.url
        first.fail("base", "GET", 503)
        first.add_image("a:v1")
        assert other.get("/v2/").status_code == 200
        assert other.get("/v2/a/manifests/v1").status_code == 404
        assert client.get("/v2/").status_code == 503
        assert [len(registry.requests) for registry in (first, second)] == [1, 2]


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_stopped_registry_leaves_no_thread_and_no_listener(error: type[Exception] | None) -> None:
    before = set(threading.enumerate())
    with ExitStack() as expected:
        if error:
            expected.enter_context(pytest.raises(error))
        with serve() as registry:
            assert httpx.get(f"{registry.url}/v2/").content == b"{}"
            if error:
                raise error
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{registry.url}/v2/")
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_many_starts_and_stops_leave_nothing() -> None:
    descriptors = Path("/proc/self/fd")
    before = set(threading.enumerate())
    open_before = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    for _ in range(20):
        with serve() as registry, connection_to(registry) as connection:
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
    wait_until(lambda: set(threading.enumerate()) <= before)
    gc.collect()  # an unclosed socket is a warning, which is an error here
    if descriptors.exists():
        assert len(list(descriptors.iterdir())) <= open_before


@pytest.mark.parametrize("port", [0, 1])
def test_socket_is_opened_late_unless_a_port_is_given(port: int) -> None:
    with serve(port=port and free_port()) as registry:
        before = set(threading.enumerate())
        registry.add_image("a:v1")
        assert Client(registry.app).get("/v2/a/manifests/v1").status_code == 200
        assert set(threading.enumerate()) == before
        host = registry.host
        assert registry.host == host
        assert len(set(threading.enumerate()) - before) == (0 if port else 1)
    with serve() as registry:
        pass
    with pytest.raises(RuntimeError, match="the registry has stopped without ever having a port"):
        registry.host  # noqa: B018


def test_waiting_clients_do_not_keep_the_registry_from_stopping() -> None:
    before = set(threading.enumerate())
    with ExitStack() as clients:
        with serve() as registry:
            registry.fail("base", "GET", timedelta(minutes=10))
            upload = httpx.post(f"{registry.url}/v2/a/blobs/uploads/").headers["Location"]
            for sent in (
                b"",
                b"GET /v2/ HT",
                b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
                f"PATCH {upload} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab".encode(),
            ):
                clients.enter_context(connection_to(registry)).sendall(sent)
            wait_until(lambda: len(registry.requests) == 3)
        wait_until(lambda: set(threading.enumerate()) <= before)


def test_taken_port_is_an_error() -> None:
    with serve() as registry:
        port = int(registry.host.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), serve(port=port):
            pass
    with serve(port=port) as again:
        assert again.host == registry.host


@pytest.mark.parametrize("framing", ["Content-Length: 8", "Transfer-Encoding: chunked"])
def test_body_is_a_binary_file(framing: str) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        body = BufferedReader(environ["wsgi.input"])
        return Response(body.readline() + b"|" + body.read(4))(environ, start_response)

    sent = b"8\r\none\ntwo\n\r\n0\r\n\r\n" if "chunked" in framing else b"one\ntwo\n"
    with serve(app) as registry:
        head = f"POST /v2/ HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode()
        assert answer_to(registry, head + sent).endswith(b"\r\n\r\none\n|two\n")


# Requests that are not HTTP.


def client_hello() -> bytes:
    """Return the first bytes of a client that tries TLS."""
    sent = ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), sent, server_hostname="localhost"
    )
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    return sent.read()


@pytest.mark.parametrize("sent", [1, 5, 200, None], ids=["byte", "head", "part", "whole"])
def test_client_hello_is_answered_at_its_first_byte(sent: int | None) -> None:
    """As docker, buildx and containerd: TLS first, then HTTP if the answer looks like it."""
    hello = client_hello().replace(b"\n", b"x")
    with serve() as registry:
        with connection_to(registry) as connection:
            connection.sendall(hello[:sent])  # and it stays open, to wait for an answer
            assert connection.recv(5, socket.MSG_WAITALL) == b"HTTP/"
            rest = b"".join(iter(lambda: connection.recv(65536), b""))
            assert rest.startswith(b"1.1 400 this registry speaks HTTP without TLS\r\n")
        assert httpx.get(f"{registry.url}/v2/").status_code == 200
        assert len(registry.requests) == 1


@given(st.binary(max_size=40) | st.text("GET /v2HP1.0\t\r\n", max_size=30).map(str.encode))
@example(b"GET\r\n\r\n")
@example(b"\r\n" * 9)
@example(b"GET /v2/\r\n\r\n")
@example(b"POST /v2/\r\n\r\n")
@example(b"GET /v2/ HTTP/1\r\n\r\n")
@example(b"GET /v2/ HTTP/1.1")
@example(b"GET /v2/ HTTP/2.0\r\n\r\n")
@example(b"GET /v2/ HTTP/1.1\r\n" + 200 * b"a: b\r\n")
@example(b"GET /v2/ HTTPS/1.1\r\n\r\n")
@example(b"GET http://[/v2/ HTTP/1.1\r\n\r\n")
@example(b"GET /v2/ x HTTP/1.1\r\n\r\n")
@example(b"G\x00T /v2/ HTTP/1.1\r\n\r\n")
@example(b"GET /" + bytes([0x7F]) + b" HTTP/1.1\r\n\r\n")
@example(b"GET /" + 70_000 * b"a" + b" HTTP/1.1\r\n\r\n")
def test_malformed_request_line_has_an_answer(sent: bytes) -> None:
    answer = answer_to(shared_registry(), sent)
    if sent:
        assert re.match(rb"HTTP/1\.[01] (400|404|405|414|431|505) ", answer), answer[:80]
    if (
        not re.match(rb"(\r?\n)?[!-~]+ [!-~\x80-\xff]+ HTTP/\d\.\d\r?\n", sent)
        and len(sent) < 65536
    ):
        reason = (
            b"the request line is malformed" if sent[:1] != b"\x16" else b"this registry speaks"
        )
        assert answer.startswith(b"HTTP/1.1 400 " + reason) or not sent


@cache
def shared_registry() -> ServedRegistry:
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(serve())


def test_empty_line_before_a_request_is_skipped() -> None:
    with serve() as registry:
        request = b"\r\nGET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
        assert answer_to(registry, request).startswith(b"HTTP/1.1 200 ")


# TLS.


def test_tls_is_served(tls: ssl.SSLContext, certificate: Path) -> None:
    verify = ssl.create_default_context(cafile=certificate)
    options: dict[str, Any] = {"users": {"a": "b"}, "auth": "bearer", "location": "absolute"}
    with served(
        login=Login("a", "b"), verify=verify, ssl_context=tls, redirect_blobs=True, **options
    ) as (registry, client):
        assert registry.url == f"https://{registry.host}"
        push_image(client, "x", "v1", b"0123")
        answer = client.get(f"/v2/x/blobs/{digest_of(b'0123')}")
        assert (answer.content, answer.url.scheme) == (b"0123", "https")
        with httpx.Client(base_url=registry.url, verify=verify) as nobody:
            refused = nobody.get("/v2/")
        [challenge] = parse_challenges(refused.headers)
        assert challenge.realm == f"{registry.url}/token"
        location = client.post("/v2/x/blobs/uploads/").headers["Location"]
        assert location.startswith(f"{registry.url}/v2/x/blobs/uploads/")
        registry.fail("base", "GET", "connection closed")
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/v2/")
        registry.fail("base", "GET", "body cut short")
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/v2/")


def test_failed_handshakes_do_no_harm(tls: ssl.SSLContext, certificate: Path) -> None:
    verify = ssl.create_default_context(cafile=certificate)
    before = set(threading.enumerate())
    with ExitStack() as clients:
        with served(verify=verify, ssl_context=tls) as (registry, client):
            silent = [clients.enter_context(connection_to(registry)) for _ in range(3)]
            silent[1].sendall(client_hello()[:50])
            for sent in b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", client_hello()[:50]:
                with suppress(OSError):  # it may be reset
                    answer_to(registry, sent)
            connection_to(registry).close()
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{registry.url}/v2/")  # without the authority
            assert client.get("/v2/").status_code == 200
        wait_until(lambda: set(threading.enumerate()) <= before)


def test_handshake_has_a_timeout(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry_routes.testing.server._HANDSHAKE", 0.05)
    with serve(ssl_context=tls) as registry, connection_to(registry) as silent:
        assert silent.recv(1) == b""


def test_stop_waits_for_a_connection_that_has_just_come(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up, before = server._Handler.setup, set(threading.enumerate())

    def set_up_late(handler: Any) -> None:
        time.sleep(0.2)
        set_up(handler)

    monkeypatch.setattr(server._Handler, "setup", set_up_late)
    with ExitStack() as clients, serve(ssl_context=tls) as registry:
        clients.enter_context(connection_to(registry))
        wait_until(lambda: len(set(threading.enumerate()) - before) == 2)
    assert set(threading.enumerate()) <= before


def test_tls_ends_with_a_close_notify(tls: ssl.SSLContext, certificate: Path) -> None:
    """Without it, a body that ends with the connection would count as truncated."""
    client = ssl.create_default_context(cafile=certificate)
    app = Response(iter([b"0123", b"4567"]))  # without a length
    with serve(app, ssl_context=tls) as registry, connection_to(registry) as connection:
        wrapped = client.wrap_socket(
            connection, server_hostname="localhost", suppress_ragged_eofs=False
        )
        with wrapped:
            wrapped.sendall(b"GET /v2/ HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: wrapped.recv(65536), b""))
        assert answer.endswith(b"\r\n\r\n01234567")


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        ("adhoc", TypeError, "ssl_context 'adhoc' is not an ssl.SSLContext"),
        (ssl.create_default_context(), ValueError, "ssl_context is for clients"),
    ],
)
def test_other_ssl_context_is_an_error(context: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message), serve(ssl_context=context):
        pass


# Older and more careful clients.


def test_http_1_0_gets_no_chunks() -> None:
    with serve(Response(iter([b"0123", b"4567"]))) as registry:
        answer = answer_to(registry, b"GET /v2/ HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n01234567")
        assert b"chunked" not in answer.lower()
        answer = answer_to(registry, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in answer


@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("expect", ["100-continue", "100-Continue "])
def test_expect_100_continue(framing: str, expect: str) -> None:
    head = f"Host: x\r\nExpect: {expect}\r\n{framing}\r\n\r\n".encode()
    body = b"5\r\n01234\r\n0\r\n\r\n" if "chunked" in framing else b"01234"
    digest = digest_of(b"01234")
    push = f"POST /v2/a/blobs/uploads/?digest={digest}".encode()
    with serve() as registry:
        with connection_to(registry) as connection:
            connection.sendall(push + b" HTTP/1.1\r\n" + head)
            told = connection.recv(65536)
            assert told == b"HTTP/1.1 100 Continue\r\n\r\n"  # once
            connection.sendall(body)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 201 ")
        assert registry.requests[0].headers["Expect"].strip() == expect.strip()
        for refused in b"PUT /v2/a/tags/list HTTP/1.1\r\n", push.upper() + b" HTTP/1.1\r\n":
            with connection_to(registry) as connection:
                connection.sendall(refused + head)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
                assert answer.startswith(b"HTTP/1.1 4")
        # HTTP/1.0 does not know it (RFC 9110, 10.1.1).
        answer = answer_to(registry, push + b" HTTP/1.0\r\n" + head + body)
        assert answer.startswith(b"HTTP/1.0 201 ")


# Bodies.

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_chunked_body_is_read(size: int) -> None:
    content = os.urandom(size)

    def blocks() -> Iterator[bytes]:
        for start in range(0, size, 100_000):
            yield content[start : start + 100_000]

    with served() as (registry, client):
        digest = digest_of(content)
        response = client.post(f"/v2/a/blobs/uploads/?digest={digest}", content=blocks())
        assert response.status_code == 201
        assert "Content-Length" not in registry.requests[0].headers
        assert registry.blob("a", digest) == content


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
def test_truncated_or_malformed_body_leaves_no_trace(rest: bytes) -> None:
    content = b"01234"
    with served() as (registry, client):
        location = client.post("/v2/a/blobs/uploads/").headers["Location"]
        client.patch(location, content=content)
        for method, target in (
            ("PATCH", location),
            ("PUT", f"{location}?digest={digest_of(content)}"),
            ("POST", f"/v2/b/blobs/uploads/?digest={digest_of(b'abc')}"),
            ("PUT", "/v2/c/manifests/v1"),
        ):
            request = f"{method} {target} HTTP/1.1\r\nHost: x\r\n".encode() + rest
            answer = answer_to(registry, request)
            assert answer.startswith(b"HTTP/1.1 400") or not answer
        assert registry.storage.upload_size("a", location.rpartition("/")[2]) == len(content)
        assert list(registry.storage.repositories()) == []
        with pytest.raises(LookupError):
            registry.blob("b", digest_of(b"abc"))


def test_early_answer_to_a_large_body_arrives() -> None:
    body = bytes(30_000_000)
    with served() as (registry, client):
        location = client.post("/v2/a/blobs/uploads/").headers["Location"]
        registry.fail("blob-upload", "POST", errors.TooManyRequests(), times=None)
        for method, path, status in (
            ("PATCH", location, 416),
            ("PUT", "/v2/a/manifests/v1", 413),
            ("PUT", "/v2/_catalog", 405),
            ("POST", f"/v2/a/blobs/uploads/?digest={digest_of(body)}", 429),
        ):
            headers = {"Content-Range": f"5-{len(body) + 4}"}
            assert client.request(method, path, content=body, headers=headers).status_code == status


# Threads.


def test_threads_use_the_registry_at_once() -> None:
    users = {"alice": "secret"}
    with serve(users=users, auth="bearer", location="opaque") as registry:
        registry.fail("tags", "GET", 503, times=5)

        def work(number: int) -> None:
            login = Login("alice", "secret")
            with httpx.Client(base_url=registry.url, verify=False, auth=login) as client:
                for round_number in range(2):
                    content = os.urandom(1000)
                    push_image(client, f"of/{number}", f"v{round_number}", content)
                    push_image(client, "shared", "latest", content)
                    path = f"/v2/shared/blobs/{digest_of(content)}"
                    assert client.get(path).content == content
                    client.get("/v2/shared/tags/list", auth=None)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        statuses = [request.status for request in registry.requests if request.endpoint == "tags"]
        assert sorted(statuses, key=str) == [401] * 7 + [503] * 5
        assert len(list(registry.storage.repositories())) == 7
        assert all(request.status is not None for request in registry.requests)
