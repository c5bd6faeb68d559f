"""The gateway in front of a registry for tests, with each habit that this can have."""

import ssl
from pathlib import Path
from typing import Any

import client
import pytest
from client import Registry
from layout import Layout

from registry_routes import OCI_1_1, Reference, RegistryMap, resolve_location
from registry_routes.digests import digest_of
from registry_routes.testing import LENIENT, ServedRegistry, serve

from . import oci_layout
from .fronts import USERS, FrontClient, served_front
from .proxies import pages_of
from .servers import files_of

pytestmark = pytest.mark.slow

ROBOT: dict[str, Any] = {"users": {"robot": "secret"}}
BASIC, BEARER = {**ROBOT, "auth": "basic"}, {**ROBOT, "auth": "bearer"}
CHUNK = 100_000
V1 = Reference.parse("r.example/team/app:v1")
SERVED = "base", "manifest", "blob", "blob-upload", "blob-upload-chunk", "tags"

QUIRKS: list[dict[str, Any]] = [
    {},
    BASIC,
    BEARER,
    {**BASIC, "anonymous_pull": True},
    {**BEARER, "anonymous_pull": True},
    {**BEARER, "service": "another service"},
    {**BEARER, "token_field": "access_token"},
    {**BEARER, "token_method": "GET"},
    {**BEARER, "token_method": "POST"},
    {**BEARER, "granted_actions": ["pull", "push"]},
    {**BEARER, "scope_status": 403},
    {"location": "absolute"},
    {"location": "relative"},
    {"location": "opaque"},
    {**BEARER, "location": "opaque", "single_post": False, "min_chunk": 2 * CHUNK},
    {"redirect_blobs": True},
    {**BASIC, "redirect_blobs": True},
    {**BEARER, "redirect_blobs": True, "location": "opaque"},
    {"single_post": False},
    {"page_size": 1},
    {**BEARER, "page_size": 2},
    {"min_chunk": 2 * CHUNK},
    {"max_chunk": CHUNK // 2},
    {"min_chunk": CHUNK // 2, "max_chunk": CHUNK // 2},
    {"like_docker_registry": True},
    {"url_map": RegistryMap(dialect=OCI_1_1.subset(*SERVED))},
    {"url_map": RegistryMap(dialect=LENIENT)},
]


def name_of(quirks: dict[str, Any]) -> str:
    shown = {**quirks, "users": ""}
    if "url_map" in quirks:
        shown["url_map"] = quirks["url_map"].dialect.name
    return ",".join(f"{key}={value}" for key, value in shown.items() if value) or "none"


@pytest.mark.parametrize("quirks", QUIRKS, ids=name_of)
def test_image_is_pushed_and_pulled(
    quirks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(**quirks) as upstream:
        push_and_pull(upstream, quirks, False, tmp_path, monkeypatch)


@pytest.mark.parametrize("login", [{}, BASIC, BEARER], ids=name_of)
def test_image_is_pushed_and_pulled_with_redirects_followed_here(
    login: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(**login, redirect_blobs=True, location="opaque") as upstream:
        push_and_pull(upstream, login, True, tmp_path, monkeypatch)
        stored = [asked for asked in upstream.requests if asked.endpoint == "storage"]
        assert stored
        assert not any("Authorization" in asked.headers for asked in stored)


@pytest.mark.parametrize("quirks", [{}, {**BEARER, "location": "absolute", "redirect_blobs": True}])
def test_image_is_pushed_and_pulled_with_tls_at_the_upstream(
    quirks: dict[str, Any],
    certificate: Path,
    tls: ssl.SSLContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with serve(**quirks, ssl_context=tls) as upstream:
        push_and_pull(upstream, quirks, True, tmp_path, monkeypatch)


def push_and_pull(
    upstream: ServedRegistry,
    quirks: dict[str, Any],
    stream_blobs: bool,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Push an image and three tags, and a blob in one POST, and get all of it back."""
    monkeypatch.setattr(client, "SMALLEST_CHUNK", CHUNK // 4)
    image, back = directory / "image", directory / "back"
    oci_layout.write(image, [5 * CHUNK, CHUNK, 1, 0], ["amd64", "arm64"])
    account = ("robot", "secret") if "users" in quirks else ()
    with served_front(upstream.url, *account, stream_blobs=stream_blobs) as front:
        registry = Registry(front.url, "team/app", ("alice", USERS["alice"]))
        registry.chunk = CHUNK
        digest = client.push(registry, V1, Layout(image))
        content = Layout(image).read(digest)
        for tag in "v2", "v3":
            registry.put_manifest(tag, content, oci_layout.INDEX)
        assert client.pull(registry, V1, Layout(back)) == digest
        assert files_of(back) == files_of(image)
        post_blob(registry, b"in one request")
        mount = {"mount": digest_of(b"in one request"), "from": "team/app"}
        url = registry.urls.build("blob-upload", {"name": "team/other"}, mount)
        assert registry.session.post(url, timeout=5).status_code == 201

        def get(path: str) -> Any:
            return registry.session.get(f"{front.url}{path}", timeout=5)

        pages = pages_of(get, "/v2/team/app/tags/list")
        size = quirks.get("page_size", 3)
        assert pages == [["v1", "v2", "v3"][i : i + size] for i in range(0, 3, size)]
    assert upstream.storage.tag("team/app", "v3") == digest


def post_blob(registry: Registry, content: bytes) -> None:
    """Push a blob in one POST, or in a PUT if the registry takes no single POST."""
    digest = digest_of(content)
    url = registry.urls.build("blob-upload", {"name": registry.name}, {"digest": digest})
    posted = registry.session.post(url, data=content, timeout=5)
    if posted.status_code == 202:
        registry.session.get(registry.urls.base(), timeout=5)
        location = resolve_location(url, posted.headers["Location"], digest=digest)
        posted = registry.session.put(location, data=content, timeout=5)
    assert posted.status_code == 201
    assert registry.has_blob(digest)


@pytest.mark.parametrize("status", [401, 403])
def test_account_that_may_only_pull_is_denied_a_push(status: Any) -> None:
    with serve(**BEARER, granted_actions=["pull"], scope_status=status) as upstream:
        upstream.add_image("team/app:v1", layers=[b"x"])
        front = FrontClient(upstream.url, "robot", "secret")
        assert front.open("GET", "/v2/team/app/manifests/v1").status_code == 200
        for path, data in (
            ("blobs/uploads/", b""),
            (f"blobs/uploads/?digest={digest_of(b'x')}", b"x"),
        ):
            refused = front.open("POST", f"/v2/team/app/{path}", data=data)
            assert (refused.status_code, refused.get_json()["errors"][0]["code"]) == (403, "DENIED")


def test_upstream_that_is_read_only_refuses_a_push_itself() -> None:
    with serve(url_map=RegistryMap(dialect=OCI_1_1.subset(methods=["GET"]))) as upstream:
        upstream.add_image("team/app:v1")
        front = FrontClient(upstream.url)
        assert front.open("GET", "/v2/team/app/manifests/v1").status_code == 200
        refused = front.open("PUT", "/v2/team/app/manifests/v1", data=b"{}")
        assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")
