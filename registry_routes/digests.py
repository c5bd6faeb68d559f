"""Digests of content: to make them, to verify them, and to name the tag of a referrers index."""

import hashlib
import re
from collections.abc import Iterable

from .grammar import DIGEST, REGISTERED_ALGORITHMS
from .headers import field_lines

__all__ = [
    "DigestMismatchError",
    "Verifier",
    "check_algorithm",
    "content_digest",
    "digest_of",
    "is_registered",
    "referrers_tag",
]


class DigestMismatchError(ValueError):
    """Content does not have the digest that it should have."""


def digest_of(content: bytes | bytearray | memoryview, algorithm: str = "sha256") -> str:
    """The digest of `content`.

    `algorithm` is one of `grammar.REGISTERED_ALGORITHMS`; any other raises `ValueError`. (OCI
    image-spec 1.1, "Registered Algorithms".)

    >>> digest_of(b"{}")
    'sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a'
    """
    return f"{algorithm}:{hashlib.new(check_algorithm(algorithm), content).hexdigest()}"


def is_registered(digest: str) -> bool:
    """Return whether the digest's algorithm is registered, so that content can be verified by it.

    >>> is_registered(digest_of(b"")), is_registered("blake3:abc")
    (True, False)
    """
    return digest.partition(":")[0] in REGISTERED_ALGORITHMS


def content_digest(value: str | Iterable[str] | None) -> str | None:
    """Return the digest in a ``Docker-Content-Digest`` header; `None` if it has none to verify by.

    (distribution-spec 1.1, "Pulling manifests".) Some registries send bare hexadecimal digits, add
    quotes, or have the header twice; for others the algorithm is unknown. A client then computes
    the digest itself. It must verify the content by a digest that is returned.

    >>> content_digest(digest_of(b"")) == digest_of(b""), content_digest("e3b0c44298fc1c14")
    (True, None)
    """
    lines = field_lines(value)
    if len(lines) != 1 or not DIGEST.fits(lines[0]) or not is_registered(lines[0]):
        return None
    return lines[0]


def check_algorithm(algorithm: str) -> str:
    """Return `algorithm` if it is one of `grammar.REGISTERED_ALGORITHMS`; else raise `ValueError`.

    >>> check_algorithm("sha512")
    'sha512'
    """
    if algorithm not in REGISTERED_ALGORITHMS:
        known = " or ".join(REGISTERED_ALGORITHMS)
        raise ValueError(f"digest algorithm {algorithm!r:.100} must be {known}")
    return algorithm


class Verifier:
    """Verifies the digest of content that comes in blocks.

    `digest` is the one that the content must have. A malformed digest, or one whose algorithm is not
    in `grammar.REGISTERED_ALGORITHMS`, raises `ValueError`. (OCI image-spec 1.1, "Digests".)

    >>> verifier = Verifier(digest_of(b"some content"))
    >>> verifier.update(b"some ")
    >>> verifier.update(b"content")
    >>> verifier.verify()
    >>> verifier.update(b" and more")
    >>> verifier.verify()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    registry_routes.digests.DigestMismatchError: content must have the digest sha256:29..., not sha256:00...
    """  # noqa: E501

    def __init__(self, digest: str) -> None:
        self.digest: str = DIGEST.check(digest)
        """What the content must have."""
        self._algorithm = check_algorithm(digest.partition(":")[0])
        self._hashed = hashlib.new(self._algorithm)

    def update(self, block: bytes | bytearray | memoryview) -> None:
        """Take the next block of the content."""
        self._hashed.update(block)

    def verify(self) -> None:
        """Raise `DigestMismatchError`, which names both digests, if they are different."""
        actual = f"{self._algorithm}:{self._hashed.hexdigest()}"
        if actual != self.digest:
            raise DigestMismatchError(f"content must have the digest {self.digest}, not {actual}")


def referrers_tag(digest: str) -> str:
    """The tag of the index that lists the referrers of `digest`.

    Clients maintain that index if a registry has no referrers endpoint. (distribution-spec, main
    branch, "Referrers Tag Schema": the algorithm is cut to 32 characters, the encoded hash to 64,
    and ``-`` replaces what a tag cannot have.) Raises `ValueError` for a malformed digest.

    >>> referrers_tag(digest_of(b"{}"))
    'sha256-44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a'
    """
    algorithm, _, encoded = DIGEST.check(digest).partition(":")
    return re.sub("[^a-zA-Z0-9._-]", "-", f"{algorithm[:32]}-{encoded[:64]}")
