"""The errors as responses, and as a client reads them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug import exceptions
from werkzeug.datastructures import WWWAuthenticate

from registry_routes import Scope, errors
from registry_routes.errors import ERRORS, RegistryError, Unauthorized, Unsupported, read_errors

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


def test_every_code_is_there() -> None:
    assert set(ERRORS) == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_an_error_is_the_response_that_the_specification_has(code: str) -> None:
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
        [read] = read_errors(status, response.get_data(), dict(response.headers))
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
    [read] = read_errors(401, b"", {"www-authenticate": header})
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
def test_a_challenge_among_others(header: str) -> None:
    [read] = read_errors(401, b"", {"WWW-Authenticate": header})
    assert isinstance(read, Unauthorized)
    assert (read.realm, read.service, read.scope) == ("https://a/t", "s", "x:y:z w:v:u")


def test_what_cannot_stand_in_a_header_or_in_json_is_made_to() -> None:
    header = Unauthorized(realm="a\r\nX: y", scope=["b\n"]).get_response().headers
    assert header["WWW-Authenticate"] == 'Bearer realm="a X: y",scope="b"'
    body = errors.BlobUnknown(detail={"path": Path("x")}).get_body()
    assert json.loads(body)["errors"][0]["detail"] == {"path": "x"}


def test_retry_after_and_allow() -> None:
    for error_class in errors.TooManyRequests, errors.Unavailable:
        response = error_class(retry_after=30).get_response()
        assert response.headers["Retry-After"] == "30"
        for value, read in {
            "30": 30,
            "Tue, 24 Nov 2026 00:00:00 GMT": datetime(2026, 11, 24, tzinfo=UTC),
            "soon": None,
            "Mon, 01 Jan 99999999999 00:00:00 GMT": None,
            "Mon, 01 Jan 2026 99999999999999999999:00:00 GMT": None,
            "Sun, 31 Dec 9999 23:59:59 -2300": None,
            "9" * 5000: 999_999_999,
        }.items():
            [error] = read_errors(response.status_code, "", {"Retry-After": value})
            assert isinstance(error, error_class)
            assert error.retry_after == read
    allow = Unsupported(valid_methods=["GET", "HEAD"]).get_response().headers["Allow"]
    assert allow == "GET, HEAD"


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
    # A status whose headers say more than the code.
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
def test_what_registries_really_send(response: tuple[int, str], read: Read) -> None:
    status, body = response
    headers = {"WWW-Authenticate": 'Bearer realm="r"', "Retry-After": "7"}
    [error] = read_errors(status, body.encode(), headers)
    assert isinstance(error, read[0])
    if isinstance(error, errors.Unauthorized):
        assert error.realm == "r"
    if isinstance(error, errors.TooManyRequests | errors.Unavailable):
        assert error.retry_after == 7
    assert error.code == status
    assert (error.error_code, error.description) == read[1:]
    assert json.loads(error.get_response().get_data())


PASSED_ON = {
    (401, "WWW-Authenticate"): [
        'Basic realm="Registry Realm"',
        "Negotiate",
        'Bearer realm="https://a/t",service="s",error="insufficient_scope", Basic realm="b"',
    ],
    (405, "Allow"): ["GET", "GET, HEAD"],
    (429, "Retry-After"): ["30"],
    (503, "Retry-After"): ["30", "Tue, 24 Nov 2026 00:00:00 GMT"],
}


@pytest.mark.parametrize(("status", "header"), PASSED_ON)
def test_a_proxy_can_raise_what_it_has_read(status: int, header: str) -> None:
    for value in PASSED_ON[status, header]:
        body = '{"errors": [{"code": "X", "message": "m", "detail": [1]}]}'
        [error] = read_errors(status, body, {header.lower(): value})
        response = error.get_response()
        assert response.status_code == status
        assert response.headers.getlist(header) == [value]
        assert json.loads(response.get_data()) == json.loads(body)
    [error] = read_errors(status, "")
    assert header not in error.get_response().headers


def test_an_error_of_no_status_is_a_500() -> None:
    class Mine(RegistryError, exceptions.Conflict):
        error_code = "MINE"

    assert RegistryError("x").get_response().status_code == 500
    response = Mine().get_response()
    assert (response.status_code, json.loads(response.get_data())["errors"][0]["code"]) == (
        409,
        "MINE",
    )


def test_what_else_a_body_says_is_the_detail() -> None:
    content = {"details": "incorrect password", "more": 1}
    [error] = read_errors(401, json.dumps(content))
    assert error.detail == content


def test_every_error_of_a_body_is_read() -> None:
    body = {"errors": [{"code": "DENIED", "message": "no"}, 3, {"code": "NAME_UNKNOWN"}]}
    found = read_errors(403, json.dumps(body))
    assert [type(error) for error in found] == [errors.Denied, errors.NameUnknown]


KEYS = st.sampled_from(["errors", "code", "message", "detail", "error", ""]) | st.text()
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)


@given(
    st.sampled_from([200, 400, 401, 404, 418, 429, 503, 599, 0]),
    st.binary()
    | JSON.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda entry: json.dumps({"errors": [entry]}).encode()),
    st.dictionaries(
        st.sampled_from(["WWW-Authenticate", "Retry-After"]),
        st.text()
        | st.text(alphabet='Bearer realm="x,\\\\= \n')
        | st.from_regex(r"Mon, [0-9]{2} Jan [0-9]{1,30} [0-9]{2,30}:00:00 [-+]?[A-Z0-9]{1,5}"),
    ),
)
@example(401, b"", {"WWW-Authenticate": "Bearer"})
@example(401, b"", {"WWW-Authenticate": 'Bearer realm="'})
@example(429, b"", {"Retry-After": "٣"})
def test_junk_never_raises(status: int, body: bytes, headers: dict[str, str]) -> None:
    found = read_errors(status, body, headers)
    assert found
    for error in found:
        assert isinstance(error, RegistryError)
        assert error.code == status
        assert isinstance(error.description, str)
        assert isinstance(error.error_code, str)
        assert error.get_response().status_code == status
        json.loads(error.get_body())
