"""`RegistryMap`: a `werkzeug.routing.Map` of the registry's routes, slashes handled as there."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, overload
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

from .fastpath import FastPath, other_ending
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

    A value that is outside the grammar is not built:

    >>> adapter.build("tags", {"name": "library/Nginx"})
    Traceback (most recent call last):
        ...
    ValueError: repository name 'library/Nginx' must be lowercase

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
        if prefix.strip("/") and _clean(prefix) != prefix:
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
        if self.host_matching or "<" in prefix:  # no fast path for these
            self._own_rules = []

    def add(self, rulefactory: RuleFactory) -> None:
        """As `werkzeug.routing.Map.add`."""
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
        """As `werkzeug.routing.Map.bind`."""
        return RegistryMapAdapter.of(
            super().bind(
                server_name,
                script_name,
                subdomain,
                url_scheme,
                default_method,
                path_info,
                query_args,
            )
        )

    def bind_to_environ(
        self,
        environ: "WSGIEnvironment | Request",
        server_name: str | None = None,
        subdomain: str | None = None,
    ) -> "RegistryMapAdapter":
        """As `werkzeug.routing.Map.bind_to_environ`.

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
        adapter = RegistryMapAdapter.of(self._bind_fully(env, server_name, subdomain))
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
    def of(cls, adapter: MapAdapter) -> "RegistryMapAdapter":
        """An adapter bound as `adapter` is."""
        return cls(
            adapter.map,
            adapter.server_name,
            adapter.script_name,
            adapter.subdomain,
            adapter.url_scheme,
            adapter.path_info,
            adapter.default_method,
            adapter.query_args,
        )

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

        Raises `RequestRedirect`, and `MethodNotAllowed` where the route has other methods only;
        `NotFound` where there is no such route.
        """
        path = self.path_info if path_info is None else path_info
        if websocket is None:
            websocket = self.websocket
        fast_path = self.map._fast_path or self.map._current_fast_path()
        if self.subdomain == fast_path.subdomain and not websocket:
            hit = fast_path.fullmatch(path)
            if hit is not None:
                rule, endpoint, methods, groups, _ = fast_path.answers[hit.lastindex]
                if methods is None or (method or self.default_method) in methods:
                    values: Mapping[str, Any] = {name: hit[group] for name, group in groups}
                    return (rule if return_rule else endpoint), values
        method = (method or self.default_method).upper()
        found, values = self._match_slowly(path, fast_path, method, query_args, websocket)
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
            self._check_not_taken(url, endpoint, fast_path)
        return url

    def _check_not_taken(self, url: str, endpoint: Any, fast_path: FastPath) -> None:
        """Raise `ValueError` where another rule takes the URL of one of the registry's."""
        path = unquote(urlsplit(url).path).removeprefix(self.script_name.rstrip("/"))
        registry = self._registry_alone(fast_path)
        for method in registry.allowed_methods(path) or ["GET"]:
            try:
                number, values = registry.match(path, method)
            except HTTPException:
                return
            if fast_path.registry_rules[number].endpoint != endpoint:
                return
            with suppress(HTTPException):
                if self._werkzeugs().match(path, method) == (endpoint, values):
                    return
        raise ValueError(f"URL {url!r} is not built: another rule of the map takes it")

    def _werkzeugs(self) -> MapAdapter:
        """An adapter of Werkzeug's own, bound as this one is."""
        return MapAdapter(
            self.map,
            self.server_name,
            self.script_name,
            self.subdomain,
            self.url_scheme,
            self.path_info,
            self.default_method,
            self.query_args,
        )

    def _registry_alone(self, fast_path: FastPath) -> MapAdapter:
        return MapAdapter(
            fast_path.registry, self.server_name, "/", self.subdomain, "http", "/", "GET"
        )

    def _match_slowly(
        self,
        path: str,
        fast_path: FastPath,
        method: str,
        query_args: Mapping[str, Any] | str | None,
        websocket: bool,
    ) -> tuple[Rule, Mapping[str, Any]]:
        """The match, where it is not a plain hit.

        First Werkzeug is asked about the path as it stands, unless no rule but the registry's has
        a say in it. Then the registry's rules alone are asked what the clean path means to them.
        """
        standing = path if path.startswith("/") else f"/{path}"
        cleaned = _clean(standing)
        if not self.map.merge_slashes:  # then Werkzeug drops slashes at the start, and no others
            standing = cleaned = f"/{path.lstrip('/')}"
        error: HTTPException = NotFound()
        decided = (
            not websocket
            and self.subdomain == fast_path.subdomain
            and fast_path.decides(standing)
            and fast_path.decides(cleaned)
        )
        if not decided:
            try:
                rule, values = self._werkzeugs().match(path, method, True, query_args, websocket)
                if cleaned == standing or not isinstance(rule, RegistryRule):
                    return rule, values
            except RequestRedirect as redirect:
                if not self._leads_to(redirect, cleaned, query_args):
                    raise
                error = redirect
            except HTTPException as e:
                error = e
        if websocket or cleaned.endswith("//"):  # the latter where slashes are not merged
            raise error
        try:
            found = self._match_registry(cleaned, fast_path, method, decided)
        except MethodNotAllowed as refused:
            if isinstance(error, RequestRedirect):  # another rule takes this method
                raise error from None
            allowed = {
                *(refused.valid_methods or ()),
                *(getattr(error, "valid_methods", None) or ()),
            }
            raise MethodNotAllowed(valid_methods=sorted(allowed)) from None
        if found is None or (not decided and standing == found[2]):
            raise error
        rule, values, canonical = found
        if standing == canonical or (standing == cleaned and not rule.strict_slashes):
            return rule, values
        raise RequestRedirect(self._location(canonical, query_args))

    def _leads_to(
        self,
        redirect: RequestRedirect,
        path: str,
        query_args: Mapping[str, Any] | str | None,
    ) -> bool:
        """Whether Werkzeug's redirect is one to `path`, with either ending."""
        return redirect.new_url in [
            self.make_redirect_url(quote(form, safe=_SAFE_IN_PATH), query_args)
            for form in (path, other_ending(path))
        ]

    def _match_registry(
        self, path: str, fast_path: FastPath, method: str, decided: bool
    ) -> tuple[RegistryRule, Mapping[str, Any], str] | None:
        """The registry's rule that a clean path fits with either ending, its values, and the path
        with the ending that the rule has: by the fast path where that decides.

        No other rule is asked, and so no code of a user's runs for a path that was not requested.
        Raises `MethodNotAllowed` where only the method does not fit.
        """
        allowed: set[str] = set()
        if decided:
            hit = fast_path.fullmatch(path)
            if hit is None:
                return None
            rule, _, _, groups, as_it_stands = fast_path.answers[hit.lastindex]
            if rule.methods is None or method in rule.methods:
                canonical = path if as_it_stands else other_ending(path)
                return rule, {name: hit[group] for name, group in groups}, canonical
            allowed = rule.methods
        else:
            registry = self._registry_alone(fast_path)
            for canonical in path, other_ending(path):
                try:
                    number, values = registry.match(canonical, method)
                    return fast_path.registry_rules[number], values, canonical
                except MethodNotAllowed as refused:
                    allowed.update(refused.valid_methods or ())
                except HTTPException:
                    continue
        if allowed:
            raise MethodNotAllowed(valid_methods=list(allowed))
        return None

    def _location(self, path: str, query_args: Mapping[str, Any] | str | None) -> str:
        """A redirect's target: a path with one leading slash, so that it cannot name a host."""
        if query_args is None:
            query_args = self.query_args or {}
        location = "/" + f"{self.script_name}{path.lstrip('/')}".lstrip("/")
        location = quote(location, safe=_SAFE_IN_PATH)
        query = self.encode_query_args(query_args)
        return f"{location}?{quote(query, safe=_SAFE_IN_QUERY)}" if query else location


_may_be_unclean = re.compile("/[/.]").search

# What the URL standard leaves unencoded in a path segment, and "/".
_SAFE_IN_PATH = "!$&'()*+,/:;=@"
# The same for a query, and "%": it is encoded already.
_SAFE_IN_QUERY = "%?" + _SAFE_IN_PATH


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
