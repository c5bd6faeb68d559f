"""Pull an image from a registry into an OCI image layout, or push one from there.

    python examples/client.py pull busybox:latest ./busybox
    python examples/client.py push localhost:5000/me/app:latest ./busybox

Content that is already there is left alone, damaged content is replaced, and everything is checked
against its digest. A pull resumes blobs that broke off, even in an earlier run; a push resumes them
only while it runs. Several pulls into one layout take turns.
"""

import argparse
import fcntl
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase, HTTPBasicAuth
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
)
from tqdm import tqdm

from registry_routes import Reference, URLBuilder, errors, grammar, resolve_location, responses
from registry_routes.challenges import Challenge, Token, parse_challenges, parse_token
from registry_routes.digests import DigestMismatchError, Verifier, digest_of
from registry_routes.headers import (
    ACCEPT_MANIFESTS,
    MANIFEST_MEDIA_TYPES,
    bytes_received,
    chunk_min_length,
    content_range,
    parse_content_range,
)
from registry_routes.urls import same_origin

REF_NAME = "org.opencontainers.image.ref.name"
BLOCK = 64 * 1024  # bytes; a partial block is lost when a connection breaks
MAX_MANIFEST = 16 * 1024 * 1024
MAX_DEPTH = 20  # levels of indexes within an index
CHUNK = 4 * 1024 * 1024  # the most that GitHub's registry takes
SMALLEST_CHUNK = 64 * 1024  # tried if larger ones are refused
LARGEST_CHUNK = 64 * 1024 * 1024  # held in memory if the registry takes no smaller ones
TIMEOUT = 60  # seconds without an answer
ATTEMPTS = 5  # without any progress
FIRST_WAIT = 0.2  # seconds before the second attempt
LONGEST_WAIT = 60  # seconds; if a registry asks for a longer wait, the client gives up
PASSWORD = "REGISTRY_PASSWORD"  # noqa: S105 - the name of an environment variable

Json = dict[str, Any]
User = tuple[str, str] | None  # a name and a password


# The image layout.


class Layout:
    """An OCI image layout (image-spec 1.1, image-layout.md)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, digest: str) -> Path:
        algorithm, _, encoded = Verifier(digest).digest.partition(":")
        return self.root / "blobs" / algorithm / encoded

    def has(self, digest: str) -> bool:
        """Whether the layout has this content, undamaged."""
        try:
            verify_file(self.blob(digest), digest)
        except (FileNotFoundError, DigestMismatchError):
            return False
        return True

    def read(self, digest: str) -> bytes:
        """A manifest; raises `DigestMismatchError` if its file is damaged."""
        with self.blob(digest).open("rb") as file:
            content = file.read(MAX_MANIFEST + 1)
        check_manifest(content, digest)
        return content

    def write(self, digest: str, content: bytes) -> None:
        path = self.blob(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_bytes(content)
        temporary.replace(path)

    def descriptor(self, wanted: str) -> Json:
        """The image with this digest or this name in the layout."""
        for one in self._index()["manifests"]:
            if wanted in (one["digest"], _name_of(one)):
                return dict(one)
        raise ValueError(f"image {wanted!r} must be in the layout {str(self.root)!r}")

    def add(self, descriptor: Json, tag: str | None) -> None:
        """List an image in the index. As `tag`, it replaces the image that had the tag before."""
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
        temporary = self.root / ".index.json.part"
        temporary.write_text(json.dumps(index, indent=2))
        temporary.replace(self.root / "index.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the layout, so that no other process writes to it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "oci-layout").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_size == 0:
                file.write('{"imageLayoutVersion": "1.0.0"}')
                file.flush()
            yield

    def _index(self) -> Json:
        try:
            content = (self.root / "index.json").read_bytes()
        except FileNotFoundError:
            return {"schemaVersion": 2, "manifests": []}
        index = json_object(content, f"{str(self.root)!r}: index.json")
        index["manifests"], _ = parts_of(index)
        return index


def _name_of(descriptor: Json) -> str | None:
    return (descriptor.get("annotations") or {}).get(REF_NAME)


def verify_file(path: Path, digest: str) -> None:
    verifier = Verifier(digest)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            verifier.update(block)
    verifier.verify()


def check_manifest(content: bytes, digest: str) -> None:
    if len(content) > MAX_MANIFEST:
        raise ValueError(f"manifest {digest} must have at most {MAX_MANIFEST} bytes")
    verifier = Verifier(digest)
    verifier.update(content)
    verifier.verify()


# Manifests and indexes.


def json_object(content: bytes, kind: str) -> Json:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{kind} must be a JSON object, not {content[:40]!r}")
    return found


def parts_of(manifest: Json) -> tuple[list[Json], list[Json]]:
    """The manifests of an index, and the distributable blobs of an image, each of them once."""
    config = [manifest["config"]] if manifest.get("config") else []
    lists = _list(manifest.get("manifests")), config + _list(manifest.get("layers"))
    for one in lists[0] + lists[1]:
        if not isinstance(one, dict) or not isinstance(one.get("mediaType"), str):
            raise ValueError(f"descriptor {one!r:.200} must have a media type")
        grammar.DIGEST.check(one.get("digest"))
        if type(one.get("size")) is not int or not 0 <= one["size"] < 2**63:
            raise ValueError(f"descriptor {one!r:.200} must have a size")
        if not isinstance(one.get("annotations"), dict | None):
            raise ValueError(f"descriptor {one!r:.200} must have an object of annotations")
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


class Walk:
    """A walk through an index and everything that it lists, each manifest and each blob once.

    `read` returns the content of a manifest by its digest, or `None` to skip it.
    """

    def __init__(self, read: Callable[[str], bytes | None]) -> None:
        self.read = read
        self.manifests: set[str] = set()
        self.blobs: set[str] = set()

    def through(
        self, descriptor: Json, content: bytes | None = None, depth: int = 0
    ) -> Iterator[tuple[Json, bytes, list[Json]]]:
        """The manifests that this one lists, then this one, each with its content and new blobs."""
        if descriptor["digest"] in self.manifests:
            return
        if depth > MAX_DEPTH:
            raise ValueError(f"index must not have manifests that are over {MAX_DEPTH} levels deep")
        self.manifests.add(descriptor["digest"])
        content = self.read(descriptor["digest"]) if content is None else content
        if content is None:
            return
        children, blobs = parts_of(json_object(content, "manifest"))
        for child in children:
            yield from self.through(child, depth=depth + 1)
        new = [blob for blob in blobs if blob["digest"] not in self.blobs]
        self.blobs.update(blob["digest"] for blob in new)
        yield descriptor, content, new


# HTTP.


def wait_asked_for(error: BaseException | None) -> float:
    """How many seconds a registry's error asks the client to wait."""
    return getattr(error, "retry_after", None) or 0


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed in a while."""
    if isinstance(error, errors.RegistryError):
        return error.code in (429, 500, 502, 503, 504) and wait_asked_for(error) <= LONGEST_WAIT
    broken = requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError
    return isinstance(error, broken) and not isinstance(error, requests.exceptions.SSLError)


def attempts() -> Retrying:
    """Tries again, a few times, after errors that may pass."""
    backoff = wait_exponential(FIRST_WAIT)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(backoff(state), wait_asked_for(error))

    return Retrying(
        retry=retry_if_exception(is_passing),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait,
        reraise=True,
    )


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or re.fullmatch(r"127(?:\.[0-9]+){3}|::1", host) is not None


def body_of(response: requests.Response, most: int = BLOCK) -> bytes:
    """The body of a response, cut off at the first block that exceeds `most` bytes."""
    content = bytearray()
    with response:
        for block in response.iter_content(BLOCK):
            content += block
            if len(content) > most:
                break
    return bytes(content)


def checked(response: requests.Response, endpoint: str | None = None) -> requests.Response:
    """The response, if it is successful. Raises the registry's error if it is not."""
    if response.status_code >= 400:
        status, headers = response.status_code, response.headers
        raise responses.parse_errors(status, body_of(response), headers, endpoint=endpoint)[0]
    if response.status_code >= 300:  # a redirect without a Location
        response.close()
        raise ValueError(
            f"answer of {response.url!r} must not have the status {response.status_code}"
        )
    return response


def location_of(response: requests.Response) -> str:
    location = response.headers.get("Location")
    if location is None:
        raise ValueError(f"answer of {response.url!r} must have a Location")
    return resolve_location(response.url, location)


class Credentials(AuthBase):
    """Answers the challenges of one registry, and no others."""

    def __init__(self, root: str, user: User, request: Callable[..., requests.Response]) -> None:
        self.root = root
        self.user = user
        # As bytes, because requests encodes strings as Latin-1.
        self.basic = HTTPBasicAuth(*(text.encode() for text in user)) if user else None
        self.request = request
        self.challenge: Challenge | None = None  # the last one; later requests answer it too
        self.tokens: dict[str, tuple[str, float]] = {}  # by URL, each with the time when it ends

    def __call__(self, prepared: Any) -> Any:
        if self.challenge and same_origin(prepared.url, self.root):
            if self.challenge.scheme == "bearer":
                prepared.headers["Authorization"] = f"Bearer {self._token(self.challenge)}"
            elif self.basic:
                self.basic(prepared)
        return prepared

    def can_answer(self, response: requests.Response) -> bool:
        """Whether the request may succeed with different credentials."""
        if response.status_code != 401 or not same_origin(response.url, self.root):
            return False
        found = {one.scheme: one for one in reversed(parse_challenges(response.headers))}
        sent = response.request.headers.get("Authorization", "")
        self.challenge = found.get("bearer") or found.get("basic")
        if "bearer" in found:
            url = found["bearer"].token_url(**self._wanted(found["bearer"]))
            if url in self.tokens and sent == f"Bearer {self.tokens[url][0]}":
                del self.tokens[url]  # the registry no longer accepts it
            return True
        return "basic" in found and self.basic is not None and not sent.startswith("Basic")

    def _token(self, challenge: Challenge) -> str:
        """The token for these scopes: the same one until it expires."""
        url, now = challenge.token_url(**self._wanted(challenge)), time.monotonic()
        token, end = self.tokens.get(url, ("", now))
        if end <= now:
            new = self._posted(challenge) if self.user else None
            new = new or parse_token(body_of(checked(self.request("GET", url, auth=self.basic))))
            token, end = self.tokens[url] = new.token, now + new.expires_in
        return token

    def _posted(self, challenge: Challenge) -> Token | None:
        """The token from a POST of a form; `None` from token servers that know only GET."""
        name, password = self.user or ("", "")
        wanted = self._wanted(challenge)
        form = challenge.token_form(username=name, password=password, **wanted)
        try:  # without redirects, which could take the password to another host
            posted = self.request("POST", form.url, data=form.fields, allow_redirects=False)
            return parse_token(body_of(checked(posted)))
        except (errors.RegistryError, ValueError):
            return None

    def _wanted(self, challenge: Challenge) -> Json:
        # Registries list scopes in any order.
        return {"scopes": sorted(set(challenge.scope.split())), "registry": self.root}


# The registry.


class Registry:
    """A repository of a registry, as a client sees it.

    :param tls_verify: whether certificates are checked; `None` checks them for all hosts except
        this machine.
    """

    def __init__(
        self, root: str, name: str, user: User = None, tls_verify: bool | None = None
    ) -> None:
        self.urls = URLBuilder(root)
        self.name = grammar.NAME.check(name)
        self.session = requests.Session()
        self.session.headers["Accept-Encoding"] = "identity"  # a digest is of the bytes as stored
        self.tls_verify = tls_verify
        self.credentials = Credentials(root, user, self.request)
        self.chunk = CHUNK  # the most to send in one request; 0 for whole blobs

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        verify = not is_loopback(url) if self.tls_verify is None else self.tls_verify
        return self.session.request(
            method, url, timeout=TIMEOUT, stream=True, verify=verify, **options
        )

    def ask(
        self, method: str, url: str, *, endpoint: str | None = None, data: Any = b"", **options: Any
    ) -> requests.Response:
        """A successful response, with its body unread. Raises the registry's error.

        `data` is bytes, or a file, which is sent from its beginning.
        """
        for is_first in True, False:
            if hasattr(data, "seek"):
                data.seek(0)
            response = self.request(method, url, data=data, auth=self.credentials, **options)
            if not (is_first and self.credentials.can_answer(response)):
                break
            response.close()
        return checked(response, endpoint)

    def tell(self, method: str, url: str, **options: Any) -> requests.Response:
        """Like `ask`, for a response whose body is not needed."""
        response = self.ask(method, url, **options)
        body_of(response)
        return response

    def manifest(self, reference: str) -> tuple[Json, bytes]:
        """The descriptor and the content of a manifest."""
        url = self.urls.manifest(self.name, reference)
        headers = {"Accept": ACCEPT_MANIFESTS}
        for attempt in attempts():
            with attempt:
                response = self.ask("GET", url, endpoint="manifest", headers=headers)
                content = body_of(response, MAX_MANIFEST)
        said = response.headers.get("Docker-Content-Digest")
        digest = reference if ":" in reference else said or digest_of(content)
        check_manifest(content, digest)
        media_type = json_object(content, "manifest").get("mediaType")
        media_type = media_type or response.headers.get("Content-Type", "").partition(";")[0]
        if media_type not in MANIFEST_MEDIA_TYPES:
            raise ValueError(f"manifest {digest} must not be of the type {media_type!r:.100}")
        return {"mediaType": media_type, "digest": digest, "size": len(content)}, content

    def put_manifest(self, reference: str, content: bytes, media_type: str) -> None:
        url = self.urls.manifest(self.name, reference)
        for attempt in attempts():
            with attempt:
                self.tell("PUT", url, data=content, headers={"Content-Type": media_type})

    def has_blob(self, digest: str) -> bool:
        try:
            self.tell("HEAD", self.urls.blob(self.name, digest), endpoint="blob")
        except errors.RegistryError as error:
            if error.code == 404:
                return False
            raise
        return True


class Transfer:
    """A blob that is being transferred, and that resumes where it broke off."""

    def __init__(self, registry: Registry, blob: Json, layout: Layout, progress: Any) -> None:
        self.registry = registry
        self.digest: str = blob["digest"]
        self.size: int = blob["size"]
        self.path = layout.blob(self.digest)
        self.progress = progress
        self.position = self.furthest = 0

    def run(self) -> None:
        for self.attempt in attempts():
            with self.attempt:
                while not self.go_on():
                    pass

    def go_on(self) -> bool:
        """Transfer the rest. Return `False` to try at once in another way."""
        raise NotImplementedError

    def at(self, position: int) -> None:
        """Record that `position` bytes are across. New progress resets the count of attempts."""
        self.progress.update(position - self.position)
        self.position = position
        if position > self.furthest:
            self.furthest = position
            self.attempt.retry_state.attempt_number = 1


class Download(Transfer):
    """Fetches a blob into the layout, which must be locked."""

    def run(self) -> None:
        part = self.path.with_name(f".{self.path.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        was_begun = part.exists()
        with part.open("ab") as self.file:
            super().run()
        try:
            verify_file(part, self.digest)
        except DigestMismatchError:
            part.unlink()
            if not was_begun:
                raise
            self.run()  # from the beginning
        else:
            part.replace(self.path)

    def go_on(self) -> bool:
        begun = self.file.seek(0, os.SEEK_END)
        self.at(begun)
        if begun == self.size:
            return True
        url = self.registry.urls.blob(self.registry.name, self.digest)
        headers = {"Range": f"bytes={begun}-"} if begun else {}
        try:
            response = self.registry.ask("GET", url, endpoint="blob", headers=headers)
        except errors.RegistryError as error:
            if error.code != 416 or not begun:
                raise
            self.file.truncate(0)
            return False
        try:
            with response:
                self._take(response, begun)
        except ValueError:  # some of the bytes are not the blob's
            self.file.truncate(0)
            if not begun:
                raise
            return False
        return True

    def _take(self, response: requests.Response, begun: int) -> None:
        start = 0
        if response.status_code == 206:
            start, _ = parse_content_range(response.headers.get("Content-Range", ""))
        if start > begun:
            raise ValueError(f"answer for blob {self.digest} must start at {begun}, not {start}")
        self.file.truncate(start)
        self.at(start)
        for block in response.iter_content(BLOCK):
            if self.position + len(block) > self.size:
                raise ValueError(f"blob {self.digest} must have {self.size} bytes, not more")
            self.file.write(block)
            self.at(self.position + len(block))
        if self.position < self.size:
            sizes = f"{self.size} bytes, not {self.position}"
            raise requests.ConnectionError(f"blob {self.digest} must have {sizes}")


class Upload(Transfer):
    """Sends a blob, in chunks if it is large."""

    location = ""
    least = 0  # bytes of a chunk, except the last

    def run(self) -> None:
        self.size = self.path.stat().st_size
        super().run()

    def go_on(self) -> bool:
        if not self.registry.has_blob(self.digest):  # it has it if only the last answer was lost
            self._find_position()
            if not self._send():
                return False
        self.at(self.size)
        return True

    def _find_position(self) -> None:
        """Ask how many bytes the registry has, or begin a new upload."""
        if self.position:
            try:
                status = self.registry.tell("GET", self.location)
                known = bytes_received(status.headers.get("Range"))
                self.location = location_of(status)
            except (errors.RegistryError, ValueError) as error:
                if is_passing(error):
                    raise
                known = 0  # some registries accept only their latest Location
            self.at(known if known <= self.size else 0)
        if not self.position:
            uploads = self.registry.urls.blob_upload(self.registry.name)
            begun = self.registry.tell("POST", uploads, endpoint="blob-upload")
            self.location = location_of(begun)
            self.least = chunk_min_length(begun.headers.get("OCI-Chunk-Min-Length"))

    def _send(self) -> bool:
        chunk = max(self.registry.chunk, self.least) if self.registry.chunk else 0
        if chunk > LARGEST_CHUNK:
            chunk = 0
        headers, sending = {"Content-Type": "application/octet-stream"}, 0
        try:
            with self.path.open("rb") as file:
                # A blob that fits into one chunk is sent by the PUT alone, because a status cannot
                # tell one byte from none.
                while 0 < chunk < self.size and self.position < self.size:
                    file.seek(self.position)
                    data = file.read(chunk)
                    sending = len(data)
                    range_ = {"Content-Range": content_range(self.position, sending)}
                    patched = self.registry.tell(
                        "PATCH", self.location, data=data, headers=headers | range_
                    )
                    self.location = location_of(patched)
                    self.at(self.position + sending)
                sending = self.size - self.position
                url = resolve_location(self.location, self.location, digest=self.digest)
                self.registry.tell("PUT", url, data=file if sending else b"", headers=headers)
        except requests.ConnectionError:  # some servers refuse a long body in this way
            if chunk and sending > SMALLEST_CHUNK:
                self.registry.chunk = max(sending // 2, SMALLEST_CHUNK)
            raise
        except errors.RegistryError as error:
            if not chunk or not sending or is_passing(error) or error.code in (401, 403, 429):
                raise
            # GitHub answers more than 4 MiB with 416.
            if error.code in (413, 416) and sending // 2 >= max(SMALLEST_CHUNK, self.least):
                self.registry.chunk = sending // 2
            elif sending < self.size:
                self.registry.chunk = 0
                self.at(0)  # which begins a new upload
            else:
                raise
            return False
        return True


# Pulling and pushing.


def pull(registry: Registry, reference: Reference, layout: Layout) -> str:
    """Pull an image, or an index with all its images; returns its digest."""
    top, content = registry.manifest(reference.reference())
    walk = Walk(lambda digest: registry.manifest(digest)[1])
    for one, listed, blobs in walk.through(top, content):
        with _progress(one, blobs) as progress:
            for blob in blobs:
                with layout.locked():
                    if layout.has(blob["digest"]):
                        progress.update(blob["size"])
                    else:
                        Download(registry, blob, layout, progress).run()
        with layout.locked():
            layout.write(one["digest"], listed)
    with layout.locked():
        layout.add(top, reference.tag if reference.digest else reference.reference())
    return str(top["digest"])


def push(registry: Registry, reference: Reference, layout: Layout) -> str:
    """Push the image that the layout has under the digest or the tag of `reference`, with all its
    content; returns its digest."""

    def read(digest: str) -> bytes | None:  # a layout may hold only some platforms
        return layout.read(digest) if layout.blob(digest).exists() else None

    top = layout.descriptor(reference.reference())
    for one, listed, blobs in Walk(read).through(top, layout.read(top["digest"])):
        with _progress(one, blobs) as progress:
            for blob in blobs:
                verify_file(layout.blob(blob["digest"]), blob["digest"])
                Upload(registry, blob, layout, progress).run()
        target = (reference.tag or reference.reference()) if one is top else one["digest"]
        registry.put_manifest(target, listed, one["mediaType"])
    return str(top["digest"])


def _progress(descriptor: Any, blobs: list[Json]) -> Any:
    return tqdm(
        desc=descriptor["digest"].partition(":")[2][:12],
        total=sum(blob["size"] for blob in blobs),
        unit="B",
        unit_scale=True,
        disable=None,  # if standard error is not a terminal
    )


# The command line.


def root_of(reference: Reference, tls_verify: bool | None) -> str:
    """The registry's URL: by https, or by http if it has no https and may do without."""
    root = reference.root()
    if tls_verify if tls_verify is not None else not is_loopback(root):
        return root
    warnings.filterwarnings("ignore", "Unverified HTTPS request")
    try:
        requests.get(URLBuilder(root).base(), verify=False, timeout=10, stream=True).close()  # noqa: S501
    except (requests.ConnectionError, requests.Timeout):
        return reference.root("http")
    return root


def user_of(options: argparse.Namespace) -> User:
    name, colon, password = (options.user or "").partition(":")
    if not name:
        if options.user is not None or options.password_stdin:
            raise ValueError("user must have a name: --user NAME")
        return None
    if options.password_stdin:
        if colon:
            raise ValueError("password must be given once")
        password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    elif not colon:
        password = os.environ.get(PASSWORD, "")
    if not password:
        raise ValueError(f"password of {name!r} must be given, by --password-stdin or {PASSWORD}")
    return name, password


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("action", choices=["pull", "push"])
    parser.add_argument(
        "image",
        help="[HOST[:PORT]/]NAME[:TAG][@DIGEST]; the defaults are docker.io and latest; with both "
        "a tag and a digest, the digest is pulled and named TAG, or pushed as TAG",
    )
    parser.add_argument(
        "layout", type=Path, help="the directory of the OCI image layout, where its name is TAG"
    )
    parser.add_argument(
        "--user",
        metavar="NAME[:PASSWORD]",
        help=f"the user to log in as; others may see a PASSWORD that is given here; without one, "
        f"the environment variable {PASSWORD} is used",
    )
    parser.add_argument(
        "--password-stdin", action="store_true", help="read the password from standard input"
    )
    parser.add_argument(
        "--tls-verify",
        choices=["true", "false"],
        help="true: only https, with a valid certificate; false: any certificate, or plain "
        "http if the registry has no https (default: false for localhost, 127.0.0.1 and ::1, "
        "else true)",
    )
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    status = 1
    try:
        reference = Reference.parse(options.image)
        user = user_of(options)
        tls_verify = {"true": True, "false": False}.get(options.tls_verify)
        root = root_of(reference, tls_verify)
        registry = Registry(root, reference.name, user, tls_verify)
        act = pull if options.action == "pull" else push
        print(act(registry, reference, Layout(options.layout)))
        return 0
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    except errors.RegistryError as error:
        message = f"{error.code} {error.error_code}: {error.description}"
        if seconds := wait_asked_for(error):
            message += f" (try again in {seconds:.0f} seconds)"
    except (ValueError, OSError, RecursionError) as error:  # requests' errors are OSErrors
        message = str(error)
    line = f"{options.action} {options.image}: {message}"
    line = "".join(character if character.isprintable() else " " for character in line)
    print(line, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
