"""`Storage`: where a registry keeps its content. Who writes a storage needs only this file.

A storage knows neither HTTP nor JSON, and its arguments have been checked.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple, Protocol

from ..digests import Verifier

BLOCK = 1024 * 1024  # how many bytes are read and sent at once

MAX_NAME = 255
"""The maximum length of a repository name, in characters. Most clients have this limit too
(distribution-spec 1.1, "Pulling manifests"), and it keeps paths short enough for file systems."""


class Missing(LookupError):
    """A `Storage` does not have what it was asked for."""


class Conflict(Exception):
    """A chunk does not begin where the upload ends: another request has written to the upload."""


class Manifest(NamedTuple):
    """A manifest, as a `Storage` keeps it."""

    media_type: str
    """Its ``Content-Type`` without parameters. It is ASCII and has no blanks."""

    content: bytes
    """The JSON, byte for byte as it was pushed."""


class BlobFile:
    """An open file as an iterable of blocks, from its current position to its end.

    `Storage.read_blob` may return one. The server can then let the kernel send the file.

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
        """Close the file. Reading it to its end closes it too."""
        self.file.close()


class Storage(Protocol):
    """Where a registry keeps its repositories: the methods that `make_registry` needs.

    Every argument has been checked, and is safe as part of a path: a repository name and a tag fit
    `grammar.NAME` and `grammar.TAG`, and the name has at most `MAX_NAME` characters; a digest fits
    `grammar.DIGEST`, and its algorithm is one of `grammar.REGISTERED_ALGORITHMS`. An upload id fits
    `grammar.UPLOAD_ID`, but the storage may never have issued it. An `after` may be any text.

    A repository is not created explicitly. It exists while it has a blob or a manifest.

    Several threads call a storage at once. What a method writes appears as a whole or not at all.
    It replaces what was there, and it is kept once the method has returned.

    Every method may raise, in addition to the errors that it names:

    - `OSError`, with a message for the operator, if the storage itself has failed, because of a
      full disk or an unreachable object store. The registry answers 503 ``UNAVAILABLE``, and logs
      the message. If a storage's library has its own errors, the storage raises an `OSError` from
      them.
    - whatever an iterable argument raises. The storage lets this error through unchanged, and keeps
      nothing that came from the iterable.

    `MemoryStorage` is the shortest implementation.
    """

    # Blobs. Each belongs to a repository, and several repositories may share its content.

    def blob_size(self, name: str, digest: str) -> int:
        """How many bytes a blob of a repository has.

        Raises `Missing` if the repository does not have it, or if its content is lost.
        """
        ...

    def read_blob(self, name: str, digest: str, start: int, end: int) -> Iterable[bytes]:
        """The bytes of a blob from `start` up to, but without, `end`, in blocks that fit in memory.

        Both are within the blob. If `end` is the end of the blob, and the blob is a file, the
        result may be a `BlobFile`. If the result has a `close` method, it is called.

        The call itself raises `Missing`, not the first step of the iteration.
        """
        ...

    def put_blob(self, name: str, digest: str, blocks: Iterable[bytes]) -> None:
        """Keep a blob, whose content comes in blocks, in place of any content that is there.

        Raises `digests.DigestMismatch`, and keeps nothing, if the content has another digest.
        """
        ...

    def mount_blob(self, name: str, digest: str, source: str) -> None:
        """Give a repository a blob of the repository `source`. It may already have the blob.

        Raises `Missing` if `source` does not have it, even if another repository does.
        """
        ...

    def delete_blob(self, name: str, digest: str) -> None:
        """Remove a blob from a repository, but not from others. Raises `Missing`."""
        ...

    # Uploads: blobs that come in chunks. Each belongs to a repository.

    def begin_upload(self, name: str) -> str:
        """Begin an upload, and return an id that cannot be guessed. It fits `grammar.UPLOAD_ID`."""
        ...

    def upload_size(self, name: str, upload_id: str) -> int:
        """How many bytes an upload has so far. Raises `Missing`.

        This is called before each chunk, so it should not take longer as the upload grows.
        """
        ...

    def append_to_upload(
        self, name: str, upload_id: str, start: int, blocks: Iterable[bytes]
    ) -> int:
        """Add a chunk to an upload, and return how many bytes the upload has then.

        `start` is what `upload_size` has returned. An empty chunk changes nothing. Raises
        `Missing`, and `Conflict` if another request has added a chunk there.
        """
        ...

    def finish_upload(
        self, name: str, upload_id: str, start: int, blocks: Iterable[bytes], digest: str
    ) -> None:
        """Add a last chunk, which may be empty, to an upload, and keep the whole as a blob.

        The upload no longer exists then. After an error it is as before, without the last chunk.
        Raises `Missing`, `Conflict` and `digests.DigestMismatch`.
        """
        ...

    def cancel_upload(self, name: str, upload_id: str) -> None:
        """Forget an upload. Raises `Missing`."""
        ...

    # Manifests and tags.

    def manifest(self, name: str, digest: str) -> Manifest:
        """A manifest of a repository. Raises `Missing`."""
        ...

    def put_manifest(
        self,
        name: str,
        digest: str,
        manifest: Manifest,
        *,
        blobs: Sequence[str] = (),
        tags: Sequence[str] = (),
        subject: str | None = None,
        descriptor: bytes = b"",
    ) -> None:
        """Keep a manifest, and make the `tags` point at it.

        :param digest: the digest of the manifest's content, which has been checked.
        :param blobs: the digests of the blobs that the repository must have.
        :param subject: the digest of the manifest that it refers to, which need not exist.
        :param descriptor: what `referrers` is to return for it.

        When this returns, the manifest and everything that points at it are there, even if another
        request has deleted the manifest meanwhile.

        Raises `Missing`, with the digest, if the repository does not have one of the blobs. Nothing
        points at the manifest then. If a storage deletes blobs that no manifest needs, and this
        happens during the call, it must either keep the blob or raise `Missing`.
        """
        ...

    def delete_manifest(self, name: str, digest: str) -> None:
        """Delete a manifest, the tags that point at it, and its entry among the referrers.

        The manifests that refer to it stay. Raises `Missing`.
        """
        ...

    def tag(self, name: str, tag: str) -> str:
        """The digest that a tag points at. Raises `Missing`."""
        ...

    def delete_tag(self, name: str, tag: str) -> None:
        """Delete a tag, but not the manifest. Raises `Missing`."""
        ...

    # Lists. The registry takes only one item more than it needs for a page.

    def repositories(self, after: str = "") -> Iterator[str]:
        """The names, if greater than `after`, of the repositories that have a manifest.

        They are in ASCII order of the whole name: ``a``, ``a-b``, ``a/b``.
        """
        ...

    def tags(self, name: str, after: str = "") -> Iterator[str]:
        """The tags of a repository that are greater than `after`, in ASCII order.

        Raises `Missing`, at the call or at the first step, if there is no such repository.
        """
        ...

    def referrers(self, name: str, subject: str, after: str = "") -> Iterator[tuple[str, bytes]]:
        """The digest and the descriptor of each manifest that refers to a subject.

        The digests are greater than `after`, and in ASCII order. There are none if the repository
        does not know the subject.
        """
        ...


def checked_blocks(digest: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks, and then raise `digests.DigestMismatch` if they do not have the digest.

    It is for storages that write a stream, and keep nothing of it if it raises an error.

    >>> from registry_routes.digests import digest_of
    >>> list(checked_blocks(digest_of(b"{}"), [b"{", b"}"]))
    [b'{', b'}']
    """
    verifier = Verifier(digest)
    for block in blocks:
        verifier.update(block)
        yield block
    verifier.verify()
