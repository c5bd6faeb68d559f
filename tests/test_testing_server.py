"""The server of `registry_routes.testing`: its port, its threads, and bodies on the wire."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta

import httpx
import pytest

from registry_routes import errors
from registry_routes.digests import digest_of
from registry_routes.testing import ServedRegistry, serve

from .served import Login, push_image, served, wait_until


def connection_to(registry: ServedRegistry) -> socket.socket:
    host, _, port = registry.host.partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answer_to(registry: ServedRegistry, request: bytes) -> bytes:
    """The response to the bytes of a request, after which the client sends nothing more."""
    with connection_to(registry) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while block := connection.recv(65536):
            answer += block
    return answer


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


def test_requests_that_are_not_http_do_no_harm() -> None:
    with serve() as registry:
        for request in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\r\n" * 9:
            answer_to(registry, request)
        assert httpx.get(f"{registry.url}/v2/").status_code == 200


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
    problems: list[BaseException] = []
    users = {"alice": "secret"}
    with serve(users=users, auth="bearer", location="opaque") as registry:
        registry.fail("tags", "GET", 503, times=10)

        def work(number: int) -> None:
            login = Login("alice", "secret")
            try:
                with httpx.Client(base_url=registry.url, verify=False, auth=login) as client:
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
        statuses = [request.status for request in registry.requests if request.endpoint == "tags"]
        assert sorted(statuses, key=str) == [401] * 22 + [503] * 10
        assert len(list(registry.storage.repositories())) == 9
        assert all(request.status is not None for request in registry.requests)
