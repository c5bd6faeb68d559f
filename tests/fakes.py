"""Registries that answer as Artifactory, Nexus, ECR and Docker Hub are reported to, each in its own way.

Each has the repository ``team/app``, or ``library/app`` at Docker Hub, with a tag ``v1`` that points at
an index of one image. `serve` runs them.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlencode

import requests
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request, Response

from registry_routes import RegistryApp, RegistryRequest, errors
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_INDEX, IMAGE_MANIFEST
from registry_routes.paging import next_link, parse_next_query
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


AWS = "AWS", "a token for twelve hours"
CURSOR = "cursor+/="


class Ecr:
    """A private registry of Amazon's, or its public one.

    - The private one wants Basic, with the user ``AWS``. The public one gives anyone a token, and
      answers a HEAD of a blob with a 401, whatever the token.
    - A blob is at another host, at a URL that is signed for GET. That host refuses credentials.
    - Lists are ``text/plain``. A link is a whole URL, with a cursor that nobody else can make up. A
      wrong cursor, or an ``n`` over 1,000, is a 405.
    """

    def __init__(self, *, is_public: bool = False) -> None:
        self.is_public = is_public
        self.registry = registry_of("team/app", "v1", "v2", "v3")
        self.registry.before_request(self.answer)
        self.registry.after_request(self.rewrite)

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        if request.path == "/token/":
            return Response('{"token": "anyone"}')(environ, start_response)
        if not request.path.startswith("/signed/"):
            return self.registry(environ, start_response)
        content = {digest_of(blob): blob for blob in (CONFIG, LAYER)}[request.path[8:]]
        response = Response(content, mimetype="application/octet-stream")
        if "Authorization" in request.headers:
            response = Response("<Code>InvalidArgument</Code>", 400, mimetype="application/xml")
        elif request.method != "GET" or request.args["X-Amz-Signature"] != "s3cret":
            response = Response("<Code>AccessDenied</Code>", 403, mimetype="application/xml")
        return response(environ, start_response)

    def answer(self, request: RegistryRequest) -> Response | None:
        root = request.host_url
        is_blob = request.endpoint == "blob" and request.method in ("GET", "HEAD")
        challenge = f'Basic realm="{root}",service="ecr.amazonaws.com"'
        expected = f"Basic {b64encode(':'.join(AWS).encode()).decode()}"
        if self.is_public:
            challenge = f'Bearer realm="{root}token/",service="{request.host}",scope="aws"'
            expected = "Bearer anyone"
        is_refused = self.is_public and is_blob and request.method == "HEAD"
        if request.headers.get("Authorization") != expected or is_refused:
            return Response("Not Authorized\n", 401, {"WWW-Authenticate": challenge})
        if request.args.get("n", 0, int) > 1000:
            raise errors.Unsupported("Invalid parameter at 'maxResults'")
        if not request.args.get("last", CURSOR).startswith(CURSOR):
            raise errors.Unsupported("Invalid parameter at 'NextToken'")
        if is_blob:
            signed = f"http://localhost:{request.host.partition(':')[2]}/signed"
            path = f"{(request.view_args or {})['digest']}?X-Amz-Signature=s3cret"
            return Response(status=307, headers={"Location": f"{signed}/{path}"})
        if "last" in request.args:  # for the registry's own view
            last = request.args["last"].removeprefix(CURSOR)
            request.args = MultiDict({**request.args, "last": last})
        return None

    def rewrite(self, request: RegistryRequest, response: Response) -> Response:
        if query := parse_next_query(request.base_url, response.headers.get("Link")):
            cursor = urlencode({**query, "last": CURSOR + query["last"][0]}, doseq=True)
            response.headers["Link"] = next_link(f"{request.base_url}?{cursor}")
        if request.endpoint in ("tags", "catalog"):
            response.content_type = "text/plain; charset=utf-8"
        return response
