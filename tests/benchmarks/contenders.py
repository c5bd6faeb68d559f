"""The contenders, which turn a method and a path into an endpoint and values, or build a URL."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from registry_routes import RegistryMap, RegistryRules
from registry_routes.app import RegistryApp

Answer = tuple[Any, Any] | None

# The baseline: a hand-written regular expression with the exact grammar, and a dict for the values.
# It does not check the method, and has neither redirects nor errors.
_COMPONENT = r"[a-z0-9]++(?>(?:(?:\.|__?+|-++)[a-z0-9]++)*)"
_NAME = rf"{_COMPONENT}(?:/{_COMPONENT})*?"
_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}+"
_DIGEST = (
    r"(?:sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}"
    r"|(?!sha(?:256|512):)[a-z0-9]++(?>(?:[+._-][a-z0-9]++)*):[a-zA-Z0-9=_-]++)"
)
_UPLOAD_ID = r"[a-zA-Z0-9_=-][a-zA-Z0-9._=-]*+"
_EXTENSION = r"[a-z0-9]++(?>(?:[._-][a-z0-9]++)*)"
_EXTENSIONS = rf"_({_EXTENSION})/({_EXTENSION})/({_EXTENSION})()"
_BY_HAND = re.compile(
    rf"/v2/(?:({_NAME})/(?:manifests/(?:({_DIGEST})()|({_TAG})())|blobs/(?:({_DIGEST})()"
    rf"|uploads/(?:()|({_UPLOAD_ID})()))|tags/list()|referrers/({_DIGEST})()|{_EXTENSIONS})"
    rf"|()|_catalog()|{_EXTENSIONS})"
).fullmatch
_EXTENSION_GROUPS = "extension", "component", "module"
_ANSWERS: dict[Any, tuple[str, list[tuple[str, int]]]] = {
    3: ("manifest", [("name", 1), ("digest", 2)]),
    5: ("manifest", [("name", 1), ("tag", 4)]),
    7: ("blob", [("name", 1), ("digest", 6)]),
    8: ("blob-upload", [("name", 1)]),
    10: ("blob-upload-chunk", [("name", 1), ("uuid", 9)]),
    11: ("tags", [("name", 1)]),
    13: ("referrers", [("name", 1), ("digest", 12)]),
    17: ("extension", [("name", 1), *zip(_EXTENSION_GROUPS, (14, 15, 16), strict=True)]),
    18: ("base", []),
    19: ("catalog", []),
    23: ("extension", [*zip(_EXTENSION_GROUPS, (20, 21, 22), strict=True)]),
}


def by_hand(path: str, method: str) -> Answer:
    match = _BY_HAND(path)
    if match is None:
        return None
    endpoint, groups = _ANSWERS[match.lastindex]
    return endpoint, {name: match[group] for name, group in groups}


def by_hand_environ(environ: Any) -> Answer:
    path = environ["PATH_INFO"]
    if not path.isascii():
        path = path.encode("latin-1").decode(errors="replace")
    return by_hand(path, environ["REQUEST_METHOD"])


ours = RegistryMap()
plain = Map([RegistryRules()])

# The rules that authors of registries add.
BESIDE = ["/v2/token", "/static/<path:f>", "/v2/<repository:name>/sig", "/<path:p>"]


def make_maps() -> dict[str, RegistryMap]:
    """Return registry maps alone, with each of these rules, and with all of them."""

    def make_map(*paths: str) -> RegistryMap:
        return RegistryMap(rules=[Rule(path, endpoint=path) for path in paths])

    each = {f"beside {path}": make_map(path) for path in BESIDE}
    return {ALONE: make_map(), **each, "beside all of these": make_map(*BESIDE)}


ALONE = "alone"


def match_or_none(match: Callable[..., Answer]) -> Callable[..., Answer]:
    def call(*args: Any) -> Answer:
        try:
            return match(*args)
        except HTTPException:
            return None

    return call


def make_flask_app() -> Any:
    from flask import Flask

    app = Flask("benchmark")
    app.config["SERVER_NAME"] = None
    app.url_map.add(RegistryRules())
    return app


def make_flask_binder() -> Callable[..., Answer]:
    app = make_flask_app()
    return lambda environ: app.create_url_adapter(app.request_class(environ)).match()


OUR_APP = "registry_routes, RegistryApp"


def make_apps() -> dict[str, Callable[..., Any]]:
    """Return applications with these routes and a view that answers "ok"."""
    registry = RegistryApp(ours)
    for endpoint in {rule.endpoint for rule in ours.iter_rules()}:
        methods = {
            m for rule in ours.iter_rules(endpoint) for m in rule.methods or () if m != "HEAD"
        }
        registry.view(endpoint, *methods)(lambda request, **values: Response("ok"))
    found: dict[str, Callable[..., Any]] = {OUR_APP: registry, "bare Werkzeug": werkzeug_app}
    if find_spec("flask"):
        app = make_flask_app()
        for rule in plain.iter_rules():
            app.view_functions[rule.endpoint] = lambda **values: "ok"
        found["Flask"] = app
    if find_spec("falcon"):
        found["Falcon, unrolled, no grammar"] = make_falcon_app()
    return found


@Request.application
def werkzeug_app(request: Request) -> Any:
    try:
        plain.bind_to_environ(request.environ).match()
    except HTTPException as error:
        return error
    return Response("ok")


def make_falcon_app() -> Any:
    from falcon import App

    class Resource:
        def on_get(self, request: Any, response: Any, **values: str) -> None:
            response.text = "ok"

        on_head = on_put = on_post = on_patch = on_delete = on_get

    app = App()
    for path in falcon_paths():
        app.add_route(path, Resource())
    return app


def falcon_paths() -> dict[str, str]:
    """Return paths and endpoints: a path for each length of a name, as no variable spans slashes."""
    paths = {"/v2/": "base"}
    for length in range(1, 6):
        name = "/".join(f"{{c{i}}}" for i in range(length))
        for tail, endpoint in {
            "manifests/{reference}": "manifest",
            "tags/list": "tags",
            "blobs/{digest}": "blob",
            "blobs/uploads/": "blob-upload",
            "blobs/uploads/{uuid}": "blob-upload-chunk",
            "referrers/{digest}": "referrers",
        }.items():
            paths[f"/v2/{name}/{tail}"] = endpoint
    return paths


def make_falcon_router() -> Callable[..., Answer]:
    from falcon.routing import CompiledRouter

    class Resource:
        def __init__(self, endpoint: str) -> None:
            self.endpoint = endpoint

        def on_get(self, *_: Any, **__: Any) -> None: ...

    router = CompiledRouter()
    for path, endpoint in falcon_paths().items():
        router.add_route(path, Resource(endpoint))

    def match(path: str, method: str) -> Answer:
        found = router.find(path)
        if found is None:
            return None
        resource, _, values, _ = found
        assert isinstance(resource, Resource)
        return resource.endpoint, values

    return match


def make_starlette_router() -> Callable[..., Answer]:
    from starlette.routing import Match, Route

    def endpoint(request: Any) -> None: ...

    routes = [
        Route(path, endpoint, methods=methods.split(), name=name)
        for path, methods, name in [
            ("/v2/", "GET", "base"),
            ("/v2/{name:path}/blobs/uploads/", "POST", "blob-upload"),
            ("/v2/{name:path}/blobs/uploads/{uuid}", "GET PATCH PUT DELETE", "blob-upload-chunk"),
            ("/v2/{name:path}/blobs/{digest}", "GET DELETE", "blob"),
            ("/v2/{name:path}/manifests/{reference}", "GET PUT DELETE", "manifest"),
            ("/v2/{name:path}/tags/list", "GET", "tags"),
            ("/v2/{name:path}/referrers/{digest}", "GET", "referrers"),
        ]
    ]

    def match(path: str, method: str) -> Answer:
        scope = {"type": "http", "method": method, "path": path, "root_path": ""}
        for route in routes:
            matched, child = route.matches(scope)
            if matched is Match.FULL:
                return route.name, child["path_params"]
        return None

    return match


NAME, TAG = re.compile(_NAME).fullmatch, re.compile(_TAG).fullmatch


def f_string(name: str, tag: str) -> str:
    """Return a manifest's URL by an f-string, with the validation that `build` does."""
    if not isinstance(name, str) or NAME(name) is None:
        raise ValueError(f"repository name {name!r} is malformed")
    if not isinstance(tag, str) or TAG(tag) is None:
        raise ValueError(f"tag {tag!r} is malformed")
    return f"https://registry.example.com/v2/{name}/manifests/{tag}"
