"""The Docker Registry HTTP API v2 and OCI distribution-spec routes as a `werkzeug.routing.Map`.

>>> from registry_routes import url_map
>>> adapter = url_map.bind("registry.example.com", url_scheme="https")
>>> adapter.match("/v2/library/nginx/manifests/latest", "GET")
('manifest', {'name': 'library/nginx', 'tag': 'latest'})
>>> adapter.build("manifest", {"name": "library/nginx", "tag": "latest"}, force_external=True)
'https://registry.example.com/v2/library/nginx/manifests/latest'

- Matching and building: `url_map`, `RegistryMap`; in a map of your own, `RegistryRules` and
  `CONVERTERS`; the route tables, `OCI_1_1` and `DOCKER_1_5`.
- Serving: `RegistryApp`; in other frameworks, `error_response`; the exceptions in `errors`;
  `requested_page`, `cut_page` and `next_link`.
- Clients: `URLBuilder`, `resolve_location`, `parse_next_link`, `errors.parse_errors`.
- Tokens: `challenges`, what a registry asks for, and how a client gets it; `scopes`, what a request
  needs.
- Values: `grammar`, what a repository name, a tag, a digest is.
"""

from . import challenges, errors, grammar, scopes
from .app import RegistryApp, RegistryRequest, error_response
from .converters import (
    CONVERTERS,
    DigestConverter,
    ExtensionConverter,
    RepositoryNameConverter,
    TagConverter,
    UploadIdConverter,
)
from .map import RegistryMap, url_map
from .paging import cut_page, next_link, parse_next_link, requested_page
from .routes import DOCKER_1_5, OCI_1_1, Dialect, RegistryRules, Route, RouteName
from .urls import URLBuilder, resolve_location

__all__ = [
    "CONVERTERS",
    "DOCKER_1_5",
    "OCI_1_1",
    "Dialect",
    "DigestConverter",
    "ExtensionConverter",
    "RegistryApp",
    "RegistryMap",
    "RegistryRequest",
    "RegistryRules",
    "RepositoryNameConverter",
    "Route",
    "RouteName",
    "TagConverter",
    "URLBuilder",
    "UploadIdConverter",
    "challenges",
    "cut_page",
    "error_response",
    "errors",
    "grammar",
    "next_link",
    "parse_next_link",
    "requested_page",
    "resolve_location",
    "scopes",
    "url_map",
]
