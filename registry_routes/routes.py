"""The route table: every URL of the registry API, as data, in two dialects.

`OCI_1_1` is the OCI distribution-spec 1.1, with Docker's catalog. `DOCKER_1_5` is the router of
Docker 1.5.0, tested against recorded answers of the original. It has six routes, takes any method,
and needs names of two to five components.

`OCI_1_1` also accepts names with any number of components, and with ``__`` and ``--`` in them;
manifests by digest; referrers, the catalog and extensions.

`DOCKER_1_5` also accepts any method for any route; digests whose hash has any length; and upload
ids with any characters, even with a dot at the start.

Both differ from the original in these ways:

- Redirects are 308. The original's 301 turns a client's POST into a GET.
- Errors under ``/v2/`` are the registry's JSON. The original sends plain text, which clients do not
  read.
- A path with both ``//`` and an extra trailing slash is redirected once, not twice.
- URLs contain the path that the API is mounted under. The original's URL builder loses it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from posixpath import commonpath, dirname
from types import MappingProxyType
from typing import Any

from werkzeug.routing import BaseConverter, Map, Rule, RuleFactory

from .converters import CONVERTERS, DOCKER_CONVERTERS, GrammarConverter

__all__ = ["DIALECTS", "DOCKER_1_5", "OCI_1_1", "Dialect", "RegistryRules", "Route", "RouteName"]


class RouteName(StrEnum):
    """The endpoints, named as in the original (Docker 1.5.0, ``registry/v2/routes.go``).

    Each is a string, so a map's endpoints compare equal to them:

    >>> RouteName.BLOB_UPLOAD == "blob-upload"
    True
    """

    BASE = "base"
    MANIFEST = "manifest"
    TAGS = "tags"
    BLOB = "blob"
    BLOB_UPLOAD = "blob-upload"
    BLOB_UPLOAD_CHUNK = "blob-upload-chunk"
    REFERRERS = "referrers"
    CATALOG = "catalog"
    EXTENSION = "extension"


@dataclass(frozen=True)
class Route:
    """One line of the route table.

    >>> [(route.endpoint, route.methods) for route in OCI_1_1.routes if "tags" in route.path]
    [('tags', ('GET',))]

    - `name`: the endpoint: a `RouteName`, or any other name in your own dialect.
    - `path`: the rule, as `werkzeug.routing.Rule` writes it.
    - `methods`: the methods that the route takes, or `None` for any method. GET implies HEAD,
      unless another route of the same path lists HEAD; see `Dialect.methods`.
    - `spec`: the ids of the endpoint in the distribution-spec, or the document that it comes from.
    - `doc`: what the endpoint is for, in a sentence.
    - `endpoint`: the name as a plain string, which is what a match returns.
    """

    name: str
    path: str
    methods: tuple[str, ...] | None
    spec: str = ""
    doc: str = ""
    endpoint: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.methods, str):
            raise TypeError(
                f"methods must be an iterable of strings, not the string {self.methods!r}"
            )
        object.__setattr__(self, "endpoint", str(self.name))

    def pieces(self) -> list[tuple[str, str, str]]:
        """Return the path in pieces: literal text, or the names of a converter and a variable.

        >>> Route(RouteName.TAGS, "/v2/<repository:name>/tags/list", ("GET",)).pieces()
        [('/v2/', '', ''), ('', 'repository', 'name'), ('/tags/list', '', '')]
        """
        return re.findall(r"([^<>]+)|<(\w+):(\w+)>", self.path)


@dataclass(frozen=True, eq=False)
class Dialect:
    """A route table, and the converters that its paths use.

    These rules hold for every dialect that the constructor accepts:

    - A variable right after the root may contain slashes, as a repository name does. Each other
      variable is one path segment, whatever its grammar allows.
    - Routes may share a path, with or without a trailing slash, if no method is in two of them: an
      endpoint for each method. GET implies HEAD, unless another route of that path lists HEAD.
    - If a path fits several routes that take its method, the route with the most literal segments
      wins, and among these the first.

    >>> OCI_1_1, OCI_1_1.root
    (Dialect(name='oci-1.1'), '/v2')

    - `name`: the dialect's name, such as ``oci-1.1``.
    - `routes`: the routes, in the order that decides between equally specific ones.
    - `converters`: the converter of each kind of value, by the name that the paths use.
    - `left_out`: routes of the API that this dialect does not have. Paths of these routes get a
      plain 404, rather than an error about another route.
    - `root`: the path above all routes, with those left out, without a trailing slash: ``/v2``.

    Raises `ValueError`, which names the route, for a route that cannot work: if a converter is not
    a `GrammarConverter` or changes the value, if something other than a slash follows a variable,
    and so on. `URLBuilder` needs the converters "repository", "tag" and "digest".
    """

    name: str
    routes: tuple[Route, ...] = field(repr=False)
    converters: Mapping[str, type[GrammarConverter]] = field(repr=False)

    left_out: tuple[Route, ...] = field(default=(), repr=False)
    root: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.routes:
            raise ValueError(f"dialect {self.name!r} has no route")
        routes = (*self.routes, *self.left_out)
        for i, route in enumerate(routes):
            # Each route is checked with the root of the routes so far, as if it were the last. With
            # the final root, the error would name "/v1/ping" instead of "/v2/<repository:name>",
            # which follows and does not fit.
            object.__setattr__(self, "root", self._find_root(routes[: i + 1]))
            fault = self._find_fault(route) or self._find_conflict(route, routes[:i])
            if fault:
                raise ValueError(f"route {route.path!r}: {fault}")

    def _find_root(self, routes: Iterable[Route]) -> str:
        """Return the path before the first repository name; without a name, the common folder."""
        folders = []
        for route in routes:
            start, _, rest = route.path.partition("<")
            if start.endswith("/") and self._may_have_slashes(rest.partition(":")[0]):
                return start.rstrip("/")
            folders.append(dirname(f"/{start.lstrip('/')}"))
        return commonpath(folders).rstrip("/")

    def _may_have_slashes(self, kind: str) -> bool:
        # Two samples: nothing can tell it for any pattern. If they miss a slash, a variable below
        # the root is still one segment, by the look-ahead of `write_pattern`.
        grammar = getattr(self.converters.get(kind), "grammar", None)
        return grammar is not None and ("/" in grammar.example or grammar.fits("a/b"))

    def _is_under_root(self, route: Route) -> bool:
        return f"{route.path}/".startswith(f"{self.root}/")

    def _find_fault(self, route: Route) -> str | None:
        """Return the reason that no table can have this route; or `None`."""
        pieces = route.pieces()
        if route.path != "".join(text or f"<{kind}:{name}>" for text, kind, name in pieces):
            return "a variable is written '<converter:variable>'"
        if not route.path.startswith("/"):
            return "the path does not begin with '/'"
        if not self._is_under_root(route):
            return f"the path is not under the root of the other routes, {self.root!r}"
        if re.search(r"//|/\.\.?(?:/|\Z)", route.path):
            return "the path has an empty, '.' or '..' segment"
        if re.search(">[^/]", route.path):
            return "text follows a variable, where only '/' or the end of the path can"
        names = [name for _, _, name in pieces if name]
        for name in names:
            if names.count(name) > 1:
                return f"the variable {name!r} is used twice"
        for _, kind, name in pieces:
            if kind and (fault := self._find_fault_of_converter(kind)):
                return fault
            if kind and name != split_name(self, route)[0] and self._may_have_slashes(kind):
                what = self.converters[kind].grammar.kind
                return f"a {what} may contain '/', so it must come right after '{self.root}/'"
        return self._find_fault_of_example(route)

    def _find_fault_of_converter(self, kind: str) -> str | None:
        converter = self.converters.get(kind)
        if not (isinstance(converter, type) and issubclass(converter, GrammarConverter)):
            return f"the dialect has no GrammarConverter named {kind!r}"
        if (
            converter.to_python is not BaseConverter.to_python
            or converter.regex != converter.grammar.regex
        ):
            return f"the converter {kind!r} changes what its grammar matches"
        try:
            groups = re.compile(f"(?:{converter.grammar.pattern})").groups
        except re.error as error:
            return f"the pattern of {kind!r} cannot be part of a larger one: {error}"
        if groups:
            return f"the pattern of {kind!r} has a capturing group: write '(?:…)', not '(…)'"
        if converter.grammar.fits(""):
            return f"the pattern of {kind!r} matches an empty value"
        if converter.grammar.fits(rooted := f"/{converter.grammar.example}"):
            return f"the pattern of {kind!r} matches {rooted!r}: two slashes would begin a path"
        return None

    def _find_fault_of_example(self, route: Route) -> str | None:
        values = {name: kind.grammar.example for name, kind in self.variables(route).items()}
        path = "".join(text or values[name] for text, _, name in route.pieces())
        found = re.fullmatch(self._write_regex(route), path)
        if found is None or found.groupdict() != values:
            return (
                f"it does not match {path!r}, which is made of the examples of its grammars: a "
                "pattern takes text that follows the value, or its example contains '/'"
            )
        return None

    def _find_conflict(self, route: Route, earlier: Iterable[Route]) -> str | None:
        """Return the reason that this route cannot stand next to earlier ones; or `None`."""
        for other in earlier:
            if not self._is_under_root(other):
                return f"its root is {self.root!r}, and {other.path!r} is not under it"
            if other in self.left_out or _shape_of(other) != _shape_of(route):
                continue
            both = _list_methods(route) & _list_methods(other)
            if route.methods is None or other.methods is None or both:
                method = min(both, default="any method")
                return f"{other.path!r} is the same path, and both take {method}"
        return None

    def methods(self, route: Route) -> frozenset[str] | None:
        """Return the methods that a route takes; `None` for any method.

        If GET is among them, so is HEAD, unless another route of the same path lists HEAD.

        >>> sorted(OCI_1_1.methods(OCI_1_1.routes[0]))
        ['GET', 'HEAD']
        """
        if route.methods is None:
            return None
        siblings = [other for other in self.routes if _shape_of(other) == _shape_of(route)]
        has_head = any("HEAD" in _list_methods(other) for other in siblings)
        return _list_methods(route) | (
            {"HEAD"} if "GET" in _list_methods(route) and not has_head else set()
        )

    def variables(self, route: Route) -> dict[str, type[GrammarConverter]]:
        """Return the converter of each variable of a route, in the order of the path.

        >>> list(OCI_1_1.variables(OCI_1_1.routes[1]))
        ['name', 'digest']
        """
        return {name: self.converters[kind] for _, kind, name in route.pieces() if name}

    def subset(self, *endpoints: str, methods: Iterable[str] | None = None) -> "Dialect":
        """Return a dialect with only some of these routes, for a registry that serves less.

        A map of the result refuses the rest: 404 for an endpoint that was left out, and 405 for a
        method, with the remaining methods in ``Allow``, even if none remain.

        >>> read_only = OCI_1_1.subset("base", "manifest", "blob", methods=["GET"])
        >>> [(route.endpoint, route.methods) for route in read_only.routes]
        [('base', ('GET',)), ('manifest', ('GET',)), ('manifest', ('GET',)), ('blob', ('GET',))]

        :param endpoints: the endpoints to keep; by default all of them.
        :param methods: the methods to keep, an iterable of strings; by default all of them. GET
            implies HEAD.

        Raises `ValueError` for an endpoint or a method that no route has, and if no method is left.
        """
        known = {route.endpoint for route in self.routes}
        for endpoint in endpoints:
            if not isinstance(endpoint, str):
                raise TypeError(
                    f"endpoint {endpoint!r} is not a string: write subset('tags', 'blob')"
                )
            if endpoint not in known:
                raise ValueError(
                    f"endpoint {endpoint!r} is not in the dialect, which has "
                    f"{', '.join(sorted(known))}"
                )
        kept = [route for route in self.routes if route.endpoint in (endpoints or known)]
        left_out = [route for route in self.routes if route not in kept]
        if methods is not None:
            kept = self._limit_methods(kept, methods)
        return Dialect(
            f"{self.name}-subset", tuple(kept), self.converters, (*self.left_out, *left_out)
        )

    def _limit_methods(self, routes: Iterable[Route], methods: Iterable[str]) -> list[Route]:
        """Return `routes` with only those of their methods that are in `methods`."""
        if isinstance(methods, str):
            raise TypeError(f"methods is the string {methods!r}: write [{methods!r}]")
        wanted = [method.upper() for method in methods]
        for method in wanted:
            if not any(self._takes(route, method) for route in self.routes):
                raise ValueError(f"no route of {self.name!r} takes the method {method!r}")
        limited = []
        for route in routes:
            left = [method for method in wanted if self._takes(route, method)]
            if "GET" in wanted and "HEAD" not in wanted and "HEAD" in _list_methods(route):
                left.append("HEAD")
            limited.append(replace(route, methods=tuple(left)))
        if not any(route.methods for route in limited):
            raise ValueError(f"none of these routes takes a method of {wanted!r}")
        return limited

    def _takes(self, route: Route, method: str) -> bool:
        taken = self.methods(route)
        return taken is None or method in taken

    def regex(self, route: Route) -> re.Pattern[str]:
        """Return a regular expression for the percent-decoded path of a route, without a prefix.

        Use it with `re.Pattern.fullmatch`. Its groups are named after the variables.

        >>> [tags] = [route for route in OCI_1_1.routes if route.name == "tags"]
        >>> OCI_1_1.regex(tags).fullmatch("/v2/library/nginx/tags/list").groupdict()
        {'name': 'library/nginx'}

        Raises `ValueError` for a route of another dialect.
        """
        if route not in self.routes:
            raise ValueError(f"route {route.path!r} is not in the dialect {self.name!r}")
        return re.compile(self._write_regex(route))

    def _write_regex(self, route: Route) -> str:
        groups = {
            variable: f"(?P<{variable}>{converter.grammar.pattern})"
            for variable, converter in self.variables(route).items()
        }
        name, tail = split_name(self, route)
        start = f"/{groups[name]}" if name else ""
        return re.escape(self.root) + start + write_pattern(tail, groups)


def split_name(dialect: Dialect, route: Route) -> tuple[str | None, str]:
    """Return the variable right after the root, such as a repository name, and the path after it.

    Without such a variable, return `None` and the path after the root.
    """
    below = route.path.removeprefix(dialect.root)
    found = re.match(r"/<\w+:(\w+)>", below)
    return (found[1], below[found.end() :]) if found else (None, below)


def write_pattern(path: str, groups: Mapping[str, str]) -> str:
    r"""Return a pattern for the end of a path, in which each variable is one segment.

    >>> print(write_pattern("/blobs/<digest:digest>", {"digest": "(?P<digest>.+)"}))
    /blobs/(?=[^/]*+(?:/[^/]*+){0}\Z)(?P<digest>.+)

    :param groups: the pattern of each variable, as a group.
    """
    literal, bracket, rest = path.partition("<")
    pattern = re.escape(literal)
    if bracket:  # fix the number of slashes from the first variable on, so no value can contain any
        pattern += rf"(?=[^/]*+(?:/[^/]*+){{{rest.count('/')}}}\Z)"
    for text, variable in re.findall(r"([^<]+)|<\w+:(\w+)>", bracket + rest):
        pattern += groups[variable] if variable else re.escape(text)
    return pattern


def _shape_of(route: Route) -> str:
    """Return the path without the names of its variables, and without a trailing slash."""
    return re.sub(":[^>]*>", ">", route.path).rstrip("/")


def _list_methods(route: Route) -> frozenset[str]:
    return frozenset(method.upper() for method in route.methods or ())


# The formatter would make these tables harder to read.
# fmt: off

_NAME = "/v2/<repository:name>"
_EXTENSION = "_<extension:extension>/<extension:component>/<extension:module>"

OCI_1_1 = Dialect("oci-1.1", (
    Route(RouteName.BASE, "/v2/", ("GET",),
          spec="end-1", doc="Check that this is a registry, and that the client may use it."),
    # By digest first: if a URL is built with a tag and a digest, it has the digest in its path.
    Route(RouteName.MANIFEST, f"{_NAME}/manifests/<digest:digest>", ("GET", "PUT", "DELETE"),
          spec="end-3, end-7a, end-7b, end-9",
          doc="Pull, push or delete a manifest by its digest."),
    Route(RouteName.MANIFEST, f"{_NAME}/manifests/<tag:tag>", ("GET", "PUT", "DELETE"),
          spec="end-3, end-7a, end-9", doc="Pull or push a manifest by a tag, or delete the tag."),
    Route(RouteName.TAGS, f"{_NAME}/tags/list", ("GET",),
          spec="end-8a, end-8b", doc="List the tags of a repository."),
    Route(RouteName.BLOB, f"{_NAME}/blobs/<digest:digest>", ("GET", "DELETE"),
          spec="end-2, end-10", doc="Pull or delete a blob."),
    Route(RouteName.BLOB_UPLOAD, f"{_NAME}/blobs/uploads/", ("POST",),
          spec="end-4a, end-4b, end-4c, end-11",
          doc="Begin the upload of a blob, push it with one request, or mount it."),
    Route(RouteName.BLOB_UPLOAD_CHUNK, f"{_NAME}/blobs/uploads/<upload_id:uuid>",
          ("GET", "PATCH", "PUT", "DELETE"), spec="end-5, end-6, end-13, end-14",
          doc="Check the progress of an upload, send a chunk, complete it or cancel it."),
    Route(RouteName.REFERRERS, f"{_NAME}/referrers/<digest:digest>", ("GET",),
          spec="end-12a, end-12b", doc="List the manifests whose subject has this digest."),
    Route(RouteName.CATALOG, "/v2/_catalog", ("GET",),
          spec="Docker Registry HTTP API v2", doc="List the repositories."),
    Route(RouteName.EXTENSION, f"/v2/{_EXTENSION}", ("GET",),
          spec="extensions", doc="An extension's endpoint at the registry."),
    Route(RouteName.EXTENSION, f"{_NAME}/{_EXTENSION}", ("GET",),
          spec="extensions", doc="An extension's endpoint at a repository."),
), CONVERTERS)
"""The routes of the OCI distribution-spec 1.1, and Docker's catalog. (The ids of the endpoints are
from the main branch of the specification.)"""

_ORIGINAL = "registry/v2/routes.go"

DOCKER_1_5 = Dialect("docker-1.5", (
    Route(RouteName.BASE, "/v2/", None, spec=_ORIGINAL, doc="Check that this is a registry."),
    Route(RouteName.MANIFEST, f"{_NAME}/manifests/<tag:tag>", None,
          spec=_ORIGINAL, doc="A manifest, by a tag."),
    Route(RouteName.TAGS, f"{_NAME}/tags/list", None,
          spec=_ORIGINAL, doc="The tags of a repository."),
    Route(RouteName.BLOB, f"{_NAME}/blobs/<digest:digest>", None, spec=_ORIGINAL, doc="A blob."),
    Route(RouteName.BLOB_UPLOAD, f"{_NAME}/blobs/uploads/", None,
          spec=_ORIGINAL, doc="Where the upload of a blob begins."),
    Route(RouteName.BLOB_UPLOAD_CHUNK, f"{_NAME}/blobs/uploads/<upload_id:uuid>", None,
          spec=_ORIGINAL, doc="The upload of a blob, in progress."),
), DOCKER_CONVERTERS)
"""The routes of Docker 1.5.0: six, which take any method."""

# fmt: on

DIALECTS = MappingProxyType({dialect.name: dialect for dialect in (OCI_1_1, DOCKER_1_5)})
"""The two dialects, by their names."""


class _DialectRule(Rule):
    """A rule of a route table.

    It uses its dialect's converters, so it means the same in every map, even if the map has other
    converters named "tag" or "digest".
    """

    def __init__(
        self,
        string: str,
        *,
        dialect: Dialect,
        name: str | None,
        methods: Iterable[str] | None,
        **options: Any,
    ) -> None:
        super().__init__(string, methods=methods, **options)
        self.methods = None if methods is None else set(methods)  # without the HEAD that Rule adds
        self.dialect = dialect
        self.name = name

    def get_empty_kwargs(self) -> dict[str, Any]:
        return {**super().get_empty_kwargs(), "dialect": self.dialect, "name": self.name}

    def get_converter(
        self,
        variable_name: str,
        converter_name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> BaseConverter:
        if converter_name not in self.dialect.converters:
            return super().get_converter(variable_name, converter_name, args, kwargs)
        converter = self.dialect.converters[converter_name](self.map, *args, **kwargs)
        converter.part_isolating = variable_name != self.name  # only a name may have slashes
        if re.search(rf":{variable_name}>(?:/|\Z)", self.rule):
            # Before a slash or the end, no shorter value can match. The grammar's own pattern tries
            # none: it takes two thirds of the time, and far less on hostile paths.
            converter.regex = converter.grammar.pattern
        return converter


class RegistryRules(RuleFactory):
    """The rules of a dialect, for any `werkzeug.routing.Map`.

    They work inside Werkzeug's factories (`Submount`, `Subdomain`, `EndpointPrefix`), and in a map
    with any converters:

    >>> from werkzeug.routing import EndpointPrefix, Map, Rule
    >>> url_map = Map([
    ...     Rule("/", endpoint="index"),
    ...     EndpointPrefix("registry.", [RegistryRules()]),
    ... ])
    >>> url_map.bind("example.com").match("/v2/library/nginx/tags/list")
    ('registry.tags', {'name': 'library/nginx'})

    A plain map treats slashes, malformed values and several matching routes as Werkzeug does; a
    `RegistryMap` treats them as a registry does.
    """

    def __init__(self, dialect: Dialect = OCI_1_1) -> None:
        if not isinstance(dialect, Dialect):
            raise TypeError(f"dialect {dialect!r} is not a Dialect, such as OCI_1_1")
        self.dialect = dialect

    def get_rules(self, map: Map) -> Iterator[Rule]:
        """Yield a new, unbound rule for each route of the dialect."""
        for route in self.dialect.routes:
            methods = self.dialect.methods(route)
            yield _DialectRule(
                route.path,
                endpoint=route.endpoint,
                methods=methods,
                build_only=methods == frozenset(),  # such a rule would match nothing
                dialect=self.dialect,
                name=split_name(self.dialect, route)[0],
            )
