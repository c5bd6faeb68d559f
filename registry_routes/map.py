"""`RegistryMap`: the registry's routes, and your own rules, as a `werkzeug.routing.Map`.

One regular expression finds the registry's route, without Werkzeug's matcher and converters. The
map is still a real `Map`: each route is also one of its rules, so it lists, builds and adds rules
as any map does, and Werkzeug's and Flask's own tests pass with it.

The table matches first, then Werkzeug, and then the table explains why nothing matched.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, overload
from urllib.parse import quote

from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import (
    BaseConverter,
    BuildError,
    Map,
    MapAdapter,
    RequestRedirect,
    Rule,
    RuleFactory,
    Submount,
)

from .binding import SAFE_IN_QUERY, LateMap, LateMapAdapter, options_of
from .errors import Unsupported
from .grammar import SAFE_IN_PATH
from .routes import OCI_1_1, Dialect, RegistryRules
from .table import Meaning, RouteTable, clean_path

__all__ = ["RegistryMap", "RegistryMapAdapter", "url_map"]


class RegistryMapAdapter(LateMapAdapter):
    """The adapter that `RegistryMap.bind` and `RegistryMap.bind_to_environ` return.

    It matches paths and builds URLs.

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
        """Return the endpoint of a path and a method, and the values in the path.

        The arguments are those of `werkzeug.routing.MapAdapter.match`; with ``return_rule=True``,
        the result has the rule instead of the endpoint. If the path does not match, it raises

        - `RequestRedirect`, if the path is a route after cleaning, or with a trailing slash added
          or removed;
        - `errors.Unsupported`, a `MethodNotAllowed`, if the route does not take the method;
        - the error of a malformed value, such as `errors.NameInvalid`, if only that value keeps the
          path from matching;
        - `errors.RouteUnknown`, for any other path under the API;
        - Werkzeug's own errors, for all other paths.
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
                return (self.map._rules_of[id(route)] if return_rule else route.endpoint), values
            rule, values, location = self._match_slowly(path, method.upper(), query_args)
            if location is not None:
                raise RequestRedirect(location)
        else:
            rule, values = _match_by_werkzeug(self, path, method, query_args, websocket)
        return (rule if return_rule else rule.endpoint), values

    def _match_slowly(
        self, path: str, method: str, query_args: Mapping[str, Any] | str | None
    ) -> tuple[Rule, Mapping[str, Any], str | None]:
        """Return the rule of a path, its values, and the location if it must be redirected.

        This is the whole principle: the table first, then Werkzeug, then the table explains.
        """
        found = refusal = None
        try:
            found = self._ask_werkzeug(path, method, query_args)
        except HTTPException as error:
            if type(error) is not NotFound:  # a plain 404 says less than the table
                refusal = error
        return (*found, None) if found else self._explain(path, method, query_args, refusal)

    def _ask_werkzeug(
        self, path: str, method: str, query_args: Mapping[str, Any] | str | None
    ) -> tuple[Rule, Mapping[str, Any]] | None:
        """Match a path that the table does not, as Werkzeug does.

        Under the root, only the users' rules that begin there match; `None` if there are none, or
        if the table answers for the path without its leading slashes.
        """
        table, stripped = self.map.table, _strip(path)
        merged = _merge_slashes(stripped) if self.map.merge_slashes else stripped
        if not table.is_under_root(merged):
            return _match_by_werkzeug(self, path, method, query_args)
        if self.map._below_root is None or table.match(stripped, method):
            return None
        return self.map._below_root.match(self, path, method, query_args)

    def _explain(
        self,
        path: str,
        method: str,
        query_args: Mapping[str, Any] | str | None,
        refusal: HTTPException | None,
    ) -> tuple[Rule, Mapping[str, Any], str | None]:
        """Return the route that a path means; if there is none, raise the error that says why."""
        merges = self.map.merge_slashes
        given = path if merges and path.startswith("/") else _strip(path)
        cleaned = clean_path(given) if merges else given
        meaning = self.map.table.explain(cleaned, method)
        if isinstance(meaning, Meaning):
            rule, values = self.map._rules_of[id(meaning.route)], meaning.values
            if cleaned == given and (cleaned == meaning.path or not self.map.strict_slashes):
                return rule, values, None
            return rule, values, self._build_location(meaning.path, query_args)
        if isinstance(meaning, Unsupported):
            more = getattr(refusal, "valid_methods", None) or ()
            meaning.valid_methods = sorted({*(meaning.valid_methods or ()), *more})
            raise meaning
        raise refusal or meaning or NotFound()

    def _build_location(self, path: str, query_args: Mapping[str, Any] | str | None) -> str:
        """Return a redirect's target: a path with one leading slash, so that it names no host."""
        if query_args is None:
            query_args = self.query_args or {}
        location = "/" + f"{self.script_name}{path.lstrip('/')}".lstrip("/")
        location = quote(location, safe=SAFE_IN_PATH, errors="replace")
        query = quote(self.encode_query_args(query_args), safe=SAFE_IN_QUERY, errors="replace")
        return f"{location}?{query}" if query else location

    def endpoints(self, path_info: str | None = None) -> dict[str | None, Any]:
        """Return the endpoint that each method reaches at a path, following the API's redirects.

        >>> adapter = RegistryMap().bind("registry.example.com")
        >>> adapter.endpoints("/v2/library/nginx/blobs/uploads")
        {'POST': 'blob-upload'}

        The key `None` stands for any other method. The endpoint `None` stands for a redirect by one
        of your own rules.

        :param path_info: the path; by default, the request's.
        """
        path = self.path_info if path_info is None else path_info
        table_applies = not self.websocket and self.subdomain == self.map._subdomain
        methods = {method for rule in self.map.iter_rules() for method in rule.methods or ()}

        def find(method: str) -> Any:
            if not table_applies:
                return _match_by_werkzeug(self, path, method, None)[0].endpoint
            found = self.map.table.match(path, method)
            return (found or self._match_slowly(path, method, None))[0].endpoint

        endpoints: dict[str | None, Any] = {}
        for method in [*sorted(methods), None]:
            try:
                endpoints[method] = find(method or "--")
            except RequestRedirect:
                endpoints[method] = None
            except HTTPException:
                continue
        return endpoints

    def build(
        self,
        endpoint: Any,
        values: Mapping[str, Any] | None = None,
        method: str | None = None,
        force_external: bool = False,
        append_unknown: bool = True,
        url_scheme: str | None = None,
    ) -> str:
        """Return the URL of `endpoint` with `values`, like `werkzeug.routing.MapAdapter.build`.

        Values that are not variables of the rule go into the query. Raises `ValueError`, which
        names the value and the rule it broke, if a value is malformed, and
        `werkzeug.routing.BuildError` if these values fit no rule of the endpoint.
        """
        if type(values) is dict and method is None and self.subdomain == self.map._subdomain:
            path = self.map.table.build(endpoint, values, self.default_method)
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
    """A `werkzeug.routing.BuildError` that names the variables that the endpoint needs."""

    def __init__(self, error: BuildError, variables: list[list[str]]) -> None:
        super().__init__(error.endpoint, error.values, error.method, error.adapter)
        self.variables = variables

    def __str__(self) -> str:
        choices = ", or ".join(" and ".join(names) for names in self.variables)
        given = ", ".join(sorted(map(str, self.values))) or "nothing"
        return f"endpoint {self.endpoint!r} takes {choices}, but was given {given}"


def _match_by_werkzeug(
    adapter: MapAdapter,
    path: str,
    method: str | None,
    query_args: Mapping[str, Any] | str | None,
    websocket: bool | None = False,
) -> tuple[Rule, Mapping[str, Any]]:
    """Match as Werkzeug does, among all rules of the adapter's map.

    If a converter or the target of an alias refuses a value, raise `NotFound`.
    """
    try:
        return MapAdapter.match(adapter, path, method, True, query_args, websocket)
    except (ValueError, BuildError):
        raise NotFound from None


class _RulesBelowRoot:
    """The users' rules that begin with the root of the API. Only these match there.

    They are copies in a separate map, where no other rule can match, redirect or refuse.
    """

    def __init__(self) -> None:
        self.map = Map()
        self.originals: dict[int, Rule] = {}

    def add(self, whole: "RegistryMap", original: Rule, copied: Rule) -> None:
        """Add a rule of the whole map. `copied` is a copy that was made before the map bound it."""
        self._copy_settings(whole)
        self.originals[id(copied)] = original
        self.map.add(_SingleRule(copied))

    def match(
        self,
        whole: RegistryMapAdapter,
        path: str,
        method: str,
        query_args: Mapping[str, Any] | str | None,
    ) -> tuple[Rule, Mapping[str, Any]]:
        """Match `path` among these rules only, and return the original rule and the values."""
        self._copy_settings(whole.map)
        rule, values = _match_by_werkzeug(
            _AdapterBelowRoot(self.map, whole), path, method, query_args
        )
        return self.originals[id(rule)], values

    def _copy_settings(self, whole: "RegistryMap") -> None:
        self.map.converters = whole.converters
        self.map.default_subdomain = whole.default_subdomain
        self.map.strict_slashes = whole.strict_slashes
        self.map.merge_slashes = whole.merge_slashes
        self.map.redirect_defaults = whole.redirect_defaults


class _SingleRule(RuleFactory):
    """A factory of one rule, even if the rule's own `get_rules` yields more."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def get_rules(self, map: Map) -> Iterator[Rule]:
        yield self.rule


class _AdapterBelowRoot(MapAdapter):
    """An adapter of `_RulesBelowRoot` whose `match` and `build` use the whole map.

    Functions that are a rule's ``redirect_to`` call these.
    """

    def __init__(self, url_map: Map, whole: RegistryMapAdapter) -> None:
        super().__init__(url_map, **options_of(whole))
        self.whole = whole

    def match(self, *args: Any, **options: Any) -> Any:
        return self.whole.match(*args, **options)

    def build(self, *args: Any, **options: Any) -> str:
        return self.whole.build(*args, **options)


class _WatchedRules(RuleFactory):
    """A factory that yields another's rules, and adds copies of some to `_RulesBelowRoot`.

    The order matters. `get_rules` copies each rule while it is unbound, because a rule can be bound
    only once. Then it yields the rule, and `Map.add` binds it to the whole map. If that succeeds,
    the map asks for the next rule, and the code after the ``yield`` runs: it adds the copy if the
    path is below the root of the API. There, requests match the copy and get the original.
    """

    def __init__(self, rules: RuleFactory, url_map: "RegistryMap") -> None:
        self.rules, self.map = rules, url_map

    def get_rules(self, map: Map) -> Iterator[Rule]:
        for rule in self.rules.get_rules(map):
            copied = copy.copy(rule)  # `Rule.empty` would lose `websocket` and `merge_slashes`
            yield rule  # the map binds it here, or raises an error
            if self.map.table.is_under_root(_merge_slashes(rule.rule)):
                self.map._add_below_root(rule, copied)


class RegistryMap(LateMap[RegistryMapAdapter]):
    """The registry's routes as a `werkzeug.routing.Map`, which matches requests and builds URLs.

    >>> adapter = RegistryMap().bind("registry.example.com", url_scheme="https")
    >>> adapter.match("/v2/library/nginx/manifests/latest", "GET")
    ('manifest', {'name': 'library/nginx', 'tag': 'latest'})
    >>> adapter.build("tags", {"name": "library/nginx", "n": 100}, force_external=True)
    'https://registry.example.com/v2/library/nginx/tags/list?n=100'

    The endpoints are those of `RouteName`. The values are strings: ``name``; ``tag`` or ``digest``;
    ``uuid``, of an upload; ``extension``, ``component`` and ``module``.

    The map redirects paths to their canonical form, as Docker 1.5.0 does (gorilla/mux with
    ``StrictSlash(true)``). A missing or extra trailing slash, ``//``, ``.`` and ``..`` get a 308 to
    the intended route, for every method that the route takes. The ``Location`` is a path: it never
    names a host.

    >>> adapter.match("/v2//library/nginx/tags/list/", "GET")
    Traceback (most recent call last):
        ...
    werkzeug.routing.exceptions.RequestRedirect: 308 Permanent Redirect: /v2/library/nginx/tags/list

    The map neither matches nor builds a malformed value. The error names the value and the rule:

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

    - The registry always answers for the path and method of a route. You may add a rule for the
      same path and method, but it never matches. For another method it does.
    - Under ``/v2``, only rules that begin with ``/v2`` match, redirect or refuse: a catch-all such
      as ``/<path:page>`` never answers there.
    - If you add the routes a second time, as with ``Submount("/mirror", [RegistryRules()])``, the
      second ones treat slashes and errors as Werkzeug does.
    - With ``host_matching``, at a subdomain other than the default one, and for a WebSocket, only
      Werkzeug matches.

    >>> routes = RegistryMap(rules=[Rule("/v2/token", endpoint="token"), Rule("/<path:page>")])
    >>> routes.bind("registry.example.com").match("/v2/token")
    ('token', {})

    :param rules: your own rules.
    :param dialect: the route table, which is `OCI_1_1`, `DOCKER_1_5`, a subset of these, or your
        own.
    :param prefix: a path before every route of the registry, such as ``/registry``, without
        variables. Any other prefix raises `ValueError`.
    :param strict_slashes: whether to redirect a path with a missing or extra trailing slash. If
        `False`, the map matches it. A later change of the attribute affects the registry's routes
        at once, but of your own rules only those that you add afterwards.
    :param converters: converters for your own rules, in addition to those of the dialect.
    :param options: any other options of a `werkzeug.routing.Map`.

    - `table`: the registry's routes as a `RouteTable`, without your own rules.
    - `dialect`: the table's dialect.
    """

    adapter_class = RegistryMapAdapter

    def __init__(
        self,
        rules: Iterable[RuleFactory] | None = None,
        *,
        dialect: Dialect = OCI_1_1,
        prefix: str = "",
        strict_slashes: bool = True,
        converters: Mapping[str, type[BaseConverter]] | None = None,
        **options: Any,
    ) -> None:
        if isinstance(rules, Dialect):
            raise TypeError(f"rules is {rules!r}: write RegistryMap(dialect=…) for a dialect")
        if isinstance(rules, str | RuleFactory):
            raise TypeError(f"rules is {rules!r}: write a list of rules, such as [Rule(…)]")
        registry_rules = RegistryRules(dialect)  # raises an error if it is not a dialect
        self.table: RouteTable = RouteTable(dialect, prefix)
        self._below_root: _RulesBelowRoot | None = None
        super().__init__(
            strict_slashes=strict_slashes,
            converters={**dialect.converters, **(converters or {})},
            **options,
        )
        # The subdomain at which the table applies. With host matching, or if the subdomain is a
        # variable, there is none: then this is an object that equals no subdomain.
        self._subdomain: object = self.default_subdomain
        if self.host_matching or "<" in (self.default_subdomain or ""):
            self._subdomain = object()
        # The rule of each route, by the route's id, because hashing a route would take longer.
        self._rules_of: dict[int, Rule] = {}
        bound = Submount(prefix, [registry_rules]).get_rules(self)
        for route, rule in zip(dialect.routes, bound, strict=True):
            self._rules_of[id(route)] = rule
            super().add(rule)
        for more in rules or ():
            self.add(more)

    @property
    def dialect(self) -> Dialect:
        """The route table's dialect."""
        return self.table.dialect

    def add(self, rulefactory: RuleFactory) -> None:
        """Add your own rules, like `werkzeug.routing.Map.add`."""
        if not hasattr(rulefactory, "get_rules"):
            raise TypeError(f"rule {rulefactory!r} is not a Rule: write Rule(…, endpoint=…)")
        super().add(_WatchedRules(rulefactory, self))

    def _add_below_root(self, original: Rule, copied: Rule) -> None:
        below_root = self._below_root or _RulesBelowRoot()
        below_root.add(self, original, copied)
        self._below_root = below_root


def _strip(path: str) -> str:
    """Return `path` with one leading slash: the form that Werkzeug matches."""
    return f"/{path.lstrip('/')}"


def _merge_slashes(path: str) -> str:
    return re.sub("/{2,}", "/", path) if "//" in path else path


url_map: RegistryMap = RegistryMap()
"""A ready-made map of `OCI_1_1`."""
