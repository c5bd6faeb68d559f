"""Pull an image from a registry into an OCI image layout, or push one from there.

    python examples/client.py pull busybox:latest ./busybox
    python examples/client.py push localhost:5000/me/app:latest ./busybox

The client skips content that is already there, replaces damaged content, and checks every digest.
A pull resumes blobs that broke off, even in an earlier run; a push resumes them only while it runs.
Several pulls into one layout take turns.
"""

import argparse
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import requests
from answers import check_response, read_body, stated_type
from layout import (
    MAX_LAYOUT_MANIFEST,
    Json,
    Layout,
    json_object,
    references_in,
    verify_file,
    verify_manifest,
)
from requests.adapters import HTTPAdapter
from tqdm import tqdm

from registry_routes import Login, Reference, URLBuilder, errors, grammar, resolve_location
from registry_routes.digests import DigestMismatchError, content_digest, digest_of
from registry_routes.headers import (
    ACCEPT_MANIFESTS,
    MANIFEST_MEDIA_TYPES,
    bytes_received,
    chunk_min_length,
    content_range,
    parse_content_range,
)

DOWNLOAD_BLOCK = 64 * 1024  # bytes; a broken connection loses at most one block
MAX_DEPTH = 20  # levels of indexes within an index
CHUNK = 4 * 1024 * 1024  # bytes; GitHub's registry takes no larger chunks
SMALLEST_CHUNK = 64 * 1024  # the client tries no smaller ones
LARGEST_CHUNK = 64 * 1024 * 1024  # held in memory if the registry takes no smaller ones
TIMEOUT = 60  # seconds without an answer
ATTEMPTS = 5  # without progress
FIRST_WAIT = 0.2  # seconds before the second attempt
LONGEST_WAIT = 60  # seconds; if a registry asks for a longer wait, the client gives up
PASSWORD = "REGISTRY_PASSWORD"  # noqa: S105 - the name of an environment variable

User = tuple[str, str] | None  # a name and a password


def retry_after(error: BaseException) -> int:
    """Return how many seconds the registry asks the client to wait, or 0."""
    return getattr(error, "retry_after", None) or 0


def is_temporary(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, errors.RegistryError):
        return error.code in (429, 500, 502, 503, 504) and retry_after(error) <= LONGEST_WAIT
    broken = requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError
    return isinstance(error, broken) and not isinstance(error, requests.exceptions.SSLError)


def retry(act: Callable[[], Any], progress: Callable[[], int] = lambda: 0) -> Any:
    """Call `act` and return its result; after a temporary error, call it again.

    Give up after `ATTEMPTS` in which the number that `progress` returns has not grown.
    """
    attempt, furthest = 0, 0
    while True:
        try:
            return act()
        except Exception as error:
            attempt = attempt + 1 if progress() <= furthest else 1
            furthest = max(progress(), furthest)
            if attempt == ATTEMPTS or not is_temporary(error):
                raise
            time.sleep(max(FIRST_WAIT * 2 ** (attempt - 1), retry_after(error)))


# HTTP.


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or re.fullmatch(r"127(?:\.[0-9]+){3}|::1", host) is not None


def location_of(response: requests.Response) -> str:
    return resolve_location(response.url, response.headers.get("Location"))


class VerifyingAdapter(HTTPAdapter):
    """An adapter that checks the certificates of all hosts, of none, or of all but this machine.

    :param tls_verify: `True`, `False` or `None`, in this order.
    """

    def __init__(self, tls_verify: bool | None) -> None:
        super().__init__()
        self.tls_verify = tls_verify

    def send(self, request: Any, *arguments: Any, **options: Any) -> requests.Response:
        verify = not is_loopback(request.url) if self.tls_verify is None else self.tls_verify
        options["verify"] = options.get("verify", True) if verify else False
        return super().send(request, *arguments, **options)


class Registry:
    """A repository of a registry, as a client sees it."""

    def __init__(
        self, root: str, name: str, user: User = None, tls_verify: bool | None = None
    ) -> None:
        self.urls = URLBuilder(root)
        self.name = grammar.NAME.check(name)
        self.session = Login(root, *(user or ())).session()
        self.session.headers["Accept-Encoding"] = "identity"  # digests are of the stored bytes
        self.session.mount("https://", VerifyingAdapter(tls_verify))
        self.chunk = CHUNK  # the most bytes to send in one request; 0 for whole blobs

    def ask(
        self, method: str, url: str, *, endpoint: str | None = None, **options: Any
    ) -> requests.Response:
        """Return a successful response, its body unread. Raise the registry's error otherwise."""
        options = {"timeout": TIMEOUT, "stream": True, **options}
        return check_response(self.session.request(method, url, **options), endpoint)

    def tell(self, method: str, url: str, **options: Any) -> requests.Response:
        """Send a request as `ask` does, and discard the body of the response."""
        response = self.ask(method, url, **options)
        read_body(response)
        return response

    def manifest(self, reference: str) -> tuple[Json, bytes]:
        """Return the descriptor and the content of a manifest."""
        url = self.urls.manifest(self.name, reference)

        def read() -> tuple[requests.Response, bytes]:
            headers = {"Accept": ACCEPT_MANIFESTS}
            response = self.ask("GET", url, endpoint="manifest", headers=headers)
            return response, read_body(response, MAX_LAYOUT_MANIFEST)

        response, content = retry(read)
        stated = content_digest(response.headers.get("Docker-Content-Digest"))
        digest = reference if ":" in reference else stated or digest_of(content)
        verify_manifest(content, digest)
        own = json_object(content, "manifest").get("mediaType")
        sent = stated_type(response.headers)
        if own and sent and own != sent:  # image-spec 1.1 tells clients to refuse this
            raise ValueError(
                f"manifest {digest} says that its type is {own!r:.100}, but its Content-Type is "
                f"{sent!r:.100}"
            )
        media_type = own or sent
        if media_type not in MANIFEST_MEDIA_TYPES:
            raise ValueError(f"manifest {digest} has the unsupported type {media_type!r:.100}")
        return {"mediaType": media_type, "digest": digest, "size": len(content)}, content

    def put_manifest(self, reference: str, content: bytes, media_type: str) -> None:
        url, headers = self.urls.manifest(self.name, reference), {"Content-Type": media_type}
        retry(lambda: self.tell("PUT", url, data=content, headers=headers))

    def has_blob(self, digest: str) -> bool:
        try:
            self.tell("HEAD", self.urls.blob(self.name, digest), endpoint="blob")
        except errors.RegistryError as error:
            if error.code == 404:
                return False
            raise
        return True


# Blobs.


class Progress:
    """The number of bytes of a blob that are transferred, and a bar that shows it."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.position = self.furthest = 0

    def move_to(self, position: int) -> None:
        """Show that `position` bytes are transferred."""
        self.bar.update(position - self.position)
        self.position = position
        self.furthest = max(position, self.furthest)


def download(registry: Registry, blob: Json, layout: Layout, bar: Any) -> None:
    """Fetch a blob into a layout that the caller has locked."""
    path = layout.path(blob["digest"])
    part = path.with_name(f".{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    was_begun, progress = part.exists(), Progress(bar)
    with part.open("ab") as file:
        retry(lambda: fetch(registry, blob, file, progress), lambda: progress.furthest)
    try:
        verify_file(part, blob["digest"])
    except DigestMismatchError:
        part.unlink()
        progress.move_to(0)
        if not was_begun:
            raise
        download(registry, blob, layout, bar)  # from the start: the old part was damaged
    else:
        part.replace(path)


def fetch(registry: Registry, blob: Json, file: BinaryIO, progress: Progress) -> None:
    """Append the rest of a blob to its file. If the registry has other bytes, begin again."""
    url = registry.urls.blob(registry.name, blob["digest"])
    for _ in range(2):  # the second time, the file is empty
        begun = file.seek(0, os.SEEK_END)
        progress.move_to(begun)
        if begun == blob["size"]:
            return
        headers = {"Range": f"bytes={begun}-"} if begun else {}
        response = None
        try:
            response = registry.ask("GET", url, endpoint="blob", headers=headers)
            with response:
                append(response, blob, file, progress)
            return
        except (errors.RegistryError, ValueError) as error:
            if response is None and getattr(error, "code", 0) != 416:
                raise
            file.truncate(0)  # the file has other bytes than the registry
            if not begun:
                raise


def append(response: requests.Response, blob: Json, file: BinaryIO, progress: Progress) -> None:
    """Append a response's body to a blob's file, from the position where the body begins."""
    digest, size, start = blob["digest"], blob["size"], 0
    if response.status_code == 206:
        start, _ = parse_content_range(response.headers.get("Content-Range", ""))
    if start > progress.position:
        raise ValueError(
            f"blob {digest} was asked for from byte {progress.position}, and came from {start}"
        )
    file.truncate(start)
    progress.move_to(start)
    for block in response.iter_content(DOWNLOAD_BLOCK):
        if progress.position + len(block) > size:
            raise ValueError(f"blob {digest} is longer than the {size} bytes of its descriptor")
        file.write(block)
        progress.move_to(progress.position + len(block))
    if progress.position < size:
        raise requests.ConnectionError(
            f"blob {digest} broke off after {progress.position} of {size} bytes"
        )


class Upload:
    """The upload of a blob, in chunks if it is large."""

    def __init__(self, registry: Registry, path: Path, digest: str, bar: Any) -> None:
        self.registry = registry
        self.path = path
        self.digest = digest
        self.size = path.stat().st_size
        self.progress = Progress(bar)
        self.location = ""
        self.min_chunk = 0  # bytes of each chunk but the last, by the registry

    def run(self) -> None:
        retry(self.go_on, lambda: self.progress.furthest)

    def go_on(self) -> None:
        # If only the last answer was lost, the registry has the blob.
        while not self.registry.has_blob(self.digest):
            self.progress.move_to(self.count_received())
            if not self.progress.position:
                self.begin()
            chunk = self.chunk_size()
            try:
                self.send(chunk)
                break
            except (requests.ConnectionError, errors.RegistryError) as error:
                smaller = self.choose_smaller(chunk, error)
                if smaller is None:
                    raise
                self.registry.chunk = smaller
                if smaller == 0:
                    self.progress.move_to(0)  # begin a new upload
                if isinstance(error, requests.ConnectionError):
                    raise  # `retry` waits first
        self.progress.move_to(self.size)

    def count_received(self) -> int:
        """Ask the registry how many bytes of the upload it has, and return that number."""
        if not self.progress.position:
            return 0
        try:
            status = self.registry.tell("GET", self.location)
            received = bytes_received(status.headers.get("Range"))
            self.location = location_of(status)
        except (errors.RegistryError, ValueError) as error:
            if is_temporary(error):
                raise
            return 0  # some registries accept only the latest Location, which may be lost
        return received if received <= self.size else 0

    def begin(self) -> None:
        url = self.registry.urls.blob_upload(self.registry.name)
        begun = self.registry.tell("POST", url, endpoint="blob-upload")
        self.location = location_of(begun)
        self.min_chunk = chunk_min_length(begun.headers.get("OCI-Chunk-Min-Length"))

    def chunk_size(self) -> int:
        """Return how many bytes to send at once."""
        chunk = max(self.registry.chunk, self.min_chunk)
        return chunk if self.registry.chunk and chunk <= LARGEST_CHUNK else self.size

    def send(self, chunk: int) -> None:
        """Send the rest of a blob: a small one by PUT alone, a large one by PATCHes and a PUT.

        A small blob has no PATCH, because the status of an upload, ``0-0``, cannot tell one byte
        from none.
        """
        headers = {"Content-Type": "application/octet-stream"}
        with self.path.open("rb") as file:
            while chunk < self.size and self.progress.position < self.size:
                file.seek(self.progress.position)
                data = file.read(chunk)
                more = {"Content-Range": content_range(self.progress.position, len(data))}
                options: Any = {"data": data, "headers": headers | more}
                patched = self.registry.tell("PATCH", self.location, **options)
                self.location = location_of(patched)
                self.progress.move_to(self.progress.position + len(data))
            is_rest = self.progress.position < self.size
            url = resolve_location(self.location, self.location, digest=self.digest)
            self.registry.tell("PUT", url, data=file if is_rest else b"", headers=headers)

    def choose_smaller(self, chunk: int, error: Exception) -> int | None:
        """Return the size of chunks to try after an error; 0 for whole blobs, `None` for no other.

        GitHub answers more than 4 MiB with 416. Other servers close the connection.
        """
        sent = min(chunk, self.size - self.progress.position)
        if not sent or not self.registry.chunk:
            return None
        half = sent // 2
        if isinstance(error, requests.ConnectionError):
            return max(half, SMALLEST_CHUNK) if sent > SMALLEST_CHUNK else None
        code = getattr(error, "code", 0)
        if is_temporary(error) or code in (401, 403, 429):
            return None
        if code in (413, 416) and half >= max(SMALLEST_CHUNK, self.min_chunk):
            return half
        return 0 if sent < self.size else None


# Pulling and pushing.


def walk(
    read: Callable[[str], bytes | None], top: Json, content: bytes
) -> Iterator[tuple[Json, bytes, list[Json]]]:
    """Yield a manifest and all manifests below it, each with its content and its new blobs.

    An index comes after the manifests that it lists. `read` returns the content of a manifest, or
    `None` to skip it.
    """
    manifests, blobs = set[str](), set[str]()

    def walk_below(
        descriptor: Json, content: bytes | None, depth: int
    ) -> Iterator[tuple[Json, bytes, list[Json]]]:
        if descriptor["digest"] in manifests:
            return
        if depth > MAX_DEPTH:
            raise ValueError(f"indexes are nested more than {MAX_DEPTH} levels deep")
        manifests.add(descriptor["digest"])
        content = read(descriptor["digest"]) if content is None else content
        if content is None:
            return
        children, found = references_in(json_object(content, "manifest"))
        for child in children:
            yield from walk_below(child, None, depth + 1)
        new = [blob for blob in found if blob["digest"] not in blobs]
        blobs.update(blob["digest"] for blob in new)
        yield descriptor, content, new

    return walk_below(top, content, 0)


def pull(registry: Registry, reference: Reference, layout: Layout) -> str:
    """Pull an image, or an index with all its images; return its digest."""
    top, content = registry.manifest(reference.reference())
    for found, manifest, blobs in walk(lambda digest: registry.manifest(digest)[1], top, content):
        with progress_bar(found, blobs) as bar:
            for blob in blobs:
                with layout.lock():
                    if layout.has(blob["digest"]):
                        bar.update(blob["size"])
                    else:
                        download(registry, blob, layout, bar)
        with layout.lock():
            layout.write(found["digest"], manifest)
    with layout.lock():
        layout.add(top, reference.tag if reference.digest else reference.reference())
    return str(top["digest"])


def push(registry: Registry, reference: Reference, layout: Layout) -> str:
    """Push the image that the layout has under the reference's digest or tag; return its digest."""

    def read(digest: str) -> bytes | None:  # `None`: a layout may hold only some platforms
        return layout.read(digest) if layout.path(digest).exists() else None

    top = layout.descriptor(reference.reference())
    for found, manifest, blobs in walk(read, top, layout.read(top["digest"])):
        with progress_bar(found, blobs) as bar:
            for blob in blobs:
                path = layout.path(blob["digest"])
                verify_file(path, blob["digest"])
                Upload(registry, path, blob["digest"], bar).run()
        target = (reference.tag or reference.reference()) if found is top else found["digest"]
        registry.put_manifest(target, manifest, found["mediaType"])
    return str(top["digest"])


def progress_bar(descriptor: Any, blobs: list[Json]) -> Any:
    return tqdm(
        desc=descriptor["digest"].partition(":")[2][:12],
        total=sum(blob["size"] for blob in blobs),
        unit="B",
        unit_scale=True,
        disable=None,  # shown only if standard error is a terminal
    )


# The command line.


def find_root(reference: Reference, tls_verify: bool | None) -> str:
    """Return the registry's URL: https, or http if that is allowed and nothing answers https."""
    root = reference.root()
    if tls_verify if tls_verify is not None else not is_loopback(root):
        return root
    warnings.filterwarnings("ignore", "Unverified HTTPS request")
    try:
        requests.get(URLBuilder(root).base(), verify=False, timeout=10, stream=True).close()  # noqa: S501
    except (requests.ConnectionError, requests.Timeout):
        return reference.root("http")
    return root


def read_user(options: argparse.Namespace) -> User:
    """Return the name and the password that the options give; `None` without a login."""
    name, colon, password = (options.user or "").partition(":")
    if not name:
        if options.user is not None or options.password_stdin:
            raise ValueError("a login needs a user name: --user NAME")
        return None
    if options.password_stdin:
        if colon:
            raise ValueError("--user has a password, and --password-stdin another")
        password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    elif not colon:
        password = os.environ.get(PASSWORD, "")
    if not password:
        raise ValueError(f"no password for {name!r}: use --password-stdin or {PASSWORD}")
    return name, password


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("action", choices=["pull", "push"])
    parser.add_argument(
        "image",
        help="[HOST[:PORT]/]NAME[:TAG][@DIGEST]; the defaults are docker.io and latest; with both "
        "a tag and a digest, the client pulls DIGEST and names it TAG, or pushes it as TAG",
    )
    parser.add_argument(
        "layout", type=Path, help="the directory of the OCI image layout, which names the image TAG"
    )
    parser.add_argument(
        "--user",
        metavar="NAME[:PASSWORD]",
        help=f"the user to log in as; others on this machine may see a PASSWORD that is given "
        f"here; without it, the environment variable {PASSWORD} holds it",
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
        user = read_user(options)
        tls_verify = {"true": True, "false": False}.get(options.tls_verify)
        root = find_root(reference, tls_verify)
        registry = Registry(root, reference.name, user, tls_verify)
        act = pull if options.action == "pull" else push
        print(act(registry, reference, Layout(options.layout)))
        return 0
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    except errors.RegistryError as error:
        message = f"{error.code} {error.error_code}: {error.message}"
        if seconds := retry_after(error):
            message += f" (try again in {seconds:.0f} seconds)"
    except (ValueError, OSError, RecursionError) as error:  # requests' errors are OSErrors
        message = str(error)
    line = f"{options.action} {options.image}: {message}"
    line = "".join(character if character.isprintable() else " " for character in line)
    print(line, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
