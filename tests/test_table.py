"""The route table alone, without requests and without a map."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_routes import DOCKER_1_5, OCI_1_1
from registry_routes.errors import RouteUnknown
from registry_routes.table import Meaning, RouteTable, clean_path

from .nasty import SHA256
from .oracle import clean as slowly_cleaned

PREFIXES = ["", "/registry", "/a/v2/v2", "/100%/%s/a>b é"]
TABLES = {prefix: RouteTable(prefix=prefix) for prefix in PREFIXES}


def test_a_path_is_under_the_root_by_whole_segments() -> None:
    for prefix, table in TABLES.items():
        for path in "/v2", "/v2/", "/v2/x", "/v2//":
            assert table.is_under_root(prefix + path)
        for path in "/v2x", "/v", "/V2/", "/x/v2/":
            assert not table.is_under_root(prefix + path)
            assert table.explain(prefix + path, "GET") is None
    assert isinstance(TABLES[""].explain("/v2/x", "GET"), RouteUnknown)


def test_a_shorter_name_that_is_well_formed_is_preferred_to_a_malformed_one() -> None:
    """``x/_a`` would be the longer name, but ``_a`` is malformed."""
    meaning = TABLES[""].explain("/v2/x/_a/tags/list/", "GET")
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
        (
            "blob-upload-chunk",
            {"name": "a/b", "uuid": "é %?#"},
            "/v2/a/b/blobs/uploads/%C3%A9%20%25%3F%23",
        ),
    ],
)
def test_a_path_is_built_from_exactly_its_variables(
    endpoint: str, values: dict[str, Any], built: str | None
) -> None:
    dialect = DOCKER_1_5 if "uuid" in values else OCI_1_1
    assert RouteTable(dialect).build(endpoint, values) == built
    expected = built and f"/100%25/%25s/a%3Eb%20%C3%A9{built}"
    assert RouteTable(dialect, "/100%/%s/a>b é").build(endpoint, values) == expected


def test_building_ignores_how_a_subclass_of_str_prints() -> None:
    class Shouting(str):
        def __str__(self) -> str:
            return self.upper()

        def __format__(self, spec: str) -> str:
            return self.upper()

    assert RouteTable().build("tags", {"name": Shouting("a/b")}) == "/v2/a/b/tags/list"


@pytest.mark.parametrize(
    ("prefix", "error"),
    [
        *((prefix, "must start with '/' and have no") for prefix in ("registry", "//", "/a//b")),
        *((prefix, "must start with '/' and have no") for prefix in ("/a/../b", "/./a", ".")),
        *((prefix, "must have no variables") for prefix in ("/<tenant>", "/x/<any(a, b):y>", "/<")),
    ],
)
def test_impossible_prefix_is_refused(prefix: str, error: str) -> None:
    with pytest.raises(ValueError, match=f"^prefix '{re.escape(prefix)}' {error}"):
        RouteTable(OCI_1_1, prefix)


@given(st.text("/.a\n\x00é", max_size=30))
def test_a_path_is_cleaned_as_go_cleans_it(path: str) -> None:
    cleaned = clean_path(f"/{path}")
    assert cleaned == slowly_cleaned(f"/{path}")
    assert clean_path(cleaned) == cleaned


@pytest.mark.parametrize("shape", ["a/", "a", "A/", "manifests/", "_a/b/c/", "/", "a-", "a/_"])
def test_a_long_path_is_explained_in_linear_time(shape: str) -> None:
    """In quadratic time it would take hours."""
    for end in "", "!", "/tags/list/", "/_a/tags/list/", "/blobs/0.5":
        path = f"/v2/{shape * (1_000_000 // len(shape))}{end}"
        assert TABLES[""].explain(path, "GET") is not None
