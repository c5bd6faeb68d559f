"""Reading manifests: the media type, the blobs that they need, the subject, the descriptor."""

import json
import re
from collections.abc import Iterator
from typing import Any

from werkzeug.exceptions import RequestEntityTooLarge

from .. import errors
from ..app import RegistryRequest
from ..digests import is_registered
from ..grammar import DIGEST
from ..headers import DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST

__all__ = [
    "MAX_DESCRIPTORS",
    "MAX_MANIFEST",
    "blobs_of",
    "check_kind",
    "descriptor_of",
    "manifest_type",
    "media_type_of",
    "parse_manifest",
    "subject_of",
]

MAX_MANIFEST = 4 * 1024 * 1024
"""The maximum size, in bytes, of a manifest (distribution-spec 1.1, "Pushing Manifests"), and of a
page of referrers, which is an image index."""

MAX_DESCRIPTORS = MAX_MANIFEST - 256
"""The maximum size, in bytes, of the descriptors in a page of referrers."""

# RFC 6838, section 4.2. A manifest's type has no parameters.
_MEDIA_TYPE = re.compile("(?i:application)/[a-zA-Z0-9][a-zA-Z0-9!#$&^_.+-]{0,126}", re.ASCII)
_IMAGES = (IMAGE_MANIFEST, DOCKER_MANIFEST)
_INDEXES = (IMAGE_INDEX, DOCKER_MANIFEST_LIST)
_JSON_TYPES = ("/json", "+json", "+prettyjws")  # a browser may show another type as a page


def parse_manifest(content: bytes) -> dict[str, Any]:
    """Parse a manifest. Raises `errors.ManifestInvalid` if it is not a JSON object.

    >>> parse_manifest(b'{"schemaVersion": 2}')
    {'schemaVersion': 2}
    """
    try:
        manifest = json.loads(content.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise errors.ManifestInvalid("the manifest is not JSON") from None
    if not isinstance(manifest, dict):
        raise errors.ManifestInvalid("the manifest is not a JSON object")
    return manifest


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")  # although Python reads NaN and Infinity


def manifest_type(content_type: str | None) -> str:
    """Return the media type in a ``Content-Type``; without one, that of an OCI image manifest.

    >>> manifest_type("application/vnd.oci.image.index.v1+json; charset=utf-8")
    'application/vnd.oci.image.index.v1+json'

    Raises `errors.ManifestInvalid` for a type other than JSON, which browsers might show as a page.
    """
    media_type = (content_type or "").partition(";")[0].strip() or IMAGE_MANIFEST
    if not _MEDIA_TYPE.fullmatch(media_type) or not media_type.lower().endswith(_JSON_TYPES):
        raise errors.ManifestInvalid(
            f"media type {media_type!r:.100} must be application/json or application/…+json"
        )
    return media_type


def media_type_of(request: RegistryRequest, manifest: dict[str, Any]) -> str:
    """Return the media type of a pushed manifest, or raise `errors.ManifestInvalid`.

    The request says it, and the manifest must not contradict the request.
    """
    own = manifest.get("mediaType") or ""
    sent = (request.content_type or "").partition(";")[0].strip()
    media_type = manifest_type(sent or (own if isinstance(own, str) else ""))
    if own and (not isinstance(own, str) or own.lower() != media_type.lower()):
        raise errors.ManifestInvalid(
            f"mediaType {own!r:.100} is not the Content-Type, {media_type!r:.100}"
        )
    return media_type


def check_kind(manifest: dict[str, Any], media_type: str) -> None:
    """Raise `errors.ManifestInvalid` for a manifest that is both an image and an index.

    Clients could disagree on its kind (CVE-2021-41190). Docker's registry refuses these too.
    """
    is_image = manifest.get("layers") is not None or manifest.get("config") is not None
    is_index = manifest.get("manifests") is not None
    kind = media_type.lower()
    if is_index and (manifest.get("layers") is not None or kind in _IMAGES):
        raise errors.ManifestInvalid(
            f"the manifest has manifests, which a manifest with layers or of type {media_type!r} "
            "cannot have"
        )
    if is_image and kind in _INDEXES:
        raise errors.ManifestInvalid(f"an index of type {media_type!r} has no config or layers")


def _digest_of_descriptor(descriptor: Any) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or not DIGEST.fits(digest):
        raise errors.ManifestInvalid("the manifest has a descriptor without a valid digest")
    return digest


def blobs_of(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield the digests of the blobs that a repository needs before it takes the manifest."""
    layers = manifest.get("layers") or []
    if not isinstance(layers, list):
        raise errors.ManifestInvalid("the manifest's layers are not a list")
    for descriptor in [manifest["config"], *layers] if manifest.get("config") else layers:
        digest = _digest_of_descriptor(descriptor)
        media_type = str(descriptor.get("mediaType"))
        if "nondistributable" not in media_type and ".foreign." not in media_type:
            yield digest


def subject_of(manifest: dict[str, Any]) -> str | None:
    """Return the digest of the subject; `None` without one, and if its algorithm is unknown."""
    subject = _digest_of_descriptor(manifest["subject"]) if manifest.get("subject") else ""
    return subject if is_registered(subject) else None


def descriptor_of(manifest: dict[str, Any], media_type: str, digest: str, size: int) -> bytes:
    """Return a manifest's entry in a list of referrers, as JSON.

    (distribution-spec 1.1, "Listing Referrers".)
    """
    descriptor: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": size}
    config = manifest.get("config")
    config_type = config.get("mediaType") if isinstance(config, dict) else None
    artifact_type = manifest.get("artifactType") or config_type
    if isinstance(artifact_type, str):
        descriptor["artifactType"] = artifact_type
    annotations = manifest.get("annotations")
    if annotations and _is_map_of_strings(annotations):
        descriptor["annotations"] = annotations
    text = json.dumps(descriptor, ensure_ascii=False, separators=(",", ":"))
    encoded = text.encode(errors="backslashreplace")  # a lone surrogate becomes a JSON escape
    if len(encoded) >= MAX_DESCRIPTORS:
        raise RequestEntityTooLarge("the manifest's descriptor does not fit a list of referrers")
    return encoded


def _is_map_of_strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
