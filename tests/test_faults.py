"""Nothing that was acknowledged is lost, whenever the registry is killed; nothing hostile hurts it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import requests
from storage import storage_at

from registry_routes import resolve_location
from registry_routes.digests import digest_of

from . import nasty
from .registry_client import RegistryClient, manifest_of
from .servers import EXAMPLES, example, free_port

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("REGISTRY_ROUTES_SEED", "1500"))


class Killable:
    """A registry of several workers, in a process group of its own."""

    def __init__(self, storage: Path, port: int) -> None:
        command = [sys.executable, str(EXAMPLES / "registry.py"), "--port", str(port)]
        command += ["--storage", str(storage), "--workers", "3", "--threads", "4"]
        with (storage.parent / "log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.root = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                requests.get(f"{self.root}/v2/", timeout=5)
                return
            except requests.ConnectionError:
                time.sleep(0.05)
        raise AssertionError((storage.parent / "log").read_text())

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def kill_a_worker(self, random: Random) -> None:
        if workers := self.workers():
            os.kill(random.choice(workers), signal.SIGKILL)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Pusher(threading.Thread):
    """Pushes blobs and manifests, whole and in chunks, until told to stop."""

    def __init__(self, root: str, seed: int, stop: threading.Event) -> None:
        super().__init__()
        self.root, self.random, self.stop = root, Random(seed), stop
        self.name_pushed_to = f"faults/r{seed % 3}"
        self.blobs: list[tuple[str, str]] = []
        self.manifests: list[tuple[str, str]] = []
        self.tags: dict[str, str] = {}
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self.push()
            except requests.RequestException:
                time.sleep(0.02)  # it was killed

    def ask(self, method: str, url: str, **options: Any) -> requests.Response:
        response = requests.request(method, url, timeout=20, **options)
        if response.status_code >= 500:
            self.wrong.append(f"{method} {url}: {response.status_code} {response.text}")
        response.raise_for_status()
        return response

    def push(self) -> None:
        uploads = f"{self.root}/v2/{self.name_pushed_to}/blobs/uploads/"
        content = self.random.randbytes(self.random.choice([0, 1, 1000, 300_000, 3_000_000]))
        digest = digest_of(content)
        if self.random.random() < 0.4:
            self.ask("POST", uploads, params={"digest": digest}, data=content)
        else:
            location = self.ask("POST", uploads).headers["Location"]
            for start in range(0, len(content), 1_000_000):
                chunk = content[start : start + 1_000_000]
                self.ask("PATCH", resolve_location(uploads, location), data=chunk)
            self.ask("PUT", resolve_location(uploads, location, digest=digest))
        self.blobs.append((self.name_pushed_to, digest))
        manifest = manifest_of(content)
        tag = f"t{self.random.randrange(5)}-{self.ident}"
        self.tags.pop(tag, None)  # until it is acknowledged, it may be either
        self.ask("PUT", f"{self.root}/v2/{self.name_pushed_to}/manifests/{tag}", data=manifest)
        self.manifests.append((self.name_pushed_to, digest_of(manifest)))
        self.tags[tag] = digest_of(manifest)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="it needs Linux's /proc")
def test_registry_killed_at_random_moments_loses_nothing(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    random, port, storage = Random(SEED), free_port(), tmp_path / "data"
    blobs: set[tuple[str, str]] = set()
    manifests: set[tuple[str, str]] = set()
    for round_number in range(30):
        registry, stop = Killable(storage, port), threading.Event()
        pushers = [Pusher(registry.root, SEED + 10 * round_number + i, stop) for i in range(4)]
        for pusher in pushers:
            pusher.start()
        for _ in range(3):
            time.sleep(random.uniform(0.05, 0.4))
            registry.kill_a_worker(random)
        time.sleep(random.uniform(0.05, 0.4))
        registry.kill()
        stop.set()
        for pusher in pushers:
            pusher.join()
            blobs.update(pusher.blobs)
            manifests.update(pusher.manifests)
            assert not pusher.wrong
        tags = [(p.name_pushed_to, tag, digest) for p in pushers for tag, digest in p.tags.items()]
        assert_all_there(Killable(storage, port), storage, blobs, manifests, tags)
        if round_number >= 5 and min(len(blobs), len(manifests)) > 30:
            break  # on a busy machine there is less in a round
    assert len(blobs) > 30
    assert len(manifests) > 30


def assert_all_there(
    registry: Killable,
    storage: Path,
    blobs: set[tuple[str, str]],
    manifests: set[tuple[str, str]],
    tags: list[tuple[str, str, str]],
) -> None:
    """Look, through the registry, as it is started again, and at the files; then kill it."""
    session = requests.Session()
    try:
        for kind, pushed in ("blobs", blobs), ("manifests", manifests):
            for name, digest in pushed:
                response = session.get(f"{registry.root}/v2/{name}/{kind}/{digest}", timeout=20)
                assert response.status_code == 200, (kind, digest)
                assert digest_of(response.content) == digest
        for name, tag, digest in tags:
            response = session.get(f"{registry.root}/v2/{name}/manifests/{tag}", timeout=20)
            assert response.headers["Docker-Content-Digest"] == digest
        for name in {name for name, _ in manifests}:
            listed = session.get(f"{registry.root}/v2/{name}/tags/list", timeout=20).json()["tags"]
            for tag in listed:  # those too that were not acknowledged
                response = session.get(f"{registry.root}/v2/{name}/manifests/{tag}", timeout=20)
                assert response.status_code == 200
        for path in storage.glob("blobs/sha256/*"):
            assert digest_of(path.read_bytes()) == f"sha256:{path.name}"
    finally:
        registry.kill()


# Hostile input.


def hostile_requests(random: Random, count: int) -> Iterator[dict[str, Any]]:
    """Requests that are wrong somewhere, built on the route table and the nasty targets."""
    numbers = ["0", "-1", "5", "99999999999999999999", "x", "", "0-4", "4-0", "0-", "bytes 0-4/9",
               "bytes=0-4", "9" * 5000, "1e9", "٣"]  # fmt: skip
    digests = [*nasty.DIGESTS.all, digest_of(b"x"), digest_of(b""), "..", "../../etc/passwd"]
    bodies = [b"", b"x", b"{}", b"[]", b"\xff", b'{"layers": 3}', b"{" * 5000, b'{"subject": []}',
              b'{"config": {"digest": "../../x"}}', b'{"manifests": null, "layers": null}']  # fmt: skip
    methods = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "get", "TRACE"]
    for _ in range(count):
        path = nasty.target(random, "")
        query = "&".join(
            f"{name}={random.choice([*numbers, *map(repr, digests)])}"
            for name in random.sample(
                ["n", "last", "mount", "from", "digest", "tag", "digest-algorithm", "artifactType"],
                random.randrange(4),
            )
        )
        headers = {
            name: random.choice(numbers)
            for name in ("Content-Range", "Range", "If-Range", "If-None-Match", "Content-Type")
            if random.random() < 0.3
        }
        yield {
            "method": random.choice(methods),
            "path": path.partition("?")[0],
            "query_string": query.encode().decode("latin-1"),
            "data": random.choice(bodies),
            "environ_overrides": {
                f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()
            },
        }


def test_hostile_requests(tmp_path: Path) -> None:
    random, storage = Random(SEED), tmp_path / "data" / "storage"
    client = RegistryClient(storage_at(storage))
    location = client.begin_upload()
    seen: set[int] = set()
    for number, request in enumerate(hostile_requests(random, 5000)):
        if number % 5 == 0:  # at an upload that is there
            request["path"] = location
        response = client.open(**request)
        assert response.status_code < 500, (request, response.text)
        seen.add(response.status_code)
        is_ended = response.status_code in (201, 204) and request["path"] == location
        if is_ended and client.get(location).status_code == 404:  # it was finished or cancelled
            location = client.begin_upload()
    assert {200, 201, 202, 308, 400, 404, 405, 416} <= seen
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["storage"]
    assert {path.name for path in storage.iterdir()} <= {
        "blobs",
        "catalog",
        "locks",
        "repositories",
        "staging",
    }
    for path in storage.glob("blobs/sha256/*"):
        assert digest_of(path.read_bytes()) == f"sha256:{path.name}"
    assert not list(storage.glob("staging/*"))


RAW: list[bytes] = [
    b"PATCH {upload} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
    b"PATCH {upload} HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\nabc",
    b"PATCH {upload} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
    b"PATCH {upload} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n300000\r\nabc",
    b"PATCH {upload} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    b"PATCH {upload} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    b"PATCH {upload} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
    b"PUT {upload}?digest=sha256:00 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
    b"PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{}",
    b"GET http://[/v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/%zz%00/tags/list HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET\r\n\r\n",
    b"\r\n" * 1000,
]


def test_broken_requests_leave_the_upload_unchanged(tmp_path: Path) -> None:
    """Bodies that break off, lengths that lie: an answer or an end, and the upload as it was."""
    options = ["--storage", str(tmp_path / "data"), "--threads", "2"]
    with example("registry", tmp_path / "log", *options) as host:
        root = f"http://{host}"
        location = requests.post(f"{root}/v2/a/blobs/uploads/", timeout=10).headers["Location"]
        requests.patch(root + location, b"01234", timeout=10)
        address = (host.partition(":")[0], int(host.partition(":")[2]))
        for raw in RAW:
            with socket.create_connection(address, timeout=10) as connection:
                connection.sendall(raw.replace(b"{upload}", location.encode()))
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(4096)
            assert not answer.startswith(b"HTTP/1.1 5"), raw
            assert not answer.startswith(b"HTTP/1.1 2"), raw
            status = requests.get(root + location, timeout=10)
            assert status.headers["Range"] == "0-4", raw
        assert requests.get(f"{root}/v2/a/manifests/v1", timeout=10).status_code == 404


def test_early_answer_to_a_large_body_arrives(tmp_path: Path) -> None:
    with example("registry", tmp_path / "log", "--storage", str(tmp_path / "data")) as host:
        root, body = f"http://{host}", bytes(30_000_000)
        location = requests.post(f"{root}/v2/a/blobs/uploads/", timeout=30).headers["Location"]
        headers = {"Content-Range": f"5-{len(body) + 4}"}
        for _ in range(3):
            for method, url, status in (
                ("PATCH", root + location, 416),
                ("PUT", f"{root}/v2/a/manifests/v1", 413),
                ("PATCH", f"{root}/v2/a/blobs/uploads/none", 404),
                ("PUT", f"{root}/v2/_catalog", 405),
            ):
                response = requests.request(method, url, data=body, headers=headers, timeout=30)
                assert response.status_code == status
