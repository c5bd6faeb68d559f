"""`examples/storage.py`: its layout, what it costs, and several processes on one storage."""

import errno
import os
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import directory as directory_module
import obstore
import pytest
import requests
from object_storage import write_whole
from obstore.store import MemoryStore, S3Store
from storage import BucketStorage, DirectoryStorage, check_place, storage_at

from registry_routes import resolve_location
from registry_routes.digests import DigestMismatchError, digest_of
from registry_routes.registry import BLOCK, Manifest, MissingError, Storage

from .registry_client import JSON, MANIFEST_TYPE, RegistryClient, manifest_of
from .servers import example
from .test_storage_contract import BLOB, DIGEST, MANIFEST, OTHER, SUBJECT, content_of

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


# What requests cost.


class Counting:
    """A store of obstore that counts the requests that an object store would get."""

    def __init__(self, store: Any) -> None:
        self.store, self.calls = store, 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        return getattr(self.store, name)


@pytest.fixture
def counting() -> Counting:
    return Counting(MemoryStore())


@pytest.fixture
def client(counting: Counting) -> RegistryClient:
    return RegistryClient(BucketStorage(counting))


def cost_of(counting: Counting, act: Callable[[], Any], times: int = 1) -> int:
    before = counting.calls
    for _ in range(times):
        act()
    return counting.calls - before


def push_in_chunks(client: RegistryClient, *chunks: bytes, last: bytes = b"") -> None:
    location = client.begin_upload("a", *chunks)
    query = {"digest": digest_of(b"".join([*chunks, last]))}
    assert client.put(location, query_string=query, data=last).status_code == 201


def test_requests_for_blobs(client: RegistryClient, counting: Counting) -> None:
    assert cost_of(counting, lambda: push_in_chunks(client, last=BLOB[:3000])) == 5
    assert cost_of(counting, lambda: push_in_chunks(client, last=BLOB[:3000])) == 8  # it was there
    for count, most in (10, 46), (100, 410):
        chunks = [b"%d" % i for i in range(count)]
        assert cost_of(counting, lambda: push_in_chunks(client, *chunks)) <= most
    path = f"/v2/a/blobs/{digest_of(BLOB[:3000])}"
    assert cost_of(counting, lambda: client.get(path)) == 2
    assert cost_of(counting, lambda: client.get(path, headers={"Range": "bytes=5-9"})) == 2
    assert cost_of(counting, lambda: client.head(path)) == 2


def test_requests_for_manifests(client: RegistryClient, counting: Counting) -> None:
    layers = [b"%d" % i for i in range(11)]
    for layer in layers:
        client.push_blob("a", layer)
    for count, most in (2, 7), (11, 16):
        content = manifest_of(*layers[:count])
        assert cost_of(counting, lambda: client.push_manifest("a", "v1", content)) == most
    assert cost_of(counting, lambda: client.get("/v2/a/manifests/v1")) == 2
    content = manifest_of(note=1)
    client.push_manifest("a", "other", manifest_of())
    tags = [f"v{i}" for i in range(21)]
    path = f"/v2/a/manifests/{digest_of(content)}"
    client.put(path, data=content, query_string={"tag": tags}, content_type=MANIFEST_TYPE)
    assert cost_of(counting, lambda: client.delete(path)) <= 30
    assert client.lists("/v2/a/tags/list", "tags") == [["other"]]


def test_absence_costs_one_request(client: RegistryClient, counting: Counting) -> None:
    client.push_blob("a")
    paths = [f"blobs/{OTHER}", "manifests/v1", f"manifests/{OTHER}", f"blobs/uploads/{'0' * 32}"]
    costs = [cost_of(counting, lambda: client.get(f"/v2/a/{path}")) for path in paths]
    assert costs == [2, 1, 1, 1]  # a blob may have been set aside
    assert cost_of(counting, client.storage.check) == 1


def test_requests_for_lists(client: RegistryClient, counting: Counting) -> None:
    """A list of up to a thousand objects is one request."""
    for i in range(50):
        client.push_manifest(f"r{i:03}/x", "v1", manifest_of())
        client.push_manifest("a", "v1", manifest_of(note=i, subject={"digest": SUBJECT}))
    for path in "_catalog", "_catalog?n=5&last=r020/x", f"a/referrers/{SUBJECT}":
        assert cost_of(counting, lambda: client.get(f"/v2/{path}")) == 1
    last = sorted(
        descriptor["digest"]
        for descriptor in client.get(f"/v2/a/referrers/{SUBJECT}").get_json()["manifests"]
    )[20]
    assert cost_of(counting, lambda: client.get(f"/v2/a/referrers/{SUBJECT}?last={last}")) == 1


def test_descriptor_that_is_too_long_for_a_path_is_an_object(client: RegistryClient) -> None:
    for length in 10, 2000:
        annotations = {"x": os.urandom(length).hex()}
        content = manifest_of(subject={"digest": SUBJECT}, annotations=annotations)
        client.push_manifest("a", "v1", content)
        (found,) = client.get(f"/v2/a/referrers/{SUBJECT}").get_json()["manifests"]
        assert found["annotations"] == annotations
        client.delete(f"/v2/a/manifests/{digest_of(content)}")
        assert client.get(f"/v2/a/referrers/{SUBJECT}").get_json()["manifests"] == []


def test_manifest_pushed_with_another_type_is_one_referrer(client: RegistryClient) -> None:
    content = manifest_of(subject={"digest": SUBJECT})
    for media_type in MANIFEST_TYPE, JSON, MANIFEST_TYPE:
        client.put("/v2/a/manifests/v1", data=content, content_type=media_type)
        (found,) = client.get(f"/v2/a/referrers/{SUBJECT}").get_json()["manifests"]
        assert found["mediaType"] == media_type


def test_garbage_costs_a_push_nothing(client: RegistryClient, counting: Counting) -> None:
    client.push_blob("a")
    client.push_manifest("a", "v1", manifest_of(BLOB))

    def push() -> None:
        push_in_chunks(client, last=BLOB)
        client.push_manifest("a", "v1", manifest_of(BLOB))

    push()
    before = cost_of(counting, push)
    for i in range(300):
        client.storage.create(f"condemned/sha256/{i:064}")
        client.storage.link_blob("a", f"sha256:{i:064}", 1)
    assert cost_of(counting, push) == before


# What a directory looks like: after deletes, after a power cut, under a collection.


def test_deletes_leave_no_empty_directories(tmp_path: Path) -> None:
    place = tmp_path / "data"
    storage = storage_at(place)
    for digest in DIGEST, OTHER:
        storage.put_manifest("a/b", digest, MANIFEST, tags=["v1"], subject=SUBJECT)
    upload = storage.begin_upload("a/b")
    storage.append_to_upload("a/b", upload, 0, [b"chunk"])
    storage.delete_manifest("a/b", DIGEST)
    manifests = place / "repositories" / "a" / "b" / "_manifests" / "sha256"
    assert len(list(manifests.iterdir())) == 1
    storage.delete_manifest("a/b", OTHER)
    storage.cancel_upload("a/b", upload)
    assert not {path.name for path in place.iterdir()} - {"locks", "staging"}
    storage.put_manifest("a/b", DIGEST, MANIFEST, tags=["v1"])
    assert list(storage.tags("a/b")) == ["v1"]


@pytest.mark.parametrize(
    "path", [f"blobs/sha256/{DIGEST[7:]}", f"repositories/a/_blobs/sha256/{DIGEST[7:]}"]
)
def test_blob_without_content_or_link_is_missing_until_it_is_pushed(
    tmp_path: Path, path: str
) -> None:
    storage = DirectoryStorage(tmp_path)
    for _ in range(2):
        storage.put_blob("a", DIGEST, [BLOB])
        assert content_of(storage, "a", DIGEST) == BLOB
        blob = storage.open_blob("a", DIGEST)
        (tmp_path / path).unlink()
        for method in storage.open_blob, storage.delete_blob:
            with pytest.raises(MissingError):
                method("a", DIGEST)
        if path.startswith("blobs/"):  # the call raises it, before the first block
            with pytest.raises(MissingError):
                blob.read(0, blob.size)
        with pytest.raises(MissingError):
            storage.mount_blob("b", DIGEST, "a")


@pytest.mark.parametrize("how", ["put", "one chunk", "two chunks"])
def test_push_replaces_damaged_content(tmp_path: Path, how: str) -> None:
    storage = DirectoryStorage(tmp_path)
    for wrong in b"", BLOB[:-1], BLOB[:-1] + b"x":
        storage.put_blob("a", DIGEST, [BLOB])
        (tmp_path / "blobs" / "sha256" / DIGEST[7:]).write_bytes(wrong)
        if how == "put":
            storage.put_blob("b", DIGEST, [BLOB])
        else:
            upload_id = storage.begin_upload("b")
            size = storage.append_to_upload("b", upload_id, 0, [BLOB[:-1]])
            if how == "one chunk":
                storage.cancel_upload("b", upload_id)
                upload_id, size = storage.begin_upload("b"), 0
                size = storage.append_to_upload("b", upload_id, 0, [BLOB])
            storage.finish_upload("b", upload_id, size, [BLOB[size:]], DIGEST)
        for name in "a", "b":
            assert content_of(storage, name, DIGEST) == BLOB


@pytest.mark.parametrize("kind", ["_manifests/*/*/-", "_tags/*", "_referrers/*/*/*"])
def test_empty_file_counts_as_missing_until_it_is_pushed(tmp_path: Path, kind: str) -> None:
    storage = DirectoryStorage(tmp_path)

    def push() -> None:
        storage.put_manifest("a", DIGEST, MANIFEST, tags=["v1"], subject=SUBJECT, descriptor=b"1")
        assert storage.manifest("a", storage.tag("a", "v1")) == MANIFEST
        assert list(storage.referrers("a", SUBJECT)) == [(DIGEST, b"1")]

    push()
    (file,) = tmp_path.glob(f"repositories/a/{kind}")
    file.write_bytes(b"")
    missing = 0
    for look in (
        lambda: storage.manifest("a", DIGEST),
        lambda: storage.tag("a", "v1"),
        lambda: next(storage.referrers("a", SUBJECT)),
    ):
        try:
            look()
        except (MissingError, StopIteration):
            missing += 1
    assert missing == 1
    push()


def test_foreign_files_are_ignored(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    storage.put_manifest("a/b", DIGEST, MANIFEST, tags=["v1"])
    for directory in "repositories", "repositories/a/b/_tags", "catalog":
        for name in ".DS_Store", "lost+found", "Upper case", "v2#1":
            (tmp_path / directory / name).write_bytes(b"x")
    assert list(storage.repositories()) == ["a/b"]
    assert list(storage.tags("a/b")) == ["v1"]


def test_push_that_breaks_off_has_no_thread_left_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is closed next, and another may get the same descriptor."""
    is_open = []

    def write_slowly(file: Any, block: bytes) -> None:
        time.sleep(0.1)
        is_open.append(not file.closed)

    def break_off() -> Iterator[bytes]:
        yield from [bytes(BLOCK)] * 3
        raise OSError("the client is gone")

    monkeypatch.setattr("directory.write_whole", write_slowly)
    with pytest.raises(OSError, match="the client is gone"):
        storage_at(tmp_path).put_blob("a", DIGEST, break_off())
    assert is_open == [True] * 3
    assert not list(tmp_path.glob("staging/*"))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_error_in_a_thread_that_writes_fails_the_push(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    content = bytes([1]) * BLOCK + bytes([2]) * BLOCK + bytes([3]) * BLOCK
    storage, write = storage_at(tmp_path), write_whole

    def write_until_full(file: Any, block: bytes) -> None:
        if block[0] == number + 1:
            raise OSError(errno.ENOSPC, "full")
        write(file, block)

    monkeypatch.setattr(directory_module, "write_whole", write_until_full)
    blocks = [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)]
    with pytest.raises(OSError, match="full"):
        storage.put_blob("a", digest_of(content), blocks)
    monkeypatch.undo()
    assert not list(tmp_path.glob("staging/*"))
    storage.put_blob("a", digest_of(content), blocks)
    assert content_of(storage, "a", digest_of(content)) == content


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="there is no posix_fadvise here")
def test_disk_is_told_to_write_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every whole part of `EARLY` bytes, once, whatever the sizes of the blocks."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(directory_module, "EARLY", 2 * BLOCK)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, how: told.append((start, size)))
    content = os.urandom(5 * BLOCK + 20)
    middle = 2 * BLOCK - 10
    blocks = [content[:middle], content[middle : middle + BLOCK], content[middle + BLOCK :]]
    storage_at(tmp_path).put_blob("a", digest_of(content), blocks)
    assert told == [(0, 2 * BLOCK), (2 * BLOCK, 2 * BLOCK)]


def test_worker_started_after_an_unmount_fails(
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
        with pytest.raises(OSError, match="was replaced by another directory"):
            act(storage_at(place, create=False))
    assert list(place.iterdir()) == []


# Several processes and threads.


@pytest.mark.slow
def test_two_registries_take_turns_chunk_by_chunk(place: str, tmp_path: Path) -> None:
    content = os.urandom(1_500_000)
    digest = digest_of(content, "sha512")
    with (
        example("registry", tmp_path / "log-1", "--storage", place, "--workers", "2") as one,
        example("registry", tmp_path / "log-2", "--storage", place) as two,
    ):
        roots = [f"http://{one}", f"http://{two}"]
        response = requests.post(f"{roots[0]}/v2/a/b/blobs/uploads/", timeout=30)
        location = response.headers["Location"]
        for turn, start in enumerate(range(0, len(content), 500_000)):
            here, there = roots[turn % 2] + location, roots[(turn + 1) % 2] + location
            chunk = content[start : start + 500_000]
            headers = {"Content-Range": f"{start}-{start + len(chunk) - 1}"}
            response = requests.patch(here, chunk, headers=headers, timeout=30)
            assert response.status_code == 202
            status = requests.get(there, timeout=30)
            assert status.headers["Range"] == f"0-{start + len(chunk) - 1}"
            again = requests.patch(there, chunk, headers=headers, timeout=30)
            assert again.status_code == 416
        put = requests.put(resolve_location(roots[1], location, digest=digest), timeout=30)
        assert put.status_code == 201
        for root in roots:
            blob = requests.get(f"{root}/v2/a/b/blobs/{digest}", timeout=30)
            assert blob.content == content
            assert requests.get(root + location, timeout=30).status_code == 404


@pytest.mark.slow
def test_concurrent_pushes_of_one_blob_and_one_tag_succeed(storages: list[Storage]) -> None:
    content, other = os.urandom(200_000), os.urandom(200_000)
    clients = [RegistryClient(storage) for storage in storages]
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
    assert client.get(f"/v2/a/blobs/{digest}").data == content
    assert client.get("/v2/a/manifests/v1").data in (b'{"i": 0}', b'{"i": 1}')

    # One upload, two requests at once for the same place: one of them is told so.
    location = client.post("/v2/a/blobs/uploads/").location or ""

    def patch(chunk: bytes) -> Any:
        chosen = clients[chunk is other]
        headers = {"Content-Range": f"0-{len(chunk) - 1}"}
        return chosen.patch(location, data=chunk, headers=headers).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(patch, [content, other] * 4))
    assert sorted(statuses) == [202, *[416] * 7]
    won = (content, other)[statuses.index(202) % 2]
    put = client.put(location, query_string={"digest": digest_of(won)})
    assert put.status_code == 201


@pytest.mark.slow
def test_upload_cancelled_and_finished_at_once(storages: list[Storage]) -> None:
    client = RegistryClient(storages[0])
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


@pytest.mark.slow
def test_pushes_next_to_deletes_that_remove_directories(tmp_path: Path) -> None:
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
            list(pool.map(push, range(100)))
        finally:
            ends.set()
        assert [future.result() for future in deleting] == [None, None]


def test_no_tag_points_at_a_deleted_manifest(storage: Storage) -> None:
    def move(digest: str) -> None:
        storage.put_manifest("a", digest, MANIFEST, tags=["v1", "v2"])

    def delete(digest: str) -> None:
        with suppress(MissingError):
            storage.delete_manifest("a", digest)

    for _ in range(10):
        with ThreadPoolExecutor(8) as pool:
            jobs = [
                pool.submit(job, digest) for digest in (DIGEST, OTHER) * 4 for job in (move, delete)
            ]
            for done in jobs:
                done.result()
        for digest in DIGEST, OTHER:
            delete(digest)
        for tag in "v1", "v2":
            with pytest.raises(MissingError):
                storage.tag("a", tag)


# S3.


@pytest.mark.slow
@pytest.mark.usefixtures("s3")
def test_s3_is_written_to_conditionally() -> None:
    """The chunks of an upload rely on it: if two requests create an object, one fails."""
    store = S3Store("images", prefix="conditional")
    obstore.put(store, "x", b"1", mode="create")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "x", b"2", mode="create")


@pytest.mark.slow
def test_failed_push_leaves_no_multipart_upload(s3: None, s3_server: str, tmp_path: Path) -> None:
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
