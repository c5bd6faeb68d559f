"""The route table: every URL of the registry API, as data, in two dialects.

`OCI_1_1` is the OCI distribution-spec 1.1, with Docker's catalog. `DOCKER_1_5` is the router of
Docker 1.5.0, tested against its recorded answers: six routes, any method, and names of two to five
components.

`OCI_1_1` also accepts names with any number of components, and with ``__`` and ``--`` in them;
manifests by digest; referrers, the catalog and extensions.

`DOCKER_1_5` also accepts any method for any route; digests whose hash has any length; and upload
ids with any characters, even with a dot at the start.

Both differ from the original in these ways:

- Redirects are 308. The original's 301 turns a client's POST into a GET.
- Errors under ``/v2/`` are the registry's JSON. The original sends plain text, which clients do not
  read.
- A path with both ``//`` and an extra slash at the end is redirected once, not twice.
- `build` keeps the path that the API is mounted under. The original's URL builder loses it.
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


class RouteName(StrEnum):
    """The endpoints, under the original's names (Docker 1.5.0, ``registry/v2/routes.go``).

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
    """

    name: str
    """The endpoint: a `RouteName`, or any other name in your own dialect."""

    path: str
    """The rule, as `werkzeug.routing.Rule` writes it."""

    methods: tuple[str, ...] | None
    """The methods that it takes, or `None` for any method. GET implies HEAD."""

    spec: str = ""
    """The ids of its endpoints in the distribution-spec, or the document that it comes from."""

    doc: str = ""
    """What it is for, in a sentence."""

    endpoint: str = field(init=False, repr=False, compare=False)
    """The endpoint as a plain string, which is what a match returns."""

    taken_methods: frozenset[str] | None = field(init=False, repr=False, compare=False)
    """The methods that it takes, with HEAD if there is GET; `None` for any method."""

    def __post_init__(self) -> None:
        if isinstance(self.methods, str):
            raise TypeError(
                f"methods must be an iterable of strings, not the string {self.methods!r}"
            )
        taken = None if self.methods is None else {method.upper() for method in self.methods}
        if taken is not None and "GET" in taken:
            taken.add("HEAD")
        object.__setattr__(self, "endpoint", str(self.name))
        object.__setattr__(self, "taken_methods", None if taken is None else frozenset(taken))

    def pieces(self) -> list[tuple[str, str, str]]:
        """The path in pieces: each is a text, or the name of a converter and that of a variable.

        >>> Route(RouteName.TAGS, "/v2/<repository:name>/tags/list", ("GET",)).pieces()
        [('/v2/', '', ''), ('', 'repository', 'name'), ('/tags/list', '', '')]
        """
        return re.findall(r"([^<>]+)|<(\w+):(\w+)>", self.path)


@dataclass(frozen=True, eq=False)
class Dialect:
    """A route table, and the converters that its rules use.

    Its routes must follow some rules:

    - No path fits two routes, whatever the method, with or without a slash at its end.
    - A variable extends to the next slash or to the end of the path.
    - The converter of a variable is a `GrammarConverter` that does not change the value.
    - A repository name comes right after the root.

    Raises `ValueError` for a route that breaks a rule, and if there are no routes. (A path that
    fits two routes is noticed only if both routes are written the same.) `URLBuilder` needs the
    converters "repository", "tag" and "digest".

    >>> OCI_1_1, OCI_1_1.root
    (Dialect(name='oci-1.1'), '/v2')
    """

    name: str
    routes: tuple[Route, ...] = field(repr=False)
    converters: Mapping[str, type[GrammarConverter]] = field(repr=False)

    left_out: tuple[Route, ...] = field(default=(), repr=False)
    """Routes of the API that this dialect does not have. A path of one of them is a plain 404, and
    not a malformed path of another route."""

    def __post_init__(self) -> None:
        if not self.routes:
            raise ValueError(f"dialect {self.name!r} must have a route")
        paths = set()
        for route in self.routes:
            if fault := self._fault_of(route):
                raise ValueError(f"route {route.path!r} {fault}")
            path = re.sub(":[^>]*>", ">", route.path).rstrip("/")
            if path in paths:
                raise ValueError(f"route {route.path!r} must not have the path of another route")
            paths.add(path)

    def _fault_of(self, route: Route) -> str | None:
        written = "".join(text or f"<{kind}:{name}>" for text, kind, name in route.pieces())
        if route.path != written:
            return "must write its variables as '<converter:variable>'"
        if re.search(">[^/]", route.path):
            return "must have a '/' or its end after each variable"
        for _, kind, name in route.pieces():
            if not kind:
                continue
            converter = self.converters.get(kind)
            if converter is None or not issubclass(converter, GrammarConverter):
                return f"must have a GrammarConverter for {kind!r}"
            if (
                converter.to_python is not BaseConverter.to_python
                or converter.regex != converter.grammar.regex
            ):
                return f"must have a converter for {kind!r} that keeps what its grammar matches"
            comes_first = route.path.startswith(f"{self.root}/<{kind}:{name}>")
            if not comes_first and converter.grammar.fits("a/b"):
                return f"must have its {converter.grammar.kind} right after '{self.root}/'"
        return None

    def variables(self, route: Route) -> dict[str, type[GrammarConverter]]:
        """The variables of a route, in order, each with its converter.

        >>> list(OCI_1_1.variables(OCI_1_1.routes[1]))
        ['name', 'digest']
        """
        return {name: self.converters[kind] for _, kind, name in route.pieces() if name}

    @property
    def root(self) -> str:
        """The path above all its routes, and those left out; without a trailing slash."""
        routes = (*self.routes, *self.left_out)
        return commonpath([dirname(route.path.partition("<")[0]) for route in routes]).rstrip("/")

    def subset(self, *endpoints: str, methods: Iterable[str] | None = None) -> "Dialect":
        """A dialect with only some of these routes, for a registry that does not serve them all.

        A map of it refuses the others: 404, or 405 with the methods that are left.

        >>> read_only = OCI_1_1.subset("base", "manifest", "blob", methods=["GET"])
        >>> [(route.endpoint, route.methods) for route in read_only.routes]
        [('base', ('GET',)), ('manifest', ('GET',)), ('manifest', ('GET',)), ('blob', ('GET',))]

        :param endpoints: the endpoints to keep; all of them if none is given.
        :param methods: the methods to keep, as an iterable of strings; all of them if it is `None`.
            GET implies HEAD. A route that takes none of these methods is left out.

        Raises `ValueError` for an endpoint or a method that no route has, and if no route is left.
        """
        known = {route.endpoint for route in self.routes}
        if unknown := sorted(set(endpoints) - known):
            raise ValueError(f"endpoint {unknown[0]!r} must be one of {', '.join(sorted(known))}")
        routes = [route for route in self.routes if route.endpoint in (endpoints or known)]
        if methods is not None:
            routes = self._limited(routes, methods)
        if not routes:
            raise ValueError(f"a subset of {self.name!r} must have a route")
        kept = {route.path for route in routes}
        left_out = [route for route in self.routes if route.path not in kept]
        return Dialect(
            f"{self.name}-subset", tuple(routes), self.converters, (*self.left_out, *left_out)
        )

    def _limited(self, routes: Iterable[Route], methods: Iterable[str]) -> list[Route]:
        """`routes`, with only these of their methods."""
        if isinstance(methods, str):
            raise TypeError(f"methods {methods!r} must be several strings, not one")
        wanted = [method.upper() for method in methods]
        taken = [route.taken_methods for route in self.routes]
        for method in wanted:
            if all(some is not None and method not in some for some in taken):
                raise ValueError(f"method {method!r} must be one that a route takes")
        limited = []
        for route in routes:
            left = [m for m in wanted if route.taken_methods is None or m in route.taken_methods]
            if left:
                limited.append(replace(route, methods=tuple(left)))
        return limited

    def regex(self, route: Route) -> re.Pattern[str]:
        """A regular expression for the path of a route, percent-decoded and without a prefix.

        Use it with `re.Pattern.fullmatch`. Its groups have the names of the variables.

        >>> [tags] = [route for route in OCI_1_1.routes if route.name == "tags"]
        >>> OCI_1_1.regex(tags).fullmatch("/v2/library/nginx/tags/list").groupdict()
        {'name': 'library/nginx'}

        Raises `ValueError` for a route of another dialect.
        """
        if route not in self.routes:
            raise ValueError(f"route {route.path!r} must be one of the dialect {self.name!r}")
        return re.compile(
            "".join(
                re.escape(text) or f"(?P<{variable}>{self.converters[kind].grammar.pattern})"
                for text, kind, variable in route.pieces()
            )
        )


# The formatter would make these tables harder to read.
# fmt: off

_NAME = "/v2/<repository:name>"
_EXTENSION = "_<extension:extension>/<extension:component>/<extension:module>"

#: The OCI distribution-spec 1.1, with Docker's catalog. (The ids are from its main branch.)
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
          spec="end-12a, end-12b", doc="List the manifests whose subject is this one."),
    Route(RouteName.CATALOG, "/v2/_catalog", ("GET",),
          spec="Docker Registry HTTP API v2", doc="List the repositories."),
    Route(RouteName.EXTENSION, f"/v2/{_EXTENSION}", ("GET",),
          spec="extensions", doc="An extension's endpoint at the registry."),
    Route(RouteName.EXTENSION, f"{_NAME}/{_EXTENSION}", ("GET",),
          spec="extensions", doc="An extension's endpoint at a repository."),
), CONVERTERS)

_ORIGINAL = "registry/v2/routes.go"

#: Docker 1.5.0, exactly: six routes, which take any method.
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

# fmt: on

#: The dialects by their names.
DIALECTS = MappingProxyType({dialect.name: dialect for dialect in (OCI_1_1, DOCKER_1_5)})


class _DialectRule(Rule):
    """A rule of a route table.

    It uses its dialect's converters, so it means the same in every map, even in a map with other
    converters named "tag" or "digest".
    """

    def __init__(self, string: str, *, dialect: Dialect, **options: Any) -> None:
        super().__init__(string, **options)
        self.dialect = dialect

    def get_empty_kwargs(self) -> dict[str, Any]:
        return {**super().get_empty_kwargs(), "dialect": self.dialect}

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
        if re.search(rf":{variable_name}>(?:/|\Z)", self.rule):
            # Before a slash or the end, nothing is gained by trying a shorter value. The pattern
            # never does: it takes two thirds of the time, and far less on hostile paths.
            converter.regex = converter.grammar.pattern
        return converter


class RegistryRules(RuleFactory):
    """The rules of a dialect, for any `werkzeug.routing.Map`.

    They work inside the factories of Werkzeug (`Submount`, `Subdomain`, `EndpointPrefix`), and in
    a map with any converters:

    >>> from werkzeug.routing import EndpointPrefix, Map, Rule
    >>> url_map = Map([
    ...     Rule("/", endpoint="index"),
    ...     EndpointPrefix("registry.", [RegistryRules()]),
    ... ])
    >>> url_map.bind("example.com").match("/v2/library/nginx/tags/list")
    ('registry.tags', {'name': 'library/nginx'})

    A plain map treats slashes and malformed values as Werkzeug does. A `RegistryMap` treats them as
    a registry does.
    """

    def __init__(self, dialect: Dialect = OCI_1_1) -> None:
        if not isinstance(dialect, Dialect):
            raise TypeError(f"dialect {dialect!r} must be a Dialect, such as OCI_1_1")
        self.dialect = dialect

    def get_rules(self, map: Map) -> Iterator[Rule]:
        """A new, unbound rule for each route of the dialect."""
        for route in self.dialect.routes:
            yield _DialectRule(
                route.path,
                endpoint=route.endpoint,
                methods=route.methods,
                dialect=self.dialect,
            )
