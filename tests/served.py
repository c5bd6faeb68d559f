"""The registry that `serve` starts, and clients of it that follow the specification."""

import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx

from registry_routes import resolve_location, testing, url_map
from registry_routes.challenges import parse_challenges, parse_token
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_MANIFEST
from registry_routes.testing import ServedRegistry

ABSENT = f"sha256:{64 * '0'}"
USERS = {"alice": "secret", "bob": "p:w é"}


def serve(app: Any = None, **options: Any) -> AbstractContextManager[ServedRegistry]:
    """Serve with one map for all, because making a map takes longer than most tests."""
    if app is None:
        options = {"url_map": url_map, **options}
    return testing.serve(app, **options)


class Login(httpx.Auth):
    """Answers the registry's challenge, with one token for each set of scopes."""

    requires_response_body = True

    def __init__(self, user: str = "", password: str = "", oauth: bool = False) -> None:
        self.user, self.password, self.oauth = user, password, oauth

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        response = yield request
        if response.status_code != 401:
            return
        [challenge] = parse_challenges(response.headers)
        basic = httpx.BasicAuth(self.user, self.password)
        if challenge.scheme == "basic":
            yield from basic.auth_flow(request)
            return
        if self.oauth:
            url, fields = challenge.token_form(
                username=self.user, password=self.password, registry=request.url
            )
            token_request = httpx.Request("POST", url, data=fields)
        else:
            token_request = httpx.Request("GET", challenge.token_url(registry=request.url))
            if self.user:
                [token_request] = basic.auth_flow(token_request)
        answer = yield token_request
        if answer.status_code == 200:
            token = parse_token(answer.content).token
            request.headers["Authorization"] = f"Bearer {token}"
            yield request


def client_of(registry: ServedRegistry, transport: str = "http", **options: Any) -> httpx.Client:
    """A client over HTTP, or one that calls the application without a socket ("wsgi")."""
    own = httpx.WSGITransport(registry.app) if transport == "wsgi" else None
    options = {
        "follow_redirects": True,
        "verify": False,
        **options,
    }  # authorities take time to load
    return httpx.Client(base_url=registry.url, transport=own, **options)


@contextmanager
def served(
    app: Any = None,
    *,
    transport: str = "http",
    login: Any = None,
    headers: dict[str, str] | None = None,
    verify: Any = False,
    **options: Any,
) -> Iterator[tuple[ServedRegistry, httpx.Client]]:
    """Serve a registry with these options, and yield it and a client of it."""
    of_client = {"auth": login, "headers": headers, "verify": verify, "timeout": 30}
    with serve(app, **options) as registry, client_of(registry, transport, **of_client) as client:
        yield registry, client


def push_blob(client: httpx.Client, name: str, content: bytes, chunk: int | None = None) -> str:
    """Push a blob as in the specification: in chunks, or by a POST, which may begin an upload."""
    digest = digest_of(content)
    query = {} if chunk else {"digest": digest}
    response = client.post(
        f"/v2/{name}/blobs/uploads/", params=query, content=b"" if chunk else content
    )
    if response.status_code == 202:
        for start in range(0, len(content), chunk) if chunk else ():
            location = resolve_location(str(response.url), response.headers["Location"])
            response = client.patch(location, content=content[start : start + (chunk or 0)])
            assert response.status_code == 202, response.text
        location = resolve_location(str(response.url), response.headers["Location"], digest=digest)
        response = client.put(location, content=b"" if chunk else content)
    assert response.status_code == 201, response.text
    return digest


def push_image(client: httpx.Client, name: str, tag: str, content: bytes) -> str:
    layer = {"mediaType": "x/y", "digest": push_blob(client, name, content), "size": len(content)}
    manifest = json.dumps({"schemaVersion": 2, "layers": [layer]}).encode()
    response = client.put(
        f"/v2/{name}/manifests/{tag}", content=manifest, headers={"Content-Type": IMAGE_MANIFEST}
    )
    assert response.status_code == 201, response.text
    return digest_of(manifest)


def wait_until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition did not become true within ten seconds")
