"""The views of `make_registry`: manifests, tags, lists and conditional writes, on memory."""

import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from werkzeug.test import Client

from registry_routes import OCI_1_1, RegistryMap
from registry_routes.digests import digest_of
from registry_routes.grammar import REGISTERED_ALGORITHMS
from registry_routes.registry import (
    MAX_MANIFEST,
    ConflictError,
    Manifest,
    MemoryStorage,
    make_registry,
)

from .registry_client import (
    BLOB,
    INDEX_TYPE,
    JSON,
    MANIFEST_TYPE,
    RegistryClient,
    assert_error,
    chunked,
    descriptor,
    manifest_of,
)


@pytest.fixture
def client() -> RegistryClient:
    return RegistryClient(MemoryStorage())


@pytest.mark.parametrize("algorithm", REGISTERED_ALGORITHMS)
def test_manifest_is_pulled_by_tag_and_by_digest(client: RegistryClient, algorithm: str) -> None:
    client.push_blob("a/b/c/d/e/f")
    content = manifest_of(BLOB) + b"\n\n"
    digest = digest_of(content, algorithm)
    by_tag = client.push_manifest("a/b/c/d/e/f", "v1", content)
    by_digest = client.push_manifest("a/b/c/d/e/f", digest, content)
    assert by_tag.status_code == by_digest.status_code == 201
    assert by_digest.location == f"/v2/a/b/c/d/e/f/manifests/{digest}"
    assert by_tag.headers["Docker-Content-Digest"] == digest_of(content)
    for reference, stored in ("v1", digest_of(content)), (digest, digest):
        path = f"/v2/a/b/c/d/e/f/manifests/{reference}"
        got, head = client.get(path), client.head(path)
        assert got.data == content
        assert got.content_type == head.content_type == MANIFEST_TYPE
        assert got.headers["Docker-Content-Digest"] == stored
        assert head.content_length == len(content)


@pytest.mark.parametrize("algorithm", REGISTERED_ALGORITHMS)
def test_manifest_pushed_by_its_digest_gets_tags(client: RegistryClient, algorithm: str) -> None:
    content = manifest_of()
    digest = digest_of(content, algorithm)
    tags = [f"v{i}" for i in range(20)]
    path = f"/v2/a/manifests/{digest}"
    response = client.put(
        path, query_string={"tag": [*tags, "v0"]}, data=content, content_type=MANIFEST_TYPE
    )
    assert response.status_code == 201
    assert response.headers.getlist("OCI-Tag") == tags
    for tag in tags:
        assert client.get(f"/v2/a/manifests/{tag}").headers["Docker-Content-Digest"] == digest
    for bad, status in (["v1", "!"], 400), ([""], 400), ([f"t{i}" for i in range(51)], 414):
        response = client.put(path, query_string={"tag": bad}, data=content)
        assert_error(response, status, "TAG_INVALID")
    assert len(client.get("/v2/a/tags/list").get_json()["tags"]) == 20


def test_manifest_pushed_by_another_digest_is_400(client: RegistryClient) -> None:
    response = client.push_manifest("a", digest_of(b"other"), manifest_of())
    assert_error(response, 400, "DIGEST_INVALID")
    assert_error(client.push_manifest("a", "md5:abc", manifest_of()), 400, "DIGEST_INVALID")


def test_tag_is_deleted_alone_and_manifest_with_its_tags(client: RegistryClient) -> None:
    content = manifest_of()
    for tag in "v1", "v2", "v3":
        client.push_manifest("a", tag, content)
    other = client.push_manifest("a", "other", manifest_of(note="other"))
    assert client.delete("/v2/a/manifests/v1").status_code == 202
    assert_error(client.get("/v2/a/manifests/v1"), 404, "MANIFEST_UNKNOWN")
    assert_error(client.delete("/v2/a/manifests/v1"), 404, "MANIFEST_UNKNOWN")
    path = f"/v2/a/manifests/{digest_of(content)}"
    assert client.get(path).status_code == 200
    assert client.delete(path).status_code == 202
    for method in "GET", "DELETE":
        assert_error(client.open(path, method=method), 404, "MANIFEST_UNKNOWN")
    assert client.get("/v2/a/tags/list").get_json() == {"name": "a", "tags": ["other"]}
    assert client.get(other.location or "").status_code == 200


@pytest.mark.parametrize(
    ("code", "content"),
    [
        *(
            ("MANIFEST_INVALID", content)
            for content in (
                *(b"", b"{", b"\xff", b"[]", b"[" * 100_000, b'{"n": NaN}', b'{"n": [-Infinity]}'),
                *(b'{"layers": {"digest": 1}}', b'{"layers": ["x"]}', b'{"config": 3}'),
                b'{"layers": [{"digest": "../../x"}]}',
                *(b'{"mediaType": "a\\nb"}', b'{"mediaType": "text/html"}'),
                *(b'{"mediaType": ["application/json"]}', b'{"mediaType": "\\ud800"}'),
                b'{"subject": {"digest": null}}',
            )
        ),
        ("MANIFEST_BLOB_UNKNOWN", manifest_of(b"not there")),
        ("MANIFEST_BLOB_UNKNOWN", manifest_of(config=descriptor(b"not there"))),
        ("SIZE_INVALID", b" " * (MAX_MANIFEST + 1)),
    ],
    ids=lambda value: str(value)[:30],
)
def test_invalid_manifest_is_refused(client: RegistryClient, code: str, content: bytes) -> None:
    status = {"MANIFEST_INVALID": 400, "MANIFEST_BLOB_UNKNOWN": 404, "SIZE_INVALID": 413}[code]
    assert_error(client.push_manifest("a", "v1", content), status, code)
    response = client.put("/v2/a/manifests/v1", environ_overrides=chunked(BytesIO(content)))
    assert_error(response, status, code)
    assert_error(client.get("/v2/a/manifests/v1"), 404, "MANIFEST_UNKNOWN")
    assert_error(client.get("/v2/a/tags/list"), 404, "NAME_UNKNOWN")


# The types of layers that need not be in the registry.
FOREIGN = [
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.rootfs.foreign.diff.tar",
]


@pytest.mark.parametrize(
    "content",
    [
        manifest_of(subject=descriptor(b"not there")),
        manifest_of(unknown={"x": [1]}),
        json.dumps({"mediaType": INDEX_TYPE, "manifests": []}).encode(),
        json.dumps({"mediaType": INDEX_TYPE, "manifests": [descriptor(b"not there")]}).encode(),
        json.dumps({"mediaType": INDEX_TYPE, "manifests": [], "layers": None}).encode(),
        json.dumps({"layers": [descriptor(b"1", mediaType=kind) for kind in FOREIGN]}).encode(),
        json.dumps({"note": "x" * (MAX_MANIFEST - 20)}).encode(),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unusual_manifest_is_accepted(client: RegistryClient, content: bytes) -> None:
    assert client.push_manifest("a", "v1", content).status_code == 201
    assert client.get("/v2/a/manifests/v1").data == content


@pytest.mark.parametrize(
    "media_type",
    [
        *(JSON, INDEX_TYPE, "application/vnd.example.thing+json", "Application/Vnd.Example+JSON"),
        *("application/vnd.docker.distribution.manifest.v1+prettyjws", "application/a+b+json"),
    ],
)
def test_manifest_of_any_json_type_keeps_its_type(client: RegistryClient, media_type: str) -> None:
    own = json.dumps({"mediaType": media_type})
    with_charset = f"{media_type}; charset=utf-8"
    for content, sent in ("{}", media_type), ("{}", with_charset), (own, media_type), (own, None):
        response = client.put("/v2/a/manifests/v1", data=content, content_type=sent)
        assert response.status_code == 201
        assert client.get("/v2/a/manifests/v1").headers["Content-Type"] == media_type


NOT_JSON = [
    *("text/html", "image/svg+xml", "image/x+json", "application/octet-stream", "json"),
    *("application/xhtml+xml", "application/html", "application/jsonp", "application/+json"),
    *("application/x json", "application/json, text/html", "application/json/json"),
    *("application/é+json", f"application/{'a' * 200}+json"),
]


@pytest.mark.parametrize(
    ("own", "sent"),
    [
        *((None, media_type) for media_type in NOT_JSON),
        *((media_type, None) for media_type in NOT_JSON),
        *((own, MANIFEST_TYPE) for own in (INDEX_TYPE, JSON, 3, ["x"], {"a": 1}, True)),
    ],
)
def test_media_type_that_is_not_json_or_contradicts_is_refused(
    client: RegistryClient, own: Any, sent: str | None
) -> None:
    content = json.dumps({"mediaType": own})
    response = client.put("/v2/a/manifests/v1", data=content, content_type=sent)
    assert_error(response, 400, "MANIFEST_INVALID")
    assert_error(client.get("/v2/a/manifests/v1"), 404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        ({"layers": [], "manifests": []}, MANIFEST_TYPE),
        ({"layers": [], "manifests": []}, INDEX_TYPE),
        ({"layers": [], "manifests": []}, "application/vnd.example+json"),
        ({"layers": []}, INDEX_TYPE),
        ({"config": descriptor(b"")}, INDEX_TYPE),
        ({"layers": []}, "application/vnd.docker.distribution.manifest.list.v2+json"),
        ({"manifests": []}, MANIFEST_TYPE),
        ({"manifests": []}, "application/vnd.docker.distribution.manifest.v2+json"),
        ({"manifests": []}, "Application/vnd.OCI.image.manifest.v1+JSON"),
    ],
)
def test_manifest_that_could_be_two_things_is_refused(
    client: RegistryClient, content: Any, media_type: str
) -> None:
    client.push_blob("a", b"")
    response = client.put("/v2/a/manifests/v1", json=content, content_type=media_type)
    assert_error(response, 400, "MANIFEST_INVALID")


# Conditional writes.


@pytest.mark.parametrize(
    ("method", "headers", "before", "status"),
    [
        ("PUT", {"If-None-Match": "*"}, None, 201),
        ("PUT", {"If-None-Match": "*"}, "same", 412),
        ("PUT", {"If-Match": "*"}, None, 412),
        ("PUT", {"If-Match": "*"}, "same", 201),
        ("PUT", {"If-Match": '"{same}"'}, "same", 201),
        ("PUT", {"If-Match": '"{same}"'}, "other", 412),
        ("PUT", {"If-Match": '"{other}", "{same}"'}, "other", 201),
        ("PUT", {"If-Match": 'W/"{same}"'}, "same", 412),
        ("PUT", {"If-None-Match": '"{same}"'}, "other", 201),
        ("PUT", {"If-None-Match": 'W/"{same}"'}, "same", 412),
        ("DELETE", {"If-Match": '"{same}"'}, "same", 202),
        ("DELETE", {"If-Match": '"{same}"'}, "other", 412),
        ("DELETE", {"If-Match": "*"}, "same", 202),
        ("DELETE", {"If-Match": "*"}, None, 404),
    ],
)
def test_conditional_write_of_a_tag(
    method: str, headers: dict[str, str], before: str | None, status: int
) -> None:
    client = RegistryClient(MemoryStorage())
    contents = {"same": manifest_of(note=1), "other": manifest_of(note=2), "new": manifest_of()}
    digests = {name: digest_of(content) for name, content in contents.items()}
    if before:
        client.push_manifest("a", "v1", contents[before])
    sent = {name: value.format_map(digests) for name, value in headers.items()}
    body = {"data": contents["new"], "content_type": MANIFEST_TYPE} if method == "PUT" else {}
    response = client.open("/v2/a/manifests/v1", method=method, headers=sent, **body)
    assert response.status_code == status
    after = "new" if status == 201 else None if status in (202, 404) else before
    found = client.get("/v2/a/manifests/v1")
    assert found.headers.get("Docker-Content-Digest") == (after and digests[after])


def test_conditional_write_of_a_digest() -> None:
    client = RegistryClient(MemoryStorage())
    content = manifest_of()
    path = f"/v2/a/manifests/{digest_of(content)}"
    put = {"data": content, "content_type": MANIFEST_TYPE, "headers": {"If-None-Match": "*"}}
    assert [client.put(path, **put).status_code for _ in range(2)] == [201, 412]
    blob = f"/v2/a/blobs/{client.push_blob('a')}"
    for there in path, blob:
        wrong, right = f'"{digest_of(b"")}"', f'"{there.rpartition("/")[2]}"'
        statuses = [
            client.delete(there, headers={"If-Match": tag}).status_code
            for tag in (wrong, right, right)
        ]
        assert statuses == [412, 202, 404]


def test_conditional_write_is_tried_again_when_the_tag_changes() -> None:
    """Another request sets the tag between the check and the write."""
    contents = [manifest_of(note=number) for number in range(3)]

    class Racing(MemoryStorage):
        raced = 0

        def put_manifest(self, *arguments: Any, **options: Any) -> None:
            if options.get("expected") is not None and not self.raced:
                self.raced += 1
                super().put_manifest(
                    "a", digest_of(contents[1]), Manifest(JSON, contents[1]), tags=["v1"]
                )
            super().put_manifest(*arguments, **options)

    for headers, status in (
        ({"If-Match": "*"}, 201),
        ({"If-Match": f'"{digest_of(contents[0])}"'}, 412),
    ):
        storage = Racing()
        client = RegistryClient(storage)
        client.push_manifest("a", "v1", contents[0])
        put = client.put(
            "/v2/a/manifests/v1", data=contents[2], content_type=MANIFEST_TYPE, headers=headers
        )
        assert (put.status_code, storage.raced) == (status, 1)
        assert storage.tag("a", "v1") == digest_of(contents[2 if status == 201 else 1])


# Referrers.


def test_subject_with_an_unregistered_digest_gets_no_oci_subject(client: RegistryClient) -> None:
    artifact = manifest_of(subject=descriptor(b"x") | {"digest": "md5:ab"})
    response = client.push_manifest("a", digest_of(artifact), artifact)
    assert (response.status_code, "OCI-Subject" in response.headers) == (201, False)


@pytest.mark.parametrize(
    ("url_map", "served"),
    [
        (RegistryMap(prefix="/r"), True),
        (RegistryMap(dialect=OCI_1_1.subset("manifest", "referrers")), True),
        (RegistryMap(dialect=OCI_1_1.subset("manifest")), False),
        (RegistryMap(dialect=OCI_1_1.subset(methods=["PUT"])), False),
    ],
)
def test_oci_subject_is_sent_only_if_referrers_are_served(
    url_map: RegistryMap, served: bool
) -> None:
    """Without it, regctl and oras maintain a tag that lists the referrers."""
    client = RegistryClient(MemoryStorage(), url_map=url_map)
    subject = descriptor(b"x")
    path = f"{url_map.table.prefix}/v2/a/manifests/v1"
    response = client.put(path, data=manifest_of(subject=subject), content_type=MANIFEST_TYPE)
    assert response.status_code == 201
    assert response.headers.get("OCI-Subject") == (subject["digest"] if served else None)


def test_storage_gets_only_registered_digests() -> None:
    class Watchful(MemoryStorage):
        def referrers(self, name: str, digest: str, after: str = "") -> Iterator[tuple[str, bytes]]:
            assert digest.partition(":")[0] in REGISTERED_ALGORITHMS
            return super().referrers(name, digest, after)

    client = Client(make_registry(Watchful()))
    for digest in digest_of(b""), "md5:0", "a+b:c":
        response = client.get(f"/v2/a/referrers/{digest}")
        assert (response.status_code, response.get_json()["manifests"]) == (200, [])


def test_referrers_are_listed_and_filtered(client: RegistryClient) -> None:
    subject = manifest_of()
    digest = digest_of(subject)
    path = f"/v2/a/referrers/{digest}"
    assert client.get(path).get_json()["manifests"] == []
    config = descriptor(b"{}", mediaType="x/config")
    client.push_blob("a", b"{}")
    for artifact in (
        manifest_of(subject=descriptor(subject), artifactType="x/sbom", annotations={"k": "v"}),
        manifest_of(subject=descriptor(subject), config=config),
        manifest_of(subject=descriptor(b"other"), artifactType="x/sbom"),
    ):
        response = client.push_manifest("a", digest_of(artifact), artifact)
        assert response.headers["OCI-Subject"] == json.loads(artifact)["subject"]["digest"]
    response = client.get(path)
    assert response.content_type == INDEX_TYPE
    found = {entry["artifactType"]: entry for entry in response.get_json()["manifests"]}
    assert set(found) == {"x/sbom", "x/config"}
    assert found["x/sbom"]["annotations"] == {"k": "v"}
    for entry in found.values():
        content = client.get(f"/v2/a/manifests/{entry['digest']}").data
        assert (entry["size"], entry["mediaType"]) == (len(content), MANIFEST_TYPE)
    filtered = client.get(path, query_string={"artifactType": "x/sbom"})
    assert filtered.get_json()["manifests"] == [found["x/sbom"]]
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"


def push_referrer(client: RegistryClient, subject: str, **more: Any) -> str:
    content = manifest_of(subject={"digest": subject}, **more)
    response = client.push_manifest("a", digest_of(content), content)
    assert response.status_code == 201
    return digest_of(content)


def referrers_in_pages(client: RegistryClient, subject: str, query: str = "") -> list[list[str]]:
    found = client.lists(f"/v2/a/referrers/{subject}{query}", "manifests")
    return [[descriptor["digest"] for descriptor in page] for page in found]


def test_referrers_are_listed_in_pages(client: RegistryClient) -> None:
    subject = digest_of(manifest_of())
    digests = sorted(push_referrer(client, subject, note=i) for i in range(7))
    assert referrers_in_pages(client, subject) == [digests]
    for n in range(1, 9):
        pages = [digests[i : i + n] for i in range(0, len(digests), n)]
        assert referrers_in_pages(client, subject, f"?n={n}") == pages
    for last in [*digests, "", "a", "sha256", "sha256:", "sha256:5", "sha256z", "sha5", "z", "é"]:
        path = f"/v2/a/referrers/{subject}"
        found = client.get(path, query_string={"last": last}).get_json()["manifests"]
        assert [descriptor["digest"] for descriptor in found] == [
            digest for digest in digests if digest > last
        ]
    assert referrers_in_pages(client, subject, "?n=0") == [[]]


@pytest.mark.parametrize("annotation", ["x", '"', "é\u2028\ud800\0"])
def test_page_of_referrers_has_at_most_4_mib(annotation: str) -> None:
    client = RegistryClient(MemoryStorage())
    subject = digest_of(manifest_of())
    one = len(json.dumps(annotation)) - 2
    annotations = {"x": annotation * (3_000_000 // one)}
    digests = {
        push_referrer(client, subject, note=i, annotations=annotations, artifactType="x/big")
        for i in range(5)
    }
    digests.add(push_referrer(client, subject, artifactType="x/small"))
    for query, expected in (("", 6), ("?artifactType=x/small", 1), ("?artifactType=x/none", 0)):
        responses = list(client.pages(f"/v2/a/referrers/{subject}{query}"))
        assert len(responses) > 1
        assert all(len(response.data) <= MAX_MANIFEST for response in responses)
        found = [
            descriptor for response in responses for descriptor in response.get_json()["manifests"]
        ]
        assert len(found) == expected
        assert all(
            descriptor.get("annotations", annotations) == annotations for descriptor in found
        )
        for response in responses:
            assert ("OCI-Filters-Applied" in response.headers) == bool(query)
        if not query:
            assert {descriptor["digest"] for descriptor in found} == digests


def test_manifest_too_large_for_a_page_of_referrers_is_refused(client: RegistryClient) -> None:
    """Every manifest that is accepted can be listed."""
    subject = digest_of(manifest_of())
    bare = manifest_of(subject={"digest": subject}, annotations={"x": ""})
    for missing in range(0, 800, 100):
        x = "x" * (MAX_MANIFEST - missing - len(bare))
        content = manifest_of(subject={"digest": subject}, annotations={"x": x})
        assert len(content) == MAX_MANIFEST - missing
        response = client.push_manifest("a", digest_of(content), content)
        if response.status_code == 413:
            assert_error(response, 413, "SIZE_INVALID")
            continue
        assert response.status_code == 201
        path = f"/v2/a/referrers/{subject}"
        assert [len(r.get_json()["manifests"]) for r in client.pages(path)] == [1]
        assert len(client.get(path).data) <= MAX_MANIFEST
        break
    else:
        pytest.fail("none of the manifests is accepted")


# Tags and repositories.


TAGS = ["B", "D", "a", "a-b", "a.b", "a0", "ab", "c"]
AFTER = ["", "A", "a-", "a\0", "..", "é", "/", "%", "zz", "a/", "a/a", "a//", "../a", "b/c"]
NAMES = ["a", "a--b", "a-b", "a-b/c", "a.b/c/d", "a/0", "a/b", "a/b-c", "a/b/c", "a0", "b0"]


@pytest.mark.parametrize(
    ("path", "key", "expected"),
    [("/v2/x/y/tags/list", "tags", TAGS), ("/v2/_catalog", "repositories", NAMES)],
)
def test_lists_come_in_pages(
    client: RegistryClient, path: str, key: str, expected: list[str]
) -> None:
    client.push_blob("only/a/blob")
    for item in reversed(expected):
        client.push_manifest(*(("x/y", item) if key == "tags" else (item, "v1")), manifest_of())
    for n in range(1, len(expected) + 2):
        pages = [expected[i : i + n] for i in range(0, len(expected), n)]
        assert client.lists(f"{path}?n={n}", key) == pages
    assert client.lists(path, key) == client.lists(f"{path}?n={'9' * 5000}", key) == [expected]
    assert client.lists(f"{path}?n=0", key) == [[]]
    for last in [*AFTER, *expected]:
        response = client.get(path, query_string={"last": last, "n": 99})
        assert response.get_json()[key] == [item for item in expected if item > last]
    for malformed in "-1", "x", "", "1.0", "٣":
        response = client.get(path, query_string={"n": malformed})
        assert_error(response, 400, "PAGINATION_NUMBER_INVALID")


def test_conditional_write_that_always_conflicts_is_503() -> None:
    class Stale(MemoryStorage):
        def put_manifest(self, *arguments: Any, **options: Any) -> None:
            raise ConflictError("v1")

    put = RegistryClient(Stale()).put(
        "/v2/a/manifests/v1", data=manifest_of(), headers={"If-None-Match": "*"}
    )
    assert_error(put, 503, "UNAVAILABLE")
