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

import registry_routes
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
README = PAGES["README.md"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """The lines of the shell blocks of all pages, the README's first."""
    pages = sorted(PAGES, key=lambda page: page != "README.md")
    text = "".join(block for page in pages for block in blocks(page, "sh"))
    return text.replace("\\\n", " ").splitlines()


def test_the_pages_that_readers_expect_exist() -> None:
    expected = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    assert expected | {"examples/README.md", "tests/benchmarks/README.md"} == set(PAGES)


def test_the_readme_can_be_read_to_its_end() -> None:
    assert README.count("\n") <= 240


@pytest.mark.parametrize("page", PAGES)
def test_the_python_blocks_work_one_after_another(page: str) -> None:
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
def test_every_block_is_run_or_is_the_content_of_a_file(page: str) -> None:
    languages = re.findall(r"^```(\w*)$", PAGES[page], re.MULTILINE)
    assert set(languages) <= {"python", "sh", "console", "toml", "nginx", ""}
    assert languages[::2].count("") == 0
    assert languages[1::2] == [""] * (len(languages) // 2)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_repository_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        at = (ROOT / page).parent / path if path else ROOT / page
        assert at.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", at.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings]
            assert anchor in anchors, target


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    named = re.findall(r"`((?:tests|examples|registry_routes|\.\w+)/[\w./-]+)`", PAGES[page])
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_output_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("README.md", "console")
    shown = re.findall(r"^\$ registry-routes (.*)\n((?:[^$].*\n)+)", block, re.MULTILINE)
    assert len(shown) == block.count("$ ")
    for command, printed in shown:
        main(command.split())
        captured = capsys.readouterr()
        assert captured.out + captured.err == printed


@pytest.mark.slow
def test_the_examples_exist_and_accept_the_options_shown() -> None:
    for name, subcommand, options in re.findall(
        r"python examples/(\w+\.py)( collect)?(.*)", "\n".join(commands())
    ):
        command = [sys.executable, str(EXAMPLES / name), *subcommand.split(), "--help"]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        for option in re.findall(r"--[a-z-]+", options):
            assert option in run.stdout


def test_the_command_for_the_registry_has_the_examples_own_defaults() -> None:
    command = "python examples/registry.py --host 127.0.0.1 --port 5000 --storage ./registry-data"
    assert any(command in line for line in commands())
    run = subprocess.run(
        [sys.executable, EXAMPLES / "registry.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for default in "127.0.0.1", "5000", "./registry-data":
        assert f"(default: {default})" in run.stdout


def test_ci_runs_the_test_commands_as_they_are_written() -> None:
    tests = [block for block in blocks("README.md", "sh") if "pytest" in block]
    tests += [line + "\n" for line in commands() if " -m pytest " in line]
    assert len(tests) == 5  # those of the README, whole and by line, and three of CONTRIBUTING.md
    ci = (ROOT / ".ci" / "run").read_text()
    assert all(f"\n{command}" in ci for command in tests)


@pytest.mark.parametrize("name", registry_routes.__all__)
def test_a_public_name_says_what_it_is_and_shows_it(name: str) -> None:
    """Doctests are run (``--doctest-modules``); data and modules are shown elsewhere."""
    public = getattr(registry_routes, name)
    if isinstance(public, type) or callable(public):
        assert ">>> " in (public.__doc__ or "")


@pytest.mark.slow
def test_the_shell_commands_work_one_after_another(tmp_path: Path) -> None:
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
            if any(one in command for one in ("skopeo", "client.py", "collect")):
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
