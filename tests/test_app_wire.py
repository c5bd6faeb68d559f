"""`RegistryApp` and WSGI servers: the responses that are sent, the bodies that are read."""

import json
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import requests
import werkzeug
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict
from werkzeug.test import Client, create_environ
from werkzeug.wrappers import Response
from werkzeug.wsgi import FileWrapper

from registry_routes import DOCKER_1_5, RegistryApp, RegistryMap, RegistryRequest, url_map

from . import wire_app
from .applications import VERSION, app_with_view, code_of, requests_of, small_registry
from .nasty import SHA256
from .servers import free_port, serving

# Responses.

FIELD_TEXT = st.text(st.characters(max_codepoint=0x250) | st.sampled_from("\r\n\0\x7f\u2028Kſ:"))


class Unchecked(Response):
    """A response whose headers nobody has checked, unlike Werkzeug's."""

    unchecked: list[tuple[Any, Any]] = []

    def get_wsgi_headers(self, environ: Any) -> Any:
        return SimpleNamespace(to_wsgi_list=lambda: [*self.unchecked])


def can_be_sent(field: tuple[Any, Any]) -> bool:
    name, value = field
    good = isinstance(value, str) and re.fullmatch("[ -~\x80-\xff]*", value)
    return bool(good and re.fullmatch("[!#$%&'*+.^_`|~0-9A-Za-z-]+", name))


@given(
    st.lists(st.tuples(FIELD_TEXT | st.just("X-Y"), FIELD_TEXT | st.integers() | st.none())),
    st.text(max_size=6) | st.from_regex("[1-9][0-9]{2}( .*)?", fullmatch=True),
)
def test_every_response_can_be_sent(fields: list[tuple[Any, Any]], status: str) -> None:
    def view() -> Response:
        response = Unchecked()
        response.unchecked = [("Content-Type", "text/plain"), *fields]
        if status.strip():
            response.status = status
        return response

    started: list[Any] = []
    environ = create_environ("/v2/_catalog")
    body = b"".join(app_with_view(view)(environ, lambda *start: started.append(start)))  # type: ignore
    ((sent_status, sent_fields),) = started
    assert re.fullmatch("[2-9][0-9][0-9] [ -~\x80-\xff]*", sent_status)
    assert all(map(can_be_sent, sent_fields))
    assert all(map(can_be_sent, fields)) or json.loads(body)["errors"][0]["code"] == "UNKNOWN"


ROOT = Path(__file__).parent.parent

#: The command of each server, for a port.
SERVERS: dict[str, Callable[[int], list[str]]] = {
    "gunicorn": lambda port: [
        *(sys.executable, "-m", "gunicorn", "--no-control-socket", "-b", f"127.0.0.1:{port}"),
        "tests.wire_app:app",
    ],
    "cheroot": lambda port: [
        *(sys.executable, "-m", "cheroot", "--bind", f"127.0.0.1:{port}", "tests.wire_app:app")
    ],
    "granian": lambda port: [
        *(sys.executable, "-m", "granian", "--interface", "wsgi", "--port", str(port)),
        "tests.wire_app:app",
    ],
    "uwsgi": lambda port: [
        *("uwsgi", "--plugin", "python3", "--http-socket", f"127.0.0.1:{port}", "--die-on-term"),
        *(f"--pythonpath={path}" for path in (ROOT, Path(werkzeug.__file__).parent.parent)),
        *("--need-app", "--wsgi", "tests.wire_app:app"),
    ],
}


class WsgirefHandler(WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(
    scope="module",
    params=["wsgiref", *(pytest.param(name, marks=pytest.mark.slow) for name in SERVERS)],
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """The name of a server of `wire_app`, and its host and port."""
    if request.param == "wsgiref":
        with make_server("127.0.0.1", 0, wire_app.app, handler_class=WsgirefHandler) as wsgiref:
            thread = threading.Thread(target=wsgiref.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield request.param, f"127.0.0.1:{wsgiref.server_port}"
            wsgiref.shutdown()
            thread.join()
        return
    if not (shutil.which(request.param) if request.param == "uwsgi" else find_spec(request.param)):
        pytest.skip(f"{request.param} is not installed")
    port = free_port()
    log = tmp_path_factory.mktemp(request.param) / "log"
    command = SERVERS[request.param](port)
    with serving(command, port, log, clean=False, cwd=ROOT) as host:
        yield request.param, host


@pytest.mark.parametrize("bad", wire_app.BAD_RESPONSES)
def test_response_that_no_server_can_send_is_500(server: tuple[str, str], bad: str) -> None:
    _, host = server
    response = requests.get(f"http://{host}/v2/_a/b/{bad}", timeout=10, allow_redirects=False)
    assert response.status_code == 500
    assert response.json()["errors"][0]["code"] == "UNKNOWN"
    assert not {"X", "X-A", "X-B"} & set(response.headers)


@pytest.mark.parametrize(
    ("name", "value", "logged"),
    [
        ("X-Y", "ж", "header 'X-Y': 'ж' must be a token and one line of Latin-1"),
        ("Content-Length", "9" * 19, f"Content-Length '{'9' * 19}' must be a whole number"),
    ],
)
def test_response_that_no_server_can_send_is_logged(
    name: str, value: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_with_view(lambda: Response(headers={name: value}))
    assert Client(app).get("/v2/_catalog").status_code == 500
    assert logged in caplog.text


def test_latin_1_headers_are_sent_as_they_are_and_a_location_as_ascii() -> None:
    sent = {"X_y.z~": "a, \xe9\xff", "Location": "/é ж", "DOCKER-distribution-api-version": "x"}
    response = Client(app_with_view(lambda: Response(headers=sent))).get("/v2/_catalog")
    assert response.headers["X_y.z~"] == sent["X_y.z~"]
    assert response.headers["Location"] == "/%C3%A9%20%D0%B6"
    assert response.headers.getlist(VERSION) == ["x"]


def test_exception_while_a_body_is_sent_reaches_the_server() -> None:
    def body() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Client(app_with_view(lambda: Response(body()))).get("/v2/_catalog", buffered=True)


# Request bodies.


@pytest.mark.parametrize("length", ["x", "-1", "٣", "1 ", "9" * 19])
def test_malformed_content_length_is_400(length: str) -> None:
    environ = {"CONTENT_LENGTH": length}
    client = Client(small_registry())
    response = client.post("/v2/a/blobs/uploads/", data=b"body", environ_overrides=environ)
    assert (response.status_code, code_of(response)) == (400, "SIZE_INVALID")


@pytest.mark.parametrize(
    ("protocol", "method", "more", "status"),
    [
        ("HTTP/1.1", "GET", {"HTTP_TRANSFER_ENCODING": "chunked"}, 411),
        ("HTTP/1.1", "PUT", {"HTTP_TRANSFER_ENCODING": "gzip, Chunked"}, 411),
        ("HTTP/1.1", "X", {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": "4"}, 411),
        ("HTTP/2", "PATCH", {}, 411),
        ("HTTP/3", "PUT", {}, 411),
        ("HTTP/2", "PATCH", {"CONTENT_LENGTH": "0"}, 200),
        ("HTTP/2", "GET", {}, 200),
        ("HTTP/1.1", "PATCH", {}, 200),
    ],
)
def test_body_whose_end_is_unknown_is_411(
    protocol: str, method: str, more: dict[str, Any], status: int
) -> None:
    app = RegistryApp(RegistryMap(dialect=DOCKER_1_5))
    app.view("tags")(lambda request, name: Response())
    called: list[Any] = []
    app.before_request(lambda request: called.append(request))
    answered = requests_of(app)
    environ = create_environ("/v2/a/b/tags/list", method=method, input_stream=BytesIO(b"body"))
    environ = {**environ, "SERVER_PROTOCOL": protocol, "CONTENT_LENGTH": "", **more}
    environ.pop("wsgi.input_terminated", None)
    response = Response.from_app(app, environ)
    assert response.status_code == status
    assert (len(called), len(answered)) == (status == 200, 1)
    assert status == 200 or code_of(response) == "SIZE_INVALID"
    environ["wsgi.input_terminated"] = True
    assert Response.from_app(app, environ).status_code == 200


class Cut:
    """A stream that ends early: with no more bytes, or with an exception."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self.content, self.error = BytesIO(content), error

    def read(self, size: int = -1) -> bytes:
        block = self.content.read(size)
        if self.error is not None and (size < 0 or not block):
            raise self.error
        return block


READS: dict[str, Callable[[RegistryRequest], object]] = {
    "get_data": lambda request: request.get_data(),
    "form": lambda request: request.form,
    "blocks": lambda request: b"".join(iter(lambda: request.stream.read(2), b"")),
    "lines": lambda request: list(request.stream),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("sent", "error", "ended_by_server"),
    [
        (b"", None, True),
        (b'"he', None, False),
        (b"", OSError(), False),
        (b'"he', RuntimeError(), True),
    ],
)
def test_body_cut_short_is_400(
    sent: bytes, error: Exception | None, ended_by_server: bool, read: str
) -> None:
    results: list[object] = []
    app = RegistryApp(url_map)

    @app.view("blob-upload")
    def upload(request: RegistryRequest, name: str) -> Response:
        results.append(READS[read](request))
        return Response()

    environ = create_environ("/v2/a/blobs/uploads/", method="POST")
    environ |= {"CONTENT_LENGTH": "7", "wsgi.input": Cut(sent, error)}
    environ["CONTENT_TYPE"] = "application/x-www-form-urlencoded" if read == "form" else ""
    if ended_by_server:
        environ["wsgi.input_terminated"] = True
    response = Response.from_app(app, environ)
    assert (response.status_code, results) == (400, [])
    whole = {**environ, "wsgi.input": BytesIO(b'"hello"and more')}
    assert Response.from_app(app, whole).status_code == 200
    expected = {"lines": [b'"hello"'], "form": MultiDict({'"hello"': ""})}
    assert results == [expected.get(read, b'"hello"')]


def test_chunked_body_that_the_server_cannot_read_is_400() -> None:
    app = RegistryApp(url_map)
    app.view("blob-upload")(lambda request, name: Response(request.get_data()))
    environ = create_environ("/v2/a/blobs/uploads/", method="POST")
    environ |= {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    environ["CONTENT_LENGTH"] = "9"  # which a chunked body overrides (RFC 9112, 6.3)
    for error, status in (RuntimeError("bad chunk"), 400), (None, 200):
        environ["wsgi.input"] = Cut(b"hello", error)
        response = Response.from_app(app, environ)
        assert response.status_code == status
    assert response.data == b"hello"


def test_body_above_max_content_length_is_413(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RegistryRequest, "max_content_length", 3)
    environ = {"wsgi.input_terminated": True}
    for body, status in (b"abc", 200), (b"abcd", 413):
        response = Client(small_registry()).post(
            "/v2/a/blobs/uploads/", data=body, environ_overrides=environ
        )
        assert response.status_code == status


def send_raw(host: str, head: str, body: bytes) -> bytes:
    """The first line of the response to a request that ends after `body`."""
    name, _, port = host.partition(":")
    with socket.create_connection((name, int(port)), timeout=10) as connection:
        lines = f"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{head}"
        connection.sendall(f"{lines}\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").readline()


def test_bodies_on_real_servers(server: tuple[str, str]) -> None:
    name, host = server
    url = f"http://{host}/v2/a/blobs/uploads/"
    assert requests.post(url, data=b"some bytes", timeout=10).text == "10 bytes"
    assert b" 400 " in send_raw(host, "Content-Length: 5", b"hel")
    assert b" 400 " in send_raw(host, "Content-Length: 5", b"")
    response = requests.post(url, data=iter([b"some ", b"bytes"]), timeout=10)
    if name in ("wsgiref", "uwsgi"):
        assert response.status_code == 411
        assert response.json()["errors"][0]["code"] == "SIZE_INVALID"
    else:
        assert response.text == "10 bytes"
    if name in ("gunicorn", "cheroot"):  # granian says that a chunked body is whole
        assert b" 400 " in send_raw(host, "Transfer-Encoding: chunked", b"5\r\nhel")


def test_ranges_of_a_file_on_real_servers(server: tuple[str, str]) -> None:
    _, host = server
    url = f"http://{host}/v2/a/blobs/{SHA256}"
    size = len(wire_app.CONTENT)
    for header, start, end in (
        ("", 0, size),
        ("bytes=0-", 0, size),
        (f"bytes={size - 1000}-", size - 1000, size),
    ):
        response = requests.get(url, headers={"Range": header}, timeout=10)
        assert response.status_code == (206 if header else 200)
        assert response.content == wire_app.CONTENT[start:end]


@pytest.mark.parametrize(("header", "wrapped"), [("", 1), ("bytes=0-", 1), ("bytes=1-", 0)])
def test_only_a_file_from_its_start_is_left_to_the_server(header: str, wrapped: int) -> None:
    """uWSGI sends any file from its first byte, whatever its position is."""
    calls: list[Any] = []

    def wrap(file: Any, size: int) -> Any:
        calls.append(file)
        return FileWrapper(file, size)

    response = Client(wire_app.app).get(
        f"/v2/a/blobs/{SHA256}",
        headers={"Range": header},
        environ_overrides={"wsgi.file_wrapper": wrap},
    )
    assert response.data == wire_app.CONTENT[1 - wrapped :]
    response.close()
    assert len(calls) == wrapped
