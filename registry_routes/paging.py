"""Lists in pages: the query parameters and the ``Link`` headers, for servers and clients."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import TypeVar
from urllib.parse import parse_qs, quote, urlsplit

from .errors import PaginationNumberInvalid
from .headers import field_lines, unescape
from .urls import resolve

__all__ = ["next_link", "paginate", "parse_next_link", "parse_next_query", "parse_page"]

Thing = TypeVar("Thing")


def parse_page(args: Mapping[str, str]) -> tuple[int | None, str | None]:
    """Return ``n`` and ``last`` of a query: the number of results, and the name before the first.

    (distribution-spec 1.1, "Listing Tags".) Each is `None` if it is missing. Raises
    `PaginationNumberInvalid` for an ``n`` that is not a whole number, 0 or more. A number of more
    than 18 digits is capped at 10**18.

    >>> parse_page({"n": "100", "last": "1.27"})
    (100, '1.27')
    """
    n = args.get("n")
    if n is None:
        return None, args.get("last")
    if not re.fullmatch("[0-9]+", n):
        raise PaginationNumberInvalid(detail={"n": n})
    digits = n.lstrip("0")  # int() refuses several thousand digits
    return int(digits or 0) if len(digits) < 19 else 10**18, args.get("last")


def paginate(names: Iterable[Thing], n: int | None) -> tuple[list[Thing], bool]:
    """Return the first `n` names, or all for `None`, and whether to link to a next page.

    The names are those after ``last``, in the order of the list. The function takes at most `n` + 1
    names from an iterator. An empty page has no next page. Raises `ValueError` for an `n` below 0.

    >>> paginate(["a", "b", "c"], 2), paginate(["c"], 2)
    ((['a', 'b'], True), (['c'], False))
    """
    if n is not None and n < 0:
        raise ValueError(f"n {n!r} must be 0 or more")
    remaining = iter(names)
    page = list(islice(remaining, n))
    return page, bool(page) and any(True for _ in remaining)


def next_link(url: str) -> str:
    """Return the ``Link`` header (RFC 8288) to a next page, at `url`.

    Characters that a URL cannot have are percent-encoded (RFC 3986), so that `url` cannot inject
    header syntax.

    >>> next_link("/v2/a/tags/list?n=2&last=c")
    '</v2/a/tags/list?n=2&last=c>; rel="next"'
    >>> next_link("/v2/a/tags/list?last=<é>")
    '</v2/a/tags/list?last=%3C%C3%A9%3E>; rel="next"'
    """
    return f'<{quote(url, safe=_URL_CHARACTERS)}>; rel="next"'


_URL_CHARACTERS = "%:/?#[]@!$&'()*+,;="  # quote() always keeps the unreserved ones

_TARGET = re.compile("[ \t,]*+<([^>]*+)>")
_PARAMETER = re.compile(
    r"""[ \t]*+;[ \t]*+([^ \t=;,]*+)[ \t]*+  # the name
    (?:=[ \t]*+(?:"((?>(?:[^"\\]++|\\.)*))")?([^;,]*+))?  # the value, quoted or not""",
    re.VERBOSE | re.DOTALL,
)


def parse_next_link(request_url: object, header: str | Iterable[str] | None) -> str | None:
    """Return the URL of the next page, from a response's ``Link`` header (RFC 8288); or `None`.

    `request_url` is the requested URL, a string or an object whose `str()` is a URL: a link may be
    relative to it. `header` may be a list of lines. A link with an ``anchor`` is ignored, because
    it is not about this page.

    >>> parse_next_link("https://registry.example.com/v2/a/tags/list", '</next?n=2>; rel="next"')
    'https://registry.example.com/next?n=2'

    The link may lead to another host, and there from https to http: do not send the registry's
    credentials there. A link that is not a URL of ``http`` or ``https`` is ignored. Raises
    `ValueError` for a malformed `request_url`.
    """
    resolve(request_url, "")  # raises an error if it is malformed
    for line in field_lines(header):
        position = 0
        while target := _TARGET.match(line, position):
            position = target.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(line, position):
                position = parameter.end()
                name, quoted, plain = parameter.groups()
                value = (plain or "") if quoted is None else unescape(quoted)
                # Of repeated parameters, the first counts (RFC 8288, section 3.3).
                parameters.setdefault(name.lower(), value)
            relations = parameters.get("rel", "").lower().split()
            if "next" in relations and "anchor" not in parameters:
                with suppress(ValueError):
                    return resolve(request_url, target[1]).geturl()
    return None


def parse_next_query(
    request_url: object, header: str | Iterable[str] | None
) -> dict[str, list[str]]:
    """Return the query of the next page, for a list that is asked for at another URL.

    A proxy needs this: in the ``Link`` of the registry behind it, the path may have a prefix, or
    the name that the repository has there. Only the query says where the next page begins.

    >>> url = "https://internal.example.com/v2/team/app/tags/list?n=2"
    >>> query = parse_next_query(url, '</prefix/v2/local/app/tags/list?n=2&last=b>; rel="next"')
    >>> query
    {'n': ['2'], 'last': ['b']}
    >>> from registry_routes import URLBuilder
    >>> urls = URLBuilder("https://proxy.example.com")
    >>> next_link(urls.build("tags", {"name": "team/app"}, query))
    '<https://proxy.example.com/v2/team/app/tags/list?n=2&last=b>; rel="next"'

    The arguments are those of `parse_next_link`. The query is empty if there is no next page, and
    if the link has the query of `request_url`, because that page would follow itself for ever.
    """
    query = _parse_query(parse_next_link(request_url, header) or "")
    return {} if query == _parse_query(str(request_url)) else query


def _parse_query(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).query, keep_blank_values=True)
