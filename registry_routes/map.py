"""`RegistryMap`: a `werkzeug.routing.Map` of the registry's routes, slashes as in Docker 1.5.0."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload
from urllib.parse import quote, unquote, urlsplit

from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import (
    BaseConverter,
    Map,
    MapAdapter,
    RequestRedirect,
    Rule,
    RuleFactory,
    Submount,
)

from .errors import Unsupported
from .expression import other_ending
from .fastpath import SAFE_IN_PATH, FastPath
from .routes import OCI_1_1, Dialect, RegistryRule, RegistryRules

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment
    from werkzeug.wrappers import Request


class RegistryMap(Map):
    """The registry's routes as a `werkzeug.routing.Map`, which matches requests and builds URLs.

    >>> adapter = RegistryMap().bind("registry.example.com", url_scheme="https")
    >>> adapter.match("/v2/library/nginx/manifests/latest", "GET")
    ('manifest', {'name': 'library/nginx', 'tag': 'latest'})
    >>> adapter.build("tags", {"name": "library/nginx", "n": 100}, force_external=True)
    'https://registry.example.com/v2/library/nginx/tags/list?n=100'

    Paths are made canonical as in Docker 1.5.0 (gorilla/mux with ``StrictSlash(true)``): one slash
    too many or too few at the end, ``//``, ``.`` and ``..`` lead by a 308 to the path that names a
    route, whichever of its methods the request has. The ``Location`` is a path, never a host.

    >>> adapter.match("/v2//library/nginx/tags/list/", "GET")
    Traceback (most recent call last):
        ...
    werkzeug.routing.exceptions.RequestRedirect: 308 Permanent Redirect: /v2/library/nginx/tags/list

    The endpoints are those of `RouteName`. The values are strings: ``name``; ``tag`` or ``digest``;
    ``uuid``, of an upload; ``extension``, ``component`` and ``module``. A malformed one is neither
    matched nor built, and the error says what is wrong with it:

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

    Rules of your own go beside the registry's, as in any map, and are treated as in any map; one
    that matches a path as it stands comes before a redirect to a route of the registry.

    :param dialect: the route table: `OCI_1_1` or `DOCKER_1_5`.
    :param prefix: a path before every route of the registry, such as ``/registry``.
    :param rules: rules of your own, beside the registry's.
    :param strict_slashes: `False` to serve a path with a slash too many or too few at its end
        instead of redirecting.
    :param converters: converters for rules of your own, beside those of the dialect.
    :param options: whatever else a `werkzeug.routing.Map` takes.
    """

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
        if prefix and _clean(prefix) != prefix:
            raise ValueError(
                f"prefix {prefix!r} must start with '/' and have no empty, '.' or '..' segment"
            )
        self.dialect = dialect
        self._good_hosts: set[str] = set()
        self._fast_path: FastPath | None = None
        self._rules_lock = RLock()  # a rule factory may match in the map that it is added to
        self._own_rules: list[Any] = list(
            Submount(prefix, [RegistryRules(dialect)]).get_rules(self)
        )
        super().__init__(
            [*self._own_rules, *(rules or ())],
            strict_slashes=strict_slashes,
            converters={**dialect.converters, **(converters or {})},
            **options,
        )
        if self.host_matching or "<" in self.default_subdomain:
            self._own_rules = []  # no fast path for these

    def add(self, rulefactory: RuleFactory) -> None:
        """Add rules of your own. As `werkzeug.routing.Map.add`."""
        with self._rules_lock:
            try:
                super().add(rulefactory)
            finally:
                self._fast_path = None

    def update(self) -> None:
        """As `werkzeug.routing.Map.update`, which a rule added meanwhile would upset."""
        with self._rules_lock:
            super().update()

    def _current_fast_path(self) -> FastPath:
        with self._rules_lock:
            if self._fast_path is None:
                self._fast_path = FastPath(self._own_rules, self)
            return self._fast_path

    def bind(
        self,
        server_name: str,
        script_name: str | None = None,
        subdomain: str | None = None,
        url_scheme: str = "http",
        default_method: str = "GET",
        path_info: str | None = None,
        query_args: Mapping[str, Any] | str | None = None,
    ) -> "RegistryMapAdapter":
        """An adapter for a host, which matches and builds. As `werkzeug.routing.Map.bind`."""
        adapter = super().bind(
            server_name,
            script_name,
            subdomain,
            url_scheme,
            default_method,
            path_info,
            query_args,
        )
        return _bound_as(adapter, RegistryMapAdapter)

    def bind_to_environ(
        self,
        environ: "WSGIEnvironment | Request",
        server_name: str | None = None,
        subdomain: str | None = None,
    ) -> "RegistryMapAdapter":
        """An adapter for a request. As `werkzeug.routing.Map.bind_to_environ`.

        What a match does not need, the adapter gets from `environ` when it is first asked for.
        """
        env: Any = getattr(environ, "environ", environ)
        host = env.get("HTTP_HOST")
        if (
            host in self._good_hosts
            and server_name is None
            and subdomain is None
            and not self.host_matching
            and env["wsgi.url_scheme"] in ("http", "https")
            and "HTTP_UPGRADE" not in env
        ):
            return RegistryMapAdapter.lazily(self, env)
        adapter = _bound_as(self._bind_fully(env, server_name, subdomain), RegistryMapAdapter)
        if host is not None and server_name is None:  # one that Werkzeug does not refuse
            if len(self._good_hosts) >= 1000:
                self._good_hosts.clear()
            self._good_hosts.add(host)
        return adapter

    def _bind_fully(
        self,
        environ: "WSGIEnvironment",
        server_name: str | None = None,
        subdomain: str | None = None,
    ) -> MapAdapter:
        adapter = super().bind_to_environ(environ, server_name, subdomain)
        if "\ufffd" in (adapter.query_args or ""):  # a byte that is no UTF-8: keep it as it was
            query: str = environ["QUERY_STRING"]
            adapter.query_args = quote(query, safe=_SAFE_IN_QUERY, encoding="latin-1")
        return adapter


def _when_asked_for(name: str) -> Any:
    """An attribute that an adapter bound lazily gets from one bound fully, when first needed."""
    return cached_property(lambda adapter: getattr(adapter._fully_bound, name))


class RegistryMapAdapter(MapAdapter):
    """What `RegistryMap.bind` and `RegistryMap.bind_to_environ` return: matches and builds."""

    map: RegistryMap
    _environ: "WSGIEnvironment"

    @classmethod
    def lazily(cls, url_map: RegistryMap, environ: Any) -> "RegistryMapAdapter":
        """An adapter bound to `environ`, as yet without what a match does not need."""
        bound = cls.__new__(cls)
        path: str = environ.get("PATH_INFO", "/")
        bound.path_info = (
            path if path.isascii() else path.encode("latin-1").decode(errors="replace")
        )
        bound.map = url_map
        bound.subdomain = ""
        bound.default_method = environ["REQUEST_METHOD"]
        bound.websocket = False
        bound._environ = dict(environ)  # as it stands now
        return bound

    @cached_property
    def _fully_bound(self) -> MapAdapter:
        return self.map._bind_fully(self._environ)

    server_name: str = _when_asked_for("server_name")
    script_name: str = _when_asked_for("script_name")
    url_scheme: str = _when_asked_for("url_scheme")
    query_args: Mapping[str, Any] | str | None = _when_asked_for("query_args")

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

        As `werkzeug.routing.MapAdapter.match`, but a path that is not canonical (see
        `RegistryMap`) is redirected to the route of the registry that it means, or answered as
        that route, where the route has ``strict_slashes=False``.

        Raises `RequestRedirect`; `errors.Unsupported`, a `MethodNotAllowed`, where the route has
        other methods only; the error of a malformed value, `errors.NameInvalid` say, where it would
        be a route but for that; else `errors.RouteUnknown` under the API, `NotFound` elsewhere.
        """
        path = self.path_info if path_info is None else path_info
        if websocket is None:
            websocket = self.websocket
        fast_path = self.map._fast_path or self.map._current_fast_path()
        hit = None
        if self.subdomain == fast_path.subdomain and not websocket:
            hit = fast_path.fullmatch(path)
            if hit is not None:
                rule, endpoint, methods, groups, _ = fast_path.answers[hit.lastindex]
                if methods is None or (method or self.default_method) in methods:
                    values: Mapping[str, Any] = {name: hit[group] for name, group in groups}
                    return (rule if return_rule else endpoint), values
        method = (method or self.default_method).upper()
        found, values = self._match_slowly(path, fast_path, hit, method, query_args, websocket)
        return (found if return_rule else found.endpoint), values

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

        Raises `ValueError` where a value is outside its grammar, or where another rule of the map
        takes the path, so that it would not match back; and `werkzeug.routing.BuildError` where
        no rule of the endpoint has these variables.
        """
        fast_path = self.map._fast_path or self.map._current_fast_path()
        if type(values) is dict and method is None and self.subdomain == fast_path.subdomain:
            template = fast_path.templates.get((endpoint, *values))
            if template is not None:
                checks, path, in_order = template
                for name, fullmatch in checks:
                    value = values[name]
                    if type(value) is not str or fullmatch(value) is None:
                        break  # Werkzeug and the converters will say what is wrong
                else:
                    path %= in_order(values)
                    if not force_external:
                        return f"{self.script_name.rstrip('/')}/{path}"
                    scheme = self.url_scheme if url_scheme is None else url_scheme
                    if not self.subdomain and scheme in ("http", "https"):
                        return f"{scheme}://{self.server_name}{self.script_name[:-1]}/{path}"
        url = super().build(endpoint, values, method, force_external, append_unknown, url_scheme)
        if fast_path.suspects and self.subdomain == fast_path.subdomain:
            self._check_not_taken(url, endpoint)
        return url

    def _check_not_taken(self, url: str, endpoint: Any) -> None:
        """Raise `ValueError` where another rule takes the URL of one of the registry's."""
        path = unquote(urlsplit(url).path).removeprefix(self.script_name.rstrip("/"))
        methods: Iterable[str] = ["GET"]
        try:
            self._match_registry(path, "--")
        except MethodNotAllowed as error:
            methods = error.valid_methods or ()
        except HTTPException:
            return
        for method in methods:
            rule, values = self._match_registry(path, method)
            if rule.endpoint != endpoint:
                return
            with suppress(HTTPException):
                if self._werkzeugs().match(path, method) == (endpoint, values):
                    return
        raise ValueError(f"URL {url!r} is not built: another rule of the map takes it")

    def _werkzeugs(self) -> MapAdapter:
        """An adapter of Werkzeug's own, bound as this one is.

        (Not `super`, whose `match` may redirect to what `self.build` builds, and that matches.)
        """
        return _bound_as(self, MapAdapter)

    def _match_slowly(
        self,
        path: str,
        fast_path: FastPath,
        hit: re.Match[str] | None,
        method: str,
        query_args: Mapping[str, Any] | str | None,
        websocket: bool,
    ) -> tuple[Rule, Mapping[str, Any]]:
        """The match, where it is not a plain hit; `hit` is what the fast path found in `path`."""
        standing = path if path.startswith("/") else f"/{path}"
        cleaned = _clean(standing)
        if not self.map.merge_slashes:  # then Werkzeug drops slashes at the start, and no others
            standing = cleaned = f"/{path.lstrip('/')}"
        if (
            websocket
            or self.subdomain != fast_path.subdomain
            or not fast_path.decides(standing)
            or not (cleaned == standing or fast_path.decides(cleaned))
        ):
            return self._match_through_werkzeug(
                path, standing, cleaned, method, query_args, websocket
            )
        if cleaned != path:
            hit = fast_path.fullmatch(cleaned)
        if hit is None:
            raise self._not_found(cleaned, method)
        rule, _, _, groups, as_it_stands = fast_path.answers[hit.lastindex]
        if rule.methods is not None and method not in rule.methods:
            raise Unsupported(valid_methods=sorted(rule.methods))
        if cleaned == standing and (as_it_stands or not rule.strict_slashes):
            return rule, {name: hit[group] for name, group in groups}
        canonical = cleaned if as_it_stands else other_ending(cleaned)
        raise RequestRedirect(self._location(canonical, query_args))

    def _match_through_werkzeug(
        self,
        path: str,
        standing: str,
        cleaned: str,
        method: str,
        query_args: Mapping[str, Any] | str | None,
        websocket: bool,
    ) -> tuple[Rule, Mapping[str, Any]]:
        """The match, where other rules have a say.

        First Werkzeug is asked about the path as it stands; then the registry's rules alone, what
        the clean path means with either ending. So no code of a user's runs for a path that was
        not requested.
        """
        forms = cleaned, other_ending(cleaned)
        error: HTTPException
        try:
            found, values = self._werkzeugs().match(path, method, True, query_args, websocket)
            if cleaned == standing or not isinstance(found, RegistryRule):
                return found, values
            error = NotFound()
        except RequestRedirect as redirect:
            targets = [quote(form, safe=SAFE_IN_PATH) for form in forms]
            if redirect.new_url not in [self.make_redirect_url(t, query_args) for t in targets]:
                raise
            error = redirect
        except HTTPException as e:
            error = e
        if websocket or cleaned.endswith("//"):  # the latter where slashes are not merged
            raise error
        refused: set[str] = set()
        for form in forms:
            try:
                rule, values = self._match_registry(form, method)
            except MethodNotAllowed as e:
                refused.update(e.valid_methods or ())
            except HTTPException:
                continue
            else:
                if form == standing:  # Werkzeug prefers another rule, which has said no
                    raise error
                if cleaned == standing and not rule.strict_slashes:
                    return rule, values
                raise RequestRedirect(self._location(form, query_args))
        if refused and not isinstance(error, RequestRedirect):
            refused.update(getattr(error, "valid_methods", None) or ())
            raise Unsupported(valid_methods=sorted(refused))
        raise self._not_found(cleaned, method) if type(error) is NotFound else error

    def _match_registry(self, path: str, method: str) -> tuple[RegistryRule, Mapping[str, Any]]:
        """What Werkzeug matches among the registry's rules alone."""
        fast_path = self.map._current_fast_path()
        adapter = MapAdapter(
            fast_path.registry, self.server_name, "/", self.subdomain, "http", "/", method
        )
        number, values = adapter.match(path)
        return fast_path.registry_rules[number], values

    def _not_found(self, path: str, method: str) -> HTTPException:
        """The error for a clean path that nothing fits."""
        domain = self.server_name if self.map.host_matching else self.subdomain
        diagnosis = self.map._current_fast_path().diagnosis
        return diagnosis.error(domain or "", path, method) or NotFound()

    def _location(self, path: str, query_args: Mapping[str, Any] | str | None) -> str:
        """A redirect's target: a path with one leading slash, so that it cannot name a host."""
        if query_args is None:
            query_args = self.query_args or {}
        location = "/" + f"{self.script_name}{path.lstrip('/')}".lstrip("/")
        location = quote(location, safe=SAFE_IN_PATH)
        query = self.encode_query_args(query_args)
        return f"{location}?{quote(query, safe=_SAFE_IN_QUERY)}" if query else location


_Adapter = TypeVar("_Adapter", bound=MapAdapter)


def _bound_as(adapter: MapAdapter, kind: type[_Adapter]) -> _Adapter:
    """An adapter of this kind, bound as `adapter` is."""
    return kind(
        adapter.map,
        adapter.server_name,
        adapter.script_name,
        adapter.subdomain,
        adapter.url_scheme,
        adapter.path_info,
        adapter.default_method,
        adapter.query_args,
    )


_may_be_unclean = re.compile("/[/.]").search

# For a query, which may have "?" as well, and "%": it is encoded already.
_SAFE_IN_QUERY = "%?" + SAFE_IN_PATH


def _clean(path: str) -> str:
    """`path` without empty, ``.`` and ``..`` segments, as gorilla/mux cleans it.

    (`posixpath.normpath` keeps two leading slashes, and in some Pythons stops at a NUL.)
    """
    if path.startswith("/") and not _may_be_unclean(path):
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


#: The routes of `OCI_1_1`, ready-made.
url_map = RegistryMap()
