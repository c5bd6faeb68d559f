"""The public names, which `registry_routes` imports on first use."""

from . import challenges, digests, errors, grammar, headers, paging, responses, scopes
from .app import RegistryApp, RegistryRequest
from .converters import (
    CONVERTERS,
    DigestConverter,
    ExtensionConverter,
    GrammarConverter,
    RepositoryNameConverter,
    TagConverter,
    UploadIdConverter,
)
from .errors import error_response
from .login import Login
from .map import RegistryMap, RegistryMapAdapter, url_map
from .reference import Reference
from .routes import DOCKER_1_5, OCI_1_1, Dialect, RegistryRules, Route, RouteName
from .table import RouteTable
from .urls import URLBuilder, match_url, resolve_location

__all__ = [
    "CONVERTERS",
    "DOCKER_1_5",
    "OCI_1_1",
    "Dialect",
    "DigestConverter",
    "ExtensionConverter",
    "GrammarConverter",
    "Login",
    "Reference",
    "RegistryApp",
    "RegistryMap",
    "RegistryMapAdapter",
    "RegistryRequest",
    "RegistryRules",
    "RepositoryNameConverter",
    "Route",
    "RouteName",
    "RouteTable",
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
    "responses",
    "scopes",
    "url_map",
]
