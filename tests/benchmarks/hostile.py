"""The time that hostile paths take, which must grow in proportion to their length.

    python -m tests.benchmarks.hostile

For each hostile shape, dialect and length, this prints the time of a `match`, the best of several
interleaved rounds. It also prints how the time grows from each length to the next, which is eight
times as long. Growth near 8 is linear, and growth near 64 is quadratic.
"""

import gc
import time
from collections.abc import Callable
from contextlib import suppress

from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

from registry_routes import RegistryMap
from registry_routes.routes import DIALECTS

SHAPES: dict[str, Callable[[int], str]] = {
    '"a/"*n+"!"': lambda n: "a/" * (n // 2) + "!",
    '"a"*n+"!"': lambda n: "a" * n + "!",
    '"a/manifests/"*n+"!"': lambda n: "a/manifests/" * (n // 12) + "!",
    '"a-"*n+"!"': lambda n: "a-" * (n // 2) + "!",
    '"a__"*n': lambda n: "a__" * (n // 3),
    '"a"+"-"*n': lambda n: "a" + "-" * n,
    '"a/blobs/uploads/"*n+"!"': lambda n: "a/blobs/uploads/" * (n // 16) + "!",
    '"/"*n': lambda n: "/" * n,
    '"../"*n': lambda n: "../" * (n // 3),
    '"a/"*n+"tags/list"': lambda n: "a/" * (n // 2) + "tags/list",
    '"a/"*n+"tags/list/"': lambda n: "a/" * (n // 2) + "tags/list/",
}
LENGTHS = [1024, 8 * 1024, 64 * 1024]
ROUNDS = 7


def time_match(adapter: MapAdapter, path: str) -> float:
    start = time.perf_counter()
    with suppress(HTTPException):
        adapter.match(path, "GET")
    return time.perf_counter() - start


def main() -> None:
    cases = [
        (dialect, shape, [f"/v2/{make(length)}" for length in LENGTHS])
        for dialect in DIALECTS.values()
        for shape, make in SHAPES.items()
    ]
    adapters = {name: RegistryMap(dialect=dialect).bind("h") for name, dialect in DIALECTS.items()}
    best: dict[tuple[str, str, int], float] = {}
    gc.disable()
    for _ in range(ROUNDS):
        for dialect, shape, paths in cases:
            for length, path in zip(LENGTHS, paths, strict=True):
                key = dialect.name, shape, length
                best[key] = min(best.get(key, 1e9), time_match(adapters[dialect.name], path))
    print(f"{'dialect':<11}{'path after /v2/':<34}{'1 KiB':>9}{'8 KiB':>9}{'64 KiB':>10}   growth")
    for dialect, shape, _ in cases:
        times = [best[dialect.name, shape, length] for length in LENGTHS]
        shown = "".join(
            f"{t * 1e3:>{width}.3f}" for t, width in zip(times, (9, 9, 10), strict=True)
        )
        print(
            f"{dialect.name:<11}{shape:<34}{shown} ms"
            f"{times[1] / times[0]:>6.1f}{times[2] / times[1]:>6.1f}"
        )


if __name__ == "__main__":
    main()
