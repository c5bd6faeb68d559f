"""Building: built URLs match back, and values outside the grammar are refused."""

from random import Random
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict
from werkzeug.routing import BuildError, Map, Rule, Submount

from registry_routes import (
    CONVERTERS,
    DOCKER_1_5,
    OCI_1_1,
    Dialect,
    RegistryMap,
    RegistryRules,
    RouteName,
)
from registry_routes.grammar import Grammar
from registry_routes.routes import DIALECTS

from . import nasty
from .nasty import SHA256
from .wsgi import environ_for

PREFIXES = ["", "/registry", "/a/v2/v2", "/with space/é"]
MAPS = {
    (dialect.name, prefix): RegistryMap(dialect=dialect, prefix=prefix)
    for dialect in DIALECTS.values()
    for prefix in PREFIXES
}

KINDS: dict[str, list[str]] = {
    "name": ["library/nginx", *(f"a/{c}" for c in nasty.COMPONENTS.all), *nasty.COMPONENTS.all],
    "tag": nasty.TAGS.all,
    "digest": nasty.DIGESTS.all,
    "uuid": nasty.UPLOAD_IDS.all,
    "extension": nasty.EXTENSIONS.all,
    "component": nasty.EXTENSIONS.all,
    "module": nasty.EXTENSIONS.all,
}


def grammar_of(dialect: Dialect, variable: str) -> Grammar:
    converter = {"name": "repository", "uuid": "upload_id"}.get(variable, variable)
    found = dialect.converters.get(converter, dialect.converters.get("extension"))
    grammar: Grammar = found.grammar  # type: ignore[union-attr]
    return grammar


def valid_values(dialect: Dialect, variable: str) -> st.SearchStrategy[str]:
    grammar = grammar_of(dialect, variable)
    listed = [value for value in KINDS[variable] if grammar.fits(value)]
    generated = st.from_regex(grammar.pattern, fullmatch=True).filter(grammar.fits)
    return st.sampled_from(listed) | generated


# The dialect, the endpoint, the variables and one of the methods of each rule.
RULES: list[tuple[Dialect, str, list[str], str]] = [
    (dialect, rule.endpoint, sorted(rule.arguments), min(rule.methods or ["GET"]))
    for dialect in DIALECTS.values()
    for rule in RegistryMap(dialect=dialect).iter_rules()
]


@given(data=st.data(), prefix=st.sampled_from(PREFIXES), mount=st.sampled_from(["", "/mount"]))
def test_built_url_matches_back(data: st.DataObject, prefix: str, mount: str) -> None:
    dialect, endpoint, variables, method = data.draw(st.sampled_from(RULES))
    url_map = MAPS[dialect.name, prefix]
    values = {variable: data.draw(valid_values(dialect, variable)) for variable in variables}
    adapter = url_map.bind_to_environ(environ_for("/", SCRIPT_NAME=mount))
    for options in {}, {"method": method}, {"force_external": True, "url_scheme": "https"}:
        url = adapter.build(endpoint, {**values, "extra": "a b&c"}, **options)
        parts = urlsplit(url)
        assert url.isascii()
        assert parts[:2] == (("https", "registry.example") if "url_scheme" in options else ("", ""))
        assert parse_qs(parts.query) == {"extra": ["a b&c"]}
        target = parts.path.removeprefix(mount)
        server = url_map.bind_to_environ(environ_for(target, method, SCRIPT_NAME=mount))
        assert server.match() == (endpoint, values)


def test_value_outside_the_grammar_is_refused() -> None:
    good = {"name": "library/nginx", "tag": "latest", "digest": SHA256, "uuid": "some-id"}
    good |= {"extension": "oci", "component": "ext", "module": "discover"}
    for dialect, endpoint, variables, _ in RULES:
        adapter = RegistryMap(dialect=dialect).bind("registry.example")
        values = {variable: good[variable] for variable in variables}
        adapter.build(endpoint, values)
        for variable in variables:
            grammar = grammar_of(dialect, variable)
            bad_values = [value for value in KINDS[variable] if not grammar.fits(value)]
            assert bad_values
            for bad in [*bad_values, "..", "a/../b", 3, b"latest", UUID(int=0)]:
                with pytest.raises(ValueError, match=f"^{grammar.kind} ") as error:
                    adapter.build(endpoint, values | {variable: bad})
                rule = grammar.broken_rule(bad) if isinstance(bad, str) else "must be a string"
                assert str(error.value).startswith(f"{grammar.kind} {bad!r}"[:100])
                assert str(rule) in str(error.value)


CALLS: list[tuple[str, Any]] = [
    ("base", {}),
    ("base", None),
    ("catalog", {"n": 3}),
    ("tags", {"name": "a/b"}),
    ("tags", {"name": "A/b"}),
    ("tags", {"name": "a/b", "n": 3, "last": None}),
    ("tags", MultiDict([("name", "a/b"), ("n", "1"), ("n", "2")])),
    ("tags", MultiDict([("name", "a"), ("name", "b")])),
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
    ("token", {}),
]


@example(OCI_1_1, "", "sub", "https", None, {"force_external": True})
@given(
    dialect=st.sampled_from([*DIALECTS.values()]),
    prefix=st.sampled_from(["", "/r", "/100%/%x", "/a>b é"]),
    default_subdomain=st.sampled_from(["", "", "sub"]),
    bound_scheme=st.sampled_from(["http", "https", "ws", "wss", ""]),
    subdomain=st.sampled_from([None, None, "sub", ""]),
    arguments=st.fixed_dictionaries(
        {},
        optional={
            "method": st.sampled_from([None, "GET", "POST", "PUT"]),
            "force_external": st.booleans(),
            "url_scheme": st.sampled_from(["", "http", "https", "ws", "wss", "ftp", None]),
            "append_unknown": st.booleans(),
        },
    ),
)
def test_every_url_is_the_same_as_from_a_plain_map(
    dialect: Dialect,
    prefix: str,
    default_subdomain: str,
    bound_scheme: str,
    subdomain: str | None,
    arguments: dict[str, Any],
) -> None:
    token = Rule("/v2/token", endpoint="token")
    ours = RegistryMap(
        dialect=dialect, prefix=prefix, rules=[token.empty()], default_subdomain=default_subdomain
    )
    plain = Map(
        [Submount(prefix, [RegistryRules(dialect)]), token], default_subdomain=default_subdomain
    )

    def built(url_map: Map, call: tuple[str, Any]) -> Any:
        adapter = url_map.bind("registry.example", "/m", subdomain, bound_scheme)
        try:
            return adapter.build(*call, **arguments)
        except BuildError:
            return BuildError
        except ValueError as error:
            return str(error)

    for call in CALLS:
        assert built(ours, call) == built(plain, call), call


@pytest.mark.parametrize(
    ("endpoint", "values", "message"),
    [
        ("manifest", {"name": "a"}, "takes name and digest, or name and tag, but was given name"),
        ("tags", {}, "takes name, but was given nothing"),
        ("tags", {7: 8}, "takes name, but was given 7"),
        (
            *("extension", {"name": "a", "module": None}),
            "takes extension and component and module, or name and extension and component and "
            "module, but was given name",
        ),
    ],
)
def test_build_error_names_the_variables_of_each_route_of_the_endpoint(
    endpoint: str, values: dict[Any, Any], message: str
) -> None:
    with pytest.raises(BuildError) as error:
        RegistryMap().bind("registry.example").build(endpoint, values)
    assert str(error.value) == f"endpoint {endpoint!r} {message}"
    assert (error.value.endpoint, error.value.method) == (endpoint, None)


def test_route_names_are_the_endpoints() -> None:
    endpoints = {rule.endpoint for rule in RegistryMap().iter_rules()}
    assert endpoints == set(RouteName)
    assert {type(endpoint) for endpoint in endpoints} == {str}
    assert RegistryMap().bind("h").build(RouteName.CATALOG) == "/v2/_catalog"
    assert set(CONVERTERS) == {"repository", "tag", "digest", "upload_id", "extension"}
    docker = {rule.endpoint for rule in RegistryMap(dialect=DOCKER_1_5).iter_rules()}
    assert docker == set(RouteName) - {"referrers", "catalog", "extension"}


@given(st.randoms(use_true_random=False))
def test_converters_build_and_match_in_any_map(random: Random) -> None:
    url_map = Map(
        [Rule(f"/x/<{name}:value>/y", endpoint=name) for name in CONVERTERS], converters=CONVERTERS
    )
    for name, converter in CONVERTERS.items():
        value = random.choice(KINDS[{"repository": "name", "upload_id": "uuid"}.get(name, name)])
        single = Map([Rule("/x/<c:value>/y", endpoint="e")], converters={"c": converter})
        for adapter, endpoint in (url_map.bind("h"), name), (single.bind("h"), "e"):
            if converter.grammar.fits(value):
                url = adapter.build(endpoint, {"value": value})
                assert single.bind("h").match(unquote(url)) == ("e", {"value": value})
            else:
                with pytest.raises(ValueError, match="must "):
                    adapter.build(endpoint, {"value": value})
                assert not single.bind("h").test(f"/x/{value}/y")
