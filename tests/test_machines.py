"""Several machines with one bucket, nginx in front of them, and blobs from the bucket itself."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import pytest
import requests

from registry_routes import resolve_location
from registry_routes.digests import digest_of

from . import oci_layout
from .servers import example, files_of, podman_or_buildah, push, skopeo
from .test_nginx import nginx

pytestmark = pytest.mark.slow


class Machines(NamedTuple):
    """Two registries, and nginx in front."""

    host: str
    """Host and port of nginx."""
    registries: tuple[str, str]
    log: Path
    store: str
    """The host and port of the store."""


@pytest.fixture
def machines(s3: None, s3_server: str, tmp_path: Path) -> Iterator[Machines]:
    options = ["--storage", f"s3://images/{tmp_path.name}", "--redirect", "--behind-proxy"]
    with (
        example("registry", tmp_path / "log", *options, "--workers", "2") as one,
        example("registry", tmp_path / "log-2", *options) as two,
        nginx(tmp_path, f"{one}; server {two}") as host,
    ):
        yield Machines(host, (one, two), tmp_path / "log", urlsplit(s3_server).netloc)


def test_pushed_image_is_pulled_from_the_store(machines: Machines, tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [6_000_000, 1, 0], ["amd64", "arm64"])
    reference = f"docker://{machines.host}/x/y:v1"
    skopeo("copy --all --dest-tls-verify=false", f"oci:{image}:v1", reference)
    skopeo("copy --all --src-tls-verify=false", reference, f"oci:{back}:v1")
    assert files_of(back) == files_of(image)
    assert "/v2/x/y/blobs/sha256:" in machines.log.read_text()
    logs = machines.log.read_text() + (tmp_path / "log-2").read_text()
    assert logs.count('" 307 ') >= len(list(image.glob("blobs/sha256/*"))) - 3  # the manifests
    assert not [
        line
        for line in logs.splitlines()
        if '"GET ' in line and "/blobs/sha256:" in line and '" 200 ' in line
    ]


def test_podman_pulls_from_the_store(machines: Machines, tmp_path: Path) -> None:
    image = tmp_path / "image"
    oci_layout.write(image, [100_000], ["amd64"])
    skopeo("copy --dest-tls-verify=false", f"oci:{image}:v1", f"docker://{machines.host}/x:v1")
    with podman_or_buildah("podman") as podman:
        assert podman("pull", "--tls-verify=false", f"{machines.host}/x:v1")


def test_get_of_a_blob_is_redirected_and_head_is_answered(machines: Machines) -> None:
    content = os.urandom(2_000_000)
    push(machines.host, "a", content)
    for host in machines.registries:
        url = f"http://{host}/v2/a/blobs/{digest_of(content)}"
        sent = requests.get(url, allow_redirects=False, timeout=10)
        assert (sent.status_code, sent.content) == (307, b"")
        assert urlsplit(sent.headers["Location"]).netloc == machines.store
        assert requests.get(url, timeout=10).content == content
        head = requests.head(url, allow_redirects=False, timeout=10)
        assert (head.status_code, head.headers["Content-Length"]) == (200, "2000000")
        part = requests.get(url, headers={"Range": "bytes=5-9"}, timeout=10)
        assert (part.status_code, part.content) == (206, content[5:10])
        missing = f"http://{host}/v2/a/blobs/{digest_of(b'not there')}"
        assert requests.get(missing, allow_redirects=False, timeout=10).status_code == 404


def test_chunks_of_an_upload_go_to_any_machine(machines: Machines) -> None:
    chunks = [os.urandom(300_000) for _ in range(6)]
    root = f"http://{machines.host}"
    begun = requests.post(f"{root}/v2/a/blobs/uploads/", timeout=10)
    location = urljoin(root, begun.headers["Location"])
    for chunk in chunks:  # nginx sends each to the other one
        assert requests.patch(location, chunk, timeout=10).status_code == 202
    content = b"".join(chunks)
    url = resolve_location(root, location, digest=digest_of(content))
    assert requests.put(url, timeout=10).status_code == 201
    assert requests.put(url, timeout=10).status_code == 201  # the answer may have been lost
    assert requests.get(f"{root}/v2/a/blobs/{digest_of(content)}", timeout=10).content == content
