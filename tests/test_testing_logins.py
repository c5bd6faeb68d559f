"""The logins of `registry_routes.testing`: Basic, and tokens from its own token server."""

from typing import Any

import httpx
import pytest
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes import RegistryApp, RegistryMap, responses
from registry_routes.challenges import parse_challenges, parse_token
from registry_routes.digests import digest_of

from .served import USERS, Login, client_of, push_image, serve, served


def test_basic_login(transport: str) -> None:
    with serve(users=USERS, auth="basic") as registry:
        with client_of(registry, transport) as client:
            response = client.get("/v2/")
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == 'Basic realm="registry"'
            assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"
            for who in ("alice", "p:w é"), ("alice", ""), ("", ""), ("carol", "secret"):
                assert client.get("/v2/a/tags/list", auth=who).status_code == 401
            bearer = {"Authorization": "Bearer x"}
            assert client.get("/v2/", headers=bearer).status_code == 401
        for user, password in USERS.items():
            with client_of(registry, transport, auth=(user, password)) as client:
                assert client.get("/v2/").status_code == 200
                push_image(client, user, "v1", b"x")


@pytest.mark.parametrize("oauth", [False, True])
@pytest.mark.parametrize("token_field", ["token", "access_token"])
def test_bearer_login(oauth: bool, token_field: str) -> None:
    login = Login("alice", "secret", oauth)
    options: dict[str, Any] = {"users": USERS, "auth": "bearer", "token_field": token_field}
    with served(login=login, **options) as (registry, client):
        push_image(client, "a", "v1", b"x")
        assert client.get("/v2/a/manifests/v1").status_code == 200
        assert client.get("/v2/_catalog").json() == {"repositories": ["a"]}
        assert client.delete("/v2/a/manifests/v1").status_code == 202
        methods = {sent.method for sent in registry.requests if sent.endpoint == "token"}
        assert methods == {"POST" if oauth else "GET"}
        assert {sent.status for sent in registry.requests} == {401, 200, 201, 202}
        for who in ("alice", "wrong"), ("carol", "secret"), ("", ""):
            registry.requests.clear()
            assert client.get("/v2/", auth=Login(*who, oauth)).status_code == 401
            assert [sent.status for sent in registry.requests] == [401, 401]


def token_of(client: httpx.Client, response: httpx.Response, **options: Any) -> dict[str, str]:
    """The header with the token that the challenge of a response asks for."""
    [challenge] = parse_challenges(response.headers)
    answer = client.get(
        challenge.token_url(registry=client.base_url, **options), auth=("alice", "secret")
    )
    return {"Authorization": f"Bearer {parse_token(answer.content).token}"}


def test_challenge_names_the_scopes_and_a_token_allows_no_more() -> None:
    with served(users=USERS, auth="bearer") as (registry, client):
        registry.add_image("library/nginx:v1", layers=[b"x"])
        refused = client.get("/v2/library/nginx/manifests/v1")
        [challenge] = parse_challenges(refused.headers)
        assert challenge.realm == f"{registry.url}/token"
        assert challenge.scope == "repository:library/nginx:pull"
        assert challenge.error == ""
        pull = token_of(client, refused)
        assert client.get("/v2/library/nginx/manifests/v1", headers=pull).status_code == 200
        assert client.get("/v2/", headers=pull).status_code == 200
        for method, path, scope in (
            ("DELETE", "/v2/library/nginx/manifests/v1", "repository:library/nginx:delete"),
            ("GET", "/v2/other/tags/list", "repository:other:pull"),
            ("GET", "/v2/_catalog", "registry:catalog:*"),
            (
                "POST",
                f"/v2/mine/blobs/uploads/?mount={digest_of(b'x')}&from=library/nginx",
                "repository:mine:pull,push repository:library/nginx:pull",
            ),
        ):
            response = client.request(method, path, headers=pull)
            [challenge] = parse_challenges(response.headers)
            assert (response.status_code, challenge.error) == (401, "insufficient_scope")
            assert challenge.scope == scope
            token = token_of(client, response)
            assert client.request(method, path, headers=token).status_code < 500
            assert registry.requests[-1].status != 401
        response = client.get("/v2/", headers={"Authorization": "Bearer made-up"})
        assert parse_challenges(response.headers)[0].error == "invalid_token"
        response = client.get("/v2/", auth=("alice", "secret"))  # only the token server takes it
        assert response.status_code == 401


def test_registry_without_users_lets_anyone_pull() -> None:
    with served(auth="bearer", login=Login()) as (registry, client):
        registry.add_image("a:v1")
        assert client.get("/v2/").status_code == 200
        assert client.get("/v2/a/manifests/v1").status_code == 200
        response = client.put("/v2/a/manifests/v2", content=b"{}")
        assert response.status_code == 401
        assert parse_challenges(response.headers)[0].error == "insufficient_scope"
        assert client.get("/v2/_catalog").status_code == 401
        assert client.get("/v2/", auth=Login("a", "b")).status_code == 401


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_anonymous_pull_with_users(auth: str) -> None:
    with served(users=USERS, auth=auth, anonymous_pull=True) as (registry, client):
        digest = registry.add_image("a:v1")
        pulls = "/v2/a/manifests/v1", f"/v2/a/manifests/{digest}", "/v2/a/tags/list"
        anyone = Login() if auth == "bearer" else httpx.BasicAuth("", "")  # as skopeo sends it
        for path in pulls:
            assert client.get(path, auth=anyone).status_code == 200
            assert client.head(path, auth=anyone).status_code == 200
            assert client.get(path).status_code == (401 if auth == "bearer" else 200)
            assert client.get(path, auth=Login("alice", "wrong")).status_code != 403
            assert client.get(path, auth=("alice", "wrong")).status_code == 401
        for method, path in (
            ("PUT", "/v2/a/manifests/v2"),
            ("DELETE", "/v2/a/manifests/v1"),
            ("POST", "/v2/b/blobs/uploads/?mount={digest}&from=a"),
            ("GET", "/v2/_catalog"),
        ):
            assert client.request(method, path, auth=anyone).status_code == 401, path
        # Here a client learns how to log in.
        assert client.get("/v2/").headers["WWW-Authenticate"].startswith(auth.title())
        push_image(client_of(registry, auth=Login("alice", "secret")), "b", "v1", b"x")


def test_service_has_another_name() -> None:
    service = 'our "container_registry"'
    login = Login("alice", "secret")
    with served(users=USERS, auth="bearer", service=service, login=login) as (_, client):
        [challenge] = parse_challenges(client.get("/v2/", auth=("x", "y")).headers)
        assert challenge.service == service
        push_image(client, "a", "v1", b"x")
        for wrong in "registry", "":
            query = {"service": wrong, "scope": "repository:a:pull"}
            answer = client.get("/token", params=query, auth=("alice", "secret"))
            assert answer.status_code == 400


def test_too_small_a_scope_is_403() -> None:
    with served(users=USERS, auth="bearer", scope_status=403) as (registry, client):
        registry.add_image("a:v1")
        pull = token_of(client, client.get("/v2/a/tags/list"))
        assert client.get("/v2/a/tags/list", headers=pull).status_code == 200
        refused = client.delete("/v2/a/manifests/v1", headers=pull)
        [challenge] = parse_challenges(refused.headers)
        assert (refused.status_code, challenge.error) == (403, "insufficient_scope")
        assert challenge.scope == "repository:a:delete"
        assert refused.json()["errors"][0]["code"] == "DENIED"
        delete = token_of(client, refused)
        assert client.delete("/v2/a/manifests/v1", headers=delete).status_code == 202
        for useless in {}, {"Authorization": "Bearer made-up"}:
            assert client.get("/v2/", headers=useless).status_code == 401


@pytest.mark.parametrize(("only", "other"), [("GET", "POST"), ("POST", "GET")])
def test_token_server_takes_one_method(only: str, other: str) -> None:
    with served(users=USERS, auth="bearer", token_method=only) as (registry, client):
        login = Login("alice", "secret", oauth=only == "POST")
        assert client.get("/v2/", auth=login).status_code == 200
        registry.requests.clear()
        wrong = Login("alice", "secret", oauth=other == "POST")
        assert client.get("/v2/", auth=wrong).status_code == 405
        refused = client.request(other, "/token", params={"service": "registry"})
        assert (refused.status_code, refused.headers["Allow"]) == (405, only)


@pytest.mark.parametrize("oauth", [False, True])
def test_token_server_grants_less_than_was_asked_for(oauth: bool) -> None:
    login = Login("alice", "secret", oauth)
    with served(users=USERS, auth="bearer", granted_actions=["pull"]) as (registry, client):
        registry.add_image("a:v1")
        assert client.get("/v2/a/manifests/v1", auth=login).status_code == 200
        refused = client.post("/v2/a/blobs/uploads/", auth=login)
        [challenge] = parse_challenges(refused.headers)
        assert (refused.status_code, challenge.error) == (401, "insufficient_scope")
        assert client.get("/v2/_catalog", auth=login).status_code == 401
        scopes = "repository:a:pull,push repository:b:push repository:c:delete,pull"
        query = {"service": "registry", "scope": scopes}
        answer = client.get("/token", params=query, auth=("alice", "secret")).json()
        assert answer["scope"] == "repository:a:pull repository:c:pull"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_refresh_token_gets_another_token(method: str) -> None:
    login = {"service": "registry", "scope": "repository:a:pull,push", "client_id": "test"}
    with served(users=USERS, auth="bearer") as (_, client):
        if method == "GET":
            query = {**login, "offline_token": "true"}
            answer = client.get("/token", params=query, auth=("alice", "secret"))
        else:
            form = {"grant_type": "password", "username": "alice", "password": "secret"}
            answer = client.post("/token", data={**login, **form, "access_type": "offline"})
        token = parse_token(answer.content)
        assert token.refresh_token
        form = {**login, "grant_type": "refresh_token", "refresh_token": token.refresh_token}
        again = parse_token(client.post("/token", data=form).content)
        assert again.token != token.token
        assert again.refresh_token is None
        bearer = {"Authorization": f"Bearer {again.token}"}
        assert client.post("/v2/a/blobs/uploads/", headers=bearer).status_code == 202
        form["refresh_token"] = "made-up"
        assert client.post("/token", data=form).status_code == 401


def test_token_server_refuses_malformed_requests() -> None:
    with served(users=USERS, auth="bearer") as (registry, client):
        for method, sent, status in (
            ("GET", {}, 400),
            ("GET", {"service": "another"}, 400),
            ("GET", {"service": "registry", "scope": "a\\b"}, 400),
            ("POST", {"service": "registry", "grant_type": "magic"}, 400),
            ("POST", {"service": "registry"}, 400),
            ("PUT", {"service": "registry"}, 405),
        ):
            place: Any = {"data" if method == "POST" else "params": sent}
            response = client.request(method, "/token", auth=("alice", "secret"), **place)
            assert response.status_code == status, sent
            assert responses.parse_errors(status, response.content)[0].description
        registry.fail("token", "GET", 503)
        assert client.get("/v2/", auth=Login("alice", "secret")).status_code == 503
        assert client.get("/v2/", auth=Login("alice", "secret")).status_code == 200


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_no_path_gets_past_the_login(auth: Any) -> None:
    app = RegistryApp(RegistryMap(strict_slashes=False))
    app.view("tags", "GET")(lambda request, name: Response("secret"))
    with serve(app, users=USERS, auth=auth) as registry:
        client = Client(registry.app)
        for path in "/v2/a/tags/list", "/v2/a/tags/list/", "//v2/a/tags/list", "/v2/A/x", "/":
            assert client.get(path).status_code == 401, path
