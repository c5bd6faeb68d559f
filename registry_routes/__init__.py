"""The Docker Registry HTTP API v2 and OCI distribution-spec routes as a `werkzeug.routing.Map`.

>>> from registry_routes import url_map
>>> adapter = url_map.bind("registry.example.com", url_scheme="https")
>>> adapter.match("/v2/library/nginx/manifests/latest", "GET")
('manifest', {'name': 'library/nginx', 'tag': 'latest'})
>>> adapter.build("manifest", {"name": "library/nginx", "tag": "latest"}, force_external=True)
'https://registry.example.com/v2/library/nginx/manifests/latest'

Where to start:

- To match requests and build URLs in a server: `url_map`, or a `RegistryMap` with your own rules.
  `RegistryRules` and `CONVERTERS` are for a plain Werkzeug map. `OCI_1_1` and `DOCKER_1_5` are the
  dialects; the module `registry_routes.routes` lists their differences. A `RouteTable` matches,
  explains and builds paths without a map.
- To serve a registry: `RegistryApp`, with your own views; the module `registry_routes.registry`,
  which has all the views; `error_response`, for other frameworks.
- To write a client: `Login` logs in, `Reference` parses image references, `URLBuilder` builds URLs,
  `resolve_location` follows a ``Location``, and `match_url` finds the endpoint of a URL.
- On both sides: `errors` to raise, and `responses` to read a registry's errors; `challenges` and
  `scopes` for tokens; `paging` for lists; `headers` and `digests` to read and write these.
- To test: the pytest fixture ``oci_registry``, and the module `registry_routes.testing`.
- To check a repository name, a tag, a digest or an upload id: `grammar`.

Names are imported on first use. ``help(registry_routes.RegistryMap)`` and so on describe them.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *  # noqa: F403
    from .public import __all__ as __all__
else:
    # pytest loads the plugin in every environment that has the package. Importing the whole package
    # would slow down the start of every test suite there.
    def __getattr__(name: str) -> Any:
        if name != "__all__" and find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        public = import_module(f"{__name__}.public")
        if name not in ("__all__", *public.__all__):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals().setdefault(name, getattr(public, name))

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
