"""A storage that fails, at the start and later: a line for the operator, 503 for the client."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import requests
from collection import select_unneeded
from registry import make_app
from storage import BucketStorage, DirectoryStorage, storage_at
from werkzeug.test import Client

from registry_routes.digests import digest_of

from .conftest import S3
from .disks import small_disk
from .registry_client import RegistryClient, manifest_of
from .servers import EXAMPLES, example, free_port
from .test_storage_contract import BLOB, DIGEST, MANIFEST, SUBJECT


@contextmanager
def silent_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 that accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name, value in {**S3, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with silent_s3(monkeypatch):
        yield


@pytest.fixture
def without_credentials(s3: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{free_port()}")


def assert_does_not_start(place: str, cwd: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "registry.py"), "--storage", place, "--port", "0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=cwd)
    assert (run.returncode, run.stdout) == (2, ""), run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    assert f"--storage {place!r}: " in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        "./a-file",
        "a-file/below",
        "/proc/nope",
        "ftp://x/y",
        "",
        "://",
        "s3://",
        "file://no/x",
        "file://",
        "http://[",
    ],
)
def test_impossible_storage_does_not_start(place: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_bytes(b"")
    assert_does_not_start(place, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3", "hanging", "without_credentials"])
def test_silent_object_store_does_not_start(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(kind)
    assert_does_not_start("s3://no-such-bucket/x", tmp_path)


@pytest.mark.slow
def test_read_only_directory_does_not_start(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert_does_not_start(str(disk), tmp_path)


@pytest.mark.slow
def test_full_or_read_only_disk_is_a_503(tmp_path: Path) -> None:
    small, large = os.urandom(1000), os.urandom(5_000_000)
    with (
        small_disk(tmp_path / "disk") as disk,
        example("registry", tmp_path / "log", "--storage", str(disk)) as host,
    ):

        def push(content: bytes) -> requests.Response:
            uploads, query = f"http://{host}/v2/a/blobs/uploads/", {"digest": digest_of(content)}
            return requests.post(uploads, content, params=query, timeout=10)

        assert push(large).json()["errors"][0]["code"] == "UNAVAILABLE"
        assert push(small).status_code == 201
        assert list(disk.glob("staging/*")) == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert push(small).status_code == 503
        uploads = requests.post(f"http://{host}/v2/a/blobs/uploads/", timeout=10)
        assert uploads.status_code == 503
        blob = requests.get(f"http://{host}/v2/a/blobs/{digest_of(small)}", timeout=10)
        assert blob.content == small
    failures = [
        line
        for line in (tmp_path / "log").read_text().splitlines()
        if "the storage has failed" in line
    ]
    assert len(failures) == 3
    assert all("'/v2/a/blobs/uploads/'" in line for line in failures)


@pytest.mark.slow
def test_object_store_that_begins_to_hang_is_a_503(
    s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "CONNECT_TIMEOUT", "READ_TIMEOUT":
        monkeypatch.setenv(f"AWS_{name}", "1s")
    client = Client(make_app(storage_at(f"s3://images/{tmp_path.name}")))
    assert client.put("/v2/a/manifests/v1", data=b"{}").status_code == 201
    with silent_s3(monkeypatch):
        client = Client(make_app(storage_at(f"s3://images/{tmp_path.name}")))
        for method, path in (
            ("GET", "/v2/a/manifests/v1"),
            ("POST", "/v2/a/blobs/uploads/"),
            ("HEAD", f"/v2/a/blobs/{digest_of(b'x')}"),
            ("GET", "/healthz"),
        ):
            assert client.open(path, method=method, data=b"{}").status_code == 503, path


def test_failing_store_is_an_oserror_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "repositories"
    file.write_bytes(b"x")
    storage = DirectoryStorage(tmp_path)
    calls: list[Callable[[], Any]] = [
        lambda: storage.open_blob("a", DIGEST),
        lambda: storage.begin_upload("a"),
        lambda: storage.put_manifest("a", DIGEST, MANIFEST),
        lambda: storage.manifest("a", DIGEST),
        lambda: storage.tag("a", "v1"),
        lambda: list(storage.tags("a")),
        lambda: list(storage.referrers("a", SUBJECT)),
        lambda: storage.put_blob("a", DIGEST, [BLOB]),
    ]
    for call in calls:
        with pytest.raises(OSError, match=r"repositories") as raised:
            call()
        assert "\n" not in str(raised.value)


# A storage that vanishes while it is used.

REQUESTS = [
    ("GET", "manifests/v1", b""),
    ("GET", f"manifests/{digest_of(b'{}')}", b""),
    ("PUT", "manifests/v2", b"{}"),
    ("DELETE", "manifests/v1", b""),
    ("DELETE", f"manifests/{digest_of(b'{}')}", b""),
    ("HEAD", f"blobs/{digest_of(b'x')}", b""),
    ("GET", f"blobs/{digest_of(b'x')}", b""),
    ("GET", f"blobs/{digest_of(b'never pushed')}", b""),
    ("DELETE", f"blobs/{digest_of(b'x')}", b""),
    ("POST", "blobs/uploads/", b""),
    ("POST", f"blobs/uploads/?digest={digest_of(b'y')}", b"y"),
    ("POST", f"blobs/uploads/?mount={digest_of(b'x')}&from=a", b""),
    ("GET", "{upload}", b""),
    ("PATCH", "{upload}", b"chunk"),
    ("PUT", f"{{upload}}?digest={digest_of(b'z')}", b"z"),
    ("DELETE", "{upload}", b""),
    ("GET", "tags/list", b""),
    ("GET", "tags/list?n=1&last=v", b""),
    ("GET", f"referrers/{digest_of(b'{}')}", b""),
    ("GET", "../_catalog", b""),
    ("GET", "../../healthz", b""),
]


def filled(client: Client) -> list[tuple[str, str, bytes]]:
    """The requests above, to a registry in which there is what they are for."""
    uploads = "/v2/a/blobs/uploads/"
    assert client.post(f"{uploads}?digest={digest_of(b'x')}", data=b"x").status_code == 201
    assert client.put("/v2/a/manifests/v1", data=b"{}").status_code == 201
    upload = client.post(uploads).location or ""
    assert client.patch(upload, data=b"chunk").status_code == 202
    paths = [urljoin("/v2/a/", path.replace("{upload}", upload)) for _, path, _ in REQUESTS]
    return [(method, path, body) for path, (method, _, body) in zip(paths, REQUESTS, strict=True)]


def assert_unavailable(
    client: Client,
    method: str,
    path: str,
    body: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    response = client.open(path, method=method, data=body, buffered=True)
    assert response.status_code == 503, path
    if method != "HEAD" and path != "/healthz":
        assert response.get_json()["errors"][0]["code"] == "UNAVAILABLE"
    (record,) = caplog.records
    assert "the storage has failed: " in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("how", ["deleted", "renamed", "another", "a file"])
def test_vanished_directory_is_a_503(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "data"
    client = Client(make_app(storage_at(directory)))
    asked = filled(client)
    if how == "deleted":
        shutil.rmtree(directory)
    else:
        directory.rename(tmp_path / "elsewhere")
    if how == "another":  # as a mount point is when nothing is mounted
        directory.mkdir()
    if how == "a file":
        directory.write_bytes(b"")
    for method, path, body in asked:
        assert_unavailable(client, method, path, body, caplog)
        assert directory.exists() == (how in ("another", "a file")), path
    if how == "another":
        assert list(directory.iterdir()) == []
    if how == "renamed":  # and it is as it was
        (tmp_path / "elsewhere").rename(directory)
        assert client.get("/v2/a/manifests/v1").data == b"{}"
        assert client.get("/healthz").status_code == 200
        filled(client)


@pytest.mark.slow
def test_vanished_bucket_is_a_503(
    s3_server: str, s3: None, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = f"{s3_server}/vanishing"
    requests.put(bucket, timeout=10).raise_for_status()
    client = Client(make_app(storage_at("s3://vanishing/x")))
    asked = filled(client)
    storage = storage_at("s3://vanishing/")
    assert isinstance(storage, BucketStorage)
    for objects in storage.store.list():
        storage.store.delete([listed["path"] for listed in objects])
    requests.delete(bucket, timeout=10).raise_for_status()
    for method, path, body in asked:
        assert_unavailable(client, method, path, body, caplog)
    assert requests.head(bucket, timeout=10).status_code == 404


@pytest.mark.parametrize("at", [0, 1, 2])
def test_directory_that_vanishes_during_a_push_is_not_created_again(
    tmp_path: Path, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "data"
    storage = storage_at(directory)

    def blocks() -> Iterator[bytes]:
        for number in range(3):
            if number == at:
                directory.rename(tmp_path / "elsewhere")
            yield bytes(6_000_000)

    with pytest.raises(OSError, match="No such file or directory"):
        storage.put_blob("a", digest_of(bytes(18_000_000)), blocks())
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_collection_ends_at_a_directory_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise no repository would seem to need the contents of those that it has not read."""
    storage = DirectoryStorage(tmp_path)
    client = RegistryClient(storage)
    client.push_blob("a", BLOB)
    assert client.push_manifest("a", "v1", manifest_of(BLOB)).status_code == 201
    scandir, before = os.scandir, sorted(tmp_path.rglob("*"))

    def scan(path: Any) -> Any:
        if str(path).startswith(f"{tmp_path}/repositories/a"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(OSError, match="Input/output error"):
        select_unneeded(storage, -1).delete()
    monkeypatch.undo()
    assert sorted(tmp_path.rglob("*")) == before


def test_collection_follows_symbolic_links(tmp_path: Path) -> None:
    """An operator may have moved a repository to another disk."""
    (tmp_path / "data").mkdir()
    storage = DirectoryStorage(tmp_path / "data")
    client = RegistryClient(storage)
    client.push_blob("a", BLOB)
    assert client.push_manifest("a", "v1", manifest_of(BLOB)).status_code == 201
    repository = tmp_path / "data" / "repositories" / "a"
    repository.rename(tmp_path / "elsewhere")
    repository.symlink_to(tmp_path / "elsewhere")
    for path in [*(tmp_path / "data").rglob("*"), *(tmp_path / "elsewhere").rglob("*")]:
        os.utime(path, (0, 0))
    select_unneeded(storage, 60).delete()
    assert client.has_blob("a", BLOB)
