"""Dialects: the routes that they may have, their subsets, and an endpoint for each method."""

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException
from werkzeug.routing import IntegerConverter, Map, RequestRedirect

from registry_routes import DOCKER_1_5, OCI_1_1, Dialect, RegistryMap, RegistryRules, Route
from registry_routes.converters import GrammarConverter, TagConverter
from registry_routes.errors import NameInvalid, RouteUnknown, Unsupported
from registry_routes.grammar import TAG
from registry_routes.routes import DIALECTS
from registry_routes.table import RouteTable

from . import nasty
from .nasty import SHA256
from .oracle import EXAMPLES
from .wsgi import decoded_path

NAME = "/v2/<repository:name>"


def dialect(*routes: tuple[str, str, str | None], **converters: Any) -> Dialect:
    """A dialect of endpoints, paths and methods."""
    made = (
        Route(name, path, None if methods is None else tuple(methods.split()))
        for name, path, methods in routes
    )
    return Dialect("mine", tuple(made), {**OCI_1_1.converters, **converters})


@cache
def map_of(routes: Dialect) -> RegistryMap:
    return RegistryMap(dialect=routes)


def answer(routes: Dialect, method: str, path: str) -> Any:
    """Return a map's answer: the endpoint, the target of a redirect, the methods, or an error."""
    try:
        return map_of(routes).bind("h").match(path, method)[0]
    except RequestRedirect as redirect:
        return redirect.new_url
    except Unsupported as error:
        return set(error.valid_methods or ())
    except HTTPException as error:
        return type(error)


class TestSubset:
    read_only = OCI_1_1.subset("base", "manifest", "blob", "tags", methods=["GET"])

    def test_map_of_a_subset_refuses_the_rest(self) -> None:
        for path, methods, endpoint, _ in EXAMPLES:
            for method in nasty.METHODS:
                got = answer(self.read_only, method, path)
                if endpoint not in ("base", "manifest", "blob", "tags"):
                    assert got is RouteUnknown
                else:
                    is_kept = method in ("GET", "HEAD") and method in methods
                    assert got == (endpoint if is_kept else {"GET", "HEAD"})

    def test_path_of_a_route_left_out_is_a_plain_404(self) -> None:
        for path in "/v2/A/blobs/uploads/", "/v2/a/referrers/x", "/v2/_catalog/":
            assert answer(self.read_only, "GET", path) is RouteUnknown
        for path in "/v2/a/_oci/manifests/latest", "/v2/a/_x/manifests/v1/y":
            assert answer(OCI_1_1.subset("manifest"), "GET", path) is RouteUnknown

    def test_path_without_a_method_left_is_405_with_an_empty_allow(self) -> None:
        """A client takes a 404 for "not found"."""
        read_only = OCI_1_1.subset(methods=["GET"])
        for path in "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads":
            with pytest.raises(Unsupported) as error:
                RegistryMap(dialect=read_only).bind("h").match(path, "POST")
            assert error.value.get_response().headers["Allow"] == ""
            assert answer(OCI_1_1.subset("base", methods=["GET"]), "POST", path) is RouteUnknown
        assert answer(read_only, "PUT", "/v2/a/blobs/uploads/1") == {"GET", "HEAD"}
        assert answer(read_only, "POST", "/v2/A/blobs/uploads/") is NameInvalid
        assert answer(read_only.subset("tags"), "POST", "/v2/a/blobs/uploads/") is RouteUnknown

    def test_subset_without_endpoints_has_them_all(self) -> None:
        assert OCI_1_1.subset().routes == OCI_1_1.routes
        pushes = OCI_1_1.subset(methods=(method for method in ["put", "PATCH"]))
        assert {(r.endpoint, r.methods) for r in pushes.routes if r.methods} == {
            ("manifest", ("PUT",)),
            ("blob-upload-chunk", ("PUT", "PATCH")),
        }

    def test_get_implies_head_but_not_the_other_way(self) -> None:
        path = f"/v2/a/blobs/{SHA256}"
        only_head = OCI_1_1.subset("blob", methods=["HEAD"])
        assert answer(only_head, "HEAD", path) == "blob"
        assert answer(only_head, "GET", path) == {"HEAD"}
        assert answer(QUAY.subset(methods=["GET"]), "HEAD", path) == "check_blob_exists"

    def test_dialect_that_takes_any_method_is_limited_to_those_given(self) -> None:
        subset = DOCKER_1_5.subset("tags", methods=["GET", "PROPFIND"])
        assert [route.methods for route in subset.routes] == [("GET", "PROPFIND")]
        assert DOCKER_1_5.subset("tags").routes[0].methods is None

    def test_root_of_a_subset_is_that_of_the_whole(self) -> None:
        for whole in DIALECTS.values():
            for endpoint in "base", "tags", "blob", "blob-upload":
                assert whole.subset(endpoint).root == whole.root == "/v2"
        deep = Route("deep", "/v2/_ext/a/<tag:tag>", ("PUT",))
        subset = Dialect("mine", (*OCI_1_1.routes, deep), OCI_1_1.converters).subset("deep")
        assert subset.root == subset.subset().root == "/v2"

    @pytest.mark.parametrize(
        ("endpoints", "methods", "error", "message"),
        [
            (
                ["nothing"],
                None,
                ValueError,
                "'nothing' is not in the dialect, which has base, blob, ",
            ),
            (["tags", "Tags"], None, ValueError, "endpoint 'Tags' is not in the dialect"),
            ([["tags"]], None, TypeError, "endpoint ['tags'] is not a string: write subset('tags"),
            ([], ["PROPFIND"], ValueError, "no route of 'oci-1.1' takes the method 'PROPFIND'"),
            ([], "GET", TypeError, "methods is the string 'GET': write ['GET']"),
            (["base"], ["PUT"], ValueError, "none of these routes takes a method of ['PUT']"),
            ([], [], ValueError, "none of these routes takes a method of []"),
        ],
    )
    def test_unknown_endpoints_and_methods_are_refused(
        self, endpoints: list[Any], methods: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=re.escape(message)):
            OCI_1_1.subset(*endpoints, methods=methods)


# Some routes of Quay: a function for each method, and HEAD of a blob apart from GET.
QUAY = dialect(
    ("v2_support_enabled", "/v2/", "GET"),
    ("download_blob", f"{NAME}/blobs/<digest:digest>", "GET"),
    ("check_blob_exists", f"{NAME}/blobs/<digest:digest>", "HEAD"),
    ("delete_digest", f"{NAME}/blobs/<digest:digest>", "DELETE"),
    ("start_blob_upload", f"{NAME}/blobs/uploads/", "POST"),
    ("upload_chunk", f"{NAME}/blobs/uploads/<upload_id:upload_uuid>", "PATCH"),
    ("monolithic_upload_or_last_chunk", f"{NAME}/blobs/uploads/<upload_id:upload_uuid>", "PUT"),
)


class TestEndpointForEachMethod:
    """As in Quay and most Flask programs, which have a function for each method."""

    BLOB = f"/v2/a/b/blobs/{SHA256}"

    @pytest.mark.parametrize(
        ("path", "endpoints"),
        [
            (
                BLOB,
                {"DELETE": "delete_digest", "GET": "download_blob", "HEAD": "check_blob_exists"},
            ),
            ("/v2/a/blobs/uploads", {"POST": "start_blob_upload"}),
            ("/v2", {"GET": "v2_support_enabled", "HEAD": "v2_support_enabled"}),
            ("/v2/a/nope", {}),
        ],
    )
    def test_each_method_reaches_its_endpoint(self, path: str, endpoints: dict[str, str]) -> None:
        adapter = RegistryMap(dialect=QUAY).bind("h")
        assert adapter.endpoints(path) == endpoints
        assert set(adapter.allowed_methods(path)) == set(endpoints)

    def test_route_for_any_method_is_listed_under_none(self) -> None:
        adapter = RegistryMap(dialect=DOCKER_1_5).bind("h")
        assert adapter.endpoints("/v2/") == {None: "base"}

    @pytest.mark.parametrize(
        ("first", "second", "method"),
        [
            (("/v2/x", "GET PUT"), ("/v2/x/", "put"), "PUT"),
            ((f"{NAME}/x", "GET HEAD"), ("/v2/<repository:n>/x", "HEAD"), "HEAD"),
            ((f"{NAME}/x", "GET"), (f"{NAME}/x", None), "any method"),
            ((f"{NAME}/x", None), (f"{NAME}/x", "PUT"), "any method"),
            (("/v2/<tag:a>/<tag:b>/", "GET"), ("/v2/<tag:b>/<tag:a>", "GET"), "GET"),
        ],
    )
    def test_method_in_two_routes_of_a_path_is_refused(
        self, first: tuple[str, str | None], second: tuple[str, str | None], method: str
    ) -> None:
        message = f"route {second[0]!r}: {first[0]!r} is the same path, and both take {method}"
        with pytest.raises(ValueError, match=re.escape(message)):
            dialect(("a", *first), ("b", *second))

    def test_table_builds_the_first_route_or_that_of_a_method(self) -> None:
        table = RouteTable(dialect(("x", "/v2/x", "GET"), ("x", "/v2/y", "PUT")))
        assert table.build("x", {}) == "/v2/x"
        assert table.build("x", {}, "PUT") == "/v2/y"


def test_route_with_the_most_literal_segments_has_a_path() -> None:
    routes = [("variables", f"{NAME}/<tag:a>/<tag:b>/y", "GET"), ("literal", f"{NAME}/x/y", "GET")]
    for order in routes, routes[::-1]:
        assert answer(dialect(*order), "GET", "/v2/a/b/x/y") == "literal"


def test_variable_after_the_name_is_built_as_one_segment() -> None:
    routes = dialect(
        ("deep", f"{NAME}/deep/<deep:deep>", "GET"), deep=with_pattern("v(?:/x)?", "v")
    )
    with pytest.raises(ValueError, match="tag 'v/x' must be one path segment, without '/'"):
        RegistryMap(dialect=routes).bind("h").build("deep", {"name": "a", "deep": "v/x"})


@pytest.mark.parametrize("routes", DIALECTS.values(), ids=str)
@given(st.integers(0, 2**32))
def test_regex_of_a_route_matches_exactly_its_paths(routes: Dialect, seed: int) -> None:
    table = RouteTable(routes)
    for target, _ in nasty.requests(seed, 5):
        path = decoded_path(target)
        hits = [
            (route, found.groupdict())
            for route in routes.routes
            if (found := routes.regex(route).fullmatch(path))
        ]
        matched = table.match(path, "GET") or table.match(path, "POST")
        assert hits == ([matched] if matched else [])


def test_methods_that_are_one_string_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="not the string 'GET'"):
        Route("x", "/v2/x", "GET")  # type: ignore[arg-type]


def test_regex_of_another_dialects_route_is_refused() -> None:
    catalog = next(route for route in OCI_1_1.routes if route.endpoint == "catalog")
    with pytest.raises(ValueError, match="route '/v2/_catalog' is not in the dialect 'docker-1"):
        DOCKER_1_5.regex(catalog)


class Changing(GrammarConverter, grammar=TagConverter.grammar):
    def to_python(self, value: str) -> str:
        return value.upper()


class Narrower(TagConverter):
    regex = "[a-z]+"


def with_pattern(pattern: str, example: str = "latest") -> type[GrammarConverter]:
    rules = (("", "must be well-formed"),)
    made = replace(TAG, pattern=pattern, example=example, rules=rules)

    class Made(GrammarConverter, grammar=made): ...

    return Made


CONVERTERS: dict[str, Any] = {
    "int": IntegerConverter,
    "changing": Changing,
    "narrower": Narrower,
    "grouping": with_pattern("(?:a|(l)atest)"),
    "flagged": with_pattern("(?i)latest"),
    "empty": with_pattern("(?:latest)?"),
    "anchored": with_pattern("latest$"),
    "greedy": with_pattern("[a-z][a-z/]*+", "a/b"),
    "rooted": with_pattern("[a-z/]+", "a/b"),
}


@pytest.mark.parametrize(
    ("path", "error"),
    [
        *(
            (f"{NAME}/{tail}", "a variable is written '<converter:variable>'")
            for tail in ("<tag>", "<string(length=2):tag>", "<")
        ),
        ("v2/x", "the path does not begin with '/'"),
        ("/v3/x", "the path is not under the root of the other routes, '/v2'"),
        ("/v2/x/../y", "the path has an empty, '.' or '..' segment"),
        (f"{NAME}//x", "the path has an empty, '.' or '..' segment"),
        (f"{NAME}/<tag:tag>.json", "text follows a variable, where only '/'"),
        (f"{NAME}/<tag:name>", "the variable 'name' is used twice"),
        (f"{NAME}/<int:x>", "the dialect has no GrammarConverter named 'int'"),
        (f"{NAME}/<nothing:x>", "the dialect has no GrammarConverter named 'nothing'"),
        (f"{NAME}/<changing:x>", "the converter 'changing' changes what its grammar matches"),
        (f"{NAME}/<narrower:x>", "the converter 'narrower' changes what its grammar matches"),
        (f"{NAME}/<grouping:x>", "the pattern of 'grouping' has a capturing group"),
        (f"{NAME}/<flagged:x>", "the pattern of 'flagged' cannot be part of a larger one"),
        (f"{NAME}/<empty:x>", "the pattern of 'empty' matches an empty value"),
        (f"{NAME}/<repository:x>", "a repository name may contain '/', so it must come right"),
        ("/v2/<anchored:x>/y", "it does not match '/v2/latest/y', which is made of the examples"),
        (
            "/v2/<rooted:x>/y",
            "the pattern of 'rooted' matches '/a/b': two slashes would begin a path",
        ),
        ("/v2/<greedy:x>/y", "it does not match '/v2/a/b/y', which is made of the examples"),
    ],
)
def test_impossible_route_is_refused_by_name(path: str, error: str) -> None:
    routes = (OCI_1_1.routes[0], OCI_1_1.routes[3], Route("mine", path, ("GET",)))
    with pytest.raises(ValueError, match=re.escape(f"route {path!r}: {error}")):
        Dialect("mine", routes, {**OCI_1_1.converters, **CONVERTERS})


def test_route_that_would_move_the_root_is_refused_by_name() -> None:
    message = "route '/v2/<repository:name>': its root is '/v2', and '/v1/ping' is not under it"
    with pytest.raises(ValueError, match=re.escape(message)):
        dialect(("ping", "/v1/ping", "GET"), ("repository", NAME, "GET"))
    with pytest.raises(ValueError, match="dialect 'mine' has no route"):
        dialect()


def test_root_may_contain_a_colon() -> None:
    routes = dialect(("tags", "/v2/a:b/<repository:name>/tags", "GET"))
    assert routes.root == "/v2/a:b"
    assert answer(routes, "GET", "/v2/a:b/c/d/tags") == "tags"


def test_rule_of_a_plain_map_may_have_text_after_a_name() -> None:
    class Templates(RegistryRules):
        def get_rules(self, map: Map) -> Any:
            for rule in super().get_rules(map):
                rule.rule += ".json" if rule.rule.endswith(":tag>") else ""
                yield rule

    adapter = Map([Templates()]).bind("registry.example")
    assert adapter.match("/v2/a/manifests/v1.json") == ("manifest", {"name": "a", "tag": "v1"})
