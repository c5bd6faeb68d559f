"""Real clients, each pushing to the example registry and pulling from it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import oras.client
import pytest
import requests
from dxf import DXF

from . import oci_layout
from .servers import EXAMPLES, debians_registry, example, files_of, podman_or_buildah, skopeo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("registry")
    options = ["--storage", str(directory / "data"), "--workers", "2"]
    with example("registry", directory / "log", *options) as host:
        yield host


def test_skopeo_syncs(registry: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    oci_layout.write(image, [20_000], ["amd64"])
    for tag in "v1", "v2":
        skopeo(
            "copy --dest-tls-verify=false", f"oci:{image}:v1", f"docker://{registry}/sync/a:{tag}"
        )
    wanted = tmp_path / "sync.yml"
    wanted.write_text(f"'{registry}': {{tls-verify: false, images: {{sync/a: [v1, v2]}}}}")
    skopeo("sync --src yaml --dest dir", str(wanted), str(tmp_path / "down"))
    assert len(list((tmp_path / "down").rglob("manifest.json"))) == 2
    skopeo(
        "sync --src dir --dest docker --dest-tls-verify=false",
        *(str(tmp_path / "down"), f"{registry}/synced"),
    )
    assert "synced" in str(requests.get(f"http://{registry}/v2/_catalog", timeout=10).json())


def test_oras_pushes_and_pulls(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("artifact.txt").write_text("hello\n")
    client = oras.client.OrasClient(hostname=registry, insecure=True)
    target = f"{registry}/oras/artifact:v1"
    client.push(target=target, files=["artifact.txt"], disable_path_validation=True)
    assert client.get_tags(target) == ["v1"]
    (pulled,) = client.pull(target=target, outdir=str(tmp_path / "out"))
    assert Path(pulled).read_text() == "hello\n"


def test_python_dxf_pushes_pulls_and_deletes(registry: str, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    blob = tmp_path / "blob"
    blob.write_bytes(content)
    with DXF(registry, "dxf/blobs", insecure=True) as dxf:
        digest = dxf.push_blob(str(blob))
        assert digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
        dxf.set_alias("v1", digest)
        assert dxf.list_aliases() == ["v1"]
        assert dxf.get_alias("v1") == [digest]
        assert pulled_by(dxf, digest) == content
        dxf.del_alias("v1")
        dxf.del_blob(digest)
        with pytest.raises(requests.HTTPError):
            pulled_by(dxf, digest)


def pulled_by(dxf: DXF, digest: str) -> bytes:
    blocks = dxf.pull_blob(digest)
    assert not isinstance(blocks, tuple)
    return b"".join(blocks)


def test_debians_registry_is_a_pull_through_cache_of_it(registry: str, tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [300_000, 1], ["amd64"], seed=1)
    skopeo("copy --dest-tls-verify=false", f"oci:{image}:v1", f"docker://{registry}/cached/a:v1")
    with debians_registry(tmp_path, proxy={"remoteurl": f"http://{registry}"}) as cache:
        for _ in range(2):
            shutil.rmtree(back, ignore_errors=True)
            skopeo("copy --src-tls-verify=false", f"docker://{cache}/cached/a:v1", f"oci:{back}:v1")
            assert files_of(back) == files_of(image)


@pytest.mark.parametrize("program", ["buildah", "podman"])
def test_buildah_and_podman_push_and_pull(registry: str, tmp_path: Path, program: str) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [50_000, 10], ["amd64"], seed=2)
    remote = f"docker://{registry}/{program}/a:v1"
    with podman_or_buildah(program) as run:
        pulled = run("pull", f"oci:{image}:v1")
        run("push", "--tls-verify=false", pulled, remote)
        run("pull", "--tls-verify=false", remote)
    skopeo("copy --src-tls-verify=false", remote, f"oci:{back}:v1")
    original, returned = (
        json.loads(content)
        for layout in (image, back)
        for content in files_of(layout).values()
        if content.startswith(b"{") and b"rootfs" in content
    )
    assert returned["rootfs"] == original["rootfs"]


def test_the_example_client_pushes_and_pulls(registry: str, tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [9_000_000, 0], ["amd64", "arm64"], seed=3)
    for action, layout in ("push", image), ("pull", back):
        command = [sys.executable, str(EXAMPLES / "client.py"), action]
        command += [f"{registry}/our/own:v1", str(layout)]
        subprocess.run(command, check=True, timeout=120)
    assert files_of(back) == files_of(image)
