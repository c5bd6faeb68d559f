"""An OCI image layout as a read-only registry, with a page that lists its images, in Flask.

    python examples/flask_app.py --layout ./busybox --name library/busybox --port 5006

The app's URL map is a `RegistryMap`, so ``url_for`` builds the registry's URLs too. The map has
only the routes and methods that the app serves; it answers all other requests with the registry's
errors.
"""

from typing import Any

from flask import Flask, Response, jsonify, render_template_string, request, url_for
from layout import Layout, parse_arguments
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from registry_routes import OCI_1_1, RegistryMap, RegistryRequest, error_response
from registry_routes.paging import next_link, paginate, parse_page
from registry_routes.registry import blob_response, manifest_response

PAGE = """<!doctype html>
<title>{{ name }}</title>
<h1>{{ name }}</h1>
<ul>
{% for tag in tags %}<li><a href="{{ url_for("manifest", name=name, tag=tag) }}">{{ tag }}</a></li>
{% endfor %}</ul>
"""


class Routes(RegistryMap):
    def __init__(self, **options: Any) -> None:  # Flask's
        served = OCI_1_1.subset("base", "tags", "manifest", "blob", methods=["GET"])
        super().__init__(dialect=served, **options)


class App(Flask):
    url_map_class = Routes  # type: ignore[assignment]  # mypy compares the constructors


def make_app(layout: Layout) -> Flask:
    """Return an app that serves the images of `layout`."""
    app = App(__name__)
    app.register_error_handler(HTTPException, error_response)

    @app.get("/")
    def front_page() -> str:
        return render_template_string(PAGE, name=layout.name, tags=sorted(layout.tags()))

    @app.before_request
    def check_name() -> None:
        if "name" in (request.view_args or {}):
            layout.check_name(request.view_args["name"])  # type: ignore[index]

    @app.after_request
    def add_version(response: Response) -> Response:
        response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
        return response

    @app.endpoint("base")
    def base() -> dict[str, str]:
        return {}

    @app.endpoint("tags")
    def list_tags(name: str) -> Response:
        n, last = parse_page(request.args)
        names, more = paginate(layout.tags_after(last), n)
        response = jsonify(name=name, tags=names)
        if more:
            response.headers["Link"] = next_link(url_for("tags", name=name, n=n, last=names[-1]))
        return response

    @app.endpoint("manifest")
    def manifest(name: str, tag: str = "", digest: str = "") -> BaseResponse:
        return manifest_response(RegistryRequest(request.environ), *layout.manifest(tag, digest))

    @app.endpoint("blob")
    def blob(name: str, digest: str) -> BaseResponse:
        # Not Flask's `send_file`, which answers ranges differently, and 416 with an HTML page.
        return blob_response(RegistryRequest(request.environ), digest, layout.open_blob(digest))

    return app


def main() -> None:
    layout, host, port = parse_arguments(port=5006)
    make_app(layout).run(host, port)


if __name__ == "__main__":
    main()
