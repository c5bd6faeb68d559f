"""A whole registry, as a WSGI application on a `Storage`: `make_registry`."""

from ..app import RegistryApp
from ..map import RegistryMap, url_map
from ..routes import OCI_1_1, Dialect, RouteName
from .manifests import MAX_MANIFEST, manifest_type, parse_manifest
from .memory import MemoryStorage
from .storage import (
    BLOCK,
    MAX_NAME,
    BlobFile,
    Conflict,
    Manifest,
    Missing,
    Storage,
    checked_blocks,
)
from .views import Views, answering, blob_response, manifest_response, registered

__all__ = [
    "BLOCK",
    "MAX_MANIFEST",
    "MAX_NAME",
    "BlobFile",
    "Conflict",
    "Manifest",
    "MemoryStorage",
    "Missing",
    "Storage",
    "blob_response",
    "checked_blocks",
    "make_registry",
    "manifest_response",
    "manifest_type",
    "parse_manifest",
    "registered",
]


def make_registry(
    storage: Storage,
    *,
    dialect: Dialect = OCI_1_1,
    page_size: int | None = None,
    min_chunk: int = 0,
    max_chunk: int | None = None,
) -> RegistryApp:
    """A registry as a WSGI application, with every view of the specification, on a storage.

    (distribution-spec 1.1; from its main branch, tags for a manifest that is pushed by its digest,
    ``digest-algorithm``, and cancelling an upload; Docker's catalog.)

    >>> from werkzeug.test import Client
    >>> client = Client(make_registry(MemoryStorage()))
    >>> client.put("/v2/library/nginx/manifests/latest", json={"schemaVersion": 2}).status
    '201 CREATED'
    >>> client.get("/v2/library/nginx/tags/list").get_json()
    {'name': 'library/nginx', 'tags': ['latest']}

    It does not authenticate clients: put it behind something that does. A blob is mounted only from
    a repository that the request names in ``from``, as `scopes.required_scopes` expects. The views
    never hold a whole blob in memory.

    :param dialect: `OCI_1_1`, or a subset of it for a registry that is read-only, or that has no
        catalog or no referrers.
    :param page_size: the maximum number of results in a page of tags, repositories or referrers. If
        it is `None`, a page has all that the client asks for. A page of referrers also ends at
        `MAX_MANIFEST` bytes.
    :param min_chunk: the minimum size of a chunk in bytes, announced by ``OCI-Chunk-Min-Length``.
        Only the last chunk may be shorter: one after that is refused with 400 ``SIZE_INVALID``.
    :param max_chunk: the maximum size of a PATCH in bytes; more is refused with 413
        ``SIZE_INVALID``.

    Raises `ValueError` for an option that is out of range, and for another dialect.
    """
    if dialect.converters != OCI_1_1.converters:
        raise ValueError(f"dialect {dialect.name!r} must be OCI_1_1 or a subset of it")
    for option, value, least in (
        ("page_size", page_size, 1),
        ("min_chunk", min_chunk, 0),
        ("max_chunk", max_chunk, max(min_chunk, 1)),
    ):
        if value is not None and value < least:
            raise ValueError(f"{option} {value!r} must be {least} or more")
    app = RegistryApp(url_map if dialect == OCI_1_1 else RegistryMap(dialect=dialect))
    views = Views(storage, page_size, min_chunk, max_chunk)
    taken = {(route.endpoint, method) for route in dialect.routes for method in route.methods or ()}
    for endpoint, method, view in (
        (RouteName.MANIFEST, "GET", views.get_manifest),
        (RouteName.MANIFEST, "PUT", views.put_manifest),
        (RouteName.MANIFEST, "DELETE", views.delete_manifest),
        (RouteName.BLOB, "GET", views.get_blob),
        (RouteName.BLOB, "DELETE", views.delete_blob),
        (RouteName.BLOB_UPLOAD, "POST", views.begin_upload),
        (RouteName.BLOB_UPLOAD_CHUNK, "GET", views.get_upload),
        (RouteName.BLOB_UPLOAD_CHUNK, "PATCH", views.append_to_upload),
        (RouteName.BLOB_UPLOAD_CHUNK, "PUT", views.finish_upload),
        (RouteName.BLOB_UPLOAD_CHUNK, "DELETE", views.cancel_upload),
        (RouteName.TAGS, "GET", views.list_tags),
        (RouteName.CATALOG, "GET", views.list_repositories),
        (RouteName.REFERRERS, "GET", views.list_referrers),
    ):
        if (endpoint, method) in taken:
            app.view(endpoint, method)(answering(endpoint, view))
    return app
