"""Which value of a path is malformed, where it would be a route but for that."""

import re
from collections.abc import Sequence

from werkzeug.routing.rules import parse_converter_args

from .errors import RegistryError, RouteUnknown
from .fastpath import Expression
from .routes import RegistryRule


class Diagnosis:
    """Says what is wrong with a path that fits none of `rules`, the rules of route tables.

    One expression, as for the fast path, but with a looser pattern for each value. The rules are
    tried last one first, so that a manifest's reference is a tag if it may be meant as one.
    """

    def __init__(self, rules: Sequence[RegistryRule]) -> None:
        expression = Expression(rules[::-1], _loose_pattern)
        roots = "|".join(sorted({_root_pattern(rule) for rule in rules}))
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
    """What may stand for a variable, well-formed or not; of one in a prefix, what is."""
    converter = rule.converters.get(variable)
    if converter is not None:
        return converter.looks_like or converter.grammar.pattern
    found = re.search(rf"<(?:(\w+)(?:\((.*?)\))?:)?{variable}>", rule.rule)
    assert found  # noqa: S101 - it is one of the rule's variables
    args, kwargs = parse_converter_args(found[2] or "")
    pattern = rule.get_converter(variable, found[1] or "default", args, kwargs).regex
    return f"(?:{pattern})" if re.compile(pattern).groups == 0 else "[^/]+"


def _root_pattern(rule: RegistryRule) -> str:
    """An expression for the path that the rule's route table is under."""
    root = rule.rule.removesuffix(rule.route.path) + rule.dialect.root
    texts = re.split(r"<(?:[^>]*:)?(\w+)>", root)
    texts[::2] = map(re.escape, texts[::2])
    texts[1::2] = (_loose_pattern(rule, variable) for variable in texts[1::2])
    return "".join(texts)
