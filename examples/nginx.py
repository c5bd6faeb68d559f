"""The other half of `nginx.conf`: with ``--x-accel``, nginx sends the files of `registry.py`."""

import os
from typing import Any


def add_accel(app: Any, directory: str) -> Any:
    """Return the application, which lets nginx send the files of a directory, whole or in part.

    Its responses have ``X-Accel-Redirect``. `nginx.conf` has the directory under ``/stored/``,
    which clients cannot request.
    """

    def accelerate(environ: Any, start_response: Any) -> Any:
        # nginx would compare these conditions with its own headers, not the registry's.
        if "HTTP_IF_MATCH" in environ or "HTTP_IF_UNMODIFIED_SINCE" in environ:
            return app(environ, start_response)
        stored: list[str] = []

        def leave_to_nginx(file: Any, _: int) -> tuple[()]:
            with file:
                stored.append(os.path.relpath(file.name, directory))
            return ()

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            if stored:
                of_nginx = "Content-Length", "Accept-Ranges"
                headers = [header for header in headers if header[0] not in of_nginx]
                headers.append(("Content-Length", "0"))
                headers.append(("X-Accel-Redirect", f"/stored/{stored[0]}"))
            return start_response(status, headers, *error)

        environ = {**environ, "wsgi.file_wrapper": leave_to_nginx}
        environ.pop("HTTP_RANGE", None)  # nginx handles ranges
        return app(environ, start)

    return accelerate
