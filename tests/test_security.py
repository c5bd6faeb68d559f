"""The guarantees of SECURITY.md at each door: the map, the application, the builder, the program.

Each door also has its own tests, which prove more. Their results hold at the other doors too, because
all doors agree.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect, Rule
from werkzeug.test import run_wsgi_app
from werkzeug.wrappers import Response

from registry_routes import (
    RegistryApp,
    RegistryMap,
    RegistryRequest,
    URLBuilder,
    match_url,
    url_map,
)

from .benchmarks.hostile import SHAPES
from .nasty import COMPONENTS as NAMES
from .nasty import DIGESTS, TAGS, UPLOAD_IDS, Values, requests
from .nasty import EXTENSIONS as EXTENSION_NAMES
from .oracle import EXAMPLES
from .servers import output_of
from .wsgi import environ_for

#: The answer of a door: the endpoint and the values, a redirect, or a status and a code.
Outcome = tuple[Any, ...]
Door = Callable[[RegistryMap, str, str], Outcome]

OWN_RULES = [
    Rule("/<path:page>", endpoint="mine"),
    Rule("/v2/<path:page>", endpoint="mine", strict_slashes=False),
    Rule("/v2/a/tags/list", endpoint="mine"),
    Rule("/v2/", endpoint="mine", websocket=True),
]


def outcome_of(match: Callable[[], tuple[Any, ...]]) -> Outcome:
    try:
        endpoint, values, *_ = match()
    except RequestRedirect as redirect:
        return 308, redirect.new_url
    except HTTPException as error:
        return error.code, getattr(error, "error_code", "UNSUPPORTED")
    return endpoint, dict(values)


def at_the_map(routes: RegistryMap, target: str, method: str) -> Outcome:
    return outcome_of(routes.bind_to_environ(environ_for(target, method)).match)


def at_the_application(routes: RegistryMap, target: str, method: str) -> Outcome:
    app = RegistryApp(routes)

    def view(request: RegistryRequest, **values: Any) -> Response:
        return Response(json.dumps([request.endpoint, values]))

    for endpoint in {rule.endpoint for rule in routes.iter_rules()}:
        app.view(endpoint)(view)
    body, status, headers = run_wsgi_app(app, environ_for(target, method))
    if status.startswith("308"):
        return 308, headers["Location"]
    content = json.loads(b"".join(body))
    if status.startswith("200"):
        return tuple(content)
    return int(status[:3]), content["errors"][0]["code"]


def at_the_builder(routes: RegistryMap, target: str, method: str) -> Outcome:
    return outcome_of(lambda: match_url(target, method, url_map=routes))


def at_the_program(routes: RegistryMap, target: str, method: str) -> Outcome:
    status, printed = output_of("match", method, target)
    if status == 0:
        pairs = dict(line.split(maxsplit=1) for line in printed.splitlines()[:-1])
        return pairs.pop("endpoint"), pairs
    if found := re.match(r"308 [^:]*: (\S*)\n", printed):
        return 308, found[1]
    found = re.match("([0-9]{3}) ([A-Z_]+):", printed)
    return (int(found[1]), found[2]) if found else (404, "UNSUPPORTED")


@pytest.fixture(autouse=True)
def maps_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """One map for all runs of the program: making it takes longer than the rest of a run."""
    monkeypatch.setattr("registry_routes.__main__.RegistryMap", cache(RegistryMap))


TARGETS = [
    (target, method)
    for target, method in requests(24, 1500)
    if target.startswith("/") and method not in ("HEAD", "OPTIONS")
]


@pytest.mark.parametrize("door", [at_the_application, at_the_builder, at_the_program])
def test_doors_agree_on_every_request(door: Door) -> None:
    routes = url_map
    outcomes = set()
    for target, method in TARGETS[: 250 if door is at_the_program else None]:
        expected = at_the_map(routes, target, method)
        assert door(routes, target, method) == expected, (target, method)
        outcomes.add(expected[0])
    assert outcomes >= {"manifest", "tags", "blob", 308, 400, 404, 405}


@pytest.mark.parametrize("door", [at_the_map, at_the_application, at_the_builder])
def test_own_rules_never_answer_for_a_route(door: Door) -> None:
    routes, own = url_map, RegistryMap(rules=[rule.empty() for rule in OWN_RULES])
    matched = 0
    for target, method in TARGETS[:700]:
        expected = at_the_map(routes, target, method)
        if isinstance(expected[0], str):
            assert door(own, target, method) == expected, (target, method)
            matched += 1
    assert matched > 100


@pytest.mark.parametrize("door", [at_the_application, at_the_builder, at_the_program])
@pytest.mark.parametrize("shape", SHAPES)
def test_doors_agree_on_long_hostile_paths(shape: str, door: Door) -> None:
    """If a door took quadratic time, this would take minutes."""
    path = f"/v2/{SHAPES[shape](64 * 1024)}"
    assert door(url_map, path, "GET") == at_the_map(url_map, path, "GET")


@given(
    st.sampled_from(["/v2", "/v2/a/tags/list/", "//evil.example/../v2", "/\\evil.example/../v2"]),
    st.sampled_from(["", "/", "//evil.example", "/m/", "\\\\evil.example", "/é", "https://evil"]),
    st.sampled_from(["h", "evil.example:80", "a_b"]),
    st.binary(max_size=5).map(lambda query: query.decode("latin-1")),
)
def test_redirect_of_the_application_is_a_path(
    path: str, script_name: str, host: str, query: str
) -> None:
    environ = environ_for(path, HTTP_HOST=host, SCRIPT_NAME=script_name, QUERY_STRING=query)
    app = RegistryApp(url_map)
    for endpoint in "base", "tags":
        app.view(endpoint)(lambda request, **values: Response())
    _, status, headers = run_wsgi_app(app, environ)
    assert status.startswith("308")
    location = headers["Location"]
    assert re.match(r"/(?![/\\])", location)
    assert urlsplit(location)[:2] == ("", "")
    assert location.isascii()
    assert location.isprintable()


VALUES: dict[str, Values] = {
    "name": NAMES,
    "tag": TAGS,
    "digest": DIGESTS,
    "uuid": UPLOAD_IDS,
    **dict.fromkeys(["extension", "component", "module"], EXTENSION_NAMES),
}


@pytest.mark.parametrize(
    ("methods", "endpoint", "values"), {(e.endpoint, *e.values): e[1:] for e in EXAMPLES}.values()
)
def test_doors_build_the_same_urls_from_the_same_values(
    methods: list[str], endpoint: str, values: dict[str, str]
) -> None:
    adapter = url_map.bind("h")
    request = RegistryRequest(environ_for("/v2/"))
    doors: list[Callable[[dict[str, str]], str]] = [
        lambda given: adapter.build(endpoint, given),
        lambda given: URLBuilder("/", relative=True).build(endpoint, given),
        lambda given: request.urls.build(endpoint, given),
    ]
    for name in values:
        # Every route has a name: each kind of it is tried at one of them.
        few = name == "name" and endpoint != "tags"
        for value in [*NAMES.valid[:1], *NAMES.malformed[:1]] if few else VALUES[name].all:
            given = {**values, name: value}
            command = ["build", endpoint, *(f"{key}={text}" for key, text in given.items())]
            status, printed = output_of(*command)
            if value in VALUES[name].valid:
                assert {f"{door(given)}\n" for door in doors} == {printed}
                assert match_url(printed.rstrip(), methods[0])[:2] == (endpoint, given)
                continue
            assert (status, "must" in printed) == (1, True)
            for door in doors:
                with pytest.raises(ValueError, match="must"):
                    door(given)
