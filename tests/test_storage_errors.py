"""A storage that fails, at the start and later: a line for the operator, 503 for the client."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from registry_routes.digests import digest_of

from .conftest import S3
from .servers import EXAMPLES, example, free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 that takes connections, and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name, value in {**S3, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.fixture
def without_credentials(s3: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{free_port()}")


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def assert_does_not_start(place: str, cwd: Path) -> None:
    for name in "registry", "gateway":
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--storage", place]
        command += ["--port", str(free_port())]
        start = time.monotonic()
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)
        assert time.monotonic() - start < 15
        assert run.returncode == 2, run.stderr
        assert run.stdout == ""
        assert run.stderr.count("\n") == 1, run.stderr
        assert f"--storage {place!r}: " in run.stderr


@pytest.mark.parametrize(
    "place",
    ["./a-file", "a-file/below", "/proc/nope", "ftp://x/y", "", "://", "s3://", "file:///no"],
)
def test_it_does_not_start_where_no_storage_can_be(place: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_bytes(b"")
    assert_does_not_start(place, tmp_path)


@pytest.mark.parametrize("kind", ["s3", "hanging", "without_credentials"])
def test_it_does_not_start_on_an_object_store_that_does_not_answer(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(kind)
    assert_does_not_start("s3://no-such-bucket/x", tmp_path)


def test_it_does_not_start_on_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert_does_not_start(str(disk), tmp_path)


def test_a_disk_that_is_full_or_cannot_be_written_to_is_a_503(tmp_path: Path) -> None:
    small, large = os.urandom(1000), os.urandom(5_000_000)
    with (
        small_disk(tmp_path / "disk") as disk,
        example("registry", tmp_path / "log", "--storage", str(disk)) as host,
    ):

        def push(content: bytes) -> requests.Response:
            uploads, query = f"http://{host}/v2/a/blobs/uploads/", {"digest": digest_of(content)}
            return requests.post(uploads, content, params=query, timeout=10)

        assert push(large).json()["errors"][0]["code"] == "UNAVAILABLE"
        assert push(small).status_code == 201
        assert [path.name for path in disk.rglob("*#*")] == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert push(small).status_code == 503
        uploads = requests.post(f"http://{host}/v2/a/blobs/uploads/", timeout=10)
        assert uploads.status_code == 503
        blob = requests.get(f"http://{host}/v2/a/blobs/{digest_of(small)}", timeout=10)
        assert blob.content == small
    failures = [
        line
        for line in (tmp_path / "log").read_text().splitlines()
        if "the storage has failed" in line
    ]
    assert len(failures) == 3
    assert all("'/v2/a/blobs/uploads/'" in line for line in failures)


def test_an_object_store_that_begins_to_hang_is_a_503_within_ten_seconds(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay before S3, which stops to pass on what it gets."""
    relay = free_port()
    code = (
        "import socket, sys, threading\n"
        "def copy(a, b):\n"
        "    while data := a.recv(65536):\n"
        "        if silent: continue\n"
        "        b.sendall(data)\n"
        "silent = []\n"
        "def stop(): sys.stdin.read(1); silent.append(1)\n"
        "threading.Thread(target=stop, daemon=True).start()\n"
        f"listener = socket.create_server(('127.0.0.1', {relay}))\n"
        "while True:\n"
        "    one, _ = listener.accept()\n"
        f"    two = socket.create_connection(('127.0.0.1', {s3_server.rpartition(':')[2]}))\n"
        "    threading.Thread(target=copy, args=(one, two), daemon=True).start()\n"
        "    threading.Thread(target=copy, args=(two, one), daemon=True).start()\n"
    )
    for name, value in {**S3, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{relay}"}.items():
        monkeypatch.setenv(name, value)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        try:
            place = f"s3://images/{tmp_path.name}"
            with example("registry", tmp_path / "log", "--storage", place) as host:
                root = f"http://{host}/v2/a"
                put = requests.put(f"{root}/manifests/v1", b"{}", timeout=10)
                assert put.status_code == 201
                assert process.stdin
                process.stdin.write(b"x")
                process.stdin.flush()
                for method, path in (
                    ("GET", "manifests/v1"),
                    ("PUT", "manifests/v2"),
                    ("GET", "tags/list"),
                    ("POST", "blobs/uploads/"),
                    ("HEAD", f"blobs/{digest_of(b'x')}"),
                ):
                    response = requests.request(method, f"{root}/{path}", data=b"{}", timeout=10)
                    assert response.status_code == 503, path
        finally:
            process.kill()
    logged = (tmp_path / "log").read_text()
    assert logged.count("the storage has failed") == 5
