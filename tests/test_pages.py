"""Every block of every page is run, and every link leads somewhere."""

import doctest
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import pytest

from registry_routes.__main__ import main

from . import oci_layout
from .servers import EXAMPLES, files_of, free_port, serving

ROOT = Path(__file__).parent.parent
# Files alone: a checkout may have a virtual environment in it.
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for directory in (ROOT, EXAMPLES, ROOT / "tests" / "benchmarks")
    for path in sorted(directory.glob("*.md"))
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """The lines of the shell blocks of all pages, the README's first."""
    pages = sorted(PAGES, key=lambda page: page != "README.md")
    text = "".join(block for page in pages for block in blocks(page, "sh"))
    return text.replace("\\\n", " ").splitlines()


def test_expected_pages_exist() -> None:
    expected = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    expected |= {"examples/README.md", "examples/testing.md", "tests/benchmarks/README.md"}
    assert expected == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str) -> None:
    """A block with prompts is a doctest; any block may use what those above it define."""
    defined: dict[str, object] = {"__name__": "page"}
    for block in blocks(page, "python"):
        line = PAGES[page][: PAGES[page].index(block)].count("\n")
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, defined, page, page, line)
            assert test.examples
            assert not doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed
            defined |= test.globs
        else:
            exec(compile("\n" * line + block, page, "exec"), defined)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_names_its_language(page: str) -> None:
    languages = re.findall(r"^```(\w*)$", PAGES[page], re.MULTILINE)
    assert set(languages[::2]) <= {"python", "sh", "console", "toml", "nginx"}
    assert set(languages[1::2]) <= {""}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_files_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        at = (ROOT / page).parent / path if path else ROOT / page
        assert "://" in target or at.exists(), target
        if anchor and "://" not in target:
            headings = re.findall(r"^#+ (.*)$", at.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings]
            assert anchor in anchors, target
    named = re.findall(r"`((?:tests|examples|registry_routes|\.\w+)/[\w./-]+)`", PAGES[page])
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_output_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("README.md", "console")
    shown = re.findall(r"^\$ registry-routes (.*)\n((?:[^$].*\n)+)", block, re.MULTILINE)
    assert len(shown) == block.count("$ ")
    for command, printed in shown:
        main(command.split())
        captured = capsys.readouterr()
        assert captured.out + captured.err == printed


@pytest.mark.slow
def test_shell_commands_run(tmp_path: Path) -> None:
    """As written, except that nothing is installed, the image is local and the ports are free."""
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed (Debian: apt install skopeo)")
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    oci_layout.write(tmp_path / "image", [10_000], ["amd64"])
    ports: defaultdict[str, int] = defaultdict(free_port)
    ran = []
    with ExitStack() as servers:
        for command in commands():
            served = (".venv/bin/python examples/", ".venv/bin/registry-routes serve")
            if not command.startswith(("skopeo", *served)):
                continue  # tests, benchmarks, and what needs an account
            command = command.replace("docker://docker.io/library/busybox", "oci:image:v1")
            command = re.sub(r"\b50\d\d\b", lambda written: str(ports[written[0]]), command)
            arguments = shlex.split(command)
            if any(word in command for word in ("skopeo", "client.py", "collect")):
                subprocess.run(arguments, cwd=tmp_path, timeout=60, check=True)
            else:
                if "--port" not in arguments:
                    arguments += ["--port", str(free_port())]
                port = int(arguments[arguments.index("--port") + 1])
                log = tmp_path / f"{port}.log"
                servers.enter_context(serving(arguments, port, log, cwd=tmp_path))
            ran.append(command)
    assert len(ran) >= 10
    assert files_of(tmp_path / "busybox-copy") == files_of(tmp_path / "image")
    assert files_of(tmp_path / "busybox") == files_of(tmp_path / "image")
