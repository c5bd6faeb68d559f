"""What an operator watches: requests by route, method and status, and their time, for Prometheus.

No label comes from a client: a repository's name is never one, and what is no route is "none".
"""

import os
import tempfile
from datetime import timedelta
from functools import partial
from typing import Any

from werkzeug.wrappers import Response

from registry_routes import RegistryMap

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # in the environment, as prometheus_client wants it
OBSERVE = "registry_routes.observe"  # in a request's environ: what the server calls at its end
OWN_PATHS = {"/healthz": "healthz", "/token": "token"}  # of the examples, next to the API
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)  # seconds


def share_metrics() -> None:
    """Have all workers of this program add up their numbers. Call this before they start."""
    if not os.environ.get(DIRECTORY):
        os.environ[DIRECTORY] = tempfile.mkdtemp(prefix="registry-metrics-")


class Metrics:
    """A WSGI application that has ``/metrics`` next to another one, whose requests it counts.

    The server calls what is at `OBSERVE` in the environ when a response has been sent.
    """

    def __init__(self, app: Any, url_map: RegistryMap) -> None:
        import prometheus_client.multiprocess  # it reads the environment at this moment

        self.app, self.url_map = app, url_map
        self.client = prometheus_client
        self.collectors = prometheus_client.CollectorRegistry()
        self.requests = prometheus_client.Histogram(
            "registry_request_seconds",
            "The time of requests, until their responses were sent",
            ["route", "method", "status"],
            buckets=BUCKETS,
            registry=prometheus_client.CollectorRegistry(),  # this worker's own, which is not shown
        )
        collector: Any = prometheus_client.multiprocess.MultiProcessCollector
        collector(self.collectors)

    def __call__(self, environ: Any, start_response: Any) -> Any:
        path = environ["PATH_INFO"].encode("latin-1").decode(errors="replace")
        if path == "/metrics":
            text = self.client.generate_latest(self.collectors)
            return Response(text, content_type=self.client.CONTENT_TYPE_LATEST)(
                environ, start_response
            )
        method = environ["REQUEST_METHOD"]
        found = self.url_map.table.match(path, method)
        route = found[0].endpoint if found else OWN_PATHS.get(path, "none")
        method = method if method in METHODS else "other"
        environ[OBSERVE] = partial(self._observe, route, method)
        return self.app(environ, start_response)

    def _observe(self, route: str, method: str, status: int, took: timedelta) -> None:
        self.requests.labels(route, method, str(status)).observe(took.total_seconds())
