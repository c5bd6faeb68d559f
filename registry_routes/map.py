"""`RegistryMap`: a `werkzeug.routing.Map` of the registry's routes, slashes as in Docker 1.5.0."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, overload
from urllib.parse import quote

from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import (
    BaseConverter,
    BuildError,
    Map,
    RequestRedirect,
    Rule,
    RuleFactory,
    Submount,
)

from .binding import SAFE_IN_QUERY, LateMap, LateMapAdapter
from .errors import Unsupported
from .routes import OCI_1_1, Dialect, RegistryRules
from .table import SAFE_IN_PATH, Meaning, RouteTable, clean_path


class RegistryMapAdapter(LateMapAdapter):
    """What `RegistryMap.bind` and `RegistryMap.bind_to_environ` return. It matches and builds.

    >>> adapter = RegistryMap().bind("registry.example.com")
    >>> adapter.allowed_methods("/v2/library/nginx/tags/list")
    ['GET', 'HEAD']
    """

    map: "RegistryMap"

    @overload
    def match(
        self,
        path_info: str | None = None,
        method: str | None = None,
        return_rule: Literal[False] = False,
        query_args: Mapping[str, Any] | str | None = None,
        websocket: bool | None = None,
    ) -> tuple[Any, Mapping[str, Any]]: ...

    @overload
    def match(
        self,
        path_info: str | None = None,
        method: str | None = None,
        return_rule: Literal[True] = True,
        query_args: Mapping[str, Any] | str | None = None,
        websocket: bool | None = None,
    ) -> tuple[Rule, Mapping[str, Any]]: ...

    def match(
        self,
        path_info: str | None = None,
        method: str | None = None,
        return_rule: bool = False,
        query_args: Mapping[str, Any] | str | None = None,
        websocket: bool | None = None,
    ) -> tuple[Any, Mapping[str, Any]]:
        """The endpoint (or the rule) and the values that `path_info` and `method` name.

        As `werkzeug.routing.MapAdapter.match`, on the principle of `RegistryMap`: the table first,
        then Werkzeug, then the table explains.

        Raises `RequestRedirect`; `errors.Unsupported`, a `MethodNotAllowed`, if the route takes
        other methods only; the error of a malformed value, such as `errors.NameInvalid`, if that
        value is all that keeps the path from matching; `errors.RouteUnknown` for any other path
        under the API; and elsewhere what Werkzeug raises.
        """
        path = self.path_info if path_info is None else path_info
        if websocket is None:
            websocket = self.websocket
        values: Mapping[str, Any]
        if not websocket and self.subdomain == self.map._subdomain:
            method = method or self.default_method
            found = self.map.table.match(path, method)
            if found is not None:
                route, values = found
                return (self.map._rule_at[route.path] if return_rule else route.endpoint), values
            rule, values = self._match_slowly(path, method.upper(), query_args)
        else:
            rule, values = self._match_by_werkzeug(path, method, query_args, websocket)
        return (rule if return_rule else rule.endpoint), values

    def _match_by_werkzeug(
        self,
        path: str,
        method: str | None,
        query_args: Mapping[str, Any] | str | None,
        websocket: bool | None,
    ) -> tuple[Rule, Mapping[str, Any]]:
        try:
            return super().match(path, method, True, query_args, websocket)
        except (ValueError, BuildError):
            # A value that a converter, or the target of an alias, does not take.
            raise NotFound from None

    def _match_slowly(
        self, path: str, method: str, query_args: Mapping[str, Any] | str | None
    ) -> tuple[Rule, Mapping[str, Any]]:
        """The match of a path that is not a route as it stands, or not by `method`."""
        table, merges = self.map.table, self.map.merge_slashes
        stripped = f"/{path.lstrip('/')}"  # as Werkzeug takes it
        standing = path if merges and path[:1] == "/" else stripped
        cleaned = clean_path(standing) if merges else standing
        under_root = table.is_under_root(_merged(stripped) if merges else stripped)
        error: HTTPException = NotFound()
        if self.map._has_rules_under_root or not under_root:
            try:
                rule, values = self._match_by_werkzeug(path, method, query_args, False)
            except HTTPException as e:
                error = e
            else:
                if not under_root or self.map._may_answer_for_the_api(rule, stripped, method):
                    return rule, values
        if not under_root and type(error) is not NotFound:
            raise error
        meaning = table.explain(cleaned, method)
        if not isinstance(meaning, Meaning):
            raise error if type(error) is not NotFound else meaning or error
        route, values, canonical = meaning
        if route.taken_methods is not None and method not in route.taken_methods:
            others = getattr(error, "valid_methods", None) or ()
            methods = sorted(route.taken_methods.union(others))
            raise Unsupported(valid_methods=methods, endpoint=route.endpoint)
        if cleaned == standing and (cleaned == canonical or not self.map.strict_slashes):
            return self.map._rule_at[route.path], values
        raise RequestRedirect(self._location(canonical, query_args))

    def _location(self, path: str, query_args: Mapping[str, Any] | str | None) -> str:
        """The target of a redirect: a path with one slash at its start, so it names no host."""
        if query_args is None:
            query_args = self.query_args or {}
        location = "/" + f"{self.script_name}{path.lstrip('/')}".lstrip("/")
        location = quote(location, safe=SAFE_IN_PATH, errors="replace")
        query = quote(self.encode_query_args(query_args), safe=SAFE_IN_QUERY, errors="replace")
        return f"{location}?{query}" if query else location

    def build(
        self,
        endpoint: Any,
        values: Mapping[str, Any] | None = None,
        method: str | None = None,
        force_external: bool = False,
        append_unknown: bool = True,
        url_scheme: str | None = None,
    ) -> str:
        """The URL of `endpoint` with `values`, as `werkzeug.routing.MapAdapter.build`.

        Values that the rule does not have become the query. Raises `ValueError`, which names the
        value and the rule it broke, if a value is malformed; `werkzeug.routing.BuildError` if no
        rule of the endpoint has these variables.
        """
        if type(values) is dict and method is None and self.subdomain == self.map._subdomain:
            path = self.map.table.build(endpoint, values)
            if path is not None:
                if not force_external:
                    return self.script_name.rstrip("/") + path
                scheme = self.url_scheme if url_scheme is None else url_scheme
                if not self.subdomain and scheme in ("http", "https"):
                    return f"{scheme}://{self.server_name}{self.script_name[:-1]}{path}"
        try:
            return super().build(
                endpoint, values, method, force_external, append_unknown, url_scheme
            )
        except BuildError as error:
            variables = self.map.table.variables(endpoint)
            if variables and all(set(names) - error.values.keys() for names in variables):
                raise RouteNotBuilt(error, variables) from None
            raise


class RouteNotBuilt(BuildError):
    """A `werkzeug.routing.BuildError` that names the variables of an endpoint of the registry."""

    def __init__(self, error: BuildError, variables: list[list[str]]) -> None:
        super().__init__(error.endpoint, error.values, error.method, error.adapter)
        self.variables = variables

    def __str__(self) -> str:
        choices = ", or with ".join(" and ".join(names) for names in self.variables)
        given = ", ".join(sorted(map(str, self.values))) or "nothing"
        return f"endpoint {self.endpoint!r} must be built with {choices}, not with {given} alone"


class _Watched(RuleFactory):
    """Rules on their way into a map, each shown to `watch` first."""

    def __init__(self, rules: RuleFactory, watch: Callable[[Rule], None]) -> None:
        self.rules, self.watch = rules, watch

    def get_rules(self, map: Map) -> Iterator[Rule]:
        for rule in self.rules.get_rules(map):
            self.watch(rule)
            yield rule


class RegistryMap(LateMap[RegistryMapAdapter]):
    """The registry's routes as a `werkzeug.routing.Map`, which matches requests and builds URLs.

    >>> adapter = RegistryMap().bind("registry.example.com", url_scheme="https")
    >>> adapter.match("/v2/library/nginx/manifests/latest", "GET")
    ('manifest', {'name': 'library/nginx', 'tag': 'latest'})
    >>> adapter.build("tags", {"name": "library/nginx", "n": 100}, force_external=True)
    'https://registry.example.com/v2/library/nginx/tags/list?n=100'

    The endpoints are those of `RouteName`. The values are strings: ``name``; ``tag`` or ``digest``;
    ``uuid``, of an upload; ``extension``, ``component`` and ``module``.

    Paths are made canonical as in Docker 1.5.0 (gorilla/mux with ``StrictSlash(true)``). One slash
    too many or too few at the end, ``//``, ``.`` and ``..`` lead by a 308 to the path of the route
    that is meant, for every method that the route takes. The ``Location`` is a path, never a host.

    >>> adapter.match("/v2//library/nginx/tags/list/", "GET")
    Traceback (most recent call last):
        ...
    werkzeug.routing.exceptions.RequestRedirect: 308 Permanent Redirect: /v2/library/nginx/tags/list

    A malformed value is neither matched nor built, and the error says what is wrong with it:

    >>> adapter.match("/v2/Nginx/tags/list", "GET")
    Traceback (most recent call last):
        ...
    registry_routes.errors.NameInvalid: 400 Bad Request: repository name 'Nginx' must be lowercase
    >>> adapter.build("tags", {"name": "Nginx"})
    Traceback (most recent call last):
        ...
    ValueError: repository name 'Nginx' must be lowercase

    A method that a route does not take is an `errors.Unsupported`, and any other path under the API
    an `errors.RouteUnknown`: Werkzeug's `MethodNotAllowed` and `NotFound`, as the registry's JSON.

    Your own rules go beside the registry's, as in any map:

    - A path and method of a route is always the registry's. A rule that takes the same is accepted,
      and never matches; for another method, it does.
    - Under ``/v2``, only rules that begin with ``/v2`` match: a catch-all such as ``/<path:page>``
      does not answer for the API. (Once you have such a rule, Werkzeug is asked as well, so a 405
      may name methods that only a catch-all takes.)
    - Routes that are added again, as by ``Submount("/mirror", [RegistryRules()])``, have Werkzeug's
      own slashes and errors.
    - With ``host_matching``, at a subdomain other than the default one, and for a WebSocket, all is
      Werkzeug's.

    >>> beside = RegistryMap(rules=[Rule("/v2/token", endpoint="token"), Rule("/<path:page>")])
    >>> beside.bind("registry.example.com").match("/v2/token")
    ('token', {})

    :param dialect: the route table: `OCI_1_1`, `DOCKER_1_5`, or a subset of one.
    :param prefix: a path before every route of the registry, such as ``/registry``, with no
        variables.
    :param rules: your own rules, beside the registry's.
    :param strict_slashes: whether a slash too many or too few at the end of a path is redirected;
        if `False`, the path is served. It may be changed later, for the routes of the registry; a
        rule of yours has what the map had when the rule was added.
    :param converters: converters for your own rules, beside those of the dialect.
    :param options: whatever else a `werkzeug.routing.Map` takes.
    """

    adapter_class = RegistryMapAdapter

    def __init__(
        self,
        dialect: Dialect = OCI_1_1,
        *,
        prefix: str = "",
        rules: Iterable[RuleFactory] | None = None,
        strict_slashes: bool = True,
        converters: Mapping[str, type[BaseConverter]] | None = None,
        **options: Any,
    ) -> None:
        registry_rules = RegistryRules(dialect)  # it refuses what is not a dialect
        self.table: RouteTable = RouteTable(dialect, prefix)
        """What a path means to the registry."""
        self._has_rules_under_root = False
        super().__init__(
            strict_slashes=strict_slashes,
            converters={**dialect.converters, **(converters or {})},
            **options,
        )
        # Where the table applies: nothing equals this if hosts are matched or it is a variable.
        self._subdomain: object = self.default_subdomain
        if self.host_matching or "<" in (self.default_subdomain or ""):
            self._subdomain = object()
        #: The rule of each route, by the path of the route.
        self._rule_at: dict[str, Rule] = {}
        bound = Submount(prefix, [registry_rules]).get_rules(self)
        for route, rule in zip(dialect.routes, bound, strict=True):
            self._rule_at[route.path] = rule
            super().add(rule)
        for more in rules or ():
            self.add(more)

    @property
    def dialect(self) -> Dialect:
        """The route table's dialect."""
        return self.table.dialect

    def add(self, rulefactory: RuleFactory) -> None:
        """Add your own rules. As `werkzeug.routing.Map.add`."""
        super().add(_Watched(rulefactory, self._watch))

    def _watch(self, rule: Rule) -> None:
        if not rule.build_only and self._begins_with_root(rule):
            self._has_rules_under_root = True

    def _begins_with_root(self, rule: Rule) -> bool:
        return self.table.is_under_root(_merged(rule.rule))

    def _may_answer_for_the_api(self, rule: Rule, path: str, method: str) -> bool:
        """Whether a hit of `rule` counts for a path under the API's root.

        It does not if the rule is a catch-all, or one of the registry's, or shadowed by one.
        """
        return (
            self._begins_with_root(rule)
            and all(rule is not one for one in self._rule_at.values())
            and self.table.match(path, method) is None
        )


def _merged(path: str) -> str:
    return re.sub("/{2,}", "/", path) if "//" in path else path


#: The routes of `OCI_1_1`, ready-made.
url_map: RegistryMap = RegistryMap()
