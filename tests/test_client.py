"""The example client, against the example registry and gateway, Debian's registry, and faults."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import client
import pytest
import requests
from client import (
    CHUNK,
    Credentials,
    Download,
    Layout,
    Registry,
    Upload,
    is_loopback,
    pull,
    push,
    root_of,
)
from tqdm import tqdm
from werkzeug.serving import make_server, make_ssl_devcert
from werkzeug.wrappers import Request, Response

from registry_routes import Reference, errors
from registry_routes.digests import DigestMismatchError, digest_of
from registry_routes.headers import IMAGE_INDEX, IMAGE_MANIFEST, content_range
from registry_routes.registry import MemoryStorage, make_registry

from . import oci_layout
from .nasty import SHA256
from .servers import EXAMPLES, debians_registry, example, files_of, free_port, skopeo

V1 = Reference.parse("app:v1")
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("ours")
    with example("registry", directory / "log", "--storage", str(directory / "data")) as host:
        yield host


@pytest.fixture(scope="module")
def debians(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with debians_registry(tmp_path_factory.mktemp("debians")) as host:
        yield host


@pytest.fixture(params=["ours", pytest.param("debians", marks=pytest.mark.slow)])
def host(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have waited, each time; it does not wait."""
    seconds = list[float]()
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=seconds.append))
    return seconds


def command_of(*arguments: object) -> list[str]:
    return [sys.executable, str(EXAMPLES / "client.py"), *map(str, arguments)]


def run_client(*arguments: object, fails: bool = False, stdin: str = "") -> str:
    """What the client prints; the one line of its error, if it must fail."""
    command, out, err = command_of(*arguments)[1:], io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", command),
        patch.object(sys, "stdin", io.StringIO(stdin, newline="")),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        status = client.main()
    assert status == fails, err.getvalue()
    if fails:
        assert err.getvalue().count("\n") == 1
        assert err.getvalue().startswith(f"{arguments[0]} {arguments[1]}: ")
    return err.getvalue() if fails else out.getvalue()


class serving_app:
    """The root of a WSGI application, served on a thread."""

    def __init__(self, app: Any, **options: Any) -> None:
        self.server = make_server("127.0.0.1", 0, app, threaded=True, **options)
        self.scheme = "https" if options else "http"

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()
        return f"{self.scheme}://127.0.0.1:{self.server.port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class Faulty:
    """The example registry, with faults.

    `fault` gets each request. If it returns a response, that is the answer; if it returns a
    function, the function makes the answer from the registry's.
    """

    def __init__(self, fault: Callable[[Request], Any] = lambda request: None) -> None:
        self.registry = make_registry(MemoryStorage())
        self.fault = fault
        self.requests: list[Request] = []

    def __call__(self, environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        body = request.get_data()  # all of it, or the client might not see the response
        self.requests.append(request)
        answer = self.fault(request)
        if not isinstance(answer, Response):
            environ["wsgi.input"] = io.BytesIO(body)
            answered = Response.from_app(self.registry, environ)
            answer = answered if answer is None else answer(answered)
        return answer(environ, start_response)

    def asked(self, *methods: str) -> list[str]:
        return [
            f"{request.method} {request.path}"
            for request in self.requests
            if request.method in methods or not methods
        ]

    def count(self, method: str) -> int:
        return sum(request.method == method for request in self.requests)


def bar() -> Any:
    return tqdm(disable=True)


def put_blob(root: str, content: bytes, name: str = "a") -> dict[str, Any]:
    uploads = f"{root}/v2/{name}/blobs/uploads/"
    digest = digest_of(content)
    response = requests.post(uploads, params={"digest": digest}, data=content, timeout=10)
    assert response.status_code == 201
    return {"digest": digest, "size": len(content)}


def blob_in(layout: Path, content: bytes) -> dict[str, Any]:
    digest = digest_of(content)
    Layout(layout).write(digest, content)
    return {"digest": digest, "size": len(content)}


def part_in(layout: Path, digest: str) -> Path:
    """The file in which the client keeps the part of a blob that it has."""
    part = layout / "blobs" / "sha256" / f".{digest.partition(':')[2]}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    return part


def download(root: str, blob: dict[str, Any], layout: Path) -> bytes:
    Download(Registry(root, "a"), blob, Layout(layout), bar()).run()
    return Layout(layout).blob(blob["digest"]).read_bytes()


def upload(registry: Registry, blob: dict[str, Any], layout: Path) -> None:
    Upload(registry, blob, Layout(layout), bar()).run()


class TestPushAndPull:
    def test_an_image_comes_back_the_same(self, host: str, tmp_path: Path) -> None:
        image, back = tmp_path / "image", tmp_path / "back"
        oci_layout.write(image, [2 * CHUNK + 5, 100_000, 1, 0], ["amd64"])
        remote = f"{host}/library/app:v1"
        digest = run_client("push", remote, image).strip()
        assert run_client("pull", remote, back).strip() == digest
        assert files_of(back) == files_of(image)
        for reference, name in (f"@{digest}", digest), (f":v2@{digest}", "v2"):
            layout = tmp_path / name
            run_client("pull", f"{host}/library/app{reference}", layout)
            assert files_of(layout) == files_of(image)
            assert Layout(layout).descriptor(name)["digest"] == digest
        run_client("push", f"{host}/library/app:v3@{digest}", image)
        assert run_client("pull", f"{host}/library/app:v3", back).strip() == digest

    def test_an_index_comes_back_the_same_and_skopeo_reads_it(
        self, host: str, tmp_path: Path
    ) -> None:
        image, back = tmp_path / "image", tmp_path / "back"
        oci_layout.write(image, [1_000, 2_000], ["amd64", "arm64"], seed=1)
        run_client("push", f"{host}/multi/arch:v1", image)
        run_client("pull", f"{host}/multi/arch:v1", back)
        assert files_of(back) == files_of(image)
        copied = tmp_path / "copied"
        skopeo("copy --all", f"oci:{back}:v1", f"oci:{copied}:v1")
        assert files_of(copied) == files_of(image)

    def test_pushing_and_pulling_twice_changes_nothing(self, host: str, tmp_path: Path) -> None:
        image, back = tmp_path / "image", tmp_path / "back"
        oci_layout.write(image, [1_000], ["amd64"], seed=2)
        for _ in range(2):
            run_client("push", f"{host}/again:v1", image)
            run_client("pull", f"{host}/again:v1", back)
        assert files_of(back) == files_of(image)
        assert len(json.loads((back / "index.json").read_text())["manifests"]) == 1

    def test_the_default_tag_is_latest(self, ours: str, tmp_path: Path) -> None:
        image = tmp_path / "image"
        oci_layout.write(image, [10], ["amd64"])
        run_client("push", f"{ours}/untagged:v1", image)
        run_client("pull", f"{ours}/untagged:v1", tmp_path / "back")
        layout = Layout(tmp_path / "back")
        layout.add(layout.descriptor("v1"), "latest")
        run_client("push", f"{ours}/untagged", tmp_path / "back")
        run_client("pull", f"{ours}/untagged", tmp_path / "again")
        assert Layout(tmp_path / "again").descriptor("latest") is not None


class TestTheCommandLine:
    def test_an_error_is_printed_in_one_line(self, host: str, tmp_path: Path) -> None:
        said = run_client("pull", f"{host}/no/such:v1", tmp_path, fails=True)
        assert "404 MANIFEST_UNKNOWN" in said
        said = run_client("pull", f"{host}/No/such:v1", tmp_path, fails=True)
        assert "repository name 'No/such' must be lowercase" in said
        said = run_client("push", f"{host}/no/such:v1", tmp_path / "none", fails=True)
        assert "image 'v1' must be in the layout" in said

    @pytest.mark.parametrize(
        "image", ["", "a:", "a/B", "a b", "http://127.0.0.1/a", "a@sha256:0", "a@md5:0", "é"]
    )
    def test_a_malformed_reference_is_an_error(self, image: str, tmp_path: Path) -> None:
        assert "must" in run_client("pull", image, tmp_path, fails=True)

    def test_a_refused_connection_is_an_error(self, tmp_path: Path, waits: list[float]) -> None:
        said = run_client("pull", f"127.0.0.1:{free_port()}/x:v1", tmp_path, fails=True)
        assert "refused" in said

    def test_an_interruption_ends_the_program_with_status_130(self, tmp_path: Path) -> None:
        reached = threading.Event()

        def slow(environ: Any, start_response: Any) -> Any:
            reached.set()
            time.sleep(5)
            return Response(status=404)(environ, start_response)

        with serving_app(slow) as root:
            command = command_of("pull", f"{root[7:]}/a:v1", tmp_path, "--tls-verify=false")
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
                assert reached.wait(30)
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=30)
        assert process.returncode == 130
        assert said == f"pull {root[7:]}/a:v1: interrupted\n"

    def test_control_characters_from_a_registry_are_not_printed(self, tmp_path: Path) -> None:
        body = json.dumps({"errors": [{"code": "DENIED", "message": "\x1b[2J\r\nnot you"}]})
        with serving_app(Response(body, 403)) as root:
            said = run_client("pull", f"{root[7:]}/a:v1", tmp_path, fails=True)
        assert "not you" in said
        assert "\x1b" not in said

    @pytest.mark.parametrize(
        ("arguments", "environment", "given"),
        [
            (["--user", "alice:se:cret"], {}, ""),
            (["--user", "alice"], {"REGISTRY_PASSWORD": "se:cret"}, ""),
            (["--user", "alice", "--password-stdin"], {"REGISTRY_PASSWORD": "no"}, "se:cret\n"),
            (["--user", "alice", "--password-stdin"], {}, "se:cret\r\n"),
            (["--user", "alice", "--password-stdin"], {}, "se:cret"),
        ],
    )
    def test_a_password_is_an_option_a_variable_or_standard_input(
        self, tmp_path: Path, arguments: list[str], environment: dict[str, str], given: str
    ) -> None:
        def private(request: Request) -> Any:
            if request.authorization is None:
                return Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            password = request.authorization.password
            return None if password == "se:cret" else Response(password, 403)

        oci_layout.write(tmp_path / "image", [10], ["amd64"])
        with serving_app(Faulty(private)) as root, patch.dict(os.environ, environment):
            remote = f"{root[7:]}/a:v1"
            run_client("push", remote, tmp_path / "image", *arguments, stdin=given)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--user", "alice"], "password of 'alice' must be given"),
            (["--user", "alice", "--password-stdin"], "password of 'alice' must be given"),
            (["--user", "alice:x", "--password-stdin"], "password must be given once"),
            (["--user", ":x"], "user must have a name"),
            (["--password-stdin"], "user must have a name"),
        ],
    )
    def test_a_missing_user_or_password_is_an_error(
        self, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        said = run_client("pull", "a", tmp_path, *arguments, fails=True)
        assert message in said

    def test_help_says_when_plain_http_is_used(self) -> None:
        shown = subprocess.run(command_of("--help"), capture_output=True, text=True, check=True)
        words = " ".join(shown.stdout.split())
        assert "--tls-verify" in words
        assert "default: false for localhost, 127.0.0.1 and ::1, else true" in words


class TestHttpOrHttps:
    def test_docker_hub_is_reached_by_https_at_its_own_host(self) -> None:
        assert root_of(Reference.parse("nginx"), None) == "https://registry-1.docker.io"
        assert root_of(Reference.parse("ghcr.io/a/b"), None) == "https://ghcr.io"

    def test_http_is_used_only_if_it_is_allowed_and_https_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(url: str, **options: Any) -> Any:
            asked.append((url, options["verify"]))
            raise requests.ConnectionError("refused")

        asked = list[tuple[str, bool]]()
        monkeypatch.setattr("requests.get", refused)
        image = Reference.parse("registry.example:5000/a")
        assert root_of(image, None) == root_of(image, True) == "https://registry.example:5000"
        assert asked == []
        assert root_of(image, False) == "http://registry.example:5000"
        assert asked == [("https://registry.example:5000/v2/", False)]

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [
            *(("localhost:5000", True), ("127.0.0.1", True), ("127.8.9.10:80", True)),
            *(("[::1]:5000", True), ("localhost.example", False), ("127.0.0.1.example", False)),
            *(("127.example", False), ("10.0.0.1", False), ("[::2]", False)),
        ],
    )
    def test_only_addresses_of_this_machine_are_loopback(self, host: str, loopback: bool) -> None:
        assert is_loopback(f"https://{host}/v2/") == loopback

    def test_a_certificate_is_checked_unless_told_otherwise(self, tmp_path: Path) -> None:
        pytest.importorskip(
            "cryptography", reason="cryptography cannot be installed on this Python"
        )
        certificate = make_ssl_devcert(str(tmp_path / "key"), cn="wrong.example")
        oci_layout.write(tmp_path / "image", [10], ["amd64"])
        with serving_app(Faulty(), ssl_context=certificate) as root:
            image = f"{root[8:]}/a:v1"
            run_client("push", image, tmp_path / "image")
            run_client("push", image, tmp_path / "image", "--tls-verify=false")
            push_checked = ["push", image, tmp_path / "image", "--tls-verify=true"]
            assert "certificate" in run_client(*push_checked, fails=True).lower()

    def test_plain_http_is_refused_if_tls_is_required(self, ours: str, tmp_path: Path) -> None:
        run_client("pull", f"{ours}/a:v1", tmp_path, "--tls-verify=true", fails=True)

    def test_a_token_servers_certificate_is_checked_even_if_the_registry_is_on_this_machine(
        self,
    ) -> None:
        asked = list[Any]()
        registry = Registry("http://localhost:5000", "a")
        registry.session.request = lambda *_, **options: asked.append(options["verify"])  # type: ignore
        registry.request("GET", "https://auth.example/token")
        registry.request("GET", "https://localhost:5000/v2/")
        assert asked == [True, False]


class TestTokens:
    """A registry that requires tokens, and its token server."""

    class Server(Faulty):
        def __init__(self, **answer: Any) -> None:
            super().__init__(self.guard)
            self.answer = {"expires_in": 60, **answer}
            self.tokens = Counter[str]()
            self.given = 0
            self.revoked = False
            self.scopes: Callable[[Request], list[str]] = lambda request: [
                f"repository:a:{'pull' if request.method in ('GET', 'HEAD') else 'pull,push'}"
            ]

        def guard(self, request: Request) -> Any:
            if request.path == "/token":
                return self.give(request)
            scopes = self.scopes(request)
            sent = (request.authorization and request.authorization.token) or ""
            if not self.revoked and set(" ".join(scopes).split()) <= set(sent.split("|")[1:]):
                return None
            self.revoked = False
            realm = f"http://{request.host}/token"
            error = errors.Unauthorized(realm=realm, service="s", scope=scopes)
            return error.get_response(request.environ)

        def give(self, request: Request) -> Response:
            if request.method == "POST":
                return Response(status=405)
            scopes = request.args.getlist("scope")
            if "repository:a:pull,push" in scopes:
                scopes.append("repository:a:pull")
            self.tokens[request.query_string.decode()] += 1
            self.given += 1
            token = "|".join([str(self.given), *scopes])
            return Response(json.dumps({"token": token, **self.answer}))

    def push_and_pull(self, root: str, tmp_path: Path, user: Any = None) -> None:
        image, back = tmp_path / "image", tmp_path / "back"
        oci_layout.write(image, [1000, 2000, 3000], ["amd64", "arm64"])
        push(Registry(root, "a", user), V1, Layout(image))
        pull(Registry(root, "a", user), V1, Layout(back))
        assert files_of(back) == files_of(image)

    def test_the_tokens_of_the_example_gateway(self, tmp_path: Path) -> None:
        image, back = tmp_path / "image", tmp_path / "back"
        oci_layout.write(image, [10_000], ["amd64"], seed=1)
        options = ["--storage", "memory://", "--user", "alice:se:cret"]
        with example("gateway", tmp_path / "log", *options) as host:
            denied = run_client("push", f"{host}/x:v1", image, fails=True)
            assert "the token must allow repository:x:pull,push" in denied
            wrong = ["push", f"{host}/x:v1", image, "--user", "alice:wrong"]
            assert "incorrect username or password" in run_client(*wrong, fails=True)
            run_client("push", f"{host}/x:v1", image, "--user", "alice:se:cret")
            run_client("pull", f"{host}/x:v1", back)
        assert files_of(back) == files_of(image)

    def test_there_is_one_token_for_each_set_of_scopes(self, tmp_path: Path) -> None:
        server = self.Server()
        with serving_app(server) as root:
            self.push_and_pull(root, tmp_path)
        pulling = "service=s&scope=repository%3Aa%3Apull"
        pushing = "service=s&scope=repository%3Aa%3Apull%2Cpush"
        assert server.tokens == {pulling: 2, pushing: 1}  # for two Registry objects

    def test_the_order_of_scopes_does_not_matter(self) -> None:
        server = self.Server()
        scopes = {
            "/v2/": ["x:b:pull", "x:a:pull"],
            "/v2/_catalog": ["x:c:pull"],
            "/v2/a/tags/list": ["x:a:pull", "x:b:pull"],
        }
        server.scopes = lambda request: scopes[request.path]
        with serving_app(server) as root:
            registry = Registry(root, "a")
            for path in scopes:
                with suppress(errors.NameUnknown):
                    registry.tell("GET", f"{root}{path}")
        assert server.tokens == {
            "service=s&scope=x%3Aa%3Apull&scope=x%3Ab%3Apull": 1,
            "service=s&scope=x%3Ac%3Apull": 1,
        }

    def test_a_body_is_sent_again_after_a_challenge(self, tmp_path: Path) -> None:
        server = self.Server()
        server.scopes = lambda request: [f"repository:a:{request.method.lower()}"]
        blob = blob_in(tmp_path, b"the content of a file")
        with serving_app(server) as root:
            upload(Registry(root, "a"), blob, tmp_path)
        assert [one.get_data() for one in server.requests if one.method == "PUT"] == [
            b"the content of a file",
            b"the content of a file",
        ]

    @pytest.mark.parametrize("scope", ["*", "repository:a:pull,", "weird"])
    def test_a_scope_of_any_form_is_passed_on(self, scope: str) -> None:
        server = self.Server()
        server.scopes = lambda request: [scope]
        with serving_app(server) as root:
            Registry(root, "a").tell("GET", f"{root}/v2/")
        assert server.given == 1

    def test_an_expired_token_is_not_sent(self, tmp_path: Path) -> None:
        server = self.Server(expires_in=0)
        with serving_app(server) as root:
            registry = Registry(root, "a")
            for _ in range(3):
                registry.tell("GET", f"{root}/v2/")
        sent = [request.authorization for request in server.requests if request.path == "/v2/"]
        assert [one and one.token for one in sent] == [
            None,
            *(f"{number}|repository:a:pull" for number in (1, 2, 3)),
        ]

    def test_a_token_that_is_refused_before_it_expires_is_replaced(self) -> None:
        server = self.Server()
        with serving_app(server) as root:
            registry = Registry(root, "a")
            registry.tell("GET", f"{root}/v2/")
            server.revoked = True
            registry.tell("GET", f"{root}/v2/")
            registry.tell("GET", f"{root}/v2/")
        assert server.given == 2

    def test_a_token_that_does_not_help_is_requested_only_once(self) -> None:
        server = self.Server()
        server.scopes = lambda request: [f"x:{len(server.requests)}:pull"]
        with serving_app(server) as root, pytest.raises(errors.Unauthorized):
            Registry(root, "a").ask("GET", f"{root}/v2/")
        assert server.asked() == ["GET /v2/", "GET /token", "GET /v2/"]

    @pytest.mark.parametrize("posted", [200, 302, 307, 400, 401, 404, 405, 500])
    def test_a_token_server_that_does_not_accept_the_form_is_asked_by_get(
        self, tmp_path: Path, posted: int
    ) -> None:
        class Server(self.Server):  # type: ignore[misc, name-defined]
            def give(self, request: Request) -> Response:
                if request.method == "POST":
                    form.update(request.form)
                    headers = {"Location": f"{elsewhere}/"} if 300 < posted < 400 else {}
                    return Response("<html>", posted, headers)
                basic = request.authorization
                assert basic is not None
                assert (basic.username, basic.password) == ("alice", "sécrèt€")
                return super().give(request)  # type: ignore[no-any-return]

        form = dict[str, str]()
        other = Faulty(lambda request: Response("no"))
        with serving_app(other) as elsewhere, serving_app(Server()) as root:
            self.push_and_pull(root, tmp_path, ("alice", "sécrèt€"))
        assert not other.requests  # they would have had the password
        assert form["grant_type"] == "password"
        assert (form["username"], form["password"]) == ("alice", "sécrèt€")

    def test_a_token_is_requested_by_post(self, tmp_path: Path) -> None:
        class Server(self.Server):  # type: ignore[misc, name-defined]
            def give(self, request: Request) -> Response:
                if request.method == "GET":
                    return Response(status=405)
                assert request.form["password"] == "secret"
                assert request.form["service"] == "s"
                scope = request.form["scope"]
                token = f"|{scope}|repository:a:pull"
                return Response(json.dumps({"access_token": token}))

        with serving_app(Server()) as root:
            self.push_and_pull(root, tmp_path, ("alice", "secret"))

    @pytest.mark.parametrize(
        "challenges",
        [
            ['Basic realm="r"'],
            ["Basic"],
            ['Negotiate abc==, Basic realm="r"'],
            ["Negotiate", 'basic realm="r"'],
        ],
    )
    def test_basic_authentication_is_used_if_the_registry_asks_for_it(
        self, tmp_path: Path, challenges: list[str]
    ) -> None:
        def private(request: Request) -> Any:
            if request.authorization and request.authorization.type == "basic":
                assert request.authorization.password == "sécrèt€"
                return None
            response = Response(status=401)
            for one in challenges:
                response.headers.add("WWW-Authenticate", one)
            return response

        server = Faulty(private)
        with serving_app(server) as root:
            self.push_and_pull(root, tmp_path, ("alice", "sécrèt€"))
            unauthorized = [one for one in server.requests if "Authorization" not in one.headers]
            assert len(unauthorized) == 2  # the first request of each Registry object
            with pytest.raises(errors.Unauthorized):
                pull(Registry(root, "a"), V1, Layout(tmp_path / "none"))

    @pytest.mark.slow
    def test_debians_registry_accepts_only_the_right_password(self, tmp_path: Path) -> None:
        passwords = tmp_path / "htpasswd"
        hashed = "$2b$04$prdhAhvnNRX/gSFauBF64O8B4VqGXxmXWZ1J0eSNjdtzIt3LfCjoC"  # of "secret"
        passwords.write_text(f"alice:{hashed}\n")
        auth = {"htpasswd": {"realm": "here", "path": str(passwords)}}
        oci_layout.write(tmp_path / "image", [5 * CHUNK], ["amd64"])
        with debians_registry(tmp_path, auth=auth) as host:
            command = ["push", f"{host}/a/b:v1", tmp_path / "image"]
            assert "401" in run_client(*command, fails=True)
            assert "401" in run_client(*command, "--user", "alice:wrong", fails=True)
            run_client(*command, "--user", "alice:secret")

    def test_a_wrong_password_is_sent_only_once(self) -> None:
        challenge = {"WWW-Authenticate": 'Basic realm="r"'}
        server = Faulty(lambda request: Response(status=401, headers=challenge))
        with serving_app(server) as root, pytest.raises(errors.Unauthorized):
            Registry(root, "a", ("alice", "x")).ask("GET", f"{root}/v2/")
        assert len(server.requests) == 2

    def test_an_http_realm_is_refused_for_an_https_registry(self) -> None:
        response = requests.Response()
        response.status_code, response.url = 401, "https://r.example/v2/"
        response.request = requests.Request("GET", response.url).prepare()
        response.headers["WWW-Authenticate"] = 'Bearer realm="http://r.example/token"'
        credentials = Credentials("https://r.example", ("alice", "x"), pytest.fail)
        with pytest.raises(ValueError, match="must be https"):
            credentials.can_answer(response)


class TestOtherHosts:
    def test_credentials_go_only_to_the_registrys_origin(self) -> None:
        def pretended(*_: Any, **__: Any) -> Any:
            response: Any = requests.Response()
            response.status_code, response._content = 200, b'{"token": "t"}'
            response._content_consumed = True
            return response

        credentials = Credentials("https://Registry.example/m", None, pretended)
        unauthorized = requests.Response()
        unauthorized.status_code, unauthorized.url = 401, "https://registry.example/v2/"
        unauthorized.request = requests.Request("GET", unauthorized.url).prepare()
        unauthorized.headers["WWW-Authenticate"] = 'Bearer realm="https://a/t"'
        assert credentials.can_answer(unauthorized)
        for url, goes in {
            "https://registry.example/x": True,
            "https://registry.example:443/x": True,
            "http://registry.example/x": False,
            "http://registry.example:443/x": False,
            "https://registry.example:5000/x": False,
            "https://other.example/x": False,
        }.items():
            prepared = requests.Request("GET", url, auth=credentials).prepare()
            assert ("Authorization" in prepared.headers) == goes, url

    def test_another_hosts_challenge_is_not_answered(self) -> None:
        def elsewhere(request: Request) -> Response:
            error = errors.Unauthorized(realm=f"http://{request.host}/token")
            return error.get_response(request.environ)

        other = Faulty(elsewhere)
        with serving_app(other) as root:
            registry = Registry("http://127.0.0.1:9", "a", ("alice", "secret"))
            with pytest.raises(errors.Unauthorized):
                registry.ask("PATCH", f"{root}/upload", data=b"x")
        assert other.asked() == ["PATCH /upload"]

    @pytest.mark.parametrize("status", [302, 307])
    @pytest.mark.parametrize("scheme", ["basic", "bearer"])
    def test_a_redirect_of_a_blob_does_not_pass_on_the_credentials(
        self, tmp_path: Path, status: int, scheme: str
    ) -> None:
        content = b"content of a blob"
        store = Faulty(lambda request: Response(content))

        def registry(request: Request) -> Response:
            if request.path == "/token":
                return Response('{"token": "t"}')
            if "Authorization" in request.headers:
                return Response(status=status, headers={"Location": f"{elsewhere}/x"})
            challenge = f'{scheme} realm="http://{request.host}/token"'
            return Response(status=401, headers={"WWW-Authenticate": challenge})

        blob: dict[str, Any] = {"digest": digest_of(content), "size": len(content)}
        with serving_app(store) as elsewhere, serving_app(Faulty(registry)) as root:
            here = Registry(root, "a", ("alice", "secret"))
            Download(here, blob, Layout(tmp_path), bar()).run()
        assert [request.path for request in store.requests] == ["/x"]
        assert "Authorization" not in store.requests[0].headers

    @pytest.mark.parametrize("redirected", [False, True])
    def test_an_upload_to_another_host_does_not_pass_on_the_credentials(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redirected: bool
    ) -> None:
        """The upload is elsewhere by its ``Location``, or by redirects that keep the body."""
        monkeypatch.setattr("client.CHUNK", 100_000)
        store = Faulty()

        def registry(request: Request) -> Any:
            if "Authorization" not in request.headers:
                return Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            if request.method == "HEAD":
                return Response(status=404)
            if not redirected and request.method == "POST":
                begun = requests.post(f"{elsewhere}{request.path}", timeout=10)
                return Response(status=202, headers={"Location": begun.headers["Location"]})
            target = f"{elsewhere}{request.full_path}"
            return Response(status=307, headers={"Location": target})

        for content in b"x" * 250_000, b"y" * 1000, b"":
            blob = blob_in(tmp_path, content)
            with serving_app(store) as elsewhere, serving_app(Faulty(registry)) as root:
                upload(Registry(root, "a", ("alice", "secret")), blob, tmp_path)
                assert requests.get(f"{elsewhere}/v2/a/blobs/{blob['digest']}", timeout=10).ok
        assert all("Authorization" not in request.headers for request in store.requests)


class TestRetries:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_each_request_is_tried_again(
        self, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, status: int
    ) -> None:
        monkeypatch.setattr("client.CHUNK", 100_000)
        failures = Counter[str]()

        def failing(request: Request) -> Any:
            key = re.sub("uploads/[0-9a-f]+", "uploads/", f"{request.method} {request.full_path}")
            failures[key] += 1
            return Response(status=status) if failures[key] == 1 else None

        image, back = tmp_path / "image", tmp_path / "back"
        oci_layout.write(image, [350_000], ["amd64"])
        with serving_app(Faulty(failing)) as root:
            push(Registry(root, "a"), V1, Layout(image))
            pull(Registry(root, "a"), V1, Layout(back))
        assert files_of(back) == files_of(image)
        assert waits[:3] == [0.2, 0.4, 0.8]
        assert {key.split()[0] for key in failures} == {"HEAD", "POST", "PATCH", "PUT", "GET"}

    @pytest.mark.parametrize("after", ["30", "date"])
    def test_the_client_waits_as_long_as_retry_after_says(
        self, waits: list[float], after: str
    ) -> None:
        answers = [Response(status=503), Response(b"{}", content_type=IMAGE_MANIFEST)]
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
        answers[0].headers["Retry-After"] = date if after == "date" else after
        with serving_app(Faulty(lambda request: answers.pop(0))) as root:
            Registry(root, "a").manifest("v1")
        assert len(waits) == 1
        assert 20 < waits[0] < 41

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_long_retry_after_is_printed_and_not_waited_for(
        self, tmp_path: Path, status: int
    ) -> None:
        response = Response(status=status, headers={"Retry-After": "3600"})
        with serving_app(response) as root:
            said = run_client("pull", f"{root[7:]}/a:v1", tmp_path, fails=True)
        assert str(status) in said
        assert "(try again in 3600 seconds)" in said

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 501])
    def test_other_errors_are_not_tried_again(self, waits: list[float], status: int) -> None:
        server = Faulty(lambda request: Response(status=status))
        with serving_app(server) as root, pytest.raises(errors.RegistryError) as raised:
            Registry(root, "a").manifest("v1")
        assert raised.value.code == status
        assert len(server.requests) == 1
        assert waits == []

    def test_the_number_of_attempts_is_limited(self, waits: list[float], tmp_path: Path) -> None:
        server = Faulty(lambda request: Response(status=500))
        with serving_app(server) as root:
            registry = Registry(root, "a")
            blob = blob_in(tmp_path / "full", b"x")
            for call in (
                lambda: registry.manifest("v1"),
                lambda: registry.put_manifest("v1", b"{}", IMAGE_MANIFEST),
                lambda: download(root, blob, tmp_path / "empty"),
                lambda: upload(registry, blob, tmp_path / "full"),
            ):
                server.requests.clear()
                with pytest.raises(errors.RegistryError):
                    call()
                assert len(server.requests) == client.ATTEMPTS

    def test_a_busy_token_server_is_asked_again(self, waits: list[float]) -> None:
        answers = [Response(status=429), Response('{"token": "t"}')]

        def registry(request: Request) -> Any:
            if request.path == "/token":
                return answers.pop(0)
            if "Authorization" in request.headers:
                return Response(b"{}", content_type=IMAGE_MANIFEST)
            error = errors.Unauthorized(realm=f"http://{request.host}/token")
            return error.get_response(request.environ)

        with serving_app(Faulty(registry)) as root:
            Registry(root, "a").manifest("v1")
        assert answers == []

    def broken_off(self, content: bytes, after: int, honours: bool) -> Any:
        """An application that sends `content`, but only `after` bytes of it in each response."""

        def app(request: Request) -> Response:
            start = 0
            if honours and request.range:
                start = request.range.ranges[0][0]
            headers = {"Content-Length": str(len(content) - start)}
            status = 200
            if start:
                status = 206
                headers["Content-Range"] = f"bytes {content_range(start, len(content) - start)}/*"
            return Response(iter([content[start : start + after]]), status, headers)

        return app

    def test_progress_of_a_pull_resets_the_count_of_attempts(
        self, waits: list[float], tmp_path: Path
    ) -> None:
        content = bytes(range(250)) * 10_000
        blob: dict[str, Any] = {"digest": digest_of(content), "size": len(content)}
        server = Faulty(self.broken_off(content, 100_000, honours=True))
        with serving_app(server) as root:
            assert download(root, blob, tmp_path) == content
        assert len(server.requests) > 25
        assert set(waits) == {0.2}

    def test_a_pull_that_always_breaks_off_at_the_same_place_fails(
        self, waits: list[float], tmp_path: Path
    ) -> None:
        content = bytes(10_000)
        blob: dict[str, Any] = {"digest": digest_of(content), "size": len(content)}
        server = Faulty(self.broken_off(content, 1000, honours=False))
        with serving_app(server) as root, pytest.raises(requests.RequestException):
            download(root, blob, tmp_path)
        assert len(server.requests) == client.ATTEMPTS

    def test_progress_of_a_push_resets_the_count_of_attempts(
        self, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("client.CHUNK", 1000)
        server = Faulty(lambda request: busy() if request.method == "PATCH" else None)
        patches = list[int]()

        def busy() -> Response | None:
            patches.append(1)
            return Response(status=503) if len(patches) % 2 == 0 else None

        blob = blob_in(tmp_path, bytes(range(250)) * 60)
        with serving_app(server) as root:
            upload(Registry(root, "a"), blob, tmp_path)
            assert Registry(root, "a").has_blob(blob["digest"])
        assert len(waits) == 14 > client.ATTEMPTS
        assert set(waits) == {0.2}

    def test_a_push_that_the_registry_always_forgets_fails(
        self, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("client.CHUNK", 1000)

        def forgetful(request: Request) -> Any:
            if request.method == "PATCH" and request.headers["Content-Range"] != "0-999":
                return Response(status=503)
            return (
                Response(status=404)
                if "uploads/" in request.path and request.method == "GET"
                else None
            )

        server = Faulty(forgetful)
        blob = blob_in(tmp_path, bytes(5000))
        with serving_app(server) as root, pytest.raises(errors.Unavailable):
            upload(Registry(root, "a"), blob, tmp_path)
        assert server.count("POST") == client.ATTEMPTS

    @pytest.mark.parametrize("size", [0, 1, 1000, 250_000])
    @pytest.mark.parametrize("lost", ["PATCH", "PUT"])
    def test_a_push_succeeds_though_a_response_is_lost(
        self, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, lost: str
    ) -> None:
        monkeypatch.setattr("client.CHUNK", 100_000)
        blob = blob_in(tmp_path, bytes([len(lost)]) * size)
        registry = Registry(f"http://{host}", f"lost/{lost.lower()}-{size}")
        request, lose = registry.session.request, [lost]

        def failing(method: str, url: str, **options: Any) -> Any:
            response = request(method, url, **options)
            if method in lose:
                lose.clear()
                raise requests.ConnectionError("broken")
            return response

        monkeypatch.setattr(registry.session, "request", failing)
        upload(registry, blob, tmp_path)
        assert registry.has_blob(blob["digest"])

    def test_a_push_goes_on_where_it_broke_off(
        self, ours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("client.CHUNK", 100_000)
        monkeypatch.setattr("client.SMALLEST_CHUNK", 100_000)
        registry = Registry(f"http://{ours}", "broken/off")
        request, seen = registry.session.request, list[str]()

        def failing(method: str, url: str, **options: Any) -> Any:
            seen.append(method)
            response = request(method, url, **options)
            if seen.count("PATCH") in (2, 3) and seen[-1] == "PATCH":  # the response is lost
                raise requests.ConnectionError("broken")
            return response

        monkeypatch.setattr(registry.session, "request", failing)
        upload(registry, blob_in(tmp_path, os.urandom(350_000)), tmp_path)
        assert seen.count("PATCH") >= 4
        assert seen.count("GET") == 2


class TestChunks:
    def sent(self, server: Faulty, method: str) -> list[int]:
        return [len(one.get_data()) for one in server.requests if one.method == method]

    @pytest.mark.parametrize("least", [0, 1, 1 * MIB, 5 * MIB, 6 * MIB + 1])
    def test_chunks_have_at_least_the_minimum_size(self, tmp_path: Path, least: int) -> None:
        def tell(request: Request) -> Any:
            def least_length(response: Response) -> Response:
                response.headers["OCI-Chunk-Min-Length"] = str(least)
                return response

            return least_length if request.method == "POST" else None

        server = Faulty(tell)
        blob = blob_in(tmp_path, os.urandom(13 * MIB))
        with serving_app(server) as root:
            upload(Registry(root, "a"), blob, tmp_path)
            assert Registry(root, "a").has_blob(blob["digest"])
        chunk = max(least, CHUNK)
        assert self.sent(server, "PATCH") == [*[chunk] * (13 * MIB // chunk), 13 * MIB % chunk]

    @pytest.mark.parametrize("least", [str(6 * MIB), "9" * 18])
    def test_a_minimum_size_too_large_for_memory_makes_one_request(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: str
    ) -> None:
        monkeypatch.setattr("client.LARGEST_CHUNK", 5 * MIB)

        def tell(request: Request) -> Any:
            def least_length(response: Response) -> Response:
                response.headers["OCI-Chunk-Min-Length"] = least
                return response

            return least_length if request.method == "POST" else None

        server = Faulty(tell)
        blob = blob_in(tmp_path, os.urandom(9 * MIB))
        with serving_app(server) as root:
            upload(Registry(root, "a"), blob, tmp_path)
        assert self.sent(server, "PATCH") == []
        assert self.sent(server, "PUT") == [9 * MIB]

    @pytest.mark.parametrize("status", [413, 416])
    @pytest.mark.parametrize("limit", [CHUNK, MIB, pytest.param(100_000, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("size", [CHUNK // 2, 2 * CHUNK + 5])
    def test_chunks_become_smaller_if_large_ones_are_refused(
        self, tmp_path: Path, status: int, limit: int, size: int
    ) -> None:
        def small(request: Request) -> Any:
            return Response(status=status) if len(request.get_data()) > limit else None

        server = Faulty(small)
        blobs = [blob_in(tmp_path, os.urandom(size)) for _ in range(2)]
        with serving_app(server) as root:
            registry = Registry(root, "a")
            for blob in blobs:
                upload(registry, blob, tmp_path)
                assert registry.has_blob(blob["digest"])
        refused = [one for one in server.requests if len(one.get_data()) > limit]
        assert len(refused) <= 7  # for the first blob only

    @pytest.mark.parametrize("status", [400, 404, 405, 411, 413, 415, 416, 501])
    def test_one_request_is_made_if_chunks_are_refused(self, tmp_path: Path, status: int) -> None:
        def whole(request: Request) -> Any:
            return Response(status=status) if request.method == "PATCH" else None

        server = Faulty(whole)
        blobs = [blob_in(tmp_path, os.urandom(2 * CHUNK)) for _ in range(2)]
        with serving_app(server) as root:
            registry = Registry(root, "a")
            for blob in blobs:
                upload(registry, blob, tmp_path)
                assert registry.has_blob(blob["digest"])
        assert self.sent(server, "PUT") == [2 * CHUNK] * 2
        assert self.sent(server, "PATCH") < [CHUNK] * 2

    @pytest.mark.parametrize("least", [3 * MIB, 5 * MIB])
    def test_one_request_is_made_if_smaller_chunks_would_be_below_the_minimum(
        self, tmp_path: Path, least: int
    ) -> None:
        def at_odds(request: Request) -> Any:
            def least_length(response: Response) -> Response:
                response.headers["OCI-Chunk-Min-Length"] = str(least)
                return response

            if request.method == "PATCH":
                return Response(status=413)
            return least_length if request.method == "POST" else None

        server = Faulty(at_odds)
        blob = blob_in(tmp_path, os.urandom(2 * CHUNK))
        with serving_app(server) as root:
            upload(Registry(root, "a"), blob, tmp_path)
        assert self.sent(server, "PATCH") == [max(least, CHUNK)]

    @pytest.mark.parametrize("size", [0, 1000, CHUNK // 2, 2 * CHUNK])
    @pytest.mark.parametrize("status", [400, 401, 403, 413, 416])
    def test_a_blob_that_is_refused_in_every_way_is_an_error(
        self, tmp_path: Path, size: int, status: int
    ) -> None:
        def none(request: Request) -> Any:
            return Response(status=status) if request.method in ("PATCH", "PUT") else None

        server = Faulty(none)
        blob = blob_in(tmp_path, bytes(size))
        with serving_app(server) as root, pytest.raises(errors.RegistryError) as raised:
            upload(Registry(root, "a"), blob, tmp_path)
        assert raised.value.code == status
        assert len(server.requests) < 40

    def test_chunks_become_smaller_if_long_bodies_break_the_connection(
        self, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = Faulty()
        blob = blob_in(tmp_path, os.urandom(2 * CHUNK))
        with serving_app(server) as root:
            registry = Registry(root, "a")
            request = registry.session.request

            def closing(method: str, url: str, **options: Any) -> Any:
                data = options["data"]
                if isinstance(data, bytes) and len(data) > MIB:
                    raise requests.ConnectionError("reset by peer")
                return request(method, url, **options)

            monkeypatch.setattr(registry.session, "request", closing)
            upload(registry, blob, tmp_path)
            assert registry.has_blob(blob["digest"])
        assert self.sent(server, "PATCH") == [MIB] * 8


def nested(root: Path, depth: int, times: int) -> str:
    """Write nested indexes into a layout, each listed `times` times. Return the outermost digest."""
    layout = Layout(root)
    content = json.dumps({"mediaType": IMAGE_MANIFEST}).encode()
    media_type = IMAGE_MANIFEST
    for _ in range(depth + 1):
        digest = digest_of(content)
        layout.write(digest, content)
        descriptor = {"mediaType": media_type, "digest": digest, "size": len(content)}
        media_type = IMAGE_INDEX
        content = json.dumps({"mediaType": IMAGE_INDEX, "manifests": [descriptor] * times}).encode()
    layout.root.mkdir(exist_ok=True)
    layout.add(descriptor, "v1")
    return digest


class TestIndexes:
    def test_each_digest_is_visited_once(self, tmp_path: Path) -> None:
        digest = nested(tmp_path / "image", 11, 2)
        server = Faulty()
        with serving_app(server) as root:
            assert push(Registry(root, "a"), V1, Layout(tmp_path / "image")) == digest
            assert len(server.requests) == 12
            assert pull(Registry(root, "a"), V1, Layout(tmp_path / "back")) == digest
            assert len(server.requests) == 24
        assert files_of(tmp_path / "back") == files_of(tmp_path / "image")

    def test_blobs_that_images_share_are_requested_once(self, tmp_path: Path) -> None:
        oci_layout.write(tmp_path / "image", [1000, 2000, 2000], ["amd64", "arm64", "s390x"])
        server = Faulty()
        with serving_app(server) as root:
            push(Registry(root, "a"), V1, Layout(tmp_path / "image"))
            pull(Registry(root, "a"), V1, Layout(tmp_path / "back"))
        for method in "HEAD", "GET":
            assert max(Counter(server.asked(method)).values()) == 1

    def test_a_manifest_that_is_also_a_layer_is_pushed_as_both(self, tmp_path: Path) -> None:
        oci_layout.write(tmp_path, [10], ["amd64"])
        layout = Layout(tmp_path)
        one = {key: layout.descriptor("v1")[key] for key in ("mediaType", "digest", "size")}
        other = json.dumps({"mediaType": IMAGE_MANIFEST, "layers": [one]}).encode()
        index = {"mediaType": IMAGE_INDEX, "manifests": [one, {**one, **blob_in(tmp_path, other)}]}
        content = json.dumps(index).encode()
        layout.add({"mediaType": IMAGE_INDEX, **blob_in(tmp_path, content)}, "v1")
        with serving_app(Faulty()) as root:
            push(Registry(root, "a"), V1, layout)
            pull(Registry(root, "a"), V1, Layout(tmp_path / "back"))
        assert files_of(tmp_path / "back") == files_of(tmp_path)

    @pytest.mark.parametrize("action", ["push", "pull"])
    def test_deeply_nested_indexes_are_an_error_not_a_crash(
        self, tmp_path: Path, action: str
    ) -> None:
        nested(tmp_path, 1200, 1)

        def stored(request: Request) -> Response:
            wanted = request.path.rpartition("/")[2]
            digest = wanted if ":" in wanted else Layout(tmp_path).descriptor(wanted)["digest"]
            content = Layout(tmp_path).read(digest)
            return Response(content, content_type=IMAGE_INDEX)

        server = Faulty(stored)
        target = tmp_path if action == "push" else tmp_path / "back"
        with serving_app(server) as root:
            said = run_client(action, f"{root[7:]}/a:v1", target, fails=True)
        assert "over 20 levels deep" in said
        assert len(server.requests) < 30


class TestDamage:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Layout:
        oci_layout.write(tmp_path / "image", [3_000_000], ["amd64", "arm64"])
        return Layout(tmp_path / "image")

    def damage(self, path: Path, kind: str) -> None:
        content = path.read_bytes()
        path.write_bytes(
            {"edited": content[:-1] + b" ", "cut off": content[:-1], "empty": b""}[kind]
        )

    @pytest.mark.parametrize("kind", ["edited", "cut off", "empty"])
    def test_damaged_content_in_the_layout_is_not_pushed(self, image: Layout, kind: str) -> None:
        server = Faulty()
        for path in list((image.root / "blobs" / "sha256").iterdir()):
            original = path.read_bytes()
            self.damage(path, kind)
            with serving_app(server) as root, pytest.raises(DigestMismatchError, match=path.name):
                push(Registry(root, "a"), V1, image)
            path.write_bytes(original)
        assert not [path for path in server.asked("PUT") if path.endswith("manifests/v1")]

    def test_a_wrong_size_in_a_manifest_does_not_cut_off_a_blob(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("client.CHUNK", 100)
        blob = blob_in(tmp_path, bytes(range(250)))
        with serving_app(Faulty()) as root:
            for size in 0, 120, 1000:
                registry = Registry(root, f"a{size}")
                upload(registry, {**blob, "size": size}, tmp_path)
                assert registry.has_blob(blob["digest"])

    @pytest.mark.parametrize("kind", ["edited", "cut off", "empty"])
    def test_a_pull_repairs_damaged_content_in_the_layout(
        self, image: Layout, tmp_path: Path, kind: str
    ) -> None:
        back = tmp_path / "back"
        with serving_app(Faulty()) as root:
            push(Registry(root, "a"), V1, image)
            pull(Registry(root, "a"), V1, Layout(back))
            for path in (back / "blobs" / "sha256").iterdir():
                self.damage(path, kind)
            pull(Registry(root, "a"), V1, Layout(back))
        assert files_of(back) == files_of(image.root)

    def test_several_pulls_into_one_layout_at_once(self, image: Layout, tmp_path: Path) -> None:
        """Two of them pull the same image, and one pulls another."""

        def slow(request: Request) -> Any:
            def dripping(response: Response) -> Response:
                content = response.get_data()

                def blocks() -> Iterator[bytes]:
                    for start in range(0, len(content), 300_000):
                        yield content[start : start + 300_000]
                        time.sleep(0.05)

                headers = {"Content-Length": str(len(content))}
                return Response(blocks(), response.status_code, {**response.headers, **headers})

            return dripping if request.method == "GET" and "/blobs/" in request.path else None

        other = Layout(tmp_path / "other")
        oci_layout.write(other.root, [2_000_000], ["amd64"], seed=1)
        back = tmp_path / "back"
        server = Faulty(slow)
        with serving_app(server) as root:
            push(Registry(root, "a"), V1, image)
            push(Registry(root, "b"), V1, other)
            remotes = [f"{root[7:]}/{one}" for one in ("a:v1", "a:v1", "b:v1")]
            digest = requests.get(f"{root}/v2/b/manifests/v1", timeout=10).headers[
                "Docker-Content-Digest"
            ]
            remotes[2] = f"{root[7:]}/b:v2@{digest}"
            pulls = [
                subprocess.Popen(command_of("pull", remote, back), stderr=subprocess.PIPE)
                for remote in remotes
            ]
            for one in pulls:
                _, said = one.communicate(timeout=60)
                assert (one.returncode, said) == (0, b"")
        assert files_of(back) == files_of(image.root) | files_of(other.root)
        assert Layout(back).descriptor("v1")["digest"] == image.descriptor("v1")["digest"]
        assert Layout(back).descriptor("v2")["digest"] == other.descriptor("v1")["digest"]
        assert json.loads((back / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
        assert list(back.rglob(".*")) == []
        assert max(Counter(server.asked("GET")).values()) <= 3
        blobs = Counter(one for one in server.asked("GET") if "/blobs/" in one)
        assert set(blobs.values()) == {1}  # one pull finds what another has fetched

    def test_a_pull_goes_on_where_it_broke_off(self, tmp_path: Path) -> None:
        content = os.urandom(3_000_000)
        server = Faulty()
        with serving_app(server) as root:
            blob = put_blob(root, content)
            part = part_in(tmp_path, blob["digest"])
            for begun in 2_000_000, len(content):  # some of it, and all of it
                part.write_bytes(content[:begun])
                assert download(root, blob, tmp_path) == content
        ranges = [one.headers.get("Range") for one in server.requests if one.method == "GET"]
        assert ranges == ["bytes=2000000-"]

    @pytest.mark.parametrize(
        "wrong", [b"x" * 1000, b"x" * 3_000_000, b"x" * 4_000_000], ids=["part", "whole", "more"]
    )
    def test_wrong_content_from_an_earlier_pull_is_replaced(
        self, tmp_path: Path, wrong: bytes
    ) -> None:
        content = os.urandom(3_000_000)
        with serving_app(Faulty()) as root:
            blob = put_blob(root, content)
            part_in(tmp_path, blob["digest"]).write_bytes(wrong)
            assert download(root, blob, tmp_path) == content

    @pytest.mark.parametrize(
        "answer",
        [
            lambda content: Response(content),  # ranges are ignored
            lambda content: Response(content, 206, {"Content-Range": "bytes 0-9999/10000"}),
            lambda content: Response(content[1:], 206, {"Content-Range": "bytes 1-9999/*"}),
            lambda content: Response(content[600:], 206, {"Content-Range": "bytes 600-9999/*"}),
            lambda content: Response(content[500:], 206),
            lambda content: Response(content[500:], 206, {"Content-Range": "junk"}),
            lambda content: Response(content, 206, {"Content-Range": "bytes 500-9999/*"}),
            lambda content: Response(status=416),
        ],
    )
    def test_any_response_to_a_range_ends_in_the_right_content(
        self, tmp_path: Path, answer: Any
    ) -> None:
        content = b"0123456789" * 1000
        blob: dict[str, Any] = {"digest": digest_of(content), "size": len(content)}
        part_in(tmp_path, blob["digest"]).write_bytes(content[:500])
        server = Faulty(lambda request: answer(content) if request.range else Response(content))
        with serving_app(server) as root:
            assert download(root, blob, tmp_path) == content
        assert len(server.requests) <= 2

    def test_a_range_that_was_not_requested_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        blob: dict[str, Any] = {"digest": digest_of(b"right"), "size": 5}
        answer = Response(b"ight", 206, {"Content-Range": "bytes 1-4/5"})
        with serving_app(answer) as root, pytest.raises(ValueError, match="start at 0, not 1"):
            download(root, blob, tmp_path)

    def test_a_partial_blob_is_kept_if_no_token_can_be_had(self, tmp_path: Path) -> None:
        def registry(request: Request) -> Response:
            if request.path == "/token":
                return Response("<html>Log in to this network.</html>")
            error = errors.Unauthorized(realm=f"http://{request.host}/token")
            return error.get_response(request.environ)

        blob: dict[str, Any] = {"digest": SHA256, "size": 1000}
        part_in(tmp_path, SHA256).write_bytes(b"x" * 500)
        with serving_app(Faulty(registry)) as root, pytest.raises(ValueError, match="token"):
            download(root, blob, tmp_path)
        assert part_in(tmp_path, SHA256).stat().st_size == 500

    @pytest.mark.parametrize(
        "answer",
        [
            Response(b"other"),
            Response(b"longer"),
            Response(b"righ", 206, {"Content-Range": "bytes 1-4/5"}),
            Response(b"right", 206),
            Response(status=416),
            Response(status=300),
        ],
    )
    def test_content_that_is_not_the_blobs_is_not_kept(
        self, tmp_path: Path, answer: Response
    ) -> None:
        blob: dict[str, Any] = {"digest": digest_of(b"right"), "size": 5}
        server = Faulty(lambda request: answer)
        with serving_app(server) as root, pytest.raises((ValueError, errors.RegistryError)):
            download(root, blob, tmp_path)
        assert len(server.requests) == 1
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0

    def test_a_blob_that_ends_early_is_an_error(self, tmp_path: Path, waits: list[float]) -> None:
        """Without a ``Content-Length``, the end of the connection is the end of the body."""
        blob: dict[str, Any] = {"digest": digest_of(b"right"), "size": 5}
        server = Faulty(lambda request: Response(iter([b"rig"])))
        with serving_app(server) as root, pytest.raises(OSError, match="must have 5 bytes, not 3"):
            download(root, blob, tmp_path)

    def test_an_endless_body_is_cut_off(self, tmp_path: Path) -> None:
        sent = []

        def endless(environ: Any, start_response: Any) -> Any:
            def blocks() -> Iterator[bytes]:
                for _ in range(1000):
                    sent.append(1)
                    yield b"x" * 2**20

            status = 404 if environ["REQUEST_METHOD"] == "HEAD" else self.status
            return Response(blocks(), status, {"Location": "/x"})(environ, start_response)

        blob = blob_in(tmp_path / "full", b"0123456789")
        with serving_app(endless) as root:
            registry = Registry(root, "a")
            for self.status in 200, 400:
                for call in (
                    lambda: download(root, blob, tmp_path / "empty"),
                    lambda: registry.manifest("v1"),
                    lambda: registry.put_manifest("v1", b"{}", IMAGE_MANIFEST),
                ):
                    sent.clear()
                    with suppress(ValueError, errors.RegistryError):
                        call()
                    assert len(sent) < 100

    def test_a_manifest_with_another_digest_is_refused(self, tmp_path: Path) -> None:
        lies = Response(b"{}", headers={"Docker-Content-Digest": SHA256})
        with serving_app(lies) as root:
            for reference in f"a@{SHA256}", "a:v1":
                with pytest.raises(DigestMismatchError):
                    pull(Registry(root, "a"), Reference.parse(reference), Layout(tmp_path))
        assert not list(tmp_path.rglob("*"))

    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b"[]", b"[" * 100_000, b'{"manifests": [{}]}', b'{"manifests": 3}'),
            *(b'{"manifests": [' + b"[" * n + b"]" * n + b"]}" for n in range(850, 1000, 10)),
            *(b'{"layers": "x"}', b'{"layers": [{"digest": "x"}]}', b'{"config": [3]}'),
            f'{{"layers": [{{"mediaType": "a", "digest": "{SHA256}", "size": "z"}}]}}'.encode(),
            f'{{"layers": [{{"mediaType": "a", "digest": "{SHA256}", "size": -1}}]}}'.encode(),
            f'{{"layers": [{{"mediaType": "a", "digest": "{SHA256}", "size": 1{"0" * 400}}}]}}'.encode(),
        ],
        ids=lambda content: str(content)[:20],
    )
    def test_a_malformed_manifest_is_an_error_not_a_crash(
        self, tmp_path: Path, content: bytes
    ) -> None:
        with serving_app(Response(content, content_type=IMAGE_MANIFEST)) as root:
            said = run_client("pull", f"{root[7:]}/a:v1", tmp_path, fails=True)
        assert "must" in said or "recursion" in said

    @pytest.mark.parametrize(
        "headers",
        [
            {"Docker-Content-Digest": "shake_128:00"},
            {"Docker-Content-Digest": "junk"},
            {"Content-Encoding": "gzip"},
            {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"},
        ],
    )
    def test_wrong_headers_of_a_manifest_are_an_error_not_a_crash(
        self, tmp_path: Path, headers: dict[str, str]
    ) -> None:
        with serving_app(Response(b"{}", headers=headers)) as root:
            run_client("pull", f"{root[7:]}/a:v1", tmp_path, fails=True)


class TestLayout:
    def test_adding_a_tag_keeps_the_other_tags(self, tmp_path: Path) -> None:
        layout = Layout(tmp_path)
        one = {"mediaType": "x/y", "digest": SHA256, "size": 2}
        other = {**one, "digest": SHA256.replace("0", "1")}
        for descriptor, tag in (one, None), (one, "v1"), (one, "v2"), (one, None), (other, "v2"):
            layout.add(descriptor, tag)
        assert layout.descriptor("v1")["digest"] == SHA256
        assert layout.descriptor("v2")["digest"] == other["digest"]
        assert len(json.loads((tmp_path / "index.json").read_text())["manifests"]) == 2

    @pytest.mark.parametrize("digest", ["md5:00", "shake_128:00", "../../x:y", "sha256:..", "x"])
    def test_a_digest_that_cannot_be_verified_is_refused_as_a_path(
        self, tmp_path: Path, digest: str
    ) -> None:
        with pytest.raises(ValueError, match=r"digest .*must"):
            Layout(tmp_path).blob(digest)

    @pytest.mark.parametrize(
        "index",
        [
            *("", "[]", '{"manifests": 3}', '{"manifests": [{}]}', '{"manifests": [[]]}'),
            f'{{"manifests": [{{"mediaType": "a", "digest": "{SHA256}", "size": 1, "annotations": 3}}]}}',
        ],
    )
    def test_a_malformed_layout_is_an_error_that_says_what_is_wrong(
        self, tmp_path: Path, index: str
    ) -> None:
        (tmp_path / "index.json").write_text(index)
        said = run_client("push", "127.0.0.1:9/a:v1", tmp_path, fails=True)
        assert re.search("must (be|have)", said)

    def test_a_missing_file_of_the_layout_is_an_error(self, tmp_path: Path) -> None:
        oci_layout.write(tmp_path, [10], ["amd64"])
        manifest = Layout(tmp_path).descriptor("v1")
        for name in files_of(tmp_path):
            if name != hashlib.sha256(b"").hexdigest() and name not in manifest["digest"]:
                (tmp_path / "blobs" / "sha256" / name).unlink()
                break
        with serving_app(Faulty()) as root:
            assert "No such file" in run_client("push", f"{root[7:]}/a:v1", tmp_path, fails=True)
