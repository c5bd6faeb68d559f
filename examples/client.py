"""Pull an image from a registry into an OCI image layout, or push one from there.

    python examples/client.py pull http://127.0.0.1:5000 library/busybox:latest ./busybox
    python examples/client.py push http://127.0.0.1:5000 library/busybox:latest ./busybox

Blobs that are there already are left alone. A pull takes up those that broke off, a push only while
it runs; what is pulled is checked against its digest. With ``--user NAME:PASSWORD`` it gets tokens
as that user.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase, HTTPBasicAuth
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential
from tqdm import tqdm

from registry_routes import URLBuilder, errors, grammar, resolve_location
from registry_routes.digests import DigestMismatch, Verifier, digest_of
from registry_routes.headers import (
    ACCEPT_MANIFESTS,
    IMAGE_MANIFEST,
    bytes_received,
    content_range,
)

REF_NAME = "org.opencontainers.image.ref.name"
CHUNK = 8 * 1024 * 1024
BLOCK = 256 * 1024
ATTEMPTS = 5
TIMEOUT = 60  # seconds without an answer
MAX_MANIFEST = 16 * 1024 * 1024


class Layout:
    """An OCI image layout (image-spec 1.1, image-layout.md)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, digest: str) -> Path:
        return self.root / "blobs" / _algorithm_of(digest) / digest.partition(":")[2]

    def write(self, digest: str, content: bytes) -> None:
        path = self.blob(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_bytes(content)
        temporary.replace(path)

    def descriptor(self, tag: str) -> dict[str, Any]:
        """What the layout has under `tag`, which is its digest or the name of it."""
        for one in self._index()["manifests"]:
            if tag in (one["digest"], _name_of(one)):
                return dict(one)
        raise ValueError(f"image {tag!r} must be in the layout {str(self.root)!r}")

    def add(self, descriptor: dict[str, Any], tag: str | None) -> None:
        """List an image in the index, as `tag` in place of what was that before."""
        index = self._index()
        if tag is None:
            if any(one["digest"] == descriptor["digest"] for one in index["manifests"]):
                return
        else:
            index["manifests"] = [
                one
                for one in index["manifests"]
                if _name_of(one) != tag
                if _name_of(one) is not None or one["digest"] != descriptor["digest"]
            ]
            descriptor = {**descriptor, "annotations": {REF_NAME: tag}}
        index["manifests"].append(descriptor)
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        temporary = self.root / ".index.json.part"
        temporary.write_text(json.dumps(index, indent=2))
        temporary.replace(self.root / "index.json")

    def _index(self) -> dict[str, Any]:
        try:
            content = (self.root / "index.json").read_bytes()
        except FileNotFoundError:
            return {"schemaVersion": 2, "manifests": []}
        index = _json_object(content, f"{str(self.root)!r}: index.json")
        index["manifests"], _ = _parts_of(index)
        return index


def _name_of(descriptor: dict[str, Any]) -> str | None:
    return (descriptor.get("annotations") or {}).get(REF_NAME)


def _algorithm_of(digest: str) -> str:
    """The algorithm of a digest that can be checked."""
    algorithm = grammar.DIGEST.check(digest).partition(":")[0]
    if algorithm not in grammar.REGISTERED_ALGORITHMS:
        raise ValueError(f"digest {digest!r} must be of a registered algorithm")
    return algorithm


class Tokens(AuthBase):
    """Answers a registry's challenges (Docker token authentication), and only that registry's."""

    def __init__(self, root: str, user: str | None) -> None:
        self.origin = _origin(root)
        self.basic = HTTPBasicAuth(*user.split(":", 1)) if user else None
        self.token: str | None = None

    def __call__(self, request: Any) -> Any:
        if self.token and _origin(request.url) == self.origin:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request

    def challenged(self, response: requests.Response) -> bool:
        """Get the token that a response asks for; whether it asks for one, and there is one."""
        if response.status_code != 401 or _origin(response.url) != self.origin:
            return False
        [error, *_] = parse_errors(response)
        if not isinstance(error, errors.Unauthorized) or not error.realm:
            return False
        asked = {"service": error.service, "scope": error.scope.split()}
        answer = requests.get(error.realm, asked, auth=self.basic, timeout=TIMEOUT)
        if not answer.ok:
            raise parse_errors(answer)[0]
        content = _json_object(answer.content, "token")
        token = content.get("token") or content.get("access_token")
        self.token = token if isinstance(token, str) else None
        return self.token is not None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: where a token may go, and never from https to http."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _json_object(content: bytes, kind: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{kind} must be a JSON object, not {content[:40]!r}")
    return found


def parse_errors(response: requests.Response) -> list[errors.RegistryError]:
    return errors.parse_errors(response.status_code, response.content, response.headers)


class Registry:
    """A repository of a registry, as a client sees it."""

    def __init__(self, root: str, name: str, user: str | None = None) -> None:
        self.urls = URLBuilder(root)
        self.name = grammar.NAME.check(name)
        self.session = requests.Session()
        self.tokens = Tokens(root, user)

    def ask(self, method: str, url: str, **options: Any) -> requests.Response:
        """A response that is no error; raises the registry's error, whatever it is."""
        for is_first in True, False:
            response = self.session.request(
                method, url, auth=self.tokens, timeout=TIMEOUT, **options
            )
            if not (is_first and self.tokens.challenged(response)):
                break
        if not response.ok:
            raise parse_errors(response)[0]
        return response

    # Pulling.

    def manifest(self, reference: str) -> tuple[dict[str, Any], bytes]:
        """The descriptor and the content of a manifest."""
        url = self.urls.manifest(self.name, reference)
        headers = {"Accept": ACCEPT_MANIFESTS}
        for attempt in _attempts():
            with attempt, self.ask("GET", url, headers=headers, stream=True) as response:
                content = b""
                for block in response.iter_content(BLOCK):
                    content += block
                    if len(content) > MAX_MANIFEST:
                        raise ValueError(f"manifest must have at most {MAX_MANIFEST} bytes")
        wanted = reference if ":" in reference else response.headers.get("Docker-Content-Digest")
        algorithm = "sha256" if wanted is None else _algorithm_of(wanted)
        digest = digest_of(content, algorithm)
        if wanted not in (None, digest):
            raise ValueError(f"manifest {reference!r} must have the digest {wanted}, not {digest}")
        media_type = response.headers.get("Content-Type", IMAGE_MANIFEST).partition(";")[0]
        return {"mediaType": media_type, "digest": digest, "size": len(content)}, content

    def fetch(self, digest: str, size: int, layout: Layout, progress: Any) -> None:
        """Put a blob into the layout."""
        path = layout.blob(digest)
        if path.exists():
            progress.update(size)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        begun = part.stat().st_size if part.exists() else 0
        progress.update(begun)
        for attempt in _attempts():
            with attempt:
                self._fetch_rest(digest, size, part, progress)
        verifier = Verifier(digest)
        with part.open("rb") as file:
            while block := file.read(BLOCK):
                verifier.update(block)
        try:
            verifier.verify()
        except DigestMismatch:
            part.unlink()
            raise
        part.replace(path)

    def _fetch_rest(self, digest: str, size: int, part: Path, progress: Any) -> None:
        begun = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={begun}-"} if begun else {}
        url = self.urls.blob(self.name, digest)
        try:
            response = self.ask("GET", url, headers=headers, stream=True)
        except errors.RegistryError as error:
            if error.code != 416:
                raise
            return  # there is no more of it
        with response, part.open("ab") as file:
            if response.status_code != 206:  # all of it
                progress.update(-begun)
                file.truncate(0)
                begun = 0
            for block in response.iter_content(BLOCK):
                begun += len(block)
                if begun > size:
                    file.truncate(0)
                    raise ValueError(f"blob {digest} must have {size} bytes, but has more")
                file.write(block)
                progress.update(len(block))

    # Pushing.

    def has_blob(self, digest: str) -> bool:
        try:
            self.ask("HEAD", self.urls.blob(self.name, digest))
        except errors.RegistryError as error:
            if error.code == 404:
                return False
            raise
        return True

    def send(self, digest: str, path: Path, progress: Any) -> None:
        """Upload a blob in chunks; one that broke off is asked after, and gone on with, or begun
        anew where the registry has lost track."""
        size = path.stat().st_size
        if self.has_blob(digest):
            progress.update(size)
            return
        location = self._begin_upload()
        sent, failed = 0, False
        with path.open("rb") as file:
            for attempt in _attempts():
                with attempt:
                    if failed:
                        if self.has_blob(digest):  # only the answer was lost
                            return
                        try:
                            location, known = self._upload_status(location)
                        except errors.RegistryError:  # some want to see their latest Location
                            location, known = self._begin_upload(), 0
                        progress.update(known - sent)
                        sent = known
                    failed = True
                    # What fits into one chunk goes with the PUT: a status cannot tell one byte
                    # from none.
                    while size > CHUNK and sent < size:
                        file.seek(sent)
                        chunk = file.read(CHUNK)
                        headers = {
                            "Content-Range": content_range(sent, len(chunk)),
                            "Content-Type": "application/octet-stream",
                        }
                        location = self._location(
                            self.ask("PATCH", location, data=chunk, headers=headers)
                        )
                        sent += len(chunk)
                        progress.update(len(chunk))
                    file.seek(sent)
                    rest = file.read(CHUNK)
                    headers = {"Content-Type": "application/octet-stream"}
                    url = resolve_location(location, location, digest=digest)
                    self.ask("PUT", url, data=rest, headers=headers)
                    progress.update(len(rest))

    def _begin_upload(self) -> str:
        return self._location(self.ask("POST", self.urls.blob_upload(self.name)))

    def _upload_status(self, location: str) -> tuple[str, int]:
        response = self.ask("GET", location)
        return self._location(response), bytes_received(response.headers.get("Range"))

    @staticmethod
    def _location(response: requests.Response) -> str:
        location = response.headers.get("Location")
        if location is None:
            raise ValueError(f"answer of {response.url!r} must have a Location")
        return resolve_location(response.url, location)

    def put_manifest(self, reference: str, content: bytes, media_type: str) -> None:
        url = self.urls.manifest(self.name, reference)
        self.ask("PUT", url, data=content, headers={"Content-Type": media_type})


def _attempts() -> Retrying:
    """Tries anew where a connection fails, a few times."""
    broken = (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )
    return Retrying(
        retry=retry_if_exception_type(broken),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(0.2),
        reraise=True,
    )


def pull(registry: Registry, reference: str, layout: Layout) -> str:
    """Pull an image, or an index with all its images; returns its digest."""
    descriptor, content = registry.manifest(reference)
    _pull(registry, descriptor, content, layout)
    layout.add(descriptor, None if ":" in reference else reference)
    return str(descriptor["digest"])


def _pull(registry: Registry, descriptor: Any, content: bytes, layout: Layout) -> None:
    children, blobs = _parts_of(_json_object(content, "manifest"))
    for child in children:
        _pull(registry, *registry.manifest(child["digest"]), layout)
    with _progress(descriptor, blobs) as progress:
        for blob in blobs:
            registry.fetch(blob["digest"], blob["size"], layout, progress)
    layout.write(descriptor["digest"], content)


def push(registry: Registry, reference: str, layout: Layout) -> str:
    """Push what the layout has under `reference`, and all it consists of; returns its digest."""
    descriptor = layout.descriptor(reference)
    _push(registry, descriptor, layout, reference)
    return str(descriptor["digest"])


def _push(registry: Registry, descriptor: Any, layout: Layout, reference: str) -> None:
    content = layout.blob(descriptor["digest"]).read_bytes()
    children, blobs = _parts_of(_json_object(content, "manifest"))
    for child in children:
        if layout.blob(child["digest"]).exists():  # a layout may hold some platforms only
            _push(registry, child, layout, child["digest"])
    with _progress(descriptor, blobs) as progress:
        for blob in blobs:
            registry.send(blob["digest"], layout.blob(blob["digest"]), progress)
    registry.put_manifest(reference, content, descriptor["mediaType"])


def _parts_of(manifest: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The manifests of an index; the blobs of an image, each once, that are to be distributed."""
    config = [manifest["config"]] if manifest.get("config") else []
    lists = _list(manifest.get("manifests")), config + _list(manifest.get("layers"))
    for one in lists[0] + lists[1]:
        if not isinstance(one, dict) or not isinstance(one.get("mediaType"), str):
            raise ValueError(f"descriptor {one!r} must have a media type")
        grammar.DIGEST.check(one.get("digest"))
        if type(one.get("size")) is not int or one["size"] < 0:
            raise ValueError(f"descriptor {one!r} must have a size")
    blobs = {
        one["digest"]: one
        for one in lists[1]
        if "nondistributable" not in one["mediaType"] and ".foreign." not in one["mediaType"]
    }
    return lists[0], list(blobs.values())


def _list(value: object) -> list[Any]:
    if not isinstance(value, list | None):
        raise ValueError(f"manifest must have a list, not {value!r:.40}")
    return value or []


def _progress(descriptor: Any, blobs: list[dict[str, Any]]) -> Any:
    return tqdm(
        desc=descriptor["digest"].partition(":")[2][:12],
        total=sum(blob["size"] for blob in blobs),
        unit="B",
        unit_scale=True,
        disable=None,  # where nobody looks
    )


def user(text: str) -> str:
    if ":" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME:PASSWORD")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("action", choices=["pull", "push"])
    parser.add_argument("root", help="where the registry is: http://127.0.0.1:5000")
    parser.add_argument("image", help="NAME:TAG or NAME@DIGEST")
    parser.add_argument(
        "layout",
        type=Path,
        help="the OCI image layout's directory; the image is called TAG there",
    )
    parser.add_argument("--user", metavar="NAME:PASSWORD", type=user, help="to get tokens as")
    options = parser.parse_args()
    name, at, reference = options.image.partition("@")
    if not at:
        name, _, reference = options.image.rpartition(":")
    if not name:
        parser.error(f"image {options.image!r} must be NAME:TAG or NAME@DIGEST")
    try:
        registry = Registry(options.root, name, options.user)
        act = pull if options.action == "pull" else push
        print(act(registry, reference, Layout(options.layout)))
    except (errors.RegistryError, ValueError, OSError) as error:  # OSError: requests' as well
        message = getattr(error, "description", None) or error
        print(f"{options.action} {options.image}: {message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
