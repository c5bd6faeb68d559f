"""The requests of the benchmark: mostly pulls, as registries see them."""

from random import Random
from typing import NamedTuple

# The share of each kind of request, in percent.
SHARES = {
    "base": 10,
    "manifest by tag": 25,
    "manifest by digest": 20,
    "blob": 35,
    "tags": 2,
    "upload": 3,
    "chunk": 3,
    "referrers": 1,
    "miss": 1,
}
WORDS = (
    *("library", "nginx", "redis", "alpine", "app-server", "my_team", "backend", "web.api"),
    *("a", "x1", "team-a", "base__img", "img--x", "prod", "python3", "cache"),
)


class Request(NamedTuple):
    kind: str
    method: str
    path: str
    endpoint: str | None
    values: dict[str, str]


def mix(count: int = 2000, seed: int = 15) -> list[Request]:
    """Return `count` requests in the shares above, with names of one to five components."""
    random = Random(seed)
    return [
        request(random, kind) for kind, share in SHARES.items() for _ in range(count * share // 100)
    ]


def request(random: Random, kind: str) -> Request:
    name = "/".join(random.choices(WORDS, k=random.choice([1, 2, 2, 2, 3, 4, 5])))
    digest = f"sha256:{random.getrandbits(256):064x}"
    tag = random.choice(["latest", "v1.2.3", "3.19-alpine", "2026-11-23_build.7"])
    uuid = f"{random.getrandbits(128):032x}"
    read = random.choice(["GET", "GET", "HEAD"])
    by_digest = {"name": name, "digest": digest}
    match kind:
        case "base":
            return Request(kind, "GET", "/v2/", "base", {})
        case "manifest by tag":
            path, values = f"/v2/{name}/manifests/{tag}", {"name": name, "tag": tag}
            return Request(kind, read, path, "manifest", values)
        case "manifest by digest":
            return Request(kind, read, f"/v2/{name}/manifests/{digest}", "manifest", by_digest)
        case "blob":
            return Request(kind, read, f"/v2/{name}/blobs/{digest}", "blob", by_digest)
        case "tags":
            return Request(kind, "GET", f"/v2/{name}/tags/list", "tags", {"name": name})
        case "upload":
            path = f"/v2/{name}/blobs/uploads/"
            return Request(kind, "POST", path, "blob-upload", {"name": name})
        case "chunk":
            path, values = f"/v2/{name}/blobs/uploads/{uuid}", {"name": name, "uuid": uuid}
            return Request(kind, "PATCH", path, "blob-upload-chunk", values)
        case "referrers":
            return Request(kind, "GET", f"/v2/{name}/referrers/{digest}", "referrers", by_digest)
        case _:
            path = random.choice([f"/v2/{name}/tags", f"/v2/{name.title()}/manifests/{tag}"])
            return Request(kind, "GET", path, None, {})


def environ_of(request: Request) -> dict[str, object]:
    """Return the WSGI environ of a request, with the headers that a client sends."""
    return {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path,
        "QUERY_STRING": "",
        "REQUEST_URI": request.path,
        "SERVER_NAME": "0.0.0.0",
        "SERVER_PORT": "5000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "HTTP_HOST": "registry.example.com:5000",
        "HTTP_USER_AGENT": "containers/5.32.2 (github.com/containers/image)",
        "HTTP_ACCEPT": "application/vnd.oci.image.manifest.v1+json",
        "HTTP_ACCEPT_ENCODING": "gzip",
        "HTTP_AUTHORIZATION": "Bearer token",
        "HTTP_DOCKER_DISTRIBUTION_API_VERSION": "registry/2.0",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
