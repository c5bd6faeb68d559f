"""Lists in pages, for those who serve them and those who read them."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping

from werkzeug.http import parse_options_header

from .errors import PaginationNumberInvalid
from .urls import resolve_location


def requested_page(args: Mapping[str, str]) -> tuple[int | None, str | None]:
    """``n`` and ``last`` of a request's query: how many results it wants, and after which.

    (distribution-spec 1.1, "Listing Tags".)

    Each is `None` where it is not given. Raises `PaginationNumberInvalid` for an ``n`` that is not
    a whole number, 0 or more.

    >>> requested_page({"n": "100", "last": "1.27"})
    (100, '1.27')
    """
    n = args.get("n")
    if n is not None and not re.fullmatch("[0-9]+", n):
        raise PaginationNumberInvalid(detail={"n": n})
    # No list is longer than that, and int() refuses some thousand digits.
    number = n if n is None else int(n) if len(n) < 19 else 10**18
    return number, args.get("last")


def cut_page(names: Iterable[str], n: int | None, last: str | None) -> tuple[list[str], bool]:
    """At most `n` of the names after `last`, in order; and whether to link to a next page.

    The order is the specification's ("Listing Tags"), alphabetical whatever the case.

    >>> cut_page(["b", "C", "a", "d"], 2, "a")
    (['b', 'C'], True)
    >>> cut_page(["b", "C", "a", "d"], 2, "b")
    (['C', 'd'], False)
    >>> cut_page(["a", "b"], 0, None)
    ([], False)
    """
    ordered = sorted(names, key=_order)
    begin = 0 if last is None else bisect_right(ordered, _order(last), key=_order)
    end = len(ordered) if n is None else begin + n
    return ordered[begin:end], bool(n) and end < len(ordered)


def _order(name: str) -> tuple[str, str]:
    return name.lower(), name


def next_link(url: str) -> str:
    """The ``Link`` header (RFC 8288) that leads to a next page, at `url`.

    >>> next_link("/v2/a/tags/list?n=2&last=c")
    '</v2/a/tags/list?n=2&last=c>; rel="next"'
    """
    return f'<{url}>; rel="next"'


_LINK = re.compile(
    r"""[\s,]*<([^<>]*)>\s*((?>(?:;[^,;"<>]*(?:"(?>(?:[^"\\]|\\.)*)"[^,;"<>]*)?)*))"""
)


def parse_next_link(request_url: str, header: str | None) -> str | None:
    """The URL of the next page, from a response's ``Link`` header (RFC 8288); `None` without one.

    `request_url` is what the response answers: a link may be relative to it.

    >>> parse_next_link("https://registry.example.com/v2/a/tags/list", '</next?n=2>; rel="next"')
    'https://registry.example.com/next?n=2'

    It may lead to another host: credentials are for the registry's own. Raises `ValueError` where
    it is no URL of ``http`` or ``https``.
    """
    position = 0
    while link := _LINK.match(header or "", position):
        position = link.end()
        # Which knows no blanks around "=", as there may be.
        _, parameters = parse_options_header("link" + re.sub(r"(?<!\s)\s*=\s*", "=", link[2]))
        if "next" in parameters.get("rel", "").lower().split():
            return resolve_location(request_url, link[1])
    return None
