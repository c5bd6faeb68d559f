"""`examples/collection.py`: contents that it deletes or keeps, and requests at the same time."""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import collection
import object_storage
import pytest
import requests
from collection import Collection, parse_duration, select_unneeded
from object_storage import Entry
from obstore.store import MemoryStore
from storage import BucketStorage, DirectoryStorage, storage_at

from registry_routes.digests import digest_of

from .disks import small_disk
from .registry_client import INDEX_TYPE, RegistryClient, manifest_of
from .servers import example


class SteppingStore:
    """A store of obstore that calls a function before each of its calls."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.step: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        self.step()
        return getattr(self.store, name)


class AgingBucket(BucketStorage):
    """A bucket whose objects become two hours older when `age` is called."""

    def __init__(self) -> None:
        super().__init__(SteppingStore())
        self.ages: dict[tuple[str, Any], int] = {}

    def call_each(self, act: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return [act(item) for item in items]  # in one thread, so that the steps have an order

    def age(self) -> None:
        for found in self._list(""):
            version = found["path"], found["e_tag"]
            self.ages[version] = self.ages.get(version, 0) + 1

    def _entry(self, meta: Any) -> Entry:
        age = self.ages.get((meta["path"], meta["e_tag"]), 0)
        return super()._entry(meta)._replace(time=meta["last_modified"].timestamp() - 7200 * age)


class AgingDirectory(DirectoryStorage):
    """A directory whose files become two hours older when `age` is called."""

    def age(self) -> None:
        for path in Path(self.directory).rglob("*"):
            if path.is_file():
                found = path.stat()
                os.utime(path, (found.st_atime, found.st_mtime - 7200))


Aging = AgingBucket | AgingDirectory


@pytest.fixture(params=["directory", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Aging:
    return AgingDirectory(tmp_path) if request.param == "directory" else AgingBucket()


@pytest.fixture
def client(storage: Aging) -> RegistryClient:
    return RegistryClient(storage)


def collect(storage: Any, older_than: float = 3600, **options: bool) -> Collection:
    found = select_unneeded(storage, older_than, **options)
    found.delete()
    return found


def count(found: Collection) -> list[int]:
    """Count what a collection deletes: contents, links that were set aside and that will be, uploads."""
    kinds: list[Any] = [found.contents, found.links, found.set_aside, found.uploads]
    return [len(things) for things in kinds]


def index_of(*manifests: bytes) -> bytes:
    listed = [{"digest": digest_of(manifest), "size": len(manifest)} for manifest in manifests]
    return json.dumps({"mediaType": INDEX_TYPE, "manifests": listed}).encode()


def test_collection_deletes_unreferenced_contents(storage: Aging, client: RegistryClient) -> None:
    contents = b"layer", b"cached", b"unneeded", b"deleted", b"mounted", b"signature"
    for content in contents:
        client.push_blob("a", content)
    client.mount("b", b"mounted", "a")
    client.mount("c", b"layer", "a")
    client.push_manifest("a", "v1", manifest_of(b"layer"))
    client.push_manifest("b", "v1", manifest_of(b"mounted"))
    # An index that lists layers as manifests, as BuildKit pushes its caches; with JSON escapes.
    client.push_manifest("a", "v2", index_of(b"cached").replace(b"sha", b"\\u0073ha"))
    client.delete(f"/v2/a/blobs/{digest_of(b'deleted')}")
    client.begin_upload()
    location = client.begin_upload("a", b"chunk")
    assert count(collect(storage)) == [0, 0, 0, 0]
    storage.age()
    assert count(collect(storage)) == [1, 1, 4, 2]
    assert client.get(location).status_code == 404
    assert count(collect(storage)) == [0, 0, 0, 0]  # the links set aside are not yet old
    storage.age()
    assert count(collect(storage)) == [2, 4, 0, 0]
    there = {
        (name, content) for name in "abc" for content in contents if client.has_blob(name, content)
    }
    assert there == {("a", b"layer"), ("a", b"cached"), ("b", b"mounted")}
    assert sum(entry.path.startswith("blobs/") for entry in storage.entries("blobs/")) == 3
    assert count(collect(storage)) == [0, 0, 0, 0]
    # Deleted contents can be pushed again.
    assert client.push_manifest("a", "v1", manifest_of(b"unneeded")).status_code == 404
    client.push_blob("a", b"unneeded")
    assert client.push_manifest("a", "v1", manifest_of(b"unneeded")).status_code == 201


@pytest.mark.parametrize("how", ["HEAD", "GET", "mount", "manifest"])
def test_link_that_was_set_aside_is_moved_back_when_wanted(storage: Aging, how: str) -> None:
    client = RegistryClient(storage)
    client.push_blob("a", b"layer")
    storage.age()
    assert count(collect(storage)) == [0, 0, 1, 0]
    if how == "mount":
        client.mount("b", b"layer", "a")
    elif how == "manifest":
        assert client.push_manifest("a", "v1", manifest_of(b"layer")).status_code == 201
    else:
        path = f"/v2/a/blobs/{digest_of(b'layer')}"
        assert client.open(path, method=how).status_code == 200
    assert count(collect(storage)) == [0, 0, 0, 0]
    storage.age()
    expected = 0 if how == "manifest" else 2 if how == "mount" else 1
    assert count(collect(storage)) == [0, 0, expected, 0]  # it is as new


def test_link_that_a_manifest_needs_is_moved_back(storage: Aging, client: RegistryClient) -> None:
    """The manifest was pushed while the link was being set aside."""
    client.push_blob("a", b"layer")
    client.push_manifest("a", "v1", manifest_of(b"layer"))
    storage.move(
        object_storage.path_of("a", "_blobs", digest_of(b"layer")),
        object_storage.path_of("a", "_unneeded", digest_of(b"layer")),
    )
    for _ in range(3):
        storage.age()
        collect(storage)
    assert client.has_blob("a", b"layer")


def test_blob_is_deleted_at_once_and_its_content_later(storage: Aging) -> None:
    client = RegistryClient(storage)
    client.push_blob("a", b"layer")
    storage.age()
    client.delete(f"/v2/a/blobs/{digest_of(b'layer')}")
    assert not client.has_blob("a", b"layer")
    assert count(collect(storage)) == [0, 0, 0, 0]  # a mount may be going on
    storage.age()
    assert count(collect(storage)) == [1, 1, 0, 0]


def test_result_of_an_upload_is_kept_for_an_hour(storage: Aging, client: RegistryClient) -> None:
    location = client.begin_upload()
    query = {"digest": digest_of(b"x")}
    for _ in range(2):
        assert client.put(location, query_string=query, data=b"x").status_code == 201
        collect(storage, -1)
    storage.age()
    collect(storage)
    assert client.put(location, query_string=query, data=b"x").status_code == 404


def test_age_counts_from_the_last_push_or_mount(storage: Aging, client: RegistryClient) -> None:
    contents = b"pushed again", b"finished again", b"mounted", b"old"
    for content in contents:
        client.push_blob("a", content)
    location = client.begin_upload("a", b"finished again")
    storage.age()
    client.push_blob("a", b"pushed again")
    client.put(location, query_string={"digest": digest_of(b"finished again")})
    client.mount("b", b"mounted", "a")
    old = {("a", digest_of(content)) for content in (b"mounted", b"old")}
    assert select_unneeded(storage, 3600).set_aside.keys() == old
    storage.age()
    assert select_unneeded(storage, 3600).set_aside.keys() == {
        *(("a", digest_of(content)) for content in contents),
        ("b", digest_of(b"mounted")),
    }


def test_old_staged_file_is_deleted(storage: Aging) -> None:
    staged = f"staging/{'0' * 32}", "staging/1"
    storage.write((staged[0], b"half"))
    storage.age()
    storage.write((staged[1], b"half"))
    collect(storage)
    assert [storage.size(path) for path in staged] == [None, 4]


def test_collection_skips_files_that_are_being_written(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)

    def blocks() -> Iterator[bytes]:
        yield bytes(6_000_000)
        assert list(tmp_path.glob("staging/*"))
        collect(storage, -1)
        yield b"x"

    content = bytes(6_000_000) + b"x"
    storage.put_blob("a", digest_of(content), blocks())
    assert storage.open_blob("a", digest_of(content)).size == len(content)


# Pushes and collections at the same time.


@pytest.mark.parametrize("how", ["blob", "mount", "manifest alone"])
@pytest.mark.parametrize("is_aside", [False, True])
@pytest.mark.parametrize("begins", ["push", "collection"])
def test_push_and_collection_at_the_same_time(
    begins: str, is_aside: bool, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other begins at any step of the one. The push notices nothing, and nothing is lost."""
    monkeypatch.setattr(object_storage, "PAUSE", 0.001)
    manifest, name = manifest_of(b"layer"), "b" if how == "mount" else "a"
    at, steps = 0, 1
    while at < steps:
        at += 1
        storage = AgingBucket()
        client = RegistryClient(storage)
        client.push_blob("a", b"layer")
        storage.age()
        if is_aside:
            collect(storage)
            storage.age()
        statuses: list[int] = []

        def push() -> None:
            path = f"/v2/a/blobs/{digest_of(b'layer')}"
            if how == "blob" or client.head(path).status_code == 404:
                client.push_blob("a", b"layer")
            if how == "mount":
                query = {"mount": digest_of(b"layer"), "from": "a"}
                statuses.append(client.post("/v2/b/blobs/uploads/", query_string=query).status_code)
            statuses.append(client.push_manifest(name, "v1", manifest).status_code)

        other = threading.Thread(target=(lambda: collect(storage)) if begins == "push" else push)
        counted = threading.get_ident()
        steps = 0

        def step() -> None:
            nonlocal steps
            if threading.get_ident() == counted:
                steps += 1
                if steps == at:
                    other.start()
                    other.join(0.05)  # if it waits, this one goes on

        storage.store.step = step
        push() if begins == "push" else collect(storage)
        storage.store.step = lambda: None
        if other.ident is None:
            break
        other.join()
        assert set(statuses) == {201}, at
        for _ in range(3):
            assert client.has_blob(name, b"layer"), at
            storage.age()
            collect(storage)
    assert at > 5


def test_push_waits_for_a_collection_that_deletes_its_content(
    storage: Aging, monkeypatch: pytest.MonkeyPatch, client: RegistryClient
) -> None:
    client.push_blob("a", b"layer")
    condemned = object_storage.condemned_path(digest_of(b"layer"))
    storage.create(condemned)
    pushing = threading.Thread(target=client.push_blob, args=("b", b"layer"))
    pushing.start()
    pushing.join(0.3)
    assert pushing.is_alive()
    storage.delete(condemned)
    pushing.join(10)
    assert client.has_blob("b", b"layer")
    # A collection that was killed is not waited for.
    monkeypatch.setattr(object_storage, "MAX_WAIT", 0.1)
    storage.create(condemned)
    client.push_blob("b", b"layer")
    assert client.has_blob("b", b"layer")


def test_mount_of_a_blob_whose_content_was_just_deleted_is_an_error(storage: Aging) -> None:
    """Never a success: the client tries again."""
    client = RegistryClient(storage)
    client.push_blob("a", b"layer")
    storage.link_blob("b", digest_of(b"layer"), 5)
    storage.delete(object_storage.content_path(digest_of(b"layer")))
    with pytest.raises(LookupError):
        storage.mount_blob("c", digest_of(b"layer"), "b")
    assert not client.has_blob("c", b"layer")
    assert client.push_manifest("c", "v1", manifest_of(b"layer")).status_code == 404


def collect_while_linked(storage: Aging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a collection delete the content of "layer" right after a link to it was moved back."""
    content, move = object_storage.content_path(digest_of(b"layer")), storage.move

    def move_and_collect(source: str, target: str) -> bool:
        monkeypatch.setattr(storage, "move", move)
        is_moved = move(source, target)
        storage.delete(content)
        return is_moved

    monkeypatch.setattr(storage, "move", move_and_collect)


def set_aside(storage: Aging) -> None:
    RegistryClient(storage).push_blob("a", b"layer")
    storage.age()
    collect(storage)


def test_link_that_came_back_too_late_does_not_stay(
    storage: Aging, client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_aside(storage)
    collect_while_linked(storage, monkeypatch)
    assert not client.has_blob("a", b"layer")
    assert not client.has_blob("a", b"layer")
    assert client.push_manifest("a", "v1", manifest_of(b"layer")).status_code == 404
    client.push_blob("a", b"layer")
    assert client.push_manifest("a", "v1", manifest_of(b"layer")).status_code == 201


def test_link_stays_if_another_push_has_brought_the_content_back(
    storage: Aging, client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_aside(storage)
    collect_while_linked(storage, monkeypatch)
    size, missing = storage.size, list[str]()

    def size_and_push(path: str) -> int | None:
        found = size(path)
        if found is None and path.startswith("blobs/") and not missing:
            missing.append(path)
            client.push_blob("a", b"layer")
        return found

    monkeypatch.setattr(storage, "size", size_and_push)
    assert client.has_blob("a", b"layer")
    assert missing
    assert storage.blob_size("a", digest_of(b"layer")) == 5


def test_suspended_collection_deletes_nothing_more(
    storage: Aging, monkeypatch: pytest.MonkeyPatch, client: RegistryClient
) -> None:
    client.push_blob("a", b"layer")
    storage.age()
    collect(storage)
    storage.age()
    found = select_unneeded(storage, 3600)
    times = iter([0.0, object_storage.MAX_WAIT])
    with monkeypatch.context() as patched:
        patched.setattr(time, "monotonic", lambda: next(times))
        with pytest.raises(OSError, match="run it again"):
            found.delete()
    monkeypatch.setattr(object_storage, "MAX_WAIT", 0.0)
    assert client.has_blob("a", b"layer")


def test_content_that_another_collection_has_condemned_is_left_to_it(storage: Aging) -> None:
    client = RegistryClient(storage)
    client.push_blob("a", b"layer")
    storage.age()
    collect(storage)
    storage.age()
    storage.create(object_storage.condemned_path(digest_of(b"layer")))
    collect(storage)
    assert storage.size(object_storage.content_path(digest_of(b"layer"))) is not None


@pytest.mark.parametrize("wrong", [-1200, 1200])
def test_clock_of_the_machine_does_not_matter(
    storage: Aging, wrong: int, monkeypatch: pytest.MonkeyPatch, client: RegistryClient
) -> None:
    client.push_blob("a", b"layer")
    right = time.time()
    monkeypatch.setattr(time, "time", lambda: right + wrong)
    found = select_unneeded(storage, 600)
    assert abs(found.until_deleted + 600 - right) < 300
    assert count(found) == [0, 0, 0, 0]


@pytest.mark.slow
def test_collection_frees_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        storage = AgingDirectory(disk)
        client = RegistryClient(storage)
        client.push_blob("a", os.urandom(400_000))
        client.begin_upload("a", os.urandom(500_000))
        storage.age()
        collect(storage)
        client.begin_upload("a", os.urandom(500_000))
        storage.age()
        with (disk / "junk").open("wb", 0) as junk, suppress(OSError):
            while True:
                junk.write(bytes(4096))
        found = collect(storage)
        assert count(found) == [1, 1, 0, 1]
        client.push_blob("a", os.urandom(800_000))


def test_catalog_is_mended(storage: Aging, client: RegistryClient) -> None:
    client.push_manifest("a/b", "v1", manifest_of())
    client.push_manifest("c", "v1", manifest_of())
    storage.delete(storage.catalog_path("a/b"))
    storage.write((storage.catalog_path("gone/x"), b""))
    storage.age()
    collect(storage)
    assert list(storage.repositories()) == ["a/b", "c"]


def test_untagged_manifests_that_nothing_leads_to_are_deleted(storage: Aging) -> None:
    client = RegistryClient(storage)

    def push(reference: str, content: bytes) -> bytes:
        reference = reference or digest_of(content)
        assert client.push_manifest("a", reference, content).status_code == 201
        return content

    def referring(subject: bytes, **more: Any) -> bytes:
        return push("", manifest_of(subject={"digest": digest_of(subject)}, **more))

    client.push_blob("a", b"layer")
    moved_on = push("latest", manifest_of(b"layer", note="first"))
    kept = [push("latest", manifest_of(note="second"))]
    images = [push("", manifest_of(note=f"image {i}")) for i in range(2)]
    inner = push("", index_of(*images))
    kept += [*images, inner, push("v1", index_of(inner))]
    signature = referring(images[0])
    kept += [signature, referring(signature, note="of a signature")]
    lost = [moved_on, referring(moved_on, note="of what moved on")]
    lost += [push("", manifest_of(note="never tagged")), referring(b"not there", note="alone")]
    push("other", manifest_of(note="deleted tag"))
    lost += [manifest_of(note="deleted tag")]
    client.delete("/v2/a/manifests/other")
    storage.age()
    young = push("", manifest_of(note="young"))
    client.push_manifest("b", "v1", moved_on)  # another repository's tag does not count
    assert len(collect(storage).manifests) == 0
    found = collect(storage, untagged=True)
    assert {link.digest for link in found.manifests} == set(map(digest_of, lost))
    for content in lost:
        assert client.get(f"/v2/a/manifests/{digest_of(content)}").status_code == 404
    for content in [*kept, young]:
        assert client.get(f"/v2/a/manifests/{digest_of(content)}").data == content
    assert client.get("/v2/a/tags/list").get_json()["tags"] == ["latest", "v1"]
    assert digest_of(b"layer") in {link.digest for link in found.set_aside}


def test_manifest_pushed_again_since_the_survey_stays(storage: Aging) -> None:
    client = RegistryClient(storage)
    client.push_manifest("a", digest_of(manifest_of()), manifest_of())
    storage.age()
    found = select_unneeded(storage, 3600, untagged=True)
    assert len(found.manifests) == 1
    client.push_manifest("a", "v1", manifest_of())
    found.delete()
    assert client.get("/v2/a/manifests/v1").status_code == 200


def test_storage_of_an_earlier_version_is_not_collected(tmp_path: Path) -> None:
    storage = AgingDirectory(tmp_path)
    storage.put_blob("a", digest_of(b"x"), [b"x"])
    manifest = tmp_path / "repositories/a/_manifests/sha256" / ("0" * 64)
    manifest.parent.mkdir(parents=True)
    manifest.write_bytes(b"application/json\n{}")
    storage.age()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="an earlier version wrote the manifests"):
        collect(storage)
    assert sorted(tmp_path.rglob("*")) == before


def test_age_has_a_unit(capsys: pytest.CaptureFixture[str]) -> None:
    ages = {"0s": 0, "90m": 5400, "24h": 86400, "7d": 604800}
    assert [parse_duration(text) for text in ages] == list(ages.values())
    for text in "", "24", "h", "-1h", "1.5h", "24h\n", "٣h", "24 h", "1w":
        with pytest.raises(SystemExit) as raised:
            collection.main(["--storage", "x", f"--older-than={text}"])
        assert raised.value.code == 2
        assert "must be a number and a unit, s, m, h or d" in capsys.readouterr().err


# While a registry is at work.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_pushes_race_with_collections(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that look for a blob, push it if it is not there, and end at any error."""
    if kind == "s3":
        request.getfixturevalue("s3")
    monkeypatch.setattr(collection, "LEASE", 3)  # seconds; no push here takes so long
    place = f"s3://images/{tmp_path.name}" if kind == "s3" else str(tmp_path / "data")
    layers = [os.urandom(1000) for _ in range(6)]  # several clients push these again and again
    wrong: list[str] = []
    stop = time.monotonic() + 12

    def ask(method: str, url: str, status: int, body: bytes = b"") -> bytes:
        response = requests.request(method, url, data=body, timeout=20)
        if response.status_code != status:
            wrong.append(f"{method} {url}: {response.status_code} {response.text}")
        return response.content

    def work(root: str, seed: int) -> None:
        chosen, repository = random.Random(seed), f"{root}/v2/r{seed % 2}"
        while time.monotonic() < stop and not wrong:
            layer = chosen.choice(layers)
            content = manifest_of(layer, note=chosen.random())
            blob = f"{repository}/blobs/{digest_of(layer)}"
            manifest = f"{repository}/manifests/{digest_of(content)}"
            if requests.head(blob, timeout=20).status_code == 404:
                ask("POST", f"{repository}/blobs/uploads/?digest={digest_of(layer)}", 201, layer)
            ask("PUT", manifest, 201, content)
            if ask("GET", blob, 200) != layer:
                wrong.append(f"{blob} is lost")
            ask("DELETE", manifest, 202)
            time.sleep(chosen.uniform(0, 2))  # in which no manifest may need the layer

    deleted = moved = 0
    with (
        example("registry", tmp_path / "log", "--storage", place, "--workers", "2") as host,
        ThreadPoolExecutor(4) as pool,
    ):
        workers = [pool.submit(work, f"http://{host}", seed) for seed in range(4)]
        while time.monotonic() < stop and not wrong:
            found = collect(storage_at(place), 0.5)
            deleted += len(found.contents)
            moved += len(found.set_aside)
        for worker in workers:
            worker.result()
    print(f"{moved} links were set aside, {deleted} contents deleted")
    assert wrong == []
    assert moved


@pytest.mark.parametrize("kind", ["directory", pytest.param("s3", marks=pytest.mark.slow)])
def test_command_deletes_the_contents_of_its_dry_run(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "s3":
        request.getfixturevalue("s3")
    place = f"s3://images/{tmp_path.name}" if kind == "s3" else str(tmp_path / "data")
    client = RegistryClient(storage_at(place))
    location = client.begin_upload("a", b"chunk")
    client.push_manifest("a", digest_of(manifest_of()), manifest_of())

    def run(*options: str) -> str:
        assert collection.main(["--storage", place, "--untagged", *options]) == 0
        return capsys.readouterr().out

    assert "Deleted:\n  0 unreferenced contents, 0 bytes\n" in run("--older-than", "1h")
    time.sleep(1.1 if kind == "s3" else 0.05)  # S3's times are whole seconds
    dry = run("--older-than", "0s", "--dry-run")
    assert dry.startswith("It would delete:\n  1 manifests, ")
    assert "\n  1 abandoned uploads, " in dry
    assert f"a@{digest_of(manifest_of())}\n" in dry
    assert ("lifecycle rule" in dry) == (kind == "s3")
    assert client.get(location).status_code == 204
    assert "\n  1 abandoned uploads, " in run("--older-than", "0s")
    assert client.get(location).status_code == 404
    assert client.get(f"/v2/a/manifests/{digest_of(manifest_of())}").status_code == 404


@pytest.mark.parametrize("place", ["memory://", "/proc/nope", "ftp://x/y", "", "./LICENSE"])
def test_storage_that_cannot_be_collected_is_an_error_in_one_line(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collection.main(["--storage", place, "--older-than", "1h"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert repr(place) in error
