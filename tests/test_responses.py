"""The answers of a registry as a client reads them: errors, and the time to wait."""

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from io import BytesIO
from typing import Any

import httpx
import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug import exceptions

from registry_routes import errors
from registry_routes.errors import RegistryError, Unauthorized
from registry_routes.responses import parse_errors, raise_for_status
from registry_routes.routes import RouteName

NO_REPOSITORY = "there is no such repository"


def with_code(code: str, message: object = "no") -> str:
    return json.dumps({"errors": [{"code": code, "message": message}]})


# Of each answer: the status, the body, and the exception, the code and the message that it becomes.
BODIES: list[tuple[int, str, type[Exception], str, str]] = [
    (404, with_code("UNSUPPORTED"), errors.RouteUnknown, "UNSUPPORTED", "no"),
    (403, with_code("NAME_UNKNOWN", 3), errors.NameUnknown, "NAME_UNKNOWN", NO_REPOSITORY),
    (404, with_code("TAG_EXPIRED"), exceptions.NotFound, "TAG_EXPIRED", "no"),
    (404, '{"errors": []}', exceptions.NotFound, "UNKNOWN", '{"errors": []}'),
    (404, "404 page not found\n", exceptions.NotFound, "UNKNOWN", "404 page not found"),
    (502, "<html>\n<TITLE>Bad &amp; ugly</title>…", exceptions.BadGateway, "UNKNOWN", "Bad & ugly"),
    (500, "<p>It <b>broke", exceptions.InternalServerError, "UNKNOWN", "It broke"),
    (401, '{"details":"wrong"}', errors.Unauthorized, "UNAUTHORIZED", "wrong"),
    (400, '{"error": "x", "error_description": "no"}', exceptions.BadRequest, "UNKNOWN", "no"),
    (400, '{"message": "no", "error": "x"}', exceptions.BadRequest, "UNKNOWN", "no"),
    (403, "\ufeff{}", errors.Denied, "DENIED", "\ufeff{}"),
    (599, "?", RegistryError, "UNKNOWN", "?"),
    (502, "<&#" + "9" * 4301, exceptions.BadGateway, "UNKNOWN", "<"),
    (502, f"<title>&#{'9' * 5000};&#65;", exceptions.BadGateway, "UNKNOWN", ";A"),
    (500, "[" * 100_000, exceptions.InternalServerError, "UNKNOWN", "[" * 500),
    # Statuses whose headers say more than the code.
    (401, with_code("DENIED"), errors.Unauthorized, "DENIED", "no"),
    (405, with_code("DENIED"), errors.Unsupported, "DENIED", "no"),
    (429, with_code("DENIED"), errors.TooManyRequests, "DENIED", "no"),
    (503, with_code("UNKNOWN"), errors.Unavailable, "UNKNOWN", "no"),
    (403, with_code("BLOCKED_BY_POLICY"), errors.Denied, "BLOCKED_BY_POLICY", "no"),
    (403, with_code(""), errors.Denied, "DENIED", "no"),
]


def test_bodies_of_real_registries() -> None:
    for status, body, kind, code, message in BODIES:
        [error] = parse_errors(status, body.encode())
        assert isinstance(error, kind)
        assert (error.code, error.error_code, error.message) == (status, code, message)
        assert repr(error) == f"<{type(error).__name__} '{status} {code}: {message}'>"
        assert json.loads(error.get_response().get_data())


def test_every_error_of_a_body_is_read_and_json_without_errors_is_the_detail() -> None:
    body = {"errors": [{"code": "DENIED", "message": "no"}, 3, {"code": "NAME_UNKNOWN"}]}
    found = parse_errors(403, json.dumps(body))
    assert [type(error) for error in found] == [errors.Denied, errors.NameUnknown]
    content = {"details": "incorrect password", "more": 1}
    assert parse_errors(401, json.dumps(content))[0].detail == content


def test_bearer_challenge_is_found_among_all_lines() -> None:
    bearer = 'Bearer Realm="https://a/t",service=s,error=insufficient_scope,scope="x:y:z w:v:u"'
    for lines in [f'Basic realm="b, Bearer realm=y", {bearer}'], ['Basic realm="b"', bearer]:
        [error] = parse_errors(401, b"", {"www-authenticate": lines})
        assert isinstance(error, Unauthorized)
        assert (error.realm, error.service, error.scope) == ("https://a/t", "s", "x:y:z w:v:u")
        assert error.error == "insufficient_scope"
        assert [challenge.scheme for challenge in error.challenges] == ["basic", "bearer"]


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        *((" 30, 60 ", 30), ("0", 0), ("0.2", 1), ("2.", 2), ("9" * 5000, 999_999_999)),
        *(("-1", None), ("soon", None)),
        *(("Tue, 24 Nov 2026 00:00:07 GMT", 7), ("Mon, 23 Nov 2026 00:00:00 GMT", 0)),
        ("Sun, 31 Dec 9999 23:59:59 -2300", 999_999_999),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2026 99999999999999999999:00:00 GMT", None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_retry_after(value: str, wait: object) -> None:
    headers = {"Retry-After": value, "Date": "Tue, 24 Nov 2026 00:00:00 GMT"}
    [error] = parse_errors(502, "", headers)
    assert error.retry_after == wait
    assert error.get_response().headers["Retry-After"] == value.strip()


@pytest.mark.parametrize("date", [{}, {"Date": "yesterday"}])
def test_retry_after_counts_from_now_without_a_date(date: dict[str, str]) -> None:
    time = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    [error] = parse_errors(503, "", {"Retry-After": time, **date})
    assert error.retry_after is not None
    assert 3500 < error.retry_after <= 3600


def test_allow_of_a_405() -> None:
    for allow in ["GET, HEAD"], ["GET", " HEAD,"], ["GET HEAD"]:
        [error] = parse_errors(405, with_code("DENIED"), {"Allow": allow})
        assert isinstance(error, errors.Unsupported)
        assert (error.error_code, error.valid_methods) == ("DENIED", ["GET", "HEAD"])


def response_of(library: Any, status: int, body: bytes, **headers: str) -> Any:
    if library is httpx:
        transport = httpx.MockTransport(
            lambda _: httpx.Response(status, content=body, headers=headers)
        )
        return httpx.Client(transport=transport).get("http://h/")
    response = requests.Response()
    response.status_code, response.raw = status, BytesIO(body)
    response.headers.update(headers)
    return response


@pytest.mark.parametrize("library", [requests, httpx])
class TestRaiseForStatus:
    def test_first_error_is_raised(self, library: Any) -> None:
        body = b'{"errors": [{"code": "NAME_UNKNOWN", "message": "no"}, {"code": "DENIED"}]}'
        with pytest.raises(errors.NameUnknown) as raised:
            raise_for_status(response_of(library, 404, body, **{"Retry-After": "9"}))
        assert (raised.value.message, raised.value.retry_after) == ("no", 9)
        with pytest.raises(errors.BlobUnknown):
            raise_for_status(response_of(library, 404, b""), endpoint="blob")

    def test_success_is_not_read(self, library: Any) -> None:
        for status in 200, 206, 307, 399:
            raise_for_status(response_of(library, status, b"content"))

    def test_only_the_beginning_of_a_body_is_read(self, library: Any) -> None:
        body = b'{"errors": [{"code": "DENIED", "message": "' + b"x" * 10**6 + b'"}]}'
        with pytest.raises(RegistryError) as raised:
            raise_for_status(response_of(library, 500, body))
        assert raised.value.message == body[:500].decode()


def test_streamed_responses_of_httpx_are_read() -> None:
    content = b'{"errors": [{"code": "DENIED"}]}'

    async def ask(has_read: bool) -> None:
        async with (
            httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client,
            client.stream("GET", "http://h/") as response,
        ):
            if has_read:
                await response.aread()
            raise_for_status(response)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 403})
        await send({"type": "http.response.body", "body": content})

    with pytest.raises(errors.Denied):
        asyncio.run(ask(True))
    with pytest.raises(RuntimeError, match="async"):
        asyncio.run(ask(False))
    transport = httpx.MockTransport(lambda _: httpx.Response(403, content=iter([content])))
    with (
        httpx.Client(transport=transport) as client,
        client.stream("GET", "http://h/") as answer,
        pytest.raises(errors.Denied),
    ):
        raise_for_status(answer)


PASSED_ON = {
    "WWW-Authenticate": [
        'Basic realm="Café"',
        'Bearer realm="https://a/t",error="e", Basic realm="b"',
    ],
    "Allow": ["GET", "GET, HEAD"],
    "Retry-After": ["0", "30", "Tue, 24 Nov 2026 00:00:00 GMT"],
    "Content-Range": ["bytes */1234"],
    "RateLimit-Limit": ["100"],
    "RateLimit-Remaining": ["0;w=21600"],
}


@pytest.mark.parametrize("status", [400, 401, 405, 416, 429, 503, 599])
def test_error_that_was_read_is_passed_on(status: int) -> None:
    body = {"errors": [{"code": "X", "message": "m", "detail": [1]}]}
    headers = [(name.lower(), value) for name, values in PASSED_ON.items() for value in values]
    [error] = parse_errors(status, json.dumps(body), [*headers, ("Set-Cookie", "secret")])
    response = error.get_response()
    assert response.status_code == status
    assert {name: response.headers.getlist(name) for name in PASSED_ON} == PASSED_ON
    assert json.loads(response.get_data()) == body
    assert "Set-Cookie" not in response.headers
    [error] = parse_errors(status, "")
    assert PASSED_ON.keys().isdisjoint(error.get_response().headers.keys())


ENDPOINTS = {
    "manifest": errors.ManifestUnknown,
    "blob": errors.BlobUnknown,
    "blob-upload-chunk": errors.BlobUploadUnknown,
    **dict.fromkeys(["tags", "blob-upload"], errors.NameUnknown),
}


@pytest.mark.parametrize("endpoint", RouteName)
def test_404_without_a_body_is_the_error_of_its_endpoint(endpoint: RouteName) -> None:
    for name in endpoint, f"registry.{endpoint}":
        [error] = parse_errors(404, endpoint=name)
        assert type(error) is ENDPOINTS.get(endpoint, errors.RouteUnknown)
        assert error.description == type(error).description
    # A body, a code or another status says more than the endpoint.
    assert type(parse_errors(404, with_code("DENIED"), endpoint=endpoint)[0]) is errors.Denied
    assert parse_errors(404, "404 page not found", endpoint=endpoint)[0].error_code == "UNKNOWN"
    assert parse_errors(500, endpoint=endpoint)[0].error_code == "UNKNOWN"
    assert parse_errors(404, endpoint="mine")[0].error_code == "UNKNOWN"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("404",), "status '404' is not an int"),
        ((True,), "status True is not an int"),
        ((404, None), "body None is neither bytes nor a string"),
        ((404, b"", "Allow: GET"), "headers 'Allow: GET' are neither a mapping nor pairs"),
    ],
)
def test_arguments_that_are_not_a_response_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        parse_errors(*arguments)


def test_status_is_an_int_from_400_to_999() -> None:
    assert type(parse_errors(HTTPStatus.NOT_FOUND)[0].code) is int
    assert [parse_errors(status)[0].code for status in (400, 999)] == [400, 999]
    for status in 399, 1000:
        with pytest.raises(ValueError, match=f"status {status} is not that of an error, 400 to "):
            parse_errors(status)


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
def test_junk_is_read_without_error(status: int, body: bytes, headers: dict[str, str]) -> None:
    found = parse_errors(status, body, headers)
    assert found
    for error in found:
        assert isinstance(error, RegistryError)
        assert error.code == status
        assert isinstance(error.description, str)
        assert isinstance(error.error_code, str)
        assert error.get_response().status_code == status
        json.loads(error.get_body())
