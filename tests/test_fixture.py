"""The example registry as a fixture of a test suite, just as the README has it."""

from pathlib import Path

import pytest
import requests
from client import Layout, Registry, pull, push
from registry import running

from registry_routes import Reference

from . import oci_layout
from .servers import files_of


@pytest.fixture
def registry():  # type: ignore[no-untyped-def]
    with running() as url:
        yield url


def test_an_image(registry: str, tmp_path: Path) -> None:
    oci_layout.write(tmp_path / "image", [1000], ["amd64"])
    image = Reference.parse("a/b:v1")
    push(Registry(registry, image.name), image, Layout(tmp_path / "image"))
    pull(Registry(registry, image.name), image, Layout(tmp_path / "back"))
    assert files_of(tmp_path / "back") == files_of(tmp_path / "image")


def test_two_are_two(registry: str) -> None:
    with running() as other:
        assert other != registry
        requests.put(f"{other}/v2/x/manifests/v1", b"{}", timeout=10).raise_for_status()
        assert requests.get(f"{registry}/v2/x/manifests/v1", timeout=10).status_code == 404
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{other}/v2/", timeout=10)


def test_in_a_directory(tmp_path: Path) -> None:
    for status in 201, 200:
        with running(tmp_path) as url:
            ask = requests.put if status == 201 else requests.get
            response = ask(f"{url}/v2/x/manifests/v1", data=b"{}", timeout=10)
            assert response.status_code == status
