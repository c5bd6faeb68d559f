"""The benchmark runs, and its contenders give correct answers. Speed is not tested."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from registry_routes.routes import DIALECTS

from .benchmarks.hostile import SHAPES

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_benchmark_runs(tmp_path: Path) -> None:
    numbers, chart = tmp_path / "numbers.json", tmp_path / "chart.svg"
    command = [sys.executable, "-m", "tests.benchmarks", "--rounds", "1"]
    run = subprocess.run(
        [*command, "--json", str(numbers), "--svg", str(chart)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    tables = json.loads(numbers.read_text())["nanoseconds"]
    assert len(tables) == 7
    for title, rows in tables.items():
        assert title in run.stdout
        for row, times in rows.items():
            assert row in run.stdout
            assert {"alone", "registry_routes"} & {who.partition(",")[0] for who in times}
            assert all(took > 0 for took in times.values())
    texts = [element.text for element in ElementTree.parse(chart).iter() if element.text]
    assert "registry_routes" in texts


@pytest.mark.slow
def test_hostile_benchmark_runs() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.hostile"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(" ms") == len(DIALECTS) * len(SHAPES)
