"""The errors: as responses of a registry, and as a client reads them."""

import copy
import json
import pickle
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug import exceptions
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.test import Client

from registry_routes import error_response, errors
from registry_routes.challenges import Challenge
from registry_routes.errors import ERRORS, RegistryError, Unauthorized, Unsupported
from registry_routes.responses import parse_errors
from registry_routes.routes import RouteName
from registry_routes.scopes import Scope

# Status and exception of each code: distribution-spec 1.1, "Error Codes", and Go distribution.
CODES: dict[str, tuple[int, type[exceptions.HTTPException]]] = {
    "BLOB_UNKNOWN": (404, exceptions.NotFound),
    "BLOB_UPLOAD_INVALID": (400, exceptions.BadRequest),
    "BLOB_UPLOAD_UNKNOWN": (404, exceptions.NotFound),
    "DIGEST_INVALID": (400, exceptions.BadRequest),
    "MANIFEST_BLOB_UNKNOWN": (404, exceptions.NotFound),
    "MANIFEST_INVALID": (400, exceptions.BadRequest),
    "MANIFEST_UNKNOWN": (404, exceptions.NotFound),
    "NAME_INVALID": (400, exceptions.BadRequest),
    "NAME_UNKNOWN": (404, exceptions.NotFound),
    "SIZE_INVALID": (400, exceptions.BadRequest),
    "UNAUTHORIZED": (401, exceptions.Unauthorized),
    "DENIED": (403, exceptions.Forbidden),
    "UNSUPPORTED": (405, exceptions.MethodNotAllowed),
    "TOOMANYREQUESTS": (429, exceptions.TooManyRequests),
    "TAG_INVALID": (400, exceptions.BadRequest),
    "MANIFEST_UNVERIFIED": (400, exceptions.BadRequest),
    "RANGE_INVALID": (416, exceptions.RequestedRangeNotSatisfiable),
    "PAGINATION_NUMBER_INVALID": (400, exceptions.BadRequest),
    "UNAVAILABLE": (503, exceptions.ServiceUnavailable),
    "UNKNOWN": (500, exceptions.InternalServerError),
}


def test_every_error_code_has_an_exception() -> None:
    assert set(ERRORS) == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_an_error_renders_the_response_of_the_specification(code: str) -> None:
    status, implied = CODES[code]
    error_class = ERRORS[code]
    assert error_class.__doc__
    assert issubclass(error_class, implied)
    for message, detail in (None, None), ("é\n", {"a": [1]}):
        with pytest.raises(implied) as raised:
            raise error_class(message, detail=detail)
        response = raised.value.get_response()
        assert response.status_code == status
        assert response.headers.getlist("Content-Type") == ["application/json"]
        (entry,) = json.loads(response.get_data())["errors"]
        assert entry["code"] == code
        assert entry["message"] == (message or error_class.description) != ""
        assert entry.get("detail") == detail
        assert ("detail" in entry) == (detail is not None)
        [read] = parse_errors(status, response.get_data(), dict(response.headers))
        assert type(read) is error_class
        assert (read.description, read.detail) == (entry["message"], detail)


def test_a_challenge_is_quoted_and_read_back() -> None:
    scopes = [Scope("repository", "a/b", ("pull", "push")), Scope("repository", "c", ("pull",))]
    error = Unauthorized(realm='https://auth/"x', service="registry.example", scope=scopes)
    header = error.get_response().headers["WWW-Authenticate"]
    assert header == (
        r'Bearer realm="https://auth/\"x",service="registry.example",'
        'scope="repository:a/b:pull,push repository:c:pull"'
    )
    parsed = WWWAuthenticate.from_header(header)
    assert parsed
    assert parsed.type == "bearer"
    assert parsed.parameters["realm"] == 'https://auth/"x'
    [read] = parse_errors(401, b"", {"www-authenticate": header})
    assert isinstance(read, Unauthorized)
    assert (read.realm, read.service, read.scope) == (error.realm, error.service, error.scope)
    assert "WWW-Authenticate" not in Unauthorized().get_response().headers
    bare = Unauthorized(realm="r").get_response().headers["WWW-Authenticate"]
    assert bare == 'Bearer realm="r"'


@pytest.mark.parametrize(
    "header",
    [
        'Bearer realm="https://a/t",service="s",scope="x:y:z w:v:u"',
        'bearer service=s, scope="x:y:z w:v:u", realm="https://a/t"',
        'Basic realm="x, Bearer realm=y", Bearer realm="https://a/t",service="s",scope="x:y:z w:v:u"',
        'Negotiate, Bearer realm="https://a/t",service="s",scope="x:y:z w:v:u"',
        'Bearer realm="https://a/t",service="s",scope="x:y:z w:v:u", Basic realm="b"',
    ],
)
def test_the_bearer_challenge_is_found_among_others(header: str) -> None:
    [read] = parse_errors(401, b"", {"WWW-Authenticate": header})
    assert isinstance(read, Unauthorized)
    assert (read.realm, read.service, read.scope) == ("https://a/t", "s", "x:y:z w:v:u")


def test_control_characters_and_details_outside_json_are_made_sendable() -> None:
    header = Unauthorized(realm="a\r\nX: y", scope=["b\n"]).get_response().headers
    assert header["WWW-Authenticate"] == 'Bearer realm="a X: y",scope="b"'
    body = errors.BlobUnknown(detail={"path": Path("x")}).get_body()
    assert json.loads(body)["errors"][0]["detail"] == {"path": "x"}


def test_retry_after_and_allow_are_written_and_read() -> None:
    for error_class in errors.TooManyRequests, errors.Unavailable:
        response = error_class(retry_after=30).get_response()
        assert response.headers["Retry-After"] == "30"
        for value, read in {
            "30": 30,
            "Tue, 24 Nov 2026 00:00:00 GMT": datetime(2026, 11, 24, tzinfo=UTC),
            "soon": None,
            "Mon, 01 Jan 99999999999 00:00:00 GMT": None,
            " 30 ": 30,
            "30, 60": 30,
            "0": 0,
            "Mon, 01 Jan 2026 99999999999999999999:00:00 GMT": None,
            "Sun, 31 Dec 9999 23:59:59 -2300": None,
            "9" * 5000: 999_999_999,
        }.items():
            [error] = parse_errors(response.status_code, "", {"Retry-After": value})
            assert isinstance(error, error_class)
            assert error.retry_after == read
            # Any other error may have it too.
            assert parse_errors(502, "", {"Retry-After": value})[0].retry_after == read
    allow = Unsupported(valid_methods=["GET", "HEAD"]).get_response().headers["Allow"]
    assert allow == "GET, HEAD"
    for header in ["GET, HEAD"], ["GET", " HEAD,"], ["GET HEAD"]:
        [error] = parse_errors(405, '{"errors": [{"code": "DENIED"}]}', {"Allow": header})
        assert isinstance(error, Unsupported)
        assert (error.error_code, error.valid_methods) == ("DENIED", ["GET", "HEAD"])


Read = tuple[type[Exception], str, str]
BODIES: dict[tuple[int, str], Read] = {
    (404, '{"errors": [{"code": "UNSUPPORTED", "message": "no"}]}'): (
        *(errors.RouteUnknown, "UNSUPPORTED", "no"),
    ),
    (403, '{"errors": [{"code": "NAME_UNKNOWN", "message": 3}]}'): (
        *(errors.NameUnknown, "NAME_UNKNOWN", "there is no such repository"),
    ),
    (404, '{"errors": [{"code": "TAG_EXPIRED", "message": "x"}]}'): (
        *(exceptions.NotFound, "TAG_EXPIRED", "x"),
    ),
    (405, '{"errors": [{"code": "DENIED", "message": "no"}]}'): (
        *(errors.Unsupported, "DENIED", "no"),
    ),
    (404, '{"errors": []}'): (exceptions.NotFound, "UNKNOWN", '{"errors": []}'),
    (404, "404 page not found\n"): (exceptions.NotFound, "UNKNOWN", "404 page not found"),
    (404, ""): (exceptions.NotFound, "UNKNOWN", "Not Found"),
    (405, "Method not allowed"): (errors.Unsupported, "UNSUPPORTED", "Method not allowed"),
    (502, "<html>\n<head><title>502 Bad &amp; ugly</title></head>…"): (
        *(exceptions.BadGateway, "UNKNOWN", "502 Bad & ugly"),
    ),
    (500, "<p>It <b>broke"): (exceptions.InternalServerError, "UNKNOWN", "It broke"),
    (401, '{"details":"incorrect password"}'): (
        *(errors.Unauthorized, "UNAUTHORIZED", "incorrect password"),
    ),
    (400, '{"error": "invalid_scope", "error_description": "no"}'): (
        *(exceptions.BadRequest, "UNKNOWN", "no"),
    ),
    (403, "\ufeff{}"): (errors.Denied, "DENIED", "\ufeff{}"),
    (599, "?"): (RegistryError, "UNKNOWN", "?"),
    (500, "[" * 100_000): (exceptions.InternalServerError, "UNKNOWN", "[" * 500),
    (404, "<HTML><TITLE>Not here</TITLE><p>nginx"): (exceptions.NotFound, "UNKNOWN", "Not here"),
    (400, '{"message": "no", "error": "x"}'): (exceptions.BadRequest, "UNKNOWN", "no"),
    # Statuses whose headers say more than the code.
    (401, '{"errors": [{"code": "DENIED", "message": "no"}]}'): (
        *(errors.Unauthorized, "DENIED", "no"),
    ),
    (429, '{"errors": [{"code": "DENIED", "message": "slow"}]}'): (
        *(errors.TooManyRequests, "DENIED", "slow"),
    ),
    (503, '{"errors": [{"code": "UNKNOWN", "message": "wait"}]}'): (
        *(errors.Unavailable, "UNKNOWN", "wait"),
    ),
    (403, '{"errors": [{"code": "BLOCKED_BY_POLICY", "message": "no"}]}'): (
        *(errors.Denied, "BLOCKED_BY_POLICY", "no"),
    ),
    (403, '{"errors": [{"code": "", "message": "no"}]}'): (errors.Denied, "DENIED", "no"),
}


@pytest.mark.parametrize(("response", "read"), BODIES.items(), ids=lambda x: str(x)[:30])
def test_bodies_that_registries_really_send_are_read(response: tuple[int, str], read: Read) -> None:
    status, body = response
    headers = {"WWW-Authenticate": 'Bearer realm="r"', "Retry-After": "7"}
    [error] = parse_errors(status, body.encode(), headers)
    assert isinstance(error, read[0])
    if isinstance(error, errors.Unauthorized):
        assert error.realm == "r"
    if isinstance(error, errors.TooManyRequests | errors.Unavailable):
        assert error.retry_after == 7
    assert error.code == status
    assert (error.error_code, error.description) == read[1:]
    assert json.loads(error.get_response().get_data())


PASSED_ON = {
    "WWW-Authenticate": [
        'Basic realm="Registry Realm"',
        "Negotiate",
        'Bearer realm="https://a/t",service="s",error="insufficient_scope", Basic realm="b"',
        'Basic realm="Café"',
    ],
    "Allow": ["GET", "GET, HEAD"],
    "Retry-After": ["0", "30", "Tue, 24 Nov 2026 00:00:00 GMT"],
    "Content-Range": ["bytes */1234"],
    "RateLimit-Remaining": ["0;w=21600"],
}


@pytest.mark.parametrize("code", ["X", "DENIED", "UNAUTHORIZED"])
@pytest.mark.parametrize("header", PASSED_ON)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 416, 429, 500, 502, 503, 599])
def test_an_error_that_was_read_can_be_passed_on(status: int, header: str, code: str) -> None:
    body = {"errors": [{"code": code, "message": "m", "detail": [1]}]}
    for values in [[value] for value in PASSED_ON[header]] + [PASSED_ON[header]]:
        headers = [(header.lower(), value) for value in values]
        [error] = parse_errors(status, json.dumps(body), headers)
        response = error.get_response()
        assert response.status_code == status
        assert response.headers.getlist(header) == values
        assert json.loads(response.get_data()) == body
    [error] = parse_errors(status, "")
    assert header not in error.get_response().headers


def test_every_challenge_of_every_header_line_is_read() -> None:
    lines = ['Basic realm="r"', 'Bearer Realm="https://a/t",error=insufficient_scope']
    [error] = parse_errors(401, b"", {"www-authenticate": lines})
    assert isinstance(error, Unauthorized)
    assert (error.realm, error.service, error.error) == ("https://a/t", "", "insufficient_scope")
    assert [challenge.realm for challenge in error.challenges] == ["r", "https://a/t"]
    assert error.challenges[1].token_url(scopes=[]) == "https://a/t"


def test_an_error_says_why_the_token_is_not_enough() -> None:
    error = Unauthorized(realm="https://a/t", scope="a:b:c", error="insufficient_scope")
    assert error.get_response().headers["WWW-Authenticate"] == (
        'Bearer realm="https://a/t",scope="a:b:c",error="insufficient_scope"'
    )
    [read] = parse_errors(401, error.get_body(), error.get_headers())
    assert isinstance(read, Unauthorized)
    assert read.error == error.error


def test_each_challenge_is_sent_in_its_own_line() -> None:
    basic = Challenge("basic", {"realm": "r"})
    for options in (
        {"headers": [("WWW-Authenticate", str(basic))]},
        {"www_authenticate": WWWAuthenticate("basic", {"realm": "r"})},
    ):
        error = Unauthorized(realm="https://a/t", **options)
        lines = error.get_response().headers.getlist("WWW-Authenticate")
        assert sorted(line.partition(" ")[0] for line in lines) == ["Basic", "Bearer"]
        assert sorted(one.realm for one in error.challenges) == ["https://a/t", "r"]
    assert Unauthorized(challenge=basic).challenges == [basic]


HOSTILE = [
    "\r\nX: y",
    "\n",
    "\r",
    "\x00",
    "\x1f",
    "\x7f",
    "\x85",
    "é",
    "€",
    "\u2028",
    "\ud800",
    "🐳",
]
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
    **{
        f"{name} of {status}": partial(
            lambda status, name, text: parse_errors(status, b"", [(name, f"a{text}b")])[0],
            status,
            name,
        )
        for name in PASSED_ON
        for status in (401, 405, 416, 429, 502, 503)
    },
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


def test_a_realm_outside_ascii_is_percent_encoded() -> None:
    for realm, sent in {
        "https://a/€?x=é%2f": "https://a/%E2%82%AC?x=%C3%A9%2f",
        "https://a/t?x=1&y=2": "https://a/t?x=1&y=2",
    }.items():
        [challenge] = Unauthorized(realm=realm).challenges
        assert challenge.realm == sent
        assert challenge.token_url() == sent


ENDPOINTS = {
    "base": errors.RouteUnknown,
    "manifest": errors.ManifestUnknown,
    "tags": errors.NameUnknown,
    "blob": errors.BlobUnknown,
    "blob-upload": errors.NameUnknown,
    "blob-upload-chunk": errors.BlobUploadUnknown,
    "referrers": errors.RouteUnknown,
    "catalog": errors.RouteUnknown,
    "extension": errors.RouteUnknown,
}


@pytest.mark.parametrize("endpoint", RouteName)
def test_a_404_without_a_body_gets_the_error_of_its_endpoint(endpoint: RouteName) -> None:
    wanted = ENDPOINTS[endpoint]
    for asked in endpoint, str(endpoint), f"registry.{endpoint}":
        [error] = parse_errors(404, endpoint=asked)
        assert type(error) is wanted
        assert (error.code, error.error_code) == (404, wanted.error_code)
        assert error.description == wanted.description
    # A body, a code or another status says more than the endpoint.
    body = b'{"errors": [{"code": "NAME_UNKNOWN"}]}'
    assert type(parse_errors(404, body, endpoint=endpoint)[0]) is errors.NameUnknown
    assert parse_errors(404, "404 page not found", endpoint=endpoint)[0].error_code == "UNKNOWN"
    assert type(parse_errors(401, endpoint=endpoint)[0]) is Unauthorized
    assert parse_errors(500, endpoint=endpoint)[0].error_code == "UNKNOWN"
    assert parse_errors(404, endpoint="mine")[0].error_code == "UNKNOWN"


class Response:
    status_code = 404


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Response(),), TypeError, "status must be an int, not <"),
        (("404",), TypeError, "status must be an int, not '404'"),
        ((None,), TypeError, "status must be an int, not None"),
        ((True,), TypeError, "status must be an int, not True"),
        ((404.0,), TypeError, "status must be an int, not 404.0"),
        ((200,), ValueError, "status 200 must be that of an error, 400 to 999"),
        ((HTTPStatus.PERMANENT_REDIRECT,), ValueError, "must be that of an error"),
        ((1000,), ValueError, "status 1000 must be that of an error"),
        ((404, None), TypeError, "body must be bytes or a string, not None"),
        ((404, {"errors": []}), TypeError, "body must be bytes or a string, not {"),
        ((404, b"", "Allow: GET"), TypeError, "headers must be a mapping or pairs, not 'Allow"),
    ],
)
def test_arguments_that_are_not_a_response_are_refused(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        parse_errors(*arguments)


def test_the_status_becomes_a_plain_int() -> None:
    [error] = parse_errors(HTTPStatus.NOT_FOUND)
    assert type(error.code) is int


def everything() -> Iterator[RegistryError]:
    for error_class in [*ERRORS.values(), errors.RouteUnknown, RegistryError]:
        yield error_class("é", detail={"a": [1]}, headers=[("X-Thing", "1")])
    yield Unauthorized(realm="https://a/t", service="s", scope="a:b:c", error="e")
    yield Unauthorized(www_authenticate=WWWAuthenticate("basic", {"realm": "r"}))
    yield Unsupported(valid_methods=["GET"])
    yield errors.Unavailable(retry_after=datetime(2026, 11, 24, tzinfo=UTC))
    yield errors.RangeInvalid(length=3)
    headers = [(name, value) for name, values in PASSED_ON.items() for value in values]
    body = '{"errors": [{"code": "X", "detail": {"a": NaN}}, {"code": "DENIED", "message": "m"}]}'
    for status in range(400, 600):
        yield from parse_errors(status, body, headers)
        yield from parse_errors(status)


@pytest.mark.parametrize(
    "copied",
    [
        *(partial(pickle.dumps, protocol=n) for n in range(pickle.HIGHEST_PROTOCOL + 1)),
        copy.copy,
        copy.deepcopy,
    ],
)
def test_every_error_can_be_pickled_and_copied(copied: Callable[[Any], Any]) -> None:
    for error in everything():
        error.add_note("a note")
        result = copied(error)
        other = pickle.loads(result) if isinstance(result, bytes) else result
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
        ({"a": {1, 2}}, {"a": "{1, 2}"}),
        ({Path("x"): 1}, "{PosixPath('x'): 1}"),
        (NESTED, "[[[[[[[...]]]]]]]"),
        (CIRCULAR, "[[[[[[[...]]]]]]]"),
    ],
    ids=lambda value: str(type(value)),
)
def test_a_detail_that_json_cannot_hold_is_written_as_a_string(detail: Any, written: Any) -> None:
    response = error_response([errors.BlobUnknown(detail=detail), errors.NameUnknown("none")])
    first, second = json.loads(response.get_data(), parse_constant=pytest.fail)["errors"]
    assert first["detail"] == written
    assert second == {"code": "NAME_UNKNOWN", "message": "none"}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_nan_and_infinity_in_a_detail_are_not_passed_on(number: str) -> None:
    body = f'{{"errors": [{{"code": "DENIED", "message": "m", "detail": {{"a": {number}}}}}]}}'
    [error] = parse_errors(403, body)
    json.loads(error.get_body(), parse_constant=pytest.fail)
    body = f'{{"message": "m", "a": {number}}}'
    json.loads(parse_errors(403, body)[0].get_body(), parse_constant=pytest.fail)


@pytest.mark.parametrize("depth", range(100, 1001, 50))
def test_a_deeply_nested_detail_is_rendered(depth: int) -> None:
    body = '{"errors": [{"code": "DENIED", "detail": ' + "[" * depth + "]" * depth + "}]}"
    [error] = parse_errors(403, body)
    assert json.loads(error.get_body())["errors"][0]["code"] == "DENIED"


def test_an_error_without_a_status_is_a_500() -> None:
    class Mine(RegistryError, exceptions.Conflict):
        error_code = "MINE"

    assert RegistryError("x").get_response().status_code == 500
    response = Mine().get_response()
    assert (response.status_code, json.loads(response.get_data())["errors"][0]["code"]) == (
        409,
        "MINE",
    )


def test_json_without_errors_becomes_the_detail() -> None:
    content = {"details": "incorrect password", "more": 1}
    [error] = parse_errors(401, json.dumps(content))
    assert error.detail == content


def test_every_error_of_a_body_is_read() -> None:
    body = {"errors": [{"code": "DENIED", "message": "no"}, 3, {"code": "NAME_UNKNOWN"}]}
    found = parse_errors(403, json.dumps(body))
    assert [type(error) for error in found] == [errors.Denied, errors.NameUnknown]


KEYS = st.sampled_from(["errors", "code", "message", "detail", "error", ""]) | st.text()
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)


@given(
    st.sampled_from([400, 401, 403, 404, 405, 416, 418, 429, 503, 599, 999]),
    st.binary()
    | JSON.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda entry: json.dumps({"errors": [entry]}).encode()),
    st.dictionaries(
        st.sampled_from(["WWW-Authenticate", "Retry-After", "Allow", "Content-Range"]),
        st.text()
        | st.text(alphabet='Bearer realm="x,\\\\= \n')
        | st.from_regex(r"Mon, [0-9]{2} Jan [0-9]{1,30} [0-9]{2,30}:00:00 [-+]?[A-Z0-9]{1,5}"),
    ),
)
@example(401, b"", {"WWW-Authenticate": "Bearer"})
@example(401, b"", {"WWW-Authenticate": 'Bearer realm="'})
@example(429, b"", {"Retry-After": "٣"})
def test_parsing_junk_never_raises(status: int, body: bytes, headers: dict[str, str]) -> None:
    found = parse_errors(status, body, headers)
    assert found
    for error in found:
        assert isinstance(error, RegistryError)
        assert error.code == status
        assert isinstance(error.description, str)
        assert isinstance(error.error_code, str)
        assert error.get_response().status_code == status
        json.loads(error.get_body())
