"""Starts servers on a free port, as their users would."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import requests

from registry_routes.__main__ import main
from registry_routes.digests import digest_of

EXAMPLES = Path(__file__).parent.parent / "examples"
BLOB = bytes(range(256)) * 4096  # 1 MiB
BLOB_PATH = f"/v2/slow/blobs/{digest_of(BLOB)}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    command: list[str], port: int, log: Path, *, clean: bool = True, cwd: Path | None = None
) -> Iterator[str]:
    """Run `command`, and yield its host and port. If `clean`, it must log no traceback and no 500."""
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=file, stderr=file, cwd=cwd) as server,
    ):
        try:
            for _ in range(300):
                assert server.poll() is None, log.read_text()
                with socket.socket() as probe:
                    if not probe.connect_ex(("127.0.0.1", port)):
                        break
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
    logged = log.read_text() if clean else ""
    assert "Traceback" not in logged
    assert '" 500 ' not in logged


@contextmanager
def example(name: str, log: Path, *options: str, clean: bool = True) -> Iterator[str]:
    """Run ``examples/<name>.py``, and yield its host and port."""
    port = free_port()
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--port", str(port), *options]
    with serving(command, port, log, clean=clean) as host:
        yield host


@contextmanager
def registry(directory: Path, *options: str) -> Iterator[str]:
    """Run the example registry on a storage in `directory`, and yield its host and port."""
    options = "--storage", str(directory / "data"), *options
    with example("registry", directory / "log", *options) as host:
        yield host


def address_of(host: str) -> tuple[str, int]:
    name, _, port = host.rpartition(":")
    return name, int(port)


def answer_to(host: str, raw: bytes, *, breaks_off: bool = False) -> bytes:
    """Send these bytes, and return the answer up to the end of the connection."""
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


def output_of(*command: str) -> tuple[int, str]:
    """Run the package's command line, and return its exit status and all its output."""
    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        return main(command), printed.getvalue()


def ended(
    program: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *command: str
) -> tuple[object, str, str]:
    """Run a program of the examples, and return its exit status and its output.

    It runs in this process, which takes a tenth of the time of a new one.
    """
    monkeypatch.setattr(sys, "argv", list(command))
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        program()
    return end.value.code, out.getvalue(), err.getvalue()


@contextmanager
def debians_registry(directory: Path, **settings: Any) -> Iterator[str]:
    """Run Debian's ``docker-registry``, Go distribution, and yield its host and port."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (Debian: apt install docker-registry)")
    port = free_port()
    config = directory / "config.yml"
    filesystem = {"rootdirectory": str(directory / "data")}
    content = {
        "version": 0.1,
        "http": {"addr": f"127.0.0.1:{port}"},
        "storage": {"delete": {"enabled": True}, "filesystem": filesystem},
        **settings,
    }
    config.write_text(json.dumps(content))  # JSON is YAML too
    with serving([program, "serve", str(config)], port, directory / "log") as host:
        yield host


def peak_of(host: str) -> int:
    """Return the peak memory, in bytes, of the largest process that listens there."""
    port = f":{int(host.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    [inode] = [line[9] for line in lines if line[1].endswith(port) and line[3] == "0A"]
    peaks = []
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if any(file.readlink().name == f"socket:[{inode}]" for file in descriptors.iterdir()):
                status = (descriptors.parent / "status").read_text()
                peaks.append(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
    return max(peaks)


def files_of(layout: Path) -> dict[str, bytes]:
    """The blobs of an OCI image layout."""
    return {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}


@contextmanager
def podman_or_buildah(program: str) -> Iterator[Callable[..., str]]:
    """Runs the program, in its own storage, and returns the last line that it prints."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed (Debian: apt install {program})")
    with tempfile.TemporaryDirectory() as short:  # podman needs a short path
        storage = ["--root", f"{short}/root", "--runroot", f"{short}/run"]

        def run(*arguments: str) -> str:
            command = [found, *storage, "--storage-driver", "vfs", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip().rpartition("\n")[2]

        yield run


def skopeo(command: str, *arguments: str, fails: bool = False) -> str:
    """What skopeo prints; its errors, if it must fail."""
    program = shutil.which("skopeo")
    if program is None:
        pytest.skip("skopeo is not installed (Debian: apt install skopeo)")
    run = subprocess.run(
        [program, "--insecure-policy", *command.split(), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode != 0) == fails, run.stderr
    return run.stderr if fails else run.stdout
