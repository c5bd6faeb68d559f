"""Small applications for the tests of `RegistryApp`."""

from typing import Any

from werkzeug.wrappers import Response

from registry_routes import RegistryApp, RegistryMap, RegistryRequest, errors, url_map

from .nasty import SHA256

VERSION = "Docker-Distribution-API-Version"


def small_registry(routes: RegistryMap = url_map) -> RegistryApp:
    """An application with a view or two for some of the endpoints."""
    app = RegistryApp(routes)

    @app.view("manifest", "GET")
    def get_manifest(
        request: RegistryRequest, name: str, tag: str = "", digest: str = ""
    ) -> Response:
        return Response(f"{name} {tag or digest}")

    @app.view("manifest", "PUT")
    def put_manifest(request: RegistryRequest, name: str, **reference: str) -> Response:
        response = Response(status=201)
        response.location = request.urls.manifest(name, SHA256)
        return response

    @app.view("blob", "GET", "DELETE")
    def blob(request: RegistryRequest, name: str, digest: str) -> Response:
        raise errors.BlobUnknown(detail={"digest": digest})

    @app.view("tags", "GET")
    def tags(request: RegistryRequest, name: str) -> Response:
        raise RuntimeError("a secret")

    @app.view("blob-upload", "POST")
    def upload(request: RegistryRequest, name: str) -> Response:
        return Response(request.get_data() + request.url.encode())

    return app


def app_with_view(view: Any) -> RegistryApp:
    """An application whose view of the catalog calls `view` without arguments."""
    app = RegistryApp(url_map)
    app.view("catalog")(lambda request: view())
    return app


def fail(error: Exception | type[Exception]) -> Any:
    raise error


def code_of(response: Response) -> str:
    """The error code in a response, which must have the form of a registry's error."""
    assert response.mimetype == "application/json"
    assert response.headers[VERSION] == "registry/2.0"
    (entry,) = response.get_json()["errors"]
    assert isinstance(entry["code"], str)
    return entry["code"]


def requests_of(app: RegistryApp) -> list[RegistryRequest]:
    """The requests that the application answers from now on."""
    requests: list[RegistryRequest] = []

    @app.after_request
    def see(request: RegistryRequest, response: Response) -> Response:
        requests.append(request)
        return response

    return requests
