"""URLs that clients and servers build and follow."""

import inspect
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BuildError

from registry_routes import (
    DOCKER_1_5,
    Reference,
    RegistryMap,
    RegistryRequest,
    RouteName,
    URLBuilder,
    grammar,
    match_url,
    resolve_location,
)
from registry_routes.paging import parse_next_link
from registry_routes.urls import PARAMETERS, same_origin

from . import nasty
from .nasty import SHA256
from .wsgi import environ_for

Q = SHA256.replace(":", "%3A")
UPLOADS, REFERRERS = "a/blobs/uploads/", f"a/referrers/{SHA256}"
WITH_BOTH = Reference.parse(f"a:v1@{SHA256}")
# Of each method: a call, and the path under /v2/ and the query of the URL that it builds.
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], str, str]] = [
    ("base", (), {"service": "x y"}, "", "service=x%20y"),
    ("catalog", (), {"n": 10, "last": "a/b"}, "_catalog", "n=10&last=a%2Fb"),
    ("tags", ("a",), {"n": 0, "last": "é &x"}, "a/tags/list", "n=0&last=%C3%A9%20%26x"),
    ("manifest", ("a", "v1"), {"ns": "r.example:5"}, "a/manifests/v1", "ns=r.example%3A5"),
    ("manifest", ("a", SHA256), {"tag": ["v", "w"]}, f"a/manifests/{SHA256}", "tag=v&tag=w"),
    ("manifest", (Reference.parse("h:5/a"),), {"ns": "h"}, "a/manifests/latest", "ns=h"),
    ("manifest", (WITH_BOTH,), {"tag": "v1"}, f"library/a/manifests/{SHA256}", "tag=v1"),
    ("blob", ("a", SHA256), {"ns": "x"}, f"a/blobs/{SHA256}", "ns=x"),
    ("blob_upload", ("a",), {"mount": SHA256, "from_": "b/c"}, UPLOADS, f"mount={Q}&from=b%2Fc"),
    ("blob_upload", ("a",), {"digest_algorithm": "sha512"}, UPLOADS, "digest-algorithm=sha512"),
    ("blob_upload_chunk", ("a", "id"), {"digest": SHA256}, f"{UPLOADS}id", f"digest={Q}"),
    ("referrers", ("a", SHA256), {"artifact_type": "a/b+c"}, REFERRERS, "artifactType=a%2Fb%2Bc"),
    ("extension", ("a", "b", "c"), {}, "_a/b/c", ""),
    ("extension", ("a", "b", "c", "d"), {"x": ["1", 2]}, "d/_a/b/c", "x=1&x=2"),
]
ROOTS = {
    "http://h": "http://h",
    "https://h:5000/a/b/": "https://h:5000/a/b",
    "https://[::1]:5000/x%20y/": "https://[::1]:5000/x%20y",
}
URLS = URLBuilder("https://h")


@pytest.mark.parametrize(("method", "arguments", "options", "path", "query"), CALLS)
def test_url_of_each_method(
    method: str, arguments: tuple[Any, ...], options: dict[str, Any], path: str, query: str
) -> None:
    wanted = f"/v2/{path}" + (f"?{query}" if query else "")
    for root, begin in ROOTS.items():
        assert getattr(URLBuilder(root), method)(*arguments, **options) == begin + wanted
        relative = URLBuilder(root, relative=True)
        assert getattr(relative, method)(*arguments, **options) == urlsplit(begin).path + wanted


@pytest.mark.parametrize(
    ("method", "arguments", "options", "message"),
    [
        ("tags", ("A",), {}, "repository name 'A' must be lowercase"),
        ("tags", (None,), {}, "name None must be a string"),
        ("tags", ("a",), {"n": -1}, "n -1 must be a whole number"),
        ("catalog", (), {"n": True}, "n True must be a whole number"),
        ("manifest", ("a", ".x"), {}, "tag '.x' must start with"),
        ("manifest", ("a", "sha256:x"), {}, "digest 'sha256:x' must have 64"),
        ("manifest", ("a", SHA256), {"tag": ["v1", "!"]}, "tag '!' must start with"),
        ("manifest", ("a", SHA256), {"tag": 5}, "tag 5 must be a string"),
        ("manifest", ("a", "v1"), {"tag": "v2"}, "manifest 'v1' is named by a tag"),
        ("manifest", (WITH_BOTH, "v1"), {}, f"reference '{WITH_BOTH}' already names the manifest"),
        ("tags", ("a",), {"last": "\udcff"}, "parameter '\\udcff' cannot be encoded in UTF-8"),
        ("blob", ("a", SHA256), {"x": b"y"}, "x b'y' is neither a string nor a number"),
        ("blob_upload", ("a",), {"mount": "x"}, "digest 'x' must have"),
        ("blob_upload", ("a",), {"digest": ""}, "digest '' must not be empty"),
        ("blob_upload", ("a",), {"from_": "A"}, "repository name 'A' must be lowercase"),
        ("blob_upload", ("a",), {"digest_algorithm": "SHA"}, "digest algorithm 'SHA' must be"),
        (
            "blob_upload",
            ("a",),
            {"from": "B"},
            "parameter 'from' has its own argument: write from_=",
        ),
        ("blob_upload_chunk", ("a", "x"), {"digest": "sha256:"}, "digest 'sha256:' must"),
        (
            "referrers",
            ("a", SHA256),
            {"artifact_type": 5.0},
            "artifactType 5.0 is neither a string",
        ),
        ("referrers", ("a", SHA256), {"artifactType": "x"}, "parameter 'artifactType' has its own"),
        ("extension", ("Oci", "a", "b"), {}, "extension name 'Oci' must be lowercase"),
    ],
)
def test_malformed_argument_is_named(
    method: str, arguments: Any, options: dict[str, Any], message: str
) -> None:
    for builder in URLS, URLBuilder("", relative=True):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            getattr(builder, method)(*arguments, **options)


@pytest.mark.parametrize(
    ("method", "arguments", "options", "message"),
    [
        ("tags", (), {"name": "a", "n": 5}, "tags() takes name by position: tags('a')"),
        ("manifest", ("a",), {"tag": "v1"}, "takes tag by position: manifest('a', 'v1')"),
        ("manifest", ("a",), {"digest": "d"}, "takes digest by position: manifest('a', 'd')"),
        ("manifest", ("a", None), {"ns": "x"}, "manifest() needs a tag or a digest, or a Refer"),
        ("tags", (), {}, "missing 1 required positional argument: 'name'"),
        *(
            ("referrers", ("a", SHA256), {name: 5}, f"{name}= is not a parameter of the API: n= ")
            for name in ("limit", "page_size", "count")
        ),
    ],
)
def test_misplaced_argument_is_named_with_the_call_to_write(
    method: str, arguments: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        getattr(URLS, method)(*arguments, **options)


@pytest.mark.parametrize(
    ("root", "right"),
    [("https://h/v2/", "'https://h'"), ("https://h/m/v2", "'https://h/m'"), ("/v2", "'/'")],
)
def test_root_with_the_root_of_the_api_is_refused(root: str, right: str) -> None:
    with pytest.raises(
        ValueError, match=f"^root '{root}' contains the '/v2' of the API: give {right}$"
    ):
        URLBuilder(root, relative=root.startswith("/"))
    mounted = environ_for("/v2/", SCRIPT_NAME="/v2")
    assert URLBuilder.from_environ(mounted).base() == "http://registry.example/v2/v2/"
    assert repr(URLBuilder("https://h/xv2/")) == "URLBuilder('https://h/xv2')"


@pytest.mark.parametrize(
    "root",
    [
        *("", "h", "/x", "//h", "ftp://h", "https:///x", "https://:5000", "https://h:x"),
        *("https://h:99999", "https://@h", "https://h\x7f", "https://h?x", "https://h#x"),
        *("https://h/ x", "https://h\\x", "http://[", "////evil.example", "http://h//evil.example"),
    ],
)
def test_malformed_root_is_named(root: str) -> None:
    with pytest.raises(ValueError, match=r"^root .* (?:must|is not a URL)"):
        URLBuilder(root)
    if root not in ("", "/x"):
        with pytest.raises(ValueError, match=r"^root .* (?:must|is not a URL)"):
            URLBuilder(root, relative=True)


def test_parameter_without_a_value_is_left_out() -> None:
    urls = URLBuilder("http://h")
    assert urls.manifest("a", "v1", tag=None, x=None) == "http://h/v2/a/manifests/v1"
    assert urls.tags("a", x=[]) == "http://h/v2/a/tags/list"
    assert urls.tags("a", x="") == "http://h/v2/a/tags/list?x="


def test_query_may_have_the_names_of_arguments() -> None:
    names = "self cls location request_url url root endpoint values parameters more query method"
    query = dict.fromkeys([*names.split(), *sorted(POSITIONAL.keys() - {"digest"})], "x")
    assert resolve_location("http://h/", "/y", **query) == f"http://h/y?{urlencode(query)}"
    for method, arguments, _, path, _ in CALLS:
        built = getattr(URLS, method)(*arguments, **query)
        assert built == f"https://h/v2/{path}?{urlencode(query)}"


def test_urls_of_another_dialect() -> None:
    docker = URLBuilder("https://h", url_map=RegistryMap(dialect=DOCKER_1_5))
    assert (
        docker.blob("a/b", "tarsum.v1+sha256:abc") == "https://h/v2/a/b/blobs/tarsum.v1+sha256:abc"
    )
    assert docker.blob_upload_chunk("a/b", "x y") == "https://h/v2/a/b/blobs/uploads/x%20y"
    with pytest.raises(ValueError, match="two to five components"):
        docker.tags("a")


def test_build_of_values_that_fit_no_route_fails() -> None:
    for endpoint, values in ("tags", {}), ("nothing", {"name": "a"}):
        with pytest.raises(BuildError, match=endpoint):
            URLS.build(endpoint, values)


@pytest.mark.parametrize(
    ("url", "other", "expected"),
    [
        (httpx.URL("https://h/a"), "https://h:443/b?c", True),
        ("http://h:80", "http://H", True),
        ("https://user@h", "https://h", True),
        ("http://h:443", "https://h:443", False),
        ("https://h", "https://h:5000", False),
        ("https://h", "https://h@evil.example", False),
    ],
)
def test_same_origin(url: object, other: object, expected: bool) -> None:
    assert same_origin(url, other) is same_origin(other, url) is expected


@pytest.mark.parametrize("url", ["/v2/", "ftp://h", "https:///x", "https://h:x", None])
def test_same_origin_of_other_values_is_refused(url: object) -> None:
    for arguments in (url, "https://h"), ("https://h", url):
        with pytest.raises(ValueError, match=r"URL .*(?:must|is not a URL)"):
            same_origin(*arguments)


class TestFromEnviron:
    def test_scheme_host_and_mount_of_a_request(self) -> None:
        environ = environ_for("/v2/", HTTP_HOST="r.example:5000", SCRIPT_NAME="/m/\xc3\xa9 x")
        assert URLBuilder.from_environ(environ).base() == "http://r.example:5000/m/%C3%A9%20x/v2/"
        relative = URLBuilder.from_environ(environ, relative=True)
        assert relative.base() == "/m/%C3%A9%20x/v2/"
        under = URLBuilder.from_environ(environ_for("/"), url_map=RegistryMap(prefix="/p"))
        assert under.base() == "http://registry.example/p/v2/"

    @pytest.mark.parametrize(
        ("host", "scheme", "expected"),
        [
            ("docker_registry:5000", "http", "docker_registry:5000"),  # a service of Compose
            ("docker_registry:80", "http", "docker_registry"),
            ("registry:443", "https", "registry"),
            ("Registry:443", "http", "Registry:443"),
            ("registry:80", "https", "registry:80"),
            ("[::80]", "http", "[::80]"),
        ],
    )
    def test_host_of_a_request(self, host: str, scheme: str, expected: str) -> None:
        environ = environ_for("/v2/", HTTP_HOST=host, **{"wsgi.url_scheme": scheme})
        assert URLBuilder.from_environ(environ).base() == f"{scheme}://{expected}/v2/"
        assert RegistryRequest(environ).host == expected

    def test_request_without_a_host_has_that_of_the_server(self) -> None:
        environ = environ_for("/v2/", SERVER_NAME="registry.local", SERVER_PORT="5000")
        del environ["HTTP_HOST"]  # HTTP/1.0
        assert URLBuilder.from_environ(environ).base() == "http://registry.local:5000/v2/"

    def test_mount_cannot_name_another_host(self) -> None:
        for script_name in "//evil.example", "/\\evil.example", "//":
            environ = environ_for("/", SCRIPT_NAME=script_name)
            for relative in True, False:
                built = URLBuilder.from_environ(environ, relative=relative).base()
                assert urlsplit(built).netloc == ("" if relative else "registry.example")
                assert "\\" not in built

    def test_forwarded_headers_do_not_count(self) -> None:
        forwarded = {"HTTP_X_FORWARDED_PROTO": "https", "HTTP_X_FORWARDED_HOST": "evil.example"}
        environ = environ_for("/", HTTP_X_FORWARDED_PREFIX="/m", **forwarded)
        assert URLBuilder.from_environ(environ).base() == "http://registry.example/v2/"


AT = "https://r.example/v2/a/blobs/uploads/"


@pytest.mark.parametrize(
    ("location", "query", "expected"),
    [
        ("https://cdn.example/1", {"digest": "s:a"}, "https://cdn.example/1?digest=s%3Aa"),
        ("1?_s=a%2Bb==&&x=&y", {"digest": "d"}, f"{AT}1?_s=a%2Bb==&&x=&y&digest=d"),
        ("/x?", {"digest": "d"}, "https://r.example/x?digest=d"),
        ("/x#fragment", {"digest": "d"}, "https://r.example/x?digest=d"),
        (
            "/x",
            {"from_": "a/b", "digest_algorithm": None, "artifact_type": ["c", "d"]},
            "https://r.example/x?from=a%2Fb&artifactType=c&artifactType=d",
        ),
        ("//other.example/x", {}, "https://other.example/x"),
        ("https://r.example:5000", {"digest": "d"}, "https://r.example:5000?digest=d"),
        # Empty segments are kept, and those of dots are not (RFC 3986, 5.2.4).
        ("a//b/?x", {}, f"{AT}a//b/?x"),
        ("../../..//x/./y/..", {}, "https://r.example/v2//x/"),
        ("https://cdn.example/a//b/../c", {}, "https://cdn.example/a//b/../c"),
        ("", {"digest": "d"}, f"{AT}?mount=x&digest=d"),
        # A proxy ends the TLS of the registry.
        ("http://r.example/v2/x?y", {}, "https://r.example/v2/x?y"),
        ("http://R.example:80/x", {}, "https://r.example/x"),
        ("http://r.example:5000/x", {}, "https://r.example/x"),
    ],
)
def test_resolve_location(location: str, query: dict[str, Any], expected: str) -> None:
    assert resolve_location(f"{AT}?mount=x", location, **query) == expected


@pytest.mark.parametrize(
    "location",
    [
        *("ftp://h/x", "urn:x", "http:///x", "https://?x", "/x y", "http://[x", "http://h:x/"),
        "//h:99999/",
    ],
)
def test_location_that_leads_nowhere_is_named(location: str) -> None:
    with pytest.raises(ValueError, match=r"Location .* (?:must|is not a URL|does not lead)"):
        resolve_location("https://r.example/v2/", location)
    with pytest.raises(ValueError, match="does not lead to a URL of http or https"):
        resolve_location("r.example/v2/", "x")


def test_location_that_leads_from_https_to_http_is_refused() -> None:
    for location in "http://cdn.example/x", "http://127.0.0.1/x", "http://r.example.evil/":
        with pytest.raises(ValueError, match=r"^Location .* leads from https to http$"):
            resolve_location(AT, location)
        assert resolve_location("http://r.example/", location) == location


SEGMENTS = st.lists(st.sampled_from(["a", "EMPTY", ".", "..", "b%2F", "c;d"]), min_size=1)


@given(SEGMENTS.map("/".join), st.sampled_from(["", "/"]), st.sampled_from(["", "/", "?x=/../y"]))
def test_location_is_joined_as_urljoin_does(path: str, begin: str, end: str) -> None:
    """Except for empty segments: ``urljoin`` keeps them only if they have a name here."""
    expected = urljoin(AT, f"{begin}{path}{end}").replace("EMPTY", "")
    location = f"{begin}{path}{end}".replace("EMPTY", "")
    if not location.startswith("//") and (location[:1] == "/") == (begin == "/"):
        assert resolve_location(AT, location) == expected


@given(st.text(alphabet="ab=&%+;?/:@!$'()*,~._-", max_size=30))
def test_query_of_a_location_is_kept_byte_for_byte(query: str) -> None:
    resolved = resolve_location("https://h/a", f"/b?{query}", digest="x")
    separator = "" if f"?{query}".endswith(("?", "&")) else "&"
    assert resolved == f"https://h/b?{query}{separator}digest=x"


def test_url_objects_are_accepted() -> None:
    url, page = httpx.URL, httpx.URL("https://h:5000/v2/a/tags/list")
    assert resolve_location(page, url("/x?a=b"), digest="d") == "https://h:5000/x?a=b&digest=d"
    assert parse_next_link(page, "</n>; rel=next") == "https://h:5000/n"
    assert match_url(page) == match_url(url("/v2/a/tags/list")) == ("tags", {"name": "a"}, {})
    assert match_url(url("https://h/m/v2/"), root=url("https://h:443/m/")).endpoint == "base"
    assert URLBuilder(url("https://h/m/")).base() == "https://h/m/v2/"


@pytest.mark.parametrize(
    "url",
    [None, b"/v2/", bytearray(b"/v2/"), ["/v2/"], urlsplit("https://h/"), httpx.Response(200)],
)
def test_other_objects_are_refused(url: object) -> None:
    kind = type(url).__name__
    calls: list[Callable[[], object]] = [
        lambda: resolve_location("https://h/", url),
        lambda: resolve_location(url, "/x"),
        lambda: parse_next_link(url, "</n>; rel=next"),
        lambda: match_url(url),
        lambda: match_url("/v2/", root=url),
        lambda: URLBuilder(url),
        lambda: URLBuilder(url, relative=True),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"must be a string or a URL object, not {kind}"):
            call()


# Built and matched back.

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def fitting(one: grammar.Grammar, values: list[str]) -> st.SearchStrategy[str]:
    generated = st.from_regex(one.pattern, fullmatch=True).filter(one.fits)
    return st.sampled_from(values) | generated


NAMES = fitting(grammar.NAME, ["a", "library/nginx", "v2/manifests/tags/list", "a__b/c--d.e"])
TAGS = fitting(grammar.TAG, nasty.TAGS.valid)
DIGESTS = fitting(grammar.DIGEST, nasty.DIGESTS.valid)
EXTENSIONS = fitting(grammar.EXTENSION, nasty.EXTENSIONS.valid)
POSITIONAL = {
    "name": NAMES,
    "reference": TAGS | DIGESTS,
    "digest": DIGESTS,
    "uuid": fitting(grammar.UPLOAD_ID, nasty.UPLOAD_IDS.valid),
    "extension": EXTENSIONS,
    "component": EXTENSIONS,
    "module": EXTENSIONS,
}
KEYWORDS: dict[str, st.SearchStrategy[Any]] = {
    "n": st.integers(0, 10**20),
    "last": TEXT,
    "ns": TEXT,
    "tag": TAGS | st.lists(TAGS, max_size=3),
    "mount": DIGESTS,
    "from_": NAMES,
    "digest": DIGESTS,
    "digest_algorithm": st.sampled_from(["sha256", "sha512", "a+b.c"]),
    "artifact_type": TEXT | st.lists(TEXT, max_size=3),
}
MAPS = {prefix: RegistryMap(prefix=prefix) for prefix in ("", "/q", "/v2/é x")}


@pytest.mark.parametrize("method", [name.replace("-", "_") for name in RouteName])
@given(
    data=st.data(),
    root=st.sampled_from([*ROOTS, "https://h/%C3%A9/é", "http://docker_registry:5000/a+b/"]),
    relative=st.booleans(),
    prefix=st.sampled_from(list(MAPS)),
    more=st.dictionaries(TEXT, TEXT | st.lists(TEXT, max_size=3), max_size=3),
)
def test_every_built_url_is_matched_back(
    method: str, data: st.DataObject, root: str, relative: bool, prefix: str, more: dict[str, Any]
) -> None:
    arguments, values, query = [], {}, {}
    for name, parameter in inspect.signature(getattr(URLBuilder, method)).parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY and name != "self":
            value = data.draw(
                POSITIONAL[name]
                | (st.none() if parameter.default is None and name != "reference" else st.nothing())
            )
            arguments.append(value)
            if value is not None:
                named = "digest" if ":" in value else "tag"
                values[named if name == "reference" else name] = value
        elif parameter.kind is parameter.KEYWORD_ONLY and data.draw(st.booleans()):
            if name == "tag" and "tag" in values:
                continue
            query[name] = data.draw(KEYWORDS[name])
    taken = {*KEYWORDS, *PARAMETERS.values(), "limit", "page_size", "count"}
    more = {name: value for name, value in more.items() if name not in taken}
    urls = URLBuilder(root, relative=relative, url_map=MAPS[prefix])
    url = getattr(urls, method)(*arguments, **query, **more)
    verb = "POST" if method == "blob_upload" else "GET"
    pairs = {PARAMETERS.get(name, name): value for name, value in {**query, **more}.items()}
    expected = MultiDict(
        (name, str(item))
        for name, value in pairs.items()
        for item in (value if isinstance(value, list) else [value])
    )
    for base in (root, urls.root):
        matched = match_url(url, verb, root=base, url_map=MAPS[prefix])
        assert matched == (method.replace("_", "-"), values, expected)
        rebuilt = urls.build(*matched)
        assert match_url(rebuilt, verb, root=base, url_map=MAPS[prefix]) == matched


HUGE = "x" * 10**6


@pytest.mark.parametrize(
    "call",
    [
        lambda: URLBuilder(HUGE),
        lambda: URLBuilder(f"https://h:{HUGE}"),
        lambda: URLBuilder(f"https://h/?{HUGE}"),
        lambda: URLBuilder(f"https://h//{HUGE}"),
        lambda: URLBuilder(f"https://h/ {HUGE}"),
        lambda: URLS.tags("a", n=-(10**4000)),
        lambda: URLS.tags("a", last=HUGE.encode()),  # type: ignore[arg-type]
        lambda: URLS.tags("a", last=f"{HUGE}\udcff"),
        lambda: URLS.manifest("a", HUGE, tag="v1"),
        lambda: URLS.manifest(Reference.parse("a"), HUGE),
        lambda: resolve_location("https://h", f"ftp://{HUGE}"),
        lambda: resolve_location(f"urn:{HUGE}", "/x"),
        lambda: resolve_location("https://h", f"http://\u2100{HUGE}/"),
        lambda: match_url(HUGE),
        lambda: match_url(f"/{HUGE}"),
        lambda: match_url(f"/{HUGE}", root="/m"),
        lambda: match_url("/v2/", root=f"/{HUGE}"),
        lambda: match_url("/x", root="/", url_map=RegistryMap(prefix=f"/{HUGE[:1999]}")),
    ],
)
def test_huge_value_is_shortened_in_the_message(call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, HTTPException)) as error:
        call()
    assert 20 < len(str(error.value)) < 1000
