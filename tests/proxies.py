"""The proxy of the examples in this process, its clients, and upstreams that misbehave."""

import io
import json
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
from proxy import Proxy
from requests.adapters import BaseAdapter
from upstream import Upstream
from urllib3 import HTTPResponse
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_INDEX
from registry_routes.paging import parse_next_link
from registry_routes.registry import MemoryStorage, MissingError, Storage
from registry_routes.testing import ServedRegistry

from .served import serve, wait_until

LAYER = random.Random(17).randbytes(2_000_000)  # several blocks
BLOB = f"/v2/library/nginx/blobs/{digest_of(LAYER)}"
SMALL = b"a blob of one block"
SMALL_BLOB = f"/v2/library/nginx/blobs/{digest_of(SMALL)}"
LATEST = "/v2/library/nginx/manifests/latest"
INDEX = {"Content-Type": IMAGE_INDEX}


class ProxyClient:
    """A client of a proxy. It also sees what the proxy keeps, and its first upstream.

    The namespaces of the upstreams at `urls` are their hosts, if they are not given.
    """

    def __init__(
        self,
        *urls: str,
        namespaces: Sequence[str] = (),
        fresh_for: float = 0,
        timeout: float = 5,
        storage: Storage | None = None,
        user: tuple[str, str] | None = None,
    ) -> None:
        self.storage = storage or MemoryStorage()
        namespaces = namespaces or [urlsplit(url).netloc for url in urls]
        upstreams = {
            name: Upstream(name, url, self.storage, user, timeout)
            for name, url in zip(namespaces, urls, strict=True)
        }
        for upstream in upstreams.values():
            weakref.finalize(self, upstream.session.close)
        self.views = Proxy(upstreams, fresh_for)
        self.upstream = upstreams[namespaces[0]]
        self.app = self.views.app()
        self.client = Client(self.app)
        self.head = self.client.head

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, buffered=True, **options)

    def has_blob(self, digest: str) -> bool:
        try:
            self.storage.open_blob("library/nginx", digest)
        except MissingError:
            return False
        return True

    def wait_until_done(self) -> None:
        """Wait until no blob is being fetched or kept."""
        wait_until(lambda: not self.views.fetches._running)


@contextmanager
def registry(**options: Any) -> Iterator[ServedRegistry]:
    """A registry with an image of `LAYER` and `SMALL`, to which no request has been made."""
    with serve(**options) as upstream:
        upstream.add_image("library/nginx:latest", layers=[LAYER, SMALL])
        upstream.requests.clear()
        yield upstream


def requests_to(upstream: ServedRegistry) -> list[tuple[str, str | None]]:
    return [(request.method, request.endpoint) for request in upstream.requests]


class Canned(BaseAdapter):
    """Answers the requests of a session, without a network.

    :param answers: a status, headers and a body for each path, or a function of the request that
        returns these. Any other path cannot be reached.
    """

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__()
        self.answers = answers
        self.sent: list[requests.PreparedRequest] = []

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:  # type: ignore[override]
        self.sent.append(request)
        assert request.url is not None
        answer = self.answers.get(urlsplit(request.url).path)
        if answer is None:
            raise requests.ConnectionError("it is away")
        status, headers, body = answer(request) if callable(answer) else answer
        response = requests.Response()
        response.status_code, response.url, response.request = status, request.url, request
        response.headers.update(headers)
        response.raw = HTTPResponse(
            io.BytesIO(body), headers, status, preload_content=False, request_method=request.method
        )
        return response

    @property
    def paths(self) -> list[str]:
        return [urlsplit(str(request.url)).path for request in self.sent]

    def close(self) -> None:
        pass


def canned(
    answers: dict[str, Any], root: str = "https://r.example", **options: Any
) -> tuple[ProxyClient, Canned]:
    """A client of a proxy whose upstream gives these answers, and the upstream's side."""
    proxy, adapter = ProxyClient(root, **options), Canned(answers)
    for scheme in "https://", "http://":
        proxy.upstream.session.mount(scheme, adapter)
    return proxy, adapter


class Slow:
    """An upstream whose blob comes in two halves, the second when it is told to, if it waits."""

    def __init__(
        self, content: bytes = LAYER, *, says_length: bool = True, waits: bool = True
    ) -> None:
        self.content = content
        self.says_length = says_length
        self.go_on = threading.Event()
        if not waits:
            self.go_on.set()
        self.begun: list[str] = []
        self.ended = threading.Event()
        self.sent = 0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        self.begun.append(environ["PATH_INFO"])
        response = Response(self.halves(), mimetype="application/octet-stream")
        if self.says_length:
            response.content_length = len(self.content)
        return response(environ, start_response)

    def halves(self) -> Iterator[bytes]:
        half = len(self.content) // 2
        try:
            yield self.content[:half]
            self.go_on.wait(10)
            for start in range(half, len(self.content), 65536):
                yield self.content[start : start + 65536]
                self.sent = start
                time.sleep(0.0005)
        finally:
            self.ended.set()


@contextmanager
def slow(source: Slow, **options: Any) -> Iterator[ProxyClient]:
    """A client of a proxy whose upstream is `source`."""
    with serve(source) as upstream:
        try:
            yield ProxyClient(upstream.url, **options)
        finally:
            source.go_on.set()


def pages_of(get: Callable[[str], Any], path: str, key: str = "tags") -> list[list[str]]:
    """Return the pages of a list, each at the path that the one before it links to."""
    pages, url = [], f"http://h{path}"
    while url:
        page = get(url.removeprefix("http://h"))
        pages.append(json.loads(page.text)[key])
        url = parse_next_link(url, page.headers.get("Link")) or ""
    return pages


def read_some(response: Any, size: int) -> bytes:
    """Return the first `size` bytes of a response, and what came with them."""
    received, blocks = b"", response.iter_encoded()
    while len(received) < size:
        received += next(blocks)
    return received


def all_at_once(count: int, act: Callable[[], Any]) -> list[Any]:
    """Return the results of `count` threads that start at the same time."""
    barrier = threading.Barrier(count)

    def together(_: int) -> Any:
        barrier.wait(30)
        return act()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(together, range(count)))
