"""How the proxy of the examples logs in at its upstreams, and where it sends no credentials."""

from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from upstream import is_private
from werkzeug.test import Client

from registry_routes import errors
from registry_routes.registry import MemoryStorage

from .proxies import (
    BLOB,
    INDEX,
    LATEST,
    LAYER,
    SMALL,
    ProxyClient,
    all_at_once,
    canned,
    registry,
    requests_to,
)

ALICE = "alice", "secret"


def test_token_is_used_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("registry_routes.login.time.monotonic", lambda: now[0])
    with registry(users=dict([ALICE]), auth="bearer") as upstream:
        upstream.add_image("other:latest", layers=[SMALL])
        proxy = ProxyClient(upstream.url, user=ALICE)
        for _ in range(2):
            assert proxy.get(LATEST).status_code == 200
            assert proxy.get("/v2/other/manifests/latest").status_code == 200
        all_at_once(10, lambda: Client(proxy.app).get(BLOB, buffered=True).status_code)
        scopes = [asked.args["scope"] for asked in upstream.requests if asked.endpoint == "token"]
        assert scopes == ["repository:library/nginx:pull", "repository:other:pull"]
        now[0] += 100_000
        before = len(upstream.requests)
        assert all_at_once(10, lambda: Client(proxy.app).get(LATEST).status_code) == [200] * 10
        assert Counter(requests_to(upstream)[before:])["GET", "token"] == 1
        assert 401 not in [asked.status for asked in upstream.requests[before:]]


def test_token_that_is_no_longer_accepted_is_replaced() -> None:
    with registry(auth="bearer") as upstream:
        proxy = ProxyClient(upstream.url)
        assert proxy.get(LATEST).status_code == 200
        # It names no scope, so the proxy asks for the scopes that the request needs.
        refused = errors.Unauthorized(realm=f"{upstream.url}/token", service="registry")
        upstream.fail("manifest", "HEAD", refused)
        assert "Warning" not in proxy.get(LATEST).headers
        assert Counter(requests_to(upstream))["GET", "token"] == 2


@pytest.mark.parametrize(("fault", "status"), [(404, 502), (500, 500), (401, 403), (429, 429)])
def test_token_server_fails(fault: int, status: int) -> None:
    with registry(auth="bearer") as upstream:
        storage = MemoryStorage()
        kept = ProxyClient(upstream.url, storage=storage).get(LATEST).data
        upstream.fail("token", "GET", fault, times=2)
        proxy = ProxyClient(upstream.url, storage=storage)
        response = proxy.get(LATEST)
        assert (response.status_code, response.data) == (200, kept)
        assert f": {status} " in response.headers["Warning"]
        assert proxy.get(BLOB).status_code == status
        assert "Warning" not in proxy.get(LATEST).headers


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_only_the_proxys_account_is_used_and_only_at_the_registry(auth: Any) -> None:
    with registry(users=dict([ALICE]), auth=auth, redirect_blobs=True) as upstream:
        for user in None, ("alice", "wrong"):
            response = ProxyClient(upstream.url, user=user).get(LATEST, auth=ALICE)
            assert response.status_code == 403
            assert "WWW-Authenticate" not in response.headers
            assert b64encode(b"alice:secret").decode() not in str(upstream.requests)
        proxy = ProxyClient(upstream.url, user=ALICE)
        assert proxy.get(LATEST).status_code == 200
        assert proxy.head(BLOB).content_length == len(LAYER)
        assert proxy.get(BLOB).data == LAYER
        stored = [asked for asked in upstream.requests if asked.endpoint == "storage"]
        assert [asked.method for asked in stored] == ["HEAD", "GET"]
        assert not any("Authorization" in asked.headers for asked in stored)


TO_CDN = 307, {"Location": "//cdn.example/x"}, b""
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="https://r.example/token"'}
BY_HTTP = {"WWW-Authenticate": 'Bearer realm="http://r.example/token"'}


@pytest.mark.parametrize(
    ("answers", "status", "reached"),
    [
        # Redirects to http, to another host and back, without end, to nowhere.
        ({BLOB: (307, {"Location": "http://cdn.example/other"}, b"")}, 502, [BLOB]),
        (
            {BLOB: TO_CDN, "/x": (307, {"Location": "https://r.example/y"}, b"")},
            502,
            [BLOB, "/x", "/y"],
        ),
        ({BLOB: (307, {"Location": BLOB}, b"")}, 502, [BLOB] * 6),
        ({BLOB: (307, {}, b"")}, 502, [BLOB]),
        ({BLOB: TO_CDN, "/x": (401, CHALLENGE, b"")}, 403, [BLOB, "/x"]),
        ({BLOB: (401, BY_HTTP, b"")}, 502, [BLOB]),
    ],
)
def test_credentials_stay_at_the_upstream_and_within_https(
    answers: dict[str, Any], status: int, reached: list[str]
) -> None:
    proxy, upstream = canned(answers, user=ALICE)
    basic = {"WWW-Authenticate": 'Basic realm="r"'}
    assert proxy.upstream.login.challenged("https://r.example/", None, 401, basic) is None
    known = proxy.upstream.login.authorization("https://r.example/")
    assert known is not None
    response = proxy.get(BLOB)
    assert (response.status_code, upstream.paths) == (status, reached)
    assert "WWW-Authenticate" not in response.headers
    has_left = False
    for sent in upstream.sent:
        assert str(sent.url).startswith("https://")
        has_left = has_left or urlsplit(str(sent.url)).netloc != "r.example"
        assert sent.headers.get("Authorization") == (None if has_left else known)


def test_addresses_of_the_internet_are_not_private() -> None:
    private = [
        *("127.0.0.1", "127.1", "2130706433", "0.0.0.0", "10.1.2.3:5000", "169.254.169.254"),
        *("[::1]", "[fe80::1]", "[fd00::1]", "[::ffff:10.0.0.1]", "LOCALHOST.", "a.localhost"),
    ]
    hosts = [*private, "8.8.8.8", "[2606:4700::1]", "localhost.example"]
    assert [host for host in hosts if is_private(f"https://{host}/x")] == private


@pytest.mark.parametrize(
    ("path", "root", "is_refused"),
    [
        ("/v2/a/manifests/v1", "https://r.example", True),
        ("/v2/a/tags/list", "https://r.example", True),
        (BLOB, "https://r.example", False),  # it is verified, and may be stored there
        ("/v2/a/manifests/v1", "https://10.9.9.9", False),
    ],
)
def test_redirect_to_the_proxys_own_network_is_refused(
    path: str, root: str, is_refused: bool
) -> None:
    """Otherwise clients would see the content there."""
    content = LAYER if path == BLOB else b"{}"
    answers = {path: (307, {"Location": "https://10.1.2.3/x"}, b""), "/x": (200, INDEX, content)}
    proxy, upstream = canned(answers, root)
    assert proxy.get(path).status_code == (502 if is_refused else 200)
    assert upstream.paths == ([path] if is_refused else [path, "/x"])


def test_cookies_and_a_netrc_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine r.example login alice password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    proxy, upstream = canned({LATEST: (200, {**INDEX, "Set-Cookie": "a=b"}, b"{}")})
    for _ in range(2):
        proxy.get(LATEST)
    assert not any({"Authorization", "Cookie"} & sent.headers.keys() for sent in upstream.sent)
