"""The errors as responses of a registry."""

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
from werkzeug import exceptions
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.test import Client

from registry_routes import error_response, errors
from registry_routes.challenges import Challenge
from registry_routes.errors import ERRORS, RegistryError, Unauthorized, Unsupported
from registry_routes.responses import parse_errors
from registry_routes.scopes import Scope

# The codes of each status: distribution-spec 1.1, "Error Codes", and Go distribution.
CODES = {
    400: """BLOB_UPLOAD_INVALID DIGEST_INVALID MANIFEST_INVALID NAME_INVALID SIZE_INVALID TAG_INVALID
        MANIFEST_UNVERIFIED PAGINATION_NUMBER_INVALID""",
    401: "UNAUTHORIZED",
    403: "DENIED",
    404: "BLOB_UNKNOWN BLOB_UPLOAD_UNKNOWN MANIFEST_BLOB_UNKNOWN MANIFEST_UNKNOWN NAME_UNKNOWN",
    405: "UNSUPPORTED",
    416: "RANGE_INVALID",
    429: "TOOMANYREQUESTS",
    500: "UNKNOWN",
    503: "UNAVAILABLE",
}
STATUSES = {code: status for status, codes in CODES.items() for code in codes.split()}


@pytest.mark.parametrize("code", sorted({*STATUSES, *ERRORS}))
def test_response_of_each_error(code: str) -> None:
    status, error_class = STATUSES[code], ERRORS[code]
    implied = exceptions.default_exceptions[status]
    assert issubclass(error_class, implied)
    assert error_class.__doc__
    login: dict[str, Any] = {"challenge": "Basic"} if code == "UNAUTHORIZED" else {}
    for message, detail in (None, None), ("é\n", {"a": [1]}):
        with pytest.raises(implied) as raised:
            raise error_class(message, detail=detail, **login)
        response = raised.value.get_response()
        assert response.status_code == status
        assert response.headers.getlist("Content-Type") == ["application/json"]
        (entry,) = json.loads(response.get_data())["errors"]
        assert error_class.description
        wanted = {"code": code, "message": message or error_class.description}
        assert entry == wanted | ({} if detail is None else {"detail": detail})
        [read] = parse_errors(status, response.get_data(), dict(response.headers))
        assert type(read) is error_class
        assert (read.description, read.detail) == (entry["message"], detail)


@pytest.mark.parametrize("options", [{"realm": ""}, {"scope": []}, {"headers": [("Allow", "x")]}])
def test_unauthorized_without_a_challenge_is_a_type_error(options: Any) -> None:
    with pytest.raises(TypeError, match=r"^Unauthorized\(\) has no challenge: give it a realm= or"):
        Unauthorized("no", **options)
    [read] = parse_errors(401)
    assert "WWW-Authenticate" not in read.get_response().headers


def test_challenge_of_unauthorized_is_quoted() -> None:
    scopes = [Scope("repository", "a/b", ("pull", "push")), Scope("repository", "c", ("pull",))]
    error = Unauthorized(realm='https://auth/"x', service="registry.example", scope=scopes)
    assert error.get_response().headers["WWW-Authenticate"] == (
        r'Bearer realm="https://auth/\"x",service="registry.example",'
        'scope="repository:a/b:pull,push repository:c:pull"'
    )
    [challenge] = error.challenges
    assert (challenge.realm, challenge.service) == (error.realm, error.service)
    assert challenge.scope == error.scope


def test_control_characters_and_objects_are_made_sendable() -> None:
    header = Unauthorized(realm="a\r\nX: y", scope=["b\n"]).get_response().headers
    assert header["WWW-Authenticate"] == 'Bearer realm="a X: y",scope="b"'
    body = errors.BlobUnknown(detail={"path": Path("x")}).get_body()
    assert json.loads(body)["errors"][0]["detail"] == {"path": "x"}


def test_each_challenge_has_its_own_line() -> None:
    basic = Challenge("basic", {"realm": "r"})
    for options in (
        {"headers": [("WWW-Authenticate", str(basic))]},
        {"www_authenticate": WWWAuthenticate("basic", {"realm": "r"})},
    ):
        error = Unauthorized(realm="https://a/t", **options)
        lines = error.get_response().headers.getlist("WWW-Authenticate")
        assert len(lines) == 2
        assert sorted(challenge.realm for challenge in error.challenges) == ["https://a/t", "r"]
    assert Unauthorized(challenge=basic).challenges == [basic]


HOSTILE = ["\r\nX: y", *"\n\r\x00\x1f\x7f\x85é€\u2028\ud800🐳"]
WITH_HEADERS: dict[str, Callable[[str], RegistryError]] = {
    "realm": lambda text: Unauthorized(realm=f"https://a/{text}"),
    "service": lambda text: Unauthorized(realm="r", service=text),
    "scope": lambda text: Unauthorized(realm="r", scope=[text, "b"]),
    "error": lambda text: Unauthorized(error=f"a{text}"),
    "challenge": lambda text: Unauthorized(challenge=f'Basic realm="a{text}"'),
    "www_authenticate": lambda text: Unauthorized(www_authenticate=WWWAuthenticate(text)),
    "Allow": lambda text: Unsupported(valid_methods=["GET", f"A{text}"]),
    "Retry-After": lambda text: errors.Unavailable(retry_after=f"3{text}"),
    "Content-Range": lambda text: errors.RangeInvalid(length=3, units=f"a{text}"),
    "headers": lambda text: RegistryError(headers=[("X-Thing", text)]),
    "read": lambda text: parse_errors(401, b"", [("WWW-Authenticate", f"a{text}b")])[0],
    "read 405": lambda text: parse_errors(405, b"", [("Allow", f"a{text}b")])[0],
    "read 503": lambda text: parse_errors(503, b"", [("Retry-After", f"a{text}b")])[0],
}


@pytest.mark.parametrize("made", WITH_HEADERS)
def test_hostile_text_in_a_header_is_made_sendable(made: str) -> None:
    for text in HOSTILE:
        error = WITH_HEADERS[made](text)
        app = validator(error_response(error))  # WSGI's own rules
        response = Client(app).get("/v2/", buffered=True)
        assert response.status_code == error.code
        assert "X" not in response.headers
        for name, value in error.get_headers():
            assert value in response.headers.getlist(name)
            assert value.encode("latin-1").isascii() or text in ("é", "\x85")
            assert value.isprintable() or text == "\x85"


def test_realm_outside_ascii_is_percent_encoded() -> None:
    [challenge] = Unauthorized(realm="https://a/€?x=é%2f&y=2").challenges
    assert challenge.realm == challenge.token_url() == "https://a/%E2%82%AC?x=%C3%A9%2f&y=2"


def everything() -> Iterator[RegistryError]:
    for error_class in [*ERRORS.values(), errors.RouteUnknown, RegistryError]:
        headers = [("X-Thing", "1"), ("WWW-Authenticate", "Basic")]
        yield error_class("é", detail={"a": [1]}, headers=headers)
    yield Unauthorized(realm="https://a/t", service="s", scope="a:b:c", error="e")
    yield Unauthorized(www_authenticate=WWWAuthenticate("basic", {"realm": "r"}))
    yield Unsupported(valid_methods=["GET"])
    yield errors.Unavailable(retry_after=datetime(2026, 11, 24, tzinfo=UTC))
    yield errors.RangeInvalid(length=3)
    headers = [("WWW-Authenticate", "Basic"), ("Allow", "GET"), ("Retry-After", "9")]
    body = '{"errors": [{"code": "X", "detail": {"a": NaN}}, {"code": "DENIED", "message": "m"}]}'
    for status in 401, 403, 404, 405, 418, 429, 502, 503, 599:
        yield from parse_errors(status, body, headers)
        yield from parse_errors(status)


@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL, None])
def test_errors_are_pickled_and_copied(protocol: int | None) -> None:
    for error in everything():
        error.add_note("a note")
        is_copied = protocol is None
        other = copy.copy(error) if is_copied else pickle.loads(pickle.dumps(error, protocol))
        assert type(other) is type(error)
        assert other.__dict__.keys() == error.__dict__.keys()
        for name, value in error.__dict__.items():
            assert repr(other.__dict__[name]) == repr(value)  # NaN does not equal itself
        assert (str(other), repr(other)) == (str(error), repr(error))
        assert other.get_body() == error.get_body()
        assert other.get_headers() == error.get_headers()


NESTED: Any = []
for _ in range(100_000):
    NESTED = [NESTED]
CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)


@pytest.mark.parametrize(
    ("detail", "written"),
    [
        (float("nan"), "NaN"),
        ({"a": [float("inf"), -float("inf"), 1.5]}, {"a": ["Infinity", "-Infinity", 1.5]}),
        ({float("nan"): 1}, {"NaN": 1}),
        ({Path("x"): 1}, "{PosixPath('x'): 1}"),
        (NESTED, "[[[[[[[...]]]]]]]"),
        (CIRCULAR, "[[[[[[[...]]]]]]]"),
    ],
    ids=lambda value: str(type(value)),
)
def test_detail_that_json_cannot_hold_is_a_string(detail: Any, written: Any) -> None:
    response = error_response([errors.BlobUnknown(detail=detail), errors.NameUnknown("none")])
    first, second = json.loads(response.get_data(), parse_constant=pytest.fail)["errors"]
    assert first["detail"] == written
    assert second == {"code": "NAME_UNKNOWN", "message": "none"}


def test_deeply_nested_detail_is_rendered() -> None:
    for depth in range(100, 1001, 100):
        body = '{"errors": [{"code": "DENIED", "detail": ' + "[" * depth + "]" * depth + "}]}"
        [error] = parse_errors(403, body)
        assert json.loads(error.get_body())["errors"][0]["code"] == "DENIED"


def test_allow_and_retry_after_are_written() -> None:
    time = datetime(2026, 11, 24, tzinfo=UTC)
    assert errors.Unavailable(retry_after=30).get_response().headers["Retry-After"] == "30"
    for moment in time, time.replace(tzinfo=None), time.astimezone(timezone(timedelta(hours=1))):
        error = errors.TooManyRequests(retry_after=moment)
        [sent] = error.get_response().headers.getlist("Retry-After")
        assert sent == "Tue, 24 Nov 2026 00:00:00 GMT"
        assert type(error.retry_after) is int
    allow = Unsupported(valid_methods=["GET", "HEAD"]).get_response().headers["Allow"]
    assert allow == "GET, HEAD"


def test_own_error_has_its_code_and_the_status_of_its_class() -> None:
    class Mine(RegistryError, exceptions.Conflict):
        error_code = "MINE"

    response = Mine().get_response()
    assert response.status_code == 409
    assert json.loads(response.get_data())["errors"][0]["code"] == "MINE"
    assert RegistryError("x").get_response().status_code == 500
