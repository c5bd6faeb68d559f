"""`LateMap`: a `werkzeug.routing.Map` that binds to a request late, for speed.

Attributes that matching does not need are computed on first access. Werkzeug's own binding takes
several times as long as the match itself.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast
from urllib.parse import quote

from werkzeug.routing import Map, MapAdapter
from werkzeug.wrappers import Request

from .grammar import SAFE_IN_PATH

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

__all__ = ["LateMap", "LateMapAdapter"]

SAFE_IN_QUERY = "%?" + SAFE_IN_PATH
"""The characters to keep when encoding a query that may already be percent-encoded."""

_MOST_HOSTS = 1000
_LONGEST_HOST = 260  # a domain name and a port


class _LateAttribute:
    """An attribute that a late adapter takes from a full adapter on first access.

    `functools.cached_property` would take a lock before Python 3.12, and a `__getattr__` would slow
    down every attribute of an adapter.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, adapter: Any, owner: type | None = None) -> Any:
        if adapter is None:
            return self
        known = vars(adapter)
        if "_full" not in known:
            known["_full"] = _bind_by_werkzeug(adapter.map, adapter._environ)
        known[self.name] = getattr(known["_full"], self.name)
        return known[self.name]


def options_of(adapter: MapAdapter) -> dict[str, Any]:
    """Return the arguments, but for the map, that make an adapter like this one."""
    return {
        "server_name": adapter.server_name,
        "script_name": adapter.script_name,
        "subdomain": adapter.subdomain,
        "url_scheme": adapter.url_scheme,
        "path_info": adapter.path_info,
        "default_method": adapter.default_method,
        "query_args": adapter.query_args,
    }


class LateMapAdapter(MapAdapter):
    """The adapter of a `LateMap`, which may compute attributes on first access."""

    _environ: "WSGIEnvironment"

    @classmethod
    def _convert(cls, adapter: MapAdapter) -> Self:
        """Convert an adapter to this class."""
        if isinstance(adapter, cls):
            return adapter
        return cls(adapter.map, **options_of(adapter))

    @classmethod
    def _bind_late(cls, url_map: Map, environ: "WSGIEnvironment") -> Self:
        """Bind to a copy of `environ`, and set only the attributes that a match needs."""
        bound = cls.__new__(cls)
        path: str = environ.get("PATH_INFO", "/")
        bound.path_info = (
            path if path.isascii() else path.encode("latin-1").decode(errors="replace")
        )
        bound.map = url_map
        bound.subdomain = ""
        bound.default_method = environ["REQUEST_METHOD"]
        bound.websocket = False
        bound._environ = environ.copy()
        return bound

    server_name: str = cast(str, _LateAttribute())
    script_name: str = cast(str, _LateAttribute())
    url_scheme: str = cast(str, _LateAttribute())
    query_args: Mapping[str, Any] | str | None = cast(Any, _LateAttribute())


Adapter = TypeVar("Adapter", bound=LateMapAdapter)


class LateMap(Map, Generic[Adapter]):
    """A `werkzeug.routing.Map` that binds fast, and preserves the bytes of a query."""

    adapter_class: type[Adapter]
    """The class of the adapters that `bind` and `bind_to_environ` return."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._known_hosts: set[str] = set()
        super().__init__(*args, **options)

    def bind(
        self,
        server_name: str,
        script_name: str | None = None,
        subdomain: str | None = None,
        url_scheme: str = "http",
        default_method: str = "GET",
        path_info: str | None = None,
        query_args: Mapping[str, Any] | str | None = None,
    ) -> Adapter:
        """Return an adapter for a host, like `werkzeug.routing.Map.bind`."""
        adapter = super().bind(
            server_name,
            script_name,
            subdomain,
            url_scheme,
            default_method,
            path_info,
            query_args,
        )
        return self.adapter_class._convert(adapter)

    def bind_to_environ(
        self,
        environ: "WSGIEnvironment | Request",
        server_name: str | None = None,
        subdomain: str | None = None,
    ) -> Adapter:
        """Return an adapter for a request, like `werkzeug.routing.Map.bind_to_environ`."""
        plain = environ if type(environ) is dict else _environ_of(environ)
        if plain is None or server_name is not None or subdomain is not None:
            return self.adapter_class._convert(
                _bind_by_werkzeug(self, environ, server_name, subdomain)
            )
        # Werkzeug checks hosts, so bind late only for a host that it has accepted before.
        host = plain.get("HTTP_HOST")
        if (
            host in self._known_hosts
            and plain["wsgi.url_scheme"] in ("http", "https")
            and "HTTP_UPGRADE" not in plain
            and not (self.host_matching or self.default_subdomain)
        ):
            return self.adapter_class._bind_late(self, plain)
        adapter = _bind_by_werkzeug(self, environ)
        if host is not None and len(host) <= _LONGEST_HOST:
            if len(self._known_hosts) >= _MOST_HOSTS:
                self._known_hosts.clear()
            self._known_hosts.add(host)
        return self.adapter_class._convert(adapter)


def _environ_of(given: Any) -> "WSGIEnvironment | None":
    """Return the environ of a request that does not check its host; `None` for anything else."""
    if (
        isinstance(given, Request)
        and given.trusted_hosts is None
        and type(given).host is Request.host
    ):
        return given.environ
    return None


def _bind_by_werkzeug(
    url_map: Map,
    environ: "WSGIEnvironment | Request",
    server_name: str | None = None,
    subdomain: str | None = None,
) -> MapAdapter:
    adapter = Map.bind_to_environ(url_map, environ, server_name, subdomain)
    if "\ufffd" in (adapter.query_args or ""):  # a byte that is not UTF-8, which would be lost
        plain = environ.environ if isinstance(environ, Request) else environ
        query: str = plain["QUERY_STRING"]
        adapter.query_args = quote(query, safe=SAFE_IN_QUERY, encoding="latin-1")
    return adapter
