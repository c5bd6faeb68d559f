"""The registry behind a proxy, which asks it with its own account and its own tokens."""

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
from client import body_of, checked
from requests.adapters import HTTPAdapter
from sharing import Source
from storage import one_line
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

BLOCK = 256 * 1024  # bytes of a blob
MAX_UNSIZED = 16 * 1024**3  # bytes of a blob whose length the registry does not say
MAX_REDIRECTS = 5
MAX_CONNECTIONS = 512  # kept open for the next requests
CONNECT_TIMEOUT = 10  # seconds

# What servers send for any file. It says nothing about a manifest.
DEFAULT_TYPES = "", "application/json", "application/octet-stream", "text/plain"

User = tuple[str, str] | None  # a name and a password


class Upstream:
    """A registry, and the storage for its content.

    :param namespace: its host as image references write it, such as ``docker.io``.
    :param root: its URL, such as ``https://registry-1.docker.io``.
    :param timeout: how many seconds it may be silent.
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
        self.session.headers["Accept-Encoding"] = "identity"  # a digest is of the bytes as stored
        self.session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        for scheme in "http://", "https://":
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=MAX_CONNECTIONS))

    def name_of(self, name: str) -> str:
        """The repository's name at this registry: ``nginx`` is ``library/nginx`` on Docker Hub.

        Raises `errors.NameInvalid`.
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
        """A successful response, with its body unread.

        Raises the registry's error without its challenges: they are meant for the proxy, and a
        client must not send its own password there. A 401 becomes a 403 ``DENIED``. Raises
        `BadGateway` or `GatewayTimeout` if there is no answer, or the answer is malformed.
        """
        with self.failures():
            url = self.urls.build(endpoint, values, query)
            response = self._request(method, url, headers, anywhere=endpoint == RouteName.BLOB)
            if method == "HEAD":
                _ = response.content  # it is empty; now the connection can be reused
                if response.status_code == 401 and has_token(response):  # Amazon's public registry
                    raise errors.Denied("HEAD is refused")
            return checked(response, endpoint)

    def manifest(self, values: dict[str, str], accept: str) -> tuple[str, Manifest]:
        """A manifest, verified, with its digest."""
        answer = self.ask("GET", RouteName.MANIFEST, values, headers={"Accept": accept})
        content = self.body_of(answer, MAX_MANIFEST)
        said = answer.headers.get("Docker-Content-Digest")
        with self.failures():
            digest = values.get("digest") or content_digest(said) or digest_of(content)
            b"".join(checked_blocks(digest, [content]))
            try:
                media_type = _type_of(parse_manifest(content), answer.headers)
            except errors.ManifestInvalid as error:
                raise ValueError(error.description) from None
        return digest, Manifest(media_type, content)

    def blob_size(self, values: dict[str, str]) -> int | None:
        """Return how many bytes a blob has, or `None` if the registry does not say it."""
        try:
            answer = self.ask("HEAD", RouteName.BLOB, values)
        except errors.RegistryError as error:
            if not is_head_refused(error):
                raise
            answer = self.ask("GET", RouteName.BLOB, values)
        with answer:  # the blob is not read
            return _size_of(answer)

    def blob(self, values: dict[str, str]) -> Source:
        """A blob. Its blocks end with an error if they do not match its digest."""
        answer = self.ask("GET", RouteName.BLOB, values)
        return Source(_size_of(answer), self._blocks(values["digest"], answer))

    def _blocks(self, digest: str, answer: requests.Response) -> Iterator[bytes]:
        received = 0
        with self.failures(), answer:
            for block in checked_blocks(digest, answer.iter_content(BLOCK)):
                received += len(block)
                if received > MAX_UNSIZED and _size_of(answer) is None:
                    raise ValueError(f"a blob without a length has more than {MAX_UNSIZED} bytes")
                yield block

    def body_of(self, answer: requests.Response, most: int) -> bytes:
        """The body of an answer, which must have at most `most` bytes."""
        with self.failures():
            content = body_of(answer, most)
            if len(content) > most:
                raise ValueError(f"its answer must have at most {most} bytes")
        return content

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn any failure into an HTTP error that the proxy can send."""
        try:
            yield
        except errors.RegistryError as error:
            raise _without_challenges(error) from None
        except (requests.RequestException, ValueError) as error:
            # Only for the operator: the text may contain a URL with credentials.
            log.warning("%s: %s", self.namespace, one_line(error))
            if isinstance(error, requests.Timeout):
                raise GatewayTimeout(f"{self.namespace} has not answered in time") from error
            if isinstance(error, requests.RequestException):
                raise BadGateway(f"{self.namespace} cannot be reached") from error
            raise BadGateway(f"{self.namespace} has sent a malformed answer") from error

    def _request(self, method: str, url: str, headers: Any, *, anywhere: bool) -> requests.Response:
        """Return the answer, after any redirects. Another origin gets no credentials.

        :param anywhere: whether a redirect may lead from the Internet to an address within the
            proxy's own network, as for content that is verified. Clients get to see any other.
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
            body_of(response)
            url = resolve_location(response.url, response.headers["Location"])
            if not anywhere and is_private(url) and not is_private(first):
                raise ValueError("it redirects to an address in the proxy's own network")
            if not same_origin(url, first):
                auth = _no_auth
        raise ValueError(f"it redirects more than {MAX_REDIRECTS} times")


def has_token(response: requests.Response) -> bool:
    """Return whether the request that was answered had a token of the registry's token server."""
    return str(response.request.headers.get("Authorization", "")).startswith("Bearer ")


def _no_auth(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
    """Send nothing in place of the session's login, which would follow a redirect back."""
    return prepared


def _without_challenges(error: errors.RegistryError) -> errors.RegistryError:
    headers = [one for one in error.headers if one[0].lower() != "www-authenticate"]
    if error.code == 401:
        return NotLoggedIn(error.description, detail=error.detail, headers=headers)
    error.headers = headers
    return error


class NotLoggedIn(errors.Denied):
    """The registry does not accept the proxy's account, or wants one and the proxy has none."""


def is_head_refused(error: errors.RegistryError) -> bool:
    """Whether a GET may succeed where this was the answer to a HEAD.

    Some registries do not take the method; others redirect to a URL that is signed for GET.
    """
    return error.code in (400, 403, 405, 501) and not isinstance(error, NotLoggedIn)


def stated_type(headers: Mapping[str, str]) -> str:
    """Return the media type that an answer states, or "" for a default of its server."""
    said = headers.get("Content-Type", "").partition(";")[0].strip()
    return "" if said.lower() in DEFAULT_TYPES else said


def _type_of(manifest: dict[str, Any], headers: Mapping[str, str]) -> str:
    said, own = stated_type(headers), manifest.get("mediaType", "")
    if not isinstance(own, str) or (said and own and said.lower() != own.lower()):
        raise ValueError(f"its Content-Type is {said!r:.100}, and its mediaType {own!r:.100}")
    return manifest_type(said or own or (IMAGE_INDEX if "manifests" in manifest else ""))


def _size_of(answer: requests.Response) -> int | None:
    said = answer.headers.get("Content-Length", "")
    is_encoded = "Content-Encoding" in answer.headers or "Transfer-Encoding" in answer.headers
    return None if is_encoded or not re.fullmatch("[0-9]{1,18}", said) else int(said)


def is_private(url: str) -> bool:
    """Return whether the host of a URL is an address, and not one of the Internet's."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        # The C library also takes 127.1 and 2130706433 for an address, and so does requests.
        address = ip_address(host if ":" in host else inet_aton(host))
    except (OSError, ValueError):
        return host == "localhost" or host.endswith(".localhost")
    return not (getattr(address, "ipv4_mapped", None) or address).is_global
