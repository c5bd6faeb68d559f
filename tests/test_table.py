"""The route table alone, without requests and without a map."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_routes import DOCKER_1_5, OCI_1_1
from registry_routes.errors import NameInvalid, RegistryError, RouteUnknown
from registry_routes.routes import DIALECTS
from registry_routes.table import Meaning, RouteTable, clean_path, other_ending

from . import nasty
from .nasty import SHA256
from .reference import EXAMPLES, Answer, answer
from .reference import clean as slowly_cleaned
from .wsgi import decoded_path

PREFIXES = ["", "/registry", "/a/v2/v2", "/100%/%s/a>b é"]
TABLES = {prefix: RouteTable(prefix=prefix) for prefix in PREFIXES}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.path)
def test_a_path_matches_with_the_methods_of_its_route_only(example: Any, prefix: str) -> None:
    table = TABLES[prefix]
    for method in nasty.METHODS:
        found = table.match(prefix + example.path, method)
        if method in example.methods:
            assert found is not None
            assert (found[0].endpoint, found[1]) == (example.endpoint, example.values)
        else:
            assert found is None
    assert table.match(prefix + other_ending(example.path), example.methods[0]) is None


def answer_of_the_table(table: RouteTable, path: str, method: str) -> Answer:
    """The answer of a map with strict slashes, from the table alone."""
    found = table.match(path, method)
    if found is not None:
        return Answer(200, (found[0].endpoint, found[1]))
    meaning = table.explain(clean_path(path), method)
    if meaning is None:
        return Answer(404)
    if isinstance(meaning, RegistryError):
        return Answer(meaning.code or 0, meaning.error_code)
    if meaning.route.taken_methods is not None and method not in meaning.route.taken_methods:
        return Answer(405, set(meaning.route.taken_methods))
    return Answer(308, meaning.path)


@given(seed=st.integers(0, 2**32), prefix=st.sampled_from(PREFIXES))
def test_the_table_agrees_with_the_slow_reference(seed: int, prefix: str) -> None:
    for target, method in nasty.requests(seed, 5, prefix):
        path = decoded_path(target)
        assert answer_of_the_table(TABLES[prefix], path, method) == answer(path, method, prefix)


@given(st.text("/._-:aA0", max_size=20), st.sampled_from(sorted(DIALECTS)))
def test_explain_finds_the_route_of_a_path_that_matches(path: str, dialect: str) -> None:
    table = RouteTable(DIALECTS[dialect])
    for target in f"/v2{path}", f"/v2/a/b/{path}", f"/v2/{path}/tags/list":
        found = table.match(target, "GET")
        if found is not None:
            assert table.explain(target, "GET") == Meaning(*found, target)
            assert table.explain(other_ending(target), "GET") == Meaning(*found, target)


def test_a_path_is_under_the_root_by_whole_segments() -> None:
    for prefix, table in TABLES.items():
        for path in "/v2", "/v2/", "/v2/x", "/v2//":
            assert table.is_under_root(prefix + path)
        for path in "/v2x", "/v", "/V2/", "/x/v2/":
            assert not table.is_under_root(prefix + path)
            assert table.explain(prefix + path, "GET") is None
    assert isinstance(TABLES[""].explain("/v2/x", "GET"), RouteUnknown)


def test_a_malformed_name_is_an_error_that_names_it() -> None:
    error = TABLES[""].explain("/v2/library/Nginx/tags/list/", "GET")
    assert isinstance(error, NameInvalid)
    assert error.detail == {"name": "library/Nginx"}


def test_a_shorter_name_that_is_well_formed_is_preferred_to_a_malformed_one() -> None:
    """``x/_a`` would be the longer name, but ``_a`` is malformed."""
    meaning = TABLES[""].explain("/v2/x/_a/tags/list", "PUT")
    assert isinstance(meaning, Meaning)
    assert meaning.route.endpoint == "extension"
    assert meaning.values == {"name": "x", "extension": "a", "component": "tags", "module": "list"}


@pytest.mark.parametrize(
    ("endpoint", "values", "built"),
    [
        ("base", {}, "/v2/"),
        ("tags", {"name": "a/b"}, "/v2/a/b/tags/list"),
        ("manifest", {"tag": "v1", "name": "a"}, "/v2/a/manifests/v1"),
        ("manifest", {"name": "a", "digest": SHA256}, f"/v2/a/manifests/{SHA256}"),
        ("manifest", {"name": "a"}, None),
        ("manifest", {"name": "a", "tag": None}, None),
        ("tags", {"name": "a", "n": 1}, None),
        ("nothing", {}, None),
    ],
)
def test_a_path_is_built_from_exactly_its_variables(
    endpoint: str, values: dict[str, Any], built: str | None
) -> None:
    assert RouteTable().build(endpoint, values) == built
    expected = built and f"/100%25/%25s/a%3Eb%20%C3%A9{built}"
    assert TABLES["/100%/%s/a>b é"].build(endpoint, values) == expected


def test_characters_that_a_path_cannot_have_are_percent_encoded() -> None:
    values = {"name": "a/b", "uuid": "é %?#"}
    built = RouteTable(DOCKER_1_5).build("blob-upload-chunk", values)
    assert built == "/v2/a/b/blobs/uploads/%C3%A9%20%25%3F%23"


def test_building_ignores_how_a_subclass_of_str_prints() -> None:
    class Shouting(str):
        def __str__(self) -> str:
            return self.upper()

        def __format__(self, spec: str) -> str:
            return self.upper()

    assert RouteTable().build("tags", {"name": Shouting("a/b")}) == "/v2/a/b/tags/list"


@pytest.mark.parametrize("prefix", ["registry", "//", "/a//b", "/a/../b", "/./a", "."])
def test_a_prefix_that_is_not_clean_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"must start with '/' and have no empty"):
        RouteTable(OCI_1_1, prefix)


@pytest.mark.parametrize("prefix", ["/<tenant>", "/x/<any(a, b):y>", "/<"])
def test_a_prefix_with_a_variable_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"prefix '.*' must have no variables"):
        RouteTable(OCI_1_1, prefix)


@given(st.text("/.a\n\x00é", max_size=30))
def test_a_path_is_cleaned_as_go_cleans_it(path: str) -> None:
    cleaned = clean_path(f"/{path}")
    assert cleaned == slowly_cleaned(f"/{path}")
    assert clean_path(cleaned) == cleaned


@pytest.mark.parametrize("length", [100_000, 1_000_000])
@pytest.mark.parametrize("shape", ["a/", "a", "A/", "manifests/", "_a/b/c/", "/", "a-", "a/_"])
def test_a_long_path_is_explained_in_linear_time(shape: str, length: int) -> None:
    """In quadratic time it would take hours."""
    random = Random(length)
    for end in "", "!", "/tags/list/", "/_a/tags/list/", f"/blobs/{random.random()}":
        path = f"/v2/{shape * (length // len(shape))}{end}"
        assert TABLES[""].explain(path, "GET") is not None
