"""The server of the examples: its options, its log, its health and its signals."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from gunicorn.config import Config
from health import add_health
from registry import main as registry_main
from registry import make_app
from serving import Log
from storage import CheckedMemory, storage_at
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes.digests import digest_of

from .disks import mounted, run
from .registry_client import RegistryClient
from .servers import (
    BLOB,
    EXAMPLES,
    address_of,
    answer_to,
    ended,
    example,
    free_port,
    push,
    registry,
)

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


@pytest.mark.slow
@pytest.mark.parametrize("rest", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_request_is_refused(host: str, rest: str) -> None:
    assert_refused(host, rest)


def assert_refused(host: str, rest: str) -> None:
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
        ("--workers 2 --storage memory://", "several workers cannot share memory://"),
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
        ("--redirect", "--redirect needs an object store"),
        ("--redirect --storage memory://", "--redirect needs an object store"),
        ("--redirect --storage file:///tmp", "--redirect needs an object store"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_option_is_an_error_in_one_line(
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


@pytest.mark.slow
def test_port_in_use_is_an_error_in_one_line(host: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "registry.py"), "--port", host.rpartition(":")[2]]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (run.returncode, run.stdout) == (2, "")
    assert len(run.stderr.splitlines()) == 1
    assert f"cannot listen on {host}: " in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "asked"),
    [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("::", "127.0.0.1")],
)
def test_server_listens_on_every_kind_of_address(address: str, asked: str, tmp_path: Path) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("place", ["{}/data", "file://{}/data"])
def test_read_only_registry_serves_a_read_only_directory(tmp_path: Path, place: str) -> None:
    """The directory is mounted so that not even root can write."""
    data = tmp_path / "data"
    client = RegistryClient(storage_at(data))
    assert client.push_manifest("a", "v1", b"{}").status_code == 201
    with mounted(data, data, "--bind"):
        run("mount", "-o", "remount,ro,bind", data, data)
        options = ["--read-only", "--storage", place.format(tmp_path)]
        with example("registry", tmp_path / "log", *options) as host:
            assert requests.get(f"http://{host}/healthz", timeout=10).status_code == 200
            url = f"http://{host}/v2/a/manifests/v1"
            assert requests.get(url, timeout=10).content == b"{}"
            assert requests.put(url, b"{}", timeout=10).status_code == 405


def test_read_only_registry_creates_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["registry.py", "--read-only", "--port", "0", "--storage", "new"]
    status, printed, said = ended(registry_main, monkeypatch, *command)
    error = "--storage 'new': there is no such directory"
    assert (status, printed, said) == (2, "", f"registry.py: error: {error}\n")
    assert not list(tmp_path.iterdir())


# Health.


class Failing(CheckedMemory):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def check(self) -> None:
        raise self.error


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
    for error in OSError("the disk \x1b[2J is gone"), RuntimeError("it is gone"):
        caplog.clear()
        client = Client(make_app(Failing(error)))
        assert client.get("/healthz").status_code == 503
        assert "gone" not in client.get("/healthz").text
        assert "gone" in caplog.text
    Client(make_app(Failing(RuntimeError()))).get("/healthz")
    assert "RuntimeError()" in caplog.text


class Hanging(CheckedMemory):
    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def check(self) -> None:
        self.goes_on.wait(30)


def test_hanging_check_takes_up_one_thread(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("health.MAX_CHECK", 0.2)
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
    client = Client(add_health(Response("other"), storage_at(tmp_path)))
    assert client.get("/healthz").text == "ok\n"
    assert client.get("/v2/").text == "other"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_healthz_fails_for_a_missing_bucket(s3: None) -> None:
    assert Client(make_app(storage_at("s3://images/x"))).get("/healthz").status_code == 200
    assert Client(make_app(storage_at("s3://nothing/x"))).get("/healthz").status_code == 503


# The log.


@pytest.mark.slow
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


@pytest.mark.slow
def test_log_line_ends_with_the_seconds_that_the_request_took(tmp_path: Path) -> None:
    with registry(tmp_path) as host, socket.create_connection(address_of(host)) as connection:
        connection.sendall(
            b"PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{"
        )
        time.sleep(0.5)
        connection.sendall(b"}")
        assert connection.recv(100).startswith(b"HTTP/1.1 201 ")
        requests.get(f"http://{host}/v2/", timeout=10)
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if " - - " in line]
    took = {"PUT" in line: float(line.rpartition(" ")[2]) for line in lines}
    assert 0.1 < took[True] < 5  # its time begins when a thread has its headers
    assert took[False] < took[True]


def test_response_that_a_storage_cuts_short_is_one_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = Log(Config())
    log.error_log.propagate = True
    try:
        raise OSError("the store\nhas hung up")
    except OSError:
        log.exception("Socket error processing request.")
    (record,) = caplog.records
    assert record.exc_info is None
    assert record.getMessage() == "a response was cut short: the store has hung up"


# Forwarded headers.


@pytest.mark.slow
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
@pytest.mark.parametrize(
    ("name", "size"), [("SIGTERM", 20_000_000), ("SIGHUP", 1000), ("SIGINT", 20_000_000)]
)
def test_upload_in_progress_is_finished(
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
    assert RegistryClient(storage_at(tmp_path / "data")).has_blob("a", content)


@pytest.mark.slow
def test_upload_that_does_not_end_is_cut_off(
    server: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    process, host = server
    content = os.urandom(20_000_000)
    with slow_upload(host, content) as connection:
        process.terminate()
        assert process.wait(20) == 0
        with suppress(ConnectionError):
            assert connection.recv(4096)[9:12] != b"201"
    assert blobs_in(tmp_path / "data") == []
    assert not RegistryClient(storage_at(tmp_path / "data")).has_blob("a", content)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_server_keeps_serving_while_its_workers_are_replaced(
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
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
    wait_until(lambda: len(pids_of(tmp_path)) == 2)
    done.set()
    asker.join()
    assert process.pid in before
    assert before & set(pids_of(tmp_path)) == {process.pid}
    assert len(answers) > 20
    assert set(answers) == {200}


@pytest.mark.slow
def test_new_program_takes_over_the_socket(
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
def test_worker_without_storage_ends_the_server(
    server: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    process, _ = server
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) != 0
    log = (tmp_path / "log").read_text()
    assert "cannot start a worker: there is no such directory\n" in log
    assert "Traceback" not in log
    assert not (tmp_path / "data").exists()
