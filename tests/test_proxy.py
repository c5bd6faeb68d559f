"""The pull-through proxy of the examples: its requests, its cache and its failures."""

import argparse
import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from collection import Collection
from hypothesis import given
from hypothesis import strategies as st
from proxy import Proxy, make_app, place_of, users_of
from requests.adapters import BaseAdapter
from sharing import Fetch, Fetches, Source
from storage import ObjectStorage, storage_at
from upstream import Upstream
from urllib3 import HTTPResponse
from werkzeug.exceptions import BadGateway
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes import errors
from registry_routes.challenges import parse_challenges
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_INDEX, IMAGE_MANIFEST, parse_warnings
from registry_routes.paging import parse_next_link
from registry_routes.registry import MAX_MANIFEST, Blob, MemoryStorage, MissingError, Storage
from registry_routes.testing import ServedRegistry, serve

from . import oci_layout
from .nasty import SHA256
from .servers import EXAMPLES, debians_registry, example, files_of, podman_or_buildah, skopeo

LAYER = random.Random(17).randbytes(2_000_000)  # several blocks
BLOB = f"/v2/library/nginx/blobs/{digest_of(LAYER)}"
SMALL = b"a blob of one block"
SMALL_BLOB = f"/v2/library/nginx/blobs/{digest_of(SMALL)}"
LATEST = "/v2/library/nginx/manifests/latest"

SESSIONS: list[requests.Session] = []


@pytest.fixture(autouse=True)
def closed_sessions() -> Iterator[None]:
    yield
    for session in SESSIONS:
        session.close()
    SESSIONS.clear()


def upstream_at(url: str, storage: Storage, namespace: str = "", **options: Any) -> Upstream:
    upstream = Upstream(namespace or urlsplit(url).netloc, url, storage, **options)
    SESSIONS.append(upstream.session)
    return upstream


class Through:
    """A client of a proxy for an upstream, and what the proxy keeps."""

    def __init__(
        self, *urls: str, fresh_for: float = 0, timeout: float = 5, **options: Any
    ) -> None:
        self.storage: Storage = options.pop("storage", None) or MemoryStorage()
        upstreams = {
            urlsplit(url).netloc: upstream_at(url, self.storage, timeout=timeout, **options)
            for url in urls
        }
        self.proxy = Proxy(upstreams, fresh_for)
        self.upstream = upstreams[urlsplit(urls[0]).netloc]
        self.app = self.proxy.app()
        self.client = Client(self.app)

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, buffered=True, **options)

    def has_blob(self, digest: str) -> bool:
        try:
            self.storage.open_blob("library/nginx", digest)
        except MissingError:
            return False
        return True

    def wait_until_done(self) -> None:
        """Until no blob is on its way or is being kept."""
        end = time.monotonic() + 10
        while self.proxy.fetches._running:
            assert time.monotonic() < end
            time.sleep(0.005)


@contextmanager
def registry(**options: Any) -> Iterator[ServedRegistry]:
    with serve(**options) as upstream:
        upstream.add_image("library/nginx:latest", layers=[LAYER, SMALL])
        upstream.requests.clear()
        yield upstream


@pytest.fixture
def upstream() -> Iterator[ServedRegistry]:
    with registry() as one:
        yield one


@pytest.fixture
def through(upstream: ServedRegistry) -> Through:
    return Through(upstream.url)


def asked(upstream: ServedRegistry) -> list[tuple[str, str | None]]:
    return [(request.method, request.endpoint) for request in upstream.requests]


# What is kept, and what is asked.


def test_an_image_is_fetched_once_and_then_served_without_the_upstream() -> None:
    with registry() as upstream:
        through = Through(upstream.url)
        first = through.get(LATEST)
        digest = first.headers["Docker-Content-Digest"]
        assert digest == digest_of(first.data)
        assert through.get(BLOB).data == LAYER
        through.wait_until_done()
        assert asked(upstream) == [("GET", "manifest"), ("GET", "blob")]
    for path in LATEST, f"/v2/library/nginx/manifests/{digest}":
        again = through.get(path)
        assert (again.data, again.content_type) == (first.data, first.content_type)
        assert ("Warning" in again.headers) == (path == LATEST)
    assert through.get(BLOB).data == LAYER
    (said,) = parse_warnings(through.get(LATEST).headers["Warning"])
    assert said.endswith(": 502 Bad Gateway. library/nginx:latest may have changed meanwhile.")
    for path in SMALL_BLOB, "/v2/library/nginx/manifests/v2", "/v2/library/nginx/tags/list":
        response = through.get(path)
        assert response.status_code == 502
        assert "cannot be reached" in response.get_json()["errors"][0]["message"]


def test_it_keeps_what_it_has_in_any_storage(storage: Storage, upstream: ServedRegistry) -> None:
    through = Through(upstream.url, fresh_for=60, storage=storage)
    for _ in range(2):
        assert through.get(LATEST).status_code == 200
        assert through.get(BLOB).data == LAYER
        resumed = through.get(BLOB, headers={"Range": "bytes=1000000-"})
        assert resumed.data == LAYER[1000000:]
        through.wait_until_done()
    assert asked(upstream) == [("GET", "manifest"), ("GET", "blob")]


def test_a_stale_tag_is_checked_by_a_head(upstream: ServedRegistry, through: Through) -> None:
    first = through.get(LATEST).data
    assert through.get(LATEST).data == first
    assert asked(upstream) == [("GET", "manifest"), ("HEAD", "manifest")]
    upstream.add_image("library/nginx:latest", layers=[b"another"])
    assert through.get(LATEST).data != first
    assert asked(upstream)[2:] == [("HEAD", "manifest"), ("GET", "manifest")]
    assert through.get(f"/v2/library/nginx/manifests/{digest_of(first)}").data == first
    assert len(upstream.requests) == 4


def test_a_fresh_tag_is_not_asked_for(upstream: ServedRegistry) -> None:
    through = Through(upstream.url, fresh_for=60)
    for _ in range(3):
        assert "Warning" not in through.get(LATEST).headers
        assert through.client.head(LATEST).status_code == 200
    assert asked(upstream) == [("GET", "manifest")]


def test_not_every_request_waits_for_an_upstream_that_is_down(
    upstream: ServedRegistry, through: Through
) -> None:
    through.get(LATEST)
    through.proxy.fresh_for = 60
    upstream.fail("manifest", "HEAD", 503, times=None)
    for _ in range(3):
        assert "Warning" in through.get(LATEST).headers
    assert asked(upstream) == [("GET", "manifest"), ("HEAD", "manifest")]


def test_head_stays_head(upstream: ServedRegistry, through: Through) -> None:
    manifest = through.client.head(LATEST)
    assert int(manifest.headers["Content-Length"]) > 100
    assert manifest.content_type == IMAGE_MANIFEST
    assert manifest.headers["Docker-Content-Digest"].startswith("sha256:")
    blob = through.client.head(BLOB)
    assert int(blob.headers["Content-Length"]) == len(LAYER)
    assert blob.headers["Docker-Content-Digest"] == digest_of(LAYER)
    for path in LATEST, BLOB:
        assert through.client.head(path.replace("nginx", "other")).status_code == 404
    through.client.head("/v2/library/nginx/tags/list")
    assert {request.method for request in upstream.requests} == {"HEAD"}
    # Of a tag that has changed, too.
    through.get(LATEST)
    changed = upstream.add_image("library/nginx:latest", layers=[b"another"])
    upstream.requests.clear()
    assert through.client.head(LATEST).headers["Docker-Content-Digest"] == changed
    assert asked(upstream) == [("HEAD", "manifest")]


def test_a_tag_that_is_gone_is_gone(upstream: ServedRegistry, through: Through) -> None:
    through.get(LATEST)
    upstream.storage.delete_tag("library/nginx", "latest")
    assert through.get(LATEST).status_code == 404
    upstream.fail("manifest", "GET", 503, times=None)
    upstream.fail("manifest", "HEAD", 503, times=None)
    assert through.get(LATEST).status_code == 503


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
    upstream: ServedRegistry, through: Through, body: bytes, is_gone: bool, method: str
) -> None:
    kept = through.get(LATEST)
    digest = kept.headers["Docker-Content-Digest"]
    path = urlsplit(f"{through.upstream.urls.root}{LATEST}").path
    canned = Canned({path: lambda sent: (404, {}, b"" if sent.method == "HEAD" else body)})
    through.upstream.session.mount("http://", canned)
    answer = through.client.open(LATEST, method=method)
    if is_gone:
        assert answer.status_code == 404
        with pytest.raises(MissingError):
            through.storage.tag("library/nginx", "latest")
    else:
        assert answer.headers["Docker-Content-Digest"] == digest
        assert ": 404 " in parse_warnings(answer.headers["Warning"])[0]
        assert through.storage.tag("library/nginx", "latest") == digest


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
def test_an_upstream_that_fails(
    upstream: ServedRegistry, fault: Any, status: int, code: str, passed_on: dict[str, str]
) -> None:
    through = Through(upstream.url)
    through.upstream.session.mount("https://t.example/", Canned({}))  # it cannot be reached
    kept = through.get(LATEST)
    if isinstance(fault, timedelta):
        through.upstream.timeout = 0.1
    for method in "GET", "HEAD":
        upstream.fail("manifest", method, fault, times=None)
    stale = through.get(LATEST)
    assert (stale.status_code, stale.data) == (200, kept.data)
    assert f": {status} " in parse_warnings(stale.headers["Warning"])[0]
    failed = through.get("/v2/library/nginx/manifests/other")
    assert failed.status_code == status
    assert failed.get_json()["errors"][0]["code"] == code
    assert passed_on.items() <= dict(failed.headers).items()
    assert "WWW-Authenticate" not in failed.headers
    upstream.fail("blob", "GET", fault)
    assert through.get(BLOB).status_code == status
    upstream.fail("tags", "GET", fault)
    assert through.get("/v2/library/nginx/tags/list").status_code == status


# Malformed manifests.

INDEX = {"Content-Type": IMAGE_INDEX}


class Canned(BaseAdapter):
    """Answers the requests of a session by paths, without a network."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__()
        self.answers = answers
        self.sent: list[requests.PreparedRequest] = []

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:  # type: ignore[override]
        self.sent.append(request)
        assert request.url is not None
        answer = self.answers.get(urlsplit(request.url).path)
        if answer is None:
            raise requests.ConnectionError("it is away")
        status, headers, body = answer(request) if callable(answer) else answer
        response = requests.Response()
        response.status_code, response.url, response.request = status, request.url, request
        response.headers.update(headers)
        response.raw = HTTPResponse(
            io.BytesIO(body), headers, status, preload_content=False, request_method=request.method
        )
        return response

    def close(self) -> None:
        pass


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
def test_a_malformed_manifest_is_not_kept(content: bytes, headers: Any, works: bool) -> None:
    through = Through("https://r.example")
    through.upstream.session.mount(
        "https://", Canned({"/v2/a/manifests/v1": (200, headers, content)})
    )
    response = through.get("/v2/a/manifests/v1")
    if works:
        assert response.data == content
        assert response.headers["Docker-Content-Digest"] == (
            headers.get("Docker-Content-Digest") or digest_of(content)
        )
        assert response.content_type.endswith("+json")
    else:
        assert response.status_code == 502
        assert list(through.storage.repositories()) == []


def test_a_manifest_has_the_digest_that_was_asked_for() -> None:
    through = Through("https://r.example")
    canned = Canned({f"/v2/a/manifests/{SHA256}": (200, INDEX, b"{}")})
    through.upstream.session.mount("https://", canned)
    assert through.get(f"/v2/a/manifests/{SHA256}").status_code == 502
    assert list(through.storage.repositories()) == []
    assert through.get("/v2/a/manifests/md5:x").status_code == 404
    assert through.get("/v2/a/blobs/md5:x").status_code == 404
    assert len(canned.sent) == 1


def test_a_client_gets_the_manifest_that_upstream_has_for_what_it_accepts() -> None:
    """Also if another client, which accepts less, has just got an image of the index."""

    def negotiated(request: requests.PreparedRequest) -> Any:
        media_type = IMAGE_MANIFEST if request.headers["Accept"] == IMAGE_MANIFEST else IMAGE_INDEX
        content = json.dumps({"is": media_type}).encode()
        sent = {"Content-Type": media_type, "Docker-Content-Digest": digest_of(content)}
        return 200, sent, b"" if request.method == "HEAD" else content

    through = Through("https://r.example", fresh_for=60)
    canned = Canned({"/v2/a/manifests/v1": negotiated})
    through.upstream.session.mount("https://", canned)
    both = f"{IMAGE_INDEX}, {IMAGE_MANIFEST}"
    for accept in IMAGE_MANIFEST, both, IMAGE_MANIFEST, IMAGE_INDEX, "*/*", "application/*", None:
        response = through.get("/v2/a/manifests/v1", headers={"Accept": accept} if accept else {})
        expected = IMAGE_MANIFEST if accept == IMAGE_MANIFEST else IMAGE_INDEX
        assert response.content_type == expected
        assert response.get_json(force=True) == {"is": expected}
        asked_for = len(canned.sent)
        through.get("/v2/a/manifests/v1", headers={"Accept": accept} if accept else {})
        assert len(canned.sent) == asked_for  # the same client asks for what is fresh


def test_a_head_without_a_length_has_none() -> None:
    through = Through("https://r.example")
    canned = Canned({f"/v2/a/blobs/{SHA256}": (200, {}, b"")})
    canned.answers["/v2/a/manifests/v1"] = (200, INDEX, b"")
    through.upstream.session.mount("https://", canned)
    for path in canned.answers:
        head = through.client.head(path)
        assert head.status_code == 200
        assert "Content-Length" not in head.headers


# Blobs.


def all_at_once(count: int, act: Callable[[], Any]) -> list[Any]:
    """The results of threads that start at the same time."""
    barrier = threading.Barrier(count)

    def together() -> Any:
        barrier.wait(30)
        return act()

    with ThreadPoolExecutor(count) as pool:
        return [job.result() for job in [pool.submit(together) for _ in range(count)]]


def test_concurrent_requests_for_a_blob_share_one_fetch(
    upstream: ServedRegistry, through: Through
) -> None:
    upstream.fail("blob", "GET", timedelta(seconds=0.1))  # so that all are there before it comes
    digests = all_at_once(40, lambda: digest_of(Client(through.app).get(BLOB, buffered=True).data))
    assert set(digests) == {digest_of(LAYER)}
    assert asked(upstream) == [("GET", "blob")]
    through.wait_until_done()
    assert through.get(BLOB).data == LAYER
    assert len(upstream.requests) == 1


def test_concurrent_requests_for_a_tag_ask_once(upstream: ServedRegistry, through: Through) -> None:
    upstream.fail("manifest", "GET", timedelta(seconds=0.1))
    statuses = all_at_once(20, lambda: Client(through.app).get(LATEST).status_code)
    assert statuses == [200] * 20
    assert asked(upstream)[0] == ("GET", "manifest")
    assert ("GET", "manifest") not in asked(upstream)[1:]


class Slow:
    """An upstream whose blob comes in two halves, the second when it is told to."""

    def __init__(self, content: bytes = LAYER, *, says_length: bool = True) -> None:
        self.content = content
        self.says_length = says_length
        self.go_on = threading.Event()
        self.begun: list[str] = []
        self.ended = threading.Event()
        self.sent = 0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        self.begun.append(environ["PATH_INFO"])
        response = Response(self.halves(), mimetype="application/octet-stream")
        if self.says_length:
            response.content_length = len(self.content)
        return response(environ, start_response)

    def halves(self) -> Iterator[bytes]:
        half = len(self.content) // 2
        try:
            yield self.content[:half]
            self.go_on.wait(10)
            for start in range(half, len(self.content), 65536):
                yield self.content[start : start + 65536]
                self.sent = start
                time.sleep(0.0005)
        finally:
            self.ended.set()


@contextmanager
def slow(slow: Slow, **options: Any) -> Iterator[Through]:
    with serve(slow) as upstream:
        try:
            yield Through(upstream.url, **options)
        finally:
            slow.go_on.set()


def some_of(response: Any, size: int) -> bytes:
    """The first bytes of a response's body, as soon as they come."""
    received = b""
    for block in response.iter_encoded():
        received += block
        if len(received) >= size:
            break
    return received


def test_a_blob_is_served_while_it_arrives() -> None:
    source = Slow()
    with slow(source) as through:
        first, second = (through.client.get(BLOB) for _ in range(2))
        assert first.content_length == len(LAYER)
        for response in first, second:
            begin = some_of(response, 500_000)
            assert LAYER.startswith(begin)
            assert len(begin) < len(LAYER)
        resumed = through.client.get(BLOB, headers={"Range": "bytes=400000-449999"})
        assert resumed.status_code == 206
        assert resumed.headers["Content-Range"] == f"bytes 400000-449999/{len(LAYER)}"
        assert resumed.data == LAYER[400000:450000]
        source.go_on.set()
        assert through.get(BLOB).data == LAYER
        for response in first, second, resumed:
            response.close()
        through.wait_until_done()
        assert len(source.begun) == 1
        assert through.has_blob(digest_of(LAYER))


@pytest.mark.parametrize(
    ("range_", "start", "end"), [("bytes=5-", 5, None), ("bytes=-7", -7, None), ("bytes=2-3", 2, 4)]
)
def test_a_pull_can_be_resumed(through: Through, range_: str, start: int, end: int | None) -> None:
    for is_kept in False, True:
        assert through.has_blob(digest_of(LAYER)) == is_kept
        response = through.get(BLOB, headers={"Range": range_})
        assert response.status_code == 206
        assert response.data == LAYER[start:end]
        through.get(BLOB)  # which a client that leaves early does not wait for
        through.wait_until_done()
        beyond = through.get(BLOB, headers={"Range": f"bytes={len(LAYER)}-"})
        assert beyond.status_code == 416
        assert beyond.headers["Content-Range"] == f"bytes */{len(LAYER)}"


def spoilt(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("size", [0, 1, 1000, len(LAYER)])
@pytest.mark.parametrize("says_length", [True, False])
@pytest.mark.parametrize("range_", [None, "bytes=0-"])
def test_no_client_gets_the_whole_of_a_wrong_blob(
    size: int, says_length: bool, range_: str | None
) -> None:
    content = LAYER[:size]
    source = Slow(
        content[:-1] + bytes([~content[-1] & 255]) if content else b"", says_length=says_length
    )
    source.go_on.set()
    path = f"/v2/library/nginx/blobs/{digest_of(content or b'not empty')}"
    with slow(source) as through:
        response = through.client.get(path, headers={"Range": range_} if range_ else {})
        if size == len(LAYER) and says_length:
            with pytest.raises(BrokenPipeError):
                _ = response.data
            assert response.status_code == (206 if range_ else 200)
        else:
            has_no_range = range_ and says_length and not size
            assert response.status_code == (416 if has_no_range else 502)
        response.close()
        through.wait_until_done()
        assert not through.has_blob(path.rpartition("/")[2])


@pytest.mark.parametrize("content", [LAYER, SMALL])
def test_a_blob_that_is_cut_short_is_not_kept(content: bytes) -> None:
    path = f"/v2/library/nginx/blobs/{digest_of(content)}"
    with registry() as upstream:
        through = Through(upstream.url)
        upstream.fail("blob", "GET", "body cut short")
        response = through.client.get(path)
        if content is LAYER:
            with pytest.raises(BrokenPipeError):
                _ = response.data
        else:
            assert response.status_code == 502
        response.close()
        through.wait_until_done()
        assert not through.has_blob(digest_of(content))
        assert through.get(path).data == content


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Encoding": "gzip", "Content-Length": str(len(gzip.compress(LAYER, 0, mtime=0)))},
        {"Transfer-Encoding": "chunked", "Content-Length": "5"},
        {"Content-Length": "nonsense"},
        {},
    ],
)
def test_a_meaningless_length_is_ignored(headers: dict[str, str]) -> None:
    content = gzip.compress(LAYER, 0, mtime=0) if "Content-Encoding" in headers else LAYER
    through = Through("https://r.example")
    through.upstream.session.mount("https://", Canned({BLOB: (200, headers, content)}))
    response = through.get(BLOB)
    assert (response.status_code, response.data) == (200, LAYER)
    assert response.content_length == len(LAYER)


def test_a_fetch_continues_until_its_last_client_has_left() -> None:
    source = Slow()
    with slow(source) as through:
        leaving, staying = (through.client.get(BLOB) for _ in range(2))
        some_of(leaving, 1)
        leaving.close()
        source.go_on.set()
        assert staying.data == LAYER
        staying.close()
        through.wait_until_done()
        assert through.has_blob(digest_of(LAYER))
    source = Slow()
    with slow(source) as through:
        leaving = through.client.get(BLOB)
        some_of(leaving, 1)
        leaving.close()
        again = through.client.get(BLOB)  # before it has ended
        source.go_on.set()
        assert again.data == LAYER
        again.close()
        assert len(source.begun) == 1
    source = Slow(bytes(30_000_000))
    with slow(source) as through:
        leaving = through.client.get(SMALL_BLOB)
        some_of(leaving, 1)
        leaving.close()
        source.go_on.set()
        assert source.ended.wait(5)
        assert source.sent < len(source.content) * 0.8  # the kernel takes some of it
        through.wait_until_done()


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

    def come() -> Iterator[bytes]:
        yield from blocks
        if is_wrong:
            raise BadGateway

    fetches = Fetches()
    size = len(whole) if says_size else None

    def read(start: int, end: int) -> bytes:
        fetch = fetches.join(
            "key", lambda: Fetch(lambda: Source(size, come()), lambda it: kept.append(b"".join(it)))
        )
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
        for job in [pool.submit(read, *one) for one in ranges]:
            assert job.result() in whole
    while fetches._running:
        time.sleep(0.001)
    assert all(one == whole and not is_wrong for one in kept)


def test_an_upstream_that_stalls_does_not_delay_other_requests(upstream: ServedRegistry) -> None:
    source = Slow()
    with serve(source) as stalling:
        through = Through(upstream.url, stalling.url)
        stalled = through.client.get(f"{BLOB}?ns={stalling.host}")
        assert through.get(BLOB).data == LAYER
        assert through.get(LATEST).status_code == 200
        assert not source.ended.is_set()
        source.go_on.set()
        assert stalled.data == LAYER
        stalled.close()


def test_a_stalled_upstream_leaves_threads_for_what_is_kept(upstream: ServedRegistry) -> None:
    source = Slow()
    with serve(source) as stalling:
        through = Through(upstream.url, stalling.url)
        assert through.get(SMALL_BLOB).data == SMALL
        through.proxy.places = threading.BoundedSemaphore(2)
        stalled = [through.client.get(f"{BLOB}?ns={stalling.host}") for _ in range(2)]
        for path in LATEST, f"{BLOB}?ns={stalling.host}", "/v2/library/nginx/tags/list":
            refused = through.get(path)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert refused.get_json()["errors"][0]["code"] == "UNAVAILABLE"
        assert through.get(SMALL_BLOB).data == SMALL
        source.go_on.set()
        for one in stalled:
            assert one.data == LAYER
            one.close()
        for path in LATEST, "/v2/library/nginx/tags/list":
            assert [through.get(path).status_code for _ in range(3)] == [200] * 3
        assert through.get(BLOB, method="HEAD").status_code == 200


def test_an_upstream_that_stalls_times_out() -> None:
    source = Slow()
    with slow(source, timeout=0.2) as through:
        stalled = through.client.get(BLOB)
        with pytest.raises(BrokenPipeError):
            _ = stalled.data
        stalled.close()
        through.wait_until_done()
        assert not through.has_blob(digest_of(LAYER))


def test_the_use_of_a_manifest_is_recorded_once_an_hour(upstream: ServedRegistry) -> None:
    class Counting(MemoryStorage):
        puts = 0

        def put_manifest(self, *arguments: Any, **options: Any) -> None:
            self.puts += 1
            super().put_manifest(*arguments, **options)

    storage = Counting()
    through = Through(upstream.url, storage=storage)
    path = f"/v2/library/nginx/manifests/{through.get(LATEST).headers['Docker-Content-Digest']}"
    for puts in 1, 2:
        for _ in range(3):
            assert through.get(path).status_code == 200
            assert through.client.head(LATEST).status_code == 200
        assert storage.puts == puts
        for key, when in through.proxy.used.items():
            through.proxy.used[key] = when - 3601
    assert list(storage.tags("library/nginx")) == ["latest"]


def test_a_storage_that_fails_fails_no_pull(upstream: ServedRegistry) -> None:
    class Full(MemoryStorage):
        def put_blob(self, *arguments: Any) -> None:
            raise OSError("the disk is full")

        def put_manifest(self, *arguments: Any, **options: Any) -> None:
            raise OSError("the disk is full")

    through = Through(upstream.url, storage=Full())
    for path, expected in (BLOB, 200), (LATEST, 200), (BLOB, 200), (SMALL_BLOB, 200):
        assert through.get(path).status_code == expected
        through.wait_until_done()


def test_a_storage_that_cannot_be_read_is_a_503(upstream: ServedRegistry) -> None:
    class Broken(MemoryStorage):
        def manifest(self, name: str, digest: str) -> Any:
            raise OSError("the disk is gone")

    through = Through(upstream.url, storage=Broken())
    response = through.get(f"/v2/a/manifests/{SHA256}?ns={upstream.host}")
    assert response.status_code == 503
    assert response.headers["OCI-Namespace"] == upstream.host
    assert response.get_json()["errors"][0]["code"] == "UNAVAILABLE"


def test_a_manifest_that_arrives_during_a_collection_is_served(upstream: ServedRegistry) -> None:
    class Collecting(MemoryStorage):
        def put_manifest(self, *arguments: Any, **options: Any) -> None:
            raise MissingError("a blob is being deleted")

    through = Through(upstream.url, storage=Collecting())
    assert through.get(LATEST).status_code == 200


def test_a_blob_that_has_just_arrived_is_not_fetched_again(upstream: ServedRegistry) -> None:
    class Late(MemoryStorage):
        """A storage in which a blob appears right after a request has looked for it."""

        looked = 0

        def open_blob(self, name: str, digest: str) -> Blob:
            self.looked += 1
            if self.looked == 1:
                self.put_blob(name, digest, [LAYER])
                raise MissingError(digest)
            return super().open_blob(name, digest)

    through = Through(upstream.url, storage=Late())
    assert through.get(BLOB).data == LAYER
    assert upstream.requests == []


# Credentials.


def test_a_token_is_used_until_it_ends() -> None:
    with registry(users={"alice": "secret"}, auth="bearer") as upstream:
        upstream.add_image("other:latest", layers=[SMALL])
        through = Through(upstream.url, user=("alice", "secret"))
        for _ in range(3):
            assert through.get(LATEST).status_code == 200
            assert through.get("/v2/other/manifests/latest").status_code == 200
        all_at_once(20, lambda: Client(through.app).get(BLOB, buffered=True).status_code)
        assert Counter(asked(upstream))["GET", "token"] == 2  # one a scope
        scopes = [one.args["scope"] for one in upstream.requests if one.endpoint == "token"]
        assert scopes == ["repository:library/nginx:pull", "repository:other:pull"]
        for scope, grant in through.upstream.grants.items():
            through.upstream.grants[scope] = grant._replace(end=0)
        before = len(upstream.requests)
        assert all_at_once(20, lambda: Client(through.app).get(LATEST).status_code) == [200] * 20
        assert Counter(asked(upstream)[before:])["GET", "token"] == 1
        assert 401 not in [one.status for one in upstream.requests[before:]]


def test_a_token_that_is_no_longer_accepted_is_replaced() -> None:
    with registry(auth="bearer") as upstream:
        through = Through(upstream.url)
        assert through.get(LATEST).status_code == 200
        upstream.fail(
            "manifest",
            "HEAD",
            errors.Unauthorized(
                realm=f"{upstream.url}/token",
                service="registry",
                scope="repository:library/nginx:pull",
                error="invalid_token",
            ),
        )
        assert "Warning" not in through.get(LATEST).headers
        assert Counter(asked(upstream))["GET", "token"] == 2


@pytest.mark.parametrize(
    ("fault", "status"), [(404, 502), (500, 502), (401, 403), (429, 429), ("body cut short", 502)]
)
def test_a_token_server_that_fails(fault: Any, status: int) -> None:
    with registry(auth="bearer") as upstream:
        storage = MemoryStorage()
        kept = Through(upstream.url, storage=storage).get(LATEST).data
        upstream.fail("token", "GET", fault, times=2)
        through = Through(upstream.url, storage=storage)
        response = through.get(LATEST)
        assert (response.status_code, response.data) == (200, kept)
        assert f": {status} " in response.headers["Warning"]
        assert through.get(BLOB).status_code == status
        assert "Warning" not in through.get(LATEST).headers


def test_tokens_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upstream.MAX_TOKENS", 3)
    with registry(auth="bearer") as upstream:
        through = Through(upstream.url)
        for number in range(8):
            assert through.get(f"/v2/a{number}/manifests/v1").status_code == 404
            assert len(through.upstream.grants) <= 3


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_an_account_that_is_refused(auth: Any) -> None:
    with registry(users={"alice": "secret"}, auth=auth) as upstream:
        for user in None, ("alice", "wrong"):  # the client's own is not sent on
            response = Through(upstream.url, user=user).get(LATEST, auth=("alice", "secret"))
            assert response.status_code == 403
            assert "WWW-Authenticate" not in response.headers
            assert b64encode(b"alice:secret").decode() not in str(upstream.requests)
        through = Through(upstream.url, user=("alice", "secret"))
        assert through.get(LATEST).status_code == 200
        assert through.get(BLOB).data == LAYER


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_no_credentials_are_sent_to_the_target_of_a_redirect(auth: Any) -> None:
    with registry(users={"alice": "secret"}, auth=auth, redirect_blobs=True) as upstream:
        through = Through(upstream.url, user=("alice", "secret"))
        assert through.client.head(BLOB).content_length == len(LAYER)
        assert through.get(BLOB).data == LAYER
        stored = [one for one in upstream.requests if one.endpoint == "storage"]
        assert [one.method for one in stored] == ["HEAD", "GET"]
        assert not any("Authorization" in one.headers for one in stored)


@pytest.mark.parametrize(
    ("answers", "reached"),
    [
        # A redirect from https to http, to another host and back, without end, to nowhere.
        ({BLOB: (307, {"Location": "http://r.example/other"}, b"")}, [BLOB]),
        ({BLOB: (307, {"Location": "//cdn.example/x"}, b"")}, [BLOB, "/x"]),
        (
            {
                BLOB: (307, {"Location": "//cdn.example/x"}, b""),
                "/x": (307, {"Location": "https://r.example/y"}, b""),
            },
            [BLOB, "/x", "/y"],
        ),
        ({BLOB: (307, {"Location": BLOB}, b"")}, [BLOB] * 6),
        ({BLOB: (307, {"Location": "https:///x"}, b"")}, [BLOB]),
        ({BLOB: (307, {}, b"")}, [BLOB]),
        # A token server by plain http.
        ({BLOB: (401, {"WWW-Authenticate": 'Bearer realm="http://r.example/token"'}, b"")}, [BLOB]),
    ],
)
def test_where_credentials_never_go(answers: dict[str, Any], reached: list[str]) -> None:
    through = Through("https://r.example", user=("alice", "secret"))
    canned = Canned(answers)
    for scheme in "https://", "http://":
        through.upstream.session.mount(scheme, canned)
    (basic,) = parse_challenges('Basic realm="r"')
    known = through.upstream._renewed("repository:library/nginx:pull", basic, None)
    assert through.get(BLOB).status_code == 502
    assert [urlsplit(str(one.url)).path for one in canned.sent] == reached
    has_left = False
    for one in canned.sent:
        assert str(one.url).startswith("https://")
        has_left = has_left or urlsplit(str(one.url)).netloc != "r.example"
        assert one.headers.get("Authorization") == (None if has_left else known)


@pytest.mark.parametrize("challenge", ['Basic realm="r"', 'Bearer realm="https://r.example/token"'])
def test_a_challenge_from_elsewhere_is_not_answered(challenge: str) -> None:
    through = Through("https://r.example", user=("alice", "secret"))
    canned = Canned(
        {
            BLOB: (307, {"Location": "https://cdn.example/x"}, b""),
            "/x": (401, {"WWW-Authenticate": challenge}, b""),
        }
    )
    through.upstream.session.mount("https://", canned)
    response = through.get(BLOB)
    assert response.status_code == 403
    assert "WWW-Authenticate" not in response.headers
    assert [urlsplit(str(one.url)).path for one in canned.sent] == [BLOB, "/x"]


def test_cookies_and_a_netrc_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine r.example login alice password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    through = Through("https://r.example")
    canned = Canned({LATEST: (200, {**INDEX, "Set-Cookie": "a=b"}, b"{}")})
    through.upstream.session.mount("https://", canned)
    for _ in range(2):
        through.get(LATEST)
    assert not any({"Authorization", "Cookie"} & one.headers.keys() for one in canned.sent)


# Several upstreams.


def test_the_namespace_chooses_the_upstream() -> None:
    with serve() as one, serve() as other:
        for upstream in one, other:
            upstream.add_image("a:latest", layers=[upstream.host.encode()])
        manifests = {}
        storages = MemoryStorage(), MemoryStorage()
        proxy = Proxy(
            {
                up.host: upstream_at(up.url, storage)
                for up, storage in zip((one, other), storages, strict=True)
            },
            60,
        )
        client = Client(proxy.app())
        for upstream in one, other:
            for _ in range(2):
                response = client.get(f"/v2/a/manifests/latest?ns={upstream.host}")
                assert response.headers["OCI-Namespace"] == upstream.host
                manifests[upstream.host] = response.data
            missing = client.get(f"/v2/b/manifests/latest?ns={upstream.host}")
            assert (missing.status_code, missing.headers["OCI-Namespace"]) == (404, upstream.host)
        assert manifests[one.host] != manifests[other.host]
        default = client.get("/v2/a/manifests/latest")
        assert default.data == manifests[one.host]
        assert "OCI-Namespace" not in default.headers
        assert all("ns" not in request.args for up in (one, other) for request in up.requests)


@pytest.mark.parametrize(
    "namespace",
    [
        "",
        "evil.example",
        "169.254.169.254",
        "127.0.0.1:1/../x",
        "é",
        "\u212ar.example",  # whose lower case is "kr.example"
        "a" * 5000,
        "\n",
    ],
)
@pytest.mark.parametrize("path", [LATEST, BLOB, "/v2/_catalog", "/v2/a/tags/list"])
def test_a_namespace_that_is_not_configured_is_never_asked(namespace: str, path: str) -> None:
    through = Through("https://kr.example")
    canned = Canned({})
    for scheme in "https://", "http://":
        through.upstream.session.mount(scheme, canned)
    response = through.get(path, query_string={"ns": namespace})
    assert response.status_code == 404
    assert response.get_json()["errors"][0]["code"] == "NAME_UNKNOWN"
    assert "OCI-Namespace" not in response.headers
    assert canned.sent == []


def test_docker_hubs_own_images_are_in_its_library() -> None:
    canned = Canned({LATEST: (200, INDEX, b"{}")})
    upstream = upstream_at("https://registry-1.docker.io", MemoryStorage(), "docker.io")
    upstream.session.mount("https://", canned)
    client = Client(Proxy({"docker.io": upstream}, 60).app())
    for path in "/v2/nginx/manifests/latest", LATEST, f"{LATEST}?ns=docker.io":
        assert client.get(path).status_code == 200
    assert [one.url for one in canned.sent] == [f"https://registry-1.docker.io{LATEST}"]
    assert list(upstream.storage.repositories()) == ["library/nginx"]
    long = f"/v2/{'a' * 256}/manifests/latest"
    assert client.get(long).get_json()["errors"][0]["code"] == "NAME_INVALID"


# Lists, and requests that are refused.


@pytest.mark.parametrize("namespace", [False, True])
def test_every_page_of_a_list_is_the_proxys(namespace: bool) -> None:
    with serve(page_size=1) as upstream:
        for tag in "v1", "v2", "v3":
            for name in "a", "b":
                upstream.add_image(f"{name}:{tag}")
        through = Through(upstream.url)
        query = f"?ns={upstream.host}" if namespace else ""
        for path, key, expected in (
            ("/v2/a/tags/list", "tags", ["v1", "v2", "v3"]),
            ("/v2/_catalog", "repositories", ["a", "b"]),
        ):
            found, url = [], f"{path}{query}"
            while True:
                response = through.get(url)
                found += response.get_json()[key]
                link = parse_next_link("http://proxy.example/", response.headers.get("Link"))
                if link is None:
                    break
                assert link.startswith(f"http://proxy.example{path}")
                assert ("ns=" in link) == namespace
                url = link.removeprefix("http://proxy.example")
            assert found == expected


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ('</v2/a/tags/list?next_page=x%2B%2F%3D&n=2>; rel="next"', "next_page=x%2B%2F%3D&n=2"),
        ('<https://r.example/m/v2/a/tags/list?x=1&x=2>; rel="next"', None),
        ("<http://internal:5000/v2/a/tags/list?last=b>; rel=next", "last=b"),
        ('<list?last=c>; rel="next"', "last=c"),
        ('</v2/a/tags/list?last=d>; rel="prev"', ""),
        ('</v2/_catalog?last=d>; rel="next"', None),
        ('<ftp://r.example/v2/a/tags/list>; rel="next"', None),
    ],
)
def test_a_link_leads_to_the_proxy_or_is_an_error(link: str, expected: str | None) -> None:
    through = Through("https://r.example")
    answers = {"/v2/a/tags/list": (200, {"Link": link, "Content-Type": "application/json"}, b"{}")}
    through.upstream.session.mount("https://", Canned(answers))
    response = through.get("/v2/a/tags/list")
    if expected is None:
        assert response.status_code == 502
    elif expected:
        assert response.headers["Link"] == f'</v2/a/tags/list?{expected}>; rel="next"'
    else:
        assert "Link" not in response.headers


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        ({"Content-Type": "application/json; charset=utf-8"}, "application/json; charset=utf-8"),
        ({"Content-Type": "application/vnd.oci.image.index.v1+json"}, None),
        ({"Content-Type": "text/html"}, "application/json"),
        ({}, "application/json"),
    ],
)
def test_a_list_is_never_a_page_for_a_browser(sent: dict[str, str], passed: str | None) -> None:
    through = Through("https://r.example")
    answers = {"/v2/a/tags/list": (200, sent, b"<script>")}
    through.upstream.session.mount("https://", Canned(answers))
    response = through.get("/v2/a/tags/list")
    assert response.headers["Content-Type"] == (passed or sent["Content-Type"])


def test_referrers_are_the_upstreams(upstream: ServedRegistry, through: Through) -> None:
    subject = upstream.add_image("library/nginx:latest")
    content = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "artifactType": "a/b",
            "subject": {"mediaType": IMAGE_MANIFEST, "digest": subject, "size": 1},
        }
    ).encode()
    pushed = requests.put(
        f"{upstream.url}/v2/library/nginx/manifests/{digest_of(content)}",
        content,
        headers={"Content-Type": IMAGE_MANIFEST},
        timeout=5,
    )
    assert pushed.status_code == 201
    path = f"/v2/library/nginx/referrers/{subject}"
    everything = through.get(path)
    assert everything.content_type == IMAGE_INDEX
    assert [one["digest"] for one in everything.get_json(force=True)["manifests"]] == [
        digest_of(content)
    ]
    filtered = through.get(path, query_string={"artifactType": "other/type"})
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    assert filtered.get_json(force=True)["manifests"] == []


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("PUT", LATEST, 405, "GET, HEAD"),
        ("DELETE", LATEST, 405, "GET, HEAD"),
        ("DELETE", BLOB, 405, "GET, HEAD"),
        ("POST", "/v2/library/nginx/blobs/uploads/", 405, ""),
        ("POST", "/v2/_catalog", 405, "GET, HEAD"),
        ("GET", "/v2/_oci/ext/discover", 404, None),
        ("GET", "/v2/library/nginx/_oci/ext/discover", 404, None),
        ("GET", "/v2/", 200, None),
    ],
)
def test_pushes_and_extensions_are_refused(
    through: Through, upstream: ServedRegistry, method: str, path: str, status: int, allow: str
) -> None:
    response = through.client.open(path, method=method)
    assert (response.status_code, response.headers.get("Allow")) == (status, allow)
    if status >= 400:
        assert response.get_json()["errors"][0]["code"] == "UNSUPPORTED"
    assert upstream.requests == []


# Collecting.


def test_images_that_were_not_used_lately_are_collected(tmp_path: Path) -> None:
    with registry() as upstream:
        upstream.add_image("library/nginx:old", layers=[b"only in the old one", SMALL])
        storage = storage_at(str(tmp_path))
        assert isinstance(storage, ObjectStorage)
        through = Through(upstream.url, storage=storage)
        old = through.get(LATEST.replace("latest", "old")).get_json(force=True)
        new = through.get(LATEST).get_json(force=True)
        for manifest in old, new:
            for one in [manifest["config"], *manifest["layers"]]:
                assert through.get(f"/v2/library/nginx/blobs/{one['digest']}").status_code == 200
        through.wait_until_done()
        long_ago = time.time() - 10_000
        for path in tmp_path.rglob("*"):
            if path.is_file():
                os.utime(path, (long_ago, long_ago))
        again = Through(upstream.url, storage=storage)  # as after a restart
        again.get(LATEST)
        dry = Collection(storage, 5000, with_manifests=True)
        assert next(dry.summary()).startswith("1 manifests")
        Collection(storage, 5000, with_manifests=True).delete()
        upstream.requests.clear()
        kept = {one["digest"] for one in [new["config"], *new["layers"]]}
        gone = {one["digest"] for one in [old["config"], *old["layers"]]} - kept
        assert len(gone) == 2
        assert {digest for digest in kept | gone if through.has_blob(digest)} == kept
        assert list(storage.tags("library/nginx")) == ["latest"]
        assert through.get(LATEST.replace("latest", "old")).get_json(force=True) == old


# The command line.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://registry-1.docker.io", ("docker.io", "https://registry-1.docker.io")),
        ("https://registry-1.docker.io/", ("docker.io", "https://registry-1.docker.io")),
        ("https://quay.io", ("quay.io", "https://quay.io")),
        ("http://127.0.0.1:5001", ("127.0.0.1:5001", "http://127.0.0.1:5001")),
        ("docker.io=https://mirror.example/hub", ("docker.io", "https://mirror.example/hub")),
        ("Quay.io=https://quay.io", ("quay.io", "https://quay.io")),
        ("https://r.example/a=b", ("r.example", "https://r.example/a=b")),
        ("quay.io", None),
        ("ftp://quay.io", None),
        ("registry=https://r.example", None),
        ("../x=https://r.example", None),
        ("https://user:secret@r.example", None),
        ("", None),
    ],
)
def test_an_upstream_on_the_command_line(text: str, expected: Any) -> None:
    if expected is None:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
            place_of(text)
    else:
        assert place_of(text) == expected


def test_the_accounts_of_the_environment() -> None:
    places = {"docker.io": "x", "h:5000": "y"}
    text = "docker.io=alice:se:cr=et\n\nh:5000=bob:x\n"
    assert users_of(text, places) == {"docker.io": ("alice", "se:cr=et"), "h:5000": ("bob", "x")}
    for text in "quay.io=alice:secret", "alice:secret", "docker.io=alicesecret":
        with pytest.raises(ValueError, match=r"UPSTREAM_USERS, account 1: ") as caught:
            users_of(text, places)
        assert "secret" not in str(caught.value)


# The program.


def test_a_worker_does_not_create_a_directory_that_has_vanished(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no such directory"):
        make_app({"h:1": "http://h:1"}, str(tmp_path / "unmounted"), {})
    assert list(tmp_path.iterdir()) == []


@contextmanager
def proxy_of(directory: Path, *urls: str, **options: Any) -> Iterator[str]:
    arguments = ["--storage", str(directory / "kept"), "--fresh-for", "0s", "--timeout", "5s"]
    for url in urls:
        arguments += ["--upstream", url]
    log = directory / "proxy-log"
    with example("proxy", log, *arguments, *options.pop("more", ()), clean=False) as host:
        yield host
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_skopeo_and_podman_pull_with_and_without_the_upstream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    oci_layout.write(image, [3_000_000, 100_000, 1, 0], ["amd64", "arm64"])
    with ExitStack() as stack:
        upstreams = stack.enter_context(ExitStack())
        storage = "--storage", str(tmp_path / "data"), "--user", "alice:secret"
        gateway = upstreams.enter_context(example("gateway", tmp_path / "log", *storage))
        monkeypatch.setenv("UPSTREAM_USERS", f"{gateway}=alice:secret")
        proxy = stack.enter_context(proxy_of(tmp_path, f"http://{gateway}"))
        skopeo(
            "copy --all --dest-tls-verify=false --dest-creds=alice:secret",
            *(f"oci:{image}:v1", f"docker://{gateway}/library/app:v1"),
        )
        # Docker Hub's mirror, as far as podman knows.
        registries = tmp_path / "registries.conf"
        registries.write_text(
            f'[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "{proxy}"\n'
            "insecure = true\n"
        )
        monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(registries))

        def pull_by_podman() -> str:
            with podman_or_buildah("podman") as run:
                return run("pull", "docker.io/library/app:v1")

        remote = f"docker://{proxy}/library/app"
        pull = "copy --all --src-tls-verify=false"
        pulled = pull_by_podman()
        skopeo(pull, f"{remote}:v1", f"oci:{tmp_path / 'with'}:v1")
        assert json.loads(skopeo("list-tags --tls-verify=false", remote))["Tags"] == ["v1"]
        refused = skopeo(
            "copy --dest-tls-verify=false", f"oci:{image}:v1", f"{remote}:v2", fails=True
        )
        assert "unsupported" in refused
        upstreams.close()
        assert pull_by_podman() == pulled
        skopeo(pull, f"{remote}:v1", f"oci:{tmp_path / 'without'}:v1")
        assert skopeo("list-tags --tls-verify=false", remote, fails=True)
    for copy in "with", "without":
        assert files_of(tmp_path / copy) == files_of(image)
    assert "The kept manifest is served." in (tmp_path / "proxy-log").read_text()


@pytest.mark.slow
def test_two_hundred_clients_share_several_workers(tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    with serve() as upstream:
        upstream.add_image("a:latest", layers=[content])
        upstream.requests.clear()
        upstream.fail("blob", "GET", timedelta(seconds=1), times=None)
        with proxy_of(tmp_path, upstream.url, more=["--workers", "2"]) as proxy:
            url = f"http://{proxy}/v2/a/blobs/{digest_of(content)}"
            got = all_at_once(200, lambda: digest_of(requests.get(url, timeout=60).content))
            assert set(got) == {digest_of(content)}
            assert len(upstream.requests) <= 2  # one a worker


@pytest.mark.slow
def test_a_gibibyte_in_bounded_memory(tmp_path: Path) -> None:
    size, block = 2**30, os.urandom(2**20)
    hashed = hashlib.sha256()
    for _ in range(size // len(block)):
        hashed.update(block)

    def huge(environ: Any, start_response: Any) -> Any:
        response = Response(block for _ in range(size // len(block)))
        response.content_length = size
        return response(environ, start_response)

    with serve(huge) as upstream, proxy_of(tmp_path, upstream.url) as proxy:
        url = f"http://{proxy}/v2/a/blobs/sha256:{hashed.hexdigest()}"
        for _ in range(2):
            jobs = all_at_once(
                2,
                lambda: (
                    subprocess.run(
                        ["curl", "-sSf", "-o", os.devnull, "-w", "%{size_download}", url],
                        check=True,
                        capture_output=True,
                        text=True,
                    ).stdout
                ),
            )
            assert jobs == [str(size)] * 2
        port = proxy.rpartition(":")[2]
        found = subprocess.run(["pgrep", "-f", f"port {port} "], capture_output=True, text=True)
        for pid in found.stdout.split():
            status = Path(f"/proc/{pid}/status").read_text()
            assert int(status.partition("VmHWM:")[2].split()[0]) < 150 * 1024  # KiB


@pytest.mark.slow
def test_a_client_of_the_program_never_gets_the_whole_of_a_wrong_blob(tmp_path: Path) -> None:
    for says_length in True, False:
        source = Slow(LAYER[:-1] + bytes([~LAYER[-1] & 255]), says_length=says_length)
        source.go_on.set()
        with serve(source) as upstream, proxy_of(tmp_path, upstream.url) as proxy:
            url = f"http://{proxy}{BLOB}"
            if says_length:
                with pytest.raises(
                    requests.exceptions.ChunkedEncodingError, match="IncompleteRead"
                ):
                    requests.get(url, timeout=10)
            else:
                assert requests.get(url, timeout=10).status_code == 502


@pytest.mark.slow
def test_the_program_ends_a_fetch_when_its_only_client_has_left(tmp_path: Path) -> None:
    source = Slow(os.urandom(60_000_000))
    with serve(source) as upstream, proxy_of(tmp_path, upstream.url) as proxy:
        url = f"http://{proxy}/v2/a/blobs/{digest_of(source.content)}"
        with requests.get(url, stream=True, timeout=10) as response:
            assert next(response.iter_content(1000)) == source.content[:1000]
        source.go_on.set()
        assert source.ended.wait(10)
        assert source.sent < len(source.content) * 0.8


@pytest.mark.slow
def test_debians_registry_as_upstream(tmp_path: Path) -> None:
    image = tmp_path / "image"
    oci_layout.write(image, [300_000, 1], ["amd64"], seed=1)
    with debians_registry(tmp_path) as debians, proxy_of(tmp_path, f"http://{debians}") as proxy:
        for tag in "v1", "v2", "v3":
            skopeo(
                "copy --dest-tls-verify=false", f"oci:{image}:v1", f"docker://{debians}/a/b:{tag}"
            )
        for _ in range(2):
            back = tmp_path / "back"
            shutil.rmtree(back, ignore_errors=True)
            skopeo("copy --src-tls-verify=false", f"docker://{proxy}/a/b:v1", f"oci:{back}:v1")
            assert files_of(back) == files_of(image)
        found, url = [], f"http://{proxy}/v2/a/b/tags/list?n=2"
        while url:
            page = requests.get(url, timeout=10)
            found += page.json()["tags"]
            url = parse_next_link(url, page.headers.get("Link")) or ""
        assert found == ["v1", "v2", "v3"]
        assert requests.get(f"http://{proxy}/v2/_catalog", timeout=10).json() == {
            "repositories": ["a/b"]
        }


@pytest.mark.slow
def test_the_collect_command(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "proxy.py"), "collect"]

    def collect(*options: str, status: int = 0) -> str:
        run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
        assert run.returncode == status, run.stderr
        return run.stdout if not status else run.stderr

    with registry() as upstream, proxy_of(tmp_path, upstream.url) as proxy:
        assert requests.get(f"http://{proxy}{LATEST}", timeout=10).ok
        assert requests.get(f"http://{proxy}{BLOB}", timeout=10).ok
        kept = "--storage", str(tmp_path / "kept")
        time.sleep(1.1)
        assert "0 manifests" not in collect(*kept, "--older-than", "1h")
        dry = collect(*kept, "--older-than", "1s", "--dry-run")
        assert f"{upstream.host}: it would delete" in dry
        done = collect(*kept, "--older-than", "1s")
        for printed in dry, done:
            assert "1 manifests" in printed
            assert "1 unreferenced contents, 2,000,000 bytes" in printed
        assert requests.get(f"http://{proxy}{BLOB}", timeout=10).content == LAYER
    assert "no such directory" in collect("--storage", "/nothing", "--older-than", "1s", status=2)
    assert "in memory" in collect("--storage", "memory://", "--older-than", "1s", status=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "users", "message"),
    [
        ([], "", "the following arguments are required: --upstream"),
        (["--upstream", "quay.io"], "", "must be a URL of http or https"),
        (["--upstream", "https://quay.io", "--fresh-for", "5"], "", "must be a number with"),
        (["--upstream", "https://quay.io"], "x=alice:secret", "the namespace must be quay.io"),
    ],
)
def test_a_wrong_command_line_is_an_error(
    options: list[str], users: str, message: str, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "proxy.py"), *options],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "UPSTREAM_USERS": users},
    )
    assert run.returncode == 2
    assert re.fullmatch(f"proxy.py: error: .*{re.escape(message)}.*\n", run.stderr)
    assert list(tmp_path.iterdir()) == []
