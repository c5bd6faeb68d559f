"""Each grammar against its specification, and its messages for malformed values."""

import os.path
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_routes import grammar
from registry_routes.grammar import Grammar

from . import nasty, oracle

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

LISTED = nasty.COMPONENTS.all + nasty.TAGS.all + nasty.DIGESTS.all + nasty.UPLOAD_IDS.all
values = (
    st.text(max_size=20)
    | st.text(alphabet="aA0._-/:+=\n\x00é٣", max_size=20)
    | st.text(alphabet="a._-/", max_size=12)
    | st.text(alphabet="aF0.-:[]", max_size=12)
    | st.lists(st.sampled_from(LISTED), max_size=6).map("/".join)
    | st.integers(60, 68).map(lambda n: "sha256:" + "a" * n)
    | st.integers(124, 132).map(lambda n: "a" * n)
    | st.integers(124, 132).map(lambda n: "sha512:" + "0" * n)
)


def is_specified(kind: Grammar, value: str) -> bool:
    if kind in OCI:
        return oracle.is_valid(OCI[kind], value)
    return re.fullmatch({**DOCKER, grammar.DOMAIN: DOMAIN}[kind], value) is not None


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: f"{kind.kind} of {kind.source[:6]}")
@given(value=values)
def test_grammar_fits_exactly_the_values_of_its_specification(kind: Grammar, value: str) -> None:
    assert kind.fits(value) == is_specified(kind, value)
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
def test_oci_value_never_leaves_a_directory(value: str) -> None:
    for kind in OCI:
        if kind.fits(value):
            assert os.path.normpath(os.path.join("/data", value)) == f"/data/{value}"
            assert not {"", ".", ".."} & set(value.split("/"))
            assert value.isascii()
            assert value.isprintable()
            assert "\\" not in value


# Every rule of every grammar, with a value that breaks this rule and none before it.
BROKEN: dict[Grammar, dict[str, list[str]]] = {
    grammar.NAME: {
        "must not be empty": [""],
        "must not have an empty component": ["a//b", "/a", "a/"],
        "must be lowercase": ["Library/nginx"],
        "must contain only a-z, 0-9, '.', '_', '-' and '/'": ["é", "a\n", "a%2Fb", "A b"],
        "must have only components that start and end with a letter or a digit": ["a/-b", "a_/b"],
        "must separate alphanumerics by one '.', one or two '_', or any number of '-'": ["a..b"],
    },
    grammar.TAG: {
        "must not be empty": [""],
        "must start with a letter, a digit or '_'": [".x"],
        "must contain only a-z, A-Z, 0-9, '.', '_' and '-'": ["a b"],
        "must have at most 128 characters": ["x" * 129],
    },
    grammar.ALGORITHM: {"must be a-z and 0-9, separated by one '+', '.', '_' or '-'": ["SHA"]},
    grammar.DIGEST: {
        "must not be empty": [""],
        "must have an algorithm, ':' and an encoded hash": ["latest"],
        "must have 64 lowercase hexadecimal digits after 'sha256:'": ["sha256:abc"],
        "must have 128 lowercase hexadecimal digits after 'sha512:'": [f"sha512:{'A' * 128}"],
        "must have an algorithm of a-z and 0-9, separated by one '+', '.', '_' or '-'": [
            "SHA256:abc"
        ],
        "must have only a-z, A-Z, 0-9, '=', '_' and '-' after its first ':', and at least one": [
            "md5:a.b"
        ],
    },
    grammar.DOMAIN: {
        "must not be empty": [""],
        "must have an IPv6 address between '[' and ']', of 0-9, a-f, A-F and ':'": [
            *("[::1", "[]", "[::1]a", "[fe80::1%25eth0]:80", "::1", "[::g]", "a[::1]")
        ],
        "must not be the scheme of a URL": ["https:"],
        "must have only a port's digits after its ':'": ["a.com:", "a.com:80a", "[::1]:80:1"],
        "must contain only a-z, A-Z, 0-9, '.' and '-' before its port": ["a_b.com:80", "a.com\n"],
        "must have only components that start and end with a letter or a digit": ["a-.b", ".a:80"],
    },
    grammar.UPLOAD_ID: {
        "must not be empty": [""],
        "must not start with '.'": [".."],
        "must contain only a-z, A-Z, 0-9, '.', '_', '=' and '-'": ["a/b"],
    },
    grammar.EXTENSION: {
        "must not be empty": [""],
        "must be lowercase": ["OCI"],
        "must contain only a-z, 0-9, '.', '_' and '-'": ["a+b", "a%2Fb"],
        "must be a-z and 0-9, separated by one '.', '_' or '-'": ["a--b"],
    },
    grammar.DOCKER_NAME: {
        "must not be empty": [""],
        "must not have an empty component": ["a//b"],
        "must be lowercase": ["A/b"],
        "must contain only a-z, 0-9, '.', '_', '-' and '/'": ["a b", "a%2Fb"],
        "must have only components that start and end with a letter or a digit": ["-a/b"],
        "must separate alphanumerics by one '.', '_' or '-'": ["a__b/c"],
        "must have two to five components": ["nginx", "a/b/c/d/e/f"],
    },
    grammar.DOCKER_DIGEST: {
        "must not be empty": [""],
        "must have an algorithm, ':' and a hash": ["abc"],
        "must have one ':', with one or more of a-z, A-Z, 0-9, '-', '_', '+' and '.' before it, and of these and '=' after it": [
            "a:b:c"
        ],
    },
    grammar.DOCKER_UPLOAD_ID: {
        "must not be empty": [""],
        "must have no '/'": ["a/b"],
        "must not be '.' or '..'": [".."],
    },
}


def test_malformed_value_gets_the_rule_that_it_broke() -> None:
    assert BROKEN.keys() == set(ALL)
    for kind, rules in BROKEN.items():
        assert rules.keys() == {rule for _, rule in kind.rules}
        for rule, values in rules.items():
            for value in values:
                assert kind.broken_rule(value) == rule, (kind.kind, value)


@pytest.mark.parametrize("value", [3, b"latest", None])
def test_value_that_is_not_a_string_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=f"must be a string, not {type(value).__name__}"):
        grammar.TAG.check(value)


def test_check_returns_a_plain_string() -> None:
    class Loud(str):
        def __str__(self) -> str:
            return self.upper()

    checked = grammar.TAG.check(Loud("v1"))
    assert (type(checked), checked) == (str, "v1")


def test_huge_value_is_shortened_in_the_message() -> None:
    with pytest.raises(ValueError, match="must be lowercase") as error:
        grammar.NAME.check("A" * 1_000_000)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("pattern", "faults", "message"),
    [
        ("[a-z]+", [""], "example 'v1' does not match '[a-z]+'"),
        ("[a-z0-9]+", [], "the last rule has a pattern: write '', which any value matches"),
        ("[a-z0-9]+", ["[^a-z]"], "the last rule has a pattern: write '', which any value matches"),
        (
            *("[a-z0-9]+", ["[a-z]", ""]),
            "pattern '[a-z]' of the rule 'must fit' matches the example 'v1', but a rule's",
        ),
    ],
)
def test_grammar_is_checked_with_its_example(pattern: str, faults: list[str], message: str) -> None:
    rules = tuple((fault, "must fit") for fault in faults)
    with pytest.raises(ValueError, match=re.escape(message)):
        Grammar("value", pattern, "a test", rules, "v1")


def test_pattern_works_inside_a_larger_one() -> None:
    for kind in ALL:
        assert re.compile(kind.pattern).groups == 0
        value = kind.example
        assert re.fullmatch(f"/{kind.pattern}/", f"/{value}/")
        for other in value, f"/{value}", f"{value}/", "//":
            assert re.fullmatch(f"/{kind.pattern}/", other) is None
