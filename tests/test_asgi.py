"""`examples/asgi.py`: a WSGI application in an ASGI server, and the registry in uvicorn."""

import asyncio
import contextvars
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import asgi
import pytest
import requests
import uvicorn
from asgi import WSGIBridge, environ_of
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.wrappers import Request, Response

from registry_routes.digests import digest_of
from registry_routes.registry import MemoryStorage, make_registry

from .disks import fill_temporary_directory
from .servers import address_of, example, peak_of

MIB = 1024 * 1024
GONE = {"type": "http.disconnect"}


def scope_of(target: str = "/v2/", method: str = "GET", **more: Any) -> dict[str, Any]:
    """A scope as uvicorn makes it."""
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        **more,
    }


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def exchange(
    bridge: Any,
    *messages: dict[str, Any],
    send: Callable[[Any], Any] | None = None,
    scope: dict[str, Any] | None = None,
    sent: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Return the bridge's messages to a client that sends these messages and then nothing.

    :param sent: where the bridge's messages are collected, for a bridge that fails.
    """
    sent = [] if sent is None else sent
    left = list(messages or [part(b"", False)])

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    async def remember(message: Any) -> None:
        sent.append(message)
        if send is not None:
            await send(message)

    await bridge(scope or scope_of(), receive, remember)
    return sent


def body_of(sent: list[dict[str, Any]]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


@Request.application
def echo(request: Request) -> Response:
    """Answer with the request's body, as Werkzeug reads it."""
    return Response(request.get_data(), headers={"X-Length": str(request.content_length)})


class Streamed:
    """A WSGI application that answers with blocks; it remembers what became of them."""

    def __init__(self, *blocks: bytes | Exception, on_close: Exception | None = None) -> None:
        self.blocks, self.on_close = blocks, on_close
        self.made = self.closed = 0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return self

    def __iter__(self) -> Iterator[bytes]:
        for block in self.blocks:
            if isinstance(block, Exception):
                raise block
            self.made += bool(block)
            yield block

    def close(self) -> None:
        self.closed += 1
        if self.on_close:
            raise self.on_close


# What comes in.


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (scope_of("/v2/a%2Fb/"), {"PATH_INFO": "/v2/a/b/", "SCRIPT_NAME": ""}),
        (scope_of("/v2/%FF%C3%A9"), {"PATH_INFO": "/v2/\xff\xc3\xa9"}),
        (scope_of("/é", raw_path=None), {"PATH_INFO": "/\xc3\xa9"}),
        # Another application has changed the path, not the raw one.
        (scope_of("/a", path="/b/é"), {"PATH_INFO": "/b/\xc3\xa9"}),
        (scope_of("/a", path="/\udcff"), {"PATH_INFO": "/?"}),
        (scope_of("/m%C3%A9/v2/", root_path="/mé"), {"SCRIPT_NAME": "/m\xc3\xa9"}),
        (scope_of("/m%C3%A9/v2/", root_path="/mé/"), {"PATH_INFO": "/v2/"}),
        (scope_of("/mirror/v2/", root_path="/m"), {"PATH_INFO": "/mirror/v2/"}),
        (scope_of("/?a=%FF&b=\xe9"), {"QUERY_STRING": "a=%FF&b=\xc3\xa9"}),
        (scope_of(server=("/run/socket", None)), {"SERVER_PORT": "0"}),
        (scope_of(server=None), {"SERVER_NAME": "localhost", "SERVER_PORT": "80"}),
        (scope_of(client=("::1", 5)), {"REMOTE_ADDR": "::1", "REMOTE_PORT": "5"}),
        (scope_of(client=None), {"REMOTE_ADDR": None}),
        (scope_of(scheme="https"), {"wsgi.url_scheme": "https"}),
        (scope_of(headers=[(b"accept", b"a"), (b"accept", b"\xe9")]), {"HTTP_ACCEPT": "a,\xe9"}),
        (scope_of(headers=[(b"cookie", b"a=1"), (b"cookie", b"b=2")]), {"HTTP_COOKIE": "a=1; b=2"}),
        (scope_of(headers=[(b"content-type", b"t")]), {"CONTENT_TYPE": "t"}),
        (scope_of(headers=[(b"x-user", b"me"), (b"x_user", b"you")]), {"HTTP_X_USER": "me"}),
        (scope_of(headers=[(b"transfer-encoding", b"x")]), {"HTTP_TRANSFER_ENCODING": None}),
    ],
)
def test_environ_of_a_request(scope: dict[str, Any], expected: dict[str, str | None]) -> None:
    environ = environ_of(scope)
    assert {key: environ.get(key) for key in expected} == expected


@given(st.lists(st.binary(max_size=40)), st.booleans())
def test_body_arrives_as_it_was_sent(blocks: list[bytes], has_length: bool) -> None:
    whole = b"".join(blocks)
    headers = [(b"content-length", b"%d" % len(whole)), (b"transfer-encoding", b"chunked")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asgi, "MAX_IN_MEMORY", 50)
        bridge = WSGIBridge(echo, threads=1)
        messages = [*map(part, blocks), part(b"", False)]
        scope = scope_of(headers=headers[:1] if has_length else headers[1:])
        sent = asyncio.run(exchange(bridge, *messages, scope=scope))
        bridge.pool.shutdown()
    assert body_of(sent) == whole
    assert (b"x-length", b"%d" % len(whole)) in sent[0]["headers"]
    assert bridge.spooled == 0


def test_application_is_not_called_for_a_body_that_is_cut_short() -> None:
    called: list[Any] = []
    bridge = WSGIBridge(lambda environ, start_response: called.append(environ))
    for blocks in [], [b""], [b"x" * 10], [b"x" * 3 * MIB, b"y"]:
        assert asyncio.run(exchange(bridge, *map(part, blocks), GONE)) == []
    assert called == []
    assert bridge.spooled == 0


@pytest.mark.parametrize(("length", "status"), [("500", 400), ("5x", 400), ("05", 200), ("", 200)])
def test_body_of_another_length_than_its_header_says_is_refused(length: str, status: int) -> None:
    scope = scope_of(headers=[(b"content-length", length.encode())])
    sent = asyncio.run(exchange(WSGIBridge(echo), part(b"12345", False), scope=scope))
    assert sent[0]["status"] == status
    if status == 400:
        assert json.loads(body_of(sent))["errors"][0]["code"] == "SIZE_INVALID"


def test_bodies_that_would_fill_the_disk_are_refused_until_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asgi, "MAX_IN_MEMORY", 100)
    bridge = WSGIBridge(echo, disk=500)
    big, bigger = [part(b"x" * 200)] * 2, [part(b"x" * 200)] * 4

    async def run() -> tuple[list[Any], list[Any]]:
        first = asyncio.create_task(exchange(bridge, *big))  # which does not end
        while bridge.spooled < 400:
            await asyncio.sleep(0.001)
        refused = await exchange(bridge, *bigger, part(b"", False))
        assert bridge.spooled == 400
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        return refused, await exchange(bridge, *big, part(b"", False))

    refused, taken = asyncio.run(run())
    assert refused[0]["status"] == 503
    assert json.loads(body_of(refused))["errors"][0]["code"] == "UNAVAILABLE"
    assert len(body_of(taken)) == 400
    assert bridge.spooled == 0


@pytest.mark.parametrize("room", [None, 0, 250, 450])  # nothing, the first block, another, the rest
def test_full_temporary_directory_is_one_line_and_503(
    room: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(asgi, "MAX_IN_MEMORY", 100)
    bridge = WSGIBridge(echo)
    parts = [part(b"x" * 200), part(b"x" * 200)]
    with monkeypatch.context() as patch:
        opened = fill_temporary_directory(patch, tmp_path, room)
        sent = asyncio.run(exchange(bridge, *parts, part(b"y" * 90, False)))
    assert sent[0]["status"] == 503
    assert json.loads(body_of(sent))["errors"][0]["code"] == "UNAVAILABLE"
    assert all(file.closed for file in opened)
    assert bridge.spooled == 0
    assert ["No space left" in record.getMessage() for record in caplog.records] == [True]
    assert caplog.records[0].exc_info is None
    assert len(body_of(asyncio.run(exchange(bridge, *parts, part(b"", False))))) == 400


def test_slow_clients_take_no_thread() -> None:
    bridge = WSGIBridge(echo, threads=1)

    async def never(message: Any) -> None:
        await asyncio.Event().wait()

    async def run() -> list[Any]:
        slow = [asyncio.create_task(exchange(bridge, part(b"x" * 2 * MIB))) for _ in range(3)]
        for _ in range(3):
            exchanged = exchange(bridge, part(b"x", False), send=never)
            slow.append(asyncio.create_task(exchanged))
        await asyncio.sleep(0.05)
        answer = await asyncio.wait_for(exchange(bridge, part(b"quick", False)), 5)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return answer

    assert body_of(asyncio.run(run())) == b"quick"
    assert bridge.spooled == 0


# What goes out.


def test_response_is_made_no_faster_than_it_is_read() -> None:
    app = Streamed(*[b"block", b""] * 20)  # an empty block is not the end
    ahead = []

    async def slow(message: dict[str, Any]) -> None:
        await asyncio.sleep(0.001)
        ahead.append(app.made - sum(bool(other.get("body")) for other in sent))
        sent.append(message)

    sent: list[Any] = []
    assert body_of(asyncio.run(exchange(WSGIBridge(app), send=slow))) == b"block" * 20
    assert max(ahead) == 1
    assert app.closed == 1


@pytest.mark.parametrize("tells", ["by a message", "by an error"])
def test_response_to_a_client_that_leaves_is_closed(tells: str) -> None:
    app = Streamed(*[b"block"] * 1000)

    async def send(message: dict[str, Any]) -> None:
        if tells == "by an error" and app.made == 3:
            raise BrokenPipeError

    messages = [part(b"", False), *([GONE] if tells == "by a message" else [])]
    asyncio.run(exchange(WSGIBridge(app), *messages, send=send))
    assert app.made <= 3
    assert app.closed == 1


def fail(environ: Any, start_response: Any) -> Any:
    raise KeyError("mine")


def start_twice(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [])
    start_response("200 OK", [])


@pytest.mark.parametrize(
    ("app", "error", "count"),
    [
        (fail, KeyError, 0),
        (lambda environ, start_response: [b"a"], RuntimeError, 0),
        (start_twice, RuntimeError, 0),
        (Streamed(KeyError("mine"), b"a"), KeyError, 0),
        (Streamed(b"a", KeyError("mine")), KeyError, 2),
        (Streamed(b"a", on_close=KeyError("mine")), KeyError, 3),
    ],
)
def test_exception_reaches_the_server(app: Any, error: type[Exception], count: int) -> None:
    """So that it can answer with a 500 if nothing has been sent, or else close the connection."""
    bridge, sent = WSGIBridge(app), []  # type: ignore[var-annotated]
    with pytest.raises(error):
        asyncio.run(exchange(bridge, part(b"x" * 3 * MIB, False), sent=sent))
    assert len(sent) == count
    assert getattr(app, "closed", 1) == 1
    assert bridge.spooled == 0


def test_error_replaces_the_response_until_it_is_sent() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("X-A", "1")])
        try:
            raise KeyError("mine")
        except KeyError as error:
            info = type(error), error, error.__traceback__
        start_response("503 Service Unavailable", [("X-B", "2")], info)
        yield b"sorry"
        start_response("500 Internal Server Error", [], info)

    sent: list[Any] = []
    with pytest.raises(KeyError, match="mine"):
        asyncio.run(exchange(WSGIBridge(app), sent=sent))
    assert sent[0] == {"type": "http.response.start", "status": 503, "headers": [(b"x-b", b"2")]}
    assert body_of(sent) == b"sorry"


@pytest.mark.parametrize("is_gone", [False, True])
def test_written_blocks_are_sent_before_returned_blocks(is_gone: bool) -> None:
    stopped = threading.Event()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        try:
            for _ in range(10_000 if is_gone else 2):
                write(b"written")
        except ConnectionResetError:
            stopped.set()
        return [b"returned"]

    messages = [part(b"", False), *[GONE] * is_gone]
    sent = asyncio.run(exchange(WSGIBridge(app), *messages))
    assert stopped.is_set() == is_gone
    if not is_gone:
        blocks = [message.get("body") for message in sent]
        assert blocks == [None, b"written", b"written", b"returned", b""]


def test_response_is_closed_only_when_its_last_step_is_over() -> None:
    """A server that shuts down cancels requests in progress."""
    begun, may_go_on = threading.Event(), threading.Event()
    order = []

    class App(Streamed):
        def __iter__(self) -> Iterator[bytes]:
            begun.set()
            may_go_on.wait(5)
            order.append("step")
            yield b"a"

        def close(self) -> None:
            order.append("close")

    async def run() -> None:
        task = asyncio.create_task(exchange(WSGIBridge(App(), threads=2)))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0.02)
        assert order == []
        may_go_on.set()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert order == ["step", "close"]


def test_steps_of_a_request_share_a_context_of_their_own() -> None:
    variable = contextvars.ContextVar("variable", default="")

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        assert variable.get() == ""
        variable.set(environ["PATH_INFO"])
        start_response("200 OK", [])
        for _ in range(5):
            yield variable.get().encode()

    async def run() -> list[Any]:
        bridge = WSGIBridge(app, threads=3)
        paths = [f"/{number}" for number in range(10)]
        answers = await asyncio.gather(*[exchange(bridge, scope=scope_of(path)) for path in paths])
        return list(zip(paths, answers, strict=True))

    for path, sent in asyncio.run(run()):
        assert body_of(sent).decode() == path * 5


@pytest.mark.parametrize(
    ("kind", "received", "answered"),
    [
        ("lifespan", ["startup", "shutdown"], ["startup.complete", "shutdown.complete"]),
        ("websocket", ["connect"], ["close"]),
    ],
)
def test_other_kinds_of_scope(kind: str, received: list[str], answered: list[str]) -> None:
    messages = [{"type": f"{kind}.{step}"} for step in received]
    sent = asyncio.run(exchange(WSGIBridge(fail), *messages, scope={"type": kind}))
    assert sent == [{"type": f"{kind}.{step}"} for step in answered]


# In uvicorn.


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    """Host and port of a registry in memory, behind the bridge, served in this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = WSGIBridge(make_registry(MemoryStorage()))
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield "{}:{}".format(*listener.getsockname()[:2])
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def location(registry: str) -> str:
    """The path of an upload."""
    return requests.post(f"http://{registry}/v2/a/blobs/uploads/").headers["Location"]


def test_chunked_push_and_pull(registry: str, location: str) -> None:
    url, content = f"http://{registry}", b"0123456789" * 300_000
    blocks = (content[at : at + 100_000] for at in range(0, len(content), 100_000))
    chunk = requests.patch(url + location, data=blocks)
    assert chunk.request.headers["Transfer-Encoding"] == "chunked"
    assert (chunk.status_code, chunk.headers["Range"]) == (202, f"0-{len(content) - 1}")
    query = {"digest": digest_of(content)}
    assert requests.put(url + chunk.headers["Location"], params=query).status_code == 201
    blob = f"{url}/v2/a/blobs/{digest_of(content)}"
    assert requests.get(blob).content == content
    assert requests.head(blob).headers["Content-Length"] == str(len(content))


@pytest.mark.parametrize(
    "frame",
    [
        b"Transfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n",
        b"Content-Length: 9000000\r\n\r\n" + b"x" * 8_000_000,
    ],
    ids=["between chunks", "large"],
)
def test_chunk_that_is_cut_short_leaves_no_trace(
    registry: str, location: str, frame: bytes
) -> None:
    with socket.create_connection(address_of(registry)) as client:
        client.sendall(f"PATCH {location} HTTP/1.1\r\nHost: h\r\n".encode() + frame)
    time.sleep(0.05)
    status = requests.get(f"http://{registry}{location}")
    assert (status.status_code, status.headers["Range"]) == (204, "0-0")


# The program.


@pytest.mark.slow
def test_large_blob_takes_little_memory_both_ways(tmp_path: Path) -> None:
    count, block = 96, b"0123456789abcdef" * 65536
    digest = digest_of(block * count)
    with example("asgi", tmp_path / "log", "--storage", str(tmp_path / "data")) as host:
        url = f"http://{host}/v2/a/blobs"
        before = peak_of(host)
        location = requests.post(f"{url}/uploads/").headers["Location"]
        blocks = (block for _ in range(count))
        pushed = requests.put(f"http://{host}{location}", blocks, params={"digest": digest})
        assert pushed.status_code == 201
        with requests.get(f"{url}/{digest}", stream=True, timeout=60) as response:
            time.sleep(0.5)  # in which the server could read all of it
            assert digest_of(response.content) == digest
        assert peak_of(host) - before < 48 * MIB
