"""The errors for paths that do not match: they name the malformed value and the rule it broke."""

import json
from typing import Any

import pytest
from werkzeug.exceptions import BadRequest, HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import Map, Rule

from registry_routes import DOCKER_1_5, RegistryMap, url_map
from registry_routes.errors import Unsupported

from .nasty import SHA256


def error_of(url_map: Map, path: str, method: str = "GET") -> HTTPException:
    with pytest.raises(HTTPException) as error:
        url_map.bind("registry.example").match(path, method)
    return error.value


def body_of(error: HTTPException) -> dict[str, Any]:
    response = error.get_response()
    assert response.content_type == "application/json"
    (entry,) = json.loads(response.get_data())["errors"]
    assert isinstance(entry, dict)
    return entry


# A path around a malformed value, the value, and the rule that it breaks. `test_grammar` has every
# rule of every grammar.
NAMES = [
    ("/v2/{}/tags/list/", "library/Nginx", "be lowercase"),
    ("/v2/{}/blobs/uploads", "a\n", "contain only a-z, 0-9, '.', '_', '-' and '/'"),
    ("/v2/{}/manifests/!", "a./b", "have only components that start and end with a letter or"),
    ("/v2/{}/manifests/v1", "a/a/manifests/A", "be lowercase"),
    ("/v2/{}/_oci/ext/discover", f"{50 * 'a/'}manifests/A", "be lowercase"),
]
DIGESTS = [
    ("/v2/a/b/blobs/{}/", "x", "have an algorithm, ':' and an encoded hash"),
    ("/v2/a/b/manifests/{}", SHA256.upper(), "have an algorithm of a-z and 0-9,"),
]
UPLOAD_IDS = [("/v2/a/blobs/uploads/{}", ".x", "not start with '.'")]
#: Maps and their prefixes: a map alone, with a rule under the API, and under a prefix.
MAPS = [
    ("", url_map),
    ("", RegistryMap(rules=[Rule("/v2/x", endpoint="x")])),
    ("/r", RegistryMap(prefix="/r")),
]


@pytest.mark.parametrize(
    ("code", "status", "implied", "variable", "kind", "malformed"),
    [
        ("NAME_INVALID", 400, BadRequest, "name", "repository name", NAMES),
        ("DIGEST_INVALID", 400, BadRequest, "digest", "digest", DIGESTS),
        ("BLOB_UPLOAD_UNKNOWN", 404, NotFound, "uuid", "upload id", UPLOAD_IDS),
    ],
)
def test_malformed_value_is_named_with_the_rule_it_broke(
    code: str, status: int, implied: type, variable: str, kind: str, malformed: list[Any]
) -> None:
    for path, value, rule in malformed:
        for prefix, routes in MAPS:
            for method in "GET", "OPTIONS":
                error = error_of(routes, prefix + path.format(value), method)
                assert isinstance(error, implied)
                assert error.code == status
                body = body_of(error)
                assert body.pop("message").startswith(f"{kind} {value!r} must {rule}")
                assert body == {"code": code, "detail": {variable: value}}


@pytest.mark.parametrize("tag", [".hidden", "été", "latest\n", "t" * 129])
def test_malformed_tag_is_400_for_put_and_404_otherwise(tag: str) -> None:
    for method, status, implied, code in (
        ("PUT", 400, BadRequest, "TAG_INVALID"),
        ("GET", 404, NotFound, "MANIFEST_UNKNOWN"),
    ):
        error = error_of(url_map, f"/v2/a/manifests/{tag}", method)
        assert error.code == status
        assert isinstance(error, implied)
        body = body_of(error)
        assert body.pop("message").startswith(f"tag {tag!r} must ")
        assert body == {"code": code, "detail": {"tag": tag}}


@pytest.mark.parametrize("path", ["/v2/x", "/v2/a/manifests/", "/v2/_Oci/ext/discover", "/v2/\n"])
def test_path_under_the_root_that_is_not_a_route_is_404_unsupported(path: str) -> None:
    for prefix in "", "/registry":
        error = error_of(RegistryMap(prefix=prefix), prefix + path, "POST")
        assert isinstance(error, NotFound)
        message = "the registry has no such endpoint"
        assert body_of(error) == {"code": "UNSUPPORTED", "message": message}


@pytest.mark.parametrize("path", ["", "/v1/", "/v2x/", "/V2/", "/x/v2/", "/v2/.."])
def test_error_elsewhere_is_werkzeugs_own(path: str) -> None:
    assert type(error_of(url_map, path)) is NotFound
    assert type(error_of(RegistryMap(prefix="/r"), f"/v2{path}")) is NotFound
    assert type(error_of(RegistryMap(rules=[Rule("/v1", endpoint="v1")]), "/v1/x")) is NotFound


@pytest.mark.parametrize("path", ["/v2/_catalog", "/v2/_catalog/", "//v2/_catalog"])
def test_method_that_a_route_does_not_take_is_405_with_allow(path: str) -> None:
    error = error_of(url_map, path, "POST")
    assert isinstance(error, Unsupported)
    assert isinstance(error, MethodNotAllowed)
    assert body_of(error)["code"] == "UNSUPPORTED"
    assert set(error.get_response().headers["Allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("path", ["a/tags/list", "a/b/blobs/x", "a/b/manifests/.x", "_catalog"])
def test_malformed_value_is_404_in_docker_1_5(path: str) -> None:
    docker = RegistryMap(dialect=DOCKER_1_5)
    error = error_of(docker, f"/v2/{path}", "PUT")
    assert isinstance(error, NotFound)
    assert body_of(error)["code"] == "UNSUPPORTED"
    message = body_of(error_of(docker, "/v2/A/b/tags/list"))["message"]
    assert message == "repository name 'A/b' must be lowercase"
