"""`RouteTable`: the compiled routes of a dialect, which match, explain and build paths.

Its methods are pure functions of paths and HTTP methods. They need neither a request nor a map.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

from .converters import ANYTHING, GrammarConverter
from .errors import RegistryError, RouteUnknown, Unsupported
from .grammar import SAFE_IN_PATH, Grammar, shorten
from .routes import OCI_1_1, Dialect, Route, split_name, write_pattern

__all__ = ["Meaning", "RouteTable", "clean_path"]


class Meaning(NamedTuple):
    """The route that a path means, with or without a trailing slash.

    - `route`: the route.
    - `values`: the values of the route's variables.
    - `path`: the canonical path: with a trailing slash only if the route has one.
    """

    route: Route
    values: dict[str, str]
    path: str


class RouteTable:
    """A dialect's routes under a prefix: compiled once, and never changed.

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

    - `dialect`, `prefix`: as given, but the prefix has no trailing slash.
    - `root`: the path above all routes, without a trailing slash: ``/v2``, after the prefix.

    Raises `ValueError` for a prefix that is not clean (see `clean_path`), or that has a variable.
    """

    def __init__(self, dialect: Dialect = OCI_1_1, prefix: str = "") -> None:
        if not isinstance(prefix, str):
            raise TypeError(f"prefix {prefix!r} is not a string: write '' for no prefix")
        if prefix and clean_path(prefix) != prefix:
            raise ValueError(
                f"prefix {prefix!r} must start with '/' and have no empty, '.' or '..' segment"
            )
        if "<" in prefix:
            raise ValueError(f"prefix {prefix!r} must have no variables")
        self.dialect = dialect
        self.prefix: str = prefix.rstrip("/")
        self.root: str = self.prefix + dialect.root
        paths = [_Path.of(dialect, route) for route in dialect.routes]
        left_out = [_Path.of(dialect, route) for route in dialect.left_out]
        # An expression for each method; `None` stands for any other method.
        by_literals = sorted(paths, key=lambda path: -path.literals)
        self._expressions = {
            method: _compile_paths(self.root, [path for path in by_literals if path.takes(method)])
            for method in {None}.union(*(path.methods or () for path in paths))
        }
        self._candidates = [
            (path, _compile_loosely(self.root, path))
            for path in sorted(paths + left_out, key=_rank)
        ]
        # Keyed by the endpoint and its variables, both in the order of the path and in any order.
        self._templates: dict[tuple[Any, ...], list[_Template]] = {}
        for path in paths:
            endpoint, variables = path.route.endpoint, path.variables
            siblings = [other for other in paths if other.route.endpoint == endpoint]
            template = _make_template(self.prefix, path, siblings)
            for key in {(endpoint, *variables), (endpoint, frozenset(variables))}:
                self._templates.setdefault(key, []).append(template)

    def __repr__(self) -> str:
        return f"RouteTable({self.dialect!r}, {self.prefix!r})"

    def match(self, path: str, method: str) -> tuple[Route, dict[str, str]] | None:
        """Return the route of `path` that takes `method`, and its values; or `None`.

        The path must be percent-decoded, and the method in upper case.
        """
        fullmatch, ends = self._expressions.get(method) or self._expressions[None]
        hit = fullmatch(path)
        if hit is None:
            return None
        route, groups = ends[hit.lastindex]
        return route, {variable: hit[group] for variable, group in groups}

    def explain(self, path: str, method: str) -> Meaning | RegistryError | None:
        """Explain why a path did not match.

        Return a `Meaning` if the path, with or without a trailing slash, is a route that takes
        `method`. Otherwise return the error to raise: `Unsupported` if it is a route for other
        methods, else an error that names the malformed value, or `RouteUnknown`. Return `None` if
        the path is not under the root of the API.

        `path` must be clean (see `clean_path`).
        """
        if not self.is_under_root(path):
            return None
        bare = path.removesuffix("/")
        for ending in (path, toggle_slash(path)) if bare[-1:] != "/" else ():
            if found := self.match(ending, method):
                return Meaning(*found, ending)
        meant: list[_Path] = []
        faults: list[RegistryError] = []
        for candidate, fullmatch in self._candidates:
            if hit := fullmatch(bare):
                fault = candidate.find_fault(hit.groupdict(), method)
                if fault is None:
                    meant.append(candidate)
                else:
                    faults.append(fault)
        served = [candidate for candidate in meant if candidate.is_served]
        if served:
            methods = {method for candidate in served for method in candidate.methods or ()}
            return Unsupported(valid_methods=sorted(methods))
        return RouteUnknown() if meant or not faults else faults[0]

    def variables(self, endpoint: str) -> list[list[str]]:
        """Return the variables of each route of `endpoint`."""
        routes = (route for route in self.dialect.routes if route.endpoint == endpoint)
        return [list(self.dialect.variables(route)) for route in routes]

    def build(
        self, endpoint: str, values: Mapping[str, Any], method: str | None = None
    ) -> str | None:
        """Return the path of `endpoint` for exactly the variables in `values`.

        Return `None` if no route of the endpoint has these variables. `method` chooses among routes
        of an endpoint that take different methods. Raises `ValueError`, which names the value and
        the rule it broke, if a value is malformed.
        """
        templates = self._templates.get((endpoint, *values))
        if templates is None:
            templates = self._templates.get((endpoint, frozenset(values)), [])
        for template in templates:
            if method is None or template.methods is None or method in template.methods:
                return template.fill(values)
        return None

    def is_under_root(self, path: str) -> bool:
        """Return whether `path` is the root of the API or under it, by whole segments."""
        return path == self.root or path.startswith(f"{self.root}/")


class _Path(NamedTuple):
    """A route, split into the name and the tail that follows it."""

    route: Route
    is_served: bool
    """Whether the dialect has the route, rather than leaving it out."""
    methods: frozenset[str] | None
    variables: dict[str, type[GrammarConverter]]
    name: str | None
    """The variable right after the root, such as a repository name."""
    name_converter: type[GrammarConverter] | None
    tail: str
    """The path after the name; without a name, after the root."""
    segments: list[str]
    """The segments of `tail`."""
    literals: int
    """The number of segments without a variable."""

    @classmethod
    def of(cls, dialect: Dialect, route: Route) -> "_Path":
        """Split a route of a dialect."""
        variables = dialect.variables(route)
        name, tail = split_name(dialect, route)
        segments = tail.split("/")[1:]
        return cls(
            route=route,
            is_served=route in dialect.routes,
            methods=dialect.methods(route),
            variables=variables,
            name=name,
            name_converter=variables[name] if name else None,
            tail=tail,
            segments=segments,
            literals=sum("<" not in segment for segment in segments if segment),
        )

    def takes(self, method: str | None) -> bool:
        return self.methods is None or method in self.methods

    def find_fault(self, values: Mapping[str, str], method: str) -> RegistryError | None:
        """Return the error for the first malformed value; `None` if all are well-formed."""
        for variable, converter in self.variables.items():
            if complaint := converter.grammar.complaint(values[variable]):
                if not self.is_served:
                    return RouteUnknown()
                return converter.malformed(method)(complaint, detail={variable: values[variable]})
        return None


_Fullmatch: TypeAlias = Callable[[str], re.Match[str] | None]

# Each path of an expression ends in an empty group. By its number, `re.Match.lastindex`, this finds
# the route that has matched, and the groups with the values of its variables.
_Ends: TypeAlias = dict[int | None, tuple[Route, list[tuple[str, int]]]]


def _compile_paths(root: str, paths: Iterable[_Path]) -> tuple[_Fullmatch, _Ends]:
    """Compile one expression for `paths`. If several of them match, the first wins.

    Paths of a group share one pattern for the name, with all their tails as alternatives.
    """
    alternatives: list[str] = []
    labels: dict[str, tuple[Route, dict[str, str]]] = {}  # keyed by those of the ends
    for group in _group_by_name(paths):
        name = group[0].name_converter
        name_label = f"name_{len(alternatives)}"
        tails = []
        for path in group:
            end = f"end_{len(labels)}"
            label_of = {v: name_label if v == path.name else f"{end}_{v}" for v in path.variables}
            patterns = {
                v: f"(?P<{label_of[v]}>{c.grammar.pattern})" for v, c in path.variables.items()
            }
            tails.append(f"{write_pattern(path.tail, patterns)}(?P<{end}>)")
            labels[end] = path.route, label_of
        start = f"/(?P<{name_label}>{name.grammar.pattern})" if name else ""
        alternatives.append(f"{start}(?:{'|'.join(tails)})")
    pattern = f"{re.escape(root)}(?:{'|'.join(alternatives)})" if alternatives else "(?!)"
    expression = re.compile(pattern)
    number = expression.groupindex  # a match finds groups faster by number than by label
    return expression.fullmatch, {
        number[end]: (route, [(variable, number[label]) for variable, label in label_of.items()])
        for end, (route, label_of) in labels.items()
    }


def _group_by_name(paths: Iterable[_Path]) -> list[list[_Path]]:
    """Group neighbours with the same kind of name, so that the order of the paths stays.

    The expression of a group tries a shorter name with all its paths before a longer one. So a path
    begins a new group if it may match the same text as another of the group, by another name.
    """
    groups: list[list[_Path]] = []
    for path in paths:
        group = groups[-1] if groups else []
        if (
            group
            and path.name_converter is group[0].name_converter
            and not any(_may_collide(path, other) for other in group)
        ):
            group.append(path)
        else:
            groups.append([path])
    return groups


def _may_collide(path: _Path, other: _Path) -> bool:
    """Return whether two paths may match the same text with names of different lengths.

    ``<name>/manifests/<tag>`` and ``<name>/<a>/<b>/<c>`` may: in ``x/y/manifests/z``, the name is
    ``x/y`` or ``x``. The tails are compared from the end, where a variable may have the text of any
    segment that is not empty; the longer tail begins within the other path's name.

    ``<name>/tags/list`` and ``<name>/blobs/uploads/`` do not. Nor do two tails of equal length:
    their names are equally long, so the first that matches wins.
    """
    if len(path.segments) == len(other.segments):
        return False
    backwards = zip(reversed(path.segments), reversed(other.segments), strict=False)
    return all(a == b or (a and b and "<" in a + b) for a, b in backwards)


def _rank(path: _Path) -> tuple[int, ...]:
    """Return a sort key for the routes that a malformed path may mean.

    Routes right below the root come first, then those with the most literal segments, the longest
    name, the fewest variables, and the narrowest variables.
    """
    length = len([segment for segment in path.segments if segment])
    wide = sum(converter.looks_like == ANYTHING for converter in path.variables.values())
    return path.name is not None, -path.literals, length, len(path.variables), wide


def _compile_loosely(root: str, path: _Path) -> _Fullmatch:
    """Compile an expression for paths that may mean `path`, without a trailing slash."""
    groups = {
        variable: f"(?P<{variable}>{converter.grammar.pattern}|{converter.looks_like or '(?!)'})"
        for variable, converter in path.variables.items()
    }
    name = f"/(?P<{path.name}>(?s:.+?))" if path.name else ""
    tail = write_pattern(path.tail.rstrip("/"), groups)
    return re.compile(f"{re.escape(root)}{name}{tail}").fullmatch


class _Template(NamedTuple):
    """A route's path with placeholders, and the checks of its values."""

    methods: frozenset[str] | None
    """The methods of the route; `None` if all routes of its endpoint take the same methods."""
    variables: list[tuple[str, _Fullmatch, Callable[[object], str]]]
    """For each variable: its name, a function that matches values that need no quoting, and a
    function that checks and quotes any other value."""
    path: str
    """The path, with ``%s`` for each value."""
    in_order: Callable[[Mapping[str, Any]], object]
    """A function that takes the values out of a mapping, in the order of the path."""

    def fill(self, values: Mapping[str, Any]) -> str | None:
        """Return the path with `values`; `None` if one of them is `None`.

        Raises `ValueError` if a value is malformed.
        """
        for variable, fullmatch, _ in self.variables:
            value = values[variable]
            if type(value) is not str or fullmatch(value) is None:
                return self.fill_slowly(values)
        return self.path % self.in_order(values)

    def fill_slowly(self, values: Mapping[str, Any]) -> str | None:
        if None in values.values():  # Werkzeug treats it as a missing value
            return None
        checked = {variable: check(values[variable]) for variable, _, check in self.variables}
        return self.path % self.in_order(checked)


def _make_template(prefix: str, path: _Path, siblings: Iterable[_Path]) -> _Template:
    variables: list[tuple[str, _Fullmatch, Callable[[object], str]]] = []
    for variable, converter in path.variables.items():
        grammar = converter.grammar
        is_name = variable == path.name
        pattern = grammar.pattern if grammar.is_url_safe else "(?!)"
        fullmatch = re.compile(pattern if is_name else rf"(?![^/]*+/)(?:{pattern})").fullmatch
        variables.append((variable, fullmatch, partial(_quote_value, grammar, is_name)))
    texts = re.split("<[^>]*>", prefix + path.route.path)
    return _Template(
        methods=path.methods if any(p.methods != path.methods for p in siblings) else None,
        variables=variables,
        path="%s".join(_quote_text(text).replace("%", "%%") for text in texts),
        in_order=itemgetter(*path.variables) if path.variables else lambda values: (),
    )


def _quote_value(grammar: Grammar, is_name: bool, value: object) -> str:
    checked = grammar.check(value)
    if "/" in checked and not is_name:
        raise ValueError(f"{grammar.kind} {shorten(value)} must be one path segment, without '/'")
    return _quote_text(checked)


def _quote_text(text: str) -> str:
    return quote(text, safe=SAFE_IN_PATH)


def toggle_slash(path: str) -> str:
    """Remove the trailing slash of `path`, or add one."""
    return path.removesuffix("/") if path.endswith("/") else f"{path}/"


_may_be_unclean = re.compile("/[/.]").search


def clean_path(path: str) -> str:
    """Return `path` without empty, ``.`` and ``..`` segments, as gorilla/mux cleans it.

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
