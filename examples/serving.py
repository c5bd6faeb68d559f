"""The server of the examples: gunicorn, with options, a log, and limits for slow clients.

Each request takes up a thread until it is answered, so clients that are slow on purpose can use up
all threads. nginx in front, with `nginx.conf`, buffers their requests and responses.

SIGTERM ends the server when the current requests are done, or after ten seconds. SIGHUP starts new
workers with the same options. SIGUSR2 starts a new program on the same socket, for an upgrade
without downtime, as gunicorn's documentation describes.
"""

import argparse
import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import ThreadWorker
from metrics import OBSERVE
from werkzeug.middleware.proxy_fix import ProxyFix

from registry_routes.registry import BLOCK

log = logging.getLogger(__name__)

LEAST_RATE = 500  # bytes a second that a client must send on average, once its patience is used up
LINGER = 2  # seconds that a client has to close the connection after an answer
MAX_UNREAD = 256 * 1024 * 1024  # bytes to read of a body that the application left unread
# Like gunicorn's, with two differences: the length is that of the header, as gunicorn does not
# count the bytes that the kernel sends; and the seconds that the request took come last.
ACCESS_LOG = '%(h)s - - %(t)s "%(r)s" %(s)s %({content-length}o)s "%(a)s" %(L)s'
MAX_PATIENCE = 24 * 60 * 60  # seconds


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, configured by the options of a command line.

    It listens at once, and ends the program with status 2 if it cannot listen.

    :param make: a function that makes the application in each worker, because a store must not
        outlive a fork.
    :param options: the options of `add_server_options`.
    :param greeting: a text to print once the server is ready; "{host}" becomes its host and port.
    """

    def __init__(self, make: Callable[[], Any], options: argparse.Namespace, greeting: str) -> None:
        self.make = make
        self.options = options
        self.greeting = greeting
        # After SIGUSR2, gunicorn has the socket of the previous program.
        is_upgrade = "GUNICORN_FD" in os.environ
        self.bind = [] if is_upgrade else f"fd://{_listen(options).detach()}"
        super().__init__()

    def load_config(self) -> None:
        settings = {
            "bind": self.bind,
            "workers": self.options.workers,
            "worker_class": Worker,
            "threads": self.options.threads,
            # Idle connections take up no thread; gunicorn demands more connections than threads.
            "worker_connections": 1000 + self.options.threads,
            "logger_class": Log,
            "accesslog": "-",
            "access_log_format": ACCESS_LOG,
            "graceful_timeout": 10,
            "limit_request_line": 8190,
            # By default, gunicorn believes any client on this machine about scheme and path.
            "forwarded_allow_ips": "",
            "when_ready": self.greet,
        }
        if "control_socket_disable" in self.cfg.settings:  # all servers would share it, in $HOME
            settings["control_socket_disable"] = True
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter(Log.error_fmt, Log.datefmt))
        logging.basicConfig(handlers=[handler])  # for the package's warnings and errors
        try:
            app = self.make()
        except OSError as error:
            log.error("cannot start a worker: %s", error)
            raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from None
        if self.options.behind_proxy:
            app = ProxyFix(app, x_for=1, x_proto=1)  # the proxy passes the Host on unchanged

        def read_all(environ: Any, start_response: Any) -> Any:
            response = app(environ, start_response)
            # A client that is still sending might miss an early answer.
            with suppress(OSError, ParseException):
                for _ in range(MAX_UNREAD // BLOCK):
                    if not environ["wsgi.input"].read(BLOCK):
                        break
            return response

        return read_all

    def greet(self, server: Any) -> None:
        host, port = server.LISTENERS[0].getsockname()[:2]
        print(self.greeting.replace("{host}", _join_address(host, port)), flush=True)


def _join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(options: argparse.Namespace) -> socket.socket:
    """Listen on the host and port in the options, and return the socket."""
    is_v6 = ":" in options.host
    try:
        listener = socket.create_server(
            (options.host, options.port),
            family=socket.AF_INET6 if is_v6 else socket.AF_INET,
            dualstack_ipv6=is_v6 and socket.has_dualstack_ipv6(),
            backlog=2048,
        )
    except (OSError, UnicodeError) as error:
        _end(f"cannot listen on {_join_address(options.host, options.port)}: {error}")
    return listener


def _end(message: str) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


# Slow clients.


class Connection(socket.socket):
    """A connection that raises `TimeoutError` if its client is too slow.

    A client may be silent for `patience` seconds in total. Each `LEAST_RATE` bytes that it sends
    earn it another second. A response may stall for `patience` seconds.
    """

    patience: float
    left: float
    """The seconds that the client may still be silent."""

    def begin(self, patience: float) -> None:
        """Begin a request, with all of the patience."""
        self.patience = self.left = patience

    def recv(self, *args: Any) -> bytes:
        before, begun = self.gettimeout(), time.monotonic()
        self.settimeout(self.left if before is None else min(self.left, before))
        received = b""
        try:
            received = super().recv(*args)
        finally:
            self.settimeout(before)
            left = self.left - (time.monotonic() - begun) + len(received) / LEAST_RATE
            self.left = min(max(left, 0.001), self.patience)  # 0 would mean non-blocking
        return received

    def sendall(self, data: Any, *args: Any) -> None:
        with memoryview(data) as whole:
            sent = 0
            while sent < len(whole):  # the timeout of Python's sendall covers all data at once
                sent += self.send(whole[sent:], *args)

    def end(self) -> None:
        """Close the connection when the client has read everything, or after `LINGER` seconds."""
        end = time.monotonic() + LINGER
        with suppress(OSError):
            self.shutdown(socket.SHUT_WR)
            while (left := end - time.monotonic()) > 0:
                self.settimeout(left)
                if not super().recv(65536):
                    break
        with suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)


class Worker(ThreadWorker):  # type: ignore[misc]
    """A worker of gunicorn whose connections do not wait for slow clients."""

    def handle(self, conn: Any) -> Any:
        if not isinstance(conn.sock, Connection):
            conn.sock = Connection(fileno=conn.sock.detach())
        conn.sock.begin(self.app.options.patience)
        goes_on = super().handle(conn)
        if not goes_on:  # gunicorn would wait for the end in the loop that serves all connections
            conn.sock.end()
        return goes_on

    def handle_request(self, req: Any, conn: Any) -> Any:
        conn.sock.settimeout(conn.sock.patience)
        return super().handle_request(req, conn)


# The log. It escapes text from clients, which could move a terminal's cursor or fake a line.


class _Atoms(dict[str, Any]):
    """The values for the access log, escaped as in a JSON string."""

    def __getitem__(self, name: str) -> str:
        return json.dumps(str(self.get(name, "-")))[1:-1]


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return _printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(_printable, super().formatException(ei).split("\n")))


def _printable(text: str) -> str:
    return re.sub("[^ -~]", lambda found: found[0].encode("unicode_escape").decode(), text)


class Log(Logger):  # type: ignore[misc]
    """gunicorn's log, in printable ASCII, with one line for each request."""

    atoms_wrapper_class = _Atoms

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for logger, form in (self.error_log, self.error_fmt), (self.access_log, self.access_fmt):
            for handler in logger.handlers:
                handler.setFormatter(_Formatter(form, self.datefmt))

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        super().access(resp, req, environ, request_time)
        if OBSERVE in environ:
            environ[OBSERVE](resp.status_code, request_time)

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        error = sys.exception()
        if isinstance(error, TimeoutError):
            self.info("a client was too slow")
        elif isinstance(error, OSError):  # the storage failed after the response had begun
            self.error("a response was cut short: %s", " ".join(str(error).split()))
        else:
            super().exception(msg, *args, **kwargs)


# The options.


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports each error in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        options = super().parse_args(*args, **kwargs)
        if options.workers > 1 and getattr(options, "storage", "").startswith("memory:"):
            self.error("several workers cannot share memory://")
        return options


def _limit(kind: Callable[[str], float], least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} must be from {least} to {most}")
        return value

    parse.__name__ = kind.__name__  # for argparse's error messages
    return parse


def add_server_options(parser: argparse.ArgumentParser, port: int, *, storage: bool = True) -> None:
    """Add the options of a `Server` to a command line, and `storage` for its application."""
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument(
        "--port", default=port, type=_limit(int, 0, 65535), help="the port; 0 takes a free one"
    )
    if storage:
        parser.add_argument(
            "--storage",
            default="./registry-data",
            help="a directory, or memory://, s3://bucket/prefix, gs://…, az://…",
        )
    parser.add_argument(
        "--workers", default=1, type=_limit(int, 1, 1000), help="processes that serve"
    )
    parser.add_argument(
        "--threads",
        default=512,
        type=_limit(int, 1, 10_000),
        help="requests that each worker serves at once",
    )
    parser.add_argument(
        "--patience",
        default=60,
        type=_limit(float, 0.1, MAX_PATIENCE),
        help="seconds that a client may be silent in total; each "
        f"{LEAST_RATE} bytes that it sends earn it another second",
    )
    parser.add_argument(
        "--behind-proxy",
        action="store_true",
        help="trust X-Forwarded-For and X-Forwarded-Proto from a proxy in front, which all "
        "requests must pass through",
    )
