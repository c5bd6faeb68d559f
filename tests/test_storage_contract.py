"""The promises of `registry_routes.registry.Storage`, tested on each storage, without HTTP."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore
from storage import BucketStorage, DirectoryStorage, ObjectStorage

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


def test_missing_content_is_a_missing_error(storage: Storage) -> None:
    """It does not matter whether another repository has it."""
    for is_elsewhere in False, True:
        if is_elsewhere:
            storage.put_blob("a", OTHER, [b"other"])
            storage.put_manifest("a/b/c", OTHER, MANIFEST, tags=["v1"])
            storage.put_blob("a/b", DIGEST, [BLOB])
        for call in READS.values():
            with pytest.raises(MissingError):
                call(storage)
    assert content_of(storage, "a", OTHER) == b"other"
    assert storage.tag("a/b/c", "v1") == OTHER
    for upload_id in "x", "0" * 3000, "_blobs", "begun", "A" * 32, "=" * 32:
        with pytest.raises(MissingError):
            storage.append_to_upload("a", upload_id, 0, [b"x"])
        for look in storage.upload_size, storage.upload_result:
            with pytest.raises(MissingError):
                look("a", upload_id)


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
    with pytest.raises(ConflictError):
        storage.delete_tag("a", "v1", expected="")
    assert storage.tag("a", "v1") == SUBJECT
    storage.delete_tag("a", "v1", expected=SUBJECT)
    with pytest.raises(MissingError):
        storage.delete_tag("a", "v1", expected=SUBJECT)


# Blobs.


@pytest.mark.parametrize(
    ("algorithm", "size"), [("sha256", 0), ("sha512", 1), ("sha256", len(BLOB))]
)
def test_any_part_of_a_blob_is_read(storage: Storage, algorithm: str, size: int) -> None:
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


def test_blob_is_mounted_only_from_a_repository_that_has_it(storage: Storage) -> None:
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


def objects_of(storage: Storage) -> list[str]:
    """The paths of all objects of an `ObjectStorage`."""
    if not isinstance(storage, ObjectStorage):
        return []
    return sorted(entry.path for entry in storage.entries(""))


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize("blocks", [(), (BLOB, BLOB, BLOB)], ids=len)
def test_nothing_is_kept_of_a_stream_that_breaks_off(
    storage: Storage, method: str, blocks: tuple[bytes, ...]
) -> None:
    upload_id = storage.begin_upload("a")
    storage.append_to_upload("a", upload_id, 0, [b"012"])
    before = objects_of(storage)
    for prefix in b"", b"012":
        digest = digest_of(prefix + b"".join(blocks))  # the right one for what has come
        with pytest.raises(BrokenOff):
            WRITES[method](storage, upload_id, broken_off(*blocks), digest)
        with pytest.raises(MissingError):
            storage.open_blob("a", digest)
    assert objects_of(storage) == before
    assert storage.upload_size("a", upload_id) == 3
    storage.finish_upload("a", upload_id, 3, [b"345"], digest_of(b"012345"))
    assert content_of(storage, "a", digest_of(b"012345")) == b"012345"


@pytest.mark.parametrize(("algorithm", "last"), [("sha256", b""), ("sha512", b"345")])
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


def test_blob_survives_a_push_that_fails(storage: Storage) -> None:
    storage.put_blob("a", DIGEST, [BLOB])
    with pytest.raises(DigestMismatchError):
        storage.put_blob("a", DIGEST, [b"x"])
    with pytest.raises(BrokenOff):
        storage.put_blob("a", DIGEST, broken_off(BLOB[:-1]))
    assert content_of(storage, "a", DIGEST) == BLOB


# Uploads.


@pytest.mark.parametrize("algorithm", REGISTERED_ALGORITHMS)
@given(st.lists(st.binary(max_size=5), max_size=5), st.binary(max_size=5))
def test_finished_upload_is_its_chunks_joined(
    algorithm: str, chunks: list[bytes], last: bytes
) -> None:
    for storage in MemoryStorage(), BucketStorage(MemoryStore()):
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


def test_chunk_at_the_place_of_another_is_a_conflict(storage: Storage) -> None:
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


def test_manifest_is_kept_with_its_type_tags_and_subject(storage: Storage) -> None:
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


def test_deleted_manifest_takes_its_pointers_along(storage: Storage) -> None:
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
        BucketStorage(MemoryStore()),
        DirectoryStorage(tmp_path_factory.mktemp("place")),
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
                assert list(found) == sorted(digest for digest in expected if digest > after)
        assert all(
            digest == content.decode() for digest, content in storage.referrers("a", SUBJECT)
        )


def test_repository_exists_while_it_has_a_blob_or_a_manifest(storage: Storage) -> None:
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


def test_each_storage_has_every_method_of_the_protocol() -> None:
    methods = [name for name in dir(Storage) if not name.startswith("_")]
    assert len(methods) == 18
    for kind in MemoryStorage, DirectoryStorage, BucketStorage:
        for name in methods:
            assert getattr(kind, name) is not getattr(Storage, name)
            assert get_type_hints(getattr(kind, name)) == get_type_hints(getattr(Storage, name))
