"""The examples beside the registry and the client: the gateway and the Flask app, as they are."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from flask_app import make_app as make_flask_app
from gateway import SERVICE, Gateway, TokenServer, pull_or_user
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes.scopes import parse_scopes

from . import oci_layout
from .nasty import SHA256
from .servers import example, files_of, skopeo


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("gateway")
    options = ["--storage", str(directory / "data")]
    options += ["--user", "alice:se:cret", "--user", "bob:other"]
    with example("gateway", directory / "log", *options) as host:
        yield host


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

    def get(self, token: str | None, method: str = "GET", path: str = "/v2/a/tags/list") -> Any:
        passed = Response("passed")
        client = Client(Gateway(passed, self.KEY))
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

    def test_a_token_opens_what_its_scopes_say(self) -> None:
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
            assert "scope=" in response.headers["WWW-Authenticate"]
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
    def test_what_is_no_token_opens_nothing(self, make: Callable[[Any], str | None]) -> None:
        token = make(self)
        assert self.get(token).status_code == 401
        assert self.get(token, path="/v2/").status_code == 401

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
    def test_what_the_token_server_gives(
        self, user: Any, scope: str, status: int, actions: list[str] | None
    ) -> None:
        client = Client(TokenServer(self.KEY, {"alice": "secret"}, pull_or_user))
        response = client.get("/", query_string={"scope": scope}, auth=user)
        assert response.status_code == status
        if actions is not None:
            token = response.get_json()["token"]
            claims = jwt.decode(token, self.KEY, algorithms=["HS256"], audience=SERVICE)
            assert [access["actions"] for access in claims["access"]] == [actions]

    def test_the_token_server_takes_no_form(self) -> None:
        client = Client(TokenServer(self.KEY, {"alice": "secret"}, pull_or_user))
        form = {"grant_type": "password", "username": "alice", "password": "secret"}
        response = client.post("/", data=form)
        assert response.status_code == 405
        assert response.headers["Allow"] == "GET, HEAD"

    @pytest.mark.parametrize("header", ["Basic !!!", "Basic /zp4", "Basic", "Bearer x", ""])
    def test_credentials_that_cannot_be_read_are_nobodys(self, header: str) -> None:
        client = Client(TokenServer(self.KEY, {"alice": "secret"}, pull_or_user))
        response = client.get("/", headers={"Authorization": header})
        assert response.status_code == 401

    def test_the_token_server_is_where_the_gateway_is(self) -> None:
        client = Client(DispatcherMiddleware(NotFound(), {"/pub": Gateway(Response(), self.KEY)}))
        challenge = client.get("/pub/v2/").headers["WWW-Authenticate"]
        assert 'realm="http://localhost/pub/token"' in challenge
        assert client.get("/pub/v2/", headers={"Host": "a b"}).status_code == 400

    def test_what_is_no_route_is_answered_at_the_gate(self) -> None:
        for path, status in {"/v2": 308, "/v2/A/tags/list": 400, "/x": 404}.items():
            assert self.get(None, path=path).status_code == status
        assert self.get(None, "POST").status_code == 405

    @pytest.mark.parametrize("source", ["", "%22", "B"])
    def test_a_mount_from_no_repository_needs_its_target_alone(self, source: str) -> None:
        path = f"/v2/a/blobs/uploads/?mount=sha256:0&from={source}"
        assert self.get(self.token("repository:a:*"), "POST", path).status_code == 200
        assert self.get(self.token("repository:b:*"), "POST", path).status_code == 401


class TestFlaskApp:
    @pytest.fixture
    def layout(self, tmp_path: Path) -> Path:
        oci_layout.write(tmp_path / "image", [10_000], ["amd64"])
        return tmp_path / "image"

    def test_skopeo_pulls_from_it(self, layout: Path, tmp_path: Path) -> None:
        options = "--layout", str(layout), "--name", "library/app"
        with example("flask_app", tmp_path / "log", *options) as host:
            back = tmp_path / "back"
            remote = f"docker://{host}/library/app:v1"
            skopeo("copy --src-tls-verify=false", remote, f"oci:{back}:v1")
            assert files_of(back) == files_of(layout)
            assert "library/app" in requests.get(f"http://{host}/", timeout=10).text

    def test_a_layout_by_a_relative_path_and_what_is_no_manifest(
        self, layout: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = json.loads((layout / "index.json").read_text())
        index["manifests"].append({**index["manifests"][0], "annotations": {"x": "y"}})
        (layout / "index.json").write_text(json.dumps(index))
        monkeypatch.chdir(layout.parent)
        client = make_flask_app(Path(layout.name), "a").test_client()
        monkeypatch.chdir("/")
        assert client.get("/v2/a/manifests/v1", buffered=True).status_code == 200
        assert client.get("/v2/a/tags/list").get_json()["tags"] == ["v1"]
        listed = {
            name: client.get(f"/v2/a/manifests/sha256:{name}", buffered=True)
            for name in files_of(layout)
        }
        found = {name for name, response in listed.items() if response.status_code == 200}
        assert found == {index["manifests"][0]["digest"].partition(":")[2]}
        assert {response.status_code for response in listed.values()} == {200, 404}
        for name in listed:
            assert client.get(f"/v2/a/blobs/sha256:{name}", buffered=True).status_code == 200

    def test_its_page_and_its_errors(self, layout: Path) -> None:
        client = make_flask_app(layout, "library/app").test_client()
        assert '<a href="/v2/library/app/manifests/v1">v1</a>' in client.get("/").text
        tags = client.get("/v2/library/app/tags/list?n=1")
        assert tags.get_json() == {"name": "library/app", "tags": ["v1"]}
        for method, path, status, code in (
            ("GET", "/v2/other/tags/list", 404, "NAME_UNKNOWN"),
            ("GET", "/v2/library/App/tags/list", 400, "NAME_INVALID"),
            ("GET", "/v2/library/app/manifests/v2", 404, "MANIFEST_UNKNOWN"),
            ("GET", "/v2/library/app/blobs/md5:x", 404, "BLOB_UNKNOWN"),
            ("GET", f"/v2/library/app/referrers/{SHA256}", 404, "UNSUPPORTED"),
            ("GET", "/nothing", 404, "UNSUPPORTED"),
            ("POST", "/nothing", 404, "UNSUPPORTED"),
            ("PUT", "/v2/A/manifests/x", 400, "NAME_INVALID"),
            ("PUT", "/v2/library/app/manifests/v1", 405, "UNSUPPORTED"),
            ("POST", "/v2/library/app/tags/list", 405, "UNSUPPORTED"),
            ("GET", "/v2/library/app/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        ):
            response = client.open(path, method=method)
            assert (response.status_code, response.get_json()["errors"][0]["code"]) == (
                status,
                code,
            )
            assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"
        assert client.get("/v2/").status_code == 200
        assert client.get("/v2").location == "/v2/"
