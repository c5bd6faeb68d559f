"""The errors for paths that do not match: they name the malformed value and the rule it broke."""

import json
from typing import Any

import pytest
from werkzeug.exceptions import BadRequest, HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import Map, Rule, Submount

from registry_routes import DOCKER_1_5, RegistryMap, RegistryRules
from registry_routes.errors import RegistryError, Unsupported

from .nasty import SHA256


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


LETTERS = "have only components that start and end with a letter or a digit"
CHARACTERS = "contain only a-z, 0-9, '.', '_', '-' and '/'"
# A path, the error that it gets, the malformed value, and the rule that it breaks.
MALFORMED: list[tuple[str, str, str, str]] = [
    *(
        (path.format(name), "NAME_INVALID", name, rule)
        for path, name, rule in (
            ("/v2/{}/tags/list", "library/Nginx", "be lowercase"),
            ("/v2/{}/tags/list/", "FOO", "be lowercase"),
            ("/v2/{}/manifests/latest", "a/-b", LETTERS),
            ("/v2/{}/manifests/!", "a./b", LETTERS),
            (f"/v2/{{}}/blobs/{SHA256}", "localhost:5000/a", CHARACTERS),
            ("/v2/{}/blobs/uploads/", "a b", CHARACTERS),
            ("/v2/{}/blobs/uploads", "é", CHARACTERS),
            ("/v2/{}/blobs/uploads/id", "a\n", CHARACTERS),
            (f"/v2/{{}}/referrers/{SHA256}", "a/manifests/B", "be lowercase"),
            *(
                (f"/v2/{{}}{path}", f"{'a/' * depth}manifests/A", "be lowercase")
                for depth in (0, 1, 7, 50)
                for path in ("/manifests/v1", "/_oci/ext/discover")
            ),
        )
    ),
    *(
        (path.format(digest), "DIGEST_INVALID", digest, rule)
        for path, digest, rule in (
            ("/v2/a/blobs/{}", "x", "have an algorithm, ':' and an encoded hash"),
            ("/v2/a/b/blobs/{}/", "md5:", "have only a-z, A-Z, 0-9, '=', '_' and '-' after its"),
            ("/v2/a/b/referrers/{}", "sha256:abc", "have 64 lowercase hexadecimal digits after"),
            ("/v2/a/b/manifests/{}", SHA256.upper(), "have an algorithm of a-z and 0-9,"),
        )
    ),
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
def test_malformed_value_is_named_with_the_rule_it_broke(
    path: str, code: str, value: str, rule: str
) -> None:
    status, implied, variable, kind = KINDS[code]
    for prefix, url_map in MAPS:
        for method in "GET", "HEAD", "PUT", "OPTIONS":
            error = error_of(url_map, prefix + path, method)
            assert isinstance(error, implied)
            assert error.code == status
            body = body_of(error)
            assert body.pop("message").startswith(f"{kind} {value!r} must {rule}")
            assert body == {"code": code, "detail": {variable: value}}


@pytest.mark.parametrize("tag", [".hidden", "-", "été", "a+b", "latest\n", "t" * 129])
def test_malformed_tag_is_400_for_put_and_404_otherwise(tag: str) -> None:
    for method in "GET", "HEAD", "DELETE", "PUT":
        error = error_of(RegistryMap(), f"/v2/a/manifests/{tag}", method)
        put = method == "PUT"
        assert error.code == (400 if put else 404)
        assert isinstance(error, BadRequest if put else NotFound)
        body = body_of(error)
        assert body.pop("message").startswith(f"tag {tag!r} must ")
        assert body == {
            "code": "TAG_INVALID" if put else "MANIFEST_UNKNOWN",
            "detail": {"tag": tag},
        }


def test_empty_component_is_malformed_if_slashes_are_not_merged() -> None:
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
        *("/v2/x\ny", "/v2/\n"),
    ],
)
def test_path_under_the_root_that_is_not_a_route_is_404_unsupported(path: str) -> None:
    for prefix in "", "/registry":
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
def test_method_that_a_route_does_not_take_is_405_with_allow(path: str) -> None:
    error = error_of(RegistryMap(), path, "POST")
    assert isinstance(error, Unsupported)
    assert isinstance(error, MethodNotAllowed)
    assert body_of(error)["code"] == "UNSUPPORTED"
    assert set(error.get_response().headers["Allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "path",
    [
        *("a/tags/list", "a/b/c/d/e/f/tags/list", "A/b/tags/list", "a/b/manifests/.x"),
        *("a/b/blobs/x", "a/b/manifests/sha256:abc", "_catalog"),
    ],
)
def test_in_docker_1_5_every_malformed_value_is_404(path: str) -> None:
    docker = RegistryMap(dialect=DOCKER_1_5)
    for method in "GET", "PUT":
        error = error_of(docker, f"/v2/{path}", method)
        assert isinstance(error, NotFound)
        assert body_of(error)["code"] == "UNSUPPORTED"
    message = body_of(error_of(docker, "/v2/A/b/tags/list"))["message"]
    assert message == "repository name 'A/b' must be lowercase"


def test_routes_that_are_added_again_have_werkzeugs_errors() -> None:
    url_map = RegistryMap(prefix="/plain", rules=[Submount("/again", [RegistryRules()])])
    assert body_of(error_of(url_map, "/plain/v2/A/tags/list"))["code"] == "NAME_INVALID"
    assert type(error_of(url_map, "/again/v2/A/tags/list")) is NotFound
    assert type(error_of(url_map, "/again/v2/", "POST")) is MethodNotAllowed
    assert type(error_of(url_map, "/plain/v2/x", subdomain="elsewhere")) is NotFound


@pytest.mark.parametrize(
    "shape",
    ["a/", "A/", "a", "/manifests/", "manifests/", "/blobs/uploads/", "a/_", "_a/b/", ":", "a/!/"],
)
def test_hostile_path_takes_linear_time(shape: str) -> None:
    """In quadratic time, 500 KB would take hours."""
    adapter = RegistryMap().bind("registry.example")
    for end in "", "!", "/tags/list", "/manifests/!", "/blobs/x", "/_x/y/z!":
        with pytest.raises((HTTPException, RegistryError)):
            adapter.match(f"/v2/!{shape * (500_000 // len(shape))}{end}")
