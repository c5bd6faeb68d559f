"""Several registries on one storage: a directory, S3, memory; workers that take turns."""

import os
import shutil
import subprocess
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import obstore
import pytest
import requests
from obstore.store import S3Store
from storage import check_place, storage_at
from werkzeug.test import Client

from registry_routes import resolve_location
from registry_routes.digests import DigestMismatchError, digest_of
from registry_routes.grammar import REGISTERED_ALGORITHMS
from registry_routes.registry import Manifest, MissingError, Storage, make_registry

from . import oci_layout
from .servers import EXAMPLES, example, files_of, free_port, serving, skopeo

pytestmark = pytest.mark.slow

PLACES = {"directory": "{0}/data", "s3": "s3://images/{0.name}"}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage that several processes may share."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    return PLACES[request.param].format(tmp_path)


@pytest.fixture(params=["memory", "directory", "s3"])
def storages(request: pytest.FixtureRequest, tmp_path: Path) -> list[Storage]:
    """Two storages in one place. In memory, they are one."""
    if request.param == "memory":
        return [storage_at("memory://")] * 2
    if request.param == "s3":
        request.getfixturevalue("s3")
    return [storage_at(PLACES[request.param].format(tmp_path)) for _ in range(2)]


@pytest.mark.parametrize("algorithm", REGISTERED_ALGORITHMS)
def test_two_registries_take_turns_chunk_by_chunk(
    place: str, tmp_path: Path, algorithm: str
) -> None:
    content = os.urandom(3_000_000)
    with (
        example("registry", tmp_path / "log-1", "--storage", place) as one,
        example("registry", tmp_path / "log-2", "--storage", place) as two,
    ):
        roots = [f"http://{one}", f"http://{two}"]
        response = requests.post(f"{roots[0]}/v2/a/b/blobs/uploads/", timeout=30)
        location = response.headers["Location"]
        for turn, start in enumerate(range(0, len(content), 500_000)):
            root = roots[turn % 2]
            chunk = content[start : start + 500_000]
            headers = {"Content-Range": f"{start}-{start + len(chunk) - 1}"}
            response = requests.patch(root + location, chunk, headers=headers, timeout=30)
            assert response.status_code == 202
            status = requests.get(roots[(turn + 1) % 2] + location, timeout=30)
            assert status.headers["Range"] == f"0-{start + len(chunk) - 1}"
            again = requests.patch(
                roots[(turn + 1) % 2] + location, chunk, headers=headers, timeout=30
            )
            assert again.status_code == 416
        digest = digest_of(content, algorithm)
        put = requests.put(resolve_location(roots[1], location, digest=digest), timeout=30)
        assert put.status_code == 201
        for root in roots:
            blob = requests.get(f"{root}/v2/a/b/blobs/{digest}", timeout=30)
            assert blob.content == content
            assert requests.get(root + location, timeout=30).status_code == 404


def test_an_image_pushed_to_one_registry_is_pulled_from_another(place: str, tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [6_000_000, 1, 0], ["amd64", "arm64"])
    with (
        example("registry", tmp_path / "log-1", "--storage", place, "--workers", "2") as one,
        example("registry", tmp_path / "log-2", "--storage", place) as two,
    ):
        skopeo("copy --all --dest-tls-verify=false", f"oci:{image}:v1", f"docker://{one}/x/y:v1")
        skopeo("copy --all --src-tls-verify=false", f"docker://{two}/x/y:v1", f"oci:{back}:v1")
        assert files_of(back) == files_of(image)
        listed = requests.get(f"http://{two}/v2/_catalog", timeout=30).json()
        assert listed == {"repositories": ["x/y"]}
        skopeo("delete --tls-verify=false", f"docker://{two}/x/y:v1")
        assert skopeo("inspect --tls-verify=false", f"docker://{one}/x/y:v1", fails=True)


def test_blobs_and_their_ranges_on_the_wire(place: str, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    path = f"/v2/a/blobs/{digest_of(content)}"
    with example("registry", tmp_path / "log", "--storage", place) as host:
        uploads, params = f"http://{host}/v2/a/blobs/uploads/", {"digest": digest_of(content)}
        requests.post(uploads, content, params=params, timeout=30)
        with requests.Session() as session:  # one connection: what is too long or short shows
            for wanted, start, end in (
                (None, 0, len(content)),
                ("bytes=5-", 5, len(content)),
                ("bytes=-7", len(content) - 7, len(content)),
                ("bytes=2000000-2000999", 2_000_000, 2_001_000),
                ("bytes=0-0", 0, 1),
                (None, 0, len(content)),
            ):
                response = session.get(
                    f"http://{host}{path}", headers={"Range": wanted}, timeout=30
                )
                assert response.status_code == (206 if wanted else 200)
                assert response.content == content[start:end]
                assert response.headers["Content-Length"] == str(end - start)
                head = session.head(f"http://{host}{path}", headers={"Range": wanted}, timeout=30)
                assert head.headers["Content-Length"] == str(len(content))
    logged = (tmp_path / "log").read_text()
    assert f'"GET {path} HTTP/1.1" 200 3000000 "' in logged
    assert f'"GET {path} HTTP/1.1" 206 1000 "' in logged


def test_concurrent_pushes_of_one_blob_and_one_tag_succeed(storages: list[Storage]) -> None:
    content, other = os.urandom(200_000), os.urandom(200_000)
    clients = [Client(make_registry(storage)) for storage in storages]
    digest = digest_of(content)

    def push(i: int) -> int:
        client = clients[i % 2]
        location = client.post("/v2/a/blobs/uploads/").location or ""
        client.patch(location, data=content)
        put = client.put(location, query_string={"digest": digest})
        manifest = b'{"i": %d}' % (i % 2)
        tagged = client.put("/v2/a/manifests/v1", data=manifest)
        return max(put.status_code, tagged.status_code)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(push, range(16))) == {201}
    client = clients[0]
    assert client.get(f"/v2/a/blobs/{digest}", buffered=True).data == content
    assert client.get("/v2/a/manifests/v1").data in (b'{"i": 0}', b'{"i": 1}')

    # One upload, two requests at once for the same place: one of them is told so.
    location = client.post("/v2/a/blobs/uploads/").location or ""

    def patch(chunk: bytes) -> Any:
        one = clients[chunk is other]
        headers = {"Content-Range": f"0-{len(chunk) - 1}"}
        return one.patch(location, data=chunk, headers=headers).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(patch, [content, other] * 4))
    assert sorted(statuses) == [202, *[416] * 7]
    won = (content, other)[statuses.index(202) % 2]
    put = client.put(location, query_string={"digest": digest_of(won)})
    assert put.status_code == 201


def test_uploads_may_be_cancelled_and_finished_at_once(storages: list[Storage]) -> None:
    client = Client(make_registry(storages[0]))
    content = os.urandom(100_000)
    query = {"digest": digest_of(content)}
    for turn in range(15):
        location = client.post("/v2/a/blobs/uploads/").location or ""
        asks = [
            lambda: client.put(location, query_string=query, data=content),
            lambda: client.patch(location, data=content),
            lambda: client.delete(location),
            lambda: client.put(location, query_string=query, data=content),
        ]
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(asks[(turn + i) % 4]) for i in range(4)]
            statuses = [job.result().status_code for job in jobs]
        assert set(statuses) <= {201, 202, 204, 400, 404, 416}, statuses


def test_pushes_beside_deletes_which_remove_empty_directories(tmp_path: Path) -> None:
    storage = storage_at(tmp_path)
    content = b"content"
    digest = digest_of(content)
    ends = threading.Event()

    def delete() -> None:
        while not ends.is_set():
            for directory, _, _ in os.walk(tmp_path / "repositories", topdown=False):
                with suppress(OSError):  # it is not empty, or it is gone
                    os.rmdir(directory)

    def push(i: int) -> None:
        upload = storage.begin_upload("a/b/c/d")
        storage.append_to_upload("a/b/c/d", upload, 0, [content])
        storage.finish_upload("a/b/c/d", upload, len(content), [], digest)
        manifest = Manifest("application/json", b"{}")
        storage.put_manifest("a/b/c/d", digest_of(b"{}"), manifest, tags=["v1"])
        with suppress(MissingError):
            storage.delete_manifest("a/b/c/d", digest_of(b"{}"))
        with suppress(MissingError):
            storage.delete_blob("a/b/c/d", digest)

    with ThreadPoolExecutor(8) as pool:
        deleting = [pool.submit(delete) for _ in range(2)]
        try:
            list(pool.map(push, range(300)))
        finally:
            ends.set()
        assert [one.result() for one in deleting] == [None, None]


@pytest.mark.parametrize("storages", ["memory", "directory"], indirect=True)
def test_deleting_a_manifest_during_a_push_leaves_no_dangling_tag_or_referrer(
    storages: list[Storage],
) -> None:
    client = Client(make_registry(storages[0]))
    manifest = b'{"subject": {"digest": "%b"}}' % digest_of(b"").encode()
    path = f"/v2/a/manifests/{digest_of(manifest)}"

    def push(i: int) -> int:
        return client.put(f"/v2/a/manifests/v{i}", data=manifest).status_code

    def delete(_: int) -> int:
        return client.delete(path).status_code

    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            pushed, deleted = pool.map(push, range(6)), pool.map(delete, range(3))
            assert set(pushed) == {201}
            assert set(deleted) <= {202, 404}
        tags = client.get("/v2/a/tags/list")
        for tag in tags.get_json().get("tags", []):
            assert client.get(f"/v2/a/manifests/{tag}").data == manifest
        referrers = client.get(f"/v2/a/referrers/{digest_of(b'')}").get_json()["manifests"]
        assert len(referrers) <= (client.get(path).status_code == 200)


def test_in_memory(tmp_path: Path) -> None:
    with example("registry", tmp_path / "log", "--storage", "memory://") as host:
        image = tmp_path / "image"
        oci_layout.write(image, [1000], ["amd64"])
        skopeo("copy --dest-tls-verify=false", f"oci:{image}:v1", f"docker://{host}/a:v1")
        skopeo("inspect --tls-verify=false", f"docker://{host}/a:v1")
    for name in "registry", "gateway":
        command = [sys.executable, str(EXAMPLES / f"{name}.py")]
        command += ["--storage", "memory://", "--workers", "2"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert run.returncode == 2
        said = f"{name}.py: error: memory:// cannot be shared by several workers\n"
        assert (run.stdout, run.stderr) == ("", said)


def test_a_storage_that_fails_is_an_error_and_does_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like a full disk, or an object store that is down."""
    client = Client(make_registry(storage_at(tmp_path)))
    location = client.post("/v2/a/blobs/uploads/").location or ""
    client.patch(location, data=b"01234")

    class Full:
        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...
        def write(self, block: bytes) -> None:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("storage.open_writer", Full)
        response = client.patch(location, data=b"56789")
        assert response.status_code == 503
        assert response.get_json()["errors"][0]["code"] == "UNAVAILABLE"
        digest = digest_of(b"0123456789")
        assert client.put(f"{location}?digest={digest}", data=b"56789").status_code == 503
    assert client.get(location).headers["Range"] == "0-4"
    client.patch(location, data=b"56789")
    assert client.put(f"{location}?digest={digest}").status_code == 201


@pytest.mark.usefixtures("s3")
def test_s3_is_written_to_conditionally() -> None:
    """The chunks of an upload rely on it: if two requests create an object, one fails."""
    store = S3Store("images", prefix="conditional")
    obstore.put(store, "x", b"1", mode="create")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "x", b"2", mode="create")


def test_a_push_that_fails_leaves_no_multipart_upload(
    s3: None, s3_server: str, tmp_path: Path
) -> None:
    """A client that leaves, and one whose digest is wrong."""
    storage = storage_at(f"s3://images/{tmp_path.name}")

    def uploads() -> int:
        listed = requests.get(f"{s3_server}/images?uploads", timeout=10).text
        return listed.count(f"<Key>{tmp_path.name}/")

    seen: list[int] = []

    def blocks() -> Iterator[bytes]:
        for _ in range(12):
            yield bytes(1_000_000)
        seen.append(uploads())

    def broken_off() -> Iterator[bytes]:
        yield from blocks()
        raise ConnectionError

    upload_id = storage.begin_upload("a")
    digest = digest_of(b"other")
    with pytest.raises(ConnectionError):
        storage.append_to_upload("a", upload_id, 0, broken_off())
    with pytest.raises(ConnectionError):
        storage.put_blob("a", digest, broken_off())
    with pytest.raises(DigestMismatchError):
        storage.put_blob("a", digest, blocks())
    assert seen == [1, 1, 1]
    assert uploads() == 0


@pytest.mark.skipif(not shutil.which("prlimit"), reason="prlimit is not installed (util-linux)")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """No file may be larger than a megabyte: what does not fit is an error, what does is kept."""
    port, storage = free_port(), tmp_path / "data"
    command = ["prlimit", "--fsize=1000000", sys.executable, str(EXAMPLES / "registry.py")]
    command += ["--port", str(port), "--storage", str(storage)]
    with serving(command, port, tmp_path / "log", clean=False) as host:
        uploads = f"http://{host}/v2/a/blobs/uploads/"
        small, large = os.urandom(900_000), os.urandom(20_000_000)
        for content, status in (small, 201), (large, 503), (small[:1000], 201):
            query = {"digest": digest_of(content)}
            response = requests.post(uploads, content, params=query, timeout=60)
            assert response.status_code == status
        location = requests.post(uploads, timeout=60).headers["Location"]
        url = resolve_location(uploads, location)
        assert requests.patch(url, small, timeout=60).status_code == 202
        assert requests.patch(url, large, timeout=60).status_code == 503
        assert requests.get(url, timeout=60).headers["Range"] == "0-899999"
        assert (
            requests.get(f"http://{host}/v2/a/blobs/{digest_of(large)}", timeout=60).status_code
            == 404
        )
        assert (
            requests.get(f"http://{host}/v2/a/blobs/{digest_of(small)}", timeout=60).content
            == small
        )
    for path in storage.glob("blobs/*/*"):
        assert digest_of(path.read_bytes()) == f"sha256:{path.name}"
    assert not list(storage.rglob("*#*"))


def test_a_worker_that_starts_after_an_unmount_does_not_use_what_is_there_instead(
    tmp_path: Path,
) -> None:
    place = tmp_path / "data"
    check_place(ArgumentParser(), str(place))
    storage_at(place, create=False).check()
    place.rename(tmp_path / "unmounted")
    place.mkdir()
    acts: list[Callable[[Any], object]] = [
        lambda storage: storage.check(),
        lambda storage: storage.put_blob("a", digest_of(b"x"), [b"x"]),
        lambda storage: storage.tag("a", "v1"),
    ]
    for act in acts:
        with pytest.raises(OSError, match="is not the directory that it was"):
            act(storage_at(place, create=False))
    assert list(place.iterdir()) == []
