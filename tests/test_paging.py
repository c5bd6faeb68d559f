"""Lists in pages: the query of a request, the page, and the link to the next one."""

from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict

from registry_routes.errors import PaginationNumberInvalid
from registry_routes.paging import (
    next_link,
    paginate,
    parse_next_link,
    parse_next_query,
    parse_page,
)

PAGE = "https://h/v2/x"


def test_n_and_last_of_a_query() -> None:
    assert parse_page({}) == (None, None)
    assert parse_page({"n": "0", "last": ""}) == (0, "")
    assert parse_page(MultiDict([("n", "005"), ("n", "6"), ("last", "a")])) == (5, "a")
    assert parse_page({"n": "0" * 100_000 + "9" * 18}) == (10**18 - 1, None)
    for huge in "9" * 19, "9" * 100_000:
        assert parse_page({"n": huge}) == (10**18, None)


@pytest.mark.parametrize("n", ["", "-1", "x", "1.0", "1\n", "٣", "1_000"])
def test_malformed_n_is_refused(n: str) -> None:
    with pytest.raises(PaginationNumberInvalid) as error:
        parse_page({"n": n})
    assert error.value.detail == {"n": n}


# The pages.


@given(st.sets(st.text(max_size=3)), st.integers(1, 5))
def test_pages_together_have_each_name_once(names: set[str], n: int) -> None:
    last, seen, more = "", list[str](), True
    whole = sorted(names - {""})
    while more:
        page, more = paginate((name for name in whole if name > last), n)
        seen += page
        assert not more or len(page) == n
        last = page[-1] if more else last
    assert seen == whole
    for length in None, len(whole), 10**18:
        assert paginate(whole, length) == (whole, False)
    assert paginate(whole, 0) == ([], False)


def test_page_takes_one_name_more_than_it_has() -> None:
    names = iter("abcdef")
    assert paginate(names, 2) == (["a", "b"], True)
    assert next(names) == "d"
    with pytest.raises(ValueError, match="n -1 must be 0 or more"):
        paginate(["a"], -1)


# The link.


@given(st.text())
@example('x>; rel="prev", <y')
@example("\r\nSet-Cookie: a=b")
@example("€ é\x85\x00\\\"'{|}^`")
@example("%3E%2z%")
def test_link_to_any_text_can_be_sent_and_leads_there(text: str) -> None:
    text = text.partition("#")[0]  # no request has a fragment
    header = next_link(f"https://h/v2/_catalog?last={text}")
    assert header.isascii()
    assert header.isprintable()
    assert header.count("<") == header.count(">") == 1
    found = parse_next_link(PAGE, header)
    assert found is not None
    assert unquote(found) == unquote(f"https://h/v2/_catalog?last={text}")


@given(st.text(alphabet="abc%/:?[]@!$&'()*+,;=-._~019"))
def test_well_formed_url_is_not_changed(query: str) -> None:
    url = f"https://h/v2/_catalog?last={query}"
    assert next_link(url) == f'<{url}>; rel="next"'
    assert parse_next_link(PAGE, next_link(url)) == url


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('</x?a=1,2;3>;rel="next"', "https://h/x?a=1,2;3"),
        ('</p>; rel="prev", </n>; rel="next"', "https://h/n"),
        ('</p>; rel="prev"; title="a, <b>; rel=next", </n>; REL="NEXT"', "https://h/n"),
        ('</n>; title="x\\"y"; rel="up next"', "https://h/n"),
        ("<y?n=1>; rel=next", "https://h/v2/y?n=1"),
        ("<https://other.example/x>; rel=next", "https://other.example/x"),
        ("<http://internal:5000/x>; rel=next", "http://internal:5000/x"),
        ("<http://h:5000/x>; rel=next", "https://h/x"),  # a proxy ends the TLS of the registry
        ('</x>; rel="nextish"', None),
        ("</x>; rev=next", None),
        ('</x>; rel*0="next"', None),
        ("/x; rel=next", None),
        ('</x>; rel="next', None),
        ("</n>;title = x ; rel\t =  next", "https://h/n"),
        (",, </n>;; rel=next ,", "https://h/n"),
        ('</n>; title=a"b; rel=next', "https://h/n"),
        ('</p>; title="a, </n>; rel=next', "https://h/n"),
        ('</n>; rel="n\\ext"', "https://h/n"),
        # RFC 8288, section 3.3: the first "rel" counts.
        ("</x>; rel=prev; rel=next", None),
        ("</x>; rel; rel=next", None),
        # RFC 8288, section 3.2: a link with an anchor is not about this page.
        ('</x>; rel=next; anchor="#foo"', None),
        ('</x>; anchor="/other"; rel=next, </n>; rel=next', "https://h/n"),
    ],
)
def test_links_in_all_their_forms(header: str, expected: str | None) -> None:
    assert parse_next_link(PAGE, header) == expected


def test_link_is_found_in_any_line() -> None:
    lines = ['</p>; rel="prev"', '</x>; title="', '</n>; rel="next"', '</o>; rel="next"']
    assert parse_next_link(PAGE, lines) == "https://h/n"
    assert parse_next_link(PAGE, iter(lines)) == "https://h/n"
    assert parse_next_link(PAGE, lines[:2]) is None
    assert parse_next_link(PAGE, None) is parse_next_link(PAGE, []) is None


@pytest.mark.parametrize("target", ["javascript:x", "ftp://h/x", "//", "http://[", "a b"])
def test_link_that_cannot_be_read_is_no_next_page(target: str) -> None:
    assert parse_next_link(PAGE, f"<{target}>; rel=next") is None
    assert parse_next_link(PAGE, f"<{target}>; rel=next, </n>; rel=next") == "https://h/n"


def test_link_of_a_malformed_request_url_is_refused() -> None:
    for header in "</n>; rel=next", None:
        with pytest.raises(ValueError, match="does not lead to a URL of http or https"):
            parse_next_link("urn:x", header)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/repository/images/v2/local/app/tags/list?last=b&n=2", {"last": ["b"], "n": ["2"]}),
        ("https://internal:5000/x?a=1&a=2", {"a": ["1", "2"]}),
        ("list?next_page=x%2B%2F%3D&empty=", {"next_page": ["x+/="], "empty": [""]}),
        ("?last=b", {"last": ["b"]}),
        ("/v2/app/tags/list", {}),
        ("/v2/app/tags/list?n=2&last=a", {}),  # the same page again
        ("/other?last=a&n=2", {}),
        ("http://[", {}),
    ],
)
def test_query_of_the_next_page_has_no_path(target: str, expected: dict[str, list[str]]) -> None:
    url = "https://h/v2/app/tags/list?n=2&last=a"
    assert parse_next_query(url, f'<{target}>; rel="next"') == expected
    assert parse_next_query(url, f'<{target}>; rel="prev"') == {}


def test_query_of_a_page_without_a_link_is_empty() -> None:
    assert parse_next_query(PAGE, None) == parse_next_query(PAGE, []) == {}
    with pytest.raises(ValueError, match="does not lead to a URL"):
        parse_next_query("urn:x", "</n?n=1>; rel=next")
