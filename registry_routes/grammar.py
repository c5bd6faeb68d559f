r"""The grammar of the values in a registry URL: repository names, tags, digests and so on.

There is one `Grammar` for each kind of value, as the OCI distribution-spec 1.1 defines it. If
Docker 1.5.0 differs, its grammar is here too, with ``DOCKER_`` before its name. `DOMAIN` is the
host and port of a registry, in an image reference.

Every pattern follows these rules:

- It is for whole values, and `re.fullmatch`: ``$`` would let a trailing newline through.
- It spells out its character classes: ``\w`` and ``\d`` are Unicode in Python, ASCII in Go.
- It has no capturing group, so it can be pasted into a larger expression.
- It takes linear time. Repeated classes are possessive (``++``) and repeated groups are atomic
  (``(?>…)``), so nothing is tried twice. (Possessive groups, ``(?:…)*+``, match wrongly before
  Python 3.11.5: CPython gh-106052.) A repository name is matched lazily (``*?``), because the
  regular expression of a whole path then finds the end of the name sooner.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote, urlencode

__all__ = [
    "ALGORITHM",
    "DIGEST",
    "DOCKER_DIGEST",
    "DOCKER_NAME",
    "DOCKER_UPLOAD_ID",
    "DOMAIN",
    "EXTENSION",
    "NAME",
    "REGISTERED_ALGORITHMS",
    "TAG",
    "UPLOAD_ID",
    "Grammar",
]


@dataclass(frozen=True)
class Grammar:
    """The form of one kind of value, and the words for a value that breaks it.

    >>> TAG.fits("3.19-alpine")
    True
    >>> TAG.check(".hidden")
    Traceback (most recent call last):
        ...
    ValueError: tag '.hidden' must start with a letter, a digit or '_'

    - `kind`: what messages call such a value, such as "repository name".
    - `pattern`: the regular expression that a whole value matches, written by the rules of this
      module.
    - `source`: the document that the rule comes from.
    - `rules`: the rules that a malformed value can break. Each has a pattern that *finds the
      fault*, and the end of a sentence about it ("must be lowercase"). The first matching pattern
      wins; the last is empty and always matches.
    - `example`: a well-formed value. It must match the pattern, and no rule may find a fault in it.
    - `is_url_safe`: whether every well-formed value can stand in a path without percent-encoding.
    """

    kind: str
    pattern: str
    source: str
    rules: tuple[tuple[str, str], ...]
    example: str
    is_url_safe: bool = True

    def __post_init__(self) -> None:
        if not self.fits(self.example):
            raise ValueError(f"example {self.example!r} does not match {self.pattern!r}")
        if not self.rules or self.rules[-1][0]:
            raise ValueError("the last rule has a pattern: write '', which any value matches")
        for fault, rule in self.rules[:-1]:
            if re.search(fault, self.example):
                raise ValueError(
                    f"pattern {fault!r} of the rule {rule!r} matches the example "
                    f"{self.example!r}, but a rule's pattern finds a fault"
                )

    @cached_property
    def fullmatch(self) -> Callable[[str], re.Match[str] | None]:
        """A function that matches a whole value; it returns `None` for a malformed one."""
        return re.compile(self.pattern).fullmatch

    @property
    def regex(self) -> str:
        """The pattern for a rule in which any text may follow the value, such as ``.svg``.

        It is greedy, as the patterns of Werkzeug's converters are, and backtracks.
        """
        return re.sub(r"(?<=[*+?}])[+?]", "", self.pattern).replace("(?>", "(?:")

    def fits(self, value: str) -> bool:
        """Return whether `value` is well-formed."""
        return self.fullmatch(value) is not None

    def broken_rule(self, value: str) -> str | None:
        """Return the rule that `value` breaks, as the end of a sentence ("must be lowercase").

        Return `None` if the value is well-formed.
        """
        if self.fits(value):
            return None
        return next(rule for fault, rule in self.rules if re.search(fault, value))

    def check(self, value: object) -> str:
        """Return `value` as a plain `str`.

        Raises `ValueError`, which names the value and the rule it broke, if it is malformed.
        """
        if isinstance(value, str) and self.fits(value):
            return str.__str__(value)  # the `str()` of a subclass may be another text
        raise ValueError(self.complaint(value))

    def complaint(self, value: object) -> str | None:
        """Return a sentence about `value` and the rule it breaks; `None` if it is well-formed."""
        if isinstance(value, str):
            rule = self.broken_rule(value)
        else:
            rule = f"must be a string, not {type(value).__name__}"
        return rule and f"{self.kind} {shorten(value)} {rule}"


def shorten(value: object) -> str:
    """Return the `repr` of a value, cut to 200 characters, for a message.

    >>> shorten("nginx")
    "'nginx'"
    """
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]}…{text[-20:]}"


_EMPTY = (r"\A\Z", "must not be empty")

_NAME_RULES = (
    _EMPTY,
    (r"\A/|//|/\Z", "must not have an empty component"),
    # This rule comes before that of the case: "a%2Fb" would be malformed in lowercase too.
    (r"[^a-zA-Z0-9._/-]", "must contain only a-z, 0-9, '.', '_', '-' and '/'"),
    (r"[A-Z]", "must be lowercase"),
    (
        r"(?:\A|/)[._-]|[._-](?:/|\Z)",
        "must have only components that start and end with a letter or a digit",
    ),
)

NAME = Grammar(
    kind="repository name",
    pattern=r"[a-z0-9]++(?:(?:[./]|__?+|-++)[a-z0-9]++)*?",
    source="OCI distribution-spec 1.1, Pulling manifests",
    rules=(
        *_NAME_RULES,
        ("", "must separate alphanumerics by one '.', one or two '_', or any number of '-'"),
    ),
    example="library/nginx",
)

TAG = Grammar(
    kind="tag",
    pattern=r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}+",
    source="OCI distribution-spec 1.1, Pulling manifests; Docker 1.5.0, registry/v2/regexp.go",
    rules=(
        _EMPTY,
        (r"\A[^a-zA-Z0-9_]", "must start with a letter, a digit or '_'"),
        (r"[^a-zA-Z0-9._-]", "must contain only a-z, A-Z, 0-9, '.', '_' and '-'"),
        ("", "must have at most 128 characters"),
    ),
    example="latest",
)

REGISTERED_ALGORITHMS = {"sha256": 64, "sha512": 128}
"""The hash algorithms of OCI image-spec 1.1, "Registered Algorithms", each with the number of
lowercase hexadecimal digits after the colon."""

_ALGORITHM_IS = "a-z and 0-9, separated by one '+', '.', '_' or '-'"

ALGORITHM = Grammar(
    kind="digest algorithm",
    pattern=r"[a-z0-9]++(?>(?:[+._-][a-z0-9]++)*)",
    source="OCI image-spec 1.1, Digests",
    rules=(("", f"must be {_ALGORITHM_IS}"),),
    example="sha256",
)

_REGISTERED = "|".join(f"{name}:[a-f0-9]{{{n}}}" for name, n in REGISTERED_ALGORITHMS.items())
_UNREGISTERED = rf"(?!(?:{'|'.join(REGISTERED_ALGORITHMS)}):){ALGORITHM.pattern}:[a-zA-Z0-9=_-]++"

DIGEST = Grammar(
    kind="digest",
    pattern=f"(?:{_REGISTERED}|{_UNREGISTERED})",
    source="OCI distribution-spec 1.1, Pulling manifests; OCI image-spec 1.1, Digests",
    rules=(
        _EMPTY,
        (r"\A[^:]*\Z", "must have an algorithm, ':' and an encoded hash"),
        *(
            (
                rf"\A{name}:(?![a-f0-9]{{{n}}}\Z)",
                f"must have {n} lowercase hexadecimal digits after '{name}:'",
            )
            for name, n in REGISTERED_ALGORITHMS.items()
        ),
        (rf"\A(?!{ALGORITHM.pattern}:)", f"must have an algorithm of {_ALGORITHM_IS}"),
        (
            "",
            "must have only a-z, A-Z, 0-9, '=', '_' and '-' after its first ':', and at least one",
        ),
    ),
    example="sha256:" + 64 * "0",
)

_DOMAIN_COMPONENT = r"[a-zA-Z0-9]++(?>(?:-++[a-zA-Z0-9]++)*)"

DOMAIN = Grammar(
    kind="domain",
    pattern=(
        rf"(?:{_DOMAIN_COMPONENT}(?>(?:\.{_DOMAIN_COMPONENT})*)|\[[a-fA-F0-9:]++\])"
        r"(?>(?::[0-9]++)?)"
    ),
    source="distribution/reference 0.6.0, reference.go and regexp.go, DomainRegexp",
    rules=(
        _EMPTY,
        (
            r"\A\[(?![a-fA-F0-9:]++\](?::|\Z))|\A(?!\[)[^:]*+:[^:]*+:",
            "must have an IPv6 address between '[' and ']', of 0-9, a-f, A-F and ':'",
        ),
        (r"\Ahttps?:\Z", "must not be the scheme of a URL"),
        (r"\A(?:\[[^\]]*+\]|[^:]*+):(?![0-9]++\Z)", "must have only a port's digits after its ':'"),
        (
            r"[^a-zA-Z0-9.:-]",
            "must contain only a-z, A-Z, 0-9, '.' and '-' before its port",
        ),
        ("", "must have only components that start and end with a letter or a digit"),
    ),
    example="localhost:5000",
)

UPLOAD_ID = Grammar(
    kind="upload id",
    pattern=r"[a-zA-Z0-9_=-][a-zA-Z0-9._=-]*+",
    source="Docker Registry HTTP API v2, Blob Upload: URL-safe; no leading '.', so never '..'",
    rules=(
        _EMPTY,
        (r"\A\.", "must not start with '.'"),
        ("", "must contain only a-z, A-Z, 0-9, '.', '_', '=' and '-'"),
    ),
    example="b8e1d5ae-3d4a",
)

EXTENSION = Grammar(
    kind="extension name",
    pattern=r"[a-z0-9]++(?>(?:[._-][a-z0-9]++)*)",
    source="OCI distribution-spec 1.1, extensions/README.md (whose own pattern lacks the '*')",
    rules=(
        _EMPTY,
        (r"[^a-zA-Z0-9._-]", "must contain only a-z, 0-9, '.', '_' and '-'"),
        (r"[A-Z]", "must be lowercase"),
        ("", "must be a-z and 0-9, separated by one '.', '_' or '-'"),
    ),
    example="oci",
)

_DOCKER_COMPONENT = r"[a-z0-9]++(?>(?:[._-][a-z0-9]++)*)"

DOCKER_NAME = Grammar(
    kind="repository name",
    pattern=rf"{_DOCKER_COMPONENT}(?:/{_DOCKER_COMPONENT}){{1,4}}?",
    source="Docker 1.5.0, registry/v2/regexp.go, RepositoryNameRegexp",
    rules=(
        *_NAME_RULES,
        (r"[._-]{2}", "must separate alphanumerics by one '.', '_' or '-'"),
        ("", "must have two to five components"),
    ),
    example="library/nginx",
)

DOCKER_DIGEST = Grammar(
    kind="digest",
    pattern=r"[a-zA-Z0-9_+.-]++:[a-zA-Z0-9_+.=-]++",
    source="Docker 1.5.0, registry/v2/routes.go and digest/digest.go, DigestRegexp",
    rules=(
        _EMPTY,
        (r"\A[^:]*\Z", "must have an algorithm, ':' and a hash"),
        (
            "",
            "must have one ':', with one or more of a-z, A-Z, 0-9, '-', '_', '+' and '.' before it,"
            " and of these and '=' after it",
        ),
    ),
    example="tarsum.v1+sha256:abc",
)

DOCKER_UPLOAD_ID = Grammar(
    kind="upload id",
    # The default of gorilla/mux: any one path segment. It removes '.' and '..' before it matches.
    pattern=r"(?!\.\.?(?:/|\Z))[^/]++",
    source="Docker 1.5.0, registry/v2/routes.go",
    rules=(_EMPTY, ("/", "must have no '/'"), ("", "must not be '.' or '..'")),
    example="b8e1d5ae-3d4a",
    is_url_safe=False,
)

SAFE_IN_PATH = "!$&'()*+,/:;=@"
"""The characters that the URL standard does not percent-encode in a path segment, and "/"."""


def append_query(url: str, pairs: Iterable[tuple[str, str | int]]) -> str:
    """Append parameters to the query of `url`, which is otherwise unchanged.

    >>> append_query("/v2/_catalog?page=x%2By", [("n", 100), ("last", "a/b")])
    '/v2/_catalog?page=x%2By&n=100&last=a%2Fb'

    Raises `UnicodeEncodeError` for a lone surrogate, which UTF-8 cannot encode.
    """
    query = urlencode(list(pairs), quote_via=quote, safe="")
    if not query:
        return url
    separator = "?" if "?" not in url else "" if url.endswith(("?", "&")) else "&"
    return f"{url}{separator}{query}"
