"""The proxy and the gateway in front of Amazon's registries, as these are reported to answer.

distribution/distribution#4383, aws/containers-roadmap#2671 (HEAD of a blob), open-policy-agent/opa#6580
(credentials at the signed URL), deitch/docker_registry2#34 (lists), google/go-containerregistry#681
(``n``), CodesWhat/drydock#927 (cursors).
"""

from collections.abc import Iterator
from typing import Any

import pytest

from registry_routes.digests import digest_of
from registry_routes.headers import IMAGE_INDEX
from registry_routes.testing import ServedRegistry, serve

from .fakes import AWS, CONFIG, IMAGE, INDEX, LAYER, Ecr
from .fronts import FrontClient
from .proxies import ProxyClient, pages_of

TAGS = "/v2/team/app/tags/list"
BLOB = f"/v2/team/app/blobs/{digest_of(LAYER)}"


@pytest.fixture(params=["private", "public"])
def is_public(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "public")


@pytest.fixture
def ecr(is_public: bool) -> Iterator[ServedRegistry]:
    with serve(Ecr(is_public=is_public)) as upstream:
        yield upstream


@pytest.fixture
def proxy(ecr: ServedRegistry, is_public: bool) -> ProxyClient:
    return ProxyClient(ecr.url, user=None if is_public else AWS)


@pytest.fixture
def front(ecr: ServedRegistry, is_public: bool) -> FrontClient:
    return FrontClient(ecr.url, *(() if is_public else AWS), stream_blobs=True)


def test_image_is_pulled_through_the_proxy_and_kept(
    ecr: ServedRegistry, proxy: ProxyClient
) -> None:
    for _ in range(2):
        index = proxy.get("/v2/team/app/manifests/v1")
        assert (index.data, index.content_type) == (INDEX, IMAGE_INDEX)
        assert "Warning" not in index.headers
        assert proxy.get(f"/v2/team/app/manifests/{digest_of(IMAGE)}").data == IMAGE
        for blob in CONFIG, LAYER:
            assert proxy.get(f"/v2/team/app/blobs/{digest_of(blob)}").data == blob
        proxy.wait_until_done()
    stored = [asked for asked in ecr.requests if asked.path.startswith("/signed/")]
    assert [(asked.method, asked.status) for asked in stored] == [("GET", 200)] * 2


def test_head_of_a_blob_is_answered_by_the_proxy(proxy: ProxyClient) -> None:
    """It is a 401, or a redirect to a URL that is signed for GET."""
    head = proxy.head(BLOB)
    assert (head.status_code, head.content_length) == (200, len(LAYER))


def test_head_of_a_blob_is_answered_by_the_front(front: FrontClient) -> None:
    head = front.open("HEAD", BLOB)
    assert (head.status_code, head.content_length, head.data) == (200, len(LAYER), b"")


def test_lists_go_on_by_the_cursor(proxy: ProxyClient, front: FrontClient) -> None:
    def get_from_front(path: str) -> Any:
        return front.open("GET", path)

    for get in proxy.get, get_from_front:
        assert pages_of(get, TAGS) == [["v1", "v2"], ["v3"]]
        for query in "n=10000", "last=v2":
            refused = get(f"{TAGS}?{query}")
            assert refused.status_code == 405
            assert refused.get_json()["errors"][0]["code"] == "UNSUPPORTED"
    assert proxy.get(TAGS).content_type == "application/json"


def test_image_is_pulled_through_the_front(ecr: ServedRegistry, front: FrontClient) -> None:
    assert front.open("GET", "/v2/team/app/manifests/v1").data == INDEX
    assert front.open("GET", BLOB).data == LAYER
    stored = [asked for asked in ecr.requests if asked.path.startswith("/signed/")]
    assert [asked.status for asked in stored] == [200]
