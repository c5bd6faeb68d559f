"""The routes in Flask: its example, and the ways in which Flask users build their apps."""

import json
from pathlib import Path

import pytest
import requests
from flask_app import make_app as make_flask_app
from layout import Layout

from . import oci_layout
from .nasty import SHA256
from .servers import example, files_of, skopeo


class TestFlaskApp:
    @pytest.fixture
    def layout(self, tmp_path: Path) -> Path:
        oci_layout.write(tmp_path / "image", [10_000], ["amd64"])
        return tmp_path / "image"

    @pytest.mark.slow
    def test_skopeo_pulls_from_it(self, layout: Path, tmp_path: Path) -> None:
        options = "--layout", str(layout), "--name", "library/app"
        with example("flask_app", tmp_path / "log", *options) as host:
            back = tmp_path / "back"
            remote = f"docker://{host}/library/app:v1"
            skopeo("copy --src-tls-verify=false", remote, f"oci:{back}:v1")
            assert files_of(back) == files_of(layout)
            assert "library/app" in requests.get(f"http://{host}/", timeout=10).text

    def test_a_layout_by_a_relative_path_and_what_is_no_manifest(
        self, layout: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = json.loads((layout / "index.json").read_text())
        index["manifests"].append({**index["manifests"][0], "annotations": {"x": "y"}})
        (layout / "index.json").write_text(json.dumps(index))
        monkeypatch.chdir(layout.parent)
        client = make_flask_app(Layout(Path(layout.name), "a")).test_client()
        monkeypatch.chdir("/")
        assert client.get("/v2/a/manifests/v1", buffered=True).status_code == 200
        assert client.get("/v2/a/tags/list").get_json()["tags"] == ["v1"]
        listed = {
            name: client.get(f"/v2/a/manifests/sha256:{name}", buffered=True)
            for name in files_of(layout)
        }
        found = {name for name, response in listed.items() if response.status_code == 200}
        assert found == {index["manifests"][0]["digest"].partition(":")[2]}
        assert {response.status_code for response in listed.values()} == {200, 404}
        for name in listed:
            assert client.get(f"/v2/a/blobs/sha256:{name}", buffered=True).status_code == 200

    def test_its_page_and_its_errors(self, layout: Path) -> None:
        client = make_flask_app(Layout(layout, "library/app")).test_client()
        assert '<a href="/v2/library/app/manifests/v1">v1</a>' in client.get("/").text
        tags = client.get("/v2/library/app/tags/list?n=1")
        assert tags.get_json() == {"name": "library/app", "tags": ["v1"]}
        for method, path, status, code in (
            ("GET", "/v2/other/tags/list", 404, "NAME_UNKNOWN"),
            ("GET", "/v2/library/App/tags/list", 400, "NAME_INVALID"),
            ("GET", "/v2/library/app/manifests/v2", 404, "MANIFEST_UNKNOWN"),
            ("GET", "/v2/library/app/blobs/md5:x", 404, "BLOB_UNKNOWN"),
            ("GET", f"/v2/library/app/referrers/{SHA256}", 404, "UNSUPPORTED"),
            ("GET", "/nothing", 404, "UNSUPPORTED"),
            ("POST", "/nothing", 404, "UNSUPPORTED"),
            ("PUT", "/v2/A/manifests/x", 400, "NAME_INVALID"),
            ("PUT", "/v2/library/app/manifests/v1", 405, "UNSUPPORTED"),
            ("POST", "/v2/library/app/tags/list", 405, "UNSUPPORTED"),
            ("GET", "/v2/library/app/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        ):
            response = client.open(path, method=method)
            assert (response.status_code, response.get_json()["errors"][0]["code"]) == (
                status,
                code,
            )
            assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"
        assert client.get("/v2/").status_code == 200
        assert client.get("/v2").location == "/v2/"
