"""What the proxy of the examples keeps: tags, manifests and blobs, and what it collects."""

import gzip
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import proxy as program
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from sharing import Fetch, Fetches, Source
from storage import storage_at
from werkzeug.exceptions import BadGateway
from werkzeug.test import Client

from registry_routes import errors
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_INDEX, IMAGE_MANIFEST, parse_warnings
from registry_routes.registry import MAX_MANIFEST, Blob, MemoryStorage, MissingError
from registry_routes.testing import ServedRegistry, serve

from .nasty import SHA256
from .proxies import (
    BLOB,
    INDEX,
    LATEST,
    LAYER,
    SMALL,
    SMALL_BLOB,
    Canned,
    ProxyClient,
    Slow,
    all_at_once,
    canned,
    read_some,
    registry,
    requests_to,
    slow,
)

GET_MANIFEST, HEAD_MANIFEST, GET_BLOB = ("GET", "manifest"), ("HEAD", "manifest"), ("GET", "blob")
MANIFEST = "/v2/a/manifests/v1"

# Tags.


def test_kept_image_is_served_without_the_upstream(tmp_path: Path) -> None:
    with registry() as upstream:
        proxy = ProxyClient(upstream.url, storage=storage_at(tmp_path))
        first = proxy.get(LATEST)
        digest = first.headers["Docker-Content-Digest"]
        assert digest == digest_of(first.data)
        assert proxy.get(BLOB).data == LAYER
        proxy.wait_until_done()
        assert requests_to(upstream) == [GET_MANIFEST, GET_BLOB]
    for path in LATEST, f"/v2/library/nginx/manifests/{digest}":
        again = proxy.get(path)
        assert (again.data, again.content_type) == (first.data, first.content_type)
        assert ("Warning" in again.headers) == (path == LATEST)
    assert proxy.get(BLOB).data == LAYER
    assert proxy.get(BLOB, headers={"Range": "bytes=1000000-"}).data == LAYER[1000000:]
    (said,) = parse_warnings(proxy.get(LATEST).headers["Warning"])
    assert said.endswith(": 502 Bad Gateway. library/nginx:latest may have changed meanwhile.")
    for path in SMALL_BLOB, "/v2/library/nginx/manifests/v2", "/v2/library/nginx/tags/list":
        response = proxy.get(path)
        assert response.status_code == 502
        assert "cannot be reached" in response.get_json()["errors"][0]["message"]


def test_stale_tag_is_checked_by_a_head(upstream: ServedRegistry, proxy: ProxyClient) -> None:
    first = proxy.get(LATEST).data
    assert proxy.get(LATEST).data == first
    assert requests_to(upstream) == [GET_MANIFEST, HEAD_MANIFEST]
    upstream.add_image("library/nginx:latest", layers=[b"another"])
    assert proxy.get(LATEST).data != first
    assert requests_to(upstream)[2:] == [HEAD_MANIFEST, GET_MANIFEST]
    assert proxy.get(f"/v2/library/nginx/manifests/{digest_of(first)}").data == first
    assert len(upstream.requests) == 4


@pytest.mark.parametrize("is_down", [False, True])
def test_fresh_tag_is_not_asked_for(
    upstream: ServedRegistry, proxy: ProxyClient, is_down: bool
) -> None:
    upstream.fail("manifest", "HEAD", 503, times=None)
    if is_down:
        assert "Warning" not in proxy.get(LATEST).headers
    proxy.views.fresh_for = 60
    for _ in range(3):
        assert ("Warning" in proxy.get(LATEST).headers) == is_down
        assert proxy.head(LATEST).status_code == 200
    assert requests_to(upstream) == [GET_MANIFEST, *[HEAD_MANIFEST] * is_down]


def test_head_is_asked_by_head(upstream: ServedRegistry, proxy: ProxyClient) -> None:
    manifest, blob = proxy.head(LATEST), proxy.head(BLOB)
    assert int(manifest.headers["Content-Length"]) > 100
    assert manifest.content_type == IMAGE_MANIFEST
    assert manifest.headers["Docker-Content-Digest"].startswith("sha256:")
    assert int(blob.headers["Content-Length"]) == len(LAYER)
    assert blob.headers["Docker-Content-Digest"] == digest_of(LAYER)
    for path in LATEST, BLOB:
        assert proxy.head(path.replace("nginx", "other")).status_code == 404
    proxy.head("/v2/library/nginx/tags/list")
    assert {request.method for request in upstream.requests} == {"HEAD"}
    bare, answers = canned({BLOB: (200, {}, b""), MANIFEST: (200, INDEX, b"")})
    for path in answers.answers:
        answer = bare.head(path)
        assert (answer.status_code, "Content-Length" in answer.headers) == (200, False)
    # Also of a kept tag that has changed.
    proxy.get(LATEST)
    changed = upstream.add_image("library/nginx:latest", layers=[b"another"])
    upstream.requests.clear()
    assert proxy.head(LATEST).headers["Docker-Content-Digest"] == changed
    assert requests_to(upstream) == [HEAD_MANIFEST]


def test_deleted_upstream_tag_is_404(upstream: ServedRegistry, proxy: ProxyClient) -> None:
    proxy.get(LATEST)
    upstream.storage.delete_tag("library/nginx", "latest")
    assert proxy.get(LATEST).status_code == 404
    for method in "GET", "HEAD":
        upstream.fail("manifest", method, 503, times=None)
    assert proxy.get(LATEST).status_code == 503


@pytest.mark.parametrize(
    ("body", "is_gone"),
    [
        (b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no"}]}', True),
        (b'{"errors": [{"code": "NAME_UNKNOWN", "message": "no"}]}', True),
        (b'{"errors": [{"code": "NOT_FOUND", "message": "no"}]}', True),
        (b'{"errors": [{"code": "UNSUPPORTED", "message": "no route"}]}', False),
        (b"<html><title>404 Not Found</title></html>", False),
        (b"404 page not found", False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_only_the_registrys_own_404_ends_a_kept_tag(
    upstream: ServedRegistry, proxy: ProxyClient, body: bytes, is_gone: bool, method: str
) -> None:
    digest = proxy.get(LATEST).headers["Docker-Content-Digest"]
    answers: dict[str, Any] = {
        LATEST: lambda sent: (404, {}, b"" if sent.method == "HEAD" else body)
    }
    proxy.upstream.session.mount("http://", Canned(answers))
    answer = proxy.client.open(LATEST, method=method)
    if is_gone:
        assert answer.status_code == 404
        with pytest.raises(MissingError):
            proxy.storage.tag("library/nginx", "latest")
    else:
        assert answer.headers["Docker-Content-Digest"] == digest
        assert ": 404 " in parse_warnings(answer.headers["Warning"])[0]
        assert proxy.storage.tag("library/nginx", "latest") == digest


@pytest.mark.parametrize(
    ("fault", "status", "code", "passed_on"),
    [
        (
            errors.TooManyRequests(
                retry_after=7,
                headers=[("RateLimit-Limit", "100;w=21600"), ("RateLimit-Remaining", "0")],
            ),
            429,
            "TOOMANYREQUESTS",
            {"Retry-After": "7", "RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "0"},
        ),
        (errors.Unavailable(retry_after=9), 503, "UNAVAILABLE", {"Retry-After": "9"}),
        (errors.Denied("no, not you", detail={"x": 1}), 403, "DENIED", {}),
        (errors.Unauthorized(challenge='Basic realm="r"'), 403, "DENIED", {}),
        (errors.Unauthorized(realm="https://t.example/", scope="x"), 502, "UNKNOWN", {}),
        (500, 500, "UNKNOWN", {}),
        ("connection closed", 502, "UNKNOWN", {}),
        (timedelta(seconds=5), 504, "UNKNOWN", {}),
    ],
)
def test_upstreams_error_is_answered_unless_a_manifest_is_kept(
    upstream: ServedRegistry, fault: Any, status: int, code: str, passed_on: dict[str, str]
) -> None:
    proxy = ProxyClient(upstream.url)
    proxy.upstream.session.mount("https://t.example/", Canned({}))  # it cannot be reached
    kept = proxy.get(LATEST)
    if isinstance(fault, timedelta):
        proxy.upstream.timeout = 0.1
    for method in "GET", "HEAD":
        upstream.fail("manifest", method, fault, times=None)
    stale = proxy.get(LATEST)
    assert (stale.status_code, stale.data) == (200, kept.data)
    assert f": {status} " in parse_warnings(stale.headers["Warning"])[0]
    failed = proxy.get("/v2/library/nginx/manifests/other")
    assert failed.status_code == status
    assert failed.get_json()["errors"][0]["code"] == code
    assert passed_on.items() <= dict(failed.headers).items()
    assert "WWW-Authenticate" not in failed.headers
    for endpoint, path in ("blob", BLOB), ("tags", "/v2/library/nginx/tags/list"):
        upstream.fail(endpoint, "GET", fault)
        assert proxy.get(path).status_code == status


# Manifests.


@pytest.mark.parametrize(
    ("content", "headers", "works"),
    [
        (b"{}", INDEX, True),
        (b"{}", {}, True),
        (b"{}", {"Content-Type": f"{IMAGE_INDEX}; charset=utf-8"}, True),
        (b"{}", {**INDEX, "Docker-Content-Digest": digest_of(b"{}", "sha512")}, True),
        (b"{}", {**INDEX, "Docker-Content-Digest": SHA256}, False),
        (b"{}", {**INDEX, "Docker-Content-Digest": "md5:x"}, False),
        (b"{}", {**INDEX, "Docker-Content-Digest": "x"}, False),
        (b"<html>", {"Content-Type": "text/html"}, False),
        (b"{}", {"Content-Type": "text/html"}, False),
        (b"not JSON", INDEX, False),
        (b"[]", INDEX, False),
        (b"{}" + b" " * (MAX_MANIFEST - 2), INDEX, True),
        (b"{}" + b" " * (MAX_MANIFEST - 1), INDEX, False),
    ],
)
def test_malformed_manifest_is_502_and_not_kept(content: bytes, headers: Any, works: bool) -> None:
    proxy, _ = canned({MANIFEST: (200, headers, content)})
    response = proxy.get(MANIFEST)
    if works:
        assert response.data == content
        digest = headers.get("Docker-Content-Digest") or digest_of(content)
        assert response.headers["Docker-Content-Digest"] == digest
        assert response.content_type.endswith("+json")
    else:
        assert response.status_code == 502
        assert list(proxy.storage.repositories()) == []


def test_manifest_with_another_digest_is_502() -> None:
    proxy, upstream = canned({f"/v2/a/manifests/{SHA256}": (200, INDEX, b"{}")})
    assert proxy.get(f"/v2/a/manifests/{SHA256}").status_code == 502
    assert list(proxy.storage.repositories()) == []
    for path in "/v2/a/manifests/md5:x", "/v2/a/blobs/md5:x":  # which cannot be verified
        assert proxy.get(path).status_code == 404
    assert len(upstream.sent) == 1


def test_client_gets_the_manifest_that_the_upstream_has_for_its_accept() -> None:
    """Even if another client, which accepts less, has just got an image of the index."""

    def negotiated(request: requests.PreparedRequest) -> Any:
        media_type = IMAGE_MANIFEST if request.headers["Accept"] == IMAGE_MANIFEST else IMAGE_INDEX
        content = json.dumps({"is": media_type}).encode()
        sent = {"Content-Type": media_type, "Docker-Content-Digest": digest_of(content)}
        return 200, sent, b"" if request.method == "HEAD" else content

    proxy, upstream = canned({MANIFEST: negotiated}, fresh_for=60)
    both = f"{IMAGE_INDEX}, {IMAGE_MANIFEST}"
    for accept in IMAGE_MANIFEST, both, IMAGE_MANIFEST, IMAGE_INDEX, "*/*", "application/*", None:
        headers = {"Accept": accept} if accept else {}
        response = proxy.get(MANIFEST, headers=headers)
        expected = IMAGE_MANIFEST if accept == IMAGE_MANIFEST else IMAGE_INDEX
        assert response.content_type == expected
        assert response.get_json(force=True) == {"is": expected}
        count = len(upstream.sent)
        proxy.get(MANIFEST, headers=headers)
        assert len(upstream.sent) == count  # for the same client it is fresh


def test_use_of_a_manifest_is_recorded_once_an_hour(upstream: ServedRegistry) -> None:
    class Counting(MemoryStorage):
        puts = 0

        def put_manifest(self, *arguments: Any, **options: Any) -> None:
            self.puts += 1
            super().put_manifest(*arguments, **options)

    storage = Counting()
    proxy = ProxyClient(upstream.url, storage=storage)
    path = f"/v2/library/nginx/manifests/{proxy.get(LATEST).headers['Docker-Content-Digest']}"
    for puts in 1, 2:
        for _ in range(3):
            assert proxy.get(path).status_code == 200
            assert proxy.head(LATEST).status_code == 200
        assert storage.puts == puts
        for key, when in proxy.views.used.items():
            proxy.views.used[key] = when - 3601
    assert list(storage.tags("library/nginx")) == ["latest"]


# Blobs.


def test_concurrent_requests_share_one_fetch(upstream: ServedRegistry, proxy: ProxyClient) -> None:
    for endpoint in "blob", "manifest":  # so that all are there before it comes
        upstream.fail(endpoint, "GET", timedelta(seconds=0.1))
    digests = all_at_once(40, lambda: digest_of(Client(proxy.app).get(BLOB, buffered=True).data))
    assert set(digests) == {digest_of(LAYER)}
    proxy.wait_until_done()
    assert proxy.get(BLOB).data == LAYER
    assert requests_to(upstream) == [GET_BLOB]
    statuses = all_at_once(20, lambda: Client(proxy.app).get(LATEST).status_code)
    assert statuses == [200] * 20
    assert requests_to(upstream).count(GET_MANIFEST) == 1


def test_blob_is_served_while_it_arrives() -> None:
    source = Slow()
    with slow(source) as proxy:
        first, second = (proxy.client.get(BLOB) for _ in range(2))
        assert first.content_length == len(LAYER)
        for response in first, second:
            begin = read_some(response, 500_000)
            assert LAYER.startswith(begin)
            assert len(begin) < len(LAYER)
        resumed = proxy.client.get(BLOB, headers={"Range": "bytes=400000-449999"})
        assert resumed.status_code == 206
        assert resumed.headers["Content-Range"] == f"bytes 400000-449999/{len(LAYER)}"
        assert resumed.data == LAYER[400000:450000]
        beyond = proxy.get(BLOB, headers={"Range": f"bytes={len(LAYER)}-"})
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (
            416,
            f"bytes */{len(LAYER)}",
        )
        source.go_on.set()
        assert proxy.get(BLOB, headers={"Range": "bytes=-7"}).data == LAYER[-7:]
        assert proxy.get(BLOB).data == LAYER
        for response in first, second, resumed:
            response.close()
        proxy.wait_until_done()
        assert len(source.begun) == 1
        assert proxy.has_blob(digest_of(LAYER))


@pytest.mark.parametrize("range_", [None, "bytes=0-"])
@pytest.mark.parametrize("says_length", [True, False])
@pytest.mark.parametrize("size", [0, 1, 1000, len(LAYER)])
def test_no_client_gets_the_whole_of_a_wrong_blob(
    size: int, says_length: bool, range_: str | None
) -> None:
    content = LAYER[:size]
    wrong = content[:-1] + bytes([~content[-1] & 255]) if content else b""
    source = Slow(wrong, says_length=says_length)
    source.go_on.set()
    path = f"/v2/library/nginx/blobs/{digest_of(content or b'not empty')}"
    with slow(source) as proxy:
        response = proxy.client.get(path, headers={"Range": range_} if range_ else {})
        if size == len(LAYER) and says_length:
            with pytest.raises(BrokenPipeError):
                _ = response.data
            assert response.status_code == (206 if range_ else 200)
        else:
            has_no_range = range_ and says_length and not size
            assert response.status_code == (416 if has_no_range else 502)
        response.close()
        proxy.wait_until_done()
        assert not proxy.has_blob(path.rpartition("/")[2])


def test_blob_that_is_cut_short_is_not_kept(upstream: ServedRegistry, proxy: ProxyClient) -> None:
    for path, content in (BLOB, LAYER), (SMALL_BLOB, SMALL):
        upstream.fail("blob", "GET", "body cut short")
        response = proxy.client.get(path)
        if content is LAYER:
            with pytest.raises(BrokenPipeError):
                _ = response.data
        else:
            assert response.status_code == 502
        response.close()
        proxy.wait_until_done()
        assert not proxy.has_blob(digest_of(content))
        assert proxy.get(path).data == content


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Encoding": "gzip", "Content-Length": str(len(gzip.compress(LAYER, 0, mtime=0)))},
        {"Transfer-Encoding": "chunked", "Content-Length": "5"},
        {"Content-Length": "nonsense"},
        {},
    ],
)
def test_meaningless_length_is_ignored(headers: dict[str, str]) -> None:
    content = gzip.compress(LAYER, 0, mtime=0) if "Content-Encoding" in headers else LAYER
    proxy, _ = canned({BLOB: (200, headers, content)})
    response = proxy.get(BLOB)
    assert (response.status_code, response.data) == (200, LAYER)
    assert response.content_length == len(LAYER)


def test_fetch_ends_when_its_last_client_has_left() -> None:
    source = Slow()
    with slow(source) as proxy:
        leaving = proxy.client.get(BLOB)
        read_some(leaving, 1)
        leaving.close()
        again = proxy.client.get(BLOB)  # before the fetch has ended
        source.go_on.set()
        assert again.data == LAYER
        again.close()
        assert len(source.begun) == 1
        proxy.wait_until_done()
        assert proxy.has_blob(digest_of(LAYER))
    source = Slow(bytes(30_000_000))
    with slow(source) as proxy:
        leaving = proxy.client.get(SMALL_BLOB)
        read_some(leaving, 1)
        leaving.close()
        source.go_on.set()
        assert source.ended.wait(5)
        assert source.sent < len(source.content) * 0.8  # the kernel takes some of it
        proxy.wait_until_done()


@given(
    blocks=st.lists(st.binary(min_size=1, max_size=9), max_size=6),
    is_wrong=st.booleans(),
    says_size=st.booleans(),
    ranges=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), min_size=1, max_size=4),
)
def test_every_reader_gets_its_range_or_an_error(
    blocks: list[bytes], is_wrong: bool, says_size: bool, ranges: list[tuple[int, int]]
) -> None:
    whole, kept = b"".join(blocks), []

    def arriving() -> Iterator[bytes]:
        yield from blocks
        if is_wrong:
            raise BadGateway

    def make_fetch() -> Fetch:
        source = Source(len(whole) if says_size else None, arriving())
        return Fetch(lambda: source, lambda content: kept.append(b"".join(content)))

    fetches = Fetches()

    def read(start: int, end: int) -> bytes:
        fetch = fetches.join("key", make_fetch)
        received = b""
        try:
            assert fetch.size() == len(whole)
            end = min(end, len(whole))
            for block in fetch.read(min(start, end), end):
                received += block
        except (BadGateway, BrokenPipeError):
            assert is_wrong
            assert len(received) < max(end - start, 1)
        else:
            assert received == whole[start:end]
            assert not is_wrong or end < len(whole)
        finally:
            fetches.leave(fetch)
        return received

    with ThreadPoolExecutor(len(ranges)) as pool:
        for job in [pool.submit(read, *bounds) for bounds in ranges]:
            assert job.result() in whole
    while fetches._running:
        time.sleep(0.001)
    assert all(content == whole and not is_wrong for content in kept)


def test_stalled_upstream_leaves_threads_for_other_requests(upstream: ServedRegistry) -> None:
    source = Slow()
    with serve(source) as stalling:
        proxy = ProxyClient(upstream.url, stalling.url)
        assert proxy.get(SMALL_BLOB).data == SMALL
        proxy.views.places = threading.BoundedSemaphore(3)
        stalled = [proxy.client.get(f"{BLOB}?ns={stalling.host}") for _ in range(2)]
        assert proxy.get("/v2/library/nginx/tags/list").status_code == 200
        stalled.append(proxy.client.get(f"{BLOB}?ns={stalling.host}"))
        for path in LATEST, f"{BLOB}?ns={stalling.host}", "/v2/library/nginx/tags/list":
            refused = proxy.get(path)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert refused.get_json()["errors"][0]["code"] == "UNAVAILABLE"
        assert proxy.get(SMALL_BLOB).data == SMALL
        assert not source.ended.is_set()
        source.go_on.set()
        for response in stalled:
            assert response.data == LAYER
            response.close()
        for path in LATEST, "/v2/library/nginx/tags/list":
            assert [proxy.get(path).status_code for _ in range(4)] == [200] * 4
        assert proxy.head(BLOB).status_code == 200


def test_stalled_upstream_times_out() -> None:
    with slow(Slow(), timeout=0.2) as proxy:
        stalled = proxy.client.get(BLOB)
        with pytest.raises(BrokenPipeError):
            _ = stalled.data
        stalled.close()
        proxy.wait_until_done()
        assert not proxy.has_blob(digest_of(LAYER))


# The storage.


class Failing(MemoryStorage):
    """A storage whose writes fail."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def put_blob(self, *arguments: Any) -> None:
        raise self.error

    def put_manifest(self, *arguments: Any, **options: Any) -> None:
        raise self.error


@pytest.mark.parametrize("error", [OSError("the disk is full"), MissingError("a blob is deleted")])
def test_failed_write_fails_no_pull(upstream: ServedRegistry, error: Exception) -> None:
    proxy = ProxyClient(upstream.url, storage=Failing(error))
    paths = [LATEST] if isinstance(error, MissingError) else [BLOB, LATEST, BLOB, SMALL_BLOB]
    for path in paths:
        assert proxy.get(path).status_code == 200
        proxy.wait_until_done()


def test_unreadable_storage_is_503(upstream: ServedRegistry) -> None:
    class Broken(MemoryStorage):
        def manifest(self, name: str, digest: str) -> Any:
            raise OSError("the disk is gone")

    proxy = ProxyClient(upstream.url, storage=Broken())
    response = proxy.get(f"/v2/a/manifests/{SHA256}?ns={upstream.host}")
    assert response.status_code == 503
    assert response.headers["OCI-Namespace"] == upstream.host
    assert response.get_json()["errors"][0]["code"] == "UNAVAILABLE"


def test_blob_that_has_just_arrived_is_not_fetched_again(upstream: ServedRegistry) -> None:
    class Late(MemoryStorage):
        """A storage in which a blob appears right after a request has looked for it."""

        looked = 0

        def open_blob(self, name: str, digest: str) -> Blob:
            self.looked += 1
            if self.looked == 1:
                self.put_blob(name, digest, [LAYER])
                raise MissingError(digest)
            return super().open_blob(name, digest)

    assert ProxyClient(upstream.url, storage=Late()).get(BLOB).data == LAYER
    assert upstream.requests == []


def test_unused_images_are_collected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def collect(*options: str, place: str = str(tmp_path), status: int = 0) -> str:
        assert program.collect(["--storage", place, *options]) == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    with registry() as upstream:
        upstream.add_image("library/nginx:old", layers=[b"only in the old one", SMALL])
        storage = storage_at(str(tmp_path / upstream.host))
        proxy = ProxyClient(upstream.url, storage=storage)
        old = proxy.get(LATEST.replace("latest", "old")).get_json(force=True)
        new = proxy.get(LATEST).get_json(force=True)
        for manifest in old, new:
            for blob in [manifest["config"], *manifest["layers"]]:
                assert proxy.get(f"/v2/library/nginx/blobs/{blob['digest']}").status_code == 200
        proxy.wait_until_done()
        assert "  0 unreferenced contents" in collect("--older-than", "1h")
        long_ago = time.time() - 10_000
        for path in tmp_path.rglob("*"):
            if path.is_file():
                os.utime(path, (long_ago, long_ago))
        ProxyClient(upstream.url, storage=storage).get(LATEST)  # as after a restart
        dry = collect("--older-than", "1h", "--dry-run")
        assert dry.startswith(f"{upstream.host}: it would delete\n  1 manifests")
        done = collect("--older-than", "1h")
        assert done == dry.replace("it would delete", "deleted")
        kept = {blob["digest"] for blob in [new["config"], *new["layers"]]}
        gone = {blob["digest"] for blob in [old["config"], *old["layers"]]} - kept
        assert len(gone) == 2
        assert {digest for digest in kept | gone if proxy.has_blob(digest)} == kept
        assert list(storage.tags("library/nginx")) == ["latest"]
        assert proxy.get(LATEST.replace("latest", "old")).get_json(force=True) == old
    older = "--older-than", "1s"
    assert "no such directory" in collect(*older, place="/nothing", status=2)
    assert "in memory" in collect(*older, place="memory://", status=2)
