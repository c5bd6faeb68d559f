"""The example client: pulls and pushes, its command line, and its login."""

import io
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import client
import pytest
import requests
from client import CHUNK, Registry, find_root, is_loopback
from layout import Layout
from werkzeug.serving import make_ssl_devcert
from werkzeug.wrappers import Request, Response

from registry_routes import Reference, errors
from registry_routes.digests import digest_of
from registry_routes.testing import ServedRegistry

from . import oci_layout
from .example_client import V1, answering, find_requests, image_of, pull, push
from .served import serve
from .servers import EXAMPLES, debians_registry, example, files_of, free_port


@pytest.fixture(params=["served", pytest.param("debians", marks=pytest.mark.slow)])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "served":
        with serve() as registry:
            yield registry.host
    else:
        with debians_registry(tmp_path_factory.mktemp("debians")) as found:
            yield found


def command_of(*arguments: object) -> list[str]:
    return [sys.executable, str(EXAMPLES / "client.py"), *map(str, arguments)]


def run_client(*arguments: object, fails: bool = False, stdin: str = "") -> str:
    """Return the output of the client; the one line of its error, if it must fail."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", command_of(*arguments)[1:]),
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


class TestPushAndPull:
    @pytest.mark.parametrize("architectures", [["amd64"], ["amd64", "arm64"]])
    def test_image_comes_back_the_same(
        self, host: str, tmp_path: Path, architectures: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("client.CHUNK", 100_000)
        image, back = tmp_path / "image", tmp_path / "back"
        oci_layout.write(image, [200_005, 100_000, 1, 0], architectures)
        remote = f"{host}/library/app"
        digest = run_client("push", f"{remote}:v1", image).strip()
        for _ in range(2):
            assert run_client("pull", f"{remote}:v1", back).strip() == digest
            assert run_client("push", f"{remote}:v1", image).strip() == digest
        assert len(json.loads((back / "index.json").read_text())["manifests"]) == 1
        for reference, name in (f"@{digest}", digest), (f":v2@{digest}", "v2"):
            run_client("pull", f"{remote}{reference}", tmp_path / name)
            assert files_of(tmp_path / name) == files_of(back) == files_of(image)
            assert Layout(tmp_path / name).descriptor(name)["digest"] == digest
        run_client("push", f"{remote}:v3@{digest}", image)
        assert run_client("pull", f"{remote}:v3", back).strip() == digest

    def test_default_tag_is_latest(self, served: ServedRegistry, tmp_path: Path) -> None:
        layout = Layout(image_of(tmp_path / "image"))
        layout.add(layout.descriptor("v1"), "latest")
        run_client("push", f"{served.host}/a", layout.root)
        run_client("pull", f"{served.host}/a", tmp_path / "back")
        assert Layout(tmp_path / "back").descriptor("latest") is not None


class TestCommandLine:
    def test_error_is_printed_in_one_line(self, host: str, tmp_path: Path) -> None:
        printed = run_client("pull", f"{host}/no/such:v1", tmp_path, fails=True)
        assert "404 MANIFEST_UNKNOWN" in printed
        printed = run_client("pull", f"{host}/No/such:v1", tmp_path, fails=True)
        assert "repository name 'No/such' must be lowercase" in printed
        printed = run_client("push", f"{host}/no/such:v1", tmp_path / "none", fails=True)
        assert "no image 'v1' in the layout" in printed
        run_client("pull", f"{host}/a:v1", tmp_path, "--tls-verify=true", fails=True)

    @pytest.mark.parametrize("image", ["", "a:", "a b", "http://127.0.0.1/a", "a@md5:0", "é"])
    def test_malformed_reference_is_an_error(self, image: str, tmp_path: Path) -> None:
        assert "must" in run_client("pull", image, tmp_path, fails=True)

    def test_refused_connection_is_an_error(self, tmp_path: Path, waits: list[float]) -> None:
        printed = run_client("pull", f"127.0.0.1:{free_port()}/x:v1", tmp_path, fails=True)
        assert "refused" in printed

    @pytest.mark.slow
    def test_interruption_is_status_130(self, served: ServedRegistry, tmp_path: Path) -> None:
        served.fail("manifest", "GET", timedelta(seconds=30))
        command = command_of("pull", f"{served.host}/a:v1", tmp_path, "--tls-verify=false")
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            while not served.requests and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, printed = process.communicate(timeout=30)
        assert process.returncode == 130
        assert printed == f"pull {served.host}/a:v1: interrupted\n"

    def test_control_characters_are_not_printed(
        self, served: ServedRegistry, tmp_path: Path
    ) -> None:
        served.fail("manifest", "GET", errors.Denied("\x1b[2J\r\nnot you"))
        printed = run_client("pull", f"{served.host}/a:v1", tmp_path, fails=True)
        assert "not you" in printed
        assert "\x1b" not in printed

    @pytest.mark.parametrize(
        ("arguments", "environment", "stdin"),
        [
            (["--user", "alice:se:cret"], {}, ""),
            (["--user", "alice"], {"REGISTRY_PASSWORD": "se:cret"}, ""),
            (["--user", "alice", "--password-stdin"], {"REGISTRY_PASSWORD": "no"}, "se:cret\n"),
            (["--user", "alice", "--password-stdin"], {}, "se:cret\r\n"),
            (["--user", "alice", "--password-stdin"], {}, "se:cret"),
        ],
    )
    def test_password_is_an_option_a_variable_or_standard_input(
        self, tmp_path: Path, arguments: list[str], environment: dict[str, str], stdin: str
    ) -> None:
        image = image_of(tmp_path)
        users = {"alice": "se:cret"}
        with serve(users=users, auth="basic") as registry, patch.dict(os.environ, environment):
            run_client("push", f"{registry.host}/a:v1", image, *arguments, stdin=stdin)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--user", "alice"], "no password for 'alice'"),
            (["--user", "alice", "--password-stdin"], "no password for 'alice'"),
            (
                ["--user", "alice:x", "--password-stdin"],
                "--user has a password, and --password-stdin another",
            ),
            (["--user", ":x"], "a login needs a user name"),
            (["--password-stdin"], "a login needs a user name"),
        ],
    )
    def test_missing_user_or_password_is_an_error(
        self, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        assert message in run_client("pull", "a", tmp_path, *arguments, fails=True)


class TestHttpOrHttps:
    def test_http_is_used_only_if_it_is_allowed_and_https_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(url: str, **options: Any) -> Any:
            tried.append((url, options["verify"]))
            raise requests.ConnectionError("refused")

        tried = list[tuple[str, bool]]()
        monkeypatch.setattr("requests.get", refused)
        assert find_root(Reference.parse("nginx"), None) == "https://registry-1.docker.io"
        image = Reference.parse("registry.example:5000/a")
        assert find_root(image, None) == find_root(image, True) == "https://registry.example:5000"
        assert tried == []
        assert find_root(image, False) == "http://registry.example:5000"
        assert tried == [("https://registry.example:5000/v2/", False)]

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [
            *(("localhost:5000", True), ("127.0.0.1", True), ("127.8.9.10:80", True)),
            *(("[::1]:5000", True), ("localhost.example", False), ("127.0.0.1.example", False)),
            *(("127.example", False), ("10.0.0.1", False), ("[::2]", False)),
        ],
    )
    def test_is_loopback(self, host: str, loopback: bool) -> None:
        assert is_loopback(f"https://{host}/v2/") == loopback

    def test_certificate_is_checked_unless_told_otherwise(self, tmp_path: Path) -> None:
        pytest.importorskip("cryptography", reason="no cryptography for this Python")
        certificate = make_ssl_devcert(str(tmp_path / "key"), cn="wrong.example")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        with serve(ssl_context=context) as registry:
            push = ["push", f"{registry.host}/a:v1", image_of(tmp_path / "image")]
            run_client(*push)
            run_client(*push, "--tls-verify=false")
            assert "certificate" in run_client(*push, "--tls-verify=true", fails=True).lower()

    def test_certificate_of_a_remote_token_server_is_checked_for_a_local_registry(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def send(_: Any, request: Any, **options: Any) -> Any:
            verified.append(options["verify"])

        verified = list[bool]()
        monkeypatch.setattr("requests.adapters.HTTPAdapter.send", send)
        for tls_verify in None, True, False:
            session = Registry("http://localhost:5000", "a", tls_verify=tls_verify).session
            for url in "https://auth.example/token", "https://localhost:5000/v2/":
                request = requests.Request("GET", url).prepare()
                session.get_adapter(url).send(request, verify=True)
        assert verified == [True, False, True, True, False, False]


class TestLogin:
    @pytest.mark.parametrize("auth", ["basic", "bearer"])
    def test_push_and_pull_with_a_password(self, tmp_path: Path, auth: Any) -> None:
        image, user = tmp_path / "image", ("alice", "sécrèt€")
        oci_layout.write(image, [1000, 2000, 3000], ["amd64", "arm64"])
        with serve(auth=auth, users=dict([user]), redirect_blobs=True) as registry:
            with pytest.raises(errors.Unauthorized):
                push(registry, image)
            with pytest.raises(errors.Unauthorized):
                push(Registry(registry.url, "a", ("alice", "wrong")), image)
            registry.requests.clear()
            push(Registry(registry.url, "a", user), image)
            client.pull(Registry(registry.url, "a", user), V1, Layout(tmp_path / "back"))
            assert len([sent for sent in registry.requests if sent.status == 401]) in (2, 3)
        assert files_of(tmp_path / "back") == files_of(image)

    def test_pull_with_an_anonymous_token(self, tmp_path: Path) -> None:
        with serve(auth="bearer", token_field="access_token") as registry:
            registry.add_image("a:v1", layers=[b"layer"])
            registry.fail("token", "GET", errors.TooManyRequests(retry_after=0))
            pull(registry, tmp_path)
            assert len(find_requests(registry, "token", "GET")) == 2

    @pytest.mark.slow
    def test_push_and_pull_through_the_example_gateway(self, tmp_path: Path) -> None:
        image, user = tmp_path / "image", ["--user", "alice:se:cret"]
        oci_layout.write(image, [10_000], ["amd64"], seed=1)
        with example("gateway", tmp_path / "log", "--storage", "memory://", *user) as host:
            denied = run_client("push", f"{host}/x:v1", image, fails=True)
            assert "the token does not allow repository:x:pull,push" in denied
            wrong = ["push", f"{host}/x:v1", image, "--user", "alice:wrong"]
            assert "incorrect username or password" in run_client(*wrong, fails=True)
            run_client("push", f"{host}/x:v1", image, *user)
            run_client("pull", f"{host}/x:v1", tmp_path / "back")
        assert files_of(tmp_path / "back") == files_of(image)

    @pytest.mark.slow
    def test_debians_registry_accepts_only_the_right_password(self, tmp_path: Path) -> None:
        passwords = tmp_path / "htpasswd"
        hashed = "$2b$04$prdhAhvnNRX/gSFauBF64O8B4VqGXxmXWZ1J0eSNjdtzIt3LfCjoC"  # of "secret"
        passwords.write_text(f"alice:{hashed}\n")
        auth = {"htpasswd": {"realm": "here", "path": str(passwords)}}
        image = tmp_path / "image"
        oci_layout.write(image, [5 * CHUNK], ["amd64"])
        with debians_registry(tmp_path, auth=auth) as host:
            command = ["push", f"{host}/a/b:v1", image]
            assert "401" in run_client(*command, fails=True)
            assert "401" in run_client(*command, "--user", "alice:wrong", fails=True)
            run_client(*command, "--user", "alice:secret")

    @pytest.mark.parametrize("redirected", [False, True])
    def test_upload_to_another_host_gets_no_credentials(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redirected: bool
    ) -> None:
        """The upload is elsewhere by its ``Location``, or by redirects that keep the body."""
        monkeypatch.setattr("client.CHUNK", 100_000)

        def registry(request: Request) -> Any:
            if "Authorization" not in request.headers:
                return Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            if request.method == "HEAD":
                return Response(status=404)
            if "/blobs/" not in request.path:
                return Response(status=201)
            target = f"{other.url}{request.full_path}"
            if not redirected:
                target = requests.post(target, timeout=10).headers["Location"]
                return Response(status=202, headers={"Location": f"{other.url}{target}"})
            return Response(status=307, headers={"Location": target})

        contents = [os.urandom(250_000), b"y" * 1000, b""]
        with serve() as other, answering(registry) as served:
            push(Registry(served.url, "a", ("alice", "secret")), image_of(tmp_path, *contents))
            assert [other.blob("a", digest_of(content)) for content in contents] == contents
        assert all("Authorization" not in request.headers for request in other.requests)
