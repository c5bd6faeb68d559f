"""The routes in the ready-made map, in another map, and within factories of rules."""

from typing import Any

import pytest
from werkzeug.exceptions import NotFound
from werkzeug.routing import (
    BaseConverter,
    EndpointPrefix,
    IntegerConverter,
    Map,
    RequestRedirect,
    Rule,
    Subdomain,
    Submount,
)

from registry_routes import DOCKER_1_5, RegistryMap, RegistryRules, url_map

from .oracle import EXAMPLES


def assert_routes(adapter: Any, prefix: str = "", endpoint_prefix: str = "", **more: str) -> None:
    for path, methods, endpoint, values in EXAMPLES:
        expected = (endpoint_prefix + endpoint, values | more)
        assert adapter.build(*expected) == prefix + path
        for method in methods:
            assert adapter.match(prefix + path, method) == expected
            rule, matched = adapter.match(prefix + path, method, return_rule=True)
            assert (rule.endpoint, matched, method in rule.methods) == (*expected, True)


def test_ready_made_map() -> None:
    assert_routes(url_map.bind("registry.example"))
    assert len(EXAMPLES) == len(list(url_map.iter_rules()))


@pytest.mark.parametrize("dialect", ["docker-1.5", [], None])
def test_value_that_is_not_a_dialect_is_named_in_the_error(dialect: Any) -> None:
    for make in lambda: RegistryMap(dialect=dialect), lambda: RegistryRules(dialect):
        with pytest.raises(TypeError, match=r"^dialect .* is not a Dialect, such as OCI_1_1$"):
            make()


def test_routes_in_another_map_keep_their_converters() -> None:
    class Anything(BaseConverter):
        regex = ".*"

    own = Map(
        [Rule("/", endpoint="index"), RegistryRules()],
        converters={"repository": Anything, "tag": Anything, "digest": Anything},
    )
    assert_routes(own.bind("registry.example"))


def test_routes_within_werkzeugs_factories() -> None:
    """The routes match and build as elsewhere, with Werkzeug's own slashes."""
    own = RegistryMap(
        prefix="/plain",
        rules=[
            Submount("/x", [RegistryRules()]),
            EndpointPrefix("e.", [Submount("/y", [RegistryRules(DOCKER_1_5)])]),
            Submount("/t/<any(one, two):tenant>", [RegistryRules()]),
            Subdomain("sub", [Submount("/s", [EndpointPrefix("s.", [RegistryRules()])])]),
        ],
    )
    adapter = own.bind("registry.example")
    for path, (method, *_), endpoint, values in EXAMPLES:
        for prefix, more in ("/plain", {}), ("/x", {}), ("/t/two", {"tenant": "two"}):
            assert adapter.match(prefix + path, method) == (endpoint, values | more)
    assert adapter.match("/y/v2/a/b/tags/list", "POST") == ("e.tags", {"name": "a/b"})
    assert not adapter.test("/y/v2/a/tags/list")
    for path, location in {
        "/plain/v2": "/plain/v2/",
        "/x/v2": "http://registry.example/x/v2/",
        "/t/one/v2": "http://registry.example/t/one/v2/",
        "/x//v2/": "http://registry.example/x/v2/",
    }.items():
        with pytest.raises(RequestRedirect) as redirect:
            adapter.match(path)
        assert redirect.value.new_url == location
    for path in "/x/v2/a/tags/list/", "/x/v2/./", "/x/v2/A/tags/list":
        with pytest.raises(NotFound) as error:
            adapter.match(path)
        assert type(error.value) is NotFound
    assert_routes(own.bind("registry.example", subdomain="sub"), "/s", "s.")
    assert adapter.build("tags", {"name": "a", "tenant": "one"}) == "/t/one/v2/a/tags/list"
    with pytest.raises(ValueError, match="must be lowercase"):
        adapter.build("e.tags", {"name": "A/b"})


def test_custom_rules_and_converters() -> None:
    own = RegistryMap(
        rules=[Rule("/r/<repository:name>/", endpoint="page"), Rule("/<tag:n>", endpoint="number")],
        converters={"tag": IntegerConverter},  # a name that the registry uses
    )
    adapter = own.bind("registry.example")
    assert_routes(adapter)
    assert adapter.match("/r/library/nginx/") == ("page", {"name": "library/nginx"})
    assert adapter.match("/7") == ("number", {"n": 7})
    own.add(Rule("/late", endpoint="late"))
    assert adapter.match("/late") == ("late", {})
