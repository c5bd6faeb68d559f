"""Lists in pages: what a request wants, what it gets, and the link to the next page."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_routes import URLBuilder, cut_page, next_link, parse_next_link, requested_page
from registry_routes.errors import PaginationNumberInvalid

from .nasty import SHA256, SHA512


def test_n_and_last_of_a_request() -> None:
    assert requested_page({}) == (None, None)
    assert requested_page({"n": "0", "last": ""}) == (0, "")
    assert requested_page({"n": "007"}) == (7, None)
    for huge in "9" * 18, "9" * 19, "9" * 100_000:
        n, _ = requested_page({"n": huge})
        assert n
        assert n >= 10**17


@pytest.mark.parametrize("n", ["", "-1", "x", "1.0", "+1", " 1", "1\n", "٣", "1_000", "0x1", "1e3"])
def test_a_bad_n(n: str) -> None:
    with pytest.raises(PaginationNumberInvalid) as error:
        requested_page({"n": n})
    assert error.value.detail == {"n": n}
    assert error.value.code == 400


@given(
    st.sets(st.text(alphabet="abAB01._-", min_size=1, max_size=3)),
    st.integers(1, 5),
)
def test_all_pages_together_are_all_the_names_once(names: set[str], n: int) -> None:
    last, seen = None, []
    while True:
        part, more = cut_page(names, n, last)
        seen += part
        if not more:
            break
        assert len(part) == n
        last = part[-1]
    assert seen == sorted(names, key=lambda name: (name.lower(), name))
    assert cut_page(names, None, None) == (seen, False)
    assert cut_page(names, 0, None) == ([], False)
    assert cut_page(names, len(names), None) == (seen, False)


def test_a_page_after_a_name_that_is_gone() -> None:
    assert cut_page(["a", "c", "d"], 1, "b") == (["c"], True)
    assert cut_page(["a", "c", "d"], 10**18, "e") == ([], False)


def test_a_link_leads_to_the_next_page_and_is_read_back() -> None:
    urls = URLBuilder("https://r.example/m")
    for url in (
        urls.tags("a", n=2, last="é"),
        urls.catalog(n=1, last="a/b"),
        urls.referrers("a", SHA256, n=1, last=SHA512),
    ):
        assert parse_next_link("https://r.example/m/v2/", next_link(url)) == url


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("</x?n=1>; rel=next", "https://h/x?n=1"),
        ('</x?a=1,2;3>;rel="next"', "https://h/x?a=1,2;3"),
        ('</p>; rel="prev", </n>; rel="next"', "https://h/n"),
        ('</p>; rel="prev"; title="a, <b>; rel=next", </n>; REL="NEXT"', "https://h/n"),
        ('</n>; title="x\\"y"; rel="up next"', "https://h/n"),
        ("<y?n=1>; rel=next", "https://h/v2/y?n=1"),
        ("<https://other.example/x>; rel=next", "https://other.example/x"),
        ('</x>; rel="nextish"', None),
        ("</x>", None),
        ("/x; rel=next", None),
        ("<", None),
        ('</x>; rel="next', None),
        ('</n>; rel = "next"', "https://h/n"),
        ("</n>;title = x ; rel\t =  next", "https://h/n"),
    ],
)
def test_links_as_they_come(header: str | None, expected: str | None) -> None:
    assert parse_next_link("https://h/v2/x", header) == expected


@pytest.mark.parametrize(
    "shape", ["</x>;", "</x>; ", " ", ",", "<", ';"', '\\"', "; a", '</x>;a="']
)
def test_a_hostile_header_hangs_nothing(shape: str) -> None:
    begun = time.monotonic()
    for begin in "", "</x>", '</x>; a="', "</x>;":
        for end in "", "!", '"', "\\", ">":
            header = begin + shape * (100_000 // len(shape)) + end
            assert parse_next_link("https://h/", header) is None
    assert time.monotonic() - begun < 60
