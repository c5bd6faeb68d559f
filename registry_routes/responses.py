"""Reading a registry's responses: the errors in them, and how long to wait."""

import json
import re
from collections.abc import Mapping
from functools import cache
from html import unescape
from typing import Any

from werkzeug import exceptions

from .challenges import Challenge, parse_challenges
from .errors import (
    BY_STATUS,
    ERRORS,
    MISSING,
    RegistryError,
    RouteUnknown,
    Unauthorized,
    Unsupported,
)
from .headers import Headers, header_pairs, header_values, retry_after

__all__ = ["FORWARDED", "beginning_of", "parse_errors", "raise_for_status"]


def parse_errors(
    status: int,
    body: bytes | str = b"",
    headers: Headers | None = None,
    *,
    endpoint: str | None = None,
) -> list[RegistryError]:
    """Return the errors in a registry's response of status 400 or more: at least one.

    `status`, `body` and `headers` are the response's. The body may be JSON, as in the
    specification, or any text or HTML, as from a proxy. The headers may have any form that
    `headers.header_pairs` takes.

    Each error has the response's status as its ``code``, and the registry's `error_code` and
    message. A known error code gives its own exception. Any other code gives a `RegistryError` that
    is also the Werkzeug exception of the status. For some statuses, the status decides:

    - A 401 is always an `Unauthorized`. It has the `realm`, `service`, `scope` and `error` of the
      first Bearer challenge, each "" if there is none, and all `challenges`.
    - A 405 is an `Unsupported` with its `valid_methods`.
    - A 429 is a `TooManyRequests`, and a 503 is an `Unavailable`.

    Each error has the response's ``Retry-After`` as `retry_after`, in seconds. A time counts from
    the response's ``Date``, or else from now.

    The response to a HEAD has no body. If `endpoint` names the requested endpoint, as the map does,
    a 404 without a body becomes the specification's error for it: a `ManifestUnknown` for
    "manifest". (The prefix of an `EndpointPrefix` that ends in "." is ignored.)

    A proxy can raise the first error, or pass all of them to `registry_routes.error_response`. Its
    client then gets the status, the codes, the messages, the details, and the headers about the
    error.

    >>> [error] = parse_errors(404, b'{"errors": [{"code": "NAME_UNKNOWN", "message": "no"}]}')
    >>> error
    <NameUnknown '404 NAME_UNKNOWN: no'>
    >>> [error] = parse_errors(502, b"<html><title>Bad gateway</title></html>")
    >>> error.error_code, error.message, isinstance(error, exceptions.BadGateway)
    ('UNKNOWN', 'Bad gateway', True)
    >>> headers = {"WWW-Authenticate": 'Bearer realm="https://auth.example/"'}
    >>> [error] = parse_errors(401, b"", headers)
    >>> error.realm, error.scope
    ('https://auth.example/', '')
    >>> parse_errors(404, endpoint="blob")
    [<BlobUnknown '404 BLOB_UNKNOWN: the repository has no such blob'>]

    Raises `TypeError` for an argument of another type, and `ValueError` for a status that is not
    400 to 999.
    """
    if not isinstance(status, int) or isinstance(status, bool):
        raise TypeError(f"status {status!r:.100} is not an int")
    if not 400 <= status <= 999:
        raise ValueError(f"status {status!r} is not that of an error, 400 to 999")
    if not isinstance(body, str | bytes):
        raise TypeError(f"body {body!r:.100} is neither bytes nor a string")
    text = body if isinstance(body, str) else str(body, errors="replace")
    pairs = header_pairs(headers)
    forwarded = [pair for pair in pairs if pair[0].lower() in FORWARDED]
    default = MISSING.get((endpoint or "").rpartition(".")[2]) if status == 404 else None
    if text.strip() or default is None:
        default = BY_STATUS.get(status)
    entries = _parse_entries(text) or [{"message": _extract_text(text)}]
    date = next(iter(header_values(pairs, "Date")), None)
    wait = retry_after(header_values(forwarded, "Retry-After"), date)
    return [_make_error(int(status), forwarded, wait, default, entry) for entry in entries]


def raise_for_status(response: Any, *, endpoint: str | None = None) -> None:
    """Raise the registry's error if the status of a response is 400 or more.

    `response` is a response of requests or httpx. At most 64 KiB of its body are read; that of an
    ``httpx.AsyncClient`` must have been read before. `endpoint` is as in `parse_errors`, which
    returns all errors of a response; this function raises the first.
    """
    if response.status_code >= 400:
        content = beginning_of(response)
        raise parse_errors(response.status_code, content, response.headers, endpoint=endpoint)[0]


MOST = 64 * 1024  # bytes of a body that are read


def beginning_of(response: Any) -> bytes:
    """Return the first 64 KiB of the body of a response of requests or httpx."""
    blocks = response.iter_content if hasattr(response, "iter_content") else response.iter_bytes
    content = bytearray()
    for block in blocks(MOST):
        content += block
        if len(content) >= MOST:
            response.close()
            break
    return bytes(content[:MOST])


FORWARDED = (
    "www-authenticate",
    "allow",
    "retry-after",
    "content-range",
    "ratelimit-limit",
    "ratelimit-remaining",
)
"""The headers about an error, which a proxy forwards, in lower case."""


def _parse_entries(text: str) -> list[dict[str, Any]]:
    """Return the entries of a JSON body; none if the body is not JSON or has no errors."""
    try:
        content = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return []
    if not isinstance(content, dict):
        return []
    errors = content.get("errors")
    if isinstance(errors, list) and (entries := [e for e in errors if isinstance(e, dict)]):
        return entries
    # Token servers send {"details": "..."}, or the error and error_description of RFC 6749.
    keys = ("message", "details", "error_description", "error")
    words = [content[key] for key in keys if isinstance(content.get(key), str)]
    return [{"message": words[0], "detail": content}] if words else []


def _make_error(
    status: int,
    headers: list[tuple[str, str]],
    wait: int | None,
    default: type[RegistryError] | None,
    entry: Mapping[str, Any],
) -> RegistryError:
    code, message = entry.get("code"), entry.get("message")
    known = ERRORS.get(code) if isinstance(code, str) else None
    if known is Unsupported and status == 404:
        known = RouteUnknown
    if known is None or status in _DECISIVE_STATUSES:
        known = default
    options: dict[str, Any] = {}
    if known is Unauthorized:
        bearers = [each for each in parse_challenges(headers) if each.scheme == "bearer"]
        challenge = bearers[0] if bearers else Challenge("bearer")
        options = {name: getattr(challenge, name) for name in _OF_A_CHALLENGE}
        options["challenge"] = challenge  # `error.headers`, below, has the original ones
    elif known is Unsupported:
        allow = ",".join(header_values(headers, "Allow"))
        options["valid_methods"] = re.findall(r"[^\s,]+", allow) or None
    error = (known or _make_class(status))(
        message if isinstance(message, str) and message else None,
        detail=entry.get("detail"),
        **options,
    )
    # The constructor has set these for an error that is to be sent; this error was received.
    error.code = status
    error.headers = list(headers)  # exactly as the registry sent them
    error.retry_after = wait
    if isinstance(code, str) and code:
        error.error_code = code
    return error


_DECISIVE_STATUSES = (401, 405, 429, 503)  # their headers say more than an error code
_OF_A_CHALLENGE = ("realm", "service", "scope", "error")


@cache
def _make_class(status: int) -> type[RegistryError]:
    implied = exceptions.default_exceptions.get(status, exceptions.HTTPException)

    def reduce(error: RegistryError) -> tuple[Any, ...]:  # pickle cannot find the class by name
        return _restore_error, (status,), error.__dict__

    members = {"description": implied().name, "__reduce__": reduce}
    return type("RegistryError", (RegistryError, implied), members)


def _restore_error(status: int) -> RegistryError:
    return _make_class(status)()


def _extract_text(text: str) -> str:
    """Return the title of a page, or the first words of a text, for the message."""
    text = text[:10_000]
    if "<" in text:
        title = re.search(r"<title[^<>]*>([^<]*)", text, re.IGNORECASE)
        text = title[1] if title else re.sub(r"<[^<>]*>", " ", text)
        text = unescape(re.sub("&#[0-9]{10,}", " ", text))  # int() refuses several thousand digits
    return " ".join(text.split())[:500]
