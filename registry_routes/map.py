"""`RegistryMap`: a `werkzeug.routing.Map` of the registry's routes, slashes handled as there."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload
from urllib.parse import quote

from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import (
    BaseConverter,
    Map,
    MapAdapter,
    RequestRedirect,
    Rule,
    RuleFactory,
    Submount,
)

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
        super().__init__(
            [Submount(prefix, [RegistryRules(dialect)]), *(rules or ())],
            strict_slashes=strict_slashes,
            converters={**dialect.converters, **(converters or {})},
            **options,
        )

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
        return _registry_adapter(
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
        """As `werkzeug.routing.Map.bind_to_environ`."""
        adapter = _registry_adapter(super().bind_to_environ(environ, server_name, subdomain))
        if "\ufffd" in (adapter.query_args or ""):  # a byte that is no UTF-8: keep it as it was
            env: Any = getattr(environ, "environ", environ)
            adapter.query_args = quote(env["QUERY_STRING"], safe=_SAFE_IN_QUERY, encoding="latin-1")
        return adapter


def _registry_adapter(adapter: MapAdapter) -> "RegistryMapAdapter":
    return RegistryMapAdapter(
        adapter.map,
        adapter.server_name,
        adapter.script_name,
        adapter.subdomain,
        adapter.url_scheme,
        adapter.path_info,
        adapter.default_method,
        adapter.query_args,
    )


class RegistryMapAdapter(MapAdapter):
    """What `RegistryMap.bind` and `RegistryMap.bind_to_environ` return: matches and builds."""

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
        error: HTTPException | None = None
        try:
            rule, values = super().match(path, method, True, query_args, websocket)
        except HTTPException as e:
            error = e
        # Werkzeug drops a second slash at the start; for us it makes the path another one.
        if error or (path.startswith("//") and isinstance(rule, RegistryRule)):
            found = self._match_canonical(path, method, query_args, websocket, error)
            if found:
                rule, values = found
            elif error:
                raise error
        return (rule if return_rule else rule.endpoint), values

    def _match_canonical(
        self,
        path: str,
        method: str | None,
        query_args: Mapping[str, Any] | str | None,
        websocket: bool | None,
        error: HTTPException | None,
    ) -> tuple[RegistryRule, Mapping[str, Any]] | None:
        """The rule that answers `path` under its other ending, or a redirect to what it means.

        `error` is what Werkzeug says of `path`. Where this returns `None`, that stands.
        """
        if query_args is None:
            query_args = self.query_args or {}
        cleaned = _clean(path)
        other_ending = cleaned.removesuffix("/") if cleaned.endswith("/") else f"{cleaned}/"
        for canonical in cleaned, other_ending:
            if canonical == path:
                continue
            new_path = quote(canonical, safe=_SAFE_IN_PATH)
            if isinstance(error, RequestRedirect) and (
                error.new_url != self.make_redirect_url(new_path, query_args)
            ):
                continue  # a redirect that a rule of the user's asks for
            found = self._match_registry(canonical, method, websocket)
            if found is None:
                continue
            rule, _ = found
            if cleaned == path and not rule.strict_slashes:
                return found
            if cleaned == path or rule.merge_slashes:
                raise RequestRedirect(self._location(new_path, query_args))
        return None

    def _match_registry(
        self, path: str, method: str | None, websocket: bool | None
    ) -> tuple[RegistryRule, Mapping[str, Any]] | None:
        """The rule of the registry that matches, if one does.

        Raises `MethodNotAllowed` where one would, but for the method.
        """
        try:
            rule, values = super().match(path, method, True, None, websocket)
        except MethodNotAllowed as error:
            others = error.valid_methods or ()
            if any(self._match_registry(path, other, websocket) for other in others):
                raise
            return None
        except HTTPException:
            return None
        return (rule, values) if isinstance(rule, RegistryRule) else None

    def _location(self, path: str, query_args: Mapping[str, Any] | str) -> str:
        """A redirect's target: a path with one leading slash, so that it cannot name a host."""
        script_name = quote(self.script_name, safe=_SAFE_IN_PATH)
        location = "/" + f"{script_name}{path.lstrip('/')}".lstrip("/")
        query = self.encode_query_args(query_args)
        return f"{location}?{quote(query, safe=_SAFE_IN_QUERY)}" if query else location


# What the URL standard leaves unencoded in a path segment, and "/".
_SAFE_IN_PATH = "!$&'()*+,/:;=@"
# The same for a query, and "%": it is encoded already.
_SAFE_IN_QUERY = "%?" + _SAFE_IN_PATH


def _clean(path: str) -> str:
    """`path` without empty, ``.`` and ``..`` segments, as gorilla/mux cleans it.

    (`posixpath.normpath` keeps two leading slashes, and in some Pythons stops at a NUL.)
    """
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
