"""`python -m registry_routes`, and the script of the same."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from registry_routes.__main__ import main
from registry_routes.routes import DIALECTS

from .nasty import SHA256
from .servers import free_port

README = Path(__file__).parent.parent / "README.md"


def run(capsys: pytest.CaptureFixture[str], command: str) -> tuple[int, str]:
    """The exit status, and what is printed; on a failure, to standard error."""
    status = main(command.split())
    captured = capsys.readouterr()
    assert not (captured.err if status == 0 else captured.out)
    return status, (captured.out or captured.err)


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        (
            "match /v2/library/nginx/manifests/latest",
            [
                "endpoint  manifest",
                "name      library/nginx",
                "tag       latest",
                "scopes    repository:library/nginx:pull",
            ],
        ),
        (
            "match put https://h:5000/v2/a%2Fb/manifests/v1?x=1",
            [
                "endpoint  manifest",
                "name      a/b",
                "tag       v1",
                "scopes    repository:a/b:pull,push",
            ],
        ),
        (
            "match POST /v2/a/blobs/uploads/?mount=x&from=b/c",
            [
                "endpoint  blob-upload",
                "name      a",
                "scopes    repository:a:pull,push repository:b/c:pull",
            ],
        ),
        ("match /v2/", ["endpoint  base", "scopes    -"]),
        (
            "match --prefix /r --root https://h/m/ https://h/m/r/v2/_catalog",
            [
                "endpoint  catalog",
                "scopes    registry:catalog:*",
            ],
        ),
        (
            "match --dialect docker-1.5 PROPFIND /v2/a/b/tags/list",
            [
                "endpoint  tags",
                "name      a/b",
                "scopes    repository:a/b:*",
            ],
        ),
        ("build base", ["/v2/"]),
        (
            "build tags name=library/nginx n=10 last=a=b",
            ["/v2/library/nginx/tags/list?n=10&last=a%3Db"],
        ),
        ("build --root https://h:5000/m/ --prefix /r base", ["https://h:5000/m/r/v2/"]),
        ("build --prefix /r/ base", ["/r/v2/"]),
        ("match /v2/#fragment?x", ["endpoint  base", "scopes    -"]),
        ("match --root https://H:5 https://h:5/v2/", ["endpoint  base", "scopes    -"]),
        ("match --root https://h https://H/v2/", ["endpoint  base", "scopes    -"]),
        ("match --root https://h https://h:443/v2/", ["endpoint  base", "scopes    -"]),
        ("match --root http://h:80/m/ http://H/m/v2/", ["endpoint  base", "scopes    -"]),
        ("match --root https://h/a%20b https://h/a%20b/v2/", ["endpoint  base", "scopes    -"]),
        ("match --root /m https://h/m/v2/", ["endpoint  base", "scopes    -"]),
        ("match --root / /v2/", ["endpoint  base", "scopes    -"]),
        ("build --root /m base", ["/m/v2/"]),
        (
            "build --reference nginx:1.27",
            ["https://registry-1.docker.io/v2/library/nginx/manifests/1.27"],
        ),
        (
            f"build --reference=localhost:5000/a/b:v1@{SHA256}",
            [f"https://localhost:5000/v2/a/b/manifests/{SHA256}"],
        ),
        (
            "build --reference nginx --root http://127.0.0.1:5000/m/ --prefix /r",
            ["http://127.0.0.1:5000/m/r/v2/library/nginx/manifests/latest"],
        ),
        (
            "build --dialect docker-1.5 --prefix /r --reference nginx",
            ["https://registry-1.docker.io/r/v2/library/nginx/manifests/latest"],
        ),
        ("build --reference nginx:1.27 --root /", ["/v2/library/nginx/manifests/1.27"]),
        ("build --reference a_b.com/x --root http://h", ["http://h/v2/a_b.com/x/manifests/latest"]),
        (
            f"build manifest name=a digest={SHA256} tag=v1 tag=v2 tag=v3",
            [
                f"/v2/a/manifests/{SHA256}?tag=v1&tag=v2&tag=v3",
            ],
        ),
    ],
)
def test_what_is_printed(
    capsys: pytest.CaptureFixture[str], command: str, printed: list[str]
) -> None:
    assert run(capsys, command) == (0, "\n".join(printed) + "\n")


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        (
            "match /v2/library/Nginx/tags/list",
            "400 NAME_INVALID: repository name 'library/Nginx' must be lowercase",
        ),
        (
            "match /v2/a/blobs/latest",
            "400 DIGEST_INVALID: digest 'latest' must have an algorithm, ':' and an encoded hash",
        ),
        (
            "match DELETE /v2/_catalog",
            "405 UNSUPPORTED: the registry does not support this operation (Allow: GET, HEAD)",
        ),
        ("match /v2/x", "404 UNSUPPORTED: the registry has no such endpoint"),
        ("match POST /v2/a/blobs/uploads?x=1", "308 Permanent Redirect: /v2/a/blobs/uploads/?x=1"),
        ("build tags name=A", "repository name 'A' must be lowercase"),
        ("build --root ftp://h base", "root 'ftp://h' must be a URL of http or https"),
        ("build --prefix r base", "prefix 'r' must start with '/'"),
        ("build --reference localhost/A", "repository name 'A' must be lowercase"),
        ("build --reference=", "repository name '' must not be empty"),
        ("build --reference a_b.com/x", "domain 'a_b.com' must contain only"),
        (
            "build --dialect docker-1.5 --reference localhost/app",
            "repository name 'app' must have two to five components",
        ),
        (
            f"build --dialect docker-1.5 --reference nginx@{SHA256}",
            "Could not build url for endpoint 'manifest' with values ['digest', 'name']",
        ),
        ("build --reference nginx --root h", "root 'h' must be a URL of http or https"),
        ("build nothing", "Could not build url for endpoint 'nothing'"),
        ("match /elsewhere", "URL '/elsewhere' must be under the API, '/v2/'"),
        ("match --prefix /r /v2/", "URL '/v2/' must be under the API, '/r/v2/'"),
        ("match PUT", "URL 'PUT' must be a URL of http or https, or a path that starts with '/'"),
        ("match //v2/_catalog?n=1", "308 Permanent Redirect: /v2/_catalog?n=1"),
        ("match --root https://h/m https://h/m/v2", "308 Permanent Redirect: /m/v2/"),
        ("match --root https://h/m https://h/mv2/", "URL 'https://h/mv2/' must be under the root"),
        (
            "match --root https://h https://other/v2/",
            "URL 'https://other/v2/' must be under the root",
        ),
        (
            "match --root https://h https://h:80/v2/",
            "URL 'https://h:80/v2/' must be under the root",
        ),
        ("match --root https://h http://h/v2/", "URL 'http://h/v2/' must be under the root"),
        ("match --root https://h/a%20b https://h/a%20b/v2", "308 Permanent Redirect: /a%20b/v2/"),
        ("build --prefix // base", "prefix '//' must start with '/'"),
        ("match --prefix /<foo:x> /v2/", "prefix '/<foo:x>' must have no variables"),
    ],
)
def test_what_fails_is_said_and_the_exit_status_is_1(
    capsys: pytest.CaptureFixture[str], command: str, printed: str
) -> None:
    status, said = run(capsys, command)
    assert status == 1
    assert said.startswith(printed)
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        *("", "routes x", "build", "build tags name", "match", "match --dialect x /"),
        *("build --reference nginx tags", "build --reference nginx name=a"),
        *("build tags name=a --reference nginx", "match --reference nginx"),
    ],
)
def test_a_wrong_command_line_is_2(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_routes_in_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(DIALECTS) == ["oci-1.1", "docker-1.5"]
    for name, dialect in DIALECTS.items():
        for prefix, root in ("", ""), ("/r", "https://h/m"):
            more = f"--dialect {name}" + (f" --prefix {prefix} --root {root}" if root else "")
            listed = json.loads(run(capsys, f"routes --format json {more}")[1])
            assert (
                run(capsys, f"routes {more} --prefix {prefix}/")[1]
                == run(capsys, f"routes {more}")[1]
            )
            text = run(capsys, f"routes {more}")[1].splitlines()
            markdown = run(capsys, f"routes --format markdown {more}")[1].splitlines()
            assert len(listed) == len(text) - 1 == len(markdown) - 2 == len(dialect.routes)
            for route, row, line, cells in zip(
                dialect.routes, listed, text[1:], markdown[2:], strict=True
            ):
                rule = root + prefix + route.path.replace("<repository:", "<")
                assert row["endpoint"] == route.name
                assert row["rule"].startswith(rule.partition("<")[0])
                assert ":" not in row["rule"].removeprefix("https://")
                methods = " ".join(route.methods or ["any"])
                assert " ".join(row["methods"]) == methods
                assert (row["spec"], row["doc"]) == (route.spec, route.doc)
                for value in row["endpoint"], row["rule"], methods, row["spec"]:
                    assert value in line
                    assert value in cells
            assert len({line.index("/v2/") for line in text[1:]}) == 1


def test_the_readmes_table_is_this_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "routes --format markdown")[1] in README.read_text()


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "registry_routes"],
        [str(Path(sys.executable).parent / "registry-routes")],
    ],
)
def test_as_a_program(command: list[str]) -> None:
    good = subprocess.run([*command, "build", "base"], capture_output=True, text=True)
    assert (good.returncode, good.stdout, good.stderr) == (0, "/v2/\n", "")
    bad = subprocess.run([*command, "match", "/v2/A/tags/list"], capture_output=True, text=True)
    assert bad.returncode == 1
    assert "must be lowercase" in bad.stderr
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert helped.stdout.startswith("usage: registry-routes")


def test_a_registry_in_memory(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "registry_routes", "serve", "--port", str(port)]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout
        greeting = server.stdout.readline()
        assert greeting.startswith(f"A registry at http://127.0.0.1:{port}, in memory: it keeps no")
        root = f"http://127.0.0.1:{port}/v2"
        requests.put(f"{root}/a/manifests/v1", data=b"{}", timeout=10).raise_for_status()
        listed = requests.get(f"{root}/a/tags/list", timeout=10)
        assert listed.json() == {"name": "a", "tags": ["v1"]}
        second = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert second.returncode == 1
        assert "in use" in second.stderr
        assert second.stderr.count("\n") == 1
        server.send_signal(signal.SIGINT)
        assert "what was pushed is gone" in server.communicate(timeout=10)[0]
        assert server.returncode == 0
    logged = (tmp_path / "log").read_text()
    assert "'PUT /v2/a/manifests/v1 HTTP/1.1' 201\n" in logged
    assert "Traceback" not in logged


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_there_is_not(capsys: pytest.CaptureFixture[str], port: str) -> None:
    assert run(capsys, f"serve --port={port}") == (1, f"port {port} must be 0 to 65535\n")
