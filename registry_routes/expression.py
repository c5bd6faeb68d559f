"""One regular expression for the rules of a route table."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

from .routes import RegistryRule

#: A variable in a rule, and its name.
VARIABLE = r"<(?:[^>]*:)?(\w+)>"
END = None  # in the tree, where a rule ends


class Answer(NamedTuple):
    """What a match of the expression means."""

    rule: RegistryRule
    endpoint: Any
    methods: Collection[str] | None
    """Those that hit, `None` for any; empty where the path has not the ending of the rule."""
    groups: tuple[tuple[str, int], ...]
    """Each variable, and the group of the expression that has its value."""
    as_it_stands: bool
    """Whether the path has the ending that the rule has."""


class Expression:
    """One regular expression for several rules: a tree of what their paths have in common.

    `pattern_of` says what it has for a variable of a rule.
    """

    def __init__(
        self, rules: Sequence[RegistryRule], pattern_of: Callable[[RegistryRule, str], str]
    ) -> None:
        #: By the number of the last group that matched.
        self.answers: dict[int | None, Answer] = {}
        tree = _tree(rules, pattern_of)
        self.pattern = self._joined(tree, (), count(1)) if tree else "(?!)"

    def _joined(
        self, tree: dict[Any, Any], groups: tuple[tuple[str, int], ...], numbers: Iterator[int]
    ) -> str:
        alternatives = []
        for piece, rest in tree.items():
            if piece is END:  # an empty group tells the end of which rule it is
                rule, as_it_stands = rest
                methods = rule.methods if as_it_stands else ()
                answer = Answer(rule, rule.endpoint, methods, groups, as_it_stands)
                self.answers[next(numbers)] = answer
                alternatives.append("()")
            elif isinstance(piece, str):
                alternatives.append(re.escape(piece) + self._joined(rest, groups, numbers))
            else:
                variable, pattern = piece
                more = (*groups, (variable, next(numbers)))
                alternatives.append(f"({pattern}){self._joined(rest, more, numbers)}")
        return alternatives[0] if len(alternatives) == 1 else f"(?:{'|'.join(alternatives)})"


def _tree(
    rules: Sequence[RegistryRule], pattern_of: Callable[[RegistryRule, str], str]
) -> dict[Any, Any]:
    """The rules by the pieces of their paths: slashes, texts, and variables with their patterns.

    Each rule with its own ending, then with the other one.
    """
    tree: dict[Any, Any] = {}
    for as_it_stands in True, False:
        for rule in rules:
            path = rule.rule if as_it_stands else other_ending(rule.rule)
            branch = tree
            for text, variable in re.findall(f"(/|[^</]+)|{VARIABLE}", path):
                piece = text or (variable, pattern_of(rule, variable))
                branch = branch.setdefault(piece, {})
            branch.setdefault(END, (rule, as_it_stands))
    return tree


def other_ending(path: str) -> str:
    """`path` without its trailing slash, or with one if it has none."""
    return path.removesuffix("/") if path.endswith("/") else f"{path}/"
