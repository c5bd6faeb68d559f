"""What the proxy of the examples keeps: tags and manifests, with any storage, until it is collected."""

import json
import os
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import kept_tag
import proxy as program
import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage import storage_at
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import default_exceptions
from werkzeug.http import parse_accept_header

from registry_routes import errors
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_INDEX, IMAGE_MANIFEST, parse_warnings
from registry_routes.registry import (
    MAX_MANIFEST,
    Blob,
    Manifest,
    MemoryStorage,
    MissingError,
    Storage,
)
from registry_routes.testing import ServedRegistry, serve

from . import fakes
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
    canned,
    registry,
    requests_to,
)

GET_MANIFEST, HEAD_MANIFEST, GET_BLOB = ("GET", "manifest"), ("HEAD", "manifest"), ("GET", "blob")
MANIFEST = "/v2/a/manifests/v1"
V1 = "/v2/team/app/manifests/v1"
OFFICIAL = "/v2/library/app/manifests/v1"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
BOTH = f"{IMAGE_INDEX}, {IMAGE_MANIFEST}"


class Counting(MemoryStorage):
    """A storage that counts the writes of each media type."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: Counter[str] = Counter()

    def put_manifest(self, name: str, digest: str, manifest: Manifest, **options: Any) -> None:
        self.writes[manifest.media_type] += 1
        super().put_manifest(name, digest, manifest, **options)


def age(storage: Storage, seconds: float, tag: str = "latest") -> None:
    """Move the upstream's last answer for a tag `seconds` into the past."""
    entries = kept_tag.read(storage, "library/nginx", tag)
    aged = [entry._replace(confirmed=time.time() - seconds) for entry in entries]
    kept_tag.write(storage, "library/nginx", tag, aged)


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
    assert proxy.get(BLOB, headers={"Range": "bytes=1000000-"}).data == LAYER[1000000:]
    (said,) = parse_warnings(proxy.get(LATEST).headers["Warning"])
    assert said.endswith(": 502 Bad Gateway. library/nginx:latest may have changed since.")
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
    for _ in range(2):
        assert ("Warning" in proxy.get(LATEST).headers) == is_down
        assert proxy.head(LATEST).status_code == 200
    assert requests_to(upstream) == [GET_MANIFEST, *[HEAD_MANIFEST] * is_down]


def test_head_is_asked_by_head(upstream: ServedRegistry, proxy: ProxyClient) -> None:
    for path, digest in (
        (LATEST, upstream.storage.tag("library/nginx", "latest")),
        (BLOB, digest_of(LAYER)),
        ("/v2/library/nginx/tags/list", None),
    ):
        head = proxy.head(path)
        assert int(head.headers["Content-Length"]) > 10
        assert head.headers.get("Docker-Content-Digest") == digest
        assert proxy.head(path.replace("nginx", "other")).status_code == 404
    assert {request.method for request in upstream.requests} == {"HEAD"}
    # Also of a kept tag that has changed.
    proxy.get(LATEST)
    changed = upstream.add_image("library/nginx:latest", layers=[b"another"])
    upstream.requests.clear()
    assert proxy.head(LATEST).headers["Docker-Content-Digest"] == changed
    assert requests_to(upstream) == [HEAD_MANIFEST]


@pytest.mark.parametrize("status", [400, 403, 405, 501])
def test_refused_head_is_asked_by_get(status: int) -> None:
    """As Artifactory refuses it. No kept tag was ever refreshed then."""
    app = fakes.artifactory(default_exceptions[status])
    with serve(app) as upstream:
        proxy = ProxyClient(upstream.url)
        head = proxy.head(V1)
        assert (head.status_code, head.content_type, head.data) == (200, IMAGE_INDEX, b"")
        assert head.headers["Docker-Content-Digest"] == digest_of(fakes.INDEX)
        fakes.push(f"{upstream.url}{V1}", fakes.IMAGE)
        fresh = proxy.get(V1)
        assert (fresh.data, fresh.headers.get("Warning")) == (fakes.IMAGE, None)
        assert proxy.head(V1.replace("v1", "none")).status_code == 404


def test_account_that_is_refused_is_not_asked_again_by_get() -> None:
    with registry(auth="bearer", users={"alice": "secret"}) as upstream:
        assert ProxyClient(upstream.url).head(LATEST).status_code == 403
        assert requests_to(upstream) == [HEAD_MANIFEST, ("GET", "token")]


def test_stale_tag_is_served_until_its_last_confirmation_is_too_old(
    upstream: ServedRegistry, proxy: ProxyClient
) -> None:
    week = 7 * 24 * 3600
    content = proxy.get(LATEST).data
    upstream.fail("manifest", "GET", 503, times=3)
    # Also in another process, or after a restart; and a clock may have been ahead.
    for seconds, status in (week - 60, 200), (week + 60, 503), (-3600, 200):
        age(proxy.storage, seconds)
        response = ProxyClient(upstream.url, storage=proxy.storage).get(LATEST)
        assert (response.status_code, "Warning" in response.headers) == (status, status == 200)
    # The upstream confirms it, by a HEAD.
    age(proxy.storage, week + 60)
    assert "Warning" not in proxy.get(LATEST).headers
    upstream.fail("manifest", "GET", 503, times=None)
    assert proxy.get(LATEST).data == content


def test_busy_proxy_serves_a_kept_tag_and_does_not_blame_the_upstream(
    proxy: ProxyClient, caplog: pytest.LogCaptureFixture
) -> None:
    content = proxy.get(LATEST).data
    proxy.views.places = threading.BoundedSemaphore(1)
    proxy.views.places.acquire()
    busy = proxy.get(LATEST)
    assert (busy.status_code, busy.data) == (200, content)
    assert "the proxy is busy" in busy.headers["Warning"].lower()
    assert proxy.get("/v2/library/nginx/manifests/none").status_code == 503
    assert not caplog.records
    proxy.views.places.release()
    assert "Warning" not in proxy.get(LATEST).headers


def test_use_and_confirmation_are_recorded_once_an_hour(upstream: ServedRegistry) -> None:
    storage = Counting()
    proxy = ProxyClient(upstream.url, storage=storage)
    manifest = upstream.storage.tag("library/nginx", "latest")
    record = ""
    for hours in 1, 2:
        for _ in range(2):
            proxy.get(LATEST)
            assert proxy.get(f"/v2/library/nginx/manifests/{manifest}").status_code == 200
        assert storage.writes == {IMAGE_MANIFEST: hours, kept_tag.RECORD: 2 * hours - 1}
        if record:
            with pytest.raises(MissingError):
                storage.manifest("library/nginx", record)
        record = storage.tag("library/nginx", "latest")
        assert proxy.get(f"/v2/library/nginx/manifests/{record}").status_code == 404  # it is ours
        age(storage, 3601)
        for key, when in proxy.views.used.items():
            proxy.views.used[key] = when - 3601


def test_tag_kept_without_a_record_is_confirmed_by_a_head(
    upstream: ServedRegistry, proxy: ProxyClient
) -> None:
    """As earlier versions of the proxy kept it."""
    digest = upstream.storage.tag("library/nginx", "latest")
    manifest = upstream.storage.manifest("library/nginx", digest)
    proxy.storage.put_manifest("library/nginx", digest, manifest, tags=["latest"])
    upstream.fail("manifest", "GET", 503)
    assert proxy.get(LATEST).status_code == 503  # nobody knows how old it is
    assert proxy.get(LATEST).data == manifest.content
    assert requests_to(upstream) == [HEAD_MANIFEST] * 2


def accepting(proxy: ProxyClient, accept: str | None) -> Any:
    return proxy.get(OFFICIAL, headers={"Accept": accept} if accept else {})


@pytest.mark.parametrize("accepts", [(IMAGE_MANIFEST, BOTH), (BOTH, IMAGE_MANIFEST)])
def test_client_gets_a_manifest_of_a_type_that_it_accepts(accepts: tuple[str, str]) -> None:
    """From the upstream, which chooses by the Accept, and then of those that are kept."""
    expected = {BOTH: fakes.INDEX, IMAGE_MANIFEST: fakes.IMAGE, None: fakes.INDEX}
    with serve(fakes.docker_hub()) as upstream:
        proxy = ProxyClient(upstream.url, fresh_for=60)
        for accept in *accepts, accepts[0], None:
            assert accepting(proxy, accept).data == expected[accept]
            count = len(upstream.requests)
            assert accepting(proxy, accept).data == expected[accept]
            assert len(upstream.requests) == count  # for the same client it is fresh
    proxy = ProxyClient(upstream.url, storage=proxy.storage)
    for accept, content in expected.items():
        response = accepting(proxy, accept)
        assert (response.status_code, response.data) == (200, content)
        assert "Warning" in response.headers
    assert accepting(proxy, DOCKER_LIST).status_code == 502


def test_type_that_the_upstream_no_longer_has_is_not_served() -> None:
    with serve(fakes.docker_hub()) as upstream:
        proxy = ProxyClient(upstream.url)
        for accept in BOTH, IMAGE_MANIFEST:
            accepting(proxy, accept)
        newer = b'{"is": "newer"}'
        fakes.push(f"{upstream.url}{OFFICIAL}", newer)
        assert accepting(proxy, BOTH).data == newer
    for accept in BOTH, IMAGE_MANIFEST, "*/*":
        assert accepting(proxy, accept).data == newer
    assert accepting(proxy, IMAGE_INDEX).status_code == 502


@given(
    st.lists(
        st.tuples(
            st.sampled_from([IMAGE_INDEX, DOCKER_LIST, IMAGE_MANIFEST, "application/x+json"]),
            st.lists(st.sampled_from([IMAGE_INDEX, DOCKER_LIST, IMAGE_MANIFEST, "*/*"])),
        ),
        max_size=12,
    )
)
def test_client_gets_what_a_client_like_it_got_last(answers: list[tuple[str, list[str]]]) -> None:
    entries: list[kept_tag.Kept] = []
    for number, (media_type, named) in enumerate(answers):
        accept = ", ".join([media_type, *named])
        answer = kept_tag.Kept(media_type, f"sha256:{number}", number)
        accepted = parse_accept_header(accept, MIMEAccept)
        entries = kept_tag.merge_answer(entries, answer, accepted)
        assert len({entry.media_type for entry in entries}) == len(entries)
        for like_it in media_type, accept.replace(", */*", ""):
            fitting = kept_tag.select_accepted(entries, parse_accept_header(like_it, MIMEAccept))
            assert next(fitting) == answer


@pytest.mark.parametrize(
    ("body", "is_gone"),
    [
        (b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no"}]}', True),
        (b'{"errors": [{"code": "NOT_FOUND", "message": "no"}]}', True),  # Harbor
        (b'{"errors": [{"code": "UNSUPPORTED", "message": "no route"}]}', False),
        (b"<html><title>404 Not Found</title></html>", False),
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
    kept = [entry.digest for entry in kept_tag.read(proxy.storage, "library/nginx", "latest")]
    if is_gone:
        assert (answer.status_code, kept) == (404, [])
    else:
        assert answer.headers["Docker-Content-Digest"] == digest
        assert ": 404 " in parse_warnings(answer.headers["Warning"])[0]
        assert kept == [digest]


LIMITS = {"Retry-After": "7", "RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "0"}


@pytest.mark.parametrize(
    ("fault", "status", "code", "passed_on"),
    [
        (errors.TooManyRequests(headers=[*LIMITS.items()]), 429, "TOOMANYREQUESTS", LIMITS),
        (errors.Unauthorized(challenge='Basic realm="r"'), 403, "DENIED", {}),
        (errors.Unauthorized(realm="https://t.example/", scope="x"), 502, "UNKNOWN", {}),
        (500, 500, "UNKNOWN", {}),
        ("connection closed", 502, "UNKNOWN", {}),
        (timedelta(seconds=1), 504, "UNKNOWN", {}),
    ],
)
def test_upstreams_error_is_answered_unless_a_manifest_is_kept(
    upstream: ServedRegistry,
    proxy: ProxyClient,
    fault: Any,
    status: int,
    code: str,
    passed_on: dict[str, str],
) -> None:
    proxy.upstream.session.mount("https://t.example/", Canned({}))  # it cannot be reached
    kept = proxy.get(LATEST)
    if isinstance(fault, timedelta):
        proxy.upstream.timeout = 0.1
    upstream.fail("manifest", "GET", fault, times=None)
    stale = proxy.get(LATEST)
    assert (stale.status_code, stale.data) == (200, kept.data)
    assert f": {status} " in parse_warnings(stale.headers["Warning"])[0]
    failed = proxy.get("/v2/library/nginx/manifests/other")
    assert failed.status_code == status
    assert failed.get_json()["errors"][0]["code"] == code
    assert passed_on.items() <= dict(failed.headers).items()
    assert "WWW-Authenticate" not in failed.headers
    upstream.fail("blob", "GET", fault)
    assert proxy.get(BLOB).status_code == status


# Manifests.


@pytest.mark.parametrize(
    ("content", "said", "works"),
    [
        (b"{}", digest_of(b"{}", "sha512"), True),
        (b"{}", SHA256, False),
        *((b"{}", said, True) for said in ("md5:x", "x")),  # a malformed digest is ignored
        (b"not JSON", "", False),
        (b"{}" + b" " * (MAX_MANIFEST - 2), "", True),
        (b"{}" + b" " * (MAX_MANIFEST - 1), "", False),
    ],
)
def test_malformed_manifest_is_502_and_not_kept(content: bytes, said: str, works: bool) -> None:
    proxy, _ = canned({MANIFEST: (200, {**INDEX, "Docker-Content-Digest": said}, content)})
    response = proxy.get(MANIFEST)
    if works:
        digest = said if said.startswith("sha512") else digest_of(content)
        assert (response.data, response.headers["Docker-Content-Digest"]) == (content, digest)
    else:
        assert response.status_code == 502
        assert list(proxy.storage.repositories()) == []


OWN = {"mediaType": DOCKER_LIST}


@pytest.mark.parametrize(
    ("said", "document", "expected"),
    [
        (f"{IMAGE_INDEX}; charset=utf-8", {}, IMAGE_INDEX),
        (IMAGE_INDEX.upper(), {"mediaType": IMAGE_INDEX}, IMAGE_INDEX.upper()),
        (None, OWN, DOCKER_LIST),
        ("application/octet-stream", OWN, DOCKER_LIST),  # Nexus
        ("text/plain; charset=utf-8", OWN, DOCKER_LIST),
        ("application/json", OWN, DOCKER_LIST),
        (None, {}, IMAGE_MANIFEST),
        (None, {"manifests": []}, IMAGE_INDEX),
        (IMAGE_INDEX, OWN, None),
        (None, {"mediaType": 3}, None),
        ("text/html", {}, None),
    ],
)
def test_type_of_a_manifest_is_what_the_upstream_or_the_document_says(
    said: str | None, document: Any, expected: str | None
) -> None:
    headers = {} if said is None else {"Content-Type": said}
    proxy, _ = canned({MANIFEST: (200, headers, json.dumps(document).encode())})
    response = proxy.get(MANIFEST)
    if expected is None:
        assert response.status_code == 502
    else:
        assert (response.status_code, response.content_type) == (200, expected)


def test_head_passes_on_only_what_the_upstream_states() -> None:
    stated = {**INDEX, "Docker-Content-Digest": SHA256}
    for sent, passed_on in (
        ({}, {}),
        ({"Content-Type": "application/octet-stream", "Docker-Content-Digest": "x"}, {}),
        (stated, stated),
    ):
        proxy, _ = canned({MANIFEST: (200, sent, b""), BLOB: (200, {}, b"")})
        response = proxy.head(MANIFEST)
        assert response.status_code == 200
        own = {"Docker-Distribution-API-Version", "X-Content-Type-Options"}
        found = {name: value for name, value in response.headers if name not in own}
        assert found == passed_on
        assert "Content-Length" not in proxy.head(BLOB).headers


def test_content_with_another_digest_is_502() -> None:
    path = f"/v2/a/manifests/{SHA256}"
    proxy, upstream = canned({path: (200, INDEX, b"{}")})
    assert proxy.get(path).status_code == 502
    for path in "/v2/a/manifests/md5:x", "/v2/a/blobs/md5:x":  # which cannot be verified
        assert proxy.get(path).status_code == 404
    assert len(upstream.sent) == 1


# The storage.


@pytest.mark.parametrize("error", [OSError("the disk is full"), MissingError("a blob is deleted")])
def test_failed_write_fails_no_pull(upstream: ServedRegistry, error: Exception) -> None:
    class Failing(MemoryStorage):
        def put_blob(self, *arguments: Any) -> None:
            raise error

        def put_manifest(self, *arguments: Any, **options: Any) -> None:
            raise error

    proxy = ProxyClient(upstream.url, storage=Failing())
    for path in [LATEST] if isinstance(error, MissingError) else [BLOB, LATEST, BLOB]:
        assert proxy.get(path).status_code == 200
        proxy.wait_until_done()


def test_unreadable_storage_is_503(upstream: ServedRegistry) -> None:
    class Broken(MemoryStorage):
        def manifest(self, name: str, digest: str) -> Any:
            raise OSError("the disk is gone")

    proxy = ProxyClient(upstream.url, storage=Broken())
    response = proxy.get(f"/v2/a/manifests/{SHA256}?ns={upstream.host}")
    assert (response.status_code, response.headers["OCI-Namespace"]) == (503, upstream.host)


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
        blobs = {}
        for tag in "old", "latest":
            manifest = proxy.get(LATEST.replace("latest", tag)).get_json(force=True)
            blobs[tag] = {blob["digest"] for blob in [manifest["config"], *manifest["layers"]]}
            for digest in blobs[tag]:
                assert proxy.get(f"/v2/library/nginx/blobs/{digest}").status_code == 200
        proxy.wait_until_done()
        assert "  0 unreferenced contents" in collect("--older-than", "1h")
        for tag in "old", "latest":
            age(storage, 10_000, tag)
        long_ago = time.time() - 10_000
        for path in tmp_path.rglob("*"):
            if path.is_file():
                os.utime(path, (long_ago, long_ago))
        ProxyClient(upstream.url, storage=storage).get(LATEST)  # as after a restart
        dry = collect("--older-than", "1h", "--dry-run")
        # The image and the record of its tag.
        assert dry.startswith(f"{upstream.host}: it would delete\n  2 manifests")
        assert collect("--older-than", "1h") == dry.replace("it would delete", "deleted")
        every = blobs["old"] | blobs["latest"]
        assert {digest for digest in every if proxy.has_blob(digest)} == blobs["latest"]
        assert list(storage.tags("library/nginx")) == ["latest"]
        assert proxy.get(LATEST.replace("latest", "old")).status_code == 200
    assert "in memory" in collect("--older-than", "1s", place="memory://", status=2)
