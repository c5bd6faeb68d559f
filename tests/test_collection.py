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

from registry_routes.digests import digest_of

from .registry_client import RegistryClient, manifest_of
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


def collect(storage: ObjectStorage, older_than: float = -1) -> Collection:
    """Collect content of any age by default, even what was written at this moment."""
    collection = Collection(storage, older_than)
    collection.delete()
    return collection


def test_collection_deletes_what_no_manifest_needs(storage: ObjectStorage) -> None:
    client = RegistryClient(storage)
    contents = b"layer", b"subject's", b"unneeded", b"deleted", b"mounted", b"signature"
    for content in contents:
        client.push_blob("a", content)
    client.mount("b", b"mounted", "a")
    client.mount("c", b"layer", "a")
    client.push_manifest("a", "v1", manifest_of(b"layer"))
    client.push_manifest("b", "v1", manifest_of(b"mounted"))
    # An index that lists layers as manifests, as BuildKit pushes its caches; with JSON escapes.
    cache = json.dumps({"manifests": [{"digest": digest_of(b"subject's")}]})
    client.push_manifest("a", "v2", cache.replace("sha", "\\u0073ha").encode())
    client.delete(f"/v2/a/blobs/{digest_of(b'deleted')}")
    client.begin_upload()
    location = client.begin_upload("a", b"chunk")

    before = list(map(str, Collection(storage, 3600).summary()))
    assert all(line.startswith("0 ") for line in before)
    collect(storage, 3600)
    assert client.has_blob("a", b"unneeded")
    assert client.get(location).status_code == 204

    done = collect(storage)
    assert [len(things) for things in (done.contents, done.links, done.uploads, done.staged)] == [
        3, 4, 2, 0
    ]  # fmt: skip
    assert client.get(location).status_code == 404
    there = {(name, one) for name in "abc" for one in contents if client.has_blob(name, one)}
    assert there == {("a", b"layer"), ("a", b"subject's"), ("b", b"mounted")}
    assert all(line.startswith("0 ") for line in collect(storage).summary())
    # What was deleted can be pushed again.
    assert client.push_manifest("a", "v1", manifest_of(b"unneeded")).status_code == 404
    client.push_blob("a", b"unneeded")
    assert client.push_manifest("a", "v1", manifest_of(b"unneeded")).status_code == 201
    assert not list(storage.names("condemned/"))


def test_age_counts_from_the_last_push_or_mount(tmp_path: Path) -> None:
    client = RegistryClient(storage_at(tmp_path))
    contents = [b"pushed again", b"finished again", b"mounted", b"old"]
    for content in contents:
        client.push_blob("a", content)
    location = client.begin_upload("a", b"finished again")
    for path in tmp_path.rglob("*"):
        os.utime(path, (1, 1))
    client.push_blob("a", b"pushed again")
    client.put(location, query_string={"digest": digest_of(b"finished again")})
    client.mount("b", b"mounted", "a")
    staged = [tmp_path / "staging" / name for name in ("0" * 32, "x#1")]
    staged += [tmp_path / "blobs" / "sha256" / "0#2", tmp_path / "staging" / "new#1"]
    for path in staged:
        path.write_bytes(b"half")
        os.utime(path, (1, 1) if path.name != "new#1" else None)
    collect(storage_in(tmp_path), 3600)
    assert [client.has_blob("a", content) for content in contents] == [True, True, False, False]
    assert client.has_blob("b", b"mounted")
    assert [path.exists() for path in staged] == [False, False, False, True]


def test_collection_skips_files_that_are_being_written(tmp_path: Path) -> None:
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
def test_push_at_any_step_of_a_collection_loses_nothing_acknowledged(
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
        client = RegistryClient(plain)
        client.push_blob("a", content)
        acknowledged: list[int] = []

        def push(storage: ObjectStorage) -> None:
            client = RegistryClient(storage)
            if how == "blob":
                client.push_blob("a", content)
            if how == "mount":
                query = {"mount": digest_of(content), "from": "a"}
                client.post("/v2/b/blobs/uploads/", query_string=query)
            acknowledged.append(client.push_manifest(name, "v1", manifest).status_code)

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
        statuses.update(acknowledged)
        for _ in range(2):
            if acknowledged == [201]:
                assert client.has_blob(name, content), at
            collect(plain)
        client.push_blob(name, content)
        assert client.push_manifest(name, "v1", manifest).status_code == 201
        assert client.has_blob(name, content)
    assert at > 5
    assert 201 in statuses
    assert statuses <= {201, 404}


def test_killed_collection_refuses_pushes_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = ObjectStorage(MemoryStore())
    client = RegistryClient(storage)
    client.push_blob("a", b"layer")

    class Killed(Exception):
        pass

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        collect(ObjectStorage(Interrupted(storage.store, 2, kill, "delete")))
    assert len(list(storage.names("condemned/"))) == 1
    assert client.push_manifest("a", "v1", manifest_of(b"layer")).status_code == 404
    late = time.time() + collection.LEASE + 1
    monkeypatch.setattr(time, "time", lambda: late)
    client.push_blob("a", b"layer")
    assert client.push_manifest("a", "v1", manifest_of(b"layer")).status_code == 201
    collect(storage)
    assert not list(storage.names("condemned/"))
    assert client.has_blob("a", b"layer")


def test_suspended_collection_deletes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = ObjectStorage(MemoryStore())
    RegistryClient(storage).push_blob("a", b"layer")
    found = Collection(storage, -1)
    with found._condemning() as tick:
        tick()
        late = time.time() + collection.LEASE
        monkeypatch.setattr(time, "time", lambda: late)
        with pytest.raises(OSError, match="run it again"):
            tick()


def test_age_has_a_unit(capsys: pytest.CaptureFixture[str]) -> None:
    ages = {"0s": 0, "90m": 5400, "24h": 86400, "7d": 604800}
    assert [seconds(text) for text in ages] == list(ages.values())
    for text in "", "24", "h", "-1h", "1.5h", "24h\n", "٣h", "24 h", "1w":
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
    stop = time.monotonic() + 12

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
def test_command_deletes_what_its_dry_run_lists(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "s3":
        request.getfixturevalue("s3")
    place = f"s3://images/{tmp_path.name}" if kind == "s3" else str(tmp_path / "data")
    client = RegistryClient(storage_at(place))
    client.push_blob("a", b"layer")
    time.sleep(1.1)  # S3's times are whole seconds
    options = ["--storage", place, "--older-than"]
    assert "Deleted:\n  0 unreferenced contents, 0 bytes\n" in command(*options, "1h").stdout
    dry = command(*options, "0s", "--dry-run")
    assert dry.stdout.startswith("It would delete:\n  1 unreferenced contents, 5 bytes\n")
    assert "Listing" in dry.stderr
    assert "Traceback" not in dry.stderr
    assert ("lifecycle rule" in dry.stdout) == (kind == "s3")
    assert client.has_blob("a", b"layer")
    assert "Deleted:\n  1 unreferenced contents, 5 bytes\n" in command(*options, "0s").stdout
    assert not client.has_blob("a", b"layer")


@pytest.mark.parametrize("place", ["memory://", "/proc/nope", "ftp://x/y", "", "./LICENSE"])
def test_storage_that_cannot_be_collected_is_an_error_in_one_line(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collection.main(["--storage", place, "--older-than", "1h"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert repr(place) in error
