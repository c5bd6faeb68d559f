"""`examples/nginx.conf`: nginx in front of the registry."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from registry_routes.digests import digest_of

from . import oci_layout
from .served import wait_until
from .servers import (
    BLOB,
    BLOB_PATH,
    EXAMPLES,
    answer_to,
    example,
    free_port,
    push,
    registry,
    serving,
    skopeo,
)

pytestmark = pytest.mark.slow


@contextmanager
def nginx(tmp_path: Path, registry: str, certificate: Path | None = None) -> Iterator[str]:
    """Host and port of nginx before a registry; with a certificate, for TLS."""
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
    if certificate:
        config = re.sub("# (listen 5443|ssl_certificate)", r"\1", config)
        config = config.replace("listen 5443 ", f"listen 127.0.0.1:{secure} ")
        for name in certificate.name, "key.pem":
            shutil.copy(certificate.with_name(name), directory)
    (directory / "nginx.conf").write_text(config)
    # As root, nginx's workers are of a user who may not enter pytest's directories.
    user = "user root; " if os.geteuid() == 0 else ""
    command = [program, "-p", str(directory), "-c", "nginx.conf", "-g", f"{user}daemon off;"]
    with serving(command, plain, tmp_path / "nginx.log") as host:
        yield f"127.0.0.1:{secure}" if certificate else host


@pytest.fixture
def session(certificate: Path) -> Iterator[requests.Session]:
    """A client that trusts the certificate."""
    with requests.Session() as session:
        session.trust_env = False  # which may name other certificates
        session.verify = str(certificate)
        yield session


@pytest.fixture(scope="module")
def direct_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that sends blobs itself."""
    with registry(tmp_path_factory.mktemp("plain")) as host:
        push(host, "slow", BLOB)
        yield host


@pytest.fixture(scope="module")
def nginx_and_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Host and port of nginx, and of the registry behind it, whose log is there."""
    directory = tmp_path_factory.mktemp("behind")
    options = "--behind-proxy", "--x-accel"
    with registry(directory, *options) as behind, nginx(directory, behind) as host:
        push(host, "slow", BLOB)
        yield host, behind, directory / "log"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Range": "bytes=5-9"},
        {"Range": "bytes=-7"},
        {"Range": "bytes=9999999-"},
        {"Range": "bytes=1-2,5-6"},
        {"Range": "bytes=1-2", "If-Range": '"another"'},
        {"Range": "bytes=1-2", "If-Range": f'"{digest_of(BLOB)}"'},
        {"If-None-Match": f'"{digest_of(BLOB)}"'},
        {"If-Match": '"another"'},
        {"If-Match": f'"{digest_of(BLOB)}"'},
        {"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"},
        {"If-Range": "Thu, 01 Jan 2099 00:00:00 GMT", "Range": "bytes=5-9"},
        {"If-Modified-Since": "Thu, 01 Jan 2099 00:00:00 GMT"},
    ],
)
def test_nginx_sends_a_blob_as_the_registry_does(
    nginx_and_registry: tuple[str, str, Path], direct_host: str, headers: dict[str, str]
) -> None:
    for method in "GET", "HEAD":
        sent, expected = (
            requests.request(method, f"http://{server}{BLOB_PATH}", headers=headers, timeout=10)
            for server in (nginx_and_registry[0], direct_host)
        )
        assert sent.status_code == expected.status_code
        own = {"Date", "Server", "Connection", "Accept-Ranges"}  # nginx omits the last at times
        if expected.status_code == 416:  # this is nginx's own
            own |= {"Content-Type", "Content-Length", "Docker-Content-Digest"}
        else:
            assert sent.content == expected.content
        assert {*sent.headers.items()} ^ {*expected.headers.items()} <= {
            (name, answer.headers.get(name)) for answer in (sent, expected) for name in own
        }


def test_clients_cannot_request_the_stored_files_from_nginx(
    nginx_and_registry: tuple[str, str, Path],
) -> None:
    path = f"blobs/{digest_of(BLOB).replace(':', '/')}"
    for target in f"/stored/{path}", f"/stored/%2e/{path}":
        raw = f"GET {target} HTTP/1.1\r\nHost: x\r\nX-Accel-Redirect: /stored/{path}\r\n"
        answer = answer_to(nginx_and_registry[0], f"{raw}Connection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 1000000\r\n\r\n" + bytes(500_000),
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
    ],
)
def test_body_that_breaks_off_does_not_reach_the_registry(
    nginx_and_registry: tuple[str, str, Path], body: bytes
) -> None:
    host, _, log = nginx_and_registry
    location = requests.post(f"http://{host}/v2/a/blobs/uploads/", timeout=10).headers["Location"]
    request = f"PATCH {location} HTTP/1.1\r\nHost: x\r\n".encode() + body
    assert not answer_to(host, request, breaks_off=True).startswith(b"HTTP/1.1 2")
    status = requests.get(f"http://{host}{location}", timeout=10)
    assert status.headers["Range"] == "0-0"
    assert f"PATCH {location}" not in log.read_text()


@pytest.mark.parametrize(
    "target",
    ["/v2/a/../_catalog", "/v2//_catalog", "/v2/a%252Fb/tags/list", "/v2/_catalog?n=%31", "/v2"],
)
def test_nginx_passes_targets_on_unchanged(
    nginx_and_registry: tuple[str, str, Path], target: str
) -> None:
    through, behind, log = nginx_and_registry
    request = f"GET {target} HTTP/1.1\r\nHost: registry.example:5080\r\nConnection: close\r\n\r\n"
    seen = []
    for host in through, behind:
        head, _, body = answer_to(host, request.encode()).partition(b"\r\n\r\n")
        seen.append((head.split()[1], re.findall(rb"\r\nLocation: (.*)\r", head), body))
    assert seen[0] == seen[1]
    # A line comes after the answer.
    wait_until(lambda: log.read_text().count(f"GET {target} HTTP/1.1") == 2)


def test_urls_behind_nginx_have_the_clients_scheme_and_host(
    tmp_path: Path, certificate: Path, session: requests.Session
) -> None:
    options = ["--storage", "memory://", "--behind-proxy"]
    lies = {
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Proto": "gopher",
        "X-Forwarded-Host": "evil.example",
    }
    with (
        example("gateway", tmp_path / "log", *options) as behind,
        nginx(tmp_path, behind, certificate) as host,
    ):
        for named in host, "registry.example":
            headers = {**lies, "Host": named}
            answer = session.get(f"https://{host}/v2/", headers=headers, timeout=10)
            assert f'realm="https://{named}/token"' in answer.headers["WWW-Authenticate"]
    log = (tmp_path / "log").read_text()
    assert "127.0.0.1 - - " in log
    assert "192.0.2.7" not in log


def test_large_layer_goes_both_ways_through_nginx(tmp_path: Path) -> None:
    block, count = os.urandom(1024 * 1024), 64
    digest = digest_of(block * count)
    with registry(tmp_path, "--behind-proxy") as behind, nginx(tmp_path, behind) as host:
        root = f"http://{host}/v2/a/blobs"
        location = requests.post(f"{root}/uploads/", timeout=10).headers["Location"]
        url = f"http://{host}{location}"
        chunked = requests.patch(url, (block for _ in range(count)), timeout=300)
        assert chunked.headers["Range"] == f"0-{len(block) * count - 1}"
        assert requests.put(url, params={"digest": digest}, timeout=300).status_code == 201
        pulled = requests.get(f"{root}/{digest}", timeout=300)
        assert int(pulled.headers["Content-Length"]) == len(block) * count
        assert digest_of(pulled.content) == digest


@pytest.fixture
def whole_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `nginx` use the line of the page for clients that take no path as a Location."""
    [line] = re.findall("^proxy_redirect .*;$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    config = (EXAMPLES / "nginx.conf").read_text()
    assert config.count("proxy_redirect off;") == 1
    (tmp_path / "nginx.conf").write_text(config.replace("proxy_redirect off;", line))
    monkeypatch.setattr("tests.test_nginx.EXAMPLES", tmp_path)


@pytest.mark.usefixtures("whole_urls")
def test_line_of_the_page_makes_locations_whole_urls(
    tmp_path: Path, certificate: Path, session: requests.Session
) -> None:
    with (
        registry(tmp_path, "--behind-proxy") as behind,
        nginx(tmp_path, behind, certificate) as host,
    ):
        begun = session.post(f"https://{host}/v2/a/b/blobs/uploads/", timeout=10)
        assert begun.headers["Location"].startswith(f"https://{host}/v2/a/b/blobs/uploads/")
        query = {"digest": digest_of(b"x")}
        done = session.put(begun.headers["Location"], b"x", params=query, timeout=10)
        assert done.headers["Location"] == f"https://{host}/v2/a/b/blobs/{digest_of(b'x')}"
        moved = session.get(f"https://{host}/v2?a=b", allow_redirects=False, timeout=10)
        assert moved.headers["Location"] == f"https://{host}/v2/?a=b"


def charliecloud(
    directory: Path, certificate: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run ``ch-image``, which speaks no plain http, with its storage in a directory."""
    program = shutil.which("ch-image")
    if program is None:
        pytest.skip("ch-image is not installed (Debian: apt install charliecloud)")
    command = [program, "--no-cache", "--storage", str(directory / "ch"), *arguments]
    # Debian's Python has the modules that it imports.
    path = f"/usr/bin:/bin:{os.environ['PATH']}"
    added = {"PATH": path, "USER": "root", "REQUESTS_CA_BUNDLE": str(certificate)}
    environment = {**os.environ, **added}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("has_line", [False, True])
def test_charliecloud_pushes_with_the_line_of_the_page(
    has_line: bool, tmp_path: Path, certificate: Path, request: pytest.FixtureRequest
) -> None:
    """It takes the `Location` of an upload for a URL, though it may be a path."""
    if has_line:
        request.getfixturevalue("whole_urls")
    image = tmp_path / "image"
    oci_layout.write(image, [300_000, 1], ["amd64"])
    with (
        registry(tmp_path, "--behind-proxy") as behind,
        nginx(tmp_path, behind, certificate) as host,
    ):
        skopeo("copy --dest-tls-verify=false", f"oci:{image}:v1", f"docker://{behind}/a/b:v1")
        pulled = charliecloud(tmp_path, certificate, "pull", f"{host}/a/b:v1")
        assert pulled.returncode == 0, pulled.stderr
        pushed = charliecloud(tmp_path, certificate, "push", f"{host}/a/b:v1", f"{host}/a/b:v2")
        assert (pushed.returncode == 0) == has_line, pushed.stderr
        tags = requests.get(f"http://{behind}/v2/a/b/tags/list", timeout=10).json()["tags"]
        assert tags == (["v1", "v2"] if has_line else ["v1"])
