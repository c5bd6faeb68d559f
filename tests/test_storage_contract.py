"""The promises of `registry_routes.registry.Storage`, tested on each storage, without HTTP."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import LocalStore, MemoryStore
from storage import ObjectStorage, storage_at

from registry_routes.digests import DigestMismatchError, digest_of
from registry_routes.grammar import NAME, REGISTERED_ALGORITHMS, TAG
from registry_routes.registry import ConflictError, Manifest, MemoryStorage, MissingError, Storage

BLOB = bytes(range(256)) * 10_000
DIGEST = digest_of(BLOB)
OTHER = digest_of(b"other")
SUBJECT = digest_of(b"subject")
MANIFEST = Manifest("application/json", b"{}")
NO_UPLOAD = "0" * 32


def blocks_of(content: bytes, size: int = 100_000) -> Iterator[bytes]:
    return (content[i : i + size] for i in range(0, len(content), size))


def content_of(storage: Storage, name: str, digest: str) -> bytes:
    blob = storage.open_blob(name, digest)
    return b"".join(blob.read(0, blob.size))


# What is missing.


READS: dict[str, Callable[[Storage], Any]] = {
    "open_blob": lambda storage: storage.open_blob("a/b", OTHER),
    "delete_blob": lambda storage: storage.delete_blob("a/b", OTHER),
    "mount_blob": lambda storage: storage.mount_blob("a", OTHER, "a/b"),
    "upload_size": lambda storage: storage.upload_size("a/b", NO_UPLOAD),
    "append_to_upload": lambda storage: storage.append_to_upload("a/b", NO_UPLOAD, 0, [b"x"]),
    "finish_upload": lambda storage: storage.finish_upload("a/b", NO_UPLOAD, 0, [BLOB], DIGEST),
    "upload_result": lambda storage: storage.upload_result("a/b", NO_UPLOAD),
    "cancel_upload": lambda storage: storage.cancel_upload("a/b", NO_UPLOAD),
    "manifest": lambda storage: storage.manifest("a/b", OTHER),
    "delete_manifest": lambda storage: storage.delete_manifest("a/b", OTHER),
    "tag": lambda storage: storage.tag("a/b", "v1"),
    "delete_tag": lambda storage: storage.delete_tag("a/b", "v1"),
}


@pytest.mark.parametrize("method", READS)
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_what_a_repository_does_not_have_is_missing(
    storage: Storage, method: str, is_elsewhere: bool
) -> None:
    """It does not matter whether another repository has it."""
    if is_elsewhere:
        storage.put_blob("a", OTHER, [b"other"])
        storage.put_manifest("a/b/c", OTHER, MANIFEST, tags=["v1"])
        storage.put_blob("a/b", DIGEST, [BLOB])
    with pytest.raises(MissingError):
        READS[method](storage)
    if is_elsewhere:
        assert content_of(storage, "a", OTHER) == b"other"
        assert storage.tag("a/b/c", "v1") == OTHER


@pytest.mark.parametrize("upload_id", ["x", "0" * 3000, "_blobs", "begun", "A" * 32, "=" * 32])
def test_an_unknown_upload_id_is_missing(storage: Storage, upload_id: str) -> None:
    storage.begin_upload("a")
    with pytest.raises(MissingError):
        storage.upload_size("a", upload_id)
    with pytest.raises(MissingError):
        storage.append_to_upload("a", upload_id, 0, [b"x"])
    with pytest.raises(MissingError):
        storage.upload_result("a", upload_id)


def test_finished_upload_has_its_result(storage: Storage) -> None:
    finished, cancelled, open_one = (storage.begin_upload("a") for _ in range(3))
    with pytest.raises(MissingError):
        storage.upload_result("a", finished)
    storage.finish_upload("a", finished, 0, [BLOB], DIGEST)
    storage.cancel_upload("a", cancelled)
    assert storage.upload_result("a", finished) == DIGEST
    for upload_id in cancelled, open_one:
        with pytest.raises(MissingError):
            storage.upload_result("a", upload_id)
    with pytest.raises(MissingError):
        storage.upload_result("b", finished)
    with pytest.raises(MissingError):
        storage.upload_size("a", finished)


def test_conditional_write_changes_only_the_expected_tag(storage: Storage) -> None:
    def put(digest: str, expected: str | None = None) -> None:
        storage.put_manifest("a", digest, MANIFEST, tags=["v1"], expected=expected)

    with pytest.raises(ConflictError):
        put(OTHER, expected=SUBJECT)
    with pytest.raises(MissingError):
        storage.tag("a", "v1")
    put(OTHER, expected="")
    for expected in "", SUBJECT:
        with pytest.raises(ConflictError):
            put(DIGEST, expected)
    assert storage.tag("a", "v1") == OTHER
    put(SUBJECT, expected=OTHER)
    assert storage.tag("a", "v1") == SUBJECT
    with pytest.raises(ConflictError):
        storage.delete_tag("a", "v1", expected=OTHER)
    assert storage.tag("a", "v1") == SUBJECT
    storage.delete_tag("a", "v1", expected=SUBJECT)
    with pytest.raises(MissingError):
        storage.delete_tag("a", "v1", expected=SUBJECT)


# Blobs.


@pytest.mark.parametrize("algorithm", REGISTERED_ALGORITHMS)
@pytest.mark.parametrize("size", [0, 1, len(BLOB)])
def test_any_part_of_a_blob_can_be_read(storage: Storage, algorithm: str, size: int) -> None:
    content = BLOB[:size]
    digest = digest_of(content, algorithm)
    storage.put_blob("a", digest, blocks_of(content))
    blob = storage.open_blob("a", digest)
    assert blob.size == size
    cuts = sorted({0, min(1, size), size // 2, max(size - 1, 0), size})
    for start, end in [*pairwise(cuts), (0, size), (size, size), (0, 0)]:
        blocks = list(blob.read(start, end))
        assert b"".join(blocks) == content[start:end]
        assert len(blocks) <= len(content) // 10_000 + 1  # blocks, not lines


def test_a_blob_is_mounted_only_from_a_repository_that_has_it(storage: Storage) -> None:
    storage.put_blob("a", DIGEST, [BLOB])
    for _ in range(2):
        storage.mount_blob("b", DIGEST, "a")
    storage.mount_blob("b", DIGEST, "b")
    storage.delete_blob("a", DIGEST)
    assert content_of(storage, "b", DIGEST) == BLOB
    with pytest.raises(MissingError):
        storage.mount_blob("c", DIGEST, "a")
    storage.delete_blob("b", DIGEST)
    with pytest.raises(MissingError):
        storage.mount_blob("c", DIGEST, "b")


# Streams that end badly.


class BrokenOff(Exception):
    pass


def broken_off(*blocks: bytes) -> Iterator[bytes]:
    yield from blocks
    raise BrokenOff


WRITES: dict[str, Callable[[Storage, str, Any, str], Any]] = {
    "put_blob": lambda storage, _, blocks, digest: storage.put_blob("a", digest, blocks),
    "append_to_upload": lambda storage, upload_id, blocks, _: storage.append_to_upload(
        "a", upload_id, 3, blocks
    ),
    "finish_upload": lambda storage, upload_id, blocks, digest: storage.finish_upload(
        "a", upload_id, 3, blocks, digest
    ),
}


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize("blocks", [(), (b"x",), (BLOB, BLOB, BLOB)], ids=len)
def test_nothing_is_kept_of_a_stream_that_breaks_off(
    storage: Storage, method: str, blocks: tuple[bytes, ...]
) -> None:
    upload_id = storage.begin_upload("a")
    storage.append_to_upload("a", upload_id, 0, [b"012"])
    for prefix in b"", b"012":
        digest = digest_of(prefix + b"".join(blocks))  # the right one for what has come
        with pytest.raises(BrokenOff):
            WRITES[method](storage, upload_id, broken_off(*blocks), digest)
        with pytest.raises(MissingError):
            storage.open_blob("a", digest)
    assert storage.upload_size("a", upload_id) == 3
    storage.finish_upload("a", upload_id, 3, [b"345"], digest_of(b"012345"))
    assert content_of(storage, "a", digest_of(b"012345")) == b"012345"


@pytest.mark.parametrize("algorithm", REGISTERED_ALGORITHMS)
@pytest.mark.parametrize("last", [b"", b"345"])
def test_nothing_is_kept_of_a_blob_with_another_digest(
    storage: Storage, algorithm: str, last: bytes
) -> None:
    digest = digest_of(b"other", algorithm)
    with pytest.raises(DigestMismatchError):
        storage.put_blob("a", digest, blocks_of(BLOB))
    upload_id = storage.begin_upload("a")
    storage.append_to_upload("a", upload_id, 0, [b"012"])
    for _ in range(2):
        with pytest.raises(DigestMismatchError):
            storage.finish_upload("a", upload_id, 3, [last], digest)
        assert storage.upload_size("a", upload_id) == 3
    with pytest.raises(MissingError):
        storage.open_blob("a", digest)
    right = digest_of(b"012" + last, algorithm)
    storage.finish_upload("a", upload_id, 3, [last], right)
    assert content_of(storage, "a", right) == b"012" + last


def test_an_existing_blob_survives_a_push_that_fails(storage: Storage) -> None:
    storage.put_blob("a", DIGEST, [BLOB])
    with pytest.raises(DigestMismatchError):
        storage.put_blob("a", DIGEST, [b"x"])
    with pytest.raises(BrokenOff):
        storage.put_blob("a", DIGEST, broken_off(BLOB[:-1]))
    assert content_of(storage, "a", DIGEST) == BLOB


# Uploads.


@pytest.mark.parametrize("algorithm", REGISTERED_ALGORITHMS)
@given(st.lists(st.binary(max_size=5), max_size=5), st.binary(max_size=5))
def test_a_finished_upload_is_its_chunks_joined(
    algorithm: str, chunks: list[bytes], last: bytes
) -> None:
    for storage in MemoryStorage(), ObjectStorage(MemoryStore()):
        upload_id, size = storage.begin_upload("a"), 0
        for chunk in chunks:
            assert storage.append_to_upload("a", upload_id, size, [chunk]) == size + len(chunk)
            size += len(chunk)
            assert storage.upload_size("a", upload_id) == size
        content = b"".join([*chunks, last])
        digest = digest_of(content, algorithm)
        storage.finish_upload("a", upload_id, size, [last[:2], last[2:]], digest)
        assert content_of(storage, "a", digest) == content
        with pytest.raises(MissingError):
            storage.upload_size("a", upload_id)


def test_a_chunk_at_the_place_of_another_is_a_conflict(storage: Storage) -> None:
    upload_id = storage.begin_upload("a")
    storage.append_to_upload("a", upload_id, 0, [b"012"])
    with pytest.raises(ConflictError):
        storage.append_to_upload("a", upload_id, 0, [b"345"])
    with pytest.raises(ConflictError):
        storage.finish_upload("a", upload_id, 0, [b"345"], digest_of(b"345"))
    assert storage.upload_size("a", upload_id) == 3
    storage.cancel_upload("a", upload_id)
    with pytest.raises(MissingError):
        storage.append_to_upload("a", upload_id, 3, [b"345"])
    with pytest.raises(MissingError):
        storage.cancel_upload("a", upload_id)


def test_only_one_of_several_simultaneous_chunks_is_kept(storage: Storage) -> None:
    upload_id = storage.begin_upload("a")

    def append(i: int) -> bytes:
        chunk = bytes([i]) * 100_000
        with suppress(ConflictError):
            storage.append_to_upload("a", upload_id, 0, blocks_of(chunk, 1000))
            return chunk
        return b""

    with ThreadPoolExecutor(8) as pool:
        kept = b"".join(pool.map(append, range(8)))
    assert storage.upload_size("a", upload_id) == len(kept) == 100_000
    storage.finish_upload("a", upload_id, len(kept), [], digest_of(kept))
    assert content_of(storage, "a", digest_of(kept)) == kept


# Manifests and tags.


def test_a_manifest_is_kept_with_its_type_its_tags_and_its_subject(storage: Storage) -> None:
    for content in b"{}", b"\n{}\n\r\n", b"{\xff}", b" {}", b"x" * 4_000_000:
        for media_type in "application/json", "application/vnd.example+json":
            digest, manifest = digest_of(content), Manifest(media_type, content)
            for subject in None, SUBJECT:
                storage.put_manifest(
                    "a", digest, manifest, tags=["v1", "v2"], subject=subject, descriptor=b"{1}"
                )
                assert storage.manifest("a", digest) == manifest
                assert storage.tag("a", "v1") == storage.tag("a", "v2") == digest
            assert (digest, b"{1}") in list(storage.referrers("a", SUBJECT))


def test_deleting_a_manifest_deletes_what_points_at_it(storage: Storage) -> None:
    storage.put_manifest("a", DIGEST, MANIFEST, tags=["v1", "v2"], subject=SUBJECT, descriptor=b"1")
    storage.put_manifest("a", OTHER, MANIFEST, tags=["v3"], subject=SUBJECT, descriptor=b"2")
    storage.put_manifest("a", SUBJECT, MANIFEST, tags=["v2"])
    storage.delete_manifest("a", DIGEST)
    assert list(storage.tags("a")) == ["v2", "v3"]
    assert list(storage.referrers("a", SUBJECT)) == [(OTHER, b"2")]
    storage.delete_manifest("a", SUBJECT)
    assert list(storage.tags("a")) == ["v3"]
    assert list(storage.referrers("a", SUBJECT)) == [(OTHER, b"2")]
    storage.delete_tag("a", "v3")
    assert storage.manifest("a", OTHER) == MANIFEST
    storage.put_manifest("a", DIGEST, MANIFEST)
    assert storage.manifest("a", DIGEST) == MANIFEST
    with pytest.raises(MissingError):
        storage.tag("a", "v1")


# Lists.

AFTER = st.one_of(st.text(max_size=5), st.text("ab0/-._:", max_size=5))


@given(
    st.sets(st.text("ab0/-._", min_size=1, max_size=7).filter(NAME.fits), max_size=8),
    st.sets(st.text("aB0-._", min_size=1, max_size=4).filter(TAG.fits), max_size=8),
    st.lists(AFTER, max_size=3),
)
def test_lists_are_in_ascii_order_and_begin_after_any_text(
    tmp_path_factory: pytest.TempPathFactory, names: set[str], tags: set[str], texts: list[str]
) -> None:
    for storage in (
        MemoryStorage(),
        ObjectStorage(MemoryStore()),
        ObjectStorage(LocalStore(tmp_path_factory.mktemp("place"))),
    ):
        for name in names:
            storage.put_manifest(name, DIGEST, MANIFEST)
        storage.put_manifest("a", DIGEST, MANIFEST, tags=list(tags))
        digests = {
            digest_of(tag.encode(), algorithm) for tag in tags for algorithm in ("sha256", "sha512")
        }
        for digest in digests:
            storage.put_manifest("a", digest, MANIFEST, subject=SUBJECT, descriptor=digest.encode())
        for after in ["", *texts, *names, *tags, *digests]:
            for expected, found in (
                (names | {"a"}, storage.repositories(after)),
                (tags, storage.tags("a", after)),
                (digests, (digest for digest, _ in storage.referrers("a", SUBJECT, after))),
            ):
                assert list(found) == sorted(one for one in expected if one > after)
        assert all(digest == one.decode() for digest, one in storage.referrers("a", SUBJECT))


def test_a_repository_exists_while_it_has_a_blob_or_a_manifest(storage: Storage) -> None:
    def exists() -> bool:
        try:
            return list(storage.tags("a")) == []
        except MissingError:
            return False

    assert not exists()
    storage.begin_upload("a")
    storage.put_manifest("a/b", DIGEST, MANIFEST, tags=["v1"])
    assert not exists()
    storage.put_blob("a", DIGEST, [BLOB])
    assert exists()
    assert list(storage.repositories()) == ["a/b"]
    storage.put_manifest("a", DIGEST, MANIFEST)
    storage.delete_blob("a", DIGEST)
    assert exists()
    assert list(storage.repositories()) == ["a", "a/b"]
    storage.delete_manifest("a", DIGEST)
    assert not exists()
    assert list(storage.repositories()) == ["a/b"]
    assert list(storage.referrers("a", SUBJECT)) == []


class Counting:
    """A store of obstore that counts the calls of its methods."""

    def __init__(self, store: Any) -> None:
        self.store, self.calls = store, 0

    def __getattr__(self, name: str) -> Any:
        self.calls += callable(getattr(self.store, name))
        return getattr(self.store, name)


def test_a_page_reads_only_what_it_shows_and_every_chunk_costs_the_same() -> None:
    store = MemoryStore()
    storage = ObjectStorage(store)
    for i in range(300):
        name = f"r{i:03}/x"
        storage.put_manifest(name, DIGEST, MANIFEST)
        storage.put_manifest("a", digest_of(b"%d" % i), MANIFEST, subject=SUBJECT, descriptor=b"1")
    counting = Counting(store)
    storage = ObjectStorage(counting)

    def cost_of(page: Iterator[Any]) -> int:
        before = counting.calls
        assert len(list(islice(page, 5))) == 5
        return counting.calls - before

    assert cost_of(storage.repositories("")) < 30
    assert cost_of(storage.repositories("r200/x")) < 30
    assert cost_of(storage.referrers("a", SUBJECT)) < 10
    assert cost_of(storage.referrers("a", SUBJECT, "sha256:8")) < 10
    upload_id = storage.begin_upload("a")
    costs = []
    for start in range(200):
        before = counting.calls
        assert storage.upload_size("a", upload_id) == start
        storage.store = store  # open_writer needs obstore's own
        storage.append_to_upload("a", upload_id, start, [b"x"])
        storage.store = counting
        costs.append(counting.calls - before)
    assert costs[-1] == costs[1] <= 3


def test_deleting_a_manifest_reads_only_its_own_tags() -> None:
    counting = Counting(MemoryStore())
    storage = ObjectStorage(counting.store)
    for i in range(500):
        storage.put_manifest("a", OTHER, MANIFEST, tags=[f"other{i}"])
    storage.put_manifest("a", DIGEST, MANIFEST, tags=["v1", "v2", "v3"])
    storage.put_manifest("a", OTHER, MANIFEST, tags=["v2"])
    storage.delete_tag("a", "v3")
    storage.store = counting
    storage.delete_manifest("a", DIGEST)
    assert counting.calls < 30
    assert len(list(storage.tags("a"))) == 501
    with pytest.raises(MissingError):
        storage.tag("a", "v1")
    assert storage.tag("a", "v2") == OTHER


def test_no_tag_is_left_that_points_at_a_deleted_manifest(
    storage: Storage,
) -> None:
    def move(digest: str) -> None:
        storage.put_manifest("a", digest, MANIFEST, tags=["v1", "v2"])

    def delete(digest: str) -> None:
        with suppress(MissingError):
            storage.delete_manifest("a", digest)

    for _ in range(10):
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(job, one) for one in (DIGEST, OTHER) * 4 for job in (move, delete)]
            for done in jobs:
                done.result()
        for digest in DIGEST, OTHER:
            delete(digest)
        for tag in "v1", "v2":
            with pytest.raises(MissingError):
                storage.tag("a", tag)


def test_what_is_deleted_leaves_no_empty_directories(tmp_path: Path) -> None:
    place = tmp_path / "data"
    storage = storage_at(place)
    for digest in DIGEST, OTHER:
        storage.put_manifest("a/b", digest, MANIFEST, tags=["v1"], subject=SUBJECT)
    upload = storage.begin_upload("a/b")
    storage.append_to_upload("a/b", upload, 0, [b"chunk"])
    storage.delete_manifest("a/b", DIGEST)
    repository = place / "repositories" / "a" / "b"
    assert len(list((repository / "_tagged" / "sha256").iterdir())) == 1
    storage.delete_manifest("a/b", OTHER)
    storage.cancel_upload("a/b", upload)
    assert not (place / "repositories").exists()
    assert place.exists()
    storage.put_manifest("a/b", DIGEST, MANIFEST, tags=["v1"])
    assert list(storage.tags("a/b")) == ["v1"]


@pytest.mark.slow
def test_pushes_beside_deletions_that_remove_directories_succeed(tmp_path: Path) -> None:
    storage = storage_at(tmp_path)

    def push(number: int) -> None:
        name = f"a/r{number % 2}"
        storage.put_blob(name, digest_of(b"x"), [b"x"])
        storage.put_manifest(name, DIGEST, MANIFEST, tags=["v1"], subject=SUBJECT)
        upload = storage.begin_upload(name)
        storage.append_to_upload(name, upload, 0, [b"x"])
        storage.finish_upload(name, upload, 1, [], digest_of(b"x"))

    def delete(number: int) -> None:
        name = f"a/r{number % 2}"
        with suppress(MissingError):
            storage.delete_manifest(name, DIGEST)
        with suppress(MissingError):
            storage.delete_tag(name, "v1")
        with suppress(MissingError):
            storage.delete_blob(name, digest_of(b"x"))

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(job, i) for i in range(300) for job in (push, delete)]:
            done.result()
    for number in range(2):
        push(number)
        assert list(storage.tags(f"a/r{number}")) == ["v1"]
        delete(number)


# What a directory may look like after a power cut, or under a collection.


@pytest.mark.parametrize(
    "path", [f"blobs/sha256/{DIGEST[7:]}", f"repositories/a/_blobs/sha256/{DIGEST[7:]}"]
)
def test_a_blob_whose_content_or_link_is_lost_is_missing_until_a_push_repairs_it(
    tmp_path: Path, path: str
) -> None:
    storage = ObjectStorage(LocalStore(tmp_path))
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
def test_a_push_replaces_damaged_content(tmp_path: Path, how: str) -> None:
    storage = ObjectStorage(LocalStore(tmp_path))
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


@pytest.mark.parametrize("kind", ["_manifests/*", "_tags", "_referrers/*/*/*"])
def test_an_empty_file_counts_as_missing_until_a_push_repairs_it(tmp_path: Path, kind: str) -> None:
    storage = ObjectStorage(LocalStore(tmp_path))

    def push() -> None:
        storage.put_manifest("a", DIGEST, MANIFEST, tags=["v1"], subject=SUBJECT, descriptor=b"1")
        assert storage.manifest("a", storage.tag("a", "v1")) == MANIFEST
        assert list(storage.referrers("a", SUBJECT)) == [(DIGEST, b"1")]

    push()
    (file,) = tmp_path.glob(f"repositories/a/{kind}/*")
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


def test_files_that_are_not_the_registrys_are_ignored(tmp_path: Path) -> None:
    storage = ObjectStorage(LocalStore(tmp_path))
    storage.put_manifest("a/b", DIGEST, MANIFEST, tags=["v1"])
    for directory in tmp_path / "repositories", tmp_path / "repositories" / "a":
        for name in ".DS_Store", "lost+found", "Upper":
            (directory / name).write_bytes(b"x")
    (tmp_path / "repositories/a/b/_tags/v2#1").write_bytes(b"half")
    assert list(storage.repositories()) == ["a/b"]
    assert list(storage.tags("a/b")) == ["v1"]


# Errors of the storage itself.


def test_a_store_that_fails_is_an_oserror_with_a_message_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "repositories"
    file.write_bytes(b"x")
    storage = ObjectStorage(LocalStore(tmp_path))
    calls: list[Callable[[], Any]] = [
        lambda: storage.open_blob("a", DIGEST),
        lambda: storage.begin_upload("a"),
        lambda: storage.put_manifest("a", DIGEST, MANIFEST),
        lambda: storage.manifest("a", DIGEST),
        lambda: storage.tag("a", "v1"),
        lambda: list(storage.tags("a")),
        lambda: list(storage.repositories()),
        lambda: list(storage.referrers("a", SUBJECT)),
        lambda: storage.put_blob("a", DIGEST, [BLOB]),
    ]
    for call in calls:
        with pytest.raises(OSError, match=r"repositories") as raised:
            call()
        assert "\n" not in str(raised.value)


def test_each_storage_has_every_method_of_the_protocol() -> None:
    methods = [name for name in dir(Storage) if not name.startswith("_")]
    assert len(methods) == 18
    for kind in MemoryStorage, ObjectStorage:
        for name in methods:
            assert name in vars(kind)
            assert get_type_hints(getattr(kind, name)) == get_type_hints(getattr(Storage, name))
