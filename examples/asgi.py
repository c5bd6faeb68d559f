"""A WSGI application in an ASGI server: the example registry in uvicorn.

    python examples/asgi.py --port 5003 --storage ./registry-data

`WSGIBridge` is for a registry, whose requests and responses are large. It reads the whole body of a
request before it calls the application, and writes bodies over a mebibyte to a temporary file. So a
client that is slow or disconnects takes up no thread and leaves no trace, and every body has a
length, even with ``Transfer-Encoding: chunked``. It sends a response block by block, as fast as the
client reads it.
"""

import argparse
import asyncio
import contextvars
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import uvicorn
from object_storage import one_line
from registry import make_app
from storage import check_place, storage_at

from registry_routes import error_response, errors

log = logging.getLogger(__name__)

MAX_IN_MEMORY = 1024 * 1024  # bytes of a body to keep in memory
GIB = 1024**3

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
T = TypeVar("T")


class WSGIBridge:
    """A WSGI application as an ASGI application.

    The application must be thread-safe. Several threads may serve one request, one after the other,
    in the same `contextvars.Context`.

    :param app: the WSGI application.
    :param threads: how many requests the application works on at the same time. A client that sends
        or reads slowly does not take up a thread.
    :param disk: how many bytes of request bodies may be on disk at the same time, in the directory
        of `tempfile` (``TMPDIR``). A request that exceeds this limit, or finds the disk full, gets
        a 503.
    """

    def __init__(self, app: Any, *, threads: int = 64, disk: int = 64 * GIB) -> None:
        self.app = app
        self.disk = disk
        self.spooled = 0  # bytes of bodies on disk
        self.pool = ThreadPoolExecutor(threads, "wsgi")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in "startup", "shutdown":
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await _Exchange(self, scope, send).run(receive)


class _Exchange:
    """A request and its response."""

    def __init__(self, bridge: WSGIBridge, scope: Scope, send: Send) -> None:
        self.bridge = bridge
        self.scope = scope
        self.send = send
        self.loop = asyncio.get_running_loop()
        self.context = contextvars.copy_context()
        self.lock = threading.Lock()  # one step at a time, each in a thread
        self.body = SpooledTemporaryFile(MAX_IN_MEMORY)  # noqa: SIM115 - closed by `_close`
        self.length = 0  # of the body
        self.spooled = 0  # bytes of the body on disk
        self.is_refused = False
        self.start: Message | None = None
        self.has_started = False
        self.is_gone = False
        self.response: Iterable[bytes] = ()
        self.blocks: Iterator[bytes] = iter(())

    async def run(self, receive: Receive) -> None:
        try:
            rest = await self._spool(receive)
            if rest is None:
                return  # the client has disconnected
            listener = asyncio.create_task(self._listen(receive))
            try:
                block = await self._in_thread(lambda: self._begin(rest))
                while not self.is_gone:
                    await self._send_block(block, more=bool(block))
                    if not block or self.is_gone:
                        break
                    block = await self._in_thread(self._next)
            finally:
                listener.cancel()
        finally:
            try:
                await self._in_thread(self._close)
            finally:
                self.bridge.spooled -= self.spooled  # in the event loop, as this is not atomic

    async def _in_thread(self, step: Callable[[], T]) -> T:
        def run_alone() -> T:
            with self.lock:  # after the server cancels the request, its last step may still run
                return self.context.run(step)

        return await self.loop.run_in_executor(self.bridge.pool, run_alone)

    async def _spool(self, receive: Receive) -> bytes | None:
        """Read the body into the file, except its last part. Return that part.

        Return `None` if the client has disconnected.
        """
        waiting = bytearray()
        is_whole = False
        while not is_whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            waiting += message.get("body", b"")
            is_whole = not message.get("more_body", False)
            self.length += len(message.get("body", b""))
            if len(waiting) > MAX_IN_MEMORY:
                block = bytes(waiting)
                waiting.clear()
                await self._store(block)
        return bytes(waiting)

    async def _store(self, block: bytes) -> None:
        """Write a block to the file, unless there is too much on disk already."""
        if self.bridge.spooled + len(block) > self.bridge.disk:
            self.is_refused = True
        if not self.is_refused:
            self.spooled += len(block)
            self.bridge.spooled += len(block)
            await self._in_thread(lambda: self._write_body(block))

    async def _listen(self, receive: Receive) -> None:
        # After the body, only a disconnect can come.
        self.is_gone = (await receive())["type"] == "http.disconnect"

    async def _send_block(self, block: bytes, *, more: bool) -> None:
        if self.start is None:
            raise RuntimeError("the WSGI application did not call start_response")
        has_started, self.has_started = self.has_started, True
        try:
            if not has_started:
                await self.send(self.start)
            await self.send({"type": "http.response.body", "body": block, "more_body": more})
        except OSError:  # some servers raise it if the client has disconnected
            self.is_gone = True

    # These run in a thread.

    def _write_body(self, block: bytes, *, is_last: bool = False) -> None:
        """Write a part of the body; after the last part, go back to the beginning.

        If writing fails, refuse the request, and free the disk for others at once.
        """
        try:
            self.body.write(block)
            if is_last:
                self.body.seek(0)  # this also flushes the file's buffer
        except OSError as error:
            self.is_refused = True
            log.error("cannot write a request body to a temporary file: %s", one_line(error))
            self._close_body()

    def _close_body(self) -> None:
        with suppress(OSError):  # the buffer cannot be flushed, but the file is closed
            self.body.close()

    def _begin(self, rest: bytes) -> bytes:
        """Call the application, and return the first block of the response."""
        environ = environ_of(self.scope)
        app = self.bridge.app
        declared = environ.get("CONTENT_LENGTH") or str(self.length)
        is_whole = declared.lstrip("0") == str(self.length).lstrip("0")
        if is_whole and not self.is_refused:
            self._write_body(rest, is_last=True)
        if self.is_refused:
            app = error_response(errors.Unavailable("no room for the body", retry_after=10))
        elif not is_whole:
            app = error_response(errors.SizeInvalid("the body differs from its Content-Length"))
        environ["CONTENT_LENGTH"] = str(self.length)
        environ["wsgi.input"] = self.body
        self.response = app(environ, self._start_response)
        self.blocks = iter(self.response)
        return self._next()

    def _next(self) -> bytes:
        """Return the next block of the response, or an empty block at the end."""
        return next(filter(None, self.blocks), b"")

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info and self.has_started:
            raise exc_info[1]
        if self.start is not None and not exc_info:
            raise RuntimeError("the application called start_response twice, without exc_info")
        self.start = {
            "type": "http.response.start",
            "status": int(status[:3]),
            "headers": [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
            ],
        }
        return self._write

    def _write(self, block: bytes) -> None:
        if self.is_gone:
            raise ConnectionResetError("the client has disconnected")
        asyncio.run_coroutine_threadsafe(self._send_block(block, more=True), self.loop).result()

    def _close(self) -> None:
        try:
            getattr(self.response, "close", lambda: None)()
        finally:
            self._close_body()


def environ_of(scope: Scope) -> dict[str, Any]:
    """Return the WSGI environ of an ASGI request, without its body (PEP 3333)."""
    raw = unquote_to_bytes(scope.get("raw_path") or b"")
    # "raw_path" keeps bytes that are not UTF-8, but need not agree with "path".
    is_raw = raw.decode(errors="replace") == scope["path"]
    path = raw if is_raw else scope["path"].encode(errors="replace")
    root = scope.get("root_path", "").rstrip("/").encode()
    if f"{path.decode('latin-1')}/".startswith(f"{root.decode('latin-1')}/"):
        path = path[len(root) :]
    host, port = scope.get("server") or ("localhost", 80)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root.decode("latin-1"),
        "PATH_INFO": path.decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or 0),  # a Unix socket has no port
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if scope.get("client"):
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = map(str, scope["client"])
    for raw_name, raw_value in scope["headers"]:
        if b"_" in raw_name or raw_name == b"transfer-encoding":
            continue  # "x_y" would look like "x-y", and the body has been decoded
        name = raw_name.decode("latin-1").upper().replace("-", "_")
        key = name if name in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{name}"
        value = raw_value.decode("latin-1")
        between = "; " if key == "HTTP_COOKIE" else ","
        environ[key] = f"{environ[key]}{between}{value}" if key in environ else value
    return environ


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A container registry in uvicorn.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", default=5003, type=int, help="the port")
    parser.add_argument("--storage", default="./registry-data", help="as in registry.py")
    options = parser.parse_args()
    check_place(parser, options.storage)
    app = WSGIBridge(make_app(storage_at(options.storage)))
    uvicorn.run(app, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
