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
- Clients: `Reference`, an image reference; `URLBuilder`, `resolve_location`, `same_origin` and
  `match_url`.
- Both sides: `errors`, to raise and to read; `challenges` and `scopes`, for tokens; `paging`, for
  lists in pages; `headers` and `digests`, what the API's own headers and digests say.
- Tests: the module `registry_routes.testing`, and the pytest fixture ``oci_registry``.
- Values: `grammar`, what a repository name, a tag and a digest are.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *  # noqa: F403
    from .public import __all__ as __all__
else:
    # pytest loads the plugin in every suite of whoever has the package, which must not cost the
    # time to import all the rest.
    def __getattr__(name: str) -> Any:
        if name != "__all__" and find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        public = import_module(f"{__name__}.public")
        if name not in ("__all__", *public.__all__):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals().setdefault(name, getattr(public, name))

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
