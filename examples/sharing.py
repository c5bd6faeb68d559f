"""What many ask for at once, and is done once: within one process, for all its threads."""

import errno
import os
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from registry_routes.registry import BLOCK

Result = TypeVar("Result")


class Once:
    """Has one thread do what several want at the same time; each gets its result or its error."""

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
    """Where the content of a blob comes from."""

    size: int | None
    """How many bytes it has; `None` if that is not known before its end."""
    blocks: Iterable[bytes]
    """They end with an error if they are not the blob. If they have a `close`, it is called."""


class Fetch:
    """A blob on its way, which many can read while it comes.

    It grows in a file that has no name. What has come can be read, except the last block: that one
    can be read when the source has ended without an error. So nobody gets all of a wrong content.

    :param open_source: finds the source.
    :param keep: is given the whole content.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        keep: Callable[[Iterable[bytes]], None],
    ) -> None:
        self.open_source = open_source
        self.keep = keep
        self.is_running = True  # as `Fetches` says, which counts the readers too
        self.readers = 0
        self._is_whole = False
        self._size: int | None = None
        self._readable = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - its last reader closes it

    def run(self, is_wanted: Callable[[], bool]) -> None:
        """Fetch it, and have it kept. An error is for its readers.

        It ends before its next block when it is not wanted; but what is whole is kept.
        """
        try:
            size = self._fetch(is_wanted)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
            return
        self.keep(self._blocks(0, size))

    def _fetch(self, is_wanted: Callable[[], bool]) -> int:
        size, blocks = self.open_source()
        try:
            with self._changed:
                self._size = size
                self._changed.notify_all()
            received = 0
            for block in blocks:
                if not is_wanted():
                    raise InterruptedError("nobody wants the blob any more")
                with self._changed:
                    self._readable = received
                    self._changed.notify_all()
                received += _written(self._file.fileno(), block)
        finally:
            if hasattr(blocks, "close"):
                blocks.close()
        with self._changed:
            self._size = self._readable = received
            self._is_whole = True
            self._changed.notify_all()
        return received

    def size(self) -> int:
        """How many bytes the blob has, as soon as that is known. Raises the error of the fetch."""
        with self._changed:
            self._changed.wait_for(lambda: self._size is not None or self._error is not None)
            if self._size is None and self._error is not None:
                raise self._error
            return self._size or 0

    def read(self, start: int, end: int) -> Iterable[bytes]:
        """The bytes from `start` to before `end`, as they come.

        The call returns when the first of them is there. It raises the error of the fetch; the
        iteration raises a `BrokenPipeError`, for which a server closes the connection.
        """
        self._wait(start)
        return self._blocks(start, end)

    def _wait(self, position: int) -> int:
        """How many bytes can be read: more than `position`, or all."""
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
                raise BrokenPipeError(errno.EPIPE, f"it broke off: {error}") from error
            block = os.pread(self._file.fileno(), min(BLOCK, min(ready, end) - start), start)
            start += len(block)
            yield block

    def close(self) -> None:
        self._file.close()


def _written(descriptor: int, block: bytes) -> int:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(block)


class Fetches:
    """The blobs that are on their way, each once."""

    def __init__(self) -> None:
        self._running: dict[Hashable, Fetch] = {}
        self._lock = threading.Lock()

    def join(self, key: Hashable, make: Callable[[], Fetch]) -> Fetch:
        """The fetch of this key, which is begun if there is none. Who has joined it must leave."""
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
        """Whether anybody still reads it. If not, nobody joins it any more."""
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
