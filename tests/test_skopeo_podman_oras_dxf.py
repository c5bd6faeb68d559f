"""The registry of `serve`, used by skopeo, podman, buildah, oras, dxf and Debian's registry.

Here is what skopeo's pushes and pulls show about the registry's views. Elsewhere it only tries what
another server, storage or application changes.
"""

import gzip
import hashlib
import json
import os
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oras.client
import pytest
import requests
from dxf import DXF

from registry_routes import DOCKER_1_5, RegistryApp, RegistryMap
from registry_routes.digests import digest_of
from registry_routes.testing import ServedRegistry, serve

from . import oci_layout
from .served import USERS
from .servers import debians_registry, files_of, podman_or_buildah, skopeo

pytestmark = pytest.mark.slow

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "absolute": {"location": "absolute", "page_size": 1},
    "opaque": {"location": "opaque", "single_post": False},
    "redirect": {"redirect_blobs": True},
    "basic": {"auth": "basic", "users": USERS},
    "bearer": {"auth": "bearer", "users": USERS},
    "everything": {
        "auth": "bearer",
        "users": USERS,
        "token_field": "access_token",
        "redirect_blobs": True,
        "location": "opaque",
        "single_post": False,
    },
}


@pytest.fixture(params=OPTIONS)
def registry(request: pytest.FixtureRequest) -> Iterator[ServedRegistry]:
    with serve(**OPTIONS[request.param]) as registry:
        yield registry
        assert not [sent for sent in registry.requests if sent.status and sent.status >= 500]


def with_options(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("registry", names, indirect=True)


FROM = "--src-tls-verify=false --src-creds alice:secret"
TO = "--dest-tls-verify=false --dest-creds alice:secret"
AT = "--tls-verify=false --creds alice:secret"


@with_options("plain", "absolute", "basic", "everything")
def test_skopeo_pushes_mounts_pulls_and_deletes(registry: ServedRegistry, tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [5_000_000, 100_000, 1, 0], ["amd64", "arm64"])
    remote, other = (
        f"docker://{registry.host}/a/b__c/d-e/f.g/h--i/j0",
        f"docker://{registry.host}/x",
    )
    for tag in "v1", "V2.0_x":
        skopeo(f"copy --all {TO}", f"oci:{image}:v1", f"{remote}:{tag}")
    assert json.loads(skopeo(f"list-tags {AT}", remote))["Tags"] == ["V2.0_x", "v1"]
    inspected = json.loads(skopeo(f"inspect {AT}", f"{remote}:v1"))
    assert len(inspected["Layers"]) == 4
    digest = json.loads((image / "index.json").read_text())["manifests"][0]["digest"]
    raw = skopeo(f"inspect --raw {AT}", f"{remote}:v1")
    assert raw.encode() == files_of(image)[digest.removeprefix("sha256:")]
    assert len(json.loads(raw)["manifests"]) == 2
    skopeo(f"copy --all {FROM} {TO}", f"{remote}@{digest}", f"{other}:v1")
    skopeo(f"copy --all {FROM}", f"{other}:v1", f"oci:{back}:v1")
    assert files_of(back) == files_of(image)
    skopeo(f"delete {AT}", f"{other}:v1")
    assert list(registry.storage.tags("x")) == []
    message = skopeo(f"inspect {AT}", f"{other}:v1", fails=True)
    assert "the repository has no such manifest" in message


@with_options("plain", "everything")
def test_skopeo_pulls_an_added_image(registry: ServedRegistry, tmp_path: Path) -> None:
    digest = registry.add_image("a:v1", layers=[b"x", gzip.compress(b"y")])
    # As a directory, it stays unchanged; for other formats, skopeo compresses the layers.
    skopeo(f"copy {FROM}", f"docker://{registry.host}/a:v1", f"dir:{tmp_path}")
    assert digest_of((tmp_path / "manifest.json").read_bytes()) == digest


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_skopeo_pulls_without_the_login_of_others(tmp_path: Path, auth: Any) -> None:
    with serve(users=USERS, auth=auth, anonymous_pull=True) as registry:
        registry.add_image("a:v1", layers=[b"x"])
        image, remote = f"dir:{tmp_path}", f"docker://{registry.host}"
        skopeo("copy --src-tls-verify=false", f"{remote}/a:v1", image)
        skopeo("copy --dest-tls-verify=false", image, f"{remote}/b:v1", fails=True)
        skopeo(f"copy {TO}", image, f"{remote}/b:v1")
        assert registry.manifest("b:v1") == registry.manifest("a:v1")


@with_options("plain")
def test_skopeo_syncs(registry: ServedRegistry, tmp_path: Path) -> None:
    for tag in "v1", "v2":
        registry.add_image(f"sync/a:{tag}", layers=[b"x"])
    wanted, down = tmp_path / "sync.yml", str(tmp_path / "down")
    wanted.write_text(f"'{registry.host}': {{tls-verify: false, images: {{sync/a: [v1, v2]}}}}")
    skopeo("sync --src yaml --dest dir", str(wanted), down)
    skopeo("sync --src dir --dest docker --dest-tls-verify=false", down, f"{registry.host}/synced")
    assert sorted(registry.storage.tags("synced/a")) == ["v1", "v2"]


def test_skopeo_shows_the_fault_of_a_name() -> None:
    """skopeo never sends a name that `OCI_1_1` refuses, but `DOCKER_1_5` needs two components."""
    with serve(RegistryApp(RegistryMap(dialect=DOCKER_1_5))) as registry:
        message = skopeo(f"inspect {AT}", f"docker://{registry.host}/nginx:latest", fails=True)
    assert "repository name 'nginx' must have two to five components" in message


@with_options("plain")
def test_debians_registry_caches_it(registry: ServedRegistry, tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [300_000, 1], ["amd64"], seed=1)
    skopeo(f"copy {TO}", f"oci:{image}:v1", f"docker://{registry.host}/cached/a:v1")
    with debians_registry(tmp_path, proxy={"remoteurl": registry.url}) as cache:
        for _ in range(2):
            shutil.rmtree(back, ignore_errors=True)
            skopeo("copy --src-tls-verify=false", f"docker://{cache}/cached/a:v1", f"oci:{back}:v1")
            assert files_of(back) == files_of(image)


@with_options("plain", "basic", "everything")
@pytest.mark.parametrize("program", ["buildah", "podman"])
def test_buildah_and_podman_push_and_pull(
    registry: ServedRegistry, tmp_path: Path, program: str
) -> None:
    image = tmp_path / "image"
    oci_layout.write(image, [50_000, 10], ["amd64"], seed=2)
    remote = f"docker://{registry.host}/{program}/a:v1"
    with podman_or_buildah(program) as run:
        pulled = run("pull", f"oci:{image}:v1")
        run("push", *AT.split(), pulled, remote)
        run("pull", *AT.split(), remote)
    manifest = registry.manifest(f"{program}/a:v1")
    config = json.loads(registry.blob(f"{program}/a", manifest["config"]["digest"]))
    [original] = [file for file in files_of(image).values() if b'"rootfs"' in file]
    assert config["rootfs"] == json.loads(original)["rootfs"]
    assert any("Transfer-Encoding" in sent.headers for sent in registry.requests)


@with_options("plain", "absolute", "opaque", "redirect", "basic")
def test_oras_pushes_and_pulls(
    registry: ServedRegistry,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("artifact.txt").write_text("hello\n")
    basic = "basic" in request.node.callspec.id
    backend = "basic" if basic else "token"
    client = oras.client.OrasClient(hostname=registry.host, insecure=True, auth_backend=backend)
    if basic:
        client.auth.set_basic_auth("alice", "secret")
    target = f"{registry.host}/oras/artifact:v1"
    client.push(target=target, files=["artifact.txt"], disable_path_validation=True)
    assert client.get_tags(target) == ["v1"]
    (pulled,) = client.pull(target=target, outdir=str(tmp_path / "out"))
    assert Path(pulled).read_text() == "hello\n"


@with_options("bearer", "everything")
def test_oras_pulls_with_a_token(registry: ServedRegistry) -> None:
    """It only pulls, because oras keeps its first token, which does not allow a push."""
    digest = registry.add_image("a:v1", layers=[b"x"])
    client = oras.client.OrasClient(hostname=registry.host, insecure=True)
    client.auth.set_basic_auth("alice", "secret")
    assert client.get_tags(f"{registry.host}/a:v1") == ["v1"]
    assert client.get_manifest(f"{registry.host}/a@{digest}") == registry.manifest("a:v1")
    assert client.get_blob(f"{registry.host}/a", digest_of(b"x")).content == b"x"


def pulled_by(dxf: DXF, digest: str) -> bytes:
    blocks = dxf.pull_blob(digest)
    assert not isinstance(blocks, tuple)
    return b"".join(blocks)


@with_options("plain", "absolute", "opaque", "redirect")
def test_dxf_pushes_pulls_and_deletes(registry: ServedRegistry, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    blob = tmp_path / "blob"
    blob.write_bytes(content)
    with DXF(registry.host, "dxf/blobs", insecure=True) as dxf:
        digest = dxf.push_blob(str(blob))
        assert digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
        dxf.set_alias("v1", digest)
        assert dxf.list_aliases() == ["v1"]
        assert dxf.get_alias("v1") == [digest]
        assert pulled_by(dxf, digest) == content == registry.blob("dxf/blobs", digest)
        dxf.del_alias("v1")
        dxf.del_blob(digest)
        with pytest.raises(requests.HTTPError):
            pulled_by(dxf, digest)


# oras and dxf only log in over TLS. dxf's logins are in `test_testing_suites`.


@pytest.mark.parametrize("name", ["basic", "bearer"])
def test_oras_logs_in(
    name: str,
    tls: ssl.SSLContext,
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with serve(ssl_context=tls, **OPTIONS[name]) as registry:
        backend = "token" if name == "bearer" else "basic"
        client = oras.client.OrasClient(hostname=registry.host, auth_backend=backend)
        config = str(tmp_path / "config.json")
        client.login("alice", "secret", hostname=registry.host, config_path=config)
        registry.add_image("a:v1")
        assert client.get_tags(f"{registry.host}/a:v1") == ["v1"]


def test_skopeo_and_podman_check_the_certificate(
    tls: ssl.SSLContext, certificate: Path, tmp_path: Path
) -> None:
    shutil.copy(certificate, tmp_path / "ca.crt")
    with serve(ssl_context=tls, **OPTIONS["everything"]) as registry:
        registry.add_image("a:v1", layers=[b"x"])
        remote, back = f"docker://{registry.host}/a:v1", f"dir:{tmp_path / 'back'}"
        copy = "copy --src-creds alice:secret"
        assert "certificate" in skopeo(copy, remote, back, fails=True)
        skopeo(f"{copy} --src-cert-dir {tmp_path}", remote, back)
        with podman_or_buildah("podman") as run:
            files = [f"--authfile={tmp_path}/auth.json", f"--cert-dir={tmp_path}"]
            said = run("login", *files, "--username=alice", "--password=secret", registry.host)
        assert said == "Login Succeeded!"
