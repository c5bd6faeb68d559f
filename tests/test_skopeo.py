"""A real client, skopeo, with `examples/registry.py`, started as a newcomer would."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

from registry_routes import DOCKER_1_5, RegistryApp, RegistryMap

from . import oci_layout
from .servers import example, files_of, skopeo


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a running registry."""
    storage = tmp_path_factory.mktemp("storage")
    with example("registry", storage / "log", "--storage", str(storage / "data")) as host:
        yield host


@pytest.mark.parametrize("name", ["one", "two/two", "a/b__c/d-e/f.g/h--i/j0"])
def test_an_image_is_pushed_and_pulled(registry: str, tmp_path: Path, name: str) -> None:
    image, remote = tmp_path / "image", f"docker://{registry}/{name}"
    oci_layout.write(image, [5_000_000, 100_000, 1, 0], ["amd64"])
    skopeo("copy --dest-tls-verify=false", f"oci:{image}:v1", f"{remote}:v1")

    inspected = json.loads(skopeo("inspect --tls-verify=false", f"{remote}:v1"))
    index = json.loads((image / "index.json").read_text())
    digest = inspected["Digest"]
    assert digest == index["manifests"][0]["digest"]
    assert len(inspected["Layers"]) == 4
    assert inspected["RepoTags"] == ["v1"]

    for reference, back in (":v1", tmp_path / "by-tag"), (f"@{digest}", tmp_path / "by-digest"):
        skopeo("copy --src-tls-verify=false", f"{remote}{reference}", f"oci:{back}:v1")
        assert files_of(back) == files_of(image)

    raw = skopeo("inspect --tls-verify=false --raw", f"{remote}:v1")
    assert raw.encode() == files_of(image)[digest.removeprefix("sha256:")]


def test_an_index_of_several_platforms_is_pushed_and_pulled(registry: str, tmp_path: Path) -> None:
    image, back, remote = tmp_path / "image", tmp_path / "back", f"docker://{registry}/multi/arch"
    oci_layout.write(image, [100_000, 2_000], ["amd64", "arm64", "s390x"], seed=1)
    skopeo("copy --all --dest-tls-verify=false", f"oci:{image}:v1", f"{remote}:v1")
    skopeo("copy --all --src-tls-verify=false", f"{remote}:v1", f"oci:{back}:v1")
    assert files_of(back) == files_of(image)
    raw = json.loads(skopeo("inspect --tls-verify=false --raw", f"{remote}:v1"))
    assert len(raw["manifests"]) == 3


def test_blobs_are_mounted_between_repositories(registry: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    oci_layout.write(image, [50_000], ["amd64"], seed=2)
    remote = f"docker://{registry}"
    skopeo("copy --dest-tls-verify=false", f"oci:{image}:v1", f"{remote}/mount/from:v1")
    skopeo(
        "copy --src-tls-verify=false --dest-tls-verify=false",
        f"{remote}/mount/from:v1",
        f"{remote}/mount/to:v1",
    )
    back = tmp_path / "back"
    skopeo("copy --src-tls-verify=false", f"{remote}/mount/to:v1", f"oci:{back}:v1")
    assert files_of(back) == files_of(image)


def test_tags_are_listed_and_images_deleted(registry: str, tmp_path: Path) -> None:
    image, remote = tmp_path / "image", f"docker://{registry}/to/delete"
    oci_layout.write(image, [1_000], ["amd64"], seed=3)
    other = tmp_path / "other"
    oci_layout.write(other, [1_000], ["amd64"], seed=4)
    for tag, source in ("v1", image), ("latest", image), ("V2.0_x", other):
        skopeo("copy --dest-tls-verify=false", f"oci:{source}:v1", f"{remote}:{tag}")

    def tags() -> Any:
        return json.loads(skopeo("list-tags --tls-verify=false", remote))["Tags"]

    assert tags() == ["V2.0_x", "latest", "v1"]
    skopeo("delete --tls-verify=false", f"{remote}:v1")
    assert tags() == ["V2.0_x"]
    assert "manifest unknown" in skopeo("inspect --tls-verify=false", f"{remote}:v1", fails=True)
    skopeo("inspect --tls-verify=false", f"{remote}:V2.0_x")


def test_skopeo_shows_what_is_wrong_with_a_name() -> None:
    """skopeo never sends a name that `OCI_1_1` refuses, but `DOCKER_1_5` needs two components."""
    with make_server(
        "127.0.0.1", 0, RegistryApp(RegistryMap(dialect=DOCKER_1_5)), threaded=True
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = f"docker://127.0.0.1:{server.port}/nginx:latest"
        message = skopeo("inspect --tls-verify=false", remote, fails=True)
        server.shutdown()
    assert "repository name 'nginx' must have two to five components" in message


def test_a_missing_image_is_an_error(registry: str) -> None:
    remote = f"docker://{registry}/no/such"
    message = skopeo("inspect --tls-verify=false", f"{remote}:v1", fails=True)
    assert "the repository has no such manifest" in message
    assert skopeo("list-tags --tls-verify=false", remote, fails=True)
    with urllib.request.urlopen(f"http://{registry}/v2/_catalog") as response:
        assert "no/such" not in json.load(response)["repositories"]
