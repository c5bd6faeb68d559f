"""An application whose responses are wrong, for real servers. It imports no test library."""

import tempfile
from collections.abc import Callable
from typing import Any

from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from registry_routes import RegistryApp, RegistryRequest, errors
from registry_routes.registry import Blob, BlobFile
from registry_routes.registry.views import blob_response

CONTENT = bytes(range(256)) * 1200


def _fail(error: Exception) -> Any:
    raise error


def _of_lengths(*lengths: str) -> Callable[[], Response]:
    return lambda: Response(["abc"], headers=[("Content-Length", length) for length in lengths])


#: Responses that a server cannot send, each at the path of an extension.
BAD_RESPONSES: dict[str, Callable[[], Response]] = {
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
    "error": lambda: _fail(errors.Denied(headers=[("X\n", "a")])),
    "carried": lambda: _fail(NotFound(response=Response(headers={"X": "ж"}))),
    "length-in-words": _of_lengths("abc"),
    "length-in-a-list": _of_lengths("3, 3"),
    "length-empty": _of_lengths(""),
    "length-negative": _of_lengths("-1"),
    "length-signed": _of_lengths("+3"),
    "length-twice": _of_lengths("3", "3"),
    "length-different": _of_lengths("3", "4"),
    "length-of-another-alphabet": _of_lengths("\xb2"),
}

app = RegistryApp()


@app.view("extension")
def respond_badly(request: RegistryRequest, module: str, **values: str) -> Response:
    return BAD_RESPONSES[module]()


@app.view("blob-upload")
def measure(request: RegistryRequest, name: str) -> Response:
    return Response(f"{len(request.get_data())} bytes")


@app.view("blob", "GET")
def send_file(request: RegistryRequest, name: str, digest: str) -> Response:
    def read(start: int, end: int) -> BlobFile:
        file = tempfile.TemporaryFile()  # noqa: SIM115  The response closes it.
        file.write(CONTENT)
        file.seek(start)
        return BlobFile(file)

    return blob_response(request, digest, Blob(len(CONTENT), read))
