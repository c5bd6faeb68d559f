"""`Login`: the requests and headers that it proposes, without input and output."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from registry_routes import Login, errors
from registry_routes.login import TokenRequest
from registry_routes.scopes import Scope

ROOT = "https://r.example/m"
TAGS = f"{ROOT}/v2/a/b/tags/list"
UPLOADS = f"{ROOT}/v2/a/b/blobs/uploads/"
OPAQUE = "https://r.example/uploads/1?_state=x"
REALM = "https://auth.example/token"
BEARER = f'Bearer realm="{REALM}",service="r"'
PULL, PUSH = [Scope("repository", "a/b", ("pull",))], [Scope("repository", "a/b", ("pull", "push"))]
ALICE = "Basic YWxpY2U6c8OpOmNyw6h0"


def alice(**options: Any) -> Login:
    return Login(ROOT, "alice", "sé:crèt", **options)


def answer(login: Login, request: TokenRequest | None, token: str = "abc", **more: Any) -> None:
    assert request is not None
    assert login.granted(request, 200, {}, json.dumps({"token": token, **more})) is None


def challenge(
    login: Login, header: str = BEARER, url: str = TAGS, scopes: Any = PULL, **more: Any
) -> Any:
    return login.challenged(url, scopes, 401, {"WWW-Authenticate": header}, **more)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of the monotonic clock."""
    now = [1000.0]
    monkeypatch.setattr("registry_routes.login.time.monotonic", lambda: now[0])
    return now


# The scopes that a request needs.


@pytest.mark.parametrize(
    ("method", "url", "scopes"),
    [
        ("GET", f"{ROOT}/v2/", ""),
        ("HEAD", f"{ROOT}/v2/a/manifests/v1", "repository:a:pull"),
        ("PATCH", f"{UPLOADS}1?_state=x", "repository:a/b:pull,push"),
        ("POST", f"{UPLOADS}?from=c&mount=x", "repository:a/b:pull,push repository:c:pull"),
        ("GET", f"{ROOT}/v2/_catalog", "registry:catalog:*"),
        *(("PUT", url, None) for url in (OPAQUE, f"{ROOT}/x", "https://cdn.example/v2/", "/v2/")),
        *(("GET", url, None) for url in (f"{ROOT}/v2/A/tags/list", f"{ROOT}/v2", f"{TAGS} ")),
    ],
)
def test_scopes_of_a_request(method: str, url: str, scopes: str | None) -> None:
    found = Login(ROOT).scopes(method, url)
    assert (None if found is None else " ".join(map(str, found))) == scopes


# Tokens.


def test_token_is_asked_for_and_kept_by_its_scopes() -> None:
    login = alice()
    assert login.authorization(TAGS, PULL) is None
    request = challenge(login)
    assert (request.method, request.form) == ("GET", {})
    assert request.url == f"{REALM}?service=r&scope=repository%3Aa%2Fb%3Apull"
    assert request.headers == {"Authorization": ALICE}
    answer(login, request)
    assert login.authorization(f"{ROOT}/v2/a/b/manifests/v1", PULL) == "Bearer abc"
    assert login.authorization(TAGS, PUSH) is None
    answer(login, challenge(login, scopes=PUSH), "def")
    assert login.authorization(TAGS, PUSH) == "Bearer def"
    assert login.authorization(TAGS, PULL) == "Bearer abc"
    assert login.authorization(TAGS, ["repository:a/b:pull"]) == "Bearer abc"


def test_anonymous_client_sends_no_credentials() -> None:
    login = Login(ROOT)
    request = challenge(login)
    assert request.headers == request.form == {}
    assert challenge(login, 'Basic realm="r"') is None
    assert login.authorization(TAGS, PULL) is None


@pytest.mark.parametrize(
    ("sent", "scopes", "asked"),
    [
        ("", PULL, ["repository:a/b:pull"]),
        ("repository:a/b:pull", PUSH, ["repository:a/b:pull,push"]),  # GitHub's
        ("repository:a/b:pull,push", PULL, ["repository:a/b:pull", "repository:a/b:pull,push"]),
        ("aws", PULL, ["aws", "repository:a/b:pull"]),
        ("x:y:z w:v:u", [], ["w:v:u", "x:y:z"]),
        ("repository:a/b:push,pull", None, ["repository:a/b:push,pull"]),
        ("", None, []),
    ],
)
def test_scopes_of_the_challenge_are_asked_for_too(
    sent: str, scopes: Any, asked: list[str]
) -> None:
    login = alice()
    request = challenge(login, f'{BEARER},scope="{sent}"', scopes=scopes)
    assert list(request.scopes) == asked
    answer(login, request)
    assert login.authorization(TAGS, scopes) == "Bearer abc"


def test_opaque_url_gets_the_token_of_its_challenge_and_then_the_last() -> None:
    login = alice()
    answer(login, challenge(login, f'{BEARER},scope="repository:a/b:pull,push"', OPAQUE, None))
    assert login.authorization(OPAQUE) == "Bearer abc"
    assert login.authorization(UPLOADS, PUSH) == "Bearer abc"
    answer(login, challenge(login), "def")
    assert login.authorization(OPAQUE) == "Bearer def"
    assert login.authorization(UPLOADS, PUSH) == "Bearer abc"
    assert login.authorization(OPAQUE) == "Bearer abc"


@pytest.mark.parametrize(
    ("answered", "after", "is_kept"),
    [
        ({}, 53, True),
        ({}, 55, False),
        ({"expires_in": 300}, 289, True),
        ({"expires_in": 300}, 291, False),
        ({"expires_in": 0}, 0.9, True),  # or the request that has asked for it could not have it
        ({"expires_in": 0}, 1, False),
        ({"expires_in": 1e308}, 10**6, True),
    ],
)
def test_token_is_kept_until_shortly_before_it_ends(
    clock: list[float], answered: dict[str, Any], after: float, is_kept: bool
) -> None:
    login = alice()
    request = challenge(login)
    answer(login, request, **answered)
    clock[0] += after
    assert (login.authorization(TAGS, PULL) is not None) == is_kept
    again = login.prepare(TAGS, PULL)
    assert (again is None) == is_kept
    if again is not None:
        assert again == login.prepare(OPAQUE) == request
        answer(login, again, "def")
        assert login.authorization(TAGS, PULL) == "Bearer def"


@pytest.mark.parametrize(("age", "is_kept"), [(20, False), (-20, True), (90, True)])
def test_token_counts_from_when_it_was_issued_unless_clocks_differ(
    clock: list[float], age: int, is_kept: bool
) -> None:
    login = alice()
    issued = datetime.now(UTC) - timedelta(seconds=age)
    answer(login, challenge(login), issued_at=issued.isoformat())
    clock[0] += 45
    assert (login.authorization(TAGS, PULL) is not None) == is_kept


def test_token_is_prepared_after_a_challenge_and_while_there_is_none() -> None:
    login = alice()
    assert login.prepare(TAGS, PULL) is login.prepare(OPAQUE) is None
    request = challenge(login)
    assert login.prepare(TAGS, PULL) == login.prepare(OPAQUE) == request
    answer(login, request)
    assert login.prepare(TAGS, PULL) is login.prepare(TAGS, PUSH) is None
    request = challenge(login, f"{BEARER},error=invalid_token")
    assert login.authorization(TAGS, PULL) is None
    assert login.prepare(TAGS, PULL) == request


def test_token_that_is_refused_is_replaced() -> None:
    login = alice()
    answer(login, challenge(login))
    for sent in None, "Bearer abc":
        assert challenge(login, f'{BEARER},error="invalid_token"', sent=sent) is not None


def test_token_that_another_thread_has_got_is_not_asked_for_again() -> None:
    login = alice()
    answer(login, challenge(login, sent=""), "abc")
    assert challenge(login, sent="") is challenge(login, sent="Bearer old") is None
    assert login.authorization(TAGS, PULL) == "Bearer abc"


def test_tokens_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry_routes.login._MOST_TOKENS", 3)
    login = alice()
    for number in range(10):
        scopes = [f"repository:a{number}:pull"]
        answer(login, challenge(login, scopes=scopes), str(number))
        assert login.authorization(TAGS, scopes) == f"Bearer {number}"
    assert len(login._grants) <= 3


# Forms.


def test_token_server_that_knows_only_forms() -> None:
    login = alice()
    for status in 404, 405:
        request = login.granted(challenge(login), status, {}, b"")
        assert request is not None
        assert (request.method, request.url, request.headers) == ("POST", REALM, {})
    answer(login, request)
    request = challenge(login)  # now it is asked by a form at once
    assert request.form == {
        "grant_type": "password",
        "username": "alice",
        "password": "sé:crèt",
        "service": "r",
        "client_id": "registry-routes",
        "scope": "repository:a/b:pull",
    }
    assert login.granted(request, 200, {}, b'{"access_token": "abc"}') is None
    assert login.authorization(TAGS, PULL) == "Bearer abc"
    for other in alice(), Login(ROOT):
        asked = challenge(other)
        if other._user:
            asked = other.granted(asked, 405, {}, b"")
        with pytest.raises(
            ValueError, match=r"^token server 'https://auth.example/token.*' answers 405"
        ):
            other.granted(asked, 405, {}, b"")
        assert challenge(other).method == "GET"


def test_identity_token_is_sent_in_a_form() -> None:
    login = Login(ROOT, identity_token="first")
    request = challenge(login)
    assert request.method == "POST"
    assert (request.form["grant_type"], request.form["refresh_token"]) == ("refresh_token", "first")
    answer(login, request)
    assert challenge(login).form["refresh_token"] == "first"
    answer(login, request, refresh_token="second")
    assert challenge(login).form["refresh_token"] == "second"
    assert challenge(login, 'Basic realm="r"') is None
    assert login.authorization(TAGS, PULL) is None  # Basic needs a password


# Challenges.


@pytest.mark.parametrize("header", ['Basic realm="r"', "basic", 'Negotiate abc==, Basic realm="r"'])
def test_basic_authentication(header: str) -> None:
    login = alice()
    assert login.authorization(TAGS, PULL) is None
    assert challenge(login, header) is None
    for url, scopes in (TAGS, PULL), (UPLOADS, PUSH), (OPAQUE, None):
        assert login.authorization(url, scopes) == ALICE
    assert challenge(login, header, sent=ALICE) is None
    assert login.authorization(TAGS, PULL) == ALICE


def test_token_is_preferred_to_a_password() -> None:
    for header in f'Basic realm="r", {BEARER}', f'{BEARER}, Basic realm="r"':
        assert challenge(alice(), header).url.startswith(REALM)


@pytest.mark.parametrize(
    ("status", "error", "is_answered"),
    [
        (401, "", True),
        (401, "insufficient_scope", True),
        (403, "insufficient_scope", True),
        (403, "invalid_token", False),
        (403, "", False),
        (200, "insufficient_scope", False),
        (404, "insufficient_scope", False),
    ],
)
def test_status_of_a_challenge(status: int, error: str, is_answered: bool) -> None:
    headers = {"WWW-Authenticate": f'{BEARER},error="{error}"'}
    assert (alice().challenged(TAGS, PULL, status, headers) is not None) == is_answered


@pytest.mark.parametrize("header", ["", "Negotiate", 'Digest realm="r"', "junk,=="])
def test_other_challenges_are_not_answered(header: str) -> None:
    login = alice()
    assert challenge(login, header) is None
    assert login.authorization(TAGS, PULL) is None


@pytest.mark.parametrize("realm", ["http://auth.example/", "ftp://auth.example", "/token", ""])
def test_realm_that_is_not_https_is_refused(realm: str) -> None:
    with pytest.raises(ValueError, match=r"^realm '.*' (?:uses http, which|is not a URL) "):
        challenge(alice(), f'Bearer realm="{realm}"')


def test_realm_of_a_registry_by_http_may_be_http() -> None:
    login = Login("http://localhost:5000", "alice", "x")
    url = "http://localhost:5000/v2/a/tags/list"
    request = challenge(login, 'Bearer realm="http://localhost:5001/token"', url, [])
    assert request.url == "http://localhost:5001/token"


# Where credentials go.


@pytest.mark.parametrize(
    ("url", "is_own"),
    [
        ("https://r.example/x", True),
        ("https://R.example:443/", True),
        ("http://r.example/m/v2/", False),
        ("http://r.example:443/m/v2/", False),
        ("https://r.example:5000/m/v2/", False),
        ("https://cdn.example/m/v2/", False),
        ("https://r.example@cdn.example/", False),
    ],
)
@pytest.mark.parametrize("header", [BEARER, "Basic"])
def test_credentials_go_only_to_the_registrys_origin(url: str, is_own: bool, header: str) -> None:
    login = alice()
    request = challenge(login, header, url)
    assert (request is not None) == (is_own and header == BEARER)
    if header == BEARER:
        answer(login, request or challenge(login))
    else:
        assert challenge(login, header) is None
    assert (login.authorization(url, PULL) is not None) == is_own
    assert login.authorization(TAGS, PULL) is not None


def test_token_that_has_ended_is_not_asked_for_another_origin(clock: list[float]) -> None:
    login = alice()
    answer(login, challenge(login))
    clock[0] += 1000
    assert login.prepare("https://cdn.example/x", PULL) is None


# Answers of token servers.


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((401, errors.Unauthorized), (403, errors.Denied), (429, errors.TooManyRequests)),
        *((400, errors.RegistryError), (503, errors.Unavailable), (500, errors.RegistryError)),
    ],
)
def test_refusal_is_the_registrys_error(status: int, error: type[Exception]) -> None:
    login = alice()
    body = b'{"details": "incorrect username or password"}'
    with pytest.raises(error, match="incorrect username or password"):
        login.granted(challenge(login), status, {"Retry-After": "3"}, body)
    assert login.authorization(TAGS, PULL) is None


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, "<html>Log in to this network", "token response '<html>"),
        (200, "{}", "token response has neither a 'token'"),
        (302, "", "token server 'https://auth.example/token"),
        (204, '{"token": "x"}', "token server 'https://auth.example/token"),
    ],
)
def test_answer_without_a_token_is_a_value_error(status: int, body: str, message: str) -> None:
    login = alice()
    with pytest.raises(ValueError, match=f"^{message}"):
        login.granted(challenge(login), status, {}, body)


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"username": "alice"}, "login needs both a username and a password"),
        ({"password": "x"}, "login needs both a username and a password"),
        ({"username": "a:b", "password": "x"}, "username 'a:b' must have no ':'"),
        (
            {"username": "a", "password": "x", "identity_token": "y"},
            "login has both a password and an identity token",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Login(ROOT, **arguments)


def test_root_is_that_of_a_url_builder() -> None:
    assert Login("https://h/m/").root == "https://h/m"
    for root in "h", "https://h/v2/":
        with pytest.raises(ValueError, match=r"^root .* "):
            Login(root)


def test_secrets_are_not_shown() -> None:
    login = alice()
    request = challenge(login)
    assert repr(login) == "Login('https://r.example/m')"
    assert ALICE not in repr(request)
    posted = login.granted(request, 405, {}, b"")
    assert "crèt" not in repr(posted)
    assert "secret" not in repr(Login(ROOT, identity_token="secret"))
