"""The fixture ``oci_registry``, in the test suites of its users."""

import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN = ("-p", "registry_routes.pytest_plugin", "-p", "no:cacheprovider", "-W", "error")

SUITE = """
import json
import urllib.error
import urllib.request

import pytest

from registry_routes import errors


def get(url):
    with urllib.request.urlopen(url) as response:
        return json.load(response)


def test_failing(oci_registry):
    digest = oci_registry.add_image("library/nginx:latest", layers=[b"a layer"])
    assert digest.startswith("sha256:")
    oci_registry.fail("tags", "GET", errors.TooManyRequests(retry_after=1))
    with pytest.raises(urllib.error.HTTPError, match="429") as raised:
        get(f"{oci_registry.url}/v2/library/nginx/tags/list")
    raised.value.close()
    assert get(f"{oci_registry.url}/v2/library/nginx/tags/list")["tags"] == ["latest"]
    assert [(sent.endpoint, sent.status) for sent in oci_registry.requests] == [
        ("tags", 429), ("tags", 200)
    ]


@pytest.mark.parametrize("number", range(6))
def test_fresh(oci_registry, number):
    assert get(f"{oci_registry.url}/v2/_catalog") == {"repositories": []}
    oci_registry.add_image(f"image/{number}")
    assert get(f"{oci_registry.url}/v2/_catalog") == {"repositories": [f"image/{number}"]}


urls = []


def test_before(oci_registry):
    urls.append(oci_registry.url)


def test_stopped_afterwards():
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"{urls[0]}/v2/")
"""

UNFIRED = """
import pytest
from werkzeug.test import Client


def test_all_fired(oci_registry):
    oci_registry.fail("base", "GET", 503, times=None)
    assert Client(oci_registry.app).get("/v2/").status_code == 503


def test_some_left(oci_registry):
    oci_registry.fail("tags", "GET", 503, times=2)
    Client(oci_registry.app).get("/v2/a/tags/list")


def test_failed_already(oci_registry):
    oci_registry.fail("tags", "GET", 503)
    raise RuntimeError("mine")


@pytest.mark.xfail(strict=True)
def test_expected_to_fail(oci_registry):
    oci_registry.fail("tags", "GET", 503)
    raise RuntimeError("mine")


def test_skipped(oci_registry):
    oci_registry.fail("tags", "GET", 503)
    pytest.skip("not here")
"""

WITHOUT_SOCKETS = """
import socket

import pytest
from werkzeug.test import Client


class Forbidden(socket.socket):
    def __init__(self, *args, **options):
        raise RuntimeError("no sockets here")


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch):
    monkeypatch.setattr(socket, "socket", Forbidden)


def test_without_a_socket(no_sockets, oci_registry):
    digest = oci_registry.add_image("library/nginx:v1", layers=[b"x"])
    answer = Client(oci_registry.app).get("/v2/library/nginx/manifests/v1")
    assert answer.headers["Docker-Content-Digest"] == digest
    assert oci_registry.manifest("library/nginx:v1") == answer.get_json()
    for name in "host", "url":
        with pytest.raises(RuntimeError, match="no sockets here"):
            getattr(oci_registry, name)
"""

UNUSED = """
import sys


def test_nothing_is_imported():
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert "werkzeug" not in loaded
    assert [name for name in sys.modules if name.startswith("registry_routes.")] == [
        "registry_routes.pytest_plugin"
    ]
"""


def test_each_test_gets_a_new_registry(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    pytester.runpytest_inprocess(*PLUGIN).assert_outcomes(passed=9)


def test_passed_test_with_unfired_faults_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(UNFIRED)
    result = pytester.runpytest_inprocess(*PLUGIN)
    # A test that passes and then fails in its fixture counts for both.
    result.assert_outcomes(passed=2, failed=1, errors=1, xfailed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_some_left*",
            "no request has met these faults:",
            "  UnfiredFault(endpoint='tags', method='GET', what=503, times=1)",
        ]
    )


def test_fixture_opens_no_socket_before_its_address_is_read(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(WITHOUT_SOCKETS)
    pytester.runpytest_inprocess(*PLUGIN).assert_outcomes(passed=1)


@pytest.mark.slow
def test_fixture_works_under_xdist(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    # Two tests depend on each other, but may run in different workers.
    apart = "-k", "not before and not stopped"
    result = pytester.runpytest_subprocess(*PLUGIN, "-n", "3", *apart)
    result.assert_outcomes(passed=7)


def test_unused_fixture_imports_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(UNUSED)
    pytester.runpytest_subprocess(*PLUGIN).assert_outcomes(passed=1)


def test_suite_of_the_readme_passes(pytester: pytest.Pytester) -> None:
    readme = (ROOT / "README.md").read_text()
    [block] = [
        block
        for block in re.findall(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
        if "oci_registry" in block
    ]
    pytester.makepyfile(block)
    pytester.runpytest_inprocess(*PLUGIN).assert_outcomes(passed=1)


def test_fixture_is_listed(pytester: pytest.Pytester) -> None:
    listed = pytester.runpytest_inprocess(*PLUGIN, "--fixtures").stdout.str()
    assert re.search(r"oci_registry -- .*\n +A container registry, empty and in memory", listed)


@pytest.mark.slow
def test_plugin_may_be_named_twice_or_switched_off(pytester: pytest.Pytester) -> None:
    """The entry point loads it, and ``-p``, which may name a module or an entry point."""
    pytester.makepyfile(SUITE)
    pytester.runpytest_subprocess(*PLUGIN, *PLUGIN).assert_outcomes(passed=9)
    result = pytester.runpytest_subprocess("-p", "no:registry_routes.pytest_plugin")
    assert "fixture 'oci_registry' not found" in result.stdout.str()


def pip(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_wheel_needs_only_werkzeug_and_pytest(tmp_path: Path) -> None:
    """In a new environment, from the wheel, without any configuration."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    subprocess.run([*build, "--outdir", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    installed = pip(python, "install", "-q", str(wheel), "pytest")
    if installed.returncode and "No matching distribution" in installed.stderr:
        pytest.skip("there is no package index to install pytest from")
    assert installed.returncode == 0, installed.stderr
    there = {line.partition("==")[0].lower() for line in pip(python, "freeze").stdout.splitlines()}
    assert {name.partition(" @")[0] for name in there} <= {
        *("registry-routes", "registry_routes", "werkzeug", "markupsafe"),
        *("pytest", "iniconfig", "packaging", "pluggy", "pygments"),
    }
    run = [str(python), "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    for suite, passed in (UNUSED, 1), (SUITE, 9):
        (tmp_path / "test_suite.py").write_text(suite)
        result = subprocess.run(
            [*run, "test_suite.py"], cwd=tmp_path, capture_output=True, text=True
        )
        assert f"{passed} passed" in result.stdout, result.stdout
