"""Logging in to any registry: with a password, with tokens, or as anyone.

`Login` says what to send, and does no input or output. It has adapters for requests and httpx:

    session = Login("https://registry.example.com", "alice", "secret").session()
    session.get("https://registry.example.com/v2/me/app/tags/list")

    httpx.Client(auth=Login("https://registry.example.com").for_httpx())
"""

import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from werkzeug.datastructures import Authorization
from werkzeug.exceptions import HTTPException

from .challenges import Challenge, Token, parse_challenges, parse_token
from .headers import Headers
from .responses import MOST, beginning_of, parse_errors
from .scopes import Scope, required_scopes
from .urls import URLBuilder, match_url, same_origin

if TYPE_CHECKING:
    import httpx
    import requests
    from requests.adapters import BaseAdapter
    from requests.auth import AuthBase

__all__ = ["Login", "TokenRequest"]

_MOST_TOKENS = 10_000  # in memory, which endless new names must not fill


@dataclass(frozen=True)
class TokenRequest:
    """A request to send to a token server. Its `repr` does not show secrets.

    - `method`: ``GET`` or ``POST``.
    - `url`: the URL, which never has secrets.
    - `headers`: the headers; those of a GET contain the user's password.
    - `form`: the fields of a POST's form, which contain secrets; empty for a GET.
    - `challenge`: the challenge that the request answers.
    - `scopes`: the scopes that the token is for.
    - `key`: the scopes under which `Login` keeps the token.
    """

    method: str
    url: str
    headers: dict[str, str] = field(repr=False)
    form: dict[str, str] = field(repr=False)
    challenge: Challenge = field(repr=False)
    scopes: tuple[str, ...]
    key: frozenset[str] = field(repr=False)


@dataclass
class _Grant:
    """A token, and the request that gets it."""

    authorization: str = ""
    end: float = 0  # by the monotonic clock
    request: TokenRequest | None = None


class Login:
    """The credentials for one registry, and the tokens obtained with them.

    A client calls `authorization` before a request, and passes the response to `challenged`. If
    that returns a token request, the client sends it, and passes the token server's response to
    `granted`. If `authorization` then returns something else, the client repeats its own request:

    >>> login = Login("https://registry.example.com", "alice", "secret")
    >>> url = "https://registry.example.com/v2/me/app/tags/list"
    >>> scopes = login.scopes("GET", url)
    >>> print(login.authorization(url, scopes))
    None
    >>> headers = {"WWW-Authenticate": 'Bearer realm="https://auth.example.com/token",service="r"'}
    >>> request = login.challenged(url, scopes, 401, headers)
    >>> request.method, request.url
    ('GET', 'https://auth.example.com/token?service=r&scope=repository%3Ame%2Fapp%3Apull')
    >>> login.granted(request, 200, {}, b'{"token": "abc"}')
    >>> login.authorization(url, scopes)
    'Bearer abc'

    The adapters do this: `for_requests`, `session` and `for_httpx`.

    Credentials go only to the registry's own origin and to the token server that it names, by
    https unless the registry itself is used by http. Several threads may share one `Login`.

    :param registry: the URL of the registry, as in `URLBuilder`.
    :param username: the name of the user.
    :param password: the password of the user.
    :param identity_token: a refresh token, instead of a password. Docker's configuration has it as
        ``identitytoken``.

    - `root`: the URL of the registry, without a trailing slash.

    Without a password and an identity token, the client is anonymous. Raises `ValueError` for
    credentials that do not go together.
    """

    def __init__(
        self,
        registry: object,
        username: str | None = None,
        password: str | None = None,
        *,
        identity_token: str | None = None,
    ) -> None:
        self.root: str = URLBuilder(registry).root
        if password is not None and identity_token is not None:
            raise ValueError("login has both a password and an identity token: give it one of them")
        if (username is None) != (password is None) and identity_token is None:
            raise ValueError("login needs both a username and a password, or neither")
        self._user: tuple[str, str] | None = None
        self._basic: str | None = None
        if username is not None and password is not None:
            if ":" in username:  # RFC 7617, section 2
                raise ValueError(f"username {username!r} must have no ':'")
            self._user = username, password
            user = {"username": username, "password": password}
            self._basic = Authorization("basic", dict(user)).to_header()
        self._identity_token = identity_token
        self._lock = threading.Lock()
        self._wants_basic = False  # whether the registry does
        self._wants_forms = False  # whether the token server does
        self._grants: dict[frozenset[str], _Grant] = {}
        # Keyed like the grants: the outcome for which other threads wait, while a thread asks.
        self._asking: dict[frozenset[str], Future[None]] = {}
        self._latest: frozenset[str] = frozenset()  # the key of the token that was last used

    def __repr__(self) -> str:
        return f"Login({self.root!r})"

    def scopes(self, method: str, url: object) -> list[Scope] | None:
        """Return the scopes that a request needs; `None` if its URL does not say.

        Registries may put uploads at any URL.
        """
        try:
            endpoint, values, query = match_url(url, method, root=self.root)
            return required_scopes(endpoint, method, values, query)
        except (HTTPException, ValueError):
            return None

    def authorization(self, url: object, scopes: Iterable[object] | None = None) -> str | None:
        """Return the ``Authorization`` to send with a request; `None` if none is known.

        :param scopes: the result of `scopes`. For `None`, the last used token is sent.
        """
        if not same_origin(url, self.root):
            return None
        with self._lock:
            if self._wants_basic:
                return self._basic
            key = self._latest if scopes is None else _key_of(scopes)
            grant = self._grants.get(key)
            if grant is None or grant.end <= time.monotonic():
                return None
            self._latest = key
            return grant.authorization

    def prepare(self, url: object, scopes: Iterable[object] | None = None) -> TokenRequest | None:
        """Return the token request to send before a request; `None` if none is needed.

        It is needed after the token has expired, and after a challenge that got no token. Without
        it, the registry would answer 401, which is too late for a body that cannot be sent again.
        """
        if not same_origin(url, self.root):
            return None
        with self._lock:
            grant = self._grants.get(self._latest if scopes is None else _key_of(scopes))
            if grant is None or grant.request is None or grant.end > time.monotonic():
                return None
            old = grant.request
        return self._make_request(old.challenge, old.scopes, old.key)

    def challenged(
        self,
        url: object,
        scopes: Iterable[object] | None,
        status: int,
        headers: Headers,
        sent: str | None = None,
    ) -> TokenRequest | None:
        """Return the token request that a response demands; `None` if it demands none.

        With `None`, `authorization` tells whether to repeat the request: after a challenge for
        Basic authentication, it returns a value if there is a password.

        :param url: the URL that answered, which is the last after redirects. Challenges of another
            origin are ignored.
        :param scopes: the result of `scopes`.
        :param status: the status. Only a 401 counts, and a 403 that says ``insufficient_scope``.
        :param headers: the headers of the response.
        :param sent: the ``Authorization`` of the request; "" for none. If another thread has got a
            new token since then, no token request is needed.

        Raises `ValueError` for a token server that uses http although the registry does not.
        """
        if status not in (401, 403) or not same_origin(url, self.root):
            return None
        if sent is not None and self.authorization(url, scopes) not in (None, sent):
            return None
        challenges = parse_challenges(headers)
        if status == 403 and all(each.error != "insufficient_scope" for each in challenges):
            return None
        bearer = next((each for each in challenges if each.scheme == "bearer"), None)
        with self._lock:
            self._wants_basic = bearer is None and any(c.scheme == "basic" for c in challenges)
        if bearer is None:
            return None
        # Some challenges name fewer scopes than the request needs, and some name more.
        needed = [] if scopes is None else [Scope.parse(str(scope)) for scope in scopes]
        others = [scope for scope in bearer.scopes if not scope.is_granted_by(needed)]
        wanted = tuple(sorted({str(scope) for scope in [*needed, *others]}))
        key = frozenset(wanted) if scopes is None else _key_of(needed)
        request = self._make_request(bearer, wanted, key)
        with self._lock:
            grant = self._find_grant(key)
            grant.request, grant.end = request, 0  # the registry does not accept the old token
            self._latest = key
        return request

    def granted(
        self, request: TokenRequest, status: int, headers: Headers, body: bytes | str
    ) -> TokenRequest | None:
        """Store the token of a token server's response.

        Returns another request to send if the token server only accepts forms, else `None`. Raises
        a `RegistryError` for a refusal, and `ValueError` for a response without a token.
        """
        if status in (404, 405) and request.method == "GET" and self._user is not None:
            return self._make_request(request.challenge, request.scopes, request.key, as_form=True)
        if status >= 400 and status not in (404, 405):  # whose errors would blame the image
            raise parse_errors(status, body, headers)[0]
        if status != 200:
            raise ValueError(f"token server {request.url!r} answers {status} instead of a token")
        token = parse_token(body)
        end = time.monotonic() + _lifetime_of(token)
        with self._lock:
            self._wants_forms = bool(request.form)
            if self._identity_token is not None and token.refresh_token is not None:
                self._identity_token = token.refresh_token
            grant = self._find_grant(request.key)
            grant.authorization, grant.end, grant.request = f"Bearer {token.token}", end, request
            self._latest = request.key
        return None

    def _make_request(
        self,
        challenge: Challenge,
        scopes: tuple[str, ...],
        key: frozenset[str],
        as_form: bool = False,
    ) -> TokenRequest:
        wanted: dict[str, Any] = {"scopes": scopes, "registry": self.root}
        headers: dict[str, str] = {}
        form: dict[str, str] = {}
        if self._identity_token is not None:
            url, form = challenge.token_form(refresh_token=self._identity_token, **wanted)
        elif self._user is not None and (as_form or self._wants_forms):
            username, password = self._user
            url, form = challenge.token_form(username=username, password=password, **wanted)
        else:
            url = challenge.token_url(**wanted)
            headers = {"Authorization": self._basic} if self._basic is not None else {}
        method = "POST" if form else "GET"
        return TokenRequest(method, url, headers, form, challenge, scopes, key)

    def _find_grant(self, key: frozenset[str]) -> _Grant:
        if key not in self._grants and len(self._grants) >= _MOST_TOKENS:
            self._grants.clear()
        return self._grants.setdefault(key, _Grant())

    @contextmanager
    def _ask_once(self, scopes: Iterable[object] | None) -> Iterator[None]:
        """Make other threads that need the same token wait for it, and share an error."""
        key = frozenset[str]() if scopes is None else _key_of(scopes)
        mine = Future[None]()
        # `setdefault` is atomic: of several threads, one finds its own future.
        while (ahead := self._asking.setdefault(key, mine)) is not mine:
            ahead.result()  # waits for that thread, and raises its error
        try:
            yield
        except Exception as error:
            mine.set_exception(error)
            raise
        finally:
            del self._asking[key]
            if not mine.done():
                mine.set_result(None)

    def for_requests(self) -> "AuthBase":
        """Return an ``auth`` for a session or a request of requests.

        A request whose body cannot be sent again, such as a generator, gets its 401 back. Token
        requests use the adapter and the options of the last request. A plain session adds the
        passwords of a ``.netrc`` to redirects; that of `session` does not.
        """
        return _make_requests_auth(self)

    def session(self) -> "requests.Session":
        """Return a session of requests that logs in, and sends nothing from a ``.netrc``."""
        return _make_requests_session(self)

    def for_httpx(self) -> "httpx.Auth":
        """Return an ``auth`` for a client or a request of httpx, synchronous or not.

        A request whose body cannot be sent again, such as a generator, gets its 401 back.
        """
        return _make_httpx_auth(self)


def _key_of(scopes: Iterable[object]) -> frozenset[str]:
    return frozenset(map(str, scopes))


def _lifetime_of(token: Token) -> float:
    """Return for how many seconds to use a token: a little shorter than it is valid, at least 1."""
    age = 0.0
    if token.issued_at is not None:
        age = (datetime.now(UTC) - token.issued_at).total_seconds()
        if not 0 < age < token.expires_in:  # then the clocks differ
            age = 0
    left = token.expires_in - age
    return max(left - min(left / 10, 10), 1)


# requests.


def _make_requests_auth(
    login: Login, adapter_for: "Callable[[str], BaseAdapter] | None" = None
) -> "AuthBase":
    from requests import PreparedRequest, Request, Response
    from requests.auth import AuthBase

    class Auth(AuthBase):
        # Sends with the adapter and the options of the last request; `None` before any response.
        send_like_last: Callable[[PreparedRequest], Response] | None = None

        def __call__(self, request: PreparedRequest) -> PreparedRequest:
            url = str(request.url)
            scopes = login.scopes(str(request.method), url)
            if self.send_like_last is not None:
                with login._ask_once(scopes):
                    self.ask(login.prepare(url, scopes), self.send_like_last)
            if (authorization := login.authorization(url, scopes)) is not None:
                request.headers["Authorization"] = authorization
            position = None
            with suppress(AttributeError, OSError):  # a pipe has no position
                position = request.body.tell()  # type: ignore[union-attr]
            answer: Any = partial(self.answer, position)
            request.register_hook("response", answer)  # type: ignore[no-untyped-call]
            return request

        def answer(self, position: int | None, response: Response, **options: Any) -> Response:
            last: Any = None if adapter_for else response.connection

            def send(prepared: PreparedRequest) -> Response:
                adapter = adapter_for(str(prepared.url)) if adapter_for else last
                return adapter.send(prepared, **options)

            self.send_like_last = send
            if response.status_code not in (401, 403):
                return response
            request, url = response.request, response.url
            scopes = login.scopes(str(request.method), url)
            sent = request.headers.get("Authorization", "")
            try:
                with login._ask_once(scopes):
                    status, headers = response.status_code, response.headers
                    self.ask(login.challenged(url, scopes, status, headers, sent), send)
            except BaseException:
                response.close()
                raise
            authorization = login.authorization(url, scopes)
            if authorization in (None, sent) or not self.rewind(request.body, position):
                return response
            with response:
                beginning_of(response)  # so that the connection can be reused
            request.headers["Authorization"] = str(authorization)
            answered = send(request)
            answered.history.append(response)
            return answered

        def ask(
            self, asked: TokenRequest | None, send: Callable[[PreparedRequest], Response]
        ) -> None:
            while asked is not None:
                request = Request(asked.method, asked.url, headers=asked.headers, data=asked.form)
                with send(request.prepare()) as answer:
                    content = beginning_of(answer)
                asked = login.granted(asked, answer.status_code, answer.headers, content)

        def rewind(self, body: Any, position: int | None) -> bool:
            """Rewind the body, and return whether it can be sent again."""
            if position is not None and hasattr(body, "seek"):
                body.seek(position)
                return True
            return body is None or isinstance(body, bytes | str)

    return Auth()


def _make_requests_session(login: Login) -> "requests.Session":
    import requests

    class Session(requests.Session):
        def rebuild_auth(
            self, prepared_request: requests.PreparedRequest, response: requests.Response
        ) -> None:
            if not same_origin(prepared_request.url, response.request.url):
                prepared_request.headers.pop("Authorization", None)

    session = Session()
    session.auth = _make_requests_auth(login, session.get_adapter)
    return session


# httpx.


def _make_httpx_auth(login: Login) -> "httpx.Auth":
    import httpx

    class Beginning(httpx.SyncByteStream, httpx.AsyncByteStream):
        """The first bytes of a body: a token server may never end its answer."""

        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            left = MOST
            for block in self.stream:
                yield block[:left]
                left -= len(block)
                if left <= 0:
                    return

        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = MOST
            async for block in self.stream:
                yield block[:left]
                left -= len(block)
                if left <= 0:
                    return

        def close(self) -> None:
            self.stream.close()

        async def aclose(self) -> None:
            await self.stream.aclose()

    class Auth(httpx.Auth):
        def sync_auth_flow(
            self, request: httpx.Request
        ) -> Generator[httpx.Request, httpx.Response, None]:
            def once(body: bytes) -> Iterator[bytes]:
                yield body

            flow = self.flow(request, login._ask_once, once)
            step = next(flow)
            with suppress(StopIteration):
                while True:
                    response = yield step
                    if step is not request:  # then it is a token request
                        response.stream = Beginning(response.stream)
                        response.read()
                    step = flow.send(response)

        async def async_auth_flow(
            self, request: httpx.Request
        ) -> AsyncGenerator[httpx.Request, httpx.Response]:
            async def once(body: bytes) -> AsyncIterator[bytes]:
                yield body

            flow = self.flow(request, lambda _: nullcontext(), once)
            step = next(flow)
            with suppress(StopIteration):
                while True:
                    response = yield step
                    if step is not request:
                        response.stream = Beginning(response.stream)
                        await response.aread()
                    step = flow.send(response)

        def flow(
            self,
            request: httpx.Request,
            asking: Callable[[Iterable[object] | None], AbstractContextManager[Any]],
            once: Callable[[bytes], Any],
        ) -> Generator[httpx.Request, httpx.Response, None]:
            scopes = login.scopes(request.method, request.url)
            with asking(scopes):
                yield from self.ask(login.prepare(request.url, scopes), once, request)
            sent = login.authorization(request.url, scopes)
            if sent is not None:
                request.headers["Authorization"] = sent
            response = yield request
            if response.status_code not in (401, 403):
                return
            url = response.url  # after any redirects
            with asking(scopes):
                status, headers = response.status_code, response.headers
                asked = login.challenged(url, scopes, status, headers, sent or "")
                if not isinstance(request.stream, httpx.ByteStream):
                    return  # it cannot be sent again; the next request will ask for the token
                yield from self.ask(asked, once, request)
            authorization = login.authorization(url, scopes)
            if authorization is not None and (asked is not None or authorization != sent):
                request.headers["Authorization"] = authorization
                yield request

        def ask(
            self, asked: TokenRequest | None, once: Callable[[bytes], Any], first: httpx.Request
        ) -> Generator[httpx.Request, httpx.Response, None]:
            timeout = {"timeout": first.extensions.get("timeout", {})}
            while asked is not None:
                headers, content = asked.headers, None
                if asked.form:
                    body = urlencode(asked.form).encode()
                    headers = {
                        **headers,
                        "Content-Type": "application/x-www-form-urlencoded",
                        "Content-Length": str(len(body)),
                    }
                    content = once(body)  # so that a redirect cannot send the secrets elsewhere
                options: Any = {"headers": headers, "content": content, "extensions": timeout}
                request = httpx.Request(asked.method, asked.url, **options)
                answer = yield request
                asked = login.granted(asked, answer.status_code, answer.headers, answer.content)

    return Auth()
