"""Redirects to the route that is meant: of slashes at the end, and of paths that are not clean."""

from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import MapAdapter, RequestRedirect, Rule

from registry_routes import DOCKER_1_5, RegistryMap
from registry_routes.errors import NameInvalid

from . import nasty
from .nasty import METHODS
from .oracle import EXAMPLES
from .wsgi import environ_for, other_ending

NGINX_TAGS = "/v2/library/nginx/tags/list"
PATHS = {example.path: example.methods for example in EXAMPLES}


def forms_of(path: str) -> list[str]:
    """Forms of `path` that must be redirected to it."""
    other = other_ending(path)
    before = "/", "//", "/.", "/x/..", "/x/y/.././..", "//evil.example/..", "/a\x00b/.."
    after_root = "/.", "/x/..", "/", "//evil.example/..", "/https:/.."
    return [
        *(other, f"/{other}", f"{path.rstrip('/')}//", f"/\\evil.example/..{path}"),
        *(text + path for text in before),
        *(f"/v2{text}{path[3:]}" for text in after_root),
    ]


def bound(url_map: RegistryMap, path: str, method: str, how: str, query: str = "") -> MapAdapter:
    if how == "bind":
        return url_map.bind(
            "registry.example", default_method=method, path_info=path, query_args=query
        )
    environ = environ_for("/", method, PATH_INFO=path.encode().decode("latin-1"))
    return url_map.bind_to_environ(environ | {"QUERY_STRING": query})


@pytest.mark.parametrize(("prefix", "how"), [("", "bind_to_environ"), ("/registry", "bind")])
@pytest.mark.parametrize("path", ["/v2/", NGINX_TAGS, "/v2/library/nginx/blobs/uploads/"])
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


@nasty.examples(60)
@given(
    st.sampled_from(["", "/", "/mount", "//evil.example", "/m/é", "/\\evil"]),
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
def test_redirect_never_leaves_the_host(script_name: str, path: str, end: str, query: str) -> None:
    for url_map in STRICT, DOCKER:
        adapter = url_map.bind(
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
            assert not urlsplit(location).netloc
            assert not urlsplit(location).fragment
        except HTTPException:
            pass


STRICT = RegistryMap()
DOCKER = RegistryMap(dialect=DOCKER_1_5)


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
def test_redirect_keeps_the_query(query: str, kept: str | None) -> None:
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


def test_lone_surrogate_becomes_a_question_mark() -> None:
    """A server never decodes a path to such a character, but a caller may pass one."""
    with pytest.raises(RequestRedirect) as redirect:
        DOCKER.bind("h", query_args="x=\udcff").match("/v2/a/b/blobs/uploads/\ud800/")
    assert redirect.value.new_url == "/v2/a/b/blobs/uploads/%3F?x=?"
    assert redirect.value.get_response().location == redirect.value.new_url


def assert_answer(adapter: MapAdapter, path: str, answer: Any) -> None:
    """`answer` is the match, the target of a redirect, or the class of an error."""
    if isinstance(answer, tuple):
        assert adapter.match(path) == answer
        return
    with pytest.raises(RequestRedirect if isinstance(answer, str) else answer) as raised:
        adapter.match(path)
    assert getattr(raised.value, "new_url", answer) == answer


SLASHES: list[tuple[dict[str, Any], str, Any]] = [
    ({}, "/v2/_catalog//", "/v2/_catalog"),
    ({"strict_slashes": False}, "/v2/_catalog/", ("catalog", {})),
    ({"strict_slashes": False}, "/v2/x/..", "/v2/"),
    ({"merge_slashes": False}, "/v2", "/v2/"),
    ({"merge_slashes": False}, "/v2//", NotFound),
    ({"merge_slashes": False}, "//v2/", ("base", {})),
    ({"merge_slashes": False}, "//v2", "/v2/"),
    ({"merge_slashes": False}, "/v2/_catalog//", NotFound),
    ({"merge_slashes": False}, "/v2/x/../_catalog", NotFound),
    ({"merge_slashes": False}, "/v2//a/tags/list", NameInvalid),
    ({"merge_slashes": False, "strict_slashes": False}, "/v2//", NotFound),
    ({"merge_slashes": False, "strict_slashes": False}, "/v2/_catalog/", ("catalog", {})),
]


@pytest.mark.parametrize("rules", [[], ["/v2/token"]], ids=["alone", "beside"])
class TestSlashOptions:
    """`strict_slashes` and `merge_slashes`, with and without another rule under the root."""

    def adapter(self, rules: list[str], **options: Any) -> MapAdapter:
        made = [Rule(rule, endpoint=rule) for rule in rules]
        return RegistryMap(rules=made, **options).bind("registry.example")

    @pytest.mark.parametrize(("options", "path", "answer"), SLASHES)
    def test_options_of_the_map_decide(
        self, rules: list[str], options: dict[str, Any], path: str, answer: Any
    ) -> None:
        assert_answer(self.adapter(rules, **options), path, answer)

    def test_options_changed_later_take_effect(self, rules: list[str]) -> None:
        """Users of Flask do this."""
        adapter = self.adapter(rules)
        for on in True, False, True:
            adapter.map.strict_slashes = on
            answer: Any = "/v2/_catalog" if on else ("catalog", {})
            assert_answer(adapter, "/v2/_catalog/", answer)
        for on in True, False, True:
            adapter.map.merge_slashes = on
            assert_answer(adapter, "/v2//_catalog", "/v2/_catalog" if on else NotFound)
