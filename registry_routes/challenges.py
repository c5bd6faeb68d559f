"""Authentication challenges (``WWW-Authenticate``), and the token requests that follow from them.

A registry answers 401 with challenges in its ``WWW-Authenticate`` header (RFC 9110, 11.6.1). A
Bearer challenge names a token server, which issues tokens for certain scopes (Docker Registry token
authentication specification).
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import urlsplit

from .grammar import append_query
from .headers import Headers, header_values, unescape
from .scopes import Scope

__all__ = ["Challenge", "Token", "TokenForm", "parse_challenges", "parse_token"]


class TokenForm(NamedTuple):
    """A request for a token: where to POST it, and the fields of the form.

    - `url`: the URL of the token server.
    - `fields`: the fields of the form, by their names; they contain secrets.
    """

    url: str
    fields: dict[str, str]


@dataclass(frozen=True)
class Challenge:
    """A way in which a registry lets a client authenticate.

    >>> [challenge] = parse_challenges('Bearer Realm="https://auth.example/token",service="r"')
    >>> challenge
    Challenge(scheme='bearer', parameters={'realm': 'https://auth.example/token', 'service': 'r'}, token68='')
    >>> str(challenge)
    'Bearer realm="https://auth.example/token",service="r"'
    >>> challenge.realm, challenge.error
    ('https://auth.example/token', '')

    - `scheme`: ``bearer``, ``basic`` or another, always in lower case: schemes ignore case.
    - `parameters`: the parameters: their names in lower case, and their values without quotes.
    - `token68`: the text that some schemes have instead of parameters: ``abc==`` in ``Negotiate
      abc==``.
    """  # noqa: E501

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)
    token68: str = ""

    def __post_init__(self) -> None:
        parameters = {name.lower(): value for name, value in self.parameters.items()}
        object.__setattr__(self, "scheme", self.scheme.lower())
        object.__setattr__(self, "parameters", parameters)

    def __str__(self) -> str:
        # All values are quoted, because many clients expect the quotes.
        values = [f"{name}={_quote(value)}" for name, value in self.parameters.items()]
        rest = ",".join([self.token68, *values] if self.token68 else values)
        return f"{self.scheme.title()} {rest}".rstrip()

    @property
    def realm(self) -> str:
        """The URL of the token server in a Bearer challenge; "" if there is none."""
        return self.parameters.get("realm", "")

    @property
    def service(self) -> str:
        """The token server's name for the registry; "" if the challenge does not say."""
        return self.parameters.get("service", "")

    @property
    def scope(self) -> str:
        """The scopes that the token must have, separated by spaces; "" if there are none."""
        return self.parameters.get("scope", "")

    @property
    def scopes(self) -> list[Scope]:
        """The scopes that the token must have, without malformed ones."""
        found = []
        for text in self.scope.split():
            with suppress(ValueError):
                found.append(Scope.parse(text))
        return found

    @property
    def error(self) -> str:
        """Why the token that was sent is not enough: ``insufficient_scope`` or another code of
        RFC 6750, 3.1; "" if the challenge does not say."""
        return self.parameters.get("error", "")

    def token_url(
        self,
        *,
        scopes: str | Iterable[object] | None = None,
        account: str | None = None,
        registry: object = None,
    ) -> str:
        """Return the URL to GET a token from.

        (Docker token authentication specification, "Requesting a Token".) The client sends the
        name and the password of a user by Basic authentication, or nothing to be anonymous.

        :param scopes: a string, or an iterable of any objects whose `str()` is a scope. By default,
            these are the challenge's scopes; an empty list asks for none.
        :param account: the name of the user, for token servers that ask for it.
        :param registry: the URL of the registry that sent the challenge. The realm may use ``http``
            only if this URL does. Otherwise a forged challenge could make the client send a
            password in the clear.

        The result contains the realm and its own query byte for byte, without a fragment.

        >>> header = 'Bearer realm="https://auth.example/token?x=1",service="my registry"'
        >>> [challenge] = parse_challenges(header)
        >>> challenge.token_url(scopes=["repository:a:pull", "repository:b:pull"])
        'https://auth.example/token?x=1&service=my%20registry&scope=repository%3Aa%3Apull&scope=repository%3Ab%3Apull'

        Raises `ValueError` if the scheme is not Bearer, or the realm not a URL of ``https`` (or of
        ``http``, where that is allowed).
        """
        url = self._check_realm(registry)
        pairs = [("service", self.service)] if self.service else []
        pairs += [("scope", scope) for scope in self._list_scopes(scopes)]
        pairs += [("account", account)] if account else []
        return append_query(url, pairs)

    def token_form(
        self,
        *,
        username: str | None = None,
        password: str | None = None,
        refresh_token: str | None = None,
        scopes: str | Iterable[object] | None = None,
        client_id: str = "registry-routes",
        offline: bool = False,
        registry: object = None,
    ) -> TokenForm:
        """Return the form to POST for a token, and the URL to POST it to.

        (Docker token authentication specification, "Docker Registry v2 authentication using
        OAuth2".) The form contains a `username` and a `password`, or the `refresh_token` of an
        earlier response. Not every token server accepts it: after a 401, 404 or 405, clients GET
        `token_url` instead.

        :param client_id: the client's name for itself.
        :param offline: whether to ask for a refresh token.

        `scopes` and `registry` are as in `token_url`.

        >>> [challenge] = parse_challenges('Bearer realm="https://auth.example/token",service="r"')
        >>> url, fields = challenge.token_form(username="alice", password="secret")
        >>> url, fields["grant_type"], fields["service"]
        ('https://auth.example/token', 'password', 'r')

        Raises `ValueError` as `token_url` does, and unless it gets either a username and a password
        or a refresh token.
        """
        url = self._check_realm(registry)
        if refresh_token is None and username is not None and password is not None:
            who = {"grant_type": "password", "username": username, "password": password}
        elif refresh_token is not None and username is None and password is None:
            who = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        else:
            raise ValueError(
                "token form needs either a username and a password, or a refresh token"
            )
        asked = {
            "service": self.service,
            "client_id": client_id,
            "scope": " ".join(self._list_scopes(scopes)),
            "access_type": "offline" if offline else "",
        }
        fields = who | {name: value for name, value in asked.items() if value}
        return TokenForm(url, fields)

    def _list_scopes(self, scopes: str | Iterable[object] | None) -> list[str]:
        if scopes is None:
            scopes = self.scope
        text = scopes if isinstance(scopes, str) else " ".join(map(str, scopes))
        return text.split()

    def _check_realm(self, registry: object) -> str:
        """Return the realm, without a fragment. Raise `ValueError` unless it may get a password."""
        if self.scheme != "bearer":
            raise ValueError(
                f"challenge {str(self)!r} names no token server: its scheme is not Bearer"
            )
        scheme = _scheme_of(self.realm)
        if scheme not in ("http", "https"):
            raise ValueError(f"realm {self.realm!r} is not a URL of http or https")
        if scheme == "http" and _scheme_of(str(registry)) != "http":
            known = "no registry is given" if registry is None else f"not {str(registry)!r}"
            raise ValueError(
                f"realm {self.realm!r} uses http, which is allowed only for a registry asked by "
                f"http ({known})"
            )
        return self.realm.partition("#")[0]


def _scheme_of(url: str) -> str | None:
    """Return the scheme of an absolute URL with a host; `None` for any other text."""
    # urlsplit would strip some of these characters, and clients disagree on a backslash.
    if re.search(r"[^!-~]|\\", url):
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port  # urlsplit parses it only on access
    except ValueError:
        return None
    return parts.scheme if parts.hostname else None


def _quote(value: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


_BLANK = r"[ \t\r\n]"
_WORD = r"[^ \t\r\n,]"
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_IN_QUOTES = r'(?>(?:[^"\\]++|\\.)*)'  # between the quotes, of which the last may be missing
_PARAMETER = rf"{_NAME}{_BLANK}*+="
_SCHEME = rf"{_NAME}{_BLANK}++{_PARAMETER}"

# Any header, however malformed, is a sequence of these items. The alternatives, in this order:
#
#   scheme, token68        Negotiate abc==    at the start or after a comma, any word is a scheme
#   late_scheme            a="b" Basic c=d    if the comma is missing, a parameter must follow it
#   name, quoted or plain  realm="r", realm=r
#   skipped: separators    , ,
#   skipped: a string      "r"
#   skipped: other text    =r
_ITEM = re.compile(
    rf"(?:\A|{_BLANK}*+,)[ \t\r\n,]*+(?P<scheme>{_NAME})(?={_BLANK}|,|\Z)(?!{_BLANK}*+=)"
    rf"(?:{_BLANK}++(?P<token68>[A-Za-z0-9._~+/-]++=*+)(?={_BLANK}*+(?:,|\Z)))?"
    rf"|(?={_SCHEME})(?P<late_scheme>{_NAME})"
    rf'|(?P<name>{_NAME}){_BLANK}*+={_BLANK}*+(?:"(?P<quoted>{_IN_QUOTES})"?|(?P<plain>{_WORD}*+))'
    r"|[ \t\r\n,]++"
    rf'|"{_IN_QUOTES}"?'
    r'|[^ \t\r\n,"]++',
    re.DOTALL,
)
# A value without quotes may continue with words that are neither a parameter nor a scheme. A scope
# may also continue with a comma and more actions, as in "scope=repository:a:pull,push".
_MORE_WORDS = rf"{_BLANK}++(?!{_PARAMETER}|{_SCHEME}){_WORD}++"
_MORE_ACTIONS = rf",(?=[a-z*])(?!{_PARAMETER}){_WORD}++"
_REST = re.compile(f"(?>(?:{_MORE_WORDS})*)")
_REST_OF_SCOPE = re.compile(f"(?>(?:{_MORE_ACTIONS}|{_MORE_WORDS})*)")


def parse_challenges(header_or_headers: str | Headers | Sequence[str] | None) -> list[Challenge]:
    """Return every challenge of a ``WWW-Authenticate`` header, in order (RFC 9110, 11.6.1).

    The argument is the value of the header, a list of values, or all the headers of a response, in
    any form that `headers.header_pairs` takes. For `None`, the list is empty.

    >>> basic, bearer = parse_challenges('Basic realm="r", Bearer realm="https://a/t",scope=x:y:z')
    >>> basic.realm, bearer.realm, bearer.scope
    ('r', 'https://a/t', 'x:y:z')

    It also reads headers that break the RFC, as some registries' do: values without the necessary
    quotes, the comma in ``scope=repository:a:pull,push``, and parameters without commas between
    them. It skips unreadable parts. If a challenge has a parameter twice, the last value wins.
    """
    given = header_or_headers
    if isinstance(given, str | bytes):
        given = [given]
    if isinstance(given, Sequence) and all(isinstance(line, str | bytes) for line in given):
        given = [("WWW-Authenticate", line) for line in given]
    lines = header_values(given, "WWW-Authenticate")  # type: ignore[arg-type]
    return [challenge for line in lines for challenge in _parse_line(line.strip(" \t\r\n"))]


def _parse_line(line: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str], str]] = []
    position = 0
    while item := _ITEM.match(line, position):
        position = item.end()
        if scheme := item["scheme"] or item["late_scheme"]:
            found.append((scheme, {}, item["token68"] or ""))
        elif item["name"] and found:
            _, parameters, _ = found[-1]
            name, value = item["name"].lower(), item["plain"]
            if value is None:
                value = unescape(item["quoted"])
            elif more := (_REST_OF_SCOPE if name == "scope" else _REST).match(line, position):
                value += more[0]
                position = more.end()
            parameters[name] = value
    return [Challenge(*parts) for parts in found]


@dataclass(frozen=True)
class Token:
    """The response of a token server. Its `repr` does not show secrets.

    - `token`: the token to send to the registry, as ``Authorization: Bearer …``.
    - `expires_in`: the lifetime in seconds, from `issued_at` or else from the response.
    - `issued_at`: the time of issue, with a timezone; `None` if the token server does not say.
    - `refresh_token`: a refresh token, with which `Challenge.token_form` asks for another token; or
      `None`.
    """

    token: str = field(repr=False)
    expires_in: int = 60
    issued_at: datetime | None = None
    refresh_token: str | None = field(default=None, repr=False)


def parse_token(body: bytes | str) -> Token:
    """Return the token in the JSON body of a token server's response.

    (Docker token authentication specification, "Token Response Fields".)

    >>> token = parse_token('{"access_token": "abc", "issued_at": "2026-11-24T10:00:00Z"}')
    >>> token.token, token.expires_in
    ('abc', 60)
    >>> print(token.issued_at)
    2026-11-24 10:00:00+00:00

    Raises `ValueError`, which names the faulty field, for any other body.
    """
    if not isinstance(body, bytes | str):
        raise TypeError(f"token response is a {type(body).__name__}: parse_token reads its body")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"token response {body[:40]!r} is not a JSON object")
    token = content.get("token") or content.get("access_token")
    if token is None or token == "":
        raise ValueError("token response has neither a 'token' nor an 'access_token'")
    if not isinstance(token, str):
        raise ValueError("token of a token response is not a string")
    if not re.fullmatch("[!-~]++", token):
        raise ValueError("token of a token response contains characters that no header can carry")
    seconds = content.get("expires_in")
    if seconds is None:
        seconds = Token.expires_in
    if type(seconds) not in (int, float) or not 0 <= seconds < float("inf"):
        raise ValueError(f"expires_in {seconds!r} of a token response must be a number, 0 or more")
    refresh_token = content.get("refresh_token")
    if not isinstance(refresh_token, str | None):
        raise ValueError("refresh_token of a token response is not a string")
    return Token(
        token,
        int(min(seconds, _LONGEST)),
        _parse_time(content.get("issued_at")),
        refresh_token or None,
    )


_LONGEST = 999_999_999  # seconds, which a `timedelta` can hold


def _parse_time(text: object) -> datetime | None:
    """Parse a time of RFC 3339. Return `None` for a missing one, and for Go's zero, the year 1."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(
            f"issued_at {text!r} of a token response is not a time of RFC 3339"
        ) from None
    if time.year == 1:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
