"""`RouteTable`: the routes of a dialect, compiled. It matches paths, explains and builds them.

Its methods are pure functions of paths and HTTP methods. They need neither a request nor a map.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from operator import itemgetter
from typing import Any, NamedTuple
from urllib.parse import quote

from .converters import GrammarConverter
from .errors import RegistryError, RouteUnknown
from .grammar import SAFE_IN_PATH, Grammar
from .routes import OCI_1_1, Dialect, Route


class Meaning(NamedTuple):
    """The route that is meant by a path, even if the path does not match it."""

    route: Route
    values: dict[str, str]
    """The values of the route's variables."""
    path: str
    """The canonical path: with a slash at its end if the route has one, else without."""


class RouteTable:
    """A dialect's routes under a prefix. It is compiled once, and never changes.

    >>> table = RouteTable()
    >>> route, values = table.match("/v2/library/nginx/tags/list", "GET")
    >>> route.endpoint, values
    ('tags', {'name': 'library/nginx'})
    >>> table.match("/v2/library/nginx/tags/list/", "GET")
    >>> table.explain("/v2/library/nginx/tags/list/", "GET").path
    '/v2/library/nginx/tags/list'
    >>> table.explain("/v2/library/Nginx/tags/list", "GET")
    <NameInvalid '400 NAME_INVALID: repository name 'library/Nginx' must be lowercase'>
    >>> table.build("tags", {"name": "library/nginx"})
    '/v2/library/nginx/tags/list'

    :param dialect: the routes.
    :param prefix: a path before every route, such as ``/registry``.

    Raises `ValueError` for a prefix that is not clean (see `clean_path`), or that has a variable.
    """

    def __init__(self, dialect: Dialect = OCI_1_1, prefix: str = "") -> None:
        if prefix and clean_path(prefix) != prefix:
            raise ValueError(
                f"prefix {prefix!r} must start with '/' and have no empty, '.' or '..' segment"
            )
        if "<" in prefix:
            raise ValueError(f"prefix {prefix!r} must have no variables")
        self.dialect = dialect
        self.prefix: str = prefix.rstrip("/")
        self.root: str = self.prefix + dialect.root
        """The path that all the routes are under, without its trailing slash."""
        self._fullmatch, self._ends = _expression(
            dialect, _exact_pattern, {self.prefix + route.path: route for route in dialect.routes}
        )
        # What a path could mean: a route right below the root, or one after a name there, with or
        # without a slash at its end. The last route comes first, so that the reference of a
        # manifest is taken for a tag if it can be one.
        below: dict[str, Route] = {}
        after_name: dict[str, Route] = {}
        for route in (*dialect.left_out, *dialect.routes)[::-1]:
            path = route.path.removeprefix(dialect.root)
            paths = after_name if path.startswith("/<") else below
            path = re.sub("^/<[^>]*>", "", path)
            paths |= {path: route, other_ending(path): route}
        self._below_root = _expression(dialect, _loose_pattern, below)
        self._after_name = _expression(dialect, _loose_pattern, after_name)
        self._most_slashes = max((path.count("/") for path in after_name), default=0)
        #: The converter of each variable, by the path of the route.
        self._converters = {
            route.path: dialect.variables(route) for route in (*dialect.left_out, *dialect.routes)
        }
        # The keys are the endpoint and the names of the variables, in the order of the path and
        # sorted. If several routes have the same key, the first is built, as in Werkzeug.
        self._templates = {
            (route.endpoint, *names): template
            for route in dialect.routes[::-1]
            for template in [_template(self, route)]
            for variables in [dialect.variables(route)]
            for names in (variables, sorted(variables))
        }

    def match(self, path: str, method: str) -> tuple[Route, dict[str, str]] | None:
        """The route of `path`, and its values; `None` if there is none that takes `method`.

        The path is percent-decoded, and the method is in upper case.
        """
        hit = self._fullmatch(path)
        if hit is None:
            return None
        route, methods, groups = self._ends[hit.lastindex]
        if methods is not None and method not in methods:
            return None
        return route, {name: hit[group] for name, group in groups}

    def explain(self, path: str, method: str) -> Meaning | RegistryError | None:
        """What was meant by a path that does not match.

        It is a `Meaning` if the path is a route, for any method and with either ending. If not, it
        is the error to raise: it names the malformed value, or says that there is no such route. It
        is `None` if the path is not under the root of the API.

        `path` must be clean (see `clean_path`). `method` decides which error a malformed tag is.
        """
        if not self.is_under_root(path):
            return None
        fault: RegistryError | None = None
        for route, values in self._meant(path):
            left_out = route in self.dialect.left_out
            error = RouteUnknown() if left_out else self._fault(route, values, method)
            if error is None:
                has_its_ending = path.endswith("/") == route.path.endswith("/")
                return Meaning(route, values, path if has_its_ending else other_ending(path))
            fault = fault or error
        return fault or RouteUnknown()

    def _meant(self, path: str) -> Iterator[tuple[Route, dict[str, str]]]:
        """The routes that a path under the root could mean, with the longest name first, and their
        values, well-formed or not.

        It looks for the end of the name from the end of the path, so it does not read most of it.
        """
        root = len(self.root)
        if hit := self._below_root.fullmatch(path, root):
            route, _, groups = self._below_root.ends[hit.lastindex]
            yield route, {name: hit[group] for name, group in groups}
        slash = len(path)
        for _ in range(self._most_slashes):
            slash = path.rfind("/", root + 1, slash)
            if slash < 0:
                return
            if hit := self._after_name.fullmatch(path, slash):
                route, _, groups = self._after_name.ends[hit.lastindex]
                first = next(iter(self._converters[route.path]))
                values = {name: hit[group] for name, group in groups}
                yield route, {first: path[root + 1 : slash], **values}

    def _fault(self, route: Route, values: Mapping[str, str], method: str) -> RegistryError | None:
        for name, converter in self._converters[route.path].items():
            if complaint := converter.grammar.complaint(values[name]):
                return converter.malformed(method)(complaint, detail={name: values[name]})
        return None

    def variables(self, endpoint: str) -> list[list[str]]:
        """The variables of each route of `endpoint`."""
        routes = (route for route in self.dialect.routes if route.endpoint == endpoint)
        return [list(self.dialect.variables(route)) for route in routes]

    def build(self, endpoint: str, values: Mapping[str, Any]) -> str | None:
        """The path of the route of `endpoint` whose variables are exactly those in `values`; `None`
        if there is none.

        Raises `ValueError`, which names the value and the rule it broke, if a value is malformed.
        """
        template = self._templates.get((endpoint, *values))
        if template is None:
            template = self._templates.get((endpoint, *sorted(values, key=str)))
            if template is None:
                return None
        variables, path, in_order = template
        for name, _, fullmatch in variables:
            value = values[name]
            if type(value) is not str or fullmatch(value) is None:
                break
        else:
            return path % in_order(values)
        if None in values.values():  # for Werkzeug, such a value is not given
            return None
        checked = {name: grammar.check(values[name]) for name, grammar, _ in variables}
        return path % in_order({name: _quoted(value) for name, value in checked.items()})

    def is_under_root(self, path: str) -> bool:
        """Whether `path` is the root of the API or under it, by whole segments."""
        return path == self.root or path.startswith(f"{self.root}/")


class _End(NamedTuple):
    """What a match of an `_Expression` says: which route it is, and where its values are."""

    route: Route
    methods: frozenset[str] | None
    """The route's `taken_methods`."""
    groups: tuple[tuple[str, int], ...]
    """Each variable, and the number of the group that has its value."""


class _Expression(NamedTuple):
    fullmatch: Callable[..., re.Match[str] | None]
    ends: dict[int | None, _End]
    """The end that has matched, by `re.Match.lastindex`: each path ends with an empty group."""


class _Template(NamedTuple):
    variables: tuple[tuple[str, Grammar, Callable[[str], object]], ...]
    """Each variable, its grammar, and a function that matches a value which needs no quoting."""
    path: str
    """The path, with "%s" for each value."""
    in_order: Callable[[Mapping[str, Any]], object]
    """Takes the values for the path out of a mapping."""


def _exact_pattern(converter: type[GrammarConverter]) -> str:
    return converter.grammar.pattern


def _loose_pattern(converter: type[GrammarConverter]) -> str:
    return converter.looks_like or converter.grammar.pattern


def _expression(
    dialect: Dialect,
    pattern_of: Callable[[type[GrammarConverter]], str],
    routes: Mapping[str, Route],
) -> _Expression:
    """One regular expression for several routes, whose paths it merges into a tree of common parts.

    If a text and a value may both come next, the text is tried first.
    """
    tree: dict[Any, Any] = {}
    for path, route in routes.items():
        converters = dialect.variables(route)
        branch = tree
        for text, name in re.findall(r"(/|[^</]+)|<\w+:(\w+)>", path):
            branch = branch.setdefault(text or (name, pattern_of(converters[name])), {})
        branch[_END] = route
    ends: dict[int | None, _End] = {}
    return _Expression(re.compile(_joined(tree, (), count(1), ends)).fullmatch, ends)


_END = ""  # marks the end of a path in the tree


def _joined(
    tree: dict[Any, Any],
    groups: tuple[tuple[str, int], ...],
    numbers: Iterator[int],
    ends: dict[int | None, _End],
) -> str:
    """The pattern of a tree that comes after `groups`. Its own groups get the next `numbers`."""
    alternatives = []
    for piece, rest in sorted(tree.items(), key=lambda branch: isinstance(branch[0], tuple)):
        if piece == _END:
            ends[next(numbers)] = _End(rest, rest.taken_methods, groups)
            alternatives.append("()")
        elif isinstance(piece, str):
            alternatives.append(re.escape(piece) + _joined(rest, groups, numbers, ends))
        else:
            name, pattern = piece
            more = (*groups, (name, next(numbers)))
            alternatives.append(f"({pattern}){_joined(rest, more, numbers, ends)}")
    return alternatives[0] if len(alternatives) == 1 else f"(?:{'|'.join(alternatives)})"


_matches_nothing = re.compile("(?!)").fullmatch


def _template(table: RouteTable, route: Route) -> _Template:
    grammars = {name: one.grammar for name, one in table.dialect.variables(route).items()}
    texts = re.split("<[^>]*>", table.prefix + route.path)
    return _Template(
        tuple(
            (name, grammar, grammar.fullmatch if grammar.is_url_safe else _matches_nothing)
            for name, grammar in grammars.items()
        ),
        "%s".join(_quoted(text).replace("%", "%%") for text in texts),
        itemgetter(*grammars) if grammars else lambda values: (),
    )


def _quoted(text: str) -> str:
    return quote(text, safe=SAFE_IN_PATH)


def other_ending(path: str) -> str:
    """`path` without its trailing slash, or with one if it has none."""
    return path.removesuffix("/") if path.endswith("/") else f"{path}/"


_may_be_unclean = re.compile("/[/.]").search


def clean_path(path: str) -> str:
    """`path` without empty, ``.`` and ``..`` segments, as gorilla/mux cleans it.

    >>> clean_path("/v2//library/x/../nginx/./tags/list/")
    '/v2/library/nginx/tags/list/'
    """
    # posixpath.normpath would keep two leading slashes, and some Pythons' stops at a NUL.
    if path.startswith("/") and _may_be_unclean(path) is None:
        return path
    path = re.sub("/{2,}", "/", f"/{path}")
    if "/." not in path:
        return path
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    cleaned = "/" + "/".join(kept)
    return f"{cleaned}/" if kept and path.endswith("/") else cleaned
