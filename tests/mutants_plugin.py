"""The plugin with which `tests.mutants` runs pytest: it selects, sorts and reports tests."""

import json
import os
from pathlib import Path

import pytest


def pytest_configure() -> None:
    if "MUTANTS_COVERAGE" in os.environ:  # only now: it is for the processes that tests start
        os.environ["COVERAGE_PROCESS_START"] = os.environ["MUTANTS_COVERAGE"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Select and sort the tests. A test that only the mutant has comes first."""
    if "MUTANTS_PLAN" in os.environ:
        ranks = json.loads(Path(os.environ["MUTANTS_PLAN"]).read_text())
        chosen = [item for item in items if ranks.get(item.nodeid, -1) is not None]
        items[:] = sorted(chosen, key=lambda item: ranks.get(item.nodeid, -1))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    with open(os.environ["MUTANTS_REPORTS"], "a") as file:
        print(json.dumps([report.nodeid, report.outcome, report.duration]), file=file)
