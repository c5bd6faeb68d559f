"""A whole registry, as a WSGI application on a `Storage`: `make_registry`."""

from datetime import timedelta
from typing import cast

from werkzeug.routing import Rule

from ..app import RegistryApp
from ..map import RegistryMap
from ..routes import RouteName
from .manifests import MAX_MANIFEST, manifest_type, parse_manifest
from .memory import MemoryStorage
from .storage import (
    BLOCK,
    MAX_NAME,
    Blob,
    BlobFile,
    ConflictError,
    Manifest,
    MissingError,
    ReadStorage,
    SigningStorage,
    Storage,
    checked_blocks,
)
from .views import Views, blob_response, guard, manifest_response, require_registered

__all__ = [
    "BLOCK",
    "MAX_MANIFEST",
    "MAX_NAME",
    "Blob",
    "BlobFile",
    "ConflictError",
    "Manifest",
    "MemoryStorage",
    "MissingError",
    "ReadStorage",
    "SigningStorage",
    "Storage",
    "blob_response",
    "checked_blocks",
    "make_registry",
    "manifest_response",
    "manifest_type",
    "parse_manifest",
    "require_registered",
]


def make_registry(
    storage: ReadStorage,
    *,
    url_map: RegistryMap | None = None,
    page_size: int | None = None,
    max_chunk: int | None = None,
    blob_urls: timedelta | None = None,
) -> RegistryApp:
    """Return a WSGI application with every view of the specification, on a storage.

    (distribution-spec 1.1; from its main branch, tags for a manifest that is pushed by its digest,
    ``digest-algorithm``, and cancelling an upload; Docker's catalog.)

    >>> from werkzeug.test import Client
    >>> client = Client(make_registry(MemoryStorage()))
    >>> client.put("/v2/library/nginx/manifests/latest", json={"schemaVersion": 2}).status
    '201 CREATED'
    >>> client.get("/v2/library/nginx/tags/list").get_json()
    {'name': 'library/nginx', 'tags': ['latest']}

    The application does not authenticate clients: put it behind a gateway that does, or use hooks.
    It mounts a blob only from a repository that the request names in ``from``, as
    `scopes.required_scopes` expects. The views never hold a whole blob in memory. They honour
    ``If-Match`` and ``If-None-Match``, also when they write.

    :param storage: a `Storage` with the content, or a `ReadStorage` for a map that only reads.
    :param url_map: the routes; by default, a new `RegistryMap`. The map of a subset, such as
        ``RegistryMap(dialect=OCI_1_1.subset(methods=["GET"]))``, makes a registry that is
        read-only, or that has no catalog or no referrers. Your own rules may have their own views,
        or those of the registry, under the same endpoints. The storage only gets names, tags,
        digests and upload ids of `OCI_1_1`, whatever your converters let through.
    :param page_size: the maximum number of results in a page of tags, repositories or referrers. If
        it is `None`, a page has as many as the client asks for. A page of referrers also ends at
        `MAX_MANIFEST` bytes.
    :param max_chunk: the maximum size of a PATCH in bytes; a larger one is a 413 ``SIZE_INVALID``.
    :param blob_urls: the lifetime of signed URLs. If given, the registry redirects each GET of a
        blob to a URL from the storage, which must be a `SigningStorage`.

    Raises `ValueError` for an option that is out of range, and `TypeError` for a storage that is no
    `ReadStorage`, or no `Storage` although a route writes, and for a route that takes any method.
    """
    for option, value in ("page_size", page_size), ("max_chunk", max_chunk):
        if value is not None and value < 1:
            raise ValueError(f"{option} {value!r} must be 1 or more")
    url_map = RegistryMap() if url_map is None else url_map
    app = RegistryApp(url_map)
    _check_storage(storage, ReadStorage, "a registry")
    if blob_urls is not None:
        _check_storage(storage, SigningStorage, "blob_urls")
    serves_referrers = any(
        rule.endpoint == RouteName.REFERRERS and "GET" in (rule.methods or ())
        for rule in url_map.iter_rules()
    )
    views = Views(cast(Storage, storage), page_size, max_chunk, blob_urls, serves_referrers)
    by_endpoint = views.by_endpoint()
    taken = dict[tuple[str, str], Rule]()
    for rule in url_map.iter_rules():
        if any(rule.endpoint == endpoint for endpoint, _ in by_endpoint):
            if rule.methods is None:
                raise TypeError(f"route {rule.rule!r} takes any method, so it has no view")
            taken |= {(rule.endpoint, method): rule for method in rule.methods}
    for (endpoint, method), view in by_endpoint.items():
        if (endpoint, method) in taken:
            if method != "GET":
                route = taken[endpoint, method].rule
                _check_storage(storage, Storage, f"a registry with {method} at {route!r}")
            app.view(endpoint, method)(guard(endpoint, view))
    return app


def _check_storage(storage: object, protocol: type, user: str) -> None:
    """Raise `TypeError` if the storage lacks a method of the protocol, which `user` needs."""
    missing = [name for name in dir(protocol) if name[0] != "_" and not hasattr(storage, name)]
    if missing:
        raise TypeError(
            f"storage {storage!r:.100} has no method {missing[0]!r}, "
            f"which {user} needs: {protocol.__name__} describes it"
        )
