"""The test suites of the installed Werkzeug and Flask pass with `RegistryMap` as the map.

Only the tests in the list below fail. Tests that also fail with Werkzeug's own map, such as those of
an older Flask on a newer Werkzeug, do not count.

``REGISTRY_ROUTES_WERKZEUG_TESTS`` names a checkout of Werkzeug whose tests to run. A development
version needs it, because PyPI does not have its tests.
"""

import json
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

from .peers_plugin import MAPS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

ARGUMENTS = {
    # The conftest is for tests that start servers, and needs more packages.
    "werkzeug": ["--noconftest", "tests/test_routing.py"],
    "flask": ["tests"],
}

# Tests that fail, and why.
FAIL: dict[str, dict[str, str]] = {
    "werkzeug": {
        "tests/test_routing.py::test_rule_templates": "compares all rules of a map with its own",
        "tests/test_routing.py::test_map_repr": "expects its own rules alone in a map's repr",
        "tests/test_routing.py::test_finding_closest_match_by_values": (
            "'extension' is closer to its 'x' than its own endpoint is"
        ),
        "tests/test_routing.py::test_finding_closest_match_by_method": (
            "a route of the registry is closer to its 'invalid' than its own endpoint is"
        ),
        "tests/test_routing.py::test_finding_closest_match_when_none_exist": (
            "expects no suggestion from an empty map, which has the registry's routes"
        ),
    },
    "flask": {
        "tests/test_cli.py::TestRoutes::test_simple": "`flask routes` lists the registry's too",
        "tests/test_cli.py::TestRoutes::test_sort": "`flask routes` sorts the registry's among its",
        "tests/test_cli.py::TestRoutes::test_no_routes": "`flask routes` always has the registry's",
        "tests/test_basic.py::test_server_name_subdomain": (
            "ignores Werkzeug's warning about another host only where Flask calls it"
        ),
        "tests/test_basic.py::test_subdomain_matching_other_name[True]": "the same",
    },
}
# Those of them that pass with one of the maps, and why.
PASS_NEVERTHELESS: dict[str, dict[str, str]] = {
    "docker-1.5": {
        "tests/test_routing.py::test_finding_closest_match_by_values": "it has no 'extension'"
    }
}


class Outcomes(NamedTuple):
    passed: set[str]
    failed: set[str]
    output: str


class Suite(NamedTuple):
    peer: str
    folder: Path

    def run(self, tmp_path: Path, *options: str) -> Outcomes:
        """Run the suite, and return the ids of the tests that passed and failed."""
        file = tmp_path / "outcomes.json"
        command = [sys.executable, "-m", "pytest", "-p", "tests.peers_plugin"]
        command += ["-p", "no:cacheprovider", f"--outcomes={file}", *options]
        # An older Flask uses what Werkzeug has deprecated.
        command += ["-W", "ignore::DeprecationWarning", *ARGUMENTS[self.peer]]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            command, cwd=self.folder, env=environ, capture_output=True, text=True, timeout=600
        )
        output = run.stdout + run.stderr
        assert run.returncode in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), output
        passed, failed = json.loads(file.read_text())
        return Outcomes(set(passed), set(failed), output)


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """The suite of the installed version, from its sdist."""
    peer: str = request.param
    checkout = os.environ.get("REGISTRY_ROUTES_WERKZEUG_TESTS")
    if peer == "werkzeug" and checkout:
        return Suite(peer, Path(checkout))
    folder = tmp_path_factory.mktemp(peer)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", peer, "--dest", str(folder), f"{peer}=={version(peer)}"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        pytest.skip(f"no sdist of {peer} {version(peer)}: {run.stderr.strip().splitlines()[-1]}")
    (sdist,) = folder.iterdir()
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, **safely)  # type: ignore[arg-type]
    return Suite(peer, folder / sdist.name.removesuffix(".tar.gz"))


@pytest.fixture(scope="module")
def outcomes_of_werkzeugs_map(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    outcomes = suite.run(tmp_path_factory.mktemp("outcomes"))
    # With more failures, something else is wrong, which would hide what this tests.
    assert len(outcomes.failed) < len(outcomes.passed) / 20, outcomes.output
    return outcomes


# Flask calls Werkzeug's map, so one map of ours is enough there.
@pytest.mark.parametrize(
    ("suite", "name"),
    [*(("werkzeug", name) for name in MAPS), ("flask", "plain")],
    indirect=["suite"],
    scope="module",
)
def test_suite_passes_except_for_the_tests_in_the_list(
    suite: Suite, outcomes_of_werkzeugs_map: Outcomes, name: str, tmp_path: Path
) -> None:
    outcomes = suite.run(tmp_path, f"--map={name}")
    ran = outcomes_of_werkzeugs_map.passed | outcomes_of_werkzeugs_map.failed
    assert outcomes.passed | outcomes.failed == ran
    expected = FAIL[suite.peer].keys() - PASS_NEVERTHELESS.get(name, {}).keys()
    assert expected <= ran, "the list has tests that are not in the suite"
    failed_before = outcomes_of_werkzeugs_map.failed
    assert outcomes.failed - failed_before == expected - failed_before, outcomes.output
