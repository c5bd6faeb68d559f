"""Blobs of the proxy of the examples: one fetch that many clients share, and what they get of it."""

import gzip
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sharing import Fetch, Fetches, Source
from werkzeug.exceptions import BadGateway
from werkzeug.test import Client

from registry_routes.digests import digest_of
from registry_routes.testing import ServedRegistry, serve

from .disks import fill_temporary_directory
from .proxies import (
    BLOB,
    LATEST,
    LAYER,
    SMALL,
    SMALL_BLOB,
    ProxyClient,
    Slow,
    all_at_once,
    canned,
    read_some,
    registry,
    requests_to,
    slow,
)
from .served import wait_until


def test_concurrent_requests_share_one_fetch(upstream: ServedRegistry, proxy: ProxyClient) -> None:
    for endpoint in "blob", "manifest":  # so that all are there before it comes
        upstream.fail(endpoint, "GET", timedelta(seconds=0.1))
    digests = all_at_once(20, lambda: digest_of(Client(proxy.app).get(BLOB, buffered=True).data))
    assert set(digests) == {digest_of(LAYER)}
    assert all_at_once(20, lambda: Client(proxy.app).get(LATEST).status_code) == [200] * 20
    found = requests_to(upstream)
    assert (found.count(("GET", "blob")), found.count(("GET", "manifest"))) == (1, 1)


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
        assert (resumed.status_code, resumed.data) == (206, LAYER[400000:450000])
        beyond = proxy.get(BLOB, headers={"Range": f"bytes={len(LAYER)}-"})
        assert beyond.headers["Content-Range"] == f"bytes */{len(LAYER)}"
        source.go_on.set()
        assert proxy.get(BLOB, headers={"Range": "bytes=-7"}).data == LAYER[-7:]
        for response in first, second, resumed:
            response.close()
        proxy.wait_until_done()
        assert len(source.begun) == 1
        assert proxy.has_blob(digest_of(LAYER))


@pytest.mark.parametrize(
    ("size", "says_length", "range_", "status"),
    [
        (0, True, None, 502),
        (1000, True, "bytes=0-", 502),
        (1000, False, None, 502),
        (len(LAYER), False, "bytes=0-", 502),
        (len(LAYER), True, None, 200),
        (len(LAYER), True, "bytes=0-", 206),
    ],
)
def test_no_client_gets_the_whole_of_a_wrong_blob(
    size: int, says_length: bool, range_: str | None, status: int
) -> None:
    wrong = LAYER[:size][:-1] + b"x" * bool(size)
    with slow(Slow(wrong, says_length=says_length, waits=False)) as proxy:
        response = proxy.client.get(BLOB, headers={"Range": range_} if range_ else {})
        assert response.status_code == status
        if status < 300:
            with pytest.raises(BrokenPipeError):
                _ = response.data
        response.close()
        proxy.wait_until_done()
        assert not proxy.has_blob(digest_of(LAYER))


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
        read_some(leaving, 500_000)  # now the fetch waits for the second half
        leaving.close()
        again = proxy.client.get(BLOB)  # before the fetch has ended
        source.go_on.set()
        assert again.data == LAYER
        again.close()
        assert len(source.begun) == 1
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
        return Fetch("blob", lambda: source, lambda content: kept.append(b"".join(content)))

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
        assert all(found in whole for found in pool.map(lambda bounds: read(*bounds), ranges))
    wait_until(lambda: not fetches._running)
    assert all(content == whole and not is_wrong for content in kept)


def test_stalled_upstream_leaves_threads_for_other_requests(upstream: ServedRegistry) -> None:
    source, tags = Slow(), "/v2/library/nginx/tags/list"
    with serve(source) as stalling:
        proxy = ProxyClient(upstream.url, stalling.url)
        assert proxy.get(SMALL_BLOB).data == SMALL
        proxy.views.places = threading.BoundedSemaphore(3)
        stalled = [proxy.client.get(f"{BLOB}?ns={stalling.host}") for _ in range(2)]
        assert proxy.get(tags).status_code == 200
        stalled.append(proxy.client.get(f"{BLOB}?ns={stalling.host}"))
        for path in LATEST, f"{BLOB}?ns={stalling.host}", tags:
            refused = proxy.get(path)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert refused.get_json()["errors"][0]["code"] == "UNAVAILABLE"
        assert proxy.get(SMALL_BLOB).data == SMALL
        assert not source.ended.is_set()
        source.go_on.set()
        for response in stalled:
            assert response.data == LAYER
            response.close()
        for path in LATEST, tags:
            assert [proxy.get(path).status_code for _ in range(4)] == [200] * 4


def test_more_clients_than_places_get_a_blob_that_has_been_fetched() -> None:
    """300 clients of a blob, whose places are given back when the upstream has answered."""
    source = Slow()
    with slow(source) as proxy:
        proxy.views.places = threading.BoundedSemaphore(2)
        readers = [proxy.client.get(BLOB) for _ in range(2)]
        assert proxy.head(BLOB).status_code == 503
        source.go_on.set()
        wait_until(lambda: proxy.head(BLOB).status_code == 200)  # nobody has read it, nor left
        readers += [proxy.client.get(BLOB) for _ in range(20)]
        assert [response.data == LAYER for response in readers] == [True] * 22
        for response in readers:
            response.close()
        proxy.wait_until_done()
        assert [proxy.views.places.acquire(blocking=False) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("size", "says_length", "status"),
    [(60_000_000, False, 502), (4_000_000, False, 200), (6_000_000, True, 200)],
)
def test_endless_blob_without_a_length_is_502(
    size: int, says_length: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upstream.MAX_UNSIZED", 5_000_000)
    source = Slow(bytes(size), says_length=says_length, waits=False)
    with slow(source) as proxy:
        assert proxy.get(f"/v2/a/blobs/{digest_of(source.content)}").status_code == status
        assert source.ended.wait(5)
        assert source.sent < 50_000_000


def test_stalled_upstream_times_out() -> None:
    with slow(Slow(), timeout=0.2) as proxy:
        stalled = proxy.client.get(BLOB)
        with pytest.raises(BrokenPipeError):
            _ = stalled.data
        stalled.close()
        proxy.wait_until_done()
        assert not proxy.has_blob(digest_of(LAYER))


def test_head_of_a_blob_at_a_url_signed_for_get() -> None:
    with registry(redirect_blobs=True) as upstream:
        upstream.fail("storage", "HEAD", 403, times=None)
        proxy = ProxyClient(upstream.url)
        head = proxy.head(BLOB)
        assert (head.status_code, head.data) == (200, b"")
        assert head.headers["Content-Length"] == str(len(LAYER))
        assert proxy.head(BLOB.replace("nginx", "other")).status_code == 404


@pytest.mark.parametrize(
    ("room", "says_length", "status"),
    [(None, True, 503), (0, True, 503), (1_500_000, False, 503), (1_500_000, True, 200)],
)
def test_full_temporary_directory_is_one_line_and_503(
    room: int | None,
    says_length: bool,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, count = Slow(says_length=says_length), 3
    with slow(source) as proxy, monkeypatch.context() as patch:
        opened = fill_temporary_directory(patch, tmp_path, room)
        joined = proxy.views.fetches.join

        def join(*arguments: Any) -> Fetch:
            fetch = joined(*arguments)
            if fetch.readers == count:
                source.go_on.set()
            return fetch

        patch.setattr(proxy.views.fetches, "join", join)
        if not room:
            source.go_on.set()
        answers = all_at_once(count, lambda: Client(proxy.app).get(BLOB))
        assert [answer.status_code for answer in answers] == [status] * count
        for answer in answers:
            if status == 200:
                with pytest.raises(BrokenPipeError):
                    _ = answer.data
            else:
                assert answer.get_json()["errors"][0]["code"] == "UNAVAILABLE"
            answer.close()
        proxy.wait_until_done()
        wait_until(lambda: all(file.closed for file in opened))
        assert source.ended.wait(5)
        logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(logged) == len(source.begun)  # once for each fetch, not for each client
        for record in logged:
            assert "No space left on device: '" in record.getMessage()
            assert digest_of(LAYER) in record.getMessage()
            assert record.exc_info is None
        patch.undo()
        proxy.views.places = places = threading.BoundedSemaphore(1)
        fill_temporary_directory(patch, tmp_path, None)
        for _ in range(2):
            refused = proxy.get(BLOB)
            assert (refused.status_code, "Retry-After" in refused.headers) == (503, False)
            proxy.wait_until_done()  # or the next client would get the same error
        assert places.acquire(blocking=False)
        places.release()
        patch.undo()
        assert proxy.get(BLOB).data == LAYER
        proxy.wait_until_done()
