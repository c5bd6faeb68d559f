"""Lists in pages, for those who serve them and those who read them."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from .errors import PaginationNumberInvalid
from .headers import field_lines, unquoted
from .urls import resolve_location


def parse_page(args: Mapping[str, str]) -> tuple[int | None, str | None]:
    """``n`` and ``last`` of a request's query: how many results it wants, and after which.

    (distribution-spec 1.1, "Listing Tags".)

    Each is `None` where it is not given. Raises `PaginationNumberInvalid` for an ``n`` that is not
    a whole number, 0 or more. One of more than 18 digits is taken for 10**18: no list is longer.

    >>> parse_page({"n": "100", "last": "1.27"})
    (100, '1.27')
    """
    n = args.get("n")
    if n is None:
        return None, args.get("last")
    if not re.fullmatch("[0-9]+", n):
        raise PaginationNumberInvalid(detail={"n": n})
    digits = n.lstrip("0")  # int() refuses a few thousand of them
    return int(digits or 0) if len(digits) < 19 else 10**18, args.get("last")


def paginate(
    names: Iterable[str], n: int | None, last: str | None, *, ascii_order: bool = False
) -> tuple[list[str], bool]:
    """At most `n` of the names after `last`, in order; and whether to link to a next page.

    Each name comes once. The order is one of the two that the specification allows ("Listing
    Tags"): alphabetical, whatever the case; or, with `ascii_order`, that of the characters' codes,
    as Go sorts, which its main branch has added. A list keeps to one of them, as `last` depends on
    it. Raises `ValueError` for an `n` below 0.

    >>> paginate(["b", "C", "a", "d"], 2, "a")
    (['b', 'C'], True)
    >>> paginate(["b", "C", "a", "d"], 2, "b")
    (['C', 'd'], False)
    >>> paginate(["b", "C", "a", "d"], 2, None, ascii_order=True)
    (['C', 'a'], True)
    >>> paginate(["a", "b"], 0, None)
    ([], False)
    """
    if n is not None and n < 0:
        raise ValueError(f"n {n!r} must be 0 or more")
    order = str if ascii_order else _alphabetical
    ordered = sorted(set(names), key=order)
    begin = 0 if last is None else bisect_right(ordered, order(last), key=order)
    end = len(ordered) if n is None else begin + n
    return ordered[begin:end], bool(n) and end < len(ordered)


def _alphabetical(name: str) -> tuple[str, str]:
    return name.lower(), name


def next_link(url: str) -> str:
    """The ``Link`` header (RFC 8288) that leads to a next page, at `url`.

    What no URL can have is percent-encoded (RFC 3986), so that nothing in `url` ends the header or
    the link.

    >>> next_link("/v2/a/tags/list?n=2&last=c")
    '</v2/a/tags/list?n=2&last=c>; rel="next"'
    >>> next_link("/v2/a/tags/list?last=<é>")
    '</v2/a/tags/list?last=%3C%C3%A9%3E>; rel="next"'
    """
    return f'<{quote(url, safe=_URL_CHARACTERS)}>; rel="next"'


_URL_CHARACTERS = "%:/?#[]@!$&'()*+,;="  # and those that are never quoted

_TARGET = re.compile("[ \t,]*+<([^>]*+)>")
_PARAMETER = re.compile(
    r"""[ \t]*+;[ \t]*+([^ \t=;,]*+)[ \t]*+  # its name
    (?:=[ \t]*+(?:"((?>(?:[^"\\]++|\\.)*))")?([^;,]*+))?  # its value, quoted or not""",
    re.VERBOSE | re.DOTALL,
)


def parse_next_link(request_url: object, header: str | Iterable[str] | None) -> str | None:
    """The URL of the next page, from a response's ``Link`` header (RFC 8288); `None` without one.

    `request_url` is what the response answers, a string or any object that prints as a URL: a link
    may be relative to it. `header` may be several lines of the header, as a list. A link with an
    ``anchor`` is about something else than this page.

    >>> parse_next_link("https://registry.example.com/v2/a/tags/list", '</next?n=2>; rel="next"')
    'https://registry.example.com/next?n=2'

    It may lead to another host: credentials are for the registry's own. Raises `ValueError` where
    it is no URL of ``http`` or ``https``.
    """
    for line in field_lines(header):
        position = 0
        while target := _TARGET.match(line, position):
            position = target.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(line, position):
                position = parameter.end()
                name, quoted, plain = parameter.groups()
                value = (plain or "") if quoted is None else unquoted(quoted)
                # Of several, the first counts (RFC 8288, section 3.3).
                parameters.setdefault(name.lower(), value)
            relations = parameters.get("rel", "").lower().split()
            if "next" in relations and "anchor" not in parameters:
                return resolve_location(request_url, target[1])
    return None
