"""`Storage`: where a registry keeps its content. To write a storage, read only this file.

A registry that only serves content needs a `ReadStorage`. A storage needs no knowledge of HTTP or
JSON, and gets only arguments that the registry has checked.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

from ..digests import Verifier

__all__ = [
    "BLOCK",
    "MAX_NAME",
    "Blob",
    "BlobFile",
    "ConflictError",
    "Manifest",
    "MissingError",
    "ReadStorage",
    "SigningStorage",
    "Storage",
    "checked_blocks",
]

BLOCK = 1024 * 1024
"""The number of bytes to read and send at once."""

MAX_NAME = 255
"""The maximum length of a repository name, in characters. It is also the limit of most clients
(distribution-spec 1.1, "Pulling manifests"), and short enough for file systems."""


class MissingError(LookupError):
    """The error for content that a storage does not have."""


class ConflictError(Exception):
    """The error if another request has meanwhile added to the upload, or changed the tag."""


class Manifest(NamedTuple):
    """A manifest, as a `Storage` stores it.

    - `media_type`: its ``Content-Type`` without parameters. It is ASCII and has no blanks.
    - `content`: the JSON, byte for byte as it was pushed.
    """

    media_type: str
    content: bytes


class Blob(NamedTuple):
    """A blob, as `ReadStorage.open_blob` returns it. A blob that is not read needs no closing.

    - `size`: the number of bytes.
    - `read`: a function that returns the bytes from a start up to but not including an end, both
      within the blob, in blocks that fit in memory.

    If the start is the end, `read` reads nothing, but lost content is an error. If the end is that
    of the blob, and the blob is a file, the result may be a `BlobFile`. If the result has a `close`
    method, the registry calls it. The registry calls `read` at most once.

    `read` raises `MissingError`, and `OSError` if the storage has failed, when called, not when
    iterated: a later error can only cut the response short.
    """

    size: int
    read: Callable[[int, int], Iterable[bytes]]


class BlobFile:
    """An open file as an iterable of blocks, from its current position to its end.

    If `Blob.read` returns a `BlobFile`, the server can let the kernel send the file.

    >>> from io import BytesIO
    >>> list(BlobFile(BytesIO(b"some content")))
    [b'some content']
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def __iter__(self) -> Iterator[bytes]:
        with self.file:
            while block := self.file.read(BLOCK):
                yield block

    def close(self) -> None:
        """Close the file. Reading it to its end also closes it."""
        self.file.close()


@runtime_checkable
class ReadStorage(Protocol):
    """The methods of a storage that a read-only registry needs.

    The registry has checked every argument, so that it is safe as part of a path: a repository name
    and a tag fit `grammar.NAME` and `grammar.TAG`, and the name has at most `MAX_NAME` characters;
    a digest fits `grammar.DIGEST`, and its algorithm is one of `grammar.REGISTERED_ALGORITHMS`. An
    `after` may be any text.

    A repository is not created explicitly. It exists while it has a blob or a manifest.

    Several threads call a storage at once. In addition to the errors that it names, every method
    may raise `OSError`, with a message for the operator, if the storage itself has failed, as with
    a full disk or an unreachable object store. The registry then answers 503 ``UNAVAILABLE``, and
    logs the message. A storage converts its library's own errors into `OSError`.
    """

    def open_blob(self, name: str, digest: str) -> Blob:
        """Return a blob of a repository: its size, and a way to read it.

        Raises `MissingError` if the repository does not have the blob. If the content is lost, this
        method or `Blob.read` raises `MissingError`.
        """
        ...

    def manifest(self, name: str, digest: str) -> Manifest:
        """Return a manifest of a repository. Raises `MissingError`."""
        ...

    def tag(self, name: str, tag: str) -> str:
        """Return the digest that a tag points at. Raises `MissingError`."""
        ...

    # Lists. The registry takes at most one item more than a page has.

    def repositories(self, after: str = "") -> Iterator[str]:
        """Return the names of the repositories that have a manifest, if greater than `after`.

        They are in ASCII order of the whole name: ``a``, ``a-b``, ``a/b``.
        """
        ...

    def tags(self, name: str, after: str = "") -> Iterator[str]:
        """Return the tags of a repository that are greater than `after`, in ASCII order.

        Raises `MissingError` if there is no such repository, when called or on the first iteration.
        """
        ...

    def referrers(self, name: str, subject: str, after: str = "") -> Iterator[tuple[str, bytes]]:
        """Return the digest and the descriptor of each manifest that refers to a subject.

        The digests are greater than `after`, and in ASCII order. Without such manifests, or such a
        repository, there are none.
        """
        ...


@runtime_checkable
class SigningStorage(ReadStorage, Protocol):
    """A `ReadStorage` that signs URLs, from which clients get blobs directly."""

    def blob_url(self, name: str, digest: str, lifetime: timedelta) -> str:
        """Return a URL at which clients can GET a blob, without credentials, for `lifetime`.

        Raises `MissingError` as `open_blob` does.
        """
        ...


@runtime_checkable
class Storage(ReadStorage, Protocol):
    """The methods of a storage that a whole registry needs.

    Each write appears as a whole or not at all. It replaces existing content, and is durable once
    the method has returned. A method propagates any error of an iterable argument, and then stores
    nothing that came from the iterable. An upload id fits `grammar.UPLOAD_ID`, but the storage may
    never have issued it.

    A **conditional write** has an `expected` state, and raises `ConflictError` if the state is
    different. It is atomic: of two writers that expect the same state, only one succeeds. A storage
    that cannot do this in one step says so in its docstring.

    `MemoryStorage` is the shortest implementation.
    """

    # Blobs. Each belongs to a repository, and several repositories may share its content.

    def put_blob(self, name: str, digest: str, blocks: Iterable[bytes]) -> None:
        """Store a blob, whose content comes in blocks, and replace any existing content.

        Raises `digests.DigestMismatchError`, and stores nothing, if the content has another digest.
        """
        ...

    def mount_blob(self, name: str, digest: str, source: str) -> None:
        """Add a blob of the repository `source` to a repository, which may already have it.

        Raises `MissingError` if `source` does not have the blob, even if another repository does.
        """
        ...

    def delete_blob(self, name: str, digest: str) -> None:
        """Remove a blob from a repository, but not from others. Raises `MissingError`."""
        ...

    # Uploads: blobs that come in chunks. Each belongs to a repository.

    def begin_upload(self, name: str) -> str:
        """Begin an upload, and return an id that cannot be guessed. It fits `grammar.UPLOAD_ID`."""
        ...

    def upload_size(self, name: str, upload_id: str) -> int:
        """Return how many bytes an upload has so far. Raises `MissingError`.

        The registry calls this before each chunk, so its time should not grow with the upload.
        """
        ...

    def append_to_upload(
        self, name: str, upload_id: str, start: int, blocks: Iterable[bytes]
    ) -> int:
        """Add a chunk to an upload, and return how many bytes the upload then has.

        `start` is the result of `upload_size`. An empty chunk changes nothing. Raises
        `MissingError`, and `ConflictError` if another request has added a chunk there.
        """
        ...

    def finish_upload(
        self, name: str, upload_id: str, start: int, blocks: Iterable[bytes], digest: str
    ) -> None:
        """Add a last chunk, which may be empty, to an upload, and turn the upload into a blob.

        The upload then no longer exists. After an error, it is as before, without the last chunk.
        Raises `MissingError`, `ConflictError` and `digests.DigestMismatchError`.
        """
        ...

    def upload_result(self, name: str, upload_id: str) -> str:
        """Return the digest of the blob that an upload became, for an hour or longer.

        A client that lost the response to its last request may repeat the request. Raises
        `MissingError` if the upload was not finished, or never existed.
        """
        ...

    def cancel_upload(self, name: str, upload_id: str) -> None:
        """Delete an upload. Raises `MissingError`."""
        ...

    # Manifests and tags.

    def put_manifest(
        self,
        name: str,
        digest: str,
        manifest: Manifest,
        *,
        blobs: Sequence[str] = (),
        tags: Sequence[str] = (),
        expected: str | None = None,
        subject: str | None = None,
        descriptor: bytes = b"",
    ) -> None:
        """Store a manifest, and make the `tags` point at it.

        :param digest: the digest of the manifest's content, which the registry has verified.
        :param blobs: the digests of the blobs that the repository must have.
        :param expected: makes this a conditional write of a single tag. It is the digest that the
            tag must point at, or "" if the tag must not exist.
        :param subject: the digest of the manifest that it refers to, which need not exist.
        :param descriptor: the manifest's descriptor, for `referrers` to return.

        When this returns, the manifest and everything that points at it exist, even if another
        request has deleted the manifest at the same time.

        Raises `MissingError`, with the digest, if the repository lacks one of the blobs; then
        nothing points at the manifest. If a storage deletes blobs that no manifest needs during the
        call, it must either spare the blob or raise `MissingError`.
        """
        ...

    def delete_manifest(self, name: str, digest: str) -> None:
        """Delete a manifest, the tags that point at it, and its entry among the referrers.

        The manifests that refer to it stay. Raises `MissingError`.
        """
        ...

    def delete_tag(self, name: str, tag: str, expected: str | None = None) -> None:
        """Delete a tag, but not the manifest. Raises `MissingError`.

        :param expected: makes this a conditional write. It is the digest that the tag must point
            at.
        """
        ...


def checked_blocks(digest: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks, and then raise `DigestMismatchError` if their digest is another.

    It is for storages that write a stream, and discard it if the stream raises an error.

    >>> from registry_routes.digests import digest_of
    >>> list(checked_blocks(digest_of(b"{}"), [b"{", b"}"]))
    [b'{', b'}']
    """
    verifier = Verifier(digest)
    for block in blocks:
        verifier.update(block)
        yield block
    verifier.verify()
