"""URLs for clients and servers: build them, match them, and follow those that a registry sends.

A URL is a string, or an object whose `str()` is a URL, such as the URL classes of httpx and yarl.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, wraps
from inspect import signature
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Self, TypeAlias
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import MethodNotAllowed, NotFound, SecurityError
from werkzeug.routing import BuildError, MapAdapter, RequestRedirect
from werkzeug.wsgi import get_host

from .errors import RegistryError
from .grammar import ALGORITHM, SAFE_IN_PATH, Grammar, append_query, shorten
from .map import RegistryMap
from .map import url_map as ready_made_map
from .reference import Reference
from .routes import RouteName

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

__all__ = [
    "PARAMETERS",
    "MatchedURL",
    "QueryValue",
    "URLBuilder",
    "match_url",
    "resolve_location",
    "same_origin",
]


QueryValue: TypeAlias = str | int | Iterable[str | int] | None
"""The value of a query parameter, or several values; `None` leaves the parameter out."""

PARAMETERS: Mapping[str, str] = MappingProxyType(
    {
        "from_": "from",
        "digest_algorithm": "digest-algorithm",
        "artifact_type": "artifactType",
    }
)
"""The query parameters whose keywords of `URLBuilder` have other names, by these keywords."""


P = ParamSpec("P")


def _find_misplaced(slots: list[str], given: int, options: Mapping[str, object]) -> list[str]:
    """Return the options that belong in the slots after the first `given`, by any of their names.

    >>> _find_misplaced(["name", "reference"], 1, {"tag": "latest", "ns": "docker.io"})
    ['tag']
    """
    names = {"reference": ["reference", "digest", "tag"]}
    return [name for slot in slots[given:] for name in names.get(slot, [slot]) if name in options]


def _explain_misplaced(method: Callable[P, str]) -> Callable[P, str]:
    """Make a method's error for an argument given by name show how to write the call."""
    _, *parameters = signature(method).parameters.values()  # without `self`
    slots = [each.name for each in parameters if each.kind is each.POSITIONAL_ONLY]

    @wraps(method)
    def build(*args: P.args, **options: P.kwargs) -> str:
        try:
            return method(*args, **options)
        except TypeError:
            given = args[1:]  # without `self`
            misplaced = _find_misplaced(slots, len(given), options)
            if not misplaced:
                raise
            values = ", ".join(map(shorten, [*given, *(options[name] for name in misplaced)]))
            raise TypeError(
                f"URLBuilder.{method.__name__}() takes {' and '.join(misplaced)} by position: "
                f"{method.__name__}({values})"
            ) from None

    return build


class URLBuilder:
    """Builds every URL of a registry's API.

    >>> urls = URLBuilder("https://registry.example.com/mirror")
    >>> urls.manifest("library/nginx", "latest")
    'https://registry.example.com/mirror/v2/library/nginx/manifests/latest'
    >>> urls.tags("library/nginx", n=100, last="1.27")
    'https://registry.example.com/mirror/v2/library/nginx/tags/list?n=100&last=1.27'
    >>> urls.tags("library/Nginx")
    Traceback (most recent call last):
        ...
    ValueError: repository name 'library/Nginx' must be lowercase

    Each method returns a URL. A malformed argument raises `ValueError`, which names the value and
    the rule it broke; a route that the map's dialect does not have raises
    `werkzeug.routing.BuildError`. Keywords are query parameters: those of the distribution-spec and
    of Docker's catalog, and any others that a registry takes. A list repeats the parameter, and
    `None` leaves it out.

    >>> urls.tags("library/nginx", next_page="gAAAAABm")
    'https://registry.example.com/mirror/v2/library/nginx/tags/list?next_page=gAAAAABm'

    :param root: the ``http`` or ``https`` URL of the registry, without the ``/v2/``; with a path if
        the ``/v2/`` is not at the root of the host; with or without a trailing slash.
    :param relative: build paths, such as ``/mirror/v2/``, instead of whole URLs. `root` may then be
        just the path.
    :param url_map: the routes; by default, those of `registry_routes.url_map`.

    - `root`: the start of every URL, without a trailing slash.
    """

    root: str

    def __init__(
        self, root: object, *, relative: bool = False, url_map: RegistryMap | None = None
    ) -> None:
        self._table = (url_map or ready_made_map).table
        self._set_root(root, relative)
        if self.root.endswith("/v2"):  # every URL would contain it twice
            right = shorten(self.root.removesuffix("/v2") or "/")
            raise ValueError(
                f"root {shorten(str(root))} contains the '/v2' of the API: give {right}"
            )

    def _set_root(self, root: object, relative: bool) -> None:
        parts = _parse_root(root, may_be_path=relative)
        self.root = parts.path if relative else f"{parts.scheme}://{parts.netloc}{parts.path}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root!r})"

    @classmethod
    def from_environ(
        cls,
        environ: "WSGIEnvironment",
        *,
        relative: bool = False,
        url_map: RegistryMap | None = None,
    ) -> Self:
        """Return a builder for the registry that received a request, by its scheme, host and mount.

        The builder ignores the headers of proxies; use `werkzeug.middleware.proxy_fix.ProxyFix`,
        which knows which proxies to trust. Raises `werkzeug.exceptions.SecurityError`, a 400, for a
        malformed ``Host``. It may have a ``_``, like the service names of Docker Compose.

        >>> from werkzeug.test import create_environ
        >>> environ = create_environ("/v2/", "https://registry.example.com/mirror")
        >>> URLBuilder.from_environ(environ).base()
        'https://registry.example.com/mirror/v2/'
        """
        script_name = quote(environ.get("SCRIPT_NAME", ""), safe=SAFE_IN_PATH, encoding="latin-1")
        root = f"/{script_name.strip('/')}"
        if not relative:
            root = f"{environ['wsgi.url_scheme']}://{host_of(environ)}{root}"
        builder = cls("/", relative=True, url_map=url_map)
        builder._set_root(root, relative)  # it may be mounted at a path that ends in "/v2"
        return builder

    def base(self, /, **query: QueryValue) -> str:
        """Return the URL of the API's root, ``/v2/``."""
        return self._build_url(RouteName.BASE, {}, {}, query)

    def catalog(
        self, /, *, n: int | None = None, last: str | None = None, **query: QueryValue
    ) -> str:
        """Return the URL of the list of repositories: at most `n`, after the name `last`."""
        return self._build_url(RouteName.CATALOG, {}, {"n": _check_count(n), "last": last}, query)

    @_explain_misplaced
    def tags(
        self, name: str, /, *, n: int | None = None, last: str | None = None, **query: QueryValue
    ) -> str:
        """Return the URL of the list of a repository's tags: at most `n`, after the tag `last`."""
        return self._build_url(
            RouteName.TAGS, {"name": name}, {"n": _check_count(n), "last": last}, query
        )

    @_explain_misplaced
    def manifest(
        self,
        name: str | Reference,
        reference: str | None = None,
        /,
        *,
        tag: str | Iterable[str] | None = None,
        ns: str | None = None,
        **query: QueryValue,
    ) -> str:
        """Return the URL of a manifest, by a tag or by its digest, which contains a ``:``.

        A `Reference` can replace both arguments. Its domain is ignored, because the registry at the
        root may be a mirror.

        >>> urls = URLBuilder("https://mirror.example.com")
        >>> urls.manifest(Reference.parse("nginx:1.27"))
        'https://mirror.example.com/v2/library/nginx/manifests/1.27'

        :param tag: tags for a manifest that is pushed by its digest.
        :param ns: the registry that a proxy should pull from.
        """
        if isinstance(name, Reference):
            if reference is not None:
                raise ValueError(
                    f"reference {shorten(str(name))} already names the manifest: leave out "
                    f"{shorten(reference)}"
                )
            reference, name = name.reference(), name.name
        elif reference is None:
            raise TypeError("URLBuilder.manifest() needs a tag or a digest, or a Reference")
        kind = "digest" if isinstance(reference, str) and ":" in reference else "tag"
        tags = _list_values(tag)
        for name_of_tag in tags:
            self._grammar_of("tag").check(name_of_tag)
        if tags and kind == "tag":
            raise ValueError(
                f"manifest {shorten(reference)} is named by a tag: only a push by digest takes tags"
            )
        values = {"name": name, kind: reference}
        return self._build_url(RouteName.MANIFEST, values, {"tag": tags, "ns": ns}, query)

    @_explain_misplaced
    def blob(self, name: str, digest: str, /, *, ns: str | None = None, **query: QueryValue) -> str:
        """Return the URL of a blob. For `ns`, see `manifest`."""
        return self._build_url(RouteName.BLOB, {"name": name, "digest": digest}, {"ns": ns}, query)

    @_explain_misplaced
    def blob_upload(
        self,
        name: str,
        /,
        *,
        mount: str | None = None,
        from_: str | None = None,
        digest: str | None = None,
        digest_algorithm: str | None = None,
        **query: QueryValue,
    ) -> str:
        """Return the URL for beginning the upload of a blob.

        :param mount: the digest of a blob to mount instead of uploading it.
        :param from_: the repository to mount the blob from.
        :param digest: the blob's digest, to upload the blob with this single request.
        :param digest_algorithm: the algorithm of the digest that will complete the upload, such as
            ``sha512``.
        """
        if from_ is not None:
            self._grammar_of("repository").check(from_)
        if digest_algorithm is not None:
            ALGORITHM.check(digest_algorithm)
        parameters = {
            "mount": self._check_digest(mount),
            "from_": from_,
            "digest": self._check_digest(digest),
            "digest_algorithm": digest_algorithm,
        }
        return self._build_url(RouteName.BLOB_UPLOAD, {"name": name}, parameters, query)

    @_explain_misplaced
    def blob_upload_chunk(
        self, name: str, uuid: str, /, *, digest: str | None = None, **query: QueryValue
    ) -> str:
        """Return the URL of an upload in progress, for servers. Clients use the ``Location``.

        :param digest: the blob's digest, to complete the upload.
        """
        values = {"name": name, "uuid": uuid}
        parameters = {"digest": self._check_digest(digest)}
        return self._build_url(RouteName.BLOB_UPLOAD_CHUNK, values, parameters, query)

    @_explain_misplaced
    def referrers(
        self,
        name: str,
        digest: str,
        /,
        *,
        artifact_type: str | Iterable[str] | None = None,
        n: int | None = None,
        last: str | None = None,
        **query: QueryValue,
    ) -> str:
        """Return the URL of the list of manifests whose subject has this digest.

        `n` and `last` are for the ``Link`` of a registry that returns the list in pages.

        :param artifact_type: the type, or the types, of the manifests to list.
        """
        values = {"name": name, "digest": digest}
        parameters = {"artifact_type": artifact_type, "n": _check_count(n), "last": last}
        return self._build_url(RouteName.REFERRERS, values, parameters, query)

    @_explain_misplaced
    def extension(
        self,
        extension: str,
        component: str,
        module: str,
        name: str | None = None,
        /,
        **query: QueryValue,
    ) -> str:
        """Return the URL of an extension's endpoint, of the registry or of the repository `name`.

        As a keyword, ``name=`` is a query parameter.
        """
        values = {"extension": extension, "component": component, "module": module}
        if name is not None:
            values["name"] = name
        return self._build_url(RouteName.EXTENSION, values, {}, query)

    def build(
        self,
        endpoint: str,
        values: Mapping[str, str],
        query: Mapping[str, QueryValue] | None = None,
        /,
    ) -> str:
        """Return the URL of any endpoint, from the endpoint, values and query of `match_url`.

        With it, a proxy translates its own URLs into its upstream's, and back. `query` may have any
        parameters; a `MultiDict` keeps all the values of each.

        >>> upstream = URLBuilder("https://registry.example.com")
        >>> upstream.build(*match_url("/mirror/v2/a/tags/list?n=2&page=x%2By", root="/mirror"))
        'https://registry.example.com/v2/a/tags/list?n=2&page=x%2By'
        """
        given = query.to_dict(flat=False) if isinstance(query, MultiDict) else query
        return self._build_url(endpoint, values, {}, given or {})

    def _build_url(
        self,
        endpoint: str,
        values: Mapping[str, str],
        parameters: Mapping[str, Any],
        more: Mapping[str, Any],
    ) -> str:
        parameters = _spell(parameters)
        for name in parameters:
            if name in more:  # where nothing would check it
                keyword = next(key for key, spelled in PARAMETERS.items() if spelled == name)
                raise ValueError(f"parameter {name!r} has its own argument: write {keyword}=")
        if "n" in parameters and (other := more.keys() & _NOT_N):
            raise TypeError(f"{min(other)}= is not a parameter of the API: n= limits the results")
        for name, value in values.items():
            if value is None:  # which Werkzeug would treat as missing
                raise ValueError(f"{name} None must be a string")
        path = self._table.build(endpoint, values)
        if path is None:
            raise BuildError(str(endpoint), values, None)
        return _add_query(f"{self.root}{path}", {**parameters, **more})

    def _grammar_of(self, converter: str) -> Grammar:
        return self._table.dialect.converters[converter].grammar

    def _check_digest(self, digest: str | None) -> str | None:
        return digest if digest is None else self._grammar_of("digest").check(digest)


# Other APIs' names for ``n``, which a registry would ignore.
_NOT_N = {"limit", "page_size", "count"}


class MatchedURL(NamedTuple):
    """The result of `match_url`.

    - `endpoint`: a `RouteName`, or the endpoint of your map's own rule.
    - `values`: the values in the path, percent-decoded: ``name``; ``tag`` or ``digest``; and so on.
    - `query`: the query parameters, percent-decoded.
    """

    endpoint: str
    values: Mapping[str, Any]
    query: MultiDict[str, str]


def match_url(
    url: object,
    method: str | None = "GET",
    *,
    root: object = "/",
    url_map: RegistryMap | None = None,
) -> MatchedURL:
    """Return the endpoint that a request for `url` reaches, the values in its path, and its query.

    >>> endpoint, values, query = match_url("https://h/v2/library/nginx/tags/list?n=100")
    >>> endpoint, values, query["n"]
    ('tags', {'name': 'library/nginx'}, '100')
    >>> match_url("/mirror/v2/a%2Fb/manifests/v1", "PUT", root="/mirror").values
    {'name': 'a/b', 'tag': 'v1'}
    >>> match_url("//v2/a/blobs/uploads", None).endpoint
    'blob-upload'

    It decodes a URL as WSGI does: ``%2F`` in a name is a slash, and bytes that are not UTF-8
    become U+FFFD. It ignores a fragment and credentials.

    Raises the errors of `RegistryMapAdapter.match`: `werkzeug.routing.RequestRedirect`, to the
    correct path; an error of `registry_routes.errors`, such as `NameInvalid`; and
    `werkzeug.exceptions.NotFound` for a URL that is not under the API, or not under `root`. Raises
    `ValueError` if `url` is neither an ``http`` or ``https`` URL nor a path that starts with ``/``.

    :param url: a whole URL, or a path with or without a query, percent-encoded as in a request. A
        text that starts with ``//`` is also a path.
    :param method: the method, or `None` for any. With `None`, a URL that a request would be
        redirected from also matches; if two endpoints have the same path, that of GET wins.
    :param root: the registry's URL, as in `URLBuilder`, whose scheme, host and port a whole `url`
        must have; or a path, for any host.
    :param url_map: the routes; by default, those of `registry_routes.url_map`. The function binds
        the map to the host ``registry.invalid``, which appears in the redirects of your own rules.
    """
    routes = url_map or ready_made_map
    at = _parse_root(root, may_be_path=True)
    parts = _parse("URL", url, f"{at.scheme or 'http'}://{at.netloc or _ANY_HOST}")
    named = shorten(str(url))
    if not _is_http(parts):
        raise ValueError(
            f"URL {named} is not a URL of http or https, or a path that starts with '/'"
        )
    path, mount = unquote(parts.path), unquote(at.path)
    is_elsewhere = at.netloc and _origin_of(parts) != _origin_of(at)
    if is_elsewhere or not f"{path}/".startswith(f"{mount}/"):
        raise NotFound(f"URL {named} is not under the root {shorten(str(root))}")
    adapter = routes.bind(_ANY_HOST, mount, query_args=parts.query)
    try:
        below = path[len(mount) :]
        match = _match_any(adapter, below) if method is None else adapter.match(below, method)
    except NotFound as error:
        if isinstance(error, RegistryError):
            raise
        api = at._replace(path=f"{at.path}{quote(routes.table.root, safe=SAFE_IN_PATH)}/").geturl()
        raise NotFound(f"URL {named} is not under the API, {shorten(api)}") from None
    query = parse_qsl(parts.query, keep_blank_values=True)
    return MatchedURL(*match, MultiDict(query))


_ANY_HOST = "registry.invalid"
_MOST_REDIRECTS = 20  # those of your own rules may form a circle


def _match_any(adapter: MapAdapter, path: str) -> tuple[Any, Mapping[str, Any]]:
    """Return the match of `path` for the first method that it takes, and without a redirect."""
    mount = adapter.script_name.rstrip("/")
    method = "GET"
    for _ in range(_MOST_REDIRECTS):
        try:
            return adapter.match(path, method)
        except RequestRedirect as redirect:
            path = unquote(urlsplit(redirect.new_url).path).removeprefix(mount)
        except MethodNotAllowed as error:
            if not error.valid_methods:
                raise
            method = min(error.valid_methods)
    return adapter.match(path, method)


def _parse(kind: str, url: object, origin: str = "") -> SplitResult:
    """Split a URL into its parts. A path is relative to `origin`."""
    # Classes of URLs define __str__; those of None, a list and a response do not.
    if isinstance(url, bytes | bytearray) or type(url).__str__ is object.__str__:
        raise ValueError(f"{kind} must be a string or a URL object, not {type(url).__name__}")
    text = str(url)
    # urlsplit would silently strip some of these.
    if re.search(r"[\x00-\x20\x7f\\]", text):
        raise ValueError(
            f"{kind} {shorten(text)} must have no spaces, control characters or backslashes"
        )
    try:
        parts = urlsplit(f"{origin}{text}" if text.startswith("/") else text)
        _ = parts.port  # urlsplit parses it only on access
    except ValueError as error:
        why = f"{error!s:.200}"  # it may contain the whole URL
        raise ValueError(f"{kind} {shorten(text)} is not a URL: {why}") from None
    return parts


def _parse_root(root: object, *, may_be_path: bool) -> SplitResult:
    """Split a root into its parts, without the trailing slash of its path."""
    parts = _parse("root", root)
    named = f"root {shorten(str(root))}"
    is_path = may_be_path and not (parts.scheme or parts.netloc)
    if not is_path and not _is_http(parts):
        raise ValueError(f"{named} is not a URL of http or https")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"{named} must have no query, no fragment and no credentials")
    path = parts.path.rstrip("/")
    if path and (not path.startswith("/") or path.startswith("//")):
        raise ValueError(f"{named} must have a path that starts with one '/'")
    return parts._replace(path=path)


def _is_http(parts: SplitResult) -> bool:
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _origin_of(parts: SplitResult) -> tuple[str, str | None, int]:
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme, parts.hostname, default if parts.port is None else parts.port


def host_of(environ: "WSGIEnvironment") -> str:
    """Return the host of a request, without the default port of its scheme.

    Raises `werkzeug.exceptions.SecurityError` if the ``Host`` is malformed.
    """
    host = environ.get("HTTP_HOST")
    if host is None:
        host = get_host(environ)
    _check_host(host)
    return host.removesuffix(":443" if environ["wsgi.url_scheme"] == "https" else ":80")


@lru_cache(maxsize=100)
def _check_host(host: str) -> None:
    # Since 3.1.7, Werkzeug's own check refuses "_".
    if not re.fullmatch(r"(?:[a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]+)?", host):
        raise SecurityError("the request's Host is malformed")
    try:
        _parse("Host", f"//{host}")
    except ValueError:  # the port or the IPv6 address is impossible
        raise SecurityError("the request's Host is malformed") from None


def same_origin(url: object, other: object, /) -> bool:
    """Return whether two URLs have the same scheme, host and port; for clients.

    Send the credentials for a URL to another only if they do: a ``Location`` or a ``Link`` of a
    registry may lead to another host, or from https to http (distribution-spec, main branch,
    "Endpoints"; RFC 6454, section 5).

    >>> same_origin("https://r.example/v2/", "https://R.example:443/other")
    True
    >>> same_origin("https://r.example/v2/", "http://r.example/v2/")
    False

    Raises `ValueError` if one of them is not a URL of ``http`` or ``https``.
    """
    origins = []
    for given in url, other:
        parts = _parse("URL", given)
        if not _is_http(parts):
            raise ValueError(f"URL {shorten(str(given))} is not a URL of http or https")
        origins.append(_origin_of(parts))
    return origins[0] == origins[1]


def _spell(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Replace keywords by the names of their query parameters."""
    return {PARAMETERS.get(name, name): value for name, value in keywords.items()}


def _check_count(n: int | None) -> int | None:
    if n is not None and (type(n) is not int or n < 0):
        raise ValueError(f"n {shorten(n)} must be a whole number, 0 or more")
    return n


def _list_values(value: Any) -> list[Any]:
    """Return the values of a parameter as a list, whether there are several, one or none."""
    if value is None:
        return []
    is_one = isinstance(value, str | bytes) or not isinstance(value, Iterable)
    return [value] if is_one else [*value]


def _add_query(url: str, query: Mapping[str, Any]) -> str:
    pairs = [(name, each) for name, value in query.items() for each in _list_values(value)]
    for name, value in pairs:
        if not isinstance(value, str | int):
            raise ValueError(f"{name} {shorten(value)} is neither a string nor a number")
    try:
        return append_query(url, pairs)
    except UnicodeEncodeError as error:
        raise ValueError(f"parameter {shorten(error.object)} cannot be encoded in UTF-8") from None


def resolve_location(request_url: object, location: object, /, **query: QueryValue) -> str:
    """Return the absolute URL that a ``Location`` leads to; for clients.

    Registries send absolute URLs, paths from the root of the host, or URLs relative to that of the
    request. They put their own parameters into the query, which the result keeps byte for byte.
    `query` is appended, with the keywords of `URLBuilder`: ``digest=…`` to complete an upload. A
    list repeats the parameter, and `None` leaves it out.

    >>> resolve_location(
    ...     "https://registry.example.com/v2/a/blobs/uploads/",
    ...     "/v2/a/blobs/uploads/1?_state=x%2By==",
    ...     digest="sha256:abc",
    ... )
    'https://registry.example.com/v2/a/blobs/uploads/1?_state=x%2By==&digest=sha256%3Aabc'

    It may lead to another host, which must not get the registry's credentials; see `same_origin`.
    If the request used https and the location names the same host by http, because a proxy in front
    of the registry ends TLS, the result has the origin of the request. Raises `ValueError` if the
    location leads from https to another host by http, or not to a URL of ``http`` or ``https``.
    """
    target = resolve(request_url, location)
    if (_parse("URL", request_url).scheme, target.scheme) == ("https", "http"):
        named = f"Location {shorten(str(location))} of {shorten(str(request_url))}"
        raise ValueError(f"{named} leads from https to http")
    return _add_query(target.geturl(), _spell(query))


def resolve(request_url: object, location: object) -> SplitResult:
    """Resolve a ``Location`` or a ``Link``, even from https to another host by http."""
    named = f"Location {shorten(str(location))} of {shorten(str(request_url))}"
    given, asked = _parse("Location", location), _parse("URL", request_url)
    target = _join(asked, given) if _is_http(asked) else given
    if not _is_http(target) or (str(location).startswith("//") and not given.netloc):
        raise ValueError(f"{named} does not lead to a URL of http or https")
    if (asked.scheme, target.scheme) == ("https", "http") and target.hostname == asked.hostname:
        target = target._replace(scheme="https", netloc=asked.netloc)
    return target._replace(fragment="")


def _join(base: SplitResult, target: SplitResult) -> SplitResult:
    """Join a URL to its base (RFC 3986, 5.2.2), keeping empty segments, which `urljoin` drops."""
    if target.scheme or target.netloc:
        return target._replace(scheme=target.scheme or base.scheme)
    path, query = target.path, target.query
    if not path:
        path, query = base.path, query or base.query
    elif not path.startswith("/"):
        path = f"{base.path.rpartition('/')[0]}/{path}"
    kept: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    end = "/" if kept and path.endswith(("/.", "/..")) else ""
    return base._replace(path=f"/{'/'.join(kept)}{end}", query=query)
