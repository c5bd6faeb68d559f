"""Redirects to the route that is meant: of slashes at the end, and of paths that are not clean."""

from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import MapAdapter, RequestRedirect, Rule
from werkzeug.test import Client
from werkzeug.wrappers import Request, Response

from registry_routes import DOCKER_1_5, RegistryMap
from registry_routes.errors import DigestInvalid, NameInvalid

from .nasty import METHODS
from .reference import EXAMPLES
from .wsgi import environ_for, other_ending

PATHS = {example.path: example.methods for example in EXAMPLES}


def forms_of(path: str) -> list[str]:
    """Forms of `path` that must be redirected to it."""
    other = other_ending(path)
    return [
        *(other, f"/{path}", f"/{other}", f"//{path}", f"{path.rstrip('/')}//", f"/.{path}"),
        *(f"/x/..{path}", f"/x/y/.././..{path}", f"/v2/.{path[3:]}", f"/v2/x/..{path[3:]}"),
        *(f"/v2/{path[3:]}", f"//evil.example/..{path}", f"/v2//evil.example/..{other[3:]}"),
        *(f"/\\evil.example/..{path}", f"/v2/https:/../{path[3:]}", f"/a\x00b/..{path}"),
    ]


def bound(url_map: RegistryMap, path: str, method: str, how: str, query: str = "") -> MapAdapter:
    if how == "bind":
        return url_map.bind(
            "registry.example", default_method=method, path_info=path, query_args=query
        )
    environ = environ_for("/", method, PATH_INFO=path.encode().decode("latin-1"))
    return url_map.bind_to_environ(environ | {"QUERY_STRING": query})


@pytest.mark.parametrize("how", ["bind", "bind_to_environ"])
@pytest.mark.parametrize("prefix", ["", "/registry"])
@pytest.mark.parametrize("path", PATHS)
def test_every_form_of_a_path_is_redirected_for_the_methods_of_the_route(
    path: str, prefix: str, how: str
) -> None:
    url_map = RegistryMap(prefix=prefix)
    for form in forms_of(path):
        for method in METHODS:
            adapter = bound(url_map, prefix + form, method, how, "n=1&last=a%2Fb&x=%22")
            if method in PATHS[path]:
                with pytest.raises(RequestRedirect) as redirect:
                    adapter.match()
                assert redirect.value.code == 308
                assert redirect.value.new_url == f"{prefix}{path}?n=1&last=a%2Fb&x=%22", form
                assert adapter.match(prefix + path)
            else:
                with pytest.raises(MethodNotAllowed) as error:
                    adapter.match()
                assert set(error.value.valid_methods or ()) == set(PATHS[path])


@pytest.mark.parametrize("path", PATHS)
def test_without_strict_slashes_both_endings_are_served(path: str) -> None:
    url_map = RegistryMap(strict_slashes=False)
    method = PATHS[path][0]
    adapter = url_map.bind("registry.example", default_method=method)
    assert adapter.match(other_ending(path)) == adapter.match(path)
    assert adapter.match(other_ending(path), return_rule=True) == adapter.match(
        path, return_rule=True
    )
    with pytest.raises(RequestRedirect) as redirect:
        adapter.match(f"/{path}")
    assert redirect.value.new_url == path
    with pytest.raises(MethodNotAllowed):
        adapter.match(other_ending(path), "OPTIONS")


def test_dots_at_the_root_are_dropped() -> None:
    with pytest.raises(RequestRedirect) as redirect:
        STRICT.bind("registry.example").match("/../../v2/_catalog")
    assert redirect.value.new_url == "/v2/_catalog"


def test_without_merge_slashes_paths_are_not_cleaned() -> None:
    adapter = RegistryMap(merge_slashes=False).bind("registry.example")
    for path in "/v2//a/tags/list", "/v2/x/../a/tags/list", "/v2/./a/tags/list":
        with pytest.raises((NotFound, NameInvalid)):
            adapter.match(path)
    with pytest.raises(RequestRedirect):
        adapter.match("/v2/a/tags/list/")


@pytest.mark.parametrize(
    "path",
    [
        *("//evil.example/v2/", "//evil.example", "/\\evil.example/v2/", "/v2/FOO/tags/list/"),
        *("/v2/../../x", "/v2/a/tags/list/x/../y", "/v2/a/blobs/latest/", "/v2/a/tags//", "", "/"),
        *("/v2/a//b/tags", "/v2/%2e%2e/", "/v2/..", "/v2/a/manifests/..", "/registry//v2/"),
    ],
)
def test_a_path_that_is_not_a_route_when_clean_is_not_redirected(path: str) -> None:
    with pytest.raises((NotFound, NameInvalid, DigestInvalid)):
        RegistryMap().bind("registry.example").match(path)


@pytest.mark.parametrize("script_name", ["", "/", "/mount", "//evil.example", "/m/é", "/\\evil"])
@given(
    st.lists(
        st.sampled_from(
            [
                *("v2", "..", ".", "", "evil.example", "\\", "\\\\evil.example", "%5c", "%2f%2f"),
                *("a", "tags", "list", "http:", "@", "\t", "\r\n", "/", "//"),
            ]
        ),
        max_size=9,
    ).map("/".join),
    st.sampled_from(["", "/v2/", "/v2/a/tags/list/", "/v2//", "/..//v2"]),
    st.text(max_size=10),
)
def test_a_redirect_never_leaves_the_host(
    script_name: str, path: str, end: str, query: str
) -> None:
    for dialect_map in STRICT, DOCKER:
        adapter = dialect_map.bind(
            "registry.example", script_name, path_info=f"/{path}{end}", query_args=query
        )
        try:
            adapter.match()
        except RequestRedirect as redirect:
            location = redirect.get_response().get_wsgi_headers({})["Location"]
            assert location == redirect.new_url
            assert location.startswith("/")
            assert not location.startswith(("//", "/\\"))
            assert "\\" not in location
            assert location.isascii()
            assert location.isprintable()
            parts = urlsplit(location)
            assert not parts.netloc
            assert not parts.fragment
        except HTTPException:
            pass


STRICT = RegistryMap()
DOCKER = RegistryMap(DOCKER_1_5)


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("digest=sha256%3Aabc&_state=a%2Bb%3D%3D", "digest=sha256%3Aabc&_state=a%2Bb%3D%3D"),
        ("a=&b&&c=1;d=2", "a=&b&&c=1;d=2"),
        ("x=a+b%20c&y=%zz&z=?/:@!$'()*,", "x=a+b%20c&y=%zz&z=?/:@!$'()*,"),
        ("q=\xff%ff", "q=%FF%ff"),  # a byte that is not UTF-8, sent raw
        ("q=\xc3\xa9", "q=%C3%A9"),
        ('q="<a#b>\\', "q=%22%3Ca%23b%3E%5C"),
        ("", None),
    ],
)
def test_a_redirect_keeps_the_query(query: str, kept: str | None) -> None:
    environ = environ_for("/v2/a/blobs/uploads", "POST", QUERY_STRING=query)
    with pytest.raises(RequestRedirect) as redirect:
        STRICT.bind_to_environ(environ).match()
    expected = "/v2/a/blobs/uploads/" + (f"?{kept}" if kept is not None else "")
    assert redirect.value.new_url == expected
    assert redirect.value.get_response().get_wsgi_headers(environ)["Location"] == expected


@pytest.mark.parametrize("query_args", [{"n": "1", "last": "é/x"}, "n=1&last=%C3%A9/x"])
def test_query_args_may_be_given_to_bind_or_to_match(query_args: Any) -> None:
    bound = STRICT.bind("registry.example", query_args=query_args)
    unbound = STRICT.bind("registry.example")
    for adapter, args in (bound, None), (unbound, query_args):
        with pytest.raises(RequestRedirect) as redirect:
            adapter.match("/v2", query_args=args)
        assert redirect.value.new_url == "/v2/?n=1&last=%C3%A9/x"


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    """A server never decodes a path to such a character, but a caller may pass one."""
    with pytest.raises(RequestRedirect) as redirect:
        DOCKER.bind("h", query_args="x=\udcff").match("/v2/a/b/blobs/uploads/\ud800/")
    assert redirect.value.new_url == "/v2/a/b/blobs/uploads/%3F?x=?"
    assert redirect.value.get_response().location == redirect.value.new_url


def test_a_client_that_follows_a_redirect_keeps_the_method_and_the_body() -> None:
    @Request.application
    def app(request: Request) -> Response:
        try:
            endpoint, _ = STRICT.bind_to_environ(request.environ).match()
        except HTTPException as error:
            return error.get_response(request.environ)
        return Response(f"{request.method} {endpoint} {request.get_data(as_text=True)}")

    client = Client(app)
    response = client.post("/v2/a/b/blobs/uploads", data=b"body", follow_redirects=True)
    assert response.text == "POST blob-upload body"
    assert client.head("/v2/a/tags/list/").location == "/v2/a/tags/list"


class TestYourRules:
    """Werkzeug treats them as it does in any map."""

    url_map = RegistryMap(
        rules=[
            Rule("/about", endpoint="about", methods=["GET"]),
            Rule("/pages/", endpoint="pages"),
            Rule("/old", endpoint="old", redirect_to="about"),
            Rule("/v2/_x/y/z/", endpoint="mine"),
            Rule("/v2/token", endpoint="token"),
            Rule("/any/<path:rest>", endpoint="any"),
        ]
    )
    adapter = url_map.bind("registry.example")

    def test_your_rules_match_what_is_not_a_route(self) -> None:
        assert self.adapter.match("/v2/_x/y/z/") == ("mine", {})
        assert self.adapter.match("/any/v2//") == ("any", {"rest": "v2//"})
        assert self.adapter.match("//any/x") == ("any", {"rest": "x"})

    def test_their_paths_are_not_cleaned(self) -> None:
        for path in "/about/", "/x/../about", "/v2/token/", "/pages/./":
            with pytest.raises(NotFound):
                self.adapter.match(path)
            with pytest.raises(NotFound):
                self.adapter.match(path, "POST")

    @pytest.mark.parametrize(
        ("path", "url"),
        [
            ("/pages", "http://registry.example/pages/"),
            ("/x//pages", None),
            ("//about//", None),
            ("/old", "http://registry.example/about"),
        ],
    )
    def test_their_redirects_are_werkzeugs(self, path: str, url: str | None) -> None:
        with pytest.raises(RequestRedirect if url else NotFound) as error:
            self.adapter.match(path)
        if isinstance(error.value, RequestRedirect):
            assert error.value.new_url == url


@pytest.mark.parametrize(
    "rest", [[], [Rule("/v2/token", endpoint="token")]], ids=["alone", "beside"]
)
class TestSlashOptions:
    """`strict_slashes` and `merge_slashes`, with and without another rule under the root."""

    def adapter(self, rest: list[Rule], **options: Any) -> MapAdapter:
        return RegistryMap(rules=[one.empty() for one in rest], **options).bind("registry.example")

    @pytest.mark.parametrize(
        ("options", "path", "answer"),
        [
            ({}, "/v2", "/v2/"),
            ({}, "/v2//", "/v2/"),
            ({}, "//v2/_catalog", "/v2/_catalog"),
            ({}, "/v2/_catalog//", "/v2/_catalog"),
            ({"strict_slashes": False}, "/v2", ("base", {})),
            ({"strict_slashes": False}, "/v2/_catalog/", ("catalog", {})),
            ({"strict_slashes": False}, "/v2//", "/v2/"),
            ({"strict_slashes": False}, "//v2", "/v2/"),
            ({"strict_slashes": False}, "/v2/x/..", "/v2/"),
            ({"merge_slashes": False}, "/v2", "/v2/"),
            ({"merge_slashes": False}, "/v2//", NotFound),
            ({"merge_slashes": False}, "//v2/", ("base", {})),
            ({"merge_slashes": False}, "//v2", "/v2/"),
            ({"merge_slashes": False}, "/v2/_catalog//", NotFound),
            ({"merge_slashes": False}, "/v2/x/../_catalog", NotFound),
            ({"merge_slashes": False}, "/v2//a/tags/list", NameInvalid),
            ({"merge_slashes": False, "strict_slashes": False}, "/v2//", NotFound),
            ({"merge_slashes": False, "strict_slashes": False}, "/v2", ("base", {})),
            ({"merge_slashes": False, "strict_slashes": False}, "/v2/_catalog/", ("catalog", {})),
        ],
    )
    def test_the_options_of_the_map_decide(
        self, rest: list[Rule], options: dict[str, Any], path: str, answer: Any
    ) -> None:
        adapter = self.adapter(rest, **options)
        if isinstance(answer, tuple):
            assert adapter.match(path) == answer
            return
        with pytest.raises(RequestRedirect if isinstance(answer, str) else answer) as raised:
            adapter.match(path)
        assert getattr(raised.value, "new_url", answer) == answer

    def test_the_options_may_be_changed_later(self, rest: list[Rule]) -> None:
        """Users of Flask do this."""
        adapter = self.adapter(rest)
        for strict in True, False, True:
            adapter.map.strict_slashes = strict
            if strict:
                with pytest.raises(RequestRedirect):
                    adapter.match("/v2/_catalog/")
            else:
                assert adapter.match("/v2/_catalog/") == ("catalog", {})
        for merge in True, False, True:
            adapter.map.merge_slashes = merge
            with pytest.raises(RequestRedirect if merge else NotFound):
                adapter.match("/v2//_catalog")
