"""A gateway in front of a registry that runs elsewhere, with users and a policy but no storage.

    UPSTREAM_USER=robot:secret python examples/front.py --upstream https://registry.example.com \\
        --port 5007 --users ./passwords

Clients log in here, with the token server of `tokens.py`. For each request, the gateway asks a
policy, ``policy(user, endpoint, values)``. It sends allowed requests on with an account of the
upstream, which clients never see, and streams bodies in both directions.

The URLs in answers lead back here, except redirects of blobs. An upload goes on at a URL that the
upstream chooses, even at another host, and a client that went there would bypass the policy. So the
gateway seals that URL into the upload id: encrypted, as it may contain a token of the upstream, and
valid only for the same user and repository, for an hour.
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
from answers import has_token
from cryptography.fernet import Fernet, InvalidToken
from health import MAX_CHECK, add_health
from metrics import Metrics, share_metrics
from requests.adapters import HTTPAdapter
from serving import OneLineParser, Server, add_server_options
from tokens import (
    KEY,
    SERVICE,
    USERS,
    TokenServer,
    parse_key,
    parse_user,
    parse_users,
    read_claims,
)
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
from registry_routes.registry import MAX_MANIFEST
from registry_routes.responses import beginning_of, parse_errors
from registry_routes.scopes import required_scopes
from registry_routes.urls import same_origin

log = logging.getLogger(__name__)

UPSTREAM_USER = "UPSTREAM_USER"  # in the environment
STREAM_BLOCK = 256 * 1024  # bytes
MAX_CONNECTIONS = 512  # to keep open for the next requests
MAX_REDIRECTS = 5
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


def allow_pulls(user: str | None, endpoint: str, values: Mapping[str, str]) -> bool:
    """Allow pulls to anyone, and everything to users."""
    return user is not None or values["method"] == "GET"


class Front:
    """The views of a registry that sends requests on to another, if a policy allows them.

    :param login: the URL of the upstream, and the account there.
    :param key: the key that signs tokens and encrypts upload ids.
    :param policy: a function that takes a user (`None` without a login), an endpoint, and the
        values of the URL with the ``method``, which is never HEAD. A mount also needs its consent
        to a GET of the ``blob`` of the repository that it mounts from.
    :param stream_blobs: whether to follow the redirects of blobs here, and not at the client.
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
        self.session.auth = lambda prepared: prepared  # ignore any .netrc
        for scheme in "http://", "https://":
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=MAX_CONNECTIONS))
        self.wants_no_login = False

    def app(self) -> RegistryApp:
        app = RegistryApp()
        for route in OCI_1_1.routes:
            app.view(route.name)(self.forward)
        return app

    def check(self) -> None:
        """Raise `OSError` if the upstream does not answer, or answers with a server error."""
        timeout = min(self.timeout, MAX_CHECK)
        url = self.urls.base()
        with self.session.get(url, timeout=timeout, stream=True, allow_redirects=False) as answer:
            if answer.status_code >= 500:
                raise OSError(f"{self.login.root} answered {answer.status_code}")

    def forward(self, request: RegistryRequest, **values: str) -> Response:
        """Send a request on, and answer as the upstream does."""
        endpoint, user = str(request.endpoint), self._authenticate(request)
        query = self._check_query(request, user, endpoint, values)
        try:
            if endpoint == RouteName.BLOB_UPLOAD_CHUNK:
                location = self._unseal(values["uuid"], user, values["name"])
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
                if any(challenge.error == "insufficient_scope" for challenge in challenges):
                    raise errors.Denied("the upstream does not allow this to the gateway's account")
                raise ValueError(f"it refuses the account: {beginning_of(answer)!r:.200}")
            is_json = "json" in answer.headers.get("Content-Type", "")
            if answer.status_code >= 400 and not is_json and request.method != "HEAD":
                return self._convert_error(answer, endpoint)
            return self._convert_answer(request, answer, endpoint, values, user)
        except requests.Timeout as error:
            log.warning("%s: %s", self.login.root, without_queries(error))
            raise GatewayTimeout("the registry did not answer in time") from error
        except (requests.RequestException, ValueError) as error:
            log.warning("%s: %s", self.login.root, without_queries(error))
            raise BadGateway("no answer from the registry, or a malformed answer") from error

    # The policy.

    def _authenticate(self, request: RegistryRequest) -> str | None:
        """Return the user whose token a request has. Raise `errors.Unauthorized` without one."""
        claims = read_claims(request, self.key)
        if claims is None:
            realm = f"{URLBuilder.from_environ(request.environ).root}/token"
            raise errors.Unauthorized(realm=realm, service=SERVICE, scope=request.scopes)
        user = claims.get("sub") or None
        request.environ["front.user"] = user
        return user

    def _check_query(
        self, request: RegistryRequest, user: str | None, endpoint: str, values: dict[str, str]
    ) -> dict[str, list[str]]:
        """Return the query to send on. Raise `errors.Denied` if the policy refuses the request.

        A mount from a repository that the policy refuses becomes an upload.
        """
        method = "GET" if request.method == "HEAD" else request.method
        if not self.policy(user, endpoint, {**values, "method": method}):
            raise errors.Denied(f"the policy does not let {user or 'anyone'} {request.method} this")
        query = request.args.to_dict(flat=False)
        if endpoint == RouteName.BLOB_UPLOAD:
            sources, digests = query.pop("from", []), query.pop("mount", [])
            # Without a source, some registries mount from any repository that has the blob.
            if len(sources) == len(digests) == 1 and NAME.fits(sources[0]):
                wanted = {"name": sources[0], "digest": digests[0], "method": "GET"}
                if DIGEST.fits(digests[0]) and self.policy(user, RouteName.BLOB, wanted):
                    query |= {"from": sources, "mount": digests}
        return query

    # Upload ids.

    def _seal(self, location: str, user: str | None, name: str) -> str:
        sealed = self.fernet.encrypt(json.dumps([location, user, name]).encode()).decode()
        if len(sealed) > MAX_UPLOAD_ID:
            raise ValueError(f"the URL of an upload is too long: {len(location)} characters")
        return sealed

    def _unseal(self, uuid: str, user: str | None, name: str) -> str:
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
        body = self._open_body(request, endpoint)
        self._get_token(self.login.prepare(url, scopes))
        if isinstance(body, Body):
            self._log_in(url, scopes)  # before the request, as a stream cannot be sent twice
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._request(method, url, headers, body, scopes)
            target = self._find_redirect(answer, endpoint)
            if target is None:
                return answer
            if isinstance(body, Body):
                raise ValueError(f"it redirects to {target}")
            beginning_of(answer)
            answer.close()
            url = target
        raise ValueError(f"it redirects more than {MAX_REDIRECTS} times")

    def _find_redirect(self, answer: requests.Response, endpoint: str) -> str | None:
        """Return the URL of a redirect to follow here; `None` if the answer is for the client.

        Only a blob may be at another host.
        """
        location = answer.headers.get("Location")
        if not 300 <= answer.status_code < 400 or location is None:
            return None
        target = resolve_location(answer.url, location)
        if same_origin(target, self.login.root):
            return target
        if endpoint != RouteName.BLOB:
            raise ValueError(f"it redirects to {target}")
        return target if self.stream_blobs else None

    def _is_head_refused(self, answer: requests.Response) -> bool:
        """Return whether a GET may succeed although a HEAD got this answer.

        The URL of a storage may be signed only for GET. Amazon's public registry refuses HEAD of a
        blob with a 401, in spite of a token.
        """
        if answer.status_code == 401:
            return has_token(answer)
        return answer.status_code >= 400 and not same_origin(answer.url, self.login.root)

    def _open_body(self, request: RegistryRequest, endpoint: str) -> "bytes | Body":
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
    ) -> requests.Response:
        """Send a request. If the upstream demands a token, get it and send the request again.

        A stream is sent only once.
        """
        for is_last in (isinstance(body, Body), True):
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
                break
            challenged = self.login.challenged(
                answer.url, scopes, answer.status_code, answer.headers, sent or ""
            )
            self._get_token(challenged)
            if is_last or sent is not None or self.login.authorization(url, scopes) is None:
                break
            beginning_of(answer)
            answer.close()
        return answer

    def _log_in(self, url: str, scopes: Iterable[Any]) -> None:
        """Get the token that a request needs, if the upstream demands a login."""
        is_outside = not same_origin(url, self.login.root)
        if self.wants_no_login or is_outside or self.login.authorization(url, scopes):
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
                raise ValueError(f"its token server answered {error.code}: {error}") from None

    # The upstream's answers.

    def _convert_error(self, answer: requests.Response, endpoint: str) -> Response:
        """Return the registry's JSON for an error that the upstream sent as a page."""
        found = parse_errors(
            answer.status_code, beginning_of(answer), answer.headers, endpoint=endpoint
        )
        answer.close()
        for error in found:  # the challenges are for this program
            error.headers = [pair for pair in error.headers if pair[0].lower() != CHALLENGE]
        return error_response(found)

    def _convert_answer(
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
            response.location = self._convert_location(request, answer, endpoint, values, user)
        asked = self.urls.build(endpoint, values, request.args)
        if query := parse_next_query(asked, answer.headers.get("Link")):
            response.headers["Link"] = next_link(request.urls.build(endpoint, values, query))
        if request.method != "HEAD":
            response.response = _read_blocks(answer)
        response.call_on_close(answer.close)
        return response

    def _convert_location(
        self,
        request: RegistryRequest,
        answer: requests.Response,
        endpoint: str,
        values: dict[str, str],
        user: str | None,
    ) -> str:
        """Return the URL here for the upstream's ``Location``; redirects of blobs stay."""
        target = resolve_location(answer.url, answer.headers["Location"])
        uploads = RouteName.BLOB_UPLOAD, RouteName.BLOB_UPLOAD_CHUNK
        if endpoint in uploads and answer.status_code != 201:
            sealed = self._seal(target, user, values["name"])
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
    """The body of a request, to send on as it arrives."""

    def __init__(self, stream: Any, length: int | None) -> None:
        self.stream = stream
        if length is not None:
            self.len = length  # so that requests sends a Content-Length, and not chunks

    def __iter__(self) -> Iterator[bytes]:
        while block := self.stream.read(STREAM_BLOCK):
            yield block

    def read(self, size: int = STREAM_BLOCK) -> bytes:
        return bytes(self.stream.read(size))


def _read_blocks(answer: requests.Response) -> Iterator[bytes]:
    try:
        yield from answer.raw.stream(STREAM_BLOCK, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise BrokenPipeError(errno.EPIPE, f"the upstream broke off: {error}") from error


def log_requests(app: RegistryApp) -> None:
    """Log the user, method, route and status of each request, and the seconds until the answer.

    The body of the answer comes after these seconds.
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
    """Return an error's text without the queries of URLs, which may hold an upload's secrets."""
    return re.sub(r"\?[^\s'\"<>)]+", "?...", str(error))


def make_app(
    login: Login,
    key: bytes,
    users: Mapping[str, str],
    policy: Policy = allow_pulls,
    *,
    stream_blobs: bool = False,
    timeout: float = 60,
    metrics: bool = False,
) -> Any:
    """Return the gateway, with its token server and its health check.

    :param metrics: serve ``/metrics`` too.
    """
    front = Front(login, key, policy, stream_blobs=stream_blobs, timeout=timeout)
    registry = front.app()
    log_requests(registry)
    # A token says who the client is. The policy decides about each request.
    tokens = TokenServer(key, users, lambda user, scope: scope.actions)
    app = DispatcherMiddleware(add_health(registry, front, "the registry"), {"/token": tokens})
    return Metrics(app, registry.url_map) if metrics else app


def main() -> None:
    parser = OneLineParser(
        description="A gateway in front of any registry.",
        epilog=f"${USERS} may hold more users, one a line as in the file. ${UPSTREAM_USER} is "
        f"the account at the upstream, NAME:PASSWORD. ${KEY} is the key of tokens and upload ids: "
        "with the same key, they outlive a restart and are valid on every machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_server_options(parser, port=5007, storage=False)
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
        users = parse_users(os.environ.get(USERS, ""), f"${USERS}")
        if options.users is not None:
            users |= parse_users(Path(options.users).read_text("utf-8"), options.users)
        key = parse_key(os.environ.get(KEY, ""))
        account = os.environ.get(UPSTREAM_USER, "")
        login = Login(options.upstream, *(parse_user(account) if account else ()))
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
