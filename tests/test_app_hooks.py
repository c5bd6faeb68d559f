"""Hooks of `RegistryApp`: their order and answers, and which responses are closed."""

from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest
from flask import abort
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.test import Client, create_environ
from werkzeug.wrappers import Response

from registry_routes import RegistryApp, RegistryRequest, errors, url_map

from .applications import code_of, fail, small_registry

#: The deeds of a view or a hook, each with the status that follows (`None`: no change).
DEEDS: dict[str, tuple[int | None, Callable[[], Any]]] = {
    "nothing": (None, lambda: None),
    "answer": (202, lambda: Response(status=202)),
    "deny": (403, lambda: fail(errors.Denied)),
    "abort": (418, lambda: abort(Response(status=418))),
    "break": (500, lambda: fail(ZeroDivisionError)),
    "return a string": (500, lambda: "a string"),
    "send a newline": (500, lambda: Response(headers={"X\n": "a"})),
    "send a bad status": (500, lambda: Response(status="over the moon")),
}


def do(deed: str, otherwise: Response | None) -> Any:
    return otherwise if deed == "nothing" else DEEDS[deed][1]()


@given(
    st.lists(st.sampled_from(list(DEEDS)), max_size=3),
    st.sampled_from(list(DEEDS)),
    st.lists(st.sampled_from(list(DEEDS)), max_size=3),
)
@example(["nothing", "answer", "deny"], "nothing", ["answer", "deny", "nothing"])
@example(["nothing"], "nothing", ["deny", "answer"])
def test_hook_sees_the_response_of_the_previous_hook(
    before: list[str], view: str, after: list[str]
) -> None:
    app = RegistryApp(url_map)
    app.view("catalog")(lambda request: do(view, Response()))
    for deed in before:
        app.before_request(lambda request, deed=deed: do(deed, None))
    statuses = []

    def see(request: RegistryRequest, response: Response, deed: str) -> Any:
        statuses.append(response.status_code)
        return do(deed, response)

    for deed in after:
        app.after_request(lambda request, response, deed=deed: see(request, response, deed))
    response = Client(validator(app)).get("/v2/_catalog", buffered=True)
    answers = [DEEDS[deed][0] for deed in before if DEEDS[deed][0]]
    expected = [answers[0] if answers else DEEDS[view][0] or 200]
    for deed in reversed(after):
        expected.append(DEEDS[deed][0] or expected[-1])
    assert [*statuses, response.status_code] == expected
    if response.status_code >= 500:
        assert code_of(response) == "UNKNOWN"


def test_hook_may_challenge_before_a_client_learns_which_routes_exist() -> None:
    app = small_registry()

    @app.before_request
    def challenge(request: RegistryRequest) -> None:
        if request.method != "OPTIONS":
            raise errors.Unauthorized(realm="https://auth.example/")

    for path in "/v2", "/v2/x", "/x", "/v2/A/tags/list":
        assert Client(app).put(path).status_code == 401
    assert Client(app).options("/v2/").headers["Allow"] == "GET, HEAD, OPTIONS"


def test_hook_that_returns_another_type_is_named_in_the_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = small_registry()

    @app.before_request
    def forgetful(request: RegistryRequest) -> Any:
        return "a string"

    assert Client(app).get("/v2/").status_code == 500
    assert "'forgetful' returned 'a string' instead of a Response" in caplog.text


def spoil(response: Response) -> Response:
    response.headers["X-Y"] = "ж"
    return response


@pytest.mark.parametrize(
    "hook",
    [
        lambda response: response,
        lambda response: Response("another"),
        lambda response: Response(response.iter_encoded()),
        lambda response: fail(errors.Denied),
        spoil,
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_response_is_closed_once_after_any_hook(
    hook: Callable[[Response], Any], method: str
) -> None:
    app = RegistryApp(url_map)
    closed: list[bool] = []

    def body() -> Iterator[bytes]:
        yield b"a"
        assert not closed
        yield b"b"

    @app.view("catalog")
    def catalog(request: RegistryRequest) -> Response:
        response = Response(body())
        response.call_on_close(lambda: closed.append(True))
        return response

    app.after_request(lambda request, response: response)
    app.after_request(lambda request, response: hook(response))
    response = Client(app).open("/v2/_catalog", method=method)
    assert response.data is not None
    response.close()
    assert closed == [True]


@pytest.mark.parametrize("testing", [True, False])
def test_responses_are_closed_where_nothing_is_sent(testing: bool) -> None:
    app = RegistryApp(url_map)
    app.testing = testing
    closed: list[str] = []

    def response_of(name: str) -> Response:
        response = Response([name])
        response.call_on_close(lambda: closed.append(name))
        return response

    app.view("catalog")(lambda request: response_of("view"))
    app.after_request(lambda request, response: response_of("hook"))
    if testing:
        app.after_request(lambda request, response: fail(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        app(create_environ("/v2/_catalog"), lambda *_: fail(ZeroDivisionError))
    assert closed == (["view"] if testing else ["view", "hook"])


@pytest.mark.parametrize("place", ["view", "before", "after"])
def test_exceptions_reach_the_test_if_testing_is_set(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = RegistryApp(url_map)
    app.testing = True
    app.view("catalog")(lambda request: do("break" if place == "view" else "nothing", Response()))
    app.view("base")(lambda request: do("deny", None))
    assert Client(app).get("/v2/").status_code == 403
    if place == "before":
        app.before_request(lambda request: do("break", None))
    elif place == "after":
        app.after_request(lambda request, response: do("send a newline", None))
    with pytest.raises(ValueError if place == "after" else ZeroDivisionError):
        Client(app).get("/v2/_catalog")
    assert not caplog.records
