"""An OCI image layout as a read-only registry, beside a page that lists its images, in Flask.

    python examples/flask_app.py --layout ./busybox --name library/busybox --port 5002

The app's URL map is a `RegistryMap`: the registry's routes are its routes too, and ``url_for``
builds their URLs. Flask answers a route without a view with a 500, so a hook makes that a 404.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, render_template_string, request, send_file, url_for
from werkzeug.exceptions import HTTPException

from registry_routes import RegistryMap, error_response, errors, grammar
from registry_routes.paging import next_link, paginate, parse_page

PAGE = """<!doctype html>
<title>{{ name }}</title>
<h1>{{ name }}</h1>
<ul>
{% for tag in tags %}<li><a href="{{ url_for("manifest", name=name, tag=tag) }}">{{ tag }}</a></li>
{% endfor %}</ul>
"""


class App(Flask):
    url_map_class = RegistryMap  # type: ignore[assignment]  # mypy minds its own arguments


def make_app(layout: Path, name: str) -> Flask:
    """An app that serves the images of `layout` as those of the repository `name`."""
    layout = layout.resolve()  # Flask takes a relative path from where this file is
    app = App(__name__)
    app.register_error_handler(HTTPException, error_response)

    def descriptors() -> list[dict[str, Any]]:
        index = json.loads((layout / "index.json").read_bytes())
        return list(index["manifests"])

    def tags() -> dict[str, dict[str, Any]]:
        key = "org.opencontainers.image.ref.name"
        named = (((one.get("annotations") or {}).get(key, ""), one) for one in descriptors())
        return {tag: one for tag, one in named if grammar.TAG.fits(tag)}

    def manifests() -> dict[str, dict[str, Any]]:
        """Every manifest of the layout, by its digest: those of its index, and theirs."""
        found, left = {}, descriptors()
        while left:
            one = left.pop()
            path = file_of(one["digest"])
            if one["digest"] not in found and path is not None:
                found[one["digest"]] = one
                left += json.loads(path.read_bytes()).get("manifests") or []
        return found

    def file_of(digest: str) -> Path | None:
        """The file of a blob, and a manifest is one, if the layout has it."""
        algorithm, _, encoded = digest.partition(":")
        if algorithm not in grammar.REGISTERED_ALGORITHMS:
            return None
        path = layout / "blobs" / algorithm / encoded
        return path if path.is_file() else None

    @app.get("/")
    def front_page() -> str:
        return render_template_string(PAGE, name=name, tags=sorted(tags()))

    @app.before_request
    def only_what_is_here() -> None:
        if request.endpoint is None:
            return  # what Flask is about to raise says more
        if request.endpoint not in app.view_functions:
            raise errors.RouteUnknown  # of the registry's routes, those without a view below
        if request.method not in ("GET", "HEAD"):
            raise errors.Unsupported("this registry is read-only", valid_methods=["GET", "HEAD"])
        wanted = (request.view_args or {}).get("name", name)
        if wanted != name:
            raise errors.NameUnknown(detail={"name": wanted})

    @app.after_request
    def with_version(response: Response) -> Response:
        response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
        return response

    @app.endpoint("base")
    def base() -> dict[str, str]:
        return {}

    @app.endpoint("tags")
    def list_tags(name: str) -> Response:
        n, last = parse_page(request.args)
        names, more = paginate(tags(), n, last)
        response = jsonify(name=name, tags=names)
        if more:
            response.headers["Link"] = next_link(url_for("tags", name=name, n=n, last=names[-1]))
        return response

    @app.endpoint("manifest")
    def manifest(name: str, tag: str = "", digest: str = "") -> Response:
        digest = digest or tags().get(tag, {}).get("digest", "")
        descriptor, path = manifests().get(digest), file_of(digest)
        if descriptor is None or path is None:
            raise errors.ManifestUnknown(detail={"reference": tag or digest})
        return content(path, descriptor["mediaType"], digest)

    @app.endpoint("blob")
    def blob(name: str, digest: str) -> Response:
        path = file_of(digest)
        if path is None:
            raise errors.BlobUnknown(detail={"digest": digest})
        return content(path, "application/octet-stream", digest)

    def content(path: Path, media_type: str, digest: str) -> Response:
        response = send_file(path, mimetype=media_type, etag=digest)
        response.headers["Docker-Content-Digest"] = digest
        return response

    return app


def main() -> None:
    parser = argparse.ArgumentParser(
        description="An OCI image layout as a read-only registry.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--layout", required=True, type=Path, help="the layout's directory")
    parser.add_argument("--name", required=True, help="its repository name, library/busybox say")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", default=5002, type=int, help="the port")
    options = parser.parse_args()
    if not (options.layout / "index.json").is_file():
        parser.error(f"{str(options.layout)!r} must be an OCI image layout, with an index.json")
    app = make_app(options.layout, grammar.NAME.check(options.name))
    app.run(options.host, options.port)


if __name__ == "__main__":
    main()
