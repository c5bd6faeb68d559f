"""The speed of the example registry and of Debian's ``docker-registry`` (Go distribution).

    python -m tests.benchmarks.registry [--layer MIB] [--names N] [--rounds N] [--workers N]

Each measurement is a function of a `Contender`. The contenders take turns, on the same disk, and the
best round counts; compare the ratios. Each measurement leaves the same content behind in both
contenders. The last rows are pulls through the example proxy: see `proxy.py`.

Both sync acknowledged content. Ours syncs each file once, and the directories above it.
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
from .clients import add_digest, ask, new_name, push_blob, push_manifest, show

SMALL, AT_ONCE = 200, 8  # requests of each kind, and clients that share them
CHUNKS, CHUNK = 500, 10_000  # the number of chunks, and the bytes of each


class Contender(NamedTuple):
    """A registry that takes part."""

    name: str
    host: str
    pid: int
    """The process, or the parent of its workers."""

    repositories: Path
    """The directory that contains the repositories."""

    tags: str
    """The directory within a repository that contains the tags."""


@contextmanager
def serve_ours(directory: Path, workers: int) -> Iterator[Contender]:
    port = free_port()
    command = [sys.executable, str(EXAMPLES / "registry.py"), "--port", str(port)]
    command += ["--storage", str(directory / "ours"), "--workers", str(workers)]
    with serving(command, port, directory / "log") as host:
        repositories = directory / "ours" / "repositories"
        yield Contender("examples/registry.py", host, find_parent(port), repositories, "_tags")


@contextmanager
def serve_debians(directory: Path) -> Iterator[Contender]:
    directory = directory / "debians"
    directory.mkdir()
    with debians_registry(directory) as host:
        repositories = directory / "data/docker/registry/v2/repositories"
        pid = find_parent(str(directory / "config.yml"))
        yield Contender("docker-registry", host, pid, repositories, "_manifests/tags")


def find_parent(command: object) -> int:
    """Return the oldest process that has this in its command line."""
    found = subprocess.run(["pgrep", "-o", "-f", str(command)], capture_output=True, text=True)
    return int(found.stdout)


def measure_rate(act: Callable[[int], None]) -> float:
    """Return how many calls a second several clients make."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda _: None, range(AT_ONCE)))  # start the threads
        begun = time.perf_counter()
        list(pool.map(act, range(SMALL)))
    return SMALL / (time.perf_counter() - begun)


def curl(*arguments: str) -> None:
    subprocess.run(["curl", "-sSf", "-o", os.devnull, *arguments], check=True)


# The measurements.


def time_small_pushes(to: Contender) -> float:
    name = new_name()
    return measure_rate(lambda _: push_blob(to.host, name, os.urandom(1000)))


def time_manifest_pushes(to: Contender) -> float:
    name = new_name()
    push_blob(to.host, name, b"{}")
    return measure_rate(lambda number: push_manifest(to.host, name, f"v{number}"))


def time_manifest_pulls(to: Contender) -> float:
    name = new_name()
    push_blob(to.host, name, b"{}")
    push_manifest(to.host, name, "v1")
    return measure_rate(lambda _: ignore(ask(to.host, "GET", f"/v2/{name}/manifests/v1")))


def time_blob_pulls(to: Contender) -> float:
    name, content = new_name(), os.urandom(1000)
    push_blob(to.host, name, content)
    path = f"/v2/{name}/blobs/{digest_of(content)}"
    return measure_rate(lambda _: ignore(ask(to.host, "GET", path)))


def ignore(_: object) -> None:
    pass


def time_layer_push(to: Contender, layer: Path) -> float:
    """Push a layer that is new to the registry, and return the MiB per second."""
    with layer.open("r+b") as file:
        file.write(os.urandom(16))
        file.seek(0)
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    begun = time.perf_counter()
    location = ask(to.host, "POST", "/v2/large/blobs/uploads/")
    curl("-T", str(layer), f"http://{to.host}{add_digest(location, digest)}")
    took = time.perf_counter() - begun
    push_blob(to.host, "large", digest.encode())
    LATEST[to.name] = digest
    return layer.stat().st_size / 2**20 / took


LATEST: dict[str, str] = {}
"""The digest of each contender's layer, by the contender's name."""


def time_layer_pull(to: Contender, layer: Path) -> float:
    begun = time.perf_counter()
    curl(f"http://{to.host}/v2/large/blobs/{LATEST[to.name]}")
    return layer.stat().st_size / 2**20 / (time.perf_counter() - begun)


def time_page(to: Contender, target: str) -> float:
    """Return the milliseconds of a request for a page of a list."""
    begun = time.perf_counter()
    ask(to.host, "GET", target)
    return (time.perf_counter() - begun) * 1000


def time_chunks(to: Contender) -> tuple[float, float, float]:
    """Upload in chunks. Return the ms of an early and of a late chunk, and the seconds of all."""
    name, took = new_name(), []
    content = os.urandom(CHUNK * CHUNKS)
    begun = time.perf_counter()
    location = ask(to.host, "POST", f"/v2/{name}/blobs/uploads/")
    for start in range(0, len(content), CHUNK):
        sent = time.perf_counter()
        location = ask(to.host, "PATCH", location, content[start : start + CHUNK])
        took.append(time.perf_counter() - sent)
    ask(to.host, "PUT", add_digest(location, digest_of(content)))
    total = time.perf_counter() - begun
    return sum(took[:50]) / 50 * 1000, sum(took[-50:]) / 50 * 1000, total


def measure_memory(of: Contender) -> float:
    """Return the resident memory of its processes in MiB. Shared memory counts once."""
    total = 0
    for pid in [of.pid, *list_children(of.pid)]:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(rollup.partition("\nPss:")[2].split()[0])
    return total / 1024


def list_children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


# The content of the lists, which is copied on the disk, as that is faster than pushes.


def fill(contender: Contender, count: int) -> None:
    """Make `count` repositories, and `count` tags in one of them."""
    for name in "listed/r", "tagged":
        push_blob(contender.host, name, b"{}")
        push_manifest(contender.host, name, "v")
    catalog = contender.repositories.parent / "catalog"  # ours has one
    for parent, name in (
        *([(catalog, "listed@r")] if catalog.exists() else []),
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
    """A measurement: of rates, the highest counts; of times, the lowest."""

    title: str
    unit: str
    measure: Callable[[Contender], float]

    @property
    def is_rate(self) -> bool:
        return self.unit.endswith("/s")


def rows(layer: Path, names: int) -> Iterator[Row]:
    yield Row("small blobs pushed, 8 at once", "blobs/s", time_small_pushes)
    yield Row("small blobs pulled, 8 at once", "blobs/s", time_blob_pulls)
    yield Row("manifests pushed, 8 at once", "manifests/s", time_manifest_pushes)
    yield Row("manifests pulled, 8 at once", "manifests/s", time_manifest_pulls)
    size = f"{layer.stat().st_size // 2**20} MiB"
    yield Row(f"{size} pushed", "MiB/s", lambda to: time_layer_push(to, layer))
    yield Row(f"{size} pulled", "MiB/s", lambda to: time_layer_pull(to, layer))
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
                    lambda to, target=target: time_page(to, target),  # type: ignore[misc]
                )


def format_chunk_rows(results: dict[str, list[tuple[float, float, float]]]) -> Iterator[list[str]]:
    for position, (title, unit) in enumerate(
        (
            (f"one of the first 50 of {CHUNKS} chunks", "ms"),
            ("one of the last 50", "ms"),
            ("all", "s"),
        )
    ):
        yield format_cells(
            title, unit, [min(times[position] for times in found) for found in results.values()]
        )


def format_cells(title: str, unit: str, values: list[float]) -> list[str]:
    shown = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
    if len(values) == 2:
        quotient = values[0] / values[1]
        shown.append(f"{quotient if unit.endswith('/s') else 1 / quotient:.2f}")
    return [title, unit, *shown]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.registry")
    parser.add_argument("--layer", type=int, default=1024, help="MiB of the large layer")
    parser.add_argument(
        "--names", type=int, default=20_000, help="the number of repositories, and of tags"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="workers of ours")
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
        contenders = [stack.enter_context(serve_ours(directory, options.workers))]
        if shutil.which("docker-registry"):
            contenders.append(stack.enter_context(serve_debians(directory)))
        else:
            print("docker-registry is not installed: it takes no part")
        layer = directory / "layer"
        with layer.open("wb") as file:
            for _ in range(options.layer):
                file.write(os.urandom(2**20))
        for contender in contenders:
            fill(contender, options.names)

        heads = ["", "", *(contender.name for contender in contenders)]
        heads += ["times as good"] if len(contenders) == 2 else []
        show(heads)
        show(["---"] * len(heads))
        for row in rows(layer, options.names):
            found = [[row.measure(who) for who in contenders] for _ in range(options.rounds)]
            best = max if row.is_rate else min
            show(format_cells(row.title, row.unit, [best(of) for of in zip(*found, strict=True)]))
        uploads: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(options.rounds):
            for contender in contenders:
                uploads.setdefault(contender.name, []).append(time_chunks(contender))
        for line in format_chunk_rows(uploads):
            show(line)
        used = [measure_memory(contender) for contender in contenders]
        show(format_cells("the memory of all processes afterwards", "MiB", used))
        print(f"\nThe best of {options.rounds} rounds; {options.workers} workers of ours.")
    proxy.compare(rounds=options.rounds)


if __name__ == "__main__":
    main()
