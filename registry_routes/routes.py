"""The route table: every URL of the registry API, as data, in each dialect."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from posixpath import commonpath, dirname
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

    >>> [(route.name.value, route.methods) for route in OCI_1_1.routes if "tags" in route.path]
    [('tags', ('GET',))]
    """

    name: RouteName
    """The endpoint."""

    path: str
    """The rule, as `werkzeug.routing.Rule` writes it."""

    methods: tuple[str, ...] | None
    """The methods it takes, `None` for any. GET brings HEAD."""

    spec: str
    """The ids of its endpoints in the distribution-spec, or the document that it comes from."""

    doc: str
    """What it is for."""


@dataclass(frozen=True, eq=False)
class Dialect:
    """A route table, and the converters that its rules use.

    Its routes exclude one another: no path may fit two of them, whatever the method. Of the
    converters, `URLBuilder` wants those called "repository", "tag" and "digest".

    >>> OCI_1_1, OCI_1_1.root
    (Dialect(name='oci-1.1'), '/v2')
    """

    name: str
    routes: tuple[Route, ...] = field(repr=False)
    converters: Mapping[str, type[GrammarConverter]] = field(repr=False)

    @property
    def root(self) -> str:
        """The path that all its routes are under, without its trailing slash."""
        return commonpath([dirname(route.path.partition("<")[0]) for route in self.routes])


_NAME = "/v2/<repository:name>"

#: The OCI distribution-spec 1.1, with Docker's catalog.
OCI_1_1 = Dialect(
    "oci-1.1",
    (
        Route(
            RouteName.BASE,
            "/v2/",
            ("GET",),
            "end-1",
            "Check that this is a registry, and that the client may use it.",
        ),
        # By digest first: built with both, it is the digest that a client asked for.
        Route(
            RouteName.MANIFEST,
            f"{_NAME}/manifests/<digest:digest>",
            ("GET", "PUT", "DELETE"),
            "end-3, end-7a, end-7b, end-9",
            "Pull, push or delete a manifest by its digest.",
        ),
        Route(
            RouteName.MANIFEST,
            f"{_NAME}/manifests/<tag:tag>",
            ("GET", "PUT", "DELETE"),
            "end-3, end-7a, end-9",
            "Pull or push a manifest by a tag, or delete the tag.",
        ),
        Route(
            RouteName.TAGS,
            f"{_NAME}/tags/list",
            ("GET",),
            "end-8a, end-8b",
            "List a repository's tags.",
        ),
        Route(
            RouteName.BLOB,
            f"{_NAME}/blobs/<digest:digest>",
            ("GET", "DELETE"),
            "end-2, end-10",
            "Pull or delete a blob.",
        ),
        Route(
            RouteName.BLOB_UPLOAD,
            f"{_NAME}/blobs/uploads/",
            ("POST",),
            "end-4a, end-4b, end-4c, end-11",
            "Begin the upload of a blob, push it in one go, or mount it from elsewhere.",
        ),
        Route(
            RouteName.BLOB_UPLOAD_CHUNK,
            f"{_NAME}/blobs/uploads/<upload_id:uuid>",
            ("GET", "PATCH", "PUT", "DELETE"),
            "end-5, end-6, end-13, end-14",
            "Ask how far an upload is, send a chunk of it, complete it or cancel it.",
        ),
        Route(
            RouteName.REFERRERS,
            f"{_NAME}/referrers/<digest:digest>",
            ("GET",),
            "end-12a, end-12b",
            "List the manifests whose subject is this one.",
        ),
        Route(
            RouteName.CATALOG,
            "/v2/_catalog",
            ("GET",),
            "Docker Registry HTTP API v2",
            "List the repositories.",
        ),
        Route(
            RouteName.EXTENSION,
            "/v2/_<extension:extension>/<extension:component>/<extension:module>",
            ("GET",),
            "extensions",
            "An extension's endpoint at the registry.",
        ),
        Route(
            RouteName.EXTENSION,
            f"{_NAME}/_<extension:extension>/<extension:component>/<extension:module>",
            ("GET",),
            "extensions",
            "An extension's endpoint at a repository.",
        ),
    ),
    CONVERTERS,
)

_ORIGINAL = "registry/v2/routes.go"

#: Docker 1.5.0, exactly: six routes, which take any method.
DOCKER_1_5 = Dialect(
    "docker-1.5",
    (
        Route(RouteName.BASE, "/v2/", None, _ORIGINAL, "Check that this is a registry."),
        Route(
            RouteName.MANIFEST,
            f"{_NAME}/manifests/<tag:tag>",
            None,
            _ORIGINAL,
            "A manifest, by a tag.",
        ),
        Route(RouteName.TAGS, f"{_NAME}/tags/list", None, _ORIGINAL, "A repository's tags."),
        Route(RouteName.BLOB, f"{_NAME}/blobs/<digest:digest>", None, _ORIGINAL, "A blob."),
        Route(
            RouteName.BLOB_UPLOAD,
            f"{_NAME}/blobs/uploads/",
            None,
            _ORIGINAL,
            "Where the upload of a blob begins.",
        ),
        Route(
            RouteName.BLOB_UPLOAD_CHUNK,
            f"{_NAME}/blobs/uploads/<upload_id:uuid>",
            None,
            _ORIGINAL,
            "The upload of a blob, on its way.",
        ),
    ),
    DOCKER_CONVERTERS,
)

#: The dialects by their names.
DIALECTS = {dialect.name: dialect for dialect in (OCI_1_1, DOCKER_1_5)}


class RegistryRule(Rule):
    """A rule of a route table.

    It brings its dialect's converters, so it means the same in every map, whatever other
    converters go by the names "tag" or "digest" there.
    """

    def __init__(self, string: str, *, route: Route, dialect: Dialect, **options: Any) -> None:
        super().__init__(string, **options)
        self.route = route
        self.dialect = dialect
        #: By variable, in order: those of the dialect, once the rule is in a map.
        self.converters: dict[str, GrammarConverter] = {}
        #: And others, which stand in a prefix or a domain that a factory put before the rule.
        self.foreign: dict[str, BaseConverter] = {}

    def get_empty_kwargs(self) -> dict[str, Any]:
        return {**super().get_empty_kwargs(), "route": self.route, "dialect": self.dialect}

    def get_converter(
        self,
        variable_name: str,
        converter_name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> BaseConverter:
        own = self.dialect.converters.get(converter_name)
        if own is not None:
            self.converters[variable_name] = own(self.map, *args, **kwargs)
            return self.converters[variable_name]
        foreign = super().get_converter(variable_name, converter_name, args, kwargs)
        self.foreign[variable_name] = foreign
        return foreign


class RegistryRules(RuleFactory):
    """The rules of a dialect, for a `werkzeug.routing.Map` of your own.

    They work inside the factories of Werkzeug (`Submount`, `Subdomain`, `EndpointPrefix`), and in
    a map with any converters:

    >>> from werkzeug.routing import EndpointPrefix, Map, Rule
    >>> url_map = Map([
    ...     Rule("/", endpoint="index"),
    ...     EndpointPrefix("registry.", [RegistryRules()]),
    ... ])
    >>> url_map.bind("example.com").match("/v2/library/nginx/tags/list")
    ('registry.tags', {'name': 'library/nginx'})

    Such a map treats slashes and malformed values as Werkzeug does; `RegistryMap`, as a registry.
    """

    def __init__(self, dialect: Dialect = OCI_1_1) -> None:
        if not isinstance(dialect, Dialect):
            raise TypeError(f"dialect {dialect!r} must be a Dialect, such as OCI_1_1")
        self.dialect = dialect

    def get_rules(self, map: Map) -> Iterator[Rule]:
        """A new, unbound rule for each route of the dialect."""
        for route in self.dialect.routes:
            yield RegistryRule(
                route.path,
                endpoint=route.name.value,
                methods=route.methods,
                route=route,
                dialect=self.dialect,
            )
