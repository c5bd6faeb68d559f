"""A container registry that keeps its content in a directory or in an object store.

    python examples/registry.py --host 127.0.0.1 --port 5000 --storage ./registry-data

`registry_routes.registry` has the views, for the whole of the distribution-spec 1.1; `storage.py`
the storage, a directory or an object store; `serving.py` the server, on gunicorn. No state is in a
process, so several workers (``--workers N``) can serve one directory, and several machines one
object store (``--storage s3://bucket/prefix``). The registry has neither authentication nor TLS:
put it behind a proxy that has both, or keep it on your own machine.
"""

import argparse
import sys
from datetime import timedelta
from typing import Any

import collection
from health import add_health
from metrics import Metrics, share_metrics
from nginx import add_accel
from serving import OneLineParser, Server, add_server_options
from storage import CheckedStorage, DirectoryStorage, check_place, is_bucket, storage_at

from registry_routes import OCI_1_1, RegistryMap
from registry_routes.registry import make_registry

# A download that begins within this time may take longer. A client that resumes it asks the
# registry for a new URL.
URL_LIFETIME = timedelta(hours=1)


def make_app(
    storage: CheckedStorage,
    *,
    read_only: bool = False,
    x_accel: bool = False,
    redirect: bool = False,
    metrics: bool = False,
) -> Any:
    """Return the registry, with its health check.

    :param x_accel: let nginx send the blobs of a directory, as `nginx.conf` does.
    :param redirect: let clients get the blobs from the object store.
    :param metrics: serve ``/metrics`` too.
    """
    url_map = RegistryMap(dialect=OCI_1_1.subset(methods=["GET"]) if read_only else OCI_1_1)
    blob_urls = URL_LIFETIME if redirect else None
    app: Any = make_registry(storage, url_map=url_map, blob_urls=blob_urls)
    if x_accel and isinstance(storage, DirectoryStorage):
        app = add_accel(app, storage.directory)
    app = add_health(app, storage)
    return Metrics(app, url_map) if metrics else app


def main() -> None:
    if sys.argv[1:2] == ["collect"]:
        sys.exit(collection.main(sys.argv[2:]))
    parser = OneLineParser(
        description="A container registry on the routes of registry_routes.",
        epilog="`registry.py collect` deletes content that is no longer needed: see `collect "
        "--help`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_server_options(parser, port=5000)
    parser.add_argument("--read-only", action="store_true", help="refuse pushes and deletes")
    parser.add_argument(
        "--x-accel",
        action="store_true",
        help="let nginx, with nginx.conf, send blobs from the directory; without nginx, clients "
        "get no blobs",
    )
    parser.add_argument(
        "--redirect",
        action="store_true",
        help="send clients to the object store for blobs, with signed URLs; they must be able to "
        "reach it",
    )
    parser.add_argument(
        "--metrics", action="store_true", help="serve /metrics for Prometheus, to all clients"
    )
    options = parser.parse_args()
    if options.redirect and not is_bucket(options.storage):
        parser.error("--redirect needs an object store as --storage")
    if options.metrics:
        share_metrics()
    greeting = (
        f"A registry at http://{{host}}, its data in {options.storage}. Try:\n"
        "  skopeo copy --dest-tls-verify=false docker://busybox docker://{host}/library/busybox\n"
        "  skopeo inspect --tls-verify=false docker://{host}/library/busybox\n"
        "  curl http://{host}/v2/_catalog"
    )
    server = Server(
        lambda: make_app(
            storage_at(options.storage, create=False),
            read_only=options.read_only,
            x_accel=options.x_accel,
            redirect=options.redirect,
            metrics=options.metrics,
        ),
        options,
        greeting,
    )
    # After `Server`, because this may create a directory, and `Server` may fail.
    check_place(parser, options.storage, read_only=options.read_only)
    server.run()


if __name__ == "__main__":
    main()
