"""The health check of each server, ``/healthz``, which asks its storage or its upstream."""

import logging
import threading
import time
from concurrent.futures import Future
from typing import Any, Protocol

from werkzeug.wrappers import Response

log = logging.getLogger(__name__)

MAX_CHECK = 8  # seconds


class Checkable(Protocol):
    """A storage, or a server that requests depend on."""

    def check(self) -> None:
        """Raise `OSError` if there is no answer."""
        ...


class Health:
    """``/healthz``: 200 if the storage answers; 503 if it fails, or hangs for `MAX_CHECK` seconds.

    Only one check runs at a time. So a storage that hangs takes up one thread, and requests wait
    for it only in the first seconds.

    :param what: the name of the storage in the answer and in the log.
    """

    def __init__(self, checked: Checkable, what: str = "the storage") -> None:
        self.checked = checked
        self.what = what
        self.lock = threading.Lock()
        self.latest: Future[None] = Future()
        self.latest.set_result(None)
        self.begun = 0.0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self.answer()(environ, start_response)

    def answer(self) -> Response:
        with self.lock:
            if self.latest.done():
                self.latest, self.begun = Future(), time.monotonic()
                # A daemon thread, so that a worker can end while the check hangs.
                threading.Thread(target=self._check, args=(self.latest,), daemon=True).start()
            latest, end = self.latest, self.begun + MAX_CHECK
        try:
            latest.result(max(end - time.monotonic(), 0))
        except Exception as error:
            is_late = isinstance(error, TimeoutError) and not latest.done()
            reason = f"no answer in {MAX_CHECK} seconds" if is_late else str(error) or repr(error)
            log.error("%s has failed: %s", self.what, reason)
            return Response(f"{self.what} has failed\n", status=503)
        return Response("ok\n")

    def _check(self, latest: Future[None]) -> None:
        try:
            self.checked.check()
        except BaseException as error:
            latest.set_exception(error)
        else:
            latest.set_result(None)


def add_health(app: Any, checked: Checkable, what: str = "the storage") -> Any:
    """Return the application with ``/healthz`` added: see `Health`."""
    health = Health(checked, what)

    def dispatch(environ: Any, start_response: Any) -> Any:
        is_health = environ.get("PATH_INFO") == "/healthz"
        return (health if is_health else app)(environ, start_response)

    return dispatch
