"""The gateway of the examples: its tokens, its policy, and where its secrets come from."""

import base64
import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from gateway import Gateway, allow_pulls, main, make_app
from hypothesis import given
from hypothesis import strategies as st
from storage import storage_at
from tokens import SERVICE, TokenServer, parse_key, parse_users
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes import OCI_1_1, RegistryApp, RegistryRequest, url_map
from registry_routes.challenges import parse_challenges
from registry_routes.scopes import Scope, parse_scopes

from .servers import ended, example

KEY = b"k" * 32
TAGS = "/v2/a/tags/list"

# What passes.


def passed(request: RegistryRequest, **values: str) -> Response:
    return Response("passed")


def protected_app() -> RegistryApp:
    app = RegistryApp(url_map)
    for route in OCI_1_1.routes:
        app.view(route.name)(passed)
    app.before_request(Gateway(KEY))
    return app


def ask(token: str | None, method: str = "GET", path: str = TAGS) -> Any:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return Client(protected_app()).open(path, method=method, headers=headers)


def token_for(scopes: str, key: bytes = KEY, **claims: Any) -> str:
    access = [asdict(scope) for scope in parse_scopes(scopes)]
    claims = {"aud": SERVICE, "exp": 10**10, "access": access, **claims}
    given = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(given, key, algorithm="HS256")


def test_token_grants_its_scopes() -> None:
    pull, push = token_for("repository:a:pull"), token_for("repository:a:pull,push")
    for token, method, path in (
        (token_for(""), "GET", "/v2/"),
        (pull, "GET", TAGS),
        (push, "PUT", "/v2/a/manifests/v1"),
        (push, "POST", "/v2/a/blobs/uploads/?mount=sha256:0&from=B"),  # which is no repository
    ):
        assert ask(token, method, path).text == "passed"
    for token, method, path in (
        (pull, "PUT", "/v2/a/manifests/v1"),
        (pull, "GET", "/v2/a/b/tags/list"),
        (push, "DELETE", "/v2/a/manifests/v1"),
        (push, "GET", "/v2/_catalog"),
        (push, "POST", "/v2/a/blobs/uploads/?mount=sha256:0&from=b"),
        (token_for("repository:b:*"), "POST", "/v2/a/blobs/uploads/?mount=sha256:0&from=B"),
    ):
        response = ask(token, method, path)
        assert response.status_code == 401
        (challenge,) = parse_challenges(response.headers)
        assert challenge.parameters["error"] == "insufficient_scope"
        assert challenge.parameters["scope"]
        assert response.get_json()["errors"][0]["code"] == "UNAUTHORIZED"


def test_clocks_of_two_machines_may_differ_by_a_minute() -> None:
    """PyJWT refuses a token of the future, and a clock is often a second ahead."""
    now = int(time.time())
    cases: list[tuple[dict[str, Any], int]] = [
        ({"iat": now + 50, "exp": now + 350}, 200),
        ({"iat": now + 90}, 401),
        ({"exp": now - 50}, 200),
        ({"exp": now - 70}, 401),
    ]
    for claims, status in cases:
        assert ask(token_for("repository:a:pull", **claims)).status_code == status, claims


def sign(payload: bytes) -> str:
    return jwt.api_jws.encode(payload, KEY, algorithm="HS256")


def encode(header: bytes) -> str:
    """Return a token with this header, and a signature that is not its own."""
    return f"{base64.urlsafe_b64encode(header).decode().rstrip('=')}.e30.c2ln"


@pytest.mark.parametrize(
    "token",
    [
        *(None, "", "junk"),
        token_for("repository:a:pull", key=b"x" * 32),
        token_for("repository:a:pull", aud="another"),
        token_for("repository:a:pull", exp=None),
        token_for("", access=None),
        jwt.encode({"aud": SERVICE, "exp": 10**10, "access": []}, "", algorithm="none"),
        *map(sign, [b"3", b"", b"[" * 3000, b"\xff"]),
        *map(encode, [b"[" * 5000, b"{}", b"3", b"\xff", b'{"alg":[]}']),
    ],
    ids=lambda token: str(token)[-9:],
)
def test_invalid_token_grants_nothing(token: str | None) -> None:
    for path in TAGS, "/v2/":
        response = ask(token, path=path)
        assert response.status_code == 401
        assert "error" not in parse_challenges(response.headers)[0].parameters


VALUES: list[Any] = [None, True, 3, 0.5, "pull", "", [], {}, ["pull"], [["pull"]], [3]]
JSON = st.sampled_from(VALUES)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "type": st.just("repository") | JSON,
        "name": st.just("a") | JSON,
        "actions": st.just(["pull"]) | JSON,
    },
)


@given(
    dates=st.dictionaries(st.sampled_from(["exp", "nbf", "iat", "aud", "sub", "iss"]), JSON),
    access=JSON | st.lists(ENTRY | JSON),
)
def test_signed_claims_of_any_shape_grant_their_scopes_or_nothing(dates: Any, access: Any) -> None:
    claims = {"aud": SERVICE, "exp": 10**10, "access": access, **dates}
    response = ask(sign(json.dumps(claims).encode()))
    if response.status_code == 200:
        assert {"type": "repository", "name": "a", "actions": ["pull"]} in access
    else:
        assert response.status_code == 401


def test_path_without_a_route_needs_no_token() -> None:
    for path, status in {"/v2/A/tags/list": 400, "/x": 404}.items():
        assert ask(None, path=path).status_code == status


def test_realm_is_where_the_gateway_is() -> None:
    client = Client(DispatcherMiddleware(NotFound(), {"/pub": protected_app()}))
    challenge = client.get("/pub/v2/").headers["WWW-Authenticate"]
    assert 'realm="http://localhost/pub/token"' in challenge


# The token server.


def own_repositories(user: str | None, scope: Scope) -> Iterable[str]:
    return scope.actions if scope.name.startswith(f"{user}/") else ()


@pytest.mark.parametrize(
    ("policy", "user", "scope", "actions"),
    [
        (allow_pulls, None, "repository:a:pull,push", ["pull"]),
        (allow_pulls, None, "repository:a:*", []),
        (allow_pulls, ("alice", "secret"), "repository:a:push,delete", ["push", "delete"]),
        (allow_pulls, None, "malformed repository:a:pull ::", ["pull"]),
        (own_repositories, ("alice", "secret"), "repository:alice/a:push", ["push"]),
        (own_repositories, ("alice", "secret"), "repository:bob/a:push", []),
    ],
)
def test_token_server_grants_what_the_policy_allows(
    policy: Any, user: Any, scope: str, actions: list[str]
) -> None:
    client = Client(make_app(storage_at("memory://"), KEY, {"alice": "secret"}, policy))
    answer = client.get("/token", query_string={"scope": scope}, auth=user).get_json()
    claims = jwt.decode(answer["token"], KEY, algorithms=["HS256"], audience=SERVICE)
    assert [access["actions"] for access in claims["access"]] == [actions]
    needed = client.post("/v2/a/blobs/uploads/").headers["WWW-Authenticate"]
    assert 'scope="repository:a:pull,push"' in needed


def test_token_server_refuses_wrong_credentials_and_forms() -> None:
    client = Client(TokenServer(KEY, {"alice": "secret"}, allow_pulls))
    users = ("alice", "secre"), ("nobody", "")
    for refused in (
        *(client.get("/", auth=user) for user in users),
        *(client.get("/", headers={"Authorization": text}) for text in ("Basic !!!", "Bearer x")),
    ):
        assert refused.status_code == 401
        (challenge,) = parse_challenges(refused.headers)
        assert (challenge.scheme, challenge.realm) == ("basic", SERVICE)
    form = {"grant_type": "password", "username": "alice", "password": "secret"}
    response = client.post("/", data=form)
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD")


# The program and its secrets.


@pytest.mark.slow
def test_program_takes_users_from_a_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users").write_text("alice:fi:le\n\nbob:bob's\n", "utf-8")
    monkeypatch.setenv("REGISTRY_USERS", "alice:environment\ncarol:käse")
    options = ["--storage", "memory://", "--users", str(tmp_path / "users"), "--user", "dan:d"]
    with example("gateway", tmp_path / "log", *options) as host:

        def log_in(text: str) -> int:
            headers = {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}
            return requests.get(f"http://{host}/token", headers=headers, timeout=10).status_code

        for user in "alice:fi:le", "bob:bob's", "carol:käse", "dan:d":
            assert (log_in(user), log_in(f"{user} ")) == (200, 401)
        assert log_in("alice:environment") == 401  # the file comes after it


@pytest.mark.parametrize(
    ("options", "users", "key", "named"),
    [
        (["--users", "missing"], "", "", "missing"),
        (["--users", "malformed"], "", "", "malformed, line 2: a user must be NAME:PASSWORD"),
        (["--users", "binary"], "", "", "utf-8"),
        ([], "secret", "", "$REGISTRY_USERS, line 1: a user must be NAME:PASSWORD"),
        (["--user", "secret:"], "", "", "a user must be NAME:PASSWORD"),
        ([], "", "secret" * 5, "$REGISTRY_KEY has 30 bytes; it needs at least 32"),
    ],
)
def test_malformed_secrets_are_an_error_in_one_line(
    options: list[str],
    users: str,
    key: str,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "malformed").write_text("alice:a\nsecret\n")
    (tmp_path / "binary").write_bytes(b"secret:\xff")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGISTRY_USERS", users)
    monkeypatch.setenv("REGISTRY_KEY", key)
    status, printed, said = ended(main, monkeypatch, "gateway.py", *options)
    assert (status, printed) == (2, "")
    assert len(said.splitlines()) == 1
    assert named in said
    assert "secret" not in said


def test_key_is_new_at_each_start_unless_it_is_given() -> None:
    assert parse_key("k" * 40) == b"k" * 40
    new = {parse_key("") for _ in range(3)}
    assert [len(key) for key in new] == [32] * 3


@given(st.dictionaries(st.text("ab:", min_size=1), st.text("ab: é\r\x85\u2028", min_size=1)))
def test_lines_of_users_are_read_as_they_are_written(users: dict[str, str]) -> None:
    users = {name.replace(":", ""): password for name, password in users.items()}
    users.pop("", None)
    users = {name: password.rstrip("\r") or "a" for name, password in users.items()}
    for end in "\n", "\r\n":
        text = end.join(f"{name}:{password}" for name, password in users.items())
        assert parse_users(text, "text") == users
