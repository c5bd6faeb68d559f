"""The errors for paths that do not match: they name the malformed value and the rule it broke."""

import json
import time
from typing import Any

import pytest
from werkzeug.exceptions import BadRequest, HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import Map, Rule, Submount

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


# A path, the error that it gets, the malformed value, and the rule that it breaks.
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
            "a b": "contain only a-z, 0-9, '.', '_', '-' and '/'",
            "localhost:5000/a": "contain only a-z, 0-9, '.', '_', '-' and '/'",
            "é": "contain only a-z, 0-9, '.', '_', '-' and '/'",
            "a\n": "contain only a-z, 0-9, '.', '_', '-' and '/'",
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
            "md5:": "have only a-z, A-Z, 0-9, '=', '_' and '-' after its first ':', and at least one",
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


#: Prefixes and maps: one alone, one with a rule under the API, and one under a prefix.
MAPS = [
    ("", RegistryMap()),
    ("", RegistryMap(rules=[Rule("/v2/x", endpoint="x")])),
    ("/r", RegistryMap(prefix="/r")),
]


@pytest.mark.parametrize(("path", "code", "value", "rule"), MALFORMED)
def test_a_malformed_value_is_named_with_the_rule_it_broke(
    path: str, code: str, value: str, rule: str
) -> None:
    status, implied, variable, kind = KINDS[code]
    for prefix, url_map in MAPS:
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
        ("a+b", "contain only a-z, A-Z, 0-9, '.', '_' and '-'"),
        ("latest\n", "contain only a-z, A-Z, 0-9, '.', '_' and '-'"),
        ("t" * 129, "have at most 128 characters"),
    ],
)
def test_a_malformed_tag_is_400_for_put_and_404_otherwise(tag: str, rule: str) -> None:
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


def test_an_empty_component_is_malformed_if_slashes_are_not_merged() -> None:
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
def test_a_path_under_the_root_that_is_not_a_route_is_404_unsupported(
    path: str, prefix: str
) -> None:
    for method in "GET", "POST":
        error = error_of(RegistryMap(prefix=prefix), prefix + path, method)
        assert isinstance(error, NotFound)
        message = "the registry has no such endpoint"
        assert body_of(error) == {"code": "UNSUPPORTED", "message": message}


@pytest.mark.parametrize("path", ["", "/", "/v1/", "/v2x/", "/V2/", "/x/v2/", "/a/v2", "/v2/.."])
def test_elsewhere_the_error_is_werkzeugs_own(path: str) -> None:
    assert type(error_of(RegistryMap(), path)) is NotFound
    assert type(error_of(RegistryMap(prefix="/r"), f"/v2{path}")) is NotFound
    assert type(error_of(RegistryMap(rules=[Rule("/v1", endpoint="v1")]), "/v1/x")) is NotFound


@pytest.mark.parametrize("path", ["/v2/_catalog", "/v2/_catalog/", "//v2/_catalog"])
def test_a_method_that_a_route_does_not_take_is_405_with_allow(path: str) -> None:
    error = error_of(RegistryMap(), path, "POST")
    assert isinstance(error, Unsupported)
    assert isinstance(error, MethodNotAllowed)
    assert error.endpoint == "catalog"
    assert body_of(error)["code"] == "UNSUPPORTED"
    assert set(error.get_response().headers["Allow"].split(", ")) == {"GET", "HEAD"}


def test_the_error_is_about_the_longest_possible_name() -> None:
    for depth in 1, 2, 7, 50:
        name = "/".join(["a"] * depth + ["manifests", "A"])
        error = error_of(RegistryMap(), f"/v2/{name}/manifests/v1")
        assert body_of(error)["detail"] == {"name": name}


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
def test_in_docker_1_5_every_malformed_value_is_a_404(path: str) -> None:
    for method in "GET", "PUT":
        error = error_of(RegistryMap(DOCKER_1_5), f"/v2/{path}", method)
        assert isinstance(error, NotFound)
        assert body_of(error)["code"] == "UNSUPPORTED"
    message = body_of(error_of(RegistryMap(DOCKER_1_5), "/v2/A/b/tags/list"))["message"]
    assert message == "repository name 'A/b' must be lowercase"


def test_routes_that_are_added_again_have_werkzeugs_errors() -> None:
    url_map = RegistryMap(prefix="/plain", rules=[Submount("/again", [RegistryRules()])])
    assert body_of(error_of(url_map, "/plain/v2/A/tags/list"))["code"] == "NAME_INVALID"
    assert type(error_of(url_map, "/again/v2/A/tags/list")) is NotFound
    assert type(error_of(url_map, "/again/v2/", "POST")) is MethodNotAllowed
    assert type(error_of(url_map, "/plain/v2/x", subdomain="elsewhere")) is NotFound


def test_paths_with_newlines_belong_to_the_api_too() -> None:
    for path in "/v2/x\ny", "/v2/\n", "/v2/A\n/tags/list":
        assert isinstance(error_of(RegistryMap(), path), RegistryError)


@pytest.mark.parametrize(
    "shape",
    ["a/", "A/", "a", "/manifests/", "manifests/", "/blobs/uploads/", "a/_", "_a/b/", ":", "a/!/"],
)
def test_a_hostile_path_takes_linear_time(shape: str) -> None:
    """The limit of a minute is generous: in quadratic time, 500 KB would take hours."""
    adapter = RegistryMap().bind("registry.example")
    begun = time.monotonic()
    for end in "", "!", "/tags/list", "/manifests/!", "/blobs/x", "/_x/y/z!":
        with pytest.raises((HTTPException, RegistryError)):
            adapter.match(f"/v2/!{shape * (500_000 // len(shape))}{end}")
    assert time.monotonic() - begun < 60
