"""The fast path: a plain hit is matched by one regular expression, or built by one template.

Werkzeug tries the rules of a map one expression after another. Here those of a route table are one
expression, a tree of what their paths have in common. It answers as Werkzeug would, because

- the rules of a dialect exclude one another: no path fits two of them;
- where another rule of the map might be preferred, the expression does not match. That takes the
  same static segments as ours, up to our first variable: Werkzeug tries what is static first. Of
  the other rule's path only what stands before its first and after its last variable is looked at,
  so it may be suspected wrongly, but is never missed;
- what does not match is left to Werkzeug, unless no other rule begins like it (`decides`).
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import permutations
from operator import itemgetter
from typing import NamedTuple
from urllib.parse import quote

from werkzeug.routing import BaseConverter, Map, Rule

from .converters import GrammarConverter
from .diagnosis import Diagnosis
from .expression import VARIABLE, Expression
from .routes import RegistryRule

# What the URL standard leaves unencoded in a path segment, and "/".
SAFE_IN_PATH = "!$&'()*+,/:;=@"


class Template(NamedTuple):
    """How a rule is built from exactly its variables."""

    checks: tuple[tuple[str, Callable[[str], object]], ...]
    """Each variable, and what is true of a value that fits."""
    path: str
    """With "%s" for each value, and without its leading slash."""
    values: Callable[[dict[str, str]], object]
    """Takes what fills the path out of a dict."""


class FastPath:
    """The fast path of a map: of `own`, the rules of its route table, among all its rules.

    And what else depends on the rules that the map has by now: `registry` and `diagnosis`.
    """

    def __init__(self, own: Sequence[RegistryRule], url_map: Map) -> None:
        rules = list(url_map.iter_rules())
        self.subdomain = url_map.default_subdomain
        self._map = url_map
        #: Those of `own` and of other route tables that a user has added.
        self.registry_rules = [rule for rule in rules if isinstance(rule, RegistryRule)]
        with_defaults = {rule.endpoint for rule in rules if rule.defaults}
        plain = [rule for rule in own if _is_plain(rule) and rule.endpoint not in with_defaults]
        others = [
            rule
            for rule in rules
            if not (rule.build_only or _among(plain, rule))
            and (rule.subdomain == self.subdomain or "<" in (rule.subdomain or ""))
        ]
        self._other_heads = tuple({_ends(rule)[0].rstrip("/") for rule in others})
        #: Expressions for the paths that another rule might take.
        self.suspects = {
            _paths_like(other)
            for other in others
            if not _among(own, other) and any(_may_precede(other, rule) for rule in plain)
        }
        unless = f"(?!{'|'.join(sorted(self.suspects))})" if self.suspects else ""
        expression = Expression(plain, _grammars_pattern)
        self.answers = expression.answers
        self.fullmatch = re.compile(unless + expression.pattern).fullmatch
        #: By endpoint and variables, these in any order.
        self.templates = {
            (rule.endpoint, *names): _template(rule)
            for rule in plain
            if not self.suspects and _is_only_choice(rule, rules)
            for names in permutations(rule.arguments)
        }

    @cached_property
    def registry(self) -> Map:
        """A map of `registry_rules` alone; the endpoint of each is its number there."""
        registry = Map(
            host_matching=self._map.host_matching,
            converters=self._map.converters,
            merge_slashes=False,
            redirect_defaults=False,
        )
        for number, rule in enumerate(self.registry_rules):
            copy = rule.empty()
            copy.endpoint = number
            copy.strict_slashes = True
            registry.add(copy)
        return registry

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """What is wrong with the paths that none of `registry_rules` fits."""
        return Diagnosis(self.registry_rules)

    def decides(self, path: str) -> bool:
        """Whether no rule but the plain ones can have a say in `path`."""
        if not (self.answers and path.startswith("/")):
            return False
        return not (self._other_heads and _merged(path).startswith(self._other_heads))


def _grammars_pattern(rule: RegistryRule, variable: str) -> str:
    return rule.converters[variable].grammar.pattern


def _is_plain(rule: RegistryRule) -> bool:
    """Whether its values are as its dialect's grammars match them, up to a slash or the end."""
    return (
        not rule.foreign
        and not re.search(">[^/]", rule.rule)
        and all(
            type(converter).to_python is BaseConverter.to_python
            and converter.regex == converter.grammar.regex
            for converter in rule.converters.values()
        )
    )


def _may_precede(other: Rule, rule: Rule) -> bool:
    """Whether Werkzeug might take `other` for a path that fits `rule`."""
    for theirs, ours in zip(_merged(other.rule).split("/"), rule.rule.split("/"), strict=False):
        if "<" in ours:
            return True
        if theirs != ours:  # another text, or a variable
            return False
    return True


def _paths_like(rule: Rule) -> str:
    """An expression for every path that `rule` might match, whatever its ending, and more."""
    head, tail = _ends(rule)
    if tail is None:
        return rf"{re.escape(head.rstrip('/'))}/?\Z"
    return rf"{re.escape(head)}(?s:.*){re.escape(tail.rstrip('/'))}/?\Z"


def _ends(rule: Rule) -> tuple[str, str | None]:
    """The text before its first variable, and that after its last; `None` where it has none."""
    head, variable, rest = _merged(rule.rule).partition("<")
    return head, rest.rpartition(">")[2] if variable else None


def _merged(path: str) -> str:
    return re.sub("/{2,}", "/", path) if "//" in path else path


def _among(rules: Sequence[Rule], rule: Rule) -> bool:
    return any(rule is one for one in rules)  # rules compare equal by their paths


def _is_only_choice(rule: RegistryRule, rules: Sequence[Rule]) -> bool:
    """Whether its variables build no other rule of the endpoint, and are built as they are."""
    others = [other for other in rules if other.endpoint == rule.endpoint and other is not rule]
    return all(
        type(converter).to_url is GrammarConverter.to_url for converter in rule.converters.values()
    ) and not any(other.arguments <= rule.arguments for other in others)


def _template(rule: RegistryRule) -> Template:
    texts = re.split(VARIABLE, rule.rule.lstrip("/"))[::2]
    quoted = [quote(text, safe=SAFE_IN_PATH).replace("%", "%%") for text in texts]
    return Template(
        tuple((name, converter.grammar.fullmatch) for name, converter in rule.converters.items()),
        "%s".join(quoted),
        itemgetter(*rule.converters) if rule.converters else lambda values: (),
    )
