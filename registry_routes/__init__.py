"""The Docker Registry HTTP API v2 and OCI distribution-spec routes as a `werkzeug.routing.Map`.

>>> from registry_routes import url_map
>>> adapter = url_map.bind("registry.example.com", url_scheme="https")
>>> adapter.match("/v2/library/nginx/manifests/latest", "GET")
('manifest', {'name': 'library/nginx', 'tag': 'latest'})
>>> adapter.build("manifest", {"name": "library/nginx", "tag": "latest"}, force_external=True)
'https://registry.example.com/v2/library/nginx/manifests/latest'

- Matching and building: `url_map`, `RegistryMap`; in your own map, `RegistryRules` and
  `CONVERTERS`; the route tables, `OCI_1_1` and `DOCKER_1_5`.
- Serving: `RegistryApp`; in other frameworks, `error_response`. A whole registry is in the module
  `registry_routes.registry`.
- Clients: `Reference`, an image reference; `URLBuilder`, `resolve_location` and `match_url`.
- Both sides: `errors`, to raise and to read; `challenges` and `scopes`, for tokens; `paging`, for
  lists in pages; `headers` and `digests`, what the API's own headers and digests say.
- Values: `grammar`, what a repository name, a tag and a digest are.
"""

from . import challenges, digests, errors, grammar, headers, paging, scopes
from .app import RegistryApp, RegistryRequest, error_response
from .converters import (
    CONVERTERS,
    DigestConverter,
    ExtensionConverter,
    GrammarConverter,
    RepositoryNameConverter,
    TagConverter,
    UploadIdConverter,
)
from .map import RegistryMap, RegistryMapAdapter, url_map
from .reference import Reference
from .routes import DOCKER_1_5, OCI_1_1, Dialect, RegistryRules, Route, RouteName
from .urls import URLBuilder, match_url, resolve_location

__all__ = [
    "CONVERTERS",
    "DOCKER_1_5",
    "OCI_1_1",
    "Dialect",
    "DigestConverter",
    "ExtensionConverter",
    "GrammarConverter",
    "Reference",
    "RegistryApp",
    "RegistryMap",
    "RegistryMapAdapter",
    "RegistryRequest",
    "RegistryRules",
    "RepositoryNameConverter",
    "Route",
    "RouteName",
    "TagConverter",
    "URLBuilder",
    "UploadIdConverter",
    "challenges",
    "digests",
    "error_response",
    "errors",
    "grammar",
    "headers",
    "match_url",
    "paging",
    "resolve_location",
    "scopes",
    "url_map",
]
