"""The map against two oracles: the slow one in `oracle.py`, and the recorded answers of Docker 1.5.0."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import NotFound
from werkzeug.routing import RequestRedirect

from registry_routes import DOCKER_1_5, RegistryMap, RouteName
from registry_routes.errors import RegistryError, Unsupported

from . import nasty
from .oracle import Answer, answer
from .wsgi import decoded_path, environ_for

MAPS = {
    prefix: RegistryMap(prefix=prefix) for prefix in ["", "/registry", "/a/v2/v2", "/100%/%s/a>b é"]
}

# REGISTRY_ROUTES_SEED=… sets another seed. The name of a failing test has the seed in it.
SEED = int(os.environ.get("REGISTRY_ROUTES_SEED", "1500"))


def answer_of_the_map(target: str, method: str, prefix: str) -> Answer:
    try:
        matched = MAPS[prefix].bind_to_environ(environ_for(target, method)).match()
    except RequestRedirect as redirect:
        path, _, query = redirect.new_url.partition("?")
        assert query == target.partition("?")[2]
        return Answer(redirect.code, unquote(path))
    except Unsupported as error:
        return Answer(405, set(error.valid_methods or ()))
    except RegistryError as error:
        return Answer(error.code or 0, error.error_code)
    except NotFound:
        return Answer(404)
    return Answer(200, matched)


@pytest.mark.parametrize(
    ("count", "seed"), [(300, SEED), pytest.param(3_000, SEED + 1, marks=pytest.mark.slow)]
)
def test_nasty_targets(count: int, seed: int) -> None:
    seen, endpoints = Counter[object](), Counter[object]()
    for prefix in MAPS:
        for target, method in nasty.requests(seed, count, prefix):
            expected = answer(decoded_path(target), method, prefix)
            assert answer_of_the_map(target, method, prefix) == expected, (target, method)
            seen[expected.status] += 1
            if expected.status in (400, 404):
                seen[expected.what] += 1
            if isinstance(expected.what, tuple):
                endpoints[expected.what[0]] += 1
    # Every outcome and every endpoint must occur often, or the targets would prove little.
    assert all(seen[status] > count / 12 for status in (200, 308, 400, 404, 405)), seen
    codes = ["NAME_INVALID", "DIGEST_INVALID", "TAG_INVALID", "MANIFEST_UNKNOWN"]
    codes += ["BLOB_UPLOAD_UNKNOWN", "UNSUPPORTED"]
    assert all(seen[code] > count / 500 for code in [*codes, None]), seen
    assert set(endpoints) == set(RouteName)
    assert min(endpoints.values()) >= count / 500, endpoints


@given(st.binary(max_size=40))
def test_arbitrary_bytes(path: bytes) -> None:
    target = quote(b"/v2/" + path)
    assert answer_of_the_map(target, "GET", "") == answer(decoded_path(target), "GET")


VECTORS = Path(__file__).parent / "vectors" / "docker-1.5.0.jsonl"
RECORDS: list[dict[str, Any]] = [json.loads(line) for line in VECTORS.read_text().splitlines()]
DOCKER_MAP = RegistryMap(dialect=DOCKER_1_5)


def follow(target: str, method: str) -> dict[str, Any]:
    """What `target` ends in after all redirects, in the form of the records."""
    for redirects in range(3):
        path, query = decoded_path(target), target.partition("?")[2]
        result: dict[str, Any] = {"path": path, "redirects": redirects}
        if query:
            result["query"] = query
        try:
            route, values = DOCKER_MAP.bind_to_environ(environ_for(target, method)).match()
        except RequestRedirect as redirect:
            assert redirect.code == 308
            target = redirect.new_url
        except NotFound:
            return result | {"status": 404}
        else:
            return result | {"status": 200, "route": route, **({"vars": values} if values else {})}
    raise AssertionError(f"{target} is redirected again and again")


def agrees(record: dict[str, Any], ours: dict[str, Any]) -> bool:
    if record["status"] == ours["status"] == 404:
        # Where the original redirects to a path that is then a 404, a plain 404 agrees.
        return bool(ours["redirects"] <= record["redirects"])
    compared = "status", "route", "vars", "path", "query"
    return all(record.get(key) == ours.get(key) for key in compared) and (
        bool(record["redirects"]) == bool(ours["redirects"])
    )


# The original does not look at the method, so any method gets the same answer.
@pytest.mark.parametrize("method", ["GET", "FOO"])
def test_every_record_of_docker_agrees(method: str) -> None:
    disagreeing = [
        (record, ours)
        for record in RECORDS
        if not agrees(record, ours := follow(record["target"], method))
    ]
    assert not disagreeing, f"{len(disagreeing)} of {len(RECORDS)}, such as {disagreeing[0]}"
    assert len(RECORDS) == 6548
