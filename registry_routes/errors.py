"""The registry's errors: one exception for each error code of the API.

Each is also the Werkzeug exception of its status, and renders the JSON body that the
distribution-spec 1.1 describes under "Error Codes". (The codes that are not listed there are
Docker's: Go distribution, ``registry/api``.) `parse_errors` reads the errors of any registry.
"""

# The codes and descriptions narrow the types of HTTPException, as those of Werkzeug itself do.
# pyright: reportIncompatibleVariableOverride=false

import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from html import unescape
from inspect import cleandoc
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from werkzeug import exceptions
from werkzeug.http import parse_date

from .challenges import Challenge, Headers, header_pairs, header_values, parse_challenges


def error_entry(code: str, message: str, detail: Any = None) -> dict[str, Any]:
    """One entry in the body of an error. It has no detail if `detail` is `None`."""
    entry = {"code": code, "message": message}
    return entry if detail is None else {**entry, "detail": detail}


def error_body(entries: Iterable[dict[str, Any]]) -> str:
    """The JSON body that lists these entries.

    >>> error_body([error_entry("NAME_UNKNOWN", "no such repository", {"name": "library/nginx"})])
    '{"errors": [{"code": "NAME_UNKNOWN", "message": "no such repository", "detail": {"name": "library/nginx"}}]}'

    What JSON cannot hold becomes a string: ``"NaN"``, or a whole detail.
    """  # noqa: E501
    listed = list(entries)
    try:
        try:
            return json.dumps({"errors": listed}, default=str, allow_nan=False)
        except ValueError:  # NaN or Infinity, which Python reads and writes, but which is not JSON
            text = json.dumps({"errors": listed}, default=str)
            return json.dumps(json.loads(text, parse_constant=str))
    except (RecursionError, TypeError, ValueError):  # nested too deep, or keys that are not strings
        short = [
            {key: reprlib.repr(value) if key == "detail" else value for key, value in entry.items()}
            for entry in listed
        ]
        return json.dumps({"errors": short}, default=str)


class RegistryError(exceptions.HTTPException):
    """An error of the registry: an exception, and the response to send.

    `message` tells a person what went wrong; the default is the description of the code. `detail`
    is anything that JSON can hold, or that can be printed. `headers` are more headers to send, as
    pairs, which replace Werkzeug's of the same names. Other options go to the Werkzeug exception.
    For your own error code, inherit from this class and from the Werkzeug exception of its status.

    >>> error = BlobUnknown(detail={"digest": "sha256:…"})
    >>> isinstance(error, exceptions.NotFound), error.code, error.error_code
    (True, 404, 'BLOB_UNKNOWN')
    >>> error.get_response().mimetype
    'application/json'

    In header values, ASCII control characters become spaces, and characters outside Latin-1 are
    percent-encoded, because a server could not send them as they are.
    """

    error_code = "UNKNOWN"

    retry_after: datetime | int | None = None
    """When to try again: in how many seconds, or at what time; `None` if that is not known."""

    def __init_subclass__(cls) -> None:
        more = f"\n\n{cleandoc(cls.__doc__)}" if cls.__doc__ else ""
        cls.__doc__ = f"``{cls.error_code}``, status {cls.code}: {cls.description}.{more}"

    def __init__(
        self,
        message: str | None = None,
        *,
        detail: Any = None,
        headers: Iterable[tuple[str, str]] = (),
        **options: Any,
    ) -> None:
        super().__init__(description=message, **options)
        self.code: int = self.code or 500
        self.detail = detail
        self.headers: list[tuple[str, str]] = list(headers)

    @property
    def entry(self) -> dict[str, Any]:
        """The entry of this error in the body of the response."""
        return error_entry(self.error_code, self.description or self.name, self.detail)

    def get_body(self, environ: Any = None, scope: Any = None) -> str:
        """The JSON body, as text."""
        return error_body([self.entry])

    def get_headers(self, environ: Any = None, scope: Any = None) -> list[tuple[str, str]]:
        """The content type of JSON, the headers of the Werkzeug exception, and `headers`."""
        given = {name.lower() for name, _ in self.headers} | {"content-type"}
        others = super().get_headers(environ, scope)
        return [
            ("Content-Type", "application/json"),
            *((name, _sendable(value)) for name, value in others if name.lower() not in given),
            *((name, _sendable(value)) for name, value in self.headers),
        ]


_ASCII = "".join(map(chr, range(128)))


def _sendable(value: object) -> str:
    """`value` without what a header cannot hold (RFC 9110, 5.5; PEP 3333)."""
    text = re.sub(r"[\x00-\x1f\x7f]+", " ", str(value)).strip(" ")
    return re.sub(r"[^\x00-\xff]+", lambda found: quote(found[0], errors="replace"), text)


class BlobUnknown(RegistryError, exceptions.NotFound):
    error_code = "BLOB_UNKNOWN"
    description: str = "the repository has no such blob"


class BlobUploadInvalid(RegistryError, exceptions.BadRequest):
    error_code = "BLOB_UPLOAD_INVALID"
    description: str = "the upload is not valid and must be restarted"


class BlobUploadUnknown(RegistryError, exceptions.NotFound):
    error_code = "BLOB_UPLOAD_UNKNOWN"
    description: str = "the repository has no such upload"


class Denied(RegistryError, exceptions.Forbidden):
    error_code = "DENIED"
    description: str = "access to the resource is denied"


class DigestInvalid(RegistryError, exceptions.BadRequest):
    error_code = "DIGEST_INVALID"
    description: str = "the digest does not match the content"


class ManifestBlobUnknown(RegistryError, exceptions.NotFound):
    error_code = "MANIFEST_BLOB_UNKNOWN"
    description: str = "the manifest names a blob that the repository does not have"


class ManifestInvalid(RegistryError, exceptions.BadRequest):
    error_code = "MANIFEST_INVALID"
    description: str = "the manifest is not valid"


class ManifestUnknown(RegistryError, exceptions.NotFound):
    error_code = "MANIFEST_UNKNOWN"
    description: str = "the repository has no such manifest"


class ManifestUnverified(RegistryError, exceptions.BadRequest):
    error_code = "MANIFEST_UNVERIFIED"
    description: str = "the manifest's signature cannot be verified"


class NameInvalid(RegistryError, exceptions.BadRequest):
    error_code = "NAME_INVALID"
    description: str = "the repository name is not valid"


class NameUnknown(RegistryError, exceptions.NotFound):
    error_code = "NAME_UNKNOWN"
    description: str = "there is no such repository"


class PaginationNumberInvalid(RegistryError, exceptions.BadRequest):
    error_code = "PAGINATION_NUMBER_INVALID"
    description: str = "the number of results to return must be a whole number, 0 or more"


class RangeInvalid(RegistryError, exceptions.RequestedRangeNotSatisfiable):
    error_code = "RANGE_INVALID"
    description: str = "the chunk does not begin where the upload ends"


class SizeInvalid(RegistryError, exceptions.BadRequest):
    error_code = "SIZE_INVALID"
    description: str = "the length of the content is not the length that was announced"


class TagInvalid(RegistryError, exceptions.BadRequest):
    error_code = "TAG_INVALID"
    description: str = "the tag is not valid"


class TooManyRequests(RegistryError, exceptions.TooManyRequests):
    """`retry_after`, in seconds or as a `datetime`, goes into the ``Retry-After`` header."""

    error_code = "TOOMANYREQUESTS"
    description: str = "too many requests"


class Unauthorized(RegistryError, exceptions.Unauthorized):
    """With a `realm`, the URL of a token server, the response asks the client to get a token there.

    `service` is what the token server calls this registry. `scope` has the scopes that the token
    must have: a string, or an iterable of scopes, which may be any objects that print as one.
    (Docker token authentication specification.) `error` says why the client's token is not enough:
    ``insufficient_scope`` or another code of RFC 6750, 3.1. `challenge` replaces all of these: it
    is a whole header value, such as ``Basic realm="…"``, or a `Challenge`. `headers` may add more
    challenges. Without any of these arguments, the response has no challenge.

    >>> scopes = ["repository:library/nginx:pull,push"]
    >>> error = Unauthorized(realm="https://auth.example/token", service="r.example", scope=scopes)
    >>> error.get_response().headers["WWW-Authenticate"]
    'Bearer realm="https://auth.example/token",service="r.example",scope="repository:library/nginx:pull,push"'
    """

    error_code = "UNAUTHORIZED"
    description: str = "authentication is required"

    def __init__(
        self,
        message: str | None = None,
        *,
        realm: str | None = None,
        service: str | None = None,
        scope: str | Iterable[object] = (),
        error: str | None = None,
        challenge: str | Challenge | None = None,
        **options: Any,
    ) -> None:
        super().__init__(message, **options)
        self.realm = realm
        self.service = service
        self.scope: str = scope if isinstance(scope, str) else " ".join(map(str, scope))
        self.error = error
        if challenge is None:
            parameters = {
                "realm": quote(realm or "", safe=_ASCII, errors="replace"),
                "service": service,
                "scope": self.scope,
                "error": error,
            }
            given = {name: _sendable(value) for name, value in parameters.items() if value}
            challenge = Challenge("bearer", given) if given else None
        challenges = [*(self.www_authenticate or ()), *([challenge] if challenge else [])]
        vars(self)["www_authenticate"] = None  # Werkzeug's objects cannot be pickled
        self.headers.extend(("WWW-Authenticate", str(one)) for one in challenges)

    @property
    def challenges(self) -> list[Challenge]:
        """The challenges in the headers of the response."""
        return parse_challenges(self.headers)


class Unavailable(RegistryError, exceptions.ServiceUnavailable):
    """`retry_after`, in seconds or as a `datetime`, goes into the ``Retry-After`` header."""

    error_code = "UNAVAILABLE"
    description: str = "the registry is temporarily unavailable"


class Unknown(RegistryError, exceptions.InternalServerError):
    error_code = "UNKNOWN"
    description: str = "the registry has failed"


class Unsupported(RegistryError, exceptions.MethodNotAllowed):
    """`valid_methods`, the methods that the route takes, go into the ``Allow`` header.

    `endpoint` is the endpoint of the route, if it is known.
    """

    error_code = "UNSUPPORTED"
    description: str = "the registry does not support this operation"

    def __init__(
        self,
        message: str | None = None,
        *,
        endpoint: Any = None,
        detail: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(message, detail=detail, **options)
        self.endpoint = endpoint


class RouteUnknown(RegistryError, exceptions.NotFound):
    """Clients then do without the endpoint. (`Unsupported` has the same code, for a method.)"""

    error_code = "UNSUPPORTED"
    description: str = "the registry has no such endpoint"


#: The exception for each error code; for ``UNSUPPORTED``, which two have, `Unsupported`.
ERRORS: Mapping[str, type[RegistryError]] = MappingProxyType(
    {
        error.error_code: error
        for error in RegistryError.__subclasses__()
        if error is not RouteUnknown
    }
)


def parse_errors(
    status: int,
    body: bytes | str = b"",
    headers: Headers | None = None,
    *,
    endpoint: str | None = None,
) -> list[RegistryError]:
    """The errors in a registry's response of status 400 or more. There is always at least one.

    `status`, `body` and `headers` are the response's. The body may be JSON, as the specification
    has it, or any text or HTML, as proxies send it. The headers may have any form that
    `challenges.header_pairs` takes.

    Each error has the response's status as its ``code``, and the `error_code` and the message that
    the registry sent. A known error code gives its own exception. Any other gives a `RegistryError`
    that is also the Werkzeug exception of the status. Some statuses say more than the error code:

    - A 401 is always an `Unauthorized`. It has the `realm`, `service`, `scope` and `error` of the
      first Bearer challenge, each "" if there is none, and all `challenges`.
    - A 405 is an `Unsupported` with its `valid_methods`.
    - A 429 is a `TooManyRequests`, and a 503 is an `Unavailable`.

    If the response has a ``Retry-After``, each error has it as `retry_after`, in seconds or as a
    `datetime`.

    The response to a HEAD has no body. If `endpoint` names the endpoint that was requested, as the
    map does, a 404 without a body becomes the error that the specification has for it: a
    `ManifestUnknown` for "manifest". (An `EndpointPrefix` that ends in "." may come first.)

    A proxy can raise the first error, or give all of them to `registry_routes.error_response`. Its
    own client then gets the status, the codes, the messages, the details, and the headers that are
    about the error.

    >>> [error] = parse_errors(404, b'{"errors": [{"code": "NAME_UNKNOWN", "message": "no"}]}')
    >>> error, error.description
    (<NameUnknown '404: Not Found'>, 'no')
    >>> [error] = parse_errors(502, b"<html><title>Bad gateway</title></html>")
    >>> error.error_code, error.description, isinstance(error, exceptions.BadGateway)
    ('UNKNOWN', 'Bad gateway', True)
    >>> headers = {"WWW-Authenticate": 'Bearer realm="https://auth.example/"'}
    >>> [error] = parse_errors(401, b"", headers)
    >>> error.realm, error.scope
    ('https://auth.example/', '')
    >>> parse_errors(404, endpoint="blob")
    [<BlobUnknown '404: Not Found'>]

    Raises `TypeError` if the status is not an `int`, the body neither `bytes` nor a string, or the
    headers not headers; and `ValueError` if the status is not 400 to 999.
    """
    if not isinstance(status, int) or isinstance(status, bool):
        raise TypeError(f"status must be an int, not {status!r:.100}")
    if not 400 <= status <= 999:
        raise ValueError(f"status {status!r} must be that of an error, 400 to 999")
    if not isinstance(body, str | bytes):
        raise TypeError(f"body must be bytes or a string, not {body!r:.100}")
    text = body if isinstance(body, str) else str(body, errors="replace")
    forwarded = [pair for pair in header_pairs(headers) if pair[0].lower() in FORWARDED]
    default = MISSING.get((endpoint or "").rpartition(".")[2]) if status == 404 else None
    if text.strip() or default is None:
        default = BY_STATUS.get(status)
    entries = _entries(text) or [{"message": _plain_text(text)}]
    return [_read(int(status), forwarded, default, entry) for entry in entries]


#: The headers that are about an error, which a proxy passes on.
FORWARDED = (
    "www-authenticate",
    "allow",
    "retry-after",
    "content-range",
    "ratelimit-limit",
    "ratelimit-remaining",
)


def _entries(text: str) -> list[dict[str, Any]]:
    """The entries of a JSON body; none if the body is not JSON or has no errors."""
    try:
        content = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return []
    if not isinstance(content, dict):
        return []
    errors = content.get("errors")
    if isinstance(errors, list) and (entries := [one for one in errors if isinstance(one, dict)]):
        return entries
    # Token servers send {"details": "..."}, or the error and error_description of RFC 6749.
    keys = ("message", "details", "error_description", "error")
    words = [content[key] for key in keys if isinstance(content.get(key), str)]
    return [{"message": words[0], "detail": content}] if words else []


def _read(
    status: int,
    headers: list[tuple[str, str]],
    default: type[RegistryError] | None,
    entry: Mapping[str, Any],
) -> RegistryError:
    code, message = entry.get("code"), entry.get("message")
    known = ERRORS.get(code) if isinstance(code, str) else None
    if known is Unsupported and status == 404:
        known = RouteUnknown
    if known is None or status in (401, 405, 429, 503):  # these have headers that say more
        known = default
    options: dict[str, Any] = {}
    if known is Unauthorized:
        bearers = [one for one in parse_challenges(headers) if one.scheme == "bearer"]
        challenge = bearers[0] if bearers else Challenge("bearer")
        options = {name: getattr(challenge, name) for name in _OF_A_CHALLENGE}
    elif known is Unsupported:
        allow = ",".join(header_values(headers, "Allow"))
        options["valid_methods"] = re.findall(r"[^\s,]+", allow) or None
    error = (known or _of_status(status))(
        message if isinstance(message, str) and message else None,
        detail=entry.get("detail"),
        **options,
    )
    error.code = status
    error.headers = list(headers)  # exactly as they were sent
    error.retry_after = _retry_after(header_values(headers, "Retry-After"))
    if isinstance(code, str) and code:
        error.error_code = code
    return error


_OF_A_CHALLENGE = ("realm", "service", "scope", "error")

#: The exception for a status without a known error code. Other statuses say too little for that.
BY_STATUS: Mapping[int | None, type[RegistryError]] = {
    error.code: error for error in (Unauthorized, Denied, Unsupported, TooManyRequests, Unavailable)
}

#: The exception for a 404 at each endpoint.
MISSING: Mapping[str, type[RegistryError]] = {
    "manifest": ManifestUnknown,
    "blob": BlobUnknown,
    "blob-upload-chunk": BlobUploadUnknown,
    "blob-upload": NameUnknown,
    "tags": NameUnknown,
    "base": RouteUnknown,
    "referrers": RouteUnknown,
    "catalog": RouteUnknown,
    "extension": RouteUnknown,
}


@cache
def _of_status(status: int) -> type[RegistryError]:
    implied = exceptions.default_exceptions.get(status, exceptions.HTTPException)

    def reduce(error: RegistryError) -> tuple[Any, ...]:  # pickle cannot find the class by name
        return _new_of_status, (status,), error.__dict__

    members = {"description": implied().name, "__reduce__": reduce}
    return type("RegistryError", (RegistryError, implied), members)


def _new_of_status(status: int) -> RegistryError:
    return _of_status(status)()


def _retry_after(values: list[str]) -> datetime | int | None:
    for value in values:
        seconds = value.partition(",")[0].strip()  # two lines may have been joined
        if seconds.isascii() and seconds.isdecimal():
            return int(seconds[:9])  # no client waits longer
        try:
            if date := parse_date(value):
                return date.astimezone(UTC)
        except (OverflowError, ValueError):  # a date that does not exist
            pass
    return None


def _plain_text(text: str) -> str:
    """The title of a page, or the first words of a text, to show as the message."""
    text = text[:10_000]
    if "<" in text:
        title = re.search(r"<title[^<>]*>([^<]*)", text, re.IGNORECASE)
        text = unescape(title[1] if title else re.sub(r"<[^<>]*>", " ", text))
    return " ".join(text.split())[:500]
