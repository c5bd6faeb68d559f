"""The server of the examples: slow clients, its options, its log, its health, and nginx in front."""

import hashlib
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urljoin

import pytest
import requests
import serving as serving_module
from registry import main as registry_main
from registry import make_app
from serving import LEAST_RATE, Connection, with_health
from storage import CheckedMemory, storage_at
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes.digests import digest_of

from .servers import EXAMPLES, ended, example, free_port, serving

BLOB = bytes(range(256)) * 4096  # 1 MiB
BLOB_PATH = f"/v2/slow/blobs/{digest_of(BLOB)}"
UPLOAD_PATH = f"/v2/slow/blobs/uploads/?digest=sha256:{'0' * 64}"


def address_of(host: str) -> tuple[str, int]:
    name, _, port = host.rpartition(":")
    return name, int(port)


def answer_to(host: str, raw: bytes, *, breaks_off: bool = False) -> bytes:
    """What the server sends in answer to these bytes, until it closes the connection."""
    with socket.create_connection(address_of(host), timeout=10) as connection:
        connection.sendall(raw)
        if breaks_off:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        with suppress(ConnectionError):
            while block := connection.recv(65536):
                received += block
        return received


def push(host: str, name: str, content: bytes) -> None:
    url = f"http://{host}/v2/{name}/blobs/uploads/?digest={digest_of(content)}"
    requests.post(url, content, timeout=60).raise_for_status()


# Slow clients. A kind is what they send first, and what they then send byte by byte.

KINDS = {
    "half headers": b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    "silence": b"",
    "slow bodies": f"POST {UPLOAD_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode(),
    "not hanging up": b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "slow readers": f"GET {BLOB_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
}


class SlowClients(threading.Thread):
    """Run `count` clients of each kind until told to stop, for at most `MOST` seconds."""

    MOST = 120

    def __init__(self, host: str, count: int, kinds: list[str]) -> None:
        super().__init__()
        self.address, self.count, self.kinds = address_of(host), count, kinds
        self.connected = threading.Event()
        self.stopped = threading.Event()
        self.sockets: list[tuple[str, socket.socket]] = []

    def connect(self) -> None:
        for _ in range(self.count):
            for kind in self.kinds:
                one = socket.socket()
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.settimeout(10)
                one.connect(self.address)
                one.sendall(KINDS[kind])
                one.setblocking(False)
                self.sockets.append((kind, one))

    def run(self) -> None:
        end = time.monotonic() + self.MOST
        try:
            self.connect()
            self.connected.set()
            while not self.stopped.wait(1) and time.monotonic() < end:
                for kind, one in self.sockets:
                    with suppress(OSError):
                        if kind == "slow readers":
                            one.recv(1)
                        elif kind not in ("silence", "not hanging up"):
                            one.send(b"x")
        finally:
            for _, one in self.sockets:
                one.close()

    def __enter__(self) -> "SlowClients":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join()


def slowest_of(host: str, seconds: float, until: threading.Event) -> float:
    """How long the slowest of ordinary requests takes, until so many seconds after an event."""
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


@contextmanager
def registry(tmp_path: Path, *options: str) -> Iterator[str]:
    options = "--storage", str(tmp_path / "data"), *options
    with example("registry", tmp_path / "log", *options) as host:
        yield host


@pytest.mark.slow
def test_without_nginx_sixty_slow_clients_of_each_kind_do_not_delay_others(tmp_path: Path) -> None:
    with registry(tmp_path) as host:
        push(host, "slow", BLOB)
        with SlowClients(host, 60, list(KINDS)) as slow:
            assert slowest_of(host, 8, slow.connected) < 1


@pytest.fixture
def connection() -> Iterator[tuple[Connection, socket.socket]]:
    """Both ends of a connection: the server's, which has the patience of 0.2 seconds."""
    one, client = socket.socketpair()
    with Connection(fileno=one.detach()) as server, client:
        server.begin(0.2)
        yield server, client


def trickle(client: socket.socket, block: bytes, pause: float, seconds: float) -> None:
    end = time.monotonic() + seconds
    with suppress(OSError):
        while time.monotonic() < end:
            client.sendall(block)
            time.sleep(pause)


def received_until_given_up(server: Connection) -> int:
    received = 0
    while True:
        try:
            block = server.recv(4096)
        except TimeoutError:
            return received
        assert block
        received += len(block)


def test_a_silent_client_is_disconnected(connection: tuple[Connection, socket.socket]) -> None:
    server, client = connection
    client.sendall(b"x")
    begun = time.monotonic()
    assert received_until_given_up(server) == 1
    assert 0.1 < time.monotonic() - begun < 1
    begun = time.monotonic()
    for _ in range(10):  # and it has no patience left
        assert received_until_given_up(server) == 0
    assert time.monotonic() - begun < 0.15


def test_single_bytes_do_not_keep_a_client_connected(
    connection: tuple[Connection, socket.socket],
) -> None:
    server, client = connection
    sender = threading.Thread(target=trickle, args=(client, b"x", 0.05, 2))
    sender.start()
    begun = time.monotonic()
    assert received_until_given_up(server) < 12
    assert time.monotonic() - begun < 1
    server.shutdown(socket.SHUT_RDWR)
    sender.join()


def test_a_fast_client_earns_no_more_than_the_full_patience(
    connection: tuple[Connection, socket.socket],
) -> None:
    server, client = connection
    client.sendall(bytes(100_000))
    begun = time.monotonic()
    assert received_until_given_up(server) == 100_000
    assert time.monotonic() - begun < 1


def test_a_client_at_the_least_rate_stays_connected(
    connection: tuple[Connection, socket.socket],
) -> None:
    server, client = connection

    def send() -> None:
        trickle(client, bytes(LEAST_RATE // 10), 0.05, 0.6)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = 0
    while block := server.recv(4096):
        received += len(block)
    sender.join()
    assert received >= LEAST_RATE // 2


CHUNKED = f"POST {UPLOAD_PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
TRICKLES = {
    "headers": (KINDS["half headers"], b"x"),
    "a request line": (b"GET /v2/", b"x"),
    "empty lines before it": (b"", b"\r\n"),
    "a body": (KINDS["slow bodies"], b"x"),
    "a body that nobody wants": (
        b"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n",
        b"x",
    ),
    "a chunk": (CHUNKED + b"ffff\r\n", b"x"),
    "a chunk's size": (CHUNKED, b"0"),
    "a chunk's extension": (CHUNKED + b"5;x=", b"x"),
    "chunks": (CHUNKED, b"1\r\nx\r\n"),
    "trailers": (CHUNKED + b"0\r\nX: ", b"x"),
}


@pytest.mark.slow
def test_a_client_that_sends_a_byte_now_and_then_is_disconnected(tmp_path: Path) -> None:
    with registry(tmp_path, "--patience", "2", "--threads", str(len(TRICKLES))) as host:
        ended: dict[str, float] = {}

        def send(kind: str) -> None:
            begin, more = TRICKLES[kind]
            with socket.create_connection(address_of(host)) as client, suppress(OSError):
                client.sendall(begin)
                begun = time.monotonic()
                while time.monotonic() - begun < 15:
                    client.sendall(more)
                    client.settimeout(0.5)
                    with suppress(TimeoutError):
                        if not client.recv(65536):
                            break
            ended[kind] = time.monotonic() - begun

        senders = [threading.Thread(target=send, args=(kind,)) for kind in TRICKLES]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert {kind for kind, after in ended.items() if after > 6} == set()
        assert requests.get(f"http://{host}/v2/", timeout=5).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("range_", ["", "Range: bytes=0-60000000\r\n"])
def test_a_client_that_reads_a_byte_now_and_then_is_disconnected(
    tmp_path: Path, range_: str
) -> None:
    with registry(tmp_path, "--patience", "1") as host, socket.socket() as client:
        push(host, "slow", BLOB * 64)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address_of(host))
        path = f"/v2/slow/blobs/{digest_of(BLOB * 64)}"
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{range_}\r\n".encode())
        end = time.monotonic() + 10
        while "too slow" not in (tmp_path / "log").read_text():
            client.recv(1)
            assert time.monotonic() < end
            time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_falls_silent_is_disconnected(tmp_path: Path, kind: str) -> None:
    with registry(tmp_path, "--patience", "1", "--threads", "2") as host:
        push(host, "slow", BLOB * 16)  # more than the kernel takes in
        begun = KINDS[kind].replace(digest_of(BLOB).encode(), digest_of(BLOB * 16).encode())
        with ExitStack() as open_sockets:
            silent = []
            for _ in range(4):
                one = open_sockets.enter_context(socket.socket())
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.settimeout(15)
                one.connect(address_of(host))
                one.sendall(begun)
                silent.append(one)
            assert requests.get(f"http://{host}/v2/", timeout=20).status_code == 200
            for one in silent:
                received = 0
                with suppress(ConnectionError):
                    while block := one.recv(1024 * 1024):
                        received += len(block)
                assert received < len(BLOB * 16)
    log = (tmp_path / "log").read_text()
    assert "[ERROR]" not in log


# Requests that another server might read differently.

AMBIGUOUS = {
    "two lengths": "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "two lengths, in the other order": "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "an empty length as well": "Transfer-Encoding: chunked\r\nContent-Length:\r\n\r\n0\r\n\r\n",
    "two hosts": "Host: other\r\nContent-Length: 3\r\n\r\nabc",
    "the same host twice": "Host: x\r\nContent-Length: 3\r\n\r\nabc",
    "two content lengths": "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry(tmp_path_factory.mktemp("registry")) as host:
        push(host, "slow", BLOB)
        yield host


@pytest.mark.parametrize("rest", AMBIGUOUS.values(), ids=AMBIGUOUS)
@pytest.mark.parametrize("is_behind_nginx", [False, True])
def test_an_ambiguous_request_is_refused(
    request: pytest.FixtureRequest, rest: str, is_behind_nginx: bool
) -> None:
    host = request.getfixturevalue("behind_nginx" if is_behind_nginx else "host")
    host = host[0] if is_behind_nginx else host
    location = requests.post(f"http://{host}/v2/a/blobs/uploads/", timeout=10).headers["Location"]
    raw = f"PATCH {location} HTTP/1.1\r\nHost: x\r\n{rest}"
    answer = answer_to(host, raw.encode() + b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1  # what comes after it is not read
    status = requests.get(f"http://{host}{location}", timeout=10)
    assert status.headers["Range"] == "0-0"


# Options.


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--workers 0", "0 must be from 1"),
        ("--workers -1", "-1 must be from 1"),
        ("--workers x", "invalid int value: 'x'"),
        ("--workers 2 --storage memory://", "memory:// cannot be shared by several workers"),
        ("--threads 0", "0 must be from 1"),
        ("--port 99999", "99999 must be from 0 to 65535"),
        ("--port -1", "-1 must be from 0"),
        ("--patience 0", "0 must be from 0.1"),
        ("--patience nan", "nan must be from 0.1"),
        ("--patience inf", "inf must be from 0.1"),
        ("--host 192.0.2.1", "cannot listen on 192.0.2.1:5000: "),
        ("--host 2001:db8::1", "cannot listen on [2001:db8::1]:5000: "),
        ("--host 1::2::3", "cannot listen on [1::2::3]:5000: "),
        ("--host name.invalid", "cannot listen on name.invalid:5000: "),
        (f"--host {'a' * 64}", "cannot listen on aaa"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
    ],
)
def test_a_wrong_option_is_an_error_in_one_line(
    options: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["registry.py", "--port", "5000", *options.split()]
    status, printed, said = ended(registry_main, monkeypatch, *command)
    assert (status, printed) == (2, "")
    assert len(said.splitlines()) == 1
    assert said.startswith("registry.py: error: ")
    assert named in said
    assert not list(tmp_path.iterdir())


def test_a_port_in_use_is_an_error_in_one_line(host: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "registry.py"), "--port", host.rpartition(":")[2]]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (run.returncode, run.stdout) == (2, "")
    assert len(run.stderr.splitlines()) == 1
    assert f"cannot listen on {host}: " in run.stderr


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("localhost", "127.0.0.1"),
        pytest.param("127.0.0.1", "127.0.0.1", marks=pytest.mark.slow),
        pytest.param("::1", "[::1]", marks=pytest.mark.slow),
        pytest.param("::", "127.0.0.1", marks=pytest.mark.slow),
    ],
)
def test_it_listens_on_every_kind_of_address(address: str, asked: str, tmp_path: Path) -> None:
    if ":" in address and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    command = [sys.executable, "-u", str(EXAMPLES / "registry.py"), "--storage", "memory://"]
    command += ["--host", address, "--port", "0"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    with server:
        try:
            assert server.stdout is not None
            greeting = server.stdout.readline()
            found = re.match(r"A registry at http://(.+):([0-9]+), ", greeting)
            assert found, greeting
            assert found[1].startswith("[") == (":" in address)
            answer = requests.get(f"http://{asked}:{found[2]}/v2/", timeout=10)
            assert answer.status_code == 200
        finally:
            server.terminate()


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_a_read_only_registry_refuses_pushes_and_deletes(tmp_path: Path) -> None:
    with registry(tmp_path) as host:
        push(host, "a", BLOB)
        digest = digest_of(b"{}")
        manifest = f"http://{host}/v2/a/manifests/{digest}"
        assert requests.put(manifest, b"{}", timeout=10).status_code == 201
    kept = sorted(path for path in (tmp_path / "data").rglob("*"))
    with registry(tmp_path, "--read-only") as host:
        root = f"http://{host}/v2/a"
        blob, manifest = f"{root}/blobs/{digest_of(BLOB)}", f"{root}/manifests/{digest}"
        assert requests.get(blob, timeout=10).content == BLOB
        assert requests.get(manifest, timeout=10).content == b"{}"
        for method, url in (
            ("PUT", manifest),
            ("DELETE", manifest),
            ("DELETE", blob),
            ("POST", f"{root}/blobs/uploads/"),
            ("POST", f"{root}/blobs/uploads/?digest={digest_of(b'')}"),
            ("PATCH", f"{root}/blobs/uploads/{'0' * 32}"),
        ):
            assert requests.request(method, url, data=b"{}", timeout=10).status_code in (404, 405)
        assert requests.get(f"http://{host}/healthz", timeout=10).status_code == 200
    assert sorted(path for path in (tmp_path / "data").rglob("*")) == kept


@contextmanager
def read_only_mount(directory: Path) -> Iterator[None]:
    """The directory where not even root can write."""
    for options in ["--bind"], ["-o", "remount,ro,bind"]:
        mount = ["mount", *options, str(directory), str(directory)]
        if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("a directory cannot be mounted read-only here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["registry", "gateway"])
@pytest.mark.parametrize("place", ["data", "file://{}/data"])
def test_a_read_only_registry_serves_a_directory_that_cannot_be_written_to(
    tmp_path: Path, program: str, place: str
) -> None:
    client = Client(make_app(storage_at(tmp_path / "data")))
    assert client.put("/v2/a/manifests/v1", data=b"{}").status_code == 201
    place = place.format(tmp_path)
    if "://" not in place:
        place = str(tmp_path / place)
    with read_only_mount(tmp_path / "data"):
        options = ["--read-only", "--storage", place]
        with example(program, tmp_path / "log", *options) as host:
            assert requests.get(f"http://{host}/healthz", timeout=10).status_code == 200
            headers = {}
            if program == "gateway":
                token = requests.get(f"http://{host}/token?scope=repository:a:pull", timeout=10)
                headers["Authorization"] = f"Bearer {token.json()['token']}"
            url = f"http://{host}/v2/a/manifests/v1"
            assert requests.get(url, headers=headers, timeout=10).content == b"{}"


@pytest.mark.parametrize("program", ["registry", "gateway"])
def test_a_read_only_registry_creates_no_directory(tmp_path: Path, program: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"{program}.py"), "--read-only", "--port", "0"]
    run = subprocess.run(
        [*command, "--storage", "new"], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert (run.returncode, run.stdout) == (2, "")
    error = "--storage 'new': there is no such directory"
    assert run.stderr == f"{program}.py: error: {error}\n"
    assert not list(tmp_path.iterdir())


# Health.


class Failing(CheckedMemory):
    def check(self) -> None:
        raise OSError("the disk \x1b[2J is gone")


def test_healthz_reports_the_health_of_the_storage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "data"
    client = Client(make_app(storage_at(directory)))
    assert client.get("/healthz").status_code == 200
    assert client.head("/healthz").status_code == 200
    assert client.get("/healthz/x").status_code == 404
    directory.rename(tmp_path / "elsewhere")
    assert client.get("/healthz").status_code == 503
    directory.write_text("a file")
    assert client.get("/healthz").status_code == 503
    directory.unlink()
    (tmp_path / "elsewhere").rename(directory)
    assert client.get("/healthz").status_code == 200
    caplog.clear()
    client = Client(make_app(Failing()))
    assert client.get("/healthz").status_code == 503
    assert "gone" not in client.get("/healthz").text
    assert "gone" in caplog.text


class Hanging(CheckedMemory):
    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def check(self) -> None:
        self.goes_on.wait(30)


def test_a_check_that_hangs_takes_up_one_thread(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "MAX_CHECK", 0.2)
    storage = Hanging()
    client = Client(make_app(storage))
    before, begun = threading.active_count(), time.monotonic()
    for _ in range(50):
        assert client.get("/healthz").status_code == 503
        assert threading.active_count() <= before + 1
    assert 0.2 < time.monotonic() - begun < 2  # only the first has to wait
    assert "no answer in 0.2 seconds" in caplog.text
    storage.goes_on.set()
    end = time.monotonic() + 5
    while client.get("/healthz").status_code != 200:
        assert time.monotonic() < end
    assert threading.active_count() <= before + 1


def test_healthz_reads_little_and_writes_nothing(tmp_path: Path) -> None:
    client = Client(with_health(Response("other"), storage_at(tmp_path)))
    assert client.get("/healthz").text == "ok\n"
    assert client.get("/v2/").text == "other"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_healthz_fails_for_a_missing_bucket(s3: None) -> None:
    assert Client(make_app(storage_at("s3://images/x"))).get("/healthz").status_code == 200
    assert Client(make_app(storage_at("s3://nothing/x"))).get("/healthz").status_code == 503


# The log.


def test_text_from_clients_is_escaped_in_the_log(tmp_path: Path) -> None:
    with registry(tmp_path) as host:
        for raw in (
            b'GET /v2/%1b[2J%0a HTTP/1.1\r\nHost: x\r\nUser-Agent: a"b\\c\xc3\xa9\x9b2J\t\r\n\r\n',
            b"GET /v2/\x1b[2J HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nUser-Agent: \x1b[2J\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\x1b[2J: \x9b\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x9b\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nExpect: \x9b\r\n\r\n",
            b"\x9b\x1b[2J\r\n\r\n",
            b"PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: \x9b\r\nContent-Length: 2\r\n\r\n{}",
            b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\x1b\x9b\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: \x9b\r\nAuthorization: Basic mw==\r\n\r\n",
        ):
            raw = raw.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n", 1)
            assert answer_to(host, raw).startswith(b"HTTP/1.1 ")
    log = (tmp_path / "log").read_bytes()
    assert set(log) <= {*range(32, 127), ord("\n")}
    assert b'"a\\"b\\\\c\\u00c3\\u00a9\\u009b2J' in log


def test_a_line_of_the_log_ends_with_the_seconds_that_the_request_took(tmp_path: Path) -> None:
    with registry(tmp_path) as host, socket.create_connection(address_of(host)) as connection:
        connection.sendall(
            b"PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{"
        )
        time.sleep(1)
        connection.sendall(b"}")
        assert connection.recv(100).startswith(b"HTTP/1.1 201 ")
        requests.get(f"http://{host}/v2/", timeout=10)
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if " - - " in line]
    took = {"PUT" in line: float(line.rpartition(" ")[2]) for line in lines}
    assert 0.5 < took[True] < 5  # its time begins when a thread has its headers
    assert took[False] < 0.5


# Forwarded headers.


@pytest.mark.parametrize("is_behind", [False, True])
def test_forwarded_headers_count_only_with_behind_proxy(tmp_path: Path, is_behind: bool) -> None:
    options = ["--storage", "memory://", *(["--behind-proxy"] if is_behind else [])]
    headers = {
        "Host": "registry.example",
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Ssl": "on",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Port": "1",
        "X-Forwarded-Prefix": "/evil",
        "Script-Name": "/evil",
        "Forwarded": "host=evil.example;proto=https",
    }
    with example("gateway", tmp_path / "log", *options) as host:
        challenge = requests.get(f"http://{host}/v2/", headers=headers, timeout=10).headers[
            "WWW-Authenticate"
        ]
    scheme = "https" if is_behind else "http"
    assert f'realm="{scheme}://registry.example/token"' in challenge
    assert ("192.0.2.7 - - " in (tmp_path / "log").read_text()) == is_behind


# Behind nginx, as `examples/nginx.conf` sets it up.


@contextmanager
def nginx(tmp_path: Path, registry: str, *, with_tls: bool = False) -> Iterator[str]:
    """Host and port of nginx before a registry; with TLS, of that."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (Debian: apt install nginx-light)")
    directory = tmp_path / "nginx"
    directory.mkdir()
    plain, secure = free_port(), free_port()
    config = (EXAMPLES / "nginx.conf").read_text()
    config = config.replace(" 127.0.0.1:5000;", f" {registry};")
    config = config.replace("listen 5080 ", f"listen 127.0.0.1:{plain} ")
    config = config.replace("../registry-data/", "../data/")
    if with_tls:
        config = re.sub("# (listen 5443|ssl_certificate)", r"\1", config)
        config = config.replace("listen 5443 ", f"listen 127.0.0.1:{secure} ")
        make_certificate(directory)
    (directory / "nginx.conf").write_text(config)
    # As root, nginx's workers are of a user who may not enter pytest's directories.
    user = "user root; " if os.geteuid() == 0 else ""
    command = [program, "-p", str(directory), "-c", "nginx.conf", "-g", f"{user}daemon off;"]
    with serving(command, plain, tmp_path / "nginx.log") as host:
        yield f"127.0.0.1:{secure}" if with_tls else host


def make_certificate(directory: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (Debian: apt install openssl)")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out certificate.pem"
    subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)


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
@pytest.mark.parametrize("size", [1, 64])
def test_with_nginx_a_thousand_slow_clients_of_each_kind_do_not_delay_others(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = BLOB * size
    path = f"/v2/slow/blobs/{digest_of(blob)}"
    monkeypatch.setitem(KINDS, "slow readers", f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    options = "--behind-proxy", "--x-accel"
    with registry(tmp_path, *options) as behind, nginx(tmp_path, behind) as host:
        push(host, "slow", blob)
        begun = time.monotonic()
        for _ in range(1000):
            assert requests.head(f"http://{host}{path}", timeout=10).ok
        quick = time.monotonic() - begun
        with SlowClients(host, 1000, list(KINDS)) as slow:
            # The requests that are whole are work. On a busy machine it may take its time.
            assert slowest_of(host, 10, slow.connected) < max(1, quick)
            assert len(slow.sockets) == 1000 * len(KINDS)
    assert UPLOAD_PATH not in (tmp_path / "log").read_text()  # none of the bodies was whole


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Range": "bytes=5-9"},
        {"Range": "bytes=5-"},
        {"Range": "bytes=-7"},
        {"Range": "bytes=-99999999"},
        {"Range": "bytes=9999999-"},
        {"Range": "bytes=1-2,5-6"},
        {"Range": "bytes=1-2", "If-Range": '"another"'},
        {"Range": "bytes=1-2", "If-Range": f'"{digest_of(BLOB)}"'},
        {"Range": "nonsense"},
        {"If-None-Match": f'"{digest_of(BLOB)}"'},
        {"If-None-Match": '"another"'},
        {"If-Match": '"another"'},
        {"If-Match": f'"{digest_of(BLOB)}"'},
        {"If-Match": "*"},
        {"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"},
        {"If-Range": "Thu, 01 Jan 2099 00:00:00 GMT", "Range": "bytes=5-9"},
        {"If-Modified-Since": "Thu, 01 Jan 2099 00:00:00 GMT"},
    ],
)
def test_nginx_sends_a_blob_as_the_registry_does(
    behind_nginx: tuple[str, str, Path], host: str, method: str, headers: dict[str, str]
) -> None:
    answers = [
        requests.request(method, f"http://{one}{BLOB_PATH}", headers=headers, timeout=10)
        for one in (behind_nginx[0], host)
    ]
    assert answers[0].status_code == answers[1].status_code
    own = {"Date", "Server", "Connection", "Accept-Ranges"}  # nginx leaves the last out at times
    if answers[1].status_code == 416:  # this is nginx's own
        own |= {"Content-Type", "Content-Length", "Docker-Content-Digest"}
    else:
        assert answers[0].content == answers[1].content
    kept = [
        {name: value for name, value in answer.headers.items() if name not in own}
        for answer in answers
    ]
    assert kept[0] == kept[1]


def test_clients_cannot_request_the_stored_files_from_nginx(
    behind_nginx: tuple[str, str, Path],
) -> None:
    path = f"blobs/{digest_of(BLOB).replace(':', '/')}"
    for target in f"/stored/{path}", f"/stored/../stored/{path}", f"/stored/%2e/{path}":
        raw = f"GET {target} HTTP/1.1\r\nHost: x\r\nX-Accel-Redirect: /stored/{path}\r\n"
        answer = answer_to(behind_nginx[0], f"{raw}Connection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 1000000\r\n\r\n" + bytes(500_000),
        b"Content-Length: 3\r\n\r\nab",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n300000\r\n" + bytes(500_000),
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
    ],
)
@pytest.mark.parametrize("is_reset", [False, True])
def test_a_body_that_breaks_off_does_not_reach_the_registry(
    behind_nginx: tuple[str, str, Path], body: bytes, is_reset: bool
) -> None:
    host, _, log = behind_nginx
    location = requests.post(f"http://{host}/v2/a/blobs/uploads/", timeout=10).headers["Location"]
    request = f"PATCH {location} HTTP/1.1\r\nHost: x\r\n".encode() + body
    if is_reset:
        with socket.create_connection(address_of(host), timeout=10) as connection:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.sendall(request[:-1])
            time.sleep(0.2)
    else:
        answer = answer_to(host, request, breaks_off=True)
        assert not answer.startswith(b"HTTP/1.1 2")
    status = requests.get(f"http://{host}{location}", timeout=10)
    assert status.headers["Range"] == "0-0"
    assert f"PATCH {location}" not in log.read_text()


@pytest.fixture(scope="module")
def behind_nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Host and port of nginx, and of the registry behind it, whose log is there."""
    directory = tmp_path_factory.mktemp("behind")
    options = "--behind-proxy", "--x-accel"
    with registry(directory, *options) as behind, nginx(directory, behind) as host:
        push(host, "slow", BLOB)
        yield host, behind, directory / "log"


@pytest.mark.parametrize(
    "target",
    [
        "/v2/a/../_catalog",
        "/v2//_catalog",
        "/v2/a%2Fb/tags/list",
        "/v2/a%252Fb/tags/list",
        "/v2/%2e%2e/v2/",
        "/v2/a/blobs/uploads/?mount=%22&from=%2F",
        "/v2/_catalog?n=%31",
        "/v2",
        "/healthz",
    ],
)
def test_nginx_passes_a_target_on_unchanged(
    behind_nginx: tuple[str, str, Path], target: str
) -> None:
    through, behind, log = behind_nginx
    request = f"GET {target} HTTP/1.1\r\nHost: registry.example:5080\r\nConnection: close\r\n\r\n"
    answers = [answer_to(host, request.encode()) for host in (through, behind)]
    end = time.monotonic() + 10  # a line comes after the answer
    while log.read_text().count(f"GET {target} HTTP/1.1") < 2:
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)
    statuses = [answer.partition(b"\r\n")[0].upper() for answer in answers]
    assert statuses[0] == statuses[1]
    locations = [re.findall(rb"\r\nLocation: (.*)\r\n", answer) for answer in answers]
    assert locations[0] == locations[1]
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in answers]
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize("with_tls", [False, True])
def test_urls_behind_nginx_have_the_clients_scheme_and_host(tmp_path: Path, with_tls: bool) -> None:
    options = ["--storage", "memory://", "--behind-proxy", "--user", "alice:secret"]
    lies = {
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Proto": "gopher",
        "X-Forwarded-Host": "evil.example",
    }
    with (
        example("gateway", tmp_path / "log", *options) as behind,
        nginx(tmp_path, behind, with_tls=with_tls) as host,
    ):
        root = f"{'https' if with_tls else 'http'}://{host}"
        with requests.Session() as session:
            session.trust_env = False  # which may name other certificates
            session.verify = str(tmp_path / "nginx" / "certificate.pem") if with_tls else True
            session.headers.update(lies)
            challenge = session.get(f"{root}/v2/", timeout=10).headers["WWW-Authenticate"]
            assert f'realm="{root}/token"' in challenge
            scope = {"scope": "repository:a:pull,push"}
            answer = session.get(
                f"{root}/token", params=scope, auth=("alice", "secret"), timeout=10
            )
            session.headers["Authorization"] = f"Bearer {answer.json()['token']}"
            begun = session.post(f"{root}/v2/a/blobs/uploads/", timeout=10)
            location = urljoin(begun.url, begun.headers["Location"])
            assert location.startswith(f"{root}/v2/a/blobs/uploads/")
            digest = digest_of(b"x")
            done = session.put(location, b"x", params={"digest": digest}, timeout=10)
            assert done.status_code == 201
            blob = session.get(urljoin(done.url, done.headers["Location"]), timeout=10)
            assert (blob.url, blob.content) == (f"{root}/v2/a/blobs/{digest}", b"x")
            del session.headers["Authorization"]
            session.headers["Host"] = "registry.example"
            plain = session.get(f"{root}/v2/", timeout=10)
        scheme = "https" if with_tls else "http"
        assert f'realm="{scheme}://registry.example/token"' in plain.headers["WWW-Authenticate"]
    log = (tmp_path / "log").read_text()
    assert "127.0.0.1 - - " in log
    assert "192.0.2.7" not in log


@pytest.mark.slow
def test_a_gibibyte_goes_both_ways_through_nginx(tmp_path: Path) -> None:
    block, count = os.urandom(1024 * 1024), 1024
    hashed = hashlib.sha256()
    for _ in range(count):
        hashed.update(block)
    digest = f"sha256:{hashed.hexdigest()}"
    with registry(tmp_path, "--behind-proxy") as behind, nginx(tmp_path, behind) as host:
        root = f"http://{host}/v2/a/blobs"
        location = requests.post(f"{root}/uploads/", timeout=10).headers["Location"]
        url = f"http://{host}{location}"
        chunked = requests.patch(url, (block for _ in range(count)), timeout=300)
        assert chunked.headers["Range"] == f"0-{len(block) * count - 1}"
        assert requests.put(url, params={"digest": digest}, timeout=300).status_code == 201
        pulled = hashlib.sha256()
        with requests.get(f"{root}/{digest}", stream=True, timeout=300) as response:
            assert int(response.headers["Content-Length"]) == len(block) * count
            for part in response.iter_content(len(block)):
                pulled.update(part)
        assert pulled.hexdigest() == hashed.hexdigest()


# Signals, as gunicorn has them: TERM to end, HUP for new workers, USR2 for a new program.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A registry's process, and its host and port."""
    port = free_port()
    command = [sys.executable, str(EXAMPLES / "registry.py"), "--port", str(port)]
    command += ["--storage", str(tmp_path / "data")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    host = f"127.0.0.1:{port}"
    wait_until(lambda: is_serving(host))
    yield process, host
    for pid in {process.pid, *pids_of(tmp_path)}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(10)


def pids_of(tmp_path: Path) -> list[int]:
    """The masters, by the storage in their command line, and their workers."""
    found = subprocess.run(["pgrep", "-f", str(tmp_path / "data")], capture_output=True, text=True)
    return list(map(int, found.stdout.split()))


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_serving(host: str) -> bool:
    with suppress(requests.ConnectionError):
        return requests.get(f"http://{host}/v2/", timeout=10).status_code == 200
    return False


def slow_upload(host: str, content: bytes) -> socket.socket:
    """A connection on which half of an upload has been sent."""
    connection = socket.create_connection(address_of(host), timeout=15)
    query = f"?digest={digest_of(content)}"
    connection.sendall(
        f"POST /v2/a/blobs/uploads/{query} HTTP/1.1\r\nHost: x\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content[: len(content) // 2]
    )
    time.sleep(0.5)
    return connection


def blobs_in(directory: Path) -> list[Path]:
    return list(directory.glob("blobs/*/*"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 20_000_000])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_an_upload_in_progress_is_finished(
    server: tuple[subprocess.Popen[bytes], str], tmp_path: Path, name: str, size: int
) -> None:
    process, host = server
    content = os.urandom(size)
    with slow_upload(host, content) as connection:
        process.send_signal(getattr(signal, name))
        time.sleep(1)
        if name == "SIGINT":  # at once: it is cut
            process.wait(10)
            assert blobs_in(tmp_path / "data") == []
            return
        connection.sendall(content[len(content) // 2 :])
        assert connection.recv(4096).startswith(b"HTTP/1.1 201 ")
    if name == "SIGTERM":
        assert process.wait(10) == 0
    else:
        assert is_serving(host)
    client = Client(make_app(storage_at(tmp_path / "data")))
    assert client.get(f"/v2/a/blobs/{digest_of(content)}", buffered=True).data == content


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 20_000_000])
def test_an_upload_that_does_not_end_is_cut_off(
    server: tuple[subprocess.Popen[bytes], str], tmp_path: Path, size: int
) -> None:
    process, host = server
    content = os.urandom(size)
    with slow_upload(host, content) as connection:
        process.terminate()
        assert process.wait(20) == 0
        with suppress(ConnectionError):
            assert connection.recv(4096)[9:12] != b"201"
    assert blobs_in(tmp_path / "data") == []
    client = Client(make_app(storage_at(tmp_path / "data")))
    assert client.get(f"/v2/a/blobs/{digest_of(content)}").status_code == 404
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_it_keeps_serving_while_its_workers_are_replaced(
    server: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    process, host = server
    done = threading.Event()
    answers: list[int] = []

    def ask() -> None:
        while not done.is_set():
            answers.append(requests.get(f"http://{host}/v2/", timeout=10).status_code)

    asker = threading.Thread(target=ask)
    asker.start()
    before = set(pids_of(tmp_path))
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
        time.sleep(1.5)
    wait_until(lambda: len(pids_of(tmp_path)) == 2)
    done.set()
    asker.join()
    assert process.pid in before
    assert before & set(pids_of(tmp_path)) == {process.pid}
    assert len(answers) > 20
    assert set(answers) == {200}


@pytest.mark.slow
def test_a_new_program_takes_over_the_socket(
    server: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    process, host = server
    process.send_signal(signal.SIGUSR2)
    wait_until(lambda: (tmp_path / "log").read_text().count("A registry at http://") == 2)
    process.terminate()
    assert process.wait(20) == 0
    assert is_serving(host)
    push(host, "a", BLOB)
    assert len(pids_of(tmp_path)) == 2  # a master and its worker


@pytest.mark.slow
def test_a_worker_that_finds_no_storage_ends_the_server(
    server: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    process, _ = server
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) != 0
    log = (tmp_path / "log").read_text()
    assert "a worker cannot start: there is no such directory\n" in log
    assert "Traceback" not in log
    assert not (tmp_path / "data").exists()
