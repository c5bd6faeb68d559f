"""`examples/nginx.conf`: nginx in front of the registry."""

import hashlib
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import pytest
import requests

from registry_routes.digests import digest_of

from .servers import EXAMPLES, example, free_port, serving
from .test_serving import (
    AMBIGUOUS,
    BLOB,
    BLOB_PATH,
    address_of,
    answer_to,
    assert_refused,
    push,
    registry,
)


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


@pytest.mark.parametrize("rest", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_nginx_refuses_ambiguous_requests(behind_nginx: tuple[str, str, Path], rest: str) -> None:
    assert_refused(behind_nginx[0], rest)


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
    behind_nginx: tuple[str, str, Path], plain: str, headers: dict[str, str]
) -> None:
    for method in "GET", "HEAD":
        sent, expected = (
            requests.request(method, f"http://{server}{BLOB_PATH}", headers=headers, timeout=10)
            for server in (behind_nginx[0], plain)
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
    behind_nginx: tuple[str, str, Path],
) -> None:
    path = f"blobs/{digest_of(BLOB).replace(':', '/')}"
    for target in f"/stored/{path}", f"/stored/../stored/{path}", f"/stored/%2e/{path}":
        raw = f"GET {target} HTTP/1.1\r\nHost: x\r\nX-Accel-Redirect: /stored/{path}\r\n"
        answer = answer_to(behind_nginx[0], f"{raw}Connection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("body", "is_reset"),
    [
        (b"Content-Length: 1000000\r\n\r\n" + bytes(500_000), False),
        (b"Content-Length: 1000000\r\n\r\n" + bytes(500_000), True),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", False),
        (b"Transfer-Encoding: chunked\r\n\r\n300000\r\n" + bytes(500_000), True),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", False),
    ],
)
def test_body_that_breaks_off_does_not_reach_the_registry(
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
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that sends blobs itself."""
    with registry(tmp_path_factory.mktemp("plain")) as host:
        push(host, "slow", BLOB)
        yield host


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
def test_nginx_passes_targets_on_unchanged(
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
def test_large_layer_goes_both_ways_through_nginx(tmp_path: Path) -> None:
    block, count = os.urandom(1024 * 1024), 256
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


@pytest.mark.parametrize("with_tls", [False, True])
def test_line_of_the_page_makes_locations_whole_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_tls: bool
) -> None:
    """Charliecloud takes the `Location` of an upload for a URL, though it may be a path."""
    [line] = re.findall("^proxy_redirect .*;$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    config = (EXAMPLES / "nginx.conf").read_text()
    assert config.count("proxy_redirect off;") == 1
    (tmp_path / "nginx.conf").write_text(config.replace("proxy_redirect off;", line))
    monkeypatch.setattr("tests.test_nginx.EXAMPLES", tmp_path)
    with (
        registry(tmp_path, "--behind-proxy") as behind,
        nginx(tmp_path, behind, with_tls=with_tls) as host,
        requests.Session() as session,
    ):
        root = f"http{'s' if with_tls else ''}://{host}"
        session.trust_env = False  # which may name other certificates
        session.verify = str(tmp_path / "nginx" / "certificate.pem") if with_tls else True
        begun = session.post(f"{root}/v2/a/b/blobs/uploads/", timeout=10)
        assert begun.headers["Location"].startswith(f"{root}/v2/a/b/blobs/uploads/")
        query = {"digest": digest_of(b"x")}
        done = session.put(begun.headers["Location"], b"x", params=query, timeout=10)
        assert done.headers["Location"] == f"{root}/v2/a/b/blobs/{digest_of(b'x')}"
        moved = session.get(f"{root}/v2?a=b", allow_redirects=False, timeout=10)
        assert moved.headers["Location"] == f"{root}/v2/?a=b"
