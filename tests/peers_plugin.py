"""A pytest plugin for the suites of Werkzeug and Flask: every map in them is a `RegistryMap`."""

import gc
import inspect
import json
from pathlib import Path
from typing import Any

import flask
import pytest
import werkzeug.routing
from _pytest import monkeypatch
from _pytest.compat import NOTSET

from registry_routes import DOCKER_1_5, RegistryMap

MAPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prefixed": {"prefix": "/registry"},
    "docker-1.5": {"dialect": DOCKER_1_5},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--map", choices=MAPS, help="without it, maps are Werkzeug's own")
    parser.addoption("--outcomes", type=Path, required=True, help="the file to write")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the suite before its modules are imported."""
    config.pluginmanager.register(Outcomes(config.getoption("--outcomes")))
    # Flask's tests import this private name, which pytest 9.2 no longer has.
    vars(monkeypatch).setdefault("notset", NOTSET)
    # One of Werkzeug's tests counts the rules in memory: it must not find those made so far.
    gc.freeze()
    name = config.getoption("--map")
    if name is not None:
        replace_maps(MAPS[name])


def replace_maps(chosen: dict[str, Any]) -> None:
    parameters = inspect.signature(werkzeug.routing.Map)

    class Map(RegistryMap):
        """A `RegistryMap` that takes its arguments as Werkzeug's map does, by position too."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(**chosen, **parameters.bind(*args, **options).arguments)

    werkzeug.routing.Map = Map  # type: ignore[misc]
    flask.Flask.url_map_class = Map


class Outcomes:
    """Writes to a file which tests passed and which failed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.passed and report.when == "call":
            self.passed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        passed = self.passed - self.failed
        self.file.write_text(json.dumps([sorted(passed), sorted(self.failed)]))
