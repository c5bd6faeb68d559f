"""`DOCKER_1_5` against the recorded answers of the original router."""

import json
from pathlib import Path
from typing import Any

import pytest
from werkzeug.exceptions import NotFound
from werkzeug.routing import RequestRedirect

from registry_routes import DOCKER_1_5, RegistryMap

from .wsgi import decoded_path, environ_for

VECTORS = Path(__file__).parent / "vectors" / "docker-1.5.0.jsonl"
RECORDS: list[dict[str, Any]] = [json.loads(line) for line in VECTORS.read_text().splitlines()]

DOCKER_MAP = RegistryMap(DOCKER_1_5)


def follow(target: str, method: str) -> dict[str, Any]:
    """What `target` ends in after all redirects, in the form of the records."""
    redirects = 0
    while True:
        path, query = decoded_path(target), target.partition("?")[2]
        result: dict[str, Any] = {"path": path, "redirects": redirects}
        if query:
            result["query"] = query
        try:
            route, values = DOCKER_MAP.bind_to_environ(environ_for(target, method)).match()
        except RequestRedirect as redirect:
            assert redirect.code == 308
            target = redirect.new_url
            redirects += 1
            assert redirects < 3
        except NotFound:
            return result | {"status": 404}
        else:
            return result | {"status": 200, "route": route, **({"vars": values} if values else {})}


def agrees(record: dict[str, Any], ours: dict[str, Any]) -> bool:
    if record["status"] == ours["status"] == 404:
        # Where the original redirects to a path that is then a 404, a plain 404 agrees.
        return bool(ours["redirects"] <= record["redirects"])
    compared = "status", "route", "vars", "path", "query"
    return all(record.get(key) == ours.get(key) for key in compared) and (
        bool(record["redirects"]) == bool(ours["redirects"])
    )


# The original does not look at the method, so any method gets the same answer.
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "FOO"])
def test_every_record_agrees(method: str) -> None:
    disagreeing = [
        (record, ours)
        for record in RECORDS
        if not agrees(record, ours := follow(record["target"], method))
    ]
    assert not disagreeing, f"{len(disagreeing)} of {len(RECORDS)}, such as {disagreeing[0]}"
    assert len(RECORDS) == 6548


def test_agreement_is_not_vacuous() -> None:
    record = next(r for r in RECORDS if r.get("route") == "tags" and not r["redirects"])
    ours = follow(record["target"], "GET")
    assert agrees(record, ours)
    for change in (
        {"status": 404},
        {"route": "blob"},
        {"vars": {"name": "other/name"}},
        {"path": "/v2/"},
        {"query": "n=1"},
        {"redirects": 1},
    ):
        assert not agrees(record, ours | change), change
