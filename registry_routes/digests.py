"""Digests of content: computing them, verifying them, and the tag schema of referrers."""

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
    """The error for content that does not have the expected digest."""


def digest_of(content: bytes | bytearray | memoryview, algorithm: str = "sha256") -> str:
    """Return the digest of `content`.

    `algorithm` is one of `grammar.REGISTERED_ALGORITHMS`; any other raises `ValueError`. (OCI
    image-spec 1.1, "Registered Algorithms".)

    >>> digest_of(b"{}")
    'sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a'
    """
    return f"{algorithm}:{hashlib.new(check_algorithm(algorithm), content).hexdigest()}"


def is_registered(digest: str) -> bool:
    """Return whether the digest's algorithm is registered, so that it can verify content.

    >>> is_registered(digest_of(b"")), is_registered("blake3:abc")
    (True, False)
    """
    return digest.partition(":")[0] in REGISTERED_ALGORITHMS


def content_digest(value: str | Iterable[str] | None) -> str | None:
    """Return the digest in a ``Docker-Content-Digest`` header; `None` if it cannot verify content.

    (distribution-spec 1.1, "Pulling manifests".) Some registries send bare hexadecimal digits,
    quotes, unknown algorithms, or the header twice. With `None`, a client computes the digest
    itself; otherwise, it must verify the content by the digest.

    >>> content_digest(digest_of(b"")) == digest_of(b""), content_digest("e3b0c44298fc1c14")
    (True, None)
    """
    lines = field_lines(value)
    if len(lines) != 1 or not DIGEST.fits(lines[0]) or not is_registered(lines[0]):
        return None
    return lines[0]


def check_algorithm(algorithm: str) -> str:
    """Return `algorithm`, or raise `ValueError` if `grammar.REGISTERED_ALGORITHMS` lacks it.

    >>> check_algorithm("sha512")
    'sha512'
    """
    if algorithm not in REGISTERED_ALGORITHMS:
        known = " or ".join(REGISTERED_ALGORITHMS)
        raise ValueError(f"digest algorithm {algorithm!r:.100} must be {known}")
    return algorithm


class Verifier:
    """A verifier of the digest of content that comes in blocks.

    (OCI image-spec 1.1, "Digests".)

    - `digest`: the digest that the content must have. A malformed digest, or an algorithm that is
      not in `grammar.REGISTERED_ALGORITHMS`, raises `ValueError`.

    >>> verifier = Verifier(digest_of(b"some content"))
    >>> verifier.update(b"some ")
    >>> verifier.update(b"content")
    >>> verifier.verify()
    >>> verifier.update(b" and more")
    >>> verifier.verify()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    registry_routes.digests.DigestMismatchError: content has the digest sha256:00..., not sha256:29...
    """  # noqa: E501

    def __init__(self, digest: str) -> None:
        self.digest: str = DIGEST.check(digest)
        self._algorithm = check_algorithm(digest.partition(":")[0])
        self._hashed = hashlib.new(self._algorithm)

    def update(self, block: bytes | bytearray | memoryview) -> None:
        """Add the next block of the content."""
        self._hashed.update(block)

    def verify(self) -> None:
        """Raise `DigestMismatchError`, which names both digests, if the content has another."""
        actual = f"{self._algorithm}:{self._hashed.hexdigest()}"
        if actual != self.digest:
            raise DigestMismatchError(f"content has the digest {actual}, not {self.digest}")


def referrers_tag(digest: str) -> str:
    """Return the tag of the index that lists the referrers of `digest`.

    Clients maintain that index if a registry has no referrers endpoint. (distribution-spec, main
    branch, "Referrers Tag Schema": the algorithm is cut to 32 characters, the encoded hash to 64,
    and ``-`` replaces characters that tags cannot have.) Raises `ValueError` for a malformed
    digest.

    >>> referrers_tag(digest_of(b"{}"))
    'sha256-44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a'
    """
    algorithm, _, encoded = DIGEST.check(digest).partition(":")
    return re.sub("[^a-zA-Z0-9._-]", "-", f"{algorithm[:32]}-{encoded[:64]}")
