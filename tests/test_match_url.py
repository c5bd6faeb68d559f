"""`match_url`: which endpoint a URL is, with its values and its query."""

from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import RequestRedirect, Rule
from werkzeug.wrappers import Request

from registry_routes import OCI_1_1, RegistryMap, errors, match_url, url_map

from . import nasty
from .nasty import SHA256
from .wsgi import environ_for


def outcome(call: Callable[[], Any]) -> tuple[Any, ...]:
    """What a call returns or raises."""
    try:
        return tuple(call())
    except RequestRedirect as redirect:
        return type(redirect), redirect.new_url
    except HTTPException as error:
        described = None if type(error) is NotFound else error.description
        return type(error), described, getattr(error, "valid_methods", None)


@pytest.mark.parametrize("mount", ["", "/m", "/é%/x y"])
def test_url_is_matched_like_its_request(mount: str) -> None:
    script_name = mount.encode().decode("latin-1")
    root = mount.replace("%", "%25").replace(" ", "%20")
    for target, method in nasty.requests(seed=9, count=3000):
        if target[0] != "/":  # which is not the path of a URL
            continue
        environ = environ_for(target, method, SCRIPT_NAME=script_name)
        request = Request(environ)
        adapter = url_map.bind_to_environ(environ)
        expected = outcome(lambda: (*adapter.match(), request.args))
        for url in root + target, f"http://registry.example:80{root}{target}":
            assert outcome(lambda: match_url(url, method, root=root)) == expected, url


@pytest.mark.parametrize(
    ("url", "method", "root", "expected"),
    [
        ("/v2/", "GET", "/", ("base", {})),
        ("/v2/a%2Fb%2fc/tags/list", "GET", "", ("tags", {"name": "a/b/c"})),
        (
            f"/v2/a/blobs/sha256%3A{SHA256[7:]}",
            "HEAD",
            "/",
            ("blob", {"name": "a", "digest": SHA256}),
        ),
        ("/v2/a/manifests/v%31", "put", "/", ("manifest", {"name": "a", "tag": "v1"})),
        ("https://user:password@h/v2/", "GET", "https://h", ("base", {})),
        ("https://user@h/v2/#x", "GET", "/", ("base", {})),
        ("HTTPS://H:443/v2/#x?y", "GET", "https://h/", ("base", {})),
        ("https://h:/v2/", "GET", "https://h", ("base", {})),
        ("http://h/v2/", "GET", "http://H:80", ("base", {})),
        ("http://[::1]:5000/m/v2/", "GET", "http://[::1]:5000/m", ("base", {})),
        ("/m/v2/", "GET", "https://h/m", ("base", {})),
        ("https://whatever.example/m/v2/", "GET", "/m/", ("base", {})),
        ("/%6d/v2/", "GET", "/m", ("base", {})),
        ("/m%C3%A9/v2/", "GET", "/mé", ("base", {})),
        ("/a%20b/v2/", "GET", "/a%20b", ("base", {})),
    ],
)
def test_match_url(url: str, method: str, root: str, expected: tuple[Any, ...]) -> None:
    endpoint, values, query = match_url(url, method, root=root)
    assert (endpoint, values) == expected
    assert not query


@pytest.mark.parametrize(
    ("url", "root", "expected"),
    [
        ("/v2", "/", ("base", {})),
        ("https://h//v2/a/./b/../tags/list/?n=1", "https://h", ("tags", {"name": "a"})),
        ("/m/v2/a/blobs/uploads", "/m", ("blob-upload", {"name": "a"})),
        ("/m%20x/v2/a/blobs/uploads/", "/m%20x", ("blob-upload", {"name": "a"})),
        ("/v2/a/blobs/uploads/1/", "/", ("blob-upload-chunk", {"name": "a", "uuid": "1"})),
        (f"/v2/a/manifests/{SHA256}/", "/", ("manifest", {"name": "a", "digest": SHA256})),
        ("/v2/a%2Fb/manifests/v1", "/", ("manifest", {"name": "a/b", "tag": "v1"})),
        ("/v2/_catalog/", "/", ("catalog", {})),
    ],
)
def test_url_is_matched_for_any_method_and_either_ending(
    url: str, root: str, expected: tuple[Any, ...]
) -> None:
    assert match_url(url, None, root=root)[:2] == expected


def test_endpoint_of_get_is_matched_for_any_method() -> None:
    rules = [
        Rule("/v2/x", endpoint="put", methods=["PUT"]),
        Rule("/v2/x", endpoint="get", methods=["GET"]),
        Rule("/v2/y", endpoint="patch", methods=["PATCH"]),
        Rule("/v2/y", endpoint="delete", methods=["DELETE"]),
    ]
    routes = RegistryMap(dialect=OCI_1_1.subset("manifest", methods=["PUT"]), rules=rules)
    found = [match_url(f"/v2/{name}", None, url_map=routes).endpoint for name in "xy"]
    assert found == ["get", "delete"]
    assert match_url("/v2/a/manifests/v1", None, url_map=routes).values["tag"] == "v1"


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("/v2/A/tags/list/", errors.NameInvalid),
        ("/v2/a/blobs/sha256:0", errors.DigestInvalid),
        ("/v2/x", errors.RouteUnknown),
        ("/x", NotFound),
    ],
)
def test_malformed_value_raises_for_any_method(url: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        match_url(url, None)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("n=1&n=2&last=", [("n", "1"), ("n", "2"), ("last", "")]),
        ("last=a%2Fb+c%20d&%66rom=x", [("last", "a/b c d"), ("from", "x")]),
        ("last=%FF", [("last", "\ufffd")]),
        ("=x&&y", [("", "x"), ("y", "")]),
        ("a=b;c=d?e", [("a", "b;c=d?e")]),
    ],
)
def test_query_is_decoded(query: str, expected: list[tuple[str, str]]) -> None:
    for url in f"/v2/_catalog?{query}", f"https://h/v2/_catalog?{query}#n=3":
        assert match_url(url).query == MultiDict(expected)


@pytest.mark.parametrize(
    ("url", "root", "error", "message"),
    [
        ("/v2/a/blobs/x", "/", errors.DigestInvalid, "digest 'x' must have an algorithm"),
        ("https://h/v2/A/tags/list", "/", errors.NameInvalid, "repository name 'A' must be lower"),
        ("/v2/a%FF/tags/list", "/", errors.NameInvalid, "repository name 'a\ufffd' must contain"),
        ("/v2/é/tags/list", "/", errors.NameInvalid, "repository name 'é' must contain only"),
        ("/v2/a%0A/tags/list", "/", errors.NameInvalid, r"repository name 'a\n' must contain only"),
        ("/v2/a/blobs/uploads/", "/", errors.Unsupported, "the registry does not support this"),
        ("/v2/x", "/", errors.RouteUnknown, "the registry has no such endpoint"),
        ("/x", "/", NotFound, "URL '/x' must be under the API, '/v2/'"),
        ("https://h", "/", NotFound, "URL 'https://h' must be under the API, '/v2/'"),
        ("/m", "http://h/m/", NotFound, "URL '/m' must be under the API, 'http://h/m/v2/'"),
        ("/v2/", "/m", NotFound, "URL '/v2/' must be under the root '/m'"),
        ("/mv2/", "/m", NotFound, "URL '/mv2/' must be under the root '/m'"),
        ("//m/v2/", "/m", NotFound, "URL '//m/v2/' must be under the root '/m'"),
        *(
            (url, "https://h/m", NotFound, f"URL '{url}' must be under the root 'https://h/m'")
            for url in (
                *("http://h/m/v2/", "https://h:444/m/v2/", "https://h.example/m/v2/"),
                *("https://h@evil.example/m/v2/", "https://h:443@evil.example/m/v2/"),
                *("https://h/v2/", "/v2/", "https://h/m2/v2/", "https://h:80/m/v2/"),
                *("https://evil.example#@h/m/v2/", "https://evil.example?@h/m/v2/"),
            )
        ),
    ],
)
def test_url_that_does_not_match_is_an_error(
    url: str, root: str, error: type[HTTPException], message: str
) -> None:
    with pytest.raises(HTTPException) as raised:
        match_url(url, root=root)
    assert type(raised.value) is error
    assert str(raised.value.description).startswith(message)


@pytest.mark.parametrize(
    ("url", "root", "location"),
    [
        ("/v2", "/", "/v2/"),
        ("https://h/m/v2?x=%2F+y", "https://h/m", "/m/v2/?x=%2F+y"),
        ("//v2/_catalog?n=1", "/", "/v2/_catalog?n=1"),  # not a host
        ("https://h//v2/_catalog", "https://h", "/v2/_catalog"),
        ("//v2:x/../v2/_catalog/", "/", "/v2/_catalog"),  # nor a port
        ("/m/x/../v2/a%2Fb/tags/list/#x", "/m", "/m/v2/a/b/tags/list"),
        ("/a%20b/v2", "https://h/a%20b", "/a%20b/v2/"),
    ],
)
def test_url_that_redirects_raises_the_redirect(url: str, root: str, location: str) -> None:
    with pytest.raises(RequestRedirect) as redirect:
        match_url(url, root=root)
    assert redirect.value.new_url == location


@pytest.mark.parametrize(
    "url",
    [
        *("", "v2/", "?n=1", "#x", "h/v2/", "h:5000/v2/", "ftp://h/v2/", "https:/v2/", "https://"),
        *("https:///v2/", "http://[/v2/", "https://h:x/v2/", "https://h:99999/v2/", "*", "urn:x"),
        *("/v2/ x", "/v2/\n", "/v2\\", "\\v2/", "/v2/\t", " /v2/", "/v2/\x00", "https://h\n/v2/"),
    ],
)
def test_malformed_url_is_a_value_error(url: str) -> None:
    with pytest.raises(ValueError, match=r"^URL .* must"):
        match_url(url)


@pytest.mark.parametrize(
    "root", ["x", "h:5000", "ftp://h", "//h", "https://u@h", "/x?y", "https:///x"]
)
def test_malformed_root_of_match_url_is_named(root: str) -> None:
    with pytest.raises(ValueError, match=r"^root .* must"):
        match_url("/v2/", root=root)


def test_url_is_matched_with_another_map() -> None:
    routes = RegistryMap(
        dialect=OCI_1_1.subset("tags"), prefix="/r é", rules=[Rule("/v2/token", endpoint="token")]
    )
    assert match_url("/r%20%C3%A9/v2/a/tags/list", url_map=routes).values == {"name": "a"}
    matched = match_url("/m/v2/token?a=b", root="/m", url_map=routes)
    assert matched == ("token", {}, MultiDict([("a", "b")]))
    with pytest.raises(errors.RouteUnknown):
        match_url("/r%20%C3%A9/v2/_catalog", url_map=routes)
    with pytest.raises(NotFound, match="must be under the API, 'https://h/m/r%20%C3%A9/v2/'"):
        match_url("/m/v2/", root="https://h/m", url_map=routes)
