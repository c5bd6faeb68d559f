"""`examples/collection.py`: what it deletes, what it keeps, and what may happen meanwhile."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import collection
import pytest
import requests
from collection import Collection, seconds
from obstore.store import MemoryStore
from storage import ObjectStorage, storage_at
from werkzeug.test import Client

from registry_routes.digests import digest_of
from registry_routes.registry import make_registry

from .servers import EXAMPLES, example


def storage_in(place: str | Path) -> ObjectStorage:
    storage = storage_at(place)
    assert isinstance(storage, ObjectStorage)
    return storage


@pytest.fixture(params=["directory", "object store", pytest.param("s3", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStorage:
    if request.param == "directory":
        return storage_in(tmp_path)
    if request.param == "object store":
        return ObjectStorage(MemoryStore())
    request.getfixturevalue("s3")
    return storage_in(f"s3://images/{tmp_path.name}")


def manifest_of(*layers: bytes) -> bytes:
    descriptors = [{"mediaType": "x/y", "digest": digest_of(one), "size": 1} for one in layers]
    return json.dumps({"layers": descriptors}).encode()


class Registry:
    def __init__(self, storage: Any) -> None:
        self.client = Client(make_registry(storage))

    def blob(self, content: bytes, name: str = "a") -> int:
        query = {"digest": digest_of(content)}
        uploads = f"/v2/{name}/blobs/uploads/"
        return self.client.post(uploads, query_string=query, data=content).status_code

    def mount(self, content: bytes, source: str, name: str) -> int:
        query = {"mount": digest_of(content), "from": source}
        return self.client.post(f"/v2/{name}/blobs/uploads/", query_string=query).status_code

    def manifest(self, content: bytes, name: str = "a", tag: str = "v1") -> int:
        response = self.client.put(f"/v2/{name}/manifests/{tag}", data=content)
        if response.status_code != 201:
            assert response.get_json()["errors"][0]["code"] == "MANIFEST_BLOB_UNKNOWN"
        return response.status_code

    def has(self, content: bytes, name: str = "a") -> bool:
        response = self.client.get(f"/v2/{name}/blobs/{digest_of(content)}", buffered=True)
        assert response.status_code == 404 or response.data == content
        return response.status_code == 200


def collect(storage: ObjectStorage, older_than: float = -1) -> Collection:
    """Collect content of any age by default, even what was written at this moment."""
    collection = Collection(storage, older_than)
    collection.delete()
    return collection


def test_it_deletes_what_no_manifest_needs(storage: ObjectStorage) -> None:
    registry = Registry(storage)
    for content in b"layer", b"subject's", b"unneeded", b"deleted", b"mounted", b"signature":
        assert registry.blob(content) == 201
    assert registry.mount(b"mounted", "a", "b") == registry.mount(b"layer", "a", "c") == 201
    assert registry.manifest(manifest_of(b"layer")) == 201
    assert registry.manifest(manifest_of(b"mounted"), "b") == 201
    # An index that lists layers as manifests, as BuildKit pushes its caches; with JSON escapes.
    cache = json.dumps({"manifests": [{"digest": digest_of(b"subject's")}]})
    assert registry.manifest(cache.replace("sha", "\\u0073ha").encode(), tag="v2") == 201
    registry.client.delete(f"/v2/a/blobs/{digest_of(b'deleted')}")
    registry.client.post("/v2/a/blobs/uploads/")
    location = registry.client.post("/v2/a/blobs/uploads/").location or ""
    registry.client.patch(location, data=b"chunk")

    before = list(map(str, Collection(storage, 3600).summary()))
    assert all(line.startswith("0 ") for line in before)
    collect(storage, 3600)
    assert registry.has(b"unneeded")
    assert registry.client.get(location).status_code == 204

    done = collect(storage)
    assert [len(one) for one in (done.contents, done.links, done.uploads, done.staged)] == [
        3, 4, 2, 0
    ]  # fmt: skip
    assert registry.client.get(location).status_code == 404
    there = {
        (name, content)
        for name in "abc"
        for content in (b"layer", b"subject's", b"unneeded", b"deleted", b"mounted", b"signature")
        if registry.has(content, name)
    }
    assert there == {("a", b"layer"), ("a", b"subject's"), ("b", b"mounted")}
    assert all(line.startswith("0 ") for line in collect(storage).summary())
    # What was deleted can be pushed again.
    assert registry.manifest(manifest_of(b"unneeded")) == 404
    assert registry.blob(b"unneeded") == registry.manifest(manifest_of(b"unneeded")) == 201
    assert not list(storage.names("condemned/"))


def test_age_counts_from_the_last_push_or_mount(tmp_path: Path) -> None:
    registry = Registry(storage_at(tmp_path))
    contents = [b"pushed again", b"finished again", b"mounted", b"old"]
    for content in contents:
        registry.blob(content)
    location = registry.client.post("/v2/a/blobs/uploads/").location or ""
    registry.client.patch(location, data=b"finished again")
    for path in tmp_path.rglob("*"):
        os.utime(path, (1, 1))
    registry.blob(b"pushed again")
    registry.client.put(location, query_string={"digest": digest_of(b"finished again")})
    registry.mount(b"mounted", "a", "b")
    staged = [tmp_path / "staging" / one for one in ("0" * 32, "x#1")]
    staged += [tmp_path / "blobs" / "sha256" / "0#2", tmp_path / "staging" / "new#1"]
    for path in staged:
        path.write_bytes(b"half")
        os.utime(path, (1, 1) if path.name != "new#1" else None)
    collect(storage_in(tmp_path), 3600)
    assert [registry.has(one) for one in contents] == [True, True, False, False]
    assert registry.has(b"mounted", "b")
    assert [path.exists() for path in staged] == [False, False, False, True]


def test_what_is_being_written_is_left_alone_however_young_the_rest_may_be(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    staged = tmp_path / "staging" / "new"

    def blocks() -> Iterator[bytes]:
        yield bytes(6_000_000)
        assert [path.name for path in staged.parent.iterdir()]
        collect(storage)
        yield b"x"

    content = bytes(6_000_000) + b"x"
    staged.parent.mkdir()
    staged.write_bytes(b"of another push, which will rename it")
    storage.put_blob("a", digest_of(content), blocks())
    assert storage.open_blob("a", digest_of(content)).size == len(content)
    assert staged.exists()


class Interrupted:
    """A store of obstore that calls a function before one of the calls (of the method `name`)."""

    def __init__(self, store: Any, at: int, act: Callable[[], Any], name: str = "") -> None:
        self.store, self.at, self.act, self.calls, self.name = store, at, act, 0, name

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*args: Any, **options: Any) -> Any:
            self.calls += self.name in ("", name)
            if self.calls == self.at:
                self.act()
            return method(*args, **options)

        return call


@pytest.mark.parametrize("how", ["blob", "mount", "manifest alone"])
@pytest.mark.parametrize("begins", ["push", "collection"])
def test_a_push_at_any_step_of_a_collection_loses_nothing_that_was_acknowledged(
    begins: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other way round: a collection at any step of a push."""
    content, statuses, at = b"layer", set(), 0
    manifest = manifest_of(content)
    name = "b" if how == "mount" else "a"
    while True:
        at += 1
        store = MemoryStore()
        plain = ObjectStorage(store)
        Registry(plain).blob(content)
        acknowledged: list[int] = []

        def push(storage: ObjectStorage) -> None:
            registry = Registry(storage)
            if how == "blob":
                registry.blob(content)
            if how == "mount":
                registry.mount(content, "a", "b")
            acknowledged.append(registry.manifest(manifest, name))

        if begins == "push":
            interrupted = ObjectStorage(Interrupted(store, at, lambda: collect(plain)))
            monkeypatch.setattr(
                ObjectStorage,
                "_write",
                lambda self, path, blocks: self.put(path, b"".join(blocks)),
            )
            push(interrupted)
        else:
            interrupted = ObjectStorage(Interrupted(store, at, lambda: push(plain)))
            collect(interrupted)
        if interrupted.store.calls < at:
            break
        registry = Registry(plain)
        statuses.update(acknowledged)
        if acknowledged == [201]:
            assert registry.has(content, name), at
        collect(plain)
        if acknowledged == [201]:
            assert registry.has(content, name), at
        registry.blob(content, name)
        assert registry.manifest(manifest, name) == 201
        assert registry.has(content, name)
    assert at > 5
    assert 201 in statuses
    assert statuses <= {201, 404}


def test_a_collection_that_is_killed_refuses_pushes_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    registry = Registry(ObjectStorage(store))
    registry.blob(b"layer")
    monkeypatch.setattr(collection, "LEASE", 1)

    class Killed(Exception):
        pass

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        collect(ObjectStorage(Interrupted(store, 2, kill, "delete")))
    assert len(list(ObjectStorage(store).names("condemned/"))) == 1
    assert registry.manifest(manifest_of(b"layer")) == 404
    time.sleep(1.1)
    registry.blob(b"layer")
    assert registry.manifest(manifest_of(b"layer")) == 201
    collect(ObjectStorage(store))
    assert not list(ObjectStorage(store).names("condemned/"))
    assert registry.has(b"layer")


def test_a_collection_that_was_suspended_for_too_long_deletes_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = ObjectStorage(MemoryStore())
    registry = Registry(storage)
    registry.blob(b"layer")
    found = Collection(storage, -1)
    with found._condemning() as tick:
        tick()
        late = time.time() + collection.LEASE
        monkeypatch.setattr(time, "time", lambda: late)
        with pytest.raises(OSError, match="run it again"):
            tick()


@pytest.mark.parametrize(("text", "expected"), [("0s", 0), ("90m", 5400), ("24h", 86400), ("7d", 604800)])  # fmt: skip
def test_an_age_is_read_with_its_unit(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1.5h", "24h\n", "٣h", "24 h", "1w"])
def test_a_malformed_age_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        collection.main(["--storage", "x", f"--older-than={text}"])
    assert raised.value.code == 2
    assert "must be a number with s, m, h or d" in capsys.readouterr().err


# While a registry is at work.


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(EXAMPLES / "registry.py"), "collect", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_pushes_race_with_collections(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "s3":
        request.getfixturevalue("s3")
    place = f"s3://images/{tmp_path.name}" if kind == "s3" else str(tmp_path / "data")
    layers = [os.urandom(1000) for _ in range(6)]  # several clients push these again and again
    kept: set[tuple[str, bytes]] = set()
    wrong: list[str] = []
    refused = 0
    stop = time.monotonic() + 25

    def work(root: str, seed: int) -> None:
        nonlocal refused
        chosen, name = random.Random(seed), f"r{seed % 2}"
        while time.monotonic() < stop:
            layer = chosen.choice(layers)
            manifest = json.loads(manifest_of(layer)) | {"annotations": {"x": str(chosen.random())}}
            content = json.dumps(manifest).encode()
            blob = f"{root}/v2/{name}/blobs/{digest_of(layer)}"
            for _ in range(200):  # what a client does, until the registry accepts the manifest
                if requests.head(blob, timeout=20).status_code == 404:
                    query = {"digest": digest_of(layer)}
                    uploads = f"{root}/v2/{name}/blobs/uploads/"
                    requests.post(uploads, layer, params=query, timeout=20).raise_for_status()
                manifests = f"{root}/v2/{name}/manifests/"
                put = requests.put(manifests + digest_of(content), content, timeout=20)
                if put.status_code == 201:
                    break
                refused += 1
                if "MANIFEST_BLOB_UNKNOWN" not in put.text:
                    wrong.append(put.text)
                time.sleep(0.01)
            else:
                wrong.append("trying again did not help")
            if requests.get(blob, timeout=20).content != layer:
                wrong.append(f"{blob} is lost")
            if chosen.random() < 0.7:  # so that no manifest needs the layer any more
                requests.delete(manifests + digest_of(content), timeout=20)
            else:
                kept.add((name, content))
                if len(kept) > 4:
                    name_of, old = kept.pop()
                    requests.delete(f"{root}/v2/{name_of}/manifests/{digest_of(old)}", timeout=20)

    deleted = 0
    with example("registry", tmp_path / "log", "--storage", place, "--workers", "2") as host:
        root = f"http://{host}"
        workers = [threading.Thread(target=work, args=(root, seed)) for seed in range(4)]
        for worker in workers:
            worker.start()
        while time.monotonic() < stop:
            run = command("--storage", place, "--older-than", "0s")
            assert run.returncode == 0, run.stderr
            deleted += not run.stdout.startswith("Deleted:\n  0 ")
        for worker in workers:
            worker.join()
        for name, content in kept:
            (layer,) = (one for one in layers if digest_of(one).encode() in content)
            found = requests.get(f"{root}/v2/{name}/manifests/{digest_of(content)}", timeout=20)
            blob = f"{root}/v2/{name}/blobs/{digest_of(layer)}"
            if found.status_code == 200 and requests.get(blob, timeout=20).content != layer:
                wrong.append(f"{name} has lost a layer")
    print(f"{deleted} collections deleted something, {refused} pushes were refused")
    assert not wrong, wrong[:3]
    assert deleted


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_the_command_deletes_what_the_dry_run_lists(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "s3":
        request.getfixturevalue("s3")
    place = f"s3://images/{tmp_path.name}" if kind == "s3" else str(tmp_path / "data")
    registry = Registry(storage_at(place))
    registry.blob(b"layer")
    time.sleep(1.1)  # S3's times are whole seconds
    options = ["--storage", place, "--older-than"]
    assert "Deleted:\n  0 unreferenced contents, 0 bytes\n" in command(*options, "1h").stdout
    dry = command(*options, "0s", "--dry-run")
    assert dry.stdout.startswith("It would delete:\n  1 unreferenced contents, 5 bytes\n")
    assert "Listing" in dry.stderr
    assert "Traceback" not in dry.stderr
    assert ("lifecycle rule" in dry.stdout) == (kind == "s3")
    assert registry.has(b"layer")
    assert "Deleted:\n  1 unreferenced contents, 5 bytes\n" in command(*options, "0s").stdout
    assert not registry.has(b"layer")


@pytest.mark.parametrize("place", ["memory://", "/proc/nope", "ftp://x/y", "", "./LICENSE"])
def test_a_storage_that_cannot_be_collected_is_an_error_in_one_line(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collection.main(["--storage", place, "--older-than", "1h"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert repr(place) in error
