"""The script `tests.mutants`, on a small package."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from . import mutants
from .mutants import Suite
from .mutations import Mutant, draw, find_mutants

PACKAGE = '''"""Says who may enter."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import enum
__all__ = ["greet", "may_enter", "wait"]
LIMIT = 18


def may_enter(age: "int | None") -> 'Literal["yes"] | bool':
    """Return whether 18 or more."""
    return age is not None and age >= LIMIT


def greet(name: str) -> str:
    return f"hello {name}"


def wait(times: int = 2) -> int:
    while times > 0:
        times -= 1
    return times
'''
TESTS = """
import subprocess, sys
from doors import may_enter, wait

def test_adults_may_enter():
    assert may_enter(18)

def test_greeting_in_a_program():
    subprocess.run([sys.executable, "-c", "import doors; assert doors.greet('you')"], check=True)

def test_wait_ends():
    assert wait() == 0

def test_that_always_fails():
    assert may_enter(1)
"""
MAY_ENTER = "may_enter :: return age is not None and age >= LIMIT"
GREET = 'greet :: return f"hello {name}"'


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    (tree / "doors").mkdir()
    (tree / "doors" / "__init__.py").write_text(PACKAGE)
    (tree / "test_doors.py").write_text(TESTS)
    return tree


@pytest.fixture(scope="module")
def suite(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return Suite(tmp_path_factory.mktemp("copy"), tree, tree / "doors")


def mutants_of(tree: Path) -> dict[str, Mutant]:
    found = list(find_mutants(tree, "doors/__init__.py"))
    named = {mutant.id.removeprefix("doors/__init__.py :: "): mutant for mutant in found}
    assert len(named) == len(found)
    return named


def test_code_has_mutants_and_declarations_have_none(tree: Path) -> None:
    found = mutants_of(tree)
    kinds = {"number": 6, "comparison": 5, "return": 3, "boolean": 3, "string": 3, "default": 2}
    assert Counter(mutant.kind for mutant in found.values()) == {**kinds, "arithmetic": 1}
    assert f"{MAY_ENTER} :: boolean: drop age >= LIMIT" in found


def test_ids_hold_while_other_lines_move(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "doors").mkdir()
    (tmp_path / "doors" / "__init__.py").write_text("import os\n\n\n" + PACKAGE)
    assert mutants_of(tmp_path).keys() == mutants_of(tree).keys()


def test_same_seed_draws_same_mutants(tree: Path) -> None:
    found = list(mutants_of(tree).values())
    drawn = draw(found, tree, 8, seed=1)
    assert len(set(drawn)) == 8
    assert draw(found, tree, 8, seed=1) == drawn
    assert draw(found, tree, 8, seed=2) != drawn


def test_mutants_that_compile_to_the_original_are_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 3 - 0\n")
    found = list(find_mutants(tmp_path, "a.py"))
    assert {mutant.kind for mutant in found} == {"arithmetic", "number"}
    assert {mutant.kind for mutant in draw(found, tmp_path, 99, seed=1)} == {"number"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "killer"),
    [
        ("- :: LIMIT = 18 :: number: 18 -> 19", "test_doors.py::test_adults_may_enter"),
        ("- :: LIMIT = 18 :: number: 18 -> 17", None),
        (f"{GREET} :: return: return None", "test_doors.py::test_greeting_in_a_program"),
        ("wait :: times -= 1 :: number: 1 -> 0", "a hang"),
    ],
)
def test_mutant_is_killed_by_a_test_that_passes_without_it(
    tree: Path, suite: Suite, name: str, killer: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if killer == "a hang":
        monkeypatch.setattr(suite, "patience", 5)
    assert suite.judge(mutants_of(tree)[name]) == killer
    assert suite.flaky == {"test_doors.py::test_that_always_fails"}


@pytest.mark.slow
def test_run_fails_if_a_mutant_survives_that_was_killed_before(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost, kept = (
        f"doors/__init__.py :: {line}"
        for line in (f"{GREET} :: string: cut 'hello' at 0", f"{MAY_ENTER} :: return: return None")
    )
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps(dict.fromkeys([lost, kept, "gone"], "a test of then")))
    options = f"--tree {tree} --package {tree / 'doors'} --only {before} --json {after}"
    monkeypatch.setattr(sys, "argv", ["mutants", *options.split()])
    with pytest.raises(SystemExit) as end:
        mutants.main()
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert printed.endswith(f"Killed before, survive now:\n  {lost}\n")
    assert "any more:\n  gone\n" in printed
    results = json.loads(after.read_text())
    assert results == {lost: None, kept: "test_doors.py::test_adults_may_enter"}
