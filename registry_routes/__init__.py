"""The Docker Registry HTTP API v2 and OCI distribution-spec routes as a `werkzeug.routing.Map`.

>>> from registry_routes import url_map
>>> adapter = url_map.bind("registry.example.com", url_scheme="https")
>>> adapter.match("/v2/library/nginx/manifests/latest", "GET")
('manifest', {'name': 'library/nginx', 'tag': 'latest'})
>>> adapter.build("manifest", {"name": "library/nginx", "tag": "latest"}, force_external=True)
'https://registry.example.com/v2/library/nginx/manifests/latest'
"""

from .converters import (
    CONVERTERS,
    DigestConverter,
    ExtensionConverter,
    RepositoryNameConverter,
    TagConverter,
    UploadIdConverter,
)
from .map import RegistryMap, url_map
from .routes import DOCKER_1_5, OCI_1_1, Dialect, RegistryRules, Route, RouteName

__all__ = [
    "CONVERTERS",
    "DOCKER_1_5",
    "OCI_1_1",
    "Dialect",
    "DigestConverter",
    "ExtensionConverter",
    "RegistryMap",
    "RegistryRules",
    "RepositoryNameConverter",
    "Route",
    "RouteName",
    "TagConverter",
    "UploadIdConverter",
    "url_map",
]
