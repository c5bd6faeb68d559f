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
    """Return the result or the error of a call."""
    try:
        return tuple(call())
    except RequestRedirect as redirect:
        return type(redirect), redirect.new_url
    except HTTPException as error:
        described = None if type(error) is NotFound else error.description
        return type(error), described, getattr(error, "valid_methods", None)


READ_ONLY = OCI_1_1.subset(methods=["GET"])


@pytest.mark.parametrize("mount", ["", "/m", "/é%/x y"])
def test_url_is_matched_like_its_request(mount: str) -> None:
    script_name = mount.encode().decode("latin-1")
    root = mount.replace("%", "%25").replace(" ", "%20")
    for target, method in nasty.requests(seed=9, count=1000):
        if target[0] != "/":  # which is not the path of a URL
            continue
        environ = environ_for(target, method, SCRIPT_NAME=script_name)
        request = Request(environ)
        adapter = url_map.bind_to_environ(environ)
        expected = outcome(lambda: (*adapter.match(), request.args))
        for url in root + target, f"http://registry.example:80{root}{target}":
            assert outcome(lambda: match_url(url, method, root=root)) == expected, url


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("https://user:password@h/v2/#x", "https://h"),
        ("HTTPS://H:443/v2/#x?y", "https://h/"),
        ("https://h:/v2/", "https://h"),
        ("http://h/v2/", "http://H:80"),
        ("/m/v2/", "https://h/m"),
        ("https://whatever.example/m/v2/", "/m/"),
        ("/%6d%C3%A9/v2/", "/mé"),
    ],
)
def test_roots(url: str, root: str) -> None:
    assert match_url(url, "get", root=root) == ("base", {}, MultiDict())


def test_query_is_decoded() -> None:
    given = "n=1&n=2&last=a%2Fb+c%20d;e?%FF&%66rom=&=x&&y"
    pairs = [
        ("n", "1"),
        ("n", "2"),
        ("last", "a/b c d;e?\ufffd"),
        ("from", ""),
        ("", "x"),
        ("y", ""),
    ]
    for url in f"/v2/_catalog?{given}", f"https://h/v2/_catalog?{given}#n=3":
        assert match_url(url).query == MultiDict(pairs)


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
    with pytest.raises(errors.Unsupported):
        match_url("/v2/a/blobs/uploads/", None, url_map=RegistryMap(dialect=READ_ONLY))


def test_redirects_are_followed_for_any_method_unless_they_form_a_circle() -> None:
    rules = [
        Rule("/moved", redirect_to="/again"),
        Rule("/again", redirect_to="/v2/a/blobs/uploads"),
        Rule("/here", redirect_to="/there"),
        Rule("/there", redirect_to="/here"),
    ]
    routes = RegistryMap(rules=rules)
    assert match_url("/moved", None, url_map=routes)[:2] == ("blob-upload", {"name": "a"})
    with pytest.raises(RequestRedirect):
        match_url("/here", None, url_map=routes)


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
    ("url", "root", "place"),
    [
        ("https://h", "/", "API, '/v2/'"),
        ("/m", "http://h/m/", "API, 'http://h/m/v2/'"),
        *((url, "/m", "root '/m'") for url in ("/v2/", "/mv2/", "//m/v2/")),
        *(
            (url, "https://h/m", "root 'https://h/m'")
            for url in (
                *("http://h/m/v2/", "https://h:444/m/v2/", "https://h.example/m/v2/"),
                *("https://h:443@evil.example/m/v2/", "https://h/v2/", "/v2/", "https://h/m2/v2/"),
                *("https://evil.example#@h/m/v2/", "https://evil.example?@h/m/v2/"),
            )
        ),
    ],
)
def test_url_elsewhere_is_not_found(url: str, root: str, place: str) -> None:
    with pytest.raises(NotFound) as error:
        match_url(url, root=root)
    assert type(error.value) is NotFound
    assert error.value.description == f"URL '{url}' is not under the {place}"


def test_redirect_keeps_the_query_and_leads_to_no_other_host() -> None:
    for url, root, location in (
        ("https://h/a%20b/v2?x=%2F+y", "https://h/a%20b", "/a%20b/v2/?x=%2F+y"),
        ("//v2:x/../v2/_catalog/", "/", "/v2/_catalog"),
    ):
        with pytest.raises(RequestRedirect) as redirect:
            match_url(url, root=root)
        assert redirect.value.new_url == location


@pytest.mark.parametrize(
    "url",
    [
        *("", "v2/", "h:5000/v2/", "ftp://h/v2/", "https:/v2/", "https:///v2/", "http://[/v2/"),
        *("https://h:x/v2/", "https://h:99999/v2/", "/v2/ x", "/v2\\", "/v2/\x7f", "https://h\n/"),
    ],
)
def test_malformed_url_is_a_value_error(url: str) -> None:
    with pytest.raises(ValueError, match=r"^URL .* (?:must|is not a URL)"):
        match_url(url)


def test_url_is_matched_with_another_map() -> None:
    routes = RegistryMap(
        dialect=OCI_1_1.subset("tags"), prefix="/r é", rules=[Rule("/v2/token", endpoint="token")]
    )
    assert match_url("/r%20%C3%A9/v2/a/tags/list", url_map=routes).values == {"name": "a"}
    matched = match_url("/m/v2/token?a=b", root="/m", url_map=routes)
    assert matched == ("token", {}, MultiDict([("a", "b")]))
    with pytest.raises(errors.RouteUnknown):
        match_url("/r%20%C3%A9/v2/_catalog", url_map=routes)
    with pytest.raises(NotFound, match="is not under the API, 'https://h/m/r%20%C3%A9/v2/'"):
        match_url("/m/v2/", root="https://h/m", url_map=routes)
