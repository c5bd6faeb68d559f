"""How the proxy of the examples logs in at its upstreams, and where it sends no credentials."""

from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
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
        for _ in range(3):
            assert proxy.get(LATEST).status_code == 200
            assert proxy.get("/v2/other/manifests/latest").status_code == 200
        all_at_once(20, lambda: Client(proxy.app).get(BLOB, buffered=True).status_code)
        scopes = [asked.args["scope"] for asked in upstream.requests if asked.endpoint == "token"]
        assert scopes == ["repository:library/nginx:pull", "repository:other:pull"]
        now[0] += 100_000
        before = len(upstream.requests)
        assert all_at_once(20, lambda: Client(proxy.app).get(LATEST).status_code) == [200] * 20
        assert Counter(requests_to(upstream)[before:])["GET", "token"] == 1
        assert 401 not in [asked.status for asked in upstream.requests[before:]]


def test_token_that_is_no_longer_accepted_is_replaced() -> None:
    with registry(auth="bearer") as upstream:
        proxy = ProxyClient(upstream.url)
        assert proxy.get(LATEST).status_code == 200
        refused = errors.Unauthorized(
            realm=f"{upstream.url}/token",
            service="registry",
            scope="repository:library/nginx:pull",
            error="invalid_token",
        )
        upstream.fail("manifest", "HEAD", refused)
        assert "Warning" not in proxy.get(LATEST).headers
        assert Counter(requests_to(upstream))["GET", "token"] == 2


@pytest.mark.parametrize(
    ("fault", "status"), [(404, 502), (500, 500), (401, 403), (429, 429), ("body cut short", 502)]
)
def test_token_server_fails(fault: Any, status: int) -> None:
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


@pytest.mark.parametrize(
    ("answers", "reached"),
    [
        # Redirects from https to http, to another host and back, without end, to nowhere.
        ({BLOB: (307, {"Location": "http://cdn.example/other"}, b"")}, [BLOB]),
        ({BLOB: (307, {"Location": "//cdn.example/x"}, b"")}, [BLOB, "/x"]),
        (
            {
                BLOB: (307, {"Location": "//cdn.example/x"}, b""),
                "/x": (307, {"Location": "https://r.example/y"}, b""),
            },
            [BLOB, "/x", "/y"],
        ),
        ({BLOB: (307, {"Location": BLOB}, b"")}, [BLOB] * 6),
        ({BLOB: (307, {"Location": "https:///x"}, b"")}, [BLOB]),
        ({BLOB: (307, {}, b"")}, [BLOB]),
        # A token server by plain http.
        ({BLOB: (401, {"WWW-Authenticate": 'Bearer realm="http://r.example/token"'}, b"")}, [BLOB]),
    ],
)
def test_credentials_stay_at_the_upstream_and_within_https(
    answers: dict[str, Any], reached: list[str]
) -> None:
    proxy, upstream = canned(answers, user=ALICE)
    basic = {"WWW-Authenticate": 'Basic realm="r"'}
    assert proxy.upstream.login.challenged("https://r.example/", None, 401, basic) is None
    known = proxy.upstream.login.authorization("https://r.example/")
    assert known is not None
    assert proxy.get(BLOB).status_code == 502
    assert upstream.paths == reached
    has_left = False
    for sent in upstream.sent:
        assert str(sent.url).startswith("https://")
        has_left = has_left or urlsplit(str(sent.url)).netloc != "r.example"
        assert sent.headers.get("Authorization") == (None if has_left else known)


PRIVATE = [
    *("127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "0.0.0.0", "10.1.2.3:5000", "192.168.0.1"),
    *("169.254.169.254", "172.16.0.1", "100.64.0.1", "[::1]", "[fe80::1]", "[fd00::1]"),
    *("[::ffff:10.0.0.1]", "localhost", "LOCALHOST.", "a.localhost"),
]


@pytest.mark.parametrize("host", [*PRIVATE, "8.8.8.8", "[2606:4700::1]", "localhost.example"])
def test_redirect_to_the_proxys_own_network_is_refused(host: str) -> None:
    """Clients would see what is there. But a blob is verified, and may be stored there."""
    for path in "/v2/a/manifests/v1", "/v2/a/tags/list", BLOB:
        for root in "https://r.example", "https://10.9.9.9":
            answers = {path: (307, {"Location": f"https://{host}/x"}, b"")}
            proxy, upstream = canned(answers, root)
            content = LAYER if path == BLOB else b"{}"
            upstream.answers["/x"] = (200, INDEX, content)
            is_refused = host in PRIVATE and root == "https://r.example" and path != BLOB
            assert proxy.get(path).status_code == (502 if is_refused else 200)
            assert upstream.paths == ([path] if is_refused else [path, "/x"])


@pytest.mark.parametrize("challenge", ['Basic realm="r"', 'Bearer realm="https://r.example/token"'])
def test_challenge_of_a_redirects_target_is_not_answered(challenge: str) -> None:
    answers = {
        BLOB: (307, {"Location": "https://cdn.example/x"}, b""),
        "/x": (401, {"WWW-Authenticate": challenge}, b""),
    }
    proxy, upstream = canned(answers, user=ALICE)
    response = proxy.get(BLOB)
    assert response.status_code == 403
    assert "WWW-Authenticate" not in response.headers
    assert upstream.paths == [BLOB, "/x"]


def test_cookies_and_a_netrc_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine r.example login alice password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    proxy, upstream = canned({LATEST: (200, {**INDEX, "Set-Cookie": "a=b"}, b"{}")})
    for _ in range(2):
        proxy.get(LATEST)
    assert not any({"Authorization", "Cookie"} & sent.headers.keys() for sent in upstream.sent)
