"""The example registry beside Debian's ``docker-registry`` (Go distribution): memory, throughput.

    python -m tests.benchmarks.registry [--layer MIB] [--blob MIB] [--rounds N] [--workers N]

A layer of 1 GiB is pushed and pulled, and the most memory that a worker has held is printed. Then
one client and sixteen push and pull blobs, the registries taking turns, on the same disk. Each
client is a `curl`. The best of the rounds counts; read the ratios.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import requests

from registry_routes import resolve_location

from ..servers import EXAMPLES, debians_registry, free_port, serving

OURS, DEBIANS = "examples/registry.py", "docker-registry"


def make_blob(path: Path, size: int) -> str:
    """A file of `size` bytes that do not compress; its digest."""
    hashed = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // 2**20):
            block = os.urandom(2**20)
            file.write(block)
            hashed.update(block)
    return f"sha256:{hashed.hexdigest()}"


def curl(*arguments: str) -> None:
    subprocess.run(["curl", "-sSf", "-o", os.devnull, *arguments], check=True)


def push(root: str, name: str, path: Path, digest: str) -> None:
    uploads = f"{root}/v2/{name}/blobs/uploads/"
    location = requests.post(uploads, timeout=60).headers["Location"]
    url = resolve_location(uploads, location, digest=digest)
    curl("-X", "PUT", "-H", "Content-Type: application/octet-stream", "-T", str(path), url)


def pull(root: str, name: str, digest: str) -> None:
    curl(f"{root}/v2/{name}/blobs/{digest}")


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def most_memory(pid: int) -> float:
    """The most MiB that a process has had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def pids_of(command: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", command], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


def throughput(
    root: str, files: list[tuple[Path, str]], tag: str, clients: int
) -> dict[str, float]:
    """MiB a second of all clients together."""
    total = sum(path.stat().st_size for path, _ in files[:clients]) / 2**20
    took = {}
    with ThreadPoolExecutor(clients) as pool:
        for what in "push", "pull":
            begun = time.perf_counter()
            jobs = [
                pool.submit(push, root, f"{tag}/r{i}", path, digest)
                if what == "push"
                else pool.submit(pull, root, f"{tag}/r{i}", digest)
                for i, (path, digest) in enumerate(files[:clients])
            ]
            for job in jobs:
                job.result()
            took[what] = total / (time.perf_counter() - begun)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.registry")
    parser.add_argument("--layer", type=int, default=1024, help="MiB of the one large layer")
    parser.add_argument("--blob", type=int, default=64, help="MiB of each client's blob")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if not shutil.which("curl"):
        sys.exit("curl is not installed")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        command = [sys.executable, str(EXAMPLES / "registry.py"), "--port", str(port)]
        command += ["--storage", str(directory / "ours"), "--workers", str(options.workers)]
        ours = stack.enter_context(serving(command, port, directory / "log"))
        (master,) = [pid for pid in pids_of(f"port {port}") if children_of(pid)]
        roots = {OURS: f"http://{ours}"}
        if shutil.which(DEBIANS):
            (directory / "debians").mkdir()
            roots[DEBIANS] = "http://" + stack.enter_context(
                debians_registry(directory / "debians")
            )
        else:
            print(f"{DEBIANS} is not installed: it takes no part")

        layer = directory / "layer"
        digest = make_blob(layer, options.layer * 2**20)
        push(roots[OURS], "large", layer, digest)
        pull(roots[OURS], "large", digest)
        memory = max(map(most_memory, children_of(master)))
        print(f"a layer of {options.layer} MiB: a worker held {memory:.0f} MiB at most")
        layer.unlink()

        files = []
        for i in range(16):
            path = directory / f"blob-{i}"
            files.append((path, make_blob(path, options.blob * 2**20)))
        best: dict[tuple[str, int], dict[str, float]] = {}
        for number in range(options.rounds):
            for clients in 1, 16:
                for who, root in roots.items():
                    # Each round's blobs are pushed to repositories, and for the first time to the
                    # registry, that do not have them.
                    measured = throughput(root, files, f"x{number}c{clients}", clients)
                    kept = best.setdefault((who, clients), measured)
                    for what, rate in measured.items():
                        kept[what] = max(kept[what], rate)
        print(f"\nMiB a second, blobs of {options.blob} MiB, {options.workers} workers of ours")
        for clients in 1, 16:
            for what in "push", "pull":
                cells = [f"{who} {best[who, clients][what]:,.0f}" for who in roots]
                if len(cells) == 2:
                    ratio = best[OURS, clients][what] / best[DEBIANS, clients][what]
                    cells.append(f"ratio {ratio:.2f}")
                print(f"{what}, {clients:>2} at once: {', '.join(cells)}")


if __name__ == "__main__":
    main()
