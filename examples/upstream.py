"""The client side of the proxy: it asks a registry, with the proxy's own account."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from ipaddress import ip_address
from socket import inet_aton
from typing import Any
from urllib.parse import urlsplit

import requests
from answers import check_response, has_token, read_body, stated_type
from object_storage import one_line
from requests.adapters import HTTPAdapter
from sharing import Source
from werkzeug.exceptions import BadGateway, GatewayTimeout

from registry_routes import (
    Login,
    Reference,
    RouteName,
    URLBuilder,
    errors,
    resolve_location,
)
from registry_routes.digests import content_digest, digest_of
from registry_routes.headers import IMAGE_INDEX
from registry_routes.registry import (
    MAX_MANIFEST,
    Manifest,
    Storage,
    checked_blocks,
    manifest_type,
    parse_manifest,
)
from registry_routes.urls import same_origin

log = logging.getLogger(__name__)

BLOB_BLOCK = 256 * 1024  # bytes of a blob
MAX_UNSIZED = 16 * 1024**3  # bytes of a blob whose length the registry does not state
MAX_REDIRECTS = 5
MAX_CONNECTIONS = 512  # kept open for the next requests
CONNECT_TIMEOUT = 10  # seconds

User = tuple[str, str] | None  # a name and a password


class Upstream:
    """A registry behind the proxy, and the storage for its content.

    :param namespace: the registry's host in image references, such as ``docker.io``.
    :param root: the registry's URL, such as ``https://registry-1.docker.io``.
    :param timeout: how many seconds the registry may be silent.
    """

    def __init__(
        self, namespace: str, root: str, storage: Storage, user: User = None, timeout: float = 30
    ) -> None:
        self.namespace = namespace
        self.urls = URLBuilder(root)
        self.storage = storage
        self.timeout = timeout
        self.login = Login(root, *(user or ()))
        self.session = self.login.session()
        self.session.headers["Accept-Encoding"] = "identity"  # digests are of the stored bytes
        self.session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        for scheme in "http://", "https://":
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=MAX_CONNECTIONS))

    def name_of(self, name: str) -> str:
        """Return a repository's name at this registry: ``library/nginx`` for ``nginx`` at Docker.

        Raise `errors.NameInvalid`.
        """
        try:
            return Reference.parse(f"{self.namespace}/{name}").name
        except ValueError as error:
            raise errors.NameInvalid(str(error)) from None

    def ask(
        self,
        method: str,
        endpoint: str,
        values: dict[str, str],
        query: Any = None,
        headers: dict[str, str] | None = None,
    ) -> requests.Response:
        """Return a successful response, its body unread.

        Raise the registry's error without its challenges, which are for the proxy: a client must
        not send its own password there. A 401 becomes a 403 ``DENIED``. Raise `GatewayTimeout` if
        the registry does not answer in time, and `BadGateway` if it cannot be reached or its answer
        is malformed.
        """
        with self.translate_failures():
            url = self.urls.build(endpoint, values, query)
            response = self._request(method, url, headers, anywhere=endpoint == RouteName.BLOB)
            if method == "HEAD":
                _ = response.content  # read the empty body, to reuse the connection
                if response.status_code == 401 and has_token(response):  # Amazon's public registry
                    raise errors.Denied("HEAD is refused")
            return check_response(response, endpoint)

    def manifest(self, values: dict[str, str], accept: str) -> tuple[str, Manifest]:
        """Fetch and verify a manifest, and return it with its digest."""
        answer = self.ask("GET", RouteName.MANIFEST, values, headers={"Accept": accept})
        content = self.read_body(answer, MAX_MANIFEST)
        said = answer.headers.get("Docker-Content-Digest")
        with self.translate_failures():
            digest = values.get("digest") or content_digest(said) or digest_of(content)
            b"".join(checked_blocks(digest, [content]))
            try:
                media_type = _type_of(parse_manifest(content), answer.headers)
            except errors.ManifestInvalid as error:
                raise ValueError(error.description) from None
        return digest, Manifest(media_type, content)

    def blob_size(self, values: dict[str, str]) -> int | None:
        """Return how many bytes a blob has; `None` if the registry does not state it."""
        try:
            answer = self.ask("HEAD", RouteName.BLOB, values)
        except errors.RegistryError as error:
            if not is_head_refused(error):
                raise
            answer = self.ask("GET", RouteName.BLOB, values)
        with answer:  # close it unread
            return _size_of(answer)

    def blob(self, values: dict[str, str]) -> Source:
        """Open a blob. Its blocks end with an error if they do not match its digest."""
        answer = self.ask("GET", RouteName.BLOB, values)
        return Source(_size_of(answer), self._read_blocks(values["digest"], answer))

    def _read_blocks(self, digest: str, answer: requests.Response) -> Iterator[bytes]:
        received = 0
        with self.translate_failures(), answer:
            for block in checked_blocks(digest, answer.iter_content(BLOB_BLOCK)):
                received += len(block)
                if received > MAX_UNSIZED and _size_of(answer) is None:
                    raise ValueError(f"a blob without a length has more than {MAX_UNSIZED} bytes")
                yield block

    def read_body(self, answer: requests.Response, most: int) -> bytes:
        """Return the body of an answer. Raise `BadGateway` if it is larger than `most` bytes."""
        with self.translate_failures():
            content = read_body(answer, most)
            if len(content) > most:
                raise ValueError(f"its answer is larger than {most} bytes")
        return content

    @contextmanager
    def translate_failures(self) -> Iterator[None]:
        """Turn any failure into an HTTP error that the proxy can send."""
        try:
            yield
        except errors.RegistryError as error:
            raise _remove_challenges(error) from None
        except (requests.RequestException, ValueError) as error:
            # Only the operator sees the text, as it may contain a URL with credentials.
            log.warning("%s: %s", self.namespace, one_line(error))
            if isinstance(error, requests.Timeout):
                raise GatewayTimeout(f"{self.namespace} did not answer in time") from error
            if isinstance(error, requests.RequestException):
                raise BadGateway(f"{self.namespace} cannot be reached") from error
            raise BadGateway(f"{self.namespace} sent a malformed answer") from error

    def _request(self, method: str, url: str, headers: Any, *, anywhere: bool) -> requests.Response:
        """Send a request, and follow redirects. Other origins get no credentials.

        :param anywhere: whether a redirect may lead from the Internet into the proxy's own network.
            That is safe only for verified content, because clients see the answer.
        """
        first, auth = url, None
        for _ in range(MAX_REDIRECTS + 1):
            response = self.session.request(
                method,
                url,
                headers=headers,
                auth=auth,
                allow_redirects=False,
                stream=True,
                timeout=(min(self.timeout, CONNECT_TIMEOUT), self.timeout),
            )
            if not 300 <= response.status_code < 400 or "Location" not in response.headers:
                return response
            read_body(response)
            url = resolve_location(response.url, response.headers["Location"])
            if not anywhere and is_private(url) and not is_private(first):
                raise ValueError("it redirects to an address in the proxy's own network")
            if not same_origin(url, first):
                auth = _no_auth
        raise ValueError(f"it redirects more than {MAX_REDIRECTS} times")


def _no_auth(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
    """Send no credentials; the session's own login would follow a redirect back."""
    return prepared


def _remove_challenges(error: errors.RegistryError) -> errors.RegistryError:
    headers = [pair for pair in error.headers if pair[0].lower() != "www-authenticate"]
    if error.code == 401:
        return NotLoggedIn(error.description, detail=error.detail, headers=headers)
    error.headers = headers
    return error


class NotLoggedIn(errors.Denied):
    """The error if the registry demands an account, and the proxy has none or a wrong account."""


def is_head_refused(error: errors.RegistryError) -> bool:
    """Return whether a GET may succeed although a HEAD got this error.

    Some registries refuse the method; others redirect to a URL that is signed only for GET.
    """
    return error.code in (400, 403, 405, 501) and not isinstance(error, NotLoggedIn)


def _type_of(manifest: dict[str, Any], headers: Mapping[str, str]) -> str:
    said, own = stated_type(headers), manifest.get("mediaType") or ""
    if not isinstance(own, str) or (said and own and said.lower() != own.lower()):
        raise ValueError(f"its Content-Type is {said!r:.100}, and its mediaType {own!r:.100}")
    return manifest_type(said or own or (IMAGE_INDEX if "manifests" in manifest else ""))


def _size_of(answer: requests.Response) -> int | None:
    said = answer.headers.get("Content-Length", "")
    is_encoded = "Content-Encoding" in answer.headers or "Transfer-Encoding" in answer.headers
    return None if is_encoded or not re.fullmatch("[0-9]{1,18}", said) else int(said)


def is_private(url: str) -> bool:
    """Return whether the host of a URL is this machine, or an address outside the Internet."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        # The C library, and so requests, also takes 127.1 and 2130706433 for addresses.
        address = ip_address(host if ":" in host else inet_aton(host))
    except (OSError, ValueError):
        return host == "localhost" or host.endswith(".localhost")
    return not (getattr(address, "ipv4_mapped", None) or address).is_global
