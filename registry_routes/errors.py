"""The registry's errors: one exception for each error code of the API.

Each is the Werkzeug exception that its status implies, and renders the JSON body that the
distribution-spec 1.1 describes under "Error Codes". (Codes that are not there are Docker's: Go
distribution, ``registry/api``.)
"""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from html import unescape
from inspect import cleandoc
from types import MappingProxyType
from typing import Any

from werkzeug import exceptions
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.http import parse_date, quote_header_value


def error_body(code: str, message: str, detail: Any = None) -> str:
    """The JSON body of an error.

    >>> error_body("NAME_UNKNOWN", "no such repository", {"name": "library/nginx"})
    '{"errors": [{"code": "NAME_UNKNOWN", "message": "no such repository", "detail": {"name": "library/nginx"}}]}'
    """  # noqa: E501
    error = {"code": code, "message": message, "detail": detail}
    if detail is None:
        del error["detail"]
    return json.dumps({"errors": [error]}, default=str)


class RegistryError(exceptions.HTTPException):
    """An error of the registry, as an exception and as the response to send.

    `message` says what went wrong to a person, in place of the code's own words; `detail` is
    anything that JSON can hold, or that prints. Other options go to the Werkzeug exception. For a
    code of your own, inherit from this and from the Werkzeug exception of its status.

    >>> error = BlobUnknown(detail={"digest": "sha256:…"})
    >>> isinstance(error, exceptions.NotFound), error.code, error.error_code
    (True, 404, 'BLOB_UNKNOWN')
    >>> error.get_response().mimetype
    'application/json'
    """

    error_code = "UNKNOWN"

    def __init_subclass__(cls) -> None:
        more = f"\n\n{cleandoc(cls.__doc__)}" if cls.__doc__ else ""
        cls.__doc__ = f"``{cls.error_code}``, status {cls.code}: {cls.description}.{more}"

    def __init__(self, message: str | None = None, *, detail: Any = None, **options: Any) -> None:
        super().__init__(description=message, **options)
        self.code = self.code or 500
        self.detail = detail

    def get_body(self, environ: Any = None, scope: Any = None) -> str:
        """The JSON body, as text."""
        return error_body(self.error_code, self.description or self.name, self.detail)

    def get_headers(self, environ: Any = None, scope: Any = None) -> list[tuple[str, str]]:
        """The headers: that the body is JSON, and those of the Werkzeug exception."""
        others = super().get_headers(environ, scope)
        return [
            ("Content-Type", "application/json"),
            *((name, value) for name, value in others if name.lower() != "content-type"),
        ]


class BlobUnknown(RegistryError, exceptions.NotFound):
    error_code = "BLOB_UNKNOWN"
    description = "the repository has no such blob"


class BlobUploadInvalid(RegistryError, exceptions.BadRequest):
    error_code = "BLOB_UPLOAD_INVALID"
    description = "the upload is not valid, and must be begun anew"


class BlobUploadUnknown(RegistryError, exceptions.NotFound):
    error_code = "BLOB_UPLOAD_UNKNOWN"
    description = "the repository has no such upload"


class Denied(RegistryError, exceptions.Forbidden):
    error_code = "DENIED"
    description = "access to the resource is denied"


class DigestInvalid(RegistryError, exceptions.BadRequest):
    error_code = "DIGEST_INVALID"
    description = "the digest is not that of the content"


class ManifestBlobUnknown(RegistryError, exceptions.NotFound):
    error_code = "MANIFEST_BLOB_UNKNOWN"
    description = "the manifest names a blob that the repository does not have"


class ManifestInvalid(RegistryError, exceptions.BadRequest):
    error_code = "MANIFEST_INVALID"
    description = "the manifest is not valid"


class ManifestUnknown(RegistryError, exceptions.NotFound):
    error_code = "MANIFEST_UNKNOWN"
    description = "the repository has no such manifest"


class ManifestUnverified(RegistryError, exceptions.BadRequest):
    error_code = "MANIFEST_UNVERIFIED"
    description = "the manifest's signature cannot be verified"


class NameInvalid(RegistryError, exceptions.BadRequest):
    error_code = "NAME_INVALID"
    description = "the repository name is not valid"


class NameUnknown(RegistryError, exceptions.NotFound):
    error_code = "NAME_UNKNOWN"
    description = "there is no such repository"


class PaginationNumberInvalid(RegistryError, exceptions.BadRequest):
    error_code = "PAGINATION_NUMBER_INVALID"
    description = "the number of results to return must be a whole number, 0 or more"


class RangeInvalid(RegistryError, exceptions.RequestedRangeNotSatisfiable):
    error_code = "RANGE_INVALID"
    description = "the chunk does not begin where the upload ends"


class SizeInvalid(RegistryError, exceptions.BadRequest):
    error_code = "SIZE_INVALID"
    description = "the length of the content is not the length that was announced"


class TagInvalid(RegistryError, exceptions.BadRequest):
    error_code = "TAG_INVALID"
    description = "the tag is not valid"


class TooManyRequests(RegistryError, exceptions.TooManyRequests):
    """`retry_after`, seconds or a `datetime`, goes into the ``Retry-After`` header."""

    error_code = "TOOMANYREQUESTS"
    description = "too many requests"


class Unauthorized(RegistryError, exceptions.Unauthorized):
    """With a `realm`, the URL of a token server, the response challenges the client to get a token.

    `service` is what the token server calls this registry; `scope`, the scopes that the token must
    have: a string, or an iterable of what prints as a scope. (Docker token authentication
    specification.) `challenge` is a whole header in place of all that, ``Basic realm="…"`` say.

    >>> scopes = ["repository:library/nginx:pull,push"]
    >>> error = Unauthorized(realm="https://auth.example/token", service="r.example", scope=scopes)
    >>> error.get_response().headers["WWW-Authenticate"]
    'Bearer realm="https://auth.example/token",service="r.example",scope="repository:library/nginx:pull,push"'
    """

    error_code = "UNAUTHORIZED"
    description = "authentication is required"

    def __init__(
        self,
        message: str | None = None,
        *,
        realm: str | None = None,
        service: str | None = None,
        scope: str | Iterable[object] = (),
        challenge: str | None = None,
        detail: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(message, detail=detail, **options)
        self.realm = realm
        self.service = service
        self.scope = scope if isinstance(scope, str) else " ".join(map(str, scope))
        self.challenge = challenge

    def get_headers(self, environ: Any = None, scope: Any = None) -> list[tuple[str, str]]:
        headers = super().get_headers(environ, scope)
        challenge = self.challenge
        if challenge is None and self.realm is not None:
            parameters = {"realm": self.realm, "service": self.service, "scope": self.scope}
            # Always quoted: many clients look for the quotes.
            challenge = "Bearer " + ",".join(
                f"{name}={quote_header_value(' '.join(value.split()), allow_token=False)}"
                for name, value in parameters.items()
                if value
            )
        if challenge is not None:
            headers.append(("WWW-Authenticate", " ".join(challenge.splitlines())))
        return headers


class Unavailable(RegistryError, exceptions.ServiceUnavailable):
    """`retry_after`, seconds or a `datetime`, goes into the ``Retry-After`` header."""

    error_code = "UNAVAILABLE"
    description = "the registry is not available for now"


class Unknown(RegistryError, exceptions.InternalServerError):
    error_code = "UNKNOWN"
    description = "the registry has failed"


class Unsupported(RegistryError, exceptions.MethodNotAllowed):
    """`valid_methods`, those that the route takes, go into the ``Allow`` header.

    `endpoint` is the route's, if it is known.
    """

    error_code = "UNSUPPORTED"
    description = "the registry does not support this operation"

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
    """Clients do without it then. (`Unsupported`, of the same code, is about the method.)"""

    error_code = "UNSUPPORTED"
    description = "the registry has no such endpoint"


#: The exceptions by their codes.
ERRORS: Mapping[str, type[RegistryError]] = MappingProxyType(
    {
        error.error_code: error
        for error in RegistryError.__subclasses__()
        if error is not RouteUnknown
    }
)


def read_errors(
    status: int, body: bytes | str = b"", headers: Mapping[str, str] | None = None
) -> list[RegistryError]:
    """The errors in a registry's response of status 400 or more: one at least.

    `status`, `body` and `headers` are the response's; the body may be JSON, as the specification
    has it, or any text or HTML, as proxies send it. Each error has the response's `status` as its
    ``code``, and the `error_code` and the message that the registry sent. A known error code gives
    its own exception; any other, the Werkzeug exception that the status implies, as a
    `RegistryError`. A 401 is always an `Unauthorized`, with the `challenge` as it was sent, and the
    `realm`, `service` and `scope` of a bearer's, each "" if that does not have it; a 429 is a
    `TooManyRequests`, and a 503 an `Unavailable`, with their `retry_after`, seconds or a
    `datetime`; an `Unsupported` has its `valid_methods`.

    A proxy can raise the first of them: its own client then gets the status, the code, the message,
    the detail and these headers.

    >>> [error] = read_errors(404, b'{"errors": [{"code": "NAME_UNKNOWN", "message": "no"}]}')
    >>> error, error.description
    (<NameUnknown '404: Not Found'>, 'no')
    >>> [error] = read_errors(502, b"<html><title>Bad gateway</title></html>")
    >>> error.error_code, error.description, isinstance(error, exceptions.BadGateway)
    ('UNKNOWN', 'Bad gateway', True)
    >>> [error] = read_errors(401, b"", {"WWW-Authenticate": 'Bearer realm="https://auth.example/"'})
    >>> error.realm, error.scope
    ('https://auth.example/', '')
    """
    text = body if isinstance(body, str) else body.decode(errors="replace")
    headers = {name.lower(): value for name, value in (headers or {}).items()}
    found = [_read(status, headers, entry) for entry in _entries(text)]
    return found or [_read(status, headers, {"message": _plain_text(text)})]


def _entries(text: str) -> list[dict[str, Any]]:
    """What a JSON body says; nothing if it is not one."""
    try:
        content = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return []
    if not isinstance(content, dict):
        return []
    errors = content.get("errors")
    if isinstance(errors, list) and (entries := [one for one in errors if isinstance(one, dict)]):
        return entries
    # As token servers have it: {"details": "..."}, or RFC 6749's error and error_description.
    keys = ("message", "details", "error_description", "error")
    words = [content[key] for key in keys if isinstance(content.get(key), str)]
    return [{"message": words[0], "detail": content}] if words else []


def _read(status: int, headers: Mapping[str, str], entry: Mapping[str, Any]) -> RegistryError:
    code, message = entry.get("code"), entry.get("message")
    known = ERRORS.get(code) if isinstance(code, str) else None
    if known is Unsupported and status == 404:
        known = RouteUnknown
    if known is None or status in (401, 429, 503):  # whose headers say the rest
        known = BY_STATUS.get(status)
    options: dict[str, Any] = {}
    if known is Unauthorized and (challenge := headers.get("www-authenticate")):
        options = {"challenge": challenge, **_bearer(challenge)}
    elif known is Unsupported:
        options["valid_methods"] = re.findall(r"[^\s,]+", headers.get("allow", "")) or None
    elif known in (TooManyRequests, Unavailable):
        options["retry_after"] = _retry_after(headers.get("retry-after", ""))
    error = (known or _of_status(status))(
        message if isinstance(message, str) and message else None,
        detail=entry.get("detail"),
        **options,
    )
    error.code = status
    if isinstance(code, str) and code:
        error.error_code = code
    return error


#: What a status alone says; others say too little.
BY_STATUS: Mapping[int | None, type[RegistryError]] = {
    error.code: error for error in (Unauthorized, Denied, Unsupported, TooManyRequests, Unavailable)
}


@cache
def _of_status(status: int) -> type[RegistryError]:
    implied = exceptions.default_exceptions.get(status, exceptions.HTTPException)
    return type("RegistryError", (RegistryError, implied), {"description": implied().name})


def _bearer(header: str) -> dict[str, Any]:
    for scheme in _schemes(header):
        challenge = WWWAuthenticate.from_header(scheme)
        if challenge is not None and challenge.type == "bearer":
            return {name: challenge.get(name) or "" for name in ("realm", "service", "scope")}
    return {}


def _schemes(header: str) -> list[str]:
    """The challenges of a header, which may have several, one behind the other (RFC 9110, 11.6.1).

    Each begins with a scheme, a word that no "=" follows.
    """
    parts = re.findall(r"""(?:[^",]|"(?:[^"\\]|\\.)*"?)+""", header)
    schemes: list[str] = []
    for part in parts:
        if schemes and re.match(r"\s*[^\s=]+\s*=", part):
            schemes[-1] += f",{part}"
        else:
            schemes.append(part.strip())
    return schemes


def _retry_after(header: str) -> datetime | int | None:
    if header.isascii() and header.isdecimal():
        return int(header[:9])  # no client waits for longer
    try:
        date = parse_date(header)
        return date and date.astimezone(UTC)
    except (OverflowError, ValueError):  # a date that no calendar has
        return None


def _plain_text(text: str) -> str:
    """The first words of a text, or of a page, to show in place of a message."""
    text = text[:10_000]
    if "<" in text:
        title = re.search(r"<title[^<>]*>([^<]*)", text, re.IGNORECASE)
        text = unescape(title[1] if title else re.sub(r"<[^<>]*>", " ", text))
    return " ".join(text.split())[:500]
