"""Dialects: the routes that they may have, their subsets, regular expressions and copies."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import IntegerConverter, Map, RequestRedirect

from registry_routes import DOCKER_1_5, OCI_1_1, Dialect, RegistryMap, RegistryRules, Route
from registry_routes.converters import GrammarConverter, TagConverter
from registry_routes.errors import RouteUnknown, Unsupported
from registry_routes.routes import DIALECTS

from . import nasty
from .nasty import SHA256
from .oracle import EXAMPLES
from .wsgi import decoded_path


class TestSubset:
    read_only = OCI_1_1.subset("base", "manifest", "blob", "tags", methods=["GET"])

    def test_it_has_only_the_given_endpoints_and_methods(self) -> None:
        assert {route.endpoint for route in self.read_only.routes} == {
            *("base", "manifest", "blob", "tags")
        }
        assert {route.methods for route in self.read_only.routes} == {("GET",)}

    def test_a_map_of_it_refuses_what_it_leaves_out(self) -> None:
        adapter = RegistryMap(self.read_only).bind("registry.example")
        for example in EXAMPLES:
            for method in nasty.METHODS:
                if example.endpoint not in ("base", "manifest", "blob", "tags"):
                    with pytest.raises(RouteUnknown):
                        adapter.match(example.path, method)
                elif method in ("GET", "HEAD"):
                    assert adapter.match(example.path, method)[0] == example.endpoint
                else:
                    with pytest.raises(Unsupported) as error:
                        adapter.match(example.path, method)
                    assert set(error.value.valid_methods or ()) == {"GET", "HEAD"}

    @pytest.mark.parametrize(
        "path",
        [
            *("/v2/A/blobs/uploads/", "/v2/a/referrers/x", "/v2/a/blobs/uploads/.x"),
            "/v2/a/blobs/uploads",
        ],
    )
    def test_path_of_a_route_left_out_is_a_plain_404_even_if_it_is_malformed(
        self, path: str
    ) -> None:
        with pytest.raises(RouteUnknown):
            RegistryMap(self.read_only).bind("registry.example").match(path)

    def test_without_endpoints_it_has_them_all(self) -> None:
        assert OCI_1_1.subset().routes == OCI_1_1.routes
        expected = OCI_1_1.subset(methods=["GET"]).routes
        assert OCI_1_1.subset(methods=(m for m in ["get"])).routes == expected

    def test_head_without_get(self) -> None:
        adapter = RegistryMap(OCI_1_1.subset("blob", methods=["HEAD"])).bind("registry.example")
        assert adapter.match(f"/v2/a/blobs/{SHA256}", "HEAD")
        with pytest.raises(Unsupported):
            adapter.match(f"/v2/a/blobs/{SHA256}", "GET")

    def test_a_dialect_that_takes_any_method_is_limited_to_those_given(self) -> None:
        subset = DOCKER_1_5.subset("tags", methods=["GET", "PROPFIND"])
        assert [route.methods for route in subset.routes] == [("GET", "PROPFIND")]
        assert DOCKER_1_5.subset("tags").routes[0].methods is None

    def test_the_root_stays_the_same(self) -> None:
        for dialect in DIALECTS.values():
            for endpoint in "base", "tags", "blob", "blob-upload":
                assert dialect.subset(endpoint).root == dialect.root == "/v2"
        deep = Route("deep", "/v2/_ext/a/<tag:tag>", ("PUT",))
        subset = Dialect("mine", (*OCI_1_1.routes, deep), OCI_1_1.converters).subset("deep")
        assert subset.root == subset.subset().root == "/v2"

    def test_a_subset_of_a_subset(self) -> None:
        assert [r.endpoint for r in self.read_only.subset("tags").routes] == ["tags"]
        with pytest.raises(ValueError, match="method 'PUT'"):
            self.read_only.subset(methods=["PUT"])

    @pytest.mark.parametrize(
        ("endpoints", "methods", "error"),
        [
            (["nothing"], None, "endpoint 'nothing' must be one of base, blob, "),
            (["tags", "Tags"], None, "endpoint 'Tags' must be one of "),
            ([], ["PROPFIND"], "method 'PROPFIND' must be one that a route takes"),
            (["base"], ["PUT"], "must have a route"),
            ([], [], "must have a route"),
        ],
    )
    def test_unknown_endpoints_and_methods_are_refused(
        self, endpoints: list[str], methods: list[str] | None, error: str
    ) -> None:
        with pytest.raises(ValueError, match=error):
            OCI_1_1.subset(*endpoints, methods=methods)

    def test_a_single_string_as_methods_is_refused(self) -> None:
        with pytest.raises(TypeError, match="methods 'GET' must be several strings"):
            OCI_1_1.subset(methods="GET")


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=str)
@given(st.integers(0, 2**32))
def test_the_regex_of_a_route_matches_exactly_its_paths(dialect: Dialect, seed: int) -> None:
    adapter = RegistryMap(dialect).bind("registry.example")
    for target, _ in nasty.requests(seed, 5):
        path = decoded_path(target)
        hits = [
            (route.endpoint, found.groupdict())
            for route in dialect.routes
            if (found := dialect.regex(route).fullmatch(path))
        ]
        matched = []
        for method in "GET", "POST":
            try:
                matched.append(adapter.match(path, method))
                break
            except HTTPException:
                continue
        assert hits == matched


def test_the_regex_of_another_dialects_route_is_refused() -> None:
    for route in OCI_1_1.routes:
        assert isinstance(OCI_1_1.regex(route), re.Pattern)
    catalog = next(route for route in OCI_1_1.routes if route.endpoint == "catalog")
    with pytest.raises(ValueError, match="route '/v2/_catalog' must be one of the dialect"):
        DOCKER_1_5.regex(catalog)


class Changing(GrammarConverter, grammar=TagConverter.grammar):
    def to_python(self, value: str) -> str:
        return value.upper()


class Narrower(TagConverter):
    regex = "[a-z]+"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("tags/<tag>", "must write its variables as"),
        ("tags/<tag():tag>", "must write its variables as"),
        ("tags/<string(length=2):tag>", "must write its variables as"),
        ("tags/<", "must write its variables as"),
        ("tags/<int:tag>", "must have a GrammarConverter for 'int'"),
        ("tags/<nothing:tag>", "must have a GrammarConverter for 'nothing'"),
        ("tags/<changing:tag>", "must have a converter for 'changing' that keeps what"),
        ("tags/<narrower:tag>", "must have a converter for 'narrower' that keeps what"),
        ("tags/<tag:tag>.json", "must have a '/' or its end after each variable"),
        ("tags/<repository:other>", "must have its repository name right after '/v2/'"),
    ],
)
def test_a_route_that_a_table_cannot_have_is_refused(path: str, error: str) -> None:
    converters: dict[str, Any] = {**OCI_1_1.converters, "int": IntegerConverter}
    converters |= {"changing": Changing, "narrower": Narrower}
    base, tags, path = OCI_1_1.routes[0], "tags", f"/v2/<repository:name>/{path}"
    with pytest.raises(ValueError, match=re.escape(error)) as raised:
        Dialect("mine", (base, Route(tags, path, ("GET",))), converters)
    assert str(raised.value).startswith(f"route {path!r} must ")
    with pytest.raises(ValueError, match="dialect 'mine' must have a route"):
        Dialect("mine", (), OCI_1_1.converters)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/v2/", "/v2/"),
        ("/v2/x", "/v2/x/"),
        ("/v2/<repository:name>/sig", "/v2/<repository:repo>/sig"),
        ("/v2/<tag:a>/<tag:b>/", "/v2/<tag:b>/<tag:a>"),
    ],
)
def test_two_routes_with_the_same_path_are_refused(one: str, other: str) -> None:
    routes = Route("a", one, ("GET",)), Route("b", other, ("PUT",))
    with pytest.raises(ValueError, match="must not have the path of another route") as raised:
        Dialect("mine", routes, OCI_1_1.converters)
    assert str(raised.value).startswith(f"route {other!r} must ")


def test_a_dialect_can_have_its_own_routes_and_converters() -> None:
    class SignatureConverter(GrammarConverter, grammar=TagConverter.grammar): ...

    dialect = Dialect(
        "mine",
        (
            *OCI_1_1.routes,
            Route("sig", "/v2/<repository:name>/sigs/<sig:sig>", ("GET", "PUT")),
        ),
        {**OCI_1_1.converters, "sig": SignatureConverter},
    )
    adapter = RegistryMap(dialect).bind("registry.example")
    assert adapter.match("/v2/a/b/sigs/x.y", "PUT") == ("sig", {"name": "a/b", "sig": "x.y"})
    assert adapter.build("sig", {"name": "a/b", "sig": "x.y"}) == "/v2/a/b/sigs/x.y"
    with pytest.raises(RequestRedirect):
        adapter.match("/v2/a/b/sigs/x.y/")
    with pytest.raises(RouteUnknown):
        adapter.match("/v2/a/b/sigs/.x")


def test_if_two_routes_have_the_same_endpoint_and_variables_the_first_is_built() -> None:
    paths = [f"/v2/<repository:name>/{last}" for last in ("sigs", "signatures")]
    dialect = Dialect(
        "mine", tuple(Route("sig", path, ("GET",)) for path in paths), OCI_1_1.converters
    )
    for url_map in RegistryMap(dialect), Map([RegistryRules(dialect)]):
        assert url_map.bind("h").build("sig", {"name": "a"}) == "/v2/a/sigs"


def test_a_plain_map_matches_a_long_path_in_linear_time() -> None:
    """In quadratic time, it would take hours."""
    for dialect in OCI_1_1, DOCKER_1_5:
        adapter = Map([RegistryRules(dialect)]).bind("registry.example")
        for shape in "a/", "a", "a-", "a__", "a.b/", "a/manifests/", "a/blobs/uploads/", "-":
            with pytest.raises(NotFound):
                adapter.match(f"/v2/{shape * (200_000 // len(shape))}!")


def test_in_a_plain_map_a_rule_may_have_text_after_a_name() -> None:
    class Templates(RegistryRules):
        def get_rules(self, map: Map) -> Any:
            for rule in super().get_rules(map):
                rule.rule += ".json" if rule.rule.endswith(":tag>") else ""
                yield rule

    adapter = Map([Templates()]).bind("registry.example")
    assert adapter.match("/v2/a/manifests/v1.json") == ("manifest", {"name": "a", "tag": "v1"})
