"""Suites like those of real projects, on the registry of `registry_routes.testing`."""

import re
import socket
import ssl
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from dxf import DXF, DXFBase

from registry_routes import RegistryMap
from registry_routes.digests import digest_of
from registry_routes.testing import LENIENT, ServedRegistry

from .served import USERS, serve
from .servers import EXAMPLES

# dxf's suite runs docker-registry in Docker, with and without a login, which takes TLS.


class TestLikeDxf:
    @pytest.fixture(params=[None, "basic", "bearer"])
    def dxf(
        self, request: pytest.FixtureRequest, tls: ssl.SSLContext, certificate: Path
    ) -> Iterator[DXF]:
        def log_in(dxf: DXFBase, response: requests.Response) -> None:
            dxf.authenticate("alice", "secret", response=response)

        auth = request.param
        options = {"auth": auth, "users": USERS, "ssl_context": tls} if auth else {}
        with (
            serve(like_docker_registry=True, **options) as registry,
            DXF(
                *(registry.host, "fred/test", log_in if auth else None),
                insecure=not auth,
                tlsverify=str(certificate),
            ) as dxf,
        ):
            yield dxf

    def test_blob_alone_makes_a_repository(self, dxf: DXF, tmp_path: Path) -> None:
        (tmp_path / "blob").write_bytes(b"0123")
        digest = dxf.push_blob(str(tmp_path / "blob"))
        assert dxf.blob_size(digest) == 4
        assert dxf.list_repos() == ["fred/test"]
        with pytest.raises(requests.HTTPError) as raised:
            dxf.list_aliases()
        assert raised.value.response.status_code == 404
        dxf.set_alias("latest", digest)
        assert (dxf.list_aliases(), dxf.get_alias("latest")) == (["latest"], [digest])
        dxf.del_alias("latest")
        assert dxf.list_aliases() == []
        assert dxf.list_repos() == ["fred/test"]

    def test_missing_blob_is_404(self, dxf: DXF) -> None:
        with pytest.raises(requests.HTTPError) as raised:
            dxf.blob_size(digest_of(b"none"))
        assert raised.value.response.status_code == 404


# flatpak-indexer's suite makes up its digests, and has no network.


class TestLikeFlatpakIndexer:
    @pytest.fixture
    def registry(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedRegistry]:
        page = (EXAMPLES / "testing.md").read_text()
        [block] = re.findall(r"^```python\n([^`]*?class InProcess.*?)^with", page, re.M | re.S)
        bridge: dict[str, Any] = {"requests": requests}
        exec(block, bridge)

        def forbidden(*arguments: Any, **options: Any) -> None:
            raise AssertionError("this suite has no network")

        monkeypatch.setattr(socket, "socket", forbidden)
        with serve(url_map=RegistryMap(dialect=LENIENT)) as registry:
            session = bridge["session_for"](registry.app)
            adapter = session.get_adapter("https://registry.example.com")
            monkeypatch.setattr(requests.Session, "get_adapter", lambda self, url: adapter)
            yield registry

    def test_images_are_indexed_by_digest(self, registry: ServedRegistry) -> None:
        digests = ["sha256:0cd1ee2a9e", "sha256:bea8f00d"]
        for tag, digest in zip(("latest", "stable"), digests, strict=True):
            registry.add_image(f"aisleriot:{tag}", [digest.encode()], digest=digest)
        root = "https://registry.example.com/v2/aisleriot"
        found = []
        for tag in requests.get(f"{root}/tags/list").json()["tags"]:
            by_tag = requests.get(f"{root}/manifests/{tag}")
            digest = by_tag.headers["Docker-Content-Digest"]
            by_digest = requests.get(f"{root}/manifests/{digest}").json()
            [layer] = by_digest["layers"]
            content = requests.get(f"{root}/blobs/{layer['digest']}", stream=True)
            found.append((digest, b"".join(content.iter_content(5))))
        assert found == [(digest, digest.encode()) for digest in digests]
        assert requests.head(f"{root}/manifests/sha256:1").status_code == 404

    def test_bodies_are_bridged(self, registry: ServedRegistry) -> None:
        root = "https://registry.example.com/v2/a/blobs/uploads/"
        content = b"01\n234"
        bodies: list[Any] = [content, content.decode(), iter([b"01", b"\n234"]), BytesIO(content)]
        for body in bodies:
            response = requests.post(f"{root}?digest={digest_of(content)}", data=body)
            assert response.status_code == 201
        assert requests.post(root).headers["Location"].startswith("/v2/a/blobs/uploads/")
