import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from hypothesis import settings
from obstore.store import MemoryStore
from storage import BucketStorage, storage_at

from registry_routes.registry import MemoryStorage, Storage
from registry_routes.testing import ServedRegistry

from .proxies import ProxyClient
from .proxies import registry as registry_with_an_image
from .served import serve
from .servers import free_port, serving

# A shell makes its background jobs ignore Ctrl-C, and the programs that the tests start with them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# `--hypothesis-profile` selects one. Neither has a deadline, because the time of one example means
# nothing on a busy machine.
settings.register_profile("quick", deadline=None, max_examples=12)
settings.register_profile("thorough", deadline=None, max_examples=300)
settings.load_profile("quick")

S3 = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


@pytest.fixture(params=["http", "wsgi"])
def transport(request: pytest.FixtureRequest) -> str:
    """How a client reaches a registry for tests: over HTTP, or without a socket."""
    found: str = request.param
    return found


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 and localhost, which is its own authority, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (Debian: apt install openssl)")
    directory = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1,DNS:localhost"
    command += " -addext keyUsage=critical,digitalSignature,keyCertSign"
    command += " -keyout key.pem -out certificate.pem"
    subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)
    return directory / "certificate.pem"


@pytest.fixture(scope="session")
def tls(certificate: Path) -> ssl.SSLContext:
    """The context of a server for TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return context


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of moto's server on loopback, with a bucket named "images"."""
    pytest.importorskip("moto", reason="moto cannot be installed on this Python")
    port = free_port()
    log = tmp_path_factory.mktemp("moto") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    # moto itself sometimes fails under many requests at once, and obstore tries again.
    with serving(command, port, log, clean=False) as host:
        requests.put(f"http://{host}/images", timeout=10).raise_for_status()
        yield f"http://{host}"


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which ``s3://images`` is a bucket."""
    for name, value in {**S3, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def served() -> Iterator[ServedRegistry]:
    """A registry in memory, which fails on demand."""
    with serve() as registry:
        yield registry


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the example client would have waited, each time; it does not wait."""
    seconds = list[float]()
    monkeypatch.setattr("client.time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.fixture(
    params=["memory", "directory", "object store", pytest.param("s3", marks=pytest.mark.slow)]
)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of each kind. The object store is one of obstore's, in this process."""
    if request.param == "memory":
        return MemoryStorage()
    if request.param == "directory":
        return storage_at(tmp_path)
    if request.param == "object store":
        return BucketStorage(MemoryStore())
    request.getfixturevalue("s3")
    return storage_at(f"s3://images/{tmp_path.name}")


@pytest.fixture
def upstream() -> Iterator[ServedRegistry]:
    """The registry behind `proxy`, with an image."""
    with registry_with_an_image() as served:
        yield served


@pytest.fixture
def proxy(upstream: ServedRegistry) -> ProxyClient:
    return ProxyClient(upstream.url)
