"""The command line: ``python -m registry_routes``, or ``registry-routes``."""

import argparse
import io
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import NotFound
from werkzeug.routing import BuildError, RequestRedirect

from .app import find_closest
from .errors import RegistryError, Unsupported
from .grammar import ALGORITHM
from .map import RegistryMap, RouteNotBuilt
from .reference import Reference
from .routes import DIALECTS, OCI_1_1, Dialect
from .scopes import required_scopes
from .testing import serve
from .urls import URLBuilder, match_url

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with `argv`, and return the exit status.

    The status is 1 if nothing matches or no URL can be built, 2 for a wrong command line, and 141
    if stdout was closed, as after SIGPIPE.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does
    try:
        try:
            return _run(argv)
        finally:
            print(end="", flush=True)
    except OSError as error:
        # Otherwise Python would write the rest when it exits, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141 if isinstance(error, BrokenPipeError) else _fail(str(error))


def _run(argv: Sequence[str] | None) -> int:
    options = _make_parser().parse_args(argv)
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
    except BrokenPipeError:
        raise
    except (BuildError, ValueError, OSError) as error:
        return _fail(str(error))
    print("\n".join(map(_escape, printed.split("\n"))))
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(_escape(message))


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="registry-routes", description="The routes of the container registry API."
    )
    shared = _Parser(add_help=False)
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
    parser.add_argument("--version", action="version", version=f"%(prog)s {_describe_version()}")
    commands = parser.add_subparsers(required=True)

    routes = commands.add_parser("routes", parents=[shared], help="list the routes")
    routes.add_argument("--format", choices=["text", "markdown", "json"], default="text")
    routes.set_defaults(command=_list_routes)

    match = commands.add_parser("match", parents=[shared], help="show how a request is routed")
    match.add_argument(
        "method", nargs="?", default="GET", metavar="METHOD", help="default: %(default)s"
    )
    match.add_argument("url", metavar="URL-or-path", help="under the root, if one is given")
    match.set_defaults(command=_match)

    build = commands.add_parser(
        "build",
        parents=[shared],
        help="build a URL",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_describe_endpoints(),
    )
    target = build.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--reference",
        metavar="REFERENCE",
        help="build the URL of an image's manifest, such as nginx:1.27, at the registry that the "
        "reference names (by https), or at the root if one is given",
    )
    target.add_argument("endpoint", nargs="?", metavar="ENDPOINT", help="one that `routes` lists")
    build.add_argument(
        "values",
        nargs="*",
        type=_split_pair,
        metavar="name=value",
        help="the endpoint's values and query parameters, which are checked",
    )
    build.add_argument(
        "--query",
        action="append",
        default=[],
        type=_split_pair,
        metavar="name=value",
        help="another query parameter, such as a registry's own token; may be repeated",
    )
    build.set_defaults(command=_build)

    registry = commands.add_parser("serve", help="serve a registry in memory, to try it out")
    registry.add_argument(
        "--port", type=int, default=5000, help="the port on 127.0.0.1; 0 takes a free one"
    )
    registry.set_defaults(command=_serve)
    return parser


def _describe_version() -> str:
    try:
        own = version("registry-routes")
    except PackageNotFoundError:  # the program runs from its source
        own = "not installed"
    return f"{own} (Werkzeug {version('werkzeug')})"


def _split_pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be name=value")
    return name, value


def _make_map_and_urls(options: argparse.Namespace) -> tuple[RegistryMap, URLBuilder]:
    routes = RegistryMap(dialect=DIALECTS[options.dialect], prefix=options.prefix)
    root = "/" if options.root is None else options.root
    return routes, URLBuilder(root, relative=root.startswith("/"), url_map=routes)


def _list_routes(options: argparse.Namespace) -> str:
    routes, urls = _make_map_and_urls(options)
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
    return _align([[head.upper() for head in heads], *rows])


def _match(options: argparse.Namespace) -> str:
    if "/" in options.method:
        raise ValueError(f"the method comes first: match {options.url} {options.method}")
    routes, urls = _make_map_and_urls(options)
    method = options.method.upper()
    try:
        endpoint, values, query = match_url(options.url, method, root=urls.root, url_map=routes)
    except NotFound as error:
        if isinstance(error, RegistryError):
            raise
        root, api, _ = options.url.partition(f"{routes.table.root}/")
        hint = f"--root {root}" if api and root else "--root"
        raise ValueError(f"{error.description}; say where it is by {hint}") from None
    scopes = required_scopes(endpoint, method, values, query)
    lines = [["endpoint", endpoint], *values.items(), ["scopes", " ".join(map(str, scopes)) or "-"]]
    return _align([[head, repr(value)[1:-1]] for head, value in lines])


# The query parameters of each endpoint. The kind of a value is a number, an algorithm, text, or the
# name of a converter.
_PARAMETERS = {
    "catalog": {"n": "number", "last": "text"},
    "tags": {"n": "number", "last": "text"},
    "manifest": {"tag": "tag", "ns": "text"},
    "blob": {"ns": "text"},
    "blob-upload": {
        "mount": "digest",
        "from": "repository",
        "digest": "digest",
        "digest-algorithm": "algorithm",
    },
    "blob-upload-chunk": {"digest": "digest"},
    "referrers": {"artifactType": "text", "n": "number", "last": "text"},
}
_MAY_BE_REPEATED = ("tag", "artifactType")


def _build(options: argparse.Namespace) -> str:
    if options.reference is not None:
        reference = Reference.parse(options.reference)
        if options.root is None:
            options.root = reference.root()
        _, urls = _make_map_and_urls(options)
        query: dict[str, Any] = MultiDict(options.query).to_dict(flat=False)
        return urls.manifest(reference, **query)
    routes, urls = _make_map_and_urls(options)
    endpoint, given = options.endpoint, MultiDict(options.values)
    choices = routes.table.variables(endpoint)
    if not choices:
        near = find_closest(endpoint, {route.endpoint for route in routes.dialect.routes})
        raise ValueError(f"endpoint {endpoint!r} is not in the dialect: choose {near}")
    parameters = _PARAMETERS.get(endpoint, {})
    known = parameters.keys() | {name for names in choices for name in names}
    for name in given:
        if name not in known:
            near = find_closest(name, known) if known else "nothing"
            raise ValueError(
                f"endpoint {endpoint!r} takes {near}, not {name!r}; give others by --query"
            )
    names = max((names for names in choices if given.keys() >= set(names)), key=len, default=None)
    if names is None:
        raise RouteNotBuilt(BuildError(endpoint, given, None), choices)
    values = {name: _take_only(name, given.poplist(name)) for name in names}
    for name, texts in given.lists():
        for text in texts if name in _MAY_BE_REPEATED else [_take_only(name, texts)]:
            _check(routes.dialect, name, parameters[name], text)
    return urls.build(endpoint, values, MultiDict([*given.items(multi=True), *options.query]))


def _take_only(name: str, values: list[str]) -> str:
    if len(values) > 1:
        raise ValueError(f"{name} is given more than once")
    return values[0]


def _check(dialect: Dialect, name: str, kind: str, text: str) -> None:
    if kind == "number":
        if not (text.isascii() and text.isdecimal()):
            raise ValueError(f"{name} {text!r} must be a whole number, 0 or more")
    elif kind == "algorithm":
        ALGORITHM.check(text)
    elif kind != "text":
        dialect.converters[kind].grammar.check(text)


def _describe_endpoints() -> str:
    rows = []
    for route in OCI_1_1.routes:
        variables = OCI_1_1.variables(route)
        parameters = _PARAMETERS.get(route.endpoint, {})
        optional = [f"[{name}]" for name in parameters if name not in variables]
        rows.append([f"  {route.endpoint}", " ".join([*variables, *optional])])
    return f"what each endpoint takes, optional query parameters in []:\n{_align(rows)}"


def _serve(options: argparse.Namespace) -> str:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    with serve(port=options.port) as registry:
        print(
            f"A registry in memory at {registry.url}. Ctrl-C stops it, and its content is lost.\n"
            "Try:\n"
            f"  skopeo copy --dest-tls-verify=false docker://busybox docker://{registry.host}/busybox\n"
            f"  curl {registry.url}/v2/_catalog",
            flush=True,
        )
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
    return "The registry has stopped. Its content was deleted."


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _escape(text: str) -> str:
    """Return `text` with escapes for characters that move the cursor or look like other text."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _warn(message: str) -> None:
    print(_escape(message), file=sys.stderr)


def _fail(message: str) -> int:
    _warn(message)
    return 1


if __name__ == "__main__":
    sys.exit(main())
