"""`RegistryMap`: the registry's routes, and your own rules, as a `werkzeug.routing.Map`.

The table matches first, then Werkzeug, and then the table explains what has not matched.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, overload
from urllib.parse import quote

from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
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
from .grammar import SAFE_IN_PATH
from .routes import OCI_1_1, Dialect, RegistryRules
from .table import Meaning, RouteTable, clean_path


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
        """The endpoint (or the rule) of a path and a method, and the values in the path.

        The arguments are those of `werkzeug.routing.MapAdapter.match`. If the path does not match,
        it raises

        - `RequestRedirect`, if the path is a route once it is clean, or with the other ending;
        - `errors.Unsupported`, a `MethodNotAllowed`, if the route does not take the method;
        - the error of a malformed value, such as `errors.NameInvalid`, if that value is all that
          keeps the path from matching;
        - `errors.RouteUnknown`, for any other path under the API;
        - what Werkzeug raises, for all other paths.
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
            # A converter, or the target of an alias, does not accept a value.
            raise NotFound from None

    def _match_slowly(
        self, path: str, method: str, query_args: Mapping[str, Any] | str | None
    ) -> tuple[Rule, Mapping[str, Any]]:
        """The match of a path that is not exactly a route, or not one that takes `method`."""
        table, merges = self.map.table, self.map.merge_slashes
        stripped = f"/{path.lstrip('/')}"  # Werkzeug matches this
        given = path if merges and path[:1] == "/" else stripped
        cleaned = clean_path(given) if merges else given
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
        if cleaned == given and (cleaned == canonical or not self.map.strict_slashes):
            return self.map._rule_at[route.path], values
        raise RequestRedirect(self._location(canonical, query_args))

    def endpoints(self, path_info: str | None = None) -> Mapping[str | None, Any]:
        """Return the endpoint that each method reaches at a path, after a redirect of the registry.

        >>> RegistryMap().bind("registry.example.com").endpoints("/v2/library/nginx/tags/list")
        {'GET': 'tags', 'HEAD': 'tags'}

        The key `None` stands for any other method. The endpoint `None` stands for a redirect of one
        of your own rules.
        """
        endpoints: dict[str | None, Any] = {}
        try:
            endpoints[None], _ = self.match(path_info, "--")
        except MethodNotAllowed as refusal:
            for method in refusal.valid_methods or ():
                try:
                    endpoints[method], _ = self.match(path_info, method)
                except RequestRedirect:  # to the canonical path of the route, or elsewhere
                    endpoints[method] = getattr(refusal, "endpoint", None)
                except HTTPException:  # the rule that takes the method does not serve this path
                    pass
        except HTTPException:
            pass
        return endpoints

    def _location(self, path: str, query_args: Mapping[str, Any] | str | None) -> str:
        """The target of a redirect: a path that starts with one slash only, so it names no host."""
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

        Values that are not variables of the rule go into the query. Raises `ValueError`, which
        names the value and the rule it broke, if a value is malformed, and
        `werkzeug.routing.BuildError` if no rule of the endpoint can be built from these values.
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
    """A `werkzeug.routing.BuildError` that names the variables which the endpoint needs."""

    def __init__(self, error: BuildError, variables: list[list[str]]) -> None:
        super().__init__(error.endpoint, error.values, error.method, error.adapter)
        self.variables = variables

    def __str__(self) -> str:
        choices = ", or with ".join(" and ".join(names) for names in self.variables)
        given = ", ".join(sorted(map(str, self.values))) or "nothing"
        return f"endpoint {self.endpoint!r} must be built with {choices}, not with {given} alone"


class _Watched(RuleFactory):
    """The rules of another factory, each of which is shown to `watch` before a map adds it."""

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

    Paths are redirected to their canonical form, as in Docker 1.5.0 (gorilla/mux with
    ``StrictSlash(true)``). A missing or an extra slash at the end, ``//``, ``.`` and ``..`` get a
    308 to the route that is meant, for every method that the route takes. The ``Location`` is a
    path: it never names a host.

    >>> adapter.match("/v2//library/nginx/tags/list/", "GET")
    Traceback (most recent call last):
        ...
    werkzeug.routing.exceptions.RequestRedirect: 308 Permanent Redirect: /v2/library/nginx/tags/list

    A malformed value is neither matched nor built. The error says what is wrong with it:

    >>> adapter.match("/v2/Nginx/tags/list", "GET")
    Traceback (most recent call last):
        ...
    registry_routes.errors.NameInvalid: 400 Bad Request: repository name 'Nginx' must be lowercase
    >>> adapter.build("tags", {"name": "Nginx"})
    Traceback (most recent call last):
        ...
    ValueError: repository name 'Nginx' must be lowercase

    A method that the route does not take raises `errors.Unsupported`, and any other path under the
    API raises `errors.RouteUnknown`. These are Werkzeug's `MethodNotAllowed` and `NotFound`, with
    the registry's JSON as their body.

    You can add your own rules, as to any map:

    - The registry always answers for the path and method of a route. Your rule for the same path
      and method is accepted, but never matches. For another method it does.
    - Under ``/v2``, only rules that begin with ``/v2`` match: a catch-all such as ``/<path:page>``
      does not answer for the API. (If you have a rule under ``/v2``, a 405 there may also list
      methods that only a catch-all takes.)
    - If you add the routes a second time, as by ``Submount("/mirror", [RegistryRules()])``, these
      treat slashes and errors as Werkzeug does.
    - With ``host_matching``, at a subdomain other than the default one, and for a WebSocket, only
      Werkzeug matches.

    >>> beside = RegistryMap(rules=[Rule("/v2/token", endpoint="token"), Rule("/<path:page>")])
    >>> beside.bind("registry.example.com").match("/v2/token")
    ('token', {})

    :param dialect: the route table: `OCI_1_1`, `DOCKER_1_5`, or a subset of one.
    :param prefix: a path before every route of the registry, such as ``/registry``, without
        variables. Raises `ValueError` for any other.
    :param rules: your own rules.
    :param strict_slashes: whether a path with a missing or an extra slash at its end is redirected;
        if `False`, it is served. If you change the attribute later, this affects the routes of the
        registry at once, and only those of your own rules that you add afterwards.
    :param converters: converters for your own rules, in addition to those of the dialect.
    :param options: any other options of a `werkzeug.routing.Map`.
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
        # The subdomain at which the table applies. If hosts are matched, or if the subdomain is a
        # variable, this is an object that equals no subdomain.
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
        """Add your own rules, as `werkzeug.routing.Map.add` does."""
        super().add(_Watched(rulefactory, self._watch))

    def _watch(self, rule: Rule) -> None:
        if not rule.build_only and self._begins_with_root(rule):
            self._has_rules_under_root = True

    def _begins_with_root(self, rule: Rule) -> bool:
        return self.table.is_under_root(_merged(rule.rule))

    def _may_answer_for_the_api(self, rule: Rule, path: str, method: str) -> bool:
        """Whether a match of `rule` counts for a path under the API's root.

        It does not if the rule is a catch-all, or is one of the registry's, or is shadowed by one.
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
