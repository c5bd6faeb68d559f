"""The fast path changes nothing but speed: every answer is that of Werkzeug's own matcher."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import BadRequest, HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import (
    BaseConverter,
    EndpointPrefix,
    Map,
    MapAdapter,
    RequestRedirect,
    Rule,
    RuleFactory,
    Subdomain,
    Submount,
)

from registry_routes import CONVERTERS, DOCKER_1_5, OCI_1_1, Dialect, RegistryMap, RegistryRules
from registry_routes.converters import GrammarConverter, TagConverter
from registry_routes.errors import RegistryError
from registry_routes.routes import DIALECTS, RegistryRule, Route, RouteName

from . import nasty
from .nasty import SHA256
from .wsgi import decoded_path, environ_for, other_ending


class Intruder(NamedTuple):
    """A rule of a user's own, made anew for each map, and paths where it may get in the way."""

    make: Callable[[], RuleFactory]
    paths: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Intruder({self.make().__dict__})"


def rule(path: str, *paths: str, **options: Any) -> Intruder:
    return Intruder(lambda: Rule(path, **{"endpoint": path, **options}), paths or (path,))


TAGS, NGINX = "/v2/a/tags/list", "/v2/library/nginx/tags/list"
INTRUDERS = [
    rule("/", "/", "", "//"),
    rule("/about", "/about", "//about", "/x/../about", methods=["GET"]),
    rule("/static/<path:filename>", "/static/v2/", "/static/v2/../x", "/static"),
    rule("/<path:rest>", TAGS, "/v2", "/v2/A/tags/list", "/v2//a/tags/list", "/x//y"),
    rule("/<path:rest>/", TAGS, "/v2", "/v2/a/blobs/uploads/", "/v2/A/b", methods=["GET"]),
    rule("/<a>/<b>/", "/v2/_catalog", "/v2/x", "/x/y"),
    rule("/<any(v2, v3):version>/_catalog", "/v2/_catalog", "/v3/_catalog"),
    rule("/v<int:version>/_catalog", "/v2/_catalog", "/v3/_catalog", "/v3//_catalog"),
    rule("/v2", "/v2", "//v2"),
    rule("/v2", "/v2", strict_slashes=False),
    rule("/v2/", "/v2/", "/v2", methods=["OPTIONS"]),
    rule("/v2/token", "/v2/token", "/v2//token", "/v2/token/tags/list", methods=["GET", "POST"]),
    rule("/v2/token/", "/v2/token", "/v2/token/tags/list"),
    rule(NGINX, NGINX, "/v2/library//nginx/tags/list", methods=["GET"]),
    rule(f"{NGINX}/", NGINX, "/v2/library//nginx/tags/list"),
    rule("/v2/_catalog", methods=["POST"]),
    rule("/v2/_oci/ext/discover", "/v2/_oci/ext/discover", "/v2/a/_oci/ext/discover"),
    rule("/v2/_<string:e>/<string:c>/<string:m>/", "/v2/_a/b/c", "/v2/_A/b/c"),
    rule("/v2/<path:rest>", TAGS, "/v2/", "/v2/A", "/v2/a/b/c/", "/v2//a/tags/list"),
    rule("/v2/<path:rest>/", TAGS, "/v2/", "/v2/A", "/v2/a/blobs/uploads"),
    rule("/v2/<path:rest>/x/tags/list/", "/v2/a/x/tags/list", TAGS),
    rule("/v2/<path:rest>/x/tags/list", "/v2/a/x/tags/list", TAGS, methods=["PUT"]),
    rule("/v2/<x>", "/v2/_catalog", "/v2/a", "/v2/"),
    rule("/v2/<x>/tags/list", TAGS, "/v2/A/tags/list", methods=["GET", "PUT"]),
    rule("/v2/<x>/tags/list/", TAGS, "/v2/A/tags/list", strict_slashes=False),
    rule("/v2/<int:n>/tags/list", "/v2/7/tags/list", TAGS),
    rule("/v2//a//tags/list", TAGS, "/v2//a//tags/list"),
    rule("/v2//b//tags/list", "/v2/b/tags/list", "/v2//b//tags/list", merge_slashes=False),
    rule("/v2/<repository:name>/tags/list", TAGS, endpoint="tags", methods=["POST"]),
    rule("/v2/<repository:name>/tags/list", TAGS),
    rule("/v2/<repository:name>/tags/<tag:tag>", TAGS, "/v2/a/tags/v1"),
    rule("/v2/<repository:name>/signatures/<digest:digest>", f"/v2/a/signatures/{SHA256}", TAGS),
    rule("/v2/<repository:name>/tags", "/v2/a/tags", endpoint="tags", alias=True),
    rule("/v2/<repository:name>/tags/list", TAGS, endpoint="tags", alias=True, methods=["PUT"]),
    rule("/v2/<repository:name>/old", "/v2/a/old", redirect_to="/v2/<name>/tags/list"),
    rule("/v2/a/tags/list/", TAGS, redirect_to="elsewhere"),
    rule("/v2/a/tags/list", TAGS, "/v2//a/tags/list", redirect_to="elsewhere"),
    rule(
        "/latest/<path:name>",
        *("/latest/a", "/v2/a/manifests/latest", "/v2/a/manifests/v1", TAGS),
        endpoint="manifest",
        defaults={"tag": "latest"},
    ),
    rule("/all", "/all", "/v2/_catalog", endpoint="catalog", defaults={"page": 1}),
    rule("/every", "/every", "/v2/_catalog", endpoint="catalog", defaults={}),
    rule("/up/<repository:name>", "/up/a", endpoint="blob-upload", methods=["GET"]),
    rule("/v2/<repository:name>/tags/all", "/v2/a/tags/all", endpoint="tags", build_only=True),
    rule("/v2/<path:rest>", TAGS, "/v2/A", build_only=True),
    rule("/v2/<repository:name>/tags/list", TAGS, websocket=True),
    rule("/v2/", "/v2", websocket=True),
    rule("/ws", websocket=True),
    rule("/v2/<path:rest>", TAGS, "/v2/A", subdomain="sub"),
    rule("/v2/<path:rest>", TAGS, "/v2/A", subdomain="<user>"),
    rule(f"{NGINX}/", NGINX, subdomain="<user>"),
    rule("/v2/token", host="registry.example"),
    rule("/v2/<path:rest>", TAGS, host="<host>"),
    Intruder(lambda: Submount("/m", [RegistryRules()]), ("/m/v2", f"/m{TAGS}/", "/q/../m/v2/")),
    Intruder(
        lambda: Submount("/v2/mirror", [EndpointPrefix("m.", [RegistryRules(DOCKER_1_5)])]),
        (
            *("/v2/mirror/v2", "/v2/mirror/v2/a/b/tags/list", "/v2/mirror/tags/list"),
            *("/q/../v2/mirror/v2", "/v2/mirror/v2/a/b/blobs/uploads/x y"),
        ),
    ),
    Intruder(
        lambda: Submount("/<any(x, y):tenant>", [RegistryRules()]),
        ("/x/v2", f"/y{TAGS}", "/q/../x/v2/", "/z/v2/", "/x/v2/A/tags/list"),
    ),
    Intruder(lambda: EndpointPrefix("again.", [RegistryRules()]), (TAGS, "/v2")),
    Intruder(lambda: Subdomain("sub", [RegistryRules()]), (TAGS, "/v2", "/v2/A/tags/list")),
    Intruder(
        lambda: Subdomain("<user>", [EndpointPrefix("u.", [RegistryRules(DOCKER_1_5)])]),
        ("/v2/a/b/tags/list", "/v2", TAGS),
    ),
]

METHODS = [*nasty.METHODS, "get", "PROPFIND"]

Outcome = tuple[Any, ...]


def outcome(call: Callable[[], Any]) -> Outcome:
    """What a call comes to, in terms that can be compared across maps."""
    try:
        result = call()
    except RequestRedirect as error:
        return RequestRedirect, error.code, error.new_url
    except MethodNotAllowed as error:
        return MethodNotAllowed, frozenset(error.valid_methods or ())
    except RegistryError:  # what it says is not Werkzeug's to know: tests/test_diagnosis.py
        return (NotFound,)
    except HTTPException as error:
        return (type(error),)
    if isinstance(result, tuple) and isinstance(result[0], Rule):
        found = result[0]
        methods = frozenset(found.methods or ())
        return found.rule, found.endpoint, methods, found.subdomain, found.websocket, result[1]
    return (result,)


def clean(path: str) -> str:
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            kept = kept[:-1]
        elif segment not in ("", "."):
            kept = [*kept, segment]
    return "/" + "/".join(kept) + ("/" if kept and path.endswith("/") else "")


class Plain(NamedTuple):
    """Werkzeug's own matcher, with the slashes and clean paths of `RegistryMap` around it."""

    adapter: MapAdapter
    registry: MapAdapter
    """For the registry's rules alone."""

    @classmethod
    def bound(cls, url_map: Map, **bind: Any) -> "Plain":
        rules = [rule for rule in url_map.iter_rules() if isinstance(rule, RegistryRule)]
        registry = Map(
            [rule.empty() for rule in rules],
            converters=url_map.converters,
            default_subdomain=url_map.default_subdomain,
            merge_slashes=False,
            host_matching=url_map.host_matching,
        )
        for rule in registry.iter_rules():
            rule.strict_slashes = True
        return cls(*(one.bind("registry.example", **bind) for one in (url_map, registry)))

    def match(self, path: str, method: str, query: Any, websocket: bool | None) -> tuple[Rule, Any]:
        adapter = self.adapter
        given = path
        path = f"/{path.lstrip('/')}" if path[:1] != "/" or not adapter.map.merge_slashes else path
        cleaned = clean(path) if adapter.map.merge_slashes else path
        forms = cleaned, other_ending(cleaned)
        error: HTTPException = NotFound()
        try:
            matched = adapter.match(given, method, True, query, websocket)
            if path == cleaned or not isinstance(matched[0], RegistryRule):
                return matched
        except HTTPException as e:
            error = e
        if websocket or (websocket is None and adapter.websocket) or cleaned.endswith("//"):
            raise error
        locations = [
            quote(f"{adapter.script_name}{form[1:]}", safe="!$&'()*+,/:;=@")
            + (f"?{query}" if query else "")
            for form in forms
        ]
        host = f"{adapter.url_scheme}://{adapter.get_host(None)}"
        if isinstance(error, RequestRedirect) and error.new_url not in [
            host + location for location in locations
        ]:
            raise error
        allowed = set(getattr(error, "valid_methods", ()))
        for form, location in zip(forms, locations, strict=True):
            if form == path:  # Werkzeug has refused it
                continue
            try:
                rule, values = self.registry.match(form, method, True, query, websocket)
            except MethodNotAllowed as refused:
                allowed.update(refused.valid_methods or ())
            except HTTPException:
                pass
            else:
                if path == cleaned and not adapter.map.strict_slashes:
                    return rule, values
                raise RequestRedirect(location)
        if allowed and not isinstance(error, RequestRedirect):
            raise MethodNotAllowed(list(allowed))
        raise error


def both_maps(
    dialect: Dialect, prefix: str, rules: Iterable[Intruder], **options: Any
) -> tuple[RegistryMap, Map]:
    """A registry map, and a plain map of the same rules in the same order."""
    options["converters"] = {**CONVERTERS, **dialect.converters}
    return (
        RegistryMap(dialect, prefix=prefix, rules=[one.make() for one in rules], **options),
        Map(
            [Submount(prefix, [RegistryRules(dialect)]), *(one.make() for one in rules)],
            **options,
        ),
    )


def paths(random: Random, prefix: str, rules: Iterable[Intruder]) -> list[str]:
    near = [path for one in rules for path in one.paths]
    near += [prefix + path for path in near]
    anywhere = [decoded_path(nasty.target(random, prefix)) for _ in range(10)]
    return [*near, *map(other_ending, near), *anywhere, "v2/", f"{prefix}/v2", f"/{prefix}/v2/"]


def assert_same(
    ours: MapAdapter, theirs: Plain, random: Random, some_paths: list[str]
) -> Counter[Any]:
    seen: Counter[Any] = Counter()
    for path in some_paths:
        method = random.choice(METHODS)
        query = random.choice(["", "", "n=1&last=a/b"])
        websocket = random.choice([None, None, None, True, False])
        for return_rule in True, False:
            expected = outcome(lambda: theirs.match(path, method, query, websocket))
            if not return_rule and isinstance(expected[0], str):
                expected = ((expected[1], expected[-1]),)
            got = outcome(lambda: ours.match(path, method, return_rule, query, websocket))
            assert got == expected, (path, method, query, websocket)
        seen[expected[0] if isinstance(expected[0], type) else "hit"] += 1

        def plain(method: str) -> Outcome:
            return outcome(lambda: theirs.match(path, method, {}, None))

        refused = plain("--")
        allowed = refused[1] if refused[0] is MethodNotAllowed else ()
        assert set(ours.allowed_methods(path)) == set(allowed), path
        hit = isinstance(plain(method)[0], str)
        assert ours.test(path, method) == (hit or plain(method)[0] is RequestRedirect)
        if hit:
            assert ours.dispatch(lambda e, v: (e, v), path, method) == tuple(plain(method)[1::4])  # type: ignore[comparison-overlap, arg-type, return-value]
    return seen


@settings(max_examples=250)
@given(
    seed=st.integers(0, 2**32),
    dialect=st.sampled_from([*DIALECTS.values()]),
    prefix=st.sampled_from(["", "", "/r", "/v2", "/a/v2/v2", "/<any(x, y):tenant>"]),
    rules=st.lists(st.sampled_from(INTRUDERS), max_size=4, unique=True),
    added=st.lists(st.sampled_from(INTRUDERS), max_size=2, unique=True),
    options=st.fixed_dictionaries(
        {},
        optional={
            "strict_slashes": st.just(False),
            "merge_slashes": st.just(False),
            "host_matching": st.just(True),
            "redirect_defaults": st.just(False),
            "default_subdomain": st.sampled_from(["sub", "<user>"]),
        },
    ),
    subdomain=st.sampled_from([None, None, None, "sub", "someone", ""]),
    scheme=st.sampled_from(["http", "https", "http", "ws"]),
    script_name=st.sampled_from(["/", "/mount"]),
)
def test_every_answer_is_werkzeugs(
    seed: int,
    dialect: Dialect,
    prefix: str,
    rules: list[Any],
    added: list[Any],
    options: dict[str, Any],
    subdomain: str | None,
    scheme: str,
    script_name: str,
) -> None:
    random = Random(seed)
    registry_map, plain_map = both_maps(dialect, prefix, rules, **options)
    if options.get("host_matching"):
        subdomain = None
    bind = {"script_name": script_name, "subdomain": subdomain, "url_scheme": scheme}
    ours = registry_map.bind("registry.example", **bind)  # type: ignore[arg-type]
    theirs = Plain.bound(plain_map, **bind)
    used_prefix = prefix.replace("<any(x, y):tenant>", "y")
    some_paths = paths(random, used_prefix, [*rules, *added])
    assert_same(ours, theirs, random, some_paths)
    for one in added:
        registry_map.add(one.make())
        plain_map.add(one.make())
    theirs = Plain.bound(plain_map, **bind)
    assert_same(ours, theirs, random, some_paths)


@pytest.mark.parametrize("intruder", INTRUDERS, ids=lambda one: one.paths[0])
def test_each_intruder_alone(intruder: Intruder) -> None:
    random = Random(1)
    for dialect in DIALECTS.values():
        ours, theirs = both_maps(dialect, "", [intruder])
        for subdomain in None, "sub", "someone":
            adapter = ours.bind("registry.example", subdomain=subdomain)
            plain = Plain.bound(theirs, subdomain=subdomain)
            for _ in range(5):  # with other methods
                assert_same(adapter, plain, random, paths(random, "", [intruder]))


def test_the_comparison_meets_every_kind_of_answer() -> None:
    random = Random(1)
    seen: Counter[Any] = Counter()
    for _ in range(40):
        rules = random.sample(INTRUDERS, 2)
        ours, theirs = both_maps(OCI_1_1, "", rules)
        adapter, plain = ours.bind("registry.example"), Plain.bound(theirs)
        seen += assert_same(adapter, plain, random, paths(random, "", rules))
    assert all(seen[kind] > 50 for kind in ("hit", NotFound, RequestRedirect, MethodNotAllowed)), (
        seen
    )


def test_rules_elsewhere_leave_the_fast_path_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were Werkzeug asked, this would raise: misses, redirects and errors are fast too."""
    url_map = RegistryMap(
        rules=[
            Rule("/static/<path:filename>", endpoint="static"),
            Rule("/about", endpoint="about"),
            Rule("/v2/token", endpoint="token"),
        ]
    )
    adapter = url_map.bind("registry.example")
    assert adapter.match("/static/x") == ("static", {"filename": "x"})
    assert adapter.match("/v2/token") == ("token", {})

    def not_asked(*_: object, **__: object) -> None:
        raise AssertionError("Werkzeug's matcher was asked")

    monkeypatch.setattr(MapAdapter, "match", not_asked)
    for path in "/v2/", f"/v2/a/b/blobs/{SHA256}", "/v2/token/tags/list":
        assert adapter.match(path)
    for path in "/v2", "/v2/a/tags/list/", "/v2/x/../a/tags/list":
        with pytest.raises(RequestRedirect):
            adapter.match(path)
    for path in "/v2/A/tags/list", "/v2/a/../../x", "/" * 1000 + "x", "/nothing":
        assert outcome(lambda: adapter.match(path)) == (NotFound,)
    with pytest.raises(MethodNotAllowed):
        adapter.match("/v2/", "POST")
    with pytest.raises(AssertionError):
        adapter.match("/about")


def test_a_dialect_of_ones_own() -> None:
    """Its converters may change a value: then there is no fast path."""

    class Shout(GrammarConverter, grammar=TagConverter.grammar):
        def to_python(self, value: str) -> str:
            return f"{value}!"

    dialect = Dialect(
        "mine",
        (
            Route(RouteName.BASE, "/v2/", ("GET",), "", ""),
            Route(RouteName.BLOB, "/v2/<repository:name>/shout/<shout:tag>", ("GET",), "", ""),
        ),
        {**OCI_1_1.converters, "shout": Shout},
    )
    adapter = RegistryMap(dialect).bind("registry.example")
    assert adapter.match("/v2/") == ("base", {})
    assert adapter.match("/v2/a/shout/x") == ("blob", {"name": "a", "tag": "x!"})
    with pytest.raises(RequestRedirect):
        adapter.match("/v2/a/shout/x/")


@pytest.mark.parametrize(
    ("path", "rule", "values", "refused"),
    [
        ("tags/<tag>", "tags/x y", {"tag": "x y"}, "tags/x/y"),
        ("tags/<tag():tag>", "tags/v1", {"tag": "v1"}, "tags/.v1"),
        ("tags/<any(one, two):tag>", "tags/two", {"tag": "two"}, "tags/three"),
        ("tags/<string(length=2):tag>", "tags/ab", {"tag": "ab"}, "tags/abc"),
        ("tags/<int:tag>", "tags/7", {"tag": 7}, "tags/x"),
        ("tags/<path:tag>/list", "tags/x//y/list", None, ""),
        ("tags/<path:tag>/list", "tags/x/y/list", {"tag": "x/y"}, "tags/x/y"),
        ("tags/<shifted:tag>", "tags/xyz", {"tag": "xyz"}, "tags/abc"),
        ("tags/<other:tag>", "tags/a-b", {"tag": "a-b"}, "tags/abc"),
        ("tags/<tag:tag>.json", "tags/v1.2.json", {"tag": "v1.2"}, "tags/v1.2"),
    ],
)
def test_a_dialects_rules_may_have_whatever_rules_have(
    path: str, rule: str, values: dict[str, Any] | None, refused: str
) -> None:
    class Shifted(TagConverter):
        def __init__(self, url_map: Map) -> None:
            super().__init__(url_map)
            self.regex = "[x-z]+"

    class Other(TagConverter):
        regex = "[a-z]-[a-z]"

    dialect = Dialect(
        "mine",
        (
            Route(RouteName.BASE, "/v2/", ("GET",), "", ""),
            Route(RouteName.TAGS, f"/v2/<repository:name>/{path}", ("GET",), "", ""),
        ),
        {**OCI_1_1.converters, "shifted": Shifted, "other": Other},
    )
    url_map = RegistryMap(dialect)
    adapter = url_map.bind("registry.example")
    assert adapter.match("/v2/") == ("base", {})
    with pytest.raises(RequestRedirect):
        adapter.match("/v2")
    target = f"/v2/a/b/{rule}"
    if values is None:
        with pytest.raises(RequestRedirect):
            adapter.match(target)
        return
    assert adapter.match(target) == ("tags", {"name": "a/b", **values})
    built = adapter.build("tags", {"name": "a/b", **values})
    assert built == quote(target)
    with pytest.raises(RequestRedirect) as redirect:
        adapter.match(f"//v2/a/b/{rule}/")
    assert redirect.value.new_url == quote(target)
    for one in "/v2/A/b", "/v2/a/b/tags", "/v2/a/b/tags/.x/y/z", f"/v2/a/b/{refused}":
        with pytest.raises(NotFound):
            adapter.match(one)


def test_no_code_of_a_users_runs_for_a_path_that_was_not_asked_for() -> None:
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
    for method in "POST", "PATCH":
        with pytest.raises(MethodNotAllowed) as refused:
            adapter.match("/v2/a/tags/list", method)
        assert set(refused.value.valid_methods or ()) == {"GET", "HEAD", "PUT", "DELETE"}
    assert not called
    with pytest.raises(RequestRedirect) as redirect:
        adapter.match("/v2/b/tags/")
    assert redirect.value.new_url == "http://registry.example/elsewhere"
    assert called == ["b", {"name": "b"}]


def test_a_variable_of_another_rule_is_not_taken_for_our_text() -> None:
    """Werkzeug prefers our static segment to its variable: `_may_precede` need not suspect it."""
    url_map = RegistryMap(
        rules=[Rule("/<string:api>/<repository:name>/tags/list", endpoint="any-api")]
    )
    adapter = url_map.bind("registry.example")
    assert adapter.match("/v2/a/tags/list") == ("tags", {"name": "a"})
    assert adapter.match("/v3/a/tags/list") == ("any-api", {"api": "v3", "name": "a"})
    assert url_map._fast_path
    assert not url_map._fast_path.suspects


def test_another_rule_may_take_values_with_newlines() -> None:
    class Text(BaseConverter):
        regex = "[^/]+(?:/[^/]+)*"
        weight = 1  # so it comes before ours

    mine = Rule("/v2/<text:x>/blobs/uploads/<text:y>", endpoint="mine")
    options: dict[str, Any] = {"converters": {**DOCKER_1_5.converters, "text": Text}}
    ours = RegistryMap(DOCKER_1_5, rules=[mine.empty()], **options)
    theirs = Map([RegistryRules(DOCKER_1_5), mine], **options)
    for upload in "x", "x\ny", "x\n":
        path = f"/v2/a/b/blobs/uploads/{upload}"
        assert theirs.bind("h").match(path)[0] == "mine"
        assert ours.bind("h").match(path) == ("mine", {"x": "a/b", "y": upload})


def test_a_redirect_to_a_path_that_another_rule_takes() -> None:
    """As Werkzeug redirects: what is not built for a user is built for an alias."""
    url_map = RegistryMap(
        rules=[
            Rule("/v2/<repository:name>/tags", endpoint="tags", alias=True),
            Rule(NGINX, endpoint="mine"),
        ]
    )
    with pytest.raises(RequestRedirect) as redirect:
        url_map.bind("registry.example").match("/v2/library/nginx/tags")
    assert redirect.value.new_url == f"http://registry.example{NGINX}"


def test_where_hosts_are_matched_our_rules_have_none() -> None:
    for default in None, "", "x":
        url_map = RegistryMap(host_matching=True, default_subdomain=default)
        plain = Map([RegistryRules()], host_matching=True, default_subdomain=default or "")
        for path in "/v2/", "/v2", "/v2/a/tags/list":
            assert outcome(lambda: url_map.bind("h").match(path)) == (NotFound,)
            assert outcome(lambda: plain.bind("h").match(path)) == (NotFound,)


def test_where_the_default_subdomain_is_a_variable_our_rules_have_it() -> None:
    adapter = RegistryMap(default_subdomain="<user>").bind("registry.example", subdomain="alice")
    values = {"user": "alice", "name": "a"}
    assert adapter.match("/v2/a/tags/list") == ("tags", values)
    built = adapter.build("tags", values | {"user": "bob"})
    assert built == "http://bob.registry.example/v2/a/tags/list"
    unbound = RegistryMap(default_subdomain="<tag:user>").bind("registry.example")
    with pytest.raises(NotFound):
        unbound.match("/v2/a/tags/list")


def test_the_registrys_rules_may_have_a_host() -> None:
    class AtHost(RuleFactory):
        def get_rules(self, map: Map) -> Iterable[Rule]:
            for rule in RegistryRules().get_rules(map):
                rule.host = "registry.example"
                yield rule

    url_map = RegistryMap(host_matching=True, rules=[AtHost()])
    here, elsewhere = url_map.bind("registry.example"), url_map.bind("other.example")
    assert here.match("/v2/a/tags/list") == ("tags", {"name": "a"})
    for path, location in {"/v2": "/v2/", "//v2/a/tags/list/": "/v2/a/tags/list"}.items():
        assert outcome(lambda: here.match(path)) == (RequestRedirect, 308, location)
        assert outcome(lambda: elsewhere.match(path)) == (NotFound,)


def test_slashes_are_merged_or_not_as_the_map_says_now() -> None:
    url_map = RegistryMap()
    adapter = url_map.bind("registry.example")
    for merge in True, False, True:
        url_map.merge_slashes = merge
        for path in "/v2//a/tags/list", "/v2/x/../a/tags/list":
            expected = (RequestRedirect, 308, "/v2/a/tags/list") if merge else (NotFound,)
            assert outcome(lambda: adapter.match(path)) == expected
        expected = (RequestRedirect, 308, "/v2/a/tags/list")
        assert outcome(lambda: adapter.match("/v2/a/tags/list/")) == expected


@pytest.mark.parametrize("rest", [[], [Rule("/<path:rest>", endpoint="rest", methods=["PUT"])]])
def test_a_slash_too_many_at_the_end_of_a_branch_is_merged_or_not(
    rest: list[Rule],
) -> None:
    path = "/v2/a/blobs/uploads/"
    for merge in True, False:
        own = [rule.empty() for rule in rest]
        adapter = RegistryMap(merge_slashes=merge, rules=own).bind("registry.example")
        merged = outcome(lambda: adapter.match(f"{path}/", "POST"))
        if merge:
            assert merged == (RequestRedirect, 308, path)
        else:
            assert merged == ((MethodNotAllowed, {"PUT"}) if rest else (NotFound,))


def test_a_rule_that_cannot_be_added_changes_nothing() -> None:
    url_map = RegistryMap()
    adapter = url_map.bind("registry.example")
    assert adapter.match("/v2/") == ("base", {})
    with pytest.raises(LookupError):
        url_map.add(
            Submount("/v2", [Rule("/token", endpoint="token"), Rule("/<no:x>", endpoint="x")])
        )
    assert adapter.match("/v2/token") == ("token", {})  # it was added before the other failed
    assert adapter.match("/v2/a/tags/list") == ("tags", {"name": "a"})


def test_a_rule_factory_may_match_in_the_map_it_is_added_to() -> None:
    class Asks(RuleFactory):
        def get_rules(self, map: Map) -> Iterable[Rule]:
            endpoint, _ = map.bind("h").match("/v2/_catalog")
            yield Rule(f"/of/{endpoint}", endpoint="of")

    url_map = RegistryMap()
    url_map.add(Asks())
    assert url_map.bind("h").match("/of/catalog") == ("of", {})


class TestBinding:
    """`bind_to_environ` binds late what a match does not need; nobody can tell."""

    ENVIRONS: list[dict[str, Any]] = [
        environ_for("/v2/"),
        environ_for("/v2/a/tags/list?n=1", SCRIPT_NAME="/mount/é".encode().decode("latin-1")),
        environ_for("/v2/%C3%A9%FF?q=%C3%A9"),
        environ_for("/v2", "POST", HTTP_HOST="registry.example:80"),
        environ_for("/v2", HTTP_HOST="registry.example:443", **{"wsgi.url_scheme": "https"}),
        environ_for("/v2/", HTTP_HOST="REGISTRY.Example:5000"),
        environ_for("/v2/", HTTP_HOST="[::1]:5000"),
        environ_for("/v2/", HTTP_HOST="bücher.example"),
        environ_for("/v2/", HTTP_HOST=""),
        environ_for("/v2/", HTTP_HOST="a" * 70 + ".example"),
        environ_for("/v2/", HTTP_HOST="a..b"),
        environ_for("/v2/", HTTP_UPGRADE="websocket", HTTP_CONNECTION="keep-alive, Upgrade"),
        environ_for("/v2/", HTTP_UPGRADE="h2c", HTTP_CONNECTION="Upgrade"),
        environ_for("/v2/", **{"wsgi.url_scheme": "wss"}),
        {key: value for key, value in environ_for("/v2/").items() if key != "HTTP_HOST"},
        {key: value for key, value in environ_for("/v2/").items() if key != "PATH_INFO"},
        {key: value for key, value in environ_for("/v2/").items() if key != "SCRIPT_NAME"},
        {key: value for key, value in environ_for("/v2/").items() if key != "QUERY_STRING"},
    ]
    ATTRIBUTES = vars(Map().bind("h")).keys() - {"map"}

    @pytest.mark.parametrize("environ", ENVIRONS, ids=lambda environ: str(environ)[:20])
    @pytest.mark.parametrize("options", [{}, {"host_matching": True}, {"default_subdomain": "x"}])
    @pytest.mark.parametrize("given", [{}, {"server_name": "example"}, {"subdomain": "x"}])
    @pytest.mark.filterwarnings("ignore:Current server name")
    def test_the_adapter_has_what_werkzeugs_has(
        self, environ: dict[str, Any], options: dict[str, Any], given: dict[str, Any]
    ) -> None:
        ours, theirs = RegistryMap(**options), Map(**options)

        def attributes(url_map: Map) -> Outcome:
            def call() -> Any:
                adapter = url_map.bind_to_environ(environ, **given)
                return {name: getattr(adapter, name) for name in self.ATTRIBUTES}

            try:
                return outcome(call)
            except RuntimeError as error:  # a subdomain given to a map that matches hosts
                return (str(error),)

        expected = attributes(theirs)
        for _ in range(3):  # the first binding of a host is done in full
            assert attributes(ours) == expected

    def test_a_missing_key_is_an_error_as_in_werkzeug(self) -> None:
        url_map = RegistryMap()
        url_map.bind_to_environ(environ_for("/v2/"))
        for key in "REQUEST_METHOD", "wsgi.url_scheme":
            environ = environ_for("/v2/")
            del environ[key]
            with pytest.raises(KeyError):
                url_map.bind_to_environ(environ)

    def test_the_environ_is_read_as_it_is_when_bound(self) -> None:
        url_map = RegistryMap()
        for _ in range(2):
            environ = environ_for("/v2/a/tags/list?n=1", SCRIPT_NAME="/mount")
            adapter = url_map.bind_to_environ(environ)
            environ |= {"SCRIPT_NAME": "/other", "QUERY_STRING": "", "PATH_INFO": "/"}
            assert adapter.match() == ("tags", {"name": "a"})
            assert adapter.build("base") == "/mount/v2/"
            assert adapter.query_args == "n=1"

    @pytest.mark.filterwarnings("ignore:Current server name")
    def test_a_host_that_werkzeug_refuses_is_refused_again(self) -> None:
        url_map = RegistryMap()
        environ = environ_for("/v2/", HTTP_HOST="a..b")
        assert url_map.bind_to_environ(environ, server_name="registry.example")
        for _ in range(2):
            with pytest.raises(BadRequest):
                url_map.bind_to_environ(environ)

    def test_many_hosts_are_not_remembered_for_ever(self) -> None:
        url_map = RegistryMap()
        for i in range(3000):
            adapter = url_map.bind_to_environ(environ_for("/v2/", HTTP_HOST=f"host-{i}.example"))
            assert adapter.match() == ("base", {})
        assert 0 < len(url_map._good_hosts) <= 1000


class TestBuilding:
    CALLS: list[tuple[str, dict[str, Any]]] = [
        ("base", {}),
        ("catalog", {"n": 3}),
        ("tags", {"name": "a/b"}),
        ("tags", {"name": "A/b"}),
        ("tags", {"name": "a/b", "n": 3, "last": None}),
        ("manifest", {"name": "a/b", "tag": "v1"}),
        ("manifest", {"tag": "latest", "name": "a/b"}),
        ("manifest", {"name": "a/b", "digest": SHA256}),
        ("manifest", {"name": "a/b", "digest": SHA256, "tag": "v1"}),
        ("manifest", {"name": "a/b", "tag": None}),
        ("manifest", {"name": "a/b", "tag": 3}),
        ("blob", {"name": "a/b", "digest": SHA256}),
        ("blob-upload", {"name": "a/b"}),
        ("blob-upload-chunk", {"name": "a/b", "uuid": "x="}),
        ("blob-upload-chunk", {"name": "a/b", "uuid": "é %/"}),
        ("blob-upload-chunk", {"name": "a/b", "uuid": "é %"}),
        ("extension", {"extension": "a", "component": "b", "module": "c"}),
        ("extension", {"extension": "a", "component": "b", "module": "c", "name": "a/b"}),
        ("nothing", {"name": "a/b"}),
    ]
    SAME_ENDPOINTS = [
        one for one in INTRUDERS if getattr(one.make(), "endpoint", "") in set(RouteName)
    ]

    @example(OCI_1_1, "", [], "sub", None, CALLS[2], {"force_external": True})
    @settings(max_examples=300)
    @given(
        dialect=st.sampled_from([*DIALECTS.values()]),
        prefix=st.sampled_from(["", "/r", "/100%/%x", "/a>b é"]),
        rules=st.lists(st.sampled_from(SAME_ENDPOINTS), max_size=3, unique=True),
        default_subdomain=st.sampled_from(["", "", "sub"]),
        subdomain=st.sampled_from([None, None, "sub", ""]),
        call=st.sampled_from(CALLS),
        arguments=st.fixed_dictionaries(
            {},
            optional={
                "method": st.sampled_from([None, "GET", "POST", "PUT"]),
                "force_external": st.booleans(),
                "url_scheme": st.sampled_from(["", "http", "https", "ws", "ftp", None]),
                "append_unknown": st.booleans(),
            },
        ),
    )
    def test_every_url_is_werkzeugs(
        self,
        dialect: Dialect,
        prefix: str,
        rules: list[Any],
        default_subdomain: str,
        subdomain: str | None,
        call: tuple[str, dict[str, Any]],
        arguments: dict[str, Any],
    ) -> None:
        ours, theirs = both_maps(dialect, prefix, rules, default_subdomain=default_subdomain)

        def built(url_map: Map) -> tuple[type, str]:
            adapter = url_map.bind("registry.example", "/m", subdomain, "https")
            try:
                return str, adapter.build(*call, **arguments)
            except Exception as error:
                return type(error), str(error)

        assert built(ours) == built(theirs)

    def test_a_path_that_another_rule_takes_is_not_built(self) -> None:
        rules = [
            Rule(NGINX, endpoint="one"),
            Rule("/v2/<repository:name>/blobs/uploads/", endpoint="upload", methods=["PUT"]),
            Rule("/v2/token", endpoint="token"),
            Rule("/v2/_catalog", endpoint="catalog", build_only=True),
        ]
        for subdomain in None, "sub":
            url_map = RegistryMap(
                rules=[rule.empty() for rule in rules], default_subdomain=subdomain or ""
            )
            adapter = url_map.bind("registry.example", "/mount")
            for external in False, True:
                build = partial(adapter.build, force_external=external)
                assert build("tags", {"name": "library/other"})
                assert build("catalog")
                assert build("blob-upload", {"name": "a"})
                assert build("one").endswith(NGINX)
                for values, query in ({}, ""), ({"n": 1}, r"\?n=1"):
                    refused = rf"URL '.*/mount{NGINX}{query}' is not built"
                    with pytest.raises(ValueError, match=refused):
                        build("tags", {"name": "library/nginx", **values})

    def test_values_may_be_a_multidict(self) -> None:
        adapter = RegistryMap().bind("registry.example")
        several = MultiDict([("name", "a/b"), ("n", "1"), ("n", "2")])
        assert adapter.build("tags", several) == "/v2/a/b/tags/list?n=1&n=2"
        with pytest.raises(ValueError, match="must be a string, not list"):
            adapter.build("tags", MultiDict([("name", "a"), ("name", "b")]))


def test_from_many_threads_while_rules_are_added() -> None:
    url_map = RegistryMap()
    errors: list[BaseException] = []
    added: list[str] = []
    done = threading.Event()

    def match() -> None:
        random = Random(threading.get_ident())
        try:
            while not done.is_set():
                known = added[-1:]
                adapter = url_map.bind_to_environ(environ_for("/v2/a/b/tags/list"))
                assert adapter.match() == ("tags", {"name": "a/b"})
                assert adapter.match("/v2/x/blobs/uploads/1", "PUT")[0] == "blob-upload-chunk"
                for endpoint in known:  # what was added before is there at once
                    assert adapter.match(f"/v2/{endpoint}") == (endpoint, {})
                with pytest.raises(NotFound):
                    adapter.match(f"/v2/X{random.random()}")
                assert adapter.build("tags", {"name": "a"}) == "/v2/a/tags/list"
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=match) for _ in range(8)]
    try:
        for thread in threads:
            thread.start()
        for i in range(60):
            endpoint = f"added-{i}"
            url_map.add(Rule(f"/v2/{endpoint}", endpoint=endpoint))
            added.append(endpoint)
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not errors, errors[0]
