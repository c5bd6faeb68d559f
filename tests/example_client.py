"""Runs the example client against the registry for tests, and builds images for it."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import client
from client import Registry
from layout import Layout
from werkzeug.wrappers import Request, Response

from registry_routes import Reference
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_MANIFEST
from registry_routes.registry import MemoryStorage, make_registry
from registry_routes.testing import RecordedRequest, ServedRegistry

from .served import serve
from .servers import files_of

V1 = Reference.parse("a:v1")
BLOB, UPLOAD = "blob", "blob-upload-chunk"


def push(where: ServedRegistry | Registry, layout: Path) -> str:
    registry = where if isinstance(where, Registry) else Registry(where.url, "a")
    return client.push(registry, V1, Layout(layout))


def pull(where: ServedRegistry, layout: Path) -> str:
    return client.pull(Registry(where.url, "a"), V1, Layout(layout))


def push_and_pull(served: ServedRegistry, image: Path, back: Path) -> None:
    """Push an image and pull it, which must give the same files."""
    push(served, image)
    pull(served, back)
    assert files_of(back) == files_of(image)


def answering(answer: Callable[[Request], Any]) -> AbstractContextManager[ServedRegistry]:
    """A registry that gives the answer that the function returns, or for `None` its own."""
    registry = make_registry(MemoryStorage())

    @Request.application
    def app(request: Request) -> Response:
        found: Response | None = answer(request)
        if found is None:
            return Response.from_app(registry, request.environ)
        request.get_data()  # all of it, or the client might not see the response
        return found

    return serve(app)


def describe(layout: Layout, content: bytes, media_type: str = "a/b") -> dict[str, Any]:
    """Write a content into a layout, and return its descriptor."""
    layout.write(digest_of(content), content)
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def manifest_of(**fields: Any) -> bytes:
    return json.dumps({"mediaType": IMAGE_MANIFEST, **fields}).encode()


def image_of(root: Path, *layers: bytes) -> Path:
    """Write the layout of an image that has only layers, tagged ``v1``."""
    layout = Layout(root)
    manifest = manifest_of(layers=[describe(layout, content) for content in layers])
    layout.add(describe(layout, manifest, IMAGE_MANIFEST), "v1")
    return root


def find_requests(served: ServedRegistry, endpoint: str, method: str) -> list[RecordedRequest]:
    return [sent for sent in served.requests if (sent.endpoint, sent.method) == (endpoint, method)]


def list_sizes(served: ServedRegistry, method: str) -> list[int]:
    """The lengths of the bodies that were sent to uploads."""
    return [int(sent.headers["Content-Length"]) for sent in find_requests(served, UPLOAD, method)]
