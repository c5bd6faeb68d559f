"""The gateway of the examples in front of other registries: nothing leads around its policy."""

import io
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import requests
from werkzeug.test import Client
from werkzeug.wrappers import Request, Response

from registry_routes.challenges import parse_challenges
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_MANIFEST
from registry_routes.testing import ServedRegistry, serve

from .fakes import CONFIG, IMAGE, LAYER, artifactory, nexus
from .fronts import FrontClient
from .proxies import LAYER as BLOB
from .proxies import Slow, read_some
from .registry_client import Body

UPLOADS = "/v2/team/app/blobs/uploads/"


def test_redirects_of_blobs_pass_through_unless_they_are_streamed() -> None:
    with serve(redirect_blobs=True) as upstream:
        upstream.add_image("team/app:v1", layers=[LAYER])
        path = f"/v2/team/app/blobs/{digest_of(LAYER)}"
        passed = FrontClient(upstream.url).open("GET", path)
        assert passed.status_code == 307
        assert requests.get(passed.location, timeout=5).content == LAYER
        streamed = FrontClient(upstream.url, stream_blobs=True).open("GET", path)
        assert (streamed.status_code, streamed.data) == (200, LAYER)


@pytest.mark.parametrize("fake", [artifactory, nexus])
def test_links_lead_back_here(fake: Any) -> None:
    with serve(fake()) as upstream:
        page = FrontClient(upstream.url).open("GET", "/v2/team/app/tags/list")
        assert page.headers["Link"].startswith("</v2/team/app/tags/list?")


# The policy.


def public_only(user: str | None, endpoint: str, values: Mapping[str, str]) -> bool:
    return values.get("name", "public").startswith("public")


def test_policy_is_asked_with_the_values_of_each_request() -> None:
    asked: list[Any] = []

    def policy(user: str | None, endpoint: str, values: Mapping[str, str]) -> bool:
        asked.append((user, endpoint, dict(values)))
        return public_only(user, endpoint, values)

    with serve() as upstream:
        front = FrontClient(upstream.url, policy=policy)
        assert front.open("GET", "/v2/").status_code == 200
        for method, path in (
            ("HEAD", "/v2/secret/manifests/v1"),
            ("PUT", "/v2/secret/manifests/v1"),
            ("POST", "/v2/secret/blobs/uploads/"),
            ("PATCH", "/v2/secret/blobs/uploads/1"),
            ("GET", "/v2/secret/tags/list"),
        ):
            denied = front.open(method, path)
            assert denied.status_code == 403
        assert denied.get_json()["errors"][0]["code"] == "DENIED"
        assert [request.endpoint for request in upstream.requests] == ["base"]
        assert asked[:2] == [
            ("alice", "base", {"method": "GET"}),
            ("alice", "manifest", {"name": "secret", "tag": "v1", "method": "GET"}),
        ]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "&from=secret",
        "&from=secret&from=public/x",
        "&from=Public",
        "&from=public/x&from=secret",
    ],
)
def test_mount_reads_only_what_the_policy_allows(query: str) -> None:
    with serve() as upstream:
        upstream.storage.put_blob("secret", digest_of(LAYER), [LAYER])
        upstream.storage.put_blob("public/x", digest_of(LAYER), [LAYER])
        front = FrontClient(upstream.url, policy=public_only)
        path = f"/v2/public/y/blobs/uploads/?mount={digest_of(LAYER)}"
        assert front.open("POST", f"{path}{query}").status_code == 202
        assert dict(upstream.requests[-1].args) == {}
        assert front.open("POST", f"{path}&from=public/x").status_code == 201


def test_client_without_a_token_is_sent_to_the_token_server_here() -> None:
    with serve(users={"robot": "secret"}, auth="bearer") as upstream:
        front = FrontClient(upstream.url, "robot", "secret", user=None)
        response = front.client.get("/v2/team/app/tags/list")
        (challenge,) = parse_challenges(response.headers)
        assert challenge.realm == "http://localhost/token"
        assert challenge.scope == "repository:team/app:pull"
        assert upstream.requests == []
        assert front.open("GET", "/v2/team/app/tags/list").status_code == 404  # as anyone
        assert front.open("POST", UPLOADS).status_code == 403


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_wrong_account_at_the_upstream_is_502(auth: Any) -> None:
    with serve(users={"robot": "secret"}, auth=auth) as upstream:
        front = FrontClient(upstream.url, "robot", "wrong")
        for method, body in ("GET", b""), ("POST", b"x"):
            path = "/v2/a/tags/list" if method == "GET" else f"{UPLOADS}?digest={digest_of(body)}"
            response = front.open(method, path, data=body)
            assert response.status_code == 502
            assert response.get_json()["errors"][0]["code"] == "UNKNOWN"


def test_page_of_an_error_becomes_the_registrys_json() -> None:
    with serve(Response("<html>", 404, mimetype="text/html")) as upstream:
        response = FrontClient(upstream.url).open("GET", "/v2/a/manifests/v1")
        assert (response.status_code, response.get_json()["errors"][0]["code"]) == (404, "UNKNOWN")


# Upload ids.


@contextmanager
def opaque_upstream(location: str) -> Iterator[ServedRegistry]:
    """An upstream whose uploads go on at `location`, and which answers everything there with 201."""

    def app(environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        request.get_data()
        if request.path.endswith("/uploads/"):
            return Response(status=202, headers={"Location": location})(environ, start_response)
        return Response(status=201, headers={"Location": "/x"})(environ, start_response)

    with serve(app) as upstream:
        yield upstream


def test_upload_at_another_host_goes_on_through_the_front() -> None:
    with (
        serve(users={"robot": "secret"}, auth="bearer") as elsewhere,
        opaque_upstream(f"{elsewhere.url}/up?token=s3cret") as upstream,
    ):
        front = FrontClient(upstream.url, "robot", "secret")
        begun = front.open("POST", UPLOADS)
        assert re.fullmatch(f"{UPLOADS}[a-zA-Z0-9_=-]+", begun.location)
        assert "s3cret" not in begun.location
        query = {"digest": "sha256:0", "token": "another"}
        front.open("PUT", begun.location, query_string=query, data=b"x")
        [asked] = elsewhere.requests
        assert asked.path == "/up"
        assert sorted(asked.args.items(multi=True)) == [("digest", "sha256:0"), ("token", "s3cret")]
        assert "Authorization" not in asked.headers


def test_upload_id_is_bound_to_user_repository_and_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(location="opaque") as upstream:
        front = FrontClient(upstream.url)
        location = front.open("POST", UPLOADS).location
        count = len(upstream.requests)
        sealed = location.rpartition("/")[2]
        middle = sealed[:50] + ("A" if sealed[50] != "A" else "B") + sealed[51:]
        other = FrontClient(upstream.url, key=b"o" * 32)
        for refused in (
            front.open("PATCH", location, user="bob", data=b"x"),
            front.open("PATCH", location.replace("team/app", "team/other"), data=b"x"),
            front.open("PATCH", UPLOADS + middle, data=b"x"),
            front.open("PATCH", f"{UPLOADS}1", data=b"x"),
            other.open("PATCH", location, data=b"x"),
        ):
            assert refused.status_code == 404
            assert refused.get_json()["errors"][0]["code"] == "BLOB_UPLOAD_UNKNOWN"
        assert len(upstream.requests) == count
        with monkeypatch.context() as later:
            now = time.time()
            later.setattr("time.time", lambda: now + 3601)  # by which PyJWT does not go
            assert front.open("PATCH", location, data=b"x").status_code == 404
        assert front.open("PATCH", location, data=b"x").status_code == 202


@pytest.mark.parametrize(("length", "status"), [(1400, 202), (3000, 502)])
def test_upload_id_is_at_most_2_kib(length: int, status: int) -> None:
    with opaque_upstream(f"/up?state={'x' * length}") as upstream:
        begun = FrontClient(upstream.url).open("POST", UPLOADS)
        assert begun.status_code == status
        assert len(begun.location or "") <= 2048 + len(UPLOADS)


OF_IMAGE = {"Content-Type": IMAGE_MANIFEST}
LAYER_PATH = f"/v2/a/blobs/{digest_of(LAYER)}"
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    *(("GET", path, {}) for path in ("/v2/", "/v2/A/tags/list", "/v2/_catalog", "/v2/a/x")),
    ("GET", LAYER_PATH, {}),
    ("HEAD", LAYER_PATH, {}),
    ("POST", f"/v2/a/blobs/uploads/?digest={digest_of(LAYER)}", {"data": LAYER}),
    ("POST", f"/v2/a/blobs/uploads/?digest={digest_of(LAYER)}", {"data": b"another"}),
    ("POST", f"/v2/b/blobs/uploads/?mount={digest_of(CONFIG)}&from=a", {}),
    ("POST", "/v2/a/blobs/uploads/", {}),
    ("PATCH", "LOCATION", {"data": CONFIG[:9], "headers": {"Content-Range": "0-8"}}),
    ("PATCH", "LOCATION", {"data": b"x", "headers": {"Content-Range": "4-4"}}),
    ("PUT", "LOCATION?digest=sha256:0", {"data": CONFIG[9:]}),
    ("PUT", f"LOCATION?digest={digest_of(CONFIG)}", {"data": CONFIG[9:]}),
    ("GET", "LOCATION", {}),
    ("POST", "/v2/a/blobs/uploads/", {}),
    ("DELETE", "LOCATION", {}),
    ("PUT", "/v2/a/manifests/v1", {"data": IMAGE, "headers": OF_IMAGE}),
    ("PUT", "/v2/c/manifests/v1", {"data": IMAGE, "headers": OF_IMAGE}),
    ("PUT", f"/v2/a/manifests/{digest_of(IMAGE)}?tag=v2&tag=v3", {"data": IMAGE}),
    ("GET", "/v2/a/tags/list?n=1", {}),
    ("GET", "/v2/a/manifests/v1", {}),
    ("HEAD", "/v2/a/manifests/none", {}),
    ("GET", "/v2/a/manifests/v1", {"headers": {"If-None-Match": f'"{digest_of(IMAGE)}"'}}),
    ("GET", LAYER_PATH, {"headers": {"Range": "bytes=3-5"}}),
    ("GET", f"/v2/a/referrers/{digest_of(IMAGE)}?artifactType=a/b", {}),
    ("DELETE", "/v2/a/tags/list", {}),
    ("DELETE", f"/v2/a/manifests/{digest_of(IMAGE)}", {}),
    ("DELETE", LAYER_PATH, {}),
]


LOGIN: dict[str, Any] = {"users": {"robot": "secret"}, "auth": "bearer"}


@pytest.mark.parametrize(
    ("login", "quirks"),
    [
        ({}, {}),
        ({}, {"location": "opaque", "single_post": False, "like_docker_registry": True}),
        ({**LOGIN, "auth": "basic"}, {"location": "absolute"}),
        (LOGIN, {"location": "relative", "page_size": 1}),
        ({**LOGIN, "token_method": "POST"}, {"location": "opaque"}),
        ({**LOGIN, "anonymous_pull": True, "scope_status": 403}, {}),
    ],
    ids=str,
)
def test_answers_are_those_of_the_registry(login: dict[str, Any], quirks: dict[str, Any]) -> None:
    """What the conformance tests of the specification do, with and without the front."""
    with serve(**login, **quirks) as behind, serve(**quirks) as alone:
        account = ("robot", "secret") if login else ()
        front, direct = FrontClient(behind.url, *account), Client(alone.app)

        def ask_alone(method: str, path: str, **options: Any) -> Any:
            return direct.open(path, method=method, buffered=True, **options)

        locations = ["", ""]
        for method, path, options in REQUESTS:
            answers = []
            for side, client in enumerate([front.open, ask_alone]):
                base, _, query = path.partition("?")
                target = f"{locations[side]}{'&' if '?' in locations[side] else '?'}{query}"
                answer = client(method, target if base == "LOCATION" else path, **options)
                found = dict(answer.headers)
                for name in "Date", "Docker-Upload-UUID", "X-Content-Type-Options":
                    found.pop(name, None)
                location = urljoin(answer.request.url, found.pop("Location", ""))
                if answer.status_code in (202, 204) and "Location" in answer.headers:
                    locations[side] = location
                elif answer.status_code == 201:
                    found["Location"] = urlsplit(location).path
                body = re.sub(b'"uuid": "[0-9a-f]+"', b"", answer.data)
                answers.append((answer.status_code, body, found))
            assert answers[0] == answers[1], (method, path)
        assert front.token not in str([asked.headers for asked in behind.requests])


def test_bodies_are_streamed_in_both_directions() -> None:
    half, begun, slow = 1_000_000, threading.Event(), Slow()

    def upstream(environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        if request.method != "POST":
            return slow(environ, start_response)
        assert len(request.stream.read(half)) == half
        begun.set()
        assert len(request.stream.read()) == half
        return Response(status=201, headers={"Location": "/x"})(environ, start_response)

    def wait_for_upstream() -> None:
        assert begun.wait(10)

    class TwoHalves(io.RawIOBase):
        """The second half comes only when the upstream has got the first."""

        halves = [Body(bytes(half), wait_for_upstream), Body(bytes(half), lambda: None)]

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self.halves[0].readinto(buffer) or self.halves[1].readinto(buffer)

    with serve(upstream) as served:
        front = FrontClient(served.url)
        path = f"{UPLOADS}?digest={digest_of(b'x')}"
        environ = {"wsgi.input": TwoHalves(), "CONTENT_LENGTH": str(2 * half)}
        assert front.open("POST", path, environ_overrides=environ).status_code == 201
        headers = {"Authorization": f"Bearer {front.token}"}
        pulled = front.client.get(f"/v2/team/app/blobs/{digest_of(BLOB)}", headers=headers)
        assert BLOB.startswith(read_some(pulled, 500_000))
        slow.go_on.set()
        pulled.close()


def test_manifest_over_4_mib_is_refused_here() -> None:
    with serve() as upstream:
        big = FrontClient(upstream.url).open("PUT", "/v2/a/manifests/v1", data=bytes(4 * 2**20 + 1))
        assert (big.status_code, big.get_json()["errors"][0]["code"]) == (413, "SIZE_INVALID")
        assert upstream.requests == []


def test_upload_that_breaks_off_breaks_off_at_the_upstream() -> None:
    with serve() as upstream:
        front = FrontClient(upstream.url)
        location = front.open("POST", UPLOADS).location
        environ = {"wsgi.input": io.BytesIO(b"abc"), "CONTENT_LENGTH": "10"}
        short = front.open("PATCH", location, environ_overrides=environ)
        assert short.status_code in (400, 502)
        status = front.open("GET", location)
        assert (status.status_code, status.headers["Range"]) == (204, "0-0")
