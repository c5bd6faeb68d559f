"""A client of a registry in this process, and contents for it to push."""

import json
from collections.abc import Callable, Iterator
from io import RawIOBase
from typing import Any

from werkzeug.test import Client, TestResponse

from registry_routes import url_map
from registry_routes.digests import digest_of
from registry_routes.paging import parse_next_link
from registry_routes.registry import make_registry

BLOB = b"hello, blob" * 1000
JSON = "application/json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def descriptor(content: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": "x/y", "digest": digest_of(content), "size": len(content), **more}


def manifest_of(*layers: bytes, **more: Any) -> bytes:
    layers_json = [descriptor(layer) for layer in layers]
    return json.dumps({"schemaVersion": 2, "layers": layers_json, **more}).encode()


class RegistryClient(Client):
    """A client that reads responses to their end, and closes their files.

    All have one map, if no other is given: making one takes longer than most tests.
    """

    def __init__(self, storage: Any, **options: Any) -> None:
        self.storage = storage
        super().__init__(make_registry(storage, **{"url_map": url_map, **options}))

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        return super().open(*args, **{"buffered": True, **kwargs})

    def push_blob(self, name: str, content: bytes = BLOB) -> str:
        """Push a blob in one request, and return its digest."""
        digest = digest_of(content)
        uploads = f"/v2/{name}/blobs/uploads/?digest={digest}"
        assert self.post(uploads, data=content).status_code == 201
        return digest

    def mount(self, name: str, content: bytes, source: str) -> None:
        query = {"mount": digest_of(content), "from": source}
        post = self.post(f"/v2/{name}/blobs/uploads/", query_string=query)
        assert post.status_code == 201

    def begin_upload(self, name: str = "a", *chunks: bytes) -> str:
        """Begin an upload, and return its location."""
        location = self.post(f"/v2/{name}/blobs/uploads/").location or ""
        for chunk in chunks:
            assert self.patch(location, data=chunk).status_code == 202
        return location

    def push_manifest(self, name: str, reference: str, content: bytes) -> TestResponse:
        path = f"/v2/{name}/manifests/{reference}"
        media_type = None if content.startswith(b'{"mediaType"') else MANIFEST_TYPE
        return self.put(path, data=content, content_type=media_type)

    def has_blob(self, name: str, content: bytes) -> bool:
        response = self.get(f"/v2/{name}/blobs/{digest_of(content)}")
        assert response.status_code == 404 or response.data == content
        return response.status_code == 200

    def pages(self, path: str) -> Iterator[TestResponse]:
        """Follow the links from page to page."""
        url: str | None = f"http://localhost{path}"
        while url:
            response = self.get(url)
            assert response.status_code == 200
            yield response
            url = parse_next_link(url, response.headers.getlist("Link"))

    def lists(self, path: str, key: str) -> list[list[Any]]:
        return [response.get_json()[key] for response in self.pages(path)]


def assert_error(response: TestResponse, status: int, code: str) -> None:
    assert response.status_code == status
    assert response.content_type == JSON
    assert [error["code"] for error in response.get_json()["errors"]] == [code]
    assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"


class Body(RawIOBase):
    """A request's body that calls a function before it ends."""

    def __init__(self, content: bytes, at_end: Callable[[], Any]) -> None:
        self.left, self.at_end = content, at_end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.left:
            self.at_end()
        taken, self.left = self.left[: len(buffer)], self.left[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def chunked(body: Any) -> dict[str, Any]:
    """The environ of a request whose body has no announced length."""
    return {"wsgi.input": body, "wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
