"""The plugin with which `tests.mutants` runs pytest: it selects and reports tests."""

import json
import os
from pathlib import Path

import pytest


def pytest_configure() -> None:
    if "MUTANTS_COVERAGE" in os.environ:  # only now: it is for the processes that tests start
        os.environ["COVERAGE_PROCESS_START"] = os.environ["MUTANTS_COVERAGE"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of the plan, and those that only the mutant has, in their usual order."""
    if "MUTANTS_PLAN" in os.environ:
        plan = json.loads(Path(os.environ["MUTANTS_PLAN"]).read_text())
        items[:] = [item for item in items if plan.get(item.nodeid, True)]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    with open(os.environ["MUTANTS_REPORTS"], "a") as file:
        print(json.dumps([report.nodeid, report.outcome, report.duration]), file=file)
