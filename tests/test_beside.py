"""Your rules next to the table: the table first, then Werkzeug, then the table explains."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from random import Random
from typing import Any, NamedTuple

import pytest
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import (
    EndpointPrefix,
    IntegerConverter,
    Map,
    MapAdapter,
    RequestRedirect,
    Rule,
    RuleFactory,
    Subdomain,
    Submount,
)
from werkzeug.routing.exceptions import WebsocketMismatch

from registry_routes import DOCKER_1_5, OCI_1_1, Dialect, RegistryMap, RegistryRules
from registry_routes.converters import TagConverter
from registry_routes.errors import NameInvalid, RouteUnknown, Unsupported
from registry_routes.routes import DIALECTS

from . import nasty
from .nasty import SHA256
from .test_dialects import METHODS, DuplicateRuleError, Engine, outcome
from .wsgi import decoded_path, other_ending

TAGS, NGINX = "/v2/a/tags/list", "/v2/library/nginx/tags/list"


class Beside(NamedTuple):
    """A rule beside the registry's, and paths to try. It is made anew for each map."""

    id: str
    make: Callable[[], RuleFactory]
    paths: tuple[str, ...]


def rule(path: str, *paths: str, **options: Any) -> Beside:
    said = "".join(f" {name}={value}" for name, value in options.items())
    return Beside(
        path + said, lambda: Rule(path, **{"endpoint": f"mine {path}", **options}), paths or (path,)
    )


# The rules that authors of registries really add.
NAMED = [
    rule("/v2/token", "/v2/token", "/v2//token", "/v2/token/", "/v2/token/tags/list"),
    rule("/static/<path:filename>", "/static/v2/", "/static/v2/../x", "/static"),
    rule("/<path:rest>", TAGS, "/v2", "/v2/A/tags/list", "/v2//a/tags/list", "/x//y", "/v2/nope"),
    rule("/v2/<path:rest>", TAGS, "/v2/", "/v2/A", "/v2/a/b/c/", "/v2//a/tags/list"),
    rule(NGINX, NGINX, "/v2/library//nginx/tags/list", f"/{NGINX}", f"{NGINX}/"),
    rule("/v2/_catalog", methods=["POST"]),
    rule("/v2/<x>/tags/list", TAGS, "/v2/A/tags/list", methods=["PUT"]),
    rule("/v2/<repository:name>/sig", "/v2/a/b/sig", "/v2/a/b/sig/", "/v2/A/sig"),
]
OTHERS = [
    rule("/", "/", "", "//"),
    rule("/about", "/about", "//about", "/x/../about", "/v2/../about", methods=["GET"]),
    rule("/<a>/<b>/", "/v2/_catalog", "/v2/x", "/x/y"),
    rule("/<any(v2, v3):version>/_catalog", "/v2/_catalog", "/v3/_catalog", methods=["POST"]),
    rule("/v<int:version>/_catalog", "/v2/_catalog", "/v3/_catalog", "/v3//_catalog"),
    rule("/<a>/<path:b>", TAGS, "/v2/nope", "/x/y", redirect_to="http://evil.example/<b>"),
    rule("/<path:page>//", TAGS, "/v2/nope//", methods=["PUT"], merge_slashes=False),
    rule("/v<int:n>/<path:b>", "/v2/nope/", "/v3/x", strict_slashes=False),
    rule("/v2", "/v2", "//v2"),
    rule("/v2", "/v2", strict_slashes=False),
    rule("/v2/_<string:e>/<string:c>/<string:m>/", "/v2/_a/b/c", "/v2/_A/b/c"),
    rule("/v2/<path:rest>/", TAGS, "/v2/", "/v2/A", "/v2/a/blobs/uploads"),
    rule("/v2/<x>/tags/list/", TAGS, "/v2/A/tags/list", strict_slashes=False),
    rule("/v2//a//tags/list", TAGS, "/v2//a//tags/list"),
    rule("/v2//b//tags/list", "/v2/b/tags/list", "/v2//b//tags/list", merge_slashes=False),
    rule("/v2/<repository:name>/tags/list", TAGS, endpoint="tags", methods=["POST"]),
    rule("/v2/<repository:name>/tags", "/v2/a/tags", endpoint="tags", alias=True),
    rule("/v2/<repository:name>/old", "/v2/a/old", redirect_to="/v2/<name>/tags/list"),
    rule("/v2/a/tags/list", TAGS, "/v2//a/tags/list", redirect_to="elsewhere"),
    rule("/v2/<path:rest>", TAGS, "/v2/A", build_only=True),
    rule("/v2/<repository:name>/tags/list", TAGS, websocket=True),
    rule("/v2/<path:rest>", TAGS, "/v2/A", subdomain="sub"),
    rule("/v2/<path:rest>", TAGS, "/v2/A", subdomain="<user>"),
    Beside(
        "again at /m",
        lambda: Submount("/m", [RegistryRules()]),
        ("/m/v2", f"/m{TAGS}/", "/q/../m/v2/"),
    ),
    Beside(
        "Docker's again at /v2/mirror",
        lambda: Submount("/v2/mirror", [EndpointPrefix("m.", [RegistryRules(DOCKER_1_5)])]),
        ("/v2/mirror/v2", "/v2/mirror/v2/a/b/tags/list", "/v2/mirror/tags/list"),
    ),
    Beside("again at a subdomain", lambda: Subdomain("sub", [RegistryRules()]), (TAGS, "/v2")),
]
BESIDE = [*NAMED, *OTHERS]


def made_of(beside: list[Beside]) -> list[RuleFactory]:
    return [entry.make() for entry in beside]


def paths(random: Random, prefix: str, beside: list[Beside]) -> list[str]:
    near = [path for entry in beside for path in entry.paths]
    near += [prefix + path for path in near]
    anywhere = [decoded_path(nasty.target(random, prefix)) for _ in range(3)]
    return [*near, *map(other_ending, near), *anywhere, "v2/", f"{prefix}/v2", f"/{prefix}/v2/"]


def test_table_then_werkzeug_then_the_table_explains() -> None:
    """Each rule is given to a new map, and another is added later."""
    random, seen = Random(1), Counter[Any]()
    rules = zip(BESIDE, random.sample(BESIDE, len(BESIDE)), cycle(DIALECTS.values()), strict=False)
    for (first, later, dialect), prefix in zip(rules, cycle(["", "/r", "", "/a/v2/v2", "/v2"])):
        try:
            engine = Engine(dialect, prefix, [first.make, later.make])
        except DuplicateRuleError:
            continue
        engine.map = RegistryMap([first.make()], dialect=dialect, prefix=prefix)
        engine.map.add(later.make())
        adapter = engine.map.bind("h")
        for path in paths(random, prefix, [first, later]):
            for method in random.sample(METHODS, 2):
                got = outcome(lambda: adapter.match(path, method))
                assert got == engine.expected(path, method), (first.id, later.id, path, method)
                seen["hit" if isinstance(got[0], str) else got[0]] += 1
    for kind in "hit", 308, 405, NotFound, NameInvalid, RouteUnknown:
        assert seen[kind] > 20, seen


def test_rule_under_the_root_is_treated_as_in_any_map() -> None:
    class Twice(Rule):
        def get_rules(self, map: Map) -> Any:
            yield self
            yield Rule(f"{self.rule}/again", endpoint=self.endpoint)

    strict = Rule("/v2/strict/", endpoint="strict")
    socket = Rule("/v2/socket", endpoint="socket", websocket=True)
    url_map = RegistryMap(
        [strict, socket, Twice("/v2/twice", endpoint="twice")],
        converters={"even": IntegerConverter},
    )
    adapter = url_map.bind("h")
    redirected = outcome(lambda: adapter.match("/v2//strict/", query_args="a=b"))
    assert redirected == (308, "http://h/v2/strict/?a=b")
    assert outcome(lambda: adapter.match("/v2/socket"))[0] is WebsocketMismatch
    assert adapter.match("/v2/socket", websocket=True) == ("socket", {})
    assert adapter.match("/v2/twice/again") == ("twice", {})
    # `return_rule` gives the rule that was added, bound to the whole map.
    assert adapter.match("/v2/strict/", return_rule=True)[0] is strict
    assert strict.map is url_map
    # Converters, options and rules may change later.
    url_map.converters["odd"] = IntegerConverter
    url_map.strict_slashes = False
    url_map.add(
        EndpointPrefix("x.", [Submount("/v2/x", [Rule("/<odd:n>/<even:m>/", endpoint="late")])])
    )
    assert adapter.match("/v2/x/1/2") == ("x.late", {"n": 1, "m": 2})
    url_map.merge_slashes = False
    assert outcome(lambda: adapter.match("/v2/x//1/2"))[0] is RouteUnknown
    url_map.add(Rule("/v2/never/<path:p>", endpoint="never", build_only=True))
    assert outcome(lambda: adapter.match("/v2/never/x"))[0] is RouteUnknown
    assert adapter.build("never", {"p": "x"}) == "/v2/never/x"


def test_redirects_between_rules_under_the_root() -> None:
    def elsewhere(adapter: MapAdapter, **values: Any) -> str:
        assert adapter.match("/v2/_catalog") == ("catalog", {})
        return adapter.build("away", {"n": 1})

    url_map = RegistryMap(
        [
            Rule("/v2/page/", defaults={"n": 1}, endpoint="page"),
            Rule("/v2/page/<int:n>", endpoint="page"),
            Rule("/v2/old/<repository:name>", endpoint="tags", alias=True),
            Rule("/v2/moved", endpoint="moved", redirect_to="to/here"),
            Rule("/v2/asked", endpoint="asked", redirect_to=elsewhere),
            Rule("/away/<int:n>", endpoint="away"),
        ]
    )
    adapter = url_map.bind("h", "/mount", url_scheme="https")
    for path, target in {
        "/v2/page/1": "v2/page/",
        "/v2/old/a/b": "v2/a/b/tags/list",
        "/v2/moved": "to/here",
        "/v2/asked": "away/1",
    }.items():
        assert outcome(lambda: adapter.match(path))[-1] == f"https://h/mount/{target}"
    url_map.redirect_defaults = False
    assert adapter.match("/v2/page/1") == ("page", {"n": 1})
    assert adapter.endpoints("/v2/moved")[None] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda routes: routes(OCI_1_1), "oci-1.1'): write RegistryMap(dialect=…) for a dialect"),
        (lambda routes: routes(["/x"]), "rule '/x' is not a Rule: write Rule(…, endpoint=…)"),
        (lambda routes: routes().add("/x"), "rule '/x' is not a Rule: write Rule(…, endpoint=…)"),
        (lambda routes: routes("/x"), "rules is '/x': write a list of rules, such as [Rule(…)]"),
        (lambda routes: routes(Rule("/x")), "rules is <Rule (unbound)>: write a list of rules, "),
        (lambda routes: routes(prefix=None), "prefix None is not a string: write '' for no prefix"),
    ],
)
def test_misplaced_argument_is_a_type_error(call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        call(RegistryMap)


def test_converters_and_functions_run_only_for_the_requested_path() -> None:
    called: list[object] = []

    class Watched(TagConverter):
        def to_python(self, value: str) -> str:
            called.append(value)
            return value

    def elsewhere(adapter: MapAdapter, **values: Any) -> str:
        called.append(values)
        return "/elsewhere"

    url_map = RegistryMap(
        rules=[
            Rule("/v2/<watched:name>/tags/list", endpoint="mine", methods=["PUT"]),
            Rule("/v2/<watched:name>/tags/", endpoint="mine", redirect_to=elsewhere),
            Rule("/v2/a/tags/list", endpoint="mine", methods=["DELETE"], redirect_to=elsewhere),
            Rule("/v2/<watched:name>/all", endpoint="tags", alias=True),
            Rule("/v2/<repository:name>/every", endpoint="tags", alias=True),
        ],
        converters={"watched": Watched},
    )
    adapter = url_map.bind("registry.example")
    for path in "/v2/a/tags/list/", "/v2/x/../a/tags/list":
        with pytest.raises(RequestRedirect) as redirect:
            adapter.match(path)
        assert redirect.value.new_url == "/v2/a/tags/list"
        with pytest.raises(MethodNotAllowed) as refused:
            adapter.match(path, "DELETE")
        assert set(refused.value.valid_methods or ()) == {"GET", "HEAD"}
    with pytest.raises(Unsupported) as refused:
        adapter.match("/v2/a/tags/list", "POST")
    assert set(refused.value.valid_methods or ()) == {"GET", "HEAD", "PUT", "DELETE"}
    with pytest.raises(RequestRedirect) as redirect:
        adapter.match("/v2/b/every")
    assert redirect.value.new_url == "http://registry.example/v2/b/tags/list"
    assert not called
    with pytest.raises(RequestRedirect) as redirect:
        adapter.match("/v2/b/tags/")
    assert redirect.value.new_url == "http://registry.example/elsewhere"
    assert called == ["b", {"name": "b"}]


def test_map_works_after_a_rule_could_not_be_added() -> None:
    url_map = RegistryMap()
    adapter = url_map.bind("registry.example")
    with pytest.raises(LookupError):
        url_map.add(
            Submount("/v2", [Rule("/token", endpoint="token"), Rule("/<no:x>", endpoint="x")])
        )
    assert adapter.match("/v2/token") == ("token", {})  # it was added before the other failed
    assert adapter.match(TAGS) == ("tags", {"name": "a"})


def test_map_at_another_subdomain_or_with_host_matching_leaves_matching_to_werkzeug() -> None:
    class AtHost(RuleFactory):
        def get_rules(self, map: Map) -> Any:
            for rule in RegistryRules().get_rules(map):
                rule.host = "registry.example"
                yield rule

    at_host = RegistryMap(host_matching=True, rules=[AtHost()])
    at_sub = RegistryMap(rules=[Subdomain("sub", [RegistryRules()])])
    for adapter in at_host.bind("registry.example"), at_sub.bind("registry.example", None, "sub"):
        assert adapter.match(TAGS) == ("tags", {"name": "a"})
        assert outcome(lambda: adapter.match("/v2/A/tags/list")) == (NotFound,)
        assert outcome(lambda: adapter.match(f"{TAGS}/")) == (NotFound,)
        assert outcome(lambda: adapter.match("/v2"))[0] == 308
    assert outcome(lambda: at_host.bind("other.example").match(TAGS)) == (NotFound,)
    without = RegistryMap(host_matching=True, default_subdomain="x")
    assert outcome(lambda: without.bind("h").match("/v2/")) == (NotFound,)
    alias = Rule("/old/<path:name>", endpoint="tags", alias=True, host="h")
    aliased = RegistryMap(rules=[alias], host_matching=True).bind("h")
    assert outcome(lambda: aliased.match("/old/A")) == (NotFound,)
    variable = RegistryMap(default_subdomain="<user>").bind("registry.example", subdomain="alice")
    assert variable.match(TAGS) == ("tags", {"user": "alice", "name": "a"})


@pytest.mark.parametrize("path", [TAGS, "/v2", "/v2/A/tags/list", "/v2/ws"])
@pytest.mark.parametrize("beside", [[], [rule("/v2/ws", websocket=True)]], ids=["alone", "beside"])
def test_websocket_is_matched_as_in_a_plain_map(path: str, beside: list[Beside]) -> None:
    maps = RegistryMap(made_of(beside)), Map([RegistryRules(), *made_of(beside)])
    for websocket, scheme in (None, "ws"), (True, "http"):
        got, expected = (
            outcome(lambda: url_map.bind("h", url_scheme=scheme).match(path, websocket=websocket))
            for url_map in maps
        )
        assert got == expected


def test_werkzeug_is_not_asked_about_a_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it were asked, this would raise an error."""

    def not_asked(*_: object, **__: object) -> None:
        raise AssertionError("Werkzeug's matcher was asked")

    adapter = RegistryMap(made_of(NAMED)).bind("registry.example")
    paths = [f"/v2/a/blobs/{SHA256}", "/v2/", TAGS]
    found = [adapter.match(path) for path in paths]
    monkeypatch.setattr(MapAdapter, "match", not_asked)
    monkeypatch.setattr(MapAdapter, "build", not_asked)
    assert [adapter.match(path) for path in paths] == found
    assert [adapter.build(*match) for match in found] == paths
    with pytest.raises(AssertionError):
        adapter.match("/about")


@pytest.mark.parametrize(
    "path", ["/v2/A/all", "/A/all", "/v2/7/n", f"/v2/{'7' * 5000}/n", "/v2/\ud800/", "/\ud800//v2/"]
)
@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_match_raises_only_http_exceptions(dialect: Dialect, path: str) -> None:
    """Not those of a converter, or of an alias for a value that the route does not accept."""
    url_map = RegistryMap(
        dialect=dialect,
        rules=[
            Rule("/v2/<path:name>/all", endpoint="tags", alias=True),
            Rule("/<path:name>/all", endpoint="tags", alias=True),
            Rule("/v2/<int:n>/n", endpoint="number"),
        ],
    )
    adapter = url_map.bind("registry.example")
    for form in path, f"/{path}", f"{path}//", f"/v2/a/b/blobs/uploads/{path[4:]}//":
        for method in "GET", "PUT":
            try:
                adapter.match(form, method)
            except HTTPException as error:
                error.get_response()
