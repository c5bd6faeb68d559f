"""Make random mutants of the package, run the suite on each, and list those that survive.

    python -m tests.mutants --count 120 --seed 1 --json before.json
    python -m tests.mutants --only before.json --json after.json

A mutant is the package with one small fault: ``<=`` for ``<``, a statement removed, a part of a
regular expression dropped. If no test fails, the mutant survives: the suite does not notice this
fault, or it is none, which only a reader can tell. The mutants are spread evenly over the kinds of
faults. The same seed gives the same mutants. An id names the file, the function, the text of the
line and the change, so it holds while other lines move. ``--only`` takes ids, or the results of a
run; of results it also prints what differs, and fails if a mutant survives that was killed then.
So it shows that the suite still notices these faults. About others it proves nothing.

The suite is what plain ``pytest`` runs in ``--tree``, on the package of that tree or on the one at
``--package``. It runs once with coverage, also of the processes that it starts. Each mutant then
gets 300 of the tests that execute the changed statement, those first that execute least. All that
survive are put into the package together, for a run of all tests, and what fails there is tried on
each of them. (So a mutant may hide another, which is rare.) A test kills if it fails twice, and
passes without the mutant. A hang kills too. Everything happens in a copy of the tree.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from coverage import CoverageData

from .mutations import Mutant, draw, find_mutants

ROOT = Path(__file__).parent.parent
UNCOPIED = shutil.ignore_patterns(".git", ".venv", ".tox", ".*_cache", "__pycache__", ".coverage*")
COVERAGE = """[run]
branch = true
parallel = true
sigterm = true
source = {package}
data_file = {data}
context = ${{PYTEST_CURRENT_TEST-}}
"""


class Suite:
    """A copy of the tree, its tests, and which lines each of them executes."""

    def __init__(self, directory: Path, tree: Path, package: Path) -> None:
        self.directory, self.tree, self.package = directory, directory / "tree", package.name
        shutil.copytree(tree, self.tree, symlinks=True, ignore=UNCOPIED)
        shutil.rmtree(self.tree / self.package, ignore_errors=True)
        shutil.copytree(package, self.tree / self.package, ignore=UNCOPIED)
        shutil.copy(Path(__file__).with_name("mutants_plugin.py"), directory)
        self.log = directory / "log"
        self.patience = 60.0  # how many seconds a run may take longer than expected
        self.seconds: dict[str, float] = defaultdict(float)
        self.flaky: set[str] = set()
        self.executing: dict[tuple[str, int], set[str]] = {}
        self.breadth: Counter[str] = Counter()  # how many lines each test executes
        self._measure()

    def run_pytest(
        self, *options: str, timeout: float | None = None, **environ: str
    ) -> tuple[int | None, list[tuple[str, str, float]]]:
        """Return the exit status, or `None` after the timeout, and the outcome of each test."""
        # Python cannot tell two mutants of one size apart that were made within a second.
        for cache in (self.tree / self.package).rglob("__pycache__"):
            shutil.rmtree(cache)
        shutil.rmtree(self.tree / ".hypothesis", ignore_errors=True)  # no hints from other mutants
        reports = self.directory / "reports"
        reports.write_text("")
        own = ("COV", "PYTEST", "MUTANTS", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        inherited["PYTHONPATH"] = f"{self.tree}{os.pathsep}{self.directory}"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "mutants_plugin", *options]
        command += ["-p", "no:cacheprovider", "--hypothesis-seed=0"]
        command += [f"--basetemp={self.directory}/t"]
        with self.log.open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=self.tree,
                env={**inherited, "MUTANTS_REPORTS": str(reports), **environ},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return status, [json.loads(line) for line in reports.read_text().splitlines()]

    def _measure(self) -> None:
        settings, data = self.directory / "settings.ini", self.directory / "coverage"
        settings.write_text(COVERAGE.format(package=self.package, data=data))
        options = [f"--cov={self.package}", f"--cov-config={settings}", "--cov-context=test"]
        status, reports = self.run_pytest(*options, "--cov-report=", MUTANTS_COVERAGE=str(settings))
        if status not in (0, 1):
            raise SystemExit(self.log.read_text())
        for test, _, seconds in reports:
            self.seconds[test] += seconds
        failed = {test for test, outcome, _ in reports if outcome == "failed"}
        self.flaky |= {test for test in failed if self.find_failures([], [test])}
        coverage = CoverageData(basename=str(data))
        coverage.read()
        own = f"{self.tree}{os.sep}"  # a test may also run a copy of the package
        for path in (path for path in coverage.measured_files() if path.startswith(own)):
            file = Path(path.removeprefix(own)).as_posix()
            for line, contexts in coverage.contexts_by_lineno(path).items():
                # "test|run" is of pytest-cov, "test (call)" of a process that the test started.
                tests = {re.sub(r"(\|\w+| \(\w+\))$", "", context) for context in contexts}
                self.executing[file, line] = tests
                self.breadth.update(tests)

    def find_failures(
        self, mutants: Iterable[Mutant], tests: Iterable[str], most: int = 1
    ) -> list[str]:
        """Run tests with some mutants, and return those that fail. Stop after `most` failures."""
        wanted = set(tests) - self.flaky
        if not wanted:
            return []
        plan = self.directory / "plan"
        plan.write_text(json.dumps({test: test in wanted for test in self.seconds}))
        modules = sorted({test.partition("::")[0] for test in wanted})
        timeout = self.patience + 2 * sum(self.seconds[test] for test in wanted)
        sources: dict[Path, bytes] = {}
        for mutant in sorted(mutants, key=lambda mutant: mutant.start, reverse=True):
            path = self.tree / mutant.file
            sources.setdefault(path, path.read_bytes())
            path.write_bytes(mutant.apply(path.read_bytes()))
        status, reports = self.run_pytest(
            f"--maxfail={most}", *modules, timeout=timeout, MUTANTS_PLAN=str(plan)
        )
        for path, source in sources.items():
            path.write_bytes(source)
        failed = dict.fromkeys(test for test, outcome, _ in reports if outcome == "failed")
        other = {0: [], 5: [], None: ["a hang"]}.get(status, ["an error of pytest"])  # 5: no tests
        return list(failed) or other

    def find_killer(self, mutant: Mutant, tests: list[str]) -> str | None:
        """Return what fails with the mutant, twice, and not without it."""
        while failures := self.find_failures([mutant], tests):
            killer = failures[0]
            suspects = failures if killer in self.seconds else tests
            if not self.find_failures([mutant], suspects):
                tests = [test for test in tests if test != killer]
            elif not (failures := self.find_failures([], suspects)):
                return killer
            elif failures == ["a hang"]:
                self.patience *= 2
            elif failures[0] in self.seconds:
                self.flaky.update(failures)
            else:
                raise SystemExit(self.log.read_text())
        return None

    def judge(self, mutant: Mutant) -> str | None:
        """Return which of the tests that execute the statement kills a mutant."""
        lines = (self.executing.get((mutant.file, line), set()) for line in mutant.lines)
        tests = set[str]().union(*lines) & set(self.seconds)
        ranked = sorted(tests, key=lambda test: (self.breadth[test], test))
        return self.find_killer(mutant, ranked[:25]) or self.find_killer(mutant, ranked[25:300])

    def judge_together(self, mutants: list[Mutant], tests: list[str]) -> dict[str, str]:
        """Run all tests on several mutants at once, and return what kills which of them."""
        apart = [
            mutant for i, mutant in enumerate(mutants) if any(map(mutant.overlaps, mutants[:i]))
        ]
        if apart:
            together = [mutant for mutant in mutants if mutant not in apart]
            return self.judge_together(together, tests) | self.judge_together(apart, tests)
        failures = self.find_failures(mutants, tests, most=25) if mutants else []
        if not failures:
            return {}
        if failures[0] in self.seconds:
            left = [test for test in tests if test not in failures]
        elif len(mutants) > 1:  # together, they prevent that tests run
            half = len(mutants) // 2
            return self.judge_together(mutants[:half], tests) | self.judge_together(
                mutants[half:], tests
            )
        else:
            failures, left = tests, []
        killers = {mutant.id: self.find_killer(mutant, failures) for mutant in mutants}
        killed = {name: killer for name, killer in killers.items() if killer}
        rest = [mutant for mutant in mutants if mutant.id not in killed]
        return killed | self.judge_together(rest, left)


def print_list(title: str, lines: Iterable[str]) -> None:
    print(f"\n{title}", *lines, sep="\n  ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=120, help="how many mutants to make")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=Path, help="a JSON list of ids, or the results of a run")
    parser.add_argument("--tree", type=Path, default=ROOT, help="where the tests are")
    parser.add_argument("--package", type=Path, help="default: registry_routes of the tree")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no pytest is left
    package = (options.package or options.tree / "registry_routes").resolve()
    files = [path.relative_to(package.parent).as_posix() for path in sorted(package.rglob("*.py"))]
    mutants = [mutant for file in files for mutant in find_mutants(package.parent, file)]
    before = json.loads(options.only.read_text()) if options.only else []
    known = {mutant.id: mutant for mutant in mutants}
    chosen = [known[name] for name in before if name in known]
    if not options.only:
        chosen = draw(mutants, package.parent, options.count, options.seed)
    results: dict[str, str | None] = {}

    def save() -> None:
        if options.json:
            options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")

    with tempfile.TemporaryDirectory(prefix="m", ignore_cleanup_errors=True) as directory:
        suite = Suite(Path(directory).resolve(), options.tree, package)
        print(f"{len(suite.seconds)} tests, {len(mutants)} possible mutants", flush=True)
        for mutant in chosen:
            began = time.monotonic()
            killer = results[mutant.id] = suite.judge(mutant)
            took = f"{time.monotonic() - began:.0f} s"
            print("killed" if killer else "survives so far", took, mutant.id, flush=True)
            save()
        left = [mutant for mutant in chosen if not results[mutant.id]]
        results |= suite.judge_together(left, list(suite.seconds))
    save()
    survivors = [name for name in results if not results[name]]
    print_list("Fail without a mutant, too, and do not count:", sorted(suite.flaky))
    print_list("Not in the package any more:", [name for name in before if name not in known])
    print_list(f"{len(survivors)} of {len(results)} survive:", survivors)
    if isinstance(before, dict):
        lost = [name for name in survivors if before[name]]
        print_list(
            "Survived before, killed now:", [n for n in results if results[n] and not before[n]]
        )
        print_list("Killed before, survive now:", lost)
        sys.exit(bool(lost))


if __name__ == "__main__":
    main()
