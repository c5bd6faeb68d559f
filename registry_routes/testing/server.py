"""The server of a test's registry: HTTP or TLS on 127.0.0.1, in threads of this process."""

import logging
import re
import socket
import ssl
import threading
import time
from contextlib import suppress
from io import BufferedIOBase, RawIOBase
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from werkzeug.serving import DechunkedInput, ThreadedWSGIServer, WSGIRequestHandler

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication, WSGIEnvironment

__all__ = ["Server"]

_log = logging.getLogger(__name__)

_HOST = "127.0.0.1"

_HANDSHAKE = 10  # seconds that a client has for the TLS handshake
_LINGER = 1  # seconds for which a refused client may continue sending
_STOP = 5  # seconds that the application has to finish its requests when the server stops


class Server:
    """A server of a WSGI application, until `stop`.

    With port 0, it opens its socket when `host` is first read.
    """

    def __init__(
        self, app: "WSGIApplication", port: int = 0, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.app = app
        self.ssl_context = ssl_context
        self.connections: dict[threading.Thread, socket.socket] = {}
        self.stopping: threading.Event = threading.Event()
        self._server: _WSGIServer | None = None
        self._accepting: threading.Thread | None = None
        self._lock = threading.Lock()
        if port:
            self._start(port)

    @property
    def host(self) -> str:
        """The host and the port."""
        with self._lock:
            server = self._server or self._start(0)
            return f"{_HOST}:{server.port}"

    @property
    def is_listening(self) -> bool:
        """Whether the server has a port: it was given, or `host` was read."""
        return self._server is not None

    def _start(self, port: int) -> "_WSGIServer":
        if self.stopping.is_set():
            raise RuntimeError("the registry has stopped without ever having a port")

        # Werkzeug itself would end the process if the port were taken.
        with socket.create_server((_HOST, port), backlog=128) as listener:
            server = _WSGIServer(_HOST, port, self.app, _Handler, fd=listener.fileno())
        server.owner = self
        self._server = server
        self._accepting = threading.Thread(target=self._accept, args=[server], daemon=True)
        self._accepting.start()
        return server

    def _accept(self, server: "_WSGIServer") -> None:
        while not self.stopping.is_set():
            server.handle_request()  # accepts a connection, and starts its thread
            for thread in list(self.connections):
                if not thread.is_alive():
                    del self.connections[thread]

    def stop(self) -> None:
        """Close all connections, and wait for their threads."""
        with self._lock:
            self.stopping.set()
        if self._server is None or self._accepting is None:
            return
        socket.create_connection((_HOST, self._server.port)).close()  # wakes up `_accept`
        self._accepting.join()
        self._server.server_close()
        deadline = time.monotonic() + _STOP
        for thread, connection in self.connections.copy().items():
            close_both_ways(connection)
            thread.join(max(deadline - time.monotonic(), 0))


class _WSGIServer(ThreadedWSGIServer):
    owner: Server

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.owner.stopping.is_set():
            self.shutdown_request(request)
            return
        arguments = request, client_address
        thread = threading.Thread(target=self.process_request_thread, args=arguments, daemon=True)
        self.owner.connections[thread] = request  # before it runs, so that `stop` waits for it
        thread.start()


_shutdown = socket.socket.shutdown  # a suite may replace `socket.socket`


def close_both_ways(connection: socket.socket) -> None:
    """Shut a connection down, so that no thread waits for its client any longer."""
    with suppress(OSError):
        # The method of an SSLSocket would drop the TLS state that another thread is using.
        _shutdown(connection, socket.SHUT_RDWR)


_REQUEST_LINE = re.compile(rb"[!-~]+ ([!-~\x80-\xff]+) HTTP/[0-9]\.[0-9]\r?\n")

_TLS_HANDSHAKE = b"\x16"  # the first byte of a ClientHello (RFC 8446, section 5.1)


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    default_request_version = "HTTP/1.1"
    """The version for malformed requests, so that their answers also have a status line: docker and
    containerd try TLS first, and continue without it if the answer begins with ``HTTP/``."""

    @property
    def owner(self) -> Server:
        return cast(_WSGIServer, self.server).owner

    def setup(self) -> None:
        if self.owner.ssl_context is not None:
            # The handshake comes later, in this connection's own thread.
            self.request = self.owner.ssl_context.wrap_socket(
                self.request, server_side=True, do_handshake_on_connect=False
            )
        super().setup()
        self.owner.connections[threading.current_thread()] = self.connection
        if self.owner.stopping.is_set():
            close_both_ways(self.connection)

    def finish(self) -> None:
        super().finish()
        if isinstance(self.connection, ssl.SSLSocket):
            with suppress(OSError, ValueError):
                self.connection.settimeout(0)  # send the close_notify, but wait for no answer
                self.connection.unwrap()
            self.connection.close()

    def handle(self) -> None:
        if isinstance(self.connection, ssl.SSLSocket):
            try:
                self.connection.settimeout(_HANDSHAKE)
                self.connection.do_handshake()
                self.connection.settimeout(None)
            except (OSError, ValueError) as error:
                _log.info("the TLS handshake failed: %s", error)
                return
        super().handle()

    def handle_one_request(self) -> None:
        if not isinstance(self.connection, ssl.SSLSocket) and (
            # Look at the first byte only: a TLS client may never send the end of a line.
            self.connection.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE
        ):
            self.raw_requestline = b""
            self._refuse("this registry speaks HTTP without TLS")
        else:
            super().handle_one_request()

    def parse_request(self) -> bool:
        if self.raw_requestline in (b"\r\n", b"\n"):  # RFC 9112, section 2.2
            self.raw_requestline = self.rfile.readline(65537)
        found = _REQUEST_LINE.fullmatch(self.raw_requestline)
        if not found or not _is_url(found[1].decode("latin-1")):
            return self._refuse("the request line is malformed")
        if not super().parse_request():
            return False
        self.expected = self.headers.get("Expect")
        del self.headers["Expect"]  # Werkzeug would send "100 Continue" even before a refusal
        if self.request_version < "HTTP/1.1":
            self.protocol_version = "HTTP/1.0"  # Werkzeug then sends no chunks
        return True

    def _refuse(self, message: str) -> bool:
        self.requestline = self.raw_requestline.decode("latin-1").rstrip("\r\n")
        self.command = self.request_version = ""
        self.close_connection = True
        self.send_error(400, message)
        return False

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        super().send_error(code, message, explain)
        # Closing a connection while the client still sends would reset it, and lose the answer.
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER)
            for _ in range(100):
                if not self.connection.recv(65536):
                    break

    def handle_expect_100(self) -> bool:
        return True  # `_Body` sends it

    def make_environ(self) -> "WSGIEnvironment":
        environ = super().make_environ()
        if self.owner.ssl_context is not None:
            environ["wsgi.url_scheme"] = "https"
        if self.expected is not None:
            environ["HTTP_EXPECT"] = self.expected
        chunked = bool(environ.get("wsgi.input_terminated"))
        body = _Body(self, self.rfile, chunked)
        environ["wsgi.input"] = DechunkedInput(body) if chunked else body  # type: ignore[arg-type]
        return environ

    def continue_if_expected(self) -> None:
        """Send "100 Continue" to a client that expects it before it sends the body."""
        expected, self.expected = self.expected, None
        if (expected or "").strip().lower() == "100-continue" and self.request_version > "HTTP/1.0":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def send_response(self, code: int, message: str | None = None) -> None:
        self.expected = None
        super().send_response(code, message)

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        self.close_connection = True  # otherwise the thread would wait for the next request

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.log("info", "%r %s", self.requestline, code)

    def log(self, type: str, message: str, *args: Any) -> None:
        _log.info(message, *args)


def _is_url(target: str) -> bool:
    try:
        urlsplit(target)
    except ValueError:
        return False
    return True


class _Body(RawIOBase):
    """The body of a request, as ``wsgi.input``.

    A client that expects "100 Continue" gets it at the first read. Inside a chunk, the end of the
    input is an error; Werkzeug would pad the truncated chunk.
    """

    def __init__(self, handler: _Handler, file: BufferedIOBase, chunked: bool) -> None:
        self.handler = handler
        self.file = file
        self.chunked = chunked

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.handler.continue_if_expected()
        size = self.file.readinto(buffer)
        if self.chunked and size < len(memoryview(buffer)):
            raise ConnectionResetError("the client has closed the connection amid a chunk")
        return size
