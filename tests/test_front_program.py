"""The gateway in front of another registry, as an operator sees it: its log, its health, its program."""

import json
import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from werkzeug.wrappers import Request, Response

from registry_routes.testing import serve

from . import oci_layout
from .fronts import FrontClient, main
from .servers import (
    debians_registry,
    ended,
    example,
    files_of,
    free_port,
    podman_or_buildah,
    skopeo,
)
from .test_metrics import counts_of

UPLOADS = "/v2/team/app/blobs/uploads/"

# The log.


def test_log_has_user_route_status_and_time_of_each_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "front")
    with serve() as upstream:
        front = FrontClient(upstream.url)
        begun = front.open("POST", UPLOADS)
        front.open("PATCH", begun.location, data=b"x")
        front.open("GET", "/v2/team/app/tags/list", user="")
        front.open("DELETE", "/v2/team/app/manifests/v1", user="")
        front.client.get("/v2/team/app/tags/list")
        front.open("GET", "/nothing")
    lines = [re.sub(r" \d+\.\d{3}$", " TIME", line) for line in caplog.messages]
    assert lines == [
        "alice POST /v2/<repository:name>/blobs/uploads/ 202 TIME",
        "alice PATCH /v2/<repository:name>/blobs/uploads/<upload_id:uuid> 202 TIME",
        "- GET /v2/<repository:name>/tags/list 404 TIME",
        "- DELETE /v2/<repository:name>/manifests/<tag:tag> 403 TIME",
        "- GET /v2/<repository:name>/tags/list 401 TIME",
        "- GET none 404 TIME",
    ]


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:1/up?token=s3cret",  # where nothing listens
        "/up?token=s3cret",  # which redirects to another place with a secret
    ],
)
def test_secrets_of_an_upload_are_not_logged(
    location: str, caplog: pytest.LogCaptureFixture
) -> None:
    @Request.application
    def app(request: Request) -> Response:
        request.get_data()
        if request.path.endswith("/uploads/"):
            return Response(status=202, headers={"Location": location})
        return Response(status=307, headers={"Location": "http://127.0.0.1:1/x?sig=s3cret"})

    with serve(app) as upstream:
        front = FrontClient(upstream.url, "robot", "pass:word")
        begun = front.open("POST", UPLOADS)
        assert front.open("PATCH", begun.location, data=b"x").status_code == 502
    assert "127.0.0.1" in caplog.text
    for secret in "s3cret", "word", front.token, begun.location.rpartition("/")[2]:
        assert secret not in caplog.text


# Health, metrics and the first line.


def test_healthz_needs_no_login_and_says_whether_the_upstream_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    statuses = []
    with serve(users={"robot": "secret"}, auth="bearer") as upstream:
        front = FrontClient(upstream.url, "robot", "secret")
        statuses.append(front.client.get("/healthz").status_code)
        upstream.fail("base", "GET", 503)
        statuses.append(front.client.get("/healthz").status_code)
        statuses.append(front.client.head("/healthz").status_code)
    nowhere = FrontClient(f"http://127.0.0.1:{free_port()}")
    failed = nowhere.client.get("/healthz")
    assert [*statuses, failed.status_code] == [200, 503, 200, 503]
    assert failed.text == "the registry has failed\n"
    assert f"{upstream.url} answered 503" in caplog.text


def test_healthz_fails_if_the_upstream_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("health.MAX_CHECK", 0.2)

    def hang(environ: Any, start_response: Any) -> Any:
        released.wait(10)
        return Response()(environ, start_response)

    released = threading.Event()
    with serve(hang) as upstream:
        front = FrontClient(upstream.url)
        assert front.client.get("/healthz").status_code == 503
        released.set()


@pytest.mark.parametrize("users", ["", "alice:secret"])
def test_first_line_says_who_may_push(
    users: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REGISTRY_USERS", users)
    monkeypatch.setattr("front.Server", Greeting)
    monkeypatch.setattr("sys.argv", ["front.py", "--upstream", "https://r.example"])
    main()
    who = "users may push" if users else "nobody may push, because there are no users"
    expected = f"A gateway at http://{{host}} for https://r.example: anyone may pull, and {who}\n"
    assert capsys.readouterr().out == expected


class Greeting:
    """A server that only prints its greeting."""

    def __init__(self, make: Any, options: Any, greeting: str) -> None:
        self.greeting = greeting

    def run(self) -> None:
        print(self.greeting)


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ([], {}, "the following arguments are required: --upstream"),
        (["--upstream", "r.example"], {}, "is not a URL of http or https"),
        (["--upstream", "http://h"], {"UPSTREAM_USER": "secret"}, "must be NAME:PASSWORD"),
        (["--upstream", "http://h"], {"REGISTRY_USERS": "alice:x\nsecret"}, "line 2: a user must"),
        (["--upstream", "http://h"], {"REGISTRY_KEY": "secret"}, "at least 32"),
        (["--upstream", "http://h", "--users", "none"], {}, "No such file"),
    ],
)
def test_wrong_command_line_is_an_error_in_one_line(
    options: list[str], environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "UPSTREAM_USER", "REGISTRY_USERS", "REGISTRY_KEY":
        monkeypatch.setenv(name, environment.get(name, ""))
    status, printed, said = ended(main, monkeypatch, "front.py", *options)
    assert (status, printed) == (2, "")
    assert re.fullmatch(f"front.py: error: .*{re.escape(message)}.*\n", said)
    assert "secret" not in said


@pytest.mark.slow
def test_program_escapes_its_log_and_counts_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @Request.application
    def hostile(request: Request) -> Response:
        if request.path == "/v2/":
            return Response()
        return Response(b"\x1b[2J\n\x9b2J another line", 401)

    monkeypatch.setenv("REGISTRY_USERS", "alice:alices")
    monkeypatch.setenv("UPSTREAM_USER", "robot:robots")
    log = tmp_path / "log"
    with (
        serve(hostile) as upstream,
        example("front", log, "--upstream", upstream.url, "--workers", "2", "--metrics") as host,
    ):
        url = f"http://{host}"
        token = requests.get(f"{url}/token", auth=("alice", "alices"), timeout=10).json()["token"]
        headers = {"Authorization": f"Bearer {token}", "User-Agent": "\x9b2J"}
        for _ in range(2):
            asked = requests.get(f"{url}/v2/secret/name/tags/list", headers=headers, timeout=10)
            assert asked.status_code == 502
        assert requests.get(f"{url}/healthz", timeout=10).status_code == 200
        page = requests.get(f"{url}/metrics", timeout=10).text
    assert counts_of(page) == {
        ("tags", "GET", "502"): 2,
        ("token", "GET", "200"): 1,
        ("healthz", "GET", "200"): 1,
    }
    assert "secret" not in page
    logged = log.read_bytes()
    assert re.fullmatch(b"[ -~\n]+", logged)
    assert b"alice GET /v2/<repository:name>/tags/list 502" in logged
    assert b"another line" in logged
    for secret in token, "alices", "robots":
        assert secret.encode() not in logged


# Programs.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["docker-registry", "example"])
def test_skopeo_and_podman_through_the_front(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_USERS", "alice:secret")
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [3_000_000, 100_000, 1, 0], ["amd64", "arm64"])
    behind = debians_registry(tmp_path)
    if kind == "example":
        behind = example("registry", tmp_path / "behind", "--storage", str(tmp_path / "data"))
    with (
        behind as host,
        example("front", tmp_path / "front", "--upstream", f"http://{host}") as front,
    ):
        remote = f"docker://{front}/library/app:v1"
        push = "copy --all --dest-tls-verify=false"
        assert skopeo(push, f"oci:{image}:v1", remote, fails=True)
        skopeo(push, "--dest-creds=alice:secret", f"oci:{image}:v1", remote)
        skopeo("copy --all --src-tls-verify=false", remote, f"oci:{back}:v1")  # as anyone
        assert files_of(back) == files_of(image)
        with podman_or_buildah("podman") as run:
            run("pull", "--tls-verify=false", f"{front}/library/app:v1")
            credentials = "--tls-verify=false", "--creds=alice:secret"
            run("push", *credentials, f"{front}/library/app:v1", f"{front}/library/app:v2")
        tags = json.loads(skopeo("list-tags --tls-verify=false", remote[:-3]))["Tags"]
        assert tags == ["v1", "v2"]
