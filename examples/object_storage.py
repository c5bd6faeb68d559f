"""The base class of `DirectoryStorage` and `BucketStorage`: the paths of objects, and their order.

`directory.py` and `bucket.py` add how objects are written, and the uploads. `collection.py` deletes
objects by these paths.
"""

import base64
import json
import re
import time
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import groupby, takewhile
from typing import BinaryIO, NamedTuple, TypeVar

from registry_routes.grammar import DIGEST, NAME, TAG
from registry_routes.registry import Blob, ConflictError, Manifest, MissingError, Storage

STAGING = "staging/"
MAX_WAIT = 60  # seconds that a push waits for a collection, which takes at most half for a batch
PAUSE = 0.1  # seconds between two checks

Blocks = Iterable[bytes]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Entry(NamedTuple):
    """An object in a list."""

    path: str
    time: float
    """When it was last written, by the clock of the storage, in seconds since the epoch."""
    size: int


class ObjectStorage(Storage):
    """Repositories as objects, each at a path.

    The contents of blobs are at ``blobs/<algorithm>/<hash>``. ``catalog/<name>``, empty, says that
    a repository has manifests. Under ``repositories/<name>/`` are:

    - ``_blobs/<algorithm>/<hash>``, the link of a blob: the repository has this blob;
    - ``_unneeded/<algorithm>/<hash>``: the repository has the blob, but a collection found no
      manifest that needs it. The first request that wants the blob moves the link back;
    - ``_deleted/<algorithm>/<hash>``: the repository had the blob until a client deleted it;
    - ``_manifests/<algorithm>/<hash>/-``: a line with the manifest's media type and, if it has one,
      its subject; then the manifest;
    - ``_manifests/<algorithm>/<hash>/<tag>``, empty: the tag points at this manifest, or once did;
    - ``_tags/<tag>``: the digest that the tag points at;
    - ``_referrers/<subject's algorithm>/<hash>/<algorithm>-<hash>``: a descriptor. In an object
      store, a short one is part of the path, so that a list has it;
    - ``_uploads/<id>/``.

    No component of a name starts with "_", and no value that the routes let through can name
    another path. An object appears only when it is complete. A process may be killed at any moment,
    so blobs and manifests are written before the objects that point at them.

    ``condemned/<algorithm>/<hash>`` says that a collection is just deleting this content. A request
    writes its link and then looks for this mark; a collection writes the mark and then looks at the
    content and its links. So at least one of the two always sees the other.
    """

    is_locked = False
    """Whether `lock` keeps other requests out. Without that, conditional deletes are not atomic:
    they may delete a tag that another request sets at the same moment."""

    max_path = 0
    """The maximum length of a path that contains a descriptor."""

    # For subclasses to define. Each of these may raise `OSError`.

    @abstractmethod
    def check(self) -> None:
        """Raise `OSError` if the storage does not answer. Write nothing."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the content of an object, which is empty if the object does not exist."""

    @abstractmethod
    def entry(self, path: str) -> Entry | None:
        """Return the entry of an object; `None` if the object does not exist."""

    def size(self, path: str) -> int | None:
        found = self.entry(path)
        return found and found.size

    @abstractmethod
    def stream(self, path: str, start: int, end: int) -> Blocks:
        """Return a part of an object. Raise `MissingError` when called, not when iterated."""

    @abstractmethod
    def write(self, *objects: tuple[str, bytes]) -> None:
        """Write objects. After an error, each has either its old or its new content.

        If `is_locked`, they appear in this order.
        """

    @abstractmethod
    def point_tags(self, name: str, digest: str, tags: Sequence[str], expected: str | None) -> bool:
        """Make tags point at a manifest, and return whether `has_pointers` is true afterwards.

        Raise `ConflictError` if the only tag does not point at the `expected` digest.
        """

    @abstractmethod
    def create(self, path: str) -> bool:
        """Create an empty object. Return `False` if the object exists already."""

    @abstractmethod
    def move(self, source: str, target: str) -> bool:
        """Move a small object and renew its time. Return `False` if it does not exist."""

    @abstractmethod
    def delete(self, *paths: str) -> None:
        """Delete objects, which need not exist."""

    def delete_old(self, paths: list[str], until: float) -> None:
        """Delete objects that a collection found to be older than `until`.

        If `is_locked`, objects that were written since then stay.
        """
        self.delete(*paths)

    @abstractmethod
    def names(self, prefix: str, after: str = "") -> Iterator[str]:
        """Return the paths under a prefix, without it, that are greater than `after`, in order.

        A directory returns only the next component of each.
        """

    @abstractmethod
    def entries(self, prefix: str) -> Iterator[Entry]:
        """Return all objects under a prefix, in any order."""

    @abstractmethod
    def now(self) -> float:
        """Return the time by the clock of `Entry.time`."""

    @abstractmethod
    def lock(self, name: str) -> AbstractContextManager[None]:
        """Keep other requests for a repository out, if `is_locked`."""

    def flatten(self, name: str) -> str:
        """Return a repository's name in the form in which `names` can list it."""
        return name

    def call_each(self, act: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Call a function for each item, perhaps at the same time."""
        return [act(item) for item in items]

    @abstractmethod
    def blob_size(self, name: str, digest: str) -> int | None:
        """Return the size of a blob that a repository links; `None` without a link."""

    @abstractmethod
    def link_blob(self, name: str, digest: str, size: int) -> None:
        """Write the link of a blob to a repository."""

    @abstractmethod
    def has_ended(self, upload: str) -> bool:
        """Return whether an upload, named by its path, has become a blob."""

    @abstractmethod
    def delete_upload(self, upload: str) -> None:
        """Delete an upload, named by its path, and its result."""

    @abstractmethod
    def sections(self) -> list[str]:
        """Return the first components of paths."""

    # Blobs.

    def open_blob(self, name: str, digest: str) -> Blob:
        try:
            size = self._find_blob(name, digest)
        except OSError:  # a read-only storage cannot move the link back
            found = self.size(content_path(digest))
            if found is None or self.size(path_of(name, "_unneeded", digest)) is None:
                raise
            size = found
        return Blob(size, partial(self._read_blob, digest, size))

    def _find_blob(self, name: str, digest: str) -> int:
        """Return the size of a blob. Move its link back if a collection has set it aside."""
        size = self.blob_size(name, digest)
        if size is None and self.move(
            path_of(name, "_unneeded", digest), path_of(name, "_blobs", digest)
        ):
            self.await_collection(name, digest)
            size = self.blob_size(name, digest)
        if size is None:
            raise MissingError(digest)
        return size

    def _read_blob(self, digest: str, size: int, start: int, end: int) -> Blocks:
        if start == end:  # object stores refuse empty ranges
            if self.size(content_path(digest)) is None:
                raise MissingError(digest)
            return iter(())
        return self.stream(content_path(digest), start, end)

    def mount_blob(self, name: str, digest: str, source: str) -> None:
        self.link_blob(name, digest, self._find_blob(source, digest))
        self.await_collection(name, digest)

    def delete_blob(self, name: str, digest: str) -> None:
        # The content stays: other repositories may have it, or be about to link it.
        self._find_blob(name, digest)
        if not self.move(path_of(name, "_blobs", digest), path_of(name, "_deleted", digest)):
            raise MissingError(digest)

    def await_collection(self, name: str, digest: str) -> None:
        """Wait while a collection handles the content of a blob that has just been linked.

        Raise `MissingError` if the collection deletes it. Then the link must not stay, or manifests
        that need the blob would be accepted. Another push may have written the link as well, after
        its content. So the link is only set aside, and comes back if the content is there now.
        """
        condemned = condemned_path(digest)
        end = time.monotonic() + MAX_WAIT
        while self.size(condemned) is not None:
            if time.monotonic() > end:  # the collection was killed
                self.delete(condemned)
            time.sleep(PAUSE)
        if self.size(content_path(digest)) is None:
            self.move(path_of(name, "_blobs", digest), path_of(name, "_unneeded", digest))
            size = self.size(content_path(digest))
            if size is None:
                raise MissingError(digest)
            self.link_blob(name, digest, size)

    # Manifests and tags.

    def manifest(self, name: str, digest: str) -> Manifest:
        line, _, content = self.read(manifest_path(name, digest)).partition(b"\n")
        if not line:
            raise MissingError(digest)
        return Manifest(line.decode().partition(" ")[0], content)

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
        self.call_each(partial(self._find_blob, name), blobs)
        line = f"{manifest.media_type} {subject or ''}".rstrip().encode()
        pointers = {f"{path_of(name, '_manifests', digest)}/{tag}": b"" for tag in tags}
        if subject:
            path = _referrer_path(name, subject, digest)
            packed = f"{path}/{_pack(descriptor)}"
            pointers |= {packed: b""} if len(packed) <= self.max_path else {path: descriptor}
        path, content = manifest_path(name, digest), b"%b\n%b" % (line, manifest.content)
        if expected is not None and self.read(tag_path(name, tags[0])).decode() != expected:
            raise ConflictError(tags[0])
        while True:
            catalog = self.catalog_path(name)
            if not self.is_locked or self.size(catalog) is None:
                pointers[catalog] = b""
            if self.is_locked:
                self.write((path, content), *pointers.items())
            else:
                self.write((path, content))
                self.write(*pointers.items())
            if self.point_tags(name, digest, tags, expected):
                return
            # Another request has deleted the manifest or its index of tags: write all again.

    def has_pointers(self, name: str, digest: str, tags: Sequence[str]) -> bool:
        """Return whether a manifest exists, with these tags in its index."""
        return {"-", *tags} <= {*self.names(f"{path_of(name, '_manifests', digest)}/")}

    def catalog_path(self, name: str) -> str:
        return f"catalog/{self.flatten(name)}"

    def delete_manifest(self, name: str, digest: str) -> None:
        """Delete a manifest and the objects that point at it.

        Without a lock, another request may push the manifest at the same time. A push writes
        everything and then looks at the index of the tags. A delete removes the index and then
        looks at the tags again. So at least one of the two sees the other.
        """
        with self.lock(name):
            self._delete_manifest(name, digest)

    def delete_old_manifest(self, name: str, digest: str, time: float) -> None:
        """Delete a manifest, unless it has been pushed again since `time`.

        Without a lock, it may be pushed between this check and the delete.
        """
        with self.lock(name):
            found = self.entry(manifest_path(name, digest))
            if found is not None and found.time <= time:
                self._delete_manifest(name, digest)

    def _delete_manifest(self, name: str, digest: str) -> None:
        path = manifest_path(name, digest)
        line = self.read(path).partition(b"\n")[0]
        if not line:
            raise MissingError(digest)
        subject = line.decode().partition(" ")[2]
        referrers = []
        if subject:
            referrer = _referrer_path(name, subject, digest)
            referrers = [referrer, *(entry.path for entry in self.entries(f"{referrer}/"))]
        tags = self._select_pointing(name, digest, self._read_index(name, digest))
        self.delete(*(tag_path(name, tag) for tag in tags), *referrers)
        self.delete(path)
        with suppress(OSError):  # the manifest is deleted, so no failure matters any more
            self._forget_tags(name, digest, self._read_index(name, digest))

    def _forget_tags(self, name: str, digest: str, tags: list[str]) -> None:
        """Delete the index of a deleted manifest, and the tags that were set since.

        1. Delete the index, and the repository from the catalog if it has no other manifest.
        2. If another request has just pushed a manifest there, write the catalog's entry again.
        3. Look at the tags again. Another request has set those that point at the manifest. Delete
           them, or write them into the index again if that request has also pushed the manifest.
        """
        index = {tag: f"{path_of(name, '_manifests', digest)}/{tag}" for tag in tags}
        catalog, is_last = self.catalog_path(name), not self.has_manifests(name)
        self.delete(*index.values(), *([catalog] if is_last else []))
        if is_last and not self.is_locked and self.has_manifests(name):
            self.write((catalog, b""))
        if self.is_locked or not tags:
            return
        for tag in self._select_pointing(name, digest, self._select_present(name, tags)):
            if self.size(manifest_path(name, digest)) is None:
                self.delete(tag_path(name, tag))
            else:
                self.write((index[tag], b""))

    def _select_present(self, name: str, tags: list[str]) -> list[str]:
        """Return those tags that a repository has. A list costs less than a read of each tag."""
        wanted, last = set(tags), max(tags)
        before = min(tags)[:-1]  # not the first tag itself, which `names` would leave out
        listed = takewhile(lambda tag: tag <= last, self.names(tag_path(name, ""), before))
        return [tag for tag in listed if tag in wanted]

    def _read_index(self, name: str, digest: str) -> list[str]:
        """Return the tags in the index of a manifest."""
        names = self.names(f"{path_of(name, '_manifests', digest)}/")
        return [tag for tag in names if TAG.fits(tag)]

    def _select_pointing(self, name: str, digest: str, tags: list[str]) -> list[str]:
        """Return those tags that point at a digest."""
        found = self.call_each(lambda tag: self.read(tag_path(name, tag)), tags)
        return [tag for tag, target in zip(tags, found, strict=True) if target == digest.encode()]

    def mend_catalog(self, name: str) -> None:
        """Make the catalog list a repository if it has manifests, and only then."""
        with self.lock(name):
            if not self.has_manifests(name):
                self.delete(self.catalog_path(name))
            if self.has_manifests(name):
                self.write((self.catalog_path(name), b""))

    def has_manifests(self, name: str) -> bool:
        entries = self.entries(path_of(name, "_manifests"))
        return any(entry.path.endswith("/-") for entry in entries)

    def tag(self, name: str, tag: str) -> str:
        digest = self.read(tag_path(name, tag))
        if not digest:
            raise MissingError(tag)
        return digest.decode()

    def delete_tag(self, name: str, tag: str, expected: str | None = None) -> None:
        with self.lock(name):
            if self.tag(name, tag) != expected and expected is not None:
                raise ConflictError(tag)
            self.delete(tag_path(name, tag))

    # Lists.

    def repositories(self, after: str = "") -> Iterator[str]:
        return filter(NAME.fits, self.names("catalog/", after))

    def tags(self, name: str, after: str = "") -> Iterator[str]:
        tag = ""
        for tag in filter(TAG.fits, self.names(tag_path(name, ""), after)):
            yield tag
        # A repository that has only blobs still exists, without tags.
        if not tag and self.size(self.catalog_path(name)) is None and not self._has_blobs(name):
            raise MissingError(name)

    def _has_blobs(self, name: str) -> bool:
        return any(self.entries(path_of(name, "_blobs")))

    def referrers(self, name: str, subject: str, after: str = "") -> Iterator[tuple[str, bytes]]:
        prefix = f"{path_of(name, '_referrers', subject)}/"
        found = self.names(prefix, after.replace(":", "-"))
        for encoded, same in groupby(found, lambda found: found.partition("/")[0]):
            digest = encoded.replace("-", ":", 1)
            if DIGEST.fits(digest) and digest > after:
                descriptor = self._read_descriptor(name, digest, [prefix + path for path in same])
                if descriptor:
                    yield digest, descriptor

    def _read_descriptor(self, name: str, digest: str, paths: list[str]) -> bytes:
        """Return the descriptor of a referrer, which is in a path or in an object."""
        separator = f"/{digest.replace(':', '-')}/"
        descriptors = [
            _unpack(path.partition(separator)[2]) if separator in path else self.read(path)
            for path in paths
        ]
        if len(descriptors) > 1:  # pushed with several types: return that of the last push
            media_type = self.manifest(name, digest).media_type
            descriptors.sort(key=lambda entry: json.loads(entry).get("mediaType") == media_type)
        return descriptors[-1]


_DIGEST = re.compile("sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


def digests_in(content: bytes) -> set[str]:
    """Return every digest in a manifest, even those in fields that no specification defines."""
    try:
        text = json.dumps(json.loads(content))  # which undoes escapes in digests
    except (ValueError, RecursionError):
        text = content.decode("latin-1")
    return set(_DIGEST.findall(text))


def _pack(descriptor: bytes) -> str:
    """Return a descriptor as a component of a path."""
    return base64.urlsafe_b64encode(zlib.compress(descriptor, 9)).decode().rstrip("=")


def _unpack(packed: str) -> bytes:
    return zlib.decompress(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)))


def _digest_path(digest: str) -> str:
    return digest.replace(":", "/")


def content_path(digest: str) -> str:
    return f"blobs/{_digest_path(digest)}"


def condemned_path(digest: str) -> str:
    return f"condemned/{_digest_path(digest)}"


def path_of(name: str, kind: str, digest: str = "") -> str:
    return f"repositories/{name}/{kind}/{_digest_path(digest)}"


def manifest_path(name: str, digest: str) -> str:
    return f"{path_of(name, '_manifests', digest)}/-"


def _referrer_path(name: str, subject: str, digest: str) -> str:
    return f"{path_of(name, '_referrers', subject)}/{digest.replace(':', '-')}"


def tag_path(name: str, tag: str) -> str:
    return f"{path_of(name, '_tags')}{tag}"


def upload_path(name: str, upload_id: str) -> str:
    """Return the path of an upload. Raise `MissingError` for an id of another form."""
    if not re.fullmatch("[0-9a-f]{32}", upload_id):
        raise MissingError(upload_id)
    return f"{path_of(name, '_uploads')}{upload_id}/"


def one_line(error: Exception) -> str:
    """Return the text of an error in one line, without what obstore adds for debugging."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())


def write_whole(file: BinaryIO, block: bytes) -> None:
    """Write a block to an unbuffered file, which may take only a part at a time."""
    with memoryview(block) as left:
        written = 0
        while written < len(left):
            written += file.write(left[written:])
