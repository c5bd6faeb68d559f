"""The views of `make_registry`: blobs, uploads and options. Most run on `MemoryStorage`."""

import hashlib
import os
import re
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from storage import storage_at
from werkzeug.routing import Rule
from werkzeug.test import Client

from registry_routes import DOCKER_1_5, OCI_1_1, RegistryMap, RepositoryNameConverter
from registry_routes.digests import digest_of
from registry_routes.grammar import REGISTERED_ALGORITHMS
from registry_routes.registry import Manifest, MemoryStorage, ReadStorage, Storage, make_registry

from .registry_client import BLOB, JSON, Body, RegistryClient, assert_error, chunked, manifest_of


@pytest.fixture
def client() -> RegistryClient:
    return RegistryClient(MemoryStorage())


# Streams, on every storage.


@pytest.mark.parametrize(
    ("algorithm", "size"), [("sha256", len(BLOB)), ("sha512", len(BLOB)), ("sha256", 0)]
)
@pytest.mark.parametrize("how", ["post", "put", "patch", "chunks and put"])
def test_blob_pushed_in_every_way_is_pulled(
    storage: Storage, how: str, algorithm: str, size: int
) -> None:
    client, blob = RegistryClient(storage), BLOB[:size]
    digest = digest_of(blob, algorithm)
    uploads, query = "/v2/library/hello/blobs/uploads/", {"digest": digest}
    if how == "post":
        response = client.post(uploads, query_string=query, data=blob)
    else:
        response = client.post(uploads)
        assert response.status_code == 202
        location, last = response.location or "", blob if how == "put" else b""
        if how == "patch":
            assert client.patch(location, data=blob).status_code == 202
        elif how == "chunks and put":
            cuts = [0, size // 3, size // 2]
            last = blob[size // 2 :]
            for start, end in pairwise(cuts):
                headers = {"Content-Range": f"{start}-{end - 1}"} if size else {}
                patch = client.patch(location, data=blob[start:end], headers=headers)
                status = client.get(location)
                assert (patch.status_code, status.status_code) == (202, 204)
                wanted = f"0-{max(end - 1, 0)}"
                assert patch.headers["Range"] == status.headers["Range"] == wanted
        response = client.put(location, query_string=query, data=last)
        assert client.get(location).status_code == 404
    assert response.status_code == 201
    assert response.headers["Docker-Content-Digest"] == digest
    assert response.location == f"/v2/library/hello/blobs/{digest}"
    pulled = client.get(response.location)
    assert pulled.data == blob
    assert pulled.content_type == "application/octet-stream"
    head = client.head(response.location)
    assert (head.status_code, head.data, head.content_length) == (200, b"", len(blob))
    for header in "Content-Length", "Content-Type", "Docker-Content-Digest":
        assert head.headers[header] == pulled.headers[header]


def test_body_that_breaks_off_leaves_no_trace(storage: Storage) -> None:
    client = RegistryClient(storage)
    location = client.begin_upload("a", b"01234")
    digest = digest_of(b"01234567")
    for method, url in ("PATCH", location), ("PUT", location), ("POST", "/v2/a/blobs/uploads/"):
        broken = {"wsgi.input": BytesIO(b"567"), "CONTENT_LENGTH": "1000"}
        query = {"digest": digest}
        response = client.open(url, method=method, query_string=query, environ_overrides=broken)
        assert response.status_code == 400
        assert client.get(location).headers["Range"] == "0-4"
        assert client.get(f"/v2/a/blobs/{digest}").status_code == 404
    put = client.put(location, query_string={"digest": digest}, data=b"567")
    assert put.status_code == 201


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_chunk_is_404_if_the_upload_is_cancelled_meanwhile(storage: Storage, method: str) -> None:
    client = RegistryClient(storage)
    location = client.begin_upload("a", b"01234")
    url = f"{location}?digest={digest_of(b'01234567')}"
    body = Body(b"567", lambda: client.delete(location))
    response = client.open(url, method=method, environ_overrides=chunked(body))
    assert_error(response, 404, "BLOB_UPLOAD_UNKNOWN")


def test_chunk_is_416_if_another_was_written_meanwhile(storage: Storage) -> None:
    client = RegistryClient(storage)
    location = client.begin_upload()
    body = Body(b"yz", lambda: client.patch(location, data=b"x"))
    response = client.patch(location, environ_overrides=chunked(body))
    assert_error(response, 416, "RANGE_INVALID")
    assert (response.headers["Range"], response.location) == ("0-0", location)
    put = client.put(location, query_string={"digest": digest_of(b"x")})
    assert put.status_code == 201


@pytest.mark.parametrize("chunks", [[], [b"01234"], [b"01", b"234"]])
def test_upload_finished_twice_is_201_twice(storage: Storage, chunks: list[bytes]) -> None:
    client = RegistryClient(storage)
    location = client.begin_upload("a", *chunks)
    last = b"" if chunks else b"01234"
    query = {"digest": digest_of(b"01234")}
    body = Body(last, lambda: client.put(location, query_string=query, data=last))
    for _ in range(2):
        put = client.put(location, query_string=query, environ_overrides=chunked(body))
        assert put.status_code == 201
    assert client.has_blob("a", b"01234")


# Uploads.


def test_chunk_that_does_not_fit_is_refused_and_the_upload_goes_on(client: RegistryClient) -> None:
    location = client.begin_upload()
    client.patch(location, data=b"01234", headers={"Content-Range": "0-4"})
    for content_range in "0-4", "6-9", "4-3", "x", "-1-3", "5-", "9" * 30 + "-" + "9" * 31, "5-9\n":
        response = client.patch(
            location, data=b"56789", environ_overrides={"HTTP_CONTENT_RANGE": content_range}
        )
        assert_error(response, 416, "RANGE_INVALID")
        assert (response.headers["Range"], response.location) == ("0-4", location)
        assert client.get(location).headers["Range"] == "0-4"
    url = f"{location}?digest={digest_of(b'')}"
    response = client.put(url, data=b"x", headers={"Content-Range": "6-6"})
    assert_error(response, 416, "RANGE_INVALID")
    assert (response.headers["Range"], response.location) == ("0-4", location)
    response = client.patch(location, data=b"567", headers={"Content-Range": "5-9"})
    assert_error(response, 400, "SIZE_INVALID")
    assert client.get(location).headers["Range"] == "0-4"
    client.patch(location, data=b"56789", headers={"Content-Range": "bytes 5-9/*"})
    digest = digest_of(b"0123456789")
    assert client.put(location, query_string={"digest": digest}).status_code == 201
    assert client.has_blob("a", b"0123456789")


@pytest.mark.parametrize(
    "digest",
    [digest_of(b"other"), "sha256:abc", "", "x", "md5:abc", "sha384:00", f"../{digest_of(b'')}"],
)
def test_wrong_digest_is_refused(client: RegistryClient, digest: str) -> None:
    query = {"digest": digest}
    post = client.post("/v2/a/blobs/uploads/", query_string=query, data=BLOB)
    assert_error(post, 400, "DIGEST_INVALID")
    location = client.begin_upload()
    assert_error(client.put(location, query_string=query, data=BLOB), 400, "DIGEST_INVALID")
    right = {"digest": digest_of(BLOB)}
    assert client.put(location, query_string=right, data=BLOB).status_code == 201


def test_cancelled_upload_is_404(client: RegistryClient) -> None:
    location = client.begin_upload()
    assert client.delete(location).status_code == 204
    for method in "GET", "PATCH", "DELETE":
        assert_error(client.open(location, method=method), 404, "BLOB_UPLOAD_UNKNOWN")
    put = client.put(location, query_string={"digest": digest_of(b"")})
    assert_error(put, 404, "BLOB_UPLOAD_UNKNOWN")


def test_unknown_upload_is_404_even_if_its_blob_exists(client: RegistryClient) -> None:
    elsewhere = client.begin_upload().replace("/v2/a/", "/v2/b/")
    for path in elsewhere, f"/v2/a/blobs/uploads/{'0' * 5000}", "/v2/a/blobs/uploads/_blobs":
        assert_error(client.patch(path, data=b"x"), 404, "BLOB_UPLOAD_UNKNOWN")
    digest = client.push_blob("a")
    response = client.put(f"/v2/a/blobs/uploads/{'0' * 32}?digest={digest}", data=BLOB)
    assert_error(response, 404, "BLOB_UPLOAD_UNKNOWN")
    location = client.begin_upload()
    assert client.put(location, data=BLOB, query_string={"digest": digest}).status_code == 201
    other = {"digest": digest_of(b"")}
    assert_error(client.put(location, query_string=other), 404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("algorithm", REGISTERED_ALGORITHMS)
def test_upload_with_an_announced_algorithm_goes_on_after_a_wrong_digest(
    client: RegistryClient, algorithm: str
) -> None:
    query = {"digest-algorithm": algorithm}
    location = client.post("/v2/a/blobs/uploads/", query_string=query).location or ""
    client.patch(location, data=BLOB)
    for content, status in (b"x", 400), (BLOB, 201):
        put = client.put(location, query_string={"digest": digest_of(content, algorithm)})
        assert put.status_code == status


@pytest.mark.parametrize("algorithm", ["md5", "x/../y", ""])
def test_announced_algorithm_must_be_registered(client: RegistryClient, algorithm: str) -> None:
    response = client.post(f"/v2/a/blobs/uploads/?digest-algorithm={algorithm}")
    assert_error(response, 400, "DIGEST_INVALID")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_chunk_over_the_maximum_is_413_and_the_upload_goes_on(is_chunked: bool) -> None:
    client = RegistryClient(MemoryStorage(), max_chunk=5)
    url = client.begin_upload()
    for content, status in (b"01234", 202), (b"567890", 413), (b"56789", 202):
        body = {"environ_overrides": chunked(BytesIO(content))} if is_chunked else {"data": content}
        response = client.patch(url, **body)
        assert response.status_code == status
        if status == 413:
            assert_error(response, 413, "SIZE_INVALID")
            assert client.get(url).headers["Range"] == "0-4"
    put = client.put(url, query_string={"digest": digest_of(b"0123456789")})
    assert put.status_code == 201
    assert client.push_blob("a") == digest_of(BLOB)  # a single POST is not a chunk


# Blobs.


def test_blob_is_mounted_from_another_repository(client: RegistryClient) -> None:
    digest = client.push_blob("from/here")
    uploads = "/v2/to/there/blobs/uploads/"
    query = {"mount": digest, "from": "from/here"}
    for _ in range(2):
        response = client.post(uploads, query_string=query)
        assert response.status_code == 201
        assert response.location == f"/v2/to/there/blobs/{digest}"
    client.delete(f"/v2/from/here/blobs/{digest}")
    assert client.has_blob("to/there", BLOB)
    assert not client.has_blob("from/here", BLOB)


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
def test_impossible_mount_begins_an_upload(client: RegistryClient, query: dict[str, str]) -> None:
    client.push_blob("from/here")
    client.delete(f"/v2/had/it/blobs/{client.push_blob('had/it')}")
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
    # Several ranges and invalid ranges are ignored (RFC 9110, section 14.2).
    **dict.fromkeys(("bytes=5-4", "bytes=9-3", "bytes=-", "bytes=", "bytes=x-y", "x", "٣-", "")),
    **dict.fromkeys(("lines=1-2", "bytes=0-1,3-4")),
    f"bytes={'9' * 5000}-": None,
}


@pytest.mark.parametrize("wanted", RANGES)
def test_one_range_is_a_part_and_others_are_ignored_or_416(
    client: RegistryClient, wanted: str
) -> None:
    path = f"/v2/a/b/blobs/{client.push_blob('a/b')}"
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


def test_if_range_decides_whether_a_range_counts(client: RegistryClient) -> None:
    digest = client.push_blob("a/b")
    for etag, status in {f'"{digest}"': 206, '"other"': 200}.items():
        headers = {"Range": "bytes=3-9", "If-Range": etag}
        assert client.get(f"/v2/a/b/blobs/{digest}", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 200), ({"Range": "bytes=3-9"}, 206), ({"Range": f"bytes={len(BLOB)}-"}, 416)],
)
def test_conditions_come_before_ranges(
    client: RegistryClient, headers: dict[str, str], status: int
) -> None:
    digest = client.push_blob("a/b")
    path = f"/v2/a/b/blobs/{digest}"
    for there in "*", f'"{digest}"', f'"x", "{digest}"':
        matched = client.get(path, headers={"If-Match": there, **headers})
        assert matched.status_code == status
    assert client.head(path, headers={"If-Match": "*", **headers}).status_code == 200
    for other in f'W/"{digest}"', '"x"':
        changed = client.get(path, headers={"If-Match": other, **headers})
        assert (changed.status_code, changed.mimetype) == (412, JSON)
    cached = client.get(path, headers={"If-None-Match": f'"{digest}"', **headers})
    assert (cached.status_code, cached.data) == (304, b"")
    assert "Content-Range" not in cached.headers


def test_only_a_suffix_of_an_empty_blob_is_satisfiable(client: RegistryClient) -> None:
    empty = f"/v2/a/b/blobs/{client.push_blob('a/b', b'')}"
    for wanted in "bytes=-5", "bytes=-1", "bytes=5-4", "":
        response = client.get(empty, headers={"Range": wanted})
        assert (response.status_code, response.data) == (200, b"")
    assert_error(client.get(empty, headers={"Range": "bytes=-0"}), 416, "RANGE_INVALID")
    assert_error(client.get(empty, headers={"Range": "bytes=0-"}), 416, "RANGE_INVALID")


def test_blob_is_deleted_from_its_repository_only(client: RegistryClient) -> None:
    path = f"/v2/a/b/blobs/{client.push_blob('a/b')}"
    client.push_blob("other")
    assert client.delete(path).status_code == 202
    for method in "GET", "DELETE":
        assert_error(client.open(path, method=method), 404, "BLOB_UNKNOWN")
    assert client.head(path).status_code == 404
    assert client.has_blob("other", BLOB)


def test_large_layer_is_not_held_in_memory(tmp_path: Path) -> None:
    size = 64 * 1024 * 1024

    digest = f"sha256:{hashlib.sha256(bytes(size)).hexdigest()}"
    client = RegistryClient(storage_at(tmp_path / "storage"))
    (tmp_path / "zeros").touch()
    os.truncate(tmp_path / "zeros", size)
    tracemalloc.start()
    try:
        uploads = f"/v2/big/blobs/uploads/?digest={digest}"
        with (tmp_path / "zeros").open("rb") as zeros:
            body = {"wsgi.input": zeros, "CONTENT_LENGTH": str(size)}
            assert client.post(uploads, environ_overrides=body).status_code == 201
        with client.get(f"/v2/big/blobs/{digest}", buffered=False) as pulled:
            assert sum(len(block) for block in pulled.iter_encoded()) == size
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()


class SignedStorage(MemoryStorage):
    def blob_url(self, name: str, digest: str, lifetime: timedelta) -> str:
        self.open_blob(name, digest)
        return f"https://store.example/{digest}?expires={lifetime.total_seconds():.0f}"


def test_blob_is_redirected_to_a_signed_url() -> None:
    client = RegistryClient(SignedStorage(), blob_urls=timedelta(minutes=20))
    digest = client.push_blob("a")
    for options in {}, {"headers": {"Range": "bytes=2-5"}}:
        response = client.get(f"/v2/a/blobs/{digest}", **options)
        assert response.status_code == 307
        assert response.location == f"https://store.example/{digest}?expires=1200"
        assert response.headers["Docker-Content-Digest"] == digest
    head = client.head(f"/v2/a/blobs/{digest}")
    assert (head.status_code, head.content_length) == (200, len(BLOB))
    assert_error(client.get(f"/v2/a/blobs/{digest_of(b'')}"), 404, "BLOB_UNKNOWN")


# Errors.


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/A/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/_oci/ext/discover", 404, "UNSUPPORTED"),
        ("GET", "/v2/a/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", f"/v2/{'a' * 256}/tags/list", 400, "NAME_INVALID"),
        ("POST", f"/v2/{'a/' * 3000}b/blobs/uploads/", 400, "NAME_INVALID"),
        ("GET", f"/v2/a/blobs/x:{'a' * 5000}", 404, "BLOB_UNKNOWN"),
        ("DELETE", "/v2/a/manifests/x:y", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/v2/a/manifests/{'a' * 128}", 404, "MANIFEST_UNKNOWN"),
    ],
)
def test_errors_are_the_registrys_json(
    client: RegistryClient, method: str, path: str, status: int, code: str
) -> None:
    assert_error(client.open(path, method=method), status, code)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("secret"), 500, "UNKNOWN"),
        (OSError(28, "secret\nplace", "/data"), 503, "UNAVAILABLE"),
        (TimeoutError("secret"), 503, "UNAVAILABLE"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("at_once", [True, False])
def test_failing_storage_is_a_503_or_500_without_details(
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


def test_browsers_do_not_guess_the_type_of_a_response(client: RegistryClient) -> None:
    digest = client.push_blob("a", b"<script>")
    client.push_manifest("a", "v1", manifest_of())
    paths = "", f"a/blobs/{digest}", "a/manifests/v1", "a/tags/list", "_catalog"
    for path in *paths, f"a/referrers/{digest}", "a/manifests/<script>":
        assert client.get(f"/v2/{path}").headers["X-Content-Type-Options"] == "nosniff"


# Options.


def test_page_has_at_most_page_size_results() -> None:
    client = RegistryClient(MemoryStorage(), page_size=2)
    subject = digest_of(b"")
    for tag in "abcde":
        client.push_manifest(tag, "v1", manifest_of())
        client.push_manifest("a", tag, manifest_of())
        client.push_manifest("b", tag, manifest_of(subject={"digest": subject}, note=tag))
    for path, key, total in (
        ("/v2/a/tags/list", "tags", 6),
        ("/v2/_catalog", "repositories", 5),
        (f"/v2/b/referrers/{subject}", "manifests", 5),
    ):
        for query, most in (("", 2), ("?n=1", 1), ("?n=2", 2), ("?n=3", 2), ("?n=100", 2)):
            sizes = [len(page) for page in client.lists(path + query, key)]
            assert sizes == [most] * (total // most) + [total % most] * (total % most > 0)


READ_ONLY = OCI_1_1.subset(methods=["GET"])


def test_read_only_registry_refuses_writes() -> None:
    writer = RegistryClient(MemoryStorage())
    blob = writer.push_blob("a")
    writer.push_manifest("a", "v1", manifest_of(BLOB))
    reader = RegistryClient(writer.storage, url_map=RegistryMap(dialect=READ_ONLY))
    paths = f"a/blobs/{blob}", "a/manifests/v1", "a/tags/list", "_catalog", f"a/referrers/{blob}"
    for path in (f"/v2/{path}" for path in paths):
        assert reader.get(path).data == writer.get(path).data
        for method in "PUT", "DELETE", "POST", "PATCH":
            response = reader.open(path, method=method)
            assert_error(response, 405, "UNSUPPORTED")
            assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD"}
    post = reader.post("/v2/a/blobs/uploads/")
    assert (post.status_code, post.headers["Allow"]) == (405, "")


@pytest.mark.parametrize(("option", "value"), [("page_size", 0), ("page_size", -1), ("max_chunk", 0)])  # fmt: skip
def test_option_out_of_range_is_a_value_error(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{option} {value} must be 1 or more"):
        make_registry(MemoryStorage(), **{option: value})  # type: ignore[arg-type]


def fixed_storage() -> Any:
    """Return a `ReadStorage` with one blob, and nothing that writes."""
    storage = MemoryStorage()
    storage.put_blob("a", digest_of(BLOB), [BLOB])
    methods = [name for name in dir(ReadStorage) if name[0] != "_"]
    return SimpleNamespace(**{name: getattr(storage, name) for name in methods})


def test_read_only_registry_needs_only_a_read_storage() -> None:
    client = Client(make_registry(fixed_storage(), url_map=RegistryMap(dialect=READ_ONLY)))
    assert client.get(f"/v2/a/blobs/{digest_of(BLOB)}").data == BLOB
    for path in f"/v2/a/blobs/{digest_of(b'')}", "/v2/a/manifests/v1", "/v2/b/tags/list":
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("storage", "options", "error"),
    [
        ("./dir", {}, "storage './dir' has no method 'manifest', which a registry needs"),
        (None, {}, "storage None has no method 'manifest'"),
        (
            fixed_storage(),
            {},
            "has no method 'append_to_upload', which a registry with PUT at '/v2/",
        ),
        (
            MemoryStorage(),
            {"blob_urls": timedelta(hours=1)},
            "has no method 'blob_url', which blob_urls needs: SigningStorage describes it",
        ),
        (
            MemoryStorage(),
            {"url_map": RegistryMap(dialect=DOCKER_1_5)},
            "route '/v2/<repository:name>/manifests/<tag:tag>' takes any method",
        ),
    ],
)
def test_storage_or_map_that_cannot_work_is_a_type_error(
    storage: Any, options: Any, error: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(error)):
        make_registry(storage, **options)


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
