"""The adapters of `Login` for requests and httpx, against the registry for tests and worse ones."""

import asyncio
import gc
import json
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import requests
from werkzeug.wrappers import Request, Response

from registry_routes import Login, errors
from registry_routes.digests import digest_of
from registry_routes.testing import ServedRegistry

from .served import serve

USERS = {"alice": "secret"}
BLOB = b"a blob" * 1000
# Authorities take time to load.
CLIENT_OPTIONS: dict[str, Any] = {"follow_redirects": True, "timeout": 20, "verify": False}


class Answer(NamedTuple):
    status: int
    content: bytes


Ask = Callable[..., Answer]


def with_requests(login: Login, session: requests.Session) -> Ask:
    def ask(method: str, url: str, content: Any = None, **options: Any) -> Answer:
        with session.request(method, url, data=content, **{"timeout": 20, **options}) as answer:
            return Answer(answer.status_code, answer.content)

    return ask


def plain_session(login: Login) -> Ask:
    session = requests.Session()
    session.auth = login.for_requests()
    return with_requests(login, session)


def own_session(login: Login) -> Ask:
    return with_requests(login, login.session())


def synchronous(login: Login) -> Ask:
    auth = login.for_httpx()

    def ask(method: str, url: str, content: Any = None, **options: Any) -> Answer:
        with httpx.Client(auth=auth, **CLIENT_OPTIONS) as client:
            answer = client.request(method, url, content=content, **options)
            return Answer(answer.status_code, answer.content)

    return ask


def asynchronous(login: Login) -> Ask:
    auth = login.for_httpx()

    async def request(method: str, url: str, content: Any, options: Any) -> Answer:
        if isinstance(content, Iterator):
            blocks = list(content)

            async def sent() -> Any:
                for block in blocks:
                    yield block

            content = sent()
        async with httpx.AsyncClient(auth=auth, **CLIENT_OPTIONS) as client:
            answer = await client.request(method, url, content=content, **options)
            return Answer(answer.status_code, answer.content)

    def ask(method: str, url: str, content: Any = None, **options: Any) -> Answer:
        return asyncio.run(request(method, url, content, options))

    return ask


every_library = pytest.mark.parametrize(
    "library", [plain_session, own_session, synchronous, asynchronous]
)
UNREACHABLE = requests.ConnectionError, httpx.TransportError
LATE = requests.Timeout, httpx.TimeoutException


def upload_url(registry: ServedRegistry, name: str = "a") -> str:
    return f"{registry.url}/v2/{name}/blobs/uploads/"


def statuses(registry: ServedRegistry, endpoint: str) -> list[int | None]:
    return [sent.status for sent in registry.requests if sent.endpoint == endpoint]


@every_library
class TestEveryLibrary:
    def test_one_token_for_each_set_of_scopes(self, library: Any) -> None:
        with serve(auth="bearer", users=USERS) as registry:
            registry.add_image("a:v1")
            ask = library(Login(registry.url, "alice", "secret"))
            for _ in range(3):
                assert ask("GET", f"{registry.url}/v2/a/tags/list").status == 200
                assert ask("GET", f"{registry.url}/v2/a/manifests/v1").status == 200
                assert ask("POST", upload_url(registry)).status == 202
            assert statuses(registry, "token") == [200, 200]
            assert statuses(registry, "tags") == [401, 200, 200, 200]
            assert statuses(registry, "blob-upload") == [401, 202, 202, 202]

    @pytest.mark.parametrize("status", [401, 403])
    def test_insufficient_scope_after_a_pull_token(self, library: Any, status: Any) -> None:
        """At an opaque URL, the client sends the token that it has used last."""

        @Request.application
        def registry(request: Request) -> Response:
            if request.path == "/token":
                return Response(json.dumps({"token": request.args["scope"].rpartition(":")[2]}))
            actions = "pull,push" if request.path == "/upload" else "pull"
            if request.headers.get("Authorization") == f"Bearer {actions}":
                return Response("welcome")
            error = "insufficient_scope" if "Authorization" in request.headers else None
            realm = f"http://{request.host}/token"
            scope = f"repository:a:{actions}"
            refused = errors.Unauthorized(realm=realm, scope=scope, error=error).get_response()
            refused.status_code = status if error else 401
            return refused

        with serve(registry) as served:
            ask = library(Login(served.url))
            assert ask("GET", f"{served.url}/v2/a/tags/list") == (200, b"welcome")
            assert ask("PATCH", f"{served.url}/upload", b"x") == (200, b"welcome")
            assert ask("PATCH", f"{served.url}/upload", b"x") == (200, b"welcome")
            assert [sent.status for sent in served.requests] == [
                401,
                200,
                200,
                status,
                200,
                200,
                200,
            ]

    def test_token_server_that_grants_less(self, library: Any) -> None:
        with serve(auth="bearer", users=USERS, granted_actions=["pull"]) as registry:
            ask = library(Login(registry.url, "alice", "secret"))
            status, content = ask("POST", upload_url(registry))
            assert (status, json.loads(content)["errors"][0]["code"]) == (401, "UNAUTHORIZED")
            assert statuses(registry, "token") == [200]
            assert statuses(registry, "blob-upload") == [401, 401]

    def test_token_that_ends_during_a_push_is_replaced_before(
        self, library: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise a stream, which cannot be sent again, would end in a 401."""
        now = [0.0]
        monkeypatch.setattr("registry_routes.login.time.monotonic", lambda: now[0])
        with serve(auth="bearer", users=USERS) as registry:
            ask = library(Login(registry.url, "alice", "secret"))
            for _ in range(2):
                url = f"{upload_url(registry)}?digest={digest_of(BLOB)}"
                assert ask("POST", url, b"" if not now[0] else iter([BLOB])).status in (201, 400)
                now[0] += 10_000
            assert registry.blob("a", digest_of(BLOB)) == BLOB
            assert statuses(registry, "token") == [200, 200]
            assert statuses(registry, "blob-upload").count(401) == 1

    def test_token_that_the_registry_forgets_is_replaced(self, library: Any) -> None:
        accepted = set[str]()
        given = list[str]()

        @Request.application
        def registry(request: Request) -> Response:
            if request.path == "/token":
                given.append(f"Bearer {len(given)}")
                accepted.add(given[-1])
                return Response(json.dumps({"token": given[-1].removeprefix("Bearer ")}))
            if request.headers.get("Authorization") in accepted:
                return Response(request.get_data())
            return errors.Unauthorized(realm=f"http://{request.host}/token").get_response()

        with serve(registry) as served:
            ask = library(Login(served.url))
            for _ in range(3):
                assert ask("PUT", f"{served.url}/v2/a/manifests/v1", b"content") == (
                    200,
                    b"content",
                )
                accepted.clear()
        assert len(given) == 3

    def test_token_server_that_is_down_slow_or_not_one(self, library: Any) -> None:
        with serve(auth="bearer", users=USERS) as registry:
            url = f"{registry.url}/v2/a/tags/list"
            registry.fail("token", "GET", timedelta(seconds=30))
            with pytest.raises(LATE):
                library(Login(registry.url, "alice", "secret"))("GET", url, timeout=0.3)
            ask = library(Login(registry.url, "alice", "secret"))
            registry.fail("token", "GET", "connection closed")
            with pytest.raises(UNREACHABLE):
                ask("GET", url)
            registry.fail("token", "GET", 502)
            with pytest.raises(errors.RegistryError, match="502"):
                ask("GET", url)
            assert ask("GET", url).status == 404

    def test_huge_answer_of_a_token_server_is_not_read_to_its_end(self, library: Any) -> None:
        sent = []

        def blocks() -> Iterator[bytes]:
            for _ in range(1000):
                sent.append(1)
                yield b" " * 65536

        @Request.application
        def registry(request: Request) -> Response:
            if request.path == "/token":
                return Response(blocks())
            realm = f"http://{request.host}/token"
            return Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})

        with serve(registry) as served:
            ask = library(Login(served.url, "alice", "secret"))
            with pytest.raises(ValueError, match="token"):
                ask("GET", f"{served.url}/v2/a/tags/list")
        assert len(sent) < 1000  # more than the sockets' buffers hold

    def test_wrong_password_is_the_registrys_error(self, library: Any) -> None:
        with (
            serve(auth="bearer", users=USERS) as registry,
            pytest.raises(errors.Unauthorized, match="incorrect username or password"),
        ):
            library(Login(registry.url, "alice", "wrong"))("GET", f"{registry.url}/v2/")
        with serve(auth="basic", users=USERS) as registry:
            ask = library(Login(registry.url, "alice", "wrong"))
            assert [ask("GET", f"{registry.url}/v2/").status for _ in range(2)] == [401, 401]
            assert len(registry.requests) == 3  # the wrong password is sent once for each request

    def test_identity_token(self, library: Any) -> None:
        with serve(auth="bearer", users=USERS) as registry:
            login = {"service": "registry", "offline_token": "true"}
            answer = requests.get(
                f"{registry.url}/token", login, auth=("alice", "secret"), timeout=9
            )
            identity_token = answer.json()["refresh_token"]
            ask = library(Login(registry.url, identity_token=identity_token))
            assert ask("POST", upload_url(registry)).status == 202

    @pytest.mark.parametrize("auth", ["basic", "bearer"])
    def test_blob_on_another_host_gets_no_credentials(self, library: Any, auth: Any) -> None:
        with serve(auth=auth, users=USERS, redirect_blobs=True) as registry:
            registry.storage.put_blob("a", digest_of(BLOB), [BLOB])
            ask = library(Login(registry.url, "alice", "secret"))
            for _ in range(2):
                assert ask("GET", f"{registry.url}/v2/a/blobs/{digest_of(BLOB)}") == (200, BLOB)

    def test_upload_on_another_host_gets_no_credentials(self, library: Any) -> None:
        challenge = {"WWW-Authenticate": 'Basic realm="r"'}
        with serve(Response(status=401, headers=challenge)) as other:
            with serve(auth="basic", users=USERS) as registry:
                ask = library(Login(registry.url, "alice", "secret"))
                assert ask("POST", upload_url(registry)).status == 202
                assert ask("PATCH", f"{other.url}/up", b"x").status == 401
            [request] = other.requests
            assert "Authorization" not in request.headers

    def test_redirect_of_a_form_takes_no_password_to_another_host(self, library: Any) -> None:
        bodies = list[bytes]()

        @Request.application
        def other(request: Request) -> Response:
            bodies.append(request.get_data())
            return Response('{"token": "x"}')

        @Request.application
        def registry(request: Request) -> Response:
            if request.path == "/token":
                if request.method == "GET":
                    return Response(status=405)
                return Response(status=307, headers={"Location": f"{elsewhere.url}/token"})
            return errors.Unauthorized(realm=f"http://{request.host}/token").get_response()

        with serve(other) as elsewhere, serve(registry) as served:
            ask = library(Login(served.url, "alice", "secret"))
            with pytest.raises((ValueError, httpx.StreamConsumed)):
                ask("GET", f"{served.url}/v2/")
        assert b"secret" not in b"".join(bodies)

    def test_body_that_cannot_be_sent_again_gets_its_401_back(self, library: Any) -> None:
        @Request.application
        def registry(request: Request) -> Response:
            content = request.get_data()  # all of it, or the client might not see the response
            if request.path == "/token":
                return Response('{"token": "x"}')
            if "Authorization" in request.headers:
                return Response(content)
            return errors.Unauthorized(realm=f"http://{request.host}/token").get_response()

        with serve(registry) as served:
            ask = library(Login(served.url, "alice", "secret"))
            url = f"{served.url}/v2/a/blobs/uploads/1"
            assert ask("PATCH", url, iter([BLOB])).status == 401
            assert ask("PATCH", url, iter([BLOB])) == (200, BLOB)  # now there is a token


@pytest.mark.parametrize("library", [plain_session, own_session])
def test_file_is_sent_again_from_its_position(library: Any) -> None:
    with serve(auth="bearer", users=USERS) as registry:
        ask = library(Login(registry.url, "alice", "secret"))
        file = BytesIO(b"before" + BLOB)
        file.seek(6)
        assert ask("POST", f"{upload_url(registry)}?digest={digest_of(BLOB)}", file).status == 201


def test_session_sends_nothing_from_a_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """requests would add it after a redirect, and to a request without credentials."""
    lines = [f"machine {host} login netrc password leaked\n" for host in ("localhost", "127.0.0.1")]
    (tmp_path / "netrc").write_text("".join(lines))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serve(auth="bearer", redirect_blobs=True) as registry:
        registry.storage.put_blob("a", digest_of(BLOB), [BLOB])
        with Login(registry.url).session() as session:
            for _ in range(2):
                answer = session.get(f"{registry.url}/v2/a/blobs/{digest_of(BLOB)}", timeout=20)
                assert answer.content == BLOB
            assert session.trust_env
        sent = [request.headers.get("Authorization", "") for request in registry.requests]
        assert [header[:7] for header in sent] == ["", "", "Bearer ", "", "Bearer ", ""]


@pytest.mark.parametrize("library", [plain_session, own_session, synchronous])
def test_threads_that_need_one_token_ask_for_it_once(library: Any) -> None:
    with serve(auth="bearer", users=USERS) as registry:
        registry.add_image("a:v1")
        registry.fail("token", "GET", timedelta(seconds=0.3))
        ask = library(Login(registry.url, "alice", "secret"))
        url = f"{registry.url}/v2/a/tags/list"
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: ask("GET", url).status, range(8)))
        assert found == [200] * 8
        assert statuses(registry, "token") == [200]


@pytest.mark.parametrize("library", [plain_session, own_session])
def test_threads_get_the_error_that_they_have_waited_for(library: Any) -> None:
    with serve(auth="bearer", users=USERS) as registry:
        for fault in timedelta(seconds=2), 503:
            registry.fail("token", "GET", fault)
        ask = library(Login(registry.url, "alice", "secret"))
        url = f"{registry.url}/v2/a/tags/list"
        with ThreadPoolExecutor(8) as pool:
            pulls = [pool.submit(ask, "GET", url, timeout=0.8) for _ in range(8)]
        assert [type(pull.exception()) for pull in pulls] == [requests.ReadTimeout] * 8
        assert len(statuses(registry, "token")) == 1


def test_tasks_get_a_token_each() -> None:
    with serve(auth="bearer", users=USERS) as registry:
        registry.add_image("a:v1")

        async def pull_twice() -> list[int]:
            auth = Login(registry.url, "alice", "secret").for_httpx()
            async with httpx.AsyncClient(auth=auth, timeout=20) as client:
                url = f"{registry.url}/v2/a/tags/list"
                return [
                    answer.status_code
                    for answer in await asyncio.gather(client.get(url), client.get(url))
                ]

        assert asyncio.run(pull_twice()) == [200, 200]
        assert set(statuses(registry, "token")) == {200}


def test_error_of_a_token_server_is_not_kept() -> None:
    """It would keep the body of the request that has failed."""
    with serve(auth="bearer", users=USERS) as registry:
        login = Login(registry.url, "alice", "wrong")
        with login.session() as session:
            try:
                session.get(f"{registry.url}/v2/a/tags/list", timeout=20)
            except errors.Unauthorized as error:
                kept = weakref.ref(error)
        gc.collect()
        assert kept() is None
