"""The server of the examples, gunicorn, and the options that it takes."""

import argparse
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.http.errors import ParseException

from registry_routes.registry import BLOCK

MAX_UNREAD = 256 * 1024 * 1024  # of a body that nobody wanted


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, set up by the options of a command line.

    :param make: makes the application, in each worker: a store must not outlive a fork.
    :param options: those of `server_options`.
    :param greeting: what is printed when it listens, with "{host}" for where.
    """

    def __init__(self, make: Callable[[], Any], options: argparse.Namespace, greeting: str) -> None:
        if options.workers > 1 and options.storage.startswith("memory:"):
            raise SystemExit("memory:// cannot be shared by several workers")
        self.make = make
        self.options = options
        self.greeting = greeting
        super().__init__()

    def load_config(self) -> None:
        settings = {
            "bind": f"{self.options.host}:{self.options.port}",
            "workers": self.options.workers,
            "worker_class": "gthread",
            "threads": self.options.threads,
            "accesslog": "-",
            # As by default, but for the length: gunicorn does not count what the kernel sends.
            "access_log_format": '%(h)s - - %(t)s "%(r)s" %(s)s %({content-length}o)s "%(a)s"',
            "graceful_timeout": 10,
            "limit_request_line": 8190,
            "when_ready": self.greet,
        }
        if "control_socket_disable" in self.cfg.settings:  # one for all, in the home directory
            settings["control_socket_disable"] = True
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        app = self.make()

        def patient(environ: Any, start_response: Any) -> Any:
            environ["gunicorn.socket"].settimeout(self.options.patience)
            response = app(environ, start_response)
            # A client that is still sending would not see an answer that comes before it is done.
            with suppress(OSError, ParseException):
                for _ in range(MAX_UNREAD // BLOCK):
                    if not environ["wsgi.input"].read(BLOCK):
                        break
            return response

        return patient

    def greet(self, server: Any) -> None:
        # Connections take this over: gunicorn waits for a request's headers without end.
        seconds, fraction = divmod(self.options.patience, 1)
        timeout = struct.pack("ll", int(seconds), int(fraction * 1e6))
        for listener in server.LISTENERS:
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        host = "{}:{}".format(*server.LISTENERS[0].getsockname()[:2])
        print(self.greeting.format(host=host), flush=True)


def server_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Add what a `Server` needs to a command line."""
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", default=port, type=int, help="the port; 0 takes a free one")
    parser.add_argument(
        "--storage",
        default="./registry-data",
        help="a directory, or memory://, s3://bucket/prefix, gs://…, az://…",
    )
    parser.add_argument("--workers", default=1, type=int, help="processes that serve")
    parser.add_argument("--threads", default=16, type=int, help="requests at once in each of them")
    parser.add_argument(
        "--patience", default=60, type=float, help="seconds that a client may be silent"
    )
