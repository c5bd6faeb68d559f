"""Work that a process does once, although several of its threads want it at the same time."""

import errno
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, BinaryIO, NamedTuple, TypeVar

from object_storage import one_line, write_whole

from registry_routes import errors
from registry_routes.registry import BLOCK

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Once:
    """Calls that threads share: one thread makes the call, and all get its result or its error."""

    def __init__(self) -> None:
        self._running: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    def do(self, key: Hashable, act: Callable[[], Result]) -> Result:
        with self._lock:
            running: Future[Result] | None = self._running.get(key)
            if running is None:
                mine: Future[Result] = Future()
                self._running[key] = mine
        if running is not None:
            return running.result()
        try:
            mine.set_result(act())
        except BaseException as error:
            mine.set_exception(error)
        finally:
            with self._lock:
                del self._running[key]
        return mine.result()


class Source(NamedTuple):
    """The incoming content of a blob."""

    size: int | None
    """The number of bytes; `None` if it is unknown before the end."""
    blocks: Iterable[bytes]
    """The content. The iteration ends with an error if the digest is wrong. `Fetch` calls its
    `close`, if it has that method."""


class Fetch:
    """The fetch of a blob into an unnamed temporary file, which many clients read at the same time.

    They can read each block once it has arrived, but the last block only once the source has ended
    without an error. So no client ever gets a whole content that is wrong.

    :param name: the blob's name in the log.
    :param open_source: a function that opens the source.
    :param keep: a function to call with the whole content.
    """

    def __init__(
        self,
        name: str,
        open_source: Callable[[], Source],
        keep: Callable[[Iterable[bytes]], None],
    ) -> None:
        self.name = name
        self.open_source = open_source
        self.keep = keep
        self.is_running = True  # `Fetches` sets this and `readers`
        self.readers = 0
        self._is_whole = False
        self._size: int | None = None
        self._readable = 0
        self._error: BaseException | None = None
        self._when_received: list[Callable[[], object]] = []
        self._changed = threading.Condition()
        self._file: Any = None  # opened after the source; `Fetches` closes it

    def run(self, is_wanted: Callable[[], bool]) -> None:
        """Fetch the blob, then keep it. If that fails, all readers get the error.

        An `OSError`, of the temporary file or of the source, is logged once, and its readers get
        `errors.Unavailable`. If nobody wants the blob any more, the fetch stops before the next
        block; a blob that is already whole is kept.
        """
        try:
            size = self._fetch(is_wanted)
        except OSError as error:
            log.error("cannot fetch %s: %s", self.name, one_line(error))
            self._fail(errors.Unavailable())
        except BaseException as error:
            self._fail(error)
        else:
            self.keep(self._blocks(0, size))

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._announce_end()

    def when_received(self, act: Callable[[], object]) -> None:
        """Call `act` as soon as the source has ended, with or without an error."""
        with self._changed:
            self._when_received.append(act)
            if self._is_whole or self._error is not None:
                act()

    def _announce_end(self) -> None:
        self._changed.notify_all()
        for act in self._when_received:
            act()

    def _fetch(self, is_wanted: Callable[[], bool]) -> int:
        size, blocks = self.open_source()
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            with self._changed:
                self._size = size
                self._changed.notify_all()
            received = 0
            for block in blocks:
                if not is_wanted():
                    raise _UnwantedError
                with self._changed:
                    self._readable = received
                    self._changed.notify_all()
                received += _write(self._file, block)
        finally:
            if hasattr(blocks, "close"):
                blocks.close()
        with self._changed:
            self._size = self._readable = received
            self._is_whole = True
            self._announce_end()
        return received

    def size(self) -> int:
        """Wait for the size of the blob and return it. Raise the error of the fetch."""
        with self._changed:
            self._changed.wait_for(lambda: self._size is not None or self._error is not None)
            if self._size is None and self._error is not None:
                raise self._error
            return self._size or 0

    def read(self, start: int, end: int) -> Iterable[bytes]:
        """Return the bytes from `start` up to but not including `end`, as they arrive.

        The call returns when the first byte has arrived, or raises the error of the fetch. Later,
        the iteration raises `BrokenPipeError`, on which a server closes the connection.
        """
        self._wait(start)
        return self._blocks(start, end)

    def _wait(self, position: int) -> int:
        """Wait until more than `position` bytes can be read, or all. Return their number."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._readable > position or self._is_whole or self._error is not None
            )
            if self._error is not None and self._readable <= position:
                raise self._error
            return self._readable

    def _blocks(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            try:
                ready = self._wait(start)
            except BaseException as error:
                raise BrokenPipeError(errno.EPIPE, f"the fetch broke off: {error}") from error
            block = os.pread(self._file.fileno(), min(BLOCK, min(ready, end) - start), start)
            start += len(block)
            yield block

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _UnwantedError(Exception):
    """The error that ends a fetch when no client wants the blob any more."""


def _write(file: BinaryIO, block: bytes) -> int:
    """Write a block, and return its size. Raise `OSError`, which names the directory."""
    try:
        write_whole(file, block)
    except OSError as error:
        raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from error
    return len(block)


class Fetches:
    """The running fetches, one for each blob."""

    def __init__(self) -> None:
        self._running: dict[Hashable, Fetch] = {}
        self._lock = threading.Lock()

    def join(self, key: Hashable, make: Callable[[], Fetch]) -> Fetch:
        """Return the running fetch for this key, or start one. Each call needs a `leave` later."""
        with self._lock:
            fetch = self._running.get(key)
            if fetch is None:
                fetch = make()
                threading.Thread(target=self._run, args=(key, fetch), daemon=True).start()
                self._running[key] = fetch
            fetch.readers += 1
        return fetch

    def leave(self, fetch: Fetch) -> None:
        with self._lock:
            fetch.readers -= 1
            self._close_if_unused(fetch)

    def _run(self, key: Hashable, fetch: Fetch) -> None:
        try:
            fetch.run(lambda: self._is_wanted(key, fetch))
        finally:
            with self._lock:
                self._forget(key, fetch)
                fetch.is_running = False
                self._close_if_unused(fetch)

    def _is_wanted(self, key: Hashable, fetch: Fetch) -> bool:
        """Return whether the fetch still has readers. Without readers, let no others join."""
        with self._lock:
            if not fetch.readers:
                self._forget(key, fetch)
            return fetch.readers > 0

    def _forget(self, key: Hashable, fetch: Fetch) -> None:
        if self._running.get(key) is fetch:
            del self._running[key]

    def _close_if_unused(self, fetch: Fetch) -> None:
        if not fetch.readers and not fetch.is_running:
            fetch.close()
