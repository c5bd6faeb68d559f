"""Delete unneeded content from the storage of a registry, while the registry is running.

    python examples/registry.py collect --storage ./registry-data --older-than 24h --dry-run

It deletes these if they were last pushed or mounted longer ago than the given age:

- unfinished uploads, by the time of their last chunk, and files that a killed process was writing;
- with ``--untagged``, manifests that neither a tag nor another manifest leads to;
- the link of a blob to a repository, if no manifest of the repository contains the blob's digest.
  The first collection only sets the link aside. A push that wants the blob moves the link back, and
  notices nothing. A collection that finds the link set aside for longer than the age deletes it;
- the content of a blob, if no repository has the blob.

If no push takes longer than the age, no acknowledged manifest ever lacks a blob: even if a link is
set aside just after a push has seen it, the link stays for that age. While a collection deletes a
content, pushes of the same content wait, as `object_storage.ObjectStorage` describes.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from object_storage import (
    MAX_WAIT,
    STAGING,
    Entry,
    ObjectStorage,
    condemned_path,
    content_path,
    digests_in,
    manifest_path,
    path_of,
    tag_path,
)
from storage import BucketStorage, storage_at
from tqdm import tqdm

from registry_routes.registry import MissingError

LEASE = 600  # seconds that unfinished files, and links that were set aside, stay at least
REMEMBERED = 3600  # seconds that the result of an upload stays
BATCH = 1000  # contents to delete at once; S3 deletes as many in one request
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_IN_REPOSITORY = re.compile(
    "repositories/(.+?)/_(blobs|unneeded|deleted|manifests|tags|uploads)/(.+)", re.DOTALL
)


class Thing(NamedTuple):
    """The age and the size of an object, or of several that belong together."""

    time: float = 0
    """When it was last written, in seconds since the epoch."""
    size: int = 0

    def __or__(self, other: "Thing") -> "Thing":
        return Thing(max(self.time, other.time), self.size + other.size)


class Link(NamedTuple):
    """A link of a blob to a repository."""

    name: str
    digest: str

    def path(self, kind: str) -> str:
        return path_of(self.name, kind, self.digest)


class References(NamedTuple):
    """The digests that a manifest mentions, as links in its repository, and its subject."""

    mentioned: set[Link]
    subject: Link | None


Things = dict[str, Thing]
Links = dict[Link, Thing]
Key = TypeVar("Key")


class Survey:
    """A list of everything in a storage. An upload counts once, with its chunks."""

    def __init__(self, storage: ObjectStorage) -> None:
        self.contents: Things = {}
        """The contents of blobs, by digest."""
        self.links: dict[str, Links] = {"blobs": {}, "unneeded": {}, "deleted": {}}
        self.manifests: Links = {}
        self.tags: set[tuple[str, str]] = set()
        self.uploads: Things = {}
        self.staged: Things = {}
        self.condemned: Things = {}
        self.catalog: Things = {}
        with tqdm(desc="Listing", unit=" objects") as progress:
            for kind in "blobs/", "repositories/", STAGING, "condemned/", "catalog/":
                for entry in storage.entries(kind):
                    progress.update()
                    self._add(kind, entry)

    def _add(self, kind: str, entry: Entry) -> None:
        thing, rest = Thing(entry.time, entry.size), entry.path.removeprefix(kind)
        found = _IN_REPOSITORY.fullmatch(entry.path)
        if kind == "blobs/":
            self.contents[rest.replace("/", ":")] = thing
        elif kind == STAGING:
            self.staged[entry.path] = thing
        elif kind == "condemned/":
            self.condemned[entry.path] = thing
        elif kind == "catalog/":
            self.catalog[entry.path] = thing
        elif found is None:
            return
        elif found[2] in self.links:
            self.links[found[2]][Link(found[1], found[3].replace("/", ":"))] = thing
        elif found[2] == "manifests":
            if found[3].endswith("/-"):
                digest = found[3].removesuffix("/-").replace("/", ":")
                self.manifests[Link(found[1], digest)] = thing
            elif found[3].count("/") == 1:
                raise OSError("an earlier version wrote the manifests, in another format")
        elif found[2] == "tags":
            self.tags.add((found[1], found[3]))
        else:
            upload = f"{entry.path[: found.start(3)]}{found[3].partition('/')[0]}/"
            self.uploads[upload] = self.uploads.get(upload, Thing()) | thing


def select_unneeded(
    storage: ObjectStorage,
    older_than: float,
    *,
    with_manifests: bool = False,
    untagged: bool = False,
) -> "Collection":
    """Return the objects that can be deleted from a storage, at the time of the call.

    :param older_than: the age, in seconds.
    :param with_manifests: for a cache, which can fetch everything again: delete old manifests too,
        and, without setting them aside, the blobs that only these need.
    :param untagged: delete old manifests that neither a tag nor a manifest leads to.
    """
    now = storage.now()  # the clock of this machine may be wrong
    until = now - older_than
    # Even if `older_than` is short, processes may still be writing files, or be in a push.
    leased = min(until, now - LEASE)
    until_deleted = until if with_manifests else leased
    survey = Survey(storage)
    uploads = select_uploads(storage, survey.uploads, until, now - REMEMBERED)
    old = select_old(survey.manifests, until)
    manifests = old if with_manifests else {}
    references = read_manifests(storage, survey.manifests.keys() - manifests.keys())
    if untagged:
        manifests = without(old, find_reached(storage, survey.tags, references))
    needed = needed_links(references, manifests)
    live, unneeded = survey.links["blobs"], survey.links["unneeded"]
    set_aside = without(select_old(live, until), needed)
    links = select_links(survey.links, needed, until_deleted)
    deleted = {*links, *(link.path("_blobs") for link in set_aside if with_manifests)}
    return Collection(
        storage,
        is_cache=with_manifests,
        until_deleted=until_deleted,
        uploads=uploads,
        staged=select_old(survey.staged, leased),
        condemned=select_old(survey.condemned, now - LEASE),
        manifests=manifests,
        needed_again=[link for link in unneeded if link in needed and link not in live],
        set_aside=set_aside,
        links=links,
        contents=select_contents(survey, deleted, until_deleted),
        wrong_names=find_wrong_names(storage, survey, leased),
    )


def select_old(things: dict[Key, Thing], until: float) -> dict[Key, Thing]:
    return {key: thing for key, thing in things.items() if thing.time < until}


def without(things: dict[Key, Thing], kept: set[Key]) -> dict[Key, Thing]:
    return {key: thing for key, thing in things.items() if key not in kept}


def select_uploads(
    storage: ObjectStorage, uploads: Things, until: float, until_forgotten: float
) -> Things:
    """Return the old uploads, but not those whose result is still remembered."""
    return {
        upload: thing
        for upload, thing in select_old(uploads, until).items()
        if thing.time < until_forgotten or not storage.has_ended(upload)
    }


def read_manifests(storage: ObjectStorage, manifests: Iterable[Link]) -> dict[Link, References]:
    """Return what each manifest refers to: nothing, if it was just deleted."""
    found = {}
    for batch in _batches(tqdm(sorted(manifests), "Reading")):
        files = storage.call_each(storage.read, [manifest_path(*link) for link in batch])
        for link, file in zip(batch, files, strict=True):
            line, _, content = file.partition(b"\n")
            subject = line.decode().partition(" ")[2]
            found[link] = References(
                {Link(link.name, digest) for digest in digests_in(content)},
                Link(link.name, subject) if subject else None,
            )
    return found


def find_reached(
    storage: ObjectStorage, tags: set[tuple[str, str]], references: Mapping[Link, References]
) -> set[Link]:
    """Return the manifests that tags lead to, through indexes, and those that refer to them."""
    leads: dict[Link, set[Link]] = {}
    for link, (mentioned, subject) in references.items():
        leads.setdefault(link, set()).update(mentioned - {subject})
        if subject:
            leads.setdefault(subject, set()).add(link)
    digests = storage.call_each(lambda tag: storage.read(tag_path(*tag)), tags)
    left = {Link(name, digest.decode()) for (name, _), digest in zip(tags, digests, strict=True)}
    reached: set[Link] = set()
    while left:
        link = left.pop()
        reached.add(link)
        left |= leads.get(link, set()) - reached
    return reached


def needed_links(references: Mapping[Link, References], deleted: Links) -> set[Link]:
    """Return the blobs and manifests that a manifest mentions, unless that is to be deleted."""
    return {
        link
        for manifest, (mentioned, _) in references.items()
        if manifest not in deleted
        for link in mentioned
    }


def select_links(links: Mapping[str, Links], needed: set[Link], until: float) -> Things:
    """Return the links, by path, that do nothing, or were set aside before `until`."""
    return {
        link.path(f"_{kind}"): thing
        for kind in ("unneeded", "deleted")
        for link, thing in links[kind].items()
        if link in links["blobs"] or (thing.time < until and link not in needed)
    }


def select_contents(survey: Survey, deleted: set[str], until: float) -> Things:
    """Return the old contents to which no link leads, apart from the links at `deleted` paths."""
    kept = {
        link.digest
        for kind, links in survey.links.items()
        for link in links
        if link.path(f"_{kind}") not in deleted
    }
    return without(select_old(survey.contents, until), kept)


def find_wrong_names(storage: ObjectStorage, survey: Survey, until: float) -> set[str]:
    """Return the names that killed processes and lost races have left wrong in the catalog."""
    names = {link.name for link in survey.manifests}
    right = {storage.catalog_path(name): name for name in names}
    return {name for path, name in right.items() if path not in survey.catalog} | {
        path.removeprefix("catalog/").replace("@", "/")
        for path in select_old(survey.catalog, until)
        if path not in right
    }


@dataclass
class Collection:
    """The objects to delete from a storage."""

    storage: ObjectStorage
    is_cache: bool
    until_deleted: float
    """The time before which a link was set aside, or a content written, to be deleted now."""
    uploads: Things
    staged: Things
    condemned: Things
    """The marks that killed collections have left."""
    manifests: Links
    needed_again: list[Link]
    """Links that were set aside, and that go back."""
    set_aside: Links
    """The links to set aside; in a cache, to delete."""
    links: Things
    """The links that were set aside, by path."""
    contents: Things
    wrong_names: set[str]
    """The repositories to correct in the catalog."""

    def delete(self) -> None:
        """Delete everything that no request has pushed, mounted or needed since.

        On a full disk, nothing can be written. So the deletions that write nothing come first.
        """
        for upload in tqdm(self.uploads, "Deleting uploads"):
            self.storage.delete_upload(upload)
        self.storage.delete(*self.staged, *self.condemned)
        for link, thing in tqdm(self.manifests.items(), "Deleting manifests"):
            with suppress(MissingError):
                self.storage.delete_old_manifest(*link, thing.time)
        for link in self.needed_again:
            with suppress(MissingError):
                self.storage.open_blob(*link)  # moves the link back
        if self.is_cache:
            self.storage.delete(*(link.path("_blobs") for link in self.set_aside))
        asides: dict[str, list[str]] = {}  # by digest
        for path in self.links:
            asides.setdefault(_digest_at_end(path), []).append(path)
        with tqdm(desc="Deleting", total=len(self.contents)) as progress:
            for batch in _batches(self.contents):
                self._delete_contents(batch, asides)
                progress.update(len(batch))
        self.storage.delete(
            *(path for path in self.links if _digest_at_end(path) not in self.contents)
        )
        if not self.is_cache:
            for link in tqdm(self.set_aside, "Setting aside"):
                self.storage.move(link.path("_blobs"), link.path("_unneeded"))
        for name in self.wrong_names:
            self.storage.mend_catalog(name)

    def _delete_contents(self, digests: list[str], asides: dict[str, list[str]]) -> None:
        """Delete contents and the links to them that were set aside, unless a request wants them.

        A request writes its link, and then looks for the mark that a content is condemned. So:

        1. Condemn the contents, except those that another collection has condemned.
        2. Only then look: spare a content that was written since, or whose links were moved back.
        3. Stop if that took too long: requests that have waited for `MAX_WAIT` use the contents.
        4. Delete the contents, and the links to them.
        5. Only then take the marks away: requests that waited see whether their content is there.

        After an error, the contents stay condemned, and pushes of them wait for `MAX_WAIT`, because
        the storage may still carry out a request.
        """
        storage, begun = self.storage, time.monotonic()
        created = storage.call_each(lambda digest: storage.create(condemned_path(digest)), digests)
        mine = [digest for digest, is_mine in zip(digests, created, strict=True) if is_mine]
        doomed: list[str] = []
        for digest, found in zip(
            mine, storage.call_each(storage.entry, map(content_path, mine)), strict=True
        ):
            are_there = (storage.size(path) is not None for path in asides.get(digest, []))
            if found is not None and found.time < self.until_deleted and all(are_there):
                doomed.append(digest)
        if time.monotonic() - begun > MAX_WAIT / 2:
            raise OSError("the collection was interrupted for too long: run it again")
        storage.delete_old(list(map(content_path, doomed)), self.until_deleted)
        storage.delete(*(path for digest in doomed for path in asides.get(digest, [])))
        storage.delete(*map(condemned_path, mine))

    def summary(self) -> Iterator[str]:
        """Yield a line for each kind of thing to delete: how many there are, and their bytes."""
        aside = "links of blobs to repositories" if self.is_cache else "links, only set aside"
        kinds: list[tuple[str, Mapping[Any, Thing]]] = [
            *([("manifests", self.manifests)] if self.manifests else []),
            ("unreferenced contents", self.contents),
            ("links that had been set aside", self.links),
            (aside, self.set_aside),
            ("abandoned uploads", self.uploads),
            ("half-written files", self.staged),
        ]
        for kind, things in kinds:
            size = sum(thing.size for thing in things.values())
            yield f"{len(things):,} {kind}, {size:,} bytes"


def _batches(items: Iterable[Key]) -> Iterator[list[Key]]:
    items = iter(items)
    while batch := list(islice(items, BATCH)):
        yield batch


def _digest_at_end(path: str) -> str:
    return ":".join(path.rsplit("/", 2)[1:])


def parse_duration(text: str) -> float:
    """Return the seconds in a time such as ``90m`` or ``24h``."""
    found = re.fullmatch("([0-9]{1,9})([smhd])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number and a unit, s, m, h or d: 24h")
    return int(found[1]) * UNITS[found[2]]


def storage_to_collect(place: str) -> ObjectStorage:
    """Return the storage at a place. Raise `OSError` if it is in memory, or does not exist."""
    storage = storage_at(place, create=False)
    if not isinstance(storage, ObjectStorage):
        raise OSError("a storage in memory cannot be collected")
    return storage


def make_parser(program: str, description: str, *, older_than: str) -> argparse.ArgumentParser:
    """Return a parser for a command that collects; `older_than` is the help for that option."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--storage", required=True, help="a directory, or s3://…, gs://…, az://…")
    parser.add_argument(
        "--older-than", required=True, type=parse_duration, metavar="TIME", help=older_than
    )
    parser.add_argument("--dry-run", action="store_true", help="delete nothing")
    return parser


def main(arguments: list[str]) -> int:
    parser = make_parser(
        "registry.py collect",
        "Delete unneeded content from the storage of a registry, while the registry is running. "
        "Incomplete multipart uploads in an object store cannot be listed: let a lifecycle rule of "
        "the bucket abort them.",
        older_than="the least time since a push or mount, such as 24h or 7d; choose more than any "
        "push takes",
    )
    parser.add_argument(
        "--untagged",
        action="store_true",
        help="also delete manifests that neither a tag nor another manifest leads to",
    )
    options = parser.parse_args(arguments)
    try:
        storage = storage_to_collect(options.storage)
        collection = select_unneeded(storage, options.older_than, untagged=options.untagged)
        if not options.dry_run:
            collection.delete()
    except OSError as error:
        print(f"registry.py: {options.storage!r}: {error}", file=sys.stderr)
        return 2
    print("It would delete:" if options.dry_run else "Deleted:")
    for line in collection.summary():
        print(f"  {line}")
    if options.untagged and options.dry_run:
        for link in sorted(collection.manifests):
            print(f"{link.name}@{link.digest}")
    if isinstance(storage, BucketStorage):
        print("This ignores incomplete multipart uploads: let a lifecycle rule abort them.")
    return 0
