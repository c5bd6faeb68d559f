"""The example client against registries that fail, refuse chunks, and send or hold wrong content."""

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import client
import pytest
import requests
from layout import Layout
from werkzeug.wrappers import Request, Response

from registry_routes import errors
from registry_routes.digests import DigestMismatchError, digest_of
from registry_routes.headers import IMAGE_INDEX, IMAGE_MANIFEST, content_range
from registry_routes.testing import ServedRegistry

from . import oci_layout
from .example_client import (
    BLOB,
    UPLOAD,
    answering,
    describe,
    find_requests,
    image_of,
    list_sizes,
    manifest_of,
    pull,
    push,
    push_and_pull,
)
from .nasty import SHA256
from .served import serve
from .servers import files_of
from .test_example_client import command_of, run_client

KIB = 1024
MIB = 1024 * KIB


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in "CHUNK", "SMALLEST_CHUNK":
        monkeypatch.setattr(f"client.{limit}", 100_000)


class TestRetries:
    @pytest.mark.usefixtures("small_chunks")
    def test_each_request_is_tried_again(
        self, served: ServedRegistry, tmp_path: Path, waits: list[float]
    ) -> None:
        image = image_of(tmp_path / "image", os.urandom(350_000))
        requests = [
            *((BLOB, "HEAD"), ("blob-upload", "POST"), (UPLOAD, "PATCH"), (UPLOAD, "PUT")),
            *(("manifest", "PUT"), ("manifest", "GET"), (BLOB, "GET")),
        ]
        for request, status in zip(requests, [429, 500, 502, 503, 504, 503, 429], strict=True):
            served.fail(*request, status)
        push_and_pull(served, image, tmp_path / "back")
        assert len(waits) == len(requests)

    @pytest.mark.parametrize("after", ["30", "date"])
    def test_retry_after_is_waited_for(
        self, served: ServedRegistry, tmp_path: Path, waits: list[float], after: str
    ) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
        headers = [("Retry-After", date if after == "date" else after)]
        served.add_image("a:v1")
        served.fail("manifest", "GET", errors.Unavailable(headers=headers))
        pull(served, tmp_path)
        assert len(waits) == 1
        assert 20 < waits[0] < 41

    def test_long_retry_after_is_printed(self, served: ServedRegistry, tmp_path: Path) -> None:
        served.fail("manifest", "GET", errors.TooManyRequests(retry_after=3600))
        printed = run_client("pull", f"{served.host}/a:v1", tmp_path, fails=True)
        assert "429" in printed
        assert "(try again in 3600 seconds)" in printed

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 501])
    def test_other_errors_are_not_tried_again(
        self, served: ServedRegistry, tmp_path: Path, status: int
    ) -> None:
        served.fail("manifest", "GET", status)
        with pytest.raises(errors.RegistryError) as raised:
            pull(served, tmp_path)
        assert raised.value.code == status
        assert len(served.requests) == 1

    @pytest.mark.parametrize("request_", [("manifest", "GET"), ("manifest", "PUT"), (BLOB, "HEAD")])
    def test_attempts_are_limited(
        self, served: ServedRegistry, tmp_path: Path, waits: list[float], request_: tuple[str, str]
    ) -> None:
        served.fail(*request_, 500, times=None)
        act = pull if request_[1] == "GET" else push
        with pytest.raises(errors.RegistryError):
            act(served, image_of(tmp_path, b"x"))
        assert len(find_requests(served, *request_)) == client.ATTEMPTS
        assert waits == [0.2, 0.4, 0.8, 1.6]

    def broken_off(self, content: bytes, after: int, ranges: bool) -> Any:
        """A registry whose answers for a blob have only `after` bytes of it."""

        def answer(request: Request) -> Response | None:
            if request.method != "GET" or "/blobs/" not in request.path:
                return None
            start = request.range.ranges[0][0] if ranges and request.range else 0
            length = len(content) - start
            headers = {"Content-Length": str(length)}
            if start:
                headers["Content-Range"] = f"bytes {content_range(start, length)}/*"
            body = iter([content[start : start + after]])
            return Response(body, 206 if start else 200, headers)

        return answering(answer)

    def test_progress_of_a_pull_resets_the_attempts(
        self, waits: list[float], tmp_path: Path
    ) -> None:
        content = bytes(range(250)) * 10_000
        with self.broken_off(content, 100_000, ranges=True) as served:
            push_and_pull(served, image_of(tmp_path / "image", content), tmp_path / "back")
            assert len(find_requests(served, BLOB, "GET")) > 25
        assert set(waits) == {0.2}

    def test_pull_that_breaks_off_at_the_same_place_fails(
        self, waits: list[float], tmp_path: Path
    ) -> None:
        content = bytes(10_000)
        with self.broken_off(content, 1000, ranges=False) as served:
            push(served, image_of(tmp_path / "image", content))
            with pytest.raises(requests.RequestException):
                pull(served, tmp_path / "back")
            assert len(find_requests(served, BLOB, "GET")) == client.ATTEMPTS

    def test_progress_of_a_push_resets_the_attempts(
        self, waits: list[float], tmp_path: Path, small_chunks: None
    ) -> None:
        patches = Counter[str]()

        def busy(request: Request) -> Response | None:
            patches[request.method] += 1
            is_second = request.method == "PATCH" and patches["PATCH"] % 2 == 0
            return Response(status=503) if is_second else None

        content = bytes(range(250)) * 6_000
        with answering(busy) as served:
            push_and_pull(served, image_of(tmp_path, content), tmp_path / "back")
        assert len(waits) == 14 > client.ATTEMPTS
        assert set(waits) == {0.2}

    def test_push_that_the_registry_forgets_fails(
        self, waits: list[float], tmp_path: Path, small_chunks: None
    ) -> None:
        def forgetful(request: Request) -> Response | None:
            if request.method == "PATCH" and request.headers["Content-Range"] != "0-99999":
                return Response(status=503)
            is_status = request.method == "GET" and "uploads/" in request.path
            return Response(status=404) if is_status else None

        with answering(forgetful) as served, pytest.raises(errors.Unavailable):
            push(served, image_of(tmp_path, bytes(500_000)))
        assert len(find_requests(served, "blob-upload", "POST")) == client.ATTEMPTS

    @pytest.mark.usefixtures("waits", "small_chunks")
    @pytest.mark.parametrize(
        ("size", "lost"), [(0, "PUT"), (1, "PUT"), (350_000, "PUT"), (350_000, "PATCH")]
    )
    def test_push_goes_on_after_a_lost_response(
        self, served: ServedRegistry, tmp_path: Path, monkeypatch: Any, size: int, lost: str
    ) -> None:
        session, seen = requests.Session.send, list[str]()

        def send(self: requests.Session, request: Any, **options: Any) -> requests.Response:
            response = session(self, request, **options)
            seen.append(request.method)
            if request.method == lost and seen.count(lost) == (2 if lost == "PATCH" else 1):
                raise requests.ConnectionError("broken")
            return response

        monkeypatch.setattr("requests.Session.send", send)
        content = os.urandom(size)
        push(served, image_of(tmp_path, content))
        assert served.blob("a", digest_of(content)) == content
        assert list_sizes(served, "PATCH") == (
            [100_000, 100_000, 100_000, 50_000] if size > 1 else []
        )


#: The chunks that the client sends first in `TestChunks`: all its limits are 32 times as small there.
CHUNK = client.CHUNK // 32


class TestChunks:
    @pytest.fixture(autouse=True)
    def limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for limit in "CHUNK", "SMALLEST_CHUNK", "LARGEST_CHUNK":
            monkeypatch.setattr(f"client.{limit}", getattr(client, limit) // 32)

    @pytest.mark.parametrize("least", [0, 1, 160 * KIB, 192 * KIB + 1])
    def test_chunks_have_the_minimum_size(self, tmp_path: Path, least: int) -> None:
        size, chunk = 416 * KIB, max(least, CHUNK)
        with serve(min_chunk=least) as served:
            push(served, image_of(tmp_path, os.urandom(size)))
            assert list_sizes(served, "PATCH") == [*[chunk] * (size // chunk), size % chunk]

    @pytest.mark.parametrize("least", [192 * KIB, 10**17])
    def test_minimum_size_too_large_for_memory_makes_one_request(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
    ) -> None:
        monkeypatch.setattr("client.LARGEST_CHUNK", 160 * KIB)
        with serve(min_chunk=least) as served:
            push(served, image_of(tmp_path, os.urandom(288 * KIB)))
            assert (list_sizes(served, "PATCH"), list_sizes(served, "PUT")) == ([], [288 * KIB])

    @pytest.mark.parametrize(
        ("most", "size"), [(CHUNK, 2 * CHUNK + 5), (32 * KIB, 2 * CHUNK + 5), (3_000, CHUNK // 2)]
    )
    def test_chunks_become_smaller_if_large_ones_are_refused(
        self, tmp_path: Path, most: int, size: int
    ) -> None:
        with serve(max_chunk=most) as served:
            push(served, image_of(tmp_path, *(os.urandom(size) for _ in range(2))))
            refused = [sent for sent in served.requests if sent.status == 413]
        assert len(refused) <= 7  # for the first blob only

    @pytest.mark.parametrize("status", [404, 501])
    def test_blobs_are_sent_whole_if_chunks_are_refused(
        self, served: ServedRegistry, tmp_path: Path, status: int
    ) -> None:
        served.fail(UPLOAD, "PATCH", status)
        push(served, image_of(tmp_path, os.urandom(CHUNK + 5), os.urandom(2 * CHUNK)))
        assert list_sizes(served, "PATCH") == [CHUNK]
        assert list_sizes(served, "PUT") == [CHUNK + 5, 2 * CHUNK]

    def test_chunks_are_halved_after_a_416(self, served: ServedRegistry, tmp_path: Path) -> None:
        """GitHub answers so to a chunk that is too large."""
        served.fail(UPLOAD, "PATCH", 416)
        push(served, image_of(tmp_path, os.urandom(2 * CHUNK)))
        assert list_sizes(served, "PATCH") == [CHUNK, *[CHUNK // 2] * 4]

    @pytest.mark.parametrize("least", [96 * KIB, 160 * KIB])
    def test_smaller_chunks_are_not_below_the_minimum(self, tmp_path: Path, least: int) -> None:
        with serve(min_chunk=least) as served:
            served.fail(UPLOAD, "PATCH", 413, times=None)
            push(served, image_of(tmp_path, os.urandom(2 * CHUNK)))
            assert list_sizes(served, "PATCH") == [max(least, CHUNK)]

    @pytest.mark.parametrize("size", [0, CHUNK // 2, 2 * CHUNK])
    @pytest.mark.parametrize("status", [400, 401, 413, 416])
    def test_blob_that_is_refused_in_every_way_is_an_error(
        self, served: ServedRegistry, tmp_path: Path, size: int, status: int
    ) -> None:
        for method in "PATCH", "PUT":
            served.fail(UPLOAD, method, status, times=None)
        with pytest.raises(errors.RegistryError) as raised:
            push(served, image_of(tmp_path, bytes(size)))
        assert raised.value.code == status
        assert len(served.requests) < 40

    @pytest.mark.usefixtures("waits")
    def test_chunks_become_smaller_if_long_bodies_break_the_connection(
        self, served: ServedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = requests.Session.send

        def send(self: requests.Session, request: Any, **options: Any) -> requests.Response:
            if isinstance(request.body, bytes) and len(request.body) > 32 * KIB:
                raise requests.ConnectionError("reset by peer")
            return session(self, request, **options)

        monkeypatch.setattr("requests.Session.send", send)
        push(served, image_of(tmp_path, os.urandom(2 * CHUNK)))
        assert list_sizes(served, "PATCH") == [32 * KIB] * 8


def nested(root: Path, depth: int, times: int) -> str:
    """Write nested indexes into a layout, each listed `times` times. Return the outermost digest."""
    layout = Layout(root)
    descriptor = describe(layout, manifest_of(), IMAGE_MANIFEST)
    for _ in range(depth):
        index = manifest_of(mediaType=IMAGE_INDEX, manifests=[descriptor] * times)
        descriptor = describe(layout, index, IMAGE_INDEX)
    layout.add(descriptor, "v1")
    return str(descriptor["digest"])


class TestIndexes:
    def test_each_digest_is_visited_once(self, served: ServedRegistry, tmp_path: Path) -> None:
        digest = nested(tmp_path / "image", 11, 2)
        assert push(served, tmp_path / "image") == pull(served, tmp_path / "back") == digest
        assert len(served.requests) == 24
        assert files_of(tmp_path / "back") == files_of(tmp_path / "image")

    def test_shared_blobs_are_requested_once(self, served: ServedRegistry, tmp_path: Path) -> None:
        oci_layout.write(tmp_path / "image", [1000, 2000, 2000], ["amd64", "arm64", "s390x"])
        push_and_pull(served, tmp_path / "image", tmp_path / "back")
        for method in "HEAD", "GET":
            paths = Counter(sent.path for sent in served.requests if sent.method == method)
            assert max(paths.values()) == 1

    def test_manifest_that_is_also_a_layer_is_pushed_as_both(
        self, served: ServedRegistry, tmp_path: Path
    ) -> None:
        layout = Layout(image_of(tmp_path, b"x"))
        [first] = json.loads((tmp_path / "index.json").read_text())["manifests"]
        second = describe(layout, manifest_of(layers=[first]), IMAGE_MANIFEST)
        index = manifest_of(mediaType=IMAGE_INDEX, manifests=[first, second])
        layout.add(describe(layout, index, IMAGE_INDEX), "v1")
        push_and_pull(served, tmp_path, tmp_path / "back")

    def test_index_of_a_cache_lists_blobs(self, served: ServedRegistry, tmp_path: Path) -> None:
        """BuildKit writes such an index."""
        layout = Layout(tmp_path / "image")
        kinds = "vnd.oci.image.layer.v1.tar+gzip", "vnd.buildkit.cacheconfig.v0"
        described = [describe(layout, kind.encode(), f"application/{kind}") for kind in kinds]
        index = manifest_of(mediaType=IMAGE_INDEX, manifests=described)
        layout.add(describe(layout, index, IMAGE_INDEX), "v1")
        push_and_pull(served, layout.root, tmp_path / "back")
        assert len(find_requests(served, "manifest", "GET")) == 1

    @pytest.mark.parametrize("action", ["push", "pull"])
    def test_deeply_nested_indexes_are_an_error(self, tmp_path: Path, action: str) -> None:
        nested(tmp_path, 40, 1)

        def stored(request: Request) -> Response:
            wanted = request.path.rpartition("/")[2]
            digest = wanted if ":" in wanted else Layout(tmp_path).descriptor(wanted)["digest"]
            return Response(Layout(tmp_path).read(digest), content_type=IMAGE_INDEX)

        target = tmp_path if action == "push" else tmp_path / "back"
        with answering(stored) as served:
            printed = run_client(action, f"{served.host}/a:v1", target, fails=True)
        assert "more than 20 levels deep" in printed
        assert len(served.requests) < 30


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    path.write_bytes({"edited": content[:-1] + b" ", "cut off": content[:-1], "empty": b""}[kind])


@pytest.mark.parametrize("kind", ["edited", "cut off", "empty"])
class TestDamage:
    def test_damaged_content_is_not_pushed(
        self, served: ServedRegistry, tmp_path: Path, kind: str
    ) -> None:
        oci_layout.write(tmp_path, [1000], ["amd64", "arm64"])
        for path in list((tmp_path / "blobs" / "sha256").iterdir()):
            original = path.read_bytes()
            damage(path, kind)
            with pytest.raises(DigestMismatchError, match=path.name):
                push(served, tmp_path)
            path.write_bytes(original)
        assert not [
            sent for sent in find_requests(served, "manifest", "PUT") if "tag" in sent.values
        ]

    def test_pull_repairs_damaged_content(
        self, served: ServedRegistry, tmp_path: Path, kind: str
    ) -> None:
        served.add_image("a:v1", layers=[os.urandom(3000)])
        back = tmp_path / "back"
        pull(served, back)
        undamaged = files_of(back)
        for path in (back / "blobs" / "sha256").iterdir():
            damage(path, kind)
        pull(served, back)
        assert files_of(back) == undamaged


def part_of(image: Path, layout: Path) -> Path:
    """Return the file in which the client keeps a part of the image's only layer."""
    [layer] = json.loads(Layout(image).read(Layout(image).descriptor("v1")["digest"]))["layers"]
    part = Layout(layout).path(layer["digest"])
    part.parent.mkdir(parents=True, exist_ok=True)
    return part.with_name(f".{part.name}.part")


class TestPartialPulls:
    def test_pull_resumes_a_partial_blob(self, served: ServedRegistry, tmp_path: Path) -> None:
        content = os.urandom(3_000_000)
        image = image_of(tmp_path / "image", content)
        push(served, image)
        for begun in 2_000_000, len(content):  # some of it, and all of it
            back = tmp_path / str(begun)
            part_of(image, back).write_bytes(content[:begun])
            pull(served, back)
            assert files_of(back) == files_of(image)
        ranges = [sent.headers.get("Range") for sent in find_requests(served, BLOB, "GET")]
        assert ranges == ["bytes=2000000-"]

    @pytest.mark.parametrize("size", [1000, 3_000_000, 4_000_000], ids=["part", "whole", "more"])
    def test_wrong_part_is_replaced(
        self, served: ServedRegistry, tmp_path: Path, size: int
    ) -> None:
        image = image_of(tmp_path / "image", os.urandom(3_000_000))
        push(served, image)
        part_of(image, tmp_path / "back").write_bytes(b"x" * size)
        pull(served, tmp_path / "back")
        assert files_of(tmp_path / "back") == files_of(image)

    @pytest.mark.parametrize(
        "answer",
        [
            lambda content: Response(content),  # ranges are ignored
            lambda content: Response(content, 206, {"Content-Range": "bytes 0-9999/10000"}),
            lambda content: Response(content[1:], 206, {"Content-Range": "bytes 1-9999/*"}),
            lambda content: Response(content[600:], 206, {"Content-Range": "bytes 600-9999/*"}),
            lambda content: Response(content[500:], 206),
            lambda content: Response(content[500:], 206, {"Content-Range": "junk"}),
            lambda content: Response(content, 206, {"Content-Range": "bytes 500-9999/*"}),
            lambda content: Response(status=416),
        ],
    )
    def test_any_answer_to_a_range_ends_in_the_right_content(
        self, tmp_path: Path, answer: Any
    ) -> None:
        content = b"0123456789" * 1000
        image = image_of(tmp_path / "image", content)
        part_of(image, tmp_path / "back").write_bytes(content[:500])
        with answering(lambda request: answer(content) if request.range else None) as served:
            push_and_pull(served, image, tmp_path / "back")
        assert len(find_requests(served, BLOB, "GET")) <= 2

    @pytest.mark.parametrize(
        "answer",
        [
            Response(b"other"),
            Response(b"longer"),
            Response(b"ight", 206, {"Content-Range": "bytes 1-4/5"}),
            Response(b"right", 206),
            Response(status=416),
            Response(status=300),
        ],
    )
    def test_wrong_content_is_not_kept(self, tmp_path: Path, answer: Response) -> None:
        image, back = image_of(tmp_path / "image", b"right"), tmp_path / "back"
        blob = part_of(image, tmp_path).name[1:-5]
        with answering(
            lambda sent: answer if sent.path.endswith(blob) and sent.method == "GET" else None
        ) as served:
            push(served, image)
            with pytest.raises((ValueError, errors.RegistryError)):
                pull(served, back)
        assert len(find_requests(served, BLOB, "GET")) == 1
        assert sum(path.stat().st_size for path in back.rglob("*.part")) == 0
        assert blob not in files_of(back)

    def test_blob_that_ends_early_is_an_error(self, tmp_path: Path, waits: list[float]) -> None:
        """Without a ``Content-Length``, the end of the connection is the end of the body."""
        image = image_of(tmp_path / "image", b"right")

        def short(request: Request) -> Response | None:
            is_blob = request.method == "GET" and "/blobs/" in request.path
            return Response(iter([b"rig"])) if is_blob else None

        with answering(short) as served:
            push(served, image)
            with pytest.raises(OSError, match="broke off after 3 of 5 bytes"):
                pull(served, tmp_path / "back")

    @pytest.mark.slow
    def test_several_pulls_into_one_layout(self, served: ServedRegistry, tmp_path: Path) -> None:
        """Two of them pull the same image, and one pulls another."""
        served.add_image("a:v1", layers=[os.urandom(3_000_000)])
        other = served.add_image("b:v1", layers=[os.urandom(2_000_000)])
        for _ in range(2):
            served.fail(BLOB, "GET", timedelta(seconds=0.5), times=2)
        remotes = [f"{served.host}/{name}" for name in ("a:v1", "a:v1", f"b:v2@{other}")]
        pulls = [
            subprocess.Popen(command_of("pull", remote, tmp_path), stderr=subprocess.PIPE)
            for remote in remotes
        ]
        for process in pulls:
            _, printed = process.communicate(timeout=60)
            assert (process.returncode, printed) == (0, b"")
        assert Layout(tmp_path).descriptor("v2")["digest"] == other
        assert Layout(tmp_path).descriptor("v1")
        assert json.loads((tmp_path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
        assert list(tmp_path.rglob(".*")) == []
        blobs = Counter(sent.path for sent in find_requests(served, BLOB, "GET"))
        assert set(blobs.values()) == {1}  # one pull finds what another has fetched
        assert len(blobs) == 4

    def test_part_is_kept_if_no_token_can_be_had(self, tmp_path: Path) -> None:
        image, back = image_of(tmp_path / "image", b"x" * 1000), tmp_path / "back"
        part_of(image, back).write_bytes(b"x" * 500)

        def closed(request: Request) -> Response | None:
            if request.path == "/token":
                return Response("<html>Log in to this network.</html>")
            if request.method != "GET" or "/blobs/" not in request.path:
                return None
            return errors.Unauthorized(realm=f"http://{request.host}/token").get_response()

        with answering(closed) as served:
            push(served, image)
            with pytest.raises(ValueError, match="token"):
                pull(served, back)
        assert part_of(image, back).stat().st_size == 500


class TestWrongContent:
    @pytest.mark.parametrize("status", [200, 400])
    def test_endless_body_is_cut_off(self, tmp_path: Path, status: int) -> None:
        blocks = list[bytes]()

        def endless() -> Iterator[bytes]:
            for _ in range(1000):
                blocks.append(b"x" * MIB)
                yield blocks[0]

        with (
            answering(lambda request: Response(endless(), status)) as served,
            pytest.raises((ValueError, errors.RegistryError)),
        ):
            pull(served, tmp_path)
        assert len(blocks) < 100

    @pytest.mark.parametrize("size", [0, 120, 1000])
    def test_wrong_size_in_a_manifest_does_not_cut_off_a_blob(
        self, served: ServedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        monkeypatch.setattr("client.CHUNK", 100)
        content = bytes(range(250))
        layout = Layout(tmp_path)
        manifest = manifest_of(layers=[{**describe(layout, content), "size": size}])
        layout.add({**describe(layout, manifest, IMAGE_MANIFEST), "size": size}, "v1")
        push(served, tmp_path)
        assert served.blob("a", digest_of(content)) == content

    def test_manifest_with_another_digest_is_refused(self, tmp_path: Path) -> None:
        lies = Response(b"{}", headers={"Docker-Content-Digest": SHA256})
        with answering(lambda request: lies) as served:
            for reference in f"a@{SHA256}", "a:v1":
                printed = run_client("pull", f"{served.host}/{reference}", tmp_path, fails=True)
                assert re.search(
                    f"content has the digest sha256:44136fa[0-9a-f]+, not {SHA256}", printed
                )
        assert not list(tmp_path.rglob("*"))

    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b"[]", b"[" * 100_000, b'{"manifests": [{}]}', b'{"manifests": 3}'),
            *(b'{"manifests": [' + b"[" * n + b"]" * n + b"]}" for n in range(850, 1000, 50)),
            *(b'{"layers": "x"}', b'{"layers": [{"digest": "x"}]}', b'{"config": [3]}'),
            *(
                f'{{"layers": [{{"mediaType": "a", "digest": "{SHA256}", "size": {size}}}]}}'.encode()
                for size in ('"z"', "-1", f"1{'0' * 400}")
            ),
        ],
        ids=lambda content: str(content)[:20],
    )
    def test_malformed_manifest_is_an_error(self, tmp_path: Path, content: bytes) -> None:
        malformed = Response(content, content_type=IMAGE_MANIFEST)
        with answering(lambda request: malformed) as served:
            printed = run_client("pull", f"{served.host}/a:v1", tmp_path, fails=True)
        assert "must" in printed or "recursion" in printed

    @pytest.mark.parametrize(
        ("own", "sent", "is_pulled"),
        [
            (IMAGE_MANIFEST, IMAGE_MANIFEST, True),
            (IMAGE_MANIFEST, "application/octet-stream", True),
            (IMAGE_MANIFEST, "text/plain; charset=utf-8", True),
            (None, IMAGE_MANIFEST, True),
            (None, "text/plain", False),
            (IMAGE_MANIFEST, IMAGE_INDEX, False),
            (IMAGE_INDEX, IMAGE_MANIFEST, False),
            ("a/b", "a/b", False),
            (None, "application/vnd.docker.distribution.manifest.v1+prettyjws", False),
        ],
    )
    def test_type_of_a_manifest(
        self, tmp_path: Path, own: str | None, sent: str, is_pulled: bool
    ) -> None:
        content = json.dumps({"mediaType": own} if own else {})
        answer = Response(content, content_type=sent, headers={"Docker-Content-Digest": "junk"})
        with answering(lambda request: answer) as served:
            run_client("pull", f"{served.host}/a:v1", tmp_path, fails=not is_pulled)

    def test_encoded_manifest_is_an_error(self, tmp_path: Path) -> None:
        encoded = Response(b"{}", content_type=IMAGE_MANIFEST, headers={"Content-Encoding": "gzip"})
        with answering(lambda _: encoded) as served:
            printed = run_client("pull", f"{served.host}/a:v1", tmp_path, fails=True)
        assert "gzip" in printed, printed


class TestLayout:
    def test_added_tag_keeps_the_others(self, tmp_path: Path) -> None:
        layout = Layout(tmp_path)
        first = {"mediaType": "x/y", "digest": SHA256, "size": 2}
        other = {**first, "digest": SHA256.replace("0", "1")}
        for tag in None, "v1", "v2", None:
            layout.add(first, tag)
        layout.add(other, "v2")
        assert layout.descriptor("v1")["digest"] == SHA256
        assert layout.descriptor("v2")["digest"] == other["digest"]
        assert len(json.loads((tmp_path / "index.json").read_text())["manifests"]) == 2

    @pytest.mark.parametrize("digest", ["md5:00", "shake_128:00", "../../x:y", "sha256:..", "x"])
    def test_digest_that_cannot_be_verified_is_no_path(self, tmp_path: Path, digest: str) -> None:
        with pytest.raises(ValueError, match=r"digest .*must"):
            Layout(tmp_path).path(digest)

    @pytest.mark.parametrize(
        "index",
        [
            *("", "[]", '{"manifests": 3}', '{"manifests": [{}]}', '{"manifests": [[]]}'),
            f'{{"manifests": [{{"mediaType": "a", "digest": "{SHA256}", "size": 1, "annotations": 3}}]}}',
        ],
    )
    def test_malformed_layout_is_an_error(self, tmp_path: Path, index: str) -> None:
        (tmp_path / "index.json").write_text(index)
        printed = run_client("push", "127.0.0.1:9/a:v1", tmp_path, fails=True)
        assert re.search("must (be|have)", printed)

    def test_missing_file_is_an_error(self, served: ServedRegistry, tmp_path: Path) -> None:
        Layout(image_of(tmp_path, b"layer")).path(digest_of(b"layer")).unlink()
        printed = run_client("push", f"{served.host}/a:v1", tmp_path, fails=True)
        assert "No such file" in printed
