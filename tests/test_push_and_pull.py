"""Clients of registries that are written with this package: a pull and a push in twenty lines each."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from registry_routes import Login, Reference, URLBuilder, errors, resolve_location
from registry_routes.digests import Verifier, content_digest, digest_of
from registry_routes.headers import ACCEPT_MANIFESTS, IMAGE_MANIFEST
from registry_routes.responses import raise_for_status

from .served import serve

LAYERS = [b"a layer" * 1000, b"", b"another"]


def pull(client: Any, image: str) -> list[bytes]:
    """Pull the layers of an image. `client` is a session of requests, or a client of httpx."""
    reference = Reference.parse(image)
    urls = URLBuilder(reference.root("http"))
    answer = client.get(urls.manifest(reference), headers={"Accept": ACCEPT_MANIFESTS})
    raise_for_status(answer, endpoint="manifest")
    said = content_digest(answer.headers.get("Docker-Content-Digest"))
    manifest = verified(answer.content, reference.digest or said)
    layers = []
    for layer in json.loads(manifest)["layers"]:
        blob = client.get(urls.blob(reference.name, layer["digest"]))
        raise_for_status(blob, endpoint="blob")
        layers.append(verified(blob.content, layer["digest"]))
    return layers


def verified(content: bytes, digest: str | None) -> bytes:
    verifier = Verifier(digest or digest_of(content))
    verifier.update(content)
    verifier.verify()
    return content


def push(client: Any, image: str, layers: list[bytes], body: str) -> str:
    """Push an image of layers. `body` is the library's word for it: "data" or "content"."""
    reference = Reference.parse(image)
    urls = URLBuilder(reference.root("http"))
    described = []
    for layer in layers:
        digest = digest_of(layer)
        described.append({"mediaType": "a/b", "digest": digest, "size": len(layer)})
        if client.head(urls.blob(reference.name, digest)).status_code == 404:
            begun = client.post(urls.blob_upload(reference.name))
            raise_for_status(begun, endpoint="blob-upload")
            location = resolve_location(begun.url, begun.headers["Location"], digest=digest)
            raise_for_status(client.put(location, **{body: layer}))
    manifest = json.dumps({"mediaType": IMAGE_MANIFEST, "layers": described}).encode()
    headers = {"Content-Type": IMAGE_MANIFEST}
    raise_for_status(client.put(urls.manifest(reference), headers=headers, **{body: manifest}))
    return digest_of(manifest)


async def pull_async(client: httpx.AsyncClient, image: str) -> list[bytes]:
    reference = Reference.parse(image)
    urls = URLBuilder(reference.root("http"))

    async def get(url: str, endpoint: str) -> bytes:
        answer = await client.get(url, headers={"Accept": ACCEPT_MANIFESTS})
        raise_for_status(answer, endpoint=endpoint)
        return answer.content

    layers = json.loads(await get(urls.manifest(reference), "manifest"))["layers"]
    digests = [layer["digest"] for layer in layers]
    blobs = await asyncio.gather(
        *(get(urls.blob(reference.name, digest), "blob") for digest in digests)
    )
    return [verified(blob, digest) for blob, digest in zip(blobs, digests, strict=True)]


LOGINS: list[dict[str, Any]] = [
    {},
    {"auth": "basic"},
    {"auth": "bearer"},
    {"auth": "bearer", "token_field": "access_token", "redirect_blobs": True},
    {"auth": "bearer", "token_method": "GET", "location": "opaque"},
    {"auth": "bearer", "token_method": "POST", "location": "absolute"},
    {"auth": "bearer", "scope_status": 403, "service": "the registry"},
    {"auth": "bearer", "anonymous_pull": True},
]


@pytest.mark.parametrize(
    "options", LOGINS, ids=lambda options: " ".join(map(str, options.values()))
)
def test_push_and_pull(options: dict[str, Any]) -> None:
    user = ("alice", "sécrèt:€")
    with serve(users=dict([user]) if options else None, **options) as registry:
        image, login = f"{registry.host}/me/app:v1", Login(registry.url, *user)
        with login.session() as session:
            digest = push(session, image, LAYERS, "data")
            assert pull(session, image) == pull(session, f"{image}@{digest}") == LAYERS
        fast: dict[str, Any] = {"verify": False, "follow_redirects": True}  # no authorities to load
        with httpx.Client(auth=login.for_httpx(), **fast) as client:
            push(client, image.replace("/me/", "/you/"), LAYERS, "content")
            assert pull(client, image.replace("/me/", "/you/")) == LAYERS

        async def run() -> list[bytes]:
            auth = Login(registry.url, *user).for_httpx()
            async with httpx.AsyncClient(auth=auth, **fast) as asynchronous:
                return await pull_async(asynchronous, image)

        assert asyncio.run(run()) == LAYERS
        if options:
            for wrong in Login(registry.url, "alice", "no"), Login(registry.url):
                with wrong.session() as session, pytest.raises((errors.Unauthorized, ValueError)):
                    push(session, image, LAYERS, "data")


def test_error_of_a_pull_is_the_registrys() -> None:
    with serve() as registry, Login(registry.url).session() as session:
        with pytest.raises(errors.ManifestUnknown):
            pull(session, f"{registry.host}/no/such:v1")
        with pytest.raises(errors.BlobUnknown):
            raise_for_status(
                session.head(f"{registry.url}/v2/a/blobs/{digest_of(b'x')}"), endpoint="blob"
            )
