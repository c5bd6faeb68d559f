"""Which value of a path is malformed, where it would be a route but for that."""

import re
from collections.abc import Sequence

from .errors import RegistryError, RouteUnknown
from .expression import VARIABLE, Expression
from .routes import RegistryRule


class Diagnosis:
    """Says what is wrong with a path that fits none of `rules`, those of a map's route tables."""

    def __init__(self, rules: Sequence[RegistryRule]) -> None:
        self._rules = rules
        self._domains = {
            domain: re.compile(_pattern(rule, domain)).fullmatch
            for rule in rules
            for domain in [_domain_of(rule)]
        }
        #: One for each set of rules that meet at some domain.
        self._by_domains: dict[tuple[str, ...], DomainDiagnosis] = {}

    def error(self, domain: str, path: str, method: str) -> RegistryError | None:
        """The error for a path at a subdomain (or host, where the map matches these), which no
        rule fits; `None` if it is not one of the API at all."""
        here = tuple(one for one, fits in self._domains.items() if fits(domain))
        if not here:
            return None
        if here not in self._by_domains:
            rules = [rule for rule in self._rules if _domain_of(rule) in here]
            self._by_domains[here] = DomainDiagnosis(rules)
        return self._by_domains[here].error(path, method)


class DomainDiagnosis:
    """Says what is wrong with a path that fits none of `rules`, all of them at one domain.

    One expression, as for the fast path, but with a looser pattern for each value. The rules are
    tried last one first, so that a manifest's reference is a tag if it may be meant as one.
    """

    def __init__(self, rules: Sequence[RegistryRule]) -> None:
        expression = Expression(rules[::-1], _loose_pattern)
        roots = "|".join(sorted({_pattern(rule, _root_of(rule)) for rule in rules}))
        self._answers = expression.answers
        self._fullmatch = re.compile(f"{expression.pattern}|(?:{roots})(?:/(?s:.*))?").fullmatch

    def error(self, path: str, method: str) -> RegistryError | None:
        """The error for `path`, which no rule fits; `None` if it is not one of the API at all."""
        hit = self._fullmatch(path)
        if hit is None:
            return None
        if hit.lastindex is not None:
            rule, _, _, groups, _ = self._answers[hit.lastindex]
            for name, group in groups:
                if converter := rule.converters.get(name):
                    value = hit[group]
                    message = converter.grammar.complaint(value)
                    if message is not None:
                        return converter.malformed(method)(message, detail={name: value})
        return RouteUnknown()


def _loose_pattern(rule: RegistryRule, variable: str) -> str:
    """What may stand for a variable of a rule's path, well-formed or not."""
    converter = rule.converters.get(variable)
    if converter is not None:
        return converter.looks_like or converter.grammar.pattern
    return _exact_pattern(rule, variable)


def _exact_pattern(rule: RegistryRule, variable: str) -> str:
    """What a variable is, of the rule's prefix or domain."""
    pattern = (rule.foreign.get(variable) or rule.converters[variable]).regex
    return f"(?:{pattern})" if re.compile(pattern).groups == 0 else "[^/]+"


def _root_of(rule: RegistryRule) -> str:
    """The path that the rule's route table is under."""
    return rule.rule.removesuffix(rule.route.path) + rule.dialect.root


def _domain_of(rule: RegistryRule) -> str:
    """The subdomain of a rule, or its host where the map matches hosts."""
    return (rule.host if rule.map.host_matching else rule.subdomain) or ""


def _pattern(rule: RegistryRule, text: str) -> str:
    """An expression for what `text`, a root or a domain of the rule, may be."""
    texts = re.split(VARIABLE, text)
    texts[::2] = map(re.escape, texts[::2])
    texts[1::2] = (_exact_pattern(rule, variable) for variable in texts[1::2])
    return "".join(texts)
