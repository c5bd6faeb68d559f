"""A kept tag is a tag in the proxy's storage: a record of the manifests that its upstream sent.

The record has one manifest of each media type, with the time of its last confirmation, because an
upstream may have several manifests for a tag, and choose by the client's ``Accept``: an index, or
the image for one platform.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from werkzeug.datastructures import MIMEAccept

from registry_routes.digests import digest_of
from registry_routes.headers import DOCKER_MANIFEST_LIST, IMAGE_INDEX
from registry_routes.registry import Manifest, MissingError, Storage

RECORD = "application/vnd.registry-routes.kept-tag+json"
INDEXES = IMAGE_INDEX, DOCKER_MANIFEST_LIST
MOST = 8  # manifests per tag


class Kept(NamedTuple):
    """A manifest that an upstream had for a tag."""

    media_type: str
    digest: str
    confirmed: float
    """When the upstream last answered with it, by `time.time`."""

    @property
    def age(self) -> float:
        """Seconds since then; 0 if a machine whose clock is ahead wrote the time."""
        return max(time.time() - self.confirmed, 0)


def read(storage: Storage, name: str, tag: str) -> list[Kept]:
    """Return the manifests of a tag, the latest first; none if the storage lacks the tag."""
    try:
        digest = storage.tag(name, tag)
        record = storage.manifest(name, digest)
    except MissingError:
        return []
    if record.media_type != RECORD:  # earlier versions kept the manifest itself
        return [Kept(record.media_type, digest, confirmed=0)]
    return [Kept(*entry) for entry in json.loads(record.content)["manifests"]]


def write(storage: Storage, name: str, tag: str, entries: Sequence[Kept]) -> None:
    """Replace the record of a tag. Raise `MissingError` as the storage does."""
    content = json.dumps({"manifests": entries}).encode()
    digest, old = digest_of(content), ""
    with suppress(MissingError):
        old = storage.tag(name, tag)
    storage.put_manifest(name, digest, Manifest(RECORD, content), tags=[tag])
    if old not in ("", digest):
        with suppress(MissingError):
            storage.delete_manifest(name, old)


def select_accepted(entries: Sequence[Kept], accepted: MIMEAccept) -> Iterator[Kept]:
    """Yield the manifests that a client accepts, indexes first, as an upstream would choose."""
    for kept in sorted(entries, key=lambda kept: kept.media_type not in INDEXES):
        if accepted.quality(kept.media_type):
            yield kept


def merge_answer(entries: Sequence[Kept], answer: Kept, accepted: MIMEAccept) -> list[Kept]:
    """Return the new record after the upstream has answered a client that accepts these types.

    If the client has named another type and did not get it, the tag no longer has a manifest of
    that type. But an index may hide an image.
    """
    named = {media_type.lower() for media_type in accepted.values()}
    is_index = answer.media_type in INDEXES
    others = [
        kept
        for kept in entries
        if kept.media_type != answer.media_type
        and (kept.media_type.lower() not in named or (is_index and kept.media_type not in INDEXES))
    ]
    return [answer, *others][:MOST]
