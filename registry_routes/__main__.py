"""The command line: ``python -m registry_routes``, or ``registry-routes``."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import NotFound
from werkzeug.routing import BuildError, RequestRedirect

from .errors import RegistryError, Unsupported
from .map import RegistryMap
from .reference import Reference
from .routes import DIALECTS, OCI_1_1
from .scopes import required_scopes
from .testing import serve
from .urls import URLBuilder, match_url


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with `argv`; returns the exit status: 1 for no match, no URL."""
    options = _parser().parse_args(argv)
    try:
        printed: str = options.command(options)
    except RequestRedirect as redirect:
        return _fail(f"{redirect.code} {redirect.name}: {redirect.new_url}")
    except RegistryError as error:
        methods = error.valid_methods if isinstance(error, Unsupported) else None
        allow = f" (Allow: {', '.join(methods)})" if methods else ""
        return _fail(f"{error.code} {error.error_code}: {error.description}{allow}")
    except NotFound as error:
        return _fail(str(error.description))
    except (BuildError, ValueError, OSError) as error:
        return _fail(str(error))
    print(printed)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="registry-routes", description="The routes of the container registry API."
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--dialect",
        choices=DIALECTS,
        default=OCI_1_1.name,
        help="the route table (default: %(default)s)",
    )
    shared.add_argument(
        "--prefix", default="", metavar="PATH", help="a path before every route, such as /registry"
    )
    shared.add_argument(
        "--root",
        metavar="URL-or-path",
        help="where the registry is, such as https://registry.example.com",
    )
    commands = parser.add_subparsers(required=True)

    routes = commands.add_parser("routes", parents=[shared], help="list the routes")
    routes.add_argument("--format", choices=["text", "markdown", "json"], default="text")
    routes.set_defaults(command=_routes)

    match = commands.add_parser("match", parents=[shared], help="what a request is routed to")
    match.add_argument(
        "method", nargs="?", default="GET", metavar="METHOD", help="%(default)s, if not given"
    )
    match.add_argument("url", metavar="URL-or-path", help="under the root, if that is given")
    match.set_defaults(command=_match)

    build = commands.add_parser("build", parents=[shared], help="build a URL")
    target = build.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--reference",
        metavar="REFERENCE",
        help="an image, such as nginx:1.27: the URL of its manifest, at the registry that the "
        "reference names, by https, or at the root if that is given",
    )
    target.add_argument("endpoint", nargs="?", metavar="ENDPOINT", help="one that `routes` lists")
    build.add_argument(
        "values",
        nargs="*",
        type=_pair,
        metavar="key=value",
        help="what the rule of the endpoint has in <>; whatever else goes into the query",
    )
    build.set_defaults(command=_build)

    registry = commands.add_parser("serve", help="serve a registry in memory, to try and to test")
    registry.add_argument(
        "--port", type=int, default=5000, help="its port on 127.0.0.1; 0 takes a free one"
    )
    registry.set_defaults(command=_serve)
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be key=value")
    return name, value


def _map_and_urls(options: argparse.Namespace) -> tuple[RegistryMap, URLBuilder]:
    routes = RegistryMap(DIALECTS[options.dialect], prefix=options.prefix)
    root = "/" if options.root is None else options.root
    return routes, URLBuilder(root, relative=root.startswith("/"), url_map=routes)


def _routes(options: argparse.Namespace) -> str:
    routes, urls = _map_and_urls(options)
    table = [
        {
            "endpoint": route.endpoint,
            "rule": urls.root
            + routes.table.prefix
            + "".join(text or f"<{name}>" for text, _, name in route.pieces()),
            "methods": list(route.methods or ["any"]),
            "spec": route.spec,
            "doc": route.doc,
        }
        for route in DIALECTS[options.dialect].routes
    ]
    if options.format == "json":
        return json.dumps(table, indent=2)
    heads = ["endpoint", "rule", "methods", "spec"]
    rows = [[" ".join(row[h]) if h == "methods" else str(row[h]) for h in heads] for row in table]
    if options.format == "markdown":
        rows = [[f"`{endpoint}`", f"`{rule}`", *rest] for endpoint, rule, *rest in rows]
        lines = [heads, ["---"] * len(heads), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return _aligned([[head.upper() for head in heads], *rows])


def _match(options: argparse.Namespace) -> str:
    routes, urls = _map_and_urls(options)
    method = options.method.upper()
    endpoint, values, query = match_url(options.url, method, root=urls.root, url_map=routes)
    scopes = required_scopes(endpoint, method, values, query)
    lines = [["endpoint", endpoint], *values.items(), ["scopes", " ".join(map(str, scopes)) or "-"]]
    return _aligned(lines)


def _build(options: argparse.Namespace) -> str:
    if options.reference is not None:
        reference = Reference.parse(options.reference)
        if options.root is None:
            options.root = reference.root()
        _, urls = _map_and_urls(options)
        return urls.manifest(reference)
    routes, urls = _map_and_urls(options)
    adapter = routes.bind("registry.invalid")
    return urls.root + adapter.build(options.endpoint, MultiDict(options.values))


def _serve(options: argparse.Namespace) -> str:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    with serve(port=options.port) as registry:
        print(
            f"A registry at {registry.url}, in memory: it keeps nothing. Ctrl-C stops it. Try:\n"
            f"  skopeo copy --dest-tls-verify=false docker://busybox docker://{registry.host}/busybox\n"
            f"  curl {registry.url}/v2/_catalog",
            flush=True,
        )
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
    return "It has stopped, and what was pushed is gone."


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
