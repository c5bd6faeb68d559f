"""Each grammar against its specification, and its messages for malformed values."""

import os.path
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_routes import grammar
from registry_routes.grammar import Grammar

from . import nasty, reference

ALL = [value for value in vars(grammar).values() if isinstance(value, Grammar)]

# The patterns of Docker 1.5.0 (registry/v2/regexp.go, digest/digest.go), without Go's \w.
DOCKER_COMPONENT = "[a-z0-9]+(?:[._-][a-z0-9]+)*"
DOCKER = {
    grammar.DOCKER_NAME: f"(?:{DOCKER_COMPONENT}/){{1,4}}{DOCKER_COMPONENT}",
    grammar.DOCKER_DIGEST: "[a-zA-Z0-9-_+.]+:[a-zA-Z0-9-_+.=]+",
    grammar.DOCKER_UPLOAD_ID: "(?!\\.\\Z|\\.\\.\\Z)[^/]+",
}
# The grammar of distribution/reference (reference.go): "domain".
DOMAIN_COMPONENT = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
DOMAIN = rf"(?:{DOMAIN_COMPONENT}(?:\.{DOMAIN_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
OCI = {
    grammar.NAME: "name",
    grammar.TAG: "tag",
    grammar.DIGEST: "digest",
    grammar.ALGORITHM: "algorithm",
    grammar.UPLOAD_ID: "uuid",
    grammar.EXTENSION: "extension",
}

values = (
    st.text(max_size=20)
    | st.text(alphabet="aA0._-/:+=\n\x00é٣", max_size=20)
    | st.text(alphabet="a._-/", max_size=12)
    | st.text(alphabet="aF0.-:[]", max_size=12)
    | st.lists(
        st.sampled_from(
            [
                *nasty.COMPONENTS.all,
                *nasty.TAGS.all,
                *nasty.DIGESTS.all,
                *nasty.UPLOAD_IDS.all,
            ]
        ),
        max_size=6,
    ).map("/".join)
    | st.integers(60, 68).map(lambda n: "sha256:" + "a" * n)
    | st.integers(124, 132).map(lambda n: "a" * n)
    | st.integers(124, 132).map(lambda n: "sha512:" + "0" * n)
)


def specified(kind: Grammar, value: str) -> bool:
    if kind in OCI:
        return reference.is_valid(OCI[kind], value)
    return re.fullmatch({**DOCKER, grammar.DOMAIN: DOMAIN}[kind], value) is not None


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: f"{kind.kind} of {kind.source[:6]}")
@given(value=values)
def test_a_grammar_fits_exactly_the_values_of_its_specification(kind: Grammar, value: str) -> None:
    assert kind.fits(value) == specified(kind, value)
    if kind.fits(value):
        assert kind.check(value) == value
        assert kind.broken_rule(value) is None
    else:
        rule = kind.broken_rule(value)
        assert rule
        assert rule.startswith("must ")
        with pytest.raises(ValueError, match=re.escape(rule)):
            kind.check(value)


@given(value=values)
def test_an_oci_value_never_leaves_a_directory(value: str) -> None:
    for kind in OCI:
        if kind.fits(value):
            assert os.path.normpath(os.path.join("/data", value)) == f"/data/{value}"
            assert not {"", ".", ".."} & set(value.split("/"))
            assert value.isascii()
            assert value.isprintable()
            assert "\\" not in value


# Every rule of every grammar, with a value that breaks this rule and none before it.
BROKEN = [
    (grammar.NAME, "", "must not be empty"),
    (grammar.NAME, "a//b", "must not have an empty component"),
    (grammar.NAME, "/a", "must not have an empty component"),
    (grammar.NAME, "a/", "must not have an empty component"),
    (grammar.NAME, "Library/nginx", "must be lowercase"),
    (grammar.NAME, "library/été", "must contain only a-z, 0-9, '.', '_', '-' and '/'"),
    (grammar.NAME, "a\n", "must contain only a-z, 0-9, '.', '_', '-' and '/'"),
    (grammar.NAME, "jre%2Fv17", "must contain only a-z, 0-9, '.', '_', '-' and '/'"),
    (grammar.NAME, "A b", "must contain only a-z, 0-9, '.', '_', '-' and '/'"),
    (grammar.NAME, "..", "must have only components that start and end with a letter or a digit"),
    (grammar.NAME, "a/-b", "must have only components that start and end with a letter or a digit"),
    (grammar.NAME, "a_/b", "must have only components that start and end with a letter or a digit"),
    (
        grammar.NAME,
        "a..b",
        "must separate alphanumerics by one '.', one or two '_', or any number of '-'",
    ),
    (grammar.TAG, "", "must not be empty"),
    (grammar.TAG, ".x", "must start with a letter, a digit or '_'"),
    (grammar.TAG, "a b", "must contain only a-z, A-Z, 0-9, '.', '_' and '-'"),
    (grammar.TAG, "x" * 129, "must have at most 128 characters"),
    (grammar.ALGORITHM, "SHA", "must be a-z and 0-9, separated by one '+', '.', '_' or '-'"),
    (grammar.DIGEST, "", "must not be empty"),
    (grammar.DIGEST, "latest", "must have an algorithm, ':' and an encoded hash"),
    (
        grammar.DIGEST,
        "sha256:abc",
        "must have 64 lowercase hexadecimal digits after 'sha256:'",
    ),
    (
        grammar.DIGEST,
        f"sha512:{'A' * 128}",
        "must have 128 lowercase hexadecimal digits after 'sha512:'",
    ),
    (
        grammar.DIGEST,
        "SHA256:abc",
        "must have an algorithm of a-z and 0-9, separated by one '+', '.', '_' or '-'",
    ),
    (
        grammar.DIGEST,
        "md5:a.b",
        "must have only a-z, A-Z, 0-9, '=', '_' and '-' after its first ':', and at least one",
    ),
    (grammar.DOMAIN, "", "must not be empty"),
    *(
        (
            grammar.DOMAIN,
            domain,
            "must have an IPv6 address between '[' and ']', of 0-9, a-f, A-F and ':'",
        )
        for domain in ("[::1", "[]", "[::1]a", "[fe80::1%25eth0]:80", "::1", "[::g]", "a[::1]")
    ),
    (grammar.DOMAIN, "https:", "must not be the scheme of a URL"),
    (grammar.DOMAIN, "a.com:", "must have only a port's digits after its ':'"),
    (grammar.DOMAIN, "a.com:80a", "must have only a port's digits after its ':'"),
    (grammar.DOMAIN, "[::1]:80:1", "must have only a port's digits after its ':'"),
    *(
        (
            grammar.DOMAIN,
            domain,
            "must contain only a-z, A-Z, 0-9, '.' and '-' before its port",
        )
        for domain in ("☃.com", "a_b.com:80", "a[b", "a.com\n")
    ),
    *(
        (
            grammar.DOMAIN,
            domain,
            "must have only components that start and end with a letter or a digit",
        )
        for domain in ("a-.b", "-a", "a..b", ".a:80", "a.")
    ),
    (grammar.UPLOAD_ID, "", "must not be empty"),
    (grammar.UPLOAD_ID, "..", "must not start with '.'"),
    (
        grammar.UPLOAD_ID,
        "a/b",
        "must contain only a-z, A-Z, 0-9, '.', '_', '=' and '-'",
    ),
    (grammar.EXTENSION, "", "must not be empty"),
    (grammar.EXTENSION, "OCI", "must be lowercase"),
    (grammar.EXTENSION, "a+b", "must contain only a-z, 0-9, '.', '_' and '-'"),
    (grammar.EXTENSION, "a%2Fb", "must contain only a-z, 0-9, '.', '_' and '-'"),
    (grammar.EXTENSION, "a--b", "must be a-z and 0-9, separated by one '.', '_' or '-'"),
    (grammar.DOCKER_NAME, "", "must not be empty"),
    (grammar.DOCKER_NAME, "a//b", "must not have an empty component"),
    (grammar.DOCKER_NAME, "A/b", "must be lowercase"),
    (grammar.DOCKER_NAME, "a b", "must contain only a-z, 0-9, '.', '_', '-' and '/'"),
    (grammar.DOCKER_NAME, "a%2Fb", "must contain only a-z, 0-9, '.', '_', '-' and '/'"),
    (
        grammar.DOCKER_NAME,
        "-a/b",
        "must have only components that start and end with a letter or a digit",
    ),
    (grammar.DOCKER_NAME, "a__b/c", "must separate alphanumerics by one '.', '_' or '-'"),
    (grammar.DOCKER_NAME, "nginx", "must have two to five components"),
    (grammar.DOCKER_NAME, "a/b/c/d/e/f", "must have two to five components"),
    (grammar.DOCKER_DIGEST, "", "must not be empty"),
    (grammar.DOCKER_DIGEST, "abc", "must have an algorithm, ':' and a hash"),
    (
        grammar.DOCKER_DIGEST,
        "a:b:c",
        "must have one ':', with one or more of a-z, A-Z, 0-9, '-', '_', '+' and '.' before it,"
        " and of these and '=' after it",
    ),
    (grammar.DOCKER_UPLOAD_ID, "", "must not be empty"),
    (grammar.DOCKER_UPLOAD_ID, "a/b", "must have no '/'"),
    (grammar.DOCKER_UPLOAD_ID, "..", "must not be '.' or '..'"),
]


@pytest.mark.parametrize(("kind", "value", "rule"), BROKEN)
def test_a_malformed_value_gets_the_rule_that_it_broke(
    kind: Grammar, value: str, rule: str
) -> None:
    assert kind.broken_rule(value) == rule


@given(value=values)
def test_the_lowercase_rule_is_given_only_if_all_characters_are_allowed(value: str) -> None:
    for kind in ALL:
        if kind.broken_rule(value) == "must be lowercase":
            assert "contain only" not in (kind.broken_rule(value.lower()) or "")


def test_every_rule_has_an_example() -> None:
    told = {(kind, rule) for kind, _, rule in BROKEN}
    assert told == {(kind, rule) for kind in ALL for _, rule in kind.rules}


@pytest.mark.parametrize("value", [3, 3.1, b"latest", None, ["latest"]])
def test_a_value_that_is_not_a_string_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=f"must be a string, not {type(value).__name__}"):
        grammar.TAG.check(value)


def test_check_returns_a_plain_string() -> None:
    class Loud(str):
        def __str__(self) -> str:
            return self.upper()

    checked = grammar.TAG.check(Loud("v1"))
    assert (type(checked), checked) == (str, "v1")


def test_a_message_shortens_a_huge_value() -> None:
    with pytest.raises(ValueError, match="must be lowercase") as error:
        grammar.NAME.check("A" * 1_000_000)
    assert len(str(error.value)) < 300


WELL_FORMED = ["library/nginx", "sha256", nasty.SHA256, "x"]


def test_a_pattern_works_inside_a_larger_one() -> None:
    for kind in ALL:
        assert re.compile(kind.pattern).groups == 0
        value = next(value for value in WELL_FORMED if kind.fits(value))
        assert re.fullmatch(f"/{kind.pattern}/", f"/{value}/")
        for other in value, f"/{value}", f"{value}/", "//":
            assert re.fullmatch(f"/{kind.pattern}/", other) is None
