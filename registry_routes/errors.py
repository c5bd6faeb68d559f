"""The registry's errors: an exception for each error code of the API.

Each is also the Werkzeug exception of its status, and renders the JSON body that the
distribution-spec 1.1 describes under "Error Codes". (Codes that are not listed there are Docker's:
Go distribution, ``registry/api``.) `responses.parse_errors` reads the errors of any registry.
"""

# The codes and descriptions narrow the types of HTTPException, as those of Werkzeug itself do.
# pyright: reportIncompatibleVariableOverride=false

import copyreg
import json
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from inspect import cleandoc
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from werkzeug import exceptions
from werkzeug.exceptions import HTTPException
from werkzeug.http import http_date
from werkzeug.routing import RequestRedirect
from werkzeug.wrappers import Response

from .challenges import Challenge, parse_challenges
from .headers import header_values, seconds_until

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

__all__ = [
    "BY_STATUS",
    "ERRORS",
    "MISSING",
    "BlobUnknown",
    "BlobUploadInvalid",
    "BlobUploadUnknown",
    "Denied",
    "DigestInvalid",
    "ManifestBlobUnknown",
    "ManifestInvalid",
    "ManifestUnknown",
    "ManifestUnverified",
    "NameInvalid",
    "NameUnknown",
    "PaginationNumberInvalid",
    "RangeInvalid",
    "RegistryError",
    "RouteUnknown",
    "SizeInvalid",
    "TagInvalid",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "Unknown",
    "Unsupported",
    "error_body",
    "error_entry",
    "error_response",
]


def error_entry(code: str, message: str, detail: Any = None) -> dict[str, Any]:
    """Return an entry for the body of an error, without a detail if `detail` is `None`."""
    entry = {"code": code, "message": message}
    return entry if detail is None else {**entry, "detail": detail}


def error_body(entries: Iterable[dict[str, Any]]) -> str:
    """Return the JSON body that lists these entries.

    >>> error_body([error_entry("NAME_UNKNOWN", "no such repository", {"name": "library/nginx"})])
    '{"errors": [{"code": "NAME_UNKNOWN", "message": "no such repository", "detail": {"name": "library/nginx"}}]}'

    Values that JSON cannot represent are written as strings: ``"NaN"``, or a whole detail.
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


class RegistryError(HTTPException):
    """An error of the registry: an exception, and the response to send.

    For your own error code, inherit from this class and from the Werkzeug exception of its status.

    :param message: what went wrong, for a person to read; by default, the description of the code.
    :param detail: more about the error, any value. It is written as JSON, or as a string.
    :param headers: more headers to send, as pairs, which replace Werkzeug's of the same names.
    :param options: the options of the Werkzeug exception.

    - `code`: the status of the response.
    - `error_code`: the error code of the API, such as ``BLOB_UNKNOWN``.
    - `message`, `detail`, `headers`: as given.
    - `retry_after`: the number of seconds after which to try again; `None` if unknown.

    >>> error = BlobUnknown(detail={"digest": "sha256:…"})
    >>> isinstance(error, exceptions.NotFound), error.code, error.error_code
    (True, 404, 'BLOB_UNKNOWN')
    >>> error.get_response().mimetype
    'application/json'

    In header values, ASCII control characters become spaces, and characters outside Latin-1 are
    percent-encoded, because a server could not send them as they are.
    """

    error_code = "UNKNOWN"

    retry_after: int | None = None

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
        if isinstance(after := options.get("retry_after"), datetime):
            self.headers.append(("Retry-After", http_date(after)))
            self.retry_after = seconds_until(after)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} '{self.code} {self.error_code}: {self.message}'>"

    def __reduce__(self) -> tuple[Any, ...]:  # by default, pickle would call __init__
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    @property
    def message(self) -> str:
        """The message, for a person to read."""
        return self.description or self.name

    @property
    def entry(self) -> dict[str, Any]:
        """The entry of this error in the body of the response."""
        return error_entry(self.error_code, self.message, self.detail)

    def get_body(self, environ: Any = None, scope: Any = None) -> str:
        """Return the JSON body."""
        return error_body([self.entry])

    def get_headers(self, environ: Any = None, scope: Any = None) -> list[tuple[str, str]]:
        """Return the content type of JSON, the Werkzeug exception's headers, and `headers`."""
        given = {name.lower() for name, _ in self.headers} | {"content-type"}
        others = super().get_headers(environ, scope)
        return [
            ("Content-Type", "application/json"),
            *((name, _clean_header(value)) for name, value in others if name.lower() not in given),
            *((name, _clean_header(value)) for name, value in self.headers),
        ]


_ASCII = "".join(map(chr, range(128)))


def _clean_header(value: object) -> str:
    """Replace the characters that a header cannot carry (RFC 9110, 5.5; PEP 3333)."""
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


class TooManyRequests(RegistryError, exceptions.TooManyRequests):  # type: ignore[misc]
    """`retry_after`, seconds or a `datetime`, goes into the ``Retry-After`` header."""

    error_code = "TOOMANYREQUESTS"
    description: str = "too many requests"


class Unauthorized(RegistryError, exceptions.Unauthorized):
    """A 401 needs a challenge that says how to log in (RFC 9110, 15.5.2).

    :param realm: the URL of the token server from which the client is to get a token (Docker token
        authentication specification).
    :param service: the token server's name for this registry.
    :param scope: the scopes that the token must have, as a string, or as an iterable of any objects
        whose `str()` is a scope.
    :param error: why the client's token is not enough, as a code of RFC 6750, 3.1, such as
        ``insufficient_scope``.
    :param challenge: a `Challenge`, or a whole header value such as ``Basic realm="…"``, instead of
        all of these. The headers may contain more challenges.

    Raises `TypeError` if there is no challenge.

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
            given = {name: _clean_header(value) for name, value in parameters.items() if value}
            challenge = Challenge("bearer", given) if given else None
        challenges = [*(self.www_authenticate or ()), *([challenge] if challenge else [])]
        vars(self)["www_authenticate"] = None  # Werkzeug's objects cannot be pickled
        self.headers.extend(("WWW-Authenticate", str(each)) for each in challenges)
        if not header_values(self.headers, "WWW-Authenticate"):
            raise TypeError("Unauthorized() has no challenge: give it a realm= or a challenge=")

    @property
    def challenges(self) -> list[Challenge]:
        """The challenges in the headers of the response."""
        return parse_challenges(self.headers)


class Unavailable(RegistryError, exceptions.ServiceUnavailable):  # type: ignore[misc]
    """`retry_after`, seconds or a `datetime`, goes into the ``Retry-After`` header."""

    error_code = "UNAVAILABLE"
    description: str = "the registry is temporarily unavailable"


class Unknown(RegistryError, exceptions.InternalServerError):
    error_code = "UNKNOWN"
    description: str = "the registry has failed"


class Unsupported(RegistryError, exceptions.MethodNotAllowed):
    """`valid_methods`, the methods that the route takes, go into the ``Allow`` header."""

    error_code = "UNSUPPORTED"
    description: str = "the registry does not support this operation"

    def get_headers(self, environ: Any = None, scope: Any = None) -> list[tuple[str, str]]:
        headers = super().get_headers(environ, scope)
        if self.valid_methods is not None and not self.valid_methods:
            headers.append(("Allow", ""))  # no method is allowed (RFC 9110, 10.2.1)
        return headers


class RouteUnknown(RegistryError, exceptions.NotFound):
    """Clients treat this as "not supported" and fall back.

    (`Unsupported` has the same code, for a method.)
    """

    error_code = "UNSUPPORTED"
    description: str = "the registry has no such endpoint"


ERRORS: Mapping[str, type[RegistryError]] = MappingProxyType(
    {
        error.error_code: error
        for error in RegistryError.__subclasses__()
        if error is not RouteUnknown
    }
)
"""The exception for each error code. `Unsupported` and `RouteUnknown` share the code
``UNSUPPORTED``, which is `Unsupported` here."""

BY_STATUS: Mapping[int | None, type[RegistryError]] = {
    error.code: error for error in (Unauthorized, Denied, Unsupported, TooManyRequests, Unavailable)
}
"""The exception for a status without a known error code. Other statuses do not imply a code."""

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
"""The exception for a 404 at each endpoint of the API."""

# The error codes, by status, for exceptions that are not a `RegistryError`.
_CODES = {
    **{status: error.error_code for status, error in BY_STATUS.items()},
    404: RouteUnknown.error_code,
    411: SizeInvalid.error_code,
    413: SizeInvalid.error_code,
    416: RangeInvalid.error_code,
}


def error_response(
    error: HTTPException | Sequence[HTTPException], environ: "WSGIEnvironment | None" = None
) -> Response:
    """Return the response for an error, in the registry's JSON form.

    For several errors, such as those from `responses.parse_errors`, the body lists them all; the
    status and the headers are those of the first. A redirect stays a redirect. For an error that
    carries a response, return that response.

    In Flask: ``app.register_error_handler(HTTPException, error_response)``.

    >>> from werkzeug.exceptions import Forbidden
    >>> error_response(Forbidden("not you")).get_json()
    {'errors': [{'code': 'DENIED', 'message': 'not you'}]}

    Raises `ValueError` if the sequence of errors is empty.
    """
    errors = [error] if isinstance(error, HTTPException) else error
    if not errors:
        raise ValueError("the sequence of errors is empty, so there is nothing to respond with")
    first = errors[0]
    if isinstance(first, RequestRedirect):
        response = Response(status=first.code, headers={"Location": first.new_url})
        del response.headers["Content-Type"]
        return response
    response = first.get_response(environ)
    if first.response is not None:
        return response
    if first.code is None:
        response.status_code = 500
    if len(errors) > 1 or not isinstance(first, RegistryError):
        response.data = error_body(map(_entry_of, errors))
        response.content_type = "application/json"
    return response


def _entry_of(error: HTTPException) -> dict[str, Any]:
    if isinstance(error, RegistryError):
        return error.entry
    code = _CODES.get(error.code or 500, Unknown.error_code)
    return error_entry(code, error.description or error.name)
