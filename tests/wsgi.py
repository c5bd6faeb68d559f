"""A request target, as a WSGI server hands it to an application."""

from typing import Any
from urllib.parse import unquote_to_bytes


def environ_for(target: str, method: str = "GET", **more: Any) -> dict[str, Any]:
    """The environ of a request for `target`, the raw path and query of a request line."""
    path, _, query = target.partition("?")
    return {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query.encode().decode("latin-1"),
        "SERVER_NAME": "registry.example",
        "SERVER_PORT": "80",
        "HTTP_HOST": "registry.example",
        "wsgi.url_scheme": "http",
        **more,
    }


def decoded_path(target: str) -> str:
    """The path of `target` as an application sees it."""
    return unquote_to_bytes(target.partition("?")[0]).decode(errors="replace")


def other_ending(path: str) -> str:
    """`path` without its trailing slash, or with one if it has none."""
    return path[:-1] if path.endswith("/") else f"{path}/"
