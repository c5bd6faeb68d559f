"""The speed of routing, compared with other routers, in one process.

    python -m tests.benchmarks [--json FILE] [--svg FILE] [--rounds N]

Each contender must give correct answers before it is timed. Then all take turns on short pieces of
work, without garbage collection. The shortest time for each piece counts, because a shared machine
is noisy. Read the ratios, not the nanoseconds. The extra `bench` installs the other routers. Go
takes part if `go` and Debian's `golang-github-gorilla-mux-dev` are installed.
"""

import argparse
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter
from werkzeug.test import create_environ

from registry_routes import RegistryMap

from . import chart, contenders, hostile
from .contenders import match_or_none
from .traffic import SHARES, environ_of, mix

Calls = list[tuple[Any, ...]]
Loop = Callable[[Callable[..., Any], Calls], None]
Piece = tuple[Loop, Callable[..., Any], Calls]
Times = dict[str, dict[str, float]]
"""The nanoseconds of a call, by piece of work and contender."""

BY_HAND = "a hand-written expression and a dict"
OURS = "registry_routes"
PLAIN = "the same rules in a plain Werkzeug map"
GO = "gorilla/mux (Go)"
WHOLE = "whole WSGI requests, to a view that answers a constant"


def time_pieces(pieces: dict[str, dict[str, Piece]], rounds: int) -> Times:
    """Return the shortest time of each contender for each piece, while they take turns."""
    best: Times = {
        piece: dict.fromkeys(by_contender, float("inf")) for piece, by_contender in pieces.items()
    }
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for piece, by_contender in pieces.items():
                for who, (loop, call, calls) in by_contender.items():
                    start = time.perf_counter()
                    loop(call, calls)
                    took = (time.perf_counter() - start) / len(calls) * 1e9
                    best[piece][who] = min(best[piece][who], took)
    finally:
        gc.enable()
    return best


# These loops call as programs do: `match(path, method)`, not `match(*arguments)`, which is slower.


def match_loop(call: Callable[..., Any], calls: Calls) -> None:
    for path, method in calls:
        try:
            call(path, method)
        except HTTPException:
            continue


def environ_loop(call: Callable[..., Any], calls: Calls) -> None:
    for (environ,) in calls:
        try:
            call(environ)
        except HTTPException:
            continue


def f_string_loop(call: Callable[..., Any], calls: Calls) -> None:
    for name, tag in calls:
        call(name, tag)


def build_loop(call: Callable[..., Any], calls: Calls) -> None:
    for endpoint, values in calls:
        call(endpoint, values, force_external=True)


def url_for_loop(call: Callable[..., Any], calls: Calls) -> None:
    for endpoint, values in calls:
        call(endpoint, **values, _external=True)


def wsgi_loop(app: Callable[..., Any], calls: Calls) -> None:
    for (environ,) in calls:
        b"".join(app(dict(environ), _start_response))


def _start_response(status: str, headers: Any, exc_info: Any = None) -> None: ...


def make_routers() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {
        BY_HAND: contenders.by_hand,
        OURS: contenders.ours.bind("registry.example.com").match,
        PLAIN: contenders.plain.bind("registry.example.com").match,
    }
    if find_spec("falcon"):
        found["Falcon, unrolled, no grammar"] = contenders.make_falcon_router()
    if find_spec("starlette"):
        found["Starlette, no grammar"] = contenders.make_starlette_router()
    return found


def make_binders() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {
        BY_HAND: contenders.by_hand_environ,
        OURS: lambda environ: contenders.ours.bind_to_environ(environ).match(),
        PLAIN: lambda environ: contenders.plain.bind_to_environ(environ).match(),
    }
    if find_spec("flask"):
        found["Flask's URL adapter, the same rules"] = contenders.make_flask_binder()
    return found


def time_matches(rounds: int) -> Times:
    requests = mix()
    binders = make_binders()
    pieces: dict[str, dict[str, Piece]] = {}
    for who, match in make_routers().items():
        check(who, match_or_none(match), [(r, (r.path, r.method)) for r in requests])
        for kind in SHARES:
            calls: Calls = [(r.path, r.method) for r in requests if r.kind == kind]
            pieces.setdefault(kind, {})[who] = match_loop, match, calls
    for who, match in binders.items():
        check(who, match_or_none(match), [(r, (environ_of(r),)) for r in requests])
        for kind in SHARES:
            environs: Calls = [(environ_of(r),) for r in requests if r.kind == kind]
            pieces.setdefault(f"{kind} from an environ", {})[who] = environ_loop, match, environs
    return time_pieces(pieces, rounds)


def check(who: str, match: Callable[..., Any], requests: Iterable[Any]) -> None:
    """Raise an error if answers are wrong. (A contender without a grammar may match a miss.)"""
    for request, arguments in requests:
        answer = match(*arguments)
        if request.endpoint is None:
            assert answer is None or "no grammar" in who, (who, request, answer)
            continue
        assert answer is not None, (who, request)
        assert answer[0] == request.endpoint, (who, request, answer)
        given = "/".join(answer[1].values())
        assert given == "/".join(request.values.values()), (who, request, answer)


def time_whole_requests(rounds: int) -> Times:
    """Time whole requests, in process, to views that answer a constant."""
    requests = mix()
    environs = [create_environ(r.path, method=r.method) for r in requests]
    by_contender: dict[str, Piece] = {}
    for who, app in contenders.make_apps().items():
        statuses: list[str] = []
        for request, environ in zip(requests, environs, strict=True):
            body = b"".join(app(dict(environ), lambda status, *_: statuses.append(status)))
            if request.endpoint is not None:
                assert statuses[-1] == "200 OK", (who, request)
                assert body == (b"" if request.method == "HEAD" else b"ok"), (who, request)
            else:
                assert statuses[-1][:2] == "40" or "no grammar" in who, (who, request)
        by_contender[who] = wsgi_loop, app, [(environ,) for environ in environs]
    return time_pieces({"the mix": by_contender}, rounds)


def time_builds(rounds: int) -> Times:
    adapters = {
        OURS: contenders.ours.bind("registry.example.com", url_scheme="https"),
        PLAIN: contenders.plain.bind("registry.example.com", url_scheme="https"),
    }
    values = [r.values for r in mix() if r.kind == "manifest by tag"]
    pairs: Calls = [(given["name"], given["tag"]) for given in values]
    calls: Calls = [("manifest", given) for given in values]
    by_contender: dict[str, Piece] = {
        "an f-string, validated": (f_string_loop, contenders.f_string, pairs)
    }
    for who, adapter in adapters.items():
        for pair, call in zip(pairs, calls, strict=True):
            endpoint, given = call
            built = adapter.build(endpoint, given, force_external=True)
            assert built == contenders.f_string(*pair)
        by_contender[who] = build_loop, adapter.build, calls
    if not find_spec("flask"):
        return time_pieces({"build": by_contender}, rounds)
    from flask import url_for

    with contenders.make_flask_app().test_request_context():
        by_contender["Flask's url_for"] = url_for_loop, url_for, calls
        return time_pieces({"build": by_contender}, rounds)


def time_misses(rounds: int) -> Times:
    digest = "sha256:" + "0" * 64
    paths = {
        "a miss (404)": ("/v2/library/Nginx/manifests/latest", "GET"),
        "an extra slash (308)": ("/v2/library/nginx/tags/list/", "GET"),
        "a missing slash (308)": ("/v2/library/nginx/blobs/uploads", "POST"),
        "dots and slashes (308)": ("/v2/x/..//library/nginx/tags/list", "GET"),
        "another method (405)": (f"/v2/library/nginx/blobs/{digest}", "PUT"),
    }
    by_contender = {
        who: match for who, match in make_routers().items() if who in (BY_HAND, OURS, PLAIN)
    }
    return time_pieces(
        {
            what: {
                who: (match_loop, match, [arguments] * 100) for who, match in by_contender.items()
            }
            for what, arguments in paths.items()
        },
        rounds,
    )


def time_hostile_paths(rounds: int) -> Times:
    by_contender = {
        who: match for who, match in make_routers().items() if who in (BY_HAND, OURS, PLAIN)
    }
    return time_pieces(
        {
            f"{shape}, {length // 1024} KiB": {
                who: (match_loop, match, [(f"/v2/{make(length)}", "GET")] * (65536 // length))
                for who, match in by_contender.items()
            }
            for shape, make in hostile.SHAPES.items()
            for length in (8 * 1024, 64 * 1024)
        },
        max(rounds // 4, 3),
    )


def time_beside_rules(rounds: int) -> Times:
    """Time the routes in maps with other rules, and alone."""
    requests = [request for request in mix() if request.endpoint is not None]
    matched: Calls = [(r.path, r.method) for r in requests]
    built: Calls = [(r.endpoint, r.values) for r in requests]
    pieces: dict[str, dict[str, Piece]] = {"match": {}, "build": {}}
    for who, url_map in contenders.make_maps().items():
        adapter = url_map.bind("registry.example.com", url_scheme="https")
        check(who, adapter.match, [(r, (r.path, r.method)) for r in requests])
        pieces["match"][who] = match_loop, adapter.match, matched
        pieces["build"][who] = build_loop, adapter.build, built
    return time_pieces(pieces, rounds)


def time_go() -> dict[str, float]:
    """Return the nanoseconds of a Go program with the same routes, by kind of request.

    Without Go, return nothing.
    """
    library = "/usr/share/gocode"
    if not (shutil.which("go") and Path(library, "src/github.com/gorilla/mux").is_dir()):
        return {}
    run = subprocess.run(
        ["go", "run", str(Path(__file__).parent / "gorilla" / "main.go")],
        env={**os.environ, "GO111MODULE": "off", "GOPATH": library, "GOFLAGS": ""},
        input="".join(f"{r.kind}\t{r.method}\t{r.path}\n" for r in mix()),
        capture_output=True,
        text=True,
    )
    if run.returncode:
        print(f"Go takes no part: {run.stderr.strip()}", file=sys.stderr)
        return {}
    lines = (line.split("\t") for line in run.stdout.splitlines())
    return {kind: float(took) for kind, took in lines}


def measure_threads(rounds: int) -> dict[str, float]:
    """Return how much two threads match in the time in which one thread matches 1.

    If a map for each thread does not help, then the threads do not wait for the map.
    """
    calls: Calls = [(r.path, r.method) for r in mix()] * 20
    shared = RegistryMap()
    best: dict[str, float] = {}

    def time_threads(count: int, make_map: Callable[[], RegistryMap]) -> float:
        start = threading.Barrier(count + 1)

        def match(adapter: MapAdapter) -> None:
            adapter.match("/v2/")
            start.wait()
            match_loop(adapter.match, calls)

        adapters = [make_map().bind("registry.example.com") for _ in range(count)]
        threads = [threading.Thread(target=match, args=[adapter]) for adapter in adapters]
        for thread in threads:
            thread.start()
        start.wait()
        began = time.perf_counter()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    cases: dict[str, tuple[int, Callable[[], RegistryMap]]] = {
        "one thread": (1, lambda: shared),
        "two threads on one map": (2, lambda: shared),
        "two threads on a map each": (2, RegistryMap),
    }
    for _ in range(max(rounds // 4, 3)):
        for who, (count, make_map) in cases.items():
            best[who] = min(best.get(who, float("inf")), time_threads(count, make_map) / count)
    return {who: best["one thread"] / took for who, took in best.items()}


def time_imports() -> dict[str, float]:
    """Return the milliseconds that a new interpreter takes to import each module, at best."""
    best: dict[str, float] = {}
    for _ in range(9):
        for module in "werkzeug.routing", "registry_routes":
            code = f"from time import *; t = time_ns(); import {module}; print(time_ns() - t)"
            run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            best[module] = min(best.get(module, 1e9), float(run.stdout) / 1e6)
    return best


def print_table(title: str, rows: Times, baseline: str, unit: str = "ns") -> None:
    """Print ratios to the baseline, with nanoseconds or calls a second in parentheses."""
    everyone = list(dict.fromkeys(who for times in rows.values() for who in times))
    width = max(len(row) for row in rows) + 2
    print(f"\n{title}: × {baseline} ({unit})")
    for i, who in enumerate(everyone):
        print(f"  {'ABCDEFGH'[i]}: {who}")
    print(" " * width + "".join(f"{'ABCDEFGH'[i]:>18}" for i in range(len(everyone))))
    for row, times in rows.items():
        cells = ""
        for who in everyone:
            took = times.get(who)
            ratio = ""
            if took is not None:
                number = took if unit == "ns" else 1e9 / took
                ratio = f"{took / times[baseline]:.2f} ({number:,.0f})"
            cells += f"{ratio:>18}"
        print(f"{row:<{width}}{cells}")


def weigh(times: Times, suffix: str) -> dict[str, float]:
    """Return the mean time over all kinds of requests, weighted by their shares."""
    everyone = times["base" + suffix]
    return {
        who: sum(times[kind + suffix][who] * share for kind, share in SHARES.items()) / 100
        for who in everyone
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--svg", type=Path, help="write the chart to this file")
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.machine()}")
    times = time_matches(options.rounds)
    go = time_go()
    for kind in SHARES:
        if go:
            times[kind][GO] = go[kind]
    environ_suffix = " from an environ"
    matched = {"the mix": weigh(times, "")} | {kind: times[kind] for kind in SHARES}
    bound = {"the mix": weigh(times, environ_suffix)} | {
        kind: times[kind + environ_suffix] for kind in SHARES
    }
    built = time_builds(options.rounds)
    if go:
        built["build"][GO] = go["build"]
    whole = time_whole_requests(options.rounds)
    results: dict[str, tuple[Times, str]] = {
        "match(path, method)": (matched, BY_HAND),
        "bind_to_environ(environ).match()": (bound, BY_HAND),
        "building a manifest's URL": (built, "an f-string, validated"),
        "beside other rules": (time_beside_rules(options.rounds), contenders.ALONE),
        "misses, redirects and errors": (time_misses(options.rounds), BY_HAND),
        "hostile paths": (time_hostile_paths(options.rounds), BY_HAND),
        WHOLE: (whole, contenders.OUR_APP),
    }
    for title, (rows, baseline) in results.items():
        print_table(title, rows, baseline, "requests a second" if title == WHOLE else "ns")
    threads = measure_threads(options.rounds)
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"\nmatching, {'with' if has_gil else 'without'} a global interpreter lock: ", end="")
    print(", ".join(f"{who} {rate:.2f}" for who, rate in threads.items()))
    imports = time_imports()
    print("\nimport: " + ", ".join(f"{name} {took:.0f} ms" for name, took in imports.items()))
    if options.json:
        numbers = {title: rows for title, (rows, _) in results.items()}
        record = {
            "python": platform.python_version(),
            "nanoseconds": numbers,
            "threads": threads,
            "import": imports,
        }
        options.json.write_text(json.dumps(record, indent=1))
    if options.svg:
        options.svg.write_text(chart.bars(matched["the mix"], bound["the mix"], OURS))


if __name__ == "__main__":
    main()
