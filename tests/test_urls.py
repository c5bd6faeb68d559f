"""URLs that clients and servers build and follow."""

import copy
import inspect
import pickle
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import SecurityError
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BuildError, Rule
from werkzeug.test import Client, create_environ
from werkzeug.wrappers import Request, Response

from registry_routes import (
    DOCKER_1_5,
    OCI_1_1,
    RegistryMap,
    RegistryRequest,
    RouteName,
    URLBuilder,
    resolve_location,
    url_map,
)

from .nasty import SHA256, SHA512
from .wsgi import environ_for

Q = SHA256.replace(":", "%3A")
# Of each method: a call, and the path and the query of what it builds.
CALLS: list[tuple[str, tuple[str, ...], dict[str, Any], str, str]] = [
    ("base", (), {}, "/v2/", ""),
    ("catalog", (), {}, "/v2/_catalog", ""),
    ("catalog", (), {"n": 10, "last": "a/b"}, "/v2/_catalog", "n=10&last=a%2Fb"),
    ("tags", ("a/b",), {}, "/v2/a/b/tags/list", ""),
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
    ("extension", ("oci", "ext", "discover"), {"name": "a"}, "/v2/a/_oci/ext/discover", ""),
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
    for root, begin in ROOTS.items():
        assert getattr(URLBuilder(root), method)(*arguments, **options) == begin + wanted
        relative = URLBuilder(root, relative=True)
        assert getattr(relative, method)(*arguments, **options) == urlsplit(begin).path + wanted
    in_path = URLBuilder("/p/", relative=True, url_map=RegistryMap(prefix="/q"))
    built = getattr(in_path, method)(*arguments, **options)
    assert built == f"/p/q{wanted}"
    verb = "POST" if method == "blob_upload" else "GET"
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
        ("manifest", ("a", "a/../b"), {}, "tag 'a/../b' must have no characters but"),
        ("manifest", ("a", ""), {}, "tag '' must not be empty"),
        ("manifest", ("a", None), {}, "tag None must be a string"),
        ("manifest", ("a", "sha256:x"), {}, "digest 'sha256:x' must have 64"),
        ("manifest", ("a", SHA256), {"tag": ["v1", "!"]}, "tag '!' must start with"),
        ("manifest", ("a", "v1"), {"tag": "v2"}, "manifest 'v1' must be named by its digest"),
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
def test_a_root_that_is_none_is_named(root: str) -> None:
    with pytest.raises(ValueError, match=r"^root .* must"):
        URLBuilder(root)


@pytest.mark.parametrize("root", ["x", "ftp://h/x", "//h/x", "/x?y", "\\x"])
def test_a_relative_root_that_is_none_is_named(root: str) -> None:
    with pytest.raises(ValueError, match=r"^root .* must"):
        URLBuilder(root, relative=True)


def test_a_root_cannot_name_another_host() -> None:
    for root in "////evil.example", "http://h//evil.example":
        with pytest.raises(ValueError, match="must have a path that starts with one '/'"):
            URLBuilder(root, relative=True)


def test_a_parameter_is_given_by_its_own_argument() -> None:
    with pytest.raises(ValueError, match="parameter 'from' must be given by its own argument"):
        URLBuilder("http://h").blob_upload("a", **{"from": "B"})
    with pytest.raises(ValueError, match="parameter 'digest-algorithm' must be given by its own"):
        URLBuilder("http://h").blob_upload("a", **{"digest-algorithm": "sha512"})
    assert URLBuilder("http://h").manifest("a", "v1", tag=None) == "http://h/v2/a/manifests/v1"


def test_another_dialect() -> None:
    docker = URLBuilder("https://h", url_map=RegistryMap(DOCKER_1_5))
    assert (
        docker.blob("a/b", "tarsum.v1+sha256:abc") == "https://h/v2/a/b/blobs/tarsum.v1+sha256:abc"
    )
    assert docker.blob_upload_chunk("a/b", "x y") == "https://h/v2/a/b/blobs/uploads/x%20y"
    with pytest.raises(ValueError, match="two to five components"):
        docker.tags("a")


class TestFromEnviron:
    def test_the_scheme_host_and_mount_of_a_request(self) -> None:
        environ = environ_for("/v2/", HTTP_HOST="r.example:5000", SCRIPT_NAME="/m/\xc3\xa9 x")
        assert URLBuilder.from_environ(environ).base() == "http://r.example:5000/m/%C3%A9%20x/v2/"
        relative = URLBuilder.from_environ(environ, relative=True)
        assert relative.base() == "/m/%C3%A9%20x/v2/"
        under = URLBuilder.from_environ(environ_for("/"), url_map=RegistryMap(prefix="/p"))
        assert under.base() == "http://registry.example/p/v2/"

    def test_a_mount_cannot_name_another_host(self) -> None:
        for script_name in "//evil.example", "/\\evil.example", "//":
            environ = environ_for("/", SCRIPT_NAME=script_name)
            for relative in True, False:
                built = URLBuilder.from_environ(environ, relative=relative).base()
                assert urlsplit(built).netloc == ("" if relative else "registry.example")
                assert "\\" not in built

    @pytest.mark.parametrize("host", ["", "h x", "u:p@h", "h/x", "é", "h?x"])
    def test_a_malformed_host_is_a_400(self, host: str) -> None:
        environ = environ_for("/", HTTP_HOST=host, SERVER_NAME="")
        with pytest.raises(SecurityError):
            URLBuilder.from_environ(environ)
        assert URLBuilder.from_environ(environ, relative=True).base() == "/v2/"

    def test_forwarded_headers_are_believed_through_proxy_fix_only(self) -> None:
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


def test_a_location_that_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match="Location must be a string, not NoneType"):
        resolve_location("https://r.example/v2/", None)  # type: ignore[arg-type]


@given(st.text(alphabet="ab=&%+;?/:@!$'()*,~._-", max_size=30))
def test_the_query_of_a_location_is_kept_byte_for_byte(query: str) -> None:
    resolved = resolve_location("https://h/a", f"/b?{query}", digest="sha256:x")
    kept, _, digest = resolved.rpartition("digest=")
    assert digest == "sha256%3Ax"
    expected = f"https://h/b?{query}"
    assert kept == (expected if expected.endswith(("?", "&")) else f"{expected}&")


def test_what_is_built_for_a_query_is_what_a_server_reads() -> None:
    built = url_map.bind("h").build("tags", {"name": "a", "n": 3, "last": "a b"})
    query = urlsplit(URLBuilder("https://h").tags("a", n=3, last="a b")).query
    assert parse_qsl(urlsplit(built).query) == parse_qsl(query)
    assert parse_qs(query) == {"n": ["3"], "last": ["a b"]}


@pytest.mark.parametrize(
    "url_map",
    [
        RegistryMap(DOCKER_1_5, prefix="/r", rules=[Rule("/v2/t", endpoint=lambda: None)]),
        RegistryMap(OCI_1_1.subset("tags", "manifest"), prefix="/r"),
    ],
    ids=["another dialect", "a subset"],
)
def test_a_builder_can_be_pickled_whatever_else_is_in_its_map(url_map: RegistryMap) -> None:
    """It needs the dialect and the prefix."""
    urls = URLBuilder("https://registry.example/m", url_map=url_map)
    for again in pickle.loads(pickle.dumps(urls)), copy.deepcopy(urls):
        assert again.tags("a/b") == "https://registry.example/m/r/v2/a/b/tags/list"
        with pytest.raises(ValueError, match="must be lowercase"):
            again.tags("A/b")
        with pytest.raises(BuildError):
            again.catalog()


def test_a_map_that_matches_hosts_builds_the_same_urls() -> None:
    url_map = RegistryMap(host_matching=True)
    environ = create_environ("/v2/", "https://registry.example/m")
    assert URLBuilder("https://h", url_map=url_map).base() == "https://h/v2/"
    urls = URLBuilder.from_environ(environ, url_map=url_map)
    assert urls.tags("a") == "https://registry.example/m/v2/a/tags/list"
    assert RegistryRequest(environ, url_map).urls.tags("a") == "/m/v2/a/tags/list"
