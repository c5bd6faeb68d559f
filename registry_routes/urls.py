"""URLs for clients and servers: building them, and following those that a registry sends."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import SplitResult, quote, urlencode, urljoin, urlsplit

from werkzeug.exceptions import SecurityError
from werkzeug.routing import BuildError
from werkzeug.wsgi import get_host

from .grammar import ALGORITHM, Grammar
from .map import RegistryMap
from .map import url_map as ready_made_map
from .routes import RouteName
from .table import SAFE_IN_PATH

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


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

    Each method returns a URL, and raises `ValueError`, which names the value and the rule it broke,
    where an argument is malformed, and `werkzeug.routing.BuildError` where the map's dialect has no
    such route. Arguments that are `None` are left out. (The query parameters are those of the
    distribution-spec and of Docker's catalog.)

    :param root: where the registry is: an ``http`` or ``https`` URL without the ``/v2/``, with a
        path if the ``/v2/`` is not at the root of the host, with or without a trailing slash.
    :param relative: to build paths, ``/mirror/v2/``, in place of whole URLs; then `root` may be
        just the path.
    :param url_map: the routes, where they are not those of `registry_routes.url_map`.
    """

    def __init__(
        self, root: str, *, relative: bool = False, url_map: RegistryMap | None = None
    ) -> None:
        parts = _parsed("root", root)
        is_path = relative and not (parts.scheme or parts.netloc)
        if not is_path and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError(f"root {root!r} must be a URL of http or https")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError(f"root {root!r} must have no query, no fragment and no credentials")
        path = parts.path.rstrip("/")
        if path and (not path.startswith("/") or path.startswith("//")):
            raise ValueError(f"root {root!r} must have a path that starts with one '/'")
        self.root = path if relative else f"{parts.scheme}://{parts.netloc}{path}"
        """What every URL starts with."""
        self._table = (url_map or ready_made_map).table

    @classmethod
    def from_environ(
        cls,
        environ: "WSGIEnvironment",
        *,
        relative: bool = False,
        url_map: RegistryMap | None = None,
    ) -> Self:
        """For the registry that a request came to: its scheme, its host, where it is mounted.

        A header that a proxy has set is not looked at here, but in
        `werkzeug.middleware.proxy_fix.ProxyFix`, which is told whom to trust. Raises
        `werkzeug.exceptions.SecurityError`, a 400, where the ``Host`` is malformed.

        >>> from werkzeug.test import create_environ
        >>> environ = create_environ("/v2/", "https://registry.example.com/mirror")
        >>> URLBuilder.from_environ(environ).base()
        'https://registry.example.com/mirror/v2/'
        """
        script_name = quote(environ.get("SCRIPT_NAME", ""), safe=SAFE_IN_PATH, encoding="latin-1")
        root = f"/{script_name.strip('/')}"
        if not relative:
            host = get_host(environ)
            if not re.fullmatch(
                r"[a-zA-Z0-9._-]+(?::[0-9]+)?|\[[0-9a-fA-F:.]+\](?::[0-9]+)?", host
            ):
                raise SecurityError("the request's Host is malformed")
            root = f"{environ['wsgi.url_scheme']}://{host}{root}"
        return cls(root, relative=relative, url_map=url_map)

    def base(self) -> str:
        """The API itself, ``/v2/``."""
        return self._url(RouteName.BASE)

    def catalog(self, *, n: int | None = None, last: str | None = None) -> str:
        """The repositories: at most `n` of them, after `last`."""
        return self._url(RouteName.CATALOG, n=_count(n), last=last)

    def tags(self, name: str, *, n: int | None = None, last: str | None = None) -> str:
        """The tags of a repository: at most `n` of them, after `last`."""
        return self._url(RouteName.TAGS, {"name": name}, n=_count(n), last=last)

    def manifest(
        self,
        name: str,
        reference: str,
        *,
        tag: str | Iterable[str] | None = None,
        ns: str | None = None,
    ) -> str:
        """A manifest, by a tag or by its digest; one with ``:`` in it is a digest.

        :param tag: tags to give to a manifest that is pushed by its digest.
        :param ns: the registry that a proxy is to pull from.
        """
        kind = "digest" if isinstance(reference, str) and ":" in reference else "tag"
        tags = _listed(tag)
        for one in tags:
            self._grammar("tag").check(one)
        if tags and kind == "tag":
            raise ValueError(f"manifest {reference!r} must be named by its digest to take tags")
        return self._url(RouteName.MANIFEST, {"name": name, kind: reference}, tag=tags, ns=ns)

    def blob(self, name: str, digest: str, *, ns: str | None = None) -> str:
        """A blob. For `ns` see `manifest`."""
        return self._url(RouteName.BLOB, {"name": name, "digest": digest}, ns=ns)

    def blob_upload(
        self,
        name: str,
        *,
        mount: str | None = None,
        from_: str | None = None,
        digest: str | None = None,
        digest_algorithm: str | None = None,
        **query: str,
    ) -> str:
        """Where the upload of a blob begins.

        :param mount: the digest of a blob to mount instead of uploading it.
        :param from_: the repository that has it.
        :param digest: the blob's digest, to upload it with this one request.
        :param digest_algorithm: what the blob's digest will be made with, ``sha512`` say.
        :param query: whatever else the registry wants to be told.
        """
        if from_ is not None:
            self._grammar("repository").check(from_)
        if digest_algorithm is not None:
            ALGORITHM.check(digest_algorithm)
        parameters = {
            "mount": self._checked_digest(mount),
            "from": from_,
            "digest": self._checked_digest(digest),
            "digest-algorithm": digest_algorithm,
        }
        for parameter in parameters.keys() & query.keys():
            raise ValueError(f"parameter {parameter!r} must be given by its own argument")
        return self._url(RouteName.BLOB_UPLOAD, {"name": name}, **parameters, **query)

    def blob_upload_chunk(
        self, name: str, uuid: str, *, digest: str | None = None, **query: str
    ) -> str:
        """The upload of a blob, on its way. (A client takes the ``Location`` it was given.)

        :param digest: the blob's digest, to complete the upload.
        :param query: whatever else the registry wants to be told.
        """
        values = {"name": name, "uuid": uuid}
        checked = self._checked_digest(digest)
        return self._url(RouteName.BLOB_UPLOAD_CHUNK, values, digest=checked, **query)

    def referrers(
        self,
        name: str,
        digest: str,
        *,
        artifact_type: str | Iterable[str] | None = None,
        n: int | None = None,
        last: str | None = None,
    ) -> str:
        """The manifests whose subject is this one, of one type, or of several, if given.

        `n` and `last` are for the ``Link`` of a registry that gives them in pages.
        """
        values = {"name": name, "digest": digest}
        query = {"artifactType": artifact_type, "n": _count(n), "last": last}
        return self._url(RouteName.REFERRERS, values, **query)

    def extension(
        self, extension: str, component: str, module: str, *, name: str | None = None
    ) -> str:
        """An extension's endpoint, of the registry, or of the repository `name`."""
        values = {"extension": extension, "component": component, "module": module}
        if name is not None:
            values["name"] = name
        return self._url(RouteName.EXTENSION, values)

    def _url(self, endpoint: str, values: Mapping[str, str] | None = None, /, **query: Any) -> str:
        for name, value in (values or {}).items():
            if value is None:  # Werkzeug would take it for one that is not given
                raise ValueError(f"{name} None must be a string")
        path = self._table.build(endpoint, values or {})
        if path is None:
            raise BuildError(endpoint, values or {}, None)
        return _with_query(f"{self.root}{path}", query)

    def _grammar(self, converter: str) -> Grammar:
        return self._table.dialect.converters[converter].grammar

    def _checked_digest(self, digest: str | None) -> str | None:
        return digest if digest is None else self._grammar("digest").check(digest)


def _parsed(kind: str, url: str) -> SplitResult:
    if not isinstance(url, str):
        raise ValueError(f"{kind} must be a string, not {type(url).__name__}")
    # urlsplit would strip some of these.
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise ValueError(f"{kind} {url!r} must have no spaces, control characters or backslashes")
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is parsed only when it is asked for
    except ValueError as error:
        raise ValueError(f"{kind} {url!r} must be a URL: {error}") from None
    return parts


def _count(n: int | None) -> int | None:
    if n is not None and (type(n) is not int or n < 0):
        raise ValueError(f"n {n!r} must be a whole number, 0 or more")
    return n


def _listed(value: Any) -> list[Any]:
    """The values of a parameter, which may be given several times, once or not at all."""
    if value is None:
        return []
    is_one = isinstance(value, str | bytes) or not isinstance(value, Iterable)
    return [value] if is_one else [*value]


def _with_query(url: str, query: Mapping[str, Any]) -> str:
    pairs = [(name, one) for name, value in query.items() for one in _listed(value)]
    for name, one in pairs:
        if not isinstance(one, str | int):
            raise ValueError(f"{name} {one!r} must be a string")
    encoded = urlencode(pairs, quote_via=quote, safe="")
    if not encoded:
        return url
    if "?" not in url:
        return f"{url}?{encoded}"
    return f"{url}{encoded}" if url.endswith(("?", "&")) else f"{url}&{encoded}"


def resolve_location(request_url: str, location: str, **query: Any) -> str:
    """Where a ``Location`` leads, as an absolute URL; for clients.

    Registries send them absolute, from the root of the host or relative to the request's URL, and
    put parameters of their own into the query: it is kept byte for byte, and `query` appended
    (``digest=…`` to complete an upload; ``**{"digest-algorithm": …}``). A list gives a parameter
    several times, `None` leaves it out.

    >>> resolve_location(
    ...     "https://registry.example.com/v2/a/blobs/uploads/",
    ...     "/v2/a/blobs/uploads/1?_state=x%2By==",
    ...     digest="sha256:abc",
    ... )
    'https://registry.example.com/v2/a/blobs/uploads/1?_state=x%2By==&digest=sha256%3Aabc'

    It may lead to another host: credentials are for the registry's own. Raises `ValueError` where
    it is no URL of ``http`` or ``https``.
    """
    given = _parsed("Location", location)
    _parsed("URL", request_url)
    target = urljoin(request_url, location).partition("#")[0]
    parts = urlsplit(target)
    # "https:///x" has no host, but urljoin would give it that of the request.
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or (given.scheme and not given.netloc)
    ):
        raise ValueError(
            f"Location {location!r} of {request_url!r} must lead to a URL of http or https"
        )
    return _with_query(target, query)
