"""Slow clients of the examples' server: without nginx in front, and with it."""

import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests
from serving import LEAST_RATE, Connection

from registry_routes.digests import digest_of

from .servers import BLOB, BLOB_PATH, address_of, push, registry
from .test_nginx import nginx

UPLOAD_PATH = f"/v2/slow/blobs/uploads/?digest=sha256:{64 * '0'}"

KINDS = {
    "half headers": b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    "silence": b"",
    "slow bodies": f"POST {UPLOAD_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode(),
    "not hanging up": b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "slow readers": f"GET {BLOB_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
}


def connect_to(host: str, request: bytes) -> socket.socket:
    """A client with a small buffer that has sent a request, or the beginning of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(30)
    client.connect(address_of(host))
    client.sendall(request)
    return client


class SlowClients(threading.Thread):
    """Run `count` clients of each kind until told to stop."""

    def __init__(self, host: str, count: int, kinds: dict[str, bytes]) -> None:
        super().__init__()
        self.host, self.count, self.kinds = host, count, kinds
        self.connected = threading.Event()
        self.stopped = threading.Event()
        self.sockets: list[tuple[str, socket.socket]] = []

    def run(self) -> None:
        with ExitStack() as open_sockets:
            for _ in range(self.count):
                for kind, request in self.kinds.items():
                    client = open_sockets.enter_context(connect_to(self.host, request))
                    client.setblocking(False)
                    self.sockets.append((kind, client))
            self.connected.set()
            while not self.stopped.wait(1):
                for kind, client in self.sockets:
                    with suppress(OSError):
                        if kind == "slow readers":
                            client.recv(1)
                        elif kind not in ("silence", "not hanging up"):
                            client.send(b"x")

    def __enter__(self) -> "SlowClients":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join()


def slowest_of(host: str, seconds: float, until: threading.Event) -> float:
    """Return the time of the slowest ordinary request, until some seconds after an event."""
    taken: list[float] = []

    def ask(method: str, path: str, body: bytes = b"") -> bytes:
        begun = time.monotonic()
        response = requests.request(method, f"http://{host}{path}", data=body, timeout=30)
        taken.append(time.monotonic() - begun)
        assert response.ok, response.text
        return response.content

    end = None
    while end is None or time.monotonic() < end:
        if end is None and until.is_set():
            end = time.monotonic() + seconds
        content = f"{time.monotonic()}".encode()
        digest = digest_of(content)
        ask("GET", "/v2/")
        ask("POST", f"/v2/ordinary/blobs/uploads/?digest={digest}", content)
        assert ask("GET", f"/v2/ordinary/blobs/{digest}") == content
        time.sleep(0.05)
    return max(taken)


@pytest.mark.slow
def test_sixty_slow_clients_of_each_kind_do_not_delay_others(tmp_path: Path) -> None:
    with registry(tmp_path) as host:
        push(host, "slow", BLOB)
        with SlowClients(host, 60, KINDS) as slow:
            assert slowest_of(host, 4, slow.connected) < 1


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 10_000:
        pytest.skip(f"a process may have {hard} open files here, and 4,000 clients need 10,000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
def test_with_nginx_a_thousand_slow_clients_of_each_kind_do_not_delay_others(
    tmp_path: Path,
) -> None:
    blob = BLOB * 16
    path = f"/v2/slow/blobs/{digest_of(blob)}"
    kinds = {**KINDS, "slow readers": f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()}
    options = "--behind-proxy", "--x-accel"
    with registry(tmp_path, *options) as behind, nginx(tmp_path, behind) as host:
        push(host, "slow", blob)
        begun = time.monotonic()
        for _ in range(1000):
            assert requests.head(f"http://{host}{path}", timeout=10).ok
        quick = time.monotonic() - begun
        with SlowClients(host, 1000, kinds) as slow:
            # The requests that are whole are work. On a busy machine it may take its time.
            assert slowest_of(host, 6, slow.connected) < max(1, quick)
            assert len(slow.sockets) == 1000 * len(kinds)
    assert UPLOAD_PATH not in (tmp_path / "log").read_text()  # none of the bodies was whole


# One connection.


@pytest.fixture
def connection() -> Iterator[tuple[Connection, socket.socket]]:
    """Both ends of a connection: the server's, which has the patience of 0.2 seconds."""
    end, client = socket.socketpair()
    with Connection(fileno=end.detach()) as server, client:
        server.begin(0.2)
        yield server, client


def received_until_given_up(server: Connection) -> int:
    received = 0
    with suppress(TimeoutError):
        while block := server.recv(4096):
            received += len(block)
    return received


@pytest.mark.parametrize(
    ("block", "count", "expected"),
    [(b"x", 40, range(1, 12)), (bytes(LEAST_RATE // 10), 10, [LEAST_RATE])],
)
def test_only_enough_bytes_keep_a_client_connected(
    connection: tuple[Connection, socket.socket],
    block: bytes,
    count: int,
    expected: range | list[int],
) -> None:
    server, client = connection

    def trickle() -> None:
        with suppress(OSError):
            for _ in range(count):
                client.sendall(block)
                time.sleep(0.05)
            client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=trickle)
    sender.start()
    assert received_until_given_up(server) in expected
    server.shutdown(socket.SHUT_RDWR)
    sender.join()


def test_fast_client_that_falls_silent_is_given_up(
    connection: tuple[Connection, socket.socket],
) -> None:
    server, client = connection
    client.sendall(bytes(LEAST_RATE * 100))
    server.recv(4096)
    assert server.left == server.patience  # it earns no more than that
    assert received_until_given_up(server) == LEAST_RATE * 100 - 4096
    for _ in range(3):
        assert server.left == 0.001
        assert received_until_given_up(server) == 0


CHUNKED = f"POST {UPLOAD_PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
UNWANTED = b"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"
TRICKLES = {
    "headers": (KINDS["half headers"], b"x"),
    "empty lines before it": (b"", b"\r\n"),
    "a body": (KINDS["slow bodies"], b"x"),
    "a body that nobody wants": (UNWANTED, b"x"),
    "a chunk": (CHUNKED + b"ffff\r\n", b"x"),
    "a chunk's size": (CHUNKED, b"0"),
    "chunks": (CHUNKED, b"1\r\nx\r\n"),
    "trailers": (CHUNKED + b"0\r\nX: ", b"x"),
}


@pytest.mark.slow
def test_client_that_trickles_is_disconnected(tmp_path: Path) -> None:
    with registry(tmp_path, "--patience", "1", "--threads", str(len(TRICKLES))) as host:
        stayed: list[str] = []

        def send(kind: str) -> None:
            begin, more = TRICKLES[kind]
            with connect_to(host, begin) as client, suppress(OSError):
                for _ in range(40):
                    client.sendall(more)
                    client.settimeout(0.5)
                    with suppress(TimeoutError):
                        if not client.recv(65536):
                            return
                stayed.append(kind)

        with ThreadPoolExecutor(len(TRICKLES)) as pool:
            list(pool.map(send, TRICKLES))
        assert stayed == []
        assert requests.get(f"http://{host}/v2/", timeout=5).status_code == 200


@pytest.mark.slow
def test_client_that_falls_silent_is_disconnected(tmp_path: Path) -> None:
    large = BLOB * 16  # more than the kernel takes in
    with registry(tmp_path, "--patience", "1", "--threads", "5") as host, ExitStack() as clients:
        push(host, "slow", large)
        silent = []
        for kind in list(KINDS.values()) * 3:
            request = kind.replace(digest_of(BLOB).encode(), digest_of(large).encode())
            silent.append(clients.enter_context(connect_to(host, request)))
        assert requests.get(f"http://{host}/v2/", timeout=30).status_code == 200
        for client in silent:
            received = 0
            with suppress(ConnectionError):
                while block := client.recv(1024 * 1024):
                    received += len(block)
            assert received < len(large)
    assert "[ERROR]" not in (tmp_path / "log").read_text()
