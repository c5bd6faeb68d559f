"""A miss says which value is malformed, and which rule it broke, as the registry's JSON."""

import json
import time
from collections.abc import Iterable
from typing import Any

import pytest
from werkzeug.exceptions import BadRequest, HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import (
    BaseConverter,
    EndpointPrefix,
    Map,
    Rule,
    RuleFactory,
    Subdomain,
    Submount,
)

from registry_routes import DOCKER_1_5, RegistryMap, RegistryRules
from registry_routes.errors import RegistryError, Unsupported

from .nasty import SHA256

HEX = "0123456789abcdef" * 4


def error_of(url_map: Map, path: str, method: str = "GET", **bind: Any) -> HTTPException:
    with pytest.raises(HTTPException) as error:
        url_map.bind("registry.example", **bind).match(path, method)
    return error.value


def body_of(error: HTTPException) -> dict[str, Any]:
    response = error.get_response()
    assert response.content_type == "application/json"
    (entry,) = json.loads(response.get_data())["errors"]
    assert isinstance(entry, dict)
    return entry


# Of each: a path, the error that comes of it, the value, and the rule it breaks.
MALFORMED: list[tuple[str, str, str, str]] = [
    *(
        (path.format(name), "NAME_INVALID", name, rule)
        for path in (
            "/v2/{}/tags/list",
            "/v2/{}/tags/list/",
            "/v2/{}/manifests/latest",
            "/v2/{}/manifests/!",
            f"/v2/{{}}/blobs/{SHA256}",
            "/v2/{}/blobs/uploads/",
            "/v2/{}/blobs/uploads",
            "/v2/{}/blobs/uploads/id",
            f"/v2/{{}}/referrers/{SHA256}",
            "/v2/{}/_oci/ext/discover",
        )
        for name, rule in {
            "library/Nginx": "be lowercase",
            "FOO": "be lowercase",
            "a/-b": "have only components that start and end with a letter or a digit",
            "a./b": "have only components that start and end with a letter or a digit",
            "a..b": "separate alphanumerics by one '.', one or two '_', or any number of '-'",
            "a b": "have no characters but a-z, 0-9, '.', '_', '-' and '/'",
            "localhost:5000/a": "have no characters but a-z, 0-9, '.', '_', '-' and '/'",
            "é": "have no characters but a-z, 0-9, '.', '_', '-' and '/'",
            "a\n": "have no characters but a-z, 0-9, '.', '_', '-' and '/'",
            "a/manifests/B": "be lowercase",
        }.items()
    ),
    *(
        (path.format(digest), "DIGEST_INVALID", digest, rule)
        for path in (
            "/v2/a/b/blobs/{}",
            "/v2/a/b/blobs/{}/",
            "/v2/a/b/referrers/{}",
            "/v2/a/b/manifests/{}",
        )
        for digest, rule in {
            "sha256:abc": "have 64 lowercase hexadecimal digits after 'sha256:'",
            f"sha256:{HEX.upper()}": "have 64 lowercase hexadecimal digits after 'sha256:'",
            f"sha512:{HEX}": "have 128 lowercase hexadecimal digits after 'sha512:'",
            "SHA256:abc": "have an algorithm of a-z and 0-9, separated by one '+', '.', '_' or '-'",
            "md5:": "have after its first ':' one or more of a-z, A-Z, 0-9, '=', '_' and '-'",
        }.items()
    ),
    ("/v2/a/blobs/x", "DIGEST_INVALID", "x", "have an algorithm, ':' and an encoded hash"),
    ("/v2/a/blobs/uploads/.x", "BLOB_UPLOAD_UNKNOWN", ".x", "not start with '.'"),
]
KINDS = {
    "NAME_INVALID": (400, BadRequest, "name", "repository name"),
    "DIGEST_INVALID": (400, BadRequest, "digest", "digest"),
    "BLOB_UPLOAD_UNKNOWN": (404, NotFound, "uuid", "upload id"),
}


@pytest.mark.parametrize(("path", "code", "value", "rule"), MALFORMED)
def test_a_malformed_value_is_named_with_the_rule_it_broke(
    path: str, code: str, value: str, rule: str
) -> None:
    status, implied, variable, kind = KINDS[code]
    beside = Rule("/v2/x", endpoint="x")
    for prefix, rules in ("", []), ("", [beside.empty()]), ("/r", []):
        url_map = RegistryMap(prefix=prefix, rules=rules)
        for method in "GET", "HEAD", "PUT", "OPTIONS":
            error = error_of(url_map, prefix + path, method)
            assert isinstance(error, implied)
            assert error.code == status
            message = f"{kind} {value!r} must {rule}"
            assert body_of(error) == {"code": code, "message": message, "detail": {variable: value}}


@pytest.mark.parametrize(
    ("tag", "rule"),
    [
        (".hidden", "start with a letter, a digit or '_'"),
        ("-", "start with a letter, a digit or '_'"),
        ("été", "start with a letter, a digit or '_'"),
        ("a+b", "have no characters but a-z, A-Z, 0-9, '.', '_' and '-'"),
        ("latest\n", "have no characters but a-z, A-Z, 0-9, '.', '_' and '-'"),
        ("t" * 129, "have at most 128 characters"),
    ],
)
def test_a_malformed_tag_is_unknown_or_cannot_be_put(tag: str, rule: str) -> None:
    for method in "GET", "HEAD", "DELETE", "PUT":
        error = error_of(RegistryMap(), f"/v2/a/manifests/{tag}", method)
        put = method == "PUT"
        assert error.code == (400 if put else 404)
        assert isinstance(error, BadRequest if put else NotFound)
        assert body_of(error) == {
            "code": "TAG_INVALID" if put else "MANIFEST_UNKNOWN",
            "message": f"tag {tag!r} must {rule}",
            "detail": {"tag": tag},
        }


def test_an_empty_component_where_slashes_are_not_merged() -> None:
    url_map = RegistryMap(merge_slashes=False)
    assert body_of(error_of(url_map, "/v2/a//b/tags/list"))["message"] == (
        "repository name 'a//b' must not have an empty component"
    )


@pytest.mark.parametrize(
    "path",
    [
        *("/v2/x", "/v2/a/b", "/v2/a/tags", "/v2/tags/list", "/v2/a/manifests", "/v2/a/manifests/"),
        *("/v2/_catalog/x", "/v2/_Oci/ext/discover", "/v2/a/_OCI/ext/discover", "/v2/a/sigs/x"),
        *("/v2/a/blobs/uploads/x/y", "/v2/manifests/latest", "/v2/a/../x", "//v2/x", "/v2/A"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/registry"])
def test_under_the_prefix_but_no_route(path: str, prefix: str) -> None:
    for method in "GET", "POST":
        error = error_of(RegistryMap(prefix=prefix), prefix + path, method)
        assert isinstance(error, NotFound)
        message = "the registry has no such endpoint"
        assert body_of(error) == {"code": "UNSUPPORTED", "message": message}


@pytest.mark.parametrize("path", ["", "/", "/v1/", "/v2x/", "/V2/", "/x/v2/", "/a/v2", "/v2/.."])
def test_anywhere_else_the_error_is_werkzeugs_own(path: str) -> None:
    assert type(error_of(RegistryMap(), path)) is NotFound
    assert type(error_of(RegistryMap(prefix="/r"), f"/v2{path}")) is NotFound
    assert type(error_of(RegistryMap(rules=[Rule("/v1", endpoint="v1")]), "/v1/x")) is NotFound


def test_a_method_that_a_route_does_not_take() -> None:
    catch_all = Rule("/<path:rest>", endpoint="rest", methods=["PUT"])
    for rules, others in ([], set()), ([catch_all], {"PUT"}):
        url_map = RegistryMap(rules=rules)
        for path in "/v2/_catalog", "/v2/_catalog/", "//v2/_catalog":
            error = error_of(url_map, path, "POST")
            assert isinstance(error, MethodNotAllowed)
            assert body_of(error)["code"] == "UNSUPPORTED"
            assert set(error.valid_methods or ()) == {"GET", "HEAD"} | others
            assert (
                set(error.get_response().headers["Allow"].split(", ")) == {"GET", "HEAD"} | others
            )
    url_map = RegistryMap(rules=[Rule("/v2/token", endpoint="token", methods=["GET"])])
    assert type(error_of(url_map, "/v2/token", "POST")) is MethodNotAllowed  # it is the user's


@pytest.mark.parametrize(
    "path",
    [
        "a/tags/list",
        "a/b/c/d/e/f/tags/list",
        "A/b/tags/list",
        "a/b/manifests/.x",
        "a/b/blobs/x",
        "a/b/manifests/sha256:abc",
        "_catalog",
    ],
)
def test_in_docker_1_5_each_is_a_404(path: str) -> None:
    for method in "GET", "PUT":
        error = error_of(RegistryMap(DOCKER_1_5), f"/v2/{path}", method)
        assert isinstance(error, NotFound)
        assert body_of(error)["code"] == "UNSUPPORTED"
    message = body_of(error_of(RegistryMap(DOCKER_1_5), "/v2/A/b/tags/list"))["message"]
    assert message == "repository name 'A/b' must be lowercase"


def test_wherever_the_registrys_rules_are_mounted() -> None:
    url_map = RegistryMap(
        prefix="/plain",
        rules=[
            Submount("/<any(one, two):tenant>", [RegistryRules()]),
            EndpointPrefix("d.", [Submount("/docker", [RegistryRules(DOCKER_1_5)])]),
            Subdomain("sub", [Submount("/s", [RegistryRules()])]),
        ],
    )
    url_map.add(Submount("/late", [RegistryRules()]))
    for prefix in "/plain", "/one", "/late":
        assert body_of(error_of(url_map, f"{prefix}/v2/A/tags/list"))["code"] == "NAME_INVALID"
    assert body_of(error_of(url_map, "/docker/v2/A/b/tags/list"))["code"] == "UNSUPPORTED"
    assert type(error_of(url_map, "/s/v2/A/tags/list")) is NotFound
    error = error_of(url_map, "/s/v2/A/tags/list", subdomain="sub")
    assert body_of(error)["code"] == "NAME_INVALID"
    assert type(error_of(url_map, "/plain/v2/x", subdomain="elsewhere")) is NotFound


def test_under_a_variable_whose_expression_has_groups() -> None:
    class Either(BaseConverter):
        regex = "(one)|(two)"

    url_map = RegistryMap(prefix="/<either:x>", converters={"either": Either})
    error = error_of(url_map, "/two/v2/a/blobs/x")
    assert body_of(error)["message"].startswith("digest 'x' must have")


def test_at_a_subdomain_or_a_host_that_is_a_variable() -> None:
    class AtHost(RuleFactory):
        def get_rules(self, map: Map) -> Iterable[Rule]:
            for rule in RegistryRules().get_rules(map):
                rule.host = "<tenant>.registry.example"
                yield rule

    by_subdomain = RegistryMap(prefix="/x", rules=[Subdomain("<tenant>", [RegistryRules()])])
    by_host = RegistryMap(prefix="/x", host_matching=True, rules=[AtHost()])
    for number in range(3):
        error = error_of(by_subdomain, "/v2/A/tags/list", subdomain=f"t{number}")
        assert body_of(error)["message"] == "repository name 'A' must be lowercase"
        with pytest.raises(RegistryError):
            by_host.bind(f"t{number}.registry.example").match("/v2/A/tags/list")
    assert type(error_of(by_subdomain, "/v2/A/tags/list")) is NotFound
    assert type(error_of(by_host, "/v2/A/tags/list")) is NotFound


def test_values_with_newlines_are_of_the_api_as_well() -> None:
    for path in "/v2/x\ny", "/v2/\n", "/v2/A\n/tags/list":
        assert isinstance(error_of(RegistryMap(), path), RegistryError)


def test_a_rule_added_later_is_known() -> None:
    url_map = RegistryMap()
    assert type(error_of(url_map, "/late/v2/A/tags/list")) is NotFound
    url_map.add(Submount("/late", [RegistryRules()]))
    assert isinstance(error_of(url_map, "/late/v2/A/tags/list"), RegistryError)
    assert isinstance(error_of(url_map, "/late/v2/", "POST"), Unsupported)


@pytest.mark.parametrize(
    "shape",
    ["a/", "A/", "a", "/manifests/", "manifests/", "/blobs/uploads/", "a/_", "_a/b/", ":", "a/!/"],
)
def test_a_hostile_path_hangs_nothing(shape: str) -> None:
    """The minute measures nothing: quadratic time would be hours, at 500 KB."""
    adapter = RegistryMap().bind("registry.example")
    begun = time.monotonic()
    for end in "", "!", "/tags/list", "/manifests/!", "/blobs/x", "/_x/y/z!":
        with pytest.raises((HTTPException, RegistryError)):
            adapter.match(f"/v2/!{shape * (500_000 // len(shape))}{end}")
    assert time.monotonic() - begun < 60
