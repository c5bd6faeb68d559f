"""Digests: made, verified block by block, and made into the tag of a referrers index."""

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from registry_routes.digests import (
    DigestMismatchError,
    Verifier,
    content_digest,
    digest_of,
    referrers_tag,
)
from registry_routes.grammar import DIGEST, REGISTERED_ALGORITHMS, TAG

from .nasty import DIGESTS, SHA256, SHA512

ALGORITHMS = st.sampled_from(sorted(REGISTERED_ALGORITHMS))


@given(st.binary(), ALGORITHMS)
def test_digest_is_the_algorithm_and_the_hash(content: bytes, algorithm: str) -> None:
    digest = digest_of(content, algorithm)
    assert digest == f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    assert DIGEST.fits(digest)
    assert digest_of(memoryview(content), algorithm) == digest
    assert digest_of(content) == digest_of(content, "sha256")


@given(st.lists(st.binary()), ALGORITHMS)
def test_content_is_verified_in_blocks(blocks: list[bytes], algorithm: str) -> None:
    verifier = Verifier(digest_of(b"".join(blocks), algorithm))
    for block in blocks:
        verifier.update(block)
    verifier.verify()


@given(st.binary(), st.binary(), ALGORITHMS)
@example(b"a", b"", "sha256")
def test_other_content_is_refused(content: bytes, other: bytes, algorithm: str) -> None:
    if content == other:
        other += b"!"
    expected, actual = digest_of(content, algorithm), digest_of(other, algorithm)
    verifier = Verifier(expected)
    verifier.update(other)
    with pytest.raises(DigestMismatchError) as error:
        verifier.verify()
    assert isinstance(error.value, ValueError)
    assert str(error.value) == f"content has the digest {actual}, not {expected}"


# hashlib knows many of these, but the algorithm of a digest must be registered.
@pytest.mark.parametrize("algorithm", ["", "md5", "SHA256", "sha256 ", "x" * 100_000])
def test_unregistered_algorithm_is_refused(algorithm: str) -> None:
    with pytest.raises(ValueError, match="must be sha256 or sha512") as error:
        digest_of(b"", algorithm)
    assert len(str(error.value)) < 200
    assert type(error.value) is ValueError


def test_digest_that_cannot_be_verified_is_refused() -> None:
    for digest in set(DIGESTS.all) - {SHA256, SHA512}:
        with pytest.raises(ValueError, match="must") as error:
            Verifier(digest)
        assert type(error.value) is ValueError


@pytest.mark.parametrize("digest", [SHA256, SHA512])
def test_content_digest(digest: str) -> None:
    assert content_digest(digest) == content_digest([digest]) == digest


@pytest.mark.parametrize(
    "value",
    [
        *(None, [], "", SHA256[7:], f'"{SHA256}"', SHA256.upper(), "blake3:abc", "junk"),
        *(f"{SHA256}, {SHA256}", [SHA256, SHA256], [SHA256, SHA512]),
    ],
)
def test_content_digest_that_is_no_digest_is_none(value: str | list[str] | None) -> None:
    assert content_digest(value) is None


# From the main branch of the specification, "Referrers Tag Schema".
EXAMPLES = {
    f"sha256:{'a' * 64}": f"sha256-{'a' * 64}",
    f"sha512:{'a' * 128}": f"sha512-{'a' * 64}",
    "test+algorithm+using+algorithm+separators+and+lots+of+characters+to+excercise+overall+truncation:"
    "alsoSome=InTheEncodedSectionToShowHyphenReplacementAndLotsAndLotsOfCharactersToExcerciseEncodedTruncation":
    "test-algorithm-using-algorithm-s-"
    "alsoSome-InTheEncodedSectionToShowHyphenReplacementAndLotsAndLot",
}  # fmt: skip


def test_referrers_tags_of_the_specification() -> None:
    assert {digest: referrers_tag(digest) for digest in EXAMPLES} == EXAMPLES


@given(st.from_regex(DIGEST.regex, fullmatch=True))
def test_referrers_tag_replaces_only_characters_that_tags_cannot_have(digest: str) -> None:
    tag = referrers_tag(digest)
    assert TAG.fits(tag)
    algorithm, encoded = digest.split(":")
    expected = f"{algorithm[:32]}-{encoded[:64]}"
    assert tag == expected.replace("+", "-").replace("=", "-")


def test_malformed_digest_has_no_referrers_tag() -> None:
    with pytest.raises(ValueError, match=r"^digest "):
        referrers_tag(SHA256[:-1])
