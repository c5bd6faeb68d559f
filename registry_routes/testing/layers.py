"""The WSGI wrappers around a test's registry, each for a single purpose.

From the outermost to the innermost, they are:

1. `Recorder`: matches the request, records it, and renders the errors that the others raise.
2. `Faults`: fails the requests that a test plans to fail.
3. `BasicLogin` or `BearerLogin`: refuses requests without a login.
4. `Locations`: writes each ``Location`` as another registry would.
5. `RedirectedBlobs`: redirects clients to another origin for the content of a blob.
6. `NoSinglePost`: makes clients push a blob with a POST and a PUT, not with a single POST.
7. `MinimumChunks`: refuses chunks that are too small.
8. `lenient.MadeUpDigests`: serves content under digests that the registry's views refuse.

The application comes last. All but the first find the recorded request by `request_of`.
"""

import json
import secrets
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from http import HTTPStatus
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias
from urllib.parse import quote, unquote, unquote_plus, urljoin, urlsplit

from werkzeug.datastructures import Authorization, Headers, MultiDict
from werkzeug.exceptions import BadRequest, HTTPException, MethodNotAllowed
from werkzeug.routing import BaseConverter, Map, MapAdapter, Rule
from werkzeug.wrappers import Request, Response

from .. import errors
from ..challenges import Challenge
from ..converters import CONVERTERS
from ..errors import error_response
from ..map import RegistryMap
from ..routes import Dialect, RouteName
from ..scopes import Scope, parse_scopes, required_scopes

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = [
    "SERVICE",
    "STORAGE",
    "TOKEN",
    "BasicLogin",
    "BearerLogin",
    "Fault",
    "Faults",
    "Locations",
    "MinimumChunks",
    "NoSinglePost",
    "RecordedRequest",
    "Recorder",
    "RedirectedBlobs",
    "TokenServer",
    "UnfiredFault",
    "make_api_map",
    "make_layers_map",
    "request_of",
]

# Endpoints outside the API: the token server, and the origin to which blobs are redirected.
TOKEN, STORAGE = "token", "storage"

SERVICE = "registry"  # the token server's name for the registry; also the realm of Basic


@lru_cache(maxsize=16)
def make_api_map(dialect: Dialect, prefix: str) -> RegistryMap:
    """Return a map of the whole API.

    It includes routes that the registry does not serve, so that those requests are recorded too.
    """
    routes = [*dialect.routes, *dialect.left_out]
    served = {route.path for route in routes if route.methods != ()}  # a subset has some ()
    recorded = []
    for route in routes:
        if route.methods != ():
            recorded.append(route)
        elif route.path not in served:  # the registry refuses every method, so record any: `None`
            recorded.append(replace(route, methods=None))
    whole = Dialect(dialect.name, tuple(recorded), dialect.converters)
    return RegistryMap(dialect=whole, prefix=prefix)


def make_layers_map(
    token_methods: Sequence[str],
    *,
    storage: bool,
    uploads: bool,
    converters: Mapping[str, type[BaseConverter]],
) -> Map:
    """Return a map of the paths that the layers add to those of the application."""
    rules = []
    if token_methods:
        rules.append(Rule("/token", endpoint=TOKEN, methods=token_methods))
    if storage:
        path = "/storage/<repository:name>/<digest:digest>"
        rules.append(Rule(path, endpoint=STORAGE, methods=["GET"]))
    if uploads:
        path = "/uploads/<repository:name>/<upload_id:uuid>"
        methods = ["GET", "PATCH", "PUT", "DELETE"]
        rules.append(Rule(path, endpoint=RouteName.BLOB_UPLOAD_CHUNK, methods=methods))
    return Map(rules, converters={**CONVERTERS, **converters})


@dataclass
class RecordedRequest:
    """A request that came to the registry.

    - `method`: ``GET``, ``PUT`` and so on.
    - `endpoint`: the endpoint's name in the map, such as ``manifest``, or that of your
      application's rule; ``token`` for the token server; ``storage`` for the origin to which
      `serve` redirects blobs; `None` for any other path.
    - `values`: the values in the path: ``name``, ``tag``, ``digest``, ``uuid``.
    - `path`: the path as the client sent it, but percent-decoded.
    - `args`: the parameters of the query.
    - `headers`: the headers.
    - `status`: the status of the response; `None` if the registry closed the connection without a
      response, or has not answered yet.
    """

    method: str
    endpoint: str | None
    values: Mapping[str, Any]
    path: str
    args: MultiDict[str, str]
    headers: Headers
    status: int | None = None


_REQUEST = "registry_routes.testing.request"


def request_of(environ: "WSGIEnvironment") -> RecordedRequest:
    """Return the request that the `Recorder` has recorded."""
    request: RecordedRequest = environ[_REQUEST]
    return request


class Recorder:
    """A layer that records requests, in the order in which they come.

    The first map that matches the path and the method names the endpoint.
    """

    def __init__(self, app: "WSGIApplication", maps: Sequence[Map]) -> None:
        self.app = app
        self.maps = maps
        self.requests: list[RecordedRequest] = []

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        request = self._record(environ)
        self.requests.append(request)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            request.status = int(status[:3])
            return start_response(status, headers, exc_info)

        try:
            return self.app({**environ, _REQUEST: request}, start)
        except HTTPException as error:
            response = error_response(error, environ)
            response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
            return response(environ, start)

    def _record(self, environ: "WSGIEnvironment") -> RecordedRequest:
        sent = Request(environ)
        endpoint, values = self._match(environ)
        headers = Headers(list(sent.headers))
        return RecordedRequest(sent.method, endpoint, values, sent.path, sent.args, headers)

    def _match(self, environ: "WSGIEnvironment") -> tuple[str | None, dict[str, Any]]:
        other_methods: list[tuple[MapAdapter, str]] = []
        for url_map in self.maps:
            adapter = url_map.bind_to_environ(environ)
            try:
                endpoint, values = adapter.match()
            except MethodNotAllowed as error:
                other_methods += [(adapter, method) for method in error.valid_methods or ()]
            except HTTPException:
                continue
            else:
                return str(endpoint), dict(values)
        for adapter, method in other_methods:
            with suppress(HTTPException):
                endpoint, values = adapter.match(method=method)
                return str(endpoint), dict(values)
        return None, {}


def _build_path_info(url_map: RegistryMap, endpoint: str, values: Mapping[str, str]) -> str:
    """Return the path of a route, in the form of a WSGI environ."""
    return unquote(url_map.bind("").build(endpoint, values), "latin-1")


Fault: TypeAlias = HTTPException | int | timedelta | Literal["body cut short", "connection closed"]
"""A fault of a request; `testing.ServedRegistry.fail` describes the forms."""


class UnfiredFault(NamedTuple):
    """A fault that still waits for requests.

    - `endpoint`: the endpoint whose requests are to fail.
    - `method`: the method of these requests.
    - `what`: the fault, as `ServedRegistry.fail` takes it.
    - `times`: how many more requests will fail; `None` for a fault of every
      request, until the first request comes.
    """

    endpoint: str
    method: str
    what: Fault
    times: int | None


@dataclass
class _PlannedFault:
    endpoint: str
    method: str
    what: Fault
    times: int | None
    has_fired: bool = False

    def fits(self, request: RecordedRequest) -> bool:
        methods = [self.method]
        if self.method == "GET" and self.what != "body cut short":
            methods.append("HEAD")
        return request.endpoint == self.endpoint and request.method in methods


class Faults:
    """A layer that fails requests as planned."""

    def __init__(self, app: "WSGIApplication", maps: Iterable[Map]) -> None:
        self.app = app
        self._methods: dict[str, set[str] | None] = {}
        """The methods of each endpoint; `None` for any method."""
        for rule in chain.from_iterable(url_map.iter_rules() for url_map in maps):
            methods = self._methods.setdefault(str(rule.endpoint), set())
            if methods is not None and rule.methods is not None:
                methods |= rule.methods
            else:
                self._methods[str(rule.endpoint)] = None
        self._planned: list[_PlannedFault] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def plan(self, endpoint: str, method: str, what: Fault, times: int | None) -> None:
        """Make requests fail; see `testing.ServedRegistry.fail`."""
        if endpoint not in self._methods:
            known = ", ".join(sorted(self._methods))
            raise ValueError(f"the registry has no endpoint {endpoint!r}, only {known}")
        if not isinstance(method, str):
            raise TypeError(f"method {method!r} is not a string")
        taken = self._methods[endpoint]
        if taken is not None and method.upper() not in taken:
            known = ", ".join(sorted(taken))
            raise ValueError(f"endpoint {endpoint!r} does not take {method!r}, only {known}")
        if times is not None and not isinstance(times, int):
            raise TypeError(f"times {times!r} is neither an int nor None")
        if times is not None and times < 1:
            raise ValueError(f"times {times!r} must be 1 or more, or None for every time")
        _check_fault(what)
        with self._lock:
            self._planned.append(_PlannedFault(endpoint, method.upper(), what, times))

    @property
    def unfired(self) -> list[UnfiredFault]:
        """The faults that still wait for requests."""
        with self._lock:
            return [
                UnfiredFault(fault.endpoint, fault.method, fault.what, fault.times)
                for fault in self._planned
                if fault.times is not None or not fault.has_fired
            ]

    def stop(self) -> None:
        """End all delays."""
        self._stopped.set()

    def _take_fault(self, request: RecordedRequest) -> Fault | None:
        with self._lock:
            # For a HEAD, faults for HEAD come before those for GET.
            for fault in sorted(self._planned, key=lambda fault: fault.method != request.method):
                if fault.fits(request):
                    fault.has_fired = True
                    if fault.times is not None:
                        fault.times -= 1
                        if not fault.times:
                            self._planned.remove(fault)
                    return fault.what
        return None

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        what = self._take_fault(request_of(environ))
        if isinstance(what, HTTPException):
            raise what
        if isinstance(what, int):
            return _make_page(what)(environ, start_response)
        if isinstance(what, timedelta):
            self._stopped.wait(min(what.total_seconds(), threading.TIMEOUT_MAX))
        if what == "connection closed":
            raise ConnectionAbortedError("the registry has closed the connection")
        if what == "body cut short":
            return _cut_body(self.app, environ, start_response)
        return self.app(environ, start_response)


def _check_fault(what: object) -> None:
    """Raise an error for anything that is not a `Fault`, or that would change nothing."""
    if isinstance(what, HTTPException):
        if what.code is None and what.response is None:
            raise ValueError(f"error {what!r} has no status")
    elif isinstance(what, int):
        if not 400 <= what <= 599:
            raise ValueError(f"status {what!r} is not that of an error, 400 to 599")
    elif isinstance(what, str):
        if what not in ("body cut short", "connection closed"):
            raise ValueError(f"fault {what!r} must be 'body cut short' or 'connection closed'")
    elif isinstance(what, timedelta):
        if what <= timedelta():
            raise ValueError(f"delay {what!r} is not longer than zero")
    else:
        raise TypeError(f"fault {what!r} is not an error, a status, a timedelta or a string")


def _make_page(status: int) -> Response:
    """Return an HTML page, as from a proxy, instead of the registry's JSON."""
    known = {status.value: status.phrase for status in HTTPStatus}
    title = f"{status} {known.get(status, '')}".strip()
    return Response(f"<html><title>{title}</title></html>", status, mimetype="text/html")


def _cut_body(
    app: "WSGIApplication", environ: "WSGIEnvironment", start_response: "StartResponse"
) -> Iterable[bytes]:
    try:
        response = Response.from_app(app, environ, buffered=True)
    except HTTPException as error:
        response = error_response(error, environ)
    content = response.get_data()
    if not content or environ["REQUEST_METHOD"] == "HEAD":
        raise ConnectionAbortedError("the registry has closed the connection: no body to cut short")
    response.content_length = len(content)
    start_response(response.status, response.headers.to_wsgi_list())
    return [content[: len(content) // 2]]


# Login.


def _parse_authorization(environ: "WSGIEnvironment") -> Authorization | None:
    return Authorization.from_header(environ.get("HTTP_AUTHORIZATION"))


def _user_of(authorization: Authorization | None, users: Mapping[str, str]) -> str | None:
    """Return the user of Basic authentication, if the password is right."""
    if authorization is None or authorization.type != "basic":
        return None
    return _check_password(authorization.username, authorization.password, users)


def _check_password(name: str | None, password: str | None, users: Mapping[str, str]) -> str | None:
    return name if name is not None and name in users and users[name] == password else None


def _find_scopes(request: RecordedRequest) -> list[Scope]:
    """Return the scopes that a request of the API needs; for any other path, none."""
    if request.endpoint is None or (
        request.endpoint not in set(RouteName) and "name" not in request.values
    ):
        return []
    return required_scopes(request.endpoint, request.method, request.values, request.args)


class BasicLogin:
    """A layer that requires a name and a password for each request, or for all but pulls."""

    def __init__(
        self, app: "WSGIApplication", users: Mapping[str, str], anonymous_pull: bool
    ) -> None:
        self.app = app
        self.users = users
        self.anonymous_pull = anonymous_pull

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        request = request_of(environ)
        given = _parse_authorization(environ)
        if (
            _user_of(given, self.users) is None
            and request.endpoint != STORAGE
            and not (self.anonymous_pull and _is_anonymous(given) and _is_pull(request))
        ):
            raise errors.Unauthorized(challenge=Challenge("basic", {"realm": SERVICE}))
        return self.app(environ, start_response)


def _is_anonymous(given: Authorization | None) -> bool:
    """Return whether a client gives no name. (Skopeo then sends an empty name and password.)"""
    return given is None or (given.type == "basic" and not given.username and not given.password)


def _is_pull(request: RecordedRequest) -> bool:
    needed = _find_scopes(request)
    return bool(needed) and all(
        (scope.type, scope.actions) == ("repository", ("pull",)) for scope in needed
    )


TokenField: TypeAlias = Literal["token", "access_token"]
TokenMethod: TypeAlias = Literal["GET", "POST"]
ScopeStatus: TypeAlias = Literal[401, 403]


@dataclass(frozen=True)
class TokenServer:
    """The options of a token server, which `testing.serve` describes."""

    service: str = SERVICE
    token_field: TokenField = "token"  # noqa: S105 - it is not a password
    token_method: TokenMethod | None = None
    granted_actions: Collection[str] | None = None
    scope_status: ScopeStatus = 401

    def __post_init__(self) -> None:
        if self.token_field not in ("token", "access_token"):
            raise ValueError(f"token_field {self.token_field!r} must be 'token' or 'access_token'")
        if self.token_method not in (None, "GET", "POST"):
            raise ValueError(f"token_method {self.token_method!r} must be 'GET' or 'POST'")
        if self.scope_status not in (401, 403):
            raise ValueError(f"scope_status {self.scope_status!r} must be 401 or 403")
        if not (self.service.isascii() and self.service.isprintable() and self.service.strip()):
            raise ValueError(
                f"service {self.service!r} is empty or has characters that no header can carry"
            )
        if isinstance(self.granted_actions, str):
            raise TypeError(
                "granted_actions must be an iterable of strings, "
                f"not the string {self.granted_actions!r}"
            )

    @property
    def methods(self) -> list[str]:
        """The methods that the token server takes."""
        return ["GET", "POST"] if self.token_method is None else [self.token_method]


class BearerLogin:
    """A layer that requires a token that allows the request. It is also the token server.

    (Docker token authentication specification, and its OAuth2 form.) Users get tokens for all that
    they ask for, within `granted_actions`. With `anonymous_pull`, anyone gets a token to pull.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        users: Mapping[str, str],
        anonymous_pull: bool,
        server: TokenServer,
    ) -> None:
        self.app = app
        self.users = users
        self.anonymous_pull = anonymous_pull
        self.server = server
        self._granted: dict[str, list[Scope]] = {}
        self._refreshed: dict[str, str] = {}  # the user of each refresh token

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        request = request_of(environ)
        if request.endpoint == TOKEN:
            return self._answer(Request(environ))(environ, start_response)
        if request.endpoint != STORAGE:
            self._check(request, environ)
        return self.app(environ, start_response)

    def _check(self, request: RecordedRequest, environ: "WSGIEnvironment") -> None:
        """Raise an error for a request whose token does not allow it."""
        needed = _find_scopes(request)
        given = _parse_authorization(environ)
        granted = None
        if given is not None and given.type == "bearer":
            granted = self._granted.get(given.token or "")
        if granted is not None and all(scope.is_granted_by(granted) for scope in needed):
            return
        # RFC 6750, 3.1: without a token in the request, the challenge should have no error.
        error = None if given is None else "invalid_token"
        refusal = errors.Unauthorized(
            realm=f"{Request(environ).root_url}token",
            service=self.server.service,
            scope=needed,
            error=error if granted is None else "insufficient_scope",
        )
        if granted is not None and self.server.scope_status == 403:
            raise errors.Denied("the token's scopes are too small", headers=refusal.headers)
        raise refusal

    def _answer(self, request: Request) -> Response:
        if request.method not in self.server.methods:
            raise errors.Unsupported(valid_methods=self.server.methods)
        if request.method == "POST":
            return self._issue_token(request.form, self._user_of_form(request.form), "access_token")
        return self._issue_token(request.args, self._user_of_get(request), self.server.token_field)

    def _issue_token(
        self, sent: MultiDict[str, str], user: str | None, answer_field: str
    ) -> Response:
        if sent.get("service") != self.server.service:
            raise BadRequest(f"service is not {self.server.service!r}, as in the challenge")
        try:
            granted = self._limit_scopes(user, parse_scopes(" ".join(sent.getlist("scope"))))
        except ValueError as error:
            raise BadRequest(str(error)) from None
        token = secrets.token_urlsafe()
        self._granted[token] = granted
        answer: dict[str, Any] = {
            answer_field: token,
            "scope": " ".join(map(str, granted)),
            "expires_in": 3600,
            "issued_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        wants_refresh = sent.get("offline_token") == "true" or sent.get("access_type") == "offline"
        if wants_refresh and user is not None:
            refresh_token = answer["refresh_token"] = secrets.token_urlsafe()
            self._refreshed[refresh_token] = user
        return Response(json.dumps(answer), mimetype="application/json")

    def _user_of_get(self, request: Request) -> str | None:
        if request.authorization is None and self.anonymous_pull:
            return None
        return self._require_user(_user_of(request.authorization, self.users))

    def _user_of_form(self, form: Mapping[str, str]) -> str:
        grant = form.get("grant_type")
        if grant == "password":
            return self._require_user(
                _check_password(form.get("username"), form.get("password"), self.users)
            )
        if grant == "refresh_token":
            return self._require_user(self._refreshed.get(form.get("refresh_token", "")))
        raise BadRequest("grant_type must be 'password' or 'refresh_token'")

    def _require_user(self, user: str | None) -> str:
        if user is None:
            basic = Challenge("basic", {"realm": SERVICE})
            raise errors.Unauthorized("incorrect username or password", challenge=basic)
        return user

    def _limit_scopes(self, user: str | None, asked: list[Scope]) -> list[Scope]:
        """Limit the requested scopes to those that the user, or anyone, may have."""
        limits = [self.server.granted_actions, ["pull"] if user is None else None]
        granted = [
            replace(scope, actions=tuple(filter(partial(_is_allowed, limits), scope.actions)))
            for scope in asked
        ]
        return [scope for scope in granted if scope.actions]


def _is_allowed(limits: Iterable[Collection[str] | None], action: str) -> bool:
    return all(limit is None or action in limit for limit in limits)


# How other registries behave.

LocationForm: TypeAlias = Literal["absolute", "relative", "opaque"]


class Locations:
    """A layer that writes each ``Location`` as a whole URL or as a path.

    In the opaque form, the ``Location`` of an upload is outside the API and has a query, which the
    next request must repeat.
    """

    def __init__(self, app: "WSGIApplication", form: LocationForm, url_map: RegistryMap) -> None:
        self.app = app
        self.form = form
        self.url_map = url_map

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        request = request_of(environ)
        if self.form == "opaque" and request.endpoint == RouteName.BLOB_UPLOAD_CHUNK:
            environ = self._route_upload(request, environ)
        response = Response.from_app(self.app, environ)
        if response.location is not None:
            response.location = self._rewrite(Request(environ), response.location)
        return response(environ, start_response)

    def _rewrite(self, request: Request, location: str) -> str:
        target = urljoin(request.base_url, location)
        if not target.startswith(request.root_url):
            return location
        if self.form == "absolute":
            return target
        path = target.removeprefix(request.root_url)
        if self.form == "opaque":
            path = self._hide_upload(path)
        return f"{request.root_path}/{path}"

    def _hide_upload(self, path: str) -> str:
        """Return the opaque form of an upload's path; any other path unchanged."""
        with suppress(HTTPException):
            # A registry that takes uploads takes the PUT that completes one.
            endpoint, values = self.url_map.bind("").match(f"/{path.partition('?')[0]}", "PUT")
            if endpoint == RouteName.BLOB_UPLOAD_CHUNK:
                state = quote(_state_of(values), safe="")
                return f"uploads/{values['name']}/{values['uuid']}?_state={state}"
        return path

    def _route_upload(
        self, request: RecordedRequest, environ: "WSGIEnvironment"
    ) -> "WSGIEnvironment":
        """Return the environ of a request to an opaque ``Location``, with the upload's own path."""
        if request.args.get("_state") != _state_of(request.values):
            raise errors.BlobUploadUnknown("the request does not repeat the query of the Location")
        return {
            **environ,
            "PATH_INFO": _build_path_info(
                self.url_map, RouteName.BLOB_UPLOAD_CHUNK, request.values
            ),
            "QUERY_STRING": _remove_parameter(environ["QUERY_STRING"], "_state"),
        }


def _state_of(values: Mapping[str, str]) -> str:
    """Return a value that a query must percent-encode, exactly once."""
    return f"{values['uuid']}+/%=="


def _remove_parameter(query: str, parameter: str) -> str:
    pairs = query.split("&")
    return "&".join(pair for pair in pairs if unquote_plus(pair.partition("=")[0]) != parameter)


class RedirectedBlobs:
    """A layer that redirects clients to another origin for blobs.

    Like an object store, that origin refuses the registry's credentials.
    """

    def __init__(self, app: "WSGIApplication", url_map: RegistryMap) -> None:
        self.app = app
        self.url_map = url_map

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        request = request_of(environ)
        if request.endpoint == STORAGE:
            if "HTTP_AUTHORIZATION" in environ:
                raise BadRequest("the request carries the registry's credentials to another origin")
            path = _build_path_info(self.url_map, RouteName.BLOB, request.values)
            return self.app({**environ, "PATH_INFO": path}, start_response)
        if request.endpoint == RouteName.BLOB and request.method in ("GET", "HEAD"):
            found = Response.from_app(self.app, {**environ, "REQUEST_METHOD": "HEAD"})
            found.close()
            if found.status_code == 200:
                location = f"{_other_origin_of(environ)}/storage/{{name}}/{{digest}}"
                response = Response(status=307)
                response.location = location.format_map(request.values)
                return response(environ, start_response)
        return self.app(environ, start_response)


def _other_origin_of(environ: "WSGIEnvironment") -> str:
    """Return the URL of the same server under another host name, so that the origin differs."""
    request = Request(environ)
    here = urlsplit(request.host_url)
    other = "localhost" if here.hostname != "localhost" else "127.0.0.1"
    port = f":{here.port}" if here.port else ""
    return f"{request.scheme}://{other}{port}{request.root_path}"


class NoSinglePost:
    """A layer that begins an upload when a client tries to push a blob with a single POST.

    (distribution-spec 1.1, "Single POST", allows this.)
    """

    def __init__(self, app: "WSGIApplication") -> None:
        self.app = app

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        request = request_of(environ)
        if (request.endpoint, request.method) == (RouteName.BLOB_UPLOAD, "POST"):
            query = _remove_parameter(environ["QUERY_STRING"], "digest")
            empty = {"wsgi.input": BytesIO(), "CONTENT_LENGTH": "0"}
            environ = {**environ, "QUERY_STRING": query, **empty}
        return self.app(environ, start_response)


class MinimumChunks:
    """A layer that announces the minimum size of a chunk, and refuses chunks after a shorter one.

    (distribution-spec 1.1, "Pushing a blob in chunks": only the last chunk may be shorter.)
    """

    def __init__(self, app: "WSGIApplication", size: int) -> None:
        self.app = app
        self.size = size
        self._ended: set[str] = set()
        """The ids of uploads that had a shorter chunk, which must be their last."""

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        request = request_of(environ)
        if (request.endpoint, request.method) == (RouteName.BLOB_UPLOAD, "POST"):
            response = Response.from_app(self.app, environ)
            if response.status_code == 202:
                response.headers["OCI-Chunk-Min-Length"] = str(self.size)
            return response(environ, start_response)
        if request.endpoint != RouteName.BLOB_UPLOAD_CHUNK:
            return self.app(environ, start_response)
        upload_id = request.values["uuid"]
        body = Request(environ).get_data() if request.method in ("PATCH", "PUT") else b""
        if body and upload_id in self._ended:
            raise errors.SizeInvalid(f"a chunk before the last has fewer than {self.size} bytes")
        if body:
            environ = {**environ, "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        response = Response.from_app(self.app, environ)
        is_short = request.method == "PATCH" and 0 < len(body) < self.size
        if is_short and response.status_code == 202:
            self._ended.add(upload_id)
        return response(environ, start_response)
