"""Which scopes a request needs, and how they are written."""

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict
from werkzeug.routing import EndpointPrefix, Map

from registry_routes import RegistryRules, url_map
from registry_routes.scopes import Scope, parse_scopes, required_scopes

from .nasty import SHA256
from .oracle import EXAMPLES

NAME = "library/nginx"
OF_A_REPOSITORY = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}
OF_A_REPOSITORY |= dict.fromkeys(["POST", "PUT", "PATCH"], "pull,push")


def scopes_of(method: str, path: str, query: Any = "") -> list[Scope]:
    endpoint, values = url_map.bind("h").match(path, method)
    return required_scopes(endpoint, method, values, query)


def test_scopes_of_each_route() -> None:
    for path, methods, endpoint, values in EXAMPLES:
        for method in methods:
            scope = f"repository:{values.get('name')}:{OF_A_REPOSITORY[method]}"
            if "name" not in values:
                scope = "" if endpoint == "base" else "registry:catalog:*"
            found = scopes_of(method, path)
            assert " ".join(map(str, found)) == scope
            assert parse_scopes(scope) == found
            added = scopes_of(method, path, "from=other/repository")
            assert added[: len(found)] == found
            assert len(added) == len(found) + (method == "POST")


@pytest.mark.parametrize(
    ("query", "sources"),
    [
        (f"mount={SHA256}&from=a%2Fb", "a/b"),
        ({"mount": SHA256, "from": "a"}, "a"),
        (MultiDict([("from", "a"), ("from", "b")]), "a b"),
        ("from=a&from=b", "a b"),  # the registry may use either
        (f"from={NAME}", ""),
        ({"from": ["a", "b"]}, "a b"),
    ],
)
def test_mount_needs_to_pull_from_its_source(query: Any, sources: str) -> None:
    target, *others = scopes_of("POST", f"/v2/{NAME}/blobs/uploads/", query)
    assert str(target) == f"repository:{NAME}:pull,push"
    assert [str(scope) for scope in others] == [
        f"repository:{source}:pull" for source in sources.split()
    ]


@pytest.mark.parametrize("source", ["", "A", "a:pull,push repository:b", "a\n"])
def test_mount_without_a_valid_source_needs_only_its_target(source: str) -> None:
    for query in {"from": source}, {"from": [source]}, f"mount={SHA256}&from={quote(source)}":
        [scope] = scopes_of("POST", f"/v2/{NAME}/blobs/uploads/", query)
        assert str(scope) == f"repository:{NAME}:pull,push"
    _, other = scopes_of("POST", f"/v2/{NAME}/blobs/uploads/", {"from": [source, "b"]})
    assert str(other) == "repository:b:pull"


def test_endpoints_may_have_a_prefix() -> None:
    own = Map([EndpointPrefix("registry.", [RegistryRules()])]).bind("h")
    endpoint, values = own.match("/v2/a/blobs/uploads/", "POST")
    needed = required_scopes(endpoint, "POST", values, {"from": "b", "mount": None})
    assert [str(scope) for scope in needed] == ["repository:a:pull,push", "repository:b:pull"]
    assert required_scopes(*own.match("/v2/")[:1], "GET", {}) == []
    assert required_scopes("registry.catalog", "GET", {}) != []
    assert len(required_scopes(endpoint, "POST", values, {"from": None})) == 1


def test_unknown_method_needs_every_action() -> None:
    assert required_scopes("tags", "PROPFIND", {"name": "a"})[0].actions == ("*",)
    assert required_scopes("tags", "get", {"name": "a"})[0].actions == ("pull",)
    assert len(required_scopes("blob-upload", "post", {"name": "a"}, "from=b")) == 2


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("repository:[::1]:5000/a/b:pull", ("repository", "[::1]:5000/a/b", ("pull",))),
        ("repository(plugin):a:pull", ("repository(plugin)", "a", ("pull",))),
        ("registry:catalog:*", ("registry", "catalog", ("*",))),
        ("repository:a:", ("repository", "a", ())),
        # What other registries write: GitHub, Artifactory, and Amazon's.
        ("repository:x:metadata_read", ("repository", "x", ("metadata_read",))),
        ("repository:x:PULL,scanner-pull", ("repository", "x", ("PULL", "scanner-pull"))),
        *((text, (text, "", ())) for text in ("aws", "repository:a", ":a:b", "r::b", "::", "*")),
        *((text, (text, "", ())) for text in ("Read:a:b", "repository:h:5000/a", "a:b:c?d")),
    ],
)
def test_scopes_are_parsed_and_written_back(
    text: str, parsed: tuple[str, str, tuple[str, ...]]
) -> None:
    scope = Scope.parse(text)
    assert (scope.type, scope.name, scope.actions) == parsed
    assert str(scope) == text
    assert scope.is_granted_by(parse_scopes(f"x:y:z {text}"))
    assert not scope.actions or not scope.is_granted_by(parse_scopes("aws repository:b:pull"))


@pytest.mark.parametrize("text", ["", "r:a b:pull", *(f"r:a{bad}:pull" for bad in '"\\é\x7f\n')])
def test_malformed_scope_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"^scope .* must be printable ASCII, without blanks"):
        Scope.parse(text)


@pytest.mark.parametrize("name", ["a:pull repository:secret/x", "", 5])
def test_scopes_of_a_malformed_name_are_refused(name: Any) -> None:
    """A rule of a user's own may let it through."""
    with pytest.raises(ValueError, match=r"^repository name .* must "):
        required_scopes("tags", "GET", {"name": name})


def test_empty_action_asks_for_nothing() -> None:
    assert Scope.parse("repository:a:,pull,,push,") == Scope("repository", "a", ("pull", "push"))


@pytest.mark.parametrize("actions", ["pull,push", ["pull", "push"]])
def test_actions_are_normalized_to_words(actions: Any) -> None:
    scope = Scope("repository", "a", actions)
    assert scope == Scope.parse("repository:a:pull,push")
    assert hash(scope) == hash(Scope.parse("repository:a:pull,push"))


PARTS = st.text(alphabet="a:,*(/) \n-")


@given(PARTS)
def test_written_scope_is_parsed_back(text: str) -> None:
    try:
        scope = Scope.parse(text)
    except ValueError:
        return
    assert Scope.parse(str(scope)) == scope
    assert parse_scopes(str(scope)) == [scope]
    if ",," not in f",{text.rpartition(':')[2]},":
        assert str(scope) == text


@given(PARTS, PARTS, st.lists(PARTS))
@example("repository", "a:pull repository:b", ["pull"])
@example("repository", "a", ["pull repository:b:pull"])
@example("repository:b:pull a", "a", ["pull"])
@example("a:b", "c", ["d"])
@example("repository", "a", ["a/b"])
@example("repository", "a\n", ["b"])
@example("", "a", ["b"])
def test_constructed_scope_is_parsed_back(type_: str, name: str, actions: list[str]) -> None:
    try:
        scope = Scope(type_, name, tuple(actions))
    except ValueError:
        return
    assert parse_scopes(str(scope)) == [scope]


def test_is_granted_by() -> None:
    needed = Scope("repository", "a", ("pull", "push"))
    for granted, allowed in {
        "": False,
        "repository:a:pull": False,
        "repository:a:pull,push": True,
        "repository:a:pull repository:a:push": True,
        "repository:a:*": True,
        "repository:b:*": False,
        "repository:a/b:pull,push": False,
        "registry:a:*": False,
    }.items():
        assert needed.is_granted_by(parse_scopes(granted)) == allowed, granted
    assert not Scope.parse("aws").is_granted_by(parse_scopes("aws:a:* gcp"))
