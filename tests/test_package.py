"""The published package: the public names, their types, the wheel and the sdist."""

import configparser
import os
import pkgutil
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import registry_routes

ROOT = Path(__file__).parent.parent

# A user's program. The comment of each reveal_type has the type; only the last line has an error.
PROGRAM = """
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Response

from registry_routes import (
    DOCKER_1_5, RegistryApp, RegistryMap, RegistryRequest, RouteName, URLBuilder, errors, url_map
)
from registry_routes.registry import MemoryStorage, Storage, make_registry
from registry_routes.testing import ServedRegistry, serve

storage: Storage = MemoryStorage()
reveal_type(make_registry(storage, page_size=100))  # registry_routes.app.RegistryApp
rule, _ = url_map.bind("registry.example.com").match("/v2/", return_rule=True)
reveal_type(rule)  # werkzeug.routing.rules.Rule
own: Map = RegistryMap(dialect=DOCKER_1_5, prefix="/r", rules=[Rule("/x", endpoint="x")])
app = RegistryApp()


@app.view(RouteName.TAGS, "GET")
def tags(request: RegistryRequest, name: str) -> Response:
    reveal_type(request.urls)  # registry_routes.urls.URLBuilder
    raise errors.NameUnknown(detail={"name": name})


def test_of_theirs(oci_registry: ServedRegistry) -> None:
    oci_registry.fail("blob", "GET", "body cut short")
    reveal_type(oci_registry.requests[0].status)  # int | None


with serve(app, users={"alice": "secret"}, auth="bearer") as registry:
    reveal_type(registry.url)  # str
URLBuilder("https://h").tags("a", n="three")
"""


def test_public_names_are_imported_on_first_use() -> None:
    code = """
import registry_routes
assert "map" not in dir() and "registry_routes.map" not in __import__("sys").modules
assert registry_routes.url_map is registry_routes.map.url_map
assert registry_routes.Reference is registry_routes.reference.Reference
assert not hasattr(registry_routes, "nothing")
assert set(registry_routes.__all__) < set(dir(registry_routes))
from registry_routes import *
assert RegistryMap is registry_routes.RegistryMap
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


PACKAGE = registry_routes.__path__
MODULES = {
    name: import_module(name)
    for name in [
        "registry_routes",
        *(m.name for m in pkgutil.walk_packages(PACKAGE, "registry_routes.")),
    ]
}


@pytest.mark.parametrize("name", MODULES)
def test_all_of_a_module_names_what_it_has(name: str) -> None:
    names = MODULES[name].__all__
    assert names
    assert [missing for missing in names if not hasattr(MODULES[name], missing)] == []


def test_public_names_are_in_the_all_of_their_modules() -> None:
    own = [module for name, module in MODULES.items() if name.count(".") and "public" not in name]
    for name in registry_routes.__all__:
        value = getattr(registry_routes, name)
        if not isinstance(value, ModuleType):
            assert any(name in m.__all__ and getattr(m, name) is value for m in own), name


def test_first_line_of_a_parameter_has_one_colon() -> None:
    """pdoc takes the text before the last colon of the line for the name of the parameter."""
    sources = [path.read_text() for path in (ROOT / "registry_routes").rglob("*.py")]
    assert [
        line for source in sources for line in re.findall(r":param [^:\n]+:.*:.*", source)
    ] == []


def test_any_module_may_be_imported_first() -> None:
    code = """
import importlib, pkgutil, sys
import registry_routes
for module in pkgutil.iter_modules(registry_routes.__path__):
    for name in [name for name in sys.modules if name.startswith("registry_routes")]:
        del sys.modules[name]
    if module.name != "__main__":
        importlib.import_module(f"registry_routes.{module.name}")
        print(module.name)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not run.stderr
    assert {"app", "errors", "testing", "urls"} <= set(run.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy --strict", f"pyright --pythonpath {sys.executable}"])
def test_types_in_a_users_program(tmp_path: Path, checker: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", *checker.split(), str(program)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    said = run.stdout.splitlines()
    lines = PROGRAM.splitlines()
    for number, line in enumerate(lines, start=1):
        if "reveal_type" in line:
            wanted = line.rpartition("# ")[2]
            if checker.startswith("pyright"):  # it does not print the modules
                wanted = wanted.rpartition(".")[2] if wanted[-3:] != "..]" else wanted
            here = [text for text in said if re.search(rf"program\.py:{number}\b", text)]
            assert any(wanted in text.replace("builtins.", "") for text in here), (line, run.stdout)
    errors = [text for text in said if re.search(r"program\.py:[0-9:]+ (?:- )?error", text)]
    assert [text for text in errors if f"program.py:{len(lines)}" in text] == errors, run.stdout
    assert errors


@pytest.mark.slow
def test_every_public_type_is_declared() -> None:
    # Here, pyright looks for the package by the first Python in the path, whatever it is told.
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "pyright", "--verifytypes", "registry_routes"]
    run = subprocess.run(
        [*command, "--ignoreexternal"], env=environ, capture_output=True, text=True
    )
    assert "Type completeness score: 100%" in run.stdout, run.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_wheel_has_the_package_alone(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("METADATA")]
        (entry,) = [archive.read(name).decode() for name in names if "entry_points" in name]
    package = {name for name in names if ".dist-info/" not in name}
    files = (ROOT / "registry_routes").rglob("*")
    assert package == {str(p.relative_to(ROOT)) for p in files if p.suffix in (".py", ".typed")}
    assert "registry_routes/py.typed" in package
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for field in (
        *("Name: registry-routes", "Requires-Python: >=3.11", "Requires-Dist: werkzeug>=3.1"),
        *("License-Expression: Apache-2.0", "Keywords: ", "Project-URL: "),
        *("Classifier: Typing :: Typed", "Description-Content-Type: text/markdown"),
    ):
        assert field in metadata
    points = configparser.ConfigParser()
    points.read_string(entry)
    plugin = "registry_routes.pytest_plugin"
    assert dict(points["pytest11"]) == {plugin: plugin}


@pytest.mark.slow
def test_sdist_passes_its_tests(distributions: Path, tmp_path: Path) -> None:
    """Only those that do not start other programs."""
    (sdist,) = distributions.glob("*.tar.gz")
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, **safely)  # type: ignore[arg-type]
    (unpacked,) = tmp_path.iterdir()
    tracked = {"README.md", "LICENSE", "pyproject.toml", "tests", "examples", "registry_routes"}
    assert tracked <= {path.name for path in unpacked.iterdir()}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["tests/test_oracles.py", "tests/test_grammar.py", "registry_routes"]
    environ = {**os.environ, "PYTHONPATH": str(unpacked)}
    run = subprocess.run(command, cwd=unpacked, env=environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    collect = [*command[:4], "--collect-only"]
    run = subprocess.run(collect, cwd=unpacked, env=environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
