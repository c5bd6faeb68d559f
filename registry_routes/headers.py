"""The API's own headers, which registries write and clients read.

Each function takes or returns the value of a header, and needs neither a request nor a response. A
number of bytes may have at most 18 digits, which is more than any blob needs.
"""

import math
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Protocol, TypeAlias

from werkzeug.http import parse_date, quote_header_value

__all__ = [
    "ACCEPT_MANIFESTS",
    "DOCKER_MANIFEST",
    "DOCKER_MANIFEST_LIST",
    "IMAGE_INDEX",
    "IMAGE_MANIFEST",
    "MANIFEST_MEDIA_TYPES",
    "Headers",
    "bytes_received",
    "chunk_min_length",
    "content_range",
    "field_lines",
    "header_pairs",
    "header_values",
    "parse_content_range",
    "parse_list",
    "parse_warnings",
    "retry_after",
    "seconds_until",
    "unescape",
    "upload_range",
    "warning",
]

IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

MANIFEST_MEDIA_TYPES = (IMAGE_INDEX, IMAGE_MANIFEST, DOCKER_MANIFEST_LIST, DOCKER_MANIFEST)
"""The media types of manifests: OCI's index and manifest (image-spec 1.1, "Media Types"), and their
equivalents of Docker's (Image Manifest V2, Schema 2)."""

ACCEPT_MANIFESTS = ", ".join(MANIFEST_MEDIA_TYPES)
"""The ``Accept`` of a request for a manifest of any of `MANIFEST_MEDIA_TYPES`."""

_NUMBER = "[0-9]{1,18}"  # int() refuses several thousand digits
_UPLOAD_RANGE = re.compile(f"(?:(?i:bytes)[= ])?0-(-1|{_NUMBER})")
_CONTENT_RANGE = re.compile(rf"(?:(?i:bytes)[= ])?({_NUMBER})-({_NUMBER})(?:/(?:\*|({_NUMBER})))?")


def upload_range(size: int) -> str:
    """Return the ``Range`` in the status of an upload of which the registry has `size` bytes.

    (distribution-spec 1.1, "Pushing a blob in chunks".) It ends with the position of the last byte.
    An upload without any bytes also has ``0-0``, as in Go distribution. Raises `ValueError` for a
    `size` below 0.

    >>> upload_range(100), upload_range(1), upload_range(0)
    ('0-99', '0-0', '0-0')
    """
    if size < 0:
        raise ValueError(f"size {size!r} must be 0 or more")
    return f"0-{max(size - 1, 0)}"


def bytes_received(value: str | None) -> int:
    """Return how many bytes of an upload the registry has, from the ``Range`` in its status.

    (distribution-spec 1.1, "Pushing a blob in chunks".) The next chunk starts at that position. In
    Docker's specification, ``bytes=`` comes first. For an upload without any bytes, registries send
    ``0-0`` or ``0--1``, or no ``Range`` at all, which is `None` here.

    ``0-0`` is ambiguous: registries also send it for an upload of a single byte, for which this
    function returns 0. A client can tell the two apart if it knows that the registry accepted a
    chunk of a single byte. If the response to that chunk was lost, the client can send the chunk
    again: the registry answers 416 if it has the byte. A longer first chunk avoids all this.

    Raises `ValueError` for anything else.

    >>> bytes_received("0-99"), bytes_received("bytes=0-99"), bytes_received("0-0")
    (100, 100, 0)
    """
    if value is None:
        return 0
    found = _UPLOAD_RANGE.fullmatch(value.strip(" \t"))
    if not found:
        raise ValueError(f"Range {value!r:.100} of an upload must be '0-' and a position")
    end = int(found[1])
    return end + 1 if end > 0 else 0


def content_range(start: int, size: int) -> str:
    """Return the ``Content-Range`` of a chunk of `size` bytes whose first byte is at `start`.

    (distribution-spec 1.1, "Pushing a blob in chunks".) Raises `ValueError` for a `start` below 0,
    and for an empty chunk: a range cannot be empty.

    >>> content_range(0, 100), content_range(100, 1)
    ('0-99', '100-100')
    """
    if start < 0:
        raise ValueError(f"start {start!r} must be 0 or more")
    if size < 1:
        raise ValueError(f"size {size!r} must be 1 or more")
    return f"{start}-{start + size - 1}"


def parse_content_range(value: str) -> tuple[int, int]:
    """Return the start of a chunk and its size in bytes, from its ``Content-Range``.

    The form may be that of the distribution-spec, ``0-99``, or that of HTTP, ``bytes 0-99/100``
    (RFC 9110, section 14.4), so this also reads the ``Content-Range`` of a 206. Raises `ValueError`
    for anything else, for an end before the start, and for an end beyond the whole.

    >>> parse_content_range("100-199"), parse_content_range("bytes 100-199/*")
    ((100, 100), (100, 100))
    """
    found = _CONTENT_RANGE.fullmatch(value.strip(" \t"))
    if not found:
        raise ValueError(f"Content-Range {value!r:.100} must be a start, '-' and an end")
    start, end = int(found[1]), int(found[2])
    if end < start:
        raise ValueError(f"Content-Range {value!r:.100} ends before it starts")
    if found[3] and int(found[3]) <= end:
        raise ValueError(f"Content-Range {value!r:.100} ends beyond the whole")
    return start, end + 1 - start


def chunk_min_length(value: str | None) -> int:
    """Return the minimum size of a chunk in bytes, from ``OCI-Chunk-Min-Length``; 0 without it.

    (distribution-spec 1.1, "Pushing a blob in chunks": the header comes with the response to the
    POST, and the last chunk may be shorter.) Raises `ValueError` if the value is not a whole
    number. A registry may send any number, so a client that holds chunks in memory needs its own
    limit.

    >>> chunk_min_length("5242880"), chunk_min_length(None)
    (5242880, 0)
    """
    if value is None:
        return 0
    if not re.fullmatch(_NUMBER, value.strip(" \t")):
        raise ValueError(f"OCI-Chunk-Min-Length {value!r:.100} must be a whole number")
    return int(value)


class _HasItems(Protocol):
    def items(self) -> Iterable[tuple[Any, Any]]: ...


Headers: TypeAlias = _HasItems | Iterable[tuple[Any, Any]]
"""The headers of a response from any HTTP library, or pairs of a name and a value."""


def header_pairs(headers: Headers | None) -> list[tuple[str, str]]:
    """Return the name and the value of each header line.

    `headers` may be those of http.client, urllib3, requests, httpx, aiohttp or Werkzeug, a `dict`
    whose values may be lists, or pairs. Names and values may be `bytes`, as in ASGI. A line whose
    value is `None` is left out.

    >>> header_pairs({"Allow": ["GET", "HEAD"], "Retry-After": 30})
    [('Allow', 'GET'), ('Allow', 'HEAD'), ('Retry-After', '30')]

    Raises `TypeError` for anything else.
    """
    # httpx's items() would join the lines.
    items = getattr(headers, "multi_items", None) or getattr(headers, "items", None)
    given: Any = () if headers is None else items() if items else headers
    try:
        pairs = [(name, value) for name, value in given]
    except (TypeError, ValueError):
        raise TypeError(f"headers {headers!r:.100} are neither a mapping nor pairs") from None
    return [
        (_decode(name), _decode(line))
        for name, value in pairs
        for line in (value if isinstance(value, list | tuple) else [value])
        if line is not None
    ]


def header_values(headers: Headers | None, name: str) -> list[str]:
    """Return the value of each line of the header `name`, in any case.

    >>> header_values([("Allow", "GET"), ("Age", "3"), ("allow", "HEAD")], "Allow")
    ['GET', 'HEAD']

    `headers` are as in `header_pairs`.
    """
    return [value for other, value in header_pairs(headers) if other.lower() == name.lower()]


def _decode(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def field_lines(value: str | Iterable[str] | None) -> list[str]:
    """Return the lines of a header as a list, whether there are several, one or none.

    HTTP libraries return several lines as a list, or join them with commas. (RFC 9110, section
    5.3.)

    >>> field_lines(["1.2.3, 1.2", "latest"]), field_lines("latest"), field_lines(None)
    (['1.2.3, 1.2', 'latest'], ['latest'], [])
    """
    return [value] if isinstance(value, str) else list(value or ())


def seconds_until(time: datetime, now: datetime | None = None) -> int:
    """Return the number of seconds from `now` to `time`, rounded up, and at least 0.

    A time without a timezone is UTC, as in Werkzeug.
    """
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return _cap(math.ceil((aware - (now or datetime.now(UTC))).total_seconds()))


def retry_after(value: str | Iterable[str] | None, date: str | None = None) -> int | None:
    """Return the number of seconds to wait, from ``Retry-After``; `None` if it does not say.

    (RFC 9110, section 10.2.3.) Fractions are rounded up. A time counts from `date`, the response's
    own ``Date``, or else from now. The result is at least 0, and at most 999,999,999.

    >>> retry_after("30"), retry_after("1.2"), retry_after("soon")
    (30, 2, None)
    >>> retry_after("Tue, 24 Nov 2026 10:00:30 GMT", "Tue, 24 Nov 2026 10:00:00 GMT")
    30
    """
    for line in field_lines(value):
        first = line.partition(",")[0].strip(" \t")  # two lines may have been joined
        if re.fullmatch(r"[0-9]+(?:\.[0-9]*)?", first):
            return _cap(math.ceil(min(float(first), 1e9)))
        if (time := _parse_time(line)) is not None:
            return seconds_until(time, _parse_time(date or ""))
    return None


def _cap(seconds: int) -> int:
    return min(max(seconds, 0), 999_999_999)


def _parse_time(text: str) -> datetime | None:
    try:
        return parse_date(text)
    except (OverflowError, ValueError):  # a date that does not exist
        return None


_ELEMENT = re.compile(r"""(?>(?:[^",]++|"(?>(?:[^"\\]++|\\.)*)"?)+)""", re.DOTALL)


def _split_elements(value: str | Iterable[str] | None) -> Iterator[str]:
    for line in field_lines(value):
        for element in _ELEMENT.findall(line):
            if stripped := element.strip(" \t"):
                yield stripped


def parse_list(value: str | Iterable[str] | None) -> list[str]:
    """Return the elements of a header whose value is a list, from all its lines.

    ``OCI-Tag`` lists the tags that a manifest got when it was pushed by its digest, and
    ``OCI-Filters-Applied`` lists the filters of a list of referrers.
    (distribution-spec 1.1, and its main branch for the tags; RFC 9110, section 5.6.1.)

    >>> parse_list(["1.2.3, 1.2, 1", "latest"])
    ['1.2.3', '1.2', '1', 'latest']
    >>> "artifactType" in parse_list("artifactType")
    True
    """
    return list(_split_elements(value))


_QUOTED = r'"((?>(?:[^"\\]++|\\.)*))"'
_WARNING = re.compile(rf'299[ \t]++[^ \t"]++[ \t]++{_QUOTED}(?:[ \t]++"[^"]*+")?', re.DOTALL)


def warning(text: str) -> str:
    """Return the ``Warning`` header that makes a client show `text` to its user.

    (distribution-spec 1.1, "Warnings", which allows at most 4096 bytes for all the warnings of a
    response.) Raises `ValueError` for control characters and characters outside Latin-1, which a
    header cannot carry.

    >>> warning('The tag "v1" is deprecated.')
    '299 - "The tag \\\\"v1\\\\" is deprecated."'
    """
    if re.search("[^\t\x20-\x7e\xa0-\xff]", text):
        raise ValueError(f"warning {text!r:.100} contains characters that no header can carry")
    return f"299 - {quote_header_value(text, allow_token=False)}"


def parse_warnings(value: str | Iterable[str] | None) -> list[str]:
    """Return the distinct texts of a response's ``Warning`` headers, to show to the user.

    (distribution-spec 1.1, "Warnings"; RFC 7234, section 5.5.) Warnings with a code other than 299
    come from HTTP caches, and are left out.

    >>> parse_warnings('299 - "Your token expires soon.", 110 - "Response is Stale"')
    ['Your token expires soon.']
    """
    found = filter(None, map(_WARNING.fullmatch, _split_elements(value)))
    return list(dict.fromkeys(unescape(match[1]) for match in found))


def unescape(text: str) -> str:
    r"""Return the value of a quoted string, from the text between its quotes.

    (RFC 9110, section 5.6.4.)

    >>> print(unescape(r'a \"b\" and a \\'))
    a "b" and a \
    """
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)
