"""Registries that answer as Artifactory, Nexus, ECR and Docker Hub are reported to, each in its own way.

Each has the repository ``team/app``, or ``library/app`` at Docker Hub, with a tag ``v1`` that points at
an index of one image. `serve` runs them.
"""

import json
from collections.abc import Callable

import requests
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from registry_routes import RegistryApp, RegistryRequest, errors
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_INDEX, IMAGE_MANIFEST
from registry_routes.registry import Manifest, MemoryStorage, make_registry

from .registry_client import descriptor, manifest_of

CONFIG = b'{"architecture": "amd64", "os": "linux"}'
LAYER = b"the files of the image"
IMAGE = manifest_of(LAYER, mediaType=IMAGE_MANIFEST, config=descriptor(CONFIG))
LISTED = descriptor(IMAGE, mediaType=IMAGE_MANIFEST)
INDEX = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [LISTED]}).encode()


def registry_of(name: str, *tags: str) -> RegistryApp:
    """Return a registry whose repository has the image and the index, with these tags."""
    storage = MemoryStorage()
    for blob in CONFIG, LAYER:
        storage.put_blob(name, digest_of(blob), [blob])
    storage.put_manifest(name, digest_of(IMAGE), Manifest(IMAGE_MANIFEST, IMAGE))
    storage.put_manifest(name, digest_of(INDEX), Manifest(IMAGE_INDEX, INDEX), tags=tags)
    return make_registry(storage, page_size=2)


def push(url: str, content: bytes) -> None:
    """Push an image's manifest."""
    requests.put(
        url, content, headers={"Content-Type": IMAGE_MANIFEST}, timeout=5
    ).raise_for_status()


def with_links_to(root: str) -> RegistryApp:
    """Return a registry whose links have another root."""
    app = registry_of("team/app", "v1", "v2", "v3")

    @app.after_request
    def replace_root(request: RegistryRequest, response: Response) -> Response:
        if link := response.headers.get("Link"):
            response.headers["Link"] = link.replace("/v2/", root)
        return response

    return app


def artifactory(head: Callable[[], HTTPException] = errors.Denied) -> RegistryApp:
    """A virtual repository: HEAD of manifests is refused, and a link names the local repository."""
    app = with_links_to("/v2/docker-local/")

    @app.before_request
    def refuse_head(request: RegistryRequest) -> None:
        if request.method == "HEAD" and request.endpoint == "manifest":
            raise head()

    return app


def nexus() -> RegistryApp:
    """A repository below a prefix, as its links say."""
    return with_links_to("/repository/images/v2/")


def docker_hub() -> RegistryApp:
    """A client that accepts no index gets the image for linux/amd64."""
    app = registry_of("library/app", "v1")

    @app.before_request
    def negotiate(request: RegistryRequest) -> Response | None:
        is_tag = request.endpoint == "manifest" and "tag" in (request.view_args or {})
        if not is_tag or request.accept_mimetypes.quality(IMAGE_INDEX):
            return None
        response = Response(b"" if request.method == "HEAD" else IMAGE, content_type=IMAGE_MANIFEST)
        response.headers["Docker-Content-Digest"] = digest_of(IMAGE)
        response.content_length = len(IMAGE)
        return response

    return app
