"""The gateway of the examples: its tokens, its policy, and where its secrets come from."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from gateway import SERVICE, Gateway, TokenServer, make_app, pull_or_user, users_of
from gateway import main as gateway_main
from hypothesis import given
from hypothesis import strategies as st
from storage import storage_at
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes import OCI_1_1, RegistryApp, RegistryRequest
from registry_routes.challenges import parse_challenges
from registry_routes.digests import digest_of
from registry_routes.scopes import Scope, parse_scopes

from . import oci_layout
from .nasty import SHA256
from .servers import EXAMPLES, ended, example, files_of, skopeo


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("gateway")
    options = ["--storage", str(directory / "data")]
    options += ["--user", "alice:se:cret", "--user", "bob:other"]
    with example("gateway", directory / "log", *options) as host:
        yield host


def passed(request: RegistryRequest, **values: str) -> Response:
    return Response("passed")


class TestGateway:
    KEY = b"k" * 32

    def test_skopeo_gets_its_tokens(self, gateway: str, tmp_path: Path) -> None:
        image, back, remote = tmp_path / "image", tmp_path / "back", f"docker://{gateway}/a/b/c"
        oci_layout.write(image, [10_000], ["amd64"])
        push = "copy --dest-tls-verify=false"
        denied = skopeo(push, f"oci:{image}:v1", f"{remote}:v1", fails=True)
        assert "authentication" in denied or "unauthorized" in denied
        wrong = skopeo(push, "--dest-creds=alice:no", f"oci:{image}:v1", f"{remote}:v1", fails=True)
        assert "incorrect username or password" in wrong
        skopeo(push, "--dest-creds=alice:se:cret", f"oci:{image}:v1", f"{remote}:v1")
        skopeo("copy --src-tls-verify=false", f"{remote}:v1", f"oci:{back}:v1")  # as anyone
        assert files_of(back) == files_of(image)
        assert skopeo("delete --tls-verify=false", f"{remote}:v1", fails=True)
        skopeo("delete --tls-verify=false --creds=bob:other", f"{remote}:v1")

    def test_a_mount_needs_the_source_as_well(self, gateway: str) -> None:
        url = f"http://{gateway}/v2/mine/blobs/uploads/?mount={SHA256}&from=others"
        challenge = requests.post(url, timeout=10).headers["WWW-Authenticate"]
        assert 'scope="repository:mine:pull,push repository:others:pull"' in challenge
        assert f'realm="http://{gateway}/token"' in challenge

    # What passes, without a server.

    def behind_a_gateway(self) -> RegistryApp:
        app = RegistryApp()
        for route in OCI_1_1.routes:
            app.view(route.name)(passed)
        app.before_request(Gateway(self.KEY))
        return app

    def get(self, token: str | None, method: str = "GET", path: str = "/v2/a/tags/list") -> Any:
        client = Client(self.behind_a_gateway())
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return client.open(path, method=method, headers=headers)

    def token(self, scopes: str, key: bytes = KEY, **claims: Any) -> str:
        access = [
            {"type": scope.type, "name": scope.name, "actions": list(scope.actions)}
            for scope in parse_scopes(scopes)
        ]
        claims = {"aud": SERVICE, "exp": 10**10, "access": access, **claims}
        given = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(given, key, algorithm="HS256")

    def test_a_token_grants_its_scopes(self) -> None:
        assert self.get(self.token(""), path="/v2/").text == "passed"
        pull, push = self.token("repository:a:pull"), self.token("repository:a:pull,push")
        assert self.get(pull).text == "passed"
        assert self.get(push, "PUT", "/v2/a/manifests/v1").text == "passed"
        for token, method, path in (
            (pull, "PUT", "/v2/a/manifests/v1"),
            (pull, "GET", "/v2/a/b/tags/list"),
            (push, "DELETE", "/v2/a/manifests/v1"),
            (push, "GET", "/v2/_catalog"),
            (push, "POST", "/v2/a/blobs/uploads/?from=b"),
        ):
            response = self.get(token, method, path)
            assert response.status_code == 401
            (challenge,) = parse_challenges(response.headers)
            assert challenge.parameters["error"] == "insufficient_scope"
            assert challenge.parameters["scope"]
            assert response.get_json()["errors"][0]["code"] == "UNAUTHORIZED"

    @pytest.mark.parametrize(
        "make",
        [
            lambda self: None,
            lambda self: "",
            lambda self: "junk",
            lambda self: self.token("repository:a:pull", key=b"x" * 32),
            lambda self: self.token("repository:a:pull", aud="another"),
            lambda self: self.token("repository:a:pull", exp=1),
            lambda self: self.token("repository:a:pull", exp=None),
            lambda self: self.token("", access=None),
            lambda self: self.token("", access=3),
            lambda self: self.token("", access=[3]),
            lambda self: self.token("", access=[{"type": "repository"}]),
            lambda self: jwt.encode(
                {"aud": SERVICE, "exp": 10**10, "access": []}, "", algorithm="none"
            ),
        ],
    )
    def test_an_invalid_token_grants_nothing(self, make: Callable[[Any], str | None]) -> None:
        token = make(self)
        for path in "/v2/a/tags/list", "/v2/":
            response = self.get(token, path=path)
            assert response.status_code == 401
            assert "error" not in parse_challenges(response.headers)[0].parameters

    JSON = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
    ENTRY = st.fixed_dictionaries(
        {},
        optional={
            "type": st.just("repository") | JSON,
            "name": st.just("a") | JSON,
            "actions": st.just("pull") | st.just(["pull"]) | JSON,
        },
    )

    @given(
        claims=st.fixed_dictionaries(
            {},
            optional={
                **dict.fromkeys(["exp", "nbf", "iat", "aud", "sub", "jti", "iss"], JSON),
                "access": JSON | st.lists(ENTRY | JSON),
            },
        )
    )
    def test_signed_claims_of_any_shape_grant_their_scopes_or_nothing(self, claims: Any) -> None:
        claims = {"aud": SERVICE, "exp": 10**10, "access": [], **claims}
        token = jwt.api_jws.encode(json.dumps(claims).encode(), self.KEY, algorithm="HS256")
        response = self.get(token)
        says = {"type": "repository", "name": "a", "actions": ["pull"]}
        if response.status_code == 200:
            assert says in claims["access"]
        else:
            assert response.status_code == 401

    @pytest.mark.parametrize("payload", [b"3", b"[]", b"null", b'"x"', b"", b"[" * 3000, b"\xff"])
    def test_a_signed_payload_that_is_not_an_object_grants_nothing(self, payload: bytes) -> None:
        token = jwt.api_jws.encode(payload, self.KEY, algorithm="HS256")
        assert self.get(token, path="/v2/").status_code == 401

    @pytest.mark.parametrize("header", [b"[" * 5000, b"{}", b"3", b"", b"\xff", b'{"alg":[]}'])
    def test_the_header_of_a_token_is_read_before_its_signature(self, header: bytes) -> None:
        encoded = base64.urlsafe_b64encode(header).decode().rstrip("=")
        assert self.get(f"{encoded}.e30.c2ln", path="/v2/").status_code == 401

    @pytest.mark.parametrize(
        ("user", "scope", "status", "actions"),
        [
            (None, "repository:a:pull,push", 200, ["pull"]),
            (None, "repository:a:push", 200, []),
            (None, "repository:a:*", 200, []),
            (("alice", "secret"), "repository:a:push,delete", 200, ["push", "delete"]),
            (("alice", ""), "repository:a:pull", 401, None),
            (("alice", "secre"), "repository:a:pull", 401, None),
            (("nobody", ""), "repository:a:pull", 401, None),
            (("", ""), "repository:a:pull", 401, None),
            (None, "malformed repository:a:pull ::", 200, ["pull"]),
        ],
    )
    def test_the_token_server_grants_what_the_policy_allows(
        self, user: Any, scope: str, status: int, actions: list[str] | None
    ) -> None:
        client = Client(TokenServer(self.KEY, {"alice": "secret"}, pull_or_user))
        response = client.get("/", query_string={"scope": scope}, auth=user)
        assert response.status_code == status
        if actions is not None:
            token = response.get_json()["token"]
            claims = jwt.decode(token, self.KEY, algorithms=["HS256"], audience=SERVICE)
            assert [access["actions"] for access in claims["access"]] == [actions]

    def test_the_token_server_refuses_a_form(self) -> None:
        client = Client(TokenServer(self.KEY, {"alice": "secret"}, pull_or_user))
        form = {"grant_type": "password", "username": "alice", "password": "secret"}
        response = client.post("/", data=form)
        assert response.status_code == 405
        assert response.headers["Allow"] == "GET, HEAD"

    @pytest.mark.parametrize("header", ["Basic !!!", "Basic /zp4", "Basic", "Bearer x", ""])
    def test_malformed_credentials_are_refused(self, header: str) -> None:
        client = Client(TokenServer(self.KEY, {"alice": "secret"}, pull_or_user))
        response = client.get("/", headers={"Authorization": header})
        assert response.status_code == 401

    def test_the_token_server_is_where_the_gateway_is(self) -> None:
        client = Client(DispatcherMiddleware(NotFound(), {"/pub": self.behind_a_gateway()}))
        challenge = client.get("/pub/v2/").headers["WWW-Authenticate"]
        assert 'realm="http://localhost/pub/token"' in challenge
        assert client.get("/pub/v2/", headers={"Host": "a b"}).status_code == 400

    def test_a_path_without_a_route_needs_no_token(self) -> None:
        for path, status in {"/v2": 308, "/v2/A/tags/list": 400, "/x": 404}.items():
            assert self.get(None, path=path).status_code == status
        assert self.get(None, "POST").status_code == 405

    @pytest.mark.parametrize("source", ["", "%22", "B"])
    def test_a_mount_without_a_valid_source_needs_only_its_target(self, source: str) -> None:
        path = f"/v2/a/blobs/uploads/?mount=sha256:0&from={source}"
        assert self.get(self.token("repository:a:*"), "POST", path).status_code == 200
        assert self.get(self.token("repository:b:*"), "POST", path).status_code == 401


# A policy with private repositories, which only their owners may see.


def own_repositories(user: str | None, scope: Scope) -> Iterable[str]:
    return scope.actions if user and scope.name.startswith(f"{user}/") else ()


class User:
    """A client of a registry with private repositories, which gets its tokens as asked."""

    def __init__(self, app: Any, name: str) -> None:
        self.client, self.name = Client(app), name

    def open(self, method: str, path: str, scope: str, **options: Any) -> Any:
        auth = (self.name, f"{self.name}'s")
        answer = self.client.get("/token", query_string={"scope": scope}, auth=auth).get_json()
        headers = {"Authorization": f"Bearer {answer['token']}"}
        return self.client.open(path, method=method, headers=headers, buffered=True, **options)


@pytest.fixture
def users() -> tuple[User, User]:
    """Alice and Bob, of whom Alice has pushed `SECRET`."""
    passwords = {"alice": "alice's", "bob": "bob's"}
    app = make_app(storage_at("memory://"), b"k" * 32, passwords, own_repositories)
    alice, bob = User(app, "alice"), User(app, "bob")
    uploads = f"/v2/alice/x/blobs/uploads/?digest={digest_of(SECRET)}"
    pushed = alice.open("POST", uploads, "repository:alice/x:pull,push", data=SECRET)
    assert pushed.status_code == 201
    return alice, bob


SECRET = b"only alice may read this"
BLOB = f"/v2/{{}}/blobs/{digest_of(SECRET)}"
MOUNT = f"/v2/{{}}/blobs/uploads/?mount={digest_of(SECRET)}"


@pytest.mark.parametrize("source", ["", "&from=", "&from=bob/y", "&from=Alice/x", "&from=%22"])
@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_mount_reads_no_blob_of_another_user(
    users: tuple[User, User], source: str, is_deleted: bool
) -> None:
    alice, bob = users
    if is_deleted:
        deleted = alice.open("DELETE", BLOB.format("alice/x"), "repository:alice/x:delete")
        assert deleted.status_code == 202
    scope = "repository:bob/y:pull,push"
    begun = bob.open("POST", MOUNT.format("bob/y") + source, scope)
    assert begun.status_code == 202
    assert "Docker-Content-Digest" not in begun.headers
    assert bob.open("GET", BLOB.format("bob/y"), scope).status_code == 404


def test_a_mount_from_another_users_repository_is_refused(users: tuple[User, User]) -> None:
    _, bob = users
    scope = "repository:bob/y:pull,push repository:alice/x:pull"  # of which one is given
    for query in "&from=alice/x", "&from=bob/y&from=alice/x", "&from=alice/x&from=bob/y":
        refused = bob.open("POST", MOUNT.format("bob/y") + query, scope)
        assert refused.status_code == 401
        assert 'error="insufficient_scope"' in refused.headers["WWW-Authenticate"]
    assert bob.open("GET", BLOB.format("alice/x"), scope).status_code == 401
    assert bob.open("GET", BLOB.format("bob/y"), scope).status_code == 404


def test_a_mount_from_the_users_own_repository_succeeds(users: tuple[User, User]) -> None:
    alice, _ = users
    scope = "repository:alice/x:pull repository:alice/z:pull,push"
    mounted = alice.open("POST", MOUNT.format("alice/z") + "&from=alice/x", scope)
    assert mounted.status_code == 201
    assert alice.open("GET", BLOB.format("alice/z"), scope).data == SECRET


# Secrets.


def status_of(host: str, name: str, password: str) -> int:
    return requests.get(f"http://{host}/token", auth=(name, password), timeout=10).status_code


def test_users_come_from_a_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users").write_text("alice:fi:le\n\nbob:bob's\n", "utf-8")
    monkeypatch.setenv("REGISTRY_USERS", "alice:environment\ncarol:käse")
    options = ["--storage", "memory://", "--users", str(tmp_path / "users"), "--user", "dan:d"]
    with example("gateway", tmp_path / "log", *options) as host:
        for name, password in ("alice", "fi:le"), ("bob", "bob's"), ("dan", "d"):
            assert status_of(host, name, password) == 200
            assert status_of(host, name, f"{password} ") == 401
        carol = base64.b64encode("carol:käse".encode()).decode()
        headers = {"Authorization": f"Basic {carol}"}
        assert requests.get(f"http://{host}/token", headers=headers, timeout=10).status_code == 200
        assert status_of(host, "alice", "environment") == 401  # the file comes after it


@pytest.mark.parametrize(
    ("options", "users", "named"),
    [
        (["--users", "missing"], "", "missing"),
        (["--users", "malformed"], "", "malformed, line 2: a user must be NAME:PASSWORD"),
        (["--users", "."], "", "Is a directory"),
        (["--users", "binary"], "", "utf-8"),
        ([], "secret", "$REGISTRY_USERS, line 1: a user must be NAME:PASSWORD"),
        (["--user", "secret"], "", "a user must be NAME:PASSWORD"),
        (["--user", ":secret"], "", "a user must be NAME:PASSWORD"),
        (["--user", "secret:"], "", "a user must be NAME:PASSWORD"),
    ],
)
def test_malformed_users_are_an_error_in_one_line(
    options: list[str],
    users: str,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "malformed").write_text("alice:a\nsecret\n")
    (tmp_path / "binary").write_bytes(b"secret:\xff")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGISTRY_USERS", users)
    status, printed, said = ended(gateway_main, monkeypatch, "gateway.py", *options)
    assert (status, printed) == (2, "")
    assert len(said.splitlines()) == 1
    assert named in said
    assert "secret" not in said


def test_a_short_key_is_an_error_in_one_line(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "gateway.py"), "--storage", str(tmp_path / "data")],
        env={**os.environ, "REGISTRY_KEY": "s3cr3t" * 5},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "gateway.py: error: $REGISTRY_KEY must have at least 32 bytes\n"


@pytest.mark.slow
def test_a_token_outlives_a_restart_with_the_same_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = []
    token = ""
    for key in "k" * 40, "k" * 40, "other" * 8, "":
        monkeypatch.setenv("REGISTRY_KEY", key)
        with example("gateway", tmp_path / "log", "--storage", "memory://") as host:
            token = token or requests.get(f"http://{host}/token", timeout=10).json()["token"]
            headers = {"Authorization": f"Bearer {token}"}
            statuses.append(
                requests.get(f"http://{host}/v2/", headers=headers, timeout=10).status_code
            )
    assert statuses == [200, 200, 401, 401]


@given(st.dictionaries(st.text("ab:", min_size=1), st.text("ab: é\r\x85\u2028", min_size=1)))
def test_lines_of_users_are_read_as_they_are_written(users: dict[str, str]) -> None:
    users = {name.replace(":", ""): password for name, password in users.items()}
    users.pop("", None)
    text = "\n".join(f"{name}:{password}" for name, password in users.items())
    assert users_of(text, "text") == users
