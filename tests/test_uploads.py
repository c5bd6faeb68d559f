"""Uploads of `examples/directory.py` and `examples/bucket.py` after a failure."""

import builtins
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import directory as directory_module
import pytest
from object_storage import write_whole
from obstore.exceptions import GenericError
from obstore.store import MemoryStore
from storage import BucketStorage, DirectoryStorage, ObjectStorage
from werkzeug.test import TestResponse

from registry_routes.digests import digest_of
from registry_routes.headers import upload_range

from .registry_client import RegistryClient, manifest_of

UPLOADS = [([], b"01234"), ([b"01234"], b""), ([b"01", b"234"], b""), ([b"01"], b"234")]


class Fault:
    """Fails the call number `at`, of all that it is told of: before it is carried out, or after."""

    def __init__(self, error: Callable[[], Exception], at: int, *, is_after: bool = False) -> None:
        self.error, self.at, self.is_after = error, at, is_after
        self.calls = 0
        self.is_over = False

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls += not self.is_over
            if self.is_over or self.calls != self.at:
                return function(*args, **options)
            if self.is_after:
                function(*args, **options)
            raise self.error()

        return call


class FaultyStore:
    """A store of obstore of whose requests one fails."""

    def __init__(self, fault: Fault) -> None:
        self.store, self.fault = MemoryStore(), fault

    def __getattr__(self, name: str) -> Any:
        return self.fault.of(getattr(self.store, name))


class FaultyModule:
    """A module of which some functions fail."""

    def __init__(self, module: Any, fault: Fault, *names: str) -> None:
        self.module, self.fault, self.names = module, fault, names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.module, name)
        return self.fault.of(found) if name in self.names else found


def push_with_repeats(client: RegistryClient, chunks: list[bytes], last: bytes) -> bytes:
    """Push a blob as a client does that looks how far it is, and repeats what failed."""

    def repeat(ask: Callable[[], TestResponse]) -> TestResponse:
        response = ask()
        return ask() if response.status_code == 503 else response

    location = repeat(lambda: client.post("/v2/a/blobs/uploads/")).location or ""
    sent = 0
    for chunk in chunks:
        headers = {"Content-Range": f"{sent}-{sent + len(chunk) - 1}"}
        patch = client.patch(location, data=chunk, headers=headers)
        if patch.status_code == 503:
            status = client.get(location)
            assert status.status_code == 204
            assert status.headers["Range"] in (upload_range(sent), upload_range(sent + len(chunk)))
            if status.headers["Range"] == upload_range(sent):
                patch = client.patch(location, data=chunk, headers=headers)
                assert patch.status_code == 202
        sent += len(chunk)
    content = b"".join([*chunks, last])
    query = {"digest": digest_of(content)}
    put = repeat(lambda: client.put(location, query_string=query, data=last))
    assert put.status_code == 201, put.text
    return content


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize(("chunks", "last"), UPLOADS)
def test_failed_request_of_an_object_store_is_mended_by_repeating(
    chunks: list[bytes], last: bytes, is_after: bool
) -> None:
    """The store does not carry it out, or its answer is lost."""
    fault, at = Fault(lambda: GenericError("reset"), 0), 0
    while fault.calls >= at:
        at += 1
        fault = Fault(lambda: GenericError("reset"), at, is_after=is_after)
        client = RegistryClient(BucketStorage(FaultyStore(fault)))
        content = push_with_repeats(client, chunks, last)
        fault.is_over = True
        assert client.has_blob("a", content)
    assert at > 5


@pytest.mark.parametrize(
    ("chunks", "last"),
    [([b"01"], b"234"), *(pytest.param(*kind, marks=pytest.mark.slow) for kind in UPLOADS[:3])],
)
def test_full_disk_is_mended_by_repeating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: list[bytes], last: bytes
) -> None:
    def full() -> OSError:
        return OSError(28, "No space left on device")

    fault, at = Fault(full, 0), 0
    while fault.calls >= at:
        at += 1
        fault = Fault(full, at)
        client = RegistryClient(DirectoryStorage(tmp_path))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", lambda descriptor: None)  # which would take long
            faulty = FaultyModule(os, fault, "mkdir", "open", "replace")
            patched.setattr(directory_module, "os", faulty)
            patched.setattr(directory_module, "open", fault.of(builtins.open), raising=False)
            patched.setattr(directory_module, "write_whole", fault.of(write_whole))
            content = push_with_repeats(client, chunks, last)
        assert client.has_blob("a", content)
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    assert at > 10


def test_clean_up_that_fails_is_no_failure() -> None:
    """Nothing that happens after the link is written is an error for the client."""
    for at in range(1, 4):
        store = FaultyStore(Fault(lambda: GenericError("reset"), 0))
        client = RegistryClient(BucketStorage(store))
        location = client.begin_upload("a", b"01", b"234")
        query = {"digest": digest_of(b"01234")}
        # State, two chunks, content, link: then the state is replaced, and the chunks are deleted.
        store.fault.at = store.fault.calls + 6 + at
        assert client.put(location, query_string=query).status_code == 201


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("act", ["push a manifest", "delete a manifest", "delete a blob"])
def test_failed_request_of_a_manifest_is_mended_by_repeating(act: str, is_after: bool) -> None:
    content = manifest_of(b"layer")
    fault, at = Fault(lambda: GenericError("reset"), 0), 0
    while fault.calls >= at:
        at += 1
        store = FaultyStore(Fault(lambda: GenericError("reset"), 0))
        client = RegistryClient(BucketStorage(store))
        client.push_blob("a", b"layer")
        client.push_manifest("a", "v1", content)
        store.fault = fault = Fault(lambda: GenericError("reset"), at, is_after=is_after)
        kind, digest = (
            ("blobs", digest_of(b"layer")) if "blob" in act else ("manifests", digest_of(content))
        )
        for _ in range(2):
            if act == "push a manifest":
                response = client.push_manifest("a", "v2", content)
            else:
                response = client.delete(f"/v2/a/{kind}/{digest}")
            if response.status_code != 503:
                break
        fault.is_over = True
        tags = client.get("/v2/a/tags/list").get_json()["tags"]
        if act == "push a manifest":
            assert (response.status_code, tags) == (201, ["v1", "v2"])
        else:
            assert response.status_code in ((202, 404) if is_after else (202,))
            assert client.get(f"/v2/a/{kind}/{digest}").status_code == 404
        for tag in tags if kind == "manifests" else []:
            assert client.get(f"/v2/a/manifests/{tag}").status_code == 200, at
    assert at > 2


def test_blob_that_cannot_be_opened_is_a_503(caplog: pytest.LogCaptureFixture) -> None:
    """The store is asked for it before the headers go out."""
    store = FaultyStore(Fault(lambda: GenericError("reset\nby peer"), 0))
    client = RegistryClient(BucketStorage(store))
    path = f"/v2/a/blobs/{client.push_blob('a')}"
    for method, headers in ("GET", {}), ("GET", {"Range": "bytes=5-9"}), ("HEAD", {}):
        for at in 1, 2:
            store.fault.at = store.fault.calls + at
            caplog.clear()
            assert client.open(path, method=method, headers=headers).status_code == 503
            (record,) = caplog.records
            assert record.getMessage().endswith("the storage has failed: reset by peer")


# After a power cut.


def damage(upload: Path, how: str) -> None:
    data, state = upload / "data", upload / "state"
    if how == "data is missing":
        data.unlink()
    elif how == "data is short":
        os.truncate(data, data.stat().st_size - 1)
    elif how == "state is empty":
        state.write_bytes(b"")
    elif how == "state is short":
        state.write_bytes(state.read_bytes()[:-5])
    else:
        state.unlink()


@pytest.mark.parametrize(
    "how",
    ["data is missing", "data is short", "state is empty", "state is short", "state is missing"],
)
@pytest.mark.parametrize("chunks", [[b"01234"], [b"01", b"234"]])
def test_upload_whose_data_did_not_survive_is_unknown(
    tmp_path: Path, how: str, chunks: list[bytes]
) -> None:
    client = RegistryClient(DirectoryStorage(tmp_path))
    location = client.begin_upload("a", *chunks)
    damage(tmp_path / "repositories/a/_uploads" / location.rpartition("/")[2], how)
    query = {"digest": digest_of(b"01234")}
    assert client.put(location, query_string=query).status_code == 404
    assert client.get(location).status_code == 404
    assert client.patch(location, data=b"5").status_code == 404
    assert not client.has_blob("a", b"01234")
    assert client.put(client.begin_upload(), query_string=query, data=b"01234").status_code == 201


def test_bytes_that_the_state_does_not_count_are_ignored(tmp_path: Path) -> None:
    """A process was killed after it had added a chunk, and before it wrote the state."""
    client = RegistryClient(DirectoryStorage(tmp_path))
    for more in b"", b"56":
        location = client.begin_upload("a", b"01", b"234")
        data = tmp_path / "repositories/a/_uploads" / location.rpartition("/")[2] / "data"
        data.write_bytes(data.read_bytes() + b"of another request")
        assert client.get(location).headers["Range"] == "0-4"
        query = {"digest": digest_of(b"01234" + more)}
        assert client.put(location, query_string=query, data=more).status_code == 201
        assert client.has_blob("a", b"01234" + more)


def test_data_is_synced_before_the_state_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a chunk that begins an upload, in one that goes on, and in the last one."""
    synced: set[tuple[int, int]] = set()
    fsync = os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        synced.add((found.st_ino, found.st_size))

    storage: ObjectStorage = DirectoryStorage(tmp_path)
    monkeypatch.setattr(os, "fsync", record)
    upload_id = storage.begin_upload("a")
    for start, chunk in (0, b"01"), (2, b"234"):
        storage.append_to_upload("a", upload_id, start, [chunk])
        found = (tmp_path / "repositories/a/_uploads" / upload_id / "data").stat()
        assert (found.st_ino, found.st_size) in synced
    storage.finish_upload("a", upload_id, 5, [b"5"], digest_of(b"012345"))
    (blob,) = tmp_path.glob("blobs/*/*")
    assert (blob.stat().st_ino, blob.stat().st_size) in synced


def test_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(1, "Operation not permitted")

    for name in "link", "symlink":
        monkeypatch.setattr(os, name, refuse)
    client = RegistryClient(DirectoryStorage(tmp_path))
    for chunks, last in UPLOADS:
        assert client.has_blob("a", push_with_repeats(client, chunks, last))
    assert client.push_manifest("a", "v1", manifest_of(b"01234")).status_code == 201
