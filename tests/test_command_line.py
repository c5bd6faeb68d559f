"""`python -m registry_routes`, and the installed script."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from registry_routes import OCI_1_1, URLBuilder
from registry_routes.__main__ import main
from registry_routes.routes import DIALECTS
from registry_routes.urls import PARAMETERS

from . import nasty
from .nasty import SHA256
from .servers import free_port, output_of

MANIFEST = f"/v2/a/manifests/{SHA256}"
README = Path(__file__).parent.parent / "README.md"


def run(capsys: pytest.CaptureFixture[str], command: str) -> tuple[int, str]:
    """The exit status, and the output; after a failure, from standard error."""
    status = main(command.split())
    captured = capsys.readouterr()
    assert not (captured.err if status == 0 else captured.out)
    return status, (captured.out or captured.err)


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        (
            "put https://h/v2/a%2Fb/manifests/v1?x=1",
            "endpoint manifest|name a/b|tag v1|scopes repository:a/b:pull,push",
        ),
        (
            "POST /v2/a/blobs/uploads/?mount=x&from=b",
            "endpoint blob-upload|name a|scopes repository:a:pull,push repository:b:pull",
        ),
        ("--root /m https://h/m/v2/#fragment?x", "endpoint base|scopes -"),
        ("--prefix /r --root https://h/m/ https://h/m/r/v2/", "endpoint base|scopes -"),
        (
            "--dialect docker-1.5 X /v2/a/b/tags/list",
            "endpoint tags|name a/b|scopes repository:a/b:*",
        ),
    ],
)
def test_match(capsys: pytest.CaptureFixture[str], command: str, printed: str) -> None:
    status, lines = run(capsys, f"match {command}")
    assert (status, re.sub("  +", " ", lines)) == (0, printed.replace("|", "\n") + "\n")


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("base", "/v2/"),
        ("--root https://h:5000/m/ --prefix /r/ base", "https://h:5000/m/r/v2/"),
        ("tags name=library/nginx n=10 last=a=b", "/v2/library/nginx/tags/list?n=10&last=a%3Db"),
        ("extension module=c extension=a component=b name=q/r", "/v2/q/r/_a/b/c"),
        (f"manifest name=a digest={SHA256} tag=v1 tag=v2", f"{MANIFEST}?tag=v1&tag=v2"),
        ("tags name=a n=1 --query n=x --query page=y=z", "/v2/a/tags/list?n=1&n=x&page=y%3Dz"),
        ("--reference a.b/c --root / --query x=y --query x=", "/v2/c/manifests/latest?x=y&x="),
        (f"--reference=h:5000/a:v1@{SHA256}", f"https://h:5000{MANIFEST}"),
        ("--prefix /r --reference a/b", "https://registry-1.docker.io/r/v2/a/b/manifests/latest"),
        (
            "--dialect docker-1.5 --reference nginx --root http://127.0.0.1:5000/m/",
            "http://127.0.0.1:5000/m/v2/library/nginx/manifests/latest",
        ),
    ],
)
def test_build(capsys: pytest.CaptureFixture[str], command: str, url: str) -> None:
    assert run(capsys, f"build {command}") == (0, f"{url}\n")


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("match /v2/library/Nginx/tags/list", "400 NAME_INVALID: repository name 'library/Nginx' "),
        (
            "match DELETE /v2/_catalog",
            "405 UNSUPPORTED: the registry does not support this operation (Allow: GET, HEAD)\n",
        ),
        ("match /v2/x", "404 UNSUPPORTED: the registry has no such endpoint\n"),
        ("match --root https://h/m https://h/m/v2", "308 Permanent Redirect: /m/v2/\n"),
        ("match https://h/v2/ put", "the method comes first: match put https://h/v2/\n"),
        (
            "match --prefix /r /v2/",
            "URL '/v2/' is not under the API, '/r/v2/'; say where it is by --root\n",
        ),
        (
            "match https://h/m/v2/",
            "URL 'https://h/m/v2/' is not under the API, '/v2/'; say where it is by --root https://h/m\n",
        ),
        ("build --reference a_b.com/x", "domain 'a_b.com' must contain only"),
        (
            f"build --dialect docker-1.5 --reference nginx@{SHA256}",
            "Could not build url for endpoint 'manifest' with values ['digest', 'name']",
        ),
        ("build tag name=a", "endpoint 'tag' is not in the dialect: choose 'tags' or"),
        ("build --dialect docker-1.5 referrers", "endpoint 'referrers' is not in the dialect"),
        ("build tags", "endpoint 'tags' takes name, but was given nothing"),
        ("build tags name=a lsat=x", "endpoint 'tags' takes 'last', not 'lsat'; give others by --"),
        ("build base x=y", "endpoint 'base' takes nothing, not 'x'; give others by --query\n"),
        ("build tags name=a name=b", "name is given more than once"),
        ("build tags name=a n=1 n=2", "n is given more than once"),
        ("build tags name=a n=-1", "n '-1' must be a whole number, 0 or more"),
        ("build catalog n=٣", "n '٣' must be a whole number, 0 or more"),
        ("build blob-upload name=a from=B", "repository name 'B' must be lower"),
        ("build blob-upload name=a digest-algorithm=SHA", "digest algorithm 'SHA' must be"),
        (f"build manifest name=a digest={SHA256} tag=.x", "tag '.x' must start with a letter"),
    ],
)
def test_failure_is_one_line_and_status_1(
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
        *("build --reference nginx tags", "build tags name=a --reference nginx"),
    ],
)
def test_wrong_command_line_is_status_2(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_routes_in_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    dialect = DIALECTS["docker-1.5"]
    options = "--dialect docker-1.5 --prefix /r/ --root https://h/m"
    listed = json.loads(run(capsys, f"routes --format json {options}")[1])
    text = run(capsys, f"routes {options}")[1].splitlines()[1:]
    markdown = run(capsys, f"routes --format markdown {options}")[1].splitlines()[2:]
    for route, row, line, cells in zip(dialect.routes, listed, text, markdown, strict=True):
        assert row == {
            "endpoint": route.name,
            "rule": "https://h/m/r" + re.sub(r"<\w+:", "<", route.path),
            "methods": list(route.methods or ["any"]),
            "spec": route.spec,
            "doc": route.doc,
        }
        shown = row["endpoint"], row["rule"], " ".join(row["methods"]), row["spec"]
        assert all(value in line and value in cells for value in shown)
    assert len({line.index("/v2/") for line in text}) == 1  # aligned
    assert run(capsys, "routes --format markdown")[1] in README.read_text()


def test_installed_script(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    shown = capsys.readouterr().out
    assert re.fullmatch(r"registry-routes [0-9.]+ \(Werkzeug [0-9.]+\S*\)\n", shown)
    script = str(Path(sys.executable).parent / "registry-routes")
    bad = subprocess.run([script, "match", "/v2/A/tags/list"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout, "must be lowercase" in bad.stderr) == (1, "", True)


def test_registry_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    command = [sys.executable, "-m", "registry_routes", "serve", "--port", str(port)]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout
        greeting = server.stdout.readline()
        assert greeting.startswith(f"A registry in memory at http://127.0.0.1:{port}. Ctrl-C stops")
        root = f"http://127.0.0.1:{port}/v2"
        requests.put(f"{root}/a/manifests/v1", data=b"{}", timeout=10).raise_for_status()
        listed = requests.get(f"{root}/a/tags/list", timeout=10)
        assert listed.json() == {"name": "a", "tags": ["v1"]}
        status, said = run(capsys, f"serve --port {port}")
        assert (status, "in use" in said, said.count("\n")) == (1, True, 1)
        server.send_signal(signal.SIGINT)
        assert "Its content was deleted" in server.communicate(timeout=10)[0]
        assert server.returncode == 0
    logged = (tmp_path / "log").read_text()
    assert "'PUT /v2/a/manifests/v1 HTTP/1.1' 201\n" in logged
    assert "Traceback" not in logged


def test_impossible_port_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "serve --port=65536") == (1, "port 65536 must be 0 to 65535\n")


def test_help_of_build_lists_the_values_of_each_endpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["build", "--help"])
    listed = capsys.readouterr().out.partition("what each endpoint takes")[2].splitlines()[1:]
    valid = dict.fromkeys(["digest", "mount"], SHA256) | {"n": "5", "digest-algorithm": "sha512"}
    for route, line in zip(OCI_1_1.routes, listed, strict=True):
        endpoint, *taken = line.split()
        optional = [name.strip("[]") for name in taken if "[" in name]
        variables = [name for name in taken if "[" not in name]
        assert (endpoint, variables) == (route.endpoint, list(OCI_1_1.variables(route)))
        method = inspect.signature(getattr(URLBuilder, endpoint.replace("-", "_")))
        keywords = {
            PARAMETERS.get(name, name)
            for name, parameter in method.parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        assert keywords - set(variables) == set(optional)
        values = [f"{name}={valid.get(name, 'x')}" for name in [*variables, *optional]]
        assert main(["build", endpoint, *values]) == 0
        built = capsys.readouterr().out
        assert all(f"{name}=" in built for name in optional)


# Output cannot be forged.


TEXT = st.text(st.sampled_from("a\n\r\x1b\x7f\x85\u2028\u202e\u200f\\'é:/.") | st.characters())


PLACES = ["match", "value", "build", "tags", "prefix", "root", "reference", "dialect"]


@nasty.examples(24)
@given(TEXT, st.sampled_from(PLACES))
def test_any_message_is_printed_in_one_line(text: str, place: str) -> None:
    sent = quote(text, errors="replace")
    commands = {
        "match": ["match", f"/v2/{sent}/tags/list"],
        "value": ["match", "--dialect=docker-1.5", "PUT", f"/v2/a/b/blobs/uploads/{sent}"],
        "build": ["build", "--", text],
        "tags": ["build", "tags", f"name={text}", f"last={text}", f"{text}=x"],
        "prefix": ["match", f"--prefix={text}", "/v2/"],
        "root": ["build", f"--root={text}", "base"],
        "reference": ["build", f"--reference={text}"],
        "dialect": ["routes", f"--dialect={text}"],
    }
    try:
        status, printed = output_of(*commands[place])
    except SystemExit:
        return  # the same message, after the usage: see below
    assert printed.replace("\n", "").isprintable()
    assert printed.count("\n") <= (2 if status else 4)  # a note and an error, or a match


def test_errors_of_the_command_line_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["match", "/v2/", "/v2/", "\x1b[2J\u202e"])
    assert r"\x1b[2J\u202e" in capsys.readouterr().err.splitlines()[-1]


# Standard output.


def run_program(command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "registry_routes", *command.split()]
    return subprocess.run(program, stderr=subprocess.PIPE, text=True, timeout=60, **options)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("match /v2/", 141),
        pytest.param("serve --port 0", 141, marks=pytest.mark.slow),
        pytest.param("build --help", 0, marks=pytest.mark.slow),
    ],
)
def test_closed_stdout_causes_no_traceback(command: str, status: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = run_program(command, stdout=writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (status, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_full_disk_is_one_line_and_status_1() -> None:
    with Path("/dev/full").open("w") as full:
        ended = run_program("routes", stdout=full)
    assert (ended.returncode, ended.stderr) == (1, "[Errno 28] No space left on device\n")


def test_text_that_the_terminal_cannot_show_is_escaped() -> None:
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = "match --dialect docker-1.5 /v2/a/b/blobs/uploads/%C3%A9"
    ended = run_program(command, stdout=subprocess.PIPE, env=environ)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert r"uuid      \xe9" in ended.stdout
