"""The pull-through proxy of the examples: its namespaces and lists, what it refuses, its program."""

import argparse
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from proxy import main, make_app, parse_accounts, parse_place, place_within
from werkzeug.wrappers import Response

from registry_routes import RegistryApp
from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_INDEX
from registry_routes.registry import MemoryStorage
from registry_routes.testing import ServedRegistry, serve

from . import fakes, oci_layout
from .nasty import SHA256
from .proxies import (
    BLOB,
    INDEX,
    LATEST,
    LAYER,
    Canned,
    ProxyClient,
    Slow,
    all_at_once,
    canned,
    pages_of,
)
from .servers import debians_registry, ended, example, files_of, peak_of, podman_or_buildah, skopeo

TAGS = "/v2/a/tags/list"
HUB, QUAY, OWN = "https://registry-1.docker.io", "https://quay.io", "https://kr.example:443"

# Several upstreams.


def test_namespace_chooses_the_upstream() -> None:
    with serve() as first, serve() as second:
        manifests = {}
        for upstream in first, second:
            upstream.add_image("a:latest", layers=[upstream.host.encode()])
        proxy = ProxyClient(first.url, second.url, fresh_for=60)
        proxy.views.upstreams[second.host].storage = MemoryStorage()
        for upstream in first, second:
            for _ in range(2):
                response = proxy.get(f"/v2/a/manifests/latest?ns={upstream.host}")
                assert response.headers["OCI-Namespace"] == upstream.host
                manifests[upstream.host] = response.data
            missing = proxy.get(f"/v2/b/manifests/latest?ns={upstream.host}")
            assert (missing.status_code, missing.headers["OCI-Namespace"]) == (404, upstream.host)
        assert manifests[first.host] != manifests[second.host]
        default = proxy.get("/v2/a/manifests/latest")
        assert default.data == manifests[first.host]
        assert "OCI-Namespace" not in default.headers
        assert all("ns" not in asked.args for up in (first, second) for asked in up.requests)


@pytest.mark.parametrize(
    ("namespace", "expected"),
    [
        ("docker.io", HUB),
        ("registry-1.docker.io", HUB),
        ("Index.Docker.io:443", HUB),
        ("quay.io:443", QUAY),
        ("kr.example", OWN),
        ("\u212ar.example", None),  # whose lower case is "kr.example"
        ("quay.io:80", None),
        ("quay.io:4430", None),
        ("127.0.0.1:1/../x", None),
        ("", None),
        ("a" * 5000, None),
    ],
)
def test_only_an_upstream_of_the_command_line_is_asked(
    namespace: str, expected: str | None
) -> None:
    urls = HUB, QUAY, OWN
    proxy = ProxyClient(*urls, namespaces=[parse_place(url)[0] for url in urls])
    adapter = Canned({LATEST: (200, INDEX, b"{}")})
    for upstream in proxy.views.upstreams.values():
        upstream.session.mount("https://", adapter)
    response = proxy.get(LATEST, query_string={"ns": namespace})
    asked = [str(sent.url) for sent in adapter.sent]
    if expected is None:
        assert (response.status_code, asked) == (404, [])
        assert response.get_json()["errors"][0]["code"] == "NAME_UNKNOWN"
        assert "OCI-Namespace" not in response.headers
    else:
        assert response.headers["OCI-Namespace"] == namespace
        assert asked == [f"{expected}{LATEST}"]


def test_docker_hubs_own_images_are_in_its_library() -> None:
    answers = {LATEST: (200, INDEX, b"{}")}
    proxy, upstream = canned(answers, HUB, namespaces=["docker.io"], fresh_for=60)
    for path in "/v2/nginx/manifests/latest", LATEST, f"{LATEST}?ns=docker.io":
        assert proxy.get(path).status_code == 200
    assert [sent.url for sent in upstream.sent] == [f"{HUB}{LATEST}"]
    long = f"/v2/{'a' * 256}/manifests/latest"
    assert proxy.get(long).get_json()["errors"][0]["code"] == "NAME_INVALID"


# Lists, and requests that are refused.


@pytest.mark.parametrize("has_namespace", [False, True])
@pytest.mark.parametrize("fake", [fakes.artifactory, fakes.nexus])
def test_every_page_of_a_list_is_the_proxys(
    fake: Callable[[], RegistryApp], has_namespace: bool
) -> None:
    with serve(fake()) as upstream:
        proxy = ProxyClient(upstream.url)
        query = f"?ns={upstream.host}" if has_namespace else ""
        asked: list[str] = []

        def get(path: str) -> Any:
            asked.append(path)
            return proxy.get(path)

        pages = pages_of(get, f"/v2/team/app/tags/list{query}")
        assert pages == [["v1", "v2"], ["v3"]]
        assert ["ns=" in path for path in asked] == [has_namespace] * 2
        assert pages_of(get, f"/v2/_catalog{query}", "repositories") == [["team/app"]]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ('</v2/a/tags/list?next_page=x%2B%2F%3D&n=2>; rel="next"', "next_page=x%2B%2F%3D&n=2"),
        ("<http://internal:5000/v2/a/tags/list?x=1&x=2>; rel=next", "x=1&x=2"),
        ('<list?last=c&empty=&ns=evil.example>; rel="next"', "last=c&empty="),
        ('</v2/a/tags/list?last=d>; rel="prev"', None),
        ('<https://[r.example/v2/a/tags/list?last=g>; rel="next"', None),
        ('</v2/a/tags/list>; rel="next"', None),  # the same page again
    ],
)
def test_query_of_a_link_leads_to_the_next_page(link: str, expected: str | None) -> None:
    proxy, _ = canned({TAGS: (200, {"Link": link, "Content-Type": "application/json"}, b"{}")})
    response = proxy.get(TAGS)
    assert response.status_code == 200
    assert response.headers.get("Link") == (expected and f'<{TAGS}?{expected}>; rel="next"')


def test_redirected_page_does_not_lead_to_itself() -> None:
    headers = {"Link": f'<{TAGS}?n=2>; rel="next"'}
    proxy, _ = canned({TAGS: (307, {"Location": "/other"}, b""), "/other": (200, headers, b"{}")})
    assert "Link" not in proxy.get(f"{TAGS}?n=2").headers
    assert "Link" in proxy.get(f"{TAGS}?n=3").headers


@pytest.mark.parametrize(
    ("sent", "passed_on"), [(IMAGE_INDEX, IMAGE_INDEX), ("text/html", "application/json")]
)
def test_list_is_never_a_page_for_a_browser(sent: str, passed_on: str) -> None:
    proxy, _ = canned({TAGS: (200, {"Content-Type": sent}, b"<script>")})
    assert proxy.get(TAGS).headers["Content-Type"] == passed_on


def test_referrers_come_from_the_upstream() -> None:
    path = f"/v2/a/referrers/{SHA256}"
    proxy, upstream = canned({path: (200, {**INDEX, "OCI-Filters-Applied": "x"}, b"{}")})
    response = proxy.get(f"{path}?artifactType=a/b")
    assert response.headers["OCI-Filters-Applied"] == "x"
    assert [sent.url for sent in upstream.sent] == [f"https://r.example{path}?artifactType=a%2Fb"]


def test_pushes_are_refused(upstream: ServedRegistry, proxy: ProxyClient) -> None:
    for method, path, allow in (
        ("PUT", LATEST, "GET, HEAD"),
        ("DELETE", BLOB, "GET, HEAD"),
        ("POST", "/v2/library/nginx/blobs/uploads/", ""),
    ):
        response = proxy.client.open(path, method=method)
        assert (response.status_code, response.headers.get("Allow")) == (405, allow)
    assert proxy.get("/v2/").status_code == 200
    assert upstream.requests == []


# The command line.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{HUB}/", ("docker.io", HUB)),
        ("https://quay.io:443", ("quay.io", "https://quay.io:443")),
        ("Index.docker.io=https://mirror.example", ("docker.io", "https://mirror.example")),
        ("http://127.0.0.1:5001", ("127.0.0.1:5001", "http://127.0.0.1:5001")),
        ("https://r.example/a=b", ("r.example", "https://r.example/a=b")),
        ("quay.io", None),
        ("registry=https://r.example", None),
        ("../x=https://r.example", None),
        ("https://user:secret@r.example", None),
    ],
)
def test_upstream_of_the_command_line(text: str, expected: Any) -> None:
    if expected is None:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
            parse_place(text)
    else:
        assert parse_place(text) == expected


def test_accounts_of_the_environment() -> None:
    places = {"docker.io": "x", "h:5000": "y"}
    text = "index.docker.io=alice:se:cr=et\n\nh:5000=bob:x\n"
    assert parse_accounts(text, places) == {
        "docker.io": ("alice", "se:cr=et"),
        "h:5000": ("bob", "x"),
    }
    for text in "quay.io=alice:secret", "alice:secret", "docker.io=alicesecret":
        with pytest.raises(ValueError, match=r"UPSTREAM_USERS, account 1: ") as caught:
            parse_accounts(text, places)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "users", "message"),
    [
        ([], "", "the following arguments are required: --upstream"),
        (["--upstream", "quay.io"], "", "is not a URL of http or https"),
        (["--upstream", QUAY, "--fresh-for", "5"], "", "must be a number and a unit"),
        (["--upstream", QUAY, "--timeout", "0s"], "", "leaves an upstream no time"),
        (["--upstream", QUAY, "--upstream", f"quay.io={HUB}"], "", "have one namespace"),
        (["--upstream", QUAY], "x=alice:secret", "no --upstream for it, only for quay.io"),
    ],
)
def test_wrong_command_line_is_an_error_in_one_line(
    options: list[str], users: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPSTREAM_USERS", users)
    status, printed, said = ended(main, monkeypatch, "proxy.py", *options)
    assert (status, printed) == (2, "")
    assert re.fullmatch(f"proxy.py: error: .*{re.escape(message)}.*\n", said)
    assert list(tmp_path.iterdir()) == []


def test_worker_does_not_create_a_directory_that_has_vanished(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no such directory"):
        make_app({"h:1": "http://h:1"}, str(tmp_path / "unmounted"), {})
    assert list(tmp_path.iterdir()) == []
    assert place_within("s3://bucket/", "quay.io") == "s3://bucket/quay.io"


# The program.


@contextmanager
def proxy_of(directory: Path, *urls: str) -> Iterator[str]:
    arguments = ["--storage", str(directory / "kept"), "--fresh-for", "0s", "--timeout", "5s"]
    for url in urls:
        arguments += ["--upstream", url]
    log = directory / "proxy-log"
    with example("proxy", log, *arguments, clean=False) as host:
        yield host
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_skopeo_and_podman_pull_with_and_without_the_upstream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    oci_layout.write(image, [3_000_000, 100_000, 1, 0], ["amd64", "arm64"])
    with ExitStack() as stack:
        upstreams = stack.enter_context(ExitStack())
        storage = "--storage", str(tmp_path / "data"), "--user", "alice:secret"
        gateway = upstreams.enter_context(example("gateway", tmp_path / "log", *storage))
        monkeypatch.setenv("UPSTREAM_USERS", f"{gateway}=alice:secret")
        proxy = stack.enter_context(proxy_of(tmp_path, f"http://{gateway}"))
        push = "copy --all --dest-tls-verify=false --dest-creds=alice:secret"
        skopeo(push, f"oci:{image}:v1", f"docker://{gateway}/library/app:v1")
        registries = tmp_path / "registries.conf"  # for podman, it is Docker Hub's mirror
        registries.write_text(
            f'[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "{proxy}"\n'
            "insecure = true\n"
        )
        monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(registries))
        pulled = set()
        for copy in "with", "without":
            with podman_or_buildah("podman") as run:
                pulled.add(run("pull", "docker.io/library/app:v1"))
            back = tmp_path / copy
            pull = "copy --all --src-tls-verify=false"
            skopeo(pull, f"docker://{proxy}/library/app:v1", f"oci:{back}:v1")
            assert files_of(back) == files_of(image)
            upstreams.close()
        assert len(pulled) == 1
    assert "The proxy serves the kept manifest." in (tmp_path / "proxy-log").read_text()


@pytest.mark.slow
def test_a_quarter_of_a_gibibyte_in_bounded_memory(tmp_path: Path) -> None:
    count, block = 256, os.urandom(2**20)
    digest, size = digest_of(block * count), count * len(block)

    def huge(environ: Any, start_response: Any) -> Any:
        response = Response(block for _ in range(count))
        response.content_length = size
        return response(environ, start_response)

    with serve(huge) as upstream, proxy_of(tmp_path, upstream.url) as proxy:
        url = f"http://{proxy}/v2/a/blobs/{digest}"
        command = ["curl", "-sSf", "-o", os.devnull, "-w", "%{size_download}", url]
        for _ in range(2):
            assert all_at_once(2, lambda: subprocess.check_output(command)) == [b"%d" % size] * 2
        assert peak_of(proxy) < 150 * 2**20


@pytest.mark.slow
def test_program_never_sends_the_whole_of_a_wrong_blob(tmp_path: Path) -> None:
    wrong = LAYER[:-1] + bytes([~LAYER[-1] & 255])
    with (
        serve(Slow(wrong, waits=False)) as sized,
        serve(Slow(wrong, says_length=False, waits=False)) as unsized,
        proxy_of(tmp_path, sized.url, unsized.url) as proxy,
    ):
        with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
            requests.get(f"http://{proxy}{BLOB}", timeout=10)
        refused = requests.get(f"http://{proxy}{BLOB}?ns={unsized.host}", timeout=10)
        assert refused.status_code == 502


@pytest.mark.slow
def test_debians_registry_as_upstream(tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    oci_layout.write(image, [300_000, 1], ["amd64"], seed=1)
    with debians_registry(tmp_path) as debians, proxy_of(tmp_path, f"http://{debians}") as proxy:
        for tag in "v1", "v2", "v3":
            remote = f"docker://{debians}/a/b:{tag}"
            skopeo("copy --dest-tls-verify=false", f"oci:{image}:v1", remote)
        skopeo("copy --src-tls-verify=false", f"docker://{proxy}/a/b:v1", f"oci:{back}:v1")
        assert files_of(back) == files_of(image)
        pages = pages_of(
            lambda path: requests.get(f"http://{proxy}{path}", timeout=10),
            "/v2/a/b/tags/list?n=2",
        )
        assert [tag for page in pages for tag in page] == ["v1", "v2", "v3"]
