"""Image references: `Reference` against the recorded answers of distribution/reference."""

import copy
import dataclasses
import enum
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_routes.reference import Reference
from registry_routes.scopes import Scope

from .nasty import SHA256, SHA512

VECTORS = Path(__file__).parent / "vectors" / "references.jsonl"
RECORDS: list[dict[str, Any]] = [
    json.loads(line) for line in VECTORS.read_text(encoding="utf-8").splitlines()
]


def parsed(text: str) -> Reference | None:
    try:
        return Reference.parse(text)
    except ValueError:
        return None


def outcome(text: str) -> dict[str, Any]:
    """What `text` parses to, in the form of the records."""
    reference = parsed(text)
    if reference is None:
        return {"error": True}
    domain, path, tag, digest = dataclasses.astuple(reference)
    forms = {"full": str(reference), "familiar": reference.familiar()}
    return {"domain": domain, "path": path, "tag": tag or "", "digest": digest or "", **forms}


def test_every_record_agrees() -> None:
    for record in RECORDS:
        wanted = {key: value for key, value in record.items() if key not in ("in", "why")}
        assert outcome(record["in"]) == wanted
    assert (len(RECORDS), sum("error" in record for record in RECORDS)) == (5018, 2907)


HEX = "0123456789abcdef" * 4
DOMAINS = [
    *("docker.io", "index.docker.io", "registry-1.docker.io", "docker.io:443", "DOCKER.io", "a:5"),
    *("localhost", "localhost:5000", "Foo", "a-b.c", "127.0.0.1", "[::1]", "[2001:db8::1]:80"),
    *("xn--n3h.com", "a_b.com", "a__b.c-d"),
]
BAD_DOMAINS = [
    *("", "foo", "a_B.com", "a_b.com:80", "a.com:", "a.com:x", "a.", "[::1", "☃.com", "a/b.c")
]
COMPONENTS = ["a", "library", "localhost", "nginx", "a.b", "a__b", "a--b", "1.2", HEX]
BAD_COMPONENTS = ["", "A", "a..b", "a___b", "-a", "a.", "é", "a b", "a%2Fb", "a@b", "a:b", "a\n"]
TAGS = ["latest", "1.27", "_x", "5000", "A", "a" * 128]
BAD_TAGS = ["", ".x", "a b", "a" * 129, "a:b", "a/b", "a@b", "é", "latest\n"]
DIGESTS = [SHA256, SHA512]
BAD_DIGESTS = ["", "sha256", f"{SHA256}0", f"md5:{HEX[:32]}", f"{SHA256}@{SHA256}"]


def write_reference(domain: str, name: str, tag: str | None, digest: str | None) -> str:
    tag = "" if tag is None else f":{tag}"
    digest = "" if digest is None else f"@{digest}"
    return f"{domain}/{name}{tag}{digest}"


parts = st.tuples(
    st.sampled_from(DOMAINS + BAD_DOMAINS) | st.text(alphabet="aZ0.-:[]_", max_size=6),
    st.lists(st.sampled_from(COMPONENTS * 4 + BAD_COMPONENTS), min_size=1, max_size=3).map(
        "/".join
    ),
    st.none() | st.sampled_from(TAGS * 2 + BAD_TAGS),
    st.none() | st.sampled_from(DIGESTS * 5 + BAD_DIGESTS),
)
texts = (
    st.text(max_size=12)
    | st.text(alphabet="aA0.-_/:@[]\n", max_size=12)
    | parts.map(lambda given_parts: write_reference(*given_parts))
)


@given(texts)
def test_text_is_a_reference_or_an_error_that_names_a_part_and_a_rule(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except ValueError as error:
        assert re.match(
            "(domain|repository name|tag|digest( algorithm)?|reference) ['\"].* must ", str(error)
        )
        assert len(str(error)) < 400
    else:
        assert Reference.parse(str(reference)) == reference
        assert Reference(*dataclasses.astuple(reference)) == reference


@given(parts)
def test_construction_agrees_with_parsing(
    given_parts: tuple[str, str, str | None, str | None],
) -> None:
    reference = parsed(write_reference(*given_parts))
    if reference is not None and dataclasses.astuple(reference) == given_parts:
        assert Reference(*given_parts) == reference
    else:
        with pytest.raises(ValueError, match=r" must | means the domain "):
            Reference(*given_parts)


LONG = "a" * 248


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("docker.io/", "repository name '' must not be empty"),
        ("/nginx", "repository name '/nginx' must not have an empty component"),
        ("Foo", "repository name 'library/Foo' must be lowercase"),
        ("nginx\n", r"repository name 'library/nginx\n' must contain only "),
        (LONG, f"repository name 'library/{LONG[:141]}…{LONG[:19]}' must have at most 255 char"),
        ("nginx:", "tag '' must not be empty"),
        ("a.b:80/nginx:a:b", "tag 'a:b' must contain only "),
        ("nginx@", "digest '' must not be empty"),
        ("nginx@latest", "digest 'latest' must have an algorithm, ':' and an encoded hash"),
        ("nginx@md5:abc", "digest algorithm 'md5' must be sha256 or sha512"),
        ("https://a.b/nginx", "domain 'https:' must not be the scheme of a URL"),
        ("a_b.com/Nginx", "domain 'a_b.com' must contain only "),
        ("::1/nginx", "domain '::1' must have an IPv6 address between '[' and ']', "),
        (HEX, f"reference '{HEX}' is 64 hexadecimal digits, which mean an image ID"),
    ],
)
def test_error_for_each_malformed_part(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Reference.parse(text)


@pytest.mark.parametrize("value", [1.27, b"nginx", Reference("a.b", "c")])
def test_text_or_part_that_is_not_a_string_is_refused(value: Any) -> None:
    message = f"{re.escape(repr(value))} must be a string, not {type(value).__name__}"
    with pytest.raises(ValueError, match=f"^reference {message}"):
        Reference.parse(value)
    for part in "domain", "name", "tag", "digest":
        kind = "repository name" if part == "name" else part
        with pytest.raises(ValueError, match=f"^{kind} {message}"):
            Reference(**{"domain": "a.b", "name": "c", part: value})
    with pytest.raises(ValueError, match=r"^domain None must be a string"):
        Reference(None, "c")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("domain", "name", "message"),
    [
        ("index.docker.io", "a/b", "'docker.io' and the repository name 'a/b'"),
        ("foo", "bar", "'docker.io' and the repository name 'foo/bar'"),
        ("", "a.b/nginx", "'a.b' and the repository name 'nginx'"),
    ],
)
def test_parts_that_parse_to_others_are_refused(domain: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match="means the domain") as error:
        Reference(domain, name)
    assert str(error.value).endswith(f"means the domain {message}, not {domain!r} and {name!r}")


def test_name_of_256_characters_is_refused() -> None:
    for name in "a" * 255, "a/" * 127 + "a":
        assert Reference.parse(f"{'a' * 300}.b/{name}:v1").name == name
        with pytest.raises(ValueError, match="must have at most 255 characters"):
            Reference.parse(f"{'a' * 300}.b/{name}a:v1")
    assert len(Reference.parse("a" * 247).name) == 255


def test_reference_and_scope() -> None:
    for text, reference in {"a": "latest", "a:1": "1", f"a:1@{SHA512}": SHA512}.items():
        assert Reference.parse(text).reference() == reference
    scope = Reference.parse("ghcr.io/org/app:v1").scope("pull", "push")
    assert scope == Scope("repository", "org/app", ("pull", "push"))


def test_root() -> None:
    assert Reference.parse("index.docker.io/a/b").root() == "https://registry-1.docker.io"
    assert Reference.parse("docker.io:443/a/b").root("http") == "http://docker.io:443"


def test_root_of_another_scheme_or_without_a_domain_is_refused() -> None:
    reference = Reference.parse("a_b.com/app:v1")
    assert reference == Reference("", "a_b.com/app", "v1")
    with pytest.raises(ValueError, match=r"^domain 'a_b\.com' must contain only "):
        reference.root()
    for scheme in "", "HTTP", "http\n", None:
        with pytest.raises(ValueError, match=r"^scheme .* must be 'http' or "):
            reference.root(scheme)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "default", "whole"),
    [
        ("nginx", "quay.io", "quay.io/nginx"),
        ("nginx:v1", "localhost:5000", "localhost:5000/nginx:v1"),
        ("org/app", "ghcr.io", "ghcr.io/org/app"),
        ("a.b/app", "quay.io", "a.b/app"),
        ("docker.io/nginx", "quay.io", "docker.io/library/nginx"),
        ("nginx", "index.docker.io", "docker.io/library/nginx"),
    ],
)
def test_default_domain(text: str, default: str, whole: str) -> None:
    assert str(Reference.parse(text, default_domain=default)) == whole


@pytest.mark.parametrize(
    ("default", "message"),
    [
        ("https://quay.io", "domain 'https://quay.io' must "),
        ("", "domain '' must not be empty"),
        ("foo", "reference 'foo/nginx' means the domain 'docker.io' and "),
    ],
)
def test_malformed_default_domain_is_named(default: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Reference.parse("nginx", default_domain=default)


def test_references_are_values() -> None:
    reference = Reference.parse(f"nginx:1.27@{SHA256}")
    assert {reference: 1}[Reference("docker.io", "library/nginx", "1.27", SHA256)] == 1
    assert dataclasses.replace(reference, tag="1.28", digest=None).familiar() == "nginx:1.28"
    with pytest.raises(dataclasses.FrozenInstanceError):
        reference.tag = "1.28"  # type: ignore[misc]
    assert not hasattr(reference, "__dict__")
    assert copy.deepcopy(reference) == pickle.loads(pickle.dumps(reference)) == reference


def test_parts_become_plain_strings() -> None:
    class Image(str, enum.Enum):  # noqa: UP042 - unlike a StrEnum, it prints as "Image.NGINX"
        NAME = "library/nginx"
        TAG = "1.27"

    assert str(Reference.parse(Image.NAME)) == "docker.io/library/nginx"
    reference = Reference("docker.io", Image.NAME, Image.TAG)
    assert str(reference) == "docker.io/library/nginx:1.27"
    assert {type(part) for part in dataclasses.astuple(reference)} == {str, type(None)}
