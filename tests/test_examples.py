"""The examples beside the registry: the client, the gateway, the Flask app, run as they are."""

import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from client import CHUNK, Layout, Registry, Tokens, pull, push
from flask_app import make_app as make_flask_app
from gateway import SERVICE, Gateway, TokenServer, pull_or_user
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import make_server
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes import errors
from registry_routes.scopes import parse_scopes

from . import oci_layout
from .nasty import SHA256
from .servers import EXAMPLES, debians_registry, example, files_of, skopeo


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("ours")
    with example("registry", directory / "log", "--storage", str(directory / "data")) as host:
        yield f"http://{host}"


@pytest.fixture(scope="module")
def debians(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with debians_registry(tmp_path_factory.mktemp("debians")) as host:
        yield f"http://{host}"


@pytest.fixture(params=["ours", pytest.param("debians", marks=pytest.mark.slow)])
def root(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


def run_client(*arguments: object, fails: bool = False) -> str:
    command = [sys.executable, str(EXAMPLES / "client.py"), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (run.returncode != 0) == fails, run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr if fails else run.stdout


def part_in(layout: Path, name: str) -> Path:
    """Where the client keeps what it has of a blob that broke off."""
    part = layout / "blobs" / "sha256" / f".{name}.part"
    part.parent.mkdir(parents=True)
    return part


class TestClient:
    def test_an_image_goes_there_and_back(self, root: str, tmp_path: Path) -> None:
        image, back = tmp_path / "image", tmp_path / "back"
        oci_layout.write(image, [2 * CHUNK + 5, 100_000, 1, 0], ["amd64"])
        digest = run_client("push", root, "library/app:v1", image).strip()
        assert run_client("pull", root, "library/app:v1", back).strip() == digest
        assert files_of(back) == files_of(image)
        by_digest = tmp_path / "by-digest"
        run_client("pull", root, f"library/app@{digest}", by_digest)
        assert files_of(by_digest) == files_of(image)
        for layout, reference in (back, "v1"), (by_digest, digest):
            assert Layout(layout).descriptor(reference)["digest"] == digest

    def test_an_index_goes_there_and_back_and_skopeo_reads_it(
        self, root: str, tmp_path: Path
    ) -> None:
        image, back = tmp_path / "image", tmp_path / "back"
        oci_layout.write(image, [1_000, 2_000], ["amd64", "arm64"], seed=1)
        run_client("push", root, "multi/arch:v1", image)
        run_client("pull", root, "multi/arch:v1", back)
        assert files_of(back) == files_of(image)
        copied = tmp_path / "copied"
        skopeo("copy --all", f"oci:{back}:v1", f"oci:{copied}:v1")
        assert files_of(copied) == files_of(image)

    def test_twice_is_as_good_as_once(self, root: str, tmp_path: Path) -> None:
        image, back = tmp_path / "image", tmp_path / "back"
        oci_layout.write(image, [1_000], ["amd64"], seed=2)
        for _ in range(2):
            run_client("push", root, "again:v1", image)
            run_client("pull", root, "again:v1", back)
        assert files_of(back) == files_of(image)
        assert len(json.loads((back / "index.json").read_text())["manifests"]) == 1

    def test_what_fails_is_said(self, root: str, tmp_path: Path) -> None:
        assert "manifest" in run_client("pull", root, "no/such:v1", tmp_path, fails=True)
        message = "repository name 'No/such' must be lowercase"
        assert message in run_client("pull", root, "No/such:v1", tmp_path, fails=True)
        message = "image 'v1' must be in the layout"
        assert message in run_client("push", root, "no/such:v1", tmp_path / "none", fails=True)
        message = "image 'library/app' must be NAME:TAG or NAME@DIGEST"
        assert message in run_client("pull", root, "library/app", tmp_path, fails=True)
        closed = "http://127.0.0.1:1"
        assert "pull x:v1" in run_client("pull", closed, "x:v1", tmp_path, fails=True)

    def test_a_pull_goes_on_where_it_broke_off(self, ours: str, tmp_path: Path) -> None:
        image, back = tmp_path / "image", tmp_path / "back"
        oci_layout.write(image, [3_000_000], ["amd64"], seed=3)
        run_client("push", ours, "resumed:v1", image)
        largest = max(files_of(image).values(), key=len)
        name = hashlib.sha256(largest).hexdigest()
        part = part_in(back, name)
        asked: list[Any] = []
        registry = Registry(ours, "resumed")
        ask = registry.ask

        def watched(method: str, url: str, **options: Any) -> Any:
            response = ask(method, url, **options)
            asked.append((url, response.status_code, options.get("headers", {}).get("Range")))
            return response

        registry.ask = watched  # type: ignore[method-assign]
        for begun in 2_000_000, len(largest):  # some of it, and all of it
            part.write_bytes(largest[:begun])
            pull(registry, "v1", Layout(back))
            assert files_of(back) == files_of(image)
            (part.parent / name).unlink()
        assert [one[1:] for one in asked if name in one[0]] == [(206, "bytes=2000000-")]

    def test_a_part_that_is_wrong_is_found_out(self, ours: str, tmp_path: Path) -> None:
        image, back = tmp_path / "image", tmp_path / "back"
        oci_layout.write(image, [3_000_000], ["amd64"], seed=4)
        run_client("push", ours, "wrong:v1", image)
        largest = max(files_of(image).values(), key=len)
        name = hashlib.sha256(largest).hexdigest()
        part = part_in(back, name)
        part.write_bytes(b"x" * 1000)
        message = run_client("pull", ours, "wrong:v1", back, fails=True)
        assert f"content must have the digest sha256:{name}" in message
        assert not (back / "index.json").exists()
        run_client("pull", ours, "wrong:v1", back)  # from the beginning
        assert files_of(back) == files_of(image)

    def test_a_push_goes_on_where_it_broke_off(
        self, ours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("client.CHUNK", 100_000)
        image = tmp_path / "image"
        oci_layout.write(image, [350_000], ["amd64"], seed=5)
        registry = Registry(ours, "broken/off")
        request, seen = registry.session.request, list[str]()

        def failing(method: str, url: str, **options: Any) -> Any:
            seen.append(method)
            response = request(method, url, **options)
            if seen.count("PATCH") in (2, 3) and seen[-1] == "PATCH":  # it came, but no answer
                raise requests.ConnectionError("broken")
            return response

        monkeypatch.setattr(registry.session, "request", failing)
        push(registry, "v1", Layout(image))
        assert seen.count("PATCH") >= 4
        assert seen.count("GET") == 2  # how far is it?
        pull(Registry(ours, "broken/off"), "v1", Layout(tmp_path / "back"))
        assert files_of(tmp_path / "back") == files_of(image)

    def test_a_content_that_is_not_the_digests_is_refused(self, tmp_path: Path) -> None:
        def lies(environ: Any, start_response: Any) -> Any:
            return Response(b"{}", headers={"Docker-Content-Digest": SHA256})(
                environ, start_response
            )

        with serving_app(lies) as root:
            for reference in SHA256, "v1":
                with pytest.raises(ValueError, match="must have the digest"):
                    pull(Registry(root, "a"), reference, Layout(tmp_path))
            with pytest.raises(ValueError, match="must have the digest"):
                Registry(root, "a").fetch(SHA256, 2, Layout(tmp_path), Progress())
        assert not list(tmp_path.rglob("*.json"))

    def test_a_tag_does_not_take_anothers_place_in_the_layout(self, tmp_path: Path) -> None:
        layout = Layout(tmp_path)
        one = {"mediaType": "x/y", "digest": SHA256, "size": 2}
        other = {**one, "digest": SHA256.replace("0", "1")}
        for descriptor, tag in (one, None), (one, "v1"), (one, "v2"), (one, None), (other, "v2"):
            layout.add(descriptor, tag)
        assert layout.descriptor("v1")["digest"] == SHA256
        assert layout.descriptor("v2")["digest"] == other["digest"]
        assert len(json.loads((tmp_path / "index.json").read_text())["manifests"]) == 2

    @pytest.mark.parametrize("digest", ["md5:00", "shake_128:00", "../../x:y", "sha256:..", "x"])
    def test_a_digest_that_cannot_be_checked_is_no_path(self, tmp_path: Path, digest: str) -> None:
        with pytest.raises(ValueError, match=f"digest '{digest}' must"):
            Layout(tmp_path).blob(digest)

    @pytest.mark.parametrize(
        "content",
        [
            *(
                b"",
                b"[]",
                b"[" * 100_000,
                b'{"manifests": [{}]}',
                b'{"manifests": 3}',
                b'{"layers": "x"}',
            ),
            *(b'{"layers": [{"digest": "x"}]}', b'{"config": [3]}'),
            f'{{"layers": [{{"mediaType": "a", "digest": "{SHA256}", "size": "z"}}]}}'.encode(),
            f'{{"layers": [{{"mediaType": "a", "digest": "{SHA256}", "size": -1}}]}}'.encode(),
        ],
        ids=lambda content: str(content)[:20],
    )
    def test_a_manifest_that_is_none_is_an_error_not_a_crash(
        self, tmp_path: Path, content: bytes
    ) -> None:
        with serving_app(Response(content)) as root:
            assert "must" in run_client("pull", root, "a:v1", tmp_path, fails=True)

    @pytest.mark.parametrize(
        "headers",
        [
            {"Docker-Content-Digest": "shake_128:00"},
            {"Docker-Content-Digest": "junk"},
            {"Content-Encoding": "gzip"},
        ],
    )
    def test_headers_that_lie_are_an_error_not_a_crash(
        self, tmp_path: Path, headers: dict[str, str]
    ) -> None:
        with serving_app(Response(b"{}", headers=headers)) as root:
            assert run_client("pull", root, "a:v1", tmp_path, fails=True).startswith("pull a:v1: ")

    def test_a_blob_that_does_not_end_is_cut_off(self, tmp_path: Path) -> None:
        sent = []

        def endless(environ: Any, start_response: Any) -> Any:
            def blocks() -> Iterator[bytes]:
                for _ in range(1000):
                    sent.append(1)
                    yield b"x" * 2**20

            return Response(blocks())(environ, start_response)

        with (
            serving_app(endless) as root,
            pytest.raises(ValueError, match="must have 10 bytes, but has more"),
        ):
            Registry(root, "a").fetch(SHA256, 10, Layout(tmp_path), Progress())
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0
        assert len(sent) < 100

    @pytest.mark.parametrize("size", [0, 1, 1000, 250_000])
    @pytest.mark.parametrize("lost", ["PATCH", "PUT"])
    def test_an_answer_that_is_lost(
        self, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, lost: str
    ) -> None:
        monkeypatch.setattr("client.CHUNK", 100_000)
        blob = tmp_path / "blob"
        blob.write_bytes(bytes([len(lost)]) * size)
        digest = f"sha256:{hashlib.sha256(blob.read_bytes()).hexdigest()}"
        registry = Registry(root, f"lost/{lost.lower()}-{size}")
        request, lose = registry.session.request, [lost]

        def failing(method: str, url: str, **options: Any) -> Any:
            response = request(method, url, **options)
            if method in lose:
                lose.clear()
                raise requests.ConnectionError("broken")
            return response

        monkeypatch.setattr(registry.session, "request", failing)
        registry.send(digest, blob, Progress())
        assert registry.has_blob(digest)

    def test_a_registry_that_ignores_ranges(self, tmp_path: Path) -> None:
        content = b"0123456789" * 1000
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        part = part_in(tmp_path, digest.partition(":")[2])
        part.write_bytes(content[:500])
        with serving_app(Response(content)) as root:
            Registry(root, "a").fetch(digest, len(content), Layout(tmp_path), Progress())
        assert Layout(tmp_path).blob(digest).read_bytes() == content

    def test_a_token_goes_to_the_registrys_origin_only(self) -> None:
        tokens = Tokens("https://Registry.example/m", "alice:secret")
        tokens.token = "secret"
        for url, goes in {
            "https://registry.example/x": True,
            "https://registry.example:443/x": True,
            "http://registry.example/x": False,
            "http://registry.example:443/x": False,
            "https://registry.example:5000/x": False,
            "https://other.example/x": False,
        }.items():
            prepared = requests.Request("GET", url, auth=tokens).prepare()
            assert ("Authorization" in prepared.headers) == goes, url

    def test_another_hosts_challenge_is_not_answered(self) -> None:
        asked = []

        def elsewhere(environ: Any, start_response: Any) -> Any:
            asked.append((environ["PATH_INFO"], environ.get("HTTP_AUTHORIZATION")))
            error = errors.Unauthorized(realm=f"http://{environ['HTTP_HOST']}/token")
            return error.get_response(environ)(environ, start_response)

        with serving_app(elsewhere) as other:
            registry = Registry("http://127.0.0.1:9", "a", "alice:secret")
            registry.tokens.token = "secret"
            with pytest.raises(errors.Unauthorized):
                registry.ask("PATCH", f"{other}/upload", data=b"x")
        assert asked == [("/upload", None)]

    def test_a_token_that_does_not_help_is_asked_for_once(self) -> None:
        asked = []

        def refusing(environ: Any, start_response: Any) -> Any:
            asked.append(environ["PATH_INFO"])
            if environ["PATH_INFO"] == "/token":
                return Response(b'{"token": "t"}')(environ, start_response)
            error = errors.Unauthorized(realm=f"http://{environ['HTTP_HOST']}/token")
            return error.get_response(environ)(environ, start_response)

        with serving_app(refusing) as root, pytest.raises(errors.Unauthorized):
            Registry(root, "a").ask("GET", f"{root}/x")
        assert asked == ["/x", "/token", "/x"]

    @pytest.mark.parametrize(
        "index", ["", "[]", '{"manifests": 3}', '{"manifests": [{}]}', '{"manifests": [[]]}']
    )
    def test_a_layout_that_is_none_is_named(self, tmp_path: Path, index: str) -> None:
        (tmp_path / "index.json").write_text(index)
        said = run_client("push", "http://127.0.0.1:9", "a:v1", tmp_path, fails=True)
        assert re.search("must (be|have)", said)
        assert said.count("\n") == 1

    def test_several_scopes_of_a_challenge_are_asked_for(self) -> None:
        asked = []

        def registry(environ: Any, start_response: Any) -> Any:
            asked.append((environ["PATH_INFO"], environ["QUERY_STRING"]))
            if environ["PATH_INFO"] == "/token":
                return Response(b'{"access_token": "t"}')(environ, start_response)
            if environ.get("HTTP_AUTHORIZATION") == "Bearer t":
                return Response(b"ok")(environ, start_response)
            realm = f"http://{environ['HTTP_HOST']}/token"
            error = errors.Unauthorized(realm=realm, service="s", scope=["a:b:c", "d:e:f"])
            return error.get_response(environ)(environ, start_response)

        with serving_app(registry) as root:
            assert Registry(root, "a").ask("GET", f"{root}/x").content == b"ok"
        assert len(asked) == 3
        assert asked[1] == ("/token", "service=s&scope=a%3Ab%3Ac&scope=d%3Ae%3Af")


class Progress:
    def update(self, amount: int) -> None: ...


class serving_app:
    """The root of a WSGI application, served on a thread."""

    def __init__(self, app: Any) -> None:
        self.server = make_server("127.0.0.1", 0, app, threaded=True)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


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

    def test_our_client_gets_its_tokens(self, gateway: str, tmp_path: Path) -> None:
        image, back, root = tmp_path / "image", tmp_path / "back", f"http://{gateway}"
        oci_layout.write(image, [10_000], ["amd64"], seed=1)
        denied = run_client("push", root, "x:v1", image, fails=True)
        assert "the token must allow repository:x:pull,push" in denied
        run_client("push", root, "x:v1", image, "--user", "alice:se:cret")
        run_client("pull", root, "x:v1", back)
        assert files_of(back) == files_of(image)

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
