"""Every Python block of the README is run, and its commands are the ones that work."""

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
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_blocks_work_one_after_another() -> None:
    """With prompts it is a doctest, without it is run; a block may use what those above define."""
    defined: dict[str, object] = {"__name__": "readme"}
    blocks = [text for language, text in BLOCKS if language == "python"]
    assert len(blocks) >= 11
    for block in blocks:
        line = README[: README.index(block)].count("\n")
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, defined, "README", "README.md", line)
            assert test.examples
            assert not doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed
        else:
            exec(compile("\n" * line + block, "README.md", "exec"), defined)


def test_there_are_no_blocks_but_those_that_are_run() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "sh", "console"}
    assert README.count("```") == 2 * len(BLOCKS)


def test_what_the_command_line_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [text for language, text in BLOCKS if language == "console"]
    commands = re.findall(r"^\$ registry-routes (.*)\n((?:[^$].*\n)+)", block, re.MULTILINE)
    assert len(commands) == 4
    for command, printed in commands:
        main(command.split())
        captured = capsys.readouterr()
        assert captured.out + captured.err == printed


def test_the_examples_that_are_named_are_there_and_take_the_options_shown() -> None:
    shown = re.findall(r"python examples/(\w+\.py)( collect)?(.*)", README)
    for name, subcommand, options in shown:
        command = [sys.executable, str(ROOT / "examples" / name), *subcommand.split(), "--help"]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        for option in re.findall(r"--[a-z]+", options):
            assert option in run.stdout


def test_the_command_for_the_registry_is_the_examples_own() -> None:
    command = "python examples/registry.py --host 127.0.0.1 --port 5000 --storage ./registry-data"
    assert any(command in text for language, text in BLOCKS if language == "sh")
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / "registry.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for default in "127.0.0.1", "5000", "./registry-data":
        assert f"(default: {default})" in run.stdout


def test_ci_runs_the_readmes_test_command_as_written() -> None:
    commands = [text.strip() for language, text in BLOCKS if language == "sh"]
    tests = [text for text in commands if "pytest" in text]
    assert len(tests) == 2
    for command in tests:
        assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", registry_routes.__all__)
def test_a_public_name_says_what_it_is_and_shows_it(name: str) -> None:
    """Doctests are run (``--doctest-modules``); data and modules are shown elsewhere."""
    public = getattr(registry_routes, name)
    if isinstance(public, type) or callable(public):
        assert ">>> " in (public.__doc__ or "")


@pytest.mark.slow
def test_the_shell_commands_work_one_after_another(tmp_path: Path) -> None:
    """As they stand there; but nothing is installed, the image is from here, the ports are free."""
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed (Debian: apt install skopeo)")
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    oci_layout.write(tmp_path / "image", [10_000], ["amd64"])
    blocks = [text for language, text in BLOCKS if language == "sh"]
    ports: defaultdict[str, int] = defaultdict(free_port)
    ran = []
    with ExitStack() as servers:
        for line in "".join(blocks).splitlines():
            command = line.rpartition(" && ")[2]
            served = (".venv/bin/python examples/", ".venv/bin/registry-routes serve")
            if not command.startswith(("skopeo", *served)):
                continue  # tests, benchmarks, what wants an account
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
    assert len(ran) == 12
    assert files_of(tmp_path / "busybox-copy") == files_of(tmp_path / "image")
    assert files_of(tmp_path / "busybox") == files_of(tmp_path / "image")
