"""The route table alone, without requests and without a map."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_routes import DOCKER_1_5, OCI_1_1
from registry_routes.table import RouteTable, clean_path

from .nasty import SHA256
from .oracle import clean as slowly_cleaned


class Shouting(str):
    def __str__(self) -> str:
        return self.upper()

    def __format__(self, spec: str) -> str:
        return self.upper()


@pytest.mark.parametrize(
    ("endpoint", "values", "built"),
    [
        ("base", {}, "/v2/"),
        ("tags", {"name": Shouting("a/b")}, "/v2/a/b/tags/list"),
        ("manifest", {"tag": "v1", "name": "a"}, "/v2/a/manifests/v1"),
        ("manifest", {"name": "a", "digest": SHA256}, f"/v2/a/manifests/{SHA256}"),
        ("manifest", {"name": "a", "tag": None}, None),
        ("tags", {"name": "a", "n": 1}, None),
        (
            "blob-upload-chunk",
            {"name": "a/b", "uuid": "é %?"},
            "/v2/a/b/blobs/uploads/%C3%A9%20%25%3F",
        ),
    ],
)
def test_path_is_built_from_exactly_its_variables(
    endpoint: str, values: dict[str, Any], built: str | None
) -> None:
    dialect = DOCKER_1_5 if "uuid" in values else OCI_1_1
    assert RouteTable(dialect).build(endpoint, values) == built
    expected = built and f"/100%25/%25s/a%3Eb%20%C3%A9{built}"
    assert RouteTable(dialect, "/100%/%s/a>b é").build(endpoint, values) == expected


@pytest.mark.parametrize(
    ("error", "prefixes"),
    [
        ("must start with '/' and have no", ["registry", "//", "/a//b", "/a/../b", "."]),
        ("must have no variables", ["/x/<any(a, b):y>", "/<"]),
    ],
)
def test_impossible_prefix_is_refused(error: str, prefixes: list[str]) -> None:
    for prefix in prefixes:
        with pytest.raises(ValueError, match=f"^prefix '{re.escape(prefix)}' {error}"):
            RouteTable(OCI_1_1, prefix)


@given(st.text("/.a\n\x00é", max_size=30))
def test_path_is_cleaned_as_go_cleans_it(path: str) -> None:
    cleaned = clean_path(f"/{path}")
    assert cleaned == slowly_cleaned(f"/{path}")
    assert clean_path(cleaned) == cleaned
