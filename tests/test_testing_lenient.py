"""`registry_routes.testing.LENIENT`, and listing repositories as docker-registry does."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_routes import OCI_1_1, Reference, RegistryMap
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_INDEX, IMAGE_MANIFEST
from registry_routes.registry import Manifest
from registry_routes.testing import LENIENT
from registry_routes.testing.lenient import LENIENT_DIGEST

from .served import USERS, Login, push_blob, push_image, serve, served
from .servers import debians_registry

MADE_UP = ["sha256:0cd1ee2a9e", f"sha256:{64 * '0'}", "md5:abc", "sha256:NotHex_="]


@pytest.mark.parametrize("digest", MADE_UP)
def test_image_has_a_made_up_digest(digest: str, transport: str) -> None:
    with served(url_map=RegistryMap(dialect=LENIENT), transport=transport) as (registry, client):
        assert registry.add_image("a/b:v1", [b"x"], digest=digest) == digest
        path = f"/v2/a/b/manifests/{digest}"
        for at in "/v2/a/b/manifests/v1", path:
            response = client.get(at)
            assert response.headers["Docker-Content-Digest"] == digest
            assert response.json() == registry.manifest("a/b:v1")
            assert client.head(at).headers["Content-Type"] == IMAGE_MANIFEST
        assert client.get(path, headers={"If-None-Match": f'"{digest}"'}).status_code == 304
        assert client.get(path.replace("a/b", "c")).status_code == 404
        sent = registry.requests[-1]
        assert (sent.endpoint, sent.values["digest"]) == ("manifest", digest)
        assert client.delete(path).status_code == 202
        response = client.get(path)
        assert response.status_code == 404
        assert response.json()["errors"][0]["code"] == "MANIFEST_UNKNOWN"


@pytest.mark.parametrize("digest", MADE_UP)
@pytest.mark.parametrize("options", [{}, {"redirect_blobs": True}])
def test_blob_and_referrer_have_made_up_digests(digest: str, options: dict[str, Any]) -> None:
    with served(url_map=RegistryMap(dialect=LENIENT), **options) as (registry, client):
        registry.storage.put_blob("a", digest, [b"01", b"23"])
        path = f"/v2/a/blobs/{digest}"
        assert client.get(path).content == registry.blob("a", digest) == b"0123"
        assert client.head(path).headers["Content-Length"] == "4"
        assert client.get(path, headers={"Range": "bytes=1-2"}).content == b"12"
        assert client.delete(path).status_code == 202
        assert client.get(path).json()["errors"][0]["code"] == "BLOB_UNKNOWN"
        entry = {"mediaType": IMAGE_MANIFEST, "digest": "sha256:5", "size": 2}
        registry.storage.put_manifest(
            *("a", "sha256:5", Manifest(IMAGE_MANIFEST, b"{}")),
            subject=digest,
            descriptor=json.dumps(entry).encode(),
        )
        response = client.get(f"/v2/a/referrers/{digest}")
        assert response.headers["Content-Type"] == IMAGE_INDEX
        assert response.json()["manifests"] == [entry]


def test_pushes_are_verified() -> None:
    zeros = f"sha256:{64 * '0'}"
    login = Login("alice", "secret")
    options: dict[str, Any] = {"users": USERS, "auth": "bearer"}
    with served(url_map=RegistryMap(dialect=LENIENT), login=login, **options) as (registry, client):
        push_image(client, "good", "v1", b"x")
        push_blob(client, "good", b"0123456789", chunk=4)
        manifest = json.dumps({"schemaVersion": 2})
        for digest in MADE_UP:
            upload = client.post("/v2/a/blobs/uploads/").headers["Location"]
            for method, path, content in (
                ("POST", f"/v2/a/blobs/uploads/?digest={digest}", "x"),
                ("PUT", f"{upload}?digest={digest}", "x"),
                ("PUT", f"/v2/a/manifests/{digest}", manifest),
            ):
                response = client.request(method, path, content=content)
                assert response.status_code == 400, path
                assert response.json()["errors"][0]["code"] == "DIGEST_INVALID"
        layer = {"mediaType": "x/y", "digest": "sha256:1", "size": 1}
        content = json.dumps({"schemaVersion": 2, "layers": [layer]})
        assert client.put("/v2/a/manifests/v1", content=content).status_code == 400
        with pytest.raises(LookupError):
            registry.blob("a", zeros)
        assert list(registry.storage.repositories()) == ["good"]


def test_only_lenient_takes_made_up_digests() -> None:
    with served() as (registry, client):
        with pytest.raises(ValueError, match="digest is for serve"):
            registry.add_image("a", digest=MADE_UP[1])
        with pytest.raises(ValueError, match="content has the digest"):
            registry.storage.put_blob("a", MADE_UP[1], [b"x"])
        assert client.get(f"/v2/a/manifests/{MADE_UP[0]}").status_code == 400
    with serve(url_map=RegistryMap(dialect=LENIENT)) as registry:
        for malformed in "", "sha256", "sha256:", "sha256:a/b", "SHA:1", "a:b:c":
            with pytest.raises(ValueError, match=f"digest '{malformed}' must "):
                registry.add_image("a", digest=malformed)
        with pytest.raises(ValueError, match="64 lowercase hexadecimal digits"):
            registry.manifest("a@sha256:0cd1ee2a9e")
        assert "must have only a-z" in str(LENIENT_DIGEST.complaint("sha256:a b"))
    with pytest.raises(ValueError, match="64 lowercase hexadecimal digits"):
        Reference.parse("a@sha256:0cd1ee2a9e")


def test_subset_of_lenient_serves_no_more() -> None:
    url_map = RegistryMap(dialect=LENIENT.subset("manifest", methods=["GET"]), prefix="/r")
    with served(url_map=url_map) as (registry, client):
        registry.add_image("a", digest="sha256:1")
        registry.storage.put_blob("a", "sha256:2", [b"x"])
        assert client.get("/r/v2/a/manifests/sha256:1").status_code == 200
        assert client.delete("/r/v2/a/manifests/sha256:1").status_code == 405
        assert client.get("/r/v2/a/blobs/sha256:2").status_code == 404
        assert [sent.endpoint for sent in registry.requests] == ["manifest", "manifest", "blob"]


LENIENT_MAP = RegistryMap(dialect=LENIENT)
DIGESTS = st.from_regex(
    "[a-z0-9]{1,8}([+._-][a-z0-9]{1,8}){0,2}:[a-zA-Z0-9=_-]{1,20}", fullmatch=True
)


@given(DIGESTS)
def test_lenient_urls_take_any_digest(digest: str) -> None:
    adapter = LENIENT_MAP.bind("h")
    for endpoint in "manifest", "blob", "referrers":
        values = {"name": "a", "digest": digest}
        assert adapter.match(adapter.build(endpoint, values)) == (endpoint, values)


# docker-registry.


def list_everything(client: httpx.Client) -> list[Any]:
    """Return the registry's catalog, and the tags of each repository."""
    lists: list[Any] = [client.get("/v2/_catalog").json()["repositories"]]
    for name in "blobs", "mounted", "uploads", "untagged", "tagged", "none":
        response = client.get(f"/v2/{name}/tags/list")
        if response.status_code == 404:
            lists.append(response.json()["errors"][0]["code"])
        else:
            lists.append(response.json()["tags"] or [])  # docker-registry has null for none
    return lists


def lists_over_time(client: httpx.Client) -> Iterator[list[Any]]:
    yield list_everything(client)
    blob = push_blob(client, "blobs", b"x", chunk=5)
    client.post(f"/v2/mounted/blobs/uploads/?mount={blob}&from=blobs")
    client.post("/v2/uploads/blobs/uploads/")
    yield list_everything(client)
    for name in "untagged", "tagged":
        push_blob(client, name, b"{}", chunk=5)
        config = {"mediaType": "x/y", "digest": digest_of(b"{}"), "size": 2}
        manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": config, "layers": []}
        ).encode()
        reference = "v1" if name == "tagged" else digest_of(manifest)
        response = client.put(
            f"/v2/{name}/manifests/{reference}",
            content=manifest,
            headers={"Content-Type": IMAGE_MANIFEST},
        )
        assert response.status_code == 201
    yield list_everything(client)
    client.delete(f"/v2/tagged/manifests/{digest_of(manifest)}")
    client.delete(f"/v2/blobs/blobs/{blob}")
    yield list_everything(client)


UNKNOWN = "NAME_UNKNOWN"
LISTS = [
    [[], *(6 * [UNKNOWN])],
    [["blobs", "mounted"], *(6 * [UNKNOWN])],
    [["blobs", "mounted", "tagged", "untagged"], *(4 * [UNKNOWN]), ["v1"], UNKNOWN],
    [["blobs", "mounted", "tagged", "untagged"], *(4 * [UNKNOWN]), [], UNKNOWN],
]


@pytest.mark.parametrize(
    "program", ["serve", pytest.param("docker-registry", marks=pytest.mark.slow)]
)
def test_repositories_are_listed_as_by_docker_registry(program: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        if program == "serve":
            url = stack.enter_context(serve(like_docker_registry=True)).url
        else:
            url = f"http://{stack.enter_context(debians_registry(tmp_path))}"
        client = stack.enter_context(httpx.Client(base_url=url, verify=False))
        assert list(lists_over_time(client)) == LISTS


def test_made_up_digests_and_listing_work_together() -> None:
    options: dict[str, Any] = {
        "url_map": RegistryMap(dialect=LENIENT),
        "like_docker_registry": True,
    }
    with served(page_size=1, **options) as (registry, client):
        registry.storage.put_blob("blobs", "sha256:1", [b"x"])
        push_blob(client, "pushed", b"y")
        registry.add_image("images", digest="sha256:2")
        response = client.get("/v2/_catalog")
        assert response.json() == {"repositories": ["blobs"]}
        assert list(registry.storage.repositories()) == ["blobs", "images", "pushed"]
        assert client.get("/v2/images/tags/list").json()["tags"] == ["latest"]
        assert client.get("/v2/pushed/tags/list").status_code == 404
    assert OCI_1_1.converters["digest"] is not LENIENT.converters["digest"]
