"""`RegistryApp` and WSGI servers: what is sent, and which bodies are read."""

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

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from werkzeug import exceptions
from werkzeug.test import Client, create_environ
from werkzeug.wrappers import Response

from registry_routes import DOCKER_1_5, RegistryApp, RegistryMap, RegistryRequest, errors

from .applications import VERSION, app_with_view, code_of, fail, requests_of, small_registry
from .servers import free_port, serving

# Responses.

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
    def view() -> Response:
        response = Unchecked()
        response.unchecked = [("Content-Type", "text/plain"), *fields]
        if status.strip():
            response.status = status
        return response

    started: list[Any] = []
    logging.disable(logging.CRITICAL)
    try:
        environ = create_environ("/v2/_catalog")
        body = b"".join(app_with_view(view)(environ, lambda *start: started.append(start)))  # type: ignore
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
        command += ["--no-control-socket", f"{__name__}:badly_responding_app()"]
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
def test_response_that_no_server_can_send_is_500(real_server: tuple[str, str], bad: str) -> None:
    _, host = real_server
    response = requests.get(f"http://{host}/v2/_a/b/{bad}", timeout=10, allow_redirects=False)
    assert response.status_code == 500
    assert response.json()["errors"][0]["code"] == "UNKNOWN"
    assert not {"X", "X-A", "X-B"} & set(response.headers)


def test_response_that_no_server_can_send_is_logged_and_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed = []

    def view() -> Response:
        response = Response(iter([b"a"]), headers={"X-Y": "ж"})
        response.call_on_close(lambda: closed.append(True))
        return response

    assert Client(app_with_view(view)).get("/v2/_catalog").status_code == 500
    assert closed == [True]
    assert "header 'X-Y': 'ж' must be a token and one line of Latin-1" in caplog.text


def test_headers_that_servers_can_send_are_unchanged() -> None:
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


@pytest.mark.parametrize("length", ["x", "-1", "1.0", "٣", "1 ", "0x1", "9" * 5000])
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
        ("HTTP/2", "POST", {}, 411),
        ("HTTP/2", "PATCH", {}, 411),
        ("HTTP/3", "PUT", {}, 411),
        ("HTTP/2", "PATCH", {"CONTENT_LENGTH": "0"}, 200),
        ("HTTP/2", "GET", {}, 200),
        ("HTTP/1.1", "PATCH", {}, 200),
        ("HTTP/1.0", "POST", {}, 200),
    ],
)
def test_body_whose_end_is_unknown_is_411(
    protocol: str, method: str, more: dict[str, Any], status: int
) -> None:
    app = RegistryApp(RegistryMap(DOCKER_1_5))
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


def test_chunked_body_on_real_servers_is_whole_or_411(real_server: tuple[str, str]) -> None:
    server, host = real_server
    url = f"http://{host}/v2/a/blobs/uploads/"
    response = requests.post(url, data=iter([b"some ", b"bytes"]), timeout=10)
    if server == "gunicorn":
        assert response.text == "10 bytes"
    else:
        assert response.status_code == 411
        assert response.json()["errors"][0]["code"] == "SIZE_INVALID"
