"""Registries that answer as Artifactory, Nexus, ECR and Docker Hub are reported to, each in its own way.

Each has the repository ``team/app``, or ``library/app`` at Docker Hub, with a tag ``v1`` that points at
an index of one image. `serve` runs them.
"""

import json
from collections.abc import Callable

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from registry_routes import RegistryApp, RegistryMap, RegistryRequest, errors
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_INDEX, IMAGE_MANIFEST
from registry_routes.registry import Manifest, MemoryStorage, make_registry

CONFIG = json.dumps({"architecture": "amd64", "os": "linux"}).encode()


def manifest_of(*layers: bytes) -> bytes:
    """Return an image's manifest, as JSON."""
    described = [
        {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": digest_of(blob),
            "size": len(blob),
        }
        for kind, blob in [
            ("config.v1+json", CONFIG),
            *(("layer.v1.tar", layer) for layer in layers),
        ]
    ]
    content = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": described[0],
        "layers": described[1:],
    }
    return json.dumps(content).encode()


def index_of(manifest: bytes) -> bytes:
    """Return an index of one image, as JSON."""
    platform = {"architecture": "amd64", "os": "linux"}
    described = {"mediaType": IMAGE_MANIFEST, "digest": digest_of(manifest), "size": len(manifest)}
    content = {
        "schemaVersion": 2,
        "mediaType": IMAGE_INDEX,
        "manifests": [{**described, "platform": platform}],
    }
    return json.dumps(content).encode()


LAYER = b"the files of the image"
IMAGE = manifest_of(LAYER)
INDEX = index_of(IMAGE)


def registry_of(
    name: str, *tags: str, page_size: int | None = None, prefix: str = ""
) -> RegistryApp:
    """Return a registry whose repository has the image and the index, with these tags."""
    storage = MemoryStorage()
    for blob in CONFIG, LAYER:
        storage.put_blob(name, digest_of(blob), [blob])
    storage.put_manifest(name, digest_of(IMAGE), Manifest(IMAGE_MANIFEST, IMAGE))
    storage.put_manifest(name, digest_of(INDEX), Manifest(IMAGE_INDEX, INDEX), tags=tags)
    return make_registry(storage, url_map=RegistryMap(prefix=prefix), page_size=page_size)


def refuse_head(app: RegistryApp, *endpoints: str, error: Callable[[], HTTPException]) -> None:
    """Make the application refuse HEAD at these endpoints."""

    @app.before_request
    def refuse(request: RegistryRequest) -> None:
        if request.method == "HEAD" and request.endpoint in endpoints:
            raise error()


def artifactory(head: Callable[[], HTTPException] = errors.Denied) -> RegistryApp:
    """A virtual repository: HEAD of manifests is refused, and a link names the local repository."""
    app = registry_of("team/app", "v1", "v2", "v3", page_size=2)
    refuse_head(app, "manifest", error=head)

    @app.after_request
    def name_local_repository(request: RegistryRequest, response: Response) -> Response:
        if link := response.headers.get("Link"):
            response.headers["Link"] = link.replace("/v2/team/app/", "/v2/docker-local/team/app/")
        return response

    return app


def nexus() -> RegistryApp:
    """A repository below a prefix, as its links say, whose manifests have no type of their own."""
    app = registry_of("team/app", "v1", "v2", "v3", page_size=2)

    @app.after_request
    def answer_as_behind_a_proxy(request: RegistryRequest, response: Response) -> Response:
        if link := response.headers.get("Link"):
            response.headers["Link"] = link.replace("</v2/", "</repository/images/v2/")
        if request.endpoint == "manifest" and response.status_code == 200:
            response.content_type = "application/octet-stream"
        return response

    return app


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
