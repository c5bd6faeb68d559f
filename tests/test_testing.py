"""`registry_routes.testing`: recording, seeding and looking, and other applications."""

import gzip
import json
import threading
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import Client
from werkzeug.wrappers import Response

from registry_routes import (
    DOCKER_1_5,
    OCI_1_1,
    Dialect,
    RegistryApp,
    RegistryMap,
    RegistryRequest,
    Route,
    errors,
    url_map,
)
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_MANIFEST
from registry_routes.testing import serve

from .served import ABSENT, Login, served, wait_until

# Recording.


def test_requests_are_recorded() -> None:
    with served(headers={"User-Agent": "mine"}) as (registry, client):
        digest = registry.add_image("library/nginx:v1", layers=[b"x"])
        assert registry.requests == []  # seeding is not a request
        client.get("/v2/library/nginx/manifests/v1")
        client.head(f"/v2/library/nginx/manifests/{digest}")
        client.get("/v2/library/nginx/tags/list?n=1&last=a%26b")
        client.get("/v2/no/such/tags/list/")
        client.put("/v2/a/tags/list")
        client.get("/v2/A/tags/list")
        client.get("/elsewhere%20")
        found = [
            (sent.method, sent.endpoint, sent.values, sent.status) for sent in registry.requests
        ]
        assert found == [
            ("GET", "manifest", {"name": "library/nginx", "tag": "v1"}, 200),
            ("HEAD", "manifest", {"name": "library/nginx", "digest": digest}, 200),
            ("GET", "tags", {"name": "library/nginx"}, 200),
            ("GET", None, {}, 308),
            ("GET", "tags", {"name": "no/such"}, 404),
            ("PUT", "tags", {"name": "a"}, 405),
            ("GET", None, {}, 400),
            ("GET", None, {}, 404),
        ]
        assert [type(sent.endpoint) for sent in registry.requests[:2]] == [str, str]
        assert registry.requests[2].args.to_dict() == {"n": "1", "last": "a&b"}
        assert registry.requests[3].path == "/v2/no/such/tags/list/"
        assert registry.requests[-1].path == "/elsewhere "
        assert registry.requests[0].headers["user-agent"] == "mine"
        registry.requests.clear()
        client.get("/v2/")
        assert [sent.endpoint for sent in registry.requests] == ["base"]


def test_request_is_recorded_before_it_is_answered() -> None:
    with serve() as registry:
        registry.fail("base", "GET", timedelta(minutes=10))
        waiting = threading.Thread(target=Client(registry.app).get, args=["/v2/"])
        waiting.start()
        wait_until(lambda: registry.requests)
        assert registry.requests[0].status is None
    waiting.join(timeout=10)
    assert registry.requests[0].status == 200


def test_requests_for_routes_that_are_not_served_are_recorded() -> None:
    dialect = OCI_1_1.subset("base", "manifest", "blob", "tags", methods=["GET"])
    with serve(url_map=RegistryMap(dialect=dialect)) as registry:
        client = Client(registry.app)
        digest = registry.add_image("a:v1")
        registry.fail("catalog", "GET", 503)
        for method, path, status in (
            ("GET", "/v2/a/manifests/v1", 200),
            ("GET", "/v2/_catalog", 503),
            ("GET", "/v2/_catalog", 404),
            ("GET", f"/v2/a/referrers/{digest}", 404),
            ("PUT", "/v2/a/manifests/v2", 405),
            ("POST", "/v2/a/blobs/uploads/", 404),
        ):
            assert client.open(path, method=method).status_code == status
        endpoints = [sent.endpoint for sent in registry.requests]
        assert endpoints == [
            *("manifest", "catalog", "catalog", "referrers", "manifest", "blob-upload")
        ]
    with serve(url_map=RegistryMap(dialect=OCI_1_1.subset(methods=["GET"]))) as registry:
        client = Client(registry.app)
        registry.fail("blob-upload", "POST", 503)
        assert [client.post("/v2/a/blobs/uploads/").status_code for _ in range(2)] == [503, 405]
        assert [sent.endpoint for sent in registry.requests] == 2 * ["blob-upload"]


def test_endpoint_for_each_method_is_recorded() -> None:
    path = "/v2/<repository:name>/manifests/<tag:tag>"
    routes = (
        Route("fetch", path, ("GET",)),
        Route("check", path, ("HEAD",)),
        Route("write", path, ("PUT",)),
    )
    dialect = Dialect("by method", routes, OCI_1_1.converters)
    with serve(Response("{}"), url_map=RegistryMap(dialect=dialect)) as registry:
        for method in "GET", "HEAD", "PUT":
            Client(registry.app).open("/v2/a/manifests/v1", method=method)
        assert [sent.endpoint for sent in registry.requests] == ["fetch", "check", "write"]
        with pytest.raises(ValueError, match="does not take 'HEAD'"):
            registry.fail("fetch", "HEAD", 500)


# Seeding and looking.


def test_image_is_added() -> None:
    layers = [b"some files", gzip.compress(b"others", mtime=0)]
    with served() as (registry, client):
        digest = registry.add_image("library/nginx:v1", layers)
        assert registry.add_image("library/nginx:v1", layers) == digest
        response = client.get("/v2/library/nginx/manifests/v1")
        assert response.headers["Docker-Content-Digest"] == digest == digest_of(response.content)
        assert response.headers["Content-Type"] == IMAGE_MANIFEST
        manifest = registry.manifest("library/nginx:v1")
        assert manifest == response.json() == registry.manifest(f"library/nginx@{digest}")
        for layer, descriptor in zip(layers, manifest["layers"], strict=True):
            content = client.get(f"/v2/library/nginx/blobs/{descriptor['digest']}").content
            assert content == layer == registry.blob("library/nginx", descriptor["digest"])
        types = [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]]
        assert types == ["tar", "tar+gzip"]
        config = json.loads(registry.blob("library/nginx", manifest["config"]["digest"]))
        assert config["rootfs"]["diff_ids"] == [digest_of(b"some files"), digest_of(b"others")]
        assert list(registry.storage.repositories()) == ["library/nginx"]


WHOLE = gzip.compress(b"some files" * 100, mtime=0)


@pytest.mark.parametrize(
    ("layer", "media_type", "content"),
    [
        (WHOLE, "tar+gzip", b"some files" * 100),
        (WHOLE[:-1], "tar+gzip", None),
        (WHOLE[:20], "tar+gzip", None),
        (WHOLE + b"more", "tar+gzip", None),
        (WHOLE[:15] + b"xxxx" + WHOLE[19:], "tar+gzip", None),
        (WHOLE[:-8] + bytes(8), "tar+gzip", None),
        (b"\x1f\x8b", "tar+gzip", None),
        (b"\x28\xb5\x2f\xfd and more", "tar+zstd", None),
        (b"", "tar", None),
        (b"\x1f", "tar", None),
    ],
)
def test_any_bytes_are_a_layer(layer: bytes, media_type: str, content: bytes | None) -> None:
    """The bytes are kept, and a layer that cannot be decompressed is its own content."""
    with serve() as registry:
        registry.add_image("a:v1", [layer])
        manifest = registry.manifest("a:v1")
        [descriptor] = manifest["layers"]
        assert registry.blob("a", descriptor["digest"]) == layer
        assert descriptor["mediaType"] == f"application/vnd.oci.image.layer.v1.{media_type}"
        config = json.loads(registry.blob("a", manifest["config"]["digest"]))
        expected = digest_of(layer if content is None else content)
        assert config["rootfs"]["diff_ids"] == [expected]


@given(st.binary(max_size=30), st.integers(0, 60), st.binary(max_size=3))
def test_changed_gzip_is_a_layer(content: bytes, at: int, change: bytes) -> None:
    whole = gzip.compress(content, mtime=0)
    layer = b"\x1f\x8b" + (whole[:at] + change + whole[at + len(change) :])[2:]
    with serve(url_map=url_map) as registry:
        registry.add_image("a:v1", [layer])
        digest = registry.manifest("a:v1")["layers"][0]["digest"]
        assert registry.blob("a", digest) == layer


def test_zstd_is_read_where_python_can() -> None:
    zstd = pytest.importorskip("compression.zstd", reason="Python reads zstd from 3.14 on")
    layer = zstd.compress(b"some files")
    with serve() as registry:
        registry.add_image("a:v1", [layer])
        config = registry.manifest("a:v1")["config"]["digest"]
        diff_ids = json.loads(registry.blob("a", config))["rootfs"]["diff_ids"]
        assert diff_ids == [digest_of(b"some files")]


@pytest.mark.parametrize(
    ("reference", "name", "tag"),
    [
        ("nginx", "nginx", "latest"),
        ("library/nginx", "library/nginx", "latest"),
        ("localhost/a.b/c:5000", "localhost/a.b/c", "5000"),
        ("{host}/a/b:v1", "a/b", "v1"),
    ],
)
def test_reference_names_a_repository_of_this_registry(reference: str, name: str, tag: str) -> None:
    with serve() as registry:
        reference = reference.format(host=registry.host)
        assert registry.add_image(reference) == registry.storage.tag(name, tag)
        assert registry.manifest(reference)["layers"] == []


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "repository name '' must not be empty"),
        ("a:b:c", "tag 'b:c' must contain only"),
        (f"a@{ABSENT}", f"image 'a@{ABSENT}' has a digest, but needs a tag"),
        (f"a:v1@{ABSENT}", f"image 'a:v1@{ABSENT}' has a digest, but needs a tag"),
    ],
)
def test_malformed_reference_is_an_error(reference: str, message: str) -> None:
    with serve() as registry:
        with pytest.raises(ValueError, match=message):
            registry.add_image(reference)
        assert list(registry.storage.repositories()) == []


def test_missing_manifest_or_blob_is_a_lookup_error() -> None:
    with serve() as registry:
        registry.add_image("a:v1")
        for reference in "a:v2", "b:v1", f"a@{ABSENT}":
            with pytest.raises(LookupError):
                registry.manifest(reference)
        with pytest.raises(LookupError):
            registry.blob("a", ABSENT)


# Applications.


def application(prefix: str = "") -> RegistryApp:
    app = RegistryApp(RegistryMap(prefix=prefix))

    @app.view("tags", "GET")
    def tags(request: RegistryRequest, name: str) -> Response:
        return Response(json.dumps({"name": name, "tags": []}), mimetype="application/json")

    return app


def test_application_is_served() -> None:
    with served(application()) as (registry, client):
        assert client.get("/v2/a/tags/list").json() == {"name": "a", "tags": []}
        registry.fail("tags", "GET", errors.Denied())
        assert client.get("/v2/a/tags/list").status_code == 403
        assert client.get("/v2/_catalog").status_code == 404
        found = [(sent.endpoint, sent.status) for sent in registry.requests]
        assert found == [("tags", 200), ("tags", 403), ("catalog", 404)]
        for look in (
            lambda: registry.storage,
            lambda: registry.add_image("a:v1"),
            lambda: registry.blob("a", ABSENT),
        ):
            with pytest.raises(ValueError, match="which has its own storage"):
                look()


class FlaskOnTheRoutes(Flask):
    url_map_class = RegistryMap  # type: ignore[assignment]


class PrefixedFlask(Flask):
    url_map_class = staticmethod(lambda **options: RegistryMap(prefix="/r", **options))  # type: ignore[assignment]


def flask_app(kind: type[Flask]) -> Flask:
    app = kind("app")
    app.endpoint("tags")(lambda name: {"name": name, "tags": []})
    return app


@pytest.mark.parametrize(
    ("app", "prefix"),
    [
        (application("/registry"), "/registry"),
        (flask_app(FlaskOnTheRoutes), ""),
        (flask_app(PrefixedFlask), "/r"),
        (application().__call__, ""),
    ],
    ids=["prefix", "flask", "flask-prefix", "callable"],
)
def test_routes_of_an_application_are_those_of_its_map(app: Any, prefix: str) -> None:
    with served(app, auth="bearer", login=Login()) as (registry, client):
        assert client.get(f"{prefix}/v2/a/tags/list").json()["name"] == "a"
        assert [sent.endpoint for sent in registry.requests] == ["tags", "token", "tags"]


@pytest.mark.parametrize("kind", [Flask, FlaskOnTheRoutes])
def test_other_rules_of_an_application_are_recorded_and_can_fail(kind: type[Flask]) -> None:
    app = kind("app")
    app.get("/healthz/<int:number>", endpoint="health")(lambda number: "well")
    app.post("/v2/token", endpoint="issue")(lambda: "a token")
    app.get("/<path:page>", endpoint="page")(lambda page: page)
    with serve(app) as registry:
        client = Client(registry.app)
        registry.fail("health", "GET", 503)
        registry.fail("issue", "POST", errors.Denied())
        for method, path, status, endpoint in (
            ("GET", "/healthz/7", 503, "health"),
            ("HEAD", "/healthz/7", 200, "health"),
            ("POST", "/healthz/7", 405, "health"),
            ("POST", "/v2/token", 403, "issue"),
            ("GET", "/anything", 200, "page"),
            ("POST", "/nothing/", 405, "page"),
            ("GET", "/v2/a/tags/list", None, "tags" if kind is FlaskOnTheRoutes else "page"),
        ):
            answer = client.open(path, method=method)
            assert status in (None, answer.status_code), path
            assert registry.requests[-1].endpoint == endpoint, path
        assert registry.requests[0].values == {"number": 7}
        with pytest.raises(ValueError, match="does not take 'PUT'"):
            registry.fail("health", "PUT", 500)


def test_other_rules_of_an_application_need_a_token_for_nothing_more() -> None:
    app = Flask("app")
    app.get("/healthz", endpoint="health")(lambda: "well")
    with served(app, auth="bearer") as (_, client):
        assert client.get("/healthz").status_code == 401
        assert client.get("/healthz", auth=Login()).text == "well"


@pytest.mark.parametrize("name", ["token", "storage"])
def test_endpoint_that_an_option_adds_is_an_error(name: str) -> None:
    app = Flask("app")
    app.get("/mine", endpoint=name)(lambda: "")
    with serve(app) as registry:
        Client(registry.app).get("/mine")
        assert registry.requests[0].endpoint == name
    with (
        pytest.raises(ValueError, match=f"the app already has the endpoint '{name}'"),
        serve(app, auth="bearer", redirect_blobs=True),
    ):
        pass


def test_another_dialect_has_its_own_routes() -> None:
    app = RegistryApp(RegistryMap(dialect=DOCKER_1_5))
    with serve(app) as registry:
        Client(registry.app).get("/v2/a/b/tags/list")
        Client(registry.app).get("/v2/a/tags/list")
        assert [sent.endpoint for sent in registry.requests] == ["tags", None]
    with serve(app.__call__, url_map=RegistryMap(dialect=DOCKER_1_5)) as registry:
        Client(registry.app).get("/v2/a/tags/list")
        assert registry.requests[0].endpoint is None


def test_application_that_raises_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/v2/":
            raise RuntimeError("mine")
        return Response("{}")(environ, start_response)

    with served(app) as (registry, client):
        assert client.get("/v2/").status_code == 500
        assert client.get("/v2/_catalog").status_code == 200
        assert [sent.status for sent in registry.requests] == [None, 200]
        wait_until(lambda: "RuntimeError: mine" in caplog.text)


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": {"a": "b"}}, "users need a way to log in"),
        ({"auth": "basic"}, "auth 'basic' needs users"),
        ({"auth": "digest", "users": {"a": "b"}}, "auth 'digest' must be"),
        ({"anonymous_pull": True}, "anonymous_pull needs a login"),
        ({"auth": "bearer", "token_field": "jwt"}, "token_field 'jwt' must be"),
        ({"auth": "bearer", "token_method": "PUT"}, "token_method 'PUT' must be"),
        ({"auth": "bearer", "token_method": "POST"}, "no tokens without a password"),
        ({"auth": "bearer", "scope_status": 404}, "scope_status 404 must be"),
        ({"auth": "bearer", "service": "a\n"}, "characters that no header can carry"),
        ({"auth": "bearer", "granted_actions": "pull"}, "not the string 'pull'"),
        ({"auth": "basic", "users": {"a": "b"}, "service": "x"}, "service is for a token server"),
        ({"token_field": "access_token"}, "token_field is for a token server"),
        ({"token_method": "GET"}, "token_method is for a token server"),
        ({"granted_actions": ["pull"]}, "granted_actions is for a token server"),
        ({"scope_status": 403}, "scope_status is for a token server"),
        ({"location": "elsewhere"}, "location 'elsewhere' must be"),
        ({"app": application(), "page_size": 3}, "are for the registry in memory"),
        ({"app": application(), "max_chunk": 3}, "are for the registry in memory"),
        ({"port": 65536}, "port 65536 must be 0 to 65535"),
        ({"page_size": 0}, "page_size 0 must be 1 or more"),
        ({"min_chunk": -1}, "min_chunk -1 must be 0 or more"),
        ({"min_chunk": 6, "max_chunk": 5}, "max_chunk 5 is smaller than min_chunk, 6"),
    ],
)
def test_invalid_option_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message), serve(**options):
        pass
