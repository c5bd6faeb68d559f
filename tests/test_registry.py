"""The views of `make_registry`, in process, on each kind of storage."""

import hashlib
import json
import re
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from io import BytesIO, RawIOBase
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from storage import storage_at
from werkzeug.routing import Rule
from werkzeug.test import Client, TestResponse

from registry_routes import DOCKER_1_5, OCI_1_1, RegistryMap, RepositoryNameConverter
from registry_routes.digests import digest_of
from registry_routes.grammar import REGISTERED_ALGORITHMS
from registry_routes.paging import parse_next_link
from registry_routes.registry import (
    MAX_MANIFEST,
    Blob,
    Manifest,
    MemoryStorage,
    MissingError,
    Storage,
    make_registry,
)

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
    """A client that reads responses to their end, and closes their files."""

    def __init__(self, storage: Storage, **options: Any) -> None:
        self.storage: Any = storage
        super().__init__(make_registry(storage, **options))

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        return super().open(*args, **{"buffered": True, **kwargs})

    def blobs(self) -> dict[str, bytes]:
        """The content of each blob in the storage, by its digest."""
        if isinstance(self.storage, MemoryStorage):
            repositories = self.storage._repositories.values()
            return {digest: blob for one in repositories for digest, blob in one.blobs.items()}
        objects = objects_under(self.storage.store, "blobs/")
        return {path.replace("/", ":"): content for path, content in objects.items()}

    def chunks(self) -> list[bytes]:
        """The chunks of all unfinished uploads in the storage."""
        if isinstance(self.storage, MemoryStorage):
            repositories = self.storage._repositories.values()
            uploads = [upload for one in repositories for upload in one.uploads.values()]
            return [chunk for upload in uploads for chunk in upload.chunks]
        objects = objects_under(self.storage.store, "repositories/")
        return [content for path, content in objects.items() if "/data/" in path]

    def assert_nothing_half_written(self) -> None:
        for digest, blob in self.blobs().items():
            assert digest_of(blob, digest.partition(":")[0]) == digest
        if getattr(self.storage, "directory", None):
            root = Path(self.storage.directory)
            assert not list(root.rglob("*#*"))  # obstore's names for incomplete files


def objects_under(store: Any, prefix: str) -> dict[str, bytes]:
    paths = [one["path"] for objects in store.list(prefix) for one in objects]
    return {path.removeprefix(prefix): bytes(store.get(path).bytes()) for path in paths}


@pytest.fixture
def client(storage: Storage) -> RegistryClient:
    return RegistryClient(storage)


def push_blob(client: Client, name: str, blob: bytes = BLOB) -> str:
    digest = digest_of(blob)
    response = client.post(f"/v2/{name}/blobs/uploads/?digest={digest}", data=blob)
    assert response.status_code == 201
    return digest


def push_manifest(client: Client, name: str, reference: str, content: bytes) -> TestResponse:
    path = f"/v2/{name}/manifests/{reference}"
    media_type = None if content.startswith(b'{"mediaType"') else MANIFEST_TYPE
    return client.put(path, data=content, content_type=media_type)


def assert_error(response: TestResponse, status: int, code: str) -> None:
    assert response.status_code == status
    assert response.content_type == JSON
    assert [error["code"] for error in response.get_json()["errors"]] == [code]
    assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"


def test_the_base_endpoint(client: Client) -> None:
    response = client.get("/v2/")
    assert response.status_code == 200
    assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    assert client.get("/v2").location == "/v2/"


@pytest.mark.parametrize("algorithm", REGISTERED_ALGORITHMS)
@pytest.mark.parametrize("blob", [b"", b"x", BLOB], ids=len)
@pytest.mark.parametrize("how", ["post", "put", "patch", "chunks", "chunks and put"])
def test_a_blob_can_be_pushed_in_every_way(
    client: RegistryClient, how: str, blob: bytes, algorithm: str
) -> None:
    digest = digest_of(blob, algorithm)
    quoted = digest.replace(":", "%3A")
    uploads = "/v2/library/hello/blobs/uploads/"
    if how == "post":
        response = client.post(f"{uploads}?digest={quoted}", data=blob)
    else:
        response = client.post(uploads)
        assert response.status_code == 202
        location = response.location or ""
        cut = [0, len(blob)] if how != "chunks and put" else [0, len(blob) // 3, len(blob)]
        last = b""
        if how == "put":
            last = blob
        elif how == "patch":
            response = client.patch(location, data=blob)
            assert response.status_code == 202
        else:
            for start, end in pairwise(cut):
                chunk = blob[start:end]
                headers = {"Content-Range": f"{start}-{end - 1}"} if chunk else {}
                if how == "chunks and put" and end == len(blob):
                    last = chunk
                    break
                response = client.patch(location, data=chunk, headers=headers)
                assert response.status_code == 202
                assert response.headers["Range"] == f"0-{max(end - 1, 0)}"
                status = client.get(location)
                assert status.status_code == 204
                assert status.headers["Range"] == f"0-{max(end - 1, 0)}"
        response = client.put(f"{location}?digest={quoted}", data=last)
    assert response.status_code == 201
    assert response.headers["Docker-Content-Digest"] == digest
    assert response.location == f"/v2/library/hello/blobs/{digest}"
    pulled = client.get(response.location)
    assert pulled.data == blob
    assert pulled.content_type == "application/octet-stream"
    head = client.head(response.location)
    assert (head.status_code, head.data) == (200, b"")
    for header in "Content-Length", "Content-Type", "Docker-Content-Digest":
        assert head.headers[header] == pulled.headers[header]
    assert head.content_length == len(blob)
    client.assert_nothing_half_written()
    assert not client.chunks()


def test_a_chunk_that_does_not_fit_is_refused_and_the_upload_goes_on(client: Client) -> None:
    location = client.post("/v2/a/blobs/uploads/").location or ""
    client.patch(location, data=b"01234", headers={"Content-Range": "0-4"})
    for content_range in "0-4", "6-9", "4-3", "x", "-1-3", "5-", "9" * 30 + "-" + "9" * 31, "5-9\n":
        response = client.patch(
            location, data=b"56789", environ_overrides={"HTTP_CONTENT_RANGE": content_range}
        )
        assert_error(response, 416, "RANGE_INVALID")
        assert client.get(location).headers["Range"] == "0-4"
    response = client.patch(location, data=b"567", headers={"Content-Range": "5-9"})
    assert_error(response, 400, "SIZE_INVALID")
    assert client.get(location).headers["Range"] == "0-4"
    client.patch(location, data=b"56789", headers={"Content-Range": "bytes 5-9/*"})
    digest = digest_of(b"0123456789")
    assert client.put(location, query_string={"digest": digest}).status_code == 201
    assert client.get(f"/v2/a/blobs/{digest}").data == b"0123456789"


def test_a_body_that_breaks_off_leaves_no_trace(client: RegistryClient) -> None:
    location = client.post("/v2/a/blobs/uploads/").location or ""
    client.patch(location, data=b"01234")

    def broken() -> dict[str, Any]:
        return {"environ_overrides": {"wsgi.input": BytesIO(b"567"), "CONTENT_LENGTH": "1000"}}

    assert client.patch(location, **broken()).status_code == 400
    assert client.get(location).headers["Range"] == "0-4"
    digest = digest_of(b"01234567")
    assert client.put(location, query_string={"digest": digest}, **broken()).status_code == 400
    assert client.get(location).headers["Range"] == "0-4"
    post = client.post("/v2/a/blobs/uploads/", query_string={"digest": digest}, **broken())
    assert post.status_code == 400
    client.assert_nothing_half_written()
    assert client.chunks() == [b"01234"]


@pytest.mark.parametrize(
    "digest",
    [digest_of(b"other"), "sha256:abc", "", "x", "md5:abc", "sha384:00", f"../{digest_of(b'')}"],
)
def test_a_wrong_digest_is_refused(client: RegistryClient, digest: str) -> None:
    query = {"digest": digest}
    post = client.post("/v2/a/blobs/uploads/", query_string=query, data=BLOB)
    assert_error(post, 400, "DIGEST_INVALID")
    location = client.post("/v2/a/blobs/uploads/").location or ""
    assert_error(client.put(location, query_string=query, data=BLOB), 400, "DIGEST_INVALID")
    assert (
        client.put(location, query_string={"digest": digest_of(BLOB)}, data=BLOB).status_code == 201
    )
    client.assert_nothing_half_written()
    assert list(client.blobs()) == [digest_of(BLOB)]
    assert not client.chunks()


@pytest.mark.parametrize("length", ["-5", "abc", "+3", "3, 3", "0x3"])
def test_a_malformed_content_length_is_400(client: Client, length: str) -> None:
    location = client.post("/v2/a/blobs/uploads/").location or ""
    overrides = {"wsgi.input": BytesIO(b"abcde"), "CONTENT_LENGTH": length}
    assert client.patch(location, environ_overrides=overrides).status_code == 400


def test_an_upload_can_be_cancelled(client: Client) -> None:
    location = client.post("/v2/a/blobs/uploads/").location or ""
    assert client.delete(location).status_code == 204
    for method in "GET", "PATCH", "DELETE":
        assert_error(client.open(location, method=method), 404, "BLOB_UPLOAD_UNKNOWN")
    put = client.put(location, query_string={"digest": digest_of(b"")})
    assert_error(put, 404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("upload_id", ["x", "0" * 32, "0" * 5000, "_blobs"])
def test_an_unknown_upload_is_404(client: Client, upload_id: str) -> None:
    response = client.patch(f"/v2/a/blobs/uploads/{upload_id}", data=b"x")
    assert_error(response, 404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_belongs_to_its_repository(client: Client) -> None:
    location = client.post("/v2/a/blobs/uploads/").location or ""
    elsewhere = location.replace("/v2/a/", "/v2/b/")
    assert_error(client.patch(elsewhere, data=b"x"), 404, "BLOB_UPLOAD_UNKNOWN")


def test_a_chunk_is_416_if_another_was_written_meanwhile(client: RegistryClient) -> None:
    location = client.post("/v2/a/blobs/uploads/").location or ""

    answers: list[TestResponse] = []

    class Meanwhile(RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            if not answers:
                answers[:] = [client.patch(location, data=b"x"), client.get(location)]
                buffer[:2] = b"yz"
                return 2
            return 0

    body = {"wsgi.input": Meanwhile(), "CONTENT_LENGTH": "2"}
    assert_error(client.patch(location, environ_overrides=body), 416, "RANGE_INVALID")
    assert answers[0].status_code == 202
    assert answers[1].status_code == 204
    put = client.put(location, query_string={"digest": digest_of(b"x")})
    assert put.status_code == 201


class Meanwhile(RawIOBase):
    """A body that calls a function before it ends."""

    def __init__(self, body: bytes, happens: Any) -> None:
        self.left, self.happens = body, happens

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.left:
            self.happens()
        taken, self.left = self.left[: len(buffer)], self.left[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_a_chunk_is_404_if_the_upload_was_cancelled_meanwhile(
    client: RegistryClient, method: str
) -> None:
    location = client.post("/v2/a/blobs/uploads/").location or ""
    client.patch(location, data=b"01234")
    digest = digest_of(b"01234567")
    body = Meanwhile(b"567", lambda: client.delete(location))
    response = client.open(
        location,
        method=method,
        query_string={"digest": digest},
        environ_overrides={"wsgi.input": body, "wsgi.input_terminated": True},
    )
    assert_error(response, 404, "BLOB_UPLOAD_UNKNOWN")
    assert not client.chunks()


@pytest.mark.parametrize("chunks", [[], [b"01234"], [b"01", b"234"]])
def test_finishing_an_upload_twice_succeeds_twice(
    client: RegistryClient, chunks: list[bytes]
) -> None:
    location = client.post("/v2/a/blobs/uploads/").location or ""
    for chunk in chunks:
        client.patch(location, data=chunk)
    last = b"" if chunks else b"01234"
    query = {"digest": digest_of(b"01234")}
    body = Meanwhile(last, lambda: client.put(location, query_string=query, data=last))
    overrides = {"wsgi.input": body, "wsgi.input_terminated": True}
    for _ in range(2):
        put = client.put(location, query_string=query, environ_overrides=overrides)
        assert put.status_code == 201
    assert client.get(f"/v2/a/blobs/{digest_of(b'01234')}").data == b"01234"
    client.assert_nothing_half_written()
    assert not client.chunks()
    if getattr(client.storage, "directory", None):
        left = Path(client.storage.directory).rglob("_uploads/*/**/*")
        assert [path.name for path in left] == ["ended"]


def test_parameters_of_a_manifests_type_are_dropped(client: Client) -> None:
    client.put("/v2/a/manifests/v1", data=b"{}", content_type=f"{INDEX_TYPE}; charset=utf-8")
    assert client.get("/v2/a/manifests/v1").content_type == INDEX_TYPE


def test_a_blob_is_mounted_from_another_repository(client: Client) -> None:
    digest = push_blob(client, "from/here")
    uploads = "/v2/to/there/blobs/uploads/"
    query = {"mount": digest, "from": "from/here"}
    for _ in range(2):
        response = client.post(uploads, query_string=query)
        assert response.status_code == 201
        assert response.location == f"/v2/to/there/blobs/{digest}"
    client.delete(f"/v2/from/here/blobs/{digest}")
    assert client.get(f"/v2/to/there/blobs/{digest}").data == BLOB
    assert client.get(f"/v2/from/here/blobs/{digest}").status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        {"mount": digest_of(BLOB)},  # whether the client may read it was not checked
        {"mount": digest_of(BLOB), "from": ""},
        {"mount": digest_of(BLOB), "from": "to/there"},
        {"mount": digest_of(BLOB), "from": "a" * 256},
        {"mount": digest_of(BLOB), "from": "had/it"},
        {"mount": "md5:abc", "from": "from/here"},
        {"mount": digest_of(b"other"), "from": "from/here"},
        {"mount": digest_of(BLOB), "from": "no/where"},
        {"mount": digest_of(BLOB), "from": "../from/here"},
        {"mount": digest_of(BLOB), "from": "from/here/_uploads/.."},
        {"mount": "../../x", "from": "from/here"},
        {"mount": "", "from": ""},
    ],
)
def test_a_mount_that_is_not_possible_begins_an_upload(
    client: Client, query: dict[str, str]
) -> None:
    push_blob(client, "from/here")
    client.delete(f"/v2/had/it/blobs/{push_blob(client, 'had/it')}")
    response = client.post("/v2/to/there/blobs/uploads/", query_string=query)
    assert response.status_code == 202
    assert_error(client.get(f"/v2/to/there/blobs/{digest_of(BLOB)}"), 404, "BLOB_UNKNOWN")
    assert client.put(f"{response.location}?digest={digest_of(b'')}").status_code == 201


RANGES: dict[str, tuple[int, int] | int | None] = {
    "bytes=3-9": (3, 10),
    "bytes=3-": (3, len(BLOB)),
    "bytes=-4": (len(BLOB) - 4, len(BLOB)),
    f"bytes=-{len(BLOB) + 1}": (0, len(BLOB)),
    f"bytes=5-{10**17}": (5, len(BLOB)),
    "bytes=0-0": (0, 1),
    f"bytes={len(BLOB)}-": 416,
    f"bytes={len(BLOB)}-{len(BLOB) + 5}": 416,
    "bytes=-0": 416,
    "bytes=9-3": 416,  # as the conformance tests demand
    # Several ranges, and anything malformed, are ignored (RFC 9110, section 14.2).
    **dict.fromkeys(
        ("bytes=-", "bytes=", "bytes=x-y", "lines=1-2", "bytes=0-1,3-4", "", "x", "٣-")
    ),
    f"bytes={'9' * 5000}-": None,
}


@pytest.mark.parametrize("wanted", RANGES)
def test_a_range_past_the_end_is_416_and_several_ranges_are_ignored(
    client: Client, wanted: str
) -> None:
    path = f"/v2/a/b/blobs/{push_blob(client, 'a/b')}"
    response = client.get(path, environ_overrides={"HTTP_RANGE": wanted})
    expected = RANGES[wanted]
    if expected == 416:
        assert_error(response, 416, "RANGE_INVALID")
        assert response.headers["Content-Range"] == f"bytes */{len(BLOB)}"
        assert response.content_length == len(response.data)
    elif isinstance(expected, tuple):
        start, end = expected
        assert (response.status_code, response.data) == (206, BLOB[start:end])
        assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(BLOB)}"
    else:
        assert (response.status_code, response.data) == (200, BLOB)
    head = client.head(path, environ_overrides={"HTTP_RANGE": wanted})
    assert (head.status_code, head.content_length) == (200, len(BLOB))


def test_conditional_requests_and_ranges_of_an_empty_blob(client: Client) -> None:
    digest = push_blob(client, "a/b")
    path = f"/v2/a/b/blobs/{digest}"
    for etag, status in {f'"{digest}"': 206, '"other"': 200}.items():
        headers = {"Range": "bytes=3-9", "If-Range": etag}
        assert client.get(path, headers=headers).status_code == status
    for headers in {}, {"Range": "bytes=3-9"}:
        changed = client.get(path, headers={"If-Match": '"x"', **headers})
        assert (changed.status_code, changed.mimetype) == (412, "application/json")
        cached = client.get(path, headers={"If-None-Match": f'"{digest}"', **headers})
        assert (cached.status_code, cached.data) == (304, b"")
        assert "Content-Range" not in cached.headers
    empty = f"/v2/a/b/blobs/{push_blob(client, 'a/b', b'')}"
    assert client.get(empty).data == b""
    assert_error(client.get(empty, headers={"Range": "bytes=0-"}), 416, "RANGE_INVALID")


def test_a_blob_is_deleted_from_its_repository_only(client: Client) -> None:
    path = f"/v2/a/b/blobs/{push_blob(client, 'a/b')}"
    push_blob(client, "other")
    assert client.delete(path).status_code == 202
    for method in "GET", "DELETE":
        assert_error(client.open(path, method=method), 404, "BLOB_UNKNOWN")
    assert client.head(path).status_code == 404
    assert client.get(path.replace("a/b", "other")).data == BLOB
    push_blob(client, "a/b")
    assert client.get(path).data == BLOB


@pytest.mark.parametrize("algorithm", REGISTERED_ALGORITHMS)
def test_a_manifest_pushed_by_its_digest_can_be_given_tags(client: Client, algorithm: str) -> None:
    content = manifest_of()
    digest = digest_of(content, algorithm)
    tags = [f"v{i}" for i in range(20)]
    path = f"/v2/a/manifests/{digest}"
    response = client.put(
        path, query_string={"tag": [*tags, "v0"]}, data=content, content_type=MANIFEST_TYPE
    )
    assert response.status_code == 201
    assert response.headers.getlist("OCI-Tag") == tags
    for tag in tags:
        assert client.get(f"/v2/a/manifests/{tag}").headers["Docker-Content-Digest"] == digest
    for bad, status in (["v1", "!"], 400), ([""], 400), ([f"t{i}" for i in range(51)], 414):
        response = client.put(path, query_string={"tag": bad}, data=content)
        assert_error(response, status, "TAG_INVALID")
    assert len(client.get("/v2/a/tags/list").get_json()["tags"]) == 20


@pytest.mark.parametrize("algorithm", [*REGISTERED_ALGORITHMS, "md5", "x/../y", ""])
def test_the_algorithm_may_be_announced_or_come_with_the_digest(
    client: Client, algorithm: str
) -> None:
    query = {"digest-algorithm": algorithm}
    response = client.post("/v2/a/blobs/uploads/", query_string=query)
    if algorithm not in REGISTERED_ALGORITHMS:
        assert_error(response, 400, "DIGEST_INVALID")
        return
    location = response.location or ""
    client.patch(location, data=BLOB)
    for digest in digest_of(b"x", "sha512"), digest_of(BLOB, "sha512"):
        put = client.put(location, query_string={"digest": digest})
    assert put.status_code == 201
    assert client.get(f"/v2/a/blobs/{digest}").data == BLOB


@pytest.mark.parametrize("algorithm", REGISTERED_ALGORITHMS)
def test_a_manifest_is_pushed_and_pulled_by_tag_and_by_digest(
    client: Client, algorithm: str
) -> None:
    push_blob(client, "a/b/c/d/e/f")
    content = manifest_of(BLOB) + b"\n\n"
    digest = digest_of(content, algorithm)
    by_tag = push_manifest(client, "a/b/c/d/e/f", "v1", content)
    by_digest = push_manifest(client, "a/b/c/d/e/f", digest, content)
    assert by_tag.status_code == by_digest.status_code == 201
    assert by_digest.location == f"/v2/a/b/c/d/e/f/manifests/{digest}"
    assert by_tag.headers["Docker-Content-Digest"] == digest_of(content)
    for reference, stored in ("v1", digest_of(content)), (digest, digest):
        path = f"/v2/a/b/c/d/e/f/manifests/{reference}"
        got, head = client.get(path), client.head(path)
        assert got.data == content
        assert got.content_type == head.content_type == MANIFEST_TYPE
        assert got.headers["Docker-Content-Digest"] == stored
        assert head.content_length == len(content)


def test_a_tag_is_deleted_alone_and_a_manifest_with_its_tags(client: Client) -> None:
    content = manifest_of()
    for tag in "v1", "v2", "v3":
        push_manifest(client, "a", tag, content)
    other = push_manifest(client, "a", "other", manifest_of(note="other"))
    assert client.delete("/v2/a/manifests/v1").status_code == 202
    assert_error(client.get("/v2/a/manifests/v1"), 404, "MANIFEST_UNKNOWN")
    assert_error(client.delete("/v2/a/manifests/v1"), 404, "MANIFEST_UNKNOWN")
    path = f"/v2/a/manifests/{digest_of(content)}"
    assert client.get(path).status_code == 200
    assert client.delete(path).status_code == 202
    for method in "GET", "DELETE":
        assert_error(client.open(path, method=method), 404, "MANIFEST_UNKNOWN")
    assert client.get("/v2/a/tags/list").get_json() == {"name": "a", "tags": ["other"]}
    assert client.get(other.location or "").status_code == 200


def test_a_repository_with_only_a_blob_has_an_empty_list_of_tags(client: Client) -> None:
    push_blob(client, "a")
    push_manifest(client, "a", "v1", manifest_of(BLOB))
    client.delete(f"/v2/a/manifests/{digest_of(manifest_of(BLOB))}")
    assert client.get("/v2/a/tags/list").get_json() == {"name": "a", "tags": []}
    client.delete(f"/v2/a/blobs/{digest_of(BLOB)}")
    assert_error(client.get("/v2/a/tags/list"), 404, "NAME_UNKNOWN")


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "MANIFEST_INVALID"),
        (b"{", 400, "MANIFEST_INVALID"),
        (b"\xff", 400, "MANIFEST_INVALID"),
        (b"[]", 400, "MANIFEST_INVALID"),
        (b"[" * 100_000, 400, "MANIFEST_INVALID"),
        (b'{"layers": {"digest": 1}}', 400, "MANIFEST_INVALID"),
        (b'{"layers": ["x"]}', 400, "MANIFEST_INVALID"),
        (b'{"layers": [{"digest": "../../x"}]}', 400, "MANIFEST_INVALID"),
        (b'{"n": NaN}', 400, "MANIFEST_INVALID"),
        (b'{"n": [-Infinity]}', 400, "MANIFEST_INVALID"),
        (b'{"mediaType": "a\\nb"}', 400, "MANIFEST_INVALID"),
        (b'{"mediaType": "text/html"}', 400, "MANIFEST_INVALID"),
        (b'{"mediaType": ["application/json"]}', 400, "MANIFEST_INVALID"),
        (b'{"mediaType": "\\ud800"}', 400, "MANIFEST_INVALID"),
        (b'{"config": 3}', 400, "MANIFEST_INVALID"),
        (b'{"subject": {"digest": null}}', 400, "MANIFEST_INVALID"),
        (manifest_of(b"not there"), 404, "MANIFEST_BLOB_UNKNOWN"),
        (manifest_of(config=descriptor(b"not there")), 404, "MANIFEST_BLOB_UNKNOWN"),
        (b" " * (MAX_MANIFEST + 1), 413, "SIZE_INVALID"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_invalid_manifest_is_refused(
    client: Client, content: bytes, status: int, code: str
) -> None:
    assert_error(push_manifest(client, "a", "v1", content), status, code)
    chunked = {"wsgi.input_terminated": True, "CONTENT_LENGTH": "", "wsgi.input": BytesIO(content)}
    response = client.put("/v2/a/manifests/v1", environ_overrides=chunked)
    assert_error(response, status, code)
    assert_error(client.get("/v2/a/manifests/v1"), 404, "MANIFEST_UNKNOWN")
    assert_error(client.get("/v2/a/tags/list"), 404, "NAME_UNKNOWN")


@pytest.mark.parametrize(
    "content",
    [
        manifest_of(subject=descriptor(b"not there")),
        manifest_of(unknown={"x": [1]}),
        json.dumps({"manifests": []}).encode(),
        json.dumps({"manifests": [descriptor(b"not there")]}).encode(),
        json.dumps(
            {
                "layers": [
                    descriptor(b"1", mediaType=f"application/vnd.{kind}.tar")
                    for kind in (
                        "oci.image.layer.nondistributable.v1",
                        "docker.rootfs.foreign.diff",
                    )
                ]
            }
        ).encode(),
        json.dumps({"note": "x" * (MAX_MANIFEST - 20)}).encode(),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_unusual_manifest_is_accepted(client: Client, content: bytes) -> None:
    assert push_manifest(client, "a", "v1", content).status_code == 201
    assert client.get("/v2/a/manifests/v1").data == content


def test_a_manifest_pushed_by_another_digest_is_400(client: Client) -> None:
    response = push_manifest(client, "a", digest_of(b"other"), manifest_of())
    assert_error(response, 400, "DIGEST_INVALID")
    assert_error(push_manifest(client, "a", "md5:abc", manifest_of()), 400, "DIGEST_INVALID")


JSON_TYPES = [
    JSON,
    MANIFEST_TYPE,
    "application/vnd.example.thing+json",
    "Application/Vnd.Example+JSON",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/a+b+json",
]


@pytest.mark.parametrize("media_type", JSON_TYPES)
def test_a_manifest_of_any_json_type_keeps_its_type(client: Client, media_type: str) -> None:
    own = json.dumps({"mediaType": media_type})
    for content, sent in (
        ("{}", media_type),
        ("{}", f"{media_type}; charset=utf-8"),
        (own, media_type),
        (own, None),
    ):
        response = client.put("/v2/a/manifests/v1", data=content, content_type=sent)
        assert response.status_code == 201
        assert client.get("/v2/a/manifests/v1").headers["Content-Type"] == media_type


@pytest.mark.parametrize(
    "media_type",
    [
        "text/html",
        "image/svg+xml",
        "image/x+json",
        "application/octet-stream",
        "application/xhtml+xml",
        "application/html",
        "application/jsonp",
        "application/+json",
        "application/x json",
        "application/json, text/html",
        "application/é+json",
        "application/json/json",
        f"application/{'a' * 200}+json",
        "json",
    ],
)
def test_a_manifest_of_a_type_that_is_not_json_is_refused(client: Client, media_type: str) -> None:
    pushed = client.put("/v2/a/manifests/v1", data=b"{}", content_type=media_type)
    assert_error(pushed, 400, "MANIFEST_INVALID")
    own = json.dumps({"mediaType": media_type})
    assert_error(client.put("/v2/a/manifests/v1", data=own), 400, "MANIFEST_INVALID")
    assert_error(client.get("/v2/a/manifests/v1"), 404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("own", [INDEX_TYPE, JSON, 3, ["x"], {"a": 1}, True])
def test_a_media_type_that_contradicts_the_content_type_is_refused(
    client: Client, own: Any
) -> None:
    content = json.dumps({"mediaType": own})
    response = client.put("/v2/a/manifests/v1", data=content, content_type=MANIFEST_TYPE)
    assert_error(response, 400, "MANIFEST_INVALID")
    assert_error(client.get("/v2/a/manifests/v1"), 404, "MANIFEST_UNKNOWN")


def test_browsers_are_told_not_to_guess_the_type_of_a_response(client: Client) -> None:
    digest = push_blob(client, "a", b"<script>")
    push_manifest(client, "a", "v1", manifest_of())
    for path in (
        "/v2/",
        f"/v2/a/blobs/{digest}",
        "/v2/a/manifests/v1",
        "/v2/a/tags/list",
        "/v2/_catalog",
        f"/v2/a/referrers/{digest}",
        "/v2/a/manifests/<script>",
    ):
        assert client.get(path).headers["X-Content-Type-Options"] == "nosniff"


def test_a_subject_whose_referrers_are_not_kept_gets_no_oci_subject(client: Client) -> None:
    artifact = manifest_of(subject=descriptor(b"x") | {"digest": "md5:ab"})
    response = push_manifest(client, "a", digest_of(artifact), artifact)
    assert (response.status_code, "OCI-Subject" in response.headers) == (201, False)


@pytest.mark.parametrize(
    ("url_map", "served"),
    [
        (RegistryMap(prefix="/r"), True),
        (RegistryMap(OCI_1_1.subset("manifest", "referrers")), True),
        (RegistryMap(OCI_1_1.subset("manifest")), False),
        (RegistryMap(OCI_1_1.subset(methods=["PUT"])), False),
    ],
)
def test_oci_subject_is_sent_only_if_referrers_are_served(
    url_map: RegistryMap, served: bool
) -> None:
    """Without it, regctl and oras maintain a tag that lists the referrers."""
    client = Client(make_registry(MemoryStorage(), url_map=url_map))
    subject = descriptor(b"x")
    content = json.dumps({"schemaVersion": 2, "subject": subject})
    path = f"{url_map.table.prefix}/v2/a/manifests/v1"
    response = client.put(path, data=content, content_type=MANIFEST_TYPE)
    assert response.status_code == 201
    assert response.headers.get("OCI-Subject") == (subject["digest"] if served else None)


def test_a_storage_is_not_asked_about_digests_that_cannot_be_verified() -> None:
    class Watchful(MemoryStorage):
        def referrers(self, name: str, digest: str, after: str = "") -> Iterator[tuple[str, bytes]]:
            assert digest.partition(":")[0] in REGISTERED_ALGORITHMS
            return super().referrers(name, digest, after)

    client = Client(make_registry(Watchful()))
    for digest in digest_of(b""), "md5:0", "a+b:c":
        response = client.get(f"/v2/a/referrers/{digest}")
        assert (response.status_code, response.get_json()["manifests"]) == (200, [])


def test_referrers_are_listed_and_filtered(client: Client) -> None:
    subject = manifest_of()
    digest = digest_of(subject)
    path = f"/v2/a/referrers/{digest}"
    assert client.get(path).get_json()["manifests"] == []
    config = descriptor(b"{}", mediaType="x/config")
    push_blob(client, "a", b"{}")
    for artifact in (
        manifest_of(subject=descriptor(subject), artifactType="x/sbom", annotations={"k": "v"}),
        manifest_of(subject=descriptor(subject), config=config),
        manifest_of(subject=descriptor(b"other"), artifactType="x/sbom"),
    ):
        response = push_manifest(client, "a", digest_of(artifact), artifact)
        assert response.headers["OCI-Subject"] == json.loads(artifact)["subject"]["digest"]
    response = client.get(path)
    assert response.content_type == INDEX_TYPE
    found = {entry["artifactType"]: entry for entry in response.get_json()["manifests"]}
    assert set(found) == {"x/sbom", "x/config"}
    assert found["x/sbom"]["annotations"] == {"k": "v"}
    for entry in found.values():
        content = client.get(f"/v2/a/manifests/{entry['digest']}").data
        assert (entry["size"], entry["mediaType"]) == (len(content), MANIFEST_TYPE)
    filtered = client.get(path, query_string={"artifactType": "x/sbom"})
    assert filtered.get_json()["manifests"] == [found["x/sbom"]]
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"


def pages_from(client: Client, path: str) -> Iterator[TestResponse]:
    url: str | None = f"http://localhost{path}"
    while url:
        response = client.get(url)
        assert response.status_code == 200
        yield response
        url = parse_next_link(url, response.headers.getlist("Link"))


def follow_pages(client: Client, path: str, key: str) -> list[list[Any]]:
    return [response.get_json()[key] for response in pages_from(client, path)]


def push_referrer(client: Client, subject: str, **more: Any) -> str:
    content = manifest_of(subject={"digest": subject}, **more)
    response = push_manifest(client, "a", digest_of(content), content)
    assert response.status_code == 201
    return digest_of(content)


def referrers_in_pages(client: Client, subject: str, query: str = "") -> list[list[str]]:
    found = follow_pages(client, f"/v2/a/referrers/{subject}{query}", "manifests")
    return [[one["digest"] for one in page] for page in found]


def test_referrers_are_listed_in_pages(client: Client) -> None:
    subject = digest_of(manifest_of())
    digests = sorted(push_referrer(client, subject, note=i) for i in range(7))
    assert referrers_in_pages(client, subject) == [digests]
    for n in range(1, 9):
        pages = [digests[i : i + n] for i in range(0, len(digests), n)]
        assert referrers_in_pages(client, subject, f"?n={n}") == pages
    for last in [*digests, "", "a", "sha256", "sha256:", "sha256:5", "sha256z", "sha5", "z", "é"]:
        path = f"/v2/a/referrers/{subject}"
        found = client.get(path, query_string={"last": last}).get_json()["manifests"]
        assert [one["digest"] for one in found] == [one for one in digests if one > last]
    assert referrers_in_pages(client, subject, "?n=0") == [[]]


@pytest.mark.parametrize("annotation", ["x", "é", "\u2028", "\ud800", '"', "\0"])
def test_a_page_of_referrers_has_at_most_4_mib(annotation: str) -> None:
    client = RegistryClient(MemoryStorage())
    subject = digest_of(manifest_of())
    one = len(json.dumps(annotation)) - 2
    annotations = {"x": annotation * (3_000_000 // one)}
    digests = {
        push_referrer(client, subject, note=i, annotations=annotations, artifactType="x/big")
        for i in range(5)
    }
    digests.add(push_referrer(client, subject, artifactType="x/small"))
    for query, expected in (("", 6), ("?artifactType=x/small", 1), ("?artifactType=x/none", 0)):
        responses = list(pages_from(client, f"/v2/a/referrers/{subject}{query}"))
        assert len(responses) > 1
        assert all(len(response.data) <= MAX_MANIFEST for response in responses)
        found = [one for response in responses for one in response.get_json()["manifests"]]
        assert len(found) == expected
        assert all(one.get("annotations", annotations) == annotations for one in found)
        for response in responses:
            assert ("OCI-Filters-Applied" in response.headers) == bool(query)
        if not query:
            assert {one["digest"] for one in found} == digests


def test_a_manifest_too_large_for_a_page_of_referrers_is_refused(client: Client) -> None:
    """Every manifest that is accepted can be listed."""
    subject = digest_of(manifest_of())
    bare = manifest_of(subject={"digest": subject}, annotations={"x": ""})
    for missing in range(0, 800, 100):
        x = "x" * (MAX_MANIFEST - missing - len(bare))
        content = manifest_of(subject={"digest": subject}, annotations={"x": x})
        assert len(content) == MAX_MANIFEST - missing
        response = push_manifest(client, "a", digest_of(content), content)
        if response.status_code == 413:
            assert_error(response, 413, "SIZE_INVALID")
            continue
        assert response.status_code == 201
        path = f"/v2/a/referrers/{subject}"
        assert [len(r.get_json()["manifests"]) for r in pages_from(client, path)] == [1]
        assert len(client.get(path).data) <= MAX_MANIFEST
        break
    else:
        pytest.fail("none of the manifests is accepted")


def test_a_deleted_manifest_is_no_longer_a_referrer(client: RegistryClient) -> None:
    subject = digest_of(manifest_of())
    digests = [push_referrer(client, subject, note=i) for i in range(3)]
    client.delete(f"/v2/a/manifests/{digests.pop()}")
    assert referrers_in_pages(client, subject) == [sorted(digests)]
    again = push_referrer(client, subject, note=2)
    assert referrers_in_pages(client, subject) == [sorted([*digests, again])]
    if not isinstance(client.storage, MemoryStorage):
        client.delete(f"/v2/a/manifests/{again}")
        store = client.storage.store
        referrers = [one for one in objects_under(store, "repositories/") if "_referrers" in one]
        assert len(referrers) == 2


def test_tags_are_listed_in_pages(client: Client) -> None:
    tags = ["B", "D", "a", "a-b", "a.b", "a0", "ab", "c"]
    for tag in reversed(tags):
        push_manifest(client, "x/y", tag, manifest_of())
    push_blob(client, "only/a/blob")
    assert follow_pages(client, "/v2/x/y/tags/list", "tags") == [tags]
    for size in range(1, 10):
        pages = [tags[i : i + size] for i in range(0, len(tags), size)]
        assert follow_pages(client, f"/v2/x/y/tags/list?n={size}", "tags") == pages
    assert follow_pages(client, "/v2/x/y/tags/list?n=0", "tags") == [[]]
    for last in ["", "A", "B", "Z", "a", "a-", "a-b", "a/b", "a\0", "..", "é", "/", "%", "c", "zz"]:
        after = client.get("/v2/x/y/tags/list", query_string={"last": last, "n": 9})
        assert after.get_json()["tags"] == [one for one in tags if one > last]
    assert follow_pages(client, f"/v2/x/y/tags/list?n={'9' * 5000}", "tags") == [tags]
    for n in "-1", "x", "", "1.0", "٣":
        response = client.get("/v2/x/y/tags/list", query_string={"n": n})
        assert_error(response, 400, "PAGINATION_NUMBER_INVALID")


NAMES = [
    "a",
    "a--b",
    "a-b",
    "a-b/c",
    "a.b/c/d",
    "a/0",
    "a/b",
    "a/b-c",
    "a/b/c",
    "a0",
    "b/c/d",
    "b0",
]


def test_repositories_are_listed_in_ascii_order_of_their_whole_names(client: Client) -> None:
    for name in reversed(NAMES):
        push_manifest(client, name, "v1", manifest_of())
    push_blob(client, "a/only/a/blob")
    for n in range(1, len(NAMES) + 2):
        pages = [NAMES[i : i + n] for i in range(0, len(NAMES), n)]
        assert follow_pages(client, f"/v2/_catalog?n={n}", "repositories") == pages
    for last in [*NAMES, "a/", "a-", "a/a", "a/b/", "a//", "../a", "b/c", "é", "\0"]:
        response = client.get("/v2/_catalog", query_string={"last": last})
        assert response.get_json()["repositories"] == [name for name in NAMES if name > last]


def test_repositories_may_be_nested(client: Client) -> None:
    for name in "a", "a/b", "a/b/manifests", "a/b/tags/list", "a/blobs/uploads":
        push_blob(client, name)
        assert push_manifest(client, name, "v1", manifest_of(BLOB, note=name)).status_code == 201
    for name in "a", "a/b", "a/b/manifests", "a/b/tags/list", "a/blobs/uploads":
        assert client.get(f"/v2/{name}/manifests/v1").get_json()["note"] == name


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/A/tags/list", 400, "NAME_INVALID"),
        ("GET", "/x", 404, "UNSUPPORTED"),
        ("GET", "/v2/_oci/ext/discover", 404, "UNSUPPORTED"),
        ("PATCH", "/v2/", 405, "UNSUPPORTED"),
        ("GET", "/v2/a/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", f"/v2/{'a' * 256}/tags/list", 400, "NAME_INVALID"),
        ("POST", f"/v2/{'a/' * 3000}b/blobs/uploads/", 400, "NAME_INVALID"),
        ("GET", f"/v2/a/blobs/x:{'a' * 5000}", 404, "BLOB_UNKNOWN"),
        ("DELETE", "/v2/a/manifests/x:y", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/v2/a/manifests/{'a' * 128}", 404, "MANIFEST_UNKNOWN"),
    ],
)
def test_errors_are_the_registrys_json(
    client: Client, method: str, path: str, status: int, code: str
) -> None:
    response = client.open(path, method=method)
    assert_error(response, status, code)
    if status == 405:
        assert {"GET", "HEAD"} == set(response.headers["Allow"].split(", "))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("secret"), 500, "UNKNOWN"),
        (OSError(28, "secret\nplace", "/data"), 503, "UNAVAILABLE"),
        (PermissionError("secret"), 503, "UNAVAILABLE"),
        (TimeoutError("secret"), 503, "UNAVAILABLE"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_storage_that_fails_is_a_503_or_500_without_details(
    caplog: pytest.LogCaptureFixture, error: Exception, status: int, code: str, at_once: bool
) -> None:
    class Broken(MemoryStorage):
        def tags(self, name: str, after: str = "") -> Iterator[str]:
            if at_once:
                raise error
            return self.broken()

        def broken(self) -> Iterator[str]:
            yield "v1"
            raise error

    response = Client(make_registry(Broken())).get("/v2/a/tags/list")
    assert_error(response, status, code)
    assert "secret" not in response.text
    (record,) = caplog.records
    if status == 503:
        assert record.exc_info is None
        assert "\n" not in record.getMessage()
        assert "/v2/a/tags/list" in record.getMessage()
        assert "secret" in record.getMessage()


def test_a_large_layer_is_not_held_in_memory(tmp_path: Path) -> None:
    size = 256 * 1024 * 1024

    class Zeros(RawIOBase):
        left = size

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            n = min(self.left, len(buffer))
            self.left -= n
            buffer[:n] = bytes(n)
            return n

    digest = hashlib.sha256()
    for _ in range(256):
        digest.update(bytes(size // 256))
    client = RegistryClient(storage_at(tmp_path))
    path = f"/v2/big/blobs/sha256:{digest.hexdigest()}"
    tracemalloc.start()
    try:
        post = client.post(
            f"/v2/big/blobs/uploads/?digest=sha256:{digest.hexdigest()}",
            environ_overrides={"wsgi.input": Zeros(), "CONTENT_LENGTH": str(size)},
        )
        assert post.status_code == 201, post.text
        with client.get(path, buffered=False) as pulled:
            assert sum(len(block) for block in pulled.iter_encoded()) == size
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()


# Options.


def test_a_page_has_at_most_page_size_results(storage: Storage) -> None:
    client = RegistryClient(storage, page_size=2)
    for tag in "abcde":
        push_manifest(client, tag, "v1", manifest_of())
        push_manifest(client, "a", tag, manifest_of())
        push_referrer(client, digest_of(b""), note=tag)
    for path, key in (
        ("/v2/a/tags/list", "tags"),
        ("/v2/_catalog", "repositories"),
        (f"/v2/a/referrers/{digest_of(b'')}", "manifests"),
    ):
        total = 6 if key == "tags" else 5
        for query, most in (("", 2), ("?n=1", 1), ("?n=2", 2), ("?n=3", 2), ("?n=100", 2)):
            sizes = [len(page) for page in follow_pages(client, path + query, key)]
            assert sizes == [most] * (total // most) + [total % most] * (total % most > 0)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_chunk_over_the_maximum_is_413_and_the_upload_goes_on(
    storage: Storage, is_chunked: bool
) -> None:
    client = RegistryClient(storage, max_chunk=5)
    url = client.post("/v2/a/blobs/uploads/").location or ""

    def patch(content: bytes) -> TestResponse:
        chunked = {
            "wsgi.input_terminated": True,
            "CONTENT_LENGTH": "",
            "wsgi.input": BytesIO(content),
        }
        if is_chunked:
            return client.patch(url, environ_overrides=chunked)
        return client.patch(url, data=content)

    assert patch(b"01234").status_code == 202
    assert_error(patch(b"567890"), 413, "SIZE_INVALID")
    assert client.get(url).headers["Range"] == "0-4"
    assert patch(b"56789").status_code == 202
    put = client.put(url, query_string={"digest": digest_of(b"0123456789")})
    assert put.status_code == 201
    assert push_blob(client, "a") == digest_of(BLOB)  # a single POST is not a chunk


def test_a_read_only_registry_refuses_writes(storage: Storage) -> None:
    writer = RegistryClient(storage)
    blob = push_blob(writer, "a")
    push_manifest(writer, "a", "v1", manifest_of(BLOB))
    reader = RegistryClient(storage, url_map=RegistryMap(OCI_1_1.subset(methods=["GET"])))
    for path in (
        f"/v2/a/blobs/{blob}",
        "/v2/a/manifests/v1",
        "/v2/a/tags/list",
        "/v2/_catalog",
        f"/v2/a/referrers/{blob}",
    ):
        assert reader.get(path).data == writer.get(path).data
        for method in "PUT", "DELETE", "POST", "PATCH":
            response = reader.open(path, method=method)
            assert_error(response, 405, "UNSUPPORTED")
            assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD"}
    assert reader.post("/v2/a/blobs/uploads/").status_code in (404, 405)


@pytest.mark.parametrize("without", ["catalog", "referrers", "tags"])
def test_an_endpoint_that_is_left_out_is_404(without: str) -> None:
    endpoints = {route.endpoint for route in OCI_1_1.routes} - {without}
    client = RegistryClient(MemoryStorage(), url_map=RegistryMap(OCI_1_1.subset(*endpoints)))
    push_manifest(client, "a", "v1", manifest_of())
    for endpoint, path in (
        ("catalog", "/v2/_catalog"),
        ("referrers", f"/v2/a/referrers/{digest_of(b'')}"),
        ("tags", "/v2/a/tags/list"),
    ):
        response = client.get(path)
        if endpoint == without:
            assert_error(response, 404, "UNSUPPORTED")
        else:
            assert response.status_code == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"page_size": 0}, "page_size 0 must be 1 or more"),
        ({"page_size": -1}, "page_size -1 must be 1 or more"),
        ({"max_chunk": 0}, "max_chunk 0 must be 1 or more"),
    ],
)
def test_an_option_out_of_range_is_a_value_error(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_registry(MemoryStorage(), **options)


READ_ONLY = OCI_1_1.subset(methods=["GET"])


class FixedStorage:
    """A `ReadStorage` with one blob, and nothing that writes."""

    def open_blob(self, name: str, digest: str) -> Blob:
        if digest != digest_of(BLOB):
            raise MissingError(digest)
        return Blob(len(BLOB), lambda start, end: [BLOB[start:end]])

    def manifest(self, name: str, digest: str) -> Manifest:
        raise MissingError(digest)

    def tag(self, name: str, tag: str) -> str:
        raise MissingError(tag)

    def repositories(self, after: str = "") -> Iterator[str]:
        return iter(())

    def tags(self, name: str, after: str = "") -> Iterator[str]:
        raise MissingError(name)

    def referrers(self, name: str, subject: str, after: str = "") -> Iterator[tuple[str, bytes]]:
        return iter(())


def test_read_only_registry_needs_only_a_read_storage() -> None:
    client = Client(make_registry(FixedStorage(), url_map=RegistryMap(READ_ONLY)))
    assert client.get(f"/v2/a/blobs/{digest_of(BLOB)}").data == BLOB
    for path in f"/v2/a/blobs/{digest_of(b'')}", "/v2/a/manifests/v1", "/v2/a/tags/list":
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("storage", "options", "error"),
    [
        ("./dir", {}, "storage './dir' has no method 'manifest', which a registry needs"),
        (None, {}, "storage None has no method 'manifest'"),
        (FixedStorage(), {}, "has no method 'append_to_upload', which PUT at the route '/v2/"),
        (
            MemoryStorage(),
            {"blob_urls": timedelta(hours=1)},
            "has no method 'blob_url', which blob_urls needs: SigningStorage describes it",
        ),
        (
            MemoryStorage(),
            {"url_map": RegistryMap(DOCKER_1_5)},
            "route '/v2/<repository:name>/manifests/<tag:tag>' lists no methods",
        ),
    ],
)
def test_storage_or_map_that_cannot_work_is_a_type_error(
    storage: Any, options: Any, error: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(error)):
        make_registry(storage, **options)


class SignedStorage(MemoryStorage):
    def blob_url(self, name: str, digest: str, lifetime: timedelta) -> str:
        self.open_blob(name, digest)
        return f"https://store.example/{digest}?expires={lifetime.total_seconds():.0f}"


def test_blob_is_redirected_to_a_signed_url() -> None:
    client = RegistryClient(SignedStorage(), blob_urls=timedelta(minutes=20))
    digest = push_blob(client, "a")
    for options in {}, {"headers": {"Range": "bytes=2-5"}}:
        response = client.get(f"/v2/a/blobs/{digest}", **options)
        assert response.status_code == 307
        assert response.location == f"https://store.example/{digest}?expires=1200"
        assert response.headers["Docker-Content-Digest"] == digest
    head = client.head(f"/v2/a/blobs/{digest}")
    assert (head.status_code, head.content_length) == (200, len(BLOB))
    assert_error(client.get(f"/v2/a/blobs/{digest_of(b'')}"), 404, "BLOB_UNKNOWN")


class LooseConverter(RepositoryNameConverter):
    regex = "[^:]+?"
    part_isolating = False

    def to_url(self, value: str) -> str:
        return value


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("../../etc/tags/list", 400, "NAME_INVALID"),
        (f"{'a' * 256}/tags/list", 400, "NAME_INVALID"),
        ("a\\b/blobs/x", 400, "NAME_INVALID"),
        ("a/blobs/sha256:..", 400, "DIGEST_INVALID"),
        ("a/manifests/..", 404, "MANIFEST_UNKNOWN"),
        ("a/uploads/..", 404, "BLOB_UPLOAD_UNKNOWN"),
    ],
)
def test_rules_of_a_user_let_no_malformed_value_through(path: str, status: int, code: str) -> None:
    rules = [
        Rule("/mine/<loose:name>/tags/list", endpoint="tags", methods=["GET"]),
        Rule("/mine/<loose:name>/blobs/<string:digest>", endpoint="blob", methods=["GET"]),
        Rule("/mine/<loose:name>/manifests/<string:tag>", endpoint="manifest", methods=["GET"]),
        Rule(
            "/mine/<loose:name>/uploads/<string:uuid>",
            endpoint="blob-upload-chunk",
            methods=["GET"],
        ),
    ]
    url_map = RegistryMap(rules=rules, converters={"loose": LooseConverter}, merge_slashes=False)
    storage = MemoryStorage()
    client = Client(make_registry(storage, url_map=url_map))
    assert_error(client.get(f"/mine/{path}"), status, code)
    storage.put_manifest("a", digest_of(b""), Manifest(JSON, b"{}"), tags=["v1"])
    assert client.get("/mine/a/tags/list").get_json() == {"name": "a", "tags": ["v1"]}


def test_each_registry_has_a_map_of_its_own() -> None:
    first, second = make_registry(MemoryStorage()), make_registry(MemoryStorage())
    first.url_map.add(Rule("/healthz", endpoint="healthz"))
    assert Client(second).get("/healthz").status_code == 404


# Conditional writes.


@pytest.mark.parametrize(
    ("method", "headers", "before", "status"),
    [
        ("PUT", {"If-None-Match": "*"}, None, 201),
        ("PUT", {"If-None-Match": "*"}, "same", 412),
        ("PUT", {"If-Match": "*"}, None, 412),
        ("PUT", {"If-Match": "*"}, "same", 201),
        ("PUT", {"If-Match": '"{same}"'}, "same", 201),
        ("PUT", {"If-Match": '"{same}"'}, "other", 412),
        ("PUT", {"If-Match": '"{other}", "{same}"'}, "other", 201),
        ("PUT", {"If-Match": 'W/"{same}"'}, "same", 412),
        ("PUT", {"If-None-Match": '"{same}"'}, "other", 201),
        ("PUT", {"If-None-Match": 'W/"{same}"'}, "same", 412),
        ("DELETE", {"If-Match": '"{same}"'}, "same", 202),
        ("DELETE", {"If-Match": '"{same}"'}, "other", 412),
        ("DELETE", {"If-Match": "*"}, "same", 202),
        ("DELETE", {"If-Match": "*"}, None, 404),
    ],
)
def test_conditional_write_of_a_tag(
    storage: Storage, method: str, headers: dict[str, str], before: str | None, status: int
) -> None:
    client = RegistryClient(storage)
    contents = {"same": manifest_of(note=1), "other": manifest_of(note=2), "new": manifest_of()}
    digests = {name: digest_of(content) for name, content in contents.items()}
    if before:
        push_manifest(client, "a", "v1", contents[before])
    sent = {name: value.format_map(digests) for name, value in headers.items()}
    body = {"data": contents["new"], "content_type": MANIFEST_TYPE} if method == "PUT" else {}
    response = client.open("/v2/a/manifests/v1", method=method, headers=sent, **body)
    assert response.status_code == status
    after = "new" if status == 201 else None if status in (202, 404) else before
    found = client.get("/v2/a/manifests/v1")
    assert found.headers.get("Docker-Content-Digest") == (after and digests[after])


def test_conditional_write_of_a_digest(storage: Storage) -> None:
    client = RegistryClient(storage)
    content = manifest_of()
    path = f"/v2/a/manifests/{digest_of(content)}"
    put = {"data": content, "content_type": MANIFEST_TYPE, "headers": {"If-None-Match": "*"}}
    assert [client.put(path, **put).status_code for _ in range(2)] == [201, 412]
    blob = f"/v2/a/blobs/{push_blob(client, 'a')}"
    for there in path, blob:
        wrong, right = f'"{digest_of(b"")}"', f'"{there.rpartition("/")[2]}"'
        statuses = [
            client.delete(there, headers={"If-Match": tag}).status_code
            for tag in (wrong, right, right)
        ]
        assert statuses == [412, 202, 404]


def test_conditional_write_is_tried_again_when_the_tag_changes() -> None:
    """Another request sets the tag between the check and the write."""
    contents = [manifest_of(note=number) for number in range(3)]

    class Racing(MemoryStorage):
        raced = 0

        def put_manifest(self, *arguments: Any, **options: Any) -> None:
            if options.get("expected") is not None and not self.raced:
                self.raced += 1
                super().put_manifest(
                    "a", digest_of(contents[1]), Manifest(JSON, contents[1]), tags=["v1"]
                )
            super().put_manifest(*arguments, **options)

    for headers, status in (
        ({"If-Match": "*"}, 201),
        ({"If-Match": f'"{digest_of(contents[0])}"'}, 412),
    ):
        storage = Racing()
        client = RegistryClient(storage)
        push_manifest(client, "a", "v1", contents[0])
        put = client.put(
            "/v2/a/manifests/v1", data=contents[2], content_type=MANIFEST_TYPE, headers=headers
        )
        assert (put.status_code, storage.raced) == (status, 1)
        assert storage.tag("a", "v1") == digest_of(contents[2 if status == 201 else 1])


def test_upload_that_never_was_is_404_even_if_its_blob_exists(client: RegistryClient) -> None:
    digest = push_blob(client, "a")
    response = client.put(f"/v2/a/blobs/uploads/{'0' * 32}?digest={digest}", data=BLOB)
    assert_error(response, 404, "BLOB_UPLOAD_UNKNOWN")
    location = client.post("/v2/a/blobs/uploads/").location or ""
    assert client.put(location, data=BLOB, query_string={"digest": digest}).status_code == 201
    other = {"digest": digest_of(b"")}
    assert_error(client.put(location, query_string=other), 404, "BLOB_UPLOAD_UNKNOWN")
