"""The Docker Registry HTTP API v2 and OCI distribution-spec routes as a `werkzeug.routing.Map`.

>>> from registry_routes import url_map
>>> adapter = url_map.bind("registry.example.com", url_scheme="https")
>>> adapter.match("/v2/library/nginx/manifests/latest", "GET")
('manifest', {'name': 'library/nginx', 'tag': 'latest'})
>>> adapter.build("manifest", {"name": "library/nginx", "tag": "latest"}, force_external=True)
'https://registry.example.com/v2/library/nginx/manifests/latest'

- Matching and building: `url_map`, `RegistryMap`; in a map of your own, `RegistryRules` and
  `CONVERTERS`; the route tables, `OCI_1_1` and `DOCKER_1_5`.
- Serving: `RegistryApp`; in other frameworks, `error_response`; the exceptions in `errors`.
- Clients: `URLBuilder`, `resolve_location`, `read_errors`.
- Both: `paging`, lists in pages; `headers`, what the API's own headers say; `digests`.
- Tokens: `required_scopes`, `parse_scopes`, `Scope`.
- Values: `grammar`, what a repository name, a tag, a digest is.
"""

from . import digests, errors, grammar, headers, paging
from .access import Scope, parse_scopes, required_scopes
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
from .errors import RegistryError, read_errors
from .map import RegistryMap, RegistryMapAdapter, url_map
from .routes import DOCKER_1_5, OCI_1_1, Dialect, RegistryRules, Route, RouteName
from .urls import URLBuilder, resolve_location

__all__ = [
    "CONVERTERS",
    "DOCKER_1_5",
    "OCI_1_1",
    "Dialect",
    "DigestConverter",
    "ExtensionConverter",
    "GrammarConverter",
    "RegistryApp",
    "RegistryError",
    "RegistryMap",
    "RegistryMapAdapter",
    "RegistryRequest",
    "RegistryRules",
    "RepositoryNameConverter",
    "Route",
    "RouteName",
    "Scope",
    "TagConverter",
    "URLBuilder",
    "UploadIdConverter",
    "digests",
    "error_response",
    "errors",
    "grammar",
    "headers",
    "paging",
    "parse_scopes",
    "read_errors",
    "required_scopes",
    "resolve_location",
    "url_map",
]
