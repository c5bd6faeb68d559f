"""URLs that clients and servers build and follow."""

import inspect
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException, NotFound, SecurityError
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BuildError, RequestRedirect, Rule
from werkzeug.test import Client, create_environ
from werkzeug.wrappers import Request, Response

from registry_routes import (
    DOCKER_1_5,
    OCI_1_1,
    Reference,
    RegistryMap,
    RegistryRequest,
    RouteName,
    URLBuilder,
    errors,
    grammar,
    match_url,
    resolve_location,
    url_map,
)
from registry_routes.paging import parse_next_link
from registry_routes.urls import same_origin

from . import nasty
from .nasty import SHA256, SHA512
from .wsgi import environ_for

Q = SHA256.replace(":", "%3A")
# Of each method: a call, and the path and the query of what it builds.
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], str, str]] = [
    ("base", (), {}, "/v2/", ""),
    ("base", (), {"service": "x y"}, "/v2/", "service=x%20y"),
    ("catalog", (), {}, "/v2/_catalog", ""),
    ("catalog", (), {"n": 10, "last": "a/b"}, "/v2/_catalog", "n=10&last=a%2Fb"),
    ("tags", ("a/b",), {}, "/v2/a/b/tags/list", ""),
    ("tags", ("a/b",), {"n": 5, "next_page": "a="}, "/v2/a/b/tags/list", "n=5&next_page=a%3D"),
    ("tags", ("a/b",), {"n": 0, "last": "é &x"}, "/v2/a/b/tags/list", "n=0&last=%C3%A9%20%26x"),
    (
        "manifest",
        ("a", "v1"),
        {"ns": "r.example:5000"},
        "/v2/a/manifests/v1",
        "ns=r.example%3A5000",
    ),
    ("manifest", ("a", SHA256), {}, f"/v2/a/manifests/{SHA256}", ""),
    ("manifest", ("a", SHA512), {"tag": "v1"}, f"/v2/a/manifests/{SHA512}", "tag=v1"),
    (
        "manifest",
        ("a", SHA256),
        {"tag": ["v1", "v2"]},
        f"/v2/a/manifests/{SHA256}",
        "tag=v1&tag=v2",
    ),
    ("blob", ("a", SHA256), {"ns": "x"}, f"/v2/a/blobs/{SHA256}", "ns=x"),
    ("blob_upload", ("a",), {}, "/v2/a/blobs/uploads/", ""),
    (
        "blob_upload",
        ("a",),
        {"mount": SHA256, "from_": "b/c"},
        "/v2/a/blobs/uploads/",
        f"mount={Q}&from=b%2Fc",
    ),
    ("blob_upload", ("a",), {"digest": SHA256}, "/v2/a/blobs/uploads/", f"digest={Q}"),
    (
        "blob_upload",
        ("a",),
        {"digest_algorithm": "sha512", "x": "y"},
        "/v2/a/blobs/uploads/",
        "digest-algorithm=sha512&x=y",
    ),
    (
        "blob_upload_chunk",
        ("a", "id"),
        {"digest": SHA256, "_state": "a+b"},
        "/v2/a/blobs/uploads/id",
        f"digest={Q}&_state=a%2Bb",
    ),
    ("referrers", ("a", SHA256), {}, f"/v2/a/referrers/{SHA256}", ""),
    (
        "referrers",
        ("a", SHA256),
        {"artifact_type": "a/b+c"},
        f"/v2/a/referrers/{SHA256}",
        "artifactType=a%2Fb%2Bc",
    ),
    (
        "referrers",
        ("a", SHA256),
        {"artifact_type": "x", "n": 5, "last": SHA512},
        f"/v2/a/referrers/{SHA256}",
        f"artifactType=x&n=5&last={SHA512.replace(':', '%3A')}",
    ),
    (
        "referrers",
        ("a", SHA256),
        {"artifact_type": ["a", "b"]},
        f"/v2/a/referrers/{SHA256}",
        "artifactType=a&artifactType=b",
    ),
    ("extension", ("oci", "ext", "discover"), {}, "/v2/_oci/ext/discover", ""),
    ("extension", ("oci", "ext", "discover", "a"), {}, "/v2/a/_oci/ext/discover", ""),
    (
        "extension",
        ("oci", "ext", "discover", "a"),
        {"name": "b", "x": ["1", 2]},
        "/v2/a/_oci/ext/discover",
        "name=b&x=1&x=2",
    ),
    ("manifest", (Reference.parse("h:5/a:v1"),), {}, "/v2/a/manifests/v1", ""),
    (
        "manifest",
        (Reference.parse("h:5/a/b"),),
        {"ns": "h:5"},
        "/v2/a/b/manifests/latest",
        "ns=h%3A5",
    ),
    (
        "manifest",
        (Reference.parse(f"a:v1@{SHA256}"),),
        {"tag": "v1"},
        f"/v2/library/a/manifests/{SHA256}",
        "tag=v1",
    ),
]
ROOTS = {
    "http://h": "http://h",
    "https://h:5000/": "https://h:5000",
    "https://h/a/b": "https://h/a/b",
    "https://h/a/b/": "https://h/a/b",
    "https://[::1]:5000/x%20y/": "https://[::1]:5000/x%20y",
}


@pytest.mark.parametrize(("method", "arguments", "options", "path", "query"), CALLS)
def test_every_url_on_every_root(
    method: str, arguments: tuple[str, ...], options: dict[str, Any], path: str, query: str
) -> None:
    wanted = path + (f"?{query}" if query else "")
    verb = "POST" if method == "blob_upload" else "GET"
    elsewhere = match_url(f"https://another.example/its/root{wanted}", verb, root="/its/root")
    for root, begin in ROOTS.items():
        assert getattr(URLBuilder(root), method)(*arguments, **options) == begin + wanted
        assert URLBuilder(root).build(*elsewhere) == begin + wanted
        relative = URLBuilder(root, relative=True)
        assert getattr(relative, method)(*arguments, **options) == urlsplit(begin).path + wanted
    in_path = URLBuilder("/p/", relative=True, url_map=RegistryMap(prefix="/q"))
    built = getattr(in_path, method)(*arguments, **options)
    assert built == f"/p/q{wanted}"
    endpoint, _ = RegistryMap(prefix="/q").bind("h").match(urlsplit(built).path[2:], verb)
    assert endpoint == method.replace("_", "-")
    assert urlsplit(built).query == query


def test_there_is_a_method_for_every_route() -> None:
    assert {method.replace("_", "-") for method, *_ in CALLS} == set(RouteName)


def test_every_parameter_is_in_the_table_above() -> None:
    for name in {method for method, *_ in CALLS}:
        parameters = inspect.signature(getattr(URLBuilder, name)).parameters.values()
        named = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
        assert named <= {
            option for method, _, options, *_ in CALLS if method == name for option in options
        }


@pytest.mark.parametrize(
    ("method", "arguments", "options", "message"),
    [
        ("tags", ("A",), {}, "repository name 'A' must be lowercase"),
        ("tags", ("",), {}, "repository name '' must not be empty"),
        ("tags", (None,), {}, "name None must be a string"),
        ("tags", ("a",), {"n": -1}, "n -1 must be a whole number"),
        ("tags", ("a",), {"n": "1"}, "n '1' must be a whole number"),
        ("catalog", (), {"n": True}, "n True must be a whole number"),
        ("catalog", (), {"n": 1.5}, "n 1.5 must be a whole number"),
        ("manifest", ("a", ".x"), {}, "tag '.x' must start with"),
        ("manifest", ("a", "a/../b"), {}, "tag 'a/../b' must contain only"),
        ("manifest", ("a", ""), {}, "tag '' must not be empty"),
        ("manifest", ("a", None), {}, "tag None must be a string"),
        ("manifest", ("a", "sha256:x"), {}, "digest 'sha256:x' must have 64"),
        ("manifest", ("a", SHA256), {"tag": ["v1", "!"]}, "tag '!' must start with"),
        ("manifest", ("a", "v1"), {"tag": "v2"}, "manifest 'v1' must be named by its digest"),
        ("manifest", ("a",), {}, "tag '' must not be empty"),
        (
            "manifest",
            (Reference.parse("nginx"), "v1"),
            {},
            "reference 'docker.io/library/nginx' must be given alone, not with 'v1'",
        ),
        ("tags", (Reference.parse("nginx"),), {}, "repository name Reference("),
        ("tags", ("a",), {"last": "\udcff"}, "parameter '\\udcff' must be encodable in UTF-8"),
        ("blob", ("a", SHA256), {"x": b"y"}, "x b'y' must be a string"),
        ("blob", ("a", "latest"), {}, "digest 'latest' must have an algorithm"),
        ("blob_upload", ("a",), {"mount": "x"}, "digest 'x' must have"),
        ("blob_upload", ("a",), {"digest": ""}, "digest '' must not be empty"),
        ("blob_upload", ("a",), {"from_": "A"}, "repository name 'A' must be lowercase"),
        ("blob_upload", ("a",), {"digest_algorithm": "SHA"}, "digest algorithm 'SHA' must be"),
        ("blob_upload_chunk", ("a", "../x"), {}, "upload id '../x' must not start with"),
        ("blob_upload_chunk", ("a", "x"), {"digest": "sha256:"}, "digest 'sha256:' must"),
        ("referrers", ("a", "v1"), {}, "digest 'v1' must have an algorithm"),
        ("manifest", ("a", SHA256), {"tag": 5}, "tag 5 must be a string"),
        ("manifest", ("a", "v1"), {"ns": b"x"}, "ns b'x' must be a string"),
        ("referrers", ("a", SHA256), {"artifact_type": 5.0}, "artifactType 5.0 must be a string"),
        ("tags", ("a",), {"last": object}, "last <class 'object'> must be a string"),
        ("extension", ("Oci", "a", "b"), {}, "extension name 'Oci' must be lowercase"),
    ],
)
def test_a_malformed_argument_is_named(
    method: str, arguments: Any, options: dict[str, Any], message: str
) -> None:
    for builder in URLBuilder("https://h"), URLBuilder("", relative=True):
        with pytest.raises(ValueError, match="must") as error:
            getattr(builder, method)(*arguments, **options)
        assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "root",
    [
        *(
            "",
            "h",
            "/x",
            "//h",
            "ftp://h",
            "https://",
            "https:///x",
            "https://:5000",
            "https://h:x",
            "https://h:99999",
            "https://@h",
            "https://h\x7f",
            "https://u:p@h",
            "https://h?x",
        ),
        *(
            "https://h#x",
            "https://h/ x",
            "https://h\n",
            "https://h\\x",
            "http://[",
            "javascript:alert(1)",
        ),
    ],
)
def test_a_malformed_root_is_named(root: str) -> None:
    with pytest.raises(ValueError, match=r"^root .* must"):
        URLBuilder(root)


@pytest.mark.parametrize("root", ["x", "ftp://h/x", "//h/x", "/x?y", "\\x"])
def test_a_malformed_relative_root_is_named(root: str) -> None:
    with pytest.raises(ValueError, match=r"^root .* must"):
        URLBuilder(root, relative=True)


def test_a_root_cannot_name_another_host() -> None:
    for root in "////evil.example", "http://h//evil.example":
        with pytest.raises(ValueError, match="must have a path that starts with one '/'"):
            URLBuilder(root, relative=True)


@pytest.mark.parametrize(
    ("method", "arguments", "parameter"),
    [
        ("blob_upload", ("a",), "from"),
        ("blob_upload", ("a",), "digest-algorithm"),
        ("referrers", ("a", SHA256), "artifactType"),
    ],
)
def test_a_parameter_is_given_by_its_own_argument(
    method: str, arguments: tuple[str, ...], parameter: str
) -> None:
    own = {"from": "from_", "artifactType": "artifact_type"}.get(
        parameter, parameter.replace("-", "_")
    )
    for more in {}, {own: "b"}:
        with pytest.raises(
            ValueError, match=f"^parameter '{parameter}' must be given by its own argument$"
        ):
            getattr(URLBuilder("http://h"), method)(*arguments, **{parameter: "B"}, **more)


def test_no_parameter_is_sent_without_a_value() -> None:
    urls = URLBuilder("http://h")
    assert urls.manifest("a", "v1", tag=None, x=None) == "http://h/v2/a/manifests/v1"
    assert urls.tags("a", x=[]) == "http://h/v2/a/tags/list"
    assert urls.tags("a", x="") == "http://h/v2/a/tags/list?x="


ARGUMENT_NAMES = sorted(
    {
        *("location", "request_url", "url", "root", "endpoint", "values", "parameters", "more"),
        *("query", "self", "cls", "kind", "method", "relative", "from", "class"),
        *(
            argument
            for method, *_ in CALLS
            for argument in inspect.signature(getattr(URLBuilder, method)).parameters
        ),
    }
)


@pytest.mark.parametrize("parameter", ARGUMENT_NAMES)
def test_a_query_parameter_may_have_the_name_of_any_argument(parameter: str) -> None:
    query = {parameter: "x"}
    assert resolve_location("http://h/", "/y", **query) == f"http://h/y?{parameter}=x"
    for method, arguments, options, path, _ in CALLS:
        taken = inspect.signature(getattr(URLBuilder, method)).parameters.get(parameter)
        if taken is not None and taken.kind is taken.KEYWORD_ONLY:
            continue
        if not options and not (method == "blob_upload" and parameter == "from"):
            built = getattr(URLBuilder("http://h"), method)(*arguments, **query)
            assert built == f"http://h{path}?{parameter}=x"


def test_another_dialect() -> None:
    docker = URLBuilder("https://h", url_map=RegistryMap(dialect=DOCKER_1_5))
    assert (
        docker.blob("a/b", "tarsum.v1+sha256:abc") == "https://h/v2/a/b/blobs/tarsum.v1+sha256:abc"
    )
    assert docker.blob_upload_chunk("a/b", "x y") == "https://h/v2/a/b/blobs/uploads/x%20y"
    with pytest.raises(ValueError, match="two to five components"):
        docker.tags("a")


@pytest.mark.parametrize(
    ("endpoint", "values", "query", "error", "message"),
    [
        ("tags", {"name": "A"}, {}, ValueError, "repository name 'A' must be lowercase"),
        ("tags", {}, {}, BuildError, "tags"),
        ("nothing", {"name": "a"}, {}, BuildError, "nothing"),
        ("tags", {"name": "a"}, {"last": 1.5}, ValueError, "last 1.5 must be a string"),
    ],
)
def test_values_that_fit_no_route_are_not_built(
    endpoint: str, values: Any, query: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        URLBuilder("https://h").build(endpoint, values, query)


@pytest.mark.parametrize(
    ("url", "other", "expected"),
    [
        ("https://h/a", "https://h/b?c", True),
        ("https://h", "https://h:443/", True),
        ("http://h:80", "http://H", True),
        ("https://h", "http://h", False),
        ("http://h:443", "https://h:443", False),
        ("https://h", "https://h:5000", False),
        ("https://h", "https://h.example", False),
        ("https://h", "https://h@evil.example", False),
        ("https://user@h", "https://h", True),
        ("https://[::1]:5000", "https://[::1]:5000/", True),
        ("http://127.0.0.1:5000", "http://localhost:5000", False),
        (httpx.URL("https://h/a"), "https://h", True),
    ],
)
def test_where_credentials_may_go(url: object, other: object, expected: bool) -> None:
    assert same_origin(url, other) is same_origin(other, url) is expected


@pytest.mark.parametrize(
    "url", ["/v2/", "", "h:5000", "ftp://h", "https:///x", "https://h:x", None]
)
def test_a_value_without_an_origin_is_named(url: object) -> None:
    for arguments in (url, "https://h"), ("https://h", url):
        with pytest.raises(ValueError, match=r"URL .*must"):
            same_origin(*arguments)


class TestFromEnviron:
    def test_the_scheme_host_and_mount_of_a_request(self) -> None:
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
            ("_registry_1", "https", "_registry_1"),
            ("docker_registry:80", "http", "docker_registry"),
            ("registry:443", "https", "registry"),
            ("registry:443", "http", "registry:443"),
            ("registry:80", "https", "registry:80"),
            ("[::1]:443", "https", "[::1]"),
            ("[::80]", "http", "[::80]"),
        ],
    )
    def test_the_host_is_the_requests(self, host: str, scheme: str, expected: str) -> None:
        environ = environ_for("/v2/", HTTP_HOST=host, **{"wsgi.url_scheme": scheme})
        assert URLBuilder.from_environ(environ).base() == f"{scheme}://{expected}/v2/"

    def test_without_a_host_the_servers_counts(self) -> None:
        environ = environ_for("/v2/", SERVER_NAME="registry.local", SERVER_PORT="5000")
        del environ["HTTP_HOST"]  # HTTP/1.0
        assert URLBuilder.from_environ(environ).base() == "http://registry.local:5000/v2/"

    def test_a_mount_cannot_name_another_host(self) -> None:
        for script_name in "//evil.example", "/\\evil.example", "//":
            environ = environ_for("/", SCRIPT_NAME=script_name)
            for relative in True, False:
                built = URLBuilder.from_environ(environ, relative=relative).base()
                assert urlsplit(built).netloc == ("" if relative else "registry.example")
                assert "\\" not in built

    @pytest.mark.parametrize(
        "host",
        [
            *("", "h x", "u:p@h", "h/x", "é", "h?x", "h:", "h:x", "h:0x50", "h:99999", "h\n"),
            *("[", "[]", "[::1", "[:::]x", "::1", "h,i", "h#x", "h\\x", "h:" + "9" * 5000),
        ],
    )
    def test_a_malformed_host_is_a_400(self, host: str) -> None:
        environ = environ_for("/", HTTP_HOST=host, SERVER_NAME="")
        with pytest.raises(SecurityError):
            URLBuilder.from_environ(environ)
        assert URLBuilder.from_environ(environ, relative=True).base() == "/v2/"

    def test_forwarded_headers_count_only_through_proxy_fix(self) -> None:
        @Request.application
        def app(request: Request) -> Response:
            return Response(URLBuilder.from_environ(request.environ).base())

        headers = {
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "public.example",
            "X-Forwarded-Prefix": "/mirror",
            "Forwarded": "proto=https;host=evil.example",
        }
        assert Client(app).get("/", headers=headers).text == "http://localhost/v2/"
        behind = ProxyFix(app, x_proto=1, x_host=1, x_prefix=1)
        assert Client(behind).get("/", headers=headers).text == "https://public.example/mirror/v2/"


@pytest.mark.parametrize(
    ("location", "query", "expected"),
    [
        (
            "https://cdn.example/up/1",
            {"digest": "sha256:a"},
            "https://cdn.example/up/1?digest=sha256%3Aa",
        ),
        (
            "/v2/a/blobs/uploads/1",
            {"digest": "sha256:a"},
            "https://r.example/v2/a/blobs/uploads/1?digest=sha256%3Aa",
        ),
        (
            "1?_state=a%2Bb==&&x=&y",
            {"digest": "d"},
            "https://r.example/v2/a/blobs/uploads/1?_state=a%2Bb==&&x=&y&digest=d",
        ),
        ("?x=%zz", {}, "https://r.example/v2/a/blobs/uploads/?x=%zz"),
        ("/x?", {"digest": "d"}, "https://r.example/x?digest=d"),
        ("/x?a=1&", {"digest": "d"}, "https://r.example/x?a=1&digest=d"),
        ("/x?digest=old", {"digest": "d"}, "https://r.example/x?digest=old&digest=d"),
        ("/x#fragment", {"digest": "d"}, "https://r.example/x?digest=d"),
        (
            "/x",
            {"digest-algorithm": "sha512", "tag": ["a", "b"], "none": None},
            "https://r.example/x?digest-algorithm=sha512&tag=a&tag=b",
        ),
        ("//other.example/x", {}, "https://other.example/x"),
        ("../../tags", {}, "https://r.example/v2/a/tags"),
        ("/a%2Fb/%3A;p=1", {}, "https://r.example/a%2Fb/%3A;p=1"),
        ("http://r.example:5000", {"digest": "d"}, "http://r.example:5000?digest=d"),
    ],
)
def test_where_a_location_leads(location: str, query: dict[str, Any], expected: str) -> None:
    request_url = "https://r.example/v2/a/blobs/uploads/?mount=x"
    assert resolve_location(request_url, location, **query) == expected


@pytest.mark.parametrize(
    "location",
    [
        *(
            "ftp://h/x",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "https://",
            "/x y",
            "/x\n",
            "\\\\h",
        ),
        *("http:///x", "https://?x", "\x00", "http://[x", "http://h:x/", "//h:99999/"),
    ],
)
def test_a_location_that_leads_nowhere_is_named(location: str) -> None:
    with pytest.raises(ValueError, match=r"Location .* must"):
        resolve_location("https://r.example/v2/", location)
    with pytest.raises(ValueError, match="must"):
        resolve_location("r.example/v2/", "x")


def test_a_missing_location_is_named() -> None:
    with pytest.raises(ValueError, match="Location must be a string or a URL object, not NoneType"):
        resolve_location("https://r.example/v2/", None)


@given(st.text(alphabet="ab=&%+;?/:@!$'()*,~._-", max_size=30))
def test_the_query_of_a_location_is_kept_byte_for_byte(query: str) -> None:
    resolved = resolve_location("https://h/a", f"/b?{query}", digest="sha256:x")
    kept, _, digest = resolved.rpartition("digest=")
    assert digest == "sha256%3Ax"
    expected = f"https://h/b?{query}"
    assert kept == (expected if expected.endswith(("?", "&")) else f"{expected}&")


def test_a_server_reads_the_query_that_was_built() -> None:
    built = url_map.bind("h").build("tags", {"name": "a", "n": 3, "last": "a b"})
    query = urlsplit(URLBuilder("https://h").tags("a", n=3, last="a b")).query
    assert parse_qsl(urlsplit(built).query) == parse_qsl(query)
    assert parse_qs(query) == {"n": ["3"], "last": ["a b"]}


def test_a_map_that_matches_hosts_builds_the_same_urls() -> None:
    url_map = RegistryMap(host_matching=True)
    environ = create_environ("/v2/", "https://registry.example/m")
    assert URLBuilder("https://h", url_map=url_map).base() == "https://h/v2/"
    urls = URLBuilder.from_environ(environ, url_map=url_map)
    assert urls.tags("a") == "https://registry.example/m/v2/a/tags/list"
    assert RegistryRequest(environ, url_map).urls.tags("a") == "/m/v2/a/tags/list"


class PrintsAsURL:
    """A URL of some library, such as yarl."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __str__(self) -> str:
        return self.url


@pytest.mark.parametrize("url", [str, httpx.URL, PrintsAsURL])
def test_an_object_that_prints_as_a_url_is_accepted(url: Callable[[str], object]) -> None:
    page = "https://h:5000/v2/a/tags/list"
    assert resolve_location(url(page), url("/x?_state=a%2Bb"), digest="d") == (
        "https://h:5000/x?_state=a%2Bb&digest=d"
    )
    assert resolve_location(url(page), url("https://cdn.example/x")) == "https://cdn.example/x"
    assert parse_next_link(url(page), "</n>; rel=next") == "https://h:5000/n"
    assert match_url(url(page)) == match_url(url("/v2/a/tags/list")) == ("tags", {"name": "a"}, {})
    assert match_url(url("https://h/m/v2/"), root=url("https://h:443/m/")).endpoint == "base"
    assert match_url(url("/m/v2/"), root=url("/m")).endpoint == "base"
    assert URLBuilder(url("https://h/m/")).base() == "https://h/m/v2/"


@pytest.mark.parametrize(
    "url",
    [
        *(None, b"/v2/", bytearray(b"/v2/"), 5, True, ["/v2/"], ("/v2/",), {"/v2/": 1}, object()),
        *(urlsplit("https://h/v2/"), httpx.Response(200), Request, memoryview(b"/v2/")),
    ],
)
def test_an_object_that_does_not_print_as_a_url_is_refused(url: object) -> None:
    """The text of None or of a list would be taken for a relative path."""
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
        with pytest.raises(
            ValueError, match=rf"must be a string or a URL object, not {type(url).__name__}"
        ):
            call()


# Matching URLs.

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
SPELLED = {
    "from_": "from",
    "digest_algorithm": "digest-algorithm",
    "artifact_type": "artifactType",
}
MAPS = {prefix: RegistryMap(prefix=prefix) for prefix in ("", "/q", "/v2/é x")}


@pytest.mark.parametrize("method", sorted({method for method, *_ in CALLS}))
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
                POSITIONAL[name] if parameter.default is not None else POSITIONAL[name] | st.none()
            )
            arguments.append(value)
            if value is not None:
                named = "digest" if ":" in value else "tag"
                values[named if name == "reference" else name] = value
        elif parameter.kind is parameter.KEYWORD_ONLY and data.draw(st.booleans()):
            if name == "tag" and "tag" in values:
                continue
            query[name] = data.draw(KEYWORDS[name])
    more = {
        name: value for name, value in more.items() if name not in {*KEYWORDS, *SPELLED.values()}
    }
    urls = URLBuilder(root, relative=relative, url_map=MAPS[prefix])
    url = getattr(urls, method)(*arguments, **query, **more)
    verb = "POST" if method == "blob_upload" else "GET"
    pairs = {SPELLED.get(name, name): value for name, value in {**query, **more}.items()}
    expected = MultiDict(
        (name, str(one))
        for name, value in pairs.items()
        for one in (value if isinstance(value, list) else [value])
    )
    for base in (root, urls.root):
        matched = match_url(url, verb, root=base, url_map=MAPS[prefix])
        assert matched == (method.replace("_", "-"), values, expected)
        rebuilt = urls.build(*matched)
        assert match_url(rebuilt, verb, root=base, url_map=MAPS[prefix]) == matched


@given(TEXT.filter(grammar.DOCKER_UPLOAD_ID.fits))
def test_a_value_that_is_percent_encoded_is_matched_back(uuid: str) -> None:
    routes = RegistryMap(dialect=DOCKER_1_5)
    url = URLBuilder("https://h/m", url_map=routes).blob_upload_chunk("a/b", uuid)
    matched = match_url(url, root="https://h/m", url_map=routes)
    assert matched.values == {"name": "a/b", "uuid": uuid}


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
def test_a_url_is_matched_as_a_request_for_it_is(mount: str) -> None:
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
        (f"/v2/a/blobs/{Q}", "HEAD", "/", ("blob", {"name": "a", "digest": SHA256})),
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
def test_the_endpoint_values_and_query_of_a_url(
    url: str, method: str, root: str, expected: tuple[Any, ...]
) -> None:
    endpoint, values, query = match_url(url, method, root=root)
    assert (endpoint, values) == expected
    assert not query


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
def test_the_query_is_decoded(query: str, expected: list[tuple[str, str]]) -> None:
    for url in f"/v2/_catalog?{query}", f"https://h/v2/_catalog?{query}#n=3":
        assert match_url(url).query == MultiDict(expected)


@pytest.mark.parametrize(
    ("url", "root", "error", "message"),
    [
        ("/v2/a/blobs/x", "/", errors.DigestInvalid, "digest 'x' must have an algorithm"),
        ("https://h/v2/A/tags/list", "/", errors.NameInvalid, "repository name 'A' must be lower"),
        (
            "/v2/a%FFb/tags/list",
            "/",
            errors.NameInvalid,
            "repository name 'a\ufffdb' must contain only",
        ),
        ("/v2/é/tags/list", "/", errors.NameInvalid, "repository name 'é' must contain only"),
        ("/v2/a%0A/tags/list", "/", errors.NameInvalid, r"repository name 'a\n' must contain only"),
        ("/v2/a/blobs/uploads/", "/", errors.Unsupported, "the registry does not support this"),
        ("/v2/x", "/", errors.RouteUnknown, "the registry has no such endpoint"),
        ("/x", "/", NotFound, "URL '/x' must be under the API, '/v2/'"),
        ("https://h", "/", NotFound, "URL 'https://h' must be under the API, '/v2/'"),
        (
            "http://h/m",
            "http://h/m/",
            NotFound,
            "URL 'http://h/m' must be under the API, 'http://h/m/v2/'",
        ),
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
def test_a_url_that_does_not_match_raises_what_match_raises(
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
def test_a_url_that_redirects_raises_the_redirect(url: str, root: str, location: str) -> None:
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
def test_a_malformed_url_is_a_value_error(url: str) -> None:
    with pytest.raises(ValueError, match=r"^URL .* must"):
        match_url(url)


@pytest.mark.parametrize(
    "root", ["x", "h:5000", "ftp://h", "//h", "https://u@h", "/x?y", "https:///x"]
)
def test_the_root_of_a_url_is_checked(root: str) -> None:
    with pytest.raises(ValueError, match=r"^root .* must"):
        match_url("/v2/", root=root)


def test_a_url_is_matched_with_the_routes_of_another_map() -> None:
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


HUGE = "x" * 10**6


@pytest.mark.parametrize(
    "call",
    [
        lambda: URLBuilder(HUGE),
        lambda: URLBuilder(f"https://h:{HUGE}"),
        lambda: URLBuilder(f"https://h/?{HUGE}"),
        lambda: URLBuilder(f"https://h//{HUGE}"),
        lambda: URLBuilder(f"https://h/ {HUGE}"),
        lambda: URLBuilder(f"//h/{HUGE}", relative=True),
        lambda: URLBuilder("https://h").tags(HUGE.upper()),
        lambda: URLBuilder("https://h").tags("a", n=-(10**4000)),
        lambda: URLBuilder("https://h").tags("a", n=HUGE),  # type: ignore[arg-type]
        lambda: URLBuilder("https://h").tags("a", last=HUGE.encode()),  # type: ignore[arg-type]
        lambda: URLBuilder("https://h").tags("a", last=f"{HUGE}\udcff"),
        lambda: URLBuilder("https://h").manifest("a", HUGE),
        lambda: URLBuilder("https://h").manifest("a", HUGE, tag="v1"),
        lambda: URLBuilder("https://h").manifest(Reference.parse("a"), HUGE),
        lambda: resolve_location("https://h", f"ftp://{HUGE}"),
        lambda: resolve_location(f"urn:{HUGE}", "/x"),
        lambda: resolve_location("https://h", f"/ {HUGE}"),
        lambda: resolve_location("https://h", f"http://[{HUGE}/"),
        lambda: resolve_location("https://h", f"http://\u2100{HUGE}/"),
        lambda: match_url(HUGE),
        lambda: match_url(f"/{HUGE}"),
        lambda: match_url(f"/{HUGE}", root="/m"),
        lambda: match_url("/v2/", root=f"/{HUGE}"),
        lambda: match_url("/x", root="/", url_map=RegistryMap(prefix=f"/{HUGE[:9999]}")),
        lambda: match_url(f"/v2/{HUGE.upper()}/tags/list"),
    ],
)
def test_a_huge_value_is_shortened_in_the_message(call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, HTTPException)) as error:
        call()
    assert 20 < len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "shape",
    [
        "/",
        "/..",
        "/.",
        "a/",
        "%2F",
        "%",
        "%zz",
        "%C3",
        "&",
        "a=&",
        "?",
        "#",
        "é",
        "[",
        "@",
        ":",
        ";",
    ],
)
def test_a_hostile_url_takes_little_time(shape: str) -> None:
    begun = time.monotonic()
    for begin in "/", "/v2/", "/v2/a/tags/list?", "https://h/", "https://", "/m/v2/":
        url = begin + shape * (100_000 // len(shape))
        for root in "/", "/m", f"/m/{'x/' * 50_000}":
            with suppress(HTTPException, ValueError):
                match_url(url, root=root)
        with suppress(ValueError):
            resolve_location("https://h/v2/", url, digest="x")
    assert time.monotonic() - begun < 20
