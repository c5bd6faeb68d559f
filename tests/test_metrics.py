"""`examples/metrics.py`: the registry's counters for Prometheus."""

import re
import socket
from pathlib import Path

import pytest
import requests

from registry_routes.digests import digest_of

from .servers import address_of, example, push


def counts_of(text: str) -> dict[tuple[str, str, str], float]:
    """Return how many requests a page of metrics has for each route, method and status."""
    found = re.findall(r"registry_request_seconds_count\{(.*)\} (.*)", text)
    labels = [(dict(re.findall('(\\w+)="(.*?)"', labels)), float(count)) for labels, count in found]
    return {
        (series["route"], series["method"], series["status"]): count for series, count in labels
    }


@pytest.mark.slow
def test_metrics_of_all_workers_are_added_up(tmp_path: Path) -> None:
    options = ["--storage", str(tmp_path / "data"), "--workers", "2", "--metrics"]
    with example("registry", tmp_path / "log", *options) as host:
        for _ in range(20):
            requests.get(f"http://{host}/v2/some/name/tags/list", timeout=10)
        push(host, "some/name", b"x")
        requests.get(f"http://{host}/v2/some/name/blobs/{digest_of(b'x')}", timeout=10)
        requests.head(f"http://{host}/healthz", timeout=10)
        for path in "no/such/route", "v2/UPPER/tags/list":
            requests.get(f"http://{host}/{path}", timeout=10)
        with socket.create_connection(address_of(host), timeout=10) as connection:
            connection.sendall(b"EVIL /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"405" in connection.recv(100)
        for _ in range(3):  # whichever worker answers
            page = requests.get(f"http://{host}/metrics", timeout=10)
            assert page.headers["Content-Type"].startswith("text/plain")
            assert "some" not in page.text
            assert counts_of(page.text) == {
                ("tags", "GET", "404"): 20,
                ("blob-upload", "POST", "201"): 1,
                ("blob", "GET", "200"): 1,
                ("healthz", "HEAD", "200"): 1,
                ("none", "GET", "404"): 1,
                ("none", "GET", "400"): 1,
                ("none", "other", "405"): 1,
            }
        assert 'registry_request_seconds_bucket{le="60.0",method="GET",route="tags"' in page.text


@pytest.mark.slow
def test_metrics_are_off_unless_asked_for(tmp_path: Path) -> None:
    with example("registry", tmp_path / "log", "--storage", "memory://") as host:
        assert requests.get(f"http://{host}/metrics", timeout=10).status_code == 404
