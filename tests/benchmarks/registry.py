"""The example registry beside Debian's ``docker-registry`` (Go distribution), in a directory each.

    python -m tests.benchmarks.registry [--layer MIB] [--names N] [--rounds N] [--workers N]

Each measurement is a function of a `Contender`. The contenders take turns, on the same disk, and the
best round counts; compare the ratios. What one measurement leaves behind is the same for both
contenders. The last rows are pulls through the example proxy: see `proxy.py`.

Both sync what they acknowledge. Ours syncs each file once, and the directories above it.
``docker-registry`` 2.8 syncs each file twice but no directory, as strace shows, so a power cut may
lose the name of a file.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from registry_routes.digests import digest_of

from ..servers import EXAMPLES, debians_registry, free_port, serving
from . import proxy, store
from .clients import ask, new_name, push_blob, push_manifest, show, with_digest

SMALL, AT_ONCE = 200, 8  # requests of each kind, and clients that share them
CHUNKS, CHUNK = 500, 10_000  # how many, and how many bytes each has


class Contender(NamedTuple):
    """A registry that takes part."""

    name: str
    host: str
    pid: int
    """The process, or the parent of its workers."""

    repositories: Path
    """The directory with a directory for each repository."""

    tags: str
    """The directory, under a repository, with an entry for each tag."""


@contextmanager
def ours(directory: Path, workers: int) -> Iterator[Contender]:
    port = free_port()
    command = [sys.executable, str(EXAMPLES / "registry.py"), "--port", str(port)]
    command += ["--storage", str(directory / "ours"), "--workers", str(workers)]
    with serving(command, port, directory / "log") as host:
        repositories = directory / "ours" / "repositories"
        yield Contender("examples/registry.py", host, parent_of(port), repositories, "_tags")


@contextmanager
def debians(directory: Path) -> Iterator[Contender]:
    directory = directory / "debians"
    directory.mkdir()
    with debians_registry(directory) as host:
        repositories = directory / "data/docker/registry/v2/repositories"
        pid = parent_of(str(directory / "config.yml"))
        yield Contender("docker-registry", host, pid, repositories, "_manifests/tags")


def parent_of(command: object) -> int:
    """The oldest process with this in its command line."""
    found = subprocess.run(["pgrep", "-o", "-f", str(command)], capture_output=True, text=True)
    return int(found.stdout)


def a_second(act: Callable[[int], None]) -> float:
    """How often per second several clients do it."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda _: None, range(AT_ONCE)))  # start the threads
        begun = time.perf_counter()
        list(pool.map(act, range(SMALL)))
    return SMALL / (time.perf_counter() - begun)


def curl(*arguments: str) -> None:
    subprocess.run(["curl", "-sSf", "-o", os.devnull, *arguments], check=True)


# What is measured.


def small_pushes(to: Contender) -> float:
    name = new_name()
    return a_second(lambda _: push_blob(to.host, name, os.urandom(1000)))


def manifest_pushes(to: Contender) -> float:
    name = new_name()
    push_blob(to.host, name, b"{}")
    return a_second(lambda number: push_manifest(to.host, name, f"v{number}"))


def manifest_pulls(to: Contender) -> float:
    name = new_name()
    push_blob(to.host, name, b"{}")
    push_manifest(to.host, name, "v1")
    return a_second(lambda _: void(ask(to.host, "GET", f"/v2/{name}/manifests/v1")))


def blob_pulls(to: Contender) -> float:
    name, content = new_name(), os.urandom(1000)
    push_blob(to.host, name, content)
    path = f"/v2/{name}/blobs/{digest_of(content)}"
    return a_second(lambda _: void(ask(to.host, "GET", path)))


def void(_: object) -> None:
    pass


def layer_push(to: Contender, layer: Path) -> float:
    """MiB per second, for a layer that is new to the registry."""
    with layer.open("r+b") as file:
        file.write(os.urandom(16))
        file.seek(0)
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    begun = time.perf_counter()
    location = ask(to.host, "POST", "/v2/large/blobs/uploads/")
    curl("-T", str(layer), f"http://{to.host}{with_digest(location, digest)}")
    took = time.perf_counter() - begun
    push_blob(to.host, "large", digest.encode())
    LATEST[to.name] = digest
    return layer.stat().st_size / 2**20 / took


LATEST: dict[str, str] = {}
"""The digest of each contender's layer, by the contender's name."""


def layer_pull(to: Contender, layer: Path) -> float:
    begun = time.perf_counter()
    curl(f"http://{to.host}/v2/large/blobs/{LATEST[to.name]}")
    return layer.stat().st_size / 2**20 / (time.perf_counter() - begun)


def page(to: Contender, target: str) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    ask(to.host, "GET", target)
    return (time.perf_counter() - begun) * 1000


def chunks(to: Contender) -> tuple[float, float, float]:
    """An upload in chunks: ms for one of the first 50, ms for one of the last 50, seconds for all."""
    name, took = new_name(), []
    content = os.urandom(CHUNK * CHUNKS)
    begun = time.perf_counter()
    location = ask(to.host, "POST", f"/v2/{name}/blobs/uploads/")
    for start in range(0, len(content), CHUNK):
        sent = time.perf_counter()
        location = ask(to.host, "PATCH", location, content[start : start + CHUNK])
        took.append(time.perf_counter() - sent)
    ask(to.host, "PUT", with_digest(location, digest_of(content)))
    total = time.perf_counter() - begun
    return sum(took[:50]) / 50 * 1000, sum(took[-50:]) / 50 * 1000, total


def memory(of: Contender) -> float:
    """The resident memory of its processes in MiB; what several processes share counts once."""
    total = 0
    for pid in [of.pid, *children_of(of.pid)]:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(rollup.partition("\nPss:")[2].split()[0])
    return total / 1024


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


# The content of the lists. It is copied on the disk, which is faster than pushes.


def fill(contender: Contender, count: int) -> None:
    """Make `count` repositories, and `count` tags in one of them."""
    for name in "listed/r", "tagged":
        push_blob(contender.host, name, b"{}")
        push_manifest(contender.host, name, "v")
    for parent, name in (
        (contender.repositories / "listed", "r"),
        (contender.repositories / "tagged" / contender.tags, "v"),
    ):
        for number in range(count - 1):
            copy = parent / f"{name}{number:06}"
            if (parent / name).is_dir():
                shutil.copytree(parent / name, copy, copy_function=os.link)
            else:
                os.link(parent / name, copy)


# The table.


class Row(NamedTuple):
    """A measurement: rates, of which the highest counts, or times, of which the lowest does."""

    title: str
    unit: str
    measure: Callable[[Contender], float]

    @property
    def is_rate(self) -> bool:
        return self.unit.endswith("/s")


def rows(layer: Path, names: int) -> Iterator[Row]:
    yield Row("small blobs pushed, 8 at once", "blobs/s", small_pushes)
    yield Row("small blobs pulled, 8 at once", "blobs/s", blob_pulls)
    yield Row("manifests pushed, 8 at once", "manifests/s", manifest_pushes)
    yield Row("manifests pulled, 8 at once", "manifests/s", manifest_pulls)
    size = f"{layer.stat().st_size // 2**20} MiB"
    yield Row(f"{size} pushed", "MiB/s", lambda to: layer_push(to, layer))
    yield Row(f"{size} pulled", "MiB/s", lambda to: layer_pull(to, layer))
    for n in 10, 1000:
        for title, path, last in (
            ("repositories", "/v2/_catalog", "listed/r"),
            ("tags", "/v2/tagged/tags/list", "v"),
        ):
            middle = f"{last}{names // 2:06}"
            for where, query in ("first", ""), ("middle", f"&last={middle}"):
                target = f"{path}?n={n}{query}"
                yield Row(
                    f"{title}, n={n} of {names:,}, {where} page",
                    "ms",
                    lambda to, target=target: page(to, target),  # type: ignore[misc]
                )


def chunk_rows(results: dict[str, list[tuple[float, float, float]]]) -> Iterator[list[str]]:
    for position, (title, unit) in enumerate(
        (
            (f"one of the first 50 of {CHUNKS} chunks", "ms"),
            ("one of the last 50", "ms"),
            ("all", "s"),
        )
    ):
        yield cells(
            title, unit, [min(one[position] for one in found) for found in results.values()]
        )


def cells(title: str, unit: str, values: list[float]) -> list[str]:
    shown = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
    if len(values) == 2:
        quotient = values[0] / values[1]
        shown.append(f"{quotient if unit.endswith('/s') else 1 / quotient:.2f}")
    return [title, unit, *shown]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.registry")
    parser.add_argument("--layer", type=int, default=1024, help="MiB of the large layer")
    parser.add_argument("--names", type=int, default=20_000, help="repositories, and tags")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of ours")
    parser.add_argument(
        "--s3", action="store_true", help="only count the requests to an object store: see store.py"
    )
    options = parser.parse_args()
    if options.s3:
        store.compare()
        return
    if not shutil.which("curl"):
        sys.exit("curl is not installed")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contenders = [stack.enter_context(ours(directory, options.workers))]
        if shutil.which("docker-registry"):
            contenders.append(stack.enter_context(debians(directory)))
        else:
            print("docker-registry is not installed: it takes no part")
        layer = directory / "layer"
        with layer.open("wb") as file:
            for _ in range(options.layer):
                file.write(os.urandom(2**20))
        for contender in contenders:
            fill(contender, options.names)

        heads = ["", "", *(one.name for one in contenders)]
        heads += ["times as good"] if len(contenders) == 2 else []
        show(heads)
        show(["---"] * len(heads))
        for row in rows(layer, options.names):
            found = [[row.measure(one) for one in contenders] for _ in range(options.rounds)]
            best = max if row.is_rate else min
            show(cells(row.title, row.unit, [best(of) for of in zip(*found, strict=True)]))
        uploads: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(options.rounds):
            for one in contenders:
                uploads.setdefault(one.name, []).append(chunks(one))
        for line in chunk_rows(uploads):
            show(line)
        used = [memory(contender) for contender in contenders]
        show(cells("the memory of all processes afterwards", "MiB", used))
        print(f"\nThe best of {options.rounds} rounds; {options.workers} workers of ours.")
    proxy.compare(rounds=options.rounds)


if __name__ == "__main__":
    main()
