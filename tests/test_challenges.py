"""Challenges as registries send them, and the token requests and answers that follow."""

import copy
import http.client
import io
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
import multidict
import pytest
import urllib3
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from registry_routes.challenges import Challenge, Token, parse_challenges, parse_token
from registry_routes.scopes import Scope

URL = "https://a/t"


def bearer(**parameters: str) -> Challenge:
    return Challenge("bearer", parameters)


BASIC, NEGOTIATE = Challenge("basic", {"realm": "r"}), Challenge("negotiate")
BEARER = bearer(realm=URL, service="s")
SUSE = bearer(realm="https://scc.suse.com/api", service="SUSE Linux Docker Registry")
ICR = bearer(realm="https://cp.icr.io/oauth/token", service="registry")
NEXUS = "Sonatype Nexus Repository Manager"
PUSH = "repository:x:pull,push"

SENT: dict[str, list[Challenge]] = {
    # From registries, unchanged.
    'Bearer realm="https://scc.suse.com/api",service="SUSE Linux Docker Registry"': [SUSE],
    "Bearer realm=https://cp.icr.io/oauth/token, service=registry ": [ICR],
    f'Bearer realm="{URL}",scope={PUSH}': [bearer(realm=URL, scope=PUSH)],
    "Basic realm=/": [Challenge("basic", {"realm": "/"})],
    f'BASIC realm="{NEXUS}"': [Challenge("basic", {"realm": NEXUS})],
    # Several challenges.
    f'Basic realm="r", Bearer realm="{URL}",service="s"': [BASIC, BEARER],
    f'Bearer realm="{URL}",service="s",Basic realm=r': [BEARER, BASIC],
    f"Bearer realm={URL},service=s,Negotiate": [BEARER, NEGOTIATE],
    f'Negotiate ,, Bearer realm="{URL}",service="s",': [NEGOTIATE, BEARER],
    f"Basic realm=r Bearer realm={URL} service=s": [BASIC, BEARER],
    f"Bearer realm={URL},scope={PUSH},Basic realm=r": [bearer(realm=URL, scope=PUSH), BASIC],
    # Names in any case, blanks around "=", parameters in any order.
    f'BEARER\tservice = "s" ,\t realm\t=\t"{URL}"': [BEARER],
    f'Bearer, realm="{URL}", service=s': [BEARER],
    # Commas, blanks and quotes in values.
    r'Basic realm="a \"quoted\" \\ b\c"': [Challenge("basic", {"realm": r'a "quoted" \ bc'})],
    f"Bearer service=SUSE Linux,realm={URL}": [bearer(service="SUSE Linux", realm=URL)],
    f"Bearer scope=repository:a:pull {PUSH} service=s": [
        bearer(scope=f"repository:a:pull {PUSH}", service="s")
    ],
    f"Bearer scope={PUSH},*,realm={URL}": [bearer(scope=f"{PUSH},*", realm=URL)],
    # Parameters without commas between them.
    f'Bearer realm="{URL}"service="s"': [BEARER],
    f"Bearer scope={PUSH} realm={URL}": [bearer(scope=PUSH, realm=URL)],
    # Other faults.
    f'Bearer realm="{URL}",service="s': [BEARER],
    'Bearer realm="x\\': [bearer(realm="x")],
    f'Bearer realm="old", realm="{URL}",service="s"': [BEARER],
    f'"x, Basic realm=r", :, =, {BEARER}': [BEARER],
    'realm="r"': [],
    "": [],
    " ,\t, ": [],
}


@pytest.mark.parametrize(("header", "challenges"), SENT.items())
def test_headers_of_real_registries(header: str, challenges: list[Challenge]) -> None:
    found = parse_challenges(header)
    assert found == challenges
    assert parse_challenges(f"  {header}\t") == challenges
    # The challenges can be sent again, and are then well-formed.
    assert parse_challenges(", ".join(map(str, found))) == challenges


LINES = [
    ("Content-Type", "application/json"),
    ("WWW-Authenticate", 'Basic realm="r"'),
    ("www-authenticate", f'Bearer realm="{URL}",service="s"'),
]


CARRIERS: dict[str, Callable[[], Any]] = {
    "http.client": lambda: http.client.parse_headers(
        io.BytesIO("".join(f"{name}: {value}\r\n" for name, value in LINES).encode())
    ),
    "urllib3": lambda: urllib3.HTTPHeaderDict(LINES),
    "httpx": lambda: httpx.Headers(LINES),
    "multidict": lambda: multidict.CIMultiDictProxy(multidict.CIMultiDict(LINES)),
    "werkzeug": lambda: Headers(LINES),
    "a dict with lists": lambda: {"WWW-AUTHENTICATE": [value for _, value in LINES[1:]]},
    "pairs that are read once": lambda: iter(LINES),
    "pairs of bytes": lambda: [(name.encode(), value.encode()) for name, value in LINES],
    "one value, of bytes": lambda: f"{BASIC}, {BEARER}".encode(),
    "several values": lambda: [value for _, value in LINES[1:]],
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_headers_of_any_library(carrier: str) -> None:
    assert parse_challenges(CARRIERS[carrier]()) == [BASIC, BEARER]


def test_malformed_line_leaves_the_others() -> None:
    lines = [("WWW-Authenticate", 'Basic realm="r'), LINES[2]]
    assert parse_challenges(lines) == [BASIC, BEARER]
    assert parse_challenges(None) == parse_challenges({"WWW-Authenticate": None}) == []


NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~", min_size=1)
TOKENS68 = st.from_regex(r"[A-Za-z0-9._~+/-]+={0,2}", fullmatch=True)
CHALLENGES = st.builds(
    Challenge,
    NAMES,
    st.dictionaries(NAMES | st.sampled_from(["realm", "service", "scope"]), st.text()),
) | st.builds(Challenge, NAMES, st.just({}), TOKENS68)


@given(st.lists(CHALLENGES), st.sampled_from([",", ", ", " ,\t,"]))
@example([Challenge("a", {"b": "c"}, "d=")], ",")
def test_written_challenge_is_read_back(challenges: list[Challenge], comma: str) -> None:
    written = [str(challenge) for challenge in challenges]
    assert parse_challenges(comma.join(written)) == challenges
    assert parse_challenges([("WWW-Authenticate", line) for line in written]) == challenges


PIECES = ["Bearer ", "Basic", "realm=", "scope=", "a:b:c", *'"\\=, \t\né']


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_junk_is_read_without_error_and_written_and_read_again(text: str) -> None:
    challenges = parse_challenges(text)
    assert parse_challenges(", ".join(map(str, challenges))) == challenges
    assert parse_challenges({"WWW-Authenticate": text}) == challenges


def test_challenges_are_values() -> None:
    [challenge] = parse_challenges(LINES[2][1])
    assert hash(challenge) == hash(BEARER)
    assert pickle.loads(pickle.dumps(challenge)) == copy.deepcopy(challenge) == challenge
    assert Challenge("BEARER", {"Realm": URL, "service": "s"}) == challenge
    absent = Challenge("bearer")
    assert absent.realm == absent.service == absent.scope == absent.error == ""


# The request for a token.


@pytest.mark.parametrize(
    ("realm", "begin"),
    [
        (f"{URL}?x=a%2fb+c&y", f"{URL}?x=a%2fb+c&y&"),
        (f"{URL}?", f"{URL}?"),
        (f"{URL}?x=1#y?z", f"{URL}?x=1&"),
        ("HTTPS://A:444/t;p/%7e/../", "HTTPS://A:444/t;p/%7e/../?"),
    ],
)
def test_realm_is_kept_byte_for_byte_without_fragment(realm: str, begin: str) -> None:
    assert bearer(realm=realm, service="s").token_url() == f"{begin}service=s"
    url, _ = bearer(realm=realm).token_form(refresh_token="x")
    assert url == bearer(realm=realm).token_url() == realm.partition("#")[0]


@given(st.text(st.characters(codec="utf-8")), st.lists(st.from_regex("[!-~é]+", fullmatch=True)))
def test_token_url_has_service_scopes_and_account(service: str, scopes: list[str]) -> None:
    challenge = bearer(realm=f"{URL}?x=1", service=service, scope="a:b:c")
    asked = [("x", "1")] + [("service", service)] * bool(service)
    asked += [("scope", scope) for scope in scopes]
    query = urlsplit(challenge.token_url(scopes=scopes, account="me")).query
    assert parse_qsl(query, keep_blank_values=True) == [*asked, ("account", "me")]
    assert set(query) < set(map(chr, range(33, 127)))


@pytest.mark.parametrize(
    ("scopes", "asked"),
    [
        (None, ["a:b:pull,push", "c:d:*"]),
        ([], []),
        ("x:y:z  v:w:*", ["x:y:z", "v:w:*"]),
        (["x:y:z v:w:*"], ["x:y:z", "v:w:*"]),
        ([Scope("repository", "a", ("pull", "push"))], ["repository:a:pull,push"]),
    ],
)
def test_scopes_default_to_the_challenges(scopes: Any, asked: list[str]) -> None:
    challenge = bearer(realm=URL, scope="a:b:pull,push c:d:*")
    query = parse_qs(urlsplit(challenge.token_url(scopes=scopes)).query)
    assert query.get("scope", []) == asked
    form = challenge.token_form(refresh_token="x", scopes=scopes).fields
    assert form.get("scope", "") == " ".join(asked)


def test_scopes_that_can_be_read() -> None:
    challenge = bearer(scope='repository:a:pull,push aws "b"é x:y:z')
    assert list(map(str, challenge.scopes)) == ["repository:a:pull,push", "aws", "x:y:z"]
    assert bearer().scopes == []


def asks(challenge: Challenge, **options: Any) -> list[Callable[[], object]]:
    return [
        lambda: challenge.token_url(**options),
        lambda: challenge.token_form(refresh_token="x", **options),
    ]


@pytest.mark.parametrize(
    "realm",
    [
        *("", "r", "//a/t", "/token", "ftp://a/t", "https:///t", "https://:443/t", "https://é/t"),
        *("https://[::1/t", "https://a:x/t", "https://a b/t", "https://a/\n", "https://a\\@b/t"),
    ],
)
def test_realm_that_is_no_url_is_refused(realm: str) -> None:
    for ask in asks(bearer(realm=realm), registry="http://r"):
        with pytest.raises(ValueError, match=r"^realm .* is not a URL of http or https$") as error:
            ask()
        assert repr(realm) in str(error.value)


@pytest.mark.parametrize("registry", [None, "HTTPS://r/v2/", "r:80", httpx.URL("https://r")])
def test_http_realm_of_https_registry_is_refused(registry: Any) -> None:
    for realm in "http://a/t", "HTTP://a/t":
        for ask in asks(bearer(realm=realm), registry=registry):
            with pytest.raises(
                ValueError, match=f"^realm '{realm}' uses http, which is allowed only"
            ):
                ask()
    for realm, other in (URL, registry), ("http://a/t", "HTTP://r"), (URL, httpx.URL("http://r")):
        for ask in asks(bearer(realm=realm), registry=other):
            assert ask()


def test_token_request_of_another_scheme_is_refused() -> None:
    for ask in asks(Challenge("negotiate", {"realm": URL})):
        with pytest.raises(ValueError, match=r"^challenge 'Negotiate .* scheme is not Bearer$"):
            ask()


def test_token_form() -> None:
    challenge = bearer(realm=URL, service="s", scope="a:b:c d:e:f")
    url, fields = challenge.token_form(username="alice", password="", offline=True)
    assert url == URL
    assert urlencode(sorted(fields.items())) == (
        "access_type=offline&client_id=registry-routes&grant_type=password&password="
        "&scope=a%3Ab%3Ac+d%3Ae%3Af&service=s&username=alice"
    )
    _, fields = bearer(realm=URL).token_form(refresh_token="r", client_id="me")
    assert fields == {"grant_type": "refresh_token", "client_id": "me", "refresh_token": "r"}


@pytest.mark.parametrize(
    "given",
    ["", "username", "password", "username refresh_token", "username password refresh_token"],
)
def test_token_form_without_or_with_two_secrets_is_refused(given: str) -> None:
    secrets: dict[str, Any] = dict.fromkeys(given.split(), "x")
    with pytest.raises(ValueError, match="either a username and a password, or a refresh token"):
        BEARER.token_form(**secrets)


# The response of the token server.

TIME = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
NANO = TIME.replace(microsecond=123456)


@pytest.mark.parametrize(
    ("content", "token"),
    [
        ({"token": "a"}, Token("a")),
        ({"token": "", "access_token": "b"}, Token("b")),
        ({"token": "a", "access_token": "b", "expires_in": None}, Token("a", 60)),
        ({"token": "a", "expires_in": 0}, Token("a", 0)),
        ({"token": "a", "expires_in": 299.9}, Token("a", 299)),
        ({"token": "a", "expires_in": 1e308}, Token("a", 999_999_999)),
        ({"token": "a", "expires_in": 10**400}, Token("a", 999_999_999)),
        ({"token": "a", "issued_at": None, "refresh_token": None}, Token("a")),
        ({"token": "a", "issued_at": "2026-11-24T11:00:00+01:00"}, Token("a", issued_at=TIME)),
        ({"token": "a", "issued_at": "2026-11-24T10:00:00"}, Token("a", issued_at=TIME)),
        ({"token": "a", "issued_at": "2026-11-24T10:00:00.123456789Z"}, Token("a", 60, NANO)),
        ({"token": "a", "issued_at": "0001-01-01T00:00:00Z"}, Token("a")),  # Go's zero
        ({"token": "a", "refresh_token": "r", "x": 1}, Token("a", refresh_token="r")),
        ({"token": "a", "refresh_token": ""}, Token("a")),
    ],
)
def test_token_responses(content: dict[str, Any], token: Token) -> None:
    body = json.dumps(content)
    assert parse_token(body) == parse_token(body.encode()) == token
    assert parse_token(b"\xef\xbb\xbf" + body.encode()) == token
    assert parse_token(body).issued_at == token.issued_at


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<html>", "token response '<html>' is not a JSON object"),
        (b"\xff", "token response b'\\xff' is not a JSON object"),
        ('["a"]', "is not a JSON object"),
        ("[" * 100_000, "is not a JSON object"),
        ('{"token": ""}', "has neither a 'token' nor an 'access_token'"),
        ('{"token": {"a": 1}}', "token of a token response is not a string"),
        (r'{"token": "a b"}', "contains characters that no header can carry"),
        (r'{"token": "a\n"}', "contains characters that no header can carry"),
        ('{"token": "é"}', "contains characters that no header can carry"),
        ('{"token": "a", "expires_in": true}', "expires_in True of a token response must"),
        ('{"token": "a", "expires_in": -1}', "expires_in -1 of a token response must"),
        ('{"token": "a", "expires_in": NaN}', "expires_in nan of a token response must"),
        ('{"token": "a", "expires_in": 1e999}', "expires_in inf of a token response must"),
        ('{"token": "a", "issued_at": "now"}', "issued_at 'now' of a token response is not"),
        ('{"token": "a", "issued_at": 3}', "issued_at 3 of a token response is not"),
        ('{"token": "a", "refresh_token": 3}', "refresh_token of a token response is not"),
    ],
)
def test_malformed_token_response_is_named(body: str | bytes, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        parse_token(body)
    assert message in str(error.value)


def test_token_response_that_is_no_body_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"^token response is a dict: parse_token reads its body$"):
        parse_token({"token": "a"})  # type: ignore[arg-type]


def test_token_repr_has_no_secrets() -> None:
    token = parse_token('{"token": "secret", "refresh_token": "secret"}')
    assert "secret" not in repr(token)
    assert pickle.loads(pickle.dumps(token)) == token


@given(st.binary() | st.text() | st.dictionaries(st.text(), st.text()).map(json.dumps))
def test_junk_token_response_is_a_value_error(body: bytes | str) -> None:
    try:
        token = parse_token(body)
    except ValueError:
        return
    assert token.token
