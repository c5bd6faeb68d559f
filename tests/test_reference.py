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
from hypothesis import assume, given
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
    return {
        "domain": reference.domain,
        "path": reference.name,
        "tag": reference.tag or "",
        "digest": reference.digest or "",
        "full": str(reference),
        "familiar": reference.familiar(),
    }


def test_every_record_agrees() -> None:
    wanted = [
        {key: value for key, value in record.items() if key not in ("in", "why")}
        for record in RECORDS
    ]
    assert [outcome(record["in"]) for record in RECORDS] == wanted
    assert len(RECORDS) == 5018
    assert wanted.count({"error": True}) == 2907


HEX = "0123456789abcdef" * 4
DOMAINS = [
    *("docker.io", "index.docker.io", "registry-1.docker.io", "docker.io:443", "DOCKER.io", "a:5"),
    *("localhost", "localhost:5000", "Foo", "a-b.c", "127.0.0.1", "[::1]", "[2001:db8::1]:80"),
    *("xn--n3h.com", "a_b.com", "a__b.c-d"),
]
BAD_DOMAINS = [
    "",
    "foo",
    "a_B.com",
    "a_b.com:80",
    "a.com:",
    "a.com:x",
    "a.",
    "[::1",
    "☃.com",
    "a/b.c",
]
COMPONENTS = ["a", "library", "localhost", "nginx", "a.b", "a__b", "a--b", "1.2", HEX]
BAD_COMPONENTS = ["", "A", "a..b", "a___b", "-a", "a.", "é", "a b", "a%2Fb", "a@b", "a:b", "a\n"]
TAGS = ["latest", "1.27", "_x", "5000", "A", "a" * 128]
BAD_TAGS = ["", ".x", "a b", "a" * 129, "a:b", "a/b", "a@b", "é", "latest\n"]
DIGESTS = [SHA256, SHA512]
BAD_DIGESTS = [
    *("", "sha256", "sha256:abc", SHA256.upper(), f"{SHA256}0", f"{SHA256}\n", f"md5:{HEX[:32]}"),
    *("sha384:" + "a" * 96, f"{SHA256}@{SHA256}", f"sha256+b64:{HEX}"),
]


def names(components: list[str]) -> st.SearchStrategy[str]:
    return st.lists(
        st.sampled_from(components) | st.text(alphabet="ab0", min_size=1, max_size=3),
        min_size=1,
        max_size=3,
    ).map("/".join)


def written(domain: str | None, name: str, tag: str | None, digest: str | None) -> str:
    domain = f"{domain}/" if domain else ""
    tag = "" if tag is None else f":{tag}"
    digest = "" if digest is None else f"@{digest}"
    return f"{domain}{name}{tag}{digest}"


well_formed = st.builds(
    written,
    st.none() | st.sampled_from(DOMAINS),
    names(COMPONENTS),
    st.none() | st.sampled_from(TAGS),
    st.none() | st.sampled_from(DIGESTS),
).filter(lambda text: text != HEX)
parts = st.tuples(
    st.sampled_from(DOMAINS + BAD_DOMAINS) | st.text(alphabet="aZ0.-:[]_", max_size=6),
    names(COMPONENTS * 4 + BAD_COMPONENTS),
    st.none() | st.sampled_from(TAGS * 2 + BAD_TAGS),
    st.none() | st.sampled_from(DIGESTS * 5 + BAD_DIGESTS),
)
texts = (
    st.text(max_size=12)
    | st.text(alphabet="aA0.-_/:@[]\n", max_size=12)
    | parts.map(lambda given_parts: written(*given_parts))
    | well_formed
)


def familiar_is_ambiguous(reference: Reference) -> bool:
    """Whether the short form means something else, in distribution/reference too."""
    if reference.domain != "docker.io":
        return False
    namespace = reference.name.partition("/")[0]
    nameless = reference.tag is None and reference.digest is None
    is_id = nameless and re.fullmatch("library/[a-f0-9]{64}", reference.name) is not None
    return namespace == "localhost" or "." in namespace or is_id


@given(well_formed)
def test_well_formed_reference_is_parsed(text: str) -> None:
    given = text.removeprefix("index.docker.io/").removeprefix("docker.io/")
    assert str(Reference.parse(text)).endswith(given)


@given(texts)
def test_full_form_is_the_same_reference(text: str) -> None:
    reference = parsed(text)
    assume(reference is not None)
    assert reference is not None
    assert Reference.parse(str(reference)) == reference
    again = parsed(reference.familiar())
    assert (again == reference) is not familiar_is_ambiguous(reference)


@pytest.mark.parametrize(
    ("text", "familiar", "again"),
    [
        ("docker.io/a.b/app", "a.b/app", "a.b/app"),
        ("docker.io/localhost/app", "localhost/app", "localhost/app"),
        (f"docker.io/library/{HEX}", HEX, None),
        (f"docker.io/{HEX}:v1", f"{HEX}:v1", f"docker.io/library/{HEX}:v1"),
    ],
)
def test_familiar_form_is_ambiguous_for_some(text: str, familiar: str, again: str | None) -> None:
    assert Reference.parse(text).familiar() == familiar
    reference = parsed(familiar)
    assert (reference and str(reference)) == again


@given(texts)
def test_error_names_a_part_and_a_rule(text: str) -> None:
    try:
        Reference.parse(text)
    except ValueError as error:
        assert re.match("(domain|repository name|tag|digest|reference) ['\"].* must ", str(error))
        assert len(str(error)) < 400


@given(parts)
def test_construction_agrees_with_parsing(
    given_parts: tuple[str, str, str | None, str | None],
) -> None:
    reference = parsed(written(*given_parts))
    if reference is not None and dataclasses.astuple(reference) == given_parts:
        assert Reference(*given_parts) == reference
    else:
        with pytest.raises(ValueError, match=" must "):
            Reference(*given_parts)


@given(well_formed)
def test_parts_make_the_same_reference(text: str) -> None:
    reference = Reference.parse(text)
    assert Reference(*dataclasses.astuple(reference)) == reference
    assert dataclasses.replace(reference) == reference


LONG = "a" * 248


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "repository name '' must not be empty"),
        ("docker.io/", "repository name '' must not be empty"),
        (":v1", "repository name '' must not be empty"),
        ("/nginx", "repository name '/nginx' must not have an empty component"),
        ("nginx/", "repository name 'nginx/' must not have an empty component"),
        ("library/Foo", "repository name 'library/Foo' must be lowercase"),
        ("Foo", "repository name 'library/Foo' must be lowercase"),
        ("localhost/Foo", "repository name 'Foo' must be lowercase"),
        ("a.b/jre%2Fv17", "repository name 'jre%2Fv17' must contain only "),
        (" nginx", "repository name 'library/ nginx' must contain only "),
        ("nginx\n", r"repository name 'library/nginx\n' must contain only "),
        (
            LONG,
            f"repository name 'library/{'a' * 141}…{'a' * 19}' must have at most 255 characters",
        ),
        ("nginx:", "tag '' must not be empty"),
        ("nginx:.x", "tag '.x' must start with a letter, a digit or '_'"),
        ("a.b:80/nginx:a:b", "tag 'a:b' must contain only "),
        ("nginx@", "digest '' must not be empty"),
        ("nginx@latest", "digest 'latest' must have an algorithm, ':' and an encoded hash"),
        ("nginx@sha256:abc", "digest 'sha256:abc' must have 64 lowercase hexadecimal digits "),
        ("nginx@md5:abc", "digest algorithm 'md5' must be sha256 or sha512"),
        *(
            (f"{scheme}://{rest}", f"domain '{scheme}:' must not be the scheme of a URL")
            for scheme in ("https", "docker", "oci", "containers-storage")
            for rest in ("a.b/nginx", "nginx:v1", "")
        ),
        ("☃.com/nginx", "domain '☃.com' must contain only "),
        ("a_b.com/Nginx", "domain 'a_b.com' must contain only "),
        ("a.b:http/nginx", "domain 'a.b:http' must have only a port's digits after its ':'"),
        ("::1/nginx", "domain '::1' must have an IPv6 address between '[' and ']', "),
        ("[fe80::1%25eth0]/a", "domain '[fe80::1%25eth0]' must have an IPv6 address between "),
        ("a./nginx", "domain 'a.' must have only components that start and end with a letter "),
        (HEX, f"reference '{HEX}' must not be 64 hexadecimal digits, an image ID"),
    ],
)
def test_error_for_each_malformed_part(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Reference.parse(text)


@pytest.mark.parametrize("text", [None, b"nginx", ["nginx"], Reference("a.b", "c")])
def test_text_that_is_not_a_string_is_refused(text: Any) -> None:
    with pytest.raises(
        ValueError, match=f"^reference .* must be a string, not {type(text).__name__}"
    ):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("part", "value"),
    [("domain", None), ("domain", b""), ("name", None), ("tag", 1.27), ("digest", b"")],
)
def test_part_that_is_not_a_string_is_refused(part: str, value: Any) -> None:
    kind = "repository name" if part == "name" else part
    message = f"^{kind} {value} must be a string, not {type(value).__name__}"
    with pytest.raises(ValueError, match=message):
        Reference(**{"domain": "a.b", "name": "c", part: value})


@pytest.mark.parametrize(
    ("domain", "name", "message"),
    [
        ("docker.io", "nginx", "'docker.io' and the repository name 'library/nginx'"),
        ("index.docker.io", "a/b", "'docker.io' and the repository name 'a/b'"),
        ("foo", "bar", "'docker.io' and the repository name 'foo/bar'"),
        ("", "nginx", "'docker.io' and the repository name 'library/nginx'"),
        ("", "a.b/nginx", "'a.b' and the repository name 'nginx'"),
    ],
)
def test_parts_that_parse_to_others_are_refused(domain: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match="must have the domain") as error:
        Reference(domain, name)
    assert str(error.value).endswith(f"must have the domain {message}, not {domain!r} and {name!r}")


def test_name_of_256_characters_is_refused() -> None:
    domain = "a" * 300 + ".b"
    for name in "a" * 255, "a/" * 127 + "a":
        assert Reference.parse(f"{domain}/{name}:v1").name == name
        with pytest.raises(ValueError, match="must have at most 255 characters"):
            Reference.parse(f"{domain}/{name}a:v1")
    assert len(Reference.parse("a" * 247).name) == 255


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("nginx", "latest"),
        ("nginx:1.27", "1.27"),
        (f"nginx@{SHA256}", SHA256),
        (f"nginx:1.27@{SHA512}", SHA512),
    ],
)
def test_reference_is_digest_tag_or_latest(text: str, reference: str) -> None:
    assert Reference.parse(text).reference() == reference


@pytest.mark.parametrize(
    ("domain", "host"),
    [
        ("docker.io", "registry-1.docker.io"),
        ("index.docker.io", "registry-1.docker.io"),
        ("docker.io:443", "docker.io:443"),
        ("registry-1.docker.io", "registry-1.docker.io"),
        ("localhost:5000", "localhost:5000"),
        ("EXAMPLE.com", "EXAMPLE.com"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
    ],
)
def test_root(domain: str, host: str) -> None:
    reference = Reference.parse(f"{domain}/a/b")
    assert reference.root() == f"https://{host}"
    assert reference.root("http") == f"http://{host}"


@pytest.mark.parametrize("scheme", ["", "HTTP", "ftp", "https://", "http\n", None, ["http"]])
def test_root_of_another_scheme_is_refused(scheme: Any) -> None:
    with pytest.raises(ValueError, match=f"^scheme {re.escape(repr(scheme))} must be 'http' or "):
        Reference.parse("nginx").root(scheme)


def test_root_without_a_domain_is_refused() -> None:
    reference = Reference.parse("a_b.com/app:v1")
    assert reference == Reference("", "a_b.com/app", "v1")
    with pytest.raises(ValueError, match=r"^domain 'a_b\.com' must contain only "):
        reference.root()


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
        ("foo", "reference 'foo/nginx' must have the domain 'docker.io' and "),
    ],
)
def test_malformed_default_domain_is_named(default: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Reference.parse("nginx", default_domain=default)


def test_scope() -> None:
    reference = Reference.parse("ghcr.io/org/app:v1")
    assert reference.scope("pull") == Scope("repository", "org/app", ("pull",))
    assert str(reference.scope("pull", "push")) == "repository:org/app:pull,push"


def test_references_are_values() -> None:
    one = Reference.parse(f"nginx:1.27@{SHA256}")
    other = Reference("docker.io", "library/nginx", "1.27", SHA256)
    assert {one: 1}[other] == 1
    assert one != dataclasses.replace(one, tag=None)
    assert dataclasses.replace(one, tag="1.28", digest=None).familiar() == "nginx:1.28"
    with pytest.raises(ValueError, match="tag 'a b' must contain only "):
        dataclasses.replace(one, tag="a b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.tag = "1.28"  # type: ignore[misc]
    assert not hasattr(one, "__dict__")
    assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one


def test_parts_become_plain_strings() -> None:
    class Image(str, enum.Enum):  # noqa: UP042 - unlike a StrEnum, it prints as "Image.NGINX"
        NGINX = "nginx"
        NAME = "library/nginx"
        TAG = "1.27"

    assert str(Reference.parse(Image.NGINX)) == "docker.io/library/nginx"
    reference = Reference("docker.io", Image.NAME, Image.TAG)
    assert str(reference) == "docker.io/library/nginx:1.27"
    assert {type(part) for part in dataclasses.astuple(reference)} == {str, type(None)}
