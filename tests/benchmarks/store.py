"""The number of requests that registries make to an object store, moto's S3.

    python -m tests.benchmarks.registry --s3

A proxy in front of moto counts. Each row is a function that prepares a measurement, and returns a
function whose requests count. Debian's ``docker-registry`` with its S3 driver takes part, if it is
installed. Object stores bill requests, and each takes milliseconds.
"""

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_MANIFEST

from ..servers import EXAMPLES, debians_registry, free_port, serving
from .clients import IMAGE_CONFIG, add_digest, ask, new_name, push_blob, push_manifest, show

Act = Callable[[], Any]

S3 = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


class Counter(ThreadingHTTPServer):
    """A proxy in front of a server, which counts requests and the bytes of responses."""

    daemon_threads = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.server = server
        self.requests = self.received = 0
        self.counting = threading.Lock()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Relay(BaseHTTPRequestHandler):
    """A handler that passes a request on, and its response back."""

    protocol_version = "HTTP/1.1"
    server: Counter

    def relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = HTTPConnection(self.server.server, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        content = response.read()
        with self.server.counting:
            self.server.requests += 1
            self.server.received += len(content)
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        size = response.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(size or 0))
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def start_counter(server: str) -> Iterator[Counter]:
    counter = Counter(server)
    thread = threading.Thread(target=counter.serve_forever)
    thread.start()
    try:
        yield counter
    finally:
        counter.shutdown()
        thread.join()
        counter.server_close()


@contextmanager
def serve_moto(directory: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, port, directory / "moto.log", clean=False) as host:
        ask(host, "PUT", "/images")
        yield host


@contextmanager
def serve_ours(directory: Path, store: str) -> Iterator[str]:
    port = free_port()
    os.environ.update(S3, AWS_ENDPOINT_URL=f"http://{store}")
    program = str(EXAMPLES / "registry.py")
    command = [sys.executable, program, "--port", str(port), "--storage", "s3://images/ours"]
    with serving(command, port, directory / "ours.log", clean=False) as host:
        yield host


@contextmanager
def serve_debians(directory: Path, store: str) -> Iterator[str]:
    s3 = {
        "accesskey": "test",
        "secretkey": "test",
        "region": "us-east-1",
        "regionendpoint": f"http://{store}",
        "bucket": "images",
        "rootdirectory": "/debians",
        "secure": False,
        "v4auth": True,
    }
    storage = {"delete": {"enabled": True}, "redirect": {"disable": True}, "s3": s3}
    os.environ.pop("AWS_CA_BUNDLE", None)  # with it, docker-registry does not start
    with debians_registry(directory, storage=storage) as host:
        yield host


# Each function prepares a measurement, and returns the function whose requests count.


def push_small(host: str) -> Act:
    name, content = new_name(), os.urandom(3000)
    return lambda: push_blob(host, name, content)


def push_chunks(count: int) -> Callable[[str], Act]:
    def prepare(host: str) -> Act:
        name, chunks = new_name(), [os.urandom(10_000) for _ in range(count)]

        def push() -> None:
            location = ask(host, "POST", f"/v2/{name}/blobs/uploads/")
            for chunk in chunks:
                location = ask(host, "PATCH", location, chunk)
            ask(host, "PUT", add_digest(location, digest_of(b"".join(chunks))))

        return push

    return prepare


def get_blob(method: str) -> Callable[[str], Act]:
    def prepare(host: str) -> Act:
        name, content = new_name(), os.urandom(3000)
        push_blob(host, name, content)
        return lambda: ask(host, method, f"/v2/{name}/blobs/{digest_of(content)}")

    return prepare


def put_manifest(blobs: int) -> Callable[[str], Act]:
    def prepare(host: str) -> Act:
        name, contents = new_name(), [b"{}", *(os.urandom(10) for _ in range(blobs - 1))]
        for content in contents:
            push_blob(host, name, content)
        layers = ",".join(
            f'{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest_of(content)}",'
            f'"size":{len(content)}}}'
            for content in contents[1:]
        )
        manifest = (
            f'{{"schemaVersion":2,"mediaType":"{IMAGE_MANIFEST}","layers":[{layers}],'
            f'"config":{{"mediaType":"{IMAGE_CONFIG}","digest":"{digest_of(b"{}")}","size":2}}}}'
        )
        path = f"/v2/{name}/manifests/v1"
        return lambda: ask(host, "PUT", path, manifest.encode(), IMAGE_MANIFEST)

    return prepare


def get_manifest(host: str) -> Act:
    name = new_name()
    push_blob(host, name, b"{}")
    push_manifest(host, name, "v1")
    return lambda: ask(host, "GET", f"/v2/{name}/manifests/v1")


def delete_manifest(host: str) -> Act:
    name = new_name()
    push_blob(host, name, b"{}")
    content = (
        f'{{"schemaVersion":2,"mediaType":"{IMAGE_MANIFEST}","layers":[],'
        f'"config":{{"mediaType":"{IMAGE_CONFIG}","digest":"{digest_of(b"{}")}","size":2}}}}'
    ).encode()
    for number in range(21):
        ask(host, "PUT", f"/v2/{name}/manifests/v{number}", content, IMAGE_MANIFEST)
    return lambda: ask(host, "DELETE", f"/v2/{name}/manifests/{digest_of(content)}")


def list_catalog(host: str) -> Act:
    return lambda: ask(host, "GET", "/v2/_catalog?n=100")


def list_referrers(host: str) -> Act:
    name, subject = new_name(), digest_of(b"subject")
    for number in range(20):
        content = (
            f'{{"schemaVersion":2,"mediaType":"{IMAGE_MANIFEST}","layers":[],'
            f'"artifactType":"application/x","subject":{{"mediaType":"{IMAGE_MANIFEST}",'
            f'"digest":"{subject}","size":7}},"annotations":{{"x":"{number}"}}}}'
        ).encode()
        ask(host, "PUT", f"/v2/{name}/manifests/r{number}", content, IMAGE_MANIFEST)
    return lambda: ask(host, "GET", f"/v2/{name}/referrers/{subject}")


def check_health(host: str) -> Act:
    return lambda: ask(host, "GET", "/healthz")


ROWS: dict[str, Callable[[str], Act]] = {
    "POST and PUT of 3 KB": push_small,
    "10 chunks": push_chunks(10),
    "100 chunks": push_chunks(100),
    "GET of a blob": get_blob("GET"),
    "HEAD of a blob": get_blob("HEAD"),
    "PUT of a manifest with 2 blobs": put_manifest(2),
    "PUT of a manifest with 11 blobs": put_manifest(11),
    "GET of a manifest by tag": get_manifest,
    "DELETE of a manifest with 21 tags": delete_manifest,
    "a page of the catalog": list_catalog,
    "20 referrers": list_referrers,
    "/healthz": check_health,
}


def count_requests(counter: Counter, host: str, prepare: Callable[[str], Act]) -> str:
    try:
        act = prepare(host)
        before, received = counter.requests, counter.received
        act()
    except RuntimeError:  # the registry has no such endpoint
        return "–"
    return f"{counter.requests - before} ({(counter.received - received) / 1000:,.1f} KB)"


def compare() -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        counter = stack.enter_context(start_counter(stack.enter_context(serve_moto(directory))))
        hosts = {"examples/registry.py": stack.enter_context(serve_ours(directory, counter.host))}
        if shutil.which("docker-registry"):
            hosts["docker-registry"] = stack.enter_context(serve_debians(directory, counter.host))
        show(["requests (and KB received)", *hosts])
        show(["---"] * (len(hosts) + 1))
        for title, prepare in ROWS.items():
            show([title, *(count_requests(counter, host, prepare) for host in hosts.values())])
