"""A gateway in front of any registry: its own users and its own policy, before an upstream.

    UPSTREAM_USER=robot:secret python examples/front.py --upstream https://registry.example.com \\
        --port 5007 --users ./passwords

Clients log in here, with the token server of `gateway.py`. For each request, a policy is asked:
``policy(user, endpoint, values)``. Requests that it allows are sent on with an account of the
upstream, which clients never see. Bodies are streamed in both directions.

Everything that an upstream's answer leads to leads back here. An upload goes on at a URL that the
upstream chooses, even at another host, and a client that went there would get around the policy. So
the URL is sealed into the upload id: encrypted, as it may contain a token of the upstream's, and
only valid for the same user and repository, for an hour.
"""

import argparse
import base64
import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
import urllib3
from cryptography.fernet import Fernet, InvalidToken
from gateway import (
    KEY,
    SERVICE,
    USERS,
    TokenServer,
    claims_of,
    key_of,
    name_and_password,
    users_of,
)
from metrics import Metrics, share_metrics
from requests.adapters import HTTPAdapter
from serving import MAX_CHECK, OneLineParser, Server, server_options, with_health
from upstream import has_token
from werkzeug.exceptions import BadGateway, GatewayTimeout
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.wrappers import Response

from registry_routes import (
    OCI_1_1,
    RegistryApp,
    RegistryRequest,
    RouteName,
    URLBuilder,
    error_response,
    errors,
    resolve_location,
)
from registry_routes.challenges import parse_challenges
from registry_routes.digests import content_digest
from registry_routes.grammar import DIGEST, NAME
from registry_routes.login import Login, TokenRequest
from registry_routes.paging import next_link, parse_next_query
from registry_routes.responses import beginning_of, parse_errors
from registry_routes.scopes import required_scopes
from registry_routes.urls import same_origin

log = logging.getLogger(__name__)

UPSTREAM_USER = "UPSTREAM_USER"  # in the environment
BLOCK = 256 * 1024  # bytes
MAX_CONNECTIONS = 512  # kept open for the next requests
MAX_REDIRECTS = 5
MAX_MANIFEST = 4 * 1024 * 1024  # bytes
MAX_UPLOAD_ID = 2048  # characters
UPLOAD_LIFETIME = 3600  # seconds

SENT_ON = (
    *("Accept", "Content-Type", "Content-Range", "Range", "User-Agent"),
    *("If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range"),
)
PASSED_ON = (
    *("Content-Type", "Content-Length", "Content-Encoding", "Content-Range", "Accept-Ranges"),
    *("Allow", "ETag", "Last-Modified", "Range", "Retry-After", "Warning"),
    *("RateLimit-Limit", "RateLimit-Remaining"),
    *("Docker-Content-Digest", "Docker-Distribution-API-Version"),
    *("OCI-Chunk-Min-Length", "OCI-Filters-Applied", "OCI-Subject", "OCI-Tag"),
)

Policy = Callable[[str | None, str, Mapping[str, str]], bool]


def pull_or_user(user: str | None, endpoint: str, values: Mapping[str, str]) -> bool:
    """Anyone may pull, and users may do anything."""
    return user is not None or values["method"] == "GET"


class Front:
    """The views of a registry that sends requests on to another, if a policy allows it.

    :param login: the credentials for the registry behind it, and where that is.
    :param key: the key that signs tokens, and encrypts upload ids.
    :param policy: called with a user (`None` without a login), an endpoint, and the values of the
        URL together with the ``method``, which is never HEAD. A mount also asks for the ``blob`` of
        the repository that it mounts from.
    :param stream_blobs: follow the redirects of blobs here, not at the client.
    :param timeout: how many seconds the upstream may be silent.
    """

    def __init__(
        self,
        login: Login,
        key: bytes,
        policy: Policy,
        *,
        stream_blobs: bool = False,
        timeout: float = 60,
    ) -> None:
        self.login = login
        self.urls = URLBuilder(login.root)
        self.key = key
        self.policy = policy
        self.stream_blobs = stream_blobs
        self.timeout = timeout
        secret = hashlib.sha256(b"upload ids\0" + key).digest()
        self.fernet = Fernet(base64.urlsafe_b64encode(secret))
        self.session = requests.Session()
        self.session.headers["Accept-Encoding"] = "identity"
        self.session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self.session.auth = lambda prepared: prepared  # nothing of a .netrc
        for scheme in "http://", "https://":
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=MAX_CONNECTIONS))
        self.wants_no_login = False

    def app(self) -> RegistryApp:
        app = RegistryApp()
        for route in OCI_1_1.routes:
            app.view(route.name)(self.forward)
        return app

    def check(self) -> None:
        """Raise `OSError` if the upstream does not answer, or answers that it has failed."""
        timeout = min(self.timeout, MAX_CHECK)
        url = self.urls.base()
        with self.session.get(url, timeout=timeout, stream=True, allow_redirects=False) as answer:
            if answer.status_code >= 500:
                raise OSError(f"{self.login.root} answers {answer.status_code}")

    def forward(self, request: RegistryRequest, **values: str) -> Response:
        """Answer a request as the upstream does."""
        endpoint, user = str(request.endpoint), self._user_of(request)
        query = self._checked_query(request, user, endpoint, values)
        try:
            if endpoint == RouteName.BLOB_UPLOAD_CHUNK:
                location = self._unsealed(values["uuid"], user, values["name"])
                own = parse_qs(urlsplit(location).query, keep_blank_values=True)
                added = {name: given for name, given in query.items() if name not in own}
                url = resolve_location(location, location, **added)
            else:
                url = self.urls.build(endpoint, values, query)
            answer = self._send(request, request.method, endpoint, url, values, query)
            if request.method == "HEAD" and self._is_head_refused(answer):
                answer.close()
                answer = self._send(request, "GET", endpoint, url, values, query)
            if answer.status_code == 401:
                challenges = parse_challenges(answer.headers)
                if any(one.error == "insufficient_scope" for one in challenges):
                    raise errors.Denied("the gateway's own account must not do this")
                raise ValueError(f"it does not accept the account: {beginning_of(answer)!r:.200}")
            is_json = "json" in answer.headers.get("Content-Type", "")
            if answer.status_code >= 400 and not is_json and request.method != "HEAD":
                return self._error(answer, endpoint)
            return self._response(request, answer, endpoint, values, user)
        except requests.Timeout as error:
            log.warning("%s: %s", self.login.root, without_queries(error))
            raise GatewayTimeout("the registry has not answered in time") from error
        except (requests.RequestException, ValueError) as error:
            log.warning("%s: %s", self.login.root, without_queries(error))
            raise BadGateway("the registry cannot be reached, or answers nonsense") from error

    # The policy.

    def _user_of(self, request: RegistryRequest) -> str | None:
        """Return the user whose token a request has. Raises `errors.Unauthorized`."""
        claims = claims_of(request, self.key)
        if claims is None:
            realm = f"{URLBuilder.from_environ(request.environ).root}/token"
            raise errors.Unauthorized(realm=realm, service=SERVICE, scope=request.scopes)
        user = claims.get("sub") or None
        request.environ["front.user"] = user
        return user

    def _checked_query(
        self, request: RegistryRequest, user: str | None, endpoint: str, values: dict[str, str]
    ) -> dict[str, list[str]]:
        """Return the query to send on. Raises `errors.Denied`."""
        method = "GET" if request.method == "HEAD" else request.method
        if not self.policy(user, endpoint, {**values, "method": method}):
            raise errors.Denied(f"{user or 'anyone'} must not {request.method} this")
        query = request.args.to_dict(flat=False)
        if endpoint == RouteName.BLOB_UPLOAD:
            sources, digests = query.pop("from", []), query.pop("mount", [])
            # Without a source, some registries mount from wherever the blob is.
            if len(sources) == len(digests) == 1 and NAME.fits(sources[0]):
                wanted = {"name": sources[0], "digest": digests[0], "method": "GET"}
                if DIGEST.fits(digests[0]) and self.policy(user, RouteName.BLOB, wanted):
                    query |= {"from": sources, "mount": digests}
        return query

    # Upload ids.

    def _sealed(self, location: str, user: str | None, name: str) -> str:
        sealed = self.fernet.encrypt(json.dumps([location, user, name]).encode()).decode()
        if len(sealed) > MAX_UPLOAD_ID:
            raise ValueError(f"the URL of an upload has {len(location)} characters")
        return sealed

    def _unsealed(self, uuid: str, user: str | None, name: str) -> str:
        try:
            location, *owner = json.loads(self.fernet.decrypt(uuid, ttl=UPLOAD_LIFETIME))
        except InvalidToken:
            raise errors.BlobUploadUnknown from None
        if owner != [user, name]:
            raise errors.BlobUploadUnknown
        return str(location)

    # Requests to the upstream.

    def _send(
        self,
        request: RegistryRequest,
        method: str,
        endpoint: str,
        url: str,
        values: dict[str, str],
        query: dict[str, list[str]],
    ) -> requests.Response:
        scopes = required_scopes(endpoint, method, values, query)
        headers = {name: request.headers[name] for name in SENT_ON if name in request.headers}
        body = self._body_of(request, endpoint)
        is_stream = not isinstance(body, bytes)
        self._get_token(self.login.prepare(url, scopes))
        if is_stream and not self.wants_no_login:
            self._log_in(url, scopes)  # a stream cannot be sent twice
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._request(method, url, headers, body, scopes, is_stream)
            location = answer.headers.get("Location")
            if not 300 <= answer.status_code < 400 or location is None:
                return answer
            target = resolve_location(answer.url, location)
            is_inside = same_origin(target, self.login.root)
            if endpoint == RouteName.BLOB and not is_inside and not self.stream_blobs:
                return answer
            if is_stream or not (is_inside or endpoint == RouteName.BLOB):
                raise ValueError(f"it redirects to {target}")
            beginning_of(answer)
            answer.close()
            url = target
        raise ValueError(f"it redirects more than {MAX_REDIRECTS} times")

    def _is_head_refused(self, answer: requests.Response) -> bool:
        """Return whether a GET may succeed: the URL of a storage may be signed for GET.

        Amazon's public registry refuses HEAD of a blob with a 401, in spite of a token.
        """
        if answer.status_code == 401:
            return has_token(answer)
        return answer.status_code >= 400 and not same_origin(answer.url, self.login.root)

    def _body_of(self, request: RegistryRequest, endpoint: str) -> "bytes | Body":
        if endpoint == RouteName.MANIFEST:
            request.max_content_length = MAX_MANIFEST
            return request.get_data()
        if request.content_length == 0 or request.method in ("GET", "HEAD", "DELETE"):
            return b""
        if request.content_length is None and "Transfer-Encoding" not in request.headers:
            return b""
        return Body(request.stream, request.content_length)

    def _request(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: "bytes | Body",
        scopes: Iterable[Any],
        is_stream: bool,
    ) -> requests.Response:
        """Send a request, again with a token if the upstream wants one."""
        while True:
            sent = self.login.authorization(url, scopes)
            answer = self.session.request(
                method,
                url,
                headers=headers if sent is None else {**headers, "Authorization": sent},
                data=body,
                allow_redirects=False,
                stream=True,
                timeout=self.timeout,
            )
            if answer.status_code not in (401, 403):
                return answer
            challenged = self.login.challenged(
                answer.url, scopes, answer.status_code, answer.headers, sent or ""
            )
            self._get_token(challenged)
            if is_stream or sent is not None or self.login.authorization(url, scopes) is None:
                return answer
            beginning_of(answer)
            answer.close()

    def _log_in(self, url: str, scopes: Iterable[Any]) -> None:
        if not same_origin(url, self.login.root) or self.login.authorization(url, scopes):
            return
        with self.session.get(self.urls.base(), timeout=self.timeout, stream=True) as answer:
            beginning_of(answer)
            self.wants_no_login = answer.ok
            challenged = self.login.challenged(
                answer.url, scopes, answer.status_code, answer.headers
            )
        self._get_token(challenged)

    def _get_token(self, asked: TokenRequest | None) -> None:
        while asked is not None:
            with self.session.request(
                asked.method,
                asked.url,
                headers=asked.headers,
                data=asked.form,
                allow_redirects=False,
                stream=True,
                timeout=self.timeout,
            ) as answer:
                content = beginning_of(answer)
            try:
                asked = self.login.granted(asked, answer.status_code, answer.headers, content)
            except errors.RegistryError as error:
                raise ValueError(f"its token server answers {error.code}: {error}") from None

    # Its answers.

    def _error(self, answer: requests.Response, endpoint: str) -> Response:
        """Answer with the registry's JSON where the upstream has a page."""
        found = parse_errors(
            answer.status_code, beginning_of(answer), answer.headers, endpoint=endpoint
        )
        answer.close()
        for error in found:  # the challenges are meant for this program
            error.headers = [pair for pair in error.headers if pair[0].lower() != CHALLENGE]
        return error_response(found)

    def _response(
        self,
        request: RegistryRequest,
        answer: requests.Response,
        endpoint: str,
        values: dict[str, str],
        user: str | None,
    ) -> Response:
        response = Response(status=answer.status_code)
        response.automatically_set_content_length = False
        del response.headers["Content-Type"]
        for name in PASSED_ON:
            for value in answer.raw.headers.getlist(name):
                response.headers.add(name, value)
        if "Location" in answer.headers:
            response.location = self._location(request, answer, endpoint, values, user)
        asked = self.urls.build(endpoint, values, request.args)
        if query := parse_next_query(asked, answer.headers.get("Link")):
            response.headers["Link"] = next_link(request.urls.build(endpoint, values, query))
        if request.method != "HEAD":
            response.response = _blocks_of(answer)
        response.call_on_close(answer.close)
        return response

    def _location(
        self,
        request: RegistryRequest,
        answer: requests.Response,
        endpoint: str,
        values: dict[str, str],
        user: str | None,
    ) -> str:
        """Return the URL here that leads to where the upstream's answer leads."""
        target = resolve_location(answer.url, answer.headers["Location"])
        uploads = RouteName.BLOB_UPLOAD, RouteName.BLOB_UPLOAD_CHUNK
        if endpoint in uploads and answer.status_code != 201:
            sealed = self._sealed(target, user, values["name"])
            return request.urls.blob_upload_chunk(values["name"], sealed)
        if answer.status_code != 201:  # the redirect of a blob
            return target
        query = request.args
        stated = content_digest(answer.headers.get("Docker-Content-Digest"))
        digest = stated or query.get("digest") or query.get("mount", "")
        if endpoint == RouteName.MANIFEST:
            pushed = {"name": values["name"], "digest": digest} if digest else values
            return request.urls.build(endpoint, pushed)
        return request.urls.blob(values["name"], digest)


CHALLENGE = "www-authenticate"


class Body:
    """The body of a request, which is sent on as it arrives."""

    def __init__(self, stream: Any, length: int | None) -> None:
        self.stream = stream
        if length is not None:
            self.len = length  # requests then sends a Content-Length, and otherwise chunks

    def __iter__(self) -> Iterator[bytes]:
        while block := self.stream.read(BLOCK):
            yield block

    def read(self, size: int = BLOCK) -> bytes:
        return bytes(self.stream.read(size))


def _blocks_of(answer: requests.Response) -> Iterator[bytes]:
    try:
        yield from answer.raw.stream(BLOCK, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise BrokenPipeError(errno.EPIPE, f"it broke off: {error}") from error


def log_requests(app: RegistryApp) -> None:
    """Log the user, the method, the route and the status of each request, and how long it took.

    The time ends when the upstream's answer begins.
    """

    @app.before_request
    def begin(request: RegistryRequest) -> None:
        request.environ["front.begun"] = time.monotonic()

    @app.after_request
    def end(request: RegistryRequest, response: Response) -> Response:
        seconds = time.monotonic() - request.environ.get("front.begun", time.monotonic())
        route = "none" if request.url_rule is None else request.url_rule.rule
        user = request.environ.get("front.user") or "-"
        log.info("%s %s %s %s %.3f", user, request.method, route, response.status_code, seconds)
        return response


def without_queries(error: Exception) -> str:
    """Return an error's text without the queries of URLs, which may have an upload's secrets."""
    return re.sub(r"\?[^\s'\"<>)]+", "?...", str(error))


def make_app(
    login: Login,
    key: bytes,
    users: Mapping[str, str],
    policy: Policy = pull_or_user,
    *,
    stream_blobs: bool = False,
    timeout: float = 60,
    metrics: bool = False,
) -> Any:
    """Return the front, with its token server and its health check next to it.

    :param metrics: serve ``/metrics`` too.
    """
    front = Front(login, key, policy, stream_blobs=stream_blobs, timeout=timeout)
    registry = front.app()
    log_requests(registry)
    # A token says who the client is. The policy decides about each request.
    tokens = TokenServer(key, users, lambda user, scope: scope.actions)
    app = DispatcherMiddleware(with_health(registry, front, "the registry"), {"/token": tokens})
    return Metrics(app, registry.url_map) if metrics else app


def main() -> None:
    parser = OneLineParser(
        description="A gateway in front of any registry.",
        epilog=f"${USERS} may hold more users, a line for each as in the file. ${UPSTREAM_USER} is "
        f"the account at the upstream, NAME:PASSWORD. ${KEY} is the key of tokens and upload ids: "
        "with the same key, they outlive a restart and are valid on every machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    server_options(parser, port=5007, storage=False)
    parser.add_argument("--upstream", required=True, metavar="URL", help="the registry")
    parser.add_argument("--users", metavar="FILE", help="a file with a NAME:PASSWORD on each line")
    parser.add_argument(
        "--stream-blobs",
        action="store_true",
        help="send blobs through this program even if the upstream redirects to a storage",
    )
    parser.add_argument(
        "--metrics", action="store_true", help="serve /metrics for Prometheus, to all clients"
    )
    options = parser.parse_args()
    try:
        users = users_of(os.environ.get(USERS, ""), f"${USERS}")
        if options.users is not None:
            users |= users_of(Path(options.users).read_text("utf-8"), options.users)
        key = key_of(os.environ.get(KEY, ""))
        account = os.environ.get(UPSTREAM_USER, "")
        login = Login(options.upstream, *(name_and_password(account) if account else ()))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.metrics:
        share_metrics()
    pushing = "users may push" if users else "nobody may push, because there are no users"
    server = Server(
        lambda: make_app(
            login, key, users, stream_blobs=options.stream_blobs, metrics=options.metrics
        ),
        options,
        f"A gateway at http://{{host}} for {login.root}: anyone may pull, and {pushing}",
    )
    log.setLevel(logging.INFO)
    server.run()


if __name__ == "__main__":
    main()
